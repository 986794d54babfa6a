//! What lies in the BPF maps: names, keys and values, `#[repr(C)]` plain data without padding. Not the maps
//! themselves: XDP binds them in `tcpguard-ebpf`, userspace in `tcpguard::dataplane`.

use crate::cookie::Strictness;
use crate::flow::Address;
use crate::sketch::Rate;
use crate::trace::Wanted;

/// Changes whenever the layout or meaning of a map does: a daemon does not take over pins of another version.
pub const ABI_VERSION: u32 = 10;

/// Interface slots: how many interfaces one daemon may guard.
pub const MAX_INTERFACES: u32 = 16;
/// Receive queues per interface that an engine can own.
pub const MAX_QUEUES: u32 = 64;
/// Flows XDP can know at once, per family, unless the daemon asks for another number.
pub const DEFAULT_MAX_FLOWS: u32 = 1 << 20;
/// Protected `(address, port)` pairs, per family.
pub const MAX_SERVICES: u32 = 1024;
/// Places in front of the services' hash map, per family; a power of two.
pub const SERVICE_PLACES: u32 = 1024;

/// The XSKMAP (and heartbeat) index of one engine: interface slot × [`MAX_QUEUES`] + queue.
pub const fn xsk_index(slot: u32, queue: u32) -> u32 {
    slot * MAX_QUEUES + queue
}

/// What an engine that turns at `now`, `CLOCK_MONOTONIC` nanoseconds, writes for XDP to read: the time, but for the lowest
/// bit, which says whether its receive ring is under pressure. Both in one word, since XDP reads it for every segment.
#[inline(always)]
pub const fn heartbeat(now: u64, under_pressure: bool) -> u64 {
    now & !1 | under_pressure as u64
}

/// Whether the engine that wrote this [`heartbeat`] had its receive ring under pressure.
#[inline(always)]
pub const fn is_under_pressure(heartbeat: u64) -> bool {
    heartbeat & 1 != 0
}

/// Entries in the XSKMAP and the heartbeat array.
pub const XSK_ENTRIES: u32 = MAX_INTERFACES * MAX_QUEUES;

/// The names of the maps, as the object file and the pins carry them.
pub mod name {
    /// `Array<Settings>`, one entry.
    pub const SETTINGS: &str = "SETTINGS";
    /// `Array<EpochSlot>`, [`super::EPOCH_SLOTS`] entries, indexed by epoch number modulo that.
    pub const EPOCHS: &str = "EPOCHS";
    /// `Array<Interface>`, indexed by interface slot.
    pub const INTERFACES: &str = "INTERFACES";
    /// `Array<u64>`, one bit per TCP port: a port without a bit is not protected on any address. Port 0, which nobody can
    /// protect, stands for IPv6 segments that hide theirs: its bit says that a service on IPv6 is guarded.
    pub const PORTS: &str = "PORTS";
    /// `HashMap<ServiceKey<V4>, Service>`.
    pub const SERVICES_V4: &str = "SERVICES_V4";
    /// `HashMap<ServiceKey<V6>, Service>`.
    pub const SERVICES_V6: &str = "SERVICES_V6";
    /// `Array<ServicePlace<V4>>`, indexed by [`super::ServiceKey::place`].
    pub const SERVICE_PLACES_V4: &str = "SERVICE_PLACES_V4";
    /// `Array<ServicePlace<V6>>`, likewise.
    pub const SERVICE_PLACES_V6: &str = "SERVICE_PLACES_V6";
    /// `HashMap<FlowKey<V4>, Flow>`.
    pub const FLOWS_V4: &str = "FLOWS_V4";
    /// `HashMap<FlowKey<V6>, Flow>`.
    pub const FLOWS_V6: &str = "FLOWS_V6";
    /// Mmapable `Array<Bucket>` of [`crate::known::BUCKETS`]: the front of both flow tables.
    pub const KNOWN: &str = "KNOWN";
    /// Mmapable `Array<u64>` of [`crate::known::OCCUPIED_WORDS`]: which buckets of [`KNOWN`] and of [`TIME_WAIT`] may hold
    /// anything.
    pub const OCCUPIED: &str = "OCCUPIED";
    /// XSKMAP, indexed by [`super::xsk_index`].
    pub const SOCKETS: &str = "SOCKETS";
    /// Mmapable `Array<u64>`, indexed by [`super::xsk_index`]: when that engine last turned, see [`super::heartbeat`].
    pub const HEARTBEATS: &str = "HEARTBEATS";
    /// Mmapable `Array<[u32; 4]>`: TIME_WAIT fingerprints in buckets of [`crate::fingerprint::WAYS`], of which there are
    /// [`crate::known::BUCKETS`], or as many times that as a power of two says ([`crate::fingerprint::spread`]); engines
    /// write, XDP reads. 0 is an empty place.
    pub const TIME_WAIT: &str = "TIME_WAIT";
    /// `Array<[u64; sketch::WORDS]>`, one [`crate::sketch::Sketch`] for each receive queue number: the reply budgets. Not per
    /// CPU: which CPU serves a queue can change from packet to packet, and every further one would add a budget.
    pub const REPLIES: &str = "REPLIES";
    /// `Array<u64>` of [`super::VERIFIED`] words, see [`crate::decision::budget`]: sources that showed a valid cookie.
    pub const VERIFIED: &str = "VERIFIED";
    /// `Array<[u64; sketch::WORDS]>`, one [`crate::sketch::Sketch`]: how fast sources open flows.
    pub const ARRIVALS: &str = "ARRIVALS";
    /// `Array<[u64; sketch::WORDS]>`, one [`crate::sketch::Sketch`]: how fast flows send while a ring is under pressure.
    pub const PACES: &str = "PACES";
    /// `Array<[u64; sketch::WORDS]>`, one [`crate::sketch::Sketch`]: how many ICMP errors there are about each flow.
    pub const COMPLAINTS: &str = "COMPLAINTS";
    /// Mmapable `Array<i64>` of [`super::SERVICE_IDS`], indexed by service id: open flows. XDP counts up what it enters
    /// into the flow table, the engines what they enter and remove; see [`crate::decision::admission`].
    pub const SERVICE_FLOWS: &str = "SERVICE_FLOWS";
    /// The same for sources, two rows of [`super::SOURCE_PLACES`].
    pub const SOURCE_FLOWS: &str = "SOURCE_FLOWS";
    /// `Array<u64>`, one [token bucket](crate::sketch::take) for each receive queue number: what stateful services leave to
    /// the stack; and as many again for what those in dry run would.
    pub const STATEFUL: &str = "STATEFUL";
    /// `PerCpuArray<u64>`, indexed by [`crate::reason::Reason`]; behind that, the same for what passes in a dry run.
    pub const COUNTERS: &str = "COUNTERS";
    /// `PerCpuArray<[u64; Class::PLACES]>` of [`super::SERVICE_IDS`], indexed by service id and then by
    /// [`crate::reason::Class`]; behind that, the same for what passes in a dry run.
    pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
    /// Ring buffer of [`crate::trace::RING_BYTES`]: a [`crate::trace::Record`] for each packet that a monitor wants.
    pub const TRACE: &str = "TRACE";
    /// `PerCpuArray<u64>` of [`crate::trace::LOST`]: records that are not in the ring.
    pub const TRACE_LOST: &str = "TRACE_LOST";
    /// Mmapable `Array<Head>`: [`crate::filter::HEADS`] for each bank. Here and below the daemon writes, XDP reads.
    pub const FILTER_HEADS_V4: &str = "FILTER_HEADS_V4";
    /// As [`FILTER_HEADS_V4`].
    pub const FILTER_HEADS_V6: &str = "FILTER_HEADS_V6";
    /// Mmapable `Array<SpanV4>`: [`crate::filter::SPANS`] for each bank.
    pub const FILTER_SPANS_V4: &str = "FILTER_SPANS_V4";
    /// Mmapable `Array<SpanV6>`: [`crate::filter::SPANS`] for each bank.
    pub const FILTER_SPANS_V6: &str = "FILTER_SPANS_V6";
    /// Mmapable `Array<FilterRule>`: [`crate::filter::RULES`] for each bank.
    pub const FILTER_RULES: &str = "FILTER_RULES";
    /// `PerCpuArray<[u64; HITS_PER_BLOCK]>`: [`crate::filter::HIT_BLOCKS`] for each bank, where rule `r`'s hits are word
    /// `r`. XDP writes.
    pub const FILTER_HITS: &str = "FILTER_HITS";
}

/// Places for recently verified sources; a power of two.
pub const VERIFIED: u32 = 1 << 19;

/// Ids that services can have.
pub const SERVICE_IDS: u32 = 2 * MAX_SERVICES;

/// Places in each of the two rows for counts of sources' flows; a power of two.
pub const SOURCE_PLACES: u32 = 1 << 18;

/// Words of the port bitmap.
pub const PORT_WORDS: u32 = 65536 / 64;

/// Epoch slots: current, previous, next, and one that is being replaced.
pub const EPOCH_SLOTS: u32 = 4;

/// What the daemon tells XDP about itself. Written whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// [`ABI_VERSION`] of the daemon that wrote this; 0 while nothing was ever written.
    pub abi: u32,
    /// Which daemon run the flows inserted now belong to. Never 0.
    pub generation: u32,
    /// The cookie epoch now: wall clock divided by the cookie period.
    pub epoch: u32,
    /// 1 in the second half of the current epoch, where the odd neighbour is the next epoch, not the previous.
    pub epoch_second_half: u32,
    /// A heartbeat older than this many nanoseconds is stale.
    pub stale_after: u64,
    /// How long after a heartbeat went stale protected segments are dropped, nanoseconds; [`Self::on_exit`]
    /// applies afterwards.
    pub exit_grace: u64,
    /// One of the `ON_EXIT_*` constants.
    pub on_exit: u32,
    /// How many receive queues the interface with the most of them has: so many share the reply budgets.
    pub queues: u32,
    /// Which bank of the filter lists counts, and which families are in it: bits of [`crate::filter`]. 0 is an empty list.
    pub filters: u32,
    /// Zero.
    pub reserved: u32,
    /// Keys the fingerprints and sketches: random per boot, so that nobody can aim at a slot.
    pub hash_key: [u64; 2],
    /// What anybody may use up.
    pub limits: Limits,
    /// Which packets are recorded for monitors.
    pub trace: Wanted,
}

/// What anybody may use up, as the tunables say. Zeroed: no limit at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Limits {
    /// Segments without a flow that stateful services leave to the stack, one queue's share. An interval of 0: none.
    pub stateful: Rate,
    /// SYN-ACKs to each prefix, one queue's share.
    pub replies: Rate,
    /// The same to recently verified sources of a prefix, once the prefix's own budget is used up.
    pub verified_replies: Rate,
    /// Which bits of an IPv4 [site](Address::site) are its prefix.
    pub prefix_v4: u64,
    /// Which bits of an IPv6 [site](Address::site) are its prefix.
    pub prefix_v6: u64,
    /// For how long a source counts as verified, nanoseconds.
    pub verified_for: u64,
    /// New flows of each source.
    pub arrivals: Rate,
    /// Segments of each known flow, while the engine's ring is under pressure.
    pub flows: Rate,
    /// ICMP errors about each known flow.
    pub complaints: Rate,
    /// Open flows of each source; 0 for any number.
    pub source_flows: u32,
    /// Open flows of each service; 0 for any number.
    pub service_flows: u32,
}

/// After the grace, a dead daemon's ports are left to the kernel.
pub const ON_EXIT_PASS: u32 = 0;
/// After the grace, segments to a dead daemon's ports are dropped.
pub const ON_EXIT_DROP: u32 = 1;

/// One cookie epoch: its key and what SYN-ACKs advertise while it is current.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct EpochSlot {
    /// SipHash key, derived from the master secret; see `cookie`.
    pub key: [u64; 2],
    /// The epoch number; a slot counts only for exactly this epoch.
    pub epoch: u32,
    /// 1 once written: a zeroed slot never validates anything.
    pub valid: u32,
    /// MSS offered in IPv4 SYN-ACKs.
    pub mss_v4: u16,
    /// MSS offered in IPv6 SYN-ACKs.
    pub mss_v6: u16,
    /// The window every SYN-ACK advertises, unscaled as on the wire (RFC 7323 §2.2). Never 0.
    pub window: u16,
    /// Our receive window shift, 0–14, offered when the client offers one.
    pub window_scale: u8,
    /// Version of the cookie layout.
    pub layout: u8,
}

/// One guarded interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    /// Its MAC address; frames to another are not ours.
    pub mac: [u8; 6],
    /// 1 while protection is armed on it.
    pub armed: u16,
    /// Receive queues that have an engine.
    pub queues: u32,
    /// The kernel's interface index.
    pub ifindex: u32,
}

/// Which service: an address (or [`Address::ANY`]) and a port in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct ServiceKey<A> {
    /// The protected address, or all zero for any.
    pub addr: A,
    /// The protected port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
}

impl<A: Address> ServiceKey<A> {
    /// The key of one protected `(address, port)`.
    #[inline(always)]
    pub fn new(addr: A, port: [u8; 2]) -> Self {
        Self { addr, port, pad: [0; 2] }
    }

    /// The service's index among the [`SERVICE_PLACES`].
    #[inline(always)]
    pub fn place(&self) -> u32 {
        let word = self.addr.fold() ^ u32::from(u16::from_be_bytes(self.port)).rotate_left(16);
        word.wrapping_mul(0x9e37_79b1) >> (32 - SERVICE_PLACES.trailing_zeros())
    }
}

/// One place of the array in front of the services' hash map: with few services each has one for itself, and finding it
/// is one array read. The hash map has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ServicePlace<A> {
    /// Whose place it is, with [`PLACE_HELD`].
    pub key: ServiceKey<A>,
    /// That service.
    pub service: Service,
    /// `PLACE_*` bits.
    pub state: u32,
}

/// A service has the place.
pub const PLACE_HELD: u32 = 1;
/// Others would have it, too: they are in the hash map alone.
pub const PLACE_SHARED: u32 = 2;

impl<A: Address> ServicePlace<A> {
    /// A place that no service has.
    pub const EMPTY: Self = Self {
        key: ServiceKey { addr: A::ANY, port: [0; 2], pad: [0; 2] },
        service: Service { id: 0, mode: MODE_OFF, strictness: Strictness::NEVER },
        state: 0,
    };

    /// Gives it to a service whose place it is, or notes that there is another one.
    pub fn add(&mut self, key: ServiceKey<A>, service: Service) {
        if self.state == 0 {
            *self = Self { key, service, state: PLACE_HELD };
        } else {
            self.state |= PLACE_SHARED;
        }
    }
}

/// How a service answers SYNs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// Index of the service in the daemon's configuration.
    pub id: u32,
    /// One of the `MODE_*` constants, and [`DRY_RUN`] beside it or not.
    pub mode: u16,
    /// In which epochs its cookies are strict.
    pub strictness: Strictness,
}

/// Count and pass: the service is known but not guarded.
pub const MODE_OFF: u16 = 0;
/// Answer every SYN with a cookie.
pub const MODE_COOKIE: u16 = 1;
/// Leave SYNs, and RSTs without a flow, to the stack as long as [`Limits::stateful`] lasts; answer SYNs beyond it with a
/// cookie.
pub const MODE_STATEFUL: u16 = 2;
/// The bits of [`Service::mode`] that tell its mode.
pub const MODES: u16 = 3;
/// In [`Service::mode`]: segments are judged and counted, under counters of their own, and passed.
pub const DRY_RUN: u16 = 1 << 8;

/// What XDP remembers of a flow whose cookie it verified, and what adopting it takes should its first frame be
/// lost. Numbers are host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// `CLOCK_MONOTONIC_COARSE` nanoseconds of the insertion.
    pub created: u64,
    /// [`Settings::generation`] at the insertion.
    pub generation: u32,
    /// [`xsk_index`] of the engine that owns the flow.
    pub owner: u32,
    /// SEG.SEQ of the segment that carried the cookie.
    pub seq: u32,
    /// SEG.ACK of it: the cookie plus one.
    pub ack: u32,
    /// Its TSval; valid with [`FLOW_TIMESTAMPS`].
    pub tsval: u32,
    /// Its TSecr; valid with [`FLOW_TIMESTAMPS`].
    pub tsecr: u32,
    /// Its window field, unscaled.
    pub window: u16,
    /// `FLOW_*` bits.
    pub flags: u16,
    /// The frame's source MAC: where answers go.
    pub peer_mac: [u8; 6],
    /// How many of `vlan` are in use, 0–2.
    pub vlan_count: u8,
    /// Zero.
    pub pad: u8,
    /// TPID and TCI of each tag, outermost first, network order.
    pub vlan: [[u8; 4]; 2],
}

/// The segment carried a timestamps option.
pub const FLOW_TIMESTAMPS: u16 = 1;

#[cfg(feature = "user")]
mod pod {
    use crate::flow::{FlowKey, V4, V6};

    // SAFETY: `#[repr(C)]` or transparent, integers only, without padding (asserted in the tests below).
    unsafe impl aya::Pod for FlowKey<V4> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey<V6> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ServiceKey<V4> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ServiceKey<V6> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ServicePlace<V4> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ServicePlace<V6> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::EpochSlot {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Interface {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Service {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Flow {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{V4, V6};
    use core::mem::size_of;

    /// The sum of the fields' sizes is the size of the type: no byte that nobody wrote reaches the kernel.
    #[test]
    fn map_values_have_no_padding() {
        assert_eq!(size_of::<Settings>(), 4 * 4 + 8 * 2 + 4 * 4 + 16 + size_of::<Limits>() + 2 * 8);
        assert_eq!(size_of::<Limits>(), 6 * 16 + 3 * 8 + 2 * 4);
        assert_eq!(size_of::<EpochSlot>(), 16 + 8 + 8);
        assert_eq!(size_of::<Interface>(), 8 + 8);
        assert_eq!(size_of::<ServiceKey<V4>>(), 8);
        assert_eq!(size_of::<ServiceKey<V6>>(), 20);
        assert_eq!(size_of::<Service>(), 8);
        assert_eq!(size_of::<ServicePlace<V4>>(), 8 + 8 + 4);
        assert_eq!(size_of::<ServicePlace<V6>>(), 20 + 8 + 4);
        assert_eq!(size_of::<Flow>(), 8 + 6 * 4 + 4 + 8 + 8 + 4);
    }

    #[test]
    fn a_place_is_the_first_service_s_and_tells_of_others() {
        let key = |port: u16| ServiceKey::new(V4([198, 51, 100, 1]), port.to_be_bytes());
        let service = |id| Service { id, mode: MODE_COOKIE, ..Service::default() };
        assert!((1..=u16::MAX).all(|port| key(port).place() < SERVICE_PLACES));
        let mut place = ServicePlace::EMPTY;
        place.add(key(80), service(1));
        assert_eq!(place, ServicePlace { key: key(80), service: service(1), state: PLACE_HELD });
        place.add(key(443), service(2));
        assert_eq!((place.key, place.service, place.state), (key(80), service(1), PLACE_HELD | PLACE_SHARED));
    }

    #[test]
    fn neighbouring_addresses_and_ports_have_places_of_their_own() {
        let places: std::collections::HashSet<u32> = (0..32)
            .flat_map(|host| {
                [80u16, 443].map(|port| ServiceKey::new(V4([10, 0, 0, host]), port.to_be_bytes()).place())
            })
            .collect();
        assert!(places.len() > 48, "{} of 64", places.len());
    }
}
