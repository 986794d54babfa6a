//! What a protected port does with its connections: relays them to a backend, or answers them. It sees streams, never
//! packets.
#![forbid(unsafe_code)]

mod application;
mod backend;
mod counters;
mod holds;
mod http;
mod limits;
mod pool;
mod proxy;
mod quota;
mod relay;
mod responder;
mod scratch;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::spawn_local;

pub use application::Application;
pub use counters::{ServiceCounters, ServiceStats};
pub use holds::{Held, Hold};
pub use pool::{BackendStats, Pool};
pub use quota::Quota;

use crate::config::{self, Destination, Responder};
use crate::engine::{Listen, Net};
use crate::stack::Durations;
use limits::Limits;
use proxy::Proxy;
use scratch::Scratch;

/// One protected address and port, and what becomes of its connections. Clones share its backends and limits.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// Index in the daemon's configuration, as XDP's service map has it.
    pub id: u32,
    /// Where clients connect; the unspecified address stands for any of its family.
    pub listen: SocketAddr,
    /// Who has its connections.
    pub purpose: Purpose,
    limits: Limits,
}

/// Who has a service's connections.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// They are relayed.
    Relay(Far),
    /// The program that has this library in it; the service's limits do not bind it.
    Application(Application),
}

/// The far end of relayed connections.
#[derive(Clone, Debug)]
pub enum Far {
    /// One of these backends.
    Backends(Arc<Pool>),
    /// This process.
    Responder(Responder),
}

impl ServiceSpec {
    /// A service as configured; `None` when its connections go to an application that is not there.
    pub fn new(
        id: u32,
        service: &config::Service,
        destination: &Destination,
        application: Option<&Application>,
    ) -> Option<Self> {
        let purpose = match destination {
            Destination::Backends(backends) => {
                Purpose::Relay(Far::Backends(Arc::new(Pool::new(backends.clone()))))
            }
            Destination::Responder(responder) => Purpose::Relay(Far::Responder(*responder)),
            Destination::Application => Purpose::Application(application?.clone()),
        };
        Some(Self { id, listen: service.listen, purpose, limits: Limits::new(service.limits) })
    }

    /// This, for a service that has been `before`: its connections go on counting against its limit, and backends that stay
    /// keep theirs and what is known of them.
    pub fn following(self, before: &Self) -> Self {
        let purpose = match (self.purpose, &before.purpose) {
            (Purpose::Relay(Far::Backends(new)), Purpose::Relay(Far::Backends(old))) => {
                Purpose::Relay(Far::Backends(Arc::new(new.following(old))))
            }
            (purpose, _) => purpose,
        };
        Self { purpose, limits: self.limits.following(&before.limits), ..self }
    }

    /// How many connections it has, and how many it may have; `None` if it has no limit of its own.
    pub fn connections(&self) -> Option<(usize, usize)> {
        self.limits.connections()
    }

    /// What an engine has to admit for it.
    fn listen(&self) -> Listen {
        Listen { addr: Some(self.listen.ip()), port: self.listen.port(), service: self.id }
    }
}

/// The services of one engine, which may change while it runs. Clones are the same services.
#[derive(Clone, Debug)]
pub struct Services {
    offers: Arc<Mutex<Vec<Offer>>>,
    descriptors: Quota,
}

/// One service on one engine. Dropping it ends the service there.
#[derive(Debug)]
struct Offer {
    spec: watch::Sender<ServiceSpec>,
    counters: Arc<ServiceCounters>,
}

impl Services {
    /// Services that count for themselves. Make one set for each engine.
    pub fn new(specs: impl IntoIterator<Item = ServiceSpec>) -> Self {
        let offers = specs.into_iter().map(Offer::new).collect();
        Self { offers: Arc::new(Mutex::new(offers)), descriptors: Quota::default() }
    }

    /// The same services, which take no more descriptors than these.
    pub fn sharing(self, descriptors: Quota) -> Self {
        Self { descriptors, ..self }
    }

    /// The descriptors that they share with others.
    pub fn descriptors(&self) -> &Quota {
        &self.descriptors
    }

    /// What the engine has to admit for them.
    pub fn listen(&self) -> Vec<Listen> {
        self.offers().iter().map(|offer| offer.spec.borrow().listen()).collect()
    }

    /// Starts them on the engine whose thread this is.
    ///
    /// # Errors
    /// When one is there already.
    pub fn start(&self, net: &Net) -> io::Result<()> {
        let scratch = Scratch::default();
        self.offers().iter().try_for_each(|offer| offer.start(net, &self.descriptors, &scratch))
    }

    /// Takes one more service in and starts it on the engine whose thread this is, which admits its connections from
    /// now on.
    ///
    /// # Errors
    /// When it is there already; nothing was changed then.
    pub fn add(&self, net: &Net, spec: ServiceSpec) -> io::Result<()> {
        let (offer, listen) = (Offer::new(spec.clone()), spec.listen());
        offer.start(net, &self.descriptors, &Scratch::default())?;
        net.admit(listen);
        self.offers().push(offer);
        Ok(())
    }

    /// Lets a service be this from now on. Connections that are open keep what they have; new ones get what it says. What
    /// goes to an application stays there.
    pub fn change(&self, spec: &ServiceSpec) {
        for offer in self.offers().iter().filter(|offer| offer.spec.borrow().id == spec.id) {
            offer.spec.send_replace(spec.clone());
        }
    }

    /// Ends a service on the engine whose thread this is: nothing is admitted for it any more, and what nobody has
    /// accepted yet is reset. Connections that are open stay open.
    pub fn remove(&self, net: &Net, id: u32) {
        self.offers().retain(|offer| {
            let spec = offer.spec.borrow();
            if spec.id == id {
                net.refuse(spec.listen());
            }
            spec.id != id
        });
    }

    /// What each is.
    pub fn specs(&self) -> Vec<ServiceSpec> {
        self.offers().iter().map(|offer| offer.spec.borrow().clone()).collect()
    }

    /// What each has counted, by its id.
    pub fn stats(&self) -> Vec<(u32, ServiceStats)> {
        self.offers().iter().map(|offer| (offer.spec.borrow().id, offer.counters.read())).collect()
    }

    /// How long clients of each waited for answers, by where it listens.
    pub fn answers(&self) -> Vec<(SocketAddr, Durations)> {
        let of = |offer: &Offer| (offer.spec.borrow().listen, offer.counters.answers.read());
        self.offers().iter().map(of).collect()
    }

    fn offers(&self) -> MutexGuard<'_, Vec<Offer>> {
        // A list is whole at any time.
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Offer {
    fn new(spec: ServiceSpec) -> Self {
        Self { spec: watch::Sender::new(spec), counters: Arc::default() }
    }

    fn start(&self, net: &Net, descriptors: &Quota, scratch: &Scratch) -> io::Result<()> {
        let mut changes = self.spec.subscribe();
        let spec = self.spec.borrow();
        let listener = net.listen(spec.id)?;
        match &spec.purpose {
            Purpose::Application(application) => {
                let served = application.serve(listener);
                spawn_local(async move {
                    tokio::select! {
                        () = served => {}
                        () = removed(&mut changes) => {}
                    }
                })
            }
            Purpose::Relay(far) => {
                let (counters, scratch) = (Arc::clone(&self.counters), scratch.clone());
                let proxy = Proxy::new(spec.clone(), far.clone(), counters, descriptors.clone(), scratch);
                spawn_local(proxy.serve(listener, changes))
            }
        };
        Ok(())
    }
}

/// Waits until a service is gone.
async fn removed(changes: &mut watch::Receiver<ServiceSpec>) {
    while changes.changed().await.is_ok() {}
}
