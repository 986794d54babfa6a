//! The frame in the driver's buffer: bounds-checked reads and writes of whole words. Not what they mean.

use aya_ebpf::helpers::bpf_xdp_adjust_tail;
use aya_ebpf::programs::XdpContext;
use core::arch::asm;
use tcpguard_common::packet::{Frame, FrameMut};

/// One frame.
pub(crate) struct Packet<'a> {
    ctx: &'a XdpContext,
    start: usize,
    end: usize,
}

impl<'a> Packet<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        // SAFETY: two words of the context, which is there as long as the program runs. Volatile for `forget`:
        // the verifier treats what each load returns as pointers it has seen nothing of.
        let (start, end) = unsafe {
            ((&raw const (*ctx.ctx).data).read_volatile(), (&raw const (*ctx.ctx).data_end).read_volatile())
        };
        Self { ctx, start: start as usize, end: end as usize }
    }

    /// Where `N` bytes at `offset` lie.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<usize> {
        const { assert!(matches!(N, 1 | 2 | 4 | 6 | 8 | 16 | 20), "`by_words` does not do this size") };
        let address = self.start + offset;
        (address + N <= self.end).then_some(address)
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

    /// Twice a number and the number shifted by one are the same, which the verifier does not work out.
    #[inline(always)]
    fn opaque(&self, value: u32) -> u32 {
        let mut zero = u64::from(self.ctx.rx_queue_index());
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
        value ^ zero as u32
    }

    #[inline(always)]
    fn opaque_offset(&self, offset: usize) -> usize {
        (self.opaque(offset as u32) & 0x3fff) as usize
    }
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
        *self = Self::new(self.ctx);
        (!refused).then_some(())
    }

    #[inline(always)]
    fn forget(&mut self) {
        *self = Self::new(self.ctx);
    }
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
