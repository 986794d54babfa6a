//! What an acknowledgement means: bytes that arrived, the peer's window, losses and their repair, our FIN.

use core::time::Duration;

use tcpguard_common::seq::Seq;

use super::{Config, Event, Fin, Incoming, Instant, Patience, Recovery, Retransmit, Shared, State, Tcb};
use crate::congestion::{Acked, Reduction};

impl Tcb {
    /// RFC 9293 §3.10.7.4, fifth check, for an acceptable SEG.ACK. `is_bare`: the segment had no length, before it
    /// was cut to the window.
    pub(super) fn handle_ack(
        &mut self,
        segment: &Incoming<'_>,
        is_bare: bool,
        now: Instant,
        shared: &mut Shared,
    ) {
        let flight = self.flight();
        let window_before = self.snd_wnd;
        if segment.ack.at_or_after(self.snd_una) && self.window_is_newer(segment) {
            self.update_send_window(segment.window, segment.seq, segment.ack);
        }
        let is_shut = flight == 0 || self.snd_wnd == 0;
        if !self.orphan && is_shut && self.work.retries > 0 {
            // The peer answers: a closed window alone does not end the connection, not even one that was closed over data
            // in flight (RFC 9293 §3.8.6.1).
            (self.work.retries, self.work.unacked_since) = (0, now);
        }
        let advanced = segment.ack.after(self.snd_una);
        let repeated = !advanced && segment.ack == self.snd_una && is_bare && self.snd_wnd == window_before;
        let duplicate = repeated && flight > 0;
        let sacked = self.sack_permitted && !segment.options.sack.as_slice().is_empty();
        if sacked {
            self.note_duplicates(segment, shared);
        }
        if advanced {
            self.heed_echoed_time(segment, shared);
            self.conclude_frto(shared);
        }
        let mut news = advanced;
        if advanced || duplicate || sacked {
            let delivered = self.account(segment, flight, now, shared);
            news |= delivered > 0;
            let lost = self.repair((advanced, duplicate, news), flight, now, shared);
            self.continue_frto(advanced, &shared.config);
            if self.work.recovery == Recovery::Fast && self.sack_permitted {
                let pipe = self.pipe();
                let told = (delivered, advanced && !lost);
                self.congestion.on_repair(&mut self.work.reduction, told, pipe, self.mss.into());
            }
        }
        if news && self.flight() > 0 {
            self.work.probe_base = now;
        }
        if self.work.probe && news {
            // The tail speaks for itself: the probe that is still to leave has nothing to ask (RFC 8985 §7.2).
            (self.work.probe, self.work.probed) = (false, None);
        }
        self.end_probe(segment, repeated, flight, &shared.config);
        self.heed_echo(segment, flight, shared);
        if advanced {
            self.after_progress(now, shared);
        }
        if self.work.retransmit == Retransmit::Persist && !self.blocked_by_window(&shared.config) {
            (self.rtt.backoff, self.work.persist) = (0, false);
        }
        self.arm_retransmit(now, shared.config_of(self.service()));
        if self.snd_una == self.snd_nxt {
            self.release_idle(shared);
        }
    }

    /// RFC 9293 §3.10.7.4: the segment is newer than the one the window came from.
    fn window_is_newer(&self, segment: &Incoming<'_>) -> bool {
        self.snd_wl1.before(segment.seq)
            || (self.snd_wl1 == segment.seq && self.snd_wl2.at_or_before(segment.ack))
    }

    /// Takes acknowledged bytes out of the buffer and the scoreboard, and grows the congestion window. How many bytes the
    /// peer turned out to have.
    fn account(&mut self, segment: &Incoming<'_>, flight: u32, now: Instant, shared: &mut Shared) -> u32 {
        let (una, ack) = (self.snd_una, segment.ack.max(self.snd_una));
        let Some(transfer) = &mut self.transfer else {
            debug_assert!(ack == una, "acknowledged without a scoreboard");
            return 0;
        };
        let cumulative = transfer.scoreboard.acknowledge(ack, now);
        let (mut rtt, mut delivered) = (cumulative.rtt, cumulative.delivered);
        let mut reordered = cumulative.reordered;
        if self.sack_permitted {
            let blocks = segment.options.sack.as_slice();
            let selective = transfer.scoreboard.selectively_acknowledge(blocks, (ack, self.snd_nxt), now);
            rtt = rtt.or(selective.rtt);
            delivered += selective.delivered;
            reordered |= selective.reordered;
        }
        if reordered {
            self.rtt.reordering.see();
        }
        let mut acked = ack.distance(una);
        if self.fin == Fin::Sent && ack == self.snd_nxt && acked > 0 {
            self.fin = Fin::Acked;
            acked -= 1;
        }
        transfer.send.advance(acked as usize, &mut shared.send_pool);
        if self.work.pace.is_set() {
            let waiting = self.outstanding();
            self.work.pace.progress(acked, waiting, now);
        }
        self.bytes_out += u64::from(acked);
        self.snd_una = ack;
        if ack.after(una) {
            rtt = rtt.or_else(|| self.echoed_round_trip(segment, now));
        }
        if let Some(rtt) = rtt {
            self.rtt.sample(rtt);
        }
        if self.work.recovery != Recovery::Fast && acked > 0 {
            let config = shared.config_of(self.service());
            let rtt = self.rtt.smoothed().unwrap_or(config.initial_rto);
            let used = flight.max(self.work.used.0);
            // What was known to have arrived before has counted.
            let acked = Acked { bytes: delivered.min(acked), used, mss: self.mss.into(), now, rtt };
            self.congestion.on_ack(&acked, self.work.cubic(config));
        }
        delivered
    }

    /// RFC 7323 §4.1: the echo tells which copy arrived, so that even repeated data gives a sample.
    fn echoed_round_trip(&self, segment: &Incoming<'_>, now: Instant) -> Option<Duration> {
        const LONGEST: u32 = 120_000;
        let (_, echo) = segment.options.timestamps.filter(|(_, echo)| self.timestamps && *echo != 0)?;
        let elapsed = self.ts_now(now).wrapping_sub(echo);
        // An echo from the future is nothing that we sent.
        (elapsed <= LONGEST).then(|| Duration::from_millis(elapsed.max(1).into()))
    }

    /// Judges losses and enters or leaves recovery; whether anything is newly lost. An acknowledgement without `news` shows nobody
    /// with SACK to be lost who was not before: what time shows is the timer's to see.
    fn repair(
        &mut self,
        (advanced, duplicate, news): (bool, bool, bool),
        flight: u32,
        now: Instant,
        shared: &mut Shared,
    ) -> bool {
        if self.work.recovery != Recovery::None && self.snd_una.at_or_after(self.work.recover) {
            if self.work.recovery == Recovery::Fast && self.sack_permitted {
                self.congestion.on_repaired();
            }
            self.work.recovery = Recovery::None;
            self.rtt.reordering.recovered();
        }
        let lost = if self.sack_permitted {
            news && self.detect_losses(now)
        } else {
            self.count_duplicates(advanced, duplicate)
        };
        if lost && self.work.recovery == Recovery::None {
            self.enter_recovery(flight, now, shared);
        }
        lost
    }

    /// RFC 8985 §6.2; whether anything is newly lost.
    pub(super) fn detect_losses(&mut self, now: Instant) -> bool {
        let patience = self.patience();
        let Some(transfer) = &mut self.transfer else { return false };
        let (lost, wait) = transfer.scoreboard.detect_losses(now, &patience);
        self.work.reorder_at = wait.unwrap_or(Instant::NEVER);
        lost
    }

    /// How long a hole is waited for now.
    pub(super) fn patience(&self) -> Patience {
        Patience {
            reordering: self.rtt.reordering,
            smoothed: self.rtt.smoothed(),
            recovering: self.work.recovery != Recovery::None,
        }
    }

    /// Loss as a peer without SACK shows it; whether that is new.
    fn count_duplicates(&mut self, advanced: bool, duplicate: bool) -> bool {
        let Some(transfer) = &mut self.transfer else { return false };
        let board = &mut transfer.scoreboard;
        if duplicate {
            let lost = board.duplicate_ack() && self.work.recovery == Recovery::None;
            if lost {
                board.mark_first_lost();
            }
            return lost;
        }
        if advanced && self.work.recovery == Recovery::Fast && !board.first_is_repaired() {
            // RFC 6582 §3.2: a partial acknowledgement shows the next hole. One of a part of what was repeated shows none:
            // a byte at a time, it would have that repeated for each byte.
            board.mark_first_lost();
            self.work.force = true;
        }
        false
    }

    /// RFC 8985 §6.2, step 4: data that came twice (RFC 2883) was taken for lost too soon, if the path reorders at all.
    /// A tail loss probe is no such judgement.
    fn note_duplicates(&mut self, segment: &Incoming<'_>, shared: &mut Shared) {
        let Some((left, right)) = reported_duplicate(segment) else { return };
        let of_probe = self.work.probe_repeated && self.work.probed == Some(right);
        let same_round = self.work.dsack_round.is_some_and(|end| segment.ack.before(end));
        if self.rtt.reordering.was_seen() && !of_probe && !same_round {
            self.rtt.reordering.widen();
            self.work.dsack_round = Some(self.snd_nxt);
        }
        if !of_probe {
            self.heed_duplicate((left, right), shared);
        }
    }

    /// RFC 5681 §3.2, RFC 6675 §5.
    pub(super) fn enter_recovery(&mut self, flight: u32, now: Instant, shared: &mut Shared) {
        self.remember_window(false, shared);
        self.work.recovery = Recovery::Fast;
        self.work.recover = self.snd_nxt;
        self.congestion.on_loss(flight, self.mss.into(), self.work.cubic(shared.config_of(self.service())));
        self.work.reduction = Reduction::of(flight);
        self.note_reduced();
        self.work.force = true;
        self.work.probed = None;
        self.work.rto_base = now;
        shared.counters.fast_recoveries += 1;
    }

    /// RFC 8985 §7.4.2: a tail loss probe that repaired a loss hid it from everything else; one that was reported
    /// as a duplicate (RFC 2883, or a bare repetition) repaired nothing. The acknowledgement of just what was
    /// probed may be the original's: only the next one tells.
    fn end_probe(&mut self, segment: &Incoming<'_>, repeated: bool, flight: u32, config: &Config) {
        let Some(probed) = self.work.probed.filter(|&probed| segment.ack.at_or_after(probed)) else { return };
        let blocks = segment.options.sack.as_slice();
        let reported = reported_duplicate(segment).is_some_and(|(_, right)| right == probed);
        let needless = !self.work.probe_repeated || reported || (repeated && blocks.is_empty());
        if needless {
            self.work.probed = None;
        } else if segment.ack.after(probed) {
            self.work.probed = None;
            if self.work.recovery == Recovery::None {
                self.congestion.on_loss(flight, self.mss.into(), self.work.cubic(config));
                self.forget_window();
                self.note_reduced();
            }
        }
    }

    /// SND.UNA moved on. A backed-off timeout stays until a round trip was measured (RFC 6298 §5.7, Karn): else a
    /// path slower than the timeout would have everything sent twice for ever.
    fn after_progress(&mut self, now: Instant, shared: &mut Shared) {
        (self.work.retries, self.work.rto_base, self.work.unacked_since) = (0, now, now);
        self.work.trouble = None;
        self.renew_undo();
        self.wake_writer(shared);
        if self.fin != Fin::Acked {
            return;
        }
        match self.state {
            State::FinWait1 => {
                shared.counters.fin_wait_2_entered += 1;
                self.state = State::FinWait2;
                self.start_linger(now);
            }
            State::Closing => self.state = State::TimeWait,
            State::LastAck => {
                shared.counters.last_ack_left += 1;
                self.state = State::Closed;
            }
            _ => {}
        }
        if !self.orphan {
            shared.events.push_back(Event::FinAcked(self.id));
        }
    }

    /// Room enough again to be worth a wake-up: a quarter of the buffer.
    fn wake_writer(&mut self, shared: &mut Shared) {
        let queued = self.transfer.as_ref().map_or(0, |transfer| transfer.send.len());
        let limit = self.send_limit(shared);
        if self.wants_write && !self.orphan && queued <= limit - limit / 4 {
            self.wants_write = false;
            shared.events.push_back(Event::Writable(self.id));
        }
    }
}

/// The data that an acknowledgement says came twice: its first SACK block lies below SEG.ACK or inside the
/// second (RFC 2883 §4).
fn reported_duplicate(segment: &Incoming<'_>) -> Option<(Seq, Seq)> {
    let blocks = segment.options.sack.as_slice();
    let (left, right) = *blocks.first()?;
    let inside = |&(outer, end): &(Seq, Seq)| outer.at_or_before(left) && right.at_or_before(end);
    (right.at_or_before(segment.ack) || blocks.get(1).is_some_and(inside)).then_some((left, right))
}
