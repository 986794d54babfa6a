//! Every counter.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every counter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    /// When it was read, on the daemon's monotonic clock: rates come from differences of it.
    pub time_ms: u64,
    /// Since the daemon armed its interfaces.
    pub uptime_ms: u64,
    /// Verdicts of the XDP program, in the table's order, the ones never reached included. They survive the daemon
    /// with its pins.
    pub reasons: Vec<ReasonCount>,
    /// The same verdicts by service, in the order of the configuration, since the daemon started.
    #[serde(default)]
    pub services: Vec<ServiceCount>,
    /// What would have become of segments that were left to the host because their service was in dry run; of those services
    /// that are, or were since the daemon started.
    #[serde(default)]
    pub dry_run: Vec<ServiceCount>,
    /// Flows by TCP state, over all engines. States without a flow are there with 0.
    pub states: BTreeMap<String, u64>,
    /// Counters of the stack, the engines and the services, summed over the engines, by name and group.
    pub totals: Groups,
    /// The same for each engine.
    pub engines: Vec<Engine>,
    /// Engines that stand still, and are in none of these sums.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<EngineName>,
}

/// Which engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EngineName {
    /// Its interface.
    pub interface: String,
    /// Its receive queue.
    pub queue: u32,
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} queue {}", self.interface, self.queue)
    }
}

/// Counters by group (`stack`, `engine`, `ring`, …) and name.
pub type Groups = BTreeMap<String, BTreeMap<String, u64>>;

/// Of the counters of a group, those that are no counts but amounts: what there is at this moment.
pub const AMOUNTS: [&str; 9] =
    ["connections", "time-wait", "half-open", "frames", "free", "fill", "rx", "tx", "completion"];
/// What names of times between two looks at a receive ring begin with: no counts either.
pub const GAPS: &str = "gap-";

/// Whether what a group has under this name goes down as well as up.
pub fn is_amount(name: &str) -> bool {
    AMOUNTS.contains(&name) || name.starts_with(GAPS)
}

/// What became of the segments to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceCount {
    /// The service as configured.
    pub listen: SocketAddr,
    /// `auto`, `cookie`, `stateful` or `off`.
    #[serde(default)]
    pub mode: String,
    /// In mode `auto`, what it does at present: `calm`, when it remembers SYNs, or `cookies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Well-formed SYNs, answered or not; without those of denied sources.
    pub syns: u64,
    /// Of these, those answered with a cookie.
    pub cookies_sent: u64,
    /// Of these, those handed to an engine, which remembers them.
    #[serde(default)]
    pub stateful: u64,
    /// ACKs with a valid cookie whose flow was opened; with those that open a new incarnation of a flow that is known or in
    /// TIME_WAIT, which the stack judges.
    pub acks_valid: u64,
    /// ACKs with an invalid cookie.
    pub acks_invalid: u64,
    /// Segments handed to an engine, `stateful` and `acks_valid` among them.
    pub redirected: u64,
    /// Segments answered with a reset.
    pub reset: u64,
    /// Segments dropped, `acks_invalid` and unanswered SYNs among them.
    pub dropped: u64,
    /// Segments left to the host.
    pub passed: u64,
}

/// How often a reason was counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReasonCount {
    /// The reason.
    pub name: String,
    /// `passed`, `answered`, `redirected` or `dropped`.
    pub outcome: String,
    /// What it means.
    pub help: String,
    /// Over all CPUs.
    pub total: u64,
    /// For each possible CPU.
    pub per_cpu: Vec<u64>,
    /// Beside the total: what would have been counted, had its service not been in dry run.
    #[serde(default)]
    pub dry_run: u64,
}

/// One engine's share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Engine {
    /// Its interface.
    pub interface: String,
    /// Its receive queue.
    pub queue: u32,
    /// Flows by TCP state.
    pub states: BTreeMap<String, u64>,
    /// Its counters.
    pub counters: Groups,
}
