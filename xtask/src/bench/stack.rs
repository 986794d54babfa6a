//! `cargo xtask bench stack`: what the stack costs by itself, per segment and per connection. A program beside the stack
//! (`tcpguard/stack/examples/stack-bench`) measures; this builds it, runs it, and makes figures of its runs. What the stack makes of
//! a path that loses packets is measured next door in `transfers`, engine, rings and network included.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::figures::{Report, Samples, edge, median, sorted};
use super::transfers;
use crate::build::Artifacts;
use crate::lab::Process;
use crate::tool;

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Runs of each row, one of every row in turn.
    pub rounds: usize,
    /// Segments in one run.
    pub segments: usize,
    /// Connections beside which segments are handled.
    pub connections: &'static [u32],
    /// Entries in the half-open queue.
    pub half_open: u32,
    /// Entries in the TIME_WAIT table.
    pub time_wait: u32,
    /// Transfers of each contestant at each loss.
    pub transfers: usize,
    /// How long each of them lasts.
    pub transfer: Duration,
}

impl Effort {
    /// Enough for figures. Takes some two gigabytes of memory.
    pub const FULL: Self = Self {
        rounds: 9,
        segments: 200_000,
        connections: &[1000, 10_000, 100_000, 1_000_000],
        half_open: 1_000_000,
        time_wait: 4_000_000,
        transfers: 5,
        transfer: Duration::from_secs(5),
    };
    /// Enough to compare what is far apart, beside as many connections.
    pub const QUICK: Self = Self {
        rounds: 5,
        segments: 50_000,
        connections: &[1000, 1_000_000],
        half_open: 1_000_000,
        time_wait: 1_000_000,
        transfers: 3,
        transfer: Duration::from_secs(1),
    };
}

/// One row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured, see the README.
    pub name: String,
    /// `tcpguard` or `kernel`.
    pub contestant: &'static str,
    /// `ns`, `bytes` or `MB/s`.
    pub unit: String,
    /// Median of all runs.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// Of every run.
    pub samples: Samples,
    /// Of a row beside so many connections: median of the ratios to the run beside the fewest in the same round.
    pub of_fewest: Option<f64>,
}

/// Rows of which there is one for each number of connections.
const BESIDE: [&str; 3] = ["segment_data", "segment_ack", "open_close"];

/// How long the program may take to end once it has nothing more to say: it gives some gigabytes back.
const TO_END: Duration = Duration::from_secs(60);

/// What the program prints.
#[derive(Deserialize)]
struct Output {
    rows: Vec<Runs>,
}

#[derive(Deserialize)]
struct Runs {
    name: String,
    unit: String,
    samples: Samples,
}

/// The rows as a person reads them.
pub fn print(report: &Report<Row>) {
    println!("{:24} {:>8} {:>8} {:>8} {:>10}  unit", "stack", "median", "min", "max", "of fewest");
    for Row { name, contestant: _, unit, median, min, max, samples: _, of_fewest } in &report.rows {
        let ratio = of_fewest.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        println!("{name:24} {median:8.1} {min:8.1} {max:8.1} {ratio:>10}  {unit}");
    }
}

/// Measures every row with the program at `program`, which fails when the stack does not do what a row says.
pub fn measure(program: &Path, effort: Effort) -> Result<Report<Row>> {
    let Effort { rounds, segments, connections, half_open, time_wait, .. } = effort;
    let connections = connections.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    // As the lab's processes: it ends when this one does, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.arg("--rounds").arg(rounds.to_string()).arg("--segments").arg(segments.to_string());
    command.arg("--connections").arg(connections).arg("--half-open").arg(half_open.to_string());
    command.arg("--time-wait").arg(time_wait.to_string());
    // As the unit file has it: a million connections want large pages.
    command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
    let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::inherit()))?;
    let mut said = Vec::new();
    let stdout = process.child().stdout.as_mut().context("its standard output is not a pipe")?;
    stdout.read_to_end(&mut said).with_context(|| format!("reading from {}", program.display()))?;
    let status = process.wait(TO_END)?;
    if !status.success() {
        bail!("{} failed: {status}", tool::line(&command));
    }
    let Output { rows } = serde_json::from_slice(&said).context("what the program printed")?;
    let ratios: Vec<_> = rows.iter().map(|runs| of_fewest(&rows, runs)).collect();
    let rows = rows
        .into_iter()
        .zip(ratios)
        .map(|(Runs { name, unit, samples }, of_fewest)| Row { of_fewest, ..row(name, unit, samples) });
    Ok(Report::new("stack", rows.collect()))
}

/// How the runs of a row compare with those beside the fewest connections, which come first; nothing of other rows.
fn of_fewest(rows: &[Runs], runs: &Runs) -> Option<f64> {
    let kind = BESIDE.into_iter().find(|kind| runs.name.starts_with(kind))?;
    let fewest = rows.iter().find(|row| row.name.starts_with(kind))?;
    Some(median(&sorted(runs.samples.iter().zip(&fewest.samples).map(|(own, fewest)| own / fewest))))
}

/// Measures goodput with what `built` names, tcpguard's beside the kernel's own. Takes root.
pub fn transfers(built: &Artifacts, effort: Effort) -> Result<Vec<Row>> {
    transfers::measure(built, effort)
}

/// The figures of a row's runs.
pub(super) fn row(name: String, unit: String, samples: Samples) -> Row {
    let runs = sorted(samples.iter().copied());
    let contestant = if name.starts_with("kernel/") { "kernel" } else { "tcpguard" };
    Row {
        name,
        contestant,
        unit,
        median: median(&runs),
        min: edge(runs.first()),
        max: edge(runs.last()),
        samples,
        of_fewest: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runs_of_a_row_stay_in_the_order_of_the_rounds() {
        let row = row("kernel/goodput_loss_1".into(), "MB/s".into(), vec![3.0, 1.0, 2.0]);
        assert_eq!((row.median, row.min, row.max, row.contestant), (2.0, 1.0, 3.0, "kernel"));
        assert_eq!(row.samples, [3.0, 1.0, 2.0]);
    }

    #[test]
    fn runs_beside_many_connections_are_compared_with_those_of_the_same_round_beside_few() {
        let runs = |name: &str, samples: &[f64]| Runs {
            name: name.to_owned(),
            unit: "ns".to_owned(),
            samples: samples.to_vec(),
        };
        // A machine that takes twice as long in the second round.
        let rows = [
            runs("bytes_idle", &[9.0]),
            runs("segment_data_1k", &[100.0, 200.0]),
            runs("segment_ack_1k", &[10.0, 20.0]),
            runs("segment_data_1m", &[150.0, 300.0]),
        ];
        let ratios: Vec<_> = rows.iter().map(|runs| of_fewest(&rows, runs)).collect();
        assert_eq!(ratios, [None, Some(1.0), Some(1.0), Some(1.5)]);
    }
}
