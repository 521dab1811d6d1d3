//! Texts as vectors: the final hidden states of all tokens, pooled, at length 1 unless the pipeline does not normalize.
//!
//! Invariant: as for logits, a vector follows from the tokens and the model alone (`formats/numerics.md`).

use crate::model::Model;
use crate::step::{Slice, Want};
use crate::workspace::Workspace;
use bitnet_checkpoint::Pooling;
use bitnet_formats::{ErrorCode, FormatError};

impl Model {
    /// The vector of a text, `(hidden_size,)`, of Euclidean length 1 (all zeros if every pooled value is), or as pooled if
    /// `config.embedding.normalize` is false.
    ///
    /// # Errors
    /// `context-exceeded` for no tokens, or for more than the model was made for; `usage` for a token id
    /// beyond the vocabulary; `non-finite`.
    pub fn embed(&self, tokens: &[u32], pooling: Pooling) -> Result<Vec<f32>, FormatError> {
        let mut sequence = self.sequence(tokens.len())?;
        let hidden = self.config().hidden_size;
        let mut vector = vec![0.0; hidden];
        let mut first = true;
        let slice = Slice {
            sequence: &mut sequence,
            tokens,
            want: Want::Nothing,
        };
        self.rounds(&mut [slice], &mut self.workspace(), |_, _, workspace| {
            let Workspace { stream, h, .. } = workspace;
            h.resize(stream.x.len(), 0.0);
            self.output_norm(&stream.x, h);
            match pooling {
                Pooling::Mean => {
                    for state in h.chunks_exact(hidden) {
                        self.backend.add(state, &mut vector);
                    }
                }
                Pooling::First if first => vector.copy_from_slice(&h[..hidden]),
                Pooling::First => {}
                Pooling::Last => vector.copy_from_slice(&h[h.len() - hidden..]),
            }
            first = false;
            Ok(())
        })?;
        if pooling == Pooling::Mean {
            let count = tokens.len() as f32;
            vector.iter_mut().for_each(|v| *v /= count);
        }
        let squares = self.backend.sum_squares(&vector);
        if !squares.is_finite() {
            let message = "the pooled hidden state has no finite length";
            return Err(FormatError::new(ErrorCode::NonFinite, message));
        }
        if self.config().embedding.normalize && squares > 0.0 {
            self.backend.scale(1.0 / squares.sqrt(), &mut vector);
        }
        Ok(vector)
    }
}
