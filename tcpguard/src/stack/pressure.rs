//! What happens when receive memory runs short: windows stop growing first, then data that waits behind holes is
//! given up, the largest holders' first. Data in order is never given up: it is acknowledged.

use super::{ConnId, Stack};
use crate::stack::config::Config;
use crate::stack::pool::Pool;

/// Most bytes a connection may be offered now. The fuller the pool, the less: a peer whose application does not
/// read must not take what all others need.
pub(super) fn recv_limit(config: &Config, pool: &Pool) -> u32 {
    const MODERATE: u32 = 64 << 10;
    const SMALL: u32 = 16 << 10;
    let (used, budget) = (pool.used_bytes(), pool.budget_bytes());
    if used <= budget / 2 {
        config.recv_buffer
    } else if used <= budget / 8 * 7 {
        config.recv_buffer.min(MODERATE)
    } else {
        config.recv_buffer.min(SMALL)
    }
}

impl Stack {
    /// Called before data for `id` is taken in: when no receive buffer is left, the connection that holds most
    /// behind its holes, of a sample that goes round the table, gives it back. The peer still has that data:
    /// SACK is advice (RFC 2018 §8).
    pub(super) fn reclaim(&mut self, id: ConnId) {
        const SAMPLE: u32 = 64;
        if self.shared.recv_pool.has_room() {
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
        if let Some(tcb) = largest.and_then(|(_, other)| self.connections.get_mut(other)) {
            tcb.discard_islands(&mut self.shared);
            self.shared.counters.reclaimed += 1;
        }
    }
}
