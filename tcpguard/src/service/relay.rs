//! Moves bytes between a client on the stack and its backend, both ways, with half-close and
//! back-pressure. It holds no byte itself: what the backend cannot take stays in the stack's receive buffer, and
//! nothing is read from the backend that the stack's send buffer has no room for. That the backend is gone it sees
//! nevertheless.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::backend::{Backend, Gone};
use super::counters::{ServiceCounters, add};
use super::holds::Hold;
use super::scratch::{SLICE, Scratch};
use crate::engine::{LendError, TcpStream};

/// How long a client may take to acknowledge the last words of a backend that failed.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// The shortest and the longest pause between two looks at whether it has.
const LOOK: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(250));

/// How soon a change of `fin-wait-2` or `stall-time` reaches clients that are silent, or take nothing, already.
const RETUNE: Duration = Duration::from_secs(1);

/// One relayed connection.
pub(super) struct Relay {
    client: TcpStream,
    backend: Backend,
    up: Direction,
    down: Direction,
    /// The backend failed while it was written to. The kernel reports that once, and to a read it then looks like an
    /// end in order.
    backend_lost: bool,
    /// How the backend ended, once that was seen before what it said last could be read.
    gone: Option<Gone>,
    /// When the backend's failure was read.
    failed: Option<Instant>,
    /// There while the client is waited for and must not take for ever.
    patience: Option<Patience>,
    /// There since it was seen that the client has to take something before anything goes on.
    stall: Option<Stall>,
    /// Bytes to the backend.
    asked_bytes: u64,
    /// Bytes to the client.
    answered_bytes: u64,
    /// When the client said what has not been answered yet.
    asked: Option<Instant>,
    /// When it was polled last, the backend took nothing of what there was for it.
    backend_full: bool,
    /// When it was polled last, there was no room for what the backend might say.
    client_full: bool,
    counters: Arc<ServiceCounters>,
    scratch: Scratch,
}

/// One way of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// Bytes flow.
    Open,
    /// The source has ended; the sink does not know yet.
    Closing,
    /// The sink knows.
    Closed,
    /// The sink takes no more although the source goes on.
    Broken,
    /// The source has failed; what it said before is on its way to the sink.
    Draining,
}

/// How a relayed connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides closed in order.
    Finished,
    /// The client reset, or stopped answering.
    ClientFailed,
    /// The backend reset, or takes no more of what the client sends; the client has all that the backend said before, or
    /// has taken nothing of it for `stall-time`.
    BackendFailed,
    /// The backend closed, and the client then said nothing for `fin-wait-2`, not even goodbye; or it took nothing for
    /// `stall-time` of what the backend had said before.
    ClientSilent,
    /// Nothing moved for as long as the service allows.
    Idle,
    /// It lasted longer than the service allows.
    Overtime,
    /// The client closed, and the backend then said nothing for `close-wait`, not even goodbye.
    BackendSilent,
}

/// What stops a direction.
enum Fault {
    Client,
    Backend(io::Error),
}

impl Relay {
    pub(super) fn new(
        client: TcpStream,
        backend: Backend,
        counters: Arc<ServiceCounters>,
        scratch: Scratch,
    ) -> Self {
        Self {
            client,
            backend,
            up: Direction::Open,
            down: Direction::Open,
            backend_lost: false,
            gone: None,
            failed: None,
            patience: None,
            stall: None,
            asked_bytes: 0,
            answered_bytes: 0,
            asked: None,
            backend_full: false,
            client_full: false,
            counters,
            scratch,
        }
    }

    /// Moves what can be moved; ready at the end. To be polled once a second, too, as long as something holds it up: a
    /// backend for whose bytes there is no room wakes nobody when it goes.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.down == Direction::Draining {
            return self.poll_drained(cx);
        }
        match self.poll_up(cx) {
            Poll::Ready(Err(Fault::Client)) => return Poll::Ready(End::ClientFailed),
            // It may still have something to say: a server may answer and close before it has read everything.
            Poll::Ready(Err(Fault::Backend(error))) => {
                self.up = Direction::Broken;
                // To a reset after the backend's FIN the kernel says EPIPE: then the answer is complete.
                self.backend_lost = error.kind() != io::ErrorKind::BrokenPipe;
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if self.up == Direction::Broken && self.poll_unheard(cx).is_ready() {
            return Poll::Ready(End::ClientFailed);
        }
        match self.poll_down(cx) {
            Poll::Ready(Err(Fault::Client)) => return Poll::Ready(End::ClientFailed),
            // A reset makes the stack drop what it has not delivered. It often follows an answer that is complete: the
            // kernel resets when a server closes without having read everything (RFC 2525 §2.17).
            Poll::Ready(Err(Fault::Backend(_))) => {
                self.down = Direction::Draining;
                return self.poll_drained(cx);
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match (self.up, self.down) {
            (Direction::Closed, Direction::Closed) => Poll::Ready(End::Finished),
            (Direction::Broken, Direction::Closed) => Poll::Ready(End::BackendFailed),
            (Direction::Open, Direction::Closed) if self.poll_silence(cx).is_ready() => {
                Poll::Ready(End::ClientSilent)
            }
            (_, Direction::Closing) if self.poll_stalled(cx, RETUNE).is_ready() => {
                Poll::Ready(End::ClientSilent)
            }
            (_, Direction::Open) if self.client_full && self.poll_deserted(cx).is_ready() => {
                Poll::Ready(if self.gone == Some(Gone::Reset) {
                    End::BackendFailed
                } else {
                    End::ClientSilent
                })
            }
            // While the backend takes nothing, nobody reads from the client: its end would go unnoticed.
            _ => self.client.poll_failed(cx).map(|_| End::ClientFailed),
        }
    }

    /// What holds it up, as it was polled last.
    pub(super) fn hold(&self) -> Option<Hold> {
        match (self.up, self.down) {
            (_, Direction::Closing | Direction::Draining) => Some(Hold::ClientStalled),
            (_, Direction::Open) if self.client_full => Some(Hold::ClientStalled),
            (Direction::Open, _) if self.backend_full => Some(Hold::BackendStalled),
            (Direction::Closed, Direction::Open) => Some(Hold::CloseWait),
            (Direction::Open, Direction::Closed) => Some(Hold::FinWait2),
            _ => None,
        }
    }

    /// What held it up, if it was reset for memory because nobody read what its client had sent. A client that takes nothing
    /// has itself to blame: its backend then does not read on.
    pub(super) fn unread(&self) -> Option<Hold> {
        let blamed = if self.client_full { Hold::ClientStalled } else { Hold::BackendStalled };
        self.client.was_unread().then_some(blamed)
    }

    /// How long a backend may be silent after its client's end; zero is no limit.
    pub(super) fn close_wait(&self) -> Duration {
        self.client.close_wait()
    }

    /// Whose connection it is.
    pub(super) fn client_addr(&self) -> SocketAddr {
        self.client.peer_addr()
    }

    /// Bytes it has moved, both ways.
    pub(super) fn moved(&self) -> u64 {
        self.asked_bytes + self.answered_bytes
    }

    /// How far it has come: the same, less what the client has yet to take once there is nothing more to say to it. A client
    /// that takes the last of a download at its leisure holds nothing up.
    pub(super) fn progress(&self) -> u64 {
        match self.down {
            Direction::Closing | Direction::Draining => {
                self.moved().wrapping_sub(self.client.unacknowledged().into())
            }
            Direction::Open | Direction::Closed | Direction::Broken => self.moved(),
        }
    }

    /// Drops the backend's connection with a reset: the client's end was none it should take for a close.
    pub(super) fn reset_backend(self) {
        self.backend.reset();
    }

    /// Drops both connections with a reset.
    pub(super) fn reset(self) {
        self.backend.reset();
        self.client.abort();
    }

    /// Drops the client's connection with a reset.
    pub(super) fn reset_client(self) {
        self.client.abort();
    }

    /// Ready when the client has everything that a backend said before it failed, takes nothing of it, or takes too long.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        if self.poll_unheard(cx).is_ready() || self.client.poll_failed(cx).is_ready() {
            return Poll::Ready(End::ClientFailed);
        }
        let lasts = self.failed.get_or_insert_with(Instant::now).elapsed();
        if self.client.unacknowledged() == 0 || lasts >= LAST_WORDS {
            return Poll::Ready(End::BackendFailed);
        }
        // The stack tells of room in its buffer, not of the last acknowledgement.
        let pause = (lasts / 4).clamp(LOOK.0, LOOK.1);
        self.poll_stalled(cx, pause).map(|()| End::BackendFailed)
    }

    /// Ready when the client has been silent for too long after the backend's end. The kernel limits FIN_WAIT_2 only
    /// once the application is gone; here it may be, and a backend that has closed for good looks like one that is
    /// still reading.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.client.fin_wait_2();
        self.patience.get_or_insert_with(Patience::new).poll(cx, limit, RETUNE)
    }

    /// Ready when the client has taken nothing for too long of what is left to say to it. The backend is done and times
    /// nobody out any more, and a client may keep its window closed for ever (RFC 9293 §3.8.6.1).
    fn poll_stalled(&mut self, cx: &mut Context<'_>, pause: Duration) -> Poll<()> {
        let limit = self.client.stall_time();
        let since = self.look_at_stall().since;
        let patience = self.patience.get_or_insert_with(Patience::new);
        patience.since = since;
        patience.poll(cx, limit, pause)
    }

    /// Ready when a backend is gone that still has something to say, and the client, without room for it, has taken nothing
    /// for too long. What arrived before a reset can be read as well as what did before an end in order, and a client that
    /// makes room gets either; but a client that had long been stalled when the backend reset is waited for no longer.
    fn poll_deserted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.look_at_stall();
        if self.gone.is_none() {
            match self.backend.gone() {
                None => return Poll::Pending,
                // A write that failed took away what would tell the reset from an end.
                Some(Gone::Closed) if !self.backend_lost => {
                    self.stall = None;
                    self.gone = Some(Gone::Closed);
                }
                Some(_) => self.gone = Some(Gone::Reset),
            }
        }
        self.poll_stalled(cx, RETUNE)
    }

    /// How far the client has come, and since when, as long as it has to take something before anything goes on.
    fn look_at_stall(&mut self) -> Stall {
        let taken = self.answered_bytes.wrapping_sub(self.client.unacknowledged().into());
        match self.stall {
            Some(stall) if stall.taken == taken => stall,
            _ => *self.stall.insert(Stall { taken, since: Instant::now() }),
        }
    }

    /// Takes what the client says although the backend takes it no more: it would keep memory of the stack for nobody. Ready
    /// when the client has failed.
    fn poll_unheard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut now = 0;
        while now < SLICE {
            let all = |_: &mut Context<'_>, bytes: &[IoSlice<'_>]| {
                Poll::Ready(Ok(bytes.iter().map(|slice| slice.len()).sum()))
            };
            match ready!(self.client.poll_lend(cx, all)) {
                Ok(0) => return Poll::Pending,
                Ok(taken) => now += taken,
                Err(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Client to backend.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Self { client, backend, up, patience, asked_bytes, asked, backend_full, counters, .. } = self;
        *backend_full = false;
        let mut now = 0;
        while *up == Direction::Open {
            if now >= SLICE {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let sink = |cx: &mut Context<'_>, bytes: &[IoSlice<'_>]| {
                // It has spoken. If the backend takes nothing, the wait is not the client's fault.
                if let Some(patience) = patience {
                    patience.since = Instant::now();
                }
                let taken = backend.poll_write(cx, bytes);
                *backend_full = taken.is_pending();
                taken
            };
            match ready!(client.poll_lend(cx, sink)) {
                Ok(0) => *up = Direction::Closing,
                Ok(taken) => {
                    now += taken;
                    *asked_bytes += taken as u64;
                    asked.get_or_insert_with(Instant::now);
                    add(&counters.bytes_to_backend, taken as u64);
                }
                Err(LendError::Source(_)) => return Poll::Ready(Err(Fault::Client)),
                Err(LendError::Sink(error)) => return Poll::Ready(Err(Fault::Backend(error))),
            }
        }
        if *up == Direction::Closing {
            ready!(backend.poll_shutdown(cx)).map_err(Fault::Backend)?;
            *up = Direction::Closed;
        }
        Poll::Ready(Ok(()))
    }

    /// Backend to client.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        let Self {
            client,
            backend,
            down,
            backend_lost,
            patience,
            stall,
            answered_bytes,
            asked,
            client_full,
            counters,
            scratch,
            ..
        } = self;
        *client_full = false;
        let mut now = 0;
        while *down == Direction::Open {
            if now >= SLICE {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let room = client.poll_room(cx);
            *client_full = room.is_pending();
            let room = ready!(room).map_err(|_| Fault::Client)?;
            *stall = None;
            let mut scratch = scratch.borrow_mut();
            let room = room.min(scratch.len());
            let mut bytes = ReadBuf::new(&mut scratch[..room]);
            ready!(backend.poll_read(cx, &mut bytes)).map_err(Fault::Backend)?;
            if bytes.filled().is_empty() {
                if *backend_lost {
                    return Poll::Ready(Err(Fault::Backend(io::ErrorKind::ConnectionReset.into())));
                }
                *down = Direction::Closing;
                break;
            }
            now += bytes.filled().len();
            *answered_bytes += bytes.filled().len() as u64;
            if let Some(asked) = asked.take() {
                counters.answers.record(asked.elapsed());
            }
            add(&counters.bytes_to_client, bytes.filled().len() as u64);
            client.send_all(bytes.filled()).map_err(|_| Fault::Client)?;
        }
        if *down == Direction::Closing {
            ready!(Pin::new(client).poll_shutdown(cx)).map_err(|_| Fault::Client)?;
            *down = Direction::Closed;
            if let Some(patience) = patience {
                patience.since = Instant::now();
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A client that has to take something.
#[derive(Clone, Copy)]
struct Stall {
    /// Bytes it had acknowledged.
    taken: u64,
    /// Since when it has acknowledged no more.
    since: Instant,
}

/// How long a wait has lasted, and a timer to look again.
struct Patience {
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Patience {
    fn new() -> Self {
        let since = Instant::now();
        Self { since, timer: Box::pin(sleep_until(since)) }
    }

    /// Ready once the wait has lasted for `limit`; until then wakes the task after `pause` at the latest.
    fn poll(&mut self, cx: &mut Context<'_>, limit: Duration, pause: Duration) -> Poll<()> {
        loop {
            let left = limit.saturating_sub(self.since.elapsed());
            if left.is_zero() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(Instant::now() + left.min(pause));
            ready!(self.timer.as_mut().poll(cx));
        }
    }
}
