//! What is said of a path with nothing behind it: which part of it is missing, and whether it names something that is
//! not on this disk.
//!
//! Invariant: only names and the existence of directories are looked at; no network is asked.

use crate::error::{ErrorCode, FormatError, missing};
use std::path::Path;

/// Hosts and schemes whose paths are repositories of the Hugging Face Hub.
const HUB: [&str; 6] = [
    "https://huggingface.co/",
    "http://huggingface.co/",
    "huggingface.co/",
    "https://hf.co/",
    "hf.co/",
    "hf://",
];

/// Schemes of other places that are not this disk.
const REMOTE: [&str; 6] = ["https://", "http://", "s3://", "gs://", "az://", "ftp://"];

/// Ends of names that are files of a model.
const FILES: [&str; 6] = [".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth"];

/// The error for a model that is not there.
pub(crate) fn no_model(path: &Path) -> FormatError {
    let text = path.to_str().unwrap_or_default();
    let error = |message: String| FormatError::new(ErrorCode::Io, message).in_file(path);
    let on_hub = HUB.iter().find_map(|scheme| text.strip_prefix(scheme));
    if let Some(hub) = on_hub.and_then(Repository::parse).or_else(|| {
        // a directory that is there, or a path that says that it is one, is no repository
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let is_local = text.starts_with(['.', '/', '~']) || parent.is_some_and(Path::exists);
        Repository::parse(text).filter(|_| on_hub.is_none() && !is_local)
    }) {
        let name = &hub.name;
        let message = format!(
            "no such file or directory; `{name}` looks like the name of a repository on the Hugging Face Hub"
        );
        return error(message).hint(hub.download());
    }
    if on_hub.is_some() || REMOTE.iter().any(|scheme| text.starts_with(scheme)) {
        return error("expected a path on this computer, found an address".to_owned())
            .hint("download the model first, then give the path of the file or directory");
    }
    error(missing(path))
}

/// `owner/name`, perhaps with a file in it.
struct Repository<'a> {
    name: String,
    short: &'a str,
    revision: Option<&'a str>,
    file: Option<String>,
}

impl<'a> Repository<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let text = text.trim_end_matches('/');
        let mut words = text.split('/');
        let (owner, last) = (words.next()?, words.next()?);
        let (name, mut revision) = match last.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (last, None),
        };
        let mut rest: Vec<&str> = words.collect();
        if let ["resolve" | "blob" | "raw" | "tree", of, ..] = rest[..] {
            revision = Some(of).filter(|of| *of != "main");
            rest.drain(..2);
        }
        let is_word = |word: &str| {
            let rest = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(rest)
        };
        let is_file = |word: &str| FILES.iter().any(|end| word.ends_with(end));
        // a file has to look like one, and a repository must not
        let file = (!rest.is_empty()).then(|| rest.join("/"));
        let fits = is_word(owner)
            && is_word(name)
            && !is_file(name)
            && file.as_deref().is_none_or(is_file);
        fits.then(|| Self {
            name: format!("{owner}/{name}"),
            short: name,
            revision,
            file,
        })
    }

    fn download(&self) -> String {
        let Self {
            name,
            short,
            revision,
            file,
        } = self;
        let revision = revision.map_or(String::new(), |r| format!(" --revision {r}"));
        match file {
            None => format!(
                "give hf://{name}, or download it first: `hf download {name}{revision} --local-dir {short}`, then give ./{short}"
            ),
            Some(file) => format!(
                "give hf://{name}/{file}, or download it first: `hf download {name} {file}{revision} --local-dir {short}`, then give ./{short}/{file}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn repositories_are_told_from_paths() {
        let hint = |text: &str| no_model(Path::new(text)).hint.unwrap_or_default();
        for (text, command) in [
            (
                "microsoft/bitnet-b1.58-2B-4T",
                "hf download microsoft/bitnet-b1.58-2B-4T --local-dir bitnet-b1.58-2B-4T`",
            ),
            (
                "tiiuae/Falcon-E-3B/",
                "hf download tiiuae/Falcon-E-3B --local-dir",
            ),
            ("owner/name@v1.0", "hf download owner/name --revision v1.0"),
            (
                "https://huggingface.co/owner/name",
                "hf download owner/name ",
            ),
            ("hf://owner/name", "hf download owner/name "),
            ("owner/name/a/m.gguf", "hf download owner/name a/m.gguf"),
            (
                "https://huggingface.co/owner/name/resolve/main/m.gguf",
                "hf download owner/name m.gguf --local-dir",
            ),
            ("s3://bucket/m.gguf", "download the model first"),
            ("https://example.org/m.gguf", "download the model first"),
        ] {
            assert!(hint(text).contains(command), "{text}: {}", hint(text));
        }
        for text in [
            "no-such-model",
            "no-such.gguf",
            "./owner/name",
            "/no-such-owner/name",
            "../owner/name",
            "no-such-directory/m.gguf",
            "src/no-such-model", // src is there
            "a/b/c",
        ] {
            assert!(
                !hint(text).contains("hf download"),
                "{text}: {}",
                hint(text)
            );
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn the_missing_part_is_named() {
        assert_eq!(
            missing(Path::new("no-such.gguf")),
            "no such file or directory"
        );
        assert_eq!(
            missing(Path::new("no-such-directory/deeper/m.gguf")),
            "the directory `no-such-directory` does not exist"
        );
    }
}
