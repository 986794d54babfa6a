//! Every tunable in a running daemon: set live, refused out of range, kept by a reload once it is saved, and back at its
//! default once the file says nothing of it; of services' own, and in presets. That each does what it says is proven beside
//! `control/proofs`. Needs root.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use tcpguard::config::{TUNABLES, Tunable, Unit};
use tcpguard::control::client::Client;
use tcpguard::control::protocol::{Fault, Refusal, Reply, Request};

use support::setup::{BACKEND_PORT, BINARY, SERVICE, Setup, eventually, one_line};
use xtask::lab::GUARD_INTERFACE;

mod support;

/// Questions to the daemon, without a process for each.
struct Tuner {
    client: Client,
    file: PathBuf,
}

impl Tuner {
    fn ask(&self, name: &str, value: Option<String>, save: bool) -> Result<Reply> {
        let request = Request::Tune { service: None, name: Some(name.to_owned()), value, save };
        Ok(self.client.ask(&request)?)
    }

    fn value(&self, tunable: &Tunable) -> Result<u64> {
        match self.ask(tunable.name, None, false)? {
            Reply::Tunables(rows) if rows.tunables.len() == 1 => Ok(rows.tunables[0].value),
            other => bail!("{}: {other:?}", tunable.name),
        }
    }

    fn set(&self, tunable: &Tunable, number: u64, save: bool) -> Result<(u64, u64)> {
        match self.ask(tunable.name, Some(tunable.value(number).to_string()), save)? {
            Reply::Tuned(tuned) => Ok((tuned.old, tuned.new)),
            other => bail!("{}: {other:?}", tunable.name),
        }
    }

    fn refusal(&self, tunable: &Tunable, value: String) -> Result<String> {
        match self.ask(tunable.name, Some(value.clone()), false)? {
            Reply::Error(Refusal { kind: Fault::BadInput, message }) => Ok(message),
            other => bail!("{} = {value}: {other:?}", tunable.name),
        }
    }

    fn reload(&self) -> Result<()> {
        match self.client.ask(&Request::Reload { session: None })? {
            Reply::Reloaded(_) => Ok(()),
            other => bail!("{other:?}"),
        }
    }
}

/// Another value than the default, as near as there is: the table's defaults do not contradict each other, nor do these.
fn other(tunable: &Tunable) -> u64 {
    if tunable.default == tunable.max { tunable.default - 1 } else { tunable.default + 1 }
}

#[test]
fn every_tunable_is_set_live_bounded_kept_by_a_reload_and_back_at_its_default_without_the_file() -> Result<()>
{
    let setup = Setup::new()?;
    let _daemon = setup.daemon_from_file("")?;
    let tuner = Tuner { client: Client::new(&setup.control()), file: setup.lab.dir().join("tcpguard.toml") };
    let untouched = fs::read_to_string(&tuner.file)?;
    for tunable in TUNABLES {
        let name = tunable.name;
        assert_eq!(tuner.value(tunable)?, tunable.default, "{name}: as the table says");
        assert_eq!(tuner.set(tunable, other(tunable), false)?, (tunable.default, other(tunable)), "{name}");
        assert_eq!(tuner.value(tunable)?, other(tunable), "{name}: set live");
        for bad in out_of_range(tunable) {
            let why = tuner.refusal(tunable, bad.clone())?;
            ensure!(why.starts_with(name) && !why.contains('\n'), "{name} = {bad}: {why}");
        }
        assert_eq!(tuner.value(tunable)?, other(tunable), "{name}: a refusal changes nothing");
    }
    assert_eq!(fs::read_to_string(&tuner.file)?, untouched, "nothing was to be saved");
    tuner.reload()?;
    for tunable in TUNABLES {
        assert_eq!(tuner.value(tunable)?, tunable.default, "{}: not saved, so gone", tunable.name);
        tuner.set(tunable, other(tunable), true)?;
    }
    tuner.reload()?;
    for tunable in TUNABLES {
        assert_eq!(tuner.value(tunable)?, other(tunable), "{}: saved, so kept", tunable.name);
    }
    let config = setup.text(&["config"])?;
    let saved = fs::read_to_string(&tuner.file)?;
    for tunable in TUNABLES {
        let line = assignment(tunable);
        ensure!(config.lines().any(|said| said == line), "config does not say {line}\n{config}");
        ensure!(saved.lines().any(|said| said == line), "the file does not say {line}\n{saved}");
    }
    fs::write(&tuner.file, &untouched)?;
    tuner.reload()?;
    for tunable in TUNABLES {
        assert_eq!(tuner.value(tunable)?, tunable.default, "{}: the default again", tunable.name);
    }
    setup.fetch().context("the service goes on")
}

/// A step past both ends of the range, as far as values can say that.
fn out_of_range(tunable: &Tunable) -> Vec<String> {
    match tunable.unit {
        Unit::Choice(_) => vec!["neither".to_owned()],
        Unit::Duration | Unit::Count => {
            let past = [tunable.min.checked_sub(1), tunable.max.checked_add(1)];
            past.into_iter().flatten().map(|number| tunable.value(number).to_string()).collect()
        }
    }
}

/// What a file says of it.
fn assignment(tunable: &Tunable) -> String {
    let value = tunable.value(other(tunable));
    match tunable.unit {
        Unit::Count => format!("{} = {value}", tunable.name),
        Unit::Duration | Unit::Choice(_) => format!("{} = \"{value}\"", tunable.name),
    }
}

/// It used to be judged by what is in force, and more was saved than was named: the next daemon did not start, or not as told.
#[test]
fn what_is_saved_is_what_was_named_and_what_the_next_start_takes() -> Result<()> {
    let setup = Setup::new()?;
    let (file, pins, control) = (setup.lab.dir().join("tcpguard.toml"), setup.lab.pin_dir(), setup.control());
    let text = format!(
        "pin_dir = {pins:?}\nmax_flows = 4096\n[control]\nsocket = {control:?}\n\
         [[interface]]\nname = \"{GUARD_INTERFACE}\"\n\
         [[service]]\nlisten = \"{SERVICE}\"\nbackend = \"127.0.0.1:{BACKEND_PORT}\"\n"
    );
    fs::write(&file, &text)?;
    let echo = SocketAddrV4::new(*SERVICE.ip(), 81).to_string();
    let mut command = setup.lab.guard().command(BINARY);
    command.args(["run", "--protect", &format!("{echo}=respond:echo"), "--set", "max-rto=2s", "--config"]);
    let _daemon = setup.start(command.arg(&file))?;
    let service = SERVICE.to_string();
    let refused = |arguments: &[&str], why: &str| {
        let before = setup.text(&["config"])?;
        let said = one_line(&setup.ask(arguments)?, 2)?;
        ensure!(said.contains(why) && said.ends_with("; nothing was changed\n"), "{said}");
        assert_eq!((fs::read_to_string(&file)?, setup.text(&["config"])?), (text.clone(), before));
        Ok(())
    };
    // In force it would be good, but not with the arguments that the daemon has each time.
    setup.text(&["tune", "max-rto", "1m"])?;
    refused(&["tune", "min-rto", "3s", "--service", &service, "--save"], "min-rto 3s is above max-rto 2s")?;
    refused(&["services", "set", &echo, "max_connections=5", "--save"], "comes from --protect")?;
    refused(&["services", "del", &echo, "--save"], "comes from --protect")?;
    // Another group's file would become the daemon's own.
    chown(&file, None, Some(12345))?;
    refused(&["tune", "time-wait", "30s", "--save"], "chown root:root")?;
    assert_eq!(file.metadata()?.gid(), 12345);
    chown(&file, None, Some(0))?;

    // For as long as the daemon lives, and not longer because something else is saved.
    setup.text(&["mode", &service, "off"])?;
    setup.text(&["dry-run", &service, "on"])?;
    setup.text(&["services", "set", &service, "max_connections=7"])?;
    setup.text(&["tune", "retries", "3", "--service", &service, "--save"])?;
    setup.text(&["services", "set", &service, "idle_time=90s", "--save"])?;
    let named = "idle_time = \"1m30s\"\ntunables = { retries = 3 }\n";
    let written = fs::read_to_string(&file)?;
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(lines(&written), lines(&(text.clone() + named)), "{written}");
    setup.text(&["services", "set", &service, "dry_run=true", "--save"])?;
    assert!(fs::read_to_string(&file)?.contains("dry_run = true\n"));
    setup.text(&["services", "set", &service, "dry_run=", "--save"])?;
    assert_eq!(fs::read_to_string(&file)?, written);
    setup.text(&["reload"])?;
    let config = setup.text(&["config"])?;
    ensure!(!config.contains("mode = \"off\"") && !config.contains("max_connections"), "{config}");
    setup.fetch()
}

#[test]
fn a_tunable_is_saved_with_the_files_comments_and_the_file_read_again_keeps_every_flow() -> Result<()> {
    let setup = Setup::new()?;
    let daemon = setup.daemon_from_file("[tunables] # Timers.\nretries = 8 # Enough.\n")?;
    let file = setup.lab.dir().join("tcpguard.toml");
    let name = file.display();
    let mut open = setup.keep_alive()?;

    let said = setup.text(&["tune", "retries", "9", "--save"])?;
    assert_eq!(said, format!("retries: 8 -> 9, saved in {name}\n"));
    assert_eq!(setup.json(&["tune", "time-wait", "30s", "--save"])?["saved"], name.to_string());
    let text = fs::read_to_string(&file)?;
    assert!(text.ends_with("[tunables] # Timers.\nretries = 9 # Enough.\ntime-wait = \"30s\"\n"), "{text}");
    // What contradicts the file is neither set nor saved.
    let edited = text.clone() + "max-rto = \"5s\"\n";
    fs::write(&file, &edited)?;
    let said = one_line(&setup.ask(&["tune", "min-rto", "6s", "--save"])?, 2)?;
    assert!(said.contains("min-rto 6s is above max-rto 5s; nothing was changed"), "{said}");
    assert_eq!(setup.json(&["tune", "min-rto"])?["tunables"][0]["value"], 200);
    assert_eq!(fs::read_to_string(&file)?, edited);

    setup.text(&["tune", "time-wait", "10s"])?;
    setup.text(&["filters", "add", "deny", "192.0.2.0/24"])?;
    fs::write(&file, format!("{text}[filters]\ndeny = [\"198.51.100.0/24\"]\n"))?;
    let said = setup.text(&["reload"])?;
    let expected =
        format!("{name}: in force\ntime-wait: 10s -> 30s\nfilters: 1 added, 1 removed, 1 in force\n");
    assert_eq!(said, expected);
    assert_eq!(setup.json(&["filters"])?["filters"][0]["prefix"], "198.51.100.0/24");
    assert_eq!(setup.json(&["reload"])?["tunables"], serde_json::json!([]));

    // A file that is no good, or that takes a restart, changes nothing; SIGHUP says so in the log.
    let before = setup.text(&["config"])?;
    for (more, why) in [
        ("time-wait = 1\n", "a duration looks like"),
        ("[[interface]]\nname = \"guard9\"\n", "interface changed, which takes a restart"),
        ("[filters]\ndeny = [\"10.0.0.1/8\"]\n", "bits beyond its length"),
    ] {
        fs::write(&file, format!("{}{more}", text.replace("time-wait = \"30s\"\n", "")))?;
        let said = one_line(&setup.ask(&["reload"])?, 2)?;
        assert!(said.contains(why) && said.contains(&name.to_string()), "{said}");
        assert_eq!(setup.text(&["config"])?, before);
    }
    daemon.signal(rustix::process::Signal::HUP)?;
    eventually("the log says so", || Ok(setup.said().contains("SIGHUP: nothing was changed")))?;
    fs::write(&file, text.replace("retries = 9", "retries = 10"))?;
    daemon.signal(rustix::process::Signal::HUP)?;
    eventually("the file is in force", || {
        Ok(setup.json(&["tune", "retries"])?["tunables"][0]["value"] == 10)
    })?;
    std::io::Write::write_all(&mut open, b"GET /small HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut answer)?;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "the flow was lost");
    setup.fetch()
}

#[test]
fn a_service_has_tunables_of_its_own_that_are_saved_shown_kept_and_taken_away() -> Result<()> {
    let setup = Setup::new()?;
    let echo = SocketAddrV4::new(*SERVICE.ip(), 81);
    let more = format!("[[service]]\nlisten = \"{echo}\" # Echo.\nrespond = \"echo\"\n");
    let _daemon = setup.daemon_from_file(&more)?;
    let (service, file) = (echo.to_string(), setup.lab.dir().join("tcpguard.toml"));
    let tune =
        |arguments: &[&str]| setup.text(&[&["tune"][..], arguments, &["--service", &service]].concat());
    let value = |of: &[&str]| -> Result<Option<u64>> {
        Ok(setup.json(&[&["tune", "retries"][..], of].concat())?["tunables"][0]["value"].as_u64())
    };
    let own = ["--service", service.as_str()];
    assert_eq!(tune(&["retries", "3"])?, format!("service {echo}: retries: 15 -> 3\n"));
    assert_eq!((value(&[])?, value(&own)?), (Some(15), Some(3)));
    assert_eq!(value(&["--service", &SERVICE.to_string()])?, Some(15), "another service's");
    let list = tune(&[])?;
    ensure!(list.contains(&format!("{echo} 3")) && !list.contains("time-wait "), "{list}");
    ensure!(setup.text(&["tune"])?.contains(&format!("{echo} 3")), "{}", setup.text(&["tune"])?);

    // What cannot be changes nothing.
    for (arguments, why) in [
        (&["time-wait", "3s"][..], "the same for all services"),
        (&["retries", "0"], "out of range"),
        (&["min-rto", "1m30s"], "out of range"),
    ] {
        let said = one_line(&setup.ask(&[&["tune"][..], arguments, &own].concat())?, 2)?;
        ensure!(said.contains(why), "{said}");
    }
    tune(&["max-rto", "2s"])?;
    let said = one_line(&setup.ask(&["tune", "min-rto", "3s"])?, 2)?;
    ensure!(said.contains(&format!("service {echo}: min-rto 3s is above max-rto 2s")), "{said}");
    let said = one_line(&setup.ask(&["tune", "retries", "3", "--service", "10.77.0.1:99"])?, 2)?;
    ensure!(said.contains("no service"), "{said}");

    // Saved or gone, as with all that a file says.
    setup.text(&["reload"])?;
    assert_eq!(value(&own)?, Some(15));
    let saved = tune(&["retries", "4", "--save"])?;
    ensure!(saved.ends_with(&format!("saved in {}\n", file.display())), "{saved}");
    setup.text(&["reload"])?;
    assert_eq!((value(&[])?, value(&own)?), (Some(15), Some(4)));
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains("# Echo.") && text.contains("tunables = { retries = 4 }"), "{text}");
    let config = setup.json(&["config"])?;
    assert_eq!(config["config"]["service"][1]["tunables"]["retries"], 4);
    tune(&["retries", "inherit", "--save"])?;
    ensure!(!fs::read_to_string(&file)?.contains("retries"), "still in the file");
    assert_eq!(value(&own)?, Some(15));
    setup.fetch()
}

/// That a list says so would show nothing: here one flow ends by it, and another service's goes on.
#[test]
fn what_one_service_has_for_itself_is_what_its_flows_go_by_and_no_others() -> Result<()> {
    let setup = Setup::new()?;
    let other = SocketAddrV4::new(*SERVICE.ip(), 81);
    let _daemon = setup.daemon(&["--protect", &format!("{other}=127.0.0.1:{BACKEND_PORT}")])?;
    // The server has closed, and the client does not.
    let half_closed = |service: SocketAddrV4| -> Result<TcpStream> {
        let mut stream = setup.connect_to(service)?;
        stream.write_all(b"GET /small HTTP/1.0\r\n\r\n")?;
        stream.read_to_end(&mut Vec::new())?;
        Ok(stream)
    };
    let waiting = |service: SocketAddrV4| -> Result<Option<u64>> {
        let service = service.to_string();
        Ok(setup.json(&["flows", "--state", "FIN_WAIT_2", "--service", &service])?["total"].as_u64())
    };
    let _streams = [half_closed(SERVICE)?, half_closed(other)?];
    eventually("both wait for their clients", || {
        Ok(waiting(SERVICE)? == Some(1) && waiting(other)? == Some(1))
    })?;
    setup.text(&["tune", "fin-wait-2", "200ms", "--service", &other.to_string()])?;
    eventually("its flow is let go", || Ok(waiting(other)? == Some(0)))?;
    assert_eq!(waiting(SERVICE)?, Some(1), "another service's flow went by it, too");
    setup.text(&["tune", "fin-wait-2", "200ms"])?;
    eventually("the other flow is let go", || Ok(waiting(SERVICE)? == Some(0)))
}

#[test]
fn a_preset_is_shown_first_and_then_set_whole() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let value = |name: &str| -> Result<Option<u64>> {
        Ok(setup.json(&["tune", name])?["tunables"][0]["value"].as_u64())
    };
    let shown = setup.text(&["tune", "--preset", "attack"])?;
    ensure!(
        shown.contains("stateful-rate: 5000 -> 0\n") && shown.contains("not changed yet: --yes"),
        "{shown}"
    );
    assert_eq!(value("stateful-rate")?, Some(5000));
    let done = setup.text(&["tune", "--preset", "attack", "--yes"])?;
    ensure!(done.contains("stateful-rate: 5000 -> 0\n") && !done.contains("not changed"), "{done}");
    assert_eq!((value("stateful-rate")?, value("fin-wait-2")?), (Some(0), Some(15_000)));
    let again = setup.json(&["tune", "--preset", "attack"])?;
    assert_eq!((&again["preset"], &again["applied"]), (&"attack".into(), &false.into()));
    assert_eq!(again["tuned"].as_array().context("no list")?.len(), 0);
    // Its values are judged together: one at a time the rate would be too much for the burst.
    setup.text(&["tune", "stateful-burst", "1"])?;
    setup.text(&["tune", "--preset", "calm", "--yes"])?;
    assert_eq!((value("stateful-rate")?, value("stateful-burst")?), (Some(5000), Some(5000)));
    setup.fetch()
}
