//! An allocator that counts, for tests of what a hostile file may cost.
//!
//! Invariant: every call goes to the system's allocator unchanged, and counting never allocates.

// the allocator; nothing else
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting per thread every byte ever asked for, and the most that was held at once.
pub struct Counting;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
    // what other threads allocated may be freed here
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // `try_with`: a thread may free and allocate while its locals are being torn down
    let _ = ASKED.try_with(|asked| asked.set(asked.get().saturating_add(bytes)));
    let _ = HELD.try_with(|held| {
        held.set(held.get().saturating_add_unsigned(bytes));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

fn give_back(bytes: usize) {
    let _ = HELD.try_with(|held| held.set(held.get().saturating_sub_unsigned(bytes)));
}

// SAFETY: every call goes to the system's allocator unchanged; counting neither allocates nor
// panics (the cell is const-initialized and has no destructor).
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise about `layout` is passed on
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's promises are passed on
        let moved = unsafe { System.realloc(pointer, layout, size) };
        give_back(layout.size());
        moved
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        give_back(layout.size());
        // SAFETY: the caller's promises are passed on
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Bytes that this thread has asked for so far.
pub fn asked() -> usize {
    ASKED.get()
}

/// Most bytes that this thread held at once while `work` ran, beyond those before.
pub fn peak_of(work: &mut dyn FnMut()) -> usize {
    let before = HELD.get();
    PEAK.set(before);
    work();
    usize::try_from(PEAK.get().saturating_sub(before)).unwrap_or(0)
}
