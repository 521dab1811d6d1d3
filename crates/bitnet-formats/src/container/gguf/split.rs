//! Models in several GGUF files, each with a header and a data section of its own.
//!
//! Invariant: all parts are there, in order, agree on how many they are and on the id of their set, if one
//! has an id, and share no tensor.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::joined::read_part;
use super::read::split_key;
use super::resolve::recorded_layout;
use super::unread::entries_of;
use super::{Gguf, SPLIT_ID_KEY, limit_exceeded, malformed};
use crate::artifact::Sha256Stream;
use crate::bytes::Cursor;
use crate::container::{Container, Reading};
use crate::error::FormatError;
use crate::limits::Limits;
use crate::tensor_file::{MetaValue, Metadata, TensorFile, TensorInfo, repeated};
use std::path::{Path, PathBuf};

/// `prefix-00001-of-00003.gguf`
pub(super) struct SplitName {
    /// The model's path as if it were one file.
    pub(super) whole: PathBuf,
    pub(super) count: usize,
}

impl SplitName {
    pub(super) fn parse(path: &Path) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let parse = |s: &str| {
            let digits = s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
            if digits {
                s.parse::<usize>().ok()
            } else {
                None
            }
        };
        let (number, count) = (parse(number)?, parse(count)?);
        (1..=count).contains(&number).then(|| Self {
            whole: path.with_file_name(format!("{prefix}.gguf")),
            count,
        })
    }
}

/// What stands in the place of an id that is not known yet: as many digits.
pub(super) const NO_ID: &str = "00000000000000000000000000000000";

/// See [`Gguf::set_split_id`].
pub(super) fn set_id(headers: &mut [&mut Vec<u8>], content: &[u8]) -> Result<(), FormatError> {
    let mut all = Sha256Stream::new();
    for header in headers.iter() {
        all.update(&header.len().to_le_bytes());
        all.update(header);
    }
    all.update(content);
    let failed = |e: std::io::Error| malformed(e.to_string()).in_tensor(SPLIT_ID_KEY).because(e);
    let id = all.finish().map_err(failed)?;
    let id = id.get(..NO_ID.len()).unwrap_or(NO_ID);
    for header in headers {
        let entries = entries_of(Cursor::new(header), &Limits::default())?;
        let place = entries.into_iter().find(|e| e.key == SPLIT_ID_KEY);
        let place = place.and_then(|e| {
            let (start, end) = (e.value_range.start, e.value_range.end);
            header.get_mut(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        });
        match place {
            Some(place) if place.len() == id.len() => place.copy_from_slice(id.as_bytes()),
            _ => {
                return Err(
                    malformed("expected a place for the id of the set").in_tensor(SPLIT_ID_KEY)
                );
            }
        }
    }
    Ok(())
}

/// The id of the set that a part belongs to, if it has one.
fn id_of(metadata: &Metadata) -> Result<Option<&str>, FormatError> {
    let Some(value) = metadata.get(SPLIT_ID_KEY) else {
        return Ok(None);
    };
    match MetaValue::as_str(value) {
        Some(id) => Ok(Some(id)),
        None => Err(malformed("expected the id of a set").in_tensor(SPLIT_ID_KEY)),
    }
}

pub(super) fn read_split(name: &SplitName, how: &Reading<'_>) -> Result<TensorFile, FormatError> {
    let (limits, mut layout) = (how.limits, how.layout);
    let mut parts = Vec::new();
    let mut metadata = Metadata::default();
    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut total = None;
    let mut id: Option<String> = None;
    let hint =
        "all parts of a split model must lie in one directory, complete and under their names";
    for number in 0..name.count {
        let path = Gguf::split_name(&name.whole, number, name.count);
        let place = |e: FormatError| e.in_file(&path).hint(hint);
        let file = (how.open)(&path).map_err(place)?;
        let parsed = read_part(&*file, number, limits, layout).map_err(|e| e.in_file(&path))?;
        if layout.is_none() {
            // the first part has the metadata of all
            layout = recorded_layout(&parsed.metadata).map_err(|e| e.in_file(&path))?;
        }
        let expect = |key: &str, expected: u64| match split_key(&parsed.metadata, key)? {
            Some(found) if found == expected => Ok(()),
            Some(found) => {
                Err(malformed(format!("expected {expected}, found {found}")).in_tensor(key))
            }
            None => {
                Err(malformed(format!("expected {expected}, found no such key")).in_tensor(key))
            }
        };
        expect("split.count", name.count as u64).map_err(place)?;
        expect("split.no", number as u64).map_err(place)?;
        let found = id_of(&parsed.metadata).map_err(place)?;
        if number == 0 {
            id = found.map(str::to_owned);
        } else if found != id.as_deref() {
            let text = |id: Option<&str>| id.map_or("no id".to_owned(), |id| format!("id `{id}`"));
            let message = format!(
                "the parts are of different conversions: part 1 has {}, this part has {}",
                text(id.as_deref()),
                text(found)
            );
            let error = malformed(message).in_file(&path).in_tensor(SPLIT_ID_KEY);
            return Err(
                error.hint("convert again with --force, or get all parts of one conversion")
            );
        }
        match (
            total,
            split_key(&parsed.metadata, "split.tensors.count").map_err(place)?,
        ) {
            (Some(expected), Some(_)) => expect("split.tensors.count", expected).map_err(place)?,
            (None, found) => total = found,
            (Some(_), None) => {}
        }
        let count = tensors.len().saturating_add(parsed.tensors.len()) as u64;
        if count > limits.tensors {
            return Err(place(limit_exceeded("tensors", count, limits.tensors)));
        }
        if number == 0 {
            metadata = parsed.metadata;
        }
        tensors.extend(parsed.tensors);
        parts.push(file);
    }
    if let Some(tensor) = repeated(&tensors, |tensor| &tensor.name) {
        let path = Gguf::split_name(&name.whole, tensor.part, name.count);
        return Err(malformed("an earlier part has this tensor too")
            .in_file(&path)
            .in_tensor(&tensor.name)
            .hint(hint));
    }
    match total {
        Some(total) if total != tensors.len() as u64 => {
            let message = format!(
                "expected {total} tensors in all parts, found {}",
                tensors.len()
            );
            let path = Gguf::split_name(&name.whole, 0, name.count);
            Err(malformed(message)
                .in_file(&path)
                .in_tensor("split.tensors.count")
                .hint(hint))
        }
        _ => Ok(TensorFile::new(Gguf.name(), parts, metadata, tensors)),
    }
}
