//! `cargo xtask bench control`: what it costs the data path that somebody lists every flow. Connections and the data over them are
//! those of `scale`. Beside every other run the daemon is asked for the list that `tcpguard flows --json` prints, and asked again
//! once it came; a run goes on for as long as one list takes, so that nothing is compared with an idle daemon. Who asks throws the
//! list away: what printing a million flows takes is the client's, and part of `list` in `scale`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::setpriority_process;
use serde::Serialize;

use super::figures::{Report, Samples, edge, median, sorted};
use super::scale::{Setup, process};
use crate::build::Artifacts;

/// As nice as `tcpguard flows` is (sched(7)).
const NICE: i32 = 10;

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Connections that are held, and listed.
    pub connections: u32,
    /// Pairs of runs, one of them while flows are listed.
    pub rounds: usize,
    /// Full segments that are sent at once, over any of the connections.
    pub segments: u32,
    /// How often they are sent in a run, at the least; more often until a list is there.
    pub times: usize,
}

impl Effort {
    /// Enough for figures, within five minutes. Takes some four gigabytes of memory.
    pub const FULL: Self = Self { connections: 1_000_000, rounds: 5, segments: 200_000, times: 5 };
    /// Enough to see that it works.
    pub const QUICK: Self = Self { connections: 10_000, rounds: 3, segments: 100_000, times: 3 };
}

/// One row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// `forward`: segments that the daemon took; `list`: until every flow is listed; `cpu_…`: what a thread took meanwhile.
    pub name: &'static str,
    /// `quiet`: one of them without the other; `listing`: both at once.
    pub contestant: &'static str,
    /// `segments/s`, `ms` or `%` (of one core).
    pub unit: &'static str,
    /// Of how many connections.
    pub n: u32,
    /// Median of all runs.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// Of every run.
    pub samples: Samples,
    /// Of `forward` while flows are listed: median of the ratios to the quiet run of the same round.
    pub ratio: Option<f64>,
}

/// Measures in a lab of its own, which takes root; `clients` is the program that opens connections. Fails when the daemon has other
/// connections than were opened.
pub fn measure(
    built: &Artifacts,
    clients: &Path,
    effort: Effort,
    mut progress: impl FnMut(&str),
) -> Result<Report<Row>> {
    let Effort { connections, rounds, times, .. } = effort;
    let mut setup = Setup::up(built, clients, &[])?;
    progress(&format!("opening {connections} connections"));
    setup.hold(connections)?;
    let socket = setup.lab.control_socket();
    let (mut quiet, mut listing, mut lists, mut alone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        progress(&format!("round {round} of {rounds}: a list alone"));
        alone.push(list(&socket, connections)?.ms);
        progress(&format!("round {round} of {rounds}: data while flows are listed"));
        let lister = Lister::start(socket.clone(), connections)?;
        let (run, sent) = forward(&mut setup, effort, |sent| sent >= times && lister.has_listed())?;
        let asked = lister.stop()?;
        let client =
            asked.iter().map(|list| list.cpu).sum::<f64>() / asked.iter().map(|list| list.ms).sum::<f64>();
        listing.push(Run { client: client * 100.0, ..run });
        lists.extend(asked.iter().map(|list| list.ms));
        progress(&format!(
            "round {round} of {rounds}: data alone, {} segments",
            sent * effort.segments as usize
        ));
        quiet.push(forward(&mut setup, effort, |again| again >= sent)?.0);
    }
    progress("ending");
    setup.down()?;
    let ratios = sorted(listing.iter().zip(&quiet).map(|(listing, quiet)| listing.rate / quiet.rate));
    let row = |name, contestant, unit, samples: Vec<f64>, ratio| {
        let sorted = sorted(samples.iter().copied());
        let (min, max) = (edge(sorted.first()), edge(sorted.last()));
        Row { name, contestant, unit, n: connections, median: median(&sorted), min, max, samples, ratio }
    };
    let mut rows = Vec::new();
    for (contestant, runs, ratio) in [("quiet", &quiet, None), ("listing", &listing, Some(median(&ratios)))] {
        let of = |what: fn(&Run) -> f64| runs.iter().map(what).collect();
        rows.push(row("forward", contestant, "segments/s", of(|run| run.rate), ratio));
        rows.push(row("cpu_engine", contestant, "%", of(|run| run.engine), None));
        rows.push(row("cpu_control", contestant, "%", of(|run| run.control), None));
        rows.push(row("cpu_background", contestant, "%", of(|run| run.background), None));
        rows.push(row("cpu_lister", contestant, "%", of(|run| run.client), None));
    }
    rows.push(row("list", "quiet", "ms", alone, None));
    rows.push(row("list", "listing", "ms", lists, None));
    Ok(Report::new("control", rows))
}

/// What came of sending data.
struct Run {
    /// Segments a second that the daemon took.
    rate: f64,
    /// CPU time of the engine's thread meanwhile, of the daemon's first one, and of all its others, percent of a core.
    engine: f64,
    control: f64,
    background: f64,
    /// That of who asked for lists.
    client: f64,
}

/// Sends segments, and again until it `is_enough` how often that was; how often, too.
fn forward(setup: &mut Setup<'_>, effort: Effort, is_enough: impl Fn(usize) -> bool) -> Result<(Run, usize)> {
    let (before, start) = (setup.daemon_threads()?, Instant::now());
    let (mut sent, mut seconds) = (0, 0.0);
    while !is_enough(sent) {
        let answer = setup.clients.ask(&format!("data {}", effort.segments))?;
        ensure!(answer["segments"] == effort.segments, "{answer}");
        seconds += answer["seconds"].as_f64().context("the clients do not say how long it took")?;
        sent += 1;
    }
    let percent = |time: Duration| time.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
    let spent = setup.daemon_threads()?.since(&before);
    let run = Run {
        rate: f64::from(effort.segments) * sent as f64 / seconds,
        engine: percent(spent.engines),
        control: percent(spent.first),
        background: percent(spent.others),
        client: 0.0,
    };
    Ok((run, sent))
}

/// Asks for every flow again and again, until it is dropped.
struct Lister {
    stop: Arc<AtomicBool>,
    listed: Arc<AtomicBool>,
    asking: JoinHandle<Result<Vec<Listed>>>,
}

impl Lister {
    fn start(socket: PathBuf, flows: u32) -> Result<Self> {
        let (stop, listed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (ends, done) = (Arc::clone(&stop), Arc::clone(&listed));
        let asking = thread::Builder::new().name("lister".to_owned()).spawn(move || {
            setpriority_process(None, NICE).context("lowering the priority of who asks for lists")?;
            let mut lists = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                lists.push(list(&socket, flows)?);
                done.store(true, Ordering::Relaxed);
            }
            Ok(lists)
        })?;
        Ok(Self { stop, listed, asking })
    }

    /// Whether the first list was there, or there will be none.
    fn has_listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed) || self.asking.is_finished()
    }

    /// Ends it with the list that it has asked for, so that the daemon has nothing more to do; what there was.
    fn stop(self) -> Result<Vec<Listed>> {
        self.stop.store(true, Ordering::Relaxed);
        self.asking.join().map_err(|_| anyhow!("the lister came to nothing"))?
    }
}

/// A list that was read.
struct Listed {
    /// How long it took, milliseconds.
    ms: f64,
    /// CPU time of who read it, milliseconds.
    cpu: f64,
}

/// Asks for a list as `tcpguard flows --json` does, and looks at no more of it than its size.
fn list(socket: &Path, flows: u32) -> Result<Listed> {
    /// Bytes that a flow takes at the least.
    const LEAST: usize = 150;
    let (start, cpu) = (Instant::now(), process::thread_cpu());
    let mut stream = UnixStream::connect(socket).context("connecting to the daemon")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    writeln!(stream, "{{\"v\":1,\"op\":\"flows\",\"limit\":1048576}}")?;
    let (mut part, mut bytes, mut last) = (vec![0; 1 << 20], 0, 0);
    while last != b'\n' {
        let read = stream.read(&mut part).context("reading a list")?;
        ensure!(read > 0, "a list was cut short after {bytes} bytes");
        (bytes, last) = (bytes + read, part[read - 1]);
    }
    ensure!(bytes >= flows as usize * LEAST, "{bytes} bytes are no list of {flows} flows");
    let (took, cpu) = (start.elapsed(), process::thread_cpu().saturating_sub(cpu));
    Ok(Listed { ms: took.as_secs_f64() * 1e3, cpu: cpu.as_secs_f64() * 1e3 })
}

/// The rows as a person reads them.
pub fn print(report: &Report<Row>) {
    println!(
        "{:14} {:8} {:>9} {:>14} {:>14} {:>14}  {:10} {:>8}",
        "control", "", "n", "median", "min", "max", "unit", "of quiet"
    );
    for Row { name, contestant, unit, n, median, min, max, samples: _, ratio } in &report.rows {
        let ratio = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.3}"));
        println!(
            "{name:14} {contestant:8} {n:>9} {median:>14.1} {min:>14.1} {max:>14.1}  {unit:10} {ratio:>8}"
        );
    }
}
