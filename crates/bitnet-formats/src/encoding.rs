//! How the elements of one tensor are stored.
//!
//! Invariant: whatever a container says about a type ends as one of five kinds here: plain
//! numbers, a dense block quantization (embeddings and heads only), a ternary packing, a type that is
//! known by name and size only, or a type id that is not known. The last two are never interpreted.

use crate::foreign::{ForeignType, foreign_type_by_name};
use crate::packing::{Packing, packing_by_name};
use bitnet_ternary::BlockType;

/// Plain numbers, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum PlainType {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl PlainType {
    const ALL: [Self; 13] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
    ];

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// Whether this is one of the three float types that weights come in.
    pub fn is_float_weight(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::Bf16)
    }

    /// The safetensors spelling.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
        }
    }
}

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy)]
pub enum Encoding {
    /// Plain numbers.
    Plain(PlainType),
    /// A dense block quantization.
    Block(BlockType),
    /// Ternary weights in one of [`crate::PACKINGS`].
    Ternary(&'static dyn Packing),
    /// A GGUF type that is known and not read: `iq4_xs`.
    Foreign(&'static ForeignType),
    /// A GGUF type id we do not know; its length is the distance to the next tensor.
    Unknown(u32),
}

impl Encoding {
    /// Name for people and reports: `bf16`, `q6_k`, `i2_s`, `type-99`.
    pub fn name(&self) -> String {
        match self {
            Self::Plain(p) => p.safetensors_name().to_ascii_lowercase(),
            Self::Block(block) => block.name().to_owned(),
            Self::Ternary(p) => p.name().to_owned(),
            Self::Foreign(foreign) => foreign.name.to_owned(),
            Self::Unknown(id) => format!("type-{id}"),
        }
    }

    /// The encoding with this [`name`](Self::name); unknown types have none.
    pub fn from_name(name: &str) -> Option<Self> {
        PlainType::ALL
            .into_iter()
            .map(Self::Plain)
            .chain(BlockType::ALL.into_iter().map(Self::Block))
            .find(|e| e.name() == name)
            .or_else(|| packing_by_name(name).map(Self::Ternary))
            .or_else(|| foreign_type_by_name(name).map(Self::Foreign))
    }
}

impl PartialEq for Encoding {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Plain(a), Self::Plain(b)) => a == b,
            (Self::Block(a), Self::Block(b)) => a == b,
            (Self::Ternary(a), Self::Ternary(b)) => a.name() == b.name(),
            (Self::Foreign(a), Self::Foreign(b)) => a == b,
            (Self::Unknown(a), Self::Unknown(b)) => a == b,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreign::FOREIGN_TYPES;
    use crate::packing::PACKINGS;

    #[test]
    fn names_lead_back_to_their_encodings() {
        let plain = PlainType::ALL.into_iter().map(Encoding::Plain);
        let block = BlockType::ALL.into_iter().map(Encoding::Block);
        let ternary = PACKINGS.iter().copied().map(Encoding::Ternary);
        let foreign = FOREIGN_TYPES.iter().map(Encoding::Foreign);
        for e in plain.chain(block).chain(ternary).chain(foreign) {
            assert_eq!(Encoding::from_name(&e.name()), Some(e));
        }
        assert_eq!(Encoding::from_name("type-99"), None);
    }
}
