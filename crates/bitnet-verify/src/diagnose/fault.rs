//! Faults that have a name, and what a report says of one that was found.
//!
//! Invariant: a fault is named only on evidence: bits that are related in the way its name says, or an independent
//! computation that, with this one thing changed, gives what was recorded. What has no such evidence is
//! `unexplained` or `changed`, and says where it begins.

use bitnet_checkpoint::{LayerSlot, Slot};

/// The name of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultName {
    /// the MLP uses another activation function (SiLU instead of ReLU²)
    ActivationFunction,
    /// `attn_sub_norm` or `ffn_sub_norm` is on one side only
    MissingSubNorm,
    /// another norm is left out
    MissingNorm,
    /// biases of q, k and v are left out
    MissingBias,
    /// another epsilon in the norms
    NormEps,
    /// another base of the rotary frequencies
    RopeTheta,
    /// rotary frequencies scaled on one side only, or otherwise
    RopeScaling,
    /// RoPE rotates adjacent elements instead of halves
    RopePairs,
    /// one side rotates layers that have no rotary positions, or the reverse
    FullLayerRope,
    /// heads are normed on the other side of the rotation
    NormRopeOrder,
    /// the bound of experts stands behind the activation function, or is missing
    ExpertClamp,
    /// weights of experts are divided by their sum on one side only
    ExpertWeights,
    /// experts have changed places
    PermutedExperts,
    /// rows of q or k in GGUF's paired order where the checkpoint's is expected, or the reverse
    PermutedRows,
    /// a scale is used as its inverse
    InverseScale,
    /// a scale is rounded to f16
    F16Scale,
    /// a scale is rounded to bf16
    Bf16Scale,
    /// a scale has another value
    ChangedScale,
    /// two blocks of trits are swapped
    SwappedTrits,
    /// every trit has the other sign
    NegatedTrits,
    /// as many trits of each kind, in other places
    MovedTrits,
    /// trits have other values
    ChangedTrits,
    /// other values in a norm or in the embeddings
    ChangedValues,
    /// another output head: tied where it has its own, or a head that is not the embeddings
    OutputHead,
    /// tokens or positions are off by one
    TokenOffset,
    /// the token in front of a text is missing, added or another one
    LeadingToken,
    /// text is cut into words in another way
    PreTokenizer,
    /// text becomes other tokens, and no known pre-tokenizer explains it
    Tokenizer,
    /// norms that store `w` and mean `1 + w` are used without the 1, or with it twice
    NormOffset,
    /// the gated norm of a Gated DeltaNet has 1 added to its gain
    GatedNormOffset,
    /// value heads read other key heads: grouped in checkpoints, tiled in GGUF
    HeadPairing,
    /// the taps of the convolution are in reverse order: the last one is the current token's
    ReversedTaps,
    /// queries of a Gated DeltaNet are not divided by the root of their width
    UnscaledQuery,
    /// the state of a Gated DeltaNet is read before it is updated
    EarlyOutput,
    /// the correction of a Gated DeltaNet is computed from the state before its decay
    EarlyPrediction,
    /// another number of dimensions of a head is rotated
    RotaryDim,
    /// columns of `out_proj` are left in GGUF's tiled order of value heads
    TiledColumns,
    /// rows of `q_proj` are split in halves: queries and gates alternate head by head
    GateRows,
    /// the output gate of attention is left out
    OutputGate,
    /// one side rotates what the other does not: the keys of the rotation are absent or ignored
    RotationMissing,
    /// the signs of a rotation are missing or others
    RotationSigns,
    /// the signs of a rotation stand behind the transform: they belong in front of it
    RotationOrder,
    /// a rotation has blocks of another size
    RotationBlock,
    /// rows of rotated embeddings are used as they are stored, or rows that are not rotated are turned back
    RotationEmbeddings,
    /// the input of the output head is not rotated like its rows
    RotationHead,
    /// the input of a rotated `out_proj` has value heads in another order than the weights
    RotationValueOrder,
    /// activations become integers in another way (halves upwards in place of to even)
    ActivationRounding,
    /// activations are quantised on one side only
    ActivationQuantization,
    /// another setting that changes results
    Setting,
    /// the oracle computes what was recorded from this file, this program's runtime does not
    Runtime,
    /// none of these explains it; layer and tensor say where it begins
    Unexplained,
}

/// What reports say of a fault.
#[derive(Debug)]
pub struct Row {
    /// The fault.
    pub fault: FaultName,
    /// Its word in reports.
    pub name: &'static str,
    /// What is wrong, for `formats/report.md`.
    pub sentence: &'static str,
    /// What to do about it.
    pub hint: &'static str,
}

const fn row(
    kind: FaultName,
    name: &'static str,
    sentence: &'static str,
    hint: &'static str,
) -> Row {
    Row {
        fault: kind,
        name,
        sentence,
        hint,
    }
}

const WIRING: &str = "compare config.json of the source, general.architecture and the keys of the file; convert again";
const RUNTIME: &str =
    "if the file has the source's settings, the program that computed the record is wrong";
const HEADS: &str = "permute value heads once on the way into GGUF (rows and the columns of out_proj), and undo it once";
const ROTATION: &str = "take the keys prism.hadamard.* (or hadamard.json, hadamard_packing.json) of the published model, and convert again";
const WEIGHTS: &str = "convert again from the source and compare with --against";

/// Every fault that has a name, in the order of their declaration, which is also that of `formats/report.md`.
pub static FAULTS: [Row; 51] = [
    row(
        FaultName::ActivationFunction,
        "activation-function",
        "the MLP uses another activation function (SiLU instead of ReLU²)",
        WIRING,
    ),
    row(
        FaultName::MissingSubNorm,
        "missing-sub-norm",
        "`attn_sub_norm` or `ffn_sub_norm` is on one side only",
        WIRING,
    ),
    row(
        FaultName::MissingNorm,
        "missing-norm",
        "another norm is missing",
        WIRING,
    ),
    row(
        FaultName::MissingBias,
        "missing-bias",
        "biases of q, k and v are left out",
        "convert again with a program that writes the `.bias` tensors of q, k and v",
    ),
    row(
        FaultName::NormEps,
        "norm-eps",
        "the norms use another epsilon",
        WIRING,
    ),
    row(
        FaultName::RopeTheta,
        "rope-theta",
        "the rotary frequencies have another base",
        WIRING,
    ),
    row(
        FaultName::RopeScaling,
        "rope-scaling",
        "the rotary frequencies are scaled on one side only, or differently",
        WIRING,
    ),
    row(
        FaultName::RopePairs,
        "rope-pairs",
        "RoPE rotates adjacent elements instead of halves",
        RUNTIME,
    ),
    row(
        FaultName::FullLayerRope,
        "full-layer-rope",
        "one side rotates layers that have no rotary positions, or the reverse",
        WIRING,
    ),
    row(
        FaultName::NormRopeOrder,
        "norm-rope-order",
        "heads are normed on the other side of the rotation",
        "general.architecture decides: `hunyuan-dense` rotates first, `qwen3` norms first",
    ),
    row(
        FaultName::ExpertClamp,
        "expert-clamp",
        "the bound of experts stands behind the activation function, or is missing",
        WIRING,
    ),
    row(
        FaultName::ExpertWeights,
        "expert-weights",
        "weights of experts are divided by their sum on one side only",
        WIRING,
    ),
    row(
        FaultName::PermutedExperts,
        "permuted-experts",
        "experts have changed places",
        "stack experts in the order of their numbers: 2 comes before 10",
    ),
    row(
        FaultName::PermutedRows,
        "permuted-rows",
        "rows of q or k have GGUF's paired order instead of the checkpoint's, or the reverse",
        "rows are paired for architecture `llama` in GGUF only: permute once, and undo it once",
    ),
    row(
        FaultName::InverseScale,
        "inverse-scale",
        "a scale is used as its inverse",
        "weight_scale multiplies for linear_class `autobitlinear` and divides for `bitlinear`",
    ),
    row(
        FaultName::F16Scale,
        "f16-scale",
        "a scale is rounded to f16",
        "take a packing with f32 scales: `bitnet-convert list`",
    ),
    row(
        FaultName::Bf16Scale,
        "bf16-scale",
        "a scale is rounded to bf16",
        "take a packing with f32 scales: `bitnet-convert list`",
    ),
    row(
        FaultName::ChangedScale,
        "changed-scale",
        "a scale has another value",
        WEIGHTS,
    ),
    row(
        FaultName::SwappedTrits,
        "swapped-trits",
        "two blocks of trits are swapped",
        WEIGHTS,
    ),
    row(
        FaultName::NegatedTrits,
        "negated-trits",
        "every trit has the other sign",
        WEIGHTS,
    ),
    row(
        FaultName::MovedTrits,
        "moved-trits",
        "the counts of -1, 0 and +1 are equal, their places differ",
        WEIGHTS,
    ),
    row(
        FaultName::ChangedTrits,
        "changed-trits",
        "trits have other values",
        WEIGHTS,
    ),
    row(
        FaultName::ChangedValues,
        "changed-values",
        "a norm or the embeddings have other values",
        WEIGHTS,
    ),
    row(
        FaultName::OutputHead,
        "output-head",
        "the output head differs: one side ties it to the embeddings and the other does not, or the head is not the embeddings",
        "a tied model has no head of its own: leave output.weight away, or give the source's",
    ),
    row(
        FaultName::TokenOffset,
        "token-offset",
        "tokens or positions are off by one",
        "give the ids of prompts.json as they are, BOS included, and take the logits of every position",
    ),
    row(
        FaultName::LeadingToken,
        "leading-token",
        "the first token of a text is missing, added or different",
        "compare tokenizer.ggml.add_bos_token and the post-processor of tokenizer.json",
    ),
    row(
        FaultName::PreTokenizer,
        "pre-tokenizer",
        "the pre-tokenizer splits text differently",
        "set tokenizer.ggml.pre to the word named",
    ),
    row(
        FaultName::Tokenizer,
        "tokenizer",
        "text gives other tokens, and no known pre-tokenizer explains the difference",
        "take the tokenizer files of the source",
    ),
    row(
        FaultName::NormOffset,
        "norm-offset",
        "norms that store `w` and mean `1 + w` are used without the 1, or with it twice",
        WIRING,
    ),
    row(
        FaultName::GatedNormOffset,
        "gated-norm-offset",
        "the gated norm of a Gated DeltaNet has 1 added to its gain",
        WIRING,
    ),
    row(
        FaultName::HeadPairing,
        "head-pairing",
        "value heads read other key heads: grouped in checkpoints, tiled in GGUF",
        HEADS,
    ),
    row(
        FaultName::ReversedTaps,
        "reversed-taps",
        "the taps of the convolution are in reverse order: the last one is the current token's",
        RUNTIME,
    ),
    row(
        FaultName::UnscaledQuery,
        "unscaled-query",
        "queries of a Gated DeltaNet are not divided by the root of their width",
        RUNTIME,
    ),
    row(
        FaultName::EarlyOutput,
        "early-output",
        "the state of a Gated DeltaNet is read before it is updated",
        RUNTIME,
    ),
    row(
        FaultName::EarlyPrediction,
        "early-prediction",
        "the correction of a Gated DeltaNet is computed from the state before its decay",
        RUNTIME,
    ),
    row(
        FaultName::RotaryDim,
        "rotary-dim",
        "another number of dimensions of a head is rotated",
        WIRING,
    ),
    row(
        FaultName::TiledColumns,
        "tiled-columns",
        "columns of `out_proj` are left in GGUF's tiled order of value heads",
        HEADS,
    ),
    row(
        FaultName::GateRows,
        "gate-rows",
        "rows of `q_proj` are split in halves: queries and gates alternate head by head",
        RUNTIME,
    ),
    row(
        FaultName::OutputGate,
        "output-gate",
        "the output gate of attention is left out",
        RUNTIME,
    ),
    row(
        FaultName::RotationMissing,
        "rotation-missing",
        "the weights are rotated and one side does not rotate their inputs: the keys are absent or ignored",
        ROTATION,
    ),
    row(
        FaultName::RotationSigns,
        "rotation-signs",
        "the signs of a rotation are missing or differ",
        ROTATION,
    ),
    row(
        FaultName::RotationOrder,
        "rotation-order",
        "the signs of a rotation are applied after the transform instead of before it (of rows of embeddings: before it instead of after it)",
        RUNTIME,
    ),
    row(
        FaultName::RotationBlock,
        "rotation-block",
        "a rotation has blocks of another size",
        ROTATION,
    ),
    row(
        FaultName::RotationEmbeddings,
        "rotation-embeddings",
        "rows of rotated embeddings are used as they are stored, or rows that are not rotated are turned back",
        ROTATION,
    ),
    row(
        FaultName::RotationHead,
        "rotation-head",
        "the input of the output head is not rotated although its rows are, or the reverse (tied tables: contract version 2)",
        ROTATION,
    ),
    row(
        FaultName::RotationValueOrder,
        "rotation-value-order",
        "the input of a rotated `out_proj` has its value heads in another order than the weights (`gdn_v_grouped`)",
        ROTATION,
    ),
    row(
        FaultName::ActivationRounding,
        "activation-rounding",
        "activations are rounded differently (half up instead of half to even)",
        RUNTIME,
    ),
    row(
        FaultName::ActivationQuantization,
        "activation-quantization",
        "only one side quantizes activations",
        WIRING,
    ),
    row(
        FaultName::Setting,
        "setting",
        "another setting that changes results differs",
        WIRING,
    ),
    row(
        FaultName::Runtime,
        "runtime",
        "the oracle computes the recorded values from this file, the runtime of this program does not",
        "a defect of this program: report it, with --kernel scalar for comparison",
    ),
    row(
        FaultName::Unexplained,
        "unexplained",
        "no other name explains the difference; layer and tensor say where it begins",
        "compare the operator named with that of the recording program",
    ),
];

impl FaultName {
    /// Its row.
    pub fn row(self) -> &'static Row {
        &FAULTS[self as usize]
    }

    /// Its word in reports.
    pub fn as_str(self) -> &'static str {
        self.row().name
    }
}

/// A fault that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Its name and remedy.
    pub name: FaultName,
    /// The row of the report that found it.
    pub check: &'static str,
    /// The place in the network where it begins, if it is one tensor's; slots are in the order of the forward pass.
    pub slot: Option<Slot>,
    /// The layer where it begins; of what is not in a layer, `None`.
    pub layer: Option<usize>,
    /// The tensor (or key) where it begins.
    pub tensor: String,
    /// What was expected and found.
    pub what: String,
    /// Other names that the evidence fits as well.
    pub equally: Vec<&'static str>,
    /// Every tensor that has it, that where it begins first.
    pub tensors: Vec<String>,
}

/// Most tensors that a fault lists.
const LISTED: usize = 1000;

impl Fault {
    /// A fault that begins at a tensor.
    pub fn at(kind: FaultName, check: &'static str, slot: Slot, what: impl Into<String>) -> Self {
        let layer = match slot {
            Slot::Layer(layer, _) => Some(layer),
            _ => None,
        };
        Self {
            slot: Some(slot),
            layer,
            ..Self::of_key(kind, check, &slot.to_string(), what)
        }
    }

    /// A fault of what is no tensor.
    pub fn of_key(
        kind: FaultName,
        check: &'static str,
        key: &str,
        what: impl Into<String>,
    ) -> Self {
        Self {
            name: kind,
            check,
            slot: None,
            layer: None,
            tensor: key.to_owned(),
            what: what.into(),
            equally: Vec::new(),
            tensors: vec![key.to_owned()],
        }
    }

    /// A setting of the network that is another one: `key` as the check of metadata spells it.
    pub fn of_setting(check: &'static str, key: &str, expected: &str, found: &str) -> Self {
        use LayerSlot::{AttnSubNorm, FfnSubNorm, GateProj, InputNorm, QBias, QNorm, QProj};
        let first = |role| Slot::Layer(0, role);
        let (kind, slot) = match key {
            "hidden_act" => (FaultName::ActivationFunction, first(GateProj)),
            "rms_norm_eps" => (FaultName::NormEps, first(InputNorm)),
            "rope_theta" => (FaultName::RopeTheta, first(QProj)),
            "rope_scaling" | "long_rope" => (FaultName::RopeScaling, first(QProj)),
            "attn_sub_norm" => (FaultName::MissingSubNorm, first(AttnSubNorm)),
            "ffn_sub_norm" => (FaultName::MissingSubNorm, first(FfnSubNorm)),
            "biases" => (FaultName::MissingBias, first(QBias)),
            "head_norms" => (FaultName::MissingNorm, first(QNorm)),
            "norms_after_rope" => (FaultName::NormRopeOrder, first(QNorm)),
            "rotary_dim" => (FaultName::RotaryDim, first(QProj)),
            "activation_quantization" => (FaultName::ActivationQuantization, first(QProj)),
            "tie_word_embeddings" => (FaultName::OutputHead, Slot::OutputHead),
            _ => {
                let what = format!("expected {expected}, found {found}");
                return Self::of_key(FaultName::Setting, check, key, what);
            }
        };
        Self::at(
            kind,
            check,
            slot,
            format!("{key}: expected {expected}, found {found}"),
        )
    }

    /// Adds a fault to those found: one that has a name already joins it, and the earliest place is where it begins.
    pub fn join(self, found: &mut Vec<Self>) {
        let Some(same) = found.iter_mut().find(|f| f.name == self.name) else {
            found.push(self);
            return;
        };
        let tensors: Vec<String> = same.tensors.iter().chain(&self.tensors).cloned().collect();
        if self.slot.is_some() && self.slot < same.slot {
            *same = self;
        }
        let mut all = vec![same.tensor.clone()];
        for tensor in tensors {
            if !all.contains(&tensor) && all.len() < LISTED {
                all.push(tensor);
            }
        }
        same.tensors = all;
    }

    /// One line for people.
    pub fn sentence(&self) -> String {
        let mut text = match self.layer {
            Some(layer) => format!("{} in layer {layer}, `{}`", self.name.as_str(), self.tensor),
            None => format!("{} at `{}`", self.name.as_str(), self.tensor),
        };
        if self.tensors.len() > 1 {
            text.push_str(&format!(" and {} more", self.tensors.len() - 1));
        }
        text.push_str(&format!(": {}", self.what));
        if !self.equally.is_empty() {
            text.push_str(&format!(
                "; or {}, which fits equally",
                self.equally.join(", ")
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_where_their_kinds_are_declared() {
        for (i, row) in FAULTS.iter().enumerate() {
            assert_eq!(row.fault as usize, i, "{}", row.name);
            assert!(
                FAULTS[..i].iter().all(|r| r.name != row.name),
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn a_fault_of_many_tensors_is_told_once_where_it_begins() {
        let at = |layer| {
            let slot = Slot::Layer(layer, LayerSlot::QProj);
            Fault::at(
                FaultName::InverseScale,
                "scales",
                slot,
                format!("in {layer}"),
            )
        };
        let mut found = Vec::new();
        for layer in [2, 0, 1, 0] {
            at(layer).join(&mut found);
        }
        let [fault] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((fault.layer, fault.tensors.len()), (Some(0), 3));
        assert_eq!(
            (&fault.what, &fault.tensors[0]),
            (&"in 0".to_owned(), &fault.tensor)
        );
        assert!(
            fault.sentence().contains("and 2 more"),
            "{}",
            fault.sentence()
        );
    }
}
