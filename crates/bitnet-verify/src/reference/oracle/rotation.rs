//! Rotated weights in the oracle.
//!
//! Invariant: the transform is a product with the matrix of its definition, `(-1)^popcount(i AND j) / sqrt(n)`, as two
//! smaller ones of which it is the Kronecker product; the runtime adds and subtracts instead.

use super::tensors::candle;
use bitnet_checkpoint::{Config, GatedDeltaNet, LayerSlot, Slot};
use bitnet_formats::FormatError;
use candle_core::{Device, Result, Tensor};

/// The rotation of rows of one width.
pub(super) struct Turn {
    high: Tensor,          // (a, a)
    low: Tensor,           // (b, b), a b features are transformed together
    signs: Option<Tensor>, // (1, width)
    tiled: Option<Tensor>, // (width,): the feature that stands in each place when value heads are tiled
}

impl Turn {
    /// The rotation of a matrix that is stored rotated; `width` is that of its rows.
    pub(super) fn of(
        config: &Config,
        slot: Slot,
        width: usize,
    ) -> std::result::Result<Option<Self>, FormatError> {
        let Some(rotation) = config.rotation.as_deref().filter(|r| r.turns(slot)) else {
            return Ok(None);
        };
        let make = || {
            let low = 1 << (rotation.block_size.ilog2() / 2);
            let signs = rotation.signs_of(width);
            let signs: Vec<f32> = signs.iter().map(|sign| f32::from(*sign)).collect();
            Ok(Self {
                high: hadamard(rotation.block_size / low)?,
                low: hadamard(low)?,
                signs: match signs.is_empty() {
                    true => None,
                    false => Some(Tensor::from_vec(signs, (1, width), &Device::Cpu)?),
                },
                tiled: match (slot, &config.hybrid) {
                    (Slot::Layer(_, LayerSlot::OutProj), Some(hybrid)) if rotation.tiled_values => {
                        Some(tiled(&hybrid.delta)?)
                    }
                    _ => None,
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
        self.transform(&self.signed(&x)?)
    }

    /// `s * (H z)` of every row.
    pub(super) fn back(&self, z: &Tensor) -> Result<Tensor> {
        self.signed(&self.transform(z)?)
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
