//! What an engine counts, and the snapshot of it that leaves the engine's thread. Not how it is shown.

use super::flows::FlowCounters;
use super::net::NetCounters;
use crate::stack::{Durations, StackCounters, Usage};

/// Defines a set of counters: one table gives each its field, name and meaning.
macro_rules! counters {
    ($(#[$doc:meta])* $type:ident { $( $(#[doc = $help:literal])+ $field:ident = $name:literal; )+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $type { $( $(#[doc = $help])+ pub $field: u64, )+ }

        impl $type {
            /// Every counter with its name and meaning.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64, &'static str)> + use<> {
                [ $( ($name, self.$field, concat!($($help),+)), )+ ].into_iter()
            }
        }
    };
}
pub(super) use counters;

counters! {
    /// Frame work done, since the engine started.
    FrameCounters {
        /// Frames taken from the receive ring.
        received = "received";
        /// Frames put on the transmit ring.
        sent = "sent";
        /// Turns of the engine's loop.
        turns = "turns";
        /// Frames of flows the stack did not know.
        misses = "misses";
        /// Of the misses, frames dropped unseen because one turn had too many.
        misses_dropped = "misses-dropped";
        /// Of the misses, frames of flows that nobody has.
        orphans = "orphans";
        /// Resets sent to peers of flows that an earlier daemon had.
        old_generation_resets = "old-generation-resets";
        /// Acknowledgments sent to peers of flows that an earlier daemon had, to make them speak.
        old_generation_probes = "old-generation-probes";
        /// Frames handed to the engine that owns their flow.
        forwarded_out = "forwarded-out";
        /// Frames for another engine that were lost because its queue was full.
        forward_lost = "forward-lost";
        /// Frames that came from other engines.
        forwarded_in = "forwarded-in";
        /// Turns in which the transmit ring had no room for what there was to send.
        transmit_blocked = "transmit-blocked";
        /// Errors of the transmit system call, other than "try again".
        kick_errors = "kick-errors";
    }
}

counters! {
    /// An AF_XDP socket's frames, where they are at this moment, and what the kernel lost, since the engine started.
    RingCounters {
        /// Frames that the socket has in all, at this moment.
        frames = "frames";
        /// Frames at this moment that are free to fill and send.
        free = "free";
        /// Frames at this moment that wait for the kernel to receive into.
        fill = "fill";
        /// Frames at this moment that were received and wait for the engine.
        rx = "rx";
        /// Frames at this moment that are queued and wait for the kernel to send.
        tx = "tx";
        /// Frames at this moment that were sent and wait to become free.
        completion = "completion";
        /// Frames dropped for reasons other than a full ring: mostly, too long.
        rx_dropped = "rx-dropped";
        /// Frames dropped because the receive ring was full: the engine did not keep up.
        rx_ring_full = "rx-ring-full";
        /// Frames dropped because no frame waited for the kernel to receive into: the engine did not keep up.
        rx_fill_ring_empty = "rx-fill-ring-empty";
        /// Descriptors to receive into that the kernel refused. Never, or the account of frames is wrong.
        rx_invalid = "rx-invalid";
        /// Descriptors to send that the kernel refused. Never, or the account of frames is wrong.
        tx_invalid = "tx-invalid";
        /// Frames that the driver refused to send and dropped.
        tx_driver_drops = "tx-driver-drops";
    }
}

/// Powers of two of microseconds that [`Gaps`] tells apart.
const GAP_BUCKETS: usize = 20;

/// How long frames may have waited because the engine itself or application tasks held the thread: the time between two looks
/// at the receive ring, sleep not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gaps {
    /// Gaps below 1 µs, 2 µs, 4 µs, …; the last counts all longer ones.
    pub buckets: [u64; GAP_BUCKETS],
    /// The longest, nanoseconds.
    pub max: u64,
    /// All together, nanoseconds.
    pub sum: u64,
}

impl Default for Gaps {
    fn default() -> Self {
        Self { buckets: [0; GAP_BUCKETS], max: 0, sum: 0 }
    }
}

impl Gaps {
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        let bits = (u64::BITS - (nanoseconds / 1000).leading_zeros()) as usize;
        self.buckets[bits.min(GAP_BUCKETS - 1)] += 1;
        self.max = self.max.max(nanoseconds);
        self.sum = self.sum.saturating_add(nanoseconds);
    }

    /// An upper bound of the `percent`th percentile in microseconds, to a power of two.
    pub fn percentile(&self, percent: f64) -> u64 {
        let total: u64 = self.buckets.iter().sum();
        let rank = (total as f64 * percent / 100.0).ceil() as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|&count| {
            seen += count;
            seen >= rank
        });
        1 << bucket.unwrap_or(0)
    }
}

/// Counters of one group: name, count and meaning.
pub type Rows = Vec<(&'static str, u64, &'static str)>;

/// One engine at one moment.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// The engine's XSKMAP index.
    pub engine: u32,
    /// Connections, TIME_WAIT not counted.
    pub connections: u64,
    /// Entries in TIME_WAIT.
    pub time_wait: u64,
    /// Entries in the half-open queue.
    pub half_open: u64,
    /// How full that queue is, 0 to 1.
    pub half_open_level: f64,
    /// How full everything is that the stack bounds.
    pub usage: Vec<Usage>,
    /// Frames.
    pub frames: FrameCounters,
    /// Accepting.
    pub net: NetCounters,
    /// The flow table.
    pub flows: FlowCounters,
    /// The stack's own counters.
    pub stack: StackCounters,
    /// New incarnations of flows that were known or in TIME_WAIT, by service.
    pub reincarnated: Vec<(u32, u64)>,
    /// The rings.
    pub rings: RingCounters,
    /// Time between two looks at the receive ring.
    pub gaps: Gaps,
    /// From SYN-ACKs to their acknowledgements.
    pub handshakes: Durations,
}

impl EngineStats {
    /// Every counter by group, and what else `stats` shows with them.
    pub fn groups(&self) -> [(&'static str, Rows); 4] {
        let Self {
            engine: _,
            connections,
            time_wait,
            half_open,
            half_open_level: _,
            usage: _,
            frames,
            net,
            flows,
            stack,
            reincarnated: _,
            rings,
            gaps,
            handshakes: _,
        } = self;
        let gauges = [
            ("connections", *connections, "Connections at this moment, TIME_WAIT not counted."),
            ("time-wait", *time_wait, "Flows in TIME_WAIT at this moment."),
            ("half-open", *half_open, "Half-open connections that are remembered at this moment."),
            (
                "gap-p50-us",
                gaps.percentile(50.0),
                "An upper bound, to a power of two of microseconds, of half of the times between two looks at the receive \
                 ring, sleep not counted.",
            ),
            (
                "gap-p99-us",
                gaps.percentile(99.0),
                "An upper bound, to a power of two of microseconds, of 99 % of the times between two looks at the receive \
                 ring, sleep not counted.",
            ),
            (
                "gap-max-us",
                gaps.max / 1000,
                "The longest time between two looks at the receive ring, microseconds, sleep not counted: how long frames may \
                 have waited.",
            ),
        ];
        [
            ("engine", frames.rows().chain(net.rows()).chain(gauges).collect()),
            ("flow-table", flows.rows().collect()),
            ("ring", rings.rows().collect()),
            ("stack", stack.rows().collect()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::Gaps;

    #[test]
    fn gaps_fall_into_powers_of_two_and_percentiles_bound_them_from_above() {
        let mut gaps = Gaps::default();
        for _ in 0..99 {
            gaps.record(900);
        }
        gaps.record(3_000_000);
        assert_eq!((gaps.percentile(50.0), gaps.percentile(99.0)), (1, 1));
        assert_eq!(gaps.percentile(100.0), 4096);
        assert_eq!((gaps.max, gaps.sum), (3_000_000, 99 * 900 + 3_000_000));
        gaps.record(u64::MAX);
        assert_eq!(gaps.buckets[19], 1);
    }
}
