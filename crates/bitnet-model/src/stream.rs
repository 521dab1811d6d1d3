//! The residual stream of a round, and what blocks exchange with it.
//!
//! Invariant: rows are tokens of the round; `x` is what all blocks before added up, `y` what the last half of a
//! block wants to add.

use crate::bit_linear::LinearInput;
use crate::rotation::Rotation;
use bitnet_checkpoint::Config;
use bitnet_kernels::Backend;
use std::sync::Arc;

/// Scratch that is larger than what a round needs by more than this factor is given back.
const KEPT_SCRATCH: usize = 8;

/// Buffers that all blocks share.
#[derive(Debug)]
pub(crate) struct Stream {
    pub input: LinearInput,
    pub x: Vec<f32>, // (rows, hidden): the residual stream
    pub y: Vec<f32>, // (rows, hidden): what mixer or MLP adds to x
    pub n: Vec<f32>, // (rows, hidden) where there are norms to share or to add: normed, else empty
}

impl Stream {
    /// Empty buffers.
    pub(crate) fn new(backend: Backend, config: &Config, rotation: Option<Arc<Rotation>>) -> Self {
        Self {
            input: LinearInput::new(backend, config.activation_quantization, rotation),
            x: Vec::new(),
            y: Vec::new(),
            n: Vec::new(),
        }
    }

    /// Makes room for some rows.
    pub(crate) fn resize(&mut self, config: &Config, rows: usize) {
        let (hidden, norms) = (config.hidden_size, config.norms);
        let is_shared = norms.projections || norms.branches || config.hybrid.is_some();
        let spare = match is_shared {
            true => hidden,
            false => 0,
        };
        fit(&mut self.x, rows * hidden);
        fit(&mut self.y, rows * hidden);
        fit(&mut self.n, rows * spare);
    }
}

/// Gives a buffer a length, and memory back that it has no use for: a prompt's round is 36 MB of a 2B model, and
/// one prompt comes before many single tokens.
pub(crate) fn fit(buffer: &mut Vec<f32>, len: usize) {
    buffer.resize(len, 0.0);
    if buffer.capacity() / KEPT_SCRATCH > len {
        buffer.shrink_to_fit();
    }
}
