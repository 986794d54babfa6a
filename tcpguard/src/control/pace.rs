//! What the clients of a socket that only read may take from others. What they ask for has engines and cores at work that packets
//! wait for: together they get a tenth of the time, one list at a time, and no more memory for lists than is bounded. What
//! changes something is not slowed down, and what a request may do is not decided here.

use std::cell::Cell;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until};

use super::protocol::Request;

/// Readers leave the daemon alone for so many times as long as it worked for them.
const REST: u32 = 9;
/// What they save up while they ask nothing, and the longest that they wait because of what others asked: a person should not
/// notice. Work beyond a tenth of it is long, and has a low priority.
const LONGEST: Duration = Duration::from_secs(1);
/// Bytes of lists that clients asked for and have not read, beyond which nobody gets another: two of a million flows.
const UNREAD: usize = 1 << 29;

/// What answering a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Toll {
    /// Nothing that counts: it changes something, or takes the right to.
    None,
    /// About the same whatever there is.
    Glance,
    /// The longer the more flows there are; the answer is short.
    Count,
    /// The longer the more there is, and so is the answer.
    List,
}

fn toll(request: &Request) -> Toll {
    match request {
        Request::Flows { .. } | Request::Filters { .. } => Toll::List,
        Request::Stats {} => Toll::Count,
        request if request.is_for_readers() => Toll::Glance,
        _ => Toll::None,
    }
}

/// The pace of one socket's clients.
pub(super) struct Pace {
    /// From when on there is time for them.
    due: Cell<Instant>,
    counting: Mutex<()>,
    listing: Mutex<()>,
    unread: Cell<usize>,
}

impl Pace {
    pub(super) fn new() -> Self {
        let unread = Cell::new(0);
        let now = Instant::now();
        let due = Cell::new(now.checked_sub(LONGEST).unwrap_or(now));
        Self { due, counting: Mutex::new(()), listing: Mutex::new(()), unread }
    }

    /// Waits until `request` may be answered, and has the time until the turn is dropped count. Why not, if clients have too
    /// much to read as it is.
    pub(super) async fn turn(&self, request: &Request) -> Result<Turn<'_>, String> {
        let alone = match toll(request) {
            Toll::None => return Ok(Turn { pace: None, began: Instant::now(), _alone: None }),
            Toll::Glance => None,
            Toll::Count => Some(self.counting.lock().await),
            Toll::List => Some(self.listing.lock().await),
        };
        if alone.is_some() && self.unread.get() > UNREAD {
            return Err(format!("clients have not read {} MB of lists yet", self.unread.get() >> 20));
        }
        // Whoever had the daemon work while this one slept moved it.
        while Instant::now() < self.due.get() {
            sleep_until(self.due.get()).await;
        }
        Ok(Turn { pace: Some(self), began: Instant::now(), _alone: alone })
    }

    /// Counts so many bytes as unread until what this returns is dropped.
    pub(super) fn unread(&self, bytes: usize) -> Unread<'_> {
        self.unread.set(self.unread.get() + bytes);
        Unread { pace: self, bytes }
    }
}

/// Time in which the daemon works for a client.
pub(super) struct Turn<'a> {
    pace: Option<&'a Pace>,
    began: Instant,
    _alone: Option<MutexGuard<'a, ()>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(pace) = self.pace {
            let now = Instant::now();
            pace.due.set(due_after(pace.due.get(), now, now - self.began));
        }
    }
}

impl Turn<'_> {
    /// Whether nothing but the answer comes of it.
    pub(super) fn only_reads(&self) -> bool {
        self.pace.is_some()
    }
}

/// Bytes that a client has to read.
pub(super) struct Unread<'a> {
    pace: &'a Pace,
    bytes: usize,
}

impl Drop for Unread<'_> {
    fn drop(&mut self) {
        self.pace.unread.set(self.pace.unread.get() - self.bytes);
    }
}

/// From when on there is time for readers again, after they took `took` until `now`.
fn due_after(due: Instant, now: Instant, took: Duration) -> Instant {
    let saved = due.max(now.checked_sub(LONGEST).unwrap_or(now));
    (saved + took.saturating_mul(1 + REST)).min(now + LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::Which;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn readers_get_a_tenth_of_the_time_and_wait_a_second_at_most() {
        let start = Instant::now() + 100 * LONGEST;
        // Lists of 20 ms asked for without a pause, by clients that were quiet before.
        let (mut now, mut due, mut worked) = (start, start - 50 * LONGEST, Duration::ZERO);
        while now < start + 20 * LONGEST {
            now = now.max(due) + 20 * MS;
            worked += 20 * MS;
            due = due_after(due, now, 20 * MS);
            assert!(due <= now + LONGEST);
        }
        let tenth = (now - start) / 10;
        assert!(
            worked >= tenth && worked <= tenth + LONGEST / 10 + 20 * MS,
            "{worked:?} of {:?}",
            now - start
        );
        assert_eq!(due_after(now, now, 100 * LONGEST), now + LONGEST);
    }

    #[test]
    fn a_question_now_and_then_waits_for_nothing() {
        let (now, due) = (Instant::now() + 2 * LONGEST, Instant::now());
        assert!(due_after(due, now, 100 * MS) <= now);
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(test)
    }

    fn flows() -> Request {
        Request::Flows { which: Which::default(), sort: None, limit: 1 }
    }

    /// Whether a request would have to wait.
    async fn waits(pace: &Pace, request: &Request) -> bool {
        tokio::time::timeout(MS, pace.turn(request)).await.is_err()
    }

    #[test]
    fn there_is_one_list_at_a_time_and_nothing_else_waits_for_it() {
        run(async {
            let pace = Pace::new();
            let list = pace.turn(&flows()).await.unwrap();
            assert!(waits(&pace, &flows()).await);
            assert!(waits(&pace, &Request::Filters { limit: 1 }).await);
            for request in [Request::Stats {}, Request::Status {}, Request::Confirm {}] {
                assert!(!waits(&pace, &request).await, "{request:?}");
            }
            drop(list);
            assert!(!waits(&pace, &flows()).await);
        });
    }

    #[test]
    fn who_changes_something_waits_for_no_reader() {
        run(async {
            let pace = Pace::new();
            pace.due.set(Instant::now() + LONGEST);
            assert!(waits(&pace, &Request::Status {}).await && waits(&pace, &flows()).await);
            assert!(!waits(&pace, &Request::Confirm {}).await);
            assert!(!waits(&pace, &Request::KeysRotate {}).await);
        });
    }

    #[test]
    fn what_clients_do_not_read_is_bounded() {
        run(async {
            let pace = Pace::new();
            let lists = [pace.unread(UNREAD / 2), pace.unread(UNREAD / 2), pace.unread(1)];
            let why = pace.turn(&flows()).await.err().unwrap();
            assert!(why.contains("not read 512 MB"), "{why}");
            assert!(pace.turn(&Request::Status {}).await.is_ok());
            drop(lists);
            assert!(pace.turn(&flows()).await.is_ok());
        });
    }
}
