//! A segment of a connection at work costs no allocation, in whatever direction it goes: everything has its size by then. Only one
//! that rests gives back what it works with, and takes it again.

#[expect(dead_code, reason = "the benchmark's clients, of which this needs a part")]
#[path = "../examples/stack-bench/peer.rs"]
mod peer;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peer::{BURST, DATA, FRAME, ISN, START, Segment, cookie, flow, stack, write};
use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;
use tcpguard_stack::{Config, ConnId, Error, Event, Instant, Stack};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
static CALLS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is the system allocator's; here it is only counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// A client whose connection is open, and the numbers that it goes on with.
struct Client {
    number: u32,
    id: ConnId,
    next: Segment,
}

/// As many clients as a burst has segments, and their stack.
struct Hall {
    stack: Stack,
    now: Instant,
    clients: Vec<Client>,
    frame: Vec<u8>,
    /// Bytes of the pool's that what is always on its way takes.
    held: usize,
}

impl Hall {
    fn open() -> Self {
        let mut hall = Self {
            stack: stack(Config::default()),
            now: START,
            clients: Vec::new(),
            frame: Vec::with_capacity(FRAME),
            held: 0,
        };
        for number in 0..BURST as u32 {
            let (key, isn) = (flow(10, number), cookie(&flow(10, number)));
            let next = Segment {
                flags: Flags::ACK,
                seq: ISN + 1,
                ack: Seq(isn.isn) + 1,
                echo: isn.tsval.unwrap_or(0),
            };
            write(&key, next, &[], &mut hall.frame);
            hall.stack.handle_frame(hall.now, &hall.frame);
            let id = hall.incoming();
            assert_eq!(hall.stack.recv(hall.now, id, &mut [0]), Err(Error::WouldBlock));
            // One segment is always on its way, so that no connection ever rests.
            assert_eq!(hall.stack.send(hall.now, id, &[0x5a; DATA]), Ok(DATA));
            hall.clients.push(Client { number, id, next });
        }
        hall.leave();
        hall.held = hall.stack.buffered_bytes();
        hall
    }

    fn incoming(&mut self) -> ConnId {
        loop {
            if let Event::Incoming { conn, service, .. } = self.stack.poll_event().expect("a valid cookie") {
                self.stack.accepted(service);
                return conn;
            }
        }
    }

    /// Each client sends a full segment, which is read, and is sent one, and acknowledges the one before.
    fn turn(&mut self) {
        let (data, mut read) = ([0x5a; DATA], [0; 2 * DATA]);
        self.now += Duration::from_micros(100);
        for client in &mut self.clients {
            let key = flow(10, client.number);
            write(&key, Segment { flags: Flags::ACK | Flags::PSH, ..client.next }, &data, &mut self.frame);
            self.stack.handle_frame(self.now, &self.frame);
            assert_eq!(self.stack.recv(self.now, client.id, &mut read), Ok(DATA));
            assert_eq!(self.stack.recv(self.now, client.id, &mut read), Err(Error::WouldBlock));
            assert_eq!(self.stack.send(self.now, client.id, &data), Ok(DATA));
        }
        self.leave();
        for client in &mut self.clients {
            (client.next.seq, client.next.ack) =
                (client.next.seq + DATA as u32, client.next.ack + DATA as u32);
            write(&flow(10, client.number), client.next, &[], &mut self.frame);
            self.stack.handle_frame(self.now, &self.frame);
        }
        self.leave();
        // A segment may lie in two pieces of the pool's.
        assert!(self.stack.buffered_bytes() <= 2 * self.held, "something was not acknowledged, or not read");
    }

    fn leave(&mut self) {
        while self.stack.poll_event().is_some() {}
        if self.stack.poll_timeout().is_some_and(|due| due <= self.now) {
            self.stack.handle_timeout(self.now);
        }
        let mut frame = [0; FRAME];
        while self.stack.poll_transmit(self.now, &mut frame).is_some() {}
    }
}

#[test]
fn segments_of_connections_at_work_allocate_nothing() {
    let mut hall = Hall::open();
    // Pools and queues get their size, also those of timers far ahead.
    (0..5000).for_each(|_| hall.turn());
    let (before, handled) = (CALLS.load(Ordering::Relaxed), hall.stack.counters().segments_in);
    (0..5000).for_each(|_| hall.turn());
    assert_eq!(hall.stack.counters().segments_in - handled, 2 * 5000 * BURST as u64);
    assert_eq!(CALLS.load(Ordering::Relaxed) - before, 0, "allocations in steady state");
}
