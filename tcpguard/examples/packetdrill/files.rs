//! The table of descriptors. Their numbers are real ones, of `/dev/null`: so they never collide with the tool's own, and
//! it can close them by the ordinary call, as it does at the end of a script.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File as Null;
use std::os::fd::{AsRawFd as _, IntoRawFd as _, OwnedFd};

use crate::errno::Errno;
use crate::readiness::Epoll;
use crate::sockets::Socket;

/// What a descriptor stands for.
#[derive(Debug)]
pub(crate) enum Kind {
    Socket(Socket),
    Epoll(Epoll),
    /// One end of a pipe, by the pipe's number.
    Pipe {
        pipe: usize,
        writes: bool,
    },
}

/// An open descriptor.
#[derive(Debug)]
pub(crate) struct File {
    place: OwnedFd,
    /// As `F_GETFL` tells them.
    pub(crate) status: i32,
    pub(crate) kind: Kind,
}

/// Every open descriptor.
#[derive(Debug, Default)]
pub(crate) struct Files {
    open: BTreeMap<i32, File>,
    /// What is in each pipe.
    pub(crate) pipes: Vec<VecDeque<u8>>,
}

/// Bytes a pipe holds, as Linux's by default.
pub(crate) const PIPE_CAPACITY: usize = 64 << 10;

impl Files {
    /// Opens a descriptor.
    pub(crate) fn open(&mut self, kind: Kind, status: i32) -> Result<i32, Errno> {
        let null =
            Null::open("/dev/null").map_err(|error| Errno(error.raw_os_error().unwrap_or(libc::EMFILE)))?;
        let place = OwnedFd::from(null);
        let fd = place.as_raw_fd();
        self.open.insert(fd, File { place, status, kind });
        Ok(fd)
    }

    pub(crate) fn get(&self, fd: i32) -> Result<&File, Errno> {
        self.open.get(&fd).ok_or(Errno(libc::EBADF))
    }

    pub(crate) fn get_mut(&mut self, fd: i32) -> Result<&mut File, Errno> {
        self.open.get_mut(&fd).ok_or(Errno(libc::EBADF))
    }

    pub(crate) fn socket(&self, fd: i32) -> Result<&Socket, Errno> {
        match &self.get(fd)?.kind {
            Kind::Socket(socket) => Ok(socket),
            Kind::Epoll(_) | Kind::Pipe { .. } => Err(Errno(libc::ENOTSOCK)),
        }
    }

    pub(crate) fn socket_mut(&mut self, fd: i32) -> Result<&mut Socket, Errno> {
        match &mut self.get_mut(fd)?.kind {
            Kind::Socket(socket) => Ok(socket),
            Kind::Epoll(_) | Kind::Pipe { .. } => Err(Errno(libc::ENOTSOCK)),
        }
    }

    pub(crate) fn epoll_mut(&mut self, fd: i32) -> Result<&mut Epoll, Errno> {
        match &mut self.get_mut(fd)?.kind {
            Kind::Epoll(epoll) => Ok(epoll),
            Kind::Socket(_) | Kind::Pipe { .. } => Err(Errno(libc::EINVAL)),
        }
    }

    /// Every open socket.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (i32, &Socket)> {
        self.open.iter().filter_map(|(fd, file)| match &file.kind {
            Kind::Socket(socket) => Some((*fd, socket)),
            Kind::Epoll(_) | Kind::Pipe { .. } => None,
        })
    }

    /// Closes a descriptor; what it stood for.
    pub(crate) fn close(&mut self, fd: i32) -> Result<Kind, Errno> {
        self.open.remove(&fd).map(|file| file.kind).ok_or(Errno(libc::EBADF))
    }

    /// Gives up what is still open: the tool has closed those descriptors itself before it frees the library, and
    /// their numbers may be somebody else's by now.
    pub(crate) fn abandon(&mut self) {
        for (_, file) in std::mem::take(&mut self.open) {
            let _ = file.place.into_raw_fd();
        }
    }
}
