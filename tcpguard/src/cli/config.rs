//! `tcpguard config`: what a running daemon goes by, as a file; and an example of a file.

use std::io::{self, Write as _};

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::example;
use crate::control::client::Client;
use crate::control::protocol::{Reply, Request};

use super::output::write_json;
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
What is printed is a file that `tcpguard check` finds good: the daemon's file and arguments, and what was changed since.

Examples:
  tcpguard config
  tcpguard config --json | jq '.config.tunables'
  tcpguard config --example > tcpguard.toml     every key, with what it does")]
pub(super) struct Args {
    /// Print an annotated example instead; needs no daemon
    #[arg(long, conflicts_with = "json")]
    example: bool,
    /// Print one line of JSON: the file's keys and values
    #[arg(long)]
    json: bool,
}

/// The configuration in force.
#[derive(Serialize, JsonSchema)]
pub(super) struct Effective {
    /// The keys and values of the file that says it, as that file has them: durations are strings there.
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
    config: toml::Table,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    if args.example {
        return Ok(io::stdout().lock().write_all(example().as_bytes())?);
    }
    let Reply::Config(effective) = ask(client, &Request::Config {})? else { return Err(unexpected()) };
    let mut out = io::stdout().lock();
    if args.json {
        let config = effective.toml.parse().map_err(|_| unexpected())?;
        return Ok(write_json(&mut out, &Effective { config })?);
    }
    Ok(out.write_all(effective.toml.as_bytes())?)
}
