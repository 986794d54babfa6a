//! Attacks on the services while the daemon runs: counters read once a second, what `telemetry::attack` makes of them, and
//! who is told. Sources come from segments that XDP records for a moment of each second while an attack is on; of a slow read,
//! from the connections that clients hold up.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tcpguard_common::reason::{Class, Reason};
use tcpguard_common::trace::{ENGINE, OUT, Record};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::config::Tunables;
use crate::dataplane::monotonic_ns;
use crate::service::{Far, Hold, Pool, Purpose};
use crate::telemetry::attack::{Attack, Change, Kind, Reading, Share, Sources, Thresholds, Watch};
use crate::telemetry::packet;
use crate::telemetry::slices::Slices;

use super::daemon::DaemonError;
use super::guard::Guard;
use super::hook::Hook;
use super::protocol::{self as wire, Fault, Refusal, Reply};
use super::server::Rights;
use super::services::Known;
use super::tunables::ByService as _;

/// How often the counters are read.
pub(super) const ATTACK_TICK: Duration = Duration::from_secs(1);
/// For how long of that XDP records segments: a fiftieth of a flood pays for being looked at.
const SAMPLING: Duration = Duration::from_millis(20);
/// How often it is looked which clients take nothing.
const STALL_TICK: Duration = Duration::from_secs(10);
/// Prefixes that an event names.
const TOP: usize = 5;
/// Events that are kept.
const KEPT: usize = 512;
/// Events that may wait for one follower.
const WAITING: usize = 2 * KEPT;
/// Who may follow at once; so many of the places are for those who may only read, and the others for those who may do everything.
const FOLLOWERS: usize = 8;
const READING: usize = FOLLOWERS / 2;

/// The attacks that are on, and what happened before.
pub(super) struct Attacks {
    /// By the service's id.
    watches: RefCell<BTreeMap<u32, Watched>>,
    /// Attacks begun so far.
    begun: Cell<u64>,
    log: RefCell<Log>,
    slices: RefCell<Slices>,
    /// When it was looked last which clients take nothing.
    looked: Cell<u64>,
    pub(super) hook: Hook,
}

/// One service.
struct Watched {
    listen: SocketAddr,
    watch: Watch,
    /// Of the attack of each kind.
    numbers: [u64; Kind::ALL.len()],
}

/// The last events, and who wants to hear of the next ones.
#[derive(Default)]
struct Log {
    events: VecDeque<wire::Event>,
    number: u64,
    followers: Vec<Follower>,
}

struct Follower {
    sender: mpsc::Sender<Reply>,
    rights: Rights,
}

/// What is to be announced.
struct News {
    listen: SocketAddr,
    number: u64,
    id: u32,
    change: Change,
}

impl Attacks {
    pub(super) fn new(hook: Hook) -> Self {
        Self {
            watches: RefCell::default(),
            begun: Cell::default(),
            log: RefCell::default(),
            slices: RefCell::default(),
            looked: Cell::default(),
            hook,
        }
    }

    /// Takes in a reading of every service that there is.
    fn observe(&self, readings: &[(Known, Reading)], thresholds: impl Fn(u32) -> Thresholds) -> Vec<News> {
        let mut watches = self.watches.borrow_mut();
        let mut news = Vec::new();
        let stays = |id: &u32, watched: &Watched| {
            readings.iter().any(|(known, _)| known.id == *id && known.service.listen == watched.listen)
        };
        let gone: Vec<u32> =
            watches.iter().filter(|(id, watched)| !stays(id, watched)).map(|(&id, _)| id).collect();
        for id in gone {
            let Some(Watched { listen, watch, numbers }) = watches.remove(&id) else { continue };
            news.extend(watch.end(monotonic_ns()).map(|attack| {
                let number = numbers[attack.kind as usize];
                News { listen, number, id, change: Change::Ended(Box::new(attack)) }
            }));
        }
        for (known, reading) in readings {
            let listen = known.service.listen;
            let new = || Watched { listen, watch: Watch::default(), numbers: Default::default() };
            let watched = watches.entry(known.id).or_insert_with(new);
            for change in watched.watch.observe(*reading, &thresholds(known.id)) {
                let kind = match &change {
                    Change::Began(kind) => {
                        self.begun.set(self.begun.get() + 1);
                        watched.numbers[*kind as usize] = self.begun.get();
                        *kind
                    }
                    Change::Ended(attack) => attack.kind,
                };
                news.push(News { listen, number: watched.numbers[kind as usize], id: known.id, change });
            }
        }
        news
    }

    /// The reasons of segments to look at.
    fn reasons(&self) -> u64 {
        let watches = self.watches.borrow();
        let on = |kind| watches.values().any(|watched| watched.watch.attacks().any(|on| on.kind == kind));
        let wanted = Reason::ALL.iter().filter(|&&reason| kind_of(reason).is_some_and(on));
        wanted.fold(0, |bits, &reason| bits | 1 << reason as u32)
    }

    /// A segment was recorded: if it is part of an attack, its source counts. They come in the order in which they were judged.
    pub(super) fn sample(&self, record: &Record) {
        if record.reason == ENGINE || !self.slices.borrow_mut().is_in_all(record) {
            return;
        }
        let reason = Reason::ALL.get(record.reason as usize).filter(|_| record.direction != OUT);
        let Some(kind) = reason.and_then(|&reason| kind_of(reason)) else { return };
        let mut watches = self.watches.borrow_mut();
        let watched = watches.get_mut(&record.service);
        let Some(attack) = watched.and_then(|watched| watched.watch.attack(kind)) else { return };
        if let Some(headers) = packet::headers(record.bytes(), record.len as usize) {
            attack.sources.take(headers.src.ip());
        }
    }

    /// The services, by their ids, of which it is to be looked which clients take nothing.
    fn stalled(&self, now: u64) -> Vec<u32> {
        let is_due = Duration::from_nanos(now.saturating_sub(self.looked.get())) >= STALL_TICK;
        let mut watches = self.watches.borrow_mut();
        let due = watches.iter_mut().filter_map(|(&id, watched)| {
            let attack = watched.watch.attack(Kind::SlowRead)?;
            (is_due || attack.sources.estimate().sampled == 0).then_some(id)
        });
        let due: Vec<u32> = due.collect();
        if !due.is_empty() {
            self.looked.set(now);
        }
        due
    }

    /// Says what happened to everybody who wants to know.
    fn announce(&self, News { listen, number, id, change }: News) {
        let attack = match &change {
            Change::Began(kind) => {
                let mut watches = self.watches.borrow_mut();
                let attack = watches.get_mut(&id).and_then(|watched| watched.watch.attack(*kind));
                attack.map(|attack| describe(listen, number, attack, false))
            }
            Change::Ended(attack) => Some(describe(listen, number, attack, true)),
        };
        let Some(attack) = attack else { return };
        let wire::Attack { kind, rate, peak, total, sources_at_least: sources, .. } = &attack;
        let from = attack.prefixes.first().map_or("no prefix in particular", |first| first.prefix.as_str());
        let event = match change {
            Change::Began(_) => {
                warn!(service = %listen, kind, rate, sources, from, "an attack has begun");
                "attack-began"
            }
            Change::Ended(_) => {
                let seconds = attack.ended_ms.unwrap_or_default().saturating_sub(attack.began_ms) / 1000;
                info!(service = %listen, kind, peak, total, seconds, sources, from, "an attack is over");
                "attack-ended"
            }
        };
        let event = self.log.borrow_mut().add(event, attack);
        self.hook.offer(&event);
    }

    /// How many there have been.
    pub(super) fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// The attacks that are on.
    pub(super) fn ongoing(&self) -> Vec<wire::Attack> {
        let watches = self.watches.borrow();
        let of = |Watched { listen, watch, numbers }: &Watched| {
            let on = watch.attacks().map(|on| describe(*listen, numbers[on.kind as usize], on, false));
            on.collect::<Vec<_>>()
        };
        watches.values().flat_map(of).collect()
    }

    /// What happened lately.
    pub(super) fn events(&self) -> wire::Events {
        let events = self.log.borrow().events.iter().cloned().collect();
        wire::Events { ongoing: self.ongoing(), events, hook: self.hook.runs() }
    }

    /// What happened lately, and from now on whatever happens.
    pub(super) fn follow(&self, rights: Rights) -> Result<mpsc::Receiver<Reply>, Refusal> {
        let mut log = self.log.borrow_mut();
        log.followers.retain(|follower| !follower.sender.is_closed());
        let alike = log.followers.iter().filter(|follower| follower.rights == rights).count();
        if alike >= if rights == Rights::Read { READING } else { FOLLOWERS - READING } {
            let message = format!("{alike} clients follow the events");
            return Err(Refusal { kind: Fault::Busy, message });
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        for event in &log.events {
            // There is room for all of them.
            drop(sender.try_send(Reply::Event(event.clone())));
        }
        log.followers.push(Follower { sender, rights });
        Ok(receiver)
    }
}

impl Log {
    fn add(&mut self, event: &str, attack: wire::Attack) -> wire::Event {
        self.number += 1;
        let event = wire::Event { number: self.number, time_ms: unix_ms(), event: event.to_owned(), attack };
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
        // Who does not read misses events, which the numbers tell.
        self.followers.retain(|follower| {
            let offered = follower.sender.try_send(Reply::Event(event.clone()));
            !matches!(offered, Err(mpsc::error::TrySendError::Closed(_)))
        });
        event
    }
}

/// Of which kind of attack a segment with this verdict may be.
fn kind_of(reason: Reason) -> Option<Kind> {
    const KINDS: [(Class, Kind); 6] = [
        (Class::CookieSent, Kind::SynFlood),
        (Class::SynRefused, Kind::SynFlood),
        (Class::SynStateful, Kind::SynFlood),
        (Class::AckInvalid, Kind::AckFlood),
        (Class::AckValid, Kind::ConnectionFlood),
        (Class::Reset, Kind::ConnectionFlood),
    ];
    let class = reason.class();
    KINDS.iter().find(|(known, _)| *known as u32 == class).map(|&(_, kind)| kind)
}

fn thresholds(tunables: &Tunables) -> Thresholds {
    Thresholds {
        syns: tunables.attack_syns.into(),
        acks: tunables.attack_acks.into(),
        connections: tunables.attack_connections.into(),
        stalls: tunables.attack_stalls.into(),
        calm: tunables.attack_calm_time,
    }
}

/// An attack in the protocol's words.
fn describe(listen: SocketAddr, number: u64, attack: &Attack, is_over: bool) -> wire::Attack {
    let Attack { kind, began, calm_since, rate, peak, total, sources } = attack;
    let (now, wall) = (monotonic_ns(), unix_ms());
    let wall_time = |at: u64| wall.saturating_sub(now.saturating_sub(at) / 1_000_000);
    let estimate = sources.estimate();
    let prefixes = sources.top(TOP).into_iter().map(|Share { addr, len, samples, of }| wire::AttackPrefix {
        prefix: format!("{addr}/{len}"),
        samples,
        permille: samples * 1000 / of.max(1),
    });
    wire::Attack {
        number,
        service: listen,
        kind: kind.name().to_owned(),
        began_ms: wall_time(*began),
        ended_ms: is_over.then(|| wall_time(calm_since.unwrap_or(now))),
        rate: *rate,
        peak: *peak,
        total: *total,
        sampled: estimate.sampled,
        sources_seen: estimate.seen,
        sources_at_least: estimate.at_least,
        prefixes: prefixes.collect(),
    }
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    super::answers::millis(now)
}

impl Guard {
    /// Looks whether attacks have begun or ended, who sends, and says so.
    pub(super) async fn look_for_attacks(&self) -> Result<(), DaemonError> {
        let readings = self.modes.known().into_iter().map(|known| {
            let reading = self.attack_reading(known.id)?;
            Ok((known, reading))
        });
        let readings = readings.collect::<Result<Vec<_>, DaemonError>>()?;
        let tunables = self.tunables_by_service();
        let news = self.attacks.observe(&readings, |id| thresholds(tunables.of(id)));
        self.sample_segments().await?;
        self.sample_stalled();
        news.into_iter().for_each(|news| self.attacks.announce(news));
        Ok(())
    }

    fn attack_reading(&self, id: u32) -> Result<Reading, DaemonError> {
        // Of a service in dry run, what would have become of its segments.
        let [done, would] =
            [self.dataplane.service_counters(id, false)?, self.dataplane.service_counters(id, true)?];
        let sum = |classes: &[Class]| classes.iter().map(|&class| done.of(class) + would.of(class)).sum();
        Ok(Reading {
            at: monotonic_ns(),
            syns: sum(&[Class::CookieSent, Class::SynRefused, Class::SynStateful]),
            handshakes: sum(&[Class::AckValid, Class::Reset]),
            invalid_acks: sum(&[Class::AckInvalid]),
            stalled: self.stalled_clients(id),
        })
    }

    /// Connections of a service whose clients take nothing of what its backends say.
    fn stalled_clients(&self, id: u32) -> u64 {
        let Some(pool) = self.backends_of(id) else { return 0 };
        let held = pool.stats(std::time::Instant::now()).flat_map(|backend| backend.held);
        held.filter(|held| held.hold == Hold::ClientStalled).map(|held| held.count as u64).sum()
    }

    /// The backends of a service, if it has any. All engines share them.
    fn backends_of(&self, id: u32) -> Option<Arc<Pool>> {
        let specs = self.engines().first()?.services.specs();
        match specs.into_iter().find(|spec| spec.id == id)?.purpose {
            Purpose::Relay(Far::Backends(pool)) => Some(pool),
            Purpose::Relay(Far::Responder(_)) | Purpose::Application(_) => None,
        }
    }

    /// Has XDP record segments of the attacks that are on, for a moment.
    async fn sample_segments(&self) -> Result<(), DaemonError> {
        let reasons = self.attacks.reasons();
        if reasons == 0 {
            return Ok(());
        }
        self.monitors.sampling.set(reasons);
        self.record_what_is_wanted()?;
        sleep(SAMPLING).await;
        self.monitors.sampling.set(0);
        self.record_what_is_wanted()?;
        self.pass_packets_on();
        Ok(())
    }

    /// Looks which clients take nothing, if that is an attack. Whoever is in the middle of a download has something on its way,
    /// too, and is none of them.
    fn sample_stalled(&self) {
        for id in self.attacks.stalled(monotonic_ns()) {
            let Some(pool) = self.backends_of(id) else { continue };
            let mut watches = self.attacks.watches.borrow_mut();
            let Some(watched) = watches.get_mut(&id) else { continue };
            let Some(attack) = watched.watch.attack(Kind::SlowRead) else { continue };
            let clients = pool.held_up(Hold::ClientStalled, Sources::KEPT);
            clients.for_each(|client| attack.sources.take(client.ip()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Service;

    fn attacks() -> Attacks {
        Attacks::new(Hook::new(&crate::config::Events::default()))
    }

    fn known(id: u32, port: u16) -> Known {
        let service: Service = format!("10.0.0.1:{port}=off").parse().unwrap();
        Known { id, service }
    }

    fn reading(second: u64, syns: u64) -> Reading {
        Reading { at: second * 1_000_000_000, syns, ..Reading::default() }
    }

    const THRESHOLDS: Thresholds =
        Thresholds { syns: 10, acks: 10, connections: 10, stalls: 10, calm: Duration::from_secs(2) };

    /// Readings of one service, announced.
    fn observe(attacks: &Attacks, known: &Known, readings: &[(u64, u64)]) {
        for &(second, syns) in readings {
            let news = attacks.observe(&[(known.clone(), reading(second, syns))], |_| THRESHOLDS);
            news.into_iter().for_each(|news| attacks.announce(news));
        }
    }

    #[test]
    fn every_class_that_tells_an_attack_has_its_reasons() {
        let of = |kind| Reason::ALL.iter().filter(|&&reason| kind_of(reason) == Some(kind)).count();
        assert!(of(Kind::SynFlood) >= 4 && of(Kind::ConnectionFlood) >= 4);
        assert_eq!((of(Kind::AckFlood), of(Kind::SlowRead)), (1, 0));
        assert_eq!((kind_of(Reason::CookieSent), kind_of(Reason::FlowKnown)), (Some(Kind::SynFlood), None));
    }

    #[test]
    fn every_threshold_and_the_calm_time_are_tunables() {
        let loud = |kind, count| {
            let at = reading(2, 0);
            match kind {
                Kind::SynFlood => Reading { syns: count, ..at },
                Kind::AckFlood => Reading { invalid_acks: count, ..at },
                Kind::ConnectionFlood => Reading { syns: count, handshakes: count, ..at },
                Kind::SlowRead => Reading { stalled: count, ..at },
            }
        };
        for (name, kind) in [
            ("attack-syns", Kind::SynFlood),
            ("attack-acks", Kind::AckFlood),
            ("attack-connections", Kind::ConnectionFlood),
            ("attack-stalls", Kind::SlowRead),
        ] {
            let tells = |value: &str, count| {
                let thresholds = thresholds(&Tunables::default().with(name, value).unwrap().0);
                let (attacks, service) = (attacks(), known(0, 80));
                attacks.observe(&[(service.clone(), reading(1, 0))], |_| thresholds);
                attacks.observe(&[(service, loud(kind, count))], |_| thresholds);
                attacks.ongoing().iter().any(|attack| attack.kind == kind.name())
            };
            assert!(tells("50", 51) && !tells("50", 50) && !tells("0", 1_000_000), "{name}");
        }
        let lasts = |calm_time: &str| {
            let tunables = Tunables::default().with("attack-calm-time", calm_time).unwrap().0;
            let (attacks, service) = (attacks(), known(0, 80));
            let observe = |second, syns| {
                attacks.observe(&[(service.clone(), reading(second, syns))], |_| thresholds(&tunables))
            };
            observe(1, 0);
            assert_eq!(observe(2, 1_000_000).len(), 1);
            (3..100).find(|&second| !observe(second, 1_000_000).is_empty())
        };
        assert_eq!((lasts("5s"), lasts("20s")), (Some(8), Some(23)));
        // Two services, of which one has thresholds for itself.
        let (attacks, services) = (attacks(), [known(0, 80), known(1, 81)]);
        for (second, syns) in [(1, 0), (2, 100)] {
            let readings = services.clone().map(|known| (known, reading(second, syns)));
            attacks
                .observe(&readings, |id| Thresholds { syns: if id == 1 { 1000 } else { 10 }, ..THRESHOLDS });
        }
        let on: Vec<_> = attacks.ongoing().iter().map(|attack| attack.service.port()).collect();
        assert_eq!(on, [80]);
    }

    #[test]
    fn an_attack_keeps_its_number_and_ends_with_its_service() {
        let attacks = attacks();
        let (one, two) = (known(0, 80), known(1, 81));
        observe(&attacks, &one, &[(1, 0), (2, 100)]);
        assert_eq!(attacks.reasons(), attacks.reasons() | 1 << Reason::CookieSent as u32);
        assert_eq!(attacks.ongoing().len(), 1);
        // Another service is all that there is: the first one is gone, and with it what was done to it.
        observe(&attacks, &two, &[(3, 0), (4, 50)]);
        assert_eq!(attacks.ongoing()[0].service, two.service.listen);
        let events = attacks.events().events;
        let told: Vec<_> = events
            .iter()
            .map(|event| {
                (event.number, event.event.as_str(), event.attack.number, event.attack.service.port())
            })
            .collect();
        let expected = [(1, "attack-began", 1, 80), (2, "attack-ended", 1, 80), (3, "attack-began", 2, 81)];
        assert_eq!(told, expected);
        assert_eq!((events[1].attack.peak, events[1].attack.ended_ms.is_some()), (100, true));
    }

    #[test]
    fn events_are_bounded_and_a_follower_that_does_not_read_delays_nobody() {
        let attacks = attacks();
        let service = known(0, 80);
        let mut follower = attacks.follow(Rights::All).unwrap();
        let mut readings = vec![(0, 0)];
        for round in 1..=1000u64 {
            // One attack and its end each.
            readings.extend([
                (4 * round, 1000 * round),
                (4 * round + 1, 1000 * round),
                (4 * round + 3, 1000 * round),
            ]);
        }
        observe(&attacks, &service, &readings);
        let events = attacks.events().events;
        assert_eq!((events.len(), events[KEPT - 1].number), (KEPT, 2000));
        let followed = std::iter::from_fn(|| follower.try_recv().ok()).count();
        assert_eq!(followed, WAITING);
        let mut late = attacks.follow(Rights::All).unwrap();
        assert!(matches!(late.try_recv(), Ok(Reply::Event(event)) if event.number == 2001 - KEPT as u64));
        let _more: Vec<_> = (2..FOLLOWERS - READING).map(|_| attacks.follow(Rights::All).unwrap()).collect();
        assert!(attacks.follow(Rights::All).is_err());
        drop(late);
        assert!(attacks.follow(Rights::All).is_ok());
    }

    #[test]
    fn clients_that_only_read_the_events_leave_room_for_operators() {
        let attacks = attacks();
        let _readers: Vec<_> = (0..READING).map(|_| attacks.follow(Rights::Read).unwrap()).collect();
        assert!(attacks.follow(Rights::Read).is_err());
        let _operators: Vec<_> = (READING..FOLLOWERS).map(|_| attacks.follow(Rights::All).unwrap()).collect();
        assert!(attacks.follow(Rights::All).is_err());
    }
}
