//! Who may ask what: the socket for readers, and the metrics that a scraper reads. Needs root.

mod support;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::setup::{BINARY, SERVICE, Setup, one_line};

const METRICS: &str = "127.0.0.1:9464";

/// Sends `request` to the metrics' endpoint and returns all that comes back.
fn exchange(setup: &Setup, request: &str) -> Result<String> {
    let mut client = connect(setup)?;
    client.write_all(request.as_bytes())?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

fn connect(setup: &Setup) -> Result<TcpStream> {
    let client = setup.lab.guard().enter(|| TcpStream::connect(METRICS))??;
    client.set_read_timeout(Some(Duration::from_secs(30)))?;
    Ok(client)
}

/// The metrics, without what HTTP says before them.
fn scrape(setup: &Setup) -> Result<String> {
    let answer = exchange(setup, "GET /metrics HTTP/1.1\r\nHost: guard\r\n\r\n")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the header")?;
    ensure!(head.starts_with("HTTP/1.1 200") && head.contains("openmetrics-text"), "{head}");
    Ok(body.to_owned())
}

/// The value of a sample, as it is written.
fn sample<'a>(text: &'a str, name_and_labels: &str) -> Result<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name_and_labels));
    line.map(str::trim).with_context(|| format!("no {name_and_labels} in\n{text}"))
}

/// The names of metrics that an expression, or whatever else, mentions.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("tcpguard_")).map(str::to_owned).collect()
}

/// What an expression asks of labels: the metric, the label, and a value that it names. Variables are none.
fn values_asked(expression: &str) -> Vec<(&str, &str, &str)> {
    let (mut asked, mut rest) = (Vec::new(), expression);
    while let Some((before, from)) = rest.split_once('{') {
        let Some((labels, after)) = from.split_once('}') else { break };
        let start = before.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |at| at + 1);
        for (label, values) in labels.split(',').filter_map(|label| label.split_once('=')) {
            let values = values.trim_start_matches('~').trim_matches('"').split('|');
            let named = values.filter(|value| !value.starts_with('$'));
            asked.extend(named.map(|value| (&before[start..], label.trim_end_matches('!'), value)));
        }
        rest = after;
    }
    asked
}

/// Every string in it.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(values) => values.iter().flat_map(strings).collect(),
        Value::Object(map) => map.values().flat_map(strings).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}

#[test]
fn metrics_are_what_stats_says_and_the_dashboard_uses_no_others() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon_from_file(&format!("[metrics]\nlisten = \"{METRICS}\"\n"))?;
    setup.fetch()?;
    // Two readings within a moment are the same one.
    std::thread::sleep(Duration::from_millis(300));
    let stats = setup.json(&["stats"])?;
    let text = scrape(&setup)?;
    ensure!(text.ends_with("# EOF\n"), "{text}");
    for reason in stats["reasons"].as_array().context("no reasons")? {
        let (name, outcome) = (&reason["name"], &reason["outcome"]);
        let sample = sample(&text, &format!("tcpguard_segments_total{{reason={name},outcome={outcome}}}"))?;
        assert_eq!(sample, reason["total"].to_string(), "{name}");
    }
    for (state, count) in stats["states"].as_object().context("no states")? {
        let sample: f64 = sample(&text, &format!("tcpguard_flows{{state=\"{state}\"}}"))?.parse()?;
        assert_eq!(Some(sample), count.as_f64(), "{state}");
    }
    let accepted = stats["engines"][0]["counters"]["stack"]["segments-in"].to_string();
    let labels = "interface=\"guard0\",queue=\"0\",group=\"stack\",event=\"segments-in\"";
    assert_eq!(sample(&text, &format!("tcpguard_engine_events_total{{{labels}}}"))?, accepted);
    sample(&text, &format!("tcpguard_attack{{service=\"{SERVICE}\",kind=\"syn-flood\"}}"))?;
    // The one request, and its handshake, whichever queue it came to.
    let counted = |metric: &str| -> Result<f64> {
        let lines =
            text.lines().filter(|line| line.starts_with(&format!("tcpguard_{metric}_seconds_count{{")));
        let counts = lines.map(|line| Ok(line.rsplit(' ').next().context("no count")?.parse::<f64>()?));
        counts.sum()
    };
    assert_eq!((counted("request")?, counted("handshake")?), (1.0, 1.0), "{text}");
    sample(&text, "tcpguard_engine_gap_seconds_bucket{le=\"+Inf\",interface=\"guard0\",queue=\"1\"}")?;

    let explained = setup.json(&["explain"])?;
    let explained = strings(&explained);
    for label in ["event=\"", "class=\"", "reason=\""] {
        let named: BTreeSet<_> =
            text.split(label).skip(1).filter_map(|after| after.split('"').next()).collect();
        ensure!(named.len() > 5, "{label}: {named:?}");
        let unknown: Vec<_> = named.iter().filter(|name| !explained.contains(name)).collect();
        ensure!(unknown.is_empty(), "{unknown:?} cannot be explained");
    }

    let there: BTreeSet<_> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| names(line.split(['{', ' ']).next().unwrap_or("")))
        .collect();
    let dashboard: Value =
        serde_json::from_str(include_str!("../dist/grafana.json")).context("the dashboard is JSON")?;
    let used: BTreeSet<_> = strings(&dashboard).into_iter().flat_map(names).collect();
    ensure!(used.len() > 20, "{used:?}");
    let missing: Vec<_> = used.difference(&there).collect();
    ensure!(missing.is_empty(), "the dashboard uses {missing:?}, of which there are {there:#?}");
    // A value that no sample has is a line that is never drawn.
    let asked: Vec<_> = strings(&dashboard).into_iter().flat_map(values_asked).collect();
    ensure!(asked.len() > 10, "{asked:?}");
    for (metric, label, value) in asked {
        let (value, end) = value.strip_suffix(".*").map_or((value, "\""), |prefix| (prefix, ""));
        let wanted = format!("{label}=\"{value}{end}");
        let mut samples = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")));
        ensure!(samples.any(|line| line.contains(&wanted)), "the dashboard asks {metric} for {wanted}");
    }

    ensure!(exchange(&setup, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")?.starts_with("HTTP/1.1 404"));
    ensure!(
        exchange(&setup, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")?
            .starts_with("HTTP/1.1 405")
    );
    ensure!(exchange(&setup, "nonsense\r\n\r\n")?.starts_with("HTTP/1.1 400"));

    // Eight who say nothing take all places and keep nobody out who asks something: the one that came first makes room. In time
    // they are all hung up on. It used to be the ninth that was, whoever it was.
    let mut silent: Vec<_> = (0..8).map(|_| connect(&setup)).collect::<Result<_>>()?;
    for _ in 0..4 {
        scrape(&setup)?;
    }
    setup.text(&["status"])?;
    setup.fetch()?;
    let began = std::time::Instant::now();
    assert_eq!(silent[0].read(&mut [0; 1]).unwrap_or(0), 0, "it made room");
    ensure!(began.elapsed() < Duration::from_secs(2), "it kept its place for {:?}", began.elapsed());
    for client in &mut silent {
        let mut said = Vec::new();
        client.read_to_end(&mut said)?;
        ensure!(!said.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&said));
    }
    scrape(&setup).map(drop)
}

#[test]
fn readers_read_and_change_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let socket = setup.lab.dir().join("readers.sock");
    let path = setup.lab.dir().join("access.toml");
    let (pins, control) = (setup.lab.pin_dir(), setup.control());
    let text = format!(
        "pin_dir = {pins:?}\n[control]\nsocket = {control:?}\nmode = \"0600\"\nread_socket = {socket:?}\nread_mode = \"0666\"\n\
         [metrics]\nlisten = \"unix:{}\"\n[[service]]\nlisten = \"{SERVICE}\"\nrespond = \"http\"\n\
         [[interface]]\nname = \"guard0\"\n",
        setup.lab.dir().join("metrics.sock").display()
    );
    std::fs::write(&path, text)?;
    let daemon = setup.start(setup.lab.guard().command(BINARY).args(["run", "--config"]).arg(&path))?;
    let mode =
        |path: &std::path::Path| Ok::<_, std::io::Error>(path.metadata()?.permissions().mode() & 0o777);
    assert_eq!((mode(&control)?, mode(&socket)?), (0o600, 0o666));
    let read = |arguments: &[&str]| -> Result<std::process::Output> {
        Ok(Command::new(BINARY).args(arguments).arg("--control").arg(&socket).output()?)
    };
    for verb in ["status", "stats", "flows", "events", "services", "filters", "tune", "mode", "config"] {
        let output = read(&[verb, "--json"])?;
        ensure!(output.status.success(), "{verb}: {output:?}");
    }
    let service = SERVICE.to_string();
    let changes: [&[&str]; 9] = [
        &["tune", "time-wait", "7s"],
        &["mode", &service, "off"],
        &["dry-run", &service, "on"],
        &["services", "del", &service],
        &["filters", "add", "deny", "192.0.2.0/24"],
        &["flows", "--kill", "--all"],
        &["monitor", "--count", "1"],
        &["explain", "--packet", "00"],
        &["confirm"],
    ];
    let before = setup.text(&["config"])?;
    for change in changes {
        let said = one_line(&read(change)?, 2)?;
        ensure!(said.contains("for reading alone"), "{change:?}: {said}");
    }
    assert_eq!(setup.text(&["config"])?, before);
    ensure!(before.contains("read_mode = \"0666\"") && before.contains("mode = \"0600\""), "{before}");
    // Another user gets in here, and not where changes are made.
    let as_nobody = |path: &std::path::Path| -> Result<bool> {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--", "curl", "--silent"]);
        command.args(["--max-time", "5", "--unix-socket"]).arg(path).arg("http://guard/");
        // What curl ends with when it cannot connect; the daemon speaks no HTTP there.
        Ok(command.output()?.status.code() != Some(7))
    };
    let reachable = setup.lab.dir().metadata()?.mode() & 0o001 != 0;
    if reachable {
        assert_eq!((as_nobody(&socket)?, as_nobody(&control)?), (true, false));
    }
    daemon.stop(Duration::from_secs(20))?;
    ensure!(!socket.exists() && !control.exists());
    Ok(())
}
