//! Logits that another runtime wrote (`formats/logits.md`).
//!
//! Invariant: what is read is consistent: every prompt has as many rows of logits as it has tokens, and its
//! tokens come from the file or from the prompts beside it, never from a guess. Nothing is allocated that
//! the file is not long enough to hold.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::reference::golden::{Golden, read_matrices};
use crate::reference::prompts::{Prompt, read_prompts};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, Limits, MetaValue, PlainType, TensorFile, TensorInfo, open,
};
use std::collections::BTreeMap;
use std::path::Path;

/// The end of the names of logits; what stands before it is the prompt.
const LOGITS: &str = ".logits";
/// The end of the names of token ids.
const IDS: &str = ".ids";

/// What another runtime computed.
#[derive(Debug, Clone)]
pub struct OtherRuntime {
    /// Its name and version as the file says them.
    pub name: String,
    /// Prompts and logits, nothing else.
    pub recorded: Golden,
}

impl OtherRuntime {
    /// Reads a file. Token ids are in it as `<prompt>.ids`, or in `prompts`, or in a `prompts.json`
    /// beside it.
    ///
    /// # Errors
    /// A file that cannot be read; logits without tokens; as many rows as there are no tokens.
    pub fn read(path: &Path, prompts: Option<&[Prompt]>) -> Result<Self, FormatError> {
        let file = open(path, &Limits::default())?;
        let beside = path.with_file_name("prompts.json");
        let known: Vec<Prompt> = match prompts {
            Some(prompts) => prompts.to_vec(),
            None if beside.is_file() => read_prompts(&beside)?,
            None => Vec::new(),
        };
        let place = |e: FormatError| e.in_file(path);
        let mut recorded = Golden::default();
        let mut matrices = read_matrices(path)?;
        let mut logits = BTreeMap::new();
        for info in file.tensors() {
            let Some(name) = info.name.strip_suffix(LOGITS) else {
                continue;
            };
            let stored = file.tensor(&format!("{name}{IDS}"));
            let stored = stored.map(|ids| token_ids(&file, ids));
            let stored = stored.transpose().map_err(place)?;
            let given = known.iter().find(|p| p.name == name).map(|p| &p.ids);
            let ids = match (stored, given) {
                (Some(stored), Some(given)) if stored != *given => {
                    let text = "expected the token ids of the prompt of this name, found others";
                    let error = FormatError::new(ErrorCode::Malformed, text);
                    return Err(place(error.in_tensor(&format!("{name}{IDS}"))));
                }
                (Some(ids), _) => ids,
                (None, Some(ids)) => ids.clone(),
                (None, None) => {
                    let text = "expected the token ids of these logits, found none";
                    let error = FormatError::new(ErrorCode::MissingTensor, text)
                        .in_tensor(&format!("{name}{IDS}"))
                        .hint(
                            "or give them with --prompts FILE, or as prompts.json beside the file",
                        );
                    return Err(place(error));
                }
            };
            let Some(found) = matrices.remove(&info.name) else {
                let text = format!(
                    "expected f32, f16 or bf16 of (tokens, vocabulary), found {:?} {}",
                    info.shape,
                    info.encoding.name()
                );
                let error = FormatError::new(ErrorCode::WrongType, text).in_tensor(&info.name);
                return Err(place(error));
            };
            if found.rows != ids.len() {
                let text = format!("expected {} positions, found {}", ids.len(), found.rows);
                let error = FormatError::new(ErrorCode::WrongShape, text).in_tensor(&info.name);
                return Err(place(error));
            }
            logits.insert(name.to_owned(), found);
            recorded.prompts.push(Prompt {
                name: name.to_owned(),
                ids,
            });
        }
        if logits.is_empty() {
            let text = format!("expected `<prompt>{LOGITS}` for at least one prompt, found none");
            return Err(place(FormatError::new(ErrorCode::MissingTensor, text)));
        }
        recorded.logits = logits;
        let said = |key| file.metadata.get(key).and_then(MetaValue::as_str);
        let name = match (said("runtime"), said("version")) {
            (Some(runtime), Some(version)) => format!("{runtime} {version}"),
            (Some(runtime), None) => runtime.to_owned(),
            (None, _) => "an unnamed runtime".to_owned(),
        };
        Ok(Self { name, recorded })
    }
}

/// The elements of a list of token ids.
fn token_ids(file: &TensorFile, info: &TensorInfo) -> Result<Vec<u32>, FormatError> {
    let bytes = file.read(info)?;
    let id = |wide: i64| u32::try_from(wide).ok();
    let ids: Option<Vec<u32>> = match (info.encoding, info.shape.len()) {
        (Encoding::Plain(PlainType::I32 | PlainType::U32), 1) => {
            let (numbers, _) = bytes.as_chunks::<4>();
            // a negative i32 is a u32 that no vocabulary has
            Some(numbers.iter().map(|n| u32::from_le_bytes(*n)).collect())
        }
        (Encoding::Plain(PlainType::I64), 1) => {
            let (numbers, _) = bytes.as_chunks::<8>();
            let ids = numbers.iter().map(|n| id(i64::from_le_bytes(*n)));
            ids.collect()
        }
        _ => None,
    };
    ids.ok_or_else(|| {
        let found = info.encoding.name();
        let text = format!(
            "expected a list of token ids (i32, u32, i64), found {:?} {found}",
            info.shape
        );
        FormatError::new(ErrorCode::WrongType, text).in_tensor(&info.name)
    })
}
