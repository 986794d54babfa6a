//! Events and metrics. A leaf that any room may use.
#![forbid(unsafe_code)]

pub mod log;
pub mod throttle;
