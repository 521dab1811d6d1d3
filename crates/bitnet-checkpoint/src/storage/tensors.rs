//! Tensors of a file by name, and which of them something asked for.
//!
//! Invariant: whatever is left over at the end is refused by name, or known to say nothing new.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::values;
use bitnet_formats::{Encoding, ErrorCode, FormatError, TensorFile, TensorInfo};
use std::collections::HashSet;

/// An error about one tensor.
pub(crate) fn error(code: ErrorCode, info: &TensorInfo, message: String) -> FormatError {
    FormatError::new(code, message).in_tensor(&info.name)
}

/// The error for a tensor that is not there, by the first of its names.
pub(crate) fn missing(names: &[&str]) -> FormatError {
    let name = names.first().copied().unwrap_or_default();
    FormatError::new(ErrorCode::MissingTensor, "expected this tensor, found none").in_tensor(name)
}

/// Tensors of a file by name, and which of them were asked for.
pub struct Tensors<'a> {
    /// The files.
    pub file: &'a TensorFile,
    used: HashSet<&'a str>,
}

/// Whether the first rows of floats are no trits times scales. What is not on this disk would otherwise be fetched
/// whole for a look.
pub(crate) fn begins_as_numbers(
    file: &TensorFile,
    info: &TensorInfo,
    cols: usize,
) -> Result<bool, FormatError> {
    /// Bytes of a look, unless a row is longer.
    const LOOK: u64 = 16 << 10;
    let Encoding::Plain(plain) = info.encoding else {
        return Ok(false);
    };
    let row = (cols.saturating_mul(plain.size())).max(1) as u64;
    let rows = LOOK.checked_div(row).unwrap_or(0).max(1);
    let look = file.read_part(info, 0..row.saturating_mul(rows))?;
    values::evidence(plain, &look, cols)
        .map(|found| found == values::Evidence::Master)
        .map_err(|e| e.in_tensor(&info.name))
}

impl<'a> Tensors<'a> {
    pub fn new(file: &'a TensorFile) -> Self {
        Self {
            file,
            used: HashSet::new(),
        }
    }

    /// The tensor of one of these names.
    pub fn find(&mut self, names: &[&str]) -> Option<&'a TensorInfo> {
        let info = names.iter().find_map(|name| self.file.tensor(name))?;
        self.used.insert(&info.name);
        Some(info)
    }

    /// Whether something asked for a tensor.
    pub(crate) fn is_used(&self, info: &TensorInfo) -> bool {
        self.used.contains(info.name.as_str())
    }

    /// Whether the numbers of a table of rows (embeddings, output head) are trits times scales: whatever wrote
    /// them, the network computes the same as from packed ones.
    pub fn is_ternary_table(
        &self,
        info: &TensorInfo,
        shape: &[usize],
    ) -> Result<bool, FormatError> {
        match (info.encoding, shape) {
            (Encoding::Plain(plain), [_, cols])
                if plain.is_float_weight() && info.shape == shape =>
            {
                if begins_as_numbers(self.file, info, *cols)? {
                    return Ok(false);
                }
                values::is_ternary(plain, &self.file.read(info)?, *cols)
                    .map_err(|e| e.in_tensor(&info.name))
            }
            _ => Ok(false),
        }
    }

    /// Refuses another shape than the network has.
    pub fn check_shape(&self, info: &TensorInfo, expected: &[usize]) -> Result<(), FormatError> {
        if info.shape == expected {
            return Ok(());
        }
        let message = format!("expected shape {expected:?}, found {:?}", info.shape);
        Err(error(ErrorCode::WrongShape, info, message))
    }

    /// A scale beside a linear: one float.
    pub fn scale(&mut self, name: &str) -> Result<Option<TensorInfo>, FormatError> {
        let Some(info) = self.find(&[name]) else {
            return Ok(None);
        };
        if info.shape.iter().product::<usize>() != 1 || info.shape.len() > 2 {
            let message = format!("expected shape [1], found {:?}", info.shape);
            return Err(error(ErrorCode::WrongShape, info, message));
        }
        match info.encoding {
            Encoding::Plain(plain) if plain.is_float_weight() => Ok(Some(info.clone())),
            other => {
                let message = format!("expected bf16, f16 or f32, found {}", other.name());
                Err(error(ErrorCode::WrongType, info, message))
            }
        }
    }

    /// Refuses every tensor that nothing asked for and that `tolerated` does not explain away.
    pub fn finish(
        &self,
        tolerated: impl Fn(&TensorInfo) -> Result<bool, FormatError>,
    ) -> Result<(), FormatError> {
        for info in self.file.tensors() {
            if self.used.contains(info.name.as_str()) || tolerated(info)? {
                continue;
            }
            let message = if info.name.ends_with(".bias") {
                "expected no biases, found one".to_owned()
            } else {
                format!(
                    "expected no tensor of this name, found {:?} {}",
                    info.shape,
                    info.encoding.name()
                )
            };
            return Err(error(ErrorCode::ExtraTensor, info, message).hint(
                "the configuration has no place for it: the model would compute something else",
            ));
        }
        Ok(())
    }

    /// Whether an output head that the configuration says is tied holds the same bytes as the
    /// embedding; an error naming both when not.
    pub fn is_tied_copy(
        &self,
        head: &TensorInfo,
        embedding: &TensorInfo,
    ) -> Result<bool, FormatError> {
        if head.encoding == embedding.encoding
            && head.shape == embedding.shape
            && self.file.read(head)? == self.file.read(embedding)?
        {
            return Ok(true);
        }
        let message = format!(
            "expected the bytes of `{}` (the configuration ties the two), found others",
            embedding.name
        );
        Err(error(ErrorCode::ExtraTensor, head, message))
    }
}
