//! What the clients of a socket that only read may take from others. What they ask for has engines and cores at work that packets
//! wait for: together they get a tenth of the time, one list at a time, and no more memory for lists than is bounded. What
//! changes something is not slowed down, and what a request may do is not decided here. What costs a client nothing, to come
//! and to be refused, each user may do so often and no more.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
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

/// What coming, or being refused, costs a user: five hundred a second, and as many saved up in [`LONGEST`].
const KNOCK: Duration = Duration::from_millis(2);
/// Who comes may wait this long for a turn, and is turned away if there is none by then: whoever waits has a place.
const IN_TURN: Duration = Duration::from_millis(20);
/// Users remembered before those are forgotten who have saved up all they can.
const USERS: usize = 64;

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

/// What each user may have of a socket, whatever others do.
pub(super) struct Crowd {
    users: RefCell<HashMap<u32, User>>,
    /// Places that one user may have at once.
    places: usize,
    /// Who is not counted.
    exempt: Option<u32>,
}

struct User {
    due: Instant,
    places: usize,
}

impl Crowd {
    /// Nobody so far. One user may have three quarters of `places`, but for the one that is `exempt`.
    pub(super) fn new(places: usize, exempt: Option<u32>) -> Self {
        Self { users: RefCell::default(), places: (places * 3 / 4).max(1), exempt }
    }

    /// From when on a client of `user` that comes `now` may be served, and its place until then and after; `None` turns it
    /// away. Either way it has come.
    pub(super) fn enter(self: &Rc<Self>, user: u32, now: Instant) -> Option<(Instant, Place)> {
        let place = Place { crowd: Rc::clone(self), user };
        if self.exempt == Some(user) {
            return Some((now, place));
        }
        let mut users = self.users.borrow_mut();
        if users.len() >= USERS {
            users.retain(|_, user| user.places > 0 || user.due + LONGEST > now);
        }
        let known = users.entry(user).or_insert(User { due: rested(now), places: 0 });
        let due = known.due;
        known.due = knocked(due, now);
        let is_full = known.places >= self.places || due > now + IN_TURN;
        known.places += 1;
        drop(users);
        // Gives its place back.
        if is_full { None } else { Some((due.max(now), place)) }
    }

    /// From when on a client of `user` that was refused something `now` may hear of it.
    pub(super) fn refused(&self, user: u32, now: Instant) -> Instant {
        match self.users.borrow_mut().get_mut(&user) {
            Some(known) => {
                let due = known.due;
                known.due = knocked(due, now);
                due.max(now)
            }
            None => now,
        }
    }
}

/// A client's place among its user's.
pub(super) struct Place {
    crowd: Rc<Crowd>,
    user: u32,
}

impl Place {
    /// Waits until the client may hear that it is refused something.
    pub(super) async fn refused(&self) {
        sleep_until(self.crowd.refused(self.user, Instant::now())).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(known) = self.crowd.users.borrow_mut().get_mut(&self.user) {
            known.places -= 1;
        }
    }
}

/// From when on one may come who has saved up all that is possible.
fn rested(now: Instant) -> Instant {
    now.checked_sub(LONGEST).unwrap_or(now)
}

fn knocked(due: Instant, now: Instant) -> Instant {
    (due.max(rested(now)) + KNOCK).min(now + LONGEST)
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

    #[test]
    fn who_comes_without_a_pause_is_served_so_often_and_takes_nothing_of_others() {
        let crowd = Rc::new(Crowd::new(32, Some(0)));
        let start = Instant::now() + 10 * LONGEST;
        let (mut served, mut last) = (0, start);
        for knock in 0..100_000 {
            let now = start + knock * (MS / 10);
            if let Some((due, _)) = crowd.enter(1000, now) {
                assert!(due <= now + IN_TURN);
                (served, last) = (served + 1, now);
            }
            // Root, and somebody else now and then.
            assert!(crowd.enter(0, now).is_some_and(|(due, _)| due == now));
            if knock % 1000 == 0 {
                assert!(crowd.enter(1001, now).is_some_and(|(due, _)| due == now));
            }
        }
        let most = (last - start + LONGEST).as_millis() / KNOCK.as_millis() + 20;
        assert!(served >= 100 && u128::from(served as u32) <= most, "{served} of at most {most}");
    }

    #[test]
    fn who_is_refused_hears_of_it_in_its_turn() {
        let crowd = Rc::new(Crowd::new(32, Some(0)));
        let now = Instant::now() + 10 * LONGEST;
        let _places = [crowd.enter(1000, now).unwrap(), crowd.enter(0, now).unwrap()];
        let saved = (LONGEST.as_millis() / KNOCK.as_millis()) as u32;
        for _ in 0..saved - 1 {
            assert_eq!(crowd.refused(1000, now), now);
        }
        assert_eq!(crowd.refused(1000, now), now);
        assert_eq!(crowd.refused(1000, now), now + KNOCK);
        assert_eq!(crowd.refused(0, now), now);
    }

    #[test]
    fn one_user_cannot_have_all_places() {
        let crowd = Rc::new(Crowd::new(32, Some(0)));
        let now = Instant::now() + 10 * LONGEST;
        let mut taken: Vec<_> = (0..24).map(|_| crowd.enter(1000, now).unwrap()).collect();
        assert!(crowd.enter(1000, now).is_none());
        assert!(crowd.enter(1001, now).is_some());
        taken.pop();
        assert!(crowd.enter(1000, now).is_some());
        drop(taken);
        let later = now + 3 * LONGEST;
        for user in 2000..2000 + 10 * USERS as u32 {
            drop(crowd.enter(user, later + (user - 2000) * LONGEST));
        }
        assert!(crowd.users.borrow().len() <= USERS, "those who came long ago are forgotten");
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
