//! What an implementation answers.

use bitnet_formats::FormatError;

/// Logits, a vector or a hidden state; `(tokens, width)`.
pub type Answer = Result<Vec<f32>, FormatError>;
