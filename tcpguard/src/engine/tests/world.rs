//! A network in memory for engine tests: one client host, and a guarded host whose XDP is the real decision over maps in
//! memory. Frames can be lost and steered to any of the guarded host's engines.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tcpguard_common::cookie::{Advertised, Clock, Epochs};
use tcpguard_common::decision::admission::{Census, Counted};
use tcpguard_common::decision::budget::Ledger;
use tcpguard_common::decision::filter::{Rules, Spans};
use tcpguard_common::decision::{Env, Insertion, Tables, Verdict, decide};
use tcpguard_common::filter::{FilterRule, Head, Point};
use tcpguard_common::fingerprint::{WAYS, fingerprint};
use tcpguard_common::flow::{Address, AnyFlowKey, FlowKey, V4, V6};
use tcpguard_common::known::{self, Presence};
use tcpguard_common::map::{
    ABI_VERSION, EPOCH_SLOTS, EpochSlot, Flow, Interface, Limits, MODE_COOKIE, MODE_STATEFUL, PLACE_SHARED,
    Service, ServiceKey, ServicePlace, Settings, heartbeat, is_under_pressure,
};
use tcpguard_common::packet::build::Headers;
use tcpguard_common::packet::{Buffer, Ethernet, Flags, Options};
use tcpguard_common::reason::Reason;
use tcpguard_common::seq::Seq;
use tcpguard_common::sketch::{Rate, Sketch};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_local};

use super::super::handle::COMMANDS;
use super::super::{
    EngineConfig, EngineHandle, Exchange, FramePort, Listen, Net, NoTables, Placement, RingCounters,
    SharedTables, TcpListener, TcpStream, assemble, tap,
};
use super::router::{TOO_BIG_V4, complaint};
use crate::config::Tunables;
use crate::dataplane::{coarse_clock_ns, monotonic_ns};
use crate::stack::Link;

pub(crate) const GUARD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The protected port and its service.
pub(crate) const PORT: u16 = 80;
pub(crate) const SERVICE: u32 = 7;
/// Frames a queue holds; what comes beyond is lost.
const QUEUE: usize = 8192;
const FRAME: usize = 2048;

#[derive(Default)]
struct Queue {
    frames: RefCell<VecDeque<Vec<u8>>>,
    waker: RefCell<Option<Waker>>,
}

impl Queue {
    fn push(&self, frame: Vec<u8>) {
        if self.frames.borrow().len() < QUEUE {
            self.frames.borrow_mut().push_back(frame);
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The guarded host's kernel side, and the wire.
pub(crate) struct World {
    settings: Cell<&'static Settings>,
    epochs: [EpochSlot; EPOCH_SLOTS as usize],
    interface: Interface,
    pub(crate) flows: RefCell<HashMap<AnyFlowKey, Flow>>,
    pub(crate) fingerprints: RefCell<HashMap<u32, [u32; WAYS as usize]>>,
    heartbeats: RefCell<HashMap<u32, u64>>,
    /// Whether the engine is to remember SYNs.
    pub(crate) stateful: Cell<bool>,
    remembered: Cell<u64>,
    paces: Box<Sketch>,
    pub(crate) counts: RefCell<HashMap<Reason, u64>>,
    queues: Vec<Queue>,
    client: Queue,
    /// Which queue the next frames arrive at.
    pub(crate) steer: Cell<u32>,
    /// Frames XDP redirects that will find no room, and how many did not.
    pub(crate) lose: Cell<u32>,
    lost: Cell<u64>,
    /// Frames of the engines that are lost before the client sees them.
    pub(crate) lose_sent: Cell<u32>,
    /// The longest packet of the engines that reaches the client; a router complains about longer ones.
    pub(crate) narrow: Cell<usize>,
    /// Entries XDP makes that are gone before an engine looks for them.
    pub(crate) forget: Cell<u32>,
    /// Whether the flow table can only be asked for single entries.
    pub(crate) unreadable: Cell<bool>,
    /// Entries that a walk meets before those of [`Self::flows`]: of another engine's.
    pub(crate) crowd: Cell<u32>,
    /// Whether there is little room left in the flow table.
    pub(crate) crowded: Cell<bool>,
    /// Flows that XDP was made to see at first glance.
    pub(crate) shown: RefCell<HashSet<AnyFlowKey>>,
    /// What is done whenever an engine looks at its ring.
    pub(crate) at_poll: RefCell<Option<Box<dyn FnMut()>>>,
}

const HASH_KEY: [u64; 2] = [11, 12];
/// Segments that a flow may send at once under pressure.
pub(crate) const PACE_BURST: u32 = 100;

fn clock() -> Clock {
    Clock { epoch: 100, second_half: false, extra: 0 }
}

fn settings(generation: u32) -> &'static Settings {
    Box::leak(Box::new(Settings {
        abi: ABI_VERSION,
        generation,
        epoch: clock().epoch,
        stale_after: 1_000_000_000,
        exit_grace: 3_000_000_000,
        hash_key: HASH_KEY,
        limits: Limits {
            flows: Rate::new(100, PACE_BURST, 1),
            stateful: Rate::new(100, 100, 1),
            ..Limits::default()
        },
        ..Settings::default()
    }))
}

impl World {
    /// A guarded host with so many engines.
    pub(crate) fn new(engines: u32) -> Rc<Self> {
        let advertised = Advertised { mss_v4: 1460, mss_v6: 1440, window: 65535, window_scale: 7 };
        let mut epochs = [EpochSlot::default(); EPOCH_SLOTS as usize];
        for epoch in 99..=101 {
            epochs[(epoch % EPOCH_SLOTS) as usize] = EpochSlot::derive([1, 2], epoch, &advertised).unwrap();
        }
        Rc::new(Self {
            settings: Cell::new(settings(1)),
            epochs,
            interface: Interface { mac: GUARD_MAC, armed: 1, queues: engines, ifindex: 1 },
            flows: RefCell::default(),
            fingerprints: RefCell::default(),
            heartbeats: RefCell::default(),
            stateful: Cell::new(false),
            remembered: Cell::default(),
            paces: Box::default(),
            counts: RefCell::default(),
            queues: (0..engines).map(|_| Queue::default()).collect(),
            client: Queue::default(),
            steer: Cell::new(0),
            lose: Cell::new(0),
            lost: Cell::new(0),
            lose_sent: Cell::new(0),
            narrow: Cell::new(usize::MAX),
            forget: Cell::new(0),
            unreadable: Cell::new(false),
            crowd: Cell::new(0),
            crowded: Cell::new(false),
            shown: RefCell::default(),
            at_poll: RefCell::default(),
        })
    }

    /// A new daemon run begins: flows inserted from now on are its own.
    pub(crate) fn next_generation(&self) {
        self.settings.set(settings(self.settings.get().generation + 1));
    }

    pub(crate) fn count(&self, reason: Reason) -> u64 {
        self.counts.borrow().get(&reason).copied().unwrap_or(0)
    }

    /// XDP's maps as an engine sees them.
    pub(crate) fn tables(self: &Rc<Self>) -> MemoryTables {
        MemoryTables { world: Rc::clone(self), passed: 0 }
    }

    /// A frame from the client reaches the guarded host's interface.
    pub(crate) fn arrive(self: &Rc<Self>, mut frame: Vec<u8>) {
        let len = frame.len();
        frame.resize(len + 64, 0);
        let mut buffer = Buffer::new(&mut frame, len);
        let queue = Queued { world: self, queue: self.steer.get() };
        match decide(&mut buffer, &queue) {
            Verdict::Pass => panic!("a frame passed to the host"),
            Verdict::Drop => {}
            Verdict::Transmit => self.client.push(buffer.frame().to_vec()),
            Verdict::Redirect(_) if self.lose.get() > 0 => {
                self.lose.set(self.lose.get() - 1);
                self.lost.set(self.lost.get() + 1);
            }
            Verdict::Redirect(engine) => self.queues[engine as usize].push(buffer.frame().to_vec()),
        }
    }

    /// An acknowledgment of nothing, from the client's `port`.
    pub(crate) fn segment_of(port: u16) -> Vec<u8> {
        let headers = Headers {
            link: Link { dst: GUARD_MAC, src: CLIENT_MAC, ..Link::default() },
            src: V4([10, 0, 0, 2]),
            dst: V4([10, 0, 0, 1]),
            ecn: 0,
            src_port: port.to_be_bytes(),
            dst_port: PORT.to_be_bytes(),
            seq: Seq(1),
            ack: Seq(1),
            flags: Flags::ACK,
            window: 0,
            options: Options::default(),
        };
        let mut frame = vec![0; headers.len()];
        let len = frame.len();
        headers.write(&mut Buffer::new(&mut frame, len), 0, 0).unwrap();
        frame
    }

    /// Whether an engine last said that its receive ring is under pressure.
    pub(crate) fn is_under_pressure(&self, engine: u32) -> bool {
        is_under_pressure(self.heartbeats.borrow()[&engine])
    }

    /// An engine on one of the guarded host's queues.
    pub(crate) fn guard(self: &Rc<Self>, queue: u32, exchange: Exchange, tunables: Tunables) -> Host {
        let port = MemoryPort { world: Rc::clone(self), place: Place::Guard(queue) };
        let listen = vec![Listen { addr: None, port: PORT, service: SERVICE }];
        self.host(queue, port, self.tables(), listen, exchange, tunables)
    }

    /// The client's host, which is no guarded one.
    pub(crate) fn client(self: &Rc<Self>) -> Host {
        let port = MemoryPort { world: Rc::clone(self), place: Place::Client };
        self.host(0, port, NoTables { flow: None }, Vec::new(), Exchange::new(1), Tunables::default())
    }

    fn host<P: FramePort + 'static, T: SharedTables + 'static>(
        &self,
        engine: u32,
        port: P,
        tables: T,
        listen: Vec<Listen>,
        exchange: Exchange,
        tunables: Tunables,
    ) -> Host {
        let config = EngineConfig {
            name: "test".to_owned(),
            engine,
            generation: self.settings.get().generation,
            // The client listens nowhere.
            local_mac: if listen.is_empty() { CLIENT_MAC } else { GUARD_MAC },
            mtu: 1500,
            listen,
            tunables: Arc::new(tunables),
            service_tunables: Arc::default(),
            epochs: self.epochs,
            clock: clock(),
            strictness: Arc::default(),
            seed: monotonic_ns(),
            exchange,
            placement: Placement::default(),
            tap: tap().0,
        };
        let (commands, orders) = mpsc::channel(COMMANDS);
        let (_, end) = watch::channel(None);
        let (net, driver) = assemble(&config, port, tables, orders, Arc::default());
        let task = spawn_local(async move { driver.run().await.unwrap() });
        let handle = EngineHandle { engine, commands, end, thread: Arc::default() };
        Host { net, handle, task, next_port: Cell::new(40_000) }
    }
}

/// One engine of either host.
pub(crate) struct Host {
    pub(crate) net: Net,
    pub(crate) handle: EngineHandle,
    pub(crate) task: JoinHandle<()>,
    next_port: Cell<u16>,
}

impl Host {
    pub(crate) fn listen(&self) -> TcpListener {
        self.net.listen(SERVICE).unwrap()
    }

    /// Connects to the protected port from a port of its own.
    pub(crate) async fn connect(&self) -> TcpStream {
        let port = self.next_port.get();
        self.next_port.set(port + 1);
        self.connect_from(port).await.unwrap()
    }

    pub(crate) async fn connect_from(&self, port: u16) -> io::Result<TcpStream> {
        let local = SocketAddr::from(([10, 0, 0, 2], port));
        let link = Link { dst: GUARD_MAC, src: CLIENT_MAC, ..Link::default() };
        self.net.connect(local, SocketAddr::from(([10, 0, 0, 1], PORT)), link).await
    }
}

enum Place {
    Client,
    Guard(u32),
}

struct MemoryPort {
    world: Rc<World>,
    place: Place,
}

impl MemoryPort {
    fn queue(&self) -> &Queue {
        match self.place {
            Place::Client => &self.world.client,
            Place::Guard(queue) => &self.world.queues[queue as usize],
        }
    }
}

impl FramePort for MemoryPort {
    fn receive(&mut self, budget: usize, mut take: impl FnMut(&[&[u8]])) -> usize {
        if let (Place::Guard(_), Some(look)) = (&self.place, &mut *self.world.at_poll.borrow_mut()) {
            look();
        }
        let mut received = 0;
        while received < budget {
            let Some(frame) = self.queue().frames.borrow_mut().pop_front() else { break };
            take(&[&frame]);
            received += 1;
        }
        received
    }

    fn is_under_pressure(&self) -> bool {
        self.queue().frames.borrow().len() > QUEUE / 2
    }

    fn lost(&self) -> u64 {
        match self.place {
            Place::Client => 0,
            Place::Guard(_) => self.world.lost.get(),
        }
    }

    fn transmit(&mut self, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let mut sent = 0;
        let mut buffer = [0; FRAME];
        while let Some(len) = fill(&mut buffer) {
            sent += 1;
            let frame = buffer[..len].to_vec();
            match self.place {
                Place::Client => self.world.arrive(frame),
                Place::Guard(_) if self.world.lose_sent.get() > 0 => {
                    self.world.lose_sent.set(self.world.lose_sent.get() - 1);
                }
                Place::Guard(_) if frame.len() - Ethernet::LEN > self.world.narrow.get() => {
                    self.world.arrive(complaint(&frame, TOO_BIG_V4, self.world.narrow.get() as u32));
                }
                Place::Guard(_) => self.world.client.push(frame),
            }
        }
        sent
    }

    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        Ok(())
    }

    fn counters(&self) -> RingCounters {
        RingCounters::default()
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.queue().frames.borrow().is_empty() {
            self.queue().waker.replace(Some(cx.waker().clone()));
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

pub(crate) struct MemoryTables {
    world: Rc<World>,
    /// Of the crowd, by the present walk.
    passed: u32,
}

/// Entries of the crowd in a slice of a walk.
const SLICE: u32 = 512;

fn place(key: &AnyFlowKey) -> (u32, u32) {
    match key {
        AnyFlowKey::V4(key) => fingerprint(HASH_KEY, key),
        AnyFlowKey::V6(key) => fingerprint(HASH_KEY, key),
    }
}

impl SharedTables for MemoryTables {
    fn lookup(&self, key: &AnyFlowKey) -> Option<Flow> {
        self.world.flows.borrow().get(key).copied()
    }

    fn insert(&self, key: &AnyFlowKey, flow: &Flow) -> bool {
        self.world.flows.borrow_mut().insert(*key, *flow);
        true
    }

    fn remove_batch(&self, keys: &[AnyFlowKey]) {
        let mut flows = self.world.flows.borrow_mut();
        keys.iter().for_each(|key| {
            flows.remove(key);
        });
    }

    fn remove_old(&self, keys: &[AnyFlowKey]) {
        self.remove_batch(keys);
    }

    fn is_crowded(&self) -> bool {
        self.world.crowded.get()
    }

    fn entries(&self) -> usize {
        self.world.flows.borrow().len() + self.world.crowd.get() as usize
    }

    fn scan(&mut self, found: &mut Vec<(AnyFlowKey, Flow)>) -> io::Result<bool> {
        if self.world.unreadable.get() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let crowd = self.world.crowd.get();
        if self.passed < crowd {
            let slice = self.passed..crowd.min(self.passed + SLICE);
            self.passed = slice.end;
            let generation = self.world.settings.get().generation;
            let flow = Flow { generation, owner: u32::MAX, ..Flow::default() };
            let key = |index| FlowKey {
                peer: V4(u32::to_be_bytes(index)),
                local: V4([10, 0, 0, 1]),
                peer_port: [0, 1],
                local_port: PORT.to_be_bytes(),
            };
            found.extend(slice.map(|index| (AnyFlowKey::V4(key(index)), flow)));
            return Ok(true);
        }
        self.passed = 0;
        found.extend(self.world.flows.borrow().iter().map(|(key, flow)| (*key, *flow)));
        Ok(false)
    }

    fn show(&self, key: &AnyFlowKey) {
        self.world.shown.borrow_mut().insert(*key);
    }

    fn set_fingerprint(&self, key: &AnyFlowKey) -> bool {
        let (bucket, word) = place(key);
        let before =
            std::mem::replace(&mut self.world.fingerprints.borrow_mut().entry(bucket).or_default()[0], word);
        before != 0 && before != word
    }

    fn clear_fingerprint(&self, key: &AnyFlowKey) {
        self.world.fingerprints.borrow_mut().remove(&place(key).0);
    }

    fn has_fingerprint(&self, key: &AnyFlowKey) -> bool {
        let (bucket, word) = place(key);
        self.world.fingerprints.borrow().get(&bucket).is_some_and(|words| words.contains(&word))
    }

    fn beat(&self, now: u64, under_pressure: bool) {
        // One daemon's engines all beat here; the index is not known, and no test needs it.
        for queue in 0..self.world.queues.len() as u32 {
            self.world.heartbeats.borrow_mut().insert(queue, heartbeat(now, under_pressure));
        }
    }
}

/// XDP on one receive queue.
struct Queued<'a> {
    world: &'a World,
    queue: u32,
}

impl Epochs for Queued<'_> {
    fn slot(&self, epoch: u32) -> Option<&EpochSlot> {
        self.world.epochs.slot(epoch)
    }
}

impl Rules for Queued<'_> {
    fn rule(&self, _: u32) -> Option<&FilterRule> {
        None
    }

    fn hit(&self, _: u32, _: u32) {}
}

macro_rules! tables {
    ($address:ty) => {
        impl Spans<$address> for Queued<'_> {
            fn head(&self, _: u32) -> Option<Head> {
                None
            }

            fn span(&self, _: u32) -> Option<&<$address as Point>::Span> {
                None
            }
        }

        impl Tables<$address> for Queued<'_> {
            fn place(&self, _: u32) -> Option<ServicePlace<$address>> {
                Some(ServicePlace { state: PLACE_SHARED, ..ServicePlace::EMPTY })
            }

            fn service(&self, _: &ServiceKey<$address>) -> Option<Service> {
                let mode = if self.world.stateful.get() { MODE_STATEFUL } else { MODE_COOKIE };
                Some(Service { id: SERVICE, mode, ..Service::default() })
            }

            fn knows_flow(&self, key: &FlowKey<$address>) -> bool {
                self.world.flows.borrow().contains_key(&<$address>::any_key(*key))
            }

            fn insert_flow(&self, key: &FlowKey<$address>, flow: &Flow) -> Insertion {
                match self.world.forget.get() {
                    0 => drop(self.world.flows.borrow_mut().insert(<$address>::any_key(*key), *flow)),
                    left => self.world.forget.set(left - 1),
                }
                Insertion::Inserted
            }
        }
    };
}
tables!(V4);
tables!(V6);

/// Only the pace of flows, and of SYNs that the engine is to remember, is limited here.
impl Ledger for Queued<'_> {
    fn replies(&self) -> Option<&Sketch> {
        None
    }

    fn stateful(&self, _: bool) -> Option<&Cell<u64>> {
        Some(&self.world.remembered)
    }

    fn verified(&self, _: u32) -> u64 {
        0
    }

    fn set_verified(&self, _: u32, _: u64) {}

    fn paces(&self) -> Option<&Sketch> {
        Some(&self.world.paces)
    }

    fn complaints(&self) -> Option<&Sketch> {
        None
    }
}

impl Census for Queued<'_> {
    fn arrivals(&self) -> Option<&Sketch> {
        None
    }

    fn open_flows(&self, _: Counted) -> u32 {
        0
    }

    fn flow_opened(&self, _: Counted) {}
}

impl Env for Queued<'_> {
    fn settings(&self) -> Option<&Settings> {
        Some(self.world.settings.get())
    }

    fn interface(&self) -> Option<&Interface> {
        Some(&self.world.interface)
    }

    fn ports(&self, _: u32) -> u64 {
        u64::MAX
    }

    fn presence(&self, _: known::Place) -> Presence {
        Presence::Unsure
    }

    fn enter(&self, _: known::Place) {}

    fn fingerprints(&self, place: u32) -> [u32; WAYS as usize] {
        self.world.fingerprints.borrow().get(&place).copied().unwrap_or_default()
    }

    fn queue(&self) -> u32 {
        self.queue
    }

    fn engine(&self, queue: u32) -> u32 {
        queue
    }

    fn heartbeat(&self, engine: u32) -> u64 {
        self.world.heartbeats.borrow().get(&engine).copied().unwrap_or(0)
    }

    fn has_socket(&self, _: u32) -> bool {
        true
    }

    fn now(&self) -> u64 {
        coarse_clock_ns()
    }

    fn count(&self, reason: Reason, _: u32, _: bool) {
        *self.world.counts.borrow_mut().entry(reason).or_default() += 1;
    }

    fn trace_arrival(&self, _: u32) {}

    fn trace_verdict(&self, _: Reason, _: bool, _: bool) {}
}

/// Waits until `condition` holds.
///
/// # Panics
/// After ten seconds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
