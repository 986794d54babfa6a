//! A segment costs no allocation, in whatever direction it goes: everything has its size by then. What a connection works with
//! and gives back when it comes to rest is there for the next one that wakes.

#[expect(dead_code, reason = "the benchmark's clients, of which this needs a part")]
#[path = "../examples/stack-bench/peer.rs"]
mod peer;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use peer::{BURST, DATA, FRAME, ISN, START, Segment, cookie, flow, stack, write};
use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;
use tcpguard_stack::{Config, ConnId, Error, Event, Instant, Stack};

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    /// Of this thread alone: each test has one.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's; here it is only counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
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
    /// Clients that are kept at work, or that have nothing on its way in either direction yet.
    fn open(at_work: bool) -> Self {
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
            if at_work {
                // One segment is always on its way, so that no connection ever rests.
                assert_eq!(hall.stack.send(hall.now, id, &[0x5a; DATA]), Ok(DATA));
            }
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

    /// Each client asks, is answered, and acknowledges the answer: then its connection rests.
    fn ask(&mut self) {
        const QUESTION: usize = 100;
        let mut read = [0; 2 * QUESTION];
        self.now += Duration::from_micros(100);
        for client in &mut self.clients {
            let question = Segment { flags: Flags::ACK | Flags::PSH, ..client.next };
            write(&flow(10, client.number), question, &[0x5a; QUESTION], &mut self.frame);
            self.stack.handle_frame(self.now, &self.frame);
            assert_eq!(self.stack.recv(self.now, client.id, &mut read), Ok(QUESTION));
            assert_eq!(self.stack.recv(self.now, client.id, &mut read), Err(Error::WouldBlock));
            assert_eq!(self.stack.send(self.now, client.id, &[0x5a; DATA]), Ok(DATA));
            client.next.seq += QUESTION as u32;
            client.next.ack += DATA as u32;
        }
        self.leave();
        for client in &self.clients {
            write(&flow(10, client.number), client.next, &[], &mut self.frame);
            self.stack.handle_frame(self.now, &self.frame);
        }
        self.leave();
        assert_eq!(self.stack.buffered_bytes(), 0, "somebody does not rest");
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

/// Allocations of so many rounds, once pools and queues have their size, also those of timers far ahead. In each round every
/// client sends two segments.
fn allocations(mut hall: Hall, rounds: usize, round: impl Fn(&mut Hall)) -> u64 {
    (0..5000).for_each(|_| round(&mut hall));
    let (before, handled) = (CALLS.get(), hall.stack.counters().segments_in);
    (0..rounds).for_each(|_| round(&mut hall));
    assert_eq!(hall.stack.counters().segments_in - handled, (2 * rounds * BURST) as u64);
    CALLS.get() - before
}

#[test]
fn segments_of_connections_at_work_allocate_nothing() {
    assert_eq!(allocations(Hall::open(true), 5000, Hall::turn), 0);
}

/// Each used to take what it works with from the allocator for every question.
#[test]
fn questions_to_connections_that_rest_and_their_answers_allocate_nothing() {
    assert_eq!(allocations(Hall::open(false), 2000, Hall::ask), 0);
}
