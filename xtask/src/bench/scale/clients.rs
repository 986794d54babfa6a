//! The clients of this suite: a program at the client's end of a lab's link that opens connections by the million with the
//! project's own stack (`tcpguard/examples/scale-client`), told line by line what to do.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{FAR_MAC, GUARD_MAC, Lab, Process, mac};

/// The program, running.
pub(in crate::bench) struct Clients {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    _process: Process,
}

impl Clients {
    /// Starts it; connections are held to `hold`, requests sent to `web`.
    pub(super) fn start(lab: &Lab, program: &Path, hold: SocketAddr, web: SocketAddr) -> Result<Self> {
        let mut command = lab.client().command(program);
        command.arg("--ifindex").arg(lab.client_ifindex()?.to_string());
        command.arg("--takers").arg(lab.pin_takers()?);
        command.args(["--from", &mac(FAR_MAC), "--to", &mac(GUARD_MAC)]);
        command.args(["--hold", &hold.to_string(), "--web", &web.to_string()]);
        // As the daemon's unit file has it: a million connections want large pages.
        command.env("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = Process::spawn_listening(&mut command)?;
        let commands = process.child().stdin.take().context("its standard input is not a pipe")?;
        let answers = process.child().stdout.take().context("its standard output is not a pipe")?;
        Ok(Self { commands, answers: BufReader::new(answers), _process: process })
    }

    /// Has it do something, and waits until it is done; what it says of it.
    pub(in crate::bench) fn ask(&mut self, command: &str) -> Result<Value> {
        writeln!(self.commands, "{command}").context("telling the clients")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the clients ended while they should `{command}`");
        serde_json::from_str(&line).with_context(|| format!("the clients said {line:?}"))
    }
}
