//! `tcpguard explain`: what a reason means and what to do about it; and what would become of a packet, step by step.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;
use tcpguard_common::reason::Reason;

use crate::config::near;
use crate::control::client::Client;
use crate::control::protocol::{Explained, Reply, Request};
use crate::telemetry::advice::Advice;

use super::output::{Align, Table, terminal_columns, write_json};
use super::pcap::Pcap;
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
A packet is an Ethernet frame. It is judged by the code that XDP runs, over the daemon's maps as they are at this moment;
nothing is counted, charged, remembered or sent.

Examples:
  tcpguard explain ack-invalid
  tcpguard explain                          every reason, with what it means
  tcpguard explain --packet '02 00 00 00 00 01 ...'
  tcpguard explain --pcap attack.pcap --limit 20
  tcpdump -i eth0 -c 1 -w - | tcpguard explain --pcap - --steps")]
pub(super) struct Args {
    /// A reason, as `tcpguard stats` names it
    #[arg(conflicts_with_all = ["packet", "pcap"])]
    reason: Option<String>,
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
    /// Print one line of JSON for each frame, or for all reasons
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

/// Reasons, and what there is to say about them.
#[derive(Serialize, JsonSchema)]
pub(super) struct Entries {
    /// All of them, or the one that was asked for.
    reasons: Vec<Entry>,
}

impl Entry {
    fn of(reason: Reason) -> Self {
        let Advice { decided, act } = Advice::on(reason);
        let outcome = reason.outcome().name();
        Self { name: reason.name(), outcome, help: reason.help().trim(), decided, act }
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
        None => reasons(args, &mut out),
    }
}

fn reasons(args: &Args, out: &mut impl Write) -> Result<(), Failure> {
    let known = || Reason::ALL.iter().map(|reason| reason.name());
    let chosen = match args.reason.as_deref() {
        None => Reason::ALL.to_vec(),
        Some(name) => vec![Reason::from_name(name).ok_or_else(|| {
            let meant = near::suggestion(name, known());
            Failure::BadInput(format!("unknown reason `{name}` (`tcpguard explain` lists them){meant}"))
        })?],
    };
    let entries: Vec<_> = chosen.into_iter().map(Entry::of).collect();
    if args.json {
        return Ok(write_json(out, &Entries { reasons: entries })?);
    }
    if let ([entry], Some(_)) = (entries.as_slice(), &args.reason) {
        let Entry { name, outcome, help, decided, act } = entry;
        writeln!(out, "{name}: {outcome}\n\n{help}\n\nDecided  {decided}\nDo       {act}")?;
        return Ok(out.flush()?);
    }
    let mut table =
        Table::new(&[("REASON", Align::Left), ("OUTCOME", Align::Left), ("MEANING", Align::Left)]);
    for Entry { name, outcome, help, .. } in entries {
        table.row(vec![name.to_owned(), outcome.to_owned(), help.to_owned()]);
    }
    table.write_within(out, terminal_columns())?;
    Ok(out.flush()?)
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
