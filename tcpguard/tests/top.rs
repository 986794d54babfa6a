//! `tcpguard top` in a real terminal: tmux runs it, types into it, and says what is on its screen. Needs root.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use support::setup::{BINARY, SERVICE, Setup, eventually, one_line};
use xtask::lab::FloodSpec;

/// A tmux server of the test's own with one terminal of 80 columns by 24 lines.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    fn run(dir: &Path, command: &str) -> Result<Self> {
        let terminal = Self { socket: dir.join("tmux") };
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", command])?;
        Ok(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.arg("-f").arg("/dev/null").arg("-S").arg(&self.socket).args(arguments);
        let output =
            command.env_remove("TMUX").output().context("running tmux (cargo xtask setup installs it)")?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What is on the screen; with `-e`, escape sequences and all.
    fn screen(&self, escapes: bool) -> Result<String> {
        self.tmux(if escapes { &["capture-pane", "-p", "-e"] } else { &["capture-pane", "-p"] })
    }

    fn shows(&self, what: &str) -> Result<()> {
        let mut last = String::new();
        let found = eventually(what, || {
            last = self.screen(false)?;
            Ok(last.contains(what))
        });
        found.with_context(|| last.clone())
    }

    fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It is gone already when what ran in it has ended.
        drop(self.tmux(&["kill-server"]));
    }
}

#[test]
fn top_shows_an_attack_states_services_and_tunables_and_ends_on_q() -> Result<()> {
    let mut setup = Setup::new()?;
    let daemon = setup.daemon(&["--set", "attack-syns=500", "--set", "attack-calm-time=1s"])?;
    let refused = one_line(&setup.ask(&["top"])?, 2)?;
    ensure!(refused.contains("needs a terminal"), "{refused}");
    let kept = setup.keep_alive()?;
    let ended = setup.lab.dir().join("ended");
    let (control, ended_at) = (setup.control().display().to_string(), ended.display().to_string());
    let top = format!("{BINARY} --control {control} top --interval 0.2; echo $? > {ended_at}");
    let terminal = Terminal::run(&setup.lab.dir(), &top)?;
    terminal.shows("no attack")?;
    terminal.shows("SYNs/s")?;
    let flood = setup.lab.flood(SERVICE.port(), FloodSpec { rate: 5000, ..FloodSpec::default() })?;
    terminal.shows(&format!("under attack: {SERVICE}: syn-flood "))?;
    ensure!(terminal.screen(true)?.contains("\x1b["), "colours");
    terminal.press(&["2"])?;
    terminal.shows("ESTABLISHED 1")?;
    terminal.press(&["Tab"])?;
    terminal.shows("SENDS MOST")?;
    terminal.shows("10.77.0.2:")?;
    terminal.press(&["4"])?;
    terminal.shows("time-wait")?;
    terminal.press(&["Enter", "7s", "Enter"])?;
    terminal.shows("time-wait: 1m -> 7s")?;
    assert_eq!(setup.json(&["tune", "time-wait"])?["tunables"][0]["value"], 7000);
    terminal.press(&["Enter", "7h", "Enter"])?;
    terminal.shows("out of range")?;
    flood.stop()?;
    terminal.shows("no attack")?;
    for line in terminal.screen(false)?.lines() {
        ensure!(line.chars().count() <= 80, "{line}");
    }
    terminal.press(&["q"])?;
    eventually("it ends", || Ok(std::fs::read_to_string(&ended).is_ok_and(|code| code == "0\n")))?;
    drop((terminal, kept));

    // Without colours, and after the daemon has gone.
    let top = format!("NO_COLOR=1 {BINARY} --control {control} top --interval 0.2");
    let terminal = Terminal::run(&setup.lab.dir(), &top)?;
    terminal.shows("no attack")?;
    let drawn = terminal.screen(true)?;
    // The terminal's own colours are none of ours.
    let chosen = drawn.replace("\x1b[39m", "").replace("\x1b[49m", "");
    ensure!(!chosen.contains("\x1b[3") && !chosen.contains("\x1b[4"), "{drawn:?}");
    drop(daemon);
    terminal.shows("no daemon answers there")?;
    terminal.press(&["q"])
}
