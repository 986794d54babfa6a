//! `cargo xtask run`: the demo. A real web server behind the guard, real HTTP clients, a spoofed SYN flood on the
//! same link; shown live, judged at the end. With arguments after `--` it runs the daemon itself instead.

pub(crate) mod daemon;
mod load;
mod record;
mod report;
mod schedule;
pub mod screenshots;
mod view;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::build;
use crate::client::Page;
use crate::lab::{Arrivals, Backend, Flood, FloodCounters, FloodSpec, GUARD_ADDRESS, Lab, LabConfig};
use crate::setup::Purpose;
use daemon::Daemon;
use load::{Load, Plan};
use record::{Phase, Tally};
use report::Sample;
use schedule::Schedule;

/// Where the clients connect, and where nginx listens.
const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
/// Bytes of the page the clients fetch.
const PAGE: usize = 1024;
/// How often numbers are read and shown.
const TICK: Duration = Duration::from_secs(1);

/// Run the demo: a web server survives a SYN flood. With `-- ARGS`, run the daemon on this machine
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// End after this many seconds [default: at q or Ctrl-C]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Spoofed SYNs a second; 0 for as many as the machine makes
    #[arg(long, value_name = "PPS", default_value_t = 1_000_000)]
    flood_pps: u64,
    /// HTTP requests a second, half of them on connections of their own; 0 for as many as possible
    #[arg(long, value_name = "RPS", default_value_t = 2_000)]
    requests: u32,
    /// Receive queues of the guarded interface
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    queues: u32,
    /// Lines of text, even on a terminal
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    built: build::Built,
    /// Arguments for `tcpguard run`, instead of the demo: -i eth0 --protect 192.0.2.1:80=127.0.0.1:8080
    #[arg(last = true)]
    daemon: Vec<OsString>,
}

/// The verb.
pub fn run(args: &RunArgs) -> Result<()> {
    if !args.daemon.is_empty() {
        let built = args.built.or_release(Purpose::Build)?;
        let error = Command::new(&built.daemon).arg("run").args(&args.daemon).exec();
        return Err(error).with_context(|| format!("running {}", built.daemon.display()));
    }
    if !crate::tool::is_root() {
        bail!("the demo needs root: it makes network namespaces and loads XDP programs; try sudo");
    }
    let built = args.built.or_release(Purpose::Lab)?;
    let stop = stop_on_signals()?;
    let mut stage = Stage::set(args, &built)?;
    let outcome = stage.play(args, &stop);
    let struck = stage.strike();
    let verdict = outcome?;
    struck?;
    print!("{}", verdict.table());
    verdict.judge()
}

/// Everything that runs during the demo. The order of the fields is the order in which it goes away.
struct Stage {
    flood: Option<Flood>,
    flooded: FloodCounters,
    /// Time spent in each phase before the current one, which began at `since`.
    spent: [Duration; 2],
    since: Instant,
    load: Load,
    daemon: Option<Daemon>,
    _backend: Backend,
    lab: Lab,
}

impl Stage {
    fn set(args: &RunArgs, built: &build::Artifacts) -> Result<Self> {
        let lab = Lab::up(LabConfig { queues: args.queues, ..LabConfig::new(&built.lab_object) })?;
        eprintln!("lab {} is up: client and attacker behind one link to a guarded host", lab.id());
        let backend = lab.backend(BACKEND_PORT)?;
        let page = std::fs::read(backend.file("page", PAGE)?)?;
        let server = SocketAddr::from((GUARD_ADDRESS, PORT));
        let protect = format!("{server}={}", SocketAddr::from((Ipv4Addr::LOCALHOST, BACKEND_PORT)));
        let daemon = Daemon::start(&built.daemon, &lab, &["--protect", &protect])?;
        eprintln!("tcpguard protects {server}, relays to nginx at {}", backend.address());
        let page = Page { server, path: "/page".to_owned(), expected: page.into() };
        let plan = Plan { page, rate: args.requests };
        let load = Load::start(lab.client(), plan)?;
        let (spent, since) = ([Duration::ZERO; 2], Instant::now());
        let flooded = FloodCounters::default();
        Ok(Self { flood: None, flooded, spent, since, load, daemon: Some(daemon), _backend: backend, lab })
    }

    /// Runs the timetable to its end, or until told to stop.
    fn play(&mut self, args: &RunArgs, stop: &AtomicBool) -> Result<report::Verdict> {
        let schedule = Schedule::new(args.seconds);
        let mut view = view::View::new(args.plain, schedule.end());
        let start = Instant::now();
        let mut last = Sample::default();
        let mut shown = start;
        while let Some(phase) = schedule.at(start.elapsed()) {
            self.follow(phase, args)?;
            if view.wants_to_quit(Duration::from_millis(50))? || stop.load(Ordering::Relaxed) {
                break;
            }
            let elapsed = shown.elapsed();
            if elapsed >= TICK {
                shown = Instant::now();
                last = self.sample(phase, start.elapsed(), elapsed, &last)?;
                view.show(&last, self.totals())?;
            }
        }
        drop(view);
        self.follow(Phase::Calm, args)?;
        let spent = [self.spent[0] + self.since.elapsed(), self.spent[1]];
        self.load.finish()?;
        // Answers to the last frames may still be on their way.
        std::thread::sleep(Duration::from_millis(100));
        let numbers = self.daemon.as_mut().context("no daemon")?.numbers()?;
        let [calm, flood] = self.totals();
        let failures = self.load.record(|record| record.failures().to_vec());
        Ok(report::Verdict {
            calm,
            flood,
            spent,
            numbers,
            flooded: self.flooded,
            arrivals: self.arrivals()?,
            failures,
        })
    }

    /// Switches the flood on or off as the phase wants it.
    fn follow(&mut self, phase: Phase, args: &RunArgs) -> Result<()> {
        match (phase, self.flood.take()) {
            (Phase::Flood, None) => {
                let seed = self.flooded.generated;
                let spec = FloodSpec { rate: args.flood_pps, seed, ..FloodSpec::default() };
                self.enter(phase);
                self.flood = Some(self.lab.flood(PORT, spec)?);
            }
            (Phase::Calm, Some(flood)) => {
                let counters = flood.stop()?;
                self.flooded.generated += counters.generated;
                self.flooded.refused += counters.refused;
                self.enter(phase);
            }
            (_, unchanged) => self.flood = unchanged,
        }
        if self.flood.as_ref().is_some_and(Flood::is_finished) {
            // An endless flood ends only by an error.
            self.flood.take().context("no flood")?.finish()?;
        }
        Ok(())
    }

    /// From now on requests and time belong to `phase`.
    fn enter(&mut self, phase: Phase) {
        let left = if phase == Phase::Flood { Phase::Calm } else { Phase::Flood };
        self.spent[left as usize] += self.since.elapsed();
        self.since = Instant::now();
        self.load.record(|record| record.enter(phase));
    }

    fn sample(&mut self, phase: Phase, at: Duration, over: Duration, before: &Sample) -> Result<Sample> {
        let numbers = self.daemon.as_mut().context("no daemon")?.numbers()?;
        let window = self.load.record(|record| record.take_window());
        Ok(Sample::new(phase, at, over, numbers, window, before))
    }

    fn totals(&self) -> [Tally; 2] {
        self.load.record(|record| [Phase::Calm, Phase::Flood].map(|phase| record.of(phase).clone()))
    }

    fn arrivals(&self) -> Result<Arrivals> {
        self.lab.verifier().arrivals()
    }

    /// Ends the daemon as a service manager would; the rest goes away by itself.
    fn strike(mut self) -> Result<()> {
        self.flood = None;
        self.load.finish()?;
        self.daemon.take().map_or(Ok(()), Daemon::stop)
    }
}

/// A flag that SIGINT, SIGTERM and SIGHUP raise.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = Arc::new(AtomicBool::new(false));
    let raised = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    drop(inside);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} _ = hangup.recv() => {} }
                raised.store(true, Ordering::Relaxed);
            }
        });
    })?;
    Ok(stop)
}
