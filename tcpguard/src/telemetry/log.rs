//! Where `tracing` events go: standard error, one line each, filtered. Where that is systemd's journal, each line begins with its
//! priority (sd-daemon(3)) and leaves the time to the journal. Nothing on the packet path logs.

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Where what XDP logs itself comes from, as filters have it.
pub const XDP: &str = "tcpguard::xdp";

/// Starts logging with `filter`, else with `RUST_LOG`, else from `info` up. The error is one line.
pub fn start(filter: Option<&str>) -> Result<(), String> {
    let from_environment = std::env::var("RUST_LOG").ok();
    let filter = filter.or(from_environment.as_deref()).unwrap_or("info");
    let filter = directives(filter);
    let filter = EnvFilter::try_new(&filter).map_err(|error| format!("log filter `{filter}`: {error}"))?;
    // https://no-color.org: any non-empty value.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Fails only when a subscriber is set already, which then does the work.
    drop(match is_journal() {
        true => lines.with_ansi(false).event_format(Journal).finish().try_init(),
        false => {
            let colours = !plain && io::stderr().is_terminal();
            lines.with_ansi(colours).with_target(false).finish().try_init()
        }
    });
    Ok(())
}

/// Whether standard error is the journal's: systemd says which device and inode that has.
pub fn is_journal() -> bool {
    let said = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stderr = io::stderr().as_fd().try_clone_to_owned().and_then(|stderr| File::from(stderr).metadata());
    stderr.is_ok_and(|stderr| format!("{}:{}", stderr.dev(), stderr.ino()) == said)
}

/// What a line for the journal begins with that tells of a failure.
pub fn failure_prefix() -> &'static str {
    if is_journal() { priority(Level::ERROR) } else { "" }
}

/// Lines for the journal: a priority, the message, and its fields as `name=value`.
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut said = String::new();
        context.field_format().format_fields(Writer::new(&mut said), event)?;
        // The journal takes each line for a message of its own.
        writeln!(line, "{}{}", priority(*event.metadata().level()), said.replace('\n', "; "))
    }
}

/// Syslog's priority of a level, as sd-daemon(3) has it in front of a line.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

/// A bare level is meant for tcpguard: the eBPF loader's own messages would drown everything else. What XDP logs is of level
/// debug and has a switch of its own, `xdp-log`: whoever throws that wants to see it, unless he wants next to nothing.
fn directives(filter: &str) -> String {
    match filter.parse::<LevelFilter>() {
        Ok(level) => {
            let of_xdp = if level >= LevelFilter::INFO { level.max(LevelFilter::DEBUG) } else { level };
            format!("{},tcpguard={level},{XDP}={of_xdp}", level.min(LevelFilter::WARN))
        }
        Err(_) => filter.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Journal, directives};
    use crate::telemetry::said::Said;

    #[test]
    fn a_line_for_the_journal_has_a_priority_and_its_fields_and_is_one_line() {
        let said = Said::default();
        let writer = said.clone();
        let lines = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
        let lines = lines.event_format(Journal).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(lines, || {
            tracing::error!(interface = "eth0", queue = 3, "it stands still");
            tracing::warn!("two\nlines");
            tracing::info!(rate = 7u64, "so many");
            tracing::debug!("small");
            tracing::trace!("smaller");
        });
        assert_eq!(
            said.text(),
            "<3>it stands still interface=\"eth0\" queue=3\n<4>two; lines\n<6>so many rate=7\n<7>small\n<7>smaller\n"
        );
    }

    #[test]
    fn a_level_is_for_tcpguard_and_a_filter_is_taken_as_it_is() {
        assert_eq!(directives("info"), "warn,tcpguard=info,tcpguard::xdp=debug");
        assert_eq!(directives("trace"), "warn,tcpguard=trace,tcpguard::xdp=trace");
        assert_eq!(directives("error"), "error,tcpguard=error,tcpguard::xdp=error");
        assert_eq!(directives("off"), "off,tcpguard=off,tcpguard::xdp=off");
        assert_eq!(directives("aya=trace,info"), "aya=trace,info");
    }
}
