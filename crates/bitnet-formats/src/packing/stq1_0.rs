//! `stq1_0`: Tencent's blocks of 256 with one zero in four (`formats/packing/stq1_0.md`).
//!
//! Invariant: 256 trits of one row in 42 bytes: 64 groups of four trits that stand 16 columns apart, a nibble and
//! a sign bit each, then the f16 scale. A group has exactly one 0, and a matrix with another group is refused; the
//! only other block is that of zeros, 42 zero bytes. Every byte decodes, so there is no bad code.

use super::f16_blocks::F16Block;

/// GGUF type 43; see the module.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Stq1_0;

/// Groups in a block.
const GROUPS: usize = 64;
/// Columns from one trit of a group to the next.
const STRIDE: usize = 16;
/// Where the sign bits begin.
const SIGNS: usize = 32;

/// The column, in its block, of the first trit of a group.
const fn first_of(group: usize) -> usize {
    group / STRIDE * (4 * STRIDE) + group % STRIDE
}

/// The trits of each nibble, with the sign bit as the fifth.
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
fn code_of(trits: [i8; 4]) -> u8 {
    let zero = trits.iter().position(|&t| t == 0).unwrap_or(0);
    let mut kept = [0u8; 3];
    let others = (0..4).filter(|lane| *lane != zero);
    for (negative, lane) in kept.iter_mut().zip(others) {
        *negative = u8::from(trits[lane] < 0);
    }
    let [first, second, third] = kept;
    first << 4 | (zero as u8) << 2 | (third ^ first) << 1 | (second ^ first)
}

fn group_of(trits: &[i8], group: usize) -> [i8; 4] {
    let first = first_of(group);
    [0, 1, 2, 3].map(|lane| trits[first + STRIDE * lane])
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
        let zeros = |group| group_of(trits, group).iter().filter(|t| **t == 0).count();
        let (group, found) = (0..GROUPS)
            .map(|group| (group, zeros(group)))
            .find(|(_, found)| *found != 1)?;
        let [a, b, c, d] = [0, 1, 2, 3].map(|lane| from + first_of(group) + STRIDE * lane);
        Some(format!(
            "columns {a}, {b}, {c} and {d}: stq1_0 holds exactly one 0 among these four, found {found}"
        ))
    }

    #[inline(always)]
    fn encode(trits: &[i8], block: &mut [u8]) {
        block[..Self::SCALE_AT].fill(0);
        if super::f16_blocks::is_zero(trits) {
            return;
        }
        for group in 0..GROUPS {
            let code = code_of(group_of(trits, group));
            block[group / 2] |= (code & 15) << (group % 2 * 4);
            block[SIGNS + group / 8] |= (code >> 4) << (group % 8);
        }
    }

    #[inline(always)]
    fn decode(block: &[u8], trits: &mut [i8]) -> bool {
        for group in 0..GROUPS {
            let slot = block[group / 2] >> (group % 2 * 4) & 15;
            let sign = block[SIGNS + group / 8] >> (group % 8) & 1;
            let four = TRITS[usize::from(sign << 4 | slot)];
            let first = first_of(group);
            for (lane, trit) in four.into_iter().enumerate() {
                trits[first + STRIDE * lane] = trit;
            }
        }
        true
    }

    fn is_silent(block: &[u8]) -> bool {
        Self::has_zero_scale(block)
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
        let mut seen: Vec<usize> = (0..GROUPS)
            .flat_map(|group| (0..4).map(move |lane| first_of(group) + STRIDE * lane))
            .collect();
        assert_eq!(seen[..8], [0, 16, 32, 48, 1, 17, 33, 49]);
        assert_eq!(seen[64..68], [64, 80, 96, 112]);
        seen.sort_unstable();
        assert_eq!(seen, (0..256).collect::<Vec<_>>());
    }
}
