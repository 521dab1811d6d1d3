//! Why a record and this model differ: which one thing, done otherwise, gives what was recorded.
//!
//! Invariant: every operator is judged from its own recorded input, by the oracle, so a fault is named where it
//! begins and nowhere behind it. A name is given only if that one change takes the error down to the noise of
//! arithmetic; several that do are all named.

#![deny(clippy::indexing_slicing)]

use super::hypotheses::{Hypothesis, begins_at, closest, hypotheses};
use super::rotated;
use super::swap;
use crate::diagnose::fault::{Fault, FaultName};
use crate::diagnose::naming::of_scales;
use crate::reference::divergence::relative_error;
use crate::reference::golden::{Golden, Recorded};
use crate::reference::oracle::{Deviation, Layer, Operator, Oracle, Replayed, RotatedAs};
use crate::reference::thresholds::Thresholds;
use crate::verdict::Difference;
use bitnet_checkpoint::{Checkpoint, LayerSlot, Mixer, Slot};
use bitnet_formats::FormatError;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// The row of the report that judges the trace.
pub const TRACE: &str = "golden-trace";

/// The prompt that traces are of.
const TRACED: &str = "short";

/// Relative error of embeddings and head, which multiply nothing that is rounded.
const EDGE_ERROR: f64 = 1e-5;

/// Relative error of what the states of a layer answer: others sum in f32, and in another order.
const STATE_ERROR: f64 = 1e-5;

/// A name has to take an error down by this factor at least: right operators leave at most 4e-7 on what `transformers`
/// recorded, and nothing is asked below the bound of 1e-6.
const BETTER: f64 = 3.0;

/// A place that departs, and why, where the cause is its own.
type Found = (Difference, Option<Fault>);

/// What a trace says.
#[derive(Debug, Clone, Default)]
pub struct Diagnosis {
    /// Places compared.
    pub compared: usize,
    /// The largest error of an operator from its recorded input.
    pub worst: f64,
    /// Places that depart, in the order of the forward pass.
    pub departures: Vec<Difference>,
    /// Why, one for each departure that has a cause of its own.
    pub faults: Vec<Fault>,
    /// What the comparison ended at.
    pub error: Option<FormatError>,
}

/// Compares every recorded place with what the oracle makes of the place before it, and explains what departs.
///
/// A tensor that cannot be read ends the comparison; what was found before stays.
pub fn of_trace(checkpoint: &Checkpoint, golden: &Golden, bounds: &Thresholds) -> Diagnosis {
    let by_heads = by_tokens(checkpoint, golden);
    let mut patient = Patient {
        checkpoint,
        oracle: Oracle::new(checkpoint),
        golden,
        by_heads: &by_heads,
        bounds,
        found: Diagnosis::default(),
    };
    patient.found.error = patient.compare_all().err();
    rotated::settle(&checkpoint.config, &mut patient.found.faults);
    patient.found
}

/// The outputs of the norms of queries and keys where a program norms them head after head, not token after token:
/// put into the order of tokens, which is that of the linears in front of them.
fn by_tokens(checkpoint: &Checkpoint, golden: &Golden) -> Vec<(LayerSlot, Recorded)> {
    let config = &checkpoint.config;
    let mut found = Vec::new();
    for (norm, linear, heads) in [
        (
            LayerSlot::QNorm,
            LayerSlot::QProj,
            config.num_attention_heads,
        ),
        (
            LayerSlot::KNorm,
            LayerSlot::KProj,
            config.num_key_value_heads,
        ),
    ] {
        let recorded = |slot: LayerSlot, end| {
            let module = module(checkpoint, golden, 0, slot)?;
            golden.trace.get(&format!("{module}.{end}"))
        };
        let (Some(x), Some(y)) = (recorded(norm, "in"), recorded(norm, "out")) else {
            continue;
        };
        let Some(of_linear) = recorded(linear, "out") else {
            continue;
        };
        let turned = |recorded: &Recorded| {
            let tokens = recorded.rows.checked_div(heads).unwrap_or(0);
            let rows = || recorded.values.chunks(recorded.cols.max(1));
            // the rows of a token are as far apart as there are tokens
            let of_token = |token| rows().skip(token).step_by(tokens.max(1));
            let values = (0..tokens).flat_map(of_token).flatten();
            values.copied().collect::<Vec<f32>>()
        };
        let fits = x.cols == y.cols && x.rows == y.rows && x.rows.is_multiple_of(heads);
        // what is normed behind rotation is the output of the linear at position 0 only
        let first = |values: &[f32]| values.get(..heads * x.cols).map(<[f32]>::to_vec);
        let token = first(&of_linear.values);
        if fits && token.is_some() && first(&x.values) != token && first(&turned(x)) == token {
            let values = turned(y);
            found.push((norm, Recorded { values, ..*y }));
        }
    }
    found
}

/// The tensor at which an operator is named.
fn slot_of(operator: Operator) -> LayerSlot {
    match operator {
        Operator::Norm(slot) | Operator::Linear(slot) => slot,
        Operator::Attention => LayerSlot::QProj,
        Operator::AddAttention => LayerSlot::OProj,
        Operator::Activation => LayerSlot::GateProj,
        Operator::AddMlp => LayerSlot::DownProj,
    }
}

/// What an operator does, for a sentence.
fn step(operator: Operator) -> &'static str {
    match operator {
        Operator::Norm(_) => "norm",
        Operator::Linear(_) => "linear",
        Operator::Attention => "attention",
        Operator::AddAttention => "residual stream behind attention",
        Operator::Activation => "activation function",
        Operator::AddMlp => "output of the layer",
    }
}

/// A module of a layer as the trace calls it: by the checkpoint's own name where that is in it, else by the
/// canonical one.
fn module(
    checkpoint: &Checkpoint,
    golden: &Golden,
    layer: usize,
    slot: LayerSlot,
) -> Option<String> {
    let own = (checkpoint.family.tensor_name)(Slot::Layer(0, slot));
    let own = own.split_once("layers.0.").map(|(_, name)| name);
    let own = own.and_then(|name| name.strip_suffix(".weight"));
    let canonical = slot.canonical();
    let names = own.into_iter().chain([&*canonical]);
    let names = names.flat_map(|n| [n.to_owned(), n.replace("_proj.norm", "_proj.rms_norm")]);
    let mut names = names.map(|name| format!("layer{layer}.{name}"));
    names.find(|name| golden.trace.contains_key(&format!("{name}.out")))
}

struct Patient<'a> {
    checkpoint: &'a Checkpoint,
    oracle: Oracle<'a>,
    golden: &'a Golden,
    by_heads: &'a [(LayerSlot, Recorded)],
    bounds: &'a Thresholds,
    found: Diagnosis,
}

impl<'a> Patient<'a> {
    /// Every recorded place, in the order of the forward pass.
    fn compare_all(&mut self) -> Result<(), FormatError> {
        self.embeddings()?;
        self.unknown_norms();
        for layer in 0..self.checkpoint.config.num_hidden_layers {
            self.layer(layer)?;
        }
        self.output_norm()?;
        self.head()
    }

    fn recorded(&self, name: &str) -> Option<&'a Recorded> {
        self.golden.trace.get(name)
    }

    /// A module of a layer as the trace calls it: by the checkpoint's own name where that is in it, else by the
    /// canonical one.
    fn module(&self, layer: usize, slot: LayerSlot) -> Option<String> {
        module(self.checkpoint, self.golden, layer, slot)
    }

    fn end(&self, layer: usize, slot: LayerSlot, end: &str) -> Option<&'a Recorded> {
        self.recorded(&format!("{}.{end}", self.module(layer, slot)?))
    }

    /// The recorded output of an operator.
    fn output(&self, layer: usize, operator: Operator) -> Option<&'a Recorded> {
        use LayerSlot::{
            AttnSubNorm, DownProj, FfnSubNorm, GateProj, GatedNorm, InProjQkv, InputNorm,
        };
        use LayerSlot::{OProj, OutProj, PostAttentionNorm, QProj};
        if operator == Operator::AddMlp {
            // the record's last hidden state is after the final norm
            return match layer + 1 == self.checkpoint.config.num_hidden_layers {
                true => self.recorded("final_norm.in"),
                false => self.recorded(&format!("hidden_states.{}", layer + 1)),
            };
        }
        let end = |slot, end| self.end(layer, slot, end);
        // what goes into a linear, its own norm excluded
        let into = |norm, there: bool, linear| {
            let own = end(norm, "in");
            own.or_else(|| end(linear, "in").filter(|_| !there))
        };
        let recurrent = self.is_recurrent(layer);
        let config = &self.checkpoint.config;
        match operator {
            Operator::Norm(slot) => {
                let reader = match slot {
                    InputNorm if recurrent => Some(InProjQkv),
                    InputNorm => Some(QProj),
                    GatedNorm => Some(OutProj),
                    PostAttentionNorm => Some(GateProj),
                    AttnSubNorm => Some(OProj),
                    FfnSubNorm => Some(DownProj),
                    _ => None,
                };
                let turned = self.by_heads.iter().filter(|_| layer == 0);
                let turned = turned.into_iter().find(|(norm, _)| *norm == slot);
                let own = turned.map(|(_, y)| y).or_else(|| end(slot, "out"));
                own.or_else(|| end(reader?, "in"))
            }
            Operator::Linear(slot) => end(slot, "out"),
            Operator::Attention => into(AttnSubNorm, config.attn_sub_norm, OProj),
            Operator::Activation => into(FfnSubNorm, config.ffn_sub_norm, DownProj),
            Operator::AddAttention => end(PostAttentionNorm, "in"),
            Operator::AddMlp => None,
        }
    }

    /// Whether a layer has a recurrent state in place of attention.
    fn is_recurrent(&self, layer: usize) -> bool {
        let mixer = self.checkpoint.config.block(layer).mixer;
        matches!(mixer, Mixer::GatedDeltaNet(_))
    }

    fn departs(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.found.departures.push(Difference::new(place, what));
    }

    /// Notes an error at a tensor outside the layers; whether it is above the bound.
    fn compare(&mut self, slot: Slot, error: f64, bound: f64) -> bool {
        self.found.compared += 1;
        self.found.worst = self.found.worst.max(error);
        if error <= bound {
            return false;
        }
        let what = format!("relative error {error:.2e}, expected at most {bound:.0e}");
        self.departs(slot.to_string(), what);
        true
    }

    fn embeddings(&mut self) -> Result<(), FormatError> {
        let (Some(expected), Some(ids)) =
            (self.recorded("hidden_states.0"), self.golden.ids(TRACED))
        else {
            return Ok(());
        };
        let found = self.oracle.embeddings(ids)?;
        let error = relative_error(&expected.values, &found);
        let slot = Slot::TokenEmbeddings;
        if !self.compare(slot, error, EDGE_ERROR) {
            return Ok(());
        }
        let vocab = self.checkpoint.config.vocab_size;
        // prompts of a record need not fit the model
        let is_token = |id: &u32| usize::try_from(*id).is_ok_and(|id| id < vocab);
        let other = |ids: Option<Vec<u32>>| match ids.filter(|ids| ids.iter().all(is_token)) {
            Some(ids) => self.oracle.embeddings(&ids).map(Some),
            None => Ok(None),
        };
        let fits = |found: &Option<Vec<f32>>| {
            let found = found.as_deref().unwrap_or_default();
            relative_error(&expected.values, found) <= EDGE_ERROR
        };
        let next = other(ids.iter().map(|id| id.checked_add(1)).collect())?;
        let previous = other(ids.iter().map(|id| id.checked_sub(1)).collect())?;
        let shift = shifted(&expected.values, &found, expected.cols, EDGE_ERROR);
        let (kind, what) = if let Some(text) = shift {
            (FaultName::TokenOffset, format!("embeddings: {text}"))
        } else if fits(&next) {
            (
                FaultName::TokenOffset,
                "the embedding expected is that of the next id".to_owned(),
            )
        } else if fits(&previous) {
            (
                FaultName::TokenOffset,
                "the embedding expected is that of the id before".to_owned(),
            )
        } else if let Some(named) = self.rotated_rows(ids, expected, &found)? {
            named
        } else {
            let width = expected.cols.max(1);
            let rows = || expected.values.chunks(width).zip(found.chunks(width));
            let differ = rows().filter(|(e, f)| relative_error(e, f) > EDGE_ERROR);
            let what = format!(
                "embeddings of {} of {} tokens",
                differ.count(),
                rows().count()
            );
            (FaultName::ChangedValues, what)
        };
        self.found.faults.push(Fault::at(kind, TRACE, slot, what));
        Ok(())
    }

    /// What recorded rows of embeddings say of a rotation.
    fn rotated_rows(
        &self,
        ids: &[u32],
        expected: &Recorded,
        found: &[f32],
    ) -> Result<Option<(FaultName, String)>, FormatError> {
        let config = &self.checkpoint.config;
        let Some(rotation) = config.rotation.as_deref() else {
            let block = rotated::rotated_rows(&expected.values, found, expected.cols);
            return Ok(block.map(|block| {
                let what = format!("embeddings: expected rows rotated in blocks of {block} features, found the rows as stored and no key of a rotation");
                (FaultName::RotationMissing, what)
            }));
        };
        for (name, says, how) in rotated::changes(config, rotation) {
            if how == RotatedAs::Nothing {
                continue; // of rows alone, the same as rows that are not turned back
            }
            let with = self
                .oracle
                .embeddings_as(ids, Some(Deviation::Rotation(how)))?;
            if relative_error(&expected.values, &with) <= EDGE_ERROR {
                return Ok(Some((name, format!("embeddings: {says}"))));
            }
        }
        let signs = rotated::other_signs(&expected.values, found, expected.cols);
        Ok(signs.filter(|_| rotation.embeddings).map(|count| {
            let what = format!(
                "embeddings: expected other signs in {count} of {} columns",
                expected.cols
            );
            (FaultName::RotationSigns, what)
        }))
    }

    /// What recorded logits say of the rotation of the output head.
    fn rotated_head(
        &self,
        x: &Recorded,
        expected: &Recorded,
    ) -> Result<Option<(FaultName, String)>, FormatError> {
        let config = &self.checkpoint.config;
        let Some(rotation) = config.rotation.as_deref() else {
            return Ok(None);
        };
        for (name, says, how) in rotated::changes(config, rotation) {
            if matches!(how, RotatedAs::Nothing | RotatedAs::Embeddings) {
                continue; // of the head alone, the same as another input of it
            }
            let with = self
                .oracle
                .head_as(&[&x.values], Some(Deviation::Rotation(how)))?;
            let with = with.first().map_or(&[][..], |with| with);
            if relative_error(&expected.values, with) <= EDGE_ERROR {
                return Ok(Some((name, format!("output head: {says}"))));
            }
        }
        Ok(None)
    }

    /// Norms that were recorded and that this model does not have.
    fn unknown_norms(&mut self) {
        let config = &self.checkpoint.config;
        for (there, norm) in [
            (config.attn_sub_norm, LayerSlot::AttnSubNorm),
            (config.ffn_sub_norm, LayerSlot::FfnSubNorm),
        ] {
            if there || self.end(0, norm, "out").is_none() {
                continue;
            }
            let slot = Slot::Layer(0, norm);
            let what = format!("expected {}, found none", norm.canonical());
            self.departs(slot.to_string(), what.clone());
            let fault = Fault::at(FaultName::MissingSubNorm, TRACE, slot, what);
            self.found.faults.push(fault);
        }
    }

    fn layer(&mut self, index: usize) -> Result<(), FormatError> {
        let Some(x) = self.recorded(&format!("hidden_states.{index}")) else {
            return Ok(());
        };
        let (compared, worst, found) = self.replay(index, x)?;
        self.found.compared += compared;
        self.found.worst = self.found.worst.max(worst);
        for (departure, fault) in found {
            self.found.departures.push(departure);
            self.found.faults.extend(fault);
        }
        Ok(())
    }

    /// Places compared in a layer, the largest error, and what departs.
    fn replay(&self, index: usize, x: &Recorded) -> Result<(usize, f64, Vec<Found>), FormatError> {
        let recorded = |operator| self.output(index, operator);
        let linears = self.checkpoint.config.block(index).linears();
        let is_recorded = |slot: &LayerSlot| recorded(Operator::Linear(*slot)).is_some();
        let sharp = linears.iter().any(is_recorded);
        let layer = self.oracle.load_layer(index)?;
        let replayed = layer.replay(&x.values, None, recorded)?;
        let error = |r: &Replayed| if sharp { r.error } else { r.median_error };
        let worst = replayed.iter().map(error).fold(0.0, f64::max);
        let is_off = |r: &&Replayed| self.is_off(r, sharp);
        let departing: Vec<&Replayed> = replayed.iter().filter(is_off).collect();
        if departing.is_empty() {
            return Ok((replayed.len(), worst, Vec::new()));
        }
        let all = hypotheses(&self.checkpoint.config);
        // what is not finite under a hypothesis is not explained by it
        let tried = |h: &Hypothesis| layer.replay(&x.values, Some(h.deviation), recorded).ok();
        let tried: Vec<_> = all.par_iter().map(tried).collect();
        let mut found = Vec::new();
        for departs in departing {
            // the figure that is off
            let by_median = !sharp && departs.median_error > self.bounds.typical_layer_error;
            let figure = |r: &Replayed| if by_median { r.median_error } else { r.error };
            let mut within = Vec::new();
            for (hypothesis, tried) in all.iter().zip(&tried) {
                let mut there = tried.iter().flatten();
                let with = there.find(|r| r.operator == departs.operator);
                let with = with.filter(|with| !self.is_off(with, sharp));
                within.extend(with.map(|with| (figure(with), hypothesis.clone())));
            }
            let named = closest(figure(departs), BETTER, within);
            found.extend(match sharp {
                true => self.operator(&layer, departs, named)?,
                false => self.whole_layer(index, departs, named),
            });
        }
        Ok((replayed.len(), worst, found))
    }

    /// Whether an error is more than arithmetic makes. Where linears between the recorded places round their
    /// inputs, a token may have a flipped activation: then the token in the middle speaks for the others.
    fn is_off(&self, replayed: &Replayed, sharp: bool) -> bool {
        let bounds = self.bounds;
        match (sharp, replayed.operator) {
            (true, Operator::Norm(LayerSlot::GatedNorm)) => replayed.error > STATE_ERROR,
            (true, Operator::Norm(_) | Operator::Linear(_)) => replayed.error > bounds.linear_error,
            (true, _) => replayed.error > bounds.typical_layer_error,
            (false, _) => {
                replayed.median_error > bounds.typical_layer_error
                    || replayed.error > bounds.layer_error
            }
        }
    }

    /// An operator of layer 0 that departs from its recorded input.
    fn operator(
        &self,
        layer: &Layer<'_>,
        replayed: &Replayed,
        named: Vec<Hypothesis>,
    ) -> Result<Option<Found>, FormatError> {
        let operator = replayed.operator;
        let begins = named.first().map(|h| begins_at(h.deviation));
        let role = match (operator, begins) {
            // what stands between the linears and this norm is part of it
            (Operator::Norm(LayerSlot::GatedNorm), Some(begins)) => begins,
            _ => slot_of(operator),
        };
        let slot = Slot::Layer(layer.index(), role);
        let bound = match operator {
            Operator::Norm(LayerSlot::GatedNorm) => STATE_ERROR,
            Operator::Norm(_) | Operator::Linear(_) => self.bounds.linear_error,
            _ => self.bounds.typical_layer_error,
        };
        let what = format!(
            "{}: relative error {:.2e}, expected at most {bound:.0e}",
            step(operator),
            replayed.error
        );
        let departure = Difference::new(slot.to_string(), what);
        if let Some(fault) = Hypothesis::fault(&named, TRACE, slot) {
            return Ok(Some((departure, Some(fault))));
        }
        // what reads the output of a norm that this model lacks
        let config = &self.checkpoint.config;
        let lacks = |there: bool, norm| !there && self.end(0, norm, "out").is_some();
        let starved = match operator {
            Operator::Linear(LayerSlot::OProj) => {
                lacks(config.attn_sub_norm, LayerSlot::AttnSubNorm)
            }
            Operator::Linear(LayerSlot::DownProj) => {
                lacks(config.ffn_sub_norm, LayerSlot::FfnSubNorm)
            }
            _ => false,
        };
        if starved {
            return Ok(Some((departure, None)));
        }
        let named = match (operator, self.output(layer.index(), operator)) {
            (Operator::Linear(_), Some(expected)) => self.weights(slot, expected, replayed)?,
            _ => None,
        };
        let (kind, what) = named.unwrap_or_else(|| {
            let what = format!(
                "{} departs: relative error {:.2e}",
                step(operator),
                replayed.error
            );
            (FaultName::Unexplained, what)
        });
        Ok(Some((departure, Some(Fault::at(kind, TRACE, slot, what)))))
    }

    /// What a linear's output says of its weights.
    fn weights(
        &self,
        slot: Slot,
        expected: &Recorded,
        replayed: &Replayed,
    ) -> Result<Option<(FaultName, String)>, FormatError> {
        let (e, f) = (&expected.values, &replayed.output);
        if e.len() != f.len() {
            return Ok(None);
        }
        let matrix = self.checkpoint.ternary(slot)?;
        // one factor for all, the least squares of it
        let product = |a: &[f32], b: &[f32]| -> f64 {
            a.iter()
                .zip(b)
                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                .sum()
        };
        let factor = product(e, f) / product(f, f);
        let scaled: Vec<f32> = f.iter().map(|f| (f64::from(*f) * factor) as f32).collect();
        if relative_error(e, &scaled) <= self.bounds.linear_error {
            let scales = matrix.normal_scales();
            let pairs = scales.as_slice().iter();
            let pairs = pairs.map(|s| ((f64::from(*s) * factor) as f32, *s));
            return Ok(of_scales(pairs.filter(|(_, s)| *s != 0.0)));
        }
        let input = match slot {
            Slot::Layer(layer, role) => self.end(layer, role, "in"),
            _ => None,
        };
        let truth = self.golden.truth_of(self.checkpoint, slot);
        let swapped = input.and_then(|x| swap::find(&matrix, x, expected, truth));
        if swapped.is_some() {
            return Ok(swapped.map(|what| (FaultName::SwappedTrits, what)));
        }
        let rows = expected.cols.max(1);
        let mut differing = BTreeSet::new();
        for (e, f) in e.chunks(rows).zip(f.chunks(rows)) {
            let largest = e.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let off = |(e, f): (&f32, &f32)| (e - f).abs() > 1e-5 * largest;
            let pairs = e.iter().zip(f).enumerate();
            differing.extend(pairs.filter(|(_, pair)| off(*pair)).map(|(row, _)| row));
        }
        let Some(first) = differing.first().filter(|_| 2 * differing.len() < rows) else {
            return Ok(None);
        };
        let what = format!(
            "{} of {rows} rows depart, the first is row {first}",
            differing.len()
        );
        Ok(Some((FaultName::Unexplained, what)))
    }

    /// A layer of which only input and output were recorded. A departure that nothing explains counts only
    /// beyond what flipped activations make of a layer.
    fn whole_layer(
        &self,
        index: usize,
        replayed: &Replayed,
        named: Vec<Hypothesis>,
    ) -> Option<Found> {
        let place = format!("model.layers.{index}");
        let (median, error) = (replayed.median_error, replayed.error);
        let what = format!("relative error {error:.2e}, of the median token {median:.2e}");
        let departure = Difference::new(&place, what);
        if let Some(first) = named.first() {
            let slot = Slot::Layer(index, begins_at(first.deviation));
            return Some((departure, Hypothesis::fault(&named, TRACE, slot)));
        }
        if error <= self.bounds.layer_error {
            return None;
        }
        // what is wired otherwise is so in every layer, and two such things at once no hypothesis explains
        let known = |f: &Fault| f.name != FaultName::Unexplained && f.layer < Some(index);
        if self
            .found
            .faults
            .iter()
            .any(|f| f.layer.is_some() && known(f))
        {
            return Some((departure, None));
        }
        let mut fault = Fault::of_key(
            FaultName::Unexplained,
            TRACE,
            &place,
            departure.what.clone(),
        );
        fault.layer = Some(index);
        Some((departure, Some(fault)))
    }

    fn output_norm(&mut self) -> Result<(), FormatError> {
        let layers = self.checkpoint.config.num_hidden_layers;
        let last = self.recorded(&format!("hidden_states.{layers}"));
        let (Some(x), Some(expected)) = (self.recorded("final_norm.in"), last) else {
            return Ok(());
        };
        let oracle = self.oracle;
        let error = |how| {
            let found = oracle.output_norm_as(&[&x.values], how)?;
            let found = found.first().map_or(&[][..], |found| found);
            Ok::<f64, FormatError>(relative_error(&expected.values, found))
        };
        let (slot, bound) = (Slot::OutputNorm, self.bounds.linear_error);
        let without = error(None)?;
        if self.compare(slot, without, bound) {
            let mut within = Vec::new();
            for hypothesis in hypotheses(&self.checkpoint.config) {
                let with = error(Some(hypothesis.deviation))?;
                if with <= bound {
                    within.push((with, hypothesis));
                }
            }
            let named = closest(without, BETTER, within);
            let fault = Hypothesis::fault(&named, TRACE, slot);
            let what = format!("norm departs: relative error {without:.2e}");
            let unexplained = || Fault::at(FaultName::Unexplained, TRACE, slot, what);
            self.found.faults.push(fault.unwrap_or_else(unexplained));
        }
        Ok(())
    }

    /// The output head on the recorded final state.
    fn head(&mut self) -> Result<(), FormatError> {
        let config = &self.checkpoint.config;
        let last = self.recorded(&format!("hidden_states.{}", config.num_hidden_layers));
        let (Some(x), Some(expected)) = (last, self.golden.logits.get(TRACED)) else {
            return Ok(());
        };
        if x.rows != expected.rows {
            return Ok(());
        }
        let first = |mut all: Vec<Vec<f32>>| all.pop().unwrap_or_default();
        let found = first(self.oracle.head_of(&[&x.values])?);
        let slot = Slot::OutputHead;
        let error = relative_error(&expected.values, &found);
        let is_off = self.compare(slot, error, EDGE_ERROR);
        // a table that is both has its name already
        let known = |f: &Fault| f.slot == Some(Slot::TokenEmbeddings);
        if !is_off || (config.tie_word_embeddings && self.found.faults.iter().any(known)) {
            return Ok(());
        }
        let shift = shifted(&expected.values, &found, expected.cols, EDGE_ERROR);
        let (kind, what) = if let Some(text) = shift {
            (FaultName::TokenOffset, format!("logits: {text}"))
        } else if let Some(named) = self.rotated_head(x, expected)? {
            named
        } else {
            let tied = match config.tie_word_embeddings {
                true => None,
                false => Some(first(
                    self.oracle.head_by(Slot::TokenEmbeddings, &[&x.values])?,
                )),
            };
            let is_tied = tied.is_some_and(|f| relative_error(&expected.values, &f) <= EDGE_ERROR);
            let what = match (is_tied, config.tie_word_embeddings) {
                (true, _) => "expected the embeddings as head, found a head of its own",
                (_, true) => {
                    "the final state is as recorded, its logits are not: expected another head than the embeddings"
                }
                (_, false) => {
                    "the final state is as recorded, its logits are not: expected another head"
                }
            };
            (FaultName::OutputHead, what.to_owned())
        };
        self.found.faults.push(Fault::at(kind, TRACE, slot, what));
        Ok(())
    }
}

/// Whether the rows expected are those found one place further on, or one before.
fn shifted(expected: &[f32], found: &[f32], cols: usize, bound: f64) -> Option<String> {
    let rows = expected.len() / cols.max(1);
    if rows < 2 || expected.len() != found.len() {
        return None;
    }
    let (first, last) = (cols, expected.len().checked_sub(cols)?);
    let fits = |e: &[f32], f: &[f32]| relative_error(e, f) <= bound;
    if fits(expected.get(..last)?, found.get(first..)?) {
        return Some("what is expected at a position is found at the next one".to_owned());
    }
    let before = fits(expected.get(first..)?, found.get(..last)?);
    before.then(|| "what is expected at a position is found at the one before".to_owned())
}
