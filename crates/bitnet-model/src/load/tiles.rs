//! Tiles of a file as matrices of a kernel (`formats/packed.md`).
//!
//! Invariant: a kernel gets tiles only in the layout that it reads, and after every byte was checked.

use bitnet_checkpoint::{Checkpoint, Tiles};
use bitnet_formats::FormatError;
use bitnet_kernels::{Backend, PackedMatrix};
use std::sync::Arc;

/// The fastest kernel of this machine that reads all linears of the checkpoint where they lie in the file;
/// the fastest kernel of all if none does, or if no linear is stored as tiles.
pub fn best_backend(checkpoint: &Checkpoint) -> Backend {
    Backend::available()
        .find(|backend| {
            checkpoint
                .tile_layouts()
                .all(|(layout, scales)| backend.layout(&scales) == layout)
        })
        .unwrap_or_else(Backend::best)
}

/// Whether tiles have the layout that a kernel reads.
pub(super) fn are_for(tiles: &Tiles<'_>, backend: Backend) -> bool {
    backend.layout(tiles.scales()) == tiles.layout()
}

/// The matrix over the bytes of the file. Reads all of it, to refuse bytes that stand for no trits.
///
/// # Errors
/// `bad-code` with row and column; `malformed` if the tiles cannot be used in place.
pub(super) fn map(tiles: &Tiles<'_>, backend: Backend) -> Result<PackedMatrix, FormatError> {
    let (bytes, scales) = (tiles.bytes()?, tiles.scales().clone());
    let range = 0..bytes.len();
    let mapped = PackedMatrix::mapped(backend, tiles.shape(), scales, Arc::new(bytes), range);
    mapped.map_err(|error| tiles.explain(&error.to_string()).because(error))
}
