//! What is in flight, segment by segment: which of it is acknowledged, selectively acknowledged, retransmitted or
//! lost. RFC 8985 (RACK) and RFC 6675 judge losses when the peer sends SACK, RFC 6582 (NewReno) when it does not.
//! How much may be sent is the congestion window's business.
//!
//! A peer decides which segments an acknowledgement is about, and may send a million of them a second. So none of them may
//! cost a walk over all segments: each segment is looked at when it is sent, when it arrives, when it is judged, and when
//! it leaves again. Only a timeout, and what it takes a timeout or a window of data to bring about, goes over all of them.

mod rack;
mod segment;
#[cfg(test)]
mod tests;

pub(crate) use segment::InFlight;

use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};

use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;

use super::reordering::Reordering;
use super::time::Instant;
use rack::Rack;
use segment::{Place, Sums};

/// Most segments in flight: bounds the memory, and the work when a timeout fires. New data waits beyond it. 140 MB/s at 20 ms.
pub(crate) const MAX_SEGMENTS: usize = 2048;
/// Segments for which there is memory while nothing is in flight.
const KEPT: usize = 64;
/// RFC 5681 §3.2: this many duplicates mean loss.
const DUP_THRESH: u32 = 3;

/// What an acknowledgement told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Bytes newly acknowledged, cumulatively or selectively.
    pub(crate) delivered: u32,
    /// The round trip of the newest segment among them that was never retransmitted.
    pub(crate) rtt: Option<Duration>,
    /// One of them arrived after a segment that was sent later (RFC 8985 §6.2, step 3).
    pub(crate) reordered: bool,
}

/// What decides how long a hole is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) reordering: Reordering,
    /// The smoothed round trip, once measured.
    pub(crate) smoothed: Option<Duration>,
    /// Whether losses are being repaired already.
    pub(crate) recovering: bool,
}

/// The segments between SND.UNA and SND.NXT.
#[derive(Debug, Default)]
pub(crate) struct Scoreboard {
    segments: VecDeque<InFlight>,
    sums: Sums,
    /// Those that are lost and did not leave again since.
    repairs: BTreeSet<Place>,
    /// Those that left more than once and are on their way, by when they left last.
    repeats: BTreeSet<(Instant, Place)>,
    /// So many from the first on have arrived, are lost or left again. Those behind them left in their order: the next one
    /// to be overtaken is the first of them.
    settled: usize,
    /// Duplicate acknowledgements of a peer without SACK: segments that left the network.
    duplicates: u32,
    rack: Rack,
    /// Segments that acknowledgements, timeouts and narrower paths had looked at.
    #[cfg(test)]
    looked_at: u64,
}

impl Scoreboard {
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.segments.len() >= MAX_SEGMENTS
    }

    /// Forgets everything. Of many transfers that once had a large window none keeps the memory of one.
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.segments.shrink_to(KEPT);
        // Mostly there is nothing to drop, and finding that out would take as long as all else here.
        if !self.repairs.is_empty() || !self.repeats.is_empty() {
            self.repairs.clear();
            self.repeats.clear();
        }
        (self.sums, self.settled, self.duplicates) = (Sums::default(), 0, 0);
        self.rack = Rack::default();
    }

    /// Bytes believed to be in the network out of `flight` unacknowledged ones (RFC 6675 §4, SetPipe).
    pub(crate) fn pipe(&self, flight: u32, mss: u32) -> u32 {
        let Sums { sacked, lost, resent, .. } = self.sums;
        (flight + resent).saturating_sub(sacked + lost + self.duplicates * mss)
    }

    /// Whether anything is known to be missing or out of order.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.sums.sacked != 0 || self.sums.lost != 0 || self.duplicates != 0
    }

    /// A new segment leaves, with SYN, FIN and PSH as in `marks`.
    pub(crate) fn sent(&mut self, seq: Seq, len: u32, marks: Flags, now: Instant) {
        debug_assert!(self.segments.back().is_none_or(|last| last.end() == seq));
        self.segments.push_back(InFlight::new(seq, len, marks, now));
    }

    /// The first lost segment that was not retransmitted since.
    pub(crate) fn next_lost(&self) -> Option<InFlight> {
        let &Place(seq) = self.repairs.first()?;
        self.segments.get(self.index_of(seq)?).copied()
    }

    /// The last segment in flight: what a tail loss probe repeats.
    pub(crate) fn last(&self) -> Option<InFlight> {
        self.segments.back().copied()
    }

    /// Whether the first segment left more than once.
    pub(crate) fn first_was_repeated(&self) -> bool {
        self.segments.front().is_some_and(|first| first.ever_resent)
    }

    /// Whether the first segment has left again, and that copy is not known to be lost.
    pub(crate) fn first_is_repaired(&self) -> bool {
        self.segments.front().is_some_and(|first| first.resent)
    }

    /// The segment at `seq` leaves again, cut to `len` sequence numbers when it is longer.
    pub(crate) fn retransmitted(&mut self, seq: Seq, len: u32, now: Instant) {
        let Some(index) = self.index_of(seq) else { return };
        if len < self.segments[index].len {
            self.split(index, len);
        }
        self.alter(index, |segment| {
            (segment.resent, segment.ever_resent, segment.sent_at) = (true, true, now);
        });
    }

    /// Everything before `ack` has arrived.
    pub(crate) fn acknowledge(&mut self, ack: Seq, now: Instant) -> Progress {
        let mut progress = Progress::default();
        let (mut left, known) = (0, self.duplicates);
        while let Some(first) = self.segments.front().copied() {
            if !first.seq.before(ack) {
                break;
            }
            if first.end().after(ack) {
                progress.delivered += self.trim_front(ack);
                break;
            }
            self.look();
            self.uncount(&first);
            self.segments.pop_front();
            self.settled = self.settled.saturating_sub(1);
            left += 1;
            if !first.sacked {
                progress.delivered += first.len;
                self.rack.arrived(&first, now, &mut progress);
            }
        }
        // One acknowledgement filled the hole, the others are the duplicates counted before.
        if known > 0 && left > 1 {
            progress.delivered = progress.delivered / left * (left - known.min(left - 1));
        }
        self.duplicates = self.duplicates.saturating_sub(left.max(1) - 1).min(self.segments.len() as u32);
        progress
    }

    /// The peer holds `blocks` (RFC 2018). Blocks that are not between `una` and `nxt` are ignored.
    pub(crate) fn selectively_acknowledge(
        &mut self,
        blocks: &[(Seq, Seq)],
        (una, nxt): (Seq, Seq),
        now: Instant,
    ) -> Progress {
        let mut progress = Progress::default();
        // The newest comes first (RFC 2018 §4): in that order what was lower all along would seem to have been overtaken.
        let mut ordered = [(una, una); 4];
        let count = blocks.len().min(ordered.len());
        ordered[..count].copy_from_slice(&blocks[..count]);
        ordered[..count].sort_unstable_by_key(|(left, _)| left.distance(una));
        for &(left, right) in &ordered[..count] {
            if left.before(right) && left.at_or_after(una) && right.at_or_before(nxt) {
                self.take_block((left, right), now, &mut progress);
            }
        }
        progress
    }

    /// The peer holds what lies wholly between `left` and `right`.
    fn take_block(&mut self, (left, right): (Seq, Seq), now: Instant, progress: &mut Progress) {
        let mut index = self.segments.partition_point(|segment| segment.seq.before(left));
        loop {
            index = self.pass_sacked(index);
            let segment = self.segments.get(index).copied();
            let Some(segment) = segment.filter(|segment| segment.end().at_or_before(right)) else { return };
            self.look();
            self.alter(index, |segment| {
                (segment.sacked, segment.lost, segment.resent, segment.run) = (true, false, false, 0);
            });
            progress.delivered += segment.len;
            self.rack.arrived(&segment, now, progress);
            index += 1;
        }
    }

    /// The first segment from `index` on that is not selectively acknowledged. Those before it are one step the next time: a
    /// peer may tell what we know already as often as it likes, and of thousands of segments.
    fn pass_sacked(&mut self, index: usize) -> usize {
        let mut end = index;
        while let Some(&InFlight { sacked: true, run, .. }) = self.segments.get(end) {
            self.look();
            end += 1 + usize::from(run);
        }
        let mut passed = index;
        while passed < end {
            let run = &mut self.segments[passed].run;
            let next = passed + 1 + usize::from(*run);
            *run = u16::try_from(end - passed - 1).unwrap_or(u16::MAX);
            passed = next;
        }
        end
    }

    /// A duplicate acknowledgement of a peer without SACK; whether it is the one that means loss.
    pub(crate) fn duplicate_ack(&mut self) -> bool {
        self.duplicates = (self.duplicates + 1).min(self.segments.len() as u32);
        self.duplicates == DUP_THRESH
    }

    /// The first segment is lost (NewReno: third duplicate, or partial acknowledgement).
    pub(crate) fn mark_first_lost(&mut self) {
        if !self.segments.is_empty() {
            self.mark_lost(0);
        }
    }

    /// RFC 8985 §6.2, step 5: marks what was sent long enough before something that has arrived. Returns whether
    /// anything is newly lost, and until when to wait for the next candidate.
    pub(crate) fn detect_losses(&mut self, now: Instant, patience: &Patience) -> (bool, Option<Instant>) {
        let due = self.rack.rtt + self.reordering_window(patience);
        let (first_lost, first_due) = self.judge_first_copies(due, now);
        let (again_lost, again_due) = self.judge_repeats(due, now);
        let wait = match (first_due, again_due) {
            (Some(first), Some(again)) => Some(first.min(again)),
            (first, again) => first.or(again),
        };
        (first_lost || again_lost, wait)
    }

    /// Judges what left once, the next one to be overtaken first; as [`Self::detect_losses`].
    fn judge_first_copies(&mut self, due: Duration, now: Instant) -> (bool, Option<Instant>) {
        let mut any = false;
        while let Some(&segment) = self.segments.get(self.settled) {
            self.look();
            if segment.is_first_copy() {
                match self.deadline(&segment, due) {
                    Some(deadline) if deadline <= now => self.mark_lost(self.settled),
                    wait => return (any, wait),
                }
                any = true;
            }
            self.settled += 1;
        }
        (any, None)
    }

    /// Judges what left more than once, the next one to be overtaken first; as [`Self::detect_losses`].
    fn judge_repeats(&mut self, due: Duration, now: Instant) -> (bool, Option<Instant>) {
        let mut any = false;
        while let Some(index) = self.repeats.first().and_then(|&(_, Place(seq))| self.index_of(seq)) {
            self.look();
            match self.deadline(&self.segments[index], due) {
                Some(deadline) if deadline <= now => self.mark_lost(index),
                wait => return (any, wait),
            }
            any = true;
        }
        (any, None)
    }

    /// When a segment on its way counts as lost, `due` after it left; `None` as long as nothing has overtaken it.
    fn deadline(&self, segment: &InFlight, due: Duration) -> Option<Instant> {
        self.rack.overtook(segment).then(|| segment.sent_at + due)
    }

    /// Segments with more data than `most` bytes did not fit through the path: they are lost. What is to leave again anyway is
    /// cut to what fits when it does. So nothing is marked twice that did not leave in between: whoever forges one message
    /// after the other has us glance at each segment, and no more.
    pub(crate) fn mark_longer_lost(&mut self, most: u32) {
        let mut marked = 0;
        for segment in &mut self.segments {
            if segment.data() > most && segment.is_on_its_way() {
                (segment.lost, segment.resent) = (true, false);
                marked += 1;
            }
        }
        if marked > 0 {
            self.look_at(marked);
            self.recount();
        }
    }

    /// Everything the peer does not hold is lost: the retransmission timer fired, and no SACK blocks will tell more.
    pub(crate) fn mark_all_lost(&mut self) {
        self.mark_lost_if(|_, _| true);
    }

    /// The retransmission timer fired (RFC 8985 §6.3): the first segment is lost, and so is whatever would have been
    /// acknowledged by now.
    pub(crate) fn mark_timed_out(&mut self, now: Instant, patience: &Patience) {
        let measured = !self.rack.rtt.is_zero();
        let rtt = if measured { self.rack.rtt } else { patience.smoothed.unwrap_or_default() };
        let due = rtt + self.reordering_window(patience);
        self.mark_lost_if(|index, segment| index == 0 || segment.sent_at + due <= now);
    }

    /// A timeout: what the peer does not hold is lost, if `is_lost` agrees. A peer that claimed to hold the very first
    /// segment has gone back on its word (RFC 2018 §8): then nothing it claimed counts.
    fn mark_lost_if(&mut self, is_lost: impl Fn(usize, &InFlight) -> bool) {
        let reneged = self.segments.front().is_some_and(|first| first.sacked);
        self.duplicates = 0;
        self.look_at(self.segments.len());
        for (index, segment) in self.segments.iter_mut().enumerate() {
            if segment.sacked && !reneged {
                continue;
            }
            segment.sacked = false;
            if reneged || is_lost(index, segment) {
                (segment.lost, segment.resent) = (true, false);
            }
        }
        self.recount();
    }

    /// Nothing was lost after all. What has not left again is on its way.
    pub(crate) fn forgive(&mut self) {
        for segment in &mut self.segments {
            segment.lost &= segment.resent;
            segment.either |= segment.ever_resent;
        }
        self.recount();
    }

    /// What arrived before what is void; the next arrival says it anew.
    pub(crate) fn forget_order(&mut self) {
        self.rack.forget_order();
    }

    /// Whether SACK blocks alone show a loss: enough segments beyond a hole (RFC 6675 §5).
    fn enough_sacked(&self) -> bool {
        self.sums.sacked_segments >= DUP_THRESH
    }

    fn reordering_window(&self, patience: &Patience) -> Duration {
        let plain = patience.recovering || self.enough_sacked();
        patience.reordering.window(self.rack.min_rtt, patience.smoothed, plain)
    }

    fn mark_lost(&mut self, index: usize) {
        self.alter(index, |segment| (segment.lost, segment.resent) = (true, false));
    }

    /// Alters a segment that stays where it is.
    fn alter(&mut self, index: usize, how: impl FnOnce(&mut InFlight)) {
        let mut segment = self.segments[index];
        self.uncount(&segment);
        how(&mut segment);
        self.segments[index] = segment;
        self.count(&segment);
    }

    /// Takes a segment into the sums, and into its order.
    fn count(&mut self, segment: &InFlight) {
        self.sums.add(segment);
        if segment.awaits_repair() {
            self.repairs.insert(segment.place());
        }
        if segment.is_repeat() {
            self.repeats.insert(segment.turn());
        }
    }

    /// Takes a segment out of the sums, and of its order.
    fn uncount(&mut self, segment: &InFlight) {
        self.sums.subtract(segment);
        if segment.awaits_repair() {
            self.repairs.remove(&segment.place());
        }
        if segment.is_repeat() {
            self.repeats.remove(&segment.turn());
        }
    }

    /// Makes sums and orders anew after any number of segments were altered.
    fn recount(&mut self) {
        let Self { segments, sums, repairs, repeats, settled, .. } = self;
        (*sums, *settled) = (Sums::default(), 0);
        segments.iter().for_each(|segment| sums.add(segment));
        *repairs = segments.iter().filter(|segment| segment.awaits_repair()).map(InFlight::place).collect();
        *repeats = segments.iter().filter(|segment| segment.is_repeat()).map(InFlight::turn).collect();
    }

    /// Cuts the first segment at `ack`, which lies inside it; how many bytes arrived with that.
    fn trim_front(&mut self, ack: Seq) -> u32 {
        let Some(&first) = self.segments.front() else { return 0 };
        let cut = ack.distance(first.seq);
        self.alter(0, |segment| *segment = segment.split(cut).1);
        if first.sacked { 0 } else { cut }
    }

    /// Makes two segments of one; the first gets `len`.
    fn split(&mut self, index: usize, len: u32) {
        let (head, tail) = self.segments[index].split(len);
        self.alter(index, |segment| *segment = head);
        self.segments.insert(index + 1, tail);
        self.count(&tail);
        // Both are settled if the whole was.
        self.settled += usize::from(index < self.settled);
    }

    fn index_of(&self, seq: Seq) -> Option<usize> {
        let index = self.segments.partition_point(|segment| segment.seq.before(seq));
        (self.segments.get(index)?.seq == seq).then_some(index)
    }

    /// A segment is looked at. Tests count that.
    fn look(&mut self) {
        self.look_at(1);
    }

    /// So many segments are looked at.
    fn look_at(&mut self, segments: usize) {
        #[cfg(test)]
        {
            self.looked_at += segments as u64;
        }
        #[cfg(not(test))]
        let _ = segments;
    }
}
