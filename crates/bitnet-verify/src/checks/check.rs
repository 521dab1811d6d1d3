//! What a check is, and what it is given.
//!
//! Invariant: a check sees two [`Side`]s and what was asked for, never another check.

use super::report::Report;
use super::runtime::Runtime;
use super::side::Side;
use crate::reference::golden::Golden;
use crate::reference::other_runtime::OtherRuntime;
use crate::reference::prompts::Prompt;
use crate::reference::thresholds::Thresholds;
use crate::share::Share;
use bitnet_checkpoint::{Certificate, Checkpoint, Slot, TrustedKeys};
use bitnet_formats::FormatError;
use bitnet_kernels::Backend;
use bitnet_ternary::TernaryMatrix;
use std::path::PathBuf;
use std::sync::OnceLock;

/// One check.
pub struct Check {
    /// Its name: also its file and its row in the report.
    pub name: &'static str,
    /// What it compares, for `--help`.
    pub what: &'static str,
    /// Starts it, unless the request does not call for it.
    pub(super) start: fn(&Subject<'_>) -> Option<Box<dyn Running>>,
}

/// A check at work.
pub(super) trait Running {
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
pub(super) struct Pair<'a> {
    pub(super) slot: Slot,
    pub(super) artifact: &'a Result<TernaryMatrix, FormatError>,
    pub(super) source: Option<&'a Result<TernaryMatrix, FormatError>>,
}

impl Pair<'_> {
    /// Source and artifact, if both could be read.
    pub(super) fn both(&self) -> Option<(&TernaryMatrix, &TernaryMatrix)> {
        Some((self.source?.as_ref().ok()?, self.artifact.as_ref().ok()?))
    }
}

/// What is to be signed by whom.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The certificate, beside which the statement lies.
    pub certificate: PathBuf,
    /// Keys that count.
    pub keys: TrustedKeys,
}

/// A model in memory, ready to compute, or why it cannot be; empty until a check needs it.
#[derive(Debug, Default)]
pub struct Loaded(OnceLock<Result<Runtime, FormatError>>);

/// What is verified, and against what.
pub struct Subject<'a> {
    /// What is in question.
    pub artifact: Side<'a>,
    /// What it was made from, or has to agree with.
    pub source: Option<Side<'a>>,
    /// What the converter wrote about a model.
    pub certificate: Option<&'a Certificate>,
    /// What is to be signed by whom.
    pub signed: Option<Signed>,
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
    /// Which part of the tensors to compare, if not all.
    pub share: Option<Share>,
    /// The artifact on the kernel that leads: loaded when a check first asks for it, and shared by all of them.
    pub loaded: Loaded,
}

impl<'a> Subject<'a> {
    /// A side alone, with nothing asked for.
    pub fn alone(artifact: Side<'a>, thresholds: &'a Thresholds) -> Self {
        Self {
            artifact,
            source: None,
            certificate: None,
            signed: None,
            logits: false,
            golden: None,
            other: None,
            prompts: &[],
            kernels: &[],
            thresholds,
            figures: false,
            padding: false,
            share: None,
            loaded: Loaded::default(),
        }
    }

    /// Those of the slots that are compared.
    pub(super) fn shared(&self, slots: Vec<Slot>) -> Vec<Slot> {
        let Some(share) = self.share else {
            return slots;
        };
        let numbered = slots.into_iter().enumerate();
        numbered
            .filter_map(|(position, slot)| share.contains(position).then_some(slot))
            .collect()
    }

    /// What is expected and what was found.
    pub(super) fn sides(&self) -> Option<(Side<'a>, Side<'a>)> {
        Some((self.source?, self.artifact))
    }

    /// The artifact on the kernel that leads, if it is a model and there is a kernel.
    pub(super) fn runtime(&self) -> Option<Result<&Runtime, &FormatError>> {
        let (artifact, &backend) = self.artifact.model().zip(self.kernels.first())?;
        let load = || Runtime::load(artifact, backend);
        Some(self.loaded.0.get_or_init(load).as_ref())
    }

    /// Both sides, if both are models.
    pub(super) fn models(&self) -> Option<(&'a Checkpoint, &'a Checkpoint)> {
        let (expected, found) = self.sides()?;
        Some((&expected.model()?.checkpoint, &found.model()?.checkpoint))
    }

    /// Both sides, if both are certificates.
    pub(super) fn certificates(&self) -> Option<(&'a Certificate, &'a Certificate)> {
        let (expected, found) = self.sides()?;
        expected.certificate().zip(found.certificate())
    }
}
