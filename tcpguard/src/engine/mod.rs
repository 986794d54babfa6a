//! One engine per receive queue: moves frames between an AF_XDP socket and the stack, drives timers, and offers the
//! connections as tokio streams. It knows nothing of backends or of the control protocol.
#![forbid(unsafe_code)]

mod desk;
mod driver;
mod exchange;
mod flows;
mod handle;
mod listener;
mod net;
mod port;
mod probe;
mod sleep;
mod stats;
mod stream;
mod tap;
#[cfg(test)]
pub(crate) mod tests;
mod turns;

use std::any::Any;
use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::thread::{CpuSet, sched_setaffinity};
use tcpguard_common::cookie::{Clock, Strictness};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;

pub use exchange::Exchange;
pub use flows::{FlowCounters, KernelTables, NoTables, SharedTables};
pub(crate) use handle::Met;
pub use handle::{DrainReport, End, EngineHandle, ReadyEngine, ServiceTunables};
pub use listener::TcpListener;
pub use net::{Net, NetCounters};
pub use port::{FramePort, XskPort};
pub use stats::{EngineStats, FrameCounters, Gaps, RingCounters, Rows};
pub use stream::{LendError, TcpStream};
pub use tap::{Tap, TapReader, tap};

use crate::config::{self, AcceptOverflow, Tunables};
use crate::stack::{Config, CongestionControl, Instant, Stack};
use driver::{Driver, Parts};
use handle::{COMMANDS, Command};
use sleep::Sleep;
use turns::take_turns;

/// What one engine is to do.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Name of its thread; the kernel shows 15 bytes of it.
    pub name: String,
    /// Its XSKMAP index.
    pub engine: u32,
    /// Which daemon run its flows belong to, as XDP stamps them.
    pub generation: u32,
    /// The interface's address.
    pub local_mac: [u8; 6],
    /// The interface's MTU, bytes, IP header included.
    pub mtu: u16,
    /// Which connections it admits.
    pub listen: Vec<Listen>,
    /// Timers and limits.
    pub tunables: Arc<Tunables>,
    /// Those of services that have some for themselves.
    pub service_tunables: ServiceTunables,
    /// The cookie keys in force.
    pub epochs: [EpochSlot; EPOCH_SLOTS as usize],
    /// Which epoch it is.
    pub clock: Clock,
    /// In which epochs the cookies of each service are strict, by its number.
    pub strictness: Arc<[Strictness]>,
    /// Where sequence numbers and hashes start from: random.
    pub seed: u64,
    /// The daemon's other engines.
    pub exchange: Exchange,
    /// Where and how its thread runs.
    pub placement: Placement,
    /// Who watches what it sends.
    pub tap: Tap,
}

/// Where and how an engine's thread runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Only on this CPU; on any when `None`.
    pub cpu: Option<u32>,
    /// Looks for frames without ever sleeping.
    pub busy_poll: bool,
}

/// An address and port whose connections belong to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address; the unspecified one for any of its family, `None` for any of both.
    pub addr: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Whom [`Net::listen`] gives the connections to.
    pub service: u32,
}

/// Why an engine did not start, ended, or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The thread may not run where it should.
    #[error("cannot run on CPU {cpu}: {source}; is there such a CPU, and may this process use it?")]
    Cpu {
        /// Which CPU.
        cpu: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No thread, or no runtime on it.
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[source] io::Error),
    /// The port could not be opened on the engine's thread.
    #[error("cannot put the engine's socket on its thread: {0}")]
    Port(#[source] io::Error),
    /// The application did not start.
    #[error("cannot start the engine's services: {0}")]
    Application(#[source] io::Error),
    /// The port's interface was removed, or moved to another network namespace.
    #[error("the engine's interface is gone")]
    InterfaceGone,
    /// The socket failed while the engine ran.
    #[error("the engine's socket failed: {0}")]
    Socket(#[source] io::Error),
    /// A task panicked while it was changing the stack.
    #[error("a task panicked inside the stack")]
    Poisoned,
    /// The engine has ended.
    #[error("the engine has ended")]
    Gone,
    /// The engine has not answered for five seconds, or has not taken what it was told before.
    #[error(
        "the engine does not answer: its thread stands still; a new daemon takes over (systemctl restart tcpguard)"
    )]
    Silent,
}

/// Prepares an engine on a thread of its own. `open` and `application` run there: the first yields the port, the second
/// starts the tasks that accept connections (with `spawn_local`). When this returns, nothing is left that could fail; the
/// engine touches port and tables once it is started.
///
/// # Errors
/// When the thread, the port or the application did not start; nothing is left then.
pub fn spawn<P, T>(
    config: EngineConfig,
    tables: T,
    open: impl FnOnce() -> io::Result<P> + Send + 'static,
    application: impl FnOnce(&Net) -> io::Result<()> + Send + 'static,
) -> Result<ReadyEngine, EngineError>
where
    P: FramePort + 'static,
    T: SharedTables + Send + 'static,
{
    let engine = config.engine;
    let (commands, orders) = mpsc::channel(COMMANDS);
    let (announce, end) = watch::channel(None);
    let (prepared, outcome) = std::sync::mpsc::sync_channel(1);
    let (start, started) = oneshot::channel();
    let body = thread::Builder::new().name(config.name.clone());
    let thread = body.spawn(move || {
        let work = || run(config, tables, open, application, orders, &prepared, started);
        let end = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => End::Stopped,
            Ok(Err(EngineError::InterfaceGone)) => End::InterfaceGone,
            Ok(Err(error)) => {
                let end = End::Failed(error.to_string());
                // Only a preparation that failed is still waited for.
                let _ = prepared.try_send(Err(error));
                end
            }
            Err(panic) => End::Failed(message(&*panic)),
        };
        announce.send_replace(Some(end));
    });
    let thread = thread.map_err(EngineError::Thread)?;
    match outcome.recv() {
        Ok(Ok(())) => {
            let thread = Arc::new(Mutex::new(Some(thread)));
            Ok(ReadyEngine::new(EngineHandle { engine, commands, end, thread }, start))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(EngineError::Gone),
    }
}

/// The life of an engine's thread.
fn run<P: FramePort + 'static, T: SharedTables + 'static>(
    config: EngineConfig,
    tables: T,
    open: impl FnOnce() -> io::Result<P>,
    application: impl FnOnce(&Net) -> io::Result<()>,
    commands: mpsc::Receiver<Command>,
    prepared: &SyncSender<Result<(), EngineError>>,
    started: oneshot::Receiver<()>,
) -> Result<(), EngineError> {
    if let Some(cpu) = config.placement.cpu {
        pin(cpu).map_err(|source| EngineError::Cpu { cpu, source })?;
    }
    let slept = Arc::new(Sleep::default());
    let (falls_asleep, wakes) = (Arc::clone(&slept), Arc::clone(&slept));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .on_thread_park(move || falls_asleep.begin())
        .on_thread_unpark(move || wakes.end())
        .build()
        .map_err(EngineError::Thread)?;
    let tasks = LocalSet::new();
    let prepare = tasks.run_until(async move {
        let port = open().map_err(EngineError::Port)?;
        let (net, driver) = assemble(&config, port, tables, commands, slept);
        application(&net).map_err(EngineError::Application)?;
        // Who prepares it waits for nothing else, so there is room.
        let _ = prepared.try_send(Ok(()));
        Ok::<_, EngineError>(started.await.is_ok().then_some(driver))
    });
    runtime.block_on(async {
        match prepare.await? {
            Some(driver) => take_turns(&tasks, driver.run()).await,
            None => Ok(()),
        }
    })
}

/// Keeps this thread on one CPU.
fn pin(cpu: u32) -> io::Result<()> {
    let mut set = CpuSet::new();
    if cpu as usize >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    set.set(cpu as usize);
    Ok(sched_setaffinity(None, &set)?)
}

/// The parts of an engine, put together.
fn assemble<P: FramePort, T: SharedTables>(
    config: &EngineConfig,
    port: P,
    tables: T,
    commands: mpsc::Receiver<Command>,
    slept: Arc<Sleep>,
) -> (Net, Driver<P, T>) {
    let tunables = (Arc::clone(&config.tunables), Arc::clone(&config.service_tunables));
    let net = Net::new(stack(config), tunables);
    let driver = Driver::new(port, tables, Parts::new(config, net.clone(), commands, slept));
    (net, driver)
}

fn stack(config: &EngineConfig) -> Stack {
    // The driver decides when it may stop asking the flow table first.
    let base = Config { mtu: config.mtu, adopt_at_once: false, ..Config::default() };
    let mut stack = Stack::new(net::now(), stack_config(base, &config.tunables), config.seed);
    stack.share_closed_flows(config.exchange.closed_flows());
    stack.set_epochs(&config.epochs, config.clock);
    stack.set_strictness(&config.strictness);
    tune_services(&mut stack, net::now(), &config.service_tunables);
    for listen in &config.listen {
        stack.listen(listen.addr, listen.port, listen.service);
    }
    stack
}

/// Has the stack go by the services' own tunables, and where they have none by those of all.
fn tune_services(stack: &mut Stack, now: Instant, own: &ServiceTunables) {
    let config = |tunables: &Tunables| stack_config(stack.config().clone(), tunables);
    let configs = own.iter().map(|(service, tunables)| (*service, config(tunables))).collect();
    stack.set_service_configs(now, configs);
}

/// `base` with the tunables in their places.
pub(crate) fn stack_config(base: Config, tunables: &Tunables) -> Config {
    Config {
        time_wait: tunables.time_wait,
        max_time_wait: tunables.time_wait_limit,
        fin_wait_2: tunables.fin_wait_2,
        initial_rto: tunables.initial_rto,
        min_rto: tunables.min_rto,
        max_rto: tunables.max_rto,
        retries: u8::try_from(tunables.retries).unwrap_or(u8::MAX),
        max_orphans: tunables.orphan_limit,
        orphan_retries: u8::try_from(tunables.orphan_retries).unwrap_or(u8::MAX),
        user_timeout: tunables.user_timeout,
        keepalive_time: tunables.keepalive_time,
        keepalive_interval: tunables.keepalive_interval,
        keepalive_probes: u8::try_from(tunables.keepalive_probes).unwrap_or(u8::MAX),
        delayed_ack: tunables.delayed_ack,
        congestion_control: match tunables.congestion_control {
            config::CongestionControl::NewReno => CongestionControl::NewReno,
            config::CongestionControl::Cubic => CongestionControl::Cubic,
        },
        zero_window: tunables.zero_window,
        stall_time: tunables.stall_time,
        syn_timeout: tunables.syn_timeout,
        syn_ack_retries: u8::try_from(tunables.syn_ack_retries).unwrap_or(u8::MAX),
        max_half_open: tunables.half_open_limit,
        accept_backlog: tunables.accept_backlog,
        reset_on_overflow: tunables.accept_overflow == AcceptOverflow::Reset,
        ..base
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the engine panicked: {}", text.unwrap_or("without a message"))
}
