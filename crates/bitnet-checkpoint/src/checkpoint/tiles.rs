//! Linears whose tiles a kernel reads where they lie in the mapped file (`formats/packed.md`).
//!
//! Invariant: scales of tiles are computed with as they are stored, whether the tiles are mapped or
//! packed again, so that every kernel gives the same bits whatever a file says.

use super::{Checkpoint, LinearRule, LinearSource, Source, packed};
use crate::slot::Slot;
use bitnet_formats::{ErrorCode, FormatError, Mapped, PackedTensor, Packing, TensorInfo};
use bitnet_ternary::Scales;
use std::ops::Range;

/// A linear as tiles of a mapped file.
#[derive(Debug)]
pub struct Tiles<'a> {
    checkpoint: &'a Checkpoint,
    source: &'a LinearSource,
    packing: &'static dyn Packing,
    scales: Scales,
}

impl Checkpoint {
    /// A linear as tiles, if it is stored so.
    ///
    /// # Errors
    /// Whatever is wrong with its scales.
    pub fn tiles(&self, slot: Slot) -> Result<Option<Tiles<'_>>, FormatError> {
        let source = self.linear(slot)?;
        let LinearRule::Tiles { packing, scales } = &source.rule else {
            return Ok(None);
        };
        let scales = self
            .tile_scales(scales, *packing, source.rows, source.cols)
            .map_err(|e| self.place(e, &source.info))?;
        Ok(Some(Tiles {
            checkpoint: self,
            source,
            packing: *packing,
            scales,
        }))
    }

    /// Asks the system to keep tiles in huge pages, without which a token takes up to an eighth longer: it
    /// touches every page once. From the start of the file on, because a huge page lies at a multiple of
    /// its size there, and tiles come first.
    pub fn prefer_huge_tiles(&self) {
        for (number, part) in self.file.parts.iter().enumerate() {
            let ends = self.sources.values().filter_map(|source| match source {
                Source::Linear(LinearSource {
                    rule: LinearRule::Tiles { .. },
                    info,
                    ..
                }) if info.part == number => Some(info.offset.saturating_add(info.len)),
                _ => None,
            });
            part.prefer_huge_pages(0..ends.max().unwrap_or(0));
        }
    }

    /// The scales of tiles: `[1]`, `[rows, 1]` or `[rows, groups]`, as resolving checked.
    pub(super) fn tile_scales(
        &self,
        info: &TensorInfo,
        packing: &dyn Packing,
        rows: usize,
        cols: usize,
    ) -> Result<Scales, FormatError> {
        let bytes = self.file.bytes(info).as_chunks::<4>().0;
        let values: Vec<f32> = bytes.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let scales = with_structure(info, cols, values);
        let checked = PackedTensor {
            outside: Some(&scales),
            ..packed(&[], rows, cols)
        };
        packing.scales(&checked).map_err(|e| self.place(e, info))
    }

    /// The layout of each linear that is stored as tiles, beside scales of the structure that it has
    /// (their values are absent).
    pub fn tile_layouts(&self) -> impl Iterator<Item = (&'static str, Scales)> + '_ {
        self.sources.values().filter_map(|source| match source {
            Source::Linear(LinearSource {
                rule: LinearRule::Tiles { packing, scales },
                cols,
                ..
            }) => Some((packing.name(), with_structure(scales, *cols, Vec::new()))),
            _ => None,
        })
    }
}

/// Scales of the structure that the shape of their tensor says.
fn with_structure(info: &TensorInfo, cols: usize, scales: Vec<f32>) -> Scales {
    match info.shape[..] {
        [1] => Scales::PerTensor(scales.first().copied().unwrap_or(0.0)),
        [_, 1] => Scales::PerRow(scales),
        _ => Scales::PerGroup {
            group: cols / info.shape.last().map_or(1, |n| (*n).max(1)),
            scales,
        },
    }
}

impl Tiles<'_> {
    /// The name of their layout.
    pub fn layout(&self) -> &'static str {
        self.packing.name()
    }

    /// `(rows, cols)`
    pub fn shape(&self) -> (usize, usize) {
        (self.source.rows, self.source.cols)
    }

    /// The scales, as they are stored.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The file that holds the tiles, and where they lie in it.
    pub fn place(&self) -> Option<(Mapped, Range<usize>)> {
        let info = &self.source.info;
        let part = self.checkpoint.file.parts.get(info.part)?;
        let range = info.offset as usize..info.offset.saturating_add(info.len) as usize;
        Some((part.clone(), range))
    }

    /// Why a kernel refused the bytes: the packing names row and column; `otherwise` is said if the
    /// packing finds nothing wrong with them.
    #[cold]
    pub fn explain(&self, otherwise: &str) -> FormatError {
        let (rows, cols) = self.shape();
        let bytes = self.checkpoint.file.bytes(&self.source.info);
        let tensor = PackedTensor {
            outside: Some(&self.scales),
            ..packed(bytes, rows, cols)
        };
        let error = match self.packing.unpack(&tensor) {
            Err(named) => named,
            Ok(_) => FormatError::new(ErrorCode::Malformed, otherwise),
        };
        self.checkpoint.place(error, &self.source.info)
    }
}
