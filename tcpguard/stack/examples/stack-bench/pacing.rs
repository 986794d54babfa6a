//! Whether pacing would help: a transfer through a bottleneck whose queue holds so many packets, in virtual time, as the stack
//! sends and as Linux paces. The stack is asked for one segment at a time, so whoever drives it can pace it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use tcpguard_common::packet::Vlan;
use tcpguard_stack::{Config, CongestionControl, ConnId, Event, Instant, Link, Stack};

use crate::Samples;
use crate::peer::{FRAME, START, stack};

/// One way.
const DELAY: Duration = Duration::from_millis(10);
/// The bottleneck takes so long for a byte: 100 Mbit/s, and 165 full packets a round trip.
const BYTE: Duration = Duration::from_nanos(80);
/// How long a transfer lasts, its handshake included.
const TRANSFER: Duration = Duration::from_secs(5);
/// Packets that the queue in front of the bottleneck holds.
const QUEUES: [u32; 3] = [16, 64, 256];

/// Pushes one row for each queue and way of sending. Nothing of it depends on the machine.
pub(crate) fn measure(samples: &mut Samples) {
    for queue in QUEUES {
        for (prefix, paced) in [("", false), ("paced/", true)] {
            let rate = Transfer::new(queue, paced).run() as f64 / TRANSFER.as_secs_f64();
            samples.push(&format!("{prefix}goodput_queue_{queue}"), "MB/s", rate / 1e6);
        }
    }
}

/// Frames on their way, and when each arrives.
type Wire = VecDeque<(Instant, Vec<u8>)>;

/// A server that sends as much as it may, and a client that reads it.
struct Transfer {
    now: Instant,
    server: Stack,
    client: Stack,
    sending: Option<ConnId>,
    to_server: Wire,
    to_client: Wire,
    /// Until when the bottleneck is busy with what is queued.
    busy: Instant,
    queue: u32,
    paced: bool,
    /// When the next segment may leave.
    release: Instant,
    received: u64,
}

impl Transfer {
    fn new(queue: u32, paced: bool) -> Self {
        let config = Config { congestion_control: CongestionControl::Cubic, ..Config::default() };
        let mut client = Stack::new(START, config.clone(), 7);
        let link = Link { dst: [2, 0, 0, 0, 0, 1], src: [2, 0, 0, 0, 0, 2], vlan: Vlan::default() };
        let (local, server) =
            (SocketAddr::from(([10, 0, 0, 1], 4000)), SocketAddr::from(([192, 0, 2, 1], 80)));
        client.connect(START, local, server, link).expect("an empty table");
        Self {
            now: START,
            server: stack(config),
            client,
            sending: None,
            to_server: Wire::new(),
            to_client: Wire::new(),
            busy: START,
            queue,
            paced,
            release: START,
            received: 0,
        }
    }

    /// How many bytes arrive.
    fn run(mut self) -> u64 {
        const LEAST: Duration = Duration::from_micros(1);
        while self.now < START + TRANSFER {
            self.deliver();
            self.serve();
            self.read();
            self.transmit();
            let arrivals = [&self.to_server, &self.to_client].map(|wire| wire.front().map(|(at, _)| *at));
            let timers = [self.server.poll_timeout(), self.client.poll_timeout()];
            let release = (self.release > self.now).then_some(self.release);
            let next = arrivals.into_iter().chain(timers).chain([release]).flatten().min();
            self.now = next.expect("a transfer under way").max(self.now + LEAST);
        }
        self.received
    }

    fn deliver(&mut self) {
        let Self { now, server, client, to_server, to_client, .. } = self;
        for (stack, wire) in [(server, to_server), (client, to_client)] {
            while let Some((_, frame)) = wire.pop_front_if(|(at, _)| *at <= *now) {
                stack.handle_frame(*now, &frame);
            }
            if stack.poll_timeout().is_some_and(|due| due <= *now) {
                stack.handle_timeout(*now);
            }
        }
    }

    fn serve(&mut self) {
        while let Some(event) = self.server.poll_event() {
            if let Event::Incoming { conn, service, .. } = event {
                self.server.accepted(service);
                self.sending = Some(conn);
            }
        }
        let Some(id) = self.sending else { return };
        while self.server.send(self.now, id, &[0x5a; 1 << 16]).is_ok() {}
    }

    fn read(&mut self) {
        let mut out = [0; 1 << 16];
        while let Some(event) = self.client.poll_event() {
            let Event::Readable(id) = event else { continue };
            while let Ok(len) = self.client.recv(self.now, id, &mut out) {
                self.received += len as u64;
            }
        }
    }

    fn transmit(&mut self) {
        let mut frame = [0; FRAME];
        while let Some(len) = self.client.poll_transmit(self.now, &mut frame) {
            self.to_server.push_back((self.now + DELAY, frame[..len].to_vec()));
        }
        while self.release <= self.now {
            let Some(len) = self.server.poll_transmit(self.now, &mut frame) else { return };
            self.enter_bottleneck(&frame[..len]);
            if self.paced {
                self.release = self.now + self.gap(len);
            }
        }
    }

    /// A packet joins the queue, or is lost if that is full.
    fn enter_bottleneck(&mut self, frame: &[u8]) {
        const FULL: u32 = 1514;
        let start = self.busy.max(self.now);
        if start.since(self.now) > BYTE * FULL * self.queue {
            return;
        }
        self.busy = start + BYTE * frame.len() as u32;
        self.to_client.push_back((self.busy + DELAY, frame.to_vec()));
    }

    /// How long Linux waits after so many bytes (`tcp_update_pacing_rate`): as if twice the window left in a round trip, 1.2
    /// times it where slow start is nearly over.
    fn gap(&self, len: usize) -> Duration {
        let view = self.sending.and_then(|id| self.server.view(id));
        let Some((view, srtt)) = view.and_then(|view| Some((view, view.srtt?))) else {
            return Duration::ZERO;
        };
        let early = view.ssthresh.is_none_or(|threshold| view.cwnd < threshold / 2);
        let rate = f64::from(view.cwnd) * if early { 2.0 } else { 1.2 };
        srtt.mul_f64(len as f64 / rate)
    }
}
