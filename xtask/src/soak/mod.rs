//! `cargo xtask soak`: clients of every sort and a pulsing flood, for as long as wanted; then everything must be as it was
//! before: memory, descriptors, frames, map entries. It measures no speed.

mod balance;
mod clients;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::build::{self, Artifacts};
use crate::lab::{FloodSpec, GUARD_ADDRESS, Lab, LabConfig};
use crate::run::daemon::Daemon;
use crate::setup::Purpose;
pub use balance::ENDS;
use balance::{Balance, Holding};
use clients::{Clients, Target};

/// The relayed service, and the one that echoes.
const PORT: u16 = 80;
const ECHO_PORT: u16 = 81;
const BACKEND_PORT: u16 = 8080;
/// The part of the clients' work before the first balance. Chunks of buffers are kept for reuse, as many as were ever needed at
/// once, up to a bound: what that is shows by then, whereas a leak goes on.
const WARM_UP: u32 = 4;
/// Connections in TIME_WAIT that an engine has room for. The places that flows take in a table are scattered over all of it, so
/// that one with room for more than ever were there at once becomes resident page by page over minutes, and looks like a leak.
const TIME_WAITS: &str = "time-wait-limit=4096";
/// How long a flood lasts, and the calm after it.
const PULSE: Duration = Duration::from_secs(2);
/// Spoofed SYNs a second.
const FLOOD: u64 = 50_000;
/// How long what clients left behind may take to go.
const SETTLE: Duration = Duration::from_secs(60);

/// Load the guard with clients of every sort and a pulsing flood, then look for what did not go away
#[derive(Args, Clone, Debug)]
pub struct SoakArgs {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    #[command(flatten)]
    built: build::Built,
}

/// The verb.
pub fn run(args: &SoakArgs) -> Result<()> {
    if !crate::tool::is_root() {
        bail!("a soak needs root: it makes network namespaces and loads XDP programs; try sudo");
    }
    let built = args.built.or_release(Purpose::Lab)?;
    println!("{}", soak(&built, Duration::from_secs(60 * args.minutes))?);
    Ok(())
}

/// Soaks for `time`, the warm-up included. Returns what was done and what is left.
///
/// # Errors
/// When a client was not served, a counter contradicts another, or something did not go away.
pub fn soak(built: &Artifacts, time: Duration) -> Result<String> {
    let mut lab = Lab::up(LabConfig { queues: 2, ..LabConfig::new(&built.lab_object) })?;
    let backend = lab.backend(BACKEND_PORT)?;
    let relayed = SocketAddr::from((GUARD_ADDRESS, PORT));
    let echo = SocketAddr::from((GUARD_ADDRESS, ECHO_PORT));
    let relay = format!("{relayed}={}", SocketAddr::from((Ipv4Addr::LOCALHOST, BACKEND_PORT)));
    let respond = format!("{echo}=respond:echo");
    // What is in TIME_WAIT is to be gone soon, and what the flood left half-open.
    let short = ["--set", "time-wait=1s", "--set", TIME_WAITS, "--set", "syn-ack-retries=3"];
    let arguments = [&["--protect", &relay, "--protect", &respond][..], &short].concat();
    let mut daemon = Daemon::start(&built.daemon, &lab, &arguments)?;
    let target = Arc::new(Target { relayed, echo, files: clients::files(&backend)? });

    let warm_up = time / WARM_UP;
    work(&mut lab, &target, warm_up)?;
    let before = settle(&mut daemon, &lab, None)?;
    let done = work(&mut lab, &target, time - warm_up)?;
    let after = settle(&mut daemon, &lab, Some(&before))?;
    Balance { before: &before, after: &after }.check()?;
    daemon.stop()?;
    Ok(format!("{done}\nbefore: {before}\nafter:  {after}"))
}

/// Clients at work beside a flood that comes and goes.
fn work(lab: &mut Lab, target: &Arc<Target>, time: Duration) -> Result<String> {
    let clients = Clients::start(lab.client(), target)?;
    let end = Instant::now() + time;
    while Instant::now() < end {
        let pulse = PULSE.min(end.saturating_duration_since(Instant::now()));
        lab.flood(PORT, FloodSpec { rate: FLOOD, ..FloodSpec::default() })?.run_for(pulse)?;
        std::thread::sleep(PULSE.min(end.saturating_duration_since(Instant::now())));
    }
    let done = clients.finish()?;
    ensure!(done.iter().all(|&(_, count)| count > 0), "a sort of client did nothing: {done:?}");
    let done: Vec<_> = done.iter().map(|(sort, count)| format!("{count} {sort}")).collect();
    Ok(format!("served: {}", done.join(", ")))
}

/// Waits until what clients left behind is gone, and takes stock. A socket may be closed a moment after its connection was
/// counted as ended; one that leaked since `before` stays.
fn settle(daemon: &mut Daemon, lab: &Lab, before: Option<&Holding>) -> Result<Holding> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let holding = Holding::of(daemon, &lab.pin_dir())?;
        let closed = before.is_none_or(|before| holding.descriptors <= before.descriptors);
        let late = Instant::now() > deadline;
        if holding.is_at_rest() && (closed || late) {
            return Ok(holding);
        }
        if late {
            return Err(anyhow::anyhow!("{holding}"))
                .context("still not at rest after a minute without clients");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
