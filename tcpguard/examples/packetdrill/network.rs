//! The wire: IP packets as packetdrill has them, Ethernet frames as the stack has them. Holds what left until it is
//! asked for.

use std::collections::VecDeque;

use tcpguard_common::flow::{AnyFlowKey, V4, V6};
use tcpguard_common::packet::build::Link;
use tcpguard_common::packet::{AnySegment, Ethernet, Family, Flags, Vlan, parse};

/// A packet that left the stack.
#[derive(Debug)]
pub(crate) struct Packet {
    /// From the IP header on.
    pub(crate) bytes: Vec<u8>,
    /// When it left, microseconds of the virtual clock.
    pub(crate) time: i64,
}

/// What left and was not asked for yet, in order.
#[derive(Debug, Default)]
pub(crate) struct Network {
    sent: VecDeque<Packet>,
}

/// The addresses of the link that there is not.
const STACK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const TOOL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The link header of what the stack sends.
pub(crate) fn link() -> Link {
    Link { dst: TOOL_MAC, src: STACK_MAC, vlan: Vlan::default() }
}

/// The frame that brings an IP packet to the stack; `None` if it is of neither version.
pub(crate) fn frame(packet: &[u8]) -> Option<Vec<u8>> {
    let ether_type = match packet.first()? >> 4 {
        4 => <V4 as Family>::ETHER_TYPE,
        6 => <V6 as Family>::ETHER_TYPE,
        _ => return None,
    };
    let mut frame = Vec::with_capacity(Ethernet::LEN + packet.len());
    frame.extend(STACK_MAC);
    frame.extend(TOOL_MAC);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(packet);
    Some(frame)
}

/// The TCP segment in a frame, if it is one, and whole.
pub(crate) fn segment(frame: &[u8]) -> Option<AnySegment> {
    let segment = parse(frame).ok()?;
    let whole = match &segment {
        AnySegment::V4(segment) => segment.checksum_ok(frame),
        AnySegment::V6(segment) => segment.checksum_ok(frame),
    };
    whole.then_some(segment)
}

/// The flow of a segment, and its control bits.
pub(crate) fn header(segment: &AnySegment) -> (AnyFlowKey, Flags) {
    match segment {
        AnySegment::V4(segment) => (AnyFlowKey::V4(segment.key()), segment.tcp.flags),
        AnySegment::V6(segment) => (AnyFlowKey::V6(segment.key()), segment.tcp.flags),
    }
}

impl Network {
    /// A frame leaves at `time`.
    pub(crate) fn send(&mut self, frame: &[u8], time: i64) {
        let bytes = frame.get(Ethernet::LEN..).unwrap_or_default().to_vec();
        self.sent.push_back(Packet { bytes, time });
    }

    /// The next packet that left.
    pub(crate) fn next(&mut self) -> Option<Packet> {
        self.sent.pop_front()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }
}
