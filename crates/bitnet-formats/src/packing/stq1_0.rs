//! `stq1_0`: Tencent's blocks of 256 with one zero in four (`formats/packing/stq1_0.md`).
//!
//! Invariant: 256 trits of one row in 42 bytes: 64 groups of four trits that stand 16 columns apart, a nibble and
//! a sign bit each, then the f16 scale. A group has exactly one 0, and a matrix with another group is refused; the
//! only other block is that of zeros, 42 zero bytes. Every byte decodes, so there is no bad code.

use super::f16_blocks::F16Block;
use super::{runs, runs_mut};

/// GGUF type 43; see the module.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Stq1_0;

/// Groups in a block.
const GROUPS: usize = 64;
/// Columns from one trit of a group to the next.
const STRIDE: usize = 16;
/// Columns in which as many groups as [`STRIDE`] stand.
const SPAN: usize = 4 * STRIDE;
/// Where the sign bits begin.
const SIGNS: usize = 32;

/// The trits of each nibble, with the sign bit as the fifth.
// evaluated by the compiler, which refuses an index that is out of bounds
#[allow(clippy::indexing_slicing)]
const TRITS: [[i8; 4]; 32] = {
    let mut table = [[0; 4]; 32];
    let mut code = 0;
    while code < 32 {
        let (sign, zero, tail) = (code >> 4, code >> 2 & 3, code & 3);
        // the trits around the zero: the first, and whether the others differ from it
        let differ = [0, tail & 1, tail >> 1];
        let (mut lane, mut kept) = (0, 0);
        while lane < 4 {
            if lane != zero {
                table[code][lane] = if sign ^ differ[kept] == 1 { -1 } else { 1 };
                kept += 1;
            }
            lane += 1;
        }
        code += 1;
    }
    table
};

/// The nibble and the sign bit of four trits, one of them 0; of others those of trits like them.
#[inline(always)]
fn code_of([a, b, c, d]: [i8; 4]) -> u8 {
    let negative = |trit: i8| u8::from(trit < 0);
    let zero = match (a, b, c, d) {
        (0, _, _, _) => 0,
        (_, 0, _, _) => 1,
        (_, _, 0, _) => 2,
        _ => 3,
    };
    // the three around the zero
    let first = negative(if a == 0 { b } else { a });
    let second = negative(if a == 0 || b == 0 { c } else { b });
    let third = negative(if d == 0 { c } else { d });
    first << 4 | zero << 2 | (third ^ first) << 1 | (second ^ first)
}

/// The groups that stand in some columns, in order.
#[inline(always)]
fn groups(span: &[i8; SPAN]) -> impl Iterator<Item = [i8; 4]> {
    let [a, b, c, d] = runs::<STRIDE>(span).unwrap_or([&[0; STRIDE]; 4]);
    let lanes = a.iter().zip(b).zip(c.iter().zip(d));
    lanes.map(|((a, b), (c, d))| [*a, *b, *c, *d])
}

/// All groups of a block, each with its first column.
fn all_groups(trits: &[i8]) -> impl Iterator<Item = (usize, [i8; 4])> {
    let spans = (0..).step_by(SPAN).zip(trits.as_chunks().0);
    spans.flat_map(|(from, span)| (from..).zip(groups(span)))
}

impl F16Block for Stq1_0 {
    const NAME: &'static str = "stq1_0";
    const GGUF_TYPE: u32 = 43;
    const GGUF_ALIASES: &'static [u32] = &[42, 40];
    const GGUF_FILE_TYPE: u32 = 42;
    const TRITS: usize = 256;
    const BYTES: usize = 42;
    const SCALE_AT: usize = 40;
    const SIGNED_SCALES: bool = true;
    const ZERO_BY_SCALE: Option<&'static str> =
        Some("choose a target that holds any trits, such as gguf-tq1_0 or gguf-q2_0");

    fn misfit(trits: &[i8], from: usize) -> Option<String> {
        let zeros = |group: [i8; 4]| group.iter().filter(|t| **t == 0).count();
        let (first, found) = all_groups(trits)
            .map(|(first, group)| (first, zeros(group)))
            .find(|(_, found)| *found != 1)?;
        let first = from.checked_add(first)?;
        let [a, b, c, d] =
            [0, 1, 2, 3].map(|lane: usize| first.saturating_add(lane.saturating_mul(STRIDE)));
        Some(format!(
            "columns {a}, {b}, {c} and {d}: stq1_0 holds exactly one 0 among these four, found {found}"
        ))
    }

    #[inline(always)]
    fn encode(trits: &[i8], codes: &mut [u8]) {
        let mut of_groups = [0; GROUPS];
        if !super::f16_blocks::is_zero(trits) {
            let spans = trits.as_chunks().0.iter();
            for (codes, span) in of_groups.as_chunks_mut::<STRIDE>().0.iter_mut().zip(spans) {
                for (code, group) in codes.iter_mut().zip(groups(span)) {
                    *code = code_of(group);
                }
            }
        }
        let Some((nibbles, signs)) = codes.split_first_chunk_mut::<SIGNS>() else {
            return;
        };
        for (byte, [low, high]) in nibbles.iter_mut().zip(of_groups.as_chunks().0) {
            *byte = low & 15 | high << 4;
        }
        for (byte, eight) in signs.iter_mut().zip(of_groups.as_chunks::<8>().0) {
            *byte = eight.iter().rev().fold(0, |all, code| all << 1 | code >> 4);
        }
    }

    #[inline(always)]
    fn decode(codes: &[u8], trits: &mut [i8]) -> bool {
        let Some((nibbles, signs)) = codes.split_first_chunk::<SIGNS>() else {
            return true;
        };
        let mut of_groups = [0; GROUPS];
        for (pair, byte) in of_groups.as_chunks_mut().0.iter_mut().zip(nibbles) {
            *pair = [byte & 15, byte >> 4];
        }
        for (eight, byte) in of_groups.as_chunks_mut::<8>().0.iter_mut().zip(signs) {
            for (bit, code) in (0..).zip(eight) {
                *code |= (byte.wrapping_shr(bit) & 1) << 4;
            }
        }
        let spans = trits.as_chunks_mut::<SPAN>().0.iter_mut();
        for (span, codes) in spans.zip(of_groups.as_chunks::<STRIDE>().0) {
            let Some([a, b, c, d]) = runs_mut::<STRIDE>(span) else {
                continue;
            };
            let lanes = a.iter_mut().zip(b).zip(c.iter_mut().zip(d));
            for (code, ((a, b), (c, d))) in codes.iter().zip(lanes) {
                let four = TRITS.get(usize::from(code & 31));
                [*a, *b, *c, *d] = four.copied().unwrap_or_default();
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_and_sign_bits_are_those_of_the_published_table() {
        // two bits a trit, the first lowest, -1 as 0: by nibble, for sign 0 and 1
        let published: [u8; 32] = [
            0xa9, 0x89, 0x29, 0x09, 0xa6, 0x86, 0x26, 0x06, 0x9a, 0x92, 0x1a, 0x12, 0x6a, 0x62,
            0x4a, 0x42, 0x01, 0x21, 0x81, 0xa1, 0x04, 0x24, 0x84, 0xa4, 0x10, 0x18, 0x90, 0x98,
            0x40, 0x48, 0x60, 0x68,
        ];
        for (code, byte) in published.into_iter().enumerate() {
            let trits = [0, 2, 4, 6].map(|shift| (byte >> shift & 3) as i8 - 1);
            assert_eq!(TRITS[code], trits, "code {code}");
            assert_eq!(usize::from(code_of(trits)), code);
        }
    }

    #[test]
    fn trits_of_a_group_stand_16_columns_apart() {
        let columns: Vec<i8> = (0..=255u8).map(|column| column as i8).collect();
        let mut seen: Vec<usize> = all_groups(&columns)
            .inspect(|(first, group)| assert_eq!(*first, usize::from(group[0] as u8)))
            .flat_map(|(_, group)| group.map(|column| usize::from(column as u8)))
            .collect();
        assert_eq!(seen[..8], [0, 16, 32, 48, 1, 17, 33, 49]);
        assert_eq!(seen[64..68], [64, 80, 96, 112]);
        seen.sort_unstable();
        assert_eq!(seen, (0..256).collect::<Vec<_>>());
    }
}
