//! Where Prometheus reads the metrics: a small HTTP server, off unless configured. Whoever reads slowly, or asks without end,
//! costs a bounded time and few descriptors, and delays nobody.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::config::MetricsListen;
use crate::telemetry::metrics;

use super::guard::Guard;
use super::socket::{ListenError, Socket, SocketSpec};

/// Scrapers served at once; one more is hung up on.
pub(super) const CLIENTS: usize = 8;
/// A scraper has this long for its request, and this long for all of it, the answer included.
const REQUEST_TIME: Duration = Duration::from_secs(5);
const CONNECTION_TIME: Duration = Duration::from_secs(15);
/// However many ask, numbers are read anew this often.
const FRESH: Duration = Duration::from_millis(250);
/// Pause when no scraper can be let in.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Where the metrics are.
const PATH: &str = "/metrics";

/// A listening endpoint.
pub(super) struct Scrape {
    listener: Listener,
    clients: Arc<Semaphore>,
    /// The last answer, and how old it is.
    last: RefCell<Option<(Instant, Bytes)>>,
    reading: Mutex<()>,
}

enum Listener {
    Tcp(TcpListener),
    Unix(Socket),
}

impl Scrape {
    /// Listens where the configuration says.
    ///
    /// # Errors
    /// What the system says, or that somebody listens there.
    pub(super) fn bind(listen: &MetricsListen, group: Option<&str>) -> Result<Self, ListenError> {
        let listener = match listen {
            MetricsListen::Tcp(addr) => Listener::Tcp(bind_tcp(*addr)?),
            MetricsListen::Unix(path) => {
                Listener::Unix(Socket::bind(&SocketSpec { path, group, mode: 0o660 })?)
            }
        };
        let clients = Arc::new(Semaphore::new(CLIENTS));
        Ok(Self { listener, clients, last: RefCell::default(), reading: Mutex::new(()) })
    }

    /// Serves scrapers until it is dropped. Needs a `LocalSet`.
    pub(super) async fn serve(self: &Rc<Self>, guard: &Rc<Guard>) -> Infallible {
        loop {
            let accepted = match &self.listener {
                Listener::Tcp(listener) => {
                    listener.accept().await.map(|(client, _)| self.admit(guard, client))
                }
                Listener::Unix(socket) => {
                    socket.listener().accept().await.map(|(client, _)| self.admit(guard, client))
                }
            };
            if let Err(error) = accepted {
                debug!(%error, "cannot let a scraper in");
                sleep(BACK_OFF).await;
            }
        }
    }

    fn admit(self: &Rc<Self>, guard: &Rc<Guard>, client: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        let Ok(place) = Arc::clone(&self.clients).try_acquire_owned() else { return };
        let (scrape, guard) = (Rc::clone(self), Rc::clone(guard));
        tokio::task::spawn_local(async move { scrape.answer(guard, client, place).await });
    }

    async fn answer(
        self: Rc<Self>,
        guard: Rc<Guard>,
        client: impl AsyncRead + AsyncWrite + Unpin + 'static,
        _place: OwnedSemaphorePermit,
    ) {
        let service = service_fn(|request: Request<Incoming>| {
            let (scrape, guard) = (Rc::clone(&self), Rc::clone(&guard));
            async move { Ok::<_, Infallible>(scrape.respond(&guard, &request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIME)
            .keep_alive(false)
            .serve_connection(TokioIo::new(client), service);
        match timeout(CONNECTION_TIME, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a scraper went away"),
            Err(_) => debug!("a scraper took too long"),
        }
    }

    async fn respond(&self, guard: &Guard, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != PATH {
            return plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
            refusal.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        match self.text(guard).await {
            Ok(text) => {
                let mut answer = Response::new(Full::new(text));
                let media_type = hyper::header::HeaderValue::from_static(metrics::MEDIA_TYPE);
                answer.headers_mut().insert(CONTENT_TYPE, media_type);
                answer
            }
            Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &why),
        }
    }

    /// The metrics, as they were within the last moment.
    async fn text(&self, guard: &Guard) -> Result<Bytes, String> {
        let _turn = self.reading.lock().await;
        if let Some((read, text)) = &*self.last.borrow()
            && read.elapsed() < FRESH
        {
            return Ok(text.clone());
        }
        let metrics = guard.metrics().await.map_err(|error| format!("{error}\n"))?;
        let text = Bytes::from(metrics::text(metrics));
        *self.last.borrow_mut() = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

fn bind_tcp(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    let bind = || -> io::Result<TcpListener> {
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    bind().map_err(|source| ListenError::Address { addr, source })
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *answer.status_mut() = status;
    answer
}
