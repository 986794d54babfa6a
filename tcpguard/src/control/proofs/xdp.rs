//! Tunables of the data plane: the decision over the truth table's world, with the limits that the daemon makes of them.

use tcpguard_common::cookie::{self, Strictness, SynOptions};
use tcpguard_common::decision::decide;
use tcpguard_common::flow::{V4, V6};
use tcpguard_common::map::EpochSlot;
use tcpguard_common::packet::Buffer;
use tcpguard_common::reason::Reason;

use super::super::limits::limits;
use super::client::with;
use crate::config::Tunables;
use table::frames::{ACK, CLIENT_ISN, LINUX, Spec};
use table::world::{ADVERTISED, EPOCH, MASTER, Place, World};

#[path = "../../../../tcpguard-common/src/decision/table/mod.rs"]
#[expect(dead_code, reason = "its world and its frames are needed here, not its rows")]
mod table;

const SECOND: u64 = 1_000_000_000;

/// A guard, and the tunables in force there.
struct Guard {
    world: World,
    tunables: Tunables,
}

impl Guard {
    fn new(values: &[(&str, &str)]) -> Self {
        let mut guard = Self { world: World::new(), tunables: Tunables::default() };
        guard.world.max_flows = 1000;
        guard.tune(values);
        guard
    }

    /// Sets tunables as the daemon does: budgets are full afterwards.
    fn tune(&mut self, values: &[(&str, &str)]) {
        self.tunables = with(&self.tunables, values);
        self.world.settings.limits = limits(&self.tunables, 1);
        for budget in [
            &mut self.world.replies,
            &mut self.world.arrivals,
            &mut self.world.paces,
            &mut self.world.complaints,
        ] {
            drop(budget.take());
        }
        self.world.stateful.iter().for_each(|bucket| bucket.set(0));
    }

    /// What a frame is counted as.
    fn judge(&self, mut frame: Vec<u8>) -> Reason {
        let len = frame.len();
        frame.resize(len + 64, 0);
        let _verdict = decide(&mut Buffer::new(&mut frame, len), &self.world);
        self.world.counted.borrow_mut().pop().expect("counted")
    }

    /// How many of these are counted as `reason` before one is not, and as what that one is.
    fn before_another(&self, reason: Reason, frames: impl IntoIterator<Item = Vec<u8>>) -> (usize, Reason) {
        for (index, frame) in frames.into_iter().take(1000).enumerate() {
            let judged = self.judge(frame);
            if judged != reason {
                return (index, judged);
            }
        }
        panic!("all of them are {reason:?}");
    }
}

/// A SYN of the client's, again and again.
fn syns() -> impl Iterator<Item = Vec<u8>> {
    std::iter::repeat_with(|| Spec::<V4>::syn(LINUX).frame())
}

/// The last segments of handshakes of the client's, each from a port of its own.
fn acks() -> impl Iterator<Item = Vec<u8>> {
    (20_000..).map(|src_port| {
        let slot = EpochSlot::derive(MASTER, EPOCH, &ADVERTISED).unwrap();
        let syn = SynOptions { mss: Some(1460), ..SynOptions::default() };
        let spec = Spec::<V4> { src_port, ..Spec::syn(&[]) };
        let cookie = cookie::encode(&slot, Strictness::NEVER, &spec.flow(), CLIENT_ISN, &syn, 0);
        Spec { src_port, ..Spec::<V4>::ack(cookie.isn.wrapping_add(1), &[]) }.frame()
    })
}

#[test]
pub(super) fn stateful_services_leave_no_more_syns_to_the_stack_than_the_rate() {
    let mut guard = Guard::new(&[]);
    guard.world.make_stateful();
    guard.tune(&[("stateful-rate", "100"), ("stateful-burst", "1")]);
    assert_eq!(guard.before_another(Reason::SynStateful, syns()), (1, Reason::CookieSent));
    guard.world.now += SECOND / 100;
    assert_eq!(guard.before_another(Reason::SynStateful, syns()), (1, Reason::CookieSent));
    guard.tune(&[("stateful-rate", "0")]);
    assert_eq!(guard.before_another(Reason::SynStateful, syns()), (0, Reason::CookieSent));
}

#[test]
pub(super) fn stateful_services_leave_no_more_syns_at_once_than_the_burst() {
    let mut guard = Guard::new(&[("stateful-rate", "100")]);
    guard.world.make_stateful();
    for burst in [7, 40] {
        guard.tune(&[("stateful-burst", &burst.to_string())]);
        assert_eq!(guard.before_another(Reason::SynStateful, syns()), (burst, Reason::CookieSent));
    }
}

#[test]
pub(super) fn a_prefix_is_sent_no_more_syn_acks_than_the_rate() {
    let mut guard = Guard::new(&[]);
    for (rate, after) in [("10", SECOND / 10), ("1000", SECOND / 1000)] {
        guard.tune(&[("verified-reply-rate", rate), ("reply-rate", rate), ("reply-burst", "10")]);
        assert_eq!(guard.before_another(Reason::CookieSent, syns()), (10, Reason::ReplyBudget));
        guard.world.now += after;
        assert_eq!(guard.before_another(Reason::CookieSent, syns()), (1, Reason::ReplyBudget));
    }
}

#[test]
pub(super) fn a_prefix_is_sent_no_more_syn_acks_at_once_than_the_burst() {
    let mut guard = Guard::new(&[("reply-rate", "10"), ("verified-reply-rate", "10")]);
    for burst in [3, 20] {
        guard.tune(&[("reply-burst", &burst.to_string())]);
        assert_eq!(guard.before_another(Reason::CookieSent, syns()), (burst, Reason::ReplyBudget));
    }
}

#[test]
pub(super) fn verified_sources_have_a_rate_of_their_own() {
    let mut guard = Guard::new(&[]);
    guard.world.verify(V4::CLIENT, guard.world.now);
    guard.tune(&[("reply-rate", "10"), ("verified-reply-rate", "100"), ("reply-burst", "1")]);
    assert_eq!(guard.before_another(Reason::CookieSent, syns()), (2, Reason::ReplyBudgetVerified));
    guard.world.now += SECOND / 100;
    assert_eq!(guard.before_another(Reason::CookieSent, syns()), (1, Reason::ReplyBudgetVerified));
    guard.tune(&[("verified-reply-rate", "0")]);
    assert!((0..100).all(|_| guard.judge(Spec::<V4>::syn(LINUX).frame()) == Reason::CookieSent), "no limit");
}

#[test]
pub(super) fn a_source_is_verified_for_the_time_and_no_longer() {
    let mut guard = Guard::new(&[("reply-rate", "1"), ("verified-reply-rate", "0"), ("reply-burst", "1")]);
    guard.world.verify(V4::CLIENT, guard.world.now);
    guard.world.now += 100 * SECOND;
    for (time, expected) in [("200s", Reason::CookieSent), ("50s", Reason::ReplyBudget)] {
        guard.tune(&[("verified-time", time)]);
        assert_eq!(guard.judge(Spec::<V4>::syn(LINUX).frame()), Reason::CookieSent, "the prefix's own");
        assert_eq!(guard.judge(Spec::<V4>::syn(LINUX).frame()), expected, "{time}");
    }
}

#[test]
pub(super) fn neighbours_share_a_budget_as_far_as_the_prefix_reaches() {
    fn second_of<A: Place>(name: &str, len: u32, neighbour: A) -> Reason {
        let mut guard =
            Guard::new(&[("reply-rate", "1"), ("verified-reply-rate", "1"), ("reply-burst", "1")]);
        guard.tune(&[(name, &len.to_string())]);
        assert_eq!(guard.judge(Spec::<A>::syn(LINUX).frame()), Reason::CookieSent);
        guard.judge(Spec { src: neighbour, ..Spec::<A>::syn(LINUX) }.frame())
    }
    let V4([a, b, c, _]) = V4::CLIENT;
    for (len, expected) in [(24, Reason::ReplyBudget), (32, Reason::CookieSent)] {
        assert_eq!(second_of("reply-prefix-v4", len, V4([a, b, c, 200])), expected, "/{len}");
    }
    let mut neighbour = V6::CLIENT;
    neighbour.0[7] ^= 1;
    for (len, expected) in [(56, Reason::ReplyBudget), (64, Reason::CookieSent)] {
        assert_eq!(second_of("reply-prefix-v6", len, neighbour), expected, "/{len}");
    }
}

#[test]
pub(super) fn a_source_opens_no_more_connections_than_the_rate() {
    let mut guard = Guard::new(&[]);
    guard.tune(&[("source-rate", "50"), ("source-burst", "1")]);
    let mut acks = acks();
    assert_eq!(guard.before_another(Reason::AckValid, &mut acks), (1, Reason::AdmissionSourceRate));
    guard.world.now += SECOND / 50;
    assert_eq!(guard.before_another(Reason::AckValid, &mut acks), (1, Reason::AdmissionSourceRate));
}

#[test]
pub(super) fn a_source_opens_no_more_connections_at_once_than_the_burst() {
    let mut guard = Guard::new(&[("source-rate", "1")]);
    let mut acks = acks();
    for burst in [3, 12] {
        guard.tune(&[("source-burst", &burst.to_string())]);
        assert_eq!(guard.before_another(Reason::AckValid, &mut acks), (burst, Reason::AdmissionSourceRate));
    }
}

#[test]
pub(super) fn a_source_has_no_more_connections_than_it_may() {
    let mut guard = Guard::new(&[]);
    let mut acks = acks();
    for (limit, more) in [("5", 5), ("9", 4)] {
        guard.tune(&[("source-flows", limit)]);
        assert_eq!(guard.before_another(Reason::AckValid, &mut acks), (more, Reason::AdmissionSourceFlows));
    }
}

#[test]
pub(super) fn a_service_has_no_more_connections_than_it_may() {
    let mut guard = Guard::new(&[]);
    let mut acks = acks();
    for (limit, more) in [("5", 5), ("9", 4)] {
        guard.tune(&[("service-flows", limit)]);
        assert_eq!(guard.before_another(Reason::AckValid, &mut acks), (more, Reason::AdmissionService));
    }
}

/// A connection whose engine's ring is half full.
fn pressed() -> Guard {
    let mut guard = Guard::new(&[]);
    guard.world.know(Spec::<V4>::ack(1, &[]).flow());
    guard.world.pressed = true;
    guard
}

/// What it sends.
fn segments() -> impl Iterator<Item = Vec<u8>> {
    std::iter::repeat_with(|| Spec::<V4> { flags: ACK, ..Spec::ack(1, &[]) }.frame())
}

#[test]
pub(super) fn a_connection_under_pressure_sends_no_more_than_the_rate() {
    let mut guard = pressed();
    guard.tune(&[("flow-rate", "100"), ("flow-burst", "1")]);
    assert_eq!(guard.before_another(Reason::FlowKnown, segments()), (1, Reason::FlowRate));
    guard.world.now += SECOND / 100;
    assert_eq!(guard.before_another(Reason::FlowKnown, segments()), (1, Reason::FlowRate));
}

#[test]
pub(super) fn a_connection_under_pressure_sends_no_more_at_once_than_the_burst() {
    let mut guard = pressed();
    guard.tune(&[("flow-rate", "100")]);
    for burst in [4, 30] {
        guard.tune(&[("flow-burst", &burst.to_string())]);
        assert_eq!(guard.before_another(Reason::FlowKnown, segments()), (burst, Reason::FlowRate));
    }
}

#[test]
pub(super) fn no_more_complaints_about_a_connection_are_heard_than_the_rate() {
    const TOO_BIG: (u8, u8) = (3, 4);
    let mut guard = pressed();
    let complaints = || std::iter::repeat_with(|| Spec::<V4>::ack(1, &[]).complaint(TOO_BIG, 1400, 1, 20));
    for rate in [2, 11] {
        guard.tune(&[("icmp-rate", &rate.to_string())]);
        assert_eq!(guard.before_another(Reason::IcmpTooBig, complaints()), (rate, Reason::IcmpRate));
    }
    guard.world.now += SECOND / 11 + 1;
    assert_eq!(guard.before_another(Reason::IcmpTooBig, complaints()), (1, Reason::IcmpRate));
}
