//! What a file holds whose network these programs do not compute.
//!
//! Invariant: only headers are read. A file of a known type, architecture or purpose is not called damaged.

use super::finding::Finding;
use bitnet_checkpoint::{GGUF_ARCHITECTURE_KEY, gguf_architecture};
use bitnet_formats::{Container, Encoding, ErrorCode, FormatError, Gguf, TensorFile};
use std::collections::BTreeMap;
use std::path::Path;

const NOT_OURS: &str = "run the file with a program that computes it (llama.cpp for GGUF files); these programs read ternary models \
                        (`bitnet-convert list`)";

/// Says why a file is not opened as a model.
pub(super) fn judge(
    path: &Path,
    file: &TensorFile,
    error: &FormatError,
    findings: &mut Vec<Finding>,
) {
    let place = path.display().to_string();
    let architecture = gguf_architecture(file);
    let named = architecture.map_or(String::new(), |name| format!(" of architecture `{name}`"));
    if file.tensors().is_empty() {
        let what = format!("a vocabulary{named} without weights: no tensor is in the file");
        let remedy = "use it for its tokenizer; get the model's own file for its weights";
        findings.push(Finding::note("no-weights", place, what, remedy));
        return;
    }
    let unknown: BTreeMap<u32, &str> = file
        .tensors()
        .iter()
        .filter_map(|info| match info.encoding {
            Encoding::Unknown(id) => Some((id, info.name.as_str())),
            _ => None,
        })
        .collect();
    for (id, name) in unknown {
        let what = format!("type id {id} is not known: the size of the tensor was not checked");
        let remedy = "update this program, or look up what wrote the file";
        findings.push(Finding::warning("unknown-type", name, what, remedy));
    }
    if let Some(types) = ordinary(file) {
        let what = format!("weights{named} that are not ternary: {types}");
        findings.push(Finding::warning("not-ternary", place, what, NOT_OURS));
        return;
    }
    match error.code {
        ErrorCode::NotTernary => {
            let remedy = error.hint.clone().unwrap_or_else(|| NOT_OURS.to_owned());
            findings.push(Finding::error(
                "not-ternary",
                place,
                error.to_string(),
                remedy,
            ));
        }
        // unknown ids are said above, for each
        ErrorCode::UnknownType => {
            for info in file.tensors() {
                if let Encoding::Foreign(foreign) = info.encoding {
                    let what = format!(
                        "these programs do not read the type {}, {}: they do not compute the model",
                        foreign.name,
                        foreign.what()
                    );
                    findings.push(Finding::warning("unknown-type", &info.name, what, NOT_OURS));
                }
            }
        }
        ErrorCode::UnsupportedConfig
            if architecture.is_some() && !bitnet_checkpoint::has_known_family(path, file) =>
        {
            let what = format!("a network{named}, which these programs do not compute");
            findings.push(Finding::warning(
                "unsupported-config",
                GGUF_ARCHITECTURE_KEY,
                what,
                NOT_OURS,
            ));
        }
        // `no-architecture` says it
        ErrorCode::UnsupportedConfig if file.container == Gguf.name() && architecture.is_none() => {
        }
        _ => findings.push(Finding::unreadable(place, error)),
    }
}

/// The types of a file with block quantizations of ordinary weights and no ternary tensor, counted: `q4_k x 28, f32 x 9`.
fn ordinary(file: &TensorFile) -> Option<String> {
    let mut types: BTreeMap<String, usize> = BTreeMap::new();
    let mut blocks = 0;
    for info in file.tensors() {
        match info.encoding {
            Encoding::Ternary(_) => return None,
            Encoding::Foreign(_) => blocks += 1,
            // of these alone, embeddings and heads of ternary models are
            Encoding::Block(_) if is_linear(&info.name) => blocks += 1,
            _ => {}
        }
        *types.entry(info.encoding.name()).or_insert(0) += 1;
    }
    let mut types: Vec<_> = types.into_iter().collect();
    types.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let listed: Vec<String> = types
        .iter()
        .map(|(name, n)| format!("{name} x {n}"))
        .collect();
    (blocks > 0).then(|| listed.join(", "))
}

fn is_linear(name: &str) -> bool {
    !["token_embd", "output.weight", "embed", "head"]
        .iter()
        .any(|word| name.contains(word))
}
