//! The flow maps of both families as one table. It stores what it is told: who owns a flow is the engine's business.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use tcpguard_common::flow::{Address, AnyFlowKey, FlowKey, V4, V6};
use tcpguard_common::known::{BUCKETS, CROWDED, Place};
use tcpguard_common::map::Flow;

use super::bpf::{ANY, EXIST, Map, NOEXIST};
use super::shared::Front;

/// The flows XDP knows, shared with it. Cheap to clone, usable from any thread; every method is a system call and a few words of memory.
#[derive(Clone, Debug)]
pub struct FlowTable {
    v4: Map<FlowKey<V4>, Flow>,
    v6: Map<FlowKey<V6>, Flow>,
    capacity: u32,
    /// Every change of the maps is followed by the same here.
    pub(super) front: Front,
}

impl FlowTable {
    pub(super) fn new(
        v4: Map<FlowKey<V4>, Flow>,
        v6: Map<FlowKey<V6>, Flow>,
        capacity: u32,
        front: Front,
    ) -> Self {
        Self { v4, v6, capacity, front }
    }

    /// How many flows fit, per family.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The flow under `key`.
    ///
    /// # Errors
    ///
    /// None in normal operation: whatever bpf(2) says.
    pub fn lookup(&self, key: &AnyFlowKey) -> io::Result<Option<Flow>> {
        match key {
            AnyFlowKey::V4(key) => self.v4.lookup(key),
            AnyFlowKey::V6(key) => self.v6.lookup(key),
        }
    }

    /// Overwrites the flow under `key`, or inserts it.
    ///
    /// # Errors
    ///
    /// `E2BIG` when the map is full.
    pub fn insert(&self, key: &AnyFlowKey, flow: &Flow) -> io::Result<()> {
        match key {
            AnyFlowKey::V4(key) => self.v4.update(key, flow, ANY)?,
            AnyFlowKey::V6(key) => self.v6.update(key, flow, ANY)?,
        }
        self.front.show(key);
        Ok(())
    }

    /// Replaces the flow under `key`; whether there was one.
    ///
    /// # Errors
    ///
    /// As the system call's.
    pub fn replace(&self, key: &AnyFlowKey, flow: &Flow) -> io::Result<bool> {
        let replaced = match key {
            AnyFlowKey::V4(key) => self.v4.update(key, flow, EXIST),
            AnyFlowKey::V6(key) => self.v6.update(key, flow, EXIST),
        };
        match replaced {
            Ok(()) => {
                self.front.show(key);
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Inserts the flow under `key` unless there is one; whether it was inserted.
    ///
    /// # Errors
    ///
    /// `E2BIG` when the map is full.
    pub fn insert_new(&self, key: &AnyFlowKey, flow: &Flow) -> io::Result<bool> {
        let inserted = match key {
            AnyFlowKey::V4(key) => self.v4.update(key, flow, NOEXIST),
            AnyFlowKey::V6(key) => self.v6.update(key, flow, NOEXIST),
        };
        match inserted {
            Ok(()) => {
                self.front.enter(key);
                Ok(true)
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes one flow; whether there was one.
    ///
    /// # Errors
    ///
    /// None in normal operation: whatever bpf(2) says.
    pub fn remove(&self, key: &AnyFlowKey) -> io::Result<bool> {
        let removed = match key {
            AnyFlowKey::V4(key) => self.v4.remove(key)?,
            AnyFlowKey::V6(key) => self.v6.remove(key)?,
        };
        self.front.strike(key);
        Ok(removed)
    }

    /// Removes `keys` with one system call a family and shows those that had a flow to `removed`; the others are skipped.
    ///
    /// # Errors
    ///
    /// None in normal operation: whatever bpf(2) says.
    pub fn remove_batch(&self, keys: &[AnyFlowKey], mut removed: impl FnMut(&AnyFlowKey)) -> io::Result<()> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for key in keys {
            match key {
                AnyFlowKey::V4(key) => v4.push(*key),
                AnyFlowKey::V6(key) => v6.push(*key),
            }
        }
        self.v4.remove_batch(&v4, |key| removed(&AnyFlowKey::V4(*key)))?;
        self.v6.remove_batch(&v6, |key| removed(&AnyFlowKey::V6(*key)))?;
        keys.iter().for_each(|key| self.front.strike(key));
        Ok(())
    }

    /// Enters the flow under `key`, which is in the table, into the front of it, if it is not there: it may have come in
    /// after another flow of the same key was removed and before that was struck out.
    pub fn show(&self, key: &AnyFlowKey) {
        self.front.show(key);
    }

    /// A walk over all flows, in slices.
    pub fn scan(&self) -> FlowScan {
        static TOKENS: AtomicU32 = AtomicU32::new(CROWDED + 1);
        FlowScan {
            table: self.clone(),
            v4: Walk::new(),
            v6: Walk::new(),
            in_v6: false,
            begun: false,
            looks_at: 0,
            seen: HashSet::new(),
            token: TOKENS.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// Flows a slice holds at most, unless one bucket of the map holds more.
const SLICE: usize = 512;

/// Buckets of the front that one walk looks at, half a megabyte: after 32 walks all of them were.
const LOOK: u32 = BUCKETS / 32;

/// A walk over the flow table. It sees every flow that is there from its start to its end; one that comes or goes in
/// between may be seen or not. Buffers are kept for the next walk. On the way it finds out which buckets of the front are not
/// crowded any more, a part of them with each walk: after a flow that found no room there has closed, or was entered again.
#[derive(Debug)]
pub struct FlowScan {
    table: FlowTable,
    v4: Walk<V4>,
    v6: Walk<V6>,
    in_v6: bool,
    /// Whether this walk has begun.
    begun: bool,
    /// The first bucket that this walk looks at.
    looks_at: u32,
    /// The flows of crowded buckets that this walk saw.
    seen: HashSet<Place>,
    /// What this walk marks crowded buckets with.
    token: u32,
}

impl FlowScan {
    /// Shows the next few hundred flows to `visit`. Returns whether there are more; after `false` the next call starts a
    /// new walk. One system call, of 1 to 2 µs a flow; it also passes over empty buckets, of which a table of a million
    /// flows has enough for 1.5 ms a family.
    ///
    /// # Errors
    ///
    /// None in normal operation: whatever bpf(2) says.
    pub fn next_slice(&mut self, mut visit: impl FnMut(AnyFlowKey, &Flow)) -> io::Result<bool> {
        let front = self.table.front.clone();
        let buckets = self.looks_at..self.looks_at + LOOK;
        if !std::mem::replace(&mut self.begun, true) {
            front.begin_look(buckets.clone(), self.token);
        }
        let (token, seen) = (self.token, &mut self.seen);
        let mut visit = |key, flow: &Flow| {
            front.look_at(&key, token, seen);
            visit(key, flow);
        };
        if !self.in_v6 {
            self.in_v6 = !self.v4.advance(&self.table.v4, &mut visit)?;
            return Ok(true);
        }
        self.in_v6 = self.v6.advance(&self.table.v6, &mut visit)?;
        if !self.in_v6 {
            front.end_look(buckets, token);
            self.seen.clear();
            self.looks_at = (self.looks_at + LOOK) % BUCKETS;
            self.begun = false;
        }
        Ok(self.in_v6)
    }
}

/// The walk over one family's map.
#[derive(Debug)]
struct Walk<A> {
    cursor: Option<u32>,
    keys: Vec<FlowKey<A>>,
    flows: Vec<Flow>,
}

impl<A: Address> Walk<A>
where
    FlowKey<A>: aya::Pod,
{
    fn new() -> Self {
        Self { cursor: None, keys: Vec::new(), flows: Vec::new() }
    }

    /// Shows one slice to `visit`; whether there is more.
    fn advance(
        &mut self,
        map: &Map<FlowKey<A>, Flow>,
        visit: &mut impl FnMut(AnyFlowKey, &Flow),
    ) -> io::Result<bool> {
        if self.keys.is_empty() {
            self.grow(SLICE);
        }
        let (count, next) = loop {
            match map.lookup_batch(self.cursor, &mut self.keys, &mut self.flows) {
                Ok(slice) => break slice,
                // One bucket holds more than the buffers: rare, but a hash table promises nothing.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => self.grow(self.keys.len() * 2),
                Err(error) => return Err(error),
            }
        };
        for (key, flow) in self.keys.iter().zip(&self.flows).take(count) {
            visit(A::any_key(*key), flow);
        }
        self.cursor = next;
        Ok(next.is_some())
    }

    fn grow(&mut self, len: usize) {
        let empty = FlowKey { peer: A::ANY, local: A::ANY, peer_port: [0; 2], local_port: [0; 2] };
        self.keys.resize(len, empty);
        self.flows.resize(len, Flow::default());
    }
}
