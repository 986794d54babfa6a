//! Micro-benchmarks for developers: the stack's paths, its timer wheel and its tables, one by one and in the cache.
//! Beside a million connections is what `cargo xtask bench stack` measures.

#[expect(dead_code, reason = "the larger benchmark uses all of it")]
#[path = "../examples/stack-bench/peer.rs"]
mod peer;

use std::hint::black_box;
use std::time::Duration;

use divan::Bencher;
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;
use tcpguard_stack::measure::{HalfOpenQueue, TimeWaitTable, TimerWheel};
use tcpguard_stack::{Config, ConnId, Event, Received, Stack};

use peer::{DATA, FRAME, ISN, START, Segment, cookie, flow, stack, write};

const NETWORK: u8 = 10;
const TIME_WAIT: Duration = Duration::from_secs(60);

fn main() {
    divan::main();
}

/// A stack with one connection.
struct Pair {
    stack: Stack,
    id: ConnId,
    segment: Segment,
}

impl Pair {
    fn new() -> Self {
        let mut stack = stack(Config { max_connections: 8, max_time_wait: 8, ..Config::default() });
        let (key, mut frame) = (flow(NETWORK, 1), Vec::new());
        let cookie = cookie(&key);
        let echo = cookie.tsval.unwrap_or(0);
        let segment = Segment { flags: Flags::ACK, seq: ISN + 1, ack: Seq(cookie.isn) + 1, echo };
        write(&key, segment, &[], &mut frame);
        assert_eq!(stack.handle_frame(START, &frame), Received::Consumed);
        let mut events = std::iter::from_fn(|| stack.poll_event());
        let incoming = events.find_map(|event| match event {
            Event::Incoming { conn, .. } => Some(conn),
            _ => None,
        });
        Self { id: incoming.expect("the cookie is ours"), stack, segment }
    }

    fn transmit(&mut self) {
        let mut out = [0; FRAME];
        while self.stack.poll_transmit(START, &mut out).is_some() {}
    }
}

#[divan::bench]
fn segment_data_in(bencher: Bencher<'_, '_>) {
    let (mut pair, mut frame, mut read) = (Pair::new(), Vec::new(), vec![0; 4096]);
    let (key, data) = (flow(NETWORK, 1), [0x5a; DATA]);
    bencher.bench_local(|| {
        write(&key, pair.segment, &data, &mut frame);
        pair.segment.seq += DATA as u32;
        pair.stack.handle_frame(START, black_box(&frame));
        while pair.stack.poll_event().is_some() {}
        assert_eq!(pair.stack.recv(START, pair.id, &mut read), Ok(DATA));
        pair.transmit();
    });
}

#[divan::bench]
fn segment_sent_and_acknowledged(bencher: Bencher<'_, '_>) {
    let (mut pair, mut frame) = (Pair::new(), Vec::new());
    let (key, data) = (flow(NETWORK, 1), [0x5a; DATA]);
    bencher.bench_local(|| {
        assert_eq!(pair.stack.send(START, pair.id, &data), Ok(DATA));
        pair.transmit();
        pair.segment.ack += DATA as u32;
        write(&key, pair.segment, &[], &mut frame);
        pair.stack.handle_frame(START, black_box(&frame));
        while pair.stack.poll_event().is_some() {}
    });
    assert_eq!(pair.stack.buffered_bytes(), 0, "something was not acknowledged");
}

#[divan::bench]
fn adoption(bencher: Bencher<'_, '_>) {
    let mut stack = stack(Config { max_connections: 8, max_time_wait: 8, ..Config::default() });
    let (mut number, mut frame) = (0, Vec::new());
    bencher.bench_local(|| {
        number += 1;
        let key = flow(NETWORK, number);
        let cookie = cookie(&key);
        let echo = cookie.tsval.unwrap_or(0);
        let segment = Segment { flags: Flags::ACK, seq: ISN + 1, ack: Seq(cookie.isn) + 1, echo };
        write(&key, segment, &[], &mut frame);
        stack.handle_frame(START, &frame);
        while let Some(event) = stack.poll_event() {
            if let Event::Incoming { conn, service, .. } = event {
                stack.accepted(service);
                stack.abort(START, conn);
            }
        }
        let mut out = [0; FRAME];
        while stack.poll_transmit(START, &mut out).is_some() {}
    });
    assert_eq!(stack.connection_count(), 0, "a connection was not ended");
}

#[divan::bench]
fn wheel_arm_and_fire(bencher: Bencher<'_, '_>) {
    let (mut wheel, mut now) = (TimerWheel::new(START), START);
    bencher.bench_local(|| {
        now += Duration::from_millis(10);
        wheel.arm(black_box(3), now + Duration::from_millis(5));
        now += Duration::from_millis(10);
        wheel.pop_due(now)
    });
}

#[divan::bench]
fn half_open_insert_and_complete(bencher: Bencher<'_, '_>) {
    let mut queue = HalfOpenQueue::new(1 << 16);
    let mut number = 0;
    bencher.bench_local(|| {
        number += 1;
        let key = AnyFlowKey::V4(flow(NETWORK, number));
        assert!(!queue.insert(&key, START), "there was room");
        assert!(queue.remove(black_box(&key)), "it was not inserted");
    });
}

/// As under a flood: every SYN pushes an older one out.
#[divan::bench]
fn half_open_insert_when_full(bencher: Bencher<'_, '_>) {
    const LIMIT: u32 = 1 << 14;
    let mut queue = HalfOpenQueue::new(LIMIT);
    let mut number = 0;
    let mut insert = || {
        number += 1;
        queue.insert(black_box(&AnyFlowKey::V4(flow(NETWORK, number))), START)
    };
    let evicted = (0..4 * LIMIT).filter(|_| insert()).count();
    assert!(evicted > 0, "it is never full");
    bencher.bench_local(insert);
}

#[divan::bench]
fn time_wait_insert_and_look_up(bencher: Bencher<'_, '_>) {
    let mut table = TimeWaitTable::new(1 << 16);
    let mut number = 0;
    bencher.bench_local(|| {
        number = (number + 1) & 0x7fff;
        let key = AnyFlowKey::V4(flow(NETWORK, number));
        table.insert(&key, START);
        assert!(table.contains(black_box(&key), START, TIME_WAIT), "it was not inserted");
    });
}
