//! Which backend a connection gets, and what becomes of it where that cannot be had.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::{BackendListener, BackendStream, Lab, backend, echo, serve, several};
use crate::config::{BackendAddr, Backends, Balance, ProxyProtocol};
use crate::engine::tests::world::eventually;
use crate::engine::tests::{exchange, on_one_thread, pattern, read_all};
use crate::service::backend::greeting;

/// An address where nobody listens.
async fn nowhere() -> SocketAddr {
    backend().await.1
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
            let expected = greeting(Some(version), client.local_addr(), client.peer_addr()).unwrap();
            assert_eq!(said, [&expected, &b"question"[..]].concat());
        }
    });
}
