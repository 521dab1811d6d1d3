//! Dense tensors: norms, embeddings, output heads.
//!
//! Invariant: a tensor that [`Checkpoint::dense`] gave has finite values only.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Checkpoint, Source};
use crate::slot::Slot;
use crate::storage::{AffineTable, CodedRows, values};
use bitnet_formats::{
    Bytes, Encoding, ErrorCode, FormatError, PlainType, TensorInfo, dense_to_f32,
};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// What the numbers of a dense tensor mean (`formats/numerics.md`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum DenseMeaning {
    /// Themselves.
    #[default]
    AsStored,
    /// 1 plus themselves: gains of some norms.
    PlusOne,
    /// Themselves times a scale: biases that are added before a linear is scaled.
    Times(f32),
}

impl DenseMeaning {
    /// Makes values of numbers that were widened.
    pub fn apply(self, numbers: &mut [f32]) {
        match self {
            Self::AsStored => {}
            Self::PlusOne => numbers.iter_mut().for_each(|number| *number += 1.0),
            Self::Times(scale) => numbers.iter_mut().for_each(|number| *number *= scale),
        }
    }
}

/// A dense tensor as it lies in the file, or as the numbers that its codes stand for; every value finite.
#[derive(Debug, Clone)]
pub struct DenseTensor<'a> {
    /// How its elements are stored.
    pub encoding: Encoding,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// The bytes.
    pub bytes: Bytes,
    /// What the numbers of `bytes` mean.
    pub meaning: DenseMeaning,
    /// Whether `bytes` are in another form than the file's: rates of a Gated DeltaNet, or rows that stand in another order there.
    pub is_shaped: bool,
    /// Name, place and length in the file.
    pub info: &'a TensorInfo,
}

impl DenseTensor<'_> {
    /// The values of some of its bytes, whole rows or all.
    ///
    /// # Errors
    /// A type that is not dense; a length that does not fit.
    pub fn widen(&self, bytes: &[u8], out: &mut [f32]) -> Result<(), FormatError> {
        dense_to_f32(self.encoding, bytes, out).map_err(|e| e.in_tensor(&self.info.name))?;
        self.meaning.apply(out);
        Ok(())
    }
}

impl Checkpoint {
    /// A dense tensor. The first call for a slot reads it all, to refuse NaN and infinity.
    ///
    /// # Errors
    /// `missing-tensor` for a slot this network does not have, `wrong-type` for a linear,
    /// `non-finite` with the element.
    pub fn dense(&self, slot: Slot) -> Result<DenseTensor<'_>, FormatError> {
        let (tensor, finite) = self.dense_source(slot)?;
        if !finite.load(Ordering::Relaxed) {
            self.as_opened(tensor.info, || check_dense(&tensor))
                .map_err(|e| self.place(e, tensor.info))?;
            finite.store(true, Ordering::Relaxed);
        }
        Ok(tensor)
    }

    /// Whether the values of a dense tensor are made of the numbers stored, or stand in another order.
    pub fn dense_is_shaped(&self, slot: Slot) -> bool {
        matches!(
            self.sources.get(&slot),
            Some(Source::Dense { form, .. }) if form.shaping.is_some()
        )
    }

    fn table(&self, slot: Slot) -> Option<(&TensorInfo, &AffineTable)> {
        match self.sources.get(&slot) {
            Some(Source::Dense { form, info, .. }) => form.table.as_ref().map(|t| (info, t)),
            _ => None,
        }
    }

    /// The type of the numbers of a dense tensor, as [`dense`](Self::dense) gives them, and how they are stored, for
    /// people. `None` for a linear.
    pub fn dense_encoding(&self, slot: Slot) -> Option<(Encoding, String)> {
        match self.sources.get(&slot)? {
            Source::Linear(_) => None,
            Source::Dense { form, info, .. } => Some(match &form.table {
                None => (info.encoding, info.encoding.name()),
                Some(table) => (Encoding::Plain(PlainType::F32), table.describe()),
            }),
        }
    }

    /// The tensors of scales and biases of embeddings or a head that are stored in codes, but are no trits.
    pub fn coded_by(&self, slot: Slot) -> Option<[&TensorInfo; 2]> {
        let (_, table) = self.table(slot)?;
        Some([&table.scales, &table.biases])
    }

    /// The rows of embeddings or a head that are stored in codes, but are no trits; `None` for every other tensor. For
    /// readers that do not want all of its numbers in memory; each checks the rows that it uses.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn coded_rows(&self, slot: Slot) -> Result<Option<CodedRows>, FormatError> {
        let Some((info, table)) = self.table(slot) else {
            return Ok(None);
        };
        let rows = table.open(&self.file, info);
        rows.map(Some).map_err(|e| self.place(e, info))
    }

    /// What the numbers of a dense tensor mean.
    pub fn dense_meaning(&self, slot: Slot) -> DenseMeaning {
        match self.sources.get(&slot) {
            Some(Source::Dense { form, .. }) => form.meaning,
            _ => DenseMeaning::AsStored,
        }
    }

    /// A dense tensor without a look at its values: for readers that check the rows they use, and
    /// must not wait for the others.
    ///
    /// # Errors
    /// As [`dense`](Self::dense), but for `non-finite`.
    pub fn dense_unread(&self, slot: Slot) -> Result<DenseTensor<'_>, FormatError> {
        self.dense_source(slot).map(|(tensor, _)| tensor)
    }

    fn dense_source(&self, slot: Slot) -> Result<(DenseTensor<'_>, &AtomicBool), FormatError> {
        let (info, shape, form, finite) = match self.source(slot)? {
            Source::Dense {
                info,
                shape,
                form,
                finite,
            } => (info, shape, form, finite),
            Source::Linear(source) => {
                return Err(self.place(
                    FormatError::new(
                        ErrorCode::WrongType,
                        "expected a dense tensor, found a linear",
                    ),
                    &source.info,
                ));
            }
        };
        let (encoding, bytes) = match (&form.table, &form.shaping) {
            (Some(table), _) => {
                let rows = table.open(&self.file, info);
                let bytes = rows.and_then(|rows| rows.widened());
                let bytes = bytes.map_err(|e| self.place(e, info))?;
                (Encoding::Plain(PlainType::F32), bytes)
            }
            (None, None) => (info.encoding, self.file.read(info)?),
            (None, Some(shaping)) => {
                let shaped = shaping.canonical(info.encoding, &self.file.read(info)?, shape);
                shaped.map_err(|e| self.place(e, info))?
            }
        };
        let tensor = DenseTensor {
            encoding,
            shape,
            bytes,
            meaning: form.meaning,
            is_shaped: form.shaping.is_some(),
            info,
        };
        Ok((tensor, finite))
    }
}

/// Refuses NaN and infinity in a dense tensor.
fn check_dense(tensor: &DenseTensor<'_>) -> Result<(), FormatError> {
    let cols = if tensor.shape.len() > 1 {
        tensor.shape.last().copied().unwrap_or(0)
    } else {
        0
    };
    // the only floats of a block are its f16 factors; everything they multiply is a small integer
    let block = match tensor.encoding {
        Encoding::Plain(plain) => return values::check_finite(plain, &tensor.bytes, cols),
        Encoding::Block(block) => block,
        Encoding::Ternary(_) | Encoding::Foreign(_) | Encoding::Unknown(_) => return Ok(()),
    };
    let is_bad = |bytes: &[u8]| {
        let mut exponents = block.exponents().iter();
        exponents.any(|at| bytes.get(*at).is_some_and(|byte| byte & 0x7c == 0x7c))
    };
    let bad = tensor
        .bytes
        .par_chunks_exact(block.block_bytes())
        .position_first(is_bad);
    match bad {
        None => Ok(()),
        Some(i) => Err(FormatError::new(
            ErrorCode::NonFinite,
            format!("block {i}: expected a finite scale, found NaN or infinity"),
        )),
    }
}
