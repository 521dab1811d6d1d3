//! What a BitNet network is and how it computes the next token.
//!
//! Invariant of this crate: one model has one answer. Logits are bit-identical for every kernel,
//! thread count, batch split of the prompt, container and packing (`formats/numerics.md`).
//! A [`Checkpoint`] is where files become slots; a [`Model`] is where slots become arithmetic.

#![forbid(unsafe_code)]

mod attention;
mod bit_linear;
mod certificate;
mod chat_template;
mod checkpoint;
mod config;
mod dense_head;
mod family;
mod forward;
mod kv_cache;
mod profile;
mod prompt_file;
mod rope;
mod sampler;
mod slot;
mod threads;
mod tokenizer;
mod vocabulary;
mod weights;

pub use bitnet_formats::{ErrorCode, FormatError, Limits};
pub use certificate::{
    CERTIFICATE_VERSION, Certificate, Certified, DenseRecord, FileRecord, Seal, TensorDigest,
    TernaryHasher, TernaryRecord, TextDigest, Verdict, code_row_len, dense_sha256,
    scale_normal_form, trit_codes, trit_sha256,
};
pub use chat_template::{ChatMessage, ChatTemplate};
pub use checkpoint::{
    Checkpoint, DenseTensor, GPU_PACKING, HF_PACKING, LayoutEvidence, LayoutReading, LayoutReason,
    LayoutSample, LinearRule, LinearSource, MLX_PACKING, OpenOptions, ROTATION_KEYS, Rotation,
    TILES_ALIGNMENT, TILES_FORMAT, TILES_VERSION, TernaryRows, WRITER_KEYS, gguf_from_hf_rows,
    gguf_row, has_known_family, hf_from_gguf_rows, hf_row, is_tiles, layout_readings,
    side_file_names, tiles_entry, tiles_shape, weight_scale_bytes,
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
pub use forward::{HeadPasses, Logits, Model, Session};
pub use kv_cache::{KvCache, KvType};
pub use profile::{Part, Profile};
pub use prompt_file::{PROMPT_FILE_BYTES, PromptEntry, parse_prompt_file};
pub use sampler::{Sampler, SamplerOptions};
pub use slot::{LayerSlot, Slot};
pub use tokenizer::{
    DecodeStream, Tokenizer, TokenizerDigest, TokenizerNote, check_tokenizer_rules,
    has_gguf_tokenizer, is_refused_tokenizer, notes_of_directory, notes_of_gguf,
    pre_tokenizer_names, pre_tokenizer_of_vocabulary, pre_tokenizer_of_word, tokenizer_class_note,
    tokenizer_files_from_gguf, tokenizer_to_gguf, tokenizer_to_gguf_with_notes,
};
pub use weights::{LoadOptions, TilesIn};
