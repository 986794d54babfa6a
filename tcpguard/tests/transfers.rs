//! Real clients move real files through the guard, with and without a flood, with and without loss.

mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use support::{Guarded, assert_same, lab_object, wait_for};
use xtask::lab::{Flood, FloodSpec, LabConfig};

/// `count` files from 1 byte to `largest`, spread evenly on a logarithmic scale.
fn files(guarded: &Guarded, count: usize, largest: usize) -> Vec<String> {
    (0..count)
        .map(|index| {
            let share = index as f64 / (count - 1) as f64;
            let len = (largest as f64).powf(share).round() as usize;
            let name = format!("file-{index}");
            guarded.backend.file(&name, len).expect("a file to download");
            name
        })
        .collect()
}

fn assert_downloads(guarded: &Guarded, names: &[String]) {
    let into = guarded.lab.dir().join("downloads");
    guarded.download(names, &into);
    for name in names {
        assert_same(&into.join(name), &guarded.backend.root().join(name));
    }
}

fn assert_upload(guarded: &Guarded, len: usize, copies: usize) {
    let source = guarded.lab.dir().join("upload-source");
    xtask::lab::write_pattern(&source, len).expect("a file to upload");
    let uploads: Vec<PathBuf> = thread::scope(|scope| {
        let running: Vec<_> = (0..copies)
            .map(|copy| {
                let name = format!("upload/{copy}");
                let source = &source;
                scope.spawn(move || {
                    let source = source.display().to_string();
                    let output = guarded.curl(&["--upload-file", &source, &guarded.url(&name)]);
                    assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
                    guarded.backend.root().join(name)
                })
            })
            .collect();
        running.into_iter().map(|upload| upload.join().expect("an upload")).collect()
    });
    for upload in uploads {
        assert_same(&source, &upload);
    }
}

/// A flood of `rate` SYNs a second that is under way, and does not end before [`outlasted`] says so.
fn flood(guarded: &mut Guarded, rate: u64) -> Flood {
    let spec = FloodSpec { rate, total: None, ..FloodSpec::default() };
    let flood = guarded.lab.flood(support::PORT, spec).expect("a flood");
    wait_for("the flood to be under way", Duration::from_secs(10), || flood.generated() > rate / 4);
    flood
}

/// The flood went on beside whatever ran since it began, until it has delivered `frames` at the least, and every frame
/// was answered.
fn outlasted(guarded: &Guarded, flood: Flood, frames: u64) {
    assert!(!flood.is_finished(), "the flood ended early");
    wait_for("the whole flood", Duration::from_secs(60), || flood.generated() > frames + frames / 8);
    let flood = flood.stop().expect("the flood ends");
    assert!(flood.delivered() >= frames, "{flood:?}");
    assert!(guarded.answered() >= flood.delivered(), "{flood:?}");
}

#[test]
fn downloads_are_byte_for_byte_equal_while_300_000_spoofed_syns_a_second_arrive() {
    let mut guarded = Guarded::simple();
    let mut names = files(&guarded, 200, 1_000_000);
    for name in ["large-0", "large-1"] {
        guarded.backend.file(name, 100_000_000).expect("a file to download");
        names.push(name.to_owned());
    }
    let flood = flood(&mut guarded, 300_000);
    assert_downloads(&guarded, &names);
    assert!(guarded.stack("adopted") >= names.len() as u64, "downloads shared connections");
    outlasted(&guarded, flood, 1_500_000);
}

#[test]
fn downloads_and_uploads_survive_2_percent_loss_each_way_beside_a_flood() {
    let config = LabConfig { loss: Some(0.02), ..LabConfig::new(lab_object()) };
    let mut guarded = Guarded::up(config, &[]);
    let mut names = files(&guarded, 40, 1_000_000);
    guarded.backend.file("large", 10_000_000).expect("a file to download");
    names.push("large".to_owned());
    let flood = flood(&mut guarded, 100_000);
    assert_downloads(&guarded, &names);
    assert_upload(&guarded, 3_000_000, 4);
    outlasted(&guarded, flood, 500_000);
    // Segments were lost both ways, and repaired.
    assert!(guarded.stack("retransmitted") > 0 && guarded.stack("out-of-order") > 0);
}

#[test]
fn uploads_are_byte_for_byte_equal_beside_a_flood() {
    let mut guarded = Guarded::simple();
    let flood = flood(&mut guarded, 300_000);
    assert_upload(&guarded, 100_000_000, 1);
    assert_upload(&guarded, 1_000_000, 30);
    outlasted(&guarded, flood, 1_000_000);
}

#[test]
fn a_client_without_timestamps_still_has_window_scale_and_sack() {
    let guarded = Guarded::simple();
    guarded.lab.client().sysctl(&[("net/ipv4/tcp_timestamps", "0")]).expect("timestamps off");
    guarded.backend.file("large", 50_000_000).expect("a file to download");
    assert_downloads(&guarded, &["large".to_owned()]);
    assert_upload(&guarded, 50_000_000, 1);
    // Last, for neither a half-open connection nor what a socket has room for waits until transfers are over.
    let raw = support::raw::RawPort::open(&guarded.lab, [10, 77, 0, 99].into());
    let mut options = support::raw::linux_options();
    options.timestamps = None;
    let handshake = raw.syn(40_000, support::PORT, 1, options).expect("a SYN-ACK");
    let offered = &handshake.syn_ack.options;
    assert!(offered.sack_permitted && offered.mss.is_some() && offered.timestamps.is_none());
    let shift = offered.window_scale.expect("a window scale");
    // The window the guard grants, as the client's kernel sees it, outgrows what 16 bits can say.
    raw.send(&raw.frame(40_000, support::PORT, &handshake.ack(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")));
    let (answer, _) = raw.receive(support::PORT, 40_000, Duration::from_secs(10)).expect("an answer");
    assert!(u32::from(answer.tcp.window) << shift > 0xffff, "window {} << {shift}", answer.tcp.window);
}

/// The client promises segments as long as its own link takes; only the router knows of the narrow one.
#[test]
fn a_transfer_over_a_narrow_link_completes_because_its_router_is_heard() {
    const NARROW: u32 = 1400;
    let config = LabConfig { loss: Some(0.0), queues: 2, ..LabConfig::new(lab_object()) };
    let lab_v6 = "[fd77::1]:80=127.0.0.1:8080";
    let guarded = Guarded::up(config, &["--protect", lab_v6]);
    guarded.route_ipv6();
    let (router, guard) = (guarded.lab.router().expect("a router"), guarded.lab.guard());
    router.ip(&format!("link set north0 mtu {NARROW}")).expect("a narrow link");
    // What reaches the guard's kernel of all this: nothing.
    guard
        .nft(
            "table inet watch {\nchain in {\ntype filter hook prerouting priority -300\n\
             icmp type destination-unreachable counter\nicmpv6 type packet-too-big counter\n}\n}\n",
        )
        .expect("counters");
    guarded.backend.file("large", 3_000_000).expect("a file to download");
    let into = guarded.lab.dir().join("received");
    for (index, host) in [(1, "10.77.0.1"), (2, "[fd77::1]")] {
        let url = format!("http://{host}:80/large");
        let output = guarded.curl(&["--max-time", "60", "--output", &into.display().to_string(), &url]);
        assert!(output.status.success(), "{host}: {}", String::from_utf8_lossy(&output.stderr));
        assert_same(&into, &guarded.backend.root().join("large"));
        assert_eq!(guarded.stack("mtu-lowered"), index, "{host}");
        assert!(guarded.stack("icmp-heard") >= index && guarded.reason("icmp-too-big") >= index, "{host}");
    }
    let seen = guard.output("nft", &["list", "table", "inet", "watch"]).expect("nft list");
    assert_eq!(seen.matches("counter packets 0 ").count(), 2, "{seen}");
}

/// Our own frames prove nothing about what a kernel makes of our SYN-ACK: this is the kernel's own account of it.
#[test]
fn a_kernel_client_without_timestamps_repairs_losses_by_sack() {
    let config = LabConfig { loss: Some(0.02), ..LabConfig::new(lab_object()) };
    let guarded = Guarded::up(config, &[]);
    let client = guarded.lab.client();
    client.sysctl(&[("net/ipv4/tcp_timestamps", "0")]).expect("timestamps off");
    assert_upload(&guarded, 10_000_000, 1);
    let netstat = client.output("cat", &["/proc/net/netstat"]).expect("the client's counters");
    assert_ne!(counted(&netstat, "TCPSackRecovery"), "0");
}

/// A counter of a kernel's TCP, out of its `/proc/net/netstat`.
fn counted<'a>(netstat: &'a str, name: &str) -> &'a str {
    let mut rows = netstat.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = rows.next().zip(rows.next()).expect("a row of names and one of values");
    names.zip(values).find(|(known, _)| *known == name).expect("a counter of that name").1
}

/// A port relayed to a listener of the test's own: the argument that protects it, and both ends.
const RELAYED: &str = "10.77.0.1:81=127.0.0.1:8081";

/// A kernel client's connection to a kernel server through the guard; both ends of it.
fn relayed(guarded: &Guarded) -> (TcpStream, TcpStream) {
    let listener = guarded.listen("127.0.0.1:8081");
    let client = guarded.lab.client().enter(|| TcpStream::connect("10.77.0.1:81"));
    let mut client = client.expect("entering the client's namespace").expect("a connection");
    client.write_all(b"hello").expect("sending");
    let (mut server, _) = listener.accept().expect("the relay connects");
    let mut greeting = [0; 5];
    server.read_exact(&mut greeting).expect("what the client sent");
    assert_eq!(&greeting, b"hello");
    for stream in [&client, &server] {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
    }
    (client, server)
}

/// In the numbers of `/proc/net/tcp`.
const TIME_WAIT: &str = "06";

/// The ports of the client's kernel that have a socket to port 81, and its state in the numbers of `/proc/net/tcp`.
fn kernel_states(guarded: &Guarded) -> Vec<(u16, String)> {
    let listed = guarded.lab.client().output("cat", &["/proc/net/tcp"]).expect("the client's sockets");
    let socket = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, peer, state) = (fields.next()?, fields.next()?, fields.next()?);
        let port = u16::from_str_radix(local.split_once(':')?.1, 16).ok()?;
        peer.ends_with(":0051").then(|| (port, state.to_owned()))
    };
    listed.lines().filter_map(socket).collect()
}

/// How many of them are in this state.
fn kernel_sockets(guarded: &Guarded, state: &str) -> usize {
    kernel_states(guarded).iter().filter(|(_, known)| known == state).count()
}

/// Both ends of a connection close; whether neither had heard of the other's end. Who closes second never waits: both do only when
/// both were first.
fn close_at_once(guarded: &Guarded) -> bool {
    const PATIENCE: Duration = Duration::from_secs(60);
    wait_for("earlier connections to be over", PATIENCE, || guarded.flows(None).is_empty());
    let waits = guarded.stack("time-wait-entered");
    let (mut client, mut server) = relayed(guarded);
    let port = client.local_addr().expect("an address").port();
    client.shutdown(Shutdown::Write).expect("the client closes");
    server.shutdown(Shutdown::Write).expect("the server closes");
    assert_eq!(client.read(&mut [0; 9]).expect("the server's end"), 0);
    assert_eq!(server.read(&mut [0; 9]).expect("the client's end"), 0);
    drop((client, server));
    let state =
        || kernel_states(guarded).into_iter().find(|(known, _)| *known == port).map(|(_, state)| state);
    let is_over = || guarded.flows(None).iter().all(|flow| flow["state"] == "TIME_WAIT");
    wait_for("both to be done", PATIENCE, || is_over() && state().is_none_or(|state| state == TIME_WAIT));
    state().is_some() && guarded.stack("time-wait-entered") > waits
}

#[test]
fn transfers_over_a_path_that_takes_time_and_loses_are_byte_for_byte_equal() {
    let config = LabConfig { delay: Some(Duration::from_millis(20)), ..LabConfig::new(lab_object()) };
    let guarded = Guarded::up(config, &[]);
    for (percent, len) in [(1, 1_000_000), (5, 200_000)] {
        guarded.lab.lose(f64::from(percent) / 100.0).expect("losses");
        assert_upload(&guarded, len, 2);
        guarded.backend.file("large", len).expect("a file to download");
        assert_downloads(&guarded, &["large".to_owned()]);
    }
    assert!(guarded.stack("retransmitted") > 0 && guarded.stack("out-of-order") > 0);
}

#[test]
fn a_kernel_client_and_the_guard_may_close_at_once() {
    let config = LabConfig { delay: Some(Duration::from_millis(400)), ..LabConfig::new(lab_object()) };
    let guarded = Guarded::up(config, &["--protect", RELAYED]);
    let (mut client, mut server) = relayed(&guarded);
    // Each FIN leaves long before the other arrives.
    client.shutdown(Shutdown::Write).expect("the client closes");
    server.shutdown(Shutdown::Write).expect("the server closes");
    let mut rest = Vec::new();
    assert_eq!(client.read_to_end(&mut rest).expect("the server's end"), 0);
    assert_eq!(server.read_to_end(&mut rest).expect("the client's end"), 0);
    // Who closes second never waits: both do only when both were first.
    wait_for("both to be in TIME_WAIT", Duration::from_secs(10), || {
        kernel_sockets(&guarded, TIME_WAIT) == 1 && guarded.stack("time-wait-entered") == 1
    });
    assert_eq!((guarded.stack("resets-in"), guarded.stack("resets-out")), (0, 0));
}

/// Reads and writes until the other side's reset is known: one that was lost is sent again in answer to what comes. An orderly
/// end is none.
fn is_reset(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a time limit");
    let failed = || {
        let told = match stream.read(&mut [0; 9]) {
            Ok(len) => panic!("{len} bytes instead of a reset"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => stream.write_all(b"?"),
            Err(error) => Err(error),
        };
        if let Err(error) = &told {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        }
        told.is_err()
    };
    wait_for("a reset", Duration::from_secs(60), failed);
}

#[test]
fn connections_end_as_they_should_over_a_path_that_takes_time_whatever_is_lost() {
    let config = LabConfig { delay: Some(Duration::from_millis(20)), ..LabConfig::new(lab_object()) };
    let guarded = Guarded::up(config, &["--protect", RELAYED]);
    for (name, value) in [("time-wait", "1s"), ("keepalive-time", "1s"), ("keepalive-interval", "1s")] {
        guarded.tune(name, value);
    }
    let answer: Vec<u8> = (0..200_000_u32).map(|byte| (byte % 251) as u8).collect();
    for percent in [0, 1, 5] {
        guarded.lab.lose(f64::from(percent) / 100.0).expect("losses");
        let retransmitted = guarded.stack("retransmitted");
        // Half-closed by the client, and answered at length.
        let (mut client, mut server) = relayed(&guarded);
        client.write_all(&answer[..50_000]).expect("a question");
        client.shutdown(Shutdown::Write).expect("the client closes");
        let mut read = Vec::new();
        server.read_to_end(&mut read).expect("the question and its end");
        assert!(read == answer[..50_000], "{percent} %");
        server.write_all(&answer).expect("an answer");
        drop(server);
        read.clear();
        client.read_to_end(&mut read).expect("the answer and its end");
        assert!(read == answer, "{percent} %");
        // By the server, which hears the client out.
        let (mut client, mut server) = relayed(&guarded);
        server.shutdown(Shutdown::Write).expect("the server closes");
        assert_eq!(client.read(&mut [0; 9]).expect("the server's end"), 0);
        client.write_all(&answer[..50_000]).expect("the rest");
        drop(client);
        read.clear();
        server.read_to_end(&mut read).expect("the rest and its end");
        assert!(read == answer[..50_000], "{percent} %");
        // By both at once, as far as that can be had: a busy machine may be slower than the path.
        assert!((0..10).any(|_| close_at_once(&guarded)), "never at once, {percent} %");
        // Reset, by one and by the other.
        for by_server in [true, false] {
            let (client, server) = relayed(&guarded);
            let (ends, mut stays) = if by_server { (server, client) } else { (client, server) };
            SockRef::from(&ends).set_linger(Some(Duration::ZERO)).expect("no lingering");
            drop(ends);
            is_reset(&mut stays);
        }
        // Kept alive, by probes that are answered.
        let (mut client, mut server) = relayed(&guarded);
        let probes = guarded.stack("keepalive-probes");
        wait_for("probes", Duration::from_secs(20), || guarded.stack("keepalive-probes") > probes + 2);
        client.write_all(b"still").expect("the client is there");
        let mut still = [0; 5];
        server.read_exact(&mut still).expect("what the client says");
        server.write_all(&still).expect("so is the server");
        client.read_exact(&mut still).expect("what the server says");
        assert_eq!(&still, b"still");
        drop((client, server));
        // Until something was lost: a hundred segments may all arrive.
        wait_for("a retransmission", Duration::from_secs(60), || {
            let (mut client, mut server) = relayed(&guarded);
            server.write_all(&answer).expect("an answer");
            drop(server);
            let mut read = Vec::new();
            client.read_to_end(&mut read).expect("the answer and its end");
            assert!(read == answer, "{percent} %");
            percent == 0 || guarded.stack("retransmitted") > retransmitted
        });
        wait_for("everything to be over", Duration::from_secs(60), || guarded.flows(None).is_empty());
    }
    assert_eq!(guarded.stack("keepalive-expired"), 0);
}

#[test]
fn keepalive_probes_are_answered_both_ways_until_one_end_is_gone() {
    const ESTABLISHED: &str = "01";
    let guarded = Guarded::up(LabConfig::new(lab_object()), &["--protect", RELAYED]);
    for (name, value) in [("keepalive-time", "1s"), ("keepalive-interval", "1s"), ("keepalive-probes", "2")] {
        guarded.tune(name, value);
    }
    let (client, _server) = relayed(&guarded);
    let second = Duration::from_secs(1);
    let probing = TcpKeepalive::new().with_time(second).with_interval(second).with_retries(2);
    SockRef::from(&client).set_tcp_keepalive(&probing).expect("keepalive");
    wait_for("probes of a silent client", 10 * second, || guarded.stack("keepalive-probes") >= 2);
    // By then the client's kernel would have given up, too.
    thread::sleep(2 * second);
    assert_eq!((kernel_sockets(&guarded, ESTABLISHED), guarded.stack("keepalive-expired")), (1, 0));
    guarded
        .lab
        .client()
        .nft("table ip deaf {\nchain out {\ntype filter hook output priority 0\ntcp dport 81 drop\n}\n}\n")
        .expect("a client that says nothing any more");
    wait_for("the guard to give up", 20 * second, || guarded.stack("keepalive-expired") == 1);
    assert_eq!(guarded.flows(Some("ESTABLISHED")).len(), 0);
}

#[test]
fn a_kernel_client_and_the_guard_speak_ecn() {
    let config = LabConfig { loss: Some(0.0), ..LabConfig::new(lab_object()) };
    let guarded = Guarded::up(config, &[]);
    guarded.lab.client().sysctl(&[("net/ipv4/tcp_ecn", "1")]).expect("ECN");
    let router = guarded.lab.router().expect("a router");
    // Every hundredth segment that may be marked, either way.
    router
        .nft(
            "table ip marks {\nchain forward {\ntype filter hook forward priority 10\n\
             ip ecn ect0 numgen inc mod 100 == 7 ip ecn set ce counter\n}\n}\n",
        )
        .expect("marks");
    guarded.backend.file("large", 5_000_000).expect("a file to download");
    assert_downloads(&guarded, &["large".to_owned()]);
    assert!(guarded.stack("ecn-reductions") > 0, "the client's kernel echoes marks, and is heard");
    assert_upload(&guarded, 5_000_000, 1);
    assert!(guarded.stack("congestion-marks") > 0, "the client's kernel sends what may be marked");
    let netstat = guarded.lab.client().output("cat", &["/proc/net/netstat"]).expect("the client's counters");
    assert_ne!(counted(&netstat, "TCPDeliveredCE"), "0", "our echoes are heard");
}
