//! The engine's loop: one turn takes a burst from the receive ring, feeds the stack, settles what follows from it
//! and sends everything with one kick. Between turns the application tasks run; without work the thread sleeps.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::map::Flow;
use tcpguard_common::packet::{AnySegment, Ethernet, parse};
use tcpguard_common::seq::Seq;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;
use tracing::warn;

use super::exchange::{Addressee, Exchange, Forwarded, Handover};
use super::flows::{Claim, Offer, Ownership, SharedTables, Swept};
use super::handle::{Command, DrainReport, SURVEY, States};
use super::net::{Net, State, now};
use super::port::FramePort;
use super::probe::Probe;
use super::stats::{EngineStats, FrameCounters, Gaps};
use super::tap::{Tap, Tapped};
use super::{EngineConfig, EngineError, stack_config, tune_services};
use crate::dataplane::monotonic_ns;
use crate::stack::{Config, Event, Instant, Origin, Received, StackDrop, State as TcpState};
use crate::telemetry::throttle::Throttle;

/// Frames taken from the receive ring in one turn: a fraction of a millisecond of work.
const BURST: usize = 64;
/// Frames sent in one turn.
const TRANSMIT_BURST: usize = 256;
/// Unknown flows looked up in one turn: each costs a system call, and a peer can cause them. Those of another engine do
/// not count: they are looked up once and then remembered for a while.
const MISSES: usize = 16;
/// Replayed first segments looked up in one turn, likewise; apart, because anybody can replay a connection of its own.
const REPLAYS: usize = 4;
/// Probes that may wait for the transmit ring: a slice of the sweep.
const PROBES: usize = 512;
/// The engine turns at least this often, so that its heartbeat never looks stale.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// How long pressure is said to last after the ring was last seen more than half full: a flood that XDP holds back lets
/// it run empty at once.
const PRESSURE_HOLD: Duration = Duration::from_secs(1);
/// How often errors of the socket are complained about.
const COMPLAIN: Duration = Duration::from_secs(10);
/// How long to wait when the transmit ring has no room and nothing else happens.
const RETRY: Duration = Duration::from_millis(1);

/// One engine, on its thread.
pub(crate) struct Driver<P, T: SharedTables> {
    port: P,
    net: Net,
    desk: Desk<T>,
    inbox: mpsc::Receiver<Forwarded>,
    commands: mpsc::Receiver<Command>,
    /// A command that arrived while the driver slept.
    woken_by: Option<Command>,
    drain: Option<Drain>,
    stopping: bool,
    timer: Pin<Box<Sleep>>,
    turned: Instant,
    /// When the port was last asked whether it still has its interface.
    checked: Instant,
    /// Frames that the port had lost by then.
    lost: u64,
    pressed_until: Instant,
    unparked: Arc<AtomicU64>,
    gaps: Gaps,
    complaints: Throttle,
    busy_poll: bool,
    tapped: Tapped,
}

/// What judges frames of flows that the stack does not know.
struct Desk<T: SharedTables> {
    engine: u32,
    local_mac: [u8; 6],
    flows: Ownership<T>,
    exchange: Exchange,
    /// Probes that wait for the transmit ring.
    probes: VecDeque<Probe>,
    misses: usize,
    replays: usize,
    /// The last kick left frames in the ring.
    kick_again: bool,
    counters: FrameCounters,
}

struct Drain {
    until: Instant,
    before: usize,
    report: Option<DrainReport>,
    reply: Option<oneshot::Sender<DrainReport>>,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// There is more to do at once.
    Again,
    /// There is more to send as soon as there is room.
    Retry,
    /// Until something happens.
    Sleep,
}

/// What a driver is made of besides its port and tables.
pub(crate) struct Parts {
    pub(crate) engine: u32,
    pub(crate) generation: u32,
    pub(crate) local_mac: [u8; 6],
    pub(crate) net: Net,
    pub(crate) exchange: Exchange,
    pub(crate) tap: Tap,
    pub(crate) commands: mpsc::Receiver<Command>,
    /// When the thread last woke from sleep, `CLOCK_MONOTONIC` nanoseconds.
    pub(crate) unparked: Arc<AtomicU64>,
    pub(crate) busy_poll: bool,
}

impl Parts {
    pub(crate) fn new(
        config: &EngineConfig,
        net: Net,
        commands: mpsc::Receiver<Command>,
        unparked: Arc<AtomicU64>,
    ) -> Self {
        let EngineConfig { engine, generation, local_mac, ref exchange, ref tap, placement, .. } = *config;
        let (exchange, tap, busy_poll) = (exchange.clone(), tap.clone(), placement.busy_poll);
        Self { engine, generation, local_mac, net, exchange, tap, commands, unparked, busy_poll }
    }
}

impl<P: FramePort, T: SharedTables> Driver<P, T> {
    pub(crate) fn new(port: P, tables: T, parts: Parts) -> Self {
        let Parts { engine, generation, local_mac, net, exchange, tap, commands, unparked, busy_poll } =
            parts;
        let started = now();
        Self {
            port,
            net,
            inbox: exchange.join(engine),
            desk: Desk {
                engine,
                local_mac,
                flows: Ownership::new(tables, engine, generation, started),
                exchange,
                probes: VecDeque::new(),
                misses: 0,
                replays: 0,
                kick_again: false,
                counters: FrameCounters::default(),
            },
            commands,
            woken_by: None,
            drain: None,
            stopping: false,
            timer: Box::pin(tokio::time::sleep(HEARTBEAT)),
            turned: started,
            checked: started,
            lost: 0,
            pressed_until: started,
            unparked,
            gaps: Gaps::default(),
            complaints: Throttle::new(COMPLAIN),
            busy_poll,
            tapped: Tapped::new(tap, engine),
        }
    }

    /// Turns until told to stop.
    ///
    /// # Errors
    /// When the socket fails, or a task panicked inside the stack.
    pub(crate) async fn run(mut self) -> Result<(), EngineError> {
        loop {
            let next = self.turn()?;
            if self.stopping {
                self.desk.flows.flush();
                return Ok(());
            }
            match next {
                // The runtime polls its reactor in between, and other tasks run first.
                Next::Again => tokio::task::yield_now().await,
                Next::Retry => self.sleep(RETRY).await?,
                // The runtime asks the kernel what is ready now and then, whether anybody sleeps or not.
                Next::Sleep if self.busy_poll => tokio::task::yield_now().await,
                Next::Sleep => self.sleep(HEARTBEAT).await?,
            }
        }
    }

    fn turn(&mut self) -> Result<Next, EngineError> {
        if self.net.is_poisoned() {
            return Err(EngineError::Poisoned);
        }
        let now = now();
        self.measure(now);
        self.check_port(now)?;
        self.beat(now);
        self.obey(now);
        let received = self.receive(now);
        let net = self.net.clone();
        net.with(|state| {
            state.clear_dirty();
            self.desk.sweep(now, state);
            if state.stack.poll_timeout().is_some_and(|due| due <= now) {
                state.stack.handle_timeout(now);
            }
            self.progress_drain(now, state);
            self.desk.settle(now, state);
        });
        let more_to_send = net.with(|state| {
            let next = self.transmit(now, state)?;
            Ok::<_, EngineError>(self.conclude_drain(state, next))
        })?;
        self.turned = super::net::now();
        Ok(match more_to_send {
            Next::Sleep if received >= BURST => Next::Again,
            next => next,
        })
    }

    /// The gap since the last turn, sleep not counted.
    fn measure(&mut self, now: Instant) {
        let awake = self.turned.0.max(self.unparked.load(Ordering::Relaxed));
        self.gaps.record(now.0.saturating_sub(awake));
        self.desk.counters.turns += 1;
    }

    fn check_port(&mut self, now: Instant) -> Result<(), EngineError> {
        if now < self.checked + HEARTBEAT {
            return Ok(());
        }
        self.checked = now;
        let lost = self.port.lost();
        if lost > self.lost {
            self.lost = lost;
            self.desk.flows.note_loss(now);
        }
        match self.port.check() {
            Err(error) if is_final(&error) => Err(EngineError::InterfaceGone),
            // An interface that is down comes up again.
            _ => Ok(()),
        }
    }

    /// Says that the engine turns, and whether XDP is to hold flows to their pace.
    fn beat(&mut self, now: Instant) {
        if self.port.is_under_pressure() {
            self.pressed_until = now + PRESSURE_HOLD;
        }
        self.desk.flows.beat(now, now < self.pressed_until);
    }

    /// Takes a burst from the ring and from the other engines. Returns the larger of the two counts.
    fn receive(&mut self, now: Instant) -> usize {
        let Self { port, net, desk, inbox, .. } = self;
        (desk.misses, desk.replays) = (0, 0);
        let received = net.with(|state| {
            port.receive(BURST, |frames| {
                state.stack.look_ahead(frames.iter().copied());
                frames.iter().for_each(|frame| desk.handle(now, state, frame));
            })
        });
        desk.counters.received += received as u64;
        let mut forwarded = 0;
        while forwarded < BURST
            && let Ok(message) = inbox.try_recv()
        {
            forwarded += 1;
            net.with(|state| desk.handle_forwarded(now, state, &message));
        }
        desk.counters.forwarded_in += forwarded as u64;
        received.max(forwarded)
    }

    fn transmit(&mut self, now: Instant, state: &mut State) -> Result<Next, EngineError> {
        let Self { port, desk, complaints, tapped, .. } = self;
        let watched = tapped.is_open();
        let mut sent = 0;
        let mut done = false;
        port.transmit(|buffer| {
            if sent == TRANSMIT_BURST {
                return None;
            }
            let len = desk.next_frame(now, state, buffer);
            if watched && let Some(frame) = len.and_then(|len| buffer.get(..len)) {
                tapped.record(monotonic_ns(), frame);
            }
            done = len.is_none();
            sent += usize::from(len.is_some());
            len
        });
        desk.counters.sent += sent as u64;
        let kicked = if sent > 0 || desk.kick_again { port.kick() } else { Ok(()) };
        desk.kick_again = kicked.is_err();
        Ok(match kicked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Next::Retry,
            Err(error) if is_final(&error) => return Err(EngineError::InterfaceGone),
            Err(error) => {
                desk.counters.kick_errors += 1;
                if let Some(times) = complaints.event(std::time::Instant::now()) {
                    warn!(times, %error, "the kernel does not send");
                }
                Next::Retry
            }
            Ok(()) if done => Next::Sleep,
            Ok(()) if sent > 0 => Next::Again,
            Ok(()) => {
                desk.counters.transmit_blocked += 1;
                Next::Retry
            }
        })
    }

    /// Sleeps until a frame, a command, an application or a timer wants something, but at most `limit`.
    async fn sleep(&mut self, limit: Duration) -> Result<(), EngineError> {
        let now = now();
        let mut due = self.desk.flows.deadline().min(now + limit);
        if let Some(timeout) = self.net.with(|state| state.stack.poll_timeout()) {
            due = due.min(timeout);
        }
        if let Some(drain) = self.drain.as_ref().filter(|drain| drain.report.is_none()) {
            due = due.min(drain.until);
        }
        self.timer.as_mut().reset(tokio::time::Instant::now() + due.since(now));
        let Self { port, net, inbox, commands, woken_by, timer, desk, .. } = self;
        poll_fn(|cx| {
            if net.with(|state| state.poll_dirty(cx)).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(Some(command)) = commands.poll_recv(cx) {
                *woken_by = Some(command);
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(Some(message)) = inbox.poll_recv(cx) {
                desk.counters.forwarded_in += 1;
                net.with(|state| desk.handle_forwarded(super::net::now(), state, &message));
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(readable) = port.poll_readable(cx) {
                return Poll::Ready(readable.map_err(EngineError::Socket));
            }
            timer.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    fn obey(&mut self, now: Instant) {
        if let Some(command) = self.woken_by.take() {
            self.execute(now, command);
        }
        while let Ok(command) = self.commands.try_recv() {
            self.execute(now, command);
        }
    }

    /// A reply that nobody waits for any more is no error.
    fn execute(&mut self, now: Instant, command: Command) {
        match command {
            Command::Stats(reply) => {
                let _ = reply.send(self.stats());
            }
            Command::Flows { start, reply } => {
                let mut flows = Vec::new();
                let next =
                    self.net.with(|state| state.stack.survey(now, start, SURVEY, |flow| flows.push(flow)));
                let _ = reply.send((flows, next));
            }
            Command::States { start, reply } => {
                let mut states = States::default();
                let next = self.net.with(|state| state.stack.count_states(start, SURVEY, &mut states));
                let _ = reply.send((states, next));
            }
            Command::Tunables(tunables) => self.net.with(|state| {
                let config = stack_config(state.stack.config().clone(), &tunables);
                state.stack.set_config(now, config);
                state.tunables = tunables;
            }),
            Command::ServiceTunables(own) => self.net.with(|state| {
                tune_services(&mut state.stack, now, &own);
                state.service_tunables = own;
            }),
            Command::Epochs(slots, clock, strictness) => self.net.with(|state| {
                state.stack.set_epochs(&slots, clock);
                state.stack.set_strictness(&strictness);
            }),
            Command::Link { local_mac, mtu } => {
                self.desk.local_mac = local_mac;
                self.net.with(|state| {
                    let config = Config { mtu, ..state.stack.config().clone() };
                    state.stack.set_config(now, config);
                    tune_services(&mut state.stack, now, &state.service_tunables);
                });
            }
            Command::Run(work) => work(&self.net),
            Command::Drain { time, reply } => {
                let before = self.net.with(|state| {
                    state.admitting = false;
                    state.stack.connection_count()
                });
                self.drain = Some(Drain { until: now + time, before, report: None, reply: Some(reply) });
            }
            Command::Stop => self.stopping = true,
        }
    }

    /// Resets what is left when the time of a drain is over, a slice in each turn.
    fn progress_drain(&mut self, now: Instant, state: &mut State) {
        let Some(drain) = &mut self.drain else { return };
        let left = state.stack.connection_count();
        if drain.report.is_none() && (left == 0 || now >= drain.until) {
            let finished = drain.before.saturating_sub(left) as u64;
            drain.report = Some(DrainReport { finished, reset: left as u64 });
        }
        if drain.report.is_some() {
            state.stack.abort_some(now, SURVEY);
        }
    }

    /// Reports a drain once the last reset has left: a reset in a ring that is about to be closed is a client that hangs.
    fn conclude_drain(&mut self, state: &State, next: Next) -> Next {
        let Some(drain) = &mut self.drain else { return next };
        let Some(report) = drain.report else { return next };
        if state.stack.connection_count() > 0 || state.stack.has_replies() || self.desk.kick_again {
            return if next == Next::Sleep { Next::Again } else { next };
        }
        if let Some(reply) = drain.reply.take() {
            let _ = reply.send(report);
        }
        self.drain = None;
        next
    }

    fn stats(&self) -> EngineStats {
        self.net.with(|state| EngineStats {
            engine: self.desk.engine,
            connections: state.stack.connection_count() as u64,
            time_wait: state.stack.time_wait_count() as u64,
            half_open: state.stack.half_open_count() as u64,
            half_open_level: state.stack.half_open_level(),
            usage: state.stack.usage(),
            frames: self.desk.counters,
            net: state.counters,
            flows: self.desk.flows.counters,
            stack: *state.stack.counters(),
            rings: self.port.rows(),
            gaps: self.gaps.clone(),
            handshakes: *state.stack.handshakes(),
        })
    }
}

impl<P, T: SharedTables> Drop for Driver<P, T> {
    fn drop(&mut self) {
        self.desk.exchange.leave(self.desk.engine);
    }
}

impl<T: SharedTables> Desk<T> {
    /// One frame from the ring.
    fn handle(&mut self, now: Instant, state: &mut State, frame: &[u8]) {
        match state.stack.handle_frame(now, frame) {
            Received::Consumed | Received::Dropped(_) => {}
            Received::Adoptable(key) => self.settle_adoption(now, state, key, frame),
            Received::Replayed(key) => self.settle_replay(now, key, frame),
            Received::Unknown(key) => self.miss(now, state, key, frame),
        }
    }

    /// One frame from another engine. It goes no further.
    fn handle_forwarded(&mut self, now: Instant, state: &mut State, message: &Forwarded) {
        let Forwarded { frame, addressee } = message;
        let (key, adoptable) = match state.stack.handle_frame(now, frame) {
            Received::Consumed | Received::Dropped(_) => return,
            Received::Replayed(_) => return self.counters.orphans += 1,
            Received::Adoptable(key) => (key, true),
            Received::Unknown(key) => (key, false),
        };
        let meant = *addressee == Addressee::Owner || state.stack.remembers_time_wait(&key, now);
        if !meant || !adoptable && !self.may_look_up() {
            self.counters.orphans += 1;
            return;
        }
        match (self.flows.claim(&key), adoptable) {
            (Claim::Mine(_), true) => self.adopt(now, state, frame),
            (Claim::Mine(flow), false) => self.make_good(now, state, key, &flow, frame),
            // The entry by which the sender found us went with the flow's last incarnation.
            (Claim::Missing, true) => self.adopt_absent(now, state, key, frame),
            (Claim::Missing | Claim::Foreign(_) | Claim::OldGeneration(_), _) => self.counters.orphans += 1,
        }
    }

    /// The first segment of a flow that has closed, once more: its owner may have reset it a moment ago.
    fn settle_replay(&mut self, now: Instant, key: AnyFlowKey, frame: &[u8]) {
        self.replays += 1;
        if self.replays > REPLAYS {
            // The sweep removes the entry that XDP made for it.
            return;
        }
        match self.flows.claim(&key) {
            Claim::Foreign(owner) if self.forward(owner, frame) => {}
            Claim::Foreign(_) | Claim::Mine(_) => self.flows.released(now, key),
            Claim::OldGeneration(_) | Claim::Missing => {}
        }
    }

    /// A valid cookie of a flow that is new to this stack: only its owner may adopt it, and nobody may whose
    /// connection died with an earlier daemon, which may have relayed what the segment says.
    fn settle_adoption(&mut self, now: Instant, state: &mut State, key: AnyFlowKey, frame: &[u8]) {
        match self.flows.claim(&key) {
            Claim::Foreign(owner) if self.forward(owner, frame) => {}
            Claim::OldGeneration(flow) if is_cookie_of(frame, &flow) => self.dismiss(now, state, key, frame),
            Claim::Missing if self.is_elsewhere(now, state, &key) && self.broadcast(frame) => {}
            Claim::Mine(_) => self.adopt(now, state, frame),
            // A new incarnation on a tuple that XDP knew, so that it inserted nothing, or an entry that went meanwhile.
            Claim::Foreign(_) | Claim::OldGeneration(_) | Claim::Missing => {
                self.adopt_absent(now, state, key, frame);
            }
        }
    }

    /// Adopts a flow that XDP would not recognise from now on.
    fn adopt_absent(&mut self, now: Instant, state: &mut State, key: AnyFlowKey, frame: &[u8]) {
        self.flows.note_absent(key);
        self.adopt(now, state, frame);
    }

    fn adopt(&mut self, now: Instant, state: &mut State, frame: &[u8]) {
        if let Received::Unknown(_) | Received::Adoptable(_) | Received::Replayed(_) =
            state.stack.adopt(now, frame)
        {
            self.counters.orphans += 1;
        }
    }

    /// A segment that the stack can make nothing of: somebody else's flow, one whose first segment was lost, or
    /// nobody's.
    fn miss(&mut self, now: Instant, state: &mut State, key: AnyFlowKey, frame: &[u8]) {
        self.counters.misses += 1;
        if let Some(owner) = self.flows.known_owner(now, &key)
            && self.forward(owner, frame)
        {
            return;
        }
        if !self.may_look_up() {
            self.counters.misses_dropped += 1;
            return;
        }
        match self.flows.claim(&key) {
            Claim::Foreign(owner) => {
                if self.flows.note_owner(key, owner) {
                    self.misses -= 1;
                }
                if !self.forward(owner, frame) {
                    self.dismiss(now, state, key, frame);
                }
            }
            Claim::Mine(flow) => self.make_good(now, state, key, &flow, frame),
            Claim::OldGeneration(_) => self.dismiss(now, state, key, frame),
            Claim::Missing if self.is_elsewhere(now, state, &key) && self.broadcast(frame) => {}
            Claim::Missing => self.counters.orphans += 1,
        }
    }

    /// Whether this turn may make one more system call for a flow that the stack does not know.
    fn may_look_up(&mut self) -> bool {
        self.misses += 1;
        self.misses <= MISSES
    }

    /// A segment of a flow of ours whose first segment was lost.
    fn make_good(&mut self, now: Instant, state: &mut State, key: AnyFlowKey, flow: &Flow, frame: &[u8]) {
        let swept = adopt_entry(now, state, key, flow, self.local_mac);
        self.flows.account(now, key, swept);
        if matches!(swept, Swept::Known | Swept::Adopted) {
            state.stack.handle_frame(now, frame);
        }
    }

    /// Whether XDP redirected a segment for a fingerprint that another engine set: that has the flow in TIME_WAIT, and
    /// judges whether the segment may begin a new incarnation.
    fn is_elsewhere(&self, now: Instant, state: &State, key: &AnyFlowKey) -> bool {
        self.flows.has_fingerprint(key) && !state.stack.remembers_time_wait(key, now)
    }

    /// Shows a frame to every other engine; whether there can be one. With their queues full it is lost, and its peer
    /// sends it again.
    fn broadcast(&mut self, frame: &[u8]) -> bool {
        if self.exchange.is_alone() {
            return false;
        }
        match self.exchange.broadcast(self.engine, frame) {
            0 => self.counters.forward_lost += 1,
            _ => self.counters.forwarded_out += 1,
        }
        true
    }

    /// The connection died with an earlier daemon: its peer gets a reset instead of silence. The entry stays: the reset
    /// may be lost, or answer a segment that is not the peer's.
    fn dismiss(&mut self, now: Instant, state: &mut State, key: AnyFlowKey, frame: &[u8]) {
        if self.flows.may_reset(now, key) {
            state.stack.reset_unknown(now, frame);
            self.counters.old_generation_resets += 1;
        }
    }

    /// Whether there is an engine that answers for the frame now.
    fn forward(&mut self, owner: u32, frame: &[u8]) -> bool {
        match self.exchange.forward(owner, frame) {
            Handover::Queued => self.counters.forwarded_out += 1,
            Handover::Full => self.counters.forward_lost += 1,
            Handover::NoEngine => return false,
        }
        true
    }

    fn sweep(&mut self, now: Instant, state: &mut State) {
        let Self { flows, exchange, engine, local_mac, probes, counters, .. } = self;
        let is_stray = |owner| !exchange.contains(owner) && exchange.is_first(*engine);
        flows.sweep(now, is_stray, |what, key, flow| match what {
            Offer::Adopt => adopt_entry(now, state, key, flow, *local_mac),
            Offer::Probe => {
                if probes.len() < PROBES
                    && let Some(probe) = Probe::new(&key, flow, *local_mac)
                {
                    probes.push_back(probe);
                    counters.old_generation_probes += 1;
                }
                Swept::Refused
            }
        });
        self.settle_caution(state);
    }

    /// Asking the flow table before every adoption costs a system call each: not without a reason.
    fn settle_caution(&self, state: &mut State) {
        let at_once = self.exchange.is_alone() && !self.flows.old_generation_possible();
        state.stack.set_adopt_at_once(at_once);
    }

    /// What follows from what the stack did, for the applications and for the flow table.
    fn settle(&mut self, now: Instant, state: &mut State) {
        for (key, link) in state.opened.drain(..) {
            // Nothing is exchanged yet: there are no numbers to tell.
            self.flows.insert(now, key, &Origin { link, seq: Seq(0), ack: Seq(0) });
        }
        while let Some(event) = state.stack.poll_event() {
            match event {
                Event::FlowAdopted { key } => self.flows.adopted(now, key, || state.stack.origin(&key)),
                Event::FlowReleased { key } => self.flows.released(now, key),
                Event::TimeWaitEntered { key } => self.flows.time_wait(now, key),
                Event::TimeWaitExpired { key } => self.flows.time_wait_over(key),
                Event::Incoming { .. }
                | Event::Connected(_)
                | Event::Readable(_)
                | Event::Writable(_)
                | Event::FinAcked(_)
                | Event::Closed { .. } => state.dispatch(&event),
            }
        }
        self.flows.delete_due(now);
    }

    /// The next frame to send. It leaves from the interface's address, which may be another by now than the one that
    /// the peer's last segment came to.
    fn next_frame(&mut self, now: Instant, state: &mut State, buffer: &mut [u8]) -> Option<usize> {
        let len = self.next_probe(buffer).or_else(|| state.stack.poll_transmit(now, buffer))?;
        buffer.get_mut(Ethernet::SRC..Ethernet::SRC + 6)?.copy_from_slice(&self.local_mac);
        Some(len)
    }

    fn next_probe(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let frame = self.probes.front()?.frame();
        buffer.get_mut(..frame.len())?.copy_from_slice(frame);
        let len = frame.len();
        self.probes.pop_front();
        Some(len)
    }
}

/// Whether an error of a port means that its interface is gone: what else goes wrong may go right again.
fn is_final(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV | libc::EBADF))
}

/// Whether a segment carries the cookie that opened the flow of an entry.
fn is_cookie_of(frame: &[u8], flow: &Flow) -> bool {
    let tcp = match parse(frame) {
        Ok(AnySegment::V4(segment)) => segment.tcp,
        Ok(AnySegment::V6(segment)) => segment.tcp,
        Err(_) => return false,
    };
    (tcp.seq, tcp.ack) == (Seq(flow.seq), Seq(flow.ack))
}

/// Makes sure that the stack has the connection of an entry of ours.
fn adopt_entry(now: Instant, state: &mut State, key: AnyFlowKey, flow: &Flow, local_mac: [u8; 6]) -> Swept {
    let known = matches!(state.stack.flow_state(now, &key), Some(flow) if flow != TcpState::TimeWait);
    if known || state.stack.remembers_reset(&key) {
        return Swept::Known;
    }
    match state.stack.adopt_swept(now, key, flow, local_mac) {
        Received::Consumed => Swept::Adopted,
        Received::Dropped(StackDrop::BacklogFull) if !state.stack.config().reset_on_overflow => Swept::Later,
        Received::Adoptable(_) | Received::Replayed(_) | Received::Unknown(_) | Received::Dropped(_) => {
            Swept::Refused
        }
    }
}
