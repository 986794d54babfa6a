//! Tells attacks on one service from what is counted of it, second by second: when each kind begins, how bad it gets, when
//! it is over. From whom it comes is estimated from sampled segments. Counts and samples are others' to take, and so is
//! what follows from an attack.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// What somebody does to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// SYNs that nobody goes on from.
    SynFlood,
    /// ACKs that no cookie of ours is in.
    AckFlood,
    /// Handshakes, completed, by the thousands.
    ConnectionFlood,
    /// Connections whose clients ask for much and take nothing of it.
    SlowRead,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::SynFlood, Self::AckFlood, Self::ConnectionFlood, Self::SlowRead];

    /// The name for people and programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynFlood => "syn-flood",
            Self::AckFlood => "ack-flood",
            Self::ConnectionFlood => "connection-flood",
            Self::SlowRead => "slow-read",
        }
    }
}

/// What was counted of one service by a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub at: u64,
    /// Well-formed SYNs so far.
    pub syns: u64,
    /// ACKs with a valid cookie so far, admitted or not.
    pub handshakes: u64,
    /// ACKs with an invalid one so far.
    pub invalid_acks: u64,
    /// Connections whose clients take nothing, now.
    pub stalled: u64,
}

/// From where on it is an attack: so many a second, or connections; 0 is never. It is over after `calm` below half of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// SYNs a second beyond those that led to a handshake.
    pub syns: u64,
    /// Invalid ACKs a second.
    pub acks: u64,
    /// Handshakes a second.
    pub connections: u64,
    /// Connections whose clients take nothing.
    pub stalls: u64,
    /// How long it must have been calm.
    pub calm: Duration,
}

impl Thresholds {
    fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::SynFlood => self.syns,
            Kind::AckFlood => self.acks,
            Kind::ConnectionFlood => self.connections,
            Kind::SlowRead => self.stalls,
        }
    }
}

/// An attack, from its first moment on.
#[derive(Clone, Debug)]
pub struct Attack {
    /// Which.
    pub kind: Kind,
    /// When it began, `CLOCK_MONOTONIC` nanoseconds.
    pub began: u64,
    /// Since when it has been calm, likewise: when it was over, once it is.
    pub calm_since: Option<u64>,
    /// How many a second there were in the last reading; of a slow read, connections.
    pub rate: u64,
    /// The greatest rate so far.
    pub peak: u64,
    /// How many in all; of a slow read none.
    pub total: u64,
    /// Who sends.
    pub sources: Sources,
}

/// What has changed at a service.
#[derive(Clone, Debug)]
pub enum Change {
    /// An attack of this kind is on.
    Began(Kind),
    /// This one is over.
    Ended(Box<Attack>),
}

/// One service under watch.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    last: Option<Reading>,
    attacks: [Option<Attack>; Kind::ALL.len()],
}

impl Watch {
    /// Takes in a reading; what has changed with it.
    pub fn observe(&mut self, reading: Reading, thresholds: &Thresholds) -> Vec<Change> {
        let Some(last) = self.last.replace(reading) else { return Vec::new() };
        let elapsed = reading.at.saturating_sub(last.at).max(1);
        let kinds = Kind::ALL.into_iter().zip(&mut self.attacks);
        kinds
            .filter_map(|(kind, attack)| {
                let new = since(kind, &last, &reading);
                let rate = match kind {
                    Kind::SlowRead => reading.stalled,
                    Kind::SynFlood | Kind::AckFlood | Kind::ConnectionFlood => per_second(new, elapsed),
                };
                let now = Now { at: reading.at, began: last.at, rate, new };
                now.judge(kind, attack, thresholds)
            })
            .collect()
    }

    /// The attacks that are on.
    pub fn attacks(&self) -> impl Iterator<Item = &Attack> {
        self.attacks.iter().flatten()
    }

    /// The attack of this kind, if it is on.
    pub fn attack(&mut self, kind: Kind) -> Option<&mut Attack> {
        self.attacks[kind as usize].as_mut()
    }

    /// Nobody watches any more: what was on at `at` is over.
    pub fn end(self, at: u64) -> impl Iterator<Item = Attack> {
        self.attacks
            .into_iter()
            .flatten()
            .map(move |attack| Attack { calm_since: attack.calm_since.or(Some(at)), ..attack })
    }
}

/// What counts for one kind in one reading.
struct Now {
    at: u64,
    began: u64,
    rate: u64,
    new: u64,
}

impl Now {
    fn judge(&self, kind: Kind, attack: &mut Option<Attack>, thresholds: &Thresholds) -> Option<Change> {
        let &Self { at, began, rate, new } = self;
        let threshold = thresholds.of(kind);
        let Some(on) = attack else {
            if threshold == 0 || rate <= threshold {
                return None;
            }
            let sources = Sources::default();
            *attack = Some(Attack { kind, began, calm_since: None, rate, peak: rate, total: new, sources });
            return Some(Change::Began(kind));
        };
        on.rate = rate;
        on.peak = on.peak.max(rate);
        if threshold != 0 && rate > threshold / 2 {
            on.calm_since = None;
            on.total += new;
            return None;
        }
        let since = *on.calm_since.get_or_insert(at);
        if Duration::from_nanos(at.saturating_sub(since)) < thresholds.calm {
            return None;
        }
        attack.take().map(|over| Change::Ended(Box::new(over)))
    }
}

fn since(kind: Kind, last: &Reading, reading: &Reading) -> u64 {
    let new = |count: fn(&Reading) -> u64| count(reading).saturating_sub(count(last));
    let handshakes = new(|reading| reading.handshakes);
    match kind {
        Kind::SynFlood => new(|reading| reading.syns).saturating_sub(handshakes),
        Kind::AckFlood => new(|reading| reading.invalid_acks),
        Kind::ConnectionFlood => handshakes,
        Kind::SlowRead => 0,
    }
}

fn per_second(count: u64, nanos: u64) -> u64 {
    u64::try_from(u128::from(count) * 1_000_000_000 / u128::from(nanos)).unwrap_or(u64::MAX)
}

/// The sources of the segments that were sampled last: as many as there is room for.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    last: VecDeque<IpAddr>,
    sampled: u64,
}

/// How many sources there are, as far as samples tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Segments sampled so far.
    pub sampled: u64,
    /// Different sources among the last of them, [`Sources::KEPT`] at most.
    pub seen: u64,
    /// So many there are at least, by Chao's estimator (1984): from how many were seen once, and how many twice.
    pub at_least: u64,
}

/// A part of the address space that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The first address.
    pub addr: IpAddr,
    /// Bits that count.
    pub len: u8,
    /// How many of the samples that are kept are from there.
    pub samples: u64,
    /// How many are kept.
    pub of: u64,
}

impl Sources {
    /// Sources that are kept.
    pub const KEPT: usize = 4096;
    /// Lengths of the prefixes that are told apart, IPv4 and IPv6.
    pub const PREFIX_LENGTHS: (u8, u8) = (24, 48);

    /// A segment from there was sampled.
    pub fn take(&mut self, source: IpAddr) {
        self.sampled += 1;
        if self.last.len() == Self::KEPT {
            self.last.pop_front();
        }
        self.last.push_back(source);
    }

    /// How many sources there are.
    pub fn estimate(&self) -> Estimate {
        let counts = self.count(|source| source);
        let of_count = |times: u64| counts.values().filter(|&&count| count == times).count() as u64;
        let (seen, once, twice) = (counts.len() as u64, of_count(1), of_count(2));
        let unseen = once * once.saturating_sub(1) / (2 * (twice + 1));
        Estimate { sampled: self.sampled, seen, at_least: seen + unseen }
    }

    /// The prefixes that most come from, each more than one sample's, and no more than `most` of them.
    pub fn top(&self, most: usize) -> Vec<Share> {
        let counts = self.count(prefix);
        let of = self.last.len() as u64;
        let mut shares: Vec<_> = counts
            .into_iter()
            .filter(|&(_, samples)| samples > 1)
            .map(|((addr, len), samples)| Share { addr, len, samples, of })
            .collect();
        shares.sort_by_key(|share| (u64::MAX - share.samples, share.addr));
        shares.truncate(most);
        shares
    }

    fn count<K: Eq + std::hash::Hash>(&self, key: impl Fn(IpAddr) -> K) -> HashMap<K, u64> {
        let mut counts = HashMap::new();
        for &source in &self.last {
            *counts.entry(key(source)).or_default() += 1;
        }
        counts
    }
}

/// Where an address lies.
fn prefix(source: IpAddr) -> (IpAddr, u8) {
    let (v4, v6) = Sources::PREFIX_LENGTHS;
    match source {
        IpAddr::V4(addr) => (Ipv4Addr::from_bits(addr.to_bits() & (u32::MAX << (32 - v4))).into(), v4),
        IpAddr::V6(addr) => (Ipv6Addr::from_bits(addr.to_bits() & (u128::MAX << (128 - v6))).into(), v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const THRESHOLDS: Thresholds =
        Thresholds { syns: 100, acks: 50, connections: 30, stalls: 5, calm: Duration::from_secs(3) };

    /// One reading a second of a service: SYNs, handshakes, invalid ACKs in it, and stalls at its end; what it changed.
    fn told(thresholds: &Thresholds, readings: &[[u64; 4]]) -> Vec<String> {
        let mut watch = Watch::default();
        let mut sum = Reading { at: 7 * SECOND, syns: 1000, handshakes: 900, invalid_acks: 9, stalled: 0 };
        assert!(watch.observe(sum, thresholds).is_empty());
        let mut told = Vec::new();
        for (second, &[syns, handshakes, invalid_acks, stalled]) in (1..).zip(readings) {
            sum = Reading {
                at: sum.at + SECOND,
                syns: sum.syns + syns,
                handshakes: sum.handshakes + handshakes,
                invalid_acks: sum.invalid_acks + invalid_acks,
                stalled,
            };
            for change in watch.observe(sum, thresholds) {
                told.push(match change {
                    Change::Began(kind) => format!("{second}: {} began", kind.name()),
                    Change::Ended(attack) => {
                        let Attack { kind, began, calm_since, peak, total, .. } = *attack;
                        let (from, to) = (began / SECOND - 7, calm_since.map_or(0, |at| at / SECOND - 7));
                        format!("{second}: {} {from} to {to}, peak {peak}, total {total}", kind.name())
                    }
                });
            }
        }
        told
    }

    #[test]
    fn each_kind_has_a_beginning_a_peak_and_an_end() {
        let mut readings = vec![[100, 0, 50, 5], [100, 30, 0, 0]];
        assert_eq!(told(&THRESHOLDS, &readings), [""; 0], "at the thresholds");
        readings.extend([
            [101, 0, 0, 0],
            [900, 0, 0, 0],
            [51, 0, 0, 0],
            [50, 0, 0, 0],
            [0; 4],
            [51, 0, 0, 0],
        ]);
        readings.extend([[50, 0, 0, 0]; 4]);
        let syn_flood = ["3: syn-flood began", "12: syn-flood 2 to 9, peak 900, total 1103"];
        assert_eq!(told(&THRESHOLDS, &readings), syn_flood);
        let quiet = [[0; 4]; 4];
        let acks = [&[[0, 0, 51, 0]][..], &quiet].concat();
        assert_eq!(
            told(&THRESHOLDS, &acks),
            ["1: ack-flood began", "5: ack-flood 0 to 2, peak 51, total 51"]
        );
        let stalls = [&[[0, 0, 0, 6], [0, 0, 0, 9]][..], &quiet].concat();
        let expected = ["1: slow-read began", "6: slow-read 0 to 3, peak 9, total 0"];
        assert_eq!(told(&THRESHOLDS, &stalls), expected);
    }

    #[test]
    fn syns_that_lead_to_handshakes_are_no_syn_flood_but_may_be_one_of_connections() {
        assert_eq!(told(&THRESHOLDS, &[[120, 20, 0, 0]]), [""; 0]);
        assert_eq!(told(&THRESHOLDS, &[[500, 500, 0, 0]]), ["1: connection-flood began"]);
    }

    #[test]
    fn a_threshold_of_nothing_is_never_and_ends_what_is_on() {
        let none = Thresholds { syns: 0, acks: 0, connections: 0, stalls: 0, ..THRESHOLDS };
        assert_eq!(told(&none, &[[1000; 4]; 3]), [""; 0]);
        let mut watch = Watch::default();
        let reading =
            |second: u64| Reading { at: second * SECOND, syns: second * 1000, ..Reading::default() };
        assert!(watch.observe(reading(1), &THRESHOLDS).is_empty());
        assert_eq!(watch.observe(reading(2), &THRESHOLDS).len(), 1);
        let ended: Vec<_> = (3..9).flat_map(|second| watch.observe(reading(second), &none)).collect();
        assert!(matches!(ended[..], [Change::Ended(_)]));
    }

    #[test]
    fn few_sources_are_counted_and_many_are_bounded_from_below() {
        let mut few = Sources::default();
        for number in 0..1000u32 {
            few.take(Ipv4Addr::from_bits(0x0a00_0000 + number % 10).into());
        }
        assert_eq!(few.estimate(), Estimate { sampled: 1000, seen: 10, at_least: 10 });

        // Every sample from somewhere else: there are millions, whatever there are.
        let mut random = Sources::default();
        for number in 0..10_000u32 {
            random.take(Ipv4Addr::from_bits(number.wrapping_mul(0x9e37_79b1)).into());
        }
        let Estimate { sampled, seen, at_least } = random.estimate();
        assert_eq!((sampled, seen), (10_000, 4096));
        assert!(at_least > 8_000_000, "{at_least}");

        // A thousand sources, each as likely: most have been seen, and the rest is estimated.
        let mut thousand = Sources::default();
        let mut word = 1u64;
        for _ in 0..2000 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            thousand.take(Ipv4Addr::from_bits((word >> 33) as u32 % 1000).into());
        }
        let Estimate { seen, at_least, .. } = thousand.estimate();
        assert!(seen < 900 && (900..1100).contains(&at_least), "{seen} {at_least}");
    }

    #[test]
    fn prefixes_are_listed_by_their_share_if_they_have_one() {
        let mut sources = Sources::default();
        let mut take = |text: &str, times: usize| {
            (0..times).for_each(|_| sources.take(text.parse().unwrap()));
        };
        take("192.0.2.7", 5);
        take("192.0.2.200", 3);
        take("2001:db8:1:ffff::1", 4);
        take("198.51.100.1", 1);
        let shares: Vec<_> =
            sources.top(5).iter().map(|share| (share.addr.to_string(), share.len, share.samples)).collect();
        assert_eq!(shares, [("192.0.2.0".to_owned(), 24, 8), ("2001:db8:1::".to_owned(), 48, 4)]);
        assert_eq!(sources.top(1).len(), 1);
        assert_eq!(sources.top(1)[0].of, 13);
    }
}
