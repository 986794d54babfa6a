//! A daemon that is started, asked and ended by its command line alone, and what it then says and leaves.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use xtask::lab::{Backend, GUARD_ADDRESS, GUARD_INTERFACE, Lab, LabConfig, Process};

pub const BINARY: &str = env!("CARGO_BIN_EXE_tcpguard");
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(GUARD_ADDRESS, 80);
/// The service on a second link.
pub const SECOND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 78, 0, 1), 80);
pub const BACKEND_PORT: u16 = 8080;
pub const SOON: Duration = Duration::from_secs(10);
/// The kernel's verifier alone takes a good part of a second for each interface, and labs share two cores.
pub const START: Duration = Duration::from_secs(60);

/// A lab with a backend, and the arguments of a daemon that guards it.
pub struct Setup {
    // Dropped in order: the backend before its lab.
    pub backend: Backend,
    pub lab: Lab,
}

impl Setup {
    pub fn new() -> Result<Self> {
        Self::with_clients(1)
    }

    pub fn with_clients(addresses: u8) -> Result<Self> {
        let mut config = LabConfig::new(concat!(env!("OUT_DIR"), "/tcpguard-lab"));
        config.queues = 2;
        config.client_addresses = addresses;
        let lab = Lab::up(config)?;
        let backend = lab.backend(BACKEND_PORT)?;
        backend.file("small", 1000)?;
        Ok(Self { backend, lab })
    }

    pub fn control(&self) -> PathBuf {
        self.lab.control_socket()
    }

    pub fn arguments(&self) -> Vec<String> {
        let protect = format!("{SERVICE}=127.0.0.1:{BACKEND_PORT}");
        let mut arguments: Vec<String> =
            ["run", "-i", GUARD_INTERFACE, "--protect", &protect].map(String::from).into();
        arguments.extend(["--pin-dir".into(), self.lab.pin_dir().display().to_string()]);
        arguments.extend(["--control".into(), self.control().display().to_string()]);
        arguments
    }

    /// The arguments with another value for one of them.
    pub fn replaced(&self, name: &str, value: &str) -> Result<Vec<String>> {
        let mut arguments = self.arguments();
        let at = arguments.iter().position(|argument| argument == name).context("no such argument")?;
        arguments[at + 1] = value.to_owned();
        Ok(arguments)
    }

    /// Starts the daemon and waits until it answers.
    pub fn daemon(&self, more: &[&str]) -> Result<Process> {
        self.start(self.lab.guard().command(BINARY).args(self.arguments()).args(more))
    }

    pub fn start(&self, command: &mut Command) -> Result<Process> {
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut daemon = Process::spawn(command.stderr(log))?;
        let answers = || self.ask(&["status"]).is_ok_and(|output| output.status.success());
        daemon.wait_until(START, answers).with_context(|| self.said())?;
        Ok(daemon)
    }

    /// Starts the daemon from a file: the guarded interface and service, and `more`, which begins with further keys
    /// of that interface.
    pub fn daemon_from_file(&self, more: &str) -> Result<Process> {
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
    pub fn second_link(&self) -> Result<SocketAddrV4> {
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
    pub fn second_guarded() -> String {
        format!(
            "[[interface]]\nname = \"guard1\"\nmode = \"generic\"\n\
             [[service]]\nlisten = \"{SECOND}\"\nbackend = \"127.0.0.1:{BACKEND_PORT}\"\n"
        )
    }

    pub fn log(&self) -> PathBuf {
        self.lab.dir().join("daemon.log")
    }

    /// What the daemons of this lab wrote.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Runs a daemon that is expected to end by itself at once, with this exit code.
    pub fn refused(&self, arguments: &[String], code: i32) -> Result<String> {
        let output = self.lab.guard().command(BINARY).args(arguments).output()?;
        one_line(&output, code)
    }

    /// One verb, however it ends.
    pub fn ask(&self, arguments: &[&str]) -> Result<Output> {
        Ok(Command::new(BINARY).args(arguments).arg("--control").arg(self.control()).output()?)
    }

    /// What a verb that succeeds prints.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self.ask(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {said}\n{}", self.said());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The one line of JSON of a verb.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.text(&[arguments, &["--json"]].concat())?;
        ensure!(text.lines().count() == 1, "{text}");
        let value: Value = serde_json::from_str(&text)?;
        ensure!(value["version"] == 1, "{value}");
        Ok(value)
    }

    pub fn reason(&self, name: &str) -> Result<u64> {
        let stats = self.json(&["stats"])?;
        let reasons = stats["reasons"].as_array().context("no reasons")?;
        let reason = reasons.iter().find(|reason| reason["name"] == name).context("no such reason")?;
        reason["total"].as_u64().context("no total")
    }

    /// Has a service answer every SYN with a cookie, as long as this daemon lives.
    pub fn answer_with_cookies(&self, service: SocketAddrV4) -> Result<()> {
        self.text(&["mode", &service.to_string(), "cookie"]).map(drop)
    }

    /// SYNs that were answered: by XDP, with a cookie, or by the stack.
    pub fn answered(&self) -> Result<u64> {
        Ok(self.reason("cookie-sent")? + self.reason("syn-stateful")?)
    }

    pub fn state(&self, name: &str) -> Result<u64> {
        self.json(&["flows"])?["states"][name].as_u64().context("no such state")
    }

    /// Runs a verb with this on its standard input, and these in its environment.
    pub fn feed(&self, arguments: &[&str], input: &[u8], environment: &[(&str, &str)]) -> Result<Output> {
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--control").arg(self.control()).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().context("no pipe")?.write_all(input)?;
        Ok(child.wait_with_output()?)
    }

    /// The hits of the filter of a prefix.
    pub fn hits(&self, prefix: &str) -> Result<u64> {
        let list = self.json(&["filters", "--limit", "1000000"])?;
        let filters = list["filters"].as_array().context("no filters")?;
        let filter = filters.iter().find(|filter| filter["prefix"] == prefix).context("no such prefix")?;
        filter["hits"].as_u64().context("no hits")
    }

    /// A try to connect that is not waited for long, to a service from an address of the client's.
    pub fn knock(&self, from: Ipv4Addr) -> Result<std::io::Result<()>> {
        self.lab.client().enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddrV4::new(from, 0).into())?;
            socket.connect_timeout(&SERVICE.into(), Duration::from_millis(400))
        })
    }

    pub fn connect(&self) -> Result<TcpStream> {
        self.connect_to(SERVICE)
    }

    pub fn connect_to(&self, service: impl Into<SocketAddr>) -> Result<TcpStream> {
        let service = service.into();
        let connect = || TcpStream::connect_timeout(&service, SOON);
        let stream = self.lab.client().enter(connect)??;
        stream.set_read_timeout(Some(SOON))?;
        Ok(stream)
    }

    /// Fetches the file once; with HTTP/1.0 the server closes first.
    pub fn fetch(&self) -> Result<()> {
        self.fetch_from(SERVICE)
    }

    pub fn fetch_from(&self, service: impl Into<SocketAddr>) -> Result<()> {
        let body = self.download(service, "small")?;
        ensure!(body.len() == 1000, "{} bytes", body.len());
        Ok(())
    }

    /// What a file holds for who fetches it.
    pub fn download(&self, service: impl Into<SocketAddr>, name: &str) -> Result<Vec<u8>> {
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
    pub fn keep_alive(&self) -> Result<TcpStream> {
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
    pub fn link(&self) -> Result<String> {
        self.lab.guard().output("ip", &["-d", "link", "show", "dev", GUARD_INTERFACE])
    }

    pub fn pins(&self) -> usize {
        std::fs::read_dir(self.lab.pin_dir()).map_or(0, Iterator::count)
    }
}

/// What an echoing service does with a question.
pub fn echoed(stream: &mut TcpStream, question: &[u8]) -> Result<()> {
    stream.write_all(question)?;
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == question, "{answer:?}");
    Ok(())
}

/// Whether the other side resets the connection before it says anything more.
pub fn is_reset(stream: &mut TcpStream) -> Result<bool> {
    match stream.read(&mut [0; 1]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(false),
    }
}

/// The single line of an error, after the exit code is checked.
pub fn one_line(output: &Output, code: i32) -> Result<String> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(code), "exit code {:?}: {said}", output.status);
    ensure!(said.starts_with("tcpguard: ") && said.lines().count() == 1, "{said:?}");
    Ok(said)
}

pub fn eventually(what: &str, mut test: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !test()? {
        ensure!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
