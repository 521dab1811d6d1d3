//! Checkpoints of MLX: codes, scales and biases of a linear in three tensors (`formats/packing/mlx_2bit.md`).
//!
//! Invariant: a module is read as `config.json` says it is stored, its own settings before those of all; what
//! the tensors are then has to fit. The values are checked when they are read.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::among;
use super::codes::rows_per_piece;
use super::contract::{Asked, Found, LinearSource, Marks, Storage, Stored};
use super::scale_types::{ScaleTypes, SharedScales, check_float, shared_scales_of};
use super::tensors::{Tensors, error, missing};
use super::values;
use super::written::{Form, Made, Output, PackedEntry, Part, ScaleForm, WriteStorage, part};
use crate::config::{ActivationQuantization, Config};
use crate::family::{self, AffineForm, HfStorage, Quantization, ScaleDirection};
use crate::rotation::ROTATION_KEYS;
use bitnet_formats::{
    Affine as Codes, Encoding, ErrorCode, FormatError, PlainType, ScaleRounding, TensorFile,
    TensorInfo, affine_rows, affine_scales, binary_rows, dense_len,
};
use bitnet_ternary::{Scales, TernaryMatrix};
use rayon::prelude::*;

/// The packing of such checkpoints.
pub const MLX_PACKING: &str = "mlx_2bit";
/// One scale per row, in the place of scales and biases.
const ROW_SCALE: &str = "row_alpha";
/// Columns of a scale that is the one of its row.
const ROW_GROUP: usize = 32;
/// Codes in one u32.
const PER_WORD: usize = 16;

/// The module of a weight.
pub(crate) fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Whether a tensor has scales beside it.
pub(super) fn is_quantized(file: &TensorFile, weight: &TensorInfo) -> bool {
    let has = |role| file.tensor(&format!("{}.{role}", module(&weight.name)));
    has("scales").or_else(|| has(ROW_SCALE)).is_some()
}

/// Codes of a word of the tensor of weights.
fn per_word(bits: usize) -> usize {
    match bits {
        1 => 32,
        _ => PER_WORD,
    }
}

/// Bits of the codes of a linear that was recognized: its words tell.
fn bits_of(linear: &LinearSource) -> usize {
    let words = linear.cols.checked_div(per_word(1)).unwrap_or(0);
    match linear.info.shape == [linear.rows, words] {
        true => 1,
        false => 2,
    }
}

/// Refuses a norm that is quantized.
pub(crate) fn refuse_quantized(file: &TensorFile, weight: &TensorInfo) -> Result<(), FormatError> {
    if !is_quantized(file, weight) {
        return Ok(());
    }
    let message = "expected no scales beside a norm, found some";
    Err(error(ErrorCode::WrongType, weight, message.to_owned()))
}

/// The one scale of every row of a linear, if it is stored so.
fn row_scale(
    asked: &Asked<'_>,
    tensors: &mut Tensors<'_>,
) -> Result<Option<TensorInfo>, FormatError> {
    let module = module(&asked.info.name);
    let has_scales = asked.marks.file.tensor(&format!("{module}.scales"));
    let name = format!("{module}.{ROW_SCALE}");
    let Some(found) = tensors.find(&[&name]).filter(|_| has_scales.is_none()) else {
        return Ok(None);
    };
    let Encoding::Plain(plain) = found.encoding else {
        let message = format!("expected f16, bf16 or f32, found {}", found.encoding.name());
        return Err(error(ErrorCode::WrongType, found, message));
    };
    if !plain.is_float_weight() {
        let message = format!(
            "expected f16, bf16 or f32, found {}",
            plain.safetensors_name()
        );
        return Err(error(ErrorCode::WrongType, found, message));
    }
    let (leading, first) = match asked.shared {
        Some(shared) => (shared.leading.clone(), shared.first),
        None => (vec![asked.rows], 0),
    };
    if found.shape != leading {
        let message = format!("expected shape {leading:?}, found {:?}", found.shape);
        return Err(error(ErrorCode::WrongShape, found, message));
    }
    let bytes = |rows: usize| (rows as u64).saturating_mul(plain.size() as u64);
    Ok(Some(TensorInfo {
        shape: vec![asked.rows],
        offset: found.offset.saturating_add(bytes(first)),
        len: bytes(asked.rows),
        ..found.clone()
    }))
}

/// The scales or the biases of a module.
pub(super) fn affine_tensor(
    asked: &Asked<'_>,
    tensors: &mut Tensors<'_>,
    role: &str,
    shape: &[usize],
) -> Result<TensorInfo, FormatError> {
    let name = format!("{}.{role}", module(&asked.info.name));
    let found = tensors.find(&[&name]).ok_or_else(|| missing(&[&name]))?;
    match found.encoding {
        Encoding::Plain(plain) if plain.is_float_weight() => {}
        other => {
            let message = format!("expected f16, bf16 or f32, found {}", other.name());
            return Err(error(ErrorCode::WrongType, found, message));
        }
    }
    let found = match asked.shared {
        Some(shared) => among::matrix(found, shared, asked.rows)?,
        None => found.clone(),
    };
    if found.shape != shape {
        let message = format!("expected shape {shape:?}, found {:?}", found.shape);
        return Err(error(ErrorCode::WrongShape, &found, message));
    }
    Ok(found)
}

/// The row.
#[derive(Debug)]
pub struct Affine;

impl Storage for Affine {
    fn name(&self) -> &'static str {
        MLX_PACKING
    }

    fn page(&self) -> &'static str {
        "packing/mlx_2bit.md"
    }

    fn applies(&self, marks: &Marks<'_>) -> Result<bool, FormatError> {
        let said = marks.said.as_ref();
        Ok(said.is_some_and(|said| matches!(said.quantization, Quantization::Affine { .. })))
    }

    fn recognize(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        let (info, rows, cols) = (asked.info, asked.rows, asked.cols);
        let Some(said) = &asked.marks.said else {
            return Ok(None);
        };
        if !asked.slot.is_ternary() && !is_quantized(asked.marks.file, info) {
            return Ok(None);
        }
        let is_table = !asked.slot.is_ternary();
        let form = family::affine_form(said.config, module(&info.name), is_table)
            .map_err(|e| e.in_file(said.path))?;
        // the numbers of a table in wider codes are no trits
        let Some(AffineForm { bits, group }) = form.filter(AffineForm::is_trits) else {
            return Ok(None);
        };
        if info.encoding != Encoding::Plain(PlainType::U32) {
            let message = format!("expected u32 codes, found {}", info.encoding.name());
            return Err(error(ErrorCode::WrongType, info, message).hint(
                "if the module is not quantized, set quantization.MODULE to false in config.json",
            ));
        }
        let words = [rows, cols.checked_div(per_word(bits)).unwrap_or(0)];
        if !cols.is_multiple_of(group) || info.shape != words {
            let message = format!(
                "expected shape {words:?} ({rows} x {cols} in groups of {group}), found {:?}",
                info.shape
            );
            return Err(error(ErrorCode::WrongShape, info, message));
        }
        check_signs(asked, tensors)?;
        if let Some(scale) = row_scale(asked, tensors)? {
            let linear = LinearSource {
                beside: vec![scale],
                ..asked.linear(&Self)
            };
            return Ok(Some(linear.into()));
        }
        let shape = [rows, cols.checked_div(group).unwrap_or(0)];
        let mut beside = |role: &str| affine_tensor(asked, tensors, role, &shape);
        let beside = vec![beside("scales")?, beside("biases")?];
        let linear = LinearSource {
            beside,
            ..asked.linear(&Self)
        };
        Ok(Some(linear.into()))
    }

    fn describe(&self, linear: &LinearSource) -> String {
        match bits_of(linear) {
            1 => "mlx_1bit".to_owned(),
            _ => MLX_PACKING.to_owned(),
        }
    }

    /// The codes, by the values that they stand for.
    fn read(&self, stored: &Stored<'_>) -> Result<(Vec<i8>, Scales), FormatError> {
        let LinearSource {
            rows, cols, beside, ..
        } = stored.linear;
        let (rows, cols) = (*rows, *cols);
        let numbers = |info: &TensorInfo| match info.encoding {
            Encoding::Plain(plain) => values::small_values(plain, &stored.bytes_of(info)?)
                .map_err(|e| stored.place(e, info)),
            _ => Ok(Vec::new()),
        };
        let (group, scales, biases) = match beside.as_slice() {
            [scales, biases] => {
                let groups = scales.shape.last().copied().unwrap_or(0);
                let group = cols.checked_div(groups).unwrap_or(0);
                (group, numbers(scales)?, numbers(biases)?)
            }
            [alpha] => {
                let groups = cols.checked_div(ROW_GROUP).unwrap_or(0);
                let repeated = |alpha: f32| std::iter::repeat_n(alpha, groups);
                let scales: Vec<f32> = numbers(alpha)?.into_iter().flat_map(repeated).collect();
                let biases = scales.iter().map(|scale| -scale).collect();
                (ROW_GROUP, scales, biases)
            }
            _ => {
                let name = format!("{}.scales", module(&stored.linear.info.name));
                return Err(missing(&[&name]));
            }
        };
        let read = match bits_of(stored.linear) {
            1 => binary_rows,
            _ => affine_rows,
        };
        let codes = stored.bytes()?;
        let affine = Codes {
            codes: &codes,
            rows,
            cols,
            group,
            scales: &scales,
            biases: &biases,
        };
        let mut trits = vec![0; rows.saturating_mul(cols)];
        let mut magnitudes = vec![0.0; scales.len()];
        let step = rows_per_piece(cols);
        let per_row = scales.len().checked_div(rows).unwrap_or(0).max(1);
        trits
            .par_chunks_mut(step.saturating_mul(cols.max(1)))
            .zip(magnitudes.par_chunks_mut(step.saturating_mul(per_row)))
            .enumerate()
            .try_for_each(|(i, (trits, magnitudes))| {
                read(&affine, i.saturating_mul(step), trits, magnitudes)
            })?;
        let scales = Scales::PerGroup {
            group,
            scales: magnitudes,
        };
        Ok((trits, scales))
    }

    /// A scale and a bias have to agree even where they multiply nothing.
    fn checks_silent_scales(&self) -> bool {
        true
    }
}

impl WriteStorage for Affine {
    fn row(&self) -> &'static dyn Storage {
        &Self
    }

    /// MLX's three tensors of a linear.
    fn write(&self, output: &Output<'_>) -> Result<Vec<Part>, FormatError> {
        let packing = output.form.required_packing()?;
        let (rows, cols) = (output.source.rows, output.source.cols);
        let SharedScales { group, plain } = required_shared(output.shared)?;
        let len = packing.packed_len(rows, cols)?;
        let codes = output.weights(
            Encoding::Plain(PlainType::U32),
            vec![rows, cols / PER_WORD],
            len,
            Made::Codes(packing),
        );
        let mut parts = vec![codes];
        let groups = cols.checked_div(group).unwrap_or(0);
        for (role, is_negative) in [("scales", false), ("biases", true)] {
            let encoding = Encoding::Plain(plain);
            let len = dense_len(encoding, rows.saturating_mul(groups), groups)?;
            let form = ScaleForm {
                group: Some(group),
                is_negative,
                is_last: is_negative,
                ..ScaleForm::multipliers(output.slot, plain)
            };
            let name = format!("{}.{role}", module(output.name));
            parts.push(part(
                name,
                encoding,
                vec![rows, groups],
                len,
                Made::Scales(form),
            ));
        }
        Ok(parts)
    }

    fn check(
        &self,
        _form: &Form,
        shared: Option<SharedScales>,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        check_float(matrix, required_shared(shared)?.plain, rounding)
    }

    fn fits(
        &self,
        _form: &Form,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        let SharedScales { group, plain } = shared_scales_of(matrix)?;
        affine_scales(matrix, group)?;
        check_float(matrix, plain, rounding)
    }

    /// The type the model is kept in first: MLX computes in the type of its scales.
    fn shared_scales(&self, config: &Config, computed_in: Option<PlainType>) -> Option<ScaleTypes> {
        Some(match (self.is_pack(config), computed_in) {
            (true, _) => ScaleTypes::of_packs(),
            (false, Some(PlainType::Bf16)) => ScaleTypes::new(PlainType::Bf16),
            (false, _) => ScaleTypes::new(PlainType::F16),
        })
    }

    /// Programs for MLX rotate only what a pack of their own kind says is rotated.
    fn is_pack(&self, config: &Config) -> bool {
        config.rotation.is_some()
    }

    /// There is one kind of packs, that of hybrids.
    fn check_network(&self, config: &Config) -> Result<(), FormatError> {
        let message = match (&config.rotation, &config.hybrid) {
            (None, _) => return Ok(()),
            (Some(_), None) => {
                "the weights are rotated, and no program for MLX rotates the inputs of this network"
            }
            (Some(_), Some(_))
                if config.activation_quantization != ActivationQuantization::None =>
            {
                "programs for MLX do not quantize the inputs of rotated weights, and this network does"
            }
            (Some(_), Some(_)) => return Ok(()),
        };
        Err(FormatError::new(ErrorCode::TargetCannotHold, message)
            .in_tensor(ROTATION_KEYS)
            .hint("choose a GGUF target, packed, hf-packed or hf-f16, which keep the rotation"))
    }

    fn file_metadata(&self, _packed: &[PackedEntry]) -> Vec<(String, String)> {
        vec![("format".to_owned(), "mlx".to_owned())]
    }

    /// mlx-lm stacks experts by their weights alone, so that codes have to be stacked before.
    fn stacks_experts(&self) -> bool {
        true
    }

    fn hf_storage(
        &self,
        shared: Option<SharedScales>,
        _kept: Option<ScaleDirection>,
    ) -> Option<HfStorage> {
        shared.map(|SharedScales { group, .. }| HfStorage::Affine { group })
    }
}

/// Refuses signs of a module that are not those of the rotation: programs for MLX read the tensor, not the keys.
pub(super) fn check_signs(asked: &Asked<'_>, tensors: &mut Tensors<'_>) -> Result<(), FormatError> {
    let name = format!("{}.signs", module(&asked.info.name));
    let rotation = asked.config.rotation.as_deref();
    let rotation = rotation.filter(|rotation| rotation.turns(asked.slot));
    let (info, rotation) = match (tensors.find(&[&name]), rotation) {
        (None, None) => return Ok(()),
        (Some(info), Some(rotation)) => (info, rotation),
        (None, Some(_)) => return Err(missing(&[&name])),
        (Some(info), None) => {
            let message = "expected no signs beside a module that is not rotated, found some";
            return Err(error(ErrorCode::ExtraTensor, info, message.to_owned()));
        }
    };
    let Encoding::Plain(plain) = info.encoding else {
        let message = format!("expected plain numbers, found {}", info.encoding.name());
        return Err(error(ErrorCode::WrongType, info, message));
    };
    tensors.check_shape(info, &[asked.cols])?;
    let found = values::small_values(plain, &asked.marks.file.read(info)?)
        .map_err(|e| e.in_tensor(&info.name))?;
    let signs = rotation.signs_of(asked.cols);
    let sign = |at: usize| f32::from(signs.get(at).copied().unwrap_or(1));
    match found
        .iter()
        .enumerate()
        .find(|(at, found)| **found != sign(*at))
    {
        None => Ok(()),
        Some((at, found)) => {
            let message = format!(
                "index {at}: expected {}, as the keys of the rotation say, found {found}",
                sign(at)
            );
            Err(error(ErrorCode::Malformed, info, message))
        }
    }
}

/// Group and type of scales that were chosen for all linears.
fn required_shared(shared: Option<SharedScales>) -> Result<SharedScales, FormatError> {
    shared.ok_or_else(|| FormatError::new(ErrorCode::Usage, "no group and type of scales chosen"))
}
