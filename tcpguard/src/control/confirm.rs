//! Changes on probation: what was in force before them is kept, and put back unless somebody confirms in time. The daemon
//! holds it, so that it happens as well when the change cut its own client off.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::config::{Service, Tunables};

use super::filters::Snapshot as FilterLists;
use super::guard::Guard;
use super::protocol::{self as wire, Reply};

/// How often it is looked whether the time is over.
const TICK: Duration = Duration::from_millis(100);
/// Longest time a client may ask for.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A change that waits for its confirmation.
pub(super) struct Probation {
    number: u64,
    until: Instant,
    before: Before,
}

/// What there is to go back to.
enum Before {
    /// The daemon had not been started.
    Nothing,
    /// This was in force.
    State(Box<State>),
}

struct State {
    services: Vec<Service>,
    tunables: Tunables,
    filters: FilterLists,
}

impl Probation {
    /// That of a daemon which starts now: it is to end unless it is confirmed.
    pub(super) fn of_start(time: Duration) -> Self {
        Self { number: 0, until: Instant::now() + time, before: Before::Nothing }
    }
}

/// Puts back what was, whenever it was not confirmed in time; returns when the daemon itself is to go.
pub(super) async fn watch(guard: &Guard) {
    loop {
        sleep(TICK).await;
        let is_over = |probation: &mut Probation| Instant::now() >= probation.until;
        let Some(probation) = guard.probation.borrow_mut().take_if(is_over) else { continue };
        match probation.before {
            Before::Nothing => return warn!("the start was not confirmed in time"),
            Before::State(state) => guard.put_back(*state).await,
        }
    }
}

impl Guard {
    /// From now on every change is on probation, unless one is already: then all of them are, for the longer time.
    pub(super) async fn hold(&self, seconds: u64) -> Reply {
        let time = Duration::from_secs(seconds);
        if time.is_zero() || time > LONGEST {
            return Reply::bad_input(format!("{seconds} s: not within 1 to {} s", LONGEST.as_secs()));
        }
        let filters = match self.filters.with(|filters| Ok(filters.snapshot())).await {
            Ok(filters) => filters,
            Err(error) => return error.into(),
        };
        let until = Instant::now() + time;
        let mut held = self.probation.borrow_mut();
        if let Some(held) = held.as_mut() {
            held.until = held.until.max(until);
            return Reply::Held(wire::Held { number: None });
        }
        let Ok(number) = getrandom::u64() else { return Reply::failed("no random number to be had") };
        let (services, tunables) = (self.modes.services(), Tunables::clone(&self.tunables.borrow()));
        let before = Before::State(Box::new(State { services, tunables, filters }));
        *held = Some(Probation { number, until, before });
        Reply::Held(wire::Held { number: Some(number) })
    }

    /// The change for which [`Self::hold`] was asked was not made: there is nothing to confirm.
    pub(super) fn release(&self, number: u64) -> Reply {
        self.probation.borrow_mut().take_if(|held| held.number == number);
        Reply::Released {}
    }

    /// Keeps what is in force.
    pub(super) fn confirm(&self) -> Reply {
        match self.probation.borrow_mut().take() {
            Some(_) => {
                info!("confirmed");
                Reply::Confirmed {}
            }
            None => Reply::bad_input("nothing waits to be confirmed; what did was taken back in time"),
        }
    }

    /// Until what is on probation is taken back.
    pub(super) fn unconfirmed(&self) -> Option<Duration> {
        let held = self.probation.borrow();
        held.as_ref().map(|held| held.until.saturating_duration_since(Instant::now()))
    }

    async fn put_back(&self, State { services, tunables, filters }: State) {
        warn!("not confirmed in time: what was changed is taken back");
        // Each by itself: what can be put back is.
        if let Err(error) = self.filters.with(|held| held.restore(filters)).await {
            error!(%error, "the filters were not put back");
        }
        if let Err(error) = self.set_tunables(tunables).await {
            error!(%error, "the tunables were not put back");
        }
        let turn = self.changing.lock().await;
        if let Err(error) = self.replace_services(&turn, services).await {
            error!(%error, "the services were not put back");
        }
    }
}
