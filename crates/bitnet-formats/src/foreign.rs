//! Tensor types of GGUF files that are known by name and size, and not read: block quantizations of ggml that hold no
//! trits and are no [`BlockType`](crate::BlockType).
//!
//! Invariant: a row is a fact about other people's files (`ggml.h`): an id, a name, and the bytes of a block. Whether a
//! file that has the type is whole is checked with them; what the bytes mean is never looked at.

/// A tensor type that is known and not read.
#[derive(Debug, PartialEq, Eq)]
pub struct ForeignType {
    /// The id in GGUF files.
    pub id: u32,
    /// ggml's name, in lower case: `iq4_xs`.
    pub name: &'static str,
    /// Elements of a block; rows are whole blocks.
    pub block: usize,
    /// Bytes of a block, or 0 where rows have something besides blocks: the size is then not checked.
    pub bytes: u64,
    /// Whether other programs gave the id to another type, so that only sizes tell.
    pub is_shared: bool,
}

impl ForeignType {
    /// Bytes of a tensor of this shape; `None` for shapes that the type cannot have, and for types whose sizes are not
    /// known.
    pub fn stored_len(&self, shape: &[usize]) -> Option<u64> {
        let (cols, outer) = shape.split_last()?;
        let blocks = cols
            .checked_div(self.block)
            .filter(|_| self.has_size() && cols.is_multiple_of(self.block))?;
        let blocks = outer
            .iter()
            .try_fold(blocks, |n, &size| n.checked_mul(size))?;
        self.bytes.checked_mul(blocks as u64)
    }

    /// What its weights are.
    pub fn what(&self) -> &'static str {
        match self.name {
            "angelslim_2bit" => "Tencent's 2-bit type of -3, -1, 1 and 3 times a scale",
            "q1_0-g32" => "a binary type of older programs",
            _ => "a block quantization of ordinary weights",
        }
    }

    /// Whether the size of a tensor follows from its shape.
    pub fn has_size(&self) -> bool {
        self.bytes > 0
    }
}

/// The types of this id.
pub fn foreign_types(id: u32) -> impl Iterator<Item = &'static ForeignType> {
    FOREIGN_TYPES.iter().filter(move |row| row.id == id)
}

/// The type of this name.
pub fn foreign_type_by_name(name: &str) -> Option<&'static ForeignType> {
    FOREIGN_TYPES.iter().find(|row| row.name == name)
}

const fn row(id: u32, name: &'static str, block: usize, bytes: u64) -> ForeignType {
    ForeignType {
        id,
        name,
        block,
        bytes,
        is_shared: false,
    }
}

const fn shared(id: u32, name: &'static str, block: usize, bytes: u64) -> ForeignType {
    ForeignType {
        is_shared: true,
        ..row(id, name, block, bytes)
    }
}

/// Every known type that is not read.
pub static FOREIGN_TYPES: &[ForeignType] = &[
    // an intermediate type: ggml's C and Python disagree about its size, and no file has it
    row(9, "q8_1", 32, 0),
    row(15, "q8_k", 256, 292),
    row(16, "iq2_xxs", 256, 66),
    row(17, "iq2_xs", 256, 74),
    row(18, "iq3_xxs", 256, 98),
    row(19, "iq1_s", 256, 50),
    row(20, "iq4_nl", 32, 18),
    row(21, "iq3_s", 256, 110),
    row(22, "iq2_s", 256, 82),
    row(23, "iq4_xs", 256, 136),
    row(29, "iq1_m", 256, 56),
    // removed from ggml; files of 2024 have them
    row(31, "q4_0_4_4", 32, 18),
    row(32, "q4_0_4_8", 32, 18),
    row(33, "q4_0_8_8", 32, 18),
    shared(39, "mxfp4", 32, 17),
    shared(40, "nvfp4", 64, 36),
    // the first Q1_0 of Prism's fork, deleted before llama.cpp took the other one
    shared(40, "q1_0-g32", 32, 6),
    // AngelSlim's 2-bit layout, -3, -1, 1 and 3 times a scale; its type has no name of its own in files
    shared(41, "angelslim_2bit", 512, 130),
    // ik_llama.cpp; rows of the types without a size begin with a scale of their own, or are interleaved
    row(133, "q6_0", 32, 26),
    row(137, "iq2_k", 256, 76),
    row(138, "iq3_k", 256, 110),
    row(139, "iq4_k", 256, 144),
    row(140, "iq5_k", 256, 176),
    row(141, "iq6_k", 256, 212),
    row(144, "iq4_ks", 256, 0),
    row(145, "iq2_ks", 256, 0),
    row(146, "iq4_kss", 256, 0),
    row(152, "iq5_ks", 256, 0),
    row(153, "iq2_kt", 256, 0),
    row(154, "iq3_kt", 256, 0),
    row(155, "iq4_kt", 256, 0),
    row(156, "iq3_ks", 256, 0),
    row(157, "iq2_kl", 256, 0),
    row(158, "iq1_kt", 256, 0),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_sizes_follow_from_shapes() {
        let names: HashSet<_> = FOREIGN_TYPES.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), FOREIGN_TYPES.len());
        let alone = FOREIGN_TYPES.iter().filter(|row| !row.is_shared);
        let ids: HashSet<_> = alone.clone().map(|row| row.id).collect();
        assert_eq!(ids.len(), alone.count());
        let iq4_xs = foreign_type_by_name("iq4_xs").expect("a row");
        assert_eq!(iq4_xs.stored_len(&[2, 512]), Some(2 * 2 * 136));
        assert_eq!(iq4_xs.stored_len(&[2, 500]), None);
        assert_eq!(iq4_xs.stored_len(&[usize::MAX, 512]), None);
        let by_row = foreign_type_by_name("iq4_ks").expect("a row");
        assert_eq!(by_row.stored_len(&[2, 512]), None);
        assert!(foreign_types(99).next().is_none());
    }
}
