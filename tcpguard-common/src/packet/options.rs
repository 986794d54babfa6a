//! TCP options (RFC 9293 §3.2, RFC 7323, RFC 2018): one bounded walk for XDP and the stack. Options it does not
//! know, or of a length that is not theirs, are skipped; of duplicates the last counts.

use super::Frame;
use crate::seq::Seq;

/// Bytes of options a header can hold.
pub const MAX_OPTIONS: usize = 40;
/// Words that the usual layouts have at most, a timestamps option counting once.
const MAX_WORDS: usize = 5;
/// A larger window shift counts as this one (RFC 7323 §2.3).
pub const WINDOW_SCALE_MAX: u8 = 14;

pub(super) const END: u8 = 0;
pub(super) const NOP: u8 = 1;
pub(super) const MSS: u8 = 2;
pub(super) const WINDOW_SCALE: u8 = 3;
pub(super) const SACK_PERMITTED: u8 = 4;
pub(super) const SACK: u8 = 5;
pub(super) const TIMESTAMPS: u8 = 8;

/// The options of one segment, for reading and for writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Maximum segment size, bytes.
    pub mss: Option<u16>,
    /// Window shift, at most [`WINDOW_SCALE_MAX`].
    pub window_scale: Option<u8>,
    /// Whether selective acknowledgments are welcome.
    pub sack_permitted: bool,
    /// TSval and TSecr.
    pub timestamps: Option<(u32, u32)>,
    /// Selective acknowledgments.
    pub sack: SackBlocks,
}

/// Up to four blocks of selectively acknowledged data, left edge and right edge, in the order of the option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SackBlocks {
    count: u8,
    blocks: [(Seq, Seq); 4],
}

impl SackBlocks {
    /// Appends a block; with four already there it does nothing.
    pub fn push(&mut self, left: Seq, right: Seq) {
        if let Some(free) = self.blocks.get_mut(usize::from(self.count)) {
            *free = (left, right);
            self.count += 1;
        }
    }

    /// The blocks.
    pub fn as_slice(&self) -> &[(Seq, Seq)] {
        self.blocks.get(..usize::from(self.count)).unwrap_or_default()
    }
}

impl Options {
    /// The `len` bytes of options at `start`, without SACK blocks: what XDP needs. `None` when an option's
    /// length is below 2 or runs past the header (RFC 9293 §3.1, MUST-7).
    #[inline(always)]
    pub fn parse<F: Frame + ?Sized>(frame: &F, start: usize, len: usize) -> Option<Self> {
        let found = match usual(frame, start, len)? {
            Some(found) => found,
            None => Found(frame.find_options(start, len)?),
        };
        found.options(frame, start)
    }

    /// As [`Self::parse`], with SACK blocks.
    pub fn parse_all<F: Frame + ?Sized>(frame: &F, start: usize, len: usize) -> Option<Self> {
        let (mut found, mut sack) = (Found::default(), SackBlocks::default());
        walk(frame, start, len, |kind, at, size| {
            if kind == SACK {
                sack = sack_blocks(frame, start + at, size)?;
            }
            found = found.with(frame, start, kind, at, size)?;
            Some(())
        })?;
        Some(Self { sack, ..found.options(frame, start)? })
    }
}

/// The `len` bytes of options at `start`, in a form that fits a register: what [`Frame::find_options`] is to return.
/// `None` as [`Options::parse`] has it.
#[inline(always)]
pub fn find<F: Frame + ?Sized>(frame: &F, start: usize, len: usize) -> Option<u64> {
    let found = match by_words(frame, start, len)? {
        Some(found) => found,
        None => by_bytes(frame, start, len)?,
    };
    Some(found.0)
}

/// What a walk has come across so far: from the lowest bit on, the MSS (16 bits), the window shift (8), where the
/// timestamps option stands behind the start (8), and a bit for each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found(u64);

impl Found {
    const MSS: u64 = 0xffff;
    const SHIFT: u64 = 0xff_0000;
    const STAMPS: u64 = 0xff00_0000;
    const KINDS: u32 = 32;

    #[inline(always)]
    fn with_kind(self, kind: u8) -> Self {
        Self(self.0 | 1 << (Self::KINDS + u32::from(kind)))
    }

    #[inline(always)]
    fn with_mss(self, mss: [u8; 2]) -> Self {
        Self(self.0 & !Self::MSS | u64::from(u16::from_be_bytes(mss))).with_kind(MSS)
    }

    #[inline(always)]
    fn with_shift(self, shift: u8) -> Self {
        Self(self.0 & !Self::SHIFT | u64::from(shift) << 16).with_kind(WINDOW_SCALE)
    }

    /// With the MSS option that fills a word, if it is one.
    #[inline(always)]
    fn with_mss_in(self, [a, b, mss @ ..]: [u8; 4]) -> Option<Self> {
        ([a, b] == word::MSS_HEAD).then(|| self.with_mss(mss))
    }

    /// With the window scale option that fills a word behind a NOP, if it is one.
    #[inline(always)]
    fn with_shift_in(self, [a, b, c, shift]: [u8; 4]) -> Option<Self> {
        ([a, b, c] == word::SCALE_HEAD).then(|| self.with_shift(shift))
    }

    /// The timestamps option is the one `behind` bytes after `at`, which counts from the start of the options.
    #[inline(always)]
    fn with_stamps(self, at: usize, behind: usize) -> Self {
        Self(self.0 & !Self::STAMPS | ((at + behind) as u64 & 0x3f) << 24).with_kind(TIMESTAMPS)
    }

    /// With the option of this kind and whole size, `at` bytes behind `start`.
    #[inline(always)]
    fn with<F: Frame + ?Sized>(
        self,
        frame: &F,
        start: usize,
        kind: u8,
        at: usize,
        size: usize,
    ) -> Option<Self> {
        Some(match (kind, size) {
            (MSS, 4) => self.with_mss(frame.load(start + at + 2)?),
            (WINDOW_SCALE, 3) => {
                let [shift] = frame.load(start + at + 2)?;
                self.with_shift(shift)
            }
            (SACK_PERMITTED, 2) => self.with_kind(SACK_PERMITTED),
            (TIMESTAMPS, 10) => self.with_stamps(at, 0),
            _ => self,
        })
    }

    #[inline(always)]
    fn options<F: Frame + ?Sized>(self, frame: &F, start: usize) -> Option<Options> {
        let has = |kind: u8| self.0 >> (Self::KINDS + u32::from(kind)) & 1 != 0;
        let timestamps = if has(TIMESTAMPS) {
            let at = frame.opaque_offset(start + (self.0 >> 24 & 0x3f) as usize);
            let [value, echo] = frame.words(at + 2)?;
            Some((u32::from_be(value), u32::from_be(echo)))
        } else {
            None
        };
        Some(Options {
            mss: has(MSS).then_some(self.0 as u16),
            window_scale: has(WINDOW_SCALE).then_some(((self.0 >> 16) as u8).min(WINDOW_SCALE_MAX)),
            sack_permitted: has(SACK_PERMITTED),
            timestamps,
            sack: SackBlocks::default(),
        })
    }
}

/// The layouts of nearly all segments whose options matter: none, an ACK's timestamps, and the SYNs of Linux and of Windows.
/// Not worth a call. `Some(None)` for any other; `None` when the options leave the frame.
#[inline(always)]
fn usual<F: Frame + ?Sized>(frame: &F, start: usize, len: usize) -> Option<Option<Found>> {
    let found = Found::default();
    if len == 0 {
        return Some(Some(found));
    }
    if len == 12 {
        let [a, b, c] = frame.words(start)?.map(u32::to_ne_bytes);
        return Some(if a == word::STAMPS {
            Some(found.with_stamps(0, 2))
        } else {
            found
                .with_mss_in(a)
                .and_then(|found| found.with_shift_in(b))
                .filter(|_| c == word::SACK)
                .map(|found| found.with_kind(SACK_PERMITTED))
        });
    }
    if len == 20 {
        let [a, b, _, _, c] = frame.words(start)?.map(u32::to_ne_bytes);
        let found = found.with_mss_in(a).and_then(|found| found.with_shift_in(c));
        return Some(
            found
                .filter(|_| b == word::SACK_AND_STAMPS)
                .map(|found| found.with_stamps(4, 2).with_kind(SACK_PERMITTED)),
        );
    }
    Some(None)
}

/// Any layout, option by option.
#[inline(always)]
fn by_bytes<F: Frame + ?Sized>(frame: &F, start: usize, len: usize) -> Option<Found> {
    let mut found = Found::default();
    walk(frame, start, len, |kind, at, size| {
        found = found.with(frame, start, kind, at, size)?;
        Some(())
    })?;
    Some(found)
}

/// What fills whole words in the layouts that operating systems use; an option goes on in the words after its first.
mod word {
    use super::{END, MSS, NOP, SACK_PERMITTED, TIMESTAMPS, WINDOW_SCALE};

    pub(super) const MSS_HEAD: [u8; 2] = [MSS, 4];
    pub(super) const SCALE_HEAD: [u8; 3] = [NOP, WINDOW_SCALE, 3];
    pub(super) const STAMPS: [u8; 4] = [NOP, NOP, TIMESTAMPS, 10];
    pub(super) const SACK_AND_STAMPS: [u8; 4] = [SACK_PERMITTED, 2, TIMESTAMPS, 10];
    pub(super) const SACK: [u8; 4] = [NOP, NOP, SACK_PERMITTED, 2];
    pub(super) const SACK_AND_END: [u8; 4] = [SACK_PERMITTED, 2, END, END];
}

/// The layouts in which every option begins and ends at a word's edge, padding included: Linux, Windows, Apple's and the
/// BSDs' SYNs, and everybody's ACKs. `Some(None)` when the options are not laid out so; `None` when they leave the frame.
#[inline(always)]
fn by_words<F: Frame + ?Sized>(frame: &F, start: usize, len: usize) -> Option<Option<Found>> {
    let (mut found, mut at) = (Found::default(), 0);
    for _ in 0..MAX_WORDS {
        at = frame.opaque_offset(at);
        if at >= len {
            return Some(Some(found));
        }
        if at + 4 > len {
            return Some(None);
        }
        let word = frame.load::<4>(start + at)?;
        let [a, b, c, d] = word;
        if word == word::STAMPS || word == word::SACK_AND_STAMPS {
            if at + 12 > len {
                return Some(None);
            }
            found = found.with_stamps(at, 2);
            if word == word::SACK_AND_STAMPS {
                found = found.with_kind(SACK_PERMITTED);
            }
            at += 8;
        } else if [a, b] == word::MSS_HEAD {
            found = found.with_mss([c, d]);
        } else if [a, b, c] == word::SCALE_HEAD {
            found = found.with_shift(d);
        } else if word == word::SACK || word == word::SACK_AND_END && at + 4 == len {
            found = found.with_kind(SACK_PERMITTED);
        } else {
            return Some(None);
        }
        at += 4;
    }
    Some(if at >= len { Some(found) } else { None })
}

/// Calls `visit` with kind, place behind the start and whole size of every option but NOP. `None` when one is malformed, or
/// `visit` says so.
#[inline(always)]
fn walk<F: Frame + ?Sized>(
    frame: &F,
    start: usize,
    len: usize,
    mut visit: impl FnMut(u8, usize, usize) -> Option<()>,
) -> Option<()> {
    let mut at = 0;
    for _ in 0..MAX_OPTIONS {
        at = frame.opaque_offset(at);
        if at >= len {
            break;
        }
        let [kind] = frame.load(start + at)?;
        if kind == END {
            break;
        }
        if kind == NOP {
            at += 1;
            continue;
        }
        let [size] = frame.load(start + at + 1)?;
        let size = usize::from(size);
        if size < 2 || at + size > len {
            return None;
        }
        visit(kind, at, size)?;
        at += size;
    }
    Some(())
}

fn sack_blocks<F: Frame + ?Sized>(frame: &F, offset: usize, size: usize) -> Option<SackBlocks> {
    let mut blocks = SackBlocks::default();
    if size % 8 == 2 {
        for block in 0..size / 8 {
            let left = u32::from_be_bytes(frame.load(offset + 2 + block * 8)?);
            let right = u32::from_be_bytes(frame.load(offset + 6 + block * 8)?);
            blocks.push(Seq(left), Seq(right));
        }
    }
    Some(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// What a SYN's options are made of, and what comes close.
    const WORDS: [[u8; 4]; 12] = [
        [MSS, 4, 5, 180],
        [MSS, 4, 0, 1],
        [NOP, WINDOW_SCALE, 3, 7],
        [NOP, WINDOW_SCALE, 3, 200],
        word::STAMPS,
        word::SACK_AND_STAMPS,
        word::SACK,
        word::SACK_AND_END,
        [NOP; 4],
        [MSS, 3, 5, 180],
        [TIMESTAMPS, 10, 1, 1],
        [0, 0, 0, 9],
    ];

    proptest! {
        #[test]
        fn options_read_by_words_are_those_read_byte_by_byte(
            words in prop::collection::vec(0..WORDS.len(), 0..11),
            start in 0..3usize,
        ) {
            let options: Vec<u8> = words.iter().flat_map(|&word| WORDS[word]).collect();
            let frame = [&[9; 3][..start], &options, &[9; 12]].concat();
            for read in [usual, by_words] {
                if let Some(found) = read(&frame[..], start, options.len()).unwrap() {
                    prop_assert_eq!(Some(found), by_bytes(&frame[..], start, options.len()));
                }
            }
        }
    }

    #[test]
    fn the_layouts_of_operating_systems_are_read_by_words() {
        let stamps = [0, 0, 0, 1, 0, 0, 0, 0];
        let linux = [&WORDS[0][..], &word::SACK_AND_STAMPS, &stamps, &WORDS[2]].concat();
        let freebsd = [&WORDS[0][..], &WORDS[2], &word::SACK_AND_STAMPS, &stamps].concat();
        let windows = [WORDS[0], WORDS[2], word::SACK].concat();
        let apple = [&WORDS[0][..], &WORDS[2], &word::STAMPS, &stamps, &word::SACK_AND_END].concat();
        let ack = [&word::STAMPS[..], &stamps].concat();
        for options in [linux, freebsd, windows, apple, ack, Vec::new()] {
            let found = by_words(&options[..], 0, options.len()).unwrap();
            assert!(found.is_some() && found == by_bytes(&options[..], 0, options.len()), "{options:?}");
        }
    }
}
