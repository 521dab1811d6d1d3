//! Where a page comes from, with hashes that a click copies.
//!
//! Invariant: the only script of a page is [`SCRIPT`], which a content security policy names by its hash; without it,
//! everything can still be read and selected.

use super::super::printable;
use super::super::provenance::{FileFacts, ModelFacts, Provenance};
use super::super::words::{bytes, grouped};
use maud::{Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

/// Shows the buttons, and copies the text before the button that is pressed.
pub(super) const SCRIPT: &str = include_str!("copy.js");

/// What a page may do: its own style, and its own script.
pub(super) fn policy() -> String {
    let hash = base64(&Sha256::digest(SCRIPT.as_bytes()));
    format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'"
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = (bits >> (18 - 6 * i)) as usize & 63;
            text.push(match i <= group.len() {
                true => char::from(DIGITS[digit]),
                false => '=',
            });
        }
    }
    text
}

/// A text in which hashes can be copied.
pub(super) fn with_hashes(text: &str) -> Markup {
    let is_hash = |word: &str| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words: Vec<&str> = text
        .split_inclusive(|c: char| !c.is_ascii_alphanumeric())
        .collect();
    html! {
        @for word in words {
            @let bare = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            @if is_hash(bare) {
                (hash(bare)) (printable(word.get(bare.len()..).unwrap_or("")))
            } @else { (printable(word)) }
        }
    }
}

fn hash(sha256: &str) -> Markup {
    html! {
        code .hash { (printable(sha256)) }
        " " button .copy type="button" hidden="hidden" { "copy" }
    }
}

/// The models, and the run.
pub(super) fn section(provenance: &Provenance) -> Markup {
    html! {
        section #subject {
            h2 { "What was compared" }
            div .models {
                @for model in &provenance.models { (of_model(model)) }
            }
            @if !provenance.others.is_empty() {
                dl {
                    @for (role, name) in &provenance.others {
                        dt { (role) } dd { (printable(name)) }
                    }
                }
            }
        }
        section #run {
            h2 { "How it was compared" }
            dl {
                dt { "date" } dd { (provenance.date) }
                dt { "command" } dd { code { (printable(&provenance.command)) } }
                dt { "program" } dd { (printable(&provenance.program)) }
                dt { "machine" } dd { (printable(&provenance.machine)) }
                dt { "kernels" }
                dd {
                    @if provenance.kernels.is_empty() { "none: the model was not run" }
                    @else { (provenance.kernels.join(", ")) }
                }
                dt { "seconds" } dd { (format!("{:.1}", provenance.seconds)) }
            }
        }
    }
}

/// Most files of a model that are listed.
const FILES: usize = 64;

fn of_model(model: &ModelFacts) -> Markup {
    let [linears, all] = model.bits_per_weight.unwrap_or_default();
    html! {
        div .model {
            h3 { (model.role) }
            dl {
                @if !model.name.is_empty() { dt { "name" } dd { (printable(&model.name)) } }
                @if !model.format.is_empty() { dt { "format" } dd { (printable(&model.format)) } }
                dt { "size" } dd { (bytes(model.bytes)) }
                @if model.parameters > 0 {
                    dt { "weights" } dd { (grouped(&model.parameters.to_string())) }
                }
                @if model.bits_per_weight.is_some() {
                    dt { "bits per weight" }
                    dd { (format!("{linears:.3} of the linears, {all:.3} of all")) }
                }
                @if let Some(repository) = &model.repository {
                    dt { "repository" } dd { (printable(repository)) }
                }
                @if let Some(commit) = &model.commit {
                    dt { "revision" } dd { code .hash { (printable(commit)) } " " button .copy type="button" hidden="hidden" { "copy" } }
                }
                @for file in model.files.iter().take(FILES) { (of_file(file)) }
                @if let Some(more @ 1..) = model.files.len().checked_sub(FILES) {
                    dt { "more files" } dd { (more) ", listed by --json" }
                }
            }
        }
    }
}

fn of_file(file: &FileFacts) -> Markup {
    html! {
        dt { "file" }
        dd {
            (printable(&file.name)) small { (bytes(file.bytes)) }
            @match &file.sha256 {
                Some(sha256) => div { small { "sha256 " } (hash(sha256)) },
                None => small { "not hashed: the file was read in ranges" },
            }
        }
    }
}

/// The script of the page, at its end.
pub(super) fn script() -> Markup {
    html! { script { (PreEscaped(SCRIPT)) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, expected) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes), expected);
        }
        // as XML has it, the script is the same text
        assert!(!SCRIPT.contains(['<', '&']) && !SCRIPT.contains("]]>"));
    }
}
