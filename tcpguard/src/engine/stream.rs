//! A connection of the userspace stack as tokio sees one. It moves bytes and wakes; the protocol is the stack's.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tcpguard_common::flow::AnyFlowKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

use super::net::{Net, Side, io_error, now};
use crate::stack::{ConnId, Error, State};

/// Buffers lent at once: 64 KB in the stack's chunks.
const LEND_SLICES: usize = 16;

/// Which side of [`TcpStream::poll_lend`] failed.
#[derive(Debug)]
pub enum LendError {
    /// The connection.
    Source(io::Error),
    /// What was to take its bytes.
    Sink(io::Error),
}

/// A TCP connection that lives on its engine's thread. Like a kernel socket it is written to and read from by at
/// most one task each. Dropping it closes in the background what can be closed in order; if received data was
/// left unread, the peer gets a reset (RFC 9293 §3.6.1, RFC 2525 §2.17).
pub struct TcpStream {
    net: Net,
    conn: ConnId,
    key: AnyFlowKey,
    fin_queued: bool,
}

impl TcpStream {
    pub(crate) fn new(net: Net, conn: ConnId, key: AnyFlowKey) -> Self {
        Self { net, conn, key, fin_queued: false }
    }

    /// Our end.
    pub fn local_addr(&self) -> SocketAddr {
        self.key.local_addr()
    }

    /// The other end.
    pub fn peer_addr(&self) -> SocketAddr {
        self.key.peer_addr()
    }

    /// Resets the connection: what was not sent is dropped, the peer is told.
    pub fn abort(self) {
        self.net.with(|state| state.abort(self.conn));
    }

    /// Lends received bytes to `sink` and takes away as many as it says it took. Ready with 0 at the end of the
    /// stream, without asking `sink`; pending when there is nothing to lend, or when `sink` is.
    ///
    /// # Errors
    /// The connection's or the sink's, told apart.
    pub fn poll_lend(
        &mut self,
        cx: &mut Context<'_>,
        sink: impl FnOnce(&mut Context<'_>, &[IoSlice<'_>]) -> Poll<io::Result<usize>>,
    ) -> Poll<Result<usize, LendError>> {
        self.net.with(|state| {
            let mut slices = [IoSlice::new(&[]); LEND_SLICES];
            let count = match state.stack.peek(self.conn, &mut slices) {
                Ok(0) => return Poll::Ready(Ok(0)),
                Ok(count) => count,
                Err(Error::WouldBlock) => {
                    state.wait(self.conn, Side::Reader, cx);
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(LendError::Source(io_error(error)))),
            };
            let taken = ready!(sink(cx, &slices[..count])).map_err(LendError::Sink)?;
            state.stack.consume(now(), self.conn, taken);
            state.wake_driver();
            Poll::Ready(Ok(taken))
        })
    }

    /// How many bytes [`Self::send_all`] would take now, at least 1; pending while there is no room.
    ///
    /// # Errors
    /// As writing.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.net.with(|state| match state.stack.send_room(self.conn) {
            Ok(room) => Poll::Ready(Ok(room)),
            Err(Error::WouldBlock) => {
                state.wait(self.conn, Side::Writer, cx);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(io_error(error))),
        })
    }

    /// Sends bytes for which [`Self::poll_room`] has just found room.
    ///
    /// # Errors
    /// As writing; `WouldBlock` when not all of them went, and then the stream has lost some.
    pub fn send_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.net.with(|state| {
            let sent = state.stack.send(now(), self.conn, bytes).map_err(io_error)?;
            state.wake_driver();
            if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
        })
    }

    /// Ready with the reason once the flow has ended badly: reset, timed out. For a task that waits for something
    /// else meanwhile; takes the place of a pending read.
    pub fn poll_failed(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.net.with(|state| match state.error(self.conn) {
            Some(error) => Poll::Ready(io_error(error)),
            None => {
                state.wait(self.conn, Side::Reader, cx);
                Poll::Pending
            }
        })
    }

    /// Whether it was reset for memory because nobody read it.
    pub(crate) fn was_unread(&self) -> bool {
        self.net.with(|state| state.error(self.conn) == Some(Error::Unread))
    }

    /// Whether the peer has closed, though what it said before may not have been read.
    pub(crate) fn peer_closed(&self) -> bool {
        self.net.with(|state| state.stack.peer_closed(self.conn))
    }

    /// Bytes sent that the peer has not acknowledged yet.
    pub(crate) fn unacknowledged(&self) -> u32 {
        self.net.with(|state| state.stack.info(now(), self.conn).map_or(0, |flow| flow.send_queued))
    }

    /// The tunable in force.
    pub(crate) fn fin_wait_2(&self) -> Duration {
        self.net.with(|state| state.tunables_of(self.conn).fin_wait_2)
    }

    /// The tunable in force.
    pub(crate) fn close_wait(&self) -> Duration {
        self.net.with(|state| state.tunables_of(self.conn).close_wait)
    }

    /// The tunable in force.
    pub(crate) fn zero_window(&self) -> Duration {
        self.net.with(|state| state.tunables_of(self.conn).zero_window)
    }

    /// The tunable in force.
    pub(crate) fn stall_time(&self) -> Duration {
        self.net.with(|state| state.stack.config().stall_time)
    }

    /// An active open: ready when it succeeded or failed.
    pub(crate) fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.net.with(|state| {
            // First: what was accepted and then reset is not a connect that failed.
            if state.is_connected(self.conn) {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = state.error(self.conn) {
                return Poll::Ready(Err(io_error(error)));
            }
            state.wait(self.conn, Side::Writer, cx);
            Poll::Pending
        })
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let slice = ready!(coop::poll_proceed(cx));
        let result =
            self.net.with(|state| match state.stack.recv(now(), self.conn, buf.initialize_unfilled()) {
                Ok(read) => {
                    // Room in the buffer may be a window to announce.
                    if read > 0 {
                        state.wake_driver();
                    }
                    Poll::Ready(Ok(read))
                }
                Err(Error::WouldBlock) => {
                    state.wait(self.conn, Side::Reader, cx);
                    Poll::Pending
                }
                Err(error) => Poll::Ready(Err(io_error(error))),
            });
        let read = ready!(result)?;
        slice.made_progress();
        buf.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let slice = ready!(coop::poll_proceed(cx));
        let written = ready!(self.net.with(|state| match state.stack.send(now(), self.conn, buf) {
            Ok(written) => {
                state.wake_driver();
                Poll::Ready(Ok(written))
            }
            Err(Error::WouldBlock) => {
                state.wait(self.conn, Side::Writer, cx);
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(io_error(error))),
        }))?;
        slice.made_progress();
        Poll::Ready(Ok(written))
    }

    /// What was written is on its way already: the driver runs before the thread sleeps.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Queues the FIN, and is ready when the peer has acknowledged it and all before it.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let first = !std::mem::replace(&mut self.fin_queued, true);
        self.net.with(|state| {
            if first {
                state.stack.shutdown(now(), self.conn).map_err(io_error)?;
                state.wake_driver();
            }
            if state.stack.fin_acked(self.conn) {
                return Poll::Ready(Ok(()));
            }
            if let Some(error) = state.error(self.conn) {
                return Poll::Ready(Err(io_error(error)));
            }
            // However it ended: nobody will acknowledge our FIN any more.
            if state.stack.info(now(), self.conn).is_none_or(|info| info.state == State::Closed) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            state.wait(self.conn, Side::Writer, cx);
            Poll::Pending
        })
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        // Unwinding out of the stack ends here: the driver gives up the whole engine.
        if self.net.is_poisoned() {
            return;
        }
        self.net.with(|state| state.close(self.conn));
    }
}

impl fmt::Debug for TcpStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TcpStream").field(&format_args!("{}", self.key)).finish()
    }
}
