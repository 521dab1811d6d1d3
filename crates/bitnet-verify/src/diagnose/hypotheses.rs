//! The single changes that are tried, and what each is called.
//!
//! Invariant: one row of the table for each deviation the oracle can take; a row that would change nothing on this
//! network is not in it.

use super::rotated;
use crate::diagnose::fault::{Fault, FaultName};
use crate::diagnose::naming::permuted;
use crate::reference::oracle::{ClampAt, Deviation, RotatedAs, Rounding, RowOrder, ScaleAs};
use bitnet_checkpoint::{
    Activation, ActivationQuantization, Config, ExpertLinear, Hybrid, LayerSlot, RopeScaling, Slot,
};

/// A way in which the record may have been computed.
#[derive(Debug, Clone, PartialEq)]
pub struct Hypothesis {
    /// Its name.
    pub name: FaultName,
    /// What was expected (recorded) and found (in this model).
    pub says: String,
    /// What the oracle does otherwise.
    pub deviation: Deviation,
}

/// Others that come as close as this factor explain the evidence equally.
const EQUALLY: f64 = 3.0;

/// Relative error that rounding to `f32` alone makes: below it closer says nothing.
const ROUNDING: f64 = 1e-7;

/// Those hypotheses of `tried`, each with the error it leaves, that take the error `without` any down by the factor
/// `better` at least, and come as close as the closest does. To be just below a bound is no evidence: any small change
/// nudges an error that lies on it.
pub(super) fn closest(
    without: f64,
    better: f64,
    mut tried: Vec<(f64, Hypothesis)>,
) -> Vec<Hypothesis> {
    tried.retain(|(error, _)| error * better <= without);
    let errors = tried.iter().map(|(error, _)| *error);
    let best = errors.fold(f64::INFINITY, f64::min).max(ROUNDING);
    tried.retain(|(error, _)| *error <= best * EQUALLY);
    tried
        .into_iter()
        .map(|(_, hypothesis)| hypothesis)
        .collect()
}

/// Epsilons of published networks.
const EPSILONS: [f32; 4] = [1e-5, 1e-6, 1e-8, 1e-12];

/// Bases of published networks (`formats/model-families.md`), and others that are often met.
const THETAS: [f64; 7] = [
    10_000.0,
    100_000.0,
    500_000.0,
    1_000_000.0,
    1_000_042.0,
    5_000_000.0,
    10_000_000.0,
];

/// Every hypothesis for a network, the likeliest first.
pub fn hypotheses(config: &Config) -> Vec<Hypothesis> {
    let mut all = Vec::new();
    let mut row = |kind, says: String, deviation| {
        all.push(Hypothesis {
            name: kind,
            says,
            deviation,
        });
    };
    let found = config.hidden_act;
    for activation in [Activation::Silu, Activation::Relu2, Activation::GeluTanh] {
        if activation != found {
            let says = format!("expected {}, found {}", activation.as_str(), found.as_str());
            row(
                FaultName::ActivationFunction,
                says,
                Deviation::Activation(activation),
            );
        }
    }
    let norms = config.norms;
    for (there, kind, slot) in [
        (
            config.attn_sub_norm,
            FaultName::MissingSubNorm,
            LayerSlot::AttnSubNorm,
        ),
        (
            config.ffn_sub_norm,
            FaultName::MissingSubNorm,
            LayerSlot::FfnSubNorm,
        ),
        (true, FaultName::MissingNorm, LayerSlot::InputNorm),
        (true, FaultName::MissingNorm, LayerSlot::PostAttentionNorm),
        (norms.heads, FaultName::MissingNorm, LayerSlot::QNorm),
        (norms.heads, FaultName::MissingNorm, LayerSlot::KNorm),
        (
            norms.projections,
            FaultName::MissingNorm,
            LayerSlot::QProjNorm,
        ),
        (
            norms.projections,
            FaultName::MissingNorm,
            LayerSlot::KProjNorm,
        ),
        (
            norms.projections,
            FaultName::MissingNorm,
            LayerSlot::VProjNorm,
        ),
        (
            norms.projections,
            FaultName::MissingNorm,
            LayerSlot::GateProjNorm,
        ),
        (
            norms.projections,
            FaultName::MissingNorm,
            LayerSlot::UpProjNorm,
        ),
        (
            norms.branches,
            FaultName::MissingNorm,
            LayerSlot::AttnBranchNorm,
        ),
        (
            norms.branches,
            FaultName::MissingNorm,
            LayerSlot::FfnBranchNorm,
        ),
    ] {
        if there {
            let says = format!("expected no {}, found one", slot.canonical());
            row(kind, says, Deviation::Without(slot));
        }
    }
    if config.biases {
        let says = "expected no biases of q, k and v, found some".to_owned();
        row(FaultName::MissingBias, says, Deviation::NoBiases);
    }
    for epsilon in EPSILONS {
        if epsilon != config.rms_norm_eps {
            let says = format!("expected {epsilon:e}, found {:e}", config.rms_norm_eps);
            row(FaultName::NormEps, says, Deviation::Epsilon(epsilon));
        }
    }
    for theta in THETAS {
        if theta != config.rope.theta {
            let says = format!("expected {theta}, found {}", config.rope.theta);
            row(FaultName::RopeTheta, says, Deviation::Theta(theta));
        }
    }
    if config.rope.scaling != RopeScaling::None || config.long_rope.is_some() {
        let says = "expected frequencies that are not scaled, found scaled ones".to_owned();
        row(FaultName::RopeScaling, says, Deviation::NoRopeScaling);
    }
    if norms.heads {
        let say = |after| match after {
            true => "rotation first, then the norms of heads",
            false => "the norms of heads first, then rotation",
        };
        let after = norms.heads_after_rope;
        let says = format!("expected {}, found {}", say(!after), say(after));
        row(FaultName::NormRopeOrder, says, Deviation::NormsAcrossRope);
    }
    for dim in [config.head_dim, config.head_dim / 2, config.head_dim / 4] {
        if config.hybrid.is_none() && dim != config.rotary_dim && dim > 0 && dim.is_multiple_of(2) {
            let says = format!(
                "expected {dim} rotated dimensions of a head, found {}",
                config.rotary_dim
            );
            row(FaultName::RotaryDim, says, Deviation::RotaryDim(dim));
        }
    }
    if let Some(experts) = &config.experts {
        if experts.clamp.is_some() {
            for (at, what) in [
                (ClampAt::Output, "behind the activation function"),
                (ClampAt::Nowhere, "nowhere"),
            ] {
                let says = format!(
                    "expected the bound {what}, found it in front of the activation function"
                );
                row(FaultName::ExpertClamp, says, Deviation::Clamp(at));
            }
        }
        let say = |divided| match divided {
            true => "weights of experts divided by their sum",
            false => "weights of experts as they are",
        };
        let (found, expected) = (say(experts.normalize), say(!experts.normalize));
        let says = format!("expected {expected}, found {found}");
        row(FaultName::ExpertWeights, says, Deviation::ExpertWeights);
        for places in [1, experts.count - 1] {
            if places > 0 && experts.count > 1 {
                let says = format!("expected every expert {places} places behind the one found");
                row(
                    FaultName::PermutedExperts,
                    says,
                    Deviation::ExpertsShifted(places),
                );
            }
        }
    }
    if config.sliding.is_some() {
        let says = "expected layers without rotation, found it there".to_owned();
        row(FaultName::FullLayerRope, says, Deviation::RotaryDim(0));
    }
    if (0..config.num_hidden_layers).any(|layer| config.rotary_dim_of(layer) == 0) {
        let says = "expected rotation in every layer, found layers without".to_owned();
        row(FaultName::FullLayerRope, says, Deviation::RopeEverywhere);
    }
    for which in [Some(LayerSlot::QProj), Some(LayerSlot::KProj), None] {
        for (order, seen_from_the_record) in [
            (RowOrder::Gguf, RowOrder::FromGguf),
            (RowOrder::FromGguf, RowOrder::Gguf),
        ] {
            let says = permuted(seen_from_the_record);
            row(FaultName::PermutedRows, says, Deviation::Rows(which, order));
        }
    }
    let says = "expected RoPE over adjacent elements, found RoPE over halves".to_owned();
    row(FaultName::RopePairs, says, Deviation::NeighbouringPairs);
    for scale in ScaleAs::ALL {
        let (kind, says) = match scale {
            ScaleAs::Inverse => (
                FaultName::InverseScale,
                "expected the inverse of the scale found",
            ),
            ScaleAs::F16 => (
                FaultName::F16Scale,
                "expected the scale found, rounded to f16",
            ),
            ScaleAs::Bf16 => (
                FaultName::Bf16Scale,
                "expected the scale found, rounded to bf16",
            ),
        };
        for which in [None]
            .into_iter()
            .chain(single_linears(config).into_iter().map(Some))
        {
            row(kind, says.to_owned(), Deviation::Scale(which, scale));
        }
    }
    let quantised = config.activation_quantization == ActivationQuantization::Int8PerToken;
    let found = match quantised {
        true => Rounding::HalfEven,
        false => Rounding::None,
    };
    for rounding in [
        Rounding::HalfUp,
        Rounding::HalfAway,
        Rounding::TowardsZero,
        Rounding::OneDivision,
        Rounding::None,
        Rounding::HalfEven,
    ] {
        let between = quantised && rounding != Rounding::None;
        let kind = match between {
            true => FaultName::ActivationRounding,
            false => FaultName::ActivationQuantization,
        };
        if rounding != found && (quantised || rounding == Rounding::HalfEven) {
            let says = format!("expected {}, found {}", rounding.as_str(), found.as_str());
            row(kind, says, Deviation::Rounding(rounding));
        }
    }
    if let Some(hybrid) = &config.hybrid {
        all.extend(of_hybrids(config, hybrid));
    }
    if let Some(rotation) = config.rotation.as_deref() {
        let changes = rotated::changes(config, rotation).into_iter();
        all.extend(changes.map(|(name, says, how)| Hypothesis {
            name,
            says,
            deviation: Deviation::Rotation(how),
        }));
    }
    all
}

/// What programs have done otherwise on hybrids.
fn of_hybrids(config: &Config, hybrid: &Hybrid) -> Vec<Hypothesis> {
    let delta = hybrid.delta;
    let recurrent = hybrid.recurrent.contains(&true);
    let attention = hybrid.recurrent.contains(&false);
    let moves_heads = recurrent && delta.key_heads > 1 && delta.repeats() > 1;
    let turns_outputs = config
        .rotation
        .as_deref()
        .is_some_and(rotated::turns_outputs);
    let rows = [
        (
            true,
            FaultName::NormOffset,
            "gains without the 1",
            "1 + w",
            Deviation::NormOffset,
        ),
        (
            recurrent,
            FaultName::GatedNormOffset,
            "1 + w in the gated norm",
            "w",
            Deviation::GatedNormOffset,
        ),
        (
            moves_heads,
            FaultName::HeadPairing,
            "value head h with key head h mod key heads",
            "consecutive value heads with one key head",
            Deviation::HeadPairing,
        ),
        (
            // rotated columns have an order of their own
            moves_heads && !turns_outputs,
            FaultName::TiledColumns,
            "columns of out_proj as GGUF's tiled heads",
            "grouped heads",
            Deviation::TiledColumns,
        ),
        (
            recurrent && delta.conv_kernel > 1,
            FaultName::ReversedTaps,
            "the first tap for the current token",
            "the last",
            Deviation::ReversedTaps,
        ),
        (
            recurrent && delta.key_dim > 1,
            FaultName::UnscaledQuery,
            "queries of length 1",
            "queries divided by the root of their width",
            Deviation::UnscaledQuery,
        ),
        (
            recurrent,
            FaultName::EarlyOutput,
            "the state read before its update",
            "read behind it",
            Deviation::EarlyOutput,
        ),
        (
            recurrent,
            FaultName::EarlyPrediction,
            "a correction from the state before its decay",
            "from the decayed state",
            Deviation::EarlyPrediction,
        ),
        (
            attention && hybrid.rotary_dim < config.head_dim,
            FaultName::RotaryDim,
            "all dimensions of a head rotated",
            "the leading ones",
            Deviation::WholeRotary,
        ),
        (
            attention && config.num_attention_heads > 1,
            FaultName::GateRows,
            "all queries in front of all gates",
            "queries and gates head by head",
            Deviation::GateRows,
        ),
        (
            attention,
            FaultName::OutputGate,
            "no output gate",
            "one",
            Deviation::NoOutputGate,
        ),
    ];
    let there = rows.into_iter().filter(|(there, ..)| *there);
    there
        .map(|(_, name, expected, found, deviation)| Hypothesis {
            name,
            says: format!("expected {expected}, found {found}"),
            deviation,
        })
        .collect()
}

/// The linears of a layer, one of many experts excepted: a single one of these explains no record.
fn single_linears(config: &Config) -> Vec<LayerSlot> {
    let linears = config.block(0).linears().into_iter();
    linears
        .filter(|slot| !matches!(slot, LayerSlot::Expert(..)))
        .collect()
}

/// The first tensor of a layer that a deviation is of.
pub(super) fn begins_at(deviation: Deviation) -> LayerSlot {
    match deviation {
        Deviation::Activation(_) => LayerSlot::GateProj,
        Deviation::Clamp(_) => LayerSlot::expert(0, ExpertLinear::Gate),
        Deviation::ExpertWeights | Deviation::ExpertsShifted(_) => LayerSlot::Router,
        Deviation::Without(slot) => slot,
        Deviation::Epsilon(_) => LayerSlot::InputNorm,
        Deviation::NormsAcrossRope => LayerSlot::QNorm,
        Deviation::Rows(which, _) | Deviation::Scale(which, _) => which.unwrap_or(LayerSlot::QProj),
        Deviation::NormOffset => LayerSlot::InputNorm,
        Deviation::GatedNormOffset => LayerSlot::GatedNorm,
        Deviation::HeadPairing => LayerSlot::InProjQkv,
        Deviation::ReversedTaps => LayerSlot::Conv1d,
        Deviation::UnscaledQuery | Deviation::EarlyOutput | Deviation::EarlyPrediction => {
            LayerSlot::InProjQkv
        }
        Deviation::TiledColumns | Deviation::Rotation(RotatedAs::ValueOrder) => LayerSlot::OutProj,
        Deviation::Rotation(_) => LayerSlot::InputNorm,
        Deviation::WholeRotary
        | Deviation::GateRows
        | Deviation::NoOutputGate
        | Deviation::NoBiases
        | Deviation::Theta(_)
        | Deviation::NoRopeScaling
        | Deviation::RotaryDim(_)
        | Deviation::RopeEverywhere
        | Deviation::NeighbouringPairs
        | Deviation::Rounding(_) => LayerSlot::QProj,
    }
}

/// The place in the network where a deviation begins.
pub(super) fn begins_in(deviation: Deviation) -> Slot {
    match deviation {
        Deviation::Rotation(RotatedAs::Head) => Slot::OutputHead,
        Deviation::Rotation(RotatedAs::ValueOrder) => Slot::Layer(0, LayerSlot::OutProj),
        Deviation::Rotation(_) => Slot::TokenEmbeddings,
        other => Slot::Layer(0, begins_at(other)),
    }
}

impl Hypothesis {
    /// The fault that these hypotheses, each of which explains the evidence, amount to; `None` for none.
    pub(super) fn fault(named: &[Self], check: &'static str, slot: Slot) -> Option<Fault> {
        let first = named.first()?;
        let mut says: Vec<&str> = Vec::new();
        let mut equally: Vec<&'static str> = Vec::new();
        for other in named {
            if other.name == first.name && !says.contains(&other.says.as_str()) {
                says.push(&other.says);
            }
            let name = other.name.as_str();
            if other.name != first.name && !equally.contains(&name) {
                equally.push(name);
            }
        }
        let mut fault = Fault::at(first.name, check, slot, says.join("; or "));
        fault.equally = equally;
        Some(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nudge_below_a_bound_explains_nothing() {
        let named = |kind, error| {
            let says = String::new();
            let deviation = Deviation::NeighbouringPairs;
            let hypothesis = Hypothesis {
                name: kind,
                says,
                deviation,
            };
            (error, hypothesis)
        };
        let kinds = |tried| -> Vec<FaultName> {
            let named = closest(2.13e-6, 3.0, tried);
            named.into_iter().map(|h| h.name).collect()
        };
        let nudge = || named(FaultName::NormEps, 1.99e-6);
        assert_eq!(kinds(vec![nudge()]), []);
        let right = || named(FaultName::PermutedRows, 2e-7);
        assert_eq!(kinds(vec![nudge(), right()]), [FaultName::PermutedRows]);
        // within rounding the one is no closer than the other
        let exact = || named(FaultName::RopePairs, 0.0);
        assert_eq!(
            kinds(vec![right(), exact()]),
            [FaultName::PermutedRows, FaultName::RopePairs]
        );
    }
}
