//! Which services' cookies are strict while the daemon runs: decided here, one service at a time, by how many forged ACKs it is
//! sent; XDP and the stack, which are told, make the cookies. A decision counts from the next epoch on, so that an epoch has
//! one layout from its first cookie to its last ACK, and no handshake under way is broken.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tcpguard_common::cookie::Strictness;
use tcpguard_common::reason::Class;
use tracing::{info, warn};

use crate::config::{Service, StrictPolicy, Tunables};
use crate::dataplane::{DataplaneError, monotonic_ns};

use super::daemon::DaemonError;
use super::guard::Guard;
use super::services::Known;
use super::tunables::ByService;

/// How often invalid ACKs are counted.
pub(super) const FORGERY_TICK: Duration = Duration::from_secs(1);

/// As many ACKs as `strict-rate` lets by in this time may be invalid at once: whoever loses its connections to another machine
/// sends that many. By the default rate that is 23 280 guesses, one forgery in 1441 such bursts. No tunable: what counts is its
/// product with strict-rate, which is one.
const BURST: Duration = Duration::from_secs(60);

/// The strictness in force.
pub(super) struct Strict {
    services: RefCell<Vec<Watched>>,
    /// The epoch that was decided about last; before it is, its bit is that of another epoch.
    planned: Cell<Option<u32>>,
}

/// One service's.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    strictness: Strictness,
    watch: Watch,
}

/// What is known of forgers.
#[derive(Clone, Copy, Debug, Default)]
struct Watch {
    danger: Danger,
    last: Option<Reading>,
}

/// What tells a forger.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// `CLOCK_MONOTONIC` nanoseconds.
    at: u64,
    /// Invalid ACKs so far.
    invalid: u64,
}

/// Whether somebody guesses cookies fast enough to be let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Danger {
    /// Nobody does. By so much the guesses are ahead of their rate: how long it would take for as many. So that guesses are
    /// counted over any time at all: whoever makes pauses gains nothing.
    None { ahead: Duration },
    /// Somebody does, or did.
    Forger {
        /// Since when there has been less than half the rate, `CLOCK_MONOTONIC` nanoseconds.
        calm_since: Option<u64>,
    },
}

impl Default for Danger {
    fn default() -> Self {
        Self::None { ahead: Duration::ZERO }
    }
}

impl Danger {
    /// Takes notice of `invalid` ACKs in the time of `elapsed` before `at`.
    fn observe(self, at: u64, invalid: u64, elapsed: Duration, tunables: &Tunables) -> Self {
        let take = |share: u32| time_for(invalid, tunables.strict_rate, share);
        match self {
            Self::None { ahead } => {
                let ahead = ahead.saturating_add(take(1)).saturating_sub(elapsed);
                if ahead > BURST { Self::Forger { calm_since: None } } else { Self::None { ahead } }
            }
            Self::Forger { .. } if take(2) > elapsed => Self::Forger { calm_since: None },
            Self::Forger { calm_since } => {
                let since = calm_since.unwrap_or(at);
                if Duration::from_nanos(at.saturating_sub(since)) >= tunables.strict_calm_time {
                    Self::default()
                } else {
                    Self::Forger { calm_since: Some(since) }
                }
            }
        }
    }
}

/// In which time as many guesses are due at one part in `share` of `rate` a second.
fn time_for(guesses: u64, rate: u32, share: u32) -> Duration {
    let nanos = u128::from(guesses) * u128::from(share) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Watch {
    /// Takes in a reading; the guesses a second since the last one if somebody has begun or ceased to forge.
    fn take(&mut self, reading: Reading, tunables: &Tunables) -> Option<u64> {
        let last = self.last.replace(reading)?;
        let elapsed = reading.at.saturating_sub(last.at).max(1);
        let new = reading.invalid.saturating_sub(last.invalid);
        let before = self.is_forged();
        self.danger = self.danger.observe(reading.at, new, Duration::from_nanos(elapsed), tunables);
        let rate = u128::from(new) * 1_000_000_000 / u128::from(elapsed);
        (before != self.is_forged()).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
    }

    fn is_forged(&self) -> bool {
        matches!(self.danger, Danger::Forger { .. })
    }
}

/// What changed at a service, for whoever logs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The id of the service.
    pub(super) id: u32,
    /// Whether its cookies are to be strict from the next epoch on.
    pub(super) strict: bool,
    /// Invalid ACKs a second.
    pub(super) rate: u64,
}

impl Strict {
    /// For services that were strict as `before` says, where a previous daemon guarded them, in the current `epoch`. Those that
    /// were to stay so count as forged until it has been calm.
    pub(super) fn new(
        before: impl IntoIterator<Item = Option<Strictness>>,
        epoch: u32,
        tunables: &impl ByService,
    ) -> Self {
        let watched = |(id, before): (u32, Option<Strictness>)| {
            let mut watch = Watch::default();
            if before.is_some_and(|strictness| strictness.at(epoch.wrapping_add(1))) {
                watch.danger = Danger::Forger { calm_since: None };
            }
            Watched { strictness: before.unwrap_or_else(|| first(tunables.of(id))), watch }
        };
        let services = RefCell::new((0..).zip(before).map(watched).collect());
        let strict = Self { services, planned: Cell::new(None) };
        strict.plan(epoch, tunables);
        strict
    }

    /// Services with these ids begin: whoever had an id before them has nothing in flight any more.
    pub(super) fn begin(&self, ids: impl IntoIterator<Item = u32>, tunables: &impl ByService) {
        let mut services = self.services.borrow_mut();
        for id in ids {
            let place = id as usize;
            if services.len() <= place {
                services.resize(place + 1, Watched::default());
            }
            services[place] = Watched { strictness: first(tunables.of(id)), watch: Watch::default() };
        }
    }

    /// In which epochs the cookies of each service are strict, by its id.
    pub(super) fn in_force(&self) -> Arc<[Strictness]> {
        self.services.borrow().iter().map(|watched| watched.strictness).collect()
    }

    /// Has the epoch after `epoch`, the current one, be as it should; whether it was otherwise. What is to become strict is so for
    /// an epoch at least: calm that comes before does not undo it, or somebody who forges in one half of each long epoch would
    /// never meet a strict one.
    pub(super) fn plan(&self, epoch: u32, tunables: &impl ByService) -> bool {
        let mut changed = false;
        let next = epoch.wrapping_add(1);
        let again = self.planned.replace(Some(next)) == Some(next);
        for (id, watched) in (0..).zip(self.services.borrow_mut().iter_mut()) {
            let becomes = again && watched.strictness.at(next) && !watched.strictness.at(epoch);
            let strict = match tunables.of(id).strict {
                StrictPolicy::Auto => watched.watch.is_forged() || becomes,
                StrictPolicy::Always => true,
                StrictPolicy::Never => false,
            };
            let planned = watched.strictness.with(next, strict);
            changed |= planned != watched.strictness;
            watched.strictness = planned;
        }
        changed
    }

    /// Takes in how many invalid ACKs each service, by its id, has been sent by now; what is to change for that.
    pub(super) fn observe(
        &self,
        at: u64,
        invalid: impl IntoIterator<Item = (u32, u64)>,
        tunables: &impl ByService,
    ) -> Vec<Change> {
        let mut services = self.services.borrow_mut();
        let take = |(id, invalid): (u32, u64)| {
            let watch = &mut services.get_mut(id as usize)?.watch;
            let rate = watch.take(Reading { at, invalid }, tunables.of(id))?;
            Some(Change { id, strict: watch.is_forged(), rate })
        };
        invalid.into_iter().filter_map(take).collect()
    }

    /// What is said of a service in the current `epoch`.
    pub(super) fn state(&self, id: u32, epoch: u32) -> &'static str {
        let services = self.services.borrow();
        let strictness = services.get(id as usize).map(|watched| watched.strictness).unwrap_or_default();
        match (strictness.at(epoch), strictness.at(epoch.wrapping_add(1))) {
            (false, false) => "no",
            (false, true) => "from-next-epoch",
            (true, false) => "until-next-epoch",
            (true, true) => "yes",
        }
    }
}

/// What a service begins with that no previous daemon guarded: nothing is in flight.
fn first(tunables: &Tunables) -> Strictness {
    match tunables.strict {
        StrictPolicy::Always => Strictness::ALWAYS,
        StrictPolicy::Auto | StrictPolicy::Never => Strictness::NEVER,
    }
}

/// The id of the service that a flow with this local end belongs to: of the one at exactly this address, or else of the one at
/// any.
pub(super) fn service_at(services: &[Known], local: SocketAddr) -> Option<u32> {
    let at = |any: bool| {
        let held = services.iter().find(|Known { service: Service { listen, .. }, .. }| {
            let same_family = listen.is_ipv4() == local.is_ipv4();
            listen.port() == local.port()
                && same_family
                && if any { listen.ip().is_unspecified() } else { listen.ip() == local.ip() }
        });
        held.map(|known| known.id)
    };
    at(false).or_else(|| at(true))
}

impl Guard {
    /// Looks whether somebody has begun or ceased to forge ACKs, and has the services concerned do what follows.
    pub(super) async fn look_for_forgers(&self) -> Result<(), DaemonError> {
        let services = self.modes.known();
        let invalid = |known: &Known| {
            Ok((known.id, self.dataplane.service_counters(known.id, false)?.of(Class::AckInvalid)))
        };
        let invalid = services.iter().map(invalid).collect::<Result<Vec<_>, DataplaneError>>()?;
        let tunables = self.tunables_by_service();
        let mut changes = self.strict.observe(monotonic_ns(), invalid, &tunables);
        changes.retain(|change| tunables.of(change.id).strict == StrictPolicy::Auto);
        if changes.is_empty() {
            return Ok(());
        }
        for Change { id, strict, rate } in changes {
            let Some(service) = self.modes.listen_of(id) else { continue };
            if strict {
                warn!(%service, invalid_per_second = rate, "forged ACKs: cookies are strict from the next epoch on");
            } else {
                info!(%service, invalid_per_second = rate, "no more forged ACKs: cookies are as before from the next epoch on");
            }
        }
        self.publish().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::services::first;
    use crate::control::tunables::InForce;

    const SECOND: u64 = 1_000_000_000;
    const EPOCH: u32 = u32::MAX - 1;

    fn tunables() -> Tunables {
        Tunables { strict_rate: 100, strict_calm_time: Duration::from_secs(10), ..Tunables::default() }
    }

    /// One reading a second: invalid ACKs in it; where a change is told, in which reading.
    fn changes(readings: impl IntoIterator<Item = u64>) -> Vec<(usize, bool, u64)> {
        let strict = Strict::new([None], EPOCH, &tunables());
        let (mut invalid, mut at) = (77, 5 * SECOND);
        assert_eq!(strict.observe(at, [(0, invalid)], &tunables()), []);
        let mut told = Vec::new();
        for (second, new) in (1..).zip(readings) {
            (invalid, at) = (invalid + new, at + SECOND);
            let changes = strict.observe(at, [(0, invalid)], &tunables());
            told.extend(changes.iter().map(|change| (second, change.strict, change.rate)));
        }
        told
    }

    #[test]
    fn the_rate_for_ever_makes_no_service_strict_and_one_guess_in_a_hundred_more_does_in_time() {
        assert_eq!(changes([100; 100_000]), []);
        // 60 s worth of guesses at once, and no more.
        assert_eq!(changes([6100, 100, 100]), []);
        assert_eq!(changes([6101]), [(1, true, 6101)]);
        // One in a hundred more than the rate are 60 s worth after 6000 s.
        assert_eq!(changes([101; 6001]), [(6001, true, 101)]);
    }

    #[test]
    fn pauses_gain_a_forger_nothing_but_time() {
        // Twice the rate for a minute, and then not at all for one: the rate, over time.
        let pulses = |high: u64, times: usize| {
            (0..times).flat_map(move |_| [vec![high; 30], vec![0; 30]].concat()).collect::<Vec<_>>()
        };
        assert_eq!(changes(pulses(200, 500)), []);
        assert!(matches!(changes(pulses(230, 500))[..], [(_, true, 230), ..]));
    }

    #[test]
    fn a_strict_service_ceases_to_be_after_the_calm_time_below_half_the_rate() {
        let mut readings = vec![10_000];
        // Nine seconds of calm, broken by what alone would make no service strict.
        readings.extend([50; 10]);
        readings.push(51);
        readings.extend([50; 11]);
        assert_eq!(changes(readings.clone()), [(1, true, 10_000), (23, false, 50)]);
        // And then it takes as much as before.
        readings.extend([6100, 6000]);
        assert_eq!(changes(readings), [(1, true, 10_000), (23, false, 50), (25, true, 6000)]);
    }

    #[test]
    fn the_rate_and_the_calm_time_are_those_that_are_set() {
        // In which second a service becomes strict that is sent so many forged ACKs in the first, and in which it ceases to be.
        let changes = |name: &str, value: &str| {
            let tunables = tunables().with(name, value).unwrap().0;
            let strict = Strict::new([None], EPOCH, &tunables);
            strict.observe(0, [(0, 0)], &tunables);
            let mut told = Vec::new();
            for second in 1..100 {
                let changes = strict.observe(second * SECOND, [(0, 6101)], &tunables);
                told.extend(changes.iter().map(|change| (second, change.strict)));
            }
            told
        };
        assert_eq!(changes("strict-rate", "100"), [(1, true), (12, false)]);
        assert_eq!(changes("strict-rate", "101"), []);
        assert_eq!(changes("strict-calm-time", "20s"), [(1, true), (22, false)]);
    }

    #[test]
    fn by_default_less_than_one_guess_a_day_is_accepted_and_a_pause_gains_nothing() {
        let Tunables { strict_rate, strict_calm_time, cookie_period, .. } = Tunables::default();
        let day = 24 * 60 * 60;
        let per_day = u64::from(strict_rate) * day;
        assert!(per_day <= 1 << 25 && u64::from(strict_rate + 1) * day > 1 << 25);
        // From the first guess on, the odds are 2^-25 for one and a half periods at most, and then 2^-29.
        let weak = cookie_period * 3 / 2;
        assert!(weak * 16 <= weak + strict_calm_time);
    }

    #[test]
    fn a_decision_counts_from_the_next_epoch_on_and_changes_no_other() {
        let tunables = tunables();
        let strict = Strict::new([None; 2], EPOCH, &tunables);
        let states = |epoch| [strict.state(0, epoch), strict.state(1, epoch)];
        assert!(!strict.plan(EPOCH, &tunables));
        strict.observe(0, [(0, 0), (1, 0)], &tunables);
        strict.observe(SECOND, [(0, 7000), (1, 0)], &tunables);
        assert!(strict.plan(EPOCH, &tunables) && !strict.plan(EPOCH, &tunables));
        assert_eq!(states(EPOCH), ["from-next-epoch", "no"]);
        // The clock moves on, over the end of its numbers.
        let mut epoch = EPOCH;
        for _ in 0..6 {
            epoch = epoch.wrapping_add(1);
            strict.plan(epoch, &tunables);
            assert_eq!(states(epoch), ["yes", "no"]);
        }
        let never = Tunables { strict: StrictPolicy::Never, ..tunables.clone() };
        assert!(strict.plan(epoch, &never));
        assert_eq!(states(epoch), ["until-next-epoch", "no"]);
        let forced = strict.in_force();
        for back in 0..3 {
            let issued = epoch.wrapping_sub(back);
            assert!(forced[0].at(issued) && !forced[1].at(issued), "what is under way stays what it is");
        }
        let always = Tunables { strict: StrictPolicy::Always, ..tunables };
        strict.plan(epoch.wrapping_add(1), &always);
        assert_eq!(states(epoch.wrapping_add(1)), ["from-next-epoch", "from-next-epoch"]);
    }

    #[test]
    fn a_service_goes_by_its_own_tunables() {
        let own = |policy, strict_rate| {
            let common = Tunables::default();
            Arc::new(Tunables { strict: policy, strict_rate, ..common })
        };
        let tunables = InForce {
            common: Arc::default(),
            own: [(1, own(StrictPolicy::Always, 388)), (2, own(StrictPolicy::Auto, 1))].into(),
        };
        let strict = Strict::new([None; 3], EPOCH, &tunables);
        strict.observe(0, (0..3).map(|id| (id, 0)), &tunables);
        let changes = strict.observe(SECOND, (0..3).map(|id| (id, 1000)), &tunables);
        assert_eq!(changes.iter().map(|change| change.id).collect::<Vec<_>>(), [2]);
        strict.plan(EPOCH, &tunables);
        let states = [0, 1, 2].map(|id| strict.state(id, EPOCH));
        assert_eq!(states, ["no", "yes", "from-next-epoch"]);
    }

    #[test]
    fn calm_before_the_next_epoch_does_not_undo_it_and_no_old_epoch_comes_back() {
        let tunables = Tunables { strict_calm_time: Duration::from_secs(1), ..tunables() };
        let strict = Strict::new([None], EPOCH, &tunables);
        strict.observe(0, [(0, 0)], &tunables);
        strict.observe(SECOND, [(0, 7000)], &tunables);
        strict.plan(EPOCH, &tunables);
        let changes: Vec<_> = (2..6)
            .flat_map(|at| strict.observe(at * SECOND, [(0, 7000)], &tunables))
            .map(|to| to.strict)
            .collect();
        assert_eq!(changes, [false], "it is calm again");
        for _ in 0..2 {
            strict.plan(EPOCH, &tunables);
            assert_eq!(strict.state(0, EPOCH), "from-next-epoch");
        }
        let epoch = |later| EPOCH.wrapping_add(later);
        strict.plan(epoch(1), &tunables);
        assert_eq!(strict.state(0, epoch(1)), "until-next-epoch");
        for later in 2..10 {
            strict.plan(epoch(later), &tunables);
            assert_eq!(strict.state(0, epoch(later)), "no", "{later} epochs later");
        }
    }

    #[test]
    fn a_new_daemon_goes_on_as_the_previous_one_left_it() {
        let left = Strictness::NEVER.with(EPOCH, true);
        let strict = |before, policy| {
            Strict::new([before], EPOCH, &Tunables { strict: policy, ..tunables() }).state(0, EPOCH)
        };
        assert_eq!(strict(Some(left), StrictPolicy::Auto), "until-next-epoch");
        let next = EPOCH.wrapping_add(1);
        assert_eq!(strict(Some(left.with(next, true)), StrictPolicy::Auto), "yes");
        assert_eq!(strict(Some(left.with(next, true)), StrictPolicy::Never), "until-next-epoch");
        assert_eq!(strict(Some(Strictness::NEVER), StrictPolicy::Always), "from-next-epoch");
        assert_eq!(strict(None, StrictPolicy::Always), "yes", "nothing is in flight");
        assert_eq!(strict(None, StrictPolicy::Auto), "no");
    }

    #[test]
    fn a_flow_is_the_exact_address_s_service_or_else_the_one_at_any() {
        let service = |listen: &str| -> Service {
            Service {
                dry_run: false,
                listen: listen.parse().unwrap(),
                mode: crate::config::ServiceMode::Cookie,
                destination: None,
                limits: crate::config::Limits::default(),
                tunables: crate::config::Overrides::default(),
            }
        };
        let services = first(&["0.0.0.0:80", "10.0.0.1:80", "[::]:80"].map(service));
        let at = |local: &str| service_at(&services, local.parse().unwrap());
        assert_eq!((at("10.0.0.1:80"), at("10.0.0.2:80"), at("[fe80::1]:80")), (Some(1), Some(0), Some(2)));
        assert_eq!(at("10.0.0.1:81"), None);
    }
}
