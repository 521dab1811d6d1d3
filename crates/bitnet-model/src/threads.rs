//! The one place that knows threads.
//!
//! Invariant: threads split rows, heads and tokens, never one sum, so no result depends on how many
//! there are (`formats/numerics.md`).
//!
//! A forward pass runs on a [`Pool`], not on rayon: it has some 150 short regions per token, and
//! rayon's workers sleep in the serial gaps between them. [`Pools::enter`] borrows one for a pass; passes that run at the same time have
//! one each. Inside, [`for_each`] and its neighbours find it without being handed it; outside of a
//! pass, and inside a region, they run on this thread alone.

use bitnet_kernels::Pool;
use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Multiplications below which a parallel region costs more than it saves.
pub(crate) const WORTH_A_REGION: usize = 1 << 17;

/// Multiplications that an element of an elementwise operation counts for, memory included.
pub(crate) const PER_ELEMENT: usize = 16;

/// Pieces per thread: whoever is slower takes fewer.
const PIECES: usize = 4;

thread_local! {
    /// The pool of the pass that this thread is in, unless a region has it.
    static CURRENT: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

/// The idle pools of a model. They park, and cost no CPU.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    threads: usize,
    idle: Mutex<Vec<Pool>>,
}

impl Pools {
    /// For passes of `threads` threads; 0: as many as the rayon pool has that a pass is called from.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            threads,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Runs `f` with a pool.
    pub(crate) fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        /// Puts things back, after a panic too.
        struct Guard<'a>(&'a Pools, Option<Pool>);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                let pool = CURRENT.replace(self.1.take());
                self.0.idle().extend(pool);
            }
        }
        let threads = match self.threads {
            0 => rayon::current_num_threads(),
            threads => threads,
        };
        let idle = {
            let mut idle = self.idle();
            let at = idle.iter().position(|pool| pool.threads() == threads);
            at.map(|at| idle.swap_remove(at))
        };
        let pool = idle.unwrap_or_else(|| Pool::new(threads));
        let _guard = Guard(self, CURRENT.replace(Some(pool)));
        f()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Pool>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Threads of the pass that this thread is in.
pub(crate) fn count() -> usize {
    CURRENT.with_borrow(|pool| pool.as_ref().map_or(1, Pool::threads))
}

/// Whether the regions of this pass measure how long threads were without work.
pub(crate) fn measure_idle(on: bool) {
    CURRENT.with_borrow_mut(|pool| pool.iter_mut().for_each(|pool| pool.measure_idle(on)));
}

/// [`Pool::take_idle`] of the pass that this thread is in.
pub(crate) fn take_idle() -> Duration {
    CURRENT.with_borrow_mut(|pool| pool.as_mut().map_or(Duration::ZERO, Pool::take_idle))
}

/// How many pieces `work` multiplications are worth: 1, or a few per thread.
pub(crate) fn pieces(work: usize) -> usize {
    match count() {
        1 => 1,
        _ if work < WORTH_A_REGION => 1,
        threads => (PIECES * threads)
            .min(work / (WORTH_A_REGION / 2))
            .max(threads),
    }
}

/// Calls `f` for every item: in order on this thread for one piece, else wherever.
pub(crate) fn for_each<T: Send>(pieces: usize, items: Vec<T>, f: impl Fn(T) + Sync + Send) {
    /// Gives the pool back to the pass, after a panic too.
    struct Guard(Option<Pool>);
    impl Drop for Guard {
        fn drop(&mut self) {
            CURRENT.set(self.0.take());
        }
    }
    let pool = match pieces > 1 && items.len() > 1 {
        true => CURRENT.take(),
        false => None,
    };
    match pool {
        None => items.into_iter().for_each(f),
        Some(pool) => {
            let mut guard = Guard(Some(pool));
            if let Some(pool) = &mut guard.0 {
                pool.run_each(items, f);
            }
        }
    }
}

/// Calls `f` for parts of `x`, `(tokens, width)`, with the number of the first token of each.
pub(crate) fn for_tokens(x: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let tokens = x.len() / width;
    let pieces = pieces(PER_ELEMENT * x.len());
    if pieces <= 1 || tokens == 1 {
        return f(0, x);
    }
    let share = tokens.div_ceil(pieces).max(1);
    let parts = x.chunks_mut(share * width).enumerate().collect();
    for_each(pieces, parts, |(part, x): (usize, &mut [f32])| {
        f(part * share, x)
    });
}

/// Like [`for_each`]; the error is that of the first failing item, whichever failed first in time.
pub(crate) fn try_for_each<T: Send, E: Send>(
    pieces: usize,
    items: Vec<T>,
    f: impl Fn(T) -> Result<(), E> + Sync + Send,
) -> Result<(), E> {
    if pieces <= 1 || items.len() <= 1 {
        return items.into_iter().try_for_each(f);
    }
    let first: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let items = items.into_iter().enumerate().collect();
    for_each(pieces, items, |(at, item)| {
        if let Err(error) = f(item) {
            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
            if first.as_ref().is_none_or(|(other, _)| at < *other) {
                *first = Some((at, error));
            }
        }
    });
    let first = first.into_inner().unwrap_or_else(PoisonError::into_inner);
    first.map_or(Ok(()), |(_, error)| Err(error))
}
