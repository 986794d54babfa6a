//! Services in dry run: the host's own listener serves the protected port, while what the guard would do is counted.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;
use support::{Guarded, lab_object};
use xtask::lab::LabConfig;

const BANNER: &[u8] = b"the host itself";
const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: guard\r\n\r\n";
const CLIENTS: u64 = 10;
/// Bytes of the file that is asked for.
const FILE: usize = 5;

/// Guarded in dry run from the start, with a listener of the host's kernel on the protected port.
fn guarded() -> Guarded {
    let guarded = Guarded::up(LabConfig::new(lab_object()), &["--dry-run"]);
    guarded.backend.file("hello", FILE).expect("a file");
    guarded.answer_with_cookies();
    let listener = guarded.listen(guarded.address());
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mut heard = Vec::new();
            // What was asked, until the client has no more to say, and who was asked.
            let answered = client.write_all(BANNER).and_then(|()| client.read_to_end(&mut heard));
            drop(answered.and_then(|_| client.write_all(&heard)));
        }
    });
    guarded
}

fn connect(guarded: &Guarded) -> TcpStream {
    let connected = guarded.lab.client().enter(|| TcpStream::connect(guarded.address()));
    let stream = connected.expect("entering the client's namespace").expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    stream
}

/// A whole connection to the host's listener.
fn talk_to_the_host(guarded: &Guarded) {
    let mut stream = connect(guarded);
    let said = vec![0x5a; 100_000];
    stream.write_all(&said).expect("room");
    stream.shutdown(std::net::Shutdown::Write).expect("a FIN");
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("an answer");
    assert!(heard == [BANNER, &said].concat(), "{} bytes from somebody else", heard.len());
}

/// A request over a connection that stays.
fn ask(stream: &mut TcpStream) {
    stream.write_all(REQUEST).expect("room");
    let mut heard = Vec::new();
    let is_whole = |heard: &[u8]| {
        let head = heard.windows(4).position(|end| end == b"\r\n\r\n");
        head.is_some_and(|head| heard.len() == head + 4 + FILE)
    };
    while !is_whole(&heard) {
        let mut bytes = [0; 4096];
        let len = stream.read(&mut bytes).expect("an answer");
        assert_ne!(len, 0, "closed");
        heard.extend(&bytes[..len]);
    }
    assert!(heard.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&heard));
}

/// How often a reason was counted, of what was done and of what only would have been.
fn counted(guarded: &Guarded, reason: &str) -> (u64, u64) {
    let stats = guarded.json(&["stats"]);
    let rows = stats["reasons"].as_array().expect("reasons");
    let row = rows.iter().find(|row| row["name"] == reason).expect("a reason");
    (row["total"].as_u64().expect("a total"), row["dry_run"].as_u64().expect("a total"))
}

fn total(guarded: &Guarded) -> u64 {
    guarded.reasons().values().sum()
}

fn set(guarded: &Guarded, state: &str) -> Value {
    guarded.json(&["dry-run", &guarded.address().to_string(), state])
}

#[test]
fn the_host_serves_everybody_while_what_the_guard_would_do_is_counted() {
    let guarded = guarded();
    for _ in 0..CLIENTS {
        talk_to_the_host(&guarded);
    }
    assert_eq!(total(&guarded), 0, "nothing was done: {:?}", guarded.reasons());
    assert_eq!(counted(&guarded, "cookie-sent"), (0, CLIENTS));
    let (_, not_followed) = counted(&guarded, "not-followed");
    assert!(not_followed >= 3 * CLIENTS, "{not_followed}");
    assert_eq!(guarded.flows(None).len(), 0);
    let stats = guarded.json(&["stats"]);
    assert_eq!(stats["services"][0]["syns"], 0);
    let would = &stats["dry_run"][0];
    assert_eq!((&would["syns"], &would["cookies_sent"]), (&CLIENTS.into(), &CLIENTS.into()), "{would}");
    assert_eq!((&would["passed"], &would["dropped"]), (&not_followed.into(), &0.into()), "{would}");
    assert_eq!(guarded.json(&["status"])["services"][0]["dry_run"], true);
    for (verb, shown) in [("status", ", in dry run"), ("stats", "DRY RUN"), ("mode", "dry run")] {
        let text = guarded.cli(&[verb]).stdout;
        assert!(String::from_utf8_lossy(&text).contains(shown), "{verb}");
    }

    let denied = guarded.cli(&["filters", "add", "deny", "10.0.0.0/8"]);
    assert!(denied.status.success(), "{}", String::from_utf8_lossy(&denied.stderr));
    talk_to_the_host(&guarded);
    let (done, would) = counted(&guarded, "filter-deny");
    assert!(done == 0 && would > 3, "{done} {would}");
}

#[test]
fn a_dry_run_begins_and_ends_at_once_and_cuts_no_connection_of_the_engines() {
    let guarded = guarded();
    let changed = set(&guarded, "off");
    assert_eq!((&changed["old"], &changed["new"]), (&true.into(), &false.into()), "{changed}");
    let mut kept = connect(&guarded);
    ask(&mut kept);
    assert_eq!(counted(&guarded, "ack-valid"), (1, 0));
    assert_eq!(guarded.json(&["status"])["services"][0]["dry_run"], false);

    let text = guarded.cli(&["dry-run", &guarded.address().to_string(), "on"]).stdout;
    assert!(String::from_utf8_lossy(&text).ends_with(": dry run off -> on\n"));
    talk_to_the_host(&guarded);
    let before = counted(&guarded, "flow-known").0;
    ask(&mut kept);
    let after = counted(&guarded, "flow-known");
    assert!(after.0 > before && after.1 == 0, "{before} {after:?}");
    assert_eq!((counted(&guarded, "cookie-sent"), counted(&guarded, "ack-valid")), ((1, 1), (1, 0)));

    let unknown = guarded.cli(&["dry-run", "10.1.2.3:4", "on"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no service 10.1.2.3:4"));
}
