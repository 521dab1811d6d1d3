//! A kernel that this CPU can run, and the float operations beside its products.
//!
//! Invariant: a [`Backend`] is made in [`Backend::of`] only, which asks the CPU first.

use crate::attention::{self, AttentionScratch};
use crate::delta::DeltaHead;
use crate::dense::MatrixType;
use crate::kernel::{Inputs, Kernel};
use crate::kernels::KERNELS;
use crate::lanes::DenseType;
use crate::output::Output;
use crate::stored_rows::RowType;
use crate::token_attention::{self, HeadBlock};
use bitnet_ternary::Scales;
use std::fmt;

/// A kernel that this CPU can run.
///
/// ```
/// use bitnet_kernels::{ActivationBatch, Backend, Output, Scales, TernaryMatrix};
///
/// let trits = vec![1, 0, -1, 1, 0, 1, 1, 0];
/// let matrix = TernaryMatrix::new(2, 4, trits, Scales::PerTensor(0.5)).unwrap();
/// let x = [10.0, 20.0, 30.0, 127.0]; // one token; the largest value becomes 127
///
/// let mut products = Vec::new();
/// for backend in Backend::available() {
///     let packed = backend.pack(&matrix);
///     let mut batch = ActivationBatch::default();
///     backend.quantize(&x, 4, &mut batch).unwrap();
///     let mut y = [0.0; 2];
///     packed.multiply(&batch, &mut Output::new(&mut y, 1, 2));
///     products.push(y);
/// }
/// // 0.5 * (10 - 30 + 127) and 0.5 * (20 + 30), with the same bits by every kernel
/// assert!(products.iter().all(|y| *y == products[0]));
/// assert!((products[0][0] - 53.5).abs() < 1e-4 && (products[0][1] - 25.0).abs() < 1e-4);
/// ```
#[derive(Clone, Copy)]
pub struct Backend(&'static Kernel);

impl PartialEq for Backend {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for Backend {}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({})", self.0.name)
    }
}

/// Why there is no backend of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelError {
    /// No kernel of this name in this build.
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<&'static str>,
    },
    /// The kernel exists, this CPU cannot run it.
    Unavailable {
        /// Its name.
        name: &'static str,
        /// What it requires.
        requires: &'static str,
        /// What of that this machine lacks.
        missing: Vec<&'static str>,
    },
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, known } => {
                write!(f, "unknown kernel `{name}`, known are {}", known.join(", "))
            }
            Self::Unavailable {
                name,
                requires,
                missing,
            } => {
                let missing = missing.join(", ");
                write!(
                    f,
                    "kernel `{name}` needs {requires}; this machine lacks {missing}"
                )
            }
        }
    }
}

impl std::error::Error for KernelError {}

impl Backend {
    /// The one door: asks the CPU.
    fn of(kernel: &'static Kernel) -> Option<Self> {
        (kernel.is_available)().then_some(Self(kernel))
    }

    /// The fastest available kernel.
    pub fn best() -> Self {
        Self::available()
            .next()
            .unwrap_or(Self(&KERNELS[KERNELS.len() - 1])) // scalar needs nothing
    }

    /// The kernel of this name.
    ///
    /// # Errors
    /// If there is none, or this CPU cannot run it: never a silent fallback.
    pub fn by_name(name: &str) -> Result<Self, KernelError> {
        let Some(kernel) = KERNELS.iter().find(|k| k.name == name) else {
            return Err(KernelError::Unknown {
                name: name.to_owned(),
                known: KERNELS.iter().map(|k| k.name).collect(),
            });
        };
        Self::of(kernel).ok_or(KernelError::Unavailable {
            name: kernel.name,
            requires: kernel.requires,
            missing: (kernel.missing)(),
        })
    }

    /// Every kernel this CPU can run, fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        KERNELS.iter().filter_map(Self::of)
    }

    /// The row of [`KERNELS`].
    pub fn kernel(&self) -> &'static Kernel {
        self.0
    }

    /// The kernel's name.
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// The layout in which this kernel reads a matrix with these scales, for int8 activations.
    pub fn layout(&self, scales: &Scales) -> &'static str {
        self.0.ternary_for(scales, Inputs::Int8).layout
    }
}

/// The canonical float operations: the same bits on every backend.
///
/// All panic if the lengths of their operands do not fit each other.
impl Backend {
    /// `sum a[i] * b[i]`, by rule 3.
    pub fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: self exists, so the CPU has what the entry was instantiated with.
        unsafe { (self.0.float.dot)(a, b) }
    }

    /// `sum a[i]`, by rule 3.
    pub fn sum(&self, a: &[f32]) -> f32 {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.sum)(a) }
    }

    /// `sum a[i]^2`, by rule 3.
    pub fn sum_squares(&self, a: &[f32]) -> f32 {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.sum_squares)(a) }
    }

    /// `y[i] = a * x[i] + y[i]`, rounded once.
    pub fn axpy(&self, a: f32, x: &[f32], y: &mut [f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.axpy)(a, x, y) }
    }

    /// `x[i] *= a`.
    pub fn scale(&self, a: f32, x: &mut [f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.scale)(a, x) }
    }

    /// `y[i] += x[i]`.
    pub fn add(&self, x: &[f32], y: &mut [f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.add)(x, y) }
    }

    /// The largest element, exact; minus infinity if there is none. NaN does not vote.
    pub fn max(&self, x: &[f32]) -> f32 {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.max)(x) }
    }

    /// `x[i] = exp(x[i])`, at most 1 ulp off (rule 5).
    pub fn exp(&self, x: &mut [f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.exp)(x) }
    }

    /// `gate[i] = silu(gate[i]) * up[i]`, `silu(x) = x / (1 + exp(-x))`.
    pub fn silu_mul(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.silu_mul)(gate, up) }
    }

    /// `gate[i] = max(gate[i], 0)^2 * up[i]`.
    pub fn relu2_mul(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.relu2_mul)(gate, up) }
    }

    /// `gate[i] = gelu(gate[i]) * up[i]`, the tanh form of GELU.
    pub fn gelu_tanh_mul(&self, gate: &mut [f32], up: &[f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.gelu_tanh_mul)(gate, up) }
    }

    /// `out[i] = weight[i] * (x[i] * (1 / sqrt(sum_squares(x) / n + eps)))`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.rms_norm)(x, weight, eps, out) }
    }

    /// RoPE in the half-split form: `lo' = lo * cos - hi * sin`, `hi' = hi * cos + lo * sin`, every
    /// product and sum rounded. `x` is `(2 * half,)`, `cos` and `sin` are `(half,)`.
    pub fn rotate_halves(&self, x: &mut [f32], cos: &[f32], sin: &[f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.rotate_halves)(x, cos, sin) }
    }

    /// `x = H (signs * x)` for each block of `block` features of `x`, `(n,)`, `H` the normalized Walsh-Hadamard transform
    /// in natural order (`formats/numerics.md`). `signs` are +1 and -1, `(n,)`; none count as ones.
    ///
    /// # Panics
    /// If `block` is no power of two, or does not divide `n`.
    pub fn hadamard(&self, x: &mut [f32], signs: &[f32], block: usize) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.hadamard)(x, signs, block) }
    }

    /// `x = signs * (H x)` for each block: undoes [`hadamard`](Self::hadamard), up to rounding.
    ///
    /// # Panics
    /// As [`hadamard`](Self::hadamard).
    pub fn hadamard_inverse(&self, x: &mut [f32], signs: &[f32], block: usize) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.hadamard_inverse)(x, signs, block) }
    }

    /// Numbers `x`, `(n,)`, as f16 in little-endian bytes, `(2 * n,)`, rounded to nearest even.
    pub fn narrow(&self, x: &[f32], out: &mut [u8]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.narrow)(x, out) }
    }

    /// Numbers `x`, `(n,)`, as a row of [`RowType::Q8`]: codes, then a scale for every 32 of them.
    ///
    /// # Panics
    /// If `out` has another length than [`RowType::row_bytes`] says.
    pub fn narrow_q8(&self, x: &[f32], out: &mut [u8]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.narrow_q8)(x, out) }
    }

    /// `x[i] = x[i] * sigmoid(gate[i])`, as the quotient `x / (1 + exp(-gate))`.
    pub fn sigmoid_mul(&self, x: &mut [f32], gate: &[f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.sigmoid_mul)(x, gate) }
    }

    /// One token of a causal convolution of each channel by itself: `out[c] = silu(sum of kernel[tap][c] *
    /// window[tap][c])`, taps in order. `window` and `kernel` are `(taps, channels)`, `out` is `(channels,)`.
    pub fn conv_silu(&self, window: &[f32], kernel: &[f32], out: &mut [f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.conv_silu)(window, kernel, out) }
    }

    /// The delta rule of one head on the tokens of one sequence, in order: `S *= decay; d = (v - S^T k) * beta;
    /// S += k d^T; out = S^T q`. `state` is `(key_dim, value_dim)`, `out` is `(tokens, value_dim)`.
    pub fn delta_rule(&self, head: &DeltaHead<'_>, state: &mut [f32], out: &mut [f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.delta_rule)(head, state, out) }
    }

    /// Softmax attention of some queries over one block of positions (`formats/numerics.md`), before the
    /// division by the sum of weights. `keys` and `values` are `(count, dim)`, stored as `stored` says, at any
    /// alignment; query `i` of `q: (queries, dim)` sees the first `seen[i]` of them: at least one, no fewer
    /// than the query before, the last query all. Writes `parts`, `(queries, dim + 2)`: weighted values,
    /// maximum score, sum of weights.
    ///
    /// # Panics
    /// If shapes differ, or `seen` is not as said.
    #[allow(clippy::too_many_arguments)]
    pub fn attend(
        &self,
        stored: impl Into<RowType>,
        rows: (&[u8], &[u8]),
        dim: usize,
        factor: f32,
        q: &[f32],
        seen: &[usize],
        scratch: &mut AttentionScratch,
        parts: &mut [f32],
    ) {
        let ops = &self.0.float.attention;
        let steps = ops.rows(stored.into());
        // SAFETY: as in `dot`: self exists.
        unsafe { attention::attend(ops, steps, rows, dim, factor, q, seen, scratch, parts) }
    }

    /// [`attend`](Self::attend) of the queries of one token, which see all keys and values of some `blocks`:
    /// as many queries for each block, not necessarily the same. Writes `parts`, `(blocks, queries, dim + 2)`.
    ///
    /// # Panics
    /// If shapes differ, or a block is empty.
    pub fn attend_blocks(
        &self,
        stored: impl Into<RowType>,
        blocks: &[HeadBlock<'_>],
        dim: usize,
        factor: f32,
        scratch: &mut AttentionScratch,
        parts: &mut [f32],
    ) {
        let ops = &self.0.float.attention;
        let rows = ops.rows(stored.into());
        // SAFETY: as in `dot`: self exists.
        unsafe { token_attention::attend_blocks(ops, rows, blocks, dim, factor, scratch, parts) }
    }

    /// Merges the part of the next block, as [`attend`](Self::attend) wrote it, into that of the blocks
    /// before it, one query; a part without weights is replaced.
    pub fn merge(&self, so_far: &mut [f32], next: &[f32]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.attention.merge)(so_far, next) }
    }

    /// `out[t][r] = dot(row r, x[t])` for the rows that `out` owns.
    ///
    /// `rows` is the whole dense matrix, row-major `(rows, cols)`, little-endian, at any alignment;
    /// `x` is `(tokens, cols)`. Columns are a multiple of [`MatrixType::block`].
    pub fn dense_rows(
        &self,
        dtype: impl Into<MatrixType>,
        rows: &[u8],
        cols: usize,
        x: &[f32],
        out: &mut Output<'_>,
    ) {
        let float = &self.0.float;
        let dtype = dtype.into();
        // SAFETY: as in `dot`: self exists.
        unsafe {
            match dtype {
                MatrixType::Dense(DenseType::F32) => (float.dense_f32)(rows, cols, x, out),
                MatrixType::Dense(DenseType::F16) => (float.dense_f16)(rows, cols, x, out),
                MatrixType::Dense(DenseType::Bf16) => (float.dense_bf16)(rows, cols, x, out),
                MatrixType::Blocks(block) => (float.dense_blocks)(block, rows, cols, x, out),
            }
        }
    }
}
