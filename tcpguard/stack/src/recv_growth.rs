//! How far a connection's receive window has grown: with what arrives and is read in a round trip, as Linux's dynamic right
//! sizing has it. How far it may grow is the memory budget's business.

use core::time::Duration;

use tcpguard_common::seq::Seq;

use super::time::Instant;

/// What a connection is offered at first, in bytes.
const START: u32 = 512 << 10;
/// A round trip of a peer to which none was measured.
const UNMEASURED: Duration = Duration::from_millis(100);

/// Where rounds end is kept in units of so many bytes, modulo 2^13: 128 MB, four times what a window grows to.
const UNIT_SHIFT: u32 = 14;
/// Times are kept in units of so many milliseconds, modulo 2^8: two seconds.
const TICK: u64 = 8;
/// Doublings at most: three bits, of which one value says that no round was begun.
const MOST: u8 = 6;
const NOT_BEGUN: u8 = 7;

/// Three bytes, because they outlive every transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecvGrowth {
    /// Where the present round ends, above three bits: how often the window was doubled.
    packed: [u8; 2],
    /// When it began.
    since: u8,
}

/// What a connection has received.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) rcv_nxt: Seq,
    /// In order, and not read yet.
    pub(crate) unread: u32,
    pub(crate) rtt: Option<Duration>,
}

impl Default for RecvGrowth {
    fn default() -> Self {
        Self { packed: u16::from(NOT_BEGUN).to_ne_bytes(), since: 0 }
    }
}

impl RecvGrowth {
    /// Most bytes the connection may be offered, `most` at the very most.
    pub(crate) fn limit(self, most: u32) -> u32 {
        (START << self.doubled().unwrap_or(0)).min(most)
    }

    /// Something arrived in order. A round is as many bytes as may be offered. When it takes two round trips at most, and the
    /// application keeps up, it is the window that limits the peer: it is doubled.
    pub(crate) fn arrived(&mut self, received: &Received, most: u32, now: Instant) {
        let limit = self.limit(most);
        let left = self.left(received.rcv_nxt);
        let under_way = self.doubled().is_some() && left > 0 && left <= units(limit) as i16;
        if under_way {
            return;
        }
        let at = (now.millis() / TICK) as u8;
        let took = Duration::from_millis(TICK * u64::from(at.wrapping_sub(self.since)));
        let round = (2 * received.rtt.unwrap_or(UNMEASURED)).max(Duration::from_millis(TICK));
        // What lies far behind is no round that was begun.
        let whole = left <= 0 && left > -(units(START) as i16);
        let grows = whole && took <= round && received.unread <= limit / 2 && limit < most;
        let doubled = self.doubled().map_or(0, |doubled| (doubled + u8::from(grows)).min(MOST));
        let end = units((received.rcv_nxt + self.limit(most)).0);
        (self.packed, self.since) = ((end << 3 | u16::from(doubled)).to_ne_bytes(), at);
    }

    /// How often the window was doubled; `None` before the first round.
    fn doubled(self) -> Option<u8> {
        let doubled = u16::from_ne_bytes(self.packed) as u8 & NOT_BEGUN;
        (doubled != NOT_BEGUN).then_some(doubled)
    }

    /// Units that are missing up to the round's end; how far it is behind, if negative.
    fn left(self, rcv_nxt: Seq) -> i16 {
        let end = u16::from_ne_bytes(self.packed) & !u16::from(NOT_BEGUN);
        (end.wrapping_sub(units(rcv_nxt.0) << 3) as i16) >> 3
    }
}

/// A sequence number, or a distance, in units.
fn units(bytes: u32) -> u16 {
    (bytes >> UNIT_SHIFT) as u16
}

#[cfg(test)]
mod tests {
    use super::{Duration, Instant, Received, RecvGrowth, START, Seq};

    const MOST: u32 = 4 << 20;
    const RTT: Duration = Duration::from_millis(40);

    /// A peer that sends a window each `round`, of which `unread` bytes are not read; what it is offered after ten.
    fn offered(round: Duration, unread: u32) -> u32 {
        let mut growth = RecvGrowth::default();
        let (mut rcv_nxt, mut now) = (Seq(u32::MAX - 1000), Instant(1 << 40));
        for _ in 0..10 {
            let received = Received { rcv_nxt, unread, rtt: Some(RTT) };
            growth.arrived(&received, MOST, now);
            growth.arrived(&Received { rcv_nxt: rcv_nxt + 1000, ..received }, MOST, now);
            (rcv_nxt, now) = (rcv_nxt + growth.limit(MOST), now + round);
        }
        growth.limit(MOST)
    }

    #[test]
    fn a_window_that_limits_the_peer_grows_up_to_the_most() {
        assert_eq!(offered(RTT, 0), MOST);
    }

    #[test]
    fn a_window_that_the_peer_or_the_application_does_not_use_stays() {
        assert_eq!(offered(4 * RTT, 0), START);
        assert_eq!(offered(RTT, START), START);
    }
}
