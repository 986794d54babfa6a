//! The TCP header without its options (RFC 9293 §3.1).

use super::{Family, Frame, Ip, part};
use crate::reason::Reason;
use crate::seq::Seq;
use core::ops::BitOr;

/// The control bits (RFC 9293 §3.1, RFC 3168 §6.1). The ninth one, AE, is not among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Flags(pub u8);

impl Flags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// Push.
    pub const PSH: Self = Self(0x08);
    /// The acknowledgment field counts.
    pub const ACK: Self = Self(0x10);
    /// The urgent pointer counts.
    pub const URG: Self = Self(0x20);
    /// ECN echo.
    pub const ECE: Self = Self(0x40);
    /// Congestion window reduced.
    pub const CWR: Self = Self(0x80);

    /// Whether all of `other` are set.
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is set.
    #[inline(always)]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Flags {
    type Output = Self;
    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The fixed part of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Source port, network order.
    pub src_port: [u8; 2],
    /// Destination port, network order.
    pub dst_port: [u8; 2],
    /// SEG.SEQ.
    pub seq: Seq,
    /// SEG.ACK; counts only with [`Flags::ACK`].
    pub ack: Seq,
    /// Control bits.
    pub flags: Flags,
    /// SEG.WND, unscaled.
    pub window: u16,
    /// Header with options, 20–60 bytes; the segment is at least this long.
    pub header_len: usize,
    /// Urgent pointer; counts only with [`Flags::URG`].
    pub urgent: u16,
}

impl Tcp {
    /// Length of the header without options, bytes.
    pub const LEN: usize = 20;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;

    /// The header that follows `ip`, which must be without fault.
    #[inline(always)]
    pub fn parse<F: Frame + ?Sized, A: Family>(frame: &F, ip: &Ip<A>) -> Result<Self, Reason> {
        let [ports, seq, ack, fourth, fifth] = frame.words(ip.l4).ok_or(Reason::Truncated)?;
        let [fourth, fifth] = [fourth, fifth].map(u32::from_be);
        let ports = ports.to_ne_bytes();
        let header_len = (fourth >> 28) as usize * 4;
        if header_len < Self::LEN || header_len > ip.l4_len {
            return Err(Reason::BadDataOffset);
        }
        Ok(Self {
            src_port: part(&ports, 0),
            dst_port: part(&ports, 2),
            seq: Seq(u32::from_be(seq)),
            ack: Seq(u32::from_be(ack)),
            flags: Flags((fourth >> 16) as u8),
            window: fourth as u16,
            header_len,
            urgent: fifth as u16,
        })
    }
}
