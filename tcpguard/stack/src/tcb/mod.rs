//! One connection: the transmission control block of RFC 9293 §3.3.1. Segments come in through `input` and `ack`, leave
//! through `output`, time passes through `timers`, and the `application` does its part.

mod ack;
mod application;
mod ecn;
mod frto;
mod icmp;
mod input;
mod output;
mod timers;
mod undo;
mod view;
mod work;

pub(crate) use input::Verdict;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tcpguard_common::cookie::{Accepted, rtt_sample};
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::build::Link;
use tcpguard_common::seq::Seq;

use super::config::Config;
use super::congestion::Congestion;
use super::counters::StackCounters;
use super::durations::Durations;
use super::event::{ConnId, Error, Event, FlowInfo, State};
use super::pool::{Pool, SendBuffer};
use super::pressure::{SMALL, Stall, recv_limit, send_limit};
use super::recv::RecvBuffer;
use super::recv_growth::RecvGrowth;
use super::rto::Rtt;
use super::scoreboard::{Patience, Scoreboard};
use super::spares::Spares;
use super::table::Placed;
use super::time::Instant;
use super::wire::{Incoming, ip_header_len};
use ecn::Ecn;
use work::{MaybeWork, Recovery, Retransmit, Work};

/// What all connections of a stack share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What holds for all, and for connections of a service unless it is in `services`.
    pub(crate) config: Config,
    /// Services with tunables of their own.
    pub(crate) services: BTreeMap<u32, Config>,
    pub(crate) send_pool: Pool,
    pub(crate) recv_pool: Pool,
    pub(crate) counters: StackCounters,
    /// How long handshakes took.
    pub(crate) handshakes: Durations,
    pub(crate) events: VecDeque<Event>,
    /// Connections that found the send pool empty.
    pub(crate) send_waiters: VecDeque<ConnId>,
    /// Transfer parts between owners, their memory kept.
    spare_transfers: Spares<Transfer>,
    /// Work between owners, none of it to be done.
    spare_work: Spares<Work>,
}

impl Shared {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            send_pool: Pool::new(config.send_pool),
            recv_pool: Pool::new(config.recv_pool),
            config,
            services: BTreeMap::new(),
            counters: StackCounters::default(),
            handshakes: Durations::default(),
            events: VecDeque::new(),
            send_waiters: VecDeque::new(),
            spare_transfers: Spares::new(),
            spare_work: Spares::new(),
        }
    }
}

impl Shared {
    /// What holds for the connections of a service.
    pub(crate) fn config_of(&self, service: Option<u32>) -> &Config {
        // Most guards have none of these, and this is asked for every segment.
        if self.services.is_empty() {
            return &self.config;
        }
        service.and_then(|service| self.services.get(&service)).unwrap_or(&self.config)
    }
}

/// The part of a connection that exists only while bytes are held or in flight.
#[derive(Debug, Default)]
pub(crate) struct Transfer {
    pub(crate) send: SendBuffer,
    pub(crate) recv: RecvBuffer,
    pub(crate) scoreboard: Scoreboard,
    /// Since when the application reads nothing of what is in order.
    unread: Stall,
}

impl Transfer {
    /// The application has read `len` bytes.
    fn note_read(&mut self, len: usize, now: Instant) {
        self.unread.progress(len as u32, SMALL as u32);
        if self.recv.ready() == 0 {
            self.unread = Stall::default();
        } else {
            self.unread.begin(now);
        }
    }
}

/// How far our own FIN is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    Open,
    Queued,
    Sent,
    Acked,
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

/// The reset that the end of a connection owes the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OwedReset {
    No,
    /// Behind everything we sent: the end came from this side (RFC 9293 §3.10.5).
    Behind,
    /// Where the peer said it was when it sent what nobody will read, as of a connection that is not there (RFC 9293
    /// §3.10.7.1): it believes a reset nowhere else at once (RFC 5961 §3.2).
    Answer,
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
    /// How long before that the stack itself had sent the SYN-ACK, if that was once and is remembered.
    pub(crate) queued: Option<Duration>,
    /// How often the SYN-ACK was sent again, as far as that is remembered.
    pub(crate) repeats: u8,
}

/// The transmission control block. What every segment touches comes first, in two cache lines.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Tcb {
    pub(crate) key: AnyFlowKey,
    snd_una: Seq,
    pub(crate) snd_nxt: Seq,
    snd_wnd: u32,
    /// The largest window the peer ever advertised (RFC 5961 §5.2, RFC 9293 §3.8.6.2.1).
    max_snd_wnd: u32,
    snd_wl1: Seq,
    snd_wl2: Seq,
    pub(crate) rcv_nxt: Seq,
    /// The right edge of the window, once advertised never withdrawn.
    rcv_adv: Seq,
    last_ack_sent: Seq,
    pub(crate) ts_recent: u32,
    /// When `ts_recent` was taken, seconds.
    ts_recent_at: u32,
    /// Added to the clock's milliseconds: our timestamp clock.
    pub(crate) ts_offset: u32,
    transfer: Option<Box<Transfer>>,
    work: MaybeWork,
    /// What the peer accepts and our MTU at creation allows, options not deducted.
    mss: u16,
    /// The largest segment seen: when an acknowledgement is due (RFC 9293 §3.8.6.3).
    rcv_mss: u16,
    pub(crate) state: State,
    fin: Fin,
    ack_owed: AckOwed,
    snd_shift: u8,
    rcv_shift: u8,
    timestamps: bool,
    sack_permitted: bool,
    /// Whether the flow's segments are ours: not once it is over, while the application still reads.
    pub(crate) attached: bool,
    /// Whether the application is gone.
    pub(crate) orphan: bool,
    /// Whether the stack has it in its ready queue.
    pub(crate) queued: bool,
    readable_told: bool,
    wants_write: bool,
    /// Acknowledgements still to be sent without delay, to help the peer's slow start.
    quick_acks: u8,
    /// When the peer last sent something acceptable: seconds modulo 2^16, longer than any keepalive time.
    heard_at: u16,

    rtt: Rtt,
    congestion: Congestion,
    /// When data was last sent, milliseconds modulo 2^32. Of an orphan in FIN_WAIT_2, which has nothing to send any
    /// more, since when it is that.
    rests_since: u32,
    bytes_in: u64,
    bytes_out: u64,
    id: ConnId,
    /// The initial sequence numbers, ours and the peer's.
    pub(crate) iss: Seq,
    pub(crate) irs: Seq,
    /// The service it belongs to, if a cookie opened it, and that cookie's epoch. There are far fewer services than sixteen
    /// bits can tell apart.
    service: u16,
    /// Challenge acknowledgements in this second, and which it is, modulo 256.
    challenges: (u8, u8),
    cookie_epoch: u32,
    /// Ticks of [`AGE_TICK`], which wrap after eight years.
    created: u32,
    pub(crate) link: Link,
    pub(crate) error: Option<Error>,
    owed_reset: OwedReset,
    ecn: Ecn,
    /// Stands in the queue for the send pool.
    waits_for_pool: bool,
    /// How far the receive window has grown.
    recv_growth: RecvGrowth,
}

/// What comes before the round-trip times is what every segment touches.
const _: () = assert!(core::mem::offset_of!(Tcb, rtt) <= 128);

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
        let Adoption { accepted, seq, ack, window, timestamps, has_data, arrived, queued, repeats } =
            adoption;
        let mss = accepted.mss.min(segment_limit(&key, config));
        let mut tcb = Self::new(key, link, now, (*ack - 1, *seq - 1), mss);
        tcb.state = State::Established;
        (tcb.service, tcb.cookie_epoch) = (service as u16, accepted.slot.epoch);
        (tcb.snd_una, tcb.snd_nxt) = (*ack, *ack);
        if let Some(shift) = accepted.window_scale {
            (tcb.snd_shift, tcb.rcv_shift) = (shift.min(14), accepted.slot.window_scale.min(14));
        }
        tcb.update_send_window(*window, *seq, *ack);
        // What the SYN-ACK promised; its window field was not scaled (RFC 7323 §2.2).
        tcb.rcv_adv = *seq + u32::from(accepted.slot.window);
        tcb.sack_permitted = accepted.sack_permitted;
        if accepted.ecn {
            tcb.ecn = Ecn::CAPABLE;
        }
        if let Some((value, echo)) = timestamps.filter(|_| accepted.timestamps) {
            tcb.timestamps = true;
            tcb.note_timestamp(value, now);
            // The flow's clock goes on from the cookie the peer last saw as our timestamp, and from when it left if that is
            // remembered.
            let elapsed = queued.map_or(0, |queued| queued.as_millis() as u32);
            tcb.ts_offset = echo.wrapping_add(elapsed).wrapping_sub(arrived.unwrap_or(now).millis() as u32);
        }
        let by_cookie = accepted.sent.and_then(|sent| rtt_sample(sent, arrived.unwrap_or(now).0));
        if let Some(rtt) = queued.or(by_cookie.map(Duration::from_nanos)).filter(|_| !has_data) {
            tcb.rtt.sample(rtt);
        }
        tcb.heed_repeats(*repeats);
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
        (tcb.timestamps, tcb.sack_permitted) = (config.timestamps, true);
        tcb
    }

    fn new(key: AnyFlowKey, link: Link, now: Instant, (iss, irs): (Seq, Seq), mss: u16) -> Self {
        Self {
            key,
            snd_una: iss,
            snd_nxt: iss,
            snd_wnd: 0,
            max_snd_wnd: 0,
            snd_wl1: irs,
            snd_wl2: iss,
            rcv_nxt: irs + 1,
            rcv_adv: irs + 1,
            last_ack_sent: irs + 1,
            ts_recent: 0,
            ts_recent_at: 0,
            ts_offset: 0,
            transfer: None,
            work: MaybeWork::default(),
            mss,
            rcv_mss: mss.min(536),
            state: State::SynSent,
            fin: Fin::Open,
            ack_owed: AckOwed::No,
            snd_shift: 0,
            rcv_shift: 0,
            timestamps: false,
            sack_permitted: false,
            attached: true,
            orphan: false,
            queued: false,
            readable_told: false,
            wants_write: false,
            quick_acks: QUICK_ACKS,
            heard_at: seconds(now) as u16,
            rtt: Rtt::default(),
            congestion: Congestion::new(mss.into()),
            rests_since: now.millis() as u32,
            bytes_in: 0,
            bytes_out: 0,
            id: ConnId { index: 0, generation: 0 },
            iss,
            irs,
            service: Self::NO_SERVICE,
            cookie_epoch: 0,
            created: age_ticks(now),
            link,
            error: None,
            owed_reset: OwedReset::No,
            ecn: Ecn::default(),
            waits_for_pool: false,
            challenges: (0, 0),
            recv_growth: RecvGrowth::default(),
        }
    }

    /// The handshake is complete; our SYN, or SYN-ACK, was sent so many times more than once. One that was lost may be chance:
    /// two say that the path is loaded (RFC 6928 §2).
    fn heed_repeats(&mut self, repeats: u8) {
        if repeats > 0 {
            self.rtt.distrust();
        }
        if repeats > 1 {
            self.congestion = Congestion::after_lost_syns(self.mss.into());
        }
    }

    /// Of a connection that we opened.
    const NO_SERVICE: u16 = u16::MAX;

    /// Whether a cookie opened it.
    /// Of a connection that was just adopted, how long its handshake took, if that is known.
    pub(crate) fn handshake(&self) -> Option<Duration> {
        self.rtt.smoothed()
    }

    /// The service it belongs to, if a cookie opened it.
    pub(crate) fn service(&self) -> Option<u32> {
        self.has_service().then_some(self.service.into())
    }

    fn has_service(&self) -> bool {
        self.service != Self::NO_SERVICE
    }

    /// The epoch of the cookie that opened it.
    pub(crate) fn cookie_epoch(&self) -> Option<u32> {
        self.has_service().then_some(self.cookie_epoch)
    }

    /// How long nothing was sent; of an orphan in FIN_WAIT_2, how long it is that.
    fn rested(&self, now: Instant) -> Duration {
        Duration::from_millis((now.millis() as u32).wrapping_sub(self.rests_since).into())
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
        self.owed_reset = if reset { OwedReset::Behind } else { OwedReset::No };
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
        self.work.clear(&mut shared.spare_work);
        self.release_idle(shared);
    }

    /// Gives the transfer part back when it holds nothing.
    fn release_idle(&mut self, shared: &mut Shared) {
        let idle = |transfer: &Transfer| {
            transfer.send.len() == 0 && transfer.recv.is_empty() && transfer.scoreboard.is_empty()
        };
        if let Some(mut transfer) = self.transfer.take_if(|transfer| idle(transfer)) {
            transfer.scoreboard.clear();
            transfer.unread = Stall::default();
            shared.spare_transfers.give(transfer);
        }
    }

    /// Most bytes it may be offered now.
    fn recv_limit(&self, shared: &Shared) -> u32 {
        recv_limit(self.recv_growth.limit(shared.config.recv_buffer), &shared.recv_pool)
    }

    /// Most bytes it may hold for sending now.
    fn send_limit(&self, shared: &Shared) -> usize {
        send_limit(&shared.config, &shared.send_pool, self.congestion.window())
    }

    fn transfer(&mut self, shared: &mut Shared) -> &mut Transfer {
        self.transfer.get_or_insert_with(|| shared.spare_transfers.take().unwrap_or_default())
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

    /// Whether data waits for a window that is closed: for one that would let it go, or in flight for one that would take it.
    pub(crate) fn is_blocked(&self) -> bool {
        let shut_over_flight = self.snd_wnd == 0 && self.flight() > 0 && self.state.synchronized();
        shut_over_flight || self.work.retransmit == Retransmit::Persist
    }

    /// Whether the peer has just turned out to take next to nothing: its window is closed to what waits, or a retransmission
    /// timeout was not enough for as much as a segment.
    pub(crate) fn stalls(&mut self, now: Instant, config: &Config) -> bool {
        let pace = &self.work.pace;
        let known = !pace.is_set() || pace.stalled_since().is_some();
        let late = || pace.since() + self.rtt.first_timeout(config) <= now;
        !known && (self.is_blocked() || late()) && self.work.pace.stalls(now)
    }

    /// Since when the peer takes next to nothing of what waits for it.
    pub(crate) fn stalled_since(&self) -> Option<Instant> {
        self.work.pace.stalled_since()
    }

    /// Bytes in order that wait to be read, if the application has read next to nothing for so long and the flow is not over.
    pub(crate) fn neglected(&self, now: Instant, patience: Duration) -> usize {
        let Some(transfer) = self.transfer.as_ref().filter(|_| self.attached) else { return 0 };
        let is_late = transfer.unread.since().is_some_and(|since| since + patience <= now);
        if is_late { transfer.recv.ready() } else { 0 }
    }

    /// Ends the connection with a reset, and gives up what it has received: nobody reads it.
    pub(crate) fn end_unread(&mut self, shared: &mut Shared) {
        if let Some(transfer) = &mut self.transfer {
            transfer.recv.clear(&mut shared.recv_pool);
        }
        self.fail(Error::Unread, true, shared);
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

    /// Sequence numbers that wait to be acknowledged, sent or not: data, and our FIN.
    fn outstanding(&self) -> u32 {
        let data = self.transfer.as_ref().map_or(0, |transfer| transfer.send.len() as u32);
        data + u32::from(matches!(self.fin, Fin::Queued | Fin::Sent))
    }

    /// Our timestamp clock now: milliseconds (RFC 7323 §5.4).
    fn ts_now(&self, now: Instant) -> u32 {
        self.ts_offset.wrapping_add(now.millis() as u32)
    }

    /// What TIME_WAIT must remember.
    pub(crate) fn remaining_timestamps(&self) -> Option<(u32, u32)> {
        self.timestamps.then_some((self.ts_recent, self.ts_offset))
    }

    pub(crate) fn info(&self, now: Instant, config: &Config) -> FlowInfo {
        let transfer = self.transfer.as_ref();
        let deadline = self.deadline(now, config);
        FlowInfo {
            key: self.key,
            state: self.state,
            service: self.service(),
            age: AGE_TICK * age_ticks(now).wrapping_sub(self.created),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            recv_queued: transfer.map_or(0, |transfer| transfer.recv.ready() as u32),
            send_queued: transfer.map_or(0, |transfer| transfer.send.len() as u32),
            rtt: self.rtt.smoothed(),
            timer: deadline.is_set().then(|| deadline.since(now)),
            syn_ack_retransmits: None,
        }
    }

    /// Reads each of its cache lines; what they say means nothing.
    pub(crate) fn touch(&self) -> u32 {
        self.snd_una.0 ^ u32::from(self.mss) ^ self.rests_since ^ self.id.index ^ self.owed_reset as u32
    }

    /// Whether it holds nothing but itself.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.transfer.is_none() && self.work.is_none()
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
        assert_eq!(self.work.retransmit == Retransmit::Off, !self.work.retransmit_at.is_set());
        assert!(!self.work.pace.is_set() || self.outstanding() > 0, "the pace of nothing");
    }
}

impl Placed for Tcb {
    fn id(&self) -> ConnId {
        self.id
    }

    fn set_id(&mut self, id: ConnId) {
        self.id = id;
    }
}

/// The largest segment our MTU carries to this family, options not deducted.
fn segment_limit(key: &AnyFlowKey, config: &Config) -> u16 {
    config.mtu.max(576) - ip_header_len(key) - 20
}

/// How exactly the age of a connection is known.
const AGE_TICK: Duration = Duration::from_micros(62_500);

fn age_ticks(now: Instant) -> u32 {
    (now.0 / AGE_TICK.as_nanos() as u64) as u32
}

fn seconds(now: Instant) -> u32 {
    (now.millis() / 1000) as u32
}
