//! Whether norms, embeddings and head hold the source's values.
//!
//! Invariant: compared as the bits of the values widened to `f32`, so a container may store them in
//! another type as long as no value changes. Blocks of rows stream.

use super::{Check, Running, Subject};
use crate::diagnose::fault::{Fault, Kind};
use crate::report::{Findings, Report};
use bitnet_checkpoint::{Checkpoint, DenseTensor, Slot};
use bitnet_formats::FormatError;
use rayon::prelude::*;

/// Elements widened at a time.
pub(crate) const BLOCK: usize = 1 << 20;

pub(super) const CHECK: Check = Check {
    name: "dense",
    what: "every bit of norms, embeddings and output head, widened to f32",
    start: |subject| {
        subject
            .source
            .is_some()
            .then(|| Box::new(Dense) as Box<dyn Running>)
    },
};

struct Dense;

impl Running for Dense {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let Some(source) = subject.source else { return };
        let (source, artifact) = (&source.checkpoint, &subject.artifact.checkpoint);
        let mut findings = Findings::default();
        let (mut tensors, mut values) = (0, 0);
        for slot in artifact
            .slots()
            .into_iter()
            .filter(|slot| !artifact.is_ternary(*slot))
        {
            tensors += 1;
            match compare(source, artifact, slot) {
                Ok((compared, differing, text)) => {
                    values += compared;
                    if compared > 0 {
                        report.unlike.dense(differing, compared);
                    }
                    if let Some(text) = text {
                        let kind = match slot {
                            Slot::OutputHead => Kind::OutputHead,
                            _ => Kind::ChangedValues,
                        };
                        report.fault(Fault::at(kind, CHECK.name, slot, text.clone()));
                        findings.different(slot.to_string(), text);
                    }
                }
                Err(error) => findings.unreadable(slot.to_string(), &error),
            }
        }
        let compared = format!("{values} values of {tensors} tensors");
        report
            .checks
            .push(findings.into_result(CHECK.name, compared));
    }
}

/// How many values of a block differ, and the first: index, expected, found.
type Block = (usize, Option<(usize, f32, f32)>);

/// Values compared, how many of them differ, and where the first difference is.
fn compare(
    source: &Checkpoint,
    artifact: &Checkpoint,
    slot: Slot,
) -> Result<(usize, usize, Option<String>), FormatError> {
    let (s, a) = (source.dense(slot)?, artifact.dense(slot)?);
    if s.shape != a.shape {
        return Ok((
            0,
            0,
            Some(format!("expected shape {:?}, found {:?}", s.shape, a.shape)),
        ));
    }
    let width = s.shape.last().copied().unwrap_or(1).max(1);
    let rows = s.shape.iter().product::<usize>() / width;
    let step = (BLOCK / width).max(1);
    let starts: Vec<usize> = (0..rows).step_by(step).collect();
    let blocks = starts.par_iter().map(|&start| {
        let end = rows.min(start + step);
        let (s_bytes, a_bytes) = (
            row_bytes(&s, rows, start, end),
            row_bytes(&a, rows, start, end),
        );
        let same_meaning = (s.encoding, s.plus_one) == (a.encoding, a.plus_one);
        if same_meaning && s_bytes == a_bytes {
            return Ok((0, None));
        }
        let expected = widen(&s, s_bytes, (end - start) * width)?;
        let found = widen(&a, a_bytes, (end - start) * width)?;
        let differ = |(e, f): (&f32, &f32)| e.to_bits() != f.to_bits();
        let pairs = || expected.iter().zip(&found);
        let at = pairs().position(differ);
        let count = pairs().filter(|(e, f)| differ((e, f))).count();
        Ok((
            count,
            at.map(|i| (start * width + i, expected[i], found[i])),
        ))
    });
    let blocks: Vec<Block> = blocks.collect::<Result<_, FormatError>>()?;
    let count: usize = blocks.iter().map(|(count, _)| count).sum();
    let first = blocks.into_iter().find_map(|(_, first)| first);
    let text = first.map(|(at, e, f)| {
        let place = match rows {
            1 => format!("index {at}"),
            _ => format!("row {}, column {}", at / width, at % width),
        };
        let bits = |x: f32| format!("{x:e} (0x{:08x})", x.to_bits());
        format!(
            "{place}: expected {}, found {}; {count} of {} differ",
            bits(e),
            bits(f),
            rows * width
        )
    });
    Ok((rows * width, count, text))
}

/// The bytes of some rows; rows are whole blocks of every encoding.
pub(crate) fn row_bytes<'a>(
    tensor: &DenseTensor<'a>,
    rows: usize,
    start: usize,
    end: usize,
) -> &'a [u8] {
    let row = tensor.bytes.len() / rows.max(1);
    tensor.bytes.get(start * row..end * row).unwrap_or(&[])
}

/// The values of these bytes of a tensor.
///
/// # Errors
/// Bytes that are not as many values.
pub(crate) fn widen(
    tensor: &DenseTensor<'_>,
    bytes: &[u8],
    values: usize,
) -> Result<Vec<f32>, FormatError> {
    let mut out = vec![0.0; values];
    tensor.widen(bytes, &mut out)?;
    Ok(out)
}
