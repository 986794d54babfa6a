//! What the file says ends up where it belongs, and what cannot be is refused by its line.

use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Result<Config, ConfigError> {
    parse(Path::new("tcpguard.toml"), text).map(|written| written.config)
}

const GOOD: &str = r#"
secret_file = "/etc/tcpguard/secret"
pin_dir = "/sys/fs/bpf/edge"
max_flows = 65536
on_daemon_exit = "drop"

[control]
socket = "/run/edge.sock"
group = "adm"

[[interface]]
name = "eth0"

[[interface]]
name = "eth1"
mode = "generic"
queues = 2
cpus = [0, 3]
busy_poll = true
zero_copy = false

[[service]]
listen = "192.0.2.1:443"
backend = "127.0.0.1:8443"

[[service]]
listen = "192.0.2.1:22"
mode = "off"

[[service]]
listen = "192.0.2.1:7"
respond = "echo"
dry_run = true
max_connections = 100
idle_time = "5m"
total_time = "1h"

[[service]]
listen = "192.0.2.1:80"
backend = ["127.0.0.1:8080", "[::1]:8080", "unix:/run/app.sock"]
balance = "least-connections"
connect_timeout = "2s"
proxy_protocol = "v2"

[filters]
deny = ["203.0.113.0/24", "2001:db8:bad::/48 expires 1h"]
allow = ["203.0.113.7"]

[tunables]
time-wait = "30s"
retries = 8
"#;

const GOOD_ECHO: &str = "192.0.2.1:7=respond:echo";

#[test]
fn every_key_ends_up_where_it_belongs() {
    let config = read(GOOD).unwrap();
    config.check().unwrap();
    let second = Interface::new("eth1", AttachMode::Generic, Some(2)).unwrap();
    assert_eq!(
        config.interfaces[1],
        Interface { cpus: vec![0, 3], busy_poll: true, zero_copy: false, ..second }
    );
    assert!(config.interfaces[0].zero_copy);
    assert_eq!(config.services[0], "192.0.2.1:443=127.0.0.1:8443".parse().unwrap());
    assert_eq!(config.services[1], "192.0.2.1:22=off".parse().unwrap());
    let limits = Limits {
        connections: Some(100),
        idle_time: Some(std::time::Duration::from_secs(300)),
        total_time: Some(std::time::Duration::from_secs(3600)),
    };
    assert_eq!(config.services[2], Service { limits, dry_run: true, ..GOOD_ECHO.parse().unwrap() });
    let backends = ["127.0.0.1:8080", "[::1]:8080", "unix:/run/app.sock"].map(|addr| addr.parse().unwrap());
    let expected = Backends {
        addrs: backends.into(),
        balance: Balance::LeastConnections,
        connect_timeout: std::time::Duration::from_secs(2),
        proxy_protocol: Some(ProxyProtocol::V2),
        source: BackendSource::Own,
    };
    assert_eq!(config.services[3].destination, Some(Destination::Backends(expected)));
    assert_eq!(config.tunables.time_wait, std::time::Duration::from_secs(30));
    assert_eq!(config.tunables.retries, 8);
    assert_eq!(config.secret_file.as_deref(), Some(Path::new("/etc/tcpguard/secret")));
    assert_eq!(config.control.socket, Path::new("/run/edge.sock"));
    assert_eq!(config.control.group.as_deref(), Some("adm"));
    assert_eq!(config.pin_dir, Path::new("/sys/fs/bpf/edge"));
    assert_eq!(config.max_flows, 65536);
    assert_eq!(config.on_daemon_exit, OnDaemonExit::Drop);
    let filters: Vec<_> = config.filters.iter().map(ToString::to_string).collect();
    let expected = ["deny 203.0.113.0/24", "allow 203.0.113.7/32", "deny 2001:db8:bad::/48 expires 1h"];
    assert_eq!(filters, expected);
}

#[test]
fn files_of_filters_add_to_the_lists_and_are_named_when_they_are_wrong() {
    let list = std::env::temp_dir().join(format!("tcpguard-filters-{}", std::process::id()));
    let config = format!("[filters]\ndeny = [\"10.0.0.0/8\"]\n\nfiles = [\"{}\"]\n", list.display());
    std::fs::write(&list, "allow 10.1.0.0/16\n10.0.0.0/8\n").unwrap();
    assert_eq!(read(&config).unwrap().filters.len(), 2);
    std::fs::write(&list, "\nallow 10.0.0.0/8\n").unwrap();
    let error = read(&config).unwrap_err().to_string();
    assert_eq!(error, format!("{}:2: 10.0.0.0/8 is both denied and allowed", list.display()));
    std::fs::remove_file(&list).unwrap();
    let error = read(&config).unwrap_err().to_string();
    assert!(error.starts_with(&format!("tcpguard.toml:4: {}: No such file", list.display())), "{error}");
}

#[test]
fn a_contradiction_is_one_line_with_the_later_of_the_two_lines() {
    let start = "[[interface]]\nname = \"eth0\"\n\n[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = \"10.0.0.2:80\"\n";
    for (more, line, why) in [
        ("[[interface]]\nqueues = 1\nname = \"eth0\"\n", 9, "interface eth0 is named twice"),
        ("[[service]]\nlisten = \"10.0.0.1:80\"\nmode = \"off\"\n", 8, "given twice"),
        ("[[service]]\nlisten = \"10.0.0.3:80\"\nbackend = \"10.0.0.3:80\"\n", 8, "service itself"),
        ("[tunables]\nmax-rto = \"5s\"\nretries = 3\nmin-rto = \"6s\"\n", 10, "above max-rto"),
        ("[tunables]\nretries = 3\nreply-burst = 10\n", 9, "too little for reply-rate"),
        ("[control]\nsocket = \"/s\"\nread_socket = \"/s\"\n", 9, "that is the control socket"),
        (
            "[control]\nread_socket = \"/r\"\n[metrics]\nlisten = \"unix:/r\"\n",
            10,
            "a control socket already",
        ),
    ] {
        let written = parse(Path::new("tcpguard.toml"), &format!("{start}{more}")).unwrap();
        let error = written.check(&written.config).unwrap_err().to_string();
        assert!(error.starts_with(&format!("tcpguard.toml:{line}: ")) && error.contains(why), "{error}");
    }
    let written = parse(Path::new("tcpguard.toml"), start).unwrap();
    written.check(&written.config).unwrap();
    // What the command line added is in no line of the file.
    let mut whole = written.config.clone();
    whole.services.push(whole.services[0].clone());
    let error = written.check(&whole).unwrap_err().to_string();
    assert_eq!(error, "tcpguard.toml: service 10.0.0.1:80 is given twice");
}

#[test]
fn a_refusal_is_one_line_with_file_line_and_what_is_wrong() {
    for (text, line, why) in [
        ("bogus = 1\n", 1, "unknown field `bogus`"),
        ("\n\n[control]\nsokcet = \"x\"\n", 4, "did you mean `socket`?"),
        ("[[interface]]\nname = \"eth0\"\nspeed = 3\n", 3, "unknown field `speed`"),
        ("[[interface]]\nname = \"et h0\"\n", 2, "cannot be the name"),
        ("[[interface]]\nname = \"eth0\"\nmode = \"fast\"\n", 3, "native, generic"),
        ("[[interface]]\nname = \"eth0\"\nqueues = -1\n", 3, "-1"),
        ("[[interface]]\nname = \"eth0\"\ncpus = [0, 1024]\n", 3, "1024 is not within 0 to 1023"),
        ("[[service]]\nlisten = \"10.0.0.1:0\"\nbackend = \"10.0.0.2:1\"\n", 2, "port 0"),
        ("[[service]]\n\nlisten = \"10.0.0.1:80\"\n", 3, "neither a backend nor a responder"),
        ("[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = [\"a:1\"]\n", 3, "`a:1` is not an address"),
        ("[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = []\n", 3, "0 backends"),
        ("[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = 5\n", 3, "or a list of them"),
        (
            "[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = \"[::1]:1\"\nbalance = \"fair\"\n",
            4,
            "round-robin, least-connections",
        ),
        (
            "[[service]]\nlisten = \"10.0.0.1:80\"\nrespond = \"http\"\nproxy_protocol = \"v2\"\n",
            4,
            "only a service with a backend",
        ),
        (
            "[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = \"[::1]:1\"\nproxy_protocol = \"v3\"\n",
            4,
            "v1, v2",
        ),
        (
            "[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = \"10.0.0.2:1\"\nsource = \"mine\"\n",
            4,
            "own, client",
        ),
        (
            "[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = \"[::1]:1\"\nsource = \"client\"\n",
            4,
            "backend [::1]:1 cannot be connected to from the addresses that clients of 10.0.0.1:80 have",
        ),
        (
            "[[service]]\nlisten = \"[::]:80\"\nbackend = \"unix:/a\"\nsource = \"client\"\n",
            4,
            "backend unix:/a cannot be",
        ),
        (
            "[[service]]\nlisten = \"10.0.0.1:80\"\nrespond = \"http\"\nmax_connections = 0\n",
            4,
            "0 is not within",
        ),
        (
            "[[service]]\nlisten = \"10.0.0.1:80\"\nrespond = \"http\"\nidle_time = \"1ms\"\n",
            4,
            "out of range, 100ms",
        ),
        ("[[service]]\nlisten = \"10.0.0.1:80\"\nrespond = \"ftp\"\n", 3, "echo, discard, http"),
        (
            "[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = \"10.0.0.2:1\"\nrespond = \"echo\"\n",
            4,
            "which of them",
        ),
        ("[[service]]\nlisten = \"10.0.0.1:80\"\nmode = \"maybe\"\n", 3, "auto, cookie, stateful, off"),
        ("[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = \"x\"\n", 3, "`x` is not an address"),
        ("[tunables]\nretries = 3\ntimewait = \"3s\"\n", 3, "did you mean `time-wait`"),
        ("[tunables]\ntime-wait = 30\n", 2, "a duration looks like"),
        ("[tunables]\ntime-wait = [1]\n", 2, "expected a value such as"),
        ("[tunables]\n\nretries = 0\n", 3, "out of range"),
        ("max_flows = 1\n", 1, "not within"),
        ("max_flows = \"many\"\n", 1, "invalid type"),
        ("on_daemon_exit = \"explode\"\n", 1, "pass, drop"),
        ("secret_file = \"a\"\nsecret_file = \"b\"\n", 2, "duplicate key"),
        ("[filters]\ndeny = [\"10.0.0.0/8\",\n\"10.0.0.1/8\"]\n", 3, "bits beyond its length"),
        ("[filters]\ndeny = [\"::/0\"]\nallow = [\"::/0\"]\n", 3, "both denied and allowed"),
        ("[filters]\nallow = [\"deny ::/0\"]\n", 2, "in the list of what to allow"),
        ("[filters]\nblock = []\n", 2, "unknown field `block`"),
        ("[control]\nmode = \"0666\"\n", 2, "could change everything"),
        ("[control]\nread_mode = \"0644\"\n", 2, "only a daemon with a read_socket"),
        ("[metrics]\nlisten = \"9464\"\n", 2, "not an address and port"),
        ("[events]\nhook = []\n", 2, "no program named"),
        ("[events]\nhook = [\"mail\"]\n", 2, "not the absolute path"),
        ("[events]\nhook_time = \"1h\"\n", 2, "out of range, 100ms to 10m"),
        ("a\nb", 1, ""),
        ("[control", 1, ""),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("tcpguard.toml:{line}: ")), "{text:?}: {error}");
        assert!(error.contains(why), "{text:?}: {error}");
        assert!(!error.contains('\n'), "{error:?}");
    }
}

#[test]
fn an_unreadable_file_is_named() {
    let error = super::read(Path::new("/nonexistent/tcpguard.toml")).unwrap_err().to_string();
    assert!(error.starts_with("/nonexistent/tcpguard.toml: "), "{error}");
    let error = super::read(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(error.contains("larger than"), "{error}");
}

proptest! {
    /// Whatever one byte turns into, the answer is a configuration or one line with file and line.
    #[test]
    fn a_damaged_file_is_read_or_refused_in_one_line(at in 0..GOOD.len(), byte in 0u8..128, cut in any::<bool>()) {
        let mut text = GOOD.as_bytes().to_vec();
        if cut { text.truncate(at) } else { text[at] = byte }
        if let Err(error) = read(std::str::from_utf8(&text).unwrap()) {
            let error = error.to_string();
            prop_assert!(error.starts_with("tcpguard.toml:") && !error.contains('\n'), "{error:?}");
        }
    }
}

#[test]
fn how_many_services_there_are_is_judged_before_what_each_of_them_says() {
    let mut text = String::from("[[interface]]\nname = \"eth0\"\n");
    for service in 0..=tcpguard_common::map::MAX_SERVICES {
        text += &format!("[[service]]\nlisten = \"nonsense {service}\"\n");
    }
    let error = parse(Path::new("f"), &text).unwrap_err().to_string();
    assert!(error.contains("services: the most is"), "{error}");
}
