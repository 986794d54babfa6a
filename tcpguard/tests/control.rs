//! Verbs that ask and change a running daemon, for people and for programs, beyond what `daemon` tests. Needs root.

mod support;

use anyhow::{Context as _, Result};
use support::setup::{SERVICE, Setup};
use xtask::lab::GUARD_INTERFACE;

#[test]
fn the_configuration_in_force_is_a_file_that_check_finds_good() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon_from_file("queues = 2\n[tunables]\nretries = 8\n")?;
    setup.text(&["tune", "time-wait", "30s"])?;
    setup.text(&["filters", "add", "deny", "192.0.2.0/24"])?;
    setup.text(&["filters", "add", "allow", "2001:db8::7", "--expires", "1h"])?;

    let text = setup.text(&["config"])?;
    let json = setup.json(&["config"])?;
    let config = &json["config"];
    assert_eq!(config["interface"][0]["name"], GUARD_INTERFACE);
    assert_eq!(config["interface"][0]["queues"], 2);
    assert_eq!(config["service"][0]["listen"], SERVICE.to_string());
    assert_eq!(config["control"]["socket"], setup.control().display().to_string());
    assert_eq!(
        (&config["tunables"]["time-wait"], &config["tunables"]["retries"]),
        (&"30s".into(), &8.into())
    );
    assert_eq!(config["tunables"]["min-rto"], "200ms");
    assert_eq!(config["filters"]["deny"][0], "deny 192.0.2.0/24");
    let allowed = config["filters"]["allow"][0].as_str().context("no filter")?;
    assert!(allowed.starts_with("allow 2001:db8::7/128 expires 59m"), "{allowed}");
    assert!(text.contains("\n[tunables]\n") && text.contains("\ntime-wait = \"30s\"\n"), "{text}");

    let output = setup.feed(&["check", "-"], text.as_bytes(), &[])?;
    let said = String::from_utf8(output.stdout)?;
    let good = "standard input: good (interfaces 1, services 1, filters 2, tunables changed 2)\n";
    assert_eq!((output.status.code(), said.as_str()), (Some(0), good));
    Ok(())
}
