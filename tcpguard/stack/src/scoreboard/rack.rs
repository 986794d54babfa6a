//! What has arrived, in the order in which it was sent: RACK's memory of the newest segment delivered (RFC 8985 §5.3, §6.2),
//! from which follows what was overtaken. Which segments are lost for it is the scoreboard's to say.

use core::time::Duration;

use tcpguard_common::seq::Seq;

use super::Progress;
use super::segment::InFlight;
use crate::time::Instant;

/// RFC 8985 §5.3.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rack {
    /// Send time and end of the most recently sent segment known to have arrived.
    sent_at: Instant,
    end: Seq,
    /// The round trip of the one that arrived last, whenever that was sent: as long a segment may take.
    pub(super) rtt: Duration,
    /// The least round trip of the last minutes, and when it was measured; zero before the first.
    pub(super) min_rtt: Duration,
    min_rtt_at: Instant,
    /// The highest sequence number known to have arrived.
    fack: Seq,
}

impl Rack {
    /// What arrived before what is void; the next arrival says it anew.
    pub(super) fn forget_order(&mut self) {
        *self = Self { min_rtt: self.min_rtt, min_rtt_at: self.min_rtt_at, ..Self::default() };
    }

    /// RFC 8985 §6.2 steps 1 to 3, and the round-trip sample.
    pub(super) fn arrived(&mut self, segment: &InFlight, now: Instant, progress: &mut Progress) {
        let rtt = now.since(segment.sent_at);
        let known = self.sent_at != Instant::default();
        if !segment.ever_resent {
            progress.rtt = Some(progress.rtt.map_or(rtt, |least| least.min(rtt)));
            self.measured(rtt, now);
            if known && segment.end().before(self.fack) {
                progress.reordered |= segment.sent_at <= self.sent_at;
            }
        } else if rtt < self.min_rtt || segment.either {
            // Most likely the answer to the first copy, or one that was forgiven.
            return;
        }
        if !known || segment.end().after(self.fack) {
            self.fack = segment.end();
        }
        self.rtt = rtt;
        if !known || !self.overtook(segment) {
            (self.sent_at, self.end) = (segment.sent_at, segment.end());
        }
    }

    /// Whether something that was sent later than this segment has arrived.
    pub(super) fn overtook(&self, segment: &InFlight) -> bool {
        segment.sent_at < self.sent_at || (segment.sent_at == self.sent_at && segment.end().before(self.end))
    }

    /// A round trip. The least one is that of the last minutes: routes change.
    fn measured(&mut self, rtt: Duration, now: Instant) {
        const LASTS: Duration = Duration::from_secs(300);
        if self.min_rtt.is_zero() || rtt <= self.min_rtt || now.since(self.min_rtt_at) > LASTS {
            (self.min_rtt, self.min_rtt_at) = (rtt, now);
        }
    }
}
