//! `tcpguard reload`: has the daemon read its file again.

use std::io::{self, BufWriter, Write as _};

use crate::control::client::Client;
use crate::control::protocol::{Reply, Request};

use super::confirm::Within;
use super::output::write_json;
use super::session::session;
use super::{Failure, services, tune, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
Tunables, filters, services and the contents of the secret file are put in force, in place of what was changed since.
Connections stay; only those of a service that is not there any more are reset. A file that is not good, or that changes
what takes a restart (interfaces, paths, max_flows), changes nothing. SIGHUP does the same, and the log says what came of it.

Examples:
  tcpguard check && tcpguard reload
  tcpguard reload --json | jq '.tunables'")]
pub(super) struct Args {
    /// Even if a filter or service then cuts off the session that this comes from
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    within: Within,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let request = Request::Reload { session: session(args.force)? };
    let Reply::Reloaded(done) = args.within.change(client, request)? else { return Err(unexpected()) };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        return Ok(write_json(&mut out, &done)?);
    }
    writeln!(out, "{}: in force", done.file)?;
    for tuned in &done.tunables {
        writeln!(out, "{}", tune::change(tuned))?;
    }
    let filters = &done.filters;
    writeln!(
        out,
        "filters: {} added, {} removed, {} in force",
        filters.added, filters.removed, filters.total
    )?;
    for line in services::lines(&done.services) {
        writeln!(out, "{line}")?;
    }
    if done.new_secret {
        writeln!(out, "keys: the new secret counts from the next epoch on")?;
    }
    Ok(out.flush()?)
}
