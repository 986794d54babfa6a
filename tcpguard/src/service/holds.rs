//! Connections that one side holds up: which kinds there are, how many of each a backend has and for how long. It sees
//! no stream: the relay says what holds it up, and this looks now and then whether that goes on.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep};

/// What is held up for a shorter time is on its way.
const LOOK: Duration = Duration::from_secs(1);

/// Who holds a connection up, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The client has closed; the backend neither says anything nor closes.
    CloseWait,
    /// The backend has closed; the client neither says anything nor closes.
    FinWait2,
    /// The client takes nothing of what the backend says.
    ClientStalled,
    /// The backend takes nothing of what the client says.
    BackendStalled,
}

impl Hold {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::CloseWait, Self::FinWait2, Self::ClientStalled, Self::BackendStalled];

    /// The name for people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::CloseWait => "close-wait",
            Self::FinWait2 => "fin-wait-2",
            Self::ClientStalled => "client-stalled",
            Self::BackendStalled => "backend-stalled",
        }
    }

    /// Whom to ask why.
    pub(super) fn culprit(self) -> &'static str {
        match self {
            Self::CloseWait => "the backend does not close after its clients have",
            Self::FinWait2 => "clients do not close after the backend has",
            Self::ClientStalled => "clients take nothing",
            Self::BackendStalled => "the backend takes nothing",
        }
    }
}

/// The connections of one backend that are held up. All engines share it.
#[derive(Debug, Default)]
pub(super) struct Holds([Mutex<BTreeMap<Instant, usize>>; Hold::ALL.len()]);

/// How many connections of a kind there are, and for how long the oldest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The kind.
    pub hold: Hold,
    /// How many.
    pub count: usize,
    /// Since the oldest of them last moved.
    pub oldest: Duration,
}

impl Holds {
    /// The kinds there are now.
    pub(super) fn stats(&self, now: Instant) -> Vec<Held> {
        let held = |hold| {
            let since = self.since(hold);
            let (&oldest, _) = since.first_key_value()?;
            Some(Held { hold, count: since.values().sum(), oldest: now.saturating_duration_since(oldest) })
        };
        Hold::ALL.into_iter().filter_map(held).collect()
    }

    fn enter(self: &Arc<Self>, hold: Hold, since: Instant) -> Entry {
        *self.since(hold).entry(since).or_default() += 1;
        Entry { holds: Arc::clone(self), hold, since }
    }

    fn since(&self, hold: Hold) -> MutexGuard<'_, BTreeMap<Instant, usize>> {
        // A count is whole at any time.
        self.0[hold as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection among those that are held up, until it is dropped.
struct Entry {
    holds: Arc<Holds>,
    hold: Hold,
    since: Instant,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut since = self.holds.since(self.hold);
        if let Some(count) = since.get_mut(&self.since) {
            *count -= 1;
            if *count == 0 {
                since.remove(&self.since);
            }
        }
    }
}

/// Looks after one connection. It touches a timer once a second at most, and none as long as nothing holds it up.
pub(super) struct Lookout {
    holds: Arc<Holds>,
    timer: Option<Pin<Box<Sleep>>>,
    /// What held it up, and how many bytes it had moved, at the last look; and since when that has been so.
    seen: (Option<Hold>, u64),
    since: Instant,
    entry: Option<Entry>,
}

impl Lookout {
    pub(super) fn new(holds: Arc<Holds>) -> Self {
        Self { holds, timer: None, seen: (None, 0), since: Instant::now(), entry: None }
    }

    /// To be asked whenever the connection was polled. Ready, once a second, with what has held up a connection and for
    /// how long.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        hold: Option<Hold>,
        moved: u64,
    ) -> Poll<(Hold, Duration)> {
        let Some(kind) = hold else {
            (self.seen, self.entry) = ((None, moved), None);
            return Poll::Pending;
        };
        loop {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LOOK)));
            ready!(timer.as_mut().poll(cx));
            timer.as_mut().reset(tokio::time::Instant::now() + LOOK);
            let now = Instant::now();
            if self.seen != (hold, moved) {
                (self.seen, self.since, self.entry) = ((hold, moved), now, None);
                continue;
            }
            let (holds, since) = (&self.holds, self.since);
            self.entry.get_or_insert_with(|| holds.enter(kind, since));
            return Poll::Ready((kind, now - self.since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_up_is_counted_by_kind_with_the_age_of_the_oldest() {
        let (holds, start) = (Arc::new(Holds::default()), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let oldest = holds.enter(Hold::CloseWait, at(1));
        let twin = holds.enter(Hold::CloseWait, at(1));
        let younger = holds.enter(Hold::CloseWait, at(5));
        let other = holds.enter(Hold::BackendStalled, at(3));
        let held = |hold, count, seconds| Held { hold, count, oldest: Duration::from_secs(seconds) };
        let all = [held(Hold::CloseWait, 3, 9), held(Hold::BackendStalled, 1, 7)];
        assert_eq!(holds.stats(at(10)), all);
        drop((oldest, other));
        assert_eq!(holds.stats(at(10)), [held(Hold::CloseWait, 2, 9)]);
        drop(twin);
        assert_eq!(holds.stats(at(10)), [held(Hold::CloseWait, 1, 5)]);
        drop(younger);
        assert_eq!(holds.stats(at(10)), []);
    }
}
