//! The network header of both families, as far as TCP needs it. A header that is certainly followed by TCP but
//! malformed is still taken apart, with the fault noted: the ports must be known before anybody may drop it.

use super::{Frame, FrameMut, Tcp, checksum, part};
use crate::filter::Point;
use crate::flow::{FlowKey, V4, V6};
use crate::reason::Reason;
use crate::siphash::{sip13, sip24};

/// How many IPv6 extension headers may stand before TCP. RFC 8200 §4.1 orders at most six of them; what a longer chain
/// leads to is not looked for: [`Reason::HeaderChain`].
pub const MAX_EXTENSION_HEADERS: usize = 6;

pub(super) const PROTOCOL_TCP: u8 = 6;
/// What new datagrams start with: the recommended default (RFC 1700, as Linux).
const HOP_LIMIT: u8 = 64;

/// A network header that leads to TCP. Offsets count from the frame's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Offset of this header.
    pub l3: usize,
    /// Offset of the TCP header.
    pub l4: usize,
    /// Bytes of TCP header and data by the IP length field; inside the frame unless there is a `fault`.
    pub l4_len: usize,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// The two ECN bits (RFC 3168 §5).
    pub ecn: u8,
    /// What is wrong with the header.
    pub fault: Fault,
}

/// A network header by itself, whatever it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// What follows: a protocol, or an IPv6 extension header.
    pub protocol: u8,
    /// Bytes of this header, IPv4 options included.
    pub header_len: usize,
    /// Bytes of the datagram by its length field, this header included.
    pub total: usize,
    /// Whether it says that it is a fragment of more.
    pub more_fragments: bool,
}

/// What is wrong with a network header, if something is. A word rather than a reason, so that BPF's verifier need not follow
/// everything up to where it counts once for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(u32);

impl Fault {
    const NONE: Self = Self(0);
    const BAD_LENGTH: Self = Self(1);
    const TRUNCATED: Self = Self(2);
    const FRAGMENT: Self = Self(3);
    /// [`Reason::HeaderChain`].
    pub const HEADER_CHAIN: Self = Self(4);

    /// The reason to drop such a segment.
    #[inline(always)]
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::BAD_LENGTH => Some(Reason::BadLength),
            Self::TRUNCATED => Some(Reason::Truncated),
            Self::FRAGMENT => Some(Reason::Fragment),
            Self::HEADER_CHAIN => Some(Reason::HeaderChain),
            _ => None,
        }
    }

    /// The same, see [`Frame::opaque`].
    #[inline(always)]
    pub fn opaque<F: Frame + ?Sized>(self, frame: &F) -> Self {
        Self(frame.opaque(self.0))
    }
}

/// What the two families do differently on the wire.
pub trait Family: Point {
    /// The Ethernet type.
    const ETHER_TYPE: u16;
    /// The protocol number of its ICMP.
    const ICMP: u8;
    /// Where the header says what follows it, bytes from its start.
    const PROTOCOL_AT: usize;
    /// Length of the header without options, bytes.
    const HEADER_LEN: usize;
    /// The MSS of a peer that announces none (RFC 9293 §3.7.1).
    const DEFAULT_MSS: u16;

    /// The header at `l3`; `None` when the frame carries no TCP, a later fragment, what has hops to go by its routing
    /// header, or ends inside the header. With [`Fault::HEADER_CHAIN`] it may be TCP, and `l4` is that of this header.
    fn parse<F: Frame + ?Sized>(frame: &F, l3: usize) -> Option<Ip<Self>>
    where
        Self: Sized;

    /// The header at `l3` by itself; `None` when there is none of this family, or that of a later fragment.
    fn parse_plain<F: Frame + ?Sized>(frame: &F, l3: usize) -> Option<Plain<Self>>
    where
        Self: Sized;

    /// Whether the header's own checksum holds; IPv6 has none.
    fn header_checksum_ok<F: Frame + ?Sized>(frame: &F, ip: &Ip<Self>) -> bool
    where
        Self: Sized;

    /// SipHash-2-4 over the whole flow key, a word and the low seven bytes of `tail`.
    fn hash_flow(key: [u64; 2], flow: &FlowKey<Self>, word: u32, tail: u64) -> u64
    where
        Self: Sized;

    /// SipHash-1-3 of the same: for what is [cut short](crate::cookie) before anybody sees it, under a key that does not live long.
    fn mac_of_flow(key: [u64; 2], flow: &FlowKey<Self>, word: u32, tail: u64) -> u64
    where
        Self: Sized;

    /// A keyed hash of the whole flow key, for places in tables: see [`crate::fingerprint`].
    fn hash_flow_fast(key: [u64; 2], flow: &FlowKey<Self>) -> u64
    where
        Self: Sized;

    /// The address as the pseudo header's sum counts it, see [`checksum`].
    fn sum(self) -> u64;

    /// Whether it is the address of one machine elsewhere: not multicast, broadcast, unspecified or loopback.
    fn is_unicast(self) -> bool;

    /// Writes the header without options that leads to `l4_len` bytes of TCP: DF set, hop limit 64.
    fn write_header<F: FrameMut + ?Sized>(
        frame: &mut F,
        l3: usize,
        ends: (Self, Self),
        l4_len: u16,
        ecn: u8,
    ) -> Option<()>
    where
        Self: Sized;
}

impl Family for V4 {
    const ETHER_TYPE: u16 = 0x0800;
    const ICMP: u8 = 1;
    const PROTOCOL_AT: usize = 9;
    const HEADER_LEN: usize = 20;
    const DEFAULT_MSS: u16 = 536;

    #[inline(always)]
    fn parse<F: Frame + ?Sized>(frame: &F, l3: usize) -> Option<Ip<Self>> {
        let [first, second, third, src, dst] = frame.words(l3)?;
        let [first, second, third] = [first, second, third].map(u32::from_be);
        let header_len = (first >> 24 & 0xf) as usize * 4;
        let (hop_limit, protocol) = ((third >> 24) as u8, (third >> 16) as u8);
        let more_fragments = second & 0x2000 != 0;
        let later_fragment = second & 0x1fff != 0;
        if first >> 28 != 4 || header_len < Self::HEADER_LEN || protocol != PROTOCOL_TCP || later_fragment {
            return None;
        }
        let total = (first & 0xffff) as usize;
        let fault = fault(frame, l3, header_len, total, more_fragments);
        Some(Ip {
            src: V4(src.to_ne_bytes()),
            dst: V4(dst.to_ne_bytes()),
            l3,
            l4: l3 + header_len,
            l4_len: total.saturating_sub(header_len),
            hop_limit,
            ecn: (first >> 16) as u8 & 3,
            fault,
        })
    }

    #[inline(always)]
    fn parse_plain<F: Frame + ?Sized>(frame: &F, l3: usize) -> Option<Plain<Self>> {
        let [version_ihl, _, len_high, len_low] = frame.load::<4>(l3)?;
        let [fragment_high, fragment_low, _, protocol] = frame.load::<4>(l3 + 6)?;
        let header_len = usize::from(version_ihl & 0xf) * 4;
        let later_fragment = fragment_high & 0x1f != 0 || fragment_low != 0;
        if version_ihl >> 4 != 4 || header_len < Self::HEADER_LEN || later_fragment {
            return None;
        }
        Some(Plain {
            src: V4(frame.load(l3 + 12)?),
            dst: V4(frame.load(l3 + 16)?),
            protocol,
            header_len,
            total: usize::from(u16::from_be_bytes([len_high, len_low])),
            more_fragments: fragment_high & 0x20 != 0,
        })
    }

    #[inline(always)]
    fn header_checksum_ok<F: Frame + ?Sized>(frame: &F, ip: &Ip<Self>) -> bool {
        checksum::of_header(frame, ip.l3, ip.l4 - ip.l3).is_some_and(checksum::holds)
    }

    #[inline(always)]
    fn hash_flow(key: [u64; 2], flow: &FlowKey<Self>, word: u32, tail: u64) -> u64 {
        sip24(key, words_v4(flow, word), tail)
    }

    #[inline(always)]
    fn mac_of_flow(key: [u64; 2], flow: &FlowKey<Self>, word: u32, tail: u64) -> u64 {
        sip13(key, words_v4(flow, word), tail)
    }

    #[inline(always)]
    fn hash_flow_fast(key: [u64; 2], flow: &FlowKey<Self>) -> u64 {
        scatter(key, words_v4(flow, 0))
    }

    #[inline(always)]
    fn sum(self) -> u64 {
        u64::from(u32::from_ne_bytes(self.0))
    }

    // RFC 1122 §3.2.1.3; the same that Linux calls martian.
    #[inline(always)]
    fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        !(first == 0 || first == 127 || first & 0xf0 == 0xe0 || self.0 == [255; 4])
    }

    #[inline(always)]
    fn write_header<F: FrameMut + ?Sized>(
        frame: &mut F,
        l3: usize,
        (src, dst): (Self, Self),
        l4_len: u16,
        ecn: u8,
    ) -> Option<()> {
        let [total_high, total_low] = l4_len.checked_add(20)?.to_be_bytes();
        // Identification 0 with DF set: such a datagram is never fragmented (RFC 6864 §4.1).
        let words = [[0x45, ecn, total_high, total_low], [0, 0, 0x40, 0], [HOP_LIMIT, PROTOCOL_TCP, 0, 0]];
        let words = words.map(u32::from_ne_bytes);
        let sum = checksum::of_words(words) + src.sum() + dst.sum();
        let [sum_high, sum_low] = checksum::finish(sum);
        let [first, second, third] = words;
        let third = third | u32::from_ne_bytes([0, 0, sum_high, sum_low]);
        let [src, dst] = [src.0, dst.0].map(u32::from_ne_bytes);
        frame.store_words(l3, [first, second, third, src, dst])
    }
}

impl Family for V6 {
    const ETHER_TYPE: u16 = 0x86dd;
    const ICMP: u8 = 58;
    const PROTOCOL_AT: usize = 6;
    const HEADER_LEN: usize = 40;
    const DEFAULT_MSS: u16 = 1220;

    #[inline(always)]
    fn parse<F: Frame + ?Sized>(frame: &F, l3: usize) -> Option<Ip<Self>> {
        let [first, second, a, b, c, d, e, f, g, h] = frame.words(l3)?;
        let [first, second] = [first, second].map(u32::from_be);
        let (src, dst) = (joined([a, b, c, d]), joined([e, f, g, h]));
        let (next, hop_limit) = ((second >> 8) as u8, second as u8);
        if first >> 28 != 6 {
            return None;
        }
        let found = if next == PROTOCOL_TCP { Self::HEADER_LEN as u32 } else { frame.find_tcp(l3, next)? };
        let header_len = frame.opaque_offset((found & HEADERS_LEN) as usize);
        let total = Self::HEADER_LEN + (second >> 16) as usize;
        let fault = if found & OUT_OF_SIGHT != 0 {
            Fault::HEADER_CHAIN
        } else {
            fault(frame, l3, header_len, total, found & MORE_FRAGMENTS != 0)
        };
        Some(Ip {
            src: V6(src),
            dst: V6(dst),
            l3,
            l4: l3 + header_len,
            l4_len: total.saturating_sub(header_len),
            hop_limit,
            ecn: (first >> 20) as u8 & 3,
            fault,
        })
    }

    #[inline(always)]
    fn parse_plain<F: Frame + ?Sized>(frame: &F, l3: usize) -> Option<Plain<Self>> {
        let [version, ..] = frame.load::<4>(l3)?;
        let [len_high, len_low, protocol, _] = frame.load::<4>(l3 + 4)?;
        if version >> 4 != 6 {
            return None;
        }
        Some(Plain {
            src: V6(frame.load(l3 + 8)?),
            dst: V6(frame.load(l3 + 24)?),
            protocol,
            header_len: Self::HEADER_LEN,
            total: Self::HEADER_LEN + usize::from(u16::from_be_bytes([len_high, len_low])),
            more_fragments: false,
        })
    }

    #[inline(always)]
    fn header_checksum_ok<F: Frame + ?Sized>(_frame: &F, _ip: &Ip<Self>) -> bool {
        true
    }

    #[inline(always)]
    fn hash_flow(key: [u64; 2], flow: &FlowKey<Self>, word: u32, tail: u64) -> u64 {
        sip24(key, words_v6(flow, word), tail)
    }

    #[inline(always)]
    fn mac_of_flow(key: [u64; 2], flow: &FlowKey<Self>, word: u32, tail: u64) -> u64 {
        sip13(key, words_v6(flow, word), tail)
    }

    #[inline(always)]
    fn hash_flow_fast(key: [u64; 2], flow: &FlowKey<Self>) -> u64 {
        scatter(key, words_v6(flow, 0))
    }

    #[inline(always)]
    fn sum(self) -> u64 {
        let word = |at| u64::from(u32::from_ne_bytes(part(&self.0, at)));
        word(0) + word(4) + word(8) + word(12)
    }

    // RFC 4291 §2.5 and §2.7.
    #[inline(always)]
    fn is_unicast(self) -> bool {
        let word = |at| u32::from_be_bytes(part(&self.0, at));
        let unspecified_or_loopback = word(0) | word(4) | word(8) == 0 && word(12) <= 1;
        !unspecified_or_loopback && self.0[0] != 0xff
    }

    #[inline(always)]
    fn write_header<F: FrameMut + ?Sized>(
        frame: &mut F,
        l3: usize,
        (src, dst): (Self, Self),
        l4_len: u16,
        ecn: u8,
    ) -> Option<()> {
        let [len_high, len_low] = l4_len.to_be_bytes();
        let words = [[0x60, ecn << 4, 0, 0], [len_high, len_low, PROTOCOL_TCP, HOP_LIMIT]];
        let [first, second] = words.map(u32::from_ne_bytes);
        let ([a, b, c, d], [e, f, g, h]) = (apart(src.0), apart(dst.0));
        frame.store_words(l3, [first, second, a, b, c, d, e, f, g, h])
    }
}

#[inline(always)]
fn words_v4(flow: &FlowKey<V4>, word: u32) -> [u64; 2] {
    [pair(flow.peer.0, flow.local.0), ports_and(flow.peer_port, flow.local_port, word)]
}

#[inline(always)]
fn words_v6(flow: &FlowKey<V6>, word32: u32) -> [u64; 5] {
    let word = |address: &V6, at| pair(part(&address.0, at), part(&address.0, at + 4));
    [
        word(&flow.peer, 0),
        word(&flow.peer, 8),
        word(&flow.local, 0),
        word(&flow.local, 8),
        ports_and(flow.peer_port, flow.local_port, word32),
    ]
}

#[inline(always)]
fn joined(words: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

#[inline(always)]
fn apart(bytes: [u8; 16]) -> [u32; 4] {
    [0, 4, 8, 12].map(|at| u32::from_ne_bytes(part(&bytes, at)))
}

#[inline(always)]
fn pair(low: [u8; 4], high: [u8; 4]) -> u64 {
    u64::from(u32::from_le_bytes(low)) | u64::from(u32::from_le_bytes(high)) << 32
}

#[inline(always)]
fn ports_and([a, b]: [u8; 2], [c, d]: [u8; 2], word: u32) -> u64 {
    pair([a, b, c, d], word.to_le_bytes())
}

/// NH (RFC 4418 §5.2's inner hash: two flows collide with probability 2^-32 for keys that nobody knows), each word under
/// a key of its own, and a multiplication that spreads the sum over all bits. Whoever saw results could work the keys out;
/// nobody does, and a chosen collision does no more harm than [`crate::fingerprint`] says of an accidental one.
#[inline(always)]
fn scatter<const N: usize>([first, second]: [u64; 2], words: [u64; N]) -> u64 {
    /// 2^64 divided by the golden ratio.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let factor = first | 1;
    let mut sum = first;
    for (index, word) in (0..).zip(words) {
        let key = (second ^ STEP.wrapping_mul(index)).wrapping_mul(factor);
        let (low, high) = ((word as u32).wrapping_add(key as u32), (word >> 32) as u32);
        sum = sum.wrapping_add(u64::from(low) * u64::from(high.wrapping_add((key >> 32) as u32)));
    }
    let spread = (sum ^ sum >> 32).wrapping_mul(STEP);
    spread ^ spread >> 32
}

/// What is wrong with a header of `header_len` bytes in a datagram of `total` bytes at `l3`.
#[inline(always)]
fn fault<F: Frame + ?Sized>(
    frame: &F,
    l3: usize,
    header_len: usize,
    total: usize,
    more_fragments: bool,
) -> Fault {
    if total < header_len + Tcp::LEN {
        Fault::BAD_LENGTH
    } else if l3 + total > frame.len() {
        Fault::TRUNCATED
    } else if more_fragments {
        Fault::FRAGMENT
    } else {
        Fault::NONE
    }
}

/// How long an IPv6 header and all extension headers are together, in what [`find_tcp`] returns.
const HEADERS_LEN: u32 = 0x3fff;
/// A fragment header announces more.
const MORE_FRAGMENTS: u32 = 0x8000;
/// Nobody can see from this frame whether TCP follows, and to which port.
const OUT_OF_SIGHT: u32 = 0x1_0000;

/// Follows the extension headers of RFC 8200 §4 (and AH) from the one of type `first` to TCP, for the IPv6 header at
/// `l3`: how long all headers are together, and a bit for fragments, in a form that fits a register. An atomic fragment
/// (RFC 6946) is a whole datagram.
///
/// Hosts reassemble a first fragment whose datagram ends before its last extension header does, although RFC 7112 §5
/// forbids it, and follow chains of any length. Let through, either would take a segment past us to any port. So a
/// chain of known headers that is longer than [`MAX_EXTENSION_HEADERS`], or that a first fragment cuts before the ports,
/// is out of sight. What follows the length that the header gives is padding of the link, which hosts cut off.
#[inline(always)]
pub fn find_tcp<F: Frame + ?Sized>(frame: &F, l3: usize, first: u8) -> Option<u32> {
    const NONE: u32 = u32::MAX;
    // Where the datagram ends, once that matters: behind a first fragment's header.
    let (mut next, mut at, mut end) = (first, l3 + V6::HEADER_LEN, NONE);
    for _ in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        let out_of_sight = (end != NONE).then_some(OUT_OF_SIGHT);
        if at as u32 + 4 > end {
            return out_of_sight;
        }
        let Some([following, size, third, fourth]) = frame.load::<4>(at) else { return out_of_sight };
        at += match next {
            // With segments left it has not arrived: the checksum is for another destination (RFC 8200 §8.1).
            ROUTING if fourth != 0 => return None,
            AUTHENTICATION => (usize::from(size) + 2) * 4,
            FRAGMENT => {
                let offset_and_more = u16::from_be_bytes([third, fourth]);
                if offset_and_more >> 3 != 0 {
                    return out_of_sight;
                }
                if offset_and_more & 1 != 0 {
                    let payload = u16::from_be_bytes(frame.load::<2>(l3 + 4)?);
                    end = (l3 + V6::HEADER_LEN) as u32 + u32::from(payload);
                }
                8
            }
            _ => (usize::from(size) + 1) * 8,
        };
        // Whichever header it was: to the verifier the next one is the same.
        (next, at, end) = (following, frame.opaque_offset(at), frame.opaque(end));
    }
    if next != PROTOCOL_TCP {
        return is_extension(next).then_some(OUT_OF_SIGHT);
    }
    let found = (at - l3) as u32 & HEADERS_LEN;
    match end {
        NONE => Some(found),
        _ if at as u32 + 4 > end || frame.load::<4>(at).is_none() => Some(OUT_OF_SIGHT),
        _ => Some(found | MORE_FRAGMENTS),
    }
}

const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;

/// Whether hosts walk over a header of this type.
#[inline(always)]
fn is_extension(next: u8) -> bool {
    const HOP_BY_HOP: u8 = 0;
    const DESTINATION: u8 = 60;
    const ALL: u64 = 1 << HOP_BY_HOP | 1 << ROUTING | 1 << FRAGMENT | 1 << AUTHENTICATION | 1 << DESTINATION;
    next < 64 && ALL >> next & 1 != 0
}
