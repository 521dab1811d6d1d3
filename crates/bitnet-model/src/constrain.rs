//! What a text has to look like, as the draws see it.
//!
//! Invariant: which tokens are excluded follows from the rule and the tokens so far alone.

use bitnet_formats::FormatError;
use std::fmt::Debug;

/// A rule that excludes tokens before each draw, such as a grammar, in the middle of a text.
pub trait Constrain: Debug + Send {
    /// Excludes the logits, `(vocab,)`, of tokens that cannot come next.
    ///
    /// # Errors
    /// `limit-exceeded` for a rule that gets too complex.
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), FormatError>;

    /// A token was drawn; whether the text is complete and nothing can follow.
    ///
    /// # Errors
    /// As [`mask`](Self::mask).
    fn accept(&mut self, token: u32) -> Result<bool, FormatError>;
}
