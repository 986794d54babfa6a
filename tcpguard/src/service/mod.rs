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
use std::sync::Arc;

use tokio::task::spawn_local;

pub use application::Application;
pub use counters::{ServiceCounters, ServiceStats};
pub use holds::{Held, Hold};
pub use pool::{BackendStats, Pool};
pub use quota::Quota;

use crate::config::{self, Destination, Responder};
use crate::engine::{Listen, Net};
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
}

/// The services of one engine.
#[derive(Clone, Debug)]
pub struct Services {
    services: Arc<[(ServiceSpec, Arc<ServiceCounters>)]>,
    descriptors: Quota,
}

impl Services {
    /// Services that count for themselves. Make one set for each engine.
    pub fn new(specs: impl IntoIterator<Item = ServiceSpec>) -> Self {
        let services = specs.into_iter().map(|spec| (spec, Arc::default())).collect();
        Self { services, descriptors: Quota::default() }
    }

    /// The same services, which take no more descriptors than these.
    pub fn sharing(self, descriptors: Quota) -> Self {
        Self { descriptors, ..self }
    }

    /// What the engine has to admit for them.
    pub fn listen(&self) -> Vec<Listen> {
        let listen = |spec: &ServiceSpec| Listen {
            addr: Some(spec.listen.ip()),
            port: spec.listen.port(),
            service: spec.id,
        };
        self.services.iter().map(|(spec, _)| listen(spec)).collect()
    }

    /// Starts them on the engine whose thread this is.
    ///
    /// # Errors
    /// When one is there already.
    pub fn start(&self, net: &Net) -> io::Result<()> {
        let scratch = Scratch::default();
        for (spec, counters) in self.services.iter() {
            let listener = net.listen(spec.id)?;
            match &spec.purpose {
                Purpose::Application(application) => spawn_local(application.serve(listener)),
                Purpose::Relay(far) => {
                    let (counters, scratch) = (Arc::clone(counters), scratch.clone());
                    let (far, descriptors) = (far.clone(), self.descriptors.clone());
                    let proxy = Proxy::new(spec.clone(), far, counters, descriptors, scratch);
                    spawn_local(proxy.serve(listener))
                }
            };
        }
        Ok(())
    }

    /// What each is.
    pub fn specs(&self) -> impl Iterator<Item = &ServiceSpec> {
        self.services.iter().map(|(spec, _)| spec)
    }

    /// What each has counted.
    pub fn stats(&self) -> impl Iterator<Item = (&ServiceSpec, ServiceStats)> {
        self.services.iter().map(|(spec, counters)| (spec, counters.read()))
    }
}
