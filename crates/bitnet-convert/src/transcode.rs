//! From one packing to another, a band of rows at a time.
//!
//! Invariant: the bytes are those that packing the whole matrix would give. A band's trits stay in the
//! cache of the core that unpacked them: no thread ever holds more than [`BAND`] of them, whatever the
//! matrix, and every byte of the source is read while its neighbors are there, once.

use bitnet_checkpoint::{TernaryRows, code_row_len, trit_codes};
use bitnet_formats::{ErrorCode, FormatError, PackedTensor, Packing, ScaleRounding, UnitRows};
use bitnet_ternary::{Scales, TernaryMatrix};
use rayon::prelude::*;

/// Trits of a band: with the bytes on both sides they fit in half a megabyte of cache.
const BAND: usize = 128 << 10;

/// Packed rows that can be read in any order, on any thread.
pub trait PackedRows: Sync {
    /// `(rows, cols)`
    fn shape(&self) -> (usize, usize);
    /// How the bytes lie.
    fn packing(&self) -> &'static dyn Packing;
    /// Unpacks the rows from `first` on, `(n, cols)`.
    ///
    /// # Errors
    /// Whatever is wrong with their bytes.
    fn read(&self, first: usize, trits: &mut [i8]) -> Result<(), FormatError>;
}

impl PackedRows for TernaryRows<'_> {
    fn shape(&self) -> (usize, usize) {
        self.shape()
    }
    fn packing(&self) -> &'static dyn Packing {
        self.packing()
    }
    fn read(&self, first: usize, trits: &mut [i8]) -> Result<(), FormatError> {
        self.read(first, trits)
    }
}

/// A packed matrix that is in no checkpoint.
impl PackedRows for (&'static dyn Packing, PackedTensor<'_>) {
    fn shape(&self) -> (usize, usize) {
        (self.1.rows, self.1.cols)
    }
    fn packing(&self) -> &'static dyn Packing {
        self.0
    }
    fn read(&self, first: usize, trits: &mut [i8]) -> Result<(), FormatError> {
        self.0.unpack_rows(&self.1, first, trits)
    }
}

/// What a band is made of: the rows from `first` on, in each quarter of the matrix if it is cut in four.
struct Band<'a> {
    first: usize,
    rows: usize,
    /// One for each quarter, or one for all.
    packed: Vec<&'a mut [u8]>,
    /// One for each quarter.
    codes: Vec<&'a mut [u8]>,
}

/// How a matrix is cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// 4 where the source or the target keeps four quarters of the rows together, else 1.
    quarters: usize,
    /// Rows of a band in each of them.
    rows: usize,
    /// Bytes of such a band in each place where it goes.
    bytes: usize,
    /// Whether the quarters go to one place.
    joined: bool,
}

fn cut(from: &dyn Packing, to: &dyn Packing, (rows, cols): (usize, usize)) -> Option<Cut> {
    if rows == 0 || cols == 0 {
        return None;
    }
    let together = from.unit_rows(rows, cols) == UnitRows::Quarters && rows.is_multiple_of(4);
    let (quarters, step, joined) = match to.unit_rows(rows, cols) {
        UnitRows::Mixed => return None,
        UnitRows::Quarters => (4, 1, true),
        UnitRows::Consecutive(n) if together && (rows / 4).is_multiple_of(n) => (4, n, false),
        UnitRows::Consecutive(n) => (1, n, false),
    };
    let units = (BAND / (quarters * step * cols)).max(1);
    Some(Cut {
        quarters,
        rows: units * step,
        bytes: units * to.unit_len(rows, cols),
        joined,
    })
}

/// Packs `source` as `to`, with one scale, into the units of `packed` (without what
/// [`trailer`](Packing::trailer) says), and its codes into `codes` if that is not empty: as
/// [`trit_codes`], [`code_row_len`] bytes a row. `true` when a trit is not 0; `None` where `to` is not packed
/// in bands, or does not hold the matrix exactly: the caller, which has all of the matrix, reports the reason. Works on the current
/// rayon pool.
///
/// # Errors
/// Whatever is wrong with the bytes of the source.
pub fn transcode(
    source: &dyn PackedRows,
    to: &dyn Packing,
    scale: f32,
    packed: &mut [u8],
    codes: &mut [u8],
) -> Result<Option<bool>, FormatError> {
    let shape = source.shape();
    let Some(cut) = cut(source.packing(), to, shape) else {
        return Ok(None);
    };
    let bands = bands(cut, shape, packed, codes);
    let any = bands
        .into_par_iter()
        .map_with(Vec::new(), |trits, band| {
            one_band(source, to, scale, cut, band, trits)
        })
        .try_reduce(|| Some(false), |a, b| Ok(a.zip(b).map(|(a, b)| a | b)))?;
    Ok(any)
}

fn bands<'a>(
    cut: Cut,
    (rows, cols): (usize, usize),
    packed: &'a mut [u8],
    codes: &'a mut [u8],
) -> Vec<Band<'a>> {
    let quarter = rows / cut.quarters;
    let starts = (0..quarter).step_by(cut.rows);
    let mut bands: Vec<Band<'_>> = starts
        .map(|first| Band {
            first,
            rows: cut.rows.min(quarter - first),
            packed: Vec::with_capacity(4),
            codes: Vec::with_capacity(4),
        })
        .collect();
    let places = if cut.joined { 1 } else { cut.quarters };
    let place = (packed.len() / places).max(1);
    for packed in packed.chunks_mut(place) {
        for (band, packed) in bands.iter_mut().zip(packed.chunks_mut(cut.bytes)) {
            band.packed.push(packed);
        }
    }
    let row = code_row_len(cols);
    for codes in codes.chunks_mut(quarter * row) {
        for (band, codes) in bands.iter_mut().zip(codes.chunks_mut(cut.rows * row)) {
            band.codes.push(codes);
        }
    }
    bands
}

/// Packs one band; `trits` is room for its trits.
fn one_band(
    source: &dyn PackedRows,
    to: &dyn Packing,
    scale: f32,
    cut: Cut,
    band: Band<'_>,
    trits: &mut Vec<i8>,
) -> Result<Option<bool>, FormatError> {
    let (rows, cols) = source.shape();
    let quarter = rows / cut.quarters;
    let together = cut.quarters / band.packed.len().max(1); // quarters that go to one place
    let mut codes = band.codes.into_iter();
    let mut any = 0;
    for (place, packed) in band.packed.into_iter().enumerate() {
        trits.resize(together * band.rows * cols, 0);
        let lanes = trits.chunks_exact_mut(band.rows * cols);
        for (lane, trits) in (place * together..).zip(lanes) {
            source.read(lane * quarter + band.first, trits)?;
            any = trits.iter().fold(any, |any, trit| any | trit);
            if let Some(codes) = codes.next() {
                trit_codes(trits, cols, codes);
            }
        }
        let scales = Scales::PerTensor(scale);
        let matrix = TernaryMatrix::new(together * band.rows, cols, std::mem::take(trits), scales)
            .map_err(|e| FormatError::new(ErrorCode::Malformed, e.to_string()).because(e))?;
        if to.check_trits(&matrix).is_err()
            || to.check_scales(&matrix, ScaleRounding::Refuse) != Ok(0.0)
        {
            return Ok(None);
        }
        to.pack_band(rows, &matrix, packed);
        *trits = matrix.into_trits();
    }
    Ok(Some(any != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::PACKINGS;

    const ONE: Scales = Scales::PerTensor(1.0);

    /// No zeros: there are packings without one.
    fn sample(rows: usize, cols: usize) -> TernaryMatrix {
        let trit = |i: usize| (i * i / 7 % 5 / 3 * 2) as i8 - 1;
        let trits = (0..rows * cols).map(trit).collect();
        TernaryMatrix::new(rows, cols, trits, ONE).unwrap()
    }

    fn encode(packing: &dyn Packing, matrix: &TernaryMatrix) -> Option<Vec<u8>> {
        let len = packing.stored_len(matrix.rows(), matrix.cols()).ok()?;
        let trailer = packing.trailer(matrix);
        let mut bytes = vec![0; len as usize - trailer.len()];
        packing.pack_units(matrix, 0, &mut bytes);
        bytes.extend(trailer);
        Some(bytes)
    }

    #[test]
    fn bands_make_the_bytes_of_the_whole_matrix() {
        let mut in_bands = Vec::new();
        // several bands, one, rows that are no four, no whole tiles, and columns that are no block
        for (rows, cols) in [(768, 768), (256, 512), (260, 256), (70, 128), (6, 100)] {
            let matrix = sample(rows, cols);
            let mut codes = vec![0; rows * code_row_len(cols)];
            trit_codes(matrix.trits(), cols, &mut codes);
            for from in PACKINGS {
                // another wants zeros in their places
                if from.check_trits(&matrix).is_err() {
                    continue;
                }
                let Some(bytes) = encode(*from, &matrix) else {
                    continue;
                };
                let tensor = PackedTensor {
                    bytes: &bytes,
                    rows,
                    cols,
                    outside: Some(&ONE),
                };
                for to in PACKINGS {
                    let Some(mut expected) = encode(*to, &matrix) else {
                        continue;
                    };
                    expected.truncate(expected.len() - to.trailer(&matrix).len());
                    let mut packed = vec![9; expected.len()];
                    let mut seen = vec![9; codes.len()];
                    let done = transcode(&(*from, tensor), *to, 1.0, &mut packed, &mut seen);
                    let name = format!("{} to {}, {rows} x {cols}", from.name(), to.name());
                    match done.unwrap() {
                        None => continue,
                        Some(any) => assert!(any, "{name}"),
                    }
                    in_bands.push((from.name(), to.name()));
                    assert!(packed == expected, "{name}");
                    assert!(seen == codes, "{name}");
                }
            }
        }
        // only one packing mixes its rows too much
        let in_order =
            |p: &&&dyn Packing| p.name() != "tl2" && p.check_trits(&sample(1, 256)).is_ok();
        for to in PACKINGS.iter().filter(in_order) {
            assert!(in_bands.contains(&("hf_u8", to.name())), "{}", to.name());
        }
    }

    #[test]
    fn damage_is_an_error_and_what_is_not_exact_is_left_to_others() {
        let matrix = sample(64, 256);
        let [hf_u8, i2_s, q1_0] =
            ["hf_u8", "i2_s", "q1_0"].map(|n| bitnet_formats::packing_by_name(n).unwrap());
        let mut bytes = encode(hf_u8, &matrix).unwrap();
        let run = |bytes: &[u8], to: &dyn Packing| {
            let mut packed = vec![0; to.packed_len(64, 256).unwrap() as usize];
            packed.truncate(packed.len() - to.trailer(&matrix).len());
            let tensor = PackedTensor {
                bytes,
                rows: 64,
                cols: 256,
                outside: Some(&ONE),
            };
            transcode(&(hf_u8, tensor), to, 1.0, &mut packed, &mut [])
        };
        bytes[300] = 0b0101_0110; // a zero among others
        assert_eq!(run(&bytes, i2_s), Ok(Some(true)));
        assert_eq!(run(&bytes, q1_0), Ok(None));
        bytes[300] = 0b0101_1101;
        let error = run(&bytes, i2_s).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadCode);
        assert!(error.message.starts_with("row 17, column 44:"), "{error}");
    }
}
