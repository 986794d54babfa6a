//! (description, world, frame in, verdict, frame out, reason), for both families.

use std::format;
use std::string::{String, ToString as _};
use std::vec;
use std::vec::Vec;

use super::frames::{ACK, CLIENT_ISN, FIN, LINUX, PSH, RST, SYN, Spec};
use super::systems::SYSTEMS;
use super::world::{
    ADVERTISED, EPOCH, MASTER, PORT, PORT_ANYWHERE, PORT_OFF, PORT_OFF_HERE, PORT_ONLY_HERE, Place, World,
};
use tcpguard_common::cookie::{self, Clock, Cookie, Strictness, SynOptions};
use tcpguard_common::decision::Verdict;
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::map::{EpochSlot, Limits, ON_EXIT_PASS};
use tcpguard_common::packet::{AnySegment, Flags, Options, Segment, parse};
use tcpguard_common::reason::Reason;
use tcpguard_common::sketch::Rate;

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

    fn syns<A: Place>(&mut self) {
        let world = World::new();
        let on = |what: &str| format!("IPv{} SYN {what}", A::VERSION);
        let plain: &[(&str, &[u8])] = &[
            ("without options", &[]),
            ("with MSS alone", &[2, 4, 5, 100]),
            ("with window scale alone", &[3, 3, 14, 0]),
            ("with SACK alone", &[4, 2, 0, 0]),
            ("with timestamps alone", &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
            (
                "with timestamps, SACK and scale packed, which grows",
                &[8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 4, 2, 3, 3, 7, 0],
            ),
            ("with scale and SACK packed, which grows", &[3, 3, 7, 4, 2, 0, 0, 0]),
            ("with a non-zero TSecr", &[8, 10, 0, 0, 0, 1, 9, 9, 9, 9, 0, 0]),
            ("with 40 NOPs", &[1; 40]),
            ("with an unknown option", &[30, 12, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2, 4, 5, 180]),
            ("with a window shift over 14", &[3, 3, 255, 0, 2, 4, 5, 180]),
            (
                "with every option twice",
                &[
                    2, 4, 1, 1, 2, 4, 5, 180, 3, 3, 1, 3, 3, 7, 4, 2, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 8,
                    10, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0,
                ],
            ),
            ("with options of other lengths than theirs", &[2, 3, 9, 3, 4, 9, 9, 4, 3, 9, 8, 3, 9, 0, 0, 0]),
            ("with options after the end of options", &[0, 2, 0, 0, 2, 4, 5, 180]),
        ];
        for (what, options) in plain {
            self.row(on(what), &world, Spec::<A>::syn(options).frame(), Reason::CookieSent);
        }
        let syn = Spec::<A>::syn(LINUX);
        for mss in [0u16, 1, A::DEFAULT_MSS - 1] {
            let [high, low] = mss.to_be_bytes();
            let frame = Spec::<A>::syn(&[2, 4, high, low]).frame();
            self.row(on(&format!("with MSS {mss}")), &world, frame, Reason::CookieSentSmallMss);
        }
        for len in [1, 2, 3, 4, 5, 6, 31, 32, 33, 63, 64, 500, 1399, 1400] {
            let data = Spec { data: vec![0xa5; len], ..syn.clone() };
            self.row(on(&format!("with {len} bytes of data")), &world, data.frame(), Reason::CookieSent);
            let mut frame = data.frame();
            let last = frame.len() - 1;
            frame[last] ^= 1;
            self.row(on(&format!("corrupted at data byte {len}")), &world, frame, Reason::SynBadChecksum);
        }
        let long = Spec { data: vec![7; 3300], ..syn.clone() }.frame();
        self.row(on("of 3.3 KB, about what native XDP can have"), &world, long, Reason::CookieSent);
        for (what, tags) in [
            ("with a tag", vec![[0x81, 0, 0x20, 5]]),
            ("with two tags", vec![[0x88, 0xa8, 0, 7], [0x81, 0, 0, 9]]),
        ] {
            self.row(on(what), &world, Spec { tags, ..syn.clone() }.frame(), Reason::CookieSent);
        }
        for flags in [SYN | PSH, SYN | 0x20, SYN | 0xc0, SYN | 0x40, SYN | 0x80] {
            let frame = Spec { flags, ..syn.clone() }.frame();
            self.row(on(&format!("with flags {flags:#04x}")), &world, frame, Reason::CookieSent);
            let bare = Spec { flags, ..Spec::<A>::syn(&[]) }.frame();
            let name = on(&format!("with flags {flags:#04x} and no options"));
            self.row(name, &world, bare, Reason::CookieSent);
        }
        let mut ae = syn.frame();
        ae[syn.l4() + 12] |= 1;
        syn.fix(&mut ae);
        self.row(on("with AE"), &world, ae, Reason::CookieSent);
        let anywhere = Spec { dst_port: PORT_ANYWHERE, dst: A::ELSEWHERE, ..syn.clone() };
        self.row(on("to a service on any address"), &world, anywhere.frame(), Reason::CookieSent);
        let mut known = world.clone();
        known.know(syn.flow());
        self.row(on("of a known flow"), &known, syn.frame(), Reason::CookieSent);
        let mut padded = Spec::<A>::syn(&[]).frame();
        padded.extend([0xee; 6]);
        self.row(on("padded by the link"), &world, padded, Reason::CookieSent);
        let mut keyless = world.clone();
        keyless.settings.epoch += 2;
        self.row(on("in an epoch without a key"), &keyless, syn.frame(), Reason::SynUnanswerable);
        let mut corrupt = syn.frame();
        corrupt[syn.l4() + 4] ^= 0x80;
        self.row(on("with a wrong checksum"), &world, corrupt, Reason::SynBadChecksum);
    }

    fn budgets<A: Place>(&mut self) {
        let syn = Spec::<A>::syn(LINUX);
        let on = |what: &str| format!("IPv{} SYN {what}", A::VERSION);
        let mut spent = World::new();
        spent.spend_replies(A::CLIENT, false);
        self.row(on("of a prefix over its budget"), &spent, syn.frame(), Reason::ReplyBudget);
        let elsewhere = Spec { src: A::ELSEWHERE, ..syn.clone() };
        self.row(on("of another prefix"), &spent, elsewhere.frame(), Reason::CookieSent);
        let mut corrupt = syn.frame();
        corrupt[syn.l4() + 4] ^= 0x80;
        self.row(on("corrupted, over budget"), &spent, corrupt, Reason::SynBadChecksum);
        let mut unlimited = spent.clone();
        unlimited.settings.limits.replies = Rate::UNLIMITED;
        self.row(on("while nothing is limited"), &unlimited, syn.frame(), Reason::CookieSent);

        let mut verified = spent.clone();
        verified.verify(A::CLIENT, verified.now);
        self.row(on("of a verified source"), &verified, syn.frame(), Reason::CookieSent);
        let mut late = verified.clone();
        late.settings.limits.verified_for = 0;
        late.now += 1 << 40;
        self.row(on("of a source verified long ago"), &late, syn.frame(), Reason::ReplyBudget);
        let mut other = spent.clone();
        other.verify(A::ELSEWHERE, other.now);
        self.row(
            on("of an unverified source beside a verified one"),
            &other,
            syn.frame(),
            Reason::ReplyBudget,
        );
        verified.spend_replies(A::CLIENT, true);
        self.row(on("of a verified source over both"), &verified, syn.frame(), Reason::ReplyBudgetVerified);
        verified.settings.limits.verified_replies = Rate::UNLIMITED;
        self.row(on("of a verified source without limit"), &verified, syn.frame(), Reason::CookieSent);

        let ack = valid_ack::<A>(EPOCH, true);
        let row = format!("IPv{} valid ACK of a prefix over its budget", A::VERSION);
        self.row(row, &spent, ack.frame(), Reason::AckValid);
        spent.know(ack.flow());
        let row = format!("IPv{} segment of a flow of a prefix over its budget", A::VERSION);
        self.row(row, &spent, ack.frame(), Reason::FlowKnown);
    }

    fn pressure<A: Place>(&mut self) {
        let on = |what: &str| format!("IPv{} segment {what}", A::VERSION);
        let ack = valid_ack::<A>(EPOCH, true);
        let mut calm = World::new();
        calm.know(ack.flow());
        calm.spend_pace(&ack.flow());
        self.row(on("over its pace without pressure"), &calm, ack.frame(), Reason::FlowKnown);
        let mut pressed = World { pressed: true, ..calm.clone() };
        self.row(on("over its pace under pressure"), &pressed, ack.frame(), Reason::FlowRate);
        let mut unlimited = pressed.clone();
        unlimited.settings.limits.flows = Rate::UNLIMITED;
        self.row(on("under pressure without a pace"), &unlimited, ack.frame(), Reason::FlowKnown);
        let other = Spec { src_port: ack.src_port + 1, ..ack.clone() };
        pressed.know(other.flow());
        self.row(on("of another flow under pressure"), &pressed, other.frame(), Reason::FlowKnown);
        A::flows(&pressed).borrow_mut().clear();
        self.row(on("that opens a flow under pressure"), &pressed, ack.frame(), Reason::AckValid);
        pressed.remember(&ack.flow());
        self.row(on("of TIME_WAIT over its pace under pressure"), &pressed, ack.frame(), Reason::FlowRate);
        pressed.pressed = false;
        self.row(on("of TIME_WAIT over its pace without pressure"), &pressed, ack.frame(), Reason::TimeWait);
    }

    fn admission<A: Place>(&mut self) {
        let on = |what: &str| format!("IPv{} valid ACK {what}", A::VERSION);
        for stamped in [true, false] {
            let ack = valid_ack::<A>(EPOCH, stamped);
            let data = Spec { flags: ACK | PSH, data: b"GET /".to_vec(), ..ack.clone() };
            let mut world = World::new();
            world.settings.limits.service_flows = 10;
            world.settings.limits.source_flows = 5;
            world.open_to(PORT_ANYWHERE, 10);
            world.open_to(PORT, 9);
            world.open_from(A::ELSEWHERE, 5);
            world.open_from(A::CLIENT, 4);
            self.row(on("below every limit"), &world, ack.frame(), Reason::AckValid);
            let mut busy = world.clone();
            busy.open_to(PORT, 10);
            self.row(on("to a service with all its flows"), &busy, ack.frame(), Reason::AdmissionService);
            self.row(on("with data to such a service"), &busy, data.frame(), Reason::AdmissionService);
            let mut greedy = world.clone();
            greedy.open_from(A::CLIENT, 5);
            self.row(
                on("of a source with all its flows"),
                &greedy,
                ack.frame(),
                Reason::AdmissionSourceFlows,
            );
            let mut fast = world.clone();
            fast.spend_arrivals(A::CLIENT);
            self.row(on("of a source that was too fast"), &fast, ack.frame(), Reason::AdmissionSourceRate);
            let mut neighbour = world.clone();
            neighbour.spend_arrivals(A::ELSEWHERE);
            self.row(on("beside a source that was too fast"), &neighbour, ack.frame(), Reason::AckValid);

            let mut forged = ack.clone();
            forged.ack ^= 1;
            self.row(on("forged, to a busy service"), &busy, forged.frame(), Reason::AckInvalid);
            busy.know(ack.flow());
            self.row(on("of a known flow of a busy service"), &busy, ack.frame(), Reason::FlowKnown);
            let mut unlimited = busy.clone();
            A::flows(&unlimited).borrow_mut().clear();
            unlimited.open_from(A::CLIENT, 5);
            unlimited.spend_arrivals(A::CLIENT);
            unlimited.settings.limits = Limits::default();
            self.row(on("while nothing is limited"), &unlimited, ack.frame(), Reason::AckValid);
        }
    }

    fn stateful<A: Place>(&mut self) {
        let on = |what: &str| format!("IPv{} {what}, of a stateful service", A::VERSION);
        let mut world = World::new();
        world.make_stateful();
        let mut spent = world.clone();
        spent.spend_stateful();
        let mut none = world.clone();
        none.settings.limits.stateful = Rate::UNLIMITED;
        let syn = Spec::<A>::syn(LINUX);
        self.row(on("SYN"), &world, syn.frame(), Reason::SynStateful);
        self.row(on("SYN beyond what is left to the stack"), &spent, syn.frame(), Reason::CookieSent);
        self.row(on("SYN while nothing is left to the stack"), &none, syn.frame(), Reason::CookieSent);
        let small = Spec::<A>::syn(&[2, 4, 0, 1]);
        self.row(on("SYN with MSS 1"), &world, small.frame(), Reason::SynStateful);
        self.row(on("SYN with MSS 1 beyond"), &spent, small.frame(), Reason::CookieSentSmallMss);
        let data = Spec { data: vec![0xa5; 33], tags: vec![[0x81, 0, 0x20, 5]], ..syn.clone() };
        self.row(on("SYN with data and a tag"), &world, data.frame(), Reason::SynStateful);
        let mut corrupt = syn.frame();
        corrupt[syn.l4() + 4] ^= 0x80;
        self.row(on("corrupt SYN"), &world, corrupt, Reason::SynBadChecksum);
        let hostile = Spec::<A>::syn(&[2, 0, 0, 0]);
        self.row(on("SYN with a hostile option"), &world, hostile.frame(), Reason::BadOptions);
        let anywhere = Spec { dst_port: PORT_ANYWHERE, dst: A::ELSEWHERE, ..syn.clone() };
        self.row(on("SYN to any address"), &world, anywhere.frame(), Reason::SynStateful);
        let off = Spec { dst_port: PORT_OFF, ..syn.clone() };
        self.row(on("SYN beside one that is off"), &world, off.frame(), Reason::ServiceOff);
        let mut known = world.clone();
        known.know(syn.flow());
        self.row(on("SYN of a known flow"), &known, syn.frame(), Reason::SynStateful);
        let mut keyless = world.clone();
        keyless.settings.epoch += 2;
        self.row(on("SYN without a key"), &keyless, syn.frame(), Reason::SynUnanswerable);
        let mut budget = world.clone();
        budget.spend_replies(A::CLIENT, false);
        self.row(on("SYN over the reply budget"), &budget, syn.frame(), Reason::ReplyBudget);
        let socketless = World { socket: false, ..world.clone() };
        self.row(on("SYN without a socket"), &socketless, syn.frame(), Reason::Grace);

        for flags in [RST, RST | ACK] {
            let reset = Spec { flags, ..Spec::<A>::ack(77, &[]) };
            let row = |what: &str| on(&format!("flags {flags:#04x} {what}"));
            self.row(row("without a flow"), &world, reset.frame(), Reason::RstStateful);
            self.row(row("beyond"), &spent, reset.frame(), Reason::NoFlowRst);
            self.row(row("of a known flow"), &known, reset.frame(), Reason::FlowKnown);
            let mut waiting = world.clone();
            waiting.remember(&reset.flow());
            self.row(row("in TIME_WAIT"), &waiting, reset.frame(), Reason::RstStateful);
        }
        for stamped in [true, false] {
            let ack = valid_ack::<A>(EPOCH, stamped);
            self.row(on("valid ACK"), &spent, ack.frame(), Reason::AckValid);
            let forged = Spec { ack: ack.ack ^ 1, ..ack };
            self.row(on("forged ACK"), &world, forged.frame(), Reason::AckInvalid);
        }
        let syn_ack = Spec { flags: SYN | ACK, ..Spec::<A>::ack(77, LINUX) };
        self.row(on("SYN-ACK"), &world, syn_ack.frame(), Reason::NoFlow);
    }

    fn hostile_options<A: Place>(&mut self) {
        let world = World::new();
        let rows: &[(&str, &[u8])] = &[
            ("of length 0", &[2, 0, 0, 0]),
            ("of length 1", &[2, 1, 0, 0]),
            ("past the header", &[2, 5, 0, 0]),
            ("whose length is past the header", &[1, 1, 1, 8]),
            ("of length 255", &[8, 255, 0, 0]),
            ("of length 0 after good ones", &[2, 4, 5, 180, 1, 1, 9, 0]),
            (
                "of the last byte",
                &[
                    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                    1, 1, 1, 1, 1, 1, 1, 1, 1, 3,
                ],
            ),
        ];
        for (what, options) in rows {
            let frame = Spec::<A>::syn(options).frame();
            self.row(
                format!("IPv{} SYN with an option {what}", A::VERSION),
                &world,
                frame,
                Reason::BadOptions,
            );
            let frame = Spec::<A>::ack(5, options).frame();
            self.row(
                format!("IPv{} ACK with an option {what}", A::VERSION),
                &world,
                frame,
                Reason::BadOptions,
            );
        }
        for nibble in 0..5u8 {
            let spec = Spec::<A>::syn(&[]);
            let mut frame = spec.frame();
            frame[spec.l4() + 12] = nibble << 4;
            spec.fix(&mut frame);
            self.row(format!("IPv{} data offset {nibble}", A::VERSION), &world, frame, Reason::BadDataOffset);
        }
        for nibble in 6..16u8 {
            let spec = Spec::<A>::syn(&[]);
            let mut frame = spec.frame();
            frame[spec.l4() + 12] = nibble << 4;
            spec.fix(&mut frame);
            // Link padding after the datagram is not part of it.
            frame.extend([0; 60]);
            self.row(
                format!("IPv{} data offset {nibble} past the end", A::VERSION),
                &world,
                frame,
                Reason::BadDataOffset,
            );
        }
    }

    /// A service that became strict with this epoch, and one that ceased to be.
    fn strict<A: Place>(&mut self) {
        let now = EPOCH;
        let (mut entered, mut left) = (World::new(), World::new());
        entered.make_strict(&[now, now + 1]);
        left.make_strict(&[now - 1]);
        let windows: &[u8] = &[2, 4, 5, 180, 1, 3, 3, 8, 1, 1, 4, 2];
        for (what, world) in [("that is strict", &entered), ("that was strict", &left)] {
            let on = |kind: &str| format!("IPv{} {kind} to a service {what}", A::VERSION);
            self.row(on("SYN of Windows"), world, Spec::<A>::syn(windows).frame(), Reason::CookieSent);
            self.row(on("SYN of Linux"), world, Spec::<A>::syn(LINUX).frame(), Reason::CookieSent);
            self.row(on("SYN without options"), world, Spec::<A>::syn(&[]).frame(), Reason::CookieSent);
            for epoch in [now - 1, now] {
                let ack = |stamped, strict| {
                    let ack = if strict { strict_ack::<A> } else { valid_ack::<A> };
                    ack(epoch, stamped).frame()
                };
                let was_strict = (epoch == now) == (what == "that is strict");
                let of = |kind: &str| on(&format!("ACK of a {kind} cookie of epoch {epoch}"));
                self.row(of("stamped"), world, ack(true, true), Reason::AckValid);
                self.row(of("strict"), world, ack(false, true), accepted_if(was_strict));
                self.row(of("bare"), world, ack(false, false), accepted_if(!was_strict));
            }
        }
        let mut second_half = entered.clone();
        second_half.settings.epoch_second_half = 1;
        for (what, ack, accepted) in [
            ("a strict cookie of the next epoch", strict_ack::<A>(now + 1, false), true),
            ("a bare cookie of the next epoch", valid_ack(now + 1, false), false),
            ("a bare cookie of the previous epoch", valid_ack(now - 1, false), false),
        ] {
            let name = format!("IPv{} ACK of {what} in the second half of a strict one", A::VERSION);
            self.row(name, &second_half, ack.frame(), accepted_if(accepted));
        }
        let mut spent = entered.clone();
        spent.make_stateful();
        spent.spend_stateful();
        let name =
            format!("IPv{} SYN beyond what a strict, stateful service leaves to the stack", A::VERSION);
        self.row(name, &spent, Spec::<A>::syn(windows).frame(), Reason::CookieSent);
    }

    fn acks<A: Place>(&mut self) {
        let world = World::new();
        let on = |what: &str| format!("IPv{} {what}", A::VERSION);
        let stamped = valid_ack::<A>(EPOCH, true);
        let bare = valid_ack::<A>(EPOCH, false);
        for (kind, valid) in [("stamped", &stamped), ("bare", &bare)] {
            let row = |what: &str| on(&format!("{kind} ACK {what}"));
            self.row(row("with a valid cookie"), &world, valid.frame(), Reason::AckValid);
            for (what, flags) in [("with data", ACK | PSH), ("with FIN", ACK | FIN), ("with URG", ACK | 0x20)]
            {
                let spec = Spec { flags, data: b"GET / HTTP/1.1\r\n".to_vec(), ..valid.clone() };
                self.row(row(what), &world, spec.frame(), Reason::AckValid);
            }
            let mut known = world.clone();
            known.know(valid.flow());
            for len in [0, 1, 15, 16, 31, 32, 1400] {
                let with = |what: &str| row(&format!("with {len} bytes{what}"));
                let data = Spec { flags: ACK | PSH, data: vec![0xa5; len], ..valid.clone() };
                self.row(with(""), &world, data.frame(), Reason::AckValid);
                let mut corrupt = data.frame();
                let at = if len == 0 { data.l4() + 14 } else { corrupt.len() - 1 };
                corrupt[at] ^= 1;
                self.row(with(", corrupt"), &world, corrupt.clone(), Reason::AckBadChecksum);
                // Those are for the stack to look at.
                self.row(with(", corrupt, of a known flow"), &known, corrupt.clone(), Reason::FlowKnown);
                // A bad cookie costs less to find than a bad checksum.
                corrupt[data.l4() + 8] ^= 1;
                self.row(with(", corrupt and forged"), &world, corrupt, Reason::AckInvalid);
            }
            let tagged = Spec { tags: vec![[0x88, 0xa8, 0, 7], [0x81, 0, 0, 9]], ..valid.clone() };
            self.row(row("with tags"), &world, tagged.frame(), Reason::AckValid);
            self.row(
                row("cookie off by one"),
                &world,
                Spec { ack: valid.ack ^ 1, ..valid.clone() }.frame(),
                Reason::AckInvalid,
            );
            let seq = valid.seq.wrapping_add(1);
            self.row(
                row("sequence off by one"),
                &world,
                Spec { seq, ..valid.clone() }.frame(),
                Reason::AckInvalid,
            );
            let src_port = valid.src_port + 1;
            self.row(
                row("of another port"),
                &world,
                Spec { src_port, ..valid.clone() }.frame(),
                Reason::AckInvalid,
            );
            let other = Spec { dst_port: PORT_ANYWHERE, ..valid.clone() };
            self.row(row("to another service"), &world, other.frame(), Reason::AckInvalid);

            let mut full = world.clone();
            for port in 1..=full.max_flows as u16 {
                full.know(FlowKey { peer_port: port.to_be_bytes(), ..valid.flow() });
            }
            self.row(row("into a full table"), &full, valid.frame(), Reason::FlowMapFull);
            let mut corrupt = valid.frame();
            corrupt[valid.l4() + 15] ^= 1;
            self.row(row("corrupt, into a full table"), &full, corrupt, Reason::AckBadChecksum);
            self.row(row("with tags into a full table"), &full, tagged.frame(), Reason::FlowMapFull);

            let mut known = world.clone();
            known.know(valid.flow());
            self.row(row("of a known flow"), &known, valid.frame(), Reason::FlowKnown);
            let crowded = World { crowded: true, ..world.clone() };
            self.row(row("of a new flow whose bucket is full"), &crowded, valid.frame(), Reason::AckValid);
            let crowded = World { crowded: true, ..known.clone() };
            self.row(row("of a known flow whose bucket is full"), &crowded, valid.frame(), Reason::FlowKnown);
            let mut waiting = world.clone();
            waiting.remember(&valid.flow());
            self.row(row("of a flow in TIME_WAIT"), &waiting, valid.frame(), Reason::TimeWait);
            let reset = Spec { flags: RST | ACK, ..valid.clone() };
            self.row(row("with RST of a flow in TIME_WAIT"), &waiting, reset.frame(), Reason::NoFlowRst);
        }
        self.epochs::<A>();
        let without = Spec { options: vec![], ..stamped.clone() };
        self.row(on("stamped cookie without timestamps"), &world, without.frame(), Reason::AckInvalid);
        let with = Spec { options: stamped.options.clone(), ..bare.clone() };
        self.row(on("bare cookie with timestamps"), &world, with.frame(), Reason::AckInvalid);
        let mut keyless = world.clone();
        keyless.epochs = [EpochSlot::default(); 4];
        self.row(on("ACK while no key was ever written"), &keyless, stamped.frame(), Reason::AckInvalid);
        let mut zero = Spec::<A>::ack(0, &[]);
        zero.seq = 0;
        self.row(on("ACK of zeros"), &keyless, zero.frame(), Reason::AckInvalid);
    }

    fn epochs<A: Place>(&mut self) {
        for (issued, second_half, stamped, valid) in [
            (EPOCH - 2, false, true, false),
            (EPOCH - 1, false, true, true),
            (EPOCH - 1, true, true, true),
            (EPOCH + 1, false, true, true),
            (EPOCH + 2, false, true, false),
            (EPOCH - 2, false, false, false),
            (EPOCH - 1, false, false, true),
            (EPOCH - 1, true, false, false),
            (EPOCH + 1, false, false, false),
            (EPOCH + 1, true, false, true),
            (EPOCH + 2, true, false, false),
        ] {
            let mut world = World::new();
            world.settings.epoch_second_half = second_half.into();
            let spec = valid_ack::<A>(issued, stamped);
            let name = format!(
                "IPv{} ACK with a cookie of epoch {:+}, stamped {stamped}, second half {second_half}",
                A::VERSION,
                i64::from(issued) - i64::from(EPOCH),
            );
            let reason = if valid { Reason::AckValid } else { Reason::AckInvalid };
            self.row(name, &world, spec.frame(), reason);
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

fn accepted_if(holds: bool) -> Reason {
    if holds { Reason::AckValid } else { Reason::AckInvalid }
}

/// The ACK that answers the cookie of `issued` for a SYN with everything on offer.
pub(crate) fn valid_ack<A: Place>(issued: u32, stamped: bool) -> Spec<A> {
    acknowledging(issued, stamped, Strictness::NEVER)
}

/// The same of a service that is strict.
pub(crate) fn strict_ack<A: Place>(issued: u32, stamped: bool) -> Spec<A> {
    acknowledging(issued, stamped, Strictness::ALWAYS)
}

fn acknowledging<A: Place>(issued: u32, stamped: bool, strictness: Strictness) -> Spec<A> {
    let slot = EpochSlot::derive(MASTER, issued, &ADVERTISED).expect("a secret and a window");
    let syn = SynOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: stamped.then_some(99),
        ecn: false,
    };
    let flow = Spec::<A>::syn(&[]).flow();
    let Cookie { isn, tsval, .. } = cookie::encode(&slot, strictness, &flow, CLIENT_ISN, &syn, 5 << 22);
    let options = tsval.map(|tsval| {
        let [a, b, c, d] = tsval.to_be_bytes();
        vec![1, 1, 8, 10, 0, 0, 0, 100, a, b, c, d]
    });
    Spec::ack(isn.wrapping_add(1), &options.unwrap_or_default())
}

/// Whether the frame that came out, and what was remembered, is right for what went in.
pub(crate) fn check(case: &Case, verdict: Verdict, out: &[u8], flows: usize) -> Result<(), String> {
    let fail = |what: &str| Err(format!("{}: {what}\n in: {:02x?}\nout: {out:02x?}", case.name, case.frame));
    if verdict != case.verdict {
        return fail(&format!("expected {:?}, got {verdict:?}", case.verdict));
    }
    let before = case.world.flows_v4.borrow().len() + case.world.flows_v6.borrow().len();
    if flows != before + usize::from(case.reason == Some(Reason::AckValid)) {
        return fail("the flow table is not what it should be");
    }
    if verdict != Verdict::Transmit {
        return if out == case.frame { Ok(()) } else { fail("the frame was touched") };
    }
    let answered = match (parse(&case.frame[..]), parse(out)) {
        (Ok(AnySegment::V4(to)), Ok(AnySegment::V4(answer))) => check_answer(case, &to, &answer, out),
        (Ok(AnySegment::V6(to)), Ok(AnySegment::V6(answer))) => check_answer(case, &to, &answer, out),
        _ => Err("no well-formed answer".to_string()),
    };
    answered.or_else(|what| fail(&what))
}

fn check_answer<A: Place>(
    case: &Case,
    to: &Segment<A>,
    answer: &Segment<A>,
    out: &[u8],
) -> Result<(), String> {
    let require = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_string()) };
    require(answer.checksum_ok(out), "checksum")?;
    require(answer.payload.is_empty() && answer.payload.end == out.len(), "nothing after the headers")?;
    require(answer.tcp.header_len <= to.tcp.header_len + 4, "at most four bytes longer")?;
    require(out.len() <= case.frame.len() + 4, "a frame at most four bytes longer")?;
    let ends = (answer.ethernet.src, answer.ethernet.dst, answer.ethernet.vlan);
    require(ends == (to.ethernet.dst, to.ethernet.src, to.ethernet.vlan), "link header mirrored")?;
    require((answer.ip.src, answer.ip.dst) == (to.ip.dst, to.ip.src), "addresses mirrored")?;
    let ports = (answer.tcp.src_port, answer.tcp.dst_port);
    require(ports == (to.tcp.dst_port, to.tcp.src_port), "ports mirrored")?;
    require(answer.ip.hop_limit == 64 && answer.ip.ecn == 0 && answer.tcp.urgent == 0, "a plain header")?;
    use Reason::{AdmissionService, AdmissionSourceFlows, AdmissionSourceRate, FlowMapFull};
    if let Some(FlowMapFull | AdmissionService | AdmissionSourceFlows | AdmissionSourceRate) = case.reason {
        require(
            answer.tcp.flags == Flags::RST && answer.tcp.seq == to.tcp.ack,
            "a reset where the peer expects it",
        )?;
        return require(answer.options == Options::default() && answer.tcp.window == 0, "a bare reset");
    }
    check_syn_ack(case, to, answer, out)
}

fn check_syn_ack<A: Place>(
    case: &Case,
    to: &Segment<A>,
    answer: &Segment<A>,
    out: &[u8],
) -> Result<(), String> {
    let require = |holds: bool, what: &str| if holds { Ok(()) } else { Err(what.to_string()) };
    let asks = to.tcp.flags.contains(Flags::ECE | Flags::CWR) && to.options.timestamps.is_some();
    let echo = if asks { Flags::ECE } else { Flags(0) };
    require(answer.tcp.flags == Flags::SYN | Flags::ACK | echo, "SYN, ACK, ECE if it was asked for")?;
    require(answer.tcp.ack == to.tcp.seq + 1, "acknowledges the SYN, not its data")?;
    require(answer.tcp.window == ADVERTISED.window, "the window of the slot")?;
    let mss = if A::VERSION == 4 { ADVERTISED.mss_v4 } else { ADVERTISED.mss_v6 };
    let tsval = answer.options.timestamps.map(|(value, _)| value);
    let strictness = A::services(&case.world).values().next().map(|service| service.strictness);
    let strictness = strictness.unwrap_or_default();
    let plain = strictness.at(EPOCH) && to.options.timestamps.is_none();
    let offer = Options {
        mss: Some(mss),
        window_scale: to.options.window_scale.filter(|_| !plain).map(|_| ADVERTISED.window_scale),
        sack_permitted: to.options.sack_permitted && !plain,
        timestamps: to.options.timestamps.zip(tsval).map(|((echo, _), value)| (value, echo)),
        ..to.options
    };
    require(answer.options == offer, "exactly the options that were offered and are remembered")?;
    if let Some(expected) = case.answer {
        let mut expected = expected.to_vec();
        expected[2..4].copy_from_slice(&mss.to_be_bytes());
        if let Some(tsval) = tsval {
            expected[8..12].copy_from_slice(&tsval.to_be_bytes());
        }
        let options = &out[answer.ip.l4 + 20..];
        require(options == expected, &format!("options {options:02x?} instead of {expected:02x?}"))?;
    }
    let clock = Clock { epoch: EPOCH, ..Clock::default() };
    let (flow, irs, iss) = (to.key(), to.tcp.seq.0, answer.tcp.seq.0);
    let accepted = cookie::validate(&case.world, &clock, strictness, &flow, irs, iss, tsval);
    let Some(accepted) = accepted else { return Err("a cookie that validates".to_string()) };
    let asked = to.options.mss.unwrap_or(A::DEFAULT_MSS).max(A::DEFAULT_MSS);
    require(accepted.mss <= asked, "an MSS that was asked for")?;
    require(accepted.sack_permitted == offer.sack_permitted, "SACK remembered")?;
    require(accepted.ecn == asks, "ECN remembered where timestamps have room for it")?;
    require(accepted.window_scale.is_some() == offer.window_scale.is_some(), "scaling remembered")?;
    require(accepted.window_scale <= to.options.window_scale, "a shift that was offered")
}
