//! A client without options but MSS, segment by segment, in front of one stack whose tunables a test sets as operators do.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Duration;

use tcpguard_common::cookie::{Advertised, Clock, Strictness, SynOptions, encode};
use tcpguard_common::flow::{AnyFlowKey, V4};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tcpguard_common::packet::build::Headers;
use tcpguard_common::packet::{AnySegment, Buffer, Flags, Options, checksum, parse};
use tcpguard_common::seq::Seq;

use crate::config::{Overrides, Tunables};
use crate::engine::stack_config;
use crate::stack::{Config, ConnId, Error, Event, Instant, Link, Received, Stack, State};

const EPOCH: u32 = 1000;
const ISN: u32 = 7000;
const SERVICE: u32 = 7;
const WINDOW: u16 = 60_000;
const LOCAL: V4 = V4([10, 0, 0, 1]);
const PEER: V4 = V4([10, 0, 0, 2]);

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Runs a proof whose clients set the service's own tunables, while those of all stay what they are.
pub(super) fn for_the_service_alone(proof: fn()) {
    ALONE.set(true);
    proof();
    ALONE.set(false);
}

/// A segment of the stack's, as far as tests look at it. Sequence numbers count from the initial ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) flags: Flags,
    pub(super) seq: u32,
    pub(super) port: u16,
}

/// A stack, and whoever talks to it.
pub(super) struct Client {
    pub(super) stack: Stack,
    pub(super) now: Instant,
    tunables: Tunables,
    own: Overrides,
    slots: [EpochSlot; EPOCH_SLOTS as usize],
    /// What its segments say of its window.
    pub(super) window: u16,
    pub(super) closed: Vec<(ConnId, Option<Error>)>,
}

impl Client {
    /// With these tunables from the beginning.
    pub(super) fn new(values: &[(&str, &str)]) -> Self {
        let advertised = Advertised { mss_v4: 1460, mss_v6: 1440, window: WINDOW, window_scale: 7 };
        let mut slots = [EpochSlot::default(); EPOCH_SLOTS as usize];
        for epoch in EPOCH - 2..=EPOCH + 1 {
            slots[(epoch % EPOCH_SLOTS) as usize] = EpochSlot::derive([1, 2], epoch, &advertised).unwrap();
        }
        let tunables = with(&Tunables::default(), values);
        let now = Instant(1_000_000_000_000);
        let mut stack = Stack::new(now, stack_config(Config::default(), &tunables), 42);
        stack.set_epochs(&slots, Clock { epoch: EPOCH, second_half: false, extra: 1 });
        stack.listen(None, 80, SERVICE);
        Self { stack, now, tunables, own: Overrides::default(), slots, window: WINDOW, closed: Vec::new() }
    }

    /// Sets tunables as the daemon does: those of all services, or within [`for_the_service_alone`] its own.
    pub(super) fn tune(&mut self, values: &[(&str, &str)]) {
        let config = |tunables: &Tunables| stack_config(self.stack.config().clone(), tunables);
        if ALONE.get() {
            values.iter().for_each(|(name, value)| self.own.set(name, value).unwrap());
            let own = config(&self.own.over(&self.tunables).unwrap());
            self.stack.set_service_configs(self.now, [(SERVICE, own)].into());
        } else {
            self.tunables = with(&self.tunables, values);
            let config = config(&self.tunables);
            self.stack.set_config(self.now, config);
        }
    }

    /// The connection from this port, adopted and accepted.
    pub(super) fn connect(&mut self, port: u16) -> ConnId {
        let conn = self.acknowledge(port).unwrap_or_else(|why| panic!("not adopted: {why:?}"));
        self.stack.accepted(SERVICE);
        conn
    }

    /// The last segment of a handshake from this port: the connection, or what became of the segment.
    pub(super) fn acknowledge(&mut self, port: u16) -> Result<ConnId, Received> {
        let received = self.send(port, Flags::ACK, 1, 1);
        let mut incoming = None;
        while let Some(event) = self.stack.poll_event() {
            if let Event::Incoming { conn, .. } = event {
                incoming = Some(conn);
            }
        }
        incoming.ok_or(received)
    }

    /// A SYN from this port.
    pub(super) fn syn(&mut self, port: u16) -> Received {
        self.send(port, Flags::SYN, 0, 0)
    }

    /// A segment without data from this port.
    pub(super) fn send(&mut self, port: u16, flags: Flags, seq: u32, ack: u32) -> Received {
        self.send_with(port, (flags, seq, ack), &[])
    }

    /// A byte from this port, of a connection that the server has said nothing on.
    pub(super) fn send_byte(&mut self, port: u16, seq: u32) -> Received {
        self.send_with(port, (Flags::ACK, seq, 1), &[7])
    }

    fn send_with(&mut self, port: u16, (flags, seq, ack): (Flags, u32, u32), data: &[u8]) -> Received {
        let has_ack = flags.contains(Flags::ACK);
        let headers = Headers {
            link: Link { dst: [2, 0, 0, 0, 0, 1], src: [2, 0, 0, 0, 0, 2], ..Link::default() },
            src: PEER,
            dst: LOCAL,
            ecn: 0,
            src_port: port.to_be_bytes(),
            dst_port: 80u16.to_be_bytes(),
            seq: Seq(ISN) + seq,
            ack: if has_ack { self.cookie(port) + ack } else { Seq(0) },
            flags,
            window: self.window,
            options: if flags.contains(Flags::SYN) {
                Options { mss: Some(1460), ..Options::default() }
            } else {
                Options::default()
            },
        };
        let mut frame = vec![0; headers.len()];
        frame.extend(data);
        let len = frame.len();
        headers.write(&mut Buffer::new(&mut frame, len), data.len(), checksum::sum(data)).unwrap();
        self.stack.handle_frame(self.now, &frame)
    }

    /// Everything that the stack has to send now.
    pub(super) fn sent(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        let mut frame = [0; 2000];
        while let Some(len) = self.stack.poll_transmit(self.now, &mut frame) {
            let Ok(AnySegment::V4(segment)) = parse(&frame[..len]) else { panic!("not a segment") };
            let port = u16::from_be_bytes(segment.tcp.dst_port);
            let seq = segment.tcp.seq.distance(self.cookie(port));
            sent.push(Sent { flags: segment.tcp.flags, seq, port });
        }
        while let Some(event) = self.stack.poll_event() {
            if let Event::Closed { conn, error } = event {
                self.closed.push((conn, error));
            }
        }
        sent
    }

    /// Time passes; timers fire, and what is sent meanwhile comes back with how long after the beginning.
    pub(super) fn wait(&mut self, time: Duration) -> Vec<(Duration, Sent)> {
        let (start, end) = (self.now, self.now + time);
        let mut sent = Vec::new();
        loop {
            let due = self.stack.poll_timeout().filter(|&due| due <= end);
            self.now = due.unwrap_or(end).max(self.now);
            self.stack.handle_timeout(self.now);
            let after = self.now.since(start);
            sent.extend(self.sent().into_iter().map(|segment| (after, segment)));
            if due.is_none() {
                return sent;
            }
        }
    }

    /// The state of the flow from this port.
    pub(super) fn state(&self, port: u16) -> Option<State> {
        self.stack.flow_state(self.now, &key(port))
    }

    /// The stack's initial sequence number towards this port.
    fn cookie(&self, port: u16) -> Seq {
        let AnyFlowKey::V4(key) = key(port) else { panic!("another family") };
        let syn = SynOptions { mss: Some(1460), ..SynOptions::default() };
        let slot = &self.slots[(EPOCH % EPOCH_SLOTS) as usize];
        Seq(encode(slot, Strictness::NEVER, &key, ISN, &syn, self.now.0).isn)
    }
}

fn key(port: u16) -> AnyFlowKey {
    let at = |V4(address): V4, port| SocketAddr::from((address, port));
    AnyFlowKey::new(at(PEER, port), at(LOCAL, 80)).unwrap()
}

/// The tunables with these values, given as operators write them.
pub(super) fn with(tunables: &Tunables, values: &[(&str, &str)]) -> Tunables {
    let mut changed = tunables.clone();
    for (name, value) in values {
        changed.set(name, value).unwrap();
    }
    changed.check().unwrap();
    changed
}
