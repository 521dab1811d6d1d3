//! Vectors of the quantizers: weights to trits, activations to int8, and the shared inputs.
//!
//! Invariant: what the reference computes in one order only is compared bit for bit; what it
//! computes in an order of its own (a mean, a double rounding) within the bound its page states.

use super::folder::{Checked, Outcome, Vectors, ensure, f32_of, f32s, same, ulps, usize_of};
use bitnet_ternary::{
    Bf16, QuantizedActivations, Scales, TernaryMatrix, absmean_scale, f32_to_bf16, mean_magnitude,
    ternarize,
};
use bitnet_tests::digest::sha256;
use serde_json::Value;

pub fn check_input(vectors: &Vectors, entry: &Value) -> Checked {
    let trits = vectors.trits("inputs", entry, "trits")?;
    let (rows, cols) = (usize_of(entry, "rows")?, usize_of(entry, "cols")?);
    let scale = f32_of(entry, "scale_f32_hex").ok_or("no scale")?;
    let weights: Vec<u8> = trits
        .iter()
        .flat_map(|&t| if t == 0 { 0.0 } else { f32::from(t) * scale }.to_le_bytes())
        .collect();
    if let Some(digest) = entry["f32_sha256"].as_str() {
        ensure(sha256(&weights) == digest, || {
            "trits times scale are not the float input".to_owned()
        })?;
    }
    TernaryMatrix::new(rows, cols, trits, Scales::PerTensor(scale)).map_err(|e| e.to_string())?;
    Ok(Outcome::Passed)
}

/// Master weights through our quantizer (`formats/absmean.md`).
pub fn check_master(vectors: &Vectors, entry: &Value) -> Checked {
    let weights = vectors.bytes("hf-bf16", entry, "weights_bf16")?;
    let expected = vectors.trits("hf-bf16", entry, "trits")?;
    let (sum, _) = mean_magnitude::<Bf16>(&weights);
    let mean = (sum / expected.len() as f64) as f32;
    if let Some(m) = f32_of(entry, "absmean_f64_rounded_f32_hex") {
        ensure(mean.to_bits() == m.to_bits(), || {
            format!("mean {mean}, expected {m}")
        })?;
    }
    let absmean = absmean_scale(sum, expected.len());
    let mut trits = vec![0; expected.len()];
    ternarize::<Bf16>(&weights, absmean.threshold::<Bf16>(), &mut trits);
    same("trit", &trits, &expected)?;
    let scale = f32_of(entry, "inv_of_s_f32_hex").ok_or("no `inv_of_s_f32_hex`")?;
    let off = ulps(absmean.scale, scale);
    ensure(off <= 4, || {
        format!("scale {} is {off} ulp from {scale}", absmean.scale)
    })?;
    if off == 0 {
        // the reference keeps the sign of a weight that it rounds to zero
        let dequantised: Vec<f32> = trits
            .iter()
            .zip(weights.as_chunks::<2>().0)
            .map(|(&t, w)| {
                if t == 0 && w[1] & 0x80 != 0 {
                    -0.0
                } else {
                    f32::from(t) * scale
                }
            })
            .collect();
        if let Some(digest) = entry["dequant_f32_sha256"].as_str() {
            let bytes: Vec<u8> = dequantised.iter().flat_map(|x| x.to_le_bytes()).collect();
            ensure(sha256(&bytes) == digest, || {
                "dequantised weights differ".to_owned()
            })?;
        }
        let fake: Vec<u8> = dequantised
            .iter()
            .flat_map(|&x| f32_to_bf16(x).to_le_bytes())
            .collect();
        same(
            "fake-quantised byte",
            &fake,
            &vectors.bytes("hf-bf16", entry, "fakequant_bf16")?,
        )?;
    }
    Ok(Outcome::Passed)
}

/// Activations: scale, levels and what they stand for, bit for bit.
pub fn check_activations(vectors: &Vectors, entry: &Value) -> Checked {
    let x = f32s(&vectors.bytes("hf-act", entry, "input_f32")?);
    let expected = vectors.trits("hf-act", entry, "int8")?;
    let scales = f32s(&vectors.bytes("hf-act", entry, "scale_f32")?);
    let fake = f32s(&vectors.bytes("hf-act", entry, "fakequant_f32")?);
    let (rows, cols) = (usize_of(entry, "rows")?, usize_of(entry, "cols")?);
    ensure(
        x.len() == rows * cols
            && expected.len() == x.len()
            && fake.len() == x.len()
            && scales.len() == rows,
        || "lengths do not fit the shape".to_owned(),
    )?;
    for (row, &theirs) in scales.iter().enumerate() {
        let range = row * cols..(row + 1) * cols;
        let ours = QuantizedActivations::from_row(&x[range.clone()]).map_err(|e| e.to_string())?;
        ensure(ours.scale.to_bits() == theirs.to_bits(), || {
            format!("row {row}: scale {}, expected {theirs}", ours.scale)
        })?;
        for (i, &q) in range.zip(&ours.values) {
            ensure(q == expected[i] && f32::from(q) / theirs == fake[i], || {
                format!("value {i}: {q}, expected {} ({})", expected[i], fake[i])
            })?;
        }
    }
    Ok(Outcome::Passed)
}
