//! Linears whose tiles a kernel reads where they lie in the mapped file (`formats/packed.md`).
//!
//! Invariant: scales of tiles are computed with as they are stored, whether the tiles are mapped or
//! packed again, so that every kernel gives the same bits whatever a file says.

use super::{Checkpoint, LinearRule, LinearSource, Source, packed};
use crate::slot::Slot;
use bitnet_formats::{FormatError, PackedTensor, Packing, TensorInfo};
use bitnet_kernels::{Backend, MapError, PackedMatrix};
use bitnet_ternary::Scales;
use std::sync::Arc;

/// A linear as tiles of a mapped file.
pub(crate) struct Tiles<'a> {
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
    pub(crate) fn tiles(&self, slot: Slot) -> Result<Option<Tiles<'_>>, FormatError> {
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
    pub(crate) fn prefer_huge_tiles(&self) {
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

    /// The fastest kernel here that reads all linears where they lie; the fastest of all if none does,
    /// or if none of them are tiles.
    pub fn best_backend(&self) -> Backend {
        let reads = |backend: &Backend| {
            self.sources.values().all(|source| match source {
                Source::Linear(LinearSource {
                    rule: LinearRule::Tiles { packing, scales },
                    cols,
                    ..
                }) => backend.layout(&with_structure(scales, *cols, Vec::new())) == packing.name(),
                _ => true,
            })
        };
        Backend::available()
            .find(reads)
            .unwrap_or_else(Backend::best)
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

    /// Whether this is the layout that a kernel reads.
    pub fn are_for(&self, backend: Backend) -> bool {
        backend.layout(&self.scales) == self.layout()
    }

    /// The matrix, where it lies in the file. Reads all of it, to refuse bytes that stand for no trits.
    ///
    /// # Errors
    /// `bad-code` with row and column; whatever else keeps it from being mapped.
    pub fn map(&self, backend: Backend) -> Result<PackedMatrix, FormatError> {
        let info = &self.source.info;
        let mapped = match self.checkpoint.file.parts.get(info.part) {
            None => Err(MapError::Length {
                expected: info.len as usize,
                found: 0,
            }),
            Some(part) => {
                let range = info.offset as usize..info.offset.saturating_add(info.len) as usize;
                let file = Arc::new(part.clone());
                PackedMatrix::mapped(backend, self.shape(), self.scales.clone(), file, range)
            }
        };
        mapped.map_err(|error| self.explain(&error))
    }

    /// What the packing says of the same bytes: it names row and column.
    #[cold]
    fn explain(&self, error: &MapError) -> FormatError {
        let (rows, cols) = self.shape();
        let bytes = self.checkpoint.file.bytes(&self.source.info);
        let tensor = PackedTensor {
            outside: Some(&self.scales),
            ..packed(bytes, rows, cols)
        };
        let error = match self.packing.unpack(&tensor) {
            Err(named) => named,
            Ok(_) => FormatError::new(bitnet_formats::ErrorCode::Malformed, error.to_string()),
        };
        self.checkpoint.place(error, &self.source.info)
    }
}
