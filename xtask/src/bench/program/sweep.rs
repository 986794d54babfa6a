//! How the program's cost grows with what the guard is told: services, prefixes on filter lists, receive queues. The same
//! frames and the same null as in the rows of `bench program`; the suite `scale` makes rows of it.

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use socket2::{Domain, Socket, Type};
use tcpguard_common::bench::Rewrite;
use tcpguard_common::filter::{ALLOW, DENY};
use tcpguard_common::flow::V4;
use tcpguard_common::reason::Reason;

use super::Objects;
use super::contest::{AF_XDP, WARM_UP, load, null, rewrite_as, run};
use super::frames::{Kind, Sources, rewrite};
use super::guard::{self, Guard, check};
use super::rows::{ALLOWED, DENIED, DROP, HOT_STRANGERS, MANY, STRANGERS, TX};

/// How far things grow, and how often each is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bench) struct Growth {
    /// Runs of each row at each size, one of every size and row in turn with its null.
    pub(in crate::bench) rounds: usize,
    /// Packets in one run.
    pub(in crate::bench) packets: u32,
    /// Services, ascending.
    pub(in crate::bench) services: &'static [u32],
    /// Prefixes on the lists, ascending.
    pub(in crate::bench) filters: &'static [u32],
    /// Receive queues, ascending.
    pub(in crate::bench) queues: &'static [u32],
}

/// What one row came to at one size: its name, the size, and nanoseconds beyond the null of every run.
pub(in crate::bench) type Timed = (&'static str, u32, Vec<f64>);

/// A kind of packet, and what must become of it.
struct Row {
    name: &'static str,
    how: Rewrite,
    verdict: u32,
    reason: Reason,
}

impl Row {
    fn new(name: &'static str, kind: Kind, sources: (u8, u64), verdict: u32, reason: Reason) -> Result<Self> {
        let (network, count) = sources;
        let how = rewrite::<V4>(kind, Sources { network, count }, guard::epoch()?);
        Ok(Self { name, how, verdict, reason })
    }
}

/// Times every row at every size. Fails when a run does not end as its row says.
pub(in crate::bench) fn sweep(objects: Objects<'_>, growth: Growth) -> Result<Vec<Timed>> {
    // Never bound: all that the programs ask is whether there is one.
    let socket = Socket::new(Domain::from(AF_XDP), Type::RAW, None).context("an AF_XDP socket")?;
    let mut bench = load(objects.bench, &socket)?;
    let strangers = (STRANGERS, HOT_STRANGERS);
    let answered = |name| Row::new(name, Kind::Syn, (STRANGERS, MANY), TX, Reason::CookieSent);
    let refused = |name, sources| Row::new(name, Kind::Ack, sources, DROP, Reason::AckInvalid);
    let load = || Guard::load(objects.guard, &socket);
    // Services are never taken back: a guard for each number of them.
    let with_services = |&count: &u32| {
        let mut guard = load()?;
        guard.serve_more(1..count)?;
        anyhow::Ok((count, guard))
    };
    let serving = growth.services.iter().map(with_services).collect::<Result<Vec<_>>>()?;
    let (mut sharing, mut listing) = (load()?, load()?);
    let of_services = [answered("services_syn")?, refused("services_ack", strangers)?];
    let of_queues = [answered("queues_syn")?, refused("queues_ack", strangers)?];
    let denied = Row::new("filters_deny", Kind::Syn, (DENIED, MANY), DROP, Reason::FilterDeny)?;
    let of_filters = [denied, refused("filters_none", strangers)?, refused("filters_near", (ALLOWED, MANY))?];

    let mut timed = Vec::new();
    // All sizes in turn, so that a machine that gets slower meanwhile makes no size look dearer than another.
    for _ in 0..growth.rounds {
        for (count, guard) in &serving {
            time(&mut bench, guard, &of_services, *count, growth.packets, &mut timed)?;
        }
        for &count in growth.queues {
            sharing.share(count)?;
            time(&mut bench, &sharing, &of_queues, count, growth.packets, &mut timed)?;
        }
        for &count in growth.filters {
            listing.list(&prefixes(count))?;
            // With nothing on the lists nobody is denied.
            let rows = if count == 0 { &of_filters[1..] } else { &of_filters[..] };
            time(&mut bench, &listing, rows, count, growth.packets, &mut timed)?;
        }
    }
    Ok(timed)
}

/// One network that is denied, and allowed hosts all over another.
fn prefixes(count: u32) -> Vec<(u32, u8, u32)> {
    let denied = (count > 0).then_some((u32::from(DENIED) << 24, 8, DENY));
    let hosts = (1..count).map(|index| index.wrapping_mul(0x9e_3779) & 0xff_ffff);
    let mut list: Vec<_> =
        denied.into_iter().chain(hosts.map(|host| (u32::from(ALLOWED) << 24 | host, 32, ALLOW))).collect();
    list.sort_unstable();
    list
}

/// One run of each row.
fn time(
    bench: &mut Ebpf,
    guard: &Guard,
    rows: &[Row],
    count: u32,
    packets: u32,
    timed: &mut Vec<Timed>,
) -> Result<()> {
    let (program, null) = (guard.program()?, null(bench)?);
    for Row { name, how, verdict, reason } in rows {
        let failed = || format!("row {name} with {count}");
        rewrite_as(bench, *how)?;
        run(bench, &program, packets.min(WARM_UP))?;
        let before = guard.counters()?;
        let (met, time) = run(bench, &program, packets)?;
        ensure!(met == *verdict, "row {name} with {count}: verdict {met}, expected {verdict}");
        check(&before, &guard.counters()?, Some(*reason), packets).with_context(failed)?;
        let (met, nothing) = run(bench, &null, packets)?;
        ensure!(met == DROP, "the frame could not be made");
        note(timed, name, count, time - nothing);
    }
    Ok(())
}

/// Adds a run to those of its row and size.
fn note(timed: &mut Vec<Timed>, row: &'static str, size: u32, run: f64) {
    match timed.iter_mut().find(|(name, count, _)| (*name, *count) == (row, size)) {
        Some((.., runs)) => runs.push(run),
        None => timed.push((row, size, vec![run])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_row_are_kept_apart_by_size() {
        let mut timed = Vec::new();
        for round in 0..2 {
            for (row, size) in [("a", 1), ("a", 2), ("b", 2)] {
                note(&mut timed, row, size, f64::from(size * 10 + round));
            }
        }
        assert_eq!(
            timed,
            [("a", 1, vec![10.0, 11.0]), ("a", 2, vec![20.0, 21.0]), ("b", 2, vec![20.0, 21.0])]
        );
    }

    #[test]
    fn lists_have_as_many_prefixes_as_asked_for_each_once() {
        for count in [0, 1, 2, 1000, 100_000] {
            let mut list = prefixes(count);
            list.dedup();
            assert_eq!(list.len(), count as usize);
        }
    }
}
