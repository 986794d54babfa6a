//! Backends that die, peers that never read, links that go down.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::iter;
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::support::{Guarded, assert_same, wait_for};
use super::{BACKEND, RELAYED, SOON, Server, ask, check_frames, connect, count, guarded};
use serde_json::Value;
use socket2::SockRef;
use xtask::lab::{GUARD_ADDRESS, GUARD_INTERFACE};
use xtask::soak::ENDS;

#[test]
fn a_backend_killed_and_restarted_under_load_costs_only_who_came_meanwhile() {
    let guarded = guarded(&[]);
    let server = Server::start(&guarded);
    assert!(ask(&guarded));
    let (answered, unanswered) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let counter = if ask(&guarded) { &answered } else { &unanswered };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let more_than = |counter: &AtomicU64, what: &str| {
            let before = counter.load(Ordering::Relaxed);
            wait_for(what, SOON, || counter.load(Ordering::Relaxed) > before + 20);
        };
        more_than(&answered, "requests under way");
        server.kill();
        more_than(&unanswered, "requests that find no backend");
        let server = Server::start(&guarded);
        more_than(&answered, "requests to the restarted backend");
        over.store(true, Ordering::Relaxed);
        server
    })
    .kill();
    // Each ended for one reason, and no client without an answer is missing among them.
    // A backend that dies between a handshake and its being noticed resets what was about to be connected: `backend-error`.
    let ends =
        ["finished", "client-failed", "backend-failed", "client-silent", "backend-refused", "backend-error"];
    let counted = |name: &str| count(&guarded, "service", name);
    wait_for("every end counted", SOON, || {
        counted("accepted") == ends.iter().map(|end| counted(end)).sum::<u64>()
    });
    assert_eq!(counted("accepted"), 1 + answered.into_inner() + unanswered.load(Ordering::Relaxed));
    assert!(counted("backend-refused") > 0 && counted("backend-refused") <= unanswered.into_inner());
    wait_for("no connection left", SOON, || count(&guarded, "engine", "connections") == 0);
    check_frames(&guarded);
}

/// Every connection is over, its end was counted once, and what it took was given back.
fn check_ends(guarded: &Guarded) {
    wait_for("no connection left", SOON, || count(guarded, "engine", "connections") == 0);
    wait_for("every end counted", SOON, || {
        count(guarded, "service", "accepted")
            == ENDS.iter().map(|end| count(guarded, "service", end)).sum::<u64>()
    });
    assert_eq!(held(guarded), []);
    check_frames(guarded);
}

/// Connections of [`RELAYED`]'s backend that one side holds up: the kind, and how many.
fn held(guarded: &Guarded) -> Vec<(String, u64)> {
    let status = guarded.json(&["status"]);
    let service = format!("{GUARD_ADDRESS}:{RELAYED}");
    let services = status["services"].as_array().expect("services");
    let service = services.iter().find(|known| known["listen"] == service.as_str()).expect("the service");
    let held = service["backends"][0]["held"].as_array().expect("what is held up");
    let entry = |held: &Value| {
        let state = held["state"].as_str().expect("a kind").to_owned();
        (state, held["connections"].as_u64().expect("a count"))
    };
    held.iter().map(entry).collect()
}

/// What a [`Moody`] backend does, by the first byte that it is sent.
const ANSWER: &[u8] = b"x";
const IGNORE: &[u8] = b"i";
const TELL: &[u8] = b"t";

/// A backend that answers some, never reads again from others, and tells others without end. Its kernel keeps little.
struct Moody;

impl Moody {
    fn start(guarded: &Guarded) {
        let listener = guarded.listen(BACKEND);
        let small = SockRef::from(&listener);
        small.set_recv_buffer_size(32 << 10).expect("a small buffer");
        small.set_send_buffer_size(32 << 10).expect("a small buffer");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || Self::serve(stream));
            }
        });
    }

    /// What goes wrong here, the client notices.
    fn serve(mut stream: TcpStream) -> io::Result<()> {
        let mut mood = [0];
        stream.read_exact(&mut mood)?;
        match &mood[..] {
            // Until a reset.
            IGNORE => {
                while stream.peek(&mut [0]).is_ok() {
                    thread::sleep(Duration::from_millis(50));
                }
            }
            TELL => loop {
                stream.write_all(&[0x5a; 4096])?;
            },
            ANSWER => stream.write_all(b"y")?,
            other => panic!("no mood is {other:?}"),
        }
        Ok(())
    }
}

/// The flow of a client.
fn flow(guarded: &Guarded, client: &TcpStream) -> Value {
    let peer = client.local_addr().expect("an address").to_string();
    let flows = guarded.flows(None);
    flows.into_iter().find(|flow| flow["peer"] == peer.as_str()).expect("its flow")
}

/// They kept a descriptor, buffers and a place in every table for ever, whether their clients were still there or not.
#[test]
fn clients_of_a_backend_that_never_reads_are_held_up_for_a_time_and_hold_up_nobody_else() {
    const EACH: u64 = 8;
    /// What the guard takes of a connection that nobody reads.
    const WINDOW: u64 = (4 << 20) + (16 << 10);
    let guarded = guarded(&[]);
    Moody::start(&guarded);
    let ignored = || {
        let mut client = connect(&guarded, RELAYED).expect("a connection");
        client.write_all(IGNORE).expect("sending");
        client
    };
    // These say what the kernels and the guard take between them, and close.
    let mut closed: Vec<_> = (0..EACH)
        .map(|_| {
            let client = ignored();
            let is_unread = || flow(&guarded, &client)["recv_queued"] != 0;
            let is_left = || {
                is_unread()
                    && [(); 3].iter().all(|()| {
                        thread::sleep(Duration::from_millis(30));
                        is_unread()
                    })
            };
            while !is_left() {
                (&client).write_all(&[0x5a; 32 << 10]).expect("sending");
                thread::sleep(Duration::from_millis(10));
            }
            client.shutdown(Shutdown::Write).expect("closing");
            client
        })
        .collect();
    // These say more than that.
    let mut open: Vec<_> = (0..EACH)
        .map(|_| {
            let mut client = ignored();
            client.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
            let full = iter::repeat_with(|| client.write(&[0x5a; 64 << 10])).find_map(Result::err);
            assert_eq!(full.expect("no end").kind(), ErrorKind::WouldBlock);
            client
        })
        .collect();
    let expected = [("close-wait".to_owned(), EACH), ("backend-stalled".to_owned(), EACH)];
    wait_for("all to be seen", SOON, || held(&guarded) == expected);
    assert_eq!(guarded.flows(Some("CLOSE_WAIT")).len() as u64, EACH);
    let unread: Vec<_> =
        guarded.flows(None).iter().map(|flow| flow["recv_queued"].as_u64().expect("bytes")).collect();
    assert!(unread.iter().all(|bytes| (1..=WINDOW).contains(bytes)), "{unread:?}");
    (0..5).for_each(|_| assert!(ask(&guarded), "others are not served"));
    assert_eq!(count(&guarded, "service", "backend-silent"), 0, "let go before their time");
    guarded.tune("close-wait", "2s");
    wait_for("those who had closed to be let go", SOON, || held(&guarded) == expected[1..]);
    guarded.tune("zero-window", "2s");
    wait_for("the others to be let go", SOON, || held(&guarded).is_empty());
    for client in closed.iter_mut().chain(&mut open) {
        assert_eq!(client.read(&mut [0]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    }
    check_ends(&guarded);
    let counted = |name| count(&guarded, "service", name);
    assert_eq!((counted("accepted"), counted("backend-silent")), (2 * EACH + 5, 2 * EACH));
    assert_eq!(guarded.stack("unread-reset"), 0, "memory was short");
    assert!(ask(&guarded), "service is not restored");
}

#[test]
fn clients_that_never_read_are_held_to_zero_window_and_hold_up_nobody_else() {
    const CLIENTS: u64 = 16;
    /// What the guard keeps for a client.
    const WINDOW: u64 = (4 << 20) + (16 << 10);
    let guarded = guarded(&[]);
    Moody::start(&guarded);
    let mut stalled: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = connect(&guarded, RELAYED).expect("a connection");
            client.write_all(TELL).expect("sending");
            client
        })
        .collect();
    let expected = [("client-stalled".to_owned(), CLIENTS)];
    wait_for("all to be seen", SOON, || held(&guarded) == expected);
    let unsent: Vec<_> =
        guarded.flows(None).iter().map(|flow| flow["send_queued"].as_u64().expect("bytes")).collect();
    assert!(unsent.iter().all(|bytes| (1..=WINDOW).contains(bytes)), "{unsent:?}");
    (0..5).for_each(|_| assert!(ask(&guarded), "others are not served"));
    assert_eq!(count(&guarded, "service", "client-failed"), 0, "let go before their time");
    guarded.tune("zero-window", "2s");
    wait_for("them to be let go", SOON, || held(&guarded).is_empty());
    for client in &mut stalled {
        // What is in their kernel's buffer comes first, unless the reset has taken it away.
        let end = io::copy(client, &mut io::sink()).expect_err("a reset");
        assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    }
    check_ends(&guarded);
    let counted = |name| count(&guarded, "service", name);
    assert_eq!((counted("accepted"), counted("client-failed")), (CLIENTS + 5, CLIENTS));
    assert_eq!((guarded.stack("zero-window-expired"), guarded.stack("stalls-reset")), (CLIENTS, 0));
    assert!(ask(&guarded), "service is not restored");
}

#[test]
fn a_transfer_outlives_its_links_going_down_and_up() {
    let guarded = guarded(&[]);
    guarded.backend.file("large", 60_000_000).expect("a file");
    let into = guarded.lab.dir().join("received");
    let (url, output) = (guarded.url("large"), into.display().to_string());
    thread::scope(|scope| {
        // Slow enough to be under way for a while on any machine.
        let transfer = scope.spawn(|| guarded.curl(&["--limit-rate", "20M", "--output", &output, &url]));
        let moved = || count(&guarded, "service", "bytes-to-client");
        wait_for("the transfer to be under way", SOON, || moved() > 10_000_000);
        let link = |state| guarded.lab.guard().ip(&format!("link set {GUARD_INTERFACE} {state}"));
        link("down").expect("a link that goes down");
        // Long enough for everything in flight to be lost, and for a retransmission or two.
        thread::sleep(Duration::from_millis(700));
        link("up").expect("a link that comes up");
        let transfer = transfer.join().expect("curl");
        assert!(transfer.status.success(), "curl: {}", String::from_utf8_lossy(&transfer.stderr));
    });
    assert_same(&into, &guarded.backend.root().join("large"));
    assert!(guarded.stack("retransmitted") > 0, "the link was never down");
    wait_for("no connection left", SOON, || count(&guarded, "engine", "connections") == 0);
    check_frames(&guarded);
}
