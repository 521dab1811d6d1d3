//! Names of models that are not paths: `hf://`, `https://`, `s3://` and their like.
//!
//! Invariant: the text of a location has no user name, password or query; those are in no error.

use bitnet_formats::{ErrorCode, FormatError};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::fmt;
use std::path::{Path, PathBuf};

/// A model, or a place for one, that is not a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A repository of a Hub, or a file or directory in one.
    Hub(Repository),
    /// A file or directory of a web server.
    Http(String),
    /// An object, or all objects below a prefix.
    Store {
        /// `s3`, `gs` or `az`.
        scheme: &'static str,
        /// The bucket or container.
        bucket: String,
        /// Without `/` at its ends.
        key: String,
    },
    /// A path of this disk, written as a URL.
    File(PathBuf),
}

/// What `hf://OWNER/NAME[@REVISION][/PATH]` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// `OWNER/NAME`.
    pub id: String,
    /// A branch, tag or commit.
    pub revision: Option<String>,
    /// A file or directory in it.
    pub path: Option<String>,
}

/// What is written as `%XX` in a revision, so that it can be read again.
const IN_A_REVISION: &AsciiSet = &CONTROLS.add(b'/').add(b'%');

/// Every scheme, with what may stand behind it.
const SCHEMES: [(&str, &str); 9] = [
    ("hf", "hf://OWNER/NAME[@REVISION][/PATH]"),
    ("https", "https://HOST/PATH"),
    ("http", "http://HOST/PATH"),
    ("s3", "s3://BUCKET/PREFIX"),
    ("gs", "gs://BUCKET/PREFIX"),
    ("gcs", "gs://BUCKET/PREFIX"),
    ("az", "az://CONTAINER/PREFIX"),
    ("azure", "az://CONTAINER/PREFIX"),
    ("file", "file:///PATH"),
];

impl Location {
    /// What an argument names, if it is no path.
    ///
    /// # Errors
    /// `usage` for a scheme that is unknown, or whose rest does not fit.
    pub fn parse(argument: &Path) -> Result<Option<Self>, FormatError> {
        let Some(text) = argument.to_str() else {
            return Ok(None);
        };
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(None);
        };
        let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        if scheme.is_empty() || !scheme.chars().all(is_scheme) {
            return Ok(None);
        }
        let lower = scheme.to_ascii_lowercase();
        let Some((_, form)) = SCHEMES.iter().find(|(name, _)| *name == lower) else {
            let known: Vec<String> = SCHEMES.iter().map(|(s, _)| format!("{s}://")).collect();
            let message = format!(
                "unknown scheme `{scheme}://`, expected {}",
                known.join(", ")
            );
            return Err(FormatError::new(ErrorCode::Usage, message)
                .hint("write a path of this disk as a path, without a scheme"));
        };
        let bad = |what: &str| {
            let message = format!("expected {form}: {what}");
            FormatError::new(ErrorCode::Usage, message).hint(format!("write {form}"))
        };
        let found = match lower.as_str() {
            "hf" => Self::Hub(Repository::parse(rest).map_err(|what| bad(&what))?),
            "http" | "https" => {
                let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
                let host = authority.rsplit('@').next().unwrap_or_default();
                if host.is_empty() {
                    return Err(bad("there is no host"));
                }
                let shown = without_secrets(&format!("{lower}://{rest}"));
                if let Some(page) = hub_page(&shown) {
                    let message = format!(
                        "{shown} is a page of the Hugging Face Hub, expected a file or a directory"
                    );
                    return Err(FormatError::new(ErrorCode::Usage, message).hint(format!(
                        "give hf://{page}, or download it: `hf download {page}`"
                    )));
                }
                Self::Http(format!("{lower}://{rest}"))
            }
            "file" => {
                let path = rest.strip_prefix("localhost").unwrap_or(rest);
                if !path.starts_with('/') {
                    return Err(bad("there is no absolute path"));
                }
                let path = percent_decode_str(path).decode_utf8();
                Self::File(PathBuf::from(
                    path.map_err(|_| bad("the path is not UTF-8"))?.as_ref(),
                ))
            }
            other => {
                let scheme = match other {
                    "s3" => "s3",
                    "gs" | "gcs" => "gs",
                    _ => "az",
                };
                let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() || bucket.contains('@') {
                    return Err(bad("there is no bucket"));
                }
                let key = key.trim_matches('/').to_owned();
                if key.split('/').any(|part| part == ".." || part == ".") {
                    return Err(bad("the prefix has `.` or `..`"));
                }
                Self::Store {
                    scheme,
                    bucket: bucket.to_owned(),
                    key,
                }
            }
        };
        Ok(Some(found))
    }

    /// Whether an argument is no path of this disk. What merely looks like a location is one.
    pub fn is_remote(argument: &Path) -> bool {
        !matches!(Self::parse(argument), Ok(None))
    }
}

/// Without what may be secret.
pub(crate) fn without_secrets(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or(url);
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let host = host.rsplit('@').next().unwrap_or(host);
            format!("{scheme}://{host}{path}")
        }
        None => url.to_owned(),
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(repository) => repository.fmt(f),
            Self::Http(url) => f.write_str(&without_secrets(url)),
            Self::Store {
                scheme,
                bucket,
                key,
            } if key.is_empty() => write!(f, "{scheme}://{bucket}"),
            Self::Store {
                scheme,
                bucket,
                key,
            } => write!(f, "{scheme}://{bucket}/{key}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://{}", self.id)?;
        if let Some(revision) = &self.revision {
            let special = special_prefix(revision);
            let name = &revision[special.len()..];
            // a slash would end it
            write!(f, "@{special}{}", utf8_percent_encode(name, IN_A_REVISION))?;
        }
        match &self.path {
            Some(path) => write!(f, "/{path}"),
            None => Ok(()),
        }
    }
}

impl Repository {
    fn parse(rest: &str) -> Result<Self, String> {
        let (owner, rest) = rest
            .split_once('/')
            .ok_or("there is no NAME behind the owner")?;
        let end = rest.find(['/', '@']).unwrap_or(rest.len());
        let (name, mut rest) = rest.split_at(end);
        for part in [owner, name] {
            check_name(part)?;
        }
        let mut revision = None;
        if let Some(behind) = rest.strip_prefix('@') {
            let start = special_prefix(behind).len();
            let slash = behind.get(start..).and_then(|tail| tail.find('/'));
            let end = slash.map_or(behind.len(), |at| start + at);
            let (text, path) = behind.split_at(end);
            let decoded = percent_decode_str(text).decode_utf8();
            let decoded = decoded.map_err(|_| "the revision is not UTF-8")?;
            // `refs` with a path behind it would read like a revision with slashes
            if matches!(&*decoded, "" | "refs") || !is_plain_path(&decoded) {
                return Err(format!("`{text}` is no revision"));
            }
            revision = Some(decoded.into_owned());
            rest = path;
        }
        let path = rest.trim_matches('/');
        if !path.is_empty() && !is_plain_path(path) {
            return Err(format!("`{path}` is no path in a repository"));
        }
        Ok(Self {
            id: format!("{owner}/{name}"),
            revision,
            path: (!path.is_empty()).then(|| path.to_owned()),
        })
    }

    /// The revision, or the Hub's default.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

/// What a revision of a pull request or of converted data begins with: these have slashes.
fn special_prefix(revision: &str) -> &str {
    let known = ["refs/pr/", "refs/convert/"];
    known
        .into_iter()
        .find(|prefix| revision.starts_with(prefix))
        .unwrap_or_default()
}

/// `OWNER/NAME`, if an address without a query is that of a model's page.
fn hub_page(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let rest = rest.strip_prefix("www.").unwrap_or(rest);
    let page = rest.strip_prefix("huggingface.co/")?.trim_end_matches('/');
    let (owner, name) = page.split_once('/')?;
    let is_plain = |part: &str| check_name(part).is_ok();
    (is_plain(owner) && is_plain(name)).then_some(page)
}

fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let good = !name.is_empty()
        && name.len() <= 96
        && name.chars().all(is_plain)
        && !name.starts_with(['.', '-'])
        && !name.ends_with(['.', '-'])
        && !name.contains("..")
        && !name.contains("--");
    match good {
        true => Ok(()),
        false => Err(format!("`{name}` is no name of an owner or repository")),
    }
}

/// Whether a path leads to a place below where it begins, on every system.
pub(crate) fn is_plain_path(path: &str) -> bool {
    let is_plain = |part: &str| {
        !matches!(part, "" | "." | "..")
            && !part.contains(['\\', ':', '\0'])
            && !part.chars().any(char::is_control)
    };
    path.split('/').all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Location> {
        Location::parse(Path::new(text)).unwrap()
    }

    fn hub(text: &str) -> (String, Option<String>, Option<String>) {
        match parse(text) {
            Some(Location::Hub(r)) => (r.id, r.revision, r.path),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn locations_are_told_from_paths() {
        for path in ["model.gguf", "./a", "/a/b", "C:\\a", "a:b", "a b://c"] {
            assert_eq!(parse(path), None, "{path}");
            assert!(!Location::is_remote(Path::new(path)));
        }
        assert_eq!(parse("file:///a%20b"), Some(Location::File("/a b".into())));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(hub("hf://a/b"), ("a/b".into(), None, None));
        assert_eq!(
            hub("hf://a/b.c@v1.0/d/e.gguf"),
            ("a/b.c".into(), some("v1.0"), some("d/e.gguf"))
        );
        assert_eq!(
            hub("hf://a/b@refs/pr/3/x"),
            ("a/b".into(), some("refs/pr/3"), some("x"))
        );
        assert_eq!(
            hub("hf://a/b@refs/pr/3"),
            ("a/b".into(), some("refs/pr/3"), None)
        );
        assert_eq!(
            hub("hf://a/b@feature%2Fx/y/"),
            ("a/b".into(), some("feature/x"), some("y"))
        );
        for text in [
            "hf://a/b@feature%2Fx/y",
            "hf://a/b@50%25",
            "hf://a/b@refs/pr/3/x",
            "hf://a/b@refs/pr/x%2Fy",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        let store = parse("s3://bucket/a/b/").unwrap();
        assert_eq!(store.to_string(), "s3://bucket/a/b");
    }

    #[test]
    fn what_is_no_location_is_refused_and_secrets_are_not_repeated() {
        for text in [
            "hf://a",
            "hf:///b",
            "hf://a/b/../c",
            "hf://a/b@",
            "hf://a/b@../x",
            "hf://a/b@refs//pr/3",
            "hf://a/..",
            "hf://a--b/c",
            "ftp://a/b",
            "s3:///x",
            "s3://b/../c",
            "http:///x",
            "file://a",
            "hf://a/b/c\nd",
            "https://huggingface.co/a/b",
            "https://secret@www.huggingface.co/a/b/?token=secret#x",
        ] {
            let error = Location::parse(Path::new(text)).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
            assert_eq!(error.code, ErrorCode::Usage, "{text}");
            assert!(error.hint.is_some());
            assert!(Location::is_remote(Path::new(text)));
        }
        let url = parse("https://user:secret@host/dir/model.gguf?sig=secret#x").unwrap();
        assert_eq!(url.to_string(), "https://host/dir/model.gguf");
    }
}
