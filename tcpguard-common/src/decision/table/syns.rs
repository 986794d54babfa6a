//! SYNs: what answers them, and what bounds the answers.

use std::format;
use std::vec;

use super::acks::valid_ack;
use super::cases::Table;
use super::frames::{ACK, LINUX, PSH, RST, SYN, Spec};
use super::world::{EPOCH, PORT, PORT_ANYWHERE, PORT_OFF, Place, World};
use tcpguard_common::map::Limits;
use tcpguard_common::reason::Reason;
use tcpguard_common::sketch::Rate;

impl Table {
    pub(super) fn syns<A: Place>(&mut self) {
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

    pub(super) fn budgets<A: Place>(&mut self) {
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

    pub(super) fn pressure<A: Place>(&mut self) {
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

    pub(super) fn admission<A: Place>(&mut self) {
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

    pub(super) fn stateful<A: Place>(&mut self) {
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

    pub(super) fn hostile_options<A: Place>(&mut self) {
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
}
