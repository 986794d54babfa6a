//! The fingerprint of a flow that XDP no longer knows but the stack still cares about, because it is in TIME_WAIT.
//! Not the table: the engine writes that and XDP reads it.

use crate::flow::FlowKey;
use crate::map::FINGERPRINTS;
use crate::packet::Family;

/// Fingerprints that share a bucket.
pub const WAYS: u32 = 4;

/// Where the fingerprint of `flow` lies (the index of its bucket, below [`FINGERPRINTS`] / [`WAYS`]) and what it
/// is; never 0, which marks an empty place. Two flows share one by accident with probability 2^-32 in a bucket,
/// and then a segment reaches the stack that need not have.
#[inline(always)]
pub fn fingerprint<A: Family>(hash_key: [u64; 2], flow: &FlowKey<A>) -> (u32, u32) {
    of_hash(A::hash_flow_fast(hash_key, flow))
}

/// The same of a flow whose [`Family::hash_flow_fast`] is `hash`.
#[inline(always)]
pub fn of_hash(hash: u64) -> (u32, u32) {
    let word = (hash >> 32) as u32;
    (hash as u32 % (FINGERPRINTS / WAYS), if word == 0 { 1 } else { word })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::V4;

    #[test]
    fn fingerprints_stay_inside_the_table_and_depend_on_every_part_of_the_flow() {
        let flow = FlowKey {
            peer: V4([1, 2, 3, 4]),
            local: V4([5, 6, 7, 8]),
            peer_port: [9, 9],
            local_port: [0, 80],
        };
        let first = fingerprint([1, 2], &flow);
        assert!(first.0 < FINGERPRINTS / WAYS && first.1 != 0);
        assert_ne!(first, fingerprint([1, 3], &flow));
        assert_ne!(first, fingerprint([1, 2], &FlowKey { peer: V4([1, 2, 3, 5]), ..flow }));
        assert_ne!(first, fingerprint([1, 2], &FlowKey { local: V4([5, 6, 7, 9]), ..flow }));
        assert_ne!(first, fingerprint([1, 2], &FlowKey { peer_port: [9, 8], ..flow }));
        assert_ne!(first, fingerprint([1, 2], &FlowKey { local_port: [0, 81], ..flow }));
    }
}
