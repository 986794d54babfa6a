//! A thread of a daemon's that stands still.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A thread of another process that stands still, as a deadlocked one would, until this is dropped.
pub struct Stuck(libc::pid_t);

impl Stuck {
    /// Stops the thread of that name where it waits for work: elsewhere it may hold a lock, and others would stand still with it.
    /// Whoever stopped it has to let it go on.
    pub fn thread(process: u32, name: &str) -> Self {
        let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("the daemon's threads");
        let thread = threads.flatten().find(|thread| {
            std::fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        });
        let thread = thread.unwrap_or_else(|| panic!("no thread {name}"));
        let id: libc::pid_t = thread.file_name().to_str().and_then(|id| id.parse().ok()).expect("a number");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let stopped = Self::stop(id);
            let call = std::fs::read_to_string(thread.path().join("syscall")).expect("its system call");
            let call = call.split(' ').next().and_then(|number| number.parse().ok());
            if call.is_some_and(|call| [libc::SYS_epoll_wait, libc::SYS_epoll_pwait].contains(&call)) {
                return stopped;
            }
            assert!(Instant::now() < deadline, "{name} never waits");
            drop(stopped);
            sleep(Duration::from_millis(1));
        }
    }

    fn stop(id: libc::pid_t) -> Self {
        // SAFETY: no pointers, in either; what is traced is a child of ours.
        let stopped = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, id, 0, 0) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, id, 0, 0) == 0
                && libc::waitpid(id, std::ptr::null_mut(), libc::__WALL) == id
        };
        assert!(stopped, "stopping the thread: {}", io::Error::last_os_error());
        Self(id)
    }
}

impl Drop for Stuck {
    fn drop(&mut self) {
        // SAFETY: no pointers.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}
