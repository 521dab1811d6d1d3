//! Orders in which files keep rows and columns: those of `q_proj` and `k_proj` by rotary pairs, value heads of a
//! Gated DeltaNet tiled over the key heads.
//!
//! Invariant: every order has its inverse, for heads of an even number of rows, and value heads that are a multiple of
//! the key heads.

use crate::block::GatedDeltaNet;
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_ternary::{Scales, TernaryMatrix};

/// In which order a file keeps a matrix, where that is not the order of the Hugging Face checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredOrder {
    /// Rows of each head as rotary pairs are neighbors.
    PairedRows {
        /// Rows of a head.
        head_dim: usize,
    },
    /// Rows of value heads tiled over the key heads.
    TiledRows(TiledHeads),
    /// Columns of value heads tiled over the key heads.
    TiledColumns(TiledHeads),
}

/// Value heads as GGUF keeps them: the first of every key head, then the second of every key head, ...; in the
/// Hugging Face checkpoint those of one key head stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TiledHeads {
    /// Rows or columns in front of the value heads, which stay where they are.
    pub before: usize,
    /// Key heads.
    pub key_heads: usize,
    /// Value heads of a key head.
    pub repeats: usize,
    /// Rows or columns of a value head.
    pub width: usize,
}

impl TiledHeads {
    /// Value heads behind `before` rows or columns; `None` where both orders are one.
    pub fn of(shape: &GatedDeltaNet, before: usize, width: usize) -> Option<Self> {
        let (key_heads, repeats) = (shape.key_heads, shape.repeats());
        (key_heads > 1 && repeats > 1).then_some(Self {
            before,
            key_heads,
            repeats,
            width,
        })
    }

    /// Where the Hugging Face checkpoint keeps what stands in place `at` of the file.
    pub fn grouped(self, at: usize) -> usize {
        self.moved(at, self.key_heads, self.repeats)
    }

    /// Where the file keeps what stands in place `at` of the Hugging Face checkpoint.
    pub fn tiled(self, at: usize) -> usize {
        self.moved(at, self.repeats, self.key_heads)
    }

    /// Heads of `outer` runs of `inner` heads, taken as `inner` runs of `outer`.
    fn moved(self, at: usize, inner: usize, outer: usize) -> usize {
        let Some(behind) = at.checked_sub(self.before) else {
            return at;
        };
        let (head, within) = (behind / self.width, behind % self.width);
        self.before + (head % inner * outer + head / inner) * self.width + within
    }
}

impl StoredOrder {
    /// A matrix of a file in the order of the Hugging Face checkpoint.
    ///
    /// # Errors
    /// `unsupported-config` where scales of column groups would be torn apart.
    pub fn to_hf(self, matrix: &TernaryMatrix) -> Result<TernaryMatrix, FormatError> {
        match self {
            Self::PairedRows { head_dim } => Ok(hf_from_gguf_rows(matrix, head_dim)),
            Self::TiledRows(heads) => Ok(matrix.permute_rows(|row| heads.tiled(row))),
            Self::TiledColumns(heads) => {
                let moved = permute_columns(matrix, |column| heads.tiled(column));
                moved.map_err(|e| torn(ErrorCode::UnsupportedConfig, e))
            }
        }
    }

    /// The inverse of [`to_hf`](Self::to_hf).
    ///
    /// # Errors
    /// `target-cannot-hold` where scales of column groups would be torn apart.
    pub fn from_hf(self, matrix: &TernaryMatrix) -> Result<TernaryMatrix, FormatError> {
        match self {
            Self::PairedRows { head_dim } => Ok(gguf_from_hf_rows(matrix, head_dim)),
            Self::TiledRows(heads) => Ok(matrix.permute_rows(|row| heads.grouped(row))),
            Self::TiledColumns(heads) => {
                let moved = permute_columns(matrix, |column| heads.grouped(column));
                moved.map_err(|e| torn(ErrorCode::TargetCannotHold, e))
            }
        }
    }
}

fn torn(code: ErrorCode, message: String) -> FormatError {
    FormatError::new(code, message)
        .hint("choose a Hugging Face target: it keeps the heads in the order of the checkpoint")
}

/// The matrix whose column `c` is column `source(c)` of `matrix`. Scales of column groups go with their columns, which
/// have to come from one group each.
fn permute_columns(
    matrix: &TernaryMatrix,
    source: impl Fn(usize) -> usize,
) -> Result<TernaryMatrix, String> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let sources: Vec<usize> = (0..cols).map(source).collect();
    let mut trits = Vec::with_capacity(matrix.trits().len());
    for row in 0..rows {
        let row = matrix.row(row);
        trits.extend(sources.iter().map(|from| row[*from]));
    }
    let scales = match matrix.normal_scales() {
        Scales::PerGroup { group: finest, .. } => {
            // the file's own groups: the normal form may have joined some of them
            let group = match matrix.scales() {
                Scales::PerGroup { group, .. } => *group,
                _ => finest,
            };
            let mut groups = Vec::with_capacity(cols / group);
            for (number, columns) in sources.chunks(group).enumerate() {
                let from = columns[0] / group;
                if let Some(other) = columns.iter().find(|column| **column / group != from) {
                    return Err(format!(
                        "the value heads do not stand in whole groups of {group} columns, which share a scale: group {number} has columns of groups {from} and {}",
                        other / group
                    ));
                }
                groups.push(from);
            }
            let all = matrix.scales().as_slice().chunks(cols / group);
            let scales = all.flat_map(|row| groups.iter().map(|from| row[*from]));
            Scales::PerGroup {
                group,
                scales: scales.collect(),
            }
        }
        // one scale per row or matrix: no column has one of its own
        other => other,
    };
    TernaryMatrix::new(rows, cols, trits, scales).map_err(|e| e.to_string())
}

/// Rows of `q_proj` or `k_proj` from GGUF's `llama` order, where rotary pairs are neighbors, to that
/// of the Hugging Face checkpoint, where they are `head_dim / 2` apart.
pub fn hf_from_gguf_rows(matrix: &TernaryMatrix, head_dim: usize) -> TernaryMatrix {
    matrix.permute_rows(|row| gguf_row(row, head_dim))
}

/// The inverse of [`hf_from_gguf_rows`].
pub fn gguf_from_hf_rows(matrix: &TernaryMatrix, head_dim: usize) -> TernaryMatrix {
    matrix.permute_rows(|row| hf_row(row, head_dim))
}

/// Where GGUF's `llama` keeps a row of the Hugging Face matrix (`formats/container/gguf.md`).
pub fn gguf_row(row: usize, head_dim: usize) -> usize {
    let at = row.checked_rem(head_dim).unwrap_or(0);
    let half = head_dim / 2;
    let (part, pair) = (at.checked_div(half), at.checked_rem(half));
    let within = pair.unwrap_or(0).saturating_mul(2);
    row.saturating_sub(at)
        .saturating_add(within)
        .saturating_add(part.unwrap_or(0))
}

/// The row of the Hugging Face matrix that GGUF's `llama` keeps in place `row`.
pub fn hf_row(row: usize, head_dim: usize) -> usize {
    let at = row.checked_rem(head_dim).unwrap_or(0);
    let half = if at.is_multiple_of(2) {
        0
    } else {
        head_dim / 2
    };
    row.saturating_sub(at)
        .saturating_add(half)
        .saturating_add(at / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: GatedDeltaNet = GatedDeltaNet {
        hidden_size: 8,
        key_heads: 2,
        value_heads: 6,
        key_dim: 4,
        value_dim: 64,
        conv_kernel: 4,
    };

    #[test]
    fn value_heads_are_tiled_over_the_key_heads_and_put_back() {
        let heads = TiledHeads::of(&SHAPE, 5, 2).unwrap();
        // head k * 3 + r moves to r * 2 + k
        for (k, r) in [(0, 0), (1, 0), (0, 2), (1, 1)] {
            let (grouped, tiled) = (5 + (3 * k + r) * 2 + 1, 5 + (2 * r + k) * 2 + 1);
            assert_eq!(
                (heads.tiled(grouped), heads.grouped(tiled)),
                (tiled, grouped)
            );
        }
        assert_eq!((heads.tiled(4), heads.grouped(4)), (4, 4));
        // one key head, or as many as value heads: both orders are one
        for value_heads in [2, 1] {
            let key_heads = value_heads;
            assert_eq!(
                TiledHeads::of(
                    &GatedDeltaNet {
                        key_heads,
                        value_heads,
                        ..SHAPE
                    },
                    0,
                    1
                ),
                None
            );
        }
        assert_eq!(
            TiledHeads::of(
                &GatedDeltaNet {
                    key_heads: 1,
                    ..SHAPE
                },
                0,
                1
            ),
            None
        );
    }

    #[test]
    fn scales_go_with_whole_groups_of_columns_and_are_never_torn() {
        let matrix = |group: usize| {
            let trits: Vec<i8> = (0..2 * 384).map(|i: usize| (i * i % 3) as i8 - 1).collect();
            let scales = (0..2 * 384 / group).map(|n| 1.0 + n as f32).collect();
            TernaryMatrix::new(2, 384, trits, Scales::PerGroup { group, scales }).unwrap()
        };
        let order = StoredOrder::TiledColumns(TiledHeads::of(&SHAPE, 0, 64).unwrap());
        let whole = matrix(64);
        let stored = order.from_hf(&whole).unwrap();
        for column in 0..384 {
            let from = TiledHeads::of(&SHAPE, 0, 64).unwrap().grouped(column);
            assert_eq!(stored.row(1)[column], whole.row(1)[from]);
            assert_eq!(
                stored.scales().at(1, column, 384),
                whole.scales().at(1, from, 384)
            );
        }
        assert_eq!(order.to_hf(&stored).unwrap(), whole);
        let error = order.from_hf(&matrix(128)).unwrap_err();
        assert_eq!(error.code, ErrorCode::TargetCannotHold, "{error}");
        let error = order.to_hf(&matrix(128)).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnsupportedConfig, "{error}");
        // rows of any structure
        let rows = StoredOrder::TiledRows(TiledHeads {
            width: 1,
            ..TiledHeads::of(&SHAPE, 0, 1).unwrap()
        });
        let six = TernaryMatrix::new(
            6,
            2,
            vec![1; 12],
            Scales::PerRow((0..6).map(|r| r as f32).collect()),
        );
        let six = six.unwrap();
        let stored = rows.from_hf(&six).unwrap();
        assert_eq!(stored.scales().as_slice(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(rows.to_hf(&stored).unwrap(), six);
    }

    #[test]
    fn the_row_orders_are_inverses_and_as_the_page_says() {
        let rows = 16;
        let trits: Vec<i8> = (0..rows * 3).map(|i| (i * i % 3) as i8 - 1).collect();
        let scales = Scales::PerRow((0..rows).map(|r| r as f32).collect());
        let hf = TernaryMatrix::new(rows, 3, trits, scales).unwrap();
        let gguf = gguf_from_hf_rows(&hf, 8);
        assert_eq!(hf_from_gguf_rows(&gguf, 8), hf);
        // HF row h*d + j*(d/2) + i moves to h*d + 2*i + j
        for (h, j, i) in [(0, 0, 3), (1, 1, 2), (1, 0, 0)] {
            assert_eq!(
                gguf.scales().at(h * 8 + 2 * i + j, 0, 3),
                (h * 8 + j * 4 + i) as f32
            );
        }
    }
}
