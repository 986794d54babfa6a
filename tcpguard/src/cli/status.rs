//! `tcpguard status`: what runs where.

use std::io::{self, BufWriter, Write as _};

use crate::control::client::Client;
use crate::control::protocol::{Backend, HeldUp, Reply, Request};

use super::output::{age, write_json};
use super::{Failure, ask, events, services, unexpected};

#[derive(clap::Args)]
#[command(after_help = "Example:\n  tcpguard status --json")]
pub(super) struct Args {
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let Reply::Status(status) = ask(client, &Request::Status {})? else { return Err(unexpected()) };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        return Ok(write_json(&mut out, &status)?);
    }
    let up = age(status.uptime_ms);
    writeln!(out, "tcpguard {}, process {}, {} for {up}", status.daemon_version, status.pid, status.phase)?;
    writeln!(out, "generation {}, cookie epoch {}", status.generation, status.epoch)?;
    for interface in &status.interfaces {
        let (name, mode, queues) = (&interface.name, &interface.mode, interface.queues);
        let af_xdp = &interface.af_xdp;
        writeln!(
            out,
            "interface {name} ({}), {mode} XDP, AF_XDP {af_xdp}, queues {queues}, {}, {}, MTU {}",
            interface.ifindex, interface.link, interface.mac, interface.mtu
        )?;
    }
    for service in &status.services {
        let destination = services::destination(service).map(|to| format!(" -> {to}")).unwrap_or_default();
        let state = service.state.as_ref().map(|state| format!(" ({state})")).unwrap_or_default();
        let dry_run = if service.dry_run { ", in dry run" } else { "" };
        let strict = match service.strict.as_str() {
            "" | "no" => String::new(),
            when => format!(", strict cookies: {when}"),
        };
        writeln!(out, "service {}{destination}, {}{state}{dry_run}{strict}", service.listen, service.mode)?;
        for backend in &service.backends {
            writeln!(out, "  {}", line(backend))?;
        }
    }
    for attack in &status.attacks {
        writeln!(out, "{}", events::banner(attack))?;
    }
    if let Some(left) = status.unconfirmed_ms {
        writeln!(out, "not confirmed: taken back in {} unless `tcpguard confirm` follows", age(left))?;
    }
    Ok(out.flush()?)
}

/// One line about a backend.
fn line(backend: &Backend) -> String {
    let Backend { address, connections, connected, failed, rests_ms, held } = backend;
    let rests = rests_ms.map(|left| format!(", rests for {}", age(left))).unwrap_or_default();
    let held = held.iter().map(|HeldUp { state, connections, oldest_ms }| {
        format!(", {state} {connections} (for {} at most)", age(*oldest_ms))
    });
    let held: String = held.collect();
    format!(
        "backend {address}: connections {connections}, connected {connected}, failed {failed}{rests}{held}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_one_line_that_says_what_is_wrong_with_it() {
        let well = Backend {
            address: "127.0.0.1:80".into(),
            connections: 3,
            connected: 10,
            failed: 0,
            rests_ms: None,
            held: Vec::new(),
        };
        assert_eq!(line(&well), "backend 127.0.0.1:80: connections 3, connected 10, failed 0");
        let held = |state: &str, connections| HeldUp { state: state.into(), connections, oldest_ms: 61_000 };
        let ill = Backend {
            failed: 2,
            rests_ms: Some(1500),
            held: vec![held("close-wait", 2), held("backend-stalled", 1)],
            ..well
        };
        assert_eq!(
            line(&ill),
            "backend 127.0.0.1:80: connections 3, connected 10, failed 2, rests for 1s, close-wait 2 (for 1m1s \
             at most), backend-stalled 1 (for 1m1s at most)"
        );
    }
}
