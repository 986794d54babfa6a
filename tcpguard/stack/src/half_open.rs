//! The half-open queue: what answering a SYN once more takes, for passive opens in SYN_RCVD (RFC 9293 §3.10.7.2). Bounded;
//! when it is full, the oldest of a few entries makes room. An entry is little more than its flow's key: the initial
//! sequence number of the answer is a cookie, so that it follows from what the client sent. No timer per entry: a clock
//! hand goes round. What is answered, and when a handshake is complete, is judged in `passive` and `adopt`.

use core::time::Duration;
use std::collections::HashMap;

use tcpguard_common::cookie::SynOptions;
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::build::Link;

use super::config::Config;
use super::packed::{OWN_MASK, Place, Tables, Tail, age};
use super::time::Instant;

/// A SYN that was answered and not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HalfOpen {
    /// The client's initial sequence number.
    pub(crate) irs: u32,
    /// What its SYN offered: an MSS that is not 0, a shift of at most 14.
    pub(crate) syn: SynOptions,
    /// The cookie's epoch.
    pub(crate) epoch: u32,
    /// The link header of our answers.
    pub(crate) link: Link,
    /// How often the SYN-ACK was sent again because nothing came.
    pub(crate) retransmits: u8,
}

impl HalfOpen {
    /// Whether `other` is the same SYN, sent again.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let same_time = SynOptions { timestamps: self.syn.timestamps.and(other.syn.timestamps), ..self.syn };
        (self.irs, self.link) == (other.irs, other.link)
            && self.syn.timestamps.is_some() == other.syn.timestamps.is_some()
            && same_time == other.syn
    }
}

/// What the clock brings about for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// The SYN-ACK is sent again.
    SynAck(HalfOpen),
    /// Its last retransmission was long enough ago: the entry is gone.
    GivenUp,
}

/// When SYN-ACKs are retransmitted: after [`Self::timeout`], and each time after twice as long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    timeout: Duration,
    retries: u8,
}

impl Schedule {
    pub(crate) fn new(config: &Config) -> Self {
        Self { timeout: config.syn_timeout, retries: config.syn_ack_retries }
    }

    /// How old an entry is when the timeout after its `retransmits`th retransmission is over.
    fn due(&self, retransmits: u8) -> Duration {
        let doublings = 1u32.checked_shl(u32::from(retransmits) + 1).unwrap_or(u32::MAX);
        self.timeout.saturating_mul(doublings - 1)
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct HalfOpens {
    tables: Tables,
    links: Links,
    limit: u32,
    hash_key: [u64; 2],
    next_step: Instant,
}

/// The hand goes round in this many steps.
const STEPS: usize = 4;
/// A round takes this part of the first timeout, so that is how late a retransmission is at most.
const ROUNDS: u32 = 8;

impl HalfOpens {
    /// A queue for `limit` entries of each address family.
    pub(crate) fn new(limit: u32, hash_key: [u64; 2]) -> Self {
        Self {
            tables: tables(limit, hash_key),
            links: Links::default(),
            limit,
            hash_key,
            next_step: Instant(0),
        }
    }

    /// Entries of each family, IPv4 first.
    pub(crate) fn lens(&self) -> [usize; 2] {
        self.tables.lens()
    }

    /// Memory held for each family, IPv4 first, the few link addresses not counted.
    pub(crate) fn bytes(&self) -> [usize; 2] {
        self.tables.bytes()
    }

    /// Entries.
    pub(crate) fn len(&self) -> usize {
        self.tables.len()
    }

    /// Entries of the address family that has more of them: what the limit is for.
    pub(crate) fn fullest(&self) -> usize {
        self.tables.fullest()
    }

    /// Makes room for `limit` entries of each family. Those that are there stay, as far as there is room for them.
    pub(crate) fn set_limit(&mut self, limit: u32, now: Instant) {
        if limit == self.limit {
            return;
        }
        self.limit = limit;
        let Self { tables: entries, links, hash_key, .. } = self;
        entries.move_to(tables(limit, *hash_key), now, |_, evicted| links.release(link_of(&evicted)));
    }

    pub(crate) fn contains(&self, key: &AnyFlowKey) -> bool {
        self.tables.get(key).is_some()
    }

    /// The entry of `key`. `epoch` is the present one, from which its own is not far.
    pub(crate) fn get(&self, key: &AnyFlowKey, epoch: u32) -> Option<HalfOpen> {
        Some(self.unpack(&self.tables.get(key)?, epoch))
    }

    /// Adds an entry, or replaces it, its time starting afresh; whether another had to go for it. `None`: there is no
    /// room for one more link address, and nothing was added.
    pub(crate) fn insert(&mut self, key: &AnyFlowKey, entry: &HalfOpen, now: Instant) -> Option<bool> {
        let link = self.links.intern(&entry.link)?;
        self.remove(key);
        let evicted = self.tables.insert(key, pack(entry, link), now);
        if let Some((_, evicted)) = &evicted {
            self.links.release(link_of(evicted));
        }
        Some(evicted.is_some())
    }

    /// The client repeats its SYN, and was answered again: its timestamp is the one to echo from now on.
    pub(crate) fn repeated(&mut self, key: &AnyFlowKey, tsval: u32) {
        self.tables.update(key, |tail| {
            tail[1] = tsval;
            tail[4] |= ANSWERED_AGAIN;
        });
    }

    /// How long ago the SYN of an entry was answered, if that was done once only (Karn).
    pub(crate) fn since_answer(&self, key: &AnyFlowKey, now: Instant) -> Option<Duration> {
        /// Ages are in milliseconds.
        const TICK: Duration = Duration::from_millis(1);
        /// Another clock that is behind makes it look like hours.
        const LONGEST: Duration = Duration::from_secs(60);
        let tail = self.tables.get(key)?;
        let once = tail[4] & ANSWERED_AGAIN == 0 && retransmits_of(&tail) == 0;
        once.then(|| age(&tail, now).max(TICK)).filter(|age| *age < LONGEST)
    }

    /// How often an entry's SYN-ACK was sent again. Answers to a client that repeats its SYN count as one: it does that for the
    /// same loss.
    pub(crate) fn repeats(&self, key: &AnyFlowKey) -> u8 {
        let repeats = |tail: Tail| retransmits_of(&tail).max(u8::from(tail[4] & ANSWERED_AGAIN != 0));
        self.tables.get(key).map_or(0, repeats)
    }

    /// Takes an entry out; whether it was there.
    pub(crate) fn remove(&mut self, key: &AnyFlowKey) -> bool {
        let removed = self.tables.remove(key);
        if let Some(tail) = &removed {
            self.links.release(link_of(tail));
        }
        removed.is_some()
    }

    /// When the hand moves next.
    pub(crate) fn next_step(&self) -> Option<Instant> {
        (self.len() != 0).then_some(self.next_step)
    }

    /// Moves the hand if it is time, and appends what is due to `due`: at most `room` SYN-ACKs. Further ones are due again when the
    /// hand is there the next time.
    pub(crate) fn sweep(
        &mut self,
        now: Instant,
        schedule: Schedule,
        epoch: u32,
        mut room: usize,
        due: &mut Vec<(AnyFlowKey, Due)>,
    ) {
        if self.len() == 0 || now < self.next_step {
            return;
        }
        let Self { tables, links, .. } = self;
        tables.step(STEPS, |key, tail| {
            let entry = unpack(tail, links, epoch);
            if age(tail, now) < schedule.due(entry.retransmits) {
                return true;
            }
            let stays = entry.retransmits < schedule.retries;
            if stays && room == 0 {
                return true;
            }
            if stays {
                room -= 1;
                // The lowest byte.
                tail[3] += 1;
                due.push((key, Due::SynAck(HalfOpen { retransmits: entry.retransmits + 1, ..entry })));
            } else {
                links.release(link_of(tail));
                due.push((key, Due::GivenUp));
            }
            stays
        });
        self.next_step = now + (schedule.timeout / ROUNDS / STEPS as u32).max(Duration::from_millis(1));
    }

    /// Every entry, its age, and the time until its next retransmission or its end.
    pub(crate) fn iter(
        &self,
        now: Instant,
        schedule: Schedule,
        epoch: u32,
    ) -> impl Iterator<Item = (AnyFlowKey, HalfOpen, Duration, Duration)> {
        self.show(self.tables.iter(), now, schedule, epoch)
    }

    /// As [`Self::iter`], of the entries in the `count` places from `start` on.
    pub(crate) fn slice(
        &self,
        (start, count): (Place, usize),
        now: Instant,
        schedule: Schedule,
        epoch: u32,
    ) -> impl Iterator<Item = (AnyFlowKey, HalfOpen, Duration, Duration)> {
        self.show(self.tables.slice(start, count), now, schedule, epoch)
    }

    /// The place after such a slice; `None` when no entry can follow.
    pub(crate) fn after_slice(&self, start: Place, count: usize) -> Option<Place> {
        self.tables.after_slice(start, count)
    }

    fn show(
        &self,
        entries: impl Iterator<Item = (AnyFlowKey, Tail)>,
        now: Instant,
        schedule: Schedule,
        epoch: u32,
    ) -> impl Iterator<Item = (AnyFlowKey, HalfOpen, Duration, Duration)> {
        entries.map(move |(key, tail)| {
            let (entry, age) = (self.unpack(&tail, epoch), age(&tail, now));
            (key, entry, age, schedule.due(entry.retransmits).saturating_sub(age))
        })
    }

    fn unpack(&self, tail: &Tail, epoch: u32) -> HalfOpen {
        unpack(tail, &self.links, epoch)
    }
}

fn tables(limit: u32, hash_key: [u64; 2]) -> Tables {
    // At most eight ninths of the places are taken.
    Tables::new(limit, limit as usize * 9 / 8, hash_key)
}

// The words of an entry: the client's ISN; its TSval; its link's number and its MSS; the epoch's low half, and a byte each
// for the options and for the retransmissions.

/// The window shift; [`NO_SCALE`] for none.
const SCALE_MASK: u32 = 0xf;
const NO_SCALE: u32 = 15;
const SACK: u32 = 1 << 4;
const TIMESTAMPS: u32 = 1 << 5;
const ECN: u32 = 1 << 6;
const OPTIONS_SHIFT: u32 = 8;
/// In the last word, which is [`packed`](super::packed)'s but for a few bits: the client repeated its SYN.
const ANSWERED_AGAIN: u32 = 1 << 1;
const _: () = assert!(ANSWERED_AGAIN & OWN_MASK != 0);

fn pack(entry: &HalfOpen, link: u16) -> Tail {
    let HalfOpen { irs, syn, epoch, link: _, retransmits } = entry;
    let SynOptions { mss, window_scale, sack_permitted, timestamps, ecn } = syn;
    let mut options = window_scale.map_or(NO_SCALE, |shift| u32::from(shift) & SCALE_MASK);
    options |= if *sack_permitted { SACK } else { 0 } | if timestamps.is_some() { TIMESTAMPS } else { 0 };
    options |= if *ecn { ECN } else { 0 };
    let numbers = u32::from(link) << 16 | u32::from(mss.unwrap_or(0));
    let rest = epoch << 16 | options << OPTIONS_SHIFT | u32::from(*retransmits);
    [*irs, timestamps.unwrap_or(0), numbers, rest, 0]
}

fn unpack(tail: &Tail, links: &Links, epoch: u32) -> HalfOpen {
    let [irs, tsval, numbers, rest, _] = *tail;
    let options = rest >> OPTIONS_SHIFT;
    let scale = options & SCALE_MASK;
    let off = ((rest >> 16) as u16).wrapping_sub(epoch as u16).cast_signed();
    HalfOpen {
        irs,
        syn: SynOptions {
            // None and 0 are the same to a cookie.
            mss: Some(numbers as u16).filter(|mss| *mss != 0),
            window_scale: (scale != NO_SCALE).then_some(scale as u8),
            sack_permitted: options & SACK != 0,
            timestamps: (options & TIMESTAMPS != 0).then_some(tsval),
            ecn: options & ECN != 0,
        },
        epoch: epoch.wrapping_add_signed(off.into()),
        link: links.get(link_of(tail)),
        retransmits: retransmits_of(tail),
    }
}

fn retransmits_of(tail: &Tail) -> u8 {
    tail[3] as u8
}

fn link_of(tail: &Tail) -> u16 {
    (tail[2] >> 16) as u16
}

/// The link headers in use, numbered: entries of all clients behind one router share one.
#[derive(Debug, Default)]
struct Links {
    /// By number, with how many entries use it.
    known: Vec<(Link, u32)>,
    numbers: HashMap<LinkBytes, u16>,
    free: Vec<u16>,
}

/// A [`Link`] as a key.
type LinkBytes = ([u8; 6], [u8; 6], u8, [[u8; 4]; 2]);

fn bytes(link: &Link) -> LinkBytes {
    (link.dst, link.src, link.vlan.count, link.vlan.tags)
}

impl Links {
    /// The number of `link`, one use of it more; `None` when there is none left.
    fn intern(&mut self, link: &Link) -> Option<u16> {
        let number = match self.numbers.get(&bytes(link)) {
            Some(&number) => number,
            None => {
                let number = match self.free.pop() {
                    Some(number) => number,
                    None => {
                        let number = u16::try_from(self.known.len()).ok()?;
                        self.known.push((*link, 0));
                        number
                    }
                };
                self.known[usize::from(number)] = (*link, 0);
                self.numbers.insert(bytes(link), number);
                number
            }
        };
        self.known[usize::from(number)].1 += 1;
        Some(number)
    }

    fn get(&self, number: u16) -> Link {
        self.known[usize::from(number)].0
    }

    /// One use less.
    fn release(&mut self, number: u16) {
        let (link, uses) = &mut self.known[usize::from(number)];
        *uses -= 1;
        if *uses == 0 {
            self.numbers.remove(&bytes(link));
            self.free.push(number);
        }
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.known.capacity() * size_of::<(Link, u32)>()
            + self.numbers.capacity() * size_of::<(LinkBytes, u16)>()
            + self.free.capacity() * size_of::<u16>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tcpguard_common::packet::Vlan;

    const EPOCH: u32 = 0x0001_0003;
    const SCHEDULE: Schedule = Schedule { timeout: Duration::from_secs(1), retries: 3 };

    fn key(flow: u32) -> AnyFlowKey {
        let (peer, local) = if flow.is_multiple_of(2) {
            (format!("10.0.{}.1:{}", flow >> 16, flow as u16 | 1), "10.0.0.2:80")
        } else {
            (format!("[fd00::{:x}]:{}", flow >> 16, flow as u16), "[fd00::2]:80")
        };
        AnyFlowKey::new(peer.parse().unwrap(), local.parse().unwrap()).unwrap()
    }

    fn entry(flow: u32) -> HalfOpen {
        HalfOpen {
            irs: flow,
            syn: SynOptions {
                mss: Some(1400 + (flow % 50) as u16),
                window_scale: (!flow.is_multiple_of(3)).then_some((flow % 15) as u8),
                sack_permitted: flow.is_multiple_of(5),
                timestamps: flow.is_multiple_of(7).then_some(flow),
                ecn: flow.is_multiple_of(11),
            },
            epoch: EPOCH - flow % 4,
            link: Link {
                dst: [2, 0, 0, 0, 1, (flow % 11) as u8],
                src: [2, 0, 0, 0, 0, 1],
                vlan: Vlan {
                    count: (flow % 3) as u8,
                    tags: [[0x88, 0xa8, 0, flow as u8 & 3], [0x81, 0, 0, 9]],
                },
            },
            retransmits: 0,
        }
    }

    fn at(milliseconds: u64) -> Instant {
        Instant(milliseconds * 1_000_000)
    }

    #[test]
    fn an_entry_says_what_went_in_across_the_epochs_wrap() {
        let mut queue = HalfOpens::new(1000, [1, 2]);
        for flow in 0..400 {
            assert_eq!(queue.insert(&key(flow), &entry(flow), at(1)), Some(false));
        }
        for flow in 0..400 {
            assert_eq!(queue.get(&key(flow), EPOCH), Some(entry(flow)));
            assert_eq!(queue.get(&key(flow), EPOCH + 2), Some(entry(flow)));
        }
        assert_eq!(queue.get(&key(400), EPOCH), None);
    }

    #[test]
    fn a_full_queue_costs_64_bytes_an_entry_at_most_with_all_there_is_around_it() {
        const LIMIT: u32 = 10_000;
        for (family, most) in [(0, 40), (1, 64)] {
            let mut queue = HalfOpens::new(LIMIT, [1, 2]);
            let table = queue.tables.bytes()[family as usize];
            for flow in 0..LIMIT {
                let entry = HalfOpen { link: entry(0).link, ..entry(flow) };
                assert_eq!(queue.insert(&key(2 * flow + family), &entry, at(1)), Some(false));
            }
            assert_eq!(queue.len(), LIMIT as usize);
            let bytes = table + queue.links.bytes();
            assert!(bytes <= most * LIMIT as usize, "{} an entry", bytes as f64 / f64::from(LIMIT));
        }
    }

    #[test]
    fn a_full_queue_gives_up_the_oldest_of_a_few() {
        let mut queue = HalfOpens::new(8, [1, 2]);
        for flow in 0..8 {
            queue.insert(&key(2 * flow), &entry(flow), at(u64::from(flow)));
        }
        assert_eq!(queue.insert(&key(100), &entry(100), at(20)), Some(true));
        assert_eq!((queue.len(), queue.contains(&key(0)), queue.contains(&key(100))), (8, false, true));
        assert_eq!(
            queue.insert(&key(101), &entry(101), at(20)),
            Some(false),
            "families have room of their own"
        );
        assert_eq!((queue.len(), queue.fullest()), (9, 8));
    }

    #[test]
    fn a_new_limit_applies_to_what_is_there() {
        let mut queue = HalfOpens::new(100, [1, 2]);
        for flow in 0..100 {
            queue.insert(&key(2 * flow), &entry(flow), at(u64::from(flow)));
        }
        queue.set_limit(200, at(100));
        assert_eq!(queue.len(), 100);
        for flow in 0..100 {
            assert_eq!(queue.get(&key(2 * flow), EPOCH), Some(entry(flow)));
        }
        queue.set_limit(8, at(100));
        assert_eq!(queue.len(), 8);
        let ages: Vec<Duration> = queue.iter(at(100), SCHEDULE, EPOCH).map(|(_, _, age, _)| age).collect();
        assert!(ages.iter().all(|age| *age <= Duration::from_millis(100)), "{ages:?}");
        assert_eq!(queue.links.known.iter().map(|(_, uses)| uses).sum::<u32>(), 8);
    }

    #[test]
    fn without_a_number_left_for_a_link_nothing_is_added() {
        let mut queue = HalfOpens::new(100_000, [1, 2]);
        let with_mac = |number: u32| {
            let [_, a, b, c] = number.to_be_bytes();
            HalfOpen { link: Link { dst: [2, 0, 0, a, b, c], ..entry(0).link }, ..entry(number) }
        };
        for number in 0..=u32::from(u16::MAX) {
            assert_eq!(queue.insert(&key(number), &with_mac(number), at(1)), Some(false));
        }
        assert_eq!(queue.insert(&key(70_000), &with_mac(70_000), at(1)), None);
        assert!(!queue.contains(&key(70_000)));
        queue.remove(&key(3));
        assert_eq!(queue.insert(&key(70_000), &with_mac(70_000), at(1)), Some(false));
        assert_eq!(queue.get(&key(70_000), EPOCH), Some(with_mac(70_000)));
        assert_eq!(queue.get(&key(4), EPOCH), Some(with_mac(4)));
    }

    proptest! {
        /// Against the obvious model: times and entries in a map.
        #[test]
        fn every_entry_is_sent_again_when_it_is_due_and_then_given_up(
            flows in prop::collection::vec((0u32..60, 0u64..700, any::<bool>()), 1..60),
        ) {
            let mut queue = HalfOpens::new(1000, [3, 4]);
            let mut model: HashMap<AnyFlowKey, (u64, u8)> = HashMap::new();
            let mut now = 10_000;
            let sweep = |queue: &mut HalfOpens, model: &mut HashMap<AnyFlowKey, (u64, u8)>, now: u64| {
                let mut due = Vec::new();
                queue.sweep(at(now), SCHEDULE, EPOCH, usize::MAX, &mut due);
                for (key, what) in due {
                    let (since, retransmits) = model.get_mut(&key).expect("an entry that is there");
                    let age = now - *since;
                    let deadline = 1000 * ((2 << *retransmits) - 1);
                    assert!((deadline..=deadline + 1000 / 8 + 32).contains(&age), "{age} for {deadline}");
                    if what == Due::GivenUp {
                        assert_eq!(*retransmits, 3);
                        model.remove(&key);
                    } else {
                        *retransmits += 1;
                    }
                }
            };
            for (flow, pause, remove) in flows {
                for _ in 0..pause {
                    now += 1;
                    sweep(&mut queue, &mut model, now);
                }
                if remove {
                    prop_assert_eq!(queue.remove(&key(flow)), model.remove(&key(flow)).is_some());
                } else {
                    queue.insert(&key(flow), &entry(flow), at(now)).unwrap();
                    model.insert(key(flow), (now, 0));
                }
                prop_assert_eq!(queue.len(), model.len());
            }
            for _ in 0..16_000 {
                now += 1;
                sweep(&mut queue, &mut model, now);
            }
            prop_assert_eq!((queue.len(), model.len()), (0, 0));
            prop_assert!(queue.links.numbers.is_empty());
        }
    }
}
