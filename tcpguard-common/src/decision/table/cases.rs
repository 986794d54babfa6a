//! (description, world, frame in, verdict, frame out, reason), for both families.

use std::format;
use std::string::String;
use std::vec;
use std::vec::Vec;

use super::acks::valid_ack;
use super::frames::{ACK, FIN, LINUX, RST, SYN, Spec};
use super::systems::SYSTEMS;
use super::world::{EPOCH, PORT_ANYWHERE, PORT_OFF, PORT_OFF_HERE, PORT_ONLY_HERE, Place, World};
use tcpguard_common::decision::Verdict;
use tcpguard_common::flow::{V4, V6};
use tcpguard_common::map::ON_EXIT_PASS;
use tcpguard_common::reason::Reason;

pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) world: World,
    pub(crate) frame: Vec<u8>,
    pub(crate) verdict: Verdict,
    pub(crate) reason: Option<Reason>,
    /// The options that must be in the answer, where a [`System`](super::systems::System) says.
    pub(crate) answer: Option<&'static [u8]>,
}

/// Every row of the table.
pub(crate) fn all() -> Vec<Case> {
    let mut table = Table::default();
    table.both_families::<V4>();
    table.both_families::<V6>();
    table.ipv4();
    table.ipv6();
    table.hostile();
    table.filters();
    table.complaints();
    table.cases
}

#[derive(Default)]
pub(super) struct Table {
    cases: Vec<Case>,
}

impl Table {
    pub(super) fn row(
        &mut self,
        name: impl Into<String>,
        world: &World,
        frame: Vec<u8>,
        reason: impl Into<Option<Reason>>,
    ) {
        use tcpguard_common::reason::Outcome::{Answered, Dropped, Passed, Redirected};
        let reason = reason.into();
        let verdict = match reason.map(Reason::outcome) {
            None | Some(Passed) => Verdict::Pass,
            Some(Answered) => Verdict::Transmit,
            Some(Redirected) => Verdict::Redirect(world.engine),
            Some(Dropped) => Verdict::Drop,
        };
        self.cases.push(Case {
            name: name.into(),
            world: world.clone(),
            frame,
            verdict,
            reason,
            answer: None,
        });
    }

    /// A row of a service in dry run: whatever the reason, the frame passes as it came.
    pub(super) fn passing_row(
        &mut self,
        name: impl Into<String>,
        world: &World,
        frame: Vec<u8>,
        reason: Reason,
    ) {
        self.row(name, world, frame, reason);
        if let Some(case) = self.cases.last_mut() {
            case.verdict = Verdict::Pass;
        }
    }

    fn both_families<A: Place>(&mut self) {
        self.systems::<A>();
        self.syns::<A>();
        self.hostile_options::<A>();
        self.budgets::<A>();
        self.admission::<A>();
        self.pressure::<A>();
        self.stateful::<A>();
        self.dry_run::<A>();
        self.acks::<A>();
        self.strict::<A>();
        self.flags::<A>();
        self.addresses::<A>();
        self.exact_services::<A>();
        self.truncation::<A>();
        self.liveness::<A>();
        self.not_ours::<A>();
    }

    fn systems<A: Place>(&mut self) {
        let tags = vec![[0x81, 0, 0x20, 5]];
        for system in SYSTEMS {
            let spec = Spec::<A>::syn(system.offer);
            for spec in [spec.clone(), Spec { tags: tags.clone(), ..spec }] {
                let name = format!("IPv{} SYN of {} with {} tags", A::VERSION, system.name, spec.tags.len());
                self.row(name, &World::new(), spec.frame(), Reason::CookieSent);
                if let Some(case) = self.cases.last_mut() {
                    case.answer = Some(system.answer);
                }
            }
        }
    }

    fn flags<A: Place>(&mut self) {
        let unknown = World::new();
        for flags in 0..=255u8 {
            let spec = Spec { flags, ..Spec::<A>::ack(77, LINUX) };
            let mut known = unknown.clone();
            known.know(spec.flow());
            let (syn, ack, rst) = (flags & SYN != 0, flags & ACK != 0, flags & RST != 0);
            let impossible = flags & 0x3f == 0 || syn && flags & (FIN | RST) != 0;
            let of_unknown = match () {
                () if impossible => Reason::BadFlags,
                () if syn && !ack => Reason::CookieSent,
                () if rst => Reason::NoFlowRst,
                () if syn || !ack => Reason::NoFlow,
                () => Reason::AckInvalid,
            };
            let of_known = match of_unknown {
                Reason::BadFlags | Reason::CookieSent => of_unknown,
                _ => Reason::FlowKnown,
            };
            let name = format!("IPv{} flags {flags:#04x}", A::VERSION);
            self.row(name.clone() + " of an unknown flow", &unknown, spec.frame(), of_unknown);
            self.row(name + " of a known flow", &known, spec.frame(), of_known);
        }
    }

    fn addresses<A: Place>(&mut self) {
        let world = World::new();
        for spec in [Spec::<A>::syn(LINUX), valid_ack::<A>(EPOCH, true)] {
            let row = |what: &str| format!("IPv{} flags {:#04x} {what}", A::VERSION, spec.flags);
            let land = Spec { src: A::GUARDED, ..spec.clone() };
            self.row(row("from the destination itself"), &world, land.frame(), Reason::BadSource);
            let port0 = Spec { src_port: 0, ..spec.clone() };
            self.row(row("from port 0"), &world, port0.frame(), Reason::BadPort);
            let mut group = spec.frame();
            group[6] |= 1;
            self.row(row("from a group MAC"), &world, group, Reason::BadSource);
            let elsewhere = Spec { dst: A::ELSEWHERE, ..spec.clone() };
            self.row(row("to an unprotected address"), &world, elsewhere.frame(), None);
            for dst_port in [81, 0, 16464, 65535] {
                let other = Spec { dst_port, ..spec.clone() };
                self.row(row(&format!("to unprotected port {dst_port}")), &world, other.frame(), None);
            }
        }
    }

    /// What is said of an address and port holds against what is said of the port on any address.
    fn exact_services<A: Place>(&mut self) {
        let world = World::new();
        for (what, dst_port, here, elsewhere) in [
            ("is off here alone", PORT_OFF_HERE, Reason::ServiceOff, Reason::CookieSent),
            ("is guarded here alone", PORT_ONLY_HERE, Reason::CookieSent, Reason::ServiceOff),
        ] {
            for (at, dst, reason) in [("here", A::GUARDED, here), ("elsewhere", A::ELSEWHERE, elsewhere)] {
                let spec = Spec { dst, dst_port, ..Spec::<A>::syn(LINUX) };
                let name = format!("IPv{} SYN to {at}, to a port that {what}", A::VERSION);
                self.row(name, &world, spec.frame(), reason);
            }
        }
    }

    fn truncation<A: Place>(&mut self) {
        let world = World::new();
        for tags in [vec![], vec![[0x88, 0xa8, 0, 7], [0x81, 0, 0, 9]]] {
            let spec = Spec { tags, ..Spec::<A>::syn(LINUX) };
            let whole = spec.frame();
            for len in 0..whole.len() {
                // Nobody can tell where it goes before the destination port.
                let reason = (len >= spec.l4() + 4).then_some(Reason::Truncated);
                let name = format!("IPv{} {} tags cut to {len}", A::VERSION, spec.tags.len());
                self.row(name, &world, whole[..len].to_vec(), reason);
            }
        }
        let length_at = Spec::<A>::syn(&[]).l3() + if A::VERSION == 4 { 2 } else { 4 };
        let header = if A::VERSION == 4 { 20 } else { 0 };
        for (what, length, reason) in [
            ("0", 0, Reason::BadLength),
            ("of the IP header alone", header, Reason::BadLength),
            ("one short of a TCP header", header + 19, Reason::BadLength),
            ("of a TCP header", header + 20, Reason::BadDataOffset),
            ("one beyond the frame", header + 41, Reason::Truncated),
            ("65535", 65535, Reason::Truncated),
        ] {
            let mut frame = Spec::<A>::syn(LINUX).frame();
            frame[length_at..length_at + 2].copy_from_slice(&u16::to_be_bytes(length));
            self.row(format!("IPv{} length {what}", A::VERSION), &world, frame, reason);
        }
    }

    fn liveness<A: Place>(&mut self) {
        let stopped = |grace: u64, on_exit: u32| {
            let mut world = World { beating: false, ..World::new() };
            world.settings.stale_after = 1;
            world.settings.exit_grace = grace;
            world.settings.on_exit = on_exit;
            world
        };
        let mut bad = Spec::<A>::syn(LINUX).frame();
        bad.truncate(60);
        for (kind, frame) in [
            ("SYN", Spec::<A>::syn(LINUX).frame()),
            ("valid ACK", valid_ack::<A>(EPOCH, true).frame()),
            ("truncated SYN", bad),
        ] {
            let row = |what: &str| format!("IPv{} {kind} {what}", A::VERSION);
            let socketless = World { socket: false, ..World::new() };
            self.row(row("without a socket"), &socketless, frame.clone(), Reason::Grace);
            let mut unserved = World::new();
            unserved.interface.queues = 0;
            self.row(row("on a queue without an engine"), &unserved, frame.clone(), Reason::NoEngine);
            let deserted = World { interface: unserved.interface, ..stopped(1, ON_EXIT_PASS) };
            self.row(row("there after the grace"), &deserted, frame.clone(), Reason::ExitPass);
            let forever = u64::MAX / 2;
            self.row(row("within the grace"), &stopped(forever, ON_EXIT_PASS), frame.clone(), Reason::Grace);
            self.row(
                row("after the grace, pass"),
                &stopped(1, ON_EXIT_PASS),
                frame.clone(),
                Reason::ExitPass,
            );
            self.row(row("after the grace, drop"), &stopped(1, ON_EXIT_PASS + 1), frame, Reason::ExitDrop);
        }
        for (kind, spec) in [
            ("SYN", Spec::<A>::syn(LINUX)),
            ("ACK", Spec::ack(9, &[])),
            ("nothing", Spec { flags: 0, ..Spec::ack(9, &[]) }),
        ] {
            let off = Spec { dst_port: PORT_OFF, ..spec };
            for world in [World::new(), stopped(1, ON_EXIT_PASS + 1)] {
                self.row(
                    format!("IPv{} {kind} to a service that is off", A::VERSION),
                    &world,
                    off.frame(),
                    Reason::ServiceOff,
                );
            }
        }
    }

    fn not_ours<A: Place>(&mut self) {
        let world = World::new();
        let spec = Spec::<A>::syn(LINUX);
        let row = |what: &str| format!("IPv{} {what}", A::VERSION);
        let mut foreign = spec.frame();
        foreign[5] ^= 1;
        self.row(row("to another MAC"), &world, foreign, None);
        let mut unarmed = world.clone();
        unarmed.interface.armed = 0;
        self.row(row("while not armed"), &unarmed, spec.frame(), None);
        let mut strange = world.clone();
        strange.settings.abi ^= 1;
        self.row(row("with settings of another version"), &strange, spec.frame(), None);
        let three = Spec { tags: vec![[0x81, 0, 0, 1]; 3], ..spec.clone() };
        self.row(row("with three tags"), &world, three.frame(), None);
        for tags in [vec![[0x91, 0, 0, 1]], vec![[0x88, 0xa8, 0, 1], [0x91, 0, 0, 1]]] {
            let unknown = Spec { tags, ..spec.clone() };
            self.row(row("with a tag of another protocol"), &world, unknown.frame(), None);
        }
        let mut arp = spec.frame();
        arp[12..14].copy_from_slice(&[8, 6]);
        self.row(row("as ARP"), &world, arp, None);
        for version in [0, 5, 7, 15, if A::VERSION == 4 { 6 } else { 4 }] {
            let mut other = spec.frame();
            other[spec.l3()] = other[spec.l3()] & 0xf | version << 4;
            self.row(row(&format!("with version {version}")), &world, other, None);
        }
    }

    fn ipv4(&mut self) {
        let world = World::new();
        let spec = Spec::<V4>::syn(LINUX);
        for protocol in [0, 1, 17, 41, 132] {
            let mut frame = spec.frame();
            frame[spec.l3() + 9] = protocol;
            self.row(format!("IPv4 protocol {protocol}"), &world, frame, None);
        }
        for (what, field, reason) in [
            ("first fragment", [0x20, 0], Some(Reason::Fragment)),
            ("first fragment with DF", [0x60, 0], Some(Reason::Fragment)),
            ("later fragment", [0x20, 1], None),
            ("fragment from far behind", [0x21, 0], None),
            ("last fragment", [0x1f, 0xff], None),
            ("DF clear", [0, 0], Some(Reason::CookieSent)),
            ("reserved bit set", [0x80, 0], Some(Reason::CookieSent)),
        ] {
            let mut frame = spec.frame();
            frame[spec.l3() + 6..spec.l3() + 8].copy_from_slice(&field);
            spec.fix(&mut frame);
            self.row(format!("IPv4 {what}"), &world, frame, reason);
        }
        for ihl in 0..5 {
            let mut frame = spec.frame();
            frame[spec.l3()] = 0x40 | ihl;
            self.row(format!("IPv4 header length {ihl}"), &world, frame, None);
        }
        for words in 1..=10 {
            let spec = Spec { extra: (6, vec![1; words * 4]), ..spec.clone() };
            self.row(
                format!("IPv4 SYN with {words} words of options"),
                &world,
                spec.frame(),
                Reason::CookieSent,
            );
            let mut frame = spec.frame();
            frame[spec.l4() - 1] ^= 1;
            self.row(
                format!("IPv4 SYN with {words} corrupt words of options"),
                &world,
                frame,
                Reason::IpBadChecksum,
            );
            let ack = Spec { extra: (6, vec![1; words * 4]), ..valid_ack::<V4>(EPOCH, true) };
            self.row(
                format!("IPv4 ACK with {words} words of options"),
                &world,
                ack.frame(),
                Reason::AckValid,
            );
        }
        for spec in [spec, valid_ack::<V4>(EPOCH, true)] {
            let mut frame = spec.frame();
            frame[spec.l3() + 8] -= 1;
            let name = format!("IPv4 flags {:#04x} with a wrong header checksum", spec.flags);
            self.row(name, &world, frame, Reason::IpBadChecksum);
        }
        let sources: [[u8; 4]; 8] = [
            [0, 0, 0, 0],
            [0, 1, 2, 3],
            [127, 0, 0, 1],
            [224, 0, 0, 1],
            [239, 255, 255, 255],
            [255; 4],
            [198, 51, 100, 1],
            [230, 1, 1, 1],
        ];
        for src in sources {
            let spec = Spec { src: V4(src), ..Spec::<V4>::syn(LINUX) };
            self.row(format!("IPv4 SYN from {src:?}"), &world, spec.frame(), Reason::BadSource);
        }
        for src in [[1, 0, 0, 0], [126, 255, 255, 255], [128, 0, 0, 1], [223, 255, 255, 255], [240, 0, 0, 1]]
        {
            let spec = Spec { src: V4(src), ..Spec::<V4>::syn(LINUX) };
            self.row(format!("IPv4 SYN from {src:?}"), &world, spec.frame(), Reason::CookieSent);
        }
        for dst in [[224, 0, 0, 1], [255; 4], [127, 0, 0, 1], [0; 4]] {
            let spec = Spec { dst: V4(dst), dst_port: PORT_ANYWHERE, ..Spec::<V4>::syn(LINUX) };
            self.row(format!("IPv4 SYN to {dst:?}"), &world, spec.frame(), Reason::BadDestination);
        }
    }

    fn ipv6(&mut self) {
        let world = World::new();
        let syn = Spec::<V6>::syn(LINUX);
        let destination = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
        let fragment = |high: u8, low: u8| vec![6, 0, high, low, 0, 0, 0, 1];
        let routing = |segments_left: u8| vec![6, 0, 253, segments_left, 0, 0, 0, 0];
        let long = |units: u8| {
            let mut header = vec![0; 8 * (usize::from(units) + 1)];
            header[..2].copy_from_slice(&[6, units]);
            header
        };
        let chain = [
            vec![60, 0, 1, 4, 0, 0, 0, 0],
            destination(43),
            vec![44, 0, 0, 0, 0, 0, 0, 0],
            vec![51, 0, 0, 0, 0, 0, 0, 1],
            vec![60, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            destination(6),
        ]
        .concat();
        let answered = Some(Reason::CookieSent);
        for (what, first, headers, reason) in [
            ("a hop-by-hop header", 0, destination(6), answered),
            ("six extension headers", 0, chain, answered),
            ("the longest extension header", 60, long(255), answered),
            ("an atomic fragment", 44, fragment(0, 0), answered),
            ("a first fragment", 44, fragment(0, 1), Some(Reason::Fragment)),
            ("a later fragment", 44, fragment(0, 8), None),
            (
                "seven extension headers",
                60,
                [destination(60).repeat(6), destination(6)].concat(),
                Some(Reason::HeaderChain),
            ),
            ("a routing header at its end", 43, routing(0), answered),
            ("a routing header with one segment left", 43, routing(1), None),
            ("a routing header with 255 segments left", 43, routing(255), None),
            ("ESP", 50, destination(6), None),
            ("no next header", 59, vec![], None),
            ("an unknown header", 253, destination(6), None),
            ("UDP after an extension header", 60, destination(17), None),
        ] {
            let spec = Spec { extra: (first, headers), ..syn.clone() };
            self.row(format!("IPv6 SYN with {what}"), &world, spec.frame(), reason);
        }
        let six = Spec { extra: (60, [destination(60), destination(6)].concat()), ..syn.clone() };
        let whole = six.frame();
        for len in 54..whole.len() {
            let reason = (len >= six.l4() + 4).then_some(Reason::Truncated);
            self.row(format!("IPv6 extension headers cut to {len}"), &world, whole[..len].to_vec(), reason);
        }
        let ack = Spec { extra: (60, destination(6)), ..valid_ack::<V6>(EPOCH, true) };
        self.row("IPv6 ACK with an extension header", &world, ack.frame(), Reason::AckValid);
        let mut unspecified = [0; 16];
        let mut loopback = [0; 16];
        loopback[15] = 1;
        for (what, address) in [("::", unspecified), ("::1", loopback), ("ff02::1", [0xff; 16])] {
            let from = Spec { src: V6(address), ..syn.clone() };
            self.row(format!("IPv6 SYN from {what}"), &world, from.frame(), Reason::BadSource);
            let to = Spec { dst: V6(address), dst_port: PORT_ANYWHERE, ..syn.clone() };
            self.row(format!("IPv6 SYN to {what}"), &world, to.frame(), Reason::BadDestination);
        }
        unspecified[15] = 2;
        let from = Spec { src: V6(unspecified), ..syn.clone() };
        self.row("IPv6 SYN from ::2", &world, from.frame(), Reason::CookieSent);
    }
}
