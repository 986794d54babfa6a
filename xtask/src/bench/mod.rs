//! `cargo xtask bench`: what things cost, measured on this machine. One module per suite; each prints a table and
//! writes the same as JSON when asked.

pub mod program;

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
}

/// The verb.
pub fn run(args: &BenchArgs) -> Result<()> {
    match &args.suite {
        Suite::Program(args) => program::run(args),
    }
}
