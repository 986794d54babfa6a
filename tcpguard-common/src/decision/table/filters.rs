//! Filter lists on the host, and what becomes of segments from listed sources.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::format;
use std::net::IpAddr;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use super::acks::valid_ack;
use super::cases::Table;
use super::frames::{LINUX, Spec};
use super::world::{EPOCH, PORT, PORT_OFF, Place, World};
use tcpguard_common::decision::filter::{Rules, Spans};
use tcpguard_common::filter::{
    ALLOW, DENY, Entry, FilterRule, HEADS, Head, Line, RULES, SECOND_BANK, SPANS, bank,
};
use tcpguard_common::flow::{V4, V6};
use tcpguard_common::map::ON_EXIT_PASS;
use tcpguard_common::reason::Reason;

/// No clock shows more.
const FOREVER: u64 = u64::MAX;

/// One prefix as somebody said it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    pub(crate) addr: IpAddr,
    pub(crate) len: u8,
    pub(crate) action: u32,
    pub(crate) expires: u64,
}

impl Said {
    /// Without the bits beyond the length.
    pub(crate) fn masked(self) -> Self {
        let len = u32::from(self.len);
        let addr = match self.addr {
            IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() & !u32::MAX.checked_shr(len).unwrap_or(0)).into()),
            IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !u128::MAX.checked_shr(len).unwrap_or(0)).into()),
        };
        Self { addr, ..self }
    }
}

/// The lists: as they were said, and as tables.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lists {
    pub(crate) said: Vec<Said>,
    pub(crate) v4: Option<Rc<Line<V4>>>,
    pub(crate) v6: Option<Rc<Line<V6>>>,
    /// From rule 1 on.
    pub(crate) rules: Vec<FilterRule>,
    /// By rule.
    pub(crate) hits: RefCell<BTreeMap<u32, u64>>,
}

impl World {
    /// Puts prefixes around an address of one family into the lists, which have none of that family yet: each a length,
    /// an action, and when it expires.
    pub(crate) fn list<A: Place>(&mut self, addr: A, filters: &[(u8, u32, u64)]) {
        let said = |&(len, action, expires): &(u8, u32, u64)| {
            Said { addr: addr.ip(), len, action, expires }.masked()
        };
        self.list_all::<A>(filters.iter().map(said).collect());
    }

    /// Puts prefixes of one family into the lists, which have none of that family yet.
    pub(crate) fn list_all<A: Place>(&mut self, mut filters: Vec<Said>) {
        filters.sort_by_key(|said| (said.addr, said.len));
        filters.dedup_by_key(|said| (said.addr, said.len));
        let first = 1 + self.lists.rules.len() as u32;
        let entry = |(rule, said): (u32, &Said)| {
            let start = match said.addr {
                IpAddr::V4(addr) => addr.to_bits().into(),
                IpAddr::V6(addr) => addr.to_bits(),
            };
            Entry { start, len: said.len, rule, expires: said.expires }
        };
        let line = Line::<A>::cut(&(first..).zip(&filters).map(entry).collect::<Vec<_>>());
        let rule =
            |(said, &next): (&Said, &u32)| FilterRule { expires: said.expires, action: said.action, next };
        self.lists.rules.extend(filters.iter().zip(&line.next).map(rule));
        self.lists.said.extend(filters);
        assert!(A::line_mut(&mut self.lists).replace(Rc::new(line)).is_none());
        self.settings.filters |= A::LISTED;
    }

    /// The index within the bank that counts, of one within both.
    fn in_bank(&self, index: u32, size: u32) -> Option<usize> {
        index.checked_sub(bank(self.settings.filters) * size).map(|index| index as usize)
    }
}

/// Lists for half of a generator's clients.
pub(crate) fn some(world: &mut World) {
    fn around<A: Place>(world: &mut World) {
        world.list(
            A::CLIENT,
            &[
                (A::BITS - 8, ALLOW, FOREVER),
                (A::BITS - 7, DENY, 0),
                (A::BITS - 5, DENY, FOREVER),
                (A::BITS - 4, ALLOW, 0),
                (A::BITS - 2, ALLOW, 1),
                (A::BITS - 1, DENY, 1),
                (A::BITS, DENY, 0),
            ],
        );
    }
    around::<V4>(world);
    around::<V6>(world);
}

impl<A: Place> Spans<A> for World {
    fn head(&self, index: u32) -> Option<Head> {
        A::line(&self.lists)?.heads.get(self.in_bank(index, HEADS)?).copied()
    }

    fn span(&self, index: u32) -> Option<&A::Span> {
        A::line(&self.lists)?.spans.get(self.in_bank(index, SPANS)?)
    }
}

impl Rules for World {
    fn rule(&self, index: u32) -> Option<&FilterRule> {
        self.lists.rules.get(self.in_bank(index, RULES)?.checked_sub(1)?)
    }

    fn hit(&self, bank: u32, rule: u32) {
        assert_eq!(bank, tcpguard_common::filter::bank(self.settings.filters));
        *self.lists.hits.borrow_mut().entry(rule).or_default() += 1;
    }
}

impl Table {
    pub(super) fn filters(&mut self) {
        self.lists::<V4>();
        self.lists::<V6>();
        let mut world = World::new();
        world.list(V4::CLIENT, &[(0, DENY, 0)]);
        self.row(
            "IPv6 SYN while all of IPv4 is denied",
            &world,
            Spec::<V6>::syn(LINUX).frame(),
            Reason::CookieSent,
        );
        let mut world = World::new();
        world.list(V6::CLIENT, &[(0, DENY, 0)]);
        self.row(
            "IPv4 SYN while all of IPv6 is denied",
            &world,
            Spec::<V4>::syn(LINUX).frame(),
            Reason::CookieSent,
        );
    }

    fn lists<A: Place>(&mut self) {
        let syn = Spec::<A>::syn(LINUX);
        let (host, wide) = (A::BITS, A::BITS / 2);
        let (denied, sent) = (Reason::FilterDeny, Reason::CookieSent);
        for (what, filters, reason) in [
            ("whose address is denied", &[(host, DENY, 0)][..], denied),
            ("whose network is denied", &[(wide, DENY, 0)], denied),
            ("while everybody is denied", &[(0, DENY, 0)], denied),
            ("from a denied half of a network", &[(host - 1, DENY, 0)], denied),
            ("allowed in a denied network", &[(wide, DENY, 0), (host, ALLOW, 0)], sent),
            ("denied in an allowed network", &[(wide, ALLOW, 0), (host, DENY, 0)], denied),
            ("denied between allowed ones", &[(0, ALLOW, 0), (wide, DENY, 0), (wide - 1, ALLOW, 0)], denied),
            ("denied for a while", &[(host, DENY, FOREVER)], denied),
            ("denied until long ago", &[(host, DENY, 1)], sent),
            ("allowed until long ago in a denied network", &[(wide, DENY, 0), (host, ALLOW, 1)], denied),
            ("denied until long ago in an allowed network", &[(wide, ALLOW, 0), (host, DENY, 1)], sent),
            (
                "denied by the third prefix around it that is alive",
                &[(8, DENY, 0), (9, ALLOW, 3), (10, ALLOW, 3), (11, DENY, 2), (12, ALLOW, 1)],
                denied,
            ),
        ] {
            for second in [0, SECOND_BANK] {
                let mut world = World::new();
                world.list(A::CLIENT, filters);
                world.settings.filters |= second;
                let name = format!("IPv{} SYN {what}, bank {}", A::VERSION, bank(second));
                self.row(name, &world, syn.frame(), reason);
            }
        }
        let mut world = World::new();
        world.list(A::GUARDED, &[(host, DENY, 0), (wide, DENY, 0)]);
        let name = format!("IPv{} SYN from beside a denied network", A::VERSION);
        self.row(name, &world, syn.frame(), sent);
        self.of_a_denied_source::<A>();
        self.of_an_allowed_source::<A>();
    }

    fn of_a_denied_source<A: Place>(&mut self) {
        let mut world = World::new();
        world.list(A::CLIENT, &[(A::BITS - 3, DENY, 0)]);
        let on = |what: &str| format!("IPv{} {what} of a denied source", A::VERSION);
        let (syn, ack) = (Spec::<A>::syn(LINUX), valid_ack::<A>(EPOCH, true));
        let mut known = world.clone();
        known.know(ack.flow());
        let mut waiting = world.clone();
        waiting.remember(&ack.flow());
        let mut dead = World { beating: false, ..world.clone() };
        (dead.settings.stale_after, dead.settings.on_exit) = (1, ON_EXIT_PASS);
        let mut cut = syn.frame();
        cut.truncate(60);
        let tagged = Spec { tags: vec![[0x88, 0xa8, 0, 7], [0x81, 0, 0, 9]], ..syn.clone() };
        let denied = Some(Reason::FilterDeny);
        for (what, world, frame, reason) in [
            ("valid ACK", &world, ack.frame(), denied),
            ("ACK of a known flow", &known, ack.frame(), denied),
            ("ACK in TIME_WAIT", &waiting, ack.frame(), denied),
            ("segment without flags", &world, Spec { flags: 0, ..syn.clone() }.frame(), denied),
            ("tagged SYN", &world, tagged.frame(), denied),
            ("SYN that is cut", &world, cut, denied),
            ("SYN after the daemon died", &dead, syn.frame(), denied),
            (
                "SYN to a service that is off",
                &world,
                Spec { dst_port: PORT_OFF, ..syn.clone() }.frame(),
                Some(Reason::ServiceOff),
            ),
            ("SYN to an unprotected port", &world, Spec { dst_port: 81, ..syn.clone() }.frame(), None),
        ] {
            self.row(on(what), world, frame, reason);
        }
    }

    fn of_an_allowed_source<A: Place>(&mut self) {
        let mut world = World::new();
        world.list(A::CLIENT, &[(A::BITS - 3, ALLOW, 0)]);
        let on = |what: &str| format!("IPv{} {what} of an allowed source", A::VERSION);
        let valid = valid_ack::<A>(EPOCH, false);
        let forged = Spec { ack: valid.ack ^ 1, ..valid.clone() };
        self.row(on("valid ACK"), &world, valid.frame(), Reason::AckValid);
        self.row(on("ACK with an invalid cookie"), &world, forged.frame(), Reason::AckInvalid);
        let mut spent = world.clone();
        spent.spend_replies(A::CLIENT, false);
        let syn = Spec::<A>::syn(LINUX);
        self.row(on("SYN over its prefix's budget"), &spent, syn.frame(), Reason::CookieSent);
        let mut greedy = world.clone();
        greedy.settings.limits.source_flows = 5;
        greedy.open_from(A::CLIENT, 5);
        greedy.spend_arrivals(A::CLIENT);
        self.row(on("valid ACK over the limits of a source"), &greedy, valid.frame(), Reason::AckValid);
        let mut busy = world.clone();
        busy.settings.limits.service_flows = 10;
        busy.open_to(PORT, 10);
        self.row(on("valid ACK to a busy service"), &busy, valid.frame(), Reason::AdmissionService);
        let nothing = Spec { flags: 0, ..valid };
        self.row(on("segment without flags"), &world, nothing.frame(), Reason::BadFlags);
    }
}
