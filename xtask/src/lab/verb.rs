//! `cargo xtask lab`: leaves a lab standing, says how to enter it, floods it on request, and takes it down.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use super::{FloodSpec, GUARD_ADDRESS, GUARD_INTERFACE, Lab, LabConfig, down, kept};
use crate::build;
use crate::setup::Purpose;

/// Ports the printed commands use.
const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
/// Bytes of the page that nginx serves.
const PAGE: usize = 1024;

/// The name of the lab that is meant when none is given.
const NAME: &str = "lab";

/// Bring up a lab and leave it: a guarded host with nginx, and a client with an attacker behind the same link
#[derive(Args, Clone, Debug)]
pub struct LabArgs {
    /// Which lab: it takes the place of the one with the same name, and others stay up. Small letters, digits and dashes
    #[arg(long, default_value = NAME, value_parser = name)]
    name: String,
    /// Take down the lab that was left up
    #[arg(long, conflicts_with_all = ["flood", "loss", "queues"])]
    down: bool,
    /// Send this many spoofed SYNs a second to port 80 of the lab that is up; 0 for as many as the machine makes
    #[arg(long, value_name = "PPS", conflicts_with_all = ["loss", "queues"])]
    flood: Option<u64>,
    /// For so long
    #[arg(long, value_name = "N", default_value_t = 10, requires = "flood")]
    seconds: u64,
    /// Put a router in between that loses this share of the packets each way, as 0.02
    #[arg(long, value_name = "SHARE")]
    loss: Option<f64>,
    /// Receive queues of the guarded interface
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    queues: u32,
    #[command(flatten)]
    built: build::Built,
}

/// The verb.
pub fn run(args: &LabArgs) -> Result<()> {
    if args.down {
        let gone = down(&args.name)?;
        println!(
            "{}",
            if gone.is_empty() {
                format!("no lab `{}` was up", args.name)
            } else {
                format!("down: {}", gone.join(", "))
            }
        );
        return Ok(());
    }
    if args.loss.is_some_and(|loss| !(0.0..=1.0).contains(&loss)) {
        bail!("--loss is a share from 0 to 1");
    }
    if !crate::tool::is_root() {
        bail!("the lab needs root: it makes network namespaces and loads XDP programs; try sudo");
    }
    let built = args.built.or_release(Purpose::Lab)?;
    if let Some(rate) = args.flood {
        return flood(&built.lab_object, &args.name, rate, Duration::from_secs(args.seconds));
    }
    down(&args.name)?;
    let config = LabConfig { queues: args.queues, loss: args.loss, ..LabConfig::new(&built.lab_object) };
    let lab = Lab::up(config)?;
    let backend = lab.backend(BACKEND_PORT)?;
    // Else a request for / would be refused.
    backend.file("index.html", PAGE)?;
    backend.leave()?;
    print!("{}", directions(&lab, &args.name, &built.daemon));
    lab.keep(&args.name)
}

/// What stands in printed commands for a shell as it is.
fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=32).contains(&text.len()) && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("not 1 to 32 small letters, digits and dashes".to_owned())
    }
}

fn flood(object: &Path, name: &str, rate: u64, time: Duration) -> Result<()> {
    let flood = kept(object, name)?.start(PORT, FloodSpec { rate, ..FloodSpec::default() })?;
    let counters = flood.run_for(time)?;
    println!("{} frames sent, {} refused by the receiving ring", counters.delivered(), counters.refused);
    Ok(())
}

/// How to enter the lab and what to do there.
fn directions(lab: &Lab, name: &str, daemon: &Path) -> String {
    let enter = |name: &super::Namespace| format!("nsenter --net={}", name.path().display());
    let (guard, client) = (enter(lab.guard()), enter(lab.client()));
    let server = SocketAddr::from((GUARD_ADDRESS, PORT));
    let (daemon, pins, socket) = (daemon.display(), lab.pin_dir(), lab.control_socket());
    let (pins, socket) = (pins.display(), socket.display());
    let named = if name == NAME { String::new() } else { format!(" --name {name}") };
    let router = lab.router().map_or_else(String::new, |router| format!("  router     {}\n", enter(router)));
    format!(
        "lab {} is up; enter it with
  guard      {guard}
  client     {client}
{router}nginx listens on 127.0.0.1:{BACKEND_PORT} in the guard's namespace. For example
  protect    {guard} {daemon} run -i {GUARD_INTERFACE} --protect {server}=127.0.0.1:{BACKEND_PORT} --pin-dir {pins} --control {socket}
  request    {client} curl -sS -o /dev/null -w '%{{http_code}}\\n' http://{server}/
  flood      cargo xtask lab{named} --flood 300000 --seconds 10
  watch      {daemon} --control {socket} stats --watch
  leave      cargo xtask lab{named} --down
",
        lab.id()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_needs_no_quotes() {
        assert_eq!(name("mine-2").as_deref(), Ok("mine-2"));
        for bad in ["", "a b", "a/b", "$HOME", "Lab", &"x".repeat(33)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }
}
