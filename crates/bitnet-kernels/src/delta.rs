//! Bodies of Gated DeltaNet: the causal convolution, and the delta rule on the state of one head.
//!
//! Invariant: channels do not see each other, nor do columns of a state, and every sum runs over taps or rows of the
//! state in their order. So neither the width of an instruction set nor the number of tokens or columns that are worked
//! on together is in a result (`formats/numerics.md`).

use crate::lanes::{LANES, exp1};

/// Columns of a state that all tokens of a batch go through together: with 128 rows they stay in the L1 cache.
const COLUMNS: usize = 64;

/// The rows that the tokens of one sequence bring to one value head.
#[derive(Debug, Clone, Copy)]
pub struct DeltaHead<'a> {
    /// Queries, keys and values of all heads, `(tokens, width)`.
    pub rows: &'a [f32],
    /// Width of a row.
    pub width: usize,
    /// Where the query, the key and the value of this head begin in a row.
    pub places: [usize; 3],
    /// Decay and correction of all heads, `(tokens, gate_width)`.
    pub gates: &'a [f32],
    /// Width of a row of gates.
    pub gate_width: usize,
    /// Where decay and correction of this head stand in a row of gates.
    pub gate_places: [usize; 2],
    /// Width of a query and of a key: rows of the state.
    pub key_dim: usize,
    /// Width of a value: columns of the state.
    pub value_dim: usize,
}

/// `out[c] = silu(sum over taps of kernel[tap][c] * window[tap][c])`, taps in order; `window` and `kernel` are
/// `(taps, channels)`.
#[inline(always)]
pub(crate) fn conv_silu(window: &[f32], kernel: &[f32], out: &mut [f32]) {
    let channels = out.len();
    assert_eq!(window.len(), kernel.len());
    assert!(channels > 0 && window.len().is_multiple_of(channels));
    let (blocks, tail) = out.as_chunks_mut::<LANES>();
    let first_of_tail = blocks.len() * LANES;
    for (block, out) in blocks.iter_mut().enumerate() {
        let at = block * LANES;
        let mut sums = [0.0f32; LANES];
        let taps = window
            .chunks_exact(channels)
            .zip(kernel.chunks_exact(channels));
        for (x, w) in taps {
            let (x, w) = (&x[at..at + LANES], &w[at..at + LANES]);
            for j in 0..LANES {
                sums[j] = w[j].mul_add(x[j], sums[j]);
            }
        }
        for j in 0..LANES {
            out[j] = sums[j] / (1.0 + exp1(-sums[j]));
        }
    }
    for (c, out) in (first_of_tail..).zip(tail) {
        let taps = window
            .chunks_exact(channels)
            .zip(kernel.chunks_exact(channels));
        let sum = taps.fold(0.0f32, |sum, (x, w)| w[c].mul_add(x[c], sum));
        *out = sum / (1.0 + exp1(-sum));
    }
}

/// `x[i] = x[i] * sigmoid(gate[i])`, as one quotient.
#[inline(always)]
pub(crate) fn sigmoid_mul(x: &mut [f32], gate: &[f32]) {
    assert_eq!(x.len(), gate.len());
    for (x, g) in x.iter_mut().zip(gate) {
        *x /= 1.0 + exp1(-*g);
    }
}

/// The delta rule, token by token: `state` is `(key_dim, value_dim)`, `out` is `(tokens, value_dim)`.
///
/// `S *= decay; d = (v - S^T k) * beta; S += k d^T; out = S^T q`.
#[inline(always)]
pub(crate) fn delta_rule(head: &DeltaHead<'_>, state: &mut [f32], out: &mut [f32]) {
    let (keys, values) = (head.key_dim, head.value_dim);
    assert_eq!(state.len(), keys * values);
    assert!(values > 0 && out.len().is_multiple_of(values));
    let tokens = out.len() / values;
    assert!(head.width > 0 && head.rows.len() == tokens * head.width);
    assert!(head.gate_width > 0 && head.gates.len() == tokens * head.gate_width);
    let mut first = 0;
    while first + COLUMNS <= values {
        columns::<COLUMNS>(head, first, state, out);
        first += COLUMNS;
    }
    while first + LANES <= values {
        columns::<LANES>(head, first, state, out);
        first += LANES;
    }
    while first < values {
        columns::<1>(head, first, state, out);
        first += 1;
    }
}

/// [`delta_rule`] on `N` columns from `first` on.
#[inline(always)]
fn columns<const N: usize>(head: &DeltaHead<'_>, first: usize, state: &mut [f32], out: &mut [f32]) {
    let values = head.value_dim;
    // together in memory: columns of rows far apart crowd each other out of the cache
    let mut panel: Vec<[f32; N]> = Vec::with_capacity(head.key_dim);
    for row in state.chunks_exact(values) {
        let mut columns = [0.0; N];
        columns.copy_from_slice(&row[first..first + N]);
        panel.push(columns);
    }
    let tokens = head.rows.chunks_exact(head.width);
    let tokens = tokens.zip(head.gates.chunks_exact(head.gate_width));
    for ((row, gates), out) in tokens.zip(out.chunks_exact_mut(values)) {
        let [query, key, value] = head.places;
        let q = &row[query..query + head.key_dim];
        let k = &row[key..key + head.key_dim];
        let v = &row[value + first..value + first + N];
        let [decay, beta] = head.gate_places.map(|place| gates[place]);
        let mut seen = [0.0f32; N];
        for (s, k) in panel.iter().zip(k) {
            for j in 0..N {
                seen[j] = (s[j] * decay).mul_add(*k, seen[j]);
            }
        }
        let mut d = [0.0f32; N];
        for j in 0..N {
            d[j] = (v[j] - seen[j]) * beta;
        }
        let mut sums = [0.0f32; N];
        for ((s, k), q) in panel.iter_mut().zip(k).zip(q) {
            for j in 0..N {
                let new = k.mul_add(d[j], s[j] * decay);
                s[j] = new;
                sums[j] = new.mul_add(*q, sums[j]);
            }
        }
        out[first..first + N].copy_from_slice(&sums);
    }
    for (row, columns) in state.chunks_exact_mut(values).zip(panel.iter()) {
        row[first..first + N].copy_from_slice(columns);
    }
}
