//! One connection: the transmission control block of RFC 9293 §3.3.1 and what the application can do with it.
//! Segments come in through `input` and `ack`, leave through `output`, time passes through `timers`.

mod ack;
mod input;
mod output;
mod timers;

pub(crate) use input::Verdict;

use std::collections::VecDeque;
use std::io::IoSlice;

use tcpguard_common::cookie::{Accepted, rtt_sample};
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::build::Link;
use tcpguard_common::seq::Seq;

use super::config::Config;
use super::congestion::Congestion;
use super::counters::StackCounters;
use super::event::{ConnId, Error, Event, FlowInfo, State};
use super::pool::{Pool, SendBuffer};
use super::pressure::{Stall, recv_limit, send_limit};
use super::recv::RecvBuffer;
use super::rto::Rtt;
use super::scoreboard::Scoreboard;
use super::time::Instant;
use super::wire::{Incoming, ip_header_len};

/// What all connections of a stack share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) send_pool: Pool,
    pub(crate) recv_pool: Pool,
    pub(crate) counters: StackCounters,
    pub(crate) events: VecDeque<Event>,
    /// Connections that found the send pool empty.
    pub(crate) send_waiters: VecDeque<ConnId>,
    /// Transfer parts between owners, their memory kept.
    #[expect(clippy::vec_box, reason = "they change owners as boxes")]
    spare: Vec<Box<Transfer>>,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            send_pool: Pool::new(config.send_pool),
            recv_pool: Pool::new(config.recv_pool),
            config,
            counters: StackCounters::default(),
            events: VecDeque::new(),
            send_waiters: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// Most bytes a connection may be offered now.
    fn recv_limit(&self) -> u32 {
        recv_limit(&self.config, &self.recv_pool)
    }

    /// Most bytes a connection may hold for sending now.
    fn send_limit(&self) -> usize {
        send_limit(&self.config, &self.send_pool)
    }
}

/// The part of a connection that exists only while bytes are held or in flight.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    pub(crate) send: SendBuffer,
    pub(crate) recv: RecvBuffer,
    pub(crate) scoreboard: Scoreboard,
    stall: Stall,
}

/// How far our own FIN is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    Open,
    Queued,
    Sent,
    Acked,
}

/// Whether losses are being repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    None,
    /// Noticed by acknowledgements, until `recover` is acknowledged.
    Fast,
    /// Noticed by timeout, until `recover` is acknowledged.
    Timeout,
}

/// What the retransmission timer is for. They exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retransmit {
    Off,
    /// RFC 6298.
    Timeout,
    /// Tail loss probe (RFC 8985 §7).
    Probe,
    /// Something may turn out lost by then (RFC 8985 §6.3).
    Reordering,
    /// Zero window, or one too small to bother with (RFC 9293 §3.8.6.1, §3.8.6.2.1).
    Persist,
}

/// Whether an acknowledgement is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AckOwed {
    No,
    /// When the delayed ACK timer fires, or with the next segment.
    Later,
    /// This many, as soon as something can leave. More than one only to a peer without SACK, which counts them.
    Now(u8),
}

/// The handshake's outcome that a connection is adopted with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adoption {
    pub(crate) accepted: Accepted,
    /// SEG.SEQ and SEG.ACK of the segment with the cookie.
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    /// SEG.WND, unscaled.
    pub(crate) window: u16,
    /// TSval and TSecr.
    pub(crate) timestamps: Option<(u32, u32)>,
    /// Whether that segment carried data: then it may be a repetition, or have waited for its data, and its
    /// arrival tells no round trip.
    pub(crate) has_data: bool,
    /// When it arrived, if that was not just now.
    pub(crate) arrived: Option<Instant>,
}

/// The transmission control block.
#[derive(Debug)]
pub(crate) struct Tcb {
    pub(crate) id: ConnId,
    pub(crate) key: AnyFlowKey,
    pub(crate) link: Link,
    pub(crate) service: Option<u32>,
    pub(crate) state: State,
    pub(crate) error: Option<Error>,
    /// Whether the flow's segments are ours: not once it is over, while the application still reads.
    pub(crate) attached: bool,
    /// Whether the application is gone.
    pub(crate) orphan: bool,
    /// Whether the stack has it in its ready queue.
    pub(crate) queued: bool,
    /// Whether the end of the connection owes the peer a reset.
    pub(crate) send_reset: bool,
    pub(crate) created: Instant,
    /// The initial sequence numbers, ours and the peer's.
    pub(crate) iss: Seq,
    pub(crate) irs: Seq,
    /// The epoch of the cookie that opened it.
    pub(crate) cookie_epoch: Option<u32>,

    snd_una: Seq,
    pub(crate) snd_nxt: Seq,
    snd_wnd: u32,
    /// The largest window the peer ever advertised (RFC 5961 §5.2, RFC 9293 §3.8.6.2.1).
    max_snd_wnd: u32,
    snd_wl1: Seq,
    snd_wl2: Seq,
    snd_shift: u8,
    rcv_shift: u8,
    /// What the peer accepts and our MTU at creation allows, options not deducted.
    mss: u16,
    /// The largest segment seen: when an acknowledgement is due (RFC 9293 §3.8.6.3).
    rcv_mss: u16,

    pub(crate) rcv_nxt: Seq,
    /// The right edge of the window, once advertised never withdrawn.
    rcv_adv: Seq,
    last_ack_sent: Seq,
    /// Where the peer's FIN is, if it came before the data in front of it.
    peer_fin: Option<Seq>,
    /// Data that came twice, to be reported (RFC 2883).
    dsack: Option<(Seq, Seq)>,

    timestamps: bool,
    sack_permitted: bool,
    pub(crate) ts_recent: u32,
    /// When `ts_recent` was taken, seconds.
    ts_recent_at: u32,
    /// Added to the clock's milliseconds: our timestamp clock.
    pub(crate) ts_offset: u32,

    fin: Fin,
    fin_acked_told: bool,
    readable_told: bool,
    wants_write: bool,
    /// Stands in the queue for the send pool.
    waits_for_pool: bool,

    ack_owed: AckOwed,
    ack_at: Instant,
    /// Acknowledgements still to be sent without delay, to help the peer's slow start.
    quick_acks: u8,
    challenge_second: u32,
    challenges: u8,

    rtt: Rtt,
    congestion: Congestion,
    recovery: Recovery,
    recover: Seq,
    /// The next retransmission leaves whatever the window says.
    force: bool,
    /// A tail loss probe is due.
    probe: bool,
    /// A probe was sent; an acknowledgement of everything up to here tells what it was good for.
    probed: Option<Seq>,
    /// That probe repeated old data.
    probe_repeated: bool,
    /// The persist timer fired.
    persist: bool,
    retransmit: Retransmit,
    retransmit_at: Instant,
    /// When another segment may count as lost (RFC 8985 §6.2).
    reorder_at: Instant,
    /// When the retransmission timer was last started afresh.
    rto_base: Instant,
    retries: u8,
    last_sent: Instant,
    /// When an orphan's FIN_WAIT_2 began, and when it ends.
    linger_since: Instant,
    linger_at: Instant,

    bytes_in: u64,
    bytes_out: u64,
    transfer: Option<Box<Transfer>>,
}

/// Acknowledgements at the start of a connection that are not delayed, as Linux does.
const QUICK_ACKS: u8 = 16;

impl Tcb {
    /// A connection whose cookie came back: ESTABLISHED, as if the SYN had been remembered.
    pub(crate) fn adopted(
        key: AnyFlowKey,
        link: Link,
        service: u32,
        adoption: &Adoption,
        now: Instant,
        config: &Config,
    ) -> Self {
        let Adoption { accepted, seq, ack, window, timestamps, has_data, arrived } = adoption;
        let mss = accepted.mss.min(segment_limit(&key, config));
        let mut tcb = Self::new(key, link, now, (*ack - 1, *seq - 1), mss);
        tcb.service = Some(service);
        tcb.state = State::Established;
        tcb.cookie_epoch = Some(accepted.slot.epoch);
        (tcb.snd_una, tcb.snd_nxt) = (*ack, *ack);
        if let Some(shift) = accepted.window_scale {
            (tcb.snd_shift, tcb.rcv_shift) = (shift.min(14), accepted.slot.window_scale.min(14));
        }
        tcb.update_send_window(*window, *seq, *ack);
        // What the SYN-ACK promised; its window field was not scaled (RFC 7323 §2.2).
        tcb.rcv_adv = *seq + u32::from(accepted.slot.window);
        tcb.sack_permitted = accepted.sack_permitted;
        if let Some((value, echo)) = timestamps.filter(|_| accepted.timestamps) {
            tcb.timestamps = true;
            tcb.note_timestamp(value, now);
            // The flow's clock goes on from the cookie the peer last saw as our timestamp.
            tcb.ts_offset = echo.wrapping_sub(now.millis() as u32);
        }
        let sent = accepted.sent.filter(|_| !has_data);
        if let Some(rtt) = sent.and_then(|sent| rtt_sample(sent, arrived.unwrap_or(now).0)) {
            tcb.rtt.sample(core::time::Duration::from_nanos(rtt));
        }
        tcb
    }

    /// An active open: SYN_SENT, the SYN still to leave.
    pub(crate) fn connecting(
        key: AnyFlowKey,
        link: Link,
        iss: Seq,
        ts_offset: u32,
        now: Instant,
        config: &Config,
    ) -> Self {
        let mut tcb = Self::new(key, link, now, (iss, Seq(0)), segment_limit(&key, config));
        tcb.rcv_shift = config.window_scale.min(14);
        tcb.ts_offset = ts_offset;
        (tcb.timestamps, tcb.sack_permitted) = (true, true);
        tcb
    }

    fn new(key: AnyFlowKey, link: Link, now: Instant, (iss, irs): (Seq, Seq), mss: u16) -> Self {
        Self {
            id: ConnId { index: 0, generation: 0 },
            key,
            link,
            service: None,
            state: State::SynSent,
            error: None,
            attached: true,
            orphan: false,
            queued: false,
            send_reset: false,
            created: now,
            iss,
            irs,
            cookie_epoch: None,
            snd_una: iss,
            snd_nxt: iss,
            snd_wnd: 0,
            max_snd_wnd: 0,
            snd_wl1: irs,
            snd_wl2: iss,
            snd_shift: 0,
            rcv_shift: 0,
            mss,
            rcv_mss: mss.min(536),
            rcv_nxt: irs + 1,
            rcv_adv: irs + 1,
            last_ack_sent: irs + 1,
            peer_fin: None,
            dsack: None,
            timestamps: false,
            sack_permitted: false,
            ts_recent: 0,
            ts_recent_at: 0,
            ts_offset: 0,
            fin: Fin::Open,
            fin_acked_told: false,
            readable_told: false,
            wants_write: false,
            waits_for_pool: false,
            ack_owed: AckOwed::No,
            ack_at: Instant::NEVER,
            quick_acks: QUICK_ACKS,
            challenge_second: 0,
            challenges: 0,
            rtt: Rtt::default(),
            congestion: Congestion::new(mss.into()),
            recovery: Recovery::None,
            recover: iss,
            force: false,
            probe: false,
            probed: None,
            probe_repeated: false,
            reorder_at: Instant::NEVER,
            persist: false,
            retransmit: Retransmit::Off,
            retransmit_at: Instant::NEVER,
            rto_base: now,
            retries: 0,
            last_sent: now,
            linger_since: now,
            linger_at: Instant::NEVER,
            bytes_in: 0,
            bytes_out: 0,
            transfer: None,
        }
    }

    /// Reads what is in order. `Ok(0)` is the peer's FIN.
    pub(crate) fn recv(&mut self, out: &mut [u8], shared: &mut Shared) -> Result<usize, Error> {
        match &mut self.transfer {
            Some(transfer) if transfer.recv.ready() > 0 => {
                let len = transfer.recv.read(out, &mut shared.recv_pool);
                self.window_opened(shared.recv_limit());
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
    pub(crate) fn consume(&mut self, len: usize, shared: &mut Shared) {
        if let Some(transfer) = &mut self.transfer {
            transfer.recv.consume(len.min(transfer.recv.ready()), &mut shared.recv_pool);
            self.window_opened(shared.recv_limit());
            self.release_idle(shared);
        }
    }

    /// Queues bytes for sending; how many.
    pub(crate) fn send(&mut self, data: &[u8], shared: &mut Shared) -> Result<usize, Error> {
        self.writable()?;
        let limit = shared.send_limit();
        let transfer = self.transfer.get_or_insert_with(|| shared.spare.pop().unwrap_or_default());
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
        let limit = shared.send_limit();
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
    pub(crate) fn shutdown(&mut self) {
        if self.fin != Fin::Open {
            return;
        }
        match self.state {
            State::Established => self.state = State::FinWait1,
            State::CloseWait => self.state = State::LastAck,
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
        self.shutdown();
        self.start_linger(now, &shared.config);
    }

    /// Ends the connection at once, with a reset if the peer still has one (RFC 9293 §3.10.5).
    pub(crate) fn abort(&mut self, shared: &mut Shared) {
        self.orphan = true;
        let reset =
            self.state.synchronized() && self.state != State::TimeWait || self.state == State::SynReceived;
        self.fail(Error::Aborted, reset, shared);
    }

    /// Whether our FIN is acknowledged.
    pub(crate) fn fin_acked(&self) -> bool {
        self.fin == Fin::Acked
    }

    /// The end: everything unsent is void, what was received can still be read.
    pub(crate) fn fail(&mut self, error: Error, reset: bool, shared: &mut Shared) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        self.error = Some(error);
        self.send_reset = reset;
        self.void(shared);
    }

    /// Nothing will be sent any more.
    pub(crate) fn void(&mut self, shared: &mut Shared) {
        if let Some(transfer) = &mut self.transfer {
            transfer.send.clear(&mut shared.send_pool);
            transfer.scoreboard.clear();
            if self.orphan {
                transfer.recv.clear(&mut shared.recv_pool);
            }
        }
        self.ack_owed = AckOwed::No;
        (self.retransmit, self.retransmit_at) = (Retransmit::Off, Instant::NEVER);
        (self.ack_at, self.linger_at) = (Instant::NEVER, Instant::NEVER);
        (self.force, self.probe, self.persist) = (false, false, false);
        self.release_idle(shared);
    }

    /// Gives the transfer part back when it holds nothing.
    fn release_idle(&mut self, shared: &mut Shared) {
        const KEEP: usize = 1024;
        let idle = |transfer: &Transfer| {
            transfer.send.len() == 0 && transfer.recv.is_empty() && transfer.scoreboard.is_empty()
        };
        if let Some(mut transfer) = self.transfer.take_if(|transfer| idle(transfer)) {
            transfer.scoreboard.clear();
            transfer.stall = Stall::default();
            if shared.spare.len() < KEEP {
                shared.spare.push(transfer);
            }
        }
    }

    fn transfer(&mut self, shared: &mut Shared) -> &mut Transfer {
        self.transfer.get_or_insert_with(|| shared.spare.pop().unwrap_or_default())
    }

    fn tell_readable(&mut self, shared: &mut Shared) {
        if !self.readable_told && !self.orphan {
            self.readable_told = true;
            shared.events.push_back(Event::Readable(self.id));
        }
    }

    /// Tells the application that the flow is over.
    pub(crate) fn tell_end(&mut self, shared: &mut Shared) {
        if !self.orphan {
            shared.events.push_back(Event::Closed { conn: self.id, error: self.error });
        }
    }

    /// Whether data waits for a window that is closed.
    pub(crate) fn is_blocked(&self) -> bool {
        self.retransmit == Retransmit::Persist
    }

    /// The peer's window is closed: since when, if that is new.
    pub(crate) fn stalls(&mut self, now: Instant) -> Option<Instant> {
        self.transfer.as_mut()?.stall.begin(now).then_some(now)
    }

    /// Since when the peer takes nothing.
    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        self.transfer.as_ref()?.stall.since()
    }

    fn wait_for_pool(&mut self, shared: &mut Shared) {
        if !self.waits_for_pool {
            self.waits_for_pool = true;
            shared.send_waiters.push_back(self.id);
        }
    }

    /// Islands of data behind holes.
    pub(crate) fn islands(&self) -> usize {
        self.transfer.as_ref().map_or(0, |transfer| transfer.recv.island_count())
    }

    /// Forgets what waits behind holes.
    pub(crate) fn discard_islands(&mut self, shared: &mut Shared) {
        if let Some(transfer) = &mut self.transfer {
            transfer.recv.discard_islands(&mut shared.recv_pool);
        }
        self.release_idle(shared);
    }

    /// The send pool has room again.
    pub(crate) fn wake_after_pool(&mut self, shared: &mut Shared) {
        self.waits_for_pool = false;
        if self.wants_write && !self.orphan {
            self.wants_write = false;
            shared.events.push_back(Event::Writable(self.id));
        }
    }

    fn note_timestamp(&mut self, value: u32, now: Instant) {
        self.ts_recent = value;
        self.ts_recent_at = seconds(now);
    }

    /// RFC 9293 §3.10.7.4, fifth check; the window field of a SYN is never scaled.
    fn update_send_window(&mut self, window: u16, seq: Seq, ack: Seq) {
        self.snd_wnd = u32::from(window) << self.snd_shift;
        self.max_snd_wnd = self.max_snd_wnd.max(self.snd_wnd);
        (self.snd_wl1, self.snd_wl2) = (seq, ack);
    }

    /// Bytes sent and not acknowledged, SYN and FIN counted.
    pub(crate) fn flight(&self) -> u32 {
        self.snd_nxt.distance(self.snd_una)
    }

    /// The sequence number of the first byte in the send buffer.
    fn buffer_start(&self) -> Seq {
        match self.state {
            State::SynSent | State::SynReceived => self.iss + 1,
            _ => self.snd_una,
        }
    }

    /// Bytes queued and never sent.
    fn unsent(&self) -> u32 {
        if matches!(self.fin, Fin::Sent | Fin::Acked) {
            return 0;
        }
        let queued = self.transfer.as_ref().map_or(0, |transfer| transfer.send.len() as u32);
        queued.saturating_sub(self.snd_nxt.max(self.buffer_start()).distance(self.buffer_start()))
    }

    /// Our timestamp clock now: milliseconds (RFC 7323 §5.4).
    fn ts_now(&self, now: Instant) -> u32 {
        self.ts_offset.wrapping_add(now.millis() as u32)
    }

    /// What TIME_WAIT must remember.
    pub(crate) fn remaining_timestamps(&self) -> Option<(u32, u32)> {
        self.timestamps.then_some((self.ts_recent, self.ts_offset))
    }

    pub(crate) fn info(&self, now: Instant) -> FlowInfo {
        let transfer = self.transfer.as_ref();
        let deadline = self.deadline();
        FlowInfo {
            key: self.key,
            state: self.state,
            service: self.service,
            age: now.since(self.created),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            recv_queued: transfer.map_or(0, |transfer| transfer.recv.ready() as u32),
            send_queued: transfer.map_or(0, |transfer| transfer.send.len() as u32),
            rtt: self.rtt.smoothed(),
            timer: deadline.is_set().then(|| deadline.since(now)),
        }
    }

    /// What must hold between any two calls.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert!(self.snd_una.at_or_before(self.snd_nxt), "SND.UNA passed SND.NXT");
        assert!(self.rcv_nxt.at_or_before(self.rcv_adv + 1), "received past the promised window");
        if let Some(transfer) = &self.transfer {
            transfer.scoreboard.check(self.snd_una, self.snd_nxt);
        } else {
            assert_eq!(self.snd_una, self.snd_nxt, "in flight without a scoreboard");
        }
        assert_eq!(self.retransmit == Retransmit::Off, !self.retransmit_at.is_set());
    }
}

/// The largest segment our MTU carries to this family, options not deducted.
fn segment_limit(key: &AnyFlowKey, config: &Config) -> u16 {
    config.mtu.max(576) - ip_header_len(key) - 20
}

fn seconds(now: Instant) -> u32 {
    (now.millis() / 1000) as u32
}
