//! The filter lists of a running guard: what a client may do to them, judged whole before anything is changed. Blocking:
//! a long list takes tens of milliseconds, and the guard's thread has other clients.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tcpguard_common::filter::MAX_FILTERS;

use crate::config::filters::{contradiction, too_many};
use crate::config::{Action, Filter, FilterSet, Prefix, Service, ServiceMode};
use crate::dataplane::{DataplaneError, FilterEntry, FilterTable, coarse_clock_ns};

use super::protocol::{self as wire, Reply};

/// Lists that may be on their way in at once.
const MAX_LOADS: usize = 4;
/// A list that got no further for so long is given up.
const LOAD_PATIENCE: Duration = Duration::from_secs(30);

/// The lists, and those that are arriving.
#[derive(Debug)]
pub(super) struct Filters {
    table: FilterTable,
    loads: Vec<Load>,
}

/// A list that arrives in parts.
#[derive(Debug)]
struct Load {
    number: u64,
    last_part: Instant,
    filters: FilterSet,
}

/// What a client wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Put these into the lists; what was said of their prefixes is replaced, but not turned round.
    Add(FilterSet),
    /// Let these be the lists.
    Replace(FilterSet),
    /// Take this one out.
    Remove(Prefix),
    /// Take all out, or all of one kind.
    Flush(Option<Action>),
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    /// It cannot be made.
    #[error("{0}")]
    BadInput(String),
    /// The kernel did not take it.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// A defect.
    #[error("the filter lists were not changed: {0}")]
    Panic(String),
}

impl From<FilterError> for Reply {
    fn from(error: FilterError) -> Self {
        match error {
            FilterError::BadInput(message) => Self::bad_input(message),
            FilterError::Dataplane(_) | FilterError::Panic(_) => Self::failed(error.to_string()),
        }
    }
}

type List = BTreeMap<Prefix, FilterEntry>;

/// The lists at one moment.
#[derive(Debug)]
pub(super) struct Snapshot(List);

/// The lists, within reach of every thread that may take its time over them.
#[derive(Clone, Debug)]
pub(super) struct SharedFilters(Arc<Mutex<Filters>>);

impl SharedFilters {
    /// The lists of a guard that starts: those of its configuration, in place of a previous daemon's.
    pub(super) fn start(table: FilterTable, configured: &FilterSet) -> Result<Self, DataplaneError> {
        Ok(Self(Arc::new(Mutex::new(Filters::start(table, configured)?))))
    }

    /// Does something with them on a thread where nobody waits.
    ///
    /// # Errors
    ///
    /// What `what` says; a panic in it is one, too.
    pub(super) async fn with<T: Send + 'static>(
        &self,
        what: impl FnOnce(&mut Filters) -> Result<T, FilterError> + Send + 'static,
    ) -> Result<T, FilterError> {
        let filters = Arc::clone(&self.0);
        // A list is replaced whole: a panic leaves the old one.
        let done = tokio::task::spawn_blocking(move || {
            what(&mut filters.lock().unwrap_or_else(PoisonError::into_inner))
        });
        done.await.unwrap_or_else(|panic| Err(FilterError::Panic(panic.to_string())))
    }
}

impl Filters {
    fn start(mut table: FilterTable, configured: &FilterSet) -> Result<Self, DataplaneError> {
        let now = coarse_clock_ns();
        table.replace(configured.iter().map(|filter| entry(filter, now)))?;
        Ok(Self { table, loads: Vec::new() })
    }

    /// Makes a change, or says why not and leaves everything as it was. `caller` is a client's own address where it has
    /// a session through a protected port to lose.
    pub(super) fn change(
        &mut self,
        change: &Change,
        caller: Option<IpAddr>,
    ) -> Result<wire::FiltersChanged, FilterError> {
        let now = coarse_clock_ns();
        let old = self.alive(now);
        let new = changed(&old, change, now).map_err(FilterError::BadInput)?;
        if let Some(caller) = caller.filter(|&caller| is_denied(&new, caller) && !is_denied(&old, caller)) {
            return Err(FilterError::BadInput(format!(
                "this would drop your own session from {caller} to a protected port; --force does it all the same"
            )));
        }
        let summary = wire::FiltersChanged {
            added: new.keys().filter(|&prefix| !old.contains_key(prefix)).count() as u64,
            removed: old.keys().filter(|&prefix| !new.contains_key(prefix)).count() as u64,
            total: new.len() as u64,
            unconfirmed_ms: None,
        };
        self.table.replace(new.into_values())?;
        Ok(summary)
    }

    /// Takes in one part of a list. With `last` the list is whole, and returned.
    pub(super) fn load(
        &mut self,
        number: u64,
        part: &[String],
        last: bool,
    ) -> Result<Option<FilterSet>, FilterError> {
        let now = Instant::now();
        self.loads.retain(|load| now.duration_since(load.last_part) < LOAD_PATIENCE);
        let mut load = match self.loads.iter().position(|load| load.number == number) {
            Some(index) => self.loads.swap_remove(index),
            None if self.loads.len() >= MAX_LOADS => {
                return Err(FilterError::BadInput(format!(
                    "{MAX_LOADS} lists are being loaded already; try again when they are in"
                )));
            }
            None => Load { number, last_part: now, filters: FilterSet::default() },
        };
        // A list with something wrong in it is forgotten whole.
        for text in part {
            Filter::parse(text, None)
                .and_then(|filter| load.filters.insert(filter))
                .map_err(FilterError::BadInput)?;
        }
        if last {
            return Ok(Some(load.filters));
        }
        self.loads.push(Load { last_part: now, ..load });
        Ok(None)
    }

    /// The lists with their hits, at most `limit` of them.
    pub(super) fn list(&self, limit: usize) -> Result<wire::Filters, FilterError> {
        let now = coarse_clock_ns();
        let hits = self.table.hits()?;
        let mut reply = wire::Filters { total: 0, denied: 0, allowed: 0, hits: 0, filters: Vec::new() };
        for (entry, hits) in self.table.entries().zip(hits).filter(|(entry, _)| is_alive(entry, now)) {
            reply.total += 1;
            reply.hits += hits;
            match entry.action {
                Action::Deny => reply.denied += 1,
                Action::Allow => reply.allowed += 1,
            }
            if reply.filters.len() < limit {
                reply.filters.push(wire::Filter {
                    action: entry.action.to_string(),
                    prefix: entry.prefix.to_string(),
                    hits,
                    // Rounded up: what is listed with time left has some.
                    expires_ms: (entry.expires != 0).then(|| (entry.expires - now).div_ceil(1_000_000)),
                });
            }
        }
        Ok(reply)
    }

    /// The lists as a configuration has them.
    pub(super) fn configured(&self) -> Result<FilterSet, FilterError> {
        let now = coarse_clock_ns();
        let mut set = FilterSet::default();
        for entry in self.table.entries().filter(|entry| is_alive(entry, now)) {
            // A file knows milliseconds; what is left lives at least one.
            let left = (entry.expires != 0)
                .then(|| Duration::from_millis((entry.expires - now).div_ceil(1_000_000)));
            let filter = Filter { prefix: entry.prefix, action: entry.action, expires: left };
            set.insert(filter).map_err(FilterError::BadInput)?;
        }
        Ok(set)
    }

    /// Takes out what expired; XDP ignores it already. Returns how many that were.
    pub(super) fn forget_expired(&mut self) -> Result<usize, FilterError> {
        let now = coarse_clock_ns();
        let expired = self.table.entries().filter(|entry| !is_alive(entry, now)).count();
        if expired > 0 {
            self.table.replace(self.alive(now).into_values())?;
        }
        Ok(expired)
    }

    /// The lists as they are, for [`Self::restore`].
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot(self.alive(coarse_clock_ns()))
    }

    /// Puts the lists back, without what has expired meanwhile.
    pub(super) fn restore(&mut self, Snapshot(mut list): Snapshot) -> Result<(), FilterError> {
        let now = coarse_clock_ns();
        list.retain(|_, entry| is_alive(entry, now));
        // A long list takes a while to put in, and is most often there.
        if list != self.alive(now) {
            self.table.replace(list.into_values())?;
        }
        Ok(())
    }

    fn alive(&self, now: u64) -> List {
        let alive = self.table.entries().filter(|entry| is_alive(entry, now));
        alive.map(|entry| (entry.prefix, *entry)).collect()
    }
}

/// A client's own address, if its session runs through a protected port.
pub(super) fn caller(session: &wire::Session, services: &[Service]) -> Option<IpAddr> {
    through(session, services).map(|_| session.peer.to_canonical())
}

/// The service that a client's session runs through, unless that is off.
pub(super) fn through<'a>(session: &wire::Session, services: &'a [Service]) -> Option<&'a Service> {
    let local = SocketAddr::new(session.local.ip().to_canonical(), session.local.port());
    let is_local = |listen: SocketAddr| {
        let any = listen.ip().is_unspecified() && listen.is_ipv4() == local.is_ipv4();
        listen.port() == local.port() && (any || listen.ip() == local.ip())
    };
    let exact = services.iter().find(|service| service.listen == local);
    let service = exact.or_else(|| services.iter().find(|service| is_local(service.listen)));
    service.filter(|service| service.mode != ServiceMode::Off)
}

fn entry(filter: &Filter, now: u64) -> FilterEntry {
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let expires = filter.expires.map_or(0, |time| now.saturating_add(nanoseconds(time)));
    FilterEntry { prefix: filter.prefix, action: filter.action, expires }
}

fn is_alive(entry: &FilterEntry, now: u64) -> bool {
    entry.expires == 0 || now < entry.expires
}

/// The lists after a change.
fn changed(old: &List, change: &Change, now: u64) -> Result<List, String> {
    let mut new = match change {
        Change::Replace(_) => List::new(),
        _ => old.clone(),
    };
    match change {
        Change::Add(filters) | Change::Replace(filters) => {
            for filter in filters.iter() {
                match new.entry(filter.prefix) {
                    Entry::Occupied(held) if held.get().action != filter.action => {
                        let (prefix, held) = (filter.prefix, held.get().action);
                        return Err(format!(
                            "{}: remove it from what to {held} first",
                            contradiction(prefix)
                        ));
                    }
                    Entry::Occupied(mut held) => {
                        held.insert(entry(filter, now));
                    }
                    Entry::Vacant(place) => {
                        place.insert(entry(filter, now));
                    }
                }
            }
        }
        Change::Remove(prefix) => {
            if new.remove(prefix).is_none() {
                return Err(format!("{prefix} is not on the lists; `tcpguard filters` shows what is"));
            }
        }
        Change::Flush(action) => {
            new.retain(|_, entry| action.is_some_and(|action| entry.action != action));
        }
    }
    if new.len() > MAX_FILTERS as usize { Err(too_many()) } else { Ok(new) }
}

/// Whether the longest prefix around `addr` denies it.
fn is_denied(list: &List, addr: IpAddr) -> bool {
    let around = list.values().filter(|entry| entry.prefix.contains(addr));
    around.max_by_key(|entry| entry.prefix.length()).is_some_and(|entry| entry.action == Action::Deny)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lines: &[&str]) -> FilterSet {
        let mut set = FilterSet::default();
        for line in lines {
            set.insert(Filter::parse(line, None).unwrap()).unwrap();
        }
        set
    }

    fn list(lines: &[&str]) -> List {
        changed(&List::new(), &Change::Replace(set(lines)), 1000).unwrap()
    }

    #[test]
    fn a_change_is_made_whole_or_refused() {
        let old = list(&["deny 10.0.0.0/8", "allow 10.1.0.0/16"]);
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let add = |lines: &[&str]| Change::Add(set(lines));
        for (change, expected) in [
            (add(&["deny ::/0"]), Ok(vec!["deny 10.0.0.0/8", "allow 10.1.0.0/16", "deny ::/0"])),
            (add(&["deny ::/0", "deny 10.1.0.0/16"]), Err("10.1.0.0/16 is both denied and allowed")),
            (Change::Replace(set(&["deny 10.1.0.0/16"])), Ok(vec!["deny 10.1.0.0/16"])),
            (Change::Remove(prefix("10.0.0.0/8")), Ok(vec!["allow 10.1.0.0/16"])),
            (Change::Remove(prefix("10.0.0.0/9")), Err("10.0.0.0/9 is not on the lists")),
            (Change::Flush(Some(Action::Deny)), Ok(vec!["allow 10.1.0.0/16"])),
            (Change::Flush(Some(Action::Allow)), Ok(vec!["deny 10.0.0.0/8"])),
            (Change::Flush(None), Ok(vec![])),
        ] {
            match (changed(&old, &change, 1000), expected) {
                (Ok(new), Ok(expected)) => assert_eq!(new, list(&expected), "{change:?}"),
                (Err(error), Err(why)) => assert!(error.contains(why), "{change:?}: {error}"),
                (result, _) => panic!("{change:?}: {result:?}"),
            }
        }
        let full: Vec<String> = (0..MAX_FILTERS)
            .map(|host| format!("deny {}", std::net::Ipv6Addr::from_bits(host.into())))
            .collect();
        let full: Vec<&str> = full.iter().map(String::as_str).collect();
        assert_eq!(changed(&old, &add(&full), 0), Err("more than 100000 filters".to_owned()));
    }

    #[test]
    fn adding_what_is_there_sets_its_time_anew() {
        let old = list(&["deny 10.0.0.0/8 expires 1s"]);
        for (line, expires) in [
            ("deny 10.0.0.0/8", 0),
            ("deny 10.0.0.0/8 expires 1ms", 5_000_000),
            ("deny 11.0.0.0/8", 1_000_001_000),
        ] {
            let new = changed(&old, &Change::Add(set(&[line])), 4_000_000).unwrap();
            assert_eq!(new[&"10.0.0.0/8".parse().unwrap()].expires, expires, "{line}");
        }
    }

    #[test]
    fn only_a_session_through_a_protected_port_has_something_to_lose() {
        let services: Vec<Service> = ["192.0.2.1:22=off", "0.0.0.0:22=10.0.0.9:22", "[::]:2222=[::1]:22"]
            .map(|service| service.parse().unwrap())
            .into();
        for (local, peer, expected) in [
            ("192.0.2.1:22", "198.51.100.1", None),
            ("192.0.2.2:22", "198.51.100.1", Some("198.51.100.1")),
            ("192.0.2.2:23", "198.51.100.1", None),
            ("[::ffff:192.0.2.2]:22", "::ffff:198.51.100.1", Some("198.51.100.1")),
            ("[2001:db8::1]:22", "2001:db8::2", None),
            ("[2001:db8::1]:2222", "2001:db8::2", Some("2001:db8::2")),
        ] {
            let session = wire::Session { peer: peer.parse().unwrap(), local: local.parse().unwrap() };
            assert_eq!(caller(&session, &services), expected.map(|peer| peer.parse().unwrap()), "{local}");
        }
    }

    #[test]
    fn who_is_denied_depends_on_the_longest_prefix() {
        let list = list(&["deny 10.0.0.0/8", "allow 10.1.0.0/16", "deny 10.1.2.0/24", "deny ::/0"]);
        for (addr, denied) in
            [("10.9.9.9", true), ("10.1.9.9", false), ("10.1.2.9", true), ("11.0.0.1", false), ("::a", true)]
        {
            assert_eq!(is_denied(&list, addr.parse().unwrap()), denied, "{addr}");
        }
    }
}
