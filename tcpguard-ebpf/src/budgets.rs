//! The maps of the reply budgets, bound to what the decision asks of them.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use tcpguard_common::decision::budget::Ledger;
use tcpguard_common::map::{MAX_QUEUES, VERIFIED as PLACES};
use tcpguard_common::sketch::{Sketch, WORDS};

use crate::Maps;

#[map]
static REPLIES: Array<[u64; WORDS]> = Array::with_max_entries(MAX_QUEUES, 0);
#[map]
static VERIFIED: Array<u64> = Array::with_max_entries(PLACES, 0);

impl Ledger for Maps {
    #[inline(always)]
    fn replies(&self) -> Option<&Sketch> {
        let words = REPLIES.get_ptr_mut(self.queue % MAX_QUEUES)?;
        // SAFETY: a sketch is these words, in memory that lives as long as the program. One CPU serves a queue at a
        // time; where two interfaces have a queue of the same number, a charge may be lost, as `Sketch::charge` says.
        Some(unsafe { &*words.cast::<Sketch>() })
    }

    #[inline(always)]
    fn verified(&self, place: u32) -> u64 {
        VERIFIED.get(place).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn set_verified(&self, place: u32, word: u64) {
        if let Some(held) = VERIFIED.get_ptr_mut(place) {
            // SAFETY: an aligned store of one word; two CPUs that meet here leave one of their words.
            unsafe { *held = word }
        }
    }
}
