//! TCP sockets over the stack: what the calls do when they need not wait. Waiting is `shim`'s.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tcpguard::stack::{ConnId, Error, State};

use crate::errno::Errno;
use crate::files::{Kind, PIPE_CAPACITY};
use crate::network::link;
use crate::options::Options;
use crate::world::{Connection, World};

/// A TCP socket.
#[derive(Debug)]
pub(crate) struct Socket {
    /// `AF_INET` or `AF_INET6`.
    pub(crate) domain: i32,
    /// What it was bound to.
    pub(crate) local: Option<SocketAddr>,
    pub(crate) role: Role,
    pub(crate) options: Options,
}

/// What a socket is for.
#[derive(Debug)]
pub(crate) enum Role {
    Idle,
    Listening(Listener),
    Connected(ConnId),
}

/// The part of a socket that listens.
#[derive(Debug)]
pub(crate) struct Listener {
    /// To be accepted.
    pub(crate) queue: VecDeque<ConnId>,
    pub(crate) edges: u64,
}

/// The outcome of a call that may have to wait: `None` if so.
pub(crate) type Attempt<T> = Result<Option<T>, Errno>;

/// Bytes that a `read` without a buffer throws away at a time.
const SCRATCH: usize = 64 << 10;

impl World {
    pub(crate) fn socket(&mut self, domain: i32, kind: i32, protocol: i32) -> Result<i32, Errno> {
        let flags = kind & (libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
        if !matches!(domain, libc::AF_INET | libc::AF_INET6) {
            return Err(Errno(libc::EAFNOSUPPORT));
        }
        if kind & !flags != libc::SOCK_STREAM || !matches!(protocol, 0 | libc::IPPROTO_TCP) {
            return Err(Errno(libc::EPROTONOSUPPORT));
        }
        let nonblocking = if flags & libc::SOCK_NONBLOCK != 0 { libc::O_NONBLOCK } else { 0 };
        let socket = Socket { domain, local: None, role: Role::Idle, options: Options::default() };
        self.files.open(Kind::Socket(socket), libc::O_RDWR | nonblocking)
    }

    pub(crate) fn bind(&mut self, fd: i32, address: SocketAddr) -> Result<(), Errno> {
        let taken = self
            .files
            .sockets()
            .any(|(_, socket)| matches!(socket.role, Role::Listening(_)) && socket.local == Some(address));
        let port = if address.port() == 0 { self.local_for(address).port() } else { address.port() };
        let socket = self.files.socket_mut(fd)?;
        if socket.local.is_some() || !matches!(socket.role, Role::Idle) {
            return Err(Errno(libc::EINVAL));
        }
        if taken {
            return Err(Errno(libc::EADDRINUSE));
        }
        socket.local = Some(SocketAddr::new(address.ip(), port));
        Ok(())
    }

    pub(crate) fn listen(&mut self, fd: i32, backlog: i32) -> Result<(), Errno> {
        let backlog = backlog.max(0) as u32;
        let socket = self.files.socket_mut(fd)?;
        match socket.role {
            Role::Connected(_) => return Err(Errno(libc::EINVAL)),
            Role::Listening(_) => {
                let local = socket.local.ok_or(Errno(libc::EINVAL))?;
                self.start_listening(fd, local, backlog);
                return Ok(());
            }
            Role::Idle => {}
        }
        let any = any_address(socket.domain);
        let local = match socket.local {
            Some(local) => local,
            None => SocketAddr::new(any, self.local_for(SocketAddr::new(any, 0)).port()),
        };
        let socket = self.files.socket_mut(fd)?;
        socket.local = Some(local);
        socket.role = Role::Listening(Listener { queue: VecDeque::new(), edges: 0 });
        self.start_listening(fd, local, backlog);
        Ok(())
    }

    /// The next connection of a listening socket, and its peer.
    pub(crate) fn try_accept(&mut self, fd: i32) -> Attempt<(i32, SocketAddr)> {
        let socket = self.files.socket_mut(fd)?;
        let domain = socket.domain;
        let Role::Listening(listener) = &mut socket.role else { return Err(Errno(libc::EINVAL)) };
        let Some(id) = listener.queue.pop_front() else { return Ok(None) };
        let key = self.stack.info(self.now(), id).ok_or(Errno(libc::ECONNABORTED))?.key;
        self.connection(id)?.listener = None;
        self.stack.accepted(fd as u32);
        let socket = Socket {
            domain,
            local: Some(key.local_addr()),
            role: Role::Connected(id),
            options: Options::default(),
        };
        let accepted = self.files.open(Kind::Socket(socket), libc::O_RDWR)?;
        Ok(Some((accepted, key.peer_addr())))
    }

    /// Begins an active open, or tells how the one under way is getting on: `None` while it is.
    pub(crate) fn try_connect(&mut self, fd: i32, peer: SocketAddr) -> Attempt<()> {
        let socket = self.files.socket(fd)?;
        match socket.role {
            Role::Listening(_) => Err(Errno(libc::EISCONN)),
            Role::Connected(id) => self.finish_connect(id),
            Role::Idle => {
                let bound = socket.local;
                self.begin_connect(fd, bound, peer)?;
                Ok(None)
            }
        }
    }

    fn begin_connect(&mut self, fd: i32, bound: Option<SocketAddr>, peer: SocketAddr) -> Result<(), Errno> {
        let free = self.local_for(peer);
        let local = match bound {
            Some(bound) if bound.ip().is_unspecified() => SocketAddr::new(free.ip(), bound.port()),
            Some(bound) => bound,
            None => free,
        };
        let id = self.stack.connect(self.now(), local, peer, link())?;
        self.connections.insert(id, Connection { connecting: true, ..Connection::default() });
        let socket = self.files.socket_mut(fd)?;
        (socket.local, socket.role) = (Some(local), Role::Connected(id));
        Ok(())
    }

    fn finish_connect(&mut self, id: ConnId) -> Attempt<()> {
        let connection = self.connection(id)?;
        if !connection.connecting {
            return Err(Errno(libc::EISCONN));
        }
        if !connection.established && !connection.ended {
            return Ok(None);
        }
        connection.connecting = false;
        match connection.error.take() {
            Some(error) => Err(error),
            None if connection.established => Ok(Some(())),
            None => Err(Errno(libc::ECONNABORTED)),
        }
    }

    /// Whether an active open of this socket has begun.
    pub(crate) fn is_connecting(&self, fd: i32) -> Result<bool, Errno> {
        let Role::Connected(id) = self.files.socket(fd)?.role else { return Ok(false) };
        Ok(self.connections.get(&id).is_some_and(|connection| connection.connecting))
    }

    /// Reads into `out`, or throws as much away if there is no buffer.
    pub(crate) fn try_recv(&mut self, fd: i32, out: &mut Target<'_>, peek: bool) -> Attempt<usize> {
        if let Kind::Pipe { pipe, writes: false } = self.files.get(fd)?.kind {
            return Ok(self.read_pipe(pipe, out));
        }
        let id = self.connected(fd)?;
        let now = self.now();
        let read = match out {
            Target::Buffer(out) if peek => self.peek(id, out),
            Target::Buffer(out) => self.stack.recv(now, id, out),
            Target::Nowhere(len) => self.stack.recv(now, id, &mut vec![0; (*len).min(SCRATCH)]),
        };
        let connection = self.connection(id)?;
        match read {
            Ok(len) => Ok(Some(len)),
            Err(Error::WouldBlock) if connection.read_shut => Ok(Some(0)),
            Err(Error::WouldBlock) => Ok(None),
            // An error is told once.
            Err(_) => connection.error.take().map_or(Ok(Some(0)), Err),
        }
    }

    fn read_pipe(&mut self, pipe: usize, out: &mut Target<'_>) -> Option<usize> {
        let content = self.files.pipes.get_mut(pipe)?;
        let len = content.len().min(out.len());
        let bytes = content.drain(..len);
        if let Target::Buffer(out) = out {
            out.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
        }
        (len > 0).then_some(len)
    }

    fn peek(&mut self, id: ConnId, out: &mut [u8]) -> Result<usize, Error> {
        let mut slices = [IoSlice::new(&[]); 64];
        let count = self.stack.peek(id, &mut slices)?;
        let mut copied = 0;
        for slice in slices.iter().take(count) {
            let room = out.get_mut(copied..).unwrap_or_default();
            let len = slice.len().min(room.len());
            room[..len].copy_from_slice(&slice[..len]);
            copied += len;
        }
        Ok(copied)
    }

    /// Sends what there is room for: how much, at least one byte.
    pub(crate) fn try_send(&mut self, fd: i32, data: &[u8]) -> Attempt<usize> {
        if let Kind::Pipe { pipe, writes: true } = self.files.get(fd)?.kind {
            return Ok(self.write_pipe(pipe, data));
        }
        let id = self.connected(fd)?;
        let now = self.now();
        let connection = self.connection(id)?;
        if !connection.established && !connection.ended {
            return Ok(None);
        }
        if let Some(error) = connection.error.take() {
            return Err(error);
        }
        match self.stack.send(now, id, data) {
            Ok(len) => Ok(Some(len)),
            Err(Error::WouldBlock) => Ok(None),
            Err(_) => Err(Errno(libc::EPIPE)),
        }
    }

    fn write_pipe(&mut self, pipe: usize, data: &[u8]) -> Option<usize> {
        let content = self.files.pipes.get_mut(pipe)?;
        let len = data.len().min(PIPE_CAPACITY - content.len());
        content.extend(data.get(..len)?);
        (len > 0 || data.is_empty()).then_some(len)
    }

    /// Moves bytes between a socket and a pipe.
    pub(crate) fn try_splice(&mut self, from: i32, to: i32, len: usize) -> Attempt<usize> {
        let room = match self.files.get(to)?.kind {
            Kind::Pipe { pipe, writes: true } => {
                PIPE_CAPACITY - self.files.pipes.get(pipe).map_or(0, VecDeque::len)
            }
            Kind::Socket(_) => match self.stack.send_room(self.connected(to)?) {
                Ok(room) => room,
                Err(Error::WouldBlock) => 0,
                Err(error) => return Err(error.into()),
            },
            Kind::Epoll(_) | Kind::Pipe { .. } => return Err(Errno(libc::EINVAL)),
        };
        if room == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; len.min(room)];
        let Some(len) = self.try_recv(from, &mut Target::Buffer(&mut bytes), false)? else { return Ok(None) };
        match bytes.get(..len) {
            Some(bytes) if len > 0 => self.try_send(to, bytes),
            _ => Ok(Some(0)),
        }
    }

    pub(crate) fn shutdown(&mut self, fd: i32, how: i32) -> Result<(), Errno> {
        let id = self.connected(fd)?;
        let now = self.now();
        let connection = self.connection(id)?;
        if connection.ended {
            return Err(Errno(libc::ENOTCONN));
        }
        if !matches!(how, libc::SHUT_RD | libc::SHUT_WR | libc::SHUT_RDWR) {
            return Err(Errno(libc::EINVAL));
        }
        if how != libc::SHUT_WR {
            connection.read_shut = true;
            connection.edges += 1;
        }
        if how != libc::SHUT_RD {
            connection.write_shut = true;
            connection.edges += 1;
            self.stack.shutdown(now, id)?;
        }
        Ok(())
    }

    /// The socket's descriptor is gone.
    pub(crate) fn close_socket(&mut self, fd: i32, socket: Socket) {
        match socket.role {
            Role::Idle => {}
            Role::Listening(_) => socket.local.iter().for_each(|local| self.stop_listening(fd, *local)),
            Role::Connected(id) => {
                self.connections.remove(&id);
                if socket.options.aborts_on_close() {
                    self.stack.abort(self.now(), id);
                } else {
                    self.stack.close(self.now(), id);
                }
            }
        }
    }

    /// The connection of a socket.
    pub(crate) fn connected(&self, fd: i32) -> Result<ConnId, Errno> {
        match self.files.socket(fd)?.role {
            Role::Connected(id) => Ok(id),
            Role::Idle | Role::Listening(_) => Err(Errno(libc::ENOTCONN)),
        }
    }

    pub(crate) fn connection(&mut self, id: ConnId) -> Result<&mut Connection, Errno> {
        self.connections.get_mut(&id).ok_or(Errno(libc::ENOTCONN))
    }

    /// Bytes to read; bytes not acknowledged; bytes not sent.
    pub(crate) fn queues(&self, fd: i32) -> Result<(u32, u32, u32), Errno> {
        let id = self.connected(fd)?;
        let info = self.stack.info(self.now(), id).ok_or(Errno(libc::ENOTCONN))?;
        let unsent = self.stack.view(id).map_or(0, |view| view.unsent);
        Ok((info.recv_queued, info.send_queued, unsent))
    }

    /// The state, in Linux's numbers (`include/net/tcp_states.h`).
    pub(crate) fn state(&self, fd: i32) -> Result<u8, Errno> {
        let id = match self.files.socket(fd)?.role {
            Role::Idle => return Ok(7),
            Role::Listening(_) => return Ok(10),
            Role::Connected(id) => id,
        };
        Ok(match self.stack.info(self.now(), id).map_or(State::Closed, |info| info.state) {
            State::Established => 1,
            State::SynSent => 2,
            State::SynReceived => 3,
            State::FinWait1 => 4,
            State::FinWait2 => 5,
            State::TimeWait => 6,
            State::Closed => 7,
            State::CloseWait => 8,
            State::LastAck => 9,
            State::Closing => 11,
        })
    }
}

/// Where received bytes go.
#[derive(Debug)]
pub(crate) enum Target<'a> {
    Buffer(&'a mut [u8]),
    /// So many bytes are thrown away (`MSG_TRUNC`).
    Nowhere(usize),
}

impl Target<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Buffer(out) => out.len(),
            Self::Nowhere(len) => *len,
        }
    }
}

fn any_address(domain: i32) -> IpAddr {
    if domain == libc::AF_INET { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}
