//! The filter lists.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The filter lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Filters {
    /// How many there are, listed or not.
    pub total: u64,
    /// How many of them deny.
    pub denied: u64,
    /// How many of them allow.
    pub allowed: u64,
    /// Hits of all of them.
    pub hits: u64,
    /// The listed ones, ordered by family, address and length.
    pub filters: Vec<Filter>,
}

/// One filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Filter {
    /// `deny` or `allow`.
    pub action: String,
    /// Address and length.
    pub prefix: String,
    /// Segments for which it was the longest prefix, since it was put in.
    pub hits: u64,
    /// Until it is forgotten.
    pub expires_ms: Option<u64>,
}

/// The filter lists were changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FiltersChanged {
    /// Prefixes that are new.
    pub added: u64,
    /// Prefixes that are gone.
    pub removed: u64,
    /// Prefixes that there are now.
    pub total: u64,
    /// Until it is taken back unless it is confirmed; none if it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_ms: Option<u64>,
}
