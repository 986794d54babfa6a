//! Attacks, and what was noted of them.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An attack on a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Attack {
    /// Which, counted from 1 since the daemon started.
    pub number: u64,
    /// The service as configured.
    pub service: SocketAddr,
    /// `syn-flood`, `ack-flood`, `connection-flood` or `slow-read`.
    pub kind: String,
    /// When it began, milliseconds since 1970.
    pub began_ms: u64,
    /// When it was over, likewise; none as long as it is on.
    pub ended_ms: Option<u64>,
    /// In the last second: SYNs beyond those that led to a handshake, invalid ACKs, or handshakes; of a slow read,
    /// connections whose clients take nothing.
    pub rate: u64,
    /// The greatest rate so far.
    pub peak: u64,
    /// How many in all; of a slow read 0.
    pub total: u64,
    /// Segments of it, or stalled connections, whose sources were looked at.
    pub sampled: u64,
    /// Different sources among the last 4096 of these.
    pub sources_seen: u64,
    /// So many sources there are at least, estimated from those (Chao 1984).
    pub sources_at_least: u64,
    /// The /24 (IPv6: /48) that most of these came from, no more than five.
    pub prefixes: Vec<AttackPrefix>,
}

/// Where an attack comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttackPrefix {
    /// Address and length.
    pub prefix: String,
    /// How many of the last 4096 samples are from there.
    pub samples: u64,
    /// The same as a share of them, in thousandths.
    pub permille: u64,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Counted from 1 since the daemon started; a gap is events that were missed.
    pub number: u64,
    /// When, milliseconds since 1970.
    pub time_ms: u64,
    /// `attack-began` or `attack-ended`.
    pub event: String,
    /// As it was then.
    pub attack: Attack,
}

/// What happened lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Events {
    /// The attacks that are on, as they are now.
    pub ongoing: Vec<Attack>,
    /// The last events, the oldest first.
    pub events: Vec<Event>,
    /// Runs of the hook so far.
    pub hook: HookRuns,
}

/// What became of events that the hook was to hear of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HookRuns {
    /// It ended with exit code 0.
    pub done: u64,
    /// It could not be started, or ended otherwise.
    pub failed: u64,
    /// It was killed because it took too long.
    pub late: u64,
    /// It was not started because too many events waited for it.
    pub skipped: u64,
}
