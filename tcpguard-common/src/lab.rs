//! What the lab's XDP programs and xtask agree on: the flood's templates, how a spoofed segment follows from its
//! source address and port, and the receiver's counters. The guard itself uses none of it.

pub use crate::hash::mix;

/// The names of the lab's programs and maps, as its object file carries them.
pub mod name {
    /// Passes everything.
    pub const PASS: &str = "pass";
    /// Sends every TCP segment back to where it came from.
    pub const REFLECT: &str = "reflect";
    /// Drops everything.
    pub const DISCARD: &str = "discard";
    /// The flood generator, for `BPF_PROG_RUN` with live frames.
    pub const FLOOD: &str = "flood";
    /// The receiver that answers to spoofed addresses end in.
    pub const VERIFY: &str = "verify";
    /// Sends back what comes from the spoofed network, and leaves the rest to the program in [`NEXT`].
    pub const SIFT: &str = "sift";
    /// Program array of one entry: what [`SIFT`] leaves the rest to.
    pub const NEXT: &str = "NEXT";
    /// XSKMAP by receive queue: whoever takes what the receiver would pass, in the kernel's place.
    pub const TAKERS: &str = "TAKERS";
    /// `Array<FloodConfig>`, one entry.
    pub const CONFIG: &str = "CONFIG";
    /// `PerCpuArray<u64>`: frames generated, indexed by template.
    pub const GENERATED: &str = "GENERATED";
    /// `PerCpuArray<u64>`: frames received, indexed by [`super::Received`].
    pub const RECEIVED: &str = "RECEIVED";
}

/// Templates a flood can mix; a power of two.
pub const TEMPLATES: u32 = 4;
/// Bytes a template holds. `BPF_PROG_RUN` is given frames of this length and the generator cuts them.
pub const TEMPLATE_LEN: usize = 128;
/// [`TEMPLATE_LEN`] in the words it is copied in.
pub const TEMPLATE_WORDS: usize = TEMPLATE_LEN / 8;

/// First bytes of the sources over IPv6, network order: those of documentation (RFC 3849). The four bytes behind are what the
/// address over IPv4 would be, so that as many /56 are among them as /24 are there; the rest is [`V6_SUFFIX`].
pub const V6_PREFIX: [u8; 4] = [0x20, 0x01, 0x0d, 0xb8];
/// Last bytes of the sources over IPv6.
pub const V6_SUFFIX: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 1];
/// How much longer the header of IPv6 is: what lies behind it is so many bytes further on.
pub const V6_SHIFT: usize = 20;

/// Where the fields that differ from frame to frame lie: Ethernet, IPv4 without options, TCP. With IPv6 the random part of the
/// source lies where it does with IPv4, and what is TCP's [`V6_SHIFT`] further on.
pub mod offset {
    /// IPv4 header checksum.
    pub const IP_CHECKSUM: usize = 24;
    /// IPv4 source address.
    pub const SOURCE: usize = 26;
    /// TCP source port.
    pub const SOURCE_PORT: usize = 34;
    /// Sequence number.
    pub const SEQ: usize = 38;
    /// Acknowledgement number.
    pub const ACK: usize = 42;
    /// TCP checksum.
    pub const TCP_CHECKSUM: usize = 50;
    /// The first option.
    pub const OPTIONS: usize = 54;
}

/// One kind of frame: its bytes with zeroes where each frame differs, and what they add to the checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Template {
    /// The frame from its first byte, as words in memory order.
    pub words: [u64; TEMPLATE_WORDS],
    /// One's-complement sum of the IPv4 header, in native 16-bit words, not folded; 0 with IPv6, which has none.
    pub ip_sum: u32,
    /// The same of TCP header, payload and pseudo header.
    pub tcp_sum: u32,
    /// The frame's length, at most [`TEMPLATE_LEN`].
    pub len: u16,
    /// Offset of the TSval in the frame (even); 0 when there is none.
    pub tsval: u16,
    /// 1 when the acknowledgement number is random too.
    pub random_ack: u16,
    /// Zero.
    pub pad: u16,
}

/// What the generator and the receiver are told. `count` is 0 until it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FloodConfig {
    /// Keys the sequence numbers, so that an answer can be judged without remembering what was asked.
    pub key: u64,
    /// Where the sequence of random sources starts.
    pub seed: u64,
    /// Frames one CPU may send before the generator stops by itself.
    pub budget: u64,
    /// The interface frames leave from.
    pub ifindex: u32,
    /// Templates in use, 1–[`TEMPLATES`].
    pub count: u32,
    /// The spoofed network, host order.
    pub network: u32,
    /// Its netmask.
    pub netmask: u32,
    /// The bits that every source port has.
    pub port: u32,
    /// The bits of the source port that are random.
    pub port_mask: u32,
    /// The version of IP: 4 or 6.
    pub version: u32,
    /// 1 when the receiver is to complete handshakes: the sources are a botnet's own addresses then.
    pub complete: u32,
    /// The frames.
    pub template: [Template; TEMPLATES as usize],
}

/// What a spoofed source sends: all of it follows from its address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoofed {
    /// Its initial sequence number.
    pub isn: u32,
    /// Its TSval, when the template has timestamps.
    pub tsval: u32,
    /// Index of its template.
    pub template: u32,
}

impl Spoofed {
    /// What the source at `address` (host order) and `port` (host order) sends in a flood keyed `key` of `count`
    /// templates.
    #[inline(always)]
    pub fn of(key: u64, count: u32, address: u32, port: u16) -> Self {
        let hash = mix(key ^ ((address as u64) << 16 | port as u64));
        let tsval = (hash as u32).rotate_left(7) ^ 0x5bd1_e995;
        Self { isn: (hash >> 32) as u32, tsval, template: ((hash as u8 as u32) * count) >> 8 }
    }
}

/// What the receiver counts, each frame once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Received {
    /// Not TCP: passed.
    Other,
    /// TCP for a real address, without SYN+ACK: passed.
    Segment,
    /// SYN-ACK for a real address: passed.
    SynAck,
    /// SYN-ACK for a spoofed address, right in checksums, acknowledgement and timestamp echo: dropped.
    SpoofedSynAck,
    /// SYN-ACK for a spoofed address with a wrong IPv4 or TCP checksum: dropped.
    SpoofedBadChecksum,
    /// SYN-ACK for a spoofed address that acknowledges what was never sent: dropped.
    SpoofedBadAck,
    /// SYN-ACK for a spoofed address whose options were not offered, or echo a wrong TSval: dropped.
    SpoofedBadOptions,
    /// A spoofed address's own SYN, sent back as it was: dropped.
    SpoofedReflection,
    /// RST for a spoofed address: dropped.
    SpoofedReset,
    /// Any other TCP segment for a spoofed address: dropped.
    SpoofedOther,
    /// As [`Self::SpoofedSynAck`], and acknowledged: sent back as the last segment of a handshake.
    SpoofedHandshake,
}

impl Received {
    /// Every counter, in index order.
    pub const ALL: [Self; 11] = [
        Self::Other,
        Self::Segment,
        Self::SynAck,
        Self::SpoofedSynAck,
        Self::SpoofedBadChecksum,
        Self::SpoofedBadAck,
        Self::SpoofedBadOptions,
        Self::SpoofedReflection,
        Self::SpoofedReset,
        Self::SpoofedOther,
        Self::SpoofedHandshake,
    ];
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `#[repr(C)]`, integers only, without padding (asserted in the tests below).
    unsafe impl aya::Pod for super::FloodConfig {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn the_configuration_has_no_padding() {
        assert_eq!(size_of::<Template>(), TEMPLATE_LEN + 16);
        assert_eq!(size_of::<FloodConfig>(), 3 * 8 + 8 * 4 + TEMPLATES as usize * size_of::<Template>());
    }

    #[test]
    fn counters_are_indexed_in_order() {
        for (index, counter) in Received::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index);
        }
    }

    #[test]
    fn every_template_gets_its_share_of_the_sources() {
        let mut seen = [0u32; 3];
        for address in 0..30_000 {
            seen[Spoofed::of(7, 3, address, 1024).template as usize] += 1;
        }
        assert!(seen.iter().all(|n| (9_000..11_000).contains(n)), "{seen:?}");
    }
}
