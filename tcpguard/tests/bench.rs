//! The benchmarks measure what their rows say: they fail by themselves when a packet meets another verdict or reason than
//! its row's, or the stack does something else. The one of the program needs root.

#[path = "support/example.rs"]
mod example;

use std::path::Path;
use std::time::Duration;

use xtask::bench::flood::{self, Contestant};
use xtask::bench::program::{Effort, Objects, Peer, measure};
use xtask::bench::proxy;
use xtask::bench::stack;
use xtask::build::Artifacts;

fn built() -> Artifacts {
    Artifacts {
        daemon: env!("CARGO_BIN_EXE_tcpguard").into(),
        lab_object: concat!(env!("OUT_DIR"), "/tcpguard-lab").into(),
    }
}

fn objects() -> Objects<'static> {
    Objects {
        guard: Path::new(concat!(env!("OUT_DIR"), "/tcpguard-xdp")),
        bench: Path::new(concat!(env!("OUT_DIR"), "/tcpguard-bench")),
    }
}

#[test]
fn every_row_of_the_program_benchmark_runs_the_path_it_names() {
    let report = measure(objects(), &[], Effort::QUICK).expect("every packet meets the reason of its row");
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
    let error = measure(objects(), &[peer], Effort::QUICK).expect_err("not a guard");
    assert!(format!("{error:#}").contains("row lab/"), "{error:#}");
}

#[test]
fn every_row_of_the_stack_benchmark_is_measured() {
    let program = example::build("tcpguard-stack", "stack-bench").join("stack-bench");
    let effort = stack::Effort { rounds: 2, connections: &[1000, 2000], ..stack::Effort::QUICK };
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
    }
}

#[test]
fn every_work_of_the_proxy_benchmark_is_done_through_every_contestant() {
    let effort = proxy::Effort { rounds: 1, time: Duration::from_secs(1), bulk: 4 << 20, first_bytes: 5 };
    let report = proxy::measure(&built(), effort, |_| {}).expect("every request is answered");
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

#[test]
fn every_contestant_of_the_flood_benchmark_answers_rightly_and_serves_its_clients() {
    let effort = flood::Effort { rounds: 1, time: Duration::from_millis(200), rates: &[20_000] };
    let report =
        flood::measure(&built(), &Contestant::STANDARD, effort, |_| {}).expect("every contestant stands");
    let rows = |name| report.rows.iter().filter(move |row| row.name == name);
    for row in rows("syn_v4") {
        assert_eq!(row.wrong, 0, "{row:?}");
        let answers = row.contestant != "xdp_drop";
        assert_eq!(row.median > 0.0, answers, "{row:?}");
        let serves = answers && row.contestant != "xdp_tx";
        assert_eq!(row.connected > 0, serves, "{row:?}");
    }
    for name in ["syn_v4", "one_tuple_v4", "ack_v4", "data_v4", "known_flow_v4"] {
        assert_eq!(rows(name).count(), Contestant::STANDARD.len(), "{name}");
        assert!(rows(name).all(|row| row.delivered_pps > 0.0), "{name}");
    }
}

#[test]
fn every_row_of_goodput_is_measured_against_the_kernel() {
    let built = built();
    let rows = stack::transfers(&built, stack::Effort::QUICK).expect("bytes arrive");
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
