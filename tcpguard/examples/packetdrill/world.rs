//! Everything there is in one run: the stack, its clock, the wire, the descriptors. Plays what surrounds the stack: the
//! clock's steps, XDP's part with `adopt`, and what applications are told.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use tcpguard::stack::{ConnId, Error, Event, Instant, Received, Stack, StackDrop};
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::{AnySegment, Flags as TcpFlags};

use crate::clock::Clock;
use crate::cookies::Cookies;
use crate::errno::Errno;
use crate::files::{Files, Kind};
use crate::flags::Flags;
use crate::network::{self, Network};
use crate::sockets::Role;
use crate::trace;

/// What is known here of one of the stack's connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connection {
    /// The listening socket that it has not been accepted from yet.
    pub(crate) listener: Option<i32>,
    /// `connect` was called and nobody was told yet how it ended.
    pub(crate) connecting: bool,
    pub(crate) established: bool,
    /// Nothing of it is left but what was not read yet.
    pub(crate) ended: bool,
    /// What the next call is told, once.
    pub(crate) error: Option<Errno>,
    pub(crate) read_shut: bool,
    pub(crate) write_shut: bool,
    /// Counts what an edge-triggered poller wakes up for.
    pub(crate) edges: u64,
    /// Bytes that had arrived when that was last looked at.
    pub(crate) bytes_in: u64,
}

/// One run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) stack: Stack,
    pub(crate) network: Network,
    pub(crate) files: Files,
    pub(crate) connections: HashMap<ConnId, Connection>,
    pub(crate) flags: Flags,
    pub(crate) cookies: Cookies,
    next_port: u16,
}

/// More than any packet: the MTU is 16 bits.
const FRAME: usize = (1 << 16) + 64;
/// Where ports of active opens begin (`net.ipv4.ip_local_port_range`).
const FIRST_PORT: u16 = 32_768;
/// A run repeats itself exactly.
const SEED: u64 = 42;

impl World {
    pub(crate) fn new(flags: Flags) -> Self {
        let clock = Clock::new();
        let mut world = Self {
            stack: Stack::new(clock.now(), flags.config.clone(), SEED),
            clock,
            network: Network::default(),
            files: Files::default(),
            connections: HashMap::new(),
            cookies: Cookies::new(&flags.config),
            flags,
            next_port: FIRST_PORT,
        };
        world.cookies.turn(world.clock.now(), &mut world.stack);
        world
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// When something happens by itself next.
    pub(crate) fn next_event(&self) -> Option<Instant> {
        Some(self.stack.poll_timeout()?.max(self.now()))
    }

    /// It is `time` now; does what is due.
    pub(crate) fn step_to(&mut self, time: Instant) {
        self.clock.advance_to(time);
        let now = self.now();
        self.cookies.turn(now, &mut self.stack);
        if self.next_event().is_some_and(|due| due <= now) {
            self.stack.handle_timeout(now);
        }
        self.flush();
    }

    /// A packet arrives.
    pub(crate) fn deliver(&mut self, packet: &[u8]) -> Result<(), Errno> {
        let frame = network::frame(packet).ok_or(Errno(libc::EINVAL))?;
        if self.flags.trace {
            trace::packet(&self.clock, '<', &frame);
        }
        match network::segment(&frame).filter(|segment| self.flags.adopt && self.is_asking(segment)) {
            Some(syn) => self.answer_with_cookie(&syn),
            None => self.hand_in(&frame),
        }
        self.note_arrivals();
        self.flush();
        Ok(())
    }

    fn hand_in(&mut self, frame: &[u8]) {
        let now = self.now();
        let received = self.stack.handle_frame(now, frame);
        let nobodys = matches!(received, Received::Unknown(_) | Received::Dropped(StackDrop::NoListener));
        // XDP drops in silence what belongs to nothing; an ordinary host answers.
        if nobodys && !self.flags.adopt {
            self.stack.reset_unknown(now, frame);
        }
    }

    /// Whether a segment is a SYN, and nothing else, to a socket that listens.
    fn is_asking(&self, segment: &AnySegment) -> bool {
        let (key, flags) = network::header(segment);
        let opens =
            flags.contains(TcpFlags::SYN) && !flags.intersects(TcpFlags::ACK | TcpFlags::RST | TcpFlags::FIN);
        opens && self.is_listening(key.local_addr())
    }

    fn is_listening(&self, local: SocketAddr) -> bool {
        let accepts = |address: SocketAddr| {
            let any =
                address.ip().is_unspecified() && (address.is_ipv6() || address.is_ipv4() == local.is_ipv4());
            address.port() == local.port() && (any || address.ip() == local.ip())
        };
        let mut listening =
            self.files.sockets().filter(|(_, socket)| matches!(socket.role, Role::Listening(_)));
        listening.any(|(_, socket)| socket.local.is_some_and(accepts))
    }

    fn answer_with_cookie(&mut self, syn: &AnySegment) {
        if let Some(frame) = self.cookies.answer(self.now(), syn) {
            self.leave(&frame);
        }
    }

    /// Data that arrived is an edge, even where the stack has told that there is something to read.
    fn note_arrivals(&mut self) {
        let now = self.now();
        for (id, connection) in &mut self.connections {
            let bytes_in = self.stack.info(now, *id).map_or(connection.bytes_in, |info| info.bytes_in);
            if bytes_in != connection.bytes_in {
                connection.bytes_in = bytes_in;
                connection.edges += 1;
            }
        }
    }

    /// Lets leave what wants to leave, and hears what happened.
    pub(crate) fn flush(&mut self) {
        let mut frame = vec![0; FRAME];
        loop {
            while let Some(len) = self.stack.poll_transmit(self.now(), &mut frame) {
                self.leave(frame.get(..len).unwrap_or_default());
            }
            let Some(event) = self.stack.poll_event() else { return };
            self.hear(event);
        }
    }

    fn leave(&mut self, frame: &[u8]) {
        if self.flags.trace {
            trace::packet(&self.clock, '>', frame);
        }
        self.network.send(frame, self.clock.micros());
        if self.flags.tcb {
            for id in self.connections.keys() {
                self.stack.view(*id).iter().for_each(|view| trace::tcb(&self.clock, view));
            }
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Incoming { conn, service, key: _ } => {
                let connection = Connection { listener: Some(service as i32), ..Connection::default() };
                self.connections.insert(conn, connection);
                self.establish(conn);
                // What came with the segment that opened it was noticed before anybody knew of it.
                self.note_arrivals();
            }
            Event::Connected(conn) => self.establish(conn),
            Event::Readable(conn) | Event::Writable(conn) | Event::FinAcked(conn) => {
                self.connections.entry(conn).and_modify(|connection| connection.edges += 1);
            }
            Event::Closed { conn, error } => self.end(conn, error),
            Event::FlowAdopted { .. }
            | Event::FlowReleased { .. }
            | Event::TimeWaitEntered { .. }
            | Event::TimeWaitExpired { .. } => {}
        }
    }

    fn establish(&mut self, id: ConnId) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.established = true;
        connection.edges += 1;
        let Some(fd) = connection.listener else { return };
        match self.files.socket_mut(fd).map(|socket| &mut socket.role) {
            Ok(Role::Listening(listener)) => {
                listener.queue.push_back(id);
                listener.edges += 1;
            }
            Ok(Role::Idle | Role::Connected(_)) | Err(_) => self.drop_connection(id, fd),
        }
    }

    fn end(&mut self, id: ConnId, error: Option<Error>) {
        self.connections.entry(id).and_modify(|connection| {
            connection.ended = true;
            connection.error = error.map(Errno::from);
            connection.edges += 1;
        });
    }

    /// Ends a connection that nobody will accept.
    fn drop_connection(&mut self, id: ConnId, listener: i32) {
        self.stack.accepted(listener as u32);
        self.stack.abort(self.clock.now(), id);
        self.connections.remove(&id);
    }

    /// The stack listens, and queues as many connections as Linux does: one more than it is told.
    pub(crate) fn start_listening(&mut self, fd: i32, local: SocketAddr, backlog: u32) {
        let mut config = self.stack.config().clone();
        config.accept_backlog = backlog.saturating_add(1);
        self.stack.set_config(self.now(), config);
        self.stack.listen(listen_address(local), local.port(), fd as u32);
    }

    /// No more connections through a listening socket: those that were not accepted are reset, as on Linux.
    pub(crate) fn stop_listening(&mut self, fd: i32, local: SocketAddr) {
        self.stack.unlisten(listen_address(local), local.port());
        let waiting = self.connections.iter().filter(|(_, connection)| connection.listener == Some(fd));
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.drop_connection(id, fd);
        }
    }

    /// A port that no socket and no flow to `peer` has, with the address that packets to it come from.
    pub(crate) fn local_for(&mut self, peer: SocketAddr) -> SocketAddr {
        let ip = match peer {
            SocketAddr::V4(_) => IpAddr::V4(self.flags.local_v4),
            SocketAddr::V6(_) => IpAddr::V6(self.flags.local_v6),
        };
        loop {
            let local = SocketAddr::new(ip, self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            let flow = AnyFlowKey::new(peer, local);
            if flow.is_none_or(|flow| self.stack.flow_state(self.now(), &flow).is_none()) {
                return local;
            }
        }
    }

    /// Closes a descriptor.
    pub(crate) fn close(&mut self, fd: i32) -> Result<(), Errno> {
        match self.files.close(fd)? {
            Kind::Socket(socket) => self.close_socket(fd, socket),
            Kind::Epoll(_) | Kind::Pipe { .. } => {}
        }
        Ok(())
    }
}

/// The unspecified IPv6 address stands for both families on Linux.
fn listen_address(local: SocketAddr) -> Option<IpAddr> {
    Some(local.ip()).filter(|ip| *ip != IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED))
}
