//! The witness: a dense forward pass of other people's arithmetic, against which the runtime is held.
//!
//! Invariant: it shares the [`Checkpoint`] (trits, dense bytes) and the [`Config`] with the runtime
//! and nothing else. Products are candle's dense `f32` matmul over `trit * scale`; activations are
//! rounded to their int8 levels in float and dequantised before the product, as the model was
//! trained; norms and softmax sum in `f64`; rotary tables are made here. Where both are right they
//! agree to the gates of `formats/numerics.md`; where both are wrong in the same way, the mistake
//! is in the checkpoint reader, which the trit and scale checks cover.
//!
//! Memory: the dense weights of one layer exist at a time, the head is multiplied in blocks of
//! rows, and of the embedding only the rows asked for are widened. Several sequences go through a
//! layer together, so that its weights are made once.

mod deviation;
mod layer;
mod linear;
mod mixer;
mod mlp;
mod pass;
mod rope;
mod rotation;
mod tensors;

pub use deviation::{ClampAt, Deviation, RotatedAs, Rounding, RowOrder, ScaleAs};
pub use layer::{Layer, Replayed};
pub use pass::Operator;

use bitnet_checkpoint::{Checkpoint, Config, DenseTensor, Slot};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_ternary::TernaryMatrix;
use candle_core::Tensor;
use deviation::Reading;
use linear::{Linear, dense_weights};
use pass::rms_norm;
use rotation::{Turn, Turned};
use std::ops::Range;
use tensors::{candle, dense_rows, gain, matrix, values};

/// Elements of the head that are widened at a time: 32 MB as `f32`.
const HEAD_BLOCK: usize = 8 << 20;

/// The dense witness of one checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Oracle<'a> {
    checkpoint: &'a Checkpoint,
}

/// The residual stream of one sequence, layer by layer.
#[derive(Debug, Clone)]
pub struct Trace {
    /// `hidden[0]` is the embeddings, `hidden[i + 1]` the output of layer `i`, each
    /// `(tokens, hidden_size)`; the last one is before the final norm.
    pub hidden: Vec<Vec<f32>>,
    /// After the final norm, `(tokens, hidden_size)`.
    pub normed: Vec<f32>,
}

impl<'a> Oracle<'a> {
    /// A witness for `checkpoint`; nothing is read yet.
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint }
    }

    /// Logits of every position, `(tokens, vocab_size)`.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint's tensors; no tokens, or one outside the vocabulary (`usage`);
    /// activations that are not finite (`non-finite`, naming layer and tensor).
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, FormatError> {
        Ok(self.logits_of(&[tokens])?.pop().unwrap_or_default())
    }

    /// [`logits`](Self::logits) of several sequences; each layer's weights are made once.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn logits_of(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, FormatError> {
        let answers = self.logits_as(sequences, &[None])?.pop().flatten();
        Ok(answers.unwrap_or_default())
    }

    /// [`logits_of`](Self::logits_of) by programs that each do one thing otherwise, in the order of `programs`; each
    /// layer's weights are made once. `None` where doing so leads to activations that are not finite.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn logits_as(
        &self,
        sequences: &[&[u32]],
        programs: &[Option<Deviation>],
    ) -> Result<Vec<Option<Vec<Vec<f32>>>>, FormatError> {
        let embedded = |how| -> Result<Vec<Tensor>, FormatError> {
            let tokens = sequences.iter();
            tokens.map(|tokens| self.embed(tokens, how)).collect()
        };
        let right = embedded(None)?;
        let mut streams = Vec::with_capacity(programs.len());
        for how in programs {
            streams.push(Some(match self.reading(*how).rotated_as() {
                Some(how) => embedded(Some(how))?,
                None => right.clone(),
            }));
        }
        for layer in 0..self.config().num_hidden_layers {
            let layer = Layer::load(self.checkpoint, layer)?;
            for (how, stream) in programs.iter().zip(&mut streams) {
                let Some(hidden) = stream.take() else {
                    continue;
                };
                let next = hidden.iter().map(|x| layer.forward_as(x, *how));
                *stream = match next.collect() {
                    Ok(next) => Some(next),
                    Err(error) if how.is_some() && error.code == ErrorCode::NonFinite => None,
                    Err(error) => return Err(error),
                };
            }
        }
        let gain = self.norm_gain(Slot::OutputNorm)?;
        let mut normed = Vec::new();
        for (how, hidden) in programs.iter().zip(&streams) {
            let reading = self.reading(*how);
            let gain = reading.gain(None, &gain).map_err(candle)?;
            for x in hidden.iter().flatten() {
                normed.push(rms_norm(x, &gain, reading.epsilon()).map_err(candle)?);
            }
        }
        let of_program = |(how, stream): (&Option<Deviation>, &Option<_>)| {
            let count = stream.as_ref().map_or(0, |_| sequences.len());
            std::iter::repeat_n(self.reading(*how).rotated_as(), count)
        };
        let hows = programs.iter().zip(&streams).flat_map(of_program);
        let mut logits = self
            .head(self.head_slot(), normed, hows.collect())?
            .into_iter();
        let mut answer = |_| logits.by_ref().take(sequences.len()).collect();
        Ok(streams
            .iter()
            .map(|s| s.as_ref().map(&mut answer))
            .collect())
    }

    /// The embedding rows of `tokens`, `(tokens, hidden_size)`.
    ///
    /// # Errors
    /// A token outside the vocabulary; an unreadable tensor.
    pub fn embeddings(&self, tokens: &[u32]) -> Result<Vec<f32>, FormatError> {
        self.embeddings_as(tokens, None)
    }

    /// The same by a program that does one thing otherwise.
    ///
    /// # Errors
    /// As [`embeddings`](Self::embeddings).
    pub fn embeddings_as(
        &self,
        tokens: &[u32],
        how: Option<Deviation>,
    ) -> Result<Vec<f32>, FormatError> {
        values(&self.embed(tokens, self.reading(how).rotated_as())?)
    }

    /// One ternary linear on given inputs: `x` is `(tokens, cols)`, the result `(tokens, rows)`.
    ///
    /// # Errors
    /// As [`logits`](Self::logits); a length of `x` that does not fit.
    pub fn linear(&self, slot: Slot, x: &[f32], tokens: usize) -> Result<Vec<f32>, FormatError> {
        let linear = Linear::load(self.checkpoint, slot)?;
        let x = matrix(x, tokens, linear.cols)?;
        values(&linear.multiply(&x, &self.reading(None))?)
    }

    /// One layer, its weights made dense.
    ///
    /// # Errors
    /// An unreadable tensor; a layer that does not exist.
    pub fn load_layer(&self, layer: usize) -> Result<Layer<'a>, FormatError> {
        let layers = self.config().num_hidden_layers;
        if layer < layers {
            return Layer::load(self.checkpoint, layer);
        }
        let last = layers - 1;
        let text = format!("layer {layer}: the model has layers 0 to {last}");
        Err(FormatError::new(ErrorCode::Usage, text))
    }

    /// One layer on a given residual stream of positions `0..tokens`, `(tokens, hidden_size)`.
    ///
    /// # Errors
    /// As [`logits`](Self::logits); a layer or a length that does not exist.
    pub fn layer(
        &self,
        layer: usize,
        hidden: &[f32],
        tokens: usize,
    ) -> Result<Vec<f32>, FormatError> {
        let x = matrix(hidden, tokens, self.config().hidden_size)?;
        values(&self.load_layer(layer)?.forward(&x)?)
    }

    /// [`layer`](Self::layer) on several residual streams; its weights are made once.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn layer_of(&self, layer: usize, hidden: &[&[f32]]) -> Result<Vec<Vec<f32>>, FormatError> {
        let layer = Layer::load(self.checkpoint, layer)?;
        hidden
            .iter()
            .map(|x| values(&layer.forward(&self.stream(x)?)?))
            .collect()
    }

    /// The final norm of several residual streams.
    ///
    /// # Errors
    /// An unreadable tensor; a length that does not fit.
    pub fn output_norm_of(&self, hidden: &[&[f32]]) -> Result<Vec<Vec<f32>>, FormatError> {
        self.output_norm_as(hidden, None)
    }

    /// The same by a program that does one thing otherwise.
    ///
    /// # Errors
    /// As [`output_norm_of`](Self::output_norm_of).
    pub fn output_norm_as(
        &self,
        hidden: &[&[f32]],
        how: Option<Deviation>,
    ) -> Result<Vec<Vec<f32>>, FormatError> {
        let reading = self.reading(how);
        let gain = self.norm_gain(Slot::OutputNorm)?;
        let gain = reading.gain(None, &gain).map_err(candle)?;
        let epsilon = reading.epsilon();
        let norm = |x: &&[f32]| {
            let normed = rms_norm(&self.stream(x)?, &gain, epsilon);
            values(&normed.map_err(candle)?)
        };
        hidden.iter().map(norm).collect()
    }

    /// The output head on several streams that are normed already.
    ///
    /// # Errors
    /// An unreadable tensor; a length that does not fit.
    pub fn head_of(&self, normed: &[&[f32]]) -> Result<Vec<Vec<f32>>, FormatError> {
        self.head_as(normed, None)
    }

    /// The same by a program that does one thing otherwise.
    ///
    /// # Errors
    /// As [`head_of`](Self::head_of).
    pub fn head_as(
        &self,
        normed: &[&[f32]],
        how: Option<Deviation>,
    ) -> Result<Vec<Vec<f32>>, FormatError> {
        let normed: Result<Vec<_>, _> = normed.iter().map(|x| self.stream(x)).collect();
        let normed = normed?;
        let hows = vec![self.reading(how).rotated_as(); normed.len()];
        self.head(self.head_slot(), normed, hows)
    }

    /// The same with the tensor of another slot, embeddings or head, as the head.
    ///
    /// # Errors
    /// As [`head_of`](Self::head_of).
    pub fn head_by(&self, slot: Slot, normed: &[&[f32]]) -> Result<Vec<Vec<f32>>, FormatError> {
        let normed: Result<Vec<_>, _> = normed.iter().map(|x| self.stream(x)).collect();
        let normed = normed?;
        let hows = vec![None; normed.len()];
        self.head(slot, normed, hows)
    }

    /// What the output head of this network is.
    fn head_slot(&self) -> Slot {
        match self.config().tie_word_embeddings {
            true => Slot::TokenEmbeddings,
            false => Slot::OutputHead,
        }
    }

    fn reading(&self, how: Option<Deviation>) -> Reading<'a> {
        Reading {
            config: self.config(),
            how,
        }
    }

    fn stream(&self, x: &[f32]) -> Result<Tensor, FormatError> {
        let width = self.config().hidden_size;
        matrix(x, x.len() / width, width)
    }

    /// The residual stream of one sequence after every layer.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn trace(&self, tokens: &[u32]) -> Result<Trace, FormatError> {
        let mut x = self.embed(tokens, None)?;
        let mut hidden = vec![values(&x)?];
        for layer in 0..self.config().num_hidden_layers {
            x = Layer::load(self.checkpoint, layer)?.forward(&x)?;
            hidden.push(values(&x)?);
        }
        let normed = values(&self.rms_norm(&x, &self.norm_gain(Slot::OutputNorm)?)?)?;
        Ok(Trace { hidden, normed })
    }

    fn config(&self) -> &'a Config {
        &self.checkpoint.config
    }

    fn embed(&self, tokens: &[u32], how: Option<RotatedAs>) -> Result<Tensor, FormatError> {
        let (vocab, width) = (self.config().vocab_size, self.config().hidden_size);
        if tokens.is_empty() {
            return Err(FormatError::new(
                ErrorCode::Usage,
                "expected at least one token, found none",
            ));
        }
        let table = Table::open(self.checkpoint, Slot::TokenEmbeddings)?;
        let mut x = Vec::with_capacity(tokens.len() * width);
        for &token in tokens {
            let row = token as usize;
            if row >= vocab {
                return Err(FormatError::new(
                    ErrorCode::Usage,
                    format!(
                        "token {token}: the vocabulary has tokens 0 to {}",
                        vocab - 1
                    ),
                ));
            }
            x.extend(table.rows(row..row + 1)?);
        }
        let factor = f64::from(self.config().factors.embedding);
        let mut x = matrix(&x, tokens.len(), width)?;
        let table = Slot::TokenEmbeddings;
        if let Some(turn) = Turn::of(self.config(), table, Turned::Row, width, how)? {
            x = turn.back(&x).map_err(candle)?;
        }
        x.affine(factor, 0.0).map_err(candle)
    }

    fn norm_gain(&self, slot: Slot) -> Result<Tensor, FormatError> {
        gain(self.checkpoint, slot)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor) -> Result<Tensor, FormatError> {
        rms_norm(x, gain, self.config().rms_norm_eps).map_err(candle)
    }

    /// `x @ head^T` for every sequence, each read in its own way, the head widened in blocks of rows.
    fn head(
        &self,
        slot: Slot,
        normed: Vec<Tensor>,
        hows: Vec<Option<RotatedAs>>,
    ) -> Result<Vec<Vec<f32>>, FormatError> {
        let (vocab, width) = (self.config().vocab_size, self.config().hidden_size);
        let head = Table::open(self.checkpoint, slot)?;
        let divisor = f64::from(self.config().factors.head_divisor);
        let hidden: Result<Vec<Tensor>, _> = normed.iter().map(|x| x / divisor).collect();
        let mut hidden = hidden.map_err(candle)?;
        for (hidden, how) in hidden.iter_mut().zip(hows) {
            if let Some(turn) = Turn::of(self.config(), slot, Turned::Head, width, how)? {
                *hidden = turn.forward(hidden).map_err(candle)?;
            }
        }
        let mut logits: Vec<Vec<f32>> = Vec::with_capacity(hidden.len());
        for x in &hidden {
            logits.push(vec![0.0; x.dim(0).map_err(candle)? * vocab]);
        }
        let block = (HEAD_BLOCK / width).max(1);
        for start in (0..vocab).step_by(block) {
            let rows = start..vocab.min(start + block);
            let weights = matrix(&head.rows(rows.clone())?, rows.len(), width)?;
            let weights = weights.t().map_err(candle)?;
            for (x, out) in hidden.iter().zip(&mut logits) {
                let part = values(&x.matmul(&weights).map_err(candle)?)?;
                for (out, part) in out
                    .chunks_exact_mut(vocab)
                    .zip(part.chunks_exact(rows.len()))
                {
                    out[rows.clone()].copy_from_slice(part);
                }
            }
        }
        Ok(logits)
    }
}

/// Rows by token: embeddings or output head.
enum Table<'a> {
    Dense(Slot, DenseTensor<'a>),
    Ternary(TernaryMatrix),
}

impl<'a> Table<'a> {
    fn open(checkpoint: &'a Checkpoint, slot: Slot) -> Result<Self, FormatError> {
        if checkpoint.is_ternary(slot) {
            checkpoint.ternary(slot).map(Self::Ternary)
        } else {
            Ok(Self::Dense(slot, checkpoint.dense(slot)?))
        }
    }

    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>, FormatError> {
        match self {
            Self::Dense(slot, tensor) => dense_rows(tensor, *slot, rows),
            Self::Ternary(matrix) => Ok(dense_weights(matrix, rows)),
        }
    }
}
