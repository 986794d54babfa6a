//! `tcpguard mode`: lists how services treat SYNs, and changes it.

use std::io::{self, BufWriter, Write as _};
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::{self, ServiceMode};
use crate::control::client::Client;
use crate::control::protocol::{Reply, Request, Service};

use super::confirm::Within;
use super::output::{Align, Table, write_json};
use super::session::session;
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
auto      remember SYNs and repeat their answers while it is calm, answer with cookies in a flood of them
cookie    answer every SYN with a cookie
stateful  remember SYNs, as far as stateful-rate and half-open-limit go; cookies for those beyond
off       count segments and leave them to the host, those of open connections included

In mode auto a flood has begun at more than stateful-rate SYNs a second, or with a half-open queue three quarters full; it is over
after calm-time at less than half of either (tcpguard tune). The shares are fixed: what they are of is stateful-rate and
half-open-limit.

Examples:
  tcpguard mode                          list them all
  tcpguard mode 192.0.2.1:80 cookie      change one, at once, until the daemon ends or reads its
                                         file again")]
pub(super) struct Args {
    /// Which service, by the address and port that clients connect to
    #[arg(value_name = "ADDR:PORT", requires = "mode")]
    service: Option<String>,
    /// Its new mode: auto, cookie, stateful, off
    mode: Option<String>,
    /// Even if it cuts off the session that this comes from
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    within: Within,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// The services.
#[derive(Serialize, JsonSchema)]
pub(super) struct Listed<'a> {
    /// As `status` has them.
    services: &'a [Service],
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    args.within.is_for(args.mode.is_some())?;
    let mut out = BufWriter::new(io::stdout().lock());
    let (Some(service), Some(mode)) = (&args.service, &args.mode) else {
        let Reply::Status(status) = ask(client, &Request::Status {})? else { return Err(unexpected()) };
        if args.json {
            return Ok(write_json(&mut out, &Listed { services: &status.services })?);
        }
        table(&status.services).write(&mut out)?;
        return Ok(out.flush()?);
    };
    let service: SocketAddr = config::listen_address(service).map_err(Failure::BadInput)?;
    let mode: ServiceMode = mode.parse().map_err(Failure::BadInput)?;
    let request = Request::Mode { service, mode: mode.to_string(), session: session(args.force)? };
    let Reply::ModeSet(set) = args.within.change(client, request)? else { return Err(unexpected()) };
    if args.json {
        return Ok(write_json(&mut out, &set)?);
    }
    writeln!(out, "{service}: {} -> {}", set.old, set.new)?;
    Ok(out.flush()?)
}

/// The services, their modes, what those in mode auto do at present, which are in dry run, and whether their cookies are strict.
pub(super) fn table(services: &[Service]) -> Table {
    let columns = ["SERVICE", "MODE", "NOW", "STRICT"].map(|name| (name, Align::Left));
    let mut table = Table::new(&columns);
    for service in services {
        let dry_run = service.dry_run.then_some("dry run");
        let now: Vec<_> = service.state.as_deref().into_iter().chain(dry_run).collect();
        let state = if now.is_empty() { "-".to_owned() } else { now.join(", ") };
        table.row(vec![service.listen.to_string(), service.mode.clone(), state, service.strict.clone()]);
    }
    table
}
