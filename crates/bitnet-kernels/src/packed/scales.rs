//! Scales of a packed matrix, in the order of its tiles.
//!
//! Invariant: what is kept is the scales exactly: in 16 bits where all of them are numbers of such a type.

use crate::contract::GroupScales;
use crate::lanes::DenseType;
use crate::scaling::TileScales;
use bitnet_ternary::{
    Scales, bf16_to_f32, f16_to_f32, f32_is_bf16_exact, f32_is_f16_exact, f32_to_bf16, f32_to_f16,
};
use std::ops::Range;

/// The scales of a matrix.
#[derive(Clone)]
pub(super) enum PackedScales {
    /// One per tensor or row, as they are.
    Whole(Scales),
    /// Those of groups of columns, `(tiles, groups, tile_rows)`; rows that do not exist have 0.
    Groups {
        /// Columns of a group.
        group: usize,
        /// Groups of a row.
        groups: usize,
        /// Rows of a tile.
        tile_rows: usize,
        /// The numbers.
        numbers: Numbers,
    },
}

/// Numbers in the shortest type that holds all of them.
#[derive(Clone)]
pub(super) enum Numbers {
    F16(Vec<u16>),
    Bf16(Vec<u16>),
    F32(Vec<f32>),
}

impl PackedScales {
    /// For tiles of `tile_rows` rows of a matrix whose shape these scales fit.
    pub fn new(scales: Scales, (rows, cols): (usize, usize), tile_rows: usize) -> Self {
        let Scales::PerGroup { group, scales } = scales else {
            return Self::Whole(scales);
        };
        let groups = cols / group;
        let mut ordered = vec![0.0; rows.div_ceil(tile_rows) * groups * tile_rows];
        for (row, scales) in scales.chunks_exact(groups.max(1)).take(rows).enumerate() {
            let (tile, r) = (row / tile_rows, row % tile_rows);
            for (g, scale) in scales.iter().enumerate() {
                ordered[(tile * groups + g) * tile_rows + r] = *scale;
            }
        }
        Self::Groups {
            group,
            groups,
            tile_rows,
            numbers: Numbers::new(ordered),
        }
    }

    /// Columns per group, if there are groups.
    pub fn group(&self) -> Option<usize> {
        match self {
            Self::Whole(_) => None,
            Self::Groups { group, .. } => Some(*group),
        }
    }

    /// The scales of a matrix of so many rows, as [`new`](Self::new) was given them.
    pub fn to_scales(&self, rows: usize) -> Scales {
        match self {
            Self::Whole(scales) => scales.clone(),
            Self::Groups { group, groups, .. } => {
                let all = (0..rows).flat_map(|row| (0..*groups).map(move |g| (row, g)));
                Scales::PerGroup {
                    group: *group,
                    scales: all.map(|(row, g)| self.at(row, g)).collect(),
                }
            }
        }
    }

    /// The scale of one row and group.
    pub fn at(&self, row: usize, g: usize) -> f32 {
        match self {
            Self::Whole(Scales::PerTensor(alpha)) => *alpha,
            Self::Whole(scales) => scales.as_slice()[row],
            Self::Groups {
                groups,
                tile_rows,
                numbers,
                ..
            } => numbers.at((row / tile_rows * groups + g) * tile_rows + row % tile_rows),
        }
    }

    /// Bytes that a product reads.
    pub fn byte_len(&self) -> usize {
        match self {
            Self::Whole(scales) => size_of_val(scales.as_slice()),
            Self::Groups { numbers, .. } => numbers.byte_len(),
        }
    }

    /// How the scales lie on the matrix, for people.
    pub fn structure(&self) -> String {
        match self {
            Self::Whole(scales) => scales.structure(),
            Self::Groups { group, .. } => {
                let (group, scales) = (*group, Vec::new());
                Scales::PerGroup { group, scales }.structure()
            }
        }
    }

    /// The group scales of some tiles.
    pub fn of_groups(&self, tiles: Range<usize>) -> GroupScales<'_> {
        let Self::Groups {
            groups,
            tile_rows,
            numbers,
            ..
        } = self
        else {
            return GroupScales::None;
        };
        let range = tiles.start * groups * tile_rows..tiles.end * groups * tile_rows;
        match numbers {
            Numbers::F16(bits) => GroupScales::F16(&bits[range]),
            Numbers::Bf16(bits) => GroupScales::Bf16(&bits[range]),
            Numbers::F32(numbers) => GroupScales::F32(&numbers[range]),
        }
    }

    /// Writes the group scales of some tiles, `(tiles, groups, tile_rows)`; nothing without groups. `narrow` widens
    /// numbers of 16 bits.
    pub fn widen(
        &self,
        tiles: Range<usize>,
        to: &mut Vec<f32>,
        narrow: impl Fn(DenseType, &[u16], &mut [f32]),
    ) {
        if let Self::Groups {
            groups,
            tile_rows,
            numbers,
            ..
        } = self
        {
            let len = groups * tile_rows;
            to.resize(tiles.len() * len, 0.0);
            let range = tiles.start * len..tiles.end * len;
            match numbers {
                Numbers::F16(bits) => narrow(DenseType::F16, &bits[range], to),
                Numbers::Bf16(bits) => narrow(DenseType::Bf16, &bits[range], to),
                Numbers::F32(numbers) => to.copy_from_slice(&numbers[range]),
            }
        }
    }

    /// The scales of the tile whose first row is `row`, of which `groups` are those of groups.
    pub fn of_tile<'a>(&'a self, row: usize, groups: &'a [f32]) -> TileScales<'a> {
        match self {
            Self::Whole(Scales::PerTensor(alpha)) => TileScales::Tensor(*alpha),
            Self::Whole(scales) => TileScales::Rows(&scales.as_slice()[row..]),
            Self::Groups { .. } => TileScales::Groups(groups),
        }
    }
}

impl Numbers {
    fn new(numbers: Vec<f32>) -> Self {
        // of a number that both types hold, either is exact
        if numbers.iter().all(|x| f32_is_f16_exact(*x)) {
            return Self::F16(numbers.into_iter().map(f32_to_f16).collect());
        }
        if numbers.iter().all(|x| f32_is_bf16_exact(*x)) {
            return Self::Bf16(numbers.into_iter().map(f32_to_bf16).collect());
        }
        Self::F32(numbers)
    }

    fn at(&self, i: usize) -> f32 {
        match self {
            Self::F16(bits) => f16_to_f32(bits[i]),
            Self::Bf16(bits) => bf16_to_f32(bits[i]),
            Self::F32(numbers) => numbers[i],
        }
    }

    fn byte_len(&self) -> usize {
        match self {
            Self::F16(bits) | Self::Bf16(bits) => size_of_val(&bits[..]),
            Self::F32(numbers) => size_of_val(&numbers[..]),
        }
    }
}
