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
    /// Most tensors in a model.
    pub tensors: u64,
    /// Most metadata entries.
    pub metadata_entries: u64,
    /// Longest tensor name, bytes.
    pub name_bytes: u64,
    /// Longest pickle of a PyTorch file, bytes; one that describes 10,000 tensors has 2 MB.
    pub pickle_bytes: u64,
    /// Largest JSON side file (config.json, tokenizer.json), bytes.
    pub json_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 100_000_000,
            string_bytes: 1 << 30,
            array_elements: 1 << 30,
            tensors: 1 << 20,
            metadata_entries: 1 << 20,
            name_bytes: 1 << 16,
            pickle_bytes: 4 << 20,
            json_bytes: 256 << 20,
        }
    }
}
