//! TCP options (RFC 9293 §3.2, RFC 7323, RFC 2018): one bounded walk for XDP and the stack. Options it does not
//! know, or of a length that is not theirs, are skipped; of duplicates the last counts.

use super::Frame;
use crate::seq::Seq;

/// Bytes of options a header can hold.
pub const MAX_OPTIONS: usize = 40;
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
        let mut found = Found::default();
        walk(frame, start, len, |kind, offset, size| found.take(frame, kind, offset, size))?;
        Some(found.options(frame))
    }

    /// As [`Self::parse`], with SACK blocks.
    pub fn parse_all<F: Frame + ?Sized>(frame: &F, start: usize, len: usize) -> Option<Self> {
        let (mut found, mut sack) = (Found::default(), SackBlocks::default());
        walk(frame, start, len, |kind, offset, size| {
            if kind == SACK {
                sack = sack_blocks(frame, offset, size)?;
            }
            found.take(frame, kind, offset, size)
        })?;
        Some(Self { sack, ..found.options(frame) })
    }
}

/// What a walk has come across so far.
#[derive(Default)]
struct Found {
    /// One bit for each kind.
    kinds: u32,
    mss: u16,
    shift: u8,
    value: u32,
    echo: u32,
}

impl Found {
    #[inline(always)]
    fn take<F: Frame + ?Sized>(&mut self, frame: &F, kind: u8, offset: usize, size: usize) -> Option<()> {
        match (kind, size) {
            (MSS, 4) => self.mss = u16::from_be_bytes(frame.load(offset + 2)?),
            (WINDOW_SCALE, 3) => [self.shift] = frame.load(offset + 2)?,
            (SACK_PERMITTED, 2) => {}
            (TIMESTAMPS, 10) => {
                self.value = u32::from_be_bytes(frame.load(offset + 2)?);
                self.echo = u32::from_be_bytes(frame.load(offset + 6)?);
            }
            _ => return Some(()),
        }
        self.kinds |= 1 << kind;
        Some(())
    }

    #[inline(always)]
    fn options<F: Frame + ?Sized>(&self, frame: &F) -> Options {
        let kinds = frame.opaque(self.kinds);
        let has = |kind: u8| kinds >> kind & 1 != 0;
        Options {
            mss: has(MSS).then_some(self.mss),
            window_scale: has(WINDOW_SCALE).then_some(self.shift.min(WINDOW_SCALE_MAX)),
            sack_permitted: has(SACK_PERMITTED),
            timestamps: has(TIMESTAMPS).then_some((self.value, self.echo)),
            sack: SackBlocks::default(),
        }
    }
}

/// Calls `visit` with kind, offset in the frame and whole size of every option but NOP. `None` when one is
/// malformed, or `visit` says so.
#[inline(always)]
fn walk<F: Frame + ?Sized>(
    frame: &F,
    start: usize,
    len: usize,
    mut visit: impl FnMut(u8, usize, usize) -> Option<()>,
) -> Option<()> {
    let (start, len) = (frame.opaque_offset(start), frame.opaque(len as u32) as usize);
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
        visit(kind, start + at, size)?;
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
