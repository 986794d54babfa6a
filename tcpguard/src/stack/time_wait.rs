//! TIME_WAIT (RFC 9293 §3.4.2, §3.6): a compact exact table per address family. An entry holds what answering a
//! retransmitted FIN and judging a new incarnation take, and nothing else. No timer per entry: a clock hand goes
//! round, and an entry past its time counts as gone before the hand has found it.

use core::ops::Range;
use core::time::Duration;

use tcpguard_common::flow::{AnyFlowKey, FlowKey, V4, V6};
use tcpguard_common::packet::Family;
use tcpguard_common::seq::Seq;

use super::time::Instant;

/// What stays of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remains {
    pub(crate) snd_nxt: Seq,
    pub(crate) rcv_nxt: Seq,
    /// `ts_recent` and the offset of our timestamp clock, when timestamps were in use.
    pub(crate) timestamps: Option<(u32, u32)>,
}

/// Both families' tables.
#[derive(Debug)]
pub(crate) struct TimeWaits {
    v4: Table<V4>,
    v6: Table<V6>,
    next_step: Instant,
}

/// The hand goes round in this many steps.
const STEPS: usize = 16;

impl TimeWaits {
    pub(crate) fn new(capacity: u32, hash_key: [u64; 2]) -> Self {
        Self { v4: Table::new(capacity, hash_key), v6: Table::new(capacity, hash_key), next_step: Instant(0) }
    }

    /// Entries, those not yet found by the hand included.
    pub(crate) fn len(&self) -> usize {
        self.v4.len + self.v6.len
    }

    /// Adds or restarts an entry; which one had to go for it, if the table was full.
    pub(crate) fn insert(&mut self, key: &AnyFlowKey, remains: Remains, now: Instant) -> Option<AnyFlowKey> {
        match key {
            AnyFlowKey::V4(key) => self.v4.insert(key, remains, now).map(AnyFlowKey::V4),
            AnyFlowKey::V6(key) => self.v6.insert(key, remains, now).map(AnyFlowKey::V6),
        }
    }

    /// The entry of `key`, and its age, if its time is not over.
    pub(crate) fn get(
        &self,
        key: &AnyFlowKey,
        now: Instant,
        time_wait: Duration,
    ) -> Option<(Remains, Duration)> {
        let (remains, age) = match key {
            AnyFlowKey::V4(key) => self.v4.get(key, now),
            AnyFlowKey::V6(key) => self.v6.get(key, now),
        }?;
        (age < time_wait).then_some((remains, age))
    }

    /// Starts an entry's time afresh.
    pub(crate) fn restart(&mut self, key: &AnyFlowKey, now: Instant) {
        self.update(key, |word| stamp(now) | word & !TIME_MASK);
    }

    /// Whether an entry may acknowledge something now: once in a while (RFC 5961 §10), however often it is asked to.
    pub(crate) fn may_answer(&mut self, key: &AnyFlowKey, now: Instant) -> bool {
        // Never 0, which says that it has not answered yet.
        let turn = (1 + (now.millis() / ANSWER_EVERY) % u64::from(ANSWER_MASK)) as u32;
        let mut may = false;
        self.update(key, |word| {
            may = word >> ANSWER_SHIFT & ANSWER_MASK != turn;
            word & !(ANSWER_MASK << ANSWER_SHIFT) | turn << ANSWER_SHIFT
        });
        may
    }

    /// Changes the last word of an entry.
    fn update(&mut self, key: &AnyFlowKey, change: impl FnOnce(u32) -> u32) {
        match key {
            AnyFlowKey::V4(key) => self.v4.update(key, change),
            AnyFlowKey::V6(key) => self.v6.update(key, change),
        }
    }

    pub(crate) fn remove(&mut self, key: &AnyFlowKey) {
        match key {
            AnyFlowKey::V4(key) => self.v4.remove(key),
            AnyFlowKey::V6(key) => self.v6.remove(key),
        }
    }

    /// When the hand moves next.
    pub(crate) fn next_step(&self) -> Option<Instant> {
        (self.len() != 0).then_some(self.next_step)
    }

    /// Moves the hand if it is time; calls `expired` for each entry that is over. A round takes an eighth of
    /// 2MSL, so that is how late an expiry is reported at most.
    pub(crate) fn sweep(&mut self, now: Instant, time_wait: Duration, mut expired: impl FnMut(AnyFlowKey)) {
        if self.len() == 0 || now < self.next_step {
            return;
        }
        self.v4.step(now, time_wait, |key| expired(AnyFlowKey::V4(key)));
        self.v6.step(now, time_wait, |key| expired(AnyFlowKey::V6(key)));
        let round = (time_wait / 8).max(Duration::from_millis(16));
        self.next_step = now + round / STEPS as u32;
    }

    /// Every entry whose time is not over, with its age.
    pub(crate) fn iter(
        &self,
        now: Instant,
        time_wait: Duration,
    ) -> impl Iterator<Item = (AnyFlowKey, Duration)> {
        let v4 = self.v4.iter(now).map(|(key, age)| (AnyFlowKey::V4(key), age));
        let v6 = self.v6.iter(now).map(|(key, age)| (AnyFlowKey::V6(key), age));
        v4.chain(v6).filter(move |(_, age)| *age < time_wait)
    }
}

/// A place in one of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    V4(usize),
    V6(usize),
}

impl Place {
    pub(crate) const START: Self = Self::V4(0);
}

impl TimeWaits {
    /// The entries in the `count` places from `start` on whose time is not over, with their ages.
    pub(crate) fn slice(
        &self,
        start: Place,
        count: usize,
        now: Instant,
        time_wait: Duration,
    ) -> impl Iterator<Item = (AnyFlowKey, Duration)> {
        let (v4, v6) = match start {
            Place::V4(start) => (start..start + count, 0..0),
            Place::V6(start) => (0..0, start..start + count),
        };
        let v4 = self.v4.slice(v4, now).map(|(key, age)| (AnyFlowKey::V4(key), age));
        let v6 = self.v6.slice(v6, now).map(|(key, age)| (AnyFlowKey::V6(key), age));
        v4.chain(v6).filter(move |(_, age)| *age < time_wait)
    }

    /// The place after such a slice; `None` when no entry can follow.
    pub(crate) fn after_slice(&self, start: Place, count: usize) -> Option<Place> {
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
}

/// Bytes of an entry behind the key: [`Remains`] and the time.
const TAIL: usize = 20;

/// A family whose entries pack into words, 32 bytes for IPv4 and 56 for IPv6. All zero is no entry: the
/// allocator hands such memory out untouched, so capacity costs nothing until it is used.
trait Packed: Family {
    type Entry: Copy + AsRef<[u64]> + PartialEq + core::fmt::Debug;
    const EMPTY: Self::Entry;
    fn pack(key: &FlowKey<Self>, tail: [u8; TAIL]) -> Self::Entry;
    fn unpack(entry: &Self::Entry) -> (FlowKey<Self>, [u8; TAIL]);
    fn vacant(places: usize) -> Vec<Self::Entry>;
}

macro_rules! packed {
    ($address:ident, $len:literal, $words:literal) => {
        impl Packed for $address {
            type Entry = [u64; $words];
            const EMPTY: Self::Entry = [0; $words];

            fn pack(key: &FlowKey<Self>, tail: [u8; TAIL]) -> Self::Entry {
                let mut bytes = [0; $words * 8];
                bytes[..$len].copy_from_slice(&key.peer.0);
                bytes[$len..2 * $len].copy_from_slice(&key.local.0);
                bytes[2 * $len..2 * $len + 2].copy_from_slice(&key.peer_port);
                bytes[2 * $len + 2..2 * $len + 4].copy_from_slice(&key.local_port);
                bytes[2 * $len + 4..].copy_from_slice(&tail);
                let mut entry = Self::EMPTY;
                for (word, bytes) in entry.iter_mut().zip(bytes.as_chunks().0) {
                    *word = u64::from_ne_bytes(*bytes);
                }
                entry
            }

            fn unpack(entry: &Self::Entry) -> (FlowKey<Self>, [u8; TAIL]) {
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
                (key, array(&bytes, 2 * $len + 4))
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

/// Bits of the last word: an entry is there; it has timestamps; when it last answered, in units of [`ANSWER_EVERY`]
/// milliseconds, modulo [`ANSWER_MASK`] and counted from 1; and since when it waits, in milliseconds, modulo four hours.
const OCCUPIED: u32 = 1;
const STAMPED: u32 = 2;
const ANSWER_SHIFT: u32 = 2;
const ANSWER_MASK: u32 = 0x3f;
const ANSWER_EVERY: u64 = 128;
const TIME_SHIFT: u32 = 8;
const TIME_MASK: u32 = u32::MAX << TIME_SHIFT;

/// The time now, in its place.
fn stamp(now: Instant) -> u32 {
    (now.millis() as u32) << TIME_SHIFT
}

fn pack_tail(remains: &Remains, now: Instant) -> [u8; TAIL] {
    let (recent, offset) = remains.timestamps.unwrap_or_default();
    let flags = OCCUPIED | if remains.timestamps.is_some() { STAMPED } else { 0 };
    let words = [remains.snd_nxt.0, remains.rcv_nxt.0, recent, offset, stamp(now) | flags];
    let mut tail = [0; TAIL];
    for (bytes, word) in tail.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_ne_bytes();
    }
    tail
}

fn unpack_tail(tail: [u8; TAIL], now: Instant) -> (Remains, Duration) {
    let word = |at: usize| u32::from_ne_bytes(array(&tail, at));
    let since = word(16);
    let remains = Remains {
        snd_nxt: Seq(word(0)),
        rcv_nxt: Seq(word(4)),
        timestamps: (since & STAMPED != 0).then(|| (word(8), word(12))),
    };
    let age = stamp(now).wrapping_sub(since & TIME_MASK) >> TIME_SHIFT;
    (remains, Duration::from_millis(age.into()))
}

/// An open-addressed table that never grows: at most seven eighths of its places are taken.
#[derive(Debug)]
struct Table<A: Packed> {
    places: Vec<A::Entry>,
    len: usize,
    capacity: usize,
    hand: usize,
    hash_key: [u64; 2],
}

impl<A: Packed> Table<A> {
    fn new(capacity: u32, hash_key: [u64; 2]) -> Self {
        let capacity = capacity.max(1) as usize;
        Self { places: A::vacant(capacity * 8 / 7 + 2), len: 0, capacity, hand: 0, hash_key }
    }

    fn get(&self, key: &FlowKey<A>, now: Instant) -> Option<(Remains, Duration)> {
        if self.len == 0 {
            return None;
        }
        let place = self.find(key).ok()?;
        Some(unpack_tail(A::unpack(&self.places[place]).1, now))
    }

    fn insert(&mut self, key: &FlowKey<A>, remains: Remains, now: Instant) -> Option<FlowKey<A>> {
        let entry = A::pack(key, pack_tail(&remains, now));
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

    fn update(&mut self, key: &FlowKey<A>, change: impl FnOnce(u32) -> u32) {
        if let Ok(place) = self.find(key) {
            let (key, mut tail) = A::unpack(&self.places[place]);
            let word = change(u32::from_ne_bytes(array(&tail, TAIL - 4)));
            tail[TAIL - 4..].copy_from_slice(&word.to_ne_bytes());
            self.places[place] = A::pack(&key, tail);
        }
    }

    fn remove(&mut self, key: &FlowKey<A>) {
        if let Ok(place) = self.find(key) {
            self.vacate(place);
        }
    }

    /// Makes room: of the next few entries under the hand, the oldest goes.
    fn evict(&mut self, now: Instant) -> Option<FlowKey<A>> {
        const SAMPLE: usize = 8;
        let places = self.places.len();
        let mut taken = (self.hand..self.hand + places)
            .map(|place| place % places)
            .filter(|&place| self.places[place] != A::EMPTY)
            .take(SAMPLE)
            .map(|place| (unpack_tail(A::unpack(&self.places[place]).1, now).1, place));
        let first = taken.next()?;
        let (_, place) = taken.fold(first, |oldest, other| if other.0 > oldest.0 { other } else { oldest });
        let key = A::unpack(&self.places[place]).0;
        self.vacate(place);
        self.hand = (self.hand + SAMPLE) % places;
        Some(key)
    }

    fn step(&mut self, now: Instant, time_wait: Duration, mut expired: impl FnMut(FlowKey<A>)) {
        let mut left = if self.len == 0 { 0 } else { self.places.len().div_ceil(STEPS) };
        while left > 0 {
            let entry = self.places[self.hand];
            if entry != A::EMPTY {
                let (key, tail) = A::unpack(&entry);
                if unpack_tail(tail, now).1 >= time_wait {
                    // What closes the gap may be over too: the hand stays.
                    self.vacate(self.hand);
                    expired(key);
                    continue;
                }
            }
            self.hand = (self.hand + 1) % self.places.len();
            left -= 1;
        }
    }

    fn iter(&self, now: Instant) -> impl Iterator<Item = (FlowKey<A>, Duration)> {
        self.slice(0..self.places.len(), now)
    }

    fn slice(&self, places: Range<usize>, now: Instant) -> impl Iterator<Item = (FlowKey<A>, Duration)> {
        let places = places.start.min(self.places.len())..places.end.min(self.places.len());
        self.places[places].iter().filter(|entry| **entry != A::EMPTY).map(move |entry| {
            let (key, tail) = A::unpack(entry);
            (key, unpack_tail(tail, now).1)
        })
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
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const LONG: Duration = Duration::from_secs(60);

    fn key(flow: u16) -> AnyFlowKey {
        let peer = if flow.is_multiple_of(2) {
            format!("10.0.0.1:{}", flow + 1)
        } else {
            format!("[fd00::1]:{}", flow + 1)
        };
        let local = if flow.is_multiple_of(2) { "10.0.0.2:80" } else { "[fd00::2]:80" };
        AnyFlowKey::new(peer.parse().unwrap(), local.parse().unwrap()).unwrap()
    }

    fn remains(flow: u16) -> Remains {
        let timestamps = flow.is_multiple_of(3).then_some((7, 8));
        Remains { snd_nxt: Seq(flow.into()), rcv_nxt: Seq(u32::MAX - u32::from(flow)), timestamps }
    }

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    #[test]
    fn an_entry_is_32_bytes_for_ipv4_and_56_for_ipv6() {
        assert_eq!(size_of::<<V4 as Packed>::Entry>(), 32);
        assert_eq!(size_of::<<V6 as Packed>::Entry>(), 56);
    }

    #[test]
    fn entries_last_exactly_as_long_as_the_tunable_says_now() {
        let mut table = TimeWaits::new(100, [1, 2]);
        table.insert(&key(4), remains(4), at(10));
        assert_eq!(table.get(&key(4), at(69), LONG), Some((remains(4), Duration::from_secs(59))));
        assert_eq!(table.get(&key(4), at(70), LONG), None);
        assert_eq!(
            table.get(&key(4), at(69), Duration::from_secs(5)),
            None,
            "a shorter 2MSL applies at once"
        );
        table.restart(&key(4), at(69));
        assert_eq!(
            table.get(&key(4), at(128), LONG),
            Some((remains(4), Duration::from_secs(59))),
            "restarted"
        );
    }

    #[test]
    fn an_entry_answers_eight_times_a_second_at_most_and_waits_no_longer_for_it() {
        for flow in [3, 4] {
            let mut table = TimeWaits::new(100, [1, 2]);
            table.insert(&key(flow), remains(flow), at(10));
            let asked = (0..10_000).map(|millisecond| at(10) + Duration::from_millis(millisecond));
            let answers = asked.filter(|&now| table.may_answer(&key(flow), now)).count();
            assert!((78..=80).contains(&answers), "{answers}");
            table.restart(&key(flow), at(20));
            assert!(!table.may_answer(&key(flow), at(20)), "restarting does not forget it");
            let age = Duration::from_secs(59);
            assert_eq!(table.get(&key(flow), at(79), LONG), Some((remains(flow), age)));
            assert!(!table.may_answer(&key(flow + 2), at(20)), "there is no such entry");
        }
    }

    #[test]
    fn a_full_table_gives_up_the_oldest_of_a_few() {
        let mut table = TimeWaits::new(16, [1, 2]);
        for flow in 0..16 {
            assert_eq!(table.insert(&key(2 * flow), remains(1), at(flow.into())), None);
        }
        let evicted = table.insert(&key(100), remains(1), at(20)).unwrap();
        assert_eq!(table.len(), 16);
        assert!(table.get(&evicted, at(20), LONG).is_none());
        assert!(table.get(&key(100), at(20), LONG).is_some());
    }

    proptest! {
        #[test]
        fn agrees_with_a_map_while_time_passes(
            operations in prop::collection::vec((0u16..300, 0u8..3, 0u64..3), 1..1500),
        ) {
            let mut table = TimeWaits::new(400, [3, 4]);
            let mut model: HashMap<AnyFlowKey, (Remains, u64)> = HashMap::new();
            let mut now = 1000;
            for (flow, operation, seconds) in operations {
                now += seconds;
                let mut reported = Vec::new();
                table.sweep(at(now), LONG, |key| reported.push(key));
                for key in reported {
                    prop_assert!(model.remove(&key).is_some_and(|(_, since)| now - since >= 60));
                }
                match operation {
                    0 => {
                        prop_assert_eq!(table.insert(&key(flow), remains(flow), at(now)), None);
                        model.insert(key(flow), (remains(flow), now));
                    }
                    1 => {
                        table.remove(&key(flow));
                        model.remove(&key(flow));
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), model.len());
                let expected = model.get(&key(flow)).filter(|(_, since)| now - since < 60);
                let found = table.get(&key(flow), at(now), LONG).map(|(remains, _)| remains);
                prop_assert_eq!(found, expected.map(|(remains, _)| *remains));
            }
            let listed = table.iter(at(now), LONG).count();
            prop_assert_eq!(listed, model.values().filter(|(_, since)| now - since < 60).count());
        }
    }
}
