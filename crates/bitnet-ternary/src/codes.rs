//! Trits as 2-bit codes, four to a byte: what certificates hash, and what several formats store.
//!
//! Invariant: code = trit + 1, the first trit of a byte in its lowest bits. The loops are plain bytes and
//! 16-bit words, first pairs and then pairs of pairs: what SSE2 and NEON have instructions for.

/// Bytes of a block.
const BYTES: usize = 16;
/// Trits of a block.
const TRITS: usize = 4 * BYTES;

/// Writes the codes of `trits`; those of a last byte that is not full are followed by zero bits. Ends with
/// the shorter of the two.
#[inline(always)]
pub fn encode_quads(trits: &[i8], bytes: &mut [u8]) {
    let (blocks, last) = bytes.as_chunks_mut::<BYTES>();
    let (runs, rest) = trits.split_at(TRITS.saturating_mul(blocks.len()).min(trits.len()));
    let whole = runs.as_chunks::<TRITS>();
    for (block, run) in blocks.iter_mut().zip(whole.0) {
        let codes = run.map(|trit| (trit as u8).wrapping_add(1));
        let mut nibbles = [0; 2 * BYTES];
        for (nibble, pair) in nibbles.iter_mut().zip(codes.as_chunks().0) {
            let pair = u16::from_le_bytes(*pair);
            *nibble = ((pair | pair >> 6) & 15) as u8;
        }
        for (byte, pair) in block.iter_mut().zip(nibbles.as_chunks().0) {
            let pair = u16::from_le_bytes(*pair);
            *byte = (pair | pair >> 4) as u8;
        }
    }
    let short = blocks.iter_mut().skip(whole.0.len()).flatten();
    let few = whole.1.chunks(4).chain(rest.chunks(4));
    for (byte, few) in short.chain(last).zip(few) {
        let codes = few.iter().rev();
        *byte = codes.fold(0, |codes, trit| codes << 2 | (*trit as u8).wrapping_add(1));
    }
}

/// Reads what [`encode_quads`] writes for whole bytes, code 3 as the trit 2; whether there was none. Ends
/// with the shorter of the two.
#[inline(always)]
pub fn decode_quads(bytes: &[u8], trits: &mut [i8]) -> bool {
    let mut bad = 0;
    let whole = bytes.len().min(trits.len() / 4);
    let (blocks, last) = bytes.get(..whole).unwrap_or_default().as_chunks::<BYTES>();
    let (runs, rest) = trits.split_at_mut(TRITS.saturating_mul(blocks.len()));
    for (block, run) in blocks.iter().zip(runs.as_chunks_mut::<TRITS>().0) {
        let mut nibbles = [0; 2 * BYTES];
        for (pair, &byte) in nibbles.as_chunks_mut().0.iter_mut().zip(block) {
            bad |= byte & byte >> 1;
            let byte = u16::from(byte);
            *pair = ((byte | byte << 4) & 0x0f0f).to_le_bytes();
        }
        for (pair, &nibble) in run.as_chunks_mut().0.iter_mut().zip(&nibbles) {
            let nibble = u16::from(nibble);
            let codes: [u8; 2] = ((nibble | nibble << 6) & 0x0303).to_le_bytes();
            *pair = codes.map(|code| (code as i8).wrapping_sub(1));
        }
    }
    for (&byte, quad) in last.iter().zip(rest.as_chunks_mut::<4>().0) {
        bad |= byte & byte >> 1;
        *quad = [0, 2, 4, 6].map(|shift| ((byte >> shift & 3) as i8).wrapping_sub(1));
    }
    bad & 0x55 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every;

    #[test]
    fn codes_are_as_the_module_says_at_every_length() {
        let trits: Vec<i8> = (0..333).map(|i: usize| (i * i / 3 % 3) as i8 - 1).collect();
        for n in (0..trits.len()).step_by(every(61)) {
            let mut bytes = vec![0xff; n.div_ceil(4)];
            encode_quads(&trits[..n], &mut bytes);
            for (i, byte) in bytes.iter().enumerate() {
                let at = |k: usize| trits[..n].get(4 * i + k).map_or(0, |t| (t + 1) as u8);
                assert_eq!(*byte, at(0) | at(1) << 2 | at(2) << 4 | at(3) << 6);
            }
            let mut back = vec![9; n / 4 * 4];
            assert!(decode_quads(&bytes, &mut back));
            assert_eq!(back, trits[..n / 4 * 4]);
        }
    }

    #[test]
    fn code_3_is_seen_wherever_it_stands() {
        for at in 0..4 * 37 {
            let mut bytes = [0x55; 37];
            bytes[at / 4] |= 3 << (2 * (at % 4));
            let mut trits = [0; 4 * 37];
            assert!(!decode_quads(&bytes, &mut trits));
            assert_eq!(trits.iter().position(|&t| t == 2), Some(at));
        }
    }
}
