//! The daemon under demonstration: started in the guard's namespace, asked for its numbers over its control socket,
//! stopped as a service manager would.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::lab::{GUARD_INTERFACE, Lab, Process};

/// A running `tcpguard run`.
pub(crate) struct Daemon {
    process: Process,
    socket: PathBuf,
    log: PathBuf,
}

/// The daemon's numbers, as far as the demo shows them. All since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) syns: u64,
    pub(crate) cookies: u64,
    /// SYNs that were left to the stack.
    pub(crate) remembered: u64,
    /// Connections that began: adopted by the stack, whichever way their ACK reached it.
    pub(crate) acks_accepted: u64,
    pub(crate) acks_refused: u64,
    /// Flows by TCP state, without the states that have none.
    pub(crate) states: Vec<(String, u64)>,
}

impl Daemon {
    /// Starts it with `arguments` beside the obvious ones, and waits until it answers.
    pub(crate) fn start(binary: &Path, lab: &Lab, arguments: &[&str]) -> Result<Self> {
        let (log, socket) = (lab.dir().join("daemon.log"), lab.control_socket());
        let mut command = lab.guard().command(binary);
        command.args(["run", "-i", GUARD_INTERFACE]).args(arguments);
        command.arg("--pin-dir").arg(lab.pin_dir()).arg("--control").arg(&socket);
        let output = File::create(&log)?;
        command.stdout(output.try_clone()?).stderr(output);
        let mut daemon = Self { process: Process::spawn(&mut command)?, socket, log };
        let Self { process, socket, .. } = &mut daemon;
        let ready = process.wait_until(Duration::from_secs(20), || ask(socket, "status").is_ok());
        ready.map_err(|error| error.context(daemon.said()))?;
        Ok(daemon)
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Asks for the numbers; an error when the daemon is gone.
    pub(crate) fn numbers(&mut self) -> Result<Numbers> {
        numbers(&self.stats()?)
    }

    /// Everything it counts; an error when the daemon is gone.
    pub(crate) fn stats(&mut self) -> Result<Value> {
        if let Some(status) = self.process.ended()? {
            bail!("the daemon ended by itself ({status})\n{}", self.said());
        }
        ask(&self.socket, "stats")
    }

    /// SIGTERM, and the orderly end it promises.
    pub(crate) fn stop(self) -> Result<()> {
        let said = self.said();
        let status = self.process.stop(Duration::from_secs(40)).context("stopping the daemon")?;
        if status.success() { Ok(()) } else { bail!("the daemon ended with {status} after SIGTERM\n{said}") }
    }

    /// The end of its log.
    fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(10)..];
        format!("the daemon's last words:\n{}", last.join("\n"))
    }
}

/// One request without arguments over the control socket.
fn ask(socket: &Path, operation: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).context("connecting to the daemon")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    writeln!(stream, "{{\"v\":1,\"op\":\"{operation}\"}}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let mut reply: Value = serde_json::from_str(&line).context("the daemon's answer is not JSON")?;
    match reply.get_mut(operation) {
        Some(content) => Ok(content.take()),
        None => bail!("the daemon did not answer `{operation}`: {}", line.trim()),
    }
}

fn numbers(stats: &Value) -> Result<Numbers> {
    let reasons = stats["reasons"].as_array().context("no reasons in the daemon's answer")?;
    let sum = |matches: &dyn Fn(&str) -> bool| {
        let counted = reasons.iter().filter(|reason| reason["name"].as_str().is_some_and(matches));
        counted.filter_map(|reason| reason["total"].as_u64()).sum()
    };
    let adopted = stats["totals"]["stack"]["adopted"].as_u64();
    let states = stats["states"].as_object().into_iter().flatten();
    let states = states.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)));
    Ok(Numbers {
        syns: sum(&|name| name.starts_with("cookie-sent") || name.starts_with("syn-")),
        cookies: sum(&|name| name.starts_with("cookie-sent")),
        remembered: sum(&|name| name == "syn-stateful"),
        acks_accepted: adopted.context("no adopted connections in the daemon's answer")?,
        acks_refused: sum(&|name| name == "ack-invalid"),
        states: states.filter(|(_, count)| *count > 0).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_the_reasons_and_states() {
        let stats = serde_json::json!({
            "reasons": [
                {"name": "cookie-sent", "total": 80}, {"name": "cookie-sent-small-mss", "total": 10},
                {"name": "syn-stateful", "total": 4}, {"name": "syn-bad-checksum", "total": 6},
                {"name": "ack-valid", "total": 5}, {"name": "ack-invalid", "total": 3},
                {"name": "flow-known", "total": 1000}
            ],
            "totals": {"stack": {"adopted": 7, "unknown": 2}},
            "states": {"ESTABLISHED": 5, "CLOSING": 0, "TIME_WAIT": 2}
        });
        let numbers = numbers(&stats).unwrap();
        assert_eq!((numbers.syns, numbers.cookies, numbers.remembered), (100, 90, 4));
        assert_eq!((numbers.acks_accepted, numbers.acks_refused), (7, 3));
        assert_eq!(numbers.states, [("ESTABLISHED".to_owned(), 5), ("TIME_WAIT".to_owned(), 2)]);
    }

    #[test]
    fn an_answer_without_reasons_is_an_error() {
        assert!(numbers(&serde_json::json!({})).is_err());
    }
}
