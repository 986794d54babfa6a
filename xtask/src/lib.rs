//! tcpguard's developer commands, as a library, so that integration tests share the lab.

pub mod lab;
pub mod tool;
