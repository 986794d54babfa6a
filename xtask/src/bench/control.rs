//! `cargo xtask bench control`: what it costs the data path that somebody lists every flow, again and again. Connections and the
//! data over them are those of `scale`; beside every other run the daemon is asked for the list that `tcpguard flows --json` prints,
//! without a pause. Who asks throws it away: what it takes to print a million flows is not the daemon's work, and on a machine of
//! few cores it would hide what is.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::figures::{Report, edge, median, sorted};
use super::scale::Setup;
use crate::build::Artifacts;

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Connections that are held, and listed.
    pub connections: u32,
    /// Pairs of runs, one of them while flows are listed.
    pub rounds: usize,
    /// Full segments in one run, over any of the connections.
    pub segments: u32,
}

impl Effort {
    /// Enough for figures. Takes some four gigabytes of memory.
    pub const FULL: Self = Self { connections: 1_000_000, rounds: 9, segments: 3_000_000 };
    /// Enough to see that it works.
    pub const QUICK: Self = Self { connections: 10_000, rounds: 3, segments: 200_000 };
}

/// One row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// `forward`: segments that the daemon took; `list`: until every flow is listed.
    pub name: &'static str,
    /// `quiet`: one of them without the other; `listing`: both at once.
    pub contestant: &'static str,
    /// `segments/s` or `ms`.
    pub unit: &'static str,
    /// Of how many connections.
    pub n: u32,
    /// Median of all runs.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// Of `forward` while flows are listed: median of the ratios to the quiet run of the same round.
    pub ratio: Option<f64>,
}

/// Measures in a lab of its own, which takes root; `clients` is the program that opens connections. Fails when the daemon has other
/// connections than were opened, and when no list was finished while segments came.
pub fn measure(
    built: &Artifacts,
    clients: &Path,
    effort: Effort,
    mut progress: impl FnMut(&str),
) -> Result<Report<Row>> {
    let Effort { connections, rounds, segments } = effort;
    let mut setup = Setup::up(built, clients, &[])?;
    progress(&format!("opening {connections} connections"));
    setup.hold(connections)?;
    let socket = setup.lab.control_socket();
    let never = AtomicBool::new(false);
    let alone = (0..rounds).map(|_| list(&socket, connections, &never));
    let alone = alone.collect::<Result<Option<Vec<_>>>>()?.unwrap_or_default();
    let (mut quiet, mut listing, mut lists) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        progress(&format!("round {} of {rounds}", round + 1));
        // Whichever comes first is not the same each time.
        for listed in [round % 2 == 1, round % 2 == 0] {
            if listed {
                let lister = Lister::start(socket.clone(), connections)?;
                listing.push(forward(&mut setup, segments)?);
                lists.extend(lister.stop()?);
            } else {
                quiet.push(forward(&mut setup, segments)?);
            }
        }
    }
    setup.down()?;
    ensure!(!lists.is_empty(), "no list was finished in {rounds} runs: more segments are needed");
    let ratios = sorted(listing.iter().zip(&quiet).map(|(listing, quiet)| listing / quiet));
    let row = |name, contestant, unit, samples: Vec<f64>, ratio| {
        let samples = sorted(samples.into_iter());
        let (min, max) = (edge(samples.first()), edge(samples.last()));
        Row { name, contestant, unit, n: connections, median: median(&samples), min, max, ratio }
    };
    let rows = vec![
        row("forward", "quiet", "segments/s", quiet, None),
        row("forward", "listing", "segments/s", listing, Some(median(&ratios))),
        row("list", "quiet", "ms", alone, None),
        row("list", "listing", "ms", lists, None),
    ];
    Ok(Report::new("control", rows))
}

/// Segments a second that the daemon took.
fn forward(setup: &mut Setup<'_>, segments: u32) -> Result<f64> {
    let sent = setup.clients.ask(&format!("data {segments}"))?;
    ensure!(sent["segments"] == segments, "{sent}");
    let seconds = sent["seconds"].as_f64().context("the clients do not say how long it took")?;
    Ok(f64::from(segments) / seconds)
}

/// Asks for every flow again and again, until it is dropped.
struct Lister {
    stop: Arc<AtomicBool>,
    /// How long each list took, milliseconds.
    lists: Receiver<Result<f64>>,
    asking: Option<JoinHandle<()>>,
}

impl Lister {
    /// Starts it, and waits until the first list is there.
    fn start(socket: PathBuf, flows: u32) -> Result<Self> {
        let (stop, (done, lists)) = (Arc::new(AtomicBool::new(false)), channel());
        let ends = Arc::clone(&stop);
        let asking = thread::Builder::new().name("lister".to_owned()).spawn(move || {
            while let Some(list) = list(&socket, flows, &ends).transpose() {
                let failed = list.is_err();
                if done.send(list).is_err() || failed {
                    return;
                }
            }
        })?;
        let lister = Self { stop, lists, asking: Some(asking) };
        lister.lists.recv().context("the lister ended")??;
        Ok(lister)
    }

    /// Ends it; how long each further list took.
    fn stop(self) -> Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        self.lists.iter().collect()
    }
}

impl Drop for Lister {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(asking) = self.asking.take() {
            let _ended = asking.join();
        }
    }
}

/// Asks for a list as `tcpguard flows --json` does, and looks at no more of it than its size: how long that took, unless it was to
/// stop meanwhile.
fn list(socket: &Path, flows: u32, stop: &AtomicBool) -> Result<Option<f64>> {
    /// Bytes that a flow takes at the least.
    const LEAST: usize = 150;
    let start = Instant::now();
    let mut stream = UnixStream::connect(socket).context("connecting to the daemon")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    writeln!(stream, "{{\"v\":1,\"op\":\"flows\",\"limit\":1048576}}")?;
    let (mut part, mut bytes, mut last) = (vec![0; 1 << 20], 0, 0);
    while last != b'\n' {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let read = stream.read(&mut part).context("reading a list")?;
        ensure!(read > 0, "a list was cut short after {bytes} bytes");
        (bytes, last) = (bytes + read, part[read - 1]);
    }
    ensure!(bytes >= flows as usize * LEAST, "{bytes} bytes are no list of {flows} flows");
    Ok(Some(start.elapsed().as_secs_f64() * 1e3))
}

/// The rows as a person reads them.
pub fn print(report: &Report<Row>) {
    println!(
        "{:8} {:8} {:>9} {:>14} {:>14} {:>14}  {:10} {:>8}",
        "control", "", "n", "median", "min", "max", "unit", "of quiet"
    );
    for Row { name, contestant, unit, n, median, min, max, ratio } in &report.rows {
        let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
        println!(
            "{name:8} {contestant:8} {n:>9} {median:>14.1} {min:>14.1} {max:>14.1}  {unit:10} {ratio:>8}"
        );
    }
}
