//! The `ternary-packed` profile of safetensors: linears as tiles that kernels read where they lie
//! (`formats/packed.md`).
//!
//! Invariant: every linear says its layout and its shape in the metadata, both are those the
//! configuration and this program know, and its tiles begin at a multiple of 64 bytes. Scales are computed with
//! as they are stored, whether a kernel reads the tiles in the file or they are packed again, so that every
//! kernel gives the same bits. The bytes themselves are checked when they are read or mapped.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::codes::{self, packed};
use super::contract::{Asked, Found, LinearSource, Marks, Storage, Stored};
use super::scale_types::SharedScales;
use super::tensors::{Tensors, error, missing};
use super::written::{
    Form, Made, Output, PackedEntry, Part, ScaleForm, WriteStorage, part, required, scale_name,
};
use crate::family::{HfStorage, ScaleDirection};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, PACKINGS, PackedTensor, Packing, PlainType, ScaleRounding,
    TensorFile, TensorInfo, dense_len, packing_by_name,
};
use bitnet_ternary::{GROUP_SIZES, Scales, TernaryMatrix};

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
fn is_profile(file: &TensorFile) -> Result<bool, FormatError> {
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

/// Scales of the structure that the shape of their tensor says.
fn with_structure(info: &TensorInfo, cols: usize, scales: Vec<f32>) -> Scales {
    match info.shape.as_slice() {
        [1] => Scales::PerTensor(scales.first().copied().unwrap_or(0.0)),
        [_, 1] => Scales::PerRow(scales),
        shape => Scales::PerGroup {
            group: cols
                .checked_div(shape.last().copied().unwrap_or(1))
                .unwrap_or(cols),
            scales,
        },
    }
}

/// The scales beside tiles, of a shape that recognizing checked.
fn stored_scales(stored: &Stored<'_>) -> Result<Scales, FormatError> {
    let LinearSource {
        rows,
        cols,
        packing: Some(packing),
        beside,
        ..
    } = stored.linear
    else {
        return Err(FormatError::new(ErrorCode::WrongType, "expected tiles"));
    };
    let [info] = beside.as_slice() else {
        return Err(missing(&[&format!("{}_scale", stored.linear.info.name)]));
    };
    let bytes = stored.bytes_of(info)?;
    let bytes = bytes.as_chunks::<4>().0;
    let values: Vec<f32> = bytes.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let scales = with_structure(info, *cols, values);
    let checked = PackedTensor {
        outside: Some(&scales),
        ..packed(&[], *rows, *cols)
    };
    packing.scales(&checked).map_err(|e| stored.place(e, info))
}

/// The row.
#[derive(Debug)]
pub struct Tiles;

impl Storage for Tiles {
    fn name(&self) -> &'static str {
        "tiles"
    }

    fn page(&self) -> &'static str {
        "packed.md"
    }

    fn applies(&self, marks: &Marks<'_>) -> Result<bool, FormatError> {
        match marks.said {
            Some(_) => is_profile(marks.file),
            None => Ok(false),
        }
    }

    /// Linears always are tiles, embeddings and head may be.
    fn recognize(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        let (info, rows, cols) = (asked.info, asked.rows, asked.cols);
        let file = asked.marks.file;
        if !asked.slot.is_ternary() && file.metadata.get(&info.name).is_none() {
            return Ok(None);
        }
        let packing = packing(file, info, rows, cols)?;
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
        let is_group = |n: usize| {
            GROUP_SIZES
                .iter()
                .any(|group| n.checked_mul(*group) == Some(cols))
        };
        let fits = match *scales.shape.as_slice() {
            [1] => true,
            [m, 1] => m == rows,
            [m, n] => m == rows && is_group(n),
            _ => false,
        };
        if !fits {
            let message = format!(
                "expected shape [1], [{rows}, 1] or [{rows}, groups of {GROUP_SIZES:?}], found {:?}",
                scales.shape
            );
            return Err(error(ErrorCode::WrongShape, scales, message));
        }
        let linear = LinearSource {
            packing: Some(packing),
            beside: vec![scales.clone()],
            ..asked.linear(&Self)
        };
        Ok(Some(linear.into()))
    }

    fn describe(&self, linear: &LinearSource) -> String {
        codes::describe(linear)
    }

    fn read(&self, stored: &Stored<'_>) -> Result<(Vec<i8>, Scales), FormatError> {
        let scales = stored_scales(stored)?;
        let LinearSource {
            rows,
            cols,
            packing: Some(packing),
            ..
        } = stored.linear
        else {
            return Err(FormatError::new(ErrorCode::WrongType, "expected tiles"));
        };
        let trits = codes::unpack(*packing, packed(&stored.bytes()?, *rows, *cols), &scales)?;
        Ok((trits, scales))
    }

    fn scales(&self, stored: &Stored<'_>) -> Result<Option<Scales>, FormatError> {
        stored_scales(stored).map(Some)
    }

    fn one_scale(&self, stored: &Stored<'_>) -> Option<f32> {
        let info = stored.linear.scale_tensor()?;
        match *stored.bytes_of(info).ok()? {
            [a, b, c, d] if info.shape == [1] => Some(f32::from_le_bytes([a, b, c, d])),
            _ => None,
        }
    }

    fn mapped_structure(&self, linear: &LinearSource) -> Option<Scales> {
        let info = linear.scale_tensor()?;
        Some(with_structure(info, linear.cols, Vec::new()))
    }

    fn marks_itself(&self) -> bool {
        true
    }
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

/// The packing of tiles with group scales: its blocks are part of any group.
const GROUPED_TILES: &str = "tile32-2bit";

impl WriteStorage for Tiles {
    fn row(&self) -> &'static dyn Storage {
        &Self
    }

    /// Tiles, and all scales beside them.
    fn write(&self, output: &Output<'_>) -> Result<Vec<Part>, FormatError> {
        let (rows, cols) = (output.source.rows, output.source.cols);
        let shape = (output.scale_shape)()?;
        let grouped = matches!(shape.as_slice(), [_, groups] if *groups > 1);
        let packing = required(self.packing_for(output.form, grouped))?;
        let tiles = output.weights(
            Encoding::Plain(PlainType::U8),
            tiles_shape(packing, rows, cols)?,
            packing.packed_len(rows, cols)?,
            Made::Codes(packing),
        );
        let encoding = Encoding::Plain(PlainType::F32);
        let len = dense_len(encoding, shape.iter().product(), 1)?;
        let made = Made::Scales(ScaleForm::multipliers(output.slot, PlainType::F32));
        Ok(vec![
            tiles,
            part(scale_name(output.name), encoding, shape, len, made),
        ])
    }

    fn check(
        &self,
        _form: &Form,
        _shared: Option<SharedScales>,
        _matrix: &TernaryMatrix,
        _rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        Ok(0.0)
    }

    fn holds_any_scales(&self) -> bool {
        true
    }

    fn packing_for(&self, form: &Form, grouped: bool) -> Option<&'static dyn Packing> {
        match grouped {
            true => packing_by_name(GROUPED_TILES),
            false => form.packing(),
        }
    }

    fn table_packing(&self, _form: &Form) -> Option<&'static dyn Packing> {
        packing_by_name(GROUPED_TILES)
    }

    fn file_metadata(&self, packed: &[PackedEntry]) -> Vec<(String, String)> {
        let said = [("format", TILES_FORMAT), TILES_VERSION];
        let said = said.map(|(key, text)| (key.to_owned(), text.to_owned()));
        let entries = packed
            .iter()
            .map(|(name, packing, rows, cols)| (name.clone(), tiles_entry(*packing, *rows, *cols)));
        said.into_iter().chain(entries).collect()
    }

    fn alignment(&self) -> Option<u64> {
        Some(TILES_ALIGNMENT)
    }

    fn hf_storage(
        &self,
        _shared: Option<SharedScales>,
        _kept: Option<ScaleDirection>,
    ) -> Option<HfStorage> {
        Some(HfStorage::Packed(ScaleDirection::Multiply))
    }
}
