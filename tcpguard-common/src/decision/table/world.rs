//! Maps and a clock that a test can set: the decision's surroundings on the host.

use std::boxed::Box;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use super::filters::Lists;
use tcpguard_common::cookie::{Advertised, Epochs, Strictness};
use tcpguard_common::decision::admission::{self, Census, Counted};
use tcpguard_common::decision::budget::{self, Ledger};
use tcpguard_common::decision::{Env, Insertion, Tables};
use tcpguard_common::filter::Line;
use tcpguard_common::fingerprint::{WAYS, fingerprint};
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::known::{self, Bucket, Presence};
use tcpguard_common::map::{
    ABI_VERSION, DRY_RUN, EPOCH_SLOTS, EpochSlot, Flow, Interface, Limits, MODE_COOKIE, MODE_OFF,
    MODE_STATEFUL, ON_EXIT_DROP, PORT_WORDS, Service, ServiceKey, ServicePlace, Settings, heartbeat,
    xsk_index,
};
use tcpguard_common::packet::Family;
use tcpguard_common::reason::Reason;
use tcpguard_common::sketch::{Rate, Sketch};
use tcpguard_common::trace::Wanted;

pub(crate) const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Which interface the frames arrive on.
pub(crate) const SLOT: u32 = 3;
pub(crate) const EPOCH: u32 = 1_000_000;
pub(crate) const MASTER: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
pub(crate) const ADVERTISED: Advertised =
    Advertised { mss_v4: 1460, mss_v6: 1440, window: 64240, window_scale: 9 };

/// A port protected on one address, one protected on any, one whose service is off.
pub(crate) const PORT: u16 = 80;
pub(crate) const PORT_ANYWHERE: u16 = 443;
pub(crate) const PORT_OFF: u16 = 8080;
/// Ports that are protected on any address and off on one, and the other way round.
pub(crate) const PORT_OFF_HERE: u16 = 1443;
pub(crate) const PORT_ONLY_HERE: u16 = 1444;

/// Budgets that are kept, but that no test uses up by accident.
pub(crate) const LIMITS: Limits = Limits {
    stateful: PLENTY,
    replies: PLENTY,
    verified_replies: PLENTY,
    prefix_v4: !0 << (64 - 24),
    prefix_v6: !0 << (64 - 56),
    verified_for: u64::MAX,
    arrivals: PLENTY,
    flows: PLENTY,
    complaints: PLENTY,
    source_flows: u32::MAX,
    service_flows: u32::MAX,
};
const PLENTY: Rate = Rate { interval: 1, ahead: 1 << 40 };
/// A token of it is not back before the end of time.
const LAST: Rate = Rate { interval: 1 << 62, ahead: 0 };

/// What a test needs of an address family.
pub(crate) trait Place: Family {
    const GUARDED: Self;
    const ELSEWHERE: Self;
    const CLIENT: Self;
    fn services(world: &World) -> &HashMap<ServiceKey<Self>, Service>;
    fn flows(world: &World) -> &RefCell<HashMap<FlowKey<Self>, Flow>>;
    fn line(lists: &Lists) -> Option<&Line<Self>>;
    fn line_mut(lists: &mut Lists) -> &mut Option<Rc<Line<Self>>>;
}

impl Place for V4 {
    const GUARDED: Self = Self([198, 51, 100, 1]);
    const ELSEWHERE: Self = Self([198, 51, 100, 2]);
    const CLIENT: Self = Self([192, 0, 2, 7]);

    fn services(world: &World) -> &HashMap<ServiceKey<Self>, Service> {
        &world.services_v4
    }

    fn flows(world: &World) -> &RefCell<HashMap<FlowKey<Self>, Flow>> {
        &world.flows_v4
    }

    fn line(lists: &Lists) -> Option<&Line<Self>> {
        lists.v4.as_deref()
    }

    fn line_mut(lists: &mut Lists) -> &mut Option<Rc<Line<Self>>> {
        &mut lists.v4
    }
}

impl Place for V6 {
    const GUARDED: Self = Self([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    const ELSEWHERE: Self = Self([0x20, 1, 0xd, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    const CLIENT: Self = Self([0x20, 1, 0xd, 0xb8, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);

    fn services(world: &World) -> &HashMap<ServiceKey<Self>, Service> {
        &world.services_v6
    }

    fn flows(world: &World) -> &RefCell<HashMap<FlowKey<Self>, Flow>> {
        &world.flows_v6
    }

    fn line(lists: &Lists) -> Option<&Line<Self>> {
        lists.v6.as_deref()
    }

    fn line_mut(lists: &mut Lists) -> &mut Option<Rc<Line<Self>>> {
        &mut lists.v6
    }
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) interface: Interface,
    pub(crate) epochs: [EpochSlot; EPOCH_SLOTS as usize],
    pub(crate) ports: Vec<u64>,
    pub(crate) services_v4: HashMap<ServiceKey<V4>, Service>,
    pub(crate) services_v6: HashMap<ServiceKey<V6>, Service>,
    pub(crate) flows_v4: RefCell<HashMap<FlowKey<V4>, Flow>>,
    pub(crate) flows_v6: RefCell<HashMap<FlowKey<V6>, Flow>>,
    pub(crate) max_flows: usize,
    pub(crate) fingerprints: HashMap<u32, [u32; WAYS as usize]>,
    /// Made when it is first asked for: it is large, and there are many worlds.
    pub(crate) replies: OnceCell<Box<Sketch>>,
    /// Until when the tokens of the stateful services are spent, and those of the ones in dry run.
    pub(crate) stateful: [Cell<u64>; 2],
    pub(crate) verified: RefCell<HashMap<u32, u64>>,
    pub(crate) lists: Lists,
    pub(crate) arrivals: OnceCell<Box<Sketch>>,
    pub(crate) paces: OnceCell<Box<Sketch>>,
    pub(crate) complaints: OnceCell<Box<Sketch>>,
    pub(crate) open: RefCell<HashMap<Counted, u32>>,
    pub(crate) engine: u32,
    /// Whether the front of the flow tables was full before any of the flows came.
    pub(crate) crowded: bool,
    /// Whether the engine turned just now, or never.
    pub(crate) beating: bool,
    /// Its heartbeat, where that is neither now nor never.
    pub(crate) last_beat: Option<u64>,
    /// Whether its receive ring is under pressure.
    pub(crate) pressed: bool,
    pub(crate) socket: bool,
    pub(crate) now: u64,
    pub(crate) counted: RefCell<Vec<Reason>>,
    /// To which service each of them was, and whether it passed for a dry run.
    pub(crate) served: RefCell<Vec<(u32, bool)>>,
    pub(crate) traced: RefCell<Vec<Traced>>,
}

/// What the decision asked to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traced {
    /// A segment to this service.
    Arrival(u32),
    /// What became of it, and whether the frame is an answer now.
    Verdict(Reason, bool),
}

impl World {
    /// A guard in good order.
    pub(crate) fn new() -> Self {
        let mut epochs = [EpochSlot::default(); EPOCH_SLOTS as usize];
        for epoch in EPOCH - 2..=EPOCH + 1 {
            epochs[(epoch % EPOCH_SLOTS) as usize] =
                EpochSlot::derive(MASTER, epoch, &ADVERTISED).expect("a secret and a window");
        }
        let settings = Settings {
            abi: ABI_VERSION,
            generation: 7,
            epoch: EPOCH,
            epoch_second_half: 0,
            stale_after: 3_600_000_000_000,
            exit_grace: 3_000_000_000,
            on_exit: ON_EXIT_DROP,
            queues: 1,
            filters: 0,
            reserved: 0,
            hash_key: [3, 4],
            limits: LIMITS,
            trace: Wanted::default(),
        };
        let mut world = Self {
            settings,
            interface: Interface { mac: MAC, armed: 1, queues: 1, ifindex: 1 },
            epochs,
            ports: vec![0; PORT_WORDS as usize],
            services_v4: HashMap::new(),
            services_v6: HashMap::new(),
            flows_v4: RefCell::default(),
            flows_v6: RefCell::default(),
            max_flows: 2,
            fingerprints: HashMap::new(),
            replies: OnceCell::new(),
            stateful: Default::default(),
            verified: RefCell::default(),
            lists: Lists::default(),
            arrivals: OnceCell::new(),
            paces: OnceCell::new(),
            complaints: OnceCell::new(),
            open: RefCell::default(),
            engine: xsk_index(SLOT, 0),
            crowded: false,
            beating: true,
            last_beat: None,
            pressed: false,
            socket: true,
            // Every bit of it that a cookie carries tells where it went.
            now: 1 << 40 | 0xa5c3 << 22 | 0x1f_ffff,
            counted: RefCell::default(),
            served: RefCell::default(),
            traced: RefCell::default(),
        };
        world.guard_hidden_ports(true);
        for (port, here, anywhere) in [
            (PORT, Some(MODE_COOKIE), None),
            (PORT_ANYWHERE, None, Some(MODE_COOKIE)),
            (PORT_OFF, Some(MODE_OFF), None),
            (PORT_OFF_HERE, Some(MODE_OFF), Some(MODE_COOKIE)),
            (PORT_ONLY_HERE, Some(MODE_COOKIE), Some(MODE_OFF)),
        ] {
            world.ports[usize::from(port) / 64] |= 1 << (port % 64);
            let addresses = [(here, V4::GUARDED, V6::GUARDED), (anywhere, V4([0; 4]), V6([0; 16]))];
            for (mode, v4, v6) in addresses {
                let Some(mode) = mode else { continue };
                let service = Service { id: u32::from(port), mode, ..Service::default() };
                world.services_v4.insert(ServiceKey::new(v4, port.to_be_bytes()), service);
                world.services_v6.insert(ServiceKey::new(v6, port.to_be_bytes()), service);
            }
        }
        world
    }

    /// Says what the daemon says as soon as a service on IPv6 is guarded.
    pub(crate) fn guard_hidden_ports(&mut self, guarded: bool) {
        self.ports[0] = self.ports[0] & !1 | u64::from(guarded);
    }

    pub(crate) fn know<A: Place>(&mut self, flow: FlowKey<A>) {
        A::flows(self).borrow_mut().insert(flow, Flow::default());
    }

    /// Uses up the reply budget of the prefix of `source`, and that of its verified sources if they are `verified`.
    pub(crate) fn spend_replies<A: Family>(&mut self, source: A, verified: bool) {
        let hash = if verified { budget::verified_reply_hash } else { budget::reply_hash };
        let hash = hash(&self.settings, source, self.is_dry_run());
        assert!(self.sketch().charge(hash, &LAST, self.now));
    }

    /// Makes the services that answer with cookies stateful ones.
    pub(crate) fn make_stateful(&mut self) {
        for service in self.services_mut().filter(|service| service.mode == MODE_COOKIE) {
            service.mode = MODE_STATEFUL;
        }
    }

    /// Makes the services strict in these epochs and no other.
    pub(crate) fn make_strict(&mut self, epochs: &[u32]) {
        let strictness =
            epochs.iter().fold(Strictness::NEVER, |strictness, &epoch| strictness.with(epoch, true));
        self.services_mut().for_each(|service| service.strictness = strictness);
    }

    fn services_mut(&mut self) -> impl Iterator<Item = &mut Service> {
        self.services_v4.values_mut().chain(self.services_v6.values_mut())
    }

    /// Puts all services but the ones that are off into dry run. Budgets that are used up from then on are the dry run's.
    pub(crate) fn make_dry_run(&mut self) {
        fn all<A>(services: &mut HashMap<ServiceKey<A>, Service>) {
            for service in services.values_mut().filter(|service| service.mode != MODE_OFF) {
                service.mode |= DRY_RUN;
            }
        }
        all(&mut self.services_v4);
        all(&mut self.services_v6);
        self.guard_hidden_ports(false);
    }

    fn is_dry_run(&self) -> bool {
        self.services_v4.values().any(|service| service.mode & DRY_RUN != 0)
    }

    /// Uses up what stateful services leave to the stack.
    pub(crate) fn spend_stateful(&mut self) {
        self.stateful[usize::from(self.is_dry_run())].set(u64::MAX / 2);
    }

    /// Makes `source` one that showed a valid cookie at `when`.
    pub(crate) fn verify<A: Family>(&mut self, source: A, when: u64) {
        let (place, fingerprint) = budget::verified_place(&self.settings, source);
        self.set_verified(place, budget::verified_word(fingerprint, when));
    }

    /// Lets `source` open all the flows at once that its rate allows.
    pub(crate) fn spend_arrivals<A: Family>(&mut self, source: A) {
        let arrivals = self.arrivals.get_or_init(Box::default);
        assert!(arrivals.charge(admission::arrival_hash(&self.settings, source), &LAST, self.now));
    }

    /// Lets `flow` send all the segments at once that its rate allows.
    pub(crate) fn spend_pace<A: Family>(&mut self, flow: &FlowKey<A>) {
        let hash = A::hash_flow_fast(self.settings.hash_key, flow);
        assert!(self.paces.get_or_init(Box::default).charge(hash, &LAST, self.now));
    }

    /// Lets everything be said of `flow` that its rate allows.
    pub(crate) fn spend_complaints<A: Family>(&mut self, flow: &FlowKey<A>) {
        let hash = A::hash_flow_fast(self.settings.hash_key, flow);
        assert!(self.complaints.get_or_init(Box::default).charge(hash, &LAST, self.now));
    }

    /// Opens `flows` flows of `source`.
    pub(crate) fn open_from<A: Family>(&mut self, source: A, flows: u32) {
        let places = admission::source_places(self.settings.hash_key, source);
        self.open.borrow_mut().extend(places.map(|place| (Counted::Source(place), flows)));
    }

    /// Opens `flows` flows to the service at `port`.
    pub(crate) fn open_to(&mut self, port: u16, flows: u32) {
        self.open.borrow_mut().insert(Counted::Service(port.into()), flows);
    }

    fn sketch(&self) -> &Sketch {
        self.replies.get_or_init(Box::default)
    }

    /// The bucket as it is in front of these flows.
    pub(crate) fn front(&self, bucket: u32) -> Bucket {
        let mut front = Bucket { crowded: self.crowded.into(), ..Bucket::default() };
        let places = [places::<V4>(self), places::<V6>(self)].concat();
        for place in places.iter().filter(|place| !self.crowded && place.bucket == bucket) {
            front.enter(place.tag);
        }
        front
    }

    /// Puts the flow into TIME_WAIT, in the last place of its bucket.
    pub(crate) fn remember<A: Family>(&mut self, flow: &FlowKey<A>) {
        let (place, word) = fingerprint(self.settings.hash_key, flow);
        self.fingerprints.entry(place).or_default()[3] = word;
    }
}

/// Where the flows of one family stand in the front.
pub(crate) fn places<A: Place>(world: &World) -> Vec<known::Place> {
    A::flows(world).borrow().keys().map(|key| known::Place::of(world.settings.hash_key, key)).collect()
}

impl Epochs for World {
    fn slot(&self, epoch: u32) -> Option<&EpochSlot> {
        self.epochs.slot(epoch)
    }
}

impl Ledger for World {
    fn replies(&self) -> Option<&Sketch> {
        Some(self.sketch())
    }

    fn stateful(&self, dry_run: bool) -> Option<&Cell<u64>> {
        Some(&self.stateful[usize::from(dry_run)])
    }

    fn verified(&self, place: u32) -> u64 {
        self.verified.borrow().get(&place).copied().unwrap_or(0)
    }

    fn set_verified(&self, place: u32, word: u64) {
        self.verified.borrow_mut().insert(place, word);
    }

    fn paces(&self) -> Option<&Sketch> {
        Some(self.paces.get_or_init(Box::default))
    }

    fn complaints(&self) -> Option<&Sketch> {
        Some(self.complaints.get_or_init(Box::default))
    }
}

impl Census for World {
    fn arrivals(&self) -> Option<&Sketch> {
        Some(self.arrivals.get_or_init(Box::default))
    }

    fn open_flows(&self, place: Counted) -> u32 {
        self.open.borrow().get(&place).copied().unwrap_or(0)
    }

    fn flow_opened(&self, place: Counted) {
        *self.open.borrow_mut().entry(place).or_default() += 1;
    }
}

impl<A: Place> Tables<A> for World {
    fn place(&self, index: u32) -> Option<ServicePlace<A>> {
        let mut place = ServicePlace::EMPTY;
        let here = A::services(self).iter().filter(|(key, _)| key.place() == index);
        here.for_each(|(key, service)| place.add(*key, *service));
        Some(place)
    }

    fn service(&self, key: &ServiceKey<A>) -> Option<Service> {
        A::services(self).get(key).copied()
    }

    fn knows_flow(&self, key: &FlowKey<A>) -> bool {
        A::flows(self).borrow().contains_key(key)
    }

    fn insert_flow(&self, key: &FlowKey<A>, flow: &Flow) -> Insertion {
        let mut flows = A::flows(self).borrow_mut();
        if flows.contains_key(key) {
            return Insertion::Known;
        }
        if flows.len() == self.max_flows {
            return Insertion::Full;
        }
        flows.insert(*key, *flow);
        Insertion::Inserted
    }
}

impl Env for World {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn interface(&self) -> Option<&Interface> {
        Some(&self.interface)
    }

    fn ports(&self, word: u32) -> u64 {
        self.ports[word as usize]
    }

    fn is_vacant(&self, bucket: u32) -> bool {
        let remembered = || self.fingerprints.keys().any(|place| place % known::BUCKETS == bucket);
        self.front(bucket) == Bucket::default() && !remembered()
    }

    fn presence(&self, place: known::Place) -> Presence {
        self.front(place.bucket).presence(place.tag)
    }

    fn enter(&self, _: known::Place) {}

    fn fingerprints(&self, place: u32) -> [u32; WAYS as usize] {
        self.fingerprints.get(&place).copied().unwrap_or_default()
    }

    fn queue(&self) -> u32 {
        0
    }

    fn engine(&self, queue: u32) -> u32 {
        assert_eq!(queue, 0);
        self.engine
    }

    fn heartbeat(&self, engine: u32) -> u64 {
        assert_eq!(engine, self.engine);
        let beat = if self.beating { heartbeat(self.now, self.pressed) } else { 0 };
        self.last_beat.unwrap_or(beat)
    }

    fn has_socket(&self, engine: u32) -> bool {
        assert_eq!(engine, self.engine);
        self.socket
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn count(&self, reason: Reason, service: u32, dry_run: bool) {
        self.counted.borrow_mut().push(reason);
        self.served.borrow_mut().push((service, dry_run));
    }

    fn trace_arrival(&self, service: u32) {
        self.traced.borrow_mut().push(Traced::Arrival(service));
    }

    fn trace_verdict(&self, reason: Reason, answered: bool, _dry_run: bool) {
        self.traced.borrow_mut().push(Traced::Verdict(reason, answered));
    }
}
