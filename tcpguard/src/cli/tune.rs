//! `tcpguard tune`: lists, shows and sets tunables.

use std::io::{self, BufWriter, Write as _};

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::{self, Preset, TunableError};
use crate::control::client::Client;
use crate::control::protocol::{Reply, Request, ServiceTuned, Tunable, Tuned};

use super::confirm::Within;
use super::output::{Align, Table, write_json};
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tcpguard tune                  list all: current value, default, range
  tcpguard tune time-wait        show one: what it does, and what it costs
  tcpguard tune time-wait 30s    set it, at once, until the daemon ends or reads its file again
  tcpguard tune time-wait 30s --save    set it, and write it into the file
  tcpguard tune syn-timeout 3s --confirm 60    for a minute, unless `tcpguard confirm` follows
  tcpguard tune retries 3 --service 192.0.2.1:443        for one service alone
  tcpguard tune retries inherit --service 192.0.2.1:443  as for all others again
  tcpguard tune --service 192.0.2.1:443                  list what it can have for itself
  tcpguard tune --preset attack         what a preset (calm, attack, high-churn) would change
  tcpguard tune --preset attack --yes   change it, all at once")]
pub(super) struct Args {
    /// Which tunable
    name: Option<String>,
    /// Its new value, such as 500ms, 30s or 2m
    #[arg(allow_hyphen_values = true)]
    value: Option<String>,
    /// For this service alone; its `inherit` takes the value away again. PER SERVICE in the list says which can be
    #[arg(long, value_name = "ADDR:PORT", conflicts_with = "preset")]
    service: Option<String>,
    /// Write it into the daemon's configuration file, too; comments stay
    #[arg(long)]
    save: bool,
    /// Show what this set of values would change: calm, attack, high-churn
    #[arg(long, value_name = "PRESET", conflicts_with = "name", value_parser = preset_named)]
    preset: Option<&'static Preset>,
    /// Change it
    #[arg(long, requires = "preset")]
    yes: bool,
    #[command(flatten)]
    within: Within,
    /// Print one line of JSON: numbers in milliseconds, or counts
    #[arg(long)]
    json: bool,
}

impl From<TunableError> for Failure {
    fn from(error: TunableError) -> Self {
        Self::BadInput(error.to_string())
    }
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    args.within.is_for(args.value.is_some() || args.yes)?;
    if let Some(preset) = args.preset {
        return run_preset(args, preset, client);
    }
    if args.save && args.value.is_none() {
        return Err(Failure::BadInput("--save: nothing to save without a value".into()));
    }
    // What can be judged without the daemon is; what values say together only the daemon knows.
    let request = request(args)?;
    args.within.check(args.save)?;
    let reply = match args.value {
        Some(_) => args.within.change(client, request)?,
        None => ask(client, &request)?,
    };
    let mut out = BufWriter::new(io::stdout().lock());
    match reply {
        Reply::Tuned(tuned) if args.json => write_json(&mut out, &tuned)?,
        Reply::Tuned(tuned) => {
            let saved = tuned.saved.as_ref().map(|file| format!(", saved in {file}")).unwrap_or_default();
            writeln!(out, "{}{saved}", change(&tuned))?;
        }
        Reply::ServiceTuned(tuned) if args.json => write_json(&mut out, &tuned)?,
        Reply::ServiceTuned(ServiceTuned { service, tuned }) => {
            let saved = tuned.saved.as_ref().map(|file| format!(", saved in {file}")).unwrap_or_default();
            writeln!(out, "service {service}: {}{saved}", change(&tuned))?;
        }
        Reply::Tunables(rows) if args.json => write_json(&mut out, &rows)?,
        Reply::Tunables(rows) => {
            table(&rows.tunables).write(&mut out)?;
            if let (Some(_), [row]) = (&args.name, rows.tunables.as_slice()) {
                writeln!(out, "\n{}", row.help.trim())?;
                if !row.cost.is_empty() {
                    writeln!(out, "Costs: {}", row.cost)?;
                }
            }
        }
        _ => return Err(unexpected()),
    }
    Ok(out.flush()?)
}

fn request(args: &Args) -> Result<Request, Failure> {
    let Args { name, value, save, .. } = args;
    let (name, value, save) = (name.clone(), value.clone(), *save);
    let Some(service) = &args.service else {
        if let Some(name) = &name {
            let tunable = config::Tunable::find(name)?;
            value.as_deref().map(|value| tunable.parse(value)).transpose()?;
        }
        return Ok(Request::Tune { service: None, name, value, save });
    };
    let service = config::listen_address(service).map_err(Failure::BadInput)?;
    if let Some(name) = &name {
        config::Overrides::default().set(name, value.as_deref().unwrap_or(config::INHERIT))?;
    }
    Ok(Request::Tune { service: Some(service), name, value, save })
}

fn preset_named(name: &str) -> Result<&'static Preset, String> {
    Preset::find(name)
}

/// What a preset changes, or would.
#[derive(Serialize, JsonSchema)]
pub(super) struct Changes {
    /// Which preset.
    preset: &'static str,
    /// Whether it was set; else what follows is what it would change.
    applied: bool,
    /// The tunables that have another value then.
    tuned: Vec<Tuned>,
}

fn run_preset(args: &Args, preset: &'static Preset, client: &Client) -> Result<(), Failure> {
    if args.save {
        let why = "a preset cannot be saved at once: save each of its values with `tcpguard tune NAME VALUE --save`";
        return Err(Failure::BadInput(why.into()));
    }
    let list = Request::Tune { service: None, name: None, value: None, save: false };
    let Reply::Tunables(rows) = ask(client, &list)? else { return Err(unexpected()) };
    let tuned = if args.yes {
        let values = preset.values.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let Reply::TunedAll(done) = args.within.change(client, Request::TuneAll { values })? else {
            return Err(unexpected());
        };
        done.tuned
    } else {
        differences(preset, &rows.tunables)?
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        return Ok(write_json(&mut out, &Changes { preset: preset.name, applied: args.yes, tuned })?);
    }
    for tuned in &tuned {
        writeln!(out, "{}", change(tuned))?;
    }
    match (args.yes, tuned.is_empty()) {
        (_, true) => writeln!(out, "nothing to change: that is how it is")?,
        (false, false) => writeln!(out, "not changed yet: --yes does ({})", preset.help)?,
        (true, false) => {}
    }
    Ok(out.flush()?)
}

/// What a preset would change.
fn differences(preset: &Preset, rows: &[Tunable]) -> Result<Vec<Tuned>, Failure> {
    let mut differences = Vec::new();
    for (name, value) in preset.values {
        let tunable = config::Tunable::find(name)?;
        let new = tunable.parse(value)?.number;
        let held = rows.iter().find(|row| row.name == *name).filter(|row| row.value != new);
        differences.extend(held.map(|row| Tuned {
            name: row.name.clone(),
            unit: row.unit.clone(),
            old: row.value,
            new,
            saved: None,
            unconfirmed_ms: None,
        }));
    }
    Ok(differences)
}

/// What became of a tunable.
pub(super) fn change(tuned: &Tuned) -> String {
    let name = &tuned.name;
    format!("{name}: {} -> {}", shown(name, tuned.old), shown(name, tuned.new))
}

fn table(rows: &[Tunable]) -> Table {
    let mut table = Table::new(&[
        ("NAME", Align::Left),
        ("CURRENT", Align::Right),
        ("DEFAULT", Align::Right),
        ("RANGE", Align::Left),
        ("PER SERVICE", Align::Left),
    ]);
    for row in rows {
        let shown = |number| shown(&row.name, number);
        let range = match row.choices.as_slice() {
            [] => format!("{} to {}", shown(row.min), shown(row.max)),
            choices => choices.join(", "),
        };
        let own = match &row.services {
            None => "no".to_owned(),
            Some(own) if own.is_empty() => "yes".to_owned(),
            Some(own) => {
                let own: Vec<_> =
                    own.iter().map(|(service, value)| format!("{service} {}", shown(*value))).collect();
                own.join(", ")
            }
        };
        table.row(vec![row.name.clone(), shown(row.value), shown(row.default), range, own]);
    }
    table
}

/// A number with its unit; bare when the daemon has a tunable that this client does not know.
pub(super) fn shown(name: &str, number: u64) -> String {
    match config::Tunable::find(name) {
        Ok(tunable) => tunable.value(number).to_string(),
        Err(_) => number.to_string(),
    }
}
