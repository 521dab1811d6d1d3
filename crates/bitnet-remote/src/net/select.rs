//! Which files of a repository a model needs.
//!
//! Invariant: weights that no reader of the model opens are not among them. What a model is in a list of files follows
//! the rules for directories (`bitnet_formats::weight_files`), which see the names as placeholders.

use bitnet_formats::{ErrorCode, FormatError, Limits, weight_files};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Endings of files with weights.
const WEIGHTS: [&str; 6] = [".safetensors", ".bin", ".gguf", ".pt", ".pth", ".ckpt"];
/// Endings of files beside weights that a model may need.
const SIDE: [&str; 8] = [
    ".json",
    ".jinja",
    ".model",
    ".txt",
    ".py",
    ".md",
    ".tiktoken",
    ".yaml",
];
/// Beginnings of names of licenses.
const LICENSES: [&str; 4] = ["license", "licence", "notice", "use_policy"];
/// The most files beside weights.
const MOST: usize = 512;

/// The directory that a model is in, and the file that names it, below a list of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// With `/` at its end, or empty.
    pub(crate) directory: String,
    /// The file that was asked for, in the directory.
    pub(crate) file: Option<String>,
}

impl Place {
    /// Where a path leads in a list of names; `None` if nowhere.
    pub(crate) fn find(path: Option<&str>, names: &[String]) -> Option<Self> {
        let Some(path) = path else {
            return Some(Self {
                directory: String::new(),
                file: None,
            });
        };
        if names.iter().any(|name| name == path) {
            let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
            let slash = if directory.is_empty() { "" } else { "/" };
            return Some(Self {
                directory: format!("{directory}{slash}"),
                file: Some(file.to_owned()),
            });
        }
        let directory = format!("{path}/");
        let is_there = names.iter().any(|name| name.starts_with(&directory));
        is_there.then_some(Self {
            directory,
            file: None,
        })
    }

    /// The names below the directory, without it.
    pub(crate) fn below<'n>(&self, names: &'n [String]) -> Vec<&'n str> {
        let below = names
            .iter()
            .filter_map(|name| name.strip_prefix(&self.directory));
        below.collect()
    }
}

/// Whether a file has weights.
pub(crate) fn is_weights(name: &str) -> bool {
    !name.contains('/') && WEIGHTS.iter().any(|end| name.ends_with(end))
}

/// Whether a file is an index, or settings of an adapter: they decide which weights are the model.
pub(crate) fn is_index(name: &str) -> bool {
    !name.contains('/') && name.ends_with(".index.json")
}

/// Whether a file lies beside weights and may belong to them.
fn is_side(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let is_known = SIDE.iter().any(|end| lower.ends_with(end))
        || LICENSES.iter().any(|l| lower.starts_with(l));
    match lower.split_once('/') {
        _ if lower.starts_with('.') => false,
        None => is_known && !lower.ends_with(".index.json"),
        // settings of the stages of an embedding pipeline, further templates
        Some(("additional_chat_templates", file)) => {
            !file.contains('/') && file.ends_with(".jinja")
        }
        Some((_, file)) => file == "config.json",
    }
}

/// The files that a model needs: its weights and indices, the first to be opened, and what lies beside them.
#[derive(Debug, Default)]
pub(crate) struct Needed {
    pub(crate) weights: Vec<String>,
    pub(crate) side: Vec<String>,
}

/// Chooses; the indices are files in `directory` already. `name` is what errors call it.
pub(crate) fn choose(
    directory: &Path,
    place: &Place,
    below: &[&str],
    name: &str,
) -> Result<Needed, FormatError> {
    for weights in below.iter().filter(|name| is_weights(name)) {
        let path = directory.join(weights);
        if !path.exists() {
            fs::write(&path, b"").map_err(|e| FormatError::io(&path, &e))?;
        }
    }
    let is_there = |name: &str| below.contains(&name);
    let path = match &place.file {
        Some(file) if is_weights(file) || is_index(file) => directory.join(file),
        Some(file) => {
            let message = format!("expected a file of weights, found {file}");
            return Err(FormatError::new(ErrorCode::UnknownContainer, message)
                .in_file(Path::new(name))
                .hint("name the repository, a directory of it, or a .gguf or .safetensors file"));
        }
        None => directory.to_owned(),
    };
    let files =
        weight_files(&path, &Limits::default()).map_err(|error| ambiguous(error, below, name))?;
    let mut needed = Needed::default();
    for file in files {
        let file = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !is_there(&file) {
            let message =
                format!("the model consists of several files, and {file} is not on the server");
            return Err(FormatError::new(ErrorCode::NotFound, message)
                .in_file(Path::new(name))
                .hint("name another file or revision that is complete"));
        }
        needed.weights.push(file);
    }
    // GGUF files bring everything along, and their certificates lie beside them
    let is_alone = needed
        .weights
        .first()
        .is_some_and(|file| file.ends_with(".gguf"));
    let is_needed = |name: &str| match is_alone {
        true => !name.contains('/') && name.ends_with("certificate.json"),
        false => is_side(name),
    };
    let side: BTreeSet<&str> = below
        .iter()
        .copied()
        .filter(|name| is_needed(name))
        .collect();
    needed.side = side.into_iter().take(MOST).map(str::to_owned).collect();
    Ok(needed)
}

/// Of several GGUF files all are named, so that one can be chosen.
fn ambiguous(error: FormatError, below: &[&str], name: &str) -> FormatError {
    let files: Vec<&str> = below
        .iter()
        .copied()
        .filter(|n| is_weights(n) && n.ends_with(".gguf"))
        .collect();
    let is_choice = error.code == ErrorCode::UnknownContainer
        && files.len() > 1
        && error.message.contains(".gguf file");
    match (is_choice, files.first()) {
        (true, Some(first)) => {
            let message = format!(
                "expected one model, found {} .gguf files: {}",
                files.len(),
                files.join(", ")
            );
            FormatError::new(ErrorCode::UnknownContainer, message)
                .in_file(Path::new(name))
                .hint(format!(
                    "name one of them: {}/{first}",
                    name.trim_end_matches('/')
                ))
        }
        _ => {
            let mut error = error;
            // not the directory of placeholders
            error.file = Some(Path::new(name).into());
            error
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|n| (*n).to_owned()).collect()
    }

    fn chosen(list: &[&str], path: Option<&str>) -> Result<Needed, FormatError> {
        let names = names(list);
        let place = Place::find(path, &names).unwrap();
        let dir = tempfile::tempdir().unwrap();
        choose(dir.path(), &place, &place.below(&names), "hf://o/n")
    }

    #[test]
    fn a_repository_of_safetensors_needs_no_other_weights() {
        let list = [
            ".gitattributes",
            "README.md",
            "LICENSE",
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "model.gguf",
            "original/params.json",
            "tokenizer.json",
            "1_Pooling/config.json",
            "image.png",
            "additional_chat_templates/rag.jinja",
            "onnx/model.onnx",
        ];
        let needed = chosen(&list, None).unwrap();
        assert_eq!(needed.weights, ["model.safetensors"]);
        assert_eq!(
            needed.side,
            [
                "1_Pooling/config.json",
                "LICENSE",
                "README.md",
                "additional_chat_templates/rag.jinja",
                "config.json",
                "tokenizer.json"
            ]
        );
        let needed = chosen(&list, Some("model.gguf")).unwrap();
        assert_eq!(
            (needed.weights, needed.side.len()),
            (names(&["model.gguf"]), 0)
        );
    }

    #[test]
    fn of_several_gguf_files_one_is_chosen_by_its_path() {
        let list = [
            "a.gguf",
            "b.gguf",
            "c-00001-of-00002.gguf",
            "c-00002-of-00002.gguf",
            "b.gguf.certificate.json",
        ];
        let error = chosen(&list, None).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnknownContainer);
        assert!(
            error
                .to_string()
                .contains("found 4 .gguf files: a.gguf, b.gguf, c-00001"),
            "{error}"
        );
        assert_eq!(
            error.hint.as_deref(),
            Some("name one of them: hf://o/n/a.gguf")
        );
        assert_eq!(
            chosen(&list, Some("b.gguf")).unwrap().side,
            ["b.gguf.certificate.json"]
        );
        let split = chosen(&list, Some("c-00002-of-00002.gguf")).unwrap();
        assert_eq!(
            split.weights,
            ["c-00001-of-00002.gguf", "c-00002-of-00002.gguf"]
        );
        let error = chosen(&list[..3], Some("c-00001-of-00002.gguf")).unwrap_err();
        assert_eq!(error.code, ErrorCode::NotFound);
    }

    #[test]
    fn paths_lead_to_files_and_directories() {
        let list = names(&["a/b/model.safetensors", "a/b/config.json", "a/bc"]);
        let place = |path| Place::find(Some(path), &list);
        let found = place("a/b").unwrap();
        assert_eq!((found.directory.as_str(), &found.file), ("a/b/", &None));
        assert_eq!(found.below(&list), ["model.safetensors", "config.json"]);
        let found = place("a/b/config.json").unwrap();
        assert_eq!(
            (found.directory.as_str(), found.file.as_deref()),
            ("a/b/", Some("config.json"))
        );
        assert_eq!(place("a/b/c"), None);
    }
}
