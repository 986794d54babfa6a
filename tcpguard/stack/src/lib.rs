//! The TCP stack, sans-IO: `handle_*` for what arrives, `poll_*` for what should leave or happen next, `now` always
//! a parameter. No sockets, no clock of its own, no tokio, no `unsafe`.
//!
//! Connections are adopted from the cookie in a client's ACK, opened actively, or swept up from XDP's flow table;
//! they live in an arena and end in the TIME_WAIT table. One stack serves one engine and shares nothing.
#![forbid(unsafe_code)]

mod adopt;
mod ahead;
mod closed_flows;
mod config;
mod congestion;
mod counters;
mod durations;
mod event;
mod half_open;
mod icmp;
mod lifecycle;
pub mod measure;
mod orphans;
mod packed;
mod passive;
mod pool;
mod pressure;
mod recv;
mod recv_growth;
mod reordering;
mod resets;
mod rto;
mod scoreboard;
mod spares;
mod survey;
mod table;
mod tcb;
mod time;
mod time_wait;
mod usage;
mod wheel;
mod wire;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

pub use closed_flows::ClosedFlows;
pub use config::Config;
pub use congestion::CongestionControl;
pub use counters::StackCounters;
pub use durations::{BUCKETS, Durations};
pub use event::{ConnId, Error, Event, FlowInfo, Origin, Received, StackDrop, State, TcbView};
pub use survey::Cursor;
pub use tcpguard_common::packet::build::Link;
pub use time::Instant;
pub use usage::{Bounded, Usage};

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tcpguard_common::cookie::{Clock, Epochs as _, Strictness};
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::hash;
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;

use ahead::Ahead;
use half_open::{Due, HalfOpens, Schedule};
use icmp::Complaint;
use orphans::Orphans;
use resets::Resets;
use table::{Arena, Index};
use tcb::{Shared, Tcb, Verdict};
use time_wait::TimeWaits;
use wheel::Wheel;
use wire::{Incoming, Outgoing};

/// A TCP stack for the flows of one engine.
#[derive(Debug)]
pub struct Stack {
    shared: Shared,
    connections: Arena<Tcb>,
    index: Index,
    wheel: Wheel,
    /// What [`Self::look_ahead`] found.
    ahead: Ahead,
    time_waits: TimeWaits,
    closed_flows: ClosedFlows,
    resets: Resets,
    half_opens: HalfOpens,
    /// What [`HalfOpens::sweep`] found; its memory is kept.
    due: Vec<(AnyFlowKey, Due)>,
    /// Connections of each service that wait for the application to take them.
    waiting: BTreeMap<u32, u32>,
    /// Connections that have something to send, in turn.
    ready: VecDeque<ConnId>,
    /// Connections whose peers took next to nothing of what waited, and since when; some have gone on since.
    stalls: VecDeque<(ConnId, Instant)>,
    /// Connections that applications have left.
    orphans: Orphans,
    /// Where the next search for receive memory starts.
    reclaim_hand: u32,
    /// No search before, because the last one found nothing.
    reclaim_at: Instant,
    /// The next connection to apply changed tunables to.
    retune_next: Option<u32>,
    /// Where the next search for connections to abort starts.
    abort_hand: u32,
    /// Segments the first of them may still send before it is the next one's turn.
    turn: u8,
    /// Answers that belong to no connection.
    replies: VecDeque<Reply>,
    listeners: BTreeMap<(Option<IpAddr>, u16), u32>,
    /// By service, what [`StackCounters::reincarnated`] counts.
    reincarnated: BTreeMap<u32, u64>,
    epochs: [EpochSlot; EPOCH_SLOTS as usize],
    clock: Clock,
    /// By service; those beyond the end are never strict.
    strictness: Vec<Strictness>,
    /// Keys the hash tables.
    hash_key: [u64; 2],
    /// Keys the initial sequence numbers of active opens (RFC 6528).
    isn_key: [u64; 2],
}

/// A segment without a connection: a reset, or an acknowledgement from TIME_WAIT.
#[derive(Clone, Copy, Debug)]
struct Reply {
    key: AnyFlowKey,
    link: Link,
    segment: Outgoing,
}

/// Most replies waiting; further ones are dropped, as the network might, and counted.
const MAX_REPLIES: usize = 1024;
/// Segments a connection sends before it is the next one's turn.
const TURN: u8 = 4;

impl Stack {
    /// A stack without connections. `seed` should be random: it keys the hash tables and the initial sequence
    /// numbers, and makes everything the stack does reproducible.
    pub fn new(now: Instant, config: Config, seed: u64) -> Self {
        let word = |label: u64| mix(seed ^ mix(label));
        let hash_key = [word(1), word(2)];
        Self {
            connections: Arena::new(config.max_connections),
            index: Index::new(),
            wheel: Wheel::new(now),
            ahead: Ahead::NOTHING,
            time_waits: TimeWaits::new(config.max_time_wait, hash_key),
            closed_flows: ClosedFlows::new(hash_key),
            resets: Resets::new(hash_key),
            half_opens: HalfOpens::new(config.max_half_open, hash_key),
            due: Vec::new(),
            waiting: BTreeMap::new(),
            ready: VecDeque::new(),
            stalls: VecDeque::new(),
            orphans: Orphans::default(),
            reclaim_hand: 0,
            reclaim_at: Instant::default(),
            retune_next: None,
            abort_hand: 0,
            turn: TURN,
            replies: VecDeque::new(),
            listeners: BTreeMap::new(),
            reincarnated: BTreeMap::new(),
            epochs: [EpochSlot::default(); EPOCH_SLOTS as usize],
            clock: Clock::default(),
            strictness: Vec::new(),
            hash_key,
            isn_key: [word(3), word(4)],
            shared: Shared::new(config),
        }
    }

    /// Shares the memory of closed flows with other stacks; to be called before the first frame.
    pub fn share_closed_flows(&mut self, closed_flows: ClosedFlows) {
        self.closed_flows = closed_flows;
    }

    /// Replaces the tunables; they apply to what exists already, to running timers of many connections in slices with
    /// the next calls of [`Self::handle_timeout`]. `max_connections` stays what it was.
    pub fn set_config(&mut self, now: Instant, config: Config) {
        self.shared.send_pool.set_budget(config.send_pool);
        self.shared.recv_pool.set_budget(config.recv_pool);
        self.half_opens.set_limit(config.max_half_open, now);
        let Shared { events, counters, .. } = &mut self.shared;
        self.time_waits.set_limit(config.max_time_wait, now, |key| {
            counters.time_wait_evicted += 1;
            events.push_back(Event::TimeWaitExpired { key });
        });
        self.shared.config = config;
        self.retune_next = Some(0);
        self.retune_some(now);
    }

    /// Has connections of these services go by configurations of their own, and those of all others by the common one. Of their
    /// own are retransmission timeouts and retries, the user timeout, keepalive, FIN_WAIT_2, congestion control and the accept
    /// queue; everything else is the common one's. Applies as [`Self::set_config`] does.
    pub fn set_service_configs(&mut self, now: Instant, configs: BTreeMap<u32, Config>) {
        self.shared.services = configs;
        self.retune_next = Some(0);
        self.retune_some(now);
    }

    /// Sets [`Config::adopt_at_once`] alone, which no connection is concerned with.
    pub fn set_adopt_at_once(&mut self, at_once: bool) {
        self.shared.config.adopt_at_once = at_once;
    }

    /// The tunables in force.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// The cookie keys and the epoch now; to be called whenever either changes, twice in a cookie period at
    /// least. One epoch more than XDP's is accepted, whatever `clock.extra` says: what XDP let through must
    /// still hold here.
    pub fn set_epochs(&mut self, slots: &[EpochSlot; EPOCH_SLOTS as usize], clock: Clock) {
        self.epochs = *slots;
        self.clock = Clock { extra: clock.extra.max(1), ..clock };
        // Without its key a cookie is worth nothing.
        self.closed_flows.retain(|epoch| slots.slot(epoch).is_some());
    }

    /// In which epochs the cookies of each service are strict, by its number, as XDP has it; to be called before XDP is told, and
    /// with [`Self::set_epochs`] where an epoch begins. Services beyond the end are never strict.
    pub fn set_strictness(&mut self, services: &[Strictness]) {
        services.clone_into(&mut self.strictness);
    }

    /// In which epochs the cookies for a local end are strict.
    fn strictness(&self, local: SocketAddr) -> Strictness {
        let service = self.service(local).and_then(|service| self.strictness.get(service as usize));
        service.copied().unwrap_or_default()
    }

    /// Adopts connections to this port from now on. The unspecified address stands for any of its family, `None` for
    /// any of both. The narrower one wins.
    pub fn listen(&mut self, addr: Option<IpAddr>, port: u16, service: u32) {
        self.listeners.insert((addr, port), service);
    }

    /// Adopts no more connections to this port. Those that exist stay.
    pub fn unlisten(&mut self, addr: Option<IpAddr>, port: u16) {
        self.listeners.remove(&(addr, port));
    }

    /// [`StackCounters::reincarnated`] by service, since the stack was created. Those for nobody who listens are of none.
    pub fn reincarnated(&self) -> impl Iterator<Item = (u32, u64)> {
        self.reincarnated.iter().map(|(&service, &count)| (service, count))
    }

    /// The application took a connection of `service` that [`Event::Incoming`] told of, or refused it: its place in the
    /// accept queue ([`Config::accept_backlog`]) is free.
    pub fn accepted(&mut self, service: u32) {
        if let Some(waiting) = self.waiting.get_mut(&service) {
            *waiting = waiting.saturating_sub(1);
        }
    }

    /// Takes in one Ethernet frame: a TCP segment, or an ICMP error about one of ours.
    pub fn handle_frame(&mut self, now: Instant, frame: &[u8]) -> Received {
        let likely = self.ahead.take();
        self.handle(now, frame, likely, self.shared.config.adopt_at_once)
    }

    /// Takes in a frame that was [`Received::Adoptable`], once it is clear that the flow is ours.
    pub fn adopt(&mut self, now: Instant, frame: &[u8]) -> Received {
        self.handle(now, frame, None, true)
    }

    fn handle(&mut self, now: Instant, frame: &[u8], likely: Option<u32>, at_once: bool) -> Received {
        let segment = match self.parse(frame) {
            Ok(segment) => segment,
            Err(StackDrop::NotTcp) => return self.handle_other(now, frame),
            Err(why) => return Received::Dropped(why),
        };
        if let Some(id) = self.find_at(likely, &segment.key) {
            self.handle_known(id, &segment, now)
        } else if passive::opens(&segment) {
            self.handle_syn(&segment, now)
        } else if segment.has(Flags::RST) && self.handle_reset(&segment, now) {
            Received::Consumed
        } else if let Some(closed) = self.time_wait_entry(&segment.key, now) {
            self.handle_in_time_wait(&segment, closed, at_once, now)
        } else {
            self.handle_unknown(&segment, at_once, now)
        }
    }

    /// Takes in what is not TCP: an ICMP error about a segment of ours, perhaps.
    fn handle_other(&mut self, now: Instant, frame: &[u8]) -> Received {
        let Some(Complaint { key, seq, what }) = Complaint::parse(frame) else {
            self.shared.counters.malformed += 1;
            return Received::Dropped(StackDrop::NotTcp);
        };
        let Some(id) = self.find(&key) else { return Received::Unknown(key) };
        let Some(tcb) = self.connections.get_mut(id) else { return Received::Unknown(key) };
        let heard = tcb.handle_icmp(seq, what, now, &mut self.shared);
        let counters = &mut self.shared.counters;
        *(if heard { &mut counters.icmp_heard } else { &mut counters.icmp_ignored }) += 1;
        self.settle(id, now);
        Received::Consumed
    }

    /// Answers a frame that belongs to no flow with the reset of RFC 9293 §3.10.7.1. Not for frames whose source
    /// may be forged.
    pub fn reset_unknown(&mut self, _now: Instant, frame: &[u8]) {
        if let Ok(segment) = Incoming::parse(frame)
            && !segment.has(Flags::RST)
        {
            self.reply_reset(&segment);
        }
    }

    /// Writes the next frame to send into `frame`, which must hold a segment of the MTU and its link header;
    /// how long it is.
    pub fn poll_transmit(&mut self, now: Instant, frame: &mut [u8]) -> Option<usize> {
        if let Some(reply) = self.replies.pop_front() {
            self.shared.counters.segments_out += 1;
            return reply.segment.write(&reply.key, reply.link, frame, 0, |_| {});
        }
        while let Some(&id) = self.ready.front() {
            let written = match self.connections.get_mut(id) {
                Some(tcb) => tcb.poll_transmit(now, &mut self.shared, frame),
                None => None,
            };
            self.after_transmit(id, written.is_some(), now);
            if written.is_some() {
                self.shared.counters.segments_out += 1;
                return written;
            }
        }
        None
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timers = self.wheel.next_deadline();
        let hand = self.time_waits.next_step();
        let half_open = self.half_opens.next_step();
        let resets = self.resets.deadline(resets::lifetime(&self.shared.config));
        let retuning = self.retune_next.map(|_| Instant::default());
        let orphans = self.has_too_many_orphans().then(Instant::default);
        [timers, hand, half_open, resets, self.stall_deadline(), retuning, orphans]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due by `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.handle_timers(now);
        self.end_stalls(now);
        self.limit_orphans(now);
        self.retune_some(now);
        self.retransmit_syn_acks(now);
        let Shared { events, counters, config, .. } = &mut self.shared;
        self.time_waits.sweep(now, config.time_wait, |key| {
            counters.time_wait_expired += 1;
            events.push_back(Event::TimeWaitExpired { key });
        });
        let lifetime = resets::lifetime(config);
        while let Some(key) = self.resets.pop_expired(now, lifetime) {
            events.push_back(Event::FlowReleased { key });
        }
    }

    /// What happened since the last call.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.wake_send_waiters();
        self.shared.events.pop_front()
    }

    /// Opens a connection (RFC 9293 §3.10.1). The first hop's address must be known; the flow's frames must
    /// reach this stack.
    ///
    /// # Errors
    /// [`Error::AddressInUse`] when the flow exists, TIME_WAIT included, or the families differ;
    /// [`Error::TableFull`].
    pub fn connect(
        &mut self,
        now: Instant,
        local: SocketAddr,
        peer: SocketAddr,
        link: Link,
    ) -> Result<ConnId, Error> {
        let key = AnyFlowKey::new(peer, local).ok_or(Error::AddressInUse)?;
        if self.find(&key).is_some() || self.time_wait_entry(&key, now).is_some() {
            return Err(Error::AddressInUse);
        }
        let secret = wire::hash_with(self.isn_key, &key, 0, 0);
        // RFC 6528 §3: a clock of 4 µs and a keyed function of the flow.
        let iss = Seq((now.0 / 4000) as u32) + secret as u32;
        let tcb = Tcb::connecting(key, link, iss, (secret >> 32) as u32, now, &self.shared.config);
        let id = self.insert(tcb).ok_or(Error::TableFull)?;
        self.shared.counters.active_opens += 1;
        self.settle(id, now);
        Ok(id)
    }

    /// Reads what has arrived in order. `Ok(0)` means that the peer has closed (or `out` is empty).
    ///
    /// # Errors
    /// [`Error::WouldBlock`] until [`Event::Readable`]; once all that arrived is read, what ended the
    /// connection; [`Error::NoSuchConnection`].
    pub fn recv(&mut self, now: Instant, id: ConnId, out: &mut [u8]) -> Result<usize, Error> {
        let tcb = self.connections.get_mut(id).ok_or(Error::NoSuchConnection)?;
        let read = tcb.recv(out, now, &mut self.shared);
        if read.is_ok() {
            self.settle(id, now);
        }
        read
    }

    /// Lends what has arrived in order, as far as `out` reaches, without taking it; [`Self::consume`] does. How many
    /// slices; `Ok(0)` means that the peer has closed.
    ///
    /// # Errors
    /// As [`Self::recv`].
    pub fn peek<'a>(&'a mut self, id: ConnId, out: &mut [IoSlice<'a>]) -> Result<usize, Error> {
        self.connections.get_mut(id).ok_or(Error::NoSuchConnection)?.peek(out)
    }

    /// Takes the first `len` bytes that [`Self::peek`] lent.
    pub fn consume(&mut self, now: Instant, id: ConnId, len: usize) {
        if let Some(tcb) = self.connections.get_mut(id) {
            tcb.consume(len, now, &mut self.shared);
            self.settle(id, now);
        }
    }

    /// How many bytes [`Self::send`] would take now, at least one.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_room(&mut self, id: ConnId) -> Result<usize, Error> {
        self.connections.get_mut(id).ok_or(Error::NoSuchConnection)?.send_room(&mut self.shared)
    }

    /// Queues bytes for sending; how many, at least one.
    ///
    /// # Errors
    /// [`Error::WouldBlock`] until [`Event::Writable`]; [`Error::NotWritable`] after [`Self::shutdown`]; what
    /// ended the connection; [`Error::NoSuchConnection`].
    pub fn send(&mut self, now: Instant, id: ConnId, data: &[u8]) -> Result<usize, Error> {
        let tcb = self.connections.get_mut(id).ok_or(Error::NoSuchConnection)?;
        if data.is_empty() {
            return Ok(0);
        }
        let sent = tcb.send(data, &mut self.shared);
        if sent.is_ok() {
            self.settle(id, now);
        }
        sent
    }

    /// Queues our FIN behind what is queued already; receiving goes on. [`Event::FinAcked`] tells when the peer
    /// has it all. Harmless when repeated.
    ///
    /// # Errors
    /// [`Error::NoSuchConnection`].
    pub fn shutdown(&mut self, now: Instant, id: ConnId) -> Result<(), Error> {
        self.connections.get_mut(id).ok_or(Error::NoSuchConnection)?.shutdown(&mut self.shared);
        self.settle(id, now);
        Ok(())
    }

    /// Whether the peer has acknowledged our FIN, and with it everything we sent.
    pub fn fin_acked(&self, id: ConnId) -> bool {
        self.connections.get(id).is_some_and(Tcb::fin_acked)
    }

    /// Whether the peer's FIN has arrived, and with it everything it had to say; perhaps not all of that was read.
    pub fn peer_closed(&self, id: ConnId) -> bool {
        self.connections.get(id).is_some_and(|tcb| tcb.state.peer_closed())
    }

    /// The application is gone, and `id` with it; the stack finishes the connection by itself. If anything
    /// received was not read, the peer gets a reset.
    pub fn close(&mut self, now: Instant, id: ConnId) {
        self.note_orphan(id);
        if let Some(tcb) = self.connections.get_mut(id) {
            tcb.close(now, &mut self.shared);
            self.settle(id, now);
            self.limit_orphans(now);
        }
    }

    /// Ends the connection with a reset, and `id` with it.
    pub fn abort(&mut self, now: Instant, id: ConnId) {
        self.note_orphan(id);
        if let Some(tcb) = self.connections.get_mut(id) {
            tcb.abort(&mut self.shared);
            self.settle(id, now);
        }
    }

    /// The service of a connection, if a cookie opened it.
    pub fn service_of(&self, id: ConnId) -> Option<u32> {
        self.connections.get(id)?.service()
    }

    /// One connection, as long as its application has it.
    pub fn info(&self, now: Instant, id: ConnId) -> Option<FlowInfo> {
        self.connections.get(id).map(|tcb| tcb.info(now, self.shared.config_of(tcb.service())))
    }

    /// The variables of one connection, as long as its application has it.
    pub fn view(&self, id: ConnId) -> Option<TcbView> {
        self.connections.get(id).map(|tcb| tcb.view(self.shared.config_of(tcb.service())))
    }

    /// Every flow there is, those in TIME_WAIT included.
    pub fn flows(&self, now: Instant) -> impl Iterator<Item = FlowInfo> {
        let time_wait = self.shared.config.time_wait;
        let connections = self.connections.iter().filter(|tcb| tcb.attached);
        let waiting = self.time_waits.iter(now, time_wait).map(|(key, age)| self.time_wait_info(key, age));
        let half_open = self.half_opens.iter(now, Schedule::new(&self.shared.config), self.clock.epoch);
        let half_open = half_open.map(|entry| self.half_open_info(entry));
        connections
            .map(move |tcb| tcb.info(now, self.shared.config_of(tcb.service())))
            .chain(half_open)
            .chain(waiting)
    }

    fn time_wait_info(&self, key: AnyFlowKey, age: Duration) -> FlowInfo {
        FlowInfo {
            timer: Some(self.shared.config.time_wait.saturating_sub(age)),
            ..FlowInfo::without_data(key, State::TimeWait, self.service(key.local_addr()), age)
        }
    }

    /// The state of a flow, if we have it. One that is half-open has none yet.
    pub fn flow_state(&self, now: Instant, key: &AnyFlowKey) -> Option<State> {
        match self.find(key) {
            Some(id) => self.connections.get(id).map(|tcb| tcb.state),
            None => self.time_wait_entry(key, now).map(|_| State::TimeWait),
        }
    }

    /// Whether a flow was reset by us a moment ago, so that its segments must go on reaching us.
    pub fn remembers_reset(&self, key: &AnyFlowKey) -> bool {
        self.resets.contains(key)
    }

    /// How a connection began, and where its peer is reached; `None` for a flow that is no connection's.
    pub fn origin(&self, key: &AnyFlowKey) -> Option<Origin> {
        let tcb = self.connections.get(self.find(key)?)?;
        Some(Origin { link: tcb.link, seq: tcb.irs + 1, ack: tcb.iss + 1 })
    }

    /// Whether a flow is in TIME_WAIT, or was and its [`Event::TimeWaitExpired`] is still to come.
    pub fn remembers_time_wait(&self, key: &AnyFlowKey, now: Instant) -> bool {
        self.time_waits.get(key, now, Duration::MAX).is_some()
    }

    /// Running totals.
    pub fn counters(&self) -> &StackCounters {
        &self.shared.counters
    }

    /// How long handshakes took, from the SYN-ACK to its acknowledgement, where a cookie or the half-open queue says when it
    /// left.
    pub fn handshakes(&self) -> &Durations {
        &self.shared.handshakes
    }

    /// Connections now, TIME_WAIT not counted.
    pub fn connection_count(&self) -> usize {
        self.connections.len() as usize
    }

    /// Flows that XDP is to know by an entry: connections that are not over, and those that were reset a moment ago.
    pub fn flow_count(&self) -> usize {
        self.index.len() + self.resets.len()
    }

    /// Whether segments wait to be sent that belong to no connection: resets, most of all.
    pub fn has_replies(&self) -> bool {
        !self.replies.is_empty()
    }

    /// TIME_WAIT entries now; may count some whose time has just ended.
    pub fn time_wait_count(&self) -> usize {
        self.time_waits.len()
    }

    /// Half-open connections now.
    pub fn half_open_count(&self) -> usize {
        self.half_opens.len()
    }

    /// How full the half-open queue is, 0 to 1: the address family counts that has more of it.
    pub fn half_open_level(&self) -> f64 {
        self.half_opens.fullest() as f64 / f64::from(self.shared.config.max_half_open.max(1))
    }

    /// Whether a SYN of this flow was answered a moment ago, and the answer not acknowledged.
    pub fn is_half_open(&self, key: &AnyFlowKey) -> bool {
        self.half_opens.contains(key)
    }

    /// Bytes of buffer memory in the hands of connections.
    pub fn buffered_bytes(&self) -> usize {
        self.shared.send_pool.used_bytes() + self.shared.recv_pool.used_bytes()
    }

    fn parse<'a>(&mut self, frame: &'a [u8]) -> Result<Incoming<'a>, StackDrop> {
        let counters = &mut self.shared.counters;
        let parsed = Incoming::parse(frame);
        match parsed {
            Ok(_) => counters.segments_in += 1,
            Err(StackDrop::Checksum) => counters.bad_checksum += 1,
            Err(StackDrop::NotTcp) => {}
            Err(_) => counters.malformed += 1,
        }
        parsed
    }

    fn handle_known(&mut self, id: ConnId, segment: &Incoming<'_>, now: Instant) -> Received {
        if !segment.data.is_empty() {
            self.reclaim(id, segment, now);
        }
        let Some(tcb) = self.connections.get_mut(id) else { return Received::Unknown(segment.key) };
        match tcb.handle(segment, now, &mut self.shared) {
            Verdict::Done => self.settle(id, now),
            Verdict::Reset => {
                self.settle(id, now);
                self.reply_reset(segment);
            }
            // Each may be a guess at the cookie that would take the flow over.
            Verdict::Unacceptable if tcb.may_challenge(now, &mut self.shared) => {
                if self.reincarnate(id, segment, now) {
                    return Received::Consumed;
                }
                if let Some(tcb) = self.connections.get_mut(id) {
                    tcb.owe_challenge(&mut self.shared);
                }
                self.settle(id, now);
            }
            Verdict::Unacceptable => self.settle(id, now),
        }
        Received::Consumed
    }
}

/// The number that SplitMix64 makes of a seed.
fn mix(seed: u64) -> u64 {
    hash::mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15))
}
