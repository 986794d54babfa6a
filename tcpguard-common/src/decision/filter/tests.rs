//! The search against a list that is simply walked, and what happens at every edge.

use std::cell::RefCell;
use std::vec;
use std::vec::Vec;

use super::{Listed, Rules, Spans, look_up};
use crate::filter::{
    ALLOW, DENY, Entry, FilterRule, HEADS, Head, LISTED_V4, LISTED_V6, Line, MAX_FILTERS, Point, RULES,
    SECOND_BANK, SPANS,
};
use crate::flow::{V4, V6};
use proptest::prelude::*;

/// One prefix with what it says.
#[derive(Clone, Copy, Debug)]
struct Filter<A> {
    addr: A,
    len: u8,
    action: u32,
    expires: u64,
}

/// A list in the first bank, or the second; the other holds nothing.
struct List<A: Point> {
    filters: Vec<Filter<A>>,
    second: bool,
    line: Line<A>,
    rules: Vec<FilterRule>,
    hits: RefCell<Vec<u32>>,
}

impl<A: Wild> List<A> {
    /// Sorted, and the first of several equal prefixes counts.
    fn new(filters: &[Filter<A>], second: bool) -> Self {
        let masked = |filter: &Filter<A>| Filter {
            addr: A::from(filter.addr.number() & mask::<A>(filter.len)),
            ..*filter
        };
        let mut filters: Vec<_> = filters.iter().map(masked).collect();
        filters.sort_by_key(|filter| (filter.addr.number(), filter.len));
        filters.dedup_by_key(|filter| (filter.addr.number(), filter.len));
        let entry = |(rule, filter): (u32, &Filter<A>)| {
            let Filter { addr, len, expires, action: _ } = *filter;
            let start = addr.number();
            Entry { start, len, rule, expires }
        };
        let entries: Vec<_> = (1..).zip(&filters).map(entry).collect();
        let line = Line::cut(&entries);
        assert_eq!(line.heads.len(), HEADS as usize);
        assert!(line.spans.len() <= 2 * filters.len() + 1);
        let rule = |(filter, &next): (&Filter<A>, &u32)| {
            let Filter { action, expires, addr: _, len: _ } = *filter;
            FilterRule { expires, action, next }
        };
        let rules = filters.iter().zip(&line.next).map(rule).collect();
        let hits = RefCell::new(vec![0; filters.len() + 1]);
        Self { filters, second, line, rules, hits }
    }

    fn look_up(&self, source: A, now: u64) -> Listed {
        let bank = if self.second { SECOND_BANK } else { 0 };
        look_up(self, A::LISTED | bank, source, now)
    }

    /// What the list says, found the slow way, and which rule says it.
    fn walk(&self, source: A, now: u64) -> (Listed, Option<usize>) {
        let covers =
            |filter: &Filter<A>| (filter.addr.number() ^ source.number()) & mask::<A>(filter.len) == 0;
        let alive = |filter: &Filter<A>| filter.expires == 0 || now < filter.expires;
        let longest = (1..).zip(&self.filters).filter(|(_, filter)| covers(filter) && alive(filter));
        match longest.max_by_key(|(_, filter)| filter.len) {
            None => (Listed::Nowhere, None),
            Some((rule, Filter { action: ALLOW, .. })) => (Listed::Allowed, Some(rule)),
            Some((rule, _)) => (Listed::Denied, Some(rule)),
        }
    }

    /// Both ways, and the hit.
    fn compare(&self, source: A, now: u64) -> Listed {
        let before = self.hits.borrow().clone();
        let said = self.look_up(source, now);
        let (expected, rule) = self.walk(source, now);
        assert_eq!(said, expected, "{source:?} at {now}");
        let mut after = before;
        if let Some(rule) = rule {
            after[rule] += 1;
        }
        assert_eq!(*self.hits.borrow(), after, "{source:?} at {now}");
        said
    }
}

fn mask<A: Point>(len: u8) -> u128 {
    u128::MAX.checked_shl(u32::from(A::BITS - len)).unwrap_or(0)
}

/// Addresses by number.
trait Wild: Point + From<u128> {
    fn number(self) -> u128;
}

impl Wild for V4 {
    fn number(self) -> u128 {
        u32::from_be_bytes(self.0).into()
    }
}

impl From<u128> for V4 {
    fn from(number: u128) -> Self {
        Self((number as u32).to_be_bytes())
    }
}

impl Wild for V6 {
    fn number(self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

impl From<u128> for V6 {
    fn from(number: u128) -> Self {
        Self(number.to_be_bytes())
    }
}

impl<A: Point> Spans<A> for List<A> {
    fn head(&self, index: u32) -> Option<Head> {
        self.line.heads.get(index.checked_sub(HEADS * u32::from(self.second))? as usize).copied()
    }

    fn span(&self, index: u32) -> Option<&A::Span> {
        self.line.spans.get(index.checked_sub(SPANS * u32::from(self.second))? as usize)
    }
}

impl<A: Point> Rules for List<A> {
    fn rule(&self, index: u32) -> Option<&FilterRule> {
        self.rules.get(index.checked_sub(RULES * u32::from(self.second) + 1)? as usize)
    }

    fn hit(&self, bank: u32, rule: u32) {
        assert_eq!(bank, u32::from(self.second));
        self.hits.borrow_mut()[rule as usize] += 1;
    }
}

fn v4(addr: [u8; 4], len: u8, action: u32, expires: u64) -> Filter<V4> {
    Filter { addr: V4(addr), len, action, expires }
}

#[test]
fn the_longest_prefix_speaks_and_behind_it_the_one_around_it() {
    let list = List::new(
        &[
            v4([10, 0, 0, 0], 8, DENY, 0),
            v4([10, 1, 0, 0], 16, ALLOW, 0),
            v4([10, 1, 2, 0], 24, DENY, 0),
            v4([10, 1, 2, 255], 32, ALLOW, 0),
            v4([255, 255, 255, 255], 32, DENY, 0),
            v4([0, 0, 0, 0], 32, ALLOW, 0),
        ],
        false,
    );
    for (source, listed) in [
        ([9, 255, 255, 255], Listed::Nowhere),
        ([10, 0, 0, 0], Listed::Denied),
        ([10, 0, 255, 255], Listed::Denied),
        ([10, 1, 0, 0], Listed::Allowed),
        ([10, 1, 1, 255], Listed::Allowed),
        ([10, 1, 2, 0], Listed::Denied),
        ([10, 1, 2, 254], Listed::Denied),
        ([10, 1, 2, 255], Listed::Allowed),
        ([10, 1, 3, 0], Listed::Allowed),
        ([10, 1, 255, 255], Listed::Allowed),
        ([10, 2, 0, 0], Listed::Denied),
        ([10, 255, 255, 255], Listed::Denied),
        ([11, 0, 0, 0], Listed::Nowhere),
        ([0, 0, 0, 0], Listed::Allowed),
        ([0, 0, 0, 1], Listed::Nowhere),
        ([255, 255, 255, 254], Listed::Nowhere),
        ([255, 255, 255, 255], Listed::Denied),
    ] {
        assert_eq!(list.compare(V4(source), 0), listed, "{source:?}");
    }
}

#[test]
fn a_prefix_says_nothing_from_its_expiry_on_and_the_one_around_it_speaks_again() {
    let list = List::new(
        &[
            v4([10, 0, 0, 0], 8, DENY, 0),
            v4([10, 1, 0, 0], 16, ALLOW, 50),
            v4([10, 1, 2, 0], 24, DENY, 50),
            v4([10, 1, 2, 3], 32, ALLOW, 100),
            v4([11, 0, 0, 0], 8, DENY, 100),
        ],
        true,
    );
    for (source, now, listed) in [
        ([10, 1, 2, 3], 99, Listed::Allowed),
        ([10, 1, 2, 3], 100, Listed::Denied),
        ([10, 1, 2, 4], 49, Listed::Denied),
        ([10, 1, 2, 4], 50, Listed::Denied),
        ([10, 1, 3, 4], 49, Listed::Allowed),
        ([10, 1, 3, 4], 50, Listed::Denied),
        ([11, 0, 0, 1], 99, Listed::Denied),
        ([11, 0, 0, 1], 100, Listed::Nowhere),
        ([11, 0, 0, 1], 101, Listed::Nowhere),
    ] {
        assert_eq!(list.compare(V4(source), now), listed, "{source:?} at {now}");
    }
}

#[test]
fn an_empty_list_reads_no_table() {
    /// Has no tables.
    struct Nothing;

    impl<A: Point> Spans<A> for Nothing {
        fn head(&self, _: u32) -> Option<Head> {
            panic!("read a head")
        }

        fn span(&self, _: u32) -> Option<&A::Span> {
            panic!("read a span")
        }
    }

    impl Rules for Nothing {
        fn rule(&self, _: u32) -> Option<&FilterRule> {
            panic!("read a rule")
        }

        fn hit(&self, _: u32, _: u32) {
            panic!("counted")
        }
    }

    for filters in [0, SECOND_BANK, LISTED_V6, SECOND_BANK | LISTED_V6] {
        assert_eq!(look_up(&Nothing, filters, V4([10, 0, 0, 1]), 1), Listed::Nowhere);
    }
    for filters in [0, SECOND_BANK, LISTED_V4, SECOND_BANK | LISTED_V4] {
        assert_eq!(look_up(&Nothing, filters, V6([7; 16]), 1), Listed::Nowhere);
    }
}

#[test]
fn every_nesting_and_a_full_table_are_searched_to_the_end() {
    // As deep as prefixes go, and all but the widest expired.
    let nested: Vec<_> = (0..=128)
        .map(|len| Filter {
            addr: V6([0xff; 16]),
            len,
            action: DENY,
            expires: if len == 0 { 0 } else { u64::from(len) },
        })
        .collect();
    let list = List::new(&nested, false);
    for now in [0, 1, 2, 64, 127, 128, 129] {
        assert_eq!(list.compare(V6([0xff; 16]), now), Listed::Denied);
    }
    let mut falling = nested;
    for filter in &mut falling {
        filter.expires = 200 - u64::from(filter.len);
    }
    let list = List::new(&falling, false);
    for now in [71, 72, 73, 199] {
        assert_eq!(list.compare(V6([0xff; 16]), now), Listed::Denied);
    }
    assert_eq!(list.compare(V6([0xff; 16]), 200), Listed::Nowhere);

    // As many spans in one head as can be.
    let every_other = |host: u32| Filter {
        addr: V6::from(0x2001_u128 << 112 | u128::from(host) << 1),
        len: 128,
        action: DENY,
        expires: 0,
    };
    let full: Vec<_> = (0..MAX_FILTERS).map(every_other).collect();
    let list = List::new(&full, true);
    assert_eq!(list.line.spans.len(), SPANS as usize);
    for host in (0..MAX_FILTERS).step_by(997).chain([0, 1, MAX_FILTERS - 1]) {
        let listed = every_other(host).addr;
        assert_eq!(list.look_up(listed, 0), Listed::Denied);
        assert_eq!(list.look_up(V6::from(listed.number() + 1), 0), Listed::Nowhere);
    }
}

/// Prefixes that are often near each other, and now and then anywhere.
fn prefixes<A: Wild>() -> impl Strategy<Value = Vec<Filter<A>>> {
    let near = (0u128..1 << 10).prop_map(|low| low << (A::BITS - 18));
    let low = (0u128..16).prop_map(|low| 3u128 << (A::BITS - 16) | low);
    let addr = prop_oneof![near, low, any::<u128>()];
    let filter = (addr, 0..=A::BITS, 0u32..2, prop_oneof![Just(0u64), 1u64..8]);
    let filter =
        filter.prop_map(|(addr, len, action, expires)| Filter { addr: A::from(addr), len, action, expires });
    prop::collection::vec(filter, 0..40)
}

/// Around every edge of every prefix, at every time that something happens.
fn agrees<A: Wild>(filters: &[Filter<A>], second: bool) {
    let list = List::new(filters, second);
    for filter in &list.filters {
        let (first, hosts) = (filter.addr.number(), !mask::<A>(filter.len));
        let last = first | hosts;
        for edge in [
            first.wrapping_sub(1),
            first,
            first.wrapping_add(1),
            last.wrapping_sub(1),
            last,
            last.wrapping_add(1),
        ] {
            for now in [0, filter.expires.saturating_sub(1), filter.expires, 7, 8] {
                list.compare(A::from(edge), now);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_list_says_what_walking_it_says(
        four in prefixes::<V4>(), six in prefixes::<V6>(), second: bool, anywhere: [u128; 8],
    ) {
        agrees(&four, second);
        agrees(&six, second);
        let (four, six) = (List::new(&four, second), List::new(&six, second));
        for number in anywhere {
            four.compare(V4::from(number), 3);
            six.compare(V6::from(number), 3);
        }
    }
}
