//! What poll and epoll say of a descriptor, as Linux's `tcp_poll` does. Waiting is `shim`'s.

use libc::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDHUP, POLLRDNORM, POLLWRNORM};
use tcpguard::stack::{ConnId, Error, State};

use crate::errno::Errno;
use crate::files::{Kind, PIPE_CAPACITY};
use crate::sockets::Role;
use crate::world::World;

/// One descriptor of an epoll set.
#[derive(Clone, Debug)]
struct Interest {
    fd: i32,
    events: u32,
    data: u64,
    /// The edges that were told already.
    told: Option<u64>,
}

/// An epoll set.
#[derive(Clone, Debug, Default)]
pub(crate) struct Epoll {
    interests: Vec<Interest>,
}

const EDGE: u32 = libc::EPOLLET as u32;
const ONE_SHOT: u32 = libc::EPOLLONESHOT as u32;
/// Told whether asked for or not.
const ALWAYS: u32 = (POLLERR | POLLHUP) as u32;

impl Epoll {
    /// `epoll_ctl`.
    pub(crate) fn control(&mut self, op: i32, fd: i32, events: u32, data: u64) -> Result<(), Errno> {
        let interest = Interest { fd, events, data, told: None };
        let place = self.interests.iter().position(|interest| interest.fd == fd);
        match (op, place) {
            (libc::EPOLL_CTL_ADD, None) => self.interests.push(interest),
            (libc::EPOLL_CTL_MOD, Some(place)) => self.interests[place] = interest,
            (libc::EPOLL_CTL_DEL, Some(place)) => drop(self.interests.remove(place)),
            (libc::EPOLL_CTL_ADD, Some(_)) => return Err(Errno(libc::EEXIST)),
            (libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL, None) => return Err(Errno(libc::ENOENT)),
            _ => return Err(Errno(libc::EINVAL)),
        }
        Ok(())
    }
}

impl World {
    /// The ready events of an epoll set, with the data given for each; at most `most`.
    pub(crate) fn collect(&mut self, fd: i32, most: usize) -> Result<Vec<(u32, u64)>, Errno> {
        let mut epoll = std::mem::take(self.files.epoll_mut(fd)?);
        let mut ready = Vec::new();
        // A descriptor that was closed is none of the set's any more.
        epoll.interests.retain(|interest| self.files.get(interest.fd).is_ok());
        for interest in &mut epoll.interests {
            let (mask, edges) = self.readiness(interest.fd)?;
            let events = mask & (interest.events | ALWAYS);
            let fresh = interest.events & EDGE == 0 || interest.told != Some(edges);
            let armed = interest.events & !(EDGE | ONE_SHOT) != 0;
            if events == 0 || !fresh || !armed || ready.len() >= most {
                continue;
            }
            interest.told = Some(edges);
            if interest.events & ONE_SHOT != 0 {
                interest.events &= EDGE | ONE_SHOT;
            }
            ready.push((events, interest.data));
        }
        *self.files.epoll_mut(fd)? = epoll;
        Ok(ready)
    }

    /// What a descriptor is ready for, in poll's bits, and how many edges it has had.
    pub(crate) fn readiness(&mut self, fd: i32) -> Result<(u32, u64), Errno> {
        let (mask, edges) = match &self.files.get(fd)?.kind {
            Kind::Epoll(_) => (0, 0),
            Kind::Pipe { pipe, writes } => {
                let len = self.files.pipes.get(*pipe).map_or(0, |content| content.len());
                let (may_read, may_write) = (!writes && len > 0, *writes && len < PIPE_CAPACITY);
                (
                    if may_read {
                        POLLIN | POLLRDNORM
                    } else if may_write {
                        POLLOUT | POLLWRNORM
                    } else {
                        0
                    },
                    0,
                )
            }
            Kind::Socket(socket) => match &socket.role {
                Role::Idle => (POLLOUT | POLLWRNORM | POLLHUP, 0),
                Role::Listening(listener) if listener.queue.is_empty() => (0, listener.edges),
                Role::Listening(listener) => (POLLIN | POLLRDNORM, listener.edges),
                Role::Connected(id) => self.connection_readiness(*id)?,
            },
        };
        Ok((mask as u16 as u32, edges))
    }

    fn connection_readiness(&mut self, id: ConnId) -> Result<(i16, u64), Errno> {
        let info = self.stack.info(self.now(), id).ok_or(Errno(libc::EBADF))?;
        let connection = self.connection(id)?.clone();
        let peer_closed = matches!(
            info.state,
            State::CloseWait | State::Closing | State::LastAck | State::TimeWait | State::Closed
        );
        let read_shut = connection.read_shut || peer_closed || connection.ended;
        let write_shut = connection.write_shut || connection.ended;
        let mut mask = 0;
        if connection.ended || read_shut && write_shut {
            mask |= POLLHUP;
        }
        if read_shut {
            mask |= POLLIN | POLLRDNORM | POLLRDHUP;
        }
        if connection.established || connection.ended {
            if info.recv_queued > 0 {
                mask |= POLLIN | POLLRDNORM;
            }
            // Asking tells the stack that the application wants to write.
            if write_shut || self.stack.send_room(id) != Err(Error::WouldBlock) {
                mask |= POLLOUT | POLLWRNORM;
            }
        }
        if connection.error.is_some() {
            mask |= POLLERR;
        }
        Ok((mask, connection.edges))
    }
}
