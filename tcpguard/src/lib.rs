//! tcpguard keeps TCP services reachable while they are being SYN-flooded: the library behind the `tcpguard`
//! binary. A program that wants its connections guarded in its own process starts at [`control::daemon::Daemon`].
//! `docs/ARCHITECTURE.md` follows one packet through these modules.

pub mod cli;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod engine;
pub mod service;
#[cfg(test)]
mod starved;
pub mod telemetry;

pub use tcpguard_stack as stack;
