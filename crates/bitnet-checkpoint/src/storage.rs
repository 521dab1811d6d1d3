//! Ways to store a linear: one file and one row each.
//!
//! Invariant: what depends on the way in which a linear is stored is asked of its row. Opening tries the
//! rows in their order, and the first that recognizes a linear stores it; no code outside this folder tells
//! the rows apart.

mod affine;
mod affine_table;
pub(crate) mod among;
mod beside;
mod codes;
mod contract;
mod floats;
mod gpu;
mod hf_u8;
mod hf_values;
mod master;
mod packed;
mod scale_types;
pub(crate) mod tensors;
mod tiles;
pub(crate) mod unmarked;
pub(crate) mod values;
mod written;

pub use affine::MLX_PACKING;
pub use affine_table::CodedRows;
pub use beside::weight_scale_bytes;
pub(crate) use contract::{Asked, Found, Marks, Said, Stored};
pub use contract::{LinearSource, Storage};
pub use gpu::GPU_PACKING;
pub use hf_u8::HF_PACKING;
pub use scale_types::{ScaleTypes, SharedScales, check_float, is_exact_scale, rounded_scales};
pub use tiles::{TILES_ALIGNMENT, TILES_FORMAT, TILES_VERSION, is_tiles, tiles_entry, tiles_shape};
pub use written::{Form, Made, Output, Part, ScaleForm, WriteStorage, scale_name};

pub(crate) use affine::{module as affine_module, refuse_quantized};
pub(crate) use affine_table::{AffineTable, affine_table};
pub(crate) use beside::value as scale_value;
pub(crate) use codes::packed;
pub(crate) use hf_u8::neither_shape;

/// The rows that are written, for targets to name.
pub mod rows {
    pub use super::affine::Affine;
    pub use super::floats::Floats;
    pub use super::gpu::GpuInt2;
    pub use super::hf_u8::HfU8;
    pub use super::master::Master;
    pub use super::packed::Packed;
    pub use super::tiles::Tiles;
}

use bitnet_formats::FormatError;
use tensors::Tensors;

/// Every way to store a linear. Adding one is a file, a `mod` line and a row.
///
/// A row that is marked by names, metadata or types stands before one that is told by shapes or values.
pub static STORAGES: &[&dyn Storage] = &[
    &gpu::GpuInt2,
    &tiles::Tiles,
    &affine::Affine,
    &packed::Packed,
    &master::Master,
    &hf_u8::HfU8,
    &hf_values::HfValues,
    &floats::Floats,
];

/// The rows that a checkpoint can have by what it says about all of its linears.
pub(crate) struct Rows(Vec<&'static dyn Storage>);

impl Rows {
    /// # Errors
    /// A version of a way to store linears that this program does not know.
    pub(crate) fn of(marks: &Marks<'_>) -> Result<Self, FormatError> {
        let mut rows = Vec::with_capacity(STORAGES.len());
        for row in STORAGES {
            if row.applies(marks)? {
                rows.push(*row);
            }
        }
        Ok(Self(rows))
    }

    /// The name that a checkpoint of these rows has for the tensor of a slot, where it is not the family's.
    ///
    /// # Errors
    /// `missing-tensor` for a slot that such a checkpoint does not have.
    pub(crate) fn name_of(&self, slot: crate::slot::Slot) -> Result<Option<String>, FormatError> {
        for row in &self.0 {
            if let Some(name) = row.name_of(slot)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// How a linear is stored; `None` where no row recognizes it.
    ///
    /// # Errors
    /// A linear that is marked as stored in one way and does not fit it.
    pub(crate) fn recognize(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        for row in &self.0 {
            if let Some(found) = row.recognize(asked, tensors)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// The row of this name.
pub fn storage_by_name(name: &str) -> Option<&'static dyn Storage> {
    STORAGES.iter().copied().find(|row| row.name() == name)
}
