//! Compact exact tables of flows, one for each address family: open-addressed, bounded, without a pointer or a timer per
//! entry. An entry is the flow's key and five words. What the words mean, and when an entry is over, is its owner's
//! business; the tables know its age alone, since the time is in the last word.

use core::ops::Range;
use core::time::Duration;

use tcpguard_common::flow::{AnyFlowKey, FlowKey, V4, V6};
use tcpguard_common::packet::Family;

use super::time::Instant;

/// What an entry holds behind its key. The last word is the time in the bits of [`TIME_MASK`], [`OCCUPIED`], and whatever
/// the owner puts into the bits of [`OWN_MASK`].
pub(super) type Tail = [u32; 5];

const OCCUPIED: u32 = 1;
/// Bits of the last word that are the owner's.
pub(super) const OWN_MASK: u32 = 0xfe;
/// Since when an entry is there, in milliseconds, modulo four hours.
const TIME_MASK: u32 = u32::MAX << TIME_SHIFT;
const TIME_SHIFT: u32 = 8;

/// `last`, the last word of an entry, with the time that is `now`.
pub(super) fn stamped(last: u32, now: Instant) -> u32 {
    last & OWN_MASK | OCCUPIED | (now.millis() as u32) << TIME_SHIFT
}

/// How old an entry is.
pub(super) fn age(tail: &Tail, now: Instant) -> Duration {
    let age = stamped(0, now).wrapping_sub(tail[4] & TIME_MASK | OCCUPIED) >> TIME_SHIFT;
    Duration::from_millis(age.into())
}

/// Both families' tables.
#[derive(Debug)]
pub(super) struct Tables {
    v4: Table<V4>,
    v6: Table<V6>,
}

impl Tables {
    /// Tables for `capacity` entries of each family in `places` places, which are more. The hash must be keyed: whoever
    /// can choose addresses must not be able to choose places.
    pub(super) fn new(capacity: u32, places: usize, hash_key: [u64; 2]) -> Self {
        Self { v4: Table::new(capacity, places, hash_key), v6: Table::new(capacity, places, hash_key) }
    }

    /// Moves all entries with their ages into `larger`, or smaller, tables, which take the place of these; shows those that
    /// found no room there to `evicted`.
    pub(super) fn move_to(&mut self, larger: Self, now: Instant, mut evicted: impl FnMut(AnyFlowKey, Tail)) {
        let before = core::mem::replace(self, larger);
        for (key, tail) in before.iter() {
            let since = Instant(now.0.saturating_sub(age(&tail, now).as_nanos() as u64));
            if let Some((key, tail)) = self.insert(&key, tail, since) {
                evicted(key, tail);
            }
        }
    }

    /// Entries of both.
    pub(super) fn len(&self) -> usize {
        self.v4.len + self.v6.len
    }

    /// Entries of each family, IPv4 first.
    pub(super) fn lens(&self) -> [usize; 2] {
        [self.v4.len, self.v6.len]
    }

    /// Entries of the family that has more of them.
    pub(super) fn fullest(&self) -> usize {
        self.v4.len.max(self.v6.len)
    }

    /// Memory held for each family, IPv4 first.
    pub(super) fn bytes(&self) -> [usize; 2] {
        [size_of_val(&*self.v4.places), size_of_val(&*self.v6.places)]
    }

    pub(super) fn get(&self, key: &AnyFlowKey) -> Option<Tail> {
        match key {
            AnyFlowKey::V4(key) => self.v4.get(key),
            AnyFlowKey::V6(key) => self.v6.get(key),
        }
    }

    /// Adds or replaces an entry, whose time starts now; which one had to go for it, if the table was full: the oldest of
    /// a few.
    pub(super) fn insert(
        &mut self,
        key: &AnyFlowKey,
        tail: Tail,
        now: Instant,
    ) -> Option<(AnyFlowKey, Tail)> {
        match key {
            AnyFlowKey::V4(key) => {
                self.v4.insert(key, tail, now).map(|(key, tail)| (AnyFlowKey::V4(key), tail))
            }
            AnyFlowKey::V6(key) => {
                self.v6.insert(key, tail, now).map(|(key, tail)| (AnyFlowKey::V6(key), tail))
            }
        }
    }

    /// Changes an entry, if it is there.
    pub(super) fn update(&mut self, key: &AnyFlowKey, change: impl FnOnce(&mut Tail)) {
        match key {
            AnyFlowKey::V4(key) => self.v4.update(key, change),
            AnyFlowKey::V6(key) => self.v6.update(key, change),
        }
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, key: &AnyFlowKey) -> Option<Tail> {
        match key {
            AnyFlowKey::V4(key) => self.v4.remove(key),
            AnyFlowKey::V6(key) => self.v6.remove(key),
        }
    }

    /// Shows the entries in the next of `steps` parts of each table to `stays`, which may change them; those for which it
    /// says no go.
    pub(super) fn step(&mut self, steps: usize, mut stays: impl FnMut(AnyFlowKey, &mut Tail) -> bool) {
        self.v4.step(steps, |key, tail| stays(AnyFlowKey::V4(key), tail));
        self.v6.step(steps, |key, tail| stays(AnyFlowKey::V6(key), tail));
    }

    /// Every entry.
    pub(super) fn iter(&self) -> impl Iterator<Item = (AnyFlowKey, Tail)> {
        self.within(0..usize::MAX, 0..usize::MAX)
    }

    /// The entries in the `count` places from `start` on.
    pub(super) fn slice(&self, start: Place, count: usize) -> impl Iterator<Item = (AnyFlowKey, Tail)> {
        match start {
            Place::V4(start) => self.within(start..start + count, 0..0),
            Place::V6(start) => self.within(0..0, start..start + count),
        }
    }

    /// The place after such a slice; `None` when no entry can follow.
    pub(super) fn after_slice(&self, start: Place, count: usize) -> Option<Place> {
        match start {
            Place::V4(start) if self.v4.len > 0 && start + count < self.v4.places.len() => {
                Some(Place::V4(start + count))
            }
            Place::V4(_) if self.v6.len > 0 => Some(Place::V6(0)),
            Place::V6(start) if self.v6.len > 0 && start + count < self.v6.places.len() => {
                Some(Place::V6(start + count))
            }
            Place::V4(_) | Place::V6(_) => None,
        }
    }

    fn within(&self, v4: Range<usize>, v6: Range<usize>) -> impl Iterator<Item = (AnyFlowKey, Tail)> {
        let v4 = self.v4.slice(v4).map(|(key, tail)| (AnyFlowKey::V4(key), tail));
        let v6 = self.v6.slice(v6).map(|(key, tail)| (AnyFlowKey::V6(key), tail));
        v4.chain(v6)
    }
}

/// A place in one of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    V4(usize),
    V6(usize),
}

impl Place {
    pub(super) const START: Self = Self::V4(0);
}

/// A family whose entries pack into words, 32 bytes for IPv4 and 56 for IPv6. All zero is no entry: the
/// allocator hands such memory out untouched, so capacity costs nothing until it is used.
trait Packed: Family {
    type Entry: Copy + AsRef<[u64]> + PartialEq + core::fmt::Debug;
    const EMPTY: Self::Entry;
    fn pack(key: &FlowKey<Self>, tail: &Tail) -> Self::Entry;
    fn unpack(entry: &Self::Entry) -> (FlowKey<Self>, Tail);
    fn vacant(places: usize) -> Vec<Self::Entry>;
}

macro_rules! packed {
    ($address:ident, $len:literal, $words:literal) => {
        impl Packed for $address {
            type Entry = [u64; $words];
            const EMPTY: Self::Entry = [0; $words];

            fn pack(key: &FlowKey<Self>, tail: &Tail) -> Self::Entry {
                let mut bytes = [0; $words * 8];
                bytes[..$len].copy_from_slice(&key.peer.0);
                bytes[$len..2 * $len].copy_from_slice(&key.local.0);
                bytes[2 * $len..2 * $len + 2].copy_from_slice(&key.peer_port);
                bytes[2 * $len + 2..2 * $len + 4].copy_from_slice(&key.local_port);
                for (bytes, word) in bytes[2 * $len + 4..].as_chunks_mut().0.iter_mut().zip(tail) {
                    *bytes = word.to_ne_bytes();
                }
                let mut entry = Self::EMPTY;
                for (word, bytes) in entry.iter_mut().zip(bytes.as_chunks().0) {
                    *word = u64::from_ne_bytes(*bytes);
                }
                entry
            }

            fn unpack(entry: &Self::Entry) -> (FlowKey<Self>, Tail) {
                let mut bytes = [0; $words * 8];
                for (word, bytes) in entry.iter().zip(bytes.as_chunks_mut().0) {
                    *bytes = word.to_ne_bytes();
                }
                let key = FlowKey {
                    peer: Self(array(&bytes, 0)),
                    local: Self(array(&bytes, $len)),
                    peer_port: array(&bytes, 2 * $len),
                    local_port: array(&bytes, 2 * $len + 2),
                };
                let mut tail = Tail::default();
                for (word, bytes) in tail.iter_mut().zip(bytes[2 * $len + 4..].as_chunks().0) {
                    *word = u32::from_ne_bytes(*bytes);
                }
                (key, tail)
            }

            fn vacant(places: usize) -> Vec<Self::Entry> {
                vec![[0; $words]; places]
            }
        }
    };
}
packed!(V4, 4, 4);
packed!(V6, 16, 7);

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// An open-addressed table that never grows.
#[derive(Debug)]
struct Table<A: Packed> {
    places: Vec<A::Entry>,
    len: usize,
    capacity: usize,
    hand: usize,
    hash_key: [u64; 2],
}

impl<A: Packed> Table<A> {
    fn new(capacity: u32, places: usize, hash_key: [u64; 2]) -> Self {
        let capacity = capacity.max(1) as usize;
        Self { places: A::vacant(places.max(capacity + 1)), len: 0, capacity, hand: 0, hash_key }
    }

    fn get(&self, key: &FlowKey<A>) -> Option<Tail> {
        if self.len == 0 {
            return None;
        }
        let place = self.find(key).ok()?;
        Some(A::unpack(&self.places[place]).1)
    }

    fn insert(&mut self, key: &FlowKey<A>, mut tail: Tail, now: Instant) -> Option<(FlowKey<A>, Tail)> {
        tail[4] = stamped(tail[4], now);
        let entry = A::pack(key, &tail);
        if let Ok(place) = self.find(key) {
            self.places[place] = entry;
            return None;
        }
        let evicted = if self.len >= self.capacity { self.evict(now) } else { None };
        if let Err(place) = self.find(key) {
            self.places[place] = entry;
            self.len += 1;
        }
        evicted
    }

    fn update(&mut self, key: &FlowKey<A>, change: impl FnOnce(&mut Tail)) {
        if let Ok(place) = self.find(key) {
            let (key, mut tail) = A::unpack(&self.places[place]);
            change(&mut tail);
            self.places[place] = A::pack(&key, &tail);
        }
    }

    fn remove(&mut self, key: &FlowKey<A>) -> Option<Tail> {
        if self.len == 0 {
            return None;
        }
        let place = self.find(key).ok()?;
        let (_, tail) = A::unpack(&self.places[place]);
        self.vacate(place);
        Some(tail)
    }

    /// Makes room: of the next few entries under the hand, the oldest goes.
    fn evict(&mut self, now: Instant) -> Option<(FlowKey<A>, Tail)> {
        const SAMPLE: usize = 8;
        let places = self.places.len();
        let taken = (self.hand..self.hand + places)
            .map(|place| place % places)
            .filter(|&place| self.places[place] != A::EMPTY)
            .take(SAMPLE);
        let oldest = taken
            .map(|place| (age(&A::unpack(&self.places[place]).1, now), place))
            .reduce(|oldest, other| if other.0 > oldest.0 { other } else { oldest });
        let (_, place) = oldest?;
        let evicted = A::unpack(&self.places[place]);
        self.vacate(place);
        self.hand = (self.hand + SAMPLE) % places;
        Some(evicted)
    }

    fn step(&mut self, steps: usize, mut stays: impl FnMut(FlowKey<A>, &mut Tail) -> bool) {
        let mut left = if self.len == 0 { 0 } else { self.places.len().div_ceil(steps) };
        while left > 0 {
            let entry = self.places[self.hand];
            if entry != A::EMPTY {
                let (key, tail) = A::unpack(&entry);
                let mut changed = tail;
                if !stays(key, &mut changed) {
                    // What closes the gap may be over too: the hand stays.
                    self.vacate(self.hand);
                    continue;
                }
                if changed != tail {
                    self.places[self.hand] = A::pack(&key, &changed);
                }
            }
            self.hand = (self.hand + 1) % self.places.len();
            left -= 1;
        }
    }

    fn slice(&self, places: Range<usize>) -> impl Iterator<Item = (FlowKey<A>, Tail)> {
        let places = places.start.min(self.places.len())..places.end.min(self.places.len());
        self.places[places].iter().filter(|entry| **entry != A::EMPTY).map(A::unpack)
    }

    /// Where `key` is, or the empty place where it would go.
    fn find(&self, key: &FlowKey<A>) -> Result<usize, usize> {
        let mut place = self.home(key);
        loop {
            let entry = &self.places[place];
            if *entry == A::EMPTY {
                return Err(place);
            }
            if A::unpack(entry).0 == *key {
                return Ok(place);
            }
            place = self.after(place);
        }
    }

    /// Empties a place and closes the gap, so that no tombstones lengthen later searches.
    fn vacate(&mut self, mut hole: usize) {
        self.len -= 1;
        let places = self.places.len();
        let mut next = self.after(hole);
        while self.places[next] != A::EMPTY {
            let home = self.home(&A::unpack(&self.places[next]).0);
            let from_home = (next + places - home) % places;
            let from_hole = (next + places - hole) % places;
            if from_home >= from_hole {
                self.places[hole] = self.places[next];
                hole = next;
            }
            next = self.after(next);
        }
        self.places[hole] = A::EMPTY;
    }

    fn home(&self, key: &FlowKey<A>) -> usize {
        let hash = A::hash_flow_fast(self.hash_key, key);
        ((u128::from(hash) * self.places.len() as u128) >> 64) as usize
    }

    fn after(&self, place: usize) -> usize {
        if place + 1 == self.places.len() { 0 } else { place + 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::{Packed, V4, V6};

    #[test]
    fn an_entry_is_32_bytes_for_ipv4_and_56_for_ipv6() {
        assert_eq!(size_of::<<V4 as Packed>::Entry>(), 32);
        assert_eq!(size_of::<<V6 as Packed>::Entry>(), 56);
    }
}
