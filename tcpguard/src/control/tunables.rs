//! Tunables in a running guard: those that hold for all services and those that some have for themselves, listed and set. What
//! they do is done elsewhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tracing::info;

use crate::config::{Overrides, Service, ServiceEdit, TUNABLES, Tunable, Tunables, check_own_tunables};
use crate::engine::ServiceTunables;

use super::guard::{Guard, Turn};
use super::protocol::{self as wire, Reply};
use super::services::{Known, no_service};

/// The tunables in force.
pub(super) struct InForce {
    pub(super) common: Arc<Tunables>,
    /// By the ids of the services that have some for themselves.
    pub(super) own: BTreeMap<u32, Arc<Tunables>>,
}

/// What holds for a service.
pub(super) trait ByService {
    /// The tunables of the service with this id.
    fn of(&self, id: u32) -> &Tunables;
}

impl ByService for InForce {
    fn of(&self, id: u32) -> &Tunables {
        self.own.get(&id).unwrap_or(&self.common)
    }
}

impl ByService for Tunables {
    fn of(&self, _: u32) -> &Tunables {
        self
    }
}

impl InForce {
    /// What holds for these services. They have been judged: where one's own values contradict the common ones, which only
    /// lasts while both change, the common ones count.
    pub(super) fn new(common: &Arc<Tunables>, services: &[Known]) -> Self {
        let with_own = services.iter().filter(|known| !known.service.tunables.is_empty());
        let own = with_own.filter_map(|Known { id, service }| {
            let tunables = service.tunables.over(common).ok()?;
            Some((*id, Arc::new(tunables)))
        });
        Self { common: Arc::clone(common), own: own.collect() }
    }

    /// What the engines are told.
    pub(super) fn of_services(&self) -> ServiceTunables {
        self.own.iter().map(|(id, tunables)| (*id, Arc::clone(tunables))).collect()
    }
}

impl Guard {
    /// What holds for which service.
    pub(super) fn tunables_by_service(&self) -> InForce {
        InForce::new(&self.tunables.borrow(), &self.modes.known())
    }

    /// Lists tunables, all of them or the one called `name`; of a service, if one is given.
    pub(super) fn list_tunables(&self, service: Option<SocketAddr>, name: Option<&str>, save: bool) -> Reply {
        match service {
            _ if save => Reply::bad_input("nothing to save without a value"),
            None => self.tunables(name),
            Some(service) => self.tunables_of(service, name),
        }
    }

    /// Every tunable, or the one called `name`.
    fn tunables(&self, name: Option<&str>) -> Reply {
        let rows = match name.map(Tunable::find).transpose() {
            Ok(Some(one)) => std::slice::from_ref(one),
            Ok(None) => TUNABLES,
            Err(error) => return Reply::bad_input(error.to_string()),
        };
        let (tunables, services) = (self.tunables.borrow(), self.modes.services());
        let row = |tunable: &Tunable| wire::Tunable {
            value: tunable.get(&tunables).number,
            ..described(tunable, &services)
        };
        Reply::Tunables(wire::Tunables { tunables: rows.iter().map(row).collect() })
    }

    /// Those that the service at `listen` may have for itself, as they hold for it.
    fn tunables_of(&self, listen: SocketAddr, name: Option<&str>) -> Reply {
        let services = self.modes.services();
        let Some(service) = services.into_iter().find(|service| service.listen == listen) else {
            return no_service(listen);
        };
        let rows = match name.map(Tunable::of_a_service).transpose() {
            Ok(Some(one)) => std::slice::from_ref(one),
            Ok(None) => TUNABLES,
            Err(error) => return Reply::bad_input(error.to_string()),
        };
        let tunables = match service.tunables.over(&self.tunables.borrow()) {
            Ok(tunables) => tunables,
            Err(error) => return Reply::failed(error.to_string()),
        };
        let row = |tunable: &Tunable| wire::Tunable {
            value: tunable.get(&tunables).number,
            ..described(tunable, std::slice::from_ref(&service))
        };
        let tunables = rows.iter().filter(|tunable| tunable.per_service).map(row).collect();
        Reply::Tunables(wire::Tunables { tunables })
    }

    /// Gives the service at `listen` a value of its own, or takes it away; with `save`, in the file, too.
    pub(super) async fn tune_service(
        &self,
        turn: &Turn<'_>,
        listen: SocketAddr,
        name: String,
        value: String,
        save: bool,
    ) -> Reply {
        let mut services = self.modes.services();
        let Some(held) = services.iter_mut().find(|service| service.listen == listen) else {
            return no_service(listen);
        };
        let common = Arc::clone(&self.tunables.borrow());
        let before = held.tunables.clone();
        let tuned =
            held.tunables.set(&name, &value).and_then(|()| tuned(&name, [&before, &held.tunables], &common));
        let tuned = match tuned {
            Ok(tuned) => tuned,
            Err(error) => return Reply::bad_input(error.to_string()),
        };
        let said = format!("service {listen}: {name}: {value}");
        let edit = ServiceEdit::Tunable { name, value, whole: held.clone() };
        match self.change_service(turn, listen, edit, services, (save, None)).await {
            Reply::ServicesChanged(wire::ServicesChanged { saved, .. }) => {
                info!("{said}");
                Reply::ServiceTuned(wire::ServiceTuned {
                    service: listen,
                    tuned: wire::Tuned { saved, ..tuned },
                })
            }
            refused => refused,
        }
    }

    /// Refuses tunables that values of services' own contradict.
    pub(super) fn judge_tunables(&self, common: &Tunables) -> Result<(), String> {
        check_own_tunables(&self.modes.services(), common)
    }
}

/// What a change of one value is for its service.
fn tuned(
    name: &str,
    [before, after]: [&Overrides; 2],
    common: &Tunables,
) -> Result<wire::Tuned, crate::config::TunableError> {
    let tunable = Tunable::of_a_service(name)?;
    let value = |own: &Overrides| own.get(tunable).unwrap_or(tunable.get(common).number);
    after.over(common)?;
    let unit = tunable.unit.name().to_owned();
    Ok(wire::Tuned {
        name: name.to_owned(),
        unit,
        old: value(before),
        new: value(after),
        saved: None,
        unconfirmed_ms: None,
    })
}

/// A tunable, and which of these services have it for themselves.
fn described(tunable: &Tunable, services: &[Service]) -> wire::Tunable {
    let own = services.iter().filter_map(|service| Some((service.listen, service.tunables.get(tunable)?)));
    wire::Tunable {
        name: tunable.name.to_owned(),
        unit: tunable.unit.name().to_owned(),
        choices: tunable.unit.choices().iter().map(|&name| name.to_owned()).collect(),
        value: tunable.default,
        default: tunable.default,
        min: tunable.min,
        max: tunable.max,
        help: tunable.help.trim().to_owned(),
        cost: tunable.cost.to_owned(),
        services: tunable.per_service.then(|| own.collect()),
    }
}
