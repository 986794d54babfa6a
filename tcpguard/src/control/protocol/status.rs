//! Where the guard is attached, and what it protects.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Attack;

/// What runs where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The daemon's own version.
    pub daemon_version: String,
    /// Its process.
    pub pid: u32,
    /// Since it armed its interfaces.
    pub uptime_ms: u64,
    /// `armed`, or `draining` after SIGTERM.
    pub phase: String,
    /// Which daemon run this is, on these pins.
    pub generation: u32,
    /// The current cookie epoch.
    pub epoch: u32,
    /// The keys that cookies are made with.
    #[serde(default)]
    pub keys: Keys,
    /// The guarded interfaces.
    pub interfaces: Vec<Interface>,
    /// The protected services.
    pub services: Vec<Service>,
    /// The attacks that are on.
    #[serde(default)]
    pub attacks: Vec<Attack>,
    /// The engines, by interface and queue.
    #[serde(default)]
    pub engines: Vec<EngineState>,
    /// How full everything is that is bounded; of what every engine has, that of the fullest.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// Until what was changed is taken back, unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_ms: Option<u64>,
}

/// The keys that cookies are made with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Keys {
    /// For how long that of the current epoch has been in use.
    pub age_ms: u64,
    /// Until the next epoch, and with it the next key.
    pub next_ms: u64,
    /// How long each is used: `cookie-period`.
    pub period_ms: u64,
    /// How long ago the secret that they derive from was set: when the daemon started, or when another took its place.
    pub secret_age_ms: u64,
    /// The file it was read from; none for a random one.
    #[serde(default)]
    pub secret_file: Option<String>,
}

/// How an engine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EngineState {
    /// Its interface.
    pub interface: String,
    /// Its receive queue.
    pub queue: u32,
    /// Whether it turns. XDP answers no SYN for one that does not, and its clients wait.
    pub turns: bool,
    /// How long ago it last turned.
    pub turned_ms: u64,
    /// Whether its receive ring is more than half full, or was within the last second: `flow-rate` counts then.
    pub pressed: bool,
}

/// How full something is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limit {
    /// What.
    pub name: String,
    /// Whose: an interface and queue, or a service; none if it is the whole daemon's.
    #[serde(default)]
    pub of: Option<String>,
    /// How much of it there is: a number, or bytes of memory.
    pub used: u64,
    /// How much there may be.
    pub limit: u64,
    /// That share, in thousandths.
    pub permille: u64,
    /// Whether that is nearly all of it: four fifths or more.
    pub near: bool,
    /// What would help.
    pub remedy: String,
}

/// A guarded interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Interface {
    /// As the kernel calls it.
    pub name: String,
    /// The kernel's index.
    pub ifindex: u32,
    /// `native` or `generic`.
    pub mode: String,
    /// Receive queues with an engine.
    pub queues: u32,
    /// How AF_XDP moves frames: `zero-copy` where the driver can, or `copy`.
    #[serde(default)]
    pub af_xdp: String,
    /// `up`, `no-carrier` or `down`.
    #[serde(default)]
    pub link: String,
    /// Its MAC address.
    #[serde(default)]
    pub mac: String,
    /// Bytes of an IP packet it carries.
    #[serde(default)]
    pub mtu: u32,
}

/// A protected service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Service {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// `auto`, `cookie`, `stateful` or `off`.
    pub mode: String,
    /// In mode `auto`, what it does at present: `calm`, when it remembers SYNs, or `cookies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Whether it is in dry run: what would become of its segments is counted, and they are left to the host.
    #[serde(default)]
    pub dry_run: bool,
    /// Whether its cookies without timestamps are strict: `no`, `from-next-epoch`, `yes`, `until-next-epoch`.
    #[serde(default)]
    pub strict: String,
    /// Where connections are relayed to; of several backends the first.
    pub backend: Option<String>,
    /// Which built-in responder has them instead: `echo`, `discard` or `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond: Option<String>,
    /// All backends, in the order of the configuration.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Backend {
    /// `ADDR:PORT`, or `unix:` and a path.
    pub address: String,
    /// Connections it has.
    pub connections: u64,
    /// Connections it accepted, ever.
    pub connected: u64,
    /// Attempts to connect that failed.
    pub failed: u64,
    /// How long it will yet be left alone because it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rests_ms: Option<u64>,
    /// Those of its connections that one side has held up for longer than a moment, by kind.
    #[serde(default)]
    pub held: Vec<HeldUp>,
}

/// Connections of a backend that are held up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeldUp {
    /// `close-wait` and `backend-stalled` by the backend, which does not close or takes nothing; `fin-wait-2` and
    /// `client-stalled` by the client.
    pub state: String,
    /// How many.
    pub connections: u64,
    /// Since the oldest of them last moved.
    pub oldest_ms: u64,
}
