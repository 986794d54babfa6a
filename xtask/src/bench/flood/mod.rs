//! `cargo xtask bench flood`: a flooded host behind each defence in turn. How many right answers come back to the far end
//! of the link, beside a program that drops every frame and one that reflects it; and at rates that everybody takes, what a
//! frame costs the host's side. Real clients knock meanwhile. Not what a NIC can take: generator, link and guard share this
//! machine's cores.

mod clients;
mod contestant;
mod floods;
mod rows;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tcpguard_common::lab::Received;

use super::figures::{Report, by_turns};
use crate::build::Artifacts;
use crate::lab::{Arrivals, Lab, LabConfig, PacketThreads, RELEASE};
use clients::{Clients, Knocks, connect, is_open, is_served};
pub use contestant::Contestant;
use contestant::Standing;
use floods::{Sources, Spec, floods};
use rows::{Outcome, summary};
pub use rows::{Row, TAKEN, print};

/// Where clients and floods go.
const PORT: u16 = 80;
/// The client's end of the flow that is flooded with its own segments.
const KNOWN_PORT: u16 = 40_000;

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Turns of each contestant.
    pub rounds: usize,
    /// How long each flood lasts.
    pub time: Duration,
    /// Frames a second of the SYN floods; 0 for as many as the machine makes.
    /// That one first: repeated answers to a flood over the same family, of which some are lost, blur what the next one is answered.
    pub rates: &'static [u64],
}

impl Effort {
    /// Enough for figures.
    pub const FULL: Self = Self { rounds: 5, time: Duration::from_secs(2), rates: &[0, 100_000, 200_000] };
    /// Enough to compare contestants that are far apart.
    pub const QUICK: Self = Self { rounds: 3, time: Duration::from_millis(700), rates: &[0, 100_000] };
}

/// Floods every contestant, all of them in turn, `effort.rounds` times. Fails when tcpguard sends a wrong answer, or serves
/// nobody. That it does [all of its job](super::honesty) is for the caller to ask.
pub fn measure(
    built: &Artifacts,
    contestants: &[Contestant],
    effort: Effort,
    mut progress: impl FnMut(&str),
) -> Result<Report<Row>> {
    let floods = floods(effort.rates);
    let (mut rounds, mut peers) = (Vec::new(), BTreeMap::new());
    for round in 0..effort.rounds {
        rounds.push(by_turns(contestants.len(), round, |who| {
            let contestant = &contestants[who];
            progress(&format!("round {} of {}: {contestant}", round + 1, effort.rounds));
            flood_all(built, contestant, &floods, effort.time, round, &mut peers)
                .with_context(|| format!("flooding {contestant}"))
        })?);
    }
    let place = |wanted| contestants.iter().position(|contestant| *contestant == wanted);
    let ground = place(Contestant::XdpDrop).context("nothing to compare with")?;
    let mirror = place(Contestant::XdpTx).context("nothing to compare with")?;
    let mut rows = Vec::new();
    for (at, spec) in floods.iter().enumerate() {
        for (who, contestant) in contestants.iter().enumerate().filter(|(_, who)| spec.admits(who)) {
            let turns: Vec<_> =
                rounds.iter().map(|turn| [turn[who][at], turn[ground][at], turn[mirror][at]]).collect();
            rows.push(summary(spec, contestant, &turns));
        }
    }
    Ok(Report { peers, ..Report::new("flood", rows) })
}

/// One contestant in a lab of its own, under every flood. One that was given enters its program's tag among the `peers`.
fn flood_all(
    built: &Artifacts,
    contestant: &Contestant,
    floods: &[Spec],
    time: Duration,
    round: usize,
    peers: &mut BTreeMap<String, String>,
) -> Result<Vec<Outcome>> {
    let mut lab = Lab::up(LabConfig::new(&built.lab_object))?;
    lab.ipv6()?;
    // Or a client that knocked may have had it.
    lab.client().sysctl(&[("net/ipv4/ip_local_reserved_ports", &KNOWN_PORT.to_string())])?;
    let mut standing = Standing::up(contestant, &lab, built, PORT)?;
    peers.extend(standing.tag().map(|tag| (contestant.to_string(), tag)));
    let mut outcomes = Vec::new();
    for (at, spec) in floods.iter().enumerate() {
        let botnet = spec.sources == Sources::Botnet;
        if botnet {
            standing.check()?;
        }
        let before = standing.taken()?;
        let number = round * floods.len() + at;
        let (mut outcome, seconds) =
            flood(&mut lab, &mut standing, contestant, spec, time, number).context(spec.name)?;
        if botnet && contestant.serves() {
            let taken = standing.taken()?.saturating_sub(before + outcome.clients.connected);
            outcome.handshakes_pps = taken as f64 / seconds;
            ensure!(taken > 0, "{}: no handshake was completed", spec.name);
        }
        ensure!(outcome.delivered_pps > 0.0, "{}: no frame got through", spec.name);
        if *contestant == Contestant::Tcpguard {
            ensure!(outcome.wrong == 0, "{}: {} wrong SYN-ACKs", spec.name, outcome.wrong);
            let Knocks { tried, connected, .. } = outcome.clients;
            // A second SYN may be lost beside a flood as well.
            ensure!(connected * 4 >= tried * 3, "{}: {connected} of {tried} clients were served", spec.name);
        }
        outcomes.push(outcome);
    }
    standing.down()?;
    Ok(outcomes)
}

/// One flood: what it came to, and how many seconds it lasted.
fn flood(
    lab: &mut Lab,
    standing: &mut Standing,
    contestant: &Contestant,
    spec: &Spec,
    time: Duration,
    number: usize,
) -> Result<(Outcome, f64)> {
    let served = contestant.serves();
    // The flow that the flood's segments belong to.
    let known = (spec.sources == Sources::Known && served).then(|| connect(lab, KNOWN_PORT)).transpose()?;
    let judged = spec.unit() != "frames/s";
    // At full rate a thread would only move work to another core.
    let threads = (spec.rate > 0).then(|| PacketThreads::start(lab)).transpose()?;
    let before = Counted::now(lab, standing, threads.as_ref())?;
    let knocks = served && spec.sources != Sources::Known;
    let clients = knocks.then(|| Clients::start(lab, spec.server())).transpose()?;
    let counters = lab.flood(PORT, spec.flood(lab, number))?.run_for(time)?;
    let clients = clients.map_or(Ok(Knocks::default()), Clients::finish)?;
    settle(lab)?;
    let after = Counted::now(lab, standing, threads.as_ref())?;
    if threads.is_some() {
        drop(threads);
        std::thread::sleep(RELEASE);
    }
    if let Some(known) = &known {
        ensure!(is_open(known), "the flow that was flooded ended");
        lab.expect_spoofed()?;
        ensure!(is_served(lab, known)?, "nobody acknowledges what the flow that was flooded says");
    }
    // A kernel that still repeats its SYN-ACKs of the flood before answers nothing of this one.
    let wrong = if judged { after.arrivals.wrong() - before.arrivals.wrong() } else { 0 };
    let right = answers(contestant, &after.arrivals) - answers(contestant, &before.arrivals);
    let elsewhere = after.arrivals.of(Received::SynAck) - before.arrivals.of(Received::SynAck);
    let first = first_answers(right, after.repeats - before.repeats, elsewhere, clients.tried);
    let seconds = counters.elapsed.as_secs_f64();
    let spent = |after: Duration, before| after.saturating_sub(before).as_nanos() as f64;
    let outcome = Outcome {
        delivered_pps: counters.rate(),
        answers_pps: right as f64 / seconds,
        first_pps: first as f64 / seconds,
        dropped_pps: (after.dropped - before.dropped) as f64 / seconds,
        // Counted where they are finished.
        handshakes_pps: 0.0,
        cpu_ns: after
            .cpu
            .zip(before.cpu)
            .map(|(after, before)| spent(after, before) / counters.delivered().max(1) as f64),
        wrong,
        clients,
    };
    Ok((outcome, seconds))
}

/// Waits for the answers to the last frames, which may still be on their way, and would be judged by the flood after this one.
fn settle(lab: &Lab) -> Result<()> {
    const TRIES: usize = 10;
    let mut before = 0;
    for _ in 0..TRIES {
        std::thread::sleep(Duration::from_millis(20));
        let now = lab.verifier().arrivals()?.syn_acks();
        if now == before {
            break;
        }
        before = now;
    }
    Ok(())
}

/// What is counted before and after a flood.
struct Counted {
    arrivals: Arrivals,
    /// SYN-ACKs that the guarded host sent again.
    repeats: u64,
    dropped: u64,
    /// CPU time of the guarded host, where threads tell it apart.
    cpu: Option<Duration>,
}

impl Counted {
    fn now(lab: &Lab, standing: &mut Standing, threads: Option<&PacketThreads>) -> Result<Self> {
        Ok(Self {
            arrivals: lab.verifier().arrivals()?,
            repeats: standing.repeats(lab)?,
            dropped: lab.dropped_answers()?,
            cpu: threads
                .map(|threads| Ok::<_, anyhow::Error>(threads.guard_cpu()? + standing.cpu()?))
                .transpose()?,
        })
    }
}

/// How many of `right` answers to a flood were no repeated ones, where `repeats` SYN-ACKs were sent again in all, and `elsewhere`
/// of them, but for one to each of so many clients, went where this flood does not come from: to clients, and to a flood before
/// over the other family.
fn first_answers(right: u64, repeats: u64, elsewhere: u64, clients: u64) -> u64 {
    right.saturating_sub(repeats.saturating_sub(elsewhere.saturating_sub(clients)))
}

/// Answers to spoofed addresses that are right: of a reflector, the frames themselves.
fn answers(contestant: &Contestant, arrivals: &Arrivals) -> u64 {
    match contestant {
        Contestant::XdpTx => arrivals.of(Received::SpoofedReflection),
        _ => arrivals.of(Received::SpoofedSynAck) + arrivals.of(Received::SpoofedHandshake),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_repeated_stands_for_no_other() {
        // Of a thousand SYNs ten went without an answer, and thirty answers were repeated.
        assert_eq!(first_answers(1020, 30, 5, 5), 990);
        // A client's own answer was repeated, and twelve of the flood before.
        assert_eq!(first_answers(1007, 30, 18, 5), 990);
        assert_eq!(first_answers(3, 30, 0, 5), 0);
    }
}
