//! What stands between client and web server: each set up on the guarded host of a lab.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;

use super::super::defence;
use crate::build::Artifacts;
use crate::lab::{Backend, CLIENT_INTERFACE, GUARD_ADDRESS, GUARD_INTERFACE, Instead, Lab, Process, StandIn};
use crate::run::daemon::Daemon;

const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;

/// A relay, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// The guard, with one engine.
    Tcpguard,
    /// HAProxy in TCP mode with one thread, on a link as the guard has it: with an XDP program and without segmentation
    /// offload.
    Haproxy,
    /// The web server itself, on such a link.
    Direct,
    /// HAProxy as it runs where nobody guards: no XDP program, checksum and segmentation offload on.
    HaproxyOffload,
    /// The web server, likewise.
    DirectOffload,
}

impl Contestant {
    pub(super) const ALL: [Self; 5] =
        [Self::Tcpguard, Self::Haproxy, Self::Direct, Self::HaproxyOffload, Self::DirectOffload];
    /// Where in `ALL` those are that the others are compared with.
    pub(super) const HAPROXY: usize = 1;
    pub(super) const DIRECT: usize = 2;

    /// As it stands in the rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcpguard => "tcpguard",
            Self::Haproxy => "haproxy",
            Self::Direct => "direct",
            Self::HaproxyOffload => "haproxy_offload",
            Self::DirectOffload => "direct_offload",
        }
    }
}

/// A contestant that is up.
pub(super) struct Standing {
    daemon: Option<Daemon>,
    _haproxy: Option<Process>,
    _program: Option<StandIn>,
    backend: Backend,
}

impl Standing {
    pub(super) fn up(contestant: Contestant, lab: &Lab, built: &Artifacts) -> Result<Self> {
        let behind = SocketAddr::from((Ipv4Addr::LOCALHOST, BACKEND_PORT));
        let front = SocketAddr::from((GUARD_ADDRESS, PORT));
        let at = match contestant {
            Contestant::Direct | Contestant::DirectOffload => front,
            Contestant::Tcpguard | Contestant::Haproxy | Contestant::HaproxyOffload => behind,
        };
        let backend = Backend::start(lab.guard(), at, &lab.dir())?;
        let (mut daemon, mut haproxy, mut program) = (None, None, None);
        match contestant {
            Contestant::Tcpguard => {
                let protect = format!("{front}={behind}");
                daemon = Some(defence::tcpguard(lab, built, &["--protect", &protect])?);
            }
            Contestant::Haproxy | Contestant::Direct => program = Some(StandIn::attach(lab, Instead::Pass)?),
            Contestant::HaproxyOffload | Contestant::DirectOffload => offload(lab)?,
        }
        if matches!(contestant, Contestant::Haproxy | Contestant::HaproxyOffload) {
            haproxy = Some(defence::haproxy(lab, front, behind)?);
        }
        Ok(Self { daemon, _haproxy: haproxy, _program: program, backend })
    }

    pub(super) fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Where clients connect.
    pub(super) fn server(&self) -> SocketAddr {
        SocketAddr::from((GUARD_ADDRESS, PORT))
    }

    pub(super) fn down(self) -> Result<()> {
        self.daemon.map_or(Ok(()), Daemon::stop)
    }
}

/// The lab switches it off, as if there was a wire.
fn offload(lab: &Lab) -> Result<()> {
    lab.client().output("ethtool", &["-K", CLIENT_INTERFACE, "tx", "on", "tso", "on", "gro", "on"])?;
    lab.guard().output("ethtool", &["-K", GUARD_INTERFACE, "tx", "on", "tso", "on", "gro", "on"]).map(drop)
}
