//! Runs the machine's tools and turns their failures into errors that name the command and what it said.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs a tool to its end, quietly.
pub fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<()> {
    output(program, args).map(drop)
}

/// Runs a tool to its end and returns what it wrote.
pub fn output<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> Result<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("running {program}: is it installed?"))?;
    judge(&command, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a tool that reads `input`.
pub fn feed<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>, input: &str) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("running {program}: is it installed?"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that fails early closes its end; its own message says more than a broken pipe would.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    judge(&command, &output).with_context(|| format!("given:\n{}", input.trim_end()))
}

/// Whether a program of this name is on the path.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administrators = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(administrators).any(|dir| dir.join(program).is_file())
}

/// Makes a directory anew, without what an earlier attempt left in it.
pub fn fresh_dir(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("removing {}", path.display()))?;
    }
    fs::create_dir_all(path).with_context(|| format!("making {}", path.display()))
}

/// Whether this process may do anything.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn judge(command: &Command, output: &Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("`{}` failed ({}): {}", line(command), output.status, said.trim());
}

/// The command as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| quote(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
}

/// The word as one would type it.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_tool_is_reported_with_its_command_and_its_words() {
        let error = run("sh", ["-c", "echo no such luck >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.contains("sh -c 'echo no such luck >&2; exit 3'"), "{error}");
        assert!(error.contains("exit status: 3") && error.ends_with("no such luck"), "{error}");
    }

    #[test]
    fn a_missing_tool_is_named() {
        let error = run("tcpguard-no-such-tool", [""; 0]).unwrap_err().to_string();
        assert!(error.contains("tcpguard-no-such-tool"), "{error}");
        assert!(!exists("tcpguard-no-such-tool") && exists("sh"));
    }
}
