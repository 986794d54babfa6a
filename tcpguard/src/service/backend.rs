//! The far end of a relayed connection: a backend behind a kernel socket, or a responder. It connects to nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

use super::responder::Responder;

/// The far end of a relayed connection.
pub(super) enum Backend {
    Tcp(TcpStream),
    Responder(Responder),
}

impl Backend {
    /// Reads into `buffer`; what leaves it empty is the end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Responder(responder) => responder.poll_tell(buffer),
        }
    }

    /// Writes as much as it takes of `slices`.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Responder(responder) => responder.poll_take(cx, slices),
        }
    }

    /// Ends the direction to it.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Responder(responder) => {
                responder.end();
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Drops it with a reset, where there is somebody to tell.
    pub(super) fn reset(self) {
        if let Self::Tcp(stream) = self {
            // Nothing else to do if the kernel refuses: the connection is then closed.
            let _ = stream.set_zero_linger();
        }
    }
}
