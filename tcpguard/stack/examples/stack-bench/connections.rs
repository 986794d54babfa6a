//! Segments beside so many established connections: data in, acknowledgement in, a whole short connection.

use std::time::{Duration, Instant as Wall};

use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;
use tcpguard_stack::{Config, ConnId, Error, Event, Instant, Stack};

use crate::Samples;
use crate::memory::allocated;
use crate::peer::{BURST, DATA, FRAME, ISN, Random, START, Segment, cookie, flow, stack, write};

/// First byte of the addresses of those that stay, and of those that come and go.
const RESIDENTS: u8 = 10;
const PASSERS: u8 = 11;
/// What a burst takes at a million segments a second.
const BURST_TIME: Duration = Duration::from_micros(BURST as u64);

/// A client whose connection stays.
struct Resident {
    id: ConnId,
    seq: Seq,
    ack: Seq,
    /// What it echoes.
    echo: u32,
}

/// A stack with so many connections.
pub(crate) struct Connections {
    stack: Stack,
    now: Instant,
    residents: Vec<Resident>,
    /// The next client that comes and goes.
    passer: u32,
    random: Random,
    frames: Vec<Vec<u8>>,
    /// Bytes allocated for all of it, the clients not counted.
    bytes: usize,
}

impl Connections {
    /// Opens them; each has asked something and been answered.
    pub(crate) fn open(count: u32) -> Self {
        let residents = Vec::with_capacity(count as usize);
        let frames = vec![Vec::new(); BURST];
        let before = allocated();
        let config = Config {
            max_connections: count + 2 * BURST as u32,
            max_time_wait: 1,
            max_half_open: 1,
            ..Config::default()
        };
        let stack = stack(config);
        let mut hall = Self { stack, now: START, residents, passer: 0, random: Random(1), frames, bytes: 0 };
        for number in 0..count {
            hall.admit(number);
        }
        hall.transmit();
        hall.bytes = allocated() - before;
        hall
    }

    fn admit(&mut self, number: u32) {
        let (key, mut frame) = (flow(RESIDENTS, number), Vec::with_capacity(FRAME));
        let cookie = cookie(&key);
        let echo = cookie.tsval.unwrap_or(0);
        let mut segment = Segment { flags: Flags::ACK, seq: ISN + 1, ack: Seq(cookie.isn) + 1, echo };
        write(&key, segment, &[], &mut frame);
        self.stack.handle_frame(self.now, &frame);
        let id = self.incoming().expect("the cookie is ours");
        write(&key, segment, b"question", &mut frame);
        self.stack.handle_frame(self.now, &frame);
        assert_eq!(self.stack.recv(self.now, id, &mut [0; 64]), Ok(8));
        // Only who finds nothing more is told of what comes next.
        assert_eq!(self.stack.recv(self.now, id, &mut [0; 64]), Err(Error::WouldBlock));
        assert_eq!(self.stack.send(self.now, id, b"answer"), Ok(6));
        self.transmit();
        (segment.seq, segment.ack) = (segment.seq + 8, segment.ack + 6);
        write(&key, segment, &[], &mut frame);
        self.stack.handle_frame(self.now, &frame);
        while self.stack.poll_event().is_some() {}
        self.residents.push(Resident { id, seq: segment.seq, ack: segment.ack, echo });
    }

    fn incoming(&mut self) -> Option<ConnId> {
        loop {
            if let Event::Incoming { conn, service, .. } = self.stack.poll_event()? {
                self.stack.accepted(service);
                return Some(conn);
            }
        }
    }

    /// Bytes for each of the connections.
    pub(crate) fn bytes_each(&self) -> f64 {
        self.bytes as f64 / self.residents.len() as f64
    }

    /// One run of each row.
    pub(crate) fn measure(&mut self, segments: usize, samples: &mut Samples) {
        let size = short(self.residents.len());
        let bursts = segments.div_ceil(BURST);
        let data: Duration = (0..bursts).map(|_| self.take_data()).sum();
        let acks: Duration = (0..bursts).map(|_| self.take_acks()).sum();
        let taken = (bursts * BURST) as f64;
        samples.push(&format!("segment_data_{size}"), "ns", data.as_nanos() as f64 / taken);
        samples.push(&format!("segment_ack_{size}"), "ns", acks.as_nanos() as f64 / taken);
        // Three segments in, one out.
        let handled = |stack: &Stack| stack.counters().segments_in + stack.counters().segments_out;
        let before = handled(&self.stack);
        let passing: Duration = (0..bursts.div_ceil(4)).map(|_| self.pass_by()).sum();
        let taken = handled(&self.stack) - before;
        samples.push(&format!("open_close_{size}"), "ns", passing.as_nanos() as f64 / taken as f64);
    }

    /// A burst of full segments to any of the connections, read at once and acknowledged.
    fn take_data(&mut self) -> Duration {
        let data = [0x5a; DATA];
        for frame in &mut self.frames {
            let number = self.random.below(self.residents.len() as u32);
            let peer = &mut self.residents[number as usize];
            let flags = Flags::ACK | Flags::PSH;
            let segment = Segment { flags, seq: peer.seq, ack: peer.ack, echo: peer.echo };
            write(&flow(RESIDENTS, number), segment, &data, frame);
            peer.seq += DATA as u32;
        }
        let start = Wall::now();
        self.hand_in();
        let read = self.read();
        self.transmit();
        let time = start.elapsed();
        assert_eq!(read, BURST * DATA, "data was lost");
        time
    }

    /// A burst of acknowledgements of full segments that were just sent.
    fn take_acks(&mut self) -> Duration {
        let data = [0xa5; DATA];
        let held = self.stack.buffered_bytes();
        for frame in &mut self.frames {
            let number = self.random.below(self.residents.len() as u32);
            let peer = &mut self.residents[number as usize];
            assert_eq!(self.stack.send(self.now, peer.id, &data), Ok(DATA));
            peer.ack += DATA as u32;
            let segment = Segment { flags: Flags::ACK, seq: peer.seq, ack: peer.ack, echo: peer.echo };
            write(&flow(RESIDENTS, number), segment, &[], frame);
        }
        self.transmit();
        let start = Wall::now();
        self.hand_in();
        self.read();
        self.transmit();
        let time = start.elapsed();
        assert_eq!(self.stack.buffered_bytes(), held, "something was not acknowledged");
        time
    }

    /// A burst of short connections: the client opens and closes, then the server.
    fn pass_by(&mut self) -> Duration {
        let first = self.passer;
        self.passer += BURST as u32;
        let before = self.stack.connection_count();
        let mut time = Duration::ZERO;
        let mut ids = Vec::with_capacity(BURST);
        for (flags, seq, ack) in [(Flags::ACK, 1, 1), (Flags::ACK | Flags::FIN, 1, 1), (Flags::ACK, 2, 2)] {
            for (number, frame) in (first..).zip(&mut self.frames) {
                let key = flow(PASSERS, number);
                let cookie = cookie(&key);
                let echo = cookie.tsval.unwrap_or(0);
                write(&key, Segment { flags, seq: ISN + seq, ack: Seq(cookie.isn) + ack, echo }, &[], frame);
            }
            let start = Wall::now();
            self.hand_in();
            while let Some(event) = self.stack.poll_event() {
                match event {
                    Event::Incoming { conn, service, .. } => {
                        self.stack.accepted(service);
                        ids.push(conn);
                    }
                    Event::Readable(id) if self.stack.recv(self.now, id, &mut [0]) == Ok(0) => {
                        self.stack.close(self.now, id);
                    }
                    _ => {}
                }
            }
            self.transmit();
            time += start.elapsed();
        }
        assert_eq!((ids.len(), self.stack.connection_count()), (BURST, before), "not opened and closed");
        time
    }

    /// Hands in the burst, and does what is due by then.
    fn hand_in(&mut self) {
        self.now += BURST_TIME;
        self.stack.look_ahead(self.frames.iter().map(Vec::as_slice));
        for frame in &self.frames {
            self.stack.handle_frame(self.now, frame);
        }
        if self.stack.poll_timeout().is_some_and(|due| due <= self.now) {
            self.stack.handle_timeout(self.now);
        }
    }

    /// Reads what there is to read: how much.
    fn read(&mut self) -> usize {
        let mut out = [0; 16 << 10];
        let mut total = 0;
        while let Some(event) = self.stack.poll_event() {
            let Event::Readable(id) = event else { continue };
            loop {
                match self.stack.recv(self.now, id, &mut out) {
                    Ok(len) => total += len,
                    Err(Error::WouldBlock) => break,
                    Err(error) => panic!("a connection ended: {error}"),
                }
            }
        }
        total
    }

    /// Lets leave what wants to leave.
    fn transmit(&mut self) {
        let mut frame = [0; FRAME];
        while self.stack.poll_transmit(self.now, &mut frame).is_some() {}
    }
}

/// A count as rows are named by it.
fn short(count: usize) -> String {
    match count {
        _ if count.is_multiple_of(1_000_000) => format!("{}m", count / 1_000_000),
        _ if count.is_multiple_of(1000) => format!("{}k", count / 1000),
        _ => count.to_string(),
    }
}
