//! The program in the kernel, on no interface: loaded, its maps made what a world of the truth table says, and run on single
//! frames. Not what should become of them.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues, XskMap};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use tcpguard_common::decision::admission::Counted;
use tcpguard_common::decision::budget::{Ledger as _, verified_place};
use tcpguard_common::decision::{Tables as _, Verdict};
use tcpguard_common::filter::{FilterRule, HEADS, HIT_BLOCKS, HITS_PER_BLOCK, Head, RULES, SPANS, bank};
use tcpguard_common::fingerprint;
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::known::{self, Bucket, Presence};
use tcpguard_common::map::{
    EpochSlot, Flow, Interface, MAX_QUEUES, SERVICE_IDS, Service, ServiceKey, ServicePlace, Settings,
    heartbeat, name,
};
use tcpguard_common::reason::Class;
use tcpguard_common::sketch::{Sketch, WORDS};

use super::checked_in::object;
use super::table::generator::Wild as _;
use super::table::world::{PORT, PORT_ANYWHERE, Place, SLOT, World, places};

/// The program and its maps, on no interface.
pub(crate) struct Kernel {
    pub(crate) ebpf: Ebpf,
    program: &'static str,
    socket: OwnedFd,
    out: Vec<u8>,
    /// Some budget is used up.
    spent: bool,
    /// The hash key of the world it last became like.
    hash_key: [u64; 2],
    /// How large the table of fingerprints is.
    spread: u32,
}

/// What became of one frame.
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) frame: Vec<u8>,
}

impl Kernel {
    pub(crate) fn load(max_flows: usize) -> Self {
        Self::load_program("tcpguard", max_flows)
    }

    pub(crate) fn load_program(program: &'static str, max_flows: usize) -> Self {
        Self::load_sized(program, max_flows, 0)
    }

    /// With a table of fingerprints of this `spread`.
    pub(crate) fn load_sized(program: &'static str, max_flows: usize, spread: u32) -> Self {
        let max_flows = u32::try_from(max_flows).unwrap();
        let mut ebpf = EbpfLoader::new()
            .override_global("SLOT", &SLOT, true)
            .override_global("SPREAD", &spread, true)
            .map_max_entries(name::TIME_WAIT, known::BUCKETS << spread)
            .map_max_entries(name::FLOWS_V4, max_flows)
            .map_max_entries(name::FLOWS_V6, max_flows)
            .load(object())
            .unwrap();
        let loaded: &mut Xdp = ebpf.program_mut(program).unwrap().try_into().unwrap();
        loaded.load().unwrap();
        // SAFETY: no pointers; the descriptor it returns is nobody else's.
        let socket = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        assert!(socket >= 0, "{}", std::io::Error::last_os_error());
        // SAFETY: as above.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        Self { ebpf, program, socket, out: vec![0; 9000], spent: false, hash_key: [0; 2], spread }
    }

    pub(crate) fn map<'a, M: TryFrom<&'a mut Map>>(&'a mut self, name: &str) -> M {
        M::try_from(self.ebpf.map_mut(name).unwrap()).unwrap_or_else(|_| panic!("{name} is of another type"))
    }

    pub(crate) fn array<V: Pod>(&mut self, name: &str) -> Array<&mut MapData, V> {
        self.ebpf.map_mut(name).unwrap().try_into().unwrap()
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.ebpf.map_mut(name).unwrap().try_into().unwrap()
    }

    /// Makes the maps what the world says.
    pub(crate) fn become_like(&mut self, world: &World) {
        self.array::<Settings>(name::SETTINGS).set(0, world.settings, 0).unwrap();
        self.array::<Interface>(name::INTERFACES).set(SLOT, world.interface, 0).unwrap();
        for (index, slot) in (0..).zip(world.epochs) {
            self.array::<EpochSlot>(name::EPOCHS).set(index, slot, 0).unwrap();
        }
        // The first word holds what is of no port.
        for (index, &word) in (0..).zip(&world.ports).filter(|&(index, word)| index == 0 || *word != 0) {
            self.array::<u64>(name::PORTS).set(index, word, 0).unwrap();
        }
        let now = tcpguard::dataplane::monotonic_ns();
        let beat = if world.beating { heartbeat(now, world.pressed) } else { 0 };
        self.array::<u64>(name::HEARTBEATS).set(world.engine, beat, 0).unwrap();
        for (&place, words) in &world.fingerprints {
            self.set_fingerprints(place, *words);
            self.occupy(place);
        }
        self.budgets(world);
        for (place, spent) in [0, MAX_QUEUES].into_iter().zip(&world.stateful) {
            self.array::<u64>(name::STATEFUL).set(place, spent.get(), 0).unwrap();
        }
        let socket = self.socket.as_raw_fd();
        let mut sockets: XskMap<&mut MapData> = self.map(name::SOCKETS);
        if world.socket {
            sockets.set(world.engine, socket, 0).unwrap();
        } else {
            let _absent = sockets.unset(world.engine);
        }
        self.services::<V4>(world, name::SERVICES_V4, name::SERVICE_PLACES_V4);
        self.services::<V6>(world, name::SERVICES_V6, name::SERVICE_PLACES_V6);
        self.flows_become::<V4>(world, name::FLOWS_V4);
        self.flows_become::<V6>(world, name::FLOWS_V6);
        self.hash_key = world.settings.hash_key;
        self.lists::<V4>(world, name::FILTER_HEADS_V4, name::FILTER_SPANS_V4);
        self.lists::<V6>(world, name::FILTER_HEADS_V6, name::FILTER_SPANS_V6);
        let first = bank(world.settings.filters) * RULES + 1;
        for (index, rule) in (first..).zip(&world.lists.rules) {
            self.array::<FilterRule>(name::FILTER_RULES).set(index, rule, 0).unwrap();
        }
    }

    fn lists<A: Place>(&mut self, world: &World, heads: &str, spans: &str)
    where
        A::Span: Pod,
    {
        let Some(line) = A::line(&world.lists) else { return };
        let bank = bank(world.settings.filters);
        for (index, head) in (bank * HEADS..).zip(&line.heads).filter(|(_, head)| **head != Head::default()) {
            self.array::<Head>(heads).set(index, head, 0).unwrap();
        }
        for (index, span) in (bank * SPANS..).zip(&line.spans) {
            self.array::<A::Span>(spans).set(index, span, 0).unwrap();
        }
    }

    /// The hits of the first rules of the bank that counts, those without left out.
    pub(crate) fn hits(&mut self, world: &World) -> BTreeMap<u32, u64> {
        let hits: PerCpuArray<&mut MapData, [u64; HITS_PER_BLOCK as usize]> = self.map(name::FILTER_HITS);
        let blocks = hits.get(&(bank(world.settings.filters) * HIT_BLOCKS), 0).unwrap();
        let sum = |rule: u32| blocks.iter().map(|words| words[rule as usize]).sum();
        (0..HITS_PER_BLOCK).map(|rule| (rule, sum(rule))).filter(|&(_, sum)| sum > 0).collect()
    }

    /// A world whose sketch nobody has touched has full budgets, and nobody cares who is verified then.
    fn budgets(&mut self, world: &World) {
        let replies = world.replies.get().map(Box::as_ref);
        if replies.is_some() || self.spent {
            self.array::<[u64; WORDS]>(name::REPLIES)
                .set(0, replies.map_or([0; WORDS], Sketch::words), 0)
                .unwrap();
        }
        self.spent = replies.is_some();
        let arrivals = world.arrivals.get().map_or([0; WORDS], |sketch| sketch.words());
        self.array::<[u64; WORDS]>(name::ARRIVALS).set(0, arrivals, 0).unwrap();
        let paces = world.paces.get().map_or([0; WORDS], |sketch| sketch.words());
        self.array::<[u64; WORDS]>(name::PACES).set(0, paces, 0).unwrap();
        let complaints = world.complaints.get().map_or([0; WORDS], |sketch| sketch.words());
        self.array::<[u64; WORDS]>(name::COMPLAINTS).set(0, complaints, 0).unwrap();
        self.counts(world, |open| open);
        if self.spent {
            let mut verified = self.array::<u64>(name::VERIFIED);
            let hosts = (0..=255).flat_map(|host| {
                let v4 = verified_place(&world.settings, V4::with_host(host));
                [v4, verified_place(&world.settings, V6::with_host(host))]
            });
            for (place, _) in hosts {
                verified.set(place, world.verified(place), 0).unwrap();
            }
        }
    }

    /// Sets every count of the world's to what `value` makes of it.
    fn counts(&mut self, world: &World, value: impl Fn(u32) -> u32) {
        for (&place, &open) in world.open.borrow().iter() {
            let (map, index) = match place {
                Counted::Service(id) => (name::SERVICE_FLOWS, id),
                Counted::Source(row) => (name::SOURCE_FLOWS, row),
            };
            self.array::<i64>(map).set(index, i64::from(value(open)), 0).unwrap();
        }
    }

    fn services<A: Place>(&mut self, world: &World, services: &str, places: &str)
    where
        ServiceKey<A>: Pod,
        ServicePlace<A>: Pod,
    {
        for (key, service) in A::services(world) {
            self.hash::<ServiceKey<A>, Service>(services).insert(key, service, 0).unwrap();
            let place: ServicePlace<A> = world.place(key.place()).unwrap();
            self.array(places).set(key.place(), place, 0).unwrap();
        }
    }

    fn flows_become<A: Place>(&mut self, world: &World, flows: &str)
    where
        FlowKey<A>: Pod,
    {
        let mut map = self.hash::<FlowKey<A>, Flow>(flows);
        let stale: Vec<FlowKey<A>> = map.keys().map(Result::unwrap).collect();
        stale.iter().for_each(|key| map.remove(key).unwrap());
        for (key, flow) in A::flows(world).borrow().iter() {
            map.insert(key, flow, 0).unwrap();
        }
        let hash_key = self.hash_key;
        let mut front = self.array::<Bucket>(name::KNOWN);
        for place in stale.iter().map(|key| known::Place::of(hash_key, key)) {
            front.set(place.bucket, world.front(place.bucket), 0).unwrap();
        }
        for place in places::<A>(world) {
            front.set(place.bucket, world.front(place.bucket), 0).unwrap();
        }
        places::<A>(world).into_iter().for_each(|place| self.occupy(place.bucket));
    }

    fn set_fingerprints(&mut self, place: u32, words: [u32; 4]) {
        let bucket = fingerprint::bucket(place, self.spread);
        self.array::<[u32; 4]>(name::TIME_WAIT).set(bucket, words, 0).unwrap();
    }

    /// Says that something may be in a bucket.
    pub(crate) fn occupy(&mut self, bucket: u32) {
        let (word, bit) = known::occupied_at(bucket);
        let mut occupied = self.array::<u64>(name::OCCUPIED);
        let was = occupied.get(&word, 0).unwrap();
        occupied.set(word, was | bit, 0).unwrap();
    }

    /// Whether something may be in a bucket.
    pub(crate) fn is_occupied(&mut self, bucket: u32) -> bool {
        let (word, bit) = known::occupied_at(bucket);
        self.array::<u64>(name::OCCUPIED).get(&word, 0).unwrap() & bit != 0
    }

    pub(crate) fn bucket(&mut self, bucket: u32) -> Bucket {
        self.array::<Bucket>(name::KNOWN).get(&bucket, 0).unwrap()
    }

    /// Takes a flow out of its table and the front.
    pub(crate) fn strike<A: Place>(&mut self, name: &str, key: &FlowKey<A>) -> Option<Flow>
    where
        FlowKey<A>: Pod,
    {
        let mut map = self.hash::<FlowKey<A>, Flow>(name);
        let there = map.get(key, 0).ok();
        map.remove(key).unwrap();
        let place = known::Place::of(self.hash_key, key);
        let mut bucket = self.bucket(place.bucket);
        assert_eq!(bucket.presence(place.tag), Presence::Known, "the program enters what it inserts");
        bucket.strike(place.tag);
        self.array(name::KNOWN).set(place.bucket, bucket, 0).unwrap();
        there
    }

    /// Undoes what `become_like` does not overwrite the next time.
    pub(crate) fn forget(&mut self, world: &World) {
        for &place in world.fingerprints.keys() {
            self.set_fingerprints(place, [0; 4]);
        }
        let bank = bank(world.settings.filters);
        let lines = [
            (name::FILTER_HEADS_V4, V4::line(&world.lists).map(|line| &line.heads)),
            (name::FILTER_HEADS_V6, V6::line(&world.lists).map(|line| &line.heads)),
        ];
        for (map, heads) in lines {
            let heads = (bank * HEADS..).zip(heads.into_iter().flatten());
            for (index, _) in heads.filter(|(_, head)| **head != Head::default()) {
                self.array::<Head>(map).set(index, Head::default(), 0).unwrap();
            }
        }
        if !world.lists.rules.is_empty() {
            let mut hits: PerCpuArray<&mut MapData, [u64; HITS_PER_BLOCK as usize]> =
                self.map(name::FILTER_HITS);
            let cpus = aya::util::nr_cpus().unwrap();
            let none = PerCpuValues::try_from(vec![[0; HITS_PER_BLOCK as usize]; cpus]).unwrap();
            hits.set(bank * HIT_BLOCKS, none, 0).unwrap();
        }
        self.counts(world, |_| 0);
    }

    pub(crate) fn run(&mut self, frame: &[u8], engine: u32) -> Outcome {
        let program: &Xdp = self.ebpf.program(self.program).unwrap().try_into().unwrap();
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut self.out), ..TestRunOptions::new() };
        let result = program.test_run(options).unwrap();
        let verdict = match result.return_value {
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Transmit,
            4 => Verdict::Redirect(engine),
            other => panic!("verdict {other}"),
        };
        Outcome { verdict, frame: self.out[..result.data_size_out as usize].to_vec() }
    }

    pub(crate) fn counters(&mut self) -> Vec<u64> {
        let counters: PerCpuArray<&mut MapData, u64> = self.map(name::COUNTERS);
        counters.iter().map(|cpus| cpus.unwrap().iter().sum()).collect()
    }

    /// What was counted of the services whose ids have a place, by id, whether it passed for a dry run, and class.
    pub(crate) fn served(&mut self) -> BTreeMap<(u32, bool), [u64; Class::PLACES]> {
        let counters: PerCpuArray<&mut MapData, [u64; Class::PLACES]> = self.map(name::SERVICE_COUNTERS);
        let of = |(service, dry_run): (u16, bool)| {
            let place = u32::from(service) + SERVICE_IDS * u32::from(dry_run);
            let cpus = counters.get(&place, 0).unwrap();
            let sum = |class| cpus.iter().map(|classes| classes[class]).sum();
            ((service.into(), dry_run), std::array::from_fn(sum))
        };
        [(PORT, false), (PORT_ANYWHERE, false), (PORT, true), (PORT_ANYWHERE, true)].map(of).into()
    }

    pub(crate) fn flows<A: Place>(&mut self, name: &str) -> std::collections::HashMap<FlowKey<A>, Flow>
    where
        FlowKey<A>: Pod,
    {
        self.hash::<FlowKey<A>, Flow>(name).iter().map(Result::unwrap).collect()
    }
}
