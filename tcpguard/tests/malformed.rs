//! Hundreds of generated requests and configurations that cannot be: each gets one clear error, nothing changes, and the
//! daemon lives. Needs root.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};
use support::setup::{SERVICE, SOON, Setup, one_line};
use tcpguard::control::client::Client;
use tcpguard::control::protocol::{Fault, Refusal, Reply, Request};

/// A good request of every kind.
fn requests() -> Vec<Value> {
    let (service, session) = ("10.77.0.1:80", json!({"peer": "10.77.0.2", "local": "10.77.0.1:22"}));
    vec![
        json!({"op": "status"}),
        json!({"op": "stats"}),
        json!({"op": "flows", "limit": 7}),
        json!({"op": "flows-kill", "which": {"state": "TIME_WAIT"}}),
        json!({"op": "services-add", "service": "10.77.0.1:81=respond:echo"}),
        json!({"op": "services-set", "service": service, "keys": {"mode": "off"}}),
        json!({"op": "services-del", "service": service}),
        json!({"op": "tune", "name": "time-wait", "value": "7s"}),
        json!({"op": "tune-all", "values": {"time-wait": "7s"}}),
        json!({"op": "on-probation", "seconds": 60, "change": {"op": "mode", "service": service, "mode": "off"}}),
        json!({"op": "confirm"}),
        json!({"op": "reload", "session": session}),
        json!({"op": "keys-rotate"}),
        json!({"op": "explain", "frame": "00", "queue": 0}),
        json!({"op": "config"}),
        json!({"op": "cookie-decode", "peer": "10.0.0.1:1", "local": service, "client_isn": 1, "cookie": 2}),
        json!({"op": "mode", "service": service, "mode": "off"}),
        json!({"op": "dry-run", "service": service, "on": true}),
        json!({"op": "monitor", "reasons": []}),
        json!({"op": "events"}),
        json!({"op": "events-follow"}),
        json!({"op": "filters", "limit": 1}),
        json!({"op": "filters-add", "filter": "deny 192.0.2.0/24"}),
        json!({"op": "filters-del", "prefix": "192.0.2.0/24"}),
        json!({"op": "filters-flush", "action": "deny"}),
        json!({"op": "filters-load", "load": 1, "filters": [], "last": true, "replace": true}),
    ]
}

/// Lines that are nearly this request.
fn ruined(request: &Value) -> Vec<Vec<u8>> {
    let good = request.as_object().cloned().unwrap_or_default();
    let with = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut map = good.clone();
        map.insert("v".into(), 1.into());
        change(&mut map);
        Value::Object(map).to_string().into_bytes()
    };
    let field = good.keys().find(|name| *name != "op").cloned().unwrap_or_else(|| "unheard-of".into());
    let plain = with(&|_| {});
    vec![
        with(&|map| drop(map.insert("bogus".into(), 1.into()))),
        with(&|map| drop(map.insert("op".into(), "no-such-verb".into()))),
        with(&|map| drop(map.insert("op".into(), 7.into()))),
        with(&|map| drop(map.remove("op"))),
        with(&|map| drop(map.insert("v".into(), 2.into()))),
        with(&|map| drop(map.insert("v".into(), "1".into()))),
        with(&|map| drop(map.remove("v"))),
        with(&|map| drop(map.insert(field.clone(), json!({"deep": [[1], -1]})))),
        plain[..plain.len() / 2].to_vec(),
        [&plain[..], b" x"].concat(),
        [b"\xff\xfe", &plain[..]].concat(),
        [b"[", &plain[..], b"]"].concat(),
    ]
}

/// Sends a line and returns all that comes back.
fn exchange(path: &Path, line: &[u8]) -> Result<String> {
    let mut client = UnixStream::connect(path)?;
    client.set_read_timeout(Some(SOON))?;
    // The daemon may hang up before it has read everything.
    drop(client.write_all(line).and_then(|()| client.write_all(b"\n")));
    drop(client.shutdown(std::net::Shutdown::Write));
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn requests_that_cannot_be_get_one_error_each_and_change_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let mut daemon = setup.daemon(&[])?;
    let before = setup.text(&["config"])?;
    // Who says half of something keeps nobody from anything.
    let mut half = UnixStream::connect(setup.control())?;
    half.write_all(b"{\"v\":1,\"op\":\"tu")?;
    let mut lines: Vec<Vec<u8>> = requests().iter().flat_map(ruined).collect();
    ensure!(lines.len() >= 200, "{}", lines.len());
    lines.push(vec![b'x'; 100 << 20]);
    for line in &lines {
        let shown = String::from_utf8_lossy(&line[..line.len().min(200)]).into_owned();
        let answer = exchange(&setup.control(), line).with_context(|| shown.clone())?;
        ensure!(answer.lines().count() == 1, "{shown}: {answer:?}");
        let reply: Value = serde_json::from_str(&answer)?;
        ensure!(reply["error"]["kind"] == "bad-input", "{shown}: {answer}");
        let message = reply["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.starts_with("bad request: "), "{shown}: {answer}");
    }
    drop(half);
    assert_eq!(setup.text(&["config"])?, before);
    ensure!(daemon.ended()?.is_none());
    setup.fetch()
}

#[test]
fn configurations_that_cannot_be_are_refused_by_line() -> Result<()> {
    let setup = Setup::new()?;
    let example = setup.text(&["config", "--example"])?;
    let check = |text: &str| setup.feed(&["check", "-"], text.as_bytes(), &[]);
    ensure!(check(&example)?.status.success());
    let lines: Vec<&str> = example.lines().collect();
    let mut refused = 0;
    for (at, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.trim_start_matches('#').split_once(" = ") else { continue };
        if key.contains(' ') {
            continue;
        }
        for ruined in [format!("{key}x = 1"), format!("{key} = [[[]]]"), format!("{key} =")] {
            let mut ruined_lines = lines.clone();
            ruined_lines[at] = &ruined;
            let said = one_line(&check(&ruined_lines.join("\n"))?, 2)?;
            ensure!(said.contains(&format!(":{}: ", at + 1)), "{ruined}: {said}");
            refused += 1;
        }
    }
    ensure!(refused >= 200, "{refused}");
    // Not a file at all, and one that nobody may read.
    one_line(&setup.ask(&["check", &setup.lab.dir().display().to_string()])?, 2)?;
    one_line(&check("\0\0\0")?, 2).map(drop)
}

/// What a file could not have in place of a line's value, where that is a number or a time.
fn other_values(value: &str) -> &'static [&'static str] {
    match value.trim_start_matches('"').starts_with(|c: char| c.is_ascii_digit()) {
        true => {
            &["-1", "\"9999999h\"", "99999999999", "99999999999999999999", "\"5 parsecs\"", "\"\"", "1.5"]
        }
        false => &[],
    }
}

#[test]
fn a_running_daemon_takes_none_of_them_and_goes_on_as_it_was() -> Result<()> {
    let setup = Setup::new()?;
    let mut daemon = setup.daemon_from_file("")?;
    let (file, client) = (setup.lab.dir().join("tcpguard.toml"), Client::new(&setup.control()));
    let before = setup.text(&["config"])?;
    // Says of everything how it is.
    let lines: Vec<&str> = before.lines().collect();
    let mut refused = 0;
    let mut table = "";
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with('[') {
            table = line;
        }
        let Some((key, value)) = line.split_once(" = ").filter(|(_, value)| *value != "[") else { continue };
        let values = other_values(value).iter().map(|value| format!("{key} = {value}"));
        let ruined = [format!("{key}x = 1"), format!("{key} = [[[]]]"), format!("{key} =")];
        for ruined in ruined.into_iter().chain(values) {
            let mut ruined_lines = lines.clone();
            ruined_lines[at] = &ruined;
            std::fs::write(&file, ruined_lines.join("\n"))?;
            let reply = client.ask(&Request::Reload { session: None })?;
            let Reply::Error(Refusal { kind: Fault::BadInput, message }) = reply else {
                anyhow::bail!("{table} {ruined}: {reply:?}")
            };
            ensure!(message.contains(&format!(":{}: ", at + 1)), "{table} {ruined}: {message}");
            refused += 1;
        }
        assert_eq!(setup.text(&["config"])?, before, "{table} {line}");
    }
    ensure!(refused >= 500, "{refused}");
    // Good by itself, and not with the rest.
    let control = setup.control().display().to_string();
    let min_rto = lines.iter().find(|line| line.starts_with("min-rto = ")).context("no min-rto")?;
    for (held, new, why) in [
        (*min_rto, "min-rto = \"10s\"\nmax-rto = \"9s\"\n# ".to_owned(), "min-rto 10s is above max-rto 9s"),
        ("[control]", format!("[control]\nread_socket = {control:?}"), "that is the control socket"),
        ("[metrics]", format!("[metrics]\nlisten = \"unix:{control}\""), "a control socket already"),
        (
            "[[service]]",
            format!("[[service]]\nlisten = \"{SERVICE}\"\nmode = \"off\"\n[[service]]"),
            "given twice",
        ),
    ] {
        let text = before.replace("max-rto = ", "# ").replace(held, &new);
        std::fs::write(&file, text)?;
        let said = one_line(&setup.ask(&["reload"])?, 2)?;
        ensure!(said.contains(why), "{said}");
        assert_eq!(setup.text(&["config"])?, before, "{why}");
    }
    std::fs::write(&file, &before)?;
    setup.text(&["reload"])?;
    assert_eq!(setup.text(&["config"])?, before);
    ensure!(daemon.ended()?.is_none());
    setup.fetch()
}
