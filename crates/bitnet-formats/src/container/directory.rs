//! Which file of a directory is the model.
//!
//! Invariant: the choice is transformers' where that is certain; a directory that holds two models, or an adapter,
//! is refused with the names of both.

use super::Gguf;
use super::shards::{self, INDEX_SUFFIX};
use crate::error::{ErrorCode, FormatError};
use crate::input::read_directory;
use crate::limits::Limits;
use std::path::{Path, PathBuf};

/// What PEFT and mlx-lm write beside the weights of an adapter.
const ADAPTER_CONFIG: &str = "adapter_config.json";
/// How names of files with weights of an adapter begin.
const ADAPTER_WEIGHTS: [&str; 2] = ["adapter_model.", "adapters."];

/// Whether a file name is one that adapters have.
fn is_adapter(name: &str) -> bool {
    let weights = |ending| [".safetensors", ".bin", ".pt", ".npz", ".gguf"].contains(&ending);
    name == ADAPTER_CONFIG
        || (ADAPTER_WEIGHTS.iter()).any(|start| match name.strip_prefix(start) {
            Some(_) => name
                .rfind('.')
                .and_then(|dot| name.get(dot..))
                .is_some_and(weights),
            None => false,
        })
}

/// Names in a directory that are UTF-8 and not hidden, sorted.
fn names_in(directory: &Path) -> Result<Vec<String>, FormatError> {
    let failed = |e: std::io::Error| FormatError::io(directory, &e);
    let mut names = Vec::new();
    for entry in read_directory(directory).map_err(failed)? {
        // names that are not UTF-8 are none of those looked for
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Refuses weights beside which an adapter lies: transformers applies it to them. `directory` is where they are.
///
/// # Errors
/// `adapter`; `io` if the directory cannot be read.
pub fn refuse_adapter_beside(directory: &Path) -> Result<(), FormatError> {
    let names = names_in(directory)?;
    match names.iter().find(|name| is_adapter(name)) {
        None => Ok(()),
        Some(adapter) => Err(beside_adapter(directory, adapter, "the weights")),
    }
}

fn beside_adapter(directory: &Path, adapter: &str, model: &str) -> FormatError {
    let message = format!(
        "expected one model, found the adapter {adapter} beside {model}: transformers applies the adapter"
    );
    FormatError::new(ErrorCode::Adapter, message)
        .in_file(directory)
        .hint("merge the adapter into the model (peft: merge_and_unload, then save_pretrained)")
}

/// The error for an adapter where a model is expected.
pub fn adapter_alone(place: &Path, found: &str) -> FormatError {
    let message =
        format!("expected a model, found {found} of an adapter, which is not a model alone");
    FormatError::new(ErrorCode::Adapter, message)
        .in_file(place)
        .hint(
            "merge the adapter into its base first (peft: merge_and_unload, then save_pretrained)",
        )
}

/// The index of a directory that names no file that exists, where a model in one file lies beside it.
pub fn stale_index(directory: &Path) -> Option<PathBuf> {
    PAIRS.iter().find_map(|(single, _)| {
        let index = directory.join(format!("{single}{INDEX_SUFFIX}"));
        let stale = directory.join(single).is_file()
            && index.is_file()
            && shards::shard_names(&index, &Limits::default())
                .is_ok_and(|names| !names.iter().any(|name| directory.join(name).exists()));
        stale.then_some(index)
    })
}

/// A model in one file, and how its format is called.
const PAIRS: [(&str, &str); 2] = [
    ("model.safetensors", ".safetensors"),
    ("pytorch_model.bin", ".bin"),
];

/// Which file of a directory is the model.
pub(super) fn model_of_directory(
    directory: &Path,
    limits: &Limits,
) -> Result<PathBuf, FormatError> {
    let names = names_in(directory)?;
    let found = find(directory, &names, limits)?;
    let adapter = names.iter().find(|name| is_adapter(name));
    match (found, adapter) {
        (Some(model), None) => Ok(model),
        (Some(model), Some(adapter)) => {
            let model = model.file_name().unwrap_or_default().to_string_lossy();
            Err(beside_adapter(directory, adapter, &model))
        }
        (None, Some(adapter)) => Err(adapter_alone(directory, adapter)),
        (None, None) => {
            let shard = names
                .iter()
                .find(|name| shards::shard_count(name).is_some());
            Err(match shard {
                Some(shard) => {
                    let message = format!("expected the index of the shards, found {shard} without one");
                    FormatError::new(ErrorCode::UnknownContainer, message)
                        .in_file(directory)
                        .hint("get the index too: it says which tensor is in which shard")
                }
                None => FormatError::new(
                    ErrorCode::UnknownContainer,
                    "expected a model, found no .safetensors, pytorch_model.bin, .gguf or .pt file",
                )
                .in_file(directory)
                .hint("a checkpoint directory holds model.safetensors, or model.safetensors.index.json and its shards"),
            })
        }
    }
}

fn find(
    directory: &Path,
    names: &[String],
    limits: &Limits,
) -> Result<Option<PathBuf>, FormatError> {
    let has = |name: &str| names.iter().any(|n| n == name);
    let only = |suffix: &str| {
        let found = names
            .iter()
            .filter(|n| n.ends_with(suffix) && !is_adapter(n));
        // the parts of one set are one model; a file of the same name, or a set of other parts, is another
        let mut models: Vec<(_, &str)> = Vec::new();
        for name in found {
            let set = Gguf::set_name(name);
            if models.iter().all(|(known, _)| *known != set) {
                models.push((set, name));
            }
        }
        match models.as_slice() {
            [] => Ok(None),
            [(_, name)] => Ok(Some(directory.join(name))),
            several => {
                const NAMED: usize = 4;
                let names: Vec<_> = several.iter().take(NAMED).map(|(_, name)| *name).collect();
                let more = if several.len() > NAMED { ", ..." } else { "" };
                let message = format!(
                    "expected one {suffix} file, found {}: {}{more}",
                    several.len(),
                    names.join(", ")
                );
                let is_shard = |name: &&str| shards::shard_count(name).is_some();
                let hint = match suffix != ".gguf" && names.iter().any(is_shard) {
                    true => "get the index of the shards too, or name the file that is meant",
                    false => "name the file that is meant",
                };
                Err(FormatError::new(ErrorCode::UnknownContainer, message)
                    .in_file(directory)
                    .hint(hint))
            }
        }
    };
    // other .bin files (optimizer states, arguments) lie in such directories too, so those have names
    for (single, suffix) in PAIRS {
        let index = format!("{single}{INDEX_SUFFIX}");
        match (has(single), has(&index)) {
            (true, true) => return choose(directory, single, &index, limits).map(Some),
            (true, false) => return Ok(Some(directory.join(single))),
            (false, true) => return Ok(Some(directory.join(index))),
            (false, false) => {}
        }
        if suffix == ".safetensors" {
            let index = only(&format!("{suffix}{INDEX_SUFFIX}"))?;
            let found = index.map_or_else(|| only(suffix), |index| Ok(Some(index)))?;
            if let Some(found) = found {
                return Ok(Some(found));
            }
        }
    }
    only(".gguf")?.map_or_else(|| only(".pt"), |m| Ok(Some(m)))
}

/// Of a model in one file and an index beside it: the file, if the index is stale; the index, if it names that file.
fn choose(
    directory: &Path,
    single: &str,
    index: &str,
    limits: &Limits,
) -> Result<PathBuf, FormatError> {
    let refuse = |what: String| {
        let message = format!("expected one model, found {single} and {index}, {what}");
        FormatError::new(ErrorCode::UnknownContainer, message)
            .in_file(directory)
            .hint(format!(
                "remove the one that is old, or name the file that is meant (transformers loads {single})"
            ))
    };
    let names = match shards::shard_names(&directory.join(index), limits) {
        Ok(names) => names,
        Err(error) => return Err(refuse(format!("which cannot be read ({})", error.message))),
    };
    if names.iter().any(|name| name == single) {
        return Ok(directory.join(index));
    }
    let there = names
        .iter()
        .filter(|name| directory.join(name).exists())
        .count();
    match there {
        0 => Ok(directory.join(single)),
        n => Err(refuse(format!(
            "of whose {} shards {n} are there",
            names.len()
        ))),
    }
}
