//! Which files beside the weights belong to a model, and whether they stayed as they were.
//!
//! Invariant: a file that is listed is a regular file of the same repository, no longer than
//! [`Limits::side_file_bytes`]; what looks like one and is not is an error, never left out in silence.

use crate::family::pooling_settings;
use crate::family::rotation::{HF_FILE, MLX_FILE};
use bitnet_formats::{
    ErrorCode, FormatError, Input, Limits, check_side_file, read_directory, read_side_file,
};
use bitnet_text::additional_template_files;
use std::path::Path;

/// The list of the stages of an embedding pipeline.
const MODULES: &str = "modules.json";

/// Files beside the weights that are read, and written anew.
pub const REWRITTEN_SIDE_FILES: [&str; 3] = ["config.json", HF_FILE, MLX_FILE];

/// Whether a file beside the weights belongs to the model: tokenizer, templates, generation defaults,
/// custom code, license. Weights in any form, indices and the files written anew do not.
fn is_side_file(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let rewritten = REWRITTEN_SIDE_FILES.contains(&lower.as_str())
        || lower.ends_with(".index.json")
        || lower.ends_with("certificate.json");
    let known = [
        ".json",
        ".jinja",
        ".model",
        ".txt",
        ".py",
        ".md",
        ".tiktoken",
    ];
    let license = ["license", "licence", "notice", "use_policy"];
    !rewritten
        && !lower.starts_with('.')
        && (known.iter().any(|end| lower.ends_with(end))
            || license.iter().any(|l| lower.starts_with(l)))
}

/// Names in a directory that look like side files; directories and the files that this program writes its own
/// messages to are left out.
fn candidates(directory: &Path) -> Result<Vec<String>, FormatError> {
    let directory = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    let failed = |e: std::io::Error| FormatError::io(directory, &e);
    let own = ["/dev/stdout", "/dev/stderr"].map(|stream| identity(Path::new(stream)));
    let mut names = Vec::new();
    for entry in read_directory(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = entry.path();
        let is_own = || identity(&path).is_some_and(|id| own.contains(&Some(id)));
        if is_side_file(&name) && !path.is_dir() && !is_own() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Names of the files beside the weights that belong to the model, sorted. The settings of the stages of a
/// pipeline are in directories that `modules.json` names, further chat templates in a directory of their own.
///
/// # Errors
/// `io`, `outside-link` and `limit-exceeded` for what is called like a side file and cannot be one;
/// `chat-template` for a template whose name cannot be kept.
pub fn side_file_names(directory: &Path, limits: &Limits) -> Result<Vec<String>, FormatError> {
    let mut names = candidates(directory)?;
    names.extend(additional_template_files(directory)?);
    for name in &names {
        check_side_file(directory, name)?;
        let path = directory.join(name);
        let len = std::fs::metadata(&path)
            .map_err(|e| FormatError::io(&path, &e))?
            .len();
        let limit = limits.side_file_bytes;
        if len > limit {
            let message = format!("expected a side file of at most {limit} bytes, found {len}");
            return Err(FormatError::new(ErrorCode::LimitExceeded, message)
                .in_file(&path)
                .hint(
                    "move the file out of the model's directory if it does not belong to the model",
                ));
        }
    }
    if names.iter().any(|name| name == MODULES)
        && let Some(bytes) = read_side_file(directory, MODULES, limits.config_bytes)?
    {
        let settings = pooling_settings(&bytes).map_err(|e| e.in_file(&directory.join(MODULES)))?;
        for name in settings {
            if check_side_file(directory, &name)? {
                names.push(name);
            }
        }
    }
    names.sort();
    Ok(names)
}

/// The side files of a directory and its `config.json` as they are now, before any is read. What cannot be read
/// is left out: reading it is an error of its own.
pub(super) fn inputs(directory: &Path, limits: &Limits) -> Vec<Input> {
    let mut names = candidates(directory).unwrap_or_default();
    names.extend(additional_template_files(directory).unwrap_or_default());
    names.extend(REWRITTEN_SIDE_FILES.map(str::to_owned));
    if let Ok(Some(bytes)) = read_side_file(directory, MODULES, limits.config_bytes) {
        names.extend(pooling_settings(&bytes).unwrap_or_default());
    }
    let paths = names.into_iter().map(|name| directory.join(name));
    paths.filter_map(|path| Input::of(&path).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_what_is_written_anew_are_not_side_files() {
        for name in [
            "tokenizer.json",
            "tokenizer.model",
            "chat_template.jinja",
            "LICENSE",
            "merges.txt",
            "a.py",
        ] {
            assert!(is_side_file(name), "{name}");
        }
        for name in [
            "config.json",
            "hadamard.json",
            "hadamard_packing.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "certificate.json",
            "x.certificate.json",
            ".gitattributes",
            "model.gguf",
        ] {
            assert!(!is_side_file(name), "{name}");
        }
    }
}
