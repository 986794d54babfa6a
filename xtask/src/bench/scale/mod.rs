//! `cargo xtask bench scale`: what many connections take in one daemon (memory, CPU when nothing happens, time for a segment, to
//! list and to expire), and how the cost of a packet grows with services, filters and queues. Clients are the project's own
//! stack at the other end of a lab's link: descriptors are too few for kernel sockets.

mod clients;
pub(super) mod process;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::defence;
use super::figures::{Report, Samples, edge, median, sorted};
use super::program::{self, Growth, Objects};
use crate::build::Artifacts;
use crate::lab::{GUARD_ADDRESS, Lab, LabConfig, Process};
use crate::run::daemon::Daemon;
use clients::Clients;

/// Where connections are held, and where requests go.
const HOLD: u16 = 80;
const WEB: u16 = 81;
/// How long the daemon may take to be where it should be.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Runs of what can be done again.
    pub rounds: usize,
    /// Connections that are held, ascending.
    pub connections: &'static [u32],
    /// TIME_WAITs in one daemon, ascending.
    pub time_waits: &'static [u32],
    /// Segments of data in one run.
    pub segments: u32,
    /// How long nothing happens.
    pub idle: Duration,
    /// Packets in one run of the XDP program.
    pub packets: u32,
}

impl Effort {
    /// Enough for figures. Takes some four gigabytes of memory.
    pub const FULL: Self = Self {
        rounds: 5,
        connections: &[1000, 10_000, 100_000, 1_000_000],
        time_waits: &[100_000, 1_000_000, 4_000_000],
        segments: 500_000,
        idle: Duration::from_secs(5),
        packets: 100_000,
    };
    /// Enough to compare what is far apart, beside fewer connections.
    pub const QUICK: Self = Self {
        rounds: 3,
        connections: &[1000, 100_000],
        time_waits: &[10_000, 100_000],
        segments: 100_000,
        idle: Duration::from_secs(1),
        packets: 50_000,
    };

    fn growth(&self) -> Growth {
        Growth {
            rounds: self.rounds,
            packets: self.packets,
            services: &[1, 10, 100, 1000],
            filters: &[0, 100, 10_000, 100_000],
            queues: &[1, 2, 4],
        }
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured, see the README.
    pub name: &'static str,
    /// `tcpguard`.
    pub contestant: &'static str,
    /// `bytes`, `ns`, `ms` or `%` (of one core).
    pub unit: &'static str,
    /// Of how many connections, TIME_WAITs, services, prefixes or queues.
    pub n: u32,
    /// Median of all runs.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// Of every run.
    pub samples: Samples,
}

fn row(name: &'static str, unit: &'static str, n: u32, samples: impl IntoIterator<Item = f64>) -> Row {
    let samples: Samples = samples.into_iter().collect();
    let sorted = sorted(samples.iter().copied());
    let (min, max) = (edge(sorted.first()), edge(sorted.last()));
    Row { name, contestant: "tcpguard", unit, n, median: median(&sorted), min, max, samples }
}

/// Measures all of it; `clients` is the program that opens connections. Fails when the daemon has other connections than were
/// opened.
pub fn measure(
    built: &Artifacts,
    clients: &Path,
    effort: Effort,
    mut progress: impl FnMut(&str),
) -> Result<Report<Row>> {
    let mut rows = held(built, clients, effort, &mut progress)?;
    rows.extend(waiting(built, clients, effort, &mut progress)?);
    progress("services, queues and filters");
    let (guard, bench) = (built.object("tcpguard-xdp"), built.object("tcpguard-bench"));
    let timed = program::sweep(Objects { guard: &guard, bench: &bench }, effort.growth())?;
    rows.extend(timed.into_iter().map(|(name, n, runs)| row(name, "ns", n, runs)));
    Ok(Report::new("scale", rows))
}

/// A daemon with clients that speak to it.
pub(super) struct Setup<'a> {
    built: &'a Artifacts,
    // In this order, so that nothing outlives what it uses.
    pub(super) clients: Clients,
    daemon: Daemon,
    pub(super) lab: Lab,
    /// Bytes of its own memory before there was a connection.
    at_rest: u64,
}

impl<'a> Setup<'a> {
    pub(super) fn up(built: &'a Artifacts, clients: &Path, settings: &[&str]) -> Result<Self> {
        let lab = Lab::up(LabConfig::new(&built.lab_object))?;
        let [hold, web] = [HOLD, WEB].map(|port| SocketAddr::from((GUARD_ADDRESS, port)));
        let protect = [format!("{hold}=respond:discard,cookie"), format!("{web}=respond:http,cookie")];
        let mut arguments = vec!["--protect", &protect[0], "--protect", &protect[1]];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let daemon = defence::tcpguard(&lab, built, &arguments)?;
        let clients = Clients::start(&lab, clients, hold, web)?;
        let (_, at_rest) = process::memory(daemon.id())?;
        Ok(Self { built, clients, daemon, lab, at_rest })
    }

    /// Holds so many connections in all.
    pub(super) fn hold(&mut self, n: u32) -> Result<()> {
        let opened = self.clients.ask(&format!("open {n}")).with_context(|| format!("opening {n}"))?;
        ensure!(opened["held"] == n, "{opened}");
        self.settle("ESTABLISHED", n)
    }

    /// Waits until the daemon has so many flows in a state, give or take nothing.
    fn settle(&mut self, state: &str, count: u32) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let flows = self.daemon.stats()?["states"][state].as_u64().unwrap_or(0);
            if flows == u64::from(count) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{flows} flows in {state}, not {count}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Runs the daemon's command line to its end: how long that takes, milliseconds.
    fn command(&self, arguments: &[&str]) -> Result<f64> {
        let mut command = self.lab.guard().command(&self.built.daemon);
        command.arg("--control").arg(self.lab.control_socket()).args(arguments).stdout(Stdio::null());
        let start = Instant::now();
        let status = Process::spawn(&mut command)?.wait(PATIENCE)?;
        ensure!(status.success(), "`tcpguard {}` ended with {status}", arguments.join(" "));
        Ok(start.elapsed().as_secs_f64() * 1e3)
    }

    /// How long it takes to list every flow there is, but no more than a million (2^20), milliseconds.
    fn list(&self) -> Result<f64> {
        self.command(&["flows", "--json", "--limit", "1048576"])
    }

    /// What the daemon's threads have taken so far.
    pub(super) fn daemon_threads(&self) -> Result<process::Threads> {
        process::threads(self.daemon.id())
    }

    fn segments(&mut self) -> Result<u64> {
        let stats = self.daemon.stats()?;
        let stack = &stats["totals"]["stack"];
        let count = |name: &str| stack[name].as_u64().with_context(|| format!("no counter {name}"));
        Ok(count("segments-in")? + count("segments-out")?)
    }

    pub(super) fn down(self) -> Result<()> {
        drop(self.clients);
        self.daemon.stop()
    }
}

/// Connections that are held.
fn held(
    built: &Artifacts,
    clients: &Path,
    effort: Effort,
    progress: &mut impl FnMut(&str),
) -> Result<Vec<Row>> {
    let mut setup = Setup::up(built, clients, &[])?;
    let pid = setup.daemon.id();
    let mut rows = Vec::new();
    for &n in effort.connections {
        progress(&format!("{n} connections"));
        setup.hold(n)?;
        let (all, own) = process::memory(pid)?;
        rows.push(row("bytes_process", "bytes", n, [all as f64]));
        rows.push(row("bytes_anon", "bytes", n, [own.saturating_sub(setup.at_rest) as f64]));
        rows.push(row("bytes_maps", "bytes", n, [process::maps(pid)? as f64]));
        let (mut idle, mut segment, mut list) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let before = process::cpu(pid)?;
            std::thread::sleep(effort.idle);
            let spent = process::cpu(pid)?.saturating_sub(before);
            idle.push(spent.as_secs_f64() / effort.idle.as_secs_f64() * 100.0);
            segment.push(data(&mut setup, pid, effort.segments)?);
            list.push(setup.list()?);
        }
        rows.push(row("idle_cpu", "%", n, idle));
        rows.push(row("segment", "ns", n, segment));
        rows.push(row("list", "ms", n, list));
    }
    setup.down()?;
    Ok(rows)
}

/// CPU time of the daemon for each segment in or out, nanoseconds.
fn data(setup: &mut Setup<'_>, pid: u32, segments: u32) -> Result<f64> {
    let (counted, spent) = (setup.segments()?, process::cpu(pid)?);
    let sent: Value = setup.clients.ask(&format!("data {segments}"))?;
    ensure!(sent["segments"] == segments, "{sent}");
    let spent = process::cpu(pid)?.saturating_sub(spent);
    let counted = setup.segments()? - counted;
    ensure!(counted >= u64::from(segments), "only {counted} of {segments} segments were counted");
    Ok(spent.as_nanos() as f64 / counted as f64)
}

/// TIME_WAITs, after short connections that the daemon closed first.
fn waiting(
    built: &Artifacts,
    clients: &Path,
    effort: Effort,
    progress: &mut impl FnMut(&str),
) -> Result<Vec<Row>> {
    const LONG: &str = "time-wait=10m";
    let mut setup = Setup::up(built, clients, &[LONG, "time-wait-limit=4194304"])?;
    let pid = setup.daemon.id();
    let mut rows = Vec::new();
    let mut answered = 0;
    for &n in effort.time_waits {
        progress(&format!("{n} TIME_WAITs"));
        let asked = setup
            .clients
            .ask(&format!("requests {}", n - answered))
            .with_context(|| format!("asking for {n}"))?;
        ensure!(asked["answered"] == n - answered, "{asked}");
        answered = n;
        setup.settle("TIME_WAIT", n)?;
        let (all, own) = process::memory(pid)?;
        rows.push(row("bytes_process_time_wait", "bytes", n, [all as f64]));
        rows.push(row("bytes_anon_time_wait", "bytes", n, [own.saturating_sub(setup.at_rest) as f64]));
        rows.push(row("bytes_maps_time_wait", "bytes", n, [process::maps(pid)? as f64]));
        let list = (0..effort.rounds).map(|_| setup.list()).collect::<Result<Vec<_>>>()?;
        rows.push(row("list_time_wait", "ms", n, list));
    }
    // All of them are over at once.
    let start = Instant::now();
    setup.command(&["tune", "time-wait", "100ms"])?;
    setup.settle("TIME_WAIT", 0)?;
    rows.push(row("expire_time_wait", "ms", answered, [start.elapsed().as_secs_f64() * 1e3]));
    setup.down()?;
    Ok(rows)
}

/// The rows as a person reads them.
pub fn print(report: &Report<Row>) {
    println!("{:26} {:>9} {:>14} {:>14} {:>14}  unit", "scale", "n", "median", "min", "max");
    for Row { name, contestant: _, unit, n, median, min, max, samples: _ } in &report.rows {
        println!("{name:26} {n:>9} {median:>14.1} {min:>14.1} {max:>14.1}  {unit}");
    }
}
