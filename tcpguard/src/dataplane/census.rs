//! How many flows are open, for each service and for each source: the words that XDP counts up and the engines count
//! down. What follows from the counts, XDP decides. Entries that an earlier daemon left are no open flows: they take room
//! in the flow table alone.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tcpguard_common::decision::admission::{Counted, source_places};
use tcpguard_common::flow::{Address as _, AnyFlowKey, V4, V6};
use tcpguard_common::map::{Flow, SERVICE_IDS, SOURCE_PLACES};

use super::flows::FlowTable;
use super::maps::ServiceEntry;
use super::shared::Mapping;

/// The two maps of counts.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    services: Arc<Mapping>,
    sources: Arc<Mapping>,
}

impl Counts {
    /// Maps the two arrays of 8-byte values.
    pub(super) fn map(services: BorrowedFd<'_>, sources: BorrowedFd<'_>) -> io::Result<Self> {
        let map = |fd, places: u32| Mapping::new(fd, places as usize * size_of::<AtomicI64>()).map(Arc::new);
        Ok(Self { services: map(services, SERVICE_IDS)?, sources: map(sources, 2 * SOURCE_PLACES)? })
    }

    fn at(&self, place: Counted) -> &AtomicI64 {
        let (mapping, index) = match place {
            Counted::Service(id) => (&self.services, id % SERVICE_IDS),
            Counted::Source(index) => (&self.sources, index % (2 * SOURCE_PLACES)),
        };
        // SAFETY: the index is below what `map` mapped; map values are aligned to 8 bytes.
        unsafe { mapping.base().cast::<AtomicI64>().add(index as usize).as_ref() }
    }

    fn clear(&self) {
        let services = (0..SERVICE_IDS).map(Counted::Service);
        for place in services.chain((0..2 * SOURCE_PLACES).map(Counted::Source)) {
            self.at(place).store(0, Ordering::Relaxed);
        }
    }
}

/// The count of open flows. Shared by all engines: whoever enters a flow into the flow table or takes one out of it
/// tells it, once.
#[derive(Clone, Debug)]
pub struct Census {
    counts: Counts,
    /// Whose flows are counted, of all that are in the table.
    generation: u32,
    hash_key: [u64; 2],
    services: Arc<RwLock<Ids>>,
    uncounted: Arc<Uncounted>,
}

/// What takes room in the flow table and is in the count of no service.
#[derive(Debug, Default)]
struct Uncounted {
    /// Entries that an earlier daemon left, IPv4's and IPv6's.
    old: [AtomicI64; 2],
    /// Flows of services that there are no more.
    stray: AtomicI64,
}

/// The services' ids.
type Ids = HashMap<(IpAddr, u16), u32>;

impl Census {
    pub(super) fn new(
        counts: Counts,
        generation: u32,
        hash_key: [u64; 2],
        services: &[ServiceEntry],
    ) -> Self {
        let services = Arc::new(RwLock::new(ids(services)));
        Self { counts, generation, hash_key, services, uncounted: Arc::default() }
    }

    /// Counts for these services from now on, and for the ones among them that flows in the table belong to now. Before
    /// XDP is told of one that is added, and after it was told of one that is gone: it counts a flow by what it knows
    /// then. Flows that come or go in this moment may be counted wrongly.
    ///
    /// # Errors
    /// None in normal operation: whatever bpf(2) says when the table is listed.
    pub fn follow(&self, services: &[ServiceEntry], flows: &FlowTable) -> io::Result<()> {
        let new = ids(services);
        let old = std::mem::replace(
            &mut *self.services.write().unwrap_or_else(PoisonError::into_inner),
            new.clone(),
        );
        let mut scan = flows.scan();
        let transfer = |key: AnyFlowKey, flow: &Flow| {
            let (old, new) = (owner(&old, &key), owner(&new, &key));
            if old != new && flow.generation == self.generation {
                for (place, change) in [(old, -1), (new, 1)] {
                    self.of_service(place).fetch_add(change, Ordering::Relaxed);
                }
            }
        };
        while scan.next_slice(transfer)? {}
        Ok(())
    }

    /// The flow was entered.
    pub fn opened(&self, key: &AnyFlowKey) {
        self.add(key, 1);
    }

    /// The flow was removed.
    pub fn closed(&self, key: &AnyFlowKey) {
        self.add(key, -1);
    }

    /// The flow's entry took the place of one that an earlier daemon had left.
    pub fn replaced(&self, key: &AnyFlowKey) {
        self.old_removed(key);
        self.opened(key);
    }

    /// An entry that an earlier daemon had left was removed.
    pub fn old_removed(&self, key: &AnyFlowKey) {
        self.old(key).fetch_sub(1, Ordering::Relaxed);
    }

    /// How many entries there are still that an earlier daemon left, IPv4's and IPv6's.
    pub fn old_entries(&self) -> [u64; 2] {
        self.uncounted.old.each_ref().map(|old| u64::try_from(old.load(Ordering::Relaxed)).unwrap_or(0))
    }

    /// How many entries the table has, of both families, those of an earlier daemon not counted. Reads one word for each
    /// service that there can be, 16 KB.
    pub fn entries(&self) -> i64 {
        let services = (0..SERVICE_IDS).map(|id| self.counts.at(Counted::Service(id)));
        services.chain([&self.uncounted.stray]).map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Whether both families together have more entries than three quarters of what fits of one: newcomers may soon find no
    /// room. As long as [`Self::entries`].
    pub fn is_crowded(&self, flows: &FlowTable) -> bool {
        let old: i64 = self.uncounted.old.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        self.entries() + old > i64::from(flows.capacity()) * 3 / 4
    }

    /// How many flows are open in one place.
    pub fn open(&self, place: Counted) -> u32 {
        // A flow may be gone before whoever entered it has counted it.
        u32::try_from(self.counts.at(place).load(Ordering::Relaxed).max(0)).unwrap_or(u32::MAX)
    }

    /// Begins anew with what is in the table. An earlier daemon may have died between a removal and its count, its services
    /// may have had other ids, and its flows are nobody's: counted, they would keep out who has them no more and comes
    /// again. Nobody may enter or remove any meanwhile.
    pub(super) fn recount(&self, flows: &FlowTable) -> io::Result<()> {
        self.counts.clear();
        let mut scan = flows.scan();
        let count = |key: AnyFlowKey, flow: &Flow| match flow.generation == self.generation {
            true => self.opened(&key),
            false => _ = self.old(&key).fetch_add(1, Ordering::Relaxed),
        };
        while scan.next_slice(count)? {}
        Ok(())
    }

    /// One in each row of sources, and the service's.
    fn add(&self, key: &AnyFlowKey, flows: i64) {
        let sources = match key {
            AnyFlowKey::V4(key) => source_places(self.hash_key, key.peer),
            AnyFlowKey::V6(key) => source_places(self.hash_key, key.peer),
        };
        for place in sources {
            self.counts.at(Counted::Source(place)).fetch_add(flows, Ordering::Relaxed);
        }
        let service = owner(&self.services.read().unwrap_or_else(PoisonError::into_inner), key);
        self.of_service(service).fetch_add(flows, Ordering::Relaxed);
    }

    fn old(&self, key: &AnyFlowKey) -> &AtomicI64 {
        let [v4, v6] = &self.uncounted.old;
        match key {
            AnyFlowKey::V4(_) => v4,
            AnyFlowKey::V6(_) => v6,
        }
    }

    fn of_service(&self, place: Option<Counted>) -> &AtomicI64 {
        place.map_or(&self.uncounted.stray, |place| self.counts.at(place))
    }
}

fn ids(services: &[ServiceEntry]) -> Ids {
    services.iter().map(|service| ((service.addr, service.port), service.id)).collect()
}

/// Where a flow's service is counted: exact address first, as XDP finds it.
fn owner(services: &Ids, key: &AnyFlowKey) -> Option<Counted> {
    let any = match key {
        AnyFlowKey::V4(_) => V4::ANY.ip(),
        AnyFlowKey::V6(_) => V6::ANY.ip(),
    };
    let local = key.local_addr();
    let service = services.get(&(local.ip(), local.port())).or_else(|| services.get(&(any, local.port())));
    service.map(|&id| Counted::Service(id))
}
