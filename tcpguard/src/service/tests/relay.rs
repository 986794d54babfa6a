//! Bytes on their way through the relay, in both directions.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::{BackendStream, Lab, backend, echo, narrow_backend, serve};
use crate::engine::tests::world::eventually;
use crate::engine::tests::{exchange, on_one_thread, pattern, read_all};
use crate::service::scratch::{SCRATCH, SLICE};

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

/// Most bytes that a stack holds of one connection each way, with what a window is rounded by.
const WINDOW: u64 = (4 << 20) + (16 << 10);

/// Most bytes that the kernel holds of a connection between the relay and a narrow backend: of the relay's end as much as this
/// sysctl says, `tcp_wmem` or `tcp_rmem`, and the backend's few.
fn kernel(sysctl: &str) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{sysctl}")).unwrap();
    limits.split_whitespace().last().unwrap().parse::<u64>().unwrap() + (1 << 20)
}

#[test]
fn a_backend_that_does_not_read_stops_the_client_and_nothing_piles_up() {
    on_one_thread(async {
        let (listener, addr) = narrow_backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (server, _) = listener.accept().await.unwrap();
        let chunk = pattern(256 << 10);
        let mut sent = 0;
        while let Ok(written) = timeout(Duration::from_secs(1), client.write(&chunk)).await {
            sent += written.unwrap();
            assert!(sent as u64 <= 2 * WINDOW + kernel("tcp_wmem"), "nothing stops the client");
        }
        let flow = lab.guard.handle.flows(|_| true, 1).await.unwrap()[0];
        let unread = u64::from(flow.recv_queued);
        assert!((1..=WINDOW).contains(&unread), "{unread} bytes");
        // What the relay took is with the backend's kernel.
        assert_eq!(flow.bytes_in - unread, lab.stats().bytes_to_backend);
        assert!(lab.stats().bytes_to_backend <= kernel("tcp_wmem"), "{} bytes", lab.stats().bytes_to_backend);
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
fn a_client_that_does_not_read_stops_the_backend_and_nothing_piles_up() {
    on_one_thread(async {
        let (listener, addr) = narrow_backend().await;
        let lab = Lab::new(addr);
        let mut client = lab.client.connect().await;
        let (mut server, _) = listener.accept().await.unwrap();
        let chunk = pattern(256 << 10);
        let mut sent = 0;
        while let Ok(written) = timeout(Duration::from_secs(1), server.write(&chunk)).await {
            sent += written.unwrap();
            assert!(sent as u64 <= 2 * WINDOW + kernel("tcp_rmem"), "nothing stops the backend");
        }
        let flow = lab.guard.handle.flows(|_| true, 1).await.unwrap()[0];
        let unsent = u64::from(flow.send_queued);
        assert!((1..=WINDOW).contains(&unsent) && flow.bytes_out <= WINDOW, "{flow:?}");
        assert_eq!(flow.bytes_out + unsent, lab.stats().bytes_to_client);
        assert!(sent as u64 - lab.stats().bytes_to_client <= kernel("tcp_rmem"), "{sent} bytes");
        drop(server);
        assert_eq!(read_all(&mut client).await.unwrap().len(), sent);
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

/// A backend that has more to say than a slice: what one task moves before the rings have their turn is bounded.
#[test]
fn no_relay_moves_more_than_a_slice_while_the_ring_waits() {
    const BYTES: usize = 8 << 20;
    on_one_thread(async {
        let (listener, addr) = backend().await;
        serve(listener, async |mut stream: BackendStream| stream.write_all(&pattern(BYTES)).await.unwrap());
        let lab = Rc::new(Lab::new(addr));
        let most = Rc::new(Cell::new(0));
        let (largest, counters) = (Rc::clone(&most), Rc::downgrade(&lab));
        let mut before = 0;
        lab.world.at_poll.replace(Some(Box::new(move || {
            let moved = counters.upgrade().map_or(before, |lab| lab.stats().bytes_to_client);
            largest.set((moved - before).max(largest.get()));
            before = moved;
        })));
        let mut client = lab.client.connect().await;
        assert!(read_all(&mut client).await.unwrap() == pattern(BYTES));
        assert!((1..=(SLICE + SCRATCH) as u64).contains(&most.get()), "{} bytes", most.get());
    });
}
