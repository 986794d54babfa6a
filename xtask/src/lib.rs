//! tcpguard's developer commands, as a library, so that integration tests share the lab.

mod client;
pub mod lab;
mod svg;
pub mod tool;

#[expect(clippy::print_stderr, clippy::print_stdout, reason = "the developer's commands talk to a person")]
pub mod bench;
#[expect(clippy::print_stderr, reason = "the developer's commands talk to a person")]
pub mod build;
#[expect(clippy::print_stdout, reason = "the developer's commands talk to a person")]
pub mod deb;
#[expect(clippy::print_stderr, reason = "the developer's commands talk to a person")]
pub mod object;
#[expect(clippy::print_stderr, reason = "the developer's commands talk to a person")]
pub mod progress;
#[expect(clippy::print_stderr, clippy::print_stdout, reason = "the developer's commands talk to a person")]
pub mod run;
#[expect(clippy::print_stderr, reason = "the developer's commands talk to a person")]
pub mod setup;
#[expect(clippy::print_stdout, reason = "the developer's commands talk to a person")]
pub mod soak;
#[expect(clippy::print_stderr, reason = "the developer's commands talk to a person")]
pub mod test;
