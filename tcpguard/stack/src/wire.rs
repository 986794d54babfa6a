//! Segments as the stack sees them: family-neutral, between the parser and the connections on the way in, between
//! the connections and the header builder on the way out.

use tcpguard_common::flow::{AnyFlowKey, FlowKey};
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{
    AnySegment, Buffer, Family, Flags, Options, ParseError, Segment, Tcp, checksum, parse,
};
use tcpguard_common::seq::Seq;

use super::event::StackDrop;

/// Both ECN bits: congestion experienced.
const CONGESTION: u8 = 0b11;

/// A segment that came in, its checksum verified.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming<'a> {
    pub(crate) key: AnyFlowKey,
    /// The link header of an answer.
    pub(crate) link: Link,
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: Flags,
    pub(crate) window: u16,
    pub(crate) options: Options,
    /// Whether the network marked it with congestion (CE, RFC 3168 §5).
    pub(crate) marked: bool,
    pub(crate) data: &'a [u8],
}

impl<'a> Incoming<'a> {
    pub(crate) fn parse(frame: &'a [u8]) -> Result<Self, StackDrop> {
        match parse(frame) {
            Ok(AnySegment::V4(segment)) => Self::new(frame, segment),
            Ok(AnySegment::V6(segment)) => Self::new(frame, segment),
            Err(ParseError::NotTcp) => Err(StackDrop::NotTcp),
            Err(ParseError::Bad(reason)) => Err(StackDrop::Malformed(reason)),
        }
    }

    fn new<A: Family>(frame: &'a [u8], segment: Segment<A>) -> Result<Self, StackDrop> {
        if !segment.checksum_ok(frame) {
            return Err(StackDrop::Checksum);
        }
        let Tcp { seq, ack, flags, window, .. } = segment.tcp;
        Ok(Self {
            key: A::any_key(segment.key()),
            link: Link::answering(&segment.ethernet),
            seq,
            ack,
            flags,
            window,
            options: segment.options,
            marked: segment.ip.ecn == CONGESTION,
            data: frame.get(segment.payload).unwrap_or_default(),
        })
    }

    pub(crate) fn has(&self, flag: Flags) -> bool {
        self.flags.contains(flag)
    }

    /// Sequence numbers it takes (SEG.LEN).
    pub(crate) fn len(&self) -> u32 {
        self.data.len() as u32 + u32::from(self.has(Flags::SYN)) + u32::from(self.has(Flags::FIN))
    }

    /// The sequence number behind it.
    pub(crate) fn end(&self) -> Seq {
        self.seq + self.len()
    }
}

/// The header fields of a segment to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing {
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) flags: Flags,
    pub(crate) window: u16,
    pub(crate) options: Options,
}

impl Outgoing {
    /// Writes the whole frame; `fill` writes the data. `None` when it does not fit.
    pub(crate) fn write(
        &self,
        key: &AnyFlowKey,
        link: Link,
        frame: &mut [u8],
        data_len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<usize> {
        self.write_marked(key, link, 0, frame, data_len, fill)
    }

    /// The same with the two ECN bits of the network header.
    pub(crate) fn write_marked(
        &self,
        key: &AnyFlowKey,
        link: Link,
        ecn: u8,
        frame: &mut [u8],
        data_len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<usize> {
        match key {
            AnyFlowKey::V4(key) => self.write_to(key, link, ecn, frame, data_len, fill),
            AnyFlowKey::V6(key) => self.write_to(key, link, ecn, frame, data_len, fill),
        }
    }

    fn write_to<A: Family>(
        &self,
        key: &FlowKey<A>,
        link: Link,
        ecn: u8,
        frame: &mut [u8],
        data_len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<usize> {
        let headers = Headers {
            link,
            src: key.local,
            dst: key.peer,
            ecn,
            src_port: key.local_port,
            dst_port: key.peer_port,
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            window: self.window,
            options: self.options,
        };
        let data_at = headers.len();
        let len = data_at + data_len;
        let data = frame.get_mut(data_at..len)?;
        fill(data);
        let sum = checksum::sum(data);
        headers.write(&mut Buffer::new(frame, len), data_len, sum)?;
        Some(len)
    }
}

/// Bytes of network header in front of a segment of this flow.
pub(crate) fn ip_header_len(key: &AnyFlowKey) -> u16 {
    match key {
        AnyFlowKey::V4(_) => 20,
        AnyFlowKey::V6(_) => 40,
    }
}

/// A keyed hash of a flow, for finding it.
pub(crate) fn hash(hash_key: [u64; 2], key: &AnyFlowKey) -> u64 {
    match key {
        AnyFlowKey::V4(key) => Family::hash_flow_fast(hash_key, key),
        AnyFlowKey::V6(key) => Family::hash_flow_fast(hash_key, key),
    }
}

/// A keyed hash of one incarnation of a flow: the flow and two words of its own.
pub(crate) fn hash_with(hash_key: [u64; 2], key: &AnyFlowKey, word: u32, tail: u32) -> u64 {
    match key {
        AnyFlowKey::V4(key) => Family::hash_flow(hash_key, key, word, tail.into()),
        AnyFlowKey::V6(key) => Family::hash_flow(hash_key, key, word, tail.into()),
    }
}
