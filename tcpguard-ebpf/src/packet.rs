//! The frame in the driver's buffer: bounds-checked reads and writes of whole words. Not what they mean.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_xdp_adjust_tail;
use aya_ebpf::programs::XdpContext;
use core::arch::asm;
use tcpguard_common::packet::{self, Frame, FrameMut, checksum};

/// One frame.
pub(crate) struct Packet<'a> {
    ctx: &'a XdpContext,
    start: usize,
    end: usize,
    /// Zero, which the verifier does not know.
    zero: u32,
}

impl<'a> Packet<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        let (start, end) = Self::ends(ctx);
        Self { ctx, start, end, zero: zero(ctx.rx_queue_index()) }
    }

    #[inline(always)]
    fn ends(ctx: &XdpContext) -> (usize, usize) {
        // SAFETY: two words of the context, which is there as long as the program runs. Volatile for `forget`:
        // the verifier treats what each load returns as pointers it has seen nothing of.
        let (start, end) = unsafe {
            ((&raw const (*ctx.ctx).data).read_volatile(), (&raw const (*ctx.ctx).data_end).read_volatile())
        };
        (start as usize, end as usize)
    }

    /// Where `len` bytes at `offset` lie.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<usize> {
        let address = self.start + offset;
        let mut behind = address + len;
        if len == 1 {
            // SAFETY: no instruction. The compiler would compare the address itself with the end, from which the verifier
            // learns nothing.
            unsafe {
                asm!("/* {behind} */", behind = inout(reg) behind, options(pure, nomem, nostack, preserves_flags))
            };
        }
        (behind <= self.end).then_some(address)
    }
}

impl Frame for Packet<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        let mut len = self.end;
        // SAFETY: arithmetic in two registers. By hand: where a difference goes on in 32 bits, the compiler subtracts in 32
        // bits, which the verifier refuses for pointers.
        unsafe {
            asm!(
                "{len} -= {start}",
                len = inout(reg) len,
                start = in(reg) self.start,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        len
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        const { assert!(matches!(N, 1 | 2 | 4 | 6 | 8 | 12 | 14 | 16 | 32), "`by_words` does not do this size") };
        let address = self.at(offset, N)?;
        let mut bytes = [0; N];
        // SAFETY: the N bytes lie between the frame's start and end, as just checked (and checked again by the
        // verifier).
        unsafe { read(address, &mut bytes) };
        Some(bytes)
    }

    #[inline(always)]
    fn words<const W: usize>(&self, offset: usize) -> Option<[u32; W]> {
        let address = self.at(offset, 4 * W)?;
        let mut words = [0; W];
        // SAFETY: as above.
        unsafe { read_words(address, &mut words) };
        Some(words)
    }

    #[inline(always)]
    fn opaque(&self, value: u32) -> u32 {
        value ^ self.zero
    }

    #[inline(always)]
    fn opaque_offset(&self, offset: usize) -> usize {
        (self.opaque(offset as u32) & 0x3fff) as usize
    }

    #[inline(always)]
    fn find_options(&self, start: usize, len: usize) -> Option<u64> {
        some(find_options(self.ctx.ctx, start as u32, len as u32))
    }

    #[inline(always)]
    fn sum(&self, offset: usize, len: usize) -> Option<u64> {
        some(sum(self.ctx.ctx, offset as u32, len as u32))
    }

    #[inline(always)]
    fn find_tcp(&self, l3: usize, first: u8) -> Option<u32> {
        some(find_tcp(self.ctx.ctx, l3 as u32, first.into())).map(|found| found as u32)
    }
}

// Functions that are visible from outside are verified by themselves, once, with any numbers for arguments. What they
// find fits a register; all ones stand for nothing found, which no result has.

const NONE: u64 = u64::MAX;

#[inline(always)]
fn some(result: u64) -> Option<u64> {
    (result != NONE).then_some(result)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn find_options(ctx: *mut xdp_md, start: u32, len: u32) -> u64 {
    let (ctx, start, len) = (XdpContext::new(ctx), bounded(start), bounded(len));
    packet::find_options(&Packet::new(&ctx), start, len).unwrap_or(NONE)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn sum(ctx: *mut xdp_md, offset: u32, len: u32) -> u64 {
    let (ctx, offset) = (XdpContext::new(ctx), bounded(offset));
    checksum::of_segment(&Packet::new(&ctx), offset, len as usize).unwrap_or(NONE)
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn find_tcp(ctx: *mut xdp_md, l3: u32, first: u32) -> u64 {
    let (ctx, l3) = (XdpContext::new(ctx), bounded(l3));
    packet::find_tcp(&Packet::new(&ctx), l3, first as u8).map_or(NONE, u64::from)
}

/// An offset that the verifier knows a bound of.
#[inline(always)]
pub(crate) fn bounded(offset: u32) -> usize {
    (offset & 0x3fff) as usize
}

impl FrameMut for Packet<'_> {
    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        const { assert!(matches!(N, 1 | 2 | 4 | 6 | 8 | 12 | 16), "`by_words` does not do this size") };
        let address = self.at(offset, N)?;
        // SAFETY: as in `load`.
        unsafe { write(address, &bytes) };
        Some(())
    }

    #[inline(always)]
    fn store_words<const W: usize>(&mut self, offset: usize, words: [u32; W]) -> Option<()> {
        let address = self.at(offset, 4 * W)?;
        // SAFETY: as in `load`.
        unsafe { write_words(address, &words) };
        Some(())
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Option<()> {
        let delta = len as i32 - self.len() as i32;
        // SAFETY: the context is the one the kernel gave us; the pointers it invalidates are read anew below.
        let refused = unsafe { bpf_xdp_adjust_tail(self.ctx.ctx, delta) } != 0;
        self.forget();
        (!refused).then_some(())
    }

    #[inline(always)]
    fn forget(&mut self) {
        (self.start, self.end) = Self::ends(self.ctx);
    }
}

/// Twice a number and the number shifted by one are the same, which the verifier does not work out.
#[inline(always)]
fn zero(number: u32) -> u32 {
    let mut zero = u64::from(number);
    // SAFETY: arithmetic in two registers.
    unsafe {
        asm!(
            "{twice} = {zero}",
            "{twice} += {zero}",
            "{zero} <<= 1",
            "{zero} ^= {twice}",
            zero = inout(reg) zero,
            twice = out(reg) _,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    zero as u32
}

// Header fields are not aligned in memory. The kernel lets a program read and write them whole all the same, but
// LLVM's BPF backend does not know and would go byte by byte (its switch for that would misalign the stack too,
// which the verifier refuses); hence one instruction at a time, by hand.

macro_rules! load {
    ($address:ident, $offset:literal, $type:ty, $name:literal) => {{
        let word: u64;
        asm!(
            concat!("{word} = *(", $name, " *)({address} + ", $offset, ")"),
            word = out(reg) word,
            address = in(reg) $address,
            options(pure, readonly, nostack, preserves_flags),
        );
        // A load fills the register with zeroes. Not told so, the compiler does it again, in two instructions.
        core::hint::assert_unchecked(word <= <$type>::MAX as u64);
        word as $type
    }};
}

macro_rules! store {
    ($address:ident, $offset:literal, $word:expr, $name:literal) => {
        asm!(
            concat!("*(", $name, " *)({address} + ", $offset, ") = {word}"),
            word = in(reg) u64::from($word),
            address = in(reg) $address,
            options(nostack, preserves_flags),
        )
    };
}

macro_rules! read {
    ($address:ident, $bytes:ident, $offset:literal, $type:ty, $name:literal) => {{
        let word = load!($address, $offset, $type, $name);
        $bytes[$offset..$offset + size_of::<$type>()].copy_from_slice(&word.to_ne_bytes());
    }};
}

macro_rules! write {
    ($address:ident, $bytes:ident, $offset:literal, $type:ty, $name:literal) => {{
        let mut word = [0; size_of::<$type>()];
        word.copy_from_slice(&$bytes[$offset..$offset + size_of::<$type>()]);
        store!($address, $offset, <$type>::from_ne_bytes(word), $name);
    }};
}

macro_rules! by_words {
    ($access:ident, $address:ident, $bytes:ident) => {
        match $bytes.len() {
            1 => $access!($address, $bytes, 0, u8, "u8"),
            2 => $access!($address, $bytes, 0, u16, "u16"),
            4 => $access!($address, $bytes, 0, u32, "u32"),
            6 => {
                $access!($address, $bytes, 0, u32, "u32");
                $access!($address, $bytes, 4, u16, "u16");
            }
            8 => $access!($address, $bytes, 0, u64, "u64"),
            12 => {
                $access!($address, $bytes, 0, u32, "u32");
                $access!($address, $bytes, 4, u16, "u16");
                $access!($address, $bytes, 6, u32, "u32");
                $access!($address, $bytes, 10, u16, "u16");
            }
            14 => {
                $access!($address, $bytes, 0, u32, "u32");
                $access!($address, $bytes, 4, u16, "u16");
                $access!($address, $bytes, 6, u32, "u32");
                $access!($address, $bytes, 10, u16, "u16");
                $access!($address, $bytes, 12, u16, "u16");
            }
            16 => {
                $access!($address, $bytes, 0, u32, "u32");
                $access!($address, $bytes, 4, u32, "u32");
                $access!($address, $bytes, 8, u32, "u32");
                $access!($address, $bytes, 12, u32, "u32");
            }
            32 => {
                $access!($address, $bytes, 0, u32, "u32");
                $access!($address, $bytes, 4, u32, "u32");
                $access!($address, $bytes, 8, u32, "u32");
                $access!($address, $bytes, 12, u32, "u32");
                $access!($address, $bytes, 16, u32, "u32");
                $access!($address, $bytes, 20, u32, "u32");
                $access!($address, $bytes, 24, u32, "u32");
                $access!($address, $bytes, 28, u32, "u32");
            }
            // Refused when compiled, see `load` and `store`.
            _ => {}
        }
    };
}

/// # Safety
///
/// The `N` bytes at `address` lie inside the frame.
#[inline(always)]
unsafe fn read<const N: usize>(address: usize, bytes: &mut [u8; N]) {
    // SAFETY: loads of `N` bytes altogether, which are there by the contract.
    unsafe { by_words!(read, address, bytes) }
}

/// # Safety
///
/// The `N` bytes at `address` lie inside the frame.
#[inline(always)]
unsafe fn write<const N: usize>(address: usize, bytes: &[u8; N]) {
    // SAFETY: stores of `N` bytes altogether, which are there by the contract.
    unsafe { by_words!(write, address, bytes) }
}

/// Words that [`read_words`] and [`write_words`] deal with at most, and where each of them lies.
macro_rules! for_each_word {
    ($words:ident, $do:ident) => {
        const { assert!(W <= 10) };
        $do!($words, 0 0, 1 4, 2 8, 3 12, 4 16, 5 20, 6 24, 7 28, 8 32, 9 36);
    };
}

/// # Safety
///
/// `4 * W` bytes at `address` lie inside the frame.
#[inline(always)]
unsafe fn read_words<const W: usize>(address: usize, words: &mut [u32; W]) {
    macro_rules! each {
        ($words:ident, $($index:literal $offset:literal),+) => { $(
            if let Some(word) = $words.get_mut($index) {
                // SAFETY: a load of a word, which is there by the contract.
                *word = unsafe { load!(address, $offset, u32, "u32") };
            }
        )+ };
    }
    for_each_word!(words, each);
}

/// # Safety
///
/// `4 * W` bytes at `address` lie inside the frame.
#[inline(always)]
unsafe fn write_words<const W: usize>(address: usize, words: &[u32; W]) {
    macro_rules! each {
        ($words:ident, $($index:literal $offset:literal),+) => { $(
            if let Some(word) = $words.get($index) {
                // SAFETY: a store of a word, which is there by the contract.
                unsafe { store!(address, $offset, *word, "u32") };
            }
        )+ };
    }
    for_each_word!(words, each);
}
