//! The program in the kernel against the decision on the host: the truth table, and a million generated frames, through
//! BPF_PROG_RUN. Verdict, frame, counters and remembered flows must agree. Needs root.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::Pod;
use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::Xdp;
use tcpguard_common::decision::{Verdict, decide};
use tcpguard_common::filter::{ALLOW, DENY, SECOND_BANK};
use tcpguard_common::fingerprint;
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::known::{self, BUCKETS, Bucket, ROOM};
use tcpguard_common::map::{Flow, name};
use tcpguard_common::packet::{AnySegment, Buffer, Family, parse};
use tcpguard_common::reason::Reason;
use tcpguard_common::trace::{
    IN, LOST_BEYOND_RATE, LOST_RING_FULL, OUT, PER_WINDOW, Record, SNAP, Wanted, window,
};

use checked_in::object;
use kernel::{Kernel, Outcome};
use table::acks::valid_ack;
use table::cases;
use table::check::check;
use table::filters::Said;
use table::frames::{ACK, FIN, LINUX, Spec};
use table::generator::{self, FRAMES, LANES, Random};
use table::world::{EPOCH, PORT, Place, SLOT, World};

#[path = "support/checked_in.rs"]
mod checked_in;
#[path = "support/clock.rs"]
mod clock;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "../../tcpguard-common/src/decision/table/mod.rs"]
mod table;
#[path = "support/verifier.rs"]
mod verifier;

/// What the verifier follows on its way through; the kernel stops at a million.
const MOST_VERIFIED: u32 = 180_000;
/// Bytes of stack that a chain of its functions takes; the kernel stops at 512.
const MOST_STACK: usize = 496;
/// What random lists follow from.
const SEED: u64 = 0x6b65_726e_656c;
/// Frames between two looks at the counters.
const COUNTED_AFTER: u32 = 512;

/// Decides the same on the host, at the time the kernel did: that is in the SYN-ACK, if there is one.
fn on_host(world: &mut World, frame: &[u8], kernel: &Outcome) -> Outcome {
    if let (Verdict::Transmit, Ok(segment)) = (kernel.verdict, parse(&kernel.frame[..])) {
        let options = match segment {
            AnySegment::V4(segment) => segment.options,
            AnySegment::V6(segment) => segment.options,
        };
        let (tsval, _) = options.timestamps.unwrap_or_default();
        world.now = 1 << 40 | u64::from(tsval >> 14 & 0xffff) << 22;
    }
    let mut bytes = [frame, &[0; 256]].concat();
    let mut buffer = Buffer::new(&mut bytes, frame.len());
    let verdict = decide(&mut buffer, world);
    Outcome { verdict, frame: buffer.frame().to_vec() }
}

/// Everything but when they were made.
fn same_flows<A: Family>(
    kernel: std::collections::HashMap<FlowKey<A>, Flow>,
    host: &std::collections::HashMap<FlowKey<A>, Flow>,
) -> bool {
    let timeless = |(&key, &flow): (&FlowKey<A>, &Flow)| (key, Flow { created: 0, ..flow });
    let kernel: std::collections::HashMap<_, _> = kernel.iter().map(timeless).collect();
    kernel == host.iter().map(timeless).collect()
}

#[test]
fn the_kernel_decides_every_row_of_the_table_as_the_host_does() {
    let mut kernel = Kernel::load(World::new().max_flows);
    let mut failures = Vec::new();
    let cases = cases::all();
    // BPF_PROG_RUN takes no frame shorter than an Ethernet header.
    for case in cases.iter().filter(|case| case.frame.len() >= 14) {
        let mut world = case.world.clone();
        kernel.become_like(&world);
        let (before, served) = (kernel.counters(), kernel.served());
        let outcome = kernel.run(&case.frame, world.engine);
        let counted: Vec<u64> =
            kernel.counters().iter().zip(before).map(|(after, before)| after - before).collect();
        let (v4, v6) = (kernel.flows::<V4>(name::FLOWS_V4), kernel.flows::<V6>(name::FLOWS_V6));
        failures.extend(check(case, outcome.verdict, &outcome.frame, v4.len() + v6.len()).err());
        let host = on_host(&mut world, &case.frame, &outcome);
        let dry_run = world.served.borrow().first().is_some_and(|&(_, dry_run)| dry_run);
        for &reason in Reason::ALL {
            let is_it = case.reason == Some(reason);
            let found = [counted[reason as usize], counted[Reason::COUNT + reason as usize]];
            if found != [is_it && !dry_run, is_it && dry_run].map(u64::from) {
                failures.push(format!("{}: {} counted {found:?}", case.name, reason.name()));
            }
        }
        let mut expected = served;
        for (&reason, &service) in world.counted.borrow().iter().zip(world.served.borrow().iter()) {
            if let Some(classes) = expected.get_mut(&service) {
                classes[reason.class() as usize] += 1;
            }
        }
        if kernel.served() != expected {
            failures.push(format!("{}: counted under another service or class", case.name));
        }
        if (host.verdict, &host.frame) != (outcome.verdict, &outcome.frame) {
            failures.push(format!("{}: the host says {:02x?}", case.name, host.frame));
        }
        if !same_flows(v4, &world.flows_v4.borrow()) || !same_flows(v6, &world.flows_v6.borrow()) {
            failures.push(format!("{}: the flow tables differ", case.name));
        }
        if !world.lists.rules.is_empty() && kernel.hits(&world) != *world.lists.hits.borrow() {
            failures.push(format!("{}: the hits of the filters differ", case.name));
        }
        kernel.forget(&world);
    }
    for &reason in Reason::ALL {
        // A reset is never longer than what it answers, so there is always room for it.
        let unreachable = reason == Reason::RefusedSilently;
        let covered = cases.iter().any(|case| case.frame.len() >= 14 && case.reason == Some(reason));
        assert_eq!(covered, !unreachable, "{}", reason.name());
    }
    let total = failures.len();
    failures.truncate(5);
    assert!(failures.is_empty(), "{total} failures in {} rows:\n{}", cases.len(), failures.join("\n"));
}

/// The same frames that the reference judges beside the host; with `--long` ten times as many.
#[test]
fn a_million_frames_meet_the_same_verdict_in_the_kernel_and_on_the_host() {
    let times = if std::env::var_os(xtask::test::LONG).is_some() { 10 } else { 1 };
    let mut kernel = Kernel::load(generator::worlds()[0].1.max_flows);
    let mut expected = kernel.counters();
    for mut generator in generator::lanes() {
        for (share, mut world) in generator::worlds() {
            kernel.become_like(&world);
            let frames = std::iter::repeat_with(|| generator.frame());
            judge_alike(
                &mut kernel,
                &mut world,
                frames.take(times * FRAMES / LANES * share / 100),
                &mut expected,
            );
            kernel.forget(&world);
        }
    }
    for &reason in Reason::ALL {
        let reachable = reason != Reason::RefusedSilently;
        let counted = expected[reason as usize] + expected[Reason::COUNT + reason as usize];
        assert_eq!(counted > 0, reachable, "{}", reason.name());
    }
}

/// Shows frames to both; `expected` counts what the host says of them.
fn judge_alike(
    kernel: &mut Kernel,
    world: &mut World,
    frames: impl Iterator<Item = Vec<u8>>,
    expected: &mut [u64],
) {
    for (index, frame) in (1..).zip(frames) {
        let (outcome, host) = both(kernel, world, &frame);
        assert!(
            (host.verdict, &host.frame) == (outcome.verdict, &outcome.frame),
            "{}\nkernel: {:?} {}\n  host: {:?} {}",
            hex(&frame),
            outcome.verdict,
            hex(&outcome.frame),
            host.verdict,
            hex(&host.frame),
        );
        for (reason, (_, dry_run)) in world.counted.take().into_iter().zip(world.served.take()) {
            expected[reason as usize + Reason::COUNT * usize::from(dry_run)] += 1;
            if reason == Reason::AckValid {
                forget_flow(kernel, world, &frame);
            }
        }
        if index % COUNTED_AFTER == 0 {
            assert_eq!(kernel.counters(), expected, "up to {}", hex(&frame));
        }
    }
    assert_eq!(kernel.counters(), expected);
    assert!(same_flows(kernel.flows::<V4>(name::FLOWS_V4), &world.flows_v4.borrow()));
    assert!(same_flows(kernel.flows::<V6>(name::FLOWS_V6), &world.flows_v6.borrow()));
    if !world.lists.rules.is_empty() {
        assert_eq!(kernel.hits(world), *world.lists.hits.borrow());
    }
}

/// Compares the flow that `frame` opened, and takes it out of both tables: they are as before the frame.
fn forget_flow(kernel: &mut Kernel, world: &World, frame: &[u8]) {
    fn taken<A: Place>(kernel: &mut Kernel, world: &World, name: &str, key: FlowKey<A>) -> [Option<Flow>; 2]
    where
        FlowKey<A>: Pod,
    {
        [kernel.strike(name, &key), A::flows(world).borrow_mut().remove(&key)]
    }
    let flows = match parse(frame).unwrap() {
        AnySegment::V4(segment) => taken(kernel, world, name::FLOWS_V4, segment.key()),
        AnySegment::V6(segment) => taken(kernel, world, name::FLOWS_V6, segment.key()),
    };
    let now = tcpguard::dataplane::monotonic_ns();
    assert!(flows[0].is_some_and(|flow| (1..=now).contains(&flow.created)), "{flows:?} at {now}");
    let [there, here] = flows.map(|flow| flow.map(|flow| Flow { created: 0, ..flow }));
    assert_eq!(there, here, "{}", hex(frame));
}

fn both(kernel: &mut Kernel, world: &mut World, frame: &[u8]) -> (Outcome, Outcome) {
    let outcome = kernel.run(frame, world.engine);
    let host = on_host(world, frame, &outcome);
    (outcome, host)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn random_lists_deny_in_the_kernel_whom_walking_them_denies() {
    let mut kernel = Kernel::load(2);
    let mut random = Random::new(SEED);
    for round in 0..20 {
        let mut world = World::new();
        if round % 2 == 1 {
            world.settings.filters |= SECOND_BANK;
        }
        let (v4, v6) = (random_list::<V4>(&mut random), random_list::<V6>(&mut random));
        world.list_all::<V4>(v4.clone());
        world.list_all::<V6>(v6.clone());
        kernel.become_like(&world);
        let edges: Vec<IpAddr> = v4.iter().chain(&v6).flat_map(edges).collect();
        for source in edges {
            let frame = match source {
                IpAddr::V4(ip) => Spec { src: V4(ip.octets()), ..Spec::<V4>::syn(LINUX) }.frame(),
                IpAddr::V6(ip) => Spec { src: V6(ip.octets()), ..Spec::<V6>::syn(LINUX) }.frame(),
            };
            let (outcome, host) = both(&mut kernel, &mut world, &frame);
            assert_eq!(outcome.verdict, host.verdict, "round {round}: {source}");
            let denied = world.counted.take() == [Reason::FilterDeny];
            assert_eq!(denied, is_denied(&world, source), "round {round}: {source}");
        }
        assert_eq!(kernel.hits(&world), *world.lists.hits.borrow(), "round {round}");
        kernel.forget(&world);
    }
}

/// Prefixes that are often near each other; none has expired, or all long ago.
fn random_list<A: Place>(random: &mut Random) -> Vec<Said> {
    let said = |random: &mut Random| {
        let near = [
            u128::from(random.word()) << 3 | 0x2a00 << 112,
            (0x2a00 << 112) | u128::from(random.word() as u8),
        ];
        let any = [random.word(), random.word()].map(u128::from);
        let v6 = near.into_iter().chain([any[0] << 64 | any[1]]).nth(random.below(3)).unwrap();
        let near =
            [0x0a00_0000 | random.word() as u32 & 0xff, 0x0a00_0000 | random.word() as u32 & 0xff_ffff];
        let v4 = near.into_iter().chain([random.word() as u32]).nth(random.below(3)).unwrap();
        let ip = if A::VERSION == 4 { IpAddr::V4(v4.into()) } else { IpAddr::V6(v6.into()) };
        let expires = [0, 0, u64::MAX, 1][random.below(4)];
        // Few wide ones, or nobody would be left.
        let len = A::BITS - random.below(usize::from(A::BITS) * 9 / 10) as u8;
        Said { addr: ip, len, action: [ALLOW, DENY][random.below(2)], expires }.masked()
    };
    let mut list: Vec<Said> = (0..100).map(|_| said(random)).collect();
    list.sort_by_key(|said| (said.addr, said.len));
    list.dedup_by_key(|said| (said.addr, said.len));
    list
}

/// The addresses on both sides of both ends of a prefix.
fn edges(said: &Said) -> [IpAddr; 4] {
    match said.addr {
        IpAddr::V4(ip) => {
            let last = ip.to_bits() | u32::MAX.checked_shr(said.len.into()).unwrap_or(0);
            [ip.to_bits().wrapping_sub(1), ip.to_bits(), last, last.wrapping_add(1)]
                .map(|ip| IpAddr::V4(ip.into()))
        }
        IpAddr::V6(ip) => {
            let last = ip.to_bits() | u128::MAX.checked_shr(said.len.into()).unwrap_or(0);
            [ip.to_bits().wrapping_sub(1), ip.to_bits(), last, last.wrapping_add(1)]
                .map(|ip| IpAddr::V6(ip.into()))
        }
    }
}

/// What walking the list says of a source.
fn is_denied(world: &World, source: IpAddr) -> bool {
    let alive = world.lists.said.iter().filter(|said| said.expires != 1);
    let around = alive.filter(|said| Said { addr: source, ..**said }.masked().addr == said.addr);
    around.max_by_key(|said| said.len).is_some_and(|said| said.action == DENY)
}

#[test]
fn a_flow_whose_bucket_is_full_is_found_in_its_table() {
    let mut kernel = Kernel::load(8);
    let world = World::new();
    kernel.become_like(&world);
    let spec = valid_ack::<V4>(EPOCH, true);
    let place = known::Place::of(world.settings.hash_key, &spec.flow());
    let full = Bucket { tags: [1 << 31; ROOM], crowded: 0 };
    kernel.array(name::KNOWN).set(place.bucket, full, 0).unwrap();
    kernel.occupy(place.bucket);
    let before = kernel.counters();
    for _ in 0..2 {
        assert_eq!(kernel.run(&spec.frame(), world.engine).verdict, Verdict::Redirect(world.engine));
    }
    let after = kernel.counters();
    let counted = |reason: Reason| after[reason as usize] - before[reason as usize];
    assert_eq!((counted(Reason::AckValid), counted(Reason::FlowKnown)), (1, 1));
    assert_eq!(kernel.bucket(place.bucket), Bucket { crowded: 1, ..full });
}

/// While a bit says that nothing can be there, XDP does not look; it sets that of each flow that it enters.
#[test]
fn what_is_in_a_bucket_counts_from_the_moment_its_bit_says_so() {
    let mut kernel = Kernel::load(8);
    let world = World::new();
    kernel.become_like(&world);
    let spec = valid_ack::<V4>(EPOCH, true);
    let place = known::Place::of(world.settings.hash_key, &spec.flow());
    let mut late = spec.clone();
    late.ack ^= 1;
    kernel.array::<[u32; 4]>(name::TIME_WAIT).set(place.bucket, [0, 0, place.tag, 0], 0).unwrap();
    assert!(!kernel.is_occupied(place.bucket));
    assert_eq!(kernel.run(&late.frame(), world.engine).verdict, Verdict::Drop);
    assert_eq!(kernel.run(&spec.frame(), world.engine).verdict, Verdict::Redirect(world.engine));
    assert!(kernel.is_occupied(place.bucket), "a flow came in");
    assert_eq!(kernel.run(&late.frame(), world.engine).verdict, Verdict::Redirect(world.engine));
    kernel.strike::<V4>(name::FLOWS_V4, &spec.flow());
    assert_eq!(kernel.run(&late.frame(), world.engine).verdict, Verdict::Redirect(world.engine));
    kernel.array::<[u32; 4]>(name::TIME_WAIT).set(place.bucket, [0; 4], 0).unwrap();
    assert_eq!(kernel.run(&late.frame(), world.engine).verdict, Verdict::Drop);
}

fn finds_those_in_time_wait<A: Place>(kernel: &mut Kernel, spread: u32) {
    let mut parts = vec![0; 1 << spread];
    for src_port in 40_000..40_064 {
        let fin = Spec::<A> { src_port, flags: FIN | ACK, ..Spec::ack(7, &[]) };
        let mut world = World::new();
        let (place, word) = fingerprint::fingerprint(world.settings.hash_key, &fin.flow());
        kernel.become_like(&world);
        kernel.occupy(place);
        assert_eq!(kernel.run(&fin.frame(), world.engine).verdict, Verdict::Drop, "nobody's");
        world.fingerprints.insert(place ^ BUCKETS, [word; 4]);
        kernel.become_like(&world);
        assert_eq!(kernel.run(&fin.frame(), world.engine).verdict, Verdict::Drop, "in the bucket beside it");
        kernel.forget(&world);
        world.fingerprints.clear();
        world.remember(&fin.flow());
        kernel.become_like(&world);
        assert_eq!(kernel.run(&fin.frame(), world.engine).verdict, Verdict::Redirect(world.engine));
        kernel.forget(&world);
        parts[fingerprint::bucket(place, spread) as usize % (1 << spread)] += 1;
    }
    assert!(parts.iter().all(|&met| met > 0), "{parts:?}");
}

#[test]
fn repeated_fins_are_known_wherever_in_a_table_of_four_million_their_flows_fingerprints_lie() {
    const SPREAD: u32 = 2;
    let mut kernel = Kernel::load_sized("tcpguard", World::new().max_flows, SPREAD);
    finds_those_in_time_wait::<V4>(&mut kernel, SPREAD);
    finds_those_in_time_wait::<V6>(&mut kernel, SPREAD);
}

/// What was recorded since the last time.
fn recorded(kernel: &mut Kernel) -> Vec<Record> {
    let mut ring: RingBuf<&mut MapData> = kernel.map(name::TRACE);
    std::iter::from_fn(|| ring.next().map(|item| Record::from_bytes(&item).unwrap())).collect()
}

#[test]
fn who_watches_sees_the_frame_as_it_came_and_what_it_became() {
    let mut world = World::new();
    let mut kernel = Kernel::load(world.max_flows);
    let case = cases::all().into_iter().find(|case| case.reason == Some(Reason::CookieSent)).unwrap();
    kernel.become_like(&world);
    kernel.run(&case.frame, world.engine);
    assert_eq!(recorded(&mut kernel), [], "nobody watches");

    for wanted in [
        Wanted { reasons: 1 << Reason::AckInvalid as u32, service: 0 },
        Wanted { reasons: u64::MAX, service: u64::from(PORT) + 2 },
    ] {
        world.settings.trace = wanted;
        kernel.become_like(&world);
        kernel.run(&case.frame, world.engine);
        assert_eq!(recorded(&mut kernel), [], "{wanted:?}");
    }

    for service in [0, u64::from(PORT) + 1] {
        world.settings.trace = Wanted { reasons: 1 << Reason::CookieSent as u32, service };
        kernel.become_like(&world);
        let before = tcpguard::dataplane::monotonic_ns();
        let answer = kernel.run(&case.frame, world.engine);
        let [came, went] = recorded(&mut kernel).try_into().unwrap();
        for (record, direction, frame) in [(came, IN, &case.frame), (went, OUT, &answer.frame)] {
            assert_eq!((record.direction, record.bytes()), (direction, &frame[..]));
            assert_eq!((record.len as usize, record.service), (frame.len(), u32::from(PORT)));
            assert_eq!((record.reason, record.engine), (Reason::CookieSent as u32, world.engine));
            assert!((before..=tcpguard::dataplane::monotonic_ns()).contains(&record.time));
        }
    }

    // Of a long frame there is the beginning.
    world.settings.trace = Wanted { reasons: u64::MAX, service: 0 };
    kernel.become_like(&world);
    let long = [&case.frame[..], &[0x55; 2000]].concat();
    kernel.run(&long, world.engine);
    let record = recorded(&mut kernel)[0];
    assert_eq!((record.bytes(), record.len as usize), (&long[..SNAP], long.len()));
}

#[test]
fn a_flood_is_recorded_at_a_bounded_rate_and_the_rest_counted() {
    const FRAMES: u64 = 20_000;
    let mut world = World::new();
    world.settings.trace.reasons = u64::MAX;
    let mut kernel = Kernel::load(world.max_flows);
    kernel.become_like(&world);
    let case = cases::all().into_iter().find(|case| case.reason == Some(Reason::AckInvalid)).unwrap();
    let mut records = Vec::new();
    for index in 0..FRAMES {
        kernel.run(&case.frame, world.engine);
        if index % 1000 == 0 {
            records.extend(recorded(&mut kernel));
        }
    }
    records.extend(recorded(&mut kernel));
    let counts: PerCpuArray<&mut MapData, u64> = kernel.map(name::TRACE_LOST);
    let lost = |how| counts.get(&how, 0).unwrap().iter().sum::<u64>();
    let (beyond_rate, ring_full) = (lost(LOST_BEYOND_RATE), lost(LOST_RING_FULL));
    assert_eq!(records.len() as u64 + beyond_rate + ring_full, FRAMES);
    let mut windows = BTreeMap::<_, usize>::new();
    records.iter().for_each(|record| *windows.entry(window(record.time)).or_default() += 1);
    // The test may run on one CPU after the other.
    let most = PER_WINDOW as usize * aya::util::nr_cpus().unwrap();
    assert!(windows.values().all(|&count| count <= most), "{windows:?}");
}

/// BPF_PROG_RUN puts what does not fit one page into further buffers, as drivers do.
#[test]
fn segments_in_several_buffers_are_counted_and_other_frames_pass_whole() {
    let mut kernel = Kernel::load_program("tcpguard_jumbo", 8);
    let mut world = World::new();
    let ack = valid_ack::<V4>(EPOCH, true);
    world.know(ack.flow());
    kernel.become_like(&world);
    let reason = |kernel: &mut Kernel, frame: &[u8]| {
        let before = kernel.counters();
        let outcome = kernel.run(frame, world.engine);
        let after = kernel.counters();
        let counted = Reason::ALL.iter().find(|&&reason| after[reason as usize] > before[reason as usize]);
        assert!(outcome.verdict == Verdict::Transmit || outcome.frame == frame);
        (outcome.verdict, counted.copied())
    };
    let long = |spec: &Spec<V4>| Spec { data: vec![7; 6000], ..spec.clone() }.frame();
    let dropped = (Verdict::Drop, Some(Reason::Truncated));
    assert_eq!(reason(&mut kernel, &long(&ack)), dropped);
    assert_eq!(reason(&mut kernel, &long(&Spec::syn(LINUX))), dropped);
    let elsewhere = Spec { dst_port: 81, ..ack.clone() };
    assert_eq!(reason(&mut kernel, &long(&elsewhere)), (Verdict::Pass, None));
    let redirected = (Verdict::Redirect(world.engine), Some(Reason::FlowKnown));
    assert_eq!(reason(&mut kernel, &ack.frame()), redirected);
    let answered = (Verdict::Transmit, Some(Reason::CookieSent));
    assert_eq!(reason(&mut kernel, &Spec::<V4>::syn(LINUX).frame()), answered);
}

#[test]
fn the_verifier_has_room_left() {
    let kernel = Kernel::load(2);
    let program: &Xdp = kernel.ebpf.program("tcpguard").unwrap().try_into().unwrap();
    let info = program.info().unwrap();
    let verified = info.verified_instruction_count().unwrap();
    let stack = verifier::stack(object(), "tcpguard", &kernel.ebpf, &[("SLOT", &SLOT.to_ne_bytes())]);
    let said = format!(
        "{verified} instructions verified, {} bytes of machine code, stack depth {:?}, {} combined\n",
        info.size_jitted(),
        stack.depths,
        stack.combined
    );
    std::io::Write::write_all(&mut std::io::stdout(), said.as_bytes()).unwrap();
    assert!(verified < MOST_VERIFIED, "{said}");
    assert!(stack.combined <= MOST_STACK, "{said}");
}
