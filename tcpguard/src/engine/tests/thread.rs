//! An engine on its thread: how it starts, ends, and how its end is noticed.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tcpguard_common::cookie::Clock;
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tokio::task::spawn_local;

use super::on_one_thread;
use crate::config::Tunables;
use crate::engine::{
    End, EngineConfig, EngineError, EngineHandle, Exchange, FramePort, Net, NoTables, Placement, ReadyEngine,
    RingCounters, spawn, tap,
};

/// A port where nothing ever arrives, or where looking is fatal, and whose interface may go.
#[derive(Default)]
struct Silent {
    fatal: bool,
    /// The error number of its disappearance.
    gone: Arc<AtomicI32>,
    /// Its ring is full of frames whenever it is looked at; they are worth nothing.
    is_flooded: bool,
    /// How often it was looked at.
    polled: Arc<AtomicU64>,
}

impl FramePort for Silent {
    fn receive(&mut self, budget: usize, _: impl FnMut(&[&[u8]])) -> usize {
        assert!(!self.fatal, "the port broke");
        self.polled.fetch_add(1, Ordering::Relaxed);
        if self.is_flooded { budget } else { 0 }
    }

    fn is_under_pressure(&self) -> bool {
        false
    }

    fn lost(&self) -> u64 {
        0
    }

    fn transmit(&mut self, mut fill: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let mut sent = 0;
        while fill(&mut [0; 2048]).is_some() {
            sent += 1;
        }
        sent
    }

    fn kick(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn check(&self) -> io::Result<()> {
        match self.gone.load(Ordering::Relaxed) {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    fn counters(&self) -> RingCounters {
        RingCounters::default()
    }

    fn poll_readable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

fn start(
    open: impl FnOnce() -> io::Result<Silent> + Send + 'static,
    application: impl FnOnce(&Net) -> io::Result<()> + Send + 'static,
) -> Result<EngineHandle, EngineError> {
    prepare(open, application).map(ReadyEngine::start)
}

fn prepare(
    open: impl FnOnce() -> io::Result<Silent> + Send + 'static,
    application: impl FnOnce(&Net) -> io::Result<()> + Send + 'static,
) -> Result<ReadyEngine, EngineError> {
    let config = EngineConfig {
        name: "test".to_owned(),
        engine: 3,
        generation: 1,
        local_mac: [2; 6],
        mtu: 1500,
        listen: Vec::new(),
        tunables: Arc::new(Tunables::default()),
        service_tunables: Arc::default(),
        epochs: [EpochSlot::default(); EPOCH_SLOTS as usize],
        clock: Clock::default(),
        strictness: Arc::default(),
        seed: 1,
        exchange: Exchange::new(1),
        placement: Placement::default(),
        tap: tap().0,
    };
    spawn(config, NoTables { flow: None }, open, application)
}

#[test]
fn an_engine_answers_until_it_is_stopped() {
    on_one_thread(async {
        let handle = start(|| Ok(Silent::default()), |_| Ok(())).unwrap();
        let stats = handle.stats().await.unwrap();
        assert_eq!((stats.engine, stats.connections), (3, 0));
        assert!(handle.flows(|_| true, 1).await.unwrap().is_empty());
        assert_eq!(handle.end(), None);
        let other = handle.clone();
        assert_eq!(handle.stop().await, End::Stopped);
        assert_eq!((other.ended().await, other.end()), (End::Stopped, Some(End::Stopped)));
        assert!(matches!(other.stats().await, Err(EngineError::Gone)));
        assert_eq!(other.stop().await, End::Stopped);
    });
}

/// Its port is one that does not bear being looked at.
#[test]
fn an_engine_that_is_never_started_touches_nothing_and_ends() {
    let ready = prepare(|| Ok(Silent { fatal: true, ..Silent::default() }), |_| Ok(())).unwrap();
    let handle = ready.handle().clone();
    drop(ready);
    assert_eq!(handle.end(), Some(End::Stopped));
}

#[test]
fn an_engine_whose_interface_is_gone_ends_and_one_whose_interface_is_down_does_not() {
    on_one_thread(async {
        for (code, end) in [(libc::ENXIO, true), (libc::ENODEV, true), (libc::ENETDOWN, false)] {
            let gone = Arc::new(AtomicI32::new(0));
            let port = Silent { gone: Arc::clone(&gone), ..Silent::default() };
            let handle = start(|| Ok(port), |_| Ok(())).unwrap();
            gone.store(code, Ordering::Relaxed);
            let ended = tokio::time::timeout(Duration::from_millis(500), handle.ended());
            // Unless it is over, it still answers.
            match ended.await {
                Ok(how) => assert!(end && how == End::InterfaceGone, "{code}: {how:?}"),
                Err(_) => assert!(!end && handle.stats().await.is_ok(), "{code}"),
            }
            handle.stop().await;
        }
    });
}

#[test]
fn a_panic_on_the_engines_thread_is_its_end_and_not_a_secret() {
    on_one_thread(async {
        let handle = start(|| Ok(Silent { fatal: true, ..Silent::default() }), |_| Ok(())).unwrap();
        assert_eq!(handle.ended().await, End::Failed("the engine panicked: the port broke".to_owned()));
    });
}

#[test]
fn a_task_that_panics_inside_the_stack_takes_the_engine_with_it_and_another_does_not() {
    on_one_thread(async {
        let harmless = |_: &Net| {
            spawn_local(async { panic!("a service's own affair") });
            Ok(())
        };
        let handle = start(|| Ok(Silent::default()), harmless).unwrap();
        handle.stats().await.unwrap();
        assert_eq!(handle.stop().await, End::Stopped);

        let harmful = |net: &Net| {
            let net = net.clone();
            spawn_local(async move { net.with(|_| panic!("halfway")) });
            Ok(())
        };
        let handle = start(|| Ok(Silent::default()), harmful).unwrap();
        assert_eq!(handle.ended().await, End::Failed(EngineError::Poisoned.to_string()));
    });
}

/// The engine used to have its turn when all tasks had had theirs: with so many that have work, after a thousand.
#[test]
fn however_many_tasks_have_endless_work_only_so_many_run_between_two_looks_at_the_ring() {
    const TASKS: usize = 1000;
    on_one_thread(async {
        let (polled, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let port = Silent { is_flooded: true, polled: Arc::clone(&polled), ..Silent::default() };
        let (looks, longest) = (Arc::clone(&polled), Arc::clone(&most));
        let busy = move |_: &Net| {
            // The last look that a task has seen, and how many ran since.
            let since = Rc::new(Cell::new((0, 0)));
            for _ in 0..TASKS {
                let (since, looks, longest) = (Rc::clone(&since), Arc::clone(&looks), Arc::clone(&longest));
                spawn_local(poll_fn(move |cx| {
                    let (last, look) = (since.get(), looks.load(Ordering::Relaxed));
                    let ran = if last.0 == look { last.1 + 1 } else { 1 };
                    since.set((look, ran));
                    // Before the engine is started nobody looks.
                    if look > 0 {
                        longest.fetch_max(ran, Ordering::Relaxed);
                    }
                    cx.waker().wake_by_ref();
                    Poll::<()>::Pending
                }));
            }
            Ok(())
        };
        let handle = start(|| Ok(port), busy).unwrap();
        while polled.load(Ordering::Relaxed) < 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(handle.stop().await, End::Stopped);
        let most = most.load(Ordering::Relaxed);
        assert!((1..=128).contains(&most), "{most} of {TASKS}");
    });
}

/// The engine's own turn was in no gap, and what a task took was forgotten when the thread slept for a moment afterwards.
#[test]
fn whatever_holds_an_engines_thread_is_in_the_gap_between_two_looks_at_the_ring_and_sleep_is_not() {
    const HELD: Duration = Duration::from_millis(50);
    on_one_thread(async {
        let gaps = async |handle: &EngineHandle| handle.stats().await.unwrap().gaps;
        let handle = start(|| Ok(Silent::default()), |_| Ok(())).unwrap();
        tokio::time::sleep(20 * HELD).await;
        let asleep = Duration::from_nanos(gaps(&handle).await.sum);
        assert!(asleep < 10 * HELD, "{asleep:?} of {:?}", 20 * HELD);
        handle.stop().await;

        let in_its_turn = |_: &Net| std::thread::sleep(HELD);
        let in_a_task = |_: &Net| drop(spawn_local(async { std::thread::sleep(HELD) }));
        let holds = [in_its_turn as fn(&Net), in_a_task];
        for (who, hold) in ["the engine", "a task"].into_iter().zip(holds) {
            let handle = start(|| Ok(Silent::default()), |_| Ok(())).unwrap();
            handle.run(hold).await.unwrap();
            // It is told before the look at the ring that ends the gap, and before the task runs.
            tokio::time::sleep(6 * HELD).await;
            let longest = Duration::from_nanos(gaps(&handle).await.max);
            assert!(longest >= HELD, "{who}: {longest:?}");
            handle.stop().await;
        }
    });
}

#[test]
fn what_keeps_an_engine_from_starting_is_told_to_who_starts_it() {
    let refused = || Err(io::ErrorKind::PermissionDenied.into());
    assert!(matches!(start(refused, |_| Ok(())), Err(EngineError::Port(_))));
    let taken = |net: &Net| net.listen(1).map(|_kept| ()).and_then(|()| Err(io::ErrorKind::AddrInUse.into()));
    assert!(matches!(start(|| Ok(Silent::default()), taken), Err(EngineError::Application(_))));
}
