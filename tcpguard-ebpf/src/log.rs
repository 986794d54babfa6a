//! What XDP says of single segments through aya-log, while `xdp-log` is on: whom it judged, and why. A function of its own beside
//! the judgement, which the verifier follows once, and which is not called otherwise. An attacker causes what it says, so
//! each CPU says so much and no more. `tcpguard::dataplane` reads it.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::debug;
use tcpguard_common::flow::{V4, V6};
use tcpguard_common::packet::{Ethernet, Family, Fault, Frame as _};
use tcpguard_common::trace::{LOGGED_DRY_RUN, LOGGED_PER_WINDOW, window};

use crate::packet::Packet;

#[map]
static LOG_DRAFT: PerCpuArray<Draft> = PerCpuArray::with_max_entries(1, 0);

/// How much this CPU has said lately, and between whom the frame that was judged travels.
#[repr(C, align(8))]
struct Draft {
    window: u64,
    said: u32,
    /// Verdicts that were not logged since the last message.
    missed: u32,
    /// IPv4 addresses stand mapped into IPv6 (RFC 4291 §2.5.5.2).
    src: [u8; 16],
    dst: [u8; 16],
    /// The sender's in the upper half; 0 where none are in sight.
    ports: u32,
}

/// Logs a verdict, unless this CPU has logged as many as it may.
#[inline(never)]
#[unsafe(no_mangle)]
pub(crate) extern "C" fn log_verdict(ctx: *mut xdp_md, reason: u32, dry_run: u32) -> u64 {
    // SAFETY: this CPU's own value, which nothing else writes while an XDP program runs on it.
    let Some(draft) = (unsafe { LOG_DRAFT.get_ptr_mut(0).and_then(|draft| draft.as_mut()) }) else {
        return 0;
    };
    // SAFETY: a helper without arguments that any program may call.
    let now = window(unsafe { bpf_ktime_get_coarse_ns() });
    if draft.window != now {
        (draft.window, draft.said) = (now, 0);
    }
    if draft.said >= LOGGED_PER_WINDOW {
        draft.missed = draft.missed.wrapping_add(1);
        return 0;
    }
    draft.said += 1;
    note_ends(ctx, draft);
    say(ctx, draft, reason | if dry_run != 0 { LOGGED_DRY_RUN } else { 0 });
    draft.missed = 0;
    0
}

/// Notes between whom the frame travels: an answer, if it was turned into one.
#[inline(never)]
fn note_ends(ctx: *mut xdp_md, draft: &mut Draft) {
    (draft.src, draft.dst, draft.ports) = ([0; 16], [0; 16], 0);
    let ctx = XdpContext::new(ctx);
    let packet = Packet::new(&ctx);
    let Some(ethernet) = Ethernet::parse(&packet) else { return };
    let l3 = packet.opaque_offset(ethernet.l3);
    match ethernet.ether_type {
        <V4 as Family>::ETHER_TYPE => {
            let mapped = |V4([a, b, c, d])| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
            note(&packet, l3, draft, mapped);
        }
        <V6 as Family>::ETHER_TYPE => note(&packet, l3, draft, |V6(address)| address),
        _ => {}
    }
}

#[inline(never)]
fn note<A: Family>(packet: &Packet<'_>, l3: usize, draft: &mut Draft, address: impl Fn(A) -> [u8; 16]) {
    let Some(plain) = A::parse_plain(packet, l3) else { return };
    (draft.src, draft.dst) = (address(plain.src), address(plain.dst));
    // An ICMP error has none, and where headers hide them they are not looked for.
    let tcp = A::parse(packet, l3).filter(|ip| ip.fault != Fault::HEADER_CHAIN);
    draft.ports = tcp.and_then(|ip| packet.load(ip.l4)).map_or(0, u32::from_be_bytes);
}

/// The message: words that `tcpguard::dataplane` takes apart again.
#[inline(never)]
fn say(ctx: *mut xdp_md, draft: &Draft, verdict: u32) {
    debug!(ctx, target: "xdp", "{} {:i} {:i} {} {}", verdict, draft.src, draft.dst, draft.ports, draft.missed);
}
