//! The engine seen from other threads: questions, orders, and the news of its end. The work is the driver's.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tcpguard_common::cookie::{Clock, Strictness};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::EngineError;
use super::net::Net;
use super::stats::EngineStats;
use crate::config::Tunables;
use crate::stack::{Cursor, FlowInfo, State};

/// Orders that may wait for one engine.
pub(crate) const COMMANDS: usize = 64;
/// How long an answer is waited for. An engine that turns answers within a millisecond or two.
const PATIENCE: Duration = Duration::from_secs(5);
/// Places of the stack's tables per question to the engine, which answers between two bursts.
pub(crate) const SURVEY: u32 = 4096;

/// Steers one engine from any thread. Clones steer the same one.
#[derive(Clone)]
pub struct EngineHandle {
    pub(crate) engine: u32,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) end: watch::Receiver<Option<End>>,
    pub(crate) thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// An engine that has all it needs and does not turn yet. Dropping it ends its thread and frees its socket.
pub struct ReadyEngine {
    handle: EngineHandle,
    start: Option<oneshot::Sender<()>>,
}

impl ReadyEngine {
    pub(crate) fn new(handle: EngineHandle, start: oneshot::Sender<()>) -> Self {
        Self { handle, start: Some(start) }
    }

    /// What it will be steered by.
    #[cfg(test)]
    pub(crate) fn handle(&self) -> &EngineHandle {
        &self.handle
    }

    /// Lets it turn.
    pub fn start(mut self) -> EngineHandle {
        if let Some(start) = self.start.take() {
            // It waits for nothing else. Should its thread have died, the handle tells.
            let _ = start.send(());
        }
        self.handle.clone()
    }
}

impl Drop for ReadyEngine {
    fn drop(&mut self) {
        // Unless started, in which case it is the handle's now.
        if let Some(start) = self.start.take() {
            drop(start);
            self.handle.join();
        }
    }
}

/// How an engine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to.
    Stopped,
    /// Its interface was removed, or moved to another network namespace.
    InterfaceGone,
    /// It could not go on: an error, or a panic with its message.
    Failed(String),
}

/// What a drain came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that ended by themselves.
    pub finished: u64,
    /// Connections that were reset when the time was over.
    pub reset: u64,
}

/// The tunables of services that have some for themselves, whole, by the services' ids.
pub type ServiceTunables = Arc<[(u32, Arc<Tunables>)]>;

/// Flows by state, in the order of [`State::ALL`].
pub(crate) type States = [u64; State::ALL.len()];

/// The flows that were met in the slices of one engine.
#[derive(Default)]
pub(crate) struct Met {
    hasher: RandomState,
    /// Hashes of a million flows are far less than their keys.
    hashes: HashSet<u64, BuildHasherDefault<Hashed>>,
}

/// What is a hash already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the set has hashes alone");
    }
}

impl Met {
    /// Whether this one was not met before; from now on it was. A flow may be half-open beside its TIME_WAIT.
    pub(crate) fn is_new(&mut self, flow: &FlowInfo) -> bool {
        self.hashes.insert(self.hasher.hash_one((flow.key, flow.state == State::SynReceived)))
    }
}

pub(crate) enum Command {
    Stats(oneshot::Sender<EngineStats>),
    States { start: u32, reply: oneshot::Sender<(States, Option<u32>)> },
    Flows { start: Cursor, reply: oneshot::Sender<(Vec<FlowInfo>, Option<Cursor>)> },
    Tunables(Arc<Tunables>),
    ServiceTunables(ServiceTunables),
    Epochs([EpochSlot; EPOCH_SLOTS as usize], Clock, Arc<[Strictness]>),
    Link { local_mac: [u8; 6], mtu: u16 },
    Run(Box<dyn FnOnce(&Net) + Send>),
    Drain { time: Duration, reply: oneshot::Sender<DrainReport> },
    Stop,
}

impl EngineHandle {
    /// The engine's XSKMAP index.
    pub fn engine(&self) -> u32 {
        self.engine
    }

    /// What the engine has counted.
    ///
    /// # Errors
    /// [`EngineError::Gone`] when the engine has ended, [`EngineError::Silent`] when its thread stands still; so everywhere
    /// below.
    pub async fn stats(&self) -> Result<EngineStats, EngineError> {
        self.ask(Command::Stats).await
    }

    /// At most `limit` flows that `filter` lets through, TIME_WAIT entries included, in no particular order. The engine
    /// answers in slices between which it works: flows that come or go meanwhile may be missing, and one that moves, as
    /// into TIME_WAIT, is there as it was first met.
    pub async fn flows(
        &self,
        mut filter: impl FnMut(&FlowInfo) -> bool,
        limit: usize,
    ) -> Result<Vec<FlowInfo>, EngineError> {
        let (mut flows, mut met) = (Vec::new(), Met::default());
        let mut next = Some(Cursor::START);
        while let Some(start) = next {
            let (slice, after) = self.slice(start).await?;
            let room = limit - flows.len();
            let slice = slice.into_iter().filter(|flow| met.is_new(flow) && filter(flow));
            flows.extend(slice.take(room));
            next = after.filter(|_| flows.len() < limit);
        }
        Ok(flows)
    }

    /// The flows in one slice of the engine's tables, and where the next one begins. One that moves may be met again there,
    /// see [`Met`].
    pub(crate) async fn slice(&self, start: Cursor) -> Result<(Vec<FlowInfo>, Option<Cursor>), EngineError> {
        self.ask(|reply| Command::Flows { start, reply }).await
    }

    /// How many flows are in each state; every state is there. Counted in slices, as [`Self::flows`].
    pub async fn states(&self) -> Result<Vec<(State, u64)>, EngineError> {
        let mut total = States::default();
        let mut next = Some(0);
        while let Some(start) = next {
            let (slice, after) = self.ask(|reply| Command::States { start, reply }).await?;
            total.iter_mut().zip(slice).for_each(|(total, count)| *total += count);
            next = after;
        }
        Ok(State::ALL.into_iter().zip(total).collect())
    }

    /// Puts a new set of tunables in force, for connections that exist as well.
    pub async fn set_tunables(&self, tunables: Arc<Tunables>) -> Result<(), EngineError> {
        self.order(Command::Tunables(tunables)).await
    }

    /// Has the services with these ids go by tunables of their own, and all others by those of all.
    pub async fn set_service_tunables(&self, own: ServiceTunables) -> Result<(), EngineError> {
        self.order(Command::ServiceTunables(own)).await
    }

    /// The cookie keys in force, which epoch it is, and in which epochs the cookies of each service are strict.
    pub async fn set_epochs(
        &self,
        slots: [EpochSlot; EPOCH_SLOTS as usize],
        clock: Clock,
        strictness: Arc<[Strictness]>,
    ) -> Result<(), EngineError> {
        self.order(Command::Epochs(slots, clock, strictness)).await
    }

    /// The interface's address, and the largest packet to send, bytes: for connections that exist as well.
    pub async fn set_link(&self, local_mac: [u8; 6], mtu: u16) -> Result<(), EngineError> {
        self.order(Command::Link { local_mac, mtu }).await
    }

    /// Has the engine's thread do something with its network, between two bursts.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Net) -> T + Send + 'static,
    ) -> Result<T, EngineError> {
        self.ask(|reply| {
            Command::Run(Box::new(move |net| {
                // Nobody may wait for it any more.
                let _ = reply.send(work(net));
            }))
        })
        .await
    }

    /// Resets the flows that `which` says, in slices, as [`Self::flows`], and returns how many. Entries in TIME_WAIT stay.
    pub async fn kill(
        &self,
        which: impl Fn(&FlowInfo) -> bool + Send + Sync + 'static,
    ) -> Result<u64, EngineError> {
        let which = Arc::new(which);
        let (mut total, mut next) = (0, Some(Cursor::START));
        while let Some(start) = next {
            let which = Arc::clone(&which);
            let (killed, after) = self.run(move |net| net.kill(start, &*which)).await?;
            total += killed;
            next = after;
        }
        Ok(total)
    }

    /// Admits no more connections, waits until those there are have ended, but at most `time`, and resets the rest.
    /// The engine goes on running.
    pub async fn drain(&self, time: Duration) -> Result<DrainReport, EngineError> {
        self.await_answer(|reply| Command::Drain { time, reply }).await
    }

    /// Ends the engine and waits for its thread, so that its socket is free. Connections are not told.
    pub async fn stop(&self) -> End {
        // A full queue of orders, or an engine that has ended: either way its end is what we wait for.
        let _ = self.commands.send(Command::Stop).await;
        self.ended().await
    }

    /// Waits for the engine's end, wanted or not.
    pub async fn ended(&self) -> End {
        let mut end = self.end.clone();
        let told = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        // The end was announced as the thread's last act: this does not block.
        self.join();
        told.unwrap_or_else(|| End::Failed("the engine's thread vanished".to_owned()))
    }

    /// Whether it has ended, and how.
    pub fn end(&self) -> Option<End> {
        self.end.borrow().clone()
    }

    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, EngineError> {
        // Questions leave room for orders, which must not be lost on an engine that will turn again.
        if self.commands.capacity() < self.commands.max_capacity() / 2 {
            return Err(EngineError::Silent);
        }
        timeout(PATIENCE, self.await_answer(command)).await.unwrap_or(Err(EngineError::Silent))
    }

    async fn await_answer<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.order(command(reply)).await?;
        answer.await.map_err(|_| EngineError::Gone)
    }

    async fn order(&self, command: Command) -> Result<(), EngineError> {
        match timeout(PATIENCE, self.commands.send(command)).await {
            Ok(taken) => taken.map_err(|_| EngineError::Gone),
            Err(_) => Err(EngineError::Silent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::on_one_thread;
    use tcpguard_common::flow::AnyFlowKey;

    fn flow(port: u16, state: State) -> FlowInfo {
        let key = AnyFlowKey::new(([10, 0, 0, 2], port).into(), ([10, 0, 0, 1], 80).into());
        FlowInfo::without_data(key.unwrap(), state, None, Duration::ZERO)
    }

    /// It used to be listed twice, and counted twice.
    #[test]
    fn a_flow_that_moves_between_two_slices_is_listed_once() {
        on_one_thread(async {
            let (commands, mut orders) = mpsc::channel(1);
            let (_, end) = watch::channel(None);
            let handle = EngineHandle { engine: 0, commands, end, thread: Arc::default() };
            let slices = [
                (vec![flow(1, State::FinWait2), flow(2, State::Established)], Some(Cursor::START)),
                (vec![flow(1, State::TimeWait), flow(3, State::TimeWait)], None),
            ];
            let engine = tokio::task::spawn_local(async move {
                for slice in slices {
                    let Some(Command::Flows { reply, .. }) = orders.recv().await else { panic!() };
                    assert!(reply.send(slice).is_ok());
                }
            });
            let listed = handle.flows(|_| true, usize::MAX).await.unwrap();
            let listed: Vec<_> =
                listed.iter().map(|flow| (flow.key.peer_addr().port(), flow.state)).collect();
            let expected = [(1, State::FinWait2), (2, State::Established), (3, State::TimeWait)];
            assert_eq!(listed, expected);
            engine.await.unwrap();
        });
    }

    /// Its questions used to fill the queue, and orders with them.
    #[test]
    fn an_engine_that_takes_nothing_is_asked_nothing_but_still_told_for_long() {
        on_one_thread(async {
            let (commands, mut orders) = mpsc::channel(COMMANDS);
            let (_, end) = watch::channel(None);
            let handle = EngineHandle { engine: 0, commands, end, thread: Arc::default() };
            let tell = || handle.set_link([2; 6], 1500);
            for told in 0..COMMANDS {
                assert!(tell().await.is_ok());
                if told > COMMANDS / 2 {
                    assert!(matches!(handle.stats().await, Err(EngineError::Silent)));
                }
            }
            while orders.try_recv().is_ok() {}
            assert!(tell().await.is_ok());
        });
    }
}
