//! `tcpguard flows`: the connections, one a line.

use std::io::{self, BufWriter, Write as _};
use std::net::SocketAddr;

use crate::config::{self, Prefix};
use crate::control::client::Client;
use crate::control::protocol::{Flow, FlowsOfService, MAX_FLOWS_LISTED, Reply, Request, Sort, Which};
use crate::control::stand_back;
use crate::stack::State;

use super::output::{Align, Table, age, write_json};
use super::session::session;
use super::stats::still;
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
Conditions add up. --kill resets what meets them, on the client's side and on the backend's, and half-open connections
as well; entries in TIME_WAIT stay, since they guard the next connection against the last one's segments.

Examples:
  tcpguard flows
  tcpguard flows --state TIME_WAIT --limit 20
  tcpguard flows --half-open
  tcpguard flows --time-wait                               how many, and how old, by service
  tcpguard flows --service 192.0.2.1:80 --sort recv-queued --limit 10
  tcpguard flows --peer 198.51.100.0/24 --older-than 10m --kill
  tcpguard flows --json | jq '.states'")]
pub(super) struct Args {
    /// Only flows in this state, such as ESTABLISHED or TIME_WAIT
    #[arg(long)]
    state: Option<String>,
    /// Only half-open connections, and how often their SYN-ACK was sent again: a flood building up
    #[arg(long, conflicts_with = "state")]
    half_open: bool,
    /// Only flows in TIME_WAIT, counted by service
    #[arg(long, conflicts_with_all = ["state", "half_open"])]
    time_wait: bool,
    /// Only flows of clients in this prefix, such as 198.51.100.7 or 2001:db8::/32, or of one client's port
    #[arg(long, value_name = "ADDR[:PORT]|PREFIX")]
    peer: Option<String>,
    /// Only flows whose end here is in this prefix
    #[arg(long, value_name = "PREFIX")]
    local: Option<Prefix>,
    /// Only flows of this service
    #[arg(long, value_name = "ADDR:PORT")]
    service: Option<String>,
    /// Only flows that are at least this old, such as 10m
    #[arg(long, value_name = "DURATION")]
    older_than: Option<String>,
    /// Only flows that are at most this old
    #[arg(long, value_name = "DURATION")]
    younger_than: Option<String>,
    /// What to sort by: the greatest first, addresses the lowest
    #[arg(long, value_enum)]
    sort: Option<Sort>,
    /// Count them by service instead of listing them
    #[arg(long)]
    summary: bool,
    /// List at most this many; the totals count all
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_FLOWS_LISTED)))]
    limit: u32,
    /// Reset them
    #[arg(long, conflicts_with_all = ["sort", "summary", "time_wait"])]
    kill: bool,
    /// Reset all of them, without a condition
    #[arg(long, requires = "kill")]
    all: bool,
    /// Reset also what may be the session that this comes from
    #[arg(long, requires = "kill")]
    force: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let which = which(args).map_err(Failure::BadInput)?;
    if args.kill {
        return kill(args, which, client);
    }
    let summary = args.summary || args.time_wait;
    let limit = if summary && !args.json { 0 } else { args.limit };
    // A million flows take seconds to read and to print, on cores that engines want. Not being able to is no reason not to list.
    let _ = stand_back();
    let Reply::Flows(flows) = ask(client, &Request::Flows { which, sort: args.sort, limit })? else {
        return Err(unexpected());
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        return Ok(write_json(&mut out, &flows)?);
    }
    for engine in &flows.left_out {
        writeln!(io::stderr(), "tcpguard: left out: {}", still(engine))?;
    }
    if summary {
        by_service(&flows.services).write(&mut out)?;
        return Ok(out.flush()?);
    }
    table(&flows.flows, args.half_open).write(&mut out)?;
    out.flush()?;
    let listed = flows.flows.len() as u64;
    if listed < flows.total {
        let hidden = flows.total - listed;
        // Beside the table, not in it: what reads the table counts its lines.
        writeln!(io::stderr(), "tcpguard: {hidden} more not listed; raise --limit ({})", args.limit)?;
    }
    Ok(())
}

fn kill(args: &Args, which: Which, client: &Client) -> Result<(), Failure> {
    if which.is_all() && !args.all {
        let why = "--kill without a condition would reset every flow; --kill --all does that";
        return Err(Failure::BadInput(why.to_owned()));
    }
    let request = Request::FlowsKill { which, all: args.all, session: session(args.force)? };
    let Reply::FlowsKilled(killed) = ask(client, &request)? else { return Err(unexpected()) };
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(write_json(&mut out, &killed)?);
    }
    Ok(writeln!(out, "{} reset", killed.killed)?)
}

/// The conditions, judged as far as that goes without the daemon.
fn which(args: &Args) -> Result<Which, String> {
    let known = [(args.half_open, State::SynReceived), (args.time_wait, State::TimeWait)];
    let known = known.into_iter().find(|(wanted, _)| *wanted).map(|(_, state)| state.name().to_owned());
    let state = args.state.as_deref().map(state_name).transpose()?.or(known);
    let (peer, peer_port) = match args.peer.as_deref() {
        Some(text) => match text.parse::<SocketAddr>() {
            Ok(addr) => (Some(addr.ip().to_string()), Some(addr.port())),
            Err(_) => (Some(text.parse::<Prefix>()?.to_string()), None),
        },
        None => (None, None),
    };
    let millis = |text: &Option<String>| {
        let age = text.as_deref().map(config::duration::parse).transpose()?;
        Ok::<_, String>(age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)))
    };
    Ok(Which {
        state,
        peer,
        peer_port,
        local: args.local.map(|prefix| prefix.to_string()),
        service: args.service.as_deref().map(config::listen_address).transpose()?,
        min_age_ms: millis(&args.older_than)?,
        max_age_ms: millis(&args.younger_than)?,
    })
}

fn by_service(services: &[FlowsOfService]) -> Table {
    let mut table = Table::new(&[
        ("SERVICE", Align::Left),
        ("FLOWS", Align::Right),
        ("YOUNGEST", Align::Right),
        ("OLDEST", Align::Right),
        ("IN", Align::Right),
        ("OUT", Align::Right),
    ]);
    for FlowsOfService { service, flows, youngest_ms, oldest_ms, bytes_in, bytes_out } in services {
        table.row(vec![
            service.map_or_else(|| "-".to_owned(), |service| service.to_string()),
            flows.to_string(),
            age(*youngest_ms),
            age(*oldest_ms),
            bytes_in.to_string(),
            bytes_out.to_string(),
        ]);
    }
    table
}

/// The stack's spelling of a state, from anybody's.
fn state_name(text: &str) -> Result<String, String> {
    let plain = |name: &str| name.replace(['_', '-'], "").to_lowercase();
    let found = State::ALL.iter().find(|state| plain(state.name()) == plain(text));
    found.map(|state| state.name().to_owned()).ok_or_else(|| {
        let known: Vec<_> = State::ALL.iter().map(|state| state.name()).collect();
        format!("unknown state `{text}`, expected one of {}", known.join(", "))
    })
}

fn table(flows: &[Flow], half_open: bool) -> Table {
    let mut columns = vec![
        ("STATE", Align::Left),
        ("RECV-Q", Align::Right),
        ("SEND-Q", Align::Right),
        ("LOCAL", Align::Left),
        ("PEER", Align::Left),
        ("SERVICE", Align::Left),
        ("AGE", Align::Right),
        ("IN", Align::Right),
        ("OUT", Align::Right),
        ("TIMER", Align::Right),
    ];
    if half_open {
        columns.push(("SENT-AGAIN", Align::Right));
    }
    let mut table = Table::new(&columns);
    for flow in flows {
        let mut row = vec![
            flow.state.to_string(),
            flow.recv_queued.to_string(),
            flow.send_queued.to_string(),
            flow.local.to_string(),
            flow.peer.to_string(),
            flow.service.map_or_else(|| "-".to_owned(), |service| service.to_string()),
            age(flow.age_ms),
            flow.bytes_in.to_string(),
            flow.bytes_out.to_string(),
            flow.timer_ms.map_or_else(|| "-".to_owned(), age),
        ];
        if half_open {
            row.push(flow.syn_ack_retransmits.map_or_else(|| "-".to_owned(), |times| times.to_string()));
        }
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_one_aligned_line() {
        let flow = Flow {
            state: "TIME_WAIT".into(),
            local: "10.0.0.1:80".parse().unwrap(),
            peer: "[2001:db8::7]:51000".parse().unwrap(),
            service: None,
            age_ms: 61_900,
            bytes_in: u64::MAX,
            bytes_out: 0,
            recv_queued: 0,
            send_queued: 12,
            rtt_us: None,
            timer_ms: Some(250),
            syn_ack_retransmits: Some(3),
            interface: "eth0".into(),
            queue: 0,
        };
        let mut out = Vec::new();
        table(std::slice::from_ref(&flow), false).write(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "STATE      RECV-Q  SEND-Q  LOCAL        PEER                 SERVICE   AGE                    IN  OUT  TIMER
TIME_WAIT       0      12  10.0.0.1:80  [2001:db8::7]:51000  -        1m1s  18446744073709551615    0  250ms
"
        );
    }

    #[test]
    fn half_open_connections_have_a_column_of_their_own() {
        let mut out = Vec::new();
        table(&[], true).write(&mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().trim_end().ends_with("TIMER  SENT-AGAIN"));
    }

    #[test]
    fn states_are_found_in_any_spelling() {
        for text in ["TIME_WAIT", "time-wait", "TimeWait", "timewait"] {
            assert_eq!(state_name(text).as_deref(), Ok("TIME_WAIT"));
        }
        assert!(state_name("HALF_DEAD").unwrap_err().contains("ESTABLISHED"));
    }
}
