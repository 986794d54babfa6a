//! The backends of one service: which of them is next, and which rest because they failed. All engines share it. It
//! connects to nothing and reads no clock.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::holds::{Held, Hold, Holds, PATIENCE};
use crate::config::{BackendAddr, Backends, Balance};

/// How long a backend that failed once is left alone, and how long at most.
const REST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The backends of a service.
#[derive(Debug)]
pub struct Pool {
    members: Box<[Arc<Member>]>,
    pub(super) config: Backends,
    /// Where the next round begins.
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Member {
    /// Connections it has, those that are being opened included.
    open: AtomicUsize,
    connected: AtomicU64,
    failed: AtomicU64,
    health: Mutex<Health>,
    holds: Arc<Holds>,
}

/// What is known of a backend without asking it.
#[derive(Clone, Copy, Debug, Default)]
struct Health {
    /// Attempts that failed in a row, those made during a rest not counted.
    failures: u32,
    /// It gets nothing before that, as long as there is another.
    rests_until: Option<Instant>,
    /// One connection tries whether it is back; the others wait for what becomes of it.
    on_trial: bool,
    /// The only client for whom it failed, where it sees their addresses: it may have something against that one, and rests
    /// for nobody else.
    sole: Option<IpAddr>,
}

/// A backend at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStats {
    /// Where it listens.
    pub addr: BackendAddr,
    /// Connections it has.
    pub open: usize,
    /// Connections it accepted, ever.
    pub connected: u64,
    /// Attempts to connect that failed.
    pub failed: u64,
    /// How long it will yet be left alone.
    pub rests_for: Option<Duration>,
    /// Those of its connections that one side holds up.
    pub held: Vec<Held>,
}

impl Pool {
    /// Backends that have not failed yet.
    pub fn new(config: Backends) -> Self {
        Self::patient(config, PATIENCE)
    }

    /// The same, of whose connections somebody is told when one side has held them up for longer than `patience`.
    pub(super) fn patient(config: Backends, patience: Duration) -> Self {
        let members = config.addrs.iter().map(|_| Arc::new(Member::new(patience))).collect();
        Self { members, config, turn: AtomicUsize::new(0) }
    }

    /// These backends for a service that has had `before`: those that stay keep their connections, their counts, and what is
    /// known of their health.
    pub(super) fn following(&self, before: &Self) -> Self {
        let stays = |addr| before.config.addrs.iter().position(|held| held == addr);
        let members = self.config.addrs.iter().zip(&self.members);
        let members =
            members.map(|(addr, new)| Arc::clone(stays(addr).map_or(new, |index| &before.members[index])));
        let turn = before.turn.load(Ordering::Relaxed);
        Self { members: members.collect(), config: self.config.clone(), turn: AtomicUsize::new(turn) }
    }

    /// The backend that a connection should try next, none of `tried`: one that rests only when no other is left. It will see
    /// `client`'s address, or none but ours.
    pub(super) fn pick(
        self: &Arc<Self>,
        client: Option<IpAddr>,
        tried: &[usize],
        now: Instant,
    ) -> Option<Lease> {
        let client = client.map(one_source);
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = self.members.len();
        let untried =
            || (0..count).map(|step| start.wrapping_add(step) % count).filter(|index| !tried.contains(index));
        let ready = untried().filter(|&index| !self.health(index).is_resting(client, now));
        let index = match self.config.balance {
            Balance::RoundRobin => ready.into_iter().next(),
            Balance::LeastConnections => {
                ready.into_iter().min_by_key(|&index| self.members[index].open.load(Ordering::Relaxed))
            }
        };
        let index = index.or_else(|| untried().min_by_key(|&index| self.health(index).rests_until))?;
        self.health(index).begin_trial(client, now, self.config.connect_timeout);
        self.members[index].open.fetch_add(1, Ordering::Relaxed);
        Some(Lease { pool: Arc::clone(self), index, client })
    }

    /// The backends, in the order of the configuration.
    pub fn stats(&self, now: Instant) -> impl Iterator<Item = BackendStats> {
        self.config.addrs.iter().zip(&self.members).enumerate().map(move |(index, (addr, member))| {
            BackendStats {
                addr: addr.clone(),
                open: member.open.load(Ordering::Relaxed),
                connected: member.connected.load(Ordering::Relaxed),
                failed: member.failed.load(Ordering::Relaxed),
                rests_for: self.health(index).rests_for(now),
                held: member.holds.stats(now),
            }
        })
    }

    /// Whose connections `hold` holds up, `limit` of each backend's at most, those first that have not moved for longest.
    pub fn held_up(&self, hold: Hold, limit: usize) -> impl Iterator<Item = SocketAddr> {
        self.members.iter().flat_map(move |member| member.holds.clients(hold, limit))
    }

    fn health(&self, index: usize) -> MutexGuard<'_, Health> {
        // Plain data, whole at any time.
        self.members[index].health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    fn new(patience: Duration) -> Self {
        Self {
            open: AtomicUsize::default(),
            connected: AtomicU64::default(),
            failed: AtomicU64::default(),
            health: Mutex::default(),
            holds: Arc::new(Holds::new(patience)),
        }
    }
}

/// What stands for one client: one user has many addresses of IPv6, as of a /64.
fn one_source(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(_) => addr,
        IpAddr::V6(addr) => IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() >> 64 << 64)),
    }
}

impl Health {
    /// For how long it will yet rest for everybody.
    fn rests_for(&self, now: Instant) -> Option<Duration> {
        let until = self.rests_until.filter(|_| self.sole.is_none())?;
        Some(until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Whether what is known of it is known for `client`.
    fn concerns(&self, client: Option<IpAddr>) -> bool {
        self.sole.is_none() || self.sole == client
    }

    fn is_resting(&self, client: Option<IpAddr>, now: Instant) -> bool {
        self.concerns(client) && self.rests_until.is_some_and(|until| now < until)
    }

    /// The first connection after a rest is a trial: only one client waits for a backend that may be gone for good.
    fn begin_trial(&mut self, client: Option<IpAddr>, now: Instant, limit: Duration) {
        if self.failures > 0 && self.concerns(client) && !self.is_resting(client, now) {
            self.rests_until = Some(now + limit);
            self.on_trial = true;
        }
    }

    /// What fails during a rest says nothing new, but that it fails for a second client.
    fn failed(&mut self, client: Option<IpAddr>, now: Instant) {
        let sole = match (self.failures, self.concerns(client)) {
            (0, _) => client,
            (_, true) => self.sole,
            (_, false) => {
                *self = Self::default();
                None
            }
        };
        if self.on_trial || !self.is_resting(client, now) {
            let rest = REST.0.saturating_mul(1 << self.failures.min(16)).min(REST.1);
            *self = Self {
                failures: self.failures.saturating_add(1),
                rests_until: Some(now + rest),
                on_trial: false,
                sole,
            };
        }
    }
}

/// A backend that one connection has, until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Pool>,
    pub(super) index: usize,
    /// Whose address the backend sees, if not ours.
    client: Option<IpAddr>,
}

impl Lease {
    pub(super) fn addr(&self) -> &BackendAddr {
        &self.pool.config.addrs[self.index]
    }

    /// Where its held up connections are counted.
    pub(super) fn holds(&self) -> Arc<Holds> {
        Arc::clone(&self.pool.members[self.index].holds)
    }

    /// What there is to say of the backend's connections that are held up as one has been for `age`, if somebody is to be
    /// told now.
    pub(super) fn complaint(&self, hold: Hold, age: Duration, now: Instant) -> Option<Held> {
        self.pool.members[self.index].holds.complaint(hold, age, now)
    }

    /// As [`Holds::reset_unread`].
    pub(super) fn reset_unread(&self, hold: Hold, now: Instant) -> Option<u64> {
        self.pool.members[self.index].holds.reset_unread(hold, now)
    }

    /// It accepted. Returns whether it had failed before, for more than one client.
    pub(super) fn connected(&self) -> bool {
        self.pool.members[self.index].connected.fetch_add(1, Ordering::Relaxed);
        let before = std::mem::take(&mut *self.pool.health(self.index));
        before.failures > 0 && before.sole.is_none()
    }

    /// It could not be asked, for want of something here. That says nothing of its health.
    pub(super) fn not_asked(&self) {
        self.pool.members[self.index].failed.fetch_add(1, Ordering::Relaxed);
    }

    /// It could not be had.
    pub(super) fn failed(&self, now: Instant) {
        self.pool.members[self.index].failed.fetch_add(1, Ordering::Relaxed);
        self.pool.health(self.index).failed(self.client, now);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.members[self.index].open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn pool(count: u16, balance: Balance) -> Arc<Pool> {
        let addrs = (1..=count).map(|port| BackendAddr::Tcp(([10, 0, 0, 1], port).into())).collect();
        Arc::new(Pool::new(Backends { balance, ..Backends::new(addrs).unwrap() }))
    }

    fn picks(pool: &Arc<Pool>, count: usize, now: Instant) -> Vec<usize> {
        (0..count).map(|_| pool.pick(None, &[], now).unwrap().index).collect()
    }

    #[test]
    fn round_robin_goes_round() {
        let pool = pool(3, Balance::RoundRobin);
        assert_eq!(picks(&pool, 6, Instant::now()), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn least_connections_fills_what_is_emptiest_and_takes_turns_among_equals() {
        let (pool, now) = (pool(3, Balance::LeastConnections), Instant::now());
        let mut held: Vec<_> = (0..6).map(|_| pool.pick(None, &[], now).unwrap()).collect();
        let open = || pool.stats(now).map(|backend| backend.open).collect::<Vec<_>>();
        assert_eq!(open(), [2, 2, 2]);
        held.retain(|lease| lease.index != 1);
        assert_eq!(open(), [2, 0, 2]);
        assert_eq!(pool.pick(None, &[], now).unwrap().index, 1);
        drop(held);
        assert_eq!(open(), [0, 0, 0]);
    }

    #[test]
    fn a_connection_tries_each_backend_once() {
        let (pool, now) = (pool(3, Balance::RoundRobin), Instant::now());
        let mut tried = Vec::new();
        while let Some(lease) = pool.pick(None, &tried, now) {
            lease.failed(now);
            tried.push(lease.index);
        }
        tried.sort_unstable();
        assert_eq!(tried, [0, 1, 2]);
    }

    #[test]
    fn a_backend_that_failed_rests_longer_each_time_and_is_tried_by_one_connection_at_a_time() {
        let (pool, start) = (pool(2, Balance::RoundRobin), Instant::now());
        pool.pick(None, &[1], start).unwrap().failed(start);
        // Attempts that were under way, and fail now, make the rest no longer.
        pool.pick(None, &[1], start).unwrap().failed(start);
        let rest = |now| pool.stats(now).next().unwrap().rests_for;
        assert_eq!(rest(start), Some(REST.0));
        assert_eq!(picks(&pool, 3, start + REST.0 / 2), [1, 1, 1]);
        let mut now = start;
        for doubled in 1..10 {
            now += rest(now).unwrap();
            assert_eq!(picks(&pool, 4, now).iter().filter(|&&index| index == 0).count(), 1, "one trial");
            let trial = pool.pick(None, &[1], now).unwrap();
            trial.failed(now + S);
            now += S;
            assert_eq!(rest(now), Some((REST.0 * (1 << doubled)).min(REST.1)));
        }
        now += REST.1;
        let trial = pool.pick(None, &[1], now).unwrap();
        assert!(trial.connected() && rest(now).is_none());
        assert!(picks(&pool, 4, now).iter().filter(|&&index| index == 0).count() == 2);
        trial.failed(now);
        assert_eq!(rest(now), Some(REST.0), "what it did before is forgotten");
    }

    #[test]
    fn the_only_backend_is_tried_although_it_rests() {
        let (pool, now) = (pool(1, Balance::RoundRobin), Instant::now());
        for _ in 0..100 {
            pool.pick(None, &[], now).unwrap().failed(now);
        }
        let backend = pool.stats(now).next().unwrap();
        assert_eq!((backend.rests_for, backend.failed), (Some(REST.0), 100));
        assert!(pool.pick(None, &[], now).is_some());
    }

    /// Whether a client is offered the first of two backends, which fails for it when it is.
    fn fails_for(pool: &Arc<Pool>, client: &str, now: Instant) -> bool {
        let client = Some(client.parse().unwrap());
        let leases = [(); 2].map(|()| pool.pick(client, &[], now).unwrap());
        let first = leases.iter().find(|lease| lease.index == 0);
        first.inspect(|lease| lease.failed(now)).is_some()
    }

    #[test]
    fn a_backend_that_fails_for_one_client_that_it_sees_rests_for_that_one_alone() {
        let (pool, start) = (pool(2, Balance::RoundRobin), Instant::now());
        let rests = |now| pool.stats(now).next().unwrap().rests_for;
        let serves = |client: &str, now| {
            let client = Some(client.parse().unwrap());
            let leases = [(); 2].map(|()| pool.pick(client, &[], now).unwrap());
            leases.iter().filter(|lease| lease.index == 0).count() == 1
        };
        let mut now = start;
        // Longer each time, for that one.
        for doubled in 0..10 {
            assert!(fails_for(&pool, "192.0.2.1", now));
            assert!(!fails_for(&pool, "192.0.2.1", now), "it is not left alone");
            assert!(serves("192.0.2.2", now) && rests(now).is_none(), "somebody else has to wait");
            now += (REST.0 * (1 << doubled)).min(REST.1);
        }
        // It fails for another one: then it is the backend's own doing.
        assert!(fails_for(&pool, "192.0.2.2", now));
        assert_eq!(rests(now), Some(REST.0));
        assert!(!serves("192.0.2.3", now));
        now += REST.0;
        let trial = pool.pick(Some([192, 0, 2, 1].into()), &[1], now).unwrap();
        assert!(trial.connected(), "it was away for everybody");
        // A success in between: what failed before it does not count.
        assert!(fails_for(&pool, "192.0.2.1", now));
        let other = pool.pick(Some([192, 0, 2, 2].into()), &[1], now).unwrap();
        assert!(!other.connected(), "it was never away for all");
        assert!(fails_for(&pool, "192.0.2.3", now));
        assert!(rests(now).is_none());
    }

    #[test]
    fn many_addresses_of_one_network_of_ipv6_are_one_client() {
        let (pool, now) = (pool(2, Balance::RoundRobin), Instant::now());
        let rests = || pool.stats(now).next().unwrap().rests_for;
        assert!(fails_for(&pool, "2001:db8::1", now));
        assert!(!fails_for(&pool, "2001:db8::ffff:2", now) && rests().is_none());
        assert!(fails_for(&pool, "2001:db8:0:1::1", now) && rests().is_some());
    }

    #[test]
    fn a_trial_whose_client_went_away_is_followed_by_another() {
        let (pool, start) = (pool(2, Balance::RoundRobin), Instant::now());
        pool.pick(None, &[1], start).unwrap().failed(start);
        let now = start + REST.0;
        drop(pool.pick(None, &[1], now).unwrap());
        assert_eq!(picks(&pool, 2, now), [1, 1]);
        let later = now + pool.config.connect_timeout;
        assert!(picks(&pool, 2, later).contains(&0));
    }
    #[test]
    fn backends_that_stay_when_a_service_changes_keep_what_is_known_of_them() {
        let (before, now) = (pool(2, Balance::RoundRobin), Instant::now());
        let (first, second) = (before.pick(None, &[1], now).unwrap(), before.pick(None, &[0], now).unwrap());
        assert!(!first.connected());
        second.failed(now);
        // The second comes first, the first goes, and two are new.
        let addrs = [2, 3, 4].map(|port| BackendAddr::Tcp(([10, 0, 0, 1], port).into())).to_vec();
        let after = Arc::new(Pool::new(Backends::new(addrs).unwrap()).following(&before));
        let known = || after.stats(now).map(|backend| (backend.open, backend.failed)).collect::<Vec<_>>();
        assert_eq!(known(), [(1, 1), (0, 0), (0, 0)]);
        assert_eq!(picks(&after, 4, now).iter().filter(|&&index| index == 0).count(), 0, "it rests");
        drop((first, second));
        assert_eq!(known()[0], (0, 1));
    }
}
