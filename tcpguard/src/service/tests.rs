//! The proxy between a client on a stack in memory and a backend on a real kernel socket.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener as BackendListener, TcpStream as BackendStream};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::{BackendStats, Far, Hold, Purpose, Quota, ServiceSpec, ServiceStats, Services};
use crate::config::{
    BackendAddr, Backends, Balance, Destination, Limits, Overrides, ProxyProtocol, Responder, Service,
    ServiceMode, Tunables,
};
use crate::engine::tests::world::{Host, PORT, SERVICE, World, eventually};
use crate::engine::tests::{exchange, on_one_thread, pair_with, pattern, read_all};
use crate::starved;

struct Lab {
    _world: Rc<World>,
    guard: Host,
    client: Host,
    services: Services,
    descriptors: Quota,
}

impl Lab {
    /// A proxy to `backend`.
    fn new(backend: SocketAddr) -> Self {
        Self::tuned(backend, Tunables::default())
    }

    fn tuned(backend: SocketAddr, tunables: Tunables) -> Self {
        Self::with(&to([BackendAddr::Tcp(backend)]), Limits::default(), tunables)
    }

    fn responder(responder: Responder) -> Self {
        Self::limited(responder, Limits::default())
    }

    fn limited(responder: Responder, limits: Limits) -> Self {
        Self::with(&Destination::Responder(responder), limits, Tunables::default())
    }

    /// A proxy to all of them.
    fn several(backends: Backends) -> Self {
        Self::with(&Destination::Backends(backends), Limits::default(), Tunables::default())
    }

    fn with(destination: &Destination, limits: Limits, tunables: Tunables) -> Self {
        let (_world, guard, client) = pair_with(tunables);
        let listen = SocketAddr::from(([10, 0, 0, 1], PORT));
        let service = Service {
            listen,
            mode: ServiceMode::default(),
            dry_run: false,
            destination: Some(destination.clone()),
            limits,
            tunables: Overrides::default(),
        };
        let descriptors = Quota::default();
        let services = Services::new(ServiceSpec::new(SERVICE, &service, destination, None))
            .sharing(descriptors.clone());
        services.start(&guard.net).unwrap();
        Self { _world, guard, client, services, descriptors }
    }

    fn stats(&self) -> ServiceStats {
        self.services.stats()[0].1
    }

    fn backends(&self) -> Vec<BackendStats> {
        let Purpose::Relay(Far::Backends(pool)) = &self.services.specs()[0].purpose else {
            panic!("no backends")
        };
        pool.stats(Instant::now()).collect()
    }
}

async fn backend() -> (BackendListener, SocketAddr) {
    let listener = BackendListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

fn several(addrs: impl IntoIterator<Item = BackendAddr>) -> Backends {
    Backends::new(addrs.into_iter().collect()).unwrap()
}

fn to(addrs: impl IntoIterator<Item = BackendAddr>) -> Destination {
    Destination::Backends(several(addrs))
}

/// Accepts for ever, and hands every connection to `serve`.
fn serve<F: Future<Output = ()> + 'static>(
    listener: BackendListener,
    serve: impl Fn(BackendStream) -> F + 'static,
) {
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn_local(serve(stream));
        }
    });
}

async fn echo(mut stream: BackendStream) {
    let (mut reader, mut writer) = stream.split();
    tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    writer.shutdown().await.unwrap();
}

/// An address where nobody listens.
async fn nowhere() -> SocketAddr {
    backend().await.1
}

#[test]
fn megabytes_pass_through_the_proxy_and_back_unchanged() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        serve(listener, echo);
        let lab = Lab::new(addr);
        let sent = pattern(8 << 20);
        let received = exchange(lab.client.connect().await, &sent).await;
        assert!(received == sent, "{} of {} bytes, or wrong ones", received.len(), sent.len());
        eventually("finished", || lab.stats().finished == 1).await;
        let stats = lab.stats();
        assert_eq!((stats.accepted, stats.connected), (1, 1));
        assert_eq!((stats.bytes_to_backend, stats.bytes_to_client), (8 << 20, 8 << 20));
    });
}

#[test]
fn half_closes_pass_through_in_both_directions() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        // The client ends first.
        let mut client = lab.client.connect().await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        server.write_all(&pattern(2 << 20)).await.unwrap();
        drop(server);
        assert!(read_all(&mut client).await.unwrap() == pattern(2 << 20));
        // The server ends first.
        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"greeting").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await.unwrap(), b"greeting");
        client.write_all(&pattern(2 << 20)).await.unwrap();
        client.shutdown().await.unwrap();
        let mut received = Vec::new();
        server.read_to_end(&mut received).await.unwrap();
        assert!(received == pattern(2 << 20));
        eventually("finished", || lab.stats().finished == 2).await;
    });
}

#[test]
fn a_backend_that_refuses_is_a_reset_and_a_cause() {
    on_one_thread(async {
        let lab = Lab::new(nowhere().await);
        for _ in 0..3 {
            let mut client = lab.client.connect().await;
            assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!((lab.stats().accepted, lab.stats().backend_refused), (3, 3));
        assert_eq!(lab.guard.handle.stats().await.unwrap().connections, 0);
    });
}

#[test]
fn a_backend_that_does_not_read_stops_the_client_and_nothing_piles_up() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (server, _) = listener.accept().await.unwrap();
        let chunk = pattern(256 << 10);
        let mut sent = 0;
        while let Ok(written) = timeout(Duration::from_secs(1), client.write(&chunk)).await {
            sent += written.unwrap();
            // The kernel's socket buffers hold a few megabytes of it.
            assert!(sent < 64 << 20, "nothing stops the client");
        }
        // It starts to read: everything arrives.
        let reader = spawn_local(async move {
            let (mut server, mut received) = (server, Vec::new());
            server.read_to_end(&mut received).await.unwrap();
            received.len()
        });
        client.shutdown().await.unwrap();
        assert_eq!(reader.await.unwrap(), sent);
    });
}

#[test]
fn a_client_that_does_not_read_stops_the_backend() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        let chunk = pattern(256 << 10);
        let mut sent = 0;
        while let Ok(written) = timeout(Duration::from_secs(1), server.write(&chunk)).await {
            sent += written.unwrap();
            assert!(sent < 64 << 20, "nothing stops the backend");
        }
        drop(server);
        assert_eq!(read_all(&mut client).await.unwrap().len(), sent);
    });
}

#[test]
fn a_reset_on_either_side_is_a_reset_on_the_other() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
        client.abort();
        assert_eq!(server.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        eventually("counted", || lab.stats().client_failed == 1).await;

        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'x');
        server.set_zero_linger().unwrap();
        drop(server);
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        eventually("counted", || lab.stats().backend_failed == 1).await;
    });
}

#[test]
fn a_client_that_resets_while_the_backend_takes_nothing_is_noticed() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (_server, _) = listener.accept().await.unwrap();
        let chunk = pattern(256 << 10);
        while timeout(Duration::from_millis(500), client.write(&chunk)).await.is_ok() {}
        client.abort();
        eventually("noticed", || lab.stats().client_failed == 1).await;
    });
}

#[test]
fn an_answer_that_comes_before_the_question_is_read_still_arrives() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let (mut reader, mut writer) = tokio::io::split(lab.client.connect().await);
        let (mut server, _) = listener.accept().await.unwrap();
        let upload = spawn_local(async move {
            let chunk = pattern(64 << 10);
            while writer.write_all(&chunk).await.is_ok() {}
        });
        server.read_exact(&mut [0; 1000]).await.unwrap();
        server.write_all(b"413 too large").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = [0; 13];
        reader.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"413 too large");
        drop(server);
        upload.await.unwrap();
        eventually("counted", || lab.stats().backend_failed == 1).await;
    });
}

#[test]
fn an_answer_sent_before_a_backends_reset_still_arrives() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        client.write_all(&pattern(1000)).await.unwrap();
        server.read_exact(&mut [0; 10]).await.unwrap();
        // More than the stack sends at once; the rest of the question is unread, so the kernel resets.
        let answer = pattern(32 << 10);
        server.write_all(&answer).await.unwrap();
        drop(server);
        let mut received = vec![0; answer.len()];
        client.read_exact(&mut received).await.unwrap();
        assert!(received == answer);
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        eventually("counted", || lab.stats().backend_failed == 1).await;
    });
}

#[test]
fn a_backends_reset_never_looks_like_a_clean_end() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let (mut reader, mut writer) = tokio::io::split(lab.client.connect().await);
        let (mut server, _) = listener.accept().await.unwrap();
        // A task of its own, so that it sees a FIN before anything that may follow.
        let reading = spawn_local(async move {
            let mut received = Vec::new();
            let end = reader.read_to_end(&mut received).await;
            (received, end)
        });
        // The backend takes no more, so the next thing the relay tries is a write: that is what meets the reset.
        let chunk = pattern(256 << 10);
        while timeout(Duration::from_millis(500), writer.write(&chunk)).await.is_ok() {}
        server.write_all(b"half an ans").await.unwrap();
        drop(server);
        let (received, end) = reading.await.unwrap();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(received, b"half an ans");
        eventually("counted", || lab.stats().backend_failed == 1).await;
    });
}

#[test]
fn a_client_that_never_closes_after_the_servers_fin_is_let_go_after_fin_wait_2() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let fin_wait_2 = Duration::from_secs(1);
        let lab = Lab::tuned(addr, Tunables { fin_wait_2, ..Tunables::default() });
        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"bye").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await.unwrap(), b"bye");
        // As long as it sends it may: in all for longer than the tunable.
        for byte in 0..5 {
            sleep(Duration::from_millis(300)).await;
            client.write_u8(byte).await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), byte);
        }
        let silent = Instant::now();
        assert_eq!(server.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(silent.elapsed() >= fin_wait_2 - Duration::from_millis(50), "{:?}", silent.elapsed());
        assert_eq!((lab.stats().client_silent, lab.stats().finished), (1, 0));
        eventually("reset", || lab.guard.net.with(|state| state.stack.connection_count()) == 0).await;
        eventually("told", || client.poll_failed(&mut Context::from_waker(Waker::noop())).is_ready()).await;
    });
}

#[test]
fn a_client_that_shuts_its_window_after_the_backends_end_is_let_go() {
    on_one_thread(async {
        // More than the client's receive buffer, and no more than that and the guard's send buffer.
        const ANSWER: usize = 700 << 10;
        let (listener, addr) = backend().await;
        serve(listener, async |mut stream: BackendStream| stream.write_all(&pattern(ANSWER)).await.unwrap());
        let tunables = Tunables { stall_time: Duration::from_secs(1), ..Tunables::default() };
        let lab = Lab::tuned(addr, tunables);
        let open = || lab.guard.net.with(|state| state.stack.connection_count());
        // One that reads slowly gets everything, although it takes longer.
        let mut slow = lab.client.connect().await;
        let mut received = 0;
        let mut part = vec![0; 64 << 10];
        while received < ANSWER {
            received += slow.read(&mut part).await.unwrap();
            sleep(Duration::from_millis(150)).await;
        }
        assert_eq!((slow.read(&mut part).await.unwrap(), lab.stats().client_silent), (0, 0));
        drop(slow);
        eventually("the slow one's end", || open() == 0).await;
        let stalled = lab.client.connect().await;
        eventually("adopted", || open() == 1).await;
        eventually("let go", || lab.stats().client_silent == 1 && open() == 0).await;
        drop(stalled);
    });
}

#[test]
fn a_tuned_fin_wait_2_reaches_clients_that_are_silent_already() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await.unwrap(), b"");
        assert!(timeout(Duration::from_millis(500), server.read_u8()).await.is_err(), "let go too soon");
        let tunables = Tunables { fin_wait_2: Duration::from_millis(100), ..Tunables::default() };
        lab.guard.handle.set_tunables(Arc::new(tunables)).await.unwrap();
        let end = timeout(Duration::from_secs(5), server.read_u8()).await.expect("the tunable is ignored");
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(lab.stats().client_silent, 1);
    });
}

#[test]
fn many_connections_pass_at_once() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        serve(listener, echo);
        let lab = Rc::new(Lab::new(addr));
        let tasks: Vec<_> = (0..200_usize)
            .map(|index| {
                let lab = Rc::clone(&lab);
                spawn_local(async move {
                    let sent = pattern(500 * index + 1);
                    assert!(exchange(lab.client.connect().await, &sent).await == sent);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        eventually("finished", || lab.stats().finished == 200).await;
        let stats = lab.guard.handle.stats().await.unwrap();
        assert_eq!((stats.connections, stats.stack.backlog_full), (0, 0));
    });
}

#[test]
fn running_out_of_descriptors_resets_single_clients_and_ends_by_itself() {
    let name = "service::tests::running_out_of_descriptors_resets_single_clients_and_ends_by_itself";
    if !starved::is_starved(name) {
        return;
    }
    on_one_thread(async {
        let (listener, addr) = backend().await;
        let lab = Lab::new(addr);
        let hoard = starved::hoard();
        for _ in 0..5 {
            let mut client = lab.client.connect().await;
            assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!(lab.stats().exhausted, 5);
        drop(hoard);
        serve(listener, echo);
        let mut client = lab.client.connect().await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    });
}

#[test]
fn connections_take_no_more_descriptors_than_they_are_allowed() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        serve(listener, echo);
        let lab = Lab::new(addr);
        lab.descriptors.limit_to(2);
        let mut open = Vec::new();
        for _ in 0..2 {
            let mut client = lab.client.connect().await;
            client.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
            open.push(client);
        }
        let mut client = lab.client.connect().await;
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!((lab.stats().connected, lab.stats().exhausted), (2, 1));
        let mut first = open.remove(0);
        first.shutdown().await.unwrap();
        assert!(read_all(&mut first).await.unwrap().is_empty());
        eventually("one is given back", || lab.stats().finished == 1).await;
        let mut client = lab.client.connect().await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    });
}

#[test]
fn the_echo_responder_sends_everything_back_and_closes_after_the_client() {
    on_one_thread(async {
        let lab = Lab::responder(Responder::Echo);
        let sent = pattern(4 << 20);
        let received = exchange(lab.client.connect().await, &sent).await;
        assert!(received == sent, "{} of {} bytes, or wrong ones", received.len(), sent.len());
        eventually("finished", || lab.stats().finished == 1).await;
        assert_eq!((lab.stats().bytes_to_backend, lab.stats().bytes_to_client), (4 << 20, 4 << 20));
    });
}

#[test]
fn an_echo_client_that_does_not_read_is_stopped_and_loses_nothing() {
    on_one_thread(async {
        let lab = Lab::responder(Responder::Echo);
        let (mut reader, mut writer) = tokio::io::split(lab.client.connect().await);
        let chunk = pattern(64 << 10);
        let mut sent = 0;
        while let Ok(written) = timeout(Duration::from_millis(500), writer.write(&chunk)).await {
            sent += written.unwrap();
            assert!(sent < 64 << 20, "nothing stops the client");
        }
        let closing = spawn_local(async move { writer.shutdown().await.unwrap() });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), sent);
        closing.await.unwrap();
    });
}

#[test]
fn the_discard_responder_takes_everything_and_says_nothing() {
    on_one_thread(async {
        let lab = Lab::responder(Responder::Discard);
        let received = exchange(lab.client.connect().await, &pattern(4 << 20)).await;
        assert!(received.is_empty());
        eventually("finished", || lab.stats().finished == 1).await;
        assert_eq!((lab.stats().bytes_to_backend, lab.stats().bytes_to_client), (4 << 20, 0));
    });
}

#[test]
fn the_http_responder_answers_pipelined_requests_and_then_closes_without_losing_its_answer() {
    on_one_thread(async {
        let lab = Lab::responder(Responder::Http);
        let mut client = lab.client.connect().await;
        let requests = "GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(5000);
        let last = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        // What follows the last request is unread rubbish: it must not turn the answers into a reset.
        let rubbish = "x".repeat(50_000);
        let (mut reader, mut writer) = tokio::io::split(&mut client);
        let sent = [requests.as_bytes(), last.as_bytes(), rubbish.as_bytes()].concat();
        let mut answers = String::new();
        let (sent, read) = tokio::join!(writer.write_all(&sent), reader.read_to_string(&mut answers));
        sent.and(read.map(drop)).unwrap();
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 5001);
        assert!(answers.ends_with("\r\nConnection: close\r\n\r\nok\n"));
        client.shutdown().await.unwrap();
        eventually("finished", || lab.stats().finished == 1).await;
        assert_eq!((lab.stats().requests, lab.stats().bad_requests), (5001, 0));
    });
}

#[test]
fn a_responder_takes_no_descriptor() {
    on_one_thread(async {
        let lab = Lab::responder(Responder::Echo);
        lab.descriptors.limit_to(0);
        assert_eq!(exchange(lab.client.connect().await, b"x").await, b"x");
    });
}

/// A backend that says its name and closes.
async fn named(name: &'static str) -> BackendAddr {
    let (listener, addr) = backend().await;
    serve(listener, async |mut stream: BackendStream| stream.write_all(name.as_bytes()).await.unwrap());
    BackendAddr::Tcp(addr)
}

async fn ask(lab: &Lab) -> String {
    let mut client = lab.client.connect().await;
    let said = String::from_utf8(read_all(&mut client).await.unwrap()).unwrap();
    client.shutdown().await.unwrap();
    said
}

#[test]
fn connections_go_to_one_backend_after_the_other() {
    on_one_thread(async {
        let lab = Lab::several(several([named("a").await, named("b").await, named("c").await]));
        let mut said = String::new();
        for _ in 0..6 {
            said += &ask(&lab).await;
        }
        assert_eq!(said, "abcabc");
        eventually("closed", || lab.backends().iter().all(|backend| backend.open == 0)).await;
        assert!(lab.backends().iter().all(|backend| backend.connected == 2));
    });
}

#[test]
fn a_dead_backend_costs_no_client_rests_and_comes_back_by_itself() {
    on_one_thread(async {
        let dead = BackendListener::bind("127.0.0.1:0").await.unwrap();
        let addr = dead.local_addr().unwrap();
        drop(dead);
        let lab = Lab::several(several([BackendAddr::Tcp(addr), named("alive").await]));
        for _ in 0..4 {
            assert_eq!(ask(&lab).await, "alive");
        }
        assert_eq!((lab.stats().retried, lab.stats().backend_refused), (1, 0));
        assert_eq!(lab.backends()[0].failed, 1, "it was asked while it rested");
        assert!(lab.backends()[0].rests_for.is_some());
        let back = BackendListener::bind(addr).await.unwrap();
        serve(back, async |mut stream: BackendStream| stream.write_all(b"back").await.unwrap());
        let mut said = String::new();
        while !said.contains("back") {
            sleep(Duration::from_millis(50)).await;
            said += &ask(&lab).await;
        }
        assert!(lab.backends()[0].rests_for.is_none());
    });
}

#[test]
fn a_backend_that_does_not_answer_is_passed_over_when_its_time_is_up() {
    on_one_thread(async {
        // Nobody accepts, and the kernel has room for one.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        full.listen(0).unwrap();
        let addr = full.local_addr().unwrap().as_socket().unwrap();
        let _filling = BackendStream::connect(addr).await.unwrap();
        let connect_timeout = Duration::from_millis(200);
        let backends = several([BackendAddr::Tcp(addr)]);
        let lab = Lab::several(Backends { connect_timeout, ..backends });
        let mut client = lab.client.connect().await;
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(lab.stats().backend_timeout, 1);
        let backends = several([BackendAddr::Tcp(addr), named("alive").await]);
        let lab = Lab::several(Backends { connect_timeout, ..backends });
        assert_eq!(ask(&lab).await, "alive");
    });
}

#[test]
fn least_connections_spares_the_backend_that_has_most() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        serve(listener, echo);
        let (idle, other) = backend().await;
        serve(idle, echo);
        let backends = several([BackendAddr::Tcp(addr), BackendAddr::Tcp(other)]);
        let lab = Lab::several(Backends { balance: Balance::LeastConnections, ..backends });
        let mut held = Vec::new();
        for _ in 0..4 {
            let mut client = lab.client.connect().await;
            client.write_all(b"x").await.unwrap();
            client.read_u8().await.unwrap();
            held.push(client);
        }
        let open = || lab.backends().iter().map(|backend| backend.open).collect::<Vec<_>>();
        assert_eq!(open(), [2, 2]);
        // The first and the third have the same backend.
        for index in [2, 0] {
            held.remove(index).shutdown().await.unwrap();
        }
        eventually("closed", || open().iter().sum::<usize>() == 2).await;
        let emptied = open().iter().position(|&open| open == 0).expect("one backend has none");
        for _ in 0..2 {
            let mut client = lab.client.connect().await;
            client.write_all(b"x").await.unwrap();
            client.read_u8().await.unwrap();
            held.push(client);
        }
        assert_eq!((open()[emptied], open()[1 - emptied]), (2, 2));
    });
}

#[test]
fn a_unix_socket_is_a_backend_with_half_close_and_its_absence_a_cause() {
    on_one_thread(async {
        let path = std::env::temp_dir().join(format!("tcpguard-backend-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let lab = Lab::several(several([BackendAddr::Unix(path.clone())]));
        let mut client = lab.client.connect().await;
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(lab.stats().backend_unreachable, 1);
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut reader, mut writer) = stream.split();
                tokio::io::copy(&mut reader, &mut writer).await.unwrap();
                writer.shutdown().await.unwrap();
            }
        });
        let sent = pattern(3 << 20);
        assert!(exchange(lab.client.connect().await, &sent).await == sent);
        std::fs::remove_file(path).unwrap();
    });
}

#[test]
fn a_backend_is_told_who_the_client_is_before_the_clients_first_byte() {
    on_one_thread(async {
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            let (listener, addr) = backend().await;
            let backends = several([BackendAddr::Tcp(addr)]);
            let lab = Lab::several(Backends { proxy_protocol: Some(version), ..backends });
            let mut client = lab.client.connect().await;
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            let mut said = Vec::new();
            server.read_to_end(&mut said).await.unwrap();
            let expected =
                super::backend::greeting(Some(version), client.local_addr(), client.peer_addr()).unwrap();
            assert_eq!(said, [&expected, &b"question"[..]].concat());
        }
    });
}

#[test]
fn a_service_has_no_more_connections_than_it_may() {
    on_one_thread(async {
        let limits = Limits { connections: Some(2), ..Limits::default() };
        let lab = Lab::limited(Responder::Echo, limits);
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut client = lab.client.connect().await;
            client.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
            held.push(client);
        }
        let mut client = lab.client.connect().await;
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!((lab.stats().connected, lab.stats().over_limit), (2, 1));
        drop(held.pop());
        eventually("room", || lab.stats().finished == 1).await;
        assert_eq!(exchange(lab.client.connect().await, b"x").await, b"x");
    });
}

#[test]
fn a_connection_that_is_idle_for_too_long_is_reset_and_one_that_is_not_lives() {
    on_one_thread(async {
        let limits = Limits { idle_time: Some(Duration::from_millis(400)), ..Limits::default() };
        let lab = Lab::limited(Responder::Echo, limits);
        let mut client = lab.client.connect().await;
        for byte in 0..8 {
            client.write_u8(byte).await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), byte);
            sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(lab.stats().idle, 0);
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(lab.stats().idle, 1);
    });
}

#[test]
fn a_connection_that_lasts_too_long_is_reset_whatever_it_does() {
    on_one_thread(async {
        let limits = Limits { total_time: Some(Duration::from_millis(500)), ..Limits::default() };
        let lab = Lab::limited(Responder::Echo, limits);
        let mut client = lab.client.connect().await;
        let end = loop {
            match client.write_u8(1).await {
                Ok(()) => {}
                Err(error) => break error,
            }
            if let Err(error) = client.read_u8().await {
                break error;
            }
            sleep(Duration::from_millis(20)).await;
        };
        assert_eq!(end.kind(), ErrorKind::ConnectionReset);
        assert_eq!((lab.stats().overtime, lab.stats().idle), (1, 0));
    });
}

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
