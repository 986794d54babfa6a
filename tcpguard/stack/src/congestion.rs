//! How much may be in flight: NewReno (RFC 5681) or CUBIC (RFC 9438), with the larger initial window of RFC 6928. Which
//! segments are lost is the scoreboard's business.

use core::time::Duration;

use super::time::Instant;

/// How the congestion window grows and shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CongestionControl {
    /// RFC 5681 and RFC 6582: a segment each round trip, half the flight after a loss.
    NewReno,
    /// RFC 9438: as time since the last loss says, so that long paths recover as fast as short ones; never slower than
    /// NewReno.
    Cubic,
}

/// Window and threshold in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Congestion {
    cwnd: u32,
    ssthresh: u32,
    /// Bytes acknowledged since the window last grew in NewReno's congestion avoidance.
    acked: u32,
}

/// What CUBIC remembers between two losses, in segments. A connection that rests forgets it, and probes anew from where
/// it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cubic {
    /// The window just before the last loss, or less, to leave room for others; 0 when that is not known.
    w_max: f64,
    /// The window before the last loss.
    cwnd_prior: f64,
    /// When the present stage of congestion avoidance began.
    epoch: Instant,
    /// Seconds until the window is `w_max` again.
    k: f64,
    /// What NewReno would have by now.
    w_est: f64,
}

/// An acknowledgement as congestion control sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acked {
    /// Bytes that left the network with it.
    pub(crate) bytes: u32,
    /// The most bytes in flight in the last round trip: how much of the window was used.
    pub(crate) used: u32,
    pub(crate) mss: u32,
    pub(crate) now: Instant,
    pub(crate) rtt: Duration,
}

/// Proportional rate reduction (RFC 6937): while losses are repaired, as much leaves as arrives, in the proportion by which
/// the window is to shrink. Bytes since the repair began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reduction {
    delivered: u32,
    out: u32,
    /// In flight when it began (RecoverFS).
    flight: u32,
}

impl Reduction {
    pub(crate) const NONE: Self = Self { delivered: 0, out: 0, flight: 0 };

    pub(crate) fn of(flight: u32) -> Self {
        Self { flight, ..Self::NONE }
    }

    /// Something left, new or repeated.
    pub(crate) fn sent(&mut self, bytes: u32) {
        self.out = self.out.saturating_add(bytes);
    }
}

/// RFC 6928 §2: ten segments.
const INITIAL_SEGMENTS: u32 = 10;
/// Far beyond any buffer, far from overflow.
const MAX_WINDOW: u32 = 1 << 30;

impl Congestion {
    pub(crate) fn new(mss: u32) -> Self {
        Self { cwnd: INITIAL_SEGMENTS * mss, ssthresh: MAX_WINDOW, acked: 0 }
    }

    /// RFC 6928 §2: when the SYN had to be repeated more than once, one segment.
    pub(crate) fn after_lost_syns(mss: u32) -> Self {
        Self { cwnd: mss, ..Self::new(mss) }
    }

    pub(crate) fn window(&self) -> u32 {
        self.cwnd
    }

    /// The window at which slow start ends, once a loss has shown one.
    pub(crate) fn threshold(&self) -> Option<u32> {
        (self.ssthresh != MAX_WINDOW).then_some(self.ssthresh)
    }

    /// Bytes left the network outside loss recovery; `cubic` unless NewReno is in force. A window that the application or
    /// the peer's window does not let us use does not grow (RFC 7661 §3, as Linux does).
    pub(crate) fn on_ack(&mut self, acked: &Acked, cubic: Option<&mut Cubic>) {
        let Acked { bytes, used, mss, .. } = *acked;
        let slow_start = self.cwnd < self.ssthresh;
        let reach = if slow_start { used.saturating_mul(2) } else { used + mss };
        if reach < self.cwnd {
            // RFC 9438 §5.8: time that was not used to probe does not count.
            cubic.map(Cubic::pause);
            return;
        }
        if slow_start {
            // All that was acknowledged, as Linux counts it, up to the threshold. RFC 3465 §2.2 would count two segments of
            // each acknowledgement; but a receiver behind GRO sends one for some forty, and would never see us speed up.
            self.grow(bytes.min(self.ssthresh - self.cwnd));
        } else if let Some(cubic) = cubic {
            let cwnd = cubic.avoid(f64::from(self.cwnd) / f64::from(mss), acked);
            self.cwnd = ((cwnd * f64::from(mss)) as u32).clamp(self.cwnd, MAX_WINDOW);
        } else {
            self.acked += bytes.min(self.cwnd);
            if self.acked >= self.cwnd {
                self.acked -= self.cwnd;
                self.grow(mss);
            }
        }
    }

    /// Loss noticed by acknowledgements (RFC 5681 §3.2, RFC 6675 §5, RFC 9438 §4.6).
    pub(crate) fn on_loss(&mut self, flight: u32, mss: u32, cubic: Option<&mut Cubic>) {
        self.ssthresh = self.reduced(flight, mss, cubic.is_some());
        if let Some(cubic) = cubic {
            cubic.lose(f64::from(self.cwnd) / f64::from(mss));
        }
        self.cwnd = self.ssthresh;
        self.acked = 0;
    }

    /// An acknowledgement while losses are repaired, which told of `delivered` bytes and leaves `pipe` in the network
    /// (RFC 6937 §3). A segment more than arrived leaves only when the acknowledgement `is_safe`: it moved SND.UNA on and
    /// told of no further loss (RFC 9937 §6.2, as Linux does).
    pub(crate) fn on_repair(
        &mut self,
        reduction: &mut Reduction,
        (delivered, is_safe): (u32, bool),
        pipe: u32,
        mss: u32,
    ) {
        reduction.delivered = reduction.delivered.saturating_add(delivered);
        let Reduction { delivered: all, out, flight } = *reduction;
        let may_leave = if pipe > self.ssthresh {
            let share = (u64::from(all) * u64::from(self.ssthresh)).div_ceil(flight.max(1).into());
            u32::try_from(share).unwrap_or(u32::MAX).saturating_sub(out)
        } else {
            let more = if is_safe { mss } else { 0 };
            (self.ssthresh - pipe).min(all.saturating_sub(out).max(delivered) + more)
        };
        self.cwnd = pipe.saturating_add(may_leave).min(MAX_WINDOW);
    }

    /// All that was in flight when the repair began has arrived.
    pub(crate) fn on_repaired(&mut self) {
        self.cwnd = self.ssthresh;
    }

    /// Loss noticed by timeout (RFC 5681 §3.1, RFC 9438 §4.8): one segment. `first` says whether the timed-out data had
    /// not timed out before: the threshold is lowered once.
    pub(crate) fn on_timeout(&mut self, flight: u32, mss: u32, first: bool, cubic: Option<&mut Cubic>) {
        if first {
            self.ssthresh = self.reduced(flight, mss, cubic.is_some());
        }
        if let Some(cubic) = cubic {
            *cubic = Cubic::NEW;
        }
        self.cwnd = mss;
        self.acked = 0;
    }

    /// A reduction was needless: the window is at least what it was before (RFC 4015 §3.2, without the limit on what may
    /// leave at once: the pipe is as full as it was).
    pub(crate) fn restore(&mut self, before: &Self) {
        self.cwnd = self.cwnd.max(before.cwnd);
        self.ssthresh = self.ssthresh.max(before.ssthresh);
        self.acked = before.acked;
    }

    /// Nothing was sent for a retransmission timeout (RFC 5681 §4.1).
    pub(crate) fn on_idle(&mut self, mss: u32) {
        self.cwnd = self.cwnd.min(INITIAL_SEGMENTS * mss);
    }

    /// The slow start threshold after a loss: half the flight; with CUBIC seven tenths of the window, which does not grow when it
    /// is not used (RFC 9438 §4.6), so that a loss among a few segments does not cost what many have shown.
    fn reduced(&self, flight: u32, mss: u32, cubic: bool) -> u32 {
        let kept = if cubic { (f64::from(self.cwnd) * Cubic::BETA) as u32 } else { flight / 2 };
        kept.max(2 * mss)
    }

    fn grow(&mut self, bytes: u32) {
        self.cwnd = (self.cwnd + bytes).min(MAX_WINDOW);
    }
}

impl Cubic {
    /// Before the first loss.
    pub(crate) const NEW: Self =
        Self { w_max: 0.0, cwnd_prior: 0.0, epoch: Instant::NEVER, k: 0.0, w_est: 0.0 };
    /// RFC 9438 §4.1, §4.6 and §4.3.
    const C: f64 = 0.4;
    const BETA: f64 = 0.7;
    const ALPHA: f64 = 3.0 * (1.0 - Self::BETA) / (1.0 + Self::BETA);

    /// The window after an acknowledgement in congestion avoidance (RFC 9438 §4.2 to §4.5).
    fn avoid(&mut self, cwnd: f64, acked: &Acked) -> f64 {
        if !self.epoch.is_set() {
            self.begin(cwnd, acked.now);
        }
        let segments = f64::from(acked.bytes) / f64::from(acked.mss);
        let alpha = if self.w_est < self.cwnd_prior { Self::ALPHA } else { 1.0 };
        self.w_est += alpha * segments / cwnd;
        let elapsed = acked.now.since(self.epoch);
        if self.w_cubic(elapsed) < self.w_est {
            return self.w_est.max(cwnd);
        }
        let target = self.w_cubic(elapsed + acked.rtt).clamp(cwnd, 1.5 * cwnd);
        cwnd + (target - cwnd) / cwnd * segments
    }

    fn begin(&mut self, cwnd: f64, now: Instant) {
        self.epoch = now;
        self.w_max = self.w_max.max(cwnd);
        self.k = ((self.w_max - cwnd) / Self::C).cbrt();
        self.w_est = cwnd;
    }

    fn w_cubic(&self, elapsed: Duration) -> f64 {
        Self::C * (elapsed.as_secs_f64() - self.k).powi(3) + self.w_max
    }

    /// RFC 9438 §4.6 and §4.7: a window that did not come back to where it was gives way to newcomers.
    fn lose(&mut self, cwnd: f64) {
        self.w_max = if cwnd < self.w_max { cwnd * (1.0 + Self::BETA) / 2.0 } else { cwnd };
        self.cwnd_prior = cwnd;
        self.epoch = Instant::NEVER;
    }

    fn pause(&mut self) {
        self.epoch = Instant::NEVER;
    }
}

#[cfg(test)]
mod tests {
    use super::{Acked, Congestion, Cubic, Duration, Instant, Reduction};

    const MSS: u32 = 1000;

    /// One segment acknowledged of so many bytes in flight.
    fn acked(used: u32) -> Acked {
        Acked { bytes: MSS, used, mss: MSS, now: Instant(0), rtt: Duration::from_millis(100) }
    }

    /// A CUBIC connection that has just lost one of so many segments, and its clock.
    fn after_loss(segments: u32) -> (Congestion, Cubic) {
        let (mut congestion, mut cubic) = (Congestion::new(MSS), Cubic::NEW);
        congestion.cwnd = segments * MSS;
        congestion.on_loss(segments * MSS, MSS, Some(&mut cubic));
        (congestion, cubic)
    }

    /// A whole window is acknowledged in a round trip that ends at `now`.
    fn round(congestion: &mut Congestion, cubic: &mut Cubic, now: Instant, rtt: Duration) {
        for _ in 0..congestion.window() / MSS {
            let acked = Acked { bytes: MSS, used: congestion.window(), mss: MSS, now, rtt };
            congestion.on_ack(&acked, Some(cubic));
        }
    }

    #[test]
    fn slow_start_doubles_and_congestion_avoidance_adds_one_segment_a_window() {
        let mut congestion = Congestion::new(MSS);
        for _ in 0..10 {
            congestion.on_ack(&acked(1 << 20), None);
        }
        assert_eq!(congestion.window(), 20 * MSS);
        congestion.on_loss(20 * MSS, MSS, None);
        assert_eq!(congestion.window(), 10 * MSS);
        for _ in 0..10 {
            congestion.on_ack(&acked(1 << 20), None);
        }
        assert_eq!(congestion.window(), 11 * MSS);
    }

    #[test]
    fn slow_start_counts_all_of_a_stretched_acknowledgement_up_to_the_threshold() {
        let mut congestion = Congestion::new(MSS);
        let stretched = |segments| Acked { bytes: segments * MSS, ..acked(1 << 20) };
        congestion.on_ack(&stretched(10), None);
        assert_eq!(congestion.window(), 20 * MSS);
        congestion.on_timeout(20 * MSS, MSS, true, None);
        congestion.on_ack(&stretched(20), None);
        assert_eq!(congestion.window(), 10 * MSS);
    }

    #[test]
    fn a_timeout_halves_the_threshold_once() {
        let mut congestion = Congestion::new(MSS);
        congestion.on_timeout(10 * MSS, MSS, true, None);
        congestion.on_timeout(MSS, MSS, false, None);
        for _ in 0..4 {
            congestion.on_ack(&acked(1 << 20), None);
        }
        assert_eq!(congestion.window(), 5 * MSS);
        congestion.on_ack(&acked(1 << 20), None);
        assert_eq!(congestion.window(), 5 * MSS, "past the threshold it grows by one segment a window");
    }

    #[test]
    fn an_unused_window_does_not_grow() {
        let mut congestion = Congestion::new(MSS);
        congestion.on_ack(&acked(2 * MSS), None);
        assert_eq!(congestion.window(), 10 * MSS);
    }

    /// Of 100 segments in flight `lost` are, the others arrive one by one, and whatever may leaves. How many had left
    /// after each.
    fn repair(lost: u32, is_safe: bool) -> Vec<u32> {
        let mut congestion = Congestion::new(MSS);
        congestion.cwnd = 100 * MSS;
        congestion.on_loss(100 * MSS, MSS, None);
        let mut reduction = Reduction::of(100 * MSS);
        let mut pipe = (100 - lost) * MSS;
        let arrivals = 0..100 - lost;
        let mut left = 0;
        arrivals
            .map(|_| {
                pipe -= MSS;
                congestion.on_repair(&mut reduction, (MSS, is_safe), pipe, MSS);
                while pipe + MSS <= congestion.window() {
                    pipe += MSS;
                    reduction.sent(MSS);
                    left += 1;
                }
                left
            })
            .collect()
    }

    #[test]
    fn while_a_loss_is_repaired_one_segment_leaves_for_two_that_arrive() {
        let left = repair(1, true);
        for (arrived, left) in (1..).zip(&left) {
            assert!(left.abs_diff(arrived / 2) <= 1, "{left} left after {arrived} had arrived");
        }
    }

    #[test]
    fn after_heavy_losses_no_more_leaves_than_twice_what_arrives() {
        let left = repair(80, true);
        for (arrived, &left) in (1..).zip(&left) {
            assert!(left <= 2 * arrived && left >= arrived, "{left} left after {arrived} had arrived");
        }
    }

    #[test]
    fn no_more_leaves_than_arrives_while_the_beginning_is_missing_or_losses_go_on() {
        let left = repair(80, false);
        for (arrived, &left) in (1..).zip(&left) {
            assert_eq!(left, arrived);
        }
    }

    #[test]
    fn with_cubic_a_loss_among_few_segments_leaves_seven_tenths_of_the_window() {
        let (mut congestion, mut cubic) = (Congestion::new(MSS), Cubic::NEW);
        congestion.on_loss(MSS, MSS, Some(&mut cubic));
        assert_eq!(congestion.window(), 7 * MSS);
        let mut newreno = Congestion::new(MSS);
        newreno.on_loss(MSS, MSS, None);
        assert_eq!(newreno.window(), 2 * MSS);
    }

    #[test]
    fn cubic_follows_its_curve_back_to_the_old_window_and_beyond() {
        let (mut congestion, mut cubic) = after_loss(1000);
        assert_eq!(congestion.window(), 700 * MSS);
        // RFC 9438 §4.2: K is the cube root of 300 / 0.4 seconds.
        let k = 750_f64.cbrt();
        let rtt = Duration::from_millis(100);
        for step in 0..150 {
            let now = Instant(0) + step * rtt;
            round(&mut congestion, &mut cubic, now, rtt);
            // A round trip ahead: that is what a window is for.
            let curve = 0.4 * ((now + rtt).since(Instant(0)).as_secs_f64() - k).powi(3) + 1000.0;
            let segments = f64::from(congestion.window()) / f64::from(MSS);
            assert!((segments - curve).abs() < 10.0, "{segments} and not {curve} after {step} round trips");
        }
        assert!(congestion.window() > 1050 * MSS);
    }

    #[test]
    fn cubic_is_no_slower_than_newreno_on_short_paths() {
        let (mut congestion, mut cubic) = after_loss(10);
        let rtt = Duration::from_millis(1);
        // The curve alone would take two seconds; NewReno, from half instead of seven tenths, five round trips.
        for step in 0..7 {
            round(&mut congestion, &mut cubic, Instant(0) + step * rtt, rtt);
        }
        assert!(congestion.window() >= 10 * MSS, "{}", congestion.window());
    }

    #[test]
    fn cubic_gives_way_when_it_loses_before_it_is_back_and_forgets_after_a_timeout() {
        let (mut congestion, mut cubic) = after_loss(100);
        congestion.on_loss(80 * MSS, MSS, Some(&mut cubic));
        assert!((cubic.w_max - 70.0 * 0.85).abs() < 0.01, "{}", cubic.w_max);
        congestion.on_timeout(50 * MSS, MSS, true, Some(&mut cubic));
        assert_eq!((congestion.window(), congestion.ssthresh / 100, cubic.w_max), (MSS, 49 * 7, 0.0));
    }

    #[test]
    fn time_in_which_cubic_was_not_used_does_not_count() {
        let (mut congestion, mut cubic) = after_loss(100);
        let rtt = Duration::from_millis(100);
        round(&mut congestion, &mut cubic, Instant(0), rtt);
        let late = Instant(0) + Duration::from_secs(60);
        congestion.on_ack(&Acked { now: late, ..acked(MSS) }, Some(&mut cubic));
        round(&mut congestion, &mut cubic, late, rtt);
        assert!(congestion.window() < 80 * MSS, "{}", congestion.window());
    }
}
