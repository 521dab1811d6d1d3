//! What a checkpoint says: its configuration, its slots, where and how each weight is stored, and
//! the certificate of its contents.
//!
//! Invariant of this crate: a [`Checkpoint`] is complete. Every slot of its configuration has a
//! tensor of the right shape, or opening fails; evidence in the bytes beats the configuration, the
//! configuration beats convention, and what is assumed is reported.

#![forbid(unsafe_code)]

mod block;
mod certificate;
mod checkpoint;
mod config;
mod family;
mod rotation;
mod row_order;
mod slot;
mod statement;
mod storage;

pub use block::{Activation, Attention, Block, Experts, Gated, GatedDeltaNet, Mixer, Mlp};
pub use certificate::{
    Basis, CERTIFICATE_VERSION, Certificate, Certified, DensePieces, DenseRecord, FileRecord,
    HashedFile, PARTIAL_CERTIFICATE_VERSION, PartialCertificate, Seal, SourceOrigin, TensorDigest,
    TernaryHasher, TernaryRecord, TextDigest, Verdict, code_row_len, dense_sha256, dense_sha256_of,
    scale_normal_form, trit_codes, trit_sha256,
};
pub use checkpoint::{
    Checkpoint, DenseMeaning, DenseReader, DenseTensor, LayoutEvidence, LayoutReading,
    LayoutReason, LayoutSample, NAME_KEY, OpenOptions, REWRITTEN_SIDE_FILES, TernaryRows, Tiles,
    TokenizerSummary, WRITER_KEYS, has_known_family, is_vocabulary_alone, layout_readings,
    pretty_json, records_layout, shape_for_gguf, shape_for_hf, side_file_names,
};
pub use config::{
    ActivationQuantization, Config, EmbeddingSettings, ExtraNorms, Factors, Hybrid, LongRope,
    MixtureOfExperts, Pooling, Rope, RopeScaling, SlidingWindow, Yarn,
};
pub use family::Counterpart;
pub use family::stacked_hf;
pub use family::{
    FAMILIES, Family, GGUF_ARCHITECTURE_KEY, GGUF_FILE_TYPE_KEY, GPU_SCALES, GgufWindows,
    GgufWiring, GpuPlace, HfStorage, Quantization, ScaleDirection, UnknownKey, UnmarkedFloats,
    check_gpu_network, family_by_name, gguf_architecture, gpu_place, pooling_settings,
};
pub use rotation::{ROTATION_KEYS, Rotation};
pub use row_order::{
    StoredOrder, TiledHeads, gguf_from_hf_rows, gguf_row, hf_from_gguf_rows, hf_row,
};
pub use slot::{ExpertLinear, LayerSlot, Slot};
pub use statement::{
    PREDICATE_TYPE, SIGNATURE_NAMESPACE, STATEMENT_TYPE, SignedStatement, SigningKey, TrustedKeys,
    signature_path, statement, statement_path,
};
pub use storage::{
    CodedRows, Form, GPU_PACKING, HF_PACKING, LinearSource, MLX_PACKING, Made, Output, Part,
    STORAGES, ScaleForm, ScaleTypes, SharedScales, Storage, TILES_ALIGNMENT, TILES_FORMAT,
    TILES_VERSION, WriteStorage, check_float, is_exact_scale, is_tiles, rounded_scales, rows,
    scale_name, storage_by_name, tiles_entry, tiles_shape, weight_scale_bytes,
};
