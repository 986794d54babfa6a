//! Packets: explained, watched, and the cookies in them.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a cookie says. Nothing that would help to make one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cookie {
    /// `valid`, `late`, `out-of-time`, `other-layout`, `no-key` or `wrong`.
    pub validity: String,
    /// What that means.
    pub help: String,
    /// `timestamps`, `no-timestamps` or `strict`.
    pub layout: String,
    /// The epoch with whose key it was made; absent when none of the keys makes it. What follows is then the word of whoever
    /// sent it.
    pub epoch: Option<u32>,
    /// The epoch now.
    pub current_epoch: u32,
    /// How long ago the SYN-ACK left, modulo 275 s, if this machine sent it; absent without timestamps.
    pub age_ms: Option<u64>,
    /// The client's maximum segment size, rounded down.
    pub mss: u16,
    /// The client's window shift; absent when windows are not scaled.
    pub window_scale: Option<u8>,
    /// Whether the client takes selective acknowledgments.
    pub sack_permitted: bool,
    /// Whether both sides use ECN.
    pub ecn: bool,
}

/// What would become of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// What it is, in a line.
    pub frame: String,
    /// Where it would arrive.
    pub interface: String,
    /// On which receive queue.
    pub queue: u32,
    /// What the decision asked, in order.
    pub steps: Vec<Step>,
    /// `passed`, `answered`, `redirected` or `dropped`.
    pub outcome: String,
    /// Under which it would be counted; none for what is not TCP to a protected address and port.
    pub reason: Option<String>,
    /// What that means.
    pub help: Option<String>,
    /// What would be sent back, in a line.
    pub answer: Option<String>,
    /// The same as a frame, in hexadecimal digits.
    pub answer_frame: Option<String>,
}

/// One thing that the decision asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// What it looked at.
    pub step: String,
    /// What it found there.
    pub found: String,
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Packet {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// `in` or `out`.
    pub direction: String,
    /// The interface.
    pub interface: String,
    /// Its queue.
    pub queue: u32,
    /// The service as configured.
    pub service: Option<SocketAddr>,
    /// `passed`, `answered`, `redirected` or `dropped` of what came in; `sent`.
    pub verdict: String,
    /// Whether it passed for a dry run: the reason then says what would have become of it.
    #[serde(default)]
    pub dry_run: bool,
    /// Why: of an answer, that of what it answers. `engine` for what an engine sent.
    pub reason: String,
    /// Bytes of the whole frame.
    pub len: u32,
    /// Its beginning, in hexadecimal.
    pub frame: String,
}

/// Packets that a client asked for and did not get, since it asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PacketsLost {
    /// Beyond what a CPU or an engine records in a second.
    pub beyond_rate: u64,
    /// The ring to the daemon was full.
    pub ring_full: u64,
    /// The client did not read fast enough.
    pub unread: u64,
}
