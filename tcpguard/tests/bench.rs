//! The benchmarks measure what their rows say: they fail by themselves when a packet meets another verdict or reason than
//! its row's, or the stack does something else. Nothing here says how fast anything is, so every effort is as small as what is
//! proven allows. Most of it needs root.

#[path = "support/example.rs"]
mod example;
#[path = "support/impostor.rs"]
mod impostor;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use impostor::{Cheat, Impostor};
use serde_json::{Value, json};
use tcpguard_common::lab;
use xtask::bench::flood::{self, Contestant};
use xtask::bench::goodput::{self, Topology};
use xtask::bench::honesty;
use xtask::bench::program::{Effort, Objects, Peer, measure};
use xtask::bench::{control, proxy, report, scale, stack};
use xtask::build::Artifacts;
use xtask::lab::{Lab, LabConfig, mount_bpffs};

fn built() -> Artifacts {
    Artifacts {
        daemon: env!("CARGO_BIN_EXE_tcpguard").into(),
        lab_object: concat!(env!("OUT_DIR"), "/tcpguard-lab").into(),
    }
}

/// Long enough for requests to be answered on a busy machine.
const A_MOMENT: Duration = Duration::from_millis(300);

fn objects() -> Objects<'static> {
    Objects {
        guard: Path::new(concat!(env!("OUT_DIR"), "/tcpguard-xdp")),
        bench: Path::new(concat!(env!("OUT_DIR"), "/tcpguard-bench")),
    }
}

/// A few packets of every row.
const FEW_PACKETS: Effort = Effort { rounds: 1, packets: 2000, flows: 10_000 };

#[test]
fn every_row_of_the_program_benchmark_runs_the_path_it_names() {
    let report =
        measure(objects(), &[], FEW_PACKETS, |_| {}).expect("every packet meets the reason of its row");
    let json = serde_json::to_value(&report).expect("a report is JSON");
    assert_eq!((&json["suite"], &json["version"]), (&"program".into(), &1.into()));
    let rows = json["rows"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().expect("a name")).collect();
    assert_eq!(
        names,
        [
            "null",
            "null_redirect",
            "pass_unprotected",
            "syn_v4_ts",
            "syn_v4_nots",
            "syn_v6_ts",
            "syn_v4_data",
            "ack_valid_new",
            "ack_invalid_v4",
            "ack_invalid_v4_nots",
            "ack_invalid_v6",
            "ack_invalid_v4_spread",
            "ack_invalid_v6_spread",
            "flow_hit_v4",
            "flow_hit_v6",
            "filter_deny",
            "filter_deny_full",
            "filter_none_full",
            "filter_near_full",
            "syn_v4_ts_cold",
            "syn_v4_nots_cold",
            "syn_v6_ts_cold",
            "ack_valid_new_cold",
            "ack_invalid_v4_cold",
            "ack_invalid_v6_cold",
            "flow_hit_v4_cold",
            "flow_hit_v6_cold",
        ]
    );
    for row in rows {
        assert_eq!(row["unit"], "ns");
        for figure in ["median", "min", "max", "over_null"] {
            assert!(row[figure].is_number(), "{row}");
        }
    }
}

#[test]
fn a_peer_that_does_not_answer_syns_is_refused_by_name() {
    // The lab's first program passes everything or sends it back: no guard in either case.
    let peer = Peer { name: "lab".to_owned(), object: concat!(env!("OUT_DIR"), "/tcpguard-lab").into() };
    let error = measure(objects(), &[peer], FEW_PACKETS, |_| {}).expect_err("not a guard");
    assert!(format!("{error:#}").contains("row lab/"), "{error:#}");
}

#[test]
fn a_peer_that_only_turns_syns_around_is_refused() {
    let pinned = Pinned::reflector("mirror").expect("a pinned program");
    let peer = Peer { name: "mirror".to_owned(), object: pinned.0.clone() };
    let error = measure(objects(), &[peer], FEW_PACKETS, |_| {}).expect_err("not a guard");
    let error = format!("{error:#}");
    assert!(error.contains("row mirror/syn_v4_ts: what it sends back: control bits"), "{error}");
}

#[test]
fn every_row_of_the_stack_benchmark_is_measured() {
    let program = example::build("stack-bench").join("stack-bench");
    let effort = stack::Effort {
        rounds: 2,
        segments: 2000,
        connections: &[1000, 2000],
        half_open: 10_000,
        time_wait: 10_000,
        ..stack::Effort::QUICK
    };
    let report = stack::measure(&program, effort).expect("the stack does what the rows say");
    let json = serde_json::to_value(&report).expect("a report is JSON");
    assert_eq!((&json["suite"], &json["version"]), (&"stack".into(), &1.into()));
    let rows = json["rows"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().expect("a name")).collect();
    assert_eq!(
        names,
        [
            "bytes_idle",
            "segment_data_1k",
            "segment_ack_1k",
            "open_close_1k",
            "segment_data_2k",
            "segment_ack_2k",
            "open_close_2k",
            "bytes_half_open",
            "bytes_half_open_v6",
            "half_open_insert",
            "bytes_time_wait_v4",
            "bytes_time_wait_v6",
            "time_wait_insert",
            "time_wait_lookup",
            "time_wait_expire",
            "goodput_queue_16",
            "paced/goodput_queue_16",
            "goodput_queue_64",
            "paced/goodput_queue_64",
            "goodput_queue_256",
            "paced/goodput_queue_256",
        ]
    );
    for (name, row) in names.iter().zip(rows) {
        let unit = match name {
            _ if name.starts_with("bytes") => "bytes",
            _ if name.contains("goodput") => "MB/s",
            _ => "ns",
        };
        assert_eq!(row["unit"], unit, "{row}");
        for figure in ["median", "min", "max"] {
            assert!(row[figure].as_f64().is_some_and(|figure| figure > 0.0), "{row}");
        }
        let beside = ["segment_", "open_close_"].iter().any(|kind| name.starts_with(kind));
        assert_eq!(row["of_fewest"].is_number(), beside, "{row}");
    }
}

#[test]
fn every_work_of_the_proxy_benchmark_is_done_through_every_contestant() {
    let effort =
        proxy::Effort { rounds: 1, warm_up: A_MOMENT, time: A_MOMENT, bulk: 4 << 20, first_bytes: 5 };
    let report = proxy::measure(&built(), effort, |_| {}).expect("every request is answered");
    let json = serde_json::to_value(&report).expect("a report is JSON");
    assert_eq!((&json["suite"], &json["version"]), (&"proxy".into(), &1.into()));
    let keys = [
        "contestant",
        "cpu_s_per_million",
        "failed",
        "max",
        "median",
        "min",
        "name",
        "of_direct",
        "of_haproxy",
        "p50_us",
        "p99_us",
        "samples",
        "unit",
    ];
    for row in json["rows"].as_array().expect("rows") {
        let mut said: Vec<_> = row.as_object().expect("a row").keys().collect();
        said.sort();
        assert_eq!(said, keys);
        assert!(row["contestant"] != "tcpguard" || row["failed"] == 0, "{row}");
    }
    let rows: Vec<_> = report.rows.iter().map(|row| (row.name, row.contestant, row.unit)).collect();
    let works = [
        ("short_conn", "requests/s"),
        ("keepalive", "requests/s"),
        ("bulk_down", "Gbit/s"),
        ("bulk_up", "Gbit/s"),
        ("first_byte", "us"),
    ];
    let contestants = ["tcpguard", "haproxy", "direct", "haproxy_offload", "direct_offload"];
    let expected = works.iter().flat_map(|&(work, unit)| contestants.map(|who| (work, who, unit)));
    assert_eq!(rows, expected.collect::<Vec<_>>());
    for row in &report.rows {
        assert!(row.median > 0.0 && row.of_haproxy > 0.0 && row.of_direct > 0.0, "{row:?}");
    }
}

/// A program under a name of its own in bpffs, until this is dropped.
struct Pinned(PathBuf);

impl Pinned {
    fn reflector(name: &str) -> anyhow::Result<Self> {
        mount_bpffs()?;
        let mut object = aya::Ebpf::load_file(built().lab_object)?;
        let program: &mut aya::programs::Xdp =
            object.program_mut(lab::name::REFLECT).context("no reflector")?.try_into()?;
        program.load()?;
        let pin = Self(format!("/sys/fs/bpf/tcpguard-bench-{}-{name}", std::process::id()).into());
        program.pin(&pin.0)?;
        Ok(pin)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn every_contestant_of_the_flood_benchmark_answers_rightly_and_serves_its_clients() {
    let effort = flood::Effort { rounds: 1, time: Duration::from_millis(200), rates: &[20_000, 0] };
    // No guard at all: a program that sends everything back, in the place of the kernel's sample.
    let pinned = Pinned::reflector("sample").expect("a pinned program");
    let mut contestants = Contestant::STANDARD.to_vec();
    contestants.push(Contestant::XdpSynproxy(pinned.0.clone()));
    let report = flood::measure(&built(), &contestants, effort, |_| {}).expect("every contestant stands");
    let rows = |name| report.rows.iter().filter(move |row| row.name == name);
    for (name, unit) in [("syn_v4", "answers/s"), ("syn_v6", "answers/s"), ("handshake_v4", "handshakes/s")] {
        for row in rows(name) {
            assert_eq!(row.unit, unit, "{row:?}");
            // Now and then a kernel repeats what it answered to the flood before.
            let is_kernel = ["syncookies_1", "syncookies_2", "synproxy"].contains(&&*row.contestant);
            assert!(row.wrong <= if is_kernel { 10 } else { 0 }, "{row:?}");
            if row.contestant == "xdp_synproxy" {
                // What it sends back are no SYN-ACKs.
                assert!(row.delivered_pps > 0.0 && row.median == 0.0 && row.connected == 0, "{row:?}");
                continue;
            }
            let answers = row.contestant != "xdp_drop";
            // So short a flood may leave a kernel no time at all; XDP comes before it.
            let is_in_time = ["tcpguard", "xdp_tx"].contains(&&*row.contestant);
            assert!(if is_in_time { row.median > 0.0 } else { answers || row.median == 0.0 }, "{row:?}");
            // The kernel's synproxy checks checksums over IPv6 as if they were IPv4's, where no driver did.
            let serves =
                answers && row.contestant != "xdp_tx" && (name, &*row.contestant) != ("syn_v6", "synproxy");
            assert_eq!(row.connected > 0, serves, "{row:?}");
            let (syns, handshakes) = (unit == "answers/s", unit == "handshakes/s");
            assert_eq!((row.answered.is_some(), row.of_xdp_tx.is_some()), (syns, !handshakes), "{row:?}");
            // A SYN has one first answer, however often it is repeated.
            let first = row.answered.map(|answered| answered * (row.delivered_pps - row.dropped_pps));
            assert!(first.is_none_or(|first| first <= row.delivered_pps * (1.0 + 1e-3)), "{row:?}");
        }
    }
    for row in &report.rows {
        let costs = [row.cpu_ns_min, row.cpu_ns, row.cpu_ns_max];
        assert!(row.asked_pps > 0 || costs == [None; 3], "{row:?}");
        // On a busy machine a thread may come too late for frames that XDP takes in any time.
        let taken = row.asked_pps > 0 && row.delivered_pps >= flood::TAKEN * row.asked_pps as f64;
        let is_cost = |cost: &Option<f64>| cost.is_some_and(|ns| ns > 0.0);
        assert!(if taken { costs.iter().all(is_cost) } else { costs == [None; 3] }, "{row:?}");
        assert!(row.name != "one_tuple_v4" || row.answers_pps.is_some(), "{row:?}");
    }
    let floods = ["syn_v4", "syn_v6", "one_tuple_v4", "ack_v4", "data_v4", "known_flow_v4", "handshake_v4"];
    for name in floods {
        // Who serves nobody finishes no handshakes, and has no connection that could be flooded.
        let absent = if ["known_flow_v4", "handshake_v4"].contains(&name) { 3 } else { 0 };
        let rates = if name.starts_with("syn_") { 2 } else { 1 };
        assert_eq!(rows(name).count(), rates * (contestants.len() - absent), "{name}");
        assert!(rows(name).all(|row| row.delivered_pps > 0.0), "{name}");
    }
}

#[test]
fn every_row_of_goodput_is_measured_against_the_kernel() {
    let built = built();
    let effort = stack::Effort { transfers: 1, transfer: A_MOMENT, ..stack::Effort::QUICK };
    let rows = stack::transfers(&built, effort).expect("bytes arrive");
    let names: Vec<&str> = rows.iter().map(|row| &*row.name).collect();
    assert_eq!(
        names,
        [
            "goodput_loss_0",
            "kernel/goodput_loss_0",
            "goodput_loss_1",
            "kernel/goodput_loss_1",
            "goodput_loss_5",
            "kernel/goodput_loss_5",
        ]
    );
    for row in rows {
        assert!(row.unit == "MB/s" && row.min > 0.0, "{row:?}");
    }
}

/// Its answers are fixed and it takes nothing for a connection: the check that tcpguard passes in a test below.
#[test]
fn a_reflector_does_not_pass_for_a_guard() {
    let conduct = honesty::reflector(&built()).expect("a lab with a reflector");
    let faults = conduct.faults();
    assert!(faults.contains(&"a SYN was not answered"), "{conduct:?}: {faults:?}");
    assert!(
        faults.contains(&"a client that acknowledged its SYN-ACK was not connected"),
        "{conduct:?}: {faults:?}"
    );
}

/// All but the fixed reply do the job but for one thing, and nothing else is said of them.
#[test]
fn whoever_cheats_does_not_pass_for_a_guard() {
    let lab = Lab::up(LabConfig::new(built().lab_object)).expect("a lab");
    lab.ipv6().expect("IPv6");
    impostor::silence_kernel(&lab).expect("a silent kernel");
    let lacks = ["a SYN-ACK lacked an option that was offered"].as_slice();
    let fixed = [
        "a change of key changed no answer",
        "two clients were answered alike",
        "an ACK with random numbers was taken",
        "an ACK made with a key of zeroes was taken",
    ];
    let cheats = [
        (Cheat::Nothing, [].as_slice()),
        (Cheat::FixedReply, &fixed),
        (Cheat::TakesNothing, &["a client that acknowledged its SYN-ACK was not connected"]),
        (Cheat::WrongChecksum, &["a SYN-ACK was wrong"]),
        (Cheat::AnyChecksum, &["a SYN with a wrong checksum was answered"]),
        (Cheat::NoSegmentSize, lacks),
        (Cheat::NoSelectiveAcknowledgments, lacks),
        (Cheat::NoWindowScale, lacks),
    ];
    let patience = honesty::Patience { key: 3 * impostor::PERIOD, ..honesty::Patience::WITH_A_GUARD };
    for (cheat, faults) in cheats {
        let guard = Impostor::start(&lab, cheat).expect("a guard that cheats");
        let conducts = honesty::conducts(&lab, patience, &mut || Ok(guard.verdicts()));
        for (family, conduct) in conducts.expect("a guard that is observed") {
            assert_eq!(conduct.faults(), faults, "{cheat:?} over {family}: {conduct:?}");
        }
    }
}

#[test]
fn tcpguard_passes_for_a_guard() {
    honesty::check(&built()).expect("tcpguard does its job");
}

#[test]
fn goodput_has_a_row_for_every_contestant_in_both_topologies() {
    let effort = goodput::Effort {
        rounds: 1,
        most: 2,
        warm_up: Duration::ZERO,
        time: A_MOMENT,
        steps: &[5],
        full_rate: false,
    };
    let report = goodput::measure(&built(), effort, |_| {}).expect("every contestant stands");
    let json = serde_json::to_value(&report).expect("a report is JSON");
    assert_eq!((&json["suite"], &json["version"]), (&"goodput".into(), &1.into()));
    let rows: Vec<_> = report.rows.iter().map(|row| (row.topology, row.name, row.contestant)).collect();
    let expected: Vec<_> = Topology::ALL
        .into_iter()
        .flat_map(|topology| ["short_conn", "keepalive"].map(|name| (topology.name(), name)))
        .flat_map(|(topology, name)| goodput::Contestant::ALL.map(|who| (topology, name, who.name())))
        .collect();
    assert_eq!(rows, expected);
    for row in &report.rows {
        assert!(row.asked_pps > 0, "{row:?}");
        // Without a defence there may be nobody who is served; with one there is.
        assert!(row.contestant == "none" || row.requests > 0, "{row:?}");
        // Whoever is not served is missed, and those connected before, if any, are the only others.
        assert_eq!(row.attempts, 60 * row.rounds as u64, "{row:?}");
        assert!((row.failed > 0) == (row.contestant == "none"), "{row:?}");
        // What is compared has another round where its floods were not alike. On a busy machine none may have been.
        let guard = row.contestant == "tcpguard" || row.contestant.starts_with("oracle");
        assert!(row.rounds == 1 || guard && row.rounds == 2, "{row:?}");
        let counts = row.discarded < row.rounds;
        assert!(row.enough == counts && (counts || guard) && row.delivered_pps > 0.0, "{row:?}");
        assert_eq!(row.median > 0.0, counts && row.requests > 0, "{row:?}");
        let times = [0.0, row.p50_us, row.p99_us, row.p999_us, 3e6];
        assert!(if counts { times.is_sorted() && times[1] > 0.0 } else { times[1].is_nan() }, "{row:?}");
        assert!(row.failed == 0 || !counts || row.p999_us == 3e6, "{row:?}");
        if guard {
            assert_eq!((row.of_deny.is_some(), row.of_reflect.is_some()), (counts, counts), "{row:?}");
        }
    }
}

#[test]
fn scale_holds_as_many_connections_as_its_rows_say() {
    let clients = example::build("scale-client").join("scale-client");
    let effort = scale::Effort {
        rounds: 1,
        connections: &[100, 3000],
        time_waits: &[1000, 2000],
        segments: 2000,
        idle: Duration::from_millis(100),
        packets: 1000,
    };
    let report = scale::measure(&built(), &clients, effort, |_| {}).expect("the daemon has what was opened");
    let row = |name: &str, n: u32| {
        let row = report.rows.iter().find(|row| row.name == name && row.n == n);
        row.unwrap_or_else(|| panic!("no row {name} of {n}"))
    };
    for n in [100, 3000] {
        for name in ["bytes_process", "bytes_anon", "bytes_maps", "segment", "list"] {
            assert!(row(name, n).min > 0.0, "{:?}", row(name, n));
        }
        assert!(row("idle_cpu", n).min >= 0.0);
    }
    for n in [1000, 2000] {
        for name in ["bytes_process_time_wait", "bytes_maps_time_wait", "list_time_wait"] {
            assert!(row(name, n).min > 0.0, "{:?}", row(name, n));
        }
    }
    assert!(row("expire_time_wait", 2000).min > 0.0);
    for n in [1, 10, 100, 1000] {
        assert_eq!((row("services_syn", n).unit, row("services_ack", n).unit), ("ns", "ns"));
    }
    for n in [1, 2, 4] {
        assert_eq!((row("queues_syn", n).unit, row("queues_ack", n).unit), ("ns", "ns"));
    }
    for n in [100, 10_000, 100_000] {
        assert_eq!((row("filters_deny", n).unit, row("filters_near", n).unit), ("ns", "ns"));
    }
    assert_eq!(row("filters_none", 0).unit, "ns");
}

#[test]
fn control_forwards_with_and_without_flows_being_listed() {
    let clients = example::build("scale-client").join("scale-client");
    let effort = control::Effort { connections: 500, rounds: 2, segments: 50_000, times: 2 };
    let mut steps = Vec::new();
    let progress = |step: &str| steps.push(step.to_owned());
    let report =
        control::measure(&built(), &clients, effort, progress).expect("lists are finished meanwhile");
    assert_eq!(steps.len(), 1 + 2 * 3 + 1, "{steps:?}");
    let json = serde_json::to_value(&report).expect("a report is JSON");
    assert_eq!((&json["suite"], &json["version"]), (&"control".into(), &1.into()));
    let rows: Vec<_> =
        report.rows.iter().map(|row| (row.name, row.contestant, row.unit, row.ratio.is_some())).collect();
    assert_eq!(
        rows,
        [
            ("forward", "quiet", "segments/s", false),
            ("cpu_engine", "quiet", "%", false),
            ("cpu_control", "quiet", "%", false),
            ("cpu_background", "quiet", "%", false),
            ("cpu_lister", "quiet", "%", false),
            ("forward", "listing", "segments/s", true),
            ("cpu_engine", "listing", "%", false),
            ("cpu_control", "listing", "%", false),
            ("cpu_background", "listing", "%", false),
            ("cpu_lister", "listing", "%", false),
            ("list", "quiet", "ms", false),
            ("list", "listing", "ms", false),
        ]
    );
    for row in &report.rows {
        assert!(row.n == 500 && row.min <= row.median && row.median <= row.max, "{row:?}");
        let idle = row.contestant == "quiet" && ["cpu_background", "cpu_lister"].contains(&row.name);
        assert!(row.min > 0.0 || idle || row.name == "cpu_background", "{row:?}");
    }
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("tcpguard-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

/// One suite with a plot, and one that the page knows nothing of.
fn figures() -> Vec<Value> {
    let machine = json!({"cpu": "a CPU", "cores": 2, "kernel": "6.18", "memory": 1 << 30, "software": {"rustc": "1.95"}});
    let goodput = |who: &str, asked: u64, median: f64| {
        json!({"name": "short_conn", "contestant": who, "topology": "direct", "unit": "requests/s", "median": median,
            "min": median * 0.9, "max": median * 1.1, "asked_pps": asked, "p99_us": 900.0, "failed": 0, "of_deny": 0.97})
    };
    let report = |suite: &str, rows: Vec<Value>| {
        json!({"suite": suite, "version": 1, "measured": "2026-01-02T03:04:05Z", "command": "cargo xtask bench",
            "machine": machine, "rows": rows})
    };
    let rows = [("tcpguard", 30_000.0), ("none", 20_000.0)].into_iter().flat_map(|(who, median)| {
        [0, 500_000].map(|asked| goodput(who, asked, median - asked as f64 / 100.0))
    });
    let other = json!({"name": "answer", "contestant": "tcpguard", "unit": "us", "median": 12.75});
    vec![report("goodput", rows.collect()), report("control", vec![other])]
}

/// What the browser says of a page.
fn browse(page: &Path, args: &[&str]) -> String {
    let page = page.canonicalize().expect("a page");
    let mut command = Command::new("chromium-headless-shell");
    command.args(["--no-sandbox", "--disable-gpu", "--window-size=1400,2400"]).args(args);
    let output =
        command.arg(format!("file://{}", page.display())).output().expect("running chromium-headless-shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_published_page_renders_in_a_browser() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bench/index.html");
    let dom = browse(&page, &["--dump-dom"]);
    for suite in ["program", "flood", "goodput", "scale", "stack", "proxy", "control"] {
        assert!(dom.contains(&format!("<section id=\"{suite}\">")), "no {suite}");
    }
    assert!(dom.matches("<svg").count() > 10 && dom.contains("<polyline") && dom.contains("</html>"));
}

#[test]
fn the_page_of_the_report_renders_in_a_browser() {
    let dir = Scratch::new("report");
    report::write(&dir.0, &figures()).expect("a page");
    for file in ["index.html", "summary.md", "figures.json", "goodput-direct-short_conn.svg"] {
        assert!(dir.0.join(file).is_file(), "{file}");
    }
    let page = dir.0.join("index.html");
    let picture = dir.0.join("page.png");
    // As the browser understood it: plots are drawn, and every suite has its table.
    let dom = browse(&page, &["--dump-dom"]);
    for needed in ["<polyline", ">calm<", "20000", "12.8", "id=\"control\"", "id=\"targets\"", "</html>"] {
        assert!(dom.contains(needed), "{needed} is not in {dom}");
    }
    browse(&page, &[&format!("--screenshot={}", picture.display())]);
    let picture = fs::read(picture).expect("a picture");
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000, "{} bytes", picture.len());
}

/// Marks the victim and all that it starts, by this process's number.
const VICTIM: &str = "TCPGUARD_TEST_VICTIM";
/// What the victim measures with, where it measures the stack.
const PROGRAM: &str = "TCPGUARD_TEST_PROGRAM";

/// A benchmark that is this file's own test, run again in a process of its own.
struct Victim(std::process::Child);

impl Victim {
    fn start(test: &str, program: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.args(["--exact", test]).env(PROGRAM, program).stdout(Stdio::null()).stderr(Stdio::null());
        // Tests of this process may have victims at the same time.
        let mark = format!("{}-{test}", std::process::id());
        Self(command.env(VICTIM, mark).spawn().expect("this test again"))
    }

    /// Processes that it started and that have not ended, by name, itself included.
    fn processes(test: &str) -> Vec<String> {
        let mark = format!("{VICTIM}={}-{test}", std::process::id());
        let marked = |environ: &[u8]| environ.split(|byte| *byte == 0).any(|one| one == mark.as_bytes());
        let dirs = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
        let ours = dirs.filter(|dir| fs::read(dir.join("environ")).is_ok_and(|environ| marked(&environ)));
        ours.filter_map(|dir| Some(fs::read_to_string(dir.join("comm")).ok()?.trim().to_owned())).collect()
    }

    /// Its namespaces, pins and files.
    fn labs(&self) -> usize {
        let prefix = format!("tcpguard-{}-", self.0.id());
        let namespaces = xtask::tool::output("ip", ["netns", "list"]).unwrap_or_default();
        let pins = fs::read_dir("/sys/fs/bpf").into_iter().flatten().flatten();
        let files = fs::read_dir("/run/tcpguard-lab").into_iter().flatten().flatten();
        let named =
            pins.chain(files).filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        namespaces.lines().filter(|line| line.starts_with(&prefix)).count() + named.count()
    }

    /// Ends it as a person or a service manager would.
    fn end(&mut self, signal: &str) {
        xtask::tool::run("kill", [signal, &self.0.id().to_string()]).expect("a signal");
        self.0.wait().expect("its end");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn wait_for(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !there() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn is_victim() -> bool {
    std::env::var_os(VICTIM).is_some()
}

#[test]
fn a_benchmark_that_is_interrupted_leaves_nothing_behind() {
    const TEST: &str = "a_benchmark_that_is_interrupted_leaves_nothing_behind";
    if is_victim() {
        let effort = flood::Effort { rounds: 9, time: Duration::from_secs(9), rates: &[1000] };
        // The first one has a daemon.
        let contestants = [Contestant::Tcpguard, Contestant::XdpDrop, Contestant::XdpTx];
        let _never = flood::measure(&built(), &contestants, effort, |_| {});
        return;
    }
    // What Ctrl-C sends, and what `kill` does.
    for signal in ["-INT", "-TERM"] {
        let mut victim = Victim::start(TEST, Path::new(""));
        let has_daemon = || Victim::processes(TEST).iter().any(|name| name == "tcpguard");
        wait_for("the benchmark makes a lab with a daemon", || victim.labs() > 0 && has_daemon());
        victim.end(signal);
        wait_for("what it made is gone", || victim.labs() == 0);
        wait_for("what it started has ended", || Victim::processes(TEST).is_empty());
    }
}

/// It takes gigabytes, and minutes.
#[test]
fn the_stacks_benchmark_ends_with_whoever_started_it() {
    const TEST: &str = "the_stacks_benchmark_ends_with_whoever_started_it";
    if is_victim() {
        let program = std::env::var_os(PROGRAM).expect("what measures");
        let _never = stack::measure(Path::new(&program), stack::Effort::FULL);
        return;
    }
    let program = example::build("stack-bench").join("stack-bench");
    for signal in ["-INT", "-TERM", "-KILL"] {
        let mut victim = Victim::start(TEST, &program);
        let measures = || Victim::processes(TEST).iter().any(|name| name == "stack-bench");
        wait_for("the program measures", measures);
        victim.end(signal);
        wait_for("the program has ended", || Victim::processes(TEST).is_empty());
    }
}
