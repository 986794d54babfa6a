//! How flows come to us: cookies judged, connections adopted, new incarnations told from old duplicates, replays
//! refused, TIME_WAIT answered. Not how connections live.

use core::time::Duration;

use tcpguard_common::cookie::{self, Accepted, validate};
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::map::{FLOW_TIMESTAMPS, Flow};
use tcpguard_common::packet::build::Link;
use tcpguard_common::packet::{Flags, Options, Vlan};
use tcpguard_common::seq::Seq;

use super::closed_flows::Recall;
use super::tcb::{Adoption, Tcb};
use super::time_wait::Remains;
use super::wire::{Incoming, Outgoing};
use super::{ConnId, Event, Instant, Received, Reply, Stack, StackDrop};

/// The last known facts of an earlier incarnation.
#[derive(Clone, Copy, Debug)]
struct Earlier {
    rcv_nxt: Seq,
    ts_recent: Option<u32>,
    /// The epoch of the cookie that opened it. A TIME_WAIT entry knows none.
    cookie_epoch: Option<u32>,
    /// How long ago it closed, if it has.
    closed: Option<Duration>,
    /// Whether its peer has [disowned](Remains::disowned) it.
    disowned: bool,
}

/// For so long after a connection has closed, a new one of its flow has to prove that it is one: by its timestamp or sequence
/// number, or because our SYN-ACK that it echoes left later. Clients behind one address translator have each a clock of their
/// own; by then what was under way has arrived. Linux's SYN that was challenged comes again after this time, and opens a
/// connection.
const DISTRUST: Duration = Duration::from_secs(1);

/// What is offered in TIME_WAIT: the peer has closed, and will not send into any window.
const TIME_WAIT_WINDOW: u16 = u16::MAX;

impl Stack {
    /// Adopts a flow from XDP's entry, for when the frame that created it was lost on the way. Harmless when the
    /// flow is ours already, or was reset a moment ago.
    pub fn adopt_swept(
        &mut self,
        now: Instant,
        key: AnyFlowKey,
        flow: &Flow,
        local_mac: [u8; 6],
    ) -> Received {
        if self.find(&key).is_some() || self.resets.contains(&key) {
            return Received::Consumed;
        }
        let timestamps = (flow.flags & FLOW_TIMESTAMPS != 0).then_some((flow.tsval, flow.tsecr));
        let (seq, ack) = (Seq(flow.seq), Seq(flow.ack));
        let Some(accepted) = self.judge(&key, seq, ack, timestamps) else {
            self.shared.counters.unknown += 1;
            self.shared.events.push_back(Event::FlowReleased { key });
            return Received::Unknown(key);
        };
        let arrived = Some(Instant(flow.created));
        let window = flow.window;
        let (has_data, queued, repeats) = (false, None, 0);
        let adoption =
            Adoption { accepted, seq, ack, window, timestamps, has_data, arrived, queued, repeats };
        if let Some((remains, age)) = self.time_wait_entry(&key, now) {
            if !self.may_follow(&key, &adoption, &Earlier::closed(&remains, age), now) {
                self.shared.events.push_back(Event::FlowReleased { key });
                return Received::Consumed;
            }
            self.time_waits.remove(&key);
            self.shared.events.push_back(Event::TimeWaitExpired { key });
        }
        let vlan = Vlan { count: flow.vlan_count.min(2), tags: flow.vlan };
        let link = Link { dst: flow.peer_mac, src: local_mac, vlan };
        match self.admit(key, link, &adoption, false, now) {
            Ok(id) => {
                self.shared.counters.adopted_swept += 1;
                self.settle(id, now);
                Received::Consumed
            }
            Err(why) => {
                self.refuse(&adoption, key, link, why);
                Received::Dropped(why)
            }
        }
    }

    /// A segment of a flow that we do not have.
    pub(super) fn handle_unknown(&mut self, segment: &Incoming<'_>, at_once: bool, now: Instant) -> Received {
        let adoption = self.adoption(segment);
        if self.resets.contains(&segment.key)
            && adoption.is_none_or(|adoption| self.recall(&segment.key, &adoption) == Recall::Closed)
            && self.reset_again(segment, now)
        {
            return Received::Consumed;
        }
        let Some(adoption) = adoption else {
            self.shared.counters.unknown += 1;
            return Received::Unknown(segment.key);
        };
        if !at_once {
            // Before the engine asks whose flow it is: what can be replayed at will costs few system calls.
            if self.recall(&segment.key, &adoption) == Recall::Closed {
                self.shared.counters.replays_refused += 1;
                return Received::Replayed(segment.key);
            }
            return Received::Adoptable(segment.key);
        }
        match self.begin(segment, &adoption, now) {
            Ok(()) => Received::Consumed,
            Err(why) => Received::Dropped(why),
        }
    }

    /// A segment of a flow in TIME_WAIT (RFC 9293 §3.10.7.4): a retransmitted FIN is acknowledged and restarts
    /// 2MSL, what is in sequence and acknowledges nothing is dropped, a reset ends nothing (RFC 1337 §3; see
    /// [`Self::disowned`]), a cookie of a newer incarnation takes the flow over (RFC 6191). Without
    /// `at_once` that incarnation may be another engine's: XDP forgets flows in TIME_WAIT when it has no room for them.
    pub(super) fn handle_in_time_wait(
        &mut self,
        segment: &Incoming<'_>,
        (remains, age): (Remains, Duration),
        at_once: bool,
        now: Instant,
    ) -> Received {
        if segment.has(Flags::RST) {
            return Received::Consumed;
        }
        let expected = segment.seq == remains.rcv_nxt && segment.len() == 0 && segment.has(Flags::ACK);
        if expected && segment.ack == remains.snd_nxt {
            return Received::Consumed;
        }
        if let Some(adoption) = self.adoption(segment)
            && self.may_follow(&segment.key, &adoption, &Earlier::closed(&remains, age), now)
        {
            if !at_once {
                return Received::Adoptable(segment.key);
            }
            self.time_waits.remove(&segment.key);
            self.count_reincarnated(&segment.key);
            let begun = self.begin(segment, &adoption, now);
            // Told last: XDP must know the flow by one or the other, or it would give it to another engine.
            self.shared.events.push_back(Event::TimeWaitExpired { key: segment.key });
            return match begun {
                Ok(()) => Received::Consumed,
                Err(why) => Received::Dropped(why),
            };
        }
        if !at_once && is_beyond(segment, &remains) {
            return Received::Unknown(segment.key);
        }
        if is_in_sequence(segment, &remains) && !segment.flags.intersects(Flags::SYN | Flags::ACK) {
            return Received::Consumed;
        }
        let fin_again = segment.has(Flags::FIN | Flags::ACK) && segment.end() == remains.rcv_nxt;
        if fin_again && is_current(segment, &remains) {
            self.time_waits.restart(&segment.key, now);
            self.shared.counters.time_wait_restarted += 1;
        }
        if self.time_waits.may_answer(&segment.key, now) {
            self.reply_from_time_wait(segment, &remains, now);
        } else {
            self.shared.counters.time_wait_throttled += 1;
        }
        Received::Consumed
    }

    /// Takes note of a reset exactly at RCV.NXT of what is in TIME_WAIT: what a client sends that opens a new connection, and
    /// whose SYN was acknowledged as an old duplicate. But so does one that is long gone when anybody else sends that SYN:
    /// the entry stays, and only a handshake ends it.
    pub(super) fn disowned(&mut self, reset: &Incoming<'_>, now: Instant) {
        if let Some((remains, _)) = self.time_wait_entry(&reset.key, now)
            && reset.seq == remains.rcv_nxt
        {
            self.time_waits.disown(&reset.key);
        }
    }

    /// Replaces a connection by a newer incarnation of its flow, if `segment`, which fits the old one nowhere,
    /// proves that there is one.
    pub(super) fn reincarnate(&mut self, id: ConnId, segment: &Incoming<'_>, now: Instant) -> bool {
        let Some(adoption) = self.adoption(segment) else { return false };
        let Some(tcb) = self.connections.get(id) else { return false };
        let duplicate = adoption.ack == tcb.iss + 1 && adoption.seq == tcb.irs + 1;
        let earlier = Earlier {
            rcv_nxt: tcb.rcv_nxt,
            ts_recent: tcb.remaining_timestamps().map(|(recent, _)| recent),
            cookie_epoch: tcb.cookie_epoch(),
            closed: None,
            disowned: false,
        };
        if duplicate || !self.may_follow(&segment.key, &adoption, &earlier, now) {
            return false;
        }
        self.count_reincarnated(&segment.key);
        self.supersede(id, now);
        // Where admission fails (a full accept queue, that is: a place in the table has just become free), the peer comes
        // again, and finds no earlier incarnation.
        self.begin(segment, &adoption, now).is_ok()
    }

    fn count_reincarnated(&mut self, key: &AnyFlowKey) {
        self.shared.counters.reincarnated += 1;
        if let Some(service) = self.service(key.local_addr()) {
            *self.reincarnated.entry(service).or_default() += 1;
        }
    }

    /// What a segment's cookie says, if it carries a valid one.
    fn adoption(&self, segment: &Incoming<'_>) -> Option<Adoption> {
        if !segment.has(Flags::ACK) || segment.flags.intersects(Flags::SYN | Flags::RST) {
            return None;
        }
        let Incoming { seq, ack, window, options: Options { timestamps, .. }, .. } = *segment;
        let accepted = self.judge(&segment.key, seq, ack, timestamps)?;
        let has_data = !segment.data.is_empty();
        let (arrived, queued, repeats) = (None, None, 0);
        Some(Adoption { accepted, seq, ack, window, timestamps, has_data, arrived, queued, repeats })
    }

    fn judge(
        &self,
        key: &AnyFlowKey,
        seq: Seq,
        ack: Seq,
        timestamps: Option<(u32, u32)>,
    ) -> Option<Accepted> {
        let (isn, cookie) = ((seq - 1).0, (ack - 1).0);
        let tsecr = timestamps.map(|(_, echo)| echo);
        let (epochs, clock, strictness) = (&self.epochs, &self.clock, self.strictness(key.local_addr()));
        match key {
            AnyFlowKey::V4(key) => validate(epochs, clock, strictness, key, isn, cookie, tsecr),
            AnyFlowKey::V6(key) => validate(epochs, clock, strictness, key, isn, cookie, tsecr),
        }
    }

    /// Whether the connection that this cookie opens was here and has closed.
    fn recall(&self, key: &AnyFlowKey, adoption: &Adoption) -> Recall {
        self.closed_flows.recall(adoption.accepted.slot.epoch, key, adoption.ack, adoption.seq)
    }

    /// Whether a valid cookie may follow an earlier incarnation: its flow has not closed before, and either RFC 6191 §2
    /// holds (a later timestamp, or without one a later sequence number), or its epoch shows that it is younger: the
    /// clocks of a client that was rebooted start anywhere. Where the earlier one is over, that the cookie was not used yet is
    /// enough in the end: who has it received our SYN-ACK, and believed in it.
    fn may_follow(&mut self, key: &AnyFlowKey, adoption: &Adoption, earlier: &Earlier, now: Instant) -> bool {
        if self.recall(key, adoption) != Recall::New {
            self.shared.counters.replays_refused += 1;
            return false;
        }
        let tsval = adoption.timestamps.map(|(value, _)| value);
        let newer = is_newer((adoption.seq - 1, tsval), (earlier.rcv_nxt, earlier.ts_recent));
        let epoch = adoption.accepted.slot.epoch;
        let newer = newer
            || earlier.disowned
            || earlier.closed.is_some_and(|ago| ago >= DISTRUST || began_within(ago, adoption, now))
            || earlier.cookie_epoch.is_some_and(|earlier| is_certainly_younger(epoch, earlier));
        self.shared.counters.incarnations_refused += u64::from(!newer);
        newer
    }

    /// Creates the connection and lets it have the segment that created it.
    fn begin(&mut self, segment: &Incoming<'_>, adoption: &Adoption, now: Instant) -> Result<(), StackDrop> {
        let has_data = !segment.data.is_empty();
        match self.admit(segment.key, segment.link, adoption, has_data, now) {
            Ok(id) => {
                if let Some(tcb) = self.connections.get_mut(id) {
                    tcb.handle(segment, now, &mut self.shared);
                }
                self.settle(id, now);
                Ok(())
            }
            Err(why) => {
                self.refuse(adoption, segment.key, segment.link, why);
                Err(why)
            }
        }
    }

    fn admit(
        &mut self,
        key: AnyFlowKey,
        link: Link,
        adoption: &Adoption,
        has_data: bool,
        now: Instant,
    ) -> Result<ConnId, StackDrop> {
        let (epoch, limit) = (adoption.accepted.slot.epoch, self.shared.config.max_closed_flows);
        let recall = self.recall(&key, adoption);
        if recall == Recall::Closed {
            self.shared.counters.replays_refused += 1;
            return Err(StackDrop::Replay);
        }
        if recall == Recall::Forgotten || has_data && !self.closed_flows.has_room(epoch, limit) {
            self.shared.counters.replay_table_full += 1;
            return Err(StackDrop::ReplayTableFull);
        }
        let Some(service) = self.service(key.local_addr()) else {
            self.shared.counters.no_listener += 1;
            return Err(StackDrop::NoListener);
        };
        let waiting = self.waiting.entry(service).or_default();
        if *waiting >= self.shared.config_of(Some(service)).accept_backlog {
            self.shared.counters.backlog_full += 1;
            return Err(StackDrop::BacklogFull);
        }
        let adoption = self.refined(&key, adoption, now);
        let tcb = Tcb::adopted(key, link, service, &adoption, now, &self.shared.config);
        let handshake = tcb.handshake();
        let Some(conn) = self.insert(tcb) else {
            self.shared.counters.table_full += 1;
            return Err(StackDrop::TableFull);
        };
        if let Some(handshake) = handshake {
            self.shared.handshakes.record(handshake);
        }
        *self.waiting.entry(service).or_default() += 1;
        self.shared.counters.adopted += 1;
        self.shared.events.push_back(Event::Incoming { conn, key, service });
        Ok(conn)
    }

    /// An adoption with the MSS and the window shift of the SYN itself, where the half-open queue remembers it: a cookie
    /// rounds them down. An MSS below the least that a cookie can say stays that. Without timestamps a cookie does not say
    /// either when it left, and the queue does; and it alone knows how often the answer was repeated.
    fn refined(&self, key: &AnyFlowKey, adoption: &Adoption, now: Instant) -> Adoption {
        let mut refined = *adoption;
        let entry = self.half_opens.get(key, self.clock.epoch);
        if let Some(entry) = entry.filter(|entry| Seq(entry.irs) + 1 == adoption.seq) {
            let accepted = &mut refined.accepted;
            accepted.mss = accepted.mss.max(entry.syn.mss.unwrap_or(0));
            accepted.window_scale = accepted.window_scale.and(entry.syn.window_scale);
            refined.queued = self.half_opens.since_answer(key, adoption.arrived.unwrap_or(now));
            refined.repeats = self.half_opens.repeats(key);
        }
        refined
    }

    /// XDP need not know a refused flow. Its source is proven, so it is told, except for a replay: that may come
    /// from somebody else. An ACK that a full accept queue ignores leaves all as it was: its flow is offered again.
    fn refuse(&mut self, adoption: &Adoption, key: AnyFlowKey, link: Link, why: StackDrop) {
        let service = self.service(key.local_addr());
        if why == StackDrop::BacklogFull && !self.shared.config_of(service).reset_on_overflow {
            return;
        }
        self.shared.events.push_back(Event::FlowReleased { key });
        if why != StackDrop::Replay {
            let options = Options::default();
            let (seq, ack) = (adoption.ack, adoption.seq);
            let segment = Outgoing { seq, ack, flags: Flags::RST | Flags::ACK, window: 0, options };
            self.reply(Reply { key, link, segment });
        }
    }

    fn reply_from_time_wait(&mut self, segment: &Incoming<'_>, remains: &Remains, now: Instant) {
        let clock = now.millis() as u32;
        let timestamps = remains.timestamps.map(|(recent, offset)| (offset.wrapping_add(clock), recent));
        let reply = Outgoing {
            seq: remains.snd_nxt,
            ack: remains.rcv_nxt,
            flags: Flags::ACK,
            window: TIME_WAIT_WINDOW,
            options: Options { timestamps, ..Options::default() },
        };
        self.reply(Reply { key: segment.key, link: segment.link, segment: reply });
    }
}

/// Whether the SYN-ACK that an adoption echoes left within this time, give or take a unit of the echo (4.2 ms): so nothing from
/// before can be an answer to it. The echo is not authenticated, but the cookie is, and nobody else knows it.
fn began_within(time: Duration, adoption: &Adoption, now: Instant) -> bool {
    let age = adoption.accepted.sent.map(|sent| cookie::age(sent, adoption.arrived.unwrap_or(now).0));
    age.is_some_and(|age| Duration::from_nanos(age) <= time)
}

/// RFC 6191 §2: whether a SYN with this sequence number and TSval is newer than a connection that got as far as this
/// RCV.NXT and TS.Recent.
pub(super) fn is_newer((isn, tsval): (Seq, Option<u32>), (rcv_nxt, recent): (Seq, Option<u32>)) -> bool {
    match (recent, tsval) {
        (Some(recent), Some(value)) if value != recent => (value.wrapping_sub(recent) as i32) > 0,
        (None, Some(_)) => true,
        (Some(_), Some(_)) | (_, None) => isn.after(rcv_nxt),
    }
}

impl Earlier {
    /// One that closed this long ago.
    fn closed(remains: &Remains, age: Duration) -> Self {
        Self {
            rcv_nxt: remains.rcv_nxt,
            ts_recent: remains.timestamps.map(|(recent, _)| recent),
            cookie_epoch: None,
            closed: Some(age),
            disowned: remains.disowned,
        }
    }
}

/// Whether a cookie of `epoch` was made after one of epoch `earlier`. Its key, and with it its epoch, is authentic: the
/// SYN it answers came while that epoch lasted on the machine that answered. One epoch later may still be the same
/// moment on a machine of the same fleet whose clock is ahead; two are not.
fn is_certainly_younger(epoch: u32, earlier: u32) -> bool {
    epoch.wrapping_sub(earlier) as i32 >= 2
}

/// Whether neither end of the connection that closed can have sent a segment: it comes after the peer's FIN, or
/// acknowledges what comes after ours.
fn is_beyond(segment: &Incoming<'_>, remains: &Remains) -> bool {
    segment.seq.after(remains.rcv_nxt) || segment.has(Flags::ACK) && segment.ack.after(remains.snd_nxt)
}

/// RFC 9293 §3.10.7.4, first check, with the window that TIME_WAIT's acknowledgements offer.
fn is_in_sequence(segment: &Incoming<'_>, remains: &Remains) -> bool {
    let in_window = |seq: Seq| seq.within(remains.rcv_nxt, TIME_WAIT_WINDOW.into());
    in_window(segment.seq) || segment.len() > 0 && in_window(segment.end() - 1)
}

/// RFC 7323 §5.3: not an old duplicate.
fn is_current(segment: &Incoming<'_>, remains: &Remains) -> bool {
    match (remains.timestamps, segment.options.timestamps) {
        (Some((recent, _)), Some((value, _))) => (value.wrapping_sub(recent) as i32) >= 0,
        (Some(_), None) => false,
        (None, _) => true,
    }
}
