//! What a service does with its connections, live: a kernel's clients at one end, the guard's responders at the other.

mod support;

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::{Guarded, lab_object, wait_for};
use xtask::lab::{GUARD_ADDRESS, LabConfig};

const ECHO: u16 = 81;
const DISCARD: u16 = 82;
const HTTP: u16 = 83;
const SOON: Duration = Duration::from_secs(5);

fn guarded_with_responders() -> Guarded {
    let services: Vec<_> = [(ECHO, "echo"), (DISCARD, "discard"), (HTTP, "http")]
        .map(|(port, responder)| format!("{GUARD_ADDRESS}:{port}=respond:{responder}"))
        .into();
    let arguments: Vec<_> = services.iter().flat_map(|service| ["--protect", service]).collect();
    Guarded::up(LabConfig::new(lab_object()), &arguments)
}

fn connect(guarded: &Guarded, port: u16) -> TcpStream {
    let stream = guarded.lab.client().enter(|| TcpStream::connect((GUARD_ADDRESS, port)));
    let stream = stream.expect("the client's namespace").expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a read timeout");
    stream
}

fn counted(guarded: &Guarded, name: &str) -> u64 {
    guarded.json(&["stats"])["totals"]["service"][name].as_u64().expect("a counter")
}

/// Sends `bytes` and ends, while it reads to the end.
fn exchange(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let mut writer = stream.try_clone().expect("a second handle");
    thread::scope(|scope| {
        scope.spawn(move || {
            writer.write_all(bytes).expect("sending");
            writer.shutdown(Shutdown::Write).expect("ending");
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("reading to the end");
        received
    })
}

#[test]
fn echo_and_discard_answer_a_kernels_client_and_leave_nothing_behind() {
    let guarded = guarded_with_responders();
    let sent: Vec<u8> = (0..5_000_000_u32).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect();
    assert!(exchange(connect(&guarded, ECHO), &sent) == sent);
    assert!(exchange(connect(&guarded, DISCARD), &sent).is_empty());
    // A question each, on one connection.
    let mut stream = connect(&guarded, ECHO);
    for question in [&b"a"[..], b"bc"] {
        stream.write_all(question).expect("asking");
        let mut answer = vec![0; question.len()];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer, question);
    }
    drop(stream);
    wait_for("every flow to end", SOON, || guarded.flows(Some("ESTABLISHED")).is_empty());
    assert_eq!((counted(&guarded, "connected"), counted(&guarded, "client-failed")), (3, 0));
    assert_eq!(counted(&guarded, "bytes-to-backend"), 2 * sent.len() as u64 + 3);
}

#[test]
fn http_is_answered_with_keep_alive_and_pipelined() {
    let guarded = guarded_with_responders();
    let url = format!("http://{GUARD_ADDRESS}:{HTTP}/");
    // curl asks several times on the connection it has, with a body of either framing, and without one.
    let body = guarded.lab.dir().join("body");
    xtask::lab::write_pattern(&body, 300_000).expect("a body");
    let file = format!("@{}", body.display());
    for framing in
        [&["--data-binary", &file][..], &["-H", "Transfer-Encoding: chunked", "--data-binary", &file], &[]]
    {
        let arguments = [framing, &["--write-out", "%{num_connects} ", &url, &url, &url]].concat();
        let output = guarded.curl(&arguments);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said, "ok\n1 ok\n0 ok\n0 ", "{framing:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // Many requests in one go, of which the last one ends the connection.
    let mut stream = connect(&guarded, HTTP);
    let mut requests = "GET / HTTP/1.1\r\nHost: guard\r\n\r\n".repeat(500);
    requests += "GET / HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n";
    stream.write_all(requests.as_bytes()).expect("asking");
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("all answers and the end");
    assert_eq!(answers.matches("\r\n\r\nok\n").count(), 501);
    assert_eq!((counted(&guarded, "requests"), counted(&guarded, "bad-requests")), (9 + 501, 0));
    let mut stream = connect(&guarded, HTTP);
    stream.write_all(b"\x16\x03\x01 this is no request\r\n\r\n").expect("sending");
    let mut refusal = String::new();
    stream.read_to_string(&mut refusal).expect("a refusal and the end");
    assert!(refusal.starts_with("HTTP/1.1 400 "), "{refusal}");
    assert_eq!(counted(&guarded, "bad-requests"), 1);
}

#[test]
fn status_names_the_responder_as_it_was_asked_for() {
    let guarded = guarded_with_responders();
    let services = guarded.json(&["status"])["services"].clone();
    let echo = &services[1];
    assert_eq!((echo["respond"].as_str(), echo["backend"].as_str()), (Some("echo"), None), "{services}");
    let said = String::from_utf8(guarded.cli(&["status"]).stdout).expect("text");
    assert!(
        said.contains(&format!("service {GUARD_ADDRESS}:{HTTP} -> respond:http, auto (calm)\n")),
        "{said}"
    );
}

/// The backends of the service at port 84.
fn backends(guarded: &Guarded) -> Value {
    let status = guarded.json(&["status"]);
    let services = status["services"].as_array().expect("services");
    let service = services.iter().find(|service| service["listen"] == format!("{GUARD_ADDRESS}:84"));
    service.expect("the service")["backends"].clone()
}

/// A guard with one more service, as `[[service]]` has it.
fn guarded_with(name: &str, service: &str) -> Guarded {
    guarded_in(LabConfig::new(lab_object()), name, service)
}

fn guarded_in(lab: LabConfig, name: &str, service: &str) -> Guarded {
    let file = std::env::temp_dir().join(format!("tcpguard-services-{name}-{}.toml", std::process::id()));
    std::fs::write(&file, format!("[[service]]\nlisten = \"{GUARD_ADDRESS}:84\"\n{service}\n"))
        .expect("a file");
    let guarded = Guarded::up(lab, &["--config", &file.display().to_string()]);
    std::fs::remove_file(file).expect("removing the file");
    guarded
}

#[test]
fn clients_of_a_dead_backend_get_the_living_one_which_is_told_who_they_are() {
    let guarded =
        guarded_with("backends", "backend = [\"127.0.0.1:9001\", \"[::1]:9002\"]\nproxy_protocol = \"v1\"\n");
    let alive = guarded.listen("[::1]:9002");
    for _ in 0..6 {
        let mut client = connect(&guarded, 84);
        client.write_all(b"question").expect("asking");
        let (mut server, _) = alive.accept().expect("the relayed connection");
        let local = client.local_addr().expect("an address");
        let greeting = format!("PROXY TCP4 {} {GUARD_ADDRESS} {} 84\r\nquestion", local.ip(), local.port());
        let mut said = vec![0; greeting.len()];
        server.read_exact(&mut said).expect("a greeting and the question");
        assert_eq!(String::from_utf8_lossy(&said), greeting);
    }
    let backends = backends(&guarded);
    assert_eq!((&backends[1]["connected"], &backends[0]["connected"]), (&6.into(), &0.into()), "{backends}");
    assert!(backends[0]["failed"].as_u64() >= Some(1), "{backends}");
    assert_eq!(counted(&guarded, "retried"), backends[0]["failed"].as_u64().expect("a count"));
    assert_eq!(counted(&guarded, "backend-refused"), 0);
    let said = String::from_utf8(guarded.cli(&["status"]).stdout).expect("text");
    assert!(said.contains("-> 127.0.0.1:9001,[::1]:9002, auto (calm)\n  backend 127.0.0.1:9001: "), "{said}");
}

/// Asks, and whether somebody took the question at `backend`; if not, it was a reset.
fn asks(guarded: &Guarded, backend: &TcpListener) -> Option<(TcpStream, TcpStream)> {
    backend.set_nonblocking(true).expect("a listener that can be given up");
    let ask = || -> io::Result<TcpStream> {
        let mut client = TcpStream::connect((GUARD_ADDRESS, 84))?;
        client.set_read_timeout(Some(Duration::from_millis(20)))?;
        client.write_all(b"?")?;
        Ok(client)
    };
    let mut client = guarded.lab.client().enter(ask).expect("the client's namespace");
    let deadline = Instant::now() + SOON;
    loop {
        assert!(Instant::now() < deadline, "neither a question nor a reset");
        // The reset may be there before the handshake is noticed.
        let said = match &mut client {
            Ok(client) => client.read(&mut [0]).expect_err("an answer").kind(),
            Err(error) => error.kind(),
        };
        match said {
            ErrorKind::WouldBlock => {}
            ErrorKind::ConnectionReset => return None,
            other => panic!("neither a question nor a reset: {other:?}"),
        }
        if let Ok((mut server, _)) = backend.accept() {
            server.set_nonblocking(false).expect("a blocking stream");
            server.read_exact(&mut [0]).expect("the question");
            return Some((client.expect("a connection"), server));
        }
    }
}

/// It was taken for a lack of ports that no other backend could mend: every second client was reset, and nothing showed why.
#[test]
fn a_backend_of_a_family_that_this_host_has_switched_off_costs_no_client() {
    let guarded = guarded_with("family", "backend = [\"[::1]:9001\", \"127.0.0.1:9001\"]\n");
    guarded.lab.guard().sysctl(&[("net/ipv6/conf/all/disable_ipv6", "1")]).expect("no IPv6");
    let alive = guarded.listen("127.0.0.1:9001");
    for _ in 0..6 {
        asks(&guarded, &alive).expect("a reset");
    }
    let backends = backends(&guarded);
    assert_eq!((&backends[1]["connected"], &backends[1]["failed"]), (&6.into(), &0.into()), "{backends}");
    let failed = backends[0]["failed"].as_u64().expect("a count");
    assert!(failed >= 3 && backends[0]["rests_ms"].is_null(), "it never said anything: {backends}");
    assert_eq!((counted(&guarded, "retried"), counted(&guarded, "exhausted")), (failed, 0));
}

#[test]
fn clients_for_whom_there_is_no_port_left_towards_one_backend_get_another_as_long_as_there_is_one() {
    let guarded = guarded_with("ports", "backend = [\"127.0.0.1:9001\", \"127.0.0.1:9002\"]\n");
    let ports = [("net/ipv4/ip_local_port_range", "41000 41001")];
    guarded.lab.guard().sysctl(&ports).expect("two ports");
    let [full, alive] = [9001, 9002].map(|port| guarded.listen(("127.0.0.1", port)));
    let fill = || [(); 2].map(|()| TcpStream::connect(("127.0.0.1", 9001)).expect("a port"));
    let filling = guarded.lab.guard().enter(fill).expect("the guard's namespace");
    let served = [(); 2].map(|()| asks(&guarded, &alive).expect("a reset"));
    let backends = backends(&guarded);
    assert_eq!((&backends[0]["connected"], &backends[1]["connected"]), (&0.into(), &2.into()), "{backends}");
    assert_eq!((&backends[0]["failed"], counted(&guarded, "exhausted")), (&2.into(), 0), "{backends}");
    assert!(asks(&guarded, &alive).is_none(), "served without a port");
    assert_eq!(counted(&guarded, "exhausted"), 1);
    drop((full, filling, served));
}

#[test]
fn a_backend_that_no_route_leads_to_is_a_reset_and_a_cause_and_serves_as_soon_as_one_does() {
    let guarded = guarded_with("unreachable", "backend = \"192.0.2.9:9001\"\n");
    let guard = guarded.lab.guard();
    guard.ip("route add unreachable 192.0.2.9/32").expect("a route that leads nowhere");
    for done in 1..=2 {
        // The reset may be there before the handshake is noticed.
        let attempt = || TcpStream::connect((GUARD_ADDRESS, 84))?.read(&mut [0; 1]);
        let end = guarded.lab.client().enter(attempt).expect("the client's namespace");
        assert_eq!(end.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        assert_eq!(counted(&guarded, "backend-unreachable"), done);
    }
    assert_eq!(backends(&guarded)[0]["failed"], 2);
    guard.ip("route del unreachable 192.0.2.9/32\naddr add 192.0.2.9/32 dev lo").expect("an address");
    let listener = guarded.listen("192.0.2.9:9001");
    asks(&guarded, &listener).expect("a reset");
    let backend = backends(&guarded)[0].clone();
    assert_eq!((&backend["connected"], &backend["rests_ms"]), (&1.into(), &Value::Null), "{backend}");
    assert_eq!((counted(&guarded, "accepted"), counted(&guarded, "backend-unreachable")), (3, 2));
}

#[test]
fn a_unix_socket_serves_clients_and_limits_hold() {
    let path = std::env::temp_dir().join(format!("tcpguard-services-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).expect("a socket");
    let guarded = guarded_with(
        "limits",
        &format!("backend = \"unix:{}\"\nmax_connections = 1\nidle_time = \"3s\"\n", path.display()),
    );
    let mut client = connect(&guarded, 84);
    client.write_all(b"question").expect("asking");
    let (mut server, _) = listener.accept().expect("the relayed connection");
    let mut question = [0; 8];
    server.read_exact(&mut question).expect("the question");
    server.write_all(b"answer").expect("answering");
    let mut answer = [0; 6];
    client.read_exact(&mut answer).expect("the answer");
    assert_eq!((&question, &answer), (b"question", b"answer"));
    let service = format!("{GUARD_ADDRESS}:84");
    // However often the service changes, the connection that there is counts.
    for timeout in ["connect_timeout=1s", "connect_timeout=2s"] {
        // The reset may be there before the handshake is noticed.
        let attempt = || TcpStream::connect((GUARD_ADDRESS, 84))?.read(&mut [0; 1]);
        let refused = guarded.lab.client().enter(attempt).expect("the client's namespace");
        let refused = refused.expect_err("a reset: one connection at a time");
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
        assert!(guarded.cli(&["services", "set", &service, timeout]).status.success());
        let backend = backends(&guarded)[0].clone();
        assert_eq!((&backend["connections"], &backend["connected"]), (&1.into(), &1.into()), "{backend}");
    }
    let idle = client.read(&mut [0; 1]).expect_err("a reset: idle for too long");
    assert_eq!(idle.kind(), ErrorKind::ConnectionReset);
    assert_eq!(server.read(&mut [0; 1]).expect("the end"), 0);
    assert_eq!((counted(&guarded, "over-limit"), counted(&guarded, "idle")), (2, 1));
    std::fs::remove_file(path).expect("removing the socket");
}

/// Has what backends at ports 9003 and 9004 answer to clients come back to the guard.
fn route_back(guarded: &Guarded, family: &str, from: &str) {
    let guard = guarded.lab.guard();
    let rule = [family, "rule", "add", "from", from, "ipproto", "tcp", "sport", "9003-9004", "lookup", "100"];
    guard.output("ip", &rule).expect("a rule");
    let route = [family, "route", "add", "local", "default", "dev", "lo", "table", "100"];
    guard.output("ip", &route).expect("a route");
}

/// A port that the client had towards one backend used to be taken towards all; and when there was none left, all of them were
/// put to rest for everybody.
#[test]
fn a_client_has_its_own_ports_towards_each_backend_that_sees_its_address() {
    let keys = "backend = [\"127.0.0.1:9003\", \"127.0.0.1:9004\"]\nsource = \"client\"\n";
    let guarded = guarded_with("own-ports", keys);
    route_back(&guarded, "-4", "127.0.0.1");
    let ports = [("net/ipv4/ip_local_port_range", "41000 41001")];
    guarded.lab.guard().sysctl(&ports).expect("two ports");
    let [first, second] = [9003, 9004].map(|port| guarded.listen(("127.0.0.1", port)));
    let served = [&first, &second, &first, &second].map(|backend| asks(&guarded, backend).expect("a reset"));
    assert!(asks(&guarded, &first).is_none(), "served without a port");
    assert_eq!((counted(&guarded, "connected"), counted(&guarded, "exhausted")), (4, 1));
    let backends = backends(&guarded);
    for backend in [&backends[0], &backends[1]] {
        assert_eq!((&backend["connected"], &backend["failed"]), (&2.into(), &1.into()), "{backends}");
        assert!(backend["rests_ms"].is_null(), "that is nobody else's affair: {backends}");
    }
    drop(served);
}

/// One address that a backend's firewall drops used to put that backend to rest for everybody.
#[test]
fn a_client_that_one_backend_does_not_answer_costs_others_nothing_until_it_answers_several() {
    let keys = "backend = [\"127.0.0.1:9003\", \"127.0.0.1:9004\"]\nsource = \"client\"\n";
    let lab = LabConfig { client_addresses: 3, ..LabConfig::new(lab_object()) };
    let guarded = guarded_in(lab, "banned", &format!("{keys}connect_timeout = \"200ms\"\n"));
    route_back(&guarded, "-4", "127.0.0.1");
    let ban = |client: Ipv4Addr| {
        let rule = format!("rule add pref 10 from 127.0.0.1 to {client} ipproto tcp sport 9003 blackhole");
        guarded.lab.guard().ip(&rule).expect("a rule");
    };
    for port in [9003, 9004] {
        let listener = guarded.listen(("127.0.0.1", port));
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                // What goes wrong here, the client notices.
                let _ = client.write_all(&port.to_be_bytes());
            }
        });
    }
    let ask = |client: Ipv4Addr| {
        let asked = || -> io::Result<u16> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((client, 0)).into())?;
            socket.connect_timeout(&SocketAddr::from((GUARD_ADDRESS, 84)).into(), SOON)?;
            socket.set_read_timeout(Some(SOON))?;
            let mut answer = [0; 2];
            TcpStream::from(socket).read_exact(&mut answer)?;
            Ok(u16::from_be_bytes(answer))
        };
        guarded.lab.client().enter(asked).expect("the client's namespace").expect("an answer")
    };
    let [banned, other, third]: [Ipv4Addr; 3] = guarded.lab.client_addresses().try_into().expect("three");
    ban(banned);
    assert_eq!(ask(banned), 9004);
    let mut answered = [(); 4].map(|()| ask(other));
    answered.sort_unstable();
    assert_eq!(answered, [9003, 9003, 9004, 9004], "{}", backends(&guarded));
    let of_first = backends(&guarded)[0].clone();
    assert_eq!((&of_first["connected"], &of_first["failed"]), (&2.into(), &1.into()), "{of_first}");
    assert!(of_first["rests_ms"].is_null(), "{of_first}");
    // It left it alone for a moment itself.
    thread::sleep(Duration::from_secs(1));
    ban(other);
    for client in [banned, banned, other, other] {
        assert_eq!(ask(client), 9004);
    }
    assert_eq!([(); 2].map(|()| ask(third)), [9004; 2], "it answers nobody, as far as anybody can tell");
    assert!(!backends(&guarded)[0]["rests_ms"].is_null());
}

#[test]
fn backends_see_their_clients_own_addresses_where_routes_bring_answers_back() {
    const BACKENDS: [&str; 2] = ["127.0.0.1:9003", "[::1]:9003"];
    let keys =
        |backend| format!("backend = \"{backend}\"\nsource = \"client\"\nconnect_timeout = \"500ms\"\n");
    let second =
        format!("{}[[service]]\nlisten = \"[fd77::1]:84\"\n{}", keys(BACKENDS[0]), keys(BACKENDS[1]));
    let guarded = guarded_with("source", &second);
    let (guard, client) = (guarded.lab.guard(), guarded.lab.client());
    guard.ip("addr add fd77::1/64 dev guard0 nodad").expect("an address");
    client.ip("addr add fd77::2/64 dev client0 nodad").expect("an address");
    let listeners = BACKENDS.map(|backend| guarded.listen(backend));
    let ask = |service: &str| {
        let asked = || {
            let mut stream = TcpStream::connect(service)?;
            stream.set_read_timeout(Some(SOON))?;
            stream.write_all(b"question")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        };
        client.enter(asked).expect("the client's namespace")
    };
    let services = [format!("{GUARD_ADDRESS}:84"), "[fd77::1]:84".to_owned()];
    // What the backend answers goes to the client itself, which knows nothing of it.
    for (done, service) in services.iter().enumerate() {
        assert_eq!(ask(service).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
        assert_eq!(counted(&guarded, "backend-timeout"), done as u64 + 1);
    }
    route_back(&guarded, "-4", "127.0.0.1");
    route_back(&guarded, "-6", "::1");
    for ((listener, service), from) in listeners.iter().zip(&services).zip(["10.77.0.2", "fd77::2"]) {
        let (answer, peer) = thread::scope(|scope| {
            let asking = scope.spawn(|| ask(service));
            // Attempts from before there were routes may be there first, and go on being tried.
            let peer = loop {
                let (mut server, peer) = listener.accept().expect("the relayed connection");
                let mut question = [0; 8];
                if server.read_exact(&mut question).is_ok() {
                    assert_eq!(&question, b"question");
                    server.write_all(peer.ip().to_string().as_bytes()).expect("answering");
                    break peer;
                }
            };
            (asking.join().expect("a client").expect("an answer"), peer)
        });
        assert_eq!((answer.as_str(), peer.ip().to_string().as_str()), (from, from));
    }
    assert_eq!(counted(&guarded, "connected"), 2);
}
