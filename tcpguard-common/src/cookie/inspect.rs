//! What a cookie seen on the wire says, and why it holds or does not: for an operator who looks at a capture. What becomes
//! of a segment, [`validate`] alone decides.

use super::{Accepted, Clock, Strictness, accept, accepted_bare, accepted_stamped, bare, stamped, validate};
use crate::flow::FlowKey;
use crate::map::{EPOCH_SLOTS, EpochSlot};
use crate::packet::Family;

/// How a cookie stands, now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// XDP accepts it.
    Valid,
    /// XDP does not accept it any more, but the stack does: it allows for the tick between the two checks.
    Late,
    /// It was made with a key that is still there, but of an epoch that is not accepted.
    OutOfTime,
    /// It was made with a key that is there, but strict in an epoch in which the service's cookies are not, or the other way
    /// round.
    OtherLayout,
    /// There is no key any more, or not yet, of an epoch that it may name.
    NoKey,
    /// Its code is that of none of the keys: it is no cookie of this machine's, or not of these addresses, ports and options.
    Wrong,
}

impl Validity {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Valid, Self::Late, Self::OutOfTime, Self::OtherLayout, Self::NoKey, Self::Wrong];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Late => "late",
            Self::OutOfTime => "out-of-time",
            Self::OtherLayout => "other-layout",
            Self::NoKey => "no-key",
            Self::Wrong => "wrong",
        }
    }

    /// What it means, in a sentence or two.
    pub const fn help(self) -> &'static str {
        match self {
            Self::Valid => "An ACK that carries it now opens a connection.",
            Self::Late => "XDP does not accept its epoch any more; the stack would for one epoch longer.",
            Self::OutOfTime => {
                "It was made here, or with the same secret, in an epoch that is not accepted now."
            }
            Self::OtherLayout => {
                "It was made with the same secret, but strict while the service was not here, or the other way round: by \
                 another machine. Machines that accept each other's cookies need the same `strict`, not `auto`."
            }
            Self::NoKey => {
                "The key of the epoch that it names is gone: it is older than a cookie lives, or no cookie."
            }
            Self::Wrong => {
                "No key here makes it for these addresses, ports, client ISN and options: forged, changed on the way, or \
                 of another machine."
            }
        }
    }
}

/// What a cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// How it stands.
    pub validity: Validity,
    /// What its bits say of the connection: nobody's word but the sender's, unless there is an `epoch`. The slot is that of the
    /// epoch, or empty.
    pub said: Accepted,
    /// The epoch with whose key it was made.
    pub epoch: Option<u32>,
}

/// Reads the cookie of a flow against all keys there are, with [`validate`]'s arguments.
pub fn inspect<A: Family>(
    slots: &[EpochSlot; EPOCH_SLOTS as usize],
    clock: &Clock,
    strictness: Strictness,
    flow: &FlowKey<A>,
    client_isn: u32,
    cookie: u32,
    tsecr: Option<u32>,
) -> Inspection {
    let names = |slot: &&EpochSlot| {
        slot.is_usable(slot.epoch)
            && match tsecr {
                Some(tsecr) => stamped::EPOCH.get(tsecr) == slot.epoch & 3,
                None => bare::EPOCH.get(cookie) == slot.epoch & 1,
            }
    };
    let made_with = |slot: &EpochSlot, strict| accept(slot, strict, flow, client_isn, cookie, tsecr);
    let made = slots.iter().filter(names).find_map(|slot| {
        let strict = strictness.at(slot.epoch);
        made_with(slot, strict).or_else(|| made_with(slot, !strict))
    });
    let accepts = |extra| {
        validate(slots, &Clock { extra, ..*clock }, strictness, flow, client_isn, cookie, tsecr).is_some()
    };
    let other = |made: &Accepted| !made.timestamps && made.strict != strictness.at(made.slot.epoch);
    let validity = match made {
        Some(made) if other(&made) => Validity::OtherLayout,
        Some(_) if accepts(0) => Validity::Valid,
        Some(_) if accepts(1) => Validity::Late,
        Some(_) => Validity::OutOfTime,
        None if slots.iter().any(|slot| names(&slot)) => Validity::Wrong,
        None => Validity::NoKey,
    };
    let nobodys = EpochSlot::default();
    let said = made.unwrap_or_else(|| match tsecr {
        Some(tsecr) => accepted_stamped::<A>(&nobodys, tsecr),
        None => accepted_bare::<A>(&nobodys, cookie, strictness.at(clock.epoch)),
    });
    Inspection { validity, said, epoch: made.map(|made| made.slot.epoch) }
}
