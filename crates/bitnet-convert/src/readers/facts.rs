//! What the rules of `formats/readers.json` may ask about a file.
//!
//! Invariant: a plan and the file that it becomes have the same facts.

use crate::plan::{Action, Item, Plan};
use crate::targets::Kind;
use bitnet_checkpoint::{
    ActivationQuantization, Checkpoint, Config, LayoutReason, RopeScaling, ScaleDirection, Slot,
    Yarn,
};
use bitnet_formats::{Encoding, FormatError, PlainType};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Names of facts that rules may ask for.
pub const FACTS: [&str; 24] = [
    "container",
    "architecture",
    "linears",
    "columns",
    "rows",
    "head",
    "hidden_act",
    "activations",
    "scale_direction",
    "projection_norms",
    "pre_tokenizer",
    "rotated",
    "rotation_block",
    "layout",
    "embeddings",
    "scale_type",
    "quantization_config",
    "dense_modules",
    "remote_code",
    "sub_norms",
    "head_dim",
    "rope",
    "attention_factor",
    "rope_keys",
];

/// What the rules may ask about a file: by name of the fact its values.
#[derive(Debug, Default)]
pub struct FileFacts(BTreeMap<&'static str, BTreeSet<String>>);

impl FileFacts {
    /// Of a file as it is.
    ///
    /// # Errors
    /// A linear without a source.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, FormatError> {
        let mut facts = Self::default();
        let file = &checkpoint.file;
        facts.add("container", file.container);
        facts.add("architecture", checkpoint.architecture());
        facts.network(checkpoint, &checkpoint.config);
        for slot in checkpoint.slots().into_iter().filter(|s| s.is_ternary()) {
            facts.linear(&checkpoint.linear(slot)?.describe());
        }
        let embeddings = checkpoint.dense_encoding(Slot::TokenEmbeddings);
        let embeddings = embeddings.map(|(_, stored)| stored).or_else(|| {
            let info = checkpoint.tensor_range(Slot::TokenEmbeddings);
            info.map(|info| info.encoding.name())
        });
        if let Some(embeddings) = embeddings {
            facts.add("embeddings", embeddings);
        }
        let tensors = file.tensors().iter();
        facts.scale_types(tensors.map(|info| (info.name.as_str(), info.encoding)));
        facts.config_json(checkpoint.config_json.as_ref());
        if let Some(direction) = checkpoint.scale_direction() {
            facts.direction(direction);
        }
        if let Some(pre_tokenizer) = checkpoint.stated_pre_tokenizer() {
            facts.add("pre_tokenizer", pre_tokenizer);
        }
        let assumed = |e: &bitnet_checkpoint::LayoutEvidence| e.reason == LayoutReason::Assumed;
        if checkpoint.layout.as_ref().is_some_and(assumed) {
            facts.add("layout", "undecided");
        }
        Ok(facts)
    }

    /// Of the output of a plan.
    pub fn of_plan(checkpoint: &Checkpoint, plan: &Plan) -> Self {
        let mut facts = Self::default();
        facts.add("container", plan.target.container());
        facts.add(
            "architecture",
            match plan.target.kind {
                Kind::Gguf => checkpoint.family.gguf_architecture().to_owned(),
                Kind::HuggingFace => checkpoint.hf_architecture(),
            },
        );
        facts.network(checkpoint, &plan.config);
        for item in plan
            .items
            .iter()
            .filter(|i| i.slot.is_some_and(Slot::is_ternary))
        {
            match &item.action {
                Action::Pack(packing) | Action::CopyPacked(packing) => {
                    facts.linear(packing.name());
                }
                Action::Dequantise(plain) => {
                    facts.add("linears", format!("{} ternary", plain_name(*plain)));
                }
                Action::CopyMaster => facts.add("linears", format!("{} master", item.to)),
                Action::Copy | Action::Recode(_) | Action::Unfold(_) => {
                    facts.add("linears", item.to.clone())
                }
                Action::Ready(_) | Action::Scale(_) | Action::Shape(_) | Action::Carry(_) => {}
            }
        }
        let is_table = |item: &&Item| item.slot == Some(Slot::TokenEmbeddings);
        if let Some(item) = plan.items.iter().find(is_table) {
            facts.add("embeddings", item.tensor.encoding.name());
        }
        let tensors = plan.items.iter().map(|item| &item.tensor);
        facts.scale_types(tensors.map(|t| (t.name.as_str(), t.encoding)));
        if plan.target.kind == Kind::HuggingFace {
            let config = plan
                .side_files
                .iter()
                .find(|(name, _)| name == "config.json");
            let config = config.and_then(|(_, text)| serde_json::from_slice(text).ok());
            facts.config_json(config.as_ref());
            facts.direction(
                checkpoint
                    .scale_direction()
                    .unwrap_or(ScaleDirection::Multiply),
            );
        }
        facts
    }

    /// What container and packing do not change.
    fn network(&mut self, checkpoint: &Checkpoint, config: &Config) {
        let shapes: Vec<_> = checkpoint
            .slots()
            .into_iter()
            .filter(|slot| slot.is_ternary())
            .map(|slot| config.shape(slot))
            .collect();
        self.add_multiples("rows", shapes.iter().filter_map(|s| s.first().copied()));
        self.add_multiples("columns", shapes.iter().filter_map(|s| s.last().copied()));
        let tied = config.tie_word_embeddings;
        self.add("head", if tied { "tied" } else { "own" });
        self.add("hidden_act", config.hidden_act.as_str());
        let rotation = config.rotation.as_deref();
        self.add("rotated", if rotation.is_some() { "yes" } else { "no" });
        if let Some(rotation) = rotation {
            self.add("rotation_block", rotation.block_size.to_string());
        }
        let activations = match config.activation_quantization {
            ActivationQuantization::Int8PerToken => "int8 per token",
            ActivationQuantization::None => "not quantized",
        };
        self.add("activations", activations);
        let norms = config.norms.projections;
        self.add("projection_norms", if norms { "yes" } else { "no" });
        let sub_norms = config.attn_sub_norm && !norms;
        self.add("sub_norms", if sub_norms { "yes" } else { "no" });
        self.head_and_rope(config);
    }

    /// The width of a head and the rotary embedding.
    fn head_and_rope(&mut self, config: &Config) {
        self.add("head_dim", config.head_dim.to_string());
        if config.head_dim * config.num_attention_heads == config.hidden_size {
            self.add("head_dim", "hidden / heads");
        }
        let name = match config.rope.scaling {
            RopeScaling::None if config.long_rope.is_some() => "longrope",
            RopeScaling::None => "default",
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Llama3 { .. } => "llama3",
            RopeScaling::Yarn(_) => "yarn",
        };
        self.add("rope", name);
        if let RopeScaling::Yarn(yarn) = &config.rope.scaling {
            let usual = is_usual(yarn);
            self.add("attention_factor", if usual { "of yarn" } else { "own" });
        }
    }

    /// How a linear is stored; the name of a packing stands for every set of its parameters.
    fn linear(&mut self, name: &str) {
        self.add("linears", name);
        for tiled in ["tl1", "tl2"] {
            if name.strip_prefix(tiled).is_some_and(|p| p.starts_with('-')) {
                self.add("linears", tiled);
            }
        }
    }

    /// The types of scales that lie beside packed linears.
    fn scale_types<'a>(&mut self, tensors: impl Iterator<Item = (&'a str, Encoding)>) {
        let embeddings = self.0.get("embeddings").cloned().unwrap_or_default();
        for (_, encoding) in tensors.filter(|(name, _)| name.ends_with(".weight_scale")) {
            let same = embeddings.contains(&encoding.name());
            self.add("scale_type", encoding.name());
            self.add("scale_type", if same { "as embeddings" } else { "other" });
        }
    }

    /// What `config.json` says to programs that choose their modules by it.
    fn config_json(&mut self, config: Option<&Value>) {
        let Some(config) = config else {
            return;
        };
        let has_code = config.get("auto_map").is_some_and(|map| {
            ["AutoModel", "AutoModelForCausalLM"]
                .iter()
                .any(|class| map.get(*class).is_some())
        });
        self.add("remote_code", if has_code { "yes" } else { "no" });
        let is_absent = |key: &str| config.get(key).is_none_or(Value::is_null);
        let parameters = config.get("rope_parameters");
        let inner = |key: &str| parameters.and_then(|p| p.get(key));
        let kind = inner("rope_type").and_then(Value::as_str);
        let is_scaled = kind.is_some_and(|kind| kind != "default");
        let hides_theta = is_absent("rope_theta") && inner("rope_theta").is_some();
        let hides_scaling = is_absent("rope_scaling") && is_scaled;
        let hidden = hides_theta || hides_scaling;
        self.add(
            "rope_keys",
            if hidden {
                "rope_parameters only"
            } else {
                "rope_theta"
            },
        );
        let section = match config.get("quantization_config") {
            None | Some(Value::Null) => return self.add("quantization_config", "absent"),
            Some(section) => section,
        };
        let text = |key: &str| section.get(key).and_then(Value::as_str);
        let name = match (
            text("quant_method"),
            text("linear_class"),
            text("quantization_mode"),
        ) {
            (Some("bitnet"), Some("autobitlinear"), Some("online")) => "autobitlinear online",
            (Some("bitnet"), Some("autobitlinear"), _) => "autobitlinear",
            (Some("bitnet"), None | Some("bitlinear"), _) => "bitlinear",
            _ => "other",
        };
        self.add("quantization_config", name);
        let named = match section.get("modules_to_not_convert") {
            Some(Value::Null) => "null",
            Some(Value::Array(list)) if list.iter().any(|m| m == "lm_head") => "lm_head named",
            _ => "lm_head not named",
        };
        self.add("dense_modules", named);
    }

    fn direction(&mut self, direction: ScaleDirection) {
        let name = match direction {
            ScaleDirection::Multiply => "multiply",
            ScaleDirection::Divide => "divide",
        };
        self.add("scale_direction", name);
    }

    /// Adds a value of a fact.
    fn add(&mut self, fact: &'static str, value: impl Into<String>) {
        self.0.entry(fact).or_default().insert(value.into());
    }

    /// Adds `multiple of N` for the N that the rules know and that divide every size.
    fn add_multiples(&mut self, fact: &'static str, sizes: impl Iterator<Item = usize>) {
        let sizes: BTreeSet<usize> = sizes.collect();
        for n in [256, 128, 64, 16, 4] {
            if sizes.iter().all(|size| size.is_multiple_of(n)) {
                self.add(fact, format!("multiple of {n}"));
            }
        }
        if sizes.iter().all(|size| *size >= 512) {
            self.add(fact, "at least 512");
        }
    }

    /// Adds a value, for tests of the rules.
    #[cfg(test)]
    pub(super) fn set(&mut self, fact: &'static str, value: &str) {
        self.add(fact, value);
    }

    /// Whether a fact has one of the values.
    pub(super) fn has_one_of(&self, fact: &str, values: &[String]) -> bool {
        self.0
            .get(fact)
            .is_some_and(|own| values.iter().any(|v| own.contains(v)))
    }
}

/// Whether the factor on cosines and sines is the one of YaRN's paper, which programs compute that know no other.
fn is_usual(yarn: &Yarn) -> bool {
    let paper = if yarn.factor <= 1.0 {
        1.0
    } else {
        0.1 * yarn.factor.ln() + 1.0
    };
    (yarn.attention_factor - paper).abs() <= 1e-5 * paper
}

/// The type as tensors of that type are named.
fn plain_name(plain: PlainType) -> String {
    plain.safetensors_name().to_ascii_lowercase()
}
