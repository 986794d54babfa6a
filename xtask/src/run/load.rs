//! The demo's HTTP clients: short connections and keep-alive ones at a steady rate, on a thread of their own inside
//! the client's namespace. Latency counts from when a request was due, so that a stall cannot hide the requests it
//! held up.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::task::LocalSet;

use super::record::Record;
use crate::client::Page;
use crate::lab::Namespace;

/// Clients of each sort.
const CLIENTS: u32 = 16;
/// A request that takes longer has failed. Above the client kernel's third SYN (1 + 2 + 4 s).
const PATIENCE: Duration = Duration::from_secs(10);

/// What to ask, and how often.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) page: Page,
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
        let outcome = tokio::time::timeout(PATIENCE, shared.plan.page.fetch(&mut connection, keep)).await;
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")));
        if outcome.is_err() {
            connection = None;
        }
        let latency = due.elapsed();
        shared.record.lock().unwrap_or_else(PoisonError::into_inner).add(latency, outcome);
        due = if interval.is_zero() { Instant::now() } else { due + interval };
    }
}
