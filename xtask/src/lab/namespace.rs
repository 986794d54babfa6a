//! One network namespace: made, entered, and removed with everything that runs in it. Only the network namespace
//! is ever entered: `ip netns exec` would also remount /sys, and hide the pins under bpffs.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::tool;

/// Where iproute2 keeps namespaces by name.
const NETNS_DIR: &str = "/run/netns";

/// A named network namespace. Dropping it kills what runs inside and removes it, unless it was [kept](Self::keep).
#[derive(Debug)]
pub struct Namespace {
    name: String,
    keep: bool,
}

impl Namespace {
    /// Makes the namespace and brings its loopback up.
    pub fn create(name: &str) -> Result<Self> {
        tool::run("ip", ["netns", "add", name])?;
        let namespace = Self { name: name.to_owned(), keep: false };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The namespace of that name, if there is one; this value will not remove it.
    pub(super) fn existing(name: &str) -> Option<Self> {
        let namespace = Self { name: name.to_owned(), keep: true };
        namespace.path().exists().then_some(namespace)
    }

    /// The name, as `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `nsenter --net=` takes.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(&self.name)
    }

    /// Leaves the namespace standing when this value goes.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Runs `ip` commands in the namespace, one a line.
    pub fn ip(&self, batch: &str) -> Result<()> {
        tool::feed("ip", ["-n", &self.name, "-batch", "-"], batch)
    }

    /// Runs a tool to its end inside the namespace and returns what it wrote.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<String> {
        let net = format!("--net={}", self.path().display());
        tool::output("nsenter", [&[net.as_str(), "--", program], args].concat())
    }

    /// Loads an nftables script in the namespace.
    pub fn nft(&self, script: &str) -> Result<()> {
        let net = format!("--net={}", self.path().display());
        tool::feed("nsenter", [&net, "nft", "-f", "-"], script)
    }

    /// Writes sysctls, `("net/ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (name, value) in settings {
                std::fs::write(format!("/proc/sys/{name}"), value)
                    .with_context(|| format!("writing {value:?} to sysctl {name}"))?;
            }
            Ok(())
        })?
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets opened there stay there. Processes spawned
    /// there must not ask to die with their parent thread: use [`Self::command`].
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let entered = scope.spawn(|| self.join().map(|()| work()));
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a thread that lives inside the namespace; its result is an error when it could not enter.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T>>> {
        let namespace = self.alias();
        let body = move || namespace.join().and_then(|()| work());
        Ok(thread::Builder::new().name(name.to_owned()).spawn(body)?)
    }

    /// A command that runs inside the namespace and is killed when the thread that spawns it ends.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.detached("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// A command that runs inside the namespace until it ends or the namespace is removed.
    pub(super) fn detached(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// The same namespace under another value, which removes nothing.
    pub(super) fn alias(&self) -> Self {
        Self { name: self.name.clone(), keep: true }
    }

    /// Moves the calling thread into the namespace.
    fn join(&self) -> Result<()> {
        let path = self.path();
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("entering {}", path.display()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.name);
        }
    }
}

/// Kills every process in the namespace and removes it; nothing when there is none.
pub(super) fn remove(name: &str) {
    if let Ok(pids) = tool::output("ip", ["netns", "pids", name]) {
        for pid in pids.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?))
        {
            // This process's own threads may be inside.
            if pid != rustix::process::getpid() {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
    let _ = tool::run("ip", ["netns", "del", name]);
}

/// The names of all namespaces that start with `prefix`.
pub(super) fn named(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}
