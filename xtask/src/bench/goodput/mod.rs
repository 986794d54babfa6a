//! `cargo xtask bench goodput`: what clients of a web server get while the flood against it grows, behind each defence in turn,
//! beside two oracles that know where the flood comes from. Clients, flood, defence and server share this machine's cores, so
//! that whoever spends less on the flood leaves more to the clients.

mod contestant;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::figures::{Report, edge, median, sorted};
use super::http::{Done, Http};
use crate::build::Artifacts;
use crate::lab::{FloodSpec, GUARD_ADDRESS, Instead, Lab, LabConfig, StandIn};
pub use contestant::{Contestant, Topology};
use contestant::{PORT, Standing};

/// Connections that are open at a time.
const CONNECTIONS: u32 = 64;
const SECOND: Duration = Duration::from_secs(1);
/// How far apart the floods of one round may be, as a factor, for what they left to clients to be compared.
const ALIKE: f64 = 1.05;

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Turns of each contestant.
    pub rounds: usize,
    /// How long requests are sent before anything counts, so that pools and tables get their size.
    pub warm_up: Duration,
    /// How long requests are sent, of each kind at each step; in steps of a second.
    pub time: Duration,
    /// How hard the flood is, in percent of what the generator makes when every frame is dropped.
    pub steps: &'static [u8],
}

impl Effort {
    /// Enough for figures.
    pub const FULL: Self =
        Self { rounds: 5, warm_up: SECOND, time: Duration::from_secs(3), steps: &[0, 5, 15, 30, 60, 100] };
    /// Enough to compare contestants that are far apart.
    pub const QUICK: Self = Self { rounds: 2, warm_up: SECOND, time: SECOND, steps: &[0, 30, 100] };
}

/// One row: one kind of requests behind one defence at one step of the flood.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// `short_conn` or `keepalive`.
    pub name: &'static str,
    /// The defence.
    pub contestant: &'static str,
    /// `direct` or `proxied`.
    pub topology: &'static str,
    /// `requests/s`.
    pub unit: &'static str,
    /// Median of all rounds.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// Frames a second that were asked for; 0 for no flood.
    pub asked_pps: u64,
    /// Frames a second that the guarded interface took, median.
    pub delivered_pps: f64,
    /// Requests that were answered, all rounds together.
    pub requests: u64,
    /// Requests and connections that failed or took longer than two seconds.
    pub failed: u64,
    /// How long half of the requests took at most, microseconds, median.
    pub p50_us: f64,
    /// How long 99 in 100 took at most.
    pub p99_us: f64,
    /// How long 999 in 1000 took at most.
    pub p999_us: f64,
    /// Median of the ratios to the figure of the same guard with the flood's network denied; of rounds that count only, and
    /// nothing when there are none.
    pub of_deny: Option<f64>,
    /// Likewise to the guard behind a reflector.
    pub of_reflect: Option<f64>,
    /// Median of the ratios of `p99_us` to that of `oracle_deny`.
    pub p99_of_deny: Option<f64>,
    /// Rounds in all.
    pub rounds: usize,
    /// Those in which the flood that reached this contestant and those that reached the oracles differ by more than 5 %: they
    /// do not count for ratios.
    pub discarded: usize,
}

/// A kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// A connection for each request.
    ShortConn,
    /// Requests on connections that stay.
    Keepalive,
}

impl Work {
    const ALL: [Self; 2] = [Self::ShortConn, Self::Keepalive];

    fn name(self) -> &'static str {
        match self {
            Self::ShortConn => "short_conn",
            Self::Keepalive => "keepalive",
        }
    }
}

/// What one kind of requests behind one defence at one step came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Outcome {
    delivered_pps: f64,
    rate: f64,
    requests: u64,
    failed: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
}

/// By step, then by kind of requests.
type Turn = Vec<[Outcome; Work::ALL.len()]>;

/// Measures all contestants in both topologies, all of them in turn, `effort.rounds` times. Fails when the guard serves nobody.
pub fn measure(built: &Artifacts, effort: Effort, mut progress: impl FnMut(&str)) -> Result<Report<Row>> {
    let limit = limit(built)?;
    progress(&format!("the generator makes {limit} frames a second"));
    let asked: Vec<_> = effort.steps.iter().map(|&percent| limit * u64::from(percent) / 100).collect();
    let mut rows = Vec::new();
    let mut rounds: Vec<Vec<Vec<Turn>>> = Vec::new();
    for round in 0..effort.rounds {
        let mut turns = Vec::new();
        for topology in Topology::ALL {
            let mut turn = Vec::new();
            for contestant in Contestant::ALL {
                let (name, topology_name) = (contestant.name(), topology.name());
                progress(&format!("round {} of {}: {topology_name} {name}", round + 1, effort.rounds));
                turn.push(
                    run_all(built, contestant, topology, &asked, effort, round)
                        .with_context(|| format!("measuring {topology_name} {name}"))?,
                );
            }
            turns.push(turn);
        }
        rounds.push(turns);
    }
    for (at, topology) in Topology::ALL.into_iter().enumerate() {
        for (work, kind) in Work::ALL.into_iter().enumerate() {
            for (step, &asked) in asked.iter().enumerate() {
                for (who, contestant) in Contestant::ALL.into_iter().enumerate() {
                    let turn = |turns: &Vec<Vec<Turn>>| {
                        [who, Contestant::DENY, Contestant::REFLECT].map(|who| turns[at][who][step][work])
                    };
                    let turns: Vec<_> = rounds.iter().map(turn).collect();
                    rows.push(summary(kind, contestant, topology, asked, &turns));
                }
            }
        }
    }
    Ok(Report::new("goodput", rows))
}

/// Frames a second that the generator makes when nothing but dropping them is done: the hardest step.
fn limit(built: &Artifacts) -> Result<u64> {
    const TIME: Duration = Duration::from_millis(500);
    let mut lab = Lab::up(LabConfig::new(&built.lab_object))?;
    let _program = StandIn::attach(&lab, Instead::Drop)?;
    let counters = lab.flood(PORT, FloodSpec { rate: 0, ..FloodSpec::default() })?.run_for(TIME)?;
    Ok((counters.delivered() as f64 / TIME.as_secs_f64()) as u64)
}

/// One contestant in a lab of its own, at every step.
fn run_all(
    built: &Artifacts,
    contestant: Contestant,
    topology: Topology,
    asked: &[u64],
    effort: Effort,
    round: usize,
) -> Result<Turn> {
    let mut lab = Lab::up(LabConfig::new(&built.lab_object))?;
    let standing = Standing::up(contestant, topology, &lab, built)?;
    if effort.warm_up > Duration::ZERO {
        Http::new(&lab, server()).requests(false, CONNECTIONS, effort.warm_up)?;
    }
    let mut turn = Vec::new();
    for &rate in asked {
        let mut outcomes = [Outcome::default(); Work::ALL.len()];
        for (outcome, work) in outcomes.iter_mut().zip(Work::ALL) {
            *outcome = run(&mut lab, work, rate, effort.time, round)
                .with_context(|| format!("{} at {rate} frames a second", work.name()))?;
            ensure!(contestant != Contestant::Tcpguard || outcome.requests > 0, "nobody was served");
        }
        turn.push(outcomes);
    }
    standing.down()?;
    Ok(turn)
}

fn run(lab: &mut Lab, work: Work, rate: u64, time: Duration, round: usize) -> Result<Outcome> {
    let spec = FloodSpec { rate, seed: round as u64, ..FloodSpec::default() };
    let start = Instant::now();
    let flood = (rate > 0).then(|| lab.flood(PORT, spec)).transpose()?;
    let done = Http::new(lab, server()).requests(work == Work::ShortConn, CONNECTIONS, time)?;
    let elapsed = start.elapsed();
    let delivered = flood.map_or(Ok(0), |flood| flood.stop().map(|counters| counters.delivered()))?;
    let Done { requests, failed, time, p50, p99, p999 } = done;
    let [p50_us, p99_us, p999_us] = [p50, p99, p999].map(|time| time.as_secs_f64() * 1e6);
    Ok(Outcome {
        delivered_pps: delivered as f64 / elapsed.as_secs_f64(),
        rate: requests as f64 / time.as_secs_f64(),
        requests,
        failed,
        p50_us,
        p99_us,
        p999_us,
    })
}

fn server() -> SocketAddr {
    SocketAddr::from((GUARD_ADDRESS, PORT))
}

/// Whether floods are so much alike that what they left to clients may be compared.
fn alike(turn: &[Outcome; 3]) -> bool {
    let rates = sorted(turn.iter().map(|outcome| outcome.delivered_pps));
    edge(rates.last()) <= edge(rates.first()) * ALIKE
}

/// Each turn is the contestant's outcome and those of both oracles, all of one round.
fn summary(
    work: Work,
    contestant: Contestant,
    topology: Topology,
    asked: u64,
    turns: &[[Outcome; 3]],
) -> Row {
    let middle = |value: &dyn Fn(&Outcome) -> f64| median(&sorted(turns.iter().map(|[own, ..]| value(own))));
    let counting: Vec<_> = turns.iter().filter(|turn| alike(turn)).collect();
    let ratio = |value: &dyn Fn(&[Outcome; 3]) -> f64| {
        let ratios = sorted(counting.iter().map(|turn| value(turn)).filter(|ratio| ratio.is_finite()));
        (!ratios.is_empty()).then(|| median(&ratios))
    };
    let figures = sorted(turns.iter().map(|[own, ..]| own.rate));
    Row {
        name: work.name(),
        contestant: contestant.name(),
        topology: topology.name(),
        unit: "requests/s",
        median: median(&figures),
        min: edge(figures.first()),
        max: edge(figures.last()),
        asked_pps: asked,
        delivered_pps: middle(&|own| own.delivered_pps),
        requests: turns.iter().map(|[own, ..]| own.requests).sum(),
        failed: turns.iter().map(|[own, ..]| own.failed).sum(),
        p50_us: middle(&|own| own.p50_us),
        p99_us: middle(&|own| own.p99_us),
        p999_us: middle(&|own| own.p999_us),
        of_deny: ratio(&|[own, deny, _]| own.rate / deny.rate),
        of_reflect: ratio(&|[own, _, reflect]| own.rate / reflect.rate),
        p99_of_deny: ratio(&|[own, deny, _]| own.p99_us / deny.p99_us),
        rounds: turns.len(),
        discarded: turns.len() - counting.len(),
    }
}

/// The rows as a person reads them.
pub fn print(report: &Report<Row>) {
    println!(
        "{:10} {:8} {:>9} {:>9}  {:14} {:>10} {:>8} {:>9} {:>9} {:>9} {:>7} {:>10} {:>9}",
        "goodput",
        "",
        "asked",
        "delivered",
        "contestant",
        "requests/s",
        "failed",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "of deny",
        "of reflect",
        "discarded"
    );
    let share = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    for row in &report.rows {
        println!(
            "{:10} {:8} {:>9} {:>9.0}  {:14} {:>10.0} {:>8} {:>9.0} {:>9.0} {:>9.0} {:>7} {:>10} {:>9}",
            row.name,
            row.topology,
            row.asked_pps,
            row.delivered_pps,
            row.contestant,
            row.median,
            row.failed,
            row.p50_us,
            row.p99_us,
            row.p999_us,
            share(row.of_deny),
            share(row.of_reflect),
            format!("{}/{}", row.discarded, row.rounds)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(delivered_pps: f64, rate: f64) -> Outcome {
        Outcome { delivered_pps, rate, requests: 10, failed: 1, p99_us: 7.0, ..Outcome::default() }
    }

    fn row(turns: &[[Outcome; 3]]) -> Row {
        summary(Work::ShortConn, Contestant::Tcpguard, Topology::Direct, 100, turns)
    }

    #[test]
    fn rounds_whose_floods_differ_by_more_than_5_percent_do_not_count_for_ratios() {
        let row = row(&[
            [outcome(100.0, 90.0), outcome(104.0, 100.0), outcome(101.0, 45.0)],
            [outcome(100.0, 10.0), outcome(106.0, 100.0), outcome(101.0, 100.0)],
            [outcome(100.0, 10.0), outcome(101.0, 100.0), outcome(94.0, 100.0)],
        ]);
        assert_eq!((row.rounds, row.discarded), (3, 2));
        assert_eq!((row.of_deny, row.of_reflect, row.p99_of_deny), (Some(0.9), Some(2.0), Some(1.0)));
        assert_eq!((row.median, row.min, row.max), (10.0, 10.0, 90.0));
        assert_eq!((row.requests, row.failed), (30, 3));
    }

    #[test]
    fn without_a_round_that_counts_there_is_no_ratio() {
        let row = row(&[[outcome(100.0, 90.0), outcome(50.0, 100.0), outcome(100.0, 100.0)]]);
        assert_eq!((row.of_deny, row.of_reflect, row.discarded), (None, None, 1));
    }

    #[test]
    fn rounds_without_a_flood_always_count() {
        let row = row(&[[outcome(0.0, 90.0), outcome(0.0, 100.0), outcome(0.0, 100.0)]]);
        assert_eq!((row.of_deny, row.discarded), (Some(0.9), 0));
    }

    #[test]
    fn the_oracles_are_where_they_are_looked_for() {
        assert_eq!(Contestant::ALL[Contestant::DENY].name(), "oracle_deny");
        assert_eq!(Contestant::ALL[Contestant::REFLECT].name(), "oracle_reflect");
    }
}
