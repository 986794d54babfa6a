//! The cookie key schedule: which epoch is current and what lies in the four slots. Pure: clocks come in, slots come out;
//! writing them to the map is the caller's.
//!
//! A cookie names its epoch by the last two bits of a number (one, without timestamps), so what matters is that no two
//! live slots share them. The rule: **the published number only ever goes up by one**, whatever the wall clock or the
//! period does, and each number is held long enough for a handshake to end. The key of a number derives from the
//! *fleet's* number, wall clock divided by period, and the two agree modulo 4. When the fleet's number jumps (the clock
//! was stepped, or the period changed), at most three short bridge epochs bring ours level with it; nothing in flight
//! breaks on this machine. After a jump by a multiple of four the bits are right and the keys are not: either the next epoch is
//! near, or three bridge epochs lead there, too. Others with the same secret accept our cookies again once we are level, by
//! default a minute later at the latest.
//! A step back of less than a period is waited out: the others still accept what is one ahead. The exception are slots
//! that nobody has kept for longer than a cookie lives, because the daemon was dead or stopped: they start afresh.

use std::time::{Duration, SystemTime};

use tcpguard_common::cookie::{Advertised, Clock, derive_key};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot, Settings};
use thiserror::Error;

use super::clock::monotonic_ns;
use super::secret::MasterSecret;

/// The shortest period.
pub const MIN_PERIOD: Duration = Duration::from_secs(2);
/// The longest period.
pub const MAX_PERIOD: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a number stays current at least, unless half a period is shorter: longer than any handshake takes.
const HOLD: Duration = Duration::from_secs(15);

/// Why a schedule refuses its parameters.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// The period is out of range.
    #[error("the cookie period must be 2 s to 24 h, not {0:?}")]
    Period(Duration),
    /// A SYN-ACK must promise a window.
    #[error("the advertised window must not be 0")]
    Window,
    /// RFC 7323 §2.3.
    #[error("the advertised window shift must be at most 14, not {0}")]
    WindowScale(u8),
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The wall clock, since 1970. May jump.
    pub wall: Duration,
    /// The monotonic clock.
    pub monotonic: Duration,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        // A clock before 1970 is as good as any other: epochs only need to differ.
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { wall, monotonic: Duration::from_nanos(monotonic_ns()) }
    }
}

/// The schedule.
#[derive(Clone, Debug)]
pub struct KeySchedule {
    secret: MasterSecret,
    period: Duration,
    advertised: Advertised,
    /// The published number of the current epoch.
    current: u32,
    /// The fleet's number that the current key belongs to; equal to `current` modulo 4.
    fleet: u32,
    /// When `current` last changed, monotonic; `None` for so long ago that it does not matter.
    since: Option<Duration>,
    /// How long `current` has to stay.
    hold: Duration,
    /// When [`Self::poll`] was last called, monotonic.
    polled: Duration,
    second_half: bool,
    slots: [EpochSlot; EPOCH_SLOTS as usize],
}

impl KeySchedule {
    /// A schedule in step with the wall clock, for maps that hold no earlier one.
    ///
    /// # Errors
    ///
    /// A parameter out of range.
    pub fn new(
        secret: MasterSecret,
        period: Duration,
        advertised: Advertised,
        now: Now,
    ) -> Result<Self, KeyError> {
        check_period(period)?;
        check_advertised(&advertised)?;
        let mut schedule = Self {
            secret,
            period,
            advertised,
            current: 0,
            fleet: 0,
            since: None,
            hold: Duration::ZERO,
            polled: now.monotonic,
            second_half: false,
            slots: [EpochSlot::default(); EPOCH_SLOTS as usize],
        };
        schedule.start(now);
        Ok(schedule)
    }

    /// A schedule that goes on where a previous daemon's stopped, `silent` ago, so that cookies in flight stay valid even
    /// if its secret was another. Falls back to [`Self::new`] if those slots hold no current epoch, or have had their
    /// time.
    ///
    /// # Errors
    ///
    /// A parameter out of range.
    pub fn resume(
        secret: MasterSecret,
        period: Duration,
        advertised: Advertised,
        now: Now,
        settings: &Settings,
        epochs: &[EpochSlot; EPOCH_SLOTS as usize],
        silent: Duration,
    ) -> Result<Self, KeyError> {
        let mut schedule = Self::new(secret, period, advertised, now)?;
        let current = settings.epoch;
        if silent > lifetime(period) || !usable(epochs, current) {
            return Ok(schedule);
        }
        let level = schedule.fleet.wrapping_sub(current).is_multiple_of(EPOCH_SLOTS);
        schedule.fleet = if level { schedule.fleet } else { current };
        schedule.current = current;
        schedule.since = Some(now.monotonic);
        schedule.slots = [EpochSlot::default(); EPOCH_SLOTS as usize];
        for epoch in [current.wrapping_sub(2), current.wrapping_sub(1), current] {
            if usable(epochs, epoch) {
                schedule.slots[index(epoch)] = epochs[index(epoch)];
            }
        }
        schedule.put(current.wrapping_add(1), schedule.fleet.wrapping_add(1));
        schedule.second_half = false;
        Ok(schedule)
    }

    /// Moves on to what `now` demands. Returns whether anything to publish changed: then write the slots first, the clock
    /// after them.
    pub fn poll(&mut self, now: Now) -> bool {
        let before = (self.slots, self.clock());
        // Whoever called us was stopped. What lies in the slots has had its time, and nothing is in flight any more for
        // whose sake the number would have to go up by one.
        if now.monotonic.saturating_sub(self.polled) > lifetime(self.period) {
            self.start(now);
        }
        self.polled = now.monotonic;
        let target = number(now.wall, self.period);
        let ahead = target.wrapping_sub(self.fleet).cast_signed();
        let behind = target.wrapping_sub(self.current) % EPOCH_SLOTS;
        match (ahead, behind) {
            // In step, or the clock was set back a little: it will catch up.
            (0 | -1, _) => {}
            // A jump by a multiple of four: the bits are right already, and the next epoch's key will be, if that is sooner.
            (_, 0) if self.until_next(now) <= self.held(now) + 3 * self.hold => self.fleet = target,
            (_, 1) if self.may_move(now) => self.advance(target, now),
            (_, _) if self.may_move(now) => self.advance(self.fleet.wrapping_add(1), now),
            _ => {}
        }
        self.second_half = self.is_second_half(now);
        before != (self.slots, self.clock())
    }

    /// How long until [`Self::poll`] has something to do, if the clocks run evenly. They may not: poll once a second too.
    pub fn next_change(&self, now: Now) -> Duration {
        let half = self.period / 2;
        let into_half = Duration::from_nanos((now.wall.as_nanos() % half.as_nanos()) as u64);
        let mut next = half - into_half;
        for bound in [self.hold, half] {
            let left = self.age(now).map_or(Duration::ZERO, |age| bound.saturating_sub(age));
            if !left.is_zero() {
                next = next.min(left);
            }
        }
        next
    }

    /// Changes the period; takes effect with the next [`Self::poll`], over bridge epochs.
    ///
    /// # Errors
    ///
    /// `Period`, with nothing changed.
    pub fn set_period(&mut self, period: Duration) -> Result<(), KeyError> {
        check_period(period)?;
        self.period = period;
        Ok(())
    }

    /// Changes the secret; takes effect with the next epoch, so that cookies in flight stay valid. Returns whether it is
    /// another one.
    pub fn set_secret(&mut self, secret: MasterSecret) -> bool {
        let changed = self.secret != secret;
        self.secret = secret;
        self.put(self.current.wrapping_add(1), self.fleet.wrapping_add(1));
        changed
    }

    /// How long until the next epoch, if the clocks run evenly.
    pub fn until_next(&self, now: Now) -> Duration {
        let into = Duration::from_nanos((now.wall.as_nanos() % self.period.as_nanos()) as u64);
        (self.period - into).max(self.held(now))
    }

    /// For how long the current key has been in use, here or on any machine of the fleet.
    pub fn key_age(&self, now: Now) -> Duration {
        let into = Duration::from_nanos((now.wall.as_nanos() % self.period.as_nanos()) as u64);
        self.age(now).unwrap_or(into)
    }

    /// How long `current` has to stay yet.
    fn held(&self, now: Now) -> Duration {
        self.age(now).map_or(Duration::ZERO, |age| self.hold.saturating_sub(age))
    }

    /// The period.
    pub fn period(&self) -> Duration {
        self.period
    }

    /// Changes what SYN-ACKs advertise; takes effect with the next epoch, so that promises in flight are kept.
    ///
    /// # Errors
    ///
    /// `Window` or `WindowScale`, with nothing changed.
    pub fn set_advertised(&mut self, advertised: Advertised) -> Result<(), KeyError> {
        check_advertised(&advertised)?;
        self.advertised = advertised;
        self.put(self.current.wrapping_add(1), self.fleet.wrapping_add(1));
        Ok(())
    }

    /// What goes into the EPOCHS map: the current epoch, the two before it and the next.
    pub fn slots(&self) -> [EpochSlot; EPOCH_SLOTS as usize] {
        self.slots
    }

    /// What goes into the settings, and, with its own `extra`, into each stack.
    pub fn clock(&self) -> Clock {
        Clock { epoch: self.current, second_half: self.second_half, extra: 0 }
    }

    /// Every slot afresh, in step with the wall clock.
    fn start(&mut self, now: Now) {
        let current = number(now.wall, self.period);
        (self.current, self.fleet, self.since, self.hold) = (current, current, None, hold(self.period));
        for epoch in [current.wrapping_sub(2), current.wrapping_sub(1), current, current.wrapping_add(1)] {
            self.put(epoch, epoch);
        }
        self.second_half = self.is_second_half(now);
    }

    fn advance(&mut self, fleet: u32, now: Now) {
        self.current = self.current.wrapping_add(1);
        self.fleet = fleet;
        self.since = Some(now.monotonic);
        self.hold = hold(self.period);
        // It was there as the next one already, but period and promises may have changed since.
        self.put(self.current, fleet);
        self.put(self.current.wrapping_add(1), fleet.wrapping_add(1));
    }

    /// Writes the slot of `epoch` with the key of the fleet's number `fleet`.
    fn put(&mut self, epoch: u32, fleet: u32) {
        let master = self.master();
        // None only for a key of all zero, one in 2^128: that epoch would answer no SYN.
        let derived = EpochSlot::derive(master, fleet, &self.advertised);
        let slot = derived.map_or_else(EpochSlot::default, |slot| EpochSlot { epoch, ..slot });
        self.slots[index(epoch)] = slot;
    }

    /// The secret of this period: a fleet's numbers count from 1970 in periods, so the same number recurs under another
    /// period, and must not bring back its key.
    fn master(&self) -> [u64; 2] {
        let nothing = Advertised { mss_v4: 0, mss_v6: 0, window: 0, window_scale: 0 };
        let millis = self.period.as_millis() as u32;
        let [first, second] = self.secret.halves();
        let inner = derive_key(first, millis, &nothing);
        derive_key([inner[0] ^ second[0], inner[1] ^ second[1]], millis, &nothing)
    }

    fn may_move(&self, now: Now) -> bool {
        self.age(now).is_none_or(|age| age >= self.hold)
    }

    /// In the second half the odd neighbour of a cookie without timestamps is the next epoch: only once the previous one
    /// has had its half period.
    fn is_second_half(&self, now: Now) -> bool {
        let half = self.period / 2;
        let into = now.wall.as_nanos() % self.period.as_nanos();
        number(now.wall, self.period) == self.fleet
            && into >= half.as_nanos()
            && self.age(now).is_none_or(|age| age >= half)
    }

    /// How long `current` has been.
    fn age(&self, now: Now) -> Option<Duration> {
        self.since.map(|since| now.monotonic.saturating_sub(since))
    }
}

fn hold(period: Duration) -> Duration {
    HOLD.min(period / 2)
}

/// How long a cookie is worth something: its own epoch and the next.
fn lifetime(period: Duration) -> Duration {
    2 * period
}

/// The fleet's number of the epoch. Only its bits matter: it may wrap.
fn number(wall: Duration, period: Duration) -> u32 {
    (wall.as_nanos() / period.as_nanos()) as u32
}

fn index(epoch: u32) -> usize {
    (epoch % EPOCH_SLOTS) as usize
}

fn usable(epochs: &[EpochSlot; EPOCH_SLOTS as usize], epoch: u32) -> bool {
    epochs[index(epoch)].is_usable(epoch)
}

fn check_period(period: Duration) -> Result<(), KeyError> {
    if (MIN_PERIOD..=MAX_PERIOD).contains(&period) { Ok(()) } else { Err(KeyError::Period(period)) }
}

fn check_advertised(advertised: &Advertised) -> Result<(), KeyError> {
    let Advertised { mss_v4: _, mss_v6: _, window, window_scale } = *advertised;
    if window == 0 {
        return Err(KeyError::Window);
    }
    if window_scale > 14 {
        return Err(KeyError::WindowScale(window_scale));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
