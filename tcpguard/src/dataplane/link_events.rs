//! The kernel's notices that a link of this network namespace changed. They only say that it is time to look: what
//! changed is asked of [`LinkFacts`](super::LinkFacts).

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `RTMGRP_LINK`: multicast group of the notices.
const LINK_GROUP: u32 = 1;

/// A socket on which the notices arrive.
#[derive(Debug)]
pub struct LinkEvents {
    socket: AsyncFd<OwnedFd>,
}

impl LinkEvents {
    /// Listens from now on. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just returned this descriptor to us alone.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: plain integers, for which zero is a value.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = LINK_GROUP;
        let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: a netlink address of that length.
        if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor moves into the `AsyncFd`, which closes it when dropped; nobody else closes or replaces it.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket })
    }

    /// Returns once there were notices since the last call, however many.
    ///
    /// # Errors
    ///
    /// Whatever the reactor says.
    pub async fn changed(&self) -> io::Result<()> {
        let mut guard = self.socket.readable().await?;
        // Read to the end, so that one look answers them all. Notices that were lost for want of room (ENOBUFS) are
        // notices, too; any other error is none.
        while !matches!(self.read(), Err(error) if error.raw_os_error() != Some(libc::ENOBUFS)) {}
        guard.clear_ready();
        Ok(())
    }

    /// Takes one notice and throws it away.
    fn read(&self) -> io::Result<()> {
        let mut byte = 0u8;
        // SAFETY: there is room for the one byte; the kernel cuts the rest off.
        let read = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                (&raw mut byte).cast(),
                size_of_val(&byte),
                libc::MSG_DONTWAIT,
            )
        };
        if read < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
