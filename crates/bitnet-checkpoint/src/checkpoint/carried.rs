//! Tensors of parts that are not computed, as the other container has them.
//!
//! Invariant: what has a counterpart means the same there: the bytes of a matrix, the gain of a norm.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Checkpoint, DenseMeaning};
use crate::family::Counterpart;
use crate::slot::Slot;
use crate::storage::values::small_values;
use bitnet_formats::{Encoding, FormatError, TensorInfo};

impl Checkpoint {
    /// The name of a carried tensor in the other kind of container, GGUF or a checkpoint directory; `None` where it has
    /// no place, or is stored in a type that only its own container has.
    pub fn carried_as(&self, info: &TensorInfo) -> Option<Counterpart> {
        if !matches!(info.encoding, Encoding::Plain(plain) if plain.is_float_weight()) {
            return None;
        }
        let found = self.family.predictor(&info.name, &self.config)?;
        // a second block would have to share what the first has; few names get here, so few look at all others
        let is_later =
            |other: &TensorInfo| self.family.is_later_predictor(&other.name, &self.config);
        (!self.carried.iter().any(is_later)).then_some(found)
    }

    /// Whether norms of this checkpoint hold `w` and mean `1 + w`.
    pub fn stores_offsets(&self) -> bool {
        self.dense_meaning(Slot::OutputNorm) == DenseMeaning::PlusOne
    }

    /// The gains of a norm that is carried and not computed.
    ///
    /// # Errors
    /// Whatever is wrong with its bytes.
    pub fn carried_gains(&self, info: &TensorInfo) -> Result<Vec<f32>, FormatError> {
        let Encoding::Plain(plain) = info.encoding else {
            return Ok(Vec::new());
        };
        let mut gains =
            small_values(plain, &self.file.read(info)?).map_err(|e| e.in_tensor(&info.name))?;
        if self.stores_offsets() {
            gains.iter_mut().for_each(|gain| *gain += 1.0);
        }
        Ok(gains)
    }
}
