//! xtask's verbs as a newcomer types them: the demo, with every way in which it can end, the lab that stays up, and
//! setup on a machine that has everything. Needs root.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use xtask::lab::Process;
use xtask::tool;

/// `cargo xtask` itself, built as a newcomer's first command builds it.
fn xtask() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--package", "xtask"]).status();
        assert!(built.expect("cargo runs").success(), "xtask does not build");
        Path::new(env!("CARGO_BIN_EXE_tcpguard")).with_file_name("xtask")
    })
}

/// Longer than any test waits for a demo that it means to end itself.
const LONG: &str = "60";

/// A verb of xtask that uses the daemon under test.
fn verb(name: &str) -> Command {
    let object = concat!(env!("OUT_DIR"), "/tcpguard-lab");
    let mut command = Command::new(xtask());
    command.args([name, "--artifacts", env!("CARGO_BIN_EXE_tcpguard"), object]);
    command
}

/// A demo, gentle enough for an unoptimised daemon.
fn command(seconds: &str) -> Command {
    let mut command = verb("run");
    command.args(["--flood-pps", "20000", "--requests", "200", "--seconds", seconds]);
    command
}

/// A running demo. What it says is read to the end, or it could not go on.
struct Demo {
    child: Child,
    out: BufReader<ChildStdout>,
    said: String,
    errors: PathBuf,
}

impl Demo {
    fn start(command: &mut Command) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let errors = std::env::temp_dir().join(format!("tcpguard-demo-{}-{number}", std::process::id()));
        command.stderr(File::create(&errors).expect("a file for what it says"));
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the demo starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, out, said: String::new(), errors }
    }

    /// Text, one line a second.
    fn plain(seconds: &str) -> Self {
        Self::start(command(seconds).stdin(Stdio::null()))
    }

    /// Reads on until a line holds `text`.
    fn wait_for(&mut self, text: &str) {
        loop {
            let start = self.said.len();
            let read = self.out.read_line(&mut self.said).expect("its output is text");
            assert!(read > 0, "no `{text}` in\n{}\n{}", self.said, self.errors());
            if self.said[start..].contains(text) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a process id");
        kill_process(pid, signal).expect("the demo is there");
    }

    /// Waits for the end: how it ended, all it wrote to standard output, and to standard error.
    fn end(mut self) -> (ExitStatus, String, String) {
        self.out.read_to_string(&mut self.said).expect("its output is text");
        let status = self.child.wait().expect("it ends");
        let errors = self.errors();
        drop(std::fs::remove_file(&self.errors));
        (status, self.said, errors)
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    /// The name of its lab.
    fn lab(&self) -> String {
        let errors = self.errors();
        let name = errors.split_whitespace().find(|word| word.starts_with("tcpguard-"));
        name.expect("a demo names its lab").to_owned()
    }
}

/// Everything on this machine that carries the lab's name.
fn remains(lab: &str) -> Vec<String> {
    let places = ["/run/netns", "/sys/fs/bpf", "/run/tcpguard-lab"];
    let entries = places.iter().filter_map(|place| std::fs::read_dir(place).ok()).flatten().flatten();
    let paths = entries.map(|entry| entry.path().display().to_string());
    paths.filter(|path| path.contains(lab)).collect()
}

/// Nothing is left, after the moment that the heir of a killed lab may need.
fn assert_gone(lab: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !remains(lab).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(remains(lab), [""; 0]);
}

/// The processes called `name` on the guarded host of `lab`; at least one.
fn processes(lab: &str, name: &str) -> Vec<Pid> {
    let pids = tool::output("ip", ["netns", "pids", &format!("{lab}-guard")]).expect("processes");
    let called = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let found = pids.lines().filter(|pid| called(pid).trim() == name);
    let found: Vec<_> = found.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
    assert!(!found.is_empty(), "no {name} among {pids}");
    found
}

/// Whether the verdict is there and says that `answered > 0` and `failed == 0` in both columns.
fn all_served(said: &str) -> bool {
    let columns = |name: &str| {
        let row = said.lines().find_map(|line| line.strip_prefix(name))?;
        row.split_whitespace().map(|cell| cell.parse().ok()).collect::<Option<Vec<u64>>>()
    };
    let answered = columns("requests answered").is_some_and(|cells| cells.iter().all(|&cell| cell > 0));
    answered && columns("requests failed").is_some_and(|cells| cells == [0, 0])
}

#[test]
fn a_demo_ends_by_itself_with_a_verdict_and_leaves_nothing_behind() {
    let mut demo = Demo::plain("4");
    demo.wait_for("FLOOD");
    let lab = demo.lab();
    assert_eq!(remains(&lab).len(), 4, "two namespaces, pins and a directory");
    let (status, said, errors) = demo.end();
    assert!(status.success(), "{status}\n{said}\n{errors}");
    assert!(all_served(&said), "{said}");
    for line in said.lines().filter(|line| line.contains(" req/s ")) {
        let shown = ["p50", "p99", "failed", "SYNs", "cookies", "ACKs +", "/s  "];
        assert!(shown.iter().all(|text| line.contains(text)), "{line}");
    }
    let states = said.lines().filter(|line| line.contains("ESTABLISHED ") || line.contains("TIME_WAIT "));
    assert!(states.count() > 0, "{said}");
    assert_gone(&lab);
}

#[test]
fn with_arguments_it_runs_the_daemon_itself() {
    let mut command = verb("run");
    command.args(["--", "-i", "lo", "--protect", "192.0.2.1:0=127.0.0.1:8080"]);
    let output = command.output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("tcpguard: ") && said.contains("port 0"), "{said}");
}

#[test]
fn setup_on_a_machine_that_has_everything_changes_nothing() {
    for arguments in [&["setup"][..], &["setup", "--check"]] {
        let output = Command::new(xtask()).args(arguments).output().expect("xtask runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "setup: everything is in place\n");
    }
}

#[test]
fn ctrl_c_ends_a_demo_with_its_verdict() {
    let mut demo = Demo::plain(LONG);
    demo.wait_for("FLOOD");
    let lab = demo.lab();
    demo.signal(Signal::INT);
    let (status, said, errors) = demo.end();
    assert!(status.success(), "{status}\n{said}\n{errors}");
    assert!(all_served(&said), "{said}");
    assert!(!said.contains("59 s  "), "it came to its own end\n{said}");
    assert_gone(&lab);
}

/// On a terminal, which script(1) provides.
#[test]
fn q_ends_the_live_view_with_its_verdict() {
    let line = format!("stty rows 24 cols 80; exec {}", tool::line(&command(LONG)));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
    let mut demo = Demo::start(command.stdin(Stdio::piped()));
    let start = Instant::now();
    let mut screen = Vec::new();
    while !String::from_utf8_lossy(&screen).contains("SYN FLOOD ON") {
        let mut bytes = [0; 4096];
        let read = demo.out.read(&mut bytes).expect("a screen");
        assert!(read > 0, "{}", String::from_utf8_lossy(&screen));
        screen.extend_from_slice(&bytes[..read]);
    }
    demo.child.stdin.as_mut().expect("piped").write_all(b"q").expect("it listens");
    let (status, said, _) = demo.end();
    assert!(status.success(), "{status}\n{said}");
    assert!(all_served(&said.replace('\r', "")), "{said}");
    assert!(start.elapsed() < Duration::from_secs(50), "it came to its own end");
}

#[test]
fn a_demo_runs_right_after_a_killed_one_which_leaves_nothing_behind() {
    let mut killed = Demo::plain(LONG);
    killed.wait_for("FLOOD");
    let lab = killed.lab();
    killed.signal(Signal::KILL);
    let (status, ..) = killed.end();
    assert_eq!(status.signal(), Some(9));
    let (status, said, errors) = Demo::plain("4").end();
    assert!(status.success(), "{status}\n{said}\n{errors}");
    assert!(all_served(&said), "{said}");
    assert_gone(&lab);
}

#[test]
fn a_demo_whose_web_server_dies_fails_and_says_so() {
    let mut demo = Demo::plain("8");
    demo.wait_for("calm");
    for pid in processes(&demo.lab(), "nginx") {
        // A worker may have followed its master already.
        let _ = kill_process(pid, Signal::KILL);
    }
    let (status, said, errors) = demo.end();
    assert_eq!(status.code(), Some(1), "{said}\n{errors}");
    assert!(errors.contains("client requests failed; the first: "), "{errors}");
}

#[test]
fn a_demo_whose_daemon_dies_fails_with_the_daemons_last_words() {
    let mut demo = Demo::plain("8");
    demo.wait_for("calm");
    let lab = demo.lab();
    kill_process(processes(&lab, "tcpguard")[0], Signal::KILL).expect("the daemon is there");
    let (status, _, errors) = demo.end();
    assert_eq!(status.code(), Some(1), "{errors}");
    assert!(errors.contains("the daemon ended by itself (signal: 9"), "{errors}");
    assert_gone(&lab);
}

/// What the lab prints are commands for a shell; each does what it says. Other labs stay up meanwhile.
#[test]
fn a_lab_that_stays_up_works_as_its_directions_say() {
    let shell = |line: &str| tool::output("sh", ["-c", line]);
    let name = format!("test-{}", std::process::id());
    let up = |name: &str| {
        let mut lab = verb("lab");
        lab.args(["--name", name]);
        shell(&tool::line(&lab)).expect("a lab comes up")
    };
    let id = |said: &str| {
        said.split_whitespace().find(|word| word.starts_with("tcpguard-")).expect("it has an id").to_owned()
    };
    let down = |name: &str| {
        let arguments = ["lab", "--name", name, "--down"];
        tool::output(&xtask().display().to_string(), arguments).expect("it goes down")
    };
    let other_name = format!("{name}-other");
    let other = id(&up(&other_name));
    let nginx = processes(&other, "nginx").len();
    assert!(nginx > 0, "the other lab has a web server");
    let said = up(&name);
    let lab = id(&said);
    let direction = |name: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
        line.unwrap_or_else(|| panic!("no `{name}` in\n{said}")).trim().to_owned()
    };
    let mut protect = Command::new("sh");
    protect.args(["-c", &format!("exec {}", direction("protect"))]).stderr(Stdio::null());
    let mut daemon = Process::spawn(&mut protect).expect("the daemon starts");
    let status = direction("watch").replace("stats --watch", "status");
    daemon.wait_until(Duration::from_secs(20), || shell(&status).is_ok()).expect("it guards");
    assert_eq!(shell(&direction("request")).expect("curl runs").trim(), "200");
    assert!(daemon.stop(Duration::from_secs(10)).expect("it stops").success());
    assert!(direction("flood").starts_with(&format!("cargo xtask lab --name {name} --flood ")), "{said}");
    assert_eq!(direction("leave"), format!("cargo xtask lab --name {name} --down"));
    assert_eq!(down(&name).trim(), format!("down: {lab}"));
    assert_gone(&lab);
    assert_eq!(processes(&other, "nginx").len(), nginx, "the other lab is still up");
    assert_eq!(down(&other_name).trim(), format!("down: {other}"));
    assert_gone(&other);
    assert_eq!(down(&name).trim(), format!("no lab `{name}` was up"));
}

#[test]
fn the_pictures_of_the_readme_show_an_attack_as_it_is() {
    let directory = std::env::temp_dir().join(format!("tcpguard-pictures-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let mut command = verb("screenshots");
    command.args(["--seconds", "2", "--flood-pps", "20000", "--directory"]).arg(&directory);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let readme = include_str!("../../README.md");
    for (name, shown) in [
        ("top.svg", "syn-flood"),
        ("top-states.svg", "FIN_WAIT_2"),
        ("top-services.svg", "198.1"),
        ("stats.svg", "cookie-sent"),
    ] {
        let picture = std::fs::read_to_string(directory.join(name)).unwrap();
        assert!(picture.starts_with("<svg ") && picture.contains(shown), "{name}: {picture}");
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        assert!(!readme.contains(&format!("(docs/{name})")) || kept.exists(), "{name} is not in docs");
    }
    assert!(readme.contains("(docs/top.svg)") && readme.contains("(docs/stats.svg)"));
    std::fs::remove_dir_all(directory).unwrap();
}
