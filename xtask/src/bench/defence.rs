//! What suites put before a server on the guarded host of a lab: tcpguard, the kernel's synproxy, and HAProxy.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::build::Artifacts;
use crate::lab::{GUARD_INTERFACE, Lab, Process};
use crate::run::daemon::Daemon;

/// tcpguard with its defaults and these arguments. Told to stop, it waits for no connection: nobody measures that.
pub(super) fn tcpguard(lab: &Lab, built: &Artifacts, arguments: &[&str]) -> Result<Daemon> {
    Daemon::start(&built.daemon, lab, &[arguments, &["--set", "drain-time=0s"]].concat())
}

/// As its manual sets it up: SYNs are not tracked, what nobody tracks goes to synproxy. Connections that ended are forgotten
/// after a second: as long as one is known, an ACK of the next from the same port does not come to synproxy, and a few clients
/// that connect thousands of times a second have no others left long before the two minutes of the default are over.
pub(super) fn synproxy(lab: &Lab, port: u16) -> Result<()> {
    lab.guard().nft(&format!(
        "table inet bench {{
  chain raw {{
    type filter hook prerouting priority raw
    iifname {GUARD_INTERFACE} tcp dport {port} tcp flags syn notrack
  }}
  chain input {{
    type filter hook input priority filter
    iifname {GUARD_INTERFACE} tcp dport {port} ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm
    ct state invalid drop
  }}
}}
"
    ))?;
    lab.guard().sysctl(&[
        ("net/netfilter/nf_conntrack_tcp_loose", "0"),
        ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "1"),
        ("net/ipv4/tcp_syncookies", "1"),
        ("net/ipv4/tcp_timestamps", "1"),
    ])
}

/// HAProxy in TCP mode with one thread, once it answers.
pub(super) fn haproxy(lab: &Lab, front: SocketAddr, behind: SocketAddr) -> Result<Process> {
    let config = lab.dir().join("haproxy.cfg");
    let text = format!(
        "global
  nbthread 1
  maxconn 4096
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend front
  bind {front} backlog 16384
  default_backend behind
backend behind
  server nginx {behind}
"
    );
    fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
    let mut command = lab.guard().command("haproxy");
    command.args(["-db", "-q", "-f"]).arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
    let mut process = Process::spawn(&mut command)?;
    let reachable = || lab.guard().enter(|| TcpStream::connect(front).is_ok()).unwrap_or(false);
    process.wait_until(Duration::from_secs(10), reachable).context("HAProxy does not answer")?;
    Ok(process)
}
