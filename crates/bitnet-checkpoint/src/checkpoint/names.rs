//! What a model calls itself: architecture, name, author, license.
//!
//! Invariant: never the name of a file or directory, so that the same model gives the same bytes wherever it lies.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::Checkpoint;
use crate::family;
use serde_json::Value;

/// The key transformers keeps a model's name under.
pub const NAME_KEY: &str = "_name_or_path";

impl Checkpoint {
    /// The architecture that the model says it has: that of its metadata, or the first of `architectures`.
    pub fn architecture(&self) -> String {
        match self.directory {
            Some(_) => self.hf_architecture(),
            None => family::gguf_architecture(&self.file)
                .unwrap_or_default()
                .to_owned(),
        }
    }

    /// The class of transformers that computes the model.
    pub fn hf_architecture(&self) -> String {
        let named = self.config_json.as_ref();
        let named = named.and_then(|c| c.get("architectures")?.get(0)?.as_str());
        named.unwrap_or(self.family.hf_identity.1).to_owned()
    }

    /// Whether this is a pack of rotated weights for MLX, whose names and forms are its own.
    pub fn is_pack(&self) -> bool {
        self.config_json
            .as_ref()
            .is_some_and(family::rotation::is_pack)
    }

    /// The name of the model, if it has one.
    pub fn name(&self) -> Option<String> {
        let name = match &self.config_json {
            Some(config) => config.get(NAME_KEY).and_then(Value::as_str),
            None => family::gguf_name(&self.file),
        };
        name.filter(|name| !name.is_empty()).map(str::to_owned)
    }

    /// What the model says about itself (author, license, tags) and no file of a Hugging Face checkpoint has a
    /// place for, as text: for the metadata of the weights.
    pub fn descriptions(&self) -> Vec<(String, String)> {
        match self.directory {
            Some(_) => Vec::new(),
            None => family::descriptions(&self.file),
        }
    }
}
