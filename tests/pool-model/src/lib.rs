//! The pool under a model checker: every order of the steps of its threads, and every value that the memory model lets
//! a load see, up to a number of preemptions.
//!
//! Invariant: the code is `pool.rs` itself, compiled once more with the model's threads, atomics and cells; an access
//! to the job that races with its writer fails the test.
//!
//! A package of its own, outside the workspace: loom enables features of packages that tokenizers and candle use too, and
//! as a dependency of the workspace's tests it would have them all compiled twice. `scripts/check` runs it.

#![cfg(test)]

use loom::sync::Arc;
use loom::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

/// What `crate::primitives` has, of the model.
mod primitives {
    use loom::cell::UnsafeCell;

    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use loom::sync::{Arc, Mutex};
    pub(crate) use loom::thread::{JoinHandle, Thread};

    // the model tries every place where a thread may be interrupted: no turn needs a second one like it
    pub(crate) const SPINS: u32 = 1;
    pub(crate) const YIELDS: u32 = 0;
    pub(crate) const WAITS: u32 = 2;

    pub(crate) mod thread {
        pub(crate) use loom::hint::spin_loop;
        pub(crate) use loom::thread::{Builder, park, yield_now};

        pub(crate) fn sleep(_: std::time::Duration) {
            yield_now();
        }
    }

    pub(crate) struct Slot<T>(UnsafeCell<T>);

    impl<T: Copy> Slot<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(UnsafeCell::new(value))
        }

        pub(crate) unsafe fn read(&self) -> T {
            // SAFETY: the caller's promise, which the model checks.
            self.0.with(|value| unsafe { *value })
        }

        pub(crate) unsafe fn write(&self, value: T) {
            // SAFETY: as above.
            self.0.with_mut(|to| unsafe { *to = value });
        }
    }
}

#[allow(dead_code)]
#[path = "../../../crates/bitnet-kernels/src/pool.rs"]
mod pool;

/// Runs `test` under every order with at most so many preemptions.
fn check(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

/// Regions of so many items each: every item is run once, and nobody is left behind at the end.
fn regions(threads: usize, items: &'static [usize]) {
    let mut pool = pool::Pool::new(threads);
    for &items in items {
        let counts: Arc<Vec<AtomicUsize>> =
            Arc::new((0..items).map(|_| AtomicUsize::new(0)).collect());
        pool.run(items, &|at| {
            counts[at].fetch_add(1, Ordering::Relaxed);
        });
        for count in counts.iter() {
            assert_eq!(count.load(Ordering::Relaxed), 1);
        }
    }
}

#[test]
fn two_threads_run_every_item_of_two_regions_once() {
    check(3, || regions(2, &[2, 2]));
}

#[test]
fn three_threads_run_every_item_once() {
    check(1, || regions(3, &[3]));
}

#[test]
fn what_an_item_wrote_is_seen_after_its_region() {
    check(3, || {
        let cells: Vec<loom::cell::UnsafeCell<usize>> =
            (0..2).map(|_| loom::cell::UnsafeCell::new(0)).collect();
        /// Cells that each item writes one of.
        struct Cells(Vec<loom::cell::UnsafeCell<usize>>);
        // SAFETY: an item writes its own cell only, and the model would find another access.
        unsafe impl Sync for Cells {}
        let cells = Cells(cells);
        let mut pool = pool::Pool::new(2);
        let all = &cells;
        pool.run(2, &|at| {
            // SAFETY: as above.
            all.0[at].with_mut(|cell| unsafe { *cell = at + 1 });
        });
        for (at, cell) in cells.0.iter().enumerate() {
            // SAFETY: the region is over, which the model checks.
            assert_eq!(cell.with(|cell| unsafe { *cell }), at + 1);
        }
    });
}

#[test]
fn a_panic_reaches_the_caller() {
    check(2, || {
        let mut pool = pool::Pool::new(2);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // without the message that a panic prints, a thousand times
            pool.run(2, &|at| match at {
                1 => std::panic::resume_unwind(Box::new("item 1")),
                _ => (),
            });
        }));
        assert!(result.is_err());
    });
}
