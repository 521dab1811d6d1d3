//! The record that a conversion leaves: digests of what was read and of what was written.
//!
//! Invariant: every digest was taken in the one pass over the source, from the values that were
//! written; no weight is read again to certify it. The layout is `formats/certificate.md`.

use crate::plan::Plan;
use crate::source_hash::sha256_hex;
use crate::targets::Kind;
use bitnet_checkpoint::{
    Certificate, Checkpoint, DenseRecord, FileRecord, REWRITTEN_SIDE_FILES, Seal, SourceOrigin,
    TernaryHasher, TernaryRecord, TextDigest, Verdict,
};
use bitnet_formats::hex;
use bitnet_formats::{FileDigest, FormatError, Gguf, Limits};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Values per block of a dense tensor's digest (`formats/certificate.md`).
const DENSE_BLOCK: usize = 1 << 20;

/// What the pass found out about the tensors.
#[derive(Debug, Default)]
pub struct Digests {
    /// Ternary tensors as the source has them.
    pub source: TernaryHasher,
    /// Ternary tensors as the output has them.
    pub output: TernaryHasher,
    /// Relative errors of rounded scales, by canonical name.
    pub rounded: BTreeMap<String, f64>,
    /// Dense tensors as the output has them, by canonical name.
    pub dense: BTreeMap<String, DenseRecord>,
}

/// The digest of a dense tensor whose values come piece by piece.
#[derive(Debug, Default)]
pub struct DenseDigest {
    block: Sha256,
    filled: usize,
    blocks: Vec<u8>,
}

impl DenseDigest {
    /// Appends values.
    pub fn update(&mut self, mut values: &[f32]) {
        while !values.is_empty() {
            let (now, later) = values.split_at(values.len().min(DENSE_BLOCK - self.filled));
            let bytes: Vec<u8> = now.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.block.update(&bytes);
            self.filled += now.len();
            if self.filled == DENSE_BLOCK {
                self.end_block();
            }
            values = later;
        }
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        self.blocks.extend_from_slice(&block.finalize());
        self.filled = 0;
    }

    /// Lower-case hexadecimal.
    pub fn finish(mut self) -> String {
        if self.filled > 0 {
            self.end_block();
        }
        hex(&Sha256::digest(&self.blocks))
    }
}

/// Digests of the files beside the weights that a conversion reads.
pub fn side_digests(checkpoint: &Checkpoint) -> Result<Vec<FileDigest>, FormatError> {
    let Some(directory) = &checkpoint.directory else {
        return Ok(Vec::new());
    };
    let mut digests = Vec::new();
    let beside = bitnet_checkpoint::side_file_names(directory, &Limits::default())?;
    let rewritten = REWRITTEN_SIDE_FILES.map(str::to_owned);
    for name in rewritten.into_iter().chain(beside) {
        if let Some(bytes) = checkpoint.side_file(&name)? {
            let (path, len) = (directory.join(&name), bytes.len() as u64);
            digests.push(FileDigest {
                path,
                bytes: len,
                sha256: sha256_hex(&bytes),
            });
        }
    }
    Ok(digests)
}

/// The name of a file in a directory, with `/` between it and a directory below; that of the file alone if it
/// lies elsewhere.
pub fn name_below(directory: &Path, path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let below = path.parent().and_then(|p| p.strip_prefix(directory).ok());
    match below.and_then(Path::file_name) {
        Some(below) => format!("{}/{name}", below.to_string_lossy()),
        None => name.into_owned(),
    }
}

/// Tokenizer and chat template as they are written.
///
/// # Errors
/// Those of reading the header of the first file.
pub fn text(plan: &Plan) -> Result<TextDigest, FormatError> {
    match (plan.target.kind, plan.files.first()) {
        (Kind::Gguf, Some(first)) => {
            let metadata = Gguf::metadata(&first.header.bytes, &Limits::default())?;
            Ok(TextDigest::of_gguf(&metadata))
        }
        _ => Ok(TextDigest::of_files(&plan.side_files)),
    }
}

/// The certificate of a conversion.
pub fn build(
    checkpoint: &Checkpoint,
    plan: &Plan,
    sources: &[FileDigest],
    outputs: &[FileDigest],
    digests: &Digests,
    text: TextDigest,
    lossless: bool,
) -> Certificate {
    // the weights come first, and everything else lies beside or below them
    let records = |files: &[FileDigest]| -> Vec<FileRecord> {
        let weights = files.first().and_then(|f| f.path.parent());
        let record = |f: &FileDigest| FileRecord {
            name: name_below(weights.unwrap_or(Path::new("")), &f.path),
            bytes: f.bytes,
            sha256: f.sha256.clone(),
        };
        files.iter().map(record).collect()
    };
    let ternary = digests.output.tensors().map(|digest| TernaryRecord {
        digest: digest.clone(),
        verdict: digests
            .rounded
            .get(&digest.name)
            .map_or(Verdict::Exact, |e| Verdict::Rounded(*e)),
    });
    Certificate {
        tool: concat!("bitnet-convert ", env!("CARGO_PKG_VERSION")).to_owned(),
        family: checkpoint.family.name.to_owned(),
        target: plan.target.name.to_owned(),
        config: plan.config.clone(),
        source: records(sources),
        origin: bitnet_formats::origin_of(&checkpoint.path).map(|origin| SourceOrigin {
            location: origin.name,
            repository: origin.repository,
            commit: origin.commit,
        }),
        output: records(outputs),
        ternary: ternary.collect(),
        dense: digests.dense.values().cloned().collect(),
        source_ternary_sha256: digests.source.finish(),
        ternary_sha256: digests.output.finish(),
        lossless,
        text,
        seal: Seal::Whole,
    }
}
