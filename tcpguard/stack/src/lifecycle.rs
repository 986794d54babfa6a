//! What every change to a connection may bring about: entry into the ready queue, timers, TIME_WAIT, the end. Also
//! the answers that belong to no connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::{Flags, Options};
use tcpguard_common::seq::Seq;

use super::ahead::AHEAD;
use super::closed_flows::Remembered;
use super::resets::{Answer, Ending};
use super::tcb::Tcb;
use super::time_wait::Remains;
use super::wire::{Incoming, Outgoing, hash};
use super::{ConnId, Error, Event, Instant, MAX_REPLIES, Reply, Stack, State, TURN};

impl Stack {
    /// The live connection of a flow.
    pub(super) fn find(&self, key: &AnyFlowKey) -> Option<ConnId> {
        let is_it = |index| self.connections.at(index).is_some_and(|tcb: &Tcb| tcb.key == *key);
        self.connections.id_at(self.index.find(hash(self.hash_key, key), is_it)?)
    }

    pub(super) fn time_wait_entry(&self, key: &AnyFlowKey, now: Instant) -> Option<(Remains, Duration)> {
        self.time_waits.get(key, now, self.shared.config.time_wait)
    }

    /// The service that listens on an address: an exact one, then any-address of its family, then of both.
    pub(super) fn service(&self, local: SocketAddr) -> Option<u32> {
        let any = match local {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let listeners = [Some(local.ip()), Some(any), None];
        listeners.iter().find_map(|&addr| self.listeners.get(&(addr, local.port()))).copied()
    }

    /// Gives a connection its place; `None` when the table is full.
    pub(super) fn insert(&mut self, tcb: Tcb) -> Option<ConnId> {
        let key = tcb.key;
        let id = self.connections.insert(tcb)?;
        self.index.insert(hash(self.hash_key, &key), id.index);
        self.resets.remove(&key);
        self.conclude_half_open(&key);
        self.shared.events.push_back(Event::FlowAdopted { key });
        Some(id)
    }

    /// Has connections do what is due by `now`.
    pub(super) fn handle_timers(&mut self, now: Instant) {
        let mut row = [0; AHEAD];
        loop {
            let mut count = 0;
            while count < AHEAD
                && let Some(index) = self.wheel.pop_due(now)
            {
                row[count] = index;
                count += 1;
            }
            let due = &row[..count];
            if due.is_empty() {
                return;
            }
            self.look_ahead_at(due);
            for &index in due {
                let Some(id) = self.connections.id_at(index) else { continue };
                if let Some(tcb) = self.connections.get_mut(id) {
                    tcb.handle_timeout(now, &mut self.shared);
                }
                self.settle(id, now);
            }
        }
    }

    /// Draws the consequences of whatever was just done to a connection.
    pub(super) fn settle(&mut self, id: ConnId, now: Instant) {
        let Some(tcb) = self.connections.get_mut(id) else { return };
        if matches!(tcb.state, State::TimeWait | State::Closed) {
            if tcb.attached {
                self.detach(id, now);
            }
            self.remove_if_unwanted(id);
            return;
        }
        tcb.arm_retransmit_if_idle(now, self.shared.config_of(tcb.service()));
        tcb.rest(&mut self.shared);
        #[cfg(test)]
        tcb.check();
        let stalls = tcb.stalls(now, self.shared.config_of(tcb.service()));
        let deadline = tcb.deadline(now, self.shared.config_of(tcb.service()));
        self.wheel.arm(id.index, deadline);
        if !tcb.queued && tcb.has_output(&self.shared.config) {
            tcb.queued = true;
            self.ready.push_back(id);
        }
        if stalls {
            self.note_stall(id, now);
        }
    }

    /// A newer incarnation has taken the flow: the peer has forgotten this one, so nobody is told but the
    /// application.
    pub(super) fn supersede(&mut self, id: ConnId, now: Instant) {
        let Some(tcb) = self.connections.get_mut(id) else { return };
        // XDP's entry describes this incarnation; the adoption of the next one replaces it.
        self.shared.events.push_back(Event::FlowReleased { key: tcb.key });
        tcb.fail(Error::Reset, false, &mut self.shared);
        tcb.tell_end(&mut self.shared);
        self.unlink(id, now);
        self.remove_if_unwanted(id);
    }

    /// After a turn of the ready queue's first connection.
    pub(super) fn after_transmit(&mut self, id: ConnId, sent: bool, now: Instant) {
        let Some(tcb) = self.connections.get_mut(id) else {
            self.ready.pop_front();
            self.turn = TURN;
            return;
        };
        tcb.rest(&mut self.shared);
        let deadline = tcb.deadline(now, self.shared.config_of(tcb.service()));
        self.wheel.arm(id.index, deadline);
        self.turn -= 1;
        let more = sent && tcb.has_output(&self.shared.config);
        if more && self.turn > 0 {
            return;
        }
        self.turn = TURN;
        self.ready.pop_front();
        tcb.queued = more;
        if more {
            self.ready.push_back(id);
        }
    }

    /// RFC 9293 §3.10.7.1: what a TCP without such a connection answers.
    pub(super) fn reply_reset(&mut self, segment: &Incoming<'_>) {
        let options = Options::default();
        let reset = if segment.has(Flags::ACK) {
            Outgoing { seq: segment.ack, ack: Seq(0), flags: Flags::RST, window: 0, options }
        } else {
            let flags = Flags::RST | Flags::ACK;
            Outgoing { seq: Seq(0), ack: segment.end(), flags, window: 0, options }
        };
        self.reply(Reply { key: segment.key, link: segment.link, segment: reset });
    }

    pub(super) fn reply(&mut self, reply: Reply) {
        if self.replies.len() < MAX_REPLIES {
            self.shared.counters.resets_out += u64::from(reply.segment.flags.contains(Flags::RST));
            self.replies.push_back(reply);
        } else {
            self.shared.counters.replies_dropped += 1;
        }
    }

    /// The flow is over: TIME_WAIT, or nothing.
    fn detach(&mut self, id: ConnId, now: Instant) {
        let Some(tcb) = self.connections.get_mut(id) else { return };
        let (key, link) = (tcb.key, tcb.link);
        let waits = tcb.state == State::TimeWait;
        let reset = tcb.reset(now);
        let ending = reset.map(|_| Ending { snd_nxt: tcb.snd_nxt, flight: tcb.flight() });
        let last = if waits { tcb.last_ack(now, &self.shared.config) } else { reset };
        let (snd_nxt, rcv_nxt, timestamps) = (tcb.snd_nxt, tcb.rcv_nxt, tcb.remaining_timestamps());
        let remains = Remains { snd_nxt, rcv_nxt, timestamps, disowned: false };
        tcb.tell_end(&mut self.shared);
        tcb.void(&mut self.shared);
        if let Some(segment) = last {
            self.reply(Reply { key, link, segment });
        }
        self.unlink(id, now);
        if waits {
            self.enter_time_wait(&key, remains, now);
            return;
        }
        // A flow that was reset stays ours until the reset is forgotten.
        let released = match ending {
            Some(ending) => self.resets.insert(key, ending, now),
            None => Some(key),
        };
        self.shared.events.extend(released.map(|key| Event::FlowReleased { key }));
    }

    /// Answers a segment of a connection that we reset a moment ago; `false` if it is of none.
    pub(super) fn reset_again(&mut self, segment: &Incoming<'_>, now: Instant) -> bool {
        let ack = (segment.has(Flags::ACK) && !segment.has(Flags::RST)).then_some(segment.ack);
        match self.resets.answer(&segment.key, ack, now) {
            Answer::Unknown => return false,
            Answer::Silence => {}
            Answer::Reset => {
                self.shared.counters.resets_repeated += 1;
                self.reply_reset(segment);
            }
        }
        true
    }

    fn enter_time_wait(&mut self, key: &AnyFlowKey, remains: Remains, now: Instant) {
        self.shared.counters.time_wait_entered += 1;
        self.shared.events.push_back(Event::TimeWaitEntered { key: *key });
        if let Some(evicted) = self.time_waits.insert(key, remains, now) {
            self.shared.counters.time_wait_evicted += 1;
            self.shared.events.push_back(Event::TimeWaitExpired { key: evicted });
        }
    }

    /// Segments of the flow no longer reach this connection, and its cookie opens no other.
    fn unlink(&mut self, id: ConnId, _now: Instant) {
        let Some(tcb) = self.connections.get_mut(id) else { return };
        tcb.attached = false;
        if tcb.orphan {
            self.orphans.ended();
        }
        let key = tcb.key;
        let cookie = tcb.cookie_epoch().map(|epoch| (epoch, tcb.iss + 1, tcb.irs + 1));
        self.index.remove(hash(self.hash_key, &key), id.index);
        self.wheel.disarm(id.index);
        if let Some((epoch, ack, seq)) = cookie {
            let limit = self.shared.config.max_closed_flows;
            let counters = &mut self.shared.counters;
            match self.closed_flows.insert(epoch, &key, ack, seq, limit) {
                Remembered::Yes => {}
                Remembered::Displacing => counters.replay_epochs_forgotten += 1,
                Remembered::No => counters.replay_not_remembered += 1,
            }
        }
    }

    /// A connection without a flow and without an application is nobody's.
    fn remove_if_unwanted(&mut self, id: ConnId) {
        let Some(tcb) = self.connections.get_mut(id) else { return };
        if !tcb.attached && tcb.orphan {
            tcb.void(&mut self.shared);
            self.connections.remove(id);
            self.prune_send_waiters();
        }
    }

    /// Connections may come, wait for the send pool and go for as long as it stays empty.
    fn prune_send_waiters(&mut self) {
        let connections = &self.connections;
        if self.shared.send_waiters.len() > 2 * connections.len() as usize + 64 {
            self.shared.send_waiters.retain(|&id| connections.get(id).is_some());
        }
    }

    /// Somebody may have given back what another found missing.
    pub(super) fn wake_send_waiters(&mut self) {
        while self.shared.events.is_empty() && self.shared.send_pool.has_room() {
            let Some(id) = self.shared.send_waiters.pop_front() else { return };
            if let Some(tcb) = self.connections.get_mut(id) {
                tcb.wake_after_pool(&mut self.shared);
            }
        }
    }
}
