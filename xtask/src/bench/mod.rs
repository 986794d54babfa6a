//! `cargo xtask bench`: what things cost, measured on this machine. One module per suite; each makes rows and prints them
//! as a table, and this writes the same as JSON when asked.

mod figures;
pub mod flood;
mod goodput;
pub mod machine;
pub mod program;
pub mod proxy;
pub mod stack;

use std::path::PathBuf;

pub use figures::Report;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::build;
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
    /// `program`: another XDP program to measure, the first one of an object file, or a pinned program with its maps filled.
    /// It has to answer SYNs to 198.51.100.1:80 and to drop ACKs without a connection
    #[arg(long, value_name = "NAME=OBJ")]
    peer: Vec<Peer>,
    /// `flood`: the kernel's xdp_synproxy as a contestant, pinned and with port 80 allowed
    #[arg(long, value_name = "PIN")]
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
}

/// The verb.
pub fn run(args: &BenchArgs) -> Result<()> {
    let suites = if args.suites.is_empty() { Suite::value_variants() } else { &args.suites };
    if !crate::tool::is_root() {
        bail!("loading XDP programs and making network namespaces needs root; try sudo");
    }
    let reports = suites.iter().map(|suite| args.measure(*suite)).collect::<Result<Vec<_>>>()?;
    match &reports[..] {
        [report] => figures::write_json(args.json.as_deref(), report),
        reports => figures::write_json(args.json.as_deref(), &reports),
    }
}

impl BenchArgs {
    /// Measures one suite and prints its table.
    fn measure(&self, suite: Suite) -> Result<Value> {
        Ok(match suite {
            Suite::Program => {
                let built = build::release(Purpose::Build)?;
                let (guard, bench) = (built.object("tcpguard-xdp"), built.object("tcpguard-bench"));
                let objects = program::Objects { guard: &guard, bench: &bench };
                let effort = if self.quick { program::Effort::QUICK } else { program::Effort::FULL };
                let report = program::measure(objects, &self.peer, effort)?;
                program::print(&report);
                serde_json::to_value(report)?
            }
            Suite::Stack => {
                let program = build::release_example("tcpguard-stack", "stack-bench", Purpose::Build)?;
                let effort = if self.quick { stack::Effort::QUICK } else { stack::Effort::FULL };
                let mut report = stack::measure(&program, effort)?;
                report.rows.extend(stack::transfers(&build::release(Purpose::Lab)?, effort)?);
                stack::print(&report);
                serde_json::to_value(report)?
            }
            Suite::Proxy => {
                let built = build::release(Purpose::Bench)?;
                let effort = if self.quick { proxy::Effort::QUICK } else { proxy::Effort::FULL };
                let report = proxy::measure(&built, effort, |step| eprintln!("{step}"))?;
                proxy::print(&report);
                serde_json::to_value(report)?
            }
            Suite::Flood => {
                let built = build::release(Purpose::Lab)?;
                let effort = if self.quick { flood::Effort::QUICK } else { flood::Effort::FULL };
                let mut contestants = flood::Contestant::STANDARD.to_vec();
                contestants.extend(self.xdp_synproxy.clone().map(flood::Contestant::XdpSynproxy));
                let report = flood::measure(&built, &contestants, effort, |step| eprintln!("{step}"))?;
                flood::print(&report);
                serde_json::to_value(report)?
            }
        })
    }
}
