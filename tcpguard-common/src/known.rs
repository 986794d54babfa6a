//! The front of the flow tables: one cache line says of a flow whether its table has it, instead of the three that a hash
//! map's lookup touches. Not the table: what is known of a flow stands there, and it alone is exact.
//!
//! Whoever inserts into a table enters the flow here afterwards, whoever removes from it strikes it out afterwards. So
//! what is in a table and not here was inserted a moment ago, or its bucket was full once; of a full bucket the table is
//! asked, until a walk over the tables finds all of the bucket's flows here.

use crate::flow::FlowKey;
use crate::packet::Family;

/// Flows a bucket has room for.
pub const ROOM: usize = 7;
/// Buckets for both families together, a power of two: two million flows overflow one in twenty.
pub const BUCKETS: u32 = 1 << 19;

/// What [`Bucket::crowded`] is for a flow that found no room, whatever it was.
pub const CROWDED: u64 = 1;

/// One cache line of the front.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bucket {
    /// [`Place::word`] of flows; 0 is free.
    pub words: [u64; ROOM],
    /// [`CROWDED`] once there was no room for a flow; another number while somebody who wrote it walks over the tables to find
    /// out whether all of the bucket's flows are here again. 0 when they are.
    pub crowded: u64,
}

/// Where a flow stands, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the bucket, below [`BUCKETS`].
    pub bucket: u32,
    /// The flow in 64 bits; never 0.
    pub word: u64,
}

/// What the front says of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The table has it. Another flow with the same word would look so, too: 2^-32 a pair at worst.
    Known,
    /// The table does not have it.
    Unknown,
    /// Ask the table.
    Unsure,
}

impl Place {
    /// The place of a flow whose [`Family::hash_flow_fast`] is `hash`.
    #[inline(always)]
    pub fn of_hash(hash: u64) -> Self {
        Self { bucket: hash as u32 % BUCKETS, word: if hash == 0 { 1 } else { hash } }
    }

    /// The place of a flow.
    pub fn of<A: Family>(hash_key: [u64; 2], flow: &FlowKey<A>) -> Self {
        Self::of_hash(A::hash_flow_fast(hash_key, flow))
    }
}

impl Bucket {
    /// What this bucket says of a flow whose bucket it is.
    #[inline(always)]
    pub fn presence(&self, word: u64) -> Presence {
        let [a, b, c, d, e, f, g] = self.words;
        if a == word || b == word || c == word || d == word || e == word || f == word || g == word {
            Presence::Known
        } else if self.crowded == 0 {
            Presence::Unknown
        } else {
            Presence::Unsure
        }
    }

    /// Enters a flow: what everybody who shares a bucket does with exchanges instead.
    pub fn enter(&mut self, word: u64) {
        if self.words.contains(&word) {
            return;
        }
        match self.words.iter_mut().find(|place| **place == 0) {
            Some(free) => *free = word,
            None => self.crowded = CROWDED,
        }
    }

    /// Strikes a flow out.
    pub fn strike(&mut self, word: u64) {
        self.words.iter_mut().filter(|place| **place == word).for_each(|place| *place = 0);
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `#[repr(C)]`, integers of one size.
    unsafe impl aya::Pod for super::Bucket {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_knows_seven_flows_and_is_unsure_of_others_from_the_eighth_on() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.presence(1), Presence::Unknown);
        for word in [1, 2, 2, 3, 4, 5, 6, 7] {
            bucket.enter(word);
        }
        assert!((1..=7).all(|word| bucket.presence(word) == Presence::Known));
        assert_eq!(bucket.presence(8), Presence::Unknown);
        bucket.enter(8);
        assert_eq!((bucket.presence(8), bucket.presence(9)), (Presence::Unsure, Presence::Unsure));
        bucket.strike(3);
        bucket.enter(9);
        assert_eq!((bucket.presence(9), bucket.presence(3)), (Presence::Known, Presence::Unsure));
    }

    #[test]
    fn a_place_is_inside_the_front_and_its_word_is_never_that_of_a_free_one() {
        for hash in [0, 1, u64::from(BUCKETS), u64::MAX] {
            let place = Place::of_hash(hash);
            assert!(place.bucket < BUCKETS && place.word != 0);
        }
    }
}
