//! `tcpguard filters`: lists and changes the filter lists. Lists are read here, and sent in parts; the daemon puts them
//! in force at once.

use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use crate::config::filters::parse_expires;
use crate::config::{Action, Filter, FilterSet, Prefix};
use crate::control::client::Client;
use crate::control::protocol::{self as wire, FiltersChanged, MAX_FILTERS_PART, Reply, Request, Session};

use super::confirm::Within;
use super::output::{Align, Table, age, write_json};
use super::session::session;
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
The longest prefix around a source counts. Denied sources are dropped before anything else is looked at; allowed ones are
spared the budgets, but still have to show a valid cookie. Both concern protected ports alone. What is changed here is
in force at once, and until a daemon starts anew or reads its file again: what is to stay belongs into [filters] there.

A list has one prefix a line, and comments behind #:

  192.0.2.0/24
  deny 2001:db8::/32
  allow 198.51.100.7 expires 1h30m

Examples:
  tcpguard filters                              list them, with their hits
  tcpguard filters add deny 192.0.2.0/24 --expires 1h
  tcpguard filters del 192.0.2.0/24
  tcpguard filters load --replace list.txt      all of it or nothing; - is standard input
  tcpguard filters flush deny")]
pub(super) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// List at most this many; the totals count all
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    limit: u32,
    #[command(flatten)]
    within: Within,
    /// Print one line of JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum What {
    /// Put a prefix into a list, or give it another time to live
    Add {
        /// deny, allow
        action: Action,
        /// Such as 192.0.2.0/24 or 2001:db8::1
        prefix: Prefix,
        /// Forget it after this time, such as 30m
        #[arg(long, value_name = "DURATION")]
        expires: Option<String>,
        /// Even if it drops the session that this comes from
        #[arg(long)]
        force: bool,
    },
    /// Take a prefix out
    Del {
        /// As it is listed
        prefix: Prefix,
        /// Even if it drops the session that this comes from
        #[arg(long)]
        force: bool,
    },
    /// Put a list of prefixes in, all at once
    Load {
        /// One prefix a line; - for standard input
        file: PathBuf,
        /// In place of everything that is there
        #[arg(long)]
        replace: bool,
        /// Even if it drops the session that this comes from
        #[arg(long)]
        force: bool,
    },
    /// Take all prefixes out
    Flush {
        /// Only those that deny, or allow
        action: Option<Action>,
        /// Even if it drops the session that this comes from
        #[arg(long)]
        force: bool,
    },
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    args.within.is_for(args.what.is_some())?;
    let Some(what) = &args.what else { return list(args, client) };
    let Reply::FiltersChanged(changed) = args.within.change(client, change(what, client)?)? else {
        return Err(unexpected());
    };
    let mut out = io::stdout().lock();
    if args.json {
        return Ok(write_json(&mut out, &changed)?);
    }
    let FiltersChanged { added, removed, total, unconfirmed_ms: _ } = changed;
    Ok(writeln!(out, "{added} added, {removed} removed, {total} in force")?)
}

/// What there is to ask for. A list is read, and all of it but the end sent, before that.
fn change(what: &What, client: &Client) -> Result<Request, Failure> {
    Ok(match what {
        What::Add { action, prefix, expires, force } => {
            let expires = expires.as_deref().map(parse_expires).transpose().map_err(Failure::BadInput)?;
            let filter = Filter { prefix: *prefix, action: *action, expires }.to_string();
            Request::FiltersAdd { filter, session: session(*force)? }
        }
        What::Del { prefix, force } => {
            Request::FiltersDel { prefix: prefix.to_string(), session: session(*force)? }
        }
        What::Flush { action, force } => {
            let action = action.map(|action| action.to_string());
            Request::FiltersFlush { action, session: session(*force)? }
        }
        What::Load { file, replace, force } => load(client, file, *replace, session(*force)?)?,
    })
}

fn list(args: &Args, client: &Client) -> Result<(), Failure> {
    let Reply::Filters(filters) = ask(client, &Request::Filters { limit: args.limit })? else {
        return Err(unexpected());
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        return Ok(write_json(&mut out, &filters)?);
    }
    table(&filters.filters).write(&mut out)?;
    out.flush()?;
    let listed = filters.filters.len() as u64;
    if listed < filters.total {
        let hidden = filters.total - listed;
        // Beside the table, not in it: what reads the table counts its lines.
        writeln!(io::stderr(), "tcpguard: {hidden} more not listed; raise --limit ({})", args.limit)?;
    }
    Ok(())
}

fn table(filters: &[wire::Filter]) -> Table {
    let mut table = Table::new(&[
        ("ACTION", Align::Left),
        ("PREFIX", Align::Left),
        ("HITS", Align::Right),
        ("EXPIRES", Align::Right),
    ]);
    for filter in filters {
        let expires = filter.expires_ms.map_or_else(|| "-".to_owned(), age);
        table.row(vec![filter.action.clone(), filter.prefix.clone(), filter.hits.to_string(), expires]);
    }
    table
}

/// Reads a list and sends it in parts, all but the last one, with which it is put in force.
fn load(client: &Client, file: &Path, replace: bool, session: Option<Session>) -> Result<Request, Failure> {
    let mut filters = FilterSet::default();
    let repeated = match file == Path::new("-") {
        true => filters.read(Path::new("standard input"), io::stdin().lock())?,
        false => filters.read_file(file)?,
    };
    if repeated > 0 {
        let count = filters.len();
        writeln!(io::stderr(), "tcpguard: {repeated} lines said again what was said: {count} filters")?;
    }
    let load = getrandom::u64().map_err(|error| Failure::Failed(error.to_string()))?;
    let mut parts = parts(&filters);
    let last = parts.pop().unwrap_or_default();
    for filters in parts {
        let part = Request::FiltersLoad { load, filters, last: false, replace, session };
        let Reply::FiltersPart {} = ask(client, &part)? else { return Err(unexpected()) };
    }
    Ok(Request::FiltersLoad { load, filters: last, last: true, replace, session })
}

/// The filters' lines, cut into as many parts as requests are needed: one at least.
fn parts(filters: &FilterSet) -> Vec<Vec<String>> {
    let (mut parts, mut part, mut size) = (Vec::new(), Vec::new(), 0);
    for line in filters.iter().map(ToString::to_string) {
        // With its quotes and comma.
        size += line.len() + 3;
        if size > MAX_FILTERS_PART {
            size = line.len() + 3;
            parts.push(std::mem::take(&mut part));
        }
        part.push(line);
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::protocol::MAX_REQUEST;
    use tcpguard_common::filter::MAX_FILTERS;

    #[test]
    fn a_filter_is_one_aligned_line() {
        let filter = |action: &str, prefix: &str, hits, expires_ms| wire::Filter {
            action: action.into(),
            prefix: prefix.into(),
            hits,
            expires_ms,
        };
        let mut out = Vec::new();
        let rows =
            [filter("deny", "192.0.2.0/24", u64::MAX, None), filter("allow", "::1/128", 0, Some(61_900))];
        table(&rows).write(&mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "ACTION  PREFIX                        HITS  EXPIRES
deny    192.0.2.0/24  18446744073709551615        -
allow   ::1/128                          0     1m1s
"
        );
    }

    #[test]
    fn the_longest_lines_fit_into_requests_and_no_line_is_lost() {
        let mut filters = FilterSet::default();
        for number in 0..u128::from(MAX_FILTERS) {
            let address = std::net::Ipv6Addr::from_bits(u128::MAX - number);
            let line = format!("allow {address} expires 3649days23h59m59s999ms");
            filters.insert(Filter::parse(&line, None).unwrap()).unwrap();
        }
        let session =
            Some(Session { peer: "ffff::1".parse().unwrap(), local: "[ffff::2]:65535".parse().unwrap() });
        let parts = parts(&filters);
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), MAX_FILTERS as usize);
        for filters in parts {
            let change = Request::FiltersLoad { load: u64::MAX, filters, last: true, replace: true, session };
            let request = Request::OnProbation { seconds: 86_400, change: Box::new(change) };
            assert!(request.to_line().len() <= MAX_REQUEST);
        }
        assert_eq!(super::parts(&FilterSet::default()), [Vec::<String>::new()]);
    }
}
