//! Real clients move real files through the guard, with and without a flood, with and without loss.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use support::{Guarded, assert_same, lab_object, wait_for};
use xtask::lab::{Flood, FloodSpec, LabConfig};

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

/// A flood of `rate` SYNs a second that is under way, and does not end before [`outlasted`] says so.
fn flood(guarded: &mut Guarded, rate: u64) -> Flood {
    let spec = FloodSpec { rate, total: None, ..FloodSpec::default() };
    let flood = guarded.lab.flood(support::PORT, spec).expect("a flood");
    wait_for("the flood to be under way", Duration::from_secs(10), || flood.generated() > rate / 4);
    flood
}

/// The flood went on beside whatever ran since it began, until it has delivered `frames` at the least, and every frame
/// was answered.
fn outlasted(guarded: &Guarded, flood: Flood, frames: u64) {
    assert!(!flood.is_finished(), "the flood ended early");
    wait_for("the whole flood", Duration::from_secs(60), || flood.generated() > frames + frames / 8);
    let flood = flood.stop().expect("the flood ends");
    assert!(flood.delivered() >= frames, "{flood:?}");
    assert!(guarded.answered() >= flood.delivered(), "{flood:?}");
}

#[test]
fn downloads_are_byte_for_byte_equal_while_300_000_spoofed_syns_a_second_arrive() {
    let mut guarded = Guarded::simple();
    let mut names = files(&guarded, 200, 1_000_000);
    for name in ["large-0", "large-1"] {
        guarded.backend.file(name, 100_000_000).expect("a file to download");
        names.push(name.to_owned());
    }
    let flood = flood(&mut guarded, 300_000);
    assert_downloads(&guarded, &names);
    assert!(guarded.stack("adopted") >= names.len() as u64, "downloads shared connections");
    outlasted(&guarded, flood, 3_000_000);
}

#[test]
fn downloads_and_uploads_survive_2_percent_loss_each_way_beside_a_flood() {
    let config = LabConfig { loss: Some(0.02), ..LabConfig::new(lab_object()) };
    let mut guarded = Guarded::up(config, &[]);
    let mut names = files(&guarded, 40, 1_000_000);
    guarded.backend.file("large", 10_000_000).expect("a file to download");
    names.push("large".to_owned());
    let flood = flood(&mut guarded, 100_000);
    assert_downloads(&guarded, &names);
    assert_upload(&guarded, 3_000_000, 4);
    outlasted(&guarded, flood, 500_000);
    // Segments were lost both ways, and repaired.
    assert!(guarded.stack("retransmitted") > 0 && guarded.stack("out-of-order") > 0);
}

#[test]
fn uploads_are_byte_for_byte_equal_beside_a_flood() {
    let mut guarded = Guarded::simple();
    let flood = flood(&mut guarded, 300_000);
    assert_upload(&guarded, 100_000_000, 1);
    assert_upload(&guarded, 1_000_000, 30);
    outlasted(&guarded, flood, 1_000_000);
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

/// The client promises segments as long as its own link takes; only the router knows of the narrow one.
#[test]
fn a_transfer_over_a_narrow_link_completes_because_its_router_is_heard() {
    const NARROW: u32 = 1400;
    let config = LabConfig { loss: Some(0.0), queues: 2, ..LabConfig::new(lab_object()) };
    let lab_v6 = "[fd77::1]:80=127.0.0.1:8080";
    let guarded = Guarded::up(config, &["--protect", lab_v6]);
    let router = guarded.lab.router().expect("a router");
    let (guard, client) = (guarded.lab.guard(), guarded.lab.client());
    guard.ip("addr add fd77::1/64 dev guard0 nodad\nroute add default via fd77::2").expect("addresses");
    router
        .ip("addr add fd77::2/64 dev south0 nodad\naddr add fd78::1/64 dev north0 nodad")
        .expect("addresses");
    client.ip("addr add fd78::2/64 dev client0 nodad\nroute add default via fd78::1").expect("addresses");
    router.sysctl(&[("net/ipv6/conf/all/forwarding", "1")]).expect("forwarding");
    router.ip(&format!("link set north0 mtu {NARROW}")).expect("a narrow link");
    // What reaches the guard's kernel of all this: nothing.
    guard
        .nft(
            "table inet watch {\nchain in {\ntype filter hook prerouting priority -300\n\
             icmp type destination-unreachable counter\nicmpv6 type packet-too-big counter\n}\n}\n",
        )
        .expect("counters");
    guarded.backend.file("large", 3_000_000).expect("a file to download");
    let into = guarded.lab.dir().join("received");
    for (index, host) in [(1, "10.77.0.1"), (2, "[fd77::1]")] {
        let url = format!("http://{host}:80/large");
        let output = guarded.curl(&["--max-time", "60", "--output", &into.display().to_string(), &url]);
        assert!(output.status.success(), "{host}: {}", String::from_utf8_lossy(&output.stderr));
        assert_same(&into, &guarded.backend.root().join("large"));
        assert_eq!(guarded.stack("mtu-lowered"), index, "{host}");
        assert!(guarded.stack("icmp-heard") >= index && guarded.reason("icmp-too-big") >= index, "{host}");
    }
    let seen = guard.output("nft", &["list", "table", "inet", "watch"]).expect("nft list");
    assert_eq!(seen.matches("counter packets 0 ").count(), 2, "{seen}");
}

/// Our own frames prove nothing about what a kernel makes of our SYN-ACK: this is the kernel's own account of it.
#[test]
fn a_kernel_client_without_timestamps_repairs_losses_by_sack() {
    let config = LabConfig { loss: Some(0.02), ..LabConfig::new(lab_object()) };
    let guarded = Guarded::up(config, &[]);
    let client = guarded.lab.client();
    client.sysctl(&[("net/ipv4/tcp_timestamps", "0")]).expect("timestamps off");
    assert_upload(&guarded, 10_000_000, 1);
    let netstat = client.output("cat", &["/proc/net/netstat"]).expect("the client's counters");
    let mut rows = netstat.lines().filter(|line| line.starts_with("TcpExt:")).map(str::split_whitespace);
    let (names, values) = rows.next().zip(rows.next()).expect("a row of names and one of values");
    let recoveries = names.zip(values).find(|(name, _)| *name == "TCPSackRecovery").map(|(_, value)| value);
    assert_ne!(recoveries.expect("a counter of recoveries by SACK"), "0");
}
