//! Vectors of group scales: Q1_0, Q2_0, PQ2_0, PTQ1_0, MLX, and one matrix in all of them.
//!
//! Invariant: what is ternary goes both ways bit for bit; what is not (code 3, the rounding of
//! Gaussian input, the stock MLX quantizer) is refused by name or read as the peer reads it.

use super::folder::{Checked, Outcome, Vectors, ensure, f32s, same, usize_of};
use super::packings::same_bytes;
use bitnet_formats::{
    Affine, ErrorCode, PackedTensor, Packing, ScaleRounding, affine_scales, packing_by_name,
    ternary_of_affine,
};
use bitnet_ternary::{GROUP_SIZES, Scales, TernaryMatrix, f16_to_f32, f32_to_f16};
use serde_json::Value;

fn shape_of(case: &Value) -> Result<(usize, usize), String> {
    let size = |i: usize| case["shape"][i].as_u64().map(|n| n as usize);
    size(0).zip(size(1)).ok_or_else(|| "no `shape`".to_owned())
}

fn file(vectors: &Vectors, folder: &str, case: &Value, key: &str) -> Result<Vec<u8>, String> {
    vectors.bytes(folder, &case["files"], key)
}

fn f16s(bytes: &[u8]) -> Vec<f32> {
    let halves = bytes.as_chunks::<2>().0.iter();
    halves.map(|b| f16_to_f32(u16::from_le_bytes(*b))).collect()
}

fn trits_of(bytes: Vec<u8>) -> Vec<i8> {
    bytes.into_iter().map(|b| b as i8).collect()
}

/// The weights of a matrix, zeros without a sign.
fn weights(matrix: &TernaryMatrix) -> Vec<u32> {
    let (trits, cols) = (matrix.trits(), matrix.cols());
    let weight = |(i, &t): (usize, &i8)| match t {
        0 => 0.0,
        t => f32::from(t) * matrix.scales().at(i / cols, i % cols, cols),
    };
    trits
        .iter()
        .enumerate()
        .map(weight)
        .map(f32::to_bits)
        .collect()
}

/// The same of a peer's floats.
fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|&x| (x + 0.0).to_bits()).collect()
}

/// A matrix with one scale per group of the size that their number says.
fn grouped(
    (rows, cols): (usize, usize),
    trits: Vec<i8>,
    scales: Vec<f32>,
) -> Result<TernaryMatrix, String> {
    let group = (rows * cols).checked_div(scales.len()).unwrap_or(0);
    ensure(GROUP_SIZES.contains(&group), || {
        format!("{} scales", scales.len())
    })?;
    TernaryMatrix::new(rows, cols, trits, Scales::PerGroup { group, scales })
        .map_err(|e| e.to_string())
}

/// Reads a peer's bytes, and packs what was read to the same bytes.
fn both_ways(
    packing: &dyn Packing,
    (rows, cols): (usize, usize),
    bytes: &[u8],
) -> Result<TernaryMatrix, String> {
    let tensor = PackedTensor {
        bytes,
        rows,
        cols,
        outside: None,
    };
    let back = packing.unpack(&tensor).map_err(|e| e.to_string())?;
    same("byte read and packed again", &encode(packing, &back), bytes)?;
    Ok(back)
}

fn encode(packing: &dyn Packing, matrix: &TernaryMatrix) -> Vec<u8> {
    let len = packing
        .stored_len(matrix.rows(), matrix.cols())
        .unwrap_or(0);
    let mut out = vec![0; len as usize];
    packing.pack_units(matrix, 0, &mut out);
    out
}

/// One case of a block type.
pub fn check_blocks(
    vectors: &Vectors,
    folder: &str,
    packing: &dyn Packing,
    case: &Value,
) -> Checked {
    let twin = same_bytes(packing.name());
    if twin != packing.name() {
        let twin = packing_by_name(twin).ok_or_else(|| format!("no packing `{twin}`"))?;
        check_blocks(vectors, folder, twin, case)?;
    }
    let shape = shape_of(case)?;
    let (rows, cols) = shape;
    let packed = file(vectors, folder, case, "packed")?;
    let expected = f32s(&file(vectors, folder, case, "dequant_f32")?);
    let len = packing.stored_len(rows, cols).map_err(|e| e.to_string())?;
    ensure(len == packed.len() as u64, || {
        format!("{} bytes in the file, we need {len}", packed.len())
    })?;
    ensure(
        len == (rows * cols / usize_of(case, "block")? * usize_of(case, "block_bytes")?) as u64,
        || "another block size".to_owned(),
    )?;
    let tensor = PackedTensor {
        bytes: &packed,
        rows,
        cols,
        outside: None,
    };
    let back = match packing.unpack(&tensor) {
        Ok(back) => back,
        Err(e) if e.code == ErrorCode::BadCode && case["files"]["trits_i8"].is_null() => {
            // right only if a weight is there that no trit makes: +2d
            let block = usize_of(case, "block")?;
            let scales = packing.scales(&tensor).map_err(|e| e.to_string())?;
            let not_a_trit = |(i, &w): (usize, &f32)| {
                let d = scales.at(i / cols, i % cols, cols);
                w == 2.0 * d && w != 0.0
            };
            ensure(expected.len().is_multiple_of(block), || {
                "no whole blocks".to_owned()
            })?;
            ensure(expected.iter().enumerate().any(not_a_trit), || {
                format!("refused without a code 3: {e}")
            })?;
            return Ok(Outcome::Refused);
        }
        Err(e) => return Err(e.to_string()),
    };
    same("weight", &weights(&back), &bits(&expected))?;
    if case["files"]["trits_i8"].is_null() {
        // not an encoder's bytes, or those of input that is not ternary: decoding is all there is
        return Ok(Outcome::Passed);
    }
    let trits = trits_of(file(vectors, folder, case, "trits_i8")?);
    same("trit", back.trits(), &trits)?;
    both_ways(packing, shape, &packed)?;
    let scales = f16s(&file(vectors, folder, case, "scales_f16")?);
    let input = grouped(shape, trits, scales)?;
    let error = packing.check_scales(&input, ScaleRounding::Refuse);
    ensure(error == Ok(0.0), || {
        format!("f16 scales are exact, we say {error:?}")
    })?;
    same("byte", &encode(packing, &input), &packed)?;
    Ok(Outcome::Passed)
}

/// One case of MLX's affine packs.
pub fn check_affine(vectors: &Vectors, folder: &str, case: &Value) -> Checked {
    let (rows, cols) = shape_of(case)?;
    let codes = file(vectors, folder, case, "weight_u32")?;
    let scales = file(vectors, folder, case, "scales_f16")?;
    let biases = file(vectors, folder, case, "biases_f16")?;
    let expected = f16s(&file(vectors, folder, case, "dequant_f16")?);
    let read = ternary_of_affine(&Affine {
        codes: &codes,
        rows,
        cols,
        group: 128,
        scales: &f16s(&scales),
        biases: &f16s(&biases),
    });
    if case["files"]["trits_i8"].is_null() {
        let ternary = |group: &[f32]| {
            let m = group.iter().fold(0f32, |m, w| m.max(w.abs()));
            group.iter().all(|w| *w == 0.0 || w.abs() == m)
        };
        return match read {
            Err(e) if e.code == ErrorCode::NotTernary => {
                ensure(!expected.chunks(128).all(ternary), || {
                    format!("these weights are ternary, we say {e}")
                })?;
                Ok(Outcome::Refused)
            }
            other => Err(format!("not ternary by its manifest, we say {other:?}")),
        };
    }
    let back = read.map_err(|e| e.to_string())?;
    let trits = trits_of(file(vectors, folder, case, "trits_i8")?);
    same("trit", back.trits(), &trits)?;
    same("weight", &weights(&back), &bits(&expected))?;
    let input = grouped(
        (rows, cols),
        trits,
        f16s(&file(vectors, folder, case, "group_scales_f16")?),
    )?;
    written_affine(&input, &codes, &scales, &biases)?;
    Ok(Outcome::Passed)
}

/// Codes, scales and biases of a matrix against a peer's.
fn written_affine(
    matrix: &TernaryMatrix,
    codes: &[u8],
    scales: &[u8],
    biases: &[u8],
) -> Result<(), String> {
    let packing = packing_by_name("mlx_2bit").ok_or("no packing `mlx_2bit`")?;
    same("byte of codes", &encode(packing, matrix), codes)?;
    let ours = affine_scales(matrix, 128).map_err(|e| e.to_string())?;
    let halves = |sign: f32| -> Vec<u8> {
        let halves = ours.iter().map(|s| f32_to_f16(sign * s).to_le_bytes());
        halves.flatten().collect()
    };
    same("byte of scales", &halves(1.0), scales)?;
    same("byte of biases", &halves(-1.0), biases)
}

/// One matrix in every container: what is lossless goes from each to each, what is not is refused.
pub fn check_one_in_all(
    vectors: &Vectors,
    folder: &str,
    manifest: &Value,
) -> Vec<(String, Checked)> {
    let read = |key: &str| file(vectors, folder, manifest, key);
    let matrix = || -> Result<TernaryMatrix, String> {
        let (trits, scales) = (trits_of(read("trits_i8")?), f16s(&read("scales_f16")?));
        grouped(shape_of(manifest)?, trits, scales)
    };
    let one = |name: &str, lossless: bool| -> Checked {
        let matrix = matrix()?;
        let expected = bits(&f32s(&read("dense_f32")?));
        same("weight", &weights(&matrix), &expected)?;
        if name == "mlx" {
            let (codes, scales) = (read("mlx_weight_u32")?, read("mlx_scales_f16")?);
            written_affine(&matrix, &codes, &scales, &read("mlx_biases_f16")?)?;
            return Ok(Outcome::Passed);
        }
        let packing = packing_by_name(name).ok_or_else(|| format!("no packing `{name}`"))?;
        if !lossless {
            let refused = packing.check_scales(&matrix, ScaleRounding::Allow);
            ensure(
                refused
                    .as_ref()
                    .is_err_and(|e| e.code == ErrorCode::TargetCannotHold),
                || format!("two scales in a block, we say {refused:?}"),
            )?;
            return Ok(Outcome::Refused);
        }
        let bytes = read(name)?;
        let back = both_ways(packing, shape_of(manifest)?, &bytes)?;
        same("trit", back.trits(), matrix.trits())?;
        same("weight", &weights(&back), &expected)?;
        same("byte", &encode(packing, &matrix), &bytes)?;
        Ok(Outcome::Passed)
    };
    let mut checks = Vec::new();
    for (key, lossless) in [("lossless", true), ("lossy", false)] {
        let names = manifest["expect"][key].as_array().into_iter().flatten();
        for name in names.filter_map(Value::as_str) {
            checks.push((name.to_owned(), one(name, lossless)));
        }
    }
    checks
}
