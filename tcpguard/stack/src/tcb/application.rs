//! What the application does with a connection (RFC 9293 §3.10.1 to §3.10.5): receive, send, close, abort.

use std::io::IoSlice;

use super::{Error, Fin, Instant, Shared, State, Tcb};

impl Tcb {
    /// Reads what is in order. `Ok(0)` is the peer's FIN.
    pub(crate) fn recv(&mut self, out: &mut [u8], now: Instant, shared: &mut Shared) -> Result<usize, Error> {
        match &mut self.transfer {
            Some(transfer) if transfer.recv.ready() > 0 => {
                let len = transfer.recv.read(out, &mut shared.recv_pool);
                transfer.note_read(len, now);
                self.window_opened(self.recv_limit(shared));
                self.release_idle(shared);
                Ok(len)
            }
            _ if self.error.is_some() => Err(self.error.unwrap_or(Error::Reset)),
            _ if self.state.peer_closed() => Ok(0),
            _ => {
                self.readable_told = false;
                Err(Error::WouldBlock)
            }
        }
    }

    /// Lends what is in order; how many slices. `Ok(0)` is the peer's FIN.
    pub(crate) fn peek<'a>(&'a mut self, out: &mut [IoSlice<'a>]) -> Result<usize, Error> {
        match &self.transfer {
            Some(transfer) if transfer.recv.ready() > 0 => Ok(transfer.recv.peek(out)),
            _ if self.error.is_some() => Err(self.error.unwrap_or(Error::Reset)),
            _ if self.state.peer_closed() => Ok(0),
            _ => {
                self.readable_told = false;
                Err(Error::WouldBlock)
            }
        }
    }

    /// Takes the first `len` bytes of what is in order.
    pub(crate) fn consume(&mut self, len: usize, now: Instant, shared: &mut Shared) {
        if let Some(transfer) = &mut self.transfer {
            let len = len.min(transfer.recv.ready());
            transfer.recv.consume(len, &mut shared.recv_pool);
            transfer.note_read(len, now);
            self.window_opened(self.recv_limit(shared));
            self.release_idle(shared);
        }
    }

    /// Queues bytes for sending; how many.
    pub(crate) fn send(&mut self, data: &[u8], shared: &mut Shared) -> Result<usize, Error> {
        self.writable()?;
        let limit = self.send_limit(shared);
        let spare = || shared.spare_transfers.take().unwrap_or_default();
        let transfer = self.transfer.get_or_insert_with(spare);
        let sent = transfer.send.push(data, limit, &mut shared.send_pool);
        if sent < data.len() {
            let pool_is_short = transfer.send.len() < limit;
            self.wants_write = true;
            if pool_is_short {
                self.wait_for_pool(shared);
            }
            if sent == 0 {
                return Err(Error::WouldBlock);
            }
        }
        Ok(sent)
    }

    /// How many bytes [`Self::send`] would take, at least one.
    pub(crate) fn send_room(&mut self, shared: &mut Shared) -> Result<usize, Error> {
        self.writable()?;
        let limit = self.send_limit(shared);
        let (room, queued) = match &self.transfer {
            Some(transfer) => (transfer.send.room(limit, &shared.send_pool), transfer.send.len()),
            None => (limit.min(shared.send_pool.room_bytes()), 0),
        };
        if room > 0 {
            return Ok(room);
        }
        self.wants_write = true;
        if queued < limit {
            self.wait_for_pool(shared);
        }
        Err(Error::WouldBlock)
    }

    /// Whether the application may send.
    fn writable(&self) -> Result<(), Error> {
        let open =
            matches!(self.state, State::SynSent | State::SynReceived | State::Established | State::CloseWait);
        match self.error {
            Some(error) => Err(error),
            None if open && self.fin == Fin::Open => Ok(()),
            None => Err(Error::NotWritable),
        }
    }

    /// Queues our FIN behind what is queued already (RFC 9293 §3.10.4).
    pub(crate) fn shutdown(&mut self, shared: &mut Shared) {
        if self.fin != Fin::Open {
            return;
        }
        match self.state {
            State::Established => {
                shared.counters.fin_wait_1_entered += 1;
                self.state = State::FinWait1;
            }
            State::CloseWait => {
                shared.counters.last_ack_entered += 1;
                self.state = State::LastAck;
            }
            State::SynReceived => {}
            State::SynSent => {
                self.state = State::Closed;
                return;
            }
            State::FinWait1
            | State::FinWait2
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => return,
        }
        self.fin = Fin::Queued;
    }

    /// The application is gone. With data it has not read the peer must learn that this was lost (RFC 9293
    /// §3.10.4, RFC 1122 §4.2.2.13): reset.
    pub(crate) fn close(&mut self, now: Instant, shared: &mut Shared) {
        self.orphan = true;
        let unread = self.transfer.as_ref().is_some_and(|transfer| !transfer.recv.is_empty());
        if unread && self.state.synchronized() && self.state != State::TimeWait {
            self.fail(Error::Aborted, true, shared);
            return;
        }
        if let Some(transfer) = &mut self.transfer {
            transfer.recv.clear(&mut shared.recv_pool);
        }
        self.release_idle(shared);
        self.shutdown(shared);
        self.start_linger(now);
        if self.work.pace.is_set() {
            self.work.pace.renew(now);
        }
    }

    /// Ends the connection at once, with a reset if the peer still has one (RFC 9293 §3.10.5).
    pub(crate) fn abort(&mut self, shared: &mut Shared) {
        self.orphan = true;
        let reset =
            self.state.synchronized() && self.state != State::TimeWait || self.state == State::SynReceived;
        self.fail(Error::Aborted, reset, shared);
    }
}
