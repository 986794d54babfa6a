//! tcpguard's developer commands, as a library, so that integration tests share the lab.

pub mod lab;
pub mod tool;

#[expect(clippy::print_stderr, reason = "the developer's commands talk to a person")]
pub mod progress;
#[expect(clippy::print_stderr, reason = "the developer's commands talk to a person")]
pub mod setup;
