//! The tokenizer that comes with a model.

use bitnet_checkpoint::Checkpoint;
use bitnet_formats::FormatError;
use bitnet_text::Tokenizer;

/// The tokenizer that comes with a model.
pub(crate) fn tokenizer_of(checkpoint: &Checkpoint) -> Result<Option<Tokenizer>, FormatError> {
    match &checkpoint.directory {
        _ if checkpoint.is_gguf() => Tokenizer::from_gguf(&checkpoint.file.metadata),
        Some(directory) => Tokenizer::from_directory(directory),
        None => Ok(None),
    }
}
