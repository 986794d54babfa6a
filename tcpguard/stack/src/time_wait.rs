//! TIME_WAIT (RFC 9293 §3.4.2, §3.6): a compact exact table per address family. An entry holds what answering a
//! retransmitted FIN and judging a new incarnation take, and nothing else. No timer per entry: a clock hand goes
//! round, and an entry past its time counts as gone before the hand has found it.

use core::time::Duration;

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::seq::Seq;

use super::packed::{OWN_MASK, Place, Tables, Tail, age, stamped};
use super::time::Instant;

/// What stays of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remains {
    pub(crate) snd_nxt: Seq,
    pub(crate) rcv_nxt: Seq,
    /// `ts_recent` and the offset of our timestamp clock, when timestamps were in use.
    pub(crate) timestamps: Option<(u32, u32)>,
    /// Whether a reset came from the peer, exactly at RCV.NXT: it knows nothing of the connection any more.
    pub(crate) disowned: bool,
}

/// Both families' entries.
#[derive(Debug)]
pub(crate) struct TimeWaits {
    tables: Tables,
    /// Entries there is room for, of each address family.
    limit: u32,
    hash_key: [u64; 2],
    next_step: Instant,
}

/// The hand goes round in this many steps.
const STEPS: usize = 16;

impl TimeWaits {
    /// Tables for `limit` entries of each address family.
    pub(crate) fn new(limit: u32, hash_key: [u64; 2]) -> Self {
        Self { tables: tables(limit, hash_key), limit, hash_key, next_step: Instant(0) }
    }

    /// Makes room for `limit` entries of each family. Those that are there stay, as far as there is room for them; shows the
    /// others to `evicted`.
    pub(crate) fn set_limit(&mut self, limit: u32, now: Instant, mut evicted: impl FnMut(AnyFlowKey)) {
        if limit != self.limit {
            self.limit = limit;
            self.tables.move_to(tables(limit, self.hash_key), now, |key, _| evicted(key));
        }
    }

    /// Entries, those not yet found by the hand included.
    pub(crate) fn len(&self) -> usize {
        self.tables.len()
    }

    /// Entries of each family, IPv4 first.
    pub(crate) fn lens(&self) -> [usize; 2] {
        self.tables.lens()
    }

    /// Memory held for each family, IPv4 first.
    pub(crate) fn bytes(&self) -> [usize; 2] {
        self.tables.bytes()
    }

    /// Adds or restarts an entry; which one had to go for it, if the table was full.
    pub(crate) fn insert(&mut self, key: &AnyFlowKey, remains: Remains, now: Instant) -> Option<AnyFlowKey> {
        self.tables.insert(key, pack(&remains), now).map(|(key, _)| key)
    }

    /// The entry of `key`, and its age, if its time is not over.
    pub(crate) fn get(
        &self,
        key: &AnyFlowKey,
        now: Instant,
        time_wait: Duration,
    ) -> Option<(Remains, Duration)> {
        let tail = self.tables.get(key)?;
        let age = age(&tail, now);
        (age < time_wait).then(|| (unpack(&tail), age))
    }

    /// Starts an entry's time afresh: the peer still has the connection.
    pub(crate) fn restart(&mut self, key: &AnyFlowKey, now: Instant) {
        self.tables.update(key, |tail| tail[4] = stamped(tail[4] & !DISOWNED, now));
    }

    /// Notes that the peer has [disowned](Remains::disowned) the connection. The entry stays as long as it would have.
    pub(crate) fn disown(&mut self, key: &AnyFlowKey) {
        self.tables.update(key, |tail| tail[4] |= DISOWNED);
    }

    /// Whether an entry may acknowledge something now: once in a while (RFC 5961 §10), however often it is asked to.
    pub(crate) fn may_answer(&mut self, key: &AnyFlowKey, now: Instant) -> bool {
        // Never 0, which says that it has not answered yet.
        let turn = (1 + (now.millis() / ANSWER_EVERY) % u64::from(ANSWER_MASK)) as u32;
        let mut may = false;
        self.tables.update(key, |tail| {
            may = tail[4] >> ANSWER_SHIFT & ANSWER_MASK != turn;
            tail[4] = tail[4] & !(ANSWER_MASK << ANSWER_SHIFT) | turn << ANSWER_SHIFT;
        });
        may
    }

    pub(crate) fn remove(&mut self, key: &AnyFlowKey) {
        self.tables.remove(key);
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
        self.tables.step(STEPS, |key, tail| {
            let stays = age(tail, now) < time_wait;
            if !stays {
                expired(key);
            }
            stays
        });
        let round = (time_wait / 8).max(Duration::from_millis(16));
        self.next_step = now + round / STEPS as u32;
    }

    /// Every entry whose time is not over, with its age.
    pub(crate) fn iter(
        &self,
        now: Instant,
        time_wait: Duration,
    ) -> impl Iterator<Item = (AnyFlowKey, Duration)> {
        alive(self.tables.iter(), now, time_wait)
    }

    /// The entries in the `count` places from `start` on whose time is not over, with their ages.
    pub(crate) fn slice(
        &self,
        start: Place,
        count: usize,
        now: Instant,
        time_wait: Duration,
    ) -> impl Iterator<Item = (AnyFlowKey, Duration)> {
        alive(self.tables.slice(start, count), now, time_wait)
    }

    /// The place after such a slice; `None` when no entry can follow.
    pub(crate) fn after_slice(&self, start: Place, count: usize) -> Option<Place> {
        self.tables.after_slice(start, count)
    }
}

fn tables(limit: u32, hash_key: [u64; 2]) -> Tables {
    // At most eight ninths of the places are taken.
    Tables::new(limit, limit as usize * 9 / 8 + 2, hash_key)
}

fn alive(
    entries: impl Iterator<Item = (AnyFlowKey, Tail)>,
    now: Instant,
    time_wait: Duration,
) -> impl Iterator<Item = (AnyFlowKey, Duration)> {
    entries.map(move |(key, tail)| (key, age(&tail, now))).filter(move |(_, age)| *age < time_wait)
}

/// Bits of the last word: whether it has timestamps; whether the peer has disowned it; and when it last answered, in units of
/// [`ANSWER_EVERY`] milliseconds, modulo [`ANSWER_MASK`] and counted from 1.
const STAMPED: u32 = 2;
const DISOWNED: u32 = 4;
const ANSWER_SHIFT: u32 = 3;
const ANSWER_MASK: u32 = 0x1f;
const ANSWER_EVERY: u64 = 128;
const _: () = assert!((STAMPED | DISOWNED | ANSWER_MASK << ANSWER_SHIFT) & !OWN_MASK == 0);

fn pack(remains: &Remains) -> Tail {
    let (recent, offset) = remains.timestamps.unwrap_or_default();
    let stamped = if remains.timestamps.is_some() { STAMPED } else { 0 };
    let disowned = if remains.disowned { DISOWNED } else { 0 };
    [remains.snd_nxt.0, remains.rcv_nxt.0, recent, offset, stamped | disowned]
}

fn unpack(tail: &Tail) -> Remains {
    let [snd_nxt, rcv_nxt, recent, offset, last] = *tail;
    Remains {
        snd_nxt: Seq(snd_nxt),
        rcv_nxt: Seq(rcv_nxt),
        timestamps: (last & STAMPED != 0).then_some((recent, offset)),
        disowned: last & DISOWNED != 0,
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
        let (snd_nxt, rcv_nxt) = (Seq(flow.into()), Seq(u32::MAX - u32::from(flow)));
        Remains { snd_nxt, rcv_nxt, timestamps, disowned: false }
    }

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
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

    /// The whole table, slack included, when it is as full as it may be.
    #[test]
    fn an_entry_takes_40_bytes_for_ipv4_and_64_for_ipv6_at_most() {
        const LIMIT: u32 = 30_000;
        let mut table = TimeWaits::new(LIMIT, [1, 2]);
        let mut evicted = 0;
        for flow in 0..60_000 {
            evicted += usize::from(table.insert(&key(flow), remains(flow), at(10)).is_some());
        }
        assert_eq!((table.lens(), evicted), ([30_000; 2], 0), "each family has room for its own");
        let [v4, v6] = table.bytes().map(|bytes| bytes / LIMIT as usize);
        assert!((32..=40).contains(&v4) && (56..=64).contains(&v6), "{v4} and {v6} bytes");
    }

    #[test]
    fn a_peer_that_disowned_a_connection_owns_it_again_with_its_next_fin() {
        for flow in [3, 4] {
            let mut table = TimeWaits::new(100, [1, 2]);
            let disowned = |table: &TimeWaits| table.get(&key(flow), at(20), LONG).unwrap();
            table.insert(&key(flow), remains(flow), at(10));
            table.disown(&key(flow));
            let (found, age) = disowned(&table);
            assert_eq!(found, Remains { disowned: true, ..remains(flow) });
            assert_eq!(age, Duration::from_secs(10), "nothing is restarted by it");
            assert!(table.may_answer(&key(flow), at(20)));
            assert!(disowned(&table).0.disowned, "nor forgotten with an answer");
            table.restart(&key(flow), at(20));
            assert_eq!(disowned(&table), (remains(flow), Duration::ZERO));
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

    #[test]
    fn a_new_limit_applies_to_what_is_there_and_names_what_has_no_room() {
        let mut table = TimeWaits::new(100, [1, 2]);
        for flow in 0..100 {
            table.insert(&key(2 * flow), remains(flow), at(flow.into()));
        }
        table.set_limit(200, at(100), |key| panic!("{key} had room"));
        let kept = |table: &TimeWaits, flow| table.get(&key(2 * flow), at(100), 2 * LONG);
        for flow in 0..100 {
            let age = Duration::from_secs(100 - u64::from(flow));
            assert_eq!(kept(&table, flow), Some((remains(flow), age)));
        }
        let mut evicted = Vec::new();
        table.set_limit(16, at(100), |key| evicted.push(key));
        assert_eq!((table.len(), evicted.len()), (16, 84));
        for flow in 0..100 {
            assert_eq!(kept(&table, flow).is_none(), evicted.contains(&key(2 * flow)), "{flow}");
        }
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
