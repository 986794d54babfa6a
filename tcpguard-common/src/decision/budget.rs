//! What a prefix may be sent and what a flow may send: the reply budget, and the pace of flows under pressure.
//!
//! The reply budget: no prefix is sent more SYN-ACKs than a stated rate, whoever asks for them in its name. Sources that
//! showed a valid cookie not long ago are known to be there, and draw on a budget of their own once their prefix's is used
//! up. Neither costs an insertion: both are kept in a [`Sketch`], and the verified sources in a plain array.
//!
//! A first-time client inside a prefix that is being spoofed competes with the spoofer for the prefix's budget, and may
//! have to send its SYN more than once. Established flows and valid ACKs are never charged.
//!
//! The pace: while an engine's receive ring is more than half full, each flow may send it so many segments a second and no
//! more, so that whoever floods his own connection takes the ring from himself. It is kept in a sketch too, not with the
//! flow: an engine may replace that entry, and looking it up is what a machine under pressure has least time for.

use core::cell::Cell;

use crate::flow::Address;
use crate::hash;
use crate::map::{Limits, Settings, VERIFIED};
#[cfg(doc)]
use crate::packet::Family;
use crate::reason::Reason;
use crate::sketch::{Sketch, take};

/// What budgets remember, seen from one receive queue.
pub trait Ledger {
    /// The reply budgets' share of this queue.
    fn replies(&self) -> Option<&Sketch>;
    /// The token bucket of what stateful services leave to this queue's engine, or of what those in dry run would.
    fn stateful(&self, dry_run: bool) -> Option<&Cell<u64>>;
    /// The word in one of the [`VERIFIED`] places for verified sources; 0 when there is none.
    fn verified(&self, place: u32) -> u64;
    /// Replaces it.
    fn set_verified(&self, place: u32, word: u64);
    /// How fast flows send.
    fn paces(&self) -> Option<&Sketch>;
    /// How many ICMP errors there are about flows.
    fn complaints(&self) -> Option<&Sketch>;
}

/// Domains of [`hash::keyed`]; the family's version is added.
const REPLIES: u64 = 0x10;
const VERIFIED_REPLIES: u64 = 0x20;
const VERIFIED_SOURCE: u64 = 0x30;
/// Added to those of replies for services in dry run, whose SYNs use up nobody's budget but their own.
const DRY_RUN: u64 = 0x100;

/// Takes one SYN-ACK from the budget of the source's prefix.
#[inline(always)]
pub(super) fn charge_reply<A: Address, E: Ledger + ?Sized>(
    env: &E,
    settings: &Settings,
    source: A,
    now: u64,
    dry_run: bool,
) -> Result<(), Reason> {
    let limits = &settings.limits;
    if limits.replies.interval == 0 {
        return Ok(());
    }
    let Some(replies) = env.replies() else { return Ok(()) };
    if replies.charge(reply_hash(settings, source, dry_run), &limits.replies, now) {
        return Ok(());
    }
    let (place, fingerprint) = verified_place(settings, source);
    if !is_recent(env.verified(place), fingerprint, limits.verified_for, now) {
        return Err(Reason::ReplyBudget);
    }
    let rate = &limits.verified_replies;
    if rate.interval == 0 || replies.charge(verified_reply_hash(settings, source, dry_run), rate, now) {
        return Ok(());
    }
    Err(Reason::ReplyBudgetVerified)
}

/// Takes one segment from what the flow with this [hash](Family::hash_flow_fast) may send.
#[inline(always)]
pub(super) fn charge_flow<E: Ledger + ?Sized>(
    env: &E,
    settings: &Settings,
    flow: u64,
    now: u64,
) -> Result<(), Reason> {
    let rate = &settings.limits.flows;
    match env.paces() {
        Some(paces) if rate.interval != 0 && !paces.charge(flow, rate, now) => Err(Reason::FlowRate),
        _ => Ok(()),
    }
}

/// Whether the stack is to see one more segment that creates state in it.
#[inline(always)]
pub(super) fn charge_stateful<E: Ledger + ?Sized>(
    env: &E,
    settings: &Settings,
    now: u64,
    dry_run: bool,
) -> bool {
    let rate = &settings.limits.stateful;
    rate.interval != 0 && env.stateful(dry_run).is_some_and(|bucket| take(bucket, rate, now))
}

/// Remembers that the source showed a valid cookie. Another source may have to make way: it is then like one that was
/// never here.
#[inline(always)]
pub(super) fn note_verified<A: Address, E: Ledger + ?Sized>(
    env: &E,
    settings: &Settings,
    source: A,
    now: u64,
) {
    if settings.limits.replies.interval != 0 {
        let (place, fingerprint) = verified_place(settings, source);
        env.set_verified(place, verified_word(fingerprint, now));
    }
}

/// The hash under which the prefix of `source` is charged, for a SYN to a service in dry run or to another.
#[inline(always)]
pub fn reply_hash<A: Address>(settings: &Settings, source: A, dry_run: bool) -> u64 {
    let domain = REPLIES + u64::from(A::VERSION) + DRY_RUN * u64::from(dry_run);
    hash::keyed(settings.hash_key, domain, prefix(&settings.limits, source))
}

/// The hash under which the verified sources in the prefix of `source` are charged.
#[inline(always)]
pub fn verified_reply_hash<A: Address>(settings: &Settings, source: A, dry_run: bool) -> u64 {
    let domain = VERIFIED_REPLIES + u64::from(A::VERSION) + DRY_RUN * u64::from(dry_run);
    hash::keyed(settings.hash_key, domain, prefix(&settings.limits, source))
}

/// Where the word of a verified source lies, below [`VERIFIED`], and its fingerprint.
#[inline(always)]
pub fn verified_place<A: Address>(settings: &Settings, source: A) -> (u32, u32) {
    let hash = hash::keyed(settings.hash_key, VERIFIED_SOURCE + u64::from(A::VERSION), source.site());
    (hash as u32 % VERIFIED, (hash >> 32) as u32)
}

/// The word of a source that showed a valid cookie at `now`. Never 0.
#[inline(always)]
pub fn verified_word(fingerprint: u32, now: u64) -> u64 {
    u64::from(fingerprint) << 32 | u64::from(coarse(now).max(1))
}

/// Times of verified sources count in units of 2^30 ns, about a second.
#[inline(always)]
fn coarse(ns: u64) -> u32 {
    (ns >> 30) as u32
}

#[inline(always)]
fn is_recent(word: u64, fingerprint: u32, limit: u64, now: u64) -> bool {
    // Another CPU, whose clock is a tick ahead, may have written it.
    let age = coarse(now).saturating_sub(word as u32);
    word != 0 && (word >> 32) as u32 == fingerprint && u64::from(age) <= limit >> 30
}

#[inline(always)]
fn prefix<A: Address>(limits: &Limits, source: A) -> u64 {
    source.site() & if A::VERSION == 4 { limits.prefix_v4 } else { limits.prefix_v6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{V4, V6};

    const SECOND: u64 = 1_000_000_000;

    fn settings() -> Settings {
        let limits = Limits { prefix_v4: !0 << (64 - 24), prefix_v6: !0 << (64 - 56), ..Limits::default() };
        Settings { hash_key: [5, 6], limits, ..Settings::default() }
    }

    #[test]
    fn addresses_of_one_prefix_share_a_budget_and_those_of_two_do_not() {
        let settings = settings();
        let v4 =
            |addr| (reply_hash(&settings, V4(addr), false), verified_reply_hash(&settings, V4(addr), false));
        assert_eq!(v4([192, 0, 2, 1]), v4([192, 0, 2, 254]));
        assert_ne!(v4([192, 0, 2, 1]), v4([192, 0, 3, 1]));
        assert_ne!(v4([192, 0, 2, 1]).0, v4([192, 0, 2, 1]).1);
        let v6 = |seventh, last| {
            let mut addr = [0x20, 1, 0xd, 0xb8, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            (addr[6], addr[15]) = (seventh, last);
            reply_hash(&settings, V6(addr), false)
        };
        let mut eighth = [0x20, 1, 0xd, 0xb8, 0, 0, 7, 9, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(v6(7, 1), v6(7, 2));
        assert_eq!(v6(7, 1), reply_hash(&settings, V6(eighth), false));
        assert_ne!(v6(7, 1), v6(8, 1));
        // A host may have any address within its /64, and is verified with all of them.
        let first = verified_place(&settings, V6(eighth));
        eighth[15] = 77;
        assert_eq!(first, verified_place(&settings, V6(eighth)));
        eighth[7] = 77;
        assert_ne!(first, verified_place(&settings, V6(eighth)));
        assert_ne!(verified_place(&settings, V4([1, 2, 3, 4])), verified_place(&settings, V4([1, 2, 3, 5])));
    }

    #[test]
    fn a_source_is_verified_for_the_time_that_is_configured_and_nobody_else_is() {
        let (now, limit) = (5000 * SECOND, 600 * SECOND);
        let word = verified_word(77, now);
        assert!(is_recent(word, 77, limit, now));
        assert!(is_recent(word, 77, limit, now + 598 * SECOND));
        assert!(!is_recent(word, 77, limit, now + 602 * SECOND));
        assert!(!is_recent(word, 78, limit, now));
        assert!(!is_recent(0, 0, u64::MAX, 0), "an empty place is nobody's");
    }
}
