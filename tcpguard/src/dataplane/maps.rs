//! Typed views of the maps that the daemon writes and XDP reads, opened from their pins. What goes into them is decided
//! elsewhere.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::Pod;
use aya::maps::MapInfo;
use tcpguard_common::cookie::Strictness;
use tcpguard_common::filter::{
    BANKS, FilterRule, HEADS, HIT_BLOCKS, HITS_PER_BLOCK, Head, RULES, SPANS, SpanV4, SpanV6,
};
use tcpguard_common::fingerprint::{MOST_SPREAD, WAYS};
use tcpguard_common::flow::{Address, FlowKey, V4, V6};
use tcpguard_common::known::{BUCKETS, Bucket, OCCUPIED_WORDS};
use tcpguard_common::map::{
    DRY_RUN, EPOCH_SLOTS, EpochSlot, Flow, Interface, MAX_INTERFACES, MAX_QUEUES, MAX_SERVICES, MODE_OFF,
    PLACE_SHARED, PORT_WORDS, SERVICE_IDS, SERVICE_PLACES, SOURCE_PLACES, Service, ServiceKey, ServicePlace,
    Settings, VERIFIED, XSK_ENTRIES, name, xsk_index,
};
use tcpguard_common::reason::{Class, Reason};
use tcpguard_common::sketch::WORDS;
use tcpguard_common::trace::{LOST, RING_BYTES};

use super::bpf::{self, ANY, Map, PerCpuArray};
use super::census::Counts;
use super::error::DataplaneError;
use super::flows::FlowTable;
use super::pins::PinDir;
use super::shared::{Buckets, Fingerprints, Front, Heartbeats};

/// One protected address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The protected address; the unspecified one stands for any address of its family.
    pub addr: IpAddr,
    /// The protected TCP port, 1–65535.
    pub port: u16,
    /// Index of the service in the daemon's configuration.
    pub id: u32,
    /// One of the `MODE_*` constants of `tcpguard_common::map`, and its `DRY_RUN` beside it or not.
    pub mode: u16,
    /// In which epochs its cookies are strict.
    pub strictness: Strictness,
}

/// The reason counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    rows: Vec<Vec<u64>>,
}

impl Counters {
    /// Segments counted under `reason`, all CPUs together.
    pub fn total(&self, reason: Reason) -> u64 {
        self.per_cpu(reason).iter().sum()
    }

    /// Segments counted under `reason` on each possible CPU.
    pub fn per_cpu(&self, reason: Reason) -> &[u64] {
        self.rows.get(reason as usize).map_or(&[], Vec::as_slice)
    }

    /// Segments counted under `reason` that passed for a dry run, all CPUs together.
    pub fn dry_run(&self, reason: Reason) -> u64 {
        self.rows.get(Reason::COUNT + reason as usize).map_or(0, |cpus| cpus.iter().sum())
    }
}

/// What was counted of one service's segments at one moment, all CPUs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    classes: [u64; Class::PLACES],
}

impl ServiceCounters {
    /// Segments of this class.
    pub fn of(&self, class: Class) -> u64 {
        self.classes[class as usize]
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            classes: std::array::from_fn(|class| self.classes[class].saturating_sub(earlier.classes[class])),
        }
    }
}

/// What a map must look like for userspace and XDP to agree on it.
struct Layout {
    name: &'static str,
    key_size: usize,
    value_size: usize,
    /// 0: sized by an option.
    max_entries: u32,
}

impl Layout {
    const fn of<K, V>(name: &'static str, max_entries: u32) -> Self {
        Self { name, key_size: size_of::<K>(), value_size: size_of::<V>(), max_entries }
    }
}

/// Every map that the instances of the program share through a pin.
const SHARED: [Layout; 33] = [
    Layout::of::<u32, Settings>(name::SETTINGS, 1),
    Layout::of::<u32, EpochSlot>(name::EPOCHS, EPOCH_SLOTS),
    Layout::of::<u32, Interface>(name::INTERFACES, MAX_INTERFACES),
    Layout::of::<u32, u64>(name::PORTS, PORT_WORDS),
    Layout::of::<ServiceKey<V4>, Service>(name::SERVICES_V4, MAX_SERVICES),
    Layout::of::<ServiceKey<V6>, Service>(name::SERVICES_V6, MAX_SERVICES),
    Layout::of::<u32, ServicePlace<V4>>(name::SERVICE_PLACES_V4, SERVICE_PLACES),
    Layout::of::<u32, ServicePlace<V6>>(name::SERVICE_PLACES_V6, SERVICE_PLACES),
    Layout::of::<FlowKey<V4>, Flow>(name::FLOWS_V4, 0),
    Layout::of::<FlowKey<V6>, Flow>(name::FLOWS_V6, 0),
    Layout::of::<u32, Bucket>(name::KNOWN, BUCKETS),
    Layout::of::<u32, u64>(name::OCCUPIED, OCCUPIED_WORDS),
    Layout::of::<u32, u32>(name::SOCKETS, XSK_ENTRIES),
    Layout::of::<u32, u64>(name::HEARTBEATS, XSK_ENTRIES),
    Layout::of::<u32, [u32; WAYS as usize]>(name::TIME_WAIT, 0),
    Layout::of::<u32, [u64; WORDS]>(name::REPLIES, MAX_QUEUES),
    Layout::of::<u32, u64>(name::STATEFUL, 2 * MAX_QUEUES),
    Layout::of::<u32, u64>(name::VERIFIED, VERIFIED),
    Layout::of::<u32, [u64; WORDS]>(name::ARRIVALS, 1),
    Layout::of::<u32, [u64; WORDS]>(name::PACES, 1),
    Layout::of::<u32, [u64; WORDS]>(name::COMPLAINTS, 1),
    Layout::of::<u32, i64>(name::SERVICE_FLOWS, SERVICE_IDS),
    Layout::of::<u32, i64>(name::SOURCE_FLOWS, 2 * SOURCE_PLACES),
    Layout::of::<u32, u64>(name::COUNTERS, 2 * Reason::COUNT as u32),
    Layout::of::<u32, [u64; Class::PLACES]>(name::SERVICE_COUNTERS, 2 * SERVICE_IDS),
    Layout::of::<(), ()>(name::TRACE, RING_BYTES),
    Layout::of::<u32, u64>(name::TRACE_LOST, LOST),
    Layout::of::<u32, Head>(name::FILTER_HEADS_V4, BANKS * HEADS),
    Layout::of::<u32, Head>(name::FILTER_HEADS_V6, BANKS * HEADS),
    Layout::of::<u32, SpanV4>(name::FILTER_SPANS_V4, BANKS * SPANS),
    Layout::of::<u32, SpanV6>(name::FILTER_SPANS_V6, BANKS * SPANS),
    Layout::of::<u32, FilterRule>(name::FILTER_RULES, BANKS * RULES),
    Layout::of::<u32, [u64; HITS_PER_BLOCK as usize]>(name::FILTER_HITS, BANKS * HIT_BLOCKS),
];

/// The names of the shared maps.
pub(super) fn shared_names() -> impl Iterator<Item = &'static str> {
    SHARED.iter().map(|layout| layout.name)
}

/// The settings as two write them: the guard, who writes them whole, and whoever fills the filter tables, whose one word
/// the guard's writes leave alone.
#[derive(Clone, Debug)]
pub(super) struct SettingsMap {
    map: Map<u32, Settings>,
    /// [`Settings::filters`], held while anybody writes.
    filters: Arc<Mutex<u32>>,
}

impl SettingsMap {
    fn new(map: Map<u32, Settings>) -> Result<Self, DataplaneError> {
        let settings = Self { map, filters: Arc::default() };
        *settings.lock() = settings.read()?.filters;
        Ok(settings)
    }

    fn lock(&self) -> MutexGuard<'_, u32> {
        // A word is never half written.
        self.filters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read(&self) -> Result<Settings, DataplaneError> {
        let read = self.map.lookup(&0).map_err(|source| DataplaneError::Map {
            action: "read",
            map: name::SETTINGS,
            source,
        })?;
        Ok(read.unwrap_or_default())
    }

    /// Writes `settings`, but for the filters' word.
    pub(super) fn write(&self, settings: &Settings) -> Result<(), DataplaneError> {
        let filters = self.lock();
        write(&self.map, name::SETTINGS, &0, &Settings { filters: *filters, ..*settings })
    }

    /// The filters' word.
    pub(super) fn filters(&self) -> u32 {
        *self.lock()
    }

    /// Writes the filters' word alone.
    pub(super) fn write_filters(&self, word: u32) -> Result<(), DataplaneError> {
        let mut filters = self.lock();
        write(&self.map, name::SETTINGS, &0, &Settings { filters: word, ..self.read()? })?;
        *filters = word;
        Ok(())
    }
}

/// The maps.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) settings: SettingsMap,
    pub(super) epochs: Map<u32, EpochSlot>,
    pub(super) interfaces: Map<u32, Interface>,
    pub(super) ports: Map<u32, u64>,
    pub(super) services_v4: Map<ServiceKey<V4>, Service>,
    pub(super) services_v6: Map<ServiceKey<V6>, Service>,
    pub(super) places_v4: Map<u32, ServicePlace<V4>>,
    pub(super) places_v6: Map<u32, ServicePlace<V6>>,
    sockets: Map<u32, u32>,
    replies: Map<u32, [u64; WORDS]>,
    arrivals: Map<u32, [u64; WORDS]>,
    paces: Map<u32, [u64; WORDS]>,
    complaints: Map<u32, [u64; WORDS]>,
    pub(super) counts: Counts,
    stateful: Map<u32, u64>,
    counters: PerCpuArray,
    service_counters: PerCpuArray,
    pub(super) flows: FlowTable,
    pub(super) heartbeats: Heartbeats,
    pub(super) fingerprints: Fingerprints,
}

impl Maps {
    /// Opens the pins in `dir`; `None` if one is missing or of another layout than this daemon's.
    pub(super) fn open(dir: &PinDir) -> Result<Option<Self>, DataplaneError> {
        let mut infos = HashMap::new();
        for layout in &SHARED {
            let Ok(info) = MapInfo::from_pin(dir.map(layout.name)) else { return Ok(None) };
            if !matches(layout, &info) {
                tracing::debug!(map = layout.name, "pinned map of another layout");
                return Ok(None);
            }
            infos.insert(layout.name, info);
        }
        let failed = |map| move |source| DataplaneError::Map { action: "open", map, source };
        let open = |map: &'static str| bpf::get(&dir.map(map)).map_err(failed(map));
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| failed(name::COUNTERS)(source))?;
        let capacity = infos[name::FLOWS_V4].max_entries();
        let entries = infos[name::TIME_WAIT].max_entries();
        let Some(spread) = (0..=MOST_SPREAD).find(|spread| BUCKETS << spread == entries) else {
            return Ok(None);
        };
        let (known, waiting, occupied) = (open(name::KNOWN)?, open(name::TIME_WAIT)?, open(name::OCCUPIED)?);
        let buckets = Buckets::map(known.as_fd(), waiting.as_fd(), spread, occupied.as_fd())
            .map_err(failed(name::OCCUPIED))?;
        // SAFETY: key and value sizes are those of the types, checked against `SHARED` above.
        let (v4, v6) = unsafe { (Map::from_fd(open(name::FLOWS_V4)?), Map::from_fd(open(name::FLOWS_V6)?)) };
        let flows = FlowTable::new(v4, v6, capacity, Front::new(Arc::clone(&buckets)));
        let heartbeats = Heartbeats::map(open(name::HEARTBEATS)?.as_fd(), XSK_ENTRIES)
            .map_err(failed(name::HEARTBEATS))?;
        let (services, sources) = (open(name::SERVICE_FLOWS)?, open(name::SOURCE_FLOWS)?);
        let counts = Counts::map(services.as_fd(), sources.as_fd()).map_err(failed(name::SOURCE_FLOWS))?;
        // SAFETY: as above; COUNTERS is the per-CPU array of 8-byte values that the object declares.
        let maps = unsafe {
            Self {
                settings: SettingsMap::new(Map::from_fd(open(name::SETTINGS)?))?,
                epochs: Map::from_fd(open(name::EPOCHS)?),
                interfaces: Map::from_fd(open(name::INTERFACES)?),
                ports: Map::from_fd(open(name::PORTS)?),
                services_v4: Map::from_fd(open(name::SERVICES_V4)?),
                services_v6: Map::from_fd(open(name::SERVICES_V6)?),
                places_v4: Map::from_fd(open(name::SERVICE_PLACES_V4)?),
                places_v6: Map::from_fd(open(name::SERVICE_PLACES_V6)?),
                sockets: Map::from_fd(open(name::SOCKETS)?),
                replies: Map::from_fd(open(name::REPLIES)?),
                arrivals: Map::from_fd(open(name::ARRIVALS)?),
                paces: Map::from_fd(open(name::PACES)?),
                complaints: Map::from_fd(open(name::COMPLAINTS)?),
                counts,
                stateful: Map::from_fd(open(name::STATEFUL)?),
                counters: PerCpuArray::from_fd(open(name::COUNTERS)?, cpus, 1),
                service_counters: PerCpuArray::from_fd(open(name::SERVICE_COUNTERS)?, cpus, Class::PLACES),
                flows,
                heartbeats,
                fingerprints: Fingerprints::new(buckets),
            }
        };
        maps.flows.front.set_hash_key(maps.read_settings()?.hash_key);
        Ok(Some(maps))
    }

    pub(super) fn read_settings(&self) -> Result<Settings, DataplaneError> {
        self.settings.read()
    }

    pub(super) fn read_epochs(&self) -> Result<[EpochSlot; EPOCH_SLOTS as usize], DataplaneError> {
        let mut slots = [EpochSlot::default(); EPOCH_SLOTS as usize];
        for (index, slot) in (0..).zip(&mut slots) {
            let read = self.epochs.lookup(&index).map_err(|source| DataplaneError::Map {
                action: "read",
                map: name::EPOCHS,
                source,
            })?;
            *slot = read.unwrap_or_default();
        }
        Ok(slots)
    }

    pub(super) fn read_interface(&self, slot: u32) -> Result<Interface, DataplaneError> {
        let read = self.interfaces.lookup(&slot).map_err(|source| DataplaneError::Map {
            action: "read",
            map: name::INTERFACES,
            source,
        })?;
        Ok(read.unwrap_or_default())
    }

    pub(super) fn write_interface(&self, slot: u32, interface: &Interface) -> Result<(), DataplaneError> {
        write(&self.interfaces, name::INTERFACES, &slot, interface)
    }

    /// Writes what changed. A slot that is in use keeps its bytes throughout.
    pub(super) fn write_epochs(&self, slots: &[EpochSlot]) -> Result<(), DataplaneError> {
        let held = self.read_epochs()?;
        for (index, (slot, held)) in (0..).zip(slots.iter().zip(&held)) {
            if slot != held {
                write(&self.epochs, name::EPOCHS, &index, slot)?;
            }
        }
        Ok(())
    }

    pub(super) fn write_settings(&self, settings: &Settings) -> Result<(), DataplaneError> {
        self.flows.front.set_hash_key(settings.hash_key);
        self.settings.write(settings)
    }

    /// Makes the service maps and the port bitmap equal to `services`. Services that stay are guarded throughout: new
    /// entries come before the places in front of them and the bitmap, old ones go after.
    pub(super) fn set_services(&self, services: &[ServiceEntry]) -> Result<(), DataplaneError> {
        let (mut v4, mut v6) = (HashMap::new(), HashMap::new());
        let mut ports = vec![0u64; PORT_WORDS as usize];
        for entry in services {
            let ServiceEntry { addr: _, port: _, id, mode, strictness } = *entry;
            let service = Service { id, mode, strictness };
            let port = entry.port.to_be_bytes();
            match entry.addr {
                IpAddr::V4(addr) => v4.insert(ServiceKey::new(V4(addr.octets()), port), service),
                IpAddr::V6(addr) => v6.insert(ServiceKey::new(V6(addr.octets()), port), service),
            };
            ports[usize::from(entry.port / 64)] |= 1 << (entry.port % 64);
            let guarded_v6 = entry.addr.is_ipv6() && entry.mode != MODE_OFF && entry.mode & DRY_RUN == 0;
            ports[0] |= u64::from(guarded_v6);
        }
        let old_v4 = insert_services(&self.services_v4, name::SERVICES_V4, &v4)?;
        let old_v6 = insert_services(&self.services_v6, name::SERVICES_V6, &v6)?;
        set_places(&self.places_v4, name::SERVICE_PLACES_V4, &v4)?;
        set_places(&self.places_v6, name::SERVICE_PLACES_V6, &v6)?;
        for (index, word) in (0..).zip(&ports) {
            write(&self.ports, name::PORTS, &index, word)?;
        }
        remove_services(&self.services_v4, name::SERVICES_V4, &old_v4)?;
        remove_services(&self.services_v6, name::SERVICES_V6, &old_v6)
    }

    /// The service at exactly this address and port.
    pub(super) fn service(&self, addr: IpAddr, port: u16) -> Result<Option<Service>, DataplaneError> {
        let port = port.to_be_bytes();
        let found = match addr {
            IpAddr::V4(addr) => self.services_v4.lookup(&ServiceKey::new(V4(addr.octets()), port)),
            IpAddr::V6(addr) => self.services_v6.lookup(&ServiceKey::new(V6(addr.octets()), port)),
        };
        found.map_err(|source| DataplaneError::Map { action: "read", map: name::SERVICES_V4, source })
    }

    /// Fills every budget up: what is spent at one rate means nothing at another.
    pub(super) fn refill(&self) -> Result<(), DataplaneError> {
        let full = Box::new([0; WORDS]);
        (0..MAX_QUEUES).try_for_each(|queue| {
            write(&self.stateful, name::STATEFUL, &queue, &0)?;
            write(&self.stateful, name::STATEFUL, &(MAX_QUEUES + queue), &0)?;
            write(&self.replies, name::REPLIES, &queue, &*full)
        })?;
        write(&self.arrivals, name::ARRIVALS, &0, &*full)?;
        write(&self.paces, name::PACES, &0, &*full)?;
        write(&self.complaints, name::COMPLAINTS, &0, &*full)
    }

    pub(super) fn counters(&self) -> Result<Counters, DataplaneError> {
        let rows = (0..2 * Reason::COUNT as u32)
            .map(|index| self.counters.lookup(index))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|source| DataplaneError::Map { action: "read", map: name::COUNTERS, source })?;
        Ok(Counters { rows })
    }

    pub(super) fn service_counters(
        &self,
        service: u32,
        dry_run: bool,
    ) -> Result<ServiceCounters, DataplaneError> {
        let place = service + SERVICE_IDS * u32::from(dry_run);
        let words = self.service_counters.lookup(place).map_err(|source| DataplaneError::Map {
            action: "read",
            map: name::SERVICE_COUNTERS,
            source,
        })?;
        let sum = |class| words.iter().skip(class).step_by(Class::PLACES).sum();
        Ok(ServiceCounters { classes: std::array::from_fn(sum) })
    }

    pub(super) fn register_socket(
        &self,
        slot: u32,
        queue: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), DataplaneError> {
        // The map's value is the descriptor's number; the kernel keeps the socket behind it.
        let number = socket.as_raw_fd().cast_unsigned();
        write(&self.sockets, name::SOCKETS, &xsk_index(slot, queue), &number)
    }
}

fn matches(layout: &Layout, info: &MapInfo) -> bool {
    info.key_size() as usize == layout.key_size
        && info.value_size() as usize == layout.value_size
        && (layout.max_entries == 0 || layout.max_entries == info.max_entries())
}

fn write<K: Pod, V: Pod>(
    map: &Map<K, V>,
    name: &'static str,
    key: &K,
    value: &V,
) -> Result<(), DataplaneError> {
    map.update(key, value, ANY).map_err(|source| DataplaneError::Map { action: "write", map: name, source })
}

/// Writes `wanted` and returns the keys that are there but not wanted.
fn insert_services<A: Address>(
    map: &Map<ServiceKey<A>, Service>,
    name: &'static str,
    wanted: &HashMap<ServiceKey<A>, Service>,
) -> Result<HashSet<ServiceKey<A>>, DataplaneError>
where
    ServiceKey<A>: Pod + Hash,
{
    if wanted.len() > MAX_SERVICES as usize {
        return Err(DataplaneError::TooManyServices { count: wanted.len(), limit: MAX_SERVICES });
    }
    let held = map.keys().map_err(|source| DataplaneError::Map { action: "list", map: name, source })?;
    let stale: HashSet<_> = held.into_iter().filter(|key| !wanted.contains_key(key)).collect();
    // Both lists may not fit together; those that go have to make room.
    let keep_stale = stale.len() + wanted.len() <= MAX_SERVICES as usize;
    if !keep_stale {
        remove_services(map, name, &stale)?;
    }
    for (key, service) in wanted {
        write(map, name, key, service)?;
    }
    Ok(if keep_stale { stale } else { HashSet::new() })
}

/// Makes the places in front of a family's services equal to `wanted`, which are all in the hash map. A place that changes
/// sends XDP to the hash map while it does.
fn set_places<A: Address>(
    map: &Map<u32, ServicePlace<A>>,
    name: &'static str,
    wanted: &HashMap<ServiceKey<A>, Service>,
) -> Result<(), DataplaneError>
where
    ServiceKey<A>: Ord,
    ServicePlace<A>: Pod,
{
    let mut places = vec![ServicePlace::EMPTY; SERVICE_PLACES as usize];
    // In one order every time, so that a place does not change hands for nothing.
    let mut sorted: Vec<_> = wanted.iter().collect();
    sorted.sort_by_key(|(key, _)| **key);
    for (key, service) in sorted {
        places[key.place() as usize].add(*key, *service);
    }
    for (index, place) in (0..).zip(places) {
        let read = map.lookup(&index);
        let held = read.map_err(|source| DataplaneError::Map { action: "read", map: name, source })?;
        let held = held.unwrap_or(ServicePlace::EMPTY);
        if held != place {
            write(map, name, &index, &ServicePlace { state: PLACE_SHARED, ..held })?;
            write(map, name, &index, &ServicePlace { state: PLACE_SHARED, ..place })?;
            write(map, name, &index, &place)?;
        }
    }
    Ok(())
}

fn remove_services<A: Address>(
    map: &Map<ServiceKey<A>, Service>,
    name: &'static str,
    stale: &HashSet<ServiceKey<A>>,
) -> Result<(), DataplaneError>
where
    ServiceKey<A>: Pod,
{
    for key in stale {
        map.remove(key).map_err(|source| DataplaneError::Map { action: "write", map: name, source })?;
    }
    Ok(())
}
