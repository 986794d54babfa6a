//! Frames byte by byte, written without the code under test.

use std::vec;
use std::vec::Vec;

use super::world::{MAC, PORT, Place, ROUTER};
use tcpguard_common::flow::FlowKey;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

pub(crate) const CLIENT_PORT: u16 = 40_000;
pub(crate) const CLIENT_ISN: u32 = 0xffff_fff0;

/// The options of a SYN from Linux, Windows and macOS.
pub(crate) const LINUX: &[u8] = &[2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0, 1, 3, 3, 7];
pub(crate) const WINDOWS: &[u8] = &[2, 4, 5, 180, 1, 3, 3, 8, 1, 1, 4, 2];
pub(crate) const MACOS: &[u8] = &[2, 4, 5, 180, 1, 3, 3, 6, 1, 1, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0, 4, 2, 0, 0];

/// One TCP segment from a client.
#[derive(Clone, Debug)]
pub(crate) struct Spec<A> {
    pub(crate) tags: Vec<[u8; 4]>,
    pub(crate) src: A,
    pub(crate) dst: A,
    /// IPv4 options or IPv6 extension headers, with the type of the first.
    pub(crate) extra: (u8, Vec<u8>),
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl<A: Place> Spec<A> {
    pub(crate) fn syn(options: &[u8]) -> Self {
        Self {
            tags: vec![],
            src: A::CLIENT,
            dst: A::GUARDED,
            extra: (6, vec![]),
            src_port: CLIENT_PORT,
            dst_port: PORT,
            seq: CLIENT_ISN,
            ack: 0,
            flags: SYN,
            options: options.to_vec(),
            data: vec![],
        }
    }

    pub(crate) fn ack(ack: u32, options: &[u8]) -> Self {
        Self { seq: CLIENT_ISN.wrapping_add(1), ack, flags: ACK, ..Self::syn(options) }
    }

    pub(crate) fn flow(&self) -> FlowKey<A> {
        FlowKey {
            peer: self.src,
            local: self.dst,
            peer_port: self.src_port.to_be_bytes(),
            local_port: self.dst_port.to_be_bytes(),
        }
    }

    pub(crate) fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    pub(crate) fn l4(&self) -> usize {
        self.l3() + if A::VERSION == 4 { 20 } else { 40 } + self.extra.1.len()
    }

    /// The frame, with both checksums right.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut frame = [&MAC[..], &ROUTER].concat();
        self.tags.iter().for_each(|tag| frame.extend(tag));
        assert!(self.options.len().is_multiple_of(4) && self.options.len() <= 40);
        let l4_len = 20 + self.options.len() + self.data.len();
        self.push_ip(&mut frame, l4_len as u16);
        frame.extend(&self.extra.1);
        frame.extend(self.src_port.to_be_bytes());
        frame.extend(self.dst_port.to_be_bytes());
        frame.extend(self.seq.to_be_bytes());
        frame.extend(self.ack.to_be_bytes());
        frame.extend([((20 + self.options.len()) << 2) as u8, self.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
        frame.extend(&self.options);
        frame.extend(&self.data);
        self.fix(&mut frame);
        frame
    }

    /// The frame in which a router complains about a segment of ours to this one's sender: its network header and the first
    /// `quoted` bytes of TCP, `seq` being its sequence number. IPv6 extension headers are left out.
    pub(crate) fn complaint(&self, (kind, code): (u8, u8), word: u32, seq: u32, quoted: usize) -> Vec<u8> {
        let back = Self {
            tags: vec![],
            src: self.dst,
            dst: self.src,
            extra: (6, vec![]),
            src_port: self.dst_port,
            dst_port: self.src_port,
            seq,
            ..self.clone()
        };
        let ours = back.frame();
        let mut message = [&[kind, code, 0, 0], &word.to_be_bytes()[..], &ours[14..]].concat();
        message.truncate(8 + back.l4() - back.l3() + quoted);
        let icmp = if A::VERSION == 4 { 1 } else { 58 };
        let length = (message.len() as u32).to_be_bytes();
        let sum = if A::VERSION == 4 {
            checksum(&[&message])
        } else {
            checksum(&[&octets(A::ELSEWHERE), &octets(self.dst), &length, &[0, 0, 0, icmp], &message])
        };
        message[2..4].copy_from_slice(&sum);
        let extra = if A::VERSION == 4 { self.extra.clone() } else { (icmp, vec![]) };
        let router = Self { src: A::ELSEWHERE, extra, ..self.clone() };
        let mut frame = [&MAC[..], &ROUTER].concat();
        self.tags.iter().for_each(|tag| frame.extend(tag));
        router.push_ip(&mut frame, message.len() as u16);
        let l3 = self.l3();
        frame.extend(&router.extra.1);
        if A::VERSION == 4 {
            frame[l3 + 9] = icmp;
            let sum = router.header_checksum(&frame);
            frame[l3 + 10..l3 + 12].copy_from_slice(&sum);
        }
        frame.extend(message);
        frame
    }

    fn push_ip(&self, frame: &mut Vec<u8>, l4_len: u16) {
        let extra = self.extra.1.len();
        let ip: Vec<u8> = if A::VERSION == 4 {
            let total = (20 + extra as u16 + l4_len).to_be_bytes();
            let version_ihl = 0x45 + (extra / 4) as u8;
            let rest = [version_ihl, 0, total[0], total[1], 0x12, 0x34, 0x40, 0, 57, 6, 0, 0];
            [&[8, 0][..], &rest].concat()
        } else {
            let payload = (extra as u16 + l4_len).to_be_bytes();
            [&[0x86, 0xdd][..], &[0x60, 1, 2, 3, payload[0], payload[1], self.extra.0, 57]].concat()
        };
        frame.extend(ip);
        frame.extend(octets(self.src));
        frame.extend(octets(self.dst));
    }

    /// What the checksum of the IPv4 header should be.
    pub(crate) fn header_checksum(&self, frame: &[u8]) -> [u8; 2] {
        let (l3, l4) = (self.l3(), self.l4());
        checksum(&[&frame[l3..l3 + 10], &frame[l3 + 12..l4]])
    }

    /// Makes both checksums right again.
    pub(crate) fn fix(&self, frame: &mut [u8]) {
        let (l3, l4) = (self.l3(), self.l4());
        if A::VERSION == 4 {
            let sum = self.header_checksum(frame);
            frame[l3 + 10..l3 + 12].copy_from_slice(&sum);
        }
        frame[l4 + 16..l4 + 18].fill(0);
        let length = ((frame.len() - l4) as u32).to_be_bytes();
        let sum = checksum(&[&octets(self.src), &octets(self.dst), &[0, 6], &length, &frame[l4..]]);
        frame[l4 + 16..l4 + 18].copy_from_slice(&sum);
    }
}

fn octets<A: Place>(address: A) -> Vec<u8> {
    match address.ip() {
        core::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        core::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// RFC 1071, as its own text has it.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
