//! Who talks to whom: addresses of both families and the flow key, in wire order. Not the flow's state.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::packet::part;

/// An IPv4 address in wire order. Aligned, so that BPF, which knows no unaligned access, moves whole words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct V4(pub [u8; 4]);

/// An IPv6 address in wire order. Aligned as [`V4`] is, and no more: a flow key has no padding.
#[derive(Clone, Copy, Debug, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct V6(pub [u8; 16]);

impl V6 {
    /// The address in four words as numbers.
    #[inline(always)]
    pub(crate) fn words(self) -> [u32; 4] {
        [0, 4, 8, 12].map(|at| u32::from_be_bytes(part(&self.0, at)))
    }
}

/// Word by word: sixteen bytes would be compared by a call, and byte by byte, in BPF.
impl PartialEq for V6 {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.words(), other.words());
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }
}

impl Hash for V6 {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// An address of one family. The decision is generic over it, so that each family gets straight-line code.
pub trait Address: Copy + Eq + fmt::Debug + Hash + 'static {
    /// 4 or 6.
    const VERSION: u8;
    /// The all-zero address: in a service key it stands for any address.
    const ANY: Self;

    /// The address in 32 bits, for tables.
    fn fold(self) -> u32;
    /// As the standard library writes it.
    fn ip(self) -> IpAddr;
    /// What tells sources apart: an IPv4 address, in the upper half; the first 64 bits of an IPv6 address, within which
    /// one host may have any number of addresses (RFC 4291 §2.5.4).
    fn site(self) -> u64;
    /// The family-neutral form of a key.
    fn any_key(key: FlowKey<Self>) -> AnyFlowKey
    where
        Self: Sized;
}

impl Address for V4 {
    const VERSION: u8 = 4;
    const ANY: Self = Self([0; 4]);

    #[inline(always)]
    fn fold(self) -> u32 {
        u32::from_be_bytes(self.0)
    }

    fn ip(self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(self.0))
    }

    #[inline(always)]
    fn site(self) -> u64 {
        u64::from(u32::from_be_bytes(self.0)) << 32
    }

    fn any_key(key: FlowKey<Self>) -> AnyFlowKey {
        AnyFlowKey::V4(key)
    }
}

impl Address for V6 {
    const VERSION: u8 = 6;
    const ANY: Self = Self([0; 16]);

    #[inline(always)]
    fn fold(self) -> u32 {
        let [a, b, c, d] = self.words();
        a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d
    }

    fn ip(self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(self.0))
    }

    #[inline(always)]
    fn site(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    fn any_key(key: FlowKey<Self>) -> AnyFlowKey {
        AnyFlowKey::V6(key)
    }
}

/// The four-tuple as the peer's segments carry it: `peer` is their source, `local` their destination. The
/// field order is that of the wire, so that XDP builds a key with two copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FlowKey<A> {
    /// The client's address.
    pub peer: A,
    /// Our address.
    pub local: A,
    /// The client's port, network order.
    pub peer_port: [u8; 2],
    /// Our port, network order.
    pub local_port: [u8; 2],
}

impl<A: Address> FlowKey<A> {
    /// The client's end.
    pub fn peer_addr(&self) -> SocketAddr {
        SocketAddr::new(self.peer.ip(), u16::from_be_bytes(self.peer_port))
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        SocketAddr::new(self.local.ip(), u16::from_be_bytes(self.local_port))
    }
}

/// A flow key of either family: userspace's currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AnyFlowKey {
    /// An IPv4 flow.
    V4(FlowKey<V4>),
    /// An IPv6 flow.
    V6(FlowKey<V6>),
}

impl AnyFlowKey {
    /// The key of the flow between two ends; `None` when their families differ.
    pub fn new(peer: SocketAddr, local: SocketAddr) -> Option<Self> {
        let (peer_port, local_port) = (peer.port().to_be_bytes(), local.port().to_be_bytes());
        match (peer.ip(), local.ip()) {
            (IpAddr::V4(peer), IpAddr::V4(local)) => Some(Self::V4(FlowKey {
                peer: V4(peer.octets()),
                local: V4(local.octets()),
                peer_port,
                local_port,
            })),
            (IpAddr::V6(peer), IpAddr::V6(local)) => Some(Self::V6(FlowKey {
                peer: V6(peer.octets()),
                local: V6(local.octets()),
                peer_port,
                local_port,
            })),
            _ => None,
        }
    }

    /// The client's end.
    pub fn peer_addr(&self) -> SocketAddr {
        match self {
            Self::V4(key) => key.peer_addr(),
            Self::V6(key) => key.peer_addr(),
        }
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        match self {
            Self::V4(key) => key.local_addr(),
            Self::V6(key) => key.local_addr(),
        }
    }
}

impl fmt::Display for AnyFlowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.peer_addr(), self.local_addr())
    }
}

#[cfg(test)]
mod tests {
    use super::{AnyFlowKey, FlowKey, V4, V6};
    use core::mem::size_of;
    use std::string::ToString;

    #[test]
    fn keys_have_no_padding_because_the_kernel_hashes_every_byte() {
        assert_eq!(size_of::<FlowKey<V4>>(), 12);
        assert_eq!(size_of::<FlowKey<V6>>(), 36);
    }

    #[test]
    fn a_key_of_mixed_families_is_none_and_display_reads_like_a_trace() {
        let (a, b) = ("10.0.0.2:1234".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        assert_eq!(AnyFlowKey::new(a, b).unwrap().to_string(), "10.0.0.2:1234 -> 10.0.0.1:80");
        assert_eq!(AnyFlowKey::new(a, "[::1]:80".parse().unwrap()), None);
    }
}
