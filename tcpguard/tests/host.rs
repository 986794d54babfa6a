//! What the guarded host's kernel sees: nothing of protected ports, everything else as before.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use support::raw::{Outgoing, RawPort, linux_options};
use support::{BACKEND_PORT, Guarded, PORT, lab_object, wait_for};
use tcpguard_common::flow::V6;
use tcpguard_common::packet::Flags;
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

/// TCP segments that the kernel of the guarded host was given.
fn segments_in(guarded: &Guarded) -> u64 {
    let said = guarded.lab.guard().output("cat", &["/proc/net/snmp"]).expect("/proc/net/snmp");
    let mut lines = said.lines().filter(|line| line.starts_with("Tcp:")).map(str::split_whitespace);
    let [mut names, mut values] = [(); 2].map(|()| lines.next().expect("names and values of TCP"));
    let at = names.position(|name| name == "InSegs").expect("a name");
    values.nth(at).and_then(|value| value.parse().ok()).expect("a number")
}

/// SYNs whose port only the whole chain of their extension headers gives away. In the first, and in the second, which pads
/// the first with something innocent, the chain is cut by a fragment; the third is long.
fn behind_chains(syn: &[u8], id: u8) -> [Vec<Vec<u8>>; 3] {
    const ETHERNET_AND_IP: usize = 54;
    let with = |next: u8, payload: &[u8], padding: &[u8]| {
        let mut frame = syn[..ETHERNET_AND_IP].to_vec();
        frame[18..20].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        frame[20] = next;
        [&frame, payload, padding].concat()
    };
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let fragment = |offset_and_more: u8, id: u8| [60, 0, 0, offset_and_more, 0, 0, 0, id];
    let tcp = &syn[ETHERNET_AND_IP..];
    let innocent = [&options(6)[..], &[0xc3, 0x50, 0, 22], &tcp[4..]].concat();
    let cut = |id: u8, padding: &[u8]| {
        let first = [fragment(1, id), options(60)].concat();
        let last = [&fragment(8, id)[..], &options(6), tcp].concat();
        vec![with(44, &first, padding), with(44, &last, &[])]
    };
    let long = [&options(60).repeat(6)[..], &options(6), tcp].concat();
    [cut(id, &[]), cut(id + 1, &innocent), vec![with(60, &long, &[])]]
}

#[test]
fn no_chain_of_ipv6_headers_takes_a_segment_past_the_guard() {
    let protect = format!("[fd77::1]:{PORT}=127.0.0.1:{BACKEND_PORT}");
    let mut guarded = Guarded::up(LabConfig::new(lab_object()), &["--protect", &protect]);
    guarded.lab.guard().ip(&format!("addr add fd77::1/64 dev {GUARD_INTERFACE} nodad")).expect("an address");
    let port = RawPort::open(&guarded.lab, Ipv4Addr::new(10, 77, 0, 9));
    let syn = |to_port: u16| {
        let [here, there] =
            ["fd77::9", "fd77::1"].map(|ip| V6(ip.parse::<Ipv6Addr>().expect("an address").octets()));
        let syn = Outgoing { flags: Flags::SYN, options: linux_options(), ..Outgoing::default() };
        port.between(here, there, 50_000, to_port, &syn)
    };
    let send = |id| behind_chains(&syn(PORT), id).iter().flatten().for_each(|frame| port.send(frame));

    let before = segments_in(&guarded);
    send(1);
    // Frames stay in order, so that the kernel has seen what it sees of the others when it sees this.
    port.send(&syn(PORT + 1));
    wait_for("the segment to another port", Duration::from_secs(20), || segments_in(&guarded) > before);
    assert_eq!(segments_in(&guarded), before + 1);
    assert_eq!(guarded.reason("header-chain"), 3);

    // Without the guard they get through.
    assert!(guarded.take_daemon().stop(Duration::from_secs(20)).expect("the daemon ends").success());
    let before = segments_in(&guarded);
    send(3);
    wait_for("three segments", Duration::from_secs(20), || segments_in(&guarded) == before + 3);
}
