//! Hashing where a collision costs a little work or a little precision, never a forged connection: a few instructions
//! instead of a SipHash. Not for cookies, keys or fingerprints.

/// The finaliser of splitmix64: every input bit reaches every output bit, in five instructions.
#[inline(always)]
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The hash of one word under a secret key. `domain` tells uses apart: the same word in two domains has unrelated
/// hashes. Whoever does not know the key cannot find two words whose hashes share bits, and no hash ever leaves the
/// guard from which the key could be guessed; that is all that is asked of it.
#[inline(always)]
pub fn keyed(key: [u64; 2], domain: u64, word: u64) -> u64 {
    /// Odd, so that domains stay apart; 2^64 divided by the golden ratio, so that they do so in every bit.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let [k0, k1] = key;
    mix((word ^ k0).wrapping_add(k1 ^ domain.wrapping_mul(SPREAD)))
}

#[cfg(test)]
mod tests {
    use super::keyed;
    use std::collections::HashSet;
    use std::vec::Vec;

    #[test]
    fn key_domain_and_word_each_change_the_hash_in_both_halves() {
        let key = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
        let words = (0..1000).map(|word| keyed(key, 3, word)).collect();
        let domains = (0..1000).map(|domain| keyed(key, domain, 5)).collect();
        let first = (0..64).map(|bit| keyed([key[0] ^ 1 << bit, key[1]], 3, 5)).collect();
        let second = (0..64).map(|bit| keyed([key[0], key[1] ^ 1 << bit], 3, 5)).collect();
        let differ: [Vec<u64>; 4] = [words, domains, first, second];
        for hashes in differ {
            let low: HashSet<u32> = hashes.iter().map(|&hash| hash as u32).collect();
            let high: HashSet<u32> = hashes.iter().map(|hash| (hash >> 32) as u32).collect();
            assert_eq!((low.len(), high.len()), (hashes.len(), hashes.len()));
        }
    }
}
