//! Events and metrics. A leaf that any room may use.

pub mod log;
