//! The proxy: accepts a service's connections, connects each to a backend or to a responder, and hands both to the
//! relay. When no backend can be had, the client is to know at once: it gets a reset, and the cause is counted.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::timeout;
use tracing::field::display;
use tracing::{info, warn};

use super::backend::{Backend, greeting};
use super::counters::{ServiceCounters, add};
use super::holds::{Hold, Lookout};
use super::limits::Watch;
use super::pool::{Lease, Pool};
use super::quota::{Quota, Share};
use super::relay::{End, Relay};
use super::responder::Responder;
use super::scratch::Scratch;
use super::{Far, Purpose, ServiceSpec};
use crate::config::{BackendAddr, Source};
use crate::engine::{TcpListener, TcpStream};
use crate::telemetry::throttle::Throttle;

/// How often a backend that cannot be had is complained about.
const COMPLAIN: Duration = Duration::from_secs(10);

/// One service on one engine.
pub(super) struct Proxy {
    spec: ServiceSpec,
    far: Far,
    complaints: RefCell<Throttle>,
    counters: Arc<ServiceCounters>,
    descriptors: Quota,
    scratch: Scratch,
}

impl Proxy {
    pub(super) fn new(
        spec: ServiceSpec,
        far: Far,
        counters: Arc<ServiceCounters>,
        descriptors: Quota,
        scratch: Scratch,
    ) -> Self {
        let complaints = RefCell::new(Throttle::new(COMPLAIN));
        Self { spec, far, complaints, counters, descriptors, scratch }
    }

    /// Serves connections until the task is dropped. Accepting costs no descriptor, so running out of them fails single
    /// connections and never this loop.
    /// A service that changes is what it has become for the connections that come then; the end of `changes` is its own.
    pub(super) async fn serve(self, listener: TcpListener, mut changes: watch::Receiver<ServiceSpec>) {
        let mut proxy = Rc::new(self);
        loop {
            tokio::select! {
                (client, _) = listener.accept() => {
                    add(&proxy.counters.accepted, 1);
                    spawn_local(connection(client, Rc::clone(&proxy)));
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    proxy = Rc::new(proxy.replaced(changes.borrow_and_update().clone()));
                }
            }
        }
    }

    /// The same proxy for what its service has become.
    fn replaced(&self, spec: ServiceSpec) -> Self {
        let far = match &spec.purpose {
            Purpose::Relay(far) => far.clone(),
            // Nothing that is relayed becomes an application's.
            Purpose::Application(_) => self.far.clone(),
        };
        Self::new(spec, far, Arc::clone(&self.counters), self.descriptors.clone(), self.scratch.clone())
    }

    /// Says why there is no connection to a backend, but not for every client.
    fn complain(&self, backend: &dyn fmt::Display, error: &io::Error) {
        if let Some(attempts) = self.complaints.borrow_mut().event(Instant::now()) {
            let service = self.spec.listen;
            warn!(%service, %backend, attempts, %error, "no connection to a backend");
        }
    }

    /// Says who holds connections up, one of which is this client's.
    fn complain_of_hold(&self, lease: &Lease, client: SocketAddr, hold: Hold, age: Duration) {
        let Some(held) = lease.complaint(hold, age, Instant::now()) else { return };
        let (service, backend, state, why) = (self.spec.listen, lease.addr(), hold.name(), hold.culprit());
        let (connections, oldest) = (held.count, held.oldest);
        // Where it is the backend's doing, whose connection was looked at does not matter.
        let client = hold.is_of_clients().then(|| display(client));
        warn!(%service, %backend, client, state, connections, ?oldest, "connections are held up: {why}");
    }

    /// Says for whom connections are reset to free memory, one of which is this client's.
    fn complain_of_unread(&self, lease: &Lease, client: SocketAddr, hold: Hold) {
        let Some(connections) = lease.reset_unread(hold, Instant::now()) else { return };
        let (service, backend, why) = (self.spec.listen, lease.addr(), hold.culprit());
        let client = hold.is_of_clients().then(|| display(client));
        warn!(%service, %backend, client, connections, "reset for memory that nobody reads, unread-reset: {why}");
    }

    /// The far end of a client's connection, and what it takes as long as it lasts.
    async fn far_end(&self, client: &TcpStream) -> Result<(Backend, Option<Box<Taken>>), Refusal> {
        match &self.far {
            Far::Responder(kind) => {
                Ok((Backend::Responder(Responder::new(*kind, Arc::clone(&self.counters))), None))
            }
            Far::Backends(pool) => {
                let Some(descriptor) = self.descriptors.take() else {
                    self.complain(&"any", &io::Error::from_raw_os_error(libc::EMFILE));
                    return Err(Refusal::Exhausted);
                };
                // In a box, which goes when it has connected: that takes more memory than all that comes then.
                let (backend, lease) = Box::pin(self.connect(client, pool)).await?;
                let lookout = Lookout::new(lease.holds(), client.peer_addr());
                Ok((backend, Some(Box::new(Taken { lease, lookout, _descriptor: descriptor }))))
            }
        }
    }

    /// Connects to the first backend that can be had; each is tried once.
    async fn connect(&self, client: &TcpStream, pool: &Arc<Pool>) -> Result<(Backend, Lease), Refusal> {
        let version = pool.config.proxy_protocol;
        let greeting =
            greeting(version, client.peer_addr(), client.local_addr()).map_err(Refusal::Backend)?;
        let source = match pool.config.source {
            Source::Own => None,
            Source::Client => Some(client.peer_addr().ip()),
        };
        let (mut tried, mut failure) = (Vec::new(), None);
        while let Some(lease) = pool.pick(source, &tried, Instant::now()) {
            if !tried.is_empty() {
                add(&self.counters.retried, 1);
            }
            let attempt = Backend::connect(lease.addr(), source, &greeting);
            let attempt = timeout(pool.config.connect_timeout, attempt);
            let error = match unless_gone(client, attempt).await? {
                Ok(Ok(backend)) => {
                    if lease.connected() {
                        info!(service = %self.spec.listen, backend = %lease.addr(), "the backend is back");
                    }
                    return Ok((backend, lease));
                }
                Ok(Err(error)) if is_exhaustion(lease.addr(), &error) => {
                    self.complain(lease.addr(), &error);
                    return Err(Refusal::Exhausted);
                }
                Ok(Err(error)) => error,
                Err(_) => io::ErrorKind::TimedOut.into(),
            };
            self.complain(lease.addr(), &error);
            tried.push(lease.index);
            if is_unaddressed(&error) {
                lease.not_asked();
            } else {
                lease.failed(Instant::now());
                failure = Some(error);
            }
        }
        // A pool has a member, so there was an attempt: if nobody failed, nobody could be asked.
        Err(failure.map_or(Refusal::Exhausted, Refusal::Backend))
    }
}

/// One connection from its beginning to its end.
#[expect(
    clippy::manual_async_fn,
    reason = "keeps its arguments twice, and a task is most of a connection at rest"
)]
fn connection(client: TcpStream, proxy: Rc<Proxy>) -> impl Future<Output = ()> {
    async move {
        let Some(_admitted) = proxy.spec.limits.admit() else {
            add(&proxy.counters.over_limit, 1);
            return client.abort();
        };
        let watch = proxy.spec.limits.watch();
        let (backend, mut taken) = match proxy.far_end(&client).await {
            Ok(far_end) => far_end,
            Err(Refusal::Client) if client.was_unread() => return add(&proxy.counters.unread_reset, 1),
            Err(Refusal::Client) => return add(&proxy.counters.client_failed, 1),
            Err(Refusal::Exhausted) => {
                add(&proxy.counters.exhausted, 1);
                return client.abort();
            }
            Err(Refusal::Backend(error)) => {
                add(cause(&proxy.counters, &error), 1);
                return client.abort();
            }
        };
        add(&proxy.counters.connected, 1);
        let mut relay = Relay::new(client, backend, Arc::clone(&proxy.counters), proxy.scratch.clone());
        match end(&proxy, &mut relay, taken.as_deref_mut(), watch).await {
            End::Finished => add(&proxy.counters.finished, 1),
            End::ClientFailed => {
                let unread = relay.unread();
                add(
                    if unread.is_some() {
                        &proxy.counters.unread_reset
                    } else {
                        &proxy.counters.client_failed
                    },
                    1,
                );
                // Borrowed: what was taken is given back when both connections are closed, not before.
                if let (Some(taken), Some(hold)) = (&taken, unread) {
                    proxy.complain_of_unread(&taken.lease, relay.client_addr(), hold);
                }
                relay.reset_backend();
            }
            End::BackendFailed => {
                add(&proxy.counters.backend_failed, 1);
                relay.reset_client();
            }
            End::ClientSilent => {
                add(&proxy.counters.client_silent, 1);
                relay.reset();
            }
            End::Idle => {
                add(&proxy.counters.idle, 1);
                relay.reset();
            }
            End::Overtime => {
                add(&proxy.counters.overtime, 1);
                relay.reset();
            }
            End::BackendSilent => {
                add(&proxy.counters.backend_silent, 1);
                relay.reset();
            }
        }
    }
}

/// Relays until the end, or until a limit is reached.
fn end(
    proxy: &Proxy,
    relay: &mut Relay,
    mut taken: Option<&mut Taken>,
    mut watch: Option<Box<Watch>>,
) -> impl Future<Output = End> {
    poll_fn(move |cx| {
        if let Poll::Ready(end) = relay.poll(cx) {
            return Poll::Ready(end);
        }
        if let Some(watch) = &mut watch
            && let Poll::Ready(end) = watch.poll(cx, relay.moved())
        {
            return Poll::Ready(end);
        }
        let Some(Taken { lease, lookout, _descriptor }) = taken.as_deref_mut() else { return Poll::Pending };
        while let Poll::Ready((hold, age)) = lookout.poll(cx, relay.hold(), || relay.come()) {
            proxy.complain_of_hold(lease, relay.client_addr(), hold, age);
            let limit = relay.limit(hold);
            if !limit.is_zero() && age >= limit {
                return Poll::Ready(End::BackendSilent);
            }
        }
        Poll::Pending
    })
}

/// What a connection to a backend takes besides the streams, as long as it lasts. Dropped, it gives that back.
struct Taken {
    lease: Lease,
    lookout: Lookout,
    _descriptor: Share,
}

/// Why there is no connection to relay.
enum Refusal {
    /// The client is gone.
    Client,
    /// We lack what a connection takes, to whichever backend.
    Exhausted,
    /// No backend can be had; this is what the last one said.
    Backend(io::Error),
}

/// What `future` yields, unless the client fails first.
async fn unless_gone<T>(client: &TcpStream, future: impl Future<Output = T>) -> Result<T, Refusal> {
    tokio::pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Ok(result)),
        Poll::Pending => client.poll_failed(cx).map(|_| Err(Refusal::Client)),
    })
    .await
}

/// Whether there is no address or port here to connect to a backend from. There may be for another: families of addresses can
/// be switched off, and ports are taken towards one destination at a time.
fn is_unaddressed(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EADDRINUSE))
}

/// Whether descriptors or memory ran out here. A Unix socket whose backlog is full says EAGAIN too, but there that
/// is the backend's fault.
fn is_exhaustion(backend: &BackendAddr, error: &io::Error) -> bool {
    match (error.raw_os_error(), backend) {
        (Some(libc::EAGAIN), BackendAddr::Unix(_)) => false,
        (Some(code), _) => {
            matches!(code, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EAGAIN)
        }
        (None, _) => false,
    }
}

/// The counter of why a backend could not be had.
fn cause<'a>(counters: &'a ServiceCounters, error: &io::Error) -> &'a AtomicU64 {
    match error.raw_os_error() {
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN | libc::ENOENT) => {
            return &counters.backend_unreachable;
        }
        Some(libc::EAGAIN) => return &counters.backend_refused,
        _ => {}
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => &counters.backend_refused,
        io::ErrorKind::TimedOut => &counters.backend_timeout,
        _ => &counters.backend_error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It used to be four times as much: what connecting to a backend takes was kept as long as the connection, and by those
    /// to a responder as well.
    #[test]
    fn a_task_that_relays_fits_into_half_a_kilobyte() {
        fn size<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
            size_of::<F>()
        }
        // Around it tokio has 104 bytes, and each task a multiple of 128.
        assert!(size(connection) <= 512 - 104, "{}", size(connection));
    }
}
