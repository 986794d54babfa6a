//! ICMP errors about TCP segments of ours, taken apart: whose segment a router or host complains about, and what it says
//! (RFC 792, RFC 4443). Whether to believe it is the connection's business: anybody can send these.

use core::ops::Range;

use super::{Family, Frame, checksum, ip::PROTOCOL_TCP};
use crate::flow::FlowKey;
use crate::seq::Seq;

/// An error message that quotes a TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint<A> {
    /// The flow of the segment, seen from us.
    pub key: FlowKey<A>,
    /// Its sequence number.
    pub seq: Seq,
    /// What became of it.
    pub what: Trouble,
    /// Who says so.
    src: A,
    l3: usize,
    /// Where the ICMP message lies in the frame.
    message: Range<usize>,
}

/// What an error message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The segment did not fit; datagrams of so many bytes do. 0 where an old router does not say (RFC 1191 §5).
    TooBig(u16),
    /// It cannot be delivered, and repeating it is no use (RFC 9293 §3.9.2.2).
    Hard,
    /// It could not be delivered this time.
    Soft,
}

/// Type, code, checksum, and a word that depends on the type.
const HEADER: usize = 8;
/// How much of what they could not forward routers quote at least, behind its network header: the ports and SEG.SEQ.
const QUOTED: usize = 8;

impl<A: Family> Complaint<A> {
    /// Whether the datagram at `l3` may be one at all, by its protocol: of what passes hardly anything is.
    #[inline(always)]
    pub fn may_be<F: Frame + ?Sized>(frame: &F, l3: usize) -> bool {
        frame.load::<2>(l3 + A::PROTOCOL_AT).is_some_and(|[protocol, _]| protocol == A::ICMP)
    }

    /// The error message in the datagram at `l3`; `None` for whatever is not one, all there and about a segment of the host
    /// that it is sent to. Checksums are left to [`Self::checksums_ok`].
    ///
    /// Neither our segments nor errors about them have IPv6 extension headers.
    #[inline(always)]
    pub fn parse<F: Frame + ?Sized>(frame: &F, l3: usize) -> Option<Self> {
        let outer = A::parse_plain(frame, l3)?;
        let start = frame.opaque_offset(l3 + outer.header_len);
        let end = l3 + outer.total;
        if outer.protocol != A::ICMP || outer.more_fragments || end > frame.len() {
            return None;
        }
        let [kind, code, _, _, a, b, c, d] = frame.load::<HEADER>(start)?;
        let what = trouble::<A>(kind, code, u32::from_be_bytes([a, b, c, d]))?;
        let quoted = A::parse_plain(frame, start + HEADER)?;
        let tcp = frame.opaque_offset(start + HEADER + quoted.header_len);
        // Errors go to the sender of what they quote.
        if quoted.protocol != PROTOCOL_TCP
            || quoted.src != outer.dst
            || quoted.total < quoted.header_len + QUOTED
            || tcp + QUOTED > end
        {
            return None;
        }
        let [e, f, g, h, seq @ ..] = frame.load::<QUOTED>(tcp)?;
        let key = FlowKey { peer: quoted.dst, local: quoted.src, peer_port: [g, h], local_port: [e, f] };
        let seq = Seq(u32::from_be_bytes(seq));
        Some(Self { key, seq, what, src: outer.src, l3, message: start..end })
    }

    /// Whether the checksums of the message and of an IPv4 header in front of it hold. `frame` is the frame that was parsed.
    pub fn checksums_ok(&self, frame: &[u8]) -> bool {
        let Self { key, src, l3, ref message, .. } = *self;
        let Some((header, body)) = frame.get(l3..message.start).zip(frame.get(message.clone())) else {
            return false;
        };
        let (header, pseudo) = if A::VERSION == 4 {
            (checksum::holds(checksum::sum(header)), 0)
        } else {
            // RFC 4443 §2.3.
            (true, checksum::pseudo_of(A::ICMP, src, key.local, body.len()))
        };
        header && checksum::holds(pseudo + checksum::sum(body))
    }
}

/// What a message of this type and code says, `word` being what follows its checksum; `None` for what is no error.
///
/// IPv4: RFC 792, RFC 1122 §3.2.2 and §4.2.3.9, RFC 1191 §4. IPv6: RFC 4443 §3, RFC 8201 §4.
#[inline(always)]
fn trouble<A: Family>(kind: u8, code: u8, word: u32) -> Option<Trouble> {
    if A::VERSION == 4 {
        match (kind, code) {
            (3, 4) => Some(Trouble::TooBig(word as u16)),
            (3, 2 | 3) => Some(Trouble::Hard),
            (3 | 11 | 12, _) => Some(Trouble::Soft),
            _ => None,
        }
    } else {
        match (kind, code) {
            (2, _) => Some(Trouble::TooBig(if word > 0xffff { 0xffff } else { word as u16 })),
            (1, 1 | 4) => Some(Trouble::Hard),
            (1 | 3 | 4, _) => Some(Trouble::Soft),
            _ => None,
        }
    }
}
