//! The frames a flood is made of: real clients' SYNs, random ACKs, data segments. Bytes only; the generator fills in
//! what differs from frame to frame.

use std::net::{IpAddr, SocketAddr};

use tcpguard_common::lab::{TEMPLATE_LEN, TEMPLATE_WORDS, Template, V6_PREFIX, V6_SHIFT, V6_SUFFIX, offset};

/// What a flood consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SYNs as Linux, Windows and macOS send them.
    Syn,
    /// Bare ACKs with random sequence and acknowledgement numbers.
    Ack,
    /// The same with 64 bytes of payload.
    Data,
}

/// The link layer's ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs {
    /// The attacker's.
    pub source: [u8; 6],
    /// The guard's.
    pub destination: [u8; 6],
}

const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Option layouts of SYNs: MSS 1460, window scale, SACK permitted, timestamps. A TSval of zero is filled in later.
pub(crate) const LINUX: &[u8] = &[2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 7];
pub(crate) const WINDOWS: &[u8] = &[2, 4, 5, 180, 1, 3, 3, 8, 1, 1, 4, 2];
const MACOS: &[u8] = &[2, 4, 5, 180, 1, 3, 3, 6, 1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 4, 2, 0, 0];
/// Where the TSval stands within each.
pub(crate) const LINUX_TSVAL: usize = 8;
const MACOS_TSVAL: usize = 12;

/// The templates of one kind of flood against `target`.
pub(super) fn templates(kind: Kind, macs: Macs, target: SocketAddr) -> Vec<Template> {
    let build = |segment: Segment<'_>| segment.template(macs, target);
    match kind {
        Kind::Syn => vec![
            build(Segment {
                flags: SYN,
                window: 64240,
                ttl: 64,
                options: LINUX,
                tsval: LINUX_TSVAL,
                payload: &[],
            }),
            build(Segment { flags: SYN, window: 64240, ttl: 128, options: WINDOWS, tsval: 0, payload: &[] }),
            build(Segment {
                flags: SYN,
                window: 65535,
                ttl: 64,
                options: MACOS,
                tsval: MACOS_TSVAL,
                payload: &[],
            }),
        ],
        Kind::Ack => {
            vec![build(Segment { flags: ACK, window: 501, ttl: 64, options: &[], tsval: 0, payload: &[] })]
        }
        Kind::Data => {
            let payload = [b'x'; 64];
            let flags = ACK | PSH;
            vec![build(Segment { flags, window: 501, ttl: 64, options: &[], tsval: 0, payload: &payload })]
        }
    }
}

struct Segment<'a> {
    flags: u8,
    window: u16,
    ttl: u8,
    options: &'a [u8],
    /// Offset of the TSval within the options; 0 for none.
    tsval: usize,
    payload: &'a [u8],
}

impl Segment<'_> {
    fn template(&self, macs: Macs, target: SocketAddr) -> Template {
        let tcp_len = (20 + self.options.len() + self.payload.len()) as u16;
        let mut frame = Vec::with_capacity(TEMPLATE_LEN);
        frame.extend(macs.destination);
        frame.extend(macs.source);
        let shift = match target.ip() {
            IpAddr::V4(address) => {
                frame.extend([0x08, 0x00, 0x45, 0]);
                frame.extend((20 + tcp_len).to_be_bytes());
                // Identification 0, don't fragment; then TTL, TCP, checksum, source.
                frame.extend([0, 0, 0x40, 0, self.ttl, 6, 0, 0, 0, 0, 0, 0]);
                frame.extend(address.octets());
                0
            }
            IpAddr::V6(address) => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(tcp_len.to_be_bytes());
                frame.extend([6, self.ttl]);
                frame.extend(V6_PREFIX);
                frame.extend([0; 4]);
                frame.extend(V6_SUFFIX);
                frame.extend(address.octets());
                V6_SHIFT
            }
        };
        let tcp = frame.len();
        // Source port, destination port, sequence and acknowledgement number.
        frame.extend([0, 0]);
        frame.extend(target.port().to_be_bytes());
        frame.extend([0; 8]);
        frame.extend([((20 + self.options.len()) as u8 / 4) << 4, self.flags]);
        frame.extend(self.window.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(self.options);
        frame.extend(self.payload);

        let pseudo = [0, 6, (tcp_len >> 8) as u8, tcp_len as u8];
        // The addresses end where TCP begins.
        let addresses = if shift == 0 { 26 } else { 22 };
        let tcp_sum = sum(&frame[addresses..tcp]) + sum(&pseudo) + sum(&frame[tcp..]);
        let len = frame.len() as u16;
        let ip_sum = if shift == 0 { sum(&frame[14..tcp]) } else { 0 };
        frame.resize(TEMPLATE_LEN, 0);
        let mut words = [0; TEMPLATE_WORDS];
        for (word, bytes) in words.iter_mut().zip(frame.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        let tsval = if self.tsval == 0 { 0 } else { (offset::OPTIONS + shift + self.tsval) as u16 };
        let random_ack = u16::from(self.flags & ACK != 0);
        Template { words, ip_sum, tcp_sum, len, tsval, random_ack, pad: 0 }
    }
}

/// One's-complement sum in native words, not folded. Every part here has an even length.
fn sum(bytes: &[u8]) -> u32 {
    bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_ne_bytes(*word))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: Macs = Macs { source: [2; 6], destination: [4; 6] };

    fn target() -> SocketAddr {
        "10.0.0.1:80".parse().unwrap()
    }

    #[test]
    fn syn_templates_have_the_lengths_of_real_clients() {
        let lengths: Vec<_> = templates(Kind::Syn, MACS, target()).iter().map(|t| t.len).collect();
        assert_eq!(lengths, [54 + 20, 54 + 12, 54 + 24]);
    }

    #[test]
    fn templates_over_ipv6_are_as_much_longer_as_their_header() {
        let target = "[fd77::1]:80".parse().unwrap();
        let lengths: Vec<_> = templates(Kind::Syn, MACS, target).iter().map(|t| t.len).collect();
        assert_eq!(lengths, [74 + 20, 74 + 12, 74 + 24]);
    }

    #[test]
    fn the_timestamp_offset_points_behind_the_option_kind_and_length() {
        for template in templates(Kind::Syn, MACS, target()).iter().filter(|t| t.tsval != 0) {
            let bytes: Vec<u8> = template.words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            assert_eq!(bytes[template.tsval as usize - 2..template.tsval as usize], [8, 10]);
            assert_eq!(template.tsval % 2, 0);
        }
    }

    #[test]
    fn every_kind_fits_a_template() {
        for kind in [Kind::Syn, Kind::Ack, Kind::Data] {
            let templates = templates(kind, MACS, target());
            assert!(templates.iter().all(|t| t.len as usize <= TEMPLATE_LEN));
            assert!(templates.len() <= tcpguard_common::lab::TEMPLATES as usize);
        }
    }
}
