//! What is counted of segments to services in dry run, all of which pass as they came.

use std::format;
use std::vec;

use super::acks::valid_ack;
use super::cases::Table;
use super::frames::{ACK, FIN, LINUX, PSH, RST, SYN, Spec};
use super::world::{EPOCH, PORT_OFF, Place, World};
use tcpguard_common::filter::{ALLOW, DENY};
use tcpguard_common::map::ON_EXIT_PASS;
use tcpguard_common::reason::Reason;

impl Table {
    pub(super) fn dry_run<A: Place>(&mut self) {
        let mut world = World::new();
        world.make_dry_run();
        self.dry_syns::<A>(&world);
        self.dry_budgets::<A>(&world);
        self.dry_rest::<A>(&world);
    }

    fn dry_syns<A: Place>(&mut self, world: &World) {
        let on = |what: &str| format!("IPv{} {what}, in dry run", A::VERSION);
        let syn = Spec::<A>::syn(LINUX);
        self.passing_row(on("SYN"), world, syn.frame(), Reason::CookieSent);
        let bare = Spec::<A>::syn(&[]);
        self.passing_row(on("SYN without options"), world, bare.frame(), Reason::CookieSent);
        let small = Spec::<A>::syn(&[2, 4, 0, 1]);
        self.passing_row(on("SYN with MSS 1"), world, small.frame(), Reason::CookieSentSmallMss);
        let data = Spec { data: vec![0xa5; 33], tags: vec![[0x81, 0, 0x20, 5]], ..syn.clone() };
        self.passing_row(on("SYN with data and a tag"), world, data.frame(), Reason::CookieSent);
        let mut corrupt = syn.frame();
        corrupt[syn.l4() + 4] ^= 0x80;
        self.passing_row(on("corrupt SYN"), world, corrupt, Reason::SynBadChecksum);
        let hostile = Spec::<A>::syn(&[2, 0, 0, 0]);
        self.passing_row(on("SYN with a hostile option"), world, hostile.frame(), Reason::BadOptions);
        let mut keyless = world.clone();
        keyless.settings.epoch += 2;
        self.passing_row(on("SYN without a key"), &keyless, syn.frame(), Reason::SynUnanswerable);
        let off = Spec { dst_port: PORT_OFF, ..syn.clone() };
        self.row(on("SYN beside one that is off"), world, off.frame(), Reason::ServiceOff);
        let mut known = world.clone();
        known.know(syn.flow());
        self.passing_row(on("SYN of a known flow"), &known, syn.frame(), Reason::CookieSent);
    }

    fn dry_budgets<A: Place>(&mut self, world: &World) {
        let on = |what: &str| format!("IPv{} SYN {what}, in dry run", A::VERSION);
        let syn = Spec::<A>::syn(LINUX).frame();
        let mut spent = world.clone();
        spent.spend_replies(A::CLIENT, false);
        self.passing_row(on("over its reply budget"), &spent, syn.clone(), Reason::ReplyBudget);
        spent.verify(A::CLIENT, spent.now);
        self.passing_row(on("of a verified source"), &spent, syn.clone(), Reason::CookieSent);
        spent.spend_replies(A::CLIENT, true);
        self.passing_row(on("of one over its budget"), &spent, syn.clone(), Reason::ReplyBudgetVerified);
        let mut others = World::new();
        others.spend_replies(A::CLIENT, false);
        others.make_dry_run();
        self.passing_row(on("while others used up theirs"), &others, syn.clone(), Reason::CookieSent);

        let mut stateful = World::new();
        stateful.make_stateful();
        let mut others = stateful.clone();
        others.spend_stateful();
        for world in [&mut stateful, &mut others] {
            world.make_dry_run();
        }
        self.passing_row(on("of a stateful service"), &stateful, syn.clone(), Reason::SynStateful);
        self.passing_row(
            on("while the stack has enough of others"),
            &others,
            syn.clone(),
            Reason::SynStateful,
        );
        stateful.spend_stateful();
        self.passing_row(on("beyond what is left to the stack"), &stateful, syn, Reason::CookieSent);
        let reset = Spec { flags: RST, ..Spec::<A>::ack(77, &[]) };
        let name = format!("IPv{} RST of a stateful service, in dry run", A::VERSION);
        self.passing_row(name, &stateful, reset.frame(), Reason::NotFollowed);
    }

    fn dry_rest<A: Place>(&mut self, world: &World) {
        let on = |what: &str| format!("IPv{} {what}, in dry run", A::VERSION);
        for stamped in [true, false] {
            let ack = valid_ack::<A>(EPOCH, stamped);
            self.passing_row(on("valid ACK"), world, ack.frame(), Reason::NotFollowed);
            let forged = Spec { ack: ack.ack ^ 1, ..ack.clone() };
            self.passing_row(on("forged ACK"), world, forged.frame(), Reason::NotFollowed);
            let mut waiting = world.clone();
            waiting.remember(&ack.flow());
            self.passing_row(on("ACK in TIME_WAIT"), &waiting, ack.frame(), Reason::NotFollowed);
        }
        for flags in [ACK | PSH, ACK | FIN, RST, RST | ACK, FIN, PSH] {
            let segment = Spec { flags, ..Spec::<A>::ack(77, &[]) };
            let name = on(&format!("flags {flags:#04x}"));
            self.passing_row(name.clone(), world, segment.frame(), Reason::NotFollowed);
            let mut known = world.clone();
            known.know(segment.flow());
            self.row(name + ", of a known flow", &known, segment.frame(), Reason::FlowKnown);
            known.pressed = true;
            known.spend_pace(&segment.flow());
            let name = on(&format!("flags {flags:#04x}, of a known flow that sends too fast"));
            self.row(name, &known, segment.frame(), Reason::FlowRate);
        }
        let syn_ack = Spec { flags: SYN | ACK, ..Spec::<A>::ack(77, LINUX) };
        self.passing_row(on("SYN-ACK"), world, syn_ack.frame(), Reason::NoFlow);
        let none = Spec { flags: 0, ..Spec::<A>::ack(77, &[]) };
        self.passing_row(on("no flags"), world, none.frame(), Reason::BadFlags);
        let to_itself = Spec { src: A::GUARDED, ..Spec::<A>::syn(LINUX) };
        self.passing_row(on("LAND"), world, to_itself.frame(), Reason::BadSource);

        let syn = Spec::<A>::syn(LINUX).frame();
        let mut listed = world.clone();
        listed.list(A::CLIENT, &[(A::BITS / 4, DENY, 0)]);
        self.passing_row(on("SYN of a denied source"), &listed, syn.clone(), Reason::FilterDeny);
        let mut listed = world.clone();
        listed.list(A::CLIENT, &[(A::BITS / 4, ALLOW, 0)]);
        listed.spend_replies(A::CLIENT, false);
        self.passing_row(on("SYN of an allowed source"), &listed, syn.clone(), Reason::CookieSent);

        let socketless = World { socket: false, ..world.clone() };
        self.passing_row(on("SYN without a socket"), &socketless, syn.clone(), Reason::Grace);
        let mut dead = World { beating: false, ..world.clone() };
        (dead.settings.stale_after, dead.settings.exit_grace) = (1, 1);
        self.passing_row(on("SYN to a dead daemon"), &dead, syn.clone(), Reason::ExitDrop);
        dead.settings.on_exit = ON_EXIT_PASS;
        self.passing_row(
            on("SYN to a dead daemon that leaves ports to the host"),
            &dead,
            syn,
            Reason::ExitPass,
        );
    }
}
