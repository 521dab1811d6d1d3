//! The `ternary-packed` profile of safetensors: linears as tiles that kernels read where they lie
//! (`formats/packed.md`).
//!
//! Invariant: every linear says its layout and its shape in the metadata, both are those the
//! configuration and this program know, and its tiles begin at a multiple of 64 bytes. The bytes
//! themselves are checked by whoever reads or maps them.

use super::{Tensors, error, missing};
use crate::checkpoint::LinearRule;
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, PACKINGS, Packing, PlainType, TensorFile, TensorInfo,
};
use bitnet_ternary::GROUP_SIZES;

/// The value of `format` in the metadata.
pub const TILES_FORMAT: &str = "ternary-packed";
/// The key of the version, and the version that is written and read.
pub const TILES_VERSION: (&str, &str) = ("version", "1");
/// Where tiles begin in a file: at a multiple of a cache line.
pub const TILES_ALIGNMENT: u64 = 64;

/// What the metadata say of a matrix: its layout and shape.
pub fn tiles_entry(packing: &dyn Packing, rows: usize, cols: usize) -> String {
    format!("{} {rows}x{cols}", packing.name())
}

/// Whether a packing is one of tiles.
pub fn is_tiles(packing: &dyn Packing) -> bool {
    packing.name().starts_with("tile32-")
}

/// Shape of the U8 tensor that holds a matrix: tiles, blocks of a tile, bytes of a block.
///
/// # Errors
/// As [`Packing::packed_len`].
pub fn tiles_shape(
    packing: &dyn Packing,
    rows: usize,
    cols: usize,
) -> Result<Vec<usize>, FormatError> {
    packing.packed_len(rows, cols)?;
    let tile = if cols == 0 {
        0
    } else {
        packing.unit_len(rows, cols)
    };
    Ok(vec![rows.div_ceil(32), tile / 128, 128])
}

/// Whether a file is of this profile.
///
/// # Errors
/// `unknown-quantization` for a version that this program does not know.
pub(super) fn is_profile(file: &TensorFile) -> Result<bool, FormatError> {
    let text = |key| file.metadata.get(key).and_then(|v| v.as_str());
    if text("format") != Some(TILES_FORMAT) {
        return Ok(false);
    }
    let (key, known) = TILES_VERSION;
    match text(key) {
        Some(version) if version == known => Ok(true),
        other => {
            let found = other.unwrap_or("none");
            let message = format!("expected {TILES_FORMAT} version {known}, found {found}");
            Err(
                FormatError::new(ErrorCode::UnknownQuantization, message).hint(
                    "a newer release may read it; the checkpoint it was made from still converts",
                ),
            )
        }
    }
}

/// Whether the metadata say that a tensor holds tiles: linears always do, embeddings and head may.
pub(super) fn is_entry(file: &TensorFile, info: &TensorInfo) -> bool {
    file.metadata.get(&info.name).is_some()
}

/// The rule of one linear.
pub(super) fn rule(
    tensors: &mut Tensors<'_>,
    info: &TensorInfo,
    rows: usize,
    cols: usize,
) -> Result<LinearRule, FormatError> {
    let packing = packing(tensors.file, info, rows, cols)?;
    let shape = tiles_shape(packing, rows, cols)?;
    if info.encoding != Encoding::Plain(PlainType::U8) {
        let message = format!("expected u8 tiles, found {}", info.encoding.name());
        return Err(error(ErrorCode::WrongType, info, message));
    }
    if info.shape != shape {
        let message = format!(
            "expected shape {shape:?} ({rows} x {cols} in {}), found {:?}",
            packing.name(),
            info.shape
        );
        return Err(error(ErrorCode::WrongShape, info, message));
    }
    if !info.offset.is_multiple_of(TILES_ALIGNMENT) {
        let message = format!(
            "expected tiles at a multiple of {TILES_ALIGNMENT} bytes, found them at {}",
            info.offset
        );
        return Err(error(ErrorCode::Malformed, info, message).hint(
            "a program that edits safetensors may have moved them; convert the source again",
        ));
    }
    let scales = format!("{}_scale", info.name);
    let scales = tensors
        .find(&[&scales])
        .ok_or_else(|| missing(&[&scales]))?;
    if scales.encoding != Encoding::Plain(PlainType::F32) {
        let message = format!("expected f32 scales, found {}", scales.encoding.name());
        return Err(error(ErrorCode::WrongType, scales, message));
    }
    let fits = match scales.shape[..] {
        [1] => true,
        [m, 1] => m == rows,
        [m, n] => {
            m == rows
                && GROUP_SIZES
                    .iter()
                    .any(|group| n.checked_mul(*group) == Some(cols))
        }
        _ => false,
    };
    if !fits {
        let message = format!(
            "expected shape [1], [{rows}, 1] or [{rows}, groups of {GROUP_SIZES:?}], found {:?}",
            scales.shape
        );
        return Err(error(ErrorCode::WrongShape, scales, message));
    }
    Ok(LinearRule::Tiles {
        packing,
        scales: scales.clone(),
    })
}

/// The layout of a linear, which the metadata name together with its shape.
fn packing(
    file: &TensorFile,
    info: &TensorInfo,
    rows: usize,
    cols: usize,
) -> Result<&'static dyn Packing, FormatError> {
    let entry = file.metadata.get(&info.name).and_then(|v| v.as_str());
    let Some((layout, shape)) = entry.and_then(|entry| entry.split_once(' ')) else {
        let found = entry.map_or("none".to_owned(), |entry| format!("`{entry}`"));
        let message = format!("expected its layout and shape in the metadata, found {found}");
        return Err(error(ErrorCode::Malformed, info, message));
    };
    let known = || PACKINGS.iter().copied().filter(|p| is_tiles(*p));
    let Some(packing) = known().find(|p| p.name() == layout) else {
        let names: Vec<_> = known().map(Packing::name).collect();
        let message = format!(
            "expected {}, found the layout `{layout}`",
            names.join(" or ")
        );
        return Err(error(ErrorCode::UnknownQuantization, info, message)
            .hint("a newer release may read it; the checkpoint it was made from still converts"));
    };
    if entry != Some(tiles_entry(packing, rows, cols).as_str()) {
        let message = format!("expected {rows}x{cols} as the configuration says, found {shape}");
        return Err(error(ErrorCode::WrongShape, info, message));
    }
    Ok(packing)
}
