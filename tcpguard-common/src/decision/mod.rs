//! What becomes of a frame: the one decision that XDP takes, generic over packet memory, maps and clock so that
//! tests take it too. It keeps no state of its own; everything it knows comes from [`Env`] and the frame.

use crate::cookie::{self, Clock, Epochs, Strictness, SynOptions};
use crate::filter::Point;
use crate::fingerprint::{self, WAYS};
use crate::flow::{FlowKey, V4, V6};
use crate::known::{Place, Presence};
use crate::map::{
    ABI_VERSION, DRY_RUN, EpochSlot, Flow, Interface, MODE_COOKIE, MODE_OFF, MODE_STATEFUL, MODES,
    ON_EXIT_PASS, PLACE_HELD, PLACE_SHARED, Service, ServiceKey, ServicePlace, Settings, is_under_pressure,
};
use crate::packet::build::{Headers, Link};
use crate::packet::{Complaint, Ethernet, Family, Fault, Flags, Frame, FrameMut, Ip, Options, Tcp, checksum};
use crate::reason::{Outcome, Reason};
use crate::seq::Seq;
use crate::trace::{self, NO_SERVICE};

pub mod admission;
pub mod budget;
pub mod complaint;
pub mod filter;
pub mod opening;

use filter::{Listed, Rules, Spans};
use opening::Proven;

/// What the driver is to do with the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it to the host.
    Pass,
    /// Drop it.
    Drop,
    /// Send it back where it came from, as it now is.
    Transmit,
    /// Hand it to the AF_XDP socket with this [index](crate::map::xsk_index).
    Redirect(u32),
}

/// What became of a flow that was to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insertion {
    /// It is remembered from now on.
    Inserted,
    /// It was already, as it stays.
    Known,
    /// There is no room.
    Full,
}

/// The tables that exist once per address family.
pub trait Tables<A: Point>: Spans<A> {
    /// One place of the array in front of the services, by [`ServiceKey::place`].
    fn place(&self, index: u32) -> Option<ServicePlace<A>>;
    /// The service at exactly this address and port.
    fn service(&self, key: &ServiceKey<A>) -> Option<Service>;
    /// Whether the flow is in the flow table, which the front is asked first.
    fn knows_flow(&self, key: &FlowKey<A>) -> bool;
    /// Remembers a flow that is not remembered yet.
    fn insert_flow(&self, key: &FlowKey<A>, flow: &Flow) -> Insertion;
}

/// The maps and the clock, seen from one receive queue of one guarded interface.
pub trait Env: Epochs + Rules + budget::Ledger + admission::Census + Tables<V4> + Tables<V6> {
    /// What the daemon last wrote.
    fn settings(&self) -> Option<&Settings>;
    /// The interface the frame arrived on.
    fn interface(&self) -> Option<&Interface>;
    /// One word of the bitmap of protected ports: ports `64 * word` and on, lowest bit first.
    fn ports(&self, word: u32) -> u64;
    /// Whether nobody is in this bucket of the front, nor in those of TIME_WAIT fingerprints that belong to it. Most segments
    /// of strangers end here, so they look once for both; who does not know says no.
    #[inline(always)]
    fn is_vacant(&self, _bucket: u32) -> bool {
        false
    }
    /// What the front of the flow tables says of a flow.
    fn presence(&self, place: Place) -> Presence;
    /// Enters a flow into the front, which was inserted into its table.
    fn enter(&self, place: Place);
    /// The bucket of TIME_WAIT fingerprints that this [place](fingerprint::bucket) is in.
    fn fingerprints(&self, place: u32) -> [u32; WAYS as usize];
    /// The receive queue that the frame arrived on.
    fn queue(&self) -> u32;
    /// The [index](crate::map::xsk_index) of the engine that a receive queue of this interface has, or would have.
    fn engine(&self, queue: u32) -> u32;
    /// When that engine last turned, as a [heartbeat](crate::map::heartbeat); 0 for never.
    fn heartbeat(&self, engine: u32) -> u64;
    /// Whether that engine has a socket to redirect to.
    fn has_socket(&self, engine: u32) -> bool;
    /// The coarse monotonic clock, nanoseconds: up to a scheduler tick behind the precise one.
    fn now(&self) -> u64;
    /// Counts one segment to a service; where it is not known, that is [`NO_SERVICE`]. One that passes for a `dry_run` counts
    /// beside the others.
    fn count(&self, reason: Reason, service: u32, dry_run: bool);
    /// Keeps a copy of the frame as it arrived, for who watches: a segment to this service is about to be judged.
    fn trace_arrival(&self, service: u32);
    /// Records the frame that was kept, and what it was turned into if it is `answered`.
    fn trace_verdict(&self, reason: Reason, answered: bool, dry_run: bool);

    /// Opens the flow of a segment whose cookie is valid: [`opening::open`]. BPF's verifier follows a function of its own once,
    /// and gives it a stack of its own.
    #[inline(always)]
    fn open<A: Family, F: FrameMut + ?Sized>(&self, frame: &mut F, l3: usize, proven: Proven) -> Reason
    where
        Self: Tables<A>,
    {
        opening::open::<A, F, Self>(frame, self, l3, proven)
    }

    /// Answers a segment with a reset: [`opening::reset`], likewise.
    #[inline(always)]
    fn reset<A: Family, F: FrameMut + ?Sized>(&self, frame: &mut F, l3: usize) -> bool {
        opening::reset::<A, F>(frame, l3)
    }

    /// Judges what may be an ICMP error: [`complaint::judge`], likewise.
    #[inline(always)]
    fn judge_complaint<A: Family, F: FrameMut + ?Sized>(
        &self,
        frame: &mut F,
        l3: usize,
        queues: u32,
    ) -> Option<Reason>
    where
        Self: Tables<A>,
    {
        complaint::judge::<A, F, Self>(frame, self, l3, queues)
    }
}

/// Judges one frame, answering it in place where the verdict is [`Verdict::Transmit`]. Exactly one reason is
/// counted for a TCP segment to a protected `(address, port)`, for what may be one ([`Reason::HeaderChain`]), and for an ICMP
/// error about a known flow; none for anything else.
#[inline(always)]
pub fn decide<F: FrameMut + ?Sized, E: Env + ?Sized>(frame: &mut F, env: &E) -> Verdict {
    let mut proven = Proven::default();
    let Some(reason) = judge(frame, env, &mut proven) else { return Verdict::Pass };
    env.count(reason, proven.service, proven.dry_run);
    let outcome = if proven.dry_run { Outcome::Passed } else { reason.outcome() };
    if proven.traced {
        env.trace_verdict(reason, outcome == Outcome::Answered, proven.dry_run);
    }
    match outcome {
        Outcome::Passed => Verdict::Pass,
        Outcome::Dropped => Verdict::Drop,
        Outcome::Answered => Verdict::Transmit,
        Outcome::Redirected => Verdict::Redirect(env.engine(env.queue())),
    }
}

/// `Err` only ends the judgement early; it means the same as `Ok`.
type Judgement = Result<Reason, Reason>;

#[inline(always)]
fn judge<F: FrameMut + ?Sized, E: Env + ?Sized>(
    frame: &mut F,
    env: &E,
    proven: &mut Proven,
) -> Option<Reason> {
    let interface = env.interface()?;
    let ethernet = Ethernet::parse(frame)?;
    if interface.armed == 0 || ethernet.dst != interface.mac {
        return None;
    }
    let l3 = frame.opaque_offset(ethernet.l3);
    frame.forget();
    match ethernet.ether_type {
        <V4 as Family>::ETHER_TYPE => judge_family::<V4, _, _>(frame, env, l3, interface.queues, proven),
        <V6 as Family>::ETHER_TYPE => judge_family::<V6, _, _>(frame, env, l3, interface.queues, proven),
        _ => None,
    }
}

#[inline(always)]
fn judge_family<A, F, E>(
    frame: &mut F,
    env: &E,
    l3: usize,
    queues: u32,
    proven: &mut Proven,
) -> Option<Reason>
where
    A: Family,
    F: FrameMut + ?Sized,
    E: Env + Tables<A> + ?Sized,
{
    match judge_ip::<A, F, E>(frame, env, l3, queues, proven) {
        None if !Complaint::<A>::may_be(frame, l3) => None,
        None => {
            let reason = env.judge_complaint::<A, F>(frame, l3, queues)?;
            // What is said about a flow is none of its service's segments.
            proven.service = NO_SERVICE;
            if env.settings().is_some_and(trace::is_on) {
                env.trace_arrival(NO_SERVICE);
                proven.traced = true;
            }
            Some(reason)
        }
        Some(Reason::AckValid) => match env.open::<A, F>(frame, l3, *proven) {
            refusal if refusal.outcome() == Outcome::Answered && !env.reset::<A, F>(frame, l3) => {
                Some(Reason::RefusedSilently)
            }
            reason => Some(reason),
        },
        reason => reason,
    }
}

/// A function of its own: BPF gives both families together 512 bytes of stack, too few for one function to hold
/// both. For the same reason it leaves the flow of a valid cookie to whoever called it: [`Reason::AckValid`] says that there is
/// one, and what is known of it is then in `proven`.
#[inline(never)]
fn judge_ip<A, F, E>(frame: &mut F, env: &E, l3: usize, queues: u32, proven: &mut Proven) -> Option<Reason>
where
    A: Family,
    F: FrameMut + ?Sized,
    E: Env + Tables<A> + ?Sized,
{
    let mut ip = A::parse(frame, l3)?;
    // Something is there even where the ports are hidden.
    let [_, _, port_high, port_low] = frame.load::<4>(ip.l4)?;
    let Service { id, mode, strictness } = if ip.fault == Fault::HEADER_CHAIN {
        hidden(env)?
    } else {
        protected(env, ip.dst, [port_high, port_low])?
    };
    // What follows is the same to the verifier, whatever it is that is wrong and whichever way the service was found.
    ip.fault = ip.fault.opaque(frame);
    let word = frame.opaque(u32::from(mode) | u32::from(strictness.0) << 16);
    let strictness = Strictness((word >> 16) as u16);
    let service = Service { id: frame.opaque(id), mode: word as u16, strictness };
    let settings = env.settings()?;
    if settings.abi != ABI_VERSION {
        return None;
    }
    proven.service = service.id;
    proven.dry_run = service.mode & DRY_RUN != 0;
    if trace::is_on(settings) {
        env.trace_arrival(service.id);
        proven.traced = true;
    }
    let arrival = Arrival { ip, settings, now: env.now() };
    let (Ok(reason) | Err(reason)) = arrival.judge(frame, env, queues, service, proven);
    Some(reason)
}

/// The service at this address and port: exact address first, then any. The bitmap spares everybody else the
/// hash lookups.
#[inline(always)]
fn protected<A: Family, E: Env + Tables<A> + ?Sized>(env: &E, addr: A, port: [u8; 2]) -> Option<Service> {
    let number = u32::from(u16::from_be_bytes(port));
    if env.ports(number / 64) >> (number % 64) & 1 == 0 {
        return None;
    }
    service_at(env, &ServiceKey::new(addr, port)).or_else(|| service_at(env, &ServiceKey::new(A::ANY, port)))
}

/// What stands for the service of a segment that hides its port, while it could be a guarded one's.
#[inline(always)]
fn hidden<E: Env + ?Sized>(env: &E) -> Option<Service> {
    (env.ports(0) & 1 != 0).then_some(Service {
        id: NO_SERVICE,
        mode: MODE_COOKIE,
        strictness: Strictness::NEVER,
    })
}

/// One array read where each service has a place of its own.
#[inline(always)]
fn service_at<A: Family, E: Env + Tables<A> + ?Sized>(env: &E, key: &ServiceKey<A>) -> Option<Service> {
    let place = Tables::<A>::place(env, key.place())?;
    if place.state & PLACE_HELD != 0 && place.key == *key {
        Some(place.service)
    } else if place.state & PLACE_SHARED != 0 {
        env.service(key)
    } else {
        None
    }
}

/// Segments are only dealt with while somebody is there to take them. An engine that stopped turning, or lost
/// its socket, may be back in a moment: until the grace is over clients are left to retry. A queue that came up
/// after the daemon has no engine; whether the daemon lives is then the first engine's to say. Returns whether the
/// engine's ring is under pressure.
#[inline(always)]
fn check_alive<E: Env + ?Sized>(env: &E, settings: &Settings, now: u64, queues: u32) -> Result<bool, Reason> {
    let queue = env.queue();
    let served = queue < queues;
    let engine = env.engine(if served { queue } else { 0 });
    let heartbeat = env.heartbeat(engine);
    let age = now.wrapping_sub(heartbeat);
    // The coarse clock may lie behind the one the engine read: then this is negative.
    if age <= settings.stale_after || age.cast_signed() < 0 {
        if !served {
            return Err(Reason::NoEngine);
        }
        return if env.has_socket(engine) { Ok(is_under_pressure(heartbeat)) } else { Err(Reason::Grace) };
    }
    if age - settings.stale_after <= settings.exit_grace {
        return Err(Reason::Grace);
    }
    Err(if settings.on_exit == ON_EXIT_PASS { Reason::ExitPass } else { Reason::ExitDrop })
}

/// Whether the flow with this place in the front is in its table.
#[inline(always)]
fn knows<A: Family, E: Env + Tables<A> + ?Sized>(env: &E, place: Place, flow: &FlowKey<A>) -> bool {
    match env.presence(place) {
        Presence::Known => true,
        Presence::Unknown => false,
        Presence::Unsure => env.knows_flow(flow),
    }
}

/// A segment to a protected service, and what it takes to judge it.
struct Arrival<'a, A> {
    ip: Ip<A>,
    settings: &'a Settings,
    now: u64,
}

impl<A: Family> Arrival<'_, A> {
    #[inline(always)]
    fn judge<F, E>(
        &self,
        frame: &mut F,
        env: &E,
        queues: u32,
        service: Service,
        proven: &mut Proven,
    ) -> Judgement
    where
        F: FrameMut + ?Sized,
        E: Env + Tables<A> + ?Sized,
    {
        if service.mode & MODES == MODE_OFF {
            return Err(Reason::ServiceOff);
        }
        // First of all that drops: denied stays denied while no daemon lives, and costs the least. The word is read once,
        // for it may change at any time.
        let filters = frame.opaque(self.settings.filters);
        let listed = filter::look_up(env, filters, self.ip.src, self.now);
        if listed == Listed::Denied {
            return Err(Reason::FilterDeny);
        }
        let allowed = frame.opaque(u32::from(listed == Listed::Allowed)) != 0;
        let pressed = check_alive(env, self.settings, self.now, queues)?;
        if let Some(fault) = self.ip.fault.reason() {
            return Err(fault);
        }
        let mode = frame.opaque(service.mode.into()) as u16;
        let tcp = Tcp::parse(frame, &self.ip)?;
        self.check_possible(frame, &tcp)?;
        if tcp.flags.contains(Flags::SYN) && !tcp.flags.contains(Flags::ACK) {
            return self.judge_syn(frame, env, &tcp, allowed, mode, service.strictness);
        }
        let flow = self.key(&tcp);
        let hash = A::hash_flow_fast(self.settings.hash_key, &flow);
        let place = Place::of_hash(hash);
        let vacant = env.is_vacant(place.bucket);
        let reason = if !vacant && knows(env, place, &flow) {
            // A connection from before the dry run: the host knows nothing of it.
            proven.dry_run = false;
            Reason::FlowKnown
        } else if mode & DRY_RUN != 0 && !tcp.flags.contains(Flags::SYN) {
            Reason::NotFollowed
        } else if tcp.flags.contains(Flags::RST) {
            let stateful =
                mode & MODES == MODE_STATEFUL && budget::charge_stateful(env, self.settings, self.now, false);
            if stateful { Reason::RstStateful } else { Reason::NoFlowRst }
        } else if tcp.flags.contains(Flags::SYN) || !tcp.flags.contains(Flags::ACK) {
            Reason::NoFlow
        } else {
            proven.allowed = allowed;
            if !vacant && self.is_in_time_wait(env, hash) {
                Reason::TimeWait
            } else {
                self.judge_ack(frame, env, &tcp, &flow, service.strictness)?
            }
        };
        if pressed && matches!(reason, Reason::FlowKnown | Reason::TimeWait) {
            budget::charge_flow(env, self.settings, hash, self.now)?;
        }
        Ok(reason)
    }

    /// What no TCP sends. Data on a SYN, ECE, CWR and AE are legal; so are PSH and URG anywhere.
    #[inline(always)]
    fn check_possible<F: FrameMut + ?Sized>(&self, frame: &F, tcp: &Tcp) -> Result<(), Reason> {
        const SOME: Flags = Flags(0x3f);
        if tcp.src_port == [0; 2] || tcp.dst_port == [0; 2] {
            return Err(Reason::BadPort);
        }
        let group_mac = frame.load::<1>(Ethernet::SRC).is_none_or(|[first]| first & 1 != 0);
        if group_mac || self.ip.src == self.ip.dst || !self.ip.src.is_unicast() {
            return Err(Reason::BadSource);
        }
        if !self.ip.dst.is_unicast() {
            return Err(Reason::BadDestination);
        }
        let syn = tcp.flags.contains(Flags::SYN);
        if !tcp.flags.intersects(SOME) || syn && tcp.flags.intersects(Flags::FIN | Flags::RST) {
            return Err(Reason::BadFlags);
        }
        Ok(())
    }

    /// Whether the TCP checksum holds over header and data; `None` for a segment too long to look at all of it.
    #[inline(always)]
    fn checksum_ok<F: Frame + ?Sized>(&self, frame: &F) -> Option<bool> {
        let Ip { l4, l4_len, .. } = self.ip;
        // Without data it is not worth a call.
        let headers_alone = l4_len <= checksum::MAX_HEADER && l4_len.is_multiple_of(4);
        let sum =
            if headers_alone { checksum::of_header(frame, l4, l4_len)? } else { frame.sum(l4, l4_len)? };
        Some(checksum::holds(sum + checksum::pseudo(self.ip.src, self.ip.dst, self.ip.l4_len)))
    }

    #[inline(always)]
    fn options<F: FrameMut + ?Sized>(&self, frame: &F, tcp: &Tcp) -> Result<Options, Reason> {
        Options::parse(frame, self.ip.l4 + Tcp::LEN, tcp.header_len - Tcp::LEN).ok_or(Reason::BadOptions)
    }

    /// Answers a SYN with a cookie, or leaves that to the stack. It never looks at the flow table: a new incarnation on a known tuple shows
    /// itself by the ACK that its cookie comes back with.
    #[inline(always)]
    fn judge_syn<F, E>(
        &self,
        frame: &mut F,
        env: &E,
        tcp: &Tcp,
        allowed: bool,
        mode: u16,
        strictness: Strictness,
    ) -> Judgement
    where
        F: FrameMut + ?Sized,
        E: Env + ?Sized,
    {
        if !A::header_checksum_ok(frame, &self.ip) {
            return Err(Reason::IpBadChecksum);
        }
        // A corrupted SYN answered would be a connection with corrupted options.
        if !self.checksum_ok(frame).ok_or(Reason::SynUnanswerable)? {
            return Err(Reason::SynBadChecksum);
        }
        let options = self.options(frame, tcp)?;
        let slot = env.slot(self.settings.epoch).ok_or(Reason::SynUnanswerable)?;
        let dry_run = mode & DRY_RUN != 0;
        if !allowed {
            budget::charge_reply(env, self.settings, self.ip.src, self.now, dry_run)?;
        }
        if mode & MODES == MODE_STATEFUL && budget::charge_stateful(env, self.settings, self.now, dry_run) {
            return Ok(Reason::SynStateful);
        }
        if !dry_run {
            let answer = self.syn_ack(frame, tcp, &options, slot, strictness);
            answer.answer(frame, self.ip.l3).ok_or(Reason::SynUnanswerable)?;
        }
        Ok(if cookie::mss_is_small::<A>(options.mss) {
            Reason::CookieSentSmallMss
        } else {
            Reason::CookieSent
        })
    }

    /// The SYN-ACK offers MSS, and of the other options exactly those that the SYN offered, as far as the cookie remembers
    /// them: for any SYN that makes it at most four bytes longer.
    #[inline(always)]
    fn syn_ack<F: FrameMut + ?Sized>(
        &self,
        frame: &F,
        tcp: &Tcp,
        options: &Options,
        slot: &EpochSlot,
        strictness: Strictness,
    ) -> Headers<A> {
        let flow = self.key(tcp);
        // RFC 3168 §6.1.1: a SYN with ECE and CWR is answered with ECE, if the cookie can remember it. Calculated, not branched
        // on, which would double what the verifier has to follow.
        let bits = frame.opaque(tcp.flags.0.into());
        let ecn = (bits >> 7) & (bits >> 6) & u32::from(options.timestamps.is_some());
        let syn = SynOptions {
            mss: options.mss.map(|mss| frame.opaque(mss.into()) as u16),
            // An absent option's value is whatever the register held. Hidden, nothing is calculated with it before it is known
            // to be there: the verifier would take that for arithmetic on a pointer that was in the register.
            window_scale: options.window_scale.map(|shift| frame.opaque(shift.into()) as u8),
            sack_permitted: options.sack_permitted,
            timestamps: options.timestamps.map(|(value, _)| value),
            ecn: ecn != 0,
        };
        let cookie = cookie::encode(slot, strictness, &flow, tcp.seq.0, &syn, self.now);
        Headers {
            seq: Seq(cookie.isn),
            ack: tcp.seq + 1,
            flags: Flags::SYN | Flags::ACK | Flags((ecn as u8) << 6),
            window: slot.window,
            options: cookie.options::<A>(slot, &syn),
            ..empty_answer(&self.ip, tcp)
        }
    }

    /// Whether the flow with this [hash](Family::hash_flow_fast) is in TIME_WAIT. Asked before a cookie is looked at, so that the
    /// replay of one that opened a closed flow meets the stack's memory of it.
    #[inline(always)]
    fn is_in_time_wait<E: Env + ?Sized>(&self, env: &E, hash: u64) -> bool {
        let (place, word) = fingerprint::of_hash(hash);
        let [a, b, c, d] = env.fingerprints(place);
        a == word || b == word || c == word || d == word
    }

    /// Checks the ACK of a flow that nobody knows.
    #[inline(always)]
    fn judge_ack<F, E>(
        &self,
        frame: &F,
        env: &E,
        tcp: &Tcp,
        flow: &FlowKey<A>,
        strictness: Strictness,
    ) -> Judgement
    where
        F: FrameMut + ?Sized,
        E: Env + Tables<A> + ?Sized,
    {
        let options = self.options(frame, tcp)?;
        let clock =
            Clock { epoch: self.settings.epoch, second_half: self.settings.epoch_second_half != 0, extra: 0 };
        let (client_isn, isn) = ((tcp.seq - 1).0, (tcp.ack - 1).0);
        // As with a SYN's options, an absent one's value is hidden; and whether it is absent, too, so that nothing can be
        // concluded from that.
        let echo = frame.opaque(options.timestamps.map_or(0, |(_, echo)| echo));
        let stamped = frame.opaque(options.timestamps.is_some().into()) != 0;
        let tsecr = stamped.then_some(echo);
        if cookie::validate(env, &clock, strictness, flow, client_isn, isn, tsecr).is_none() {
            return Err(Reason::AckInvalid);
        }
        Ok(Reason::AckValid)
    }
}

/// Headers from here to where the segment came from, with nothing in them yet.
#[inline(always)]
fn empty_answer<A: Family>(ip: &Ip<A>, tcp: &Tcp) -> Headers<A> {
    Headers {
        link: Link::default(),
        src: ip.dst,
        dst: ip.src,
        ecn: 0,
        src_port: tcp.dst_port,
        dst_port: tcp.src_port,
        seq: Seq(0),
        ack: Seq(0),
        flags: Flags::default(),
        window: 0,
        options: Options::default(),
    }
}

#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod services;
#[cfg(test)]
pub(crate) mod table;
#[cfg(test)]
mod tests;
