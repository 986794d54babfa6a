//! Connections that one side holds up: which kinds there are, how many of each a backend has and for how long, and when
//! somebody is to be told. It sees no stream: the relay says what holds it up, and this looks now and then whether that goes on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::{Sleep, sleep};

use crate::telemetry::throttle::Throttle;

/// What is held up for a shorter time is on its way.
const LOOK: Duration = Duration::from_secs(1);
/// How long a connection may be held up before somebody is told.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How often somebody is told of a backend and a kind.
const TELL: Duration = Duration::from_secs(60);

/// Who holds a connection up, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The client has closed; the backend neither takes nor says anything, nor closes.
    CloseWait,
    /// The backend has closed; the client neither says anything nor closes.
    FinWait2,
    /// The client takes nothing of what the backend says.
    ClientStalled,
    /// The backend takes nothing of what a client says that is there.
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

    /// Whether clients are to blame, not the backend.
    pub(super) fn is_of_clients(self) -> bool {
        match self {
            Self::FinWait2 | Self::ClientStalled => true,
            Self::CloseWait | Self::BackendStalled => false,
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
#[derive(Debug)]
pub(super) struct Holds {
    kinds: [Mutex<Kind>; Hold::ALL.len()],
    patience: Duration,
}

/// Those of one kind.
#[derive(Debug)]
struct Kind {
    /// How many last moved when, and whose they are: the same client may have connections of several services here.
    since: BTreeMap<(Instant, SocketAddr), usize>,
    warnings: Throttle,
    /// Of those reset for memory.
    resets: Throttle,
}

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
    /// None yet; somebody is to be told of those that are held up for longer than `patience`.
    pub(super) fn new(patience: Duration) -> Self {
        let kind = |_| {
            let (warnings, resets) = (Throttle::new(TELL), Throttle::new(TELL));
            Mutex::new(Kind { since: BTreeMap::new(), warnings, resets })
        };
        Self { kinds: Hold::ALL.map(kind), patience }
    }

    /// The kinds there are now.
    pub(super) fn stats(&self, now: Instant) -> Vec<Held> {
        Hold::ALL.into_iter().filter_map(|hold| self.kind(hold).held(hold, now)).collect()
    }

    /// A connection has been held up for `age`. What there is to say of all that are, if somebody is to be told now: not for
    /// each of them, whatever engine it is on, and not at every look.
    pub(super) fn complaint(&self, hold: Hold, age: Duration, now: Instant) -> Option<Held> {
        if age < self.patience {
            return None;
        }
        let mut kind = self.kind(hold);
        kind.warnings.event(now)?;
        kind.held(hold, now)
    }

    /// A connection was reset for memory because `hold` kept it from being read. How many were since somebody was told, if
    /// somebody is to be told now.
    pub(super) fn reset_unread(&self, hold: Hold, now: Instant) -> Option<u64> {
        self.kind(hold).resets.event(now)
    }

    /// Whose connections of a kind there are, `limit` of them at most, those first that have not moved for longest.
    pub(super) fn clients(&self, hold: Hold, limit: usize) -> Vec<SocketAddr> {
        let kind = self.kind(hold);
        let each = kind.since.iter().flat_map(|(&(_, client), &count)| std::iter::repeat_n(client, count));
        each.take(limit).collect()
    }

    fn enter(self: &Arc<Self>, hold: Hold, since: Instant, client: SocketAddr) -> Entry {
        *self.kind(hold).since.entry((since, client)).or_default() += 1;
        Entry { holds: Arc::clone(self), hold, since, client }
    }

    fn kind(&self, hold: Hold) -> MutexGuard<'_, Kind> {
        // A count is whole at any time.
        self.kinds[hold as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kind {
    fn held(&self, hold: Hold, now: Instant) -> Option<Held> {
        let (&(oldest, _), _) = self.since.first_key_value()?;
        Some(Held { hold, count: self.since.values().sum(), oldest: now.saturating_duration_since(oldest) })
    }
}

/// One connection among those that are held up, until it is dropped.
struct Entry {
    holds: Arc<Holds>,
    hold: Hold,
    since: Instant,
    client: SocketAddr,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut kind = self.holds.kind(self.hold);
        let key = (self.since, self.client);
        if let Some(count) = kind.since.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                kind.since.remove(&key);
            }
        }
    }
}

/// Looks after one connection. It touches a timer once a second at most, and none as long as nothing holds it up.
pub(super) struct Lookout {
    holds: Arc<Holds>,
    /// Whose it is.
    client: SocketAddr,
    timer: Option<Pin<Box<Sleep>>>,
    /// What held it up, and how far it had come, at the last look; and since when that has been so.
    seen: Option<(Hold, u64)>,
    since: Instant,
    entry: Option<Entry>,
}

impl Lookout {
    pub(super) fn new(holds: Arc<Holds>, client: SocketAddr) -> Self {
        Self { holds, client, timer: None, seen: None, since: Instant::now(), entry: None }
    }

    /// To be asked whenever the connection was polled. Ready, once a second, with what has held up a connection and for
    /// how long it has not come any farther.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        hold: Option<Hold>,
        come: impl Fn() -> u64,
    ) -> Poll<(Hold, Duration)> {
        let Some(kind) = hold else {
            (self.seen, self.entry) = (None, None);
            return Poll::Pending;
        };
        loop {
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(LOOK)));
            ready!(timer.as_mut().poll(cx));
            timer.as_mut().reset(tokio::time::Instant::now() + LOOK);
            let now = Instant::now();
            let seen = Some((kind, come()));
            if self.seen != seen {
                (self.seen, self.since, self.entry) = (seen, now, None);
                continue;
            }
            let (holds, since, client) = (&self.holds, self.since, self.client);
            self.entry.get_or_insert_with(|| holds.enter(kind, since, client));
            return Poll::Ready((kind, now - self.since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(port: u16) -> SocketAddr {
        ([198, 51, 100, 1], port).into()
    }

    #[test]
    fn what_is_held_up_is_counted_by_kind_with_the_age_of_the_oldest() {
        let (holds, start) = (Arc::new(Holds::new(PATIENCE)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let oldest = holds.enter(Hold::CloseWait, at(1), client(1));
        let twin = holds.enter(Hold::CloseWait, at(1), client(1));
        let younger = holds.enter(Hold::CloseWait, at(5), client(5));
        let other = holds.enter(Hold::BackendStalled, at(3), client(3));
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

    #[test]
    fn whose_connections_are_held_up_is_known_and_the_longest_held_up_comes_first() {
        let (holds, start) = (Arc::new(Holds::new(PATIENCE)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let enter = |hold, since, port| holds.enter(hold, at(since), client(port));
        let stalled =
            [(5, 50), (1, 10), (3, 30), (3, 31)].map(|(since, port)| enter(Hold::ClientStalled, since, port));
        let _other = enter(Hold::BackendStalled, 0, 1);
        let ports = |limit| {
            holds.clients(Hold::ClientStalled, limit).iter().map(SocketAddr::port).collect::<Vec<_>>()
        };
        assert_eq!((ports(9), ports(2)), (vec![10, 30, 31, 50], vec![10, 30]));
        drop(stalled);
        assert_eq!(ports(9), [0u16; 0]);
    }

    #[test]
    fn somebody_is_told_once_a_minute_for_whom_connections_are_reset_of_what_nobody_reads() {
        let (holds, start) = (Holds::new(PATIENCE), Instant::now());
        let reset = |hold, second| holds.reset_unread(hold, start + Duration::from_secs(second));
        assert_eq!(reset(Hold::BackendStalled, 0), Some(1));
        assert_eq!(reset(Hold::ClientStalled, 1), Some(1), "who is to blame is told apart");
        assert_eq!([1, TELL.as_secs() - 1].map(|second| reset(Hold::BackendStalled, second)), [None; 2]);
        assert_eq!(reset(Hold::BackendStalled, TELL.as_secs()), Some(3));
    }

    #[test]
    fn somebody_is_told_once_of_many_that_are_held_up_for_long_and_again_when_it_goes_on() {
        let (holds, start) = (Arc::new(Holds::new(PATIENCE)), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let looks = |second| {
            let told = [Hold::CloseWait, Hold::FinWait2].map(|hold| {
                let look = |since| holds.complaint(hold, at(second) - at(since), at(second));
                [0, 1, 1].into_iter().filter_map(look).collect::<Vec<_>>()
            });
            told.concat()
        };
        let entries = [0, 1, 1].map(|since| holds.enter(Hold::CloseWait, at(since), client(1)));
        let told = |oldest| [Held { hold: Hold::CloseWait, count: 3, oldest: Duration::from_secs(oldest) }];
        let (patience, tell) = (PATIENCE.as_secs(), TELL.as_secs());
        assert_eq!(looks(patience - 1), []);
        assert_eq!(looks(patience), told(patience));
        for later in 1..tell {
            assert_eq!(looks(patience + later), []);
        }
        assert_eq!(looks(patience + tell), told(patience + tell));
        drop(entries);
        assert_eq!(looks(patience + 2 * tell), [], "nobody is held up any more");
    }
}
