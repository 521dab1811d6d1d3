//! Scales that can be judged without reading weights, and scales in float targets.
//!
//! Invariant: a float target holds `trit * scale` exactly if and only if it holds every scale that
//! multiplies a non-zero trit.

use bitnet_checkpoint::{Checkpoint, LinearSource, ScaleForm, SharedScales, Slot, WriteStorage};
pub use bitnet_checkpoint::{check_float, is_exact_scale as is_exact, rounded_scales as rounded};
use bitnet_formats::{Encoding, ErrorCode, FormatError, PlainType};
use bitnet_ternary::{Scales, TernaryMatrix, f32_to_bf16, f32_to_f16};

/// Trits of some rows that stand for all of a matrix.
const PROBE_TRITS: usize = 1 << 20;
/// Columns of a probe: a multiple of every block.
const PROBE: usize = 256;

/// A row of ones with the scale of a linear, if that is one number that can be read without reading
/// the weights. Anything wrong with it is found again, with its place, when the weights are read.
pub fn probe(checkpoint: &Checkpoint, slot: Slot) -> Option<TernaryMatrix> {
    matrix(checkpoint.one_scale(slot)?)
}

/// Whether `check` accepts the stored scales of a packed linear, a few rows at a time, as if no trit were zero.
/// `false` also where they cannot be read without the trits.
pub fn all_rows(
    checkpoint: &Checkpoint,
    slot: Slot,
    source: &LinearSource,
    check: impl Fn(&TernaryMatrix) -> Result<(), FormatError>,
) -> bool {
    let Ok(Some(stored)) = checkpoint.packed_scales_of(slot) else {
        return false;
    };
    let (rows, cols) = (source.rows, source.cols);
    let step = (PROBE_TRITS / cols.max(1)).max(1);
    let accepts = |first: usize| {
        let count = step.min(rows - first);
        // with the first row, so that rows that differ from each other meet
        let part = |per_row: usize, all: &[f32]| {
            let part = all.get(first * per_row..(first + count) * per_row);
            let row = all.get(..per_row);
            [row.unwrap_or_default(), part.unwrap_or_default()].concat()
        };
        let scales = match &stored {
            Scales::PerTensor(scale) => Scales::PerTensor(*scale),
            Scales::PerRow(scales) => Scales::PerRow(part(1, scales)),
            Scales::PerGroup { group, scales } => Scales::PerGroup {
                group: *group,
                scales: part(cols / (*group).max(1), scales),
            },
        };
        let count = count + 1;
        let rows = TernaryMatrix::new(count, cols, vec![1; count * cols], scales);
        rows.is_ok_and(|rows| check(&rows).is_ok())
    };
    (0..rows).step_by(step).all(accepts)
}

/// A row of ones with this scale.
pub fn matrix(scale: f32) -> Option<TernaryMatrix> {
    TernaryMatrix::new(1, PROBE, vec![1; PROBE], Scales::PerTensor(scale)).ok()
}

/// The shape of the scales of a linear in normal form: `[1]`, `[rows, 1]` or `[rows, groups]`. Where only
/// the weights tell (block scales, numbers that are trits times scales) this reads them.
///
/// # Errors
/// Whatever is wrong with the weights.
pub fn structure(
    checkpoint: &Checkpoint,
    slot: Slot,
    source: &LinearSource,
) -> Result<Vec<usize>, FormatError> {
    // the absmean rule has one scale
    let Some(known) = known(checkpoint, slot, source)? else {
        return Ok(vec![1]);
    };
    Ok(match known.scales() {
        Scales::PerTensor(_) => vec![1],
        Scales::PerRow(_) => vec![source.rows, 1],
        Scales::PerGroup { group, .. } => vec![source.rows, source.cols / group],
    })
}

/// A matrix with the scales of a linear in normal form: its own, or a [`probe`]. `None` for master weights, whose
/// scale is computed from all of them. Where only the weights tell (block scales, numbers that are trits
/// times scales) this reads them.
///
/// # Errors
/// Whatever is wrong with the weights.
pub fn known(
    checkpoint: &Checkpoint,
    slot: Slot,
    source: &LinearSource,
) -> Result<Option<TernaryMatrix>, FormatError> {
    if source.is_master() {
        return Ok(None);
    }
    if let Some(probe) = probe(checkpoint, slot) {
        return Ok(Some(probe));
    }
    let matrix = checkpoint.ternary(slot)?;
    let scales = matrix.normal_scales();
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let normal = TernaryMatrix::new(rows, cols, matrix.into_trits(), scales);
    normal
        .map(Some)
        .map_err(|e| FormatError::new(ErrorCode::Malformed, e.to_string()).because(e))
}

/// Writes rows `first ..` of `trit * scale` as little-endian numbers; `out` holds whole rows.
pub fn dequantise(matrix: &TernaryMatrix, to: PlainType, first: usize, out: &mut [u8]) {
    let cols = matrix.cols();
    let size = to.size();
    if cols == 0 {
        return;
    }
    for (n, bytes) in out.chunks_exact_mut(cols * size).enumerate() {
        let row = first + n;
        // trits that share a scale, one run after the other
        let run = match matrix.scales() {
            Scales::PerGroup { group, .. } => *group,
            _ => cols,
        };
        let trits = matrix.row(row).chunks(run);
        for (k, (trits, bytes)) in trits.zip(bytes.chunks_mut(run * size)).enumerate() {
            let scale = matrix.scales().at(row, k * run, cols);
            match to {
                PlainType::F16 => fill(trits, bytes, |s| f32_to_f16(s).to_le_bytes(), scale),
                PlainType::Bf16 => fill(trits, bytes, |s| f32_to_bf16(s).to_le_bytes(), scale),
                _ => fill(trits, bytes, f32::to_le_bytes, scale),
            }
        }
    }
}

/// Appends a number in a float type.
pub fn push(bytes: &mut Vec<u8>, number: f32, plain: PlainType) {
    match plain {
        PlainType::F16 => bytes.extend_from_slice(&f32_to_f16(number).to_le_bytes()),
        PlainType::Bf16 => bytes.extend_from_slice(&f32_to_bf16(number).to_le_bytes()),
        _ => bytes.extend_from_slice(&number.to_le_bytes()),
    }
}

fn fill<const N: usize>(
    trits: &[i8],
    bytes: &mut [u8],
    encode: impl Fn(f32) -> [u8; N],
    scale: f32,
) {
    let values = [encode(-scale), encode(0.0), encode(scale)];
    let (numbers, _) = bytes.as_chunks_mut::<N>();
    for (number, trit) in numbers.iter_mut().zip(trits) {
        *number = values[usize::from((trit + 1) as u8).min(2)];
    }
}

/// The bytes of a tensor of scales.
pub fn scale_bytes(form: &ScaleForm, scales: &[&[f32]]) -> Vec<u8> {
    let sign = if form.is_negative { -1.0 } else { 1.0 };
    let numbers = scales.iter().flat_map(|scales| scales.iter());
    let mut bytes = Vec::new();
    for number in numbers {
        push(&mut bytes, sign * number, form.plain);
    }
    if let Some(count) = form.count {
        bytes.resize(count * form.plain.size(), 0);
    }
    bytes
}

/// The scales of a matrix as its tensor of scales has them.
///
/// # Errors
/// `target-cannot-hold` for two scales of non-zero trits in one group.
pub fn scales_of(form: &ScaleForm, matrix: &TernaryMatrix) -> Result<Vec<f32>, FormatError> {
    if let Some(group) = form.group {
        return bitnet_formats::affine_scales(matrix, group);
    }
    // as the matrix has them, or what repeated ones collapse to
    Ok(match matrix.scales() {
        Scales::PerTensor(scale) => vec![*scale],
        _ => matrix.normal_scales().as_slice().to_vec(),
    })
}

/// What the scales of all linears of a target have in common, if they have to: chosen from what can be known of
/// them before the first weight is written.
///
/// # Errors
/// `target-cannot-hold`; whatever is wrong with weights that have to be read for it.
pub fn shared(
    checkpoint: &Checkpoint,
    writer: &dyn WriteStorage,
) -> Result<Option<SharedScales>, FormatError> {
    let Some(mut types) = writer.shared_scales(&checkpoint.config, computed_in(checkpoint)) else {
        return Ok(None);
    };
    // a pack has codes of tables, too
    let is_pack = writer.is_pack(&checkpoint.config);
    let is_written = |slot: &Slot| slot.is_ternary() || is_pack && checkpoint.is_ternary(*slot);
    for slot in checkpoint.slots().into_iter().filter(is_written) {
        let source = checkpoint.linear(slot)?;
        let known = known(checkpoint, slot, source)?;
        types
            .meet(source.cols, known.as_ref())
            .map_err(|e| e.in_tensor(&source.info.name))?;
    }
    Ok(Some(types.chosen()))
}

/// The type that the network computes in, if it has 16 bits: that of the embeddings.
pub fn computed_in(checkpoint: &Checkpoint) -> Option<PlainType> {
    // of codes, the type of their scales
    let embeddings = match checkpoint.coded_by(Slot::TokenEmbeddings) {
        Some([scales, _]) => scales,
        None => checkpoint.tensor_range(Slot::TokenEmbeddings)?,
    };
    match embeddings.encoding {
        Encoding::Plain(plain @ (PlainType::Bf16 | PlainType::F16)) => Some(plain),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_ternary::f16_to_f32;

    #[test]
    fn numbers_are_trits_times_scales() {
        let scales = Scales::PerGroup {
            group: 32,
            scales: vec![0.5, 2.0],
        };
        let trits: Vec<i8> = (0..64).map(|i| (i % 3) as i8 - 1).collect();
        let m = TernaryMatrix::new(1, 64, trits.clone(), scales).unwrap();
        let mut out = vec![0; 64 * 2];
        dequantise(&m, PlainType::F16, 0, &mut out);
        for (c, (t, b)) in trits.iter().zip(out.chunks(2)).enumerate() {
            let scale = if c < 32 { 0.5 } else { 2.0 };
            assert_eq!(
                f16_to_f32(u16::from_le_bytes([b[0], b[1]])),
                f32::from(*t) * scale
            );
        }
    }
}
