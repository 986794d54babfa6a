//! Connections whose application is gone and whose flow is not over: FIN_WAIT_1, FIN_WAIT_2, CLOSING and LAST_ACK without an
//! owner. Timers of their own bound each in time, the retransmissions' or FIN_WAIT_2's; this bounds all of them in number. When one more would be too many, the
//! one that has been without an owner for longest is reset: of all it is the likeliest whose peer has everything and merely
//! does not close, and whoever closes now has not had time to.

use std::collections::VecDeque;

use super::event::Error;
use super::{ConnId, Instant, MAX_REPLIES, Stack};

/// All orphans of a stack.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    /// The longest-orphaned first, and among them some that are over.
    queue: VecDeque<ConnId>,
    count: u32,
}

impl Orphans {
    fn add(&mut self, id: ConnId) {
        self.count += 1;
        self.queue.push_back(id);
    }

    /// One of them is over, whichever way.
    pub(super) fn ended(&mut self) {
        self.count -= 1;
    }

    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

impl Stack {
    /// The application of a connection is about to leave it.
    pub(super) fn note_orphan(&mut self, id: ConnId) {
        if self.connections.get(id).is_some_and(|tcb| tcb.attached && !tcb.orphan) {
            self.orphans.add(id);
        }
        let Self { connections, orphans, .. } = self;
        if orphans.queue.len() > 2 * orphans.count as usize + 64 {
            orphans.queue.retain(|&id| connections.get(id).is_some());
        }
    }

    /// Whether some of them must go, and there is room for their resets.
    pub(super) fn has_too_many_orphans(&self) -> bool {
        self.orphans.count > self.shared.config.max_orphans && self.replies.len() < MAX_REPLIES
    }

    /// Resets the longest-orphaned connections beyond the limit, as far as there is room for their resets.
    pub(super) fn limit_orphans(&mut self, now: Instant) {
        while self.has_too_many_orphans() {
            let Some(id) = self.orphans.queue.pop_front() else { return };
            let Some(tcb) = self.connections.get_mut(id) else { continue };
            self.shared.counters.orphans_reset += 1;
            tcb.fail(Error::Aborted, true, &mut self.shared);
            self.settle(id, now);
        }
    }
}
