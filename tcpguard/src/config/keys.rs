//! The table of the file's keys, and the annotated example that is made from it and from the table of tunables. What
//! reads a file is `file`; a test holds the two against each other.

use std::fmt::Write as _;

use toml::Value;

use super::access::{DEFAULT_MODE, format_mode};
use super::{
    AttachMode, Balance, CONNECT_TIMEOUT, DEFAULT_PIN_DIR, DEFAULT_SOCKET, MAX_FLOWS, MIN_FLOWS,
    OnDaemonExit, ProxyProtocol, Responder, ServiceMode, Source, TUNABLES, Unit, duration,
};

/// Columns that the example keeps to.
const WIDTH: usize = 100;

/// A table of the file.
struct Section {
    /// As the file has it; none for what comes before all tables.
    header: Option<&'static str>,
    help: String,
    keys: Vec<Key>,
}

/// One key.
struct Key {
    name: &'static str,
    help: String,
    /// Its default, or something that could be there.
    value: Value,
    /// Whether a file needs it; what it does not need stands behind `#`.
    needed: bool,
}

fn key(name: &'static str, value: impl Into<Value>, help: impl Into<String>) -> Key {
    Key { name, help: help.into(), value: value.into(), needed: false }
}

fn needed(name: &'static str, value: impl Into<Value>, help: impl Into<String>) -> Key {
    Key { needed: true, ..key(name, value, help) }
}

fn section(header: &'static str, help: impl Into<String>, keys: Vec<Key>) -> Section {
    Section { header: Some(header), help: help.into(), keys }
}

fn one_of(words: &[&str]) -> String {
    format!("One of {}.", words.join(", "))
}

fn sections() -> Vec<Section> {
    let whole = Section { header: None, help: String::new(), keys: whole() };
    vec![whole, control(), metrics(), interface(), service(), filters(), events(), tunables()]
}

fn whole() -> Vec<Key> {
    let flows = i64::from(tcpguard_common::map::DEFAULT_MAX_FLOWS);
    let max_flows = format!(
        "Flows that XDP can know at once, per address family, at about 100 bytes each. From {MIN_FLOWS} to {MAX_FLOWS}."
    );
    vec![
        key(
            "secret_file",
            "/etc/tcpguard/secret",
            "Master secret of the cookie keys; made if it is not there. Machines that stand in for each other share it. \
             Without one the secret is random.",
        ),
        key("pin_dir", DEFAULT_PIN_DIR, "Where maps and links are pinned; on a BPF file system."),
        key("max_flows", flows, max_flows),
        key(
            "on_daemon_exit",
            OnDaemonExit::default().to_string(),
            format!(
                "What becomes of protected ports once a killed daemon's exit-grace is over. {}",
                one_of(OnDaemonExit::WORDS)
            ),
        ),
    ]
}

fn control() -> Section {
    section(
        "[control]",
        "The socket that the other verbs ask.",
        vec![
            key("socket", DEFAULT_SOCKET, "Its path."),
            key("group", "adm", "Who may use it besides root: a group's name or number."),
            key(
                "mode",
                format_mode(DEFAULT_MODE),
                "Its permissions; others than owner and group can have none.",
            ),
            key(
                "read_socket",
                "/run/tcpguard/read.sock",
                "A second socket, for `tcpguard --control`, on which nothing can be changed: status, stats, flows, events, \
                 services, filters, config and tune (without a value) are answered there, and nothing that shows what clients \
                 send, or whether a cookie is valid.",
            ),
            key("read_group", "users", "Who may use that one besides root."),
            key("read_mode", format_mode(DEFAULT_MODE), "Its permissions; 0666 lets everybody read."),
        ],
    )
}

fn metrics() -> Section {
    section(
        "[metrics]",
        "Where Prometheus reads the metrics: /metrics over HTTP. Off unless there is a listen.",
        vec![key(
            "listen",
            "127.0.0.1:9464",
            "An address and port, where everybody who can connect may read, or unix:/PATH, where the control socket's group may.",
        )],
    )
}

fn interface() -> Section {
    section(
        "[[interface]]",
        "What to guard; once for each interface.",
        vec![
            needed("name", "eth0", "As `ip link` shows it."),
            key(
                "mode",
                AttachMode::default().to_string(),
                format!("How XDP attaches. Generic works everywhere, slowly. {}", one_of(AttachMode::WORDS)),
            ),
            key(
                "queues",
                4,
                "Give engines to so many receive queues, the first ones. The NIC must keep flows to those (ethtool -X \
                 eth0 equal 4): what arrives at others is dropped. All queues have one unless this is set.",
            ),
            key("cpus", vec![0, 1], "Keep the engines of its queues on these CPUs, in turn."),
            key("busy_poll", false, "Let its engines look for frames without ever sleeping, for a CPU each."),
            key(
                "zero_copy",
                true,
                "Let the device read and write AF_XDP frames itself where its driver can and the mode is native. Elsewhere, \
                 and where this is false, the kernel copies them.",
            ),
        ],
    )
}

fn service() -> Section {
    let own = TUNABLES.iter().filter(|tunable| tunable.per_service).map(|tunable| tunable.name);
    let own: Vec<_> = own.collect();
    section(
        "[[service]]",
        "What to protect there; once for each address and port.",
        vec![
            needed(
                "listen",
                "192.0.2.10:443",
                "Where clients connect. 0.0.0.0 and [::] stand for any address of their family.",
            ),
            needed(
                "backend",
                "127.0.0.1:8443",
                "Where connections are relayed to; several stand in for each other: [\"10.0.0.1:80\", \
                 \"unix:/run/app.sock\"]. Only mode off needs none.",
            ),
            key(
                "balance",
                Balance::default().to_string(),
                format!(
                    "Which of several backends a connection goes to; one that fails rests for a while. {}",
                    one_of(Balance::WORDS)
                ),
            ),
            key(
                "connect_timeout",
                duration::format(CONNECT_TIMEOUT),
                "How long a backend may take to accept before the next is tried, and at last the client reset.",
            ),
            key(
                "proxy_protocol",
                ProxyProtocol::V2.to_string(),
                format!(
                    "Tell backends who the client is; they have to expect it. {}",
                    one_of(ProxyProtocol::WORDS)
                ),
            ),
            key(
                "source",
                Source::default().to_string(),
                format!(
                    "Where backends see their connections come from; with client, their answers must be routed back here. {}",
                    one_of(Source::WORDS)
                ),
            ),
            key(
                "respond",
                Responder::Http.to_string(),
                format!(
                    "Instead of a backend: what answers connections here, for probes and measurements. {}",
                    one_of(Responder::WORDS)
                ),
            ),
            key(
                "mode",
                ServiceMode::default().to_string(),
                format!("How SYNs are treated. {}", one_of(ServiceMode::WORDS)),
            ),
            key("dry_run", false, "Count what would become of its segments, and leave them all to the host."),
            key(
                "max_connections",
                10_000,
                "Connections at once; without it, as many as there are descriptors.",
            ),
            key(
                "idle_time",
                "10m",
                "How long one may go without a byte either way; without it, for ever. A byte now and then is enough.",
            ),
            key(
                "total_time",
                "24h",
                "How long one may last, whatever it moves; without it, for ever. It alone ends one that trickles.",
            ),
            key(
                "tunables",
                Value::Table([("close-wait".to_owned(), Value::from("5m"))].into_iter().collect()),
                format!("Tunables that it has for itself: any of {}.", own.join(", ")),
            ),
        ],
    )
}

fn filters() -> Section {
    let list = |prefixes: &[&str]| Value::Array(prefixes.iter().map(|&prefix| prefix.into()).collect());
    section(
        "[filters]",
        "Sources to drop unseen, and sources to spare the budgets. The longest prefix around a source counts.",
        vec![
            key("deny", list(&["203.0.113.0/24", "2001:db8:bad::/48 expires 1h"]), "To drop."),
            key(
                "allow",
                list(&["203.0.113.7"]),
                "To spare the budgets; a valid cookie they need like all others.",
            ),
            key("files", list(&[]), "Files of prefixes, one a line, as `tcpguard filters load` reads them."),
        ],
    )
}

fn events() -> Section {
    let hook = Value::Array(["/usr/local/bin/page", "--team", "network"].map(Value::from).into());
    section(
        "[events]",
        "What `tcpguard events` lists.",
        vec![
            key(
                "hook",
                hook,
                "A program, and its arguments, that hears of each: as a line of JSON on its standard input, as `tcpguard \
                 events --json --follow` prints it. One runs at a time; when sixteen events wait, others are skipped. It runs as \
                 the daemon's user, without any of its privileges.",
            ),
            key(
                "hook_time",
                duration::format(super::Events::default().hook_time),
                "How long it may take before it is killed.",
            ),
        ],
    )
}

fn tunables() -> Section {
    let row = |tunable: &super::Tunable| {
        let value = |number| tunable.value(number);
        let range = match tunable.unit.choices() {
            [] => format!("From {} to {}.", value(tunable.min), value(tunable.max)),
            choices => one_of(choices),
        };
        let default = match tunable.unit {
            Unit::Duration | Unit::Choice(_) => Value::String(value(tunable.default).to_string()),
            Unit::Count => Value::Integer(i64::try_from(tunable.default).unwrap_or(i64::MAX)),
        };
        key(tunable.name, default, format!("{} Costs: {} {range}", tunable.help.trim(), tunable.cost))
    };
    section(
        "[tunables]",
        "Timers and limits; `tcpguard tune` lists and changes them.",
        TUNABLES.iter().map(row).collect(),
    )
}

/// A file with every key in it.
pub fn example() -> String {
    let mut text = String::new();
    comment(
        &mut text,
        "tcpguard's configuration, with every key that there is. What stands behind # is not needed: it shows the \
         default, or something that could be there. `tcpguard check FILE` says whether a file is good.",
    );
    for section in sections() {
        if let Some(header) = section.header {
            text.push('\n');
            comment(&mut text, &section.help);
            text += &format!("{header}\n");
        }
        for key in section.keys {
            text.push('\n');
            comment(&mut text, &key.help);
            let mark = if key.needed { "" } else { "#" };
            // Writing to a string has no way to fail.
            let _ = writeln!(text, "{mark}{} = {}", key.name, key.value);
        }
    }
    text
}

/// Adds a comment, broken into lines.
fn comment(text: &mut String, words: &str) {
    let mut column = 0;
    for word in words.split_whitespace() {
        let width = 1 + word.chars().count();
        if column > 0 && column + width > WIDTH {
            text.push('\n');
            column = 0;
        }
        if column == 0 {
            text.push('#');
            column = 1;
        }
        text.push(' ');
        text.push_str(word);
        column += width;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Tunables, file};
    use std::path::Path;

    fn read(text: &str) -> Config {
        let written = file::parse(Path::new("example"), text).unwrap_or_else(|error| panic!("{error}"));
        written.check(&written.config).unwrap_or_else(|error| panic!("{error}"));
        written.config
    }

    #[test]
    fn the_example_is_good_as_it_is_and_with_everything_in_it() {
        let few = read(&example());
        assert_eq!((few.interfaces.len(), few.services.len(), few.filters.len()), (1, 1, 0));
        // A service has a backend or a responder.
        let backend = ["backend", "balance", "connect_timeout", "proxy_protocol", "source"];
        for without in [&backend[..], &["respond"]] {
            let is_out = |line: &&str| without.iter().any(|key| line.starts_with(&format!("{key} = ")));
            let example = example();
            let lines = example.lines().filter(|line| !line.starts_with("# "));
            let keys = lines.map(|line| line.trim_start_matches('#')).filter(|line| !is_out(line));
            let all = read(&keys.map(|line| format!("{line}\n")).collect::<String>());
            assert_eq!(all.tunables, Tunables::default());
            assert_eq!(all.filters.len(), 3);
            assert_eq!(all.control.group.as_deref(), Some("adm"));
            assert!(all.interfaces[0].queues.is_some() && all.secret_file.is_some());
        }
    }

    #[test]
    fn the_table_has_the_keys_that_a_file_may_have_and_no_others() {
        for section in sections() {
            let header = section.header.unwrap_or_default();
            if header == "[tunables]" {
                continue;
            }
            let error = file::parse(Path::new("f"), &format!("{header}\nunknown = 1\n"));
            let error = error.unwrap_err().to_string();
            let mut known: Vec<_> = error.split('`').skip(3).step_by(2).collect();
            // Tables are keys of the whole file.
            let tables = ["interface", "service", "tunables", "control", "filters", "events", "metrics"];
            known.retain(|name| !header.is_empty() || !tables.contains(name));
            known.sort_unstable();
            let mut listed: Vec<_> = section.keys.iter().map(|key| key.name).collect();
            listed.sort_unstable();
            assert_eq!(listed, known, "{header}: {error}");
        }
    }

    #[test]
    fn the_example_that_is_installed_is_this_one() {
        let installed = include_str!("../../dist/tcpguard.toml");
        assert!(
            installed == example(),
            "write it anew: tcpguard config --example > tcpguard/dist/tcpguard.toml"
        );
    }
}
