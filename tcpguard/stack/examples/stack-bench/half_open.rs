//! The half-open queue: SYNs answered by the stack, and what remembering each takes.

use std::time::{Duration, Instant as Wall};

use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;
use tcpguard_stack::Config;
use tcpguard_stack::measure::half_open_bytes;

use crate::Samples;
use crate::memory::{self, allocated};
use crate::peer::{BURST, FRAME, ISN, START, Segment, flow, stack, write};

/// First byte of the clients' addresses.
const NETWORK: u8 = 12;

/// Fills a queue with `count` entries in each round.
pub(crate) fn measure(count: u32, rounds: usize, samples: &mut Samples) {
    let config = Config { max_half_open: count, max_time_wait: 1, ..Config::default() };
    for round in 0..rounds {
        let before = allocated();
        let mut stack = stack(config.clone());
        if round == 0 {
            let names = ["bytes_half_open", "bytes_half_open_v6"];
            memory::push(samples, names, half_open_bytes(&stack), count, before);
        }
        let (mut frames, mut out) = (vec![Vec::new(); BURST], [0; FRAME]);
        let (mut time, mut answered) = (Duration::ZERO, 0);
        for first in (0..count).step_by(BURST) {
            let numbers = first..count.min(first + BURST as u32);
            for (number, frame) in numbers.clone().zip(&mut frames) {
                let segment = Segment { flags: Flags::SYN, seq: ISN, ack: Seq(0), echo: 0 };
                write(&flow(NETWORK, number), segment, &[], frame);
            }
            let start = Wall::now();
            for frame in frames.iter().take(numbers.len()) {
                stack.handle_frame(START, frame);
            }
            while stack.poll_transmit(START, &mut out).is_some() {
                answered += 1;
            }
            time += start.elapsed();
        }
        assert_eq!((answered, stack.half_open_count()), (count, count as usize), "a SYN was not answered");
        samples.push("half_open_insert", "ns", time.as_nanos() as f64 / f64::from(count));
    }
}
