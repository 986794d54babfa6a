//! Tunables, and what became of a change.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::FiltersChanged;

/// Rows of the table of tunables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tunables {
    /// In the table's order.
    pub tunables: Vec<Tunable>,
}

/// One tunable: numbers in its unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tunable {
    /// The name.
    pub name: String,
    /// `ms`, `count` or `choice`.
    pub unit: String,
    /// Of a choice, the names its numbers stand for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// Now.
    pub value: u64,
    /// Unless configured.
    pub default: u64,
    /// Least.
    pub min: u64,
    /// Greatest.
    pub max: u64,
    /// What it does.
    pub help: String,
    /// What more of it costs, or less.
    #[serde(default)]
    pub cost: String,
    /// Of those that services may have for themselves: the values of those that do, by where their clients connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<BTreeMap<SocketAddr, u64>>,
}

/// A tunable was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tuned {
    /// Which.
    pub name: String,
    /// `ms`, `count` or `choice`.
    pub unit: String,
    /// The value that was replaced.
    pub old: u64,
    /// The value now.
    pub new: u64,
    /// The file it was written into as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<String>,
    /// Until it is taken back unless it is confirmed; none if it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_ms: Option<u64>,
}

/// A tunable was set for one service: the values are those that held for it, and hold now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTuned {
    /// Which service.
    pub service: SocketAddr,
    /// What became of it.
    #[serde(flatten)]
    pub tuned: Tuned,
}

/// Several tunables were set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TunedAll {
    /// Those that have another value now.
    pub tuned: Vec<Tuned>,
    /// Until it is taken back unless it is confirmed; none if it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_ms: Option<u64>,
}

/// The configuration file was read again, and is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reloaded {
    /// Which file.
    pub file: String,
    /// The tunables that changed.
    pub tunables: Vec<Tuned>,
    /// What became of the filter lists.
    pub filters: FiltersChanged,
    /// What became of the services.
    pub services: ServicesChanged,
    /// The secret file holds another secret than before.
    pub new_secret: bool,
    /// Until it is taken back unless it is confirmed; none if it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_ms: Option<u64>,
}

/// Another secret will count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KeysRotated {
    /// The first epoch whose key comes from it.
    pub epoch: u32,
    /// Until that epoch.
    pub from_ms: u64,
    /// For how long cookies of the old one are still accepted.
    pub old_until_ms: u64,
}

/// A service was put into dry run, or in earnest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DryRunSet {
    /// Whether it was in dry run.
    pub old: bool,
    /// Whether it is.
    pub new: bool,
    /// Until it is taken back unless it is confirmed; none if it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_ms: Option<u64>,
}

/// Services were changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ServicesChanged {
    /// Those that are new.
    pub added: Vec<SocketAddr>,
    /// Those that are otherwise than before.
    pub changed: Vec<SocketAddr>,
    /// Those that are gone.
    pub removed: Vec<SocketAddr>,
    /// Connections that were reset with them, half-open ones included.
    pub reset: u64,
    /// The file that was changed as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<String>,
    /// Until it is taken back unless it is confirmed; none if it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_ms: Option<u64>,
}

/// A service was given another mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModeSet {
    /// The mode it had.
    pub old: String,
    /// The one it has.
    pub new: String,
    /// Until it is taken back unless it is confirmed; none if it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_ms: Option<u64>,
}
