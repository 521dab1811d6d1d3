//! Whether a rotation fits a network.
//!
//! Invariant: nothing here reads a file; what a file says of a rotation was understood before.

use super::Config;
use crate::rotation::{NOT_WHOLE, ROTATION_KEYS, Rotation};
use crate::slot::Slot;
use bitnet_formats::{ErrorCode, FormatError};

impl Config {
    /// Refuses a rotation of matrices whose width is not whole blocks or has no signs.
    pub(crate) fn check_rotation(&self, rotation: &Rotation) -> Result<(), FormatError> {
        let embeddings = rotation.embeddings.then_some(Slot::TokenEmbeddings);
        for slot in rotation.folded.iter().copied().chain(embeddings) {
            let width = self.shape(slot).last().copied().unwrap_or(0);
            let is_known = rotation.signs.is_empty() || rotation.signs.contains_key(&width);
            let block = rotation.block_size;
            if width == 0 || !width.is_multiple_of(block) || !is_known {
                let message = format!(
                    "expected a width of whole blocks of {block} with signs of its own, found {width}"
                );
                return Err(FormatError::new(ErrorCode::Malformed, message)
                    .in_tensor(&slot.to_string())
                    .hint(NOT_WHOLE));
            }
        }
        Ok(())
    }

    /// Refuses a rotation of only some of the matrices that read one input, for callers that compute: the input is
    /// rotated once for all of them.
    ///
    /// # Errors
    /// `unsupported-config`.
    pub fn check_rotated_inputs(&self) -> Result<(), FormatError> {
        let Some(rotation) = self.rotation.as_deref() else {
            return Ok(());
        };
        for (layer, block) in self.blocks().enumerate() {
            for group in block.shared_inputs() {
                let slots = group.iter().map(|slot| Slot::Layer(layer, *slot));
                let (turned, others): (Vec<_>, Vec<_>) =
                    slots.partition(|slot| rotation.turns(*slot));
                if let (Some(turned), Some(other)) = (turned.first(), others.first()) {
                    let message = format!(
                        "{turned} is rotated and {other} is not; linears that read one input are computed here only if all of them are rotated or none is"
                    );
                    return Err(FormatError::new(ErrorCode::UnsupportedConfig, message)
                        .in_tensor(ROTATION_KEYS)
                        .hint("convert the model again from its unrotated weights, and rotate all linears of a layer"));
                }
            }
        }
        Ok(())
    }
}
