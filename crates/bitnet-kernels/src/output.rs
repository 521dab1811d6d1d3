//! The result of a product, shared between threads by rows.
//!
//! Invariant: no two live views of one buffer own the same element. A view starts as the only one
//! and can only be split into two disjoint ones.

use crate::lines;
use std::marker::PhantomData;
use std::ops::Range;

/// A view of a `(tokens, rows)` row-major buffer that owns a range of rows of every token.
///
/// Threads that each hold a part write disjoint rows of one buffer without a copy.
pub struct Output<'a> {
    buffer: *mut f32, // (tokens, stride)
    stride: usize,    // rows of the whole buffer
    tokens: usize,
    rows: Range<usize>,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view is an exclusive borrow of the elements it owns (see the module's invariant), and
// `&mut [f32]` is Send.
unsafe impl Send for Output<'_> {}

impl<'a> Output<'a> {
    /// Views all of `buffer`, row-major `(tokens, rows)`.
    ///
    /// # Panics
    /// If the length of `buffer` is not `tokens * rows`.
    pub fn new(buffer: &'a mut [f32], tokens: usize, rows: usize) -> Self {
        assert_eq!(
            Some(buffer.len()),
            tokens.checked_mul(rows),
            "output of {tokens} x {rows}"
        );
        Self {
            buffer: buffer.as_mut_ptr(),
            stride: rows,
            tokens,
            rows: 0..rows,
            lifetime: PhantomData,
        }
    }

    /// The rows (of the whole matrix) that this view owns.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Tokens of the buffer.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Splits into the rows before `row` (counted in the whole matrix) and those from it on.
    ///
    /// # Panics
    /// If `row` lies outside [`rows`](Self::rows).
    pub fn split_at(self, row: usize) -> (Output<'a>, Output<'a>) {
        assert!(
            self.rows.start <= row && row <= self.rows.end,
            "row {row} outside {:?}",
            self.rows
        );
        let (start, end) = (self.rows.start, self.rows.end);
        let part = |rows| Output { rows, ..self };
        (part(start..row), part(row..end))
    }

    /// Where this view's rows from `row` on of the tokens from `token` on lie.
    // only the AVX-512 kernels spread their requests
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(crate) fn places(&self, token: usize, row: usize) -> Places {
        let at = token * self.stride + self.rows.start + row;
        Places {
            first: self.buffer.wrapping_add(at),
            stride: self.stride,
        }
    }

    /// Fetches some of this view's rows of one token, which will be written soon, into the cache.
    pub(crate) fn prefetch(&self, token: usize, rows: Range<usize>) {
        for row in rows.step_by(16) {
            let at = token * self.stride + self.rows.start + row;
            lines::prefetch(self.buffer.wrapping_add(at));
        }
    }

    /// This view's rows of one token, `(rows().len(),)`.
    ///
    /// # Panics
    /// If `token` is not below [`tokens`](Self::tokens).
    pub fn token_mut(&mut self, token: usize) -> &mut [f32] {
        assert!(token < self.tokens, "token {token} of {}", self.tokens);
        let start = token * self.stride + self.rows.start;
        // SAFETY: token < tokens and rows.end <= stride (new, split_at), so the range lies inside the
        // buffer of tokens * stride elements borrowed for 'a; no other view owns these rows, and
        // &mut self keeps this one from handing them out twice.
        unsafe { std::slice::from_raw_parts_mut(self.buffer.add(start), self.rows.len()) }
    }
}

/// Addresses of results, to be fetched into the cache: nothing is read or written by way of them.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct Places {
    first: *const f32,
    stride: usize,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
impl Places {
    /// Nowhere.
    pub const NONE: Self = Self {
        first: std::ptr::null(),
        stride: 0,
    };

    /// Row `row` of token `token`, both counted from the first.
    #[inline(always)]
    pub fn at(&self, token: usize, row: usize) -> *const f32 {
        self.first.wrapping_add(token * self.stride + row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_write_disjoint_rows() {
        let mut y = [0f32; 2 * 5];
        let (mut low, rest) = Output::new(&mut y, 2, 5).split_at(2);
        let (mut none, mut high) = rest.split_at(2);
        assert_eq!((low.rows(), none.rows(), high.rows()), (0..2, 2..2, 2..5));
        for t in 0..2 {
            low.token_mut(t).fill(1.0 + t as f32);
            none.token_mut(t).fill(99.0);
            high.token_mut(t).fill(10.0 + t as f32);
        }
        assert_eq!(y, [1.0, 1.0, 10.0, 10.0, 10.0, 2.0, 2.0, 11.0, 11.0, 11.0]);
    }

    #[test]
    #[should_panic(expected = "row 6 outside 0..5")]
    fn a_split_outside_is_refused() {
        let mut y = [0f32; 5];
        let _ = Output::new(&mut y, 1, 5).split_at(6);
    }
}
