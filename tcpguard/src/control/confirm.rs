//! Changes on probation: what was in force before them is kept, and put back unless somebody confirms in time. The daemon
//! holds it, so that it happens as well when the change cut its own client off.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::{error, warn};

use crate::config::{Service, Tunables};

use super::filters::Snapshot as FilterLists;
use super::guard::{Guard, Turn};
use super::protocol::Reply;

/// How often it is looked whether the time is over.
const TICK: Duration = Duration::from_millis(100);
/// Longest time a client may ask for.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Changes that wait for their confirmation, all with one.
pub(super) struct Probation {
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
        Self { until: Instant::now() + time, before: Before::Nothing }
    }

    fn is_over(&mut self) -> bool {
        Instant::now() >= self.until
    }
}

/// Puts back what was, whenever it was not confirmed in time; returns when the daemon itself is to go.
pub(super) async fn watch(guard: &Guard) {
    loop {
        sleep(TICK).await;
        if !guard.probation.borrow_mut().as_mut().is_some_and(Probation::is_over) {
            continue;
        }
        // What is being changed is put back with the rest, or prolongs the time.
        let turn = guard.changing.lock().await;
        let Some(probation) = guard.probation.borrow_mut().take_if(Probation::is_over) else { continue };
        match probation.before {
            Before::Nothing => return warn!("the start was not confirmed in time"),
            Before::State(state) => guard.put_back(&turn, *state).await,
        }
    }
}

/// How long a client wants its change to wait.
pub(super) fn time(seconds: u64) -> Result<Duration, String> {
    let time = Duration::from_secs(seconds);
    match time.is_zero() || time > LONGEST {
        true => Err(format!("{seconds} s: not within 1 to {} s", LONGEST.as_secs())),
        false => Ok(time),
    }
}

impl Guard {
    /// Keeps what is in force, for a change that is about to be made: nothing is put back before its turn is over. Whether that
    /// began a probation; else it joins the one that there is.
    pub(super) async fn hold(&self, _turn: &Turn<'_>, time: Duration) -> Result<bool, Reply> {
        if self.probation.borrow().is_some() {
            return Ok(false);
        }
        let filters = self.filters.with(|filters| Ok(filters.snapshot())).await?;
        let (services, tunables) = (self.modes.services(), Tunables::clone(&self.tunables.borrow()));
        let before = Before::State(Box::new(State { services, tunables, filters }));
        *self.probation.borrow_mut() = Some(Probation { until: Instant::now() + time, before });
        Ok(true)
    }

    /// The change is in force, all or some of it: from now on it has this time, and so have those before it.
    pub(super) fn prolong(&self, _turn: &Turn<'_>, time: Duration) {
        if let Some(held) = self.probation.borrow_mut().as_mut() {
            held.until = held.until.max(Instant::now() + time);
        }
    }

    /// The change was not made. What [`Self::hold`] `begun` for it is over; what others wait for is not.
    pub(super) fn release(&self, _turn: &Turn<'_>, begun: bool) {
        self.probation.borrow_mut().take_if(|_| begun);
    }

    /// Whether changes wait to be confirmed. A start that does is no change: the file is as it would be at the next one.
    pub(super) fn is_holding(&self) -> bool {
        let held = self.probation.borrow();
        held.as_ref().is_some_and(|held| matches!(held.before, Before::State(_)))
    }

    /// Until what is on probation is taken back.
    pub(super) fn unconfirmed(&self) -> Option<Duration> {
        let held = self.probation.borrow();
        held.as_ref().map(|held| held.until.saturating_duration_since(Instant::now()))
    }

    async fn put_back(&self, turn: &Turn<'_>, State { services, tunables, filters }: State) {
        warn!("not confirmed in time: what was changed is taken back");
        // Each by itself: what can be put back is.
        if let Err(error) = self.filters.with(|held| held.restore(filters)).await {
            error!(%error, "the filters were not put back");
        }
        if let Err(error) = self.set_tunables(turn, tunables).await {
            error!(%error, "the tunables were not put back everywhere");
        }
        if let Err(error) = self.replace_services(turn, services).await {
            error!(%error, "the services were not put back everywhere");
        }
    }
}
