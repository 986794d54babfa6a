//! `cargo xtask bench`: what things cost, measured on this machine. One module per suite; each prints a table and
//! writes the same as JSON when asked.

mod figures;
pub mod program;
pub mod stack;

pub use figures::Report;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Measure what things cost on this machine
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Clone, Debug, Subcommand)]
enum Suite {
    Program(program::ProgramArgs),
    Stack(stack::StackArgs),
}

/// The verb.
pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.suite {
        Suite::Program(args) => program::run(args),
        Suite::Stack(args) => stack::run(args),
    }
}
