//! Clients beside the load, each of whose requests is accounted for: from connect() to the answer's last byte, or not served.
//! Few, and sent whether others were answered or not, so that what takes long keeps no request from being sent.

use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::sync::Mutex;
use tokio::task::{JoinSet, LocalSet};

use crate::client::{Connection, Page};
use crate::lab::Namespace;

/// Who has no right answer by then is not served. A client's kernel has repeated a lost SYN once, after a second.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// Requests a second.
pub(super) const RATE: u32 = 200;
/// Connections that requests take turns on where connections stay.
const KEPT: usize = 16;

/// Requests under way.
pub(super) struct Probes {
    thread: JoinHandle<Result<Attempts>>,
}

/// How long every request took, in order, microseconds. One that was refused, reset, wrongly answered or given up took
/// [`PATIENCE`], which is longer than any that was served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attempts {
    micros: Vec<u32>,
    failed: u64,
}

impl Probes {
    /// Sends requests for `time`: each on a connection of its own, or, with `keep`, on some that are opened first, which is no
    /// part of a request unless it has to be done again.
    pub(super) fn start(namespace: &Namespace, page: Page, keep: bool, time: Duration) -> Result<Self> {
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(LocalSet::new().block_on(&runtime, send(Rc::new(page), keep, time)))
        };
        Ok(Self { thread: namespace.spawn("probes", body)? })
    }

    /// Waits until all were sent, and each was answered or given up.
    pub(super) fn finish(self) -> Result<Attempts> {
        self.thread.join().map_err(|_| anyhow!("the probes' thread panicked"))?
    }
}

type Slot = Rc<Mutex<Option<Connection>>>;

async fn send(page: Rc<Page>, keep: bool, time: Duration) -> Attempts {
    let kept: Vec<Slot> = if keep { open(&page).await } else { Vec::new() };
    let interval = Duration::from_secs(1) / RATE;
    let count = (time.as_nanos() / interval.as_nanos()) as usize;
    let begin = Instant::now();
    let mut under_way = JoinSet::new();
    for (number, nth) in (0..count).zip(0..) {
        tokio::time::sleep_until((begin + interval * nth).into()).await;
        let slot = if keep { Rc::clone(&kept[number % kept.len()]) } else { Slot::default() };
        under_way.spawn_local(attempt(Rc::clone(&page), slot, keep));
    }
    Attempts::of(under_way.join_all().await)
}

async fn open(page: &Rc<Page>) -> Vec<Slot> {
    let mut under_way = JoinSet::new();
    for _ in 0..KEPT {
        let page = Rc::clone(page);
        under_way.spawn_local(async move {
            let opened = tokio::time::timeout(PATIENCE, page.connect()).await;
            Rc::new(Mutex::new(opened.ok().and_then(Result::ok)))
        });
    }
    under_way.join_all().await
}

/// How long it took, if it was served.
async fn attempt(page: Rc<Page>, slot: Slot, keep: bool) -> Option<Duration> {
    let start = Instant::now();
    let served = tokio::time::timeout(PATIENCE, async {
        let mut connection = slot.lock().await;
        // Whoever gives up takes the connection with it.
        let mut own = connection.take();
        let fetched = page.fetch(&mut own, keep).await;
        *connection = own.filter(|_| fetched.is_ok());
        fetched
    });
    let is_served = matches!(served.await, Ok(Ok(())));
    // The last byte may have come in time and been read too late.
    Some(start.elapsed()).filter(|time| is_served && *time < PATIENCE)
}

impl Attempts {
    pub(super) fn of(times: Vec<Option<Duration>>) -> Self {
        let failed = times.iter().filter(|time| time.is_none()).count() as u64;
        let micros = times.into_iter().map(|time| time.unwrap_or(PATIENCE).as_micros() as u32).collect();
        Self { micros, failed }.in_order()
    }

    /// All of them together.
    pub(super) fn sum<'a>(all: impl Iterator<Item = &'a Self>) -> Self {
        let mut sum = Self::default();
        for Self { micros, failed } in all {
            sum.micros.extend(micros);
            sum.failed += failed;
        }
        sum.in_order()
    }

    fn in_order(mut self) -> Self {
        self.micros.sort_unstable();
        self
    }

    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        self.micros.len() as u64
    }

    /// Those that were not served.
    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    /// How long so many in a thousand took at most, microseconds; not a number without any.
    pub(super) fn quantile(&self, per_mille: usize) -> f64 {
        let rank = (self.micros.len() * per_mille).div_ceil(1000);
        self.micros.get(rank.saturating_sub(1)).map_or(f64::NAN, |&micros| f64::from(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
    const A_MOMENT: Duration = Duration::from_millis(100);
    /// Of which so many requests are sent.
    const SENT: u64 = 20;

    /// Requests in a moment to a server on the loopback that does this with each connection.
    fn tried(keep: bool, serve: impl Fn(TcpStream) + Clone + Send + 'static) -> Attempts {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serve = serve.clone();
                std::thread::spawn(move || serve(stream));
            }
        });
        probe(server, keep)
    }

    fn probe(server: SocketAddr, keep: bool) -> Attempts {
        let page = Page { server, path: "/page".to_owned(), expected: b"ok\n"[..].into() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, send(Rc::new(page), keep, A_MOMENT))
    }

    fn answer(mut stream: TcpStream, answer: &[u8]) {
        while stream.read(&mut [0; 1024]).is_ok_and(|len| len > 0) && stream.write_all(answer).is_ok() {}
    }

    #[test]
    fn what_is_never_answered_has_failed_and_took_longest() {
        let held = |stream| {
            let _open: TcpStream = stream;
            std::thread::sleep(PATIENCE * 2);
        };
        for keep in [false, true] {
            let attempts = tried(keep, held);
            assert_eq!((attempts.count(), attempts.failed()), (SENT, SENT));
            assert_eq!(attempts.quantile(500), 3e6);
        }
    }

    #[test]
    fn what_is_refused_reset_or_answered_wrongly_took_longest_too() {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let failures = [
            probe(closed, false),
            tried(false, drop),
            tried(false, |stream| answer(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nno\n")),
            tried(false, |stream| answer(stream, b"HTTP/1.1 503 Busy\r\nContent-Length: 3\r\n\r\nok\n")),
        ];
        for attempts in failures {
            assert_eq!((attempts.count(), attempts.failed()), (SENT, SENT));
            assert_eq!(attempts.quantile(10), 3e6);
        }
    }

    #[test]
    fn what_is_answered_late_took_so_long() {
        const LATE: Duration = Duration::from_secs(1);
        let attempts = tried(false, |stream| {
            std::thread::sleep(LATE);
            answer(stream, ANSWER);
        });
        assert_eq!((attempts.count(), attempts.failed()), (SENT, 0));
        assert!((1e6..3e6).contains(&attempts.quantile(500)), "{attempts:?}");
    }

    #[test]
    fn kept_connections_take_turns_and_another_is_opened_for_one_that_ended() {
        let attempts = tried(true, |stream| answer(stream, ANSWER));
        assert_eq!((attempts.count(), attempts.failed()), (SENT, 0));
        // One request each, then the end.
        let attempts = tried(true, |mut stream| {
            let _asked = stream.read(&mut [0; 1024]);
            let _sent = stream.write_all(ANSWER);
        });
        assert_eq!((attempts.count(), attempts.failed()), (SENT, 0));
    }

    #[test]
    fn quantiles_are_of_all_and_those_that_failed_are_the_last() {
        let served = |ms| Some(Duration::from_millis(ms));
        let one = Attempts::of(vec![served(5), None, served(1), served(3)]);
        assert_eq!((one.quantile(500), one.quantile(750), one.quantile(751)), (3000.0, 5000.0, 3e6));
        let all = Attempts::sum([&one, &Attempts::of(vec![served(2); 4])].into_iter());
        assert_eq!((all.count(), all.failed()), (8, 1));
        assert_eq!((all.quantile(500), all.quantile(999)), (2000.0, 3e6));
        assert!(Attempts::default().quantile(500).is_nan());
    }
}
