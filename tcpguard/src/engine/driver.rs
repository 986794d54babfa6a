//! The engine's loop: one turn takes a burst from the receive ring, feeds the stack, settles what follows from it
//! and sends everything with one kick. Between turns the application tasks run; without work the thread sleeps.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::desk::Desk;
use super::exchange::{Exchange, Inbox};
use super::flows::{Ownership, SharedTables};
use super::handle::{Command, DrainReport, SURVEY, States};
use super::net::{Net, State, now};
use super::port::FramePort;
use super::sleep::Sleep;
use super::stats::{EngineStats, Gaps};
use super::tap::{Tap, Tapped};
use super::{EngineConfig, EngineError, stack_config, tune_services};
use crate::dataplane::monotonic_ns;
use crate::stack::{Config, Instant};
use crate::telemetry::throttle::Throttle;

/// Frames taken from the receive ring in one turn: a fraction of a millisecond of work.
const BURST: usize = 64;
/// Frames sent in one turn.
const TRANSMIT_BURST: usize = 256;
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
    /// The last kick left frames in the ring.
    kick_again: bool,
    inbox: Inbox,
    commands: mpsc::Receiver<Command>,
    /// A command that arrived while the driver slept.
    woken_by: Option<Command>,
    drain: Option<Drain>,
    stopping: bool,
    timer: Pin<Box<tokio::time::Sleep>>,
    /// When the ring was last looked at, and how long the thread had slept by then.
    looked: (Instant, u64),
    /// When the port was last asked whether it still has its interface.
    checked: Instant,
    /// Frames that the port had lost by then.
    lost: u64,
    pressed_until: Instant,
    slept: Arc<Sleep>,
    gaps: Gaps,
    complaints: Throttle,
    busy_poll: bool,
    tapped: Tapped,
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
    /// How long the thread has slept.
    pub(crate) slept: Arc<Sleep>,
    pub(crate) busy_poll: bool,
}

impl Parts {
    pub(crate) fn new(
        config: &EngineConfig,
        net: Net,
        commands: mpsc::Receiver<Command>,
        slept: Arc<Sleep>,
    ) -> Self {
        let EngineConfig { engine, generation, local_mac, ref exchange, ref tap, placement, .. } = *config;
        let (exchange, tap, busy_poll) = (exchange.clone(), tap.clone(), placement.busy_poll);
        Self { engine, generation, local_mac, net, exchange, tap, commands, slept, busy_poll }
    }
}

impl<P: FramePort, T: SharedTables> Driver<P, T> {
    pub(crate) fn new(port: P, tables: T, parts: Parts) -> Self {
        let Parts { engine, generation, local_mac, net, exchange, tap, commands, slept, busy_poll } = parts;
        let started = now();
        Self {
            port,
            net,
            inbox: exchange.join(engine),
            desk: Desk::new(engine, local_mac, Ownership::new(tables, engine, generation, started), exchange),
            kick_again: false,
            commands,
            woken_by: None,
            drain: None,
            stopping: false,
            timer: Box::pin(tokio::time::sleep(HEARTBEAT)),
            looked: (started, slept.total()),
            checked: started,
            lost: 0,
            pressed_until: started,
            slept,
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
        self.desk.counters.turns += 1;
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
            self.inbox.tell_flows(self.desk.flow_count(state));
        });
        let more_to_send = net.with(|state| {
            let next = self.transmit(now, state)?;
            Ok::<_, EngineError>(self.conclude_drain(state, next))
        })?;
        Ok(match more_to_send {
            Next::Sleep if received >= BURST => Next::Again,
            next => next,
        })
    }

    /// The ring is about to be looked at: how long it was not, sleep not counted. What comes during that ends it.
    fn measure(&mut self) {
        let (before, look) = (self.looked, (now(), self.slept.total()));
        self.gaps.record((look.0.0 - before.0.0).saturating_sub(look.1 - before.1));
        self.looked = look;
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
        self.measure();
        let Self { port, net, desk, inbox, .. } = self;
        desk.begin_turn();
        let received = net.with(|state| {
            port.receive(BURST, |frames| {
                state.stack.look_ahead(frames.iter().copied());
                frames.iter().for_each(|frame| desk.handle(now, state, frame));
            })
        });
        desk.counters.received += received as u64;
        let mut forwarded = 0;
        while forwarded < BURST
            && let Some(message) = inbox.take()
        {
            forwarded += 1;
            net.with(|state| desk.handle_forwarded(now, state, message));
        }
        desk.counters.forwarded_in += forwarded as u64;
        received.max(forwarded)
    }

    fn transmit(&mut self, now: Instant, state: &mut State) -> Result<Next, EngineError> {
        let Self { port, desk, kick_again, complaints, tapped, .. } = self;
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
        let kicked = if sent > 0 || *kick_again { port.kick() } else { Ok(()) };
        *kick_again = kicked.is_err();
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
        let Self { port, net, inbox, commands, woken_by, timer, .. } = self;
        poll_fn(|cx| {
            if net.with(|state| state.poll_dirty(cx)).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(Some(command)) = commands.poll_recv(cx) {
                *woken_by = Some(command);
                return Poll::Ready(Ok(()));
            }
            if inbox.poll_ready(cx).is_ready() {
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
        if state.stack.connection_count() > 0 || state.stack.has_replies() || self.kick_again {
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
            reincarnated: state.stack.reincarnated().collect(),
            rings: self.port.counters(),
            gaps: self.gaps.clone(),
            handshakes: *state.stack.handshakes(),
        })
    }
}

/// Whether an error of a port means that its interface is gone: what else goes wrong may go right again.
fn is_final(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV | libc::EBADF))
}
