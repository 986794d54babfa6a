//! What happens when buffer memory runs short. Receiving: windows stop growing first, then data that waits behind holes
//! is given up, the largest holders' first; data in order never is: it is acknowledged. Sending: everybody's share
//! shrinks with what is left, and peers that take nothing for long are reset, the longest-stalled first.

use std::time::Duration;

use super::{ConnId, Instant, Stack};
use crate::config::Config;
use crate::event::Error;
use crate::pool::{CHUNK, Pool};
use crate::wire::Incoming;

/// Most bytes a connection may be offered now whose window has grown to `grown`. The fuller the pool, the less: a peer whose
/// application does not read must not take what all others need.
pub(super) fn recv_limit(grown: u32, pool: &Pool) -> u32 {
    const MODERATE: u32 = 64 << 10;
    const SMALL: u32 = 16 << 10;
    let (used, budget) = (pool.used_bytes(), pool.budget_bytes());
    if used <= budget / 2 {
        grown
    } else if used <= budget / 8 * 7 {
        grown.min(MODERATE)
    } else {
        grown.min(SMALL)
    }
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

/// Since when a peer takes next to nothing of what it is offered.
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
    /// The peer's window is closed; whether it was open before.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        let begins = !self.since.is_set();
        if begins {
            *self = Self { since: now, taken: 0 };
        }
        begins
    }

    /// The peer took `bytes`. A full segment ends the stall: a byte now and then does not.
    pub(super) fn progress(&mut self, bytes: u32, mss: u32) {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken >= mss {
            *self = Self::default();
        }
    }

    pub(super) fn since(&self) -> Option<Instant> {
        self.since.is_set().then_some(self.since)
    }
}

impl Stack {
    /// Notes a connection whose peer has just closed its window.
    pub(super) fn note_stall(&mut self, id: ConnId, now: Instant) {
        let Some(since) = self.connections.get_mut(id).and_then(|tcb| tcb.stalls(now)) else { return };
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

    /// Called before data for `id` is taken in: when no receive buffer is left, the connection that holds most
    /// behind its holes, of a sample that goes round the table, gives it back. The peer still has that data:
    /// SACK is advice (RFC 2018 §8). Not for what would be dropped anyway, which anybody can send, and not again at once
    /// when nobody was found: where memory is full of what applications do not read, every segment would have us search.
    pub(super) fn reclaim(&mut self, id: ConnId, segment: &Incoming<'_>, now: Instant) {
        const SAMPLE: u32 = 64;
        const PAUSE: Duration = Duration::from_micros(200);
        let expected = || self.connections.get(id).is_some_and(|tcb| tcb.expects(segment, now));
        if self.shared.recv_pool.has_room() || now < self.reclaim_at || !expected() {
            return;
        }
        let slots = self.connections.slots().max(1);
        let mut largest: Option<(usize, ConnId)> = None;
        for step in 0..SAMPLE.min(slots) {
            let index = (self.reclaim_hand + step) % slots;
            let Some(other) = self.connections.id_at(index).filter(|other| *other != id) else { continue };
            let held = self.connections.at(index).map_or(0, |tcb| tcb.islands());
            if held > largest.map_or(0, |(most, _)| most) {
                largest = Some((held, other));
            }
        }
        self.reclaim_hand = (self.reclaim_hand + SAMPLE) % slots;
        match largest.and_then(|(_, other)| self.connections.get_mut(other)) {
            Some(tcb) => {
                tcb.discard_islands(&mut self.shared);
                self.shared.counters.reclaimed += 1;
            }
            None => self.reclaim_at = now + PAUSE,
        }
    }
}
