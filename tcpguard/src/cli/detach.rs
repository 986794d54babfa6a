//! `tcpguard detach`: removes the program and the pins that a killed daemon left. A running daemon is refused.

use std::io::{self, Write as _};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::DEFAULT_PIN_DIR;
use crate::control::daemon;

use super::Failure;
use super::output::write_json;

#[derive(clap::Args)]
#[command(after_help = "Example:\n  tcpguard detach    after a daemon was killed and none is to take over")]
pub(super) struct Args {
    /// Where the daemon pinned its maps and links
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pin_dir: PathBuf,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What became of the pins.
#[derive(Serialize, JsonSchema)]
pub(super) struct Detached {
    /// Where it looked.
    pin_dir: PathBuf,
    /// Whether something was there.
    detached: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let left = daemon::detach(&args.pin_dir)?;
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(write_json(&mut out, &Detached { pin_dir: args.pin_dir.clone(), detached: left })?);
    }
    match left {
        true => writeln!(out, "detached what was pinned in {}", args.pin_dir.display())?,
        false => writeln!(out, "nothing was pinned in {}", args.pin_dir.display())?,
    }
    Ok(())
}
