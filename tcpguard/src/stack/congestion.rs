//! How much may be in flight: RFC 5681 congestion control with the larger initial window of RFC 6928. Which
//! segments are lost is the scoreboard's business; another algorithm would replace this file alone.

/// Window and threshold in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Congestion {
    cwnd: u32,
    ssthresh: u32,
    /// Bytes acknowledged since the window last grew in congestion avoidance.
    acked: u32,
}

/// RFC 6928 §2: ten segments.
const INITIAL_SEGMENTS: u32 = 10;
/// Far beyond any buffer, far from overflow.
const MAX_WINDOW: u32 = 1 << 30;

impl Congestion {
    pub(crate) fn new(mss: u32) -> Self {
        Self { cwnd: INITIAL_SEGMENTS * mss, ssthresh: MAX_WINDOW, acked: 0 }
    }

    /// RFC 6928 §2: when the SYN had to be repeated, one segment.
    pub(crate) fn after_lost_syn(mss: u32) -> Self {
        Self { cwnd: mss, ..Self::new(mss) }
    }

    pub(crate) fn window(&self) -> u32 {
        self.cwnd
    }

    /// `acked` bytes left the network outside loss recovery, out of a `flight` before. A window that the
    /// application or the peer's window does not let us use does not grow (RFC 7661 §3, as Linux does).
    pub(crate) fn on_ack(&mut self, acked: u32, mss: u32, flight: u32) {
        let slow_start = self.cwnd < self.ssthresh;
        let used = if slow_start { flight.saturating_mul(2) } else { flight + mss };
        if used < self.cwnd {
            return;
        }
        if slow_start {
            // RFC 3465 with L = 2, so that one stretched acknowledgement does not cause a burst.
            self.grow(acked.min(2 * mss));
            return;
        }
        self.acked += acked.min(self.cwnd);
        if self.acked >= self.cwnd {
            self.acked -= self.cwnd;
            self.grow(mss);
        }
    }

    /// Loss noticed by acknowledgements (RFC 5681 §3.2, RFC 6675 §5): half the flight.
    pub(crate) fn on_loss(&mut self, flight: u32, mss: u32) {
        self.ssthresh = (flight / 2).max(2 * mss);
        self.cwnd = self.ssthresh;
        self.acked = 0;
    }

    /// Loss noticed by timeout (RFC 5681 §3.1): one segment. `first` says whether the timed-out data had not
    /// timed out before: the threshold is halved once.
    pub(crate) fn on_timeout(&mut self, flight: u32, mss: u32, first: bool) {
        if first {
            self.ssthresh = (flight / 2).max(2 * mss);
        }
        self.cwnd = mss;
        self.acked = 0;
    }

    /// Nothing was sent for a retransmission timeout (RFC 5681 §4.1).
    pub(crate) fn on_idle(&mut self, mss: u32) {
        self.cwnd = self.cwnd.min(INITIAL_SEGMENTS * mss);
    }

    fn grow(&mut self, bytes: u32) {
        self.cwnd = (self.cwnd + bytes).min(MAX_WINDOW);
    }
}

#[cfg(test)]
mod tests {
    use super::Congestion;

    const MSS: u32 = 1000;

    #[test]
    fn slow_start_doubles_and_congestion_avoidance_adds_one_segment_a_window() {
        let mut congestion = Congestion::new(MSS);
        for _ in 0..10 {
            congestion.on_ack(MSS, MSS, 1 << 20);
        }
        assert_eq!(congestion.window(), 20 * MSS);
        congestion.on_loss(20 * MSS, MSS);
        assert_eq!(congestion.window(), 10 * MSS);
        for _ in 0..10 {
            congestion.on_ack(MSS, MSS, 1 << 20);
        }
        assert_eq!(congestion.window(), 11 * MSS);
    }

    #[test]
    fn a_timeout_halves_the_threshold_once() {
        let mut congestion = Congestion::new(MSS);
        congestion.on_timeout(10 * MSS, MSS, true);
        congestion.on_timeout(MSS, MSS, false);
        for _ in 0..4 {
            congestion.on_ack(MSS, MSS, 1 << 20);
        }
        assert_eq!(congestion.window(), 5 * MSS);
        congestion.on_ack(MSS, MSS, 1 << 20);
        assert_eq!(congestion.window(), 5 * MSS, "past the threshold it grows by one segment a window");
    }

    #[test]
    fn an_unused_window_does_not_grow() {
        let mut congestion = Congestion::new(MSS);
        congestion.on_ack(MSS, MSS, 2 * MSS);
        assert_eq!(congestion.window(), 10 * MSS);
    }
}
