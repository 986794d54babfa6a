//! The link header: Ethernet II with up to two VLAN tags (802.1Q, 802.1ad). Not responsible for whether its
//! addresses are ours.

use super::{Frame, part};

/// The VLAN tags of a frame as they stand on the wire, so that an answer can carry the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vlan {
    /// How many of `tags` are in use, 0–2.
    pub count: u8,
    /// TPID and TCI of each tag, outermost first, network order.
    pub tags: [[u8; 4]; 2],
}

/// The link header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination address.
    pub dst: [u8; 6],
    /// Source address.
    pub src: [u8; 6],
    /// Tags between the addresses and the type.
    pub vlan: Vlan,
    /// Type of what follows, after any tags.
    pub ether_type: u16,
    /// Offset of what follows: 14, 18 or 22.
    pub l3: usize,
}

impl Ethernet {
    /// Length of the header without tags, bytes.
    pub const LEN: usize = 14;
    /// Length of one VLAN tag, bytes.
    pub const TAG_LEN: usize = 4;
    /// Offset of the source address.
    pub const SRC: usize = 6;
    const TPID_8021Q: u16 = 0x8100;
    const TPID_8021AD: u16 = 0x88a8;

    /// The link header of a frame; `None` when the frame ends inside it. A third tag is left in place as an
    /// unknown `ether_type`.
    #[inline(always)]
    pub fn parse<F: Frame + ?Sized>(frame: &F) -> Option<Self> {
        let header = frame.load::<{ Self::LEN }>(0)?;
        let (dst, src) = (part(&header, 0), part(&header, Self::SRC));
        let mut ether_type = u16::from_be_bytes(part(&header, 12));
        let mut vlan = Vlan::default();
        if is_tag(ether_type) {
            vlan = Vlan { count: 1, tags: [frame.load(12)?, [0; 4]] };
            ether_type = u16::from_be_bytes(frame.load(16)?);
            if is_tag(ether_type) {
                vlan = Vlan { count: 2, tags: [vlan.tags[0], frame.load(16)?] };
                ether_type = u16::from_be_bytes(frame.load(20)?);
            }
        }
        let l3 = Self::LEN + Self::TAG_LEN * usize::from(vlan.count);
        Some(Self { dst, src, vlan, ether_type, l3 })
    }
}

#[inline(always)]
fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, Ethernet::TPID_8021Q | Ethernet::TPID_8021AD)
}
