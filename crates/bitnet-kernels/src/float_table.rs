//! One instruction set's float operations, as a table.
//!
//! Invariant: every entry is a body of the floors below, compiled once per instruction set, so tables differ in
//! speed and never in bits. Rust's baseline x86-64 has neither FMA nor wide registers; [`instantiate!`] compiles the
//! bodies, which are `#[inline(always)]`, with the attributes it is given.

use crate::attention::AttentionOps;
use crate::candidates::{Factors, RowBound, ScreenQuery, UpperBlock};
use crate::delta::DeltaHead;
use crate::fixed_point::FixedRow;
use crate::lines::Line;
use crate::output::Output;
use crate::scaling::Finish;
use bitnet_ternary::BlockType;

/// [`quantize`](crate::float_ops::quantize), instantiated.
pub(crate) type Quantize = unsafe fn(&[f32], &mut [i8]) -> Option<(f32, i32)>;

/// [`screen_bounds`](crate::candidates::screen_bounds), instantiated.
pub(crate) type Bound = unsafe fn(&[&[f32]; 3], &Factors, &[i32], &mut [f32], &mut [f32]);

/// One instruction set's instances of the bodies in `float_ops`, `hadamard`, `attention`, `delta`, `dense`,
/// `candidates` and `scaling`.
///
/// Calling an entry is sound when the CPU has the features it was instantiated with; a
/// [`Backend`](crate::Backend) is the proof of that.
pub(crate) struct FloatOps {
    pub dot: unsafe fn(&[f32], &[f32]) -> f32,
    pub sum: unsafe fn(&[f32]) -> f32,
    pub sum_squares: unsafe fn(&[f32]) -> f32,
    pub axpy: unsafe fn(f32, &[f32], &mut [f32]),
    pub scale: unsafe fn(f32, &mut [f32]),
    pub add: unsafe fn(&[f32], &mut [f32]),
    pub max: unsafe fn(&[f32]) -> f32,
    pub exp: unsafe fn(&mut [f32]),
    pub silu_mul: unsafe fn(&mut [f32], &[f32]),
    pub relu2_mul: unsafe fn(&mut [f32], &[f32]),
    pub gelu_tanh_mul: unsafe fn(&mut [f32], &[f32]),
    pub rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub rotate_halves: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub hadamard: unsafe fn(&mut [f32], &[f32], usize),
    pub hadamard_inverse: unsafe fn(&mut [f32], &[f32], usize),
    pub narrow: unsafe fn(&[f32], &mut [u8]),
    pub narrow_q8: unsafe fn(&[f32], &mut [u8]),
    pub sigmoid_mul: unsafe fn(&mut [f32], &[f32]),
    pub conv_silu: unsafe fn(&[f32], &[f32], &mut [f32]),
    pub delta_rule: unsafe fn(&DeltaHead<'_>, &mut [f32], &mut [f32]),
    pub widen_f16: unsafe fn(&[u16], &mut [f32]),
    pub widen_bf16: unsafe fn(&[u16], &mut [f32]),
    pub quantize: Quantize,
    pub fix: unsafe fn(&[f32], FixedRow<'_>) -> bool,
    pub finish_dots: Finish<i32>,
    pub finish_sums: Finish<f32>,
    pub dense_f32: unsafe fn(&[u8], usize, &[f32], &mut Output<'_>),
    pub dense_f16: unsafe fn(&[u8], usize, &[f32], &mut Output<'_>),
    pub dense_bf16: unsafe fn(&[u8], usize, &[f32], &mut Output<'_>),
    pub dense_blocks: unsafe fn(BlockType, &[u8], usize, &[f32], &mut Output<'_>),
    pub attention: AttentionOps,
    pub screen_row: unsafe fn(&[f32], &mut [UpperBlock], &mut [Line]) -> RowBound,
    pub screen_dots: unsafe fn(&[UpperBlock], &[ScreenQuery], &mut [i32]),
    pub screen_bounds: Bound,
    pub screen_lower: unsafe fn(&[Line], &ScreenQuery) -> i32,
}

/// Compiles every body under the given attributes and tabulates the instances.
macro_rules! instantiate {
    ($(#[$isa:meta])*) => {{
        use $crate::{
            attention, candidates, delta, dense, fixed_point, float_ops, float_table, hadamard as transform, lanes,
            lines::Line, output::Output, scaling, scaling::Place, stored_rows,
        };
        $(#[$isa])* fn dot(a: &[f32], b: &[f32]) -> f32 { float_ops::dot(a, b) }
        $(#[$isa])* fn sum(a: &[f32]) -> f32 { float_ops::sum(a) }
        $(#[$isa])* fn sum_squares(a: &[f32]) -> f32 { float_ops::sum_squares(a) }
        $(#[$isa])* fn axpy(a: f32, x: &[f32], y: &mut [f32]) { float_ops::axpy(a, x, y) }
        $(#[$isa])* fn scale(a: f32, x: &mut [f32]) { float_ops::scale(a, x) }
        $(#[$isa])* fn add(x: &[f32], y: &mut [f32]) { float_ops::add(x, y) }
        $(#[$isa])* fn max(x: &[f32]) -> f32 { float_ops::max(x) }
        $(#[$isa])* fn exp(x: &mut [f32]) { float_ops::exp(x) }
        $(#[$isa])* fn silu_mul(gate: &mut [f32], up: &[f32]) { float_ops::silu_mul(gate, up) }
        $(#[$isa])* fn relu2_mul(gate: &mut [f32], up: &[f32]) { float_ops::relu2_mul(gate, up) }
        $(#[$isa])* fn gelu_tanh_mul(gate: &mut [f32], up: &[f32]) {
            float_ops::gelu_tanh_mul(gate, up)
        }
        $(#[$isa])* fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
            float_ops::rms_norm(x, weight, eps, out)
        }
        $(#[$isa])* fn rotate_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) {
            float_ops::rotate_halves(x, cos, sin)
        }
        $(#[$isa])* fn hadamard(x: &mut [f32], signs: &[f32], block: usize) {
            transform::forward(x, signs, block)
        }
        $(#[$isa])* fn hadamard_inverse(x: &mut [f32], signs: &[f32], block: usize) {
            transform::inverse(x, signs, block)
        }
        $(#[$isa])* fn narrow(x: &[f32], out: &mut [u8]) { float_ops::narrow(x, out) }
        $(#[$isa])* fn narrow_q8(x: &[f32], out: &mut [u8]) { stored_rows::narrow_q8(x, out) }
        $(#[$isa])* fn sigmoid_mul(x: &mut [f32], gate: &[f32]) { delta::sigmoid_mul(x, gate) }
        $(#[$isa])* fn conv_silu(window: &[f32], kernel: &[f32], out: &mut [f32]) {
            delta::conv_silu(window, kernel, out)
        }
        $(#[$isa])* fn delta_rule(head: &delta::DeltaHead<'_>, state: &mut [f32], out: &mut [f32]) {
            delta::delta_rule(head, state, out)
        }
        $(#[$isa])* fn widen_f16(bits: &[u16], out: &mut [f32]) { float_ops::widen_f16(bits, out) }
        $(#[$isa])* fn widen_bf16(bits: &[u16], out: &mut [f32]) { float_ops::widen_bf16(bits, out) }
        $(#[$isa])* fn quantize(x: &[f32], out: &mut [i8]) -> Option<(f32, i32)> {
            float_ops::quantize(x, out)
        }
        $(#[$isa])* fn fix(x: &[f32], row: fixed_point::FixedRow<'_>) -> bool {
            fixed_point::fix(x, row)
        }
        $(#[$isa])* fn finish_dots(
            sums: &[i32], place: &Place, scales: scaling::TileScales<'_>, token: usize, s: &[f32],
            out: &mut Output<'_>,
        ) {
            scaling::finish(sums, place, scales, token, s, out)
        }
        $(#[$isa])* fn finish_sums(
            sums: &[f32], place: &Place, scales: scaling::TileScales<'_>, token: usize, s: &[f32],
            out: &mut Output<'_>,
        ) {
            scaling::finish(sums, place, scales, token, s, out)
        }
        $(#[$isa])* fn dense_f32(rows: &[u8], cols: usize, x: &[f32], out: &mut Output<'_>) {
            dense::rows::<lanes::F32, 8, 2>(rows, cols, x, out)
        }
        $(#[$isa])* fn dense_f16(rows: &[u8], cols: usize, x: &[f32], out: &mut Output<'_>) {
            dense::rows::<lanes::F16, 8, 2>(rows, cols, x, out)
        }
        $(#[$isa])* fn dense_bf16(rows: &[u8], cols: usize, x: &[f32], out: &mut Output<'_>) {
            dense::rows::<lanes::Bf16, 8, 2>(rows, cols, x, out)
        }
        $(#[$isa])* fn dense_blocks(
            block: bitnet_ternary::BlockType, rows: &[u8], cols: usize, x: &[f32],
            out: &mut Output<'_>,
        ) {
            dense::widened_rows::<4, 2>(block, rows, cols, x, out)
        }
        $(#[$isa])* fn screen_row(
            w: &[f32], upper: &mut [candidates::UpperBlock], lower: &mut [Line],
        ) -> candidates::RowBound {
            candidates::screen_row(w, upper, lower)
        }
        $(#[$isa])* fn screen_dots(
            rows: &[candidates::UpperBlock], queries: &[candidates::ScreenQuery],
            sums: &mut [i32],
        ) {
            candidates::screen_dots(rows, queries, sums)
        }
        $(#[$isa])* fn screen_bounds(
            rows: &[&[f32]; 3], factors: &candidates::Factors, sums: &[i32], estimates: &mut [f32],
            upper: &mut [f32],
        ) {
            candidates::screen_bounds(rows, factors, sums, estimates, upper)
        }
        $(#[$isa])* fn screen_lower(row: &[Line], query: &candidates::ScreenQuery) -> i32 {
            candidates::screen_lower(row, query)
        }
        float_table::FloatOps {
            dot, sum, sum_squares, axpy, scale, add, max, exp, silu_mul, relu2_mul, gelu_tanh_mul,
            rms_norm, rotate_halves, hadamard, hadamard_inverse, narrow, narrow_q8, sigmoid_mul, conv_silu, delta_rule, widen_f16,
            widen_bf16, quantize, fix, finish_dots, finish_sums, dense_f32, dense_f16, dense_bf16, dense_blocks,
            attention: attention::instantiate!($(#[$isa])*), screen_row, screen_dots,
            screen_bounds, screen_lower,
        }
    }};
}
pub(crate) use instantiate;
