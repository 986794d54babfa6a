//! The zero point of one's own view of the counters: what they were at some moment, kept in a file of the user's, and what has
//! been counted since. The daemon and everybody else's view know nothing of it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::control::protocol::{Engine, Groups, ReasonCount, ServiceCount, Stats, is_amount};

use super::Failure;

/// What the counters were.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Zero {
    /// When, milliseconds since 1970.
    pub(super) taken_ms: u64,
    stats: Stats,
}

impl Zero {
    /// Now.
    pub(super) fn new(stats: Stats) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { taken_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX), stats }
    }

    /// Reads the one that this user took of the daemon behind this socket.
    pub(super) fn load(control: &Path) -> Result<Self, Failure> {
        let path = file(control)?;
        let read = std::fs::read(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::BadInput(
                "there is no zero point yet: `tcpguard stats --reset-view` sets one, for you alone"
                    .to_owned(),
            ),
            _ => Failure::Failed(format!("{}: {error}", path.display())),
        })?;
        serde_json::from_slice(&read).map_err(|_| {
            let why = "not a zero point of this version; `tcpguard stats --reset-view` sets another";
            Failure::Failed(format!("{}: {why}", path.display()))
        })
    }

    /// Keeps it for later.
    pub(super) fn save(&self, control: &Path) -> Result<(), Failure> {
        let path = file(control)?;
        let failed = |error: io::Error| Failure::Failed(format!("{}: {error}", path.display()));
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed)?;
        }
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        // Whoever reads it meanwhile finds the old one or the new one.
        let new = path.with_extension("new");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path)).map_err(failed)
    }

    /// What has been counted since. Whatever began anew meanwhile counts from its own beginning.
    pub(super) fn until(&self, now: &Stats) -> Stats {
        let Stats { time_ms, uptime_ms, reasons, services, dry_run, states, totals, engines, left_out } = now;
        // The clock is the machine's: it begins at 0 when that does.
        let (booted, started) =
            (*time_ms < self.stats.time_ms, time_ms.saturating_sub(*uptime_ms) > self.stats.time_ms);
        let nothing = Stats::default();
        let lasting = if booted { &nothing } else { &self.stats };
        let fleeting = if booted || started { &nothing } else { &self.stats };
        Stats {
            time_ms: *time_ms,
            uptime_ms: *uptime_ms,
            reasons: reasons.iter().map(|count| reason(&lasting.reasons, count)).collect(),
            services: services.iter().map(|count| service(&fleeting.services, count)).collect(),
            dry_run: dry_run.iter().map(|count| service(&fleeting.dry_run, count)).collect(),
            states: states.clone(),
            totals: groups(&fleeting.totals, totals),
            engines: engines.iter().map(|counted| engine(&fleeting.engines, counted)).collect(),
            left_out: left_out.clone(),
        }
    }
}

/// Where a user's zero point is kept, one for each daemon.
fn file(control: &Path) -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
    let state = state.ok_or_else(|| {
        Failure::BadInput("nowhere to keep a zero point: neither XDG_STATE_HOME nor HOME is set".to_owned())
    })?;
    let name = control.display().to_string().replace('/', "!");
    Ok(state.join("tcpguard").join(format!("stats{name}.json")))
}

/// A counter that is lower than it was began anew.
fn less(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

fn reason(before: &[ReasonCount], now: &ReasonCount) -> ReasonCount {
    let Some(before) = before.iter().find(|before| before.name == now.name) else { return now.clone() };
    let per_cpu = now.per_cpu.iter().zip(&before.per_cpu).map(|(&now, &before)| less(before, now)).collect();
    ReasonCount {
        total: less(before.total, now.total),
        per_cpu,
        dry_run: less(before.dry_run, now.dry_run),
        ..now.clone()
    }
}

fn service(before: &[ServiceCount], now: &ServiceCount) -> ServiceCount {
    let Some(before) = before.iter().find(|before| before.listen == now.listen) else { return now.clone() };
    ServiceCount {
        listen: now.listen,
        mode: now.mode.clone(),
        state: now.state.clone(),
        syns: less(before.syns, now.syns),
        cookies_sent: less(before.cookies_sent, now.cookies_sent),
        stateful: less(before.stateful, now.stateful),
        acks_valid: less(before.acks_valid, now.acks_valid),
        acks_invalid: less(before.acks_invalid, now.acks_invalid),
        redirected: less(before.redirected, now.redirected),
        reset: less(before.reset, now.reset),
        dropped: less(before.dropped, now.dropped),
        passed: less(before.passed, now.passed),
    }
}

fn engine(before: &[Engine], now: &Engine) -> Engine {
    let same = |other: &&Engine| (&other.interface, other.queue) == (&now.interface, now.queue);
    let Some(before) = before.iter().find(same) else { return now.clone() };
    Engine { counters: groups(&before.counters, &now.counters), ..now.clone() }
}

fn groups(before: &Groups, now: &Groups) -> Groups {
    let counted = |group: &String, name: &String, count: u64| {
        let before = before.get(group).and_then(|group| group.get(name)).copied();
        let before = before.filter(|_| !is_amount(name)).unwrap_or(0);
        less(before, count)
    };
    let group = |(group, rows): (&String, &std::collections::BTreeMap<String, u64>)| {
        let rows = rows.iter().map(|(name, &count)| (name.clone(), counted(group, name, count)));
        (group.clone(), rows.collect())
    };
    now.iter().map(group).collect()
}
