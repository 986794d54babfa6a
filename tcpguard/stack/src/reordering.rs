//! How much a path reorders, and so how long a hole is waited for before it counts as a loss: the reordering window of
//! RFC 8985 §6.2, step 4. Which segments are judged by it is the scoreboard's business.

use core::time::Duration;

/// What a connection has learnt of its path, which delivers in order until it shows otherwise. Two bytes, because they outlive every transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reordering {
    /// RACK.reo_wnd_mult, in quarters of the least round trip; 0 while no reordering was seen (RACK.reordering_seen).
    quarters: u8,
    /// RACK.reo_wnd_persist: recoveries still to come before the window is as narrow as at first.
    persist: u8,
}

impl Reordering {
    /// RFC 8985 §6.2, step 4: loss recoveries without a needless retransmission after which the window is reset.
    const RECOVERIES: u8 = 16;

    /// Whether a segment ever arrived after one that was sent later.
    pub(crate) fn was_seen(self) -> bool {
        self.quarters > 0
    }

    /// A segment that was sent once arrived after one that was sent later.
    pub(crate) fn see(&mut self) {
        self.quarters = self.quarters.max(1);
    }

    /// A round trip with a retransmission that was needless: the window was too narrow.
    pub(crate) fn widen(&mut self) {
        (self.quarters, self.persist) = (self.quarters.saturating_add(1), Self::RECOVERIES);
    }

    /// A loss recovery is over.
    pub(crate) fn recovered(&mut self) {
        self.persist = self.persist.saturating_sub(1);
        if self.persist == 0 {
            self.quarters = self.quarters.min(1);
        }
    }

    /// How much later than its successors a segment may arrive. `plain`: losses are being repaired, or enough is
    /// acknowledged beyond the hole; then a path that never reordered is given no time at all.
    pub(crate) fn window(self, min_rtt: Duration, smoothed: Option<Duration>, plain: bool) -> Duration {
        if plain && !self.was_seen() {
            return Duration::ZERO;
        }
        let window = min_rtt * u32::from(self.quarters.max(1)) / 4;
        smoothed.map_or(window, |smoothed| window.min(smoothed))
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, Reordering};

    const MIN_RTT: Duration = Duration::from_millis(40);
    const SMOOTHED: Option<Duration> = Some(Duration::from_millis(60));

    fn window(reordering: Reordering) -> Duration {
        reordering.window(MIN_RTT, SMOOTHED, true)
    }

    #[test]
    fn a_path_in_order_is_given_a_quarter_of_a_round_trip_and_none_once_losses_are_plain() {
        assert_eq!(window(Reordering::default()), Duration::ZERO);
        assert_eq!(Reordering::default().window(MIN_RTT, SMOOTHED, false), MIN_RTT / 4);
    }

    #[test]
    fn needless_repairs_widen_the_window_up_to_a_smoothed_round_trip_for_sixteen_recoveries() {
        let mut reordering = Reordering::default();
        reordering.see();
        assert_eq!(window(reordering), MIN_RTT / 4);
        reordering.widen();
        assert_eq!(window(reordering), MIN_RTT / 2);
        for _ in 0..300 {
            reordering.widen();
        }
        assert_eq!(Some(window(reordering)), SMOOTHED);
        for _ in 0..15 {
            reordering.recovered();
        }
        assert_eq!(Some(window(reordering)), SMOOTHED);
        reordering.recovered();
        assert_eq!(window(reordering), MIN_RTT / 4);
    }
}
