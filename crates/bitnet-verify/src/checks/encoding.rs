//! Whether the packed bytes are the ones an encoder writes for what they mean.
//!
//! Invariant: a byte that decodes to the right trits but that no encoder makes (TQ1_0 has 13 such
//! values in 256) is damage that no reader shows; it is found by packing again. What no reader uses
//! (the bytes behind the scale of I2_S, alignment) is not looked at. Where both sides hold master
//! weights, these are compared themselves: two of them may round to the same trits.

use super::check::{Check, Running, Subject};
use super::report::Report;
use crate::blocks::block_rows;
use crate::verdict::Findings;
use bitnet_checkpoint::{Checkpoint, LinearSource, Slot};
use bitnet_formats::{FormatError, PackedTensor, Packing, dense_to_f32};
use bitnet_ternary::Scales;
use rayon::prelude::*;

pub(super) const CHECK: Check = Check {
    name: "encoding",
    what: "packed bytes are those an encoder writes; master weights are equal",
    start: |subject| {
        let models = subject.models();
        models.map(|_| Box::new(Encoding) as Box<dyn Running>)
    },
};

struct Encoding;

impl Running for Encoding {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let Some((source, artifact)) = subject.models() else {
            return;
        };
        let mut findings = Findings::default();
        let (mut tensors, mut bytes) = (0, 0);
        let mut slots = artifact.slots_in_file_order();
        slots.retain(|slot| artifact.is_ternary(*slot));
        let results: Vec<_> = slots
            .par_iter()
            .with_max_len(1)
            .map(|slot| compare(source, artifact, *slot))
            .collect();
        for (slot, result) in slots.into_iter().zip(results) {
            match result {
                Ok(None) => {}
                Ok(Some((compared, first))) => {
                    tensors += 1;
                    bytes += compared;
                    if let Some(text) = first {
                        findings.different(slot.to_string(), text);
                    }
                }
                Err(_) => findings.not_compared(slot.to_string()),
            }
        }
        let compared = match tensors {
            0 => "no packed linears and no master weights".to_owned(),
            _ => format!("{bytes} bytes of {tensors} linears"),
        };
        report
            .checks
            .push(findings.into_verdict(CHECK.name, compared));
    }
}

/// Bytes compared, and where the first one is that should be another; `None` for a linear of which
/// only the values can be compared.
type Compared = Option<(usize, Option<String>)>;

fn compare(
    source: &Checkpoint,
    artifact: &Checkpoint,
    slot: Slot,
) -> Result<Compared, FormatError> {
    let linear = artifact.linear(slot)?;
    match linear.packing {
        Some(packing) => {
            let bytes = artifact.file.read(&linear.info)?;
            // copied bytes are the source's own, no matter which program encoded them
            if let Some(original) = source.tensor_range(slot)
                && source.file.read(original)? == bytes
            {
                return Ok(Some((bytes.len(), None)));
            }
            repack(packing, &bytes, linear)
        }
        None if linear.is_master() => master_weights(artifact, source, slot),
        None => Ok(None),
    }
}

/// Compares master weights, if the source has them too.
fn master_weights(
    artifact: &Checkpoint,
    source: &Checkpoint,
    slot: Slot,
) -> Result<Compared, FormatError> {
    let (a, s) = (artifact.linear(slot)?, source.linear(slot)?);
    if !s.is_master() || (a.rows, a.cols) != (s.rows, s.cols) {
        return Ok(None);
    }
    let (found, expected) = (artifact.file.read(&a.info)?, source.file.read(&s.info)?);
    let first = if a.info.encoding == s.info.encoding {
        let size = (found.len() / (a.rows * a.cols).max(1)).max(1);
        let differ = found.iter().zip(expected.iter()).position(|(f, e)| f != e);
        differ.map(|at| at / size)
    } else {
        first_other_value((a, &found), (s, &expected))?
    };
    let text = first.map(|at| {
        format!(
            "row {}, column {}: other master weight than in the source",
            at / a.cols,
            at % a.cols
        )
    });
    Ok(Some((found.len(), text)))
}

/// Where the first number is another one than in the source, of two types of floats.
fn first_other_value(
    (a, found): (&LinearSource, &[u8]),
    (s, expected): (&LinearSource, &[u8]),
) -> Result<Option<usize>, FormatError> {
    let rows = a.rows.max(1);
    let step = block_rows(a.cols);
    for start in (0..a.rows).step_by(step) {
        let end = a.rows.min(start + step);
        let widened = |source: &LinearSource, bytes: &[u8]| {
            let row = bytes.len() / rows;
            let mut values = vec![0.0f32; (end - start) * a.cols];
            let bytes = bytes.get(start * row..end * row).unwrap_or(&[]);
            dense_to_f32(source.info.encoding, bytes, &mut values).map(|()| values)
        };
        let (found, expected) = (widened(a, found)?, widened(s, expected)?);
        let differ = |(f, e): (&f32, &f32)| f.to_bits() != e.to_bits();
        if let Some(at) = found.iter().zip(&expected).position(differ) {
            return Ok(Some(start * a.cols + at));
        }
    }
    Ok(None)
}

/// Packs again what the bytes mean.
fn repack(
    packing: &dyn Packing,
    bytes: &[u8],
    linear: &LinearSource,
) -> Result<Compared, FormatError> {
    let LinearSource { rows, cols, .. } = linear;
    // scales beside the codes are the business of `scales`
    let outside = Scales::PerTensor(1.0);
    let outside = (!packing.holds_scales()).then_some(&outside);
    let matrix = packing.unpack(&PackedTensor {
        bytes,
        rows: *rows,
        cols: *cols,
        outside,
    })?;
    let units = bytes.len().saturating_sub(packing.trailer(&matrix).len());
    let mut again = vec![0; units];
    packing.pack_units(&matrix, 0, &mut again);
    let first = bytes
        .iter()
        .zip(&again)
        .position(|(found, expected)| found != expected);
    let text = first.map(|at| {
        format!(
            "byte {at}: expected {:#04x}, found {:#04x}, which no encoder writes",
            again[at], bytes[at]
        )
    });
    Ok(Some((units, text)))
}
