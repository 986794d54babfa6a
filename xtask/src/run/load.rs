//! The demo's HTTP clients: short connections and keep-alive ones at a steady rate, on a thread of their own inside
//! the client's namespace. Latency counts from when a request was due, so that a stall cannot hide the requests it
//! held up.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use super::record::Record;
use crate::lab::Namespace;

/// Clients of each sort.
const CLIENTS: u32 = 16;
/// A request that takes longer has failed. Above the client kernel's third SYN (1 + 2 + 4 s).
const PATIENCE: Duration = Duration::from_secs(10);

/// What to ask, and how often.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) server: SocketAddr,
    pub(super) path: String,
    /// The bytes every answer must consist of.
    pub(super) expected: Bytes,
    /// Requests a second, half of them on connections of their own; 0 for as many as possible.
    pub(super) rate: u32,
}

/// Clients at work. Dropping it stops them.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    record: Arc<Mutex<Record>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Load {
    pub(super) fn start(namespace: &Namespace, plan: Plan) -> Result<Self> {
        let (stop, record) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Record::new()?)));
        let shared = Shared { plan, stop: Arc::clone(&stop), record: Arc::clone(&record) };
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, work(Rc::new(shared)));
            Ok(())
        };
        Ok(Self { stop, record, thread: Some(namespace.spawn("load", body)?) })
    }

    /// Looks at, or changes, what was recorded.
    pub(super) fn record<T>(&self, look: impl FnOnce(&mut Record) -> T) -> T {
        look(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets requests under way finish, and ends.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow!("the clients' thread panicked"))?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

struct Shared {
    plan: Plan,
    stop: Arc<AtomicBool>,
    record: Arc<Mutex<Record>>,
}

async fn work(shared: Rc<Shared>) {
    let clients: Vec<_> =
        (0..2 * CLIENTS).map(|index| tokio::task::spawn_local(client(Rc::clone(&shared), index))).collect();
    for client in clients {
        let _ = client.await;
    }
}

/// One client: the even ones keep their connection, the odd ones never do.
async fn client(shared: Rc<Shared>, index: u32) {
    let keep = index.is_multiple_of(2);
    let interval = match shared.plan.rate {
        0 => Duration::ZERO,
        rate => Duration::from_secs(1) * 2 * CLIENTS / rate,
    };
    // Spread over the interval, or they would all ask at once.
    let mut due = Instant::now() + interval * index / (2 * CLIENTS);
    let mut connection = None;
    while !shared.stop.load(Ordering::Relaxed) {
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        let outcome = tokio::time::timeout(PATIENCE, request(&shared.plan, &mut connection, keep)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")));
        if outcome.is_err() {
            connection = None;
        }
        let latency = due.elapsed();
        shared.record.lock().unwrap_or_else(PoisonError::into_inner).add(latency, outcome);
        due = if interval.is_zero() { Instant::now() } else { due + interval };
    }
}

type Connection = SendRequest<Empty<Bytes>>;

async fn request(plan: &Plan, connection: &mut Option<Connection>, keep: bool) -> Result<()> {
    if connection.as_ref().is_none_or(|open| open.is_closed()) {
        *connection = Some(connect(plan.server).await?);
    }
    let Some(open) = connection.as_mut() else { bail!("no connection") };
    let request = Request::get(&plan.path).header(header::HOST, plan.server.to_string());
    let request = request.header(header::CONNECTION, if keep { "keep-alive" } else { "close" });
    open.ready().await.context("the connection closed")?;
    let response = open.send_request(request.body(Empty::new())?).await.context("sending a request")?;
    ensure!(response.status() == StatusCode::OK, "answered {}", response.status());
    let body = response.into_body().collect().await.context("reading the answer")?.to_bytes();
    ensure!(body == plan.expected, "wrong content: {} bytes", body.len());
    if !keep {
        *connection = None;
    }
    Ok(())
}

async fn connect(server: SocketAddr) -> Result<Connection> {
    let stream = TcpStream::connect(server).await.context("connecting")?;
    stream.set_nodelay(true)?;
    let (sender, driver) = handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move {
        // A request on this connection reports the same error.
        let _ = driver.await;
    });
    Ok(sender)
}
