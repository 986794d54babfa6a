//! Remembers for some seconds the connections that we ended with a reset. A reset is sent once and nobody acknowledges
//! it; when it is lost, or lies elsewhere than at the peer's RCV.NXT and is challenged (RFC 5961 §3.2), the peer's next
//! segment must meet another one and not silence. Which segments open a new connection instead is judged elsewhere.

use core::time::Duration;
use std::collections::VecDeque;

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::seq::Seq;

use super::config::Config;
use super::table::Index;
use super::time::Instant;
use super::wire::hash;

/// Most connections remembered; the oldest makes room. A megabyte, and as many entries that stay in XDP's flow table.
const CAPACITY: usize = 1 << 14;
/// Numbers of entries go round here, far beyond [`CAPACITY`].
const NUMBERS: u32 = 1 << 30;
/// Pause between two answers to the same peer: whoever can forge its segments gets no more than that out of us.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a reset is remembered: four timeouts of a peer that has not measured a round trip, so that three of its
/// retransmissions fall into it.
pub(crate) fn lifetime(config: &Config) -> Duration {
    (4 * config.initial_rto).clamp(Duration::from_secs(3), Duration::from_secs(30))
}

/// What our side of a connection was when it was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// SND.NXT.
    pub(crate) snd_nxt: Seq,
    /// Bytes the peer had not acknowledged: its RCV.NXT is at most so far below `snd_nxt`.
    pub(crate) flight: u32,
}

/// What to do with a segment of a flow that may have been reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// No such connection is remembered.
    Unknown,
    /// Reset it again.
    Reset,
    /// Nothing: it comes too soon, or not from that connection's peer.
    Silence,
}

#[derive(Debug)]
struct Entry {
    key: AnyFlowKey,
    ending: Ending,
    since: Instant,
    quiet_until: Instant,
    /// The flow lives again.
    over: bool,
}

/// The connections reset lately, the oldest first.
#[derive(Debug)]
pub(crate) struct Resets {
    entries: VecDeque<Entry>,
    /// The number of the oldest; the others count on from it.
    first: u32,
    index: Index,
    hash_key: [u64; 2],
}

impl Resets {
    pub(crate) fn new(hash_key: [u64; 2]) -> Self {
        Self { entries: VecDeque::new(), first: 0, index: Index::new(), hash_key }
    }

    /// Remembers a connection that is not remembered yet; which one is forgotten for it, if there was no room.
    pub(crate) fn insert(&mut self, key: AnyFlowKey, ending: Ending, now: Instant) -> Option<AnyFlowKey> {
        debug_assert!(!self.contains(&key), "reset twice");
        let forgotten = if self.entries.len() >= CAPACITY { self.pop() } else { None };
        let number = (self.first + self.entries.len() as u32) % NUMBERS;
        self.index.insert(hash(self.hash_key, &key), number);
        self.entries.push_back(Entry { key, ending, since: now, quiet_until: now, over: false });
        forgotten
    }

    /// How many are remembered.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn contains(&self, key: &AnyFlowKey) -> bool {
        self.find(key).is_some()
    }

    /// Forgets a connection: another one has its flow.
    pub(crate) fn remove(&mut self, key: &AnyFlowKey) {
        if let Some(number) = self.find(key) {
            self.index.remove(hash(self.hash_key, key), number);
            if let Some(entry) = self.entries.get_mut(self.place(number)) {
                entry.over = true;
            }
        }
    }

    /// Judges a segment by its acknowledgement; `None` if it has none, or is a reset itself. Only numbers that the
    /// connection's peer can be at are answered, so that a forger must know them.
    pub(crate) fn answer(&mut self, key: &AnyFlowKey, ack: Option<Seq>, now: Instant) -> Answer {
        let Some(number) = self.find(key) else { return Answer::Unknown };
        let place = self.place(number);
        let Some(entry) = self.entries.get_mut(place) else { return Answer::Unknown };
        let Ending { snd_nxt, flight } = entry.ending;
        let plausible = ack.is_some_and(|ack| snd_nxt.distance(ack) <= flight);
        if !plausible || now < entry.quiet_until {
            return Answer::Silence;
        }
        entry.quiet_until = now + PAUSE;
        Answer::Reset
    }

    /// When the oldest is to be forgotten.
    pub(crate) fn deadline(&self, lifetime: Duration) -> Option<Instant> {
        self.entries.front().map(|entry| entry.since + lifetime)
    }

    /// Forgets the next connection whose time is over.
    pub(crate) fn pop_expired(&mut self, now: Instant, lifetime: Duration) -> Option<AnyFlowKey> {
        while self.deadline(lifetime)? <= now {
            if let Some(key) = self.pop() {
                return Some(key);
            }
        }
        None
    }

    /// Takes the oldest out; which connection is forgotten with it.
    fn pop(&mut self) -> Option<AnyFlowKey> {
        let Entry { key, over, .. } = self.entries.pop_front()?;
        let number = self.first;
        self.first = (number + 1) % NUMBERS;
        if over {
            return None;
        }
        self.index.remove(hash(self.hash_key, &key), number);
        Some(key)
    }

    fn find(&self, key: &AnyFlowKey) -> Option<u32> {
        if self.entries.is_empty() {
            return None;
        }
        let is_it = |number| self.entries.get(self.place(number)).is_some_and(|entry| entry.key == *key);
        self.index.find(hash(self.hash_key, key), is_it)
    }

    fn place(&self, number: u32) -> usize {
        (number.wrapping_sub(self.first) % NUMBERS) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDING: Ending = Ending { snd_nxt: Seq(100), flight: 10 };
    const SECOND: Duration = Duration::from_secs(1);
    const NOW: Instant = Instant(1 << 40);

    fn key(flow: usize) -> AnyFlowKey {
        let peer = format!("10.{}.{}.{}:77", flow >> 16, flow >> 8 & 255, flow & 255).parse().unwrap();
        AnyFlowKey::new(peer, "10.0.0.1:80".parse().unwrap()).unwrap()
    }

    #[test]
    fn only_plausible_acknowledgements_are_answered_and_not_too_often() {
        let mut resets = Resets::new([1, 2]);
        assert_eq!(resets.answer(&key(1), Some(Seq(100)), NOW), Answer::Unknown);
        assert_eq!(resets.insert(key(1), ENDING, NOW), None);
        for ack in [None, Some(Seq(101)), Some(Seq(89))] {
            assert_eq!(resets.answer(&key(1), ack, NOW), Answer::Silence, "{ack:?}");
        }
        assert_eq!(resets.answer(&key(1), Some(Seq(90)), NOW), Answer::Reset);
        assert_eq!(resets.answer(&key(1), Some(Seq(100)), NOW), Answer::Silence);
        assert_eq!(resets.answer(&key(1), Some(Seq(100)), NOW + PAUSE), Answer::Reset);
    }

    #[test]
    fn a_full_memory_forgets_the_oldest_and_time_forgets_the_rest_in_order() {
        let mut resets = Resets::new([1, 2]);
        for flow in 0..CAPACITY {
            assert_eq!(resets.insert(key(flow), ENDING, NOW), None);
        }
        resets.remove(&key(1));
        assert_eq!(resets.insert(key(CAPACITY), ENDING, NOW + SECOND), Some(key(0)));
        assert_eq!(resets.insert(key(CAPACITY + 1), ENDING, NOW + SECOND), None, "one was over");
        assert_eq!(resets.pop_expired(NOW, SECOND), None);
        for flow in 2..CAPACITY {
            assert!(resets.contains(&key(flow)));
            assert_eq!(resets.pop_expired(NOW + SECOND, SECOND), Some(key(flow)));
        }
        assert_eq!(resets.pop_expired(NOW + SECOND, SECOND), None);
        assert_eq!(resets.deadline(SECOND), Some(NOW + 2 * SECOND));
        assert_eq!(resets.pop_expired(NOW + 2 * SECOND, SECOND), Some(key(CAPACITY)));
        assert_eq!(resets.pop_expired(NOW + 2 * SECOND, SECOND), Some(key(CAPACITY + 1)));
        assert_eq!((resets.deadline(SECOND), resets.contains(&key(7))), (None, false));
    }
}
