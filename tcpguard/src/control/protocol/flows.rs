//! Which flows a client asks for, and how they are listed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::EngineName;

/// Which flows: those that meet every condition. Without one, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Which {
    /// In this state, by the name that [`Flow::state`] carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Whose client is in this prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// From this port of the client's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_port: Option<u16>,
    /// Whose end here is in this prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<String>,
    /// Of this service, as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<SocketAddr>,
    /// That are at least so old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_age_ms: Option<u64>,
    /// That are at most so old.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
}

impl Which {
    /// Whether this is every flow.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

/// What the listed flows are sorted by: the greatest first, but addresses the lowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sort {
    /// The oldest first.
    Age,
    /// By payload bytes received.
    In,
    /// By payload bytes sent and acknowledged.
    Out,
    /// By bytes that the service has not read.
    RecvQueued,
    /// By bytes that the client has not acknowledged.
    SendQueued,
    /// By round-trip time.
    Rtt,
    /// By the client's address.
    Peer,
}

/// The flows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flows {
    /// How many match, listed or not.
    pub total: u64,
    /// How many there are by state, matching or not.
    pub states: BTreeMap<String, u64>,
    /// The matching ones by service, listed or not.
    #[serde(default)]
    pub services: Vec<FlowsOfService>,
    /// The listed ones.
    pub flows: Vec<Flow>,
    /// Engines that stand still, whose flows are neither counted nor listed, or not all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<EngineName>,
}

/// The matching flows of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowsOfService {
    /// As configured; none for flows whose service is gone.
    pub service: Option<SocketAddr>,
    /// How many.
    pub flows: u64,
    /// The age of the youngest.
    pub youngest_ms: u64,
    /// The age of the oldest.
    pub oldest_ms: u64,
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Payload bytes sent and acknowledged.
    pub bytes_out: u64,
}

/// Flows were reset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowsKilled {
    /// How many.
    pub killed: u64,
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Flow {
    /// RFC 9293's state.
    pub state: Cow<'static, str>,
    /// Our end.
    pub local: SocketAddr,
    /// The client's.
    pub peer: SocketAddr,
    /// The service as configured.
    pub service: Option<SocketAddr>,
    /// Since the connection was accepted, or since it entered TIME_WAIT; of a half-open one, since its SYN came.
    pub age_ms: u64,
    /// Payload bytes received.
    pub bytes_in: u64,
    /// Payload bytes sent and acknowledged.
    pub bytes_out: u64,
    /// Bytes received that the service has not read.
    pub recv_queued: u64,
    /// Bytes not acknowledged by the client.
    pub send_queued: u64,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: Option<u64>,
    /// Until its next timer.
    pub timer_ms: Option<u64>,
    /// How often the SYN-ACK of a half-open connection was sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syn_ack_retransmits: Option<u64>,
    /// The engine that has it.
    pub interface: String,
    /// Its queue.
    pub queue: u32,
}
