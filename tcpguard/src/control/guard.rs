//! What runs: the attached dataplane, one engine per receive queue, the keys and the tunables in force. Changes reach
//! all of them from here. Clients' questions are put into words in `answers`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use tcpguard_common::cookie::{Advertised, Clock};
use tcpguard_common::map::{
    ABI_VERSION, EPOCH_SLOTS, EpochSlot, ON_EXIT_DROP, ON_EXIT_PASS, Settings, xsk_index,
};
use tcpguard_common::trace::Wanted;
use tokio::sync::{Mutex, MutexGuard};
use tracing::{error, info, warn};

use crate::config::{Config, Destination, Interface, OnDaemonExit, Service, ServiceMode, Tunables};
use crate::dataplane::{
    AttachMode, Attached, Census, Dataplane, DataplaneError, Heartbeat, InterfaceFacts, InterfaceSpec,
    KeySchedule, LinkFacts, LoadOptions, MasterSecret, Now, Previous, ServiceCounters, SocketConfig, XdpLog,
    XskSocket, ZeroCopy, monotonic_ns,
};
use crate::engine::{
    DrainReport, EngineConfig, EngineError, EngineHandle, Exchange, KernelTables, Placement, ReadyEngine,
    ServiceTunables, Tap, XskPort, tap,
};
use crate::service::{Application, ServiceSpec, Services};

use super::attacks::Attacks;
use super::confirm::Probation;
use super::daemon::DaemonError;
use super::descriptors::Descriptors;
use super::doors;
use super::filters::SharedFilters;
use super::hook::Hook;
use super::limits::limits;
use super::modes::{self, Modes};
use super::monitor::Monitors;
use super::privileges::Privileges;
use super::protocol as wire;
use super::reload::Origin;
use super::services::{self, Known};
use super::socket::ListenError;
use super::strict::Strict;
use super::tunables::InForce;

/// A heartbeat older than this is stale. Engines beat at least every tenth of it.
pub(super) const STALE_AFTER: Duration = Duration::from_secs(1);
/// The window that SYN-ACKs advertise (unscaled, RFC 7323 §2.2) and the shift that later windows have.
const WINDOW: u16 = u16::MAX;
const WINDOW_SCALE: u8 = 7;
/// TCP and IP header, without options.
const HEADERS_V4: u16 = 40;
const HEADERS_V6: u16 = 60;

/// What the program around us does with connections to some addresses.
pub(super) type Applications = HashMap<SocketAddr, Application>;

/// That it is one's turn to change something.
pub(super) type Turn<'a> = MutexGuard<'a, ()>;

/// A running guard.
pub(super) struct Guard {
    pub(super) config: Config,
    pub(super) dataplane: Dataplane,
    pub(super) attached: Vec<Attached>,
    /// How each of them was when it was last looked at.
    pub(super) links: RefCell<Vec<LinkFacts>>,
    engines: Vec<Engine>,
    pub(super) tunables: RefCell<Arc<Tunables>>,
    pub(super) filters: SharedFilters,
    pub(super) modes: Modes,
    pub(super) monitors: Monitors,
    /// What XDP logs itself, until somebody reads it.
    pub(super) xdp_logs: RefCell<Vec<XdpLog>>,
    pub(super) attacks: Attacks,
    /// What was counted under each service's id before it was this service's, and of what was in dry run.
    pub(super) counted_before: RefCell<HashMap<u32, [ServiceCounters; 2]>>,
    /// New incarnations that the engines had counted when each service was added that was added since the start.
    pub(super) reincarnated_before: RefCell<HashMap<u32, u64>>,
    pub(super) strict: Strict,
    pub(super) keys: RefCell<KeySchedule>,
    /// When the secret that they derive from was set, `CLOCK_MONOTONIC` nanoseconds.
    pub(super) secret_since: Cell<u64>,
    /// Where the configuration came from, if that can be read again.
    pub(super) origin: Option<Origin>,
    settings: RefCell<Settings>,
    publishing: Mutex<()>,
    /// Held by whoever changes services, tunables or filters, from looking at them on: each change begins with what the last
    /// one left, and none is taken back before it is made.
    pub(super) changing: Mutex<()>,
    pub(super) census: Census,
    descriptors: Descriptors,
    pub(super) applications: Applications,
    /// Changes that wait to be confirmed.
    pub(super) probation: RefCell<Option<Probation>>,
    pub(super) draining: Cell<bool>,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub(super) armed_at: u64,
}

/// One engine and its services.
pub(super) struct Engine<H = EngineHandle> {
    pub(super) interface: String,
    pub(super) queue: u32,
    /// Whether the device reads and writes its frames itself.
    pub(super) zero_copy: bool,
    pub(super) handle: H,
    pub(super) services: Services,
}

impl Engine {
    fn start(Engine { interface, queue, zero_copy, handle, services }: Engine<ReadyEngine>) -> Self {
        Self { interface, queue, zero_copy, handle: handle.start(), services }
    }

    /// Interface and queue, for messages.
    pub(super) fn name(&self) -> String {
        self.place().to_string()
    }

    /// Interface and queue.
    pub(super) fn place(&self) -> wire::EngineName {
        wire::EngineName { interface: self.interface.clone(), queue: self.queue }
    }
}

/// How many engines there are to be. Of an interface that is not there, attaching to it says so.
fn queues(config: &Config) -> u64 {
    let present = |name: &str| InterfaceFacts::query(name).map_or(1, |facts| facts.rx_queues);
    let of = |interface: &Interface| interface.queues.unwrap_or_else(|| present(&interface.name));
    config.interfaces.iter().map(|interface| u64::from(of(interface))).sum()
}

impl Guard {
    /// Loads, attaches, starts the engines, and arms. `bind` opens the sockets for clients once the interfaces are ours.
    /// On an error everything is as it was: what a previous daemon left stays, what is new goes.
    pub(super) fn start<S>(
        config: Config,
        applications: &Applications,
        privileges: Privileges,
        bind: impl FnOnce() -> Result<S, ListenError>,
    ) -> Result<(Self, S), DaemonError> {
        let options = LoadOptions {
            pin_dir: config.pin_dir.clone(),
            max_flows: config.max_flows,
            time_waits: u64::from(config.tunables.time_wait_limit) * queues(&config),
            ..LoadOptions::default()
        };
        let mut dataplane = Dataplane::load(&options)?;
        let Started { attached, server, prepared, engines, filters, monitors, counted_before } =
            match Started::new(&mut dataplane, &config, applications, privileges, bind) {
                Ok(started) => started,
                Err(error) => {
                    give_up(dataplane);
                    return Err(error);
                }
            };
        let Prepared { keys, settings, tunables, census, strict, descriptors, .. } = prepared;
        let engines: Vec<_> = engines.into_iter().map(Engine::start).collect();
        match dataplane.release_unclaimed() {
            Ok(0) => {}
            Ok(released) => info!(released, "took the program off interfaces that are not guarded any more"),
            Err(error) => warn!(%error, "an interface that is not guarded any more keeps the program"),
        }
        let guard = Self {
            modes: Modes::new(&config.services),
            xdp_logs: RefCell::new(dataplane.take_logs()),
            strict,
            attacks: Attacks::new(Hook::new(&config.events)),
            config,
            dataplane,
            links: RefCell::new(attached.iter().map(|attached| attached.link).collect()),
            attached,
            engines,
            tunables: RefCell::new(tunables),
            filters,
            monitors,
            counted_before: RefCell::new((0..).zip(counted_before).collect()),
            reincarnated_before: RefCell::default(),
            keys: RefCell::new(keys),
            secret_since: Cell::new(monotonic_ns()),
            origin: None,
            settings: RefCell::new(settings),
            publishing: Mutex::new(()),
            changing: Mutex::new(()),
            census,
            descriptors,
            applications: applications.clone(),
            probation: RefCell::default(),
            draining: Cell::new(false),
            armed_at: monotonic_ns(),
        };
        Ok((guard, server))
    }

    /// The engines, in the order of interfaces and queues.
    pub(super) fn engines(&self) -> &[Engine] {
        &self.engines
    }

    /// Waits until every engine has answered.
    pub(super) async fn touch_engines(&self) -> Result<(), DaemonError> {
        for engine in &self.engines {
            engine.handle.stats().await.map_err(|source| engine_error(engine, source))?;
        }
        Ok(())
    }

    /// Says which descriptors are missing, or finds them, where the services may have more connections than before.
    pub(super) fn make_room(&self, before: &[Known], now: &[Known]) {
        let wanted = |services: &[Known]| wanted_connections(services.iter().map(|known| &known.service));
        if wanted(now) > wanted(before)
            && let Err(error) = self.descriptors.want(wanted(now))
        {
            warn!(%error, "connections have the descriptors that they had");
        }
    }

    /// The settings in force.
    pub(super) fn settings(&self) -> Settings {
        *self.settings.borrow()
    }

    /// One line that says what is guarded.
    pub(super) fn banner(&self) -> String {
        let interfaces = self.attached.iter().zip(&self.config.interfaces).map(|(attached, interface)| {
            let taken_over = if attached.taken_over { ", taken over" } else { "" };
            format!("{} ({} XDP, queues {}{taken_over})", attached.name, interface.mode, attached.queues)
        });
        let services = self.config.services.iter().map(|service| {
            let dry_run = if service.dry_run { " (dry run)" } else { "" };
            match &service.destination {
                Some(to) if service.mode != ServiceMode::Off => {
                    format!("{} -> {to}{dry_run}", service.listen)
                }
                _ => format!("{} {}", service.listen, service.mode),
            }
        });
        let list = |items: &mut dyn Iterator<Item = String>| items.collect::<Vec<_>>().join(", ");
        format!("guarding {}: {}", list(&mut interfaces.into_iter()), list(&mut services.into_iter()))
    }

    /// Puts a new set of tunables in force, everywhere.
    pub(super) async fn set_tunables(&self, _turn: &Turn<'_>, tunables: Tunables) -> Result<(), DaemonError> {
        let tunables = Arc::new(tunables);
        self.keys.borrow_mut().set_period(tunables.cookie_period)?;
        *self.tunables.borrow_mut() = Arc::clone(&tunables);
        self.publish().await?;
        for engine in &self.engines {
            heard(engine, engine.handle.set_tunables(Arc::clone(&tunables)).await)?;
        }
        self.tune_services_in_engines(&self.modes.known()).await
    }

    /// Has keys made from another secret, from the next epoch on. Returns whether it is another one.
    pub(super) async fn set_secret(&self, secret: MasterSecret) -> Result<bool, DaemonError> {
        let changed = self.keys.borrow_mut().set_secret(secret);
        if changed {
            self.secret_since.set(monotonic_ns());
        }
        self.publish().await?;
        Ok(changed)
    }

    /// When a secret that was just set comes to count.
    pub(super) fn next_key(&self) -> wire::KeysRotated {
        let (keys, now) = (self.keys.borrow(), Now::read());
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let from = keys.until_next(now);
        wire::KeysRotated {
            epoch: keys.clock().epoch.wrapping_add(1),
            from_ms: millis(from),
            // Those of the epoch that then was the last.
            old_until_ms: millis(from + keys.period()),
        }
    }

    /// Moves the keys on to this moment.
    pub(super) async fn refresh_keys(&self) -> Result<(), DaemonError> {
        let moved = self.keys.borrow_mut().poll(Now::read());
        if moved { self.publish().await } else { Ok(()) }
    }

    /// Tells XDP and the engines keys and settings: slots first, so that XDP never hears of an epoch without a key,
    /// and engines before the settings, so that they know what XDP lets through.
    pub(super) async fn publish(&self) -> Result<(), DaemonError> {
        // One at a time, or an older state could be written last.
        let _turn = self.publishing.lock().await;
        let (slots, clock) = (self.keys.borrow().slots(), self.keys.borrow().clock());
        let planned = self.strict.plan(clock.epoch, &self.tunables_by_service());
        let strictness = self.strict.in_force();
        for engine in &self.engines {
            let told = engine.handle.set_epochs(slots, stack_clock(&clock), Arc::clone(&strictness)).await;
            heard(engine, told)?;
        }
        // XDP issues no cookie of the epoch that this is about before the settings below say that it has begun.
        if planned {
            self.write_services()?;
        }
        let before = self.settings();
        let settings = with(before, &self.tunables.borrow(), &clock);
        if !self.draining.get() {
            self.dataplane.write_epochs(&slots)?;
        }
        self.dataplane.write_settings(&settings)?;
        if settings.limits != before.limits {
            self.dataplane.refill_budgets()?;
        }
        *self.settings.borrow_mut() = settings;
        Ok(())
    }

    /// Says which packets XDP and the engines are to record.
    pub(super) fn record(&self, wanted: Wanted, engines: bool) -> Result<(), DaemonError> {
        let trace = wanted.logged(self.tunables.borrow().xdp_log);
        let settings = Settings { trace, ..self.settings() };
        self.dataplane.write_settings(&settings)?;
        *self.settings.borrow_mut() = settings;
        self.monitors.open_tap(engines);
        Ok(())
    }

    /// Offers clients what the links carry now, from the next epoch on.
    pub(super) async fn advertise(&self) -> Result<(), DaemonError> {
        let advertised = advertised(&self.attached, &self.links.borrow());
        self.keys.borrow_mut().set_advertised(advertised)?;
        self.publish().await
    }

    /// How long connections may finish, by the tunable.
    pub(super) fn drain_time(&self) -> Duration {
        self.tunables.borrow().drain_time
    }

    /// Admits nothing more, waits for what is open, but at most `time`, and resets the rest. Without a usable key XDP
    /// answers no SYN and takes no new flow, while flows it knows go on.
    pub(super) async fn drain(&self, time: Duration) -> DrainReport {
        self.draining.set(true);
        let unusable =
            |slots: [EpochSlot; EPOCH_SLOTS as usize]| slots.map(|slot| EpochSlot { valid: 0, ..slot });
        let silenced =
            self.dataplane.epochs().and_then(|slots| self.dataplane.write_epochs(&unusable(slots)));
        if let Err(error) = silenced {
            warn!(%error, "XDP goes on answering SYNs while the engines drain");
        }
        let drains: Vec<_> = self
            .engines
            .iter()
            .map(|engine| {
                let handle = engine.handle.clone();
                tokio::task::spawn_local(async move { handle.drain(time).await })
            })
            .collect();
        let mut sum = DrainReport::default();
        for drain in drains {
            if let Ok(Ok(report)) = drain.await {
                sum.finished += report.finished;
                sum.reset += report.reset;
            }
        }
        sum
    }

    /// Takes the program off and removes the pins.
    pub(super) fn detach(self) -> Result<(), DaemonError> {
        Ok(self.dataplane.detach()?)
    }

    /// Leaves program and pins to the next daemon.
    pub(super) fn leave(self) {
        self.dataplane.leave();
    }
}

pub(super) fn engine_error(engine: &Engine, source: EngineError) -> DaemonError {
    DaemonError::Engine { interface: engine.interface.clone(), queue: engine.queue, source }
}

/// What came of telling an engine something. One that has stood still for so long that it takes no more orders keeps nobody
/// from telling the others.
pub(super) fn heard(engine: &Engine, told: Result<(), EngineError>) -> Result<(), DaemonError> {
    match told {
        Err(silent @ EngineError::Silent) => {
            error!(interface = engine.interface, queue = engine.queue, "{silent}");
            Ok(())
        }
        told => told.map_err(|source| engine_error(engine, source)),
    }
}

fn attach(dataplane: &mut Dataplane, config: &Config) -> Result<Vec<Attached>, DaemonError> {
    let mut attached = Vec::new();
    for interface in &config.interfaces {
        let mode = match interface.mode {
            crate::config::AttachMode::Native => AttachMode::Native,
            crate::config::AttachMode::Generic => AttachMode::Generic,
        };
        let spec = InterfaceSpec { name: interface.name.clone(), mode, queues: interface.queues };
        attached.push(dataplane.attach(&spec)?);
    }
    Ok(attached)
}

/// A start that failed leaves protection as it found it.
fn give_up(dataplane: Dataplane) {
    if let Err(error) = dataplane.undo() {
        warn!(%error, "not everything of the failed start could be undone; `tcpguard detach` removes what is left");
    }
}

/// All that can fail before the guard runs.
struct Started<S> {
    attached: Vec<Attached>,
    server: S,
    prepared: Prepared,
    engines: Vec<Engine<ReadyEngine>>,
    filters: SharedFilters,
    monitors: Monitors,
    counted_before: Vec<[ServiceCounters; 2]>,
}

impl<S> Started<S> {
    fn new(
        dataplane: &mut Dataplane,
        config: &Config,
        applications: &Applications,
        privileges: Privileges,
        bind: impl FnOnce() -> Result<S, ListenError>,
    ) -> Result<Self, DaemonError> {
        dataplane.hold(&modes::first_entries(&config.services, &[]), on_exit(config))?;
        let attached = attach(dataplane, config)?;
        let server = bind()?;
        let services = service_specs(config, applications).collect();
        let (tap, reader) = tap();
        let mut prepared = Prepared::new(dataplane, config, &attached, services, (tap, privileges))?;
        let engines = prepared.engines(dataplane, config, &attached)?;
        prepared.descriptors.share_out(wanted_connections(&config.services), doors::clients(config))?;
        prepared.write(dataplane, config)?;
        let filters = SharedFilters::start(dataplane.filters()?, &config.filters)?;
        let monitors = Monitors::new(dataplane.trace_ring()?, reader);
        let counted_before = (0..config.services.len() as u32)
            .map(|id| Ok([dataplane.service_counters(id, false)?, dataplane.service_counters(id, true)?]))
            .collect::<Result<_, DataplaneError>>()?;
        dataplane.commit()?;
        for attached in &attached {
            // Engines that are about to turn are alive: XDP must not take them for dead before they do.
            for queue in 0..attached.queues {
                heartbeat(dataplane, attached, queue)?.beat(monotonic_ns(), false);
            }
            dataplane.arm(attached.slot, true)?;
        }
        Ok(Self { attached, server, prepared, engines, filters, monitors, counted_before })
    }
}

/// What the engines and the maps start from.
struct Prepared {
    keys: KeySchedule,
    settings: Settings,
    tunables: Arc<Tunables>,
    service_tunables: ServiceTunables,
    strict: Strict,
    services: Vec<ServiceSpec>,
    descriptors: Descriptors,
    census: Census,
    tap: Tap,
    privileges: Privileges,
}

impl Prepared {
    /// Reads the secret and works out keys and settings. On interfaces that were taken over, cookies of the previous
    /// daemon stay valid.
    fn new(
        dataplane: &Dataplane,
        config: &Config,
        attached: &[Attached],
        services: Vec<ServiceSpec>,
        (tap, privileges): (Tap, Privileges),
    ) -> Result<Self, DaemonError> {
        let tunables = Arc::new(config.tunables.clone());
        let previous = dataplane.previous();
        let secret = match &config.secret_file {
            Some(path) => MasterSecret::from_file(path)?,
            None => MasterSecret::random()?,
        };
        let links: Vec<_> = attached.iter().map(|attached| attached.link).collect();
        let (period, advertised, now) = (tunables.cookie_period, advertised(attached, &links), Now::read());
        let keys = match previous {
            Some(Previous { settings, epochs, silent }) => {
                KeySchedule::resume(secret, period, advertised, now, settings, epochs, *silent)?
            }
            None => KeySchedule::new(secret, period, advertised, now)?,
        };
        let base = Settings {
            abi: ABI_VERSION,
            generation: previous.map_or(0, |previous| previous.settings.generation).wrapping_add(1).max(1),
            stale_after: STALE_AFTER.as_nanos() as u64,
            queues: attached.iter().map(|attached| attached.queues).max().unwrap_or(1),
            on_exit: on_exit(config),
            hash_key: match previous {
                Some(previous) if previous.settings.hash_key != [0; 2] => previous.settings.hash_key,
                _ => [random()?, random()?],
            },
            ..Settings::default()
        };
        let settings = with(base, &tunables, &keys.clock());
        let held = |service: &Service| Ok(dataplane.strictness(service.listen.ip(), service.listen.port())?);
        let held = config.services.iter().map(held).collect::<Result<Vec<_>, DaemonError>>()?;
        let own = InForce::new(&tunables, &services::first(&config.services));
        let strict = Strict::new(held, keys.clock().epoch, &own);
        dataplane.begin_generation(&settings)?;
        let census = dataplane.census(&settings, &modes::first_entries(&config.services, &[]))?;
        let service_tunables = own.of_services();
        Ok(Self {
            keys,
            settings,
            tunables,
            service_tunables,
            strict,
            services,
            descriptors: Descriptors::default(),
            census,
            tap,
            privileges,
        })
    }

    /// Tells XDP, once nothing else can fail: what a previous daemon left in the maps is gone then.
    fn write(&self, dataplane: &Dataplane, config: &Config) -> Result<(), DaemonError> {
        dataplane.write_epochs(&self.keys.slots())?;
        dataplane.set_services(&modes::first_entries(&config.services, &self.strict.in_force()))?;
        dataplane.write_settings(&self.settings)?;
        // Nobody keeps the TIME_WAIT entries of a previous daemon.
        dataplane.fingerprints().clear_all();
        Ok(dataplane.refill_budgets()?)
    }

    /// One engine for each queue, each with its socket where XDP finds it.
    fn engines(
        &self,
        dataplane: &Dataplane,
        config: &Config,
        attached: &[Attached],
    ) -> Result<Vec<Engine<ReadyEngine>>, DaemonError> {
        let queues = attached.iter().map(|attached| attached.queues as usize).sum();
        let exchange = Exchange::new(queues);
        let mut engines = Vec::new();
        for (attached, interface) in attached.iter().zip(&config.interfaces) {
            let mut cpus = interface.cpus.iter().copied().cycle();
            // A driver whose device writes frames itself does not come by where generic XDP sits.
            let native = interface.mode == crate::config::AttachMode::Native;
            let zero_copy =
                if native && interface.zero_copy { ZeroCopy::WherePossible } else { ZeroCopy::Off };
            for queue in 0..attached.queues {
                let placement = Placement { cpu: cpus.next(), busy_poll: interface.busy_poll };
                engines.push(self.engine(dataplane, attached, queue, zero_copy, placement, &exchange)?);
            }
        }
        Ok(engines)
    }

    fn engine(
        &self,
        dataplane: &Dataplane,
        attached: &Attached,
        queue: u32,
        zero_copy: ZeroCopy,
        placement: Placement,
        exchange: &Exchange,
    ) -> Result<Engine<ReadyEngine>, DaemonError> {
        let interface = attached.name.clone();
        let index = xsk_index(attached.slot, queue);
        let config = SocketConfig { zero_copy, ..SocketConfig::for_mtu(attached.link.mtu) };
        let socket = XskSocket::open(attached.ifindex, queue, &config)
            .map_err(|source| DaemonError::Socket { interface: interface.clone(), source })?;
        let zero_copy = socket.is_zero_copy();
        dataplane.register_socket(attached.slot, queue, socket.as_fd())?;
        let services = Services::new(self.services.iter().cloned()).sharing(self.descriptors.quota.clone());
        let (hash_key, flows, fingerprints) =
            (self.settings.hash_key, dataplane.flows(), dataplane.fingerprints());
        let heartbeat = heartbeat(dataplane, attached, queue)?;
        let tables = KernelTables::new(flows, fingerprints, hash_key, heartbeat, self.census.clone());
        let engine_config = EngineConfig {
            name: format!("{interface}/{queue}"),
            engine: index,
            generation: self.settings.generation,
            local_mac: attached.link.mac,
            mtu: packet_limit(attached, &attached.link),
            listen: services.listen(),
            tunables: Arc::clone(&self.tunables),
            service_tunables: Arc::clone(&self.service_tunables),
            epochs: self.keys.slots(),
            clock: stack_clock(&self.keys.clock()),
            strictness: self.strict.in_force(),
            seed: random()?,
            exchange: exchange.clone(),
            placement,
            tap: self.tap.clone(),
        };
        let (started, privileges) = (services.clone(), self.privileges);
        let handle = crate::engine::spawn(
            engine_config,
            tables,
            move || XskPort::new(socket),
            move |net| privileges.of_engine().and_then(|()| started.start(net)),
        )
        .map_err(|source| DaemonError::Engine { interface: interface.clone(), queue, source })?;
        Ok(Engine { interface, queue, zero_copy, handle, services })
    }
}

fn heartbeat(dataplane: &Dataplane, attached: &Attached, queue: u32) -> Result<Heartbeat, DaemonError> {
    let heartbeat = dataplane.heartbeat(xsk_index(attached.slot, queue));
    heartbeat.ok_or(DaemonError::Runtime(std::io::ErrorKind::Other.into()))
}

/// `settings` with what changes in a running daemon. Written whole, always.
fn with(settings: Settings, tunables: &Tunables, clock: &Clock) -> Settings {
    Settings {
        epoch: clock.epoch,
        epoch_second_half: u32::from(clock.second_half),
        exit_grace: tunables.exit_grace.as_nanos() as u64,
        limits: limits(tunables, settings.queues),
        trace: settings.trace.logged(tunables.xdp_log),
        ..settings
    }
}

/// The stack accepts one epoch more than XDP: a tick may fall between the two checks of the same cookie.
fn stack_clock(clock: &Clock) -> Clock {
    Clock { extra: 1, ..*clock }
}

/// The longest packet that an interface's program and sockets carry, bytes: they were made for the MTU that it had then.
pub(super) fn carried(attached: &Attached) -> u32 {
    SocketConfig::packet_limit(attached.link.mtu)
}

/// The longest packet to send and to ask for on an interface that is like `link` now, bytes.
pub(super) fn packet_limit(attached: &Attached, link: &LinkFacts) -> u16 {
    u16::try_from(link.mtu.min(carried(attached))).unwrap_or(u16::MAX)
}

/// What every SYN-ACK may promise: the keys are common to all interfaces, so the smallest MTU counts.
fn advertised(attached: &[Attached], links: &[LinkFacts]) -> Advertised {
    let limits = attached.iter().zip(links).map(|(attached, link)| packet_limit(attached, link));
    let mtu = limits.min().unwrap_or(1500);
    let mss = |headers| mtu.saturating_sub(headers);
    Advertised {
        mss_v4: mss(HEADERS_V4),
        mss_v6: mss(HEADERS_V6),
        window: WINDOW,
        window_scale: WINDOW_SCALE,
    }
}

fn on_exit(config: &Config) -> u32 {
    match config.on_daemon_exit {
        OnDaemonExit::Pass => ON_EXIT_PASS,
        OnDaemonExit::Drop => ON_EXIT_DROP,
    }
}

fn service_specs<'a>(
    config: &'a Config,
    applications: &'a Applications,
) -> impl Iterator<Item = ServiceSpec> + use<'a> {
    config.services.iter().enumerate().filter_map(|(id, service)| {
        // One that is off may be given another mode.
        let destination = service.destination.as_ref()?;
        ServiceSpec::new(id as u32, service, destination, applications.get(&service.listen))
    })
}

/// How many connections, one descriptor each, the limits of services with backends allow.
fn wanted_connections<'a>(services: impl IntoIterator<Item = &'a Service>) -> usize {
    let relays = |service: &&Service| matches!(service.destination, Some(Destination::Backends(_)));
    services
        .into_iter()
        .filter(relays)
        .filter_map(|service| service.limits.connections)
        .map(|most| most as usize)
        .sum()
}

fn random() -> Result<u64, DaemonError> {
    getrandom::u64().map_err(|error| DaemonError::Runtime(std::io::Error::other(error.to_string())))
}
