//! `tcpguard flows`: the connections, one a line.

use std::io::{self, BufWriter, Write as _};

use crate::control::client::Client;
use crate::control::protocol::{Flow, MAX_FLOWS_LISTED, Reply, Request};
use crate::stack::State;

use super::output::{Align, Table, age, write_json};
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tcpguard flows
  tcpguard flows --state TIME_WAIT --limit 20
  tcpguard flows --half-open
  tcpguard flows --json | jq '.states'")]
pub(super) struct Args {
    /// Only flows in this state, such as ESTABLISHED or TIME_WAIT
    #[arg(long)]
    state: Option<String>,
    /// Only half-open connections, and how often their SYN-ACK was sent again: a flood building up
    #[arg(long, conflicts_with = "state")]
    half_open: bool,
    /// List at most this many; the totals count all
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_FLOWS_LISTED)))]
    limit: u32,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let half_open = args.half_open.then_some(State::SynReceived.name());
    let state = args.state.as_deref().or(half_open).map(state_name).transpose().map_err(Failure::BadInput)?;
    let Reply::Flows(flows) = ask(client, &Request::Flows { state, limit: args.limit })? else {
        return Err(unexpected());
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        return Ok(write_json(&mut out, &flows)?);
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
            flow.state.clone(),
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
