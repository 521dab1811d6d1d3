//! Families: ways checkpoints name and wire the same network.
//!
//! Invariant: a family is data. Nothing outside this room asks for a family's name, nothing in it
//! looks at a path or a repository name, and keys of `config.json` and GGUF metadata are read here
//! only: everything behind it speaks of [`Config`] and [`Slot`].

mod bitnet_2b_4t;
mod bitnet_b1_58;
mod gguf_keys;
mod hf_config;
mod llama_b1_58;
mod names;
mod quantization;

pub use hf_config::HfStorage;
pub use quantization::{Quantization, ScaleDirection};

pub(crate) use gguf_keys::{ROPE_FREQUENCIES, check_rope_frequencies, rope_frequency_factors};
pub(crate) use hf_config::{add_generation_config, parse_json};

use crate::config::{Activation, ActivationQuantization, Config, RopeScaling, Yarn};
use crate::slot::Slot;
use bitnet_formats::{ErrorCode, FormatError, MetaValue, TensorFile};
use serde_json::Value;

/// What float linears are when `config.json` does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmarkedFloats {
    /// Master weights: the architecture has no other linears than ternary ones.
    MasterWeights,
    /// The architecture is an ordinary one, so the data has to show it.
    AskTheData,
}

/// One way checkpoints name and wire the network.
#[derive(Debug)]
pub struct Family {
    /// Its file's stem; for reports, never for decisions.
    pub name: &'static str,
    /// Whether a `config.json` is of this family; at most one family says yes.
    pub matches: fn(&Value) -> bool,
    /// Sizes and wiring from `config.json`.
    pub config: fn(&Value) -> Result<Config, FormatError>,
    /// The Hugging Face name of a slot's tensor.
    pub tensor_name: fn(Slot) -> String,
    /// What a stored `weight_scale` means when `config.json` does not say (`formats/packing/hf_u8.md`).
    pub unmarked_scale: ScaleDirection,
    /// What float linears are when `config.json` does not say.
    pub unmarked_floats: UnmarkedFloats,
    /// Whether a `config.json` carries the signature of a published checkpoint of unmarked master
    /// weights; asked only when the data shows that its linears are not ternary yet.
    pub is_known_master: fn(&Value) -> bool,
    /// `model_type` and `architectures` of a `config.json` written from nothing.
    pub hf_identity: (&'static str, &'static str),
    /// `general.architecture` strings read; the first is written.
    pub gguf_architectures: &'static [&'static str],
    /// Sizes and wiring from GGUF metadata, and from which tensors there are.
    pub gguf_config: fn(&TensorFile) -> Result<Config, FormatError>,
    /// The GGUF name of a slot's tensor.
    pub gguf_tensor_name: fn(Slot) -> String,
    /// The network that readers compute for the written architecture, whatever the metadata say.
    pub gguf_wiring: GgufWiring,
    /// Whether GGUF rows of q and k are in the order of paired rotary dimensions.
    pub permutes_qk: bool,
}

/// What a GGUF architecture string alone decides in its readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufWiring {
    /// The MLP's activation function.
    pub activation: Activation,
    /// Whether both sub-norms are there (or neither).
    pub sub_norms: bool,
    /// Whether an `output.weight` of its own is looked at.
    pub output_head: bool,
}

impl Family {
    /// The metadata GGUF readers need, `general.file_type` and the tokenizer excepted.
    ///
    /// # Errors
    /// `target-cannot-hold` when the architecture's readers would compute another network.
    pub fn gguf_metadata(
        &self,
        config: &Config,
        name: Option<&str>,
    ) -> Result<Vec<(String, MetaValue)>, FormatError> {
        self.check_gguf_wiring(config)?;
        Ok(gguf_keys::metadata(
            self.gguf_architectures[0],
            config,
            name,
        ))
    }

    /// Tensors that GGUF readers want besides the slots: `rope_freqs.weight` (f32) when frequencies
    /// are scaled by band.
    pub fn gguf_extra_tensors(&self, config: &Config) -> Vec<(String, Vec<f32>)> {
        let factors = rope_frequency_factors(config);
        factors
            .into_iter()
            .map(|f| (ROPE_FREQUENCIES.to_owned(), f))
            .collect()
    }

    /// The `config.json` of a checkpoint stored as `storage`. Keys of `original` (a `config.json` of
    /// the same model) are kept; without one it is written from nothing.
    pub fn hf_config_json(
        &self,
        config: &Config,
        original: Option<&Value>,
        storage: HfStorage,
    ) -> Value {
        let quantization = match storage {
            HfStorage::MasterWeights => match original {
                Some(original) => return original.clone(),
                None => Quantization::Online,
            },
            HfStorage::Packed(direction) => Quantization::Offline(direction),
            HfStorage::Dequantised if self.dequantised_has_scale(config) => {
                Quantization::Offline(ScaleDirection::Multiply)
            }
            HfStorage::Dequantised => Quantization::Unmarked,
        };
        hf_config::write(self.hf_identity, config, original, quantization)
    }

    /// Whether a linear stored as `trit * scale` numbers needs a `weight_scale` of 1 beside it: with
    /// one, readers quantise activations and take the numbers as they are; without one and without a
    /// `quantization_config`, they run an ordinary dense model.
    pub fn dequantised_has_scale(&self, config: &Config) -> bool {
        config.activation_quantization == ActivationQuantization::Int8PerToken
            || self.unmarked_floats == UnmarkedFloats::MasterWeights
    }

    fn check_gguf_wiring(&self, config: &Config) -> Result<(), FormatError> {
        let arch = self.gguf_architectures[0];
        let wiring = self.gguf_wiring;
        let refuse = |key: &str, found: String, expected: String| {
            Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!(
                    "readers of architecture `{arch}` compute {expected}, the model has {found}"
                ),
            )
            .in_tensor(key)
            .hint("choose a Hugging Face target"))
        };
        if config.hidden_act != wiring.activation {
            let (found, expected) = (config.hidden_act.as_str(), wiring.activation.as_str());
            return refuse("hidden_act", found.to_owned(), expected.to_owned());
        }
        if let RopeScaling::Yarn(yarn) = config.rope.scaling {
            let found = (yarn.beta_fast, yarn.beta_slow);
            let readers = (Yarn::BETA_FAST, Yarn::BETA_SLOW);
            if found != readers {
                let say = |(fast, slow)| format!("YaRN with beta_fast {fast}, beta_slow {slow}");
                return refuse("rope_scaling", say(found), say(readers));
            }
        }
        if config.attn_sub_norm != wiring.sub_norms || config.ffn_sub_norm != wiring.sub_norms {
            let say = |yes: bool| if yes { "sub-norms" } else { "no sub-norms" }.to_owned();
            return refuse("sub_norm", say(!wiring.sub_norms), say(wiring.sub_norms));
        }
        if !config.tie_word_embeddings && !wiring.output_head {
            let expected = "the embedding as output head".to_owned();
            return refuse(
                "lm_head.weight",
                "an output head of its own".to_owned(),
                expected,
            );
        }
        Ok(())
    }

    /// What `config.json` says about the linears.
    ///
    /// # Errors
    /// `unknown-quantization`, naming key and value.
    pub fn quantization(&self, config_json: &Value) -> Result<Quantization, FormatError> {
        quantization::read(config_json)
    }
}

/// Every family. Adding one is a file, a `mod` line and a row.
pub static FAMILIES: &[&Family] = &[
    &bitnet_2b_4t::FAMILY,
    &llama_b1_58::FAMILY,
    &bitnet_b1_58::FAMILY,
];

/// The family of this name.
pub fn family_by_name(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|f| f.name == name)
}

/// The family a `config.json` belongs to.
pub(crate) fn family_of_config(config: &Value) -> Result<&'static Family, FormatError> {
    let found = FAMILIES.iter().copied().find(|f| (f.matches)(config));
    found.ok_or_else(|| hf_config::unknown_family(config, FAMILIES.iter().map(|f| f.hf_identity)))
}

/// The family of a GGUF file's architecture string.
pub(crate) fn family_of_gguf(file: &TensorFile) -> Result<&'static Family, FormatError> {
    let arch = gguf_keys::architecture(file)?;
    let found = FAMILIES
        .iter()
        .copied()
        .find(|f| f.gguf_architectures.contains(&arch));
    found.ok_or_else(|| {
        let known: Vec<_> = FAMILIES
            .iter()
            .flat_map(|f| f.gguf_architectures.iter().copied())
            .collect();
        crate::config::bad_key(
            gguf_keys::ARCHITECTURE,
            &format!("`{arch}`"),
            &format!("one of {}", known.join(", ")),
        )
    })
}

#[cfg(test)]
mod tests;
