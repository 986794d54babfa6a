//! `tcpguard confirm`, and `--confirm SECONDS` of every verb that changes something: for machines that nobody can walk up to.

use std::io::{self, Write as _};

use schemars::JsonSchema;
use serde::Serialize;

use crate::control::client::Client;
use crate::control::protocol::{Reply, Request};

use super::output::write_json;
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
A change made with --confirm SECONDS is taken back by the daemon that long after it is in force, with everything else that was
changed in between, unless this verb was there: also when the change cut off whoever made it, or failed half-way.
`tcpguard status` says how long is left. Taken back are services, their modes, filters and tunables; of `run`, the daemon
itself. Keys, and connections that a change reset, are not. Until then nothing is saved.

Examples:
  tcpguard filters load --replace list.txt --confirm 60
  tcpguard confirm")]
pub(super) struct Args {
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// How a change is put on probation.
#[derive(clap::Args)]
pub(super) struct Within {
    /// Have the change taken back unless `tcpguard confirm` follows within this time
    #[arg(long, value_name = "SECONDS", global = true, value_parser = seconds())]
    confirm: Option<u64>,
}

/// What `--confirm` takes.
pub(super) fn seconds() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=86_400)
}

impl Within {
    /// Refuses to save what may be taken back: the file would bring it again.
    pub(super) fn check(&self, save: bool) -> Result<(), Failure> {
        match (self.confirm, save) {
            (Some(_), true) => {
                Err(Failure::BadInput("--save with --confirm: confirm it first, then save".into()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a time to confirm what changes nothing.
    pub(super) fn is_for(&self, changes: bool) -> Result<(), Failure> {
        match (self.confirm, changes) {
            (Some(_), false) => Err(Failure::BadInput("--confirm: this changes nothing".into())),
            _ => Ok(()),
        }
    }

    /// Makes a change, on probation if that is asked for, and says when it is taken back.
    pub(super) fn change(&self, client: &Client, change: Request) -> Result<Reply, Failure> {
        let request = match self.confirm {
            Some(seconds) => Request::OnProbation { seconds, change: Box::new(change) },
            None => change,
        };
        let mut reply = ask(client, &request)?;
        if let Some(Some(left)) = reply.unconfirmed_ms() {
            let seconds = left.div_ceil(1000);
            let what = match self.confirm {
                Some(_) => "",
                None => "an earlier change is not confirmed, and this one goes with it: ",
            };
            let note = format!("tcpguard: {what}taken back in {seconds}s unless `tcpguard confirm` follows");
            writeln!(io::stderr(), "{note}")?;
        }
        Ok(reply)
    }
}

/// What was changed stays.
#[derive(Serialize, JsonSchema)]
pub(super) struct Confirmed {
    /// Always true: whatever else there is to say is an error.
    confirmed: bool,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let Reply::Confirmed {} = ask(client, &Request::Confirm {})? else { return Err(unexpected()) };
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(write_json(&mut out, &Confirmed { confirmed: true })?);
    }
    Ok(writeln!(out, "confirmed: what was changed stays")?)
}
