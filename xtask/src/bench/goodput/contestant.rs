//! What stands between clients and web server while the flood comes: each defence set up on the guarded host of a lab, with
//! the server where the topology has it.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::super::defence;
use crate::build::Artifacts;
use crate::lab::{Backend, FloodSpec, GUARD_ADDRESS, Instead, Lab, Process, SPOOFED, Sieve, StandIn};
use crate::run::daemon::Daemon;
use crate::tool;

pub(super) const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
/// What the server sends, as tcpguard's own responder does.
pub(super) const PAGE: &[u8] = b"ok\n";

/// Where the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Right behind the defence: nginx in the kernel's hands, or tcpguard's responder.
    Direct,
    /// Behind a relay that is behind the defence: HAProxy, or tcpguard itself; then nginx.
    Proxied,
}

impl Topology {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Proxied];

    /// As it stands in the rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Proxied => "proxied",
        }
    }

    /// What answers behind this defence, and through what.
    pub(super) fn server(self, contestant: Contestant) -> &'static str {
        match (self, contestant.is_guard()) {
            (Self::Direct, true) => "responder",
            (Self::Direct, false) => "nginx",
            (Self::Proxied, true) => "tcpguard, nginx",
            (Self::Proxied, false) => "haproxy, nginx",
        }
    }
}

/// A defence, or what the best one could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// The guard with its defaults.
    Tcpguard,
    /// The kernel with cookies once its queue is full.
    Syncookies,
    /// synproxy of nftables.
    Synproxy,
    /// The kernel without cookies.
    None,
    /// The guard, told to deny the network that the flood comes from.
    OracleDeny,
    /// The guard behind a program that sends back what comes from that network.
    OracleReflect,
}

impl Contestant {
    /// All, those that others are compared with last.
    pub const ALL: [Self; 6] =
        [Self::Tcpguard, Self::Syncookies, Self::Synproxy, Self::None, Self::OracleDeny, Self::OracleReflect];
    /// Where in `ALL` those are that are compared with each other: the guard, and then both oracles.
    pub(super) const COMPARED: [usize; 3] = [0, 4, 5];

    /// As it stands in the rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcpguard => "tcpguard",
            Self::Syncookies => "syncookies",
            Self::Synproxy => "synproxy",
            Self::None => "none",
            Self::OracleDeny => "oracle_deny",
            Self::OracleReflect => "oracle_reflect",
        }
    }

    /// Whether the guard's responder or relay is what clients meet.
    pub(super) fn is_guard(self) -> bool {
        matches!(self, Self::Tcpguard | Self::OracleDeny | Self::OracleReflect)
    }
}

/// A contestant that is up. Its parts end in this order.
pub(super) struct Standing {
    daemon: Option<Daemon>,
    _sieve: Option<Sieve>,
    _program: Option<StandIn>,
    _haproxy: Option<Process>,
    _backend: Option<Backend>,
}

impl Standing {
    pub(super) fn up(
        contestant: Contestant,
        topology: Topology,
        lab: &Lab,
        built: &Artifacts,
    ) -> Result<Self> {
        let behind = SocketAddr::from((Ipv4Addr::LOCALHOST, BACKEND_PORT));
        let front = SocketAddr::from((GUARD_ADDRESS, PORT));
        let mut standing =
            Self { daemon: None, _sieve: None, _program: None, _haproxy: None, _backend: None };
        let server = match (topology, contestant.is_guard()) {
            (Topology::Direct, true) => None,
            (Topology::Direct, false) => Some(front),
            (Topology::Proxied, _) => Some(behind),
        };
        if let Some(address) = server {
            let backend = Backend::start(lab.guard(), address, &lab.dir())?;
            std::fs::write(backend.root().join("page"), PAGE)?;
            standing._backend = Some(backend);
        }
        if contestant.is_guard() {
            let target =
                if topology == Topology::Direct { "respond:http".to_owned() } else { behind.to_string() };
            let protect = format!("{front}={target}");
            standing.daemon = Some(defence::tcpguard(lab, built, &["--protect", &protect])?);
        } else {
            if topology == Topology::Proxied {
                standing._haproxy = Some(defence::haproxy(lab, front, behind)?);
            }
            standing._program = Some(StandIn::attach(lab, Instead::Pass)?);
        }
        let cookies = |mode| lab.guard().sysctl(&[("net/ipv4/tcp_syncookies", mode)]);
        match contestant {
            Contestant::Tcpguard => {}
            Contestant::Syncookies => cookies("1")?,
            Contestant::None => cookies("0")?,
            Contestant::Synproxy => defence::synproxy(lab, PORT)?,
            Contestant::OracleDeny => {
                let prefix = format!("{}/{}", SPOOFED.0, SPOOFED.1);
                let socket = lab.control_socket();
                let args = ["--control".as_ref(), socket.as_os_str()];
                let rest = ["filters", "add", "deny", &prefix].map(std::ffi::OsStr::new);
                tool::run(&built.daemon.to_string_lossy(), args.into_iter().chain(rest))?;
            }
            Contestant::OracleReflect => standing._sieve = Some(Sieve::insert(lab, &FloodSpec::default())?),
        }
        Ok(standing)
    }

    pub(super) fn down(self) -> Result<()> {
        self.daemon.map_or(Ok(()), Daemon::stop)
    }
}
