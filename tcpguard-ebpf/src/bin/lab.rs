//! The lab's XDP programs: flood generator, verifying receiver (which also completes a botnet's handshakes), reflector, sieve,
//! pass. They stand beside the guard in tests, benchmarks and the demo; none of them is part of it.
#![no_std]
#![no_main]

#[path = "../object.rs"]
mod object;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_redirect, bpf_xdp_adjust_tail};
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray, XskMap};
use aya_ebpf::programs::XdpContext;
use tcpguard_common::lab::{
    FloodConfig, Received, Spoofed, TEMPLATE_LEN, TEMPLATE_WORDS, TEMPLATES, Template, V6_PREFIX, V6_SHIFT,
    mix, offset,
};

#[map]
static CONFIG: Array<FloodConfig> = Array::with_max_entries(1, 0);
#[map]
static GENERATED: PerCpuArray<u64> = PerCpuArray::with_max_entries(TEMPLATES, 0);
/// Frames this CPU has sent: the budget's account, and the position in the sequence of random sources.
#[map]
static SENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static RECEIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(Received::ALL.len() as u32, 0);

#[map]
static NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static TAKERS: XskMap = XskMap::with_max_entries(16, 0);

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// By which constants of [`offset`] lie further on.
const V4: usize = 0;
const V6: usize = V6_SHIFT;
const TCP: u8 = 6;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Passes everything. A veth delivers what its peer transmits from XDP only while it has a program itself.
#[xdp]
fn pass(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// Drops everything: what making the frames costs.
#[xdp]
fn discard(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

/// Sends every TCP segment back with its ends swapped: what XDP_TX costs without a decision.
#[xdp]
fn reflect(ctx: XdpContext) -> u32 {
    let reflected = match version(&ctx) {
        Some(4) => swap_ends::<V4>(&ctx),
        Some(6) => swap_ends::<V6>(&ctx),
        _ => None,
    };
    if reflected.is_some() { XDP_TX } else { XDP_PASS }
}

/// Sends back what comes from the spoofed network over IPv4, as [`reflect`] does, and leaves the rest to the next program.
#[xdp]
fn sift(ctx: XdpContext) -> u32 {
    if sent_back(&ctx).is_some() {
        return XDP_TX;
    }
    // SAFETY: nothing here is owned, so nothing is lost by not coming back.
    unsafe { NEXT.tail_call(&ctx, 0) };
    XDP_PASS
}

fn sent_back(ctx: &XdpContext) -> Option<()> {
    let config = CONFIG.get(0)?;
    let address = u32::from_be_bytes(load(ctx, offset::SOURCE)?);
    let spoofed = version(ctx)? == 4 && config.count != 0 && address & config.netmask == config.network;
    if spoofed { swap_ends::<V4>(ctx) } else { None }
}

/// The version of IP, of TCP without options or extension headers before it.
#[inline(always)]
fn version(ctx: &XdpContext) -> Option<u32> {
    let ether_type = load::<[u8; 2]>(ctx, 12)?;
    if ether_type == IPV4 && load::<u8>(ctx, 14)? == 0x45 && load::<u8>(ctx, 23)? == TCP {
        Some(4)
    } else if ether_type == IPV6 && load::<u8>(ctx, 20)? == TCP {
        Some(6)
    } else {
        None
    }
}

#[inline(always)]
fn swap_ends<const SHIFT: usize>(ctx: &XdpContext) -> Option<()> {
    let ports = load::<[[u8; 2]; 2]>(ctx, offset::SOURCE_PORT + SHIFT)?;
    store(ctx, offset::SOURCE_PORT + SHIFT, [ports[1], ports[0]])?;
    let macs = load::<[[u8; 6]; 2]>(ctx, 0)?;
    store(ctx, 0, [macs[1], macs[0]])?;
    if SHIFT == V4 {
        let addresses = load::<[[u8; 4]; 2]>(ctx, offset::SOURCE)?;
        return store(ctx, offset::SOURCE, [addresses[1], addresses[0]]);
    }
    let addresses = load::<[[u64; 2]; 2]>(ctx, 22)?;
    store(ctx, 22, [addresses[1], addresses[0]])
}

/// Writes one spoofed frame over whatever the recycled page holds, and redirects it out of the attacker's
/// interface.
#[xdp]
fn flood(ctx: XdpContext) -> u32 {
    generate(&ctx).unwrap_or(XDP_ABORTED)
}

fn generate(ctx: &XdpContext) -> Option<u32> {
    let config = CONFIG.get(0)?;
    let sent = SENT.get_ptr_mut(0)?;
    // SAFETY: a per-CPU value, and XDP programs of one CPU do not interrupt each other.
    let position = unsafe { *sent };
    if position >= config.budget {
        return Some(XDP_DROP);
    }
    // SAFETY: as above.
    unsafe { *sent = position + 1 };
    // SAFETY: no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() } as u64;
    let random = mix(config.seed.wrapping_add(cpu << 56).wrapping_add(position));
    let address = config.network | (random as u32 & !config.netmask);
    let port = config.port as u16 | (random >> 32) as u16 & config.port_mask as u16;
    let spoofed = Spoofed::of(config.key, config.count, address, port);
    let ack = (random >> 24) as u32;
    if config.version == 6 {
        write_frame::<V6>(ctx, config, &spoofed, address, port, ack)?;
    } else {
        write_frame::<V4>(ctx, config, &spoofed, address, port, ack)?;
    }
    count(&GENERATED, spoofed.template);
    // SAFETY: plain integers; the redirect itself happens when the program returns.
    Some(unsafe { bpf_redirect(config.ifindex, 0) } as u32)
}

#[inline(always)]
fn write_frame<const SHIFT: usize>(
    ctx: &XdpContext,
    config: &FloodConfig,
    spoofed: &Spoofed,
    address: u32,
    port: u16,
    random: u32,
) -> Option<()> {
    let template = template(config, spoofed.template);
    for (index, word) in template.words.iter().enumerate().take(TEMPLATE_WORDS) {
        store(ctx, index * 8, *word)?;
    }
    let source = halves(address);
    let (mut ip_sum, mut tcp_sum) = (template.ip_sum, template.tcp_sum);
    store(ctx, offset::SOURCE, source)?;
    if SHIFT == V4 {
        ip_sum += sum(source);
        store(ctx, offset::IP_CHECKSUM, fold(ip_sum))?;
    }

    tcp_sum += sum(source) + port.to_be() as u32;
    store(ctx, offset::SOURCE_PORT + SHIFT, port.to_be())?;
    let seq = halves(spoofed.isn);
    tcp_sum += sum(seq);
    store(ctx, offset::SEQ + SHIFT, seq)?;
    if template.random_ack != 0 {
        let ack = halves(random);
        tcp_sum += sum(ack);
        store(ctx, offset::ACK + SHIFT, ack)?;
    }
    // Masked for the same reason as in `template`.
    let at = template.tsval as usize & (TEMPLATE_LEN - 1);
    if at != 0 {
        let tsval = halves(spoofed.tsval);
        tcp_sum += sum(tsval);
        store(ctx, at, tsval)?;
    }
    store(ctx, offset::TCP_CHECKSUM + SHIFT, fold(tcp_sum))?;
    // SAFETY: the context is the one the kernel called us with.
    let cut = unsafe { bpf_xdp_adjust_tail(ctx.ctx, template.len as i32 - TEMPLATE_LEN as i32) };
    (cut == 0).then_some(())
}

/// Masked rather than checked: of a check the compiler may keep a copy the kernel's verifier does not follow.
#[inline(always)]
fn template(config: &FloodConfig, index: u32) -> &Template {
    &config.template[(index & (TEMPLATES - 1)) as usize]
}

/// Judges the answers to spoofed addresses and keeps them from the kernel behind, which would reset them. What is for real
/// addresses goes to whoever takes it in the kernel's place, if there is anybody.
#[xdp]
fn verify(ctx: XdpContext) -> u32 {
    let received = match version(&ctx) {
        Some(4) => classify::<V4>(&ctx),
        Some(6) => classify::<V6>(&ctx),
        _ => None,
    };
    let received = received.unwrap_or(Received::Other);
    count(&RECEIVED, received as u32);
    match received {
        Received::Other => XDP_PASS,
        Received::Segment | Received::SynAck => {
            // SAFETY: the context is the one the kernel called us with.
            let queue = unsafe { (*ctx.ctx).rx_queue_index };
            TAKERS.redirect(queue, XDP_PASS as u64).unwrap_or(XDP_PASS)
        }
        Received::SpoofedHandshake => XDP_TX,
        _ => XDP_DROP,
    }
}

#[inline(always)]
fn classify<const SHIFT: usize>(ctx: &XdpContext) -> Option<Received> {
    let config = CONFIG.get(0)?;
    let (address, family) = if SHIFT == V4 {
        (load(ctx, 30)?, 4)
    } else {
        // Only documentation's addresses are spoofed; the random part is behind that prefix.
        (load(ctx, 42)?, if load::<[u8; 4]>(ctx, 38)? == V6_PREFIX { 6 } else { 0 })
    };
    let address = u32::from_be_bytes(address);
    let flags = load::<u8>(ctx, 47 + SHIFT)? & (SYN | ACK | RST);
    let spoofed = config.count != 0 && config.version == family && address & config.netmask == config.network;
    let received = match (spoofed, flags) {
        (false, f) if f == SYN | ACK => Received::SynAck,
        (false, _) => Received::Segment,
        (true, f) if f == SYN | ACK => judge::<SHIFT>(ctx, config, address, &SYN_ACK)?,
        (true, SYN) => judge::<SHIFT>(ctx, config, address, &REFLECTION)?,
        (true, f) if f & RST != 0 => Received::SpoofedReset,
        (true, _) => Received::SpoofedOther,
    };
    if SHIFT == V4 && received == Received::SpoofedSynAck && config.complete != 0 {
        acknowledge(ctx)?;
        return Some(Received::SpoofedHandshake);
    }
    Some(received)
}

/// Where a kind of answer repeats what the spoofed address sent.
struct Answer {
    /// Offset of the number that follows from its initial sequence number, and how far behind.
    number: usize,
    ahead: u32,
    /// Offset of its TSval within the timestamps option.
    stamp: usize,
    /// What it is when everything is right.
    right: Received,
}

const SYN_ACK: Answer = Answer { number: offset::ACK, ahead: 1, stamp: 6, right: Received::SpoofedSynAck };
/// Judged as thoroughly, so that a reflector's answers cost the receiver as much as a guard's.
const REFLECTION: Answer =
    Answer { number: offset::SEQ, ahead: 0, stamp: 2, right: Received::SpoofedReflection };

/// Judges one answer to a spoofed address. Every template offers window scaling and SACK; timestamps differ.
#[inline(always)]
fn judge<const SHIFT: usize>(
    ctx: &XdpContext,
    config: &FloodConfig,
    address: u32,
    answer: &Answer,
) -> Option<Received> {
    let port = u16::from_be_bytes(load(ctx, 36 + SHIFT)?);
    let spoofed = Spoofed::of(config.key, config.count, address, port);
    let length = (load::<u8>(ctx, 46 + SHIFT)? >> 4) as usize * 4;
    if !checksums_hold::<SHIFT>(ctx, length)? {
        return Some(Received::SpoofedBadChecksum);
    }
    if u32::from_be_bytes(load(ctx, answer.number + SHIFT)?).wrapping_sub(answer.ahead) != spoofed.isn {
        return Some(Received::SpoofedBadAck);
    }
    let offered = template(config, spoofed.template).tsval != 0;
    let expected = if offered { Some(spoofed.tsval) } else { None };
    let echoed = timestamps::<SHIFT>(ctx, length)
        .map(|[first, second]| if answer.stamp == 2 { first } else { second });
    Some(match echoed == expected {
        true => answer.right,
        false => Received::SpoofedBadOptions,
    })
}

/// Whether the checksums of a segment that is all header, `length` bytes of it, are right.
#[inline(always)]
fn checksums_hold<const SHIFT: usize>(ctx: &XdpContext, length: usize) -> Option<bool> {
    // With IPv6 the header itself does not count.
    let total = u16::from_be_bytes(load(ctx, if SHIFT == V4 { 16 } else { 18 })?) as usize;
    if length < 20 || total != length + if SHIFT == V4 { 20 } else { 0 } {
        return Some(false);
    }
    let mut ip_sum = !0u16 as u32;
    if SHIFT == V4 {
        ip_sum = 0;
        for at in (14..34).step_by(4) {
            ip_sum += sum(load(ctx, at)?);
        }
    }
    let mut tcp_sum = (TCP as u16).to_be() as u32 + (length as u16).to_be() as u32;
    // Both addresses.
    for at in (if SHIFT == V4 { 26 } else { 22 }..offset::SOURCE_PORT + SHIFT).step_by(4) {
        tcp_sum += sum(load(ctx, at)?);
    }
    for at in (0..60).step_by(4) {
        if at < length {
            tcp_sum += sum(load(ctx, offset::SOURCE_PORT + SHIFT + at)?);
        }
    }
    Some(fold(ip_sum) == 0 && fold(tcp_sum) == 0)
}

/// TSval and TSecr in a header of `length` bytes (RFC 7323 §3.2). It looks for kind and length at every offset instead of
/// walking from option to option: the kernel's verifier would follow every way through the walk.
#[inline(always)]
fn timestamps<const SHIFT: usize>(ctx: &XdpContext, length: usize) -> Option<[u32; 2]> {
    for at in offset::OPTIONS..offset::OPTIONS + 30 {
        if at + 10 > 34 + length {
            return None;
        }
        if load::<[u8; 2]>(ctx, SHIFT + at)? == [8, 10] {
            let [val, ecr] = [load(ctx, SHIFT + at + 2)?, load(ctx, SHIFT + at + 6)?];
            return Some([u32::from_be_bytes(val), u32::from_be_bytes(ecr)]);
        }
    }
    None
}

/// Makes the last segment of a handshake out of a SYN-ACK over IPv4.
#[inline(always)]
fn acknowledge(ctx: &XdpContext) -> Option<()> {
    let [seq, ack] = [load(ctx, offset::SEQ)?, load(ctx, offset::ACK)?].map(u32::from_be_bytes);
    let old = (load::<u8>(ctx, 46)? >> 4) as usize * 4;
    let stamps = timestamps::<V4>(ctx, old);
    swap_ends::<V4>(ctx)?;
    let mut tcp_sum = sum(load(ctx, 26)?) + sum(load(ctx, 30)?) + (TCP as u16).to_be() as u32;
    tcp_sum += sum(load(ctx, offset::SOURCE_PORT)?);
    let mut put = |at, words: [u16; 2]| {
        tcp_sum += sum(words);
        store(ctx, at, words)
    };
    put(offset::SEQ, halves(ack))?;
    put(offset::ACK, halves(seq.wrapping_add(1)))?;
    let new: usize = if stamps.is_some() { 32 } else { 20 };
    put(46, halves((new as u32 / 4) << 28 | (ACK as u32) << 16 | 501))?;
    if let Some([val, ecr]) = stamps {
        put(offset::OPTIONS, halves(u32::from_be_bytes([1, 1, 8, 10])))?;
        put(offset::OPTIONS + 4, halves(ecr))?;
        put(offset::OPTIONS + 8, halves(val))?;
    }
    tcp_sum += (new as u16).to_be() as u32;
    // With the urgent pointer, which is zero.
    store(ctx, offset::TCP_CHECKSUM, [fold(tcp_sum), 0])?;
    // Of the IPv4 header only the length changes, and the sum with it (RFC 1624).
    let total = (20 + new as u16).to_be();
    let ip_sum =
        !load::<u16>(ctx, offset::IP_CHECKSUM)? as u32 + !load::<u16>(ctx, 16)? as u32 + total as u32;
    store(ctx, 16, total)?;
    store(ctx, offset::IP_CHECKSUM, fold(ip_sum))?;
    // SAFETY: the context is the one the kernel called us with; nothing of the frame is read after this.
    let cut = unsafe { bpf_xdp_adjust_tail(ctx.ctx, new as i32 - old as i32) };
    (cut == 0).then_some(())
}

fn count(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: a per-CPU value, and XDP programs of one CPU do not interrupt each other.
        unsafe { *counter += 1 };
    }
}

/// A 32-bit field as the two native words it adds to a checksum.
#[inline(always)]
fn halves(value: u32) -> [u16; 2] {
    [((value >> 16) as u16).to_be(), (value as u16).to_be()]
}

#[inline(always)]
fn sum(words: [u16; 2]) -> u32 {
    words[0] as u32 + words[1] as u32
}

/// The checksum field for a sum of native words (RFC 1071); 0 when the sum covered a right checksum.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// Reads a `T` of plain integers at `offset`; `None` when it does not all lie inside the frame.
#[inline(always)]
fn load<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let at = ctx.data() + offset;
    if at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: in bounds, checked above; every caller asks for integers, for which any bytes are valid. Fields lie
    // at multiples of their alignment, or the kernel's architecture reads them anyway.
    Some(unsafe { *(at as *const T) })
}

/// Writes a `T` at `offset`; `None`, and nothing written, when it does not all lie inside the frame.
#[inline(always)]
fn store<T: Copy>(ctx: &XdpContext, offset: usize, value: T) -> Option<()> {
    let at = ctx.data() + offset;
    if at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: as for `load`.
    unsafe { *(at as *mut T) = value };
    Some(())
}
