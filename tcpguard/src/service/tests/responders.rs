//! What the built-in responders say.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::Lab;
use crate::config::Responder;
use crate::engine::tests::world::eventually;
use crate::engine::tests::{exchange, on_one_thread, pattern};

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
