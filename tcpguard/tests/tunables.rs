//! Every tunable in a running daemon: set live, refused out of range, kept by a reload once it is saved, and back at its
//! default once the file says nothing of it. That each does what it says is proven beside `control/proofs`. Needs root.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use tcpguard::config::{TUNABLES, Tunable, Unit};
use tcpguard::control::client::Client;
use tcpguard::control::protocol::{Fault, Refusal, Reply, Request};

use support::setup::Setup;

mod support;

/// Questions to the daemon, without a process for each.
struct Tuner {
    client: Client,
    file: PathBuf,
}

impl Tuner {
    fn ask(&self, name: &str, value: Option<String>, save: bool) -> Result<Reply> {
        let request = Request::Tune { name: Some(name.to_owned()), value, save };
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
