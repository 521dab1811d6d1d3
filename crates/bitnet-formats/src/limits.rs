//! What a file may ask for, consulted before every allocation.
//!
//! Invariant: nothing is allocated because a file says so, only because the file is long enough to
//! contain it and the limit allows it. The limits are those of the peers where they have one
//! (`formats/container/gguf.md`, "Hostile files").

/// Upper bounds for untrusted headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest safetensors header, bytes (the format's own cap: 100 MB).
    pub header_bytes: u64,
    /// Longest string, bytes (llama.cpp: 2^30).
    pub string_bytes: u64,
    /// Longest metadata array, elements (llama.cpp: 2^30).
    pub array_elements: u64,
    /// Most tensors in a model. The largest mixtures of experts that are published have 100,000.
    pub tensors: u64,
    /// Most metadata entries.
    pub metadata_entries: u64,
    /// Longest tensor name, bytes.
    pub name_bytes: u64,
    /// Longest pickle of a PyTorch file, bytes; one that describes 10,000 tensors has 2 MB.
    pub pickle_bytes: u64,
    /// Largest index of shards, bytes.
    pub json_bytes: u64,
    /// Largest file beside the weights (tokenizer.json), bytes.
    pub side_file_bytes: u64,
    /// Largest certificate, bytes; one of 10,000 tensors has 6 MB.
    pub certificate_bytes: u64,
    /// Largest text that is read for its tokens, or other file of records, bytes.
    pub text_bytes: u64,
    /// Largest configuration (config.json, generation_config.json, modules.json), bytes; those of published models
    /// are shorter than 100 kB. Parsed JSON takes many times the memory of its text.
    pub config_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            certificate_bytes: 32 << 20,
            text_bytes: 4 << 20,
            header_bytes: 100_000_000,
            string_bytes: 1 << 30,
            array_elements: 1 << 30,
            tensors: 1 << 17,
            metadata_entries: 1 << 16,
            name_bytes: 1 << 16,
            pickle_bytes: 4 << 20,
            json_bytes: 256 << 20,
            side_file_bytes: 256 << 20,
            config_bytes: 1 << 20,
        }
    }
}
