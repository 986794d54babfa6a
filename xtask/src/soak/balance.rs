//! What the daemon holds at one moment, and whether two such moments agree. It waits for nothing.
//!
//! Some numbers look as if they had to agree and do not. Bytes that clients read are fewer than those that services sent: some
//! clients leave in the middle. Flows that waited out TIME_WAIT are in no counter, nor are SYNs that gave way to others of their
//! tuple, as a flood's now and then do; that none is left says as much. The front of the flow table is not looked at: a bucket
//! that was once crowded says so for a while.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData};
use serde_json::Value;
use tcpguard_common::fingerprint::WAYS;
use tcpguard_common::flow::{FlowKey, V4};
use tcpguard_common::map::{self, Flow};

use crate::run::daemon::Daemon;

/// How much more memory may be resident afterwards, KB: buffers that a later moment needed more of than any before, and what an
/// allocator keeps of freed pages. A few hundred bytes that each connection leaves behind are more, even in two minutes.
const MEMORY_SLACK: u64 = 8 << 10;
/// The counters of a service that say how connections which it accepted have ended: as many as these, in the end.
pub const ENDS: [&str; 14] = [
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
    half_open: u64,
    /// Frames that are nowhere.
    frames_lost: u64,
    /// Frames that one of the two engines left to the other, and that the other did not take.
    not_taken: u64,
    /// Connections that services accepted, and those of them whose end was counted.
    accepted: u64,
    ended: u64,
    /// Words of XDP's maps that count an open flow, or mark one in TIME_WAIT. There are a million and a half: they are looked
    /// at once nothing else is left.
    marks: Option<usize>,
}

impl Holding {
    pub(super) fn of(daemon: &mut Daemon, pins: &Path) -> Result<Self> {
        let stats = daemon.stats()?;
        let counter = |group: &str, name: &str| {
            let value: &Value = &stats["totals"][group][name];
            value.as_u64().with_context(|| format!("the daemon has no counter {group} {name}"))
        };
        let sum = |group: &str, names: &[&str]| -> Result<u64> {
            names.iter().map(|name| counter(group, name)).sum()
        };
        let frames = sum("ring", &["free", "fill", "rx", "tx", "completion"])?;
        let process = format!("/proc/{}", daemon.id());
        let status = std::fs::read_to_string(format!("{process}/status"))?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let mut holding = Self {
            memory: memory.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?,
            descriptors: std::fs::read_dir(format!("{process}/fd"))?.count(),
            entries: entries(pins)?,
            connections: counter("engine", "connections")?,
            time_waits: counter("engine", "time-wait")?,
            half_open: counter("engine", "half-open")?,
            frames_lost: counter("ring", "frames")?.abs_diff(frames),
            not_taken: counter("engine", "forwarded-out")?.abs_diff(counter("engine", "forwarded-in")?),
            accepted: counter("service", "accepted")?,
            ended: sum("service", &ENDS)?,
            marks: None,
        };
        if holding.left() == 0 {
            holding.marks = Some(marks(pins)?);
        }
        Ok(holding)
    }

    /// Whether nothing of any client's is left, and the counters say so too.
    pub(super) fn is_at_rest(&self) -> bool {
        self.left() == 0 && self.marks == Some(0)
    }

    /// How much of clients' is left, without what XDP's maps say of it.
    fn left(&self) -> u64 {
        let Self { memory: _, descriptors: _, entries, connections, time_waits, half_open, .. } = *self;
        let Self { frames_lost, not_taken, accepted, ended, marks: _, .. } = *self;
        entries as u64
            + connections
            + time_waits
            + half_open
            + frames_lost
            + not_taken
            + accepted.abs_diff(ended)
    }
}

impl fmt::Display for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { memory, descriptors, entries, connections, time_waits, half_open, .. } = self;
        let Self { frames_lost, not_taken, accepted, ended, marks, .. } = self;
        write!(
            f,
            "{memory} KB, {descriptors} descriptors, {entries} map entries, {connections} connections, \
             {time_waits} TIME_WAITs, {half_open} half-open, {frames_lost} frames lost, {not_taken} not taken by the \
             other engine, {ended} of {accepted} accepted connections ended"
        )?;
        marks.map_or(Ok(()), |marks| write!(f, ", {marks} words set in maps"))
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

/// Words that are not zero in the pinned counts of open flows and in the table of fingerprints.
fn marks(pins: &Path) -> Result<usize> {
    let services = array(pins, map::name::SERVICE_FLOWS, |&open: &i64| usize::from(open != 0))?;
    let sources = array(pins, map::name::SOURCE_FLOWS, |&open: &i64| usize::from(open != 0))?;
    let in_bucket = |bucket: &[u32; WAYS as usize]| bucket.iter().filter(|&&word| word != 0).count();
    Ok(services + sources + array(pins, map::name::TIME_WAIT, in_bucket)?)
}

/// The sum of what `count` says of each value of a pinned array.
fn array<T: Pod>(pins: &Path, name: &str, count: impl Fn(&T) -> usize) -> Result<usize> {
    let array: Array<_, T> = Map::Array(MapData::from_pin(pins.join(name))?).try_into()?;
    let mut sum = 0;
    for value in array.iter() {
        sum += count(&value.with_context(|| format!("reading the map {name}"))?);
    }
    Ok(sum)
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
        half_open: 0,
        frames_lost: 0,
        not_taken: 0,
        accepted: 10,
        ended: 10,
        marks: Some(0),
    };

    #[test]
    fn anything_of_a_clients_that_is_left_is_no_rest() {
        assert!(REST.is_at_rest());
        let left = [
            Holding { entries: 1, ..REST },
            Holding { connections: 1, ..REST },
            Holding { time_waits: 1, ..REST },
            Holding { half_open: 1, ..REST },
            Holding { frames_lost: 1, ..REST },
            Holding { not_taken: 1, ..REST },
            Holding { ended: 9, ..REST },
            Holding { marks: None, ..REST },
            Holding { marks: Some(1), ..REST },
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
