//! How relayed connections end, and what of the one side's end reaches the other.

use std::io::ErrorKind;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::{BackendStream, Lab, backend, serve};
use crate::config::Tunables;
use crate::engine::tests::world::eventually;
use crate::engine::tests::{on_one_thread, pattern, read_all};

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
