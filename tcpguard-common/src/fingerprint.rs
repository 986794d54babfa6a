//! The fingerprint of a flow that XDP no longer knows but the stack still cares about, because it is in TIME_WAIT.
//! Not the table: the engine writes that and XDP reads it.

use crate::flow::FlowKey;
use crate::known::BUCKETS;
use crate::packet::Family;

/// Fingerprints that share a bucket.
pub const WAYS: u32 = 4;

/// The most that [`spread`] says: 32 million places, 128 MB.
pub const MOST_SPREAD: u32 = 5;

/// How large the table is for `flows` in TIME_WAIT of each family: it has 2^this times as many buckets as the front of the flow
/// tables, a million places of four bytes at least, and twice as many as flows. Where every second place is taken, one flow in
/// 27 finds its bucket full.
pub fn spread(flows: u64) -> u32 {
    let buckets = flows.saturating_mul(2).div_ceil(WAYS.into()).div_ceil(BUCKETS.into());
    // No table is smaller than the front, and none larger than the most.
    buckets.clamp(1, 1 << MOST_SPREAD).next_power_of_two().trailing_zeros()
}

/// The index of the bucket of a flow at `place`, in a table of this [`spread`]. Buckets that share one of the
/// [bits](crate::known::occupied_at) that say whether anything is in them lie side by side.
#[inline(always)]
pub fn bucket(place: u32, spread: u32) -> u32 {
    let further = (place / BUCKETS) & ((1 << spread) - 1);
    ((place % BUCKETS) << spread) | further
}

/// Where the fingerprint of `flow` lies (for [`bucket`] to make an index of) and what it is; never 0, which marks an empty
/// place. Two flows share one by accident with probability 2^-32 in a bucket, and then a segment reaches the stack that need
/// not have.
#[inline(always)]
pub fn fingerprint<A: Family>(hash_key: [u64; 2], flow: &FlowKey<A>) -> (u32, u32) {
    of_hash(A::hash_flow_fast(hash_key, flow))
}

/// The same of a flow whose [`Family::hash_flow_fast`] is `hash`.
#[inline(always)]
pub fn of_hash(hash: u64) -> (u32, u32) {
    let word = (hash >> 32) as u32;
    (hash as u32, if word == 0 { 1 } else { word })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::V4;

    #[test]
    fn a_table_has_twice_the_places_that_are_asked_for_within_bounds_and_every_place_a_bucket_in_it() {
        let entries = |flows| u64::from(WAYS * BUCKETS) << spread(flows);
        for flows in [0, 8, 262_144, 524_288] {
            assert_eq!(entries(flows), 1 << 20);
        }
        assert_eq!((entries(524_289), entries(1 << 20), entries(3_000_000)), (1 << 21, 1 << 21, 1 << 23));
        assert_eq!((entries(4_194_304), entries(1 << 30), entries(u64::MAX)), (1 << 23, 1 << 25, 1 << 25));
        for spread in 0..=MOST_SPREAD {
            let mut met = std::vec![false; (BUCKETS as usize) << spread];
            (0..BUCKETS << spread).for_each(|place| met[bucket(place, spread) as usize] = true);
            assert!(met.iter().all(|&met| met), "{spread}");
            for place in [0, 1, 77, BUCKETS - 1, BUCKETS, u32::MAX] {
                assert_eq!(bucket(place, spread) >> spread, place % BUCKETS, "beside those of the same bit");
            }
        }
    }

    #[test]
    fn fingerprints_depend_on_every_part_of_the_flow() {
        let flow = FlowKey {
            peer: V4([1, 2, 3, 4]),
            local: V4([5, 6, 7, 8]),
            peer_port: [9, 9],
            local_port: [0, 80],
        };
        let first = fingerprint([1, 2], &flow);
        assert!(first.1 != 0);
        assert_ne!(first, fingerprint([1, 3], &flow));
        assert_ne!(first, fingerprint([1, 2], &FlowKey { peer: V4([1, 2, 3, 5]), ..flow }));
        assert_ne!(first, fingerprint([1, 2], &FlowKey { local: V4([5, 6, 7, 9]), ..flow }));
        assert_ne!(first, fingerprint([1, 2], &FlowKey { peer_port: [9, 8], ..flow }));
        assert_ne!(first, fingerprint([1, 2], &FlowKey { local_port: [0, 81], ..flow }));
    }
}
