//! Long steps, told to whoever waits: a line that moves on a terminal, a line every ten seconds elsewhere, and the
//! whole of what the command wrote when it fails.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _, pipe};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::tool;

/// Lines of output kept for a failure.
const KEPT: usize = 40;
const FRAMES: [char; 4] = ['|', '/', '-', '\\'];

/// Runs a command that may take minutes, showing that it lives. Says beforehand what runs.
pub fn run(command: &mut Command) -> Result<()> {
    let line = tool::line(command);
    eprintln!("    $ {line}");
    let (reader, writer) = pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("running `{line}`: is it installed?"))?;
    // The command holds the write ends; without this the reader would wait for ourselves.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        // Some tools draw with carriage returns.
        for part in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&part).into_owned();
            if sender.send(text.rsplit('\r').find(|s| !s.is_empty()).unwrap_or_default().to_owned()).is_err()
            {
                return;
            }
        }
    });
    let mut meter = Meter::new();
    let mut last = VecDeque::new();
    loop {
        match receiver.recv_timeout(Duration::from_millis(120)) {
            Ok(text) => {
                if last.len() == KEPT {
                    last.pop_front();
                }
                last.push_back(text);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        meter.show(last.back().map_or("", String::as_str));
    }
    let status = child.wait()?;
    meter.clear();
    if !status.success() {
        let said: Vec<_> = last.into_iter().collect();
        bail!("`{line}` failed ({status}):\n{}", said.join("\n"));
    }
    Ok(())
}

struct Meter {
    start: Instant,
    shown: Instant,
    turn: usize,
    terminal: bool,
}

impl Meter {
    fn new() -> Self {
        let now = Instant::now();
        Self { start: now, shown: now, turn: 0, terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, text: &str) {
        let pause = if self.terminal { Duration::from_millis(100) } else { Duration::from_secs(10) };
        if self.shown.elapsed() < pause {
            return;
        }
        self.shown = Instant::now();
        self.turn += 1;
        let text = printable(text, 60);
        let seconds = self.start.elapsed().as_secs();
        if self.terminal {
            eprint!("\r\x1b[K    {} {seconds} s  {text}", FRAMES[self.turn % FRAMES.len()]);
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("    … {seconds} s  {text}");
        }
    }

    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

/// At most `width` characters, none of which moves the cursor.
fn printable(text: &str, width: usize) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_shows_what_it_wrote_on_either_stream() {
        let error = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 7"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 7") && text.contains("out") && text.contains("err"), "{text}");
    }

    #[test]
    fn nothing_a_tool_writes_moves_the_cursor() {
        assert_eq!(printable("  \x1b[31mred\x07 and long", 8), "[31mred ");
    }
}
