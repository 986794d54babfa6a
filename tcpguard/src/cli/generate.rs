//! `tcpguard completions` and `tcpguard man`: what shells and readers of manuals want, made from the same table of arguments
//! as the help.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, Failure};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tcpguard completions bash > /etc/bash_completion.d/tcpguard
  tcpguard completions zsh > ~/.zfunc/_tcpguard
  tcpguard completions fish > ~/.config/fish/completions/tcpguard.fish")]
pub(super) struct CompletionsArgs {
    /// For which shell
    shell: Shell,
}

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tcpguard man | man -l -
  tcpguard man tune | man -l -
  tcpguard man filters add | man -l -
  tcpguard man --directory /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Of which verb, and of which verb's verb; without one, of tcpguard as a whole
    #[arg(conflicts_with = "directory")]
    verb: Vec<String>,
    /// Write every page into this directory instead
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tcpguard", &mut script);
    Ok(io::stdout().lock().write_all(&script)?)
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let pages = pages();
    if let Some(directory) = &args.directory {
        return pages.iter().try_for_each(|(name, page)| write_page(directory, name, page));
    }
    let name =
        ["tcpguard"].into_iter().chain(args.verb.iter().map(String::as_str)).collect::<Vec<_>>().join("-");
    match pages.iter().find(|(page, _)| *page == name) {
        Some((_, page)) => Ok(io::stdout().lock().write_all(page)?),
        None => {
            let verb = args.verb.join(" ");
            Err(Failure::BadInput(format!("no verb `{verb}`; `tcpguard --help` lists them")))
        }
    }
}

fn write_page(directory: &Path, name: &str, page: &[u8]) -> Result<(), Failure> {
    let path = directory.join(format!("{name}.1"));
    std::fs::write(&path, page).map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
}

/// The page of the whole, and one for each verb and each verb's verbs, by name.
fn pages() -> Vec<(String, Vec<u8>)> {
    let mut whole = Cli::command();
    // Gives verbs their whole names, and the arguments that all of them have.
    whole.build();
    let mut pages = Vec::new();
    add_pages(&whole, &mut pages);
    pages
}

fn add_pages(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    pages.push((name.to_owned(), page(command.clone())));
    command.get_subcommands().for_each(|verb| add_pages(verb, pages));
}

fn page(command: Command) -> Vec<u8> {
    let mut page = Vec::new();
    // Writing to memory has no way to fail.
    let _ = Man::new(command).render(&mut page);
    page
}
