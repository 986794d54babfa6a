//! How many connections there may be, and for how long.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::sleep;

use super::{Lab, backend, echo, serve, spec, to};
use crate::config::{BackendAddr, Limits, Responder, Tunables};
use crate::engine::tests::world::eventually;
use crate::engine::tests::{exchange, on_one_thread, read_all};
use crate::starved;

#[test]
fn running_out_of_descriptors_resets_single_clients_and_ends_by_itself() {
    let name = "service::tests::limits::running_out_of_descriptors_resets_single_clients_and_ends_by_itself";
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

/// Each change used to begin a count of its own: as many connections again as a service may have, and backends without any.
#[test]
fn a_service_that_changes_goes_on_counting_the_connections_that_it_has() {
    on_one_thread(async {
        let (listener, addr) = backend().await;
        serve(listener, echo);
        let destination = to([BackendAddr::Tcp(addr)]);
        let limits = |most| Limits { connections: Some(most), ..Limits::default() };
        let lab = Lab::with(&destination, limits(2), Tunables::default());
        let change = |most| {
            let before = lab.services.specs().remove(0);
            lab.services.change(&spec(&destination, limits(most)).following(&before));
        };
        let mut open = Vec::new();
        for most in [2, 3] {
            change(most);
            while open.len() < most as usize {
                let mut client = lab.client.connect().await;
                client.write_all(b"x").await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), b'x');
                open.push(client);
            }
            let mut client = lab.client.connect().await;
            assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        assert_eq!((lab.stats().connected, lab.stats().over_limit), (3, 2));
        assert_eq!((lab.backends()[0].open, lab.backends()[0].connected), (3, 3));
        // Fewer than there are: nobody has to go for that.
        change(1);
        open.truncate(1);
        eventually("two are closed", || lab.backends()[0].open == 1).await;
        let mut client = lab.client.connect().await;
        assert_eq!(client.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        drop(open);
        eventually("all are closed", || lab.backends()[0].open == 0).await;
        assert_eq!(exchange(lab.client.connect().await, b"x").await, b"x");
    });
}
