//! Rates kept for any number of sources in a fixed amount of memory: a sketch of token buckets. It inserts nothing and
//! evicts nothing, so that a flood of random sources costs what one source costs. Whose rate it is, and what follows
//! when it is used up, is the [decision](crate::decision)'s business.
//!
//! A token bucket is one word: the time up to which its tokens are spent. Taking a token moves that time on by the time
//! the token takes to come back; a bucket whose time is past is full. A source has one bucket in each of two rows, which
//! it shares with whoever hashes there too, and what counts is the fuller of the two. A charge moves each row no
//! further than the source itself must have gone. So:
//!
//! - no source ever takes more than its burst, and its rate times the time that passed: sharing a bucket can only make
//!   it less, since neither row lies behind what the source itself has spent;
//! - a source that stays within its rate is refused only if others overdraw its bucket in *both* rows. With `v` such
//!   sources that is a probability of about (`v` / [`BUCKETS`])².

use core::cell::Cell;
use core::fmt;

/// Buckets in each of the two rows; a power of two.
pub const BUCKETS: usize = 1 << 14;
/// Words of a sketch.
pub const WORDS: usize = 2 * BUCKETS;

/// How often something may happen, and how often at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// Nanoseconds between two tokens. 0: there is no limit.
    pub interval: u64,
    /// Nanoseconds for which tokens may be taken in advance; see [`Self::new`].
    pub ahead: u64,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { interval: 0, ahead: 0 };

    /// `per_second` tokens a second, and `burst` of them at once after a pause, together in `shares` buckets of which
    /// each sees its part of the traffic. `per_second` 0: no limit. A share is at least one token in a burst.
    pub fn new(per_second: u32, burst: u32, shares: u32) -> Self {
        if per_second == 0 {
            return Self::UNLIMITED;
        }
        let shares = u64::from(shares.max(1));
        // Rounded up: rather a token too few than one too many.
        let interval = (1_000_000_000 * shares).div_ceil(u64::from(per_second));
        let burst = (u64::from(burst) / shares).max(1);
        Self { interval, ahead: (burst - 1) * interval }
    }
}

/// Takes a token from a bucket of its own. Whether there was one; without one nothing changes. Two charges at the same
/// instant on two CPUs may count as one.
#[inline(always)]
pub fn take(bucket: &Cell<u64>, rate: &Rate, now: u64) -> bool {
    let spent = bucket.get();
    if spent > now + rate.ahead {
        return false;
    }
    bucket.set(if spent < now { now } else { spent } + rate.interval);
    true
}

/// The buckets: 2 × [`BUCKETS`] words, in nanoseconds of the coarse monotonic clock. Zeroed memory is a sketch of full
/// buckets.
#[derive(Clone)]
#[repr(transparent)]
pub struct Sketch([Cell<u64>; WORDS]);

impl Sketch {
    /// A sketch of these words: a copy of one that lies in the map.
    pub fn from_words(words: [u64; WORDS]) -> Self {
        Self(words.map(Cell::new))
    }

    /// Takes a token from the source whose [hash](crate::hash::keyed) is `hash`. Whether there was one; without one
    /// nothing changes. Two charges at the same instant on two CPUs may count as one.
    #[inline(always)]
    pub fn charge(&self, hash: u64, rate: &Rate, now: u64) -> bool {
        let (first, second) = self.places(hash);
        let (one, two) = (first.get(), second.get());
        let spent = if one < two { one } else { two };
        if spent > now + rate.ahead {
            return false;
        }
        let spent = if spent < now { now } else { spent } + rate.interval;
        if one < spent {
            first.set(spent);
        }
        if two < spent {
            second.set(spent);
        }
        true
    }

    /// Up to which time the tokens of the source are spent, as far as its buckets tell.
    pub fn spent_until(&self, hash: u64) -> u64 {
        let (first, second) = self.places(hash);
        first.get().min(second.get())
    }

    /// What lies in the map.
    pub fn words(&self) -> [u64; WORDS] {
        self.0.each_ref().map(Cell::get)
    }

    #[inline(always)]
    fn places(&self, hash: u64) -> (&Cell<u64>, &Cell<u64>) {
        let [first, second] = places(hash);
        (&self.0[first], &self.0[second])
    }
}

/// Where the buckets of a source lie: one in each row.
#[inline(always)]
fn places(hash: u64) -> [usize; 2] {
    const MASK: usize = BUCKETS - 1;
    [hash as usize & MASK, BUCKETS + ((hash >> 32) as usize & MASK)]
}

impl Default for Sketch {
    fn default() -> Self {
        Self([const { Cell::new(0) }; WORDS])
    }
}

impl fmt::Debug for Sketch {
    /// How many buckets were ever charged: the words themselves say nothing to a reader.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let charged = self.0.iter().filter(|word| word.get() != 0).count();
        write!(f, "Sketch({charged} of {WORDS} charged)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::keyed;
    use proptest::prelude::*;
    use std::boxed::Box;
    use std::collections::HashMap;
    use std::vec::Vec;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_source_gets_its_burst_at_once_and_then_its_rate() {
        let (sketch, rate) = (Box::new(Sketch::default()), Rate::new(10, 5, 1));
        let mut now = 100 * SECOND;
        let granted = |now| (0..20).filter(|_| sketch.charge(77, &rate, now)).count();
        assert_eq!(granted(now), 5);
        now += SECOND / 10 - 1;
        assert_eq!(granted(now), 0);
        now += 1;
        assert_eq!(granted(now), 1);
        now += SECOND;
        assert_eq!(granted(now), 5);
    }

    #[test]
    fn a_bucket_of_its_own_keeps_to_the_same_rate() {
        let (bucket, rate) = (Cell::new(0), Rate::new(10, 5, 1));
        let mut now = 100 * SECOND;
        let granted = |now| (0..20).filter(|_| take(&bucket, &rate, now)).count();
        assert_eq!(granted(now), 5);
        now += SECOND / 10;
        assert_eq!(granted(now), 1);
        assert_eq!(granted(now), 0, "what is refused costs nothing");
        now += 100 * SECOND;
        assert_eq!(granted(now), 5, "a long pause saves up no more than the burst");
    }

    #[test]
    fn shares_add_up_to_the_rate_and_to_the_burst() {
        let whole = Rate::new(1000, 400, 1);
        let share = Rate::new(1000, 400, 4);
        assert_eq!(share.interval, 4 * whole.interval);
        assert_eq!((share.ahead / share.interval + 1) * 4, whole.ahead / whole.interval + 1);
        assert_eq!(Rate::new(1000, 1, 64).ahead, 0, "one at a time still goes");
        assert_eq!(Rate::new(0, 5, 1), Rate::UNLIMITED);
        assert_eq!(Rate::new(3, 1, 1).interval, SECOND / 3 + 1, "rather too few than too many");
    }

    /// What a source was given: nothing but the times.
    fn most_in_any_window(times: &[u64], rate: &Rate) -> Option<(u64, u64)> {
        let burst = rate.ahead / rate.interval + 1;
        for (first, &from) in times.iter().enumerate() {
            for (count, &until) in (1u64..).zip(&times[first..]) {
                let allowed = burst + (until - from) / rate.interval;
                if count > allowed {
                    return Some((count, allowed));
                }
            }
        }
        None
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        /// Few buckets are hit by many sources, so that rows collide all the time.
        #[test]
        fn no_source_ever_takes_more_than_burst_and_rate_whatever_the_others_do(
            key: [u64; 2],
            per_second in 1..2000u32,
            burst in 1..200u32,
            charges in prop::collection::vec((0..40u64, 0..3_000_000u64), 1..1500),
        ) {
            let sketch = Box::new(Sketch::default());
            let rate = Rate::new(per_second, burst, 1);
            let mut now = 5 * SECOND;
            let mut taken: HashMap<u64, Vec<u64>> = HashMap::new();
            for (source, pause) in charges {
                now += pause;
                // Eight buckets in the first row, eight in the second: forty sources overlap in every way.
                let hash = keyed(key, 0, source) & 0x0000_0007_0000_0007;
                if sketch.charge(hash, &rate, now) {
                    taken.entry(hash).or_default().push(now);
                }
            }
            for times in taken.values() {
                prop_assert_eq!(most_in_any_window(times, &rate), None);
            }
        }

        /// Thirty overdrawn sources in rows of 64 buckets: one row in three is spoilt, both in one case of seven.
        #[test]
        fn a_source_within_its_rate_is_refused_only_where_others_share_both_its_buckets(
            key: [u64; 2],
            flood in prop::collection::vec(0..30u64, 3000..6000),
        ) {
            let sketch = Box::new(Sketch::default());
            let rate = Rate::new(100, 3, 1);
            let hash = |source| keyed(key, 0, source) & 0x0000_003f_0000_003f;
            let mine = hash(u64::MAX);
            let mut shared = [false; 2];
            let (mut now, mut next) = (SECOND, SECOND);
            for source in flood {
                now += 50_000;
                sketch.charge(hash(source), &rate, now);
                for (row, shared) in shared.iter_mut().enumerate() {
                    *shared |= places(hash(source))[row] == places(mine)[row];
                }
                if now >= next {
                    next = now + rate.interval;
                    prop_assert!(sketch.charge(mine, &rate, now) || shared == [true; 2]);
                }
            }
        }
    }
}
