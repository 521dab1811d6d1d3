//! Which of several layouts of one type id a file has, where nothing in it says so.
//!
//! Invariant: a layout is never guessed silently. It is forced by the user, recorded in the file, equal
//! to another copy of the model, decided by the data ([`bitnet_formats::code_length`]), or assumed; and
//! a [`LayoutEvidence`] says which.

use super::headers::records_layout;
use super::readings::{LayoutReading, LayoutSample, layout_readings};
use super::{Checkpoint, OpenOptions};
use crate::slot::{ExpertLinear, LayerSlot, Slot};
use bitnet_formats::{ErrorCode, FormatError, Packing, layouts_like};
use std::path::Path;

/// Most linears that are looked at: enough to see every kind of one and both ends of the network.
const LINEARS: usize = 14;

/// Why a layout was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutReason {
    /// The user named it.
    Forced,
    /// The file's metadata name it.
    Recorded,
    /// Its trits are those of another copy of the model; those of the others are not.
    Source,
    /// The data have far less structure under every other.
    Evidence,
    /// Nothing decides; it is what published files have.
    Assumed,
}

impl LayoutReason {
    /// The word in reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forced => "forced",
            Self::Recorded => "recorded",
            Self::Source => "source",
            Self::Evidence => "evidence",
            Self::Assumed => "assumed",
        }
    }
}

/// How the layout of an ambiguous file was found.
#[derive(Debug, Clone, PartialEq)]
pub struct LayoutEvidence {
    /// The packing taken.
    pub packing: &'static str,
    /// Why.
    pub reason: LayoutReason,
    /// Every layout of the type id, shortest description first.
    pub readings: Vec<LayoutReading>,
}

impl LayoutEvidence {
    /// The layouts that the data leave.
    pub fn candidates(&self) -> Vec<&'static str> {
        let left = self.readings.iter().filter(|r| !r.ruled_out);
        left.map(|r| r.packing).collect()
    }
}

impl Checkpoint {
    /// As [`open`](Self::open), with a look at the data where the type ids of the file leave several layouts of
    /// one length, and at `against`, another copy of the model, if there is one; [`layout`](Self::layout)
    /// says what was found.
    ///
    /// # Errors
    /// As `open`; `malformed` when no layout gives the trits of `against`.
    pub fn open_with_evidence(
        path: &Path,
        options: &OpenOptions,
        against: Option<&Self>,
    ) -> Result<Self, FormatError> {
        let mut checkpoint = Self::open(path, options)?;
        let rivals = checkpoint.rivals();
        let [taken, ..] = rivals.as_slice() else {
            return Ok(checkpoint);
        };
        let taken = taken.name();
        let readings = checkpoint.readings(&rivals)?;
        let recorded = records_layout(&checkpoint.file);
        let left: Vec<_> = readings.iter().filter(|r| !r.ruled_out).collect();
        let (packing, reason) = match (against, left.as_slice()) {
            _ if options.layout.is_some() => (taken, LayoutReason::Forced),
            (Some(against), _) => (
                equal_layout(&checkpoint, options, &rivals, against)?,
                LayoutReason::Source,
            ),
            _ if recorded => (taken, LayoutReason::Recorded),
            (None, [one]) if !one.is_tiling => (one.packing, LayoutReason::Evidence),
            (None, left) => {
                let assumed = left.iter().find(|r| r.packing == taken).or(left.first());
                (assumed.map_or(taken, |r| r.packing), LayoutReason::Assumed)
            }
        };
        if packing != taken {
            checkpoint = Self::open_among(path, &forced(options, packing), &checkpoint.file.parts)?;
        }
        checkpoint.layout = Some(LayoutEvidence {
            packing,
            reason,
            readings,
        });
        Ok(checkpoint)
    }

    /// The layouts that the linears may have, the one they were opened with first; empty when there is
    /// no other.
    fn rivals(&self) -> Vec<&'static dyn Packing> {
        let packed: Vec<_> = self.packed_linears().collect();
        let Some((_, _, taken)) = packed.first() else {
            return Vec::new();
        };
        let shapes: Vec<_> = packed.iter().map(|(_, shape, _)| *shape).collect();
        layouts_like(*taken, &shapes)
    }

    fn packed_linears(&self) -> impl Iterator<Item = (Slot, (usize, usize), &'static dyn Packing)> {
        self.slots().into_iter().filter_map(|slot| {
            let source = self.linear(slot).ok()?;
            Some((slot, (source.rows, source.cols), source.packing?))
        })
    }

    /// A few linears from both ends of the network, of every kind, for callers that want to know what the weights
    /// look like without reading them all.
    pub fn sampled_linears(&self) -> Vec<Slot> {
        let linears = self.slots().into_iter().filter(|slot| slot.is_ternary());
        let all: Vec<Slot> = linears.collect();
        let step = all.len().div_ceil(LINEARS).max(1);
        // a step that is no multiple of the linears of a layer meets every kind
        let repeats = step.is_multiple_of(self.config.block(0).linears().len().max(1));
        all.into_iter()
            .step_by(step.saturating_add(usize::from(repeats)))
            .collect()
    }

    /// What some of the linears look like under each layout, the shortest description first.
    fn readings(&self, rivals: &[&'static dyn Packing]) -> Result<Vec<LayoutReading>, FormatError> {
        let sampled = self.sampled_linears();
        let mut samples = Vec::new();
        for (slot, (rows, cols), _) in self.packed_linears() {
            if sampled.contains(&slot) {
                samples.push(LayoutSample {
                    bytes: self.file.read(&self.linear(slot)?.info)?,
                    rows,
                    cols,
                    gains: self.input_gains(slot)?,
                });
            }
        }
        Ok(layout_readings(rivals, &samples))
    }

    /// The gain of the norm that feeds a linear: columns of weights follow it.
    fn input_gains(&self, slot: Slot) -> Result<Option<Vec<f32>>, FormatError> {
        let Slot::Layer(layer, slot) = slot else {
            return Ok(None);
        };
        let norm = match slot {
            LayerSlot::QProj | LayerSlot::KProj | LayerSlot::VProj => LayerSlot::InputNorm,
            LayerSlot::OProj => LayerSlot::AttnSubNorm,
            LayerSlot::GateProj | LayerSlot::UpProj => LayerSlot::PostAttentionNorm,
            LayerSlot::Expert(_, ExpertLinear::Gate | ExpertLinear::Up) => {
                LayerSlot::PostAttentionNorm
            }
            LayerSlot::DownProj => LayerSlot::FfnSubNorm,
            _ => return Ok(None),
        };
        let norm = Slot::Layer(layer, norm);
        if !self.sources.contains_key(&norm) {
            return Ok(None); // this network has no such norm
        }
        let tensor = self.dense(norm)?;
        let mut gains = vec![0.0; tensor.shape.iter().product()];
        tensor.widen(&tensor.bytes, &mut gains)?;
        Ok(Some(gains))
    }
}

fn forced(options: &OpenOptions, layout: &str) -> OpenOptions {
    OpenOptions {
        layout: Some(layout.to_owned()),
        ..options.clone()
    }
}

/// The first layout under which every linear has the trits of `against`; several have them only where the
/// trits are the same in every order.
fn equal_layout(
    checkpoint: &Checkpoint,
    options: &OpenOptions,
    rivals: &[&'static dyn Packing],
    against: &Checkpoint,
) -> Result<&'static str, FormatError> {
    let path = &checkpoint.path;
    for packing in rivals {
        let options = forced(options, packing.name());
        let copy = Checkpoint::open_among(path, &options, &checkpoint.file.parts)?;
        let mut same = copy.config.slots() == against.config.slots();
        for (slot, shape, _) in copy.packed_linears() {
            if !same {
                break;
            }
            // code 3 under one layout is code 3 under all, so a conversion reports it too
            let (found, expected) = (copy.ternary(slot)?, against.ternary(slot)?);
            same = shape == (expected.rows(), expected.cols()) && found.trits() == expected.trits();
        }
        if same {
            return Ok(packing.name());
        }
    }
    let names: Vec<_> = rivals.iter().map(|p| p.name()).collect();
    let message = format!(
        "expected the trits of {} under one of {}, found others under each",
        against.path.display(),
        names.join(", ")
    );
    Err(FormatError::new(ErrorCode::Malformed, message)
        .in_file(path)
        .hint("these are two models; bitnet-verify --against shows where they differ"))
}
