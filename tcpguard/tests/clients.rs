//! Clients and servers as they are in use, each with the protocol it speaks, through the guard: a hundred megabytes each
//! way, equal byte for byte. Needs root.

mod support;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;
use support::{Guarded, assert_same, lab_object, wait_for};
use xtask::lab::{GUARD_ADDRESS, LabConfig, Process, write_pattern};

const MEGABYTES: usize = 100;
const LEN: usize = MEGABYTES * 1_000_000;
const SOON: Duration = Duration::from_secs(20);

/// A lab in which `port` of the guarded host is relayed to `behind` on its loopback.
fn guarded(port: u16, behind: u16) -> Guarded {
    let protect = format!("{GUARD_ADDRESS}:{port}=127.0.0.1:{behind}");
    Guarded::up(LabConfig::new(lab_object()), &["--protect", &protect])
}

fn assert_success(output: &Output) {
    let said = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    assert!(output.status.success(), "{}: {}", output.status, said.concat());
}

/// Every connection ended in order, and each byte that went in came out.
fn assert_relayed(guarded: &Guarded, least: usize) {
    wait_for("every connection to end", SOON, || guarded.flows(Some("ESTABLISHED")).is_empty());
    let counted = |name: &str| guarded.json(&["stats"])["totals"]["service"][name].as_u64();
    let failed = ["client-failed", "unread-reset", "backend-failed", "client-silent"].map(counted);
    assert_eq!(failed, [Some(0); 4], "connections that broke");
    assert!(counted("bytes-to-client") >= Some(least as u64), "{:?}", counted("bytes-to-client"));
    assert!(counted("bytes-to-backend") >= Some(least as u64), "{:?}", counted("bytes-to-backend"));
}

/// nginx on the guarded host, with HTTP/2 over TLS alone, and its certificate.
fn web_server(guarded: &Guarded, port: u16) -> (Process, PathBuf, PathBuf) {
    let dir = guarded.lab.dir().join("tls");
    let root = dir.join("www");
    fs::create_dir_all(root.join("upload")).expect("directories");
    let (key, certificate) = (dir.join("key.pem"), dir.join("certificate.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-days", "2", "-subj", "/CN=guard.test", "-addext", "subjectAltName=DNS:guard.test"]);
    openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate);
    assert_success(&openssl.stdin(Stdio::null()).output().expect("running openssl"));
    let config = dir.join("nginx.conf");
    let (shown, key_file, certificate_file) = (dir.display(), key.display(), certificate.display());
    let text = format!(
        "daemon off;
master_process off;
user root;
pid {shown}/nginx.pid;
error_log {shown}/error.log;
events {{ }}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {shown}/body;
  proxy_temp_path {shown}/proxy;
  fastcgi_temp_path {shown}/fastcgi;
  uwsgi_temp_path {shown}/uwsgi;
  scgi_temp_path {shown}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl http2;
    server_name guard.test;
    ssl_certificate {certificate_file};
    ssl_certificate_key {key_file};
    root {shown}/www;
    location /upload/ {{ dav_methods PUT; create_full_put_path on; }}
  }}
}}
"
    );
    fs::write(&config, text).expect("a configuration");
    let mut nginx = guarded.lab.guard().command("nginx");
    nginx.arg("-e").arg(dir.join("error.log")).arg("-c").arg(&config).stderr(Stdio::piped());
    (listening(guarded, &mut nginx, port), certificate, root)
}

/// A server that listens on a port of the guarded host's loopback.
fn listening(guarded: &Guarded, command: &mut Command, port: u16) -> Process {
    let mut server = Process::spawn(command.stdout(Stdio::null())).expect("a server");
    let connects = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    let reachable = || guarded.lab.guard().enter(connects).expect("the guard's namespace");
    server.wait_until(SOON, reachable).expect("a server that listens");
    server
}

#[test]
fn curl_speaks_http2_over_tls_to_a_web_server() {
    let guarded = guarded(443, 8443);
    let (_server, certificate, root) = web_server(&guarded, 8443);
    let (large, small, received) =
        (root.join("large"), root.join("small"), guarded.lab.dir().join("received"));
    write_pattern(&large, LEN).expect("a file");
    write_pattern(&small, 5000).expect("a file");
    let resolve = format!("guard.test:443:{GUARD_ADDRESS}");
    let certificate = certificate.display().to_string();
    let curl = |arguments: &[&str]| {
        let secured = ["--http2", "--cacert", &certificate, "--resolve", &resolve];
        let said = ["--write-out", "%{http_version} %{num_connects} "];
        let output = guarded.curl(&[&secured[..], &said, arguments].concat());
        assert_success(&output);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let url = |path: &str| format!("https://guard.test/{path}");
    let (large_url, small_url, upload_url) = (url("large"), url("small"), url("upload/large"));
    let into = received.display().to_string();
    assert_eq!(curl(&["--output", &into, &large_url]), "2 1 ");
    assert_same(&received, &large);
    assert_eq!(curl(&["--upload-file", &large.display().to_string(), &upload_url]), "2 1 ");
    assert_same(&root.join("upload/large"), &large);
    // A hundred streams side by side, on one connection.
    let streams: Vec<_> = (0..100).flat_map(|_| ["--output", "/dev/null", &small_url]).collect();
    let said = curl(&[&["--parallel", "--parallel-max", "100"], &streams[..]].concat());
    assert_eq!(said.matches("2 ").count(), 100, "{said}");
    let connections: u32 =
        said.split_whitespace().skip(1).step_by(2).filter_map(|n| n.parse::<u32>().ok()).sum();
    assert_eq!(connections, 1, "{said}");
    assert_relayed(&guarded, LEN);
}

#[test]
fn wrk_has_every_request_answered_on_connections_that_are_kept_and_on_one_for_each() {
    let guarded = Guarded::simple();
    guarded.backend.file("hello", 5).expect("a file");
    for kept in [true, false] {
        let adopted = guarded.stack("adopted");
        let mut wrk = guarded.lab.client().command("wrk");
        wrk.args(["--threads", "1", "--connections", "32", "--duration", "2s"]);
        if !kept {
            wrk.args(["--header", "Connection: close"]);
        }
        let output = wrk.arg(guarded.url("hello")).output().expect("running wrk");
        assert_success(&output);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let trouble = ["Socket errors", "Non-2xx"].iter().any(|trouble| said.contains(trouble));
        let requests =
            said.split_once(" requests in").and_then(|(before, _)| before.split_whitespace().last());
        let requests: u64 = requests.and_then(|count| count.parse().ok()).expect("how many requests");
        assert!(!trouble && requests > 64, "{said}");
        let connections = guarded.stack("adopted") - adopted;
        assert!(
            if kept { connections < requests / 10 } else { connections >= requests },
            "{connections}: {said}"
        );
    }
}

#[test]
fn iperf3_measures_both_ways() {
    let guarded = guarded(5201, 15201);
    let mut server = guarded.lab.guard().command("iperf3");
    server.args(["--server", "--bind", "127.0.0.1", "--port", "15201"]).stderr(Stdio::null());
    let _server = listening(&guarded, &mut server, 15201);
    for direction in [&[][..], &["--reverse"]] {
        let mut client = guarded.lab.client().command("iperf3");
        client.args(["--client", &GUARD_ADDRESS.to_string(), "--port", "5201", "--json"]);
        client.args(["--bytes", &LEN.to_string(), "--parallel", "2"]).args(direction);
        let output = client.stdin(Stdio::null()).output().expect("running iperf3");
        assert_success(&output);
        let report: Value = serde_json::from_slice(&output.stdout).expect("iperf3's report");
        let bytes = |sum: &str| report["end"][sum]["bytes"].as_u64().unwrap_or_default();
        let (sent, received) = (bytes("sum_sent"), bytes("sum_received"));
        // It does not wait for the last bytes on their way.
        assert!(sent >= LEN as u64 && received <= sent && received >= LEN as u64 / 2, "{sent} {received}");
    }
}

/// A mail server that takes one message and then hands one out, as far as curl needs it. In both protocols the server
/// speaks first: a client that is never greeted waits for ever.
fn mail_server(listener: TcpListener, greeting: &'static str, message: PathBuf) -> JoinHandle<()> {
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        let mut say = BufWriter::new(stream.try_clone().expect("a second handle"));
        let mut said = BufReader::new(stream);
        let mut answer = |text: &str| {
            say.write_all(text.as_bytes()).expect("answering");
            say.flush().expect("answering");
        };
        answer(greeting);
        let mut line = String::new();
        loop {
            line.clear();
            if said.read_line(&mut line).expect("a line") == 0 {
                return;
            }
            match line.split_whitespace().next().unwrap_or_default() {
                "EHLO" | "MAIL" | "RCPT" => answer("250 as you say\r\n"),
                "DATA" => {
                    answer("354 go on\r\n");
                    store(&mut said, &message);
                    answer("250 it is here\r\n");
                }
                "CAPA" => answer("+OK\r\nUSER\r\n.\r\n"),
                "USER" | "PASS" => answer("+OK\r\n"),
                "RETR" => {
                    answer("+OK\r\n");
                    answer(&fs::read_to_string(&message).expect("the message"));
                    answer(".\r\n");
                }
                "QUIT" => return answer(if greeting.starts_with('+') { "+OK\r\n" } else { "221 bye\r\n" }),
                other => panic!("an unexpected command: {other}"),
            }
        }
    })
}

/// Writes the lines up to the one that is a dot to `file`.
fn store(lines: &mut impl std::io::BufRead, file: &Path) {
    let mut file = BufWriter::new(File::create(file).expect("a file"));
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line).expect("a line");
        assert!(read > 0, "the client went away");
        if line == b".\r\n" {
            return file.flush().expect("writing");
        }
        file.write_all(&line).expect("writing");
    }
}

/// Lines of text, none of which begins with a dot.
fn write_message(file: &Path) {
    let random = file.with_extension("random");
    write_pattern(&random, LEN / 2).expect("a file");
    let mut bytes = BufReader::new(File::open(&random).expect("the file"));
    let mut text = BufWriter::new(File::create(file).expect("a file"));
    let mut row = [0; 32];
    while bytes.read(&mut row).expect("reading") > 0 {
        for byte in row {
            write!(text, "{byte:02x}").expect("writing");
        }
        text.write_all(b"\r\n").expect("writing");
    }
    text.flush().expect("writing");
}

#[test]
fn curl_sends_and_fetches_mail_from_servers_that_speak_first() {
    let guarded = guarded(25, 2525);
    let dir = guarded.lab.dir();
    let [sent, stored, fetched] = ["sent", "stored", "fetched"].map(|name| dir.join(name));
    write_message(&sent);
    let server = |greeting| mail_server(guarded.listen("127.0.0.1:2525"), greeting, stored.clone());
    let smtp = server("220 at your service\r\n");
    let url = |protocol: &str, path: &str| format!("{protocol}://{GUARD_ADDRESS}:25/{path}");
    let mail = ["--mail-from", "a@guard.test", "--mail-rcpt", "b@guard.test"];
    let upload = sent.display().to_string();
    assert_success(
        &guarded.curl(&[&mail[..], &["--upload-file", &upload, &url("smtp", "guard.test")]].concat()),
    );
    smtp.join().expect("the server");
    assert_same(&sent, &stored);
    let pop3 = server("+OK at your service\r\n");
    let output = fetched.display().to_string();
    assert_success(&guarded.curl(&["--user", "b:secret", "--output", &output, &url("pop3", "1")]));
    pop3.join().expect("the server");
    assert_same(&sent, &fetched);
    assert_relayed(&guarded, LEN);
}
