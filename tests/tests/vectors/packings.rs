//! Vectors of packings: the peer's bytes give the trits and the scale, and these give the bytes.
//!
//! Invariant: a refusal passes only where the peer refused too, or lost what we refuse to lose.

use super::folder::{Checked, Outcome, Vectors, ensure, f32_of, same, ulps, usize_of};
use bitnet_formats::{ErrorCode, PACKINGS, PackedTensor, Packing, ScaleRounding, packing_by_name};
use bitnet_ternary::{Scales, TernaryMatrix};
use bitnet_tests::digest::sha256;
use serde_json::Value;

/// The packing that a folder of vectors is about.
pub fn packing_of(folder: &str) -> Option<&'static dyn Packing> {
    packing_by_name(match folder {
        "hf-packed" => "hf_u8",
        "ms-gpu-int2" => "ms_gpu_int2",
        "mlx-affine-2bit-g128" => "mlx_2bit",
        // one codec each, with a manifest layout of their own
        "gguf-q1_0" => "q1_0",
        "gguf-q2_0" => "q2_0",
        "gguf-pq2_0" => "pq2_0",
        "gguf-ptq1_0" => "ptq1_0",
        "gguf-q2_0-g128-last" => "q2_0-g128-last",
        // other writers of the same layout
        "i2_s-py" | "i2_s-embed" => "i2_s",
        name => name,
    })
}

/// The packing with the same bytes under another type id, checked against the same vectors.
pub fn same_bytes(name: &str) -> &str {
    match name {
        "pq2_0" => "q2_0-g128",
        name => name,
    }
}

/// The packing of one entry: that of its folder, with the tiling that the entry gives.
fn tiled(packing: &'static dyn Packing, entry: &Value) -> Result<&'static dyn Packing, String> {
    if entry["BM"].is_null() {
        return Ok(packing);
    }
    let [rows, cols, block] = ["BM", "BK", "bm"].map(|key| entry[key].to_string());
    let name = format!("{}-{rows}-{cols}-{block}", packing.name());
    packing_by_name(&name).ok_or_else(|| format!("no packing `{name}`"))
}

/// Bytes behind the scale of I2_S that no reader reads and C++ writers leave as they were.
fn unread_tail(packing: &dyn Packing) -> usize {
    if packing.name().starts_with("i2_s") {
        28
    } else {
        0
    }
}

struct Input {
    rows: usize,
    cols: usize,
    trits: Vec<i8>,
    scale: f32,
    /// Ulp that the peer's scale may be off: it takes a mean whose rounding depends on its machine.
    scale_ulps: u32,
}

fn input_of(vectors: &Vectors, folder: &str, entry: &Value) -> Result<Input, String> {
    let scale = |e: &Value| {
        f32_of(entry, "scale_f32_hex")
            .or_else(|| f32_of(e, "scale_f32_hex"))
            .unwrap_or(1.0)
    };
    if entry["trits"].is_object() {
        let trits = vectors.trits(folder, entry, "trits")?;
        // a one-dimensional tensor packs along its only axis
        let rows = usize_of(entry, "rows").unwrap_or(trits.len());
        let cols = usize_of(entry, "cols").unwrap_or(1);
        return Ok(Input {
            rows,
            cols,
            trits,
            scale: scale(entry),
            scale_ulps: 0,
        });
    }
    let name = entry["input"]
        .as_str()
        .ok_or("neither `trits` nor `input`")?;
    let (from, e, scale, scale_ulps) = if let Some(name) = name.strip_prefix("hf-bf16/") {
        let e = vectors.entry("hf-bf16", name.strip_suffix(".bf16").unwrap_or(name))?;
        (
            "hf-bf16",
            e,
            f32_of(e, "clamped_absmean_f32_hex").ok_or("no clamped mean")?,
            4,
        )
    } else {
        let e = vectors.entry("inputs", name)?;
        ("inputs", e, scale(e), 0)
    };
    let trits = vectors.trits(from, e, "trits")?;
    Ok(Input {
        rows: usize_of(e, "rows")?,
        cols: usize_of(e, "cols")?,
        trits,
        scale,
        scale_ulps,
    })
}

/// Packs, also what is only read: by units, as a converter does.
fn encode(packing: &dyn Packing, matrix: &TernaryMatrix) -> Result<Vec<u8>, String> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    if packing.packed_len(rows, cols).is_ok() {
        return packing
            .pack(matrix, ScaleRounding::Allow)
            .map_err(|e| e.to_string());
    }
    let trailer = packing.trailer(matrix);
    let len = packing.stored_len(rows, cols).map_err(|e| e.to_string())? as usize;
    let mut out = vec![0; len.saturating_sub(trailer.len())];
    packing.pack_units(matrix, 0, &mut out);
    out.extend(trailer);
    Ok(out)
}

pub fn check_packed(
    vectors: &Vectors,
    folder: &str,
    packing: &'static dyn Packing,
    entry: &Value,
) -> Checked {
    let packing = tiled(packing, entry)?;
    let with_tiling = !entry["BM"].is_null();
    if with_tiling && !entry["error"].is_null() {
        // the peer's writer fails on the tiling, whatever the trits
        let (rows, cols) = (usize_of(entry, "rows")?, usize_of(entry, "cols")?);
        return match packing.packed_len(rows, cols) {
            Err(e) if e.code == ErrorCode::TargetCannotHold && e.hint.is_some() => {
                Ok(Outcome::Refused)
            }
            other => Err(format!(
                "the peer refuses ({}), we say {other:?}",
                entry["error"]
            )),
        };
    }
    let Input {
        rows,
        cols,
        trits,
        scale,
        scale_ulps,
    } = input_of(vectors, folder, entry)?;
    let matrix = |scale| {
        TernaryMatrix::new(rows, cols, trits.clone(), Scales::PerTensor(scale))
            .map_err(|e| e.to_string())
    };
    if !entry["error"].is_null() {
        return match packing.pack(&matrix(scale)?, ScaleRounding::Allow) {
            Err(e) if e.code == ErrorCode::TargetCannotHold && e.hint.is_some() => {
                Ok(Outcome::Refused)
            }
            Err(e) => Err(format!("refused, but with `{}`: {e}", e.code.as_str())),
            Ok(_) => Err(format!(
                "the peer refuses ({}), we wrote it",
                entry["error"]
            )),
        };
    }
    let mut file = vectors.bytes(folder, entry, "packed")?;
    if with_tiling {
        // what the container's writer puts behind the codes
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(scale.to_le_bytes());
        file.resize(file.len() + 28, 0);
    }
    let Ok(len) = packing.stored_len(rows, cols) else {
        return refused_for_a_reason(packing, &matrix(scale)?, &file);
    };
    let len = len as usize;
    let tail = unread_tail(packing);
    ensure(file.len() == len || file.len() + tail == len, || {
        format!("{} bytes in the file, we need {len}", file.len())
    })?;
    if let Some(n) = entry["returned_size"].as_u64() {
        ensure(n == len as u64, || {
            format!("the peer counts {n} bytes, we {len}")
        })?;
    }
    if let (Some(shape), "hf_u8") = (entry["packed_shape"].as_array(), packing.name()) {
        let shape: Vec<u64> = shape.iter().filter_map(Value::as_u64).collect();
        let ours = [rows.div_ceil(4) as u64, cols as u64];
        ensure(shape == ours || shape == ours[..1] && cols == 1, || {
            format!("packed shape {shape:?}, ours {ours:?}")
        })?;
    }

    let mut padded = file.clone();
    padded.resize(len, 0);
    let outside = Scales::PerTensor(scale);
    let beside = (!packing.holds_scales()).then_some(&outside);
    let tensor = PackedTensor {
        bytes: &padded,
        rows,
        cols,
        outside: beside,
    };
    let told = match packing.check_scales(&matrix(scale)?, ScaleRounding::Allow) {
        Ok(error) => error,
        Err(e) if e.code == ErrorCode::TargetCannotHold => {
            return lost_scale(packing, &tensor, &trits);
        }
        Err(e) => return Err(e.to_string()),
    };

    // reading: the peer's bytes give the trits and the scale
    let stored = read_back(packing, &tensor, &trits)?;
    let all_zero = trits.iter().all(|&t| t == 0);
    if all_zero {
        // what stands beside zeros is each writer's habit: 0, the clamp of the mean, the scale
        ensure([0.0, 1e-5, scale].contains(&stored), || {
            format!("scale {stored} of a tensor of zeros")
        })?;
    } else if told == 0.0 {
        ensure(ulps(stored, scale) <= scale_ulps, || {
            format!("scale {stored}, expected {scale}")
        })?;
    } else {
        let error = (f64::from(stored) - f64::from(scale)).abs() / f64::from(scale);
        ensure(error <= told, || {
            format!("scale {stored} is off {scale} by {error}, told {told}")
        })?;
        let refused = packing
            .pack(&matrix(scale)?, ScaleRounding::Refuse)
            .map_err(|e| e.code);
        ensure(refused == Err(ErrorCode::ScaleRounding), || {
            "rounded a scale unasked".to_owned()
        })?;
    }
    if let Some(digest) = entry["dequant_f32_sha256"].as_str() {
        let weights = trits
            .iter()
            .flat_map(|&t| (f32::from(t) * stored).to_le_bytes());
        ensure(sha256(&weights.collect::<Vec<_>>()) == digest, || {
            "weights differ from the peer's".to_owned()
        })?;
    }

    // writing: the trits and the scale give the peer's bytes
    let written_scale = if all_zero || scale_ulps > 0 {
        stored
    } else {
        scale
    };
    let ours = encode(packing, &matrix(written_scale)?)?;
    ensure(ours.len() == len, || {
        format!("packed to {} bytes, not {len}", ours.len())
    })?;
    let read_part = file.len().min(len - tail);
    same("byte", &ours[..read_part], &file[..read_part])?;
    ensure(ours[len - tail..].iter().all(|&b| b == 0), || {
        "the tail is not zero".to_owned()
    })?;

    // hf-packed: peers return the padding rows too
    if entry["unpacked_trits"].is_object() {
        let all = vectors.trits(folder, entry, "unpacked_trits")?;
        let shape = entry["unpacked_shape"]
            .as_array()
            .ok_or("no `unpacked_shape`")?;
        let rows = shape
            .first()
            .and_then(Value::as_u64)
            .ok_or("empty `unpacked_shape`")? as usize;
        read_back(packing, &PackedTensor { rows, ..tensor }, &all)?;
    }
    Ok(Outcome::Passed)
}

/// The one scale of a tensor that must hold these trits.
fn read_back(
    packing: &dyn Packing,
    tensor: &PackedTensor<'_>,
    trits: &[i8],
) -> Result<f32, String> {
    let back = packing.unpack(tensor).map_err(|e| e.to_string())?;
    same("trit", back.trits(), trits)?;
    match *back.scales() {
        Scales::PerTensor(scale) => Ok(scale),
        _ => Err(format!(
            "one scale went in, one per {} came out",
            back.scales().structure()
        )),
    }
}

/// A scale that we refuse even with rounding allowed must be one that the peer destroyed.
fn lost_scale(packing: &dyn Packing, tensor: &PackedTensor<'_>, trits: &[i8]) -> Checked {
    match packing.scales(tensor) {
        Ok(Scales::PerTensor(0.0)) => read_back(packing, tensor, trits).map(|_| Outcome::Refused),
        Err(e) if e.code == ErrorCode::NonFinite => Ok(Outcome::Refused),
        other => Err(format!("scale refused, but the peer kept {other:?}")),
    }
}

/// Refusing to read a peer's bytes is right only where the peer lost trits: the C++ quantizer of
/// I2_S leaves the codes of a last partial block zero, which is not what went in.
fn refused_for_a_reason(packing: &dyn Packing, matrix: &TernaryMatrix, file: &[u8]) -> Checked {
    let block = if packing.name() == "i2_s-arm64" {
        64
    } else {
        128
    };
    let n = matrix.trits().len();
    let lost = n % block;
    let codes = file.get((n - lost) / 4..n / 4).unwrap_or(&[]);
    let was_lost =
        codes.iter().all(|&b| b == 0) && matrix.trits()[n - lost..].iter().any(|&t| t != -1);
    ensure(lost > 0 && was_lost, || {
        format!(
            "{} refuses {} x {}, and the peer lost nothing",
            packing.name(),
            matrix.rows(),
            matrix.cols()
        )
    })?;
    match packing.pack(matrix, ScaleRounding::Allow) {
        Err(e) if e.code == ErrorCode::TargetCannotHold => Ok(Outcome::Refused),
        Err(e) => Err(format!("refused, but with `{}`: {e}", e.code.as_str())),
        Ok(_) => Err("refused to read, written all the same".to_owned()),
    }
}

/// The ternary tensors of one whole GGUF file, found by the manifest's own offsets (the container
/// has tests of its own).
pub fn check_gguf_tensor(file: &[u8], entry: &Value, tensor: &Value) -> Checked {
    let id = usize_of(tensor, "type")? as u32;
    let Some(packing) = PACKINGS
        .iter()
        .copied()
        .find(|p| p.gguf_type() == Some(id) && p.is_writable())
    else {
        return Ok(Outcome::Skipped(format!("type {id} has no packing yet")));
    };
    let packing = tiled(packing, tensor)?;
    let ne: Vec<usize> = tensor["ne"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|n| n.as_u64().map(|n| n as usize))
        .collect();
    let [cols, leading @ ..] = &ne[..] else {
        return Err("no sizes".to_owned());
    };
    let (rows, cols) = (leading.iter().product(), *cols);
    let start = usize_of(entry, "data_offset")? + usize_of(tensor, "offset")?;
    let len = packing.stored_len(rows, cols).map_err(|e| e.to_string())? as usize;
    let bytes = file
        .get(start..start + len)
        .ok_or("the tensor reaches beyond the file")?;
    let matrix = packing
        .unpack(&PackedTensor {
            bytes,
            rows,
            cols,
            outside: None,
        })
        .map_err(|e| e.to_string())?;
    let trits: Vec<u8> = matrix.trits().iter().map(|&t| t as u8).collect();
    ensure(
        tensor["trits_sha256"].as_str() == Some(&sha256(&trits)),
        || "trits differ".to_owned(),
    )?;
    let scale = f32_of(tensor, "scale_f32_hex").ok_or("no scale")?;
    ensure(matrix.scales() == &Scales::PerTensor(scale), || {
        format!("scale {:?}, expected {scale}", matrix.scales())
    })?;
    let ours = encode(packing, &matrix)?;
    let read_part = len - unread_tail(packing);
    same("byte", &ours[..read_part], &bytes[..read_part])?;
    Ok(Outcome::Passed)
}
