//! What follows a valid cookie: the checks that are only worth their time then, admission, and the entry in the flow table;
//! a reset for what is refused. Not whether the cookie is valid. Each of both starts from the frame again, so that BPF, which
//! gives a chain of calls 512 bytes of stack, needs to keep nothing for it meanwhile.

use super::{Arrival, Env, Insertion, Judgement, Tables, admission, budget, empty_answer};
use crate::flow::FlowKey;
use crate::known::Place;
use crate::map::{FLOW_TIMESTAMPS, Flow};
use crate::packet::build::Headers;
use crate::packet::{Ethernet, Family, Flags, FrameMut, Options, Tcp};
use crate::reason::Reason;

/// What is known of a segment that does not stand in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proven {
    /// Id of the service it is for.
    pub service: u32,
    /// Whether its source is on the allow list; known of one with a valid cookie alone.
    pub allowed: bool,
    /// Whether it was kept for who watches.
    pub traced: bool,
    /// Whether it passes, whatever the judgement: its service is in dry run, and no flow of the engine's has it.
    pub dry_run: bool,
}

/// Opens the flow of a segment whose cookie is valid; `l3` is where its IP header begins. Where the reason is one that stands
/// for an answer, the flow was refused, and the segment is to be [reset](reset).
#[inline(always)]
pub fn open<A, F, E>(frame: &mut F, env: &E, l3: usize, proven: Proven) -> Reason
where
    A: Family,
    F: FrameMut + ?Sized,
    E: Env + Tables<A> + ?Sized,
{
    let (Ok(reason) | Err(reason)) = try_open::<A, F, E>(frame, env, l3, proven);
    reason
}

#[inline(always)]
fn try_open<A, F, E>(frame: &mut F, env: &E, l3: usize, proven: Proven) -> Judgement
where
    A: Family,
    F: FrameMut + ?Sized,
    E: Env + Tables<A> + ?Sized,
{
    let settings = env.settings().ok_or(Reason::AckInvalid)?;
    let ethernet = Ethernet::parse(frame).ok_or(Reason::Truncated)?;
    frame.forget();
    let ip = A::parse(frame, l3).ok_or(Reason::Truncated)?;
    let arrival = Arrival { ip, settings, now: env.now() };
    let tcp = Tcp::parse(frame, &arrival.ip)?;
    let options = arrival.options(frame, &tcp)?;
    if !A::header_checksum_ok(frame, &arrival.ip) {
        return Err(Reason::IpBadChecksum);
    }
    // What the flow is remembered by is all that the engine has when the frame is lost; the data is covered, too.
    if arrival.checksum_ok(frame) != Some(true) {
        return Err(Reason::AckBadChecksum);
    }
    budget::note_verified(env, settings, arrival.ip.src, arrival.now);
    admission::admit(env, settings, proven, arrival.ip.src, arrival.now)?;
    let key = arrival.key(&tcp);
    let inserted = env.insert_flow(&key, &arrival.flow(env.engine(env.queue()), &ethernet, &tcp, &options));
    if inserted == Insertion::Full {
        return Err(Reason::FlowMapFull);
    }
    if inserted == Insertion::Inserted {
        admission::count(env, settings, proven.service, arrival.ip.src);
    }
    env.enter(Place::of(settings.hash_key, &key));
    Ok(Reason::AckValid)
}

/// Turns a segment into its reset, and says whether there was room. The source of a flow that is refused is proven: an answer
/// tells it, silence would leave it hanging (RFC 9293 §3.5.2).
#[inline(always)]
pub fn reset<A: Family, F: FrameMut + ?Sized>(frame: &mut F, l3: usize) -> bool {
    let Some(ip) = A::parse(frame, l3) else { return false };
    let Ok(tcp) = Tcp::parse(frame, &ip) else { return false };
    Headers { seq: tcp.ack, flags: Flags::RST, ..empty_answer(&ip, &tcp) }.answer(frame, l3).is_some()
}

impl<A: Family> Arrival<'_, A> {
    #[inline(always)]
    fn flow(&self, owner: u32, ethernet: &Ethernet, tcp: &Tcp, options: &Options) -> Flow {
        let (tsval, tsecr) = options.timestamps.unwrap_or_default();
        Flow {
            created: self.now,
            generation: self.settings.generation,
            owner,
            seq: tcp.seq.0,
            ack: tcp.ack.0,
            tsval,
            tsecr,
            window: tcp.window,
            flags: if options.timestamps.is_some() { FLOW_TIMESTAMPS } else { 0 },
            peer_mac: ethernet.src,
            vlan_count: ethernet.vlan.count,
            pad: 0,
            vlan: ethernet.vlan.tags,
        }
    }

    /// The flow that the segment belongs to.
    #[inline(always)]
    pub(super) fn key(&self, tcp: &Tcp) -> FlowKey<A> {
        FlowKey { peer: self.ip.src, local: self.ip.dst, peer_port: tcp.src_port, local_port: tcp.dst_port }
    }
}
