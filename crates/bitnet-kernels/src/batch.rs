//! Activations prepared for one backend.
//!
//! Invariant: the activations lie as the kernel of the backend reads them, and both travel together.

use crate::activations::Activations;
use crate::backend::Backend;
use crate::fixed_point::{FixedPoint, Forms};
use bitnet_ternary::ActivationError;

/// Activations of some tokens, prepared for one backend: int8 by [`Backend::quantize`], or fixed-point by
/// [`Backend::fix`]. Reuse one batch to reuse its memory.
#[derive(Clone, Debug, Default)]
pub struct ActivationBatch {
    backend: Option<Backend>,
    form: Form,
    activations: Activations,
    fixed: FixedPoint,
    row: Vec<f32>, // (cols,): a token on its way
}

/// What a batch holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Form {
    #[default]
    Int8,
    Fixed,
}

/// What a kernel reads.
pub(crate) enum Prepared<'a> {
    Int8(&'a Activations),
    Fixed(&'a FixedPoint),
}

impl ActivationBatch {
    /// How many tokens.
    pub fn tokens(&self) -> usize {
        match self.prepared() {
            Prepared::Int8(x) => x.tokens(),
            Prepared::Fixed(x) => x.tokens(),
        }
    }

    /// Columns per token.
    pub fn cols(&self) -> usize {
        match self.prepared() {
            Prepared::Int8(x) => x.cols(),
            Prepared::Fixed(x) => x.cols(),
        }
    }

    /// The int8 values of one token, `(cols,)`; like the next two, of a batch of int8 activations.
    pub fn values(&self, token: usize) -> &[i8] {
        self.activations.values(token)
    }

    /// `s` of one token: `x ~ values / s`.
    pub fn scale(&self, token: usize) -> f32 {
        self.activations.scales()[token]
    }

    /// Sum of the values of one token.
    pub fn sum(&self, token: usize) -> i32 {
        self.activations.sum(token)
    }

    /// Whose layout this is; `None` before the first quantization.
    pub(crate) fn backend(&self) -> Option<Backend> {
        self.backend
    }

    /// What a kernel of that backend reads.
    pub(crate) fn prepared(&self) -> Prepared<'_> {
        match self.form {
            Form::Int8 => Prepared::Int8(&self.activations),
            Form::Fixed => Prepared::Fixed(&self.fixed),
        }
    }

    /// [`Activations::fill`] for a backend.
    ///
    /// # Errors
    /// The first token that `quantize` refuses, with its error.
    pub(crate) fn fill<E>(
        &mut self,
        backend: Backend,
        shape: (usize, usize),
        quantize: impl FnMut(usize, &mut [i8]) -> Result<(f32, i32), E>,
    ) -> Result<(), (usize, E)> {
        (self.backend, self.form) = (Some(backend), Form::Int8);
        let panel = backend.kernel().ternary.panel;
        self.activations.fill(panel, shape, quantize)
    }
}

impl Backend {
    /// Quantises `x`, row-major `(tokens, cols)`, to int8 (`formats/numerics.md`, rule 1) and lays it
    /// out for this kernel. Equals [`bitnet_ternary::quantize_row`] per token, bit for bit.
    ///
    /// # Errors
    /// The first token with a NaN or an infinity, and where in it.
    ///
    /// # Panics
    /// If the length of `x` is not a multiple of `cols`.
    pub fn quantize(
        &self,
        x: &[f32],
        cols: usize,
        out: &mut ActivationBatch,
    ) -> Result<(), (usize, ActivationError)> {
        let tokens = x.len().checked_div(cols).unwrap_or(0);
        assert_eq!(x.len(), tokens * cols, "activations of {cols} columns");
        out.fill(*self, (tokens, cols), |token, values| {
            self.quantize_row(&x[token * cols..(token + 1) * cols], values)
        })
    }

    /// [`quantize`](Self::quantize) of tokens that `make` writes, `(token, (cols,))`, one after the other:
    /// they need not be in memory all at once. What `make` is given holds anything.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize).
    pub fn quantize_made(
        &self,
        (tokens, cols): (usize, usize),
        out: &mut ActivationBatch,
        mut make: impl FnMut(usize, &mut [f32]),
    ) -> Result<(), (usize, ActivationError)> {
        let mut row = std::mem::take(&mut out.row);
        row.resize(cols, 0.0);
        let result = out.fill(*self, (tokens, cols), |token, values| {
            make(token, &mut row);
            self.quantize_row(&row, values)
        });
        out.row = row;
        result
    }

    /// Makes `x`, row-major `(tokens, cols)`, fixed-point activations (`formats/numerics.md`) and lays them out for
    /// this kernel.
    ///
    /// # Errors
    /// The first token with a NaN or an infinity, and where in it.
    ///
    /// # Panics
    /// If the length of `x` is not a multiple of `cols`.
    pub fn fix(
        &self,
        x: &[f32],
        cols: usize,
        out: &mut ActivationBatch,
    ) -> Result<(), (usize, ActivationError)> {
        let tokens = x.len().checked_div(cols).unwrap_or(0);
        assert_eq!(x.len(), tokens * cols, "activations of {cols} columns");
        self.fix_made((tokens, cols), out, |token, row| {
            row.copy_from_slice(&x[token * cols..(token + 1) * cols]);
        })
    }

    /// [`fix`](Self::fix) of tokens that `make` writes, `(token, (cols,))`, one after the other. What `make` is given
    /// holds anything.
    ///
    /// # Errors
    /// As [`fix`](Self::fix).
    pub fn fix_made(
        &self,
        (tokens, cols): (usize, usize),
        out: &mut ActivationBatch,
        mut make: impl FnMut(usize, &mut [f32]),
    ) -> Result<(), (usize, ActivationError)> {
        (out.backend, out.form) = (Some(*self), Form::Fixed);
        out.row.resize(cols, 0.0);
        let (row, kernel) = (&mut out.row, self.kernel());
        let forms = Forms {
            panels: kernel
                .ternary
                .many_fixed
                .as_ref()
                .map_or(0, |many| many.of(tokens)),
            tables: kernel.by_tables().map(|by| (by.lines, by.build)),
        };
        out.fixed.fill(forms, (tokens, cols), |token, to| {
            make(token, row);
            // SAFETY: self exists, so the CPU has what the entry was instantiated with.
            match unsafe { (kernel.float.fix)(row, to) } {
                true => Ok(()),
                false => Err(ActivationError {
                    index: row.iter().position(|v| !v.is_finite()).unwrap_or(0),
                }),
            }
        })
    }

    /// One token's `(scale, sum)`.
    fn quantize_row(&self, x: &[f32], values: &mut [i8]) -> Result<(f32, i32), ActivationError> {
        // SAFETY: self exists, so the CPU has what the entry was instantiated with.
        unsafe { (self.kernel().float.quantize)(x, values) }.ok_or_else(|| ActivationError {
            index: x.iter().position(|v| !v.is_finite()).unwrap_or(0),
        })
    }
}
