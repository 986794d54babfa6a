//! What benchmarks ask that nobody else does: the TIME_WAIT table, the half-open queue and the timer wheel on their own (filled
//! through connections, it is those that would be measured), and what tables take of memory.

use core::time::Duration;

use tcpguard_common::cookie::SynOptions;
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::Vlan;
use tcpguard_common::packet::build::Link;
use tcpguard_common::seq::Seq;

use super::half_open::{HalfOpen, HalfOpens};
use super::time_wait::{Remains, TimeWaits};
use super::wheel::Wheel;
use super::{Instant, Stack};

/// A TIME_WAIT table that belongs to no stack.
#[derive(Debug)]
pub struct TimeWaitTable(TimeWaits);

impl TimeWaitTable {
    /// A table for `capacity` entries of each address family.
    pub fn new(capacity: u32) -> Self {
        Self(TimeWaits::new(capacity, [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f]))
    }

    /// Bytes of memory it holds for each address family, IPv4 first.
    pub fn bytes(&self) -> [usize; 2] {
        self.0.bytes()
    }

    /// Adds what stays of a connection with timestamps.
    pub fn insert(&mut self, key: &AnyFlowKey, now: Instant) {
        let remains = Remains { snd_nxt: Seq(1), rcv_nxt: Seq(2), timestamps: Some((3, 4)), disowned: false };
        self.0.insert(key, remains, now);
    }

    /// Whether the flow is in TIME_WAIT.
    pub fn contains(&self, key: &AnyFlowKey, now: Instant, time_wait: Duration) -> bool {
        self.0.get(key, now, time_wait).is_some()
    }

    /// Moves the hand, if it is time; how many entries were over.
    pub fn sweep(&mut self, now: Instant, time_wait: Duration) -> usize {
        let mut expired = 0;
        self.0.sweep(now, time_wait, |_| expired += 1);
        expired
    }

    /// When the hand moves next; `None` when the table is empty.
    pub fn next_step(&self) -> Option<Instant> {
        self.0.next_step()
    }
}

/// A half-open queue that belongs to no stack.
#[derive(Debug)]
pub struct HalfOpenQueue(HalfOpens);

impl HalfOpenQueue {
    /// A queue for `limit` entries of each address family.
    pub fn new(limit: u32) -> Self {
        Self(HalfOpens::new(limit, [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f]))
    }

    /// Adds a SYN with the options of Linux; whether another had to go for it.
    pub fn insert(&mut self, key: &AnyFlowKey, now: Instant) -> bool {
        let syn = SynOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(5000),
            ecn: false,
        };
        let link = Link { dst: [2, 0, 0, 0, 0, 1], src: [2, 0, 0, 0, 0, 2], vlan: Vlan::default() };
        self.0.insert(key, &HalfOpen { irs: 1, syn, epoch: 0, link, retransmits: 0 }, now) == Some(true)
    }

    /// Takes a SYN out, as an ACK does that completes its handshake; whether it was there.
    pub fn remove(&mut self, key: &AnyFlowKey) -> bool {
        self.0.remove(key)
    }
}

/// A timer wheel that belongs to no stack.
#[derive(Debug)]
pub struct TimerWheel(Wheel);

impl TimerWheel {
    /// A wheel in which nothing is armed.
    pub fn new(now: Instant) -> Self {
        Self(Wheel::new(now))
    }

    /// Makes sure that `index` is called at `deadline` or earlier.
    pub fn arm(&mut self, index: u32, deadline: Instant) {
        self.0.arm(index, deadline);
    }

    /// The next whose time has come, taken out of the wheel.
    pub fn pop_due(&mut self, now: Instant) -> Option<u32> {
        self.0.pop_due(now)
    }
}

/// Bytes of memory that a stack's half-open queue holds for each address family, IPv4 first.
pub fn half_open_bytes(stack: &Stack) -> [usize; 2] {
    stack.half_opens.bytes()
}
