//! How services treat SYNs while the daemon runs: the mode of each and, for those in mode `auto`, whether it is calm. XDP
//! and the stack answer; here is decided which of the two, and XDP is told. Within the moment in which a flood begins it
//! needs no telling: what is beyond its share it answers with cookies by itself. Which services are in dry run is decided
//! here, too.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::time::Duration;

use tcpguard_common::cookie::Strictness;
use tcpguard_common::map::{DRY_RUN, MODE_COOKIE, MODE_OFF, MODE_STATEFUL};
use tcpguard_common::reason::Reason;
use tracing::{info, warn};

use crate::config::{Service, ServiceMode, Tunables};
use crate::dataplane::{Counters, DataplaneError, ServiceEntry, monotonic_ns};

use super::daemon::DaemonError;
use super::guard::{Guard, engine_error};

/// How often it is looked whether a flood has begun or ended.
pub(super) const FLOOD_TICK: Duration = Duration::from_millis(100);
/// How full a half-open queue is in a flood, and how full it may be once that is over.
const FULL: f64 = 0.75;
const EMPTIED: f64 = 0.5;

/// The modes in force.
pub(super) struct Modes {
    /// As they were configured, with the modes that they have now.
    services: RefCell<Vec<Service>>,
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
enum Weather {
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
        Self { services: RefCell::new(services.to_vec()), watch: RefCell::default() }
    }

    /// The services as they are now.
    pub(super) fn services(&self) -> Vec<Service> {
        self.services.borrow().clone()
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
    entries(services, Weather::Calm, strictness)
}

fn entries(services: &[Service], weather: Weather, strictness: &[Strictness]) -> Vec<ServiceEntry> {
    let entry = |(id, service): (u32, &Service)| ServiceEntry {
        addr: service.listen.ip(),
        port: service.listen.port(),
        id,
        mode: match (service.mode, weather) {
            (ServiceMode::Stateful, _) | (ServiceMode::Auto, Weather::Calm) => MODE_STATEFUL,
            (ServiceMode::Cookie, _) | (ServiceMode::Auto, Weather::Flood { .. }) => MODE_COOKIE,
            (ServiceMode::Off, _) => MODE_OFF,
        } | if service.dry_run { DRY_RUN } else { 0 },
        strictness: strictness.get(id as usize).copied().unwrap_or_default(),
    };
    (0..).zip(services).map(entry).collect()
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
    /// One line, when there is no such service, or it has nowhere to relay connections to.
    pub(super) fn set_mode(&self, listen: SocketAddr, mode: ServiceMode) -> Result<ServiceMode, String> {
        let old = self.change(listen, |service| {
            if mode != ServiceMode::Off && service.destination.is_none() {
                return Err(format!(
                    "service {listen} has neither a backend nor a responder: it can only be off"
                ));
            }
            Ok(std::mem::replace(&mut service.mode, mode))
        })?;
        info!("service {listen}: mode {old} -> {mode}");
        Ok(old)
    }

    /// Puts a service into dry run, or in earnest, at once; which it was. Connections that the engines have go on.
    ///
    /// # Errors
    /// One line, when there is no such service.
    pub(super) fn set_dry_run(&self, listen: SocketAddr, dry_run: bool) -> Result<bool, String> {
        let old = self.change(listen, |service| Ok(std::mem::replace(&mut service.dry_run, dry_run)))?;
        info!("service {listen}: dry run {old} -> {dry_run}");
        Ok(old)
    }

    fn change<T>(
        &self,
        listen: SocketAddr,
        change: impl FnOnce(&mut Service) -> Result<T, String>,
    ) -> Result<T, String> {
        let old = {
            let mut services = self.modes.services.borrow_mut();
            let Some(service) = services.iter_mut().find(|service| service.listen == listen) else {
                return Err(format!("no service {listen}; `tcpguard mode` lists them"));
            };
            change(service)?
        };
        self.write_services().map_err(|error| error.to_string())?;
        Ok(old)
    }

    /// Looks whether a flood has begun or ended, and has services in mode `auto` do what follows.
    pub(super) async fn look_for_floods(&self) -> Result<(), DaemonError> {
        if self.modes.services.borrow().iter().all(|service| service.mode != ServiceMode::Auto) {
            *self.modes.watch.borrow_mut() = Watch::default();
            return Ok(());
        }
        let mut level = 0.0f64;
        for engine in self.engines() {
            let stats = engine.handle.stats().await.map_err(|source| engine_error(engine, source))?;
            level = level.max(stats.half_open_level);
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
    fn the_weather_decides_for_auto_alone() {
        let service = |mode, port: u16| Service {
            listen: ([10, 0, 0, 1], port).into(),
            mode,
            dry_run: false,
            destination: Some("127.0.0.1:8080".parse().unwrap()),
            limits: crate::config::Limits::default(),
        };
        let services = [ServiceMode::Auto, ServiceMode::Cookie, ServiceMode::Stateful, ServiceMode::Off];
        let services: Vec<Service> =
            services.into_iter().zip(80..).map(|(mode, port)| service(mode, port)).collect();
        let modes = |weather| -> Vec<u16> {
            entries(&services, weather, &[]).iter().map(|entry| entry.mode).collect()
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
