//! The TIME_WAIT table: filled, searched and expired, and what an entry takes.

use std::time::{Duration, Instant as Wall};

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_stack::Instant;
use tcpguard_stack::measure::TimeWaitTable;

use crate::Samples;
use crate::memory::{self, allocated};
use crate::peer::{Random, START, flow};

/// First byte of the peers' addresses.
const NETWORK: u8 = 13;
/// 2MSL.
const TIME_WAIT: Duration = Duration::from_secs(60);
/// Keys made at a time, outside of what is measured.
const CHUNK: u32 = 4096;

/// Fills and empties a table with `count` entries in each round; looks up `lookups` of them.
pub(crate) fn measure(count: u32, rounds: usize, lookups: usize, samples: &mut Samples) {
    let before = allocated();
    let mut table = TimeWaitTable::new(count);
    memory::push(samples, ["bytes_time_wait_v4", "bytes_time_wait_v6"], table.bytes(), count, before);
    let (mut now, mut random) = (START, Random(2));
    let per_entry = |value: f64| value / f64::from(count);
    for _ in 0..rounds {
        let time = fill(&mut table, count, now);
        samples.push("time_wait_insert", "ns", per_entry(time.as_nanos() as f64));
        samples.push("time_wait_lookup", "ns", look_up(&table, count, lookups, &mut random, now));
        samples.push(
            "time_wait_expire",
            "ns",
            per_entry(expire(&mut table, count, &mut now).as_nanos() as f64),
        );
    }
}

fn fill(table: &mut TimeWaitTable, count: u32, now: Instant) -> Duration {
    let mut time = Duration::ZERO;
    for first in (0..count).step_by(CHUNK as usize) {
        let keys: Vec<_> = (first..count.min(first + CHUNK)).map(key).collect();
        let start = Wall::now();
        keys.iter().for_each(|key| table.insert(key, now));
        time += start.elapsed();
    }
    time
}

/// Nanoseconds for one of `lookups` random entries.
fn look_up(table: &TimeWaitTable, count: u32, lookups: usize, random: &mut Random, now: Instant) -> f64 {
    let (mut time, mut found) = (Duration::ZERO, 0);
    let chunks = lookups.div_ceil(CHUNK as usize);
    for _ in 0..chunks {
        let keys: Vec<_> = (0..CHUNK).map(|_| key(random.below(count))).collect();
        let start = Wall::now();
        found += keys.iter().filter(|key| table.contains(key, now, TIME_WAIT)).count();
        time += start.elapsed();
    }
    assert_eq!(found, chunks * CHUNK as usize, "an entry was lost");
    time.as_nanos() as f64 / found as f64
}

/// Lets 2MSL pass, and the hand go round: how long that took.
fn expire(table: &mut TimeWaitTable, count: u32, now: &mut Instant) -> Duration {
    *now += TIME_WAIT;
    let mut expired = 0;
    let start = Wall::now();
    while let Some(next) = table.next_step() {
        *now = next.max(*now);
        expired += table.sweep(*now, TIME_WAIT);
    }
    let time = start.elapsed();
    assert_eq!(expired, count as usize, "an entry stayed");
    time
}

fn key(number: u32) -> AnyFlowKey {
    AnyFlowKey::V4(flow(NETWORK, number))
}
