//! A deterministic network between two stacks: virtual time, delay, loss, reordering, duplication, corruption. The
//! server side answers SYNs as XDP does, with cookies. Applications on both ends move streams whose every byte is
//! known by its place.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use tcpguard_common::cookie::{Strictness, SynOptions, encode};
use tcpguard_common::flow::FlowKey;
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{
    AnySegment, Buffer, Family as WireFamily, Flags, Options, SackBlocks, Segment, parse,
};
use tcpguard_common::seq::Seq;

use super::promises::{Promises, Sabotage};
use super::router::complaint;
use super::{CLIENT_MAC, EPOCH, Family, Rng, SERVER_MAC, START, clock, epochs, link, stream, stream_byte};
use crate::{Config, ConnId, Error, Event, Instant, Stack};

/// What the network does to frames, chances per thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    pub(super) delay: Duration,
    pub(super) jitter: Duration,
    pub(super) loss: u64,
    pub(super) duplicate: u64,
    pub(super) corrupt: u64,
    /// Of frames that may be marked with congestion.
    pub(super) mark: u64,
    /// From this time on, larger datagrams are dropped, and their senders told.
    pub(super) narrow: Option<(Duration, u16)>,
    /// How often a frame has its receiver forget what it has behind holes, and said so.
    pub(super) renege: u64,
}

/// What one end of a connection does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Bytes to send, then FIN.
    pub(super) send: u64,
    /// Bytes that must arrive before the FIN.
    pub(super) receive: u64,
    /// Waits until everything has arrived before it sends.
    pub(super) answers: bool,
    /// Pauses between reads.
    pub(super) slow: Option<Duration>,
}

#[derive(Debug)]
struct App {
    plan: Plan,
    /// The connection's: the client's.
    port: u16,
    label: u8,
    sent: u64,
    received: u64,
    eof: bool,
    shut: bool,
    error: Option<Error>,
    closed: bool,
    reads_at: Instant,
}

impl App {
    fn new(plan: Plan, port: u16) -> Self {
        Self {
            plan,
            port,
            label: port as u8,
            sent: 0,
            received: 0,
            eof: false,
            shut: false,
            error: None,
            closed: false,
            reads_at: START,
        }
    }

    fn done(&self) -> bool {
        self.closed
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Client,
    Server,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrives(End, Vec<u8>),
    Wakes(End, u32),
}

/// Two stacks and what lies between them.
pub(super) struct Network {
    pub(super) now: Instant,
    pub(super) client: Stack,
    pub(super) server: Stack,
    family: Family,
    weather: Weather,
    rng: Rng,
    agenda: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    order: u64,
    apps: BTreeMap<(End, u32), (ConnId, App)>,
    /// What the server's end of a connection will do, by client port.
    plans: BTreeMap<u16, Plan>,
    /// Longest time to go on.
    deadline: Instant,
    options: SynFilter,
    /// Whether SYNs to the server are answered with cookies.
    cookies: bool,
    seed: u64,
    promises: Promises,
    /// Decides when receivers renege.
    whims: Rng,
    /// How often one did.
    pub(super) reneged: u64,
    /// What is done to the server's frames before they leave.
    sabotage: Option<Sabotage>,
    pub(super) finished: Vec<(bool, Option<Error>)>,
    /// Ends that saw an error before they had sent and received everything.
    pub(super) incomplete: usize,
    /// How the ends of each connection left it.
    outcomes: BTreeMap<u16, Vec<Outcome>>,
}

/// How an end left its connection.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    /// Bytes that did not arrive.
    missing: u64,
    /// Whether it had everything, and waited for the acknowledgement of all that it had sent, FIN included.
    told: bool,
    error: Option<Error>,
}

/// Options the client's SYN loses on the way: peers that do not know them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SynFilter {
    pub(super) timestamps: bool,
    pub(super) sack: bool,
    pub(super) window_scale: bool,
}

impl Network {
    pub(super) fn new(seed: u64, family: Family, weather: Weather, config: Config) -> Self {
        let mut server = Stack::new(START, config.clone(), seed);
        server.set_epochs(&epochs(EPOCH), clock(EPOCH, false));
        server.listen(None, 80, 1);
        Self {
            now: START,
            client: Stack::new(START, config, seed + 1),
            server,
            family,
            weather,
            rng: Rng(seed),
            agenda: BinaryHeap::new(),
            order: 0,
            apps: BTreeMap::new(),
            plans: BTreeMap::new(),
            deadline: START + Duration::from_secs(3600),
            options: SynFilter::default(),
            cookies: true,
            seed,
            promises: Promises::default(),
            whims: Rng(!seed),
            reneged: 0,
            sabotage: None,
            finished: Vec::new(),
            incomplete: 0,
            outcomes: BTreeMap::new(),
        }
    }

    pub(super) fn without(mut self, options: SynFilter) -> Self {
        self.options = options;
        self
    }

    /// The server does not do what a stack must.
    pub(super) fn sabotaged(mut self, sabotage: Option<Sabotage>) -> Self {
        self.sabotage = sabotage;
        self
    }

    /// Opens a connection whose ends do this.
    pub(super) fn open(&mut self, port: u16, client: Plan, server: Plan) {
        self.plans.insert(port, server);
        let (local, peer) = (self.family.client(port), self.family.server());
        let id = self.client.connect(self.now, local, peer, link(CLIENT_MAC, SERVER_MAC)).unwrap();
        self.apps.insert((End::Client, id.index), (id, App::new(client, port)));
        self.flush(End::Client);
    }

    /// Runs until nothing is left to do; `true` if that came before the deadline.
    pub(super) fn run(&mut self) -> bool {
        while self.apps.values().any(|(_, app)| !app.done()) || self.busy() {
            if !self.step() || self.now > self.deadline {
                return false;
            }
        }
        true
    }

    /// Of every connection, both ends had everything, or both saw an error: none was told that all had arrived where it had not.
    #[track_caller]
    pub(super) fn assert_pairs(&self) {
        for (port, ends) in &self.outcomes {
            let told = ends.iter().any(|end| end.told);
            let cut = ends.iter().any(|end| end.missing > 0);
            // The client of a handshake whose last ACK was lost may have nobody at its other end.
            let alone = ends.len() == 1;
            let in_vain = ends.iter().any(|end| (end.missing > 0 || alone) && end.error.is_none());
            assert!(!(in_vain || cut && told), "port {port}: {ends:?}, seed {}", self.seed);
        }
    }

    /// Time goes on until both stacks have nothing left, TIME_WAIT included, and no timer runs.
    #[track_caller]
    pub(super) fn drain(&mut self) {
        let ended = (0..10_000_000).any(|_| {
            let timers = [self.client.poll_timeout(), self.server.poll_timeout()];
            let ended = timers == [None; 2] && self.agenda.is_empty();
            if !ended {
                self.step();
            }
            ended
        });
        assert!(ended, "a timer goes on for ever, seed {}", self.seed);
        for (name, stack) in [("client", &self.client), ("server", &self.server)] {
            let left = (stack.connection_count(), stack.time_wait_count(), stack.buffered_bytes());
            assert_eq!(left, (0, 0, 0), "{name} leaks, seed {}", self.seed);
        }
    }

    fn busy(&self) -> bool {
        self.client.connection_count() > 0 || self.server.connection_count() > 0
    }

    /// The next thing happens; `false` when there is none.
    fn step(&mut self) -> bool {
        let agenda = self.agenda.peek().map(|Reverse((at, ..))| Instant(*at));
        let timers = [agenda, self.client.poll_timeout(), self.server.poll_timeout()];
        let Some(next) = timers.into_iter().flatten().min() else { return false };
        self.now = self.now.max(next);
        while let Some(Reverse((at, ..))) = self.agenda.peek() {
            if *at > self.now.0 {
                break;
            }
            let Some(Reverse((_, _, happening))) = self.agenda.pop() else { break };
            match happening {
                Happening::Arrives(End::Server, frame) => {
                    self.arrives_at_server(&frame);
                    self.renege(End::Server);
                }
                Happening::Arrives(End::Client, frame) => {
                    self.client.handle_frame(self.now, &frame);
                    self.renege(End::Client);
                }
                Happening::Wakes(end, index) => self.pump(end, index),
            }
        }
        self.client.handle_timeout(self.now);
        self.server.handle_timeout(self.now);
        for end in [End::Client, End::Server] {
            self.handle_events(end);
            self.flush(end);
        }
        true
    }

    /// A receiver may go back on its SACK blocks (RFC 2018 §8).
    fn renege(&mut self, end: End) {
        if self.weather.renege == 0 || !self.whims.chance(self.weather.renege) {
            return;
        }
        let Stack { connections, shared, .. } = self.stack(end);
        let mut reneged = 0;
        for index in 0..connections.slots() {
            let Some(tcb) = connections.id_at(index).and_then(|id| connections.get_mut(id)) else { continue };
            reneged += u64::from(tcb.islands() > 0);
            tcb.discard_islands(shared);
        }
        self.reneged += reneged;
    }

    fn stack(&mut self, end: End) -> &mut Stack {
        match end {
            End::Client => &mut self.client,
            End::Server => &mut self.server,
        }
    }

    fn handle_events(&mut self, end: End) {
        while let Some(event) = self.stack(end).poll_event() {
            match event {
                Event::Incoming { conn, key, .. } => {
                    let port = key.peer_addr().port();
                    let app = App::new(self.plans[&port], port);
                    self.apps.insert((end, conn.index), (conn, app));
                    self.pump(end, conn.index);
                }
                Event::Connected(conn)
                | Event::Readable(conn)
                | Event::Writable(conn)
                | Event::FinAcked(conn)
                | Event::Closed { conn, .. } => {
                    if let Event::Closed { error: Some(error), .. } = event
                        && let Some((id, app)) = self.apps.get_mut(&(end, conn.index))
                        && *id == conn
                    {
                        app.error = Some(error);
                    }
                    self.pump(end, conn.index);
                }
                Event::FlowAdopted { .. }
                | Event::FlowReleased { .. }
                | Event::TimeWaitEntered { .. }
                | Event::TimeWaitExpired { .. } => {}
            }
        }
    }

    /// An application does what it can.
    fn pump(&mut self, end: End, index: u32) {
        let Some((id, mut app)) = self.apps.remove(&(end, index)) else { return };
        if !app.closed {
            self.read(end, id, &mut app);
            self.write(end, id, &mut app);
            let finished = app.eof && app.shut && self.stack(end).fin_acked(id);
            let late = app.eof && app.shut && self.rng.chance(100);
            if finished || late || app.error.is_some() {
                app.closed = true;
                let now = self.now;
                self.stack(end).close(now, id);
                self.check(end, &app);
                let complete = app.eof && app.shut && app.received == app.plan.receive;
                self.incomplete += usize::from(!complete);
                let missing = app.plan.receive - app.received;
                let outcome = Outcome { missing, told: finished, error: app.error };
                self.outcomes.entry(app.port).or_default().push(outcome);
                self.finished.push((end == End::Server, app.error));
            }
        }
        if !app.closed {
            self.apps.insert((end, index), (id, app));
        }
    }

    fn read(&mut self, end: End, id: ConnId, app: &mut App) {
        let mut buffer = [0; 3000];
        while !app.eof && app.error.is_none() {
            if app.plan.slow.is_some() && self.now < app.reads_at {
                let at = app.reads_at;
                self.schedule(at, Happening::Wakes(end, id.index));
                return;
            }
            let want = 1 + self.rng.below(buffer.len() as u64) as usize;
            let now = self.now;
            match self.stack(end).recv(now, id, &mut buffer[..want]) {
                Ok(0) => app.eof = true,
                Ok(len) => {
                    let label = app.label ^ u8::from(end == End::Client);
                    for (offset, &byte) in buffer[..len].iter().enumerate() {
                        let at = app.received + offset as u64;
                        assert_eq!(byte, stream_byte(label, at), "{end:?} byte {at}, seed {}", self.seed);
                    }
                    app.received += len as u64;
                    if let Some(pause) = app.plan.slow {
                        app.reads_at = self.now + pause;
                    }
                }
                Err(Error::WouldBlock) => return,
                Err(error) => app.error = Some(error),
            }
        }
    }

    fn write(&mut self, end: End, id: ConnId, app: &mut App) {
        if app.error.is_some() || app.shut || (app.plan.answers && app.received < app.plan.receive) {
            return;
        }
        let now = self.now;
        while app.sent < app.plan.send {
            let len = (1 + self.rng.below(20_000)).min(app.plan.send - app.sent) as usize;
            let data = stream(app.label ^ u8::from(end == End::Server), app.sent, len);
            match self.stack(end).send(now, id, &data) {
                Ok(len) => app.sent += len as u64,
                Err(Error::WouldBlock) => return,
                Err(error) => {
                    app.error = Some(error);
                    return;
                }
            }
        }
        app.shut = true;
        self.stack(end).shutdown(now, id).unwrap();
    }

    /// Every byte once and in order, or an error.
    fn check(&self, end: End, app: &App) {
        if app.error.is_none() {
            assert_eq!(app.received, app.plan.receive, "{end:?} received, seed {}", self.seed);
            assert_eq!(app.sent, app.plan.send, "{end:?} sent, seed {}", self.seed);
        }
    }

    fn flush(&mut self, end: End) {
        let mut frame = [0; 2048];
        let now = self.now;
        while let Some(len) = self.stack(end).poll_transmit(now, &mut frame) {
            let to = if end == End::Client { End::Server } else { End::Client };
            if let Some(sabotage) = self.sabotage.filter(|_| end == End::Server) {
                sabotage(&mut frame[..len]);
            }
            self.carry(to, frame[..len].to_vec());
        }
    }

    fn carry(&mut self, to: End, frame: Vec<u8>) {
        let Weather { delay, jitter, loss, duplicate, corrupt, mark, narrow, renege: _ } = self.weather;
        if let Err(broken) = self.promises.observe(&frame) {
            panic!("{broken}, seed {}", self.seed);
        }
        let narrow = narrow.filter(|(from, _)| self.now >= START + *from);
        if let Some((_, mtu)) = narrow.filter(|(_, mtu)| frame.len() > 14 + usize::from(*mtu)) {
            let kind = if self.family == Family::V4 { (3, 4) } else { (2, 0) };
            let sender = if to == End::Client { End::Server } else { End::Client };
            if !self.rng.chance(loss) {
                self.schedule(
                    self.now + delay,
                    Happening::Arrives(sender, complaint(&frame, kind, mtu.into())),
                );
            }
            return;
        }
        let copies = 1 + u64::from(self.rng.chance(duplicate));
        for _ in 0..copies {
            if self.rng.chance(loss) {
                continue;
            }
            let mut frame = frame.clone();
            if mark > 0 && self.rng.chance(mark) {
                mark_congestion(&mut frame);
            }
            if self.rng.chance(corrupt) {
                let at = 14 + self.rng.below(frame.len() as u64 - 14) as usize;
                frame[at] ^= 1 << self.rng.below(8);
            }
            let late = Duration::from_nanos(self.rng.below(jitter.as_nanos() as u64 + 1));
            let at = self.now + delay + late;
            self.schedule(at, Happening::Arrives(to, frame));
        }
    }

    fn schedule(&mut self, at: Instant, happening: Happening) {
        self.order += 1;
        self.agenda.push(Reverse((at.0, self.order, happening)));
    }

    /// XDP's part: SYNs get cookies, the rest goes to the stack.
    fn arrives_at_server(&mut self, frame: &[u8]) {
        let reply = match parse(frame) {
            Ok(AnySegment::V4(segment)) => self.answer_syn(frame, &segment),
            Ok(AnySegment::V6(segment)) => self.answer_syn(frame, &segment),
            Err(_) => None,
        };
        match reply {
            Some(reply) => self.carry(End::Client, reply),
            None => {
                self.server.handle_frame(self.now, frame);
            }
        }
    }

    fn answer_syn<A: WireFamily>(&self, frame: &[u8], segment: &Segment<A>) -> Option<Vec<u8>> {
        if !self.cookies
            || !segment.tcp.flags.contains(Flags::SYN)
            || segment.tcp.flags.contains(Flags::ACK)
            || !segment.checksum_ok(frame)
        {
            return None;
        }
        let offered = segment.options;
        let syn = SynOptions {
            mss: offered.mss,
            window_scale: offered.window_scale.filter(|_| !self.options.window_scale),
            sack_permitted: offered.sack_permitted && !self.options.sack,
            timestamps: offered.timestamps.map(|(value, _)| value).filter(|_| !self.options.timestamps),
            ecn: segment.tcp.flags.contains(Flags::ECE | Flags::CWR),
        };
        let slots = epochs(EPOCH);
        let slot = &slots[EPOCH as usize % slots.len()];
        let key: FlowKey<A> = segment.key();
        let cookie = encode(slot, Strictness::NEVER, &key, segment.tcp.seq.0, &syn, self.now.0);
        let headers = Headers {
            link: Link::answering(&segment.ethernet),
            src: key.local,
            dst: key.peer,
            ecn: 0,
            src_port: key.local_port,
            dst_port: key.peer_port,
            seq: Seq(cookie.isn),
            ack: segment.tcp.seq + 1,
            flags: Flags::SYN
                | Flags::ACK
                | if syn.ecn && cookie.tsval.is_some() { Flags::ECE } else { Flags(0) },
            window: slot.window,
            options: Options {
                mss: Some(slot.mss_v4),
                window_scale: syn.window_scale.map(|_| slot.window_scale),
                sack_permitted: syn.sack_permitted,
                timestamps: cookie.tsval.map(|value| (value, syn.timestamps.unwrap_or(0))),
                sack: SackBlocks::default(),
            },
        };
        let mut reply = vec![0; headers.len()];
        let len = reply.len();
        headers.write(&mut Buffer::new(&mut reply, len), 0, 0)?;
        Some(reply)
    }

    /// Two clients meet in the middle: a simultaneous open between the stacks, no cookies.
    pub(super) fn open_both_ways(&mut self, plan: Plan) {
        self.cookies = false;
        let (a, b): (SocketAddr, SocketAddr) = (self.family.client(5000), self.family.server());
        let client = self.client.connect(self.now, a, b, link(CLIENT_MAC, SERVER_MAC)).unwrap();
        let server = self.server.connect(self.now, b, a, link(SERVER_MAC, CLIENT_MAC)).unwrap();
        self.apps.insert((End::Client, client.index), (client, App::new(plan, 5000)));
        self.apps.insert((End::Server, server.index), (server, App::new(plan, 5000)));
        self.flush(End::Client);
        self.flush(End::Server);
    }
}

/// Whatever panics in there, the stack included, can be run again.
#[expect(clippy::print_stderr, reason = "a panic's message is not ours")]
impl Drop for Network {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the network's seed was {}", self.seed);
        }
    }
}

/// What a router does to a frame that allows it, instead of dropping it (RFC 3168 §5).
pub(super) fn mark_congestion(frame: &mut [u8]) {
    const CE: u8 = 0b11;
    let ethernet = 14;
    match frame[ethernet] >> 4 {
        4 if frame[ethernet + 1] & CE != 0 => {
            let old = frame[ethernet + 1];
            frame[ethernet + 1] |= CE;
            // RFC 1624: the header's sum follows.
            let sum = u16::from_be_bytes([frame[ethernet + 10], frame[ethernet + 11]]);
            let sum = u32::from(!sum) + u32::from(!u16::from(old)) + u32::from(frame[ethernet + 1]);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            frame[ethernet + 10..ethernet + 12].copy_from_slice(&sum.to_be_bytes());
        }
        6 if (frame[ethernet + 1] >> 4) & CE != 0 => frame[ethernet + 1] |= CE << 4,
        _ => {}
    }
}
