//! What breaks beside the guard, or runs out in it: each time clients are told at once, what happened is counted, and
//! service comes back by itself. Needs root.

mod daemon;
mod full;
mod peers;
#[path = "../support/mod.rs"]
mod support;

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use support::{Guarded, lab_object, wait_for};
use xtask::lab::{GUARD_ADDRESS, LabConfig};

const BACKEND: &str = "127.0.0.1:9000";
/// The service with [`BACKEND`] behind it, and the one that discards.
const RELAYED: u16 = 81;
const DISCARD: u16 = 82;
/// One that only some tests have.
const ECHO: u16 = 83;
const SOON: Duration = Duration::from_secs(30);

fn guarded(more: &[&str]) -> Guarded {
    let relayed = format!("{GUARD_ADDRESS}:{RELAYED}={BACKEND}");
    let discard = format!("{GUARD_ADDRESS}:{DISCARD}=respond:discard");
    let arguments = [&["--protect", &relayed, "--protect", &discard], more].concat();
    Guarded::up(LabConfig::new(lab_object()), &arguments)
}

/// Stops the daemon. Signals take a moment: none of its threads runs any more when this returns.
fn stop(guarded: &mut Guarded) {
    guarded.daemon().signal(Signal::STOP).expect("stopping the daemon");
    let tasks = format!("/proc/{}/task", guarded.daemon().child().id());
    wait_for("all threads to be stopped", SOON, || {
        std::fs::read_dir(&tasks).expect("the daemon's threads").all(|task| {
            let stat = std::fs::read_to_string(task.expect("a thread").path().join("stat"));
            stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
        })
    });
}

fn connect(guarded: &Guarded, port: u16) -> io::Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&(GUARD_ADDRESS, port).into(), SOON);
    let stream = guarded.lab.client().enter(connect).expect("the client's namespace")?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn count(guarded: &Guarded, group: &str, name: &str) -> u64 {
    let stats = guarded.json(&["stats"]);
    stats["totals"][group][name].as_u64().unwrap_or_else(|| panic!("no counter {group} {name}"))
}

/// Every frame is somewhere, and none is with the kernel that should not be.
fn check_frames(guarded: &Guarded) {
    wait_for("every frame accounted for", SOON, || {
        let frames = |name: &str| count(guarded, "ring", name);
        let held: u64 = ["free", "fill", "rx", "tx", "completion"].into_iter().map(frames).sum();
        held == frames("frames")
    });
}

/// A backend that answers each byte with `y`, and can be killed.
struct Server {
    killed: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    fn start(guarded: &Guarded) -> Self {
        let listener = guarded.listen(BACKEND);
        listener.set_nonblocking(true).expect("a listener that can be given up");
        let killed = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&killed);
        Self { killed, thread: thread::spawn(move || Self::serve(&listener, &over)) }
    }

    fn serve(listener: &TcpListener, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((mut stream, _)) => {
                    stream.set_nonblocking(false).expect("a blocking stream");
                    // What goes wrong here, the client notices.
                    let _ = stream.read(&mut [0]).and_then(|_| stream.write_all(b"y"));
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn kill(self) {
        self.killed.store(true, Ordering::Relaxed);
        self.thread.join().expect("the server");
    }
}

/// Asks once; whether there was an answer. What is no answer must be a reset or an end.
fn ask(guarded: &Guarded) -> bool {
    let mut answer = [0];
    let mut asked = || -> io::Result<usize> {
        let mut stream = connect(guarded, RELAYED)?;
        stream.write_all(b"x")?;
        stream.read(&mut answer)
    };
    match asked() {
        Ok(read) => read == 1,
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => false,
        Err(error) => panic!("neither an answer nor a reset: {error}"),
    }
}

/// For tests that hold both ends of many connections.
fn more_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("more descriptors");
}
