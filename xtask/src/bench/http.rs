//! The client of suites with a web server: wrk for requests by the thousand, curl for transfers and single connections, both in the lab's client.

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde::Deserialize;

use crate::lab::{Lab, Process};

/// How long wrk may take to begin, and to end when it was told to.
const BEGUN: Duration = Duration::from_secs(10);
const ENDED: Duration = Duration::from_secs(30);

/// What wrk runs at its end: its table has less in it. And what it runs first: it would wait for a connection before it begins,
/// and not begin without.
const SUMMARY: &str = r#"
wrk.connect = function(address) return true end
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{"requests":%d,"micros":%d,"errors":%d,"late":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status, e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"#;

/// Where to send requests, and from where.
pub(super) struct Http<'a> {
    lab: &'a Lab,
    server: SocketAddr,
}

/// Requests that are done. wrk knows nothing of those that never are, and counts the time of one from when its connection is
/// open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) requests: u64,
    /// Connections that were refused or reset, and answers other than 200.
    pub(super) errors: u64,
    /// Requests that were answered after more than two seconds.
    pub(super) late: u64,
    pub(super) time: Duration,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
}

/// What the summary above prints.
#[derive(Deserialize)]
struct Summary {
    requests: u64,
    micros: u64,
    errors: u64,
    late: u64,
    p50: u64,
    p99: u64,
}

/// Requests that are being sent.
pub(super) struct Wrk(Process);

impl Wrk {
    /// Ends them.
    pub(super) fn finish(mut self) -> Result<Done> {
        let Self(wrk) = &mut self;
        wrk.signal(Signal::INT)?;
        let mut said = String::new();
        wrk.child().stdout.take().context("its standard output is not a pipe")?.read_to_string(&mut said)?;
        let status = wrk.wait(ENDED)?;
        ensure!(status.success(), "wrk ended with {status}: {said}");
        summary(&said)
    }
}

impl<'a> Http<'a> {
    pub(super) fn new(lab: &'a Lab, server: SocketAddr) -> Self {
        Self { lab, server }
    }

    /// As many requests as there can be in `time`, over `connections` at once; with `close` each has its own.
    pub(super) fn requests(&self, close: bool, connections: u32, time: Duration) -> Result<Done> {
        let wrk = self.start(close, connections, time)?;
        std::thread::sleep(time);
        wrk.finish()
    }

    /// Begins to send them, for `longest` at most.
    pub(super) fn start(&self, close: bool, connections: u32, longest: Duration) -> Result<Wrk> {
        let script = self.lab.dir().join("summary.lua");
        fs::write(&script, SUMMARY).with_context(|| format!("writing {}", script.display()))?;
        let script = script.to_str().context("the lab's directory is not UTF-8")?;
        // Longer than it will last: wrk counts in whole seconds, and an interruption is as good an end as its own.
        let (connections, longest) = (connections.to_string(), format!("{}s", longest.as_secs() + 2));
        let url = self.url("page");
        let mut args = vec!["-t", "1", "-c", &connections, "-d", &longest, "-s", script];
        if close {
            args.extend(["-H", "Connection: close"]);
        }
        args.push(&url);
        let mut command = self.lab.client().command("wrk");
        command.args(&args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut wrk = Process::spawn(&mut command)?;
        let id = wrk.id();
        wrk.wait_until(BEGUN, || listens_to_interruptions(id))?;
        Ok(Wrk(wrk))
    }

    /// Fetches the file `name` of `len` bytes: bytes a second.
    pub(super) fn download(&self, name: &str, len: usize) -> Result<f64> {
        let url = self.url(name);
        let format = "%{http_code} %{size_download} %{speed_download}";
        self.transfer(&["-o", "/dev/null", "-w", format, &url], 200, len)
    }

    /// Uploads `file` of `len` bytes: bytes a second.
    pub(super) fn upload(&self, file: &Path, len: usize) -> Result<f64> {
        let url = self.url("upload/bulk");
        let file = file.to_str().context("the lab's directory is not UTF-8")?;
        let format = "%{http_code} %{size_upload} %{speed_upload}";
        // 100-continue would add a round trip; it is not what is measured.
        let args = ["-H", "Expect:", "-o", "/dev/null", "-w", format, "-T", file, &url];
        // The first one makes the file.
        self.transfer(&args, 201, len)
    }

    fn transfer(&self, args: &[&str], status: u64, len: usize) -> Result<f64> {
        let said = self.lab.client().output("curl", &[&["-sS"], args].concat())?;
        let numbers = said.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>();
        let numbers = numbers.with_context(|| format!("curl said {said:?}"))?;
        ensure!(numbers.len() == 3, "curl said {said:?}");
        ensure!(numbers[..2] == [status as f64, len as f64], "status and bytes {:?}", &numbers[..2]);
        Ok(numbers[2])
    }

    /// Fetches `name` over `count` connections, one after the other: seconds from the start of each to the first byte.
    pub(super) fn first_bytes(&self, name: &str, count: usize) -> Result<Vec<f64>> {
        let url = self.url(name);
        let mut args = vec!["-sS", "-H", "Connection: close", "-w", "%{http_code} %{time_starttransfer}\\n"];
        for _ in 0..count {
            args.extend(["-o", "/dev/null", &url]);
        }
        let said = self.lab.client().output("curl", &args)?;
        let times = said.lines().map(|line| {
            let time = line.strip_prefix("200 ").with_context(|| format!("curl said {line:?}"))?;
            Ok(time.parse::<f64>()?)
        });
        let times = times.collect::<Result<Vec<_>>>()?;
        ensure!(times.len() == count, "{} of {count} requests were answered", times.len());
        Ok(times)
    }

    fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.server)
    }
}

/// Whether a process has a handler for SIGINT, as wrk has from the moment on at which it sends requests.
fn listens_to_interruptions(id: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    has_handler(&status, Signal::INT)
}

/// Whether the signal is in the mask of those that proc(5) says are caught.
fn has_handler(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (signal.as_raw() - 1) != 0
}

/// Reads the last line, which is the script's.
fn summary(said: &str) -> Result<Done> {
    let line = said.lines().next_back().unwrap_or_default();
    let Summary { requests, micros, errors, late, p50, p99 } =
        serde_json::from_str(line).with_context(|| format!("wrk said {said:?}"))?;
    let [time, p50, p99] = [micros, p50, p99].map(Duration::from_micros);
    Ok(Done { requests, errors, late, time, p50, p99 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_wrk_is_the_summary() {
        let said = "Running 1s test @ http://10.77.0.1/page\n\n\
                    {\"requests\":7,\"micros\":1000000,\"errors\":1,\"late\":2,\"p50\":20,\"p99\":30}\n";
        let done = summary(said).unwrap();
        assert_eq!((done.requests, done.errors, done.late, done.time), (7, 1, 2, Duration::from_secs(1)));
        assert_eq!((done.p50, done.p99), (Duration::from_micros(20), Duration::from_micros(30)));
        assert!(summary("unable to connect\n").is_err());
    }

    #[test]
    fn caught_signals_are_read_from_their_mask() {
        let status = "SigIgn:\t0000000000000002\nSigCgt:\t0000000000001002\n";
        assert!(has_handler(status, Signal::INT));
        assert!(!has_handler(status, Signal::TERM));
        assert!(!has_handler("", Signal::INT));
    }
}
