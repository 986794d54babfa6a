//! How full everything is that a stack bounds. It counts; what to do about it is for whoever shows it to say.

use super::Stack;

/// What a stack bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounded {
    /// Connections, TIME_WAIT not counted.
    Connections,
    /// TIME_WAIT entries of IPv4.
    TimeWaitV4,
    /// TIME_WAIT entries of IPv6.
    TimeWaitV6,
    /// Half-open connections over IPv4.
    HalfOpenV4,
    /// Half-open connections over IPv6.
    HalfOpenV6,
    /// Connections that their applications have left.
    Orphans,
    /// Connections that wait for their application, of the service that has most of them.
    AcceptQueue,
    /// Bytes that wait to be sent or acknowledged.
    SendMemory,
    /// Bytes received that wait to be read.
    ReceiveMemory,
    /// Closed flows that are remembered against replays, of all stacks that share that memory.
    ClosedFlows,
}

impl Bounded {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::TimeWaitV4 => "time-wait-ipv4",
            Self::TimeWaitV6 => "time-wait-ipv6",
            Self::HalfOpenV4 => "half-open-ipv4",
            Self::HalfOpenV6 => "half-open-ipv6",
            Self::Orphans => "orphans",
            Self::AcceptQueue => "accept-queue",
            Self::SendMemory => "send-memory",
            Self::ReceiveMemory => "receive-memory",
            Self::ClosedFlows => "closed-flows",
        }
    }
}

/// How much there is of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Of what.
    pub what: Bounded,
    /// How much there is: a number, or bytes of memory.
    pub used: u64,
    /// How much there may be.
    pub limit: u64,
}

impl Stack {
    /// How full everything is that [`super::Config`] bounds.
    pub fn usage(&self) -> Vec<Usage> {
        let config = &self.shared.config;
        let (send, receive) = (&self.shared.send_pool, &self.shared.recv_pool);
        let [time_wait_v4, time_wait_v6] = self.time_waits.lens();
        let [half_open_v4, half_open_v6] = self.half_opens.lens();
        let waiting = self.waiting.values().copied().max().unwrap_or(0);
        let of = |what, used: usize, limit: usize| Usage { what, used: used as u64, limit: limit as u64 };
        vec![
            of(Bounded::Connections, self.connection_count(), config.max_connections as usize),
            of(Bounded::TimeWaitV4, time_wait_v4, config.max_time_wait as usize),
            of(Bounded::TimeWaitV6, time_wait_v6, config.max_time_wait as usize),
            of(Bounded::HalfOpenV4, half_open_v4, config.max_half_open as usize),
            of(Bounded::HalfOpenV6, half_open_v6, config.max_half_open as usize),
            of(Bounded::Orphans, self.orphans.count() as usize, config.max_orphans as usize),
            of(Bounded::AcceptQueue, waiting as usize, config.accept_backlog as usize),
            of(Bounded::SendMemory, send.used_bytes(), send.budget_bytes()),
            of(Bounded::ReceiveMemory, receive.used_bytes(), receive.budget_bytes()),
            of(Bounded::ClosedFlows, self.closed_flows.len(), config.max_closed_flows as usize),
        ]
    }
}
