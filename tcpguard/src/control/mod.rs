//! The daemon and its control socket, server and client. Printing is for `cli`.
#![forbid(unsafe_code)]

mod answers;
mod attacks;
mod background;
mod changes;
pub mod client;
mod condition;
mod confirm;
pub(crate) mod counted;
pub mod daemon;
mod descriptors;
pub mod doctor;
mod doors;
mod explain;
mod filters;
mod flows;
mod guard;
mod hook;
mod limits;
mod links;
mod metrics;
mod modes;
mod monitor;
mod notify;
mod pace;
mod places;
mod ports;
mod privileges;
pub mod protocol;
mod reload;
mod scrape;
pub mod server;
mod services;
mod socket;
mod strict;
mod tunables;

pub(crate) use background::stand_back;
pub use reload::{Origin, ReadFile};
pub use services::would_guard;

#[cfg(test)]
mod proofs;
#[cfg(test)]
mod tests;
