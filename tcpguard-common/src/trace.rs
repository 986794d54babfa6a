//! Records of single packets and what became of them, as `tcpguard monitor` asks for them: what XDP puts into the ring
//! and engines into their channel. Not who reads them, nor how they are shown.

use crate::map::Settings;
use crate::reason::Reason;

/// Bytes of a frame that a record carries: every header of a segment that TCP and IP allow, and a little data.
pub const SNAP: usize = 256;
/// Bytes of the ring; a power of two of whole pages.
pub const RING_BYTES: u32 = 1 << 20;
/// Records that one CPU, or one engine, may write within a [`window`]. What is beyond is counted instead.
pub const PER_WINDOW: u32 = 128;
/// Verdicts that one CPU may log within a [`window`], on each interface. What is beyond is counted in the next message.
pub const LOGGED_PER_WINDOW: u32 = 16;
/// Beside the index of a reason that is logged: its service is in dry run.
pub const LOGGED_DRY_RUN: u32 = 1 << 8;
/// The bit of [`Wanted::reasons`] that has XDP log its verdicts, beside what it records. It is no reason's.
pub const LOG: u64 = 1 << 63;

/// [`Record::reason`] of what an engine sent: XDP had no part in it.
pub const ENGINE: u32 = u32::MAX;
/// [`Record::service`] where it is not known.
pub const NO_SERVICE: u32 = u32::MAX / 2;

/// [`Record::direction`] of a frame that arrived.
pub const IN: u32 = 0;
/// [`Record::direction`] of a frame that was sent.
pub const OUT: u32 = 1;
/// [`Record::direction`] of a frame that arrived, and passed because its service is in dry run.
pub const IN_DRY_RUN: u32 = 2;

/// Index into the lost counters: records that a CPU wrote no more of in that window.
pub const LOST_BEYOND_RATE: u32 = 0;
/// Index into the lost counters: records for which the ring had no room.
pub const LOST_RING_FULL: u32 = 1;
/// How many lost counters there are.
pub const LOST: u32 = 2;

/// One packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// When it was judged or sent, `CLOCK_MONOTONIC` nanoseconds.
    pub time: u64,
    /// Index among [`Reason::ALL`], or [`ENGINE`].
    pub reason: u32,
    /// The [index](crate::map::xsk_index) of its interface and queue.
    pub engine: u32,
    /// Index of the service in the daemon's configuration, or [`NO_SERVICE`].
    pub service: u32,
    /// [`IN`], [`OUT`] or [`IN_DRY_RUN`].
    pub direction: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// How many of them are in `frame`; what lies behind them there means nothing.
    pub captured: u32,
    /// Which CPU judged it: each counts its [`PER_WINDOW`] for itself, on each interface. 0 of what an engine sent.
    pub cpu: u32,
    /// For the alignment of the whole.
    pub padding: u32,
    /// The frame's beginning.
    pub frame: [u8; SNAP],
}

impl Record {
    /// Bytes in front of the frame's.
    const HEADER: usize = 40;

    /// A record of nothing.
    pub const EMPTY: Self = Self {
        time: 0,
        reason: ENGINE,
        engine: 0,
        service: NO_SERVICE,
        direction: IN,
        len: 0,
        captured: 0,
        cpu: 0,
        padding: 0,
        frame: [0; SNAP],
    };

    /// A frame that an engine sent.
    pub fn sent(time: u64, engine: u32, frame: &[u8]) -> Self {
        let captured = frame.len().min(SNAP);
        let mut record = Self {
            time,
            engine,
            direction: OUT,
            len: frame.len() as u32,
            captured: captured as u32,
            ..Self::EMPTY
        };
        record.frame[..captured].copy_from_slice(&frame[..captured]);
        record
    }

    /// The record in these bytes; `None` if it is none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let record = Self {
            time: u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?),
            reason: word(8)?,
            engine: word(12)?,
            service: word(16)?,
            direction: word(20)?,
            len: word(24)?,
            captured: word(28)?,
            cpu: word(32)?,
            padding: word(36)?,
            frame: bytes.get(Self::HEADER..)?.try_into().ok()?,
        };
        (record.captured <= record.len && record.captured as usize <= SNAP).then_some(record)
    }

    /// The bytes of the frame that were captured.
    pub fn bytes(&self) -> &[u8] {
        self.frame.get(..self.captured as usize).unwrap_or_default()
    }
}

/// What XDP is to record, and whether it is to log. Zeroed: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Wanted {
    /// One bit for each [`Reason`], by its index; and [`LOG`].
    pub reasons: u64,
    /// One more than the index of the only service to record; 0 for all.
    pub service: u64,
}

impl Wanted {
    /// Whether this segment is to be recorded.
    #[inline(always)]
    pub fn takes(&self, reason: u32, service: u32) -> bool {
        self.reasons >> (reason & 63) & 1 != 0
            && (self.service == 0 || self.service == u64::from(service) + 1)
    }

    /// The same, with verdicts logged or not.
    pub fn logged(self, on: bool) -> Self {
        Self { reasons: self.reasons & !LOG | if on { LOG } else { 0 }, ..self }
    }

    /// Whether verdicts are to be logged.
    #[inline(always)]
    pub fn is_logged(&self) -> bool {
        self.reasons & LOG != 0
    }
}

const _: () = assert!(Reason::COUNT < 64, "a bit of `Wanted::reasons` for each, and one for the log");

/// Whether anything is to be recorded or logged, read anew each time: it may change at any moment.
#[inline(always)]
pub fn is_on(settings: &Settings) -> bool {
    // SAFETY: an aligned word behind a reference.
    unsafe { (&raw const settings.trace.reasons).read_volatile() != 0 }
}

/// The stretch of time that `now`, nanoseconds, lies in: about an eighth of a second.
#[inline(always)]
pub const fn window(now: u64) -> u64 {
    now >> 27
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};
    use std::vec::Vec;

    #[test]
    fn a_record_reads_back_from_the_bytes_that_it_is_in_memory() {
        assert_eq!(offset_of!(Record, frame), Record::HEADER);
        assert_eq!(size_of::<Record>(), Record::HEADER + SNAP);
        let frame: Vec<u8> = (0..=255).chain(0..=99).collect();
        let record = Record { reason: 3, service: 7, cpu: 5, ..Record::sent(1 << 40, 65, &frame) };
        assert_eq!((record.len, record.captured, record.bytes()), (356, 256, &frame[..256]));
        let Record { reason, engine, service, direction, len, captured, cpu, padding, .. } = record;
        let words = [reason, engine, service, direction, len, captured, cpu, padding];
        let mut bytes = record.time.to_ne_bytes().to_vec();
        bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        bytes.extend(record.frame);
        assert_eq!(Record::from_bytes(&bytes), Some(record));
        assert_eq!(Record::from_bytes(&bytes[1..]), None);
        bytes[28..32].copy_from_slice(&257u32.to_ne_bytes());
        assert_eq!(Record::from_bytes(&bytes), None, "more captured than there is room for");
    }

    #[test]
    fn only_what_is_wanted_is_taken() {
        let wanted = Wanted { reasons: 1 << 5 | 1 << 62, service: 0 };
        assert!(wanted.takes(5, 0) && wanted.takes(62, 9) && !wanted.takes(4, 0));
        let of_one = Wanted { service: 10, ..wanted };
        assert!(of_one.takes(5, 9) && !of_one.takes(5, 8) && !of_one.takes(4, 9));
    }

    #[test]
    fn logging_is_switched_on_and_off_beside_what_is_recorded() {
        let wanted = Wanted { reasons: 1 << 5, service: 10 };
        let logged = wanted.logged(true);
        assert!(logged.is_logged() && !wanted.is_logged());
        assert!(logged.takes(5, 9) && !logged.takes(5, 8) && !logged.takes(4, 9));
        assert_eq!((logged.logged(true), logged.logged(false)), (logged, wanted));
        let alone = Wanted::default().logged(true);
        assert!((0..Reason::COUNT as u32).all(|reason| !alone.takes(reason, 0)), "it records nothing");
        assert!(is_on(&Settings { trace: alone, ..Settings::default() }), "and is looked at all the same");
    }
}
