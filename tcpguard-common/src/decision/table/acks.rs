//! ACKs: which are the answer to a cookie, and when.

use std::format;
use std::vec;

use super::cases::Table;
use super::frames::{ACK, CLIENT_ISN, FIN, LINUX, PSH, RST, Spec};
use super::world::{ADVERTISED, EPOCH, MASTER, PORT_ANYWHERE, Place, World};
use tcpguard_common::cookie::{self, Cookie, Strictness, SynOptions};
use tcpguard_common::flow::FlowKey;
use tcpguard_common::map::EpochSlot;
use tcpguard_common::reason::Reason;

impl Table {
    /// A service that became strict with this epoch, and one that ceased to be.
    pub(super) fn strict<A: Place>(&mut self) {
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

    pub(super) fn acks<A: Place>(&mut self) {
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

    pub(super) fn epochs<A: Place>(&mut self) {
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
