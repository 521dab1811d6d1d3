//! Faults that have a name, and what a report says of one that was found.
//!
//! Invariant: a fault is named only on evidence: bits that are related in the way its name says, or an independent
//! computation that, with this one thing changed, gives what was recorded. What has no such evidence is
//! `unexplained` or `changed`, and says where it begins.

mod weights;

pub(crate) use weights::permuted;
pub use weights::{of_digest, of_scales, of_trits};

use bitnet_checkpoint::{LayerSlot, Slot};
use serde_json::{Value, json};

/// The name of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// another activation function in the MLP (SiLU in place of ReLU²)
    ActivationFunction,
    /// `attn_sub_norm` or `ffn_sub_norm` is on one side only
    MissingSubNorm,
    /// another norm is left out
    MissingNorm,
    /// another epsilon in the norms
    NormEps,
    /// another base of the rotary frequencies
    RopeTheta,
    /// rotary frequencies scaled on one side only, or otherwise
    RopeScaling,
    /// neighbours are rotated together in place of halves
    RopePairs,
    /// rows of q or k in GGUF's paired order where the checkpoint's is expected, or the reverse
    PermutedRows,
    /// a scale is used as its inverse
    InverseScale,
    /// a scale is rounded to f16
    F16Scale,
    /// a scale is rounded to bf16
    Bf16Scale,
    /// a scale is another one
    ChangedScale,
    /// two blocks of trits have changed places
    SwappedTrits,
    /// every trit has the other sign
    NegatedTrits,
    /// as many trits of each kind, in other places
    MovedTrits,
    /// other trits
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

/// What reports say of a kind.
#[derive(Debug)]
pub struct Row {
    /// The kind.
    pub kind: Kind,
    /// Its word in reports.
    pub name: &'static str,
    /// What is wrong, for `formats/report.md`.
    pub sentence: &'static str,
    /// What to do about it.
    pub hint: &'static str,
}

const fn row(kind: Kind, name: &'static str, sentence: &'static str, hint: &'static str) -> Row {
    Row {
        kind,
        name,
        sentence,
        hint,
    }
}

const WIRING: &str = "compare config.json of the source, general.architecture and the keys of the file; convert again";
const RUNTIME: &str =
    "if the file has the source's settings, the program that computed the record is wrong";
const WEIGHTS: &str = "convert again from the source and compare with --against";

/// Every kind, in the order of their declaration, which is also that of `formats/report.md`.
pub static KINDS: [Row; 27] = [
    row(
        Kind::ActivationFunction,
        "activation-function",
        "another activation function in the MLP (SiLU in place of ReLU²)",
        WIRING,
    ),
    row(
        Kind::MissingSubNorm,
        "missing-sub-norm",
        "`attn_sub_norm` or `ffn_sub_norm` is on one side only",
        WIRING,
    ),
    row(
        Kind::MissingNorm,
        "missing-norm",
        "another norm is left out",
        WIRING,
    ),
    row(
        Kind::NormEps,
        "norm-eps",
        "another epsilon in the norms",
        WIRING,
    ),
    row(
        Kind::RopeTheta,
        "rope-theta",
        "another base of the rotary frequencies",
        WIRING,
    ),
    row(
        Kind::RopeScaling,
        "rope-scaling",
        "rotary frequencies scaled on one side only, or otherwise",
        WIRING,
    ),
    row(
        Kind::RopePairs,
        "rope-pairs",
        "neighbours are rotated together in place of halves",
        RUNTIME,
    ),
    row(
        Kind::PermutedRows,
        "permuted-rows",
        "rows of q or k in GGUF's paired order where the checkpoint's is expected, or the reverse",
        "rows are paired for architecture `llama` in GGUF only: permute once, and undo it once",
    ),
    row(
        Kind::InverseScale,
        "inverse-scale",
        "a scale is used as its inverse",
        "weight_scale multiplies for linear_class `autobitlinear` and divides for `bitlinear`",
    ),
    row(
        Kind::F16Scale,
        "f16-scale",
        "a scale is rounded to f16",
        "take a packing with f32 scales: `bitnet-convert list`",
    ),
    row(
        Kind::Bf16Scale,
        "bf16-scale",
        "a scale is rounded to bf16",
        "take a packing with f32 scales: `bitnet-convert list`",
    ),
    row(
        Kind::ChangedScale,
        "changed-scale",
        "a scale is another one",
        WEIGHTS,
    ),
    row(
        Kind::SwappedTrits,
        "swapped-trits",
        "two blocks of trits have changed places",
        WEIGHTS,
    ),
    row(
        Kind::NegatedTrits,
        "negated-trits",
        "every trit has the other sign",
        WEIGHTS,
    ),
    row(
        Kind::MovedTrits,
        "moved-trits",
        "as many trits of each kind, in other places",
        WEIGHTS,
    ),
    row(Kind::ChangedTrits, "changed-trits", "other trits", WEIGHTS),
    row(
        Kind::ChangedValues,
        "changed-values",
        "other values in a norm or in the embeddings",
        WEIGHTS,
    ),
    row(
        Kind::OutputHead,
        "output-head",
        "another output head: tied where it has its own, or a head that is not the embeddings",
        "a tied model has no head of its own: leave output.weight away, or give the source's",
    ),
    row(
        Kind::TokenOffset,
        "token-offset",
        "tokens or positions are off by one",
        "give the ids of prompts.json as they are, BOS included, and take the logits of every position",
    ),
    row(
        Kind::LeadingToken,
        "leading-token",
        "the token in front of a text is missing, added or another one",
        "compare tokenizer.ggml.add_bos_token and the post-processor of tokenizer.json",
    ),
    row(
        Kind::PreTokenizer,
        "pre-tokenizer",
        "text is cut into words in another way",
        "set tokenizer.ggml.pre to the word named",
    ),
    row(
        Kind::Tokenizer,
        "tokenizer",
        "text becomes other tokens, and no known pre-tokenizer explains it",
        "take the tokenizer files of the source",
    ),
    row(
        Kind::ActivationRounding,
        "activation-rounding",
        "activations become integers in another way (halves upwards in place of to even)",
        RUNTIME,
    ),
    row(
        Kind::ActivationQuantization,
        "activation-quantization",
        "activations are quantised on one side only",
        WIRING,
    ),
    row(
        Kind::Setting,
        "setting",
        "another setting that changes results",
        WIRING,
    ),
    row(
        Kind::Runtime,
        "runtime",
        "the oracle computes what was recorded from this file, this program's runtime does not",
        "a defect of this program: report it, with --kernel scalar for comparison",
    ),
    row(
        Kind::Unexplained,
        "unexplained",
        "none of these explains it; layer and tensor say where it begins",
        "compare the operator named with that of the recording program",
    ),
];

impl Kind {
    /// Its row.
    pub fn row(self) -> &'static Row {
        &KINDS[self as usize]
    }

    /// Its word in reports.
    pub fn name(self) -> &'static str {
        self.row().name
    }
}

/// A fault that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Its name and remedy.
    pub kind: Kind,
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
    pub fn at(kind: Kind, check: &'static str, slot: Slot, what: impl Into<String>) -> Self {
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
    pub fn of_key(kind: Kind, check: &'static str, key: &str, what: impl Into<String>) -> Self {
        Self {
            kind,
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
        use LayerSlot::{AttnSubNorm, FfnSubNorm, GateProj, InputNorm, QNorm, QProj};
        let first = |role| Slot::Layer(0, role);
        let (kind, slot) = match key {
            "hidden_act" => (Kind::ActivationFunction, first(GateProj)),
            "rms_norm_eps" => (Kind::NormEps, first(InputNorm)),
            "rope_theta" => (Kind::RopeTheta, first(QProj)),
            "rope_scaling" => (Kind::RopeScaling, first(QProj)),
            "attn_sub_norm" => (Kind::MissingSubNorm, first(AttnSubNorm)),
            "ffn_sub_norm" => (Kind::MissingSubNorm, first(FfnSubNorm)),
            "head_norms" => (Kind::MissingNorm, first(QNorm)),
            "activation_quantization" => (Kind::ActivationQuantization, first(QProj)),
            "tie_word_embeddings" => (Kind::OutputHead, Slot::OutputHead),
            _ => {
                let what = format!("expected {expected}, found {found}");
                return Self::of_key(Kind::Setting, check, key, what);
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
        let Some(same) = found.iter_mut().find(|f| f.kind == self.kind) else {
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
            Some(layer) => format!("{} in layer {layer}, `{}`", self.kind.name(), self.tensor),
            None => format!("{} at `{}`", self.kind.name(), self.tensor),
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

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": self.kind.name(),
            "check": self.check,
            "layer": self.layer,
            "tensor": self.tensor,
            "what": self.what,
            "hint": self.kind.row().hint,
            "equally": self.equally,
            "tensors": self.tensors,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_where_their_kinds_are_declared() {
        for (i, row) in KINDS.iter().enumerate() {
            assert_eq!(row.kind as usize, i, "{}", row.name);
            assert!(
                KINDS[..i].iter().all(|r| r.name != row.name),
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn a_fault_of_many_tensors_is_told_once_where_it_begins() {
        let at = |layer| {
            let slot = Slot::Layer(layer, LayerSlot::QProj);
            Fault::at(Kind::InverseScale, "scales", slot, format!("in {layer}"))
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
