//! Ternary linears of the oracle, as dense matrices.
//!
//! Invariant: activations are rounded to their levels in float and dequantised before the product, as the model
//! was trained; what is not finite is an error that names the place.

use super::deviation::{Reading, Rounding, ScaleAs};
use super::rotation::{Turn, Turned};
use super::tensors::{candle, gain, matrix, values};
use bitnet_checkpoint::{Checkpoint, LayerSlot, Slot};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_ternary::{Scales, TernaryMatrix};
use candle_core::{D, DType, Device, Result, Tensor};
use std::ops::Range;

/// One ternary linear as a dense matrix.
pub(super) struct Linear {
    pub(super) role: LayerSlot,
    slot: Slot,
    weight: Tensor,       // (rows, cols): trit * scale
    bias: Option<Tensor>, // (rows,)
    scales: Scales,
    turn: Option<Turn>,
    rows: usize,
    pub(super) cols: usize,
}

impl Linear {
    pub(super) fn load(
        checkpoint: &Checkpoint,
        slot: Slot,
    ) -> std::result::Result<Self, FormatError> {
        let Slot::Layer(layer, role) = slot else {
            let text = "expected a linear of a layer";
            return Err(FormatError::new(ErrorCode::Usage, text).in_tensor(&slot.to_string()));
        };
        let bias = match role.bias().filter(|_| checkpoint.config.biases) {
            Some(bias) => Some(gain(checkpoint, Slot::Layer(layer, bias))?),
            None => None,
        };
        let ternary = checkpoint.ternary(slot)?;
        let weights = dense_weights(&ternary, 0..ternary.rows());
        Ok(Self {
            role,
            slot,
            bias,
            weight: matrix(&weights, ternary.rows(), ternary.cols())?,
            scales: ternary.scales().clone(),
            turn: Turn::of(
                &checkpoint.config,
                slot,
                Turned::Linear(role),
                ternary.cols(),
                None,
            )?,
            rows: ternary.rows(),
            cols: ternary.cols(),
        })
    }

    /// `x` is `(tokens, cols)`, the result `(tokens, rows)`.
    pub(super) fn multiply(
        &self,
        x: &Tensor,
        reading: &Reading<'_>,
    ) -> std::result::Result<Tensor, FormatError> {
        let input = values(x)?;
        if let Some(at) = input.iter().position(|x| !x.is_finite()) {
            let (token, column) = (at / self.cols.max(1), at % self.cols.max(1));
            return Err(FormatError::new(
                ErrorCode::NonFinite,
                format!("oracle: input of token {token}, column {column}: expected a finite number, found {}", input[at]),
            )
            .in_tensor(&self.slot.to_string()));
        }
        let turned = Turned::Linear(self.role);
        let other = match reading.rotated_as() {
            Some(how) => Turn::of(reading.config, self.slot, turned, self.cols, Some(how))?,
            None => None,
        };
        let turn = match reading.rotated_as() {
            Some(_) => &other,
            None => &self.turn,
        };
        let run = || {
            let weight = match reading.scale(self.role) {
                Some(scale) => self.weight_as(scale)?,
                None => self.weight.clone(),
            };
            let x = match turn {
                Some(turn) => turn.forward(x)?,
                None => x.clone(),
            };
            let y = fake_quantise(&x, reading.rounding())?.matmul(&weight.t()?)?;
            let y = match reading.rows(self.role) {
                Some(order) => {
                    let head_dim = reading.config.head_dim;
                    let sources = (0..self.rows).map(|row| order.source(row, head_dim) as u32);
                    let sources = sources.collect::<Vec<_>>();
                    let sources = Tensor::from_vec(sources, self.rows, &Device::Cpu)?;
                    y.index_select(&sources, 1)?
                }
                None => y,
            };
            match &self.bias {
                Some(bias) if !reading.leaves_out_biases() => y.broadcast_add(bias),
                _ => Ok(y),
            }
        };
        run().map_err(candle)
    }

    /// The matrix with every scale taken as something else.
    fn weight_as(&self, scale: ScaleAs) -> Result<Tensor> {
        let (rows, groups) = match &self.scales {
            Scales::PerTensor(_) => (1, 1),
            Scales::PerRow(_) => (self.rows, 1),
            Scales::PerGroup { group, .. } => (self.rows, self.cols / group),
        };
        let factor = |s: &f32| if *s == 0.0 { 1.0 } else { scale.of(*s) / s };
        let factors: Vec<f32> = self.scales.as_slice().iter().map(factor).collect();
        let factors = Tensor::from_vec(factors, (rows, groups, 1), &Device::Cpu)?;
        let blocks = (self.rows, groups, self.cols / groups);
        let weight = self.weight.reshape(blocks)?.broadcast_mul(&factors)?;
        weight.reshape((self.rows, self.cols))
    }
}

/// `trit * scale` of some rows, row-major.
pub(super) fn dense_weights(matrix: &TernaryMatrix, rows: Range<usize>) -> Vec<f32> {
    let (cols, scales) = (matrix.cols(), matrix.scales());
    let run = match scales {
        Scales::PerGroup { group, .. } => *group,
        Scales::PerTensor(_) | Scales::PerRow(_) => cols.max(1),
    };
    let mut weights = Vec::with_capacity(rows.len() * cols);
    for row in rows {
        for (i, trits) in matrix.row(row).chunks(run).enumerate() {
            let scale = scales.at(row, i * run, cols);
            weights.extend(trits.iter().map(|&t| f32::from(t) * scale));
        }
    }
    weights
}

/// Activations to their int8 levels and back, per token: `q / s` with `s = 127 (1 / max(max|x|, 1e-5))`,
/// rounded twice as PyTorch does.
fn fake_quantise(x: &Tensor, rounding: Rounding) -> Result<Tensor> {
    if rounding == Rounding::None {
        return Ok(x.clone());
    }
    let absmax = x.abs()?.max_keepdim(D::Minus1)?.maximum(1e-5f32)?;
    let s = match rounding {
        Rounding::OneDivision => Tensor::full(127f32, absmax.shape(), x.device())?.div(&absmax)?,
        _ => absmax.recip()?.affine(127.0, 0.0)?,
    };
    let scaled = x.broadcast_mul(&s)?;
    let levels = match rounding {
        Rounding::HalfEven | Rounding::OneDivision => round_half_even(&scaled)?,
        Rounding::HalfUp => {
            let (floor, rest) = floor_and_rest(&scaled)?;
            (floor + rest.ge(0.5f32)?.to_dtype(DType::F32)?)?
        }
        Rounding::HalfAway => scaled.round()?,
        Rounding::TowardsZero => (scaled.abs()?.floor()? * scaled.sign()?)?,
        Rounding::None => scaled,
    };
    levels.clamp(-128f32, 127f32)?.broadcast_div(&s)
}

/// The largest integer that is not above `x`, and how far `x` is above it: exact, in `[0, 1)`.
fn floor_and_rest(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let floor = x.floor()?;
    let rest = (x - &floor)?;
    Ok((floor, rest))
}

/// The nearest integer, halves to even (candle's own `round` takes halves away from zero).
fn round_half_even(x: &Tensor) -> Result<Tensor> {
    let (floor, rest) = floor_and_rest(x)?;
    let above = rest.gt(0.5f32)?.to_dtype(DType::F32)?;
    let tie = rest.eq(0.5f32)?.to_dtype(DType::F32)?;
    let odd = (&floor - (floor.affine(0.5, 0.0)?.floor()? * 2.0)?)?; // 0 or 1
    (floor + above)? + (tie * odd)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_halves_to_even() {
        let x = [
            0.5f32,
            1.5,
            2.5,
            -0.5,
            -1.5,
            -2.5,
            0.499_999_97,
            126.5,
            -127.5,
            3.0,
            -3.7,
            0.0,
        ];
        let t = Tensor::from_slice(&x, (1, x.len()), &Device::Cpu).unwrap();
        let want: Vec<f32> = x.iter().map(|x| x.round_ties_even()).collect();
        assert_eq!(values(&round_half_even(&t).unwrap()).unwrap(), want);
    }

    #[test]
    fn fake_quantisation_stays_on_the_levels() {
        let x = [1.0f32, -0.5, 0.25, 0.0, 2.0, 1e-7];
        let t = Tensor::from_slice(&x, (1, x.len()), &Device::Cpu).unwrap();
        let got = values(&fake_quantise(&t, Rounding::HalfEven).unwrap()).unwrap();
        let s = (1.0 / 2.0) * 127.0;
        let want: Vec<f32> = x.iter().map(|x| (x * s).round_ties_even() / s).collect();
        assert_eq!(got, want);
        let zero = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(
            values(&fake_quantise(&zero, Rounding::HalfEven).unwrap()).unwrap(),
            [0.0; 6]
        );
    }

    #[test]
    fn ways_of_rounding_differ_at_halves_only() {
        // the largest is a level of its own: s is 1
        let x = [127.0f32, 0.5, 1.5, -0.5, -1.5, 2.25, -2.75];
        let t = Tensor::from_slice(&x, (1, x.len()), &Device::Cpu).unwrap();
        for (rounding, want) in [
            (Rounding::HalfEven, [127.0, 0.0, 2.0, 0.0, -2.0, 2.0, -3.0]),
            (Rounding::HalfUp, [127.0, 1.0, 2.0, 0.0, -1.0, 2.0, -3.0]),
            (Rounding::HalfAway, [127.0, 1.0, 2.0, -1.0, -2.0, 2.0, -3.0]),
            (
                Rounding::TowardsZero,
                [127.0, 0.0, 1.0, 0.0, -1.0, 2.0, -2.0],
            ),
            (Rounding::None, x),
        ] {
            let got = values(&fake_quantise(&t, rounding).unwrap()).unwrap();
            assert_eq!(got, want, "{rounding:?}");
        }
    }
}
