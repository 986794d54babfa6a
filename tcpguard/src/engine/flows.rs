//! The engine's duties towards the flow table that XDP reads: entries deleted in batches, put back when a tuple
//! lives again, replaced by fingerprints in TIME_WAIT, and swept for flows nobody adopted. Whether a segment
//! may open a connection is the stack's judgement, not this file's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::time::Duration;

use tcpguard_common::fingerprint::fingerprint;
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::map::Flow;

use super::stats::counters;
use crate::dataplane::{Census, Fingerprints, FlowScan, FlowTable, Heartbeat};
use crate::stack::{Instant, Origin};

/// Closed flows whose entries may wait for deletion: a batch costs one system call.
const DELETE_BATCH: usize = 256;
/// How long the first of them may wait. A client that reuses its port sooner is still recognised.
const DELETE_DELAY: Duration = Duration::from_millis(20);
/// How long it is remembered that a tuple has no entry of ours. A segment that XDP redirected before an entry was
/// deleted can be adopted after it: it sat in the receive ring meanwhile, far less than this.
const REMEMBER: Duration = Duration::from_secs(1);
/// How long it is believed whose a flow is without another look at the table. An owner changes only when a tuple is used
/// anew, and the first segment of that is always looked up.
const BELIEVE: Duration = Duration::from_secs(1);
/// Flows of other engines that are known at once. What comes beyond is looked up segment by segment.
const OWNERS: usize = 4096;
/// An entry older than this without a connection lost its first segment. XDP stamps entries with the coarse clock.
const UNADOPTED_AFTER: Duration = Duration::from_secs(1);
/// Pause between two sweeps of the table.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two slices of a sweep: with some hundred entries a slice, a few percent of a core.
const SLICE_PAUSE: Duration = Duration::from_millis(10);
/// The same while every entry has its connection, by the count of those who make and remove either: nothing is to be found
/// then, unless a count is wrong. The engine turns as often anyway.
const SETTLED_SLICE_PAUSE: Duration = Duration::from_millis(100);
/// The same while a flow's first segment may be among frames that were lost: a million entries in four seconds.
const HURRIED_SLICE_PAUSE: Duration = Duration::from_millis(2);
const HURRIED_SWEEP_PAUSE: Duration = Duration::from_millis(250);
/// An earlier daemon's entries are kept this long, so that a peer that speaks meets a reset and not silence.
const KEEP_OLD_GENERATION: Duration = Duration::from_secs(60);
/// How long one of them is kept after a reset: it may have been lost, or have answered a segment that was not the peer's.
/// Probes after one, two and four seconds have the peer ask for another. And how long the others are kept in a
/// [crowded](SharedTables::is_crowded) table, whose room is for who comes now.
const KEEP_DISMISSED: Duration = Duration::from_secs(5);
/// Pause between two resets of one of its flows, and how many flows are reset in each: whoever can forge segments of
/// such flows gets no more than that out of us.
const RESET_PAUSE: Duration = Duration::from_millis(100);
const RESETS: usize = 4096;

/// What XDP and an engine tell each other through maps.
pub trait SharedTables {
    /// The entry of one flow.
    fn lookup(&self, key: &AnyFlowKey) -> Option<Flow>;
    /// Writes one entry; whether there was room.
    fn insert(&self, key: &AnyFlowKey, flow: &Flow) -> bool;
    /// Removes entries; those that are not there are no error.
    fn remove_batch(&self, keys: &[AnyFlowKey]);
    /// Removes entries of an earlier daemon, likewise.
    fn remove_old(&self, keys: &[AnyFlowKey]);
    /// Whether the table has little room left for newcomers.
    fn is_crowded(&self) -> bool;
    /// How many entries it has, those of an earlier daemon not counted.
    fn entries(&self) -> usize;
    /// Appends the next slice of the table, some hundred entries, to `found`. `false` at the end, where the next
    /// call starts over.
    ///
    /// # Errors
    /// When the table could not be read. The next call goes on from there.
    fn scan(&mut self, found: &mut Vec<(AnyFlowKey, Flow)>) -> io::Result<bool>;

    /// Makes sure that XDP sees at first glance that `key` has an entry, which it has.
    fn show(&self, key: &AnyFlowKey);

    /// XDP hands segments of `key` over even without an entry, from now on. Returns whether another flow had to make way:
    /// its late segments are dropped.
    fn set_fingerprint(&self, key: &AnyFlowKey) -> bool;
    /// It no longer does.
    fn clear_fingerprint(&self, key: &AnyFlowKey);
    /// Whether it does.
    fn has_fingerprint(&self, key: &AnyFlowKey) -> bool;

    /// The engine is alive at `now`, nanoseconds of `CLOCK_MONOTONIC`, and its receive ring is under pressure or not.
    fn beat(&self, now: u64, under_pressure: bool);
}

/// The kernel's maps. A system call that fails on them is as good as an entry that is not there: the sweep tries
/// again, and the peer retransmits.
pub struct KernelTables {
    flows: FlowTable,
    scan: FlowScan,
    fingerprints: Fingerprints,
    hash_key: [u64; 2],
    heartbeat: Heartbeat,
    census: Census,
}

/// No XDP: an engine whose frames come from elsewhere is told nothing and tells nothing.
pub struct NoTables {
    /// The entry that every flow has.
    pub flow: Option<Flow>,
}

impl SharedTables for NoTables {
    fn lookup(&self, _: &AnyFlowKey) -> Option<Flow> {
        self.flow
    }

    fn insert(&self, _: &AnyFlowKey, _: &Flow) -> bool {
        true
    }

    fn remove_batch(&self, _: &[AnyFlowKey]) {}

    fn remove_old(&self, _: &[AnyFlowKey]) {}

    fn is_crowded(&self) -> bool {
        false
    }

    fn entries(&self) -> usize {
        0
    }

    fn scan(&mut self, _: &mut Vec<(AnyFlowKey, Flow)>) -> io::Result<bool> {
        Ok(false)
    }

    fn show(&self, _: &AnyFlowKey) {}

    fn set_fingerprint(&self, _: &AnyFlowKey) -> bool {
        false
    }

    fn clear_fingerprint(&self, _: &AnyFlowKey) {}

    fn has_fingerprint(&self, _: &AnyFlowKey) -> bool {
        false
    }

    fn beat(&self, _: u64, _: bool) {}
}

counters! {
    /// Flow table work done, since the engine started.
    FlowCounters {
        /// Entries deleted after a final close.
        deleted = "deleted";
        /// Batches they went in: system calls.
        delete_batches = "delete-batches";
        /// Entries put back because their tuple lives again.
        reinserted = "reinserted";
        /// Entries that could not be put back: the map is full.
        reinsert_failed = "reinsert-failed";
        /// Connections adopted from their entry because their first segment was lost.
        swept = "swept";
        /// Entries removed because the stack would not adopt them.
        refused = "refused";
        /// Entries of an earlier daemon removed.
        old_generation = "old-generation";
        /// TIME_WAIT fingerprints that gave way to others: late segments of those flows are dropped.
        fingerprints_displaced = "fingerprints-displaced";
        /// Slices of the table that could not be read.
        scan_errors = "scan-errors";
        /// Slices that were read sooner than usual, because the receive ring had lost frames.
        hurried_slices = "hurried-slices";
    }
}

/// What the engine should do about one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Ours and of this daemon run.
    Mine(Flow),
    /// Another engine's, by XSKMAP index.
    Foreign(u32),
    /// An earlier daemon's: nobody has its connection.
    OldGeneration(Flow),
    /// There is no entry.
    Missing,
}

/// One engine's view of the flow table.
pub(crate) struct Ownership<T: SharedTables> {
    tables: T,
    engine: u32,
    generation: u32,
    started: Instant,
    /// To be deleted, and since when the first of them waits.
    closing: HashSet<AnyFlowKey>,
    closing_since: Option<Instant>,
    batch: Vec<AnyFlowKey>,
    /// Tuples whose entry was deleted, or found to be missing or not ours, in the present and in the previous
    /// [`REMEMBER`].
    absent: [HashSet<AnyFlowKey>; 2],
    rotated: Instant,
    /// An earlier daemon's flows that were reset in the present [`RESET_PAUSE`].
    resets: HashSet<AnyFlowKey>,
    resets_since: Instant,
    /// Those that were reset and whose entries are to go, and when.
    dismissed: VecDeque<(Instant, AnyFlowKey)>,
    /// Other engines' flows that were met in the present [`BELIEVE`], and their owners.
    owners: HashMap<AnyFlowKey, u32>,
    owners_since: Instant,
    next_slice: Instant,
    /// When the present sweep began, unless the next is still to begin.
    sweep_began: Option<Instant>,
    /// When the last sweep began that is over.
    covered: Instant,
    /// When frames were last lost; `None` once a whole sweep has looked for what their flows lack.
    lost: Option<Instant>,
    /// Sweeps finished, and whether the present one probes the peers of flows that an earlier daemon had.
    sweeps: u64,
    probing: bool,
    /// Whether the present sweep met an earlier daemon's entries, and whether there may be any.
    met_old: bool,
    old_possible: bool,
    found: Vec<(AnyFlowKey, Flow)>,
    pub(crate) counters: FlowCounters,
}

impl<T: SharedTables> Ownership<T> {
    pub(crate) fn new(tables: T, engine: u32, generation: u32, now: Instant) -> Self {
        Self {
            tables,
            engine,
            generation,
            started: now,
            closing: HashSet::new(),
            closing_since: None,
            batch: Vec::new(),
            absent: [HashSet::new(), HashSet::new()],
            rotated: now,
            resets: HashSet::new(),
            resets_since: now,
            dismissed: VecDeque::new(),
            owners: HashMap::new(),
            owners_since: now,
            next_slice: now + SWEEP_PAUSE,
            sweep_began: None,
            covered: now,
            lost: None,
            sweeps: 0,
            probing: true,
            met_old: false,
            old_possible: true,
            found: Vec::new(),
            counters: FlowCounters::default(),
        }
    }

    /// The engine is alive.
    pub(crate) fn beat(&self, now: Instant, under_pressure: bool) {
        self.tables.beat(now.0, under_pressure);
    }

    /// Whether XDP hands segments of `key` over without an entry.
    pub(crate) fn has_fingerprint(&self, key: &AnyFlowKey) -> bool {
        self.tables.has_fingerprint(key)
    }

    /// Whether an earlier daemon's entries may still be in the table. New ones never come.
    pub(crate) fn old_generation_possible(&self) -> bool {
        self.old_possible
    }

    /// The connection is gone for good: its entry goes with the next batch.
    pub(crate) fn released(&mut self, now: Instant, key: AnyFlowKey) {
        self.closing.insert(key);
        self.closing_since.get_or_insert(now);
    }

    /// The connection went to TIME_WAIT. The fingerprint comes first: XDP must know the flow by one or the other.
    pub(crate) fn time_wait(&mut self, now: Instant, key: AnyFlowKey) {
        if self.tables.set_fingerprint(&key) {
            self.counters.fingerprints_displaced += 1;
        }
        self.released(now, key);
    }

    /// TIME_WAIT is over, or gave way to a new connection.
    pub(crate) fn time_wait_over(&mut self, key: AnyFlowKey) {
        self.tables.clear_fingerprint(&key);
        // Segments that XDP redirected for the fingerprint's sake may still be in the ring.
        self.note_absent(key);
    }

    /// XDP has no entry of this tuple that is ours: should the stack adopt it, one is due.
    pub(crate) fn note_absent(&mut self, key: AnyFlowKey) {
        self.absent[0].insert(key);
    }

    /// The stack adopted a connection. XDP inserted its entry unless it knew the tuple already: by an entry of an
    /// earlier incarnation or owner, which may be gone meanwhile, or by a fingerprint. `origin` describes the
    /// connection.
    pub(crate) fn adopted(&mut self, now: Instant, key: AnyFlowKey, origin: impl FnOnce() -> Option<Origin>) {
        let absent = self.absent.iter_mut().fold(false, |found, keys| keys.remove(&key) | found);
        let stale = self.closing.contains(&key) || absent || self.tables.has_fingerprint(&key);
        if stale && let Some(origin) = origin() {
            self.insert(now, key, &origin);
        }
    }

    /// Makes XDP hand over a flow of ours that it would not recognise by a cookie.
    pub(crate) fn insert(&mut self, now: Instant, key: AnyFlowKey, origin: &Origin) {
        self.closing.remove(&key);
        let Origin { link, seq, ack } = origin;
        let flow = Flow {
            created: now.0,
            generation: self.generation,
            owner: self.engine,
            seq: seq.0,
            ack: ack.0,
            peer_mac: link.dst,
            vlan_count: link.vlan.count,
            vlan: link.vlan.tags,
            ..Flow::default()
        };
        if self.tables.insert(&key, &flow) {
            self.counters.reinserted += 1;
        } else {
            self.counters.reinsert_failed += 1;
        }
    }

    /// Whose flow a segment is that the stack does not know. One system call.
    pub(crate) fn claim(&self, key: &AnyFlowKey) -> Claim {
        match self.tables.lookup(key).map_or(Claim::Missing, |flow| self.classify(flow)) {
            // What we closed must not be found again. It is not deleted before its time: until a new incarnation's
            // takes its place, XDP would make another, and the engine of its queue a second connection.
            Claim::Mine(_) if self.closing.contains(key) => Claim::Missing,
            claim => claim,
        }
    }

    /// The other engine that a flow was found to be owned by a moment ago.
    pub(crate) fn known_owner(&mut self, now: Instant, key: &AnyFlowKey) -> Option<u32> {
        if now >= self.owners_since + BELIEVE {
            self.owners_since = now;
            self.owners.clear();
        }
        self.owners.get(key).copied()
    }

    /// Notes which engine owns a flow; whether there was room.
    pub(crate) fn note_owner(&mut self, key: AnyFlowKey, owner: u32) -> bool {
        let has_room = self.owners.len() < OWNERS;
        if has_room {
            self.owners.insert(key, owner);
        }
        has_room
    }

    fn classify(&self, flow: Flow) -> Claim {
        if flow.generation != self.generation {
            Claim::OldGeneration(flow)
        } else if flow.owner != self.engine {
            Claim::Foreign(flow.owner)
        } else {
            Claim::Mine(flow)
        }
    }

    /// Deletes what is due. At most one system call a family.
    pub(crate) fn delete_due(&mut self, now: Instant) {
        if now >= self.rotated + REMEMBER {
            self.rotated = now;
            self.absent.swap(0, 1);
            self.absent[0].clear();
        }
        self.remove_dismissed(now);
        let Some(since) = self.closing_since else { return };
        if self.closing.len() >= DELETE_BATCH || now >= since + DELETE_DELAY {
            self.flush();
        }
    }

    /// Deletes all that waits.
    pub(crate) fn flush(&mut self) {
        self.closing_since = None;
        if self.closing.is_empty() {
            return;
        }
        self.batch.clear();
        self.batch.extend(self.closing.drain());
        self.tables.remove_batch(&self.batch);
        self.absent[0].extend(self.batch.iter().copied());
        self.counters.deleted += self.batch.len() as u64;
        self.counters.delete_batches += 1;
    }

    /// When [`Self::delete_due`] or [`Self::sweep`] wants to be called next.
    pub(crate) fn deadline(&self) -> Instant {
        let closing = self.closing_since.map(|since| since + DELETE_DELAY);
        let dismissed = self.dismissed.front().map(|&(due, _)| due);
        [closing, dismissed].into_iter().flatten().fold(self.next_slice, Instant::min)
    }

    /// Frames that XDP redirected were lost: there may be first segments among them, which nobody will send again. Sweeps
    /// hurry until one of them has met every flow that the loss can have cut off.
    pub(crate) fn note_loss(&mut self, now: Instant) {
        self.lost = Some(now);
        self.next_slice = self.next_slice.min(now + HURRIED_SWEEP_PAUSE);
    }

    /// Entries that wait for deletion.
    pub(crate) fn closing_count(&self) -> usize {
        self.closing.len()
    }

    /// How many entries this engine has removed.
    pub(crate) fn removed_count(&self) -> u64 {
        self.counters.deleted + self.counters.old_generation
    }

    /// One slice of the sweep when it is due. `is_settled` says, of the number of entries there are and the time when the last
    /// whole sweep began, whether all of them have their connections; sweeps then take their time. `offer` shows the stack this engine's entries, so that it adopts those
    /// whose first segment was lost. `is_stray` says whether this engine looks after entries of that owner, who is
    /// gone.
    pub(crate) fn sweep(
        &mut self,
        now: Instant,
        is_settled: impl FnOnce(usize, Instant) -> bool,
        is_stray: impl Fn(u32) -> bool,
        mut offer: impl FnMut(Offer, AnyFlowKey, &Flow) -> Swept,
    ) {
        if now < self.next_slice {
            return;
        }
        let began = *self.sweep_began.get_or_insert(now);
        self.counters.hurried_slices += u64::from(self.lost.is_some());
        let mut found = std::mem::take(&mut self.found);
        let mut outlived = Vec::new();
        // Not before every one was probed.
        let is_over = now >= self.started + KEEP_OLD_GENERATION
            || self.sweeps > 0 && now >= self.started + KEEP_DISMISSED && self.tables.is_crowded();
        let more = self.tables.scan(&mut found);
        for (key, flow) in found.drain(..) {
            if self.closing.contains(&key) || !(flow.owner == self.engine || is_stray(flow.owner)) {
                continue;
            }
            match self.classify(flow) {
                Claim::Missing | Claim::Foreign(_) => {}
                Claim::OldGeneration(flow) => {
                    self.met_old = true;
                    if is_over {
                        outlived.push(key);
                    } else if self.probing {
                        offer(Offer::Probe, key, &flow);
                    }
                }
                Claim::Mine(flow) if Instant(flow.created) + UNADOPTED_AFTER <= now => {
                    // XDP may have made it while the batch that removed its predecessor was struck out.
                    self.tables.show(&key);
                    let swept = offer(Offer::Adopt, key, &flow);
                    self.account(now, key, swept);
                }
                Claim::Mine(_) => {}
            }
        }
        self.found = found;
        self.remove_old(outlived);
        let (slice_pause, sweep_pause) = match self.lost {
            Some(_) => (HURRIED_SLICE_PAUSE, HURRIED_SWEEP_PAUSE),
            None if !self.old_possible && is_settled(self.tables.entries(), self.covered) => {
                (SETTLED_SLICE_PAUSE, SWEEP_PAUSE)
            }
            None => (SLICE_PAUSE, SWEEP_PAUSE),
        };
        self.next_slice = now + if matches!(more, Ok(true)) { slice_pause } else { sweep_pause };
        match more {
            Ok(true) => {}
            Ok(false) => {
                self.sweeps += 1;
                self.sweep_began = None;
                self.covered = began;
                self.lost = self.lost.filter(|&lost| began < lost + UNADOPTED_AFTER);
                self.old_possible = std::mem::take(&mut self.met_old);
                // Twice as long after each: a peer that does not answer will hardly do so the next second.
                self.probing = self.sweeps.is_power_of_two();
            }
            // What was not seen may be anything.
            Err(_) => self.counters.scan_errors += 1,
        }
    }

    /// Whether a flow that an earlier daemon had may be reset now; if so, not again for a while, and its entry is to go.
    pub(crate) fn may_reset(&mut self, now: Instant, key: AnyFlowKey) -> bool {
        if now >= self.resets_since + RESET_PAUSE {
            self.resets_since = now;
            self.resets.clear();
        }
        let may = self.resets.len() < RESETS && self.resets.insert(key);
        if may {
            self.dismissed.push_back((now + KEEP_DISMISSED, key));
        }
        may
    }

    /// Removes entries whose peers were reset: after a while, or at once where a peer that comes again at once would find no
    /// room.
    fn remove_dismissed(&mut self, now: Instant) {
        if self.dismissed.is_empty() {
            return;
        }
        let at_once = self.tables.is_crowded();
        let is_due = |&&(due, _): &&(Instant, AnyFlowKey)| at_once || due <= now;
        let due = self.dismissed.iter().take(DELETE_BATCH).take_while(is_due).count();
        let keys = self.dismissed.drain(..due).map(|(_, key)| key).collect();
        self.remove_old(keys);
    }

    /// Entries of an earlier daemon are of no more use. At once, and not with a later batch: the tuple may live again at
    /// another engine, whose entry takes the place of the old one.
    fn remove_old(&mut self, mut keys: Vec<AnyFlowKey>) {
        let is_old = |flow| matches!(self.classify(flow), Claim::OldGeneration(_));
        keys.retain(|key| self.tables.lookup(key).is_some_and(is_old));
        if !keys.is_empty() {
            self.tables.remove_old(&keys);
            self.counters.old_generation += keys.len() as u64;
        }
    }

    /// Counts what the stack made of an entry of ours, and gives up the entry if it made nothing.
    pub(crate) fn account(&mut self, now: Instant, key: AnyFlowKey, swept: Swept) {
        match swept {
            Swept::Known | Swept::Later => {}
            Swept::Adopted => self.counters.swept += 1,
            Swept::Refused => {
                self.counters.refused += 1;
                self.released(now, key);
            }
        }
    }
}

/// What the sweep wants of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Nothing: an earlier daemon had the connection. Make the peer speak, so that it meets a reset.
    Probe,
    /// Adopt the connection from the entry if it has not.
    Adopt,
}

/// What the stack made of an entry of the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    /// It has the connection.
    Known,
    /// It had not, and adopted it from the entry.
    Adopted,
    /// It has no room in the accept queue: the next sweep offers it again.
    Later,
    /// It will not adopt it.
    Refused,
}

impl KernelTables {
    /// The tables of one engine. `hash_key` is that of the settings, which keys the fingerprints.
    pub fn new(
        flows: FlowTable,
        fingerprints: Fingerprints,
        hash_key: [u64; 2],
        heartbeat: Heartbeat,
        census: Census,
    ) -> Self {
        Self { scan: flows.scan(), flows, fingerprints, hash_key, heartbeat, census }
    }

    /// A flow's bucket and its fingerprint.
    fn place(&self, key: &AnyFlowKey) -> (u32, u32) {
        match key {
            AnyFlowKey::V4(key) => fingerprint(self.hash_key, key),
            AnyFlowKey::V6(key) => fingerprint(self.hash_key, key),
        }
    }
}

impl SharedTables for KernelTables {
    fn lookup(&self, key: &AnyFlowKey) -> Option<Flow> {
        self.flows.lookup(key).ok().flatten()
    }

    fn insert(&self, key: &AnyFlowKey, flow: &Flow) -> bool {
        // An entry that is there may be removed by another engine at any moment, and one that comes into being uncounted would
        // be missed by the census for good. Each look is followed by another only if that has just happened.
        for _ in 0..4 {
            match self.flows.insert_new(key, flow) {
                Ok(true) => {
                    self.census.opened(key);
                    return true;
                }
                Ok(false) => {}
                Err(_) => return false,
            }
            let was_old = self.lookup(key).is_some_and(|old| old.generation != flow.generation);
            match self.flows.replace(key, flow) {
                Ok(true) => {
                    if was_old {
                        self.census.replaced(key);
                    }
                    return true;
                }
                Ok(false) => {}
                Err(_) => return false,
            }
        }
        false
    }

    fn remove_batch(&self, keys: &[AnyFlowKey]) {
        // What stays behind is found by the sweep, which the stack tells that the flow has closed.
        let _ = self.flows.remove_batch(keys, |key| self.census.closed(key));
    }

    fn remove_old(&self, keys: &[AnyFlowKey]) {
        // What stays behind the sweep finds again.
        let _ = self.flows.remove_batch(keys, |key| self.census.old_removed(key));
    }

    fn is_crowded(&self) -> bool {
        self.census.is_crowded(&self.flows)
    }

    fn entries(&self) -> usize {
        // An entry may be gone before whoever made it has counted it.
        usize::try_from(self.census.entries()).unwrap_or(0)
    }

    fn scan(&mut self, found: &mut Vec<(AnyFlowKey, Flow)>) -> io::Result<bool> {
        self.scan.next_slice(|key, flow| found.push((key, *flow)))
    }

    fn show(&self, key: &AnyFlowKey) {
        self.flows.show(key);
    }

    fn set_fingerprint(&self, key: &AnyFlowKey) -> bool {
        let (bucket, word) = self.place(key);
        self.fingerprints.set(bucket, word)
    }

    fn clear_fingerprint(&self, key: &AnyFlowKey) {
        let (bucket, word) = self.place(key);
        self.fingerprints.clear(bucket, word);
    }

    fn has_fingerprint(&self, key: &AnyFlowKey) -> bool {
        let (bucket, word) = self.place(key);
        self.fingerprints.contains(bucket, word)
    }

    fn beat(&self, now: u64, under_pressure: bool) {
        self.heartbeat.beat(now, under_pressure);
    }
}
