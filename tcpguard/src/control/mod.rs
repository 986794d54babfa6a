//! The daemon and its control socket, server and client. Printing is for `cli`.
#![forbid(unsafe_code)]

mod answers;
mod attacks;
pub mod client;
mod confirm;
pub mod daemon;
mod descriptors;
pub mod doctor;
mod explain;
mod filters;
mod flows;
mod guard;
mod hook;
mod limits;
mod links;
mod modes;
mod monitor;
mod notify;
mod ports;
pub mod protocol;
mod reload;
pub mod server;
mod services;
mod strict;

pub use reload::Origin;
pub use services::would_guard;

#[cfg(test)]
mod tests;
