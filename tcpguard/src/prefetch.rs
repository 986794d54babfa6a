//! Memory that will be needed, asked for before it is.

/// Bytes of a cache line, on the machines that are meant here.
const LINE: usize = 64;

/// Asks for so many cache lines from `start` on, and waits for none. Changes nothing, whatever is at that address, if anything is.
pub(crate) fn prefetch(start: *const (), lines: usize) {
    for line in 0..lines {
        one(start.wrapping_byte_add(line * LINE));
    }
}

#[cfg(target_arch = "x86_64")]
fn one(address: *const ()) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which cannot fault: an address that nothing is at is ignored.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[cfg(target_arch = "aarch64")]
fn one(address: *const ()) {
    // SAFETY: a hint, which cannot fault: an address that nothing is at is ignored.
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{}]", in(reg) address, options(nostack, readonly, preserves_flags))
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn one(_address: *const ()) {}
