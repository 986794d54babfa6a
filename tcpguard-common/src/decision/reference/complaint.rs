//! ICMP errors about segments of ours, read with `etherparse`.

use core::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, icmpv4, icmpv6};
use tcpguard_common::flow::AnyFlowKey;

use super::wire::Link;

/// What a router says of a segment.
pub(super) struct Complaint {
    pub(super) link_destination: [u8; 6],
    /// The flow of the segment, seen from us.
    pub(super) flow: AnyFlowKey,
    pub(super) is_too_big: bool,
}

/// A datagram, or as much of it as is quoted.
struct Datagram<'a> {
    source: IpAddr,
    destination: IpAddr,
    protocol: IpNumber,
    payload: &'a [u8],
    is_whole: bool,
}

impl Complaint {
    /// `None` for everything else.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let Link { destination: link_destination, ether_type, rest, .. } = Link::read(frame)?;
        let read = if ether_type == EtherType::IPV4 { Datagram::read_v4 } else { Datagram::read_v6 };
        let outer = [EtherType::IPV4, EtherType::IPV6].contains(&ether_type).then(|| read(rest))??;
        let (header, quoted) = outer.payload.split_at_checked(8)?;
        let is_error = match (outer.protocol, header[0]) {
            (IpNumber::ICMP, kind) => {
                [icmpv4::TYPE_DEST_UNREACH, icmpv4::TYPE_TIME_EXCEEDED, icmpv4::TYPE_PARAMETER_PROBLEM]
                    .contains(&kind)
            }
            (IpNumber::IPV6_ICMP, kind) => [
                icmpv6::TYPE_DST_UNREACH,
                icmpv6::TYPE_PACKET_TOO_BIG,
                icmpv6::TYPE_TIME_EXCEEDED,
                icmpv6::TYPE_PARAMETER_PROBLEM,
            ]
            .contains(&kind),
            _ => false,
        };
        // Of one family, like all that an error is about.
        let family = if outer.source.is_ipv4() { IpNumber::ICMP } else { IpNumber::IPV6_ICMP };
        if !outer.is_whole || !is_error || outer.protocol != family {
            return None;
        }
        let quoted = read(quoted)?;
        let ports = quoted.payload.first_chunk::<8>()?;
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        let local = SocketAddr::new(quoted.source, port(0));
        let peer = SocketAddr::new(quoted.destination, port(2));
        if quoted.protocol != IpNumber::TCP || quoted.source != outer.destination {
            return None;
        }
        Some(Self {
            link_destination,
            flow: AnyFlowKey::new(peer, local)?,
            is_too_big: match outer.protocol {
                IpNumber::ICMP => {
                    header[..2] == [icmpv4::TYPE_DEST_UNREACH, icmpv4::CODE_DST_UNREACH_NEED_FRAG]
                }
                _ => header[0] == icmpv6::TYPE_PACKET_TOO_BIG,
            },
        })
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.flow.local_addr()
    }
}

impl<'a> Datagram<'a> {
    fn read_v4(bytes: &'a [u8]) -> Option<Self> {
        let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
        let total = usize::from(header.total_len());
        let payload = bytes.get(header.slice().len()..total.min(bytes.len()))?;
        (header.fragments_offset().value() == 0).then(|| Self {
            source: header.source_addr().into(),
            destination: header.destination_addr().into(),
            protocol: header.protocol(),
            payload,
            is_whole: total <= bytes.len() && !header.more_fragments(),
        })
    }

    fn read_v6(bytes: &'a [u8]) -> Option<Self> {
        let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
        let total = header.slice().len() + usize::from(header.payload_length());
        Some(Self {
            source: header.source_addr().into(),
            destination: header.destination_addr().into(),
            protocol: header.next_header(),
            payload: bytes.get(header.slice().len()..total.min(bytes.len()))?,
            is_whole: total <= bytes.len(),
        })
    }
}
