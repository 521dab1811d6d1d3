//! The one place that knows threads.
//!
//! Invariant: threads split rows, heads and tokens, never one sum, so no result depends on how many
//! there are (`formats/numerics.md`).
//!
//! A forward pass runs on a [`Pool`], not on rayon: it has some 150 short regions per token, and
//! rayon's workers sleep in the serial gaps between them. A model has one pool, and [`ModelThreads::enter`] lends it to one pass
//! at a time. Inside, [`for_each`] and its neighbors find it without being handed it; outside of a
//! pass, and inside a region, they run on this thread alone. Loading alone runs on rayon.

use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::Pool;
use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Multiplications below which a parallel region costs more than it saves.
pub(crate) const WORTH_A_REGION: usize = 1 << 17;

/// Multiplications that an element of an elementwise operation counts for, memory included.
pub(crate) const PER_ELEMENT: usize = 16;

/// Pieces per thread: a slower thread takes fewer.
const PIECES: usize = 4;

thread_local! {
    /// The pool of the pass that this thread is in, unless a region has it.
    static CURRENT: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

/// The threads of a model. They park between passes, and cost no CPU.
#[derive(Debug)]
pub(crate) struct ModelThreads {
    count: usize,
    pool: Mutex<Option<Pool>>, // made by the first pass
}

impl ModelThreads {
    /// `count` threads; 0: all that the system offers.
    pub(crate) fn new(count: usize) -> Self {
        let available = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            count: match count {
                0 => available(),
                count => count,
            },
            pool: Mutex::new(None),
        }
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Runs `f`, which reads tensors in parallel on the current rayon pool, in one of so many threads.
    ///
    /// # Errors
    /// `io` if the system gives no threads.
    pub(crate) fn load<R: Send>(&self, f: impl FnOnce() -> R + Send) -> Result<R, FormatError> {
        let inside = rayon::current_thread_index().is_some();
        if inside && rayon::current_num_threads() == self.count {
            return Ok(f());
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.count);
        let pool = pool.build().map_err(|e| {
            let message = format!("cannot start {} threads: {e}", self.count);
            FormatError::new(ErrorCode::Io, message).because(e)
        })?;
        Ok(pool.install(f))
    }

    /// Runs `f`, a pass, with the pool; a pass that is under way is waited for.
    pub(crate) fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        /// Puts things back, after a panic too.
        struct Guard<'a>(MutexGuard<'a, Option<Pool>>, Option<Pool>);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                *self.0 = CURRENT.replace(self.1.take());
            }
        }
        let mut mine = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = mine.take().unwrap_or_else(|| Pool::new(self.count));
        let _guard = Guard(mine, CURRENT.replace(Some(pool)));
        f()
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
