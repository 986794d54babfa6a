//! Services between a client on a stack in memory and what serves them: backends on real kernel sockets, and responders.

mod backends;
mod ends;
mod limits;
mod relay;
mod responders;
mod stuck;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener as BackendListener, TcpStream as BackendStream};
use tokio::task::spawn_local;

use super::{BackendStats, Far, Pool, Purpose, Quota, ServiceSpec, ServiceStats, Services};
use crate::config::{
    BackendAddr, Backends, Destination, Limits, Overrides, Responder, Service, ServiceMode, Tunables,
};
use crate::engine::tests::pair_with;
use crate::engine::tests::world::{Host, PORT, SERVICE, World};

struct Lab {
    world: Rc<World>,
    guard: Host,
    client: Host,
    services: Services,
    descriptors: Quota,
}

impl Lab {
    /// A proxy to `backend`.
    fn new(backend: SocketAddr) -> Self {
        Self::tuned(backend, Tunables::default())
    }

    fn tuned(backend: SocketAddr, tunables: Tunables) -> Self {
        Self::with(&to([BackendAddr::Tcp(backend)]), Limits::default(), tunables)
    }

    fn responder(responder: Responder) -> Self {
        Self::limited(responder, Limits::default())
    }

    fn limited(responder: Responder, limits: Limits) -> Self {
        Self::with(&Destination::Responder(responder), limits, Tunables::default())
    }

    /// A proxy to all of them.
    fn several(backends: Backends) -> Self {
        Self::with(&Destination::Backends(backends), Limits::default(), Tunables::default())
    }

    fn with(destination: &Destination, limits: Limits, tunables: Tunables) -> Self {
        Self::start(spec(destination, limits), tunables)
    }

    /// A proxy to `backend` that tells of connections which one side has held up for longer than `patience`.
    fn patient(backend: SocketAddr, patience: Duration) -> Self {
        let backends = [BackendAddr::Tcp(backend)];
        let pool = Pool::patient(several(backends.clone()), patience);
        let purpose = Purpose::Relay(Far::Backends(Arc::new(pool)));
        Self::start(ServiceSpec { purpose, ..spec(&to(backends), Limits::default()) }, Tunables::default())
    }

    fn start(spec: ServiceSpec, tunables: Tunables) -> Self {
        let (world, guard, client) = pair_with(tunables);
        let descriptors = Quota::default();
        let services = Services::new([spec]).sharing(descriptors.clone());
        services.start(&guard.net).unwrap();
        Self { world, guard, client, services, descriptors }
    }

    fn stats(&self) -> ServiceStats {
        self.services.stats()[0].1
    }

    fn backends(&self) -> Vec<BackendStats> {
        let Purpose::Relay(Far::Backends(pool)) = &self.services.specs()[0].purpose else {
            panic!("no backends")
        };
        pool.stats(Instant::now()).collect()
    }
}

fn spec(destination: &Destination, limits: Limits) -> ServiceSpec {
    let service = Service {
        listen: SocketAddr::from(([10, 0, 0, 1], PORT)),
        mode: ServiceMode::default(),
        dry_run: false,
        destination: Some(destination.clone()),
        limits,
        tunables: Overrides::default(),
    };
    ServiceSpec::new(SERVICE, &service, destination, None).unwrap()
}

async fn backend() -> (BackendListener, SocketAddr) {
    let listener = BackendListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// A backend for which the kernel keeps little.
async fn narrow_backend() -> (BackendListener, SocketAddr) {
    let (listener, addr) = backend().await;
    let kernel = SockRef::from(&listener);
    kernel.set_recv_buffer_size(64 << 10).unwrap();
    kernel.set_send_buffer_size(64 << 10).unwrap();
    (listener, addr)
}

fn several(addrs: impl IntoIterator<Item = BackendAddr>) -> Backends {
    Backends::new(addrs.into_iter().collect()).unwrap()
}

fn to(addrs: impl IntoIterator<Item = BackendAddr>) -> Destination {
    Destination::Backends(several(addrs))
}

/// Accepts for ever, and hands every connection to `serve`.
fn serve<F: Future<Output = ()> + 'static>(
    listener: BackendListener,
    serve: impl Fn(BackendStream) -> F + 'static,
) {
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(serve(stream));
        }
    });
}

async fn echo(mut stream: BackendStream) {
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    writer.shutdown().await.unwrap();
}
