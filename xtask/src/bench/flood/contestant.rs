//! Who is flooded: each defence set up on the guarded host of a lab, and what must hold of it afterwards. A lab of its own
//! for each, so that no sysctl, rule or program of one is left to the next.

use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

use crate::build::Artifacts;
use crate::lab::{GUARD_ADDRESS, GUARD_INTERFACE, Instead, Lab, StandIn};
use crate::run::daemon::Daemon;

/// Connections that may wait for the kernel server.
const BACKLOG: i32 = 4096;

/// A defence, or one of the limits of any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// Every frame dropped by XDP: what making them costs.
    XdpDrop,
    /// Every frame sent back by XDP: the least that an answer costs.
    XdpTx,
    /// The guard, with a responder behind it.
    Tcpguard,
    /// A kernel server with cookies once its queue is full.
    Syncookies1,
    /// A kernel server that always sends cookies.
    Syncookies2,
    /// A kernel server behind synproxy of nftables.
    Synproxy,
    /// A kernel server behind the kernel's xdp_synproxy, whose program is pinned here.
    XdpSynproxy(PathBuf),
}

impl Contestant {
    /// Those that need nothing that is not here.
    pub const STANDARD: [Self; 6] =
        [Self::XdpDrop, Self::XdpTx, Self::Tcpguard, Self::Syncookies1, Self::Syncookies2, Self::Synproxy];

    /// Whether clients are served.
    pub(super) fn serves(&self) -> bool {
        // xdp_synproxy leaves the connection to synproxy of nftables, which is not set up behind it.
        !matches!(self, Self::XdpDrop | Self::XdpTx | Self::XdpSynproxy(_))
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::XdpDrop => "xdp_drop",
            Self::XdpTx => "xdp_tx",
            Self::Tcpguard => "tcpguard",
            Self::Syncookies1 => "syncookies_1",
            Self::Syncookies2 => "syncookies_2",
            Self::Synproxy => "synproxy",
            Self::XdpSynproxy(_) => "xdp_synproxy",
        })
    }
}

/// A defence that is up.
pub(super) struct Standing {
    _program: Option<StandIn>,
    listener: Option<TcpListener>,
    daemon: Option<Daemon>,
}

impl Standing {
    pub(super) fn up(contestant: &Contestant, lab: &Lab, built: &Artifacts, port: u16) -> Result<Self> {
        let stand_in = |instead| StandIn::attach(lab, instead).map(Some);
        let cookies = |mode| lab.guard().sysctl(&[("net/ipv4/tcp_syncookies", mode)]);
        let (mut program, mut kernel, mut daemon) = (None, true, None);
        match contestant {
            Contestant::XdpDrop => (program, kernel) = (stand_in(Instead::Drop)?, false),
            Contestant::XdpTx => (program, kernel) = (stand_in(Instead::Reflect)?, false),
            Contestant::Tcpguard => {
                let protect = format!("{GUARD_ADDRESS}:{port}=respond:discard");
                (daemon, kernel) =
                    (Some(Daemon::start(&built.daemon, lab, &["--protect", &protect])?), false);
            }
            Contestant::Syncookies1 => {
                cookies("1")?;
                program = stand_in(Instead::Pass)?;
            }
            Contestant::Syncookies2 => {
                cookies("2")?;
                program = stand_in(Instead::Pass)?;
            }
            Contestant::Synproxy => {
                synproxy(lab, port)?;
                program = stand_in(Instead::Pass)?;
            }
            Contestant::XdpSynproxy(pin) => attach_pinned(lab, pin)?,
        }
        let listener = kernel.then(|| listen(lab, port)).transpose()?;
        Ok(Self { _program: program, listener, daemon })
    }

    /// Fails when forged segments became connections. Clients that connected have left: theirs are not among those that are
    /// open, and forged ones never leave.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(daemon) = &mut self.daemon {
            let numbers = daemon.numbers()?;
            ensure!(numbers.acks_refused > 0, "no forged ACK was refused");
            let open = |(state, _): &&(String, u64)| state == "ESTABLISHED";
            let open = numbers.states.iter().find(open).map_or(0, |(_, count)| *count);
            ensure!(open == 0, "{open} connections without a client");
        }
        Ok(())
    }

    pub(super) fn down(self) -> Result<()> {
        if let Some(listener) = self.listener {
            drain(&listener)?;
        }
        self.daemon.map_or(Ok(()), Daemon::stop)
    }
}

/// A server whose connections nobody takes.
fn listen(lab: &Lab, port: u16) -> Result<TcpListener> {
    lab.guard().enter(|| -> Result<TcpListener> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((GUARD_ADDRESS, port)).into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    })?
}

/// Takes what waits, so that a server whose queue overflowed says so.
fn drain(listener: &TcpListener) -> Result<()> {
    loop {
        match listener.accept() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error).context("accepting"),
        }
    }
}

/// As its manual sets it up: SYNs are not tracked, what nobody tracks goes to synproxy.
fn synproxy(lab: &Lab, port: u16) -> Result<()> {
    lab.guard().nft(&format!(
        "table ip bench {{
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
        ("net/ipv4/tcp_syncookies", "1"),
        ("net/ipv4/tcp_timestamps", "1"),
    ])
}

/// Attaches a program that somebody else loaded and configured, for as long as the lab stands.
fn attach_pinned(lab: &Lab, pin: &std::path::Path) -> Result<()> {
    let Some(pin) = pin.to_str() else { bail!("{} is not UTF-8", pin.display()) };
    lab.guard().ip(&format!("link set dev {GUARD_INTERFACE} xdpdrv pinned {pin}"))
}
