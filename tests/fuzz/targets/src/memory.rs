//! An allocator that knows how much is allocated.
//!
//! Invariant: every call goes to the system's allocator unchanged, and counting never allocates.

// the allocator; nothing else
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

/// The system's allocator, counting what all threads hold.
#[derive(Debug)]
pub struct Measured;

fn grow(bytes: usize) {
    let live = LIVE.fetch_add(bytes.cast_signed(), Ordering::Relaxed) + bytes.cast_signed();
    if live > PEAK.load(Ordering::Relaxed) {
        PEAK.fetch_max(live, Ordering::Relaxed);
    }
}

fn shrink(bytes: usize) {
    LIVE.fetch_sub(bytes.cast_signed(), Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged; counting neither allocates nor panics.
unsafe impl GlobalAlloc for Measured {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // both are there while one is copied to the other
        grow(size);
        // SAFETY: the caller's promises are passed on
        let moved = unsafe { System.realloc(pointer, layout, size) };
        shrink(layout.size());
        moved
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promises are passed on
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Most bytes that were allocated at once while `work` ran, beyond those before. 0 unless [`Measured`] is the global
/// allocator.
pub fn peak_of(work: &mut dyn FnMut()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    usize::try_from(PEAK.load(Ordering::Relaxed) - before).unwrap_or(0)
}
