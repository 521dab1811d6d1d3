//! What a checkpoint says: its configuration, its slots, where and how each weight is stored, and
//! the certificate of its contents.
//!
//! Invariant of this crate: a [`Checkpoint`] is complete. Every slot of its configuration has a
//! tensor of the right shape, or opening fails; evidence in the bytes beats the configuration, the
//! configuration beats convention, and what is assumed is reported.

#![forbid(unsafe_code)]

mod certificate;
mod checkpoint;
mod config;
mod family;
mod slot;

pub use certificate::{
    CERTIFICATE_VERSION, Certificate, Certified, DenseRecord, FileRecord, Seal, TensorDigest,
    TernaryHasher, TernaryRecord, TextDigest, Verdict, code_row_len, dense_sha256,
    scale_normal_form, trit_codes, trit_sha256,
};
pub use checkpoint::{
    Checkpoint, DenseTensor, GPU_PACKING, HF_PACKING, LayoutEvidence, LayoutReading, LayoutReason,
    LayoutSample, LinearRule, LinearSource, MLX_PACKING, OpenOptions, ROTATION_KEYS, Rotation,
    TILES_ALIGNMENT, TILES_FORMAT, TILES_VERSION, TernaryRows, Tiles, WRITER_KEYS,
    gguf_from_hf_rows, gguf_row, has_known_family, hf_from_gguf_rows, hf_row, is_tiles,
    layout_readings, side_file_names, tiles_entry, tiles_shape, weight_scale_bytes,
};
pub use config::{
    Activation, ActivationQuantization, Config, EmbeddingSettings, ExtraNorms, Factors, Pooling,
    Rope, RopeScaling, SlidingWindow, Yarn,
};
pub use family::{
    FAMILIES, Family, GPU_SCALES, GgufWindows, GgufWiring, GpuPlace, HfStorage, Quantization,
    ScaleDirection, UnknownKey, UnmarkedFloats, check_gpu_network, family_by_name, gpu_place,
    pooling_files, pooling_settings,
};
pub use slot::{LayerSlot, Slot};
