//! Which of the segments that XDP recorded can be compared with each other. A CPU records no more than so many in a window of
//! time: one that is flooded has soon done so, and one that is not records all that comes. So only what was recorded before the first
//! of them fell silent says who sends how much. Not the recording.

use std::collections::BTreeMap;

use tcpguard_common::map::MAX_QUEUES;
use tcpguard_common::trace::{PER_WINDOW, Record, window};

/// The window that records were taken in last.
#[derive(Debug, Default)]
pub struct Slices {
    window: u64,
    /// Records of each interface and CPU.
    counts: BTreeMap<(u32, u32), u32>,
    /// One of them writes no more.
    over: bool,
}

impl Slices {
    /// Whether every CPU still recorded when this was; to be asked of all records of XDP's, in their order.
    pub fn is_in_all(&mut self, record: &Record) -> bool {
        let window = window(record.time);
        if window != self.window {
            *self = Self { window, ..Self::default() };
        }
        if self.over {
            return false;
        }
        let count = self.counts.entry((record.engine / MAX_QUEUES, record.cpu)).or_default();
        *count += 1;
        self.over = *count >= PER_WINDOW;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment at so many microseconds of the first window.
    fn record(micros: u64, engine: u32, cpu: u32) -> Record {
        Record { time: micros * 1000, engine, cpu, ..Record::EMPTY }
    }

    #[test]
    fn a_cpu_with_little_to_record_has_no_more_time_than_one_that_is_flooded() {
        let mut slices = Slices::default();
        // A segment a microsecond, and one each tenth.
        let both = |slices: &mut Slices, from: u64| {
            let mut kept = [0, 0];
            for micros in from..from + 1000 {
                // The flooded one writes no more.
                if micros - from < PER_WINDOW.into() {
                    kept[0] += u32::from(slices.is_in_all(&record(micros, 0, 0)));
                }
                if micros % 10 == 5 {
                    kept[1] += u32::from(slices.is_in_all(&record(micros, 1, 1)));
                }
            }
            kept
        };
        assert_eq!(both(&mut slices, 0), [PER_WINDOW, 13]);
        assert_eq!(both(&mut slices, 2000), [0, 0], "nobody's count begins again in the same window");
        let next = (1 << 27) / 10_000 * 10 + 10;
        assert_eq!(both(&mut slices, next), [PER_WINDOW, 13]);
    }

    #[test]
    fn each_cpu_counts_for_itself_on_each_interface() {
        let mut slices = Slices::default();
        for micros in 0..u64::from(PER_WINDOW) - 1 {
            for (engine, cpu) in [(0, 0), (0, 1), (MAX_QUEUES, 0)] {
                assert!(slices.is_in_all(&record(micros, engine, cpu)));
            }
        }
        assert!(slices.is_in_all(&record(500, 1, 1)), "the last one of its CPU, whatever the queue");
        assert!(!slices.is_in_all(&record(501, 0, 0)));
    }
}
