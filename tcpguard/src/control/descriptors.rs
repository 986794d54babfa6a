//! The process's descriptors: the limit raised as far as it goes, and how many of them connections may have. What is
//! kept from them is the operator's, who must get in when clients have taken all they can.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

use super::daemon::DaemonError;
use crate::service::Quota;

/// Kept for files that are opened for a moment.
const SPARE: usize = 16;
/// Room for fewer connections than this is worth a warning.
const FEW: usize = 1000;

/// Raises the limit: the usual soft one of 1024 is for programs that use select(2).
pub(super) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_err() {
        warn!(limit = limit.current, "the limit of descriptors stays, and bounds the connections");
    }
}

/// Those that relayed connections may have, one each.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    /// Shared with the services.
    pub(super) quota: Quota,
    /// How many there must be besides.
    needed: usize,
}

impl Descriptors {
    /// Leaves to connections what is neither open now nor kept for so many clients of the daemon's own. `wanted` is what the
    /// services' own limits allow.
    ///
    /// # Errors
    /// `Descriptors` when that is none.
    pub(super) fn share_out(&mut self, wanted: usize, clients: usize) -> Result<(), DaemonError> {
        self.needed = open_now() + clients + SPARE;
        self.want(wanted)
    }

    /// The same when the services' limits have changed since.
    ///
    /// # Errors
    /// As above, should the limit be lower by now.
    pub(super) fn want(&self, wanted: usize) -> Result<(), DaemonError> {
        self.quota.limit_to(room(wanted, self.needed)?);
        Ok(())
    }
}

/// How many relayed connections there is room for beside what is needed. The limit is raised beyond its hard value for as many
/// as are wanted, where that may be; what is missing is said.
fn room(wanted: usize, needed: usize) -> Result<usize, DaemonError> {
    let Some(mut limit) = getrlimit(Resource::Nofile).current else { return Ok(usize::MAX / 2) };
    let enough = (needed + wanted) as u64;
    let raised = Rlimit { current: Some(enough), maximum: Some(enough) };
    if limit < enough && setrlimit(Resource::Nofile, raised).is_ok() {
        limit = enough;
    }
    let room = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(needed);
    if room == 0 {
        return Err(DaemonError::Descriptors { limit, needed: needed as u64 });
    }
    if room < wanted {
        warn!(
            limit,
            room,
            wanted,
            "fewer descriptors than the services may have connections: raise the limit to {enough} (ulimit -Hn)"
        );
    } else if room < FEW && wanted == 0 {
        warn!(
            limit,
            room, "few descriptors: each relayed connection takes one; raise the limit (ulimit -Hn)"
        );
    }
    Ok(room)
}

/// Without /proc, more than a daemon with many queues has.
fn open_now() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(1024, Iterator::count)
}
