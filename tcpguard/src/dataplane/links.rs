//! The links that hold the program on its interfaces: pinned, so that they outlive the daemon, and taken over or given
//! back whole. Which interfaces there are, and what the program's maps say, is the [loader](super::loader)'s.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::bpf::{self, LINK_TYPE_XDP};
use super::error::DataplaneError;
use super::netdev::InterfaceFacts;
use super::pins::{PinDir, network_namespace};
use super::socket::WHOLE_MTU;

/// Link pins start with this.
pub(super) const LINK_PREFIX: &str = "xdp_";

/// `XDP_FLAGS_SKB_MODE`.
const SKB_MODE: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
const DRV_MODE: u32 = 1 << 2;

/// Where the kernel runs the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    #[default]
    Native,
    /// In the network stack, for drivers without XDP of their own: later and slower. Never chosen by itself.
    Generic,
}

impl AttachMode {
    fn flags(self) -> u32 {
        match self {
            Self::Native => DRV_MODE,
            Self::Generic => SKB_MODE,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Native => Self::Generic,
            Self::Generic => Self::Native,
        }
    }
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// What a previous daemon had attached.
#[derive(Debug)]
pub(super) enum OldLink {
    /// Nothing.
    None,
    /// The link we use, with this program.
    Same(OwnedFd),
    /// A link in this other mode, with this program. The kernel runs one mode at a time, so it had to go.
    OtherMode(AttachMode, OwnedFd),
}

/// An interface's link.
#[derive(Debug)]
pub(super) struct Linked {
    pub(super) link: OwnedFd,
    pub(super) pin: PathBuf,
    pub(super) old: OldLink,
}

/// Links the program to the interface, in place of what a previous daemon had there.
pub(super) fn link(
    pins: &PinDir,
    program: BorrowedFd<'_>,
    facts: &InterfaceFacts,
    mode: AttachMode,
) -> Result<Linked, DataplaneError> {
    let pin = link_pin(pins, facts.ifindex, mode);
    let refused = |source| attach_error(facts, mode, source);
    if let Some(link) = live_link(&pin, facts.ifindex) {
        let old = program_of(link.as_fd(), program).map_err(refused)?;
        bpf::link_update(link.as_fd(), program).map_err(refused)?;
        return Ok(Linked { link, pin, old: OldLink::Same(old) });
    }
    PinDir::remove(&pin)?;
    let other = link_pin(pins, facts.ifindex, mode.other());
    let Some(link) = live_link(&other, facts.ifindex) else {
        PinDir::remove(&other)?;
        let link = new_link(program, facts, mode, &pin)?;
        return Ok(Linked { link, pin, old: OldLink::None });
    };
    tracing::info!(interface = facts.name, "changing from {} to {mode} mode", mode.other());
    let old = program_of(link.as_fd(), program).map_err(refused)?;
    // While one mode's program is attached the kernel refuses the other's: there is a moment without either.
    release(link.as_fd(), &other)?;
    match new_link(program, facts, mode, &pin) {
        Ok(link) => Ok(Linked { link, pin, old: OldLink::OtherMode(mode.other(), old) }),
        Err(error) => {
            let restored = attach_again(pins, &facts.name, facts.ifindex, mode.other(), old.as_fd());
            if let Err(lost) = restored {
                tracing::error!(%lost, "the interface is without protection");
            }
            Err(error)
        }
    }
}

fn new_link(
    program: BorrowedFd<'_>,
    facts: &InterfaceFacts,
    mode: AttachMode,
    pin: &Path,
) -> Result<OwnedFd, DataplaneError> {
    let link = bpf::link_create(program, facts.ifindex, mode.flags())
        .map_err(|source| attach_error(facts, mode, source))?;
    let pinned = bpf::pin(link.as_fd(), pin);
    pinned.map_err(|source| DataplaneError::Pin { action: "create", path: pin.to_owned(), source })?;
    Ok(link)
}

/// The name tells interfaces of different network namespaces apart, and the modes, which a link does not tell.
fn link_pin(pins: &PinDir, ifindex: u32, mode: AttachMode) -> PathBuf {
    pins.join(&format!("{LINK_PREFIX}{}_{ifindex}_{mode}", network_namespace()))
}

/// Gives an interface back what it had before [`link`]; see [`Dataplane::undo`](super::Dataplane::undo).
pub(super) fn put_back(
    pins: &PinDir,
    name: &str,
    ifindex: u32,
    linked: &Linked,
) -> Result<(), DataplaneError> {
    let Linked { link, pin, old } = linked;
    match old {
        OldLink::None => release(link.as_fd(), pin),
        OldLink::Same(program) => bpf::link_update(link.as_fd(), program.as_fd())
            .map_err(|source| DataplaneError::Restore { name: name.to_owned(), source }),
        OldLink::OtherMode(mode, program) => {
            release(link.as_fd(), pin)?;
            attach_again(pins, name, ifindex, *mode, program.as_fd())
        }
    }
}

/// Attaches what a change of mode took off.
fn attach_again(
    pins: &PinDir,
    name: &str,
    ifindex: u32,
    mode: AttachMode,
    program: BorrowedFd<'_>,
) -> Result<(), DataplaneError> {
    let pin = link_pin(pins, ifindex, mode);
    let attached = bpf::link_create(program, ifindex, mode.flags());
    attached
        .and_then(|link| bpf::pin(link.as_fd(), &pin))
        .map_err(|source| DataplaneError::Restore { name: name.to_owned(), source })
}

/// Whether a previous daemon's program is on the interface, in either mode.
pub(super) fn is_linked(pins: &PinDir, ifindex: u32) -> bool {
    let modes = [AttachMode::Native, AttachMode::Generic];
    modes.into_iter().any(|mode| live_link(&link_pin(pins, ifindex, mode), ifindex).is_some())
}

/// The link pinned at `pin`, if it still holds that interface.
fn live_link(pin: &Path, ifindex: u32) -> Option<OwnedFd> {
    let link = bpf::get(pin).ok()?;
    let info = bpf::link_info(link.as_fd()).ok()?;
    // The index is 0 once the device is gone.
    (info.kind == LINK_TYPE_XDP && info.ifindex == ifindex).then_some(link)
}

/// The program of a link; `otherwise` where the kernel does not hand it out.
fn program_of(link: BorrowedFd<'_>, otherwise: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let program = bpf::link_info(link).and_then(|info| bpf::program_by_id(info.prog_id));
    program.or_else(|_| otherwise.try_clone_to_owned())
}

/// Takes a pinned link's program off its interface and removes the pin.
pub(super) fn release_link(pin: &Path) -> Result<(), DataplaneError> {
    match bpf::get(pin) {
        Ok(link) => release(link.as_fd(), pin),
        Err(_) => PinDir::remove(pin),
    }
}

pub(super) fn release(link: BorrowedFd<'_>, pin: &Path) -> Result<(), DataplaneError> {
    // Fails only when the device is gone and there is nothing to detach.
    let _ = bpf::link_detach(link);
    PinDir::remove(pin)
}

fn attach_error(facts: &InterfaceFacts, mode: AttachMode, source: io::Error) -> DataplaneError {
    let name = facts.name.clone();
    let driver = facts.driver.clone();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            DataplaneError::NotPrivileged { action: format!("attach XDP to {name}"), source }
        }
        // EEXIST: a program in the other mode.
        Some(libc::EBUSY | libc::EEXIST) => DataplaneError::OtherProgram { name, source },
        Some(libc::EOPNOTSUPP) if mode == AttachMode::Native => {
            DataplaneError::NativeUnsupported { name, driver, source }
        }
        // veth says so when the peer's MTU is too large, other drivers when their own is.
        Some(libc::ERANGE | libc::EMSGSIZE) => {
            DataplaneError::MtuTooLarge { name, mtu: facts.link.mtu, limit: WHOLE_MTU }
        }
        _ => DataplaneError::AttachRefused { name, driver, mode, mtu: facts.link.mtu, source },
    }
}
