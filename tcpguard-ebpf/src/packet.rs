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

    /// Where `N` bytes at `offset` lie.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<usize> {
        const { assert!(matches!(N, 1 | 2 | 4 | 6 | 8 | 16 | 20 | 32), "`by_words` does not do this size") };
        let address = self.start + offset;
        let mut behind = address + N;
        if N == 1 {
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
        self.end - self.start
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let address = self.at::<N>(offset)?;
        let mut bytes = [0; N];
        // SAFETY: the N bytes lie between the frame's start and end, as just checked (and checked again by the
        // verifier).
        unsafe { read(address, &mut bytes) };
        Some(bytes)
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
        let address = self.at::<N>(offset)?;
        // SAFETY: as in `load`.
        unsafe { write(address, &bytes) };
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

macro_rules! read {
    ($address:ident, $bytes:ident, $offset:literal, $type:ty, $name:literal) => {{
        let word: u64;
        asm!(
            concat!("{word} = *(", $name, " *)({address} + ", $offset, ")"),
            word = out(reg) word,
            address = in(reg) $address,
            options(pure, readonly, nostack, preserves_flags),
        );
        $bytes[$offset..$offset + size_of::<$type>()].copy_from_slice(&(word as $type).to_ne_bytes());
    }};
}

macro_rules! write {
    ($address:ident, $bytes:ident, $offset:literal, $type:ty, $name:literal) => {{
        let mut word = [0; size_of::<$type>()];
        word.copy_from_slice(&$bytes[$offset..$offset + size_of::<$type>()]);
        asm!(
            concat!("*(", $name, " *)({address} + ", $offset, ") = {word}"),
            word = in(reg) u64::from(<$type>::from_ne_bytes(word)),
            address = in(reg) $address,
            options(nostack, preserves_flags),
        );
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
            16 => {
                $access!($address, $bytes, 0, u32, "u32");
                $access!($address, $bytes, 4, u32, "u32");
                $access!($address, $bytes, 8, u32, "u32");
                $access!($address, $bytes, 12, u32, "u32");
            }
            20 => {
                $access!($address, $bytes, 0, u32, "u32");
                $access!($address, $bytes, 4, u32, "u32");
                $access!($address, $bytes, 8, u32, "u32");
                $access!($address, $bytes, 12, u32, "u32");
                $access!($address, $bytes, 16, u32, "u32");
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
            // Refused when compiled, see `Packet::at`.
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
