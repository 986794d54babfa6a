use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;

use aya::maps::MapInfo;
use tcpguard_common::cookie::Strictness;
use tcpguard_common::decision::admission::{Counted, source_places};
use tcpguard_common::flow::{AnyFlowKey, V4, V6};
use tcpguard_common::known::{BUCKETS, Bucket, CROWDED, Place, Presence, ROOM, occupied_at};
use tcpguard_common::map::{
    ABI_VERSION, EpochSlot, Flow, MAX_SERVICES, MODE_COOKIE, MODE_OFF, PLACE_HELD, PLACE_SHARED, PORT_WORDS,
    ServiceKey, ServicePlace, Settings, XSK_ENTRIES, name, xsk_index,
};
use tcpguard_common::reason::Reason;

use super::{Sandbox, bpf, with_veth};
use crate::dataplane::{
    Dataplane, DataplaneError, FlowScan, LoadOptions, ServiceEntry, SocketConfig, XskSocket,
};

fn with_dataplane(test: impl FnOnce(Dataplane, &Sandbox) + Send + 'static) {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        test(Dataplane::load(&sandbox.options).unwrap(), &sandbox);
    });
}

fn entry(addr: &str, port: u16, id: u32) -> ServiceEntry {
    ServiceEntry { addr: addr.parse().unwrap(), port, id, mode: MODE_COOKIE, strictness: Strictness::NEVER }
}

fn flow_key(number: u32, v6: bool) -> AnyFlowKey {
    let ip =
        |low: u32| -> IpAddr { if v6 { IpAddr::V6(u128::from(low).into()) } else { IpAddr::V4(low.into()) } };
    let peer = SocketAddr::new(ip(0x0a00_0000 | number), 1000);
    AnyFlowKey::new(peer, SocketAddr::new(ip(0x0a80_0001), 80)).unwrap()
}

fn flow(number: u32) -> Flow {
    Flow { seq: number, owner: 3, ..Flow::default() }
}

/// Every flow a whole walk shows.
fn walk(scan: &mut FlowScan) -> Vec<(AnyFlowKey, u32)> {
    let mut seen = Vec::new();
    while scan.next_slice(|key, flow| seen.push((key, flow.seq))).unwrap() {}
    seen
}

#[test]
fn the_service_maps_and_the_port_bitmap_become_equal_to_the_list() {
    with_dataplane(|dataplane, _sandbox| {
        let ports = |dataplane: &Dataplane| -> HashSet<u32> {
            let bits = |word: u32| dataplane.maps.ports.lookup(&word).unwrap().unwrap();
            (0..PORT_WORDS * 64).filter(|port| bits(port / 64) >> (port % 64) & 1 == 1).collect()
        };
        let first = [entry("0.0.0.0", 80, 0), entry("10.0.0.1", 443, 1), entry("::", 80, 2)];
        dataplane.set_services(&first).unwrap();
        // Port 0 stands for the hidden ports of IPv6.
        assert_eq!(ports(&dataplane), HashSet::from([0, 80, 443]));
        let any = ServiceKey::new(V4([0; 4]), 80u16.to_be_bytes());
        assert_eq!(dataplane.maps.services_v4.lookup(&any).unwrap().unwrap().id, 0);
        let any_v6 = ServiceKey::new(V6([0; 16]), 80u16.to_be_bytes());
        assert_eq!(dataplane.maps.services_v6.lookup(&any_v6).unwrap().unwrap().id, 2);

        let off = ServiceEntry { mode: MODE_OFF, ..entry("0.0.0.0", 80, 5) };
        dataplane.set_services(&[off, entry("fe80::1", 65535, 6)]).unwrap();
        assert_eq!(ports(&dataplane), HashSet::from([0, 80, 65535]));
        let held = dataplane.maps.services_v4.lookup(&any).unwrap().unwrap();
        assert_eq!((held.id, held.mode), (5, MODE_OFF));
        assert_eq!(dataplane.maps.services_v4.keys().unwrap(), [any]);
        assert_eq!(dataplane.maps.services_v6.lookup(&any_v6).unwrap(), None);
        let off_v6 = ServiceEntry { mode: MODE_OFF, ..entry("fe80::1", 65535, 6) };
        dataplane.set_services(&[entry("0.0.0.0", 80, 5), off_v6]).unwrap();
        assert_eq!(ports(&dataplane), HashSet::from([80, 65535]));
        dataplane.set_services(&[]).unwrap();
        assert!(ports(&dataplane).is_empty());
        dataplane.detach().unwrap();
    });
}

#[test]
fn the_places_in_front_of_the_services_become_equal_to_the_list() {
    with_dataplane(|dataplane, _sandbox| {
        let place = |port: u16| {
            let key = ServiceKey::new(V4([10, 0, 0, 1]), port.to_be_bytes());
            (key, dataplane.maps.places_v4.lookup(&key.place()).unwrap().unwrap())
        };
        let rival = (81..).find(|&port| place(port).0.place() == place(80).0.place()).unwrap();
        dataplane.set_services(&[entry("10.0.0.1", 80, 7), entry("::1", 80, 8)]).unwrap();
        let (key, alone) = place(80);
        assert_eq!((alone.key, alone.service.id, alone.state), (key, 7, PLACE_HELD));
        let v6 = ServiceKey::new(V6(std::net::Ipv6Addr::LOCALHOST.octets()), 80u16.to_be_bytes());
        assert_eq!(dataplane.maps.places_v6.lookup(&v6.place()).unwrap().unwrap().key, v6);

        dataplane.set_services(&[entry("10.0.0.1", rival, 1), entry("10.0.0.1", 80, 2)]).unwrap();
        let (_, shared) = place(80);
        assert_eq!((shared.key, shared.service.id, shared.state), (key, 2, PLACE_HELD | PLACE_SHARED));
        dataplane.set_services(&[entry("10.0.0.1", rival, 1)]).unwrap();
        let (other, left) = place(rival);
        assert_eq!((left.key, left.service.id, left.state), (other, 1, PLACE_HELD));
        dataplane.set_services(&[]).unwrap();
        assert_eq!(place(80).1, ServicePlace::EMPTY);
        dataplane.detach().unwrap();
    });
}

#[test]
fn a_full_list_can_be_exchanged_whole_and_one_too_many_changes_nothing() {
    with_dataplane(|dataplane, _sandbox| {
        let list = |first: u16, count: u32| -> Vec<_> {
            (0..count).map(|index| entry("0.0.0.0", first + index as u16, index)).collect()
        };
        dataplane.set_services(&list(1, MAX_SERVICES)).unwrap();
        dataplane.set_services(&list(5000, MAX_SERVICES)).unwrap();
        let before: HashSet<_> = dataplane.maps.services_v4.keys().unwrap().into_iter().collect();
        assert_eq!(before.len(), MAX_SERVICES as usize);
        let error = dataplane.set_services(&list(1, MAX_SERVICES + 1)).unwrap_err();
        assert!(matches!(error, DataplaneError::TooManyServices { count: 1025, .. }), "{error}");
        let after: HashSet<_> = dataplane.maps.services_v4.keys().unwrap().into_iter().collect();
        assert_eq!(before, after);
        dataplane.detach().unwrap();
    });
}

#[test]
fn flows_of_both_families_are_found_walked_and_removed_in_batches() {
    with_dataplane(|dataplane, _sandbox| {
        let table = dataplane.flows();
        let keys: Vec<_> = (0..700).flat_map(|number| [false, true].map(|v6| flow_key(number, v6))).collect();
        for (number, key) in (0..).zip(&keys) {
            table.insert(key, &flow(number)).unwrap();
        }
        assert_eq!(table.lookup(&keys[5]).unwrap(), Some(flow(5)));
        assert_eq!(table.lookup(&flow_key(700, false)).unwrap(), None);
        assert!(!table.insert_new(&keys[5], &flow(99)).unwrap());
        assert_eq!(table.lookup(&keys[5]).unwrap(), Some(flow(5)));
        let absent = flow_key(700, false);
        assert!(table.replace(&keys[5], &flow(99)).unwrap() && !table.replace(&absent, &flow(99)).unwrap());
        assert_eq!((table.lookup(&keys[5]).unwrap(), table.lookup(&absent).unwrap()), (Some(flow(99)), None));
        assert!(table.replace(&keys[5], &flow(5)).unwrap());

        let mut scan = table.scan();
        for _ in 0..2 {
            let seen = walk(&mut scan);
            assert_eq!(seen.len(), keys.len());
            let expected: HashSet<_> = keys.iter().copied().zip(0..).collect();
            assert_eq!(seen.into_iter().collect::<HashSet<_>>(), expected);
        }

        // Every third key, of either family, is missing already: the batch must step over it.
        for key in keys.iter().step_by(3) {
            assert!(table.remove(key).unwrap());
        }
        assert!(!table.remove(&keys[0]).unwrap());
        let removed = |keys: &[AnyFlowKey]| {
            let mut removed = HashSet::new();
            table.remove_batch(keys, |key| assert!(removed.insert(*key))).unwrap();
            removed
        };
        let there = keys.iter().enumerate().filter(|(index, _)| index % 3 != 0);
        assert_eq!(removed(&keys), there.map(|(_, key)| *key).collect());
        assert!(walk(&mut scan).is_empty());
        assert!(removed(&keys).is_empty() && removed(&[]).is_empty());
        dataplane.detach().unwrap();
    });
}

#[test]
fn a_table_of_fingerprints_is_as_large_as_asked_for_and_keeps_its_size_when_it_is_taken_over() {
    with_veth(1, 1500, || {
        let sandbox = Sandbox::new();
        let sized = |time_waits| LoadOptions { time_waits, ..sandbox.options.clone() };
        let dataplane = Dataplane::load(&sized(1_000_001)).unwrap();
        dataplane.write_settings(&Settings { abi: ABI_VERSION, ..Settings::default() }).unwrap();
        let entries = || MapInfo::from_pin(dataplane.pins.join(name::TIME_WAIT)).unwrap().max_entries();
        assert_eq!(entries(), 2 * BUCKETS, "two million, four to a bucket");
        // SAFETY: the sizes that `SHARED` checked.
        let (words, occupied) = unsafe {
            let open = |map| bpf::get(&dataplane.pins.join(map)).unwrap();
            (
                bpf::Map::<u32, [u32; 4]>::from_fd(open(name::TIME_WAIT)),
                bpf::Map::<u32, u64>::from_fd(open(name::OCCUPIED)),
            )
        };
        let fingerprints = dataplane.fingerprints();
        let (low, high) = (BUCKETS - 1, 2 * BUCKETS - 1);
        let (word, bit) = occupied_at(low);
        let is_occupied = || occupied.lookup(&word).unwrap().unwrap() & bit != 0;
        for (first, second) in [(low, high), (high, low)] {
            assert!(!fingerprints.set(first, 7) && !fingerprints.set(second, 8));
            assert_eq!(
                words.lookup(&(2 * BUCKETS - 2)).unwrap().unwrap()[0],
                if first == low { 7 } else { 8 }
            );
            assert_eq!(
                words.lookup(&(2 * BUCKETS - 1)).unwrap().unwrap()[0],
                if first == low { 8 } else { 7 }
            );
            assert!(fingerprints.contains(first, 7) && !fingerprints.contains(first, 8));
            fingerprints.clear(first, 7);
            assert!(is_occupied(), "the bucket beside it");
            fingerprints.clear(second, 8);
            assert!(!is_occupied());
        }
        fingerprints.set(high, 9);
        fingerprints.clear_all();
        assert_eq!((fingerprints.all().count(), is_occupied()), (0, false));
        fingerprints.set(high, 9);
        drop((dataplane, fingerprints));

        let again = Dataplane::load(&sized(8_000_000)).unwrap();
        assert!(again.previous().is_some() && again.fingerprints().contains(high, 9));
        assert_eq!(again.fingerprints().spread(), 1);
        again.detach().unwrap();
        let afresh = Dataplane::load(&sized(8_000_000)).unwrap();
        assert_eq!(afresh.fingerprints().spread(), 4);
        afresh.detach().unwrap();
    });
}

/// The map in front of the flow tables, and the key that its places are made with from now on.
fn front(dataplane: &Dataplane) -> (bpf::Map<u32, Bucket>, [u64; 2]) {
    let hash_key = [11, 12];
    dataplane.write_settings(&Settings { abi: ABI_VERSION, hash_key, ..Settings::default() }).unwrap();
    // SAFETY: the sizes that `SHARED` checked.
    let front = unsafe { bpf::Map::from_fd(bpf::get(&dataplane.pins.join(name::KNOWN)).unwrap()) };
    (front, hash_key)
}

#[test]
fn the_front_of_the_flow_tables_follows_every_change_and_tells_when_a_bucket_was_full() {
    with_dataplane(|dataplane, _sandbox| {
        let (front, hash_key) = front(&dataplane);
        let place = |key: &AnyFlowKey| match key {
            AnyFlowKey::V4(key) => Place::of(hash_key, key),
            AnyFlowKey::V6(key) => Place::of(hash_key, key),
        };
        let presence =
            |key: &AnyFlowKey| front.lookup(&place(key).bucket).unwrap().unwrap().presence(place(key).tag);
        let table = dataplane.flows();
        for key in [flow_key(1, false), flow_key(1, true)] {
            assert_eq!(presence(&key), Presence::Unknown);
            table.insert(&key, &flow(1)).unwrap();
            assert_eq!(presence(&key), Presence::Known);
            assert!(table.remove(&key).unwrap());
            assert_eq!(presence(&key), Presence::Unknown);
            assert!(table.insert_new(&key, &flow(1)).unwrap());
            assert_eq!(presence(&key), Presence::Known);
            table.remove_batch(&[key], |_| {}).unwrap();
            assert_eq!(presence(&key), Presence::Unknown);
        }
        // A bucket's bit is set while there is a flow or a fingerprint in it, whichever came or goes first.
        // SAFETY: the sizes that `SHARED` checked.
        let occupied =
            unsafe { bpf::Map::<u32, u64>::from_fd(bpf::get(&dataplane.pins.join(name::OCCUPIED)).unwrap()) };
        let is_occupied = |key: &AnyFlowKey| {
            let (word, bit) = occupied_at(place(key).bucket);
            occupied.lookup(&word).unwrap().unwrap() & bit != 0
        };
        let (key, fingerprints) = (flow_key(1, false), dataplane.fingerprints());
        let Place { bucket, tag } = place(&key);
        assert!(!is_occupied(&key));
        for flow_goes_first in [true, false] {
            table.insert(&key, &flow(1)).unwrap();
            assert!(is_occupied(&key));
            fingerprints.set(bucket, tag);
            if flow_goes_first {
                table.remove(&key).unwrap();
                assert!(is_occupied(&key), "a fingerprint");
                fingerprints.clear(bucket, tag);
            } else {
                fingerprints.clear(bucket, tag);
                assert!(is_occupied(&key), "a flow");
                table.remove(&key).unwrap();
            }
            assert!(!is_occupied(&key));
            fingerprints.set(bucket, tag);
            assert!(is_occupied(&key));
            fingerprints.clear_all();
            assert!(!is_occupied(&key));
        }
        let first = flow_key(1, false);
        table.insert(&first, &flow(1)).unwrap();
        front.update(&place(&first).bucket, &Bucket::default(), bpf::ANY).unwrap();
        for _ in 0..2 {
            table.show(&first);
            assert_eq!(presence(&first), Presence::Known, "entered again");
        }
        table.remove(&first).unwrap();
        let strangers = [1 << 31; ROOM];
        let full = Bucket { tags: strangers, crowded: 0 };
        front.update(&place(&first).bucket, &full, bpf::ANY).unwrap();
        table.insert(&first, &flow(1)).unwrap();
        assert_eq!(presence(&first), Presence::Unsure);
        table.remove(&first).unwrap();
        let bucket = front.lookup(&place(&first).bucket).unwrap().unwrap();
        assert_eq!((bucket.tags, bucket.crowded), (strangers, CROWDED), "others' places are theirs");
        // Another flow has the same tag, or had it and is about to be struck out.
        let mut taken = Bucket::default();
        taken.enter(place(&first).tag);
        front.update(&place(&first).bucket, &taken, bpf::ANY).unwrap();
        assert!(table.insert_new(&first, &flow(1)).unwrap());
        assert_eq!(presence(&first), Presence::Known);
        table.front.strike(&first);
        assert_eq!(presence(&first), Presence::Unsure, "the table still has it");
        dataplane.detach().unwrap();
    });
}

#[test]
fn a_bucket_is_crowded_until_a_walk_finds_all_its_flows_in_it() {
    with_dataplane(|dataplane, _sandbox| {
        let (front, hash_key) = front(&dataplane);
        let (table, key) = (dataplane.flows(), flow_key(1, true));
        let AnyFlowKey::V6(flow_of_key) = key else { unreachable!("asked for") };
        let place = Place::of(hash_key, &flow_of_key);
        let presence = |tag| front.lookup(&place.bucket).unwrap().unwrap().presence(tag);
        let walk = |scan: &mut FlowScan| {
            // Each looks at a part of the buckets.
            for _ in 0..32 {
                while scan.next_slice(|_, _| {}).unwrap() {}
            }
        };
        let (mut scan, mut other) = (table.scan(), table.scan());
        let tags = [1 << 31; ROOM];
        front.update(&place.bucket, &Bucket { tags, crowded: 0 }, bpf::ANY).unwrap();
        table.insert(&key, &flow(1)).unwrap();
        let stranger = place.tag ^ 2;
        for tags in [tags, [0; ROOM]] {
            let mut bucket = front.lookup(&place.bucket).unwrap().unwrap();
            bucket.tags = tags;
            front.update(&place.bucket, &bucket, bpf::ANY).unwrap();
            walk(&mut scan);
            assert_eq!(
                presence(place.tag),
                Presence::Unsure,
                "the table has a flow that is not in the bucket"
            );
        }
        table.show(&key);
        assert_eq!((presence(place.tag), presence(stranger)), (Presence::Known, Presence::Unsure));
        // Another walk, half done, neither ends this one's look nor keeps it from its end.
        other.next_slice(|_, _| {}).unwrap();
        walk(&mut scan);
        assert_eq!((presence(place.tag), presence(stranger)), (Presence::Known, Presence::Unknown));
        walk(&mut other);
        // Of two flows with one tag, one may be struck out and leave the other without.
        for (times, expected) in [(2, Presence::Unsure), (1, Presence::Unknown)] {
            let mut bucket = Bucket { crowded: CROWDED, ..Bucket::default() };
            bucket.enter(place.tag);
            front.update(&place.bucket, &bucket, bpf::ANY).unwrap();
            let (buckets, token, mut seen) = (place.bucket..place.bucket + 1, 77, HashSet::new());
            table.front.begin_look(buckets.clone(), token);
            (0..times).for_each(|_| table.front.look_at(&key, token, &mut seen));
            table.front.end_look(buckets, token);
            assert_eq!((presence(place.tag), presence(stranger)), (Presence::Known, expected));
        }
        // What is found full again during a walk stays so.
        front.update(&place.bucket, &Bucket { crowded: CROWDED, ..Bucket::default() }, bpf::ANY).unwrap();
        table.remove(&key).unwrap();
        assert_eq!(presence(stranger), Presence::Unsure);
        walk(&mut other);
        assert_eq!((presence(stranger), presence(place.tag)), (Presence::Unknown, Presence::Unknown));
        dataplane.detach().unwrap();
    });
}

#[test]
fn a_full_flow_table_says_so_and_takes_flows_again_once_some_went() {
    with_dataplane(|dataplane, sandbox| {
        let (table, capacity) = (dataplane.flows(), sandbox.options.max_flows);
        assert_eq!(table.capacity(), capacity);
        let mut inserted = Vec::new();
        let error = (0..capacity * 2).find_map(|number| {
            let key = flow_key(number, false);
            match table.insert(&key, &flow(number)) {
                Ok(()) => {
                    inserted.push(key);
                    None
                }
                Err(error) => Some(error),
            }
        });
        assert_eq!(error.unwrap().raw_os_error(), Some(libc::E2BIG));
        assert_eq!(inserted.len(), capacity as usize);
        table.remove_batch(&inserted[..10], |_| {}).unwrap();
        table.insert(&flow_key(capacity * 2, false), &flow(1)).unwrap();
        dataplane.detach().unwrap();
    });
}

#[test]
fn heartbeats_and_fingerprints_are_the_words_that_xdp_reads() {
    with_dataplane(|dataplane, _sandbox| {
        // SAFETY: the sizes that `SHARED` checked.
        let beats = unsafe {
            bpf::Map::<u32, u64>::from_fd(bpf::get(&dataplane.pins.join(name::HEARTBEATS)).unwrap())
        };
        let last = XSK_ENTRIES - 1;
        assert!(dataplane.heartbeat(XSK_ENTRIES).is_none());
        dataplane.heartbeat(last).unwrap().beat(42, false);
        dataplane.heartbeat(xsk_index(1, 2)).unwrap().beat(6, true);
        assert_eq!(beats.lookup(&last).unwrap(), Some(42));
        assert_eq!(beats.lookup(&xsk_index(1, 2)).unwrap(), Some(7));
        assert_eq!(dataplane.heartbeat(last).unwrap().last(), 42);

        // SAFETY: as above.
        let words = unsafe {
            bpf::Map::<u32, [u32; 4]>::from_fd(bpf::get(&dataplane.pins.join(name::TIME_WAIT)).unwrap())
        };
        let fingerprints = dataplane.fingerprints();
        assert!((1..=4).all(|word| !fingerprints.set(1000, word)));
        assert!(!fingerprints.set(1000, 3), "it is there already");
        assert_eq!(words.lookup(&1000).unwrap(), Some([1, 2, 3, 4]));
        assert!(fingerprints.set(1000, 5), "the first makes way");
        fingerprints.clear(1000, 3);
        fingerprints.clear(1000, 99);
        assert_eq!(words.lookup(&1000).unwrap(), Some([5, 2, 0, 4]));
        assert!(fingerprints.contains(1000, 4) && !fingerprints.contains(1000, 3));
        assert_eq!(words.lookup(&1001).unwrap(), Some([0; 4]));
        fingerprints.clear_all();
        assert_eq!(words.lookup(&1000).unwrap(), Some([0; 4]));
        dataplane.detach().unwrap();
    });
}

#[test]
fn counters_start_at_zero_on_every_cpu_and_epochs_read_back_as_written() {
    with_dataplane(|dataplane, _sandbox| {
        let counters = dataplane.counters().unwrap();
        for &reason in Reason::ALL {
            assert_eq!(counters.total(reason), 0);
            assert_eq!(counters.per_cpu(reason).len(), aya::util::nr_cpus().unwrap());
        }
        let mut slots = dataplane.epochs().unwrap();
        slots[2] = EpochSlot { epoch: 6, valid: 1, window: 100, ..EpochSlot::default() };
        dataplane.write_epochs(&slots).unwrap();
        assert_eq!(dataplane.epochs().unwrap(), slots);
        dataplane.detach().unwrap();
    });
}

#[test]
fn only_an_af_xdp_socket_can_be_registered_and_only_in_its_place() {
    with_dataplane(|mut dataplane, _sandbox| {
        let spec = crate::dataplane::InterfaceSpec {
            name: "tgd-a".to_owned(),
            mode: crate::dataplane::AttachMode::Native,
            queues: None,
        };
        let attached = dataplane.attach(&spec).unwrap();
        let config =
            SocketConfig { rx_frames: 64, tx_frames: 64, ..SocketConfig::for_mtu(attached.link.mtu) };
        let socket = XskSocket::open(attached.ifindex, 0, &config).unwrap();
        dataplane.register_socket(attached.slot, 0, socket.as_fd()).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(dataplane.register_socket(attached.slot, 0, file.as_fd()).is_err());
        assert!(dataplane.register_socket(16, 0, socket.as_fd()).is_err());
        dataplane.detach().unwrap();
    });
}

#[test]
fn flows_are_counted_by_source_and_by_service_and_counted_anew_from_the_table() {
    with_dataplane(|dataplane, _sandbox| {
        const KEY: [u64; 2] = [7, 8];
        let services = [entry("10.128.0.1", 80, 3), entry("0.0.0.0", 80, 4), entry("::", 80, 5)];
        let settings = Settings { abi: ABI_VERSION, generation: 7, hash_key: KEY, ..Settings::default() };
        let census = dataplane.census(&settings, &services).unwrap();
        let service = |id| census.open(Counted::Service(id));
        let source = |key: &AnyFlowKey| {
            let AnyFlowKey::V4(key) = key else { panic!("not IPv4") };
            source_places(KEY, key.peer).map(|place| census.open(Counted::Source(place)))
        };
        let exact = flow_key(1, false);
        let elsewhere = AnyFlowKey::new(exact.peer_addr(), "10.128.0.2:80".parse().unwrap()).unwrap();
        let nobodys = AnyFlowKey::new(exact.peer_addr(), "10.128.0.1:81".parse().unwrap()).unwrap();
        for key in [exact, elsewhere, nobodys, flow_key(1, true)] {
            census.opened(&key);
        }
        assert_eq!([3, 4, 5, 6].map(service), [1, 1, 1, 0]);
        assert_eq!(source(&exact), [3, 3]);
        census.closed(&elsewhere);
        assert_eq!(([3, 4, 5, 6].map(service), source(&exact)), ([1, 0, 1, 0], [2, 2]));
        census.closed(&elsewhere);
        assert_eq!(service(4), 0, "not below zero");

        // What XDP reads: one opened, two closed.
        // SAFETY: the sizes that `SHARED` checked.
        let words = unsafe {
            bpf::Map::<u32, i64>::from_fd(bpf::get(&dataplane.pins.join(name::SERVICE_FLOWS)).unwrap())
        };
        assert_eq!(words.lookup(&4).unwrap(), Some(-1));

        let table = dataplane.flows();
        for number in 0..700 {
            let flow = Flow { generation: settings.generation, ..flow(number) };
            table.insert(&flow_key(number, number % 7 == 0), &flow).unwrap();
        }
        let again = dataplane.census(&settings, &services[..1]).unwrap();
        assert_eq!([3, 4, 5].map(|id| again.open(Counted::Service(id))), [600, 0, 0]);
        assert_eq!(source(&exact), [1, 1]);

        // They are nobody's for the next daemon, and take room all the same: as many as make three quarters, and one more.
        let next = Settings { generation: 8, ..settings };
        let census = dataplane.census(&next, &services[..1]).unwrap();
        assert_eq!((census.open(Counted::Service(3)), source(&exact)), (0, [0, 0]));
        for key in (700..769).map(|number| flow_key(number, false)) {
            assert!(!census.is_crowded(&table));
            census.opened(&key);
        }
        assert!(census.is_crowded(&table));
        assert_eq!(census.old_entries(), [600, 100]);
        census.old_removed(&exact);
        assert!(!census.is_crowded(&table));
        // Nor is one moved that is counted nowhere, and one that takes its place is counted.
        census.follow(&services, &table).unwrap();
        assert_eq!([3, 4, 5].map(|id| census.open(Counted::Service(id))), [69, 0, 0]);
        census.replaced(&exact);
        assert_eq!((census.open(Counted::Service(3)), census.old_entries()), (70, [598, 100]));
        dataplane.detach().unwrap();
    });
}
