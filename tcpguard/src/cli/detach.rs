//! `tcpguard detach`: removes the program, the pins and the sockets that a killed daemon left. A running daemon is refused.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use crate::config::shown::printable;
use crate::config::{Control, DEFAULT_FILE, DEFAULT_PIN_DIR, MetricsListen, file};
use crate::control::daemon;

use super::Failure;
use super::output::write_json;

#[derive(clap::Args)]
#[command(after_help = "\
The control socket, the one for readers and the one for metrics are removed if nobody listens there. Without --config,
/etc/tcpguard/tcpguard.toml says where they are if it is there and can be read; --control wins over it.

Example:
  tcpguard detach    after a daemon was killed and none is to take over")]
pub(super) struct Args {
    /// Where the daemon pinned its maps and links
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIR)]
    pin_dir: PathBuf,
    /// The configuration file (TOML) that names the sockets
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// What became of the pins and the sockets.
#[derive(Serialize, JsonSchema)]
pub(super) struct Detached {
    /// Where it looked.
    pin_dir: PathBuf,
    /// Whether something was there.
    detached: bool,
    /// The sockets that were removed.
    sockets: Vec<PathBuf>,
}

pub(super) fn run(args: &Args, control: Option<&Path>) -> Result<(), Failure> {
    let (control, metrics) = sockets(args, control)?;
    let detached = daemon::detach(&args.pin_dir)?;
    let sockets = daemon::remove_sockets(&control, metrics.as_ref())?;
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(write_json(&mut out, &Detached { pin_dir: args.pin_dir.clone(), detached, sockets })?);
    }
    match detached {
        true => writeln!(out, "detached what was pinned in {}", args.pin_dir.display())?,
        false => writeln!(out, "nothing was pinned in {}", args.pin_dir.display())?,
    }
    for socket in sockets {
        writeln!(out, "removed {}, where nobody listened", printable(&socket.display().to_string()))?;
    }
    Ok(())
}

/// Where the daemon listened. A file that was not asked for does not stand in the way if it cannot be read.
fn sockets(args: &Args, control: Option<&Path>) -> Result<(Control, Option<MetricsListen>), Failure> {
    let read = match &args.config {
        Some(path) => Some(file::read(path).map_err(|error| Failure::BadInput(error.to_string()))?),
        None => file::read(Path::new(DEFAULT_FILE)).ok(),
    };
    let (read, metrics) = read.map(|read| (read.config.control, read.config.metrics)).unwrap_or_default();
    let control = match control {
        Some(path) => Control { socket: path.to_owned(), ..read },
        None => read,
    };
    Ok((control, metrics))
}
