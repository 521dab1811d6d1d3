//! Which of several layouts of one type id a file has, where nothing in it says so.
//!
//! Invariant: a layout is never guessed silently. It is forced by the user, recorded in the file, equal
//! to another copy of the model, decided by the data ([`bitnet_formats::code_length`]), or assumed; and
//! whoever reads a [`LayoutEvidence`] learns which.

use super::{Checkpoint, LinearRule, OpenOptions};
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{
    DECISIVE_BITS, ErrorCode, FormatError, GGUF_LAYOUT_KEY, PackedTensor, Packing, code_length,
    same_layout_id,
};
use rayon::prelude::*;
use std::path::Path;

/// Most linears that are looked at: enough to see every kind of one and both ends of the network.
const LINEARS: usize = 14;

/// Trits that are looked at in each: a few hundred rows.
const TRITS: usize = 1 << 20;

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

/// What the data look like under one layout.
#[derive(Debug, Clone, PartialEq)]
pub struct LayoutReading {
    /// The packing.
    pub packing: &'static str,
    /// Bits per weight of the shortest description found; `None` when its bytes are no trits.
    pub bits_per_weight: Option<f64>,
    /// The structure that made it short, where most of the linears found it.
    pub model: &'static str,
    /// Whether the data speak against it.
    pub ruled_out: bool,
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
        let recorded = checkpoint.file.metadata.get(GGUF_LAYOUT_KEY).is_some();
        let left: Vec<_> = readings.iter().filter(|r| !r.ruled_out).collect();
        let (packing, reason) = match (against, left.as_slice()) {
            _ if options.layout.is_some() => (taken, LayoutReason::Forced),
            (Some(against), _) => (
                equal_layout(path, options, &rivals, against)?,
                LayoutReason::Source,
            ),
            _ if recorded => (taken, LayoutReason::Recorded),
            (None, [one]) => (one.packing, LayoutReason::Evidence),
            (None, _) => (taken, LayoutReason::Assumed),
        };
        if packing != taken {
            checkpoint = Self::open(path, &forced(options, packing))?;
        }
        checkpoint.layout = Some(LayoutEvidence {
            packing,
            reason,
            readings,
        });
        Ok(checkpoint)
    }

    /// The layouts that the linears may have, the one they were opened with first; empty when there is
    /// one only.
    fn rivals(&self) -> Vec<&'static dyn Packing> {
        let packed: Vec<_> = self.packed_linears().collect();
        let Some((_, _, taken)) = packed.first() else {
            return Vec::new();
        };
        let lengths = |packing: &dyn Packing| {
            let all = packed.iter();
            let all = all.map(|(_, (rows, cols), _)| packing.stored_len(*rows, *cols).ok());
            all.collect::<Option<Vec<u64>>>()
        };
        let Some(own) = lengths(*taken) else {
            return Vec::new();
        };
        let mut rivals = vec![*taken];
        let others = same_layout_id(*taken).into_iter();
        rivals.extend(
            others.filter(|p| p.name() != taken.name() && lengths(*p).as_ref() == Some(&own)),
        );
        if rivals.len() < 2 { Vec::new() } else { rivals }
    }

    fn packed_linears(&self) -> impl Iterator<Item = (Slot, (usize, usize), &'static dyn Packing)> {
        self.slots().into_iter().filter_map(|slot| {
            let source = self.linear(slot).ok()?;
            match source.rule {
                LinearRule::Packed { packing, .. } => {
                    Some((slot, (source.rows, source.cols), packing))
                }
                _ => None,
            }
        })
    }

    /// A few linears from both ends of the network, of every kind: for whoever wants to know what the weights
    /// look like without reading them all.
    pub fn sampled_linears(&self) -> Vec<Slot> {
        let linears = self.slots().into_iter().filter(|slot| slot.is_ternary());
        let all: Vec<Slot> = linears.collect();
        let step = all.len().div_ceil(LINEARS).max(1);
        // a step that is no multiple of the linears of a layer meets every kind
        let repeats = step.is_multiple_of(LayerSlot::LINEARS.len());
        all.into_iter()
            .step_by(step + usize::from(repeats))
            .collect()
    }

    /// What some of the linears look like under each layout, the shortest description first.
    fn readings(&self, rivals: &[&'static dyn Packing]) -> Result<Vec<LayoutReading>, FormatError> {
        let sample = self.sampled_linears();
        let mut total = 0;
        let mut lengths = vec![(0.0, Vec::new()); rivals.len()];
        let packed = self.packed_linears();
        for (slot, (rows, cols), _) in packed.filter(|(slot, ..)| sample.contains(slot)) {
            let gains = self.input_gains(slot)?;
            // whole packed rows of every layout
            let rows_read = (TRITS / cols.max(1))
                .next_multiple_of(4)
                .clamp(4, rows.max(4));
            let count = rows_read.min(rows) * cols;
            total += count;
            let found: Vec<_> = rivals
                .par_iter()
                .map(|packing| {
                    let tensor = PackedTensor {
                        bytes: self.file.bytes(&self.linear(slot).ok()?.info),
                        rows,
                        cols,
                        outside: None,
                    };
                    let mut trits = vec![0; count];
                    packing.unpack_rows(&tensor, 0, &mut trits).ok()?;
                    Some(code_length(&trits, cols, gains.as_deref()))
                })
                .collect();
            for ((bits, models), found) in lengths.iter_mut().zip(found) {
                *bits += found.map_or(f64::INFINITY, |f| f.bits);
                models.extend(found.map(|f| f.model));
            }
        }
        let shortest = lengths.iter().map(|l| l.0).fold(f64::INFINITY, f64::min);
        let mut readings: Vec<_> = rivals
            .iter()
            .zip(&lengths)
            .map(|(packing, (bits, models))| LayoutReading {
                packing: packing.name(),
                bits_per_weight: bits.is_finite().then(|| bits / total.max(1) as f64),
                model: most_common(models),
                ruled_out: bits.is_infinite() || *bits > shortest + DECISIVE_BITS,
            })
            .collect();
        // stable: of equal ones the one that was taken stays first
        readings.sort_by(|a, b| {
            let bits = |r: &LayoutReading| r.bits_per_weight.unwrap_or(f64::INFINITY);
            bits(a).total_cmp(&bits(b))
        });
        Ok(readings)
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
            LayerSlot::DownProj => LayerSlot::FfnSubNorm,
            _ => return Ok(None),
        };
        let norm = Slot::Layer(layer, norm);
        if !self.sources.contains_key(&norm) {
            return Ok(None); // this network has no such norm
        }
        let tensor = self.dense(norm)?;
        let mut gains = vec![0.0; tensor.shape.iter().product()];
        tensor.widen(tensor.bytes, &mut gains)?;
        Ok(Some(gains))
    }
}

fn forced(options: &OpenOptions, layout: &str) -> OpenOptions {
    OpenOptions {
        layout: Some(layout.to_owned()),
        ..options.clone()
    }
}

fn most_common(models: &[&'static str]) -> &'static str {
    let count = |model: &str| models.iter().filter(|m| **m == model).count();
    models
        .iter()
        .copied()
        .max_by_key(|m| count(m))
        .unwrap_or("trits")
}

/// The first layout under which every linear has the trits of `against`; several have them only where the
/// trits are the same in every order.
fn equal_layout(
    path: &Path,
    options: &OpenOptions,
    rivals: &[&'static dyn Packing],
    against: &Checkpoint,
) -> Result<&'static str, FormatError> {
    for packing in rivals {
        let copy = Checkpoint::open(path, &forced(options, packing.name()))?;
        let mut same = copy.config.slots() == against.config.slots();
        for (slot, shape, _) in copy.packed_linears() {
            if !same {
                break;
            }
            // code 3 under one layout is code 3 under all: whoever converts would say so, too
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
