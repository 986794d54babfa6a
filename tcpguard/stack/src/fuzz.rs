//! What the fuzz target of the stack does with its input: any bytes are a program of segments, ICMP errors, calls of the
//! application and pauses for one connection, and it panics when an invariant breaks. The unit test below feeds the
//! same body from the seeds and from a generator, for a bounded time and without a fuzzer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tcpguard_common::cookie::{Advertised, Clock, Cookie, Strictness, SynOptions, encode};
use tcpguard_common::flow::{AnyFlowKey, FlowKey};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{
    AnySegment, Buffer, Family, Flags, Options, SackBlocks, Segment, Vlan, checksum, parse,
};
use tcpguard_common::seq::Seq;

use crate::{Config, CongestionControl, ConnId, Event, Instant, Stack};

const EPOCH: u32 = 1000;
const ADVERTISED: Advertised = Advertised { mss_v4: 1460, mss_v6: 1440, window: 60_000, window_scale: 3 };
const START: Instant = Instant(1_000_000_000_000);
const CLIENT: Link =
    Link { dst: [2, 0, 0, 0, 0, 1], src: [2, 0, 0, 0, 0, 2], vlan: Vlan { count: 0, tags: [[0; 4]; 2] } };
const SERVER: Link = Link { dst: CLIENT.src, src: CLIENT.dst, vlan: CLIENT.vlan };
/// Pools so small that they run out.
const POOL: usize = 128 << 10;

/// Runs a program.
pub(crate) fn segments(input: &[u8]) {
    let mut input = Input(input);
    let mut world = World::begin(&mut input);
    world.settle();
    while let Some(step) = input.next() {
        world.step(step, &mut input);
        world.settle();
    }
    world.finish();
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// Zero once there is no more.
    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// A distance between sequence numbers: mostly one that matters.
    fn distance(&mut self) -> u32 {
        const USUAL: [i32; 31] = [
            0,
            0,
            0,
            0,
            0,
            0,
            1,
            -1,
            2,
            -2,
            10,
            -10,
            100,
            -100,
            536,
            -536,
            1000,
            -1000,
            1448,
            -1448,
            1460,
            -1460,
            2896,
            14_600,
            -14_600,
            60_000,
            -60_000,
            65_535,
            1 << 20,
            i32::MAX,
            i32::MIN,
        ];
        let place = self.byte() % 32;
        USUAL.get(usize::from(place)).map_or_else(|| self.word(), |&distance| distance as u32)
    }
}

/// The byte of either stream at a sequence number.
fn byte_at(seq: Seq) -> u8 {
    (seq.0.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ (seq.0 >> 3) as u8
}

/// A stack with one connection, and the client at its other end, which keeps to no rule.
struct World {
    stack: Stack,
    now: Instant,
    config: Config,
    conn: Option<ConnId>,
    v6: bool,
    timestamps: bool,
    tsval: u32,
    tsecr: u32,
    /// Our shift. Of an active open it is not known here: without it, the edge moves as if the window were a small one.
    shift: u8,
    /// What the client has sent: first sequence numbers and lengths.
    sent: Vec<(Seq, u32)>,
    last_sent: Vec<u8>,
    /// The stack's last frame, its highest sequence number, acknowledgement and right window edge.
    last: Vec<u8>,
    nxt: Seq,
    acked: Option<Seq>,
    edge: Option<Seq>,
    /// Our initial sequence number; where the application reads and writes next.
    iss: Option<Seq>,
    reads_at: Option<Seq>,
    written: u32,
    /// Bytes acknowledged by each side, as told.
    totals: (u64, u64),
    /// The timestamps on what the client has sent.
    tsvals: Vec<u32>,
    /// Segments without data or a place in a stream that the stack has sent, and how many it may have by now: one for each
    /// frame, read and end, a few whenever a timer fires.
    answers: u32,
    questions: u32,
    /// There is, or may be, more than one incarnation: whose a number is cannot be told any more.
    several: bool,
    /// The connection began with a cookie, not with a SYN of the stack's.
    was_adopted: bool,
}

impl World {
    /// A connection adopted from a cookie, or an active open in SYN_SENT.
    fn begin(input: &mut Input<'_>) -> Self {
        let (kind, offer, isn) = (input.byte(), input.byte(), Seq(input.word()));
        let on = |bit: u8| offer & 1 << bit != 0;
        let config = config(input.byte());
        let mut world = Self {
            stack: Stack::new(START, config.clone(), 7),
            now: START,
            config,
            conn: None,
            v6: on(0),
            timestamps: on(1),
            tsval: 1000,
            tsecr: 0,
            shift: 0,
            sent: vec![(isn, 1)],
            last_sent: Vec::new(),
            last: Vec::new(),
            nxt: isn,
            acked: None,
            edge: None,
            iss: None,
            reads_at: None,
            written: 0,
            totals: (0, 0),
            tsvals: vec![1000],
            answers: 0,
            questions: 0,
            several: false,
            was_adopted: kind & 1 == 0,
        };
        let mut slots = [EpochSlot::default(); EPOCH_SLOTS as usize];
        for epoch in EPOCH - 2..=EPOCH + 1 {
            slots[(epoch % EPOCH_SLOTS) as usize] =
                EpochSlot::derive([1, 2], epoch, &ADVERTISED).expect("a secret and a window");
        }
        world.stack.set_epochs(&slots, Clock { epoch: EPOCH, second_half: false, extra: 1 });
        world.stack.listen(None, 80, 1);
        if kind & 1 != 0 {
            world.connect();
            return world;
        }
        let syn = SynOptions {
            mss: Some(if on(2) { 1460 } else { input.word() as u16 }),
            window_scale: on(3).then_some(input.byte()),
            sack_permitted: on(4),
            timestamps: on(1).then_some(world.tsval),
            ecn: on(5),
        };
        let strictness = if on(6) { Strictness::ALWAYS } else { Strictness::NEVER };
        world.stack.set_strictness(&[Strictness::NEVER, strictness]);
        let slot = &slots[(EPOCH % EPOCH_SLOTS) as usize];
        let Cookie { isn: iss, tsval, strict } = match world.key() {
            AnyFlowKey::V4(key) => encode(slot, strictness, &key, isn.0, &syn, START.0),
            AnyFlowKey::V6(key) => encode(slot, strictness, &key, isn.0, &syn, START.0),
        };
        world.shift = if on(3) && !strict { ADVERTISED.window_scale } else { 0 };
        world.tsecr = tsval.unwrap_or(0);
        (world.iss, world.nxt) = (Some(Seq(iss)), Seq(iss) + 1);
        (world.acked, world.reads_at) = (Some(isn + 1), Some(isn + 1));
        world.now += Duration::from_millis(20);
        world.sends(Flags::ACK, isn + 1, world.nxt, 30_000, 0, &Options::default(), 0);
        world
    }

    fn connect(&mut self) {
        let key = self.key();
        self.conn = self.stack.connect(self.now, key.local_addr(), key.peer_addr(), SERVER).ok();
    }

    fn key(&self) -> AnyFlowKey {
        let ip = |last: u8| -> IpAddr {
            let mut v6 = [0xfd; 16];
            v6[15] = last;
            if self.v6 { v6.into() } else { [10, 0, 0, last].into() }
        };
        AnyFlowKey::new(SocketAddr::new(ip(2), 5000), SocketAddr::new(ip(1), 80)).expect("one family")
    }

    /// One step of the program.
    fn step(&mut self, step: u8, input: &mut Input<'_>) {
        match step % 16 {
            0..=7 => self.segment(input),
            8 | 9 => {
                let (millis, unit) = (input.byte(), input.byte());
                let unit = [1, 1, 10, 100, 1000, 60_000][usize::from(unit % 6)];
                self.pass(Duration::from_millis(u64::from(millis) * unit));
            }
            10..=12 => self.application(input),
            13 => self.complain(input),
            14 => {
                let mut frame = self.last_sent.clone();
                let (at, bits) = (input.word() as usize, input.byte());
                if let Some(len) = frame.len().checked_sub(14).filter(|&len| len > 0) {
                    frame[14 + at % len] ^= bits;
                }
                self.receive(&frame);
            }
            _ => {
                self.config = config(input.byte());
                self.stack.set_config(self.now, self.config.clone());
            }
        }
    }

    /// A segment from the client, near where it should be.
    fn segment(&mut self, input: &mut Input<'_>) {
        let (how, flags) = (input.byte(), input.byte());
        let seq = self.acked.unwrap_or(self.sent[0].0) + input.distance();
        let ack = self.nxt + input.distance();
        let window = u16::from_le_bytes([input.byte(), input.byte()]);
        let len = [0, 0, 1, 10, 536, 1000, 1448, 1460][usize::from(how & 7)];
        let mut options = Options::default();
        for _ in 0..how >> 3 & 3 {
            let left = self.nxt + input.distance();
            options.sack.push(left, left + input.distance());
        }
        let wild = how & 0x20 != 0;
        self.tsval = self.tsval.wrapping_add(if wild { input.distance() } else { 1 });
        if flags & Flags::SYN.0 != 0 {
            options.mss = Some(u16::from(input.byte()) << 3);
            options.window_scale = (how & 0x40 != 0).then_some(input.byte());
            options.sack_permitted = how & 0x80 != 0;
        }
        // Without a bit set it is the commonest.
        self.sends(Flags(flags ^ Flags::ACK.0), seq, ack, window, len, &options, how >> 6);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one segment")]
    fn sends(&mut self, flags: Flags, seq: Seq, ack: Seq, window: u16, len: u32, options: &Options, ecn: u8) {
        let mut options = *options;
        if self.timestamps {
            options.timestamps = Some((self.tsval, self.tsecr));
            let mut fitting = SackBlocks::default();
            let blocks = options.sack.as_slice().iter().take(if options.mss.is_some() { 1 } else { 3 });
            blocks.for_each(|&(left, right)| fitting.push(left, right));
            options.sack = fitting;
        }
        let data: Vec<u8> =
            (0..len).map(|at| byte_at(seq + at + u32::from(flags.contains(Flags::SYN)))).collect();
        let extra = u32::from(flags.contains(Flags::SYN)) + u32::from(flags.contains(Flags::FIN));
        let frame = match self.key() {
            AnyFlowKey::V4(key) => frame(&key, flags, (seq, ack), window, options, ecn, &data),
            AnyFlowKey::V6(key) => frame(&key, flags, (seq, ack), window, options, ecn, &data),
        };
        self.sent.push((seq, len + extra));
        self.tsvals.push(self.tsval);
        self.receive(&frame);
        self.last_sent = frame;
    }

    fn receive(&mut self, frame: &[u8]) {
        self.questions += 1;
        self.stack.handle_frame(self.now, frame);
    }

    /// What a router might say of the stack's last frame, or of one it never sent.
    fn complain(&mut self, input: &mut Input<'_>) {
        let (kind, code, mtu, seq) = (input.byte() % 16, input.byte() % 16, input.word(), input.distance());
        let Some(datagram) = self.last.get(14..).filter(|datagram| !datagram.is_empty()) else { return };
        let header_len = if self.v6 { 40 } else { 20 };
        let mut quoted = datagram[..datagram.len().min(header_len + 28)].to_vec();
        if let Some(field) = quoted.get_mut(header_len + 4..header_len + 8) {
            field.copy_from_slice(&(self.nxt + seq).0.to_be_bytes());
        }
        let mut message = [&[kind, code, 0, 0], &(mtu & 0x3fff).to_be_bytes()[..], &quoted].concat();
        let mut header = datagram[..header_len].to_vec();
        let (source, destination, protocol) = if self.v6 { (8..24, 24..40, 6) } else { (12..16, 16..20, 9) };
        header[source].copy_from_slice(&datagram[destination.clone()]);
        header[destination].copy_from_slice(&datagram[if self.v6 { 8..24 } else { 12..16 }]);
        header[protocol] = if self.v6 { 58 } else { 1 };
        let mut pseudo = 0;
        if self.v6 {
            header[4..6].copy_from_slice(&(message.len() as u16).to_be_bytes());
            let rest = [0, 0, (message.len() >> 8) as u8, message.len() as u8, 0, 0, 0, 58];
            pseudo = checksum::sum(&header[8..]) + checksum::sum(&rest);
        } else {
            header[2..4].copy_from_slice(&((20 + message.len()) as u16).to_be_bytes());
            header[10..12].fill(0);
            let sum = checksum::finish(checksum::sum(&header));
            header[10..12].copy_from_slice(&sum);
        }
        let sum = checksum::finish(pseudo + checksum::sum(&message));
        message[2..4].copy_from_slice(&sum);
        let frame = [&CLIENT.dst, &CLIENT.src, &self.last[12..14], &header, &message].concat();
        self.receive(&frame);
    }

    fn application(&mut self, input: &mut Input<'_>) {
        let (what, len) = (input.byte(), u32::from(input.byte()) << 6);
        let Some(conn) = self.conn else { return };
        let now = self.now;
        match what % 16 {
            0..=5 => {
                let Some(iss) = self.iss else { return };
                let data: Vec<u8> = (0..len).map(|at| byte_at(iss + 1 + self.written + at)).collect();
                if let Ok(taken) = self.stack.send(now, conn, &data) {
                    self.written += taken as u32;
                }
            }
            6..=11 => self.read(conn, len as usize),
            12 | 13 => self.stack.shutdown(now, conn).expect("a connection"),
            14 => self.close(conn),
            _ => {
                self.questions += 1;
                self.stack.abort(now, conn);
                self.conn = None;
            }
        }
    }

    fn close(&mut self, conn: ConnId) {
        self.questions += 1;
        self.stack.close(self.now, conn);
        self.conn = self.conn.filter(|&current| current != conn);
    }

    /// What the application reads is what the client has sent there.
    fn read(&mut self, conn: ConnId, len: usize) {
        self.questions += 1;
        let mut data = vec![0; len];
        let read = self.stack.recv(self.now, conn, &mut data);
        if let (Ok(read), Some(at), false) = (read, self.reads_at, self.several) {
            for (offset, &byte) in (0u32..).zip(&data[..read]) {
                assert_eq!(byte, byte_at(at + offset), "byte {offset} after {at:?}");
            }
            self.reads_at = Some(at + read as u32);
        }
    }

    /// Time passes, and timers fire when they are due.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        let mut fired = 0;
        while let Some(next) = self.stack.poll_timeout().filter(|&next| next <= end) {
            self.now = self.now.max(next);
            self.questions += 4;
            self.stack.handle_timeout(self.now);
            self.settle();
            fired += 1;
            assert!(fired < 100_000, "timers that fire for ever");
        }
        self.now = end;
    }

    /// Takes in all that the stack says, and checks that it may say so.
    fn settle(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            if let Event::Incoming { conn, .. } = event {
                if let Some(earlier) = self.conn.replace(conn) {
                    self.close(earlier);
                }
                (self.written, self.totals) = (0, (0, 0));
            }
        }
        let mut frame = [0; 2048];
        for count in 0.. {
            assert!(count < 10_000, "segments without end");
            let Some(len) = self.stack.poll_transmit(self.now, &mut frame) else { break };
            match parse(&frame[..len]).expect("well-formed segments") {
                AnySegment::V4(segment) => self.observe(&segment, &frame[..len]),
                AnySegment::V6(segment) => self.observe(&segment, &frame[..len]),
            }
            self.last = frame[..len].to_vec();
        }
        assert!(self.answers <= self.questions, "{} answers to {}", self.answers, self.questions);
        self.check_connection();
    }

    /// A segment of the stack's.
    fn observe<A: Family>(&mut self, segment: &Segment<A>, frame: &[u8]) {
        assert!(segment.checksum_ok(frame));
        let Segment { tcp, options, payload, .. } = segment;
        let data = &frame[payload.clone()];
        self.answers += u32::from(data.is_empty() && !tcp.flags.intersects(Flags::SYN | Flags::FIN));
        if let Some((value, echo)) = options.timestamps {
            self.tsecr = value;
            let known = self.tsvals.contains(&echo) || !tcp.flags.contains(Flags::ACK);
            assert!(known, "echoed {echo}, which never came");
        }
        if tcp.flags.contains(Flags::RST) {
            return;
        }
        if tcp.flags.contains(Flags::SYN) {
            // A cookie is the same for the same SYN: whoever was adopted and is answered a SYN is another incarnation.
            self.several |= self.was_adopted || self.iss.is_some_and(|iss| iss != tcp.seq);
            self.iss = Some(tcp.seq);
            if self.nxt.before(tcp.seq + 1) || self.acked.is_none() {
                self.nxt = tcp.seq + 1;
            }
            self.timestamps = options.timestamps.is_some();
        } else {
            self.observe_data(tcp.seq, data);
            let end = tcp.seq + data.len() as u32 + u32::from(tcp.flags.contains(Flags::FIN));
            self.nxt = self.nxt.max(end);
        }
        if tcp.flags.contains(Flags::ACK) {
            self.observe_sacks(tcp.ack, options.sack.as_slice());
            self.observe_ack(tcp.ack, tcp.window, tcp.flags.contains(Flags::SYN));
        }
    }

    /// Only what has come is told of, behind what is acknowledged, but for the first block, which may tell what came twice.
    fn observe_sacks(&self, ack: Seq, blocks: &[(Seq, Seq)]) {
        for (place, &(left, right)) in blocks.iter().enumerate().filter(|_| !self.several) {
            assert!(left.before(right) && self.has_sent(left, right), "{left:?} to {right:?} never came");
            assert!(place == 0 || left.after(ack), "{left:?} is acknowledged: {ack:?}");
        }
    }

    /// Whether the client has sent all from `from` to `to`.
    fn has_sent(&self, from: Seq, to: Seq) -> bool {
        let mut covered = from;
        while covered.before(to) {
            let reaches = |&&(start, len): &&(Seq, u32)| covered.within(start, len);
            let Some(&(start, len)) = self.sent.iter().find(reaches) else { return false };
            covered = start + len;
        }
        true
    }

    fn observe_data(&self, seq: Seq, data: &[u8]) {
        let Some(iss) = self.iss.filter(|_| !data.is_empty() && !self.several) else { return };
        let from = seq.distance(iss + 1);
        assert!(from + data.len() as u32 <= self.written, "bytes that nobody wrote");
        for (at, &byte) in (0u32..).zip(data) {
            assert_eq!(byte, byte_at(seq + at), "sent byte {}", from + at);
        }
    }

    /// Only what has come is acknowledged, never less than before; and the window is never withdrawn, but for what scaling
    /// cuts off.
    fn observe_ack(&mut self, ack: Seq, window: u16, syn: bool) {
        if self.several {
            self.acked = Some(ack);
            return;
        }
        let before = *self.acked.get_or_insert(ack);
        self.reads_at.get_or_insert(ack);
        assert!(ack.at_or_after(before), "acknowledged {before:?} and then {ack:?}");
        assert!(self.has_sent(before, ack), "acknowledged and never sent");
        self.acked = Some(ack);
        if syn {
            // Never scaled (RFC 7323 §2.2).
            return;
        }
        let edge = ack + (u32::from(window) << self.shift);
        if let Some(promised) = self.edge {
            assert!(
                (edge + (1 << self.shift)).at_or_after(promised),
                "window withdrawn from {promised:?} to {edge:?}"
            );
        }
        self.edge = Some(self.edge.map_or(edge, |promised| promised.max(edge)));
    }

    fn check_connection(&mut self) {
        assert!(self.stack.buffered_bytes() <= 2 * POOL, "over the budget");
        let Some(info) = self.conn.and_then(|conn| self.stack.info(self.now, conn)) else { return };
        let totals = (info.bytes_in, info.bytes_out);
        assert!(totals.0 >= self.totals.0 && totals.1 >= self.totals.1, "SND.UNA or RCV.NXT went back");
        assert!(info.bytes_out + u64::from(info.send_queued) <= u64::from(self.written));
        self.totals = totals;
        let over = self.stack.flow_state(self.now, &self.key()).is_none();
        assert!(over || info.send_queued == 0 || info.timer.is_some(), "nothing will ever send {info:?}");
    }

    /// However it went, nothing is left in the end.
    fn finish(mut self) {
        if let Some(conn) = self.conn {
            self.read(conn, 1 << 20);
            self.close(conn);
        }
        self.settle();
        self.pass(Duration::from_secs(24 * 3600));
        let left = (self.stack.connection_count(), self.stack.time_wait_count(), self.stack.buffered_bytes());
        assert_eq!(left, (0, 0, 0), "leaks");
        assert_eq!(self.stack.poll_timeout(), None, "timers that are nobody's");
    }
}

/// Tunables that a program may choose.
fn config(choice: u8) -> Config {
    let on = |bit: u8| choice & 1 << bit != 0;
    Config {
        send_pool: POOL,
        recv_pool: POOL,
        recv_buffer: if on(0) { 4096 } else { 64 << 10 },
        send_buffer: if on(1) { 4096 } else { 64 << 10 },
        nagle: on(2),
        ecn: on(3),
        congestion_control: if on(4) { CongestionControl::Cubic } else { CongestionControl::NewReno },
        keepalive_time: Duration::from_secs(if on(5) { 10 } else { 0 }),
        user_timeout: Duration::from_secs(if on(6) { 30 } else { 0 }),
        retries: if on(7) { 2 } else { 15 },
        // Hands that go round large tables would take most of the time.
        max_time_wait: 64,
        max_half_open: 64,
        ..Config::default()
    }
}

fn frame<A: Family>(
    key: &FlowKey<A>,
    flags: Flags,
    (seq, ack): (Seq, Seq),
    window: u16,
    options: Options,
    ecn: u8,
    data: &[u8],
) -> Vec<u8> {
    let headers = Headers {
        link: CLIENT,
        src: key.peer,
        dst: key.local,
        ecn: ecn & 3,
        src_port: key.peer_port,
        dst_port: key.local_port,
        seq,
        ack,
        flags,
        window,
        options,
    };
    let mut frame = vec![0; headers.len()];
    let len = frame.len();
    headers.write(&mut Buffer::new(&mut frame, len), data.len(), checksum::sum(data)).expect("room for them");
    frame.extend(data);
    frame
}

#[cfg(test)]
mod tests {
    use super::segments;
    use crate::mix;

    #[test]
    fn the_body_of_the_fuzz_target_holds() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/segments");
        let mut seeds = 0;
        for seed in std::fs::read_dir(folder).unwrap() {
            let seed = std::fs::read(seed.unwrap().path()).unwrap();
            (0..=seed.len()).for_each(|len| segments(&seed[..len]));
            seeds += 1;
        }
        assert!(seeds > 5, "{seeds} seeds in {folder}");
        let programs = if std::env::var_os("TCPGUARD_TEST_LONG").is_some() { 1_000_000 } else { 20_000 };
        for program in 0..programs {
            let len = mix(program) % 400;
            let bytes: Vec<u8> = (0..len).map(|at| mix(program << 16 | at) as u8).collect();
            let outcome = std::panic::catch_unwind(|| segments(&bytes));
            assert!(outcome.is_ok(), "program {program}");
        }
    }
}
