//! The text of a prompt, and where its tokens begin in it.
//!
//! Invariant: every place is one of the text. Tokens that the text does not spell, as the one that a tokenizer puts in
//! front, take no room.

use bitnet_formats::FormatError;
use bitnet_text::Tokenizer;

/// A prompt as an answer repeats it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Echo {
    pub text: String,
    /// Characters of the text.
    pub length: usize,
    /// Characters of the text in front of each token.
    pub offsets: Vec<usize>,
}

impl Echo {
    /// Of the tokens of a text, else of tokens that came without one.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        tokens: &[u32],
        text: Option<&str>,
    ) -> Result<Self, FormatError> {
        let decoded;
        let spelled = text.is_some();
        let text = match text {
            Some(text) => text,
            None => {
                decoded = tokenizer.decode(tokens, true)?;
                &decoded
            }
        };
        let mut stream = tokenizer.stream();
        let mut place = Place { at: 0, rest: text };
        let length = text.chars().count();
        let mut offsets = Vec::with_capacity(tokens.len());
        let mut in_front = 0; // of equal special tokens, those that the text does not spell
        for (number, &token) in tokens.iter().enumerate() {
            offsets.push((place.at + stream.broken_before(token)).min(length));
            if spelled && tokenizer.is_special(token) {
                let name = tokenizer.token(token).unwrap_or_default();
                if number == 0 || tokens[number - 1] != token {
                    let run = tokens[number..].iter().take_while(|t| **t == token);
                    let run = run.count();
                    in_front = run - place.times(&name, run);
                }
                // of several equal tokens, the first ones were put in front
                if in_front > 0 {
                    in_front -= 1;
                } else {
                    place.pass(&name);
                }
                continue;
            }
            let piece = stream.push(token)?;
            place.pass(&piece);
        }
        Ok(Self {
            text: text.to_owned(),
            length,
            offsets,
        })
    }
}

/// A place in a text.
struct Place<'a> {
    at: usize, // in characters
    rest: &'a str,
}

impl Place<'_> {
    /// How many times the text goes on with `name`, at most `count`.
    fn times(&self, name: &str, count: usize) -> usize {
        let mut rest = self.rest.trim_start();
        let found = (0..count).take_while(|_| match rest.strip_prefix(name) {
            Some(next) if !name.is_empty() => {
                rest = next.trim_start();
                true
            }
            _ => false,
        });
        found.count()
    }

    /// Goes behind what a token gives. White space of the text that tokens do not give is passed, too, and so is the text
    /// that a tokenizer spells in another way.
    fn pass(&mut self, piece: &str) {
        if piece.is_empty() {
            return;
        }
        let rest = self.rest;
        let behind = rest
            .strip_prefix(piece)
            .or_else(|| rest.trim_start().strip_prefix(piece))
            .or_else(|| rest.strip_prefix(piece.trim_start()));
        let behind = behind.unwrap_or_else(|| {
            let count = piece.chars().count();
            let end = rest.char_indices().nth(count);
            end.map_or("", |(end, _)| &rest[end..])
        });
        let passed = &rest[..rest.len() - behind.len()];
        self.at += passed.chars().count();
        self.rest = behind;
    }
}
