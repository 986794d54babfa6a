//! `tcpguard check`: judges a configuration file, and touches nothing.

use std::io::{self, Write as _};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::{ConfigError, DEFAULT_FILE, TUNABLES, Tunables, file};
use crate::control::daemon;

use super::Failure;
use super::output::{one_line, write_json};

#[derive(clap::Args)]
#[command(after_help = "\
Needs no rights beyond reading the file, and no daemon. What only the machine knows (is there such an interface, is the
port free) `tcpguard run` says before it changes anything. A hook that is not there is no error, but said on standard error.

Examples:
  tcpguard check
  tcpguard check edge.toml
  tcpguard config | tcpguard check -

Exit codes: 0 good, 2 not (one line says where and why).")]
pub(super) struct Args {
    /// The file; - is standard input
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What a good file is about.
#[derive(Serialize, JsonSchema)]
pub(super) struct Good {
    /// Its name.
    file: String,
    /// Interfaces in it.
    interfaces: usize,
    /// Services in it.
    services: usize,
    /// Filters in it.
    filters: usize,
    /// Tunables that differ from their defaults.
    tunables: usize,
    /// What will not work on this machine as it is now; a file may be for another one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    doubts: Vec<String>,
}

/// With what to do about it if there is none.
fn no_file(error: ConfigError) -> Failure {
    match &error {
        ConfigError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Failure::BadInput(format!("{error}; `tcpguard config --example` prints one to begin with"))
        }
        _ => error.into(),
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let (path, written) = match args.file.as_os_str() == "-" {
        true => ("standard input".into(), file::read_from("standard input".as_ref(), io::stdin().lock())?),
        false => (args.file.clone(), file::read(&args.file).map_err(no_file)?),
    };
    written.check(&written.config)?;
    let config = &written.config;
    daemon::check_secret(config).map_err(|error| Failure::BadInput(error.to_string()))?;
    let (set, defaults) = (&config.tunables, Tunables::default());
    let good = Good {
        file: path.display().to_string(),
        interfaces: config.interfaces.len(),
        services: config.services.len(),
        filters: config.filters.len(),
        tunables: TUNABLES.iter().filter(|tunable| tunable.get(set) != tunable.get(&defaults)).count(),
        doubts: written.doubts(),
    };
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(write_json(&mut out, &good)?);
    }
    let Good { file, interfaces, services, filters, tunables, doubts } = good;
    for doubt in doubts {
        writeln!(io::stderr(), "tcpguard: {}", one_line(&doubt))?;
    }
    Ok(writeln!(
        out,
        "{file}: good (interfaces {interfaces}, services {services}, filters {filters}, tunables changed {tunables})"
    )?)
}
