//! `cargo xtask bench`: what things cost, measured on this machine. One module per suite; each makes rows and prints them
//! as a table, and this writes the same as JSON, and as a page with plots, when asked.

pub mod control;
mod defence;
mod figures;
pub mod flood;
pub mod goodput;
pub mod honesty;
mod http;
pub mod machine;
mod probe;
pub mod program;
pub mod proxy;
pub mod report;
pub mod scale;
pub mod stack;
mod transfers;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub use figures::Report;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::build::{self, Artifacts};
use crate::setup::Purpose;
use program::Peer;

/// Measure what things cost on this machine
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// What to measure [default: all of it]
    #[arg(value_name = "SUITE")]
    suites: Vec<Suite>,
    /// A few short rounds and small tables: whether it works, and what is far apart
    #[arg(long)]
    quick: bool,
    /// Also write the rows to FILE, as JSON: a report, or an array of them when there are several suites
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write a page with plots and all figures, `index.html`, into this directory, and its plots and tables as files, in place
    /// of those of an earlier report
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Put what was measured before, as `--json` wrote it, before what is measured now; may be repeated. Without a SUITE, nothing
    /// more is measured
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// `program`: another XDP program to measure, the first one of an object file, or a pinned program with its maps filled.
    /// It has to answer SYNs to 198.51.100.1:80 and to drop ACKs without a connection. The kernel's sample is `xdp_synproxy`
    #[arg(long, value_name = "NAME=OBJ")]
    peer: Vec<Peer>,
    /// `flood`: the kernel's xdp_synproxy as a contestant: its object file, which bpftool loads, or its pin, with port 80 allowed
    #[arg(long, value_name = "OBJ")]
    xdp_synproxy: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// What the XDP program costs per packet
    Program,
    /// What the TCP stack costs per segment and connection, and its goodput beside the kernel's
    Stack,
    /// Clients of a web server through tcpguard and through HAProxy
    Proxy,
    /// A flooded host behind each defence in turn
    Flood,
    /// What clients of a web server get while a flood grows, behind each defence in turn
    Goodput,
    /// What many connections, services and filters take
    Scale,
    /// What it costs the data path that a million flows are listed
    Control,
}

/// The verb. A suite that fails keeps none of the others from being measured and written, and what is written tells of it.
pub fn run(args: &BenchArgs) -> Result<()> {
    let mut reports = args.from.iter().map(|file| read(file)).collect::<Result<Vec<_>>>()?.concat();
    let suites = match &args.suites[..] {
        [] if args.from.is_empty() => Suite::value_variants(),
        suites => suites,
    };
    if !suites.is_empty() && !crate::tool::is_root() {
        bail!("loading XDP programs and making network namespaces needs root; try sudo");
    }
    let failed = args.measure_all(suites, &mut reports)?;
    args.save(&reports)?;
    if let Some(dir) = &args.report {
        for doubt in report::write(dir, &reports)? {
            eprintln!("bench: doubtful: {doubt}");
        }
        eprintln!("bench: {}", dir.join("index.html").display());
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed:\n  {}", failed.join("\n  ")) }
}

/// The reports in a file that `--json` wrote.
fn read(file: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let content = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    let reports = match content {
        Value::Array(reports) => reports,
        report => vec![report],
    };
    let is_report = |report: &Value| report["suite"].is_string() && report["rows"].is_array();
    if !reports.iter().all(is_report) {
        bail!("{} holds no report of this command's", file.display());
    }
    Ok(reports)
}

impl Suite {
    /// What a machine must have for it.
    fn purpose(self) -> Purpose {
        match self {
            Self::Program => Purpose::Build,
            Self::Stack | Self::Flood | Self::Scale | Self::Control => Purpose::Lab,
            Self::Proxy | Self::Goodput => Purpose::Bench,
        }
    }

    /// Whether tcpguard's daemon guards a host in it. `program` looks at what comes of each packet itself, and the stack of `stack`
    /// is nobody's guard.
    fn has_a_guard(self) -> bool {
        match self {
            Self::Proxy | Self::Flood | Self::Goodput | Self::Scale | Self::Control => true,
            Self::Program | Self::Stack => false,
        }
    }
}

/// What suites run, built once for all of them.
struct Programs {
    built: Artifacts,
    /// The clients of `scale` and `control`, where one of them is among the suites.
    clients: Option<PathBuf>,
    /// Whether the guard was seen to do its job.
    honest: Cell<bool>,
}

impl Programs {
    fn build(suites: &[Suite]) -> Result<Self> {
        let asked = |purpose: &Purpose| suites.iter().any(|suite| suite.purpose() == *purpose);
        let purpose = [Purpose::Bench, Purpose::Lab].into_iter().find(asked).unwrap_or(Purpose::Build);
        if suites.iter().any(|suite| matches!(suite, Suite::Scale | Suite::Control)) {
            let (built, clients) = build::release_with_example("scale-client", purpose)?;
            return Ok(Self { built, clients: Some(clients), honest: Cell::new(false) });
        }
        Ok(Self { built: build::release(purpose)?, clients: None, honest: Cell::new(false) })
    }

    /// Fails where the guard does not [do its job](honesty): it must win nothing by doing less. That is looked at once,
    /// before the first suite in which it stands on a link.
    fn ensure_honest(&self, suite: Suite) -> Result<()> {
        if suite.has_a_guard() && !self.honest.get() {
            eprintln!("  whether tcpguard does its job");
            honesty::check(&self.built)?;
            self.honest.set(true);
        }
        Ok(())
    }
}

impl BenchArgs {
    /// Measures every suite; those that failed, and why.
    fn measure_all(&self, suites: &[Suite], reports: &mut Vec<Value>) -> Result<Vec<String>> {
        let mut failed = Vec::new();
        if suites.is_empty() {
            return Ok(failed);
        }
        eprintln!("bench: tcpguard {}", machine::sources());
        let programs = Programs::build(suites)?;
        for suite in suites {
            let name = suite.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
            eprintln!("bench: {name}");
            let (start, before) = (Instant::now(), machine::Ticks::now()?);
            let mut report = match self.measure(*suite, &programs) {
                Ok(report) => report,
                Err(error) => {
                    eprintln!("bench: {name} failed: {error:#}");
                    failed.push(format!("{name}: {error:#}"));
                    serde_json::to_value(Report::failed(&name, &error))?
                }
            };
            report["stolen"] = machine::Ticks::now()?.stolen_since(before).into();
            report["seconds"] = start.elapsed().as_secs().into();
            reports.push(report);
            // What comes after it may be interrupted.
            self.save(reports)?;
        }
        Ok(failed)
    }

    /// Writes what there is so far, if it is to be written.
    fn save(&self, reports: &[Value]) -> Result<()> {
        match (&self.json, reports) {
            (None, _) => Ok(()),
            (Some(file), [report]) => figures::write_json(file, report),
            (Some(file), reports) => figures::write_json(file, &reports),
        }
    }

    /// Measures one suite and prints its table.
    fn measure(&self, suite: Suite, programs: &Programs) -> Result<Value> {
        programs.ensure_honest(suite)?;
        let Programs { built, clients, .. } = programs;
        let progress = |step: &str| eprintln!("  {step}");
        Ok(match suite {
            Suite::Program => {
                let (guard, bench) = (built.object("tcpguard-xdp"), built.object("tcpguard-bench"));
                let objects = program::Objects { guard: &guard, bench: &bench };
                let effort = if self.quick { program::Effort::QUICK } else { program::Effort::FULL };
                let report = program::measure(objects, &self.peer, effort, progress)?;
                program::print(&report);
                serde_json::to_value(report)?
            }
            Suite::Stack => {
                let program = build::release_example("tcpguard-stack", "stack-bench", Purpose::Build)?;
                let effort = if self.quick { stack::Effort::QUICK } else { stack::Effort::FULL };
                let mut report = stack::measure(&program, effort)?;
                report.rows.extend(stack::transfers(built, effort)?);
                stack::print(&report);
                serde_json::to_value(report)?
            }
            Suite::Proxy => {
                let effort = if self.quick { proxy::Effort::QUICK } else { proxy::Effort::FULL };
                let report = proxy::measure(built, effort, progress)?;
                proxy::print(&report);
                serde_json::to_value(report)?
            }
            Suite::Flood => {
                let effort = if self.quick { flood::Effort::QUICK } else { flood::Effort::FULL };
                let mut contestants = flood::Contestant::STANDARD.to_vec();
                contestants.extend(self.xdp_synproxy.clone().map(flood::Contestant::XdpSynproxy));
                let report = flood::measure(built, &contestants, effort, progress)?;
                flood::print(&report);
                serde_json::to_value(report)?
            }
            Suite::Goodput => {
                let effort = if self.quick { goodput::Effort::QUICK } else { goodput::Effort::FULL };
                let report = goodput::measure(built, effort, progress)?;
                goodput::print(&report);
                serde_json::to_value(report)?
            }
            Suite::Scale => {
                let clients = clients.as_ref().context("its clients were not built")?;
                let effort = if self.quick { scale::Effort::QUICK } else { scale::Effort::FULL };
                let report = scale::measure(built, clients, effort, progress)?;
                scale::print(&report);
                serde_json::to_value(report)?
            }
            Suite::Control => {
                let clients = clients.as_ref().context("its clients were not built")?;
                let effort = if self.quick { control::Effort::QUICK } else { control::Effort::FULL };
                let report = control::measure(built, clients, effort, progress)?;
                control::print(&report);
                serde_json::to_value(report)?
            }
        })
    }
}
