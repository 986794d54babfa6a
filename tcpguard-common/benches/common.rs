//! Micro-benchmarks for developers: what the parts of the decision take on this machine's CPU, one by one. What they take in
//! the kernel, where the compiler is another one, is what `cargo xtask bench program` measures.

use std::hint::black_box;

use divan::Bencher;
use divan::counter::BytesCount;
use tcpguard_common::cookie::{Advertised, Clock, Strictness, SynOptions, encode, validate};
use tcpguard_common::decision::filter::{Listed, Rules, Spans, look_up};
use tcpguard_common::filter::{DENY, Entry, FilterRule, Head, LISTED_V4, Line, MAX_FILTERS, SpanV4};
use tcpguard_common::flow::{FlowKey, V4};
use tcpguard_common::known::{Bucket, Place};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{Buffer, Flags, Options, Vlan, checksum, parse};
use tcpguard_common::seq::Seq;
use tcpguard_common::sketch::{Rate, Sketch, WORDS};

const EPOCH: u32 = 1000;
const ISN: u32 = 0x1000_0000;
const KEY: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];
const ADVERTISED: Advertised = Advertised { mss_v4: 1460, mss_v6: 1440, window: 64_240, window_scale: 7 };

fn main() {
    divan::main();
}

fn slot() -> EpochSlot {
    EpochSlot::derive([1, 2], EPOCH, &ADVERTISED).expect("a secret that is not zero")
}

fn flow(number: u32) -> FlowKey<V4> {
    FlowKey {
        peer: V4(number.to_be_bytes()),
        local: V4([192, 0, 2, 1]),
        peer_port: [0xc0, 0],
        local_port: [0, 80],
    }
}

fn offer(timestamps: bool) -> SynOptions {
    SynOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: timestamps.then_some(5000),
        ecn: false,
    }
}

/// The frame of a SYN as Linux sends it, with so many bytes of data.
fn syn(data: usize) -> Vec<u8> {
    let FlowKey { peer, local, peer_port, local_port } = flow(0x0a00_0001);
    let options = Options {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some((5000, 0)),
        ..Options::default()
    };
    let headers = Headers {
        link: Link { dst: [2, 0, 0, 0, 0, 1], src: [2, 0, 0, 0, 0, 2], vlan: Vlan::default() },
        src: peer,
        dst: local,
        ecn: 0,
        src_port: peer_port,
        dst_port: local_port,
        seq: Seq(ISN),
        ack: Seq(0),
        flags: Flags::SYN,
        window: 64_240,
        options,
    };
    let len = headers.len() + data;
    let mut frame = vec![0; len];
    headers.write(&mut Buffer::new(&mut frame, len), data, 0).expect("room for the headers");
    frame
}

#[divan::bench(args = [true, false])]
fn cookie_encode(bencher: Bencher<'_, '_>, timestamps: bool) {
    let (slot, flow, offer) = (slot(), flow(7), offer(timestamps));
    bencher
        .bench(|| encode(black_box(&slot), Strictness::NEVER, black_box(&flow), ISN, black_box(&offer), 0));
}

#[divan::bench(args = [true, false])]
fn cookie_validate(bencher: Bencher<'_, '_>, timestamps: bool) {
    let (slot, flow) = (slot(), flow(7));
    let cookie = encode(&slot, Strictness::NEVER, &flow, ISN, &offer(timestamps), 0);
    let mut slots = [EpochSlot::default(); EPOCH_SLOTS as usize];
    slots[(EPOCH % EPOCH_SLOTS) as usize] = slot;
    let clock = Clock { epoch: EPOCH, second_half: false, extra: 0 };
    let check = |isn| validate(&slots, &clock, Strictness::NEVER, &flow, ISN, isn, cookie.tsval);
    assert!(check(cookie.isn).is_some(), "the cookie is ours");
    bencher.bench(|| check(black_box(cookie.isn)));
}

#[divan::bench]
fn parser(bencher: Bencher<'_, '_>) {
    let frame = syn(0);
    assert!(parse(&frame[..]).is_ok(), "a SYN");
    bencher.bench(|| parse(black_box(&frame[..])));
}

#[divan::bench(args = [20, 64, 1460])]
fn checksum_of(bencher: Bencher<'_, '_>, len: usize) {
    let bytes = vec![0x5a; len];
    bencher.counter(BytesCount::new(len)).bench(|| checksum::sum(black_box(&bytes)));
}

#[divan::bench]
fn known_flow_place(bencher: Bencher<'_, '_>) {
    let flow = flow(7);
    bencher.bench(|| Place::of(KEY, black_box(&flow)));
}

#[divan::bench]
fn known_flow_look_up(bencher: Bencher<'_, '_>) {
    let mut bucket = Bucket::default();
    let place = Place::of(KEY, &flow(7));
    bucket.enter(place.tag);
    bencher.bench(|| black_box(&bucket).presence(black_box(place.tag)));
}

/// A list of so many prefixes of 24 bits, each with a neighbour that is on no list.
struct List {
    line: Line<V4>,
    rules: Vec<FilterRule>,
}

impl List {
    fn new(prefixes: u32) -> Self {
        let entry = |rule| Entry { start: u128::from(Self::listed(rule)), len: 24, rule, expires: 0 };
        let entries: Vec<_> = (1..=prefixes).map(entry).collect();
        let rule = FilterRule { expires: 0, action: DENY, next: 0 };
        Self { line: Line::cut(&entries), rules: vec![rule; prefixes as usize + 1] }
    }

    /// An address of the prefix of this rule.
    fn listed(rule: u32) -> u32 {
        0x0a00_0000 + (rule << 9)
    }
}

impl Spans<V4> for List {
    fn head(&self, index: u32) -> Option<Head> {
        self.line.heads.get(index as usize).copied()
    }

    fn span(&self, index: u32) -> Option<&SpanV4> {
        self.line.spans.get(index as usize)
    }
}

impl Rules for List {
    fn rule(&self, index: u32) -> Option<&FilterRule> {
        self.rules.get(index as usize)
    }

    fn hit(&self, _bank: u32, rule: u32) {
        black_box(rule);
    }
}

#[divan::bench(args = [1, 1_000, MAX_FILTERS])]
fn filter_of_a_listed_source(bencher: Bencher<'_, '_>, prefixes: u32) {
    let list = List::new(prefixes);
    let source = V4(List::listed(prefixes / 2 + 1).to_be_bytes());
    let look_up = |source| look_up(&list, LISTED_V4, source, 1);
    assert_eq!(look_up(source), Listed::Denied);
    bencher.bench(|| look_up(black_box(source)));
}

#[divan::bench(args = [1, 1_000, MAX_FILTERS])]
fn filter_of_a_source_beside_it(bencher: Bencher<'_, '_>, prefixes: u32) {
    let list = List::new(prefixes);
    let source = V4((List::listed(prefixes / 2 + 1) + 0x100).to_be_bytes());
    let look_up = |source| look_up(&list, LISTED_V4, source, 1);
    assert_eq!(look_up(source), Listed::Nowhere);
    bencher.bench(|| look_up(black_box(source)));
}

#[divan::bench]
fn budget_charge(bencher: Bencher<'_, '_>) {
    let sketch = Sketch::from_words([0; WORDS]);
    let rate = Rate::new(50_000, 50_000, 1);
    let mut now = 1_000_000_000u64;
    bencher.bench_local(|| {
        now += 100;
        sketch.charge(black_box(now.wrapping_mul(KEY[0])), &rate, now)
    });
}
