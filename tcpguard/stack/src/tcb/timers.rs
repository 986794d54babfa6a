//! Time passes for a connection: retransmission (RFC 6298), loss probes and reordering (RFC 8985), persist, delayed
//! acknowledgements, keepalive, the user timeout, and the end of an orphan's FIN_WAIT_2.

use core::time::Duration;

use super::{AckOwed, Config, Error, Fin, Instant, Recovery, Retransmit, Shared, State, Tcb, seconds};

/// RFC 9293 §3.8.3: as many retransmissions of the same data mean trouble.
const R1: u8 = 3;

impl Tcb {
    /// The next point in time at which something is to be done; [`Instant::NEVER`] for none.
    pub(crate) fn deadline(&self, now: Instant, config: &Config) -> Instant {
        let timers = self.work.retransmit_at.min(self.work.ack_at).min(self.user_timeout_at(config));
        let timers = timers.min(self.keepalive_at(now, config)).min(self.zero_window_at(config));
        let timers = timers.min(self.orphan_until(config)).min(self.probe_lapses_at(config));
        match self.linger(config) {
            Some(linger) => timers.min(now + linger.saturating_sub(self.rested(now))),
            None => timers,
        }
    }

    /// How long FIN_WAIT_2 may last now that the application is gone.
    fn linger(&self, config: &Config) -> Option<Duration> {
        (self.orphan && self.state == State::FinWait2).then_some(config.fin_wait_2)
    }

    /// Does what is due.
    pub(crate) fn handle_timeout(&mut self, now: Instant, shared: &mut Shared) {
        if self.work.ack_at <= now {
            self.work.ack_at = Instant::NEVER;
            if self.ack_owed == AckOwed::Later {
                self.ack_owed = AckOwed::Now(1);
            }
        }
        if self.linger(shared.config_of(self.service())).is_some_and(|linger| linger <= self.rested(now)) {
            shared.counters.fin_wait_2_expired += 1;
            self.fail(Error::TimedOut, true, shared);
            return;
        }
        let config = shared.config_of(self.service());
        if self.user_timeout_at(config).min(self.orphan_until(config)) <= now {
            self.give_up(shared);
            return;
        }
        if self.zero_window_at(shared.config_of(self.service())) <= now {
            shared.counters.zero_window_expired += 1;
            self.end_by_timeout(shared);
            return;
        }
        if self.probe_lapses_at(config) <= now {
            self.work.probed = None;
        }
        if self.work.retransmit_at <= now {
            self.handle_retransmit_timer(now, shared);
        }
        if self.keepalive_at(now, shared.config_of(self.service())) <= now {
            self.handle_keepalive(now, shared);
        }
    }

    /// When what is not acknowledged has waited for too long (RFC 5482 §2), or what asks a closed window for an answer.
    fn user_timeout_at(&self, config: &Config) -> Instant {
        if config.user_timeout.is_zero() {
            return Instant::NEVER;
        }
        let waits = match self.work.retransmit {
            Retransmit::Off => false,
            Retransmit::Persist => self.work.retries > 0,
            Retransmit::Timeout | Retransmit::Probe | Retransmit::Reordering => {
                !self.is_blocked() || self.work.retries > 0
            }
        };
        if waits && !self.orphan { self.work.unacked_since + config.user_timeout } else { Instant::NEVER }
    }

    /// When an orphan's peer has taken next to nothing for as long as all retransmissions take. It need not let them: with
    /// each byte that it acknowledges their count begins anew.
    fn orphan_until(&self, config: &Config) -> Instant {
        if !self.orphan || !self.work.pace.is_set() {
            return Instant::NEVER;
        }
        self.work.pace.since() + self.rtt.patience(config.orphan_retries, config)
    }

    /// When a closed window has let nothing in for too long. That it opened for less than a segment does not count.
    fn zero_window_at(&self, config: &Config) -> Instant {
        if config.zero_window.is_zero() || !self.is_blocked() {
            return Instant::NEVER;
        }
        self.stalled_since().unwrap_or(self.work.pace.since()) + config.zero_window
    }

    /// When nobody will ask any more what the last tail loss probe was good for: all that left is acknowledged, and what leaves
    /// after so long a rest is of a window that begins anew (RFC 5681 §4.1).
    fn probe_lapses_at(&self, config: &Config) -> Instant {
        let rests = self.work.retransmit == Retransmit::Off && self.work.probed.is_some();
        if rests { self.work.rto_base + self.rtt.timeout(config) } else { Instant::NEVER }
    }

    /// When a silent peer is asked whether it is still there. As long as anything is on its way to it, other timers do
    /// that.
    fn keepalive_at(&self, now: Instant, config: &Config) -> Instant {
        const SECOND: u64 = 1_000_000_000;
        let idle = self.work.retransmit == Retransmit::Off && self.state.synchronized() && !self.orphan;
        if config.keepalive_time.is_zero() || !idle {
            return Instant::NEVER;
        }
        if self.work.keepalives > 0 {
            return self.work.keepalive_at;
        }
        let silent = (seconds(now) as u16).wrapping_sub(self.heard_at);
        // The second in which it was heard counts from its end.
        let heard = (now.0 / SECOND).saturating_sub(silent.into()) + 1;
        Instant(heard * SECOND) + config.keepalive_time
    }

    /// RFC 1122 §4.2.3.6.
    fn handle_keepalive(&mut self, now: Instant, shared: &mut Shared) {
        if self.work.keepalives >= shared.config_of(self.service()).keepalive_probes {
            shared.counters.keepalive_expired += 1;
            self.end_by_timeout(shared);
            return;
        }
        self.work.keepalives += 1;
        (self.work.keepalive, self.work.keepalive_at) =
            (true, now + shared.config_of(self.service()).keepalive_interval);
    }

    fn handle_retransmit_timer(&mut self, now: Instant, shared: &mut Shared) {
        match self.work.retransmit {
            Retransmit::Off => self.work.retransmit_at = Instant::NEVER,
            Retransmit::Timeout => self.handle_rto(now, shared),
            Retransmit::Probe => {
                shared.counters.tail_loss_probes += 1;
                self.work.probe = true;
                self.work.rto_base = now;
                self.work.probed = Some(self.snd_nxt);
                self.arm_retransmit(now, shared.config_of(self.service()));
            }
            Retransmit::Reordering => self.handle_reordering_timer(now, shared),
            Retransmit::Persist => self.handle_persist(now, shared),
        }
    }

    /// RFC 6298 §5.4 to §5.6.
    fn handle_rto(&mut self, now: Instant, shared: &mut Shared) {
        shared.counters.timeouts += 1;
        if !self.count_retry(shared) {
            return;
        }
        shared.counters.retries_r1 += u64::from(self.work.retries == R1);
        self.ask(now);
        self.begin_frto(self.work.recovery == Recovery::None);
        self.remember_window(true, shared);
        let flight = self.flight();
        let first = self.work.recovery != Recovery::Timeout;
        let cubic = self.work.cubic(shared.config_of(self.service()));
        self.congestion.on_timeout(flight, self.mss.into(), first, cubic);
        self.note_reduced();
        let patience = self.patience();
        if let Some(transfer) = &mut self.transfer {
            if self.sack_permitted {
                transfer.scoreboard.mark_timed_out(now, &patience);
            } else {
                transfer.scoreboard.mark_all_lost();
            }
        }
        self.work.recovery = Recovery::Timeout;
        self.work.recover = self.snd_nxt;
        self.rtt.backoff = self.rtt.backoff.saturating_add(1);
        (self.work.force, self.work.probed, self.work.reorder_at) = (true, None, Instant::NEVER);
        self.work.rto_base = now;
        self.arm_retransmit(now, shared.config_of(self.service()));
    }

    fn handle_reordering_timer(&mut self, now: Instant, shared: &mut Shared) {
        let flight = self.flight();
        self.work.reorder_at = Instant::NEVER;
        if self.detect_losses(now) && self.work.recovery == Recovery::None {
            self.enter_recovery(flight, now, shared);
            if self.sack_permitted {
                // One segment, as if one had arrived; the others follow with the acknowledgements.
                let (pipe, mss) = (self.pipe(), self.mss.into());
                self.congestion.on_repair(&mut self.work.reduction, (mss, false), pipe, mss);
            }
        }
        self.arm_retransmit(now, shared.config_of(self.service()));
    }

    fn handle_persist(&mut self, now: Instant, shared: &mut Shared) {
        if !self.count_retry(shared) {
            return;
        }
        self.ask(now);
        self.work.persist = true;
        self.rtt.backoff = self.rtt.backoff.saturating_add(1);
        self.work.rto_base = now;
        self.arm_retransmit(now, shared.config_of(self.service()));
    }

    /// A peer whose window is closed is about to be asked: from now on it is silent, if it was heard before.
    fn ask(&mut self, now: Instant) {
        if self.work.retries == 1 && self.is_blocked() {
            self.work.unacked_since = now;
        }
    }

    /// Whether one more attempt is allowed; ends the connection otherwise (RFC 9293 §3.8.3, R2).
    fn count_retry(&mut self, shared: &mut Shared) -> bool {
        let config = shared.config_of(self.service());
        let limit = match self.state {
            State::SynSent | State::SynReceived => Some(config.syn_retries),
            _ if self.orphan => Some(config.orphan_retries),
            _ => config.user_timeout.is_zero().then_some(config.retries),
        };
        if limit.is_some_and(|limit| self.work.retries >= limit) {
            self.give_up(shared);
            return false;
        }
        self.work.retries = self.work.retries.saturating_add(1);
        true
    }

    /// The peer has not acknowledged anything for too long.
    fn give_up(&mut self, shared: &mut Shared) {
        shared.counters.timed_out += 1;
        self.end_by_timeout(shared);
    }

    /// The peer seems to be gone. In case it is not, it is told: what it sends later meets nobody.
    fn end_by_timeout(&mut self, shared: &mut Shared) {
        let reset = self.state != State::SynSent;
        self.fail(self.work.trouble.unwrap_or(Error::TimedOut), reset, shared);
        self.tell_readable(shared);
    }

    /// Chooses the retransmission timer's purpose and time from what is in flight now.
    pub(super) fn arm_retransmit(&mut self, now: Instant, config: &Config) {
        let blocked = self.flight() == 0 && self.blocked_by_window(config);
        if blocked && self.work.retransmit != Retransmit::Persist {
            (self.work.rto_base, self.work.unacked_since) = (now, now);
        }
        let timeout = self.work.rto_base + self.rtt.timeout(config);
        let timer = if self.flight() == 0 {
            if blocked { (Retransmit::Persist, timeout) } else { (Retransmit::Off, Instant::NEVER) }
        } else if self.work.reorder_at.is_set() {
            (Retransmit::Reordering, self.work.reorder_at)
        } else if let Some(wait) = self.probe_wait(config) {
            // RFC 8985 §7.2: never later than the retransmission timeout would be.
            (Retransmit::Probe, (self.work.probe_base + wait).min(timeout))
        } else {
            (Retransmit::Timeout, timeout)
        };
        if timer != (self.work.retransmit, self.work.retransmit_at) {
            (self.work.retransmit, self.work.retransmit_at) = timer;
        }
        let waits = timer.0 != Retransmit::Off && self.state.synchronized();
        if waits && !self.work.pace.is_set() {
            let waiting = self.outstanding();
            self.work.pace.begin(waiting, now);
        }
    }

    /// New data behind a closed window: nothing but the persist timer will ever move it.
    pub(crate) fn arm_retransmit_if_idle(&mut self, now: Instant, config: &Config) {
        if self.work.retransmit == Retransmit::Off && self.unsent() + u32::from(self.fin == Fin::Queued) > 0 {
            self.arm_retransmit(now, config);
        }
    }

    /// How long to wait for an acknowledgement before probing the tail; `None` when that is not to be done.
    fn probe_wait(&self, config: &Config) -> Option<Duration> {
        const LEAST: Duration = Duration::from_millis(2);
        const UNMEASURED: Duration = Duration::from_secs(1);
        let board = &self.transfer.as_ref()?.scoreboard;
        let calm =
            self.work.recovery == Recovery::None && self.work.probed.is_none() && !board.is_disturbed();
        if !calm || !self.sack_permitted || !self.state.synchronized() || self.rtt.is_distrusted() {
            return None;
        }
        let single = self.flight() <= u32::from(self.mss);
        let extra = if single { config.min_rto } else { LEAST };
        Some(self.rtt.smoothed().map_or(UNMEASURED, |smoothed| smoothed * 2 + extra))
    }

    /// There is something to send, nothing is in flight, and the peer's window does not let it go.
    pub(super) fn blocked_by_window(&self, config: &Config) -> bool {
        let pending = self.unsent() > 0 || self.fin == Fin::Queued;
        pending && self.state.synchronized() && self.fresh(config, false).is_none()
    }

    /// The application is gone: FIN_WAIT_2 lasts only so long.
    pub(super) fn start_linger(&mut self, now: Instant) {
        if self.orphan && self.state == State::FinWait2 {
            self.rests_since = now.millis() as u32;
        }
    }

    /// Lets go of what only a connection with work needs.
    pub(crate) fn rest(&mut self, shared: &mut Shared) {
        self.work.rest(&mut shared.spare_work);
    }
}
