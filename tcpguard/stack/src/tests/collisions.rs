//! Whoever chooses addresses and ports cannot choose where their flows lie in the table that finds connections, so as to have
//! every segment search long: not without the key.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tcpguard_common::flow::AnyFlowKey;

use super::Rng;
use crate::table::Index;
use crate::wire::hash;

/// Flows of each attempt. With so many the index is half full, and a search that succeeds passes half a flow on average
/// where chance alone decides.
const FLOWS: u32 = 1 << 15;

fn v4(address: u32, port: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from(address).into(), port as u16)
}

fn v6(prefix: u64, interface: u64, port: u32) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(u128::from(prefix) << 64 | u128::from(interface)).into(), port as u16)
}

fn flow(peer: SocketAddr) -> AnyFlowKey {
    let local = if peer.is_ipv4() { v4(0xc000_0201, 443) } else { v6(0xfd00 << 48, 1, 443) };
    AnyFlowKey::new(peer, local).expect("one family")
}

/// The `n`th peer of an attempt.
type Attempt = fn(n: u32) -> SocketAddr;

const ATTEMPTS: [(&str, Attempt); 11] = [
    ("all ports of one address", |n| v4(0x0a00_0001, n)),
    ("every second port of two addresses", |n| v4(0x0a00_0001 + (n & 1), n << 1)),
    ("one address after the other", |n| v4(0x0a00_0000 + n, 77)),
    ("addresses that differ in their first bits", |n| v4(n << 17 | 1, 77)),
    ("addresses and ports with the same sum", |n| v4(0x0a00_0000 + n, FLOWS - n)),
    ("addresses and ports with the same difference", |n| v4(0x0a00_0000 ^ n.swap_bytes(), n)),
    ("addresses that end as their ports do", |n| v4(n << 16 | n, n)),
    ("the interfaces of one prefix", |n| v6(0x2001_0db8 << 32, n.into(), 77)),
    ("the prefixes of one interface", |n| v6(0x2001_0db8 << 32 | u64::from(n), 1, 77)),
    ("prefixes and interfaces with the same sum", |n| v6(1 << 63 | u64::from(n), u64::from(FLOWS - n), 77)),
    ("prefixes that are their interfaces", |n| v6(u64::from(n) << 32 | 1, u64::from(n) << 32 | 1, 77)),
];

/// How many places a search for one of these flows passes: on average, and at most.
fn passed(key: [u64; 2], peers: &[SocketAddr]) -> (f64, usize) {
    let hashes: Vec<u64> = peers.iter().map(|&peer| hash(key, &flow(peer))).collect();
    let mut index = Index::new();
    for (number, &hash) in (0..).zip(&hashes) {
        index.insert(hash, number);
    }
    let distances = (0..).zip(&hashes).map(|(number, &hash)| index.distance(hash, number).expect("there"));
    let (sum, most) = distances.fold((0, 0), |(sum, most), passed| (sum + passed, most.max(passed)));
    (sum as f64 / hashes.len() as f64, most)
}

fn key(rng: &mut Rng) -> [u64; 2] {
    [rng.next(), rng.next()]
}

#[test]
fn flows_that_look_alike_lie_as_far_apart_as_any_others() {
    let mut rng = Rng(1);
    for (name, attempt) in ATTEMPTS {
        let peers: Vec<SocketAddr> = (0..FLOWS).map(attempt).collect();
        for _ in 0..8 {
            let key = key(&mut rng);
            let (average, most) = passed(key, &peers);
            assert!(
                average < 1.0 && most < 100,
                "{name}: {average} on average, {most} at most, with {key:x?}"
            );
        }
    }
}

#[test]
fn flows_that_collide_under_one_key_do_not_under_another() {
    let attempts: [Attempt; 2] =
        [|n| v4(n.wrapping_mul(0x9e37_79b9), n >> 4), |n| v6(n.into(), u64::from(n) << 13, n)];
    let mut rng = Rng(2);
    for attempt in attempts {
        let known = key(&mut rng);
        let crowded = |peer: &SocketAddr| hash(known, &flow(*peer)) as u32 & 0xffff < 64;
        let chosen: Vec<SocketAddr> = (0..1 << 20).map(attempt).filter(crowded).collect();
        assert!(chosen.len() > 500, "{} of a million", chosen.len());
        let (average, _) = passed(known, &chosen);
        assert!(average > 100.0, "whoever knows the key chooses places: {average}");
        for _ in 0..8 {
            let (average, most) = passed(key(&mut rng), &chosen);
            assert!(average < 3.0 && most < 100, "{average} on average, {most} at most");
        }
    }
}
