//! The frames that the benchmark's rows are made of: bytes and sums. The benchmark's XDP program fills in what
//! differs from frame to frame.

use tcpguard_common::bench::{ACK_COOKIE, ACK_NONE, ACK_RANDOM, Ends, PORT, Rewrite, TEMPLATE_LEN};
use tcpguard_common::map::EpochSlot;
use tcpguard_common::packet::{Buffer, Ethernet, Flags, Tcp, checksum};

use crate::lab::template::{LINUX, LINUX_TSVAL, WINDOWS};

/// The guarded interface's address.
pub(super) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Who forwards everybody's segments to it.
pub(super) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Bytes of a packet.
const MTU: usize = 1500;
/// The options of an ACK by whoever negotiated timestamps, and where its TSval stands.
const STAMPS: &[u8] = &[1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0];
const STAMPS_TSVAL: usize = 4;

/// A kind of segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// As Linux sends it.
    Syn,
    /// The same with as much data as a frame holds.
    SynWithData,
    /// As Windows sends it: without timestamps.
    SynWithoutStamps,
    /// To a port that is not protected.
    SynElsewhere,
    /// With timestamps, random numbers.
    Ack,
    /// Random numbers and no options.
    AckWithoutStamps,
    /// That acknowledges a cookie.
    AckOfCookie,
}

/// Which frames follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sources {
    /// First byte of the sources over IPv4.
    pub(super) network: u8,
    /// How many different ones; 0 for ever new ones.
    pub(super) count: u64,
}

/// How to make frames of `kind`. Cookies are made with `slot`.
pub(super) fn rewrite<A: Ends>(kind: Kind, sources: Sources, slot: EpochSlot) -> Rewrite {
    let (options, tsval) = match kind {
        Kind::Syn | Kind::SynWithData | Kind::SynElsewhere => (LINUX, LINUX_TSVAL),
        Kind::SynWithoutStamps => (WINDOWS, 0),
        Kind::Ack | Kind::AckOfCookie => (STAMPS, STAMPS_TSVAL),
        Kind::AckWithoutStamps => (&[][..], 0),
    };
    let (flags, ack) = match kind {
        Kind::Syn | Kind::SynWithData | Kind::SynElsewhere | Kind::SynWithoutStamps => (Flags::SYN, ACK_NONE),
        Kind::Ack | Kind::AckWithoutStamps => (Flags::ACK, ACK_RANDOM),
        Kind::AckOfCookie => (Flags::ACK, ACK_COOKIE),
    };
    let port = if kind == Kind::SynElsewhere { PORT + 1 } else { PORT };
    let l4 = Ethernet::LEN + A::HEADER_LEN;
    let headers = A::HEADER_LEN + Tcp::LEN + options.len();
    let data = if kind == Kind::SynWithData { MTU - headers } else { 0 };
    let tsval = if tsval == 0 { 0 } else { (l4 + Tcp::LEN + tsval) as u32 };
    Template::of::<A>(port, flags, options, data).rewrite(Rewrite {
        words: [0; _],
        ip_sum: 0,
        tcp_sum: 0,
        count: sources.count,
        len: 0,
        version: A::VERSION.into(),
        tsval,
        network: sources.network.into(),
        ack,
        pad: 0,
        slot,
    })
}

struct Template {
    frame: Vec<u8>,
    l4: usize,
    /// Bytes of zeroes behind it.
    data: usize,
    /// What the addresses add to the TCP checksum.
    pseudo: u64,
}

impl Template {
    fn of<A: Ends>(port: u16, flags: Flags, options: &[u8], data: usize) -> Self {
        let l4 = Ethernet::LEN + A::HEADER_LEN;
        let header_len = Tcp::LEN + options.len();
        let l4_len = header_len + data;
        let mut frame = vec![0; l4];
        frame[..6].copy_from_slice(&MAC);
        frame[Ethernet::SRC..][..6].copy_from_slice(&ROUTER);
        frame[12..14].copy_from_slice(&A::ETHER_TYPE.to_be_bytes());
        // The source is filled in whole, frame by frame.
        let ends = (A::ANY, A::GUARDED);
        A::write_header(&mut Buffer::new(&mut frame, l4), Ethernet::LEN, ends, l4_len as u16, 0)
            .expect("a header of the length that was made room for");
        if A::VERSION == 4 {
            frame[Ethernet::LEN + 10..][..2].fill(0);
        }
        frame.extend([0; 2]);
        frame.extend(port.to_be_bytes());
        frame.extend([0; 8]);
        frame.extend([(header_len as u8) << 2, flags.0, 0xfa, 0xf0, 0, 0, 0, 0]);
        frame.extend(options);
        Self { frame, l4, data, pseudo: checksum::pseudo(A::ANY, A::GUARDED, l4_len) }
    }

    /// `how` with the frame in it.
    fn rewrite(self, how: Rewrite) -> Rewrite {
        let Self { mut frame, l4, data, pseudo } = self;
        let (len, ip_sum) = ((frame.len() + data) as u32, checksum::sum(&frame[Ethernet::LEN..l4]));
        let tcp_sum = pseudo + checksum::sum(&frame[l4..]);
        frame.resize(TEMPLATE_LEN, 0);
        let mut words = [0; _];
        for (word, bytes) in words.iter_mut().zip(frame.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        Rewrite { words, ip_sum, tcp_sum, len, ..how }
    }
}
