//! Tensors of parts that are not computed: blocks that predict further tokens, a vision tower.
//!
//! Invariant: a tensor is in the output with its bytes, or with the gain of its norm in f32, or it is named as left out.

use super::{Action, Item, NotComputed, Planner};
use crate::stored::minus_ones;
use crate::targets::Kind;
use bitnet_formats::{Encoding, FormatError, PlainType, PlannedTensor, TensorInfo};

impl Planner<'_> {
    /// Plans them: as they are where the target has the same names for them, by their other names where it has those.
    pub(super) fn carry(&mut self) -> Result<(), FormatError> {
        let checkpoint = self.checkpoint;
        let gguf = self.request.target.kind == Kind::Gguf;
        let is_same = gguf == checkpoint.directory.is_none();
        let is_pack = self.is_pack() || checkpoint.is_pack();
        let mut not_computed = NotComputed::default();
        for info in &checkpoint.carried {
            let holds = gguf || matches!(info.encoding, Encoding::Plain(_));
            let item = match checkpoint.carried_as(info) {
                // norms of a checkpoint for MLX hold what GGUF holds, others do not
                Some(other) if other.is_norm && is_same && !gguf && !is_pack => {
                    match checkpoint.stores_offsets() {
                        true => Some(as_it_is(info)),
                        false => Some(self.norm(info, info.name.clone())?),
                    }
                }
                Some(other) if !is_same && !is_pack => Some(match other.is_norm {
                    true => self.norm(info, other.name)?,
                    false => Item {
                        tensor: PlannedTensor {
                            name: other.name,
                            ..as_it_is(info).tensor
                        },
                        ..as_it_is(info)
                    },
                }),
                _ if is_same && holds && self.is_pack() == checkpoint.is_pack() => {
                    Some(as_it_is(info))
                }
                _ => None,
            };
            match item {
                Some(item) => {
                    not_computed.carried.push(info.name.clone());
                    self.items.push(item);
                }
                None => not_computed.left_out.push(info.name.clone()),
            }
        }
        self.not_computed = not_computed;
        Ok(())
    }

    /// A norm in f32, as the target stores norms.
    fn norm(&self, info: &TensorInfo, name: String) -> Result<Item, FormatError> {
        let gains = self.checkpoint.carried_gains(info)?;
        let stored = match self.request.target.kind {
            Kind::Gguf => gains,
            Kind::HuggingFace => minus_ones(&gains).map_err(|e| e.in_tensor(&info.name))?,
        };
        let bytes: Vec<u8> = stored.into_iter().flat_map(f32::to_le_bytes).collect();
        Ok(Item {
            to: "f32".to_owned(),
            tensor: PlannedTensor {
                name,
                encoding: Encoding::Plain(PlainType::F32),
                shape: info.shape.clone(),
                len: bytes.len() as u64,
            },
            action: Action::Ready(bytes),
            ..as_it_is(info)
        })
    }
}

/// Name and bytes of the source.
fn as_it_is(info: &TensorInfo) -> Item {
    Item {
        slot: None,
        source_name: info.name.clone(),
        from: info.encoding.name(),
        to: info.encoding.name(),
        tensor: PlannedTensor {
            name: info.name.clone(),
            encoding: info.encoding,
            shape: info.shape.clone(),
            len: info.len,
        },
        action: Action::Carry(info.clone()),
        file: 0,
        offset: 0,
    }
}
