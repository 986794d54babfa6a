//! `tcpguard doctor` and `tcpguard features`: whether this machine can run the guard. No daemon is asked.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::{self, AttachMode, Config, Interface, file};
use crate::control::doctor::{Finding, Verdict, examine};
use crate::dataplane::features;

use super::Failure;
use super::output::{Align, Table, terminal_columns, write_json};

#[derive(clap::Args)]
#[command(after_help = "\
Without -i and --config, /etc/tcpguard/tcpguard.toml is read if it is there. Nothing is changed, and a guard that runs is not
disturbed. Exit code 1 if something is bad: the guard would not start, or not guard.

Examples:
  tcpguard doctor -i eth0
  tcpguard doctor --json | jq '.findings[] | select(.verdict != \"good\")'")]
pub(super) struct Args {
    /// The configuration file (TOML)
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// An interface to look at as well; may be repeated
    #[arg(short, long, value_name = "IFACE")]
    interface: Vec<String>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[command(after_help = "Example:\n  tcpguard features --json")]
pub(super) struct FeaturesArgs {
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What was looked at.
#[derive(Serialize, JsonSchema)]
pub(super) struct Findings {
    /// The configuration first.
    findings: Vec<Finding>,
}

/// What the guard needs of the kernel.
#[derive(Serialize, JsonSchema)]
pub(super) struct Features {
    /// Each feature.
    features: Vec<Row>,
}

/// One feature.
#[derive(Serialize, JsonSchema)]
struct Row {
    /// What it is.
    name: &'static str,
    /// Whether it is there; null if the kernel did not say.
    present: Option<bool>,
    /// What the guard needs it for.
    purpose: &'static str,
}

pub(super) fn run(args: &Args, control: Option<&Path>) -> Result<(), Failure> {
    let findings = findings(args, control)?;
    let bad = findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    let all = findings.len();
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        write_json(&mut out, &Findings { findings })?;
    } else {
        table(&findings).write_within(&mut out, terminal_columns())?;
        let (notes, worse): (Vec<_>, Vec<_>) =
            findings.iter().partition(|finding| finding.verdict <= Verdict::Note);
        // What is wrong comes first.
        for Finding { check, remedy, .. } in worse.into_iter().chain(notes) {
            if let Some(remedy) = remedy {
                writeln!(out, "\n{check}: {remedy}")?;
            }
        }
        out.flush()?;
    }
    match bad {
        0 => Ok(()),
        bad => Err(Failure::Failed(format!("{bad} of {all} checks are bad"))),
    }
}

/// Everything there is to say, about the configuration first.
fn findings(args: &Args, control: Option<&Path>) -> Result<Vec<Finding>, Failure> {
    let path = args.config.clone().unwrap_or_else(|| config::DEFAULT_FILE.into());
    let about = |verdict, found: String, remedy: &str| {
        let remedy = (verdict != Verdict::Good).then(|| remedy.to_owned());
        Finding { check: "configuration".to_owned(), verdict, found, remedy }
    };
    let is_there = args.config.is_some() || args.interface.is_empty() && path.exists();
    let read = is_there.then(|| file::read(&path)).transpose();
    let (mut config, finding) = match read {
        Ok(Some(written)) => {
            let finding = match written.check(&written.config) {
                Ok(()) => about(Verdict::Good, path.display().to_string(), ""),
                Err(error) => {
                    about(Verdict::Bad, error.to_string(), "mend that line; `tcpguard check` judges it")
                }
            };
            (written.config, finding)
        }
        Ok(None) => {
            let remedy = "`tcpguard config --example` prints one to begin with";
            (Config::empty(), about(Verdict::Note, "no file was read".to_owned(), remedy))
        }
        Err(error) => {
            (Config::empty(), about(Verdict::Bad, error.to_string(), "mend it; `tcpguard check` judges it"))
        }
    };
    if let Some(socket) = control {
        config.control.socket = socket.to_owned();
    }
    for name in &args.interface {
        let interface = Interface::new(name, AttachMode::Native, None).map_err(Failure::BadInput)?;
        config.interfaces.push(interface);
    }
    Ok([vec![finding], examine(&config)].concat())
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(&[("CHECK", Align::Left), ("VERDICT", Align::Left), ("FOUND", Align::Left)]);
    for Finding { check, verdict, found, remedy: _ } in findings {
        table.row(vec![check.clone(), verdict.name().to_owned(), found.clone()]);
    }
    table
}

pub(super) fn features_of_kernel(args: &FeaturesArgs) -> Result<(), Failure> {
    let rows = features().into_iter().map(|feature| Row {
        name: feature.name,
        present: feature.present.ok(),
        purpose: feature.purpose,
    });
    let rows: Vec<_> = rows.collect();
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        return Ok(write_json(&mut out, &Features { features: rows })?);
    }
    let mut table = Table::new(&[("FEATURE", Align::Left), ("THERE", Align::Left), ("FOR", Align::Left)]);
    for Row { name, present, purpose } in rows {
        let present = present.map_or("not known", |present| if present { "yes" } else { "no" });
        table.row(vec![name.to_owned(), present.to_owned(), purpose.to_owned()]);
    }
    table.write_within(&mut out, terminal_columns())?;
    Ok(out.flush()?)
}
