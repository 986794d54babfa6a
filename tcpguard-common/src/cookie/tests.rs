//! The cookie is judged here as an attacker, a client and a rotating daemon would.

use super::*;
use crate::flow::{V4, V6};
use proptest::prelude::*;
use std::vec::Vec;

pub(super) mod forgery;

const MASTER: [u64; 2] = [0x0011_2233_4455_6677, 0x8899_aabb_ccdd_eeff];
const ADVERTISED: Advertised = Advertised { mss_v4: 1460, mss_v6: 1440, window: 64240, window_scale: 7 };
const ISN: u32 = 0xdead_beef;
const FLOW_V4: FlowKey<V4> = FlowKey {
    peer: V4([192, 0, 2, 7]),
    local: V4([198, 51, 100, 1]),
    peer_port: [0xc0, 1],
    local_port: [0, 80],
};
const FLOW_V6: FlowKey<V6> = FlowKey {
    peer: V6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]),
    local: V6([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    peer_port: [0xc0, 1],
    local_port: [0, 80],
};

/// The slots a daemon keeps at `now`.
fn slots(now: u32) -> [EpochSlot; 4] {
    let mut slots = [EpochSlot::default(); 4];
    for epoch in [now.wrapping_sub(2), now.wrapping_sub(1), now, now.wrapping_add(1)] {
        slots[(epoch % 4) as usize] = EpochSlot::derive(MASTER, epoch, &ADVERTISED).unwrap();
    }
    slots
}

fn xdp(epoch: u32, second_half: bool) -> Clock {
    Clock { epoch, second_half, extra: 0 }
}

fn every_syn() -> impl Iterator<Item = SynOptions> {
    let mss = [None, Some(0), Some(1), Some(535), Some(536), Some(537), Some(1219), Some(1220), Some(1299)]
        .into_iter()
        .chain((1300..1470).map(Some))
        .chain([Some(8960), Some(u16::MAX)]);
    mss.flat_map(|mss| {
        [None].into_iter().chain((0..=14).map(Some)).flat_map(move |window_scale| {
            (0..8).map(move |bits| SynOptions {
                mss,
                window_scale,
                sack_permitted: bits & 1 != 0,
                timestamps: (bits & 2 != 0).then_some(99),
                ecn: bits & 4 != 0,
            })
        })
    })
}

fn round_trip<A: Family>(flow: FlowKey<A>) {
    let slots = slots(1000);
    let slot = slots.slot(1000).unwrap();
    for syn in every_syn() {
        let cookie = encode(slot, Strictness::NEVER, &flow, ISN, &syn, 77 << 22);
        let accepted =
            validate(&slots, &xdp(1000, false), Strictness::NEVER, &flow, ISN, cookie.isn, cookie.tsval)
                .unwrap();
        let asked = syn.mss.unwrap_or(A::DEFAULT_MSS);
        assert!(accepted.mss <= asked.max(A::DEFAULT_MSS), "{syn:?} {accepted:?}");
        // No realistic MSS loses more than an eighth.
        assert!(asked < 1300 || u32::from(accepted.mss) * 8 >= u32::from(asked.min(1440)) * 7, "{syn:?}");
        assert_eq!(accepted.sack_permitted, syn.sack_permitted);
        assert_eq!(accepted.timestamps, syn.timestamps.is_some());
        assert_eq!(accepted.slot, *slot);
        if syn.timestamps.is_some() {
            assert_eq!(accepted.window_scale, syn.window_scale);
            assert_eq!(accepted.ecn, syn.ecn);
            assert_eq!(accepted.sent, Some(77));
        } else {
            assert_eq!(accepted.window_scale.is_some(), syn.window_scale.is_some());
            assert!(accepted.window_scale <= syn.window_scale);
            assert_eq!((accepted.ecn, accepted.sent), (false, None));
        }
    }
}

#[test]
fn every_combination_of_options_survives_rounding_only_down() {
    round_trip(FLOW_V4);
    round_trip(FLOW_V6);
}

#[test]
fn usual_window_shifts_survive_without_timestamps() {
    let slots = slots(5);
    for shift in [0, 2, 4, 6, 7, 8, 10] {
        let syn = SynOptions { window_scale: Some(shift), ..SynOptions::default() };
        let cookie = encode(slots.slot(5).unwrap(), Strictness::NEVER, &FLOW_V4, ISN, &syn, 0);
        let accepted =
            validate(&slots, &xdp(5, false), Strictness::NEVER, &FLOW_V4, ISN, cookie.isn, None).unwrap();
        assert_eq!(accepted.window_scale, Some(shift));
    }
}

fn stamped_and_bare() -> [SynOptions; 2] {
    let bare =
        SynOptions { mss: Some(1460), window_scale: Some(7), sack_permitted: true, ..SynOptions::default() };
    [SynOptions { timestamps: Some(1), ..bare }, bare]
}

/// What makes a cookie of each layout.
fn layouts() -> [(SynOptions, Strictness); 3] {
    let [stamped, bare] = stamped_and_bare();
    [(stamped, Strictness::NEVER), (bare, Strictness::NEVER), (bare, Strictness::ALWAYS)]
}

fn refuses_flipped_bits<A: Family>(flow: FlowKey<A>) {
    let slots = slots(8);
    let clocks = [(0, false), (0, true), (1, false), (1, true)]
        .map(|(extra, second_half)| Clock { extra, ..xdp(8, second_half) });
    for (clock, (syn, strictness)) in clocks.iter().flat_map(|clock| layouts().map(|kind| (clock, kind))) {
        let cookie = encode(slots.slot(8).unwrap(), strictness, &flow, ISN, &syn, 0);
        let accepts = |client_isn, isn, tsval| {
            validate(&slots, clock, strictness, &flow, client_isn, isn, tsval).is_some()
        };
        assert!(accepts(ISN, cookie.isn, cookie.tsval));
        for bit in 0..32 {
            let flip = 1 << bit;
            assert!(!accepts(ISN ^ flip, cookie.isn, cookie.tsval));
            assert!(!accepts(ISN, cookie.isn ^ flip, cookie.tsval));
            if let Some(tsval) = cookie.tsval {
                let accepted = accepts(ISN, cookie.isn, Some(tsval ^ flip));
                assert_eq!(accepted, stamped::TIME.mask() & flip != 0, "bit {bit}");
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_cookie_and_options_is_refused_except_the_time() {
    refuses_flipped_bits(FLOW_V4);
    refuses_flipped_bits(FLOW_V6);
}

/// A cookie that differs in nothing but its layout, or the version of it, has another MAC; so has one of another family.
#[test]
fn the_mac_covers_layout_version_and_family() {
    let slot = slots(8)[0];
    let bits = 0;
    let whole = mac(&slot, &FLOW_V4, ISN, bits, Layout::Stamped);
    let bare = |strict| mac(&slot, &FLOW_V4, ISN, bits, Layout::Bare { strict });
    assert!(whole != bare(false) && whole != bare(true) && bare(false) != bare(true));
    assert_ne!(whole, mac(&EpochSlot { layout: LAYOUT + 1, ..slot }, &FLOW_V4, ISN, bits, Layout::Stamped));
    // The same bytes of key, as far as IPv4 has them.
    let mapped = FlowKey { peer: V6([0; 16]), local: V6([0; 16]), peer_port: [0; 2], local_port: [0; 2] };
    let zero = FlowKey { peer: V4([0; 4]), local: V4([0; 4]), peer_port: [0; 2], local_port: [0; 2] };
    assert_ne!(
        mac(&slot, &mapped, 0, bits, Layout::Bare { strict: false }),
        mac(&slot, &zero, 0, bits, Layout::Bare { strict: false })
    );
}

#[test]
fn every_flipped_bit_of_the_tuple_is_refused() {
    fn flipped(mut bytes: Vec<u8>, bit: usize) -> Vec<u8> {
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    }
    let slots = slots(8);
    for (syn, strictness) in layouts() {
        let cookie = encode(slots.slot(8).unwrap(), strictness, &FLOW_V4, ISN, &syn, 0);
        let FlowKey { peer, local, peer_port, local_port } = FLOW_V4;
        let whole = [&peer.0[..], &local.0, &peer_port, &local_port].concat();
        for bit in 0..96 {
            let b = flipped(whole.clone(), bit);
            let flow = FlowKey {
                peer: V4(b[..4].try_into().unwrap()),
                local: V4(b[4..8].try_into().unwrap()),
                peer_port: [b[8], b[9]],
                local_port: [b[10], b[11]],
            };
            assert!(
                validate(&slots, &xdp(8, false), strictness, &flow, ISN, cookie.isn, cookie.tsval).is_none()
            );
        }
        let cookie = encode(slots.slot(8).unwrap(), strictness, &FLOW_V6, ISN, &syn, 0);
        let FlowKey { peer, local, peer_port, local_port } = FLOW_V6;
        let whole = [&peer.0[..], &local.0, &peer_port, &local_port].concat();
        for bit in 0..288 {
            let b = flipped(whole.clone(), bit);
            let flow = FlowKey {
                peer: V6(b[..16].try_into().unwrap()),
                local: V6(b[16..32].try_into().unwrap()),
                peer_port: [b[32], b[33]],
                local_port: [b[34], b[35]],
            };
            assert!(
                validate(&slots, &xdp(8, false), strictness, &flow, ISN, cookie.isn, cookie.tsval).is_none()
            );
        }
    }
}

#[test]
fn a_cookie_of_one_layout_is_not_one_of_the_other() {
    let slots = slots(8);
    let [stamped, bare] = stamped_and_bare()
        .map(|syn| encode(slots.slot(8).unwrap(), Strictness::NEVER, &FLOW_V4, ISN, &syn, 0));
    assert!(validate(&slots, &xdp(8, false), Strictness::NEVER, &FLOW_V4, ISN, stamped.isn, None).is_none());
    assert!(
        validate(&slots, &xdp(8, false), Strictness::NEVER, &FLOW_V4, ISN, bare.isn, stamped.tsval).is_none()
    );
    assert!(validate(&slots, &xdp(8, false), Strictness::NEVER, &FLOW_V4, ISN, bare.isn, Some(0)).is_none());
}

#[test]
fn a_strict_cookie_is_no_other_and_remembers_the_mss_alone() {
    let slots = slots(8);
    let slot = slots.slot(8).unwrap();
    for syn in every_syn() {
        let cookie = encode(slot, Strictness::ALWAYS, &FLOW_V4, ISN, &syn, 77 << 22);
        let accepted = |strictness| {
            validate(&slots, &xdp(8, false), strictness, &FLOW_V4, ISN, cookie.isn, cookie.tsval)
        };
        let options = cookie.options::<V4>(slot, &syn);
        let found = accepted(Strictness::ALWAYS).unwrap();
        if syn.timestamps.is_some() {
            assert_eq!(cookie, encode(slot, Strictness::NEVER, &FLOW_V4, ISN, &syn, 77 << 22));
            assert_eq!(accepted(Strictness::NEVER), Some(found), "timestamps make no difference");
            assert_eq!(options.window_scale.is_some(), syn.window_scale.is_some());
            assert_eq!((options.sack_permitted, cookie.strict), (syn.sack_permitted, false));
            continue;
        }
        assert_eq!(accepted(Strictness::NEVER), None);
        assert!(cookie.strict && found.strict);
        assert_eq!((options.mss, options.window_scale, options.sack_permitted), (Some(1460), None, false));
        assert_eq!((found.window_scale, found.sack_permitted), (None, false));
        let bare = encode(slot, Strictness::NEVER, &FLOW_V4, ISN, &syn, 0);
        let bare =
            validate(&slots, &xdp(8, false), Strictness::NEVER, &FLOW_V4, ISN, bare.isn, None).unwrap();
        assert_eq!(found.mss, bare.mss);
    }
}

/// Which of a strict and a bare cookie of `issued` hold at (epoch, half) for XDP and for the stack, at a service that was
/// strict in `strict` alone.
fn holds_without_timestamps(
    issued: u32,
    strict: core::ops::RangeInclusive<u32>,
    (epoch, second_half): (u32, bool),
) -> [[bool; 2]; 2] {
    // As the daemon has it: of an epoch's neighbours, the two before it and the next.
    let strictness = (epoch - 2..=epoch + 1)
        .fold(Strictness::NEVER, |strictness, epoch| strictness.with(epoch, strict.contains(&epoch)));
    let slot = EpochSlot::derive(MASTER, issued, &ADVERTISED).unwrap();
    let [_, syn] = stamped_and_bare();
    [Strictness::ALWAYS, Strictness::NEVER].map(|kind| {
        let cookie = encode(&slot, kind, &FLOW_V4, ISN, &syn, 0);
        [0, 1].map(|extra| {
            let clock = Clock { epoch, second_half, extra };
            validate(&slots(epoch), &clock, strictness, &FLOW_V4, ISN, cookie.isn, None).is_some()
        })
    })
}

/// The service is strict from the first tick of epoch 100 to the last of epoch 102.
#[test]
fn cookies_of_either_layout_live_as_long_as_any_when_strictness_changes_and_no_tick_longer() {
    for issued in 98..=104 {
        let was_strict = (100..=102).contains(&issued);
        for at in (97..=106).flat_map(|epoch| [(epoch, false), (epoch, true)]) {
            let [strict, bare] = holds_without_timestamps(issued, 100..=102, at);
            // The same as if it had been so for ever.
            let [_, expected] = holds_without_timestamps(issued, 0..=0, at);
            let (own, other) = if was_strict { (strict, bare) } else { (bare, strict) };
            assert_eq!(own, expected, "issued in {issued}, at {at:?}");
            assert_eq!(other, [false; 2], "the layout that {issued} did not have, at {at:?}");
        }
    }
    // Half a tick around the end of the last bare epoch's cookies in XDP.
    assert_eq!(holds_without_timestamps(99, 100..=102, (100, false)), [[false; 2], [true; 2]]);
    assert_eq!(holds_without_timestamps(99, 100..=102, (100, true)), [[false; 2], [false, true]]);
}

/// Whether a cookie of epoch 100 holds at (epoch, half) for XDP and for the stack, by layout.
fn holds(epoch: u32, second_half: bool, extra: u32) -> [bool; 2] {
    let slots = slots(epoch);
    let issued = EpochSlot::derive(MASTER, 100, &ADVERTISED).unwrap();
    stamped_and_bare().map(|syn| {
        let cookie = encode(&issued, Strictness::NEVER, &FLOW_V4, ISN, &syn, 0);
        let clock = Clock { epoch, second_half, extra };
        validate(&slots, &clock, Strictness::NEVER, &FLOW_V4, ISN, cookie.isn, cookie.tsval).is_some()
    })
}

#[test]
fn cookies_expire_and_skewed_clocks_agree_as_far_as_each_layout_can() {
    // With timestamps: the neighbours on both sides. Without: previous in the first half, next in the second.
    for (epoch, second_half, expected) in [
        (98, false, [false, false]),
        (98, true, [false, false]),
        (99, false, [true, false]),
        (99, true, [true, true]),
        (100, false, [true, true]),
        (100, true, [true, true]),
        (101, false, [true, true]),
        (101, true, [true, false]),
        (102, false, [false, false]),
        (102, true, [false, false]),
        (103, false, [false, false]),
        (104, false, [false, false]),
        (104, true, [false, false]),
    ] {
        assert_eq!(holds(epoch, second_half, 0), expected, "XDP at {epoch}, second half {second_half}");
    }
}

#[test]
fn the_stack_accepts_whatever_xdp_accepted_one_half_or_one_epoch_earlier() {
    let halves: Vec<(u32, bool)> = (98..=104).flat_map(|epoch| [(epoch, false), (epoch, true)]).collect();
    for pair in halves.windows(2) {
        let earlier = holds(pair[0].0, pair[0].1, 0);
        for later in [pair[0], pair[1]] {
            let stack = holds(later.0, later.1, 1);
            for (xdp, stack) in earlier.into_iter().zip(stack) {
                assert!(!xdp || stack, "XDP at {:?}, stack at {later:?}", pair[0]);
            }
        }
    }
    assert_eq!(holds(102, true, 1), [true, true]);
    assert_eq!(holds(103, false, 1), [false, false]);
}

#[test]
fn epoch_numbers_may_wrap() {
    let slots = slots(0);
    let issued = EpochSlot::derive(MASTER, u32::MAX, &ADVERTISED).unwrap();
    for syn in stamped_and_bare() {
        let cookie = encode(&issued, Strictness::NEVER, &FLOW_V4, ISN, &syn, 0);
        assert!(
            validate(&slots, &xdp(0, false), Strictness::NEVER, &FLOW_V4, ISN, cookie.isn, cookie.tsval)
                .is_some()
        );
    }
}

#[test]
fn a_slot_that_was_never_written_or_has_no_key_validates_nothing() {
    let zero = EpochSlot::default();
    let keyless = EpochSlot { valid: 1, layout: LAYOUT, window: 1, ..zero };
    let with_key = EpochSlot { key: [1, 2], ..keyless };
    for slot in [
        zero,
        keyless,
        with_key,
        EpochSlot { layout: 9, ..with_key },
        EpochSlot { valid: 0, ..with_key },
        EpochSlot { epoch: 4, ..with_key },
    ] {
        // Even the cookie its own key makes.
        let slots = [slot; 4];
        let usable = slot == with_key;
        for syn in stamped_and_bare() {
            let cookie = encode(&slot, Strictness::NEVER, &FLOW_V4, ISN, &syn, 0);
            let accepted =
                validate(&slots, &xdp(0, false), Strictness::NEVER, &FLOW_V4, ISN, cookie.isn, cookie.tsval);
            assert_eq!(accepted.is_some(), usable);
        }
    }
    assert_eq!(EpochSlot::derive([0; 2], 5, &ADVERTISED), None);
    assert_eq!(EpochSlot::derive(MASTER, 5, &Advertised { window: 0, ..ADVERTISED }), None);
}

#[test]
fn keys_depend_on_the_secret_the_epoch_and_what_is_promised() {
    let key = derive_key(MASTER, 7, &ADVERTISED);
    assert_ne!(key[0], key[1]);
    assert_ne!(key, derive_key([MASTER[0] ^ 1, MASTER[1]], 7, &ADVERTISED));
    assert_ne!(key, derive_key(MASTER, 8, &ADVERTISED));
    assert_ne!(key, derive_key(MASTER, 7, &Advertised { mss_v4: 1400, ..ADVERTISED }));
    assert_ne!(key, derive_key(MASTER, 7, &Advertised { mss_v6: 1400, ..ADVERTISED }));
    assert_ne!(key, derive_key(MASTER, 7, &Advertised { window_scale: 8, ..ADVERTISED }));
    assert_eq!(key, derive_key(MASTER, 7, &Advertised { window: 1, ..ADVERTISED }));
}

#[test]
fn the_handshakes_round_trip_counts_between_one_unit_and_three_seconds() {
    let sent = 65_530u16;
    let at = |units: u64| rtt_sample(sent, (u64::from(sent) + units) << TIME_SHIFT);
    assert_eq!(at(0), None);
    assert_eq!(at(1), Some(1 << TIME_SHIFT));
    assert_eq!(at(10), Some(10 << TIME_SHIFT));
    assert!(at(715).is_some());
    assert_eq!(at(716), None);
    assert_eq!(at(65_535), None);
}

#[test]
fn small_segment_sizes_are_told_apart() {
    assert!(mss_is_small::<V4>(Some(535)) && !mss_is_small::<V4>(Some(536)) && !mss_is_small::<V4>(None));
    assert!(mss_is_small::<V6>(Some(1219)) && !mss_is_small::<V6>(Some(1220)));
}

/// What a look at a cookie of `epoch` says in the clock's present, at a service that is never strict.
fn looked_at(slots: &[EpochSlot; 4], clock: &Clock, epoch: u32, timestamps: Option<u32>) -> Inspection {
    let syn =
        SynOptions { mss: Some(1460), window_scale: Some(7), sack_permitted: true, timestamps, ecn: false };
    let made_with = EpochSlot::derive(MASTER, epoch, &ADVERTISED).unwrap();
    let cookie = encode(&made_with, Strictness::NEVER, &FLOW_V4, ISN, &syn, 0);
    inspect(slots, clock, Strictness::NEVER, &FLOW_V4, ISN, cookie.isn, cookie.tsval)
}

#[test]
fn a_look_at_a_cookie_says_what_it_carries_and_how_it_stands() {
    for timestamps in [None, Some(1)] {
        let look = |clock: &Clock, epoch| looked_at(&slots(8), clock, epoch, timestamps);
        let fresh = look(&xdp(8, false), 8);
        assert_eq!((fresh.validity, fresh.epoch), (Validity::Valid, Some(8)));
        let said = fresh.said;
        assert_eq!((said.mss, said.window_scale, said.sack_permitted), (1460, Some(7), true));
        assert_eq!((said.timestamps, said.sent.is_some()), (timestamps.is_some(), timestamps.is_some()));
        assert_eq!(look(&xdp(8, false), 7).validity, Validity::Valid);
        assert_eq!(look(&xdp(8, true), 9).validity, Validity::Valid);
        let late = look(&xdp(8, false), 6);
        assert_eq!((late.validity, late.epoch), (Validity::Late, Some(6)));
        // The clock moved on, and nobody moved the keys.
        let old = look(&xdp(9, false), 6);
        assert_eq!((old.validity, old.epoch), (Validity::OutOfTime, Some(6)));
        // Another secret's.
        let theirs = slots(8).map(|slot| EpochSlot { key: [5, 6], ..slot });
        let wrong = looked_at(&theirs, &xdp(8, false), 8, timestamps);
        assert_eq!((wrong.validity, wrong.epoch), (Validity::Wrong, None));
        assert_eq!(
            wrong.said,
            Accepted { slot: EpochSlot::default(), ..said },
            "what it claims is shown all the same"
        );
        let none = [EpochSlot::default(); 4];
        assert_eq!(looked_at(&none, &xdp(8, false), 8, timestamps).validity, Validity::NoKey);
    }
    let slots = slots(8);
    let [_, syn] = stamped_and_bare();
    for (made, service, validity) in [
        (Strictness::ALWAYS, Strictness::ALWAYS, Validity::Valid),
        (Strictness::ALWAYS, Strictness::NEVER, Validity::OtherLayout),
        (Strictness::NEVER, Strictness::ALWAYS, Validity::OtherLayout),
        (Strictness::NEVER, Strictness::ALWAYS.with(8, false), Validity::Valid),
    ] {
        let cookie = encode(slots.slot(8).unwrap(), made, &FLOW_V4, ISN, &syn, 0);
        let look = inspect(&slots, &xdp(8, false), service, &FLOW_V4, ISN, cookie.isn, None);
        assert_eq!((look.validity, look.epoch), (validity, Some(8)));
        assert_eq!(look.said.strict, made == Strictness::ALWAYS);
        assert_eq!(look.said.window_scale, (made == Strictness::NEVER).then_some(7));
    }
    // Without timestamps there is one bit of epoch: what is odd is the next one in the second half, unless the stack asks.
    assert_eq!(looked_at(&slots, &xdp(8, true), 7, None).validity, Validity::Late);
    assert_eq!(looked_at(&slots, &xdp(8, true), 7, Some(1)).validity, Validity::Valid);
}

proptest! {
    #[test]
    fn a_look_calls_valid_what_validates(
        now in 0..64u32, second_half: bool, made in 0..8u32, flip in 0..40u32, timestamps: Option<u32>,
        strictness in (0..16u16).prop_map(Strictness), strict: bool,
    ) {
        let clock = xdp(now + 8, second_half);
        let slots = slots(now + 8);
        let syn = SynOptions { timestamps, ..SynOptions::default() };
        let slot = EpochSlot::derive(MASTER, now + made + 4, &ADVERTISED).unwrap();
        let cookie = encode(&slot, if strict { Strictness::ALWAYS } else { Strictness::NEVER }, &FLOW_V6, ISN, &syn, 0);
        let isn = cookie.isn ^ 1u32.checked_shl(flip).unwrap_or(0);
        let look = inspect(&slots, &clock, strictness, &FLOW_V6, ISN, isn, cookie.tsval);
        let accepted = validate(&slots, &clock, strictness, &FLOW_V6, ISN, isn, cookie.tsval);
        prop_assert_eq!(look.validity == Validity::Valid, accepted.is_some());
        prop_assert!(accepted.is_none_or(|accepted| accepted == look.said));
        let stack = validate(&slots, &Clock { extra: 1, ..clock }, strictness, &FLOW_V6, ISN, isn, cookie.tsval);
        prop_assert_eq!(matches!(look.validity, Validity::Valid | Validity::Late), stack.is_some());
    }

    #[test]
    fn guesses_do_not_validate(isn: u32, cookie: u32, tsecr: Option<u32>) {
        // Odds of 2^-25 a guess: a few hundred of them never hit.
        prop_assert!(validate(&slots(8), &xdp(8, false), Strictness::NEVER, &FLOW_V4, isn, cookie, tsecr).is_none());
    }

    #[test]
    fn any_flow_and_any_clock_round_trips(
        peer: [u8; 16], local: [u8; 16], ports: [[u8; 2]; 2], isn: u32, epoch: u32, time: u64, mss: Option<u16>,
        window_scale: Option<u8>, sack_permitted: bool, timestamps: Option<u32>, ecn: bool,
    ) {
        let flow = FlowKey { peer: V6(peer), local: V6(local), peer_port: ports[0], local_port: ports[1] };
        let window_scale = window_scale.map(|shift| shift % 15);
        let syn = SynOptions { mss, window_scale, sack_permitted, timestamps, ecn };
        let slots = slots(epoch);
        let cookie = encode(slots.slot(epoch).unwrap(), Strictness::NEVER, &flow, isn, &syn, time);
        let accepted = validate(&slots, &xdp(epoch, false), Strictness::NEVER, &flow, isn, cookie.isn, cookie.tsval);
        prop_assert!(accepted.is_some_and(|a| a.sack_permitted == sack_permitted));
    }
}
