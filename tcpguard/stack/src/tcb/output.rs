//! What a connection sends: one segment at a time, chosen in a fixed order — repairs, probes, new data, bare
//! acknowledgements.

use tcpguard_common::packet::{Flags, Options, SackBlocks};
use tcpguard_common::seq::Seq;

use super::frto::Frto;
use super::{AckOwed, Config, Ecn, Fin, Instant, OwedReset, Recovery, Shared, State, Tcb, segment_limit};
use crate::scoreboard::InFlight;
use crate::wire::Outgoing;

/// A segment about to be written.
#[derive(Clone, Copy, Debug)]
enum Plan {
    /// Our first SYN.
    Syn,
    /// A segment that was sent before.
    Again(InFlight),
    /// Data never sent before, and our FIN if it fits behind it.
    Fresh { len: u32, fin: bool },
    /// An acknowledgement below SND.UNA, which the peer must answer with its window.
    WindowProbe,
    /// The same, to hear whether there is a peer (RFC 1122 §4.2.3.6).
    Keepalive,
    /// A bare acknowledgement.
    Ack,
}

impl Tcb {
    /// Whether [`Self::poll_transmit`] would write something.
    pub(crate) fn has_output(&self, config: &Config) -> bool {
        self.plan(config).is_some()
    }

    /// Writes the next segment, if there is one.
    pub(crate) fn poll_transmit(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        frame: &mut [u8],
    ) -> Option<usize> {
        self.restart_after_idle(now, shared.config_of(self.service()));
        let plan = self.plan(&shared.config)?;
        let len = match plan {
            Plan::Syn => self.write_syn(now, shared, frame),
            Plan::Again(segment) if segment.has(Flags::SYN) => {
                self.write_syn_again(segment, now, shared, frame)
            }
            Plan::Again(segment) => self.write_again(segment, now, shared, frame),
            Plan::Fresh { len, fin } => self.write_fresh(len, fin, now, shared, frame),
            Plan::WindowProbe => {
                shared.counters.window_probes += 1;
                self.write(self.snd_una - 1, Flags::ACK, 0, 0, now, shared, frame)
            }
            Plan::Keepalive => {
                shared.counters.keepalive_probes += 1;
                self.write(self.snd_una - 1, Flags::ACK, 0, 0, now, shared, frame)
            }
            Plan::Ack => self.write(self.snd_nxt, Flags::ACK, 0, 0, now, shared, frame),
        }?;
        self.after_sending(plan, now, shared.config_of(self.service()));
        Some(len)
    }

    /// The acknowledgement of the peer's FIN, for a connection that is about to become a TIME_WAIT entry.
    pub(crate) fn last_ack(&mut self, now: Instant, config: &Config) -> Option<Outgoing> {
        if self.ack_owed == AckOwed::No {
            return None;
        }
        self.ack_owed = AckOwed::No;
        let options = self.options(now, 0);
        Some(Outgoing {
            seq: self.snd_nxt,
            ack: self.rcv_nxt,
            flags: Flags::ACK | self.ecn.echo(),
            window: self.advertise(self.recv_growth.limit(config.recv_buffer)),
            options,
        })
    }

    /// The reset that ends the connection, if it owes one. It has timestamps, too, where they are in use (RFC 7323 §3.2).
    pub(crate) fn reset(&self, now: Instant) -> Option<Outgoing> {
        let (seq, ack, flags) = match self.owed_reset {
            OwedReset::No => return None,
            OwedReset::Behind => (self.snd_nxt, self.rcv_nxt, Flags::RST | Flags::ACK),
            OwedReset::Answer => (self.snd_una, Seq(0), Flags::RST),
        };
        Some(Outgoing { seq, ack, flags, window: 0, options: self.options(now, 0) })
    }

    fn plan(&self, config: &Config) -> Option<Plan> {
        match self.state {
            State::TimeWait | State::Closed => return None,
            State::SynSent | State::SynReceived if self.snd_nxt == self.iss => return Some(Plan::Syn),
            _ => {}
        }
        if let Some(lost) = self.lost_to_repeat().filter(|_| !self.goes_forward()) {
            if self.may_repeat(&lost) {
                return Some(Plan::Again(lost));
            }
            // Repairs go first: new data waits for them.
            return self.owed_ack();
        }
        if self.work.probe {
            let (board, new) = (&self.transfer.as_ref()?.scoreboard, self.fresh(config, true));
            match (new, board.last()) {
                (Some((len, fin)), _) => return Some(Plan::Fresh { len, fin }),
                (None, Some(last)) => return Some(Plan::Again(last)),
                (None, None) => {}
            }
        }
        if let Some((len, fin)) = self.fresh(config, false) {
            return Some(Plan::Fresh { len, fin });
        }
        if self.work.persist {
            return Some(Plan::WindowProbe);
        }
        if self.work.keepalive {
            return Some(Plan::Keepalive);
        }
        self.owed_ack()
    }

    fn owed_ack(&self) -> Option<Plan> {
        matches!(self.ack_owed, AckOwed::Now(_)).then_some(Plan::Ack)
    }

    fn lost_to_repeat(&self) -> Option<InFlight> {
        self.transfer.as_ref()?.scoreboard.next_lost()
    }

    /// The first repair after a loss was noticed goes out at once (RFC 6675 §5, step 4.3).
    fn may_repeat(&self, lost: &InFlight) -> bool {
        let pipe = self.pipe();
        let room = pipe == 0 || pipe + lost.len <= self.congestion.window();
        self.work.force || (room && self.work.frto != Frto::Repeat)
    }

    pub(super) fn pipe(&self) -> u32 {
        let flight = self.flight();
        self.transfer.as_ref().map_or(0, |transfer| transfer.scoreboard.pipe(flight, self.mss.into()))
    }

    /// New data that may leave now, and whether our FIN goes with it. `probing` disregards the congestion
    /// window.
    pub(super) fn fresh(&self, config: &Config, probing: bool) -> Option<(u32, bool)> {
        self.fresh_beyond(0, config, probing)
    }

    /// The same, once `ahead` bytes of it have left.
    fn fresh_beyond(&self, ahead: u32, config: &Config, probing: bool) -> Option<(u32, bool)> {
        let may_send = self.state.synchronized() && matches!(self.fin, Fin::Open | Fin::Queued);
        let unsent = self.unsent() - ahead;
        let wants_fin = self.fin == Fin::Queued;
        if !may_send || (unsent == 0 && !wants_fin) {
            return None;
        }
        if self.transfer.as_ref().is_some_and(|transfer| transfer.scoreboard.is_full()) {
            return None;
        }
        let (edge, next) = (self.snd_una + self.snd_wnd, self.snd_nxt + ahead);
        let window = if edge.after(next) { edge.distance(next) } else { 0 };
        let full = self.data_limit(config, self.sack_count());
        let len = unsent.min(window).min(full);
        let fin = wants_fin && len == unsent && window > len;
        if len == 0 && !fin {
            return None;
        }
        let pipe = self.pipe() + ahead;
        let uncongested = probing || pipe == 0 || pipe + len <= self.congestion.window();
        let idle = self.snd_una == next;
        let worth = fin || self.worth_sending(len, full, len == unsent, idle, config);
        (uncongested && worth).then_some((len, fin))
    }

    /// Sender silly-window avoidance (RFC 9293 §3.8.6.2.1) and Nagle (§3.7.4).
    fn worth_sending(&self, len: u32, full: u32, all: bool, idle: bool, config: &Config) -> bool {
        if len == full || self.work.persist {
            return true;
        }
        (all && (idle || !config.nagle)) || len >= self.max_snd_wnd / 2
    }

    /// RFC 5681 §4.1.
    fn restart_after_idle(&mut self, now: Instant, config: &Config) {
        if self.snd_una == self.snd_nxt && self.rested(now) > self.rtt.timeout(config) {
            self.congestion.on_idle(self.mss.into());
        }
    }

    fn write_syn(&mut self, now: Instant, shared: &mut Shared, frame: &mut [u8]) -> Option<usize> {
        let len = self.syn(now, &shared.config).write(&self.key, self.link, frame, 0, |_| {})?;
        let iss = self.iss;
        self.transfer(shared).scoreboard.sent(iss, 1, Flags::SYN, now);
        self.snd_nxt = iss + 1;
        (self.work.rto_base, self.work.unacked_since) = (now, now);
        Some(len)
    }

    fn write_syn_again(
        &mut self,
        segment: InFlight,
        now: Instant,
        shared: &mut Shared,
        frame: &mut [u8],
    ) -> Option<usize> {
        let len = self.syn(now, &shared.config).write(&self.key, self.link, frame, 0, |_| {})?;
        self.transfer(shared).scoreboard.retransmitted(segment.seq, 1, now);
        shared.counters.retransmitted += 1;
        Some(len)
    }

    fn syn(&self, now: Instant, config: &Config) -> Outgoing {
        let answering = self.state == State::SynReceived;
        let options = Options {
            mss: Some(segment_limit(&self.key, config)),
            window_scale: (!answering || self.rcv_shift > 0).then_some(self.rcv_shift),
            sack_permitted: self.sack_permitted,
            timestamps: self.timestamps.then(|| (self.ts_now(now), self.ts_recent)),
            sack: SackBlocks::default(),
        };
        // A SYN that was lost may have been lost for it (RFC 3168 §6.1.1.1).
        let offer = config.ecn && self.work.retries == 0;
        let ecn = if offer { Flags::ECE | Flags::CWR } else { Flags(0) };
        let (ack, flags) =
            if answering { (self.rcv_nxt, Flags::SYN | Flags::ACK) } else { (Seq(0), Flags::SYN | ecn) };
        Outgoing { seq: self.iss, ack, flags, window: self.syn_window(config) as u16, options }
    }

    /// The window of our SYN, which is not scaled.
    pub(super) fn syn_window(&self, config: &Config) -> u32 {
        config.recv_buffer.clamp(1, u16::MAX.into())
    }

    fn write_again(
        &mut self,
        segment: InFlight,
        now: Instant,
        shared: &mut Shared,
        frame: &mut [u8],
    ) -> Option<usize> {
        let data = segment.data();
        let len = data.min(self.data_limit(&shared.config, 0));
        let fin = segment.has(Flags::FIN) && len == data;
        let offset = segment.seq.distance(self.snd_una);
        let push = if segment.has(Flags::PSH) && len == data { Flags::PSH } else { Flags(0) };
        let flags = Flags::ACK | push | if fin { Flags::FIN } else { Flags(0) };
        let written = self.write(segment.seq, flags, offset, len, now, shared, frame)?;
        let scoreboard = &mut self.transfer(shared).scoreboard;
        scoreboard.retransmitted(segment.seq, len + u32::from(fin), now);
        if !self.work.probe {
            self.note_repeat(len + u32::from(fin), self.ts_now(now));
        }
        self.note_repair(len);
        shared.counters.retransmitted += 1;
        Some(written)
    }

    fn write_fresh(
        &mut self,
        len: u32,
        fin: bool,
        now: Instant,
        shared: &mut Shared,
        frame: &mut [u8],
    ) -> Option<usize> {
        self.work.prepare(&mut shared.spare_work);
        let push = if len > 0 && len == self.unsent() { Flags::PSH } else { Flags(0) };
        let marks = push | if fin { Flags::FIN } else { Flags(0) };
        let row_ends = if self.ends_row(len, &shared.config) { Flags::PSH } else { Flags(0) };
        let flags = Flags::ACK | marks | row_ends;
        let (seq, offset) = (self.snd_nxt, self.flight());
        let written = self.write(seq, flags, offset, len, now, shared, frame)?;
        let taken = len + u32::from(fin);
        if self.flight() == 0 {
            (self.work.rto_base, self.work.unacked_since) = (now, now);
        }
        self.transfer(shared).scoreboard.sent(seq, taken, marks, now);
        self.snd_nxt += taken;
        if fin {
            self.fin = Fin::Sent;
        }
        let flight = self.flight();
        if flight > self.work.used.0 || self.snd_una.at_or_after(self.work.used.1) {
            self.work.used = (flight, self.snd_nxt);
        }
        self.note_repair(len);
        Some(written)
    }

    /// Whether `len` bytes of new data are to be marked with PSH: where all that is queued ends, and where a row of segments does,
    /// behind which no more may leave for now or which is long enough. Such a row is one large packet to Linux, whose end it
    /// pushes, so that a receiver that merges segments hands them on.
    fn ends_row(&mut self, len: u32, config: &Config) -> bool {
        if len == 0 {
            return false;
        }
        let longest = self.longest_row();
        let row = self.work.row + 1;
        let is_over = len == self.unsent() || self.fresh_beyond(len, config, false).is_none();
        let ends = is_over || u32::from(row) >= longest;
        self.work.row = if ends { 0 } else { row };
        len == self.unsent() || (ends && row > 1)
    }

    /// Segments in a row: what twice the window in a round trip is in a millisecond, two at least, half the window at most.
    fn longest_row(&self) -> u32 {
        let window = self.congestion.window() / u32::from(self.mss);
        let round_trip = self.rtt.smoothed().map_or(1, |smoothed| smoothed.as_millis().max(1) as u32);
        (2 * window / round_trip).max(2).min(window / 2).min(u8::MAX.into())
    }

    /// Bytes left, perhaps while losses are repaired.
    fn note_repair(&mut self, len: u32) {
        if self.work.recovery == Recovery::Fast {
            self.work.reduction.sent(len);
        }
    }

    /// Writes a segment with `len` bytes from `offset` of the send buffer.
    #[expect(clippy::too_many_arguments, reason = "the fields of one segment and where it goes")]
    fn write(
        &mut self,
        seq: Seq,
        flags: Flags,
        offset: u32,
        len: u32,
        now: Instant,
        shared: &mut Shared,
        frame: &mut [u8],
    ) -> Option<usize> {
        let sacks = self.sacks_beside(len, &shared.config);
        let window = self.advertise(self.recv_limit(shared));
        let options = self.options(now, sacks);
        // New data alone may be marked (RFC 3168 §6.1.4, §6.1.5).
        let markable = self.ecn.is_capable() && len > 0 && seq == self.snd_nxt;
        let (ecn, reduced) = if markable { (Ecn::TRANSPORT, self.ecn.take_reduced()) } else { (0, Flags(0)) };
        let flags = flags | self.ecn.echo() | reduced;
        let outgoing = Outgoing { seq, ack: self.rcv_nxt, flags, window, options };
        let send = self.transfer.as_ref().map(|transfer| &transfer.send);
        let written = outgoing.write_marked(&self.key, self.link, ecn, frame, len as usize, |data| {
            if let Some(send) = send.filter(|_| !data.is_empty()) {
                send.copy_out(offset as usize, data);
            }
        })?;
        self.acknowledged();
        Some(written)
    }

    /// The segment just written carries the acknowledgement that was owed.
    fn acknowledged(&mut self) {
        self.ack_owed = match self.ack_owed {
            AckOwed::Now(count) if count > 1 => AckOwed::Now(count - 1),
            _ => AckOwed::No,
        };
        self.last_ack_sent = self.rcv_nxt;
        if self.work.ack_at.is_set() || self.work.dsack.is_some() {
            (self.work.ack_at, self.work.dsack) = (Instant::NEVER, None);
        }
    }

    fn after_sending(&mut self, plan: Plan, now: Instant, config: &Config) {
        match plan {
            Plan::Ack => return,
            Plan::WindowProbe => self.work.persist = false,
            Plan::Keepalive => {
                self.work.keepalive = false;
                return;
            }
            Plan::Syn => {}
            Plan::Again(_) => {
                if self.work.probe {
                    self.work.probe_repeated = true;
                } else if self.work.recovery == Recovery::Timeout && self.work.force {
                    self.work.rto_base = now;
                }
                (self.work.force, self.work.probe) = (false, false);
            }
            Plan::Fresh { .. } => {
                self.work.probe_base = now;
                if self.work.probe {
                    self.work.probe_repeated = false;
                    self.work.probed = Some(self.snd_nxt);
                }
                (self.work.probe, self.work.persist, self.work.keepalive) = (false, false, false);
            }
        }
        self.rests_since = now.millis() as u32;
        self.arm_retransmit(now, config);
    }

    fn options(&self, now: Instant, sacks: usize) -> Options {
        let timestamps = self.timestamps.then(|| (self.ts_now(now), self.ts_recent));
        let mut sack = SackBlocks::default();
        let mut room = sacks;
        if let Some((left, right)) = self.work.dsack.filter(|_| room > 0) {
            sack.push(left, right);
            room -= 1;
        }
        if let Some(transfer) = self.transfer.as_ref().filter(|_| room > 0) {
            let mut blocks = [(Seq(0), Seq(0)); 4];
            let count = transfer.recv.sack_blocks(&mut blocks[..room]);
            blocks[..count].iter().for_each(|&(left, right)| sack.push(left, right));
        }
        Options { timestamps, sack, ..Options::default() }
    }

    /// How many SACK blocks there are to send, as far as an acknowledgement has room: four, or three beside
    /// timestamps (RFC 2018 §3).
    fn sack_count(&self) -> usize {
        if !self.sack_permitted {
            return 0;
        }
        let islands = self.transfer.as_ref().map_or(0, |transfer| transfer.recv.island_count());
        (islands + usize::from(self.work.dsack.is_some())).min(if self.timestamps { 3 } else { 4 })
    }

    /// How many SACK blocks fit beside `len` bytes of data.
    fn sacks_beside(&self, len: u32, config: &Config) -> usize {
        let spare = self.data_limit(config, 0).saturating_sub(len) as usize;
        self.sack_count().min(spare.saturating_sub(4) / 8)
    }

    /// Most bytes of data in a segment with so many SACK blocks.
    pub(super) fn data_limit(&self, config: &Config, sacks: usize) -> u32 {
        let mss = u32::from(self.mss.min(segment_limit(&self.key, config)));
        let timestamps = if self.timestamps { 12 } else { 0 };
        let sack = if sacks > 0 { 4 + 8 * sacks as u32 } else { 0 };
        mss.saturating_sub(timestamps + sack).max(1)
    }

    /// The window field, after moving the right edge if that is worth it (receiver silly-window avoidance,
    /// RFC 9293 §3.8.6.2.2). The edge never moves back. What scaling would cut off is rounded up, so that the
    /// peer does not see it move back either, unless the buffer is so full that this would never end.
    fn advertise(&mut self, limit: u32) -> u16 {
        let edge = self.possible_edge(limit);
        let threshold = (limit / 2).min(self.mss.into());
        if edge.after(self.rcv_adv) && edge.distance(self.rcv_adv) >= threshold {
            self.rcv_adv = edge;
        }
        let open = self.rcv_adv.max(self.rcv_nxt).distance(self.rcv_nxt);
        let unit = 1u32 << self.rcv_shift;
        let field = open.div_ceil(unit).min(u16::MAX.into());
        let rounded = self.rcv_nxt + (field << self.rcv_shift);
        if rounded.at_or_before(edge + unit) || open.is_multiple_of(unit) {
            self.rcv_adv = self.rcv_adv.max(rounded);
            field as u16
        } else {
            (open >> self.rcv_shift) as u16
        }
    }

    /// How far the right edge could be when the connection may hold `limit` bytes.
    fn possible_edge(&self, limit: u32) -> Seq {
        let unread = self.transfer.as_ref().map_or(0, |transfer| transfer.recv.ready() as u32);
        let most = u32::from(u16::MAX) << self.rcv_shift;
        self.rcv_nxt + limit.saturating_sub(unread).min(most)
    }

    /// The application has read: the peer must hear of it when the window had become small and is not any more.
    pub(super) fn window_opened(&mut self, limit: u32) {
        if !matches!(self.state, State::Established | State::FinWait1 | State::FinWait2) {
            return;
        }
        let edge = self.possible_edge(limit);
        let gain = if edge.after(self.rcv_adv) { edge.distance(self.rcv_adv) } else { 0 };
        let worth = (limit / 4).max(u32::from(self.mss)).min(limit / 2);
        if gain >= worth {
            self.owe_one_ack();
        }
    }
}
