//! All flows at once, for whoever lists, counts or ends them: in slices, so that a million of them stop nothing.

use super::half_open::Schedule;
use super::packed::Place;
use super::tcb::Tcb;
use super::{ConnId, FlowInfo, Instant, MAX_REPLIES, Stack, State};

/// Where a survey stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(Stage);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connections(u32),
    HalfOpens(Place),
    TimeWaits(Place),
}

impl Cursor {
    /// Before the first flow.
    pub const START: Self = Self(Stage::Connections(0));
}

impl Stack {
    /// Shows the flows in the next `places` places of the tables to `visit`, and says where to go on. Flows that come
    /// or go between two slices may be missed; a TIME_WAIT entry that moves then may be seen twice.
    pub fn survey(
        &self,
        now: Instant,
        Cursor(stage): Cursor,
        places: u32,
        visit: impl FnMut(FlowInfo),
    ) -> Option<Cursor> {
        let next = match stage {
            Stage::Connections(start) => {
                let flows = self.slots(start, places).filter(|(_, tcb)| tcb.attached);
                flows.map(|(_, tcb)| tcb.info(now, self.shared.config_of(tcb.service()))).for_each(visit);
                let next = start + places;
                if next < self.connections.slots() {
                    Stage::Connections(next)
                } else {
                    Stage::HalfOpens(Place::START)
                }
            }
            Stage::HalfOpens(place) => {
                let (schedule, epoch) = (Schedule::new(&self.shared.config), self.clock.epoch);
                let entries = self.half_opens.slice((place, places as usize), now, schedule, epoch);
                entries.map(|entry| self.half_open_info(entry)).for_each(visit);
                match self.half_opens.after_slice(place, places as usize) {
                    Some(next) => Stage::HalfOpens(next),
                    None => Stage::TimeWaits(Place::START),
                }
            }
            Stage::TimeWaits(place) => {
                let time_wait = self.shared.config.time_wait;
                let entries = self.time_waits.slice(place, places as usize, now, time_wait);
                entries.map(|(key, age)| self.time_wait_info(key, age)).for_each(visit);
                Stage::TimeWaits(self.time_waits.after_slice(place, places as usize)?)
            }
        };
        Some(Cursor(next))
    }

    /// How many connections among the next `places` places are in each state, in the order of [`State::ALL`], added to
    /// `counts`; those in TIME_WAIT and the half-open ones, which are not connections, with the first slice. `None` after the last slice.
    pub fn count_states(&self, start: u32, places: u32, counts: &mut [u64; State::ALL.len()]) -> Option<u32> {
        if start == 0 {
            counts[State::TimeWait as usize] += self.time_waits.len() as u64;
            counts[State::SynReceived as usize] += self.half_opens.len() as u64;
        }
        for (_, tcb) in self.slots(start, places).filter(|(_, tcb)| tcb.attached) {
            counts[tcb.state as usize] += 1;
        }
        let next = start + places;
        (next < self.connections.slots()).then_some(next)
    }

    /// Ends connections with a reset, those whose application is gone included: the ones in the next `places` places of
    /// the table, as far as there is room for their resets. Returns how many are left; to be called, with everything
    /// sent in between, until there is none.
    pub fn abort_some(&mut self, now: Instant, places: u32) -> usize {
        let slots = self.connections.slots();
        for _ in 0..places.min(slots) {
            if self.replies.len() >= MAX_REPLIES {
                break;
            }
            let index = self.abort_hand % slots;
            self.abort_hand = index + 1;
            if let Some(id) = self.connections.id_at(index) {
                self.abort(now, id);
            }
        }
        self.connection_count()
    }

    /// Ends the flows for which `which` says so among the next `places` places of the tables, each with a reset as far as
    /// there is room for those; entries in TIME_WAIT, which are nobody's connections, stay. Returns how many, and where to
    /// go on once everything was sent.
    pub fn kill(
        &mut self,
        now: Instant,
        Cursor(stage): Cursor,
        places: u32,
        mut which: impl FnMut(&FlowInfo) -> bool,
    ) -> (u64, Option<Cursor>) {
        let mut killed = 0;
        let next = match stage {
            Stage::Connections(start) => {
                let slots = self.connections.slots();
                let mut index = start;
                while index < slots && index - start < places && self.replies.len() < MAX_REPLIES {
                    let found = self.slots(index, 1).find(|(_, tcb)| tcb.attached);
                    let found =
                        found.filter(|(_, tcb)| which(&tcb.info(now, self.shared.config_of(tcb.service()))));
                    if let Some(id) = found.map(|(id, _)| id) {
                        self.abort(now, id);
                        killed += 1;
                    }
                    index += 1;
                }
                Some(if index < slots { Stage::Connections(index) } else { Stage::HalfOpens(Place::START) })
            }
            Stage::HalfOpens(place) => {
                let room = MAX_REPLIES.saturating_sub(self.replies.len());
                if room == 0 {
                    return (0, Some(Cursor(stage)));
                }
                let slice = (place, room.min(places as usize));
                let (schedule, epoch) = (Schedule::new(&self.shared.config), self.clock.epoch);
                let listed = self.half_opens.slice(slice, now, schedule, epoch);
                let listed = listed.map(|entry| self.half_open_info(entry));
                let keys: Vec<_> = listed.filter(|flow| which(flow)).map(|flow| flow.key).collect();
                for key in &keys {
                    self.kill_half_open(key, now);
                    killed += 1;
                }
                match keys.as_slice() {
                    [] => self.half_opens.after_slice(slice.0, slice.1).map(Stage::HalfOpens),
                    // Others moved into the places of those that went: once more.
                    _ => Some(stage),
                }
            }
            Stage::TimeWaits(_) => None,
        };
        (killed, next.map(Cursor))
    }

    /// Applies changed tunables to the next connections, if any are left.
    pub(super) fn retune_some(&mut self, now: Instant) {
        const PLACES: u32 = 1024;
        let Some(start) = self.retune_next else { return };
        let end = (start + PLACES).min(self.connections.slots());
        for index in start..end {
            if let Some(id) = self.connections.id_at(index) {
                self.settle(id, now);
            }
        }
        self.retune_next = (end < self.connections.slots()).then_some(end);
    }

    fn slots(&self, start: u32, places: u32) -> impl Iterator<Item = (ConnId, &Tcb)> {
        let indices = start..(start + places).min(self.connections.slots());
        indices.filter_map(|index| Some((self.connections.id_at(index)?, self.connections.at(index)?)))
    }
}
