//! Words of a command that people copy into a shell.
//!
//! Invariant: the shell reads a word as the text that it was made from, and the word is one line.

use std::ffi::OsStr;
use std::fmt::Write;

/// A path, an address or another text as one word of a shell: quoted if it needs to be.
///
/// ```
/// use bitnet_formats::shell_word;
///
/// assert_eq!(shell_word("hf://owner/name@main"), "hf://owner/name@main");
/// # #[cfg(unix)]
/// assert_eq!(shell_word("my model's.gguf"), r"'my model'\''s.gguf'");
/// ```
pub fn shell_word(text: impl AsRef<OsStr>) -> String {
    let bytes = text.as_ref().as_encoded_bytes();
    let shown = String::from_utf8_lossy(bytes);
    let is_plain = |c: char| {
        c.is_alphanumeric()
            || "/._-+:@=,".contains(c)
            || if cfg!(windows) { c == '\\' } else { c == '%' }
    };
    if !shown.is_empty() && shown.chars().all(is_plain) {
        return shown.into_owned();
    }
    if cfg!(windows) {
        // no file name of Windows has a quotation mark
        return format!("\"{shown}\"");
    }
    let is_text = std::str::from_utf8(bytes).is_ok();
    match is_text && !shown.contains(char::is_control) {
        true => format!("'{}'", shown.replace('\'', "'\\''")),
        false => escaped(bytes),
    }
}

/// Between `$'` and `'`, with what has no place in a line spelled out.
fn escaped(bytes: &[u8]) -> String {
    let mut word = String::from("$'");
    let spell = |word: &mut String, byte: u8| {
        // writing to a String cannot fail
        let _ = write!(word, "\\x{byte:02x}");
    };
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\'' | '\\' => word.extend(['\\', c]),
                '\n' => word.push_str("\\n"),
                c if c.is_control() => {
                    let mut buffer = [0; 4];
                    let spelled = c.encode_utf8(&mut buffer).bytes();
                    spelled.for_each(|byte| spell(&mut word, byte));
                }
                c => word.push(c),
            }
        }
        chunk.invalid().iter().for_each(|&b| spell(&mut word, b));
    }
    word.push('\'');
    word
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;

    #[test]
    fn a_shell_reads_the_text_again() {
        let texts: [&[u8]; 16] = [
            b"model.gguf",
            b"hf://o/n@main",
            b"",
            b"my model.gguf",
            b"it's",
            b"'",
            b"\"$HOME\" `id` \\ !",
            b"a\\b",
            b"~",
            b"*",
            b"a;b&c|d<e>f(g)",
            "größe 漢".as_bytes(),
            b"two\nlines'\\",
            b"\x1b[31m\t1",
            b"not \xff utf-8\xe2\x821",
            b"#x",
        ];
        for text in texts {
            let word = shell_word(OsStr::from_bytes(text));
            assert!(!word.contains(char::is_control), "{word:?}");
            let command = format!("printf %s {word}");
            let read = Command::new("bash").arg("-c").arg(command).output();
            assert_eq!(read.unwrap().stdout, text, "{word}");
        }
        assert_eq!(shell_word("a/b-c_d.gguf"), "a/b-c_d.gguf");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("größe"), "größe");
    }
}
