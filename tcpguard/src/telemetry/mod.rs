//! Events and metrics. A leaf that any room may use.
#![forbid(unsafe_code)]

pub mod advice;
pub mod attack;
pub mod log;
pub mod metrics;
pub mod packet;
pub mod pcapng;
#[cfg(test)]
pub(crate) mod said;
pub mod slices;
pub mod throttle;
