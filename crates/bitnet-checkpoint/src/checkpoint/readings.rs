//! What matrices look like under each of several layouts that their bytes may have.
//!
//! Invariant: a layout is ruled out by invalid codes or scales, or by a description under another that
//! is shorter than anything found under it, doubtful structure included; never by mere likelihood. Tilings
//! are ruled out by codes only: those that are looked at are not all there are.

use bitnet_formats::{
    Bytes, DECISIVE_BITS, PackedTensor, Packing, code_length, doubtful_code_length,
};
use rayon::prelude::*;

/// Trits that are looked at in each matrix: a few hundred rows.
const TRITS: usize = 1 << 20;

/// A matrix whose layout is asked for.
#[derive(Debug, Clone)]
pub struct LayoutSample {
    /// Its bytes.
    pub bytes: Bytes,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// The gain of the norm that feeds it, if that is known: columns of weights follow it.
    pub gains: Option<Vec<f32>>,
}

impl LayoutSample {
    /// Rows that are looked at: whole packed rows of every layout.
    fn rows_read(&self) -> usize {
        let rows = TRITS.checked_div(self.cols).unwrap_or(TRITS);
        let wanted = rows.checked_next_multiple_of(4).unwrap_or(rows);
        wanted.max(4).min(self.rows)
    }
}

/// What the data look like under one layout.
#[derive(Debug, Clone, PartialEq)]
pub struct LayoutReading {
    /// The packing.
    pub packing: &'static str,
    /// Bits per weight of the shortest description found; `None` when its codes or scales are none.
    pub bits_per_weight: Option<f64>,
    /// The structure that made it short, where most of the matrices found it.
    pub model: &'static str,
    /// Whether the data speak against it.
    pub ruled_out: bool,
    /// Whether this is one of many ways to tile.
    pub is_tiling: bool,
}

/// The trits of the first rows under a layout; `None` if it finds invalid codes or scales.
fn read(packing: &dyn Packing, sample: &LayoutSample) -> Option<Vec<i8>> {
    let tensor = PackedTensor {
        bytes: &sample.bytes,
        rows: sample.rows,
        cols: sample.cols,
        outside: None,
    };
    let mut trits = vec![0; sample.rows_read().saturating_mul(sample.cols)];
    packing.unpack_rows(&tensor, 0, &mut trits).ok()?;
    if packing.holds_scales() {
        packing.scales(&tensor).ok()?;
    }
    Some(trits)
}

/// What `samples` look like under each of `rivals`, the shortest description first; of equal ones, the
/// order is kept.
pub fn layout_readings(
    rivals: &[&'static dyn Packing],
    samples: &[LayoutSample],
) -> Vec<LayoutReading> {
    // (rivals, samples)
    let found: Vec<Vec<_>> = rivals
        .par_iter()
        .map(|packing| {
            let describe = |sample: &LayoutSample| {
                let trits = read(*packing, sample)?;
                Some(code_length(&trits, sample.cols, sample.gains.as_deref()))
            };
            samples.par_iter().map(describe).collect()
        })
        .collect();
    let total: usize = samples
        .iter()
        .map(|s| s.rows_read().saturating_mul(s.cols))
        .sum();
    let bits: Vec<Option<f64>> = found
        .iter()
        .map(|found| found.iter().map(|f| f.as_ref().map(|f| f.bits)).sum())
        .collect();
    let shortest = bits.iter().flatten().fold(f64::INFINITY, |a, &b| a.min(b));
    // what is close even by its own description needs no second look
    let doubtful = |packing: &dyn Packing| -> f64 {
        let length = |sample: &LayoutSample| {
            let trits = read(packing, sample).unwrap_or_default();
            doubtful_code_length(&trits, sample.cols, sample.gains.as_deref())
        };
        samples.par_iter().map(length).sum()
    };
    let shapes: Vec<_> = samples.iter().map(|s| (s.rows, s.cols)).collect();
    let mut readings: Vec<_> = rivals
        .iter()
        .zip(&found)
        .zip(bits)
        .map(|((packing, found), bits)| {
            let is_tiling = shapes
                .first()
                .is_some_and(|&(rows, cols)| packing.parameters(rows, cols).is_some());
            let is_longer = |bits: f64| bits > shortest + DECISIVE_BITS;
            LayoutReading {
                packing: packing.name(),
                bits_per_weight: bits.map(|bits| bits / total.max(1) as f64),
                model: most_common(found.iter().flatten().map(|f| f.model)),
                ruled_out: match bits {
                    None => true,
                    Some(bits) => !is_tiling && is_longer(bits) && is_longer(doubtful(*packing)),
                },
                is_tiling,
            }
        })
        .collect();
    readings.sort_by(|a, b| {
        let bits = |r: &LayoutReading| r.bits_per_weight.unwrap_or(f64::INFINITY);
        bits(a).total_cmp(&bits(b))
    });
    readings
}

fn most_common(models: impl Iterator<Item = &'static str> + Clone) -> &'static str {
    let count = |model: &str| models.clone().filter(|m| *m == model).count();
    let most = models.clone().max_by_key(|model| count(model));
    most.unwrap_or("trits")
}
