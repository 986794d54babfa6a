//! Reductions of the congestion window that turn out to have been needless: what was taken for lost was only late. Either the
//! peer's timestamps tell, because they echo the first copy (the Eifel detection, RFC 3522), or its reports of duplicates
//! (RFC 2883), once they cover all that was repeated (RFC 3708 §2), or what it acknowledges first (`frto`). The window is
//! then what it was, as Linux has it after RFC 4015. A peer that lies about this gets data faster than it should, and could
//! have that by not telling of losses.

use tcpguard_common::seq::Seq;

use super::{Incoming, Recovery, Shared, Tcb};
use crate::congestion::{Congestion, Cubic};

/// How to take a reduction back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Undo {
    congestion: Congestion,
    cubic: Option<Cubic>,
    /// No acknowledgement had told of the loss.
    by_timeout: bool,
    /// SND.UNA when it came; what it concerns ends at `Work::recover`.
    from: Seq,
    /// Our timestamp on the first repetition.
    first_repeat: Option<u32>,
    /// Bytes repeated and not reported as duplicates.
    unreported: u32,
    /// An acknowledgement after the first repetition has told which copy it was for.
    echoed: bool,
}

impl Tcb {
    /// The window is about to be reduced for a loss, which acknowledgements told of or not. Of a row of reductions for the
    /// same losses the first counts. A few are taken back in a window of data: what was lost is then judged anew, segment by
    /// segment, which a peer must not have us do with every acknowledgement.
    pub(super) fn remember_window(&mut self, by_timeout: bool, shared: &Shared) {
        const MOST: u8 = 4;
        if self.work.recovery != Recovery::None {
            return;
        }
        if self.work.undone.0 >= MOST {
            self.forget_window();
            return;
        }
        let cubic = self.work.cubic(shared.config_of(self.service())).copied();
        self.work.undo = Some(Undo {
            congestion: self.congestion,
            cubic,
            by_timeout,
            from: self.snd_una,
            first_repeat: None,
            unreported: 0,
            echoed: false,
        });
    }

    /// The window was reduced for another reason, too.
    pub(super) fn forget_window(&mut self) {
        if self.work.undo.is_some() {
            self.work.undo = None;
        }
    }

    /// `len` sequence numbers leave again because they were taken for lost, with this timestamp of ours.
    pub(super) fn note_repeat(&mut self, len: u32, timestamp: u32) {
        let Some(mut undo) = self.work.undo.filter(|_| self.work.recovery != Recovery::None) else { return };
        undo.unreported = undo.unreported.saturating_add(len);
        undo.first_repeat.get_or_insert(timestamp);
        self.work.undo = Some(undo);
    }

    /// The peer had the bytes from `left` to `right` twice. Takes the reduction back once that holds for all that was
    /// repeated.
    pub(super) fn heed_duplicate(&mut self, (left, right): (Seq, Seq), shared: &mut Shared) {
        let Some(mut undo) = self.work.undo.filter(|undo| undo.unreported > 0) else { return };
        if !left.before(right) || left.before(undo.from) || right.after(self.work.recover) {
            return;
        }
        undo.unreported = undo.unreported.saturating_sub(right.distance(left));
        self.work.undo = Some(undo);
        if undo.unreported == 0 {
            self.take_back(shared);
        }
    }

    /// SND.UNA is about to move on to SEG.ACK. The first such acknowledgement after the first repetition tells: if it
    /// echoes an earlier timestamp, it was the original that arrived. So it was if nothing has left again yet.
    pub(super) fn heed_echoed_time(&mut self, segment: &Incoming<'_>, shared: &mut Shared) {
        let Some(undo) = self.work.undo.filter(|undo| !undo.echoed && self.work.recovery != Recovery::None)
        else {
            return;
        };
        let echo = segment.options.timestamps.filter(|_| self.timestamps).map(|(_, echo)| echo);
        let needless = match (undo.first_repeat, echo) {
            (Some(repeat), Some(echo)) => (echo.wrapping_sub(repeat) as i32) < 0,
            (Some(_), None) => false,
            (None, _) if segment.ack.at_or_after(self.work.recover) => true,
            (None, _) => return,
        };
        if needless {
            self.take_back(shared);
        } else {
            self.work.undo = Some(Undo { echoed: true, ..undo });
        }
    }

    /// Makes the window what it was, and has what did not leave again yet counted as on its way. What acknowledgements alone
    /// made look lost was overtaken: the path reorders.
    pub(super) fn take_back(&mut self, shared: &mut Shared) {
        let Some(undo) = self.work.undo.take() else { return };
        shared.counters.reductions_undone += 1;
        self.congestion.restore(&undo.congestion);
        if let Some((cubic, before)) = self.work.cubic(shared.config_of(self.service())).zip(undo.cubic) {
            *cubic = before;
        }
        if !undo.by_timeout {
            self.rtt.reordering.see();
        }
        if self.work.recovery != Recovery::None {
            (self.work.recovery, self.work.force) = (Recovery::None, false);
            if let Some(transfer) = &mut self.transfer {
                transfer.scoreboard.forgive();
            }
            let (times, until) = self.work.undone;
            self.work.undone = (times + 1, if times == 0 { self.snd_nxt } else { until });
        }
    }

    /// SND.UNA has moved on: to what left after reductions were taken back, perhaps.
    pub(super) fn renew_undo(&mut self) {
        let (times, until) = self.work.undone;
        if times > 0 && self.snd_una.at_or_after(until) {
            self.work.undone.0 = 0;
        }
    }
}
