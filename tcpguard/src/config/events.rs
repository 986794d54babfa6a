//! What the file says of events: the command that hears of them. It runs nothing.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
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

impl Events {
    /// Why the hook cannot be run, as far as this machine tells who looks at it now. A file may be written on another one, so
    /// that this is no error in it.
    pub fn trouble(&self) -> Option<String> {
        let program = self.hook.first()?;
        let why = match std::fs::metadata(program) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return None,
            Err(error) => error.to_string(),
            Ok(found) if !found.is_file() => "not a file".to_owned(),
            Ok(found) if found.permissions().mode() & 0o111 == 0 => "not executable".to_owned(),
            Ok(_) => return None,
        };
        Some(format!("hook: {program}: {why}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hook_that_cannot_be_run_is_noticed_before_there_is_anything_to_tell_it() {
        let trouble = |program: &str| {
            let hook = vec![program.to_owned(), "--argument".to_owned()];
            Events { hook, ..Events::default() }.trouble()
        };
        assert_eq!((trouble("/bin/sh"), Events::default().trouble()), (None, None));
        for (program, why) in [
            ("/usr/local/bin/no-such-program", "No such file"),
            ("/usr", "not a file"),
            (concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"), "not executable"),
        ] {
            let said = trouble(program).unwrap_or_default();
            assert!(said.starts_with(&format!("hook: {program}: ")) && said.contains(why), "{said:?}");
        }
    }
}
