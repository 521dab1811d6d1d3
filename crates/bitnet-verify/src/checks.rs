//! The checks, and the one pass over the tensors that feeds them.
//!
//! Invariant: tensors stream. One ternary matrix of each side exists at a time, whatever number of
//! checks look at it, and each is read and unpacked once. A check never stops another: what one
//! cannot do becomes its own `error`.

pub(crate) mod certificates;
pub(crate) mod claims;
pub(crate) mod dense;
mod digest;
mod encoding;
pub mod gates;
mod golden;
mod kernels;
mod logits;
mod metadata;
mod other_runtime;
pub(crate) mod padding;
mod scales;
mod structure;
mod trits;
pub(crate) mod unlike;

pub(crate) use golden::tokenizer_of;
pub(crate) use metadata::compare_wiring;
pub(crate) use structure::sizes;

use crate::checks::gates::Thresholds;
use crate::checks::padding::{padding, silent_scales};
use crate::reference::golden::Golden;
use crate::reference::other_runtime::OtherRuntime;
use crate::reference::prompts::Prompt;
use crate::report::{CheckResult, LinearFigures, Report};
use bitnet_checkpoint::{Certificate, Checkpoint, OpenOptions, Slot};
use bitnet_cli::{Bar, Progress};
use bitnet_formats::FormatError;
use bitnet_kernels::Backend;
use bitnet_ternary::TernaryMatrix;
use std::path::{Path, PathBuf};

/// One check.
pub struct Check {
    /// Its name: also its file and its row in the report.
    pub name: &'static str,
    /// What it compares, for `--help`.
    pub what: &'static str,
    /// Starts it, unless the request does not call for it.
    start: fn(&Subject<'_>) -> Option<Box<dyn Running>>,
}

/// Every check, in the order of the report. Adding one is a file, a `mod` line and a row.
pub static CHECKS: &[Check] = &[
    structure::CHECK,
    metadata::CHECK,
    trits::CHECK,
    scales::CHECK,
    encoding::CHECK,
    dense::CHECK,
    digest::CHECK,
    kernels::CHECK,
    golden::CHECK,
    other_runtime::CHECK,
    logits::CHECK,
];

/// A check at work.
trait Running {
    /// Whether it looks at the unpacked matrices.
    fn wants_ternary(&self) -> bool {
        false
    }
    /// Looks at one linear of both sides.
    fn ternary(&mut self, _pair: &Pair<'_>, _subject: &Subject<'_>) {}
    /// Does the rest and reports.
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report);
}

/// One linear, unpacked on both sides.
struct Pair<'a> {
    slot: Slot,
    artifact: &'a Result<TernaryMatrix, FormatError>,
    source: Option<&'a Result<TernaryMatrix, FormatError>>,
}

impl Pair<'_> {
    /// Source and artifact, if both could be read.
    fn both(&self) -> Option<(&TernaryMatrix, &TernaryMatrix)> {
        Some((self.source?.as_ref().ok()?, self.artifact.as_ref().ok()?))
    }
}

/// An open model and how it was opened.
#[derive(Debug)]
pub struct Input {
    path: PathBuf,
    options: OpenOptions,
    /// The open files.
    pub checkpoint: Checkpoint,
}

impl Input {
    /// Opens a model.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Self, FormatError> {
        let checkpoint = Checkpoint::open(path, &options)?;
        Ok(Self {
            path: path.to_owned(),
            options,
            checkpoint,
        })
    }

    /// Opens it once more, for a model that wants its own.
    fn reopen(&self) -> Result<Checkpoint, FormatError> {
        Checkpoint::open(&self.path, &self.options)
    }
}

/// What is verified, and against what.
pub struct Subject<'a> {
    /// The model in question.
    pub artifact: &'a Input,
    /// What it was made from.
    pub source: Option<&'a Input>,
    /// What the converter wrote about it.
    pub certificate: Option<&'a Certificate>,
    /// Whether the runtime is to be run.
    pub logits: bool,
    /// What transformers computed.
    pub golden: Option<&'a Golden>,
    /// What another runtime computed; its prompts fit the artifact.
    pub other: Option<&'a OtherRuntime>,
    /// Sequences to compute; they fit the artifact.
    pub prompts: &'a [Prompt],
    /// Kernels to run, the first one leads.
    pub kernels: &'a [Backend],
    /// Bounds.
    pub thresholds: &'a Thresholds,
    /// Whether the report is to say what every linear holds.
    pub figures: bool,
    /// Whether the report is to name the bits that no reader uses.
    pub padding: bool,
}

/// Runs every check that the subject calls for.
pub fn run(subject: &Subject<'_>, progress: &Progress) -> Report {
    let mut report = Report::default();
    let mut silent = Vec::new();
    let mut running: Vec<_> = CHECKS
        .iter()
        .filter_map(|check| (check.start)(subject))
        .collect();
    if subject.figures || running.iter().any(|check| check.wants_ternary()) {
        let slots: Vec<Slot> = subject.artifact.checkpoint.slots_in_file_order();
        let is_ternary = |slot: &Slot| subject.artifact.checkpoint.is_ternary(*slot);
        let slots: Vec<Slot> = slots.into_iter().filter(is_ternary).collect();
        let bar: Bar = progress.steps("tensors", slots.len() as u64);
        for slot in slots {
            bar.name(slot.to_string());
            let (artifact, source) = rayon::join(
                || subject.artifact.checkpoint.ternary(slot),
                || subject.source.map(|source| source.checkpoint.ternary(slot)),
            );
            let pair = Pair {
                slot,
                artifact: &artifact,
                source: source.as_ref(),
            };
            if let (true, Ok(matrix)) = (subject.padding, &artifact) {
                silent.extend(silent_scales(&subject.artifact.checkpoint, slot, matrix));
            }
            if let (true, Ok(matrix)) = (subject.figures, &artifact) {
                report.linears.push(figures(slot, matrix));
            }
            for check in running.iter_mut().filter(|check| check.wants_ternary()) {
                check.ternary(&pair, subject);
            }
            bar.advance(1);
        }
        bar.finish();
    }
    for check in running {
        check.finish(subject, &mut report);
    }
    if subject.padding {
        let source = subject.source.map(|source| &source.checkpoint);
        match padding(&subject.artifact.checkpoint, source, silent) {
            Ok(padding) => report.padding = padding,
            Err(error) => report.checks.push(CheckResult::error("padding", &error)),
        }
    }
    report
}

/// What a linear holds.
fn figures(slot: Slot, matrix: &TernaryMatrix) -> LinearFigures {
    let mut scales = matrix.scales().as_slice().to_vec();
    scales.sort_by(f32::total_cmp);
    let at = |i: usize| scales.get(i).copied().unwrap_or(0.0);
    LinearFigures {
        name: slot.to_string(),
        trits: matrix.counts(),
        scales: [
            at(0),
            at(scales.len() / 2),
            at(scales.len().saturating_sub(1)),
        ],
    }
}
