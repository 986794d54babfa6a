//! One instance of the guard's program on no interface, with its maps filled as a daemon would fill them.

use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, XskMap};
use aya::programs::{ProgramFd, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use socket2::Socket;
use tcpguard_common::bench::{Ends, PORT, Rewrite};
use tcpguard_common::cookie::Advertised;
use tcpguard_common::filter::{Entry, FilterRule, LISTED_V4, Line};
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::known::{Bucket, OCCUPIED_WORDS, Place, occupied_at};
use tcpguard_common::map::{
    ABI_VERSION, EPOCH_SLOTS, EpochSlot, Flow, Interface, Limits, MODE_COOKIE, ON_EXIT_PASS, PLACE_HELD,
    Service, ServiceKey, ServicePlace, Settings, name, xsk_index,
};
use tcpguard_common::packet::{AnySegment, Segment};
use tcpguard_common::reason::Reason;
use tcpguard_common::sketch::Rate;
use tcpguard_common::trace::Wanted;

use super::frames::MAC;

/// The epoch it is.
const EPOCH: u32 = 1_000_001;
/// What cookies are keyed with.
const MASTER: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
/// What places in tables are keyed with.
const HASH_KEY: [u64; 2] = [0x1f2e_3d4c_5b6a_7988, 0x8796_a5b4_c3d2_e1f0];
const ADVERTISED: Advertised = Advertised { mss_v4: 1460, mss_v6: 1440, window: 64240, window_scale: 9 };

/// Limits as a daemon sets them, but so wide that no number of packets reaches them: they cost the same.
const LIMITS: Limits = Limits {
    stateful: WIDE,
    replies: WIDE,
    verified_replies: WIDE,
    prefix_v4: !0 << (64 - 24),
    prefix_v6: !0 << (64 - 56),
    verified_for: 600_000_000_000,
    arrivals: WIDE,
    flows: WIDE,
    complaints: WIDE,
    source_flows: u32::MAX,
    service_flows: u32::MAX,
};
const WIDE: Rate = Rate { interval: 1, ahead: u64::MAX / 4 };

/// The epoch that cookies are made in.
pub(super) fn epoch() -> Result<EpochSlot> {
    slot(EPOCH)
}

fn slot(epoch: u32) -> Result<EpochSlot> {
    EpochSlot::derive(MASTER, epoch, &ADVERTISED).context("an epoch's key")
}

/// A family's tables.
pub(super) trait Tables: Ends {
    const SERVICES: &'static str;
    const PLACES: &'static str;
    const FLOWS: &'static str;
    /// A segment, if it is of this family.
    fn segment(any: AnySegment) -> Option<Segment<Self>>;
}

impl Tables for V4 {
    const SERVICES: &'static str = name::SERVICES_V4;
    const PLACES: &'static str = name::SERVICE_PLACES_V4;
    const FLOWS: &'static str = name::FLOWS_V4;

    fn segment(any: AnySegment) -> Option<Segment<Self>> {
        if let AnySegment::V4(segment) = any { Some(segment) } else { None }
    }
}

impl Tables for V6 {
    const SERVICES: &'static str = name::SERVICES_V6;
    const PLACES: &'static str = name::SERVICE_PLACES_V6;
    const FLOWS: &'static str = name::FLOWS_V6;

    fn segment(any: AnySegment) -> Option<Segment<Self>> {
        if let AnySegment::V6(segment) = any { Some(segment) } else { None }
    }
}

/// The program and its maps.
pub(super) struct Guard {
    ebpf: Ebpf,
}

impl Guard {
    /// Loads it and makes it guard [`Ends::GUARDED`], as alive as a daemon with that socket would.
    pub(super) fn load(object: &Path, socket: &Socket) -> Result<Self> {
        let failed = || format!("loading {}", object.display());
        let mut ebpf = EbpfLoader::new().load_file(object).with_context(failed)?;
        let program: &mut Xdp = ebpf.program_mut("tcpguard").with_context(failed)?.try_into()?;
        program.load().with_context(failed)?;
        let mut guard = Self { ebpf };
        let engine = xsk_index(0, 0);
        guard.set(name::INTERFACES, 0, Interface { mac: MAC, armed: 1, queues: 1, ifindex: 1 })?;
        for epoch in EPOCH - 1..=EPOCH + 1 {
            guard.set(name::EPOCHS, epoch % EPOCH_SLOTS, slot(epoch)?)?;
        }
        guard.set(name::PORTS, u32::from(PORT / 64), 1u64 << (PORT % 64))?;
        guard.serve::<V4>()?;
        guard.serve::<V6>()?;
        // Nobody writes heartbeats here: the first one stays fresh.
        guard.set(name::HEARTBEATS, engine, 1u64)?;
        let mut sockets = XskMap::try_from(guard.ebpf.map_mut(name::SOCKETS).context(name::SOCKETS)?)?;
        sockets.set(engine, socket.as_raw_fd(), 0)?;
        guard.set(
            name::SETTINGS,
            0,
            Settings {
                abi: ABI_VERSION,
                generation: 1,
                epoch: EPOCH,
                epoch_second_half: 0,
                stale_after: u64::MAX / 2,
                exit_grace: 0,
                on_exit: ON_EXIT_PASS,
                queues: 1,
                filters: 0,
                reserved: 0,
                hash_key: HASH_KEY,
                limits: LIMITS,
                trace: Wanted::default(),
            },
        )?;
        Ok(guard)
    }

    /// Puts IPv4 prefixes into the filter lists: first address, length and action, sorted by the first two.
    pub(super) fn list(&mut self, filters: &[(u32, u8, u32)]) -> Result<()> {
        let entry = |(rule, &(start, len, _)): (u32, &(u32, u8, u32))| Entry {
            start: start.into(),
            len,
            rule,
            expires: 0,
        };
        let line = Line::<V4>::cut(&(1..).zip(filters).map(entry).collect::<Vec<_>>());
        self.set_all(name::FILTER_HEADS_V4, 0, line.heads)?;
        self.set_all(name::FILTER_SPANS_V4, 0, line.spans)?;
        let rules = filters.iter().map(|&(_, _, action)| FilterRule { expires: 0, action, next: 0 });
        self.set_all(name::FILTER_RULES, 1, rules)?;
        self.settings(|held| Settings { filters: LISTED_V4, ..held })
    }

    fn set_all<V: Pod>(&mut self, map: &str, first: u32, values: impl IntoIterator<Item = V>) -> Result<()> {
        let mut array = Array::<_, V>::try_from(self.ebpf.map_mut(map).with_context(|| map.to_owned())?)?;
        (first..).zip(values).try_for_each(|(index, value)| Ok(array.set(index, value, 0)?))
    }

    pub(super) fn program(&self) -> Result<ProgramFd> {
        let program: &Xdp = self.ebpf.program("tcpguard").context("no program tcpguard")?.try_into()?;
        Ok(program.fd()?.try_clone()?)
    }

    fn set<V: Pod>(&mut self, map: &str, index: u32, value: V) -> Result<()> {
        Array::<_, V>::try_from(self.ebpf.map_mut(map).with_context(|| map.to_owned())?)?
            .set(index, value, 0)?;
        Ok(())
    }

    fn serve<A: Tables>(&mut self) -> Result<()>
    where
        ServiceKey<A>: Pod,
        ServicePlace<A>: Pod,
    {
        let map = self.ebpf.map_mut(A::SERVICES).context(A::SERVICES)?;
        let key = ServiceKey::new(A::GUARDED, PORT.to_be_bytes());
        let service = Service { id: 0, mode: MODE_COOKIE, ..Service::default() };
        HashMap::try_from(map)?.insert(key, service, 0)?;
        self.set(A::PLACES, key.place(), ServicePlace { key, service, state: PLACE_HELD })
    }

    /// Guards services with these numbers over IPv4, each of which is new; number 0 is the one that packets go to.
    pub(super) fn serve_more(&mut self, ids: std::ops::Range<u32>) -> Result<()> {
        for id in ids {
            // Other ports of the same address.
            let port = (1024 + id) as u16;
            let key = ServiceKey::new(V4::GUARDED, port.to_be_bytes());
            let service = Service { id, mode: MODE_COOKIE, ..Service::default() };
            HashMap::try_from(self.ebpf.map_mut(V4::SERVICES).context(V4::SERVICES)?)?
                .insert(key, service, 0)?;
            let mut places =
                Array::<_, ServicePlace<V4>>::try_from(self.ebpf.map_mut(V4::PLACES).context(V4::PLACES)?)?;
            let mut place = places.get(&key.place(), 0)?;
            place.add(key, service);
            places.set(key.place(), place, 0)?;
            let mut ports = Array::<_, u64>::try_from(self.ebpf.map_mut(name::PORTS).context(name::PORTS)?)?;
            let word = u32::from(port / 64);
            let held = ports.get(&word, 0)?;
            ports.set(word, held | 1 << (port % 64), 0)?;
        }
        Ok(())
    }

    /// Is one of a guard with so many receive queues: its share of the budgets is so much smaller.
    pub(super) fn share(&mut self, queues: u32) -> Result<()> {
        self.set(name::INTERFACES, 0, Interface { mac: MAC, armed: 1, queues, ifindex: 1 })?;
        self.settings(|held| Settings { queues, ..held })
    }

    fn settings(&mut self, change: impl FnOnce(Settings) -> Settings) -> Result<()> {
        let map = self.ebpf.map_mut(name::SETTINGS).context(name::SETTINGS)?;
        let mut settings = Array::<_, Settings>::try_from(map)?;
        let held = settings.get(&0, 0)?;
        Ok(settings.set(0, change(held), 0)?)
    }

    fn flows<A: Tables>(&mut self) -> Result<HashMap<&mut MapData, FlowKey<A>, Flow>>
    where
        FlowKey<A>: Pod,
    {
        Ok(HashMap::try_from(self.ebpf.map_mut(A::FLOWS).context(A::FLOWS)?)?)
    }

    /// Enters the flows of the first `count` frames that `rewrite` makes.
    pub(super) fn know<A: Tables>(&mut self, rewrite: &Rewrite, count: u64) -> Result<()>
    where
        FlowKey<A>: Pod,
    {
        let mut flows = self.flows::<A>()?;
        (0..count).try_for_each(|number| {
            anyhow::Ok(flows.insert(rewrite.flow::<A>(number), Flow::default(), 0)?)
        })?;
        let mut front = Array::<_, Bucket>::try_from(self.ebpf.map_mut(name::KNOWN).context(name::KNOWN)?)?;
        for place in (0..count).map(|number| Place::of(HASH_KEY, &rewrite.flow::<A>(number))) {
            let mut bucket = front.get(&place.bucket, 0)?;
            bucket.enter(place.tag);
            front.set(place.bucket, bucket, 0)?;
        }
        let mut occupied = vec![0; OCCUPIED_WORDS as usize];
        for place in (0..count).map(|number| Place::of(HASH_KEY, &rewrite.flow::<A>(number))) {
            let (word, bit) = occupied_at(place.bucket);
            occupied[word as usize] |= bit;
        }
        let mut map = Array::<_, u64>::try_from(self.ebpf.map_mut(name::OCCUPIED).context(name::OCCUPIED)?)?;
        for (word, bits) in (0..).zip(occupied) {
            map.set(word, map.get(&word, 0)? | bits, 0)?;
        }
        Ok(())
    }

    /// Removes those flows, every one of which must be there.
    pub(super) fn forget<A: Tables>(&mut self, rewrite: &Rewrite, numbers: std::ops::Range<u64>) -> Result<()>
    where
        FlowKey<A>: Pod,
    {
        let mut flows = self.flows::<A>()?;
        numbers.clone().try_for_each(|number| anyhow::Ok(flows.remove(&rewrite.flow::<A>(number))?))?;
        let mut front = Array::<_, Bucket>::try_from(self.ebpf.map_mut(name::KNOWN).context(name::KNOWN)?)?;
        for place in numbers.map(|number| Place::of(HASH_KEY, &rewrite.flow::<A>(number))) {
            let mut bucket = front.get(&place.bucket, 0)?;
            bucket.strike(place.tag);
            front.set(place.bucket, bucket, 0)?;
        }
        Ok(())
    }

    /// Every reason's count.
    pub(super) fn counters(&self) -> Result<Vec<u64>> {
        let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map(name::COUNTERS).context(name::COUNTERS)?)?;
        (0..Reason::COUNT as u32).map(|index| Ok(map.get(&index, 0)?.iter().sum())).collect()
    }
}

/// Whether exactly `packets` more segments were counted, all under `reason`; with `None`, no segment at all.
pub(super) fn check(before: &[u64], after: &[u64], reason: Option<Reason>, packets: u32) -> Result<()> {
    for ((before, after), &counted) in before.iter().zip(after).zip(Reason::ALL) {
        let expected = if reason == Some(counted) { u64::from(packets) } else { 0 };
        if after - before != expected {
            let name = counted.name();
            bail!("{} of {packets} packets were counted under {name}, expected {expected}", after - before);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_counts_only_when_every_packet_met_the_reason_of_its_row() {
        let before = vec![5; Reason::COUNT];
        let mut after = before.clone();
        assert!(check(&before, &after, None, 10).is_ok());
        assert!(check(&before, &after, Some(Reason::AckInvalid), 10).is_err());
        after[Reason::AckInvalid as usize] += 10;
        assert!(check(&before, &after, Some(Reason::AckInvalid), 10).is_ok());
        after[Reason::AckValid as usize] += 1;
        assert!(check(&before, &after, Some(Reason::AckInvalid), 10).is_err());
    }
}
