//! The checks, and the one pass over the tensors that feeds them.
//!
//! Invariant: tensors stream. One ternary matrix of each side exists at a time, whatever number of
//! checks look at it, and each is read and unpacked once. A check never stops another: what one
//! cannot do becomes its own `error`.

mod check;
mod dense;
mod digest;
mod encoding;
mod files;
pub mod gates;
mod golden;
mod kernels;
mod logits;
mod metadata;
mod other_runtime;
pub(crate) mod padding;
pub(crate) mod report;
mod runtime;
mod scales;
pub(crate) mod side;
mod signature;
mod structure;
mod trits;
pub(crate) mod unlike;

pub use check::{Check, Loaded, Signed, Subject};

use crate::verdict::Verdict;
use bitnet_checkpoint::{Slot, scale_normal_form};
use bitnet_cli::{Bar, Progress};
use bitnet_ternary::TernaryMatrix;
use check::Pair;
use padding::{padding, silent_scales};
use report::{LinearFigures, MatrixFigures, Report};
use side::Side;

/// Every check, in the order of the report. Adding one is a file, a `mod` line and a row.
pub static CHECKS: &[Check] = &[
    structure::CHECK,
    metadata::CHECK,
    trits::CHECK,
    scales::CHECK,
    encoding::CHECK,
    dense::CHECK,
    digest::CHECK,
    files::CHECK,
    signature::CHECK,
    kernels::CHECK,
    golden::CHECK,
    other_runtime::CHECK,
    logits::CHECK,
];

/// Runs every check that the subject calls for.
pub fn run(subject: &Subject<'_>, progress: &Progress) -> Report {
    let mut report = Report::default();
    let mut silent = Vec::new();
    let mut running: Vec<_> = CHECKS
        .iter()
        .filter_map(|check| (check.start)(subject))
        .collect();
    let artifact = subject.artifact.model();
    let source = subject.source.and_then(Side::model);
    let wanted = subject.figures || running.iter().any(|check| check.wants_ternary());
    if let Some(artifact) = artifact.filter(|_| wanted) {
        let checkpoint = &artifact.checkpoint;
        let mut slots: Vec<Slot> = checkpoint.slots_in_file_order();
        slots.retain(|slot| checkpoint.is_ternary(*slot));
        let slots = subject.shared(slots);
        let bar: Bar = progress.steps("tensors", slots.len() as u64);
        let bytes = |slot| checkpoint.tensor_range(slot).map_or(0, |info| info.len);
        let whole = progress.whole(slots.iter().map(|slot| bytes(*slot)).sum());
        for slot in slots {
            bar.name(slot.to_string());
            let (artifact, source) = rayon::join(
                || checkpoint.ternary(slot),
                || source.map(|source| source.checkpoint.ternary(slot)),
            );
            let pair = Pair {
                slot,
                artifact: &artifact,
                source: source.as_ref(),
            };
            if let (true, Ok(matrix)) = (subject.padding, &artifact) {
                silent.extend(silent_scales(checkpoint, slot, matrix));
            }
            if let (true, Ok(matrix)) = (subject.figures, &artifact) {
                let source = source.as_ref().and_then(|source| source.as_ref().ok());
                report.linears.push(figures(slot, matrix, source));
            }
            for check in running.iter_mut().filter(|check| check.wants_ternary()) {
                check.ternary(&pair, subject);
            }
            bar.advance(1);
            if let Err(stopped) = whole.advance(bytes(slot)) {
                report.checks.push(Verdict::error("open", &stopped));
                return report;
            }
        }
        bar.finish();
    }
    for check in running {
        if let Err(stopped) = progress.check() {
            report.checks.push(Verdict::error("open", &stopped));
            return report;
        }
        check.finish(subject, &mut report);
    }
    if let Some(artifact) = artifact.filter(|_| subject.padding) {
        let source = source.map(|source| &source.checkpoint);
        match padding(&artifact.checkpoint, source, silent) {
            Ok(padding) => report.padding = padding,
            Err(error) => report.checks.push(Verdict::error("padding", &error)),
        }
    }
    report
}

/// What a linear holds, beside the source's.
fn figures(slot: Slot, artifact: &TernaryMatrix, source: Option<&TernaryMatrix>) -> LinearFigures {
    let differs = source.is_some_and(|source| {
        let bits = |matrix| -> Vec<u32> {
            let scales = scale_normal_form(matrix);
            scales.as_slice().iter().map(|s| s.to_bits()).collect()
        };
        source.trits() != artifact.trits() || bits(source) != bits(artifact)
    });
    LinearFigures {
        name: slot.to_string(),
        artifact: figures_of(artifact),
        source: source.map(figures_of),
        differs,
    }
}

fn figures_of(matrix: &TernaryMatrix) -> MatrixFigures {
    let mut scales = matrix.scales().as_slice().to_vec();
    scales.sort_by(f32::total_cmp);
    let at = |i: usize| scales.get(i).copied().unwrap_or(0.0);
    MatrixFigures {
        trits: matrix.counts(),
        scales: [
            at(0),
            at(scales.len() / 2),
            at(scales.len().saturating_sub(1)),
        ],
    }
}
