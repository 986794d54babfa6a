//! The benchmark's XDP programs: one that rewrites the whole frame and then runs another program in its place, and
//! those that other programs are compared with. None of them is part of the guard.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

#[path = "../object.rs"]
mod object;
#[path = "../packet.rs"]
mod packet;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP};
use aya_ebpf::helpers::bpf_xdp_adjust_tail;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, ProgramArray, XskMap};
use aya_ebpf::programs::XdpContext;
use tcpguard_common::bench::{ACK_COOKIE, ACK_NONE, Ends, Numbers, Rewrite, TEMPLATE_LEN, TEMPLATE_WORDS};
use tcpguard_common::cookie::{self, Strictness, SynOptions};
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::packet::{Ethernet, Frame as _, FrameMut as _, Tcp, checksum};

use crate::packet::Packet;

#[map]
static CONFIG: Array<Rewrite> = Array::with_max_entries(1, 0);
#[map]
static POSITION: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static TARGET: XskMap = XskMap::with_max_entries(1, 0);

/// Makes the next frame, whatever the last run left, and runs the program in question on it.
#[xdp]
fn rewrite(ctx: XdpContext) -> u32 {
    if next_frame(&ctx).is_some() {
        // SAFETY: nothing here is owned, so nothing is lost by not coming back.
        unsafe { NEXT.tail_call(&ctx, 0) };
    }
    XDP_ABORTED
}

/// Does nothing.
#[xdp]
fn null(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

/// What redirecting costs by itself.
#[xdp]
fn redirect(_ctx: XdpContext) -> u32 {
    TARGET.redirect(0, u64::from(XDP_DROP)).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn next_frame(ctx: &XdpContext) -> Option<()> {
    let config = CONFIG.get(0)?;
    let position = POSITION.get_ptr_mut(0)?;
    // SAFETY: the benchmark runs this program on one CPU at a time.
    let at = unsafe { *position };
    // SAFETY: as above.
    unsafe { *position = at.wrapping_add(1) };
    let mut frame = Packet::new(ctx);
    let len = config.len as usize;
    if len > TEMPLATE_LEN {
        // What is behind the template becomes zeroes, whatever ran before: the null pays for that, too.
        resize(&mut frame, ctx, TEMPLATE_LEN)?;
    }
    if frame.len() != len {
        resize(&mut frame, ctx, len)?;
    }
    copy_template(&mut frame, config);
    let number = config.number(at);
    if config.version == 4 {
        finish::<V4>(&mut frame, config, number)
    } else {
        finish::<V6>(&mut frame, config, number)
    }
}

/// As the frame does it, with a difference that the compiler does not take apart: it would subtract from a pointer.
#[inline(always)]
fn resize(frame: &mut Packet<'_>, ctx: &XdpContext, len: usize) -> Option<()> {
    let delta = len as i32 - frame.opaque(frame.len() as u32) as i32;
    // SAFETY: the context is the one the kernel gave us; the pointers it invalidates are read anew below.
    let refused = unsafe { bpf_xdp_adjust_tail(ctx.ctx, delta) } != 0;
    frame.forget();
    (!refused).then_some(())
}

/// Stops where the frame ends.
#[inline(always)]
fn copy_template(frame: &mut Packet<'_>, config: &Rewrite) {
    let mut whole = 0;
    for (index, word) in config.words.iter().enumerate().take(TEMPLATE_WORDS) {
        if frame.store(index * 8, word.to_ne_bytes()).is_none() {
            break;
        }
        whole = index + 1;
    }
    // A frame's length is even, so that up to three half words are left.
    let Some(&rest) = config.words.get(whole) else { return };
    let at = frame.opaque_offset(whole * 8);
    let [a, b, c, d, e, f, ..] = rest.to_ne_bytes();
    let _past_the_end = frame.store(at, [a, b]);
    let _past_the_end = frame.store(at + 2, [c, d]);
    let _past_the_end = frame.store(at + 4, [e, f]);
}

/// Fills in the source and the numbers, and makes the checksums right.
#[inline(always)]
fn finish<A: Ends>(frame: &mut Packet<'_>, config: &Rewrite, number: u64) -> Option<()> {
    let flow = config.flow::<A>(number);
    let numbers = numbers(config, &flow, number);
    let mut sum = config.tcp_sum + flow.peer.sum() + u64::from(u16::from_ne_bytes(numbers.port));
    let mut put = |at, number: u32| {
        let bytes = number.to_be_bytes();
        sum += u64::from(u32::from_ne_bytes(bytes));
        frame.store(at, bytes)
    };
    let l4 = Ethernet::LEN + A::HEADER_LEN;
    put(l4 + 4, numbers.seq)?;
    if config.ack != ACK_NONE {
        put(l4 + 8, numbers.ack)?;
    }
    if config.tsval != 0 {
        // Masked, so that the verifier knows a bound.
        let at = config.tsval as usize & (TEMPLATE_LEN - 1);
        put(at, numbers.tsval)?;
        if config.ack != ACK_NONE {
            put(at + 4, numbers.tsecr)?;
        }
    }
    frame.store(l4, numbers.port)?;
    frame.store(l4 + Tcp::CHECKSUM, checksum::finish(sum))?;
    if A::VERSION == 4 {
        frame.store(Ethernet::LEN + 10, checksum::finish(config.ip_sum + flow.peer.sum()))?;
    }
    flow.peer.store(frame, Ethernet::LEN + if A::VERSION == 4 { 12 } else { 8 })
}

#[inline(always)]
fn numbers<A: Ends>(config: &Rewrite, flow: &FlowKey<A>, number: u64) -> Numbers {
    let numbers = config.numbers(number);
    if config.ack != ACK_COOKIE {
        return numbers;
    }
    let syn = SynOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: (config.tsval != 0).then_some(1),
        ecn: false,
    };
    let cookie = cookie::encode(&config.slot, Strictness::NEVER, flow, numbers.seq.wrapping_sub(1), &syn, 0);
    Numbers { ack: cookie.isn.wrapping_add(1), tsecr: cookie.tsval.unwrap_or(0), ..numbers }
}
