//! Bytes on disk to and from named tensors and trits; trusts nothing it reads.
//!
//! Invariant of this crate: every length, offset and dimension is checked before it is used or
//! allocated for, and every failure is a [`FormatError`] that names place, expected and found.
//! Containers (how named tensors lie in a file) and packings (how trits lie in bytes) are separate
//! axes: after parsing, every container is the same plain [`TensorFile`].

// bytes, sizes and settings of files are interpreted here
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

/// The step through the cases of a test: Miri takes some hundred times as long, and tries every `nth`.
#[cfg(test)]
const fn every(nth: usize) -> usize {
    if cfg!(miri) { nth } else { 1 }
}

mod absent;
mod artifact;
mod bytes;
mod container;
mod dense;
mod encoding;
mod error;
mod evidence;
mod foreign;
mod hex;
mod input;
mod json_value;
mod limits;
mod origin;
mod packing;
mod path_names;
mod shell;
mod source;
mod strange;
mod tensor_file;
mod unread;

pub use artifact::{
    Artifact, ArtifactDirectory, FileDigest, Inputs, OlderFile, OutputLock, ScratchDirectory,
    Sha256Stream, Staged, check_file_name, check_output_name, file_digest, is_certificate_of_ours,
    names_directory, publish, publish_over, remove_partial_outputs, sweep_beside,
};
pub use bitnet_ternary::BlockType;
pub use container::{
    CONTAINERS, Container, Declared, Frames, GGUF_LAYOUT_KEY, GGUF_SPLIT_ID_KEY, Gguf, GgufEntry,
    Header, HeaderRemains, PlannedTensor, Pytorch, Reading, Safetensors, WritePlan, adapter_alone,
    container_by_name, gguf_type_rivals, header_remains, open, open_as, open_with,
    refuse_adapter_beside, stale_index, weight_files,
};
pub use dense::{DENSE_NAMES, Exactness, dense_len, dense_to_f32, encode_dense};
pub use encoding::{Encoding, PlainType};
pub use error::{Cause, ErrorCode, FormatError};
pub use evidence::{CodeLength, DECISIVE_BITS, code_length, doubtful_code_length};
pub use foreign::{FOREIGN_TYPES, ForeignType, foreign_type_by_name};
pub use hex::hex;
pub use input::{
    Input, check_side_file, open_regular, read_directory, read_file, read_side_file, read_to_limit,
};
pub use json_value::{parse_json_table, parse_json_value};
pub use limits::Limits;
pub use origin::{Origin, named, origin_of, shown};
pub use packing::{
    Affine, PACKINGS, PackedTensor, Packing, ScaleRounding, UnitRows, affine_rows, affine_scales,
    binary_rows, layouts_like, name_with_parameters, packing_by_name, same_layout_id,
    ternary_of_affine,
};
pub use path_names::{slashed, without_verbatim_prefix};
pub use shell::shell_word;
pub use source::{
    Bytes, Memory, Mount, Opener, Pread, Source, checked_len, open_in_memory, open_mapped,
    open_pread, open_source,
};
pub use strange::without_byte_order_mark;
pub use tensor_file::{MetaArray, MetaValue, Metadata, Strings, TensorFile, TensorInfo};
pub use unread::{JsonEntry, JsonScalar, Unread, UnreadBits, json_entries};
