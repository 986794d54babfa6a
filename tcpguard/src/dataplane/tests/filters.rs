use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tcpguard_common::filter::{
    BANKS, FilterRule, HEADS, HIT_BLOCKS, HITS_PER_BLOCK, Head, LISTED_V4, LISTED_V6, MAX_FILTERS, RULES,
    SECOND_BANK,
};
use tcpguard_common::map::{ABI_VERSION, Settings, name};

use super::{Sandbox, bpf, with_veth};
use crate::config::{Action, Filter};
use crate::dataplane::{Dataplane, FilterEntry};

fn entry(line: &str, expires: u64) -> FilterEntry {
    let Filter { prefix, action, .. } = Filter::parse(line, None).unwrap();
    FilterEntry { prefix, action, expires }
}

/// A map, to look at what XDP sees.
fn map<V: aya::Pod>(dataplane: &Dataplane, name: &str) -> bpf::Map<u32, V> {
    // SAFETY: callers name the value's type as the layouts do.
    unsafe { bpf::Map::from_fd(bpf::get(&dataplane.pins.join(name)).unwrap()) }
}

/// Does what XDP does when it counts: on the first CPU, in place of a whole block.
fn hit(dataplane: &Dataplane, bank: u32, rule: u32, count: u64) {
    type Block = [u64; HITS_PER_BLOCK as usize];
    let fd = bpf::get(&dataplane.pins.join(name::FILTER_HITS)).unwrap();
    let data = aya::maps::MapData::from_fd(fd).unwrap();
    let mut hits: aya::maps::PerCpuArray<_, Block> = aya::maps::Map::PerCpuArray(data).try_into().unwrap();
    let index = bank * HIT_BLOCKS + rule / HITS_PER_BLOCK;
    let mut blocks = hits.get(&index, 0).unwrap().to_vec();
    blocks[0][(rule % HITS_PER_BLOCK) as usize] += count;
    hits.set(index, aya::maps::PerCpuValues::try_from(blocks).unwrap(), 0).unwrap();
}

#[test]
fn a_list_comes_into_the_other_bank_and_one_word_puts_it_in_force() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let dataplane = Dataplane::load(&sandbox.options).unwrap();
        let settings = Settings { abi: ABI_VERSION, generation: 3, ..Settings::default() };
        dataplane.write_settings(&settings).unwrap();
        let mut filters = dataplane.filters().unwrap();
        let word = || dataplane.settings().unwrap().filters;
        assert_eq!(word(), 0);
        filters.replace([entry("deny 10.0.0.0/8", 0), entry("allow 10.1.2.3", 99)]).unwrap();
        assert_eq!(word(), SECOND_BANK | LISTED_V4);
        let rules = map::<FilterRule>(&dataplane, name::FILTER_RULES);
        let rule = |index| rules.lookup(&index).unwrap().unwrap();
        assert_eq!(rule(RULES + 1), FilterRule { expires: 0, action: 0, next: 0 });
        assert_eq!(rule(RULES + 2), FilterRule { expires: 99, action: 1, next: 1 });
        let heads = map::<Head>(&dataplane, name::FILTER_HEADS_V4);
        let head = |index| heads.lookup(&index).unwrap().unwrap();
        assert_eq!(head(HEADS + (10 << 8)), Head { first: 1, spans: 0 });
        assert_eq!(head(HEADS + (10 << 8 | 1)).spans, 3);
        assert_eq!(head(10 << 8), Head::default(), "the bank that was in force");

        filters.replace([entry("deny 2001:db8::/32", 0)]).unwrap();
        assert_eq!(word(), LISTED_V6);
        // What the guard writes leaves the word alone.
        dataplane.write_settings(&Settings { generation: 4, ..settings }).unwrap();
        assert_eq!((word(), dataplane.settings().unwrap().generation), (LISTED_V6, 4));
        drop(filters);
        dataplane.leave();

        let dataplane = Dataplane::load(&sandbox.options).unwrap();
        dataplane.write_settings(&settings).unwrap();
        assert_eq!(
            dataplane.settings().unwrap().filters,
            LISTED_V6,
            "a previous daemon's list stays in force"
        );
        let mut filters = dataplane.filters().unwrap();
        assert_eq!(filters.entries().len(), 0, "and unknown");
        filters.replace([]).unwrap();
        assert_eq!(dataplane.settings().unwrap().filters, SECOND_BANK);
        dataplane.detach().unwrap();
    });
}

#[test]
fn an_entry_that_stays_keeps_its_hits_and_a_new_one_starts_at_zero() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let dataplane = Dataplane::load(&sandbox.options).unwrap();
        let mut filters = dataplane.filters().unwrap();
        let (a, b, c) =
            (entry("deny 10.0.0.0/8", 0), entry("deny 11.0.0.0/8", 0), entry("allow 9.0.0.0/8", 0));
        filters.replace([a, b]).unwrap();
        assert_eq!(filters.hits().unwrap(), [0, 0]);
        hit(&dataplane, 1, 1, 5);
        hit(&dataplane, 1, 2, 7);
        assert_eq!(filters.hits().unwrap(), [5, 7]);
        filters.replace([b, c]).unwrap();
        assert_eq!(filters.entries().copied().collect::<Vec<_>>(), [c, b]);
        assert_eq!(filters.hits().unwrap(), [0, 7]);
        hit(&dataplane, 0, 1, 1);
        hit(&dataplane, 0, 2, 1);
        assert_eq!(filters.hits().unwrap(), [1, 8]);
        // Back in a bank whose counters have counted: they go on from there, the entries do not.
        filters.replace([a, b, c]).unwrap();
        assert_eq!(filters.hits().unwrap(), [1, 0, 8]);
        // What was turned round is another entry.
        filters.replace([FilterEntry { action: Action::Allow, ..b }]).unwrap();
        assert_eq!(filters.hits().unwrap(), [0]);
        dataplane.detach().unwrap();
    });
}

#[test]
fn the_longest_list_fits_with_its_last_rule_counted() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let dataplane = Dataplane::load(&sandbox.options).unwrap();
        let mut filters = dataplane.filters().unwrap();
        let host = |number: u32| match number % 2 {
            0 => IpAddr::V4(Ipv4Addr::from_bits(number << 4)),
            _ => IpAddr::V6(Ipv6Addr::from_bits(u128::from(number) << 4)),
        };
        for _ in 0..BANKS {
            let all = (0..MAX_FILTERS).map(|number| entry(&format!("deny {}", host(number)), 0));
            filters.replace(all).unwrap();
        }
        assert_eq!(dataplane.settings().unwrap().filters, LISTED_V4 | LISTED_V6);
        hit(&dataplane, 0, MAX_FILTERS, 3);
        let hits = filters.hits().unwrap();
        assert_eq!((hits.len(), hits[MAX_FILTERS as usize - 1]), (MAX_FILTERS as usize, 3));
        assert_eq!(hits.iter().sum::<u64>(), 3);
        dataplane.detach().unwrap();
    });
}
