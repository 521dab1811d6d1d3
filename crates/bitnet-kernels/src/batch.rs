//! Activations prepared for one backend.
//!
//! Invariant: the activations lie as the kernel of the backend reads them, and both travel together.

use crate::activations::Activations;
use crate::backend::Backend;
use bitnet_ternary::ActivationError;

/// Int8 activations of some tokens, prepared for one backend by
/// [`Backend::quantize`]. Reuse one batch to reuse its memory.
#[derive(Clone, Debug, Default)]
pub struct ActivationBatch {
    backend: Option<Backend>,
    activations: Activations,
    row: Vec<f32>, // (cols,): a token on its way
}

impl ActivationBatch {
    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.activations.tokens()
    }

    /// Columns per token.
    pub fn cols(&self) -> usize {
        self.activations.cols()
    }

    /// The int8 values of one token, `(cols,)`.
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
    pub(crate) fn activations(&self) -> &Activations {
        &self.activations
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
        self.backend = Some(backend);
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

    /// One token's `(scale, sum)`.
    fn quantize_row(&self, x: &[f32], values: &mut [i8]) -> Result<(f32, i32), ActivationError> {
        // SAFETY: self exists, so the CPU has what the entry was instantiated with.
        unsafe { (self.kernel().float.quantize)(x, values) }.ok_or_else(|| ActivationError {
            index: x.iter().position(|v| !v.is_finite()).unwrap_or(0),
        })
    }
}
