//! What the daemon holds at one moment, and whether two such moments agree. It waits for nothing.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use serde_json::Value;
use tcpguard_common::flow::{FlowKey, V4};
use tcpguard_common::map::{self, Flow};

use crate::run::daemon::Daemon;

/// How much more memory may be resident afterwards, KB: buffers that a later moment needed more of than any before, and what an
/// allocator keeps of freed pages. A few hundred bytes that each connection leaves behind are more, even in two minutes.
const MEMORY_SLACK: u64 = 8 << 10;
/// The ways in which a connection that a service accepted can have ended.
const ENDS: [&str; 14] = [
    "finished",
    "client-failed",
    "unread-reset",
    "backend-failed",
    "client-silent",
    "backend-silent",
    "over-limit",
    "idle",
    "overtime",
    "backend-refused",
    "backend-unreachable",
    "backend-timeout",
    "exhausted",
    "backend-error",
];

/// What the daemon holds.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    /// Resident memory, KB.
    memory: u64,
    pub(super) descriptors: usize,
    /// Entries of XDP's flow map.
    entries: usize,
    connections: u64,
    time_waits: u64,
    /// Frames that are nowhere.
    frames_lost: u64,
    /// Connections that services accepted, and those of them whose end was counted.
    accepted: u64,
    ended: u64,
}

impl Holding {
    pub(super) fn of(daemon: &mut Daemon, pins: &Path) -> Result<Self> {
        let stats = daemon.stats()?;
        let counter = |group: &str, name: &str| {
            let value: &Value = &stats["totals"][group][name];
            value.as_u64().with_context(|| format!("the daemon has no counter {group} {name}"))
        };
        let mut ended = 0;
        for end in ENDS {
            ended += counter("service", end)?;
        }
        let mut frames = 0;
        for place in ["free", "fill", "rx", "tx", "completion"] {
            frames += counter("ring", place)?;
        }
        let process = format!("/proc/{}", daemon.id());
        let status = std::fs::read_to_string(format!("{process}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(Self {
            memory: memory.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?,
            descriptors: std::fs::read_dir(format!("{process}/fd"))?.count(),
            entries: entries(pins)?,
            connections: counter("engine", "connections")?,
            time_waits: counter("engine", "time-wait")?,
            frames_lost: counter("ring", "frames")?.abs_diff(frames),
            accepted: counter("service", "accepted")?,
            ended,
        })
    }

    /// Whether nothing of any client's is left, and the counters say so too.
    pub(super) fn is_at_rest(&self) -> bool {
        let Self { entries, connections, time_waits, frames_lost, accepted, ended, .. } = *self;
        entries == 0 && connections == 0 && time_waits == 0 && frames_lost == 0 && accepted == ended
    }
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, descriptors, entries, connections, time_waits, frames_lost, accepted, ended } =
            self;
        write!(
            f,
            "{memory} KB, {descriptors} descriptors, {entries} map entries, {connections} connections, \
             {time_waits} TIME_WAITs, {frames_lost} frames lost, {ended} of {accepted} accepted connections ended"
        )
    }
}

/// Two moments at rest.
pub(super) struct Balance<'a> {
    pub(super) before: &'a Holding,
    pub(super) after: &'a Holding,
}

impl Balance<'_> {
    /// # Errors
    /// When the daemon holds more than before.
    pub(super) fn check(&self) -> Result<()> {
        let Self { before, after } = self;
        let both = || format!("\nbefore: {before}\nafter:  {after}");
        ensure!(after.descriptors <= before.descriptors, "descriptors leak{}", both());
        ensure!(after.memory <= before.memory + MEMORY_SLACK, "memory leaks{}", both());
        ensure!(after.accepted > before.accepted, "nothing happened in between{}", both());
        Ok(())
    }
}

/// Entries of the pinned flow map; the lab's clients all speak IPv4.
fn entries(pins: &Path) -> Result<usize> {
    let pinned = MapData::from_pin(pins.join(map::name::FLOWS_V4))?;
    let flows: HashMap<_, FlowKey<V4>, Flow> = Map::HashMap(pinned).try_into()?;
    Ok(flows.keys().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Holding = Holding {
        memory: 50_000,
        descriptors: 40,
        entries: 0,
        connections: 0,
        time_waits: 0,
        frames_lost: 0,
        accepted: 10,
        ended: 10,
    };

    #[test]
    fn anything_of_a_clients_that_is_left_is_no_rest() {
        assert!(REST.is_at_rest());
        let left = [
            Holding { entries: 1, ..REST },
            Holding { connections: 1, ..REST },
            Holding { time_waits: 1, ..REST },
            Holding { frames_lost: 1, ..REST },
            Holding { ended: 9, ..REST },
        ];
        for holding in left {
            assert!(!holding.is_at_rest(), "{holding}");
        }
    }

    #[test]
    fn a_leak_fails_the_balance_and_an_allocators_reserve_does_not() {
        let later = Holding { accepted: 99, ended: 99, memory: 51_000, ..REST };
        let check = |after: &Holding| Balance { before: &REST, after }.check();
        check(&later).unwrap();
        for (after, why) in [
            (Holding { descriptors: 41, ..later.clone() }, "descriptors leak"),
            (Holding { memory: 70_000, ..later.clone() }, "memory leaks"),
            (REST, "nothing happened"),
        ] {
            assert!(check(&after).unwrap_err().to_string().starts_with(why));
        }
    }
}
