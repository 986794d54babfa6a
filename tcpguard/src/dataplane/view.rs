//! The maps as one frame would find them, for a frame that nobody sent. What the decision asks is read and written down;
//! what it would change is left alone, and only said. The decision itself is `tcpguard-common`'s.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tcpguard_common::cookie::Epochs;
use tcpguard_common::decision::admission::{Census, Counted};
use tcpguard_common::decision::budget::{self, Ledger};
use tcpguard_common::decision::filter::{Rules, Spans};
use tcpguard_common::decision::{Env, Insertion, Tables};
use tcpguard_common::filter::{ALLOW, FilterRule, Head, SpanV4, SpanV6};
use tcpguard_common::fingerprint::WAYS;
use tcpguard_common::flow::{Address, FlowKey, V4, V6};
use tcpguard_common::known::{Bucket, Place, Presence};
use tcpguard_common::map::{
    EPOCH_SLOTS, EpochSlot, Flow, Interface, MAX_QUEUES, PLACE_HELD, PLACE_SHARED, Service, ServiceKey,
    ServicePlace, Settings, is_under_pressure, name, xsk_index,
};
use tcpguard_common::reason::Reason;
use tcpguard_common::sketch::{Sketch, WORDS};

use super::bpf::{self, Map};
use super::clock::coarse_clock_ns;
use super::error::DataplaneError;
use super::flows::FlowTable;
use super::maps::Maps;
use super::pins::PinDir;
use super::shared::{Fingerprints, Heartbeats};
use crate::config::duration;

/// What a view reads, for any thread. Nothing in here writes.
#[derive(Clone, Debug)]
pub struct Views {
    settings: Settings,
    epochs: [EpochSlot; EPOCH_SLOTS as usize],
    interfaces: Map<u32, Interface>,
    ports: Map<u32, u64>,
    services_v4: Map<ServiceKey<V4>, Service>,
    services_v6: Map<ServiceKey<V6>, Service>,
    places_v4: Map<u32, ServicePlace<V4>>,
    places_v6: Map<u32, ServicePlace<V6>>,
    known: Map<u32, Bucket>,
    replies: Map<u32, [u64; WORDS]>,
    verified: Map<u32, u64>,
    arrivals: Map<u32, [u64; WORDS]>,
    paces: Map<u32, [u64; WORDS]>,
    complaints: Map<u32, [u64; WORDS]>,
    stateful: Map<u32, u64>,
    service_flows: Map<u32, i64>,
    source_flows: Map<u32, i64>,
    heads_v4: Map<u32, Head>,
    heads_v6: Map<u32, Head>,
    spans_v4: Map<u32, SpanV4>,
    spans_v6: Map<u32, SpanV6>,
    rules: Map<u32, FilterRule>,
    flows: FlowTable,
    heartbeats: Heartbeats,
    fingerprints: Fingerprints,
}

impl Views {
    pub(super) fn open(maps: &Maps, pins: &PinDir) -> Result<Self, DataplaneError> {
        let open = |map: &'static str| -> Result<OwnedFd, DataplaneError> {
            bpf::get(&pins.map(map)).map_err(|source| DataplaneError::Map { action: "open", map, source })
        };
        // SAFETY: key and value sizes are those of the types: the maps were checked against them when the pins were opened.
        unsafe {
            Ok(Self {
                settings: maps.read_settings()?,
                epochs: maps.read_epochs()?,
                interfaces: maps.interfaces.clone(),
                ports: maps.ports.clone(),
                services_v4: maps.services_v4.clone(),
                services_v6: maps.services_v6.clone(),
                places_v4: maps.places_v4.clone(),
                places_v6: maps.places_v6.clone(),
                known: Map::from_fd(open(name::KNOWN)?),
                replies: Map::from_fd(open(name::REPLIES)?),
                verified: Map::from_fd(open(name::VERIFIED)?),
                arrivals: Map::from_fd(open(name::ARRIVALS)?),
                paces: Map::from_fd(open(name::PACES)?),
                complaints: Map::from_fd(open(name::COMPLAINTS)?),
                stateful: Map::from_fd(open(name::STATEFUL)?),
                service_flows: Map::from_fd(open(name::SERVICE_FLOWS)?),
                source_flows: Map::from_fd(open(name::SOURCE_FLOWS)?),
                heads_v4: Map::from_fd(open(name::FILTER_HEADS_V4)?),
                heads_v6: Map::from_fd(open(name::FILTER_HEADS_V6)?),
                spans_v4: Map::from_fd(open(name::FILTER_SPANS_V4)?),
                spans_v6: Map::from_fd(open(name::FILTER_SPANS_V6)?),
                rules: Map::from_fd(open(name::FILTER_RULES)?),
                flows: maps.flows.clone(),
                heartbeats: maps.heartbeats.clone(),
                fingerprints: maps.fingerprints.clone(),
            })
        }
    }
}

/// Where a frame would arrive, and what the maps do not say.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The interface's slot.
    pub slot: u32,
    /// The receive queue.
    pub queue: u32,
    /// The engines that have a socket: nobody but XDP may look that up.
    pub sockets: Vec<u32>,
    /// What to call each service, by its id.
    pub services: HashMap<u32, String>,
}

/// One thing that the decision asked, and what it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What was looked at.
    pub what: &'static str,
    /// What was found there.
    pub found: String,
}

/// The maps and the clock as one frame finds them, and the minutes of what it asked.
#[derive(Debug)]
pub struct View {
    views: Views,
    arrival: Arrival,
    interface: Option<Interface>,
    now: u64,
    /// Copies, these and the four below: whatever is charged to them is forgotten.
    replies: OnceCell<Option<Box<Sketch>>>,
    arrivals: OnceCell<Option<Box<Sketch>>>,
    paces: OnceCell<Option<Box<Sketch>>>,
    complaints: OnceCell<Option<Box<Sketch>>>,
    stateful: OnceCell<Option<Cell<u64>>>,
    spans_v4: Kept<SpanV4>,
    spans_v6: Kept<SpanV6>,
    rules: Kept<FilterRule>,
    steps: RefCell<Vec<Step>>,
    reason: Cell<Option<Reason>>,
    dry_run: Cell<bool>,
}

impl View {
    /// Looks at the interface; everything else is looked at when the decision asks.
    pub fn new(views: Views, arrival: Arrival) -> Self {
        let interface = views.interfaces.lookup(&arrival.slot).ok().flatten();
        let view = Self {
            views,
            arrival,
            interface,
            now: coarse_clock_ns(),
            replies: OnceCell::new(),
            arrivals: OnceCell::new(),
            paces: OnceCell::new(),
            complaints: OnceCell::new(),
            stateful: OnceCell::new(),
            spans_v4: Kept::default(),
            spans_v6: Kept::default(),
            rules: Kept::default(),
            steps: RefCell::default(),
            reason: Cell::new(None),
            dry_run: Cell::new(false),
        };
        view.note(
            "interface",
            match &view.interface {
                Some(Interface { mac, armed, queues, ifindex }) => {
                    let armed = if *armed != 0 { "armed" } else { "not armed" };
                    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
                    format!("index {ifindex}, {armed}, MAC {mac}, queues {queues}")
                }
                None => "unknown".to_owned(),
            },
        );
        view
    }

    /// The MAC address of the interface.
    pub fn mac(&self) -> Option<[u8; 6]> {
        self.interface.map(|interface| interface.mac)
    }

    /// What was asked, in order, and the reason under which the frame would have been counted.
    pub fn minutes(self) -> (Vec<Step>, Option<Reason>) {
        (self.steps.into_inner(), self.reason.get())
    }

    fn note(&self, what: &'static str, found: impl Into<String>) {
        self.steps.borrow_mut().push(Step { what, found: found.into() });
    }

    /// What a map holds under a key. A failure to read it is noted, and is nothing.
    fn read<K: aya::Pod, V: aya::Pod>(&self, what: &'static str, map: &Map<K, V>, key: &K) -> Option<V> {
        map.lookup(key).unwrap_or_else(|error| {
            self.note(what, format!("could not be read: {error}"));
            None
        })
    }

    fn copy(&self, what: &'static str, map: &Map<u32, [u64; WORDS]>, index: u32) -> Option<Box<Sketch>> {
        Some(Box::new(Sketch::from_words(self.read(what, map, &index)?)))
    }

    fn service_name(&self, service: &Service) -> &str {
        self.arrival.services.get(&service.id).map_or("unknown", String::as_str)
    }

    fn note_place<A: Address>(&self, place: &ServicePlace<A>) {
        let mut found = String::new();
        if place.state & PLACE_HELD != 0 {
            found += self.service_name(&place.service);
            if place.service.strictness.at(self.views.settings.epoch) {
                found += ", strict cookies";
            }
        }
        if place.state & PLACE_SHARED != 0 {
            found += ", and others";
        }
        self.note("service place", if found.is_empty() { "nobody's" } else { found.as_str() });
    }

    fn note_service(&self, found: Option<&Service>) {
        let mut said = found.map_or("none", |service| self.service_name(service)).to_owned();
        if found.is_some_and(|service| service.strictness.at(self.views.settings.epoch)) {
            said += ", strict cookies";
        }
        self.note("service", said);
    }

    fn note_head(&self, head: Option<Head>) {
        let found = match head {
            None | Some(Head { first: 0, spans: 0 }) => "no prefix around or near the source",
            Some(Head { spans: 0, .. }) => "one prefix around the source and its neighbours",
            Some(_) => "prefixes near the source",
        };
        self.note("filters", found);
    }

    fn since(&self, then: u64) -> String {
        duration::format(Duration::from_nanos(self.now.saturating_sub(then)))
    }
}

impl Epochs for View {
    fn slot(&self, epoch: u32) -> Option<&EpochSlot> {
        let slot = self.views.epochs.get((epoch % EPOCH_SLOTS) as usize).filter(|slot| slot.is_usable(epoch));
        self.note("cookie key", format!("epoch {epoch}: {}", if slot.is_some() { "usable" } else { "none" }));
        slot
    }
}

impl Rules for View {
    fn rule(&self, index: u32) -> Option<&FilterRule> {
        let rule = self.rules.keep(self.read("filter", &self.views.rules, &index)?);
        let action = if rule.action == ALLOW { "allow" } else { "deny" };
        let alive = if rule.is_alive(self.now) { "in force" } else { "expired" };
        self.note("filter", format!("{action}, {alive}"));
        Some(rule)
    }

    fn hit(&self, _bank: u32, _rule: u32) {}
}

impl Ledger for View {
    fn replies(&self) -> Option<&Sketch> {
        let queue = self.arrival.queue % MAX_QUEUES;
        self.replies.get_or_init(|| self.copy("reply budgets", &self.views.replies, queue)).as_deref()
    }

    fn stateful(&self, dry_run: bool) -> Option<&Cell<u64>> {
        const WHAT: &str = "what is left to the stack";
        self.note(WHAT, "held against stateful-rate");
        let index = self.arrival.queue % MAX_QUEUES + MAX_QUEUES * u32::from(dry_run);
        self.stateful.get_or_init(|| self.read(WHAT, &self.views.stateful, &index).map(Cell::new)).as_ref()
    }

    fn paces(&self) -> Option<&Sketch> {
        self.note("pace", "the engine's ring is under pressure: the flow's pace counts");
        self.paces.get_or_init(|| self.copy("pace", &self.views.paces, 0)).as_deref()
    }

    fn complaints(&self) -> Option<&Sketch> {
        self.note("ICMP errors", "held against icmp-rate");
        self.complaints.get_or_init(|| self.copy("ICMP errors", &self.views.complaints, 0)).as_deref()
    }

    fn verified(&self, place: u32) -> u64 {
        let word = self.read("verified sources", &self.views.verified, &place).unwrap_or(0);
        let found = if word == 0 { "nobody in the source's place" } else { "somebody in the source's place" };
        self.note("verified sources", found);
        word
    }

    fn set_verified(&self, _place: u32, _word: u64) {
        self.note("verified sources", "the source would be among them");
    }
}

impl Census for View {
    fn arrivals(&self) -> Option<&Sketch> {
        self.note("source's new flows", "held against source-rate");
        self.arrivals.get_or_init(|| self.copy("source's new flows", &self.views.arrivals, 0)).as_deref()
    }

    fn open_flows(&self, place: Counted) -> u32 {
        let (what, map, index) = match place {
            Counted::Service(id) => ("service's flows", &self.views.service_flows, id),
            Counted::Source(place) => ("source's flows", &self.views.source_flows, place),
        };
        // A flow may be gone before whoever entered it has counted it.
        let open = u32::try_from(self.read(what, map, &index).unwrap_or(0)).unwrap_or(0);
        self.note(what, format!("{open} open"));
        open
    }

    fn flow_opened(&self, _place: Counted) {}
}

impl Env for View {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.views.settings)
    }

    fn interface(&self) -> Option<&Interface> {
        self.interface.as_ref()
    }

    fn ports(&self, word: u32) -> u64 {
        let bits = self.read("ports", &self.views.ports, &word).unwrap_or(0);
        let mut found = format!("protected from {} to {}:", 64 * word, 64 * word + 63);
        for port in (0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| 64 * word + bit) {
            // Writing to a string has no way to fail.
            let _ = write!(found, " {port}");
        }
        self.note("ports", if bits == 0 { found + " none" } else { found });
        bits
    }

    fn presence(&self, place: Place) -> Presence {
        let bucket = self.read("flow table", &self.views.known, &place.bucket).unwrap_or_default();
        let presence = bucket.presence(place.tag);
        self.note(
            "flow table",
            match presence {
                Presence::Known => "known",
                Presence::Unknown => "unknown",
                Presence::Unsure => "to be looked up",
            },
        );
        presence
    }

    fn enter(&self, _place: Place) {}

    fn fingerprints(&self, place: u32) -> [u32; WAYS as usize] {
        let words = self.views.fingerprints.words(place);
        let held = words.iter().filter(|&&word| word != 0).count();
        self.note("TIME_WAIT", format!("{held} flows in the bucket"));
        words
    }

    fn queue(&self) -> u32 {
        self.arrival.queue
    }

    fn engine(&self, queue: u32) -> u32 {
        xsk_index(self.arrival.slot, queue)
    }

    fn heartbeat(&self, engine: u32) -> u64 {
        let last = self.views.heartbeats.of(engine).map_or(0, |heartbeat| heartbeat.last());
        let pressure = if is_under_pressure(last) { ", its ring under pressure" } else { "" };
        let found = match last {
            0 => "never turned".to_owned(),
            last => format!("turned {} ago{pressure}", self.since(last)),
        };
        self.note("engine", found);
        last
    }

    fn has_socket(&self, engine: u32) -> bool {
        let has = self.arrival.sockets.contains(&engine);
        self.note("engine's socket", if has { "there" } else { "gone" });
        has
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn count(&self, reason: Reason, _service: u32, dry_run: bool) {
        if dry_run {
            self.note("service", "in dry run: counted, and left to the host");
        }
        self.dry_run.set(dry_run);
        self.reason.set(Some(reason));
    }

    fn trace_arrival(&self, _service: u32) {}

    fn trace_verdict(&self, _reason: Reason, _answered: bool, _dry_run: bool) {}
}

macro_rules! tables {
    ($family:ty, $span:ty, $places:ident, $services:ident, $heads:ident, $spans:ident) => {
        impl Tables<$family> for View {
            fn place(&self, index: u32) -> Option<ServicePlace<$family>> {
                let place = self.read("service place", &self.views.$places, &index)?;
                self.note_place(&place);
                Some(place)
            }

            fn service(&self, key: &ServiceKey<$family>) -> Option<Service> {
                let service = self.read("service", &self.views.$services, key);
                self.note_service(service.as_ref());
                service
            }

            fn knows_flow(&self, key: &FlowKey<$family>) -> bool {
                let known =
                    self.views.flows.lookup(&<$family>::any_key(*key)).is_ok_and(|flow| flow.is_some());
                self.note("flow table", if known { "known" } else { "unknown" });
                known
            }

            fn insert_flow(&self, key: &FlowKey<$family>, _flow: &Flow) -> Insertion {
                let known =
                    self.views.flows.lookup(&<$family>::any_key(*key)).is_ok_and(|flow| flow.is_some());
                if known {
                    self.note("flow table", "has the flow already");
                    return Insertion::Known;
                }
                self.note("flow table", "the flow would be inserted, if there is room");
                Insertion::Inserted
            }
        }

        impl Spans<$family> for View {
            fn head(&self, index: u32) -> Option<Head> {
                let head = self.read("filters", &self.views.$heads, &index);
                self.note_head(head);
                head
            }

            fn span(&self, index: u32) -> Option<&$span> {
                self.read("filters", &self.views.$spans, &index).map(|span| self.$spans.keep(span))
            }
        }
    };
}

tables!(V4, SpanV4, places_v4, services_v4, heads_v4, spans_v4);
tables!(V6, SpanV6, places_v6, services_v6, heads_v6, spans_v6);

impl View {
    /// What is left of the budget of a source's prefix: SYN-ACKs that could be sent at once. `None` without a limit.
    pub fn replies_left<A: Address>(&self, source: A) -> Option<u64> {
        let rate = &self.views.settings.limits.replies;
        let spent =
            self.replies()?.spent_until(budget::reply_hash(&self.views.settings, source, self.dry_run.get()));
        let ahead = (self.now + rate.ahead).checked_sub(spent.max(self.now));
        (rate.interval != 0).then(|| ahead.map_or(0, |ahead| ahead / rate.interval + 1))
    }
}

/// Values that were read and are lent out until the end.
#[derive(Debug)]
struct Kept<T> {
    first: OnceCell<Box<Node<T>>>,
}

#[derive(Debug)]
struct Node<T> {
    value: T,
    next: OnceCell<Box<Node<T>>>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { first: OnceCell::new() }
    }
}

impl<T> Kept<T> {
    fn keep(&self, value: T) -> &T {
        let mut place = &self.first;
        while let Some(node) = place.get() {
            place = &node.next;
        }
        &place.get_or_init(|| Box::new(Node { value, next: OnceCell::new() })).value
    }
}

#[cfg(test)]
mod tests {
    use super::Kept;

    #[test]
    fn what_is_kept_stays_where_it_is() {
        let kept = Kept::default();
        let values: Vec<&u32> = (0..20).map(|value| kept.keep(value)).collect();
        assert!(values.iter().zip(0..20).all(|(&&held, value)| held == value));
    }
}
