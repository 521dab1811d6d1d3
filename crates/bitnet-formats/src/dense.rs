//! Dense tensors (embeddings, heads, norms) to `f32` and back.
//!
//! Invariant: widening is what the format's definition says, bit for bit; narrowing is
//! deterministic, refuses what is not finite, and reports the largest error it made. Nothing here
//! is for the ternary matrices, whose values are never rounded.

use crate::encoding::{BlockType, Encoding, PlainType};
use crate::error::{ErrorCode, FormatError};
use bitnet_ternary::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// What narrowing changed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Exactness {
    /// Largest `|stored - source|`.
    pub max_abs: f64,
    /// Largest `|stored - source| / |source|` over non-zero sources.
    pub max_rel: f64,
}

impl Exactness {
    /// Whether every stored value is its source (`-0` counts as `0`).
    pub fn is_exact(&self) -> bool {
        self.max_abs == 0.0
    }

    /// The report of two parts together.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        Self {
            max_abs: self.max_abs.max(other.max_abs),
            max_rel: self.max_rel.max(other.max_rel),
        }
    }

    fn of(source: &[f32], stored: &[f32]) -> Self {
        let mut worst = Self::default();
        // mostly nothing has changed, and finding that out vectorises
        if !source
            .iter()
            .zip(stored)
            .fold(false, |any, (x, y)| any | (x != y))
        {
            return worst;
        }
        for (&x, &y) in source.iter().zip(stored) {
            if x != y {
                let error = (f64::from(y) - f64::from(x)).abs();
                let relative = if x == 0.0 {
                    0.0
                } else {
                    error / f64::from(x.abs())
                };
                worst = worst.merge(Self {
                    max_abs: error,
                    max_rel: relative,
                });
            }
        }
        worst
    }
}

/// Elements and bytes of one block of a dense encoding.
fn block_of(encoding: Encoding) -> Result<(usize, usize), FormatError> {
    match encoding {
        Encoding::Plain(p) if p.is_float_weight() => Ok((1, p.size())),
        Encoding::Block(BlockType::Q8_0) => Ok((Q8_0_BLOCK, Q8_0_BYTES)),
        Encoding::Block(BlockType::Q6_K) => Ok((Q6_K_BLOCK, Q6_K_BYTES)),
        _ => Err(FormatError::new(
            ErrorCode::WrongType,
            format!(
                "expected f32, f16, bf16, q8_0 or q6_k, found {}",
                encoding.name()
            ),
        )),
    }
}

/// Bytes of a dense tensor of `elements` in rows of `row_len`.
///
/// # Errors
/// `wrong-type` for an encoding that is not dense; `target-cannot-hold` for rows that are no whole
/// blocks (Q8_0: 32, Q6_K: 256); `limit-exceeded` on overflow.
pub fn dense_len(encoding: Encoding, elements: usize, row_len: usize) -> Result<u64, FormatError> {
    let (block, bytes) = block_of(encoding)?;
    if !row_len.is_multiple_of(block) || !elements.is_multiple_of(block) {
        return Err(not_whole_blocks(encoding, block, row_len));
    }
    (elements / block)
        .checked_mul(bytes)
        .map(|n| n as u64)
        .ok_or_else(|| {
            FormatError::new(
                ErrorCode::LimitExceeded,
                format!("{elements} elements are more than any file holds"),
            )
        })
}

fn not_whole_blocks(encoding: Encoding, block: usize, row_len: usize) -> FormatError {
    FormatError::new(
        ErrorCode::TargetCannotHold,
        format!(
            "{} needs rows of a multiple of {block}, found {row_len}",
            encoding.name()
        ),
    )
    .hint("choose f16, bf16 or f32 for this tensor")
}

/// Widens a dense tensor, or whole rows of one, into `out`. NaN and infinity come out as they are.
///
/// # Errors
/// `wrong-type`, `target-cannot-hold` as [`dense_len`]; `truncated` or `malformed` when `bytes` is
/// not what `out` needs.
pub fn dense_to_f32(encoding: Encoding, bytes: &[u8], out: &mut [f32]) -> Result<(), FormatError> {
    let needed = dense_len(encoding, out.len(), out.len())?;
    let found = bytes.len() as u64;
    if found != needed {
        let code = if found < needed {
            ErrorCode::Truncated
        } else {
            ErrorCode::Malformed
        };
        return Err(FormatError::new(
            code,
            format!(
                "{} elements of {} need {needed} bytes, found {found}",
                out.len(),
                encoding.name()
            ),
        ));
    }
    match encoding {
        Encoding::Plain(PlainType::F32) => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *x = f32::from_le_bytes(*b);
            }
        }
        Encoding::Plain(PlainType::F16) => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = f16_to_f32(u16::from_le_bytes(*b));
            }
        }
        Encoding::Plain(_) => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = bf16_to_f32(u16::from_le_bytes(*b));
            }
        }
        Encoding::Block(BlockType::Q8_0) => {
            let blocks = bytes.as_chunks::<Q8_0_BYTES>().0.iter();
            for (x, b) in out.as_chunks_mut::<Q8_0_BLOCK>().0.iter_mut().zip(blocks) {
                decode_q8_0(b, x);
            }
        }
        _ => {
            let blocks = bytes.as_chunks::<Q6_K_BYTES>().0.iter();
            for (x, b) in out.as_chunks_mut::<Q6_K_BLOCK>().0.iter_mut().zip(blocks) {
                decode_q6_k(b, x);
            }
        }
    }
    Ok(())
}

/// Narrows one row (or several whole rows) and appends it to `out`; on error `out` is as before.
///
/// # Errors
/// `wrong-type`, `target-cannot-hold` as [`dense_len`]; `non-finite` for NaN or infinity in
/// `source`; `target-cannot-hold` for a value that would become infinite.
pub fn encode_dense(
    source: &[f32],
    to: Encoding,
    out: &mut Vec<u8>,
) -> Result<Exactness, FormatError> {
    let len = dense_len(to, source.len(), source.len())? as usize;
    let magnitude = source
        .iter()
        .fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
    if magnitude >= f32::INFINITY.to_bits() {
        let at = source.iter().position(|x| !x.is_finite()).unwrap_or(0);
        return Err(FormatError::new(
            ErrorCode::NonFinite,
            format!(
                "element {at}: expected a finite number, found {}",
                source[at]
            ),
        ));
    }
    let start = out.len();
    out.resize(start + len, 0);
    let bytes = &mut out[start..];
    match to {
        Encoding::Plain(PlainType::F32) => {
            for (b, x) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(source) {
                *b = x.to_le_bytes();
            }
            return Ok(Exactness::default());
        }
        Encoding::Plain(PlainType::F16) => {
            for (b, x) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(source) {
                *b = f32_to_f16(*x).to_le_bytes();
            }
        }
        Encoding::Plain(_) => {
            for (b, x) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(source) {
                *b = f32_to_bf16(*x).to_le_bytes();
            }
        }
        Encoding::Block(BlockType::Q8_0) => {
            let blocks = bytes.as_chunks_mut::<Q8_0_BYTES>().0.iter_mut();
            for (b, x) in blocks.zip(source.as_chunks::<Q8_0_BLOCK>().0) {
                *b = encode_q8_0(x);
            }
        }
        _ => {
            let blocks = bytes.as_chunks_mut::<Q6_K_BYTES>().0.iter_mut();
            for (b, x) in blocks.zip(source.as_chunks::<Q6_K_BLOCK>().0) {
                *b = encode_q6_k(x);
            }
        }
    }
    let mut stored = vec![0.0; source.len()];
    dense_to_f32(to, &out[start..], &mut stored)?;
    if let Some(at) = stored.iter().position(|x| !x.is_finite()) {
        out.truncate(start);
        let (x, name) = (source[at], to.name());
        return Err(FormatError::new(
            ErrorCode::TargetCannotHold,
            format!("element {at}: {x} would become infinite in {name}"),
        )
        .hint("choose bf16 or f32 for this tensor"));
    }
    Ok(Exactness::of(source, &stored))
}

const Q8_0_BLOCK: usize = 32;
const Q8_0_BYTES: usize = 34;

/// `d` (f16), then 32 int8: `x = d * q`.
fn decode_q8_0(block: &[u8; Q8_0_BYTES], out: &mut [f32; Q8_0_BLOCK]) {
    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    for (x, q) in out.iter_mut().zip(&block[2..]) {
        *x = d * f32::from(*q as i8);
    }
}

/// llama.cpp's reference rounding: `d = amax / 127` and `q = round(x * (1 / d))`, half away from
/// zero, with `d` still in f32; then `d` is stored as f16.
fn encode_q8_0(x: &[f32; Q8_0_BLOCK]) -> [u8; Q8_0_BYTES] {
    let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let d = amax / 127.0;
    // 1 / d is infinite for d below 2^-128, which f16 stores as 0 anyway
    let inverse = if d > f32::MIN_POSITIVE { 1.0 / d } else { 0.0 };
    let mut block = [0; Q8_0_BYTES];
    block[..2].copy_from_slice(&f32_to_f16(d).to_le_bytes());
    for (q, v) in block[2..].iter_mut().zip(x) {
        *q = (v * inverse).round() as i8 as u8;
    }
    block
}

const Q6_K_BLOCK: usize = 256;
const Q6_K_BYTES: usize = 210;
/// Elements that share one int8 scale.
const Q6_K_GROUP: usize = 16;

// block: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 int8 scales, f16 d.
// Each half block of 128 elements is four runs of 32; element l of run r has its low four bits in
// ql[64 half + 32 (r % 2) + l], nibble r / 2, its high two bits in qh[32 half + l], pair r.
// x = d * scale[element / 16] * (q - 32)

fn decode_q6_k(block: &[u8; Q6_K_BYTES], out: &mut [f32; Q6_K_BLOCK]) {
    let d = f16_to_f32(u16::from_le_bytes([block[208], block[209]]));
    for (half, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        let (low, high) = (&block[64 * half..][..64], &block[128 + 32 * half..][..32]);
        let scales = &block[192 + 8 * half..][..8];
        let (runs, _) = out.as_chunks_mut::<32>();
        if let [a, b, c, e] = runs {
            decode_run::<0, 0>(d, &low[..32], high, &scales[..2], a);
            decode_run::<0, 2>(d, &low[32..], high, &scales[2..4], b);
            decode_run::<4, 4>(d, &low[..32], high, &scales[4..6], c);
            decode_run::<4, 6>(d, &low[32..], high, &scales[6..], e);
        }
    }
}

/// One run of 32 elements, two scales.
#[inline(always)]
fn decode_run<const LOW: u32, const HIGH: u32>(
    d: f32,
    low: &[u8],
    high: &[u8],
    scales: &[u8],
    out: &mut [f32; 32],
) {
    let groups = low
        .as_chunks::<Q6_K_GROUP>()
        .0
        .iter()
        .zip(high.as_chunks::<Q6_K_GROUP>().0);
    let out = out.as_chunks_mut::<Q6_K_GROUP>().0.iter_mut();
    for ((out, scale), (low, high)) in out.zip(scales).zip(groups) {
        // d * scale is exact in f32 (11 + 8 bits), so there is one rounding
        let step = d * f32::from(*scale as i8);
        for ((x, l), h) in out.iter_mut().zip(low).zip(high) {
            let q = l >> LOW & 15 | (h >> HIGH & 3) << 4;
            *x = step * f32::from(q as i8 - 32);
        }
    }
}

/// Levels tried for the largest element of a group, besides the full range of 32.
const Q6_K_TRIES: [f32; 9] = [-32.0, -31.5, -31.0, -30.5, -30.0, -29.0, 31.0, 30.5, 30.0];

/// Our own search (the format fixes only decoding): for each group of 16 the step that minimises
/// the squared error after a least-squares fit, over a few places for its largest element; then
/// the block scale that puts the largest step on -128 or 127, whichever fits all groups better;
/// then every element to its nearest level under the stored steps.
fn encode_q6_k(x: &[f32; Q6_K_BLOCK]) -> [u8; Q6_K_BYTES] {
    let mut steps = [0f32; Q6_K_BLOCK / Q6_K_GROUP];
    for (step, group) in steps.iter_mut().zip(x.as_chunks::<Q6_K_GROUP>().0) {
        *step = best_step(group);
    }
    let largest = steps
        .iter()
        .fold(0f32, |m, s| if s.abs() > m.abs() { *s } else { m });
    let mut best = Q6K::under(x, &steps, f32_to_f16(largest / -128.0));
    for level in [127.0, -127.0] {
        let other = Q6K::under(x, &steps, f32_to_f16(largest / level));
        if other.error < best.error {
            best = other;
        }
    }
    best.to_bytes()
}

/// A quantised block before it is laid out.
struct Q6K {
    error: f32, // squared
    d: u16,
    scales: [i8; 16],
    codes: [u8; Q6_K_BLOCK], // q, 0 ..= 63
}

impl Q6K {
    /// Every element at its nearest level under this `d` and the int8 scales nearest to `steps`.
    fn under(x: &[f32; Q6_K_BLOCK], steps: &[f32; 16], d: u16) -> Self {
        let mut out = Self {
            error: 0.0,
            d,
            scales: [0; 16],
            codes: [32; Q6_K_BLOCK],
        };
        let d = f16_to_f32(d);
        let inverse = reciprocal(d);
        let groups = x.as_chunks::<Q6_K_GROUP>().0.iter();
        let codes = out.codes.as_chunks_mut::<Q6_K_GROUP>().0.iter_mut();
        for (((group, codes), step), stored) in groups.zip(codes).zip(steps).zip(&mut out.scales) {
            let scale = nearest((step * inverse).clamp(-128.0, 127.0));
            *stored = scale as i8;
            let step = d * scale;
            let inverse = reciprocal(step);
            let mut errors = [0f32; 4];
            for (x, codes) in group
                .as_chunks::<4>()
                .0
                .iter()
                .zip(codes.as_chunks_mut::<4>().0)
            {
                for j in 0..4 {
                    let q = level(x[j] * inverse);
                    let off = x[j] - step * q;
                    errors[j] += off * off;
                    codes[j] = (q as i32 + 32) as u8;
                }
            }
            out.error += (errors[0] + errors[2]) + (errors[1] + errors[3]);
        }
        out
    }

    fn to_bytes(&self) -> [u8; Q6_K_BYTES] {
        let mut block = [0; Q6_K_BYTES];
        for (half, codes) in self.codes.as_chunks::<128>().0.iter().enumerate() {
            for l in 0..32 {
                let [a, b, c, d] = [codes[l], codes[32 + l], codes[64 + l], codes[96 + l]];
                block[64 * half + l] = a & 15 | c << 4;
                block[64 * half + 32 + l] = b & 15 | d << 4;
                block[128 + 32 * half + l] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
            }
        }
        for (byte, scale) in block[192..208].iter_mut().zip(self.scales) {
            *byte = scale as u8;
        }
        block[208..].copy_from_slice(&self.d.to_le_bytes());
        block
    }
}

/// The step whose levels -32 ..= 31 come nearest to the group; 0 for a group of zeros.
fn best_step(group: &[f32; Q6_K_GROUP]) -> f32 {
    let peak = group
        .iter()
        .fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let (mut best, mut most) = (0.0, -1.0);
    for at in Q6_K_TRIES {
        let inverse = reciprocal(peak / at);
        let (mut xq, mut qq) = ([0f32; 4], [0f32; 4]);
        for x in group.as_chunks::<4>().0 {
            for j in 0..4 {
                let q = level(x[j] * inverse);
                xq[j] += x[j] * q;
                qq[j] += q * q;
            }
        }
        let xq = (xq[0] + xq[2]) + (xq[1] + xq[3]);
        let qq = (qq[0] + qq[2]) + (qq[1] + qq[3]);
        // with the fitted step xq / qq the squared error is sum x^2 - xq^2 / qq
        if qq > 0.0 && xq / qq * xq > most {
            (best, most) = (xq / qq, xq / qq * xq);
        }
    }
    best
}

/// `1 / x`, or 0 where that is not finite.
fn reciprocal(x: f32) -> f32 {
    let r = 1.0 / x;
    if r.is_finite() { r } else { 0.0 }
}

/// Nearest of the levels -32 ..= 31.
#[inline(always)]
fn level(x: f32) -> f32 {
    nearest(x.clamp(-32.0, 31.0))
}

/// Nearest integer, for small numbers. Adding 1.5 * 2^23 rounds without a call into the C library,
/// which baseline x86-64 would need.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    x + ROUND - ROUND
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q8_0: Encoding = Encoding::Block(BlockType::Q8_0);
    const Q6_K: Encoding = Encoding::Block(BlockType::Q6_K);
    const F32: Encoding = Encoding::Plain(PlainType::F32);
    const F16: Encoding = Encoding::Plain(PlainType::F16);
    const BF16: Encoding = Encoding::Plain(PlainType::Bf16);
    const ALL: [Encoding; 5] = [F32, F16, BF16, Q8_0, Q6_K];

    /// Sums of uniform numbers: bell-shaped, as embeddings are.
    fn weights(n: usize) -> Vec<f32> {
        let mut state = 7u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n)
            .map(|_| (uniform() + uniform() + uniform() + uniform()) * 0.05)
            .collect()
    }

    fn round_trip(x: &[f32], to: Encoding) -> (Vec<u8>, Vec<f32>, Exactness) {
        let mut bytes = vec![0xaa]; // encoding appends
        let exactness = encode_dense(x, to, &mut bytes).unwrap();
        bytes.remove(0);
        assert_eq!(bytes.len() as u64, dense_len(to, x.len(), x.len()).unwrap());
        let mut y = vec![0.0; x.len()];
        dense_to_f32(to, &bytes, &mut y).unwrap();
        (bytes, y, exactness)
    }

    #[test]
    fn plain_numbers_are_kept_where_they_fit_and_the_error_is_told() {
        let x = [1.0, -0.5, 0.0, 3.0e-8, 65504.0, 1.0 + f32::EPSILON];
        assert_eq!(round_trip(&x, F32).1, x);
        assert!(round_trip(&x, F32).2.is_exact());
        let e = round_trip(&x, F16).2;
        assert!(
            !e.is_exact() && e.max_rel > 0.9,
            "3e-8 is half of the least f16: {e:?}"
        );
        assert_eq!(round_trip(&[1.0, -0.5], BF16).0, [0x80, 0x3f, 0, 0xbf]);
        assert_eq!(round_trip(&[1.0, -0.5], F16).0, [0, 0x3c, 0, 0xb8]);
    }

    #[test]
    fn what_is_not_finite_or_would_not_be_is_refused() {
        for to in ALL {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![0.0; 256];
                x[200] = bad;
                let mut out = vec![1, 2];
                let e = encode_dense(&x, to, &mut out).unwrap_err();
                assert_eq!(e.code, ErrorCode::NonFinite);
                assert!(e.message.starts_with("element 200"), "{e}");
                assert_eq!(out, [1, 2]);
            }
        }
        for (to, largest) in [
            (F16, 65520.0),
            (Q8_0, 65520.0 * 127.0),
            (Q6_K, 3e8),
            (BF16, f32::MAX),
        ] {
            let mut out = vec![];
            let e = encode_dense(&vec![largest; 256], to, &mut out).unwrap_err();
            assert_eq!(e.code, ErrorCode::TargetCannotHold, "{to:?}");
            assert!(out.is_empty());
        }
    }

    #[test]
    fn lengths_are_checked() {
        assert_eq!(dense_len(Q8_0, 64, 32), Ok(68));
        assert_eq!(dense_len(Q6_K, 512, 256), Ok(420));
        assert!(dense_len(Q8_0, 96, 48).is_err());
        assert!(dense_len(Q6_K, 256, 32).is_err());
        assert!(dense_len(F32, usize::MAX, 1).is_err());
        assert!(dense_len(Encoding::Plain(PlainType::I32), 4, 4).is_err());
        for to in ALL {
            let len = dense_len(to, 256, 256).unwrap() as usize;
            let mut out = [0.0; 256];
            let short = dense_to_f32(to, &vec![0; len - 1], &mut out).unwrap_err();
            let long = dense_to_f32(to, &vec![0; len + 1], &mut out).unwrap_err();
            assert_eq!(
                (short.code, long.code),
                (ErrorCode::Truncated, ErrorCode::Malformed)
            );
        }
    }

    #[test]
    fn q8_0_rounds_as_its_reference() {
        // amax 127: d = 1; halves go away from zero
        let mut x = [0f32; 32];
        x[..5].copy_from_slice(&[127.0, 0.5, -0.5, 1.5, -2.5]);
        let (bytes, y, _) = round_trip(&x, Q8_0);
        assert_eq!(bytes[..7], [0x00, 0x3c, 127, 1, 255, 2, 253]);
        assert_eq!(y[..5], [127.0, 1.0, -1.0, 2.0, -3.0]);
        let x = weights(32 * 64);
        let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        // half a step of 127, and the f16 step's own error on the largest level
        let bound = f64::from(amax) * (0.5 / 127.0 + 1.0 / 2048.0);
        assert!(round_trip(&x, Q8_0).2.max_abs <= bound);
        assert_eq!(round_trip(&[0.0; 32], Q8_0).0, [0; 34]);
        assert_eq!(round_trip(&[1e-44; 32], Q8_0).1, [0.0; 32]);
    }

    #[test]
    fn q6_k_decodes_by_its_definition() {
        let mut block: Vec<u8> = (0..210u32).map(|i| (i * 37 + 11) as u8).collect();
        block[208..].copy_from_slice(&0x2c00u16.to_le_bytes()); // 1 / 16
        let mut out = [0.0; 256];
        dense_to_f32(Q6_K, &block, &mut out).unwrap();
        for (e, x) in out.into_iter().enumerate() {
            let (half, run, l) = (e / 128, e % 128 / 32, e % 32);
            let low = block[64 * half + 32 * (run % 2) + l] >> (4 * (run / 2)) & 15;
            let high = block[128 + 32 * half + l] >> (2 * run) & 3;
            let q = i32::from(low) + 16 * i32::from(high) - 32;
            let scale = i32::from(block[192 + e / 16] as i8);
            assert_eq!(x, (q * scale) as f32 / 16.0, "element {e}");
        }
    }

    #[test]
    fn q6_k_is_exact_on_its_own_values_and_close_on_others() {
        // every group reaches level -32, so its step is known
        let exact: Vec<f32> = (0..256)
            .map(|e| if e % 16 == 0 { -32.0 } else { (e * 7 % 63) as f32 - 31.0 } * 0.125)
            .collect();
        assert!(round_trip(&exact, Q6_K).2.max_abs < 1e-6);
        let x = weights(256 * 64);
        let y = round_trip(&x, Q6_K).1;
        let (mut error, mut power) = (0f64, 0f64);
        for (x, y) in x.iter().zip(&y) {
            error += f64::from(x - y).powi(2);
            power += f64::from(*x).powi(2);
        }
        // 6 bits over about 2 sigma: the figure measured is 0.016
        assert!((error / power).sqrt() < 0.017, "{}", (error / power).sqrt());
        assert_eq!(round_trip(&[0.0; 256], Q6_K).1, [0.0; 256]);
        for tiny in [1e-44, 1e-30] {
            assert!(
                round_trip(&[tiny; 256], Q6_K)
                    .1
                    .iter()
                    .all(|y| y.abs() <= 1e-6)
            );
        }
    }
}
