//! SipHash over whole words, for inputs whose length is known when the code is compiled: no buffer, no loop that
//! survives to run time. The input is `N` words and up to seven bytes more. Not a general hasher.

/// SipHash-1-3: what cookies are made with.
#[inline(always)]
pub(crate) fn sip13<const N: usize>(key: [u64; 2], words: [u64; N], tail: u64) -> u64 {
    sip::<1, 3, N>(key, words, tail)
}

/// SipHash-2-4: what keys are made with.
#[inline(always)]
pub(crate) fn sip24<const N: usize>(key: [u64; 2], words: [u64; N], tail: u64) -> u64 {
    sip::<2, 4, N>(key, words, tail)
}

/// The message is `words` in little-endian order and then the low seven bytes of `tail`.
#[inline(always)]
fn sip<const C: usize, const D: usize, const N: usize>(key: [u64; 2], words: [u64; N], tail: u64) -> u64 {
    let [k0, k1] = key;
    let mut state = State([
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ]);
    // Written out: a loop over five words would survive, and keep them on the stack, of which BPF has little.
    const { assert!(N <= 5) };
    macro_rules! absorb {
        ($($index:literal)+) => { $( if let Some(&word) = words.get($index) { state.absorb::<C>(word) } )+ };
    }
    absorb!(0 1 2 3 4);
    let len = (8 * N as u64 + 7) & 0xff;
    state.absorb::<C>(len << 56 | tail & 0x00ff_ffff_ffff_ffff);
    state.0[2] ^= 0xff;
    state.rounds::<D>();
    let State([a, b, c, d]) = state;
    a ^ b ^ c ^ d
}

struct State([u64; 4]);

impl State {
    #[inline(always)]
    fn absorb<const C: usize>(&mut self, word: u64) {
        self.0[3] ^= word;
        self.rounds::<C>();
        self.0[0] ^= word;
    }

    #[inline(always)]
    fn rounds<const COUNT: usize>(&mut self) {
        let State([mut a, mut b, mut c, mut d]) = *self;
        for _ in 0..COUNT {
            a = a.wrapping_add(b);
            b = b.rotate_left(13) ^ a;
            a = a.rotate_left(32);
            c = c.wrapping_add(d);
            d = d.rotate_left(16) ^ c;
            a = a.wrapping_add(d);
            d = d.rotate_left(21) ^ a;
            c = c.wrapping_add(b);
            b = b.rotate_left(17) ^ c;
            c = c.rotate_left(32);
        }
        self.0 = [a, b, c, d];
    }
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn message<const N: usize>(words: [u64; N], tail: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(&tail.to_le_bytes()[..7]);
        bytes
    }

    proptest! {
        #[test]
        fn agree_with_the_references(
            key: [u64; 2], two: [u64; 2], five: [u64; 5], tail: u64,
        ) {
            let mut reference = siphasher::sip::SipHasher24::new_with_keys(key[0], key[1]);
            reference.write(&message(two, tail));
            prop_assert_eq!(super::sip24(key, two, tail), reference.finish());
            let mut reference = siphasher::sip::SipHasher24::new_with_keys(key[0], key[1]);
            reference.write(&message(five, tail));
            prop_assert_eq!(super::sip24(key, five, tail), reference.finish());
            let mut reference = siphasher::sip::SipHasher13::new_with_keys(key[0], key[1]);
            reference.write(&message(two, tail));
            prop_assert_eq!(super::sip13(key, two, tail), reference.finish());
            let mut reference = siphasher::sip::SipHasher13::new_with_keys(key[0], key[1]);
            reference.write(&message(five, tail));
            prop_assert_eq!(super::sip13(key, five, tail), reference.finish());
        }
    }
}
