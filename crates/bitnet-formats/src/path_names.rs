//! Names of files as other systems and reports write them.
//!
//! Invariant: what is computed here follows from the text of a name alone, so that tests on one system check the rules of all.

use std::path::{Component, Path, PathBuf};

/// A relative path with `/` between its parts on every system, as certificates and indexes write it.
pub fn slashed(path: &Path) -> String {
    let parts = path.components().filter_map(|part| match part {
        Component::CurDir => None,
        part => Some(part.as_os_str().to_string_lossy()),
    });
    parts.collect::<Vec<_>>().join("/")
}

/// The path as people write it: `C:\dir` for `\\?\C:\dir`, and `\\server\share` for `\\?\UNC\server\share`. Windows gives the longer
/// forms as real paths, and many programs do not take them. Paths of other systems stay as they are.
pub fn without_verbatim_prefix(path: PathBuf) -> PathBuf {
    match path.to_str().and_then(plain_form) {
        Some(plain) => PathBuf::from(plain),
        None => path,
    }
}

/// The longest path that programs take without the prefix.
const LONGEST: usize = 259;

fn plain_form(text: &str) -> Option<String> {
    let rest = text.strip_prefix(r"\\?\")?;
    let plain = match rest.strip_prefix(r"UNC\") {
        Some(share) => format!(r"\\{share}"),
        None => {
            let drive: Vec<char> = rest.chars().take(3).collect();
            let is_drive = matches!(drive[..], [letter, ':', '\\'] if letter.is_ascii_alphabetic());
            is_drive.then(|| rest.to_owned())?
        }
    };
    // what means something else without the prefix keeps it
    let is_plain =
        |part: &str| !is_device_name(part) && !part.ends_with(['.', ' ']) && !part.contains('/');
    let fits = plain.encode_utf16().count() <= LONGEST;
    (fits && plain.split('\\').all(is_plain)).then_some(plain)
}

/// Whether Windows takes a file name for a device, with any extension: `nul`, `con.txt`, `COM1`.
pub(crate) fn is_device_name(name: &str) -> bool {
    let stem = name.split(['.', ':']).next().unwrap_or_default();
    let stem = stem.trim_end_matches(' ').to_ascii_uppercase();
    let numbered = |kind: &str| {
        let number = stem.strip_prefix(kind);
        number.is_some_and(|n| {
            let mut digits = n.chars();
            let digit = digits.next();
            digits.next().is_none() && digit.is_some_and(|d| "123456789¹²³".contains(d))
        })
    };
    matches!(&*stem, "CON" | "PRN" | "AUX" | "NUL" | "CONIN$" | "CONOUT$")
        || numbered("COM")
        || numbered("LPT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_have_slashes() {
        for (parts, expected) in [
            (&["a.json"][..], "a.json"),
            (&["1_Pooling", "config.json"], "1_Pooling/config.json"),
            (&[".", "a", "b", "c"], "a/b/c"),
            (&[], ""),
        ] {
            let path: PathBuf = parts.iter().collect();
            assert_eq!(slashed(&path), expected);
        }
    }

    #[test]
    fn prefixes_of_windows_go_where_they_mean_nothing() {
        for (path, expected) in [
            (r"\\?\C:\dir\model.gguf", r"C:\dir\model.gguf"),
            (r"\\?\UNC\server\share\dir", r"\\server\share\dir"),
            // kept: devices, volumes, names that end otherwise without the prefix
            (r"\\?\C:\dir\nul.txt", r"\\?\C:\dir\nul.txt"),
            (r"\\?\C:\dir.\a", r"\\?\C:\dir.\a"),
            (r"\\?\Volume{1}\a", r"\\?\Volume{1}\a"),
            (r"C:\dir", r"C:\dir"),
            ("/dir/model.gguf", "/dir/model.gguf"),
        ] {
            let found = without_verbatim_prefix(PathBuf::from(path));
            assert_eq!(found, PathBuf::from(expected));
        }
        let long = format!(r"\\?\C:\{}", "a".repeat(300));
        assert_eq!(
            without_verbatim_prefix(PathBuf::from(&long)),
            PathBuf::from(&long)
        );
    }

    #[test]
    fn devices_are_no_files() {
        for name in [
            "nul",
            "NUL",
            "con.txt",
            "Com1",
            "lpt9.gguf",
            "aux .x",
            "COM²",
            "nul:",
        ] {
            assert!(is_device_name(name), "{name}");
        }
        for name in [
            "null",
            "com",
            "com0",
            "com10",
            "console",
            "model.gguf",
            "a.nul",
            "",
        ] {
            assert!(!is_device_name(name), "{name}");
        }
    }
}
