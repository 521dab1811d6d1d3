//! Models in several files that an index names.
//!
//! Invariant: index and shards agree: every tensor is where the index says, once, and nothing else is there.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::Reading;
use super::safetensors::json::{Index, IndexSeed, Place, parse_json};
use crate::artifact::is_plain_file_name;
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::source::{Source, as_opened, open_source};
use crate::strange::without_byte_order_mark;
use crate::tensor_file::{Metadata, TensorFile, TensorInfo, sorted_by_key};
use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// The ending of the file that says which tensor is in which shard.
pub(super) const INDEX_SUFFIX: &str = ".index.json";

/// One parsed file.
pub(super) struct Parsed {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
}

/// Reads one file as a part with a number.
pub(super) type ReadFile = fn(&dyn Source, usize, &Limits) -> Result<Parsed, FormatError>;

/// Reads an index, the model that a shard belongs to, or a file of its own.
pub(super) fn read(
    container: &'static str,
    extension: &str,
    path: &Path,
    how: &Reading<'_>,
    read_file: ReadFile,
) -> Result<TensorFile, FormatError> {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    if name.ends_with(INDEX_SUFFIX) {
        return read_index(container, path, how, read_file);
    }
    if let Some(index) = index_of(path, name, extension, how.limits)? {
        return read_index(container, &index, how, read_file);
    }
    let file = (how.open)(path)?;
    let parsed = read_file(&*file, 0, how.limits).map_err(|e| e.in_file(path))?;
    Ok(TensorFile::new(
        container,
        vec![file],
        parsed.metadata,
        parsed.tensors,
    ))
}

/// The index that names a file, if one lies beside it.
pub(super) fn index_of(
    path: &Path,
    name: &str,
    extension: &str,
    limits: &Limits,
) -> Result<Option<PathBuf>, FormatError> {
    let refuse = |message: String, hint: &str| {
        Err(FormatError::new(ErrorCode::UnknownContainer, message)
            .in_file(path)
            .hint(hint))
    };
    if let Some(index) = index_of_shard(name, extension) {
        let beside = path.with_file_name(&index);
        if !beside.is_file() {
            return match shard_count(name) {
                Some(count) if count > 1 && path.is_file() => refuse(
                    format!("expected {index} beside this shard of {count}, found none"),
                    "get the index too: it says which tensor is in which shard",
                ),
                _ => Ok(None),
            };
        }
        if path.is_file() && !shard_names(&beside, limits)?.contains(name) {
            return refuse(
                format!("{index} does not name this shard"),
                "get the index and the shards of one checkpoint",
            );
        }
        return Ok(Some(beside));
    }
    let stem = match extension {
        ".bin" => "pytorch_model",
        _ => "model",
    };
    let beside = path.with_file_name(format!("{stem}{extension}{INDEX_SUFFIX}"));
    let lists = |index: &Path| shard_names(index, limits).is_ok_and(|names| names.contains(name));
    Ok((beside.is_file() && lists(&beside)).then_some(beside))
}

/// The number of shards of a model, by the name of one of them.
pub(super) fn shard_count(name: &str) -> Option<usize> {
    let stem = name.rsplit_once('.')?.0;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let number = rest.rsplit_once('-')?.1;
    let is_number = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    (is_number(number) && is_number(count)).then(|| count.parse().ok())?
}

/// `model-00001-of-00003.safetensors` belongs to `model.safetensors.index.json`.
fn index_of_shard(name: &str, extension: &str) -> Option<String> {
    let stem = name.strip_suffix(extension)?;
    shard_count(name)?;
    let (prefix, _) = stem.rsplit_once("-of-")?.0.rsplit_once('-')?;
    Some(format!("{prefix}{extension}{INDEX_SUFFIX}"))
}

/// The files that an index names.
pub(super) fn shard_names(path: &Path, limits: &Limits) -> Result<BTreeSet<String>, FormatError> {
    let listed = parse_index(&*open_source(path)?, limits)?;
    Ok(listed.shards.into_iter().collect())
}

/// Which tensor is in which file.
fn parse_index(source: &dyn Source, limits: &Limits) -> Result<Index, FormatError> {
    let here = |e: FormatError| e.in_file(source.path());
    let len = source.len();
    if len > limits.json_bytes {
        let message = format!(
            "index of {len} bytes, expected at most {}",
            limits.json_bytes
        );
        return Err(here(FormatError::new(ErrorCode::LimitExceeded, message)));
    }
    as_opened(source, || {
        let mut index = Index::default();
        let mut place = Place::default();
        let seed = IndexSeed {
            index: &mut index,
            place: &mut place,
            limits,
        };
        let bytes = source.read(0..len)?;
        let text = without_byte_order_mark(&bytes);
        let mark = len.saturating_sub(text.len() as u64);
        parse_json(text, seed).map_err(|e| here(place.add_to(e, mark)))?;
        Ok(index)
    })
}

fn read_index(
    container: &'static str,
    path: &Path,
    how: &Reading<'_>,
    read_file: ReadFile,
) -> Result<TensorFile, FormatError> {
    let here = |e: FormatError| e.in_file(path);
    let index = (how.open)(path)?;
    let listed = parse_index(&*index, how.limits)?;
    let shard_of = |number: u32| {
        listed
            .shards
            .get(number as usize)
            .map_or("", String::as_str)
    };
    for (tensor, number) in &listed.tensors {
        let shard = shard_of(*number);
        if !is_plain_file_name(shard) {
            let message = format!("expected a file name in the same directory, found `{shard}`");
            let hint = "shards must lie beside their index";
            return Err(here(
                FormatError::new(ErrorCode::Malformed, message)
                    .in_tensor(tensor)
                    .hint(hint),
            ));
        }
    }
    let by_name = sorted_by_key(&listed.tensors, |(tensor, _)| tensor);
    let place_of = |name: &str| {
        let entry = |at: u32| listed.tensors.get(at as usize);
        let name_at = |at: &u32| entry(*at).map(|(tensor, _)| tensor.as_str());
        let found = by_name.binary_search_by(|at| name_at(at).cmp(&Some(name)));
        let at = *by_name.get(found.ok()?)?;
        Some((at, entry(at)?.1))
    };
    let order = sorted_by_key(&listed.shards, |shard| shard);

    let mut parts = Vec::with_capacity(order.len());
    let mut metadata = Metadata::default();
    let mut keys = HashSet::new();
    let mut tensors: Vec<TensorInfo> = Vec::new();
    // in which shard each tensor of the index was found
    let mut found: Vec<Option<u32>> = vec![None; listed.tensors.len()];
    for (part, &number) in order.iter().enumerate() {
        let shard = shard_of(number);
        let shard_path = path.with_file_name(shard);
        let file = (how.open)(&shard_path).map_err(|e| e.hint(missing_shard_hint(path)))?;
        let parsed = read_file(&*file, part, how.limits).map_err(|e| e.in_file(&shard_path))?;
        for tensor in &parsed.tensors {
            let extra = |message: String| {
                FormatError::new(ErrorCode::ExtraTensor, message)
                    .in_file(&shard_path)
                    .in_tensor(&tensor.name)
                    .hint("index and shards are not from one checkpoint")
            };
            let Some((at, expected)) = place_of(&tensor.name) else {
                return Err(extra("the index does not list it".to_owned()));
            };
            let before = found.get_mut(at as usize).and_then(|f| f.replace(number));
            if let Some(before) = before {
                let before = shard_of(before);
                return Err(extra(format!("is in `{before}` and again here")));
            }
            if expected != number {
                let expected = shard_of(expected);
                return Err(extra(format!("the index expects it in `{expected}`")));
            }
        }
        // the shards of one checkpoint repeat each other
        if metadata.0.is_empty() {
            metadata = parsed.metadata;
        } else if !parsed.metadata.0.is_empty() {
            let known = |keys: &mut HashSet<String>, key: &str| !keys.insert(key.to_owned());
            if keys.is_empty() {
                keys.extend(metadata.0.iter().map(|(key, _)| key.clone()));
            }
            let new = parsed.metadata.0.into_iter();
            let new = new.filter(|(key, _)| !known(&mut keys, key));
            metadata.0.extend(new);
        }
        match tensors.is_empty() {
            true => tensors = parsed.tensors,
            false => tensors.extend(parsed.tensors),
        }
        parts.push(file);
    }
    for ((tensor, number), found) in listed.tensors.iter().zip(&found) {
        if found.is_none() {
            let shard = shard_of(*number);
            let message = format!("the index expects it in `{shard}`, found no such tensor there");
            return Err(FormatError::new(ErrorCode::MissingTensor, message)
                .in_file(path)
                .in_tensor(tensor)
                .hint("index and shards are not from one checkpoint"));
        }
    }
    Ok(TensorFile::new(container, parts, metadata, tensors).named_by(index))
}

/// What to do about a shard that cannot be opened.
fn missing_shard_hint(index: &Path) -> String {
    let name = index.file_name().unwrap_or_default().to_string_lossy();
    let single = name.strip_suffix(INDEX_SUFFIX).unwrap_or(&name);
    match index.with_file_name(single).is_file() {
        true => {
            format!("{name} names this shard; if it is stale, remove it: {single} lies beside it")
        }
        false => format!("get this shard too: {name} names it"),
    }
}
