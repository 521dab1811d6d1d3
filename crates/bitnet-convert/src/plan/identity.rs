//! What tells one conversion from another before its weights are read.
//!
//! Invariant: the same source, target and options give the same identity on every machine. Weights enter by samples of
//! their bytes: models that differ in a few values only may share an identity, and certificates tell them apart.

use super::{Item, OutputFile, Plan};
use crate::source_hash::sha256_hex;
use bitnet_checkpoint::Checkpoint;
use bitnet_formats::{ErrorCode, FormatError, ScaleRounding, Sha256Stream};

/// Bytes of one sample.
const SAMPLE: u64 = 1 << 10;
/// Samples for each output file.
const SAMPLES_PER_FILE: u64 = 16;
/// Samples at least and at most.
const SAMPLES: (u64, u64) = (64, 4096);

/// Samples of the bytes of all tensors of a source, evenly spread; of a small source all bytes.
///
/// # Errors
/// Those of reading.
pub fn samples(checkpoint: &Checkpoint, files: usize) -> Result<Vec<u8>, FormatError> {
    let count = SAMPLES_PER_FILE.saturating_mul(files as u64);
    let count = count.clamp(SAMPLES.0, SAMPLES.1);
    let tensors = checkpoint.file.tensors();
    let total: u64 = tensors.iter().map(|t| t.len).sum();
    let every = (total / count).max(SAMPLE);
    let mut bytes = Vec::new();
    let mut start = 0u64; // of the tensor, among the bytes of all
    let mut next = 0u64; // of the next sample
    for tensor in tensors {
        let end = start.saturating_add(tensor.len);
        // a sample does not go on into the next tensor, which begins one of its own
        if next < start {
            next = start;
        }
        while next < end {
            let from = next - start;
            let to = tensor.len.min(from.saturating_add(SAMPLE));
            bytes.extend_from_slice(&checkpoint.file.read_part(tensor, from..to)?);
            next = next.saturating_add(every);
        }
        start = end;
    }
    Ok(bytes)
}

/// The hash of everything that decides the bytes of an output, weights by their samples.
///
/// # Errors
/// Those of reading.
pub fn plan_sha256(
    checkpoint: &Checkpoint,
    plan: &Plan,
    rounding: ScaleRounding,
) -> Result<String, FormatError> {
    let mut lines = format!(
        "{} {} {rounding:?}\n",
        concat!("bitnet-convert ", env!("CARGO_PKG_VERSION")),
        plan.target.name
    );
    for part in &checkpoint.file.parts {
        let name = part.path().file_name().unwrap_or_default();
        lines += &format!("source {} {}\n", part.len(), name.to_string_lossy());
    }
    for OutputFile { path, header } in &plan.files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let sha256 = sha256_hex(&header.bytes);
        lines += &format!("file {} {sha256} {name}\n", header.total);
    }
    for (name, bytes) in &plan.side_files {
        lines += &format!("beside {} {name}\n", sha256_hex(bytes));
    }
    for Item {
        source_name,
        from,
        to,
        file,
        offset,
        tensor,
        ..
    } in &plan.items
    {
        let name = &tensor.name;
        lines += &format!("tensor {file} {offset} {name} {source_name} {from} {to}\n");
    }
    let samples = samples(checkpoint, plan.files.len())?;
    let mut hash = Sha256Stream::new();
    hash.update(lines.as_bytes());
    hash.update(&samples);
    hash.finish()
        .map_err(|e| FormatError::new(ErrorCode::Io, e.to_string()).because(e))
}
