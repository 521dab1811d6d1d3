//! Which tensor fills which slot, and by what rule.
//!
//! Invariant: every tensor of the file ends in exactly one place: a slot, the scale of a slot, or the
//! short list of tensors that are known to say nothing new. Whatever is missing, left over, of another
//! shape or of another type is an error naming the tensor.

mod affine;
mod gguf;
mod gpu;
mod hugging_face;
mod tiles;

pub use self::affine::MLX_PACKING;
pub(super) use self::affine::module as affine_module;
pub(super) use self::gguf::{forced_layout, gguf, settle_activations};
pub use self::gpu::GPU_PACKING;
pub use self::hugging_face::HF_PACKING;
pub(super) use self::hugging_face::hugging_face;
pub use self::tiles::{
    TILES_ALIGNMENT, TILES_FORMAT, TILES_VERSION, is_tiles, tiles_entry, tiles_shape,
};

use super::values::{self, Evidence};
use super::{LinearSource, Source};
use crate::config::Config;
use crate::family::Family;
use crate::slot::Slot;
use bitnet_formats::{Encoding, ErrorCode, FormatError, TensorFile, TensorInfo};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Everything a checkpoint is besides its file.
pub(super) struct Resolved {
    pub family: &'static Family,
    pub config: Config,
    pub directory: Option<PathBuf>,
    pub config_json: Option<Value>,
    pub declared_vocab_size: Option<usize>,
    pub sources: HashMap<Slot, Source>,
}

fn error(code: ErrorCode, info: &TensorInfo, message: String) -> FormatError {
    FormatError::new(code, message).in_tensor(&info.name)
}

/// Tensors of a file by name, and which of them were asked for.
struct Tensors<'a> {
    file: &'a TensorFile,
    used: HashSet<&'a str>,
}

impl<'a> Tensors<'a> {
    fn new(file: &'a TensorFile) -> Self {
        Self {
            file,
            used: HashSet::new(),
        }
    }

    /// The tensor of one of these names.
    fn find(&mut self, names: &[&str]) -> Option<&'a TensorInfo> {
        let info = names.iter().find_map(|name| self.file.tensor(name))?;
        self.used.insert(&info.name);
        Some(info)
    }

    fn dense(
        &mut self,
        names: &[&str],
        slot: Slot,
        config: &Config,
        plus_one: bool,
        sources: &mut HashMap<Slot, Source>,
    ) -> Result<(), FormatError> {
        let info = self.find(names).ok_or_else(|| missing(names))?;
        let expected = config.shape(slot);
        if info.shape != expected {
            let message = format!("expected shape {expected:?}, found {:?}", info.shape);
            return Err(error(ErrorCode::WrongShape, info, message));
        }
        let vector = expected.len() == 1;
        match info.encoding {
            Encoding::Plain(plain) if plain.is_float_weight() => {}
            Encoding::Block(_) if !vector => {}
            Encoding::Unknown(id) => {
                let message =
                    format!("expected f32, f16, bf16, q8_0 or q6_k, found the unknown type {id}");
                return Err(error(ErrorCode::UnknownType, info, message));
            }
            other => {
                let expected = if vector {
                    "f32, f16 or bf16"
                } else {
                    "f32, f16, bf16, q8_0 or q6_k"
                };
                let message = format!("expected {expected}, found {}", other.name());
                return Err(error(ErrorCode::WrongType, info, message));
            }
        }
        let source = Source::Dense {
            info: info.clone(),
            plus_one,
            finite: AtomicBool::new(false),
        };
        sources.insert(slot, source);
        Ok(())
    }

    /// Whether the numbers of a table of rows (embeddings, output head) are trits times scales: whatever wrote
    /// them, the network computes the same as from packed ones.
    fn is_ternary_table(&self, info: &TensorInfo, shape: &[usize]) -> Result<bool, FormatError> {
        match (info.encoding, shape) {
            (Encoding::Plain(plain), [_, cols])
                if plain.is_float_weight() && info.shape == shape =>
            {
                values::is_ternary(plain, self.file.bytes(info), *cols)
                    .map_err(|e| e.in_tensor(&info.name))
            }
            _ => Ok(false),
        }
    }

    /// A scale beside a linear: one float.
    fn scale(&mut self, name: &str) -> Result<Option<TensorInfo>, FormatError> {
        let Some(info) = self.find(&[name]) else {
            return Ok(None);
        };
        if info.shape.iter().product::<usize>() != 1 || info.shape.len() > 2 {
            let message = format!("expected shape [1], found {:?}", info.shape);
            return Err(error(ErrorCode::WrongShape, info, message));
        }
        match info.encoding {
            Encoding::Plain(plain) if plain.is_float_weight() => Ok(Some(info.clone())),
            other => {
                let message = format!("expected bf16, f16 or f32, found {}", other.name());
                Err(error(ErrorCode::WrongType, info, message))
            }
        }
    }

    /// Refuses every tensor that nothing asked for and that `tolerated` does not explain away.
    fn finish(
        &self,
        tolerated: impl Fn(&TensorInfo) -> Result<bool, FormatError>,
    ) -> Result<(), FormatError> {
        for info in self.file.tensors() {
            if self.used.contains(info.name.as_str()) || tolerated(info)? {
                continue;
            }
            let message = if info.name.ends_with(".bias") {
                "expected no biases, found one".to_owned()
            } else {
                format!(
                    "expected no tensor of this name, found {:?} {}",
                    info.shape,
                    info.encoding.name()
                )
            };
            return Err(error(ErrorCode::ExtraTensor, info, message).hint(
                "the configuration has no place for it: the model would compute something else",
            ));
        }
        Ok(())
    }

    /// Whether an output head that the configuration says is tied holds the same bytes as the
    /// embedding; an error naming both when not.
    fn is_tied_copy(&self, head: &TensorInfo, embedding: &TensorInfo) -> Result<bool, FormatError> {
        if head.encoding == embedding.encoding
            && head.shape == embedding.shape
            && self.file.bytes(head) == self.file.bytes(embedding)
        {
            return Ok(true);
        }
        let message = format!(
            "expected the bytes of `{}` (the configuration ties the two), found others",
            embedding.name
        );
        Err(error(ErrorCode::ExtraTensor, head, message))
    }
}

fn missing(names: &[&str]) -> FormatError {
    let name = names.first().copied().unwrap_or_default();
    FormatError::new(ErrorCode::MissingTensor, "expected this tensor, found none").in_tensor(name)
}

fn look(file: &TensorFile, source: &LinearSource) -> Result<Evidence, FormatError> {
    match source.info.encoding {
        Encoding::Plain(plain) => values::evidence(plain, file.bytes(&source.info), source.cols)
            .map_err(|e| e.in_tensor(&source.info.name)),
        _ => Ok(Evidence::Zeros),
    }
}

fn not_ternary(file: &TensorFile, source: &LinearSource) -> FormatError {
    let place = |e: FormatError| match file.parts.get(source.info.part) {
        Some(part) => e.in_tensor(&source.info.name).in_file(part.path()),
        None => e.in_tensor(&source.info.name),
    };
    let Encoding::Plain(plain) = source.info.encoding else {
        return place(FormatError::new(
            ErrorCode::NotTernary,
            "expected ternary weights",
        ));
    };
    match values::absmean_error(plain, file.bytes(&source.info), source.cols) {
        Err(e) => place(e),
        Ok(figure) => place(
            FormatError::new(
                ErrorCode::NotTernary,
                format!(
                    "expected one magnitude per tensor, row or group, found ordinary weights; \
                     rounding them to trits would change them by {figure:.2} of their size"
                ),
            )
            .hint("pass --ternary-trained if these are master weights of a BitNet-trained model"),
        ),
    }
}
