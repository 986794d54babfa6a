//! The TCP stack, sans-IO: `handle_*` for what arrives, `poll_*` for what should leave or happen next, `now` always
//! a parameter. No sockets, no clock of its own, no tokio, no `unsafe`.
#![forbid(unsafe_code)]

mod config;
mod counters;
mod event;
mod time;

pub use config::Config;
pub use counters::StackCounters;
pub use event::{ConnId, Error, Event, FlowInfo, Received, StackDrop, State};
pub use time::Instant;
