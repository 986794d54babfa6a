//! Who watches single packets, and what each is shown. While somebody does, XDP and the engines record; records are
//! looked for a hundred times a second and passed on, and whoever does not keep up misses some. How they are shown is
//! the client's business.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tcpguard_common::map::MAX_QUEUES;
use tcpguard_common::reason::{Outcome, Reason};
use tcpguard_common::trace::{ENGINE, IN_DRY_RUN, OUT, Record, Wanted};
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::dataplane::{TraceLost, TraceRing, monotonic_ns};
use crate::engine::TapReader;
use crate::telemetry::packet;

use super::daemon::DaemonError;
use super::guard::Guard;
use super::protocol::{self as wire, Fault, Refusal, Reply};
use super::services::Known;

/// How often records are looked for.
const LOOK: Duration = Duration::from_millis(10);
/// Records passed on at a time: more than come between two looks.
const BATCH: usize = 8192;
/// Packets that may wait for one client.
const WAITING: usize = 2048;
/// Who may watch at once.
const MOST: usize = 8;
/// The `reason` of what engines send.
const ENGINE_REASON: &str = "engine";

/// Everybody who watches.
pub(super) struct Monitors {
    ring: RefCell<TraceRing>,
    tap: RefCell<TapReader>,
    watchers: RefCell<Vec<Watcher>>,
    /// Reasons, one bit each, whose segments are looked at for the sources of attacks at this moment.
    pub(super) sampling: Cell<u64>,
    came: Notify,
}

/// One client.
struct Watcher {
    selection: Selection,
    packets: mpsc::Sender<Reply>,
    /// What was lost before it came.
    before: Lost,
    /// What it missed because it does not keep up.
    unread: u64,
    /// What it was told.
    told: wire::PacketsLost,
}

/// Records that nobody will ever see, since the daemon started.
#[derive(Clone, Copy, Default)]
struct Lost {
    ring: TraceLost,
    engines: u64,
}

/// Which packets a client wants to see.
struct Selection {
    /// One bit for each reason.
    reasons: u64,
    engine: bool,
    /// Ids of services; empty for all.
    services: BTreeSet<u32>,
}

impl Selection {
    /// # Errors
    ///
    /// What is not known, in a sentence.
    fn new(reasons: &[String], services: &[SocketAddr], known: &[Known]) -> Result<Self, String> {
        let mut selection = Self { reasons: 0, engine: false, services: BTreeSet::new() };
        for name in reasons {
            match Reason::from_name(name) {
                Some(reason) => selection.reasons |= 1 << reason as u32,
                None if name == ENGINE_REASON => selection.engine = true,
                None => return Err(format!("unknown reason `{name}`; `tcpguard stats --all` lists them")),
            }
        }
        if reasons.is_empty() {
            (selection.reasons, selection.engine) = (every_reason(), true);
        }
        for listen in services {
            let found = known.iter().find(|known| known.service.listen == *listen);
            let found =
                found.ok_or_else(|| format!("no service {listen}; `tcpguard services` lists them"))?;
            selection.services.insert(found.id);
        }
        Ok(selection)
    }

    fn takes(&self, record: &Record) -> bool {
        let reason = match record.reason {
            ENGINE => self.engine,
            reason => self.reasons >> reason & 1 != 0,
        };
        reason && (self.services.is_empty() || self.services.contains(&record.service))
    }
}

fn refusal(kind: Fault, message: String) -> Refusal {
    Refusal { kind, message }
}

fn every_reason() -> u64 {
    Reason::ALL.iter().fold(0, |bits, &reason| bits | 1 << reason as u32)
}

impl Monitors {
    pub(super) fn new(ring: TraceRing, tap: TapReader) -> Self {
        let (ring, tap) = (RefCell::new(ring), RefCell::new(tap));
        Self { ring, tap, watchers: RefCell::default(), sampling: Cell::default(), came: Notify::new() }
    }

    /// What XDP has to record for all of them together.
    fn wanted(&self) -> Wanted {
        let watchers = self.watchers.borrow();
        let sampling = self.sampling.get();
        let reasons = watchers.iter().fold(sampling, |bits, watcher| bits | watcher.selection.reasons);
        let mut services = watchers.iter().map(|watcher| &watcher.selection.services);
        let first = services
            .next()
            .filter(|&first| sampling == 0 && first.len() == 1 && services.all(|other| other == first));
        let service = first.and_then(|one| one.first()).map_or(0, |&id| u64::from(id) + 1);
        Wanted { reasons, service }
    }

    fn want_engines(&self) -> bool {
        self.watchers.borrow().iter().any(|watcher| watcher.selection.engine)
    }

    /// Lets engines record what they send, or not.
    pub(super) fn open_tap(&self, open: bool) {
        self.tap.borrow().open(open);
    }

    /// Takes what was recorded since the last time, in the order in which it happened.
    fn collect(&self) -> Vec<Record> {
        let mut records = Vec::new();
        self.ring.borrow_mut().drain(BATCH, |record| records.push(record));
        let mut tap = self.tap.borrow_mut();
        records.extend(std::iter::from_fn(|| tap.take()).take(BATCH));
        records.sort_by_key(|record| record.time);
        records
    }

    fn lost(&self) -> Lost {
        let ring = self.ring.borrow().lost().unwrap_or_else(|error| {
            warn!(%error, "cannot tell how many packets a monitor missed");
            TraceLost::default()
        });
        Lost { ring, engines: self.tap.borrow().lost() }
    }
}

impl Watcher {
    fn offer(&mut self, reply: Reply) -> bool {
        self.packets.try_send(reply).is_ok()
    }

    /// Tells what was lost, if that is news.
    fn tell(&mut self, now: &Lost) {
        let news = wire::PacketsLost {
            beyond_rate: (now.ring.beyond_rate + now.engines)
                .saturating_sub(self.before.ring.beyond_rate + self.before.engines),
            ring_full: now.ring.ring_full.saturating_sub(self.before.ring.ring_full),
            unread: self.unread,
        };
        if news != self.told && self.offer(Reply::PacketsLost(news.clone())) {
            self.told = news;
        }
    }
}

/// Passes packets on for as long as the daemon lives.
pub(super) async fn run(guard: Rc<Guard>) {
    loop {
        guard.monitors.came.notified().await;
        while !guard.monitors.watchers.borrow().is_empty() {
            sleep(LOOK).await;
            guard.pass_packets_on();
            guard.dismiss_watchers();
        }
    }
}

impl Guard {
    /// Lets a client watch from now on.
    pub(super) fn watch(
        &self,
        reasons: &[String],
        services: &[SocketAddr],
    ) -> Result<mpsc::Receiver<Reply>, Refusal> {
        let monitors = &self.monitors;
        if monitors.watchers.borrow().len() >= MOST {
            return Err(refusal(Fault::Busy, format!("{MOST} monitors are running")));
        }
        let selection = Selection::new(reasons, services, &self.modes.known())
            .map_err(|message| refusal(Fault::BadInput, message))?;
        if monitors.watchers.borrow().is_empty() {
            // What nobody waited for when the last one went.
            while !monitors.collect().is_empty() {}
        }
        let (packets, receiver) = mpsc::channel(WAITING);
        let (before, told) = (monitors.lost(), wire::PacketsLost::default());
        let mut watcher = Watcher { selection, packets, before, unread: 0, told };
        watcher.offer(Reply::Monitoring {});
        monitors.watchers.borrow_mut().push(watcher);
        if let Err(error) = self.record_what_is_wanted() {
            monitors.watchers.borrow_mut().pop();
            return Err(refusal(Fault::Failed, error.to_string()));
        }
        monitors.came.notify_one();
        info!(?reasons, ?services, "packets are recorded for a monitor");
        Ok(receiver)
    }

    /// Has XDP and the engines record what anybody wants now.
    pub(super) fn record_what_is_wanted(&self) -> Result<(), DaemonError> {
        self.record(self.monitors.wanted(), self.monitors.want_engines())
    }

    /// Passes on what was recorded since the last time.
    pub(super) fn pass_packets_on(&self) {
        let records = self.monitors.collect();
        records.iter().for_each(|record| self.attacks.sample(record));
        if self.monitors.watchers.borrow().is_empty() {
            return;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let offset = (now.as_nanos() as u64).saturating_sub(monotonic_ns());
        let mut watchers = self.monitors.watchers.borrow_mut();
        for record in &records {
            let record = &self.with_service(record);
            let packet = self.describe(record, offset);
            for watcher in watchers.iter_mut().filter(|watcher| watcher.selection.takes(record)) {
                if !watcher.offer(Reply::Packet(packet.clone())) {
                    watcher.unread += 1;
                }
            }
        }
        let lost = self.monitors.lost();
        watchers.iter_mut().for_each(|watcher| watcher.tell(&lost));
    }

    /// Forgets who hung up, and records no more than what the others want.
    fn dismiss_watchers(&self) {
        let before = self.monitors.watchers.borrow().len();
        self.monitors.watchers.borrow_mut().retain(|watcher| !watcher.packets.is_closed());
        let left = self.monitors.watchers.borrow().len();
        if left == before {
            return;
        }
        match self.record_what_is_wanted() {
            Ok(()) => info!(left, "a monitor has gone"),
            Err(error) => warn!(%error, "packets are still recorded for a monitor that has gone"),
        }
    }

    /// Which service an engine's segment belongs to is in its addresses.
    fn with_service(&self, record: &Record) -> Record {
        let local = match record.reason {
            ENGINE => packet::headers(record.bytes(), record.len as usize).map(|headers| headers.src),
            _ => return *record,
        };
        let service = local.and_then(|local| {
            let place = |addr: SocketAddr| self.modes.id_of(addr);
            let mut anywhere = local;
            anywhere.set_ip(if local.is_ipv4() {
                std::net::Ipv4Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            });
            place(local).or_else(|| place(anywhere))
        });
        Record { service: service.unwrap_or(record.service), ..*record }
    }

    fn describe(&self, record: &Record, offset: u64) -> wire::Packet {
        let reason = Reason::ALL.get(record.reason as usize);
        let attached = self.attached.iter().find(|attached| attached.slot == record.engine / MAX_QUEUES);
        let verdict = match reason {
            Some(_) if record.direction == IN_DRY_RUN => Outcome::Passed.name(),
            Some(reason) if record.direction != OUT => reason.outcome().name(),
            _ => "sent",
        };
        wire::Packet {
            time_ns: record.time + offset,
            direction: if record.direction == OUT { "out" } else { "in" }.to_owned(),
            interface: attached.map_or_else(String::new, |attached| attached.name.clone()),
            queue: record.engine % MAX_QUEUES,
            service: self.modes.listen_of(record.service),
            verdict: verdict.to_owned(),
            dry_run: record.direction == IN_DRY_RUN,
            reason: reason.map_or(ENGINE_REASON, |reason| reason.name()).to_owned(),
            len: record.len,
            frame: record.bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}
