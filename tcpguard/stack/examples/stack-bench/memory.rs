//! How much memory is allocated, by an allocator that counts. The only `unsafe` of the benchmark.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Samples;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's; here it is only counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.fetch_add(size, Ordering::Relaxed);
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Bytes allocated now.
pub(crate) fn allocated() -> usize {
    ALLOCATED.load(Ordering::Relaxed)
}

/// Pushes what an entry of a full table takes of each address family, which the table says, after checking it against what
/// was allocated since there were `before` bytes.
pub(crate) fn push(samples: &mut Samples, names: [&str; 2], bytes: [usize; 2], entries: u32, before: usize) {
    const BESIDE: usize = 64 << 10;
    let (said, counted) = (bytes[0] + bytes[1], allocated() - before);
    assert!((said..said + BESIDE).contains(&counted), "{counted} bytes allocated for {said}");
    for (name, bytes) in names.into_iter().zip(bytes) {
        samples.push(name, "bytes", bytes as f64 / f64::from(entries));
    }
}
