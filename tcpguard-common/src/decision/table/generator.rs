//! Frames for differential tests and fuzzers: well-formed segments of every kind that the decision tells apart, most of
//! them damaged afterwards; and the worlds to judge them in. The same seed makes the same frames.

use core::ops::RangeInclusive;
use std::vec;
use std::vec::Vec;

use super::filters;
use super::frames::{ACK, CLIENT_ISN, CLIENT_PORT, FIN, PSH, RST, SYN, Spec};
use super::systems::SYSTEMS;
use super::world::{
    ADVERTISED, EPOCH, MASTER, PORT, PORT_ANYWHERE, PORT_OFF, PORT_OFF_HERE, PORT_ONLY_HERE, Place, World,
};
use tcpguard_common::cookie::{self, Cookie, Strictness, SynOptions};
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot, ON_EXIT_PASS};
use tcpguard_common::sketch::Rate;

/// The client's port whose flow every world knows.
const KNOWN: u16 = 1;
/// The client's port whose flow is in TIME_WAIT in every world.
const WAITING: u16 = 2;

/// xorshift64: enough to be different every time.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Small seeds differ in a few bits only, and zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.word() >> 11) as usize % limit
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.word() as u8).collect()
    }
}

/// Guards in every condition, and how many frames in a hundred each should see. All of them have the same services, if not
/// in the same mode, know the flows of [`KNOWN`] and remember those of [`WAITING`].
pub(crate) fn worlds() -> Vec<(usize, World)> {
    let mut normal = World { max_flows: 64, ..World::new() };
    normal.know(Spec::<V4> { src_port: KNOWN, ..Spec::syn(&[]) }.flow());
    normal.know(Spec::<V6> { src_port: KNOWN, ..Spec::syn(&[]) }.flow());
    normal.remember(&Spec::<V4> { src_port: WAITING, ..Spec::syn(&[]) }.flow());
    normal.remember(&Spec::<V6> { src_port: WAITING, ..Spec::syn(&[]) }.flow());
    let like = |change: &dyn Fn(&mut World)| {
        let mut world = normal.clone();
        change(&mut world);
        world
    };
    let full = |world: &mut World| {
        for port in 60_000.. {
            if world.flows_v4.borrow().len() == world.max_flows {
                break;
            }
            world.know(FlowKey { peer_port: u16::to_be_bytes(port), ..Spec::<V4>::syn(&[]).flow() });
            world.know(FlowKey { peer_port: u16::to_be_bytes(port), ..Spec::<V6>::syn(&[]).flow() });
        }
    };
    let spent = |world: &mut World, verified| {
        world.spend_replies(V4::CLIENT, false);
        world.spend_replies(V6::CLIENT, false);
        if verified {
            world.spend_replies(V6::CLIENT, true);
            world.verify(V4::CLIENT, world.now);
            world.verify(V6::CLIENT, world.now);
        }
    };
    let unlimited = |world: &mut World| {
        spent(world, true);
        world.settings.limits.replies = Rate::UNLIMITED;
    };
    let pressed = |world: &mut World| {
        world.pressed = true;
        world.spend_pace(&Spec::<V4> { src_port: KNOWN, ..Spec::syn(&[]) }.flow());
        world.spend_pace(&Spec::<V6> { src_port: WAITING, ..Spec::syn(&[]) }.flow());
    };
    let complained = |world: &mut World| {
        world.spend_complaints(&Spec::<V4> { src_port: KNOWN, ..Spec::syn(&[]) }.flow());
        world.spend_complaints(&Spec::<V6> { src_port: KNOWN, ..Spec::syn(&[]) }.flow());
    };
    let hasty = |world: &mut World| {
        world.spend_arrivals(V4::CLIENT);
        world.spend_arrivals(V6::CLIENT);
    };
    let dead = |world: &mut World, grace: u64, on_exit: u32| {
        world.beating = false;
        world.settings.stale_after = 1;
        world.settings.exit_grace = grace;
        world.settings.on_exit = on_exit;
    };
    vec![
        (6, like(&|_| {})),
        (4, like(&|world| world.make_strict(&[EPOCH - 1, EPOCH]))),
        (2, like(&complained)),
        (3, like(&|world| world.crowded = true)),
        (3, like(&unlimited)),
        (5, like(&pressed)),
        (4, like(&|world| world.settings.limits.service_flows = 5)),
        (3, like(&|world| world.settings.limits.source_flows = 5)),
        (3, like(&hasty)),
        (5, like(&|world| spent(world, false))),
        (5, like(&|world| spent(world, true))),
        (17, like(&|world| world.settings.epoch_second_half = 1)),
        (
            3,
            like(&|world| {
                world.settings.epoch_second_half = 1;
                world.make_strict(&[EPOCH + 1]);
            }),
        ),
        (20, like(&full)),
        (3, like(&|world| world.epochs[((EPOCH - 1) % EPOCH_SLOTS) as usize] = EpochSlot::default())),
        (1, like(&|world| world.epochs[(EPOCH % EPOCH_SLOTS) as usize] = EpochSlot::default())),
        (1, like(&|world| world.socket = false)),
        (1, like(&|world| world.interface.queues = 0)),
        (1, like(&|world| dead(world, u64::MAX / 2, ON_EXIT_PASS))),
        (1, like(&|world| dead(world, 1, ON_EXIT_PASS))),
        (1, like(&|world| dead(world, 1, ON_EXIT_PASS + 1))),
        (1, like(&|world| world.interface.armed = 0)),
        (5, like(&filters::some)),
        (5, like(&World::make_stateful)),
        (4, like(&World::make_dry_run)),
        (
            2,
            like(&|world| {
                world.make_stateful();
                world.make_dry_run();
                spent(world, false);
                pressed(world);
            }),
        ),
        (
            2,
            like(&|world| {
                world.make_stateful();
                world.spend_stateful();
            }),
        ),
    ]
}

/// Frames that the program in the kernel and the reference both judge, beside the decision on the host.
pub(crate) const FRAMES: usize = 1_000_000;
/// In how many supplies of their own.
pub(crate) const LANES: usize = 4;

/// Those supplies.
pub(crate) fn lanes() -> impl Iterator<Item = Generator> {
    const SEED: u64 = 0x7463_7067_7561_7264;
    // What BPF_PROG_RUN takes: at least an Ethernet header, and no more than a page with room around it.
    (SEED..).take(LANES).map(|seed| Generator::new(seed, 14..=3300))
}

/// An endless supply of frames.
#[derive(Clone, Debug)]
pub(crate) struct Generator {
    random: Random,
    /// No frame is cut to less, bytes.
    shortest: usize,
    /// No frame is built longer, bytes.
    longest: usize,
}

impl Generator {
    /// One whose frames have a length in `lengths`, bytes, but for padding.
    pub(crate) fn new(seed: u64, lengths: RangeInclusive<usize>) -> Self {
        Self { random: Random::new(seed), shortest: *lengths.start(), longest: *lengths.end() }
    }

    /// The next frame.
    pub(crate) fn frame(&mut self) -> Vec<u8> {
        match self.random.below(100) {
            0 => {
                let len = self.shortest + self.random.below(200);
                self.random.bytes(len)
            }
            1..3 => self.complaint::<V4>(),
            3..5 => self.complaint::<V6>(),
            5..52 => self.of_family::<V4>(),
            _ => self.of_family::<V6>(),
        }
    }

    fn of_family<A: Wild>(&mut self) -> Vec<u8> {
        let spec = self.spec::<A>();
        let mut frame = spec.frame();
        let edits = self.random.pick(&[0, 0, 0, 0, 0, 1, 1, 1, 2, 4]);
        for _ in 0..edits {
            self.edit(&spec, &mut frame);
        }
        // Damage that checksums give away is noticed early: most of it has to look intended.
        if self.random.chance(70) {
            let end = datagram_end(&spec, &frame);
            spec.fix(&mut frame[..end]);
        }
        match self.random.below(20) {
            0 => frame.truncate(self.shortest + self.random.below(frame.len() - self.shortest)),
            1 => {
                let padding = self.random.below(64);
                frame.extend(self.random.bytes(padding));
            }
            _ => {}
        }
        frame
    }

    /// An ICMP message, mostly an error about a flow that is known, and mostly well-formed.
    fn complaint<A: Wild>(&mut self) -> Vec<u8> {
        let mut spec = self.spec::<A>();
        let random = &mut self.random;
        if random.chance(80) {
            (spec.src, spec.dst, spec.dst_port) = (A::CLIENT, A::GUARDED, PORT);
            spec.src_port = random.pick(&[KNOWN, KNOWN, KNOWN, WAITING, CLIENT_PORT]);
        }
        let kind = match random.chance(90) {
            true => random.pick(&[1, 2, 3, 3, 3, 4, 11, 12]),
            false => random.word() as u8,
        };
        let code = random.pick(&[0, 1, 2, 3, 4, 4, 4, 13]);
        let quoted = match random.below(10) {
            0 => random.below(8),
            1 => 3000,
            _ => 8 + random.below(20),
        };
        let word = random.word() as u32;
        let mut frame = spec.complaint((kind, code), word, random.word() as u32, quoted);
        for _ in 0..random.pick(&[0, 0, 0, 1, 2]) {
            let headers = frame.len().min(spec.l3() + 120);
            frame[random.below(headers)] = match random.below(3) {
                0 => random.word() as u8,
                1 => random.pick(&[0, 1, 4, 6, 17, 20, 0x44, 0x45, 0x46, 0x60, 58, 255]),
                _ => 1 << random.below(8),
            };
        }
        if random.chance(5) {
            frame.truncate(self.shortest + random.below(frame.len() - self.shortest));
        }
        frame
    }

    /// A well-formed segment.
    fn spec<A: Wild>(&mut self) -> Spec<A> {
        let random = &mut self.random;
        let mut spec = Spec::<A>::syn(&[]);
        if random.chance(90) {
            spec.src = A::with_host(random.word() as u8);
        } else {
            spec.src = A::odd(random);
        }
        spec.dst = match random.below(100) {
            0..90 => A::GUARDED,
            90..95 => A::ELSEWHERE,
            _ => A::odd(random),
        };
        spec.dst_port = match random.below(100) {
            0..75 => PORT,
            75..90 => PORT_ANYWHERE,
            90..94 => random.pick(&[PORT_OFF, PORT_OFF_HERE, PORT_ONLY_HERE]),
            94..97 => random.pick(&[0, 79, 81, 16464]),
            _ => random.word() as u16,
        };
        spec.src_port = match random.below(100) {
            0..97 => CLIENT_PORT + random.below(1000) as u16,
            97 => 0,
            _ => random.word() as u16,
        };
        let any = random.word() as u32;
        spec.seq = random.pick(&[CLIENT_ISN, 0, 1, u32::MAX, any]);
        let tags = random.pick(&[0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3]);
        spec.tags = (0..tags)
            .map(|_| {
                let [high, low] = random.pick(&[0x8100_u16, 0x8100, 0x88a8, 0x9100]).to_be_bytes();
                [high, low, random.word() as u8, random.word() as u8]
            })
            .collect();
        spec.extra = A::extra(random);
        self.kind(&mut spec);
        let room = self.longest - spec.l4() - 60;
        let len = match self.random.below(100) {
            0..75 => 0,
            75..92 => self.random.below(64),
            92..99 => self.random.below(1460),
            _ => self.random.below(self.longest),
        };
        spec.data = self.random.bytes(len.min(room));
        spec
    }

    /// Which part of a connection's life it belongs to.
    fn kind<A: Wild>(&mut self, spec: &mut Spec<A>) {
        let random = &mut self.random;
        match random.below(100) {
            0..38 => {
                spec.flags = SYN | random.pick(&[0, 0, 0, PSH, 0x20, 0x40, 0x80, 0xc0, 0xc0]);
                spec.options = options(random);
            }
            38..62 => echo_cookie(random, spec),
            62..68 => {
                (spec.flags, spec.ack) = (ACK, random.word() as u32);
                spec.options = options(random);
            }
            68..80 => {
                (spec.src, spec.dst, spec.dst_port) = (A::CLIENT, A::GUARDED, PORT);
                spec.src_port = random.pick(&[KNOWN, WAITING]);
                spec.flags = random.pick(&[ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, SYN | ACK, SYN, 0]);
                spec.options = options(random);
            }
            80..84 => spec.flags = random.pick(&[RST, RST | ACK, SYN | ACK, FIN]),
            _ => {
                (spec.flags, spec.ack) = (random.word() as u8, random.word() as u32);
                spec.options = options(random);
            }
        }
    }

    /// Changes one thing that somebody may lie about.
    fn edit<A: Wild>(&mut self, spec: &Spec<A>, frame: &mut [u8]) {
        let random = &mut self.random;
        let (l3, l4) = (spec.l3(), spec.l4());
        let headers = frame.len().min(l4 + 60);
        match random.below(10) {
            0..3 => frame[random.below(headers)] ^= 1 << random.below(8),
            3 => frame[random.below(headers)] = random.pick(&[0, 1, 2, 3, 4, 5, 8, 10, 40, 255]),
            4 => frame[random.below(headers)] = random.word() as u8,
            5 => lie_about_length(random, &mut frame[l3 + if A::VERSION == 4 { 2 } else { 4 }..][..2]),
            6 => frame[l4 + 12] = (random.word() as u8) << 4,
            7 => frame[l4 + 13] = random.word() as u8,
            8 if A::VERSION == 4 => match random.below(3) {
                0 => frame[l3] = 0x40 | random.below(16) as u8,
                _ => frame[l3 + 6..l3 + 8].copy_from_slice(&random.pick(&[
                    [0u8, 0u8],
                    [0x20, 0],
                    [0x20, 1],
                    [0, 1],
                    [0x60, 0],
                    [0x80, 0],
                ])),
            },
            _ => {
                let options = spec.options.len().max(1);
                let at = (l4 + 20 + random.below(options)).min(frame.len() - 1);
                frame[at] = random.pick(&[0, 1, 2, 3, 4, 5, 8, 10, 30, 34, 255]);
            }
        }
    }
}

/// Where the datagram ends by its own account, if that lies behind the TCP header and inside the frame.
fn datagram_end<A: Place>(spec: &Spec<A>, frame: &[u8]) -> usize {
    let l3 = spec.l3();
    let (at, header) = if A::VERSION == 4 { (l3 + 2, 0) } else { (l3 + 4, 40) };
    let end = l3 + header + usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    if (spec.l4() + 20..frame.len()).contains(&end) { end } else { frame.len() }
}

fn lie_about_length(random: &mut Random, field: &mut [u8]) {
    let truth = u16::from_be_bytes([field[0], field[1]]);
    let lie = match random.below(4) {
        0 => truth.wrapping_add(random.below(8) as u16),
        1 => truth.wrapping_sub(random.below(64) as u16),
        2 => random.below(100) as u16,
        _ => random.word() as u16,
    };
    field.copy_from_slice(&lie.to_be_bytes());
}

/// Turns the segment into the answer to a SYN-ACK of ours, of this epoch or another.
fn echo_cookie<A: Wild>(random: &mut Random, spec: &mut Spec<A>) {
    let epoch = EPOCH + random.pick(&[2, 2, 2, 2, 1, 3, 0, 4]) - 2;
    let slot = EpochSlot::derive(MASTER, epoch, &ADVERTISED).expect("a secret and a window");
    let syn = SynOptions {
        mss: random.chance(90).then(|| random.word() as u16 % 1500),
        window_scale: random.chance(80).then(|| random.below(15) as u8),
        sack_permitted: random.chance(80),
        timestamps: random.chance(60).then(|| random.word() as u32),
        ecn: random.chance(10),
    };
    let strictness = if random.chance(15) { Strictness::ALWAYS } else { Strictness::NEVER };
    let Cookie { isn, tsval, .. } =
        cookie::encode(&slot, strictness, &spec.flow(), spec.seq, &syn, random.word());
    spec.seq = spec.seq.wrapping_add(1);
    spec.ack = isn.wrapping_add(1);
    spec.flags = ACK | random.pick(&[0, 0, 0, PSH, FIN, 0x20, 0xc0]);
    spec.options = tsval.map_or(vec![], |tsval| {
        let stamps = [&[1, 1, 8, 10], &random.bytes(4)[..], &tsval.to_be_bytes()].concat();
        if random.chance(80) {
            stamps
        } else {
            [&[5, 10, 0, 0, 0, 1, 0, 0, 0, 9, 1, 1], &stamps[..]].concat()
        }
    });
}

/// Options of some system, of none, or of nobody.
fn options(random: &mut Random) -> Vec<u8> {
    match random.below(10) {
        0..5 => SYSTEMS[random.below(SYSTEMS.len())].offer.to_vec(),
        5..9 => composed(random),
        _ => {
            let len = 4 * random.below(11);
            random.bytes(len)
        }
    }
}

fn composed(random: &mut Random) -> Vec<u8> {
    let mut options = vec![];
    for _ in 0..random.below(9) {
        let option = match random.below(12) {
            0 | 1 => {
                let any = random.below(1600) as u16;
                let mss = random.pick(&[0, 1, 535, 536, 1220, 65535, any, any, any, any]);
                [&[2, 4], &mss.to_be_bytes()[..]].concat()
            }
            2 | 3 => vec![3, 3, random.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 15, 255])],
            4 => vec![4, 2],
            5 | 6 => [&[8, 10], &random.bytes(8)[..]].concat(),
            7 => vec![1],
            8 => [&[5, 10], &random.bytes(8)[..]].concat(),
            9 => [&[34, 10], &random.bytes(8)[..]].concat(),
            10 => {
                let size = 2 + random.below(12);
                [&[random.pick(&[2, 3, 4, 8, 30, 253]), size as u8], &random.bytes(size - 2)[..]].concat()
            }
            _ => vec![random.pick(&[0, 2, 8]), random.pick(&[0, 1, 2, 41])],
        };
        options.extend(option);
    }
    options.truncate(40);
    let padding = random.pick(&[0, 1, 1]);
    options.resize(options.len().next_multiple_of(4), padding);
    options
}

/// What a generator needs of an address family.
pub(crate) trait Wild: Place {
    /// A client.
    fn with_host(host: u8) -> Self;
    /// An address that a segment seldom has.
    fn odd(random: &mut Random) -> Self;
    /// IPv4 options or IPv6 extension headers, and the type of the first.
    fn extra(random: &mut Random) -> (u8, Vec<u8>);
}

impl Wild for V4 {
    fn with_host(host: u8) -> Self {
        Self([192, 0, 2, host])
    }

    fn odd(random: &mut Random) -> Self {
        let any = random.word() as u32;
        Self(random.pick(&[
            [0; 4],
            [0, 0, 0, 1],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [239, 255, 255, 255],
            [240, 0, 0, 1],
            [255; 4],
            [255, 255, 255, 254],
            Self::GUARDED.0,
            any.to_be_bytes(),
        ]))
    }

    fn extra(random: &mut Random) -> (u8, Vec<u8>) {
        let words = if random.chance(88) { 0 } else { random.below(11) };
        (6, random.bytes(4 * words))
    }
}

impl Wild for V6 {
    fn with_host(host: u8) -> Self {
        let mut address = Self::CLIENT.0;
        address[15] = host;
        Self(address)
    }

    fn odd(random: &mut Random) -> Self {
        let (mut loopback, mut group, mut any) = ([0; 16], [0; 16], [0; 16]);
        loopback[15] = random.below(3) as u8;
        (group[0], group[1]) = (0xff, 2);
        any.copy_from_slice(&random.bytes(16));
        Self(random.pick(&[loopback, group, any, Self::GUARDED.0]))
    }

    fn extra(random: &mut Random) -> (u8, Vec<u8>) {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const AUTHENTICATION: u8 = 51;
        const DESTINATION: u8 = 60;
        const ESP: u8 = 50;

        let count = if random.chance(70) { 0 } else { random.below(9) };
        let mut next = if random.chance(97) { 6 } else { random.pick(&[17, 59, 41]) };
        // From the last to the first, because each names its follower.
        let mut chain = vec![];
        for _ in 0..count {
            let kinds =
                [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION, DESTINATION, FRAGMENT, ESP];
            let known = if random.chance(95) { kinds.len() - 1 } else { kinds.len() };
            let kind = random.pick(&kinds[..known]);
            let (units, len) = match kind {
                FRAGMENT => (0, 8),
                AUTHENTICATION => {
                    let words = random.below(5);
                    (words, 4 * (words + 2))
                }
                _ => {
                    let units = if random.chance(99) { random.below(4) } else { random.below(120) };
                    (units, 8 * (units + 1))
                }
            };
            let mut header = random.bytes(len);
            (header[0], header[1]) = (next, units as u8);
            if kind == FRAGMENT {
                // Mostly whole, some first, some later ones; the reserved bits may be anything.
                let offset_and_more = random.pick(&[0, 0, 0, 0, 0, 6, 1, 8]);
                (header[2], header[3]) = (0, offset_and_more);
            }
            if kind == ROUTING {
                // Mostly at its end.
                header[3] = random.pick(&[0, 0, 0, 1]);
            }
            header.extend(chain);
            (chain, next) = (header, kind);
        }
        (next, chain)
    }
}
