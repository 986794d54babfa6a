//! Long work that no packet and no other client waits for, such as putting a million flows into words: on a thread of its own
//! with a low priority, because the engines share the machine's cores with it. What the work is, is decided elsewhere.

use std::thread;

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

/// Gives this thread, which Linux knows by itself, a lower priority than it has, if that is not as low already.
fn stand_back() -> rustix::io::Result<()> {
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
    fn work_that_panics_comes_to_nothing_and_to_an_end() {
        assert!(begin(|| panic!("a defect")).blocking_recv().is_err());
    }
}
