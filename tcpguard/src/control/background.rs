//! Long work that no packet and no other client waits for, such as putting a million flows into words: on a thread of its own
//! with a low priority, because the engines share the machine's cores with it. What the work is, is decided elsewhere.

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{getpriority_process, setpriority_process};
use tokio::sync::oneshot;
use tracing::{debug, warn};

/// So nice it is (sched(7)): where an engine has its core to itself otherwise, it gets a tenth of that.
const NICE: i32 = 10;

/// Begins `work`. What comes of it; nothing when it panics, or when there is no thread to be had.
pub(super) fn begin<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (result, receiver) = oneshot::channel();
    let begun = thread::Builder::new().name("background".to_owned()).spawn(move || {
        if let Err(error) = stand_back() {
            debug!(%error, "long work has the priority of the rest");
        }
        // Nobody may wait for it any more.
        let _ = result.send(work());
    });
    if let Err(error) = begun {
        warn!(%error, "no thread for long work");
    }
    receiver
}

/// So long long work goes on at a stretch. An engine that wakes up meanwhile waits for no longer than that, whatever the kernel
/// thinks of a thread that it has just let run.
const TURN: Duration = Duration::from_millis(1);
/// The longest pause: a thread that was kept from running has had its pause already.
const PAUSE: Duration = Duration::from_millis(2);

/// Pauses in long work, as long as what they come after.
pub(super) struct Pauses(Instant);

impl Pauses {
    /// Work begins, for the first time or after it was waited for.
    pub(super) fn begin() -> Self {
        Self(Instant::now())
    }

    /// A pause, if it is time for one.
    pub(super) fn take(&mut self) {
        if let Some(pause) = pause_after(self.0.elapsed()) {
            thread::sleep(pause);
            *self = Self::begin();
        }
    }
}

fn pause_after(worked: Duration) -> Option<Duration> {
    (worked >= TURN).then(|| worked.min(PAUSE))
}

/// Gives this thread, which Linux knows by itself, a lower priority than it has, if that is not as low already.
///
/// # Errors
/// What the system said.
pub(crate) fn stand_back() -> rustix::io::Result<()> {
    match getpriority_process(None)? {
        nice if nice >= NICE => Ok(()),
        _ => setpriority_process(None, NICE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_work_alone_has_a_low_priority() {
        let before = getpriority_process(None).unwrap();
        let there = begin(|| getpriority_process(None).unwrap()).blocking_recv().unwrap();
        assert_eq!(there, before.max(NICE));
        assert_eq!(getpriority_process(None).unwrap(), before);
    }

    #[test]
    fn long_work_pauses_for_as_long_as_it_went_on_but_not_for_what_it_was_kept_from() {
        let ms = Duration::from_millis;
        assert_eq!(pause_after(TURN / 2), None);
        assert_eq!([1, 2, 30].map(|worked| pause_after(ms(worked))), [1, 2, 2].map(|pause| Some(ms(pause))));
        let mut pauses = Pauses(Instant::now() - ms(5));
        let before = Instant::now();
        pauses.take();
        assert!(before.elapsed() >= PAUSE && pauses.0 >= before + PAUSE);
    }

    #[test]
    fn work_that_panics_comes_to_nothing_and_to_an_end() {
        assert!(begin(|| panic!("a defect")).blocking_recv().is_err());
    }
}
