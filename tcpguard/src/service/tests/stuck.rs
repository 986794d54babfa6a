//! Connections that one side holds up: they are seen, told of, and let go.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use super::{Lab, backend};
use crate::config::Tunables;
use crate::engine::tests::world::{SERVICE, eventually};
use crate::engine::tests::{on_one_thread, pattern, read_all};
use crate::service::Hold;
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
