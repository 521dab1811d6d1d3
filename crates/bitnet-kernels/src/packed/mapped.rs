//! Packed matrices that lie in a file (`formats/packed.md`).
//!
//! Invariant: a mapped matrix is one that [`Backend::pack`] could have made, but for what stands outside
//! its rows and columns, which no result depends on.

use super::{PackedMatrix, PackedScales};
use crate::backend::Backend;
use crate::kernel::Inputs;
use crate::lines::{LINE, Line, Lines, ReadLines, SharedBytes, SharedLines};
use bitnet_ternary::{MatrixError, Scales, TernaryMatrix};
use std::fmt;
use std::ops::Range;

/// Why some bytes of a file are no matrix for a backend.
#[derive(Clone, Debug, PartialEq)]
pub enum MapError {
    /// The shape or its scales are none that a backend computes with.
    Shape(MatrixError),
    /// Other bytes than the tiles of the matrix.
    Length {
        /// How many the tiles are.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// The first byte is not at a multiple of 64 in memory.
    Alignment {
        /// How far behind one.
        past: usize,
    },
    /// A byte that stands for no trits.
    BadCode {
        /// Where in the tensor.
        offset: usize,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape(error) => write!(f, "{error}"),
            Self::Length { expected, found } => {
                write!(f, "expected {expected} bytes of tiles, found {found}")
            }
            Self::Alignment { past } => {
                write!(
                    f,
                    "expected tiles at a multiple of 64 bytes, found {past} behind one"
                )
            }
            Self::BadCode { offset } => {
                write!(
                    f,
                    "byte {offset}: expected the code of some trits, found another byte"
                )
            }
        }
    }
}

impl std::error::Error for MapError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Shape(error) => Some(error),
            _ => None,
        }
    }
}

impl PackedMatrix {
    /// A matrix whose tiles lie at `range` of `file`, in the layout that `backend` reads for these scales
    /// ([`Backend::layout`]): nothing is copied, and the bytes stay where they are as long as the
    /// matrix lives. All of them are read once here, so that a byte that stands for no trits is found
    /// before any kernel would decode it its own way.
    ///
    /// # Errors
    /// Whatever keeps those bytes from being such a matrix.
    pub fn mapped(
        backend: Backend,
        (rows, cols): (usize, usize),
        scales: Scales,
        file: SharedBytes,
        range: Range<usize>,
    ) -> Result<Self, MapError> {
        TernaryMatrix::check(rows, cols, &scales).map_err(MapError::Shape)?;
        let ops = backend.kernel().ternary_for(&scales, Inputs::Int8);
        let expected = rows
            .div_ceil(ops.tile_rows)
            .saturating_mul((ops.tile_lines)(cols))
            .saturating_mul(LINE);
        let bytes = (*file).as_ref().get(range.clone()).unwrap_or(&[]);
        if bytes.len() != expected {
            let found = bytes.len();
            return Err(MapError::Length { expected, found });
        }
        let past = bytes.as_ptr().addr() % LINE;
        let lines = SharedLines::new(file, range).ok_or(MapError::Alignment { past })?;
        if !(ops.are_codes)(&lines) {
            let bad = |line: &Line| !(ops.are_codes)(std::slice::from_ref(line));
            let offset = lines.iter().position(bad).unwrap_or(0) * LINE;
            return Err(MapError::BadCode { offset });
        }
        Ok(Self {
            backend,
            ops,
            rows,
            cols,
            scales: PackedScales::new(scales, (rows, cols), ops.tile_rows),
            lines: ReadLines::Shared(lines),
        })
    }

    /// Whether the tiles lie in a file ([`mapped`](Self::mapped)).
    pub fn is_mapped(&self) -> bool {
        matches!(self.lines, ReadLines::Shared(_))
    }

    /// The same matrix in memory of this process, on huge pages where the system has them.
    pub fn resident(&self) -> Self {
        let mut lines = Lines::resident(self.lines.len());
        lines.copy_from_slice(&self.lines);
        Self {
            lines: ReadLines::Own(lines),
            scales: self.scales.clone(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lines::as_bytes;
    use crate::{ActivationBatch, Output, every, is_quick};
    use bitnet_ternary::GROUP_SIZES;
    use std::sync::Arc;

    struct File(Lines);

    impl AsRef<[u8]> for File {
        fn as_ref(&self) -> &[u8] {
            as_bytes(&self.0)
        }
    }

    /// Any number, the same everywhere.
    fn noise(seed: &mut u64) -> usize {
        *seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*seed >> 33) as usize
    }

    fn scales_of(rows: usize, cols: usize) -> Vec<Scales> {
        let many = |n: usize| (0..n).map(|i| 0.5 + i as f32 / 64.0).collect();
        let groups = GROUP_SIZES.into_iter().filter(|g| cols.is_multiple_of(*g));
        [Scales::PerTensor(0.75), Scales::PerRow(many(rows))]
            .into_iter()
            .chain(groups.map(|group| {
                let scales = many(rows * cols / group);
                Scales::PerGroup { group, scales }
            }))
            .collect()
    }

    /// The tiles of a matrix in lines `1 ..` of a file, and the trits; what is outside the matrix has the
    /// codes of any trits at all.
    fn file_of(
        backend: Backend,
        (rows, cols): (usize, usize),
        scales: &Scales,
        seed: &mut u64,
    ) -> (SharedBytes, Vec<i8>) {
        let ops = backend.kernel().ternary_for(scales, Inputs::Int8);
        let tile_lines = (ops.tile_lines)(cols);
        let mut wide = cols; // the most columns in as many lines
        while (ops.tile_lines)(wide + 1) == tile_lines {
            wide += 1;
        }
        let tiles = rows.div_ceil(ops.tile_rows);
        let all: Vec<i8> = (0..tiles * ops.tile_rows * wide)
            .map(|_| (noise(seed) % 3) as i8 - 1)
            .collect();
        let mut lines = Lines::zeroed(1 + tiles * tile_lines);
        // SAFETY: the backend exists, so the CPU has what its kernel requires.
        assert!(unsafe { (ops.pack)(&all, wide, &mut lines[1..]) });
        let trits = all.chunks(wide).take(rows).flat_map(|row| &row[..cols]);
        let trits = trits.copied().collect();
        (Arc::new(File(lines)), trits)
    }

    #[test]
    fn a_mapped_matrix_is_the_packed_one_whatever_lies_outside_it() {
        let mut seed = 7;
        for backend in Backend::available() {
            let shapes = [(1, 1), (31, 20), (33, 21), (64, 128), (70, 256), (5, 517)];
            for (rows, cols) in shapes.into_iter().filter(|(r, c)| is_quick(4 * r * c)) {
                for scales in scales_of(rows, cols) {
                    let what = format!("{backend:?}, {rows} x {cols}, {}", scales.structure());
                    let (file, trits) = file_of(backend, (rows, cols), &scales, &mut seed);
                    let end = (*file).as_ref().len();
                    let from_file = |range| {
                        PackedMatrix::mapped(
                            backend,
                            (rows, cols),
                            scales.clone(),
                            file.clone(),
                            range,
                        )
                    };
                    let mapped = from_file(LINE..end).unwrap();
                    let matrix = TernaryMatrix::new(rows, cols, trits, scales.clone()).unwrap();
                    let packed = backend.pack(&matrix);
                    assert!(mapped.is_mapped() && !packed.is_mapped(), "{what}");
                    assert_eq!(mapped.unpack(), matrix, "{what}");
                    assert_eq!(mapped.byte_len(), packed.byte_len(), "{what}");

                    for tokens in [1, 2, 14].into_iter().step_by(every(3)) {
                        let x: Vec<f32> = (0..tokens * cols)
                            .map(|_| noise(&mut seed) as f32 / 1e9 - 1.0)
                            .collect();
                        let mut batch = ActivationBatch::default();
                        let mut fixed = batch.clone();
                        backend.quantize(&x, cols, &mut batch).unwrap();
                        backend.fix(&x, cols, &mut fixed).unwrap();
                        let run = |m: &PackedMatrix| {
                            let mut y = vec![0f32; 2 * tokens * rows];
                            let (ints, floats) = y.split_at_mut(tokens * rows);
                            m.multiply(&batch, &mut Output::new(ints, tokens, rows));
                            m.multiply(&fixed, &mut Output::new(floats, tokens, rows));
                            y.iter().map(|y| y.to_bits()).collect::<Vec<_>>()
                        };
                        let expected = run(&packed);
                        assert_eq!(run(&mapped), expected, "{what}, {tokens} tokens");
                        assert_eq!(run(&mapped.resident()), expected, "{what}, {tokens} tokens");
                    }

                    let found = end - LINE;
                    assert_eq!(
                        from_file(0..end).unwrap_err(),
                        MapError::Length {
                            expected: found,
                            found: end
                        },
                        "{what}"
                    );
                    assert!(matches!(
                        from_file(LINE..end + 1),
                        Err(MapError::Length { .. })
                    ));
                    let past = from_file(LINE - 4..end - 4).unwrap_err();
                    assert_eq!(past, MapError::Alignment { past: LINE - 4 }, "{what}");
                }
            }
        }
    }

    #[test]
    fn bytes_that_no_trits_have_are_refused() {
        for backend in Backend::available() {
            for scales in scales_of(40, 64) {
                let ops = backend.kernel().ternary_for(&scales, Inputs::Int8);
                let lines = 40usize.div_ceil(ops.tile_rows) * (ops.tile_lines)(64);
                let mut codes = 0;
                for byte in (0..=u8::MAX).step_by(every(51)) {
                    let mut file = Lines::zeroed(lines);
                    // SAFETY: the backend exists, so the CPU has what its kernel requires.
                    assert!(unsafe { (ops.pack)(&[0; 40 * 64], 64, &mut file) });
                    file[lines - 1].0[17] = byte;
                    let file: SharedBytes = Arc::new(File(file));
                    match PackedMatrix::mapped(
                        backend,
                        (40, 64),
                        scales.clone(),
                        file,
                        0..lines * LINE,
                    ) {
                        Ok(_) => codes += 1,
                        Err(error) => {
                            let offset = (lines - 1) * LINE;
                            assert_eq!(error, MapError::BadCode { offset });
                        }
                    }
                }
                if cfg!(miri) {
                    // -1, 0 and +1 as bytes, of which 255 and 0 are tried
                    assert_eq!((ops.layout, codes), ("rows-8bit", 2));
                    continue;
                }
                let expected = match ops.layout {
                    "tile32-2bit" => 81,
                    "tile32-1.6bit" => 243,
                    _ => 3,
                };
                assert_eq!(codes, expected, "{backend:?}, {}", ops.layout);
            }
        }
    }

    #[test]
    fn shapes_and_scales_are_checked() {
        let backend = Backend::best();
        let map = |shape, scales| {
            let file: SharedBytes = Arc::new(File(Lines::zeroed(2)));
            PackedMatrix::mapped(backend, shape, scales, file, 0..128).unwrap_err()
        };
        for (shape, scales) in [
            ((1, bitnet_ternary::MAX_COLS), Scales::PerTensor(1.0)),
            ((2, 4), Scales::PerRow(vec![1.0])),
            ((1, 4), Scales::PerTensor(f32::NAN)),
            (
                (1, 48),
                Scales::PerGroup {
                    group: 32,
                    scales: vec![1.0],
                },
            ),
        ] {
            assert!(
                matches!(map(shape, scales), MapError::Shape(_)),
                "{shape:?}"
            );
        }
        let huge = map((usize::MAX, 4), Scales::PerTensor(1.0));
        assert!(matches!(huge, MapError::Length { .. }), "{huge}");
    }
}
