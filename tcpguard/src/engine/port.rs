//! Where an engine's frames come from and go to: the trait, and its implementation over an AF_XDP socket made
//! awaitable. It looks into no frame.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::task::{Context, Poll};

use tokio::io::unix::AsyncFd;

use super::stats::RingCounters;
use crate::dataplane::{FrameAudit, SocketStatistics, XskSocket};

/// A pair of frame queues. The engine drives it from one thread.
pub trait FramePort {
    /// Hands at most `budget` received frames to `take`, some at a time; their memory is only lent for the call.
    /// Returns how many there were: fewer than `budget` means that the queue was empty.
    fn receive(&mut self, budget: usize, take: impl FnMut(&[&[u8]])) -> usize;

    /// Whether more than half of the room for received frames is taken.
    fn is_under_pressure(&self) -> bool;

    /// Frames that were redirected here and found no room, since the start.
    fn lost(&self) -> u64;

    /// Lends empty frames to `fill`, which writes one and says how long it is, until it returns `None` or there
    /// is no room. Returns how many were queued.
    fn transmit(&mut self, fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize;

    /// Makes queued frames leave. `WouldBlock` when some had to stay: try again in a moment. `ENXIO`, `ENODEV` or
    /// `EBADF` when no frame will ever leave again, for [`Self::check`] too.
    fn kick(&mut self) -> io::Result<()>;

    /// Whether frames still come and go: without traffic nothing else would tell that the interface has gone.
    fn check(&self) -> io::Result<()>;

    /// Counters of the queues themselves.
    fn counters(&self) -> RingCounters;

    /// Ready when a frame may have arrived since the last [`Self::receive`] that found the queue empty.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// An AF_XDP socket on tokio's reactor.
pub struct XskPort {
    socket: Watched<XskSocket>,
}

impl XskPort {
    /// Registers `socket` with the runtime of the calling thread.
    pub fn new(socket: XskSocket) -> io::Result<Self> {
        Ok(Self { socket: Watched::new(socket.into_async()?) })
    }
}

impl FramePort for XskPort {
    fn receive(&mut self, budget: usize, take: impl FnMut(&[&[u8]])) -> usize {
        let received = self.socket.fd.get_mut().receive(budget, take);
        self.socket.drained = received < budget;
        received
    }

    fn is_under_pressure(&self) -> bool {
        self.socket.fd.get_ref().is_under_pressure()
    }

    fn lost(&self) -> u64 {
        let statistics = self.socket.fd.get_ref().statistics();
        statistics.map_or(0, |counted| counted.rx_ring_full + counted.rx_fill_ring_empty)
    }

    fn transmit(&mut self, fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        self.socket.fd.get_mut().transmit(fill)
    }

    fn kick(&mut self) -> io::Result<()> {
        self.socket.fd.get_mut().kick()
    }

    fn check(&self) -> io::Result<()> {
        self.socket.fd.get_ref().check()
    }

    fn counters(&self) -> RingCounters {
        let FrameAudit { total, free, fill, rx, tx, completion } = self.socket.fd.get_ref().audit();
        let SocketStatistics {
            rx_dropped,
            rx_ring_full,
            rx_fill_ring_empty,
            rx_invalid,
            tx_invalid,
            tx_driver_drops,
        } = self.socket.fd.get_ref().statistics().unwrap_or_default();
        RingCounters {
            frames: total.into(),
            free: free.into(),
            fill: fill.into(),
            rx: rx.into(),
            tx: tx.into(),
            completion: completion.into(),
            rx_dropped,
            rx_ring_full,
            rx_fill_ring_empty,
            rx_invalid,
            tx_invalid,
            tx_driver_drops,
        }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_readable(cx)
    }
}

impl AsRawFd for XskPort {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.fd.as_raw_fd()
    }
}

/// A descriptor that the reactor watches for edges, and what is known of the last one.
struct Watched<F: AsRawFd> {
    fd: AsyncFd<F>,
    /// What there was to read has been read since [`Self::poll_readable`] last looked: the readiness that it finds is stale.
    /// An arrival after it is an edge that epoll has not delivered yet, so clearing cannot lose it.
    drained: bool,
}

impl<F: AsRawFd> Watched<F> {
    fn new(fd: AsyncFd<F>) -> Self {
        Self { fd, drained: false }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let Poll::Ready(guard) = self.fd.poll_read_ready(cx) else {
                // Nothing is stale: whatever readiness comes now is of an arrival that nobody has taken.
                self.drained = false;
                return Poll::Pending;
            };
            let mut guard = guard?;
            if !self.drained {
                return Poll::Ready(Ok(()));
            }
            guard.clear_ready();
            self.drained = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::os::unix::net::UnixDatagram;
    use std::task::Waker;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// What `arrivals` asks of a descriptor whose other end this is, on a runtime as an engine has it.
    #[expect(deprecated, reason = "without unsafe code there is no other; the watched socket stays open")]
    fn watching<F: Future<Output = ()>>(arrivals: impl FnOnce(UnixDatagram, Watched<UnixDatagram>) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let (sender, receiver) = UnixDatagram::pair().expect("a pair of sockets");
            receiver.set_nonblocking(true).expect("a receiver that does not block");
            arrivals(sender, Watched::new(AsyncFd::new(receiver).expect("a watched socket"))).await;
        });
    }

    async fn readable(watched: &mut Watched<UnixDatagram>) {
        let arrival = timeout(Duration::from_secs(10), poll_fn(|cx| watched.poll_readable(cx)));
        arrival.await.expect("an arrival that is noticed").expect("a socket");
    }

    /// Reads until there is nothing more, as a turn of the engine does; how much there was.
    fn drain(watched: &mut Watched<UnixDatagram>) -> usize {
        let count = std::iter::from_fn(|| watched.fd.get_ref().recv(&mut [0]).ok()).count();
        watched.drained = true;
        count
    }

    /// It used to be taken for the one before, and the frame waited until a timer was due.
    #[test]
    fn an_arrival_after_a_look_that_found_nothing_is_noticed() {
        watching(async |sender, mut watched| {
            for _ in 0..3 {
                assert_eq!(drain(&mut watched), 0);
                // The reactor has nothing to say, and the driver goes to sleep.
                assert!(watched.poll_readable(&mut Context::from_waker(Waker::noop())).is_pending());
                sender.send(b"x").expect("room");
                readable(&mut watched).await;
                assert_eq!(drain(&mut watched), 1);
                assert!(watched.poll_readable(&mut Context::from_waker(Waker::noop())).is_pending());
            }
        });
    }

    #[test]
    fn what_was_taken_already_wakes_nobody() {
        watching(async |sender, mut watched| {
            sender.send(b"x").expect("room");
            readable(&mut watched).await;
            assert_eq!(drain(&mut watched), 1);
            assert!(watched.poll_readable(&mut Context::from_waker(Waker::noop())).is_pending());
            tokio::task::yield_now().await;
            assert!(watched.poll_readable(&mut Context::from_waker(Waker::noop())).is_pending());
        });
    }
}
