//! The filter lists in the maps that XDP reads. A list is replaced whole: its tables go into the bank that XDP does not
//! read, one word names that bank, and what the old one still counted is fetched once its last reader is gone. No packet
//! sees half a list. What is on it is decided elsewhere.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use tcpguard_common::filter::{
    ALLOW, BANKS, DENY, Entry, FilterRule, HEADS, HIT_BLOCKS, HITS_PER_BLOCK, Head, LISTED_V4, LISTED_V6,
    Line, RULES, SECOND_BANK, SPANS, SpanV4, SpanV6, bank,
};
use tcpguard_common::flow::{V4, V6};
use tcpguard_common::map::name;

use super::bpf::{self, PerCpuArray};
use super::error::DataplaneError;
use super::maps::SettingsMap;
use super::pins::PinDir;
use super::shared::Table;
use crate::config::{Action, Prefix};

/// One prefix of the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterEntry {
    /// Where from.
    pub prefix: Prefix,
    /// What then.
    pub action: Action,
    /// When it stops to count, `CLOCK_MONOTONIC_COARSE` nanoseconds; 0 for never.
    pub expires: u64,
}

/// The lists as XDP sees them, and how often each entry was hit. Methods take milliseconds, tens of them for long lists:
/// not for a thread that has connections to serve.
#[derive(Debug)]
pub struct FilterTable {
    heads_v4: Table<Head>,
    heads_v6: Table<Head>,
    spans_v4: Table<SpanV4>,
    spans_v6: Table<SpanV6>,
    rules: Table<FilterRule>,
    hits: PerCpuArray,
    settings: SettingsMap,
    /// In the order of the rules, which start with 1.
    listed: Vec<Listed>,
}

/// An entry in force.
#[derive(Clone, Copy, Debug)]
struct Listed {
    entry: FilterEntry,
    /// Hits before this bank, less what its counter started from.
    before: u64,
}

impl FilterTable {
    pub(super) fn open(pins: &PinDir, settings: SettingsMap) -> Result<Self, DataplaneError> {
        let failed = |map| move |source| DataplaneError::Map { action: "open", map, source };
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| failed(name::FILTER_HITS)(source))?;
        let open = |map: &'static str| bpf::get(&pins.map(map)).map_err(failed(map));
        let fd: OwnedFd = open(name::FILTER_HITS)?;
        // SAFETY: the map was checked against this layout when the pins were opened.
        let hits = unsafe { PerCpuArray::from_fd(fd, cpus, HITS_PER_BLOCK as usize) };
        Ok(Self {
            heads_v4: Table::map(open(name::FILTER_HEADS_V4)?.as_fd(), BANKS * HEADS)
                .map_err(failed(name::FILTER_HEADS_V4))?,
            heads_v6: Table::map(open(name::FILTER_HEADS_V6)?.as_fd(), BANKS * HEADS)
                .map_err(failed(name::FILTER_HEADS_V6))?,
            spans_v4: Table::map(open(name::FILTER_SPANS_V4)?.as_fd(), BANKS * SPANS)
                .map_err(failed(name::FILTER_SPANS_V4))?,
            spans_v6: Table::map(open(name::FILTER_SPANS_V6)?.as_fd(), BANKS * SPANS)
                .map_err(failed(name::FILTER_SPANS_V6))?,
            rules: Table::map(open(name::FILTER_RULES)?.as_fd(), BANKS * RULES)
                .map_err(failed(name::FILTER_RULES))?,
            hits,
            settings,
            listed: Vec::new(),
        })
    }

    /// The entries in force, as last given to [`Self::replace`], ordered by prefix. A previous daemon's are unknown.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &FilterEntry> {
        self.listed.iter().map(|listed| &listed.entry)
    }

    /// How often each of [`Self::entries`] was the one that counted, since it was first given.
    ///
    /// # Errors
    ///
    /// A failed map access.
    pub fn hits(&self) -> Result<Vec<u64>, DataplaneError> {
        let counted = self.counted(bank(self.settings.filters()))?;
        let total = |(listed, counted): (&Listed, &u64)| listed.before.wrapping_add(*counted);
        Ok(self.listed.iter().zip(&counted).map(total).collect())
    }

    /// Puts these entries in force in place of all others; `entries` has no prefix twice, and at most
    /// [`MAX_FILTERS`](tcpguard_common::filter::MAX_FILTERS) of them. An entry that stays keeps its hits.
    ///
    /// # Errors
    ///
    /// A failed map access: the old list is in force.
    pub fn replace(&mut self, entries: impl IntoIterator<Item = FilterEntry>) -> Result<(), DataplaneError> {
        let mut entries: Vec<FilterEntry> = entries.into_iter().collect();
        entries.sort_unstable_by_key(|entry| entry.prefix);
        let old_bank = bank(self.settings.filters());
        let new_bank = (old_bank + 1) % BANKS;
        let families = self.fill(new_bank, &entries);
        let start = self.counted(new_bank)?;
        self.settings.write_filters(families | if new_bank == 0 { 0 } else { SECOND_BANK })?;
        // From here on the new list is in force, whatever becomes of the old one's hits.
        wait_for_readers();
        let hits = self.final_hits(old_bank);
        let listed = |(entry, start): (FilterEntry, u64)| {
            let kept = hits.get(&(entry.prefix, entry.action)).copied().unwrap_or(0);
            Listed { entry, before: kept.wrapping_sub(start) }
        };
        self.listed = entries.into_iter().zip(start).map(listed).collect();
        Ok(())
    }

    /// The hits of the list that was in `bank`.
    fn final_hits(&self, bank: u32) -> HashMap<(Prefix, Action), u64> {
        let counted = self.counted(bank).unwrap_or_else(|error| {
            tracing::warn!(%error, "the hits of the filters so far are lost");
            Vec::new()
        });
        let total = |(listed, counted): (&Listed, u64)| {
            ((listed.entry.prefix, listed.entry.action), listed.before.wrapping_add(counted))
        };
        self.listed.iter().zip(counted).map(total).collect()
    }

    /// Writes the tables of a bank that nobody reads. Returns which families are in it.
    fn fill(&mut self, bank: u32, entries: &[FilterEntry]) -> u32 {
        let (v4, v6) = entries.split_at(entries.partition_point(|entry| entry.prefix.addr().is_ipv4()));
        let (heads, spans) = ((bank * HEADS) as usize, (bank * SPANS) as usize);
        let (mut families, mut next) = (0, Vec::with_capacity(entries.len()));
        if !v4.is_empty() {
            let line = Line::<V4>::cut(&numbered(v4, 1));
            self.heads_v4.store(heads, line.heads);
            self.spans_v4.store(spans, line.spans);
            next.extend(line.next);
            families |= LISTED_V4;
        }
        if !v6.is_empty() {
            let line = Line::<V6>::cut(&numbered(v6, 1 + v4.len() as u32));
            self.heads_v6.store(heads, line.heads);
            self.spans_v6.store(spans, line.spans);
            next.extend(line.next);
            families |= LISTED_V6;
        }
        let rule = |(entry, next): (&FilterEntry, u32)| FilterRule {
            expires: entry.expires,
            action: match entry.action {
                Action::Deny => DENY,
                Action::Allow => ALLOW,
            },
            next,
        };
        self.rules.store((bank * RULES) as usize + 1, entries.iter().zip(next).map(rule));
        families
    }

    /// The counters of a bank's rules from 1 on, over all CPUs.
    fn counted(&self, bank: u32) -> Result<Vec<u64>, DataplaneError> {
        let mut sums = Vec::with_capacity((HIT_BLOCKS * HITS_PER_BLOCK) as usize);
        for block in 0..HIT_BLOCKS {
            let failed = |source| DataplaneError::Map { action: "read", map: name::FILTER_HITS, source };
            let words = self.hits.lookup(bank * HIT_BLOCKS + block).map_err(failed)?;
            let mut sum = vec![0u64; HITS_PER_BLOCK as usize];
            for cpu in words.chunks_exact(sum.len()) {
                sum.iter_mut().zip(cpu).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
            }
            sums.extend(sum);
        }
        // Rule 0 is none.
        sums.remove(0);
        Ok(sums)
    }
}

/// The entries of one family, their rules numbered from `first` on.
fn numbered(entries: &[FilterEntry], first: u32) -> Vec<Entry> {
    let entry = |(rule, entry): (u32, &FilterEntry)| Entry {
        start: match entry.prefix.addr() {
            IpAddr::V4(addr) => addr.to_bits().into(),
            IpAddr::V6(addr) => addr.to_bits(),
        },
        len: entry.prefix.length(),
        rule,
        expires: entry.expires,
    };
    (first..).zip(entries).map(entry).collect()
}

/// Returns once every packet that may have read the old word is done with.
fn wait_for_readers() {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: no pointers. XDP runs inside an RCU read-side section, and this command waits for all that are under way
    // (membarrier(2), synchronize_rcu).
    if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } != 0 {
        // Kernels with nohz_full CPUs do not offer it. A packet takes microseconds.
        std::thread::sleep(Duration::from_millis(20));
    }
}
