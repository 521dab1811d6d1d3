//! Scales of a ternary matrix: what a trit is multiplied with.
//!
//! Invariant: a scale is always a multiplier (`weight = trit * scale`), never an inverse.
//! Checkpoints that store `1 / absmean` are inverted once, on reading, by
//! `fl32(1 / weight_scale)`; from there on every container of one model holds the same bits.

/// Group sizes (columns of one row that share a scale) that kernels and packings may rely on.
pub const GROUP_SIZES: [usize; 4] = [32, 64, 128, 256];

/// The scales of a matrix of `rows x cols` trits.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// One scale for the whole matrix.
    PerTensor(f32),
    /// One scale per row, `(rows,)`.
    PerRow(Vec<f32>),
    /// One scale per `group` columns of a row, row-major, `(rows, cols / group)`.
    PerGroup {
        /// Columns per group, one of [`GROUP_SIZES`]; `cols` is a multiple of it.
        group: usize,
        /// `(rows, cols / group)`, row-major.
        scales: Vec<f32>,
    },
}

impl Scales {
    /// The scale of the trit at `(row, col)` of a matrix with `cols` columns.
    ///
    /// # Panics
    /// For a row or column that the matrix does not have.
    #[expect(
        clippy::indexing_slicing,
        reason = "a wrong place is a bug of the caller"
    )]
    pub fn at(&self, row: usize, col: usize, cols: usize) -> f32 {
        match self {
            Self::PerTensor(s) => *s,
            Self::PerRow(s) => s[row],
            Self::PerGroup { group, scales } => {
                let groups = |cols: usize| cols.checked_div(*group).unwrap_or(0);
                scales[row.saturating_mul(groups(cols)).saturating_add(groups(col))]
            }
        }
    }

    /// All scales in storage order.
    pub fn as_slice(&self) -> &[f32] {
        match self {
            Self::PerTensor(s) => std::slice::from_ref(s),
            Self::PerRow(s) => s,
            Self::PerGroup { scales, .. } => scales,
        }
    }

    /// How many scales a matrix of this shape needs with this structure.
    pub fn expected_len(&self, rows: usize, cols: usize) -> usize {
        match self {
            Self::PerTensor(_) => 1,
            Self::PerRow(_) => rows,
            Self::PerGroup { group, .. } => {
                rows.saturating_mul(cols.checked_div(*group).unwrap_or(0))
            }
        }
    }

    /// `tensor`, `row` or `group-N`, as reports spell it.
    pub fn structure(&self) -> String {
        match self {
            Self::PerTensor(_) => "tensor".to_owned(),
            Self::PerRow(_) => "row".to_owned(),
            Self::PerGroup { group, .. } => format!("group-{group}"),
        }
    }
}
