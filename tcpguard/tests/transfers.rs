//! Real clients move real files through the guard, with and without a flood, with and without loss.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use support::{Guarded, assert_same, lab_object, wait_for};
use xtask::lab::{FloodSpec, LabConfig};

/// `count` files from 1 byte to `largest`, spread evenly on a logarithmic scale.
fn files(guarded: &Guarded, count: usize, largest: usize) -> Vec<String> {
    (0..count)
        .map(|index| {
            let share = index as f64 / (count - 1) as f64;
            let len = (largest as f64).powf(share).round() as usize;
            let name = format!("file-{index}");
            guarded.backend.file(&name, len).expect("a file to download");
            name
        })
        .collect()
}

fn assert_downloads(guarded: &Guarded, names: &[String]) {
    let into = guarded.lab.dir().join("downloads");
    guarded.download(names, &into);
    for name in names {
        assert_same(&into.join(name), &guarded.backend.root().join(name));
    }
}

fn assert_upload(guarded: &Guarded, len: usize, copies: usize) {
    let source = guarded.lab.dir().join("upload-source");
    xtask::lab::write_pattern(&source, len).expect("a file to upload");
    let uploads: Vec<PathBuf> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..copies)
            .map(|copy| {
                let name = format!("upload/{copy}");
                let source = &source;
                scope.spawn(move || {
                    let source = source.display().to_string();
                    let output = guarded.curl(&["--upload-file", &source, &guarded.url(&name)]);
                    assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
                    guarded.backend.root().join(name)
                })
            })
            .collect();
        running.into_iter().map(|upload| upload.join().expect("an upload")).collect()
    });
    for upload in uploads {
        assert_same(&source, &upload);
    }
}

#[test]
fn downloads_are_byte_for_byte_equal_while_300_000_spoofed_syns_a_second_arrive() {
    let mut guarded = Guarded::simple();
    let mut names = files(&guarded, 200, 1_000_000);
    for name in ["large-0", "large-1"] {
        guarded.backend.file(name, 100_000_000).expect("a file to download");
        names.push(name.to_owned());
    }
    const FRAMES: u64 = 3_000_000;
    let spec = FloodSpec { rate: 300_000, total: Some(FRAMES), ..FloodSpec::default() };
    let flood = guarded.lab.flood(support::PORT, spec).expect("a flood");
    wait_for("the flood to be under way", Duration::from_secs(10), || flood.generated() > 100_000);
    assert_downloads(&guarded, &names);
    let flood = flood.finish().expect("the flood ends by itself");
    assert!(flood.delivered() >= FRAMES, "{flood:?}");
    assert!(guarded.reason("cookie-sent") >= FRAMES);
}

#[test]
fn downloads_and_uploads_survive_2_percent_loss_each_way_beside_a_flood() {
    let config = LabConfig { loss: Some(0.02), ..LabConfig::new(lab_object()) };
    let mut guarded = Guarded::up(config, &[]);
    let mut names = files(&guarded, 40, 1_000_000);
    guarded.backend.file("large", 10_000_000).expect("a file to download");
    names.push("large".to_owned());
    let spec = FloodSpec { rate: 100_000, total: Some(500_000), ..FloodSpec::default() };
    let flood = guarded.lab.flood(support::PORT, spec).expect("a flood");
    assert_downloads(&guarded, &names);
    assert_upload(&guarded, 3_000_000, 4);
    flood.finish().expect("the flood ends by itself");
}

#[test]
fn uploads_are_byte_for_byte_equal_beside_a_flood() {
    let mut guarded = Guarded::simple();
    let spec = FloodSpec { rate: 300_000, total: Some(1_000_000), ..FloodSpec::default() };
    let flood = guarded.lab.flood(support::PORT, spec).expect("a flood");
    assert_upload(&guarded, 100_000_000, 1);
    assert_upload(&guarded, 1_000_000, 30);
    flood.finish().expect("the flood ends by itself");
}

#[test]
fn a_client_without_timestamps_still_has_window_scale_and_sack() {
    let guarded = Guarded::simple();
    guarded.lab.client().sysctl(&[("net/ipv4/tcp_timestamps", "0")]).expect("timestamps off");
    guarded.backend.file("large", 50_000_000).expect("a file to download");
    let raw = support::raw::RawPort::open(&guarded.lab, [10, 77, 0, 99].into());
    let mut options = support::raw::linux_options();
    options.timestamps = None;
    let handshake = raw.syn(40_000, support::PORT, 1, options).expect("a SYN-ACK");
    let offered = &handshake.syn_ack.options;
    assert!(offered.sack_permitted && offered.mss.is_some() && offered.timestamps.is_none());
    let shift = offered.window_scale.expect("a window scale");

    assert_downloads(&guarded, &["large".to_owned()]);
    assert_upload(&guarded, 50_000_000, 1);
    // The window the guard grants, as the client's kernel sees it, outgrows what 16 bits can say.
    raw.send(&raw.frame(40_000, support::PORT, &handshake.ack(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")));
    let (answer, _) = raw.receive(support::PORT, 40_000, Duration::from_secs(2)).expect("an answer");
    assert!(u32::from(answer.tcp.window) << shift > 0xffff, "window {} << {shift}", answer.tcp.window);
}
