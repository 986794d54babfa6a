//! Clients' questions, answered from the running guard: types of other rooms put into the protocol's.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use tcpguard_common::cookie::{Inspection, age, inspect};
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::reason::{Class, Reason};
use tokio::sync::mpsc;

use crate::config::{Config, Destination, Service, Tunables};
use crate::dataplane::{ServiceCounters, coarse_clock_ns, monotonic_ns};
use crate::engine::{EngineError, EngineStats, Rows};
use crate::service::{BackendStats, Far, Held, Purpose, ServiceSpec};
use crate::stack::State;

use super::confirm;
use super::daemon::DaemonError;
use super::filters;
use super::guard::{Engine, Guard, Turn, engine_error};
use super::links::mac;
use super::protocol::{self as wire, Groups, Reply, Request};
use super::reload::half_made;
use super::server::{Handler, Rights};
use super::services::Known;
use super::strict;

impl Handler for Guard {
    async fn handle(&self, request: Request) -> Reply {
        let answer = match request {
            Request::Status {} => Ok(Reply::Status(self.status().await)),
            Request::Stats {} => self.stats().await.map(Reply::Stats),
            Request::Flows { which, sort, limit } => return self.list_flows(&which, sort, limit).await,
            Request::FlowsKill { which, all, session } => return self.kill_flows(&which, all, session).await,
            Request::Tune { service, name, value: None, save } => {
                return self.list_tunables(service, name.as_deref(), save);
            }
            change @ (Request::ServicesAdd { .. }
            | Request::ServicesSet { .. }
            | Request::ServicesDel { .. }
            | Request::Mode { .. }
            | Request::DryRun { .. }
            | Request::Tune { .. }
            | Request::TuneAll { .. }
            | Request::Reload { .. }
            | Request::FiltersAdd { .. }
            | Request::FiltersDel { .. }
            | Request::FiltersFlush { .. }
            | Request::FiltersLoad { last: true, .. }) => return self.change(change, None).await,
            Request::OnProbation { seconds, change } => {
                return match confirm::time(seconds) {
                    Ok(time) => self.change(*change, Some(time)).await,
                    Err(why) => Reply::bad_input(why),
                };
            }
            Request::Confirm {} => return self.confirm().await,
            Request::KeysRotate {} => return self.rotate_keys().await,
            Request::Explain { frame, interface, queue } => {
                return self.explain(&frame, interface.as_deref(), queue).await;
            }
            Request::Config {} => return self.configuration().await,
            Request::CookieDecode { peer, local, client_isn, cookie, stamp } => {
                let Some(flow) = AnyFlowKey::new(peer, local) else {
                    return Reply::bad_input(format!("{peer} and {local} are of two families"));
                };
                return Reply::Cookie(self.cookie(&flow, client_isn, cookie, stamp));
            }
            // See `follow`.
            Request::Monitor { .. } | Request::EventsFollow {} => {
                return Reply::bad_input("this takes a connection of its own");
            }
            Request::Events {} => Ok(Reply::Events(self.attacks.events())),
            Request::Filters { limit } => {
                let list = self.filters.with(move |filters| filters.list(limit as usize)).await;
                return list.map_or_else(Reply::from, Reply::Filters);
            }
            Request::FiltersLoad { load, filters, last, replace, session } => {
                return self.load_filters((load, filters, last), replace, session).await;
            }
        };
        answer.unwrap_or_else(|error| Reply::failed(error.to_string()))
    }

    fn follow(
        &self,
        request: &Request,
        rights: Rights,
    ) -> Option<Result<mpsc::Receiver<Reply>, wire::Refusal>> {
        match request {
            Request::Monitor { reasons, services } => Some(self.watch(reasons, services)),
            Request::EventsFollow {} => Some(self.attacks.follow(rights)),
            _ => None,
        }
    }
}

impl Guard {
    async fn status(&self) -> wire::Status {
        let limits = self.limits().await;
        let links = self.links.borrow();
        let interfaces = self.attached.iter().zip(&self.config.interfaces).zip(links.iter());
        let settings = self.settings();
        wire::Status {
            daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: self.uptime_ms(),
            phase: if self.draining.get() { "draining" } else { "armed" }.to_owned(),
            generation: settings.generation,
            epoch: settings.epoch,
            keys: self.keys_state(),
            interfaces: interfaces
                .map(|((attached, interface), link)| wire::Interface {
                    name: attached.name.clone(),
                    ifindex: attached.ifindex,
                    mode: interface.mode.to_string(),
                    queues: attached.queues,
                    af_xdp: if self.is_zero_copy(&attached.name) { "zero-copy" } else { "copy" }.to_owned(),
                    link: link.state.to_string(),
                    mac: mac(link),
                    mtu: link.mtu,
                })
                .collect(),
            services: self.services(),
            attacks: self.attacks.ongoing(),
            engines: self.engine_states(),
            limits,
            unconfirmed_ms: self.unconfirmed().map(millis),
        }
    }

    pub(super) fn services(&self) -> Vec<wire::Service> {
        // All engines share the backends.
        let specs = self.engines().first().map(|engine| engine.services.specs()).unwrap_or_default();
        let services = self.modes.known();
        services.iter().map(|known| self.service(known, &specs)).collect()
    }

    fn service(&self, Known { id, service }: &Known, specs: &[ServiceSpec]) -> wire::Service {
        let spec = specs.iter().find(|spec| spec.id == *id);
        let backends: Vec<_> = match spec.map(|spec| &spec.purpose) {
            Some(Purpose::Relay(Far::Backends(pool))) => {
                pool.stats(std::time::Instant::now()).map(backend).collect()
            }
            Some(Purpose::Relay(Far::Responder(_)) | Purpose::Application(_)) | None => Vec::new(),
        };
        wire::Service {
            listen: service.listen,
            mode: service.mode.to_string(),
            state: self.modes.state(service).map(str::to_owned),
            dry_run: service.dry_run,
            strict: self.strict.state(*id, self.keys.borrow().clock().epoch).to_owned(),
            backend: match &service.destination {
                Some(Destination::Backends(backends)) => backends.addrs.first().map(ToString::to_string),
                Some(Destination::Responder(_) | Destination::Application) | None => None,
            },
            respond: match &service.destination {
                Some(Destination::Responder(responder)) => Some(responder.to_string()),
                Some(Destination::Backends(_) | Destination::Application) | None => None,
            },
            backends,
        }
    }

    fn is_zero_copy(&self, interface: &str) -> bool {
        self.engines().iter().filter(|engine| engine.interface == interface).all(|engine| engine.zero_copy)
    }

    async fn stats(&self) -> Result<wire::Stats, DaemonError> {
        let (mut engines, mut left_out) = (Vec::new(), Vec::new());
        let mut all = Vec::new();
        for engine in self.engines() {
            let answer =
                async { Ok::<_, EngineError>((engine.handle.stats().await?, engine.handle.states().await?)) };
            let Some((counted, states)) = self.unless_still(engine, answer).await else {
                left_out.push(engine.place());
                continue;
            };
            let states = states.into_iter().map(|(state, count)| (state.name().to_owned(), count)).collect();
            engines.push(wire::Engine {
                interface: engine.interface.clone(),
                queue: engine.queue,
                states,
                counters: groups(engine, &counted),
            });
            all.push(counted);
        }
        let mut states = no_flows();
        let mut totals = Groups::new();
        for engine in &engines {
            add(&mut states, &engine.states);
            for (group, counters) in &engine.counters {
                add(totals.entry(group.clone()).or_default(), counters);
            }
        }
        let counted = self.dataplane.counters()?;
        let count = |&reason: &Reason| wire::ReasonCount {
            name: reason.name().to_owned(),
            outcome: reason.outcome().name().to_owned(),
            help: reason.help().trim().to_owned(),
            total: counted.total(reason),
            per_cpu: counted.per_cpu(reason).to_vec(),
            dry_run: counted.dry_run(reason),
        };
        let reasons = Reason::ALL.iter().map(count).collect();
        let reincarnated = sum_reincarnated(&all);
        let mut dry_run = Vec::new();
        let mut in_earnest = Vec::new();
        for Known { id, service } in &self.modes.known() {
            let [done, would] = self.counted_of(*id)?;
            let reincarnated = self.reincarnated_of(*id, &reincarnated);
            in_earnest.push(self.service_count(service, &done, reincarnated));
            if service.dry_run || would != ServiceCounters::default() {
                dry_run.push(self.service_count(service, &would, 0));
            }
        }
        Ok(wire::Stats {
            time_ms: monotonic_ns() / 1_000_000,
            uptime_ms: self.uptime_ms(),
            reasons,
            services: in_earnest,
            dry_run,
            states,
            totals,
            engines,
            left_out,
        })
    }

    /// What was counted of a service since the start: of what was done, and of what only would have been.
    pub(super) fn counted_of(&self, id: u32) -> Result<[ServiceCounters; 2], DaemonError> {
        let [done, would] = self.counted_before.borrow().get(&id).copied().unwrap_or_default();
        Ok([
            self.dataplane.service_counters(id, false)?.since(&done),
            self.dataplane.service_counters(id, true)?.since(&would),
        ])
    }

    /// New incarnations of flows, by service, since the engines started; without those of an engine that stands still.
    pub(super) async fn reincarnated(&self) -> Result<HashMap<u32, u64>, DaemonError> {
        let mut counted = Vec::new();
        for engine in self.engines() {
            match engine.handle.stats().await {
                Ok(stats) => counted.push(stats),
                Err(EngineError::Silent) => {}
                Err(source) => return Err(engine_error(engine, source)),
            }
        }
        Ok(sum_reincarnated(&counted))
    }

    /// Of these, those of a service since it is there.
    pub(super) fn reincarnated_of(&self, id: u32, reincarnated: &HashMap<u32, u64>) -> u64 {
        let before = self.reincarnated_before.borrow().get(&id).copied().unwrap_or(0);
        reincarnated.get(&id).map_or(0, |now| now.saturating_sub(before))
    }

    /// XDP hands on what may open a new incarnation of a flow, and leaves it to the stack to judge it.
    fn service_count(
        &self,
        service: &Service,
        counted: &ServiceCounters,
        reincarnated: u64,
    ) -> wire::ServiceCount {
        let sum = |classes: &[Class]| classes.iter().map(|&class| counted.of(class)).sum();
        wire::ServiceCount {
            listen: service.listen,
            mode: service.mode.to_string(),
            state: self.modes.state(service).map(str::to_owned),
            syns: sum(&[Class::CookieSent, Class::SynRefused, Class::SynStateful]),
            cookies_sent: sum(&[Class::CookieSent]),
            stateful: sum(&[Class::SynStateful]),
            acks_valid: sum(&[Class::AckValid]) + reincarnated,
            acks_invalid: sum(&[Class::AckInvalid]),
            redirected: sum(&[Class::SynStateful, Class::AckValid, Class::Redirected]),
            reset: sum(&[Class::Reset]),
            dropped: sum(&[Class::SynRefused, Class::AckInvalid, Class::Dropped]),
            passed: sum(&[Class::Passed]),
        }
    }

    pub(super) async fn tune(&self, turn: &Turn<'_>, name: &str, value: &str) -> Reply {
        let changed = self.tunables.borrow().with(name, value);
        let (tunables, old, new) = match changed {
            Ok(changed) => changed,
            Err(error) => return Reply::bad_input(error.to_string()),
        };
        if let Err(error) = self.judge_tunables(&tunables) {
            return Reply::bad_input(error);
        }
        if let Err(error) = self.set_tunables(turn, tunables).await {
            return half_made(&error);
        }
        tracing::info!("{name}: {old} -> {new}");
        Reply::Tuned(wire::Tuned {
            name: name.to_owned(),
            unit: new.unit.name().to_owned(),
            old: old.number,
            new: new.number,
            saved: None,
            unconfirmed_ms: None,
        })
    }

    async fn configuration(&self) -> Reply {
        let filters = match self.filters.with(|filters| filters.configured()).await {
            Ok(filters) => filters,
            Err(error) => return error.into(),
        };
        let tunables = Tunables::clone(&self.tunables.borrow());
        let services = self.modes.services();
        let config = Config { services, tunables, filters, ..self.config.clone() };
        // A hundred thousand filters take a while to write, and the engines' keys wait for this thread.
        match tokio::task::spawn_blocking(move || config.to_toml()).await {
            Ok(Ok(toml)) => Reply::Config(wire::Config { toml }),
            Ok(Err(error)) => Reply::failed(error.to_string()),
            Err(panic) => Reply::failed(panic.to_string()),
        }
    }

    fn cookie(&self, flow: &AnyFlowKey, client_isn: u32, cookie: u32, stamp: Option<u32>) -> wire::Cookie {
        let (slots, clock) = (self.keys.borrow().slots(), self.keys.borrow().clock());
        let id = strict::service_at(&self.modes.known(), flow.local_addr());
        let strictness = id.and_then(|id| self.strict.in_force().get(id as usize).copied());
        let strictness = strictness.unwrap_or_default();
        let Inspection { validity, said, epoch } = match flow {
            AnyFlowKey::V4(key) => inspect(&slots, &clock, strictness, key, client_isn, cookie, stamp),
            AnyFlowKey::V6(key) => inspect(&slots, &clock, strictness, key, client_isn, cookie, stamp),
        };
        let sent = said.sent.filter(|_| epoch.is_some());
        wire::Cookie {
            validity: validity.name().to_owned(),
            help: validity.help().to_owned(),
            layout: match (said.timestamps, said.strict) {
                (true, _) => "timestamps",
                (false, true) => "strict",
                (false, false) => "no-timestamps",
            }
            .to_owned(),
            epoch,
            current_epoch: clock.epoch,
            age_ms: sent.map(|sent| age(sent, coarse_clock_ns()) / 1_000_000),
            mss: said.mss,
            window_scale: said.window_scale,
            sack_permitted: said.sack_permitted,
            ecn: said.ecn,
        }
    }

    pub(super) fn caller(&self, session: Option<wire::Session>) -> Option<IpAddr> {
        filters::caller(&session?, &self.modes.services())
    }

    fn uptime_ms(&self) -> u64 {
        monotonic_ns().saturating_sub(self.armed_at) / 1_000_000
    }
}

/// Every state, with no flow in it.
pub(super) fn no_flows() -> BTreeMap<String, u64> {
    State::ALL.iter().map(|state| (state.name().to_owned(), 0)).collect()
}

/// New incarnations of flows over all engines, by service.
pub(super) fn sum_reincarnated<'a>(engines: impl IntoIterator<Item = &'a EngineStats>) -> HashMap<u32, u64> {
    let mut sums = HashMap::new();
    for &(service, count) in engines.into_iter().flat_map(|engine| &engine.reincarnated) {
        *sums.entry(service).or_default() += count;
    }
    sums
}

/// Adds what can be added; of an engine's time between two looks at its ring, the longest counts.
fn add(sums: &mut BTreeMap<String, u64>, counters: &BTreeMap<String, u64>) {
    for (name, &count) in counters {
        let sum = sums.entry(name.clone()).or_default();
        *sum = if name.starts_with("gap-") { count.max(*sum) } else { *sum + count };
    }
}

fn backend(stats: BackendStats) -> wire::Backend {
    let BackendStats { addr, open, connected, failed, rests_for, held } = stats;
    let held = held.into_iter().map(|Held { hold, count, oldest }| wire::HeldUp {
        state: hold.name().to_owned(),
        connections: count as u64,
        oldest_ms: millis(oldest),
    });
    wire::Backend {
        address: addr.to_string(),
        connections: open as u64,
        connected,
        failed,
        rests_ms: rests_for.map(millis),
        held: held.collect(),
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An engine's counters by group, and its services', by name.
fn groups(engine: &Engine, stats: &EngineStats) -> Groups {
    let named = |rows: Rows| rows.into_iter().map(|(name, count, _)| (name.to_owned(), count)).collect();
    let groups = stats.groups().into_iter().map(|(group, rows)| (group.to_owned(), named(rows)));
    let mut services = BTreeMap::new();
    for (_, counted) in engine.services.stats() {
        for (name, count, _) in counted.rows() {
            *services.entry(name.to_owned()).or_default() += count;
        }
    }
    groups.chain([("service".to_owned(), services)]).collect()
}
