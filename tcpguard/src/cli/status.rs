//! `tcpguard status`: what runs where, how it is, and what is about to run out.

use std::io::{self, BufWriter, Write};

use crate::config::shown::printable;
use crate::control::client::Client;
use crate::control::protocol::{Backend, EngineState, HeldUp, Keys, Limit, Reply, Request};

use super::output::{Align, Table, age, write_json};
use super::{Failure, ask, events, services, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
Said is what is about to run out: whatever is four fifths full or more, with what would help. --limits lists all that is
bounded; where each engine (one for each receive queue) has its own, that of the fullest.

Examples:
  tcpguard status
  tcpguard status --limits
  tcpguard status --json | jq '.limits[] | select(.near)'")]
pub(super) struct Args {
    /// List everything that is bounded, and how full it is, instead
    #[arg(long, conflicts_with = "json")]
    limits: bool,
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
    if args.limits {
        table(&status.limits).write(&mut out)?;
        return Ok(out.flush()?);
    }
    let up = age(status.uptime_ms);
    writeln!(out, "tcpguard {}, process {}, {} for {up}", status.daemon_version, status.pid, status.phase)?;
    writeln!(out, "generation {}, cookie epoch {}", status.generation, status.epoch)?;
    writeln!(out, "{}", keys(&status.keys))?;
    for interface in &status.interfaces {
        let (name, mode, queues) = (&interface.name, &interface.mode, interface.queues);
        let af_xdp = &interface.af_xdp;
        writeln!(
            out,
            "interface {name} ({}), {mode} XDP, AF_XDP {af_xdp}, queues {queues}, {}, {}, MTU {}",
            interface.ifindex, interface.link, interface.mac, interface.mtu
        )?;
    }
    for engine in &status.engines {
        if let Some(said) = engine_line(engine) {
            writeln!(out, "{said}")?;
        }
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
    limits(&mut out, &status.limits)?;
    if let Some(left) = status.unconfirmed_ms {
        writeln!(out, "not confirmed: taken back in {} unless `tcpguard confirm` follows", age(left))?;
    }
    Ok(out.flush()?)
}

/// One line about the keys.
fn keys(keys: &Keys) -> String {
    let Keys { age_ms, next_ms, period_ms, secret_age_ms, secret_file } = keys;
    let secret = secret_file.as_ref().map_or_else(|| "random".to_owned(), |file| format!("of {file}"));
    format!(
        "cookie key {} old, the next in {} (each for {}), secret {secret}, {} old",
        age(*age_ms),
        age(*next_ms),
        age(*period_ms),
        age(*secret_age_ms)
    )
}

/// What is wrong with an engine, if something is.
fn engine_line(engine: &EngineState) -> Option<String> {
    let EngineState { interface, queue, turns, turned_ms, pressed } = engine;
    match (turns, pressed) {
        (false, _) => Some(format!(
            "engine {interface} queue {queue} STANDS STILL for {}: its clients wait and its SYNs are not answered; a new \
             daemon takes over (systemctl restart tcpguard)",
            age(*turned_ms)
        )),
        (true, true) => Some(format!(
            "engine {interface} queue {queue} is under pressure: no connection may send more than flow-rate"
        )),
        (true, false) => None,
    }
}

/// What is about to run out, or that nothing is.
fn limits(out: &mut impl Write, limits: &[Limit]) -> io::Result<()> {
    let share = |limit: &Limit| limit.used as f64 / limit.limit.max(1) as f64;
    let fullest = limits.iter().max_by(|one, other| share(one).total_cmp(&share(other)));
    for limit in limits.iter().filter(|limit| limit.near) {
        writeln!(out, "nearly full: {}; {}", fullness(limit), limit.remedy)?;
    }
    match fullest {
        Some(limit) if !limit.near => {
            writeln!(out, "limits: nothing is nearly full, most so {}", fullness(limit))
        }
        Some(_) | None => Ok(()),
    }
}

fn fullness(limit: &Limit) -> String {
    let Limit { name, of, used, limit, permille, .. } = limit;
    let of = of.as_ref().map(|of| format!(" of {of}")).unwrap_or_default();
    format!("{name}{of} ({used} of {limit}, {})", percent(*permille))
}

fn percent(permille: u64) -> String {
    format!("{}.{}%", permille / 10, permille % 10)
}

fn table(limits: &[Limit]) -> Table {
    let mut table = Table::new(&[
        ("LIMIT", Align::Left),
        ("OF", Align::Left),
        ("USED", Align::Right),
        ("LIMIT", Align::Right),
        ("FULL", Align::Right),
        ("HELPS", Align::Left),
    ]);
    for Limit { name, of, used, limit, permille, near: _, remedy } in limits {
        table.row(vec![
            name.clone(),
            of.clone().unwrap_or_else(|| "-".to_owned()),
            used.to_string(),
            limit.to_string(),
            percent(*permille),
            remedy.clone(),
        ]);
    }
    table
}

/// One line about a backend.
fn line(backend: &Backend) -> String {
    let Backend { address, connections, connected, failed, rests_ms, held } = backend;
    let address = printable(address);
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
    fn what_is_about_to_run_out_is_said_with_what_helps() {
        let limit = |name: &str, used, permille| Limit {
            name: name.into(),
            of: (name == "half-open-ipv4").then(|| "eth0 queue 1".to_owned()),
            used,
            limit: 1000,
            permille,
            near: permille >= 800,
            remedy: "do this".into(),
        };
        let said = |all: &[Limit]| {
            let mut out = Vec::new();
            limits(&mut out, all).unwrap();
            String::from_utf8(out).unwrap()
        };
        let near = "nearly full: half-open-ipv4 of eth0 queue 1 (912 of 1000, 91.2%); do this\n";
        assert_eq!(said(&[limit("orphans", 3, 3), limit("half-open-ipv4", 912, 912)]), near);
        let calm = "limits: nothing is nearly full, most so descriptors (41 of 1000, 4.1%)\n";
        assert_eq!(said(&[limit("orphans", 3, 3), limit("descriptors", 41, 41)]), calm);
        let hardly = said(&[limit("orphans", 4, 0), limit("descriptors", 3, 0)]);
        assert!(hardly.contains("most so orphans (4 of 1000, 0.0%)"), "{hardly}");
        assert_eq!(said(&[]), "");
    }

    #[test]
    fn keys_and_engines_are_a_line_each() {
        let held = Keys {
            age_ms: 12_300,
            next_ms: 47_700,
            period_ms: 60_000,
            secret_age_ms: 3_600_000,
            secret_file: None,
        };
        assert_eq!(keys(&held), "cookie key 12s old, the next in 47s (each for 1m), secret random, 1h old");
        let shared = Keys { secret_file: Some("/etc/tcpguard/secret".into()), ..held };
        assert!(keys(&shared).contains("secret of /etc/tcpguard/secret, 1h old"));
        let engine = |turns, pressed| EngineState {
            interface: "eth0".into(),
            queue: 3,
            turns,
            turned_ms: 7000,
            pressed,
        };
        assert_eq!(engine_line(&engine(true, false)), None);
        assert!(
            engine_line(&engine(false, true))
                .is_some_and(|said| said.starts_with("engine eth0 queue 3 STANDS STILL for 7s"))
        );
        assert!(engine_line(&engine(true, true)).is_some_and(|said| said.contains("flow-rate")));
    }

    #[test]
    fn the_path_of_a_backend_is_not_obeyed_by_a_terminal() {
        let address = "unix:/run/\u{1b}[2J\nservice".to_owned();
        let backend =
            Backend { address, connections: 0, connected: 0, failed: 0, rests_ms: None, held: Vec::new() };
        assert!(line(&backend).starts_with("backend unix:/run/\\u{1b}[2J\\nservice: "), "{}", line(&backend));
    }

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
