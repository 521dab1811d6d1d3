//! The table of kernels, and how one is chosen.
//!
//! Invariant: a [`Backend`] is made in [`Backend::of`] only, which asks the CPU first.

/// The features of this list that the machine lacks, by the names that people use.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! lacking {
    (x86: $($feature:tt = $name:literal),+ $(,)?) => {
        lacking!(is_x86_feature_detected: $($feature = $name),+)
    };
    (aarch64: $($feature:tt = $name:literal),+ $(,)?) => {
        lacking!(is_aarch64_feature_detected: $($feature = $name),+)
    };
    ($detected:ident: $($feature:tt = $name:literal),+) => {{
        let all: Vec<(bool, &'static str)> = vec![$((std::arch::$detected!($feature), $name)),+];
        let missing = all.into_iter().filter(|(is_there, _)| !is_there);
        missing.map(|(_, name)| name).collect::<Vec<&'static str>>()
    }};
}

#[cfg(target_arch = "x86_64")]
mod amx_int8;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_screen;
#[cfg(target_arch = "x86_64")]
mod avx512_attention;
#[cfg(target_arch = "x86_64")]
mod avx512_screen;
#[cfg(target_arch = "x86_64")]
mod avx512_vbmi;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(target_arch = "x86_64")]
mod lookup;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dotprod;
#[cfg(target_arch = "aarch64")]
mod neon_float;
#[cfg(target_arch = "aarch64")]
mod neon_screen;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod streams;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile_pack;

use crate::activations::ActivationBatch;
use crate::attention::{self, AttentionScratch};
use crate::dense::DenseType;
use crate::float_ops::FloatOps;
use crate::lines::Line;
use crate::output::Output;
use crate::packed::{PackedMatrix, Sink};
use crate::peak::Peak;
use crate::token_attention::{self, HeadBlock};
use bitnet_ternary::{ActivationError, Scales, TernaryMatrix};
use std::fmt;
use std::ops::Range;

/// All kernels of this architecture, fastest first, `scalar` last.
pub static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    amx_int8::KERNEL,
    #[cfg(target_arch = "x86_64")]
    avx512_vbmi::KERNEL,
    #[cfg(target_arch = "x86_64")]
    avx512_vnni::KERNEL,
    #[cfg(target_arch = "x86_64")]
    avx_vnni::KERNEL,
    #[cfg(target_arch = "x86_64")]
    avx2::KERNEL,
    #[cfg(target_arch = "aarch64")]
    neon_dotprod::KERNEL,
    #[cfg(target_arch = "aarch64")]
    neon::KERNEL,
    scalar::KERNEL,
];

/// One way of computing ternary x int8 products: the integers
/// `dot[g][r] = sum over k in group g of trit[r][k] * a[k]`, and everything beside them.
pub struct Kernel {
    /// Instruction set features: also the file's name and the value of `--kernel`.
    pub name: &'static str,
    /// What the CPU must have, for people: `AVX-512 F, BW, VNNI`.
    pub requires: &'static str,
    /// Whether this CPU has it.
    pub is_available: fn() -> bool,
    /// What of that this machine lacks, by name; empty where the kernel runs.
    pub missing: fn() -> Vec<&'static str>,
    pub(crate) ternary: TernaryOps,
    /// For matrices with group scales, if their groups do not fit the blocks of `ternary`. Its panels
    /// are as wide.
    pub(crate) grouped: Option<TernaryOps>,
    pub(crate) float: FloatOps,
    /// The multiply instruction of its products, if one is known: what they are measured against.
    pub(crate) peak: Option<Peak>,
}

impl Kernel {
    /// The layout of a matrix with these scales.
    pub(crate) fn ternary_for(&self, scales: &Scales) -> &TernaryOps {
        match (scales, &self.grouped) {
            (Scales::PerGroup { .. }, Some(grouped)) => grouped,
            _ => &self.ternary,
        }
    }
}

/// The layout of a kernel and its products.
///
/// Calling an `unsafe` entry is sound when the CPU has what the kernel requires; a [`Backend`] is
/// the proof of that.
pub(crate) struct TernaryOps {
    /// The name of the layout, the same in every kernel that reads it; tiles that a file may hold are
    /// those of `formats/packing/tile32.md`.
    pub layout: &'static str,
    /// Rows that are computed together; a row range starts at a multiple.
    pub tile_rows: usize,
    /// How an [`ActivationBatch`] interleaves tokens.
    pub panel: Panel,
    /// Bytes of activations that may stay in L2 while the tiles of a matrix pass by.
    pub block_bytes: usize,
    /// Lines of scratch that `dots` and `sums` want.
    pub scratch_lines: usize,
    /// Lines of one tile of this many columns.
    pub tile_lines: fn(cols: usize) -> usize,
    /// Writes row-major trits `(rows, cols)` as tiles; rows behind the last one are zero trits. Whether
    /// all of them are trits: otherwise the tiles mean nothing.
    pub pack: unsafe fn(trits: &[i8], cols: usize, tiles: &mut [Line]) -> bool,
    /// The inverse of `pack`.
    pub unpack: fn(tiles: &[Line], cols: usize, trits: &mut [i8]),
    /// Whether every byte is one that `pack` writes for some trits.
    pub are_codes: fn(tiles: &[Line]) -> bool,
    /// The contract: exact dots of one tile with some tokens.
    pub dots: Dots,
    /// Many tokens with many tiles at once, where that is faster than tile by tile.
    pub many_tokens: Option<ManyTokens>,
    /// The same sums over float activations `x: (tokens, cols)`, by rule 3 within each group.
    pub sums: unsafe fn(&Tile<'_>, x: &[f32], sums: &mut [f32]),
}

/// Leaves half of an L2 of 1 MiB to weights and outputs.
pub(crate) const BLOCK_BYTES: usize = 480 << 10;

/// Some tokens side by side, as a kernel multiplies them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    /// Tokens of a panel; 0 for a kernel without panels.
    pub tokens: usize,
    /// Dwords of four columns that one token keeps together: 1 or [`RUN`](crate::activations::RUN).
    pub quads: usize,
}

impl Panel {
    /// Not interleaved.
    pub const NONE: Self = Self {
        tokens: 0,
        quads: 1,
    };

    /// A dword of each token in turn.
    pub const fn of(tokens: usize) -> Self {
        Self { tokens, quads: 1 }
    }
}

impl Default for Panel {
    fn default() -> Self {
        Self::NONE
    }
}

/// Computes `dots: (tokens, groups, tile_rows)` with some scratch, and tells the sink. `tokens` starts at
/// a panel; `dots` has room for whole panels, unless there is only one token.
pub(crate) type Dots = unsafe fn(
    &Tile<'_>,
    &ActivationBatch,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    &mut dyn Sink<i32>,
);

/// Products whose preparation of the tokens pays over many rows.
pub(crate) struct ManyTokens {
    /// Fewest tokens, in a panel of their own, for which it does.
    pub fewest: usize,
    /// Computes the sums of some panels with all tiles and hands them out.
    pub sums: unsafe fn(&Tiles<'_>, &ActivationBatch, tokens: Range<usize>, done: Done<'_>),
}

/// Takes the sums of one tile and some tokens: `(tile, tokens, (tokens, tile_rows))`.
pub(crate) type Done<'a> = &'a mut dyn FnMut(usize, Range<usize>, &[f32]);

/// Some tiles of a packed matrix.
#[derive(Clone, Copy)]
// read by sums that are looked up, which only x86-64 has
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct Tiles<'a> {
    /// `(tiles, tile_lines)`
    pub lines: &'a [Line],
    /// Columns of the matrix, not 0.
    pub cols: usize,
    /// Columns per group of scales; `cols` when there is one group.
    pub group: usize,
    /// Group scales `(rows that exist, groups)` from the first tile on. With them a sum is that of rule 2,
    /// `sum_g dot_g * scale_g`; without it is the dot, which is exact in f32.
    pub scales: Option<&'a [f32]>,
}

#[cfg(target_arch = "x86_64")]
impl Tiles<'_> {
    /// Groups per row.
    pub fn groups(&self) -> usize {
        self.cols / self.group
    }
}

/// One tile of a packed matrix.
pub(crate) struct Tile<'a> {
    /// `(tile_lines,)`
    pub lines: &'a [Line],
    /// Columns of the matrix, not 0.
    pub cols: usize,
    /// Columns per group of scales; `cols` when there is one group.
    pub group: usize,
}

impl Tile<'_> {
    /// Groups per row.
    pub fn groups(&self) -> usize {
        self.cols / self.group
    }
}

/// A kernel that this CPU can run.
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

    /// The layout in which this kernel reads a matrix with these scales.
    pub fn layout(&self, scales: &Scales) -> &'static str {
        self.0.ternary_for(scales).layout
    }

    /// Packs a matrix into this kernel's layout.
    pub fn pack(&self, matrix: &TernaryMatrix) -> PackedMatrix {
        PackedMatrix::new(*self, matrix)
    }

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
        let panel = self.0.ternary.panel;
        out.fill(*self, panel, (tokens, cols), |token, values| {
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
        let mut row = out.take_row(cols);
        let panel = self.0.ternary.panel;
        let result = out.fill(*self, panel, (tokens, cols), |token, values| {
            make(token, &mut row);
            self.quantize_row(&row, values)
        });
        out.give_row(row);
        result
    }

    /// One token's `(scale, sum)`.
    fn quantize_row(&self, x: &[f32], values: &mut [i8]) -> Result<(f32, i32), ActivationError> {
        // SAFETY: self exists, so the CPU has what the entry was instantiated with.
        unsafe { (self.0.float.quantize)(x, values) }.ok_or_else(|| ActivationError {
            index: x.iter().position(|v| !v.is_finite()).unwrap_or(0),
        })
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

    /// Numbers `x`, `(n,)`, as f16 in little-endian bytes, `(2 * n,)`, rounded to nearest even.
    pub fn narrow(&self, x: &[f32], out: &mut [u8]) {
        // SAFETY: as in `dot`: self exists.
        unsafe { (self.0.float.narrow)(x, out) }
    }

    /// Softmax attention of some queries over one block of positions (`formats/numerics.md`), before the
    /// division by the sum of weights. `keys` and `values` are `(count, dim)`, little-endian, at any
    /// alignment; query `i` of `q: (queries, dim)` sees the first `seen[i]` of them: at least one, no fewer
    /// than the query before, the last query all. Writes `parts`, `(queries, dim + 2)`: weighted values,
    /// maximum score, sum of weights.
    ///
    /// # Panics
    /// If shapes differ, or `seen` is not as said.
    #[allow(clippy::too_many_arguments)]
    pub fn attend(
        &self,
        dtype: DenseType,
        rows: (&[u8], &[u8]),
        dim: usize,
        factor: f32,
        q: &[f32],
        seen: &[usize],
        scratch: &mut AttentionScratch,
        parts: &mut [f32],
    ) {
        let ops = &self.0.float.attention;
        let steps = ops.rows(dtype);
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
        dtype: DenseType,
        blocks: &[HeadBlock<'_>],
        dim: usize,
        factor: f32,
        scratch: &mut AttentionScratch,
        parts: &mut [f32],
    ) {
        let ops = &self.0.float.attention;
        let (rows, size) = (ops.rows(dtype), dtype.size());
        // SAFETY: as in `dot`: self exists.
        unsafe {
            token_attention::attend_blocks(ops, rows, size, blocks, dim, factor, scratch, parts)
        }
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
    /// `x` is `(tokens, cols)`.
    pub fn dense_rows(
        &self,
        dtype: DenseType,
        rows: &[u8],
        cols: usize,
        x: &[f32],
        out: &mut Output<'_>,
    ) {
        let run = match dtype {
            DenseType::F32 => self.0.float.dense_f32,
            DenseType::F16 => self.0.float.dense_f16,
            DenseType::Bf16 => self.0.float.dense_bf16,
        };
        // SAFETY: as in `dot`: self exists.
        unsafe { run(rows, cols, x, out) }
    }
}
