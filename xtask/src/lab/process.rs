//! A process of the lab: it leads its own process group, dies with us, and is always reaped.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::tool;

/// A running process. Dropping it kills it and its children.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    left: bool,
}

impl Process {
    /// Starts `command` (see [`super::Namespace::command`]) in a process group of its own, so that a Ctrl-C meant
    /// for us does not reach it first. Standard input is closed.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null());
        Self::spawn_listening(command)
    }

    /// Likewise, with its standard input as `command` has it.
    pub fn spawn_listening(command: &mut Command) -> Result<Self> {
        let name = tool::line(command);
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("starting `{name}`"))?;
        Ok(Self { name, child, left: false })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid()?, signal).with_context(|| format!("signalling `{}`", self.name))
    }

    /// Waits for its end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("`{}` did not end within {limit:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end by SIGTERM, waits at most `limit`, and returns how it ended.
    pub fn stop(mut self, limit: Duration) -> Result<ExitStatus> {
        if self.child.try_wait()?.is_none() {
            self.signal(Signal::TERM)?;
        }
        self.wait(limit)
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait(Duration::from_secs(10))
    }

    /// Leaves it running when this value goes.
    pub(super) fn leave(mut self) {
        self.left = true;
    }

    /// Waits at most `limit` until `ready` says yes; an error when the process ends first. What it then wrote to a
    /// piped standard error is part of the error.
    pub fn wait_until(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                let mut said = String::new();
                if let Some(stderr) = &mut self.child.stderr {
                    let _ = stderr.read_to_string(&mut said);
                }
                bail!("`{}` ended early ({status}) {}", self.name, said.trim());
            }
            if Instant::now() >= deadline {
                bail!("`{}` was not ready within {limit:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn pid(&self) -> Result<Pid> {
        Pid::from_raw(self.child.id().cast_signed()).context("no process id")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        if let Ok(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

/// CPU time of the thread whose directory in `/proc` this is, nanoseconds; nothing if it has ended.
pub(crate) fn runtime(task: &Path) -> Option<Duration> {
    let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}
