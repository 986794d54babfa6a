//! Bytes on the wire: the access traits, the header types and the one bounds-checked parser. It judges form,
//! not meaning: whether a well-formed segment is welcome is the business of `decision` and of the stack.

pub mod build;
pub mod checksum;
mod ethernet;
mod icmp;
mod ip;
mod options;
mod tcp;

pub use ethernet::{Ethernet, Vlan};
pub use icmp::{Complaint, Trouble};
pub use ip::{Family, Fault, Ip, MAX_EXTENSION_HEADERS, Plain, find_tcp};
pub use options::{MAX_OPTIONS, Options, SackBlocks, WINDOW_SCALE_MAX, find as find_options};
pub use tcp::{Flags, Tcp};

use crate::flow::{FlowKey, V4, V6};
use crate::reason::Reason;
use core::ops::Range;

/// Read access to one Ethernet frame.
pub trait Frame {
    /// Bytes in the frame.
    fn len(&self) -> usize;

    /// `N` bytes from `offset`; `None` when they do not all lie inside the frame.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// `W` words from `offset`, as they lie in memory; `None` when they do not all lie inside the frame. In BPF that is one
    /// look at the frame's end for all of them, where words one by one would take as many.
    #[inline(always)]
    fn words<const W: usize>(&self, offset: usize) -> Option<[u32; W]> {
        let mut words = [0; W];
        for (index, word) in words.iter_mut().enumerate() {
            *word = u32::from_ne_bytes(self.load(offset + 4 * index)?);
        }
        Some(words)
    }

    /// The same value. BPF's verifier follows every path with every value it can work out; there this hides one
    /// from it, so that paths which differ in nothing else are followed once.
    #[inline(always)]
    fn opaque(&self, value: u32) -> u32 {
        value
    }

    /// As [`Self::opaque`], for an offset below 2^14.
    #[inline(always)]
    fn opaque_offset(&self, offset: usize) -> usize {
        offset
    }

    /// [`find_options`] in this frame. BPF's verifier follows a function of its own once, whoever calls it.
    #[inline(always)]
    fn find_options(&self, start: usize, len: usize) -> Option<u64> {
        find_options(self, start, len)
    }

    /// [`checksum::of_segment`] in this frame, likewise.
    #[inline(always)]
    fn sum(&self, offset: usize, len: usize) -> Option<u64> {
        checksum::of_segment(self, offset, len)
    }

    /// [`find_tcp`] in this frame, likewise.
    #[inline(always)]
    fn find_tcp(&self, l3: usize, first: u8) -> Option<u32> {
        find_tcp(self, l3, first)
    }

    /// Whether the frame has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// `N` bytes at `at` of an array: what destructuring byte by byte would say, in a form that stays one word in
/// BPF. Both numbers are constants at every call; outside the array it is zeros.
#[inline(always)]
pub(crate) fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

/// Write access to one Ethernet frame, for answering in place.
pub trait FrameMut: Frame {
    /// Writes `bytes` at `offset`; `None`, and nothing written, when they do not all lie inside the frame.
    fn store<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;

    /// Writes words from `offset`; `None`, and nothing written, when they do not all lie inside the frame. See
    /// [`Frame::words`].
    #[inline(always)]
    fn store_words<const W: usize>(&mut self, offset: usize, words: [u32; W]) -> Option<()> {
        self.words::<W>(offset)?;
        (0..).zip(words).try_for_each(|(index, word)| self.store(offset + 4 * index, word.to_ne_bytes()))
    }

    /// Makes the frame `len` bytes long, cutting or growing at its end; `None` when there is no room.
    fn resize(&mut self, len: usize) -> Option<()>;

    /// Nothing. BPF's verifier knows on each path how much of the frame was looked at; there this makes it
    /// forget, for the same reason as [`Frame::opaque`].
    #[inline(always)]
    fn forget(&mut self) {}
}

impl Frame for [u8] {
    #[inline(always)]
    fn len(&self) -> usize {
        self.len()
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}

/// A frame in a buffer that may be longer than it: what userspace writes answers into.
#[derive(Debug)]
pub struct Buffer<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl<'a> Buffer<'a> {
    /// A frame of `len` bytes (at most the buffer's) at the start of `bytes`.
    pub fn new(bytes: &'a mut [u8], len: usize) -> Self {
        let len = len.min(bytes.len());
        Self { bytes, len }
    }

    /// The frame as it is now.
    pub fn frame(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Frame for Buffer<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.frame().load(offset)
    }
}

impl FrameMut for Buffer<'_> {
    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let frame = self.bytes.get_mut(..self.len)?;
        frame.get_mut(offset..offset.checked_add(N)?)?.copy_from_slice(&bytes);
        Some(())
    }

    fn resize(&mut self, len: usize) -> Option<()> {
        // Grown bytes are zero, as the kernel's bpf_xdp_adjust_tail makes them.
        self.bytes.get_mut(self.len.min(len)..len)?.fill(0);
        self.len = len;
        Some(())
    }
}

/// One TCP segment of one family with every header that leads to it. Offsets count from the frame's start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<A> {
    /// The link header.
    pub ethernet: Ethernet,
    /// The network header.
    pub ip: Ip<A>,
    /// The TCP header.
    pub tcp: Tcp,
    /// Its options.
    pub options: Options,
    /// Where the data lies in the frame.
    pub payload: Range<usize>,
}

impl<A: Family> Segment<A> {
    /// The flow the segment belongs to, seen from its receiver.
    pub fn key(&self) -> FlowKey<A> {
        FlowKey {
            peer: self.ip.src,
            local: self.ip.dst,
            peer_port: self.tcp.src_port,
            local_port: self.tcp.dst_port,
        }
    }

    /// Whether the TCP checksum holds over the pseudo header, the header and the data (RFC 9293 §3.1). `frame`
    /// is the frame that was parsed.
    pub fn checksum_ok(&self, frame: &[u8]) -> bool {
        let segment = self.ip.l4..self.ip.l4 + self.ip.l4_len;
        frame.get(segment).is_some_and(|tcp| {
            let pseudo = checksum::pseudo(self.ip.src, self.ip.dst, self.ip.l4_len);
            checksum::holds(pseudo + checksum::sum(tcp))
        })
    }
}

/// A segment of either family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnySegment {
    /// Over IPv4.
    V4(Segment<V4>),
    /// Over IPv6.
    V6(Segment<V6>),
}

/// Why a frame is not a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseError {
    /// It carries something else, or a later fragment: not ours to judge.
    NotTcp,
    /// It is TCP, but malformed.
    Bad(Reason),
}

/// Takes a whole frame apart. The IPv4 header checksum is verified here; the TCP checksum, which touches all
/// the data, by [`Segment::checksum_ok`].
pub fn parse<F: Frame + ?Sized>(frame: &F) -> Result<AnySegment, ParseError> {
    let ethernet = Ethernet::parse(frame).ok_or(ParseError::NotTcp)?;
    match ethernet.ether_type {
        <V4 as Family>::ETHER_TYPE => segment(frame, ethernet).map(AnySegment::V4),
        <V6 as Family>::ETHER_TYPE => segment(frame, ethernet).map(AnySegment::V6),
        _ => Err(ParseError::NotTcp),
    }
}

fn segment<F: Frame + ?Sized, A: Family>(frame: &F, ethernet: Ethernet) -> Result<Segment<A>, ParseError> {
    let ip = A::parse(frame, ethernet.l3).ok_or(ParseError::NotTcp)?;
    if let Some(reason) = ip.fault.reason() {
        return Err(ParseError::Bad(reason));
    }
    if !A::header_checksum_ok(frame, &ip) {
        return Err(ParseError::Bad(Reason::IpBadChecksum));
    }
    let tcp = Tcp::parse(frame, &ip).map_err(ParseError::Bad)?;
    let options = Options::parse_all(frame, ip.l4 + Tcp::LEN, tcp.header_len - Tcp::LEN)
        .ok_or(ParseError::Bad(Reason::BadOptions))?;
    let payload = ip.l4 + tcp.header_len..ip.l4 + ip.l4_len;
    Ok(Segment { ethernet, ip, tcp, options, payload })
}

#[cfg(test)]
mod tests;
