//! `tcpguard stats`: every counter, with rates between two readings; of all time, or since one's own zero point.

use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::thread::sleep;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::control::client::Client;
use crate::control::protocol::{EngineName, Groups, Reply, Request, ServiceCount, Stats};

use super::output::{Align, Table, age, rate, terminal_columns, write_json};
use super::zero::Zero;
use super::{Failure, ask, events, unexpected};

/// Between the two readings that a single listing's rates come from.
const SAMPLE: Duration = Duration::from_millis(250);
/// Cursor to the top left, and clear to the end: no flicker.
const HOME: &str = "\x1b[H\x1b[J";

#[derive(clap::Args)]
#[command(after_help = "\
Reasons count since the program was attached, everything else since the daemon started. --reset-view has you see all of it
counted from now on, and --since-reset again later; the daemon goes on counting, and nobody else sees a difference. Amounts,
such as flows by state, are always those of this moment.

Examples:
  tcpguard stats
  tcpguard stats --watch 2 --per-cpu
  tcpguard stats --reset-view --watch      what comes from now on
  tcpguard stats --since-reset             what came since --reset-view
  tcpguard stats --json | jq '.reasons[] | select(.name == \"cookie-sent\").total'")]
pub(super) struct Args {
    /// Read again every SECONDS (1 unless given) until interrupted
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = interval)]
    watch: Option<Duration>,
    /// A column for each CPU
    #[arg(long)]
    per_cpu: bool,
    /// A table for each engine too
    #[arg(long)]
    per_engine: bool,
    /// Also what was never counted
    #[arg(long)]
    all: bool,
    /// Count from now on, in your view alone, and remember that for --since-reset
    #[arg(long)]
    reset_view: bool,
    /// Show what was counted since you last said --reset-view
    #[arg(long, conflicts_with = "reset_view")]
    since_reset: bool,
    /// Print one line of JSON for each reading: totals only
    #[arg(long)]
    json: bool,
}

pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err("not within 0.1 to 3600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut before = read(client)?;
    let zero = zero(args, client, &before)?;
    if args.json {
        write_json(&mut out, &View::new(zero.as_ref(), before))?;
        while let Some(interval) = args.watch {
            sleep(interval);
            write_json(&mut out, &View::new(zero.as_ref(), read(client)?))?;
        }
        return Ok(());
    }
    let clear = args.watch.is_some() && io::stdout().is_terminal();
    before = View::new(zero.as_ref(), before).stats;
    loop {
        sleep(args.watch.unwrap_or(SAMPLE));
        let now = View::new(zero.as_ref(), read(client)?);
        if clear {
            write!(out, "{HOME}")?;
        }
        write(&mut out, args, &before, &now)?;
        out.flush()?;
        if args.watch.is_none() {
            return Ok(());
        }
        if !clear {
            writeln!(out)?;
        }
        before = now.stats;
    }
}

/// What this view counts from; nothing if it shows the daemon's own counters.
fn zero(args: &Args, client: &Client, now: &Stats) -> Result<Option<Zero>, Failure> {
    if args.since_reset {
        return Zero::load(client.path()).map(Some);
    }
    let zero = args.reset_view.then(|| Zero::new(now.clone()));
    zero.as_ref().map_or(Ok(()), |zero| zero.save(client.path()))?;
    Ok(zero)
}

/// A reading, as it is seen from a zero point.
#[derive(Serialize, JsonSchema)]
pub(super) struct View {
    /// What it counts from, milliseconds since 1970; absent if the daemon's counters are shown as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    since_ms: Option<u64>,
    #[serde(flatten)]
    stats: Stats,
}

impl View {
    fn new(zero: Option<&Zero>, now: Stats) -> Self {
        match zero {
            Some(zero) => Self { since_ms: Some(zero.taken_ms), stats: zero.until(&now) },
            None => Self { since_ms: None, stats: now },
        }
    }
}

fn read(client: &Client) -> Result<Stats, Failure> {
    match ask(client, &Request::Stats {})? {
        Reply::Stats(stats) => Ok(stats),
        _ => Err(unexpected()),
    }
}

fn write(
    out: &mut impl Write,
    args: &Args,
    before: &Stats,
    View { since_ms, stats: now }: &View,
) -> io::Result<()> {
    let elapsed = now.time_ms.saturating_sub(before.time_ms);
    let since = since_ms.map(|since| format!(", counted since {}", events::time(since))).unwrap_or_default();
    writeln!(out, "up {}{since}, rates over {elapsed} ms", age(now.uptime_ms))?;
    for engine in &now.left_out {
        writeln!(out, "left out: {}", still(engine))?;
    }
    section(out, &reasons(args, before, now, elapsed))?;
    section(out, &services("SERVICE", &now.services))?;
    section(out, &services("EACH SECOND", &rates(&before.services, &now.services, elapsed)))?;
    section(out, &services("DRY RUN", &now.dry_run))?;
    section(out, &states(args, now))?;
    // What an engine counts that was left out before, or is now, came in no moment.
    let totals = if before.left_out == now.left_out { &before.totals } else { &now.totals };
    section(out, &groups(args, totals, &now.totals, elapsed))?;
    if args.per_engine {
        for engine in &now.engines {
            writeln!(out, "\n{} queue {}", engine.interface, engine.queue)?;
            let same = |other: &&crate::control::protocol::Engine| {
                other.interface == engine.interface && other.queue == engine.queue
            };
            let empty = Groups::new();
            let earlier = before.engines.iter().find(same).map_or(&empty, |earlier| &earlier.counters);
            section(out, &groups(args, earlier, &engine.counters, elapsed))?;
        }
    }
    Ok(())
}

/// What there is to say of an engine that is left out.
pub(super) fn still(engine: &EngineName) -> String {
    format!("{engine}, which stands still; `tcpguard status` says for how long")
}

fn section(out: &mut impl Write, table: &Table) -> io::Result<()> {
    if table.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    table.write_within(out, terminal_columns())
}

fn reasons(args: &Args, before: &Stats, now: &Stats, elapsed: u64) -> Table {
    let cpus = now.reasons.first().map_or(0, |reason| reason.per_cpu.len());
    let names: Vec<String> = (0..cpus).map(|cpu| format!("CPU{cpu}")).collect();
    let mut columns = vec![
        ("REASON", Align::Left),
        ("OUTCOME", Align::Left),
        ("TOTAL", Align::Right),
        ("RATE/s", Align::Right),
    ];
    let dry_run = now.reasons.iter().any(|reason| reason.dry_run > 0);
    if dry_run {
        columns.push(("DRY RUN", Align::Right));
    }
    if args.per_cpu {
        columns.extend(names.iter().map(|name| (name.as_str(), Align::Right)));
    }
    let mut table = Table::new(&columns);
    for reason in now.reasons.iter().filter(|reason| args.all || reason.total + reason.dry_run > 0) {
        let earlier =
            before.reasons.iter().find(|other| other.name == reason.name).map_or(0, |other| other.total);
        let rate = rate(earlier, reason.total, elapsed).to_string();
        let mut row = vec![reason.name.clone(), reason.outcome.clone(), reason.total.to_string(), rate];
        if dry_run {
            row.push(reason.dry_run.to_string());
        }
        if args.per_cpu {
            row.extend(reason.per_cpu.iter().map(u64::to_string));
        }
        table.row(row);
    }
    table
}

/// What is counted for each service, and what it means.
pub(super) const SERVICE_COLUMNS: [(&str, &str); 9] = [
    ("SYN", "Well-formed SYNs, answered or not; without those of denied sources."),
    ("COOKIE", "Of the SYNs, those answered with a cookie."),
    ("STATEFUL", "Of the SYNs, those handed to an engine, which remembers them."),
    ("ACK-VALID", "ACKs with a valid cookie; with those that open a new incarnation of a flow."),
    ("ACK-INVALID", "ACKs with an invalid cookie."),
    ("REDIRECTED", "Segments handed to an engine, those under STATEFUL and ACK-VALID among them."),
    ("RESET", "Segments answered with a reset."),
    ("DROPPED", "Segments dropped, those under ACK-INVALID and unanswered SYNs among them."),
    ("PASSED", "Segments left to the host."),
];

fn services(title: &str, counts: &[ServiceCount]) -> Table {
    let columns = SERVICE_COLUMNS.map(|(name, _)| (name, Align::Right));
    let mut table = Table::new(&[&[(title, Align::Left), ("MODE", Align::Left)][..], &columns].concat());
    for service in counts {
        let ServiceCount {
            listen,
            mode,
            state,
            syns,
            cookies_sent,
            stateful,
            acks_valid,
            acks_invalid,
            redirected,
            reset,
            dropped,
            passed,
        } = service;
        let counts =
            [syns, cookies_sent, stateful, acks_valid, acks_invalid, redirected, reset, dropped, passed];
        let mode = state.as_ref().map_or_else(|| mode.clone(), |state| format!("{mode} ({state})"));
        table.row([listen.to_string(), mode].into_iter().chain(counts.map(u64::to_string)).collect());
    }
    table
}

/// How often a second each count went up, of those services with any.
fn rates(before: &[ServiceCount], now: &[ServiceCount], elapsed: u64) -> Vec<ServiceCount> {
    let of = |now: &ServiceCount| {
        let before = before.iter().find(|before| before.listen == now.listen)?;
        let rate = |count: fn(&ServiceCount) -> u64| rate(count(before), count(now), elapsed);
        let rates = ServiceCount {
            listen: now.listen,
            mode: now.mode.clone(),
            state: now.state.clone(),
            syns: rate(|service| service.syns),
            cookies_sent: rate(|service| service.cookies_sent),
            stateful: rate(|service| service.stateful),
            acks_valid: rate(|service| service.acks_valid),
            acks_invalid: rate(|service| service.acks_invalid),
            redirected: rate(|service| service.redirected),
            reset: rate(|service| service.reset),
            dropped: rate(|service| service.dropped),
            passed: rate(|service| service.passed),
        };
        (before != now).then_some(rates)
    };
    now.iter().filter_map(of).collect()
}

fn states(args: &Args, now: &Stats) -> Table {
    let mut table = Table::new(&[("STATE", Align::Left), ("FLOWS", Align::Right)]);
    for (state, &count) in now.states.iter().filter(|&(_, &count)| args.all || count > 0) {
        table.row(vec![state.clone(), count.to_string()]);
    }
    table
}

fn groups(args: &Args, before: &Groups, now: &Groups, elapsed: u64) -> Table {
    let mut table = Table::new(&[
        ("GROUP", Align::Left),
        ("COUNTER", Align::Left),
        ("TOTAL", Align::Right),
        ("RATE/s", Align::Right),
    ]);
    for (group, counters) in now {
        for (name, &total) in counters.iter().filter(|&(_, &total)| args.all || total > 0) {
            let earlier = before.get(group).and_then(|counters| counters.get(name)).copied().unwrap_or(0);
            let rate = rate(earlier, total, elapsed).to_string();
            table.row(vec![group.clone(), name.clone(), total.to_string(), rate]);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::{Engine, ReasonCount};

    fn reading(time_ms: u64, cookies: [u64; 2], adopted: u64) -> Stats {
        let reason = |name: &str, outcome: &str, per_cpu: [u64; 2]| ReasonCount {
            name: name.into(),
            outcome: outcome.into(),
            help: String::new(),
            total: per_cpu.iter().sum(),
            per_cpu: per_cpu.into(),
            dry_run: 0,
        };
        let counters =
            Groups::from([("stack".into(), [("adopted".into(), adopted), ("unknown".into(), 0)].into())]);
        let states: std::collections::BTreeMap<_, _> =
            [("ESTABLISHED".to_owned(), 3), ("CLOSING".to_owned(), 0)].into();
        Stats {
            time_ms,
            uptime_ms: 61_000,
            reasons: vec![reason("cookie-sent", "answered", cookies), reason("bad-flags", "dropped", [0, 0])],
            services: vec![ServiceCount {
                listen: "192.0.2.1:80".parse().unwrap(),
                mode: "auto".into(),
                state: Some("calm".into()),
                syns: 9,
                cookies_sent: 8,
                stateful: 1,
                acks_valid: 7,
                acks_invalid: 6,
                redirected: 5,
                reset: 4,
                dropped: 3,
                passed: 2,
            }],
            dry_run: Vec::new(),
            states: states.clone(),
            totals: counters.clone(),
            engines: vec![Engine { interface: "eth0".into(), queue: 1, states, counters }],
            left_out: Vec::new(),
        }
    }

    fn arguments(arguments: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Wrapper {
            #[command(flatten)]
            args: Args,
        }
        let arguments = std::iter::once("stats").chain(arguments.iter().copied());
        let Wrapper { args } = clap::Parser::try_parse_from(arguments).unwrap();
        args
    }

    fn shown(given: &[&str]) -> String {
        let args = arguments(given);
        let mut out = Vec::new();
        let now = View { since_ms: None, stats: reading(1500, [100, 50], 7) };
        write(&mut out, &args, &reading(1000, [100, 0], 1), &now).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_listing_shows_totals_and_rates_of_what_was_counted() {
        assert_eq!(
            shown(&[]),
            "up 1m1s, rates over 500 ms

REASON       OUTCOME   TOTAL  RATE/s
cookie-sent  answered    150     100

SERVICE       MODE         SYN  COOKIE  STATEFUL  ACK-VALID  ACK-INVALID  REDIRECTED  RESET  DROPPED  PASSED
192.0.2.1:80  auto (calm)    9       8         1          7            6           5      4        3       2

STATE        FLOWS
ESTABLISHED      3

GROUP  COUNTER  TOTAL  RATE/s
stack  adopted      7      12
"
        );
    }

    #[test]
    fn what_a_dry_run_would_have_done_stands_beside_what_was_done() {
        let mut now = reading(1500, [100, 0], 1);
        now.reasons[1].dry_run = 12;
        now.dry_run = vec![ServiceCount { syns: 33, ..now.services[0].clone() }];
        let reasons = reasons(&arguments(&[]), &now, &now, 500);
        let mut out = Vec::new();
        reasons.write(&mut out).unwrap();
        services("DRY RUN", &now.dry_run).write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("TOTAL  RATE/s  DRY RUN\n"), "{text}");
        assert!(text.contains("cookie-sent  answered    100       0        0\n"), "{text}");
        assert!(text.contains("bad-flags    dropped       0       0       12\n"), "{text}");
        assert!(text.contains("DRY RUN       MODE") && text.contains("33"), "{text}");
    }

    #[test]
    fn an_engine_that_stands_still_is_said_to_be_left_out_and_makes_no_rate() {
        let mut now = reading(1500, [100, 50], 1_000_000);
        let mut before = reading(1000, [100, 0], 1);
        let shown = |before: &Stats, now: &Stats| {
            let (mut out, now) = (Vec::new(), View { since_ms: None, stats: now.clone() });
            write(&mut out, &arguments(&[]), before, &now).unwrap();
            String::from_utf8(out).unwrap()
        };
        before.left_out = vec![EngineName { interface: "eth0".into(), queue: 3 }];
        let text = shown(&before, &now);
        assert!(text.contains("stack  adopted  1000000       0\n") && !text.contains("left out"), "{text}");
        now.left_out = std::mem::take(&mut before.left_out);
        let text = shown(&before, &now);
        assert!(text.contains("\nleft out: eth0 queue 3, which stands still;"), "{text}");
    }

    #[test]
    fn cpus_engines_and_zeros_are_shown_on_request() {
        let text = shown(&["--per-cpu", "--per-engine", "--all"]);
        assert!(text.contains("REASON       OUTCOME   TOTAL  RATE/s  CPU0  CPU1\n"), "{text}");
        assert!(text.contains("cookie-sent  answered    150     100   100    50\n"), "{text}");
        assert!(text.contains("bad-flags    dropped       0       0     0     0\n"), "{text}");
        assert!(text.contains("\neth0 queue 1\n\nGROUP"), "{text}");
        assert!(text.contains("CLOSING          0\n"), "{text}");
    }

    #[test]
    fn services_have_rates_as_long_as_something_comes() {
        let before = reading(1000, [0, 0], 0).services;
        assert!(rates(&before, &before, 500).is_empty());
        let after = vec![ServiceCount { syns: 1009, dropped: 53, ..before[0].clone() }];
        let [rates] = &rates(&before, &after, 500)[..] else { panic!() };
        assert_eq!((rates.syns, rates.dropped, rates.cookies_sent), (2000, 100, 0));
    }

    #[test]
    fn a_view_counts_from_its_zero_point_and_amounts_stay_as_they_are() {
        let mut earlier = reading(1000, [100, 3], 4);
        let group = earlier.totals.get_mut("stack").unwrap();
        group.insert("half-open".into(), 9);
        let mut later = reading(3000, [110, 4], 6);
        later.uptime_ms = earlier.uptime_ms + 2000;
        later.totals.get_mut("stack").unwrap().insert("half-open".into(), 2);
        later.services[0].syns = 30;
        let zero = Zero::new(earlier);
        let view = View::new(Some(&zero), later.clone());
        assert!(view.since_ms.is_some());
        let Stats { reasons, services, states, totals, engines, .. } = &view.stats;
        assert_eq!((reasons[0].total, &reasons[0].per_cpu[..]), (11, &[10, 1][..]));
        assert_eq!((services[0].syns, services[0].cookies_sent), (21, 0));
        assert_eq!((totals["stack"]["adopted"], totals["stack"]["half-open"]), (2, 2));
        assert_eq!((engines[0].counters["stack"]["adopted"], states["ESTABLISHED"]), (2, 3));
        // A daemon that was started since counts from its start; XDP's counters outlive it.
        later.uptime_ms = 500;
        let view = View::new(Some(&zero), later.clone()).stats;
        assert_eq!(
            (view.reasons[0].total, view.services[0].syns, view.totals["stack"]["adopted"]),
            (11, 30, 6)
        );
        // And so does a machine.
        later.time_ms = 900;
        assert_eq!(View::new(Some(&zero), later.clone()).stats, later);
    }

    #[test]
    fn an_interval_is_a_sane_number_of_seconds() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "NaN", "inf", "1e9", "soon"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
