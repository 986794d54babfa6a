//! What a protected port does with its connections: relays them to a backend, or answers them. It sees streams, never
//! packets.
#![forbid(unsafe_code)]

mod backend;
mod counters;
mod descriptors;
mod http;
mod proxy;
mod relay;
mod responder;
mod scratch;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::spawn_local;

pub use counters::{ServiceCounters, ServiceStats};
pub use descriptors::Descriptors;

use crate::config::Destination;
use crate::engine::{Listen, Net};
use proxy::Proxy;
use scratch::Scratch;

/// One protected address and port, and what becomes of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Index in the daemon's configuration, as XDP's service map has it.
    pub id: u32,
    /// Where clients connect; the unspecified address stands for any of its family.
    pub listen: SocketAddr,
    /// Where its connections go.
    pub destination: Destination,
}

/// The services of one engine.
#[derive(Clone, Debug)]
pub struct Services {
    services: Arc<[(ServiceSpec, Arc<ServiceCounters>)]>,
    descriptors: Descriptors,
}

impl Services {
    /// Services that count for themselves. Make one set for each engine.
    pub fn new(specs: impl IntoIterator<Item = ServiceSpec>) -> Self {
        let services = specs.into_iter().map(|spec| (spec, Arc::default())).collect();
        Self { services, descriptors: Descriptors::default() }
    }

    /// The same services, which take no more descriptors than these.
    pub fn sharing(self, descriptors: Descriptors) -> Self {
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
            let (counters, scratch) = (Arc::clone(counters), scratch.clone());
            let proxy = Proxy::new(spec.destination, counters, self.descriptors.clone(), scratch);
            spawn_local(proxy.serve(listener));
        }
        Ok(())
    }

    /// What each has counted.
    pub fn stats(&self) -> impl Iterator<Item = (&ServiceSpec, ServiceStats)> {
        self.services.iter().map(|(spec, counters)| (spec, counters.read()))
    }
}
