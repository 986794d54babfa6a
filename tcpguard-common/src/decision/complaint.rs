//! ICMP errors about flows of ours: the host's kernel knows nothing of these flows, so the stack has to hear what routers say
//! of them, path MTU discovery (RFC 1191, RFC 8201) above all. What is not about a known flow is the host's, as ever.
//!
//! Anybody can send these. XDP asks whether a flow is meant and how often; the stack verifies the checksums and listens only to
//! what names a sequence number in flight. The budget is each flow's own, so that nobody who complains about his uses up what
//! others need.

use super::{Env, Tables, check_alive, knows, protected};
use crate::known::Place;
use crate::map::{ABI_VERSION, MODE_OFF, MODES};
use crate::packet::{Complaint, Family, Frame, Trouble};
use crate::reason::Reason;

/// Judges what is not a segment to a protected service: the datagram at `l3`, on an interface with `queues` engines.
#[inline(always)]
pub fn judge<A, F, E>(frame: &F, env: &E, l3: usize, queues: u32) -> Option<Reason>
where
    A: Family,
    F: Frame + ?Sized,
    E: Env + Tables<A> + ?Sized,
{
    let Complaint { key, what, .. } = Complaint::<A>::parse(frame, l3)?;
    let service = protected(env, key.local, key.local_port)?;
    let settings = env.settings()?;
    let now = env.now();
    // Without somebody who takes it, it comes to nothing in the kernel.
    if service.mode & MODES == MODE_OFF
        || settings.abi != ABI_VERSION
        || check_alive(env, settings, now, queues).is_err()
    {
        return None;
    }
    let hash = A::hash_flow_fast(settings.hash_key, &key);
    if !knows(env, Place::of_hash(hash), &key) {
        return None;
    }
    let rate = &settings.limits.complaints;
    let granted =
        rate.interval == 0 || env.complaints().is_none_or(|complaints| complaints.charge(hash, rate, now));
    Some(match what {
        _ if !granted => Reason::IcmpRate,
        Trouble::TooBig(_) => Reason::IcmpTooBig,
        Trouble::Hard | Trouble::Soft => Reason::IcmpError,
    })
}
