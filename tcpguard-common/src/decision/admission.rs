//! Admission: how many flows a proven source may have open, how fast it may open them, and how many flows a service may
//! have. Only a valid cookie leads here, so that nobody is charged for what others send in his name; a refusal is
//! answered with a reset.
//!
//! A flow is open while it has an entry in the flow table, and counted by whoever enters or removes that: XDP counts what
//! it enters, the engines what they enter and remove. Sources are counted in two rows of places under a keyed hash, and
//! the smaller count holds: it is never too small, and too large by the flows of whoever shares both places.

use super::opening::Proven;
use crate::flow::Address;
use crate::hash;
use crate::map::{SOURCE_PLACES, Settings};
use crate::reason::Reason;
use crate::sketch::Sketch;

/// Where open flows are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Counted {
    /// Those of a service, by its id.
    Service(u32),
    /// Those of the sources that share a place in one of the rows, below 2 × [`SOURCE_PLACES`].
    Source(u32),
}

/// What admission remembers.
pub trait Census {
    /// The flows that sources opened lately.
    fn arrivals(&self) -> Option<&Sketch>;
    /// How many flows are open.
    fn open_flows(&self, place: Counted) -> u32;
    /// One flow more is open.
    fn flow_opened(&self, place: Counted);
}

/// Domains of [`hash::keyed`]; the family's version is added.
const FLOWS: u64 = 0x40;
const ARRIVALS: u64 = 0x50;

/// Whether a source may open one more flow to a service; what a service has room for binds allowed sources, too. Counts of flows may be exceeded by as many as are opened at the
/// same instant on other CPUs.
#[inline(always)]
pub(super) fn admit<A: Address, E: Census + ?Sized>(
    env: &E,
    settings: &Settings,
    Proven { service, allowed, .. }: Proven,
    source: A,
    now: u64,
) -> Result<(), Reason> {
    let limits = &settings.limits;
    if limits.service_flows != 0 && env.open_flows(Counted::Service(service)) >= limits.service_flows {
        return Err(Reason::AdmissionService);
    }
    if allowed {
        return Ok(());
    }
    if limits.source_flows != 0 {
        let [first, second] = source_places(settings.hash_key, source);
        let (first, second) =
            (env.open_flows(Counted::Source(first)), env.open_flows(Counted::Source(second)));
        let open = if first < second { first } else { second };
        if open >= limits.source_flows {
            return Err(Reason::AdmissionSourceFlows);
        }
    }
    let rate = &limits.arrivals;
    if rate.interval != 0
        && let Some(arrivals) = env.arrivals()
        && !arrivals.charge(arrival_hash(settings, source), rate, now)
    {
        return Err(Reason::AdmissionSourceRate);
    }
    Ok(())
}

/// Counts a flow that was entered into the table. Always, so that a limit may be set at any time.
#[inline(always)]
pub(super) fn count<A: Address, E: Census + ?Sized>(env: &E, settings: &Settings, service: u32, source: A) {
    let [first, second] = source_places(settings.hash_key, source);
    env.flow_opened(Counted::Service(service));
    env.flow_opened(Counted::Source(first));
    env.flow_opened(Counted::Source(second));
}

/// Where the flows of `source` are counted: one place in each row.
#[inline(always)]
pub fn source_places<A: Address>(hash_key: [u64; 2], source: A) -> [u32; 2] {
    let hash = hash::keyed(hash_key, FLOWS + u64::from(A::VERSION), source.site());
    [hash as u32 % SOURCE_PLACES, SOURCE_PLACES + (hash >> 32) as u32 % SOURCE_PLACES]
}

/// The hash under which the new flows of `source` are charged.
#[inline(always)]
pub fn arrival_hash<A: Address>(settings: &Settings, source: A) -> u64 {
    hash::keyed(settings.hash_key, ARRIVALS + u64::from(A::VERSION), source.site())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{V4, V6};

    #[test]
    fn every_address_has_a_place_in_each_row_and_a_network_of_64_bits_shares_them() {
        for last in 0..=255 {
            let [first, second] = source_places([1, 2], V4([192, 0, 2, last]));
            assert!(first < SOURCE_PLACES && (SOURCE_PLACES..2 * SOURCE_PLACES).contains(&second));
        }
        assert_ne!(source_places([1, 2], V4([192, 0, 2, 1])), source_places([1, 2], V4([192, 0, 2, 2])));
        let v6 = |eighth, last| {
            let mut addr = [0x20, 1, 0xd, 0xb8, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            (addr[7], addr[15]) = (eighth, last);
            source_places([1, 2], V6(addr))
        };
        assert_eq!(v6(1, 1), v6(1, 2));
        assert_ne!(v6(1, 1), v6(2, 1));
    }
}
