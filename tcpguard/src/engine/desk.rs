//! What becomes of frames whose flow the stack does not know, or may not adopt by itself: whose they are stands in the flow
//! table. Also what the flow table is told of what the stack did. It has no port: the driver receives and sends.

use std::collections::VecDeque;

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::map::Flow;
use tcpguard_common::packet::{AnySegment, Ethernet, parse};
use tcpguard_common::seq::Seq;

use super::exchange::{Addressee, Exchange, Forwarded, Handover};
use super::flows::{Claim, Offer, Ownership, SharedTables, Swept};
use super::net::State;
use super::probe::Probe;
use super::stats::FrameCounters;
use crate::stack::{Event, Instant, Origin, Received, StackDrop, State as TcpState};

/// Unknown flows looked up in one turn: each costs a system call, and a peer can cause them. Those of another engine do
/// not count: they are looked up once and then remembered for a while.
const MISSES: usize = 16;
/// The same as long as an earlier daemon may have left flows, about a minute: all that a turn takes. The peers of all of them
/// speak at once when they are probed.
const MISSES_OF_OLD: usize = 128;
/// Replayed first segments looked up in one turn, likewise; apart, because anybody can replay a connection of its own.
const REPLAYS: usize = 4;
/// Probes that may wait for the transmit ring: a slice of the sweep.
const PROBES: usize = 512;

/// What judges frames of flows that the stack does not know.
pub(super) struct Desk<T: SharedTables> {
    pub(super) engine: u32,
    pub(super) local_mac: [u8; 6],
    pub(super) flows: Ownership<T>,
    pub(super) exchange: Exchange,
    /// Probes that wait for the transmit ring.
    probes: VecDeque<Probe>,
    misses: usize,
    replays: usize,
    /// Entries that were removed, those of sweeps among them, when that was last told to other engines.
    removed: u64,
    pub(super) counters: FrameCounters,
}

impl<T: SharedTables> Desk<T> {
    pub(super) fn new(engine: u32, local_mac: [u8; 6], flows: Ownership<T>, exchange: Exchange) -> Self {
        Self {
            engine,
            local_mac,
            flows,
            exchange,
            probes: VecDeque::new(),
            misses: 0,
            replays: 0,
            removed: 0,
            counters: FrameCounters::default(),
        }
    }

    /// A turn begins: as much may be looked up again as a turn may cost.
    pub(super) fn begin_turn(&mut self) {
        (self.misses, self.replays) = (0, 0);
    }

    /// One frame from the ring.
    pub(super) fn handle(&mut self, now: Instant, state: &mut State, frame: &[u8]) {
        match state.stack.handle_frame(now, frame) {
            Received::Consumed | Received::Dropped(_) => {}
            Received::Adoptable(key) => self.settle_adoption(now, state, key, frame),
            Received::Replayed(key) => self.settle_replay(now, key, frame),
            Received::Unknown(key) => self.miss(now, state, key, frame),
        }
    }

    /// One frame from another engine. It goes no further.
    pub(super) fn handle_forwarded(&mut self, now: Instant, state: &mut State, message: Forwarded<'_>) {
        let Forwarded { frame, addressee } = message;
        let (key, adoptable) = match state.stack.handle_frame(now, frame) {
            Received::Consumed | Received::Dropped(_) => return,
            Received::Replayed(_) => return self.counters.orphans += 1,
            Received::Adoptable(key) => (key, true),
            Received::Unknown(key) => (key, false),
        };
        let meant = addressee == Addressee::Owner || state.stack.remembers_time_wait(&key, now);
        if !meant || !adoptable && !self.may_look_up() {
            self.counters.orphans += 1;
            return;
        }
        match (self.flows.claim(&key), adoptable) {
            (Claim::Mine(_), true) => self.adopt(now, state, frame),
            (Claim::Mine(flow), false) => self.make_good(now, state, key, &flow, frame),
            // The entry by which the sender found us went with the flow's last incarnation.
            (Claim::Missing, true) => self.adopt_absent(now, state, key, frame),
            (Claim::Missing | Claim::Foreign(_) | Claim::OldGeneration(_), _) => self.counters.orphans += 1,
        }
    }

    /// The first segment of a flow that has closed, once more: its owner may have reset it a moment ago.
    fn settle_replay(&mut self, now: Instant, key: AnyFlowKey, frame: &[u8]) {
        self.replays += 1;
        if self.replays > REPLAYS {
            // The sweep removes the entry that XDP made for it.
            return;
        }
        match self.flows.claim(&key) {
            Claim::Foreign(owner) if self.forward(owner, frame) != Handover::NoEngine => {}
            Claim::Foreign(_) | Claim::Mine(_) => self.flows.released(now, key),
            Claim::OldGeneration(_) | Claim::Missing => {}
        }
    }

    /// A valid cookie of a flow that is new to this stack: only its owner may adopt it, and nobody may whose
    /// connection died with an earlier daemon, which may have relayed what the segment says.
    fn settle_adoption(&mut self, now: Instant, state: &mut State, key: AnyFlowKey, frame: &[u8]) {
        let claim = self.flows.claim(&key);
        let handover = match claim {
            Claim::Foreign(owner) => self.forward(owner, frame),
            Claim::Missing if self.is_elsewhere(now, state, &key) => self.broadcast(frame),
            Claim::Mine(_) | Claim::OldGeneration(_) | Claim::Missing => Handover::NoEngine,
        };
        match (handover, claim) {
            // The SYN may have come to this engine.
            (Handover::Queued, _) => state.stack.conclude_half_open(&key),
            (Handover::Full, _) => {}
            (_, Claim::OldGeneration(flow)) if is_cookie_of(frame, &flow) => {
                self.dismiss(now, state, key, frame);
            }
            (_, Claim::Mine(_)) => self.adopt(now, state, frame),
            // A new incarnation on a tuple that XDP knew, so that it inserted nothing, or an entry that went meanwhile.
            (_, Claim::Foreign(_) | Claim::OldGeneration(_) | Claim::Missing) => {
                self.adopt_absent(now, state, key, frame);
            }
        }
    }

    /// Adopts a flow that XDP would not recognise from now on.
    fn adopt_absent(&mut self, now: Instant, state: &mut State, key: AnyFlowKey, frame: &[u8]) {
        self.flows.note_absent(key);
        self.adopt(now, state, frame);
    }

    fn adopt(&mut self, now: Instant, state: &mut State, frame: &[u8]) {
        if let Received::Unknown(_) | Received::Adoptable(_) | Received::Replayed(_) =
            state.stack.adopt(now, frame)
        {
            self.counters.orphans += 1;
        }
    }

    /// A segment that the stack can make nothing of: somebody else's flow, one whose first segment was lost, or
    /// nobody's.
    fn miss(&mut self, now: Instant, state: &mut State, key: AnyFlowKey, frame: &[u8]) {
        self.counters.misses += 1;
        if let Some(owner) = self.flows.known_owner(now, &key)
            && self.forward(owner, frame) != Handover::NoEngine
        {
            return;
        }
        if !self.may_look_up() {
            self.counters.misses_dropped += 1;
            return;
        }
        match self.flows.claim(&key) {
            Claim::Foreign(owner) => {
                if self.flows.note_owner(key, owner) {
                    self.misses -= 1;
                }
                if self.forward(owner, frame) == Handover::NoEngine {
                    self.dismiss(now, state, key, frame);
                }
            }
            Claim::Mine(flow) => self.make_good(now, state, key, &flow, frame),
            Claim::OldGeneration(_) => self.dismiss(now, state, key, frame),
            Claim::Missing
                if self.is_elsewhere(now, state, &key) && self.broadcast(frame) != Handover::NoEngine => {}
            Claim::Missing => self.counters.orphans += 1,
        }
    }

    /// Whether this turn may make one more system call for a flow that the stack does not know.
    fn may_look_up(&mut self) -> bool {
        self.misses += 1;
        self.misses <= if self.flows.old_generation_possible() { MISSES_OF_OLD } else { MISSES }
    }

    /// A segment of a flow of ours whose first segment was lost.
    fn make_good(&mut self, now: Instant, state: &mut State, key: AnyFlowKey, flow: &Flow, frame: &[u8]) {
        let swept = adopt_entry(now, state, key, flow, self.local_mac);
        self.flows.account(now, key, swept);
        if matches!(swept, Swept::Known | Swept::Adopted) {
            state.stack.handle_frame(now, frame);
        }
    }

    /// Whether XDP redirected a segment for a fingerprint that another engine set: that has the flow in TIME_WAIT, and
    /// judges whether the segment may begin a new incarnation.
    fn is_elsewhere(&self, now: Instant, state: &State, key: &AnyFlowKey) -> bool {
        self.flows.has_fingerprint(key) && !state.stack.remembers_time_wait(key, now)
    }

    /// Shows a frame to every other engine. With their queues full it is lost, and its peer sends it again.
    fn broadcast(&mut self, frame: &[u8]) -> Handover {
        if self.exchange.is_alone() {
            return Handover::NoEngine;
        }
        let taken = self.exchange.broadcast(self.engine, frame) > 0;
        self.note(if taken { Handover::Queued } else { Handover::Full })
    }

    /// The connection died with an earlier daemon: its peer gets a reset instead of silence. The entry stays for a while: the
    /// reset may be lost, or answer a segment that is not the peer's.
    fn dismiss(&mut self, now: Instant, state: &mut State, key: AnyFlowKey, frame: &[u8]) {
        if self.flows.may_reset(now, key) {
            state.stack.reset_unknown(now, frame);
            self.counters.old_generation_resets += 1;
        }
    }

    fn forward(&mut self, owner: u32, frame: &[u8]) -> Handover {
        let handover = self.exchange.forward(owner, frame);
        self.note(handover)
    }

    fn note(&mut self, handover: Handover) -> Handover {
        match handover {
            Handover::Queued => self.counters.forwarded_out += 1,
            Handover::Full => self.counters.forward_lost += 1,
            Handover::NoEngine => {}
        }
        handover
    }

    pub(super) fn sweep(&mut self, now: Instant, state: &mut State) {
        let Self { flows, exchange, engine, local_mac, probes, counters, .. } = self;
        let is_settled = |entries, covered| exchange.is_settled(entries, covered);
        let is_stray = |owner| !exchange.contains(owner) && exchange.is_first(*engine);
        flows.sweep(now, is_settled, is_stray, |what, key, flow| match what {
            Offer::Adopt => adopt_entry(now, state, key, flow, *local_mac),
            Offer::Probe => {
                if probes.len() < PROBES
                    && let Some(probe) = Probe::new(&key, flow, *local_mac)
                {
                    probes.push_back(probe);
                    counters.old_generation_probes += 1;
                }
                Swept::Refused
            }
        });
        self.settle_caution(state);
    }

    /// Asking the flow table before every adoption costs a system call each: not without a reason.
    fn settle_caution(&self, state: &mut State) {
        let at_once = self.exchange.is_alone() && !self.flows.old_generation_possible();
        state.stack.set_adopt_at_once(at_once);
    }

    /// What follows from what the stack did, for the applications and for the flow table.
    pub(super) fn settle(&mut self, now: Instant, state: &mut State) {
        for (key, link) in state.opened.drain(..) {
            // Nothing is exchanged yet: there are no numbers to tell.
            self.flows.insert(now, key, &Origin { link, seq: Seq(0), ack: Seq(0) });
        }
        while let Some(event) = state.stack.poll_event() {
            match event {
                Event::FlowAdopted { key } => self.flows.adopted(now, key, || state.stack.origin(&key)),
                Event::FlowReleased { key } => self.flows.released(now, key),
                Event::TimeWaitEntered { key } => self.flows.time_wait(now, key),
                Event::TimeWaitExpired { key } => self.flows.time_wait_over(key),
                Event::Incoming { .. }
                | Event::Connected(_)
                | Event::Readable(_)
                | Event::Writable(_)
                | Event::FinAcked(_)
                | Event::Closed { .. } => state.dispatch(&event),
            }
        }
        self.flows.delete_due(now);
        let removed = self.flows.removed_count();
        if removed > self.removed {
            self.removed = removed;
            self.exchange.note_removal(now);
        }
    }

    /// Entries of the flow table that this engine accounts for.
    pub(super) fn flow_count(&self, state: &State) -> usize {
        state.stack.flow_count() + self.flows.closing_count()
    }

    /// The next frame to send. It leaves from the interface's address, which may be another by now than the one that
    /// the peer's last segment came to.
    pub(super) fn next_frame(&mut self, now: Instant, state: &mut State, buffer: &mut [u8]) -> Option<usize> {
        let len = self.next_probe(buffer).or_else(|| state.stack.poll_transmit(now, buffer))?;
        buffer.get_mut(Ethernet::SRC..Ethernet::SRC + 6)?.copy_from_slice(&self.local_mac);
        Some(len)
    }

    fn next_probe(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let frame = self.probes.front()?.frame();
        buffer.get_mut(..frame.len())?.copy_from_slice(frame);
        let len = frame.len();
        self.probes.pop_front();
        Some(len)
    }
}

/// Whether a segment carries the cookie that opened the flow of an entry.
fn is_cookie_of(frame: &[u8], flow: &Flow) -> bool {
    let tcp = match parse(frame) {
        Ok(AnySegment::V4(segment)) => segment.tcp,
        Ok(AnySegment::V6(segment)) => segment.tcp,
        Err(_) => return false,
    };
    (tcp.seq, tcp.ack) == (Seq(flow.seq), Seq(flow.ack))
}

/// Makes sure that the stack has the connection of an entry of ours.
fn adopt_entry(now: Instant, state: &mut State, key: AnyFlowKey, flow: &Flow, local_mac: [u8; 6]) -> Swept {
    let known = matches!(state.stack.flow_state(now, &key), Some(flow) if flow != TcpState::TimeWait);
    if known || state.stack.remembers_reset(&key) {
        return Swept::Known;
    }
    match state.stack.adopt_swept(now, key, flow, local_mac) {
        Received::Consumed => Swept::Adopted,
        Received::Dropped(StackDrop::BacklogFull) if !state.stack.config().reset_on_overflow => Swept::Later,
        Received::Adoptable(_) | Received::Replayed(_) | Received::Unknown(_) | Received::Dropped(_) => {
            Swept::Refused
        }
    }
}
