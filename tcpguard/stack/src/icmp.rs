//! ICMP errors about segments of ours: from a frame to the flow that is meant. Whether to believe them is the connection's
//! business.

use tcpguard_common::flow::{AnyFlowKey, V4, V6};
use tcpguard_common::packet::{self, Ethernet, Family, Trouble};
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

impl Complaint {
    /// `None` for whatever is not such a message, well-formed and with good checksums.
    pub(crate) fn parse(frame: &[u8]) -> Option<Self> {
        let Ethernet { ether_type, l3, .. } = Ethernet::parse(frame)?;
        match ether_type {
            V4::ETHER_TYPE => Self::of_family::<V4>(frame, l3),
            V6::ETHER_TYPE => Self::of_family::<V6>(frame, l3),
            _ => None,
        }
    }

    fn of_family<A: Family>(frame: &[u8], l3: usize) -> Option<Self> {
        let said = packet::Complaint::<A>::parse(frame, l3).filter(|said| said.checksums_ok(frame))?;
        Some(Self { key: A::any_key(said.key), seq: said.seq, what: said.what })
    }
}
