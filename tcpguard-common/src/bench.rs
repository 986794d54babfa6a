//! What the benchmark's XDP programs and xtask agree on: the frame that is rewritten for every run, and how its
//! ends and numbers follow from the frame's number. The guard itself uses none of it.

use crate::flow::{FlowKey, V4, V6};
use crate::lab::mix;
use crate::map::EpochSlot;
use crate::packet::{Family, FrameMut};

/// The names of the benchmark's programs and maps, as its object file carries them.
pub mod name {
    /// Rewrites the whole frame, then runs what stands in [`NEXT`].
    pub const REWRITE: &str = "rewrite";
    /// Does nothing: what every row is compared with.
    pub const NULL: &str = "null";
    /// Redirects to a socket and does nothing else.
    pub const REDIRECT: &str = "redirect";
    /// `Array<Rewrite>`, one entry.
    pub const CONFIG: &str = "CONFIG";
    /// Program array of one entry.
    pub const NEXT: &str = "NEXT";
    /// `Array<u64>`, one entry: the number of the next frame.
    pub const POSITION: &str = "POSITION";
    /// XSKMAP of one entry, where [`REDIRECT`] redirects to.
    pub const TARGET: &str = "TARGET";
}

/// Bytes a template holds.
pub const TEMPLATE_LEN: usize = 128;
/// [`TEMPLATE_LEN`] in the words it is copied in.
pub const TEMPLATE_WORDS: usize = TEMPLATE_LEN / 8;

/// How the benchmark rewrites a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Rewrite {
    /// The frame from its first byte, as words in memory order, with zeroes where each frame differs.
    pub words: [u64; TEMPLATE_WORDS],
    /// The sum of the IPv4 header, see [`crate::packet::checksum`].
    pub ip_sum: u64,
    /// The same of TCP header, data and pseudo header.
    pub tcp_sum: u64,
    /// How many different frames there are; they come in random order. 0: each frame is a new one.
    pub count: u64,
    /// The frame's length, even; what is beyond [`TEMPLATE_LEN`] is zeroes.
    pub len: u32,
    /// 4 or 6.
    pub version: u32,
    /// Offset of the TSval in the frame; 0 when there is none.
    pub tsval: u32,
    /// Which of 256 networks the sources are in.
    pub network: u32,
    /// One of the `ACK_*` constants: what SEG.ACK and TSecr are.
    pub ack: u32,
    /// Zero.
    pub pad: u32,
    /// The epoch that cookies are made in.
    pub slot: EpochSlot,
}

/// SEG.ACK and TSecr are zero: a SYN.
pub const ACK_NONE: u32 = 0;
/// They are random, except that TSecr names the epoch of [`Rewrite::slot`].
pub const ACK_RANDOM: u32 = 1;
/// They are those of a valid cookie.
pub const ACK_COOKIE: u32 = 2;

/// What differs from frame to frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Source port, network order.
    pub port: [u8; 2],
    /// SEG.SEQ.
    pub seq: u32,
    /// SEG.ACK.
    pub ack: u32,
    /// TSval.
    pub tsval: u32,
    /// TSecr.
    pub tsecr: u32,
}

impl Rewrite {
    /// Which frame comes at `position`.
    #[inline(always)]
    pub fn number(&self, position: u64) -> u64 {
        if self.count == 0 { position } else { ((mix(position) >> 32) * self.count) >> 32 }
    }

    /// The numbers in frame `number`.
    #[inline(always)]
    pub fn numbers(&self, number: u64) -> Numbers {
        let (first, second) = (mix(number ^ u64::from(self.network) << 56), mix(number << 1 | 1));
        Numbers {
            port: ((first >> 48) as u16 | 0x0400).to_be_bytes(),
            seq: first as u32,
            ack: (second >> 32) as u32,
            tsval: second as u32,
            tsecr: self.slot.epoch << 30 | (first >> 16) as u32 & 0x3fff_ffff,
        }
    }

    /// The flow that frame `number` belongs to.
    #[inline(always)]
    pub fn flow<A: Ends>(&self, number: u64) -> FlowKey<A> {
        FlowKey {
            peer: A::source(self.network as u8, number),
            local: A::GUARDED,
            peer_port: self.numbers(number).port,
            local_port: PORT.to_be_bytes(),
        }
    }
}

/// The protected port.
pub const PORT: u16 = 80;

/// Where the benchmark's segments come from and go to.
pub trait Ends: Family {
    /// The protected address.
    const GUARDED: Self;
    /// A source in one of 256 networks, another one for each of the first 2^24 numbers.
    fn source(network: u8, number: u64) -> Self;
    /// Writes the address into a frame.
    fn store<F: FrameMut + ?Sized>(self, frame: &mut F, offset: usize) -> Option<()>;
}

impl Ends for V4 {
    const GUARDED: Self = Self([198, 51, 100, 1]);

    #[inline(always)]
    fn source(network: u8, number: u64) -> Self {
        // An odd factor leaves them all different.
        let [_, a, b, c] = (number as u32).wrapping_mul(0x9e37_79b1).to_be_bytes();
        Self([network, a, b, c])
    }

    #[inline(always)]
    fn store<F: FrameMut + ?Sized>(self, frame: &mut F, offset: usize) -> Option<()> {
        frame.store(offset, self.0)
    }
}

impl Ends for V6 {
    const GUARDED: Self = Self([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

    #[inline(always)]
    fn source(network: u8, number: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = mix(number).to_be_bytes();
        Self([0x20, 1, 0xd, 0xb8, 0, 2, 0, network, a, b, c, d, e, f, g, h])
    }

    #[inline(always)]
    fn store<F: FrameMut + ?Sized>(self, frame: &mut F, offset: usize) -> Option<()> {
        frame.store(offset, self.0)
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `#[repr(C)]`, integers only, without padding (asserted in the tests below).
    unsafe impl aya::Pod for super::Rewrite {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;
    use std::collections::HashSet;

    fn rewrite(count: u64) -> Rewrite {
        Rewrite {
            words: [0; _],
            ip_sum: 0,
            tcp_sum: 0,
            count,
            len: 74,
            version: 4,
            tsval: 0,
            network: 11,
            ack: ACK_RANDOM,
            pad: 0,
            slot: EpochSlot { epoch: 5, ..EpochSlot::default() },
        }
    }

    #[test]
    fn the_configuration_has_no_padding() {
        assert_eq!(size_of::<Rewrite>(), TEMPLATE_LEN + 3 * 8 + 6 * 4 + size_of::<EpochSlot>());
    }

    #[test]
    fn new_frames_are_all_of_different_flows_and_a_few_frames_come_in_random_order() {
        let (fresh, few) = (rewrite(0), rewrite(16));
        let v4: HashSet<_> = (0..50_000).map(|n| fresh.flow::<V4>(fresh.number(n))).collect();
        let v6: HashSet<_> = (0..50_000).map(|n| fresh.flow::<V6>(fresh.number(n))).collect();
        assert_eq!((v4.len(), v6.len()), (50_000, 50_000));
        let numbers: HashSet<_> = (0..1000).map(|n| few.number(n)).collect();
        assert_eq!(numbers, (0..16).collect());
        assert!((0..1000).all(|n| fresh.numbers(n).tsecr >> 30 == 1 && fresh.numbers(n).port[0] != 0));
    }
}
