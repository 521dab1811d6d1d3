//! What the environment says about the Hub, as `huggingface_hub` reads it.
//!
//! Invariant: a token is printed by nothing, `Debug` included.

use bitnet_formats::{ErrorCode, FormatError};
use std::collections::HashMap;
use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one header that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Where the Hub and its cache are, and who asks.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `HF_ENDPOINT`, without `/` at its end.
    pub endpoint: String,
    /// `HF_TOKEN`, or the file of `HF_TOKEN_PATH`, and which of them it is.
    token: Option<(Secret, String)>,
    /// `HF_HUB_CACHE`; `None` if it would be below a home directory that nobody knows.
    cache: Option<PathBuf>,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// How long a server may be silent: `HF_HUB_DOWNLOAD_TIMEOUT`.
    pub silence: Duration,
}

/// `1`, `ON`, `YES` and `TRUE` in any case.
fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

impl Settings {
    /// Those of this process.
    pub fn from_env() -> Self {
        let variables = env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let mut variables: HashMap<String, String> = variables.collect();
        // without the variable, the home directory that the system has on record for the user
        if variables.get("HOME").is_none_or(String::is_empty) {
            variables.remove("HOME");
            let home = env::home_dir().and_then(|home| home.into_os_string().into_string().ok());
            let home = home.filter(|home| !home.is_empty());
            variables.extend(home.map(|home| ("HOME".to_owned(), home)));
        }
        Self::of(&variables)
    }

    /// The token to send, if there is one.
    ///
    /// # Errors
    /// `usage` for a token that no header can hold.
    pub fn token(&self) -> Result<Option<Secret>, FormatError> {
        let Some((token, source)) = &self.token else {
            return Ok(None);
        };
        let foreign = token.reveal().chars().position(|c| !c.is_ascii_graphic());
        let Some(at) = foreign else {
            return Ok(Some(token.clone()));
        };
        let message = format!(
            "{source}: expected a token of visible ASCII characters, found a blank, a line break or another character at position {}",
            at.saturating_add(1)
        );
        Err(FormatError::new(ErrorCode::Usage, message)
            .hint(format!("{source} should hold the token alone, on one line")))
    }

    /// The directory of the cache.
    ///
    /// # Errors
    /// `usage` if it would be below a home directory that is not known.
    pub fn cache(&self) -> Result<&Path, FormatError> {
        self.cache.as_deref().ok_or_else(|| {
            let message = "the cache is in the home directory, and HOME is not set";
            FormatError::new(ErrorCode::Usage, message)
                .hint("set HOME, or set HF_HUB_CACHE to the directory of the cache")
        })
    }

    /// Those of some variables.
    pub fn of(variables: &HashMap<String, String>) -> Self {
        let get = |name: &str| {
            let value = variables.get(name).map(|value| value.trim());
            value.filter(|value| !value.is_empty())
        };
        let path = |name: &str| get(name).map(|value| expand(value, variables));
        let home = path("HF_HOME").unwrap_or_else(|| {
            let cache = path("XDG_CACHE_HOME").unwrap_or_else(|| expand("~/.cache", variables));
            Some(cache?.join("huggingface"))
        });
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let implicit = !get("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(is_true);
        let token_file = match path("HF_TOKEN_PATH") {
            Some(file) => file,
            None => home.as_ref().map(|home| home.join("token")),
        };
        let named = |name: &'static str| Some((get(name)?.to_owned(), name.to_owned()));
        let token = named("HF_TOKEN").or_else(|| named("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| {
            let file = token_file?;
            let text = bitnet_formats::read_file(&file, 1 << 16).ok()?;
            let token = String::from_utf8(text).ok()?.trim().to_owned();
            Some((token, file.display().to_string()))
        });
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"];
        let seconds = get("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|s| s.parse::<u32>().ok());
        let endpoint = get("HF_ENDPOINT").unwrap_or("https://huggingface.co");
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token
                .filter(|(token, _)| implicit && !token.is_empty())
                .map(|(token, source)| (Secret::new(token), source)),
            cache: cache.unwrap_or_else(|| home.map(|home| home.join("hub"))),
            offline: offline
                .into_iter()
                .any(|name| get(name).is_some_and(is_true)),
            silence: Duration::from_secs(seconds.filter(|s| *s > 0).unwrap_or(30).into()),
        }
    }
}

/// A path with `~`, `$NAME` and `${NAME}` replaced; `None` if it begins with `~` and nobody knows the home directory.
fn expand(value: &str, variables: &HashMap<String, String>) -> Option<PathBuf> {
    let mut text = String::new();
    let mut rest = value;
    if value == "~" || value.starts_with("~/") || cfg!(windows) && value.starts_with("~\\") {
        // Windows sets USERPROFILE; HOME is set by shells that come from elsewhere, and goes first
        let home = ["HOME", "USERPROFILE"];
        let home = home.into_iter().find_map(|name| variables.get(name));
        text.push_str(home?);
        rest = value.get(1..).unwrap_or_default();
    }
    while let Some((before, behind)) = rest.split_once('$') {
        text.push_str(before);
        let (name, after) = match behind.strip_prefix('{').and_then(|b| b.split_once('}')) {
            Some(found) => found,
            None => {
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                behind.split_at(behind.find(|c| !is_name(c)).unwrap_or(behind.len()))
            }
        };
        match variables.get(name) {
            Some(value) => text.push_str(value),
            None => {
                let length = rest
                    .len()
                    .saturating_sub(before.len())
                    .saturating_sub(after.len());
                let start = before.len();
                text.push_str(
                    rest.get(start..start.saturating_add(length))
                        .unwrap_or_default(),
                );
            }
        }
        rest = after;
    }
    text.push_str(rest);
    Some(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Settings {
        let variables = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Settings::of(&variables.collect())
    }

    #[test]
    fn the_environment_is_read_as_huggingface_hub_reads_it() {
        let plain = of(&[("HOME", "/h")]);
        assert_eq!(
            plain.cache().unwrap(),
            Path::new("/h/.cache/huggingface/hub")
        );
        assert_eq!(
            (plain.endpoint.as_str(), plain.offline),
            ("https://huggingface.co", false)
        );
        assert_eq!(
            of(&[("XDG_CACHE_HOME", "/x")]).cache().unwrap(),
            Path::new("/x/huggingface/hub")
        );
        assert_eq!(
            of(&[("HF_HOME", "~/f"), ("HOME", "/h")]).cache().unwrap(),
            Path::new("/h/f/hub")
        );
        // Windows
        assert_eq!(
            of(&[("USERPROFILE", "/u")]).cache().unwrap(),
            Path::new("/u/.cache/huggingface/hub")
        );
        let both = of(&[("USERPROFILE", "/u"), ("HOME", "/h")]);
        assert_eq!(both.cache().unwrap(), plain.cache().unwrap());
        let named = of(&[
            ("HF_HOME", "/f"),
            ("HF_HUB_CACHE", "$A/${B}c$D"),
            ("A", "/a"),
            ("B", "b"),
        ]);
        assert_eq!(named.cache().unwrap(), Path::new("/a/bc$D"));
        assert!(of(&[("HF_HUB_OFFLINE", "true")]).offline);
        assert!(!of(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert_eq!(of(&[("HF_ENDPOINT", "http://a:1/")]).endpoint, "http://a:1");
    }

    #[test]
    fn a_token_comes_from_the_variable_or_the_file_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        std::fs::write(&file, " hf_file\n").unwrap();
        let file = file.to_str().unwrap();
        let token =
            |pairs: &[(&str, &str)]| of(pairs).token().unwrap().map(|t| t.reveal().to_owned());
        assert_eq!(
            token(&[("HF_TOKEN", "hf_a "), ("HF_TOKEN_PATH", file)]).as_deref(),
            Some("hf_a")
        );
        assert_eq!(
            token(&[("HF_TOKEN_PATH", file)]).as_deref(),
            Some("hf_file")
        );
        assert_eq!(
            token(&[("HF_TOKEN", "x"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]),
            None
        );
        assert_eq!(token(&[("HF_HOME", "/absent")]), None);
        assert!(!format!("{:?}", of(&[("HF_TOKEN", "hf_secret")])).contains("hf_secret"));
    }

    #[test]
    fn a_home_that_nobody_knows_is_no_directory_called_tilde() {
        for pairs in [&[][..], &[("HF_HOME", "~/f")], &[("HF_HUB_CACHE", "~/c")]] {
            let error = of(pairs).cache().unwrap_err();
            assert_eq!(error.code, ErrorCode::Usage);
            assert!(error.to_string().contains("HOME"), "{error}");
            assert_eq!(of(pairs).token().unwrap(), None);
        }
        // what needs no home directory does without
        let named = of(&[("HF_HUB_CACHE", "/c")]);
        assert_eq!(named.cache().unwrap(), Path::new("/c"));
    }

    #[test]
    fn a_token_that_no_header_can_hold_is_refused_by_its_name() {
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            for token in [
                "hf_secret\nhf_other",
                "hf_secret\rx",
                "hf secret",
                "hf_\u{e4}",
            ] {
                let error = of(&[(name, token)]).token().unwrap_err();
                assert_eq!(error.code, ErrorCode::Usage);
                let said = format!("{error} {:?}", error.hint);
                assert!(said.contains(name) && !said.contains("secret"), "{said}");
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        std::fs::write(&file, "hf_a\nhf_b\n").unwrap();
        let settings = of(&[("HF_TOKEN_PATH", file.to_str().unwrap())]);
        let error = settings.token().unwrap_err().to_string();
        assert!(error.contains(file.to_str().unwrap()), "{error}");
    }
}
