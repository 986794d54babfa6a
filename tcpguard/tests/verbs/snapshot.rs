//! Snapshots of what verbs print, kept in `tests/snapshots`. `TCPGUARD_SNAPSHOTS=update` writes them anew:
//!
//! ```sh
//! TCPGUARD_SNAPSHOTS=update cargo test -p tcpguard --test verbs --test top -- --test-threads=1
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// The lab's client.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 2));

/// Holds what was said against the snapshot, or makes it the snapshot.
pub(crate) fn check(name: &str, said: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots").join(format!("{name}.txt"));
    if std::env::var("TCPGUARD_SNAPSHOTS").is_ok_and(|wish| wish == "update") {
        return std::fs::write(&path, said).with_context(|| path.display().to_string());
    }
    let kept = std::fs::read_to_string(&path)
        .with_context(|| format!("{}: TCPGUARD_SNAPSHOTS=update makes a snapshot", path.display()))?;
    ensure!(
        kept == said,
        "{name} is not what {} has; that has\n{kept}\nand there was said\n{said}",
        path.display()
    );
    Ok(())
}

/// What stays the same from one run to the next: numbers, times and ports that do not are named, and gaps between columns,
/// which are as wide as their numbers, are two blanks.
pub(crate) fn lasting(said: &str) -> String {
    let line = |line: &str| {
        let (mut lasting, mut gap) = (String::new(), 0);
        for word in line.split(' ') {
            if word.is_empty() {
                gap += 1;
                continue;
            }
            if !lasting.is_empty() || gap > 0 {
                lasting += if gap > 0 { "  " } else { " " };
            }
            lasting += &lasting_word(word);
            gap = 0;
        }
        lasting + "\n"
    };
    said.lines().map(line).collect()
}

fn lasting_word(word: &str) -> String {
    let is_edge = |c: char| "(),;:[]".contains(c);
    let core = word.trim_matches(is_edge);
    let named = if let Ok(address) = core.parse::<SocketAddr>() {
        // Ports of clients are the kernel's choice.
        let is_clients = address.ip() == CLIENT || address.port() >= 10_000;
        if is_clients { format!("{}:PORT", address.ip()) } else { core.to_owned() }
    } else if core.split(':').count() == 6 && core.len() == 17 {
        "MAC".to_owned()
    } else if core.starts_with("20") && core.ends_with('Z') || is_duration(core) || is_time_of_day(core) {
        "TIME".to_owned()
    } else if let Some((interface, _)) = core.split_once('/').filter(|_| core.starts_with("guard")) {
        format!("{interface}/#")
    } else if core.starts_with(|c: char| c.is_ascii_digit() || c == '>') {
        let mut hidden = String::new();
        for c in core.chars() {
            match c.is_ascii_digit() {
                true if hidden.ends_with('#') => {}
                true => hidden.push('#'),
                false => hidden.push(c),
            }
        }
        hidden
    } else {
        core.to_owned()
    };
    if core.is_empty() { word.to_owned() } else { word.replacen(core, &named, 1) }
}

/// `1m30s`, `250ms`.
fn is_duration(word: &str) -> bool {
    let units = word.trim_matches(|c: char| c.is_ascii_digit());
    let known = |unit: &str| matches!(unit, "ns" | "us" | "ms" | "s" | "m" | "h" | "day" | "days");
    word.starts_with(|c: char| c.is_ascii_digit())
        && !units.is_empty()
        && units.split(|c: char| c.is_ascii_digit()).filter(|unit| !unit.is_empty()).all(known)
}

/// `22:13:20.123456`
fn is_time_of_day(word: &str) -> bool {
    word.len() == 15
        && word.split(':').count() == 3
        && word.chars().all(|c| c.is_ascii_digit() || ":.".contains(c))
}

#[test]
fn what_does_not_last_is_named_and_what_does_is_left_alone() {
    for (said, expected) in [
        ("up 1m30s, rates over 251 ms", "up TIME, rates over # ms\n"),
        ("10.77.0.1:80      12  10.77.0.2:43210 (60.1%)", "10.77.0.1:80  #  10.77.0.2:PORT (#.#%)\n"),
        ("10.77.0.2:8370 > 127.0.0.1:50000", "10.77.0.2:PORT > 127.0.0.1:PORT\n"),
        ("  backend 127.0.0.1:8080: failed 0", "  backend 127.0.0.1:8080: failed #\n"),
        ("since 2026-11-22T22:00:00Z, CPU0 of guard0/1", "since TIME, CPU0 of guard0/#\n"),
        ("22:13:20.123456 02:00:00:00:00:01 up", "TIME MAC up\n"),
    ] {
        assert_eq!(lasting(said), expected);
    }
}
