//! The parser against what the builder writes, and against what nobody should send.

use super::build::{Headers, Link};
use super::*;
use crate::flow::Address;
use crate::seq::Seq;
use std::vec;
use std::vec::Vec;

const CLIENT: V4 = V4([192, 0, 2, 7]);
const SERVER: V4 = V4([198, 51, 100, 1]);

fn v6(last: u8) -> V6 {
    let mut bytes = [0x20; 16];
    bytes[15] = last;
    V6(bytes)
}

fn headers<A: Address>(src: A, dst: A, tags: u8, options: Options) -> Headers<A> {
    let vlan = Vlan { count: tags, tags: [[0x88, 0xa8, 0, 7], [0x81, 0, 0x20, 9]] };
    let vlan = match tags {
        0 => Vlan::default(),
        1 => Vlan { count: 1, tags: [vlan.tags[1], [0; 4]] },
        _ => vlan,
    };
    Headers {
        link: Link { dst: [2, 0, 0, 0, 0, 1], src: [2, 0, 0, 0, 0, 2], vlan },
        src,
        dst,
        ecn: 2,
        src_port: 40000u16.to_be_bytes(),
        dst_port: 443u16.to_be_bytes(),
        seq: Seq(0x0102_0304),
        ack: Seq(0xfffe_fdfc),
        flags: Flags::ACK | Flags::PSH,
        window: 0x1234,
        options,
    }
}

fn frame<A: Family>(headers: &Headers<A>, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; headers.len() + data.len()];
    let start = headers.len();
    bytes[start..].copy_from_slice(data);
    let len = bytes.len();
    headers.write(&mut Buffer::new(&mut bytes, len), data.len(), checksum::sum(data)).unwrap();
    bytes
}

fn every_option_set() -> impl Iterator<Item = Options> {
    (0..64).map(|bits: u32| {
        let on = |bit: u32| bits & 1 << bit != 0;
        let mut sack = SackBlocks::default();
        // As many blocks as fit beside the rest, on the segments that carry them.
        for block in 0..(bits >> 4) {
            sack.push(Seq(block * 100), Seq(block * 100 + 50));
        }
        let handshake = sack == SackBlocks::default();
        Options {
            mss: (on(0) && handshake).then_some(1460),
            window_scale: (on(1) && handshake).then_some(7),
            sack_permitted: on(2) && handshake,
            timestamps: on(3).then_some((0x1111_2222, 0x3333_4444)),
            sack,
        }
    })
}

fn round_trip<A: Family>(src: A, dst: A, unwrap: impl Fn(AnySegment) -> Segment<A>) {
    for tags in 0..=2 {
        for options in every_option_set() {
            for data in [&b""[..], b"x", b"odd", b"a longer piece of data, of even length."] {
                let headers = headers(src, dst, tags, options);
                let frame = frame(&headers, data);
                let segment = unwrap(parse(&frame[..]).unwrap());
                assert_eq!(segment.options, options);
                assert_eq!(&frame[segment.payload.clone()], data);
                assert_eq!(segment.ethernet.vlan, headers.link.vlan);
                assert_eq!((segment.ip.src, segment.ip.dst, segment.ip.ecn), (src, dst, 2));
                assert_eq!((segment.tcp.seq, segment.tcp.ack), (headers.seq, headers.ack));
                assert_eq!((segment.tcp.window, segment.tcp.flags), (0x1234, headers.flags));
                assert!(segment.checksum_ok(&frame));
                let bounded = checksum::of_segment(&frame[..], segment.ip.l4, segment.ip.l4_len).unwrap();
                assert!(checksum::holds(bounded + checksum::pseudo(src, dst, segment.ip.l4_len)));
            }
        }
    }
}

#[test]
fn what_the_builder_writes_the_parser_reads_back_in_both_families() {
    round_trip(CLIENT, SERVER, |any| match any {
        AnySegment::V4(segment) => segment,
        AnySegment::V6(_) => panic!("IPv4 became IPv6"),
    });
    round_trip(v6(1), v6(2), |any| match any {
        AnySegment::V6(segment) => segment,
        AnySegment::V4(_) => panic!("IPv6 became IPv4"),
    });
}

#[test]
fn every_flipped_bit_that_a_checksum_covers_is_noticed() {
    let whole = frame(&headers(CLIENT, SERVER, 0, Options::default()), b"data");
    for bit in Ethernet::LEN * 8..whole.len() * 8 {
        let mut frame = whole.clone();
        frame[bit / 8] ^= 0x80 >> (bit % 8);
        let sound = match parse(&frame[..]) {
            Ok(AnySegment::V4(segment)) => segment.checksum_ok(&frame),
            Ok(AnySegment::V6(_)) => panic!("IPv4 became IPv6"),
            Err(_) => false,
        };
        assert!(!sound, "bit {bit}");
    }
}

#[test]
fn a_frame_cut_anywhere_is_never_a_whole_segment() {
    for tags in 0..=2 {
        let whole = frame(&headers(v6(1), v6(2), tags, Options::default()), b"data");
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "cut at {len}");
        }
    }
}

fn options_of(bytes: &[u8]) -> Option<Options> {
    Options::parse_all(bytes, 0, bytes.len())
}

#[test]
fn option_lengths_that_lie_are_refused_and_foreign_ones_skipped() {
    assert_eq!(options_of(&[2, 0, 0, 0]), None);
    assert_eq!(options_of(&[2, 1, 0, 0]), None);
    assert_eq!(options_of(&[2, 5, 0, 0]), None);
    assert_eq!(options_of(&[1, 1, 1, 8]), None);
    assert_eq!(options_of(&[2, 3, 9, 1]), Some(Options::default()));
    assert_eq!(options_of(&[30, 4, 9, 9]), Some(Options::default()));
    assert_eq!(options_of(&[options::NOP; 40]), Some(Options::default()));
    assert_eq!(options_of(&[0, 2, 0, 0]), Some(Options::default()));
}

#[test]
fn of_duplicate_options_the_last_counts_and_shifts_over_14_count_as_14() {
    let options = options_of(&[2, 4, 1, 1, 2, 4, 2, 2, 3, 3, 200, 1]).unwrap();
    assert_eq!(options.mss, Some(0x0202));
    assert_eq!(options.window_scale, Some(14));
}

#[test]
fn selective_acknowledgments_are_whole_blocks_or_none() {
    for size in 2..=40 {
        let mut bytes: Vec<u8> = (0..40).collect();
        (bytes[0], bytes[1]) = (options::SACK, size);
        bytes[usize::from(size)..].fill(options::NOP);
        let blocks = options_of(&bytes).unwrap().sack;
        let whole = if size % 8 == 2 { usize::from(size) / 8 } else { 0 };
        assert_eq!(blocks.as_slice().len(), whole, "an option of {size} bytes");
        if let Some(&first) = blocks.as_slice().first() {
            assert_eq!(first, (Seq(0x0203_0405), Seq(0x0607_0809)));
        }
    }
}

#[test]
fn ipv6_extension_headers_are_walked_and_an_atomic_fragment_is_whole() {
    let plain = frame(&headers(v6(1), v6(2), 0, Options::default()), b"");
    let with = |chain: &[&[u8]]| {
        let mut frame = plain[..54].to_vec();
        let mut at = 20;
        for header in chain {
            frame[at] = header[0];
            at = frame.len();
            frame.extend(&header[1..]);
        }
        frame[at] = 6;
        let extra = frame.len() - 54;
        frame.extend(&plain[54..]);
        frame[18..20].copy_from_slice(&(20 + extra as u16).to_be_bytes());
        parse(&frame[..])
    };
    // First the type that leads to the header, then its bytes.
    let hop_by_hop = &[0, 0, 0, 1, 4, 0, 0, 0, 0][..];
    let routing = &[43, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..];
    let authentication = &[51, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..];
    let destination = &[60, 0, 0, 1, 4, 0, 0, 0, 0][..];
    let atomic = &[44, 0, 0, 0, 0, 0, 0, 0, 1][..];
    let first_fragment = &[44, 0, 0, 0, 1, 0, 0, 0, 1][..];
    let later_fragment = &[44, 0, 0, 0, 8, 0, 0, 0, 1][..];
    for chain in [&[hop_by_hop][..], &[hop_by_hop, destination, routing, atomic, authentication, destination]]
    {
        assert!(matches!(with(chain), Ok(AnySegment::V6(_))), "{chain:?}");
    }
    assert_eq!(with(&[first_fragment]), Err(ParseError::Bad(Reason::Fragment)));
    assert_eq!(with(&[later_fragment]), Err(ParseError::NotTcp));
    assert_eq!(with(&[later_fragment, destination]), Err(ParseError::NotTcp));
    let hidden = Err(ParseError::Bad(Reason::HeaderChain));
    assert_eq!(with(&[destination; MAX_EXTENSION_HEADERS + 1]), hidden);
    assert_eq!(with(&[first_fragment, later_fragment]), hidden);
    let passing = &[43, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..];
    assert_eq!(with(&[passing]), Err(ParseError::NotTcp));
    let unknown = &[50, 0, 0, 0, 0, 0, 0, 0, 0][..];
    assert_eq!(with(&[unknown]), Err(ParseError::NotTcp));
}

#[test]
fn sums_do_not_depend_on_how_the_bytes_are_walked() {
    let bytes: Vec<u8> = (0..1500u32).map(|i| (i * 31 % 251) as u8).collect();
    for len in 0..bytes.len() {
        let expected = bytes[..len].chunks(2).fold(0u32, |sum, pair| {
            let sum = sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            (sum & 0xffff) + (sum >> 16)
        });
        let expected = (!(expected as u16)).to_be_bytes();
        assert_eq!(checksum::finish(checksum::sum(&bytes[..len])), expected, "slice of {len}");
        let bounded = checksum::of_segment(&bytes[..], 0, len).unwrap();
        assert_eq!(checksum::finish(bounded), expected, "steps over {len}");
    }
    assert_eq!(checksum::of_segment(&[0; 5000][..], 0, checksum::MAX_SEGMENT + 1), None);
}
