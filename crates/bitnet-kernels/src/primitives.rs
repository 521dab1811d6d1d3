//! Threads, locks and atomics as the [`pool`](crate::Pool) uses them: those of the standard library.
//!
//! Invariant: nothing but names and constants; `tests/pool-model` puts a model checker's in their place.

use std::cell::UnsafeCell;

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use std::sync::{Arc, Mutex};
pub(crate) use std::thread::{JoinHandle, Thread};

/// Turns of spinning before yielding: a `pause` takes 10 to 50 ns, so tens of microseconds.
pub(crate) const SPINS: u32 = 1000;

/// Turns of yielding before parking.
pub(crate) const YIELDS: u32 = 20;

/// Turns of spinning and yielding before a caller that waits for the last item sleeps.
pub(crate) const WAITS: u32 = 10_000;

pub(crate) mod thread {
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::thread::{Builder, park, sleep, yield_now};
}

/// A value that one thread writes and others copy, at different times.
pub(crate) struct Slot<T>(UnsafeCell<T>);

impl<T: Copy> Slot<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// # Safety
    /// Nobody writes meanwhile.
    #[inline]
    pub(crate) unsafe fn read(&self) -> T {
        // SAFETY: the caller's promise.
        unsafe { *self.0.get() }
    }

    /// # Safety
    /// Nobody reads or writes meanwhile.
    #[inline]
    pub(crate) unsafe fn write(&self, value: T) {
        // SAFETY: the caller's promise.
        unsafe { *self.0.get() = value }
    }
}
