//! The proxy: accepts a service's connections, connects each to the backend or to a responder, and hands both to the
//! relay. A backend that cannot be reached is the client's to know at once: it gets a reset, and the cause is counted.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream as KernelStream;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tracing::warn;

use super::backend::Backend;
use super::counters::{ServiceCounters, add};
use super::descriptors::{Descriptor, Descriptors};
use super::relay::{End, Relay};
use super::responder::Responder;
use super::scratch::Scratch;
use crate::config::Destination;
use crate::engine::{TcpListener, TcpStream};
use crate::telemetry::throttle::Throttle;

/// How long a backend may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a backend that cannot be had is complained about.
const COMPLAIN: Duration = Duration::from_secs(10);

/// One service on one engine.
pub(super) struct Proxy {
    destination: Destination,
    complaints: RefCell<Throttle>,
    counters: Arc<ServiceCounters>,
    descriptors: Descriptors,
    scratch: Scratch,
}

impl Proxy {
    pub(super) fn new(
        destination: Destination,
        counters: Arc<ServiceCounters>,
        descriptors: Descriptors,
        scratch: Scratch,
    ) -> Self {
        Self {
            destination,
            complaints: RefCell::new(Throttle::new(COMPLAIN)),
            counters,
            descriptors,
            scratch,
        }
    }

    /// Serves connections until the task is dropped. Accepting costs no descriptor, so running out of them fails single
    /// connections and never this loop.
    pub(super) async fn serve(self, listener: TcpListener) {
        let proxy = Rc::new(self);
        loop {
            let (client, _) = listener.accept().await;
            add(&proxy.counters.accepted, 1);
            spawn_local(connection(client, Rc::clone(&proxy)));
        }
    }

    /// Says why there is no connection to the backend, but not for every client.
    fn complain(&self, backend: SocketAddr, error: &io::Error) {
        if let Some(clients) = self.complaints.borrow_mut().event(Instant::now()) {
            warn!(%backend, clients, %error, "no connection to the backend, clients were reset");
        }
    }
}

async fn connection(client: TcpStream, proxy: Rc<Proxy>) {
    let counters = &proxy.counters;
    let (backend, _descriptor) = match proxy.destination {
        Destination::Responder(kind) => {
            (Backend::Responder(Responder::new(kind, Arc::clone(counters))), None)
        }
        Destination::Backend(backend) => match relayed(&client, backend, &proxy.descriptors).await {
            Ok((stream, descriptor)) => (Backend::Tcp(stream), Some(descriptor)),
            Err(Refusal::Client) => return add(&counters.client_failed, 1),
            Err(Refusal::Backend(error)) => {
                proxy.complain(backend, &error);
                add(cause(counters, &error), 1);
                return client.abort();
            }
        },
    };
    add(&counters.connected, 1);
    let mut relay = Relay::new(client, backend, Arc::clone(counters), proxy.scratch.clone());
    match poll_fn(|cx| relay.poll(cx)).await {
        End::Finished => add(&counters.finished, 1),
        End::ClientFailed => {
            add(&counters.client_failed, 1);
            relay.reset_backend();
        }
        End::BackendFailed => {
            add(&counters.backend_failed, 1);
            relay.reset_client();
        }
        End::ClientSilent => {
            add(&counters.client_silent, 1);
            relay.reset();
        }
    }
}

/// Why there is no connection to relay.
enum Refusal {
    /// The client is gone.
    Client,
    /// The backend cannot be had.
    Backend(io::Error),
}

/// A connection to the backend, and the descriptor it takes.
async fn relayed(
    client: &TcpStream,
    backend: SocketAddr,
    descriptors: &Descriptors,
) -> Result<(KernelStream, Descriptor), Refusal> {
    let exhausted = || Refusal::Backend(io::Error::from_raw_os_error(libc::EMFILE));
    let descriptor = descriptors.take().ok_or_else(exhausted)?;
    Ok((connect(client, backend).await?, descriptor))
}

async fn connect(client: &TcpStream, backend: SocketAddr) -> Result<KernelStream, Refusal> {
    let connecting = timeout(CONNECT_TIMEOUT, KernelStream::connect(backend));
    tokio::pin!(connecting);
    let connected = poll_fn(|cx| match connecting.as_mut().poll(cx) {
        Poll::Ready(Ok(connected)) => Poll::Ready(connected.map_err(Refusal::Backend)),
        Poll::Ready(Err(_)) => Poll::Ready(Err(Refusal::Backend(io::ErrorKind::TimedOut.into()))),
        Poll::Pending => client.poll_failed(cx).map(|_| Err(Refusal::Client)),
    });
    let stream = connected.await?;
    // The stack paces what it sends; the backend's side must not wait for more either.
    stream.set_nodelay(true).map_err(Refusal::Backend)?;
    Ok(stream)
}

/// The counter of why a backend could not be had.
fn cause<'a>(counters: &'a ServiceCounters, error: &io::Error) -> &'a AtomicU64 {
    match error.raw_os_error() {
        Some(
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL | libc::EAGAIN,
        ) => return &counters.exhausted,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN) => {
            return &counters.backend_unreachable;
        }
        _ => {}
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => &counters.backend_refused,
        io::ErrorKind::TimedOut => &counters.backend_timeout,
        _ => &counters.backend_error,
    }
}
