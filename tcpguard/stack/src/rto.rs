//! The retransmission timeout of RFC 6298, from round-trip samples. Which samples are valid (Karn) is the
//! scoreboard's business.

use core::time::Duration;

use super::config::Config;
use super::reordering::Reordering;

/// Round-trip estimates in microseconds: 71 minutes fit. With them, in what would be padding, how much the path reorders.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rtt {
    /// Smoothed; 0 before the first sample.
    srtt: u32,
    /// Before that, the least timeout.
    rttvar: u32,
    /// How often the timeout fired without a sample since.
    pub(crate) backoff: u8,
    pub(crate) reordering: Reordering,
}

impl Rtt {
    /// RFC 6298 §2.2 and §2.3, with its gains of 1/8 and 1/4. Ends the back-off.
    pub(crate) fn sample(&mut self, rtt: Duration) {
        let rtt = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX / 8).clamp(1, u32::MAX / 8);
        self.backoff = 0;
        if self.srtt == 0 {
            (self.srtt, self.rttvar) = (rtt, rtt / 2);
            return;
        }
        let error = self.srtt.abs_diff(rtt);
        self.rttvar = (3 * u64::from(self.rttvar)).div_ceil(4) as u32 + error / 4;
        self.srtt = ((7 * u64::from(self.srtt) + u64::from(rtt)) / 8).max(1) as u32;
    }

    /// The timeout now, back-off included (§2.4, §5.5). The least timeout is on top of the round trip, as on Linux: on a steady path
    /// longer than that, nothing else would be left for an acknowledgement that is late.
    pub(crate) fn timeout(&self, config: &Config) -> Duration {
        self.first_timeout(config).saturating_mul(1 << self.backoff.min(20)).min(config.max_rto)
    }

    /// How long so many retransmissions take, and the wait for an answer to the last.
    pub(crate) fn patience(&self, retries: u8, config: &Config) -> Duration {
        let first = self.first_timeout(config);
        let timeouts = (0..=u32::from(retries)).map(|backoff| first.saturating_mul(1 << backoff.min(20)));
        timeouts.map(|timeout| timeout.min(config.max_rto)).sum()
    }

    /// The handshake's SYN or SYN-ACK was sent again. Where it told no round trip, data has three seconds at first (RFC 6298
    /// §5.7): the path may well take longer than the first timeout.
    pub(crate) fn distrust(&mut self) {
        const AT_FIRST: u32 = 3_000_000;
        if self.srtt == 0 {
            self.rttvar = AT_FIRST;
        }
    }

    /// Whether nothing is known of the round trip but that it may be long.
    pub(crate) fn is_distrusted(&self) -> bool {
        self.srtt == 0 && self.rttvar != 0
    }

    /// The same without back-off.
    pub(crate) fn first_timeout(&self, config: &Config) -> Duration {
        match self.smoothed() {
            None => config.initial_rto.max(Duration::from_micros(self.rttvar.into())),
            Some(srtt) => srtt + Duration::from_micros(4 * u64::from(self.rttvar)).max(config.min_rto),
        }
    }

    /// The smoothed round-trip time, once there is one.
    pub(crate) fn smoothed(&self) -> Option<Duration> {
        (self.srtt != 0).then(|| Duration::from_micros(self.srtt.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::{Config, Rtt};
    use core::time::Duration;

    #[test]
    fn the_timeout_starts_at_the_tunable_doubles_and_stops_at_the_bound() {
        let config = Config { max_rto: Duration::from_secs(10), ..Config::default() };
        let mut rtt = Rtt::default();
        let seconds: Vec<u64> = (0..6)
            .map(|backoff| {
                rtt.backoff = backoff;
                rtt.timeout(&config).as_secs()
            })
            .collect();
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn after_a_repeated_syn_the_timeout_is_three_seconds_until_a_round_trip_is_measured() {
        let at_first = |initial_rto: u64| {
            let config = Config { initial_rto: Duration::from_secs(initial_rto), ..Config::default() };
            let mut rtt = Rtt::default();
            rtt.distrust();
            rtt.timeout(&config).as_secs()
        };
        assert_eq!((at_first(1), at_first(5)), (3, 5));
        let mut rtt = Rtt::default();
        rtt.distrust();
        rtt.sample(Duration::from_millis(100));
        assert_eq!(rtt.timeout(&Config::default()), Duration::from_millis(300));
        rtt.distrust();
        assert_eq!(rtt.timeout(&Config::default()), Duration::from_millis(300));
    }

    #[test]
    fn a_steady_round_trip_brings_the_timeout_down_to_the_minimum_beyond_it() {
        let config = Config::default();
        let mut rtt = Rtt::default();
        rtt.sample(Duration::from_millis(100));
        assert_eq!(rtt.timeout(&config), Duration::from_millis(300));
        for _ in 0..100 {
            rtt.sample(Duration::from_millis(100));
        }
        assert_eq!(rtt.timeout(&config), Duration::from_millis(300));
        let mut far = Rtt::default();
        (0..100).for_each(|_| far.sample(Duration::from_millis(250)));
        assert_eq!(far.timeout(&config), Duration::from_millis(450));
        assert_eq!(rtt.smoothed(), Some(Duration::from_millis(100)));
    }
}
