//! The daemon and its command line on a veth link: every verb, for people and for programs; what it refuses; how it
//! ends and what it leaves. Needs root.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use xtask::lab::{Backend, FloodSpec, GUARD_ADDRESS, GUARD_INTERFACE, Lab, LabConfig, Process};

const BINARY: &str = env!("CARGO_BIN_EXE_tcpguard");
const SERVICE: SocketAddrV4 = SocketAddrV4::new(GUARD_ADDRESS, 80);
/// The service on a second link.
const SECOND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 78, 0, 1), 80);
const BACKEND_PORT: u16 = 8080;
const SOON: Duration = Duration::from_secs(10);
/// The kernel's verifier alone takes a good part of a second for each interface, and labs share two cores.
const START: Duration = Duration::from_secs(60);

/// A lab with a backend, and the arguments of a daemon that guards it.
struct Setup {
    // Dropped in order: the backend before its lab.
    backend: Backend,
    lab: Lab,
}

impl Setup {
    fn new() -> Result<Self> {
        Self::with_clients(1)
    }

    fn with_clients(addresses: u8) -> Result<Self> {
        let mut config = LabConfig::new(concat!(env!("OUT_DIR"), "/tcpguard-lab"));
        config.queues = 2;
        config.client_addresses = addresses;
        let lab = Lab::up(config)?;
        let backend = lab.backend(BACKEND_PORT)?;
        backend.file("small", 1000)?;
        Ok(Self { backend, lab })
    }

    fn control(&self) -> PathBuf {
        self.lab.control_socket()
    }

    fn arguments(&self) -> Vec<String> {
        let protect = format!("{SERVICE}=127.0.0.1:{BACKEND_PORT}");
        let mut arguments: Vec<String> =
            ["run", "-i", GUARD_INTERFACE, "--protect", &protect].map(String::from).into();
        arguments.extend(["--pin-dir".into(), self.lab.pin_dir().display().to_string()]);
        arguments.extend(["--control".into(), self.control().display().to_string()]);
        arguments
    }

    /// The arguments with another value for one of them.
    fn replaced(&self, name: &str, value: &str) -> Result<Vec<String>> {
        let mut arguments = self.arguments();
        let at = arguments.iter().position(|argument| argument == name).context("no such argument")?;
        arguments[at + 1] = value.to_owned();
        Ok(arguments)
    }

    /// Starts the daemon and waits until it answers.
    fn daemon(&self, more: &[&str]) -> Result<Process> {
        self.start(self.lab.guard().command(BINARY).args(self.arguments()).args(more))
    }

    fn start(&self, command: &mut Command) -> Result<Process> {
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut daemon = Process::spawn(command.stderr(log))?;
        let answers = || self.ask(&["status"]).is_ok_and(|output| output.status.success());
        daemon.wait_until(START, answers).with_context(|| self.said())?;
        Ok(daemon)
    }

    /// Starts the daemon from a file: the guarded interface and service, and `more`, which begins with further keys
    /// of that interface.
    fn daemon_from_file(&self, more: &str) -> Result<Process> {
        let path = self.lab.dir().join("tcpguard.toml");
        let (pins, control) = (self.lab.pin_dir(), self.control());
        let text = format!(
            "pin_dir = {pins:?}\nmax_flows = 4096\n[control]\nsocket = {control:?}\n\
             [[service]]\nlisten = \"{SERVICE}\"\nbackend = \"127.0.0.1:{BACKEND_PORT}\"\n\
             [[interface]]\nname = \"{GUARD_INTERFACE}\"\n{more}"
        );
        std::fs::write(&path, text)?;
        self.start(self.lab.guard().command(BINARY).args(["run", "--config"]).arg(&path))
    }

    /// Another link between client and guard, `guard1` at this end; the service there.
    fn second_link(&self) -> Result<SocketAddrV4> {
        let (client, guard) = (self.lab.client(), self.lab.guard());
        let peer = format!("type veth peer name guard1 netns {}", guard.name());
        client.ip(&format!(
            "link add client1 {peer}\nlink set client1 up\naddr add 10.78.0.2/24 dev client1"
        ))?;
        guard.ip("link set guard1 up\naddr add 10.78.0.1/24 dev guard1")?;
        client.output("ethtool", &["-K", "client1", "tx", "off"])?;
        Ok(SECOND)
    }

    /// What a configuration file says about that link. Its far end has no XDP, without which a veth strands what native
    /// XDP sends.
    fn second_guarded() -> String {
        format!(
            "[[interface]]\nname = \"guard1\"\nmode = \"generic\"\n\
             [[service]]\nlisten = \"{SECOND}\"\nbackend = \"127.0.0.1:{BACKEND_PORT}\"\n"
        )
    }

    fn log(&self) -> PathBuf {
        self.lab.dir().join("daemon.log")
    }

    /// What the daemons of this lab wrote.
    fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Runs a daemon that is expected to end by itself at once.
    fn refused(&self, arguments: &[String]) -> Result<String> {
        let output = self.lab.guard().command(BINARY).args(arguments).output()?;
        one_line(&output, 2)
    }

    /// One verb, however it ends.
    fn ask(&self, arguments: &[&str]) -> Result<Output> {
        Ok(Command::new(BINARY).args(arguments).arg("--control").arg(self.control()).output()?)
    }

    /// What a verb that succeeds prints.
    fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self.ask(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {said}\n{}", self.said());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The one line of JSON of a verb.
    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.text(&[arguments, &["--json"]].concat())?;
        ensure!(text.lines().count() == 1, "{text}");
        let value: Value = serde_json::from_str(&text)?;
        ensure!(value["version"] == 1, "{value}");
        Ok(value)
    }

    fn reason(&self, name: &str) -> Result<u64> {
        let stats = self.json(&["stats"])?;
        let reasons = stats["reasons"].as_array().context("no reasons")?;
        let reason = reasons.iter().find(|reason| reason["name"] == name).context("no such reason")?;
        reason["total"].as_u64().context("no total")
    }

    fn state(&self, name: &str) -> Result<u64> {
        self.json(&["flows"])?["states"][name].as_u64().context("no such state")
    }

    /// Runs a verb with this on its standard input, and these in its environment.
    fn feed(&self, arguments: &[&str], input: &[u8], environment: &[(&str, &str)]) -> Result<Output> {
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--control").arg(self.control()).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().context("no pipe")?.write_all(input)?;
        Ok(child.wait_with_output()?)
    }

    /// The hits of the filter of a prefix.
    fn hits(&self, prefix: &str) -> Result<u64> {
        let list = self.json(&["filters", "--limit", "1000000"])?;
        let filters = list["filters"].as_array().context("no filters")?;
        let filter = filters.iter().find(|filter| filter["prefix"] == prefix).context("no such prefix")?;
        filter["hits"].as_u64().context("no hits")
    }

    /// A try to connect that is not waited for long, to a service from an address of the client's.
    fn knock(&self, from: Ipv4Addr) -> Result<std::io::Result<()>> {
        self.lab.client().enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddrV4::new(from, 0).into())?;
            socket.connect_timeout(&SERVICE.into(), Duration::from_millis(400))
        })
    }

    fn connect(&self) -> Result<TcpStream> {
        self.connect_to(SERVICE)
    }

    fn connect_to(&self, service: impl Into<SocketAddr>) -> Result<TcpStream> {
        let service = service.into();
        let connect = || TcpStream::connect_timeout(&service, SOON);
        let stream = self.lab.client().enter(connect)??;
        stream.set_read_timeout(Some(SOON))?;
        Ok(stream)
    }

    /// Fetches the file once; with HTTP/1.0 the server closes first.
    fn fetch(&self) -> Result<()> {
        self.fetch_from(SERVICE)
    }

    fn fetch_from(&self, service: impl Into<SocketAddr>) -> Result<()> {
        let body = self.download(service, "small")?;
        ensure!(body.len() == 1000, "{} bytes", body.len());
        Ok(())
    }

    /// What a file holds for who fetches it.
    fn download(&self, service: impl Into<SocketAddr>, name: &str) -> Result<Vec<u8>> {
        let mut stream = self.connect_to(service)?;
        write!(stream, "GET /{name} HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = || String::from_utf8_lossy(&answer).into_owned();
        let body = answer.windows(4).position(|end| end == b"\r\n\r\n").with_context(text)?;
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", text());
        Ok(answer.split_off(body + 4))
    }

    /// A connection that has transferred something and stays open.
    fn keep_alive(&self) -> Result<TcpStream> {
        let mut stream = self.connect()?;
        stream.write_all(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        // 1000 bytes of body after a header.
        while answer.windows(4).position(|end| end == b"\r\n\r\n").is_none_or(|at| answer.len() < at + 1004) {
            let read = stream.read(&mut buffer)?;
            ensure!(read > 0, "cut short: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&buffer[..read]);
        }
        Ok(stream)
    }

    /// What the kernel says about the guarded interface.
    fn link(&self) -> Result<String> {
        self.lab.guard().output("ip", &["-d", "link", "show", "dev", GUARD_INTERFACE])
    }

    fn pins(&self) -> usize {
        std::fs::read_dir(self.lab.pin_dir()).map_or(0, Iterator::count)
    }
}

/// The single line of an error, after the exit code is checked.
fn one_line(output: &Output, code: i32) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(code), "exit code {:?}: {said}", output.status);
    ensure!(said.starts_with("tcpguard: ") && said.lines().count() == 1, "{said:?}");
    Ok(said)
}

fn eventually(what: &str, mut test: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !test()? {
        ensure!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn every_verb_answers_for_people_and_for_programs() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let open = setup.connect()?;
    for _ in 0..5 {
        setup.fetch()?;
    }

    let status = setup.json(&["status"])?;
    assert_eq!(status["phase"], "armed");
    assert_eq!(status["interfaces"][0]["name"], GUARD_INTERFACE);
    assert_eq!(status["interfaces"][0]["queues"], 2);
    assert_eq!(status["services"][0]["listen"], SERVICE.to_string());
    // veth has no other.
    assert_eq!(status["interfaces"][0]["af_xdp"], "copy");
    let text = setup.text(&["status"])?;
    assert!(
        text.contains("interface guard0") && text.contains("native XDP, AF_XDP copy, queues 2"),
        "{text}"
    );

    assert!(setup.reason("cookie-sent")? >= 6);
    assert!(setup.reason("ack-valid")? >= 6);
    let stats = setup.json(&["stats"])?;
    assert!(stats["totals"]["stack"]["adopted"].as_u64() >= Some(6), "{}", stats["totals"]);
    assert_eq!(stats["totals"]["service"]["backend-refused"], 0);
    assert_eq!(stats["engines"].as_array().map(Vec::len), Some(2));
    for reason in stats["reasons"].as_array().context("no reasons")? {
        let sum: u64 =
            reason["per_cpu"].as_array().context("no CPUs")?.iter().filter_map(Value::as_u64).sum();
        assert_eq!(reason["total"], sum);
    }
    let text = setup.text(&["stats", "--per-cpu"])?;
    assert!(text.contains("cookie-sent") && text.contains("CPU1") && text.contains("RATE/s"), "{text}");
    assert!(!text.contains("bad-flags") && setup.text(&["stats", "--all"])?.contains("bad-flags"));

    let flows = setup.json(&["flows"])?;
    assert_eq!(flows["states"]["ESTABLISHED"], 1, "{flows}");
    assert_eq!(flows["states"]["TIME_WAIT"], 5, "{flows}");
    assert_eq!(flows["total"], 6);
    let established = setup.json(&["flows", "--state", "established"])?;
    assert_eq!(established["flows"].as_array().map(Vec::len), Some(1));
    assert_eq!(established["flows"][0]["peer"], open.local_addr()?.to_string());
    assert_eq!(established["flows"][0]["service"], SERVICE.to_string());
    let text = setup.text(&["flows"])?;
    assert_eq!(text.lines().count(), 7, "{text}");
    assert!(text.lines().next().is_some_and(|header| header.starts_with("STATE")), "{text}");
    let output = setup.ask(&["flows", "--limit", "2"])?;
    assert_eq!(String::from_utf8(output.stdout)?.lines().count(), 3);
    assert!(String::from_utf8(output.stderr)?.contains("4 more not listed"));

    assert!(setup.text(&["tune"])?.lines().count() > 5);
    assert!(setup.text(&["tune", "time-wait"])?.contains("1m"));
    let one = setup.json(&["tune", "time-wait"])?;
    assert_eq!(one["tunables"][0]["value"], 60_000);
    Ok(())
}

#[test]
fn stats_watches_until_interrupted_and_ends_quietly_with_its_reader() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let mut command = Command::new(BINARY);
    command.args(["stats", "--watch", "0.1", "--json", "--control"]).arg(setup.control());
    let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut seen = Vec::new();
    let mut stdout = watch.stdout.take().context("no pipe")?;
    while seen.iter().filter(|&&byte| byte == b'\n').count() < 3 {
        let mut buffer = [0; 4096];
        let read = stdout.read(&mut buffer)?;
        ensure!(read > 0, "it ended by itself");
        seen.extend_from_slice(&buffer[..read]);
    }
    drop(stdout);
    let output = watch.wait_with_output()?;
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    Ok(())
}

#[test]
fn a_tuned_value_takes_effect_at_once_on_what_is_there() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&["--set", "time-wait=5m"])?;
    setup.fetch()?;
    eventually("TIME_WAIT", || Ok(setup.state("TIME_WAIT")? == 1))?;
    assert_eq!(setup.text(&["tune", "time-wait", "200ms"])?, "time-wait: 5m -> 200ms\n");
    eventually("the flow that was there already is gone", || Ok(setup.state("TIME_WAIT")? == 0))?;

    let tuned = setup.json(&["tune", "cookie-period", "2s"])?;
    assert_eq!((&tuned["old"], &tuned["new"]), (&60_000.into(), &2_000.into()));
    let epoch = || setup.json(&["status"])?["epoch"].as_u64().context("no epoch");
    let (before, asked) = (epoch()?, Instant::now());
    // Handshakes go on while the keys turn over.
    while asked.elapsed() < Duration::from_secs(5) {
        setup.fetch()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(epoch()? >= before + 2, "{before} then {}", epoch()?);
    assert_eq!(setup.reason("ack-invalid")?, 0);
    Ok(())
}

#[test]
fn a_bad_change_is_refused_and_changes_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let before = setup.text(&["tune"])?;
    for (arguments, why) in [
        (&["tune", "nonsense", "1s"][..], "unknown tunable"),
        (&["tune", "time-wait", "1h"], "out of range"),
        (&["tune", "time-wait", "30"], "a duration looks like"),
        (&["tune", "retries", "0"], "out of range"),
        // In range by itself; only the daemon knows what it contradicts.
        (&["tune", "min-rto", "1m"], "above max-rto"),
    ] {
        if arguments[1] == "min-rto" {
            setup.text(&["tune", "max-rto", "2s"])?;
        }
        let said = one_line(&setup.ask(arguments)?, 2)?;
        assert!(said.contains(why), "{said}");
    }
    setup.text(&["tune", "max-rto", "1m"])?;
    assert_eq!(setup.text(&["tune"])?, before);
    Ok(())
}

#[test]
fn a_denied_client_cannot_connect_others_can_and_it_can_again_once_it_is_deleted() -> Result<()> {
    let setup = Setup::with_clients(2)?;
    let [other, denied] = setup.lab.client_addresses()[..] else { panic!("not two clients") };
    let list = setup.lab.dir().join("list");
    std::fs::write(&list, format!("# One\nallow {other}\n"))?;
    let daemon =
        setup.daemon_from_file(&format!("[filters]\ndeny = [\"10.77.0.0/24\"]\nfiles = [{list:?}]\n"))?;
    let kind = |knocked: std::io::Result<()>| knocked.err().map(|error| error.kind());
    let timed_out = Some(std::io::ErrorKind::TimedOut);
    assert_eq!(kind(setup.knock(denied)?), timed_out);
    assert_eq!(kind(setup.knock(other)?), None);
    assert!(setup.reason("filter-deny")? >= 1);
    assert_eq!(setup.hits("10.77.0.0/24")?, setup.reason("filter-deny")?);
    assert!(setup.hits(&format!("{other}/32"))? >= 2, "SYN and ACK");
    let text = setup.text(&["filters"])?;
    assert!(text.starts_with("ACTION  PREFIX") && text.lines().count() == 3, "{text}");

    assert_eq!(setup.text(&["filters", "del", "10.77.0.0/24"])?, "0 added, 1 removed, 1 in force\n");
    assert_eq!(kind(setup.knock(denied)?), None);
    let added = setup.text(&["filters", "add", "deny", &denied.to_string(), "--expires", "1500ms"])?;
    assert_eq!(added, "1 added, 0 removed, 2 in force\n");
    assert_eq!(kind(setup.knock(denied)?), timed_out);
    eventually("it expires", || Ok(setup.knock(denied)?.is_ok()))?;
    eventually("it is forgotten", || Ok(setup.said().contains("forgot expired filters")))?;
    assert_eq!(setup.json(&["filters"])?["total"], 1);

    // A list survives the daemon, and dies with the next one's configuration.
    setup.text(&["filters", "add", "deny", &denied.to_string()])?;
    setup.text(&["tune", "exit-grace", "0s"])?;
    let before = setup.reason("filter-deny")?;
    daemon.kill()?;
    eventually("the host refuses others", || {
        Ok(kind(setup.knock(other)?) == Some(std::io::ErrorKind::ConnectionRefused))
    })?;
    assert_eq!(kind(setup.knock(denied)?), timed_out);
    let _daemon = setup.daemon(&["--max-flows", "4096"])?;
    assert!(setup.reason("filter-deny")? > before);
    assert_eq!(setup.json(&["filters"])?["total"], 0);
    assert_eq!(kind(setup.knock(denied)?), None);

    // Nobody locks himself out by accident.
    let port = SERVICE.port().to_string();
    let session = format!("{other} 50000 {GUARD_ADDRESS} {port}");
    let ssh = [("SSH_CONNECTION", session.as_str())];
    let said = one_line(&setup.feed(&["filters", "add", "deny", "10.0.0.0/8"], b"", &ssh)?, 2)?;
    assert!(said.contains("--force"), "{said}");
    let said = one_line(&setup.feed(&["filters", "load", "-"], b"192.0.2.1\n0.0.0.0/0\n", &ssh)?, 2)?;
    assert!(said.contains("--force"), "{said}");
    assert_eq!(setup.json(&["filters"])?["total"], 0);
    let elsewhere = [("SSH_CONNECTION", "10.77.0.9 50000 10.77.0.1 22")];
    assert!(setup.feed(&["filters", "add", "deny", "10.77.0.9"], b"", &elsewhere)?.status.success());
    assert!(setup.feed(&["filters", "add", "deny", "10.0.0.0/8", "--force"], b"", &ssh)?.status.success());
    assert_eq!(kind(setup.knock(other)?), timed_out);
    Ok(())
}

#[test]
fn a_hundred_thousand_filters_are_replaced_under_a_flood_and_no_denied_packet_passes() -> Result<()> {
    let mut setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    // The flood's network, cut up differently in each list, among prefixes of which each list has its own.
    let list = |round: u32| {
        let (cut, other) = if round.is_multiple_of(2) { (16, 0x2000_0000) } else { (20, 0x3000_0000) };
        let networks = 0..1 << (cut - 15);
        let denied = networks
            .map(|index: u32| format!("{}/{cut}\n", Ipv4Addr::from_bits(0xc612_0000 | index << (32 - cut))));
        let rest = 99_900 - (1 << (cut - 15));
        let others = (0..rest).map(|index| match index % 2 {
            0 => format!("deny {}\n", Ipv4Addr::from_bits(other | index << 5)),
            _ => format!("allow 2001:db8:{:x}:{:x}::/64 expires 1h\n", index >> 8, index & 0xff),
        });
        denied.chain(others).chain(["198.18.0.0/15\n".to_owned()]).collect::<String>()
    };
    let load = |setup: &Setup, round: u32| {
        setup.feed(&["filters", "load", "--replace", "-"], list(round).as_bytes(), &[])
    };
    let first = load(&setup, 0)?;
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let total = setup.json(&["filters", "--limit", "0"])?["total"].as_u64().context("no total")?;
    assert!(total > 99_000, "{total}");
    assert_eq!(setup.json(&["filters", "--limit", "3"])?["filters"].as_array().map(Vec::len), Some(3));

    let flood = setup.lab.flood(SERVICE.port(), FloodSpec { rate: 50_000, ..FloodSpec::default() })?;
    for round in 1..=6 {
        let output = load(&setup, round)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        setup.fetch()?;
    }
    // Those that are added and deleted one by one are replaced no less.
    for _ in 0..5 {
        setup.text(&["filters", "add", "allow", "192.0.2.7"])?;
        setup.text(&["filters", "del", "192.0.2.7"])?;
    }
    let flood = flood.stop()?;
    assert!(flood.delivered() > 10_000, "{flood:?}");
    assert_eq!(setup.reason("filter-deny")?, flood.delivered());
    assert_eq!(setup.reason("cookie-sent")?, 6, "one for each fetch");
    Ok(())
}

#[test]
fn a_bad_change_of_the_filters_is_refused_and_changes_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    setup.text(&["filters", "add", "deny", "192.0.2.0/24"])?;
    setup.text(&["filters", "add", "allow", "2001:db8::/32"])?;
    let before = setup.text(&["filters"])?;
    let many =
        |count: u32| (0..count).map(|host| format!("{}\n", Ipv4Addr::from_bits(host))).collect::<String>();
    let (too_many, too_many_more) = (many(100_001), many(99_999));
    for (arguments, input, why) in [
        (&["filters", "add", "allow", "192.0.2.0/24"][..], "", "both denied and allowed"),
        (&["filters", "del", "192.0.2.0/25"], "", "not on the lists"),
        (&["filters", "load", "-"], "10.0.0.0/8\ndeny 2001:db8::/32\n", "both denied and allowed"),
        (&["filters", "load", "--replace", "-"], "10.0.0.0/8\n10.0.0.1/8\n", "standard input:2"),
        (&["filters", "load", "--replace", "-"], &too_many, "more than 100000 filters"),
        // Fits by itself; only the daemon knows with what it does not.
        (&["filters", "load", "-"], &too_many_more, "more than 100000 filters"),
    ] {
        let said = one_line(&setup.feed(arguments, input.as_bytes(), &[])?, 2)?;
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    // A part of a list that is never followed by the rest does nothing; one with nonsense in it is refused.
    let ask = |line: &str| -> Result<String> {
        let mut client = std::os::unix::net::UnixStream::connect(setup.control())?;
        client.write_all(line.as_bytes())?;
        client.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let part = |load: u32, filters: &str, last: bool| {
        format!(
            "{{\"v\":1,\"op\":\"filters-load\",\"load\":{load},\"filters\":[{filters}],\"last\":{last},\"replace\":true}}\n"
        )
    };
    assert!(ask(&part(1, "\"deny ::/0\"", false))?.contains("filters-part"));
    assert!(ask(&part(2, "\"::/0\"", true))?.contains("bad-input"));
    for load in 10..13 {
        assert!(ask(&part(load, "", false))?.contains("filters-part"));
    }
    assert!(ask(&part(20, "", false))?.contains("being loaded already"));
    assert_eq!(setup.text(&["filters"])?, before);
    assert_eq!(setup.text(&["filters", "flush", "allow"])?, "0 added, 1 removed, 1 in force\n");
    assert_eq!(setup.text(&["filters", "flush"])?, "0 added, 1 removed, 0 in force\n");
    Ok(())
}

#[test]
fn a_hostile_client_disturbs_neither_the_daemon_nor_others() -> Result<()> {
    let setup = Setup::new()?;
    let mut daemon = setup.daemon(&[])?;
    let connect = || std::os::unix::net::UnixStream::connect(setup.control());
    let _silent = (0..8).map(|_| connect()).collect::<std::io::Result<Vec<_>>>()?;
    let mut endless = connect()?;
    // The daemon hangs up long before the end.
    assert!(endless.write_all(&vec![b'{'; 100 << 20]).is_err());
    let mut half = connect()?;
    half.write_all(b"{\"v\":1,\"op\":\"tune\",\"name\":\"time-wait\",\"value\":\"1s\"")?;
    half.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    half.read_to_string(&mut answer)?;
    assert!(answer.contains("cut short"), "{answer}");
    assert_eq!(setup.json(&["tune", "time-wait"])?["tunables"][0]["value"], 60_000);
    setup.fetch()?;
    assert!(daemon.ended()?.is_none());
    Ok(())
}

#[test]
fn a_second_daemon_is_refused_whatever_it_has_of_its_own() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let (link, pins) = (setup.link()?, setup.pins());
    let other_control = setup.lab.dir().join("other.sock");
    let said = setup.refused(&setup.arguments())?;
    assert!(said.contains("another daemon"), "{said}");
    let mut own = setup.replaced("--control", &other_control.display().to_string())?;
    let said = setup.refused(&own)?;
    assert!(said.contains("another tcpguard is running"), "{said}");
    let pin_dir = own.iter().position(|argument| argument == "--pin-dir").context("no --pin-dir")?;
    own[pin_dir + 1] += "-other";
    let said = setup.refused(&own)?;
    assert!(said.contains("already guarded"), "{said}");

    assert!(!other_control.exists());
    assert_eq!((setup.link()?, setup.pins()), (link, pins));
    setup.fetch()
}

#[test]
fn what_is_refused_leaves_the_machine_as_it_was() -> Result<()> {
    let setup = Setup::new()?;
    let before = setup.link()?;
    let with =
        |more: &[&str]| [setup.arguments(), more.iter().map(|&more| more.to_owned()).collect()].concat();
    let secret = setup.lab.dir().join("secret");
    std::fs::write(&secret, "not a secret")?;
    let secret = secret.display().to_string();
    for (arguments, why) in [
        (with(&["-i", "no-such-if0"]), "no-such-if0"),
        (with(&["-i", "lo"]), "not an Ethernet"),
        (with(&["-i", GUARD_INTERFACE]), "twice"),
        (with(&["--set", "time-wait=1h"]), "out of range"),
        (with(&["--group", "no-such-group"]), "no-such-group"),
        (with(&["--secret-file", &secret]), "secret"),
        (with(&["--queues", "7"]), "queues"),
        (setup.replaced("--pin-dir", "/tmp")?, "not on a BPF file system"),
        (setup.replaced("--control", "/etc/passwd")?, "not a socket"),
    ] {
        let said = setup.refused(&arguments)?;
        assert!(said.contains(why), "{arguments:?}: {said}");
        assert_eq!(setup.link()?, before, "{arguments:?}");
        assert_eq!(setup.pins(), 0, "{arguments:?}");
        assert!(!setup.control().exists(), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn without_privileges_one_line_says_what_is_missing() -> Result<()> {
    let setup = Setup::new()?;
    let mut command = setup.lab.guard().command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--", BINARY]);
    let said = one_line(&command.args(setup.arguments()).output()?, 2)?;
    assert!(said.contains("no permission") || said.contains("ermission denied"), "{said}");
    assert_eq!(setup.pins(), 0);
    Ok(())
}

#[test]
fn sigterm_drains_resets_the_rest_and_leaves_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let before = setup.link()?;
    let mut daemon = setup.daemon(&["--set", "drain-time=1s"])?;
    assert!(setup.pins() > 0 && setup.link()?.contains("xdp"));
    let mut idle = setup.keep_alive()?;
    eventually("established", || Ok(setup.state("ESTABLISHED")? == 1))?;

    daemon.signal(rustix::process::Signal::TERM)?;
    eventually("draining", || Ok(setup.json(&["status"])?["phase"] == "draining"))?;
    let status = daemon.wait(SOON).with_context(|| setup.said())?;
    assert_eq!(status.code(), Some(0), "{}", setup.said());
    let error = idle.read(&mut [0; 100]).err().context("the connection ended in order")?;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(setup.pins(), 0);
    assert!(!setup.control().exists());
    assert_eq!(setup.link()?, before);
    let said = setup.said();
    assert!(said.contains("guarding guard0 (native XDP, queues 2)") && said.contains("ready"), "{said}");
    Ok(())
}

#[test]
fn after_sigkill_protection_stays_and_a_fresh_run_takes_over() -> Result<()> {
    let setup = Setup::new()?;
    let daemon = setup.daemon(&[])?;
    setup.fetch()?;
    let mut orphan = setup.keep_alive()?;
    let (counted, pins) = (setup.reason("cookie-sent")?, setup.pins());
    daemon.kill()?;
    assert!(setup.link()?.contains("xdp") && setup.pins() == pins);
    // The host is reachable: what is not protected never depended on the daemon.
    let other = SocketAddrV4::new(GUARD_ADDRESS, 22);
    let _listener = setup.lab.guard().enter(|| TcpListener::bind(other))??;
    setup.lab.client().enter(|| TcpStream::connect_timeout(&other.into(), SOON))??;

    let daemon = setup.daemon(&[])?;
    assert_eq!(setup.json(&["status"])?["generation"], 2);
    assert!(setup.said().contains("taken over"), "{}", setup.said());
    setup.fetch()?;
    assert!(setup.reason("cookie-sent")? > counted);
    // A peer of the dead daemon's learns at its next word that the connection is gone.
    orphan.write_all(b"GET /small HTTP/1.0\r\n\r\n")?;
    let error = orphan.read(&mut [0; 100]).err().context("somebody answered")?;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    assert_eq!(setup.pins(), 0);
    Ok(())
}

#[test]
fn a_dead_daemons_ports_are_silent_for_the_grace_and_then_left_to_the_host_or_dropped() -> Result<()> {
    let setup = Setup::new()?;
    let knock = || -> Result<std::io::Result<TcpStream>> {
        let connect = || TcpStream::connect_timeout(&SERVICE.into(), Duration::from_millis(300));
        setup.lab.client().enter(connect)
    };
    let kind = |knocked: std::io::Result<TcpStream>| knocked.err().map(|error| error.kind());
    // A tuned grace counts, not only a configured one.
    let daemon = setup.daemon(&["--set", "exit-grace=1m"])?;
    setup.text(&["tune", "exit-grace", "2s"])?;
    daemon.kill()?;
    assert_eq!(kind(knock()?), Some(std::io::ErrorKind::TimedOut));
    eventually("the host refuses", || Ok(kind(knock()?) == Some(std::io::ErrorKind::ConnectionRefused)))?;

    let daemon = setup.daemon(&["--set", "exit-grace=0s", "--on-daemon-exit", "drop"])?;
    setup.fetch()?;
    let dropped = setup.reason("exit-drop")?;
    daemon.kill()?;
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(kind(knock()?), Some(std::io::ErrorKind::TimedOut));
    let _daemon = setup.daemon(&[])?;
    assert!(setup.reason("exit-drop")? > dropped, "{}", setup.text(&["stats"])?);
    Ok(())
}

#[test]
fn detach_removes_what_a_killed_daemon_left_and_refuses_while_one_runs() -> Result<()> {
    let setup = Setup::new()?;
    let before = setup.link()?;
    let detach = || -> Result<Output> {
        let mut command = setup.lab.guard().command(BINARY);
        Ok(command.args(["detach", "--pin-dir"]).arg(setup.lab.pin_dir()).output()?)
    };
    let daemon = setup.daemon(&[])?;
    let said = one_line(&detach()?, 2)?;
    assert!(said.contains("another tcpguard is running"), "{said}");
    setup.fetch()?;
    daemon.kill()?;
    assert!(setup.link()?.contains("xdp"));
    let output = detach()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.starts_with(b"detached"));
    assert_eq!((setup.pins(), setup.link()?), (0, before));
    assert!(detach()?.stdout.starts_with(b"nothing was pinned"));
    Ok(())
}

#[test]
fn a_configuration_file_says_the_same_as_arguments() -> Result<()> {
    let setup = Setup::new()?;
    let daemon = setup.daemon_from_file("queues = 2\n[tunables]\ntime-wait = \"7s\"\n")?;
    setup.fetch()?;
    assert_eq!(setup.json(&["tune", "time-wait"])?["tunables"][0]["value"], 7_000);
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    Ok(())
}

#[test]
fn one_daemon_guards_several_interfaces_each_in_its_own_mode() -> Result<()> {
    let setup = Setup::new()?;
    let guard = setup.lab.guard();
    let second = setup.second_link()?;
    let daemon = setup.daemon_from_file(&Setup::second_guarded())?;
    for _ in 0..3 {
        setup.fetch()?;
        setup.fetch_from(second)?;
    }
    // A client's last acknowledgement may still be on its way.
    let deadline = Instant::now() + SOON;
    let flows = loop {
        let flows = setup.json(&["flows"])?;
        if flows["states"]["TIME_WAIT"] == 6 && flows["total"] == 6 {
            break flows;
        }
        ensure!(Instant::now() < deadline, "not six flows in TIME_WAIT: {flows}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let from = |name: &str, service: SocketAddrV4| {
        let flows = flows["flows"].as_array().into_iter().flatten();
        flows.filter(|flow| flow["interface"] == name && flow["service"] == service.to_string()).count()
    };
    assert_eq!((from(GUARD_INTERFACE, SERVICE), from("guard1", second)), (3, 3), "{flows}");
    assert_eq!(setup.json(&["status"])?["interfaces"][1]["mode"], "generic");
    assert!(guard.output("ip", &["link", "show", "dev", "guard1"])?.contains("xdpgeneric"));
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    assert!(!guard.output("ip", &["link", "show", "dev", "guard1"])?.contains("xdp"));
    Ok(())
}

#[test]
fn a_removed_interface_ends_the_daemon_once_what_the_others_have_is_drained() -> Result<()> {
    let setup = Setup::new()?;
    let guard = setup.lab.guard();
    let second = setup.second_link()?;
    let mut daemon = setup.daemon_from_file(&Setup::second_guarded())?;
    setup.fetch_from(second)?;
    let mut open = setup.keep_alive()?;
    guard.ip("link del guard1")?;
    // Nothing is sent on that interface any more: it must be noticed all the same.
    eventually("draining", || Ok(setup.said().contains("draining what other interfaces have")))?;
    assert_eq!(setup.json(&["status"])?["phase"], "draining");
    open.write_all(b"GET /small HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    open.read_to_end(&mut answer)?;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(daemon.wait(SOON)?.code(), Some(1));
    let said = setup.said();
    assert!(said.lines().last().is_some_and(|line| line.contains("interface guard1 is gone")), "{said}");
    // The other interface is left to on_daemon_exit, as after a kill, and to the next daemon.
    assert!(setup.link()?.contains("xdp"));
    let daemon = setup.daemon(&[])?;
    assert!(setup.said().contains("taken over"), "{}", setup.said());
    setup.fetch()?;
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    assert_eq!(setup.pins(), 0);
    Ok(())
}

#[test]
fn an_ipv6_service_is_guarded_relayed_listed_and_counted_like_any() -> Result<()> {
    let setup = Setup::new()?;
    setup.lab.guard().ip("addr add fd77::1/64 dev guard0 nodad")?;
    setup.lab.client().ip("addr add fd77::2/64 dev client0 nodad")?;
    let service: SocketAddr = "[fd77::1]:80".parse()?;
    let _daemon = setup.daemon(&["--protect", &format!("{service}=127.0.0.1:{BACKEND_PORT}")])?;
    setup.backend.file("large", 3_000_000)?;
    let cookies = setup.reason("cookie-sent")?;
    let body = setup.download(service, "large")?;
    assert!(body == std::fs::read(setup.backend.root().join("large"))?, "{} bytes", body.len());
    let open = setup.connect_to(service)?;

    eventually("both listed", || Ok(setup.json(&["flows"])?["total"] == 2))?;
    let listed = setup.json(&["flows", "--state", "established"])?;
    let flow = &listed["flows"][0];
    assert_eq!(flow["local"], service.to_string());
    assert_eq!(flow["service"], service.to_string());
    assert_eq!(flow["peer"], open.local_addr()?.to_string());
    assert_eq!(setup.state("TIME_WAIT")?, 1);
    assert!(setup.text(&["flows"])?.contains("[fd77::2]:"));
    assert_eq!(setup.reason("cookie-sent")?, cookies + 2);
    assert_eq!(setup.reason("ack-valid")?, 2);
    let stats = setup.json(&["stats"])?;
    assert!(stats["totals"]["service"]["bytes-to-client"].as_u64() > Some(3_000_000), "{stats}");
    // And the other family beside it.
    setup.fetch()?;
    Ok(())
}

#[test]
fn only_root_and_the_sockets_group_may_ask_the_daemon() -> Result<()> {
    const NOBODY: u32 = 65534;
    let setup = Setup::new()?;
    let ask = || -> Result<Output> {
        let mut command = Command::new(BINARY);
        command.args(["status", "--control"]).arg(setup.control()).uid(NOBODY).gid(NOBODY);
        Ok(command.output()?)
    };
    let daemon = setup.daemon(&[])?;
    let said = one_line(&ask()?, 2)?;
    assert!(said.contains("permission denied"), "{said}");
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    let _daemon = setup.daemon(&["--group", &NOBODY.to_string()])?;
    let output = ask()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn clients_that_take_every_descriptor_they_can_do_not_keep_the_operator_out() -> Result<()> {
    let setup = Setup::new()?;
    let with_limit = |limit: u32| {
        let mut command = setup.lab.guard().command("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).arg(BINARY).args(setup.arguments());
        command
    };
    let said = one_line(&with_limit(60).output()?, 2)?;
    assert!(said.contains("a limit of 60 descriptors leaves none for connections"), "{said}");
    assert_eq!(setup.pins(), 0);

    let _daemon = setup.start(&mut with_limit(256))?;
    assert!(setup.said().contains("few descriptors"), "{}", setup.said());
    // A reset may be there before the connection is looked at.
    let held: Vec<_> = (0..300).filter_map(|_| setup.connect().ok()).collect();
    let count = |name: &str| -> Result<u64> {
        let stats = setup.json(&["stats"])?;
        stats["totals"]["service"][name].as_u64().context("no such counter")
    };
    eventually("none left", || Ok(count("connected")? + count("exhausted")? == 300))?;
    assert!(count("connected")? > 0 && count("exhausted")? > 0);
    assert_eq!(setup.text(&["tune", "time-wait", "30s"])?, "time-wait: 1m -> 30s\n");
    drop(held);
    eventually("room again", || Ok(setup.fetch().is_ok()))?;
    Ok(())
}
