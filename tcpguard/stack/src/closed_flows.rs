//! Remembers flows that closed while the cookie that opened them is still valid, so that a replayed first
//! segment does not open them again. Fingerprints of 32 bits beside a keyed place: a chance collision refuses
//! one adoption in about a thousand million.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::seq::Seq;

use super::wire::hash_with;

/// Fingerprints per bucket: one cache line.
const WAYS: usize = 16;
/// Buckets looked at before a table counts as full.
const REACH: usize = 4;
/// Places of an epoch's first table at least; each further one is twice as large as the last.
const FIRST: usize = 1 << 16;
/// Places of a table at most.
const LARGEST: usize = 1 << 24;

/// One open-addressed table of fingerprints; 0 is an empty place. Entries are never removed singly.
#[derive(Debug)]
struct Table {
    places: Vec<u32>,
    len: usize,
}

impl Table {
    fn new(places: usize) -> Self {
        Self { places: vec![0; places], len: 0 }
    }

    /// The places where `hash` may be.
    fn places(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let mask = self.places.len() - 1;
        let home = (hash >> 32) as usize * WAYS;
        (home..home + WAYS * REACH).map(move |place| place & mask)
    }

    fn contains(&self, hash: u64) -> bool {
        self.places(hash)
            .map(|place| self.places[place])
            .take_while(|&word| word != 0)
            .any(|word| word == word_of(hash))
    }

    fn insert(&mut self, hash: u64) -> bool {
        let free = self.places(hash).find(|&place| self.places[place] == 0);
        if let Some(place) = free.filter(|_| self.len < self.places.len() / 4 * 3) {
            self.places[place] = word_of(hash);
            self.len += 1;
            return true;
        }
        false
    }
}

fn word_of(hash: u64) -> u32 {
    (hash as u32).max(1)
}

/// What the memory says of a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recall {
    /// It opened no flow that has closed.
    New,
    /// The flow that it opened has closed.
    Closed,
    /// Nobody knows: closed flows of its epoch had to be forgotten. It opens nothing any more.
    Forgotten,
}

/// How a closed flow was remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remembered {
    /// There was room, or its epoch's cookies are refused altogether.
    Yes,
    /// An earlier epoch's flows made room.
    Displacing,
    /// Not: all that is remembered is of its own epoch or a later one.
    No,
}

/// The closed flows that a daemon remembers. Clones are the same memory: a replay may arrive at another engine than
/// the one that had the flow. Taken once when a connection begins and once when it ends, never for each segment.
#[derive(Clone, Debug)]
pub struct ClosedFlows {
    hash_key: [u64; 2],
    memory: Arc<Mutex<Memory>>,
}

impl ClosedFlows {
    /// An empty memory; `hash_key` should be random.
    pub fn new(hash_key: [u64; 2]) -> Self {
        Self { hash_key, memory: Arc::default() }
    }

    /// What is known of the incarnation that began with this segment.
    pub(crate) fn recall(&self, epoch: u32, key: &AnyFlowKey, ack: Seq, seq: Seq) -> Recall {
        self.lock().recall(epoch, self.fingerprint(key, ack, seq))
    }

    /// Remembers an incarnation by the segment it began with.
    pub(crate) fn insert(&self, epoch: u32, key: &AnyFlowKey, ack: Seq, seq: Seq, limit: u32) -> Remembered {
        self.lock().insert(epoch, self.fingerprint(key, ack, seq), limit)
    }

    /// Whether a flow whose cookie is of `epoch` can be remembered.
    pub(crate) fn has_room(&self, epoch: u32, limit: u32) -> bool {
        self.lock().has_room(epoch, limit)
    }

    /// How many are remembered.
    pub(crate) fn len(&self) -> usize {
        self.lock().len
    }

    /// Forgets every epoch that `alive` refuses.
    pub(crate) fn retain(&self, alive: impl Fn(u32) -> bool) {
        // Tables of megabytes go back to the system when others have the lock again.
        let _forgotten = self.lock().retain(alive);
    }

    fn fingerprint(&self, key: &AnyFlowKey, ack: Seq, seq: Seq) -> u64 {
        hash_with(self.hash_key, key, (ack - 1).0, (seq - 1).0)
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The fingerprints of every epoch whose cookies can still be valid.
#[derive(Debug, Default)]
struct Memory {
    epochs: Vec<(u32, Vec<Table>)>,
    /// Epochs given up to make room for later ones, while their cookies would still be valid.
    forgotten: Vec<u32>,
    len: usize,
}

impl Memory {
    fn recall(&self, epoch: u32, hash: u64) -> Recall {
        if self.forgotten.contains(&epoch) {
            return Recall::Forgotten;
        }
        let tables = self.epochs.iter().find(|(number, _)| *number == epoch);
        let closed = tables.is_some_and(|(_, tables)| tables.iter().rev().any(|table| table.contains(hash)));
        if closed { Recall::Closed } else { Recall::New }
    }

    fn insert(&mut self, epoch: u32, hash: u64, limit: u32) -> Remembered {
        if self.recall(epoch, hash) != Recall::New {
            return Remembered::Yes;
        }
        let mut remembered = Remembered::Yes;
        while self.len >= limit as usize {
            let Some(earlier) = self.oldest_before(epoch) else { return Remembered::No };
            self.forgotten.push(earlier);
            self.epochs.retain(|(number, _)| *number != earlier);
            self.count();
            remembered = Remembered::Displacing;
        }
        let index = self.epochs.iter().position(|(number, _)| *number == epoch).unwrap_or_else(|| {
            let first = Table::new(self.first_places());
            self.epochs.push((epoch, vec![first]));
            self.epochs.len() - 1
        });
        let tables = &mut self.epochs[index].1;
        if !tables.last_mut().is_some_and(|table| table.insert(hash)) {
            let places = tables.last().map_or(FIRST, |table| 2 * table.places.len());
            let mut table = Table::new(places.min(LARGEST));
            table.insert(hash);
            tables.push(table);
        }
        self.len += 1;
        remembered
    }

    /// Places for a new epoch's first table: what any other epoch came to need, so that a steady rate of connections
    /// fills one table, and a search looks at one place in memory.
    fn first_places(&self) -> usize {
        let most = self.epochs.iter().map(|(_, tables)| tables.iter().map(|table| table.len).sum()).max();
        (most.unwrap_or(0) / 3 * 4 + 1).next_power_of_two().clamp(FIRST, LARGEST)
    }

    fn has_room(&self, epoch: u32, limit: u32) -> bool {
        self.len < limit as usize || self.oldest_before(epoch).is_some()
    }

    /// The earliest epoch before `epoch` of which something is remembered.
    fn oldest_before(&self, epoch: u32) -> Option<u32> {
        let age = |number: u32| epoch.wrapping_sub(number) as i32;
        let earlier = self.epochs.iter().map(|(number, _)| *number).filter(|&number| age(number) > 0);
        earlier.max_by_key(|&number| age(number))
    }

    /// What there was of the others.
    fn retain(&mut self, alive: impl Fn(u32) -> bool) -> Vec<(u32, Vec<Table>)> {
        let dead = self.epochs.extract_if(.., |(epoch, _)| !alive(*epoch)).collect();
        self.forgotten.retain(|epoch| alive(*epoch));
        self.count();
        dead
    }

    fn count(&mut self) {
        self.len = self.epochs.iter().flat_map(|(_, tables)| tables).map(|table| table.len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::{Memory, Recall, Remembered};

    /// Spreads like a keyed hash does.
    fn hash(flow: u64) -> u64 {
        (flow + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ (flow + 1).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(32)
    }

    #[test]
    fn every_closed_flow_is_known_until_its_epoch_ends() {
        let mut closed = Memory::default();
        for flow in 0..100_000 {
            assert_eq!(closed.insert((flow % 2) as u32, hash(flow), u32::MAX), Remembered::Yes);
        }
        let is_closed = |closed: &Memory, epoch, flow| closed.recall(epoch, hash(flow)) == Recall::Closed;
        assert!((0..100_000).all(|flow| is_closed(&closed, (flow % 2) as u32, flow)));
        let strangers = (100_000..200_000).filter(|&flow| is_closed(&closed, 0, flow)).count();
        assert!(strangers <= 1, "{strangers} strangers taken for closed flows");
        closed.retain(|epoch| epoch == 1);
        assert!(!is_closed(&closed, 0, 0) && is_closed(&closed, 1, 1));
        assert_eq!(closed.len, 50_000);
    }

    #[test]
    fn at_a_steady_rate_one_table_holds_an_epoch() {
        let mut closed = Memory::default();
        for epoch in 0..4 {
            for flow in 0..200_000 {
                closed.insert(epoch, hash(flow), u32::MAX);
            }
        }
        let tables: Vec<usize> = closed.epochs.iter().map(|(_, tables)| tables.len()).collect();
        assert_eq!(tables, [3, 1, 1, 1]);
    }

    #[test]
    fn the_limit_holds_and_the_same_flow_counts_once() {
        let mut closed = Memory::default();
        assert_eq!(closed.insert(0, 1 << 40, 1 << 20), Remembered::Yes);
        assert_eq!(closed.insert(0, 1 << 40, 1 << 20), Remembered::Yes);
        assert_eq!(closed.len, 1);
        assert_eq!(closed.insert(0, hash(2), 1), Remembered::No);
    }

    #[test]
    fn a_full_memory_gives_up_the_oldest_epoch_and_with_it_its_cookies() {
        let mut closed = Memory::default();
        for (epoch, flow) in [(5, 1), (5, 2), (6, 3), (7, 4)] {
            assert_eq!(closed.insert(epoch, hash(flow), 4), Remembered::Yes);
        }
        assert!(closed.has_room(6, 4) && !closed.has_room(5, 4));
        assert_eq!(closed.insert(5, hash(9), 4), Remembered::No, "nothing is older");
        assert_eq!(closed.insert(7, hash(5), 4), Remembered::Displacing);
        assert_eq!(
            (closed.recall(5, hash(1)), closed.recall(5, hash(9))),
            (Recall::Forgotten, Recall::Forgotten)
        );
        assert_eq!((closed.recall(6, hash(3)), closed.recall(6, hash(9))), (Recall::Closed, Recall::New));
        assert_eq!(closed.insert(5, hash(1), 4), Remembered::Yes, "there is nothing to remember any more");
        assert_eq!(closed.len, 3);
        // The clock was set back: the epoch comes again, with other keys.
        closed.retain(|epoch| epoch != 5);
        assert_eq!(closed.recall(5, hash(1)), Recall::New);
    }
}
