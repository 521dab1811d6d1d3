//! Packings: unpacking any bytes, packing again, and from one packing to another.
//!
//! An input is a packing, a shape, the scales beside it, and bytes; these repeat until the matrix is full, so that most
//! inputs get past the check of lengths.

use crate::record::Record;
use bitnet_checkpoint::{code_row_len, scale_normal_form, trit_codes};
use bitnet_formats::{
    BlockType, Encoding, FormatError, PACKINGS, PackedTensor, Packing, PlainType, ScaleRounding,
    dense_len, dense_to_f32, encode_dense, packing_by_name,
};
use bitnet_ternary::{Scales, TernaryMatrix};

/// Most bytes of a packed matrix.
const MOST_BYTES: u64 = 1 << 13;
/// Packings that are in no table: tilings by name.
const NAMED: [&str; 4] = [
    "tl1-64x128=32-64-32",
    "tl1-32-128-32",
    "tl2-96x192=32-96-32",
    "tl2-32-96-32",
];

/// Takes numbers off the front of an input.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub(crate) fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn float(&mut self) -> f32 {
        f32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }
}

fn packing(number: u8) -> &'static dyn Packing {
    let all = PACKINGS.len() + NAMED.len();
    let number = usize::from(number) % all;
    match PACKINGS.get(number) {
        Some(packing) => *packing,
        None => packing_by_name(NAMED[number - PACKINGS.len()]).unwrap_or(PACKINGS[0]),
    }
}

/// A number of rows or columns: any small one, or a multiple of what blocks have.
fn size(input: &mut Bytes<'_>) -> usize {
    let word = usize::from(input.word());
    let count = word & 0x1ff;
    match word >> 13 {
        0 => count,
        1 => (count & 0x1f) * 4,
        2 => (count & 0x1f) * 32,
        3 => (count & 0xf) * 64,
        4 => (count & 0xf) * 96,
        5 => (count & 0x7) * 128,
        6 => (count & 0x7) * 192,
        _ => (count & 0x7) * 256,
    }
}

fn scales(input: &mut Bytes<'_>, rows: usize, cols: usize) -> Option<Scales> {
    match input.byte() % 5 {
        0 => None,
        1 => Some(Scales::PerTensor(input.float())),
        2 => Some(Scales::PerRow((0..rows).map(|r| r as f32).collect())),
        3 => Some(Scales::PerRow(vec![input.float(); rows])),
        _ => {
            let group = [32, 64, 128, 256][usize::from(input.byte() % 4)];
            let scales = vec![input.float(); rows * (cols / group)];
            Some(Scales::PerGroup { group, scales })
        }
    }
}

/// A packed matrix.
struct Packed {
    packing: &'static dyn Packing,
    rows: usize,
    cols: usize,
    outside: Option<Scales>,
    bytes: Vec<u8>,
}

impl Packed {
    fn of(input: &mut Bytes<'_>) -> Result<Self, FormatError> {
        let flags = input.byte();
        let packing = packing(input.byte());
        let (rows, cols) = (size(input), size(input));
        let outside = scales(input, rows, cols);
        let mut bytes = input.0.to_vec();
        let len = packing.stored_len(rows, cols)?;
        if flags & 1 == 0 && len <= MOST_BYTES {
            if bytes.is_empty() {
                bytes.push(flags);
            }
            bytes = bytes.iter().copied().cycle().take(len as usize).collect();
        }
        Ok(Self {
            packing,
            rows,
            cols,
            outside,
            bytes,
        })
    }

    fn tensor(&self) -> PackedTensor<'_> {
        PackedTensor {
            bytes: &self.bytes,
            rows: self.rows,
            cols: self.cols,
            outside: self.outside.as_ref(),
        }
    }
}

/// Bytes as a packed matrix; what was unpacked, packed again, is the same matrix.
pub(crate) fn unpack(data: &[u8], record: &mut Record) {
    let mut input = Bytes(data);
    let packed = match Packed::of(&mut input) {
        Ok(packed) => packed,
        Err(error) => return record.error(&error),
    };
    let tensor = packed.tensor();
    let mut beyond = vec![0; packed.cols];
    let past = packed
        .packing
        .unpack_rows(&tensor, packed.rows, &mut beyond);
    assert!(
        packed.cols == 0 || past.is_err(),
        "{}: a row behind the last one",
        packed.packing.name()
    );
    record.result(&packed.packing.scales(&tensor));
    let matrix = match packed.packing.unpack(&tensor) {
        Ok(matrix) => matrix,
        Err(error) => return record.error(&error),
    };
    record.note(&matrix);
    some_rows(&packed, &matrix);
    round_trip(&packed, &matrix);
}

/// Rows alone are those of the whole.
fn some_rows(packed: &Packed, matrix: &TernaryMatrix) {
    let (rows, cols) = (packed.rows, packed.cols);
    let (first, last) = (rows / 3, (rows * 2).div_ceil(3));
    let mut part = vec![0; (last - first) * cols];
    packed
        .packing
        .unpack_rows(&packed.tensor(), first, &mut part)
        .unwrap_or_else(|e| panic!("rows {first}..{last} of a matrix that unpacks: {e}"));
    assert_eq!(
        part,
        matrix.trits()[first * cols..last * cols],
        "{}: rows {first}..{last}",
        packed.packing.name()
    );
}

fn round_trip(packed: &Packed, matrix: &TernaryMatrix) {
    let name = packed.packing.name();
    let Ok(bytes) = packed.packing.pack(matrix, ScaleRounding::Refuse) else {
        return;
    };
    let holds = packed.packing.holds_scales();
    let again = PackedTensor {
        bytes: &bytes,
        outside: (!holds).then(|| matrix.scales()),
        ..packed.tensor()
    };
    let again = packed.packing.unpack(&again);
    let again = again.unwrap_or_else(|e| panic!("{name}: what was just packed is refused: {e}"));
    assert_eq!(matrix.trits(), again.trits(), "{name}: other trits");
    assert_eq!(
        scale_normal_form(matrix),
        scale_normal_form(&again),
        "{name}: other scales"
    );
}

/// From one packing to another, in bands: the bytes of packing the whole matrix.
pub(crate) fn transcode(data: &[u8], record: &mut Record) {
    let mut input = Bytes(data);
    let to = packing(input.byte());
    let scale = match input.byte() % 4 {
        0 => input.float(),
        n => [1.0, 0.5, 0.0123][usize::from(n - 1)],
    };
    let packed = match Packed::of(&mut input) {
        Ok(packed) => packed,
        Err(error) => return record.error(&error),
    };
    let (rows, cols) = (packed.rows, packed.cols);
    let Ok(len) = to.packed_len(rows, cols) else {
        return;
    };
    if len > MOST_BYTES || !scale.is_finite() || scale.is_sign_negative() {
        return;
    }
    let unpacked = packed.packing.unpack(&packed.tensor());
    let whole = unpacked.as_ref().ok().map(|matrix| {
        let trits = matrix.trits().to_vec();
        TernaryMatrix::new(rows, cols, trits, Scales::PerTensor(scale)).expect("trits and a scale")
    });
    let trailer = whole.as_ref().map_or(0, |matrix| to.trailer(matrix).len());
    let mut bytes = vec![0; (len as usize).saturating_sub(trailer)];
    let mut codes = vec![0; rows * code_row_len(cols)];
    let source = (packed.packing, packed.tensor());
    let done = bitnet_convert::transcode(&source, to, scale, &mut bytes, &mut codes);
    let any = match done {
        Ok(Some(any)) => any,
        Ok(None) => return,
        Err(error) => {
            assert!(
                unpacked.is_err(),
                "transcoding is refused, unpacking is not: {error}"
            );
            return record.error(&error);
        }
    };
    let Some(whole) = whole else {
        // the scales may be wrong where the trits are not
        return;
    };
    let place = (packed.packing.name(), to.name(), rows, cols);
    assert_eq!(any, whole.trits().iter().any(|t| *t != 0), "{place:?}");
    let mut expected = vec![0; rows * code_row_len(cols)];
    trit_codes(whole.trits(), cols, &mut expected);
    assert_eq!(codes, expected, "{place:?}: other codes");
    if let Ok(all) = to.pack(&whole, ScaleRounding::Allow) {
        assert!(all.starts_with(&bytes), "{place:?}: other bytes");
    }
    record.note(&bytes);
}

const DENSE: [Encoding; 14] = [
    Encoding::Plain(PlainType::F32),
    Encoding::Plain(PlainType::F16),
    Encoding::Plain(PlainType::Bf16),
    Encoding::Block(BlockType::Q8_0),
    Encoding::Block(BlockType::Q6_K),
    Encoding::Plain(PlainType::I8),
    Encoding::Block(BlockType::Q4_0),
    Encoding::Block(BlockType::Q4_1),
    Encoding::Block(BlockType::Q5_0),
    Encoding::Block(BlockType::Q5_1),
    Encoding::Block(BlockType::Q2_K),
    Encoding::Block(BlockType::Q3_K),
    Encoding::Block(BlockType::Q4_K),
    Encoding::Block(BlockType::Q5_K),
];

/// Dense values of every type, stored again as every type.
pub(crate) fn dense(data: &[u8], record: &mut Record) {
    let mut input = Bytes(data);
    let from = DENSE[usize::from(input.byte()) % DENSE.len()];
    let to = DENSE[usize::from(input.byte()) % DENSE.len()];
    let count = size(&mut input);
    let Ok(len) = dense_len(from, count, count) else {
        return;
    };
    let mut bytes = input.0.to_vec();
    if !bytes.is_empty() && len <= MOST_BYTES {
        bytes = bytes.iter().copied().cycle().take(len as usize).collect();
    }
    let mut values = vec![0.0f32; count];
    if let Err(error) = dense_to_f32(from, &bytes, &mut values) {
        return record.error(&error);
    }
    record.note(&values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
    let mut stored = Vec::new();
    match encode_dense(&values, to, &mut stored) {
        Ok(exactness) => {
            let mut again = vec![0.0f32; count];
            dense_to_f32(to, &stored, &mut again).expect("what was just stored is read");
            if exactness.is_exact() {
                // -0 counts as 0
                assert_eq!(values, again, "{} to {}", from.name(), to.name());
            }
            record.note(&stored);
        }
        Err(error) => record.error(&error),
    }
}
