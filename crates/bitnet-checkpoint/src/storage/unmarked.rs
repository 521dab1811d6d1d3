//! Floats that nothing marks: trits times scales, or master weights.
//!
//! Invariant: evidence in the values decides, and master weights are read as such only if the caller states that
//! the model was trained with the absmean rule.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::contract::{LinearSource, Stored};
use super::master::Master;
use super::tensors::begins_as_numbers;
use super::values::{self, Evidence};
use bitnet_formats::{Encoding, ErrorCode, FormatError, TensorFile};

/// Whether the values show that these are master weights.
///
/// # Errors
/// Values of another type than floats.
pub(crate) fn shows_master(file: &TensorFile, linear: &LinearSource) -> Result<bool, FormatError> {
    let stored = Stored { file, linear };
    let Encoding::Plain(plain) = linear.info.encoding else {
        return Ok(false);
    };
    if begins_as_numbers(file, &linear.info, linear.cols)? {
        return Ok(true);
    }
    values::evidence(plain, &stored.bytes()?, linear.cols)
        .map(|found| found == Evidence::Master)
        .map_err(|e| e.in_tensor(&linear.info.name))
}

/// Reads a linear as master weights from now on.
pub(crate) fn take_as_master(linear: &mut LinearSource) {
    linear.storage = &Master;
    linear.beside.clear();
    linear.direction = None;
}

/// The error for weights that are not ternary, without a statement that they are master weights.
pub(crate) fn not_ternary(file: &TensorFile, linear: &LinearSource) -> FormatError {
    let stored = Stored { file, linear };
    let place = |e: FormatError| stored.place(e, &linear.info);
    let Encoding::Plain(plain) = linear.info.encoding else {
        return place(FormatError::new(
            ErrorCode::NotTernary,
            "expected ternary weights",
        ));
    };
    let figure = stored.bytes();
    let figure = figure.and_then(|bytes| values::absmean_error(plain, &bytes, linear.cols));
    match figure {
        Err(e) => place(e),
        Ok(figure) => place(
            FormatError::new(
                ErrorCode::NotTernary,
                format!(
                    "expected one magnitude per tensor, row or group, found ordinary weights; \
                     rounding them to trits would change them by {figure:.2} of their size"
                ),
            )
            .hint("pass --ternary-trained if these are master weights of a BitNet-trained model"),
        ),
    }
}
