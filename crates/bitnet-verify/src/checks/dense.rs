//! Whether norms, embeddings and head hold the source's values.
//!
//! Invariant: compared as the bits of the values widened to `f32`, so a container may store them in
//! another type as long as no value changes. Blocks of rows stream.

use super::{Check, Running, Subject};
use crate::report::{Findings, Report};
use bitnet_formats::{FormatError, dense_to_f32};
use bitnet_model::{Checkpoint, DenseTensor, Slot};

/// Elements widened at a time.
const BLOCK: usize = 1 << 20;

pub(super) const CHECK: Check = Check {
    name: "dense",
    what: "every bit of norms, embeddings and output head, widened to f32",
    start: |subject| subject.source.is_some().then(|| Box::new(Dense) as Box<dyn Running>),
};

struct Dense;

impl Running for Dense {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let Some(source) = subject.source else { return };
        let (source, artifact) = (&source.checkpoint, &subject.artifact.checkpoint);
        let mut findings = Findings::default();
        let (mut tensors, mut values) = (0, 0);
        for slot in artifact.slots().into_iter().filter(|slot| !slot.is_ternary()) {
            tensors += 1;
            match compare(source, artifact, slot) {
                Ok((compared, text)) => {
                    values += compared;
                    if let Some(text) = text {
                        findings.different(slot.to_string(), text);
                    }
                }
                Err(error) => findings.unreadable(slot.to_string(), &error),
            }
        }
        let compared = format!("{values} values of {tensors} tensors");
        report.checks.push(findings.into_result(CHECK.name, compared));
    }
}

/// Values compared, and where the first difference is.
fn compare(source: &Checkpoint, artifact: &Checkpoint, slot: Slot) -> Result<(usize, Option<String>), FormatError> {
    let (s, a) = (source.dense(slot)?, artifact.dense(slot)?);
    if s.shape != a.shape {
        return Ok((0, Some(format!("expected shape {:?}, found {:?}", s.shape, a.shape))));
    }
    let width = s.shape.last().copied().unwrap_or(1).max(1);
    let rows = s.shape.iter().product::<usize>() / width;
    let step = (BLOCK / width).max(1);
    let (mut count, mut first) = (0, None);
    let (mut expected, mut found) = (Vec::new(), Vec::new());
    for start in (0..rows).step_by(step) {
        let end = rows.min(start + step);
        let same_bytes = s.encoding == a.encoding && row_bytes(&s, rows, start, end) == row_bytes(&a, rows, start, end);
        if same_bytes {
            continue;
        }
        widen(&s, rows, (start, end), width, &mut expected)?;
        widen(&a, rows, (start, end), width, &mut found)?;
        for (i, (e, f)) in expected.iter().zip(&found).enumerate() {
            if e.to_bits() != f.to_bits() {
                count += 1;
                first.get_or_insert((start * width + i, *e, *f));
            }
        }
    }
    let text = first.map(|(at, e, f)| {
        let place = match rows {
            1 => format!("index {at}"),
            _ => format!("row {}, column {}", at / width, at % width),
        };
        let bits = |x: f32| format!("{x:e} (0x{:08x})", x.to_bits());
        format!("{place}: expected {}, found {}; {count} of {} differ", bits(e), bits(f), rows * width)
    });
    Ok((rows * width, text))
}

/// The bytes of some rows; rows are whole blocks of every encoding.
fn row_bytes<'a>(tensor: &DenseTensor<'a>, rows: usize, start: usize, end: usize) -> &'a [u8] {
    let row = tensor.bytes.len() / rows.max(1);
    tensor.bytes.get(start * row..end * row).unwrap_or(&[])
}

fn widen(
    tensor: &DenseTensor<'_>,
    rows: usize,
    (start, end): (usize, usize),
    width: usize,
    out: &mut Vec<f32>,
) -> Result<(), FormatError> {
    out.resize((end - start) * width, 0.0);
    dense_to_f32(tensor.encoding, row_bytes(tensor, rows, start, end), out).map_err(|e| e.in_tensor(&tensor.info.name))
}
