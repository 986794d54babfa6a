//! The kernel's threads for what arrives at the two ends of the guard's link. Packets are otherwise handled in whatever runs
//! when they arrive, the flood's own thread among it; a thread's time is told apart, and is exact.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::process::runtime;
use super::{GUARD_INTERFACE, Lab, Namespace, far_end};
use crate::tool;

/// Both ends of a lab's link are handled by threads for as long as this lives.
#[derive(Debug)]
pub struct PacketThreads {
    ends: [(Namespace, &'static str); 2],
    /// Those of the guard's end, as processes.
    guard: BTreeSet<u32>,
}

impl PacketThreads {
    /// Both ends must have an XDP program: without one a veth hands its packets on at once. No other lab may start such threads
    /// at the same moment.
    pub fn start(lab: &Lab) -> Result<Self> {
        let (far, interface) = far_end(&lab.client, lab.router.as_ref());
        let before = handlers(GUARD_INTERFACE);
        let ends = [(lab.guard.alias(), GUARD_INTERFACE), (far.alias(), interface)];
        let mut threads = Self { ends, guard: BTreeSet::new() };
        for (namespace, interface) in &threads.ends {
            thread(namespace, interface, true)?;
        }
        threads.guard = &handlers(GUARD_INTERFACE) - &before;
        let (there, queues) = (threads.guard.len(), lab.config.queues as usize);
        ensure!(there == queues, "{there} threads for the {queues} queues of {GUARD_INTERFACE}");
        Ok(threads)
    }

    /// CPU time that the guard's end has taken: XDP, and what the kernel does with a packet that XDP passes, up to the other
    /// end's queue. To the nanosecond while nothing arrives, otherwise to a tick of the kernel's.
    pub fn guard_cpu(&self) -> Result<Duration> {
        let of = |pid: &u32| {
            runtime(&PathBuf::from(format!("/proc/{pid}"))).context("a thread of the guard's end is gone")
        };
        self.guard.iter().map(of).sum()
    }
}

impl Drop for PacketThreads {
    fn drop(&mut self) {
        for (namespace, interface) in &self.ends {
            // Of a lab that is down already, the threads are gone.
            let _ = thread(namespace, interface, false);
        }
    }
}

/// Has an interface's packets handled by threads, or not. In sysfs, of which a namespace has its own: `ip netns exec` mounts it.
fn thread(namespace: &Namespace, interface: &str, on: bool) -> Result<()> {
    let write = format!("echo {} > /sys/class/net/{interface}/threaded", u8::from(on));
    tool::run("ip", ["netns", "exec", namespace.name(), "sh", "-c", &write])
}

/// The threads that handle an interface of this name, in whatever namespace: the kernel calls them `napi/INTERFACE-NUMBER`.
fn handlers(interface: &str) -> BTreeSet<u32> {
    let prefix = format!("napi/{interface}-");
    let named = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with(&prefix))
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(named).collect()
}
