//! Rotated weights in the oracle.
//!
//! Invariant: the transform is a product with the matrix of its definition, `(-1)^popcount(i AND j) / sqrt(n)`, as two
//! smaller ones of which it is the Kronecker product; the runtime adds and subtracts instead.

use super::deviation::RotatedAs;
use super::tensors::candle;
use bitnet_checkpoint::{Config, GatedDeltaNet, LayerSlot, Slot};
use bitnet_formats::{ErrorCode, FormatError};
use candle_core::{Device, Result, Tensor};

/// What is turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turned {
    /// The input of a linear.
    Linear(LayerSlot),
    /// A row of the embeddings.
    Row,
    /// The input of the output head.
    Head,
}

/// The rotation of rows of one width.
pub(super) struct Turn {
    high: Tensor,          // (a, a)
    low: Tensor,           // (b, b), a b features are transformed together
    signs: Option<Tensor>, // (1, width)
    tiled: Option<Tensor>, // (width,): the feature that stands in each place when value heads are tiled
    signs_behind: bool,    // whether the signs stand on the other side of the transform
}

impl Turn {
    /// The rotation of a matrix that is stored rotated (`slot`), as a program does it; `width` is that of its rows.
    pub(super) fn of(
        config: &Config,
        slot: Slot,
        turned: Turned,
        width: usize,
        how: Option<RotatedAs>,
    ) -> std::result::Result<Option<Self>, FormatError> {
        let Some(rotation) = config.rotation.as_deref() else {
            return Ok(None);
        };
        // one table for both is rotated for both
        let is_other = match (turned, how) {
            (Turned::Row, Some(RotatedAs::Embeddings)) => true,
            (Turned::Head, Some(RotatedAs::Embeddings)) => {
                config.tie_word_embeddings && !rotation.embeddings
            }
            (Turned::Head, Some(RotatedAs::Head)) => true,
            _ => false,
        };
        if how == Some(RotatedAs::Nothing) || rotation.turns(slot) == is_other {
            return Ok(None);
        }
        let block = match how {
            Some(RotatedAs::Block(block)) => block,
            _ => rotation.block_size,
        };
        if block == 0 || !width.is_multiple_of(block) {
            let text =
                format!("oracle: expected a width of whole blocks of {block}, found {width}");
            return Err(FormatError::new(ErrorCode::Usage, text));
        }
        let tiles = rotation.tiled_values != (how == Some(RotatedAs::ValueOrder));
        let make = || {
            let low = 1 << (block.ilog2() / 2);
            let signs = rotation.signs_of(width);
            let signs: Vec<f32> = signs.iter().map(|sign| f32::from(*sign)).collect();
            Ok(Self {
                high: hadamard(block / low)?,
                low: hadamard(low)?,
                signs: match signs.is_empty() || how == Some(RotatedAs::Unsigned) {
                    true => None,
                    false => Some(Tensor::from_vec(signs, (1, width), &Device::Cpu)?),
                },
                tiled: match (turned, &config.hybrid) {
                    (Turned::Linear(LayerSlot::OutProj), Some(hybrid)) if tiles => {
                        Some(tiled(&hybrid.delta)?)
                    }
                    _ => None,
                },
                signs_behind: match how {
                    Some(RotatedAs::SignsBehind { tables }) => tables || turned != Turned::Row,
                    _ => false,
                },
            })
        };
        make().map(Some).map_err(candle)
    }

    /// `H (s * x)` of every row.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = match &self.tiled {
            Some(places) => x.index_select(places, 1)?,
            None => x.clone(),
        };
        match self.signs_behind {
            true => self.signed(&self.transform(&x)?),
            false => self.transform(&self.signed(&x)?),
        }
    }

    /// `s * (H z)` of every row.
    pub(super) fn back(&self, z: &Tensor) -> Result<Tensor> {
        match self.signs_behind {
            true => self.transform(&self.signed(z)?),
            false => self.signed(&self.transform(z)?),
        }
    }

    fn signed(&self, x: &Tensor) -> Result<Tensor> {
        match &self.signs {
            Some(signs) => x.broadcast_mul(signs),
            None => Ok(x.clone()),
        }
    }

    fn transform(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let (a, b) = (self.high.dim(0)?, self.low.dim(0)?);
        let blocks = rows * width / (a * b);
        let turned = |x: Tensor| x.transpose(1, 2)?.contiguous();
        let x = x
            .contiguous()?
            .reshape((blocks * a, b))?
            .matmul(&self.low)?;
        let x = turned(x.reshape((blocks, a, b))?)?;
        let x = x.reshape((blocks * b, a))?.matmul(&self.high)?;
        turned(x.reshape((blocks, b, a))?)?.reshape((rows, width))
    }
}

/// The feature of each place when value heads stand as `[repeat][key head]`; they are computed as `[key head][repeat]`.
fn tiled(delta: &GatedDeltaNet) -> Result<Tensor> {
    let (keys, repeats, width) = (
        delta.key_heads,
        delta.value_heads / delta.key_heads,
        delta.value_dim,
    );
    let mut places = Vec::with_capacity(delta.value_width());
    for repeat in 0..repeats {
        for key in 0..keys {
            let first = (key * repeats + repeat) * width;
            places.extend((first..first + width).map(|place| place as u32));
        }
    }
    Tensor::from_vec(places, delta.value_width(), &Device::Cpu)
}

/// The matrix of the transform of `n` features.
fn hadamard(n: usize) -> Result<Tensor> {
    let size = 1.0 / (n as f64).sqrt();
    let element = |i: usize| match ((i / n) & (i % n)).count_ones() % 2 {
        0 => size as f32,
        _ => -size as f32,
    };
    Tensor::from_vec(
        (0..n * n).map(element).collect::<Vec<_>>(),
        (n, n),
        &Device::Cpu,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::oracle::tensors::values;

    #[test]
    fn two_factors_are_the_whole_matrix() {
        for n in [1usize, 2, 8, 128, 512] {
            let low = 1 << (n.ilog2() / 2);
            let signs: Vec<f32> = (0..2 * n)
                .map(|i| if i % 3 == 0 { -1.0 } else { 1.0 })
                .collect();
            let turn = Turn {
                high: hadamard(n / low).unwrap(),
                low: hadamard(low).unwrap(),
                signs: Some(Tensor::from_vec(signs.clone(), (1, 2 * n), &Device::Cpu).unwrap()),
                tiled: None,
                signs_behind: false,
            };
            let x: Vec<f32> = (0..2 * n).map(|i| (i * i % 17) as f32 - 8.0).collect();
            let tensor = Tensor::from_vec(x.clone(), (1, 2 * n), &Device::Cpu).unwrap();
            let got = values(&turn.forward(&tensor).unwrap()).unwrap();
            for (i, got) in got.iter().enumerate() {
                let start = i / n * n;
                let sum: f64 = (start..start + n)
                    .map(|j| {
                        let odd = ((i - start) & (j - start)).count_ones() % 2 == 1;
                        f64::from(x[j] * signs[j]) * if odd { -1.0 } else { 1.0 }
                    })
                    .sum();
                let want = sum / (n as f64).sqrt();
                assert!(
                    (f64::from(*got) - want).abs() < 1e-5 * (1.0 + want.abs()),
                    "{n}: {i}"
                );
            }
            let back = values(&turn.back(&turn.forward(&tensor).unwrap()).unwrap()).unwrap();
            assert!(
                back.iter()
                    .zip(&x)
                    .all(|(b, x)| (b - x).abs() < 1e-5 * (1.0 + x.abs()))
            );
        }
    }
}
