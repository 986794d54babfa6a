//! What a request on a connection that is kept alive costs its engine in allocations: where its frames come in, also by way of
//! another engine, in the relay to a backend behind a kernel socket or to a responder, and where its answer leaves.

#[expect(dead_code, reason = "the benchmark's clients, of which this needs a part")]
#[path = "../../stack/examples/stack-bench/peer.rs"]
mod peer;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use peer::{FRAME, ISN, Segment, cookie, flow, keys, write};
use tcpguard::config::{Service, Tunables};
use tcpguard::engine::{
    EngineConfig, EngineHandle, Exchange, FramePort, Net, NoTables, Placement, RingCounters, spawn, tap,
};
use tcpguard::service::{ServiceSpec, Services};
use tcpguard_common::flow::{FlowKey, V4};
use tcpguard_common::map::Flow;
use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
/// Which run of the daemon this is.
const GENERATION: u32 = 1;
/// Allocations of threads that are counted.
static CALLS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: everything is the system allocator's; here it is only counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_COUNTED.get() {
            CALLS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// The link between a client and the engine.
struct Wire {
    arriving: VecDeque<Vec<u8>>,
    leaving: VecDeque<([u8; FRAME], usize)>,
    engine: Option<Waker>,
}

impl Wire {
    /// One with room for more than is ever on its way: who sends allocates nothing.
    fn new() -> Arc<Mutex<Self>> {
        let (arriving, leaving) = (VecDeque::with_capacity(256), VecDeque::with_capacity(256));
        Arc::new(Mutex::new(Self { arriving, leaving, engine: None }))
    }
}

/// The engine's end of it.
struct Port(Arc<Mutex<Wire>>);

impl Port {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl FramePort for Port {
    fn receive(&mut self, budget: usize, mut take: impl FnMut(&[&[u8]])) -> usize {
        let mut received = 0;
        while received < budget {
            let Some(frame) = self.wire().arriving.pop_front() else { break };
            take(&[&frame]);
            received += 1;
        }
        received
    }

    fn is_under_pressure(&self) -> bool {
        false
    }

    fn lost(&self) -> u64 {
        0
    }

    fn transmit(&mut self, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let (mut frame, mut sent) = ([0; FRAME], 0);
        while let Some(len) = fill(&mut frame) {
            self.wire().leaving.push_back((frame, len));
            sent += 1;
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
        let mut wire = self.wire();
        if wire.arriving.is_empty() {
            wire.engine = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

/// A client that keeps its connection.
struct Client {
    /// Where its segments arrive, and where its answers leave.
    there: Arc<Mutex<Wire>>,
    back: Arc<Mutex<Wire>>,
    flow: FlowKey<V4>,
    next: Segment,
}

impl Client {
    /// The client with a number, whose cookie has just come back.
    fn open(there: &Arc<Mutex<Wire>>, back: &Arc<Mutex<Wire>>, number: u32) -> Self {
        let flow = flow(10, number);
        let isn = cookie(&flow);
        let next =
            Segment { flags: Flags::ACK, seq: ISN + 1, ack: Seq(isn.isn) + 1, echo: isn.tsval.unwrap_or(0) };
        let client = Self { there: Arc::clone(there), back: Arc::clone(back), flow, next };
        client.send(Flags::ACK, &[]);
        client
    }

    fn send(&self, flags: Flags, data: &[u8]) {
        let mut frame = Vec::new();
        write(&self.flow, Segment { flags, ..self.next }, data, &mut frame);
        let mut wire = self.there.lock().expect("nobody panics with it");
        wire.arriving.push_back(frame);
        if let Some(engine) = wire.engine.take() {
            engine.wake();
        }
    }

    /// Asks, waits for an answer that ends its line, and acknowledges it.
    fn ask(&mut self, question: &[u8]) {
        let since = Instant::now();
        self.send(Flags::ACK | Flags::PSH, question);
        self.next.seq += question.len() as u32;
        while !self.hear() {
            assert!(since.elapsed() < Duration::from_secs(10), "no answer");
            thread::yield_now();
        }
        self.send(Flags::ACK, &[]);
    }

    /// Takes what has come; whether that ends a line.
    fn hear(&mut self) -> bool {
        let mut ends = false;
        while let Some((frame, len)) = self.back.lock().expect("nobody panics with it").leaving.pop_front() {
            let (seq, data) = data_of(&frame[..len]);
            // Something may come twice.
            if seq == self.next.ack && !data.is_empty() {
                self.next.ack += data.len() as u32;
                ends |= data.ends_with(b"\n");
            }
        }
        ends
    }
}

/// The sequence number and the data of a segment over IPv4.
fn data_of(frame: &[u8]) -> (Seq, &[u8]) {
    const IP: usize = 14;
    const TCP: usize = IP + 20;
    let end = IP + usize::from(u16::from_be_bytes([frame[IP + 2], frame[IP + 3]]));
    let seq = u32::from_be_bytes(frame[TCP + 4..TCP + 8].try_into().expect("four bytes"));
    let start = TCP + 4 * usize::from(frame[TCP + 12] >> 4);
    (Seq(seq), &frame[start..end])
}

/// Sends back what each connection sends, on a thread of its own.
fn echo(backend: TcpListener) {
    thread::spawn(move || {
        for stream in backend.incoming() {
            let mut stream = stream.expect("a connection");
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(read @ 1..) = stream.read(&mut buffer) {
                    stream.write_all(&buffer[..read]).expect("writing");
                }
            });
        }
    });
}

/// Starts an engine whose thread is counted.
fn start(engine: u32, exchange: &Exchange, wire: &Arc<Mutex<Wire>>, services: &Services) -> EngineHandle {
    let (epochs, clock) = keys();
    let config = EngineConfig {
        name: "counted".to_owned(),
        engine,
        generation: GENERATION,
        local_mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        listen: services.listen(),
        tunables: Arc::new(Tunables::default()),
        service_tunables: Arc::default(),
        epochs,
        clock,
        strictness: Arc::default(),
        seed: 1,
        exchange: exchange.clone(),
        placement: Placement::default(),
        tap: tap().0,
    };
    let (port, services) = (Port(Arc::clone(wire)), services.clone());
    let start = move |net: &Net| {
        IS_COUNTED.set(true);
        services.start(net)
    };
    // Whoever asks, every flow is the first's.
    let flow = Flow { owner: 0, generation: GENERATION, ..Flow::default() };
    spawn(config, NoTables { flow: Some(flow) }, || Ok(port), start).expect("an engine").start()
}

/// What engines allocate in 2000 requests to a service at least, once they had as many. The frames arrive at the last of them, and the
/// first has the connections.
fn allocations(service: &str, engines: u32) -> u64 {
    const CLIENTS: u32 = 4;
    const REQUESTS: usize = 500;
    let service: Service = service.parse().expect("a service");
    let destination = service.destination.clone().expect("a destination");
    let services = Services::new(ServiceSpec::new(0, &service, &destination, None));
    let exchange = Exchange::new(engines as usize);
    let (wires, handles): (Vec<_>, Vec<_>) = (0..engines)
        .map(|engine| {
            let wire = Wire::new();
            let handle = start(engine, &exchange, &wire, &services);
            (wire, handle)
        })
        .unzip();
    let (first, last) = (&wires[0], &wires[wires.len() - 1]);
    let mut clients: Vec<_> = (0..CLIENTS).map(|number| Client::open(last, first, number)).collect();
    let mut ask = || {
        for _ in 0..REQUESTS {
            clients.iter_mut().for_each(|client| client.ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"));
        }
    };
    let mut round = || {
        let before = CALLS.load(Ordering::Relaxed);
        ask();
        CALLS.load(Ordering::Relaxed) - before
    };
    round();
    // A pool may have grown because more was on its way at once than ever before. What a request allocates comes in every round.
    let mut allocated = round();
    for _ in 0..4 {
        allocated = allocated.min(round());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    for handle in handles {
        runtime.block_on(handle.stop());
    }
    // Without them nobody would have been served.
    drop(services);
    allocated
}

#[test]
fn a_request_on_a_connection_that_is_kept_alive_allocates_nothing_on_its_engine() {
    let backend = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let relayed = format!("0.0.0.0:80={}", backend.local_addr().expect("an address"));
    echo(backend);
    assert_eq!(allocations(&relayed, 1), 0, "through a backend");
    assert_eq!(allocations("0.0.0.0:80=respond:http", 1), 0, "by a responder");
}

#[test]
fn frames_for_another_engine_allocate_nothing_on_either() {
    assert_eq!(allocations("0.0.0.0:80=respond:http", 2), 0);
}
