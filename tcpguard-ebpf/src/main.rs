//! tcpguard's XDP program: binds the decision of `tcpguard-common` to packet memory, maps and clock. What it
//! decides is not written here.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod budgets;
mod filters;
mod log;
mod object;
mod packet;
mod trace;

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_NOEXIST, xdp_action, xdp_md};
use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, XskMap};
use aya_ebpf::programs::XdpContext;
use core::arch::asm;
use tcpguard_common::cookie::Epochs;
use tcpguard_common::decision::complaint;
use tcpguard_common::decision::opening::{self, Proven};
use tcpguard_common::decision::{self, Env, Insertion, Tables, Verdict};
use tcpguard_common::fingerprint::{self, WAYS};
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::known::{BUCKETS, Bucket, CROWDED, OCCUPIED_WORDS, Place, Presence, ROOM, occupied_at};
use tcpguard_common::map::{
    DEFAULT_MAX_FLOWS, EPOCH_SLOTS, EpochSlot, Flow, Interface, MAX_INTERFACES, MAX_SERVICES, PORT_WORDS,
    SERVICE_IDS, SERVICE_PLACES, Service, ServiceKey, ServicePlace, Settings, XSK_ENTRIES, xsk_index,
};
use tcpguard_common::packet::{Family, FrameMut};
use tcpguard_common::reason::{Class, Reason};

use crate::packet::{Packet, bounded};

/// Which of the guarded interfaces this instance of the program sits on; set when it is loaded.
#[unsafe(no_mangle)]
static SLOT: u32 = 0;
/// How large [`TIME_WAIT`] is, as [`fingerprint::bucket`] knows it; set when the program is loaded.
#[unsafe(no_mangle)]
static SPREAD: u32 = 0;

#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static EPOCHS: Array<EpochSlot> = Array::with_max_entries(EPOCH_SLOTS, 0);
#[map]
static INTERFACES: Array<Interface> = Array::with_max_entries(MAX_INTERFACES, 0);
#[map]
static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);
#[map]
static SERVICES_V4: HashMap<ServiceKey<V4>, Service> = HashMap::with_max_entries(MAX_SERVICES, 0);
#[map]
static SERVICES_V6: HashMap<ServiceKey<V6>, Service> = HashMap::with_max_entries(MAX_SERVICES, 0);
#[map]
static SERVICE_PLACES_V4: Array<ServicePlace<V4>> = Array::with_max_entries(SERVICE_PLACES, 0);
#[map]
static SERVICE_PLACES_V6: Array<ServicePlace<V6>> = Array::with_max_entries(SERVICE_PLACES, 0);
#[map]
static FLOWS_V4: HashMap<FlowKey<V4>, Flow> = HashMap::with_max_entries(DEFAULT_MAX_FLOWS, 0);
#[map]
static FLOWS_V6: HashMap<FlowKey<V6>, Flow> = HashMap::with_max_entries(DEFAULT_MAX_FLOWS, 0);
#[map]
static KNOWN: Array<Bucket> = Array::with_max_entries(BUCKETS, BPF_F_MMAPABLE);
#[map]
static OCCUPIED: Array<u64> = Array::with_max_entries(OCCUPIED_WORDS, BPF_F_MMAPABLE);
#[map]
static SOCKETS: XskMap = XskMap::with_max_entries(XSK_ENTRIES, 0);
#[map]
static HEARTBEATS: Array<u64> = Array::with_max_entries(XSK_ENTRIES, BPF_F_MMAPABLE);
#[map]
static TIME_WAIT: Array<[u32; WAYS as usize]> = Array::with_max_entries(BUCKETS, BPF_F_MMAPABLE);
/// The coarse clock stands still between two timer ticks, but asking for it is a call: 8 of what would be 60 ns.
#[map]
static TICK: PerCpuArray<Tick> = PerCpuArray::with_max_entries(1, 0);
/// Where a flow is put together that is to be inserted: 72 bytes less of the stack.
#[map]
static OPENING: PerCpuArray<Flow> = PerCpuArray::with_max_entries(1, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(2 * Reason::COUNT as u32, 0);
#[map]
static SERVICE_COUNTERS: PerCpuArray<[u64; Class::PLACES]> =
    PerCpuArray::with_max_entries(2 * SERVICE_IDS, 0);

/// The program, once for each guarded interface.
#[xdp]
fn tcpguard(ctx: XdpContext) -> u32 {
    action(&ctx)
}

/// The same where frames may take several buffers. What it sees of a frame is its first: a segment to a protected port that is
/// longer looks truncated.
#[xdp(frags)]
fn tcpguard_jumbo(ctx: XdpContext) -> u32 {
    action(&ctx)
}

#[inline(always)]
fn action(ctx: &XdpContext) -> u32 {
    let env = Maps::new(ctx);
    match decision::decide(&mut Packet::new(ctx), &env) {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Transmit => xdp_action::XDP_TX,
        // The socket was there a moment ago. If it is gone, the peer retries.
        Verdict::Redirect(engine) => {
            SOCKETS.redirect(engine, u64::from(xdp_action::XDP_DROP)).unwrap_or(xdp_action::XDP_DROP)
        }
    }
}

/// The coarse clock as it was in a timer tick, nanoseconds.
struct Tick {
    jiffies: u64,
    now: u64,
}

struct Maps {
    ctx: *mut xdp_md,
    slot: u32,
    queue: u32,
}

impl Maps {
    #[inline(always)]
    fn new(ctx: &XdpContext) -> Self {
        // SAFETY: an aligned load from a global that lives as long as the program. Volatile, because the loader
        // replaces its value after the compiler has seen it.
        let slot = unsafe { core::ptr::read_volatile(&raw const SLOT) };
        Self { ctx: ctx.ctx, slot, queue: ctx.rx_queue_index() }
    }
}

// Verified by themselves, as those in `packet`, and beside the rest of the decision, not below it: each may have the whole
// stack.
macro_rules! beside_the_judgement {
    ($family:ty, $open:ident, $reset:ident, $complaint:ident) => {
        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $open(ctx: *mut xdp_md, l3: u32, service: u32, allowed: u32) -> u32 {
            let ctx = XdpContext::new(ctx);
            let proven = Proven { service, allowed: allowed != 0, ..Proven::default() };
            opening::open::<$family, _, _>(&mut Packet::new(&ctx), &Maps::new(&ctx), bounded(l3), proven)
                as u32
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $reset(ctx: *mut xdp_md, l3: u32) -> u32 {
            let ctx = XdpContext::new(ctx);
            opening::reset::<$family, _>(&mut Packet::new(&ctx), bounded(l3)).into()
        }

        #[inline(never)]
        #[unsafe(no_mangle)]
        extern "C" fn $complaint(ctx: *mut xdp_md, l3: u32, queues: u32) -> u32 {
            let ctx = XdpContext::new(ctx);
            complaint::judge::<$family, _, _>(&Packet::new(&ctx), &Maps::new(&ctx), bounded(l3), queues)
                .map_or(u32::MAX, |reason| reason as u32)
        }
    };
}
beside_the_judgement!(V4, open_v4, reset_v4, complaint_v4);
beside_the_judgement!(V6, open_v6, reset_v6, complaint_v6);

impl Epochs for Maps {
    #[inline(always)]
    fn slot(&self, epoch: u32) -> Option<&EpochSlot> {
        EPOCHS.get(epoch % EPOCH_SLOTS).filter(|slot| slot.is_usable(epoch))
    }
}

impl Env for Maps {
    #[inline(always)]
    fn open<A: Family, F: FrameMut + ?Sized>(&self, _: &mut F, l3: usize, proven: Proven) -> Reason {
        let Proven { service, allowed, traced: _, dry_run: _ } = proven;
        let open = if A::VERSION == 4 { open_v4 } else { open_v6 };
        Reason::from_index(open(self.ctx, l3 as u32, service, allowed.into())).unwrap_or(Reason::AckInvalid)
    }

    #[inline(always)]
    fn reset<A: Family, F: FrameMut + ?Sized>(&self, _: &mut F, l3: usize) -> bool {
        let reset = if A::VERSION == 4 { reset_v4 } else { reset_v6 };
        reset(self.ctx, l3 as u32) != 0
    }

    #[inline(always)]
    fn judge_complaint<A: Family, F: FrameMut + ?Sized>(
        &self,
        _: &mut F,
        l3: usize,
        queues: u32,
    ) -> Option<Reason> {
        let judge = if A::VERSION == 4 { complaint_v4 } else { complaint_v6 };
        Reason::from_index(judge(self.ctx, l3 as u32, queues))
    }

    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn interface(&self) -> Option<&Interface> {
        INTERFACES.get(self.slot)
    }

    #[inline(always)]
    fn ports(&self, word: u32) -> u64 {
        PORTS.get(word).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn is_vacant(&self, bucket: u32) -> bool {
        let (word, bit) = occupied_at(bucket);
        OCCUPIED.get(word).is_some_and(|word| word & bit == 0)
    }

    #[inline(always)]
    fn presence(&self, place: Place) -> Presence {
        KNOWN.get(place.bucket).map_or(Presence::Unsure, |bucket| bucket.presence(place.tag))
    }

    #[inline(always)]
    fn enter(&self, place: Place) {
        let Some(bucket) = KNOWN.get_ptr_mut(place.bucket) else { return };
        let mut alone = false;
        for index in 0..ROOM {
            // SAFETY: an aligned word of the map's value.
            match unsafe { exchange((&raw mut (*bucket).tags).cast::<u32>().add(index), place.tag) } {
                0 => {
                    alone = true;
                    break;
                }
                was if was == place.tag => break,
                _ => {}
            }
        }
        if !alone {
            // SAFETY: as above; whoever changes it otherwise exchanges it for what it was.
            unsafe { (&raw mut (*bucket).crowded).write_volatile(CROWDED) };
        }
        let (word, bit) = occupied_at(place.bucket);
        if let Some(word) = OCCUPIED.get_ptr_mut(word) {
            // SAFETY: as above.
            unsafe { set_bits(word, bit) };
        }
    }

    #[inline(always)]
    fn fingerprints(&self, place: u32) -> [u32; WAYS as usize] {
        // SAFETY: as for the slot.
        let spread = unsafe { core::ptr::read_volatile(&raw const SPREAD) };
        TIME_WAIT.get(fingerprint::bucket(place, spread)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn queue(&self) -> u32 {
        self.queue
    }

    #[inline(always)]
    fn engine(&self, queue: u32) -> u32 {
        xsk_index(self.slot, queue)
    }

    #[inline(always)]
    fn heartbeat(&self, engine: u32) -> u64 {
        HEARTBEATS.get(engine).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn has_socket(&self, engine: u32) -> bool {
        SOCKETS.get(engine).is_some()
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments that any program may call, and that the kernel replaces by a load.
        let jiffies = unsafe { bpf_jiffies64() };
        // SAFETY: this CPU's own value, which nothing else writes while an XDP program runs on it.
        let tick = unsafe { TICK.get_ptr_mut(0).and_then(|tick| tick.as_mut()) };
        match tick {
            Some(tick) if tick.jiffies == jiffies => tick.now,
            tick => {
                // SAFETY: as for the other helper.
                let now = unsafe { bpf_ktime_get_coarse_ns() };
                if let Some(tick) = tick {
                    *tick = Tick { jiffies, now };
                }
                now
            }
        }
    }

    #[inline(always)]
    fn count(&self, reason: Reason, service: u32, dry_run: bool) {
        let half = u32::from(dry_run);
        if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32 + Reason::COUNT as u32 * half) {
            // SAFETY: this CPU's own value, which nothing else writes while an XDP program runs on it; the
            // verifier checks that the pointer stays inside.
            unsafe { *counter += 1 }
        }
        if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(service.wrapping_add(SERVICE_IDS * half)) {
            // SAFETY: likewise; a class is below `Class::PLACES`.
            unsafe { *counters.cast::<u64>().add(reason.class() as usize) += 1 }
        }
    }

    #[inline(always)]
    fn trace_arrival(&self, service: u32) {
        trace::trace_arrival(self.ctx, xsk_index(self.slot, self.queue), service);
    }

    #[inline(always)]
    fn trace_verdict(&self, reason: Reason, answered: bool, dry_run: bool) {
        trace::trace_verdict(self.ctx, reason as u32, answered.into(), dry_run.into());
    }
}

/// Sets bits of `word`. Programs on other CPUs and engines set and clear others.
///
/// # Safety
///
/// `word` points to an aligned word of a map's value.
#[inline(always)]
unsafe fn set_bits(word: *mut u64, bits: u64) {
    // SAFETY: one atomic access to what the caller vouches for.
    unsafe {
        asm!(
            "lock *(u64 *)({word} + 0) |= {bits}",
            word = in(reg) word,
            bits = in(reg) bits,
            options(nostack, preserves_flags),
        );
    }
}

/// Puts `new` into `word` if 0 is there; what was there. Programs on other CPUs and engines do the same.
///
/// # Safety
///
/// `word` points to an aligned word of a map's value.
#[inline(always)]
unsafe fn exchange(word: *mut u32, new: u32) -> u32 {
    let was: u64;
    // SAFETY: one atomic access to what the caller vouches for. Named registers, because an operand would be called by its
    // 64 bits' name.
    unsafe {
        asm!(
            "w0 = cmpxchg32_32(r1 + 0, w0, w2)",
            inout("r0") 0u64 => was,
            in("r1") word,
            in("r2") u64::from(new),
            options(nostack, preserves_flags),
        );
    }
    was as u32
}

/// What inserting a key that is already there returns.
const NEG_EEXIST: i32 = -17;

macro_rules! tables {
    ($family:ty, $places:ident, $services:ident, $flows:ident) => {
        impl Tables<$family> for Maps {
            #[inline(always)]
            fn place(&self, index: u32) -> Option<ServicePlace<$family>> {
                $places.get(index).copied()
            }

            #[inline(always)]
            fn service(&self, key: &ServiceKey<$family>) -> Option<Service> {
                // SAFETY: the daemon replaces services whole and rarely; the worst a concurrent replacement can
                // show is another service's mode for one packet.
                unsafe { $services.get(key) }.copied()
            }

            #[inline(always)]
            fn knows_flow(&self, key: &FlowKey<$family>) -> bool {
                $flows.get_ptr(key).is_some()
            }

            #[inline(always)]
            fn insert_flow(&self, key: &FlowKey<$family>, flow: &Flow) -> Insertion {
                // SAFETY: this CPU's own value, as for the tick.
                let Some(opening) = (unsafe { OPENING.get_ptr_mut(0).and_then(|flow| flow.as_mut()) }) else {
                    return Insertion::Full;
                };
                *opening = *flow;
                match $flows.insert(key, &*opening, u64::from(BPF_NOEXIST)) {
                    Ok(()) => Insertion::Inserted,
                    Err(NEG_EEXIST) => Insertion::Known,
                    Err(_) => Insertion::Full,
                }
            }
        }
    };
}

tables!(V4, SERVICE_PLACES_V4, SERVICES_V4, FLOWS_V4);
tables!(V6, SERVICE_PLACES_V6, SERVICES_V6, FLOWS_V6);
