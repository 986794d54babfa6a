//! What an engine's driver and its application tasks share: the stack, who waits for which connection, and the
//! accept queues. All of it lives on one thread. Frames and the flow table are the driver's alone.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tcpguard_common::flow::AnyFlowKey;

use super::Listen;
use super::handle::{SURVEY, ServiceTunables};
use super::listener::TcpListener;
use super::stats::counters;
use super::stream::TcpStream;
use crate::config::Tunables;
use crate::dataplane::monotonic_ns;
use crate::stack::{ConnId, Cursor, Error, Event, FlowInfo, Instant, Link, Stack};

/// The network as an application on an engine sees it. Clones are the same network; none leaves its thread.
#[derive(Clone)]
pub struct Net {
    shared: Rc<Shared>,
}

struct Shared {
    state: RefCell<State>,
    /// An application task panicked inside the stack: what it was changing may be half-changed.
    poisoned: Cell<bool>,
}

counters! {
    /// Connection work done, since the engine started.
    NetCounters {
        /// Connections handed to a service.
        accepted = "accepted";
        /// Connections reset because nobody listens, or the engine drains.
        not_admitted = "not-admitted";
    }
}

pub(crate) struct State {
    pub(crate) stack: Stack,
    /// The tunables in force.
    pub(crate) tunables: Arc<Tunables>,
    /// Those of services that have some for themselves.
    pub(crate) service_tunables: ServiceTunables,
    /// By [`ConnId::index`].
    conns: Vec<Conn>,
    listeners: HashMap<u32, Backlog>,
    /// Wakes the driver.
    driver: Option<Waker>,
    /// An application changed something that the driver must look at.
    dirty: bool,
    pub(crate) admitting: bool,
    /// Active opens whose entry must be in the flow table before their SYN leaves.
    pub(crate) opened: Vec<(AnyFlowKey, Link)>,
    pub(crate) counters: NetCounters,
}

/// Who waits for a connection. Reused with its index; a vacant slot has no open generation.
#[derive(Default)]
struct Conn {
    generation: Option<u32>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// An active open succeeded.
    connected: bool,
    /// Why the flow is over, if it ended badly.
    error: Option<Error>,
}

#[derive(Default)]
struct Backlog {
    queue: VecDeque<(ConnId, AnyFlowKey)>,
    acceptor: Option<Waker>,
}

impl Net {
    pub(crate) fn new(stack: Stack, tunables: (Arc<Tunables>, ServiceTunables)) -> Self {
        let (tunables, service_tunables) = tunables;
        let state = State {
            stack,
            tunables,
            service_tunables,
            conns: Vec::new(),
            listeners: HashMap::new(),
            driver: None,
            dirty: false,
            admitting: true,
            opened: Vec::new(),
            counters: NetCounters::default(),
        };
        Self { shared: Rc::new(Shared { state: RefCell::new(state), poisoned: Cell::new(false) }) }
    }

    /// Takes the connections of `service`, in the order in which they came.
    ///
    /// # Errors
    /// `AddrInUse` when somebody takes them already.
    pub fn listen(&self, service: u32) -> io::Result<TcpListener> {
        self.with(|state| {
            if state.listeners.contains_key(&service) {
                return Err(io::Error::from(io::ErrorKind::AddrInUse));
            }
            state.listeners.insert(service, Backlog::default());
            Ok(())
        })?;
        Ok(TcpListener::new(self.clone(), service))
    }

    /// Adopts connections to this address and port from now on.
    pub fn admit(&self, Listen { addr, port, service }: Listen) {
        self.with(|state| state.stack.listen(addr, port, service));
    }

    /// Adopts no more connections to this address and port. Those that exist stay.
    pub fn refuse(&self, Listen { addr, port, service: _ }: Listen) {
        self.with(|state| state.stack.unlisten(addr, port));
    }

    /// Ends flows with a reset, those that `which` says, from `start` on. Returns how many, and where to go on: a slice
    /// at a time, so that a million flows stop nothing. Entries in TIME_WAIT stay.
    pub fn kill(&self, start: Cursor, which: impl FnMut(&FlowInfo) -> bool) -> (u64, Option<Cursor>) {
        self.with(|state| {
            state.wake_driver();
            state.stack.kill(now(), start, SURVEY, which)
        })
    }

    /// Opens a connection from `local` to `peer`, whose segments travel as `link` says.
    ///
    /// # Errors
    /// As a kernel socket's `connect`: refused, timed out, address in use.
    pub async fn connect(&self, local: SocketAddr, peer: SocketAddr, link: Link) -> io::Result<TcpStream> {
        let key = AnyFlowKey::new(peer, local).ok_or(io::ErrorKind::InvalidInput)?;
        let conn = self.with(|state| {
            let conn = state.stack.connect(now(), local, peer, link).map_err(io_error)?;
            state.register(conn);
            state.opened.push((key, link));
            state.wake_driver();
            Ok::<_, io::Error>(conn)
        })?;
        let stream = TcpStream::new(self.clone(), conn, key);
        std::future::poll_fn(|cx| stream.poll_connected(cx)).await?;
        Ok(stream)
    }

    /// Runs `f` on the shared state. A panic inside `f` is remembered: the driver then gives up.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let fuse = Fuse(&self.shared.poisoned);
        let result = f(&mut self.shared.state.borrow_mut());
        std::mem::forget(fuse);
        result
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.shared.poisoned.get()
    }

    /// Gives up a listener and resets what waits for it.
    pub(crate) fn unlisten(&self, service: u32) {
        self.with(|state| {
            let Some(backlog) = state.listeners.remove(&service) else { return };
            for (conn, _) in backlog.queue {
                state.stack.accepted(service);
                state.abort(conn);
            }
        });
    }

    pub(crate) fn poll_accept(&self, service: u32, cx: &mut Context<'_>) -> Poll<TcpStream> {
        let next = self.with(|state| {
            let backlog = state.listeners.entry(service).or_default();
            let next = backlog.queue.pop_front();
            match next {
                Some(_) => state.stack.accepted(service),
                None => store(&mut backlog.acceptor, cx.waker()),
            }
            next
        });
        match next {
            Some((conn, key)) => Poll::Ready(TcpStream::new(self.clone(), conn, key)),
            None => Poll::Pending,
        }
    }
}

/// Set off when dropped, that is unless forgotten: by unwinding.
struct Fuse<'a>(&'a Cell<bool>);

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

impl State {
    /// The tunables in force for a connection.
    pub(crate) fn tunables_of(&self, conn: ConnId) -> &Tunables {
        let service = self.stack.service_of(conn);
        let own = self.service_tunables.iter().find(|(id, _)| Some(*id) == service);
        own.map_or(&self.tunables, |(_, tunables)| tunables)
    }

    /// What an event means for the application. The flow table's part is the driver's.
    pub(crate) fn dispatch(&mut self, event: &Event) {
        match *event {
            Event::Incoming { conn, key, service } => self.incoming(conn, key, service),
            Event::Readable(conn) => self.wake(conn, Side::Reader),
            Event::Connected(conn) => {
                if let Some(waiting) = self.conn(conn) {
                    waiting.connected = true;
                }
                self.wake(conn, Side::Writer);
            }
            Event::Writable(conn) | Event::FinAcked(conn) => self.wake(conn, Side::Writer),
            Event::Closed { conn, error } => {
                if let Some(waiting) = self.conn(conn) {
                    waiting.error = error;
                }
                self.wake(conn, Side::Reader);
                self.wake(conn, Side::Writer);
            }
            Event::FlowAdopted { .. }
            | Event::FlowReleased { .. }
            | Event::TimeWaitEntered { .. }
            | Event::TimeWaitExpired { .. } => {}
        }
    }

    fn incoming(&mut self, conn: ConnId, key: AnyFlowKey, service: u32) {
        self.register(conn);
        match self.listeners.get_mut(&service) {
            Some(backlog) if self.admitting => {
                self.counters.accepted += 1;
                backlog.queue.push_back((conn, key));
                if let Some(acceptor) = backlog.acceptor.take() {
                    acceptor.wake();
                }
            }
            _ => {
                self.counters.not_admitted += 1;
                self.stack.accepted(service);
                self.abort(conn);
            }
        }
    }

    fn register(&mut self, conn: ConnId) {
        let index = conn.index as usize;
        if index >= self.conns.len() {
            self.conns.resize_with(index + 1, Conn::default);
        }
        self.conns[index] = Conn { generation: Some(conn.generation), ..Conn::default() };
    }

    fn conn(&mut self, conn: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(conn.index as usize).filter(|slot| slot.generation == Some(conn.generation))
    }

    /// Registers who to wake when `conn` has something on that side.
    pub(crate) fn wait(&mut self, conn: ConnId, side: Side, cx: &mut Context<'_>) {
        if let Some(waiting) = self.conn(conn) {
            store(waiting.side(side), cx.waker());
        }
    }

    fn wake(&mut self, conn: ConnId, side: Side) {
        if let Some(waker) = self.conn(conn).and_then(|waiting| waiting.side(side).take()) {
            waker.wake();
        }
    }

    /// Whether an active open has succeeded.
    pub(crate) fn is_connected(&mut self, conn: ConnId) -> bool {
        self.conn(conn).is_some_and(|waiting| waiting.connected)
    }

    /// Why the flow is over, if it ended badly.
    pub(crate) fn error(&mut self, conn: ConnId) -> Option<Error> {
        self.conn(conn).and_then(|waiting| waiting.error)
    }

    /// The application lets go: the stack finishes in the background, or resets if data was left unread.
    pub(crate) fn close(&mut self, conn: ConnId) {
        if self.forget(conn) {
            self.stack.close(now(), conn);
            self.wake_driver();
        }
    }

    /// The application gives up: the peer gets a reset.
    pub(crate) fn abort(&mut self, conn: ConnId) {
        if self.forget(conn) {
            self.stack.abort(now(), conn);
            self.wake_driver();
        }
    }

    fn forget(&mut self, conn: ConnId) -> bool {
        let Some(waiting) = self.conn(conn) else { return false };
        *waiting = Conn::default();
        true
    }

    /// The stack has something to send, or a timer moved.
    pub(crate) fn wake_driver(&mut self) {
        if !self.dirty {
            self.dirty = true;
            if let Some(driver) = self.driver.take() {
                driver.wake();
            }
        }
    }

    /// Whether [`Self::wake_driver`] was called since the last time; if not, it will wake `cx`.
    pub(crate) fn poll_dirty(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.dirty) {
            return Poll::Ready(());
        }
        store(&mut self.driver, cx.waker());
        Poll::Pending
    }

    /// A turn of the driver covers all that was marked so far.
    pub(crate) fn clear_dirty(&mut self) {
        self.dirty = false;
    }
}

/// The two sides of a connection, each waited for by at most one task.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Side {
    /// Reading, or the end of the flow.
    Reader,
    /// Connecting, writing, or the acknowledgement of the FIN.
    Writer,
}

impl Conn {
    fn side(&mut self, side: Side) -> &mut Option<Waker> {
        match side {
            Side::Reader => &mut self.reader,
            Side::Writer => &mut self.writer,
        }
    }
}

fn store(slot: &mut Option<Waker>, waker: &Waker) {
    match slot {
        Some(stored) => stored.clone_from(waker),
        None => *slot = Some(waker.clone()),
    }
}

/// The stack's time.
pub(crate) fn now() -> Instant {
    Instant(monotonic_ns())
}

/// The error a kernel socket would report.
pub(crate) fn io_error(error: Error) -> io::Error {
    let kind = match error {
        Error::WouldBlock => io::ErrorKind::WouldBlock,
        Error::Reset => io::ErrorKind::ConnectionReset,
        Error::Refused => io::ErrorKind::ConnectionRefused,
        Error::TimedOut | Error::Unread => io::ErrorKind::TimedOut,
        Error::Unreachable => io::ErrorKind::HostUnreachable,
        Error::NotWritable => io::ErrorKind::BrokenPipe,
        Error::Aborted => io::ErrorKind::ConnectionAborted,
        Error::NoSuchConnection => io::ErrorKind::NotConnected,
        Error::AddressInUse => io::ErrorKind::AddrInUse,
        Error::TableFull => io::ErrorKind::OutOfMemory,
    };
    io::Error::new(kind, error)
}
