//! `cargo xtask screenshots`: the pictures of the README, drawn from a real run: the demo's stage with its clients and its flood,
//! watched on a terminal.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use super::record::Phase;
use super::{RunArgs, Stage};
use crate::lab::Terminal;
use crate::setup::Purpose;
use crate::{build, svg};

/// Columns and lines of the live view, and of a listing.
const LIVE: (u16, u16) = (100, 30);
const LISTING: (u16, u16) = (124, 40);
/// An attack is noticed a second or two after it begins, and its sources a little later.
const PATIENCE: Duration = Duration::from_secs(20);

/// Draw the README's pictures: the live view and the statistics while the demo is under attack
#[derive(Args, Clone, Debug)]
pub struct ScreenshotsArgs {
    /// Where the pictures go
    #[arg(long, value_name = "DIR", default_value = "docs")]
    directory: PathBuf,
    /// How long it is calm, and how long it is flooded, before the pictures are taken
    #[arg(long, value_name = "N", default_value_t = 25)]
    seconds: u64,
    /// Spoofed SYNs a second
    #[arg(long, value_name = "PPS", default_value_t = 500_000)]
    flood_pps: u64,
    #[command(flatten)]
    built: build::Built,
}

/// The verb.
pub fn run(args: &ScreenshotsArgs) -> Result<()> {
    if !crate::tool::is_root() {
        bail!("the demo needs root: it makes network namespaces and loads XDP programs; try sudo");
    }
    let built = args.built.or_release(Purpose::Lab)?;
    let demo = RunArgs {
        seconds: None,
        flood_pps: args.flood_pps,
        requests: 2000,
        queues: 2,
        plain: true,
        built: args.built.clone(),
        daemon: Vec::new(),
    };
    let mut stage = Stage::set(&demo, &built)?;
    let taken = take(args, &demo, &mut stage, &built.daemon);
    let struck = stage.strike();
    taken?;
    struck
}

fn take(args: &ScreenshotsArgs, demo: &RunArgs, stage: &mut Stage, tcpguard: &Path) -> Result<()> {
    let (dir, phase) = (stage.lab.dir(), Duration::from_secs(args.seconds));
    let tcpguard = format!("{} --control {}", tcpguard.display(), stage.lab.control_socket().display());
    let live = Terminal::run(&dir, LIVE, &format!("{tcpguard} top --interval 0.5"))?;
    sleep(phase);
    stage.follow(Phase::Flood, demo)?;
    sleep(phase);
    picture(&args.directory.join("top.svg"), &live, LIVE, "under attack: ")?;
    for (key, name, shows) in
        [("2", "top-states.svg", "ESTABLISHED "), ("3", "top-services.svg", "ATTACKED FROM")]
    {
        live.press(&[key])?;
        // Pages are drawn with the next reading.
        sleep(Duration::from_secs(1));
        picture(&args.directory.join(name), &live, LIVE, shows)?;
    }
    drop(live);
    let listing = format!("printf '$ tcpguard stats\\n\\n'; {tcpguard} stats | sed '/^GROUP/,$d'; sleep 60");
    let listing = Terminal::run(&dir, LISTING, &listing)?;
    picture(&args.directory.join("stats.svg"), &listing, LISTING, "ESTABLISHED ")?;
    drop(listing);
    stage.follow(Phase::Calm, demo)
}

/// Draws the screen once it shows this.
fn picture(path: &Path, terminal: &Terminal, (columns, _): (u16, u16), shows: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !terminal.screen()?.contains(shows) {
        ensure!(Instant::now() < deadline, "no `{shows}` on the screen:\n{}", terminal.screen()?);
        sleep(Duration::from_millis(200));
    }
    std::fs::write(path, svg::draw(&terminal.painted()?, columns))
        .with_context(|| path.display().to_string())?;
    eprintln!("{}", path.display());
    Ok(())
}
