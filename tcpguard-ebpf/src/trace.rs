//! Records of single packets for `tcpguard monitor`. Functions of their own, which the verifier follows once, and which
//! are not called while nobody watches. A frame is copied as it arrives and recorded once its verdict is known. What is logged
//! besides is `log`'s.

use core::arch::asm;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{
    bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{PerCpuArray, RingBuf};
use tcpguard_common::trace::{
    IN, IN_DRY_RUN, LOST, LOST_BEYOND_RATE, LOST_RING_FULL, OUT, PER_WINDOW, RING_BYTES, Record, SNAP, window,
};

use crate::{SETTINGS, log};

#[map]
static TRACE: RingBuf = RingBuf::with_byte_size(RING_BYTES, 0);
#[map]
static TRACE_LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(LOST, 0);
#[map]
static TRACE_DRAFT: PerCpuArray<Draft> = PerCpuArray::with_max_entries(1, 0);

/// No frame is shorter.
const ETHERNET_HEADER: u64 = 14;
/// The reader looks by itself: waking it would cost the packet's time.
const BPF_RB_NO_WAKEUP: u64 = 1;

/// The record of the frame that is being judged, and how many this CPU has written lately.
struct Draft {
    record: Record,
    window: u64,
    written: u32,
    /// What is in the record: the frame that is being judged, or an earlier one.
    fresh: u32,
}

/// Copies the frame as it arrived.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn trace_arrival(ctx: *mut xdp_md, engine: u32, service: u32) -> u64 {
    let Some(draft) = draft() else { return 0 };
    // SAFETY: a helper without arguments that any program may call.
    let now = unsafe { bpf_ktime_get_ns() };
    if draft.window != window(now) {
        (draft.window, draft.written) = (window(now), 0);
    }
    draft.fresh = 1;
    draft.record.service = service;
    if draft.written < PER_WINDOW {
        draft.record.time = now;
        draft.record.engine = engine;
        // SAFETY: as for the time.
        draft.record.cpu = unsafe { bpf_get_smp_processor_id() };
        copy(ctx, &mut draft.record);
    }
    0
}

/// Records the frame with its verdict, and the answer that it was turned into; and has it logged.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn trace_verdict(ctx: *mut xdp_md, reason: u32, answered: u32, dry_run: u32) -> u64 {
    let (Some(draft), Some(settings)) = (draft(), SETTINGS.get(0)) else { return 0 };
    if settings.trace.is_logged() {
        log::log_verdict(ctx, reason, dry_run);
    }
    // Between the two calls somebody may have begun to watch.
    if draft.fresh == 0 || !settings.trace.takes(reason, draft.record.service) {
        return 0;
    }
    draft.fresh = 0;
    draft.record.reason = reason;
    draft.record.direction = if dry_run != 0 { IN_DRY_RUN } else { IN };
    write(draft);
    if answered != 0 {
        if draft.written < PER_WINDOW {
            copy(ctx, &mut draft.record);
            draft.record.direction = OUT;
        }
        write(draft);
    }
    0
}

#[inline(always)]
fn draft() -> Option<&'static mut Draft> {
    // SAFETY: this CPU's own value, which nothing else writes while an XDP program runs on it.
    unsafe { TRACE_DRAFT.get_ptr_mut(0)?.as_mut() }
}

#[inline(always)]
fn copy(ctx: *mut xdp_md, record: &mut Record) {
    // SAFETY: the context is the one the kernel gave us.
    let len = unsafe { bpf_xdp_get_buff_len(ctx) } as u32;
    record.len = len;
    record.captured = 0;
    let captured = bounded(u64::from(len).min(SNAP as u64));
    if captured > SNAP as u64 {
        return;
    }
    let captured = bounded(captured);
    if captured < ETHERNET_HEADER {
        return;
    }
    // SAFETY: as many bytes as lie in the frame and as there is room for.
    if unsafe { bpf_xdp_load_bytes(ctx, 0, record.frame.as_mut_ptr().cast(), captured as u32) } == 0 {
        record.captured = captured as u32;
    }
}

/// The same number. The compiler knows its bounds and would leave out the comparisons that tell them to the verifier, or
/// make one of the two that follow each other.
#[inline(always)]
fn bounded(mut number: u64) -> u64 {
    // SAFETY: copies a register to itself. An instruction, since the kernel refuses two lines of source for one.
    unsafe {
        asm!("{number} = {number}", number = inout(reg) number, options(pure, nomem, nostack, preserves_flags))
    };
    number
}

#[inline(always)]
fn write(draft: &mut Draft) {
    if draft.written >= PER_WINDOW {
        return lose(LOST_BEYOND_RATE);
    }
    draft.written += 1;
    if TRACE.output::<Record>(&draft.record, BPF_RB_NO_WAKEUP).is_err() {
        lose(LOST_RING_FULL);
    }
}

#[inline(always)]
fn lose(how: u32) {
    if let Some(count) = TRACE_LOST.get_ptr_mut(how) {
        // SAFETY: as for the draft.
        unsafe { *count += 1 }
    }
}
