//! Linears whose tiles a kernel reads where they lie in the mapped file (`formats/packed.md`).
//!
//! Invariant: scales of tiles are computed with as they are stored, whether the tiles are mapped or
//! packed again, so that every kernel gives the same bits whatever a file says.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::Checkpoint;
use crate::slot::Slot;
use crate::storage::{LinearSource, packed};
use bitnet_formats::{Bytes, ErrorCode, FormatError, PackedTensor, Packing};
use bitnet_ternary::Scales;

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
        let (Some(packing), true) = (source.packing, source.is_mapped()) else {
            return Ok(None);
        };
        let Some(scales) = self.packed_scales_of(slot)? else {
            return Ok(None);
        };
        Ok(Some(Tiles {
            checkpoint: self,
            source,
            packing,
            scales,
        }))
    }

    /// Asks the system to keep tiles in huge pages, without which a token takes up to an eighth longer: it
    /// touches every page once. From the start of the file on, because a huge page lies at a multiple of
    /// its size there, and tiles come first.
    pub fn prefer_huge_tiles(&self) {
        for (number, part) in self.file.parts.iter().enumerate() {
            let here = |linear: &&LinearSource| linear.is_mapped() && linear.info.part == number;
            let end = |linear: &LinearSource| linear.info.offset.saturating_add(linear.info.len);
            let ends = self.linears().filter(here).map(end);
            part.prefer_huge_pages(0..ends.max().unwrap_or(0));
        }
    }

    /// The layout of each linear that is stored as tiles, beside scales of the structure that it has
    /// (their values are absent).
    pub fn tile_layouts(&self) -> impl Iterator<Item = (&'static str, Scales)> + '_ {
        self.linears().filter_map(|linear| {
            let structure = linear.storage.mapped_structure(linear)?;
            Some((linear.packing?.name(), structure))
        })
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

    /// The tiles: a view of the file where it is mapped.
    ///
    /// # Errors
    /// As [`Source::read`](bitnet_formats::Source::read).
    pub fn bytes(&self) -> Result<Bytes, FormatError> {
        self.checkpoint.file.read(&self.source.info)
    }

    /// Why a kernel refused the bytes: the packing names row and column; `otherwise` is said if the
    /// packing finds nothing wrong with them.
    #[cold]
    pub fn explain(&self, otherwise: &str) -> FormatError {
        let (rows, cols) = self.shape();
        let bytes = match self.bytes() {
            Ok(bytes) => bytes,
            Err(error) => return error,
        };
        let tensor = PackedTensor {
            outside: Some(&self.scales),
            ..packed(&bytes, rows, cols)
        };
        let error = match self.packing.unpack(&tensor) {
            Err(named) => named,
            Ok(_) => FormatError::new(ErrorCode::Malformed, otherwise),
        };
        self.checkpoint.place(error, &self.source.info)
    }
}
