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
    /// Runs of each row, one of every row in turn with its null.
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
    let mut timed = Vec::new();

    let rows = [answered("services_syn")?, refused("services_ack", strangers)?];
    let mut guard = Guard::load(objects.guard, &socket)?;
    let mut served = 1;
    for &count in growth.services {
        guard.serve_more(served..count)?;
        served = count;
        timed.extend(time(&mut bench, &guard, &rows, count, growth)?);
    }

    let rows = [answered("queues_syn")?, refused("queues_ack", strangers)?];
    let mut guard = Guard::load(objects.guard, &socket)?;
    for &count in growth.queues {
        guard.share(count)?;
        timed.extend(time(&mut bench, &guard, &rows, count, growth)?);
    }

    let denied = Row::new("filters_deny", Kind::Syn, (DENIED, MANY), DROP, Reason::FilterDeny)?;
    let rows = [denied, refused("filters_none", strangers)?, refused("filters_near", (ALLOWED, MANY))?];
    let mut guard = Guard::load(objects.guard, &socket)?;
    for &count in growth.filters {
        guard.list(&prefixes(count))?;
        // With nothing on the lists nobody is denied.
        let rows = if count == 0 { &rows[1..] } else { &rows[..] };
        timed.extend(time(&mut bench, &guard, rows, count, growth)?);
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

fn time(bench: &mut Ebpf, guard: &Guard, rows: &[Row], count: u32, growth: Growth) -> Result<Vec<Timed>> {
    let (program, null) = (guard.program()?, null(bench)?);
    let mut runs = vec![Vec::new(); rows.len()];
    for _ in 0..growth.rounds {
        for (Row { name, how, verdict, reason }, runs) in rows.iter().zip(&mut runs) {
            let failed = || format!("row {name} with {count}");
            rewrite_as(bench, *how)?;
            run(bench, &program, growth.packets.min(WARM_UP))?;
            let before = guard.counters()?;
            let (met, time) = run(bench, &program, growth.packets)?;
            ensure!(met == *verdict, "row {name} with {count}: verdict {met}, expected {verdict}");
            check(&before, &guard.counters()?, Some(*reason), growth.packets).with_context(failed)?;
            let (met, nothing) = run(bench, &null, growth.packets)?;
            ensure!(met == DROP, "the frame could not be made");
            runs.push(time - nothing);
        }
    }
    Ok(rows.iter().zip(runs).map(|(row, runs)| (row.name, count, runs)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_as_many_prefixes_as_asked_for_each_once() {
        for count in [0, 1, 2, 1000, 100_000] {
            let mut list = prefixes(count);
            list.dedup();
            assert_eq!(list.len(), count as usize);
        }
    }
}
