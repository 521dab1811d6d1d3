//! Windows into the forward pass, for verifying it: one linear, one layer, the head alone.
//!
//! Invariant: what they compute is what the forward pass computes of the same values, bit for bit.

use crate::bit_linear::LinearInput;
use crate::mlp::experts::Routing;
use crate::model::{Model, ROUND_TOKENS};
use crate::round::{Round, Span};
use crate::sequence::Sequence;
use crate::workspace::Workspace;
use bitnet_checkpoint::{Mlp, Slot};
use bitnet_formats::{ErrorCode, FormatError};

impl Model {
    /// One ternary linear of `x`, `(tokens, cols)`, its activation quantisation and its bias included; returns
    /// `(tokens, rows)`.
    ///
    /// # Errors
    /// `missing-tensor` for a slot that is no linear of this network, `usage` for an `x` of another
    /// length, `non-finite`.
    pub fn linear(&self, slot: Slot, x: &[f32], tokens: usize) -> Result<Vec<f32>, FormatError> {
        let matrix = match slot {
            Slot::Layer(layer, slot) => self.weights.layers.get(layer).and_then(|l| l.linear(slot)),
            _ => None,
        };
        let matrix = matrix.ok_or_else(|| {
            FormatError::new(
                ErrorCode::MissingTensor,
                "expected a ternary linear of this network",
            )
            .in_tensor(&slot.to_string())
        })?;
        check_len(x, tokens, matrix.cols())?;
        let mut out = vec![0.0; tokens * matrix.rows()]; // (tokens, rows)
        let quantization = self.config().activation_quantization;
        self.threads.enter(|| {
            let mut input = LinearInput::new(self.backend, quantization, self.rotation.clone());
            let cols = matrix.cols();
            let mut x = x.to_vec();
            input.prepare(slot, cols, (&mut x, cols), |_, x, row| {
                row.copy_from_slice(x)
            })?;
            input.multiply([(matrix, &mut out)]);
            Ok(())
        })?;
        if let Slot::Layer(layer, slot) = slot
            && let Some(bias) = self.weights.layers.get(layer).and_then(|l| l.bias(slot))
        {
            for row in out.chunks_exact_mut(bias.len()) {
                self.backend.add(bias, row);
            }
        }
        Ok(out)
    }

    /// One decoder layer of `x`, `(tokens, hidden)`, as tokens at positions `0..`; returns the
    /// residual stream behind it, `(tokens, hidden)`.
    ///
    /// # Errors
    /// `usage` for a layer that is not there or an `x` of another length, `non-finite`.
    pub fn layer(&self, layer: usize, x: &[f32], tokens: usize) -> Result<Vec<f32>, FormatError> {
        self.layer_with_routing(layer, x, tokens)
            .map(|(out, _)| out)
    }

    /// As [`layer`](Self::layer), with the experts that every token went to; `None` of a layer without experts.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn layer_with_routing(
        &self,
        layer: usize,
        x: &[f32],
        tokens: usize,
    ) -> Result<(Vec<f32>, Option<Routing>), FormatError> {
        let hidden = self.config().hidden_size;
        check_len(x, tokens, hidden)?;
        if layer >= self.weights.layers.len() {
            let layers = self.weights.layers.len();
            return Err(FormatError::new(
                ErrorCode::Usage,
                format!("expected a layer below {layers}, found {layer}"),
            ));
        }
        let block = &self.weights.layers[layer];
        let layers = layer..layer + 1;
        let mut sequence = Sequence::new(self.number, self.config(), layers, self.kv_type, tokens);
        sequence.reserve(tokens)?;
        let ropes = self.ropes(tokens);
        let positions: Vec<usize> = (0..tokens).collect(); // (tokens,)
        let mut workspace = self.workspace();
        let Workspace {
            stream,
            mixer,
            mlp,
            clock,
            ..
        } = &mut workspace;
        let mut out = Vec::with_capacity(x.len()); // (tokens, hidden)
        let is_routed = matches!(self.config().block(layer).mlp, Mlp::Experts(_));
        let mut routing = is_routed.then(Routing::default);
        self.threads.enter(|| {
            for (x, positions) in x
                .chunks(ROUND_TOKENS * hidden)
                .zip(positions.chunks(ROUND_TOKENS))
            {
                stream.resize(self.config(), positions.len());
                stream.x.copy_from_slice(x);
                let span = Span {
                    sequence: &mut sequence,
                    rows: 0..positions.len(),
                };
                let mut round = Round {
                    rows: self.row_ops(),
                    ropes: &ropes,
                    positions,
                    spans: vec![span],
                    clock,
                };
                block.forward(0, &mut round, stream, mixer, mlp)?;
                sequence.advance(positions.len());
                out.extend_from_slice(&stream.x);
                if let Some(routing) = &mut routing {
                    routing.append(mlp.routing());
                }
            }
            Ok(())
        })?;
        Ok((out, routing))
    }

    /// The experts that the tokens of a text go to, layer by layer; `None` of a layer without experts.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn routing(&self, tokens: &[u32]) -> Result<Vec<Option<Routing>>, FormatError> {
        let mut x = vec![0.0; tokens.len() * self.config().hidden_size];
        self.look_up(tokens, &mut x)?;
        let mut found = Vec::new();
        for layer in 0..self.weights.layers.len() {
            let (next, routing) = self.layer_with_routing(layer, &x, tokens.len())?;
            x = next;
            found.push(routing);
        }
        Ok(found)
    }

    /// The output head alone: the logits of a final hidden state `h`, `(hidden,)`.
    ///
    /// # Errors
    /// `usage` for an `h` of another length, `non-finite`.
    pub fn head(&self, h: &[f32]) -> Result<Vec<f32>, FormatError> {
        check_len(h, 1, self.config().hidden_size)?;
        let mut h = h.to_vec();
        self.finish_for_head(&mut h);
        let mut logits = vec![0.0; self.weights.output_head.rows()]; // (vocab,)
        self.threads.enter(|| {
            let head = &self.weights.output_head;
            head.multiply(self.backend, &h, &mut logits)
        })?;
        Ok(logits)
    }

    /// The output head alone: as [`forward_top_k`](Self::forward_top_k) finds the `k` largest logits.
    ///
    /// # Errors
    /// As [`head`](Self::head).
    pub fn head_top_k(&self, h: &[f32], k: usize) -> Result<Vec<(u32, f32)>, FormatError> {
        check_len(h, 1, self.config().hidden_size)?;
        let mut h = h.to_vec();
        self.finish_for_head(&mut h);
        let found = self.threads.enter(|| self.top_k(&h, &[k]))?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    /// The residual stream of every place, `(tokens, hidden)` each: the embeddings, what stands behind
    /// each layer, and last the final norm. `layers + 2` in all.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn trace(&self, tokens: &[u32]) -> Result<Vec<Vec<f32>>, FormatError> {
        let mut x = vec![0.0; tokens.len() * self.config().hidden_size];
        self.look_up(tokens, &mut x)?;
        let mut states = vec![x];
        for layer in 0..self.weights.layers.len() {
            let x = states.last().map_or(&[][..], |x| x);
            states.push(self.layer(layer, x, tokens.len())?);
        }
        let x = states.last().map_or(&[][..], |x| x);
        let mut normed = vec![0.0; x.len()];
        self.threads.enter(|| self.output_norm(x, &mut normed));
        states.push(normed);
        Ok(states)
    }
}

/// Refuses an `x` that is not `(tokens, width)`.
fn check_len(x: &[f32], tokens: usize, width: usize) -> Result<(), FormatError> {
    if tokens.checked_mul(width) == Some(x.len()) {
        return Ok(());
    }
    Err(FormatError::new(
        ErrorCode::Usage,
        format!("expected {tokens} x {width} values, found {}", x.len()),
    ))
}
