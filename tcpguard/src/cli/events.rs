//! `tcpguard events`: attacks, as they began and ended.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime};

use crate::control::client::Client;
use crate::control::protocol::{Attack, Event, Events, HookRuns, Reply, Request};

use super::output::{Align, Table, age, write_json};
use super::{Failure, ask, refused, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
An attack is noticed once a second by its rate (tcpguard tune attack-syns, attack-acks, attack-connections, attack-stalls)
and is over after attack-calm-time below half of it. RATE and PEAK are SYNs a second that lead to no handshake (syn-flood),
ACKs a second without a valid cookie (ack-flood), handshakes a second (connection-flood), or connections whose clients take
nothing of what backends say (slow-read). SOURCES is a lower bound, estimated from segments that are sampled for 20 ms of
each second, of a slow-read from the connections that have stood still for longest, looked at every 10 s; of these the last
4096 count. FROM are the /24 (IPv6: /48) that most of these came from, with their share.
The daemon keeps its last 512 events; a hook ([events] in the configuration file) hears of each as it happens.

Examples:
  tcpguard events
  tcpguard events --follow
  tcpguard events --json | jq '.ongoing[] | {service, kind, rate}'")]
pub(super) struct Args {
    /// Print what happened so far and then whatever happens, a line each, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Print one line of JSON; with --follow, one for each event
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    if args.follow {
        return follow(args, client);
    }
    let Reply::Events(events) = ask(client, &Request::Events {})? else { return Err(unexpected()) };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        return Ok(write_json(&mut out, &events)?);
    }
    write(&mut out, &events)?;
    Ok(out.flush()?)
}

fn follow(args: &Args, client: &Client) -> Result<(), Failure> {
    let mut result = Ok(());
    client.follow(&Request::EventsFollow {}, |reply| {
        let mut out = io::stdout().lock();
        result = match reply {
            Reply::Event(event) if args.json => write_json(&mut out, &event).map_err(Failure::from),
            Reply::Event(event) => writeln!(out, "{}", line(&event)).map_err(Failure::from),
            Reply::Error(refusal) => Err(refused(refusal)),
            _ => Err(unexpected()),
        };
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    result?;
    Err(Failure::Failed("the daemon hung up".to_owned()))
}

fn write(out: &mut impl Write, events: &Events) -> io::Result<()> {
    let Events { ongoing, events, hook } = events;
    if ongoing.is_empty() && events.is_empty() {
        writeln!(out, "no attack since the daemon started")?;
    }
    for attack in ongoing {
        writeln!(out, "{}", banner(attack))?;
    }
    if !events.is_empty() {
        if !ongoing.is_empty() {
            writeln!(out)?;
        }
        table(events).write(out)?;
    }
    let HookRuns { done, failed, late, skipped } = hook;
    if failed + late + skipped > 0 {
        writeln!(out, "\nhook: {done} done, {failed} failed, {late} killed, {skipped} skipped")?;
    }
    Ok(())
}

/// What is going on, in a line.
pub(super) fn banner(attack: &Attack) -> String {
    let Attack { service, kind, rate, peak, sources_at_least, .. } = attack;
    let from = from(attack).map(|from| format!(", from {from}")).unwrap_or_default();
    let since = time(attack.began_ms);
    let unit = unit(kind);
    format!(
        "under attack: {service}: {kind} since {since}, {rate}{unit}, peak {peak}{unit}, at least {sources_at_least} \
         sources{from}"
    )
}

fn table(events: &[Event]) -> Table {
    let mut table = Table::new(&[
        ("EVENT", Align::Right),
        ("TIME", Align::Left),
        ("WHAT", Align::Left),
        ("SERVICE", Align::Left),
        ("KIND", Align::Left),
        ("PEAK", Align::Right),
        ("LASTED", Align::Right),
        ("SOURCES", Align::Right),
        ("FROM", Align::Left),
    ]);
    for event in events {
        let attack = &event.attack;
        let lasted = attack.ended_ms.map(|ended| age(ended.saturating_sub(attack.began_ms)));
        table.row(vec![
            event.number.to_string(),
            time(event.time_ms),
            event.event.clone(),
            attack.service.to_string(),
            attack.kind.clone(),
            format!("{}{}", attack.peak, unit(&attack.kind)),
            lasted.unwrap_or_else(|| "-".to_owned()),
            format!(">={}", attack.sources_at_least),
            from(attack).unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

fn line(event: &Event) -> String {
    let Attack { service, kind, peak, total, began_ms, ended_ms, sources_at_least, .. } = &event.attack;
    let from = from(&event.attack).map(|from| format!(", from {from}")).unwrap_or_default();
    let lasted = ended_ms.map(|ended| format!(", {total} in {}", age(ended.saturating_sub(*began_ms))));
    format!(
        "{} {} {service} {kind}: peak {peak}{}{}, at least {sources_at_least} sources{from}",
        time(event.time_ms),
        event.event,
        unit(kind),
        lasted.unwrap_or_default(),
    )
}

/// Of what a rate is.
pub(super) fn unit(kind: &str) -> &'static str {
    if kind == "slow-read" { "" } else { "/s" }
}

fn from(attack: &Attack) -> Option<String> {
    let shares = attack.prefixes.iter().map(|from| {
        let (percent, tenth) = (from.permille / 10, from.permille % 10);
        format!("{} {percent}.{tenth}%", from.prefix)
    });
    let shares: Vec<_> = shares.collect();
    (!shares.is_empty()).then(|| shares.join(" "))
}

/// Date and time in UTC, to a second.
pub(super) fn time(unix_ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(unix_ms.min(i64::MAX as u64 / 1_000_000));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::AttackPrefix;

    fn event(number: u64, kind: &str, ended_ms: Option<u64>) -> Event {
        let prefix =
            |prefix: &str, permille| AttackPrefix { prefix: prefix.into(), samples: 2 * permille, permille };
        let attack = Attack {
            number: 1,
            service: "192.0.2.1:443".parse().unwrap(),
            kind: kind.into(),
            began_ms: 1_700_000_000_000,
            ended_ms,
            rate: 1000,
            peak: 1_250_000,
            total: 7_000_000,
            sampled: 2000,
            sources_seen: 500,
            sources_at_least: 612,
            prefixes: vec![prefix("198.51.100.0/24", 991), prefix("203.0.113.0/24", 9)],
        };
        let event = if ended_ms.is_some() { "attack-ended" } else { "attack-began" };
        Event { number, time_ms: 1_700_000_001_000 + 1000 * number, event: event.into(), attack }
    }

    fn shown(events: &Events) -> String {
        let mut out = Vec::new();
        write(&mut out, events).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_list_says_what_is_on_and_what_was() {
        let began = event(3, "slow-read", None);
        let events = vec![event(1, "syn-flood", None), event(2, "syn-flood", Some(1_700_000_061_500)), began];
        let ongoing = vec![events[2].attack.clone()];
        let hook = HookRuns { done: 3, failed: 1, ..HookRuns::default() };
        assert_eq!(
            shown(&Events { ongoing, events, hook }),
            "under attack: 192.0.2.1:443: slow-read since 2023-11-14T22:13:20Z, 1000, peak 1250000, at least 612 \
             sources, from 198.51.100.0/24 99.1% 203.0.113.0/24 0.9%

EVENT  TIME                  WHAT          SERVICE        KIND            PEAK  LASTED  SOURCES  FROM
    1  2023-11-14T22:13:22Z  attack-began  192.0.2.1:443  syn-flood  1250000/s       -    >=612  198.51.100.0/24 99.1% 203.0.113.0/24 0.9%
    2  2023-11-14T22:13:23Z  attack-ended  192.0.2.1:443  syn-flood  1250000/s    1m1s    >=612  198.51.100.0/24 99.1% 203.0.113.0/24 0.9%
    3  2023-11-14T22:13:24Z  attack-began  192.0.2.1:443  slow-read    1250000       -    >=612  198.51.100.0/24 99.1% 203.0.113.0/24 0.9%

hook: 3 done, 1 failed, 0 killed, 0 skipped
"
        );
        let none = Events { ongoing: vec![], events: vec![], hook: HookRuns::default() };
        assert_eq!(shown(&none), "no attack since the daemon started\n");
    }

    #[test]
    fn a_followed_event_is_one_line() {
        assert_eq!(
            line(&event(2, "syn-flood", Some(1_700_000_061_500))),
            "2023-11-14T22:13:23Z attack-ended 192.0.2.1:443 syn-flood: peak 1250000/s, 7000000 in 1m1s, at least 612 \
             sources, from 198.51.100.0/24 99.1% 203.0.113.0/24 0.9%"
        );
        assert!(time(u64::MAX).starts_with("2262-"));
    }
}
