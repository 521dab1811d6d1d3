//! What the files say about themselves: metadata, tensors, sizes and hashes.
//!
//! Invariant: of weights only hashes are taken. A text that is no text, and what is behind the first entries of a long
//! list, is counted and not shown; so bytes of weights that a broken header takes for text never show.

use super::archive::Entries;
use super::files::{Notes, cleaned, template};
use super::keep;
use super::text::{is_text, shortened};
use crate::local::{Public, file_name};
use bitnet_cli::Progress;
use bitnet_formats::{
    ErrorCode, FormatError, HeaderRemains, Limits, MetaArray, MetaValue, Metadata, Source,
    TensorFile, header_remains, named, open_source, origin_of,
};
use serde_json::{Map, Value, json};
use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes of files that are hashed, in the order of the files: a few seconds of work.
const HASHED_FILES: u64 = 4 << 30;
/// Bytes of tensors that are hashed.
const HASHED_TENSORS: u64 = 2 << 30;

/// Characters of a name.
const NAME: usize = 256;
/// Characters of a text.
const TEXT: usize = 4096;
/// Elements of a list that is shown in full, and of the beginning of any other.
const LIST: usize = 64;
const FIRST: usize = 8;
/// Metadata entries and tensors that are shown.
const ENTRIES: usize = 2048;
const TENSORS: usize = 16384;
/// Characters of all metadata, and of all tensors.
const METADATA: usize = 1 << 20;
const ALL_TENSORS: usize = 6 << 20;

/// The files of weights with their sizes and hashes.
pub(super) fn weights(
    files: &[PathBuf],
    public: &Public,
    progress: &Progress,
) -> Result<Value, FormatError> {
    let mut left = HASHED_FILES;
    let mut list = Vec::new();
    for path in files.iter().take(ENTRIES) {
        let mut row = json!({"name": shortened(&file_name(path), NAME)});
        match open_source(path) {
            Ok(source) => {
                row["bytes"] = source.len().into();
                let hash = hash(&*source, 0..source.len(), &mut left, path, progress)?;
                row[hash.0] = hash.1.into();
            }
            Err(error) => row["error"] = public.text(&error.to_string()).into(),
        }
        list.push(row);
    }
    Ok(list.into())
}

/// The key and the value that say what the hash of a range is, or why there is none.
fn hash(
    source: &dyn Source,
    range: Range<u64>,
    left: &mut u64,
    path: &Path,
    progress: &Progress,
) -> Result<(&'static str, String), FormatError> {
    let len = range.end.saturating_sub(range.start);
    if origin_of(path).is_some_and(|origin| origin.headers_only) {
        return Ok(("not_hashed", "the bytes are not on this machine".to_owned()));
    }
    let Some(rest) = left.checked_sub(len) else {
        let why = format!("{len} bytes are more than is left of the bound for hashes");
        return Ok(("not_hashed", why));
    };
    *left = rest;
    match crate::hash::sha256(source, range, progress) {
        Ok(sha256) => Ok(("sha256", sha256)),
        Err(error) if error.code == ErrorCode::Interrupted => Err(error),
        Err(error) => Ok(("not_hashed", error.code.as_str().to_owned())),
    }
}

/// Everything about a file that opens.
pub(super) fn of_file(
    file: &TensorFile,
    public: &Public,
    entries: &mut Entries,
    notes: &mut Notes,
    progress: &Progress,
) -> Result<Value, FormatError> {
    let (mut rows, mut room, mut left) = (Vec::new(), ALL_TENSORS, HASHED_TENSORS);
    for tensor in file.tensors().iter().take(TENSORS) {
        let mut row = json!({
            "name": shortened(&public.text(&tensor.name), NAME),
            "type": tensor.encoding.name(),
            "shape": tensor.shape,
            "offset": tensor.offset,
            "bytes": tensor.len,
        });
        if file.parts.len() > 1 {
            row["file"] = tensor.part.into();
        }
        if let Some(source) = file.parts.get(tensor.part) {
            let range = tensor.offset..tensor.offset.saturating_add(tensor.len);
            let hash = hash(&**source, range, &mut left, source.path(), progress)?;
            row[hash.0] = hash.1.into();
        }
        if !fits(&row, &mut room) {
            break;
        }
        rows.push(row);
    }
    let parts = file.parts.iter().take(ENTRIES);
    let parts = parts.map(|part| shortened(&file_name(&named(part.path())), NAME));
    Ok(json!({
        "container": file.container,
        "files": parts.collect::<Vec<_>>(),
        "metadata": metadata(&file.metadata, public, entries, notes),
        "tensor_count": file.tensors().len(),
        "tensors_left_out": file.tensors().len().saturating_sub(rows.len()),
        "tensors": rows,
    }))
}

/// What can be read of a file that does not open.
pub(super) fn of_remains(
    model: &Path,
    error: &FormatError,
    public: &Public,
    entries: &mut Entries,
    notes: &mut Notes,
) -> Value {
    let mut files = bitnet_formats::weight_files(model, &Limits::default());
    if files.is_err() && !model.is_dir() {
        files = Ok(vec![model.to_owned()]);
    }
    let mut object = json!({
        "error": {
            "code": error.code.as_str(),
            "message": shortened(&public.text(&error.to_string()), TEXT),
        },
    });
    let mut remains = Vec::new();
    for path in files.unwrap_or_default().iter().take(LIST) {
        let found = open_source(path).ok();
        let Some(found) = found.and_then(|source| header_remains(&*source)) else {
            continue;
        };
        let mut row = of_header(&found, public, entries, notes);
        row["file"] = shortened(&file_name(path), NAME).into();
        if remains.is_empty() || row.to_string().len() < ALL_TENSORS / LIST {
            remains.push(row);
        }
    }
    object["readable"] = remains.into();
    object
}

fn of_header(
    found: &HeaderRemains,
    public: &Public,
    entries: &mut Entries,
    notes: &mut Notes,
) -> Value {
    let (mut rows, mut room) = (Vec::new(), ALL_TENSORS);
    for tensor in found.tensors.iter().take(TENSORS) {
        let row = json!({
            "name": text(tensor.name.as_bytes(), NAME, public),
            "type": text(tensor.kind.as_bytes(), NAME, public),
            "shape": first(tensor.shape.iter().map(|n| json!(n)), tensor.shape.len()),
            "offset": tensor.offset,
        });
        if !fits(&row, &mut room) {
            break;
        }
        rows.push(row);
    }
    let counts: Map<String, Value> = found
        .counts
        .iter()
        .map(|(name, count)| ((*name).to_owned(), json!(count)))
        .collect();
    let stopped = found.stopped.as_ref();
    json!({
        "container": found.container,
        "counts": counts,
        "metadata": metadata(&found.metadata, public, entries, notes),
        "tensors_left_out": found.tensors.len().saturating_sub(rows.len()),
        "tensors": rows,
        "stopped": stopped.map(|e| shortened(&public.text(&e.to_string()), TEXT)),
    })
}

/// Takes the room that a row needs, if there is so much.
fn fits(row: &Value, room: &mut usize) -> bool {
    // as it is printed, with indents
    let needed = row.to_string().len().saturating_mul(2);
    match room.checked_sub(needed) {
        Some(rest) => {
            *room = rest;
            true
        }
        None => false,
    }
}

/// Entries of metadata: lists cut to their first elements, chat templates as files of their own.
fn metadata(
    metadata: &Metadata,
    public: &Public,
    entries: &mut Entries,
    notes: &mut Notes,
) -> Value {
    let (mut object, mut room) = (Map::new(), METADATA);
    for (key, value) in metadata.0.iter().take(ENTRIES) {
        let name = match text(key.as_bytes(), NAME, public) {
            Value::String(name) => name,
            other => other.to_string(),
        };
        let shown = match value {
            MetaValue::String(bytes) if key.contains("chat_template") => {
                template(&name, bytes, public, entries, notes)
            }
            _ if crate::local::is_secret_key(key) => json!("[removed]"),
            value => of_value(value, public),
        };
        let shown = match fits(&json!([name, shown]), &mut room) {
            true => shown,
            false => json!({"not_shown": "more than a bundle takes"}),
        };
        if room < NAME {
            break;
        }
        object.insert(name, shown);
    }
    let more = metadata.0.len().saturating_sub(object.len());
    if more > 0 {
        object.insert("(left out)".to_owned(), format!("{more} entries").into());
    }
    object.into()
}

fn of_value(value: &MetaValue, public: &Public) -> Value {
    match value {
        MetaValue::U8(n) => json!(n),
        MetaValue::I8(n) => json!(n),
        MetaValue::U16(n) => json!(n),
        MetaValue::I16(n) => json!(n),
        MetaValue::U32(n) => json!(n),
        MetaValue::I32(n) => json!(n),
        MetaValue::U64(n) => json!(n),
        MetaValue::I64(n) => json!(n),
        MetaValue::F32(n) => float(*n),
        MetaValue::F64(n) => float(*n),
        MetaValue::Bool(b) => json!(b),
        MetaValue::String(bytes) => json_or_text(bytes, public),
        MetaValue::Array(array) => of_array(array, public),
    }
}

fn of_array(array: &MetaArray, public: &Public) -> Value {
    let len = array.len();
    match array {
        MetaArray::U8(a) => first(a.iter().map(|n| json!(n)), len),
        MetaArray::I8(a) => first(a.iter().map(|n| json!(n)), len),
        MetaArray::U16(a) => first(a.iter().map(|n| json!(n)), len),
        MetaArray::I16(a) => first(a.iter().map(|n| json!(n)), len),
        MetaArray::U32(a) => first(a.iter().map(|n| json!(n)), len),
        MetaArray::I32(a) => first(a.iter().map(|n| json!(n)), len),
        MetaArray::U64(a) => first(a.iter().map(|n| json!(n)), len),
        MetaArray::I64(a) => first(a.iter().map(|n| json!(n)), len),
        MetaArray::F32(a) => first(a.iter().map(|n| float(*n)), len),
        MetaArray::F64(a) => first(a.iter().map(|n| float(*n)), len),
        MetaArray::Bool(a) => first(a.iter().map(|b| json!(b)), len),
        MetaArray::String(a) => first(a.iter().map(|s| text(s, NAME, public)), len),
    }
}

/// A list, or its beginning and how long it is.
fn first(elements: impl Iterator<Item = Value>, len: usize) -> Value {
    match len <= LIST {
        true => elements.collect(),
        false => json!({"entries": len, "first": elements.take(FIRST).collect::<Value>()}),
    }
}

/// JSON has no NaN and no infinity.
fn float(number: impl Display + Into<f64> + Copy) -> Value {
    let wide: f64 = number.into();
    match number.to_string().parse::<f64>() {
        // the shortest spelling of the narrow number, not that of the wide one
        Ok(short) if wide.is_finite() => json!(short),
        _ => number.to_string().into(),
    }
}

/// A text that is a whole file of JSON, such as a tokenizer, loses its vocabulary; any other its end.
fn json_or_text(bytes: &[u8], public: &Public) -> Value {
    let json = std::str::from_utf8(bytes).ok();
    let json = json.filter(|text| text.starts_with('{'));
    match json.and_then(|text| keep::parse(text, false)) {
        Some((kept, _)) => cleaned(&kept, public),
        None => text(bytes, TEXT, public),
    }
}

/// A text, without its end if it is long. Bytes that are no text are counted.
fn text(bytes: &[u8], most: usize, public: &Public) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_text(text) => shortened(&public.text(text), most).into(),
        _ => json!({"bytes": bytes.len(), "not_shown": "not text"}),
    }
}
