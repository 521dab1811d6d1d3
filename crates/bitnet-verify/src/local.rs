//! Text without what belongs to one machine or one person: paths of directories, and secrets.
//!
//! Invariant: a path ends as the name of its file, and a token, a key, or the user and the query of a URL never stays.
//! Names of files, repositories and servers stay.

use std::path::Path;

/// What stands where a secret was.
const REMOVED: &str = "[removed]";

/// Beginnings of tokens and keys, and how many characters follow at least.
const SECRETS: [(&str, usize); 10] = [
    ("hf_", 20),
    ("sk-", 20),
    ("ghp_", 20),
    ("gho_", 20),
    ("ghs_", 20),
    ("github_pat_", 20),
    ("glpat-", 15),
    ("xoxb-", 20),
    ("AKIA", 16),
    ("eyJ", 50),
];

/// Keys whose values are secrets, whatever they are.
const SECRET_KEYS: [&str; 14] = [
    "token",
    "auth_token",
    "use_auth_token",
    "access_token",
    "hf_token",
    "api_key",
    "apikey",
    "access_key",
    "secret",
    "secret_key",
    "password",
    "private_key",
    "credentials",
    "authorization",
];

/// Whether the value of a key of a configuration is a secret.
pub(crate) fn is_secret_key(key: &str) -> bool {
    // of keys with sections the last part has the name
    let key = key.rsplit(['.', '/']).next().unwrap_or(key);
    let key = key.to_ascii_lowercase().replace('-', "_");
    let tail = ["_api_key", "_secret", "_password", "_access_key"];
    SECRET_KEYS.contains(&key.as_str()) || tail.iter().any(|end| key.ends_with(end))
}

/// Makes texts public.
#[derive(Debug, Default)]
pub(crate) struct Public {
    /// Spellings of directories and files, the longest first, and what stands for them.
    known: Vec<(String, String)>,
}

impl Public {
    /// Knows how these files and directories are spelled: their paths may hold blanks.
    pub(crate) fn knowing<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut known = Vec::new();
        for path in paths {
            let spellings = [Some(path.to_owned()), std::fs::canonicalize(path).ok()];
            for spelled in spellings.into_iter().flatten() {
                let text = spelled.display().to_string();
                // an address is as public as its user made it; a name alone says nothing
                if text.contains("://") || !text.contains(['/', '\\']) {
                    continue;
                }
                let directory = match spelled.is_dir() {
                    true => Some(spelled.as_path()),
                    false => spelled.parent(),
                };
                for separator in ['/', '\\'] {
                    let directory = directory.map(|d| d.display().to_string());
                    let directory = directory.filter(|d| d.contains(['/', '\\']) && d.len() > 1);
                    known.extend(directory.map(|d| (format!("{d}{separator}"), String::new())));
                }
                known.push((text, file_name(path)));
            }
        }
        known.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then(a.cmp(b)));
        known.dedup();
        Self { known }
    }

    /// The text without local paths and without secrets.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for (from, to) in &self.known {
            out = replace_whole(&out, from, to);
        }
        let mut clean = String::with_capacity(out.len());
        let mut rest = out.as_str();
        while !rest.is_empty() {
            let end = rest.find(is_delimiter).unwrap_or(rest.len());
            let (word, behind) = rest.split_at(end);
            clean.push_str(&public_word(word));
            let mut behind = behind.chars();
            clean.extend(behind.next());
            rest = behind.as_str();
        }
        clean
    }
}

/// The last part of a path, whatever system wrote it; an address as it is.
pub(crate) fn file_name(path: &Path) -> String {
    let text = path.display().to_string();
    if text.contains("://") {
        return public_word(&text);
    }
    // of `.` and `..` the directory has the name
    let real = match path.file_name() {
        Some(_) => None,
        None => std::fs::canonicalize(path).ok(),
    };
    let real = real.map_or(text, |real| real.display().to_string());
    without_secrets(last(&real))
}

fn last(path: &str) -> &str {
    let path = path.trim_end_matches(['/', '\\']);
    path.rsplit(['/', '\\']).next().unwrap_or(path)
}

fn is_delimiter(c: char) -> bool {
    c.is_whitespace() || "'\"`()[]{}<>,;|".contains(c)
}

/// Replaces what stands as a path of its own, not as the end of a longer one.
fn replace_whole(text: &str, from: &str, to: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(from) {
        let (before, found) = rest.split_at(at);
        let glued = |c: char| c.is_alphanumeric() || "_-./\\~".contains(c);
        out.push_str(before);
        match before.chars().next_back().or(out.chars().next_back()) {
            Some(c) if glued(c) && !before.ends_with("file://") => out.push_str(from),
            _ => out.push_str(to),
        }
        rest = found.get(from.len()..).unwrap_or("");
    }
    out.push_str(rest);
    out
}

/// A word without blanks and quotes.
fn public_word(word: &str) -> String {
    if let Some((before, path)) = word.split_once("file://") {
        return format!("{before}{}", without_secrets(last(path)));
    }
    if let Some((scheme, rest)) = word.split_once("://") {
        let (address, _query) = rest.split_once(['?', '#']).unwrap_or((rest, ""));
        let (server, path) = match address.split_once('/') {
            Some((server, path)) => (server, Some(path)),
            None => (address, None),
        };
        let server = server.rsplit('@').next().unwrap_or(server);
        let path = path.map(|path| format!("/{path}")).unwrap_or_default();
        return without_secrets(&format!("{scheme}://{server}{path}"));
    }
    if let Some((at, _)) = word
        .match_indices([':', '='])
        .find(|(at, _)| word.get(at + 1..).is_some_and(is_absolute))
        && !is_absolute(word)
    {
        let (name, path) = word.split_at(at + 1);
        return format!("{}{}", without_secrets(name), without_secrets(last(path)));
    }
    match is_absolute(word) {
        true => without_secrets(last(word)),
        false => without_secrets(word),
    }
}

/// Whether a word is a path from a root, of two parts at least: a single `/word` is text of templates.
fn is_absolute(word: &str) -> bool {
    let drive = word.as_bytes().get(1) == Some(&b':')
        && word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word
            .get(2..)
            .is_some_and(|rest| rest.starts_with(['/', '\\']));
    if drive || word.starts_with("\\\\") || word.starts_with("~/") {
        return true;
    }
    let Some(rest) = word.strip_prefix('/') else {
        return false;
    };
    rest.starts_with(|c: char| c.is_alphanumeric() || "._-".contains(c)) && rest.contains('/')
}

/// The word with a mark in place of what looks like a token: one pass, whatever its length.
fn without_secrets(word: &str) -> String {
    let is_of_token = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let mut out = String::with_capacity(word.len());
    let mut rest = word;
    while !rest.is_empty() {
        // a run of characters of tokens, and what stands between it and the next
        let end = rest.find(|c| !is_of_token(c)).unwrap_or(rest.len());
        let (run, behind) = rest.split_at(end);
        match secret_in(run) {
            Some(at) => {
                out.push_str(run.get(..at).unwrap_or(""));
                out.push_str(REMOVED);
            }
            None => out.push_str(run),
        }
        let next = behind.find(is_of_token).unwrap_or(behind.len());
        let (between, next) = behind.split_at(next);
        out.push_str(between);
        rest = next;
    }
    out
}

/// Where a token begins in a run of characters of tokens.
fn secret_in(run: &str) -> Option<usize> {
    // words of a language have no digits
    let last = run.rfind(|c: char| c.is_ascii_digit() || c.is_ascii_uppercase())?;
    let starts = SECRETS.iter().filter_map(|(start, least)| {
        let mut all = run.match_indices(start).map(|(at, _)| at);
        all.find(|at| {
            let (before, token) = (run.get(..*at).unwrap_or(""), at + start.len());
            !before.ends_with(|c: char| c.is_ascii_alphanumeric())
                && run.len() - token >= *least
                && last >= token
        })
    });
    starts.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_end_as_names_and_secrets_are_gone() {
        let public = Public::default();
        for (text, expected) in [
            ("/home/ann/models/m.gguf: bad magic", "m.gguf: bad magic"),
            ("see `/root/x/y.json` (line 3)", "see `y.json` (line 3)"),
            ("--html=/srv/out/r.html", "--html=r.html"),
            (r"C:\Users\ann\m.gguf", "m.gguf"),
            (r"\\server\share\m.gguf", "m.gguf"),
            ("~/models/m.gguf", "m.gguf"),
            ("file:///home/ann/m", "m"),
            ("hf://owner/name@main/m.gguf", "hf://owner/name@main/m.gguf"),
            (
                "https://ann:pw@host/m.gguf?X-Amz-Signature=1#x",
                "https://host/m.gguf",
            ),
            (
                "</think>{{ '/no_think' }} and/or 1/2",
                "</think>{{ '/no_think' }} and/or 1/2",
            ),
            ("blk.0/attn", "blk.0/attn"),
            (
                "token hf_abcdefghijklmnopqrstuvWXYZ1234!",
                "token [removed]!",
            ),
            ("hf_abc", "hf_abc"),
            ("path:/home/ann/x", "path:x"),
            ("--set=a=/home/ann/x", "--set=a=x"),
            (
                "task-id:sk-abcdefghijklmnopqrstuvWXYZ1234",
                "task-id:[removed]",
            ),
            ("hf_/hf_abcdefghijklmnopqrstuvWXYZ1234", "hf_/[removed]"),
            (
                "/api/m?token=hf_abcdefghijklmnopqrstuvWXYZ1234",
                "m?token=[removed]",
            ),
            ("Grüße, /ä/ö", "Grüße, ö"),
        ] {
            assert_eq!(public.text(text), expected, "{text}");
        }
    }

    #[test]
    fn many_secrets_in_one_word_are_gone() {
        let token = "hf_abcdefghijklmnopqrstuvWXYZ1234!";
        assert_eq!(
            without_secrets(&token.repeat(40_000)),
            "[removed]!".repeat(40_000)
        );
    }

    #[test]
    fn known_paths_may_hold_blanks() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("my models/a b");
        std::fs::create_dir_all(&model).unwrap();
        let public = Public::knowing([model.as_path()]);
        let text = format!("{0}/config.json: no key, {0}: x", model.display());
        assert_eq!(public.text(&text), "config.json: no key, a b: x");
        let file = model.join("m.gguf");
        std::fs::write(&file, "").unwrap();
        let public = Public::knowing([file.as_path()]);
        let text = format!("{}: x; {}/o.gguf", file.display(), model.display());
        assert_eq!(public.text(&text), "m.gguf: x; o.gguf");
    }

    #[test]
    fn names_of_secrets_are_known_and_special_tokens_are_none() {
        for key in ["token", "HF-Token", "openai_api_key", "vendor.password"] {
            assert!(is_secret_key(key), "{key}");
        }
        for key in ["bos_token", "eos_token_id", "add_bos_token", "key_length"] {
            assert!(!is_secret_key(key), "{key}");
        }
    }
}
