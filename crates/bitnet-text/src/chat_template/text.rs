//! Texts, counted in characters as Python counts.
//!
//! Invariant: a text never changes, and its bytes are charged as long as it lives.

use super::meter::{Buf, Charge, R, spend_bytes};
use std::rc::Rc;

/// A text; counted in characters as Python counts.
#[derive(Debug, Clone)]
pub(super) struct Text(Rc<TextData>);

#[derive(Debug)]
struct TextData {
    text: Box<str>,
    chars: usize,
    /// Python's `Markup`: a text that is escaped already.
    markup: bool,
    _charge: Charge,
}

impl Text {
    pub(super) fn new(text: &str) -> R<Self> {
        let mut buf = Buf::default();
        buf.push_str(text)?;
        Self::from_buf(buf)
    }

    pub(super) fn markup(text: &str) -> R<Self> {
        let mut text = Self::new(text)?;
        if let Some(data) = Rc::get_mut(&mut text.0) {
            data.markup = true;
        }
        Ok(text)
    }

    pub(super) fn from_buf(buf: Buf) -> R<Self> {
        let (text, mut charge) = buf.into_parts();
        charge.grow(96)?;
        let chars = text.chars().count();
        Ok(Self(Rc::new(TextData {
            text,
            chars,
            markup: false,
            _charge: charge,
        })))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0.text
    }

    pub(super) fn chars(&self) -> usize {
        self.0.chars
    }

    pub(super) fn is_markup(&self) -> bool {
        self.0.markup
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    fn is_ascii(&self) -> bool {
        self.0.chars == self.0.text.len()
    }

    /// Where a character begins.
    pub(super) fn offset(&self, char_at: usize) -> R<usize> {
        if self.is_ascii() {
            return Ok(char_at.min(self.0.text.len()));
        }
        spend_bytes(char_at)?;
        let mut offsets = self.0.text.char_indices();
        Ok(offsets.nth(char_at).map_or(self.0.text.len(), |(at, _)| at))
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

/// The beginning of a name, for an error.
pub(super) fn shown(name: &str) -> &str {
    let end = name
        .char_indices()
        .nth(100)
        .map_or(name.len(), |(at, _)| at);
    &name[..end]
}

/// Writes a text as HTML.
pub(super) fn escape_into(text: &str, out: &mut Buf) -> R<()> {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;")?,
            '>' => out.push_str("&gt;")?,
            '<' => out.push_str("&lt;")?,
            '\'' => out.push_str("&#39;")?,
            '"' => out.push_str("&#34;")?,
            c => out.push(c)?,
        }
    }
    Ok(())
}
