//! What a process takes: memory, CPU time, and the memory of the BPF maps it holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Where the kernel says it.
fn dir(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// Bytes of memory that are resident: all of them, and those that belong to no file and are shared with nobody.
pub(super) fn memory(pid: u32) -> Result<(u64, u64)> {
    let text = fs::read_to_string(dir(pid).join("status")).with_context(|| format!("process {pid}"))?;
    let field = |name| field(&text, name).with_context(|| format!("no {name} of process {pid}"));
    Ok((field("VmRSS")? * 1024, field("RssAnon")? * 1024))
}

/// CPU time of all its threads that live.
pub(in crate::bench) fn cpu(pid: u32) -> Result<Duration> {
    let tasks = fs::read_dir(dir(pid).join("task")).with_context(|| format!("process {pid}"))?;
    Ok(tasks.flatten().map(|task| runtime(&task.path())).sum())
}

/// CPU time of a daemon's threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::bench) struct Threads {
    /// Of the engines, which are called `interface/queue`.
    pub(in crate::bench) engines: Duration,
    /// Of its first thread, which serves the control socket.
    pub(in crate::bench) first: Duration,
    /// Of all others, those that have ended included. To a tick of the kernel's, which is some milliseconds.
    pub(in crate::bench) others: Duration,
}

impl Threads {
    /// What was taken after `before`.
    pub(in crate::bench) fn since(&self, before: &Self) -> Self {
        Self {
            engines: self.engines.saturating_sub(before.engines),
            first: self.first.saturating_sub(before.first),
            others: self.others.saturating_sub(before.others),
        }
    }
}

/// What a daemon's threads have taken.
pub(super) fn threads(pid: u32) -> Result<Threads> {
    let mut threads = Threads::default();
    for task in fs::read_dir(dir(pid).join("task")).with_context(|| format!("process {pid}"))?.flatten() {
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.contains('/') {
            threads.engines += runtime(&task.path());
        } else if task.file_name().to_str() == Some(&pid.to_string()) {
            threads.first = runtime(&task.path());
        }
    }
    let stat = fs::read_to_string(dir(pid).join("stat")).with_context(|| format!("process {pid}"))?;
    // Behind the name, which may contain anything: proc_pid_stat(5), fields 14 and 15.
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = [11, 12].map(|at| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0));
    let all =
        Duration::from_secs_f64(ticks.iter().sum::<f64>() / rustix::param::clock_ticks_per_second() as f64);
    threads.others = all.saturating_sub(threads.engines + threads.first);
    Ok(threads)
}

/// CPU time of the calling thread.
pub(in crate::bench) fn thread_cpu() -> Duration {
    runtime(Path::new("/proc/thread-self"))
}

/// CPU time of the thread whose directory this is; none if it has ended.
fn runtime(task: &Path) -> Duration {
    crate::lab::runtime(task).unwrap_or_default()
}

/// Bytes of the BPF maps that it has open, each map once.
pub(super) fn maps(pid: u32) -> Result<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(dir(pid).join("fdinfo")).with_context(|| format!("process {pid}"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if let (Some(id), Some(bytes)) = (field(&text, "map_id"), field(&text, "memlock")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps.values().sum())
}

/// The number at the start of the line `name:`.
fn field(text: &str, name: &str) -> Option<u64> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines.into_iter().find_map(|(key, value)| (key == name).then_some(value))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_takes_time() {
        let pid = std::process::id();
        let (all, own) = memory(pid).unwrap();
        assert!(all > own && own > 0);
        // The kernel accounts for a thread that runs at its next tick.
        while thread_cpu() == Duration::ZERO {}
        assert!(cpu(pid).unwrap() > Duration::ZERO);
        assert_eq!(maps(pid).unwrap(), 0);
    }

    #[test]
    fn threads_are_told_apart_and_those_that_ended_count_too() {
        let spin = || while thread_cpu() < Duration::from_millis(100) {};
        let spawn = |name: &str| std::thread::Builder::new().name(name.to_owned()).spawn(spin).unwrap();
        let before = threads(std::process::id()).unwrap();
        spawn("ended").join().unwrap();
        let (spun, wait) = std::sync::mpsc::channel();
        let engine = std::thread::Builder::new().name("eth0/0".to_owned());
        let engine = engine.spawn(move || {
            spin();
            spun.send(()).unwrap();
            std::thread::park();
        });
        wait.recv().unwrap();
        let spent = threads(std::process::id()).unwrap().since(&before);
        assert!(spent.engines >= Duration::from_millis(99), "{spent:?}");
        assert!(spent.others >= Duration::from_millis(50), "{spent:?}");
        engine.unwrap().thread().unpark();
    }

    #[test]
    fn a_field_is_the_number_behind_its_name() {
        let text = "map_type:\t1\nmap_id:\t17\nmemlock:\t4096\nVmRSS:\t  12 kB\n";
        assert_eq!(
            (field(text, "map_id"), field(text, "memlock"), field(text, "VmRSS")),
            (Some(17), Some(4096), Some(12))
        );
        assert_eq!(field(text, "map"), None);
    }
}
