//! How services treat SYNs while the daemon runs: the mode of each and, for those in mode `auto`, whether it is calm. XDP
//! and the stack answer; here is decided which of the two, and XDP is told. Within the moment in which a flood begins it
//! needs no telling: what is beyond its share it answers with cookies by itself. Which services are in dry run is decided
//! here, too.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::time::Duration;

use tcpguard_common::cookie::Strictness;
use tcpguard_common::map::{DRY_RUN, MODE_COOKIE, MODE_OFF, MODE_STATEFUL, SERVICE_IDS};
use tcpguard_common::reason::Reason;
use tracing::{info, warn};

use crate::config::{Service, ServiceMode, Tunables};
use crate::dataplane::{Counters, DataplaneError, ServiceEntry, monotonic_ns};
use crate::engine::EngineError;

use super::daemon::DaemonError;
use super::guard::{Guard, Turn, engine_error};
use super::protocol::{Reply, Session};
use super::services::{self, Known, no_service};

/// How often it is looked whether a flood has begun or ended.
pub(super) const FLOOD_TICK: Duration = Duration::from_millis(100);
/// How full a half-open queue is in a flood, and how full it may be once that is over. No tunables: they are shares, and what
/// they are shares of is one, half-open-limit; who wants cookies sooner lowers that, or stateful-rate. Apart they are so that a
/// mode does not change with every SYN, and below 1 because a queue evicts before it is full.
const FULL: f64 = 0.75;
const EMPTIED: f64 = 0.5;

/// The modes in force.
pub(super) struct Modes {
    services: RefCell<Vec<Known>>,
    /// The id that the next service that is added gets, if it is free.
    next_id: Cell<u32>,
    watch: RefCell<Watch>,
}

/// What is known of floods.
#[derive(Default)]
struct Watch {
    weather: Weather,
    last: Option<Reading>,
}

/// What tells a flood.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// `CLOCK_MONOTONIC` nanoseconds.
    at: u64,
    /// SYNs so far.
    syns: u64,
    /// How full the fullest half-open queue is, 0 to 1.
    level: f64,
}

/// Whether services in mode `auto` remember half-open connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Weather {
    /// They do.
    #[default]
    Calm,
    /// They answer with cookies alone.
    Flood {
        /// Since when it has been calm enough, `CLOCK_MONOTONIC` nanoseconds.
        calm_since: Option<u64>,
    },
}

impl Weather {
    /// Takes notice of `rate` SYNs a second and a half-open queue that is full to `level`.
    fn observe(self, at: u64, rate: u64, level: f64, tunables: &Tunables) -> Self {
        let limit = u64::from(tunables.stateful_rate);
        if rate > limit || level >= FULL {
            return Self::Flood { calm_since: None };
        }
        match self {
            Self::Calm => Self::Calm,
            Self::Flood { .. } if rate > limit / 2 || level >= EMPTIED => Self::Flood { calm_since: None },
            Self::Flood { calm_since } => {
                let since = calm_since.unwrap_or(at);
                if u128::from(at - since) >= tunables.calm_time.as_nanos() {
                    Self::Calm
                } else {
                    Self::Flood { calm_since: Some(since) }
                }
            }
        }
    }
}

impl Modes {
    pub(super) fn new(services: &[Service]) -> Self {
        let services = services::first(services);
        let next_id = Cell::new(services.len() as u32 % SERVICE_IDS);
        Self { services: RefCell::new(services), next_id, watch: RefCell::default() }
    }

    /// The services as they are now.
    pub(super) fn services(&self) -> Vec<Service> {
        self.services.borrow().iter().map(|known| known.service.clone()).collect()
    }

    /// The same with their ids.
    pub(super) fn known(&self) -> Vec<Known> {
        self.services.borrow().clone()
    }

    /// Where the service with this id listens.
    pub(super) fn listen_of(&self, id: u32) -> Option<SocketAddr> {
        let services = self.services.borrow();
        services.iter().find(|known| known.id == id).map(|known| known.service.listen)
    }

    /// The id of the service that listens exactly there.
    pub(super) fn id_of(&self, listen: SocketAddr) -> Option<u32> {
        let services = self.services.borrow();
        services.iter().find(|known| known.service.listen == listen).map(|known| known.id)
    }

    /// Where to look for a free id: behind all that were given away.
    pub(super) fn next_id(&self) -> u32 {
        self.next_id.get()
    }

    /// Lets these be the services; those that were.
    pub(super) fn replace(&self, services: Vec<Known>) -> Vec<Known> {
        let held = self.services.replace(services);
        let is_new = |known: &&Known| held.iter().all(|held| held.id != known.id);
        if let Some(last) = self.services.borrow().iter().rfind(is_new) {
            self.next_id.set((last.id + 1) % SERVICE_IDS);
        }
        held
    }

    /// Of a service in mode `auto`, what it does at present: `calm` or `cookies`.
    pub(super) fn state(&self, service: &Service) -> Option<&'static str> {
        (service.mode == ServiceMode::Auto).then(|| match self.watch.borrow().weather {
            Weather::Calm => "calm",
            Weather::Flood { .. } => "cookies",
        })
    }

    /// What XDP is to know of the services.
    fn entries(&self, strictness: &[Strictness]) -> Vec<ServiceEntry> {
        entries(&self.services.borrow(), self.watch.borrow().weather, strictness)
    }
}

/// What XDP is to know of `services` at the start: it is calm.
pub(super) fn first_entries(services: &[Service], strictness: &[Strictness]) -> Vec<ServiceEntry> {
    entries(&services::first(services), Weather::Calm, strictness)
}

/// What XDP is to know of `services`.
pub(super) fn entries(services: &[Known], weather: Weather, strictness: &[Strictness]) -> Vec<ServiceEntry> {
    let entry = |Known { id, service }: &Known| ServiceEntry {
        addr: service.listen.ip(),
        port: service.listen.port(),
        id: *id,
        mode: match (service.mode, weather) {
            (ServiceMode::Stateful, _) | (ServiceMode::Auto, Weather::Calm) => MODE_STATEFUL,
            (ServiceMode::Cookie, _) | (ServiceMode::Auto, Weather::Flood { .. }) => MODE_COOKIE,
            (ServiceMode::Off, _) => MODE_OFF,
        } | if service.dry_run { DRY_RUN } else { 0 },
        strictness: strictness.get(*id as usize).copied().unwrap_or_default(),
    };
    services.iter().map(entry).collect()
}

/// SYNs to all services, those that budgets refused included.
fn syns(counters: &Counters) -> u64 {
    let reasons = [
        Reason::SynStateful,
        Reason::CookieSent,
        Reason::CookieSentSmallMss,
        Reason::ReplyBudget,
        Reason::ReplyBudgetVerified,
    ];
    reasons.iter().map(|&reason| counters.total(reason)).sum()
}

impl Guard {
    /// Tells XDP of the services as they are now.
    pub(super) fn write_services(&self) -> Result<(), DataplaneError> {
        self.dataplane.set_services(&self.modes.entries(&self.strict.in_force()))
    }

    /// Gives a service another mode, at once; the one it had. Handshakes under way go on: cookies are the same whoever
    /// sends them.
    ///
    /// # Errors
    /// A refusal, when there is no such service, it has nowhere to relay connections to, or the client's own session would
    /// be cut off.
    pub(super) async fn set_mode(
        &self,
        turn: &Turn<'_>,
        listen: SocketAddr,
        mode: ServiceMode,
        session: Option<Session>,
    ) -> Result<ServiceMode, Reply> {
        let old = self.change_mode(turn, listen, session, |service| {
            if mode != ServiceMode::Off && service.destination.is_none() {
                return Err(format!(
                    "service {listen} has neither a backend nor a responder: it can only be off"
                ));
            }
            Ok(std::mem::replace(&mut service.mode, mode))
        });
        let old = old.await?;
        info!("service {listen}: mode {old} -> {mode}");
        Ok(old)
    }

    /// Puts a service into dry run, or in earnest, at once; which it was. Connections that the engines have go on.
    ///
    /// # Errors
    /// A refusal, when there is no such service, or the client's own session would be cut off.
    pub(super) async fn set_dry_run(
        &self,
        turn: &Turn<'_>,
        listen: SocketAddr,
        dry_run: bool,
        session: Option<Session>,
    ) -> Result<bool, Reply> {
        let change = |service: &mut Service| Ok(std::mem::replace(&mut service.dry_run, dry_run));
        let old = self.change_mode(turn, listen, session, change).await?;
        info!("service {listen}: dry run {old} -> {dry_run}");
        Ok(old)
    }

    /// Has `change` change what XDP is to do for a service, and puts that in force unless it is refused.
    async fn change_mode<T>(
        &self,
        _turn: &Turn<'_>,
        listen: SocketAddr,
        session: Option<Session>,
        change: impl FnOnce(&mut Service) -> Result<T, String>,
    ) -> Result<T, Reply> {
        let mut new = self.modes.known();
        let held = new.iter_mut().find(|known| known.service.listen == listen);
        let Some(Known { service, .. }) = held else { return Err(no_service(listen)) };
        let old = change(service).map_err(Reply::bad_input)?;
        let services: Vec<_> = new.iter().map(|known| known.service.clone()).collect();
        self.judge_services(&services, session).map_err(Reply::bad_input)?;
        self.put_in_force(new).map_err(|error| Reply::failed(error.to_string()))?;
        Ok(old)
    }

    /// Looks whether a flood has begun or ended, and has services in mode `auto` do what follows.
    pub(super) async fn look_for_floods(&self) -> Result<(), DaemonError> {
        if self.modes.services.borrow().iter().all(|known| known.service.mode != ServiceMode::Auto) {
            *self.modes.watch.borrow_mut() = Watch::default();
            return Ok(());
        }
        let mut level = 0.0f64;
        for engine in self.engines() {
            level = match engine.handle.stats().await {
                Ok(stats) => level.max(stats.half_open_level),
                // The others' SYNs are a flood all the same.
                Err(EngineError::Silent) => continue,
                Err(source) => return Err(engine_error(engine, source)),
            };
        }
        let reading = Reading { at: monotonic_ns(), syns: syns(&self.dataplane.counters()?), level };
        let tunables = self.tunables.borrow().clone();
        let changed = self.modes.watch.borrow_mut().take(reading, &tunables);
        if let Some(rate) = changed {
            self.write_services()?;
            let half_open = format!("{:.0}%", level * 100.0);
            if self.modes.watch.borrow().weather == Weather::Calm {
                info!(syns_per_second = rate, half_open, "calm again: services in mode auto remember SYNs");
            } else {
                warn!(
                    syns_per_second = rate,
                    half_open, "a flood of SYNs: services in mode auto answer with cookies alone"
                );
            }
        }
        Ok(())
    }
}

impl Watch {
    /// Takes in a reading; the rate of SYNs since the last one if the weather has changed.
    fn take(&mut self, reading: Reading, tunables: &Tunables) -> Option<u64> {
        let last = self.last.replace(reading)?;
        let elapsed = reading.at.saturating_sub(last.at).max(1);
        let new = reading.syns.saturating_sub(last.syns);
        let rate = u64::try_from(u128::from(new) * 1_000_000_000 / u128::from(elapsed)).unwrap_or(u64::MAX);
        let before = self.weather;
        self.weather = before.observe(reading.at, rate, reading.level, tunables);
        ((before == Weather::Calm) != (self.weather == Weather::Calm)).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn tunables() -> Tunables {
        Tunables { stateful_rate: 1000, calm_time: Duration::from_secs(10), ..Tunables::default() }
    }

    /// One reading a second: SYNs in it, and the level after it.
    fn told(readings: &[(u64, f64)]) -> Vec<&'static str> {
        let mut watch = Watch::default();
        let (mut syns, mut at) = (77, 5 * SECOND);
        watch.take(Reading { at, syns, level: 0.0 }, &tunables());
        let mut told = Vec::new();
        for &(new, level) in readings {
            (syns, at) = (syns + new, at + SECOND);
            let changed = watch.take(Reading { at, syns, level }, &tunables()).is_some();
            told.push(match (changed, watch.weather) {
                (true, Weather::Calm) => "calm!",
                (true, Weather::Flood { .. }) => "flood!",
                (false, Weather::Calm) => "calm",
                (false, Weather::Flood { .. }) => "flood",
            });
        }
        told
    }

    #[test]
    fn a_flood_is_a_rate_or_a_level_and_is_over_after_calm_time_below_half_of_both() {
        assert_eq!(told(&[(1000, 0.7), (1001, 0.0), (5000, 1.0)]), ["calm", "flood!", "flood"]);
        assert_eq!(told(&[(0, 0.75), (0, 0.6)]), ["flood!", "flood"]);
        let mut readings = vec![(2000, 0.0)];
        // Nine seconds of calm, broken by a rate, then by a level, that alone would be no flood.
        for broken in [(501, 0.0), (0, 0.5)] {
            readings.extend([(500, 0.49); 10]);
            readings.push(broken);
        }
        readings.extend([(500, 0.49); 11]);
        let told = told(&readings);
        assert_eq!(told[0], "flood!");
        assert!(told[1..33].iter().all(|&told| told == "flood"), "{told:?}");
        assert_eq!(told[33], "calm!");
    }

    #[test]
    fn a_flood_is_over_after_the_calm_time_that_is_set() {
        let over = |calm_time: &str| {
            let tunables = Tunables::default().with("calm-time", calm_time).unwrap().0;
            let mut weather = Weather::Flood { calm_since: None };
            (0..1000).find(|&second| {
                weather = weather.observe(second * 1_000_000_000, 0, 0.0, &tunables);
                weather == Weather::Calm
            })
        };
        assert_eq!((over("10s"), over("7s")), (Some(10), Some(7)));
    }

    #[test]
    fn the_weather_decides_for_auto_alone() {
        let service = |mode, port: u16| Service {
            listen: ([10, 0, 0, 1], port).into(),
            mode,
            dry_run: false,
            destination: Some("127.0.0.1:8080".parse().unwrap()),
            limits: crate::config::Limits::default(),
            tunables: crate::config::Overrides::default(),
        };
        let services = [ServiceMode::Auto, ServiceMode::Cookie, ServiceMode::Stateful, ServiceMode::Off];
        let services: Vec<Service> =
            services.into_iter().zip(80..).map(|(mode, port)| service(mode, port)).collect();
        let modes = |weather| -> Vec<u16> {
            entries(&services::first(&services), weather, &[]).iter().map(|entry| entry.mode).collect()
        };
        assert_eq!(modes(Weather::Calm), [MODE_STATEFUL, MODE_COOKIE, MODE_STATEFUL, MODE_OFF]);
        let flood = Weather::Flood { calm_since: None };
        assert_eq!(modes(flood), [MODE_COOKIE, MODE_COOKIE, MODE_STATEFUL, MODE_OFF]);
        let dry: Vec<Service> =
            services.iter().map(|service| Service { dry_run: true, ..service.clone() }).collect();
        let dry: Vec<u16> = first_entries(&dry, &[]).iter().map(|entry| entry.mode).collect();
        assert_eq!(dry, modes(Weather::Calm).iter().map(|mode| mode | DRY_RUN).collect::<Vec<_>>());
    }
}
