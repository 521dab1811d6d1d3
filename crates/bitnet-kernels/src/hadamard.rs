//! The normalized Walsh-Hadamard transform of blocks of a row.
//!
//! Invariant: the order of operations is that of `formats/numerics.md` ("Rotated weights"): butterflies of strides
//! 1, 2, 4, ... in this order, then one product with the factor. Passes that take several strides at once change no bit.

use crate::lanes::{LANES, Lanes};

/// Registers that hold one run.
const REGISTERS: usize = 8;

/// Features that are transformed in registers: strides 1 to 64.
const RUN: usize = REGISTERS * LANES;

/// `fl32(1 / sqrt(block))`
pub(crate) fn factor(block: usize) -> f32 {
    (1.0 / (block as f64).sqrt()) as f32
}

/// `x = H (signs * x)` for each block of `x`. No signs count as ones.
#[inline(always)]
pub(crate) fn forward(x: &mut [f32], signs: &[f32], block: usize) {
    check(x, signs, block);
    multiply(x, signs);
    for x in x.chunks_exact_mut(block) {
        butterflies(x);
        let factor = factor(block);
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

/// `x = signs * (H x)` for each block of `x`, which undoes [`forward`]. No signs count as ones.
#[inline(always)]
pub(crate) fn inverse(x: &mut [f32], signs: &[f32], block: usize) {
    forward(x, &[], block);
    check(x, signs, block);
    multiply(x, signs);
}

#[inline(always)]
fn check(x: &[f32], signs: &[f32], block: usize) {
    assert!(block.is_power_of_two(), "blocks of {block}");
    assert!(x.len().is_multiple_of(block), "{} features", x.len());
    assert!(signs.is_empty() || signs.len() == x.len(), "signs");
}

#[inline(always)]
fn multiply(x: &mut [f32], signs: &[f32]) {
    for (x, sign) in x.iter_mut().zip(signs) {
        *x *= sign;
    }
}

/// All strides of one block.
#[inline(always)]
fn butterflies(x: &mut [f32]) {
    let block = x.len();
    let mut stride = 1;
    if block >= RUN {
        let (runs, _) = x.as_chunks_mut::<RUN>();
        runs.iter_mut().for_each(in_registers);
        stride = RUN;
    }
    while 4 * stride <= block && stride >= RUN {
        for x in x.chunks_exact_mut(4 * stride) {
            two_strides(x, stride);
        }
        stride *= 4;
    }
    while stride < block {
        for x in x.chunks_exact_mut(2 * stride) {
            let (low, high) = x.split_at_mut(stride);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        stride *= 2;
    }
}

/// Strides 1 to 64 of one run.
#[inline(always)]
fn in_registers(run: &mut [f32; RUN]) {
    let (lanes, _) = run.as_chunks_mut::<LANES>();
    let mut v = [[0.0; LANES]; REGISTERS];
    for (v, lanes) in v.iter_mut().zip(&*lanes) {
        *v = within::<8>(within::<4>(within::<2>(within::<1>(*lanes))));
    }
    for distance in [1, 2, 4] {
        for i in 0..REGISTERS {
            if i & distance == 0 {
                let (low, high) = (v[i], v[i + distance]);
                for j in 0..LANES {
                    v[i][j] = low[j] + high[j];
                    v[i + distance][j] = low[j] - high[j];
                }
            }
        }
    }
    lanes.copy_from_slice(&v);
}

/// One stride between the lanes of a register.
#[inline(always)]
fn within<const STRIDE: usize>(v: Lanes) -> Lanes {
    let mut swapped = [0.0; LANES];
    for j in 0..LANES {
        swapped[j] = v[j ^ STRIDE];
    }
    let mut out = [0.0; LANES];
    for j in 0..LANES {
        // a - b is a + (-b), bit for bit
        let own = if j & STRIDE == 0 { v[j] } else { -v[j] };
        out[j] = swapped[j] + own;
    }
    out
}

/// `stride`, then `2 * stride`, of `4 * stride` features.
#[inline(always)]
fn two_strides(x: &mut [f32], stride: usize) {
    let (low, high) = x.split_at_mut(2 * stride);
    let ((a, b), (c, d)) = (low.split_at_mut(stride), high.split_at_mut(stride));
    for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
        let (p, q, r, s) = (*a + *b, *a - *b, *c + *d, *c - *d);
        (*a, *b, *c, *d) = (p + r, q + s, p - r, q - s);
    }
}
