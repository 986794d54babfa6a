//! One segment in flight, its place among the others, and sums over many. What becomes of it is next door.

use core::cmp::Ordering;

use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;

use crate::time::Instant;

/// One segment in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    pub(crate) seq: Seq,
    /// Sequence numbers it takes: data, and one each for SYN and FIN.
    pub(crate) len: u32,
    /// When it was sent last.
    pub(super) sent_at: Instant,
    /// SYN and FIN if it has them, and PSH if its end was marked.
    marks: Flags,
    pub(super) sacked: bool,
    pub(super) lost: bool,
    /// Retransmitted, and that copy not known to be lost.
    pub(super) resent: bool,
    /// Retransmitted at any time: no round-trip sample comes from it (Karn).
    pub(super) ever_resent: bool,
    /// It was taken for lost when it was not: which copy arrives first says nothing.
    pub(super) either: bool,
    /// At least so many right behind it are selectively acknowledged, if it is: they are passed over in one step.
    pub(super) run: u16,
}

impl InFlight {
    pub(super) fn new(seq: Seq, len: u32, marks: Flags, now: Instant) -> Self {
        Self {
            seq,
            len,
            sent_at: now,
            marks,
            sacked: false,
            lost: false,
            resent: false,
            ever_resent: false,
            either: false,
            run: 0,
        }
    }

    /// Whether it has this control bit, of SYN, FIN and PSH.
    pub(crate) fn has(&self, mark: Flags) -> bool {
        self.marks.contains(mark)
    }

    /// Bytes of data in it.
    pub(crate) fn data(&self) -> u32 {
        self.len - u32::from(self.has(Flags::SYN)) - u32::from(self.has(Flags::FIN))
    }

    pub(super) fn end(&self) -> Seq {
        self.seq + self.len
    }

    /// Whether a copy is believed to be in the network.
    pub(super) fn is_on_its_way(&self) -> bool {
        !self.sacked && (!self.lost || self.resent)
    }

    /// Whether that copy is the first.
    pub(super) fn is_first_copy(&self) -> bool {
        !self.ever_resent && self.is_on_its_way()
    }

    /// Whether that copy is a repetition.
    pub(super) fn is_repeat(&self) -> bool {
        self.ever_resent && self.is_on_its_way()
    }

    /// Whether it is lost and did not leave again since.
    pub(super) fn awaits_repair(&self) -> bool {
        self.lost && !self.resent
    }

    /// Where it stands in the stream.
    pub(super) fn place(&self) -> Place {
        Place(self.seq)
    }

    /// Where it stands among all that was sent, by its last copy.
    pub(super) fn turn(&self) -> (Instant, Place) {
        (self.sent_at, self.place())
    }

    /// Its first `len` sequence numbers, and the others.
    pub(super) fn split(self, len: u32) -> (Self, Self) {
        debug_assert!(len > 0 && len < self.len);
        let with = |mark: Flags| Flags(self.marks.0 & mark.0);
        let head = Self { len, marks: with(Flags::SYN), run: 0, ..self };
        let marks = with(Flags::FIN | Flags::PSH);
        (head, Self { seq: self.seq + len, len: self.len - len, marks, ..self })
    }
}

/// A place in the stream, to sort by: all that is in flight lies within half of the sequence numbers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub(super) Seq);

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0.distance(other.0) as i32).cmp(&0)
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Sums over segments: of `len`, and one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) sacked: u32,
    pub(super) lost: u32,
    pub(super) resent: u32,
    pub(super) sacked_segments: u32,
}

impl Sums {
    pub(super) fn add(&mut self, segment: &InFlight) {
        self.sacked += if segment.sacked { segment.len } else { 0 };
        self.lost += if segment.lost { segment.len } else { 0 };
        self.resent += if segment.resent { segment.len } else { 0 };
        self.sacked_segments += u32::from(segment.sacked);
    }

    pub(super) fn subtract(&mut self, segment: &InFlight) {
        self.sacked -= if segment.sacked { segment.len } else { 0 };
        self.lost -= if segment.lost { segment.len } else { 0 };
        self.resent -= if segment.resent { segment.len } else { 0 };
        self.sacked_segments -= u32::from(segment.sacked);
    }
}
