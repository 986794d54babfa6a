//! `tcpguard schema`: the JSON schemas of what verbs print with `--json`, made from the types that they print.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::json;

use crate::config::near;
use crate::control::protocol as wire;
use crate::control::protocol::{JSON_VERSION, Versioned};

use super::output::{Align, Table};
use super::{Failure, check, config, confirm, detach, doctor, explain, mode, monitor, services, stats, tune};

#[derive(clap::Args)]
#[command(after_help = "\
A schema (JSON Schema 2020-12) is of one line. Its `version` changes when a field changes its meaning or disappears; new
fields do not change it. Numbers are exact, and their names say their unit (`_ms`; bytes otherwise).

Examples:
  tcpguard schema                     which there are
  tcpguard schema stats
  tcpguard schema --directory DIR     all of them, a file each; tcpguard/dist/schema has them")]
pub(super) struct Args {
    /// Of what; without it, which there are
    #[arg(conflicts_with = "directory")]
    name: Option<String>,
    /// Write all of them into this directory instead
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// What one form of a verb prints.
struct Form {
    name: &'static str,
    /// How it is called.
    call: &'static str,
    schema: fn() -> Schema,
}

const fn form<T: JsonSchema + 'static>(name: &'static str, call: &'static str) -> Form {
    Form { name, call, schema: schema_of::<T> }
}

/// Every form of every verb that has `--json`.
const FORMS: [Form; 28] = [
    form::<check::Good>("check", "check [FILE]"),
    form::<config::Effective>("config", "config"),
    form::<confirm::Confirmed>("confirm", "confirm"),
    form::<wire::Cookie>("cookie-decode", "cookie decode FROM TO …"),
    form::<detach::Detached>("detach", "detach"),
    form::<doctor::Findings>("doctor", "doctor"),
    form::<wire::DryRunSet>("dry-run", "dry-run ADDR:PORT on|off"),
    form::<wire::Events>("events", "events"),
    form::<wire::Event>("events-follow", "events --follow"),
    form::<explain::Entries>("explain", "explain [NAME]"),
    form::<wire::Explained>("explain-packet", "explain --packet HEX, --pcap FILE"),
    form::<doctor::Features>("features", "features"),
    form::<wire::Filters>("filters", "filters"),
    form::<wire::FiltersChanged>("filters-change", "filters add, del, load, flush"),
    form::<wire::Flows>("flows", "flows"),
    form::<wire::FlowsKilled>("flows-kill", "flows --kill"),
    form::<wire::KeysRotated>("keys-rotate", "keys rotate"),
    form::<mode::Listed<'static>>("mode", "mode"),
    form::<wire::ModeSet>("mode-set", "mode ADDR:PORT MODE"),
    form::<monitor::Event<'static>>("monitor", "monitor"),
    form::<wire::Reloaded>("reload", "reload"),
    form::<services::Services>("services", "services"),
    form::<wire::ServicesChanged>("services-change", "services add, set, del"),
    form::<stats::View>("stats", "stats"),
    form::<wire::Status>("status", "status"),
    form::<wire::Tunables>("tune", "tune [NAME]"),
    form::<tune::Changes>("tune-preset", "tune --preset PRESET"),
    form::<wire::Tuned>("tune-set", "tune NAME VALUE"),
];

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(directory) = &args.directory {
        return FORMS.iter().try_for_each(|form| write(directory, form));
    }
    let mut out = BufWriter::new(io::stdout().lock());
    match &args.name {
        Some(name) => writeln!(out, "{}", text(find(name)?))?,
        None => {
            let mut table = Table::new(&[("SCHEMA", Align::Left), ("OF WHAT THIS PRINTS", Align::Left)]);
            for Form { name, call, .. } in &FORMS {
                table.row(vec![(*name).to_owned(), format!("tcpguard {call} --json")]);
            }
            table.write(&mut out)?;
        }
    }
    Ok(out.flush()?)
}

fn find(name: &str) -> Result<&'static Form, Failure> {
    FORMS.iter().find(|form| form.name == name).ok_or_else(|| {
        let meant = near::suggestion(name, FORMS.iter().map(|form| form.name));
        Failure::BadInput(format!("no schema `{name}` (`tcpguard schema` lists them){meant}"))
    })
}

fn write(directory: &Path, form: &Form) -> Result<(), Failure> {
    let path = directory.join(format!("{}.json", form.name));
    std::fs::write(&path, text(form) + "\n")
        .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

fn text(form: &Form) -> String {
    let mut schema = (form.schema)();
    schema
        .insert("title".to_owned(), json!(format!("tcpguard {} --json, version {JSON_VERSION}", form.call)));
    // Plain data with string keys has no way to fail.
    serde_json::to_string_pretty(&schema).unwrap_or_default()
}

fn schema_of<T: JsonSchema + 'static>() -> Schema {
    let generator = || SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = generator().into_root_schema_for::<Versioned<'static, T>>();
    // What the content is says more than that it has a version.
    if let Some(description) = generator().into_root_schema_for::<T>().get("description") {
        schema.insert("description".to_owned(), description.clone());
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// `tcpguard schema --directory tcpguard/dist/schema` writes them anew; a changed meaning takes another version.
    #[test]
    fn the_schemas_that_are_handed_out_are_those_of_the_types() {
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/dist/schema"));
        let kept = |form: &Form| std::fs::read_to_string(directory.join(format!("{}.json", form.name)));
        for form in &FORMS {
            assert_eq!(kept(form).unwrap_or_default(), text(form) + "\n", "{}", form.name);
        }
        let files = std::fs::read_dir(directory).unwrap();
        let files: BTreeSet<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        let names: BTreeSet<_> = FORMS.iter().map(|form| format!("{}.json", form.name)).collect();
        assert_eq!(files, names);
    }
}
