//! How long something took, counted by powers of two: a few words, one of which a recording touches. What is recorded, and who
//! reads it, is decided elsewhere.

use std::time::Duration;

/// Powers of two of microseconds that are told apart: the last but one ends at 33 seconds.
pub const BUCKETS: usize = 27;

/// A histogram of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many were below 1 µs, 2 µs, 4 µs, …; the last counts all longer ones.
    pub buckets: [u64; BUCKETS],
    /// All together, nanoseconds.
    pub sum: u64,
}

impl Durations {
    /// The bucket that a duration belongs to.
    pub fn bucket(duration: Duration) -> usize {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bits = (u64::BITS - micros.leading_zeros()) as usize;
        bits.min(BUCKETS - 1)
    }

    /// Counts one.
    pub fn record(&mut self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[Self::bucket(duration)] += 1;
        self.sum = self.sum.saturating_add(nanos);
    }

    /// Counts all that another one has counted.
    pub fn merge(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(sum, count)| *sum += count);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_powers_of_two_and_are_added_up() {
        let mut one = Durations::default();
        for micros in [0, 1, 2, 3, 1023, 1024] {
            one.record(Duration::from_micros(micros));
        }
        one.record(Duration::MAX);
        assert_eq!((one.buckets[..3].to_vec(), one.buckets[10], one.buckets[11]), (vec![1, 1, 2], 1, 1));
        assert_eq!((one.buckets[BUCKETS - 1], one.count(), one.sum), (1, 7, u64::MAX));
        let mut two = Durations::default();
        two.record(Duration::from_nanos(900));
        let copy = two;
        two.merge(&copy);
        assert_eq!((two.count(), two.sum, two.buckets[0]), (2, 1800, 2));
    }
}
