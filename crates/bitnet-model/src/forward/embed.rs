//! Texts as vectors: the final hidden states of all tokens, pooled, at length 1 unless the pipeline does not normalize.
//!
//! Invariant: as for logits, a vector follows from the tokens and the model alone (`formats/numerics.md`).

use super::{BATCH_TOKENS, Buffers, Logits, Model};
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
        let mut session = self.session(tokens.len())?;
        let hidden = self.config().hidden_size;
        let mut vector = vec![0.0; hidden];
        self.pools.enter(|| {
            for (batch, tokens) in tokens.chunks(BATCH_TOKENS).enumerate() {
                self.forward_batches(&mut session, tokens, Logits::None)?;
                let Buffers { x, h, .. } = &mut session.buffers;
                h.resize(x.len(), 0.0);
                self.output_norm(x, h);
                match pooling {
                    Pooling::Mean => {
                        for state in h.chunks_exact(hidden) {
                            self.backend.add(state, &mut vector);
                        }
                    }
                    Pooling::First if batch == 0 => vector.copy_from_slice(&h[..hidden]),
                    Pooling::First => break,
                    Pooling::Last => vector.copy_from_slice(&h[h.len() - hidden..]),
                }
            }
            Ok::<_, FormatError>(())
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
