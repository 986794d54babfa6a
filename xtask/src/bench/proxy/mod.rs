//! `cargo xtask bench proxy`: real clients of a real web server, through tcpguard, through HAProxy in TCP mode, and
//! without anything between, in turn. No flood: what the relay itself costs when it is calm.

mod contestant;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::figures::{Report, Samples, by_turns, edge, median, sorted};
use super::http::Http;
use super::machine::busy;
use crate::build::Artifacts;
use crate::lab::{Lab, LabConfig};
pub use contestant::Contestant;
use contestant::Standing;

/// Bytes of the page that requests fetch.
const PAGE: usize = 1024;
/// Connections that are open at a time.
const CONNECTIONS: u32 = 64;
const SECOND: Duration = Duration::from_secs(1);

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Turns of each contestant.
    pub rounds: usize,
    /// How long requests are sent before anything counts, so that pools and tables get their size.
    pub warm_up: Duration,
    /// How long requests are sent, of each kind.
    pub time: Duration,
    /// Bytes of a transfer.
    pub bulk: usize,
    /// Connections whose first byte is waited for.
    pub first_bytes: usize,
}

impl Effort {
    /// Enough for figures.
    pub const FULL: Self =
        Self { rounds: 5, warm_up: SECOND, time: Duration::from_secs(4), bulk: 512 << 20, first_bytes: 200 };
    /// Enough to compare contestants that are far apart.
    pub const QUICK: Self =
        Self { rounds: 3, warm_up: SECOND, time: SECOND, bulk: 128 << 20, first_bytes: 50 };
}

/// One row: one kind of work through one contestant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which work, see the README.
    pub name: &'static str,
    /// What stands between client and server.
    pub contestant: &'static str,
    /// `requests/s`, `Gbit/s` or `us`.
    pub unit: &'static str,
    /// Median of all rounds.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// Of every round.
    pub samples: Samples,
    /// Median of the ratios to HAProxy's figure in the same round.
    pub of_haproxy: f64,
    /// Likewise to the figure without anything between.
    pub of_direct: f64,
    /// How long half of the requests took at most, microseconds, median; 0 where it is the figure itself or there are none.
    pub p50_us: f64,
    /// How long 99 in 100 took at most.
    pub p99_us: f64,
    /// CPU time of the whole machine, client and server included, in seconds for a million requests; 0 for transfers.
    pub cpu_s_per_million: f64,
    /// Requests that failed or came late, all rounds together. None of tcpguard's do: then there is no report.
    pub failed: u64,
}

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// A connection for each request.
    ShortConn,
    /// Requests on connections that stay.
    Keepalive,
    /// One transfer to the client.
    BulkDown,
    /// One to the server.
    BulkUp,
    /// From the start of a connection to the first byte of the answer.
    FirstByte,
}

impl Work {
    const ALL: [Self; 5] = [Self::ShortConn, Self::Keepalive, Self::BulkDown, Self::BulkUp, Self::FirstByte];

    fn name(self) -> &'static str {
        match self {
            Self::ShortConn => "short_conn",
            Self::Keepalive => "keepalive",
            Self::BulkDown => "bulk_down",
            Self::BulkUp => "bulk_up",
            Self::FirstByte => "first_byte",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::ShortConn | Self::Keepalive => "requests/s",
            Self::BulkDown | Self::BulkUp => "Gbit/s",
            Self::FirstByte => "us",
        }
    }
}

/// What one work through one contestant came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Outcome {
    /// In the work's unit.
    figure: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_s_per_million: f64,
    failed: u64,
}

/// Measures every work through every contestant, all of them in turn, `effort.rounds` times. Fails when a request fails
/// through tcpguard, more than one in a thousand through another, or a transfer is not whole.
pub fn measure(built: &Artifacts, effort: Effort, mut progress: impl FnMut(&str)) -> Result<Report<Row>> {
    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        rounds.push(by_turns(Contestant::ALL.len(), round, |who| {
            let contestant = Contestant::ALL[who];
            progress(&format!("round {} of {}: {}", round + 1, effort.rounds, contestant.name()));
            run_all(built, contestant, effort).with_context(|| format!("measuring {}", contestant.name()))
        })?);
    }
    let mut rows = Vec::new();
    for (at, work) in Work::ALL.into_iter().enumerate() {
        for (who, contestant) in Contestant::ALL.into_iter().enumerate() {
            let (haproxy, direct) = (Contestant::HAPROXY, Contestant::DIRECT);
            let turns: Vec<_> =
                rounds.iter().map(|turn| [turn[who][at], turn[haproxy][at], turn[direct][at]]).collect();
            rows.push(summary(work, contestant, &turns));
        }
    }
    Ok(Report::new("proxy", rows))
}

/// One contestant in a lab of its own, with every work.
fn run_all(built: &Artifacts, contestant: Contestant, effort: Effort) -> Result<Vec<Outcome>> {
    let lab = Lab::up(LabConfig::new(&built.lab_object))?;
    let standing = Standing::up(contestant, &lab, built)?;
    standing.backend().file("page", PAGE)?;
    let bulk = standing.backend().file("bulk", effort.bulk)?;
    let http = Http::new(&lab, standing.server());
    http.requests(false, CONNECTIONS, effort.warm_up)?;
    // The file comes into the page cache.
    http.download("bulk", effort.bulk)?;
    let mut outcomes = Vec::new();
    for work in Work::ALL {
        let outcome = match work {
            Work::ShortConn => requests(&http, contestant, true, effort.time),
            Work::Keepalive => requests(&http, contestant, false, effort.time),
            Work::BulkDown => http.download("bulk", effort.bulk).map(transfer),
            Work::BulkUp => http.upload(&bulk, effort.bulk).map(transfer),
            Work::FirstByte => first_byte(&http, effort.first_bytes),
        };
        outcomes.push(outcome.context(work.name())?);
    }
    standing.down()?;
    Ok(outcomes)
}

/// How many of so many requests may fail: the kernel's own TCP loses one now and then, and that is its figure.
fn bearable(contestant: Contestant, requests: u64) -> u64 {
    if contestant == Contestant::Tcpguard { 0 } else { requests / 1000 }
}

fn requests(http: &Http<'_>, contestant: Contestant, close: bool, time: Duration) -> Result<Outcome> {
    let before = busy()?;
    let done = http.requests(close, CONNECTIONS, time)?;
    let spent = busy()?.saturating_sub(before);
    let failed = done.errors + done.late;
    ensure!(done.requests > 0, "no request was answered");
    ensure!(failed <= bearable(contestant, done.requests), "{failed} of {} requests failed", done.requests);
    Ok(Outcome {
        figure: done.requests as f64 / done.time.as_secs_f64(),
        p50_us: done.p50.as_secs_f64() * 1e6,
        p99_us: done.p99.as_secs_f64() * 1e6,
        cpu_s_per_million: spent.as_secs_f64() / done.requests as f64 * 1e6,
        failed,
    })
}

fn transfer(bytes_per_second: f64) -> Outcome {
    Outcome { figure: bytes_per_second * 8.0 / 1e9, ..Outcome::default() }
}

fn first_byte(http: &Http<'_>, connections: usize) -> Result<Outcome> {
    let micros = sorted(http.first_bytes("page", connections)?.into_iter().map(|time| time * 1e6));
    let p99 = micros.get(micros.len() * 99 / 100).copied().unwrap_or(f64::NAN);
    Ok(Outcome { figure: median(&micros), p99_us: p99, ..Outcome::default() })
}

/// Each turn is the contestant's outcome, HAProxy's and that of the direct way, all of one round.
fn summary(work: Work, contestant: Contestant, turns: &[[Outcome; 3]]) -> Row {
    let middle = |value: &dyn Fn(&[Outcome; 3]) -> f64| median(&sorted(turns.iter().map(value)));
    let figures = sorted(turns.iter().map(|[own, ..]| own.figure));
    Row {
        name: work.name(),
        contestant: contestant.name(),
        unit: work.unit(),
        median: median(&figures),
        min: edge(figures.first()),
        max: edge(figures.last()),
        samples: turns.iter().map(|[own, ..]| own.figure).collect(),
        of_haproxy: middle(&|[own, haproxy, _]| own.figure / haproxy.figure),
        of_direct: middle(&|[own, _, direct]| own.figure / direct.figure),
        p50_us: middle(&|[own, ..]| own.p50_us),
        p99_us: middle(&|[own, ..]| own.p99_us),
        cpu_s_per_million: middle(&|[own, ..]| own.cpu_s_per_million),
        failed: turns.iter().map(|[own, ..]| own.failed).sum(),
    }
}

/// The rows as a person reads them.
pub fn print(report: &Report<Row>) {
    println!(
        "{:11} {:16} {:>10} {:10} {:>10} {:>9} {:>9} {:>9} {:>13} {:>6}",
        "work",
        "contestant",
        "median",
        "",
        "of haproxy",
        "of direct",
        "p50 us",
        "p99 us",
        "cpu s/million",
        "failed"
    );
    let known = |value: f64| if value == 0.0 { "-".to_owned() } else { format!("{value:.0}") };
    for row in &report.rows {
        println!(
            "{:11} {:16} {:>10.2} {:10} {:>10.2} {:>9.2} {:>9} {:>9} {:>13} {:>6}",
            row.name,
            row.contestant,
            row.median,
            row.unit,
            row.of_haproxy,
            row.of_direct,
            known(row.p50_us),
            known(row.p99_us),
            known(row.cpu_s_per_million),
            row.failed
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let outcome = |figure| Outcome { figure, ..Outcome::default() };
        // A machine twice as fast in the second round.
        let turns = [[10.0, 5.0, 20.0], [20.0, 10.0, 40.0]].map(|figures| figures.map(outcome));
        let row = summary(Work::ShortConn, Contestant::Tcpguard, &turns);
        assert_eq!((row.of_haproxy, row.of_direct, row.median), (2.0, 0.5, 15.0));
        assert_eq!((row.name, row.unit), ("short_conn", "requests/s"));
        assert_eq!(row.samples, [10.0, 20.0]);
    }

    #[test]
    fn no_request_through_tcpguard_may_fail_and_few_through_others() {
        assert_eq!(bearable(Contestant::Tcpguard, 1_000_000), 0);
        assert_eq!((bearable(Contestant::Direct, 2999), bearable(Contestant::Haproxy, 999)), (2, 0));
        let turns = [1, 2]
            .map(|failed| [Outcome { failed, ..Outcome::default() }, Outcome::default(), Outcome::default()]);
        assert_eq!(summary(Work::Keepalive, Contestant::Direct, &turns).failed, 3);
    }

    #[test]
    fn contestants_that_others_are_compared_with_are_where_they_are_looked_for() {
        assert_eq!(Contestant::ALL[Contestant::HAPROXY].name(), "haproxy");
        assert_eq!(Contestant::ALL[Contestant::DIRECT].name(), "direct");
    }
}
