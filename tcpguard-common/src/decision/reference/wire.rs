//! Reading and writing frames with `etherparse`. What that crate is stricter or laxer about than the rules is done here
//! by hand: the walk over extension headers, and options of lengths that are not theirs.

use core::net::{IpAddr, SocketAddr};
use std::vec;
use std::vec::Vec;

use etherparse::checksum::Sum16BitWords;
use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6FlowLabel, Ipv6Header,
    Ipv6HeaderSlice, SingleVlanHeader, TcpHeader, TcpOptionElement, TcpOptionsIterator,
};
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::reason::Reason;

/// How many extension headers may stand before TCP: more hide it.
const LONGEST_CHAIN: usize = 6;

/// A frame that carries TCP to some port.
pub(super) struct Arrival {
    pub(super) link_source: [u8; 6],
    pub(super) link_destination: [u8; 6],
    /// TPID and TCI of each VLAN tag.
    pub(super) tags: Vec<[u8; 4]>,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) header_sum_holds: bool,
    /// The ports where TCP would have them, whether or not the rest is there; zeros where they are hidden.
    ports: [u16; 2],
    /// The segment, or what is wrong with its headers.
    pub(super) segment: Result<Segment, Reason>,
}

/// The link header, and what follows it.
pub(super) struct Link<'a> {
    pub(super) source: [u8; 6],
    pub(super) destination: [u8; 6],
    pub(super) tags: Vec<[u8; 4]>,
    pub(super) ether_type: EtherType,
    pub(super) rest: &'a [u8],
}

impl<'a> Link<'a> {
    pub(super) fn read(frame: &'a [u8]) -> Option<Self> {
        let (ethernet, mut rest) = Ethernet2Header::from_slice(frame).ok()?;
        let (mut ether_type, mut tags) = (ethernet.ether_type, vec![]);
        while tags.len() < 2
            && matches!(ether_type, EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING)
        {
            let (_, after) = SingleVlanHeader::from_slice(rest).ok()?;
            tags.push([&ether_type.0.to_be_bytes()[..], &rest[..2]].concat().try_into().ok()?);
            ether_type = EtherType(u16::from_be_bytes([rest[2], rest[3]]));
            rest = after;
        }
        let Ethernet2Header { source, destination, .. } = ethernet;
        Some(Self { source, destination, tags, ether_type, rest })
    }
}

pub(super) struct Segment {
    pub(super) header: TcpHeader,
    /// Header and data.
    pub(super) bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) mss: Option<u16>,
    pub(super) shift: Option<u8>,
    pub(super) sack: bool,
    pub(super) stamps: Option<(u32, u32)>,
}

/// A network header that leads to TCP.
struct Network {
    source: IpAddr,
    destination: IpAddr,
    header_sum_holds: bool,
    header_len: usize,
    /// What the length field says, header included.
    total: usize,
    more_fragments: bool,
    /// Whether nobody can see what the extension headers lead to.
    is_hidden: bool,
}

impl Arrival {
    /// `None` for everything but TCP with a destination port in sight.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let Link { source: link_source, destination: link_destination, tags, ether_type, rest } =
            Link::read(frame)?;
        let network = match ether_type {
            EtherType::IPV4 => Network::read_v4(rest),
            EtherType::IPV6 => Network::read_v6(rest),
            _ => None,
        }?;
        let ports = match network.is_hidden {
            true => [0; 4],
            false => *rest.get(network.header_len..)?.first_chunk::<4>()?,
        };
        Some(Self {
            link_source,
            link_destination,
            tags,
            source: network.source,
            destination: network.destination,
            header_sum_holds: network.header_sum_holds,
            ports: [u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]])],
            segment: network.segment(rest),
        })
    }

    pub(super) fn local(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.ports[1])
    }

    pub(super) fn flow(&self) -> AnyFlowKey {
        let peer = SocketAddr::new(self.source, self.ports[0]);
        AnyFlowKey::new(peer, self.local()).expect("one family")
    }

    /// Whether the segment's checksum holds, the way a receiver finds out (RFC 1071 §1).
    pub(super) fn sum_holds(&self, segment: &Segment) -> bool {
        self.pseudo(segment).add_slice(&segment.bytes).ones_complement() == 0
    }

    fn pseudo(&self, segment: &Segment) -> Sum16BitWords {
        Sum16BitWords::new()
            .add_slice(&octets(self.source))
            .add_slice(&octets(self.destination))
            .add_slice(&[0, IpNumber::TCP.0])
            .add_slice(&(segment.bytes.len() as u32).to_be_bytes())
    }

    /// An empty segment from the other end, along the same link.
    pub(super) fn answer(&self, segment: &Segment) -> Answer {
        Answer {
            link_source: self.link_destination,
            link_destination: self.link_source,
            tags: self.tags.clone(),
            source: self.destination,
            destination: self.source,
            header: TcpHeader::new(segment.header.destination_port, segment.header.source_port, 0, 0),
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

impl Network {
    fn read_v4(bytes: &[u8]) -> Option<Self> {
        let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
        let is_whole_or_first = header.fragments_offset().value() == 0;
        (header.protocol() == IpNumber::TCP && is_whole_or_first).then(|| Self {
            source: header.source_addr().into(),
            destination: header.destination_addr().into(),
            header_sum_holds: Sum16BitWords::new().add_slice(header.slice()).ones_complement() == 0,
            header_len: header.slice().len(),
            total: usize::from(header.total_len()),
            more_fragments: header.more_fragments(),
            is_hidden: false,
        })
    }

    fn read_v6(bytes: &[u8]) -> Option<Self> {
        let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
        let total = Ipv6Header::LEN + usize::from(header.payload_length());
        let mut chain = Chain { next: header.next_header(), at: Ipv6Header::LEN, more_fragments: false };
        let mut walked = 0;
        // A first fragment has to show its headers and the ports in its own datagram (RFC 7112 §5).
        let is_shown = |chain: &Chain| {
            let end = chain.at + 4;
            !chain.more_fragments || end <= total && end <= bytes.len()
        };
        while walked < LONGEST_CHAIN && chain.is_known() && is_shown(&chain) {
            match chain.step(bytes)? {
                Step::Header => walked += 1,
                Step::LaterFragment if chain.more_fragments => break,
                Step::LaterFragment | Step::OnItsWay => return None,
            }
        }
        let is_hidden = chain.is_known() || chain.next == IpNumber::TCP && !is_shown(&chain);
        (chain.next == IpNumber::TCP || is_hidden).then(|| Self {
            source: header.source_addr().into(),
            destination: header.destination_addr().into(),
            header_sum_holds: true,
            header_len: chain.at,
            total,
            more_fragments: chain.more_fragments,
            is_hidden,
        })
    }

    fn segment(&self, bytes: &[u8]) -> Result<Segment, Reason> {
        if self.is_hidden {
            return Err(Reason::HeaderChain);
        }
        if self.total < self.header_len + TcpHeader::MIN_LEN {
            return Err(Reason::BadLength);
        }
        let datagram = bytes.get(..self.total).ok_or(Reason::Truncated)?;
        if self.more_fragments {
            return Err(Reason::Fragment);
        }
        let bytes = datagram[self.header_len..].to_vec();
        let (header, _) = TcpHeader::from_slice(&bytes).map_err(|_| Reason::BadDataOffset)?;
        Ok(Segment { header, bytes })
    }
}

/// Where a walk over extension headers is.
struct Chain {
    /// What kind of header comes next.
    next: IpNumber,
    /// Where it begins.
    at: usize,
    more_fragments: bool,
}

enum Step {
    Header,
    LaterFragment,
    /// By a routing header there are hops to go.
    OnItsWay,
}

impl Chain {
    /// Whether it is at an extension header that hosts walk over.
    fn is_known(&self) -> bool {
        [
            IpNumber::IPV6_HEADER_HOP_BY_HOP,
            IpNumber::IPV6_ROUTE_HEADER,
            IpNumber::IPV6_DESTINATION_OPTIONS,
            IpNumber::IPV6_FRAGMENTATION_HEADER,
            IpNumber::AUTHENTICATION_HEADER,
        ]
        .contains(&self.next)
    }

    /// Goes past one header; `None` when the frame ends inside its first words.
    fn step(&mut self, bytes: &[u8]) -> Option<Step> {
        let &[following, len, third, fourth] = bytes.get(self.at..)?.first_chunk()?;
        match self.next {
            IpNumber::IPV6_ROUTE_HEADER if fourth > 0 => return Some(Step::OnItsWay),
            IpNumber::IPV6_FRAGMENTATION_HEADER => {
                let field = u16::from_be_bytes([third, fourth]);
                if field >= 8 {
                    return Some(Step::LaterFragment);
                }
                self.more_fragments |= field % 2 == 1;
                self.at += 8;
            }
            IpNumber::AUTHENTICATION_HEADER => self.at += 4 * (usize::from(len) + 2),
            _ => self.at += 8 * (usize::from(len) + 1),
        }
        self.next = IpNumber(following);
        Some(Step::Header)
    }
}

impl Segment {
    /// `None` when an option's length lies.
    pub(super) fn options(&self) -> Option<Options> {
        options(self.header.options.as_slice())
    }
}

/// Our own walk, which must agree with the crate's on what the crate can read.
pub(super) fn options(bytes: &[u8]) -> Option<Options> {
    let options = walk(bytes);
    let easy: Result<Vec<_>, _> = TcpOptionsIterator::from_slice(bytes).collect();
    if let Ok(elements) = easy {
        assert_eq!(options, Some(collect(elements)), "{bytes:02x?}");
    }
    options
}

/// The last of each kind counts; one of a length that is not its kind's is none.
fn walk(mut rest: &[u8]) -> Option<Options> {
    let mut options = Options::default();
    loop {
        match *rest {
            [] | [0, ..] => return Some(options),
            [1, ..] => rest = &rest[1..],
            [_, length, ..] if length >= 2 && usize::from(length) <= rest.len() => {
                let (option, after) = rest.split_at(usize::from(length));
                match *option {
                    [2, 4, a, b] => options.mss = Some(u16::from_be_bytes([a, b])),
                    [3, 3, shift] => options.shift = Some(shift.min(14)),
                    [4, 2] => options.sack = true,
                    [8, 10, a, b, c, d, e, f, g, h] => {
                        let word = u32::from_be_bytes;
                        options.stamps = Some((word([a, b, c, d]), word([e, f, g, h])));
                    }
                    _ => {}
                }
                rest = after;
            }
            _ => return None,
        }
    }
}

fn collect(elements: Vec<TcpOptionElement>) -> Options {
    let mut options = Options::default();
    for element in elements {
        match element {
            TcpOptionElement::Noop | TcpOptionElement::SelectiveAcknowledgement(..) => {}
            TcpOptionElement::MaximumSegmentSize(mss) => options.mss = Some(mss),
            TcpOptionElement::WindowScale(shift) => options.shift = Some(shift.min(14)),
            TcpOptionElement::SelectiveAcknowledgementPermitted => options.sack = true,
            TcpOptionElement::Timestamp(value, echo) => options.stamps = Some((value, echo)),
        }
    }
    options
}

/// A segment without data, to be sent.
pub(super) struct Answer {
    link_source: [u8; 6],
    link_destination: [u8; 6],
    tags: Vec<[u8; 4]>,
    source: IpAddr,
    destination: IpAddr,
    pub(super) header: TcpHeader,
}

impl Answer {
    /// In the order and with the padding that Linux has.
    pub(super) fn options(&mut self, mss: u16, stamps: Option<(u32, u32)>, sack: bool, shift: Option<u8>) {
        let mut options = [&[2, 4][..], &mss.to_be_bytes()].concat();
        match (stamps, sack) {
            (Some((value, echo)), _) => {
                options.extend(if sack { [4, 2] } else { [1, 1] });
                options.extend([8, 10]);
                options.extend(value.to_be_bytes());
                options.extend(echo.to_be_bytes());
            }
            (None, true) => options.extend([1, 1, 4, 2]),
            (None, false) => {}
        }
        options.extend(shift.map(|shift| [1, 3, 3, shift]).into_iter().flatten());
        self.header.set_options_raw(&options).expect("they fit");
    }

    pub(super) fn bytes(mut self) -> Vec<u8> {
        let len = self.header.header_len_u16();
        let (ether_type, network) = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (source, destination) = (source.octets(), destination.octets());
                let header = Ipv4Header::new(len, 64, IpNumber::TCP, source, destination).expect("short");
                self.header.checksum = self.header.calc_checksum_ipv4(&header, &[]).expect("short");
                let mut bytes = vec![];
                header.write(&mut bytes).expect("memory");
                (EtherType::IPV4, bytes)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: len,
                    next_header: IpNumber::TCP,
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                self.header.checksum = self.header.calc_checksum_ipv6(&header, &[]).expect("short");
                (EtherType::IPV6, header.to_bytes().to_vec())
            }
            _ => unreachable!("one family"),
        };
        let link = [&self.link_destination[..], &self.link_source, &self.tags.concat()].concat();
        [link, ether_type.0.to_be_bytes().to_vec(), network, self.header.to_bytes().to_vec()].concat()
    }
}

/// Where the parts of a frame stand.
pub(super) struct Places {
    l3: usize,
    l4: usize,
    end: usize,
    pseudo: Sum16BitWords,
    v4: bool,
}

impl Places {
    /// `None` unless there is a whole segment.
    pub(super) fn of(frame: &[u8]) -> Option<Self> {
        let arrival = Arrival::read(frame)?;
        let segment = arrival.segment.as_ref().ok()?;
        let l3 = Ethernet2Header::LEN + SingleVlanHeader::LEN * arrival.tags.len();
        let rest = &frame[l3..];
        let network = if arrival.source.is_ipv4() { Network::read_v4(rest) } else { Network::read_v6(rest) }?;
        Some(Self {
            l3,
            l4: l3 + network.header_len,
            end: l3 + network.total,
            pseudo: arrival.pseudo(segment),
            v4: arrival.source.is_ipv4(),
        })
    }

    pub(super) fn repair(&self, frame: &mut [u8]) {
        if self.v4 {
            let at = self.l3 + 10;
            frame[at..at + 2].fill(0);
            let sum = Sum16BitWords::new().add_slice(&frame[self.l3..self.l4]);
            frame[at..at + 2].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        }
        let at = self.l4 + 16;
        frame[at..at + 2].fill(0);
        let sum = self.pseudo.clone().add_slice(&frame[self.l4..self.end]);
        frame[at..at + 2].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    }

    /// Sets ACK, the acknowledgment number, and the TSecr where NOP, NOP, timestamps is the first thing.
    pub(super) fn acknowledge(&self, frame: &mut [u8], ack: u32, tsecr: Option<u32>) {
        const ACK: u8 = 0x10;
        let l4 = self.l4;
        frame[l4 + 8..l4 + 12].copy_from_slice(&ack.to_be_bytes());
        frame[l4 + 13] |= ACK;
        if let (Some(tsecr), true) = (tsecr, frame[l4 + 20..self.end].starts_with(&[1, 1, 8, 10])) {
            frame[l4 + 28..l4 + 32].copy_from_slice(&tsecr.to_be_bytes());
        }
    }
}
