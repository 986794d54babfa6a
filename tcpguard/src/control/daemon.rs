//! The daemon's life: everything is checked before anything is touched, then loaded and armed; commands, keys and
//! signals are served until the end; and the end is a drained and detached one, or one that the next daemon can
//! take over. What it does while it runs is `guard`'s.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use crate::config::{
    Config, ConfigError, Control, Destination, Limits, MetricsListen, Overrides, Service, ServiceMode,
};
use crate::dataplane::{
    Dataplane, DataplaneError, InterfaceFacts, KeyError, LOCK_DIR, MasterSecret, SecretError, SocketError,
    XdpLog,
};
use crate::engine::{End, EngineError, TcpListener};
use crate::service::Application;

use super::attacks::ATTACK_TICK;
use super::confirm::{self, Probation};
use super::descriptors;
use super::doors::{self, Doors};
use super::filters::Filters;
use super::guard::{Applications, Guard};
use super::hook;
use super::links;
use super::modes::FLOOD_TICK;
use super::monitor;
use super::notify::Notify;
use super::ports;
use super::privileges::Privileges;
use super::reload::{self, Origin};
use super::socket::ListenError;
use super::strict::FORGERY_TICK;

/// Epoch boundaries are at least half a second apart, and the wall clock may be set at any time: the keys are looked
/// at this often.
const KEY_TICK: Duration = Duration::from_millis(100);
/// How often expired filters are looked for.
const FILTER_TICK: Duration = Duration::from_secs(1);
/// What an engine may take beyond the drain time to reset what is left.
const DRAIN_SLACK: Duration = Duration::from_secs(5);

/// Why the daemon did not start, or did not go on. Displays as one line; sources follow.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// What it is to do cannot be done.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// XDP or its maps.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The cookie keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The secret they derive from.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// An AF_XDP socket.
    #[error("{interface}: {source}")]
    Socket {
        /// The interface.
        interface: String,
        /// Why.
        #[source]
        source: SocketError,
    },
    /// A socket for clients: control, readers or metrics.
    #[error("socket for clients: {0}")]
    Control(#[from] ListenError),
    /// An engine did not start.
    #[error("{interface} queue {queue}: {source}")]
    Engine {
        /// The interface.
        interface: String,
        /// The queue.
        queue: u32,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// An engine ended although nobody told it to.
    #[error("{engine}: {why}; its connections are lost, and a new daemon takes the rest over")]
    EngineEnded {
        /// Interface and queue.
        engine: String,
        /// What it said.
        why: String,
    },
    /// An interface was removed, or moved to another network namespace.
    #[error(
        "interface {interface} is gone: its connections are lost, those of other interfaces were drained, and \
         on_daemon_exit applies there until a new daemon takes over"
    )]
    InterfaceGone {
        /// Its name.
        interface: String,
    },
    /// The limit of descriptors leaves none for connections.
    #[error(
        "a limit of {limit} descriptors leaves none for connections, {needed} being needed besides: raise it \
         (`ulimit -Hn`, LimitNOFILE= of a unit)"
    )]
    Descriptors {
        /// `RLIMIT_NOFILE`.
        limit: u64,
        /// What is open, and what control clients may need.
        needed: u64,
    },
    /// No runtime, or no signals.
    #[error("cannot start: {0}")]
    Runtime(#[source] io::Error),
}

impl DaemonError {
    /// Whether what was asked for cannot be, however often it is tried, and nothing was changed. Not what may be otherwise on
    /// the same machine a moment later: an interface that is not there yet, an address that is in use, another daemon.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Dataplane(error) => matches!(
                error,
                DataplaneError::NotPrivileged { .. }
                    | DataplaneError::NotEthernet { .. }
                    | DataplaneError::MtuTooLarge { .. }
                    | DataplaneError::QueueCount { .. }
                    | DataplaneError::AttachedTwice { .. }
                    | DataplaneError::NotBpffs { .. }
                    | DataplaneError::TooManyInterfaces { .. }
                    | DataplaneError::TooManyServices { .. }
            ),
            Self::Control(ListenError::System { source, .. } | ListenError::Address { source, .. }) => {
                matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput)
            }
            Self::Control(ListenError::InUse(_)) => false,
            Self::Control(ListenError::NotASocket(_) | ListenError::UnknownGroup(_)) => true,
            Self::Config(_) | Self::Keys(_) | Self::Secret(_) | Self::Descriptors { .. } => true,
            Self::Socket { source: SocketError::NotPrivileged(_), .. }
            | Self::Engine { source: EngineError::Cpu { .. }, .. } => true,
            Self::Socket { .. }
            | Self::Engine { .. }
            | Self::EngineEnded { .. }
            | Self::InterfaceGone { .. }
            | Self::Runtime(_) => false,
        }
    }
}

/// A daemon in the making: for a program that has this library in it.
#[derive(Debug)]
pub struct Daemon {
    config: Config,
    applications: Applications,
    origin: Option<Origin>,
    confirm: Option<Duration>,
    privileges: Privileges,
}

impl Daemon {
    /// A daemon that does what `config` says.
    pub fn new(config: Config) -> Self {
        let privileges = Privileges::Kept;
        Self { config, applications: Applications::new(), origin: None, confirm: None, privileges }
    }

    /// Has the calling thread and those of the engines give up, for good, every capability that a running guard does not
    /// need. Applications have then no others, and no program that they run has.
    #[must_use]
    pub fn give_up_privileges(mut self) -> Self {
        self.privileges = Privileges::GivenUp;
        self
    }

    /// Protects `listen` as well, and hands its connections to `serve`, which runs once on each engine's thread as long as
    /// the engine does. Connections are spread over the engines; each stays on its thread, so that further tasks for
    /// them are spawned with [`tokio::task::spawn_local`].
    #[must_use]
    pub fn serve<F>(
        mut self,
        listen: SocketAddr,
        serve: impl Fn(TcpListener) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        let (mode, limits) = (ServiceMode::default(), Limits::default());
        let destination = Some(Destination::Application);
        self.config.services.push(Service {
            listen,
            mode,
            dry_run: false,
            destination,
            limits,
            tunables: Overrides::default(),
        });
        self.applications.insert(listen, Application::new(serve));
        self
    }

    /// Runs until SIGTERM, SIGINT or a failure ends it.
    ///
    /// # Errors
    /// As [`run`]; and what is wrong with the configuration.
    pub fn run(self) -> Result<(), DaemonError> {
        self.config.check()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(DaemonError::Runtime)?;
        let local = LocalSet::new();
        let (guard, end) = local.block_on(&runtime, live(self))?;
        // Clients' tasks hold the guard too.
        drop(local);
        let Some(guard) = Rc::into_inner(guard) else { return end };
        match end {
            Ok(()) => Ok(guard.detach()?),
            Err(failure) => {
                guard.leave();
                Err(failure)
            }
        }
    }
}

/// Runs the daemon until a signal or a failure ends it. `origin` is what SIGHUP and `reload` read again; with `confirm`, it
/// ends as on a signal unless it is confirmed within that time. What it needs privileges for is over when it guards.
///
/// # Errors
/// Before it is armed everything is left as it was. After an engine's failure, program and pins stay for the next daemon.
pub fn run(config: Config, origin: Option<Origin>, confirm: Option<Duration>) -> Result<(), DaemonError> {
    Daemon { origin, confirm, ..Daemon::new(config) }.give_up_privileges().run()
}

/// Removes what a killed daemon left in `pin_dir`, and the locks on interfaces that nobody holds. Returns whether there was
/// anything pinned.
///
/// # Errors
/// A running daemon's pins are refused.
pub fn detach(pin_dir: &Path) -> Result<bool, DaemonError> {
    Ok(Dataplane::remove(pin_dir, Path::new(LOCK_DIR))?)
}

/// Removes the control socket, the one for readers and the one for metrics that a killed daemon left, and says which there
/// were. One at which somebody listens stays, and what is no socket.
///
/// # Errors
///
/// What cannot be looked at or removed.
pub fn remove_sockets(
    control: &Control,
    metrics: Option<&MetricsListen>,
) -> Result<Vec<PathBuf>, DaemonError> {
    Ok(doors::remove_left_ones(control, metrics)?)
}

/// Refuses a secret file in which there is no secret. One that is absent is made when a daemon starts, and one that this
/// user may not read is left to who may.
///
/// # Errors
/// What is wrong with the file.
pub fn check_secret(config: &Config) -> Result<(), SecretError> {
    let Some(path) = config.secret_file.as_deref().filter(|path| path.exists()) else { return Ok(()) };
    match MasterSecret::from_file(path) {
        Err(SecretError::File { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        read => read.map(drop),
    }
}

/// From the checks to the end of service. The outer error is one before anything was armed.
async fn live(daemon: Daemon) -> Result<(Rc<Guard>, Result<(), DaemonError>), DaemonError> {
    let Daemon { config, applications, origin, confirm, privileges } = daemon;
    check(&config)?;
    let ports = ports::chosen_by_host(config.services.iter().map(|service| service.listen));
    if !ports.is_empty() {
        warn!("{}", ports::remedy(&ports));
    }
    if let Some(trouble) = config.events.trouble() {
        warn!("{trouble}: nothing will hear of events, which are kept all the same");
    }
    descriptors::raise_limit();
    // From here on a signal ends the daemon in order.
    let mut signals = Signals::new().map_err(DaemonError::Runtime)?;
    let (control, metrics) = (config.control.clone(), config.metrics.clone());
    let open = || Doors::open(&control, metrics.as_ref());
    let (mut guard, doors) = Guard::start(config, &applications, privileges, open)?;
    if let Err(error) = privileges.of_guard() {
        error!(%error, "the daemon keeps privileges that it does not need");
    }
    guard.origin = origin;
    guard.probation = RefCell::new(confirm.map(Probation::of_start));
    let guard = Rc::new(guard);
    info!("{}", guard.banner());
    info!(control = %doors.control_path().display(), "ready");
    let manager = Notify::from_environment();
    manager.ready(&guard.banner());
    let end = serve(&guard, &doors, &mut signals, &manager).await;
    Ok((guard, end))
}

/// Everything about this machine that can be judged without changing it.
fn check(config: &Config) -> Result<(), DaemonError> {
    for interface in &config.interfaces {
        InterfaceFacts::query(&interface.name)?;
    }
    // One that is absent is created later.
    if let Some(path) = config.secret_file.as_deref().filter(|path| path.exists()) {
        MasterSecret::from_file(path)?;
    }
    Ok(doors::check(&config.control)?)
}

async fn serve(
    guard: &Rc<Guard>,
    doors: &Doors,
    signals: &mut Signals,
    manager: &Notify,
) -> Result<(), DaemonError> {
    let Signals { ends: signals, hangup } = signals;
    let mut ends = watch_engines(guard);
    tokio::task::spawn_local(monitor::run(Rc::clone(guard)));
    tokio::task::spawn_local(hook::run(Rc::clone(guard)));
    for log in guard.xdp_logs.take() {
        tokio::task::spawn_local(tell_log(log));
    }
    let told = async {
        tokio::select! {
            name = signals.next() => Ok(name),
            () = confirm::watch(guard) => Ok("none: not confirmed"),
            failure = ends.recv() => Err(failure),
            failure = keep_keys(guard) => Err(Some(failure)),
            failure = follow_links(guard) => Err(Some(failure)),
            failure = watch_for_floods(guard) => Err(Some(failure)),
            failure = watch_for_forgers(guard) => Err(Some(failure)),
            failure = watch_for_attacks(guard) => Err(Some(failure)),
            never = forget_expired_filters(guard) => match never {},
            never = assure(guard, manager) => match never {},
            never = reload::on_hangup(guard, hangup) => match never {},
        }
    };
    let told = tokio::select! {
        told = told => told.map_err(|failure| failure.unwrap_or(DaemonError::Runtime(io::ErrorKind::Other.into()))),
        () = doors.serve(guard) => return Ok(()),
    };
    let time = guard.drain_time();
    // Draining may take as long as the slack allows, and what follows is given as much.
    manager.stopping(time + 2 * DRAIN_SLACK);
    let end = match told {
        Ok(name) => {
            info!(signal = name, ?time, "draining; another signal ends it now");
            Ok(())
        }
        Err(DaemonError::InterfaceGone { interface }) => {
            error!(interface, ?time, "the interface is gone: draining what other interfaces have");
            Err(DaemonError::InterfaceGone { interface })
        }
        Err(failure) => return Err(failure),
    };
    tokio::select! {
        () = drain(guard, time) => {}
        name = signals.next() => {
            warn!(signal = name, "not waiting for connections to finish");
            drain(guard, Duration::ZERO).await;
        }
        () = doors.serve(guard) => {}
    }
    end
}

/// Has what XDP logs on one interface told, as long as the daemon lives.
async fn tell_log(log: XdpLog) {
    let Err(error) = log.tell().await;
    warn!(%error, "what XDP logs is not told any more");
}

async fn drain(guard: &Guard, time: Duration) {
    match timeout(time + DRAIN_SLACK, guard.drain(time)).await {
        Ok(report) => info!(finished = report.finished, reset = report.reset, "drained"),
        Err(_) => warn!("an engine did not finish draining"),
    }
}

/// Keeps the cookie keys current; returns only when that fails for good.
async fn keep_keys(guard: &Guard) -> DaemonError {
    loop {
        sleep(KEY_TICK).await;
        if let Some(failure) = of_its_own(guard.refresh_keys().await).await {
            return failure;
        }
    }
}

/// Has services in mode `auto` answer with cookies alone while there is a flood; returns only when that fails for good.
async fn watch_for_floods(guard: &Guard) -> DaemonError {
    loop {
        sleep(FLOOD_TICK).await;
        if let Some(failure) = of_its_own(guard.look_for_floods().await).await {
            return failure;
        }
    }
}

/// Has services that are sent forged ACKs make strict cookies; returns only when that fails for good.
async fn watch_for_forgers(guard: &Guard) -> DaemonError {
    loop {
        // At once, so that what comes from now on counts.
        if let Some(failure) = of_its_own(guard.look_for_forgers().await).await {
            return failure;
        }
        sleep(FORGERY_TICK).await;
    }
}

/// Notices attacks, and says so; returns only when that fails for good.
async fn watch_for_attacks(guard: &Guard) -> DaemonError {
    loop {
        // At once, so that what comes from now on counts.
        if let Some(failure) = of_its_own(guard.look_for_attacks().await).await {
            return failure;
        }
        sleep(ATTACK_TICK).await;
    }
}

/// Keeps XDP and the engines told of what changes on the guarded interfaces; returns only when that fails for good.
async fn follow_links(guard: &Guard) -> DaemonError {
    loop {
        let Err(failure) = links::follow(guard).await;
        if let Some(failure) = of_its_own(Err(failure)).await {
            return failure;
        }
    }
}

/// A failure that is not just an engine's: whoever watches the engines knows more about its end, and one that stands still may
/// turn again.
async fn of_its_own(done: Result<(), DaemonError>) -> Option<DaemonError> {
    match done.err()? {
        DaemonError::Engine { source: EngineError::Gone, .. } => std::future::pending().await,
        DaemonError::Engine { source: EngineError::Silent, .. } => None,
        failure => Some(failure),
    }
}

/// Takes expired filters out of the lists, now and then: they say nothing any more, but take up room.
async fn forget_expired_filters(guard: &Guard) -> Infallible {
    loop {
        sleep(FILTER_TICK).await;
        match guard.filters.with(Filters::forget_expired).await {
            Ok(0) => {}
            Ok(expired) => info!(expired, "forgot expired filters"),
            Err(error) => warn!(%error, "expired filters stay in the lists"),
        }
    }
}

/// Tells a service manager that wants to know that every engine turns; when one does not, nothing.
async fn assure(guard: &Guard, manager: &Notify) -> Infallible {
    let Some(limit) = manager.watchdog() else { return std::future::pending().await };
    loop {
        if matches!(timeout(limit / 4, guard.touch_engines()).await, Ok(Ok(()))) {
            manager.alive();
        }
        sleep(limit / 4).await;
    }
}

/// The ends of engines that nobody stopped, as they happen.
fn watch_engines(guard: &Guard) -> mpsc::Receiver<DaemonError> {
    let (sender, ends) = mpsc::channel(1);
    for engine in guard.engines() {
        let (sender, handle) = (sender.clone(), engine.handle.clone());
        let (interface, name) = (engine.interface.clone(), engine.name());
        tokio::task::spawn_local(async move {
            let failure = match handle.ended().await {
                End::Stopped => return,
                End::InterfaceGone => DaemonError::InterfaceGone { interface },
                End::Failed(why) => DaemonError::EngineEnded { engine: name, why },
            };
            // The first failure ends the daemon: there is room for it, and nobody waits for the others.
            drop(sender.try_send(failure));
        });
    }
    ends
}

/// The signals that the daemon heeds.
struct Signals {
    ends: EndSignals,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { ends: EndSignals::new()?, hangup: signal(SignalKind::hangup())? })
    }
}

/// The signals that end a daemon.
struct EndSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl EndSignals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next one's name.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
