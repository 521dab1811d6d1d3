//! Packings: ways of laying trits into bytes.
//!
//! Invariant: for every matrix a packing accepts, `unpack(pack(m))` has the same trits and the same
//! scales in normal form; what it cannot hold exactly it refuses, unless asked to round scales, and
//! then says by how much. Packing and unpacking work on independent units (byte ranges, rows), so
//! that callers may spread one tensor over threads.

#[cfg(test)]
mod conformance;
mod f16_blocks;
mod hf_u8;
mod i2_s;
mod iq1_bn;
mod iq2_bn;
mod iq2_bn_r4;
mod mlx_1bit;
mod mlx_2bit;
mod ms_gpu_int2;
mod pq2_0;
mod ptq1_0;
mod q1_0;
mod q2_0;
mod row_scales;
mod stq1_0;
mod tile32;
mod tiling_names;
mod tilings;
mod tl1;
mod tl2;
mod tq1_0;
mod tq2_0;
mod trailer;

pub use mlx_1bit::binary_rows;
pub use mlx_2bit::{Affine, affine_rows, affine_scales, ternary_of_affine};

use crate::error::{ErrorCode, FormatError};
use crate::source::fits_in_memory;
use bitnet_ternary::{MatrixError, Scales, TernaryMatrix, decode_quads, encode_quads};
use std::fmt::Debug;

/// Packed bytes and the scales that travel beside them.
#[derive(Debug, Clone, Copy)]
pub struct PackedTensor<'a> {
    /// The bytes as they lie in the file.
    pub bytes: &'a [u8],
    /// Rows of the matrix (not of the storage).
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// Scales stored outside the bytes, already multipliers; `None` when the packing stores its own.
    pub outside: Option<&'a Scales>,
}

/// What to do with a scale that the packing cannot hold exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleRounding {
    /// Refuse, naming the error figure.
    Refuse,
    /// Round as the format's own encoder does.
    Allow,
}

/// Which rows the units of a packed matrix hold, and that nothing but these decides their bytes
/// ([`Packing::unit_rows`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitRows {
    /// Unit `u` holds the rows from `u n` on, `n` of them, the last one fewer.
    Consecutive(usize),
    /// Unit `u` holds the rows `u`, `u + R`, `u + 2R` and `u + 3R` of a matrix with `4R`.
    Quarters,
    /// Units need more of the matrix.
    Mixed,
}

/// One way of laying trits into bytes.
pub trait Packing: Sync + Debug {
    /// `tq2_0`: also its file, its page and its name on the command line.
    fn name(&self) -> &'static str;

    /// GGUF tensor type id, for packings that GGUF can hold.
    fn gguf_type(&self) -> Option<u32>;

    /// Other GGUF type ids under which releases of its programs wrote the same bytes.
    fn gguf_aliases(&self) -> &'static [u32] {
        &[]
    }

    /// `general.file_type` of a GGUF file whose matrices are packed so.
    fn gguf_file_type(&self) -> Option<u32>;

    /// Whether the scales are inside the packed bytes (`false`: a tensor beside them).
    fn holds_scales(&self) -> bool;

    /// Whether this packing is written, or only read.
    fn is_writable(&self) -> bool {
        true
    }

    /// The packing whose bytes these are, under another type id: one becomes the other by its header.
    fn same_bytes_as(&self) -> Option<&'static str> {
        None
    }

    /// For packings with parameters: those it uses for this shape, as they stand in a name
    /// (`1536x4096=256-128-32` of `tl1`; see [`name_with_parameters`]).
    fn parameters(&self, _rows: usize, _cols: usize) -> Option<String> {
        None
    }

    /// Bytes of a packed `rows x cols` matrix, to lay out files with.
    ///
    /// # Errors
    /// `target-cannot-hold` for shapes the packing cannot express (with the rule and a hint);
    /// overflow.
    fn packed_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError>;

    /// As [`packed_len`](Self::packed_len), for reading: also accepts shapes that are legal to read
    /// but not to write.
    ///
    /// # Errors
    /// As `packed_len`.
    fn stored_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        self.packed_len(rows, cols)
    }

    /// Whether the codes express every matrix of trits; else [`check_trits`](Self::check_trits) has to look.
    fn holds_any_trits(&self) -> bool {
        true
    }

    /// Whether the trits of `matrix`, with these scales, can be held.
    ///
    /// # Errors
    /// `target-cannot-hold` with the row and the first columns that the codes cannot express.
    fn check_trits(&self, _matrix: &TernaryMatrix) -> Result<(), FormatError> {
        Ok(())
    }

    /// Whether the scales of `matrix` can be held: the largest relative error that storing them
    /// causes (0 when exact).
    ///
    /// # Errors
    /// `scale-rounding` when it is not exact and `rounding` refuses; `target-cannot-hold` for a
    /// scale structure the packing has no room for, or a scale that would become 0 or infinite.
    fn check_scales(
        &self,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError>;

    /// Bytes of one independent unit of a packed matrix with `cols` columns; packed bytes are
    /// whole units, then what [`trailer`](Self::trailer) says. Never 0.
    fn unit_len(&self, rows: usize, cols: usize) -> usize;

    /// Writes `out.len() / unit_len` units, starting with unit `first`. `matrix` passed
    /// `packed_len`, `check_trits` and `check_scales`; units beyond the matrix are left as they are.
    ///
    /// Packings that are only read, and shapes that are legal only to read (those of
    /// [`stored_len`](Self::stored_len)), are encoded here all the same, so that tests can hold the
    /// layout against vectors from both sides.
    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]);

    /// Which rows a unit holds, for those who pack a matrix that they never have as a whole.
    fn unit_rows(&self, _rows: usize, _cols: usize) -> UnitRows {
        UnitRows::Mixed
    }

    /// Packs rows of whole units of a matrix with `rows` rows, whose scale is one for the whole of it
    /// (or which passes for such): the units that hold the rows of `band`, all of them. For
    /// [`UnitRows::Quarters`] the band is the four runs of rows, one behind the other.
    fn pack_band(&self, _rows: usize, band: &TernaryMatrix, out: &mut [u8]) {
        // such bytes do not depend on where in the matrix the rows are
        self.pack_units(band, 0, out);
    }

    /// The bytes after the units (I2_S: scale and zeros).
    fn trailer(&self, _matrix: &TernaryMatrix) -> Vec<u8> {
        Vec::new()
    }

    /// How many of the last bytes of a packed matrix no reader looks at.
    fn unread_tail(&self) -> usize {
        0
    }

    /// Packs a whole matrix on this thread.
    ///
    /// # Errors
    /// As `packed_len`, `check_trits` and `check_scales`; all refuse before a byte is made.
    fn pack(
        &self,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<Vec<u8>, FormatError> {
        let len = self.packed_len(matrix.rows(), matrix.cols())? as usize;
        self.check_trits(matrix)?;
        self.check_scales(matrix, rounding)?;
        let trailer = self.trailer(matrix);
        let mut out = vec![0; len.saturating_sub(trailer.len())];
        self.pack_units(matrix, 0, &mut out);
        out.extend_from_slice(&trailer);
        Ok(out)
    }

    /// Unpacks rows `first ..` into `out` (`(n, cols)`, row-major trits). After an error the
    /// contents of `out` mean nothing.
    ///
    /// # Errors
    /// `bad-code` with row and column; `tensor.bytes` is checked against `stored_len` here
    /// (`truncated`, `malformed`); `usage` for rows that the matrix does not have.
    fn unpack_rows(
        &self,
        tensor: &PackedTensor<'_>,
        first: usize,
        out: &mut [i8],
    ) -> Result<(), FormatError>;

    /// The scales of a packed tensor: its own, or the ones beside it.
    ///
    /// # Errors
    /// `non-finite` (NaN, infinity), `malformed` (negative, wrong count), `missing-tensor` when
    /// they should lie beside the codes and are not given.
    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError>;

    /// Unpacks a whole matrix on this thread.
    ///
    /// # Errors
    /// As `unpack_rows` and `scales`; `limit-exceeded` for more columns than accumulate exactly.
    fn unpack(&self, tensor: &PackedTensor<'_>) -> Result<TernaryMatrix, FormatError> {
        // before the allocation: the bytes must be there that justify it
        tensor.check_len(self.stored_len(tensor.rows, tensor.cols)?)?;
        let mut trits = vec![0; elements(tensor.rows, tensor.cols)? as usize];
        self.unpack_rows(tensor, 0, &mut trits)?;
        TernaryMatrix::new(tensor.rows, tensor.cols, trits, self.scales(tensor)?)
            .map_err(|e| matrix_error(&e))
    }
}

/// Every packing. Adding one is a file, a `mod` line and a row.
pub static PACKINGS: &[&dyn Packing] = &[
    &hf_u8::HfU8,
    &i2_s::I2S,
    &i2_s::I2S_ARM64,
    &i2_s::I2SRows4,
    &tq1_0::Tq1_0,
    &tq2_0::Tq2_0,
    &row_scales::Rows(iq1_bn::Iq1Bn),
    &row_scales::Rows(iq2_bn::Iq2Bn),
    &row_scales::Rows(iq2_bn_r4::Iq2BnR4),
    &q2_0::Q2_0,
    &q2_0::Q2_0G128,
    &q2_0::Q2_0G128Last,
    &pq2_0::Pq2_0,
    &ptq1_0::Ptq1_0,
    &q1_0::Q1_0,
    &stq1_0::Stq1_0,
    &tl1::TL1,
    &tl2::TL2,
    &mlx_2bit::Mlx2bit,
    &ms_gpu_int2::MsGpuInt2,
    &tile32::Tile32(tile32::BaseThree),
    &tile32::Tile32(tile32::BaseFour),
];

/// The name under which [`packing_by_name`] finds `packing` with the parameters it uses for these
/// shapes (rows, columns): what a file has to record. `None` where there are none.
pub fn name_with_parameters(
    packing: &dyn Packing,
    shapes: impl IntoIterator<Item = (usize, usize)>,
) -> Option<String> {
    let mut items: Vec<String> = Vec::new();
    for (rows, cols) in shapes {
        let item = packing.parameters(rows, cols)?;
        if !items.contains(&item) {
            items.push(item);
        }
    }
    let stem = packing.name().split('-').next()?;
    (!items.is_empty()).then(|| format!("{stem}-{}", items.join(",")))
}

/// The packing of this name: a row of [`PACKINGS`], or one of them with parameters
/// (`tl1-BM-BK-bm`).
pub fn packing_by_name(name: &str) -> Option<&'static dyn Packing> {
    let row = PACKINGS.iter().copied().find(|p| p.name() == name);
    row.or_else(|| tiling_names::by_name(name))
}

/// `packing`, and the layouts that a file whose type id says so may have just as well: of the same id and page,
/// and of the same lengths for `shapes` (rows, columns); none where there is no other. For packings with tilings
/// these are the ones that programs ship, not all there are, and so there is always another.
pub fn layouts_like(
    packing: &'static dyn Packing,
    shapes: &[(usize, usize)],
) -> Vec<&'static dyn Packing> {
    let lengths = |packing: &dyn Packing| -> Option<Vec<u64>> {
        let lengths = shapes.iter();
        lengths
            .map(|&(rows, cols)| packing.stored_len(rows, cols).ok())
            .collect()
    };
    let own = lengths(packing);
    let others = same_layout_id(packing)
        .into_iter()
        .chain(tiling_names::shipped(packing, shapes));
    let others =
        others.filter(|p| p.name() != packing.name() && own.is_some() && lengths(*p) == own);
    let all: Vec<_> = std::iter::once(packing).chain(others).collect();
    let mut shapes = shapes.iter();
    let is_tiled = shapes.any(|&(rows, cols)| packing.parameters(rows, cols).is_some());
    if all.len() > 1 || is_tiled {
        all
    } else {
        Vec::new()
    }
}

/// The packings that share `packing`'s GGUF type id and page, itself included: where their lengths agree,
/// only the data can tell which one a file has ([`crate::code_length`]).
pub fn same_layout_id(packing: &dyn Packing) -> Vec<&'static dyn Packing> {
    let stem = |name: &'static str| name.split('-').next();
    let same = |other: &&dyn Packing| {
        other.gguf_type().is_some()
            && other.gguf_type() == packing.gguf_type()
            && stem(other.name()) == stem(packing.name())
    };
    PACKINGS.iter().copied().filter(same).collect()
}

impl PackedTensor<'_> {
    /// Whether the bytes are as many as the shape needs.
    fn check_len(&self, needed: u64) -> Result<(), FormatError> {
        let found = self.bytes.len() as u64;
        let code = match found.cmp(&needed) {
            std::cmp::Ordering::Less => ErrorCode::Truncated,
            std::cmp::Ordering::Equal => return Ok(()),
            std::cmp::Ordering::Greater => ErrorCode::Malformed,
        };
        let (rows, cols) = (self.rows, self.cols);
        Err(FormatError::new(
            code,
            format!("a packed {rows} x {cols} matrix needs {needed} bytes, found {found}"),
        ))
    }

    /// Checks the bytes against `needed` and the rows `first ..` that fill `out_len` trits against
    /// the matrix.
    fn check_rows(&self, needed: u64, first: usize, out_len: usize) -> Result<(), FormatError> {
        self.check_len(needed)?;
        let fits = match out_len.checked_div(self.cols) {
            None => out_len == 0,
            Some(rows) => {
                out_len.is_multiple_of(self.cols)
                    && first.checked_add(rows).is_some_and(|end| end <= self.rows)
            }
        };
        if fits {
            return Ok(());
        }
        let (rows, cols) = (self.rows, self.cols);
        Err(FormatError::new(
            ErrorCode::Usage,
            format!("{out_len} trits from row {first} on are no rows of a {rows} x {cols} matrix"),
        ))
    }
}

/// `rows * cols`, where that does not overflow.
fn elements(rows: usize, cols: usize) -> Result<u64, FormatError> {
    rows.checked_mul(cols)
        .map(|n| n as u64)
        .filter(|&n| n < 1 << 62 && fits_in_memory(n).is_ok())
        .ok_or_else(|| {
            FormatError::new(
                ErrorCode::LimitExceeded,
                format!("{rows} x {cols} is more elements than this process can address"),
            )
        })
}

/// The 2-bit code of a trit.
#[inline(always)]
fn code(trit: i8) -> u8 {
    (trit as u8).wrapping_add(1)
}

/// The trit of the lowest bit pair of a byte; 2 for code 3.
#[inline(always)]
fn trit(codes: u8) -> i8 {
    ((codes & 3) as i8).wrapping_sub(1)
}

/// Packs four runs of trits, one of each in a byte: the first in the lowest bit pair.
#[inline(always)]
fn encode_runs<'a>(runs: [impl IntoIterator<Item = &'a i8>; 4], bytes: &mut [u8]) {
    let [a, b, c, d] = runs.map(IntoIterator::into_iter);
    let quads = a.zip(b).zip(c.zip(d));
    for (byte, ((a, b), (c, d))) in bytes.iter_mut().zip(quads) {
        *byte = code(*a) | code(*b) << 2 | code(*c) << 4 | code(*d) << 6;
    }
}

/// Unpacks what [`encode_runs`] packs; returns a byte that is not zero if a code was 3.
#[inline(always)]
fn decode_runs<const N: usize>(bytes: &[u8; N], [a, b, c, d]: [&mut [i8; N]; 4]) -> u8 {
    let mut bad = 0;
    let quads = a.iter_mut().zip(b).zip(c.iter_mut().zip(d));
    for (&byte, ((a, b), (c, d))) in bytes.iter().zip(quads) {
        bad |= byte & byte >> 1;
        (*a, *b) = (trit(byte), trit(byte >> 2));
        (*c, *d) = (trit(byte >> 4), trit(byte >> 6));
    }
    bad & 0x55
}

/// The four runs of `N` trits in a block of `4 N`.
#[inline(always)]
fn runs<const N: usize>(block: &[i8]) -> Option<[&[i8; N]; 4]> {
    let [a, b, c, d] = block.as_chunks::<N>().0 else {
        return None;
    };
    Some([a, b, c, d])
}

/// As [`runs`], to write.
#[inline(always)]
fn runs_mut<const N: usize>(block: &mut [i8]) -> Option<[&mut [i8; N]; 4]> {
    let [a, b, c, d] = block.as_chunks_mut::<N>().0 else {
        return None;
    };
    Some([a, b, c, d])
}

/// The 2-bit codes of four trits, each in a byte of its own.
#[inline(always)]
fn codes_of_4(trits: [i8; 4]) -> u32 {
    let t = u32::from_le_bytes(trits.map(|t| t as u8));
    // one more in each byte, without a carry to the next
    (t & 0x7f7f_7f7f).wrapping_add(0x0101_0101) ^ (t & 0x8080_8080)
}

/// Unpacks one bit pair of each byte; returns the largest code met.
fn unpack_pair<const SHIFT: u32>(codes: &[u8], trits: &mut [i8]) -> u8 {
    let mut worst = 0;
    for (t, b) in trits.iter_mut().zip(codes) {
        let code = b.wrapping_shr(SHIFT) & 3;
        worst = worst.max(code);
        *t = trit(code);
    }
    worst
}

/// Quotient and remainder, for divisors that are 0 for no shape that was checked.
#[inline(always)]
pub(crate) fn div_rem(n: usize, by: usize) -> (usize, usize) {
    n.checked_div(by).zip(n.checked_rem(by)).unwrap_or_default()
}

/// The bytes from `at` on.
#[inline(always)]
fn from(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or_default()
}

/// Row and column of the first `wrong` in `trits`, rows `first ..` of a matrix.
fn place_of(wrong: i8, first: usize, cols: usize, trits: &[i8]) -> (usize, usize) {
    let at = trits.iter().position(|&t| t == wrong).unwrap_or(0);
    let (row, col) = div_rem(at, cols);
    (first.saturating_add(row), col)
}

/// The error for code 3 (unpacked as the trit 2) somewhere in `trits`, rows `first ..` of a matrix.
#[cold]
fn bad_code(first: usize, cols: usize, trits: &[i8]) -> FormatError {
    let (row, col) = place_of(2, first, cols, trits);
    FormatError::new(
        ErrorCode::BadCode,
        format!("row {row}, column {col}: expected a code 0, 1 or 2, found 3"),
    )
    .hint("decoders disagree about code 3; the file is damaged, or packed in another layout")
}

/// Checks a scale read from a file; `place` says where it stood.
fn checked_scale(scale: f32, place: impl FnOnce() -> String) -> Result<f32, FormatError> {
    if scale.is_finite() && scale >= 0.0 {
        return Ok(scale);
    }
    let code = if scale.is_finite() {
        ErrorCode::Malformed
    } else {
        ErrorCode::NonFinite
    };
    let expected = "expected a finite scale that is not negative";
    Err(FormatError::new(
        code,
        format!("{}: {expected}, found {scale}", place()),
    ))
}

/// The scales beside the codes of a packing that holds none, checked against the shape.
fn outside_scales(tensor: &PackedTensor<'_>, name: &str) -> Result<Scales, FormatError> {
    let Some(outside) = tensor.outside else {
        return Err(FormatError::new(
            ErrorCode::MissingTensor,
            format!("{name} codes need a scale tensor beside them, found none"),
        ));
    };
    let values = outside.as_slice();
    let group_fits = match outside {
        Scales::PerGroup { group, .. } => *group != 0 && tensor.cols.is_multiple_of(*group),
        _ => true,
    };
    let expected = if group_fits {
        outside.expected_len(tensor.rows, tensor.cols)
    } else {
        0
    };
    if !group_fits || values.len() != expected {
        let found = values.len();
        return Err(FormatError::new(
            ErrorCode::Malformed,
            format!(
                "expected {expected} scales per {}, found {found}",
                outside.structure()
            ),
        ));
    }
    for (i, &s) in values.iter().enumerate() {
        checked_scale(s, || format!("scale {i}"))?;
    }
    Ok(outside.clone())
}

/// The one scale of a packing that has room for no more.
fn one_scale(matrix: &TernaryMatrix, name: &str) -> Result<f32, FormatError> {
    // a per-tensor scale is kept as it is even where no trit votes: its bits are the source's
    let normal = match matrix.scales() {
        Scales::PerTensor(s) => return Ok(*s),
        _ => matrix.normal_scales(),
    };
    match normal {
        Scales::PerTensor(s) => Ok(s),
        finer => Err(FormatError::new(
            ErrorCode::TargetCannotHold,
            format!(
                "{name} holds one scale per tensor, found one per {}",
                finer.structure()
            ),
        )
        .hint("choose a target with row or block scales")),
    }
}

/// A matrix error in this crate's words.
fn matrix_error(error: &MatrixError) -> FormatError {
    let code = match error {
        MatrixError::TooManyColumns { .. } => ErrorCode::LimitExceeded,
        MatrixError::BadScale { found, .. } if !found.is_finite() => ErrorCode::NonFinite,
        MatrixError::NotATrit { .. } => ErrorCode::BadCode,
        _ => ErrorCode::Malformed,
    };
    FormatError::new(code, error.to_string()).because(error.clone())
}
