//! Passive opens as far as SYN_RCVD (RFC 9293 §3.10.7.2): SYNs answered, SYN-ACKs sent again, half-open connections reset.
//! Our initial sequence number, and our timestamp, are the cookie that XDP would have sent. So XDP recognises the ACK
//! without knowing of the SYN, it makes no difference to the client which of the two answered, and completing the
//! handshake is an adoption like any other. Data on a SYN is not acknowledged: the client sends it again once the
//! handshake is complete.

use std::time::Duration;

use tcpguard_common::cookie::{Clock, Epochs as _, Strictness, SynOptions, encode, validate};
use tcpguard_common::flow::{AnyFlowKey, FlowKey};
use tcpguard_common::packet::{Family, Flags, Options};
use tcpguard_common::seq::Seq;

use super::adopt::is_newer;
use super::half_open::{Due, HalfOpen, Schedule};
use super::wire::{Incoming, Outgoing};
use super::{FlowInfo, Instant, MAX_REPLIES, Received, Reply, Stack, StackDrop, State};

/// Whether a segment asks for a new connection.
pub(super) fn opens(segment: &Incoming<'_>) -> bool {
    segment.has(Flags::SYN) && !segment.flags.intersects(Flags::ACK | Flags::RST | Flags::FIN)
}

impl Stack {
    /// A SYN of a flow that is no connection's.
    pub(super) fn handle_syn(&mut self, segment: &Incoming<'_>, now: Instant) -> Received {
        let key = segment.key;
        let tsval = segment.options.timestamps.map(|(value, _)| value);
        if let Some((remains, age)) = self.time_wait_entry(&key, now) {
            let recent = remains.timestamps.map(|(recent, _)| recent);
            // RFC 6191 §2. What is not newer may be an old duplicate, and is acknowledged; a client that does open a new
            // connection answers that with a reset and comes again. The entry stays until the handshake is complete: anybody
            // can send a SYN.
            if !remains.disowned && !is_newer((segment.seq, tsval), (remains.rcv_nxt, recent)) {
                return self.handle_in_time_wait(segment, (remains, age), true, now);
            }
        }
        if self.service(key.local_addr()).is_none() {
            self.shared.counters.no_listener += 1;
            return Received::Dropped(StackDrop::NoListener);
        }
        let new = HalfOpen {
            irs: segment.seq.0,
            syn: offered(segment),
            epoch: self.clock.epoch,
            link: segment.link,
            retransmits: 0,
        };
        if let Some(entry) = self.half_opens.get(&key, self.clock.epoch).filter(|entry| entry.is_same(&new)) {
            let entry = HalfOpen { syn: new.syn, ..entry };
            if let Some(reply) = self.syn_ack(&key, &entry, now) {
                self.half_opens.repeated(&key, tsval.unwrap_or(0));
                self.shared.counters.syns_repeated += 1;
                self.reply(reply);
                return Received::Consumed;
            }
        }
        let Some(reply) = self.syn_ack(&key, &new, now) else {
            self.shared.counters.syns_unanswerable += 1;
            return Received::Dropped(StackDrop::NoKey);
        };
        let counters = &mut self.shared.counters;
        match self.half_opens.insert(&key, &new, now) {
            Some(evicted) => {
                counters.half_open_entered += 1;
                counters.half_open_evicted += u64::from(evicted);
            }
            // Then it is answered as XDP answers: once.
            None => counters.half_open_unkept += 1,
        }
        self.reply(reply);
        Received::Consumed
    }

    /// A reset of a flow that is no connection's; whether it was of a half-open one, in front of TIME_WAIT perhaps.
    pub(super) fn handle_reset(&mut self, segment: &Incoming<'_>, now: Instant) -> bool {
        self.disowned(segment, now);
        self.reset_half_open(segment, now)
    }

    /// RFC 9293 §3.10.7.4, RFC 5961 §3.2.
    fn reset_half_open(&mut self, segment: &Incoming<'_>, now: Instant) -> bool {
        let Some(entry) = self.half_opens.get(&segment.key, self.clock.epoch) else { return false };
        let rcv_nxt = Seq(entry.irs) + 1;
        if segment.seq == rcv_nxt {
            self.half_opens.remove(&segment.key);
            self.shared.counters.half_open_reset += 1;
        } else if let Some(syn_ack) = self.syn_ack(&segment.key, &entry, now)
            && segment.seq.distance(rcv_nxt) < u32::from(syn_ack.segment.window)
        {
            // One for one: whoever forges resets gains nothing. XDP limits how many come.
            let Outgoing { seq, ack, window, options: Options { timestamps, window_scale, .. }, .. } =
                syn_ack.segment;
            let options = Options { timestamps, ..Options::default() };
            // The same promise, in a segment whose window is scaled (RFC 7323 §2.2).
            let window = window >> window_scale.unwrap_or(0);
            let challenge = Outgoing { seq: seq + 1, ack, flags: Flags::ACK, window, options };
            self.shared.counters.challenge_acks += 1;
            self.reply(Reply { segment: challenge, ..syn_ack });
        }
        true
    }

    /// The client of a half-open connection has answered, here or to whom another stack belongs: the SYN-ACK is not sent
    /// again. Should that stack refuse it, the client is where a cookie alone would have left it.
    pub fn conclude_half_open(&mut self, key: &AnyFlowKey) {
        self.shared.counters.half_open_completed += u64::from(self.half_opens.remove(key));
    }

    /// Forgets a half-open connection and resets its client, who may take it for established.
    pub(super) fn kill_half_open(&mut self, key: &AnyFlowKey, now: Instant) {
        let Some(entry) = self.half_opens.get(key, self.clock.epoch) else { return };
        self.half_opens.remove(key);
        if let Some(Reply { key, link, segment }) = self.syn_ack(key, &entry, now) {
            let Outgoing { seq, ack, .. } = segment;
            let flags = Flags::RST | Flags::ACK;
            let reset = Outgoing { seq: seq + 1, ack, flags, window: 0, options: Options::default() };
            self.reply(Reply { key, link, segment: reset });
        }
    }

    /// Sends the SYN-ACKs again that are due, as far as there is room for them beside other answers, and forgets entries that nothing
    /// comes of.
    pub(super) fn retransmit_syn_acks(&mut self, now: Instant) {
        let mut due = core::mem::take(&mut self.due);
        let room = (MAX_REPLIES / 2).saturating_sub(self.replies.len());
        self.half_opens.sweep(now, Schedule::new(&self.shared.config), self.clock.epoch, room, &mut due);
        for (key, what) in due.drain(..) {
            let reply = match what {
                Due::SynAck(entry) if self.service(key.local_addr()).is_some() => {
                    self.syn_ack(&key, &entry, now)
                }
                Due::SynAck(_) | Due::GivenUp => None,
            };
            match reply {
                Some(reply) => {
                    self.shared.counters.syn_acks_retransmitted += 1;
                    self.reply(reply);
                }
                None => {
                    self.half_opens.remove(&key);
                    self.shared.counters.half_open_timed_out += 1;
                }
            }
        }
        self.due = due;
    }

    /// The answer to a SYN, as XDP would write it now, but with the key of the entry's epoch. `None` once XDP would not
    /// accept that cookie any more.
    fn syn_ack(&self, key: &AnyFlowKey, entry: &HalfOpen, now: Instant) -> Option<Reply> {
        let HalfOpen { irs, syn, link, .. } = entry;
        let strictness = self.strictness(key.local_addr());
        let (isn, options) = match key {
            AnyFlowKey::V4(key) => self.offer(key, strictness, entry, now),
            AnyFlowKey::V6(key) => self.offer(key, strictness, entry, now),
        }?;
        let slot = self.epochs.slot(entry.epoch)?;
        let echo = if syn.ecn { Flags::ECE } else { Flags(0) };
        let segment = Outgoing {
            seq: Seq(isn),
            ack: Seq(*irs) + 1,
            flags: Flags::SYN | Flags::ACK | echo,
            window: slot.window,
            options,
        };
        Some(Reply { key: *key, link: *link, segment })
    }

    /// Sequence number and options of the answer.
    fn offer<A: Family>(
        &self,
        key: &FlowKey<A>,
        strictness: Strictness,
        entry: &HalfOpen,
        now: Instant,
    ) -> Option<(u32, Options)> {
        let HalfOpen { irs, syn, .. } = entry;
        let slot = self.epochs.slot(entry.epoch)?;
        let cookie = encode(slot, strictness, key, *irs, syn, now.0);
        let clock = Clock { extra: 0, ..self.clock };
        validate(&self.epochs, &clock, strictness, key, *irs, cookie.isn, cookie.tsval)?;
        Some((cookie.isn, cookie.options::<A>(slot, syn)))
    }

    /// How a half-open connection is listed.
    pub(super) fn half_open_info(
        &self,
        (key, entry, age, timer): (AnyFlowKey, HalfOpen, Duration, Duration),
    ) -> FlowInfo {
        FlowInfo {
            timer: Some(timer),
            syn_ack_retransmits: Some(entry.retransmits),
            ..FlowInfo::without_data(key, State::SynReceived, self.service(key.local_addr()), age)
        }
    }
}

/// What a SYN offers, as far as a cookie can remember it and an entry of the queue does.
fn offered(segment: &Incoming<'_>) -> SynOptions {
    let offered = SynOptions::offered(segment.flags, &segment.options);
    SynOptions {
        // A cookie makes no difference between none and 0, nor between shifts beyond 14 (RFC 7323 §2.3).
        mss: offered.mss.filter(|mss| *mss != 0),
        window_scale: offered.window_scale.map(|shift| shift.min(14)),
        ..offered
    }
}
