//! How many flows are open, for each service and for each source: the words that XDP counts up and the engines count
//! down. What follows from the counts, XDP decides.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tcpguard_common::decision::admission::{Counted, source_places};
use tcpguard_common::flow::{Address as _, AnyFlowKey, V4, V6};
use tcpguard_common::map::{SERVICE_IDS, SOURCE_PLACES};

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
    hash_key: [u64; 2],
    services: Arc<RwLock<Ids>>,
}

/// The services' ids.
type Ids = HashMap<(IpAddr, u16), u32>;

impl Census {
    pub(super) fn new(counts: Counts, hash_key: [u64; 2], services: &[ServiceEntry]) -> Self {
        Self { counts, hash_key, services: Arc::new(RwLock::new(ids(services))) }
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
        let transfer = |key: AnyFlowKey, _: &_| {
            let (old, new) = (owner(&old, &key), owner(&new, &key));
            if old != new {
                for (place, change) in [(old, -1), (new, 1)] {
                    if let Some(place) = place {
                        self.counts.at(place).fetch_add(change, Ordering::Relaxed);
                    }
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

    /// How many flows are open in one place.
    pub fn open(&self, place: Counted) -> u32 {
        // A flow may be gone before whoever entered it has counted it.
        u32::try_from(self.counts.at(place).load(Ordering::Relaxed).max(0)).unwrap_or(u32::MAX)
    }

    /// Counts the flows that are there from the beginning: those of an earlier daemon, which may have died between a
    /// removal and its count, and whose services may have had other ids. Nobody may enter or remove any meanwhile.
    pub(super) fn recount(&self, flows: &FlowTable) -> io::Result<()> {
        self.counts.clear();
        let mut scan = flows.scan();
        while scan.next_slice(|key, _| self.opened(&key))? {}
        Ok(())
    }

    fn add(&self, key: &AnyFlowKey, flows: i64) {
        for place in self.places(key).into_iter().flatten() {
            self.counts.at(place).fetch_add(flows, Ordering::Relaxed);
        }
    }

    /// One in each row of sources, and the service's if it is one's.
    fn places(&self, key: &AnyFlowKey) -> [Option<Counted>; 3] {
        let [first, second] = match key {
            AnyFlowKey::V4(key) => source_places(self.hash_key, key.peer),
            AnyFlowKey::V6(key) => source_places(self.hash_key, key.peer),
        };
        let service = owner(&self.services.read().unwrap_or_else(PoisonError::into_inner), key);
        [Some(Counted::Source(first)), Some(Counted::Source(second)), service]
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
