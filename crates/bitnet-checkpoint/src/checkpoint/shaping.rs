//! Dense tensors whose values are not the numbers stored: decay rates of a Gated DeltaNet, and rows that stand in
//! another order.
//!
//! Invariant: every container of a model gives the same canonical values (`formats/numerics.md`): rows in the order of
//! the Hugging Face checkpoint, and of `A_log` the rate `-exp(A_log)`, which is all that the network sees of it.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::dense::DenseMeaning;
use crate::row_order::{StoredOrder, TiledHeads};
use crate::slot::{LayerSlot, Slot};
use crate::storage::{AffineTable, values};
use bitnet_formats::{Bytes, Encoding, ErrorCode, FormatError, PlainType, dense_to_f32};
use bitnet_ternary::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// What the numbers of a dense tensor mean.
#[derive(Debug, Clone, Default)]
pub(crate) struct Form {
    /// What the numbers mean.
    pub(crate) meaning: DenseMeaning,
    /// How they become the canonical values, if they are not.
    pub(crate) shaping: Option<Shaping>,
    /// How the numbers are coded, if they are.
    pub(crate) table: Option<AffineTable>,
}

/// How the numbers of a tensor become its canonical values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Shaping {
    rate: Option<Rate>,
    heads: Option<TiledHeads>,
}

/// How a file stores rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rate {
    /// `A_log`: the rate is `-exp(A_log)`, taken in f64 and rounded once.
    Logarithm,
    /// The rate, by whichever exponential the program had that wrote it.
    Itself,
}

/// Distance in units of the last place up to which a rate is another program's exponential of the same number.
const OTHER_EXPONENTIAL: u32 = 2;
/// A logarithm whose exponential is 0 in f32.
const VANISHING: f32 = -200.0;

impl Shaping {
    /// Of a slot in a Hugging Face checkpoint.
    pub(crate) fn of_hf(slot: Slot) -> Option<Self> {
        matches!(slot, Slot::Layer(_, LayerSlot::ALog)).then_some(Self {
            rate: Some(Rate::Logarithm),
            heads: None,
        })
    }

    /// Of a slot in a GGUF file that keeps it in this order.
    pub(crate) fn of_gguf(slot: Slot, order: Option<StoredOrder>) -> Option<Self> {
        let shaping = Self {
            rate: matches!(slot, Slot::Layer(_, LayerSlot::ALog)).then_some(Rate::Itself),
            heads: match order {
                Some(StoredOrder::TiledRows(heads)) => Some(heads),
                _ => None,
            },
        };
        (shaping != Self::default()).then_some(shaping)
    }

    /// The canonical values of the bytes of a tensor.
    pub(crate) fn canonical(
        self,
        encoding: Encoding,
        bytes: &Bytes,
        shape: &[usize],
    ) -> Result<(Encoding, Bytes), FormatError> {
        let rows = shape.first().copied().unwrap_or(0);
        let ordered = match self.heads {
            None => None,
            Some(heads) => Some(permuted(bytes, rows, |row| heads.tiled(row))?),
        };
        let ordered = ordered.as_deref().unwrap_or(bytes);
        let Some(rate) = self.rate else {
            return Ok((encoding, Bytes::from(ordered.to_vec())));
        };
        let mut values = vec![0.0; shape.iter().product()];
        dense_to_f32(encoding, ordered, &mut values)?;
        let rates = rate.rates(&values)?;
        let bytes: Vec<u8> = rates.iter().flat_map(|rate| rate.to_le_bytes()).collect();
        Ok((Encoding::Plain(PlainType::F32), Bytes::from(bytes)))
    }

    /// Bits of a tensor without which its values would be the same: one mask per byte; `None` where every bit counts.
    pub(crate) fn unread(
        self,
        plain: PlainType,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, FormatError> {
        let Some(rate) = self.rate else {
            return Ok(None);
        };
        // in whichever order: a value is changed where it stands
        let of = |bytes: &[u8]| {
            let rates = values::small_values(plain, bytes).and_then(|values| rate.rates(&values));
            rates.map(|rates| rates.iter().map(|r| r.to_bits()).collect::<Vec<_>>())
        };
        let is = of(bytes)?;
        Ok(Some(same_bits(bytes, |flipped| {
            of(flipped).is_ok_and(|found| found == is)
        })))
    }
}

/// Of the bits of some bytes those whose change leaves the meaning: one mask per byte.
pub(crate) fn same_bits(bytes: &[u8], is_same: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    let mut masks = Vec::with_capacity(bytes.len());
    for at in 0..bytes.len() {
        let mut mask = 0;
        for bit in (0..8).map(|n| 1u8.rotate_left(n)) {
            if let Some(byte) = flipped.get_mut(at) {
                *byte ^= bit;
            }
            if is_same(&flipped) {
                mask |= bit;
            }
            if let Some(byte) = flipped.get_mut(at) {
                *byte ^= bit;
            }
        }
        masks.push(mask);
    }
    masks
}

impl Rate {
    fn rates(self, stored: &[f32]) -> Result<Vec<f32>, FormatError> {
        let rates = match self {
            Self::Logarithm => stored.iter().map(|log| rate_of(*log)).collect(),
            Self::Itself => settled(stored),
        };
        let bad = |rate: &f32| !rate.is_finite() || *rate > 0.0;
        match rates.iter().position(bad) {
            None => Ok(rates),
            Some(at) => {
                let found = stored.get(at).copied().unwrap_or(f32::NAN);
                let (code, expected) = match (self, found.is_finite()) {
                    (_, false) => (ErrorCode::NonFinite, "a finite number"),
                    (Self::Logarithm, _) => (ErrorCode::NonFinite, "a logarithm below 88.7"),
                    (Self::Itself, _) => (ErrorCode::Malformed, "a rate, -exp(A_log)"),
                };
                let message = format!("element {at}: expected {expected}, found {found:e}");
                Err(FormatError::new(code, message))
            }
        }
    }
}

/// `-exp(log)`, in f64 and rounded once.
fn rate_of(log: f32) -> f32 {
    -(libm::exp(f64::from(log)) as f32)
}

/// Rates of a file. If each of them is some program's exponential of a 16-bit number, this program's exponentials of
/// the same numbers: then a file has the rates of the checkpoint that it was made of, whichever program made it.
fn settled(stored: &[f32]) -> Vec<f32> {
    let narrow: [fn(f32) -> f32; 2] = [
        |x| bf16_to_f32(f32_to_bf16(x)),
        |x| f16_to_f32(f32_to_f16(x)),
    ];
    for narrow in narrow {
        let settle = |rate: &f32| {
            let log = narrow(libm::log(f64::from(-rate)) as f32);
            let ours = rate_of(log);
            let distance = ours.to_bits().abs_diff(rate.to_bits());
            (ours.is_finite() && distance <= OTHER_EXPONENTIAL).then_some(ours)
        };
        if let Some(all) = stored.iter().map(settle).collect() {
            return all;
        }
    }
    stored.to_vec()
}

/// Rows of bytes, row `r` of the result from row `source(r)`.
fn permuted(
    bytes: &[u8],
    rows: usize,
    source: impl Fn(usize) -> usize,
) -> Result<Vec<u8>, FormatError> {
    let len = bytes.len().checked_div(rows).unwrap_or(0);
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let start = source(row).checked_mul(len);
        let part = start.and_then(|start| bytes.get(start..start.checked_add(len)?));
        out.extend_from_slice(part.ok_or_else(|| {
            FormatError::new(
                ErrorCode::WrongShape,
                format!("expected a row {row}, found none"),
            )
        })?);
    }
    Ok(out)
}

/// The bytes of canonical values as a GGUF file stores them: rows in its order.
///
/// # Errors
/// Bytes that are no whole rows.
pub fn shape_for_gguf(
    bytes: &[u8],
    rows: usize,
    order: Option<StoredOrder>,
) -> Result<Vec<u8>, FormatError> {
    match order {
        Some(StoredOrder::TiledRows(heads)) => permuted(bytes, rows, |row| heads.grouped(row)),
        _ => Ok(bytes.to_vec()),
    }
}

/// `A_log` of rates: the numbers that a Hugging Face checkpoint stores for them, and the largest relative error of the
/// rates that they mean. It is 0 if some `A_log` was there before.
pub fn shape_for_hf(slot: Slot, values: &[f32]) -> (Vec<f32>, f64) {
    if Shaping::of_hf(slot).is_none() {
        return (values.to_vec(), 0.0);
    }
    let mut worst = 0.0f64;
    let logs = values.iter().map(|rate| {
        let log = logarithm(*rate);
        let (found, meant) = (f64::from(rate_of(log)), f64::from(*rate));
        if found != meant {
            worst = worst.max(((found - meant) / meant).abs());
        }
        log
    });
    let logs = logs.collect();
    (logs, worst)
}

/// The number whose rate this is, one of 16 bits if possible; the nearest if there is none.
fn logarithm(rate: f32) -> f32 {
    if rate == 0.0 {
        return VANISHING;
    }
    let nearest = libm::log(f64::from(-rate)) as f32;
    let mut near = vec![
        bf16_to_f32(f32_to_bf16(nearest)),
        f16_to_f32(f32_to_f16(nearest)),
        nearest,
    ];
    let (mut above, mut below) = (nearest, nearest);
    for _ in 0..2 {
        (above, below) = (above.next_up(), below.next_down());
        near.extend([above, below]);
    }
    let is_it = |log: &f32| rate_of(*log).to_bits() == rate.to_bits();
    near.into_iter().find(is_it).unwrap_or(nearest)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    const A_LOG: Slot = Slot::Layer(0, LayerSlot::ALog);

    #[test]
    fn a_logarithm_comes_back_from_its_rate() {
        // of 16 bits: the very number; of 32: one with the same rate
        for n in -2000..2000 {
            let log = f16_to_f32(f32_to_f16(n as f32 / 331.0));
            let (back, error) = shape_for_hf(A_LOG, &[rate_of(log)]);
            assert_eq!((rate_of(back[0]), error), (rate_of(log), 0.0), "{log}");
            if log.abs() > 1e-2 {
                assert_eq!(back, [log]);
            }
            let odd = n as f32 / 331.7;
            let (back, error) = shape_for_hf(A_LOG, &[rate_of(odd)]);
            assert_eq!((rate_of(back[0]), error), (rate_of(odd), 0.0), "{odd}");
        }
        let (back, error) = shape_for_hf(A_LOG, &[-0.0]);
        assert_eq!((rate_of(back[0]), error), (-0.0, 0.0));
        // a rate that no f32 logarithm has
        let rate = rate_of(5.3);
        let between = f32::from_bits(rate.to_bits() + 1);
        let (_, error) = shape_for_hf(A_LOG, &[between]);
        assert!(error > 0.0 && error < 1e-6, "{error}");
    }

    #[test]
    fn rates_of_other_exponentials_are_those_of_the_checkpoint() {
        let logs: Vec<f32> = (1..40)
            .map(|n| f16_to_f32(f32_to_f16(n as f32 / 9.3 - 2.0)))
            .collect();
        let ours: Vec<f32> = logs.iter().map(|log| rate_of(*log)).collect();
        let others: Vec<f32> = ours
            .iter()
            .enumerate()
            .map(|(n, rate)| f32::from_bits(rate.to_bits() + (n as u32) % 3))
            .collect();
        assert_eq!(settled(&others), ours);
        // one that is not: the numbers are as they are
        let mut odd = others.clone();
        odd[3] = f32::from_bits(odd[3].to_bits() + 9);
        assert_eq!(settled(&odd), odd);
    }

    #[test]
    fn bits_that_do_not_matter_are_named() {
        let shaping = Shaping::of_hf(A_LOG).unwrap();
        let log = 1e-9f32;
        let masks = shaping
            .unread(PlainType::F32, &log.to_le_bytes())
            .unwrap()
            .unwrap();
        for at in 0..4 {
            for bit in 0..8 {
                let mut bytes = log.to_le_bytes();
                bytes[at] ^= 1 << bit;
                let flipped = f32::from_le_bytes(bytes);
                let same = flipped.is_finite() && rate_of(flipped) == rate_of(log);
                assert_eq!(masks[at] >> bit & 1 == 1, same, "{at} {bit}");
            }
        }
        assert!(masks[0] == 0xff && masks[3] != 0xff);
    }

    #[test]
    fn what_is_no_rate_is_refused() {
        for (rate, value, code) in [
            (Rate::Itself, 0.5, ErrorCode::Malformed),
            (Rate::Itself, f32::NAN, ErrorCode::NonFinite),
            (Rate::Logarithm, 100.0, ErrorCode::NonFinite),
            (Rate::Logarithm, f32::INFINITY, ErrorCode::NonFinite),
        ] {
            let error = rate.rates(&[-0.5, value]).unwrap_err();
            assert_eq!(error.code, code, "{error}");
            assert!(error.message.starts_with("element 1"), "{error}");
        }
    }
}
