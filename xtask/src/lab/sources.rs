//! Has the client's connections come from all of its addresses in turn: as many ports as a crowd of clients has, for programs that
//! know nothing of addresses.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{CLIENT_INTERFACE, GUARD_ADDRESS, Namespace, Process};

/// How long connections come from one address.
const TURN: Duration = Duration::from_millis(50);

/// Addresses taking turns, until this is dropped.
#[derive(Debug)]
pub struct Sources {
    /// Its end is the other's sign.
    ends: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sources {
    pub(super) fn start(client: &Namespace, addresses: Vec<Ipv4Addr>) -> Result<Self> {
        let mut command = client.command("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
        // Its death is tied to the thread that starts it, which is the caller's: that one outlives this value.
        let mut ip = Process::spawn_listening(&mut command)?;
        let mut lines = ip.child().stdin.take().context("its standard input is not a pipe")?;
        let (ends, ended) = channel();
        let body = move || {
            for source in addresses.iter().cycle() {
                let line = format!("route replace {GUARD_ADDRESS}/32 dev {CLIENT_INTERFACE} src {source}\n");
                let is_told = lines.write_all(line.as_bytes()).is_ok();
                if !is_told || ended.recv_timeout(TURN) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
            drop((lines, ip));
        };
        let thread = std::thread::Builder::new().name("sources".into()).spawn(body)?;
        Ok(Self { ends: Some(ends), thread: Some(thread) })
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.ends = None;
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
