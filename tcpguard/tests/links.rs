//! What others change of a guarded interface while the daemon lives: its address, its MTU, and whether it is up. Needs
//! root.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use support::raw::{Handshake, Outgoing, RawPort, linux_options};
use support::setup::*;
use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;
use xtask::lab::{CLIENT_INTERFACE, GUARD_INTERFACE};

/// A host on the client's link that no kernel has.
const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 99);
const OTHER_MAC: &str = "02:00:00:77:00:99";

/// Gives the guarded interface another address, and tells the client, as ARP would in the end.
fn change_mac(setup: &Setup) -> Result<()> {
    setup.lab.guard().ip(&format!("link set {GUARD_INTERFACE} address {OTHER_MAC}"))?;
    let neighbour =
        format!("neigh replace 10.77.0.1 lladdr {OTHER_MAC} dev {CLIENT_INTERFACE} nud permanent");
    setup.lab.client().ip(&neighbour)
}

fn set_mtu(setup: &Setup, mtu: u32) -> Result<()> {
    setup.lab.guard().ip(&format!("link set {GUARD_INTERFACE} mtu {mtu}"))?;
    setup.lab.client().ip(&format!("link set {CLIENT_INTERFACE} mtu {mtu}"))
}

fn until_said(setup: &Setup, what: &str) -> Result<()> {
    eventually(what, || Ok(setup.said().contains(what)))
}

/// Asks for the file on a connection that is open.
fn fetch_on(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"GET /small HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// The MSS that a SYN is answered with.
fn offered_mss(raw: &RawPort, port: u16) -> Result<u16> {
    let handshake = raw.syn(port, SERVICE.port(), 1, linux_options());
    let mss = handshake.and_then(|handshake| handshake.syn_ack.options.mss);
    mss.ok_or_else(|| anyhow::anyhow!("no SYN-ACK with an MSS"))
}

/// The daemon used to know the address that the interface had when it started: segments to another one passed to the
/// host, unguarded.
#[test]
fn a_changed_mac_address_stays_guarded() -> Result<()> {
    let setup = Setup::new()?;
    let daemon = setup.daemon(&[])?;
    let mut open = setup.keep_alive()?;
    let before = RawPort::open(&setup.lab, PEER);
    let Some(handshake) = before.syn(5000, SERVICE.port(), 7, linux_options()) else { panic!("no SYN-ACK") };
    before.send(&before.frame(5000, SERVICE.port(), &handshake.ack(b"")));
    eventually("adoption", || Ok(setup.state("ESTABLISHED")? == 2))?;

    change_mac(&setup)?;
    until_said(&setup, &format!("to {OTHER_MAC}: guarded at the new one"))?;
    let answered = setup.answered()?;
    // The host itself has nothing on this port: it would refuse.
    setup.fetch()?;
    fetch_on(&mut open)?;
    assert_eq!(setup.answered()?, answered + 1);
    let status = setup.json(&["status"])?;
    assert_eq!(
        (&status["interfaces"][0]["mac"], &status["interfaces"][0]["link"]),
        (&OTHER_MAC.into(), &"up".into())
    );

    // What the engine sends on a connection from before leaves from the new address.
    let after = RawPort::open(&setup.lab, PEER);
    after.send(&after.frame(5000, SERVICE.port(), &handshake.ack(b"GET /small HTTP/1.0\r\n\r\n")));
    let answer = after.receive(SERVICE.port(), 5000, SOON);
    let Some((_, frame)) = answer else { panic!("no answer to a request") };
    let sent_from: Vec<_> = frame[6..12].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(sent_from.join(":"), OTHER_MAC);

    // The old address is somebody else's now.
    let counted = setup.answered()?;
    let syn = Outgoing { seq: Seq(1), flags: Flags::SYN, options: linux_options(), ..Outgoing::default() };
    before.send(&before.frame(5001, SERVICE.port(), &syn));
    assert!(after.receive(SERVICE.port(), 5001, Duration::from_millis(300)).is_none());
    assert_eq!(setup.answered()?, counted);
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    Ok(())
}

/// Acknowledges what comes on a raw connection until as many bytes were there; the longest packet.
fn longest_packet(raw: &RawPort, handshake: &Handshake, request: &[u8], wanted: usize) -> Result<usize> {
    let (port, to_port) = (handshake.port, handshake.to_port);
    raw.send(&raw.frame(port, to_port, &handshake.ack(request)));
    let mut next = handshake.syn_ack.tcp.seq + 1;
    let (mut longest, mut got) = (0, 0);
    while got < wanted {
        let Some((segment, frame)) = raw.receive(to_port, port, SOON) else {
            anyhow::bail!("{got} bytes came")
        };
        if segment.payload.is_empty() || segment.tcp.seq != next {
            continue;
        }
        longest = longest.max(frame.len() - 14);
        got += segment.payload.len();
        next += segment.payload.len() as u32;
        let seq = handshake.next + request.len() as u32;
        let ack = Outgoing { seq, ack: next, ..handshake.ack(b"") };
        raw.send(&raw.frame(port, to_port, &ack));
    }
    Ok(longest)
}

#[test]
fn a_changed_mtu_bounds_what_is_sent_at_once_and_what_is_offered_from_the_next_epoch() -> Result<()> {
    let setup = Setup::new()?;
    setup.backend.file("large", 50_000)?;
    let _daemon = setup.daemon(&["--set", "cookie-period=2s"])?;
    let raw = RawPort::open(&setup.lab, PEER);
    assert_eq!(offered_mss(&raw, 6000)?, 1460);
    let Some(handshake) = raw.syn(6001, SERVICE.port(), 7, linux_options()) else { panic!("no SYN-ACK") };
    let request = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(longest_packet(&raw, &handshake, request, 20_000)?, 1500);

    set_mtu(&setup, 1300)?;
    until_said(&setup, "the MTU changed from 1500 to 1300")?;
    let Some(handshake) = raw.syn(6002, SERVICE.port(), 7, linux_options()) else { panic!("no SYN-ACK") };
    assert_eq!(longest_packet(&raw, &handshake, request, 20_000)?, 1300);
    eventually("the smaller MSS", || Ok(offered_mss(&raw, 6003)? == 1260))?;
    assert_eq!(setup.json(&["status"])?["interfaces"][0]["mtu"], 1300);

    set_mtu(&setup, 1500)?;
    eventually("the larger MSS", || Ok(offered_mss(&raw, 6004)? == 1460))?;
    setup.fetch()
}

/// In generic mode the kernel lets the MTU grow past what the daemon's frames hold.
#[test]
fn an_mtu_too_large_for_the_frames_is_an_error_said_and_connections_go_on() -> Result<()> {
    let setup = Setup::new()?;
    let second = setup.second_link()?;
    setup.backend.file("large", 200_000)?;
    let _daemon = setup.daemon_from_file(&Setup::second_guarded())?;
    setup.lab.client().ip("link set client1 mtu 9000")?;
    setup.lab.guard().ip("link set guard1 mtu 9000")?;
    until_said(&setup, "the MTU changed from 1500 to 9000, too large for AF_XDP frames")?;
    assert_eq!(setup.download(second, "large")?.len(), 200_000);
    setup.fetch()
}

#[test]
fn services_on_a_jumbo_interface_are_guarded_and_its_other_frames_pass_whole() -> Result<()> {
    let setup = Setup::new()?;
    let second = setup.second_link()?;
    let (guard, client) = (setup.lab.guard(), setup.lab.client());
    client.ip("link set client1 mtu 9000")?;
    guard.ip("link set guard1 mtu 9000")?;
    setup.backend.file("large", 3_000_000)?;
    // Native: whatever a client gets from a stateful service comes from the engine, not from XDP, which this veth would strand.
    let _daemon = setup.daemon_from_file(&Setup::second_guarded().replace("mode = \"generic\"\n", ""))?;
    until_said(&setup, "services keep to packets of 1500 bytes")?;
    assert!(guard.output("ip", &["link", "show", "dev", "guard1"])?.contains("mtu 9000 xdp "));
    assert!(setup.download(second, "large")? == std::fs::read(setup.backend.root().join("large"))?);
    setup.fetch()?;

    let before = setup.json(&["stats"])?["reasons"].take();
    let receiver = guard.enter(|| UdpSocket::bind("10.78.0.1:80"))??;
    receiver.set_read_timeout(Some(SOON))?;
    let sender = client.enter(|| UdpSocket::bind("10.78.0.2:0"))??;
    for len in [1400, 3400, 3500, 5000, 8972] {
        let datagram: Vec<u8> = (0..len).map(|byte: u32| (byte * 7) as u8).collect();
        sender.send_to(&datagram, "10.78.0.1:80")?;
        let mut received = vec![0; 9000];
        let (received_len, _) = receiver.recv_from(&mut received)?;
        assert!(received[..received_len] == datagram, "{len} bytes");
    }
    assert_eq!(setup.json(&["stats"])?["reasons"], before, "something that is not ours was counted");
    Ok(())
}

#[test]
fn an_interface_that_was_down_goes_on_where_it_was() -> Result<()> {
    let setup = Setup::new()?;
    let mut daemon = setup.daemon(&[])?;
    let mut open = setup.keep_alive()?;
    let link = || setup.json(&["status"]).map(|status| status["interfaces"][0]["link"].clone());
    setup.lab.guard().ip(&format!("link set {GUARD_INTERFACE} down"))?;
    until_said(&setup, "the interface is down")?;
    assert_eq!(link()?, "down");
    setup.lab.guard().ip(&format!("link set {GUARD_INTERFACE} up"))?;
    until_said(&setup, "the interface is up again")?;
    assert_eq!(link()?, "up");
    fetch_on(&mut open)?;
    setup.fetch()?;

    setup.lab.client().ip(&format!("link set {CLIENT_INTERFACE} down"))?;
    eventually("no carrier", || Ok(link()? == "no-carrier"))?;
    setup.lab.client().ip(&format!("link set {CLIENT_INTERFACE} up"))?;
    eventually("up once more", || Ok(link()? == "up"))?;
    assert!(daemon.ended()?.is_none());
    Ok(())
}

/// The client's route changes in mid-flow: what it sends comes to another interface, whose engine passes it on to the one that
/// has the connection.
#[test]
fn a_client_that_changes_its_way_to_another_interface_keeps_its_connection() -> Result<()> {
    let setup = Setup::new()?;
    setup.second_link()?;
    let _daemon = setup.daemon_from_file(&Setup::second_guarded())?;
    let mut open = setup.keep_alive()?;
    let client = setup.lab.client();
    // Answers go on coming to the first interface, which is no longer the way back.
    let loose = ["all", CLIENT_INTERFACE].map(|name| format!("net/ipv4/conf/{name}/rp_filter"));
    client.sysctl(&loose.each_ref().map(|name| (name.as_str(), "0")))?;
    let forwarded = |what: &str| -> Result<u64> {
        setup.json(&["stats"])?["totals"]["engine"][what].as_u64().ok_or_else(|| anyhow::anyhow!("no {what}"))
    };
    assert_eq!(forwarded("forwarded-in")?, 0);
    client.ip("route add 10.77.0.1/32 via 10.78.0.1 dev client1 src 10.77.0.2")?;
    fetch_on(&mut open)?;
    assert!(forwarded("forwarded-in")? > 0, "it never came the other way");
    assert_eq!(forwarded("forward-lost")?, 0);
    // A new connection is the other interface's own.
    setup.fetch()?;
    let flows = setup.json(&["flows"])?;
    let of = |name: &str| {
        let flows = flows["flows"].as_array().into_iter().flatten();
        flows.filter(|flow| flow["interface"] == name).count()
    };
    assert_eq!((of(GUARD_INTERFACE), of("guard1")), (1, 1), "{flows}");
    Ok(())
}
