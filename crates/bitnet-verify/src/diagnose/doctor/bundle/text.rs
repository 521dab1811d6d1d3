//! Texts of strangers: whether they are text, and their beginnings.
//!
//! Invariant: what is shown ends between two characters, and says how long the whole is.

/// Whether a text has no control characters but those of lines.
pub(super) fn is_text(text: &str) -> bool {
    !text
        .chars()
        .any(|c| c.is_control() && !"\n\r\t".contains(c))
}

/// A text, or its beginning and how long it is.
pub(super) fn shortened(text: &str, most: usize) -> String {
    let Some((end, _)) = text.char_indices().nth(most) else {
        return text.to_owned();
    };
    let shown = text.get(..end).unwrap_or_default();
    format!("{shown}… ({} characters)", text.chars().count())
}
