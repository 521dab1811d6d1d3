//! Numbers to trits: master weights, dequantized weights, codes stored in wider types.
//!
//! Invariant: every function reads its bytes in parallel over fixed pieces on the current rayon pool,
//! and its result does not depend on how many threads there are. Nothing is allocated beyond the
//! result and a few words per piece.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bitnet_formats::{Encoding, ErrorCode, FormatError, PlainType, TensorInfo, UnreadBits};
use bitnet_ternary::{
    BLOCK, Bf16, F16, F32, FloatElement, GROUP_SIZES, Scales, absmean_scale, block_magnitude,
    ternarize,
};
use rayon::prelude::*;
use std::ops::Range;

/// Bits of the weights that no reader uses: where, which, and why.
pub type UnreadPart = (Range<u64>, UnreadBits, &'static str);

/// Calls a generic function with the element type of a float encoding.
macro_rules! with_float {
    ($plain:expr, $f:ident ( $($arg:expr),* )) => {
        match $plain {
            PlainType::F32 => $f::<F32>($($arg),*),
            PlainType::F16 => $f::<F16>($($arg),*),
            PlainType::Bf16 => $f::<Bf16>($($arg),*),
            other => Err(not_float(other)),
        }
    };
}

fn not_float(found: PlainType) -> FormatError {
    let name = found.safetensors_name().to_ascii_lowercase();
    FormatError::new(
        ErrorCode::WrongType,
        format!("expected f32, f16 or bf16, found {name}"),
    )
}

/// Bytes of so many elements.
fn span<E: FloatElement>(elements: usize) -> usize {
    elements.saturating_mul(E::SIZE)
}

/// Elements in so many bytes.
fn count<E: FloatElement>(bytes: &[u8]) -> usize {
    bytes.len().checked_div(E::SIZE).unwrap_or(0)
}

/// The bytes from an element on.
fn from_element<E: FloatElement>(bytes: &[u8], element: usize) -> &[u8] {
    bytes.get(span::<E>(element)..).unwrap_or(&[])
}

/// Row and column of an element.
fn place(index: usize, cols: usize) -> (usize, usize) {
    let (row, col) = (index.checked_div(cols), index.checked_rem(cols));
    (row.unwrap_or(index), col.unwrap_or(0))
}

fn non_finite(index: usize, cols: usize) -> FormatError {
    let message = match cols {
        0 | 1 => format!("element {index}: expected a finite number, found NaN or infinity"),
        _ => {
            let (row, col) = place(index, cols);
            format!("row {row}, column {col}: expected a finite number, found NaN or infinity")
        }
    };
    FormatError::new(ErrorCode::NonFinite, message)
}

fn first_non_finite<E: FloatElement>(bytes: &[u8]) -> usize {
    bytes
        .chunks_exact(E::SIZE)
        .position(|b| E::magnitude(b) >= E::INFINITY)
        .unwrap_or(0)
}

/// Refuses NaN and infinity in the elements from `first` on; `cols` shapes the message.
pub(crate) fn check_finite(
    plain: PlainType,
    bytes: &[u8],
    first: usize,
    cols: usize,
) -> Result<(), FormatError> {
    fn check<E: FloatElement>(bytes: &[u8], first: usize, cols: usize) -> Result<(), FormatError> {
        let fine = bytes
            .par_chunks(span::<E>(BLOCK))
            .all(|block| E::max_magnitude(block) < E::INFINITY);
        if fine {
            Ok(())
        } else {
            let at = first.saturating_add(first_non_finite::<E>(bytes));
            Err(non_finite(at, cols))
        }
    }
    with_float!(plain, check(bytes, first, cols))
}

/// The signs of zeros among float weights, which mean nothing.
pub(super) fn signs_of_zeros(info: &TensorInfo) -> Option<UnreadPart> {
    let Encoding::Plain(plain) = info.encoding else {
        return None;
    };
    let range = info.offset..info.offset.saturating_add(info.len);
    let bits = UnreadBits::SignsOfZeros { size: plain.size() };
    plain
        .is_float_weight()
        .then_some((range, bits, "sign of a zero weight"))
}

/// The numbers of a small float tensor.
pub(crate) fn small_values(plain: PlainType, bytes: &[u8]) -> Result<Vec<f32>, FormatError> {
    fn values<E: FloatElement>(bytes: &[u8]) -> Result<Vec<f32>, FormatError> {
        Ok(bytes.chunks_exact(E::SIZE).map(value::<E>).collect())
    }
    with_float!(plain, values(bytes))
}

fn value<E: FloatElement>(bytes: &[u8]) -> f32 {
    let magnitude = E::widen(E::magnitude(bytes));
    if E::is_negative(bytes) {
        -magnitude
    } else {
        magnitude
    }
}

/// The absmean rule over a whole tensor (`formats/absmean.md`).
pub(crate) fn absmean(
    plain: PlainType,
    bytes: &[u8],
    cols: usize,
) -> Result<(Vec<i8>, Scales), FormatError> {
    fn run<E: FloatElement>(bytes: &[u8], cols: usize) -> Result<(Vec<i8>, Scales), FormatError> {
        let blocks: Vec<_> = bytes
            .par_chunks(span::<E>(BLOCK))
            .map(block_magnitude::<E>)
            .collect();
        // blocks in order, whatever order they were summed in
        let (sum, max) = blocks
            .iter()
            .fold((0.0, 0), |(sum, max), b| (sum + b.sum, b.max.max(max)));
        if max >= E::INFINITY {
            return Err(non_finite(first_non_finite::<E>(bytes), cols));
        }
        let count = count::<E>(bytes);
        let rule = absmean_scale(sum, count);
        let threshold = rule.threshold::<E>();
        let mut trits = vec![0; count];
        let pieces = trits
            .par_chunks_mut(BLOCK)
            .zip(bytes.par_chunks(span::<E>(BLOCK)));
        pieces.for_each(|(out, block)| ternarize::<E>(block, threshold, out));
        Ok((trits, Scales::PerTensor(rule.scale)))
    }
    with_float!(plain, run(bytes, cols))
}

/// How badly the absmean rule rounds a tensor: root mean square of `w - t * alpha` over that of `w`.
pub(crate) fn absmean_error(
    plain: PlainType,
    bytes: &[u8],
    cols: usize,
) -> Result<f64, FormatError> {
    let (change, total) = absmean_change(plain, bytes, cols)?;
    Ok(match total > 0.0 {
        true => (change / total).sqrt(),
        false => 0.0,
    })
}

/// The sum of squares of `w - t * alpha` by the absmean rule, and that of `w`.
pub(crate) fn absmean_change(
    plain: PlainType,
    bytes: &[u8],
    cols: usize,
) -> Result<(f64, f64), FormatError> {
    fn run<E: FloatElement>(bytes: &[u8], cols: usize) -> Result<(f64, f64), FormatError> {
        let blocks: Vec<_> = bytes
            .par_chunks(span::<E>(BLOCK))
            .map(block_magnitude::<E>)
            .collect();
        if blocks.iter().any(|b| b.max >= E::INFINITY) {
            return Err(non_finite(first_non_finite::<E>(bytes), cols));
        }
        let rule = absmean_scale(blocks.iter().map(|b| b.sum).sum(), count::<E>(bytes));
        let threshold = rule.threshold::<E>();
        let piece = |block: &[u8]| {
            block
                .chunks_exact(E::SIZE)
                .map(E::magnitude)
                .fold((0.0, 0.0), |(error, total), m| {
                    let w = f64::from(E::widen(m));
                    let rounded = if m >= threshold {
                        f64::from(rule.scale)
                    } else {
                        0.0
                    };
                    (error + (w - rounded).powi(2), total + w * w)
                })
        };
        let sums: Vec<(f64, f64)> = bytes.par_chunks(span::<E>(BLOCK)).map(piece).collect();
        Ok(sums.iter().fold((0.0, 0.0), |(e, t), s| (e + s.0, t + s.1)))
    }
    with_float!(plain, run(bytes, cols))
}

/// The smallest run of a row that shares a scale in any structure there is.
fn unit(cols: usize) -> usize {
    let [group, ..] = GROUP_SIZES;
    if cols.is_multiple_of(group) {
        group
    } else {
        cols.max(1)
    }
}

/// What a glance at float weights shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Nothing but zeros so far.
    Zeros,
    /// One magnitude (and 0) per row or group so far.
    Ternary,
    /// Two magnitudes that no scale structure explains.
    Master,
}

/// Looks at the beginning of a tensor. A million elements of one magnitude per group are no accident,
/// and the reader of the tensor checks the rest; master weights show themselves in the first group
/// that is not all zero.
pub(crate) fn evidence(
    plain: PlainType,
    bytes: &[u8],
    cols: usize,
) -> Result<Evidence, FormatError> {
    const ENOUGH: usize = 1 << 20;
    fn run<E: FloatElement>(bytes: &[u8], cols: usize) -> Result<Evidence, FormatError> {
        let unit = unit(cols);
        let mut found = Evidence::Zeros;
        for (i, group) in bytes.chunks(span::<E>(unit)).enumerate() {
            match magnitude_of::<E>(group) {
                Ok(0) => {}
                Ok(_) if i.saturating_mul(unit) >= ENOUGH => return Ok(Evidence::Ternary),
                Ok(_) => found = Evidence::Ternary,
                Err(_) => return Ok(Evidence::Master),
            }
        }
        Ok(found)
    }
    with_float!(plain, run(bytes, cols))
}

/// Whether all of a tensor is one magnitude (and 0) per row or group, and not all of it zero. Reads to the
/// end only what is ternary so far.
pub(crate) fn is_ternary(plain: PlainType, bytes: &[u8], cols: usize) -> Result<bool, FormatError> {
    fn run<E: FloatElement>(bytes: &[u8], cols: usize) -> Result<bool, FormatError> {
        /// Units that a thread looks at before it asks whether another found an end.
        const UNITS: usize = 1 << 10;
        let unit = span::<E>(unit(cols));
        let is_fine = |unit: &[u8]| magnitude_of::<E>(unit).is_ok_and(|m| m < E::INFINITY);
        Ok(bytes
            .par_chunks(unit.saturating_mul(UNITS))
            .all(|units| units.chunks(unit).all(is_fine)))
    }
    let shown = evidence(plain, bytes, cols)? == Evidence::Ternary;
    Ok(shown && with_float!(plain, run(bytes, cols))?)
}

/// The one non-zero magnitude pattern of a run (0 when it has none), or where a second one stands.
fn magnitude_of<E: FloatElement>(bytes: &[u8]) -> Result<u32, usize> {
    let mut one = 0;
    for (i, b) in bytes.chunks_exact(E::SIZE).enumerate() {
        let m = E::magnitude(b);
        if m != 0 && m != one {
            if one != 0 {
                return Err(i);
            }
            one = m;
        }
    }
    Ok(one)
}

/// Trits and scales of values that already are `trit * scale`: one magnitude per tensor, else per row,
/// else per group, the largest that fits. A run of zeros has scale 0.
pub(crate) fn dequantized(
    plain: PlainType,
    bytes: &[u8],
    cols: usize,
) -> Result<(Vec<i8>, Scales), FormatError> {
    fn run<E: FloatElement>(bytes: &[u8], cols: usize) -> Result<(Vec<i8>, Scales), FormatError> {
        let mut trits = vec![0i8; count::<E>(bytes)];
        // the common case first: one magnitude in the whole tensor
        let first = bytes
            .chunks_exact(E::SIZE)
            .map(E::magnitude)
            .find(|&m| m != 0)
            .unwrap_or(0);
        let same = trits
            .par_chunks_mut(BLOCK)
            .zip(bytes.par_chunks(span::<E>(BLOCK)))
            .map(|(out, block)| {
                ternarize::<E>(block, 1, out);
                let others = block.chunks_exact(E::SIZE).fold(0u32, |acc, b| {
                    let m = E::magnitude(b);
                    acc | u32::from((m != 0) & (m != first))
                });
                others == 0
            })
            .reduce(|| true, |a, b| a & b);
        let scales = if same && first < E::INFINITY {
            Scales::PerTensor(E::widen(first))
        } else {
            let unit = unit(cols);
            let pieces: Vec<Result<u32, usize>> = bytes
                .par_chunks(span::<E>(unit))
                .map(magnitude_of::<E>)
                .collect();
            let mut found = Vec::with_capacity(pieces.len());
            for (i, piece) in pieces.into_iter().enumerate() {
                let at = i.saturating_mul(unit);
                let rest = from_element::<E>(bytes, at);
                match piece {
                    Ok(m) if m < E::INFINITY => found.push(m),
                    Err(j) if value::<E>(from_element::<E>(rest, j)).is_finite() => {
                        return Err(second_magnitude::<E>(rest, at, j, cols));
                    }
                    _ => {
                        let first = at.saturating_add(first_non_finite::<E>(rest));
                        return Err(non_finite(first, cols));
                    }
                }
            }
            structure(&found, unit, cols, E::widen)
        };
        Ok((trits, scales))
    }
    with_float!(plain, run(bytes, cols))
}

fn second_magnitude<E: FloatElement>(
    group: &[u8],
    at: usize,
    j: usize,
    cols: usize,
) -> FormatError {
    let first = group
        .chunks_exact(E::SIZE)
        .map(E::magnitude)
        .find(|&m| m != 0)
        .unwrap_or(0);
    let (row, col) = place(at.saturating_add(j), cols);
    let found = value::<E>(from_element::<E>(group, j));
    FormatError::new(
        ErrorCode::NotTernary,
        format!(
            "row {row}, column {col}: expected 0 or {} like the rest of its group, found {found}",
            E::widen(first),
        ),
    )
}

/// The coarsest structure that explains the magnitudes of all units (0: no vote).
fn structure(units: &[u32], unit: usize, cols: usize, widen: fn(u32) -> f32) -> Scales {
    let agree = |run: &[u32]| {
        let mut voters = run.iter().filter(|&&m| m != 0);
        let first = voters.next().copied().unwrap_or(0);
        voters.all(|&m| m == first).then_some(widen(first))
    };
    let collect = |columns: usize| {
        let len = columns.checked_div(unit).unwrap_or(1).max(1);
        units.chunks(len).map(agree).collect::<Option<Vec<f32>>>()
    };
    if let Some(scales) = collect(cols) {
        return Scales::PerRow(scales);
    }
    let fits = |group: &&usize| cols.is_multiple_of(**group);
    for &group in GROUP_SIZES.iter().rev().filter(fits) {
        if let Some(scales) = collect(group) {
            return Scales::PerGroup { group, scales };
        }
    }
    // every unit of 32 agrees with itself, and a unit of a whole row was returned above
    Scales::PerGroup {
        group: unit,
        scales: units.iter().map(|&m| widen(m)).collect(),
    }
}

/// Whole numbers or floats that each hold one trit, by value.
pub(crate) fn trits_by_value(
    plain: PlainType,
    bytes: &[u8],
    cols: usize,
) -> Result<Vec<i8>, FormatError> {
    let mut trits = vec![0; bytes.chunks_exact(plain.size()).len()];
    let fine = |out: &mut i8, v: i64| {
        *out = i8::try_from(v).unwrap_or(0);
        (-1..=1).contains(&v)
    };
    match integers(plain, bytes, &mut trits, fine) {
        None => Ok(trits),
        Some((i, found)) => {
            let (row, col) = place(i, cols);
            let message =
                format!("row {row}, column {col}: expected a trit (-1, 0, +1), found {found}");
            Err(FormatError::new(ErrorCode::Malformed, message))
        }
    }
}

/// Packed bytes of which each is stored as a number of another type, by value. An i8 is the byte
/// itself: half of all codes look negative there.
pub(crate) fn bytes_by_value(
    plain: PlainType,
    bytes: &[u8],
    cols: usize,
) -> Result<Vec<u8>, FormatError> {
    if plain.size() == 1 {
        return Ok(bytes.to_vec());
    }
    let mut out = vec![0; bytes.chunks_exact(plain.size()).len()];
    let fine = |out: &mut u8, v: i64| {
        *out = u8::try_from(v).unwrap_or(0);
        (0..=255).contains(&v)
    };
    match integers(plain, bytes, &mut out, fine) {
        None => Ok(out),
        Some((i, found)) => {
            let (row, col) = place(i, cols);
            let message = format!(
                "packed row {row}, column {col}: expected a byte (0 to 255), found {found}"
            );
            Err(FormatError::new(ErrorCode::Malformed, message))
        }
    }
}

/// Reads every element as a whole number into `out` by `put`; the first that is not one, or that
/// `put` refuses, and its value.
fn integers<T: Send>(
    plain: PlainType,
    bytes: &[u8],
    out: &mut [T],
    put: impl Fn(&mut T, i64) -> bool + Sync,
) -> Option<(usize, f64)> {
    let size = plain.size();
    out.par_chunks_mut(BLOCK)
        .zip(bytes.par_chunks(BLOCK.saturating_mul(size)))
        .enumerate()
        .find_map_first(|(piece, (out, bytes))| {
            let bad = out
                .iter_mut()
                .zip(bytes.chunks_exact(size))
                .position(|(out, b)| {
                    let v = number(plain, b);
                    // NaN fails both
                    let whole = v == v.trunc() && v.abs() < 65_536.0;
                    !(whole && put(out, v as i64))
                });
            bad.map(|i| {
                let found = bytes.get(i.saturating_mul(size)..).unwrap_or(&[]);
                let index = piece.saturating_mul(BLOCK).saturating_add(i);
                (index, number(plain, found))
            })
        })
}

/// One element as f64; exact for every value that matters here.
fn number(plain: PlainType, b: &[u8]) -> f64 {
    /// The first `N` bytes, zeros where the slice ends early (it never does).
    fn take<const N: usize>(b: &[u8]) -> [u8; N] {
        let mut a = [0; N];
        for (to, from) in a.iter_mut().zip(b) {
            *to = *from;
        }
        a
    }
    match plain {
        PlainType::F64 => f64::from_le_bytes(take(b)),
        PlainType::F32 => value::<F32>(b).into(),
        PlainType::F16 => value::<F16>(b).into(),
        PlainType::Bf16 => value::<Bf16>(b).into(),
        PlainType::I64 => i64::from_le_bytes(take(b)) as f64,
        PlainType::U64 => u64::from_le_bytes(take(b)) as f64,
        PlainType::I32 => i32::from_le_bytes(take(b)).into(),
        PlainType::U32 => u32::from_le_bytes(take(b)).into(),
        PlainType::I16 => i16::from_le_bytes(take(b)).into(),
        PlainType::U16 => u16::from_le_bytes(take(b)).into(),
        PlainType::I8 => i8::from_le_bytes(take(b)).into(),
        PlainType::U8 | PlainType::Bool => u8::from_le_bytes(take(b)).into(),
    }
}

#[cfg(test)]
mod tests;
