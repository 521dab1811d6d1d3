//! Which tensor fills which slot, and how it is stored.
//!
//! Invariant: every tensor of the file ends in exactly one place: a slot, the scale of a slot, or the
//! short list of tensors that are known to say nothing new. Whatever is missing, left over, of another
//! shape or of another type is an error naming the tensor.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod gguf;
mod hugging_face;

pub(super) use self::gguf::{forced_layout, gguf, settle_activations};
pub(super) use self::hugging_face::hugging_face;

use super::Source;
use super::shaping::Form;
use crate::config::Config;
use crate::family::Family;
use crate::slot::{LayerSlot, Slot};
use crate::storage::tensors::{Tensors, error, missing};
use bitnet_formats::{DENSE_NAMES, Encoding, ErrorCode, FormatError, TensorInfo};
use serde_json::Value;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Everything a checkpoint is besides its file.
pub(super) struct Resolved {
    pub family: &'static Family,
    pub config: Config,
    pub directory: Option<PathBuf>,
    pub config_json: Option<Value>,
    pub declared_vocab_size: Option<usize>,
    pub skipped: Vec<String>,
    pub sources: HashMap<Slot, Source>,
    /// Tensors of parts that are not computed.
    pub carried: Vec<TensorInfo>,
}

/// Fills a slot with a dense tensor.
fn dense(
    tensors: &mut Tensors<'_>,
    names: &[&str],
    slot: Slot,
    config: &Config,
    form: Form,
    sources: &mut HashMap<Slot, Source>,
) -> Result<(), FormatError> {
    let info = tensors.find(names).ok_or_else(|| missing(names))?;
    let expected = config.shape(slot);
    if form.table.is_some() {
        // its tensors were checked together
        sources.insert(slot, source_of(info, expected, form));
        return Ok(());
    }
    let is_kernel = matches!(slot, Slot::Layer(_, LayerSlot::Conv1d));
    // one input channel for each: an axis of one, in the middle or at the end
    let squeezed = match (is_kernel, &info.shape[..]) {
        (true, [channels, 1, taps] | [channels, taps, 1]) => [*channels, *taps] == expected[..],
        _ => false,
    };
    if !squeezed {
        tensors.check_shape(info, &expected)?;
    }
    let vector = expected.len() == 1;
    match info.encoding {
        Encoding::Plain(plain) if plain.is_float_weight() => {}
        Encoding::Block(_) if !vector => {}
        Encoding::Unknown(id) => {
            let message = format!("expected {DENSE_NAMES}, found the unknown type {id}");
            return Err(error(ErrorCode::UnknownType, info, message));
        }
        Encoding::Foreign(foreign) if !vector => {
            let name = foreign.name;
            let message =
                format!("expected {DENSE_NAMES}, found {name}, which this program does not read");
            let hint = "get a file whose embeddings and output head have one of these types, or \
                        run this one with llama.cpp";
            return Err(error(ErrorCode::UnknownType, info, message).hint(hint));
        }
        other => {
            let expected = match vector {
                true => "f32, f16 or bf16",
                false => DENSE_NAMES,
            };
            let message = format!("expected {expected}, found {}", other.name());
            return Err(error(ErrorCode::WrongType, info, message));
        }
    }
    sources.insert(slot, source_of(info, expected, form));
    Ok(())
}

fn source_of(info: &TensorInfo, shape: Vec<usize>, form: Form) -> Source {
    Source::Dense {
        info: info.clone(),
        shape,
        form,
        finite: AtomicBool::new(false),
    }
}
