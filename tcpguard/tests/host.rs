//! What the guarded host's kernel sees: nothing of protected ports, everything else as before.

mod support;

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::time::Duration;

use support::{BACKEND_PORT, Guarded, PORT, lab_object, wait_for};
use xtask::lab::{FloodSpec, GUARD_ADDRESS, GUARD_INTERFACE, LabConfig};

/// Counts packets to the protected port before anything else in the host can have an opinion.
fn count_in_prerouting(guarded: &Guarded) {
    let script = format!(
        "table ip watch {{\nchain prerouting {{\ntype filter hook prerouting priority -300\ntcp dport {PORT} counter\n}}\n}}"
    );
    guarded.lab.guard().nft(&script).expect("an nftables counter");
}

fn counted(guarded: &Guarded) -> u64 {
    let said = guarded.lab.guard().output("nft", &["list", "table", "ip", "watch"]).expect("nft list");
    let packets = said.split_once("counter packets ").expect("a counter").1;
    packets.split(' ').next().and_then(|count| count.parse().ok()).expect("a number")
}

#[test]
fn the_kernel_never_sees_the_protected_port() {
    let mut guarded = Guarded::simple();
    count_in_prerouting(&guarded);
    guarded.backend.file("hello", 100_000).expect("a file");
    let spec = FloodSpec { rate: 100_000, total: Some(100_000), ..FloodSpec::default() };
    let flood = guarded.lab.flood(PORT, spec).expect("a flood");
    for _ in 0..5 {
        assert!(guarded.curl(&["--output", "/dev/null", &guarded.url("hello")]).status.success());
    }
    flood.finish().expect("the flood ends");
    assert_eq!(counted(&guarded), 0);
}

#[test]
fn with_the_service_off_the_kernel_sees_the_port_and_the_segments_are_counted() {
    let config = |mode: &str| {
        format!(
            "[[interface]]\nname = \"{GUARD_INTERFACE}\"\n\n[[service]]\nlisten = \"{GUARD_ADDRESS}:{PORT}\"\n\
             backend = \"127.0.0.1:{BACKEND_PORT}\"\nmode = \"{mode}\"\n"
        )
    };
    let mut guarded = Guarded::simple();
    assert!(guarded.take_daemon().stop(Duration::from_secs(20)).expect("the daemon ends").success());
    let file = guarded.lab.dir().join("tcpguard.toml");
    std::fs::write(&file, config("off")).expect("a configuration");
    guarded.start_daemon_with_config(&file);
    count_in_prerouting(&guarded);
    let listener = guarded.listen((GUARD_ADDRESS, PORT));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = [0; 16];
        let _ = stream.read(&mut request).expect("a request");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhost")
            .expect("answer");
    });
    let output = guarded.curl(&[&guarded.url("x")]);
    assert_eq!(output.stdout, b"host");
    server.join().expect("the server");
    assert!(counted(&guarded) > 0);
    assert!(guarded.reason("service-off") >= counted(&guarded));
}

#[test]
fn other_ports_icmp_arp_and_udp_fragments_work_as_before() {
    let guarded = Guarded::simple();
    let before = guarded.reasons();
    let listener = guarded.listen((GUARD_ADDRESS, 9000));
    let client = guarded.lab.client();
    let mut stream = client
        .enter(|| std::net::TcpStream::connect((GUARD_ADDRESS, 9000)))
        .expect("the client's namespace")
        .expect("an unprotected port");
    let (mut server, _) = listener.accept().expect("a connection");
    stream.write_all(b"x").expect("sending");
    server.read_exact(&mut [0]).expect("receiving");

    client.ip("neigh del 10.77.0.1 dev client0").expect("forgetting the neighbour");
    client.output("ping", &["-c", "2", "-i", "0.2", "-W", "2", "10.77.0.1"]).expect("ARP and ICMP");
    client.output("ping", &["-c", "1", "-s", "4000", "-W", "2", "10.77.0.1"]).expect("ICMP in fragments");

    let bind = || UdpSocket::bind((GUARD_ADDRESS, PORT));
    let receiver = guarded.lab.guard().enter(bind).expect("the guard's namespace").expect("a UDP socket");
    receiver.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
    let sender =
        client.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("the client's namespace").expect("a UDP socket");
    let datagram: Vec<u8> = (0..6000_u32).map(|byte| byte as u8).collect();
    sender.send_to(&datagram, (GUARD_ADDRESS, PORT)).expect("sending in fragments");
    let mut received = vec![0; 8192];
    let (len, _) = receiver.recv_from(&mut received).expect("a reassembled datagram");
    assert_eq!(received[..len], datagram);
    assert_eq!(guarded.reasons(), before, "something that is not ours was counted");
}

#[test]
fn the_port_stays_closed_to_the_kernel_while_a_dead_daemon_has_grace() {
    let mut guarded = Guarded::up(LabConfig::new(lab_object()), &[]);
    guarded.tune("exit-grace", "4s");
    count_in_prerouting(&guarded);
    guarded.take_daemon().kill().expect("killing the daemon");
    // Inside the grace a client's SYN meets silence, not a reset from the kernel.
    let silent = guarded.curl(&["--connect-timeout", "2", &guarded.url("hello")]);
    assert!(!silent.status.success());
    assert_eq!(counted(&guarded), 0, "the kernel saw the port inside the grace");
    // After it, on_daemon_exit = pass: the kernel answers (here with a reset: nobody listens).
    wait_for("the kernel to see the port", Duration::from_secs(20), || {
        let _ = guarded.curl(&["--connect-timeout", "1", &guarded.url("hello")]);
        counted(&guarded) > 0
    });
}
