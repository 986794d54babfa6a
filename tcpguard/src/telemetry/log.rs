//! Where `tracing` events go: standard error, one line each, filtered. Nothing on the packet path logs.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Starts logging with `filter`, else with `RUST_LOG`, else from `info` up. The error is one line.
pub fn start(filter: Option<&str>) -> Result<(), String> {
    let from_environment = std::env::var("RUST_LOG").ok();
    let filter = filter.or(from_environment.as_deref()).unwrap_or("info");
    let filter = directives(filter);
    let filter = EnvFilter::try_new(&filter).map_err(|error| format!("log filter `{filter}`: {error}"))?;
    // https://no-color.org: any non-empty value.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    // Fails only when a subscriber is set already, which then does the work.
    drop(
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(!plain && io::stderr().is_terminal())
            .with_target(false)
            .try_init(),
    );
    Ok(())
}

/// A bare level is meant for tcpguard: the eBPF loader's own messages would drown everything else.
fn directives(filter: &str) -> String {
    match filter.parse::<LevelFilter>() {
        Ok(level) => format!("{},tcpguard={level}", level.min(LevelFilter::WARN)),
        Err(_) => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::directives;

    #[test]
    fn a_level_is_for_tcpguard_and_a_filter_is_taken_as_it_is() {
        assert_eq!(directives("debug"), "warn,tcpguard=debug");
        assert_eq!(directives("error"), "error,tcpguard=error");
        assert_eq!(directives("off"), "off,tcpguard=off");
        assert_eq!(directives("aya=trace,info"), "aya=trace,info");
    }
}
