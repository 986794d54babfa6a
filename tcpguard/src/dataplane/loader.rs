//! Loads the XDP program and attaches it: one instance per interface, sharing maps through pins, on links that outlive
//! the daemon. Until a start is committed it can be undone. What the maps say is up to the caller.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::programs::{ProgramError, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader, VerifierLogLevel};
use tcpguard_common::cookie::Strictness;
use tcpguard_common::fingerprint;
use tcpguard_common::known::BUCKETS;
use tcpguard_common::map::{
    ABI_VERSION, DEFAULT_MAX_FLOWS, EPOCH_SLOTS, EpochSlot, Interface, MAX_INTERFACES, MAX_QUEUES, Settings,
    name, xsk_index,
};

use super::bpf;
use super::census::Census;
use super::clock::monotonic_ns;
use super::error::DataplaneError;
use super::filters::FilterTable;
use super::flows::FlowTable;
use super::links::{self, AttachMode, LINK_PREFIX, Linked, OldLink};
use super::lock::{self, FileLock, LockError};
use super::maps::{Counters, Maps, ServiceCounters, ServiceEntry, shared_names};
use super::netdev::{InterfaceFacts, LinkFacts, LinkState};
use super::pins::{PinDir, network_namespace};
use super::shared::{Fingerprints, Heartbeat};
use super::socket::{SocketConfig, WHOLE_MTU};
use super::trace::TraceRing;
use super::view::Views;
use super::xdp_log::XdpLog;

/// The XDP program.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcpguard-xdp"));
/// Its name, and that of the same program for frames in several buffers.
const PROGRAM: &str = "tcpguard";
const JUMBO_PROGRAM: &str = "tcpguard_jumbo";
/// The global that tells an instance which interface slot is its own.
const SLOT: &str = "SLOT";
/// The global that tells it how large the table of fingerprints is.
const SPREAD: &str = "SPREAD";
/// How long an interface that was taken over with new maps stays closed at most, should the start neither end nor be undone.
const HOLD: Duration = Duration::from_secs(30);

/// Where daemons lock the interfaces that they guard.
pub const LOCK_DIR: &str = "/run/tcpguard";

/// How [`Dataplane::load`] goes about it.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where maps and links are pinned: a directory on a BPF file system, this daemon's alone.
    pub pin_dir: PathBuf,
    /// Where locks lie.
    pub lock_dir: PathBuf,
    /// Flows XDP can know at once, per family. Maps taken over keep their size.
    pub max_flows: u32,
    /// Flows in TIME_WAIT of each family, of all engines, whose late segments XDP can tell from strangers'. Maps taken over keep
    /// their size; so few that 4 MB hold them, or so many that 128 MB do not, make no difference.
    pub time_waits: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            pin_dir: "/sys/fs/bpf/tcpguard".into(),
            lock_dir: LOCK_DIR.into(),
            max_flows: DEFAULT_MAX_FLOWS,
            time_waits: 0,
        }
    }
}

/// An interface to guard.
#[derive(Clone, Debug)]
pub struct InterfaceSpec {
    /// Its name.
    pub name: String,
    /// Native or generic.
    pub mode: AttachMode,
    /// Receive queues that get an engine, from 0 on; all of them if `None`. What arrives at others is dropped.
    pub queues: Option<u32>,
}

/// An interface that carries the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// Its slot: index into the INTERFACES map, and part of every engine's `xsk_index`.
    pub slot: u32,
    /// The kernel's index.
    pub ifindex: u32,
    /// Receive queues that need an engine, from 0 on.
    pub queues: u32,
    /// How it was when it was attached.
    pub link: LinkFacts,
    /// Whether a previous daemon's link was taken over: protection had no gap.
    pub taken_over: bool,
}

/// What the previous daemon left in maps that were taken over.
#[derive(Clone, Debug)]
pub struct Previous {
    /// Its last settings.
    pub settings: Settings,
    /// Its epochs: cookies in flight were made with these.
    pub epochs: [EpochSlot; EPOCH_SLOTS as usize],
    /// How long none of its engines has turned.
    pub silent: Duration,
}

/// The XDP program on its interfaces, and its maps. Dropping it leaves both in place, as a kill would.
#[derive(Debug)]
pub struct Dataplane {
    pub(super) pins: PinDir,
    lock_dir: PathBuf,
    max_flows: u32,
    pub(super) maps: Maps,
    previous: Option<Previous>,
    pub(super) guarded: Vec<Guarded>,
}

/// One guarded interface.
#[derive(Debug)]
pub(super) struct Guarded {
    attached: Attached,
    pub(super) linked: Linked,
    /// What the interface's slot held before we guarded it.
    before: Interface,
    /// What its program logs, until somebody reads it.
    log: Option<XdpLog>,
    _lock: FileLock,
}

impl Dataplane {
    /// Takes over the maps pinned in `options.pin_dir` if they are of this ABI; makes new ones otherwise, which take the
    /// others' place once [`Self::commit`] is called. Attaches nothing.
    ///
    /// # Errors
    ///
    /// `PinDirInUse`, `NotBpffs`, `MountBpffs`, `NotPrivileged`, `Object`, `ObjectMismatch`, or a failure to pin.
    pub fn load(options: &LoadOptions) -> Result<Self, DataplaneError> {
        let mut pins = PinDir::open(&options.pin_dir)?;
        let spread = fingerprint::spread(options.time_waits);
        let (maps, previous) = match take_over(&pins)? {
            Some((maps, previous)) => {
                if maps.fingerprints.spread() < spread {
                    tracing::warn!(
                        wanted = options.time_waits,
                        "XDP knows fewer flows in TIME_WAIT: its table is the previous daemon's; a clean stop and start changes it"
                    );
                }
                if maps.flows.capacity() != options.max_flows {
                    tracing::warn!(
                        kept = maps.flows.capacity(),
                        wanted = options.max_flows,
                        "the flow maps of the previous daemon keep their size; a clean stop and start changes it"
                    );
                }
                (maps, Some(previous))
            }
            None => {
                if shared_names().any(|map| pins.join(map).exists()) {
                    pins.stage()?;
                }
                instance(&pins, 0, options.max_flows, spread, "its maps")?;
                (open_fresh(&pins)?, None)
            }
        };
        Ok(Self {
            pins,
            lock_dir: options.lock_dir.clone(),
            max_flows: options.max_flows,
            maps,
            previous,
            guarded: Vec::new(),
        })
    }

    /// What the previous daemon left, if its maps were taken over.
    pub fn previous(&self) -> Option<&Previous> {
        self.previous.as_ref()
    }

    /// In which epochs a service's cookies were strict by what a previous daemon left; `None` if it left nothing of the service.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn strictness(&self, addr: IpAddr, port: u16) -> Result<Option<Strictness>, DataplaneError> {
        if self.previous.is_none() {
            return Ok(None);
        }
        Ok(self.maps.service(addr, port)?.map(|service| service.strictness))
    }

    /// Makes XDP close `services` on interfaces that are taken over from a previous daemon of another ABI, from the moment
    /// that [`Self::attach`] replaces its program until [`Self::write_settings`]: as if the daemon had just died. Otherwise
    /// the host would answer meanwhile. Nothing where maps were taken over, too: those say what holds.
    ///
    /// # Errors
    ///
    /// `TooManyServices`, or a failed map access.
    pub fn hold(&self, services: &[ServiceEntry], on_exit: u32) -> Result<(), DataplaneError> {
        if self.previous.is_some() {
            return Ok(());
        }
        self.maps.set_services(services)?;
        let exit_grace = HOLD.as_nanos() as u64;
        self.maps.write_settings(&Settings { abi: ABI_VERSION, exit_grace, on_exit, ..Settings::default() })
    }

    /// Puts the program on an interface, in place of a previous daemon's if there is one. A new attachment is not armed:
    /// nothing is guarded before [`Self::arm`]. One that is taken over is guarded throughout, see [`Self::hold`].
    ///
    /// # Errors
    ///
    /// Each names its remedy; the interface is as it was.
    pub fn attach(&mut self, spec: &InterfaceSpec) -> Result<Attached, DataplaneError> {
        let facts = InterfaceFacts::query(&spec.name)?;
        if self.guarded.iter().any(|guarded| guarded.attached.ifindex == facts.ifindex) {
            return Err(DataplaneError::AttachedTwice { name: facts.name });
        }
        let queues = usable_queues(&facts, spec.queues)?;
        if queues < facts.rx_queues && facts.hashed_to.is_none() {
            tracing::warn!(
                interface = facts.name,
                queues,
                of = facts.rx_queues,
                "the driver does not say where packets arrive: those at a queue without an engine are dropped (no-engine)"
            );
        }
        let lock = self.lock(&facts)?;
        let (slot, before) = self.choose_slot(facts.ifindex)?;
        let spread = self.maps.fingerprints.spread();
        let mut ebpf = instance(&self.pins, slot, self.max_flows, spread, &facts.name)?;
        let log = Some(XdpLog::open(&mut ebpf, &facts.name)?);
        let program = load_program(&mut ebpf, program_for(&facts), &facts.name)?;
        let held = self.previous.is_none() && links::is_linked(&self.pins, facts.ifindex);
        let armed = if held { 1 } else { before.armed };
        let interface = Interface { mac: facts.link.mac, armed, queues, ifindex: facts.ifindex };
        let engines = (0..queues).filter_map(|queue| self.heartbeat(xsk_index(slot, queue)));
        // What the grace of a daemon that says no more counts from.
        engines.filter(|_| held).for_each(|heartbeat| heartbeat.beat(monotonic_ns(), false));
        self.maps.write_interface(slot, &interface)?;
        let linked = match links::link(&self.pins, program, &facts, spec.mode) {
            Ok(linked) => linked,
            Err(error) => {
                self.maps.write_interface(slot, &before)?;
                return Err(error);
            }
        };
        let taken_over = matches!(linked.old, OldLink::Same(_));
        if facts.link.state == LinkState::Down {
            tracing::warn!(
                interface = facts.name,
                "the interface is down: `ip link set dev {} up`",
                facts.name
            );
        }
        let InterfaceFacts { name, ifindex, link, .. } = facts;
        let attached = Attached { name, slot, ifindex, queues, link, taken_over };
        self.guarded.push(Guarded { attached: attached.clone(), linked, before, log, _lock: lock });
        Ok(attached)
    }

    /// What was attached stays, and maps made afresh take the place of a previous daemon's of another ABI.
    ///
    /// # Errors
    ///
    /// A pin that cannot be moved; [`Self::undo`] is then still possible.
    pub fn commit(&mut self) -> Result<(), DataplaneError> {
        // The settings come last: they carry the ABI, by which half a change would show.
        let names: Vec<_> = shared_names().collect();
        self.pins.unstage(names.into_iter().rev())
    }

    /// Puts every interface back to how it was, and removes the maps that were made afresh. Goes on past failures and
    /// reports the first. A program that was replaced comes back only with `CAP_SYS_ADMIN`: otherwise the new one, which
    /// uses the same maps, stays in its place.
    ///
    /// # Errors
    ///
    /// A link, a pin or a map that cannot be put back.
    pub fn undo(mut self) -> Result<(), DataplaneError> {
        let mut result = Ok(());
        while let Some(guarded) = self.guarded.pop() {
            result = result.and(self.put_back(&guarded));
        }
        match &self.previous {
            Some(previous) => result.and(self.maps.write_settings(&previous.settings)),
            None => {
                for map in shared_names() {
                    result = result.and(PinDir::remove(&self.pins.map(map)));
                }
                self.pins.remove_dir();
                result
            }
        }
    }

    fn put_back(&self, guarded: &Guarded) -> Result<(), DataplaneError> {
        let Guarded { attached, linked, before, log: _, _lock } = guarded;
        links::put_back(&self.pins, &attached.name, attached.ifindex, linked)?;
        self.maps.write_interface(attached.slot, before)
    }

    /// The interfaces attached so far.
    pub fn attached(&self) -> impl Iterator<Item = &Attached> {
        self.guarded.iter().map(|guarded| &guarded.attached)
    }

    /// Takes the program off interfaces that a previous daemon guarded and this one does not; call it once all are
    /// attached. Returns how many there were.
    ///
    /// # Errors
    ///
    /// A pin that cannot be removed.
    pub fn release_unclaimed(&mut self) -> Result<usize, DataplaneError> {
        let mut released = 0;
        for pin in self.pins.with_prefix(LINK_PREFIX)? {
            if !self.guarded.iter().any(|guarded| guarded.linked.pin == pin) {
                links::release_link(&pin)?;
                released += 1;
            }
        }
        for slot in 0..MAX_INTERFACES {
            if !self.attached().any(|attached| attached.slot == slot) {
                self.maps.write_interface(slot, &Interface::default())?;
            }
        }
        Ok(released)
    }

    /// Switches protection of a slot's interface on or off; the program stays attached, so that the link does not bounce.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn arm(&self, slot: u32, armed: bool) -> Result<(), DataplaneError> {
        let interface = self.maps.read_interface(slot)?;
        self.maps.write_interface(slot, &Interface { armed: u16::from(armed), ..interface })
    }

    /// Says that a slot's interface has this MAC address now: frames to it are ours.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn set_mac(&self, slot: u32, mac: [u8; 6]) -> Result<(), DataplaneError> {
        let interface = self.maps.read_interface(slot)?;
        self.maps.write_interface(slot, &Interface { mac, ..interface })
    }

    /// Makes the protected services equal to `services`.
    ///
    /// # Errors
    ///
    /// `TooManyServices`, with nothing changed, or a failed map access.
    pub fn set_services(&self, services: &[ServiceEntry]) -> Result<(), DataplaneError> {
        self.maps.set_services(services)
    }

    /// Writes the settings, whole but for [`Settings::filters`], which is the [`FilterTable`]'s.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn write_settings(&self, settings: &Settings) -> Result<(), DataplaneError> {
        self.maps.write_settings(settings)
    }

    /// Fills every budget up. A bucket knows the time until which its tokens are spent, so that one emptied at a low
    /// rate would stay so at a higher one.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn refill_budgets(&self) -> Result<(), DataplaneError> {
        self.maps.refill()
    }

    /// Has XDP enter flows as this daemon's from now on: `settings` are those to be written, the rest of which waits for
    /// that. Before any socket is registered: XDP enters no flows without one, and what it entered as the previous daemon's
    /// would be reset.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn begin_generation(&self, settings: &Settings) -> Result<(), DataplaneError> {
        let &Settings { generation, hash_key, .. } = settings;
        self.maps.write_settings(&Settings { generation, hash_key, ..self.maps.read_settings()? })
    }

    /// The count of open flows of this generation's sources and of these services, begun anew from what is in the flow
    /// table. Before any socket is registered, likewise.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn census(&self, settings: &Settings, services: &[ServiceEntry]) -> Result<Census, DataplaneError> {
        let &Settings { generation, hash_key, .. } = settings;
        let census = Census::new(self.maps.counts.clone(), generation, hash_key, services);
        let failed = |source| DataplaneError::Map { action: "list", map: name::FLOWS_V4, source };
        census.recount(&self.maps.flows).map_err(failed)?;
        Ok(census)
    }

    /// The settings as XDP sees them.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn settings(&self) -> Result<Settings, DataplaneError> {
        self.maps.read_settings()
    }

    /// Writes the epoch slots that changed. Before [`Self::write_settings`] says that one of them is current.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn write_epochs(&self, slots: &[EpochSlot]) -> Result<(), DataplaneError> {
        self.maps.write_epochs(slots)
    }

    /// The epoch slots as XDP sees them.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn epochs(&self) -> Result<[EpochSlot; EPOCH_SLOTS as usize], DataplaneError> {
        self.maps.read_epochs()
    }

    /// The reason counters now. They start where a previous daemon's left off.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn counters(&self) -> Result<Counters, DataplaneError> {
        self.maps.counters()
    }

    /// What was counted of the service with this id since the maps were made, in dry run or not: the id may have been
    /// another service's before.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn service_counters(&self, service: u32, dry_run: bool) -> Result<ServiceCounters, DataplaneError> {
        self.maps.service_counters(service, dry_run)
    }

    /// The ring of recorded packets: for one reader.
    ///
    /// # Errors
    ///
    /// A map that cannot be opened.
    pub fn trace_ring(&self) -> Result<TraceRing, DataplaneError> {
        TraceRing::open(&self.pins)
    }

    /// What the programs log themselves, of each interface: for one reader.
    pub fn take_logs(&mut self) -> Vec<XdpLog> {
        self.guarded.iter_mut().filter_map(|guarded| guarded.log.take()).collect()
    }

    /// The flow table.
    pub fn flows(&self) -> FlowTable {
        self.maps.flows.clone()
    }

    /// The heartbeat word of the engine with this `xsk_index`; `None` past the last one.
    pub fn heartbeat(&self, xsk_index: u32) -> Option<Heartbeat> {
        self.maps.heartbeats.of(xsk_index)
    }

    /// The filter lists, still those of a previous daemon where maps were taken over. For one owner.
    ///
    /// # Errors
    ///
    /// A map that cannot be opened.
    pub fn filters(&self) -> Result<FilterTable, DataplaneError> {
        FilterTable::open(&self.pins, self.maps.settings.clone())
    }

    /// What a [`View`](super::View) of the maps reads.
    ///
    /// # Errors
    ///
    /// A map that cannot be opened or read.
    pub fn views(&self) -> Result<Views, DataplaneError> {
        Views::open(&self.maps, &self.pins)
    }

    /// The TIME_WAIT fingerprints.
    pub fn fingerprints(&self) -> Fingerprints {
        self.maps.fingerprints.clone()
    }

    /// Lets XDP redirect a queue's frames to `socket`, which must be bound to it. The entry goes when the socket does.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn register_socket(
        &self,
        slot: u32,
        queue: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), DataplaneError> {
        self.maps.register_socket(slot, queue, socket)
    }

    /// Takes the program off every interface and removes every pin, those of a previous daemon included. Goes on past
    /// failures and reports the first.
    ///
    /// # Errors
    ///
    /// A pin that cannot be removed.
    pub fn detach(self) -> Result<(), DataplaneError> {
        let mut result = Ok(());
        for guarded in &self.guarded {
            // The link goes even if somebody else holds a descriptor of it.
            if let Err(source) = bpf::link_detach(guarded.linked.link.as_fd()) {
                tracing::warn!(interface = guarded.attached.name, "could not detach: {source}");
            }
            result = result.and(PinDir::remove(&guarded.linked.pin));
        }
        result.and(clear(self.pins).map(drop))
    }

    /// Removes what a killed daemon left in `pin_dir`, without loading anything, and the locks in `lock_dir` that nobody
    /// holds. Returns whether there was anything pinned.
    ///
    /// # Errors
    ///
    /// `PinDirInUse` while a daemon runs, or a pin that cannot be removed.
    pub fn remove(pin_dir: &Path, lock_dir: &Path) -> Result<bool, DataplaneError> {
        let removed = match pin_dir.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            // If it cannot be looked into, opening it says why.
            _ => clear(PinDir::open(pin_dir)?)?,
        };
        lock::sweep(lock_dir);
        Ok(removed)
    }

    /// Leaves program, maps and pins in place, for the next daemon to take over. The same as a kill.
    pub fn leave(self) {
        drop(self);
    }

    fn lock(&self, facts: &InterfaceFacts) -> Result<FileLock, DataplaneError> {
        let path =
            self.lock_dir.join(format!("{}-{}.{}", network_namespace(), facts.ifindex, lock::EXTENSION));
        let failed = |source| {
            DataplaneError::or_privilege(format!("lock {}", path.display()), source, |source| {
                DataplaneError::Lock { path: path.clone(), source }
            })
        };
        std::fs::create_dir_all(&self.lock_dir).map_err(failed)?;
        FileLock::acquire(&path).map_err(|error| match error {
            LockError::Held(pid) => DataplaneError::AlreadyGuarded { name: facts.name.clone(), pid },
            LockError::Io(source) => failed(source),
        })
    }

    /// The slot that a previous daemon gave this interface, the first free one otherwise; and what it holds.
    fn choose_slot(&self, ifindex: u32) -> Result<(u32, Interface), DataplaneError> {
        let mut free = None;
        for slot in 0..MAX_INTERFACES {
            if self.attached().any(|attached| attached.slot == slot) {
                continue;
            }
            let held = self.maps.read_interface(slot)?;
            if held.ifindex == ifindex {
                return Ok((slot, held));
            }
            if held.ifindex == 0 && free.is_none() {
                free = Some((slot, held));
            }
        }
        free.ok_or(DataplaneError::TooManyInterfaces { limit: MAX_INTERFACES })
    }
}

/// The previous daemon's maps, if they are all there and of this ABI.
fn take_over(pins: &PinDir) -> Result<Option<(Maps, Previous)>, DataplaneError> {
    let Some(maps) = Maps::open(pins)? else { return Ok(None) };
    let settings = maps.read_settings()?;
    if settings.abi != ABI_VERSION {
        tracing::info!(
            found = settings.abi,
            ours = ABI_VERSION,
            "pinned maps are of another version: starting afresh"
        );
        return Ok(None);
    }
    let epochs = maps.read_epochs()?;
    let silent = Duration::from_nanos(monotonic_ns().saturating_sub(maps.heartbeats.newest()));
    tracing::info!(dir = %pins.path().display(), generation = settings.generation, "took over a previous daemon's maps");
    Ok(Some((maps, Previous { settings, epochs, silent })))
}

/// Opens the maps that loading an instance just pinned.
fn open_fresh(pins: &PinDir) -> Result<Maps, DataplaneError> {
    for map in shared_names() {
        if !pins.map(map).exists() {
            return Err(DataplaneError::ObjectMismatch { kind: "map", name: map.to_owned() });
        }
    }
    let other_layout = || DataplaneError::ObjectMismatch { kind: "maps", name: "of this layout".to_owned() };
    Maps::open(pins)?.ok_or_else(other_layout)
}

/// Parses the object for one slot: creates the maps that are not pinned yet and joins those that are.
fn instance(
    pins: &PinDir,
    slot: u32,
    max_flows: u32,
    spread: u32,
    subject: &str,
) -> Result<Ebpf, DataplaneError> {
    let mut loader = EbpfLoader::new();
    // The program touches no kernel type, so that the kernel's own type information would only cost time.
    loader.btf(None);
    // Rejected programs are verified again for the log: the reason is enough, every instruction would take minutes.
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for map in shared_names() {
        loader.map_pin_path(map, pins.map(map));
    }
    loader.map_max_entries(name::FLOWS_V4, max_flows).map_max_entries(name::FLOWS_V6, max_flows);
    loader.map_max_entries(name::TIME_WAIT, BUCKETS << spread);
    loader.override_global(SLOT, &slot, true).override_global(SPREAD, &spread, true);
    loader.load(OBJECT).map_err(|error| object_error(subject, error))
}

/// A driver that puts a frame into several buffers takes no program but one that says it can live with that.
fn program_for(facts: &InterfaceFacts) -> &'static str {
    let mtu = facts.link.mtu;
    if mtu <= WHOLE_MTU {
        return PROGRAM;
    }
    let limit = SocketConfig::packet_limit(mtu);
    tracing::info!(
        interface = facts.name,
        "with an MTU of {mtu}, frames may take several buffers: services keep to packets of {limit} bytes, all other frames \
         pass whole"
    );
    JUMBO_PROGRAM
}

fn load_program<'a>(ebpf: &'a mut Ebpf, name: &str, subject: &str) -> Result<BorrowedFd<'a>, DataplaneError> {
    let missing = || DataplaneError::ObjectMismatch { kind: "program", name: name.to_owned() };
    let program = ebpf.program_mut(name).ok_or_else(missing)?;
    let program: &mut Xdp = program.try_into().map_err(|_| missing())?;
    unless_interrupted(|| program.load()).map_err(|error| object_error(subject, error.into()))?;
    let not_loaded = |_| DataplaneError::ObjectMismatch { kind: "program", name: format!("loaded {name}") };
    Ok(program.fd().map_err(not_loaded)?.as_fd())
}

/// How often a program is handed to the verifier before a signal at each try counts as a failure, as in libbpf.
const LOAD_TRIES: u32 = 5;

/// The verifier gives up with EAGAIN as soon as the thread has a signal to take, whatever that is.
fn unless_interrupted(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    let mut tries = 1;
    loop {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) && tries < LOAD_TRIES =>
            {
                tries += 1;
            }
            result => return result,
        }
    }
}

fn object_error(subject: &str, error: EbpfError) -> DataplaneError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        let denied = inner.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        if let Some(code @ (libc::EPERM | libc::EACCES)) = denied
            // The verifier says EACCES when it rejects a program, and writes a log.
            && !(code == libc::EACCES && error.to_string().contains("Verifier output"))
        {
            return DataplaneError::NotPrivileged {
                action: format!("load the XDP program for {subject}"),
                source: io::Error::from_raw_os_error(code),
            };
        }
        cause = inner.source();
    }
    DataplaneError::Object { subject: subject.to_owned(), source: Box::new(error) }
}

/// Removes every pin, links first, and the directory. Goes on past failures and reports the first. Returns whether there
/// was anything.
fn clear(pins: PinDir) -> Result<bool, DataplaneError> {
    let (links, mut result) = match pins.with_prefix(LINK_PREFIX) {
        Ok(links) => (links, Ok(())),
        Err(error) => (Vec::new(), Err(error)),
    };
    let maps: Vec<PathBuf> = shared_names().map(|map| pins.join(map)).filter(|pin| pin.exists()).collect();
    let found = !links.is_empty() || !maps.is_empty();
    for pin in &links {
        result = result.and(links::release_link(pin));
    }
    for pin in &maps {
        result = result.and(PinDir::remove(pin));
    }
    pins.remove_dir();
    result.map(|()| found)
}

/// How many of an interface's receive queues get an engine, if `wanted` are to.
pub(super) fn usable_queues(facts: &InterfaceFacts, wanted: Option<u32>) -> Result<u32, DataplaneError> {
    let name = || facts.name.clone();
    let queues = wanted.unwrap_or(facts.rx_queues);
    if queues > facts.rx_queues || !(1..=MAX_QUEUES).contains(&queues) {
        return Err(DataplaneError::QueueCount { name: name(), queues, present: facts.rx_queues });
    }
    // A queue without an engine has nobody to take its connections, and its SYNs would go unanswered.
    let is_among_others = |&last: &u32| queues < facts.rx_queues && last >= queues;
    if let Some(last) = facts.hashed_to.filter(is_among_others) {
        return Err(DataplaneError::UnservedQueues { name: name(), queues, last });
    }
    // AF_XDP in copy mode sends nothing, and says nothing, on a queue that the device has no transmit side for.
    if queues > facts.tx_queues {
        return Err(DataplaneError::UnequalQueues { name: name(), rx: queues, tx: facts.tx_queues });
    }
    Ok(queues)
}
