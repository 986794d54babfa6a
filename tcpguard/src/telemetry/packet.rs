//! What the headers of a captured frame say, for people to read: of hostile frames too, and of frames of which only the
//! beginning was kept. It judges nothing.

use std::net::{IpAddr, SocketAddr};

use tcpguard_common::flow::{V4, V6};
use tcpguard_common::packet::{Ethernet, Family, Fault, Flags, Frame, Options, Tcp};

/// The headers of one TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Where it comes from; this port and that of `dst` are 0 if the network header hides them.
    pub src: SocketAddr,
    /// Where it goes to.
    pub dst: SocketAddr,
    /// The VLAN identifiers in front, outermost first.
    pub vlans: Vec<u16>,
    /// Unless the TCP header is malformed or cut off.
    pub tcp: Option<TcpHeader>,
}

/// The TCP header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpHeader {
    /// The control bits.
    pub flags: Flags,
    /// SEG.SEQ.
    pub seq: u32,
    /// SEG.ACK; means something with ACK.
    pub ack: u32,
    /// The window field, unscaled.
    pub window: u16,
    /// Bytes of data.
    pub data_len: usize,
    /// The options, if they are well-formed.
    pub options: Option<Options>,
}

/// Takes apart the beginning `bytes` of a frame of `len` bytes; `None` if it does not look like TCP.
pub fn headers(bytes: &[u8], len: usize) -> Option<Headers> {
    let frame = Beginning { bytes, len };
    let ethernet = Ethernet::parse(&frame)?;
    let vlans: Vec<u16> = ethernet.vlan.tags[..usize::from(ethernet.vlan.count)]
        .iter()
        .map(|&[_, _, high, low]| u16::from_be_bytes([high, low]) & 0xfff)
        .collect();
    match ethernet.ether_type {
        <V4 as Family>::ETHER_TYPE => segment::<V4>(&frame, ethernet.l3, vlans, |V4(addr)| addr.into()),
        <V6 as Family>::ETHER_TYPE => segment::<V6>(&frame, ethernet.l3, vlans, |V6(addr)| addr.into()),
        _ => None,
    }
}

fn segment<A: Family>(
    frame: &Beginning<'_>,
    l3: usize,
    vlans: Vec<u16>,
    addr: impl Fn(A) -> IpAddr,
) -> Option<Headers> {
    let ip = A::parse(frame, l3)?;
    let hidden = ip.fault == Fault::HEADER_CHAIN;
    let [a, b, c, d] = if hidden { [0; 4] } else { frame.load::<4>(ip.l4)? };
    let (src_port, dst_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let tcp =
        ip.fault.reason().is_none().then(|| Tcp::parse(frame, &ip).ok()).flatten().map(|tcp| TcpHeader {
            flags: tcp.flags,
            seq: tcp.seq.0,
            ack: tcp.ack.0,
            window: tcp.window,
            data_len: ip.l4_len - tcp.header_len,
            options: Options::parse_all(frame, ip.l4 + Tcp::LEN, tcp.header_len - Tcp::LEN),
        });
    let (src, dst) = (addr(ip.src), addr(ip.dst));
    Some(Headers { src: (src, src_port).into(), dst: (dst, dst_port).into(), vlans, tcp })
}

/// As `tcpdump` writes the control bits: `S.` for SYN and ACK, `none` for none.
pub fn flags(flags: Flags) -> String {
    const LETTERS: [(Flags, char); 8] = [
        (Flags::FIN, 'F'),
        (Flags::SYN, 'S'),
        (Flags::RST, 'R'),
        (Flags::PSH, 'P'),
        (Flags::ACK, '.'),
        (Flags::URG, 'U'),
        (Flags::ECE, 'E'),
        (Flags::CWR, 'W'),
    ];
    let letters: String =
        LETTERS.iter().filter(|(bit, _)| flags.contains(*bit)).map(|&(_, letter)| letter).collect();
    if letters.is_empty() { "none".to_owned() } else { letters }
}

/// A frame of which only the beginning is known. The rest is taken for zeros.
struct Beginning<'a> {
    bytes: &'a [u8],
    len: usize,
}

impl Frame for Beginning<'_> {
    fn len(&self) -> usize {
        self.len
    }

    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let end = offset.checked_add(N).filter(|&end| end <= self.len)?;
        let mut loaded = [0; N];
        if let Some(known) = self.bytes.get(offset..end.min(self.bytes.len())) {
            loaded[..known.len()].copy_from_slice(known);
        }
        Some(loaded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tcpguard_common::packet::build::{self, Link};
    use tcpguard_common::packet::{Buffer, checksum};
    use tcpguard_common::seq::Seq;

    fn frame(data: usize) -> Vec<u8> {
        let headers = build::Headers {
            link: Link::default(),
            src: V4([192, 0, 2, 1]),
            dst: V4([198, 51, 100, 1]),
            ecn: 0,
            src_port: 40000u16.to_be_bytes(),
            dst_port: 80u16.to_be_bytes(),
            seq: Seq(7),
            ack: Seq(9),
            flags: Flags::PSH | Flags::ACK,
            window: 500,
            options: Options { timestamps: Some((1, 2)), ..Options::default() },
        };
        let mut frame = vec![0; headers.len() + data];
        let len = frame.len();
        headers.write(&mut Buffer::new(&mut frame, len), data, checksum::sum(&vec![0; data])).unwrap();
        frame
    }

    #[test]
    fn the_beginning_of_a_segment_tells_all_of_its_headers() {
        let frame = frame(1000);
        let whole = headers(&frame, frame.len()).unwrap();
        assert_eq!(headers(&frame[..100], frame.len()), Some(whole.clone()));
        assert_eq!((whole.src.to_string(), whole.dst.port()), ("192.0.2.1:40000".to_owned(), 80));
        let tcp = whole.tcp.unwrap();
        assert_eq!((tcp.seq, tcp.ack, tcp.window, tcp.data_len), (7, 9, 500, 1000));
        assert_eq!((flags(tcp.flags), tcp.options.unwrap().timestamps), ("P.".to_owned(), Some((1, 2))));
        assert_eq!(flags(Flags::default()), "none");
    }

    #[test]
    fn a_malformed_tcp_header_leaves_the_addresses() {
        let mut frame = frame(0);
        // The data offset.
        frame[14 + 20 + 12] = 0x40;
        let found = headers(&frame, frame.len()).unwrap();
        assert_eq!((found.tcp, found.src.port()), (None, 40000));
        assert_eq!(headers(&frame[..14], 14), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            len in 0usize..300,
            version in prop_oneof![Just(0x0800u16), Just(0x86dd), Just(0x8100)],
        ) {
            let mut bytes = bytes;
            if let Some(ether_type) = bytes.get_mut(12..14) {
                ether_type.copy_from_slice(&version.to_be_bytes());
            }
            drop(headers(&bytes, len.max(bytes.len())));
        }
    }
}
