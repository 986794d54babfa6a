//! In which epochs the cookies of a service are strict. Not when a service becomes so: that is the daemon's to decide.

use crate::map::EPOCH_SLOTS;

/// In which epochs the cookies without timestamps of a service are in the strict layout: one bit for each slot of epochs.
///
/// An epoch has one layout from its first cookie to its last ACK: a service becomes strict, and stops being so, with the next
/// epoch. So a cookie that is under way stays valid until it expires, whichever layout it is in, and no ACK is ever tried as
/// both. To accept the weaker layout a moment longer than it is issued is to give a forger its odds: they are the strict ones
/// from the moment on in which the last epoch that was not strict is no longer accepted, at most one and a half periods (one
/// until the epoch ends, half of one until it is no longer accepted as the previous) after the daemon said so.
///
/// A guess without timestamps is accepted with a chance of 2^-25, and of 2^-29 in a strict epoch; one with timestamps with
/// 2^-37 in either. 2^25 guesses a day are 388 a second: below that, no more than one a day is accepted. 2^29 a day are 6214.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Strictness(pub u16);

impl Strictness {
    /// In no epoch.
    pub const NEVER: Self = Self(0);
    /// In every epoch.
    pub const ALWAYS: Self = Self((1 << EPOCH_SLOTS) - 1);

    /// Whether cookies of this epoch are.
    #[inline(always)]
    pub const fn at(self, epoch: u32) -> bool {
        self.0 >> (epoch % EPOCH_SLOTS) & 1 != 0
    }

    /// The same in all epochs but `epoch`, which takes the slot of the one [`EPOCH_SLOTS`] before it.
    #[must_use]
    pub const fn with(self, epoch: u32, strict: bool) -> Self {
        let bit = 1 << (epoch % EPOCH_SLOTS);
        Self(if strict { self.0 | bit } else { self.0 & !bit })
    }
}
