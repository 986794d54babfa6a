//! Connections that one side holds up: they are seen, told of, and let go.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::{BackendStream, Lab, backend, narrow_backend, serve, to};
use crate::config::{BackendAddr, Limits, Tunables};
use crate::dataplane::monotonic_ns;
use crate::engine::tests::world::{SERVICE, eventually};
use crate::engine::tests::{on_one_thread, pair, pattern, read_all};
use crate::service::Hold;
use crate::service::backend::Backend;
use crate::service::counters::ServiceCounters;
use crate::service::holds::{Holds, Lookout, PATIENCE};
use crate::service::relay::Relay;
use crate::service::scratch::Scratch;
use crate::stack;
use crate::telemetry::said::Said;

/// What is held up, by kind, with how many.
fn held(lab: &Lab) -> Vec<(Hold, usize)> {
    lab.backends()[0].held.iter().map(|held| (held.hold, held.count)).collect()
}

#[test]
fn a_backend_that_never_closes_is_seen_and_let_go_after_close_wait() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let tunables = Tunables { close_wait: Duration::from_secs(3), ..Tunables::default() };
        let lab = Lab::tuned(addr, tunables);
        let mut client = lab.client.connect().await;
        client.shutdown().await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        // As long as it says something it may: in all for longer than the tunable.
        for byte in 0..5 {
            sleep(Duration::from_secs(1)).await;
            server.write_u8(byte).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), byte);
        }
        eventually("seen", || held(&lab) == [(Hold::CloseWait, 1)]).await;
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!((lab.stats().backend_silent, held(&lab).len()), (1, 0));
        // It has read the client's end already; what it says now is to nobody.
        eventually("the backend is told", || server.try_write(b"x").is_err()).await;
    });
}

#[test]
fn who_holds_a_connection_up_is_told_apart() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let chunk = pattern(256 << 10);
        // The backend takes nothing.
        let mut client = lab.client.connect().await;
        let (server, _) = listener.accept().await.unwrap();
        while timeout(Duration::from_millis(500), client.write(&chunk)).await.is_ok() {}
        eventually("a backend that stalls", || held(&lab) == [(Hold::BackendStalled, 1)]).await;
        client.abort();
        eventually("gone", || held(&lab).is_empty()).await;
        drop(server);
        // The client takes nothing.
        let client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        while timeout(Duration::from_millis(500), server.write(&chunk)).await.is_ok() {}
        eventually("a client that stalls", || held(&lab) == [(Hold::ClientStalled, 1)]).await;
        client.abort();
        eventually("gone", || held(&lab).is_empty()).await;
        drop(server);
        // The backend has closed, the client has not.
        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        server.shutdown().await.unwrap();
        eventually("a client that stays", || held(&lab) == [(Hold::FinWait2, 1)]).await;
        client.shutdown().await.unwrap();
        eventually("gone", || held(&lab).is_empty()).await;
        // Nobody holds up a connection that merely rests.
        let _client = lab.client.connect().await;
        let _server = listener.accept().await.unwrap();
        sleep(Duration::from_secs(3)).await;
        assert_eq!(held(&lab), []);
    });
}

#[test]
fn whoever_holds_many_connections_up_is_named_in_one_warning() {
    const EACH: usize = 20;
    on_one_thread(async {
        let (said, _until_the_end) = Said::listen();
        let warnings = || {
            let all = said.text();
            let held_up = all.lines().filter(|line| line.contains("connections are held up"));
            held_up.map(str::to_owned).collect::<Vec<_>>()
        };
        let (listener, addr) = backend().await;
        let lab = Lab::patient(addr, Duration::from_secs(2));
        let mut open = Vec::new();
        for _ in 0..EACH {
            // The backend keeps a connection that its client has closed.
            let mut client = lab.client.connect().await;
            let (server, _) = listener.accept().await.unwrap();
            client.shutdown().await.unwrap();
            open.push((client, server));
            // A client keeps one that the backend has closed.
            let client = lab.client.connect().await;
            let (mut server, _) = listener.accept().await.unwrap();
            server.shutdown().await.unwrap();
            open.push((client, server));
        }
        eventually("seen", || held(&lab) == [(Hold::CloseWait, EACH), (Hold::FinWait2, EACH)]).await;
        eventually("told", || warnings().len() == 2).await;
        // Every connection is looked at again.
        sleep(Duration::from_millis(1500)).await;
        let mut warnings = warnings();
        warnings.sort_by_key(|line| line.contains("fin-wait-2"));
        assert_eq!(warnings.len(), 2, "{warnings:#?}");
        let backend = format!("backend={addr}");
        for (line, state, culprit) in [
            (&warnings[0], "state=\"close-wait\"", "the backend does not close"),
            (&warnings[1], "state=\"fin-wait-2\"", "clients do not close"),
        ] {
            let parts = ["WARN", "service=10.0.0.1:80", backend.as_str(), state, culprit];
            assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        }
        // Only where clients are to blame one of them is named.
        let names_a_client = |line: &String| line.contains("client=10.0.0.2:");
        assert!(!names_a_client(&warnings[0]) && names_a_client(&warnings[1]), "{warnings:#?}");
    });
}

/// Gives the service with this id tunables of its own.
async fn tune_service(lab: &Lab, service: u32, own: Tunables) {
    lab.guard.handle.set_service_tunables([(service, Arc::new(own))].into()).await.unwrap();
}

#[test]
fn a_service_waits_for_silent_clients_as_long_as_its_own_fin_wait_2_says() {
    on_one_thread(async {
        let own = Tunables { fin_wait_2: Duration::from_millis(100), ..Tunables::default() };
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        tune_service(&lab, SERVICE + 1, own.clone()).await;
        server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await.unwrap(), b"");
        let early = timeout(Duration::from_secs(1), server.read_u8()).await;
        assert!(early.is_err(), "let go by another service's tunable");
        // It holds at once, for a client that is silent already.
        tune_service(&lab, SERVICE, own).await;
        let end =
            timeout(Duration::from_secs(5), server.read_u8()).await.expect("its own tunable is ignored");
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!((lab.stats().client_silent, lab.stats().finished), (1, 0));
    });
}

#[test]
fn a_service_waits_for_silent_backends_as_long_as_its_own_close_wait_says() {
    on_one_thread(async {
        let own = Tunables { close_wait: Duration::from_secs(1), ..Tunables::default() };
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (server, _) = listener.accept().await.unwrap();
        tune_service(&lab, SERVICE + 1, own.clone()).await;
        client.shutdown().await.unwrap();
        // Held up for longer than what another service has for itself.
        eventually("seen", || held(&lab) == [(Hold::CloseWait, 1)]).await;
        let early = timeout(Duration::from_millis(1500), client.read_u8()).await;
        assert!(early.is_err(), "let go by another service's tunable");
        tune_service(&lab, SERVICE, own).await;
        let end =
            timeout(Duration::from_secs(5), client.read_u8()).await.expect("its own tunable is ignored");
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!((lab.stats().backend_silent, held(&lab).len()), (1, 0));
        drop(server);
    });
}

/// It moved nothing any more between backend and stack, and so it was held for one that takes nothing.
#[test]
fn a_client_that_is_slow_to_take_the_end_of_an_answer_holds_nothing_up() {
    on_one_thread(async {
        const PART: usize = 64 << 10;
        // More than the client's receive buffer, and no more than that and the guard's send buffer.
        const ANSWER: usize = 980 << 10;
        let (listener, addr) = backend().await;
        serve(listener, async |mut stream: BackendStream| stream.write_all(&pattern(ANSWER)).await.unwrap());
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (mut received, mut part) = (0, vec![0; PART]);
        let mut last_words = 0;
        while received < ANSWER {
            client.read_exact(&mut part[..PART.min(ANSWER - received)]).await.unwrap();
            received += PART.min(ANSWER - received);
            sleep(Duration::from_millis(500)).await;
            let flow = lab.guard.handle.flows(|_| true, 1).await.unwrap()[0];
            last_words += u32::from(flow.state == stack::State::FinWait1);
            assert!(
                !held(&lab).iter().any(|(hold, _)| *hold == Hold::ClientStalled),
                "after {received} bytes"
            );
        }
        // Long enough for one that takes nothing to be seen.
        assert!(last_words > 4, "{last_words} looks");
    });
}

/// The client's end was behind what the backend did not take: nobody saw it, and both stayed for ever.
#[test]
fn a_backend_that_takes_nothing_is_let_go_close_wait_after_its_clients_end() {
    on_one_thread(async {
        let close_wait = Duration::from_secs(2);
        let (listener, addr) = narrow_backend().await;
        let lab = Lab::tuned(addr, Tunables { close_wait, ..Tunables::default() });
        for (before, half_closed) in [false, true].into_iter().enumerate() {
            let relayed = lab.stats().bytes_to_backend;
            let mut client = lab.client.connect().await;
            let (mut server, _) = listener.accept().await.unwrap();
            if half_closed {
                server.shutdown().await.unwrap();
                assert_eq!(read_all(&mut client).await.unwrap(), b"");
            }
            fill(&mut client, || lab.stats().bytes_to_backend - relayed).await;
            eventually("a backend that stalls", || held(&lab) == [(Hold::BackendStalled, 1)]).await;
            // That was before the client's end.
            sleep(close_wait).await;
            assert_eq!(held(&lab), [(Hold::BackendStalled, 1)]);
            let closed = Instant::now();
            client.shutdown().await.unwrap();
            eventually("seen", || held(&lab) == [(Hold::CloseWait, 1)]).await;
            eventually("let go", || lab.stats().backend_silent == before as u64 + 1).await;
            assert!(closed.elapsed() >= close_wait, "{:?}", closed.elapsed());
            if !half_closed {
                assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            }
            assert_eq!((held(&lab), lab.backends()[0].open), (vec![], 0));
        }
        eventually("nothing left", || lab.guard.net.with(|state| state.stack.connection_count()) == 0).await;
    });
}

#[test]
fn a_backend_that_takes_nothing_of_an_open_client_is_let_go_after_zero_window() {
    on_one_thread(async {
        let tunables =
            |seconds| Arc::new(Tunables { zero_window: Duration::from_secs(seconds), ..Tunables::default() });
        let (listener, addr) = narrow_backend().await;
        let lab = Lab::new(addr);
        for (before, half_closed) in [false, true].into_iter().enumerate() {
            lab.guard.handle.set_tunables(tunables(0)).await.unwrap();
            let relayed = lab.stats().bytes_to_backend;
            let mut client = lab.client.connect().await;
            let (mut server, _) = listener.accept().await.unwrap();
            if half_closed {
                server.shutdown().await.unwrap();
                assert_eq!(read_all(&mut client).await.unwrap(), b"");
            }
            fill(&mut client, || lab.stats().bytes_to_backend - relayed).await;
            eventually("seen", || held(&lab) == [(Hold::BackendStalled, 1)]).await;
            sleep(Duration::from_secs(2)).await;
            assert_eq!(lab.stats().backend_silent, before as u64, "0 lets it for ever");
            // It holds at once, for one that is stalled already.
            lab.guard.handle.set_tunables(tunables(2)).await.unwrap();
            eventually("let go", || lab.stats().backend_silent == before as u64 + 1).await;
            let end = client.write_all(&pattern(8 << 20)).await.unwrap_err();
            assert_eq!(end.kind(), ErrorKind::ConnectionReset);
            assert_eq!((held(&lab), lab.backends()[0].open), (vec![], 0));
        }
    });
}

fn impatient() -> Tunables {
    Tunables { stall_time: Duration::from_secs(1), ..Tunables::default() }
}

/// Says more than a client that does not read takes, but no more than the backend's own socket, which the relay reads, holds
/// then: whatever `server` does next is seen there. Returns the bytes; `relayed` counts those that the relay has read.
async fn fill(server: &mut (impl AsyncWrite + Unpin), relayed: impl Fn() -> u64) -> Vec<u8> {
    let (mut said, bytes) = (Vec::new(), pattern(8 << 20));
    for piece in bytes.chunks(8 << 10) {
        server.write_all(piece).await.unwrap();
        said.extend_from_slice(piece);
        let caught_up = async {
            while relayed() < said.len() as u64 {
                sleep(Duration::from_millis(2)).await;
            }
        };
        if timeout(Duration::from_millis(300), caught_up).await.is_err() {
            return said;
        }
    }
    panic!("nothing stops the backend");
}

/// The window was closed, so the relay did not read, and so it never learnt of the reset.
#[test]
fn a_backend_that_resets_while_the_clients_window_is_closed_is_noticed() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::tuned(addr, impatient());
        let open = || lab.guard.net.with(|state| state.stack.connection_count());
        let stalled = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        fill(&mut server, || lab.stats().bytes_to_client).await;
        server.set_zero_linger().unwrap();
        drop(server);
        eventually("let go", || lab.stats().backend_failed == 1 && open() == 0).await;
        assert_eq!((held(&lab), lab.backends()[0].open), (vec![], 0));
        drop(stalled);
        // One that begins to read in time gets what had come before the reset.
        let before = lab.stats().bytes_to_client;
        let mut slow = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        let said = fill(&mut server, || lab.stats().bytes_to_client - before).await;
        server.set_zero_linger().unwrap();
        drop(server);
        let mut received = vec![0; said.len()];
        slow.read_exact(&mut received).await.unwrap();
        assert!(received == said);
        assert_eq!(slow.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        eventually("counted", || lab.stats().backend_failed == 2).await;
    });
}

#[test]
fn a_client_that_was_stalled_for_stall_time_when_the_backend_resets_is_let_go_at_once() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let stall_time = Duration::from_secs(5);
        let lab = Lab::tuned(addr, Tunables { stall_time, ..Tunables::default() });
        let _stalled = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        fill(&mut server, || lab.stats().bytes_to_client).await;
        sleep(stall_time).await;
        assert_eq!(lab.stats().backend_failed, 0, "a client may be stalled as long as its backend is there");
        server.set_zero_linger().unwrap();
        drop(server);
        // The next look, not another stall-time.
        let gone = eventually("let go", || lab.stats().backend_failed == 1);
        timeout(stall_time - Duration::from_secs(1), gone).await.expect("it is waited for anew");
    });
}

#[test]
fn a_backend_that_closes_while_the_clients_window_is_closed_lets_stall_time_begin() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::tuned(addr, impatient());
        let open = || lab.guard.net.with(|state| state.stack.connection_count());
        // One that begins to read in time gets everything.
        let mut slow = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        let said = fill(&mut server, || lab.stats().bytes_to_client).await;
        sleep(Duration::from_secs(2)).await;
        drop(server);
        assert!(read_all(&mut slow).await.unwrap() == said);
        drop(slow);
        eventually("the slow one's end", || lab.stats().finished == 1).await;
        let before = lab.stats().bytes_to_client;
        let _stalled = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        fill(&mut server, || lab.stats().bytes_to_client - before).await;
        drop(server);
        eventually("let go", || lab.stats().client_silent == 1 && open() == 0).await;
        assert_eq!((held(&lab), lab.backends()[0].open), (vec![], 0));
    });
}

#[test]
fn a_backend_behind_a_unix_socket_that_closes_while_the_clients_window_is_closed_is_noticed() {
    on_one_thread(async {
        let path = std::env::temp_dir().join(format!("tcpguard-stuck-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let destination = to([BackendAddr::Unix(path.clone())]);
        let lab = Lab::with(&destination, Limits::default(), impatient());
        let _stalled = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        fill(&mut server, || lab.stats().bytes_to_client).await;
        drop(server);
        eventually("let go", || lab.stats().client_silent == 1).await;
        std::fs::remove_file(path).unwrap();
    });
}

/// What the client had said stayed in the stack's memory, and its window closed.
#[test]
fn what_a_client_says_to_a_backend_that_is_gone_keeps_no_memory() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        fill(&mut server, || lab.stats().bytes_to_client).await;
        let chunk = pattern(256 << 10);
        while timeout(Duration::from_millis(300), client.write(&chunk)).await.is_ok() {}
        let unread = async || lab.guard.handle.flows(|_| true, 2).await.unwrap()[0].recv_queued;
        assert!(unread().await > 0);
        drop(server);
        let emptied = async {
            while unread().await > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(10), emptied).await.expect("nobody reads it");
        assert_eq!(lab.stats().backend_failed, 0, "the client has time to take the answer");
    });
}

/// It was counted as if the client had failed.
#[test]
fn who_is_reset_because_its_backend_does_not_read_is_counted_as_that() {
    on_one_thread(async {
        let (said, _until_the_end) = Said::listen();
        let (listener, addr) = backend().await;
        let lab = Lab::tuned(addr, impatient());
        lab.guard.net.with(|state| {
            let config = stack::Config { recv_pool: 1 << 20, ..state.stack.config().clone() };
            state.stack.set_config(stack::Instant(monotonic_ns()), config);
        });
        let chunk = pattern(256 << 10);
        let mut open = Vec::new();
        while open.len() < 8 {
            let mut client = lab.client.connect().await;
            let (server, _) = listener.accept().await.unwrap();
            while timeout(Duration::from_millis(200), client.write(&chunk)).await.is_ok() {}
            open.push((client, server));
        }
        eventually("reset", || lab.guard.net.with(|state| state.stack.counters().unread_reset) > 0).await;
        eventually("counted", || lab.stats().unread_reset > 0).await;
        let resets = lab.guard.net.with(|state| state.stack.counters().unread_reset);
        eventually("each", || lab.stats().unread_reset >= resets).await;
        assert_eq!(lab.stats().client_failed, 0);
        assert!(said.text().contains("unread-reset: the backend takes nothing"), "{}", said.text());
    });
}

#[test]
fn nothing_spins_while_a_client_is_stalled_whatever_its_backend_does() {
    on_one_thread(async {
        for end in ["none", "fin", "reset"] {
            let (_world, guard, client) = pair();
            let services = guard.listen();
            let _stalled = client.connect().await;
            let (stream, _) = services.accept().await;
            let (listener, addr) = backend().await;
            let far = Backend::Tcp(BackendStream::connect(addr).await.unwrap());
            let (mut server, _) = listener.accept().await.unwrap();
            let mut relay = Relay::new(stream, far, Arc::new(ServiceCounters::default()), Scratch::default());
            let mut lookout = Lookout::new(Arc::new(Holds::new(PATIENCE)), relay.client_addr());
            let (polls, relayed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
            let (counted, moved) = (Rc::clone(&polls), Rc::clone(&relayed));
            let task = spawn_local(poll_fn(move |cx| {
                counted.set(counted.get() + 1);
                let end = relay.poll(cx);
                moved.set(relay.moved());
                while lookout.poll(cx, relay.hold(), || relay.come()).is_ready() {}
                end
            }));
            fill(&mut server, || relayed.get()).await;
            let mut server = Some(server);
            match end {
                "none" => {}
                "fin" => drop(server.take()),
                _ => server.take().unwrap().set_zero_linger().unwrap(),
            }
            sleep(Duration::from_millis(1500)).await;
            let before = polls.get();
            sleep(Duration::from_secs(2)).await;
            let polls = polls.get() - before;
            // Those of the timers: of the relay's and of the lookout's. Probes of the window are the stack's affair.
            assert!((1..=20).contains(&polls), "{end}: {polls} polls");
            assert!(!task.is_finished(), "{end}");
            task.abort();
        }
    });
}
