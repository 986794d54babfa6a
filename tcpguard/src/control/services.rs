//! The services of a running guard: put in, changed and taken out while connections live. A change is judged whole first.
//! How they treat SYNs is decided in `modes`.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;

use tcpguard_common::map::SERVICE_IDS;
use tracing::{error, info};

use crate::config::{EditError, Service, ServiceEdit, check_own_tunables, check_services, save_service};
use crate::engine::EngineError;
use crate::service::ServiceSpec;
use crate::stack::{Cursor, FlowInfo};

use super::daemon::DaemonError;
use super::filters::through;
use super::guard::{Engine, Guard, Turn, engine_error, heard};
use super::modes::entries;
use super::protocol::{self as wire, Reply, Session};
use super::reload::half_made;
use super::tunables::InForce;

/// Whether these services would take the connection over through which a client reached the machine. Those in dry run leave it
/// to the host.
pub fn would_guard(session: &Session, services: &[Service]) -> bool {
    through(session, services).is_some_and(|service| !service.dry_run)
}

/// A service, and the number by which XDP, the stacks and the engines know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) id: u32,
    pub(super) service: Service,
}

/// The services of a guard that starts, numbered as they are written.
pub(super) fn first(services: &[Service]) -> Vec<Known> {
    (0..).zip(services).map(|(id, service)| Known { id, service: service.clone() }).collect()
}

/// What becomes of services when a list takes the place of another.
#[derive(Debug, Default)]
struct Plan {
    /// What there will be, numbered.
    all: Vec<Known>,
    added: Vec<SocketAddr>,
    changed: Vec<SocketAddr>,
    removed: Vec<SocketAddr>,
    /// Those that engines must begin, change, and end.
    begin: Vec<Known>,
    change: Vec<Known>,
    end: Vec<u32>,
}

impl Plan {
    fn new(old: &[Known], new: Vec<Service>, mut next_id: u32) -> Self {
        let mut plan = Self::default();
        for service in new {
            let listen = service.listen;
            let Some(held) = old.iter().find(|held| held.service.listen == listen) else {
                // Fewer services than ids: one is free.
                while old.iter().chain(&plan.all).any(|known| known.id == next_id) {
                    next_id = (next_id + 1) % SERVICE_IDS;
                }
                let known = Known { id: next_id, service };
                plan.added.push(listen);
                plan.begin.extend(known.service.destination.is_some().then(|| known.clone()));
                plan.all.push(known);
                continue;
            };
            let known = Known { id: held.id, service };
            if held != &known {
                plan.changed.push(listen);
                let (before, after) = (&held.service, &known.service);
                match (&before.destination, &after.destination) {
                    (None, Some(_)) => plan.begin.push(known.clone()),
                    (Some(_), None) => plan.end.push(known.id),
                    (Some(_), Some(_)) => plan.change.push(known.clone()),
                    (None, None) => {}
                }
            }
            plan.all.push(known);
        }
        for gone in old.iter().filter(|held| plan.all.iter().all(|known| known.id != held.id)) {
            plan.removed.push(gone.service.listen);
            plan.end.extend(gone.service.destination.is_some().then_some(gone.id));
        }
        plan
    }
}

impl Guard {
    /// Puts a service in.
    pub(super) async fn add_service(
        &self,
        turn: &Turn<'_>,
        service: &str,
        keys: BTreeMap<String, String>,
        how: (bool, Option<Session>),
    ) -> Reply {
        let service = match service.parse::<Service>().and_then(|service| service.with_keys(&keys)) {
            Ok(service) => service,
            Err(error) => return Reply::bad_input(error),
        };
        let mut services = self.modes.services();
        if services.iter().any(|held| held.listen == service.listen) {
            let listen = service.listen;
            return Reply::bad_input(format!(
                "there is a service {listen} already; `tcpguard services set {listen} KEY=VALUE` changes it"
            ));
        }
        services.push(service.clone());
        self.change_service(turn, service.listen, ServiceEdit::Put(service), services, how).await
    }

    /// Sets keys of the service at `listen`.
    pub(super) async fn set_service(
        &self,
        turn: &Turn<'_>,
        listen: SocketAddr,
        keys: BTreeMap<String, String>,
        how: (bool, Option<Session>),
    ) -> Reply {
        let mut services = self.modes.services();
        let Some(held) = services.iter_mut().find(|service| service.listen == listen) else {
            return no_service(listen);
        };
        *held = match held.with_keys(&keys) {
            Ok(service) => service,
            Err(error) => return Reply::bad_input(format!("service {listen}: {error}")),
        };
        let edit = ServiceEdit::Keys { keys, whole: held.clone() };
        self.change_service(turn, listen, edit, services, how).await
    }

    /// Takes the service at `listen` out.
    pub(super) async fn remove_service(
        &self,
        turn: &Turn<'_>,
        listen: SocketAddr,
        how: (bool, Option<Session>),
    ) -> Reply {
        let mut services = self.modes.services();
        let before = services.len();
        services.retain(|service| service.listen != listen);
        if services.len() == before {
            return no_service(listen);
        }
        self.change_service(turn, listen, ServiceEdit::Remove, services, how).await
    }

    /// Puts `services` in force, which differ from what is by the one at `listen`; with `save`, changes that one in the file
    /// first, as `edit` says: neither without the other.
    pub(super) async fn change_service(
        &self,
        turn: &Turn<'_>,
        listen: SocketAddr,
        edit: ServiceEdit,
        services: Vec<Service>,
        (save, session): (bool, Option<Session>),
    ) -> Reply {
        let own = check_own_tunables(&services, &self.tunables.borrow());
        if let Err(error) = own.and_then(|()| self.judge_services(&services, session)) {
            return Reply::bad_input(error);
        }
        let saved = match save {
            true => match self.write_service(listen, edit).await {
                Ok(file) => Some(file.display().to_string()),
                Err(refusal) => return refusal,
            },
            false => None,
        };
        match self.replace_services(turn, services).await {
            Ok(changed) => Reply::ServicesChanged(wire::ServicesChanged { saved, ..changed }),
            Err(error) => half_made(&error),
        }
    }

    async fn write_service(&self, listen: SocketAddr, edit: ServiceEdit) -> Result<PathBuf, Reply> {
        self.write_file(move |origin| {
            if origin.protected.contains(&listen) {
                return Err(EditError::OfArguments { path: origin.file.clone(), listen });
            }
            save_service(&origin.file, listen, &edit, |text| (origin.read)(Some(text)).map(drop))
        })
        .await
    }

    /// Refuses services that cannot be, and those that would cut a client's own session off.
    pub(super) fn judge_services(&self, new: &[Service], session: Option<Session>) -> Result<(), String> {
        check_services(new)?;
        let Some(session) = session else { return Ok(()) };
        match (would_guard(&session, &self.modes.services()), would_guard(&session, new)) {
            (false, true) => Err(format!(
                "this would guard {}, through which your own session from {} runs, and cut it off; --force does it \
                 all the same",
                session.local, session.peer
            )),
            // Connections that the engines have go on in dry run.
            (true, false) if through(&session, new).is_none() => Err(format!(
                "this would end the service at {}, through which your own session from {} runs; --force does it all \
                 the same",
                session.local, session.peer
            )),
            (true, _) | (false, false) => Ok(()),
        }
    }

    /// Lets these be the services, everywhere: what goes resets its connections, what comes is guarded at once, and what
    /// stays keeps its connections. They have been judged, and were made out of those in force in this turn.
    pub(super) async fn replace_services(
        &self,
        _turn: &Turn<'_>,
        new: Vec<Service>,
    ) -> Result<wire::ServicesChanged, DaemonError> {
        let old = self.modes.known();
        let plan = Plan::new(&old, new, self.modes.next_id());
        let remaining: Vec<_> = old
            .iter()
            .filter_map(|held| plan.all.iter().find(|known| known.id == held.id))
            .cloned()
            .collect();
        // What an engine that stands still says to it is heard when everybody else has been told.
        let mut silent = Ok(());
        self.tune_services_in_engines(&plan.all).await?;
        for known in &plan.change {
            self.change_in_engines(known).await?;
        }
        if remaining != old {
            self.put_in_force(remaining.clone())?;
        }
        let mut reset = 0;
        for &id in &plan.end {
            reset += self.end_in_engines(id, &mut silent).await?;
        }
        if !plan.removed.is_empty() {
            self.count_flows_of(&remaining).await?;
        }
        let added: Vec<_> =
            plan.all.iter().filter(|known| plan.added.contains(&known.service.listen)).collect();
        let reincarnated = if added.is_empty() { HashMap::new() } else { self.reincarnated().await? };
        for known in &added {
            let before = reincarnated.get(&known.id).copied().unwrap_or(0);
            self.reincarnated_before.borrow_mut().insert(known.id, before);
            let counted = |dry_run| self.dataplane.service_counters(known.id, dry_run);
            let counted = [counted(false)?, counted(true)?];
            self.counted_before.borrow_mut().insert(known.id, counted);
        }
        if !added.is_empty() {
            let tunables = InForce::new(&self.tunables.borrow(), &plan.all);
            self.strict.begin(added.iter().map(|known| known.id), &tunables);
            // The stacks know how the first cookies are made before XDP makes them.
            self.publish().await?;
        }
        for known in &plan.begin {
            self.begin_in_engines(known, &mut silent).await?;
        }
        if !plan.added.is_empty() {
            self.count_flows_of(&plan.all).await?;
        }
        self.make_room(&old, &plan.all);
        self.put_in_force(plan.all)?;
        let (added, changed, removed) = (plan.added, plan.changed, plan.removed);
        for (what, services) in [("added", &added), ("changed", &changed), ("removed", &removed)] {
            for service in services {
                info!("service {service}: {what}");
            }
        }
        silent?;
        Ok(wire::ServicesChanged { added, changed, removed, reset, saved: None, unconfirmed_ms: None })
    }

    /// Tells XDP; when that fails, everything is as it was.
    pub(super) fn put_in_force(&self, services: Vec<Known>) -> Result<(), DaemonError> {
        let before = self.modes.replace(services);
        self.write_services().inspect_err(|_| {
            self.modes.replace(before);
            if let Err(error) = self.write_services() {
                error!(%error, "XDP may guard other services than it should");
            }
        })?;
        Ok(())
    }

    /// Tells the engines which tunables these services have for themselves.
    pub(super) async fn tune_services_in_engines(&self, services: &[Known]) -> Result<(), DaemonError> {
        let own = InForce::new(&self.tunables.borrow(), services).of_services();
        for engine in self.engines() {
            heard(engine, engine.handle.set_service_tunables(own.clone()).await)?;
        }
        Ok(())
    }

    async fn begin_in_engines(&self, known: &Known, silent: &mut Silent) -> Result<(), DaemonError> {
        let Some(spec) = self.spec(known) else { return Ok(()) };
        for engine in self.engines() {
            let (services, spec) = (engine.services.clone(), spec.clone());
            let begun = engine.handle.run(move |net| services.add(net, spec)).await;
            let begun = begun.and_then(|begun| begun.map_err(EngineError::Application));
            put_off(engine, begun, silent)?;
        }
        Ok(())
    }

    async fn change_in_engines(&self, known: &Known) -> Result<(), DaemonError> {
        let Some(mut spec) = self.spec(known) else { return Ok(()) };
        // All engines share what there is of it.
        let mut specs = self.engines().iter().flat_map(|engine| engine.services.specs());
        if let Some(before) = specs.find(|held| held.id == known.id) {
            spec = spec.following(&before);
        }
        for engine in self.engines() {
            engine.services.change(&spec);
        }
        Ok(())
    }

    /// Ends a service and resets its connections; how many.
    async fn end_in_engines(&self, id: u32, silent: &mut Silent) -> Result<u64, DaemonError> {
        let mut reset = 0;
        for engine in self.engines() {
            let is_its = move |flow: &FlowInfo| flow.service == Some(id);
            // While the stack can tell whose they are. XDP lets no more of them in by now.
            let killed = put_off(engine, engine.handle.kill(is_its).await, silent)?;
            let is_late = killed.is_none();
            reset += killed.unwrap_or(0);
            let services = engine.services.clone();
            let ended = engine.handle.run(move |net| {
                // One that turns again does at once what it was not there for.
                let mut next = is_late.then_some(Cursor::START);
                while let Some(start) = next {
                    next = net.kill(start, is_its).1;
                }
                services.remove(net, id);
            });
            put_off(engine, ended.await, silent)?;
        }
        Ok(reset)
    }

    /// Counts the flows that are there for these services.
    async fn count_flows_of(&self, services: &[Known]) -> Result<(), DaemonError> {
        let (census, flows) = (self.census.clone(), self.dataplane.flows());
        let entries = entries(services, Default::default(), &[]);
        let counted = tokio::task::spawn_blocking(move || census.follow(&entries, &flows)).await;
        counted.unwrap_or_else(|panic| Err(std::io::Error::other(panic))).map_err(DaemonError::Runtime)
    }

    fn spec(&self, known: &Known) -> Option<ServiceSpec> {
        let destination = known.service.destination.as_ref()?;
        let application = self.applications.get(&known.service.listen);
        ServiceSpec::new(known.id, &known.service, destination, application)
    }
}

/// The first engine that stood still.
type Silent = Result<(), DaemonError>;

/// What an engine answered, or nothing if it stands still: it does what it was told when it turns again.
fn put_off<T>(
    engine: &Engine,
    told: Result<T, EngineError>,
    silent: &mut Silent,
) -> Result<Option<T>, DaemonError> {
    match told {
        Err(source @ EngineError::Silent) => {
            if silent.is_ok() {
                *silent = Err(engine_error(engine, source));
            }
            Ok(None)
        }
        told => told.map(Some).map_err(|source| engine_error(engine, source)),
    }
}

pub(super) fn no_service(listen: SocketAddr) -> Reply {
    Reply::bad_input(format!("no service {listen}; `tcpguard services` lists them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(texts: &[&str]) -> Vec<Service> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn ids(known: &[Known]) -> Vec<u32> {
        known.iter().map(|known| known.id).collect()
    }

    #[test]
    fn what_stays_keeps_its_id_and_what_comes_gets_one_that_is_free() {
        let old = first(&services(&["10.0.0.1:1=off", "10.0.0.1:2=127.0.0.1:1", "10.0.0.1:3=127.0.0.1:1"]));
        let new = services(&["10.0.0.1:3=127.0.0.1:2", "10.0.0.1:4=off", "10.0.0.1:1=127.0.0.1:1"]);
        let plan = Plan::new(&old, new, 1);
        // 1 is still the one's that goes.
        assert_eq!(ids(&plan.all), [2, 3, 0]);
        assert_eq!((ids(&plan.begin), ids(&plan.change), plan.end), (vec![0], vec![2], vec![1]));
        let listed = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(plan.added, listed(&["10.0.0.1:4"]));
        assert_eq!(plan.changed, listed(&["10.0.0.1:3", "10.0.0.1:1"]));
        assert_eq!(plan.removed, listed(&["10.0.0.1:2"]));
        let ended = Plan::new(&plan.all, services(&["10.0.0.1:3=off", "10.0.0.1:4=off"]), SERVICE_IDS - 1);
        assert_eq!((ended.end, ids(&ended.begin)), (vec![2, 0], vec![]));
        let wrapped = Plan::new(&old, services(&["10.0.0.2:1=off", "10.0.0.2:2=off"]), SERVICE_IDS - 1);
        assert_eq!(ids(&wrapped.all), [SERVICE_IDS - 1, 3]);
    }

    #[test]
    fn the_same_list_is_no_change() {
        let old = first(&services(&["10.0.0.1:1=off", "10.0.0.1:2=127.0.0.1:1"]));
        let plan = Plan::new(&old, old.iter().map(|known| known.service.clone()).collect(), 0);
        assert_eq!(plan.all, old);
        assert!(plan.added.is_empty() && plan.changed.is_empty() && plan.removed.is_empty());
    }
}
