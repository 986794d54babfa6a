//! `tcpguard keys`: replaces the secret that cookie keys derive from.

use std::io::{self, Write as _};

use crate::control::client::Client;
use crate::control::protocol::{Reply, Request};

use super::output::{age, write_json};
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
Keys change by themselves every cookie-period. Rotating replaces what they derive from: by what the secret file holds now,
or, without one, by another random secret. The next epoch is the first with the new secret; cookies of the old one
stay valid until they expire, so that no handshake breaks. Machines that share a secret file are rotated together.

Examples:
  tcpguard keys rotate
  openssl rand -hex 32 > /etc/tcpguard/secret && tcpguard keys rotate")]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
    /// Print one line of JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// Let cookies be made with another secret from the next epoch on
    Rotate,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let What::Rotate = args.what;
    let Reply::KeysRotated(next) = ask(client, &Request::KeysRotate {})? else { return Err(unexpected()) };
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(write_json(&mut out, &next)?);
    }
    let (from, until) = (age(next.from_ms), age(next.old_until_ms));
    Ok(writeln!(out, "new secret from epoch {} on, in {from}; old cookies valid for {until}", next.epoch)?)
}
