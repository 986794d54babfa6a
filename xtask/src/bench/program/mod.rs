//! `cargo xtask bench program`: nanoseconds per packet of the XDP program. `BPF_PROG_RUN` repeats a program that
//! rewrites the whole frame and then runs the unmodified XDP program on it; the same frame rewritten for a program
//! that does nothing is what each row is compared with. Not how many packets a machine can take: no driver is in it.

mod answer;
mod contest;
mod frames;
mod guard;
mod rows;
mod sweep;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::figures::{Report, Samples, edge, median, sorted};
use contest::Contest;
pub(super) use sweep::{Growth, sweep};

/// Another program to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What its rows are called.
    pub name: String,
    /// Its object file or pin.
    pub object: PathBuf,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, object)) if !name.is_empty() && !object.is_empty() => {
                Ok(Self { name: name.to_owned(), object: object.into() })
            }
            _ => Err("expected NAME=OBJ".to_owned()),
        }
    }
}

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Runs of each row, one of every row in turn.
    pub rounds: usize,
    /// Packets in one run.
    pub packets: u32,
    /// Flows of each family in the full table.
    pub flows: u32,
}

impl Effort {
    /// Enough for figures.
    pub const FULL: Self = Self { rounds: 25, packets: 100_000, flows: 1_000_000 };
    /// Enough to compare what is far apart, beside as many flows.
    pub const QUICK: Self = Self { rounds: 5, packets: 50_000, flows: 1_000_000 };
}

/// The object files of the programs in question.
#[derive(Clone, Copy, Debug)]
pub struct Objects<'a> {
    /// The guard's.
    pub guard: &'a Path,
    /// The benchmark's.
    pub bench: &'a Path,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What kind of packet, see the README.
    pub name: String,
    /// `tcpguard`, `null`, or the name of a peer.
    pub contestant: String,
    /// `ns`: all the figures are nanoseconds per packet.
    pub unit: &'static str,
    /// Median of all runs.
    pub median: f64,
    /// The fastest run.
    pub min: f64,
    /// The slowest run.
    pub max: f64,
    /// Of every round, over the program that does nothing.
    pub samples: Samples,
    /// Median of the differences to the program that does nothing, on the same frames a moment later.
    pub over_null: f64,
    /// Of a peer: median of the ratios of that difference to tcpguard's on such frames in the same round.
    pub of_tcpguard: Option<f64>,
}

/// The rows as a person reads them.
pub fn print(report: &Report<Row>) {
    println!(
        "{:24} {:>8} {:>8} {:>8} {:>10} {:>12}",
        "ns per packet", "median", "min", "max", "over null", "of tcpguard"
    );
    for Row { name, median, min, max, over_null, of_tcpguard, samples: _, contestant: _, unit: _ } in
        &report.rows
    {
        let ratio = of_tcpguard.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        println!("{name:24} {median:8.1} {min:8.1} {max:8.1} {over_null:10.1} {ratio:>12}");
    }
}

/// Measures every row. Fails when a run does not end as its row says: with that verdict, counted under that reason, and where
/// it answers, with the right SYN-ACK.
pub fn measure(
    objects: Objects<'_>,
    peers: &[Peer],
    effort: Effort,
    mut progress: impl FnMut(&str),
) -> Result<Report<Row>> {
    contest::try_out(objects, peers)?;
    progress("filling tables");
    let mut contest = Contest::new(objects, peers, effort)?;
    let rows = rows::all(peers);
    let mut runs = vec![Vec::new(); rows.len()];
    for round in 0..effort.rounds {
        progress(&format!("round {} of {}", round + 1, effort.rounds));
        for (row, runs) in rows.iter().zip(&mut runs) {
            runs.push(contest.time(row).with_context(|| format!("row {}", row.name))?);
        }
    }
    let own = |name: &str| {
        let kind = name.split_once('/')?.1;
        rows.iter().position(|row| row.name == kind).map(|own| &runs[own][..])
    };
    let rows = rows.iter().zip(&runs).map(|(row, runs)| summary(&row.name, runs, own(&row.name)));
    let peers = peers.iter().map(|peer| peer.name.clone()).zip(contest.tags()?).collect();
    Ok(Report { peers, ..Report::new("program", rows.collect()) })
}

/// What one run of a row and one of its null took, nanoseconds per packet.
#[derive(Clone, Copy, Debug)]
struct Run {
    row: f64,
    null: f64,
}

impl Run {
    fn over_null(&self) -> f64 {
        self.row - self.null
    }
}

/// `own` are the runs of tcpguard's row of the same kind, round by round, of a peer's.
fn summary(name: &str, runs: &[Run], own: Option<&[Run]>) -> Row {
    let times = sorted(runs.iter().map(|run| run.row));
    let over = sorted(runs.iter().map(Run::over_null));
    let ratios = |own: &[Run]| {
        let ratios = runs.iter().zip(own).map(|(run, own)| run.over_null() / own.over_null());
        median(&sorted(ratios.filter(|ratio| ratio.is_finite())))
    };
    let contestant = match name.split_once('/') {
        Some((peer, _)) => peer,
        None if name.starts_with("null") => "null",
        None => "tcpguard",
    };
    Row {
        contestant: contestant.to_owned(),
        name: name.to_owned(),
        unit: "ns",
        median: median(&times),
        min: edge(times.first()),
        max: edge(times.last()),
        samples: runs.iter().map(Run::over_null).collect(),
        over_null: median(&over),
        of_tcpguard: own.map(ratios),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_median_of_its_runs_and_of_the_differences_inside_each_round() {
        let runs = [(30.0, 10.0), (20.0, 11.0), (90.0, 12.0)].map(|(row, null)| Run { row, null });
        let row = summary("x", &runs, None);
        assert_eq!((row.median, row.min, row.max, row.over_null), (30.0, 20.0, 90.0, 20.0));
        assert_eq!(row.of_tcpguard, None);
        assert_eq!(row.samples, [20.0, 9.0, 78.0]);
    }

    #[test]
    fn a_peer_is_compared_with_tcpguard_inside_each_round() {
        // A machine that takes twice as long in the second round.
        let [peer, own] = [40.0, 10.0]
            .map(|over| [1.0, 2.0].map(|busy| Run { row: busy * (10.0 + over), null: busy * 10.0 }));
        let row = summary("synproxy/x", &peer, Some(&own));
        assert_eq!((row.contestant.as_str(), row.of_tcpguard, row.over_null), ("synproxy", Some(4.0), 60.0));
    }

    #[test]
    fn a_peer_is_a_name_and_an_object() {
        let peer = "synproxy=/tmp/x.o".parse::<Peer>().unwrap();
        assert_eq!((peer.name.as_str(), peer.object), ("synproxy", PathBuf::from("/tmp/x.o")));
        assert!("=/tmp/x.o".parse::<Peer>().is_err() && "synproxy".parse::<Peer>().is_err());
    }
}
