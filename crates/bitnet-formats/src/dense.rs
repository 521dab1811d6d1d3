//! Dense tensors (embeddings, heads, norms) to `f32` and back.
//!
//! Invariant: widening is what the format's definition says, bit for bit; narrowing is
//! deterministic, refuses what is not finite, and reports the largest error it made. Nothing here
//! is for the ternary matrices, whose values are never rounded.

mod q6_k;
mod q8_0;

use crate::encoding::{Encoding, PlainType};
use crate::error::{ErrorCode, FormatError};
use bitnet_ternary::{
    BlockType, Q6_K_BLOCK, Q6_K_BYTES, Q8_0_BLOCK, Q8_0_BYTES, bf16_to_f32, f16_to_f32,
    f32_to_bf16, f32_to_f16,
};
use q6_k::encode_q6_k;
use q8_0::encode_q8_0;

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

    /// What storing some values as others changes.
    pub fn of(source: &[f32], stored: &[f32]) -> Self {
        let mut worst = Self::default();
        // mostly nothing has changed, and finding that out vectorizes
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

/// Elements and bytes of one block; a plain number is a block of its own.
fn block_of(encoding: Encoding) -> Option<(usize, usize)> {
    match encoding {
        Encoding::Plain(plain) => Some((1, plain.size())),
        Encoding::Block(block) => Some((block.block(), block.block_bytes())),
        Encoding::Ternary(_) | Encoding::Foreign(_) | Encoding::Unknown(_) => None,
    }
}

fn is_dense(encoding: Encoding) -> bool {
    match encoding {
        Encoding::Plain(plain) => plain.is_float_weight(),
        Encoding::Block(_) => true,
        Encoding::Ternary(_) | Encoding::Foreign(_) | Encoding::Unknown(_) => false,
    }
}

/// The types of dense tensors, for messages.
pub const DENSE_NAMES: &str =
    "f32, f16, bf16, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k or q6_k";

fn not_dense(encoding: Encoding) -> FormatError {
    let name = encoding.name();
    let message = format!("expected {DENSE_NAMES}, found {name}");
    FormatError::new(ErrorCode::WrongType, message)
}

/// Bytes of a dense tensor of `elements` in rows of `row_len`.
///
/// # Errors
/// `wrong-type` for an encoding that is not dense; `target-cannot-hold` for rows that are no whole
/// blocks ([`BlockType::block`]); `limit-exceeded` on overflow.
pub fn dense_len(encoding: Encoding, elements: usize, row_len: usize) -> Result<u64, FormatError> {
    if !is_dense(encoding) {
        return Err(not_dense(encoding));
    }
    blocks_len(encoding, elements, row_len)
}

/// [`dense_len`] for any encoding that is no packing: integers as well.
pub(crate) fn blocks_len(
    encoding: Encoding,
    elements: usize,
    row_len: usize,
) -> Result<u64, FormatError> {
    let (block, bytes) = block_of(encoding).ok_or_else(|| not_dense(encoding))?;
    if !row_len.is_multiple_of(block) || !elements.is_multiple_of(block) {
        return Err(not_whole_blocks(encoding, block, row_len));
    }
    let blocks = elements.checked_div(block).unwrap_or(0);
    blocks.checked_mul(bytes).map(|n| n as u64).ok_or_else(|| {
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
        Encoding::Block(block) => block.widen(bytes, out),
        _ => {
            for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *x = bf16_to_f32(u16::from_le_bytes(*b));
            }
        }
    }
    Ok(())
}

/// Where the first element of `numbers` is that is not finite, and the element of `source` there.
#[cold]
fn first_infinite(numbers: &[f32], source: &[f32]) -> (usize, f32) {
    let mut pairs = numbers.iter().zip(source).enumerate();
    let found = pairs.find(|(_, (x, _))| !x.is_finite());
    found.map_or((0, 0.0), |(at, (_, x))| (at, *x))
}

/// Narrows one row (or several whole rows) and appends it to `out`; on error `out` is as before.
///
/// # Errors
/// `wrong-type`, `target-cannot-hold` as [`dense_len`]; `non-finite` for NaN or infinity in
/// `source`; `target-cannot-hold` for a value that would become infinite, and for a type that is
/// read and not written.
pub fn encode_dense(
    source: &[f32],
    to: Encoding,
    out: &mut Vec<u8>,
) -> Result<Exactness, FormatError> {
    let len = dense_len(to, source.len(), source.len())? as usize;
    if let Encoding::Block(block) = to
        && !block.is_writable()
    {
        let message = format!("{} is read and copied, and not written", block.name());
        let error = FormatError::new(ErrorCode::TargetCannotHold, message);
        return Err(error.hint("choose f32, f16, bf16, q8_0 or q6_k for this tensor"));
    }
    let magnitude = source
        .iter()
        .fold(0, |m, x| m.max(x.to_bits() & 0x7fff_ffff));
    if magnitude >= f32::INFINITY.to_bits() {
        let (at, found) = first_infinite(source, source);
        return Err(FormatError::new(
            ErrorCode::NonFinite,
            format!("element {at}: expected a finite number, found {found}"),
        ));
    }
    let start = out.len();
    out.resize(start.saturating_add(len), 0);
    let bytes = out.get_mut(start..).unwrap_or_default();
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
    dense_to_f32(to, bytes, &mut stored)?;
    if stored.iter().any(|x| !x.is_finite()) {
        out.truncate(start);
        let ((at, x), name) = (first_infinite(&stored, source), to.name());
        return Err(FormatError::new(
            ErrorCode::TargetCannotHold,
            format!("element {at}: {x} would become infinite in {name}"),
        )
        .hint("choose bf16 or f32 for this tensor"));
    }
    Ok(Exactness::of(source, &stored))
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
