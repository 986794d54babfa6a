//! ICMP errors: which are about a known flow of ours, and what they look like when they lie.

use std::format;
use std::vec;
use std::vec::Vec;

use super::cases::Table;
use super::frames::Spec;
use super::world::{PORT_ANYWHERE, PORT_OFF, Place, World};
use tcpguard_common::flow::{V4, V6};
use tcpguard_common::map::{Interface, ON_EXIT_PASS};
use tcpguard_common::reason::Reason;
use tcpguard_common::sketch::Rate;

/// The sequence number of the segment that did not arrive: XDP does not look at it.
const SEQ: u32 = 0x1234_5678;
const TOO_BIG_V4: (u8, u8) = (3, 4);
const TOO_BIG_V6: (u8, u8) = (2, 0);

fn too_big<A: Place>() -> (u8, u8) {
    if A::VERSION == 4 { TOO_BIG_V4 } else { TOO_BIG_V6 }
}

/// What a known flow hears of a segment.
fn said<A: Place>(spec: &Spec<A>) -> Vec<u8> {
    spec.complaint(too_big::<A>(), 1400, SEQ, 28)
}

fn knowing<A: Place>(spec: &Spec<A>) -> World {
    let mut world = World::new();
    world.know(spec.flow());
    world
}

impl Table {
    pub(super) fn complaints(&mut self) {
        self.complaints_of::<V4>();
        self.complaints_of::<V6>();
        self.complaint_kinds::<V4>(&[3, 11, 12]);
        self.complaint_kinds::<V6>(&[1, 2, 3, 4]);
        self.complaints_v4();
        self.complaints_v6();
    }

    fn complaints_of<A: Place>(&mut self) {
        let on = |what: &str| format!("IPv{} packet too big {what}", A::VERSION);
        let spec = Spec::<A>::syn(&[]);
        let world = knowing(&spec);
        let told = Some(Reason::IcmpTooBig);
        self.row(on("about a known flow"), &world, said(&spec), told);
        self.row(on("about nobody's flow"), &World::new(), said(&spec), None);
        let mut waiting = World::new();
        waiting.remember(&spec.flow());
        self.row(on("about a flow in TIME_WAIT"), &waiting, said(&spec), None);
        let crowded = World { crowded: true, ..world.clone() };
        self.row(on("about a known flow whose bucket is full"), &crowded, said(&spec), told);
        let pressed = World { pressed: true, ..world.clone() };
        self.row(on("under pressure"), &pressed, said(&spec), told);
        for tags in [vec![[0x81, 0, 0x20, 5]], vec![[0x88, 0xa8, 0, 7], [0x81, 0, 0, 9]]] {
            let tagged = Spec { tags, ..spec.clone() };
            self.row(on("with tags"), &world, said(&tagged), told);
        }
        for (what, flow) in [
            ("about another port of the client's", Spec { src_port: 41_000, ..spec.clone() }),
            ("about another client", Spec { src: A::ELSEWHERE, ..spec.clone() }),
            ("about a service that is off", Spec { dst_port: PORT_OFF, ..spec.clone() }),
            ("about a port that nobody guards", Spec { dst_port: 81, ..spec.clone() }),
        ] {
            let mut other = world.clone();
            if flow.dst_port != spec.dst_port {
                other.know(flow.flow());
            }
            self.row(on(what), &other, said(&flow), None);
        }
        let anywhere = Spec { dst: A::ELSEWHERE, dst_port: PORT_ANYWHERE, ..spec.clone() };
        self.row(on("about a service on any address"), &knowing(&anywhere), said(&anywhere), told);
        // The client's segment, which somebody between us would complain about to the client.
        let theirs = Spec {
            src: spec.dst,
            dst: spec.src,
            src_port: spec.dst_port,
            dst_port: spec.src_port,
            ..spec.clone()
        };
        let mut reflected = said(&theirs);
        let (l3, len) = (spec.l3(), if A::VERSION == 4 { 4 } else { 16 });
        let at = l3 + if A::VERSION == 4 { 16 } else { 24 };
        reflected[at..at + len].copy_from_slice(&said(&spec)[at..at + len]);
        self.row(on("about a segment of the client's"), &world, reflected, None);
        let mut corrupt = said(&spec);
        corrupt[spec.l4() + 2] ^= 1;
        self.row(on("corrupt, which the stack notices"), &world, corrupt, told);

        let mut spent = world.clone();
        spent.spend_complaints(&spec.flow());
        self.row(on("beyond icmp-rate"), &spent, said(&spec), Reason::IcmpRate);
        let other = Spec { src_port: 41_000, ..spec.clone() };
        spent.know(other.flow());
        self.row(on("of a flow beside one beyond icmp-rate"), &spent, said(&other), told);
        spent.settings.limits.complaints = Rate::UNLIMITED;
        self.row(on("without a limit"), &spent, said(&spec), told);
        self.complaint_lengths(&spec);
        self.complaint_life(&spec);
    }

    fn complaint_lengths<A: Place>(&mut self, spec: &Spec<A>) {
        let world = knowing(spec);
        let on = |what: &str| format!("IPv{} packet too big {what}", A::VERSION);
        for quoted in 0..20 {
            let frame = spec.complaint(too_big::<A>(), 1400, SEQ, quoted);
            let reason = (quoted >= 8).then_some(Reason::IcmpTooBig);
            self.row(on(&format!("with {quoted} bytes of TCP")), &world, frame, reason);
        }
        for tags in [vec![], vec![[0x88, 0xa8, 0, 7], [0x81, 0, 0, 9]]] {
            let spec = Spec { tags, ..spec.clone() };
            let whole = spec.complaint(too_big::<A>(), 1400, SEQ, 8);
            for len in 0..whole.len() {
                let row = on(&format!("with {} tags cut to {len}", spec.tags.len()));
                self.row(row, &world, whole[..len].to_vec(), None);
            }
            let padded = [&whole[..], &[0; 9]].concat();
            self.row(on("padded by the link"), &world, padded, Reason::IcmpTooBig);
        }
        // Of the datagram itself, and of the quoted one.
        let field = if A::VERSION == 4 { 2 } else { 4 };
        let quoted = spec.l4() + 8;
        let (header, least) = if A::VERSION == 4 { (20, 20 + 8 + 20 + 8) } else { (0, 8 + 40 + 8) };
        for (what, at, length, reason) in [
            ("a datagram of length 0", spec.l3(), 0, None),
            ("a datagram one byte too short for its quotation", spec.l3(), least - 1, None),
            ("a datagram just long enough for its quotation", spec.l3(), least, Some(Reason::IcmpTooBig)),
            ("a datagram beyond the frame", spec.l3(), 65535, None),
            ("a quotation of length 0", quoted, 0, None),
            ("a quotation of seven bytes", quoted, header + 7, None),
            ("a quotation of eight bytes", quoted, header + 8, Some(Reason::IcmpTooBig)),
            ("a quotation that was longer", quoted, 65535, Some(Reason::IcmpTooBig)),
        ] {
            let mut frame = said(spec);
            frame[at + field..at + field + 2].copy_from_slice(&u16::to_be_bytes(length));
            self.row(on(&format!("in or of {what}")), &world, frame, reason);
        }
    }

    fn complaint_life<A: Place>(&mut self, spec: &Spec<A>) {
        let world = knowing(spec);
        let mut row = |what: &str, world: World| {
            self.row(format!("IPv{} packet too big {what}", A::VERSION), &world, said(spec), None);
        };
        row("without a socket", World { socket: false, ..world.clone() });
        let queues = Interface { queues: 0, ..world.interface };
        row("on a queue without an engine", World { interface: queues, ..world.clone() });
        let unarmed = Interface { armed: 0, ..world.interface };
        row("while not armed", World { interface: unarmed, ..world.clone() });
        let foreign = Interface { mac: [2, 0, 0, 0, 0, 9], ..world.interface };
        row("to another MAC", World { interface: foreign, ..world.clone() });
        let mut strange = world.clone();
        strange.settings.abi ^= 1;
        row("with settings of another version", strange);
        let mut dead = World { beating: false, ..world };
        dead.settings.stale_after = 1;
        dead.settings.on_exit = ON_EXIT_PASS;
        row("within the grace", dead.clone());
        dead.settings.exit_grace = 1;
        row("after the grace", dead);
    }

    /// Every type there is, with a few codes of each; `errors` are those that report what became of a segment.
    fn complaint_kinds<A: Place>(&mut self, errors: &[u8]) {
        let spec = Spec::<A>::syn(&[]);
        let world = knowing(&spec);
        for kind in 0..=255 {
            for code in [0, 1, 2, 3, 4, 13, 255] {
                let is_too_big =
                    if A::VERSION == 4 { (kind, code) == TOO_BIG_V4 } else { kind == TOO_BIG_V6.0 };
                let reason = match errors.contains(&kind) {
                    true if is_too_big => Some(Reason::IcmpTooBig),
                    true => Some(Reason::IcmpError),
                    false => None,
                };
                let name = format!("IPv{} ICMP type {kind} code {code} about a known flow", A::VERSION);
                self.row(name, &world, spec.complaint((kind, code), 1400, SEQ, 8), reason);
            }
        }
    }

    fn complaints_v4(&mut self) {
        let spec = Spec::<V4>::syn(&[]);
        let world = knowing(&spec);
        for words in [1, 10] {
            let spec = Spec { extra: (6, vec![1; 4 * words]), ..spec.clone() };
            let name = format!("IPv4 packet too big with {words} words of options");
            self.row(name, &world, said(&spec), Reason::IcmpTooBig);
        }
        let quoted = spec.l4() + 8;
        for (what, at, field, reason) in [
            ("as a first fragment", spec.l3(), [0x20, 0], None),
            ("as a later fragment", spec.l3(), [0, 1], None),
            ("about a first fragment", quoted, [0x20, 0], Some(Reason::IcmpTooBig)),
            ("about a later fragment", quoted, [0, 1], None),
        ] {
            let mut frame = said(&spec);
            frame[at + 6..at + 8].copy_from_slice(&field);
            self.row(format!("IPv4 packet too big {what}"), &world, frame, reason);
        }
        for (what, at, value) in [
            ("whose header is too short", spec.l3(), 0x44),
            ("about a header that is too short", quoted, 0x44),
            ("about a header that is longer than the quotation", quoted, 0x4f),
            ("about IPv6", quoted, 0x65),
            ("about UDP", quoted + 9, 17),
            ("over IPv6's protocol", spec.l3() + 9, 58),
        ] {
            let mut frame = said(&spec);
            frame[at] = value;
            self.row(format!("IPv4 packet too big {what}"), &world, frame, None);
        }
        // A quotation with options: ours never have any, but a router may have put them in.
        let mut frame = said(&spec);
        frame[quoted] = 0x46;
        frame.splice(quoted + 20..quoted + 20, [1, 1, 1, 1]);
        let total = u16::from_be_bytes([frame[spec.l3() + 2], frame[spec.l3() + 3]]) + 4;
        frame[spec.l3() + 2..spec.l3() + 4].copy_from_slice(&total.to_be_bytes());
        self.row("IPv4 packet too big about a segment with IP options", &world, frame, Reason::IcmpTooBig);
    }

    fn complaints_v6(&mut self) {
        let spec = Spec::<V6>::syn(&[]);
        let world = knowing(&spec);
        let quoted = spec.l4() + 8;
        for (what, at, value) in [
            ("about IPv4", quoted, 0x45),
            ("about UDP", quoted + 6, 17),
            ("about a segment behind a destination-options header", quoted + 6, 60),
            ("over IPv4's protocol", spec.l3() + 6, 1),
        ] {
            let mut frame = said(&spec);
            frame[at] = value;
            self.row(format!("IPv6 packet too big {what}"), &world, frame, None);
        }
        let mut behind = said(&spec);
        behind[spec.l3() + 6] = 60;
        behind.splice(spec.l4()..spec.l4(), [58, 0, 1, 4, 0, 0, 0, 0]);
        let payload = u16::from_be_bytes([behind[spec.l3() + 4], behind[spec.l3() + 5]]) + 8;
        behind[spec.l3() + 4..spec.l3() + 6].copy_from_slice(&payload.to_be_bytes());
        self.row("IPv6 packet too big behind a destination-options header", &world, behind, None);
    }
}
