//! Linears: where each comes from, and its trits and scales.
//!
//! Invariant: rows are given in the order of the Hugging Face checkpoint, whatever the file's; what is read from
//! a file that changed since it was opened is an error.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Checkpoint, Source};
use crate::family::ScaleDirection;
use crate::slot::Slot;
use crate::storage::{self, LinearSource, Stored};
use bitnet_formats::{Bytes, ErrorCode, FormatError, PackedTensor, Packing};
use bitnet_ternary::{Scales, TernaryMatrix};

impl Checkpoint {
    /// Whether a slot holds trits and scales: every linear of a layer does, embeddings and output head do where
    /// their type or their values say so.
    pub fn is_ternary(&self, slot: Slot) -> bool {
        matches!(self.sources.get(&slot), Some(Source::Linear(_)))
    }

    /// Where a linear comes from.
    ///
    /// # Errors
    /// `missing-tensor` for a slot this network does not have, `wrong-type` for a dense one.
    pub fn linear(&self, slot: Slot) -> Result<&LinearSource, FormatError> {
        match self.source(slot)? {
            Source::Linear(source) => Ok(source),
            Source::Dense { info, .. } => Err(self.place(
                FormatError::new(
                    ErrorCode::WrongType,
                    "expected a ternary linear, found a dense tensor",
                ),
                info,
            )),
        }
    }

    /// All linears, in no order.
    pub(super) fn linears(&self) -> impl Iterator<Item = &LinearSource> {
        self.sources.values().filter_map(|source| match source {
            Source::Linear(source) => Some(source),
            Source::Dense { .. } => None,
        })
    }

    fn stored<'a>(&'a self, linear: &'a LinearSource) -> Stored<'a> {
        Stored {
            file: &self.file,
            linear,
        }
    }

    /// A linear to be read a few rows at a time, on any thread, if its bytes allow it: tiles, or a packing
    /// with one scale, rows in order. `None`: read it with [`ternary`](Self::ternary).
    ///
    /// # Errors
    /// Whatever is wrong with its scale.
    pub fn ternary_rows(&self, slot: Slot) -> Result<Option<TernaryRows<'_>>, FormatError> {
        let source = self.linear(slot)?;
        let (Some(packing), Some(scales)) = (source.packing, self.packed_scales_of(slot)?) else {
            return Ok(None);
        };
        // scales that repeat are one scale, which only the trits can tell; those of tiles are as they are
        let known = matches!(scales, Scales::PerTensor(_)) || source.is_mapped();
        if !known || source.order.is_some() {
            return Ok(None);
        }
        Ok(Some(TernaryRows {
            checkpoint: self,
            source,
            bytes: self.file.read(&source.info)?,
            packing,
            scales,
        }))
    }

    /// The scales of a matrix that is stored as trits, without a look at these; `None` where only its values
    /// tell.
    ///
    /// # Errors
    /// Whatever is wrong with the scales.
    pub fn packed_scales_of(&self, slot: Slot) -> Result<Option<Scales>, FormatError> {
        let source = self.linear(slot)?;
        let scales = source.storage.scales(&self.stored(source));
        scales.map_err(|e| self.place(e, &source.info))
    }

    /// The scale of a linear, where it is one number that can be read without reading the weights. Anything
    /// wrong with it is found again, with its place, when the weights are read.
    pub fn one_scale(&self, slot: Slot) -> Option<f32> {
        let source = self.linear(slot).ok()?;
        source.storage.one_scale(&self.stored(source))
    }

    /// A ternary matrix, its rows in the order of the Hugging Face checkpoint. Reads the tensor in
    /// parallel on the current rayon pool; holds nothing else.
    ///
    /// # Errors
    /// Whatever is wrong with its bytes or scales, with row and column.
    pub fn ternary(&self, slot: Slot) -> Result<TernaryMatrix, FormatError> {
        let source = self.linear(slot)?;
        self.as_opened(&source.info, || self.read_ternary(source))
            .map_err(|e| self.place(e, &source.info))
    }

    fn read_ternary(&self, source: &LinearSource) -> Result<TernaryMatrix, FormatError> {
        let (trits, scales) = source.storage.read(&self.stored(source))?;
        let matrix = TernaryMatrix::new(source.rows, source.cols, trits, scales)
            .map_err(|e| FormatError::new(ErrorCode::Malformed, e.to_string()).because(e))?;
        match source.order {
            None => Ok(matrix),
            Some(order) => order.to_hf(&matrix),
        }
    }

    /// The scale stored beside a linear and what it means, for targets that keep it.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn stored_scale(&self, slot: Slot) -> Result<Option<(f32, ScaleDirection)>, FormatError> {
        let source = self.linear(slot)?;
        let Some((info, direction)) = source.outside() else {
            return Ok(None);
        };
        let value = storage::scale_value(&self.stored(source), info);
        let value = value.map_err(|e| self.place(e, info))?;
        Ok(Some((value, direction)))
    }

    /// The direction of the checkpoint's stored scales beside packed codes; `None` when there are none.
    pub fn scale_direction(&self) -> Option<ScaleDirection> {
        self.linears()
            .find_map(LinearSource::weight_scale)
            .map(|(_, direction)| direction)
    }

    /// Whether any linear is quantised by the absmean rule on reading.
    pub fn has_master_weights(&self) -> bool {
        self.linears().any(LinearSource::is_master)
    }

    /// Linears that are quantised by the absmean rule on reading.
    pub fn master_linears(&self) -> usize {
        self.linears().filter(|linear| linear.is_master()).count()
    }

    /// How much quantising by the absmean rule changes a linear of master weights: the sum of squares of the
    /// changes, and that of the weights. `None` for every other linear.
    ///
    /// # Errors
    /// As [`ternary`](Self::ternary).
    pub fn absmean_change(&self, slot: Slot) -> Result<Option<(f64, f64)>, FormatError> {
        let source = self.linear(slot)?;
        let change = source.storage.change(&self.stored(source));
        change.map_err(|e| self.place(e, &source.info))
    }
}

/// A linear that is read a few rows at a time ([`Checkpoint::ternary_rows`]).
pub struct TernaryRows<'a> {
    checkpoint: &'a Checkpoint,
    source: &'a LinearSource,
    bytes: Bytes,
    packing: &'static dyn Packing,
    scales: Scales,
}

impl TernaryRows<'_> {
    /// The packing of the bytes.
    pub fn packing(&self) -> &'static dyn Packing {
        self.packing
    }

    /// `(rows, cols)`
    pub fn shape(&self) -> (usize, usize) {
        (self.source.rows, self.source.cols)
    }

    /// The scales, as they are to be computed with.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The trits of the rows from `first` on, `(n, cols)`.
    ///
    /// # Errors
    /// Whatever is wrong with their bytes, with row and column.
    pub fn read(&self, first: usize, trits: &mut [i8]) -> Result<(), FormatError> {
        let tensor = PackedTensor {
            bytes: &self.bytes,
            rows: self.source.rows,
            cols: self.source.cols,
            outside: Some(&self.scales),
        };
        self.packing
            .unpack_rows(&tensor, first, trits)
            .map_err(|e| self.checkpoint.place(e, &self.source.info))
    }
}
