//! What is in flight, segment by segment: which of it is acknowledged, selectively acknowledged, retransmitted or
//! lost. RFC 8985 (RACK) and RFC 6675 judge losses when the peer sends SACK, RFC 6582 (NewReno) when it does not.
//! How much may be sent is the congestion window's business.

use std::collections::VecDeque;

use core::time::Duration;
use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;

use super::reordering::Reordering;
use super::time::Instant;

/// Most segments in flight: bounds the work per acknowledgement. New data waits beyond it. 140 MB/s at 20 ms.
pub(crate) const MAX_SEGMENTS: usize = 2048;
/// RFC 5681 §3.2: this many duplicates mean loss.
const DUP_THRESH: u32 = 3;

/// One segment in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) seq: Seq,
    /// Sequence numbers it takes: data, and one each for SYN and FIN.
    pub(crate) len: u32,
    /// When it was sent last.
    sent_at: Instant,
    pub(crate) syn: bool,
    pub(crate) fin: bool,
    /// Its end was marked with PSH.
    pub(crate) push: bool,
    sacked: bool,
    lost: bool,
    /// Retransmitted, and that copy not known to be lost.
    resent: bool,
    /// Retransmitted at any time: no round-trip sample comes from it (Karn).
    ever_resent: bool,
    /// It was taken for lost when it was not: which copy arrives first says nothing.
    either: bool,
}

impl InFlight {
    fn end(&self) -> Seq {
        self.seq + self.len
    }
}

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

/// RFC 8985 §5.3.
#[derive(Clone, Copy, Debug, Default)]
struct Rack {
    /// Send time, end and round trip of the most recently sent segment known to have arrived.
    sent_at: Instant,
    end: Seq,
    rtt: Duration,
    /// The least round trip of the last minutes, and when it was measured; zero before the first.
    min_rtt: Duration,
    min_rtt_at: Instant,
    /// The highest sequence number known to have arrived.
    fack: Seq,
}

impl Rack {
    /// A round trip. The least one is that of the last minutes: routes change.
    fn measured(&mut self, rtt: Duration, now: Instant) {
        const LASTS: Duration = Duration::from_secs(300);
        if self.min_rtt.is_zero() || rtt <= self.min_rtt || now.since(self.min_rtt_at) > LASTS {
            (self.min_rtt, self.min_rtt_at) = (rtt, now);
        }
    }
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
    /// Sums of `len` over the segments with the flag.
    sacked: u32,
    lost: u32,
    resent: u32,
    /// The part of `lost` that was not retransmitted since.
    unsent: u32,
    sacked_segments: u32,
    /// Duplicate acknowledgements of a peer without SACK: segments that left the network.
    duplicates: u32,
    rack: Rack,
    /// Blocks that were walked through, the oldest first: the same again, or a part of one, tells nothing.
    known: Known,
    /// Segments that SACK blocks had looked at.
    #[cfg(test)]
    looked_at: u64,
}

/// A few SACK blocks. A peer may send what we know already as often as it likes, and about thousands of segments.
#[derive(Debug, Default)]
struct Known(VecDeque<(Seq, Seq)>);

impl Known {
    /// Most blocks: twice what an acknowledgement carries.
    const MOST: usize = 8;

    fn covers(&self, (left, right): (Seq, Seq)) -> bool {
        self.0.iter().any(|&(from, to)| from.at_or_before(left) && right.at_or_before(to))
    }

    fn add(&mut self, block: (Seq, Seq)) {
        if self.0.len() >= Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back(block);
    }
}

impl Scoreboard {
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.segments.len() >= MAX_SEGMENTS
    }

    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.known.0.clear();
        let known = core::mem::take(&mut self.known);
        *self = Self { segments: core::mem::take(&mut self.segments), known, ..Self::default() };
    }

    /// Bytes believed to be in the network out of `flight` unacknowledged ones (RFC 6675 §4, SetPipe).
    pub(crate) fn pipe(&self, flight: u32, mss: u32) -> u32 {
        (flight + self.resent).saturating_sub(self.sacked + self.lost + self.duplicates * mss)
    }

    /// Whether anything is known to be missing or out of order.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.sacked != 0 || self.lost != 0 || self.duplicates != 0
    }

    /// A new segment leaves, with these control bits.
    pub(crate) fn sent(&mut self, seq: Seq, len: u32, flags: Flags, now: Instant) {
        debug_assert!(self.segments.back().is_none_or(|last| last.end() == seq));
        self.segments.push_back(InFlight {
            seq,
            len,
            sent_at: now,
            syn: flags.contains(Flags::SYN),
            fin: flags.contains(Flags::FIN),
            push: flags.contains(Flags::PSH),
            sacked: false,
            lost: false,
            resent: false,
            ever_resent: false,
            either: false,
        });
    }

    /// The first lost segment that was not retransmitted since.
    pub(crate) fn next_lost(&self) -> Option<InFlight> {
        if self.unsent == 0 {
            return None;
        }
        self.segments.iter().find(|segment| segment.lost && !segment.resent).copied()
    }

    /// The last segment in flight: what a tail loss probe repeats.
    pub(crate) fn last(&self) -> Option<InFlight> {
        self.segments.back().copied()
    }

    /// Whether the first segment left more than once.
    pub(crate) fn first_was_repeated(&self) -> bool {
        self.segments.front().is_some_and(|first| first.ever_resent)
    }

    /// The segment at `seq` leaves again, cut to `len` sequence numbers when it is longer.
    pub(crate) fn retransmitted(&mut self, seq: Seq, len: u32, now: Instant) {
        let Some(index) = self.index_of(seq) else { return };
        let mut segment = self.segments[index];
        if len < segment.len {
            self.split(index, len);
            segment = self.segments[index];
        }
        if !segment.resent {
            self.resent += segment.len;
            self.unsent -= if segment.lost { segment.len } else { 0 };
        }
        (segment.resent, segment.ever_resent, segment.sent_at) = (true, true, now);
        self.segments[index] = segment;
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
            self.segments.pop_front();
            self.forget(&first);
            left += 1;
            if !first.sacked {
                progress.delivered += first.len;
                self.arrived(&first, now, &mut progress);
            }
        }
        // One acknowledgement filled the hole, the others are the duplicates counted before.
        if known > 0 && left > 1 {
            progress.delivered = progress.delivered / left * (left - known.min(left - 1));
        }
        self.duplicates = self.duplicates.saturating_sub(left.max(1) - 1).min(self.segments.len() as u32);
        if self.sacked == 0 {
            self.known.0.clear();
        }
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
        self.known.0.retain(|(_, right)| right.after(una));
        for &(left, right) in &ordered[..count] {
            if !left.before(right) || left.before(una) || right.after(nxt) || self.known.covers((left, right))
            {
                continue;
            }
            self.known.add((left, right));
            let first = self.segments.partition_point(|segment| segment.seq.before(left));
            for index in first..self.segments.len() {
                #[cfg(test)]
                {
                    self.looked_at += 1;
                }
                let segment = self.segments[index];
                if segment.end().after(right) {
                    break;
                }
                if segment.sacked {
                    continue;
                }
                self.forget(&segment);
                let slot = &mut self.segments[index];
                (slot.sacked, slot.lost, slot.resent) = (true, false, false);
                self.sacked += segment.len;
                self.sacked_segments += 1;
                progress.delivered += segment.len;
                self.arrived(&segment, now, &mut progress);
            }
        }
        progress
    }

    /// A duplicate acknowledgement of a peer without SACK; whether it is the one that means loss.
    pub(crate) fn duplicate_ack(&mut self) -> bool {
        self.duplicates = (self.duplicates + 1).min(self.segments.len() as u32);
        self.duplicates == DUP_THRESH
    }

    /// The first segment is lost (NewReno: third duplicate, or partial acknowledgement).
    pub(crate) fn mark_first_lost(&mut self) {
        if let Some(&first) = self.segments.front() {
            self.mark_lost(0, first);
        }
    }

    /// RFC 8985 §6.2, step 5: marks what was sent long enough before something that has arrived. Returns whether
    /// anything is newly lost, and until when to wait for the next candidate.
    pub(crate) fn detect_losses(&mut self, now: Instant, patience: &Patience) -> (bool, Option<Instant>) {
        let window = self.reordering_window(patience);
        let (mut any, mut wait) = (false, None);
        for index in 0..self.segments.len() {
            let segment = self.segments[index];
            let overtaken = self.sent_before_rack(&segment);
            if !overtaken && !segment.ever_resent {
                // Whatever is behind it left later still.
                break;
            }
            if segment.sacked || (segment.lost && !segment.resent) || !overtaken {
                continue;
            }
            let deadline = segment.sent_at + self.rack.rtt + window;
            if deadline <= now {
                self.mark_lost(index, segment);
                any = true;
            } else {
                wait = Some(wait.map_or(deadline, |wait: Instant| wait.min(deadline)));
            }
        }
        (any, wait)
    }

    /// Segments with more data than `most` bytes did not fit through the path: they are lost.
    pub(crate) fn mark_longer_lost(&mut self, most: u32) {
        for index in 0..self.segments.len() {
            let segment = self.segments[index];
            let data = segment.len - u32::from(segment.syn) - u32::from(segment.fin);
            if data > most && !segment.sacked {
                self.mark_lost(index, segment);
            }
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
        self.known.0.clear();
        self.duplicates = 0;
        for index in 0..self.segments.len() {
            let mut segment = self.segments[index];
            if segment.sacked && !reneged {
                continue;
            }
            self.forget(&segment);
            segment.sacked = false;
            if reneged || is_lost(index, &segment) {
                (segment.lost, segment.resent) = (true, false);
            }
            self.lost += if segment.lost { segment.len } else { 0 };
            self.resent += if segment.resent { segment.len } else { 0 };
            self.unsent += if segment.lost && !segment.resent { segment.len } else { 0 };
            self.segments[index] = segment;
        }
    }

    /// Nothing was lost after all. What has not left again is on its way.
    pub(crate) fn forgive(&mut self) {
        for index in 0..self.segments.len() {
            let mut segment = self.segments[index];
            if segment.lost && !segment.resent {
                self.forget(&segment);
                segment.lost = false;
            }
            segment.either |= segment.ever_resent;
            self.segments[index] = segment;
        }
    }

    /// What arrived before what is void; the next arrival says it anew.
    pub(crate) fn forget_order(&mut self) {
        let Rack { min_rtt, min_rtt_at, .. } = self.rack;
        self.rack = Rack { min_rtt, min_rtt_at, ..Rack::default() };
    }

    /// Whether SACK blocks alone show a loss: enough segments beyond a hole (RFC 6675 §5).
    fn enough_sacked(&self) -> bool {
        self.sacked_segments >= DUP_THRESH
    }

    fn reordering_window(&self, patience: &Patience) -> Duration {
        let plain = patience.recovering || self.enough_sacked();
        patience.reordering.window(self.rack.min_rtt, patience.smoothed, plain)
    }

    fn sent_before_rack(&self, segment: &InFlight) -> bool {
        segment.sent_at < self.rack.sent_at
            || (segment.sent_at == self.rack.sent_at && segment.end().before(self.rack.end))
    }

    /// RFC 8985 §6.2 steps 1 to 3, and the round-trip sample.
    fn arrived(&mut self, segment: &InFlight, now: Instant, progress: &mut Progress) {
        let rtt = now.since(segment.sent_at);
        if !segment.ever_resent {
            progress.rtt = Some(progress.rtt.map_or(rtt, |least| least.min(rtt)));
            self.rack.measured(rtt, now);
            let known = self.rack.sent_at != Instant::default();
            if known && segment.end().before(self.rack.fack) {
                progress.reordered |= segment.sent_at <= self.rack.sent_at;
            }
        } else if rtt < self.rack.min_rtt || segment.either {
            // Most likely the answer to the first copy, or [forgiven](Self::forgive).
            return;
        }
        let known = self.rack.sent_at != Instant::default();
        if !known || segment.end().after(self.rack.fack) {
            self.rack.fack = segment.end();
        }
        if !known || !self.newer_than(segment) {
            (self.rack.sent_at, self.rack.end, self.rack.rtt) = (segment.sent_at, segment.end(), rtt);
        }
    }

    fn newer_than(&self, segment: &InFlight) -> bool {
        self.rack.sent_at > segment.sent_at
            || (self.rack.sent_at == segment.sent_at && self.rack.end.after(segment.end()))
    }

    fn mark_lost(&mut self, index: usize, segment: InFlight) {
        self.forget(&segment);
        self.lost += segment.len;
        self.unsent += segment.len;
        let slot = &mut self.segments[index];
        (slot.lost, slot.resent) = (true, false);
    }

    /// Takes a segment's length out of the sums.
    fn forget(&mut self, segment: &InFlight) {
        self.sacked -= if segment.sacked { segment.len } else { 0 };
        self.sacked_segments -= u32::from(segment.sacked);
        self.lost -= if segment.lost { segment.len } else { 0 };
        self.resent -= if segment.resent { segment.len } else { 0 };
        self.unsent -= if segment.lost && !segment.resent { segment.len } else { 0 };
    }

    /// Cuts the first segment at `ack`, which lies inside it; by how much.
    fn trim_front(&mut self, ack: Seq) -> u32 {
        let Some(&first) = self.segments.front() else { return 0 };
        let cut = ack.distance(first.seq);
        self.split(0, cut);
        if let Some(head) = self.segments.pop_front() {
            self.forget(&head);
        }
        if first.sacked { 0 } else { cut }
    }

    /// Makes two segments of one; the first gets `len`.
    fn split(&mut self, index: usize, len: u32) {
        self.known.0.clear();
        let mut tail = self.segments[index];
        debug_assert!(len > 0 && len < tail.len);
        let head = &mut self.segments[index];
        head.len = len;
        (head.fin, head.push) = (false, false);
        tail.seq += len;
        tail.len -= len;
        tail.syn = false;
        self.sacked_segments += u32::from(tail.sacked);
        self.segments.insert(index + 1, tail);
    }

    fn index_of(&self, seq: Seq) -> Option<usize> {
        let index = self.segments.partition_point(|segment| segment.seq.before(seq));
        (self.segments.get(index)?.seq == seq).then_some(index)
    }

    #[cfg(test)]
    pub(crate) fn check(&self, una: Seq, nxt: Seq) {
        let mut seq = una;
        let (mut sacked, mut lost, mut resent, mut unsent) = (0, 0, 0, 0);
        for segment in &self.segments {
            assert_eq!(segment.seq, seq, "segments in flight are contiguous");
            assert!(!(segment.sacked && (segment.lost || segment.resent)));
            seq = segment.end();
            sacked += if segment.sacked { segment.len } else { 0 };
            lost += if segment.lost { segment.len } else { 0 };
            resent += if segment.resent { segment.len } else { 0 };
            unsent += if segment.lost && !segment.resent { segment.len } else { 0 };
        }
        assert_eq!(seq, nxt, "and reach SND.NXT");
        assert_eq!((sacked, lost, resent, unsent), (self.sacked, self.lost, self.resent, self.unsent));
    }
}

#[cfg(test)]
mod tests {
    use super::{Flags, Instant, MAX_SEGMENTS, Scoreboard, Seq};

    #[test]
    fn blocks_that_are_known_cost_nothing_of_however_many_segments_they_are() {
        const LEN: u32 = 1000;
        let mut board = Scoreboard::default();
        let at = |segment: u32| Seq(u32::MAX - 5 * LEN) + segment * LEN;
        let segments = MAX_SEGMENTS as u32;
        (0..segments).for_each(|segment| board.sent(at(segment), LEN, Flags(0), Instant(1)));
        let bounds = (at(0), at(segments));
        let told = board.selectively_acknowledge(&[(at(1), at(segments))], bounds, Instant(2));
        assert_eq!((told.delivered, board.looked_at), ((segments - 1) * LEN, u64::from(segments) - 1));
        for from in 1..500 {
            let parts = [(at(from), at(segments)), (at(1), at(from + 1)), (at(from), at(from + 500))];
            assert_eq!(board.selectively_acknowledge(&parts, bounds, Instant(3)).delivered, 0);
        }
        assert_eq!(board.looked_at, u64::from(segments) - 1);
        // Whoever goes back on a block may repeat it.
        board.acknowledge(at(1), Instant(4));
        board.mark_all_lost();
        let told = board.selectively_acknowledge(&[(at(1), at(3))], (at(1), at(segments)), Instant(5));
        assert_eq!(told.delivered, 2 * LEN);
    }
}
