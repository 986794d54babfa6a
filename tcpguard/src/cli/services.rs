//! `tcpguard services`: lists the services, and puts them in, changes them and takes them out while the daemon runs.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write as _};
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::Serialize;

use crate::config;
use crate::config::shown::printable;
use crate::control::client::Client;
use crate::control::protocol::{self as wire, Reply, Request, ServicesChanged, Session};

use super::confirm::Within;
use super::output::{Align, Table, write_json};
use super::session::session;
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
KEY=VALUE are the keys of [[service]] in the configuration file (`tcpguard config --example` has them all); an empty value
takes a key away; its tunables are `tcpguard tune NAME VALUE --service ADDR:PORT`. A change applies at once: a new service is guarded, a changed one treats new connections as it says and
leaves open ones alone, and one that is taken out leaves its port to the host and has its connections reset.

The session that this comes from is the one that SSH_CONNECTION names: here, or in the environment of a parent, as under sudo
and su.

Examples:
  tcpguard services                                      list them
  tcpguard services add 192.0.2.1:443=127.0.0.1:8443,auto max_connections=10000
  tcpguard services set 192.0.2.1:443 backend=127.0.0.1:8443,127.0.0.1:9443 balance=least-connections
  tcpguard services set 192.0.2.1:443 max_connections=   no limit any more
  tcpguard services del 192.0.2.1:443 --save             out of the file, too
  tcpguard services add 192.0.2.1:25=127.0.0.1:2525 --confirm 60    for a minute, unless confirmed")]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    within: Within,
    /// Print one line of JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// Guard one more service
    Add {
        /// As `tcpguard run --protect` has it
        #[arg(value_name = "ADDR:PORT=BACKEND[,MODE]")]
        service: String,
        /// Further keys of its table
        #[arg(value_name = "KEY=VALUE")]
        keys: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Change a service
    Set {
        /// Where its clients connect
        #[arg(value_name = "ADDR:PORT")]
        service: String,
        /// Keys of its table
        #[arg(value_name = "KEY=VALUE", required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        how: How,
    },
    /// Guard a service no more, and reset its connections
    Del {
        /// Where its clients connect
        #[arg(value_name = "ADDR:PORT")]
        service: String,
        #[command(flatten)]
        how: How,
    },
}

#[derive(clap::Args)]
struct How {
    /// Write it into the daemon's configuration file, too; comments stay
    #[arg(long)]
    save: bool,
    /// Even if it cuts off the session that this comes from
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    args.within.is_for(args.what.is_some())?;
    let Some(what) = &args.what else { return list(args, client) };
    let (What::Add { how, .. } | What::Set { how, .. } | What::Del { how, .. }) = what;
    let request = request(what, session(how.force)?).map_err(Failure::BadInput)?;
    args.within.check(how.save)?;
    let Reply::ServicesChanged(changed) = args.within.change(client, request)? else {
        return Err(unexpected());
    };
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(write_json(&mut out, &changed)?);
    }
    let saved = changed.saved.as_ref().map(|file| format!(", saved in {file}")).unwrap_or_default();
    match lines(&changed).as_slice() {
        [] => writeln!(out, "nothing changed{saved}")?,
        lines => lines.iter().try_for_each(|line| writeln!(out, "{line}{saved}"))?,
    }
    Ok(out.flush()?)
}

/// What can be judged without the daemon is.
fn request(what: &What, session: Option<Session>) -> Result<Request, String> {
    Ok(match what {
        What::Add { service, keys, how } => {
            let keys = read_keys(keys)?;
            service.parse::<config::Service>()?.with_keys(&keys)?;
            Request::ServicesAdd { service: service.clone(), keys, save: how.save, session }
        }
        What::Set { service, keys, how } => {
            let (service, keys) = (config::listen_address(service)?, read_keys(keys)?);
            Request::ServicesSet { service, keys, save: how.save, session }
        }
        What::Del { service, how } => {
            let service = config::listen_address(service)?;
            Request::ServicesDel { service, save: how.save, session }
        }
    })
}

fn read_keys(keys: &[String]) -> Result<BTreeMap<String, String>, String> {
    let mut read = BTreeMap::new();
    for text in keys {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is not KEY=VALUE, as in max_connections=100"))?;
        if read.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    Ok(read)
}

/// What became of services, a line each.
pub(super) fn lines(changed: &ServicesChanged) -> Vec<String> {
    let ServicesChanged { added, changed, removed, reset, saved: _, unconfirmed_ms: _ } = changed;
    let line = |what: &'static str| move |service: &SocketAddr| format!("service {service}: {what}");
    let reset = format!("removed, connections reset: {reset}");
    let mut lines: Vec<_> = added.iter().map(line("added")).collect();
    lines.extend(changed.iter().map(line("changed")));
    lines.extend(removed.iter().map(|service| format!("service {service}: {reset}")));
    lines
}

/// The services.
#[derive(Serialize, JsonSchema)]
pub(super) struct Services {
    /// As `status` has them.
    services: Vec<wire::Service>,
}

fn list(args: &Args, client: &Client) -> Result<(), Failure> {
    let Reply::Status(wire::Status { services, .. }) = ask(client, &Request::Status {})? else {
        return Err(unexpected());
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        return Ok(write_json(&mut out, &Services { services })?);
    }
    table(&services).write(&mut out)?;
    Ok(out.flush()?)
}

fn table(services: &[wire::Service]) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("MODE", Align::Left),
        ("NOW", Align::Left),
        ("CONNECTIONS", Align::Right),
        ("FAILED", Align::Right),
        ("DESTINATION", Align::Left),
    ]);
    for service in services {
        let sum = |count: fn(&wire::Backend) -> u64| {
            let relayed = !service.backends.is_empty();
            let sum = service.backends.iter().map(count).sum::<u64>();
            if relayed { sum.to_string() } else { "-".to_owned() }
        };
        table.row(vec![
            service.listen.to_string(),
            service.mode.clone(),
            service.state.clone().unwrap_or_else(|| "-".to_owned()),
            sum(|backend| backend.connections),
            sum(|backend| backend.failed),
            destination(service).unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

/// Where a service's connections go, as a terminal may be shown it.
pub(super) fn destination(service: &wire::Service) -> Option<String> {
    let addresses: Vec<_> = service.backends.iter().map(|backend| backend.address.as_str()).collect();
    let backends = (!addresses.is_empty()).then(|| printable(&addresses.join(",")).into_owned());
    backends.or_else(|| service.respond.as_ref().map(|responder| format!("respond:{responder}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_one_aligned_line() {
        let backend = |failed| wire::Backend {
            address: "10.0.0.5:80".into(),
            connections: 3,
            connected: 9,
            failed,
            rests_ms: None,
            held: Vec::new(),
        };
        let relayed = wire::Service {
            listen: "192.0.2.1:443".parse().unwrap(),
            mode: "auto".into(),
            state: Some("calm".into()),
            dry_run: false,
            strict: "no".into(),
            backend: Some("10.0.0.5:80".into()),
            respond: None,
            backends: vec![backend(1), backend(2)],
        };
        let echo = wire::Service {
            listen: "[::]:7".parse().unwrap(),
            mode: "cookie".into(),
            state: None,
            dry_run: true,
            strict: "no".into(),
            backend: None,
            respond: Some("echo".into()),
            backends: Vec::new(),
        };
        let mut out = Vec::new();
        table(&[relayed, echo]).write(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "SERVICE        MODE    NOW   CONNECTIONS  FAILED  DESTINATION
192.0.2.1:443  auto    calm            6       3  10.0.0.5:80,10.0.0.5:80
[::]:7         cookie  -               -       -  respond:echo
"
        );
    }
}
