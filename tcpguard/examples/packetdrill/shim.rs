//! The calls, with waiting: who waits for what, and who moves the clock. The thread that made the shim is the tool's main
//! one, which moves it; a call on any other thread waits until the main one has made what it waits for happen.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use tcpguard::stack::Instant;

use crate::clock::Clock;
use crate::errno::Errno;
use crate::flags::Flags;
use crate::network::Packet;
use crate::world::World;

/// Everything behind the table.
#[derive(Debug)]
pub(crate) struct Shim {
    main: ThreadId,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    world: World,
    /// Counts changes that somebody may wait for.
    changes: u64,
    /// Calls that wait, and how many of them have not looked at the last change yet.
    waiting: usize,
    woken: usize,
    /// Threads whose calls waited and have returned: they ask for the time next, which must not have moved by then.
    returning: HashSet<ThreadId>,
    /// When calls that wait give up.
    deadlines: Vec<Instant>,
}

/// How long a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    None,
    For(Duration),
    Endless,
}

/// How long the main thread gives others to call, or to return, before it moves the clock. Real time.
const COURTESY: Duration = Duration::from_micros(200);
const MOST_COURTESY: Duration = Duration::from_secs(1);
/// How long the main thread waits for a packet that is not there, in virtual time.
const LONGEST_WAIT: Duration = Duration::from_secs(86_400);
/// Steps without the clock moving: more than any stack needs that means well.
const MOST_STEPS: u32 = 100_000;

impl Shim {
    pub(crate) fn new(flags: Flags) -> Self {
        let inner = Inner {
            world: World::new(flags),
            changes: 0,
            waiting: 0,
            woken: 0,
            returning: HashSet::new(),
            deadlines: Vec::new(),
        };
        Self { main: thread::current().id(), inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// A call that never waits.
    pub(crate) fn call<R>(&self, call: impl FnOnce(&mut World) -> R) -> R {
        let mut inner = self.lock();
        let outcome = call(&mut inner.world);
        inner.world.flush();
        self.announce(&mut inner);
        outcome
    }

    /// A call that waits while it comes to nothing.
    pub(crate) fn wait<R>(
        &self,
        patience: Patience,
        mut attempt: impl FnMut(&mut World) -> Result<Option<R>, Errno>,
    ) -> Result<R, Errno> {
        let mut inner = self.lock();
        let deadline = match patience {
            Patience::For(time) => Some(inner.world.now() + time),
            Patience::None | Patience::Endless => None,
        };
        let mut waited = false;
        let outcome = loop {
            let outcome = attempt(&mut inner.world);
            inner.world.flush();
            match outcome {
                Ok(Some(value)) => break Ok(value),
                Ok(None) => {}
                Err(errno) => break Err(errno),
            }
            let is_late = deadline.is_some_and(|deadline| inner.world.now() >= deadline);
            if patience == Patience::None || is_late {
                break Err(Errno(libc::EAGAIN));
            }
            waited = true;
            if thread::current().id() != self.main {
                inner = self.wait_for_change(inner, deadline);
            } else if !self.pass_time(&mut inner, deadline) {
                // Nobody is left to make it happen.
                break Err(Errno(libc::EDEADLK));
            }
        };
        if waited && thread::current().id() != self.main {
            inner.returning.insert(thread::current().id());
        }
        self.announce(&mut inner);
        outcome
    }

    fn wait_for_change<'a>(
        &self,
        mut inner: MutexGuard<'a, Inner>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, Inner> {
        // What the attempt did may be what another call waits for.
        self.announce(&mut inner);
        let seen = inner.changes;
        inner.waiting += 1;
        inner.deadlines.extend(deadline);
        while inner.changes == seen {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.waiting -= 1;
        inner.woken = inner.woken.saturating_sub(1);
        if let Some(place) = inner.deadlines.iter().position(|at| Some(*at) == deadline) {
            inner.deadlines.swap_remove(place);
        }
        self.changed.notify_all();
        inner
    }

    /// Moves the clock to whatever happens next by itself; `false` if nothing ever does.
    fn pass_time(&self, inner: &mut Inner, deadline: Option<Instant>) -> bool {
        let Some(next) = inner.next_moment().into_iter().chain(deadline).min() else { return false };
        inner.world.step_to(next);
        self.announce(inner);
        true
    }

    /// The time, which has moved a little since the last look at it: microseconds.
    pub(crate) fn time(&self) -> i64 {
        let time = self.call(|world| {
            world.step_to(world.now() + Clock::TICK);
            world.clock.micros()
        });
        self.lock().returning.remove(&thread::current().id());
        self.changed.notify_all();
        time
    }

    /// Lets `duration` pass.
    pub(crate) fn sleep(&self, duration: Duration) {
        thread::sleep(COURTESY);
        let mut inner = self.settled(self.lock());
        let end = inner.world.now() + duration;
        let mut steps = 0;
        while let Some(next) = inner.next_moment().filter(|&next| next <= end && steps < MOST_STEPS) {
            steps = if next > inner.world.now() { 0 } else { steps + 1 };
            inner.world.step_to(next);
            self.announce(&mut inner);
            inner = self.settled(inner);
        }
        inner.world.step_to(end);
        self.announce(&mut inner);
    }

    /// The next packet that leaves, however long that takes; `None` if none ever does.
    pub(crate) fn next_packet(&self) -> Option<Packet> {
        let mut inner = self.lock();
        if inner.world.network.is_empty() {
            drop(inner);
            thread::sleep(COURTESY);
            inner = self.settled(self.lock());
        }
        let end = inner.world.now() + LONGEST_WAIT;
        let mut steps = 0;
        while inner.world.network.is_empty() {
            let next = inner.next_moment().filter(|&next| next <= end && steps < MOST_STEPS)?;
            steps = if next > inner.world.now() { 0 } else { steps + 1 };
            inner.world.step_to(next);
            self.announce(&mut inner);
            inner = self.settled(inner);
        }
        inner.world.network.next()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic was reported as a failed call; the script ends by that.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may have changed.
    fn announce(&self, inner: &mut Inner) {
        inner.changes += 1;
        inner.woken = inner.waiting;
        self.changed.notify_all();
    }

    /// Waits until every call that was woken has looked, and every one that returned has asked for the time.
    fn settled<'a>(&self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        while inner.woken > 0 || !inner.returning.is_empty() {
            let waited =
                self.changed.wait_timeout(inner, MOST_COURTESY).unwrap_or_else(PoisonError::into_inner);
            inner = waited.0;
            if waited.1.timed_out() {
                // Not the tool's way, but the caller's choice.
                inner.returning.clear();
                break;
            }
        }
        inner
    }
}

impl Inner {
    /// When something happens by itself next, or a call that waits gives up.
    fn next_moment(&self) -> Option<Instant> {
        let now = self.world.now();
        self.deadlines.iter().map(|&at| at.max(now)).chain(self.world.next_event()).min()
    }
}
