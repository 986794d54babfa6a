//! The daemon and its control socket, server and client. Printing is for `cli`.
#![forbid(unsafe_code)]

mod answers;
pub mod client;
pub mod daemon;
mod descriptors;
mod explain;
mod filters;
mod guard;
mod limits;
mod links;
mod modes;
mod monitor;
mod notify;
mod ports;
pub mod protocol;
mod reload;
pub mod server;
mod strict;

pub use reload::Origin;

#[cfg(test)]
mod tests;
