//! Where Prometheus reads the metrics: a small HTTP server, off unless configured. Whoever reads slowly, or asks without end,
//! costs a bounded time and few descriptors, and delays nobody; nor does he keep anybody out who asks something.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::config::MetricsListen;
use crate::telemetry::metrics;

use super::guard::Guard;
use super::socket::{ListenError, Socket, SocketSpec};

/// Scrapers served at once. One more takes the place of the one that has said nothing for longest, or has taken nothing of its
/// answer for a while; if there is none, it is told so.
const SERVED: usize = 8;
/// Those that are being told so at once; one more is hung up on.
const REFUSED: usize = 2;
/// Descriptors that scrapers may have.
pub(super) const CLIENTS: usize = SERVED + REFUSED;
/// After so long a scraper should have its answer, which is some tens of kilobytes.
const SLOW: Duration = Duration::from_secs(1);
/// One that is refused is listened to for so long: a socket that is closed with a request in it resets, and the refusal is lost.
const REFUSAL_TIME: Duration = Duration::from_millis(200);
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
    /// Who is being served, in the order in which they came.
    served: RefCell<VecDeque<Rc<Seat>>>,
    /// How many are being refused.
    refused: Cell<usize>,
    /// The last answer, and how old it is.
    last: RefCell<Option<(Instant, Bytes)>>,
    reading: Mutex<()>,
}

/// A scraper's place.
struct Seat {
    stage: Cell<Stage>,
    /// It is another's now.
    taken: Notify,
}

/// How far a scraper is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has not asked anything.
    Silent,
    /// It is being answered.
    Asking,
    /// There is its answer, since then.
    Reading(Instant),
}

/// What somebody is told for whom there is no place.
const NO_PLACE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    connection: close\r\ncontent-length: 37\r\n\r\nscrapers are being served; try again\n";

/// Of those that are served, in the order in which they came, the one whose place another may have.
fn dispensable(stages: impl Iterator<Item = Stage> + Clone, now: Instant) -> Option<usize> {
    let is_slow = |stage| matches!(stage, Stage::Reading(since) if now.duration_since(since) >= SLOW);
    let silent = stages.clone().position(|stage| stage == Stage::Silent);
    silent.or_else(|| stages.clone().position(is_slow))
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
        let (served, refused) = (RefCell::default(), Cell::default());
        Ok(Self { listener, served, refused, last: RefCell::default(), reading: Mutex::new(()) })
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
        let mut served = self.served.borrow_mut();
        if served.len() >= SERVED {
            let stages = served.iter().map(|seat| seat.stage.get());
            let Some(seat) = dispensable(stages, Instant::now()).and_then(|index| served.remove(index))
            else {
                return self.refuse(client);
            };
            seat.taken.notify_one();
        }
        let seat = Rc::new(Seat { stage: Cell::new(Stage::Silent), taken: Notify::new() });
        served.push_back(Rc::clone(&seat));
        let (scrape, guard) = (Rc::clone(self), Rc::clone(guard));
        tokio::task::spawn_local(async move {
            tokio::select! {
                () = scrape.answer(&guard, client, &seat) => {}
                () = seat.taken.notified() => debug!("a scraper made room for another"),
            }
            scrape.served.borrow_mut().retain(|other| !Rc::ptr_eq(other, &seat));
        });
    }

    /// Says that there is no place, unless too many are being told so.
    fn refuse(self: &Rc<Self>, mut client: impl AsyncRead + AsyncWrite + Unpin + 'static) {
        if self.refused.get() >= REFUSED {
            return;
        }
        self.refused.set(self.refused.get() + 1);
        let scrape = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let told = async {
                client.write_all(NO_PLACE).await?;
                client.shutdown().await?;
                let mut request = [0; 1024];
                while client.read(&mut request).await? > 0 {}
                Ok::<_, io::Error>(())
            };
            if let Ok(Err(error)) = timeout(REFUSAL_TIME, told).await {
                debug!(%error, "a scraper went away");
            }
            scrape.refused.set(scrape.refused.get() - 1);
        });
    }

    async fn answer(
        self: &Rc<Self>,
        guard: &Rc<Guard>,
        client: impl AsyncRead + AsyncWrite + Unpin + 'static,
        seat: &Rc<Seat>,
    ) {
        let service = service_fn(|request: Request<Incoming>| {
            let (scrape, guard, seat) = (Rc::clone(self), Rc::clone(guard), Rc::clone(seat));
            async move {
                seat.stage.set(Stage::Asking);
                let answer = scrape.respond(&guard, &request).await;
                seat.stage.set(Stage::Reading(Instant::now()));
                Ok::<_, Infallible>(answer)
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_says_nothing_makes_room_then_one_that_does_not_read_and_nobody_else() {
        let now = Instant::now() + 2 * SLOW;
        let (slow, quick) = (Stage::Reading(now - SLOW), Stage::Reading(now - SLOW / 2));
        for (stages, expected) in [
            (&[Stage::Asking, slow, Stage::Silent, Stage::Silent][..], Some(2)),
            (&[Stage::Asking, quick, slow, slow], Some(2)),
            (&[Stage::Asking, quick], None),
            (&[], None),
        ] {
            assert_eq!(dispensable(stages.iter().copied(), now), expected, "{stages:?}");
        }
    }

    #[test]
    fn what_somebody_is_told_for_whom_there_is_no_place_is_as_long_as_it_says() {
        let text = std::str::from_utf8(NO_PLACE).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{text:?}");
    }
}
