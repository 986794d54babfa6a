//! The daemon and its control socket, server and client. Printing is for `cli`.

pub mod client;
pub mod protocol;
pub mod server;
