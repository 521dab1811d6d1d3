//! Vectors of STQ1_0: one zero in four trits, a scale per 256 columns.
//!
//! Invariant: what the peer keeps goes both ways bit for bit; what it rounds we round only when asked, and what it
//! changes we refuse. A block of scale 0 reads as zeros here, whatever its codes are.

use super::folder::{Checked, Outcome, Vectors, ensure, f32_of, f32s, same, usize_of};
use bitnet_formats::{ErrorCode, PackedTensor, Packing, ScaleRounding};
use bitnet_ternary::{Scales, TernaryMatrix, f16_to_f32};
use bitnet_tests::digest::sha256;
use serde_json::Value;

const BLOCK: usize = 256;
const BYTES: usize = 42;

pub fn check_one_in_four(
    vectors: &Vectors,
    folder: &str,
    packing: &dyn Packing,
    entry: &Value,
) -> Checked {
    let (rows, cols) = (usize_of(entry, "rows")?, usize_of(entry, "cols")?);
    let file = vectors.bytes(folder, entry, "packed")?;
    let len = packing.stored_len(rows, cols).map_err(|e| e.to_string())?;
    ensure(len == file.len() as u64, || {
        format!("{} bytes in the file, we need {len}", file.len())
    })?;

    // reading: the peer's trits and scales, and so its weights
    let decoded = match entry["decoded_trits"].is_object() {
        true => vectors.trits(folder, entry, "decoded_trits")?,
        false => vectors.trits(folder, entry, "trits")?,
    };
    let stored: Vec<f32> = file
        .chunks_exact(BYTES)
        .map(|block| f16_to_f32(u16::from_le_bytes([block[40], block[41]])))
        .collect();
    let scales = || stored.iter().flat_map(|d| std::iter::repeat_n(*d, BLOCK));
    let weights = decoded.iter().zip(scales()).map(|(t, d)| f32::from(*t) * d);
    let bytes: Vec<u8> = weights.flat_map(f32::to_le_bytes).collect();
    ensure(entry["dequant_f32_sha256"] == sha256(&bytes), || {
        "the peer's trits and scales are not its weights".to_owned()
    })?;
    let tensor = PackedTensor {
        bytes: &file,
        rows,
        cols,
        outside: None,
    };
    let back = packing.unpack(&tensor).map_err(|e| e.to_string())?;
    let expected: Vec<i8> = decoded
        .iter()
        .zip(scales())
        .map(|(t, d)| if d == 0.0 { 0 } else { *t })
        .collect();
    same("trit", back.trits(), &expected)?;
    for (i, (trit, d)) in expected.iter().zip(scales()).enumerate() {
        let ours = back.scales().at(i / cols, i % cols, cols);
        ensure(*trit == 0 || ours.to_bits() == d.to_bits(), || {
            format!("scale {ours} of weight {i}, expected {d}")
        })?;
    }
    // codes beside scale 0 are not kept
    let silent = |block: &[u8]| block[40..] == [0, 0] && block[..40].iter().any(|b| *b != 0);
    if !file.chunks_exact(BYTES).any(silent) {
        let again = packing.pack(&back, ScaleRounding::Refuse);
        same(
            "byte read and packed again",
            &again.map_err(|e| e.to_string())?,
            &file,
        )?;
    }

    // writing: what went in
    if !entry["trits"].is_object() {
        return Ok(Outcome::Passed);
    }
    let trits = vectors.trits(folder, entry, "trits")?;
    let scales = match entry["block_scale_f32"].is_object() {
        true => Scales::PerGroup {
            group: BLOCK,
            scales: f32s(&vectors.bytes(folder, entry, "block_scale_f32")?),
        },
        false => Scales::PerTensor(f32_of(entry, "scale_f32_hex").ok_or("no scale")?),
    };
    let matrix = TernaryMatrix::new(rows, cols, trits, scales).map_err(|e| e.to_string())?;
    let packed = |rounding| packing.pack(&matrix, rounding);
    let (kept, same_trits) = (
        entry["dequant_equal_input_f32"] == true,
        entry["decoded_trits_equal_input"] == true,
    );
    let exact = packed(ScaleRounding::Refuse);
    if kept {
        same("byte", &exact.map_err(|e| e.to_string())?, &file)?;
        return Ok(Outcome::Passed);
    }
    let code = exact.map(|_| ()).map_err(|e| e.code);
    match packed(ScaleRounding::Allow) {
        Ok(rounded) if same_trits => {
            ensure(code == Err(ErrorCode::ScaleRounding), || {
                format!("the peer rounds the scale, we say {code:?}")
            })?;
            same("byte", &rounded, &file)?;
            Ok(Outcome::Passed)
        }
        Ok(_) => Err("written, and the peer loses trits".to_owned()),
        Err(e) => {
            let lost = if same_trits {
                stored.contains(&0.0) && e.message.contains("would become 0")
            } else {
                e.message.contains("exactly one 0 among these four")
            };
            ensure(
                e.code == ErrorCode::TargetCannotHold && e.hint.is_some() && lost,
                || format!("refused with `{}`: {e}", e.code.as_str()),
            )?;
            Ok(Outcome::Refused)
        }
    }
}
