//! Socket addresses between C's bytes and Rust's types. An IPv6 socket talks IPv4 with mapped addresses, as on Linux.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::errno::Errno;

/// A `struct sockaddr_in` or `sockaddr_in6`, mapped IPv4 as IPv4.
pub(crate) fn decode(bytes: &[u8]) -> Result<SocketAddr, Errno> {
    let family = bytes.first_chunk().map(|family| i32::from(u16::from_ne_bytes(*family)));
    let port = bytes.get(2..4).and_then(|port| port.first_chunk()).map(|port| u16::from_be_bytes(*port));
    let (Some(family), Some(port)) = (family, port) else { return Err(Errno(libc::EINVAL)) };
    let ip = match family {
        libc::AF_INET => {
            part(bytes, 4).filter(|_| bytes.len() >= 16).map(|ip| IpAddr::V4(Ipv4Addr::from(ip)))
        }
        libc::AF_INET6 => part::<16>(bytes, 8).map(|ip| IpAddr::V6(Ipv6Addr::from(ip)).to_canonical()),
        _ => return Err(Errno(libc::EAFNOSUPPORT)),
    };
    Ok(SocketAddr::new(ip.ok_or(Errno(libc::EINVAL))?, port))
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// The same for C, in the form that a socket of `domain` shows.
pub(crate) fn encode(address: SocketAddr, domain: i32) -> Vec<u8> {
    let mut bytes = (domain as u16).to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match (address.ip(), domain) {
        (IpAddr::V4(ip), libc::AF_INET) => {
            bytes.extend(ip.octets());
            bytes.extend([0; 8]);
        }
        (ip, _) => {
            let ip = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            bytes.extend([0; 4]);
            bytes.extend(ip.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}
