//! The examples do what they say, each behind the guard in a lab of its own. Needs root, and the examples built
//! (`cargo build --examples`).

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::{lab_object, wait_for};
use xtask::lab::{FloodSpec, GUARD_ADDRESS, GUARD_INTERFACE, Lab, LabConfig, Process};

const PORT: u16 = 80;

/// A lab that `example` guards, once it does.
fn guarded_by(example: &str) -> (Process, Lab) {
    let lab = Lab::up(LabConfig::new(lab_object())).expect("the lab comes up (these tests need root)");
    let binary = Path::new(env!("CARGO_BIN_EXE_tcpguard")).with_file_name("examples").join(example);
    assert!(binary.exists(), "{}: not there; `cargo build --examples` makes it", binary.display());
    let mut command = lab.guard().command(binary);
    command.args([GUARD_INTERFACE, &format!("{GUARD_ADDRESS}:{PORT}")]);
    command.arg(lab.control_socket()).arg(lab.pin_dir());
    let mut process = Process::spawn(&mut command).expect("the example starts");
    let answers = || {
        let mut status = Command::new(env!("CARGO_BIN_EXE_tcpguard"));
        status.arg("status").arg("--control").arg(lab.control_socket());
        status.output().is_ok_and(|output| output.status.success())
    };
    process.wait_until(Duration::from_secs(60), answers).expect("the example guards");
    (process, lab)
}

fn connect(lab: &Lab) -> TcpStream {
    let stream = lab.client().enter(|| TcpStream::connect((GUARD_ADDRESS, PORT)));
    let stream = stream.expect("the client's namespace").expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a read timeout");
    stream
}

/// It drains, detaches and ends in order.
fn ends(process: Process) {
    let status = process.stop(Duration::from_secs(20)).expect("the example ends");
    assert!(status.success(), "{status}");
}

#[test]
fn echo_sends_back_what_it_receives() {
    let (process, lab) = guarded_by("echo");
    let sent: Vec<u8> = (0..200_000_u32).map(|i| (i ^ i >> 8) as u8).collect();
    let mut stream = connect(&lab);
    let mut writer = stream.try_clone().expect("a second handle");
    let mut received = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&sent).expect("sending");
            writer.shutdown(Shutdown::Write).expect("ending");
        });
        stream.read_to_end(&mut received).expect("reading to the end");
    });
    assert!(received == sent);
    ends(process);
}

#[test]
fn http_hyper_answers_curl_on_one_connection() {
    let (process, lab) = guarded_by("http_hyper");
    let url = |path: &str| format!("http://{GUARD_ADDRESS}:{PORT}/{path}");
    let mut curl = lab.client().command("curl");
    curl.args(["--silent", "--max-time", "10", "--write-out", "%{num_connects} "]);
    let output = curl.args([url("a"), url("b")]).output().expect("running curl");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "GET /a\n1 GET /b\n0 ");
    ends(process);
}

#[test]
fn the_static_responder_says_its_sentence_and_closes() {
    let (process, mut lab) = guarded_by("static_responder");
    let said = |lab: &Lab| {
        let mut stream = connect(lab);
        stream.write_all(b"hello?").expect("asking");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("a sentence and the end");
        said
    };
    assert_eq!(said(&lab), "Still here.\n");
    // And to everybody who comes while a flood goes on.
    let flood = lab.flood(PORT, FloodSpec { rate: 50_000, total: None, ..FloodSpec::default() });
    let flood = flood.expect("a flood");
    wait_for("the flood to be under way", Duration::from_secs(30), || flood.generated() > 50_000);
    for _ in 0..10 {
        assert_eq!(said(&lab), "Still here.\n");
    }
    assert!(!flood.is_finished(), "the flood ended early");
    flood.stop().expect("the flood ends");
    ends(process);
}
