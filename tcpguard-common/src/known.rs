//! The front of the flow tables: one cache line says of a flow whether its table has it, instead of the three that a hash
//! map's lookup touches. Not the table: what is known of a flow stands there, and it alone is exact.
//!
//! Whoever inserts into a table enters the flow here afterwards, whoever removes from it strikes it out afterwards. So
//! what is in a table and not here was inserted a moment ago, or its bucket was crowded once: there was no room for a flow,
//! or another one had its tag already. Of a crowded bucket the table is asked, until a walk over the tables finds all of the
//! bucket's flows here, each with a tag of its own.
//!
//! Tags are 32 bits of a hash, so that a bucket holds fifteen: a front of half the size misses the caches, and the
//! processor's translations of addresses, far less often than one of whole hashes.

use crate::flow::FlowKey;
use crate::packet::Family;

/// Flows a bucket has room for.
pub const ROOM: usize = 15;
/// Buckets for both families together, a power of two: two million flows overflow one in two hundred.
pub const BUCKETS: u32 = 1 << 18;

/// Words that say of each bucket, by a bit, whether anything may be in it, or in those buckets of TIME_WAIT fingerprints that
/// belong to it ([`occupied_at`]). 32 KB, which stay in a cache: while there are few flows, most segments of strangers are told
/// from that alone, without a line of two tables that together take twenty megabytes.
///
/// Whoever puts something into any of them sets the bit afterwards. Whoever takes the last thing out clears it, and looks
/// again: what was put in before that look he sees, and what is put in after it has its bit set after he cleared it.
pub const OCCUPIED_WORDS: u32 = BUCKETS / 64;

/// The word of [`OCCUPIED_WORDS`] that is about this bucket, and its bit.
#[inline(always)]
pub fn occupied_at(bucket: u32) -> (u32, u64) {
    (bucket / 64 % OCCUPIED_WORDS, 1 << (bucket % 64))
}

/// What [`Bucket::crowded`] is for a flow that found no room or no tag of its own, whatever it was.
pub const CROWDED: u32 = 1;

/// One cache line of the front.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Bucket {
    /// [`Place::tag`] of flows; 0 is free.
    pub tags: [u32; ROOM],
    /// [`CROWDED`] once there was a flow without a place of its own; another number while somebody who wrote it walks over the
    /// tables to find out whether all of the bucket's flows are here again. 0 when they are.
    pub crowded: u32,
}

/// Where a flow stands, and as what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Index of the bucket, below [`BUCKETS`].
    pub bucket: u32,
    /// The flow in 32 bits; never 0.
    pub tag: u32,
}

/// What the front says of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The table has it. Another flow of the same tag would look so, too: one in 2^28 that are not in the table, at most.
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
        let tag = (hash >> 32) as u32;
        Self { bucket: hash as u32 % BUCKETS, tag: if tag == 0 { 1 } else { tag } }
    }

    /// The place of a flow.
    pub fn of<A: Family>(hash_key: [u64; 2], flow: &FlowKey<A>) -> Self {
        Self::of_hash(A::hash_flow_fast(hash_key, flow))
    }
}

impl Bucket {
    /// What this bucket says of a flow whose bucket it is.
    #[inline(always)]
    pub fn presence(&self, tag: u32) -> Presence {
        // No loop and no iterator: this is most of what judging a segment of an unknown flow takes besides the cookie.
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o] = self.tags;
        let first =
            a == tag || b == tag || c == tag || d == tag || e == tag || f == tag || g == tag || h == tag;
        if first || i == tag || j == tag || k == tag || l == tag || m == tag || n == tag || o == tag {
            Presence::Known
        } else if self.crowded == 0 {
            Presence::Unknown
        } else {
            Presence::Unsure
        }
    }

    /// Enters a flow that is new in its table: what everybody who shares a bucket does with exchanges instead.
    pub fn enter(&mut self, tag: u32) {
        // What has this tag already is another flow, or was: when it is struck out, the table is to be asked.
        match self.tags.iter_mut().find(|place| [0, tag].contains(place)) {
            Some(free) if *free == 0 => *free = tag,
            _ => self.crowded = CROWDED,
        }
    }

    /// Strikes a flow out.
    pub fn strike(&mut self, tag: u32) {
        self.tags.iter_mut().filter(|place| **place == tag).for_each(|place| *place = 0);
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
    fn a_bucket_knows_fifteen_flows_and_is_unsure_of_others_from_the_sixteenth_on() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.presence(1), Presence::Unknown);
        for tag in 1..=15 {
            bucket.enter(tag);
        }
        assert!((1..=15).all(|tag| bucket.presence(tag) == Presence::Known));
        assert_eq!(bucket.presence(16), Presence::Unknown);
        bucket.enter(16);
        assert_eq!((bucket.presence(16), bucket.presence(17)), (Presence::Unsure, Presence::Unsure));
        bucket.strike(3);
        bucket.enter(17);
        assert_eq!((bucket.presence(17), bucket.presence(3)), (Presence::Known, Presence::Unsure));
    }

    #[test]
    fn of_two_flows_with_one_tag_the_second_is_never_taken_for_unknown() {
        let mut bucket = Bucket::default();
        bucket.enter(7);
        bucket.enter(7);
        assert_eq!(bucket.presence(7), Presence::Known);
        bucket.strike(7);
        assert_eq!(bucket.presence(7), Presence::Unsure);
    }

    #[test]
    fn a_place_is_inside_the_front_and_its_tag_is_never_that_of_a_free_one() {
        for hash in [0, 1, u64::from(BUCKETS), u64::MAX] {
            let place = Place::of_hash(hash);
            assert!(place.bucket < BUCKETS && place.tag != 0);
        }
    }

    #[test]
    fn a_flow_has_one_index_in_the_front_and_among_fingerprints_and_each_index_a_bit_of_its_own() {
        for hash in [0, 1, 77 << 40 | 0x3_ffff, u64::MAX] {
            let (place, _) = crate::fingerprint::of_hash(hash);
            assert_eq!(occupied_at(Place::of_hash(hash).bucket), occupied_at(place));
            assert_eq!(Place::of_hash(hash).bucket, crate::fingerprint::bucket(place, 0));
        }
        let bits: std::collections::HashSet<_> = (0..BUCKETS).map(occupied_at).collect();
        assert_eq!(bits.len(), BUCKETS as usize);
        assert!(bits.iter().all(|&(word, bit)| word < OCCUPIED_WORDS && bit.is_power_of_two()));
    }

    #[test]
    fn a_bucket_is_a_cache_line() {
        assert_eq!(size_of::<Bucket>(), 64);
    }
}
