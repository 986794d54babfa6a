//! Whether a source is on the filter lists: the longest prefix that has not expired says. It reads tables that only the
//! daemon writes; no packet changes them, and counting is all that one leaves behind.

use crate::filter::{ALLOW, FilterRule, HEADS, Head, Point, RULES, SPANS, bank};

/// What the lists say about a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// Nothing.
    Nowhere,
    /// It is spared the budgets. It has to show a valid cookie like anybody.
    Allowed,
    /// It is to be dropped.
    Denied,
}

/// The tables of one family, both banks.
pub trait Spans<A: Point> {
    /// One head, by bank and first 16 bits.
    fn head(&self, index: u32) -> Option<Head>;
    /// One span.
    fn span(&self, index: u32) -> Option<&A::Span>;
}

/// What both families share.
pub trait Rules {
    /// One rule.
    fn rule(&self, index: u32) -> Option<&FilterRule>;
    /// Counts one hit of rule `rule` in `bank`.
    fn hit(&self, bank: u32, rule: u32);
}

/// Looks the source up. `filters` is [`Settings::filters`](crate::map::Settings::filters), read once.
#[inline(always)]
pub fn look_up<A, E>(env: &E, filters: u32, source: A, now: u64) -> Listed
where
    A: Point,
    E: Spans<A> + Rules + ?Sized,
{
    if filters & A::LISTED == 0 {
        return Listed::Nowhere;
    }
    match env.head(bank(filters) * HEADS + source.head()) {
        None | Some(Head { first: 0, spans: 0 }) => Listed::Nowhere,
        Some(head) => match longest(env, bank(filters), head, &source) {
            0 => Listed::Nowhere,
            rule => speak::<A, E>(env, bank(filters), rule, now),
        },
    }
}

/// The rule of the longest prefix around the source, or 0. Halves the head's spans until one is left; the bound is that of
/// the table, not of the head. Out of the way of everybody whose neighbours are not listed, and apart from what follows: BPF
/// has little stack left here.
#[inline(never)]
fn longest<A, E>(env: &E, bank: u32, head: Head, source: &A) -> u32
where
    A: Point,
    E: Spans<A> + ?Sized,
{
    if head.spans == 0 {
        return head.first;
    }
    let (mut at, mut left) = (bank * SPANS + head.first, head.spans);
    for _ in 0..=SPANS.ilog2() {
        if left <= 1 {
            break;
        }
        let half = left / 2;
        if env.span(at + half).is_some_and(|span| source.is_from(span)) {
            at += half;
        }
        left -= half;
    }
    env.span(at).map_or(0, A::rule)
}

/// The first rule that is alive. At most as many are nested as an address has bits, and one of no bits.
#[inline(never)]
fn speak<A, E>(env: &E, bank: u32, mut rule: u32, now: u64) -> Listed
where
    A: Point,
    E: Rules + ?Sized,
{
    for _ in 0..=A::BITS {
        if rule == 0 {
            break;
        }
        let Some(said) = env.rule(bank * RULES + rule) else { break };
        if said.is_alive(now) {
            env.hit(bank, rule);
            return if said.action == ALLOW { Listed::Allowed } else { Listed::Denied };
        }
        rule = said.next;
    }
    Listed::Nowhere
}

#[cfg(test)]
mod tests;
