//! How an engine's driver and its tasks share a thread: the driver's turn comes before every slice of the tasks, however many
//! of them have work. What any of them does is its own affair.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::task::LocalSet;

/// Slices of the tasks before the runtime looks after descriptors and timers. Before the second the driver sends what came of
/// the first.
const SLICES: usize = 2;

/// Runs `driver` to its end, and `tasks` meanwhile. Whenever somebody has woken the driver, it is polled before the next slice
/// of the tasks, which is 61 of them at most, each with its own budget of operations. As one task among the others it would
/// wait for as many as have work.
pub(super) async fn take_turns<T>(tasks: &LocalSet, driver: impl Future<Output = T>) -> T {
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    let mut driver = pin!(driver);
    let called = poll_fn(|_| match bell.answer() {
        true => driver.as_mut().poll(&mut Context::from_waker(&waker)),
        false => Poll::Pending,
    });
    let mut slice = pin!(tasks.run_until(called));
    poll_fn(|cx| {
        bell.attend(cx.waker());
        for _ in 0..SLICES {
            if let Poll::Ready(end) = slice.as_mut().poll(cx) {
                return Poll::Ready(end);
            }
            if !bell.is_rung() {
                break;
            }
        }
        bell.leave();
        Poll::Pending
    })
    .await
}

/// What wakes the driver. While its thread attends to it, that costs no more than a flag: waking a thread is a system call,
/// and tasks have something for the driver all the time.
struct Bell {
    rung: AtomicBool,
    attended: AtomicBool,
    /// Who is to attend to it.
    attendant: Mutex<Option<Waker>>,
}

impl Default for Bell {
    /// Rung: a driver is polled once before it can wait for anything.
    fn default() -> Self {
        Self { rung: AtomicBool::new(true), attended: AtomicBool::new(false), attendant: Mutex::default() }
    }
}

impl Bell {
    fn is_rung(&self) -> bool {
        self.rung.load(Ordering::SeqCst)
    }

    /// Whether it was rung since the last time.
    fn answer(&self) -> bool {
        self.rung.swap(false, Ordering::SeqCst)
    }

    fn attend(&self, waker: &Waker) {
        match &mut *self.attendant() {
            Some(attendant) => attendant.clone_from(waker),
            attendant => *attendant = Some(waker.clone()),
        }
        self.attended.store(true, Ordering::SeqCst);
    }

    /// From now on the attendant must be called. Who rang before saw the bell attended, and called nobody.
    fn leave(&self) {
        self.attended.store(false, Ordering::SeqCst);
        if self.is_rung() {
            self.call();
        }
    }

    fn call(&self) {
        if let Some(attendant) = &*self.attendant() {
            attendant.wake_by_ref();
        }
    }

    fn attendant(&self) -> MutexGuard<'_, Option<Waker>> {
        // A waker is whole at any time.
        self.attendant.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Who rings a bell that is rung already finds somebody called, or attending.
        if !self.rung.swap(true, Ordering::SeqCst) && !self.attended.load(Ordering::SeqCst) {
            self.call();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    use tokio::runtime::Builder;
    use tokio::task::spawn_local;

    use super::*;

    fn run<T>(tasks: &LocalSet, driver: impl Future<Output = T>) -> T {
        Builder::new_current_thread().enable_time().build().unwrap().block_on(take_turns(tasks, driver))
    }

    #[test]
    fn a_driver_is_woken_by_a_task_by_a_timer_and_by_another_thread() {
        let tasks = LocalSet::new();
        let (from_task, mut by_task) = tokio::sync::mpsc::channel(1);
        let (from_thread, mut by_thread) = tokio::sync::mpsc::channel(1);
        tasks.spawn_local(async move { from_task.send("task").await.unwrap() });
        let said = run(&tasks, async move {
            let task = by_task.recv().await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
            let other = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(20));
                from_thread.blocking_send("thread").unwrap();
            });
            let thread = by_thread.recv().await.unwrap();
            other.join().unwrap();
            [task, thread]
        });
        assert_eq!(said, ["task", "thread"]);
    }

    #[test]
    fn what_the_driver_spawns_and_wakes_runs() {
        let tasks = LocalSet::new();
        let ran = Rc::new(Cell::new(0));
        let count = Rc::clone(&ran);
        run(&tasks, async move {
            for _ in 0..1000 {
                let count = Rc::clone(&count);
                spawn_local(async move { count.set(count.get() + 1) }).await.unwrap();
            }
        });
        assert_eq!(ran.get(), 1000);
    }

    /// Each has more to do whenever it has done something, and so has the driver.
    #[test]
    fn between_two_turns_of_a_driver_that_is_called_only_so_many_tasks_run() {
        const TASKS: usize = 1000;
        let tasks = LocalSet::new();
        let ran = Rc::new(Cell::new(0));
        for _ in 0..TASKS {
            let ran = Rc::clone(&ran);
            tasks.spawn_local(poll_fn(move |cx| {
                ran.set(ran.get() + 1);
                cx.waker().wake_by_ref();
                Poll::<()>::Pending
            }));
        }
        let most = run(&tasks, async move {
            let mut most = 0;
            for _ in 0..100 {
                tokio::task::yield_now().await;
                most = ran.take().max(most);
            }
            most
        });
        assert!((1..=100).contains(&most), "{most} of {TASKS}");
    }
}
