//! What a stream promises: bytes, half-closes, resets, back-pressure, and errors as a kernel socket's.

use std::cell::Cell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::super::TcpStream;
use super::{echo, exchange, on_one_thread, pair, pattern, read_all};

#[test]
fn megabytes_come_back_as_they_went() {
    on_one_thread(async {
        let (_world, guard, client) = pair();
        let listener = guard.listen();
        spawn_local(async move {
            let (stream, peer) = listener.accept().await;
            assert_eq!(peer, "10.0.0.2:40000".parse().unwrap());
            assert_eq!(stream.local_addr(), "10.0.0.1:80".parse().unwrap());
            echo(stream).await.unwrap();
        });
        let sent = pattern(8 << 20);
        let received = exchange(client.connect().await, &sent).await;
        assert!(received == sent, "{} of {} bytes, or wrong ones", received.len(), sent.len());
    });
}

#[test]
fn each_direction_ends_by_itself() {
    on_one_thread(async {
        let (_world, guard, client) = pair();
        let listener = guard.listen();
        // The client closes first; the server answers at length afterwards.
        let server = spawn_local(async move {
            let (mut stream, _) = listener.accept().await;
            assert_eq!(read_all(&mut stream).await.unwrap(), b"request");
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.write_all(&pattern(1 << 20)).await.unwrap();
            stream.shutdown().await.unwrap();
            // The server closes first; the client goes on.
            let (mut stream, _) = listener.accept().await;
            stream.write_all(b"greeting").await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(stream.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
            read_all(&mut stream).await.unwrap()
        });
        let mut stream = client.connect().await;
        stream.write_all(b"request").await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(read_all(&mut stream).await.unwrap() == pattern(1 << 20));
        let mut stream = client.connect().await;
        assert_eq!(read_all(&mut stream).await.unwrap(), b"greeting");
        stream.write_all(&pattern(1 << 20)).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(server.await.unwrap() == pattern(1 << 20));
    });
}

#[test]
fn an_abort_is_a_reset_at_the_other_end() {
    on_one_thread(async {
        let (_world, guard, client) = pair();
        let listener = guard.listen();
        let mut stream = client.connect().await;
        stream.write_all(b"x").await.unwrap();
        let (mut accepted, _) = listener.accept().await;
        assert_eq!(accepted.read_u8().await.unwrap(), b'x');
        accepted.abort();
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(stream.write(&byte).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn dropping_a_stream_with_unread_data_resets_and_without_closes() {
    on_one_thread(async {
        let (_world, guard, client) = pair();
        let listener = guard.listen();
        let mut stream = client.connect().await;
        stream.write_all(b"never read").await.unwrap();
        let (accepted, _) = listener.accept().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(accepted);
        assert_eq!(read_all(&mut stream).await.unwrap_err().kind(), ErrorKind::ConnectionReset);

        let mut stream = client.connect().await;
        let (mut accepted, _) = listener.accept().await;
        accepted.write_all(&pattern(300_000)).await.unwrap();
        drop(accepted);
        assert!(
            read_all(&mut stream).await.unwrap() == pattern(300_000),
            "the rest goes out in the background"
        );
    });
}

#[test]
fn a_shutdown_is_over_when_the_peer_has_everything() {
    on_one_thread(async {
        let (_world, guard, client) = pair();
        let listener = guard.listen();
        let mut stream = client.connect().await;
        let (mut accepted, _) = listener.accept().await;
        // More than the receiver takes unread.
        let sent = fill(&mut accepted).await;
        let early = timeout(Duration::from_millis(200), accepted.shutdown()).await;
        assert!(early.is_err(), "acknowledged although the peer has not got all of it");
        let reader = spawn_local(async move { read_all(&mut stream).await.unwrap().len() });
        accepted.shutdown().await.unwrap();
        assert_eq!(reader.await.unwrap(), sent);
    });
}

/// Writes until nothing more goes for a while; how much went.
async fn fill(stream: &mut TcpStream) -> usize {
    let chunk = pattern(64 << 10);
    let mut sent = 0;
    while let Ok(written) = timeout(Duration::from_millis(500), stream.write(&chunk)).await {
        sent += written.unwrap();
        assert!(sent < 16 << 20, "nothing stops the writer");
    }
    sent
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer() {
    on_one_thread(async {
        let (_world, guard, client) = pair();
        let listener = guard.listen();
        let mut stream = client.connect().await;
        let (accepted, _) = listener.accept().await;
        let sent = fill(&mut stream).await;
        assert!(sent > 64 << 10, "stopped after {sent} bytes");
        let (mut reader, _writer) = tokio::io::split(accepted);
        let mut received = vec![0; sent];
        reader.read_exact(&mut received).await.unwrap();
        // And it goes on.
        stream.write_all(b"after").await.unwrap();
        let mut after = [0; 5];
        reader.read_exact(&mut after).await.unwrap();
        assert_eq!(&after, b"after");
    });
}

#[test]
fn data_that_came_before_the_close_can_be_read_after_it() {
    on_one_thread(async {
        let (_world, guard, client) = pair();
        let listener = guard.listen();
        let mut stream = client.connect().await;
        let (mut accepted, _) = listener.accept().await;
        accepted.shutdown().await.unwrap();
        stream.write_all(b"last words").await.unwrap();
        stream.shutdown().await.unwrap();
        drop(stream);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(read_all(&mut accepted).await.unwrap(), b"last words");
    });
}

#[test]
fn a_thousand_connections_at_once_each_get_their_own_bytes() {
    on_one_thread(async {
        let (_world, guard, client) = pair();
        let listener = guard.listen();
        spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await;
                spawn_local(async move { echo(stream).await.unwrap() });
            }
        });
        let client = Rc::new(client);
        let tasks: Vec<_> = (0..1000_usize)
            .map(|index| {
                let client = Rc::clone(&client);
                spawn_local(async move {
                    let sent = pattern(1000 + index);
                    assert!(exchange(client.connect().await, &sent).await == sent);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Its sends and receives count against what the runtime lets a task do in one go, as those of a kernel socket.
#[test]
fn a_task_whose_stream_is_always_ready_leaves_the_ring_unpolled_for_128_operations_at_most() {
    const BYTES: usize = 50_000;
    on_one_thread(async {
        let (world, guard, client) = pair();
        let (done, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (since, largest) = (Rc::clone(&done), Rc::clone(&most));
        world.at_poll.replace(Some(Box::new(move || largest.set(since.take().max(largest.get())))));
        let listener = guard.listen();
        let server = spawn_local(async move {
            let (mut stream, _) = listener.accept().await;
            // All of it is there before the first byte is read.
            tokio::time::sleep(Duration::from_millis(200)).await;
            for _ in 0..BYTES {
                stream.read_u8().await.unwrap();
                done.set(done.get() + 1);
            }
            for _ in 0..BYTES {
                stream.write_u8(b'x').await.unwrap();
                done.set(done.get() + 1);
            }
        });
        let mut stream = client.connect().await;
        stream.write_all(&pattern(BYTES)).await.unwrap();
        assert_eq!(stream.read_exact(&mut vec![0; BYTES]).await.unwrap(), BYTES);
        server.await.unwrap();
        assert!((1..=128).contains(&most.get()), "{}", most.get());
    });
}
