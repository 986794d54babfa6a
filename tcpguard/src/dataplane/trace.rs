//! The reading end of the ring that XDP records packets in. Who wants them, and which, is not decided here.

use std::io;

use aya::maps::{Map, MapData, MapError, RingBuf};
use tcpguard_common::map::name;
use tcpguard_common::trace::{LOST_BEYOND_RATE, LOST_RING_FULL, Record};

use super::bpf::{self, PerCpuArray};
use super::error::DataplaneError;
use super::pins::PinDir;

/// The ring. One reader at a time.
pub struct TraceRing {
    ring: RingBuf<MapData>,
    lost: PerCpuArray,
}

/// Records that were not written, since the maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceLost {
    /// A CPU had written as many as it may.
    pub beyond_rate: u64,
    /// The ring was full.
    pub ring_full: u64,
}

impl TraceRing {
    /// Opens the pinned maps.
    pub(super) fn open(pins: &PinDir) -> Result<Self, DataplaneError> {
        let failed = |map| move |source| DataplaneError::Map { action: "open", map, source };
        let ring = MapData::from_pin(pins.map(name::TRACE)).and_then(|data| Map::RingBuf(data).try_into());
        let ring = ring.map_err(|error: MapError| failed(name::TRACE)(io::Error::other(error)))?;
        let lost = bpf::get(&pins.map(name::TRACE_LOST)).map_err(failed(name::TRACE_LOST))?;
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| failed(name::TRACE_LOST)(source))?;
        // SAFETY: the per-CPU array of 8-byte values that the object declares.
        let lost = unsafe { PerCpuArray::from_fd(lost, cpus, 1) };
        Ok(Self { ring, lost })
    }

    /// Takes what is in the ring, but at most `budget` records.
    pub fn drain(&mut self, budget: usize, mut each: impl FnMut(Record)) {
        for _ in 0..budget {
            let Some(item) = self.ring.next() else { return };
            // Only a program of another layout could have written anything else.
            if let Some(record) = Record::from_bytes(&item) {
                each(record);
            }
        }
    }

    /// What did not get into the ring.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn lost(&self) -> Result<TraceLost, DataplaneError> {
        let sum = |index| {
            let words = self.lost.lookup(index);
            let words =
                words.map_err(|source| DataplaneError::Map { action: "read", map: name::TRACE_LOST, source });
            Ok::<u64, DataplaneError>(words?.iter().sum())
        };
        Ok(TraceLost { beyond_rate: sum(LOST_BEYOND_RATE)?, ring_full: sum(LOST_RING_FULL)? })
    }
}

impl std::fmt::Debug for TraceRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TraceRing").finish_non_exhaustive()
    }
}
