//! `cargo xtask`: the developer's and newcomer's commands. Each verb is a module; this only dispatches.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bench, deb, lab, object, run, setup, soak, test};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "tcpguard's developer commands", arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::SetupArgs),
    Run(run::RunArgs),
    Lab(lab::verb::LabArgs),
    Screenshots(run::screenshots::ScreenshotsArgs),
    Test(test::TestArgs),
    Soak(soak::SoakArgs),
    Bench(bench::BenchArgs),
    Object(object::ObjectArgs),
    Deb(deb::DebArgs),
}

#[expect(clippy::print_stderr, reason = "the error's last stop")]
fn main() -> ExitCode {
    let outcome = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Run(args) => run::run(&args),
        Verb::Lab(args) => lab::verb::run(&args),
        Verb::Screenshots(args) => run::screenshots::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Object(args) => object::run(&args),
        Verb::Deb(args) => deb::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain, without a backtrace: what failed, and why.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
