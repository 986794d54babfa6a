//! `tcpguard status`: what runs where.

use std::io::{self, BufWriter, Write as _};

use crate::control::client::Client;
use crate::control::protocol::{Backend, Reply, Request};

use super::output::{age, write_json};
use super::{Failure, ask, unexpected};

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
        let addresses: Vec<_> = service.backends.iter().map(|backend| backend.address.as_str()).collect();
        let backends = (!addresses.is_empty()).then(|| format!(" -> {}", addresses.join(",")));
        let responder = service.respond.as_ref().map(|responder| format!(" -> respond:{responder}"));
        let destination = backends.or(responder).unwrap_or_default();
        writeln!(out, "service {}{destination}, {}", service.listen, service.mode)?;
        for Backend { address, connections, connected, failed, rests_ms } in &service.backends {
            let rests = rests_ms.map(|left| format!(", rests for {}", age(left))).unwrap_or_default();
            writeln!(
                out,
                "  backend {address}: connections {connections}, connected {connected}, failed {failed}{rests}"
            )?;
        }
    }
    Ok(out.flush()?)
}
