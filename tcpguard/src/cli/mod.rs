//! The command line, one file per verb. The only room that prints: results to standard output, one line to standard
//! error when something failed. Exit codes: 0 done, 1 failed, 2 bad input (nothing was changed).
#![forbid(unsafe_code)]

mod check;
mod config;
mod confirm;
mod cookie;
mod detach;
mod doctor;
mod dry_run;
mod events;
mod explain;
mod filters;
mod flows;
mod generate;
mod keys;
mod mode;
mod monitor;
mod output;
mod pcap;
mod reload;
mod run;
mod schema;
mod services;
mod session;
mod stats;
mod status;
mod top;
mod tune;
mod zero;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::control::client::{Client, ClientError};
use crate::control::daemon::DaemonError;
use crate::control::protocol::{Fault, Refusal, Reply, Request};

const EXAMPLES: &str = "\
Examples:
  tcpguard run -i eth0 --protect 192.0.2.1:80=127.0.0.1:8080
  tcpguard stats --watch
  tcpguard flows --state TIME_WAIT
  tcpguard tune time-wait 30s

Exit codes: 0 done, 1 failed, 2 bad input or usage (nothing was changed).";

#[derive(Parser)]
#[command(name = "tcpguard", version, about, after_help = EXAMPLES, disable_help_subcommand = true)]
struct Cli {
    /// The daemon's control socket
    #[arg(long, global = true, value_name = "PATH")]
    control: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Guard interfaces: load XDP, run the engines, relay to the backends
    Run(run::Args),
    /// What runs where
    Status(status::Args),
    /// What became of every segment, by reason, and what the stack did
    Stats(stats::Args),
    /// Watch it all on a terminal: rates over time, states, services, attacks; change tunables
    Top(top::Args),
    /// List the connections, like `ss`, or reset some
    Flows(flows::Args),
    /// List the attacks that there were and are
    Events(events::Args),
    /// Show single packets as they come and go, and why each met its verdict
    Monitor(monitor::Args),
    /// List the services, put them in, change them, or take them out
    Services(services::Args),
    /// List or change whom to drop unseen, and whom to spare the budgets
    Filters(filters::Args),
    /// Explain a cookie that was captured on the wire
    Cookie(cookie::Args),
    /// List or change how services treat SYNs: remember them, or answer with cookies
    Mode(mode::Args),
    /// Have a service count what it would do and leave everything to the host, or guard it in earnest
    DryRun(dry_run::Args),
    /// List, show or set timers and limits; a change applies at once
    Tune(tune::Args),
    /// Read the configuration file again; every connection stays
    Reload(reload::Args),
    /// Keep what was changed with --confirm
    Confirm(confirm::Args),
    /// Replace the secret that cookie keys derive from
    Keys(keys::Args),
    /// Say what a reason or a counter means, or what would become of a packet, step by step
    Explain(explain::Args),
    /// Say whether a configuration file is good
    Check(check::Args),
    /// Say whether this machine can run the guard, and what would help if not
    Doctor(doctor::Args),
    /// List what of the kernel the guard needs, and whether it is there
    Features(doctor::FeaturesArgs),
    /// Print the configuration that the daemon goes by, or an example of one
    Config(config::Args),
    /// Print a script that completes commands in a shell
    Completions(generate::CompletionsArgs),
    /// Print a page of the manual
    Man(generate::ManArgs),
    /// Print the JSON schema of what a verb prints with --json
    Schema(schema::Args),
    /// Remove what a killed daemon left: in the kernel, and its sockets
    Detach(detach::Args),
}

/// Why a verb did not do its work.
enum Failure {
    /// The user asked for what cannot be: exit code 2.
    BadInput(String),
    /// It did not work: exit code 1.
    Failed(String),
    /// Nobody reads the output any more: exit code 0, quietly.
    NoReader,
}

impl Failure {
    /// What there is to say about it.
    fn message(self) -> String {
        match self {
            Self::BadInput(message) | Self::Failed(message) => output::one_line(&message),
            Self::NoReader => String::new(),
        }
    }
}

/// The whole program: reads the arguments, does what the verb says, and reports.
pub fn main() -> ExitCode {
    let failure = match run(std::env::args_os()) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(failure) => failure,
    };
    let (code, message) = match failure {
        Failure::BadInput(message) => (2, message),
        Failure::Failed(message) => (1, message),
        Failure::NoReader => return ExitCode::SUCCESS,
    };
    // With standard error gone too there is nobody left to tell.
    let prefix = crate::telemetry::log::failure_prefix();
    drop(writeln!(io::stderr(), "{prefix}tcpguard: {}", output::one_line(&message)));
    ExitCode::from(code)
}

fn run(args: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let read = command().try_get_matches_from(args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match read {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(error.print()?);
        }
        Err(error) => return Err(Failure::BadInput(usage_error(&error))),
    };
    let control = cli.control.as_deref();
    match cli.verb {
        Verb::Run(args) => run::run(args, control),
        Verb::Status(args) => status::run(&args, &client(control)),
        Verb::Stats(args) => stats::run(&args, &client(control)),
        Verb::Top(args) => top::run(&args, &client(control)),
        Verb::Flows(args) => flows::run(&args, &client(control)),
        Verb::Events(args) => events::run(&args, &client(control)),
        Verb::Monitor(args) => monitor::run(&args, &client(control)),
        Verb::Services(args) => services::run(&args, &client(control)),
        Verb::Filters(args) => filters::run(&args, &client(control)),
        Verb::Cookie(args) => cookie::run(&args, &client(control)),
        Verb::Mode(args) => mode::run(&args, &client(control)),
        Verb::DryRun(args) => dry_run::run(&args, &client(control)),
        Verb::Tune(args) => tune::run(&args, &client(control)),
        Verb::Reload(args) => reload::run(&args, &client(control)),
        Verb::Confirm(args) => confirm::run(&args, &client(control)),
        Verb::Keys(args) => keys::run(&args, &client(control)),
        Verb::Explain(args) => explain::run(&args, &client(control)),
        Verb::Check(args) => check::run(&args),
        Verb::Doctor(args) => doctor::run(&args, control),
        Verb::Features(args) => doctor::features_of_kernel(&args),
        Verb::Config(args) => config::run(&args, &client(control)),
        Verb::Completions(args) => generate::completions(&args),
        Verb::Man(args) => generate::man(&args),
        Verb::Schema(args) => schema::run(&args),
        Verb::Detach(args) => detach::run(&args, control),
    }
}

/// The command line, with texts that a terminal of any width breaks where it ends.
fn command() -> clap::Command {
    flowing(Cli::command())
}

fn flowing(command: clap::Command) -> clap::Command {
    let help = command.get_after_help().map(|help| joined(&help.to_string()));
    let command = match help {
        Some(help) => command.after_help(help),
        None => command,
    };
    command.mut_subcommands(flowing)
}

/// A text with every paragraph in one line. What is indented or stands in columns stays as it is.
fn joined(text: &str) -> String {
    let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ') && !line.contains("  ");
    let (mut joined, mut before) = (String::new(), None);
    for line in text.lines() {
        if let Some(before) = before {
            joined.push(if is_prose(before) && is_prose(line) { ' ' } else { '\n' });
        }
        joined += line;
        before = Some(line);
    }
    joined
}

/// Clap's several lines in one: the error, and where the usage stands, which `--help` shows better.
fn usage_error(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let verb = usage_of(&text);
    let remedy = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return format!("no verb given; `{verb} --help` lists them");
        }
        ErrorKind::InvalidSubcommand => format!("; `{verb} --help` lists what there is"),
        ErrorKind::UnknownArgument | ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict => {
            format!("; `{verb} --help` says how it goes")
        }
        _ => String::new(),
    };
    let lines = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let line = lines.map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned() + &remedy
}

/// The verb whose usage clap shows: what stands before the first argument.
fn usage_of(text: &str) -> String {
    let usage = text.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or("tcpguard");
    let is_verb = |word: &&str| word.starts_with(|first: char| first.is_ascii_lowercase());
    usage.split(' ').take_while(is_verb).collect::<Vec<_>>().join(" ")
}

fn client(control: Option<&Path>) -> Client {
    Client::new(control.unwrap_or_else(|| Path::new(crate::config::DEFAULT_SOCKET)))
}

/// Asks the daemon; its refusals become failures of the verb.
fn ask(client: &Client, request: &Request) -> Result<Reply, Failure> {
    match client.ask(request)? {
        Reply::Error(refusal) => Err(refused(refusal)),
        reply => Ok(reply),
    }
}

fn refused(refusal: Refusal) -> Failure {
    match refusal.kind {
        Fault::BadInput => Failure::BadInput(refusal.message),
        Fault::Failed | Fault::Busy => Failure::Failed(refusal.message),
    }
}

/// The daemon answered another question than the one asked.
fn unexpected() -> Failure {
    Failure::Failed("the daemon's answer does not fit the question".to_owned())
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Denied(_) => Self::BadInput(error.to_string()),
            ClientError::NoDaemon(_) | ClientError::Io { .. } | ClientError::NotUnderstood { .. } => {
                Self::Failed(error.to_string())
            }
        }
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        let message = chain(&error);
        if error.is_bad_input() { Self::BadInput(message) } else { Self::Failed(message) }
    }
}

/// Only output is written with `?`: a reader that has gone is no failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NoReader,
            _ => Self::Failed(format!("cannot write the output: {error}")),
        }
    }
}

/// An error with what caused it, in one line. A cause that the error quotes already is not repeated.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line += &format!(": {text}");
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(args: &[&str]) -> String {
        match run(std::iter::once("tcpguard").chain(args.iter().copied()).map(OsString::from)) {
            Err(Failure::BadInput(message)) => message,
            Err(Failure::Failed(message)) => panic!("failed instead: {message}"),
            Err(Failure::NoReader) | Ok(()) => panic!("accepted {args:?}"),
        }
    }

    #[test]
    fn the_arguments_are_consistent_and_every_verb_has_examples() {
        Cli::command().debug_assert();
        for verb in Cli::command().get_subcommands() {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{}", verb.get_name());
        }
    }

    #[test]
    fn paragraphs_of_help_are_broken_where_the_terminal_ends_and_columns_are_not() {
        let text =
            "One paragraph\nof prose.\n\nauto    in columns\noff     likewise\n\nExamples:\n  tcpguard\n";
        let flowing =
            "One paragraph of prose.\n\nauto    in columns\noff     likewise\n\nExamples:\n  tcpguard";
        assert_eq!(joined(text), flowing);
        let mut reload = command().find_subcommand("reload").unwrap().clone();
        let help = reload.render_help().to_string();
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        let after = reload.get_after_help().unwrap().to_string();
        assert!(after.lines().next().unwrap().ends_with("the log says what came of it."), "{after}");
    }

    #[test]
    fn bad_usage_is_one_line_that_names_what_is_wrong() {
        for (args, why) in [
            (&[][..], "no verb given; `tcpguard --help`"),
            (&["keys"], "no verb given; `tcpguard keys --help`"),
            (&["nonsense"], "unrecognized subcommand 'nonsense'; `tcpguard --help` lists"),
            (&["services", "list"], "unrecognized subcommand 'list'; `tcpguard services --help` lists"),
            (&["services", "del"], "<ADDR:PORT>; `tcpguard services del --help` says"),
            (
                &["stats", "--nonsense"],
                "unexpected argument '--nonsense' found; `tcpguard stats --help` says",
            ),
            (&["flows", "--limit", "many"], "'many'"),
            (&["flows", "--state", "HALF_DEAD"], "unknown state"),
            (&["mode", "10.0.0.1:80"], "MODE"),
            (&["mode", "10.0.0.1", "auto"], "not an address"),
            (&["mode", "10.0.0.1:80", "maybe"], "auto, cookie, stateful, off"),
            (&["dry-run", "10.0.0.1:80", "maybe"], "on, off"),
            (&["dry-run", "10.0.0.1", "on"], "not an address"),
            (&["flows", "--peer", "10.0.0.1/8"], "is it 10.0.0.0/8"),
            (&["flows", "--kill"], "--all"),
            (&["flows", "--older-than", "soon"], "a duration looks like"),
            (&["services", "add", "10.0.0.1:80"], "ADDR:PORT=BACKEND"),
            (
                &["services", "add", "10.0.0.1:80=respond:echo", "balance=round-robin"],
                "only a service with a backend",
            ),
            (&["services", "set", "10.0.0.1:80"], "KEY=VALUE"),
            (&["services", "set", "10.0.0.1:80", "mode"], "not KEY=VALUE"),
            (&["services", "set", "10.0.0.1:80", "mode=off", "mode=auto"], "given twice"),
            (&["services", "del", "10.0.0.1"], "not an address"),
            (&["services", "del", "10.0.0.1:80", "--save", "--confirm", "60"], "confirm it first, then save"),
            (&["tune", "time-wait", "30s", "--confirm", "0"], "not in 1..=86400"),
            (&["tune", "time-wait", "30s", "--save", "--confirm", "9"], "confirm it first, then save"),
            (&["tune", "--confirm", "9"], "--confirm: this changes nothing"),
            (&["tune", "time-wait", "--confirm", "9"], "--confirm: this changes nothing"),
            (&["tune", "--preset", "attack", "--confirm", "9"], "--confirm: this changes nothing"),
            (&["mode", "--confirm", "9"], "--confirm: this changes nothing"),
            (&["filters", "--confirm", "9"], "--confirm: this changes nothing"),
            (&["services", "--confirm", "9"], "--confirm: this changes nothing"),
            (&["tune", "--save"], "nothing to save"),
            (&["tune", "--preset", "attack", "--save"], "a preset cannot be saved"),
            (&["tune", "timewait", "3s"], "did you mean `time-wait`"),
            (&["tune", "--preset", "war"], "calm, attack, high-churn"),
            (&["tune", "time-wait", "3"], "a duration looks like"),
            (&["tune", "time-wait", "3h"], "out of range"),
            (&["cookie", "decode", "10.0.0.2:9", "10.0.0.1:80", "--seq", "1"], "--ack"),
            (&["cookie", "decode", "10.0.0.2", "10.0.0.1:80", "--seq", "1", "--ack", "2"], "10.0.0.2"),
            (&["cookie", "decode", "10.0.0.2:9", "10.0.0.1:80", "--seq", "0x1g", "--ack", "2"], "0x1g"),
            (
                &[
                    "cookie",
                    "decode",
                    "10.0.0.2:9",
                    "10.0.0.1:80",
                    "--seq",
                    "1",
                    "--ack",
                    "2",
                    "--tsval",
                    "3",
                ],
                "--tsecr is missing",
            ),
            (&["run", "-i", "eth0", "--protect", "10.0.0.1:0=127.0.0.1:1"], "port 0"),
            (&["run", "-i", "eth0", "--protect", "10.0.0.1=127.0.0.1:1"], "not an address"),
            (&["run", "-i", "eth0"], "nothing to protect"),
            (&["run", "--protect", "10.0.0.1:80=127.0.0.1:1"], "no interface"),
            (&["run", "-i", "eth0", "--mode", "fast"], "native, generic"),
            (&["run", "-i", "eth0", "--set", "time-wait"], "NAME=VALUE"),
            (&["run", "-i", "eth0", "--set", "nonsense=1"], "unknown tunable"),
            (&["run", "--config", "/nonexistent.toml"], "/nonexistent.toml: "),
        ] {
            let message = output::one_line(&refusal(args));
            assert!(message.contains(why), "{args:?}: {message}");
        }
    }
}
