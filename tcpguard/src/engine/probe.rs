//! The one segment that an engine writes itself: the probe that makes the peer of a flow speak that an earlier daemon
//! had. Its answer meets a reset, and that, like everything else, is sent by the stack.

use tcpguard_common::flow::{AnyFlowKey, FlowKey};
use tcpguard_common::map::Flow;
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{Buffer, Family, Flags, Frame as _, Options, Vlan};
use tcpguard_common::seq::Seq;

/// Link header with two tags, IPv6 header, TCP header.
const LEN: usize = 22 + 40 + 20;

/// A whole frame.
pub(crate) struct Probe {
    bytes: [u8; LEN],
    len: usize,
}

impl Probe {
    /// An acknowledgment from before the flow's first byte: whatever the peer has sent and received since, it
    /// answers with its own (RFC 9293 §3.10.7.4), and from that a reset can be made that it believes. `None` for an
    /// entry without the peer's address.
    pub(crate) fn new(key: &AnyFlowKey, flow: &Flow, local_mac: [u8; 6]) -> Option<Self> {
        // An entry that an engine wrote itself, not XDP, need not know where the peer is.
        if flow.peer_mac == [0; 6] {
            return None;
        }
        match key {
            AnyFlowKey::V4(key) => probe(key, flow, local_mac),
            AnyFlowKey::V6(key) => probe(key, flow, local_mac),
        }
    }

    /// The frame.
    pub(crate) fn frame(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn write<A: Family>(headers: &Headers<A>) -> Option<Self> {
        let mut bytes = [0; LEN];
        let mut buffer = Buffer::new(&mut bytes, headers.len());
        headers.write(&mut buffer, 0, 0)?;
        let len = buffer.len();
        Some(Self { bytes, len })
    }
}

fn probe<A: Family>(key: &FlowKey<A>, flow: &Flow, local_mac: [u8; 6]) -> Option<Probe> {
    let vlan = Vlan { count: flow.vlan_count.min(2), tags: flow.vlan };
    Probe::write(&Headers {
        link: Link { dst: flow.peer_mac, src: local_mac, vlan },
        src: key.local,
        dst: key.peer,
        ecn: 0,
        src_port: key.local_port,
        dst_port: key.peer_port,
        // One before our first byte: below the peer's window however little it has received.
        seq: Seq(flow.ack) - 1,
        ack: Seq(flow.seq),
        flags: Flags::ACK,
        window: 0,
        options: Options::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tcpguard_common::packet::{AnySegment, parse};

    fn key() -> AnyFlowKey {
        let (peer, local): (SocketAddr, SocketAddr) =
            ("10.0.0.2:4000".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        AnyFlowKey::new(peer, local).unwrap()
    }

    fn flow() -> Flow {
        Flow { seq: 1000, ack: 5000, peer_mac: [2; 6], ..Flow::default() }
    }

    #[test]
    fn the_probe_lies_just_below_the_window_of_a_peer_that_received_nothing() {
        let probe = Probe::new(&key(), &flow(), [1; 6]).unwrap();
        let AnySegment::V4(segment) = parse(probe.frame()).unwrap() else { panic!("not IPv4") };
        assert!(segment.checksum_ok(probe.frame()));
        assert_eq!((segment.tcp.seq, segment.tcp.ack, segment.tcp.flags), (Seq(4999), Seq(1000), Flags::ACK));
        assert_eq!((segment.ethernet.dst, segment.ethernet.src), ([2; 6], [1; 6]));
        assert_eq!(AnyFlowKey::V4(segment.key()).peer_addr(), key().local_addr());
    }

    #[test]
    fn a_flow_whose_peer_has_no_address_is_not_probed() {
        let nowhere = Flow { peer_mac: [0; 6], ..flow() };
        assert!(Probe::new(&key(), &nowhere, [1; 6]).is_none());
    }
}
