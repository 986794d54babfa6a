//! What the file says of events: the command that hears of them. It runs nothing.

use std::time::Duration;

use super::duration;

/// How long a hook may take, unless configured.
const HOOK_TIME: Duration = Duration::from_secs(10);
/// Least and greatest.
const HOOK_TIMES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(600));

/// Who hears of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Events {
    /// A program, by its absolute path, and its arguments; empty for none.
    pub hook: Vec<String>,
    /// How long it may take, 100 ms to 10 minutes.
    pub hook_time: Duration,
}

impl Default for Events {
    fn default() -> Self {
        Self { hook: Vec::new(), hook_time: HOOK_TIME }
    }
}

/// Refuses what cannot be a program and its arguments.
pub(super) fn check_hook(hook: &[String]) -> Result<(), String> {
    match hook.first() {
        Some(program) if program.starts_with('/') => Ok(()),
        Some(program) => Err(format!("hook: `{program}` is not the absolute path of a program")),
        None => Err("hook: no program named".to_owned()),
    }
}

/// Reads how long a hook may take.
pub(super) fn hook_time(text: &str) -> Result<Duration, String> {
    let (least, most) = HOOK_TIMES;
    let time = duration::parse(text)?;
    if (least..=most).contains(&time) {
        return Ok(time);
    }
    let format = duration::format;
    Err(format!("hook_time: {} is out of range, {} to {}", format(time), format(least), format(most)))
}
