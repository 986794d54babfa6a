//! A segment arrives at a connection: RFC 9293 §3.10.7.3 (SYN_SENT) and §3.10.7.4 (all later states), with the
//! tests of RFC 5961 and RFC 7323. What an acknowledgement means for sending is next door in `ack`.

use tcpguard_common::packet::{Family, Flags};
use tcpguard_common::seq::Seq;

use super::{
    AckOwed, Error, Event, Fin, Incoming, Instant, OwedReset, Shared, State, Tcb, seconds, segment_limit,
};
use crate::recv::Placed;
use crate::recv_growth::Received;

/// What the connection made of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was dealt with.
    Done,
    /// It fits nothing here: the caller looks for a valid cookie in it, and else has it challenged.
    Unacceptable,
    /// The peer answered with something that deserves `<SEQ=SEG.ACK><CTL=RST>`.
    Reset,
}

/// RFC 7323 §5.5: a timestamp this old, in seconds, no longer proves anything. 24 days.
const TS_RECENT_EXPIRES: u32 = 24 * 86_400;

impl Tcb {
    /// Processes a segment whose flow this is.
    pub(crate) fn handle(&mut self, segment: &Incoming<'_>, now: Instant, shared: &mut Shared) -> Verdict {
        match self.state {
            State::SynSent => self.handle_in_syn_sent(segment, now, shared),
            State::SynReceived
            | State::Established
            | State::FinWait1
            | State::FinWait2
            | State::CloseWait
            | State::Closing
            | State::LastAck => self.handle_synchronized(*segment, now, shared),
            State::TimeWait | State::Closed => Verdict::Done,
        }
    }

    /// Owes the peer an acknowledgement for a suspicious segment, unless there were too many.
    fn challenge(&mut self, now: Instant, shared: &mut Shared) {
        if self.may_challenge(now, shared) {
            self.owe_challenge(shared);
        }
    }

    /// Owes the peer an acknowledgement for a suspicious segment.
    pub(crate) fn owe_challenge(&mut self, shared: &mut Shared) {
        shared.counters.challenge_acks += 1;
        self.owe_ack_now();
    }

    /// Whether one more suspicious segment is looked into, and answered: a few a second at most (RFC 5961 §7). The rest
    /// might as well have been lost; a genuine peer sends again.
    pub(crate) fn may_challenge(&mut self, now: Instant, shared: &mut Shared) -> bool {
        const PER_SECOND: u8 = 10;
        let second = seconds(now) as u8;
        if self.challenges.1 != second {
            self.challenges = (0, second);
        }
        if self.challenges.0 >= PER_SECOND {
            shared.counters.challenge_acks_throttled += 1;
            return false;
        }
        self.challenges.0 += 1;
        true
    }

    fn handle_synchronized(
        &mut self,
        mut segment: Incoming<'_>,
        now: Instant,
        shared: &mut Shared,
    ) -> Verdict {
        if segment.has(Flags::RST) {
            self.handle_reset(&segment, now, shared);
            return Verdict::Done;
        }
        if self.state == State::SynReceived && segment.has(Flags::SYN | Flags::ACK) && segment.seq == self.irs
        {
            // Simultaneous open (RFC 9293 §3.5, figure 8): the SYN is a duplicate, its acknowledgement is not.
            segment.seq += 1;
            segment.flags.0 &= !Flags::SYN.0;
            // Its window is not scaled (RFC 7323 §2.2).
            segment.window >>= self.snd_shift;
        }
        if !self.timestamp_acceptable(&segment, now) {
            shared.counters.paws_dropped += 1;
            return Verdict::Unacceptable;
        }
        if !self.sequence_acceptable(&segment) {
            return self.handle_out_of_window(&segment, shared);
        }
        // RFC 5961 §4.2: whatever its sequence number.
        if segment.has(Flags::SYN) {
            return Verdict::Unacceptable;
        }
        if !segment.has(Flags::ACK) {
            return Verdict::Done;
        }
        if self.state == State::SynReceived {
            if !(segment.ack.after(self.snd_una) && segment.ack.at_or_before(self.snd_nxt)) {
                return Verdict::Reset;
            }
            self.established(&segment, now, shared);
        }
        if !self.ack_acceptable(segment.ack) {
            return Verdict::Unacceptable;
        }
        self.hear(now);
        let is_bare = segment.len() == 0;
        // Before it is cut: a segment that begins with what we have acknowledged may end with what we have not.
        self.take_timestamp(&segment, now);
        self.take_mark(&segment, shared);
        self.trim(&mut segment);
        self.handle_ack(&segment, is_bare, now, shared);
        if matches!(self.state, State::TimeWait | State::Closed) {
            return Verdict::Done;
        }
        if !is_bare && segment.len() == 0 {
            // Nothing of it fits: a probe of our closed window must be answered with it (RFC 9293 §3.8.6.1).
            self.owe_ack_now();
        }
        self.handle_data(&segment, now, shared);
        Verdict::Done
    }

    /// Whether the data of a segment will be taken in, if there is room for it.
    pub(crate) fn expects(&self, segment: &Incoming<'_>, now: Instant) -> bool {
        matches!(self.state, State::Established | State::FinWait1 | State::FinWait2)
            && !self.orphan
            && segment.has(Flags::ACK)
            && !segment.flags.intersects(Flags::SYN | Flags::RST)
            && self.timestamp_acceptable(segment, now)
            && self.sequence_acceptable(segment)
            && self.ack_acceptable(segment.ack)
    }

    /// The peer is there.
    fn hear(&mut self, now: Instant) {
        self.heard_at = seconds(now) as u16;
        if self.work.keepalives > 0 {
            (self.work.keepalives, self.work.keepalive, self.work.keepalive_at) = (0, false, Instant::NEVER);
        }
    }

    /// RFC 9293 §3.10.7.3.
    fn handle_in_syn_sent(&mut self, segment: &Incoming<'_>, now: Instant, shared: &mut Shared) -> Verdict {
        let acks_syn = segment.has(Flags::ACK) && segment.ack == self.iss + 1 && self.snd_nxt == self.iss + 1;
        if segment.has(Flags::ACK) && !acks_syn {
            return if segment.has(Flags::RST) { Verdict::Done } else { Verdict::Reset };
        }
        if segment.has(Flags::RST) {
            if acks_syn {
                shared.counters.resets_in += 1;
                self.fail(Error::Refused, false, shared);
            }
            return Verdict::Done;
        }
        if !segment.has(Flags::SYN) {
            return Verdict::Done;
        }
        self.take_syn(segment, now, shared);
        if acks_syn {
            self.established(segment, now, shared);
            // Data on a SYN-ACK is not taken; the peer repeats it. The acknowledgement leaves at once.
            self.arm_retransmit(now, shared.config_of(self.service()));
            self.release_idle(shared);
            self.owe_ack_now();
        } else {
            // Simultaneous open: our SYN leaves again, now with an acknowledgement.
            self.state = State::SynReceived;
            if let Some(transfer) = &mut self.transfer {
                transfer.scoreboard.mark_all_lost();
            }
            self.work.force = true;
        }
        Verdict::Done
    }

    /// What the peer's SYN says about the connection (active open).
    fn take_syn(&mut self, segment: &Incoming<'_>, now: Instant, shared: &Shared) {
        self.irs = segment.seq;
        self.rcv_nxt = segment.seq + 1;
        (self.rcv_adv, self.last_ack_sent) = (self.rcv_nxt + self.syn_window(&shared.config), self.rcv_nxt);
        let default_mss = match self.key {
            tcpguard_common::flow::AnyFlowKey::V4(_) => tcpguard_common::flow::V4::DEFAULT_MSS,
            tcpguard_common::flow::AnyFlowKey::V6(_) => tcpguard_common::flow::V6::DEFAULT_MSS,
        };
        const SMALLEST: u16 = 64;
        let offered = segment.options.mss.unwrap_or(default_mss).max(SMALLEST);
        self.mss = offered.min(segment_limit(&self.key, &shared.config));
        self.congestion = super::Congestion::new(self.mss.into());
        match segment.options.window_scale {
            Some(shift) => self.snd_shift = shift.min(14),
            None => (self.snd_shift, self.rcv_shift) = (0, 0),
        }
        self.agree_on_ecn(segment, shared);
        self.sack_permitted = segment.options.sack_permitted;
        // Both ends offer them, or there are none (RFC 7323 §3.2).
        self.timestamps &= segment.options.timestamps.is_some();
        if let Some((value, _)) = segment.options.timestamps.filter(|_| self.timestamps) {
            self.note_timestamp(value, now);
        }
        // Not scaled in a SYN (RFC 7323 §2.2).
        self.snd_wnd = segment.window.into();
        self.max_snd_wnd = self.snd_wnd;
        (self.snd_wl1, self.snd_wl2) = (segment.seq, segment.ack);
    }

    /// Our SYN is acknowledged.
    fn established(&mut self, segment: &Incoming<'_>, now: Instant, shared: &mut Shared) {
        let repeats = self.work.retries;
        if let Some(transfer) = &mut self.transfer {
            let progress = transfer.scoreboard.acknowledge(self.iss + 1, now);
            if let Some(rtt) = progress.rtt {
                self.rtt.sample(rtt);
            }
        }
        self.snd_una = self.iss + 1;
        if segment.has(Flags::SYN) {
            self.snd_wl1 = segment.seq;
        } else {
            self.update_send_window(segment.window, segment.seq, segment.ack);
        }
        self.state = if self.fin == Fin::Queued { State::FinWait1 } else { State::Established };
        self.rtt.backoff = 0;
        self.work.reset();
        self.work.rto_base = now;
        self.heed_repeats(repeats);
        shared.events.push_back(Event::Connected(self.id));
    }

    /// RFC 5961 §3.2: only a reset at exactly RCV.NXT ends the connection; one elsewhere in the window is
    /// challenged, because a genuine peer then repeats it at the right place.
    fn handle_reset(&mut self, segment: &Incoming<'_>, now: Instant, shared: &mut Shared) {
        let window = self.rcv_adv.distance(self.rcv_nxt);
        if segment.seq == self.rcv_nxt {
            shared.counters.resets_in += 1;
            match self.state {
                State::SynReceived => self.fail(Error::Refused, false, shared),
                _ => self.fail(Error::Reset, false, shared),
            }
            self.tell_readable(shared);
        } else if self.rcv_adv.after(self.rcv_nxt) && segment.seq.within(self.rcv_nxt, window) {
            self.challenge(now, shared);
        } else {
            shared.counters.out_of_window += 1;
        }
    }

    /// RFC 7323 §5.3, R1, and §3.2: on a connection with timestamps every segment has one.
    fn timestamp_acceptable(&self, segment: &Incoming<'_>, now: Instant) -> bool {
        if !self.timestamps {
            return true;
        }
        let Some((value, _)) = segment.options.timestamps else { return false };
        !self.timestamp_is_old(value, now) || self.is_overtaken_ack(segment, value)
    }

    fn timestamp_is_old(&self, value: u32, now: Instant) -> bool {
        let earlier = (value.wrapping_sub(self.ts_recent) as i32) < 0;
        earlier && seconds(now).wrapping_sub(self.ts_recent_at) <= TS_RECENT_EXPIRES
    }

    /// A bare acknowledgement that a later one overtook on the way, as Linux tolerates it: it has no sequence
    /// number of its own that PAWS could protect.
    fn is_overtaken_ack(&self, segment: &Incoming<'_>, value: u32) -> bool {
        const TOLERANCE: u32 = 250;
        segment.len() == 0 && segment.seq == self.rcv_nxt && self.ts_recent.wrapping_sub(value) <= TOLERANCE
    }

    /// RFC 9293 §3.10.7.4, first check: any part of the segment lies in the window. Two tolerances: a bare
    /// acknowledgement at the right edge counts (its sender has filled the window), and so does anything at
    /// RCV.NXT while the window is closed, for what it acknowledges.
    fn sequence_acceptable(&self, segment: &Incoming<'_>) -> bool {
        let (start, end) = (segment.seq, segment.end());
        let edge = self.rcv_adv.max(self.rcv_nxt);
        if segment.len() == 0 {
            return start.at_or_after(self.rcv_nxt) && start.at_or_before(edge);
        }
        if start == self.rcv_nxt {
            return true;
        }
        start.before(edge) && end.after(self.rcv_nxt) && end.distance(start) < 1 << 30
    }

    fn handle_out_of_window(&mut self, segment: &Incoming<'_>, shared: &mut Shared) -> Verdict {
        shared.counters.out_of_window += 1;
        let old_data = !segment.data.is_empty() && segment.end().at_or_before(self.rcv_nxt);
        let recent = self.rcv_nxt.distance(segment.seq) <= 1 << 20;
        if old_data && recent && segment.has(Flags::ACK) && self.ack_acceptable(segment.ack) {
            // Our acknowledgement got lost. Not throttled: it is what stops the retransmissions.
            self.work.dsack = Some((segment.seq, segment.seq + segment.data.len() as u32));
            self.owe_ack_now();
            return Verdict::Done;
        }
        Verdict::Unacceptable
    }

    /// RFC 5961 §5.2: neither beyond what we sent nor older than a window.
    fn ack_acceptable(&self, ack: Seq) -> bool {
        ack.at_or_before(self.snd_nxt) && ack.at_or_after(self.snd_una - self.max_snd_wnd)
    }

    /// Cuts off what lies before RCV.NXT and beyond the window.
    fn trim(&self, segment: &mut Incoming<'_>) {
        if segment.seq.before(self.rcv_nxt) {
            let old = self.rcv_nxt.distance(segment.seq) as usize;
            segment.data = segment.data.get(old..).unwrap_or_default();
            segment.seq = self.rcv_nxt;
        }
        let room = self.rcv_adv.max(self.rcv_nxt).distance(segment.seq) as usize;
        if segment.data.len() > room {
            segment.data = &segment.data[..room];
            segment.flags.0 &= !Flags::FIN.0;
        }
    }

    /// RFC 7323 §4.3: only a segment that reaches back to what we acknowledged last updates the echo, so that
    /// the peer measures the round trip of the segment that made us acknowledge.
    fn take_timestamp(&mut self, segment: &Incoming<'_>, now: Instant) {
        if let Some((value, _)) = segment.options.timestamps.filter(|_| self.timestamps)
            && segment.seq.at_or_before(self.last_ack_sent)
            && !self.timestamp_is_old(value, now)
        {
            self.note_timestamp(value, now);
        }
    }

    /// RFC 9293 §3.10.7.4, seventh and eighth check. Urgent data is data (RFC 6093 §6).
    fn handle_data(&mut self, segment: &Incoming<'_>, now: Instant, shared: &mut Shared) {
        let receiving = matches!(self.state, State::Established | State::FinWait1 | State::FinWait2);
        let has_fin = segment.has(Flags::FIN);
        if !receiving || (segment.data.is_empty() && !has_fin) {
            if !receiving && segment.len() > 0 {
                self.owe_ack_now();
            }
            return;
        }
        if self.orphan && !segment.data.is_empty() {
            // Nobody will read it: RFC 1122 §4.2.2.13.
            self.fail(Error::Aborted, true, shared);
            self.owed_reset = OwedReset::Answer;
            return;
        }
        self.work.prepare(&mut shared.spare_work);
        let fin_at = segment.seq + segment.data.len() as u32;
        let mut data = segment.data;
        match self.work.peer_fin {
            None if has_fin => self.work.peer_fin = Some(fin_at),
            None => {}
            // Bytes beyond the end the peer has announced do not exist.
            Some(end) if fin_at.after(end) => {
                data = data.get(..end.max(segment.seq).distance(segment.seq) as usize).unwrap_or_default();
            }
            Some(_) => {}
        }
        if !data.is_empty() {
            self.place(segment.seq, data, now, shared);
        } else if segment.seq != self.rcv_nxt {
            self.owe_ack_now();
        }
        if self.work.peer_fin == Some(self.rcv_nxt) {
            self.take_fin(shared);
        }
    }

    fn place(&mut self, seq: Seq, data: &[u8], now: Instant, shared: &mut Shared) {
        self.rcv_mss = self.rcv_mss.max(data.len().min(self.mss.into()) as u16);
        let rcv_nxt = self.rcv_nxt;
        let spare = || shared.spare_transfers.take().unwrap_or_default();
        let mut transfer = self.transfer.take().unwrap_or_else(spare);
        let mut placed = transfer.recv.place(rcv_nxt, seq, data, &mut shared.recv_pool);
        if placed == Placed::NoRoom && seq == rcv_nxt && transfer.recv.has_islands() {
            // What waits behind a hole makes room for what fills it.
            transfer.recv.discard_islands(&mut shared.recv_pool);
            placed = transfer.recv.place(rcv_nxt, seq, data, &mut shared.recv_pool);
        }
        if transfer.recv.ready() > 0 {
            transfer.unread.begin(now);
        }
        let holes = transfer.recv.has_islands();
        self.transfer = Some(transfer);
        match placed {
            Placed::InOrder(moved) => {
                self.rcv_nxt += moved;
                self.bytes_in += u64::from(moved);
                self.tell_readable(shared);
                self.grow_window(now, shared);
                let filled_hole = moved as usize > data.len() || holes;
                self.owe_ack_for_data(filled_hole, now, shared);
            }
            Placed::OutOfOrder => {
                shared.counters.out_of_order += 1;
                self.owe_ack_now();
            }
            Placed::Duplicate => {
                self.work.dsack = Some((seq, seq + data.len() as u32));
                self.owe_ack_now();
            }
            Placed::NoRoom => {
                // Not acknowledged: the peer repeats it.
                shared.counters.no_buffer += 1;
                self.owe_ack_now();
                self.release_idle(shared);
            }
        }
    }

    /// Offers a faster peer more, if the application keeps up.
    fn grow_window(&mut self, now: Instant, shared: &Shared) {
        let received = Received {
            rcv_nxt: self.rcv_nxt,
            unread: self.transfer.as_ref().map_or(0, |transfer| transfer.recv.ready() as u32),
            rtt: self.rtt.smoothed(),
        };
        self.recv_growth.arrived(&received, shared.config.recv_buffer, now);
    }

    /// The peer's FIN is next in order.
    fn take_fin(&mut self, shared: &mut Shared) {
        self.rcv_nxt += 1;
        if self.work.peer_fin.is_some() {
            self.work.peer_fin = None;
        }
        self.owe_one_ack();
        self.tell_readable(shared);
        match self.state {
            State::Established => {
                shared.counters.close_wait_entered += 1;
                self.state = State::CloseWait;
            }
            State::FinWait1 => {
                shared.counters.closing_entered += 1;
                self.state = State::Closing;
            }
            State::FinWait2 => self.state = State::TimeWait,
            State::SynSent
            | State::SynReceived
            | State::CloseWait
            | State::Closing
            | State::LastAck
            | State::TimeWait
            | State::Closed => debug_assert!(false, "a second FIN in {}", self.state),
        }
    }

    /// An acknowledgement leaves with the next opportunity; duplicates add up for a peer that counts them.
    pub(super) fn owe_ack_now(&mut self) {
        const MOST: u8 = 8;
        self.ack_owed = match self.ack_owed {
            AckOwed::Now(count) if !self.sack_permitted => AckOwed::Now((count + 1).min(MOST)),
            AckOwed::Now(count) => AckOwed::Now(count),
            AckOwed::No | AckOwed::Later => AckOwed::Now(1),
        };
    }

    /// An acknowledgement leaves with the next opportunity, if none is owed anyway.
    pub(super) fn owe_one_ack(&mut self) {
        if !matches!(self.ack_owed, AckOwed::Now(_)) {
            self.ack_owed = AckOwed::Now(1);
        }
    }

    /// RFC 9293 §3.8.6.3: at least every second full segment, at once when a hole is involved.
    fn owe_ack_for_data(&mut self, hole: bool, now: Instant, shared: &Shared) {
        let waiting = self.rcv_nxt.distance(self.last_ack_sent);
        if hole || self.quick_acks > 0 || waiting >= 2 * u32::from(self.rcv_mss) {
            self.quick_acks = self.quick_acks.saturating_sub(1);
            self.owe_one_ack();
        } else if self.ack_owed == AckOwed::No {
            self.ack_owed = AckOwed::Later;
            self.work.ack_at = now + shared.config.delayed_ack;
        }
    }
}
