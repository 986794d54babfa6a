//! The Internet checksum (RFC 1071). Partial sums are `u64`s of 32-bit words as they lie in memory: byte order
//! cancels out (RFC 1071 §2(B)), and 2^32 words fit before a carry is lost.

use super::{Family, Frame, ip::PROTOCOL_TCP, part};

/// The longest segment [`of_segment`] sums, bytes: any frame of an interface that XDP accepts without
/// multi-buffer support.
pub const MAX_SEGMENT: usize = 4096;

/// The sum of a slice that starts at an even offset of what is summed.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    let sum = chunks.by_ref().fold(0u64, |sum, chunk| match chunk.try_into() {
        Ok(chunk) => sum + word64(chunk),
        Err(_) => sum,
    });
    let mut tail = [0; 8];
    for (to, &from) in tail.iter_mut().zip(chunks.remainder()) {
        *to = from;
    }
    sum + word64(tail)
}

/// The sum of the TCP pseudo header of a segment of `l4_len` bytes (RFC 9293 §3.1, RFC 8200 §8.1).
#[inline(always)]
pub fn pseudo<A: Family>(src: A, dst: A, l4_len: usize) -> u64 {
    pseudo_of(PROTOCOL_TCP, src, dst, l4_len)
}

/// The same of `len` bytes of another protocol.
#[inline(always)]
pub(super) fn pseudo_of<A: Family>(protocol: u8, src: A, dst: A, len: usize) -> u64 {
    let [high, low] = (len as u16).to_be_bytes();
    src.sum() + dst.sum() + u64::from(u32::from_ne_bytes([0, protocol, high, low]))
}

/// The checksum field, as it goes on the wire, that makes a sum come out right.
#[inline(always)]
pub fn finish(sum: u64) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

/// Whether a sum that includes the checksum field is right.
#[inline(always)]
pub fn holds(sum: u64) -> bool {
    fold(sum) == 0xffff
}

/// The longest header [`of_header`] sums, bytes: what four bits can say in words.
pub const MAX_HEADER: usize = 60;

/// The shortest header of IPv4 and of TCP, bytes.
const MIN_HEADER: usize = 20;

/// The sum of a header of IPv4 or TCP at `offset` of a frame: `len` bytes, a multiple of 4 from 20 to [`MAX_HEADER`]. `None`
/// when it leaves the frame.
#[inline(always)]
pub fn of_header<F: Frame + ?Sized>(frame: &F, offset: usize, len: usize) -> Option<u64> {
    let (offset, len) = (frame.opaque_offset(offset), frame.opaque(len as u32) as usize);
    let (options, fixed) = (offset + MIN_HEADER, of_words::<5>(frame.words(offset)?));
    // The lengths of nearly all headers: none, and the options of an ACK or of Windows' SYN, and of Linux' SYN.
    Some(
        fixed
            + match len {
                0..=MIN_HEADER => 0,
                32 => of_words::<3>(frame.words(options)?),
                40 => of_words::<5>(frame.words(options)?),
                _ => {
                    let mut sum = 0;
                    for word in 0..(MAX_HEADER - MIN_HEADER) / 4 {
                        if MIN_HEADER + word * 4 >= len {
                            break;
                        }
                        sum += of_words::<1>(frame.words(options + word * 4)?);
                    }
                    sum
                }
            },
    )
}

/// The sum of words.
#[inline(always)]
pub(super) fn of_words<const W: usize>(words: [u32; W]) -> u64 {
    words.iter().fold(0, |sum, &word| sum + u64::from(word))
}

/// The sum of `len` bytes at `offset` of a frame, at most [`MAX_SEGMENT`] of them and otherwise `None`, as when they leave
/// the frame. In steps whose number is bounded by a constant.
#[inline(always)]
pub fn of_segment<F: Frame + ?Sized>(frame: &F, offset: usize, len: usize) -> Option<u64> {
    const STEP: usize = 32;
    if len > MAX_SEGMENT {
        return None;
    }
    let (mut sum, mut at) = (0, 0);
    for _ in 0..MAX_SEGMENT / STEP {
        if at + STEP > len {
            break;
        }
        let step: [u8; STEP] = frame.load(offset + at)?;
        for word in 0..STEP / 4 {
            sum += u64::from(u32::from_ne_bytes(part(&step, word * 4)));
        }
        at += STEP;
    }
    at = frame.opaque_offset(at);
    for _ in 0..STEP / 4 {
        if at + 4 > len {
            break;
        }
        sum += u64::from(u32::from_ne_bytes(frame.load(offset + at)?));
        at += 4;
    }
    if at + 2 <= len {
        sum += u64::from(u16::from_ne_bytes(frame.load(offset + at)?));
        at += 2;
    }
    if at < len {
        let [last] = frame.load(offset + at)?;
        sum += u64::from(u16::from_ne_bytes([last, 0]));
    }
    Some(sum)
}

#[inline(always)]
fn word64(bytes: [u8; 8]) -> u64 {
    let word = u64::from_ne_bytes(bytes);
    (word & 0xffff_ffff) + (word >> 32)
}

#[inline(always)]
fn fold(sum: u64) -> u16 {
    // The upper half of a number and of itself with its halves exchanged is the sum of its halves, carry and all.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}
