//! How often a guess is taken for a cookie. With the MAC of real cookies that would take 2^25 guesses a hit, so here it is
//! cut short: the measured rate must be what arithmetic says for every length, and so it is for the whole one.

use super::*;
use crate::decision::table::generator::Random;
use std::cell::Cell;

std::thread_local! {
    /// The bits of the MAC that count in this thread.
    static BITS: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// What is left of a MAC; all of it unless a test of this module says otherwise.
pub(crate) fn cut(mac: u64) -> u64 {
    mac & BITS.get()
}

/// Guesses of one measurement.
const GUESSES: u32 = 1 << 19;
const EPOCH: u32 = 8;
const SEED: u64 = 0x666f_7267_6572_7920;

/// The share of guesses that are accepted when `bits` of the MAC count; the guesser knows that the others are zero.
fn measured<A: Family>(
    flow: impl Fn(&mut Random) -> FlowKey<A>,
    bits: u64,
    (clock, strictness): (&Clock, Strictness),
    guess: impl Fn(&mut Random) -> (u32, Option<u32>),
) -> f64 {
    BITS.set(bits);
    let (slots, mut random) = (slots(EPOCH), Random::new(SEED));
    let hits = (0..GUESSES)
        .filter(|_| {
            let (flow, client_isn) = (flow(&mut random), random.word() as u32);
            let (cookie, tsecr) = guess(&mut random);
            validate(&slots, clock, strictness, &flow, client_isn, cookie, tsecr).is_some()
        })
        .count();
    BITS.set(u64::MAX);
    hits as f64 / f64::from(GUESSES)
}

/// Five standard deviations: the same guesses are made every time, but they are as good as any.
fn assert_rate(measured: f64, computed: f64, what: &str) {
    let deviation = (computed * (1.0 - computed) / f64::from(GUESSES)).sqrt();
    assert!(
        (measured - computed).abs() < 5.0 * deviation,
        "{what}: measured {measured:.3e}, computed {computed:.3e} ± {deviation:.1e}"
    );
}

fn v4(random: &mut Random) -> FlowKey<V4> {
    let word = random.word().to_ne_bytes();
    FlowKey { peer: V4([word[0], word[1], word[2], word[3]]), peer_port: [word[4], word[5]], ..FLOW_V4 }
}

fn v6(random: &mut Random) -> FlowKey<V6> {
    let mut flow = FLOW_V6;
    flow.peer.0[8..].copy_from_slice(&random.word().to_ne_bytes());
    flow
}

/// A guess in a layout without timestamps, with any option bits and either epoch bit.
fn bare_guess(bits: u64, strict: bool) -> impl Fn(&mut Random) -> (u32, Option<u32>) {
    let free = bare::mac(strict).put(bits as u32) | !bare::mac(strict).mask();
    move |random| (random.word() as u32 & free, None)
}

/// A guess in the layout with timestamps; with `epoch` in its two bits, or with anything there.
fn stamped_guess(bits: u64, epoch: Option<u32>) -> impl Fn(&mut Random) -> (u32, Option<u32>) {
    let free = stamped::MAC.put((bits >> 32) as u32) | !stamped::MAC.mask();
    move |random| {
        let tsecr = random.word() as u32 & free;
        let tsecr = epoch.map_or(tsecr, |epoch| tsecr & !stamped::EPOCH.mask() | stamped::EPOCH.put(epoch));
        (random.word() as u32 & bits as u32, Some(tsecr))
    }
}

/// The fraction of guesses that hit a MAC of so many bits.
fn odds(bits: u32) -> f64 {
    (-f64::from(bits)).exp2()
}

#[test]
fn a_guess_without_timestamps_is_accepted_once_in_two_to_the_bits_of_its_mac() {
    for (width, strict) in
        [(4, false), (7, false), (10, false), (12, false), (4, true), (9, true), (12, true)]
    {
        let bits = (1 << width) - 1;
        let strictness = if strict { Strictness::ALWAYS } else { Strictness::NEVER };
        let guess = || bare_guess(bits, strict);
        for second_half in [false, true] {
            let clock = xdp(EPOCH, second_half);
            assert_rate(measured(v4, bits, (&clock, strictness), guess()), odds(width), "IPv4, XDP");
            assert_rate(measured(v6, bits, (&clock, strictness), guess()), odds(width), "IPv6, XDP");
        }
        // The stack tries a second epoch. What reaches it has passed XDP.
        let stack = Clock { extra: 1, ..xdp(EPOCH, false) };
        let either = 1.0 - (1.0 - odds(width)).powi(2);
        assert_rate(measured(v4, bits, (&stack, strictness), guess()), either, "IPv4, stack");
    }
    assert_eq!((bare::mac(false).width, bare::mac(true).width), (25, 29), "the odds that are stated");
}

/// While an epoch that was not strict is accepted beside one that is, a guess for either has the odds of that one alone: no
/// guess is tried as both. The bits that only the strict MAC has are known to be zero, or not guessed at all.
#[test]
fn a_service_that_becomes_strict_lets_no_guess_count_twice() {
    const LOW: u32 = 6;
    let bits = ((1 << LOW) - 1) | (0b1111 << 25);
    let clock = xdp(EPOCH, false);
    let entered = Strictness::NEVER.with(EPOCH, true).with(EPOCH + 1, true);
    let guess_for = |epoch: u32| {
        let guess = bare_guess(bits, true);
        move |random: &mut Random| {
            let (cookie, tsecr) = guess(random);
            (cookie & !bare::EPOCH.mask() | bare::EPOCH.put(epoch), tsecr)
        }
    };
    let rate = |epoch| measured(v4, bits, (&clock, entered), guess_for(epoch));
    assert_rate(rate(EPOCH - 1), odds(LOW), "the epoch that was not strict");
    assert_rate(rate(EPOCH), odds(LOW + 4), "the strict one");
    let second_half = xdp(EPOCH, true);
    for epoch in [EPOCH, EPOCH + 1] {
        let rate = measured(v6, bits, (&second_half, entered), guess_for(epoch));
        assert_rate(rate, odds(LOW + 4), "one and a half periods after");
    }
}

#[test]
fn a_guess_with_timestamps_is_accepted_once_in_two_to_the_bits_of_its_mac() {
    let clock = xdp(EPOCH, false);
    for (in_isn, in_tsval) in [(4, 0), (0, 5), (3, 4), (7, 5)] {
        let bits = ((1 << in_tsval) - 1) << 32 | ((1 << in_isn) - 1);
        let one = odds(in_isn + in_tsval);
        for epoch in [EPOCH - 1, EPOCH, EPOCH + 1] {
            let guess = || stamped_guess(bits, Some(epoch));
            assert_rate(
                measured(v4, bits, (&clock, Strictness::ALWAYS), guess()),
                one,
                "IPv4, an epoch that counts",
            );
            assert_rate(
                measured(v6, bits, (&clock, Strictness::NEVER), guess()),
                one,
                "IPv6, an epoch that counts",
            );
        }
        assert_eq!(
            measured(v4, bits, (&clock, Strictness::NEVER), stamped_guess(bits, Some(EPOCH + 2))),
            0.0,
            "one that does not"
        );
        let careless = measured(v4, bits, (&clock, Strictness::NEVER), stamped_guess(bits, None));
        assert_rate(careless, 0.75 * one, "three epochs of four count");
        let stack = Clock { extra: 1, ..clock };
        let stack = measured(v4, bits, (&stack, Strictness::NEVER), stamped_guess(bits, None));
        assert_rate(stack, one, "the stack takes the fourth too");
    }
    assert_eq!(32 + stamped::MAC.width, 37, "the odds that are stated");
}

/// Every bit of a real cookie's MAC is compared: with all but one of them right, it is refused.
#[test]
fn no_bit_of_the_mac_is_left_out() {
    let (slots, clock, mut random) = (slots(EPOCH), xdp(EPOCH, false), Random::new(SEED));
    for _ in 0..200 {
        let flow = v6(&mut random);
        for (syn, strictness) in layouts() {
            let cookie = encode(slots.slot(EPOCH).unwrap(), strictness, &flow, ISN, &syn, random.word());
            let accepts = |isn, tsval| validate(&slots, &clock, strictness, &flow, ISN, isn, tsval).is_some();
            let (isn_bits, tsval_bits) = match cookie.tsval {
                Some(_) => (32, stamped::MAC.width),
                None => (bare::mac(cookie.strict).width, 0),
            };
            for bit in 0..isn_bits {
                assert!(!accepts(cookie.isn ^ 1 << bit, cookie.tsval), "ISN bit {bit}");
            }
            for bit in 0..tsval_bits {
                assert!(!accepts(cookie.isn, cookie.tsval.map(|tsval| tsval ^ 1 << bit)), "TSval bit {bit}");
            }
        }
    }
}
