//! The maps of the filter lists, bound to what the decision asks of them.

use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use tcpguard_common::decision::filter::{Rules, Spans};
use tcpguard_common::filter::{
    BANKS, FilterRule, HEADS, HIT_BLOCKS, HITS_PER_BLOCK, Head, Point, RULES, SPANS, SpanV4, SpanV6,
};
use tcpguard_common::flow::{V4, V6};

use crate::Maps;

#[map]
static FILTER_HEADS_V4: Array<Head> = Array::with_max_entries(BANKS * HEADS, BPF_F_MMAPABLE);
#[map]
static FILTER_HEADS_V6: Array<Head> = Array::with_max_entries(BANKS * HEADS, BPF_F_MMAPABLE);
#[map]
static FILTER_SPANS_V4: Array<SpanV4> = Array::with_max_entries(BANKS * SPANS, BPF_F_MMAPABLE);
#[map]
static FILTER_SPANS_V6: Array<SpanV6> = Array::with_max_entries(BANKS * SPANS, BPF_F_MMAPABLE);
#[map]
static FILTER_RULES: Array<FilterRule> = Array::with_max_entries(BANKS * RULES, BPF_F_MMAPABLE);
#[map]
static FILTER_HITS: PerCpuArray<[u64; HITS_PER_BLOCK as usize]> =
    PerCpuArray::with_max_entries(BANKS * HIT_BLOCKS, 0);

impl Rules for Maps {
    #[inline(always)]
    fn rule(&self, index: u32) -> Option<&FilterRule> {
        FILTER_RULES.get(index)
    }

    #[inline(always)]
    fn hit(&self, bank: u32, rule: u32) {
        if let Some(block) = FILTER_HITS.get_ptr_mut(bank * HIT_BLOCKS + rule / HITS_PER_BLOCK) {
            // SAFETY: this CPU's own block, as for the counters, and the index stays inside it.
            unsafe { *block.cast::<u64>().add((rule % HITS_PER_BLOCK) as usize) += 1 }
        }
    }
}

macro_rules! spans {
    ($family:ty, $heads:ident, $spans:ident) => {
        impl Spans<$family> for Maps {
            #[inline(always)]
            fn head(&self, index: u32) -> Option<Head> {
                $heads.get(index).copied()
            }

            #[inline(always)]
            fn span(&self, index: u32) -> Option<&<$family as Point>::Span> {
                $spans.get(index)
            }
        }
    };
}

spans!(V4, FILTER_HEADS_V4, FILTER_SPANS_V4);
spans!(V6, FILTER_HEADS_V6, FILTER_SPANS_V6);
