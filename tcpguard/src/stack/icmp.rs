//! ICMP errors about segments of ours, taken apart: whose segment a router or host complains about, and what it says
//! (RFC 792, RFC 4443). Whether to believe it is the connection's business: anybody can send these.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::{Ethernet, checksum};
use tcpguard_common::seq::Seq;

/// An error message that quotes a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// The flow of the segment, seen from us.
    pub(crate) key: AnyFlowKey,
    /// Its sequence number.
    pub(crate) seq: Seq,
    pub(crate) what: Trouble,
}

/// What an error message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The segment did not fit; datagrams of so many bytes do. 0 where an old router does not say (RFC 1191 §5).
    TooBig(u16),
    /// It cannot be delivered, and repeating it is no use (RFC 9293 §3.9.2.2).
    Hard,
    /// It could not be delivered this time.
    Soft,
}

/// A network header: what it carries, between whom, and where that begins and ends in the frame.
struct Network<'a> {
    protocol: u8,
    source: IpAddr,
    destination: IpAddr,
    payload: &'a [u8],
}

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
const HEADER: usize = 8;

impl Complaint {
    /// `None` for whatever is not such a message, well-formed and with a good checksum.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let Ethernet { ether_type, l3, .. } = Ethernet::parse(frame)?;
        let datagram = frame.get(l3..)?;
        let outer = match ether_type {
            0x0800 => Network::v4(datagram, true)?,
            0x86dd => Network::v6(datagram, true)?,
            _ => return None,
        };
        let (header, quoted) = outer.payload.split_at_checked(HEADER)?;
        let what = match outer.protocol {
            ICMP if checksum::holds(checksum::sum(outer.payload)) => trouble_v4(header)?,
            ICMP_V6 if checksum::holds(outer.pseudo_sum() + checksum::sum(outer.payload)) => {
                trouble_v6(header)?
            }
            _ => return None,
        };
        let inner =
            if outer.protocol == ICMP { Network::v4(quoted, false)? } else { Network::v6(quoted, false)? };
        // Errors go to the sender of what they quote.
        if inner.protocol != TCP || inner.source != outer.destination {
            return None;
        }
        let &[a, b, c, d, e, f, g, h] = inner.payload.first_chunk::<8>()?;
        let local = SocketAddr::new(inner.source, u16::from_be_bytes([a, b]));
        let peer = SocketAddr::new(inner.destination, u16::from_be_bytes([c, d]));
        let key = AnyFlowKey::new(peer, local)?;
        Some(Self { key, seq: Seq(u32::from_be_bytes([e, f, g, h])), what })
    }
}

/// RFC 792, RFC 1122 §3.2.2.1, RFC 1191 §4.
fn trouble_v4(header: &[u8]) -> Option<Trouble> {
    let mtu = u16::from_be_bytes([*header.get(6)?, *header.get(7)?]);
    match (*header.first()?, *header.get(1)?) {
        (3, 4) => Some(Trouble::TooBig(mtu)),
        (3, 2 | 3) => Some(Trouble::Hard),
        (3 | 11, _) => Some(Trouble::Soft),
        _ => None,
    }
}

/// RFC 4443 §3; RFC 8201 §4.
fn trouble_v6(header: &[u8]) -> Option<Trouble> {
    let mtu = u32::from_be_bytes(*header.last_chunk::<4>()?);
    match (*header.first()?, *header.get(1)?) {
        (2, _) => Some(Trouble::TooBig(u16::try_from(mtu).unwrap_or(u16::MAX))),
        (1, 1 | 4) => Some(Trouble::Hard),
        (1 | 3, _) => Some(Trouble::Soft),
        _ => None,
    }
}

impl<'a> Network<'a> {
    /// `whole`: the datagram itself, which must be all there and no fragment, rather than a quotation, which may be cut.
    fn v4(bytes: &'a [u8], whole: bool) -> Option<Self> {
        let header = bytes.first_chunk::<20>()?;
        let header_len = usize::from(header[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let (later, unfinished) = (fragment & 0x1fff != 0, fragment & 0x2000 != 0);
        if header[0] >> 4 != 4 || header_len < 20 || later || whole && unfinished {
            return None;
        }
        if whole && !checksum::holds(checksum::sum(bytes.get(..header_len)?)) {
            return None;
        }
        let end = if whole { total } else { total.min(bytes.len()) };
        let address = |at: usize| {
            let octets: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(octets)))
        };
        Some(Self {
            protocol: header[9],
            source: address(12)?,
            destination: address(16)?,
            payload: bytes.get(header_len..end)?,
        })
    }

    /// Without extension headers: our segments have none, nor do errors about them.
    fn v6(bytes: &'a [u8], whole: bool) -> Option<Self> {
        let header = bytes.first_chunk::<40>()?;
        let end = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        let end = if whole { end } else { end.min(bytes.len()) };
        let address = |at: usize| {
            let octets: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        };
        (header[0] >> 4 == 6).then_some(())?;
        Some(Self {
            protocol: header[6],
            source: address(8)?,
            destination: address(24)?,
            payload: bytes.get(40..end)?,
        })
    }

    /// RFC 4443 §2.3.
    fn pseudo_sum(&self) -> u64 {
        let mut pseudo = [0; 40];
        if let (IpAddr::V6(source), IpAddr::V6(destination)) = (self.source, self.destination) {
            pseudo[..16].copy_from_slice(&source.octets());
            pseudo[16..32].copy_from_slice(&destination.octets());
        }
        pseudo[32..36].copy_from_slice(&(self.payload.len() as u32).to_be_bytes());
        pseudo[39] = ICMP_V6;
        checksum::sum(&pseudo)
    }
}
