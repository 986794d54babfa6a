//! The maps of the reply budgets, bound to what the decision asks of them.

use core::arch::asm;
use core::cell::Cell;

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use tcpguard_common::decision::admission::{Census, Counted};
use tcpguard_common::decision::budget::Ledger;
use tcpguard_common::map::{MAX_QUEUES, SERVICE_IDS, SOURCE_PLACES, VERIFIED as PLACES};
use tcpguard_common::sketch::{Sketch, WORDS};

use crate::Maps;

#[map]
static REPLIES: Array<[u64; WORDS]> = Array::with_max_entries(MAX_QUEUES, 0);
#[map]
static STATEFUL: Array<u64> = Array::with_max_entries(2 * MAX_QUEUES, 0);
#[map]
static VERIFIED: Array<u64> = Array::with_max_entries(PLACES, 0);
#[map]
static PACES: Array<[u64; WORDS]> = Array::with_max_entries(1, 0);
#[map]
static COMPLAINTS: Array<[u64; WORDS]> = Array::with_max_entries(1, 0);
#[map]
static ARRIVALS: Array<[u64; WORDS]> = Array::with_max_entries(1, 0);
#[map]
static SERVICE_FLOWS: Array<i64> = Array::with_max_entries(SERVICE_IDS, BPF_F_MMAPABLE);
#[map]
static SOURCE_FLOWS: Array<i64> = Array::with_max_entries(2 * SOURCE_PLACES, BPF_F_MMAPABLE);

impl Ledger for Maps {
    #[inline(always)]
    fn replies(&self) -> Option<&Sketch> {
        let words = REPLIES.get_ptr_mut(self.queue % MAX_QUEUES)?;
        // SAFETY: a sketch is these words, in memory that lives as long as the program. One CPU serves a queue at a
        // time; where two interfaces have a queue of the same number, a charge may be lost, as `Sketch::charge` says.
        Some(unsafe { &*words.cast::<Sketch>() })
    }

    #[inline(always)]
    fn stateful(&self, dry_run: bool) -> Option<&Cell<u64>> {
        let word = STATEFUL.get_ptr_mut(self.queue % MAX_QUEUES + MAX_QUEUES * u32::from(dry_run))?;
        // SAFETY: one aligned word, in memory that lives as long as the program; otherwise as above.
        Some(unsafe { &*word.cast::<Cell<u64>>() })
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

    #[inline(always)]
    fn paces(&self) -> Option<&Sketch> {
        let words = PACES.get_ptr_mut(0)?;
        // SAFETY: as for the replies. A flow arrives at one queue at a time; where two share a bucket, a charge may be lost.
        Some(unsafe { &*words.cast::<Sketch>() })
    }

    #[inline(always)]
    fn complaints(&self) -> Option<&Sketch> {
        let words = COMPLAINTS.get_ptr_mut(0)?;
        // SAFETY: as for the replies; here all CPUs meet, and a charge may be lost.
        Some(unsafe { &*words.cast::<Sketch>() })
    }
}

#[inline(always)]
fn count(place: Counted) -> Option<*mut i64> {
    match place {
        Counted::Service(id) => SERVICE_FLOWS.get_ptr_mut(id),
        Counted::Source(index) => SOURCE_FLOWS.get_ptr_mut(index),
    }
}

impl Census for Maps {
    #[inline(always)]
    fn arrivals(&self) -> Option<&Sketch> {
        let words = ARRIVALS.get_ptr_mut(0)?;
        // SAFETY: as for the replies; here all CPUs meet, and a charge may be lost.
        Some(unsafe { &*words.cast::<Sketch>() })
    }

    #[inline(always)]
    fn open_flows(&self, place: Counted) -> u32 {
        let Some(count) = count(place) else { return 0 };
        // SAFETY: an aligned load of a word that others change meanwhile.
        let open = unsafe { count.read_volatile() };
        // A flow may be gone before whoever entered it has counted it.
        if open > 0 { open as u32 } else { 0 }
    }

    #[inline(always)]
    fn flow_opened(&self, place: Counted) {
        if let Some(count) = count(place) {
            // SAFETY: an aligned word in memory that lives as long as the program; whoever writes it does so atomically.
            // By hand, since the BPF target of the standard library knows no read-modify-write.
            unsafe {
                asm!(
                    "lock *(u64 *)({count} + 0) += {one}",
                    count = in(reg) count,
                    one = in(reg) 1u64,
                    options(nostack, preserves_flags),
                );
            }
        }
    }
}
