//! The decision once more: slow, plain, written from the rules rather than from the code, over the packet crate
//! `etherparse`. Both families take the same path, everything is a whole value, nothing is done in place. With the code
//! under test it shares what maps contain, the names of the reasons, where a fingerprint or a budget lies and whether that
//! is used up; no parser, checksum, option walk, cookie or builder. Of several things wrong with a segment the one nearest
//! to the wire counts.

mod complaint;
mod cookie;
mod wire;

use core::net::{IpAddr, SocketAddr};
use std::format;
use std::string::String;
use std::vec::Vec;

use super::table::world::{Place, World};
use tcpguard_common::decision::admission::{self, Counted};
use tcpguard_common::decision::{Verdict, budget, decide};
use tcpguard_common::filter::{ALLOW, DENY};
use tcpguard_common::fingerprint::fingerprint;
use tcpguard_common::flow::{AnyFlowKey, FlowKey, V4, V6};
use tcpguard_common::map::{
    ABI_VERSION, DRY_RUN, EpochSlot, FLOW_TIMESTAMPS, Flow, MODE_OFF, MODE_STATEFUL, ON_EXIT_PASS, Service,
    ServiceKey, Settings,
};
use tcpguard_common::packet::{Buffer, Family as _};
use tcpguard_common::reason::{Outcome, Reason};
use tcpguard_common::sketch::Rate;

use complaint::Complaint;
pub(crate) use cookie::{Offer, holds, issue};
use wire::{Answer, Arrival, Segment};

/// MSS, window shift, SACK permitted and timestamps.
pub(crate) type FoundOptions = (Option<u16>, Option<u8>, bool, Option<(u32, u32)>);

/// What the reference finds in the options of a segment; `None` when a length lies.
pub(crate) fn options(bytes: &[u8]) -> Option<FoundOptions> {
    wire::options(bytes).map(|options| (options.mss, options.shift, options.sack, options.stamps))
}

/// Makes the checksums of a frame right, if it is near enough to TCP to have any.
pub(crate) fn repair(frame: &mut [u8]) {
    if let Some(places) = wire::Places::of(frame) {
        places.repair(frame);
    }
}

/// Turns a segment into one that echoes a cookie of the current epoch for its flow; with timestamps, if it has the option
/// where most systems put it.
pub(crate) fn sign(world: &World, frame: &mut [u8]) {
    let signed = Arrival::read(frame).and_then(|arrival| {
        let segment = arrival.segment.as_ref().ok()?;
        let slot = cookie::slot(&world.epochs, world.settings.epoch)?;
        let stamped = segment.options()?.stamps.is_some();
        let strict = is_strict(world, service(world, arrival.local())?);
        let offer = Offer { mss: Some(1400), shift: Some(5), sack: true, stamped, ecn: false, strict };
        let client_isn = segment.header.sequence_number.wrapping_sub(1);
        let (isn, tsval) = issue(slot, &arrival.flow(), client_isn, &offer, world.now);
        Some((isn.wrapping_add(1), tsval))
    });
    if let Some(((ack, tsval), places)) = signed.zip(wire::Places::of(frame)) {
        places.acknowledge(frame, ack, tsval);
    }
}

/// What must become of one frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// `None` for a frame that is nothing to us.
    pub(crate) reason: Option<Reason>,
    /// The frame as it goes on: the answer, or as it came.
    pub(crate) frame: Vec<u8>,
    /// The flow that is remembered from now on.
    pub(crate) opened: Option<(AnyFlowKey, Flow)>,
    /// Whether it passes because its service is in dry run.
    pub(crate) dry_run: bool,
}

/// Lets the decision and this reference judge the same frame in the same world, with `room` bytes behind the frame to grow
/// into, and says how they differ. The world stays as it was, but for what is charged to budgets.
pub(crate) fn compare(world: &World, frame: &[u8], room: usize) -> Result<Option<Reason>, String> {
    let expected = judge(world, frame, room);
    let flows = || world.flows_v4.borrow().len() + world.flows_v6.borrow().len();
    let known = flows();
    let mut bytes = frame.to_vec();
    bytes.resize(frame.len() + room, 0xdd);
    let mut buffer = Buffer::new(&mut bytes, frame.len());
    let verdict = decide(&mut buffer, world);
    let (counted, served) = (world.counted.take(), world.served.take());
    let opened = opened(world, expected.opened.map(|(key, _)| key));
    let actual = Judgement {
        reason: counted.first().copied(),
        frame: buffer.frame().to_vec(),
        opened,
        dry_run: served.iter().any(|&(_, dry_run)| dry_run),
    };
    let said_once = counted.len() <= 1 && verdict == verdict_of(world, &expected);
    // No amplification, whoever is spoofed.
    let no_longer = actual.frame.len() <= frame.len() + 4;
    if actual == expected && said_once && no_longer && flows() == known {
        return Ok(expected.reason);
    }
    Err(format!(
        "frame {}\ndecision: {verdict:?}, counted {counted:?}, {:?}, frame {}\nreference: {:?}, {:?}, frame {}",
        hex(frame),
        actual.opened,
        hex(&actual.frame),
        expected.reason,
        expected.opened,
        hex(&expected.frame),
    ))
}

/// Takes what the decision remembered out of the world again.
fn opened(world: &World, expected: Option<AnyFlowKey>) -> Option<(AnyFlowKey, Flow)> {
    let taken = expected.and_then(|key| match key {
        AnyFlowKey::V4(flow) => world.flows_v4.borrow_mut().remove(&flow),
        AnyFlowKey::V6(flow) => world.flows_v6.borrow_mut().remove(&flow),
    });
    expected.zip(taken)
}

fn verdict_of(world: &World, judgement: &Judgement) -> Verdict {
    match judgement.reason.map(Reason::outcome) {
        _ if judgement.dry_run => Verdict::Pass,
        None | Some(Outcome::Passed) => Verdict::Pass,
        Some(Outcome::Dropped) => Verdict::Drop,
        Some(Outcome::Answered) => Verdict::Transmit,
        Some(Outcome::Redirected) => Verdict::Redirect(world.engine),
    }
}

/// The bytes as one word, to be pasted elsewhere.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The judgement on one frame, with `room` bytes behind it.
pub(crate) fn judge(world: &World, frame: &[u8], room: usize) -> Judgement {
    let fate = fate(world, frame);
    let dry_run = matches!(fate, Some(Fate::DryRun(_)));
    let (reason, answer, opened) = match fate {
        None => (None, None, None),
        Some(Fate::Done(reason)) => (Some(reason), None, None),
        Some(Fate::Answer { reason, answer, if_no_room }) => match answer.bytes() {
            bytes if bytes.len() <= frame.len() + room => (Some(reason), Some(bytes), None),
            _ => (Some(if_no_room), None, None),
        },
        Some(Fate::DryRun(reason)) => (Some(reason), None, None),
        Some(Fate::Open(key, flow)) => (Some(Reason::AckValid), None, Some((key, flow))),
    };
    Judgement { reason, frame: answer.unwrap_or_else(|| frame.to_vec()), opened, dry_run }
}

enum Fate {
    Done(Reason),
    /// What it would be, were it not for the dry run.
    DryRun(Reason),
    Answer {
        reason: Reason,
        answer: Answer,
        if_no_room: Reason,
    },
    Open(AnyFlowKey, Flow),
}

fn fate(world: &World, frame: &[u8]) -> Option<Fate> {
    let Some(arrival) = Arrival::read(frame) else { return complaint(world, frame).map(Fate::Done) };
    if world.interface.armed == 0
        || arrival.link_destination != world.interface.mac
        || world.settings.abi != ABI_VERSION
    {
        return None;
    }
    let service = match arrival.segment {
        // The port could be any service's.
        Err(Reason::HeaderChain) => {
            let guarded = |service: &&Service| service.mode != MODE_OFF && service.mode & DRY_RUN == 0;
            *world.services_v6.values().find(guarded)?
        }
        _ => service(world, arrival.local())?,
    };
    if service.mode == MODE_OFF {
        return Some(Fate::Done(Reason::ServiceOff));
    }
    let dry_run = service.mode & DRY_RUN != 0;
    let stateful = service.mode & !DRY_RUN == MODE_STATEFUL && is_left_to_the_stack(world, dry_run);
    let fate = denied(world, arrival.source)
        .or_else(|| liveness(world))
        .or_else(|| impossible(&arrival))
        .map_or_else(|| accepted(world, &arrival, service, stateful), Fate::Done);
    Some(if dry_run { dried(fate) } else { fate })
}

/// A dry run passes everything but the segments of connections from before it.
fn dried(fate: Fate) -> Fate {
    match fate {
        Fate::Done(reason @ (Reason::FlowKnown | Reason::FlowRate)) => Fate::Done(reason),
        Fate::Done(reason) | Fate::Answer { reason, .. } => Fate::DryRun(reason),
        Fate::DryRun(_) | Fate::Open(..) => fate,
    }
}

/// What becomes of a frame that carries no TCP.
fn complaint(world: &World, frame: &[u8]) -> Option<Reason> {
    let said = Complaint::read(frame)?;
    let is_ours = world.interface.armed != 0
        && said.link_destination == world.interface.mac
        && world.settings.abi == ABI_VERSION
        && service(world, said.local())?.mode != MODE_OFF
        && liveness(world).is_none()
        && is_known(world, said.flow);
    let spent = world.complaints.get().map_or(0, |sketch| sketch.spent_until(hash(world, said.flow)));
    let rate = &world.settings.limits.complaints;
    is_ours.then_some(match said.is_too_big {
        _ if rate.interval > 0 && spent > world.now + rate.ahead => Reason::IcmpRate,
        true => Reason::IcmpTooBig,
        false => Reason::IcmpError,
    })
}

/// Whether a stateful service leaves one more segment to the stack.
fn is_left_to_the_stack(world: &World, dry_run: bool) -> bool {
    let rate = world.settings.limits.stateful;
    rate.interval != 0 && world.stateful[usize::from(dry_run)].get() <= world.now + rate.ahead
}

/// The service at a local end: exact address first, then any.
fn service(world: &World, local: SocketAddr) -> Option<Service> {
    let port = local.port();
    if world.ports[usize::from(port / 64)] & 1 << (port % 64) == 0 {
        return None;
    }
    let port = port.to_be_bytes();
    match local.ip() {
        IpAddr::V4(ip) => find(&world.services_v4, V4(ip.octets()), V4([0; 4]), port),
        IpAddr::V6(ip) => find(&world.services_v6, V6(ip.octets()), V6([0; 16]), port),
    }
}

fn find<A: Place>(
    services: &std::collections::HashMap<ServiceKey<A>, Service>,
    exact: A,
    any: A,
    port: [u8; 2],
) -> Option<Service> {
    [exact, any].into_iter().find_map(|addr| services.get(&ServiceKey::new(addr, port)).copied())
}

/// Whether the longest prefix around the source denies it.
fn denied(world: &World, source: IpAddr) -> Option<Reason> {
    (listed(world, source)? == DENY).then_some(Reason::FilterDeny)
}

/// What the longest prefix around the source says.
fn listed(world: &World, source: IpAddr) -> Option<u32> {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => format!("{:032b}", ip.to_bits()),
        IpAddr::V6(ip) => format!("{:0128b}", ip.to_bits()),
    };
    let alive = world.lists.said.iter().filter(|said| said.expires == 0 || world.now < said.expires);
    let around = alive.filter(|said| {
        said.addr.is_ipv4() == source.is_ipv4()
            && bits(source).starts_with(&bits(said.addr)[..said.len.into()])
    });
    around.max_by_key(|said| said.len).map(|said| said.action)
}

/// Why nothing is answered or redirected now, if so.
fn liveness(world: &World) -> Option<Reason> {
    let beat = if world.beating { world.now } else { 0 };
    let stale = world.now.saturating_sub(beat).checked_sub(world.settings.stale_after + 1);
    match stale {
        // The world's frames arrive on queue 0.
        None if world.interface.queues == 0 => Some(Reason::NoEngine),
        None if world.socket => None,
        None => Some(Reason::Grace),
        Some(by) if by < world.settings.exit_grace => Some(Reason::Grace),
        Some(_) if world.settings.on_exit == ON_EXIT_PASS => Some(Reason::ExitPass),
        Some(_) => Some(Reason::ExitDrop),
    }
}

/// What makes a segment one that no TCP would send.
fn impossible(arrival: &Arrival) -> Option<Reason> {
    let segment = match &arrival.segment {
        Err(fault) => return Some(*fault),
        Ok(segment) => segment,
    };
    let header = &segment.header;
    if header.source_port == 0 || header.destination_port == 0 {
        return Some(Reason::BadPort);
    }
    let from_group = arrival.link_source[0] & 1 == 1;
    if from_group || arrival.source == arrival.destination || !has_one_owner(arrival.source) {
        return Some(Reason::BadSource);
    }
    if !has_one_owner(arrival.destination) {
        return Some(Reason::BadDestination);
    }
    let any = header.fin || header.syn || header.rst || header.psh || header.ack || header.urg;
    (!any || header.syn && (header.fin || header.rst)).then_some(Reason::BadFlags)
}

fn has_one_owner(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            ip.octets()[0] != 0 && !ip.is_loopback() && !ip.is_multicast() && !ip.is_broadcast()
        }
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast(),
    }
}

fn accepted(world: &World, arrival: &Arrival, service: Service, stateful: bool) -> Fate {
    let Ok(segment) = &arrival.segment else { unreachable!("faults were dealt with") };
    let header = &segment.header;
    if header.syn && !header.ack {
        return syn(world, arrival, segment, service, stateful).unwrap_or_else(Fate::Done);
    }
    let flow = arrival.flow();
    if is_known(world, flow) {
        Fate::Done(if paced(world, flow) { Reason::FlowKnown } else { Reason::FlowRate })
    } else if service.mode & DRY_RUN != 0 && !header.syn {
        Fate::Done(Reason::NotFollowed)
    } else if header.rst {
        Fate::Done(if stateful { Reason::RstStateful } else { Reason::NoFlowRst })
    } else if header.syn || !header.ack {
        Fate::Done(Reason::NoFlow)
    } else if in_time_wait(world, flow) {
        Fate::Done(if paced(world, flow) { Reason::TimeWait } else { Reason::FlowRate })
    } else {
        ack(world, arrival, segment, service).unwrap_or_else(Fate::Done)
    }
}

fn is_known(world: &World, flow: AnyFlowKey) -> bool {
    match flow {
        AnyFlowKey::V4(key) => world.flows_v4.borrow().contains_key(&key),
        AnyFlowKey::V6(key) => world.flows_v6.borrow().contains_key(&key),
    }
}

fn hash(world: &World, flow: AnyFlowKey) -> u64 {
    match flow {
        AnyFlowKey::V4(key) => V4::hash_flow_fast(world.settings.hash_key, &key),
        AnyFlowKey::V6(key) => V6::hash_flow_fast(world.settings.hash_key, &key),
    }
}

fn in_time_wait(world: &World, flow: AnyFlowKey) -> bool {
    let (place, word) = match flow {
        AnyFlowKey::V4(key) => fingerprint(world.settings.hash_key, &key),
        AnyFlowKey::V6(key) => fingerprint(world.settings.hash_key, &key),
    };
    world.fingerprints.get(&place).is_some_and(|words| words.contains(&word))
}

/// Whether a flow sends no faster than it may, which matters only under pressure.
fn paced(world: &World, flow: AnyFlowKey) -> bool {
    let spent = world.paces.get().map_or(0, |paces| paces.spent_until(hash(world, flow)));
    let rate = &world.settings.limits.flows;
    !world.pressed || rate.interval == 0 || spent <= world.now + rate.ahead
}

/// The longest datagram payload whose checksum is worth its time: that of a frame without multi-buffer support.
const LONGEST_SUMMED: usize = 4096;

/// Whether a service's cookies are strict now.
fn is_strict(world: &World, service: Service) -> bool {
    service.strictness.0 & 1 << (world.settings.epoch % 4) != 0
}

fn syn(
    world: &World,
    arrival: &Arrival,
    segment: &Segment,
    service: Service,
    stateful: bool,
) -> Result<Fate, Reason> {
    let dry_run = service.mode & DRY_RUN != 0;
    check(arrival.header_sum_holds, Reason::IpBadChecksum)?;
    check(segment.bytes.len() <= LONGEST_SUMMED, Reason::SynUnanswerable)?;
    check(arrival.sum_holds(segment), Reason::SynBadChecksum)?;
    let options = segment.options().ok_or(Reason::BadOptions)?;
    let slot = cookie::slot(&world.epochs, world.settings.epoch).ok_or(Reason::SynUnanswerable)?;
    match arrival.source {
        _ if listed(world, arrival.source) == Some(ALLOW) => {}
        IpAddr::V4(ip) => within_budget(world, V4(ip.octets()), dry_run)?,
        IpAddr::V6(ip) => within_budget(world, V6(ip.octets()), dry_run)?,
    }
    if stateful {
        return Ok(Fate::Done(Reason::SynStateful));
    }
    let (mss, smallest) = match arrival.source {
        IpAddr::V4(_) => (slot.mss_v4, 536),
        IpAddr::V6(_) => (slot.mss_v6, 1220),
    };
    let stamps = options.stamps;
    let (stamped, ecn) = (stamps.is_some(), segment.header.ece && segment.header.cwr);
    let strict = is_strict(world, service);
    let offer = Offer { mss: options.mss, shift: options.shift, sack: options.sack, stamped, ecn, strict };
    let (isn, tsval) = issue(slot, &arrival.flow(), segment.header.sequence_number, &offer, world.now);
    let mut answer = arrival.answer(segment);
    answer.header.syn = true;
    answer.header.ack = true;
    answer.header.ece = stamped && ecn;
    answer.header.sequence_number = isn;
    answer.header.acknowledgment_number = segment.header.sequence_number.wrapping_add(1);
    answer.header.window_size = slot.window;
    let plain = strict && !stamped;
    let shift = options.shift.filter(|_| !plain).map(|_| slot.window_scale);
    answer.options(mss, tsval.zip(stamps.map(|(value, _)| value)), options.sack && !plain, shift);
    let small = options.mss.is_some_and(|mss| mss < smallest);
    let reason = if small { Reason::CookieSentSmallMss } else { Reason::CookieSent };
    Ok(Fate::Answer { reason, answer, if_no_room: Reason::SynUnanswerable })
}

/// Whether a SYN-ACK may go to `source`: out of its prefix's budget, or out of that of the prefix's verified sources.
fn within_budget<A: Place>(world: &World, source: A, dry_run: bool) -> Result<(), Reason> {
    let limits = &world.settings.limits;
    let (place, fingerprint) = budget::verified_place(&world.settings, source);
    let word = world.verified.borrow().get(&place).copied();
    let age = word.map(|word| ((world.now >> 30) as u32).saturating_sub(word as u32));
    let is_verified = word.is_some_and(|word| (word >> 32) as u32 == fingerprint)
        && age.is_some_and(|age| u64::from(age) <= limits.verified_for >> 30);
    let left = |hash: fn(&Settings, A, bool) -> u64, rate: &Rate| {
        let hash = hash(&world.settings, source, dry_run);
        let spent = world.replies.get().map_or(0, |sketch| sketch.spent_until(hash));
        rate.interval == 0 || spent <= world.now + rate.ahead
    };
    match (left(budget::reply_hash, &limits.replies), is_verified) {
        (true, _) => Ok(()),
        (false, false) => Err(Reason::ReplyBudget),
        (false, true) if left(budget::verified_reply_hash, &limits.verified_replies) => Ok(()),
        (false, true) => Err(Reason::ReplyBudgetVerified),
    }
}

fn ack(world: &World, arrival: &Arrival, segment: &Segment, service: Service) -> Result<Fate, Reason> {
    let (header, flow) = (&segment.header, arrival.flow());
    let options = segment.options().ok_or(Reason::BadOptions)?;
    let valid = holds(
        &world.epochs,
        (world.settings.epoch, world.settings.epoch_second_half != 0),
        service.strictness.0,
        &flow,
        header.sequence_number.wrapping_sub(1),
        header.acknowledgment_number.wrapping_sub(1),
        options.stamps.map(|(_, echo)| echo),
    );
    check(valid, Reason::AckInvalid)?;
    check(arrival.header_sum_holds, Reason::IpBadChecksum)?;
    let summed = segment.bytes.len() <= LONGEST_SUMMED && arrival.sum_holds(segment);
    check(summed, Reason::AckBadChecksum)?;
    let flows = match flow {
        AnyFlowKey::V4(_) => world.flows_v4.borrow().len(),
        AnyFlowKey::V6(_) => world.flows_v6.borrow().len(),
    };
    let admitted = match arrival.source {
        IpAddr::V4(ip) => admitted(world, service, V4(ip.octets())),
        IpAddr::V6(ip) => admitted(world, service, V6(ip.octets())),
    };
    let room = check(flows < world.max_flows, Reason::FlowMapFull);
    let Err(refusal) = admitted.and(room) else {
        return Ok(Fate::Open(flow, remembered(world, arrival, segment, options.stamps)));
    };
    let mut answer = arrival.answer(segment);
    answer.header.rst = true;
    answer.header.sequence_number = header.acknowledgment_number;
    Ok(Fate::Answer { reason: refusal, answer, if_no_room: Reason::RefusedSilently })
}

/// Whether `source` may open one more flow to `service`.
fn admitted<A: Place>(world: &World, service: Service, source: A) -> Result<(), Reason> {
    let limits = &world.settings.limits;
    let open = |place| world.open.borrow().get(&place).copied().unwrap_or(0);
    let below = |count: u32, limit: u32| limit == 0 || count < limit;
    check(below(open(Counted::Service(service.id)), limits.service_flows), Reason::AdmissionService)?;
    if listed(world, source.ip()) == Some(ALLOW) {
        return Ok(());
    }
    let rows =
        admission::source_places(world.settings.hash_key, source).map(|row| open(Counted::Source(row)));
    check(below(rows[0].min(rows[1]), limits.source_flows), Reason::AdmissionSourceFlows)?;
    let hash = admission::arrival_hash(&world.settings, source);
    let spent = world.arrivals.get().map_or(0, |arrivals| arrivals.spent_until(hash));
    let rate = &limits.arrivals;
    check(rate.interval == 0 || spent <= world.now + rate.ahead, Reason::AdmissionSourceRate)
}

fn check(holds: bool, otherwise: Reason) -> Result<(), Reason> {
    if holds { Ok(()) } else { Err(otherwise) }
}

fn remembered(world: &World, arrival: &Arrival, segment: &Segment, stamps: Option<(u32, u32)>) -> Flow {
    let mut vlan = [[0; 4]; 2];
    vlan[..arrival.tags.len()].copy_from_slice(&arrival.tags);
    Flow {
        created: world.now,
        generation: world.settings.generation,
        owner: world.engine,
        seq: segment.header.sequence_number,
        ack: segment.header.acknowledgment_number,
        tsval: stamps.map_or(0, |(value, _)| value),
        tsecr: stamps.map_or(0, |(_, echo)| echo),
        window: segment.header.window_size,
        flags: if stamps.is_some() { FLOW_TIMESTAMPS } else { 0 },
        peer_mac: arrival.link_source,
        vlan_count: arrival.tags.len() as u8,
        pad: 0,
        vlan,
    }
}

/// The bytes of a key as they stand on the wire: peer, local, peer's port, ours.
fn key_bytes(flow: &AnyFlowKey) -> (u8, Vec<u8>) {
    match flow {
        AnyFlowKey::V4(FlowKey { peer, local, peer_port, local_port }) => {
            (4, [&peer.0[..], &local.0, peer_port, local_port].concat())
        }
        AnyFlowKey::V6(FlowKey { peer, local, peer_port, local_port }) => {
            (6, [&peer.0[..], &local.0, peer_port, local_port].concat())
        }
    }
}

#[cfg(test)]
mod tests;
