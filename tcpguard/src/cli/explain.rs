//! `tcpguard explain`: what a reason means and what to do about it; what another counter means; and what would become of a
//! packet, step by step.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;
use tcpguard_common::reason::Reason;

use crate::config::near;
use crate::control::client::Client;
use crate::control::counted;
use crate::control::protocol::{AMOUNTS, Explained, Reply, Request, is_amount};
use crate::telemetry::advice::Advice;

use super::output::{Align, Table, terminal_columns, write_json};
use super::pcap::Pcap;
use super::stats::SERVICE_COLUMNS;
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
A packet is an Ethernet frame. It is judged by the code that XDP runs, over the daemon's maps as they are at this moment;
nothing is counted, charged, remembered or sent.

Examples:
  tcpguard explain ack-invalid
  tcpguard explain no-buffer                a counter of the stack
  tcpguard explain                          every reason and counter, with what it means
  tcpguard explain --packet '02 00 00 00 00 01 ...'
  tcpguard explain --pcap attack.pcap --limit 20
  tcpdump -i eth0 -c 1 -w - | tcpguard explain --pcap - --steps")]
pub(super) struct Args {
    /// A reason or a counter, as `tcpguard stats` or a metric names it
    #[arg(conflicts_with_all = ["packet", "pcap"])]
    name: Option<String>,
    /// A frame in hexadecimal digits; blanks and colons do not matter
    #[arg(long, value_name = "HEX", conflicts_with = "pcap")]
    packet: Option<String>,
    /// A file of frames, as tcpdump writes it; - is standard input
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// The interface on which the frame would arrive [default: the first one guarded]
    #[arg(short, long, value_name = "IFACE")]
    interface: Option<String>,
    /// The receive queue on which it would arrive
    #[arg(long, value_name = "N", default_value_t = 0)]
    queue: u32,
    /// Of a file, at most this many frames
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    /// Every step for each frame of a file
    #[arg(long)]
    steps: bool,
    /// Print one line of JSON for each frame, or for all that is counted
    #[arg(long)]
    json: bool,
}

/// What there is to say about a reason.
#[derive(Serialize, JsonSchema)]
struct Entry {
    /// Its name.
    name: &'static str,
    /// `passed`, `answered`, `redirected` or `dropped`.
    outcome: &'static str,
    /// What it means.
    help: &'static str,
    /// Where it is decided.
    decided: &'static str,
    /// What to do about it.
    act: &'static str,
}

/// What there is to say about a counter that is no reason.
#[derive(Serialize, JsonSchema)]
struct Count {
    /// Its name.
    name: &'static str,
    /// The group that `tcpguard stats` lists it in; `segments` or `services` if it is one of each service.
    group: &'static str,
    /// `counter`, or `amount` if it goes down as well as up.
    kind: &'static str,
    /// What it means.
    help: &'static str,
    /// Where it is counted, and over what time.
    counted: String,
}

/// What is counted, and what there is to say about it.
#[derive(Serialize, JsonSchema)]
pub(super) struct Entries {
    /// Reasons: all of them, or the one that was asked for.
    reasons: Vec<Entry>,
    /// What else is counted: all of it, or what has the name that was asked for.
    counters: Vec<Count>,
}

impl Entry {
    fn of(reason: Reason) -> Self {
        let Advice { decided, act } = Advice::on(reason);
        let outcome = reason.outcome().name();
        Self { name: reason.name(), outcome, help: reason.help().trim(), decided, act }
    }
}

impl Count {
    /// All there are.
    fn all() -> Vec<Self> {
        let of = |name, group, help| {
            let kind = if is_amount(name) { "amount" } else { "counter" };
            let time = if AMOUNTS.contains(&name) { "at this moment" } else { "since the daemon started" };
            Self { name, group, kind, help, counted: format!("{}, {time}", counted::place(group)) }
        };
        let counted = counted::all();
        let groups = counted.iter().map(|row| of(row.name, row.group, row.help));
        let columns = SERVICE_COLUMNS.map(|(name, help)| of(name, "services", help));
        groups.chain(columns).collect()
    }
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    if let Some(packet) = &args.packet {
        let frame = packet.chars().filter(|&c| !c.is_whitespace() && c != ':').collect();
        let explained = explain(args, client, frame)?;
        return Ok(write_frame(&mut out, args, &explained, None)?);
    }
    match &args.pcap {
        Some(path) => file(args, client, path, &mut out),
        None => names(args, &mut out),
    }
}

fn names(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let name = args.name.as_deref();
    let (mut reasons, mut counters) = (Reason::ALL.to_vec(), Count::all());
    if let Some(name) = name {
        let known: Vec<_> = reasons
            .iter()
            .map(|reason| reason.name())
            .chain(counters.iter().map(|count| count.name))
            .collect();
        reasons.retain(|reason| reason.name() == name);
        counters.retain(|count| count.name == name);
        if reasons.is_empty() && counters.is_empty() {
            let meant = near::suggestion(name, known);
            return Err(Failure::BadInput(format!(
                "unknown reason or counter `{name}` (`tcpguard explain` lists them){meant}"
            )));
        }
    }
    let entries = Entries { reasons: reasons.into_iter().map(Entry::of).collect(), counters };
    if args.json {
        return Ok(write_json(out, &entries)?);
    }
    match name {
        Some(_) => write_each(out, &entries)?,
        None => write_tables(out, &entries)?,
    }
    Ok(out.flush()?)
}

/// All that there is to say about each.
fn write_each(out: &mut impl Write, Entries { reasons, counters }: &Entries) -> io::Result<()> {
    let reasons = reasons.iter().map(|Entry { name, outcome, help, decided, act }| {
        format!("{name}: {outcome}\n\n{help}\n\nDecided  {decided}\nDo       {act}\n")
    });
    let counters = counters.iter().map(|Count { name, group, kind, help, counted }| {
        format!("{name}: {group} {kind}\n\n{help}\n\nCounted  {counted}\n")
    });
    write!(out, "{}", reasons.chain(counters).collect::<Vec<_>>().join("\n"))
}

fn write_tables(out: &mut impl Write, Entries { reasons, counters }: &Entries) -> io::Result<()> {
    let mut table =
        Table::new(&[("REASON", Align::Left), ("OUTCOME", Align::Left), ("MEANING", Align::Left)]);
    for Entry { name, outcome, help, .. } in reasons {
        table.row(vec![(*name).to_owned(), (*outcome).to_owned(), (*help).to_owned()]);
    }
    table.write_within(out, terminal_columns())?;
    writeln!(out)?;
    let mut table = Table::new(&[("COUNTER", Align::Left), ("GROUP", Align::Left), ("MEANING", Align::Left)]);
    for Count { name, group, help, .. } in counters {
        table.row(vec![(*name).to_owned(), (*group).to_owned(), (*help).to_owned()]);
    }
    table.write_within(out, terminal_columns())
}

fn file(args: &Args, client: &Client, path: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let name = if path == Path::new("-") { Path::new("standard input") } else { path };
    let bad = |why: String| Failure::BadInput(format!("{}: {why}", name.display()));
    let source: Box<dyn io::Read> = match path == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(path).map_err(|error| bad(error.to_string()))?),
    };
    let pcap = Pcap::new(BufReader::new(source)).map_err(bad)?;
    for (number, frame) in (1..).zip(pcap.take(args.limit)) {
        let frame = frame.map_err(|why| bad(format!("frame {number}: {why}")))?;
        let digits = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        let explained = explain(args, client, digits)?;
        write_frame(out, args, &explained, Some(number))?;
    }
    Ok(())
}

fn explain(args: &Args, client: &Client, frame: String) -> Result<Explained, Failure> {
    let request = Request::Explain { frame, interface: args.interface.clone(), queue: args.queue };
    match ask(client, &request)? {
        Reply::Explained(explained) => Ok(explained),
        _ => Err(unexpected()),
    }
}

/// One frame: whole, or as a line of many.
fn write_frame(
    out: &mut impl Write,
    args: &Args,
    explained: &Explained,
    number: Option<usize>,
) -> io::Result<()> {
    if args.json {
        return write_json(out, explained);
    }
    let verdict = match &explained.reason {
        Some(reason) => format!("{} ({reason})", explained.outcome),
        None => explained.outcome.clone(),
    };
    if let Some(number) = number {
        writeln!(out, "{number:>4}  {verdict:<32}  {}", explained.frame)?;
        if !args.steps {
            return out.flush();
        }
    } else {
        writeln!(out, "{}\non {} queue {}\n", explained.frame, explained.interface, explained.queue)?;
    }
    let mut table = Table::new(&[("ASKED", Align::Left), ("FOUND", Align::Left)]);
    for step in &explained.steps {
        table.row(vec![step.step.clone(), step.found.clone()]);
    }
    table.write(out)?;
    writeln!(
        out,
        "\n{verdict}{}{}",
        if explained.help.is_some() { ": " } else { "" },
        explained.help.as_deref().unwrap_or_default()
    )?;
    if let Some(answer) = &explained.answer {
        writeln!(out, "answer: {answer}")?;
    }
    if number.is_some() {
        writeln!(out)?;
    }
    out.flush()
}
