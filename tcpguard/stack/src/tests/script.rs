//! A client written by hand: segments in and out of one stack in the notation of tcpdump and packetdrill. Sequence
//! numbers count from the initial ones, so the first byte either side sends is 1.

use std::fmt::Write as _;
use std::time::Duration;

use tcpguard_common::cookie::{Cookie, Strictness, SynOptions, encode};
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::map::{FLOW_TIMESTAMPS, Flow};
use tcpguard_common::packet::{AnySegment, Flags, Options, parse};
use tcpguard_common::seq::Seq;

use super::{ADVERTISED, CLIENT_MAC, EPOCH, Family, SERVER_MAC, START, clock, epochs, link, stream};
use crate::wire::{Incoming, Outgoing};
use crate::{Config, ConnId, Event, Instant, Received, Stack, State};

/// Labels of the two streams.
pub(super) const CLIENT: u8 = 0xc1;
pub(super) const SERVER: u8 = 0x5e;

/// What the client's SYN offers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) family: Family,
    pub(super) options: SynOptions,
    pub(super) isn: u32,
    pub(super) port: u16,
}

/// Everything a current client offers.
pub(super) fn modern() -> Offer {
    let options = SynOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some(5000),
        ecn: false,
    };
    Offer { family: Family::V4, options, isn: 0x1000_0000, port: 40_000 }
}

/// A client without options but MSS: round numbers, no scaling, no SACK, no timestamps.
pub(super) fn plain() -> Offer {
    let options = SynOptions { mss: Some(1460), ..SynOptions::default() };
    Offer { options, ..modern() }
}

/// A stack and the client that talks to it.
pub(super) struct Script {
    pub(super) stack: Stack,
    pub(super) now: Instant,
    pub(super) offer: Offer,
    pub(super) cookie: Cookie,
    pub(super) conn: Option<ConnId>,
    pub(super) events: Vec<Event>,
    /// The client's window field.
    pub(super) window: u16,
    /// TSval of the client's next segments; TSecr is what the server sent last.
    pub(super) tsval: u32,
    pub(super) tsecr: u32,
    /// The last frame the stack sent.
    pub(super) last: Option<(Seq, Seq, u16, Options)>,
    /// The two ECN bits of the client's next segments, and of the last frame the stack sent.
    pub(super) ecn: u8,
    pub(super) last_ecn: u8,
}

impl Script {
    /// A stack that listens, and a client whose SYN was answered with a cookie a moment ago.
    pub(super) fn syn(offer: Offer) -> Self {
        Self::syn_with(offer, Config::default())
    }

    pub(super) fn syn_with(offer: Offer, config: Config) -> Self {
        let mut stack = Stack::new(START, config, 42);
        stack.set_epochs(&epochs(EPOCH), clock(EPOCH, false));
        stack.listen(None, 80, 7);
        let cookie = answer(&offer, EPOCH, START);
        let tsval = offer.options.timestamps.unwrap_or(0);
        Self {
            stack,
            now: START + Duration::from_millis(20),
            offer,
            cookie,
            conn: None,
            events: Vec::new(),
            window: if offer.options.window_scale.is_some() { 1000 } else { 65_000 },
            tsval,
            tsecr: cookie.tsval.unwrap_or(0),
            last: None,
            ecn: 0,
            last_ecn: 0,
        }
    }

    /// The same client after the handshake's last ACK.
    pub(super) fn established(offer: Offer) -> Self {
        Self::established_with(offer, Config::default())
    }

    pub(super) fn established_with(offer: Offer, config: Config) -> Self {
        let mut script = Self::syn_with(offer, config);
        script.sends(". 1:1(0) ack 1");
        assert!(script.conn.is_some(), "not adopted");
        script.silent();
        script
    }

    /// Another client with the same offer, from another port, as far as the answer to its SYN.
    pub(super) fn next_client(&mut self, port: u16, epoch: u32) {
        self.offer.port = port;
        self.next_cookie(epoch);
    }

    /// The client's SYN, as `offer` now says, was answered with a cookie of `epoch`.
    pub(super) fn next_cookie(&mut self, epoch: u32) {
        self.cookie = answer(&self.offer, epoch, self.now);
        self.tsecr = self.cookie.tsval.unwrap_or(0);
    }

    pub(super) fn key(&self) -> AnyFlowKey {
        let family = self.offer.family;
        AnyFlowKey::new(family.client(self.offer.port), family.server()).unwrap()
    }

    pub(super) fn conn(&self) -> ConnId {
        self.conn.expect("a connection")
    }

    /// A segment from the client, for example `"PF. 1:6(5) ack 1"`, `-` for no flags, optionally with `win N` and `sack A:B`. Its
    /// data is the client's stream at that place.
    pub(super) fn sends(&mut self, segment: &str) -> Received {
        let frame = self.frame(segment);
        let received = self.stack.handle_frame(self.now, &frame);
        self.drain_events();
        received
    }

    pub(super) fn frame(&self, segment: &str) -> Vec<u8> {
        let mut words = segment.split_whitespace();
        let flags = flags(words.next().unwrap());
        let (from, rest) = words.next().unwrap().split_once(':').unwrap();
        let len = rest.split_once('(').unwrap().1.trim_end_matches(')').parse().unwrap();
        let from: u32 = from.parse().unwrap();
        let (mut ack, mut window, mut options) = (Seq(0), self.window, Options::default());
        while let Some(word) = words.next() {
            let value = words.next().unwrap();
            match word {
                "ack" => ack = Seq(self.cookie.isn) + value.parse::<u32>().unwrap(),
                "win" => window = value.parse().unwrap(),
                "sack" => {
                    for block in value.split(',') {
                        let (left, right) = block.split_once(':').unwrap();
                        let at = |text: &str| Seq(self.cookie.isn) + text.parse::<u32>().unwrap();
                        options.sack.push(at(left), at(right));
                    }
                }
                _ => panic!("unknown word {word}"),
            }
        }
        options.timestamps = self.offer.options.timestamps.map(|_| (self.tsval, self.tsecr));
        if flags.contains(Flags::SYN) {
            let SynOptions { mss, window_scale, sack_permitted, .. } = self.offer.options;
            (options.mss, options.window_scale, options.sack_permitted) = (mss, window_scale, sack_permitted);
        }
        let seq = Seq(self.offer.isn) + from;
        let data = stream(CLIENT, u64::from(from), len);
        self.write(Outgoing { seq, ack, flags, window, options }, &data)
    }

    /// The frame of a segment from the client.
    pub(super) fn write(&self, segment: Outgoing, data: &[u8]) -> Vec<u8> {
        let family = self.offer.family;
        let key = AnyFlowKey::new(family.server(), family.client(self.offer.port)).unwrap();
        let mut frame = vec![0; 4000];
        let link = link(CLIENT_MAC, SERVER_MAC);
        let fill = |to: &mut [u8]| to.copy_from_slice(data);
        let len = segment.write_marked(&key, link, self.ecn, &mut frame, data.len(), fill).unwrap();
        frame.truncate(len);
        frame
    }

    /// The next frame the stack sends, in the notation of [`Self::sends`].
    pub(super) fn next_sent(&mut self) -> Option<String> {
        let mut frame = vec![0; 2000];
        let len = self.stack.poll_transmit(self.now, &mut frame)?;
        frame.truncate(len);
        let segment = Incoming::parse(&frame).expect("the stack sends well-formed segments");
        let (ethernet, ecn) = match parse(&frame[..]).expect("well-formed") {
            AnySegment::V4(segment) => (segment.ethernet, segment.ip.ecn),
            AnySegment::V6(segment) => (segment.ethernet, segment.ip.ecn),
        };
        assert_eq!((ethernet.src, ethernet.dst), (SERVER_MAC, CLIENT_MAC));
        self.last_ecn = ecn;
        let from = segment.seq.distance(Seq(self.cookie.isn)) as i32;
        let mut text = String::new();
        for (flag, letter) in FLAGS {
            if segment.has(flag) {
                text.push(letter);
            }
        }
        let len = segment.data.len();
        if len > 0 {
            assert_eq!(segment.data, stream(SERVER, from as u64, len), "data at {from}");
        }
        write!(text, " {from}:{}({len})", from + len as i32).unwrap();
        if segment.has(Flags::ACK) {
            write!(text, " ack {}", segment.ack.distance(Seq(self.offer.isn)) as i32).unwrap();
        }
        let blocks: Vec<String> =
            segment.options.sack.as_slice().iter().map(|block| self.block(*block)).collect();
        if !blocks.is_empty() {
            write!(text, " sack {}", blocks.join(",")).unwrap();
        }
        if let Some((value, _)) = segment.options.timestamps {
            self.tsecr = value;
        }
        self.last = Some((segment.seq, segment.ack, segment.window, segment.options));
        self.drain_events();
        Some(text)
    }

    fn block(&self, (left, right): (Seq, Seq)) -> String {
        let isn = Seq(self.offer.isn);
        format!("{}:{}", left.distance(isn) as i32, right.distance(isn) as i32)
    }

    /// Everything that leaves now.
    pub(super) fn drain(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next_sent()).collect()
    }

    /// The stack's next frame is this one.
    #[track_caller]
    pub(super) fn expect(&mut self, segment: &str) {
        assert_eq!(self.next_sent().as_deref(), Some(segment));
    }

    /// The stack has nothing to send.
    #[track_caller]
    pub(super) fn silent(&mut self) {
        assert_eq!(self.next_sent(), None);
    }

    /// The next `len` bytes of the server's stream are queued.
    pub(super) fn server_sends(&mut self, from: u64, len: usize) {
        let sent = self.stack.send(self.now, self.conn(), &stream(SERVER, from, len));
        assert_eq!(sent, Ok(len));
    }

    /// The application reads the next `len` bytes of the client's stream, and they are there.
    #[track_caller]
    pub(super) fn server_reads(&mut self, from: u64, len: usize) {
        let mut data = vec![0; len];
        assert_eq!(self.stack.recv(self.now, self.conn(), &mut data), Ok(len));
        assert!(data == stream(CLIENT, from, len), "wrong bytes");
    }

    /// Time passes; timers fire when they are due.
    pub(super) fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(next) = self.stack.poll_timeout().filter(|&next| next <= end) {
            self.now = self.now.max(next);
            self.stack.handle_timeout(self.now);
        }
        self.now = end;
        self.stack.handle_timeout(self.now);
        self.drain_events();
    }

    /// Time passes until the stack sends something: how much.
    #[track_caller]
    pub(super) fn wait_for_output(&mut self, segment: &str) -> Duration {
        let start = self.now;
        for _ in 0..1000 {
            if let Some(sent) = self.next_sent() {
                assert_eq!(sent, segment);
                return self.now - start;
            }
            self.now = self.stack.poll_timeout().expect("a timer").max(self.now);
            self.stack.handle_timeout(self.now);
        }
        panic!("nothing was sent");
    }

    #[track_caller]
    pub(super) fn state(&self, state: State) {
        assert_eq!(self.stack.flow_state(self.now, &self.key()), Some(state));
    }

    /// Nothing of the flow is left.
    #[track_caller]
    pub(super) fn gone(&self) {
        assert_eq!(self.stack.flow_state(self.now, &self.key()), None);
    }

    /// The service is strict in these epochs alone.
    pub(super) fn set_strict(&mut self, epochs: &[u32]) {
        let strictness =
            epochs.iter().fold(Strictness::NEVER, |strictness, &epoch| strictness.with(epoch, true));
        let mut services = [Strictness::NEVER; 8];
        services[7] = strictness;
        self.stack.set_strictness(&services);
    }

    /// The client's SYN was answered with a cookie of `epoch`, when the service was strict.
    pub(super) fn next_strict_cookie(&mut self, epoch: u32) {
        self.cookie = answer_of(Strictness::ALWAYS, &self.offer, epoch, self.now);
        self.tsecr = self.cookie.tsval.unwrap_or(0);
    }

    pub(super) fn set_epoch(&mut self, epoch: u32, second_half: bool) {
        self.stack.set_epochs(&epochs(epoch), clock(epoch, second_half));
    }

    /// XDP's flow entry for a segment of the client.
    pub(super) fn flow(&self, seq: u32, ack: u32) -> Flow {
        Flow {
            created: self.now.0,
            seq: (Seq(self.offer.isn) + seq).0,
            ack: (Seq(self.cookie.isn) + ack).0,
            tsval: self.tsval,
            tsecr: self.tsecr,
            window: self.window,
            flags: if self.offer.options.timestamps.is_some() { FLOW_TIMESTAMPS } else { 0 },
            peer_mac: CLIENT_MAC,
            ..Flow::default()
        }
    }

    fn drain_events(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            if let Event::Incoming { conn, .. } = event {
                self.conn = Some(conn);
            }
            self.events.push(event);
        }
    }
}

/// What XDP answers to a SYN.
pub(super) fn answer(offer: &Offer, epoch: u32, now: Instant) -> Cookie {
    answer_of(Strictness::NEVER, offer, epoch, now)
}

fn answer_of(strictness: Strictness, offer: &Offer, epoch: u32, now: Instant) -> Cookie {
    let slots = epochs(epoch);
    let slot = &slots[epoch as usize % slots.len()];
    assert_eq!(slot.window, ADVERTISED.window);
    let key = AnyFlowKey::new(offer.family.client(offer.port), offer.family.server()).unwrap();
    match key {
        AnyFlowKey::V4(key) => encode(slot, strictness, &key, offer.isn, &offer.options, now.0),
        AnyFlowKey::V6(key) => encode(slot, strictness, &key, offer.isn, &offer.options, now.0),
    }
}

const FLAGS: [(Flags, char); 8] = [
    (Flags::SYN, 'S'),
    (Flags::FIN, 'F'),
    (Flags::RST, 'R'),
    (Flags::PSH, 'P'),
    (Flags::URG, 'U'),
    (Flags::ACK, '.'),
    (Flags::ECE, 'E'),
    (Flags::CWR, 'W'),
];

fn flags(text: &str) -> Flags {
    let flag = |letter| FLAGS.iter().find(|(_, known)| *known == letter).unwrap().0;
    text.chars().filter(|&letter| letter != '-').fold(Flags(0), |flags, letter| flags | flag(letter))
}
