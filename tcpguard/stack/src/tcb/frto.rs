//! Forward RTO-recovery (RFC 5682 §2): whether a timeout was needless, when the peer has no timestamps to tell it. After the
//! timeout one segment is repeated. Once that is acknowledged, new data leaves instead of further repetitions; if the next
//! acknowledgement covers what was never repeated, the originals had arrived, and the reduction is taken back by `undo`. A
//! duplicate says that something is missing, and the usual repair goes on.

use super::{Config, Recovery, Shared, Tcb};

/// How far the question is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frto {
    /// Not asked, or answered.
    Off,
    /// The first segment is repeated, and nothing else until an acknowledgement comes (step 1).
    Repeat,
    /// New data goes first until another one comes (step 2b).
    Forward,
}

impl Tcb {
    /// The retransmission timer fired, and nothing was being repaired before if `calm`: a second timeout, or one while
    /// losses are repaired, is what it seems.
    pub(super) fn begin_frto(&mut self, calm: bool) {
        let asks = calm && !self.timestamps && self.state.synchronized();
        self.work.frto = if asks { Frto::Repeat } else { Frto::Off };
    }

    /// Whether new data goes before what is to be repeated.
    pub(super) fn goes_forward(&self) -> bool {
        self.work.frto == Frto::Forward
    }

    /// SND.UNA is about to move on: for the second time since the timeout, step 3b. What it moves over was never repeated,
    /// because all that was is acknowledged.
    pub(super) fn conclude_frto(&mut self, shared: &mut Shared) {
        if self.work.frto == Frto::Forward {
            self.work.frto = Frto::Off;
            self.take_back(shared);
            if let Some(transfer) = &mut self.transfer {
                // What was repeated seemed to overtake all that had left before.
                transfer.scoreboard.forget_order();
            }
        }
    }

    /// An acknowledgement was processed that told something. The first one after the timeout, if it covers what was repeated
    /// and no more than is being repaired, lets new data leave (step 2b); without any to send, and after duplicates
    /// (steps 2a and 3a), the repair goes on.
    pub(super) fn continue_frto(&mut self, advanced: bool, config: &Config) {
        if self.work.frto == Frto::Off {
            return;
        }
        let repairing = self.work.recovery == Recovery::Timeout;
        let repeated_left =
            self.transfer.as_ref().is_none_or(|transfer| transfer.scoreboard.first_was_repeated());
        let forward = advanced && repairing && !repeated_left && self.fresh(config, false).is_some();
        self.work.frto = if forward { Frto::Forward } else { Frto::Off };
    }
}
