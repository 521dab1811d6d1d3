//! The one place that knows threads.
//!
//! Invariant: threads split rows, heads and tokens, never one sum, so no result depends on how many
//! there are (`formats/numerics.md`, rule 6). The pool is the caller's: whatever rayon pool the
//! call came from, else the global one; it is entered once per forward pass ([`enter`]), because
//! entering from outside costs more than a whole decoder layer of a small model.

use rayon::prelude::*;

/// Multiplications below which a parallel region costs more than it saves.
pub(crate) const WORTH_A_REGION: usize = 1 << 19;

/// Multiplications that an element of an elementwise operation counts for, memory included.
pub(crate) const PER_ELEMENT: usize = 16;

/// Threads of the current pool.
pub(crate) fn count() -> usize {
    rayon::current_num_threads()
}

/// Runs `f` inside the current pool; with one thread, right here.
pub(crate) fn enter<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    if rayon::current_thread_index().is_some() || count() == 1 {
        f()
    } else {
        rayon::scope(|_| f())
    }
}

/// How many pieces `work` multiplications are worth: 1, or one per thread.
pub(crate) fn pieces(work: usize) -> usize {
    if work < WORTH_A_REGION { 1 } else { count() }
}

/// Calls `f` for every item: in order on this thread for one piece, else wherever.
pub(crate) fn for_each<T: Send>(pieces: usize, items: Vec<T>, f: impl Fn(T) + Sync + Send) {
    if pieces <= 1 || items.len() <= 1 {
        items.into_iter().for_each(f);
    } else {
        items.into_par_iter().with_max_len(1).for_each(f);
    }
}

/// Calls `f` for parts of `x`, `(tokens, width)`, with the number of the first token of each.
pub(crate) fn for_tokens(x: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let tokens = x.len() / width;
    let pieces = pieces(PER_ELEMENT * x.len());
    let share = tokens.div_ceil(4 * pieces).max(1);
    if pieces <= 1 {
        f(0, x);
    } else {
        let parts = x.chunks_mut(share * width).enumerate().collect();
        for_each(pieces, parts, |(part, x): (usize, &mut [f32])| {
            f(part * share, x)
        });
    }
}

/// Like [`for_each`]; the error is that of the first failing item, whichever failed first in time.
pub(crate) fn try_for_each<T: Send, E: Send>(
    pieces: usize,
    items: Vec<T>,
    f: impl Fn(T) -> Result<(), E> + Sync + Send,
) -> Result<(), E> {
    if pieces <= 1 || items.len() <= 1 {
        items.into_iter().try_for_each(f)
    } else {
        let results: Vec<Result<(), E>> = items.into_par_iter().with_max_len(1).map(f).collect();
        results.into_iter().collect()
    }
}
