//! `tcpguard dry-run`: has a service count what it would do, or do it.

use std::io::{self, BufWriter, Write as _};
use std::net::SocketAddr;

use clap::ValueEnum;

use crate::config;
use crate::control::client::Client;
use crate::control::protocol::{Reply, Request};

use super::confirm::Within;
use super::output::write_json;
use super::session::session;
use super::{Failure, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
In dry run, what would become of segments to a service is counted beside the other counters (`tcpguard stats`), and all of
them are left to the host, whose own listener serves the port. No SYN is answered, no flow remembered, no budget of other
services used up. Segments other than SYNs count as not-followed: nobody was sent a cookie that they could carry.
Connections that began in earnest go on. Those that the host has do not when the dry run ends.
`run --dry-run`, or `dry_run = true` in the file, has services start that way. What is changed here lasts until the daemon ends
or reads its file again.

Examples:
  tcpguard dry-run 192.0.2.1:80 on       count only, at once
  tcpguard dry-run 192.0.2.1:80 off      guard in earnest
  tcpguard dry-run 192.0.2.1:80 off --confirm 60    for a minute, unless `tcpguard confirm` follows
  tcpguard mode                          which services are in dry run")]
pub(super) struct Args {
    /// Which service, by the address and port that clients connect to
    #[arg(value_name = "ADDR:PORT")]
    service: String,
    /// Whether it is to be in dry run
    #[arg(value_enum, value_name = "on|off")]
    state: Switch,
    /// Guard in earnest even if that cuts off the session that this comes from
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    within: Within,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let service: SocketAddr = config::listen_address(&args.service).map_err(Failure::BadInput)?;
    let request = Request::DryRun { service, on: args.state == Switch::On, session: session(args.force)? };
    let Reply::DryRunSet(set) = args.within.change(client, request)? else { return Err(unexpected()) };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        return Ok(write_json(&mut out, &set)?);
    }
    let word = |dry_run| if dry_run { "on" } else { "off" };
    writeln!(out, "{service}: dry run {} -> {}", word(set.old), word(set.new))?;
    Ok(out.flush()?)
}
