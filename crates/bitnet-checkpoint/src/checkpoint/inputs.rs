//! Which files a checkpoint was read from.
//!
//! Invariant: every file that opening, tokenizing and converting a checkpoint reads is among them, and no file of
//! weights that none of these reads.

use super::Checkpoint;
use bitnet_formats::Inputs;

/// Endings of files beside weights that belong to a model.
const READ: [&str; 7] = [
    ".json",
    ".jinja",
    ".model",
    ".txt",
    ".py",
    ".tiktoken",
    ".yaml",
];

impl Checkpoint {
    /// The files that this checkpoint was or will be read from; no output may replace one.
    pub fn inputs(&self) -> Inputs {
        let mut inputs = Inputs::new();
        inputs.add(&self.path);
        for part in &self.file.parts {
            inputs.add(part.path());
        }
        if let Some(directory) = &self.directory {
            inputs.add(directory);
            inputs.add_files_of(directory, &|name| {
                let name = name.to_ascii_lowercase();
                READ.iter().any(|end| name.ends_with(end)) && !name.ends_with("certificate.json")
            });
        }
        inputs
    }
}
