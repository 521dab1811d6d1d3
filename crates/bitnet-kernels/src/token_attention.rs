//! Attention of one token to blocks that come from memory.
//!
//! Invariant: the steps and results of [`attention`](crate::attention), block by block; only what lies
//! between two steps of a block is another block's. Keys and values are read once, and products take a
//! third of the time that reading takes. So while the values of a block are weighed the keys of the next
//! one are multiplied, a few of these and a few of those: memory always has something to do.

use crate::attention::{
    AttentionOps, AttentionScratch, PANEL_KEYS, PART_EXTRA, RowSteps, TOGETHER, room,
};
use crate::lines::{self, LINE};
use std::mem;

/// What a token's queries of one head find in a block.
#[derive(Debug, Clone, Copy)]
pub struct HeadBlock<'a> {
    /// `(queries, dim)`.
    pub q: &'a [f32],
    /// `(count, dim)`, little-endian, at any alignment.
    pub keys: &'a [u8],
    /// Likewise.
    pub values: &'a [u8],
}

/// Bytes of keys that go together, and of values: a core that waits for one has asked for the other.
const MORSEL: usize = 2 << 10;

/// [`attend`](crate::attention::attend) of one token's queries to some blocks, which all see all of: `parts` is
/// `(blocks, queries, dim + 2)`.
///
/// # Safety
/// The CPU has what `ops` were instantiated with.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn attend_blocks(
    ops: &AttentionOps,
    rows: &RowSteps,
    blocks: &[HeadBlock<'_>],
    dim: usize,
    factor: f32,
    scratch: &mut AttentionScratch,
    parts: &mut [f32],
) {
    let (row, part) = ((rows.row_bytes)(dim), dim + PART_EXTRA);
    let Some(queries) = blocks.first().map(|block| block.q.len() / dim) else {
        return;
    };
    assert_eq!(parts.len(), blocks.len() * queries * part);
    for HeadBlock { q, keys, values } in blocks {
        assert_eq!(q.len(), queries * dim);
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(row) && !keys.is_empty());
    }
    let longest = blocks.iter().map(|block| block.keys.len() / row).max();
    let stride = longest.unwrap_or(0).next_multiple_of(PANEL_KEYS);
    let morsel = (MORSEL / row).next_multiple_of(TOGETHER).max(TOGETHER) * row;
    let scores = lines::as_words_mut(room(&mut scratch.scores, 2 * queries * stride));
    let (mut scores, mut next_scores) =
        scores[..2 * queries * stride].split_at_mut(queries * stride);
    // the first one's keys have only its own values to go with: these wait in the second level
    let HeadBlock { q, keys, values } = blocks[0];
    let morsels = keys.chunks(morsel).zip(values.chunks(morsel));
    for (first, (keys, values)) in (0..).step_by(morsel / row).zip(morsels) {
        for line in values.chunks(LINE) {
            lines::prefetch_l2(line.as_ptr());
        }
        // SAFETY: the caller's promise.
        unsafe { (rows.few)(keys, dim, q, stride, &mut scores[first..]) };
    }
    for (at, parts) in parts.chunks_exact_mut(queries * part).enumerate() {
        let values = blocks[at].values;
        for (part, scores) in parts
            .chunks_exact_mut(part)
            .zip(scores.chunks_exact_mut(stride))
        {
            part[..dim].fill(0.0);
            let scores = &mut scores[..values.len() / row];
            // SAFETY: the caller's promise.
            (part[dim], part[dim + 1]) = unsafe { (ops.softmax)(factor, scores) };
        }
        let (q, keys) = blocks
            .get(at + 1)
            .map_or((&[][..], &[][..]), |next| (next.q, next.keys));
        let (mut keys, mut values) = (keys.chunks(morsel), values.chunks(morsel));
        for first in (0..stride).step_by(morsel / row) {
            if let Some(keys) = keys.next() {
                // SAFETY: the caller's promise.
                unsafe { (rows.few)(keys, dim, q, stride, &mut next_scores[first..]) };
            }
            if let Some(values) = values.next() {
                // SAFETY: the caller's promise.
                unsafe { (rows.weigh)(values, dim, &scores[first..], stride, parts) };
            }
        }
        mem::swap(&mut scores, &mut next_scores);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::tests::noise;
    use crate::{Backend, DenseType, RowType, every};
    use bitnet_ternary::f32_to_f16;

    #[test]
    fn blocks_one_behind_the_other_are_the_same_as_each_alone() {
        let mut state = 3;
        for backend in Backend::available() {
            for stored in [DenseType::F32.into(), DenseType::F16.into(), RowType::Q8] {
                for (dim, queries) in [(20, 3), (128, 4), (64, 6)].into_iter().step_by(every(3)) {
                    // under Miri nearly no keys
                    let counts = [256usize, 1, 37, 256, 130].map(|count| count.div_ceil(every(16)));
                    let mut floats =
                        |n: usize| -> Vec<f32> { (0..n).map(|_| noise(&mut state)).collect() };
                    let rows = counts.map(|count| {
                        let mut bytes = || -> Vec<u8> {
                            let words = floats(count * dim);
                            match stored {
                                RowType::Q8 => {
                                    let size = stored.row_bytes(dim).unwrap();
                                    let mut bytes = vec![0; count * size];
                                    let rows = bytes.chunks_exact_mut(size);
                                    for (words, row) in words.chunks_exact(dim).zip(rows) {
                                        backend.narrow_q8(words, row);
                                    }
                                    bytes
                                }
                                RowType::Dense(DenseType::F32) => {
                                    words.iter().flat_map(|v| v.to_le_bytes()).collect()
                                }
                                RowType::Dense(_) => {
                                    let mut bytes = vec![0; 2 * words.len()];
                                    backend.narrow(&words, &mut bytes);
                                    for (v, b) in words.iter().zip(bytes.chunks_exact(2)) {
                                        assert_eq!(b, f32_to_f16(*v).to_le_bytes());
                                    }
                                    bytes
                                }
                            }
                        };
                        let (keys, values) = (bytes(), bytes());
                        (floats(queries * dim), keys, values)
                    });
                    let blocks: Vec<HeadBlock<'_>> = rows
                        .iter()
                        .map(|(q, keys, values)| HeadBlock { q, keys, values })
                        .collect();
                    let part = queries * (dim + PART_EXTRA);
                    let mut parts = vec![f32::NAN; counts.len() * part];
                    let scratch = &mut AttentionScratch::default();
                    backend.attend_blocks(stored, &blocks, dim, 0.3, scratch, &mut parts);
                    for ((block, count), part) in
                        blocks.iter().zip(counts).zip(parts.chunks_exact(part))
                    {
                        let mut want = vec![f32::NAN; part.len()];
                        let (rows, seen) = ((block.keys, block.values), vec![count; queries]);
                        backend.attend(stored, rows, dim, 0.3, block.q, &seen, scratch, &mut want);
                        let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                        assert_eq!(
                            bits(part),
                            bits(&want),
                            "{backend:?}, {stored:?}, dim {dim}"
                        );
                    }
                }
            }
        }
    }
}
