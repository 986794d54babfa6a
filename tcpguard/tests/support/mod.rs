//! What the integration tests share: a lab with a web server and a daemon in front of it, and ways to ask both.
#![expect(dead_code, reason = "each test binary uses its part")]
#![expect(unreachable_pub, reason = "a module of every test binary, a library of none")]

pub mod raw;
pub mod setup;
pub mod stuck;

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use xtask::lab::{Backend, GUARD_ADDRESS, GUARD_INTERFACE, Lab, LabConfig, Process};

/// The port that tests protect.
pub const PORT: u16 = 80;
/// Where nginx listens, on the guarded host's loopback.
pub const BACKEND_PORT: u16 = 8080;

pub fn lab_object() -> PathBuf {
    PathBuf::from(concat!(env!("OUT_DIR"), "/tcpguard-lab"))
}

/// A lab whose [`PORT`] is guarded.
pub struct Guarded {
    // Dropped in order: the daemon goes before the lab it runs in.
    daemon: Option<Process>,
    pub backend: Backend,
    pub lab: Lab,
    pub extra: Vec<String>,
}

impl Guarded {
    /// A lab as `config` says, with `arguments` for `tcpguard run` beside the obvious ones.
    pub fn up(config: LabConfig, arguments: &[&str]) -> Self {
        let lab = Lab::up(config).expect("the lab comes up (these tests need root)");
        let backend = lab.backend(BACKEND_PORT).expect("nginx starts");
        let extra = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut guarded = Self { daemon: None, backend, lab, extra };
        guarded.start_daemon();
        guarded
    }

    pub fn simple() -> Self {
        Self::up(LabConfig::new(lab_object()), &[])
    }

    /// Starts the daemon and waits until it guards.
    /// Gives a lab with a router IPv6 besides: the guarded host is fd77::1.
    pub fn route_ipv6(&self) {
        let router = self.lab.router().expect("a router");
        let ends = [
            (self.lab.guard(), "addr add fd77::1/64 dev guard0 nodad\nroute add default via fd77::2"),
            (router, "addr add fd77::2/64 dev south0 nodad\naddr add fd78::1/64 dev north0 nodad"),
            (self.lab.client(), "addr add fd78::2/64 dev client0 nodad\nroute add default via fd78::1"),
        ];
        ends.into_iter().for_each(|(end, lines)| end.ip(lines).expect("addresses"));
        router.sysctl(&[("net/ipv6/conf/all/forwarding", "1")]).expect("forwarding");
    }

    pub fn start_daemon(&mut self) {
        let protect = format!("{GUARD_ADDRESS}:{PORT}=127.0.0.1:{BACKEND_PORT}");
        self.run_daemon(&["-i", GUARD_INTERFACE, "--protect", &protect]);
    }

    /// The same from a configuration file.
    pub fn start_daemon_with_config(&mut self, file: &Path) {
        self.run_daemon(&["--config", &file.display().to_string()]);
    }

    fn run_daemon(&mut self, arguments: &[&str]) {
        let mut command = self.lab.guard().command(env!("CARGO_BIN_EXE_tcpguard"));
        command.arg("run").args(arguments);
        command.arg("--control").arg(self.lab.control_socket());
        command.arg("--pin-dir").arg(self.lab.pin_dir());
        command.args(&self.extra);
        let log = std::fs::File::options().create(true).append(true).open(self.log());
        command.stderr(log.expect("a file for the daemon's log"));
        let mut daemon = Process::spawn(&mut command).expect("the daemon starts");
        let ready = || self.cli(&["status", "--json"]).status.success();
        daemon.wait_until(Duration::from_secs(20), ready).expect("the daemon becomes ready");
        self.daemon = Some(daemon);
    }

    fn log(&self) -> PathBuf {
        self.lab.dir().join("daemon.log")
    }

    pub fn daemon(&mut self) -> &mut Process {
        self.daemon.as_mut().expect("a running daemon")
    }

    pub fn take_daemon(&mut self) -> Process {
        self.daemon.take().expect("a running daemon")
    }

    /// Runs `tcpguard` with `arguments` against this lab's daemon.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tcpguard"));
        command.args(arguments).arg("--control").arg(self.lab.control_socket()).stdin(Stdio::null());
        command.output().expect("running tcpguard")
    }

    /// The JSON a verb prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.cli(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("valid JSON")
    }

    /// Every reason's count, summed over the CPUs.
    pub fn reasons(&self) -> BTreeMap<String, u64> {
        let stats = self.json(&["stats"]);
        let rows = find(&stats, "reasons").as_array().expect("a list of reasons");
        rows.iter()
            .map(|row| {
                let name = row["name"].as_str().expect("a name").to_owned();
                (name, row["total"].as_u64().expect("a total"))
            })
            .collect()
    }

    pub fn reason(&self, name: &str) -> u64 {
        *self.reasons().get(name).unwrap_or_else(|| panic!("no reason called {name}"))
    }

    /// One of the stack's counters, summed over the engines.
    pub fn stack(&self, name: &str) -> u64 {
        let stats = self.json(&["stats"]);
        stats["totals"]["stack"][name].as_u64().unwrap_or_default()
    }

    /// Resident memory of the daemon, bytes.
    pub fn memory(&self) -> u64 {
        let process = find(&self.json(&["status"]), "pid").clone();
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("the daemon's status");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        let kilobytes = resident.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
        kilobytes.expect("a number") << 10
    }

    /// The flows in `state`, or all.
    pub fn flows(&self, state: Option<&str>) -> Vec<Value> {
        let flows = self.json(&["flows"]);
        let rows = find(&flows, "flows").as_array().expect("a list of flows").clone();
        rows.into_iter().filter(|flow| state.is_none_or(|state| flow["state"] == state)).collect()
    }

    /// SYNs that were answered: by XDP, with a cookie, or by the stack.
    pub fn answered(&self) -> u64 {
        let reasons = self.reasons();
        reasons["cookie-sent"] + reasons["syn-stateful"]
    }

    /// Has the service answer every SYN with a cookie, as long as this daemon lives.
    pub fn answer_with_cookies(&self) {
        let output = self.cli(&["mode", &self.address().to_string(), "cookie"]);
        assert!(output.status.success(), "mode: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn tune(&self, name: &str, value: &str) {
        let output = self.cli(&["tune", name, value]);
        assert!(output.status.success(), "tune: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A listener of the test's own on the guarded host.
    pub fn listen(&self, address: impl ToSocketAddrs + Send) -> TcpListener {
        let listener = self.lab.guard().enter(|| TcpListener::bind(address));
        listener.expect("entering the guard's namespace").expect("a free port")
    }

    /// The address that clients connect to.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::V4(SocketAddrV4::new(GUARD_ADDRESS, PORT))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{GUARD_ADDRESS}:{PORT}/{path}")
    }

    /// curl in the client's namespace.
    pub fn curl(&self, arguments: &[&str]) -> Output {
        let mut command = self.lab.client().command("curl");
        command.args(["--silent", "--show-error", "--fail", "--max-time", "300"]).args(arguments);
        command.stdin(Stdio::null()).output().expect("running curl")
    }

    /// Fetches every file at once, each on a connection of its own, into `into`. Panics unless all succeed.
    pub fn download(&self, names: &[String], into: &Path) {
        let mut config = String::new();
        for name in names {
            config += &format!("url = \"{}\"\noutput = \"{}\"\n", self.url(name), into.join(name).display());
        }
        let file = into.join("curl.config");
        std::fs::create_dir_all(into).expect("a directory for downloads");
        std::fs::write(&file, config).expect("writing curl's config");
        let file = file.display().to_string();
        let output = self.curl(&[
            "--parallel",
            "--parallel-immediate",
            "--parallel-max",
            "300",
            "--no-keepalive",
            "--fail-early",
            "--config",
            &file,
        ]);
        assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// What the daemon said belongs to a failure, and only to that.
impl Drop for Guarded {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = std::fs::read_to_string(self.log()).unwrap_or_default();
            std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()).unwrap_or_default();
        }
    }
}

/// The first value under `key`, however deep: tests do not care how replies are wrapped.
pub fn find<'a>(value: &'a Value, key: &str) -> &'a Value {
    fn search<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
        match value {
            Value::Object(map) => match map.get(key) {
                Some(found) if !found.is_object() => Some(found),
                _ => map.values().find_map(|value| search(value, key)),
            },
            _ => None,
        }
    }
    search(value, key).unwrap_or_else(|| panic!("no {key:?} in {value}"))
}

/// Panics unless both files have the same SHA-256.
pub fn assert_same(left: &Path, right: &Path) {
    let digest = |path: &Path| {
        let mut hash = Sha256::new();
        let mut file =
            std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        std::io::copy(&mut file, &mut hash).expect("reading");
        hash.finalize()
    };
    assert_eq!(digest(left), digest(right), "{} and {} differ", left.display(), right.display());
}

/// Waits until `condition` holds, and panics when it does not within `limit`.
pub fn wait_for(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "still not after {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Guarded {
    /// Frames that XDP_TX gave to the guard's driver and the driver dropped.
    pub fn transmit_drops(&self) -> u64 {
        self.lab.transmit_drops().expect("the driver's counters")
    }
}
