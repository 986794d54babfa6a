//! `tcpguard run`: puts file and arguments together into one configuration and becomes the daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::config::file::{self, Written};
use crate::config::{self, AttachMode, Config, ConfigError, Interface, OnDaemonExit, Service};
use crate::control::{Origin, daemon, would_guard};
use crate::telemetry;

use super::Failure;
use super::confirm::seconds;
use super::session::session;

const HELP: &str = "\
Without -i, --protect and --config, /etc/tcpguard/tcpguard.toml is read. Arguments add to the file, or win over it.

Examples:
  tcpguard run -i eth0 --protect 192.0.2.1:80=127.0.0.1:8080
  tcpguard run -i eth0 -i eth1 --protect 0.0.0.0:443=10.0.0.5:443 --set time-wait=30s
  tcpguard run --config edge.toml

`tcpguard config --example` prints a file with everything in it.

SIGTERM and SIGINT stop admitting, let connections finish for drain-time, detach, and end with 0. A start that fails ends
with 2 if it would fail again, and with 1 if the interface is not there yet, an address is in use, or another daemon runs.";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// The configuration file (TOML)
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// An interface to guard; may be repeated
    #[arg(short, long, value_name = "IFACE")]
    interface: Vec<String>,
    /// How XDP attaches to the interfaces given with -i: native, generic [default: native]
    #[arg(long)]
    mode: Option<AttachMode>,
    /// Receive queues of the interfaces given with -i that get an engine, the first ones [default: all]. The NIC must keep
    /// flows to those: ethtool -X IF equal N
    #[arg(long, value_name = "N")]
    queues: Option<u32>,
    /// An address and port to protect, and where to relay its connections: ADDR:PORT, unix:/PATH, or several with commas
    /// between them. `respond:echo`, `respond:discard` and `respond:http` answer them without a backend, `off` leaves
    /// them to the host. Behind a last comma, a mode (`tcpguard mode --help`); may be repeated
    #[arg(long, value_name = "ADDR:PORT=BACKEND[,MODE]")]
    protect: Vec<Service>,
    /// Count what would become of segments, and leave all of them to the host, as if all services were configured with
    /// `dry_run`; `tcpguard dry-run` changes it for one
    #[arg(long)]
    dry_run: bool,
    /// Set a tunable (`tcpguard tune --help`); may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Master secret of the cookie keys, shared by machines that stand in for each other; those need one cookie-period, one
    /// MTU, and clocks that differ by less than half a period
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Group that may use the control socket
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Where maps and links are pinned
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    /// Flows that XDP can know at once, per address family
    #[arg(long, value_name = "N")]
    max_flows: Option<i64>,
    /// What becomes of protected ports when the daemon is killed and exit-grace is over: pass, drop
    #[arg(long, value_name = "ACTION")]
    on_daemon_exit: Option<OnDaemonExit>,
    /// End as on SIGTERM unless `tcpguard confirm` follows within this time: for machines that nobody can walk up to
    #[arg(long, value_name = "SECONDS", value_parser = seconds())]
    confirm: Option<u64>,
    /// Guard the port even through which the session that this comes from runs, and cut it off
    #[arg(long)]
    force: bool,
    /// What to log: a level, or a filter such as tcpguard=debug [default: RUST_LOG, or info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::BadInput(error.to_string())
    }
}

pub(super) fn run(args: Args, control: Option<&Path>) -> Result<(), Failure> {
    let path = file(&args);
    let written = path.as_deref().map(|path| read(&args, path)).transpose()?;
    let config = configuration(&args, written, control)?;
    if let Some(session) = session(args.force)?.filter(|session| would_guard(session, &config.services)) {
        let (local, peer) = (session.local, session.peer);
        let why = format!(
            "this would guard {local}, through which your own session from {peer} runs, and cut it off; --force does \
             it all the same"
        );
        return Err(Failure::BadInput(why));
    }
    telemetry::log::start(args.log.as_deref()).map_err(Failure::BadInput)?;
    let (control, confirm) = (control.map(Path::to_owned), args.confirm.map(Duration::from_secs));
    let origin = path.map(|file| {
        let path = file.clone();
        let protected = args.protect.iter().map(|service| service.listen).collect();
        let read = move |text: Option<&str>| {
            let written = match text {
                Some(text) => file::parse(&path, text).map_err(Failure::from),
                None => read(&args, &path),
            };
            written
                .and_then(|written| configuration(&args, Some(written), control.as_deref()))
                .map_err(Failure::message)
        };
        Origin { file, protected, read: Arc::new(read) }
    });
    Ok(daemon::run(config, origin, confirm)?)
}

/// The configuration file, if there is to be one.
fn file(args: &Args) -> Option<PathBuf> {
    let named = args.config.is_some() || !args.interface.is_empty() || !args.protect.is_empty();
    args.config.clone().or_else(|| (!named).then(|| config::DEFAULT_FILE.into()))
}

fn read(args: &Args, path: &Path) -> Result<Written, Failure> {
    file::read(path).map_err(|error| match error {
        ConfigError::Read { .. } if args.config.is_none() => {
            Failure::BadInput(format!("{error}; without it, say what to guard with -i and --protect"))
        }
        _ => error.into(),
    })
}

/// What the file says and, on top of it, the arguments.
fn configuration(args: &Args, written: Option<Written>, control: Option<&Path>) -> Result<Config, Failure> {
    let mut config = written.as_ref().map_or_else(Config::empty, |written| written.config.clone());
    apply(&mut config, args, control)?;
    match &written {
        Some(written) => written.check(&config)?,
        None => config.check()?,
    }
    Ok(config)
}

fn apply(config: &mut Config, args: &Args, control: Option<&Path>) -> Result<(), Failure> {
    if args.interface.is_empty() {
        for (given, name) in [(args.mode.is_some(), "mode"), (args.queues.is_some(), "queues")] {
            if given {
                let why = format!(
                    "--{name} is for interfaces given with -i, and there is none; those of a file have their own `{name}`"
                );
                return Err(Failure::BadInput(why));
            }
        }
    }
    let mode = args.mode.unwrap_or_default();
    for name in &args.interface {
        config.interfaces.push(Interface::new(name, mode, args.queues).map_err(Failure::BadInput)?);
    }
    config.services.extend_from_slice(&args.protect);
    for service in &mut config.services {
        service.dry_run |= args.dry_run;
    }
    for assignment in &args.set {
        let (name, value) = assignment.split_once('=').ok_or_else(|| {
            Failure::BadInput(format!("--set {assignment}: not NAME=VALUE, as in time-wait=30s"))
        })?;
        config.tunables.set(name, value)?;
    }
    if let Some(flows) = args.max_flows {
        config.max_flows = config::check_max_flows(flows).map_err(Failure::BadInput)?;
    }
    config.secret_file = args.secret_file.clone().or(config.secret_file.take());
    config.control.group = args.group.clone().or(config.control.group.take());
    if let Some(dir) = &args.pin_dir {
        config.pin_dir.clone_from(dir);
    }
    if let Some(action) = args.on_daemon_exit {
        config.on_daemon_exit = action;
    }
    if let Some(socket) = control {
        config.control.socket = socket.to_owned();
    }
    Ok(())
}
