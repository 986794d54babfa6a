//! A real terminal that nobody sits at: a tmux server of its own runs a command in it, types, and says what is on its screen.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};

/// One terminal. Dropping it ends what runs in it.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// Runs a shell's command line on a terminal of so many columns and lines. tmux's socket is put into `dir`.
    pub fn run(dir: &Path, (columns, lines): (u16, u16), command: &str) -> Result<Self> {
        // A server that was told to end takes a moment, and its socket with it.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let terminal = Self { socket: dir.join(format!("tmux-{number}")) };
        let (columns, lines) = (columns.to_string(), lines.to_string());
        terminal.tmux(&["new-session", "-d", "-x", &columns, "-y", &lines, command])?;
        Ok(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.arg("-u").arg("-f").arg("/dev/null").arg("-S").arg(&self.socket).args(arguments);
        let output =
            command.env_remove("TMUX").output().context("running tmux (cargo xtask setup installs it)")?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What is on the screen.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with the escape sequences that make it look as it does.
    pub fn painted(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Presses keys, by tmux's names of them.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It is gone already when what ran in it has ended.
        drop(self.tmux(&["kill-server"]));
    }
}
