//! Where an engine's frames come from and go to: the trait, and its implementation over an AF_XDP socket made
//! awaitable. It looks into no frame.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::task::{Context, Poll};

use tokio::io::unix::AsyncFd;

use crate::dataplane::{FrameAudit, SocketStatistics, XskSocket};

/// A pair of frame queues. The engine drives it from one thread.
pub trait FramePort {
    /// Hands at most `budget` received frames to `each`; the memory of a frame is only lent for the call.
    /// Returns how many there were: fewer than `budget` means that the queue was empty.
    fn receive(&mut self, budget: usize, each: impl FnMut(&[u8])) -> usize;

    /// Whether more than half of the room for received frames is taken.
    fn is_under_pressure(&self) -> bool;

    /// Lends empty frames to `fill`, which writes one and says how long it is, until it returns `None` or there
    /// is no room. Returns how many were queued.
    fn transmit(&mut self, fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize;

    /// Makes queued frames leave. `WouldBlock` when some had to stay: try again in a moment. `ENXIO`, `ENODEV` or
    /// `EBADF` when no frame will ever leave again, for [`Self::check`] too.
    fn kick(&mut self) -> io::Result<()>;

    /// Whether frames still come and go: without traffic nothing else would tell that the interface has gone.
    fn check(&self) -> io::Result<()>;

    /// Counters of the queues themselves, by name.
    fn rows(&self) -> Vec<(&'static str, u64)>;

    /// Ready when a frame may have arrived since the last [`Self::receive`] that found the queue empty.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// An AF_XDP socket on tokio's reactor.
pub struct XskPort {
    socket: AsyncFd<XskSocket>,
    /// The last receive emptied the ring: readiness seen before is stale. An arrival after it is an edge that
    /// epoll has not delivered yet, so clearing cannot lose it.
    drained: bool,
}

impl XskPort {
    /// Registers `socket` with the runtime of the calling thread.
    pub fn new(socket: XskSocket) -> io::Result<Self> {
        Ok(Self { socket: socket.into_async()?, drained: false })
    }
}

impl FramePort for XskPort {
    fn receive(&mut self, budget: usize, each: impl FnMut(&[u8])) -> usize {
        let received = self.socket.get_mut().receive(budget, each);
        self.drained = received < budget;
        received
    }

    fn is_under_pressure(&self) -> bool {
        self.socket.get_ref().is_under_pressure()
    }

    fn transmit(&mut self, fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        self.socket.get_mut().transmit(fill)
    }

    fn kick(&mut self) -> io::Result<()> {
        self.socket.get_mut().kick()
    }

    fn check(&self) -> io::Result<()> {
        self.socket.get_ref().check()
    }

    fn rows(&self) -> Vec<(&'static str, u64)> {
        let FrameAudit { total, free, fill, rx, tx, completion } = self.socket.get_ref().audit();
        let mut rows = [
            ("frames", total),
            ("free", free),
            ("fill", fill),
            ("rx", rx),
            ("tx", tx),
            ("completion", completion),
        ]
        .map(|(name, frames)| (name, u64::from(frames)))
        .to_vec();
        if let Ok(statistics) = self.socket.get_ref().statistics() {
            let SocketStatistics {
                rx_dropped,
                rx_ring_full,
                rx_fill_ring_empty,
                rx_invalid,
                tx_invalid,
                tx_driver_drops,
            } = statistics;
            rows.extend([
                ("rx-dropped", rx_dropped),
                ("rx-ring-full", rx_ring_full),
                ("rx-fill-ring-empty", rx_fill_ring_empty),
                ("rx-invalid", rx_invalid),
                ("tx-invalid", tx_invalid),
                ("tx-driver-drops", tx_driver_drops),
            ]);
        }
        rows
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = std::task::ready!(self.socket.poll_read_ready(cx))?;
            if !self.drained {
                return Poll::Ready(Ok(()));
            }
            guard.clear_ready();
            self.drained = false;
        }
    }
}

impl AsRawFd for XskPort {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
