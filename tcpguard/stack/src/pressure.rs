//! What happens when buffer memory runs short. Receiving: windows stop growing first; then the rest is kept for whoever holds
//! little, whatever was promised; whoever holds much that its application does not read is reset; and data that waits
//! behind holes is given up, the largest holders' first. Sending: everybody's share shrinks with what is left, and peers
//! that take next to nothing for long, with their windows closed or open, are reset, the longest-stalled first.

use std::time::Duration;

use super::{ConnId, Instant, Stack};
use crate::config::Config;
use crate::event::Error;
use crate::pool::{CHUNK, Pool};
use crate::tcb::Tcb;
use crate::wire::Incoming;

/// Connections that are looked at when receive memory is short.
const SAMPLE: u32 = 64;

/// What a connection may hold received while memory is short, in bytes.
const MODERATE: usize = 64 << 10;
/// What it may hold while little is left: as much as nobody is reset for yet. Who reads less in a whole stall time does not
/// read.
pub(super) const SMALL: usize = 16 << 10;

/// When next to nothing is left, whoever holds anything has this part of the stall time to be read: thousands that each hold
/// too little for a share of their own would else keep everybody out for all of it.
const HASTE: u32 = 4;

/// From how many sixteenths of the pool in use on a connection may hold how many bytes. Who holds more keeps it, but
/// takes no more of what is left for others.
const SHARES: [(usize, usize); 3] = [(15, CHUNK), (14, SMALL), (12, MODERATE)];

/// How far behind the first unread byte memory may still be taken for what a connection receives, in bytes. What it was
/// promised when there was more does not count: else a few peers whose applications do not read would have it all.
pub(super) fn recv_share(pool: &Pool) -> usize {
    let sixteenth = pool.budget_bytes() / 16;
    let step = SHARES.iter().find(|(sixteenths, _)| pool.used_bytes() >= sixteenths * sixteenth);
    step.map_or(usize::MAX, |&(_, share)| share)
}

/// Most bytes a connection may be offered now whose window has grown to `grown`. The fuller the pool, the less, and never
/// what would not be taken.
pub(super) fn recv_limit(grown: u32, pool: &Pool) -> u32 {
    let ample = pool.used_bytes() <= pool.budget_bytes() / 2;
    let most = recv_share(pool).min(if ample { usize::MAX } else { MODERATE });
    grown.min(u32::try_from(most).unwrap_or(u32::MAX))
}

/// Most bytes a connection with so large a congestion window may hold for sending now: what the path takes in two round
/// trips, so that a slow one does not hold memory that it cannot use; and a part of what is left, so that however many peers
/// do not read, whoever comes next finds something; a chunk at the least.
pub(super) fn send_limit(config: &Config, pool: &Pool, cwnd: u32) -> usize {
    const PART: usize = 64;
    const LEAST: u32 = 512 << 10;
    let wanted = cwnd.saturating_mul(2).max(LEAST).min(config.send_buffer) as usize;
    wanted.min((pool.room_bytes() / PART).max(CHUNK))
}

/// Whether send memory is so short that whoever holds it without need must give it back.
fn is_short(pool: &Pool) -> bool {
    pool.room_bytes() < pool.budget_bytes() / 8
}

/// Since when an application takes next to nothing of what waits for it.
#[derive(Debug)]
pub(super) struct Stall {
    since: Instant,
    /// Bytes it took meanwhile.
    taken: u32,
}

impl Default for Stall {
    fn default() -> Self {
        Self { since: Instant::NEVER, taken: 0 }
    }
}

impl Stall {
    /// Something waits.
    pub(super) fn begin(&mut self, now: Instant) {
        if !self.since.is_set() {
            *self = Self { since: now, taken: 0 };
        }
    }

    /// `bytes` were taken. When they are `enough` in all the stall is over: a byte now and then does not end it.
    pub(super) fn progress(&mut self, bytes: u32, enough: u32) {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken >= enough {
            *self = Self::default();
        }
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since.is_set().then_some(self.since)
    }
}

/// How a peer takes what waits for its acknowledgement, sent or not. It makes a step when it has all that waited when the step
/// began, or a segment of it. What comes to less is nothing: a byte now and then holds the memory of all the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// When the present step began; [`Instant::NEVER`] when nothing waits.
    since: Instant,
    /// Bytes it lacks.
    missing: u32,
    /// Since when it is a stall: a step that takes too long.
    stalled: Instant,
}

impl Pace {
    pub(super) const NONE: Self = Self { since: Instant::NEVER, missing: 0, stalled: Instant::NEVER };

    /// A segment, as large as Ethernet carries it. Not the peer's: that may be as small as it likes.
    const STEP: u32 = 1460;

    /// `waiting` bytes wait, where none did before, or after a step.
    pub(super) fn begin(&mut self, waiting: u32, now: Instant) {
        *self = Self { since: now, missing: waiting.min(Self::STEP), ..Self::NONE };
    }

    /// `bytes` were taken, and `waiting` still wait.
    pub(super) fn progress(&mut self, bytes: u32, waiting: u32, now: Instant) {
        self.missing = self.missing.saturating_sub(bytes);
        if waiting == 0 {
            *self = Self::NONE;
        } else if self.missing == 0 {
            self.begin(waiting, now);
        }
    }

    /// The present step has all its time again.
    pub(super) fn renew(&mut self, now: Instant) {
        self.since = now;
    }

    /// Whether anything waits.
    pub(super) fn is_set(&self) -> bool {
        self.since.is_set()
    }

    /// The present step began so long ago, or the peer said that it will take nothing: it is a stall. Whether that is new.
    pub(super) fn stalls(&mut self, now: Instant) -> bool {
        let begins = !self.stalled.is_set();
        if begins {
            self.stalled = now;
        }
        begins
    }

    pub(super) fn since(&self) -> Instant {
        self.since
    }

    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.stalled.is_set().then_some(self.stalled)
    }
}

impl Stack {
    /// Notes a connection whose peer has just turned out to take next to nothing of what waits for it.
    pub(super) fn note_stall(&mut self, id: ConnId, since: Instant) {
        let connections = &self.connections;
        if self.stalls.len() > 2 * connections.len() as usize + 64 {
            let lasts = |&(id, since): &(ConnId, Instant)| {
                connections.get(id)?.stalled_since().filter(|at| *at == since)
            };
            self.stalls.retain(|stall| lasts(stall).is_some());
        }
        self.stalls.push_back((id, since));
    }

    /// When the longest-stalled connection will have held memory that others need for long enough.
    pub(super) fn stall_deadline(&self) -> Option<Instant> {
        if !is_short(&self.shared.send_pool) {
            return None;
        }
        let (id, since) = *self.stalls.front()?;
        let lasts = self.connections.get(id).is_some_and(|tcb| tcb.stalled_since() == Some(since));
        Some(if lasts { since + self.shared.config.stall_time } else { Instant::default() })
    }

    /// Resets stalled connections as long as send memory is short.
    pub(super) fn end_stalls(&mut self, now: Instant) {
        while self.stall_deadline().is_some_and(|due| due <= now) {
            let Some((id, since)) = self.stalls.pop_front() else { return };
            let Some(tcb) = self.connections.get_mut(id) else { continue };
            if tcb.stalled_since() == Some(since) {
                self.shared.counters.stalls_reset += 1;
                tcb.fail(Error::TimedOut, true, &mut self.shared);
                self.settle(id, now);
            }
        }
    }

    /// Called before data for `id` is taken in. When receive memory is short, one connection of a sample that goes round the
    /// table gives some back: of those whose applications have not read for long, the one that holds most is reset, if it
    /// is more than anybody may have; and when next to nothing is left, the one with most behind its holes gives that up:
    /// the peer still has it, because SACK is advice (RFC 2018 §8). Not for what would be dropped anyway, which anybody can
    /// send, and not again at once when nobody was found: else every segment would have us search.
    pub(super) fn reclaim(&mut self, id: ConnId, segment: &Incoming<'_>, now: Instant) {
        const PAUSE: Duration = Duration::from_micros(200);
        let expected = || self.connections.get(id).is_some_and(|tcb| tcb.expects(segment, now));
        let share = recv_share(&self.shared.recv_pool);
        if share == usize::MAX || now < self.reclaim_at || !expected() {
            return;
        }
        let scarce = share == CHUNK;
        let stall_time = self.shared.config.stall_time;
        let (spared, patience) = if scarce { (0, stall_time / HASTE) } else { (SMALL, stall_time) };
        let hoard = |tcb: &Tcb| {
            let held = tcb.neglected(now, patience);
            if held > spared { held } else { 0 }
        };
        if let Some(other) = self.largest(id, hoard) {
            self.end_unread(other, now);
        } else if scarce && let Some(other) = self.largest(id, Tcb::islands) {
            self.give_up_islands(other);
        } else {
            self.reclaim_at = now + PAUSE;
        }
        self.reclaim_hand = (self.reclaim_hand + SAMPLE) % self.connections.slots().max(1);
    }

    /// Of the connections in the present sample, `id` left out, the one that holds most, if any holds something.
    fn largest(&self, id: ConnId, held: impl Fn(&Tcb) -> usize) -> Option<ConnId> {
        let slots = self.connections.slots();
        let indices = (0..SAMPLE.min(slots)).map(|step| (self.reclaim_hand + step) % slots);
        let weighed = indices.filter_map(|index| {
            let other = self.connections.id_at(index).filter(|other| *other != id)?;
            Some((self.connections.at(index).map_or(0, &held), other))
        });
        weighed.filter(|(held, _)| *held > 0).max_by_key(|(held, _)| *held).map(|(_, other)| other)
    }

    fn end_unread(&mut self, id: ConnId, now: Instant) {
        if let Some(tcb) = self.connections.get_mut(id) {
            tcb.end_unread(&mut self.shared);
            self.shared.counters.unread_reset += 1;
            self.settle(id, now);
        }
    }

    fn give_up_islands(&mut self, id: ConnId) {
        if let Some(tcb) = self.connections.get_mut(id) {
            tcb.discard_islands(&mut self.shared);
            self.shared.counters.reclaimed += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, Instant, MODERATE, Pace, Pool, SMALL, recv_limit, recv_share};

    #[test]
    fn the_fuller_the_receive_pool_the_less_anybody_may_add_and_be_offered() {
        const GROWN: u32 = 4 << 20;
        let mut pool = Pool::new(32 * CHUNK);
        let mut steps: Vec<(usize, usize, u32)> = Vec::new();
        for used in 0..32 {
            let (share, offered) = (recv_share(&pool), recv_limit(GROWN, &pool));
            if steps.last().is_none_or(|last| (last.1, last.2) != (share, offered)) {
                steps.push((used, share, offered));
            }
            assert!(pool.take().is_some());
        }
        let moderate = MODERATE as u32;
        let expected = [
            (0, usize::MAX, GROWN),
            (17, usize::MAX, moderate),
            (24, MODERATE, moderate),
            (28, SMALL, SMALL as u32),
            (30, CHUNK, CHUNK as u32),
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn a_step_is_all_that_waited_when_it_began_or_a_segment_of_it() {
        let at = Instant;
        let mut pace = Pace::NONE;
        pace.begin(10, at(1));
        assert!(pace.stalls(at(2)) && !pace.stalls(at(3)));
        // More is always under way, and each byte is taken in time.
        pace.progress(10, 10, at(4));
        assert_eq!((pace.since(), pace.stalled_since()), (at(4), None));
        pace.progress(10, 100_000, at(5));
        for byte in 0..1459 {
            pace.progress(1, 100_000, at(6 + byte));
            assert_eq!(pace.since(), at(5));
        }
        pace.progress(1, 100_000, at(9000));
        assert_eq!(pace.since(), at(9000));
        pace.progress(1, 0, at(9001));
        assert!(!pace.is_set());
    }
}
