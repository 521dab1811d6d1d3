//! Dense tensors: norms, embeddings, output heads.
//!
//! Invariant: a tensor that [`Checkpoint::dense`] gave, and a piece that [`DenseReader::read`] gave, has finite values only.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Checkpoint, Source};
use crate::slot::Slot;
use crate::storage::{AffineTable, CodedRows, values};
use bitnet_formats::{
    Bytes, Encoding, ErrorCode, FormatError, PlainType, TensorInfo, dense_to_f32,
};
use rayon::prelude::*;
use std::ops::Range;
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
    /// The bytes, or those of a piece ([`DenseReader::read`]).
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
        let reader = self.dense_reader(slot)?;
        reader.read(0..reader.len())
    }

    /// Whether the file has the bytes of a dense tensor as [`dense_reader`](Self::dense_reader) gives them.
    pub fn dense_is_as_stored(&self, slot: Slot) -> bool {
        matches!(
            self.sources.get(&slot),
            Some(Source::Dense { form, .. }) if form.shaping.is_none() && form.table.is_none()
        )
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
        let reader = self.dense_reader(slot)?;
        reader.read_unchecked(0..reader.len())
    }

    /// A dense tensor, to be read in pieces. Nothing of a tensor that the file holds as it is was read then; of one in
    /// codes the codes were, and one that stands in another form in the file was read whole.
    ///
    /// # Errors
    /// As [`dense`](Self::dense), but for `non-finite`.
    pub fn dense_reader(&self, slot: Slot) -> Result<DenseReader<'_>, FormatError> {
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
        let (encoding, held) = match (&form.table, &form.shaping) {
            (Some(table), _) => {
                let rows = table.open(&self.file, info);
                let rows = rows.map_err(|e| self.place(e, info))?;
                (Encoding::Plain(PlainType::F32), Held::Codes(rows))
            }
            (None, None) => (info.encoding, Held::File),
            (None, Some(shaping)) => {
                let shaped = shaping.canonical(info.encoding, &self.file.read(info)?, shape);
                let (encoding, bytes) = shaped.map_err(|e| self.place(e, info))?;
                (encoding, Held::Made(bytes))
            }
        };
        Ok(DenseReader {
            checkpoint: self,
            tensor: DenseTensor {
                encoding,
                shape,
                bytes: Bytes::default(),
                meaning: form.meaning,
                is_shaped: form.shaping.is_some(),
                info,
            },
            held,
            finite,
        })
    }
}

/// Where the bytes of a dense tensor come from.
#[derive(Debug)]
enum Held {
    /// The file has them.
    File,
    /// They were made of those of the file.
    Made(Bytes),
    /// They are made of codes, row by row.
    Codes(CodedRows),
}

/// A dense tensor whose bytes are read in pieces.
#[derive(Debug)]
pub struct DenseReader<'a> {
    checkpoint: &'a Checkpoint,
    /// Without bytes.
    tensor: DenseTensor<'a>,
    held: Held,
    finite: &'a AtomicBool,
}

impl<'a> DenseReader<'a> {
    /// Everything but the bytes.
    pub fn tensor(&self) -> &DenseTensor<'a> {
        &self.tensor
    }

    /// How many bytes the whole tensor has, in the type of [`tensor`](Self::tensor).
    pub fn len(&self) -> u64 {
        match &self.held {
            Held::File => self.tensor.info.len,
            Held::Made(bytes) => bytes.len() as u64,
            Held::Codes(rows) => rows.widened_len(),
        }
    }

    /// Whether the tensor has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tensor with the bytes of a range, which begins and ends between two elements or blocks. The values are finite.
    ///
    /// # Errors
    /// `non-finite` with the element; files that cannot be read; a range that is not in the tensor.
    pub fn read(&self, range: Range<u64>) -> Result<DenseTensor<'a>, FormatError> {
        let info = self.tensor.info;
        if self.finite.load(Ordering::Relaxed) {
            return self.read_unchecked(range);
        }
        let read = || {
            let piece = self.read_unchecked(range.clone())?;
            check_dense(&piece, range.start)?;
            Ok(piece)
        };
        let piece = self.checkpoint.as_opened(info, read);
        let piece = piece.map_err(|e| self.checkpoint.place(e, info))?;
        if range == (0..self.len()) {
            self.finite.store(true, Ordering::Relaxed);
        }
        Ok(piece)
    }

    /// As [`read`](Self::read), without a look at the values.
    fn read_unchecked(&self, range: Range<u64>) -> Result<DenseTensor<'a>, FormatError> {
        let info = self.tensor.info;
        let is_whole = range == (0..self.len());
        let bytes = match &self.held {
            Held::File if is_whole => self.checkpoint.file.read(info)?,
            Held::File => self.checkpoint.file.read_part(info, range)?,
            Held::Made(bytes) => part_of(bytes, &range)?,
            Held::Codes(rows) => rows.widened(range)?,
        };
        Ok(DenseTensor {
            bytes,
            ..self.tensor.clone()
        })
    }
}

/// Some of the bytes that are in memory.
fn part_of(bytes: &Bytes, range: &Range<u64>) -> Result<Bytes, FormatError> {
    let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX);
    bytes.slice(at(range.start)..at(range.end)).ok_or_else(|| {
        let message = format!("expected a range in {} bytes, found {range:?}", bytes.len());
        FormatError::new(ErrorCode::WrongShape, message)
    })
}

/// Refuses NaN and infinity in a piece of a dense tensor that begins `start` bytes behind the tensor's beginning.
fn check_dense(tensor: &DenseTensor<'_>, start: u64) -> Result<(), FormatError> {
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let cols = if tensor.shape.len() > 1 {
        tensor.shape.last().copied().unwrap_or(0)
    } else {
        0
    };
    // the only floats of a block are its f16 factors; everything they multiply is a small integer
    let block = match tensor.encoding {
        Encoding::Plain(plain) => {
            let first = start.checked_div(plain.size()).unwrap_or(0);
            return values::check_finite(plain, &tensor.bytes, first, cols);
        }
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
    let first = start.checked_div(block.block_bytes()).unwrap_or(0);
    match bad.map(|at| at.saturating_add(first)) {
        None => Ok(()),
        Some(i) => Err(FormatError::new(
            ErrorCode::NonFinite,
            format!("block {i}: expected a finite scale, found NaN or infinity"),
        )),
    }
}
