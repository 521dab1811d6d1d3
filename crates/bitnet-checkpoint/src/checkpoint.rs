//! Where files become slots.
//!
//! Invariant: an open checkpoint has every slot of its configuration, each with the right shape and a
//! rule for how its bytes become numbers, and no tensor besides. The numbers themselves (NaN, code 3,
//! a second magnitude) are checked by whoever reads a tensor first, so that opening reads headers
//! only and converting reads every byte once.

mod inputs;
mod layout;
mod readings;
mod resolve;
mod rotation;
mod side_files;
mod tiles;
mod unread;
mod values;

pub use layout::{LayoutEvidence, LayoutReason};
pub use readings::{LayoutReading, LayoutSample, layout_readings};
pub use resolve::{
    GPU_PACKING, HF_PACKING, MLX_PACKING, TILES_ALIGNMENT, TILES_FORMAT, TILES_VERSION, is_tiles,
    tiles_entry, tiles_shape,
};
pub use rotation::{ROTATION_KEYS, Rotation};
pub use side_files::side_file_names;
pub use tiles::Tiles;
pub use unread::WRITER_KEYS;

use crate::config::Config;
use crate::family::{Family, ScaleDirection, UnknownKey};
use crate::slot::Slot;
use bitnet_formats::{
    Affine, BlockType, Container, Encoding, ErrorCode, FormatError, Gguf, Input, Limits,
    PackedTensor, Packing, PlainType, TensorFile, TensorInfo, affine_rows, dense_to_f32,
    read_side_file,
};
use bitnet_ternary::{Scales, TernaryMatrix};
use rayon::prelude::*;
use serde_json::Value;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// How a checkpoint is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Bounds for untrusted headers.
    pub limits: Limits,
    /// Forces a packing that shares a GGUF type id, `i2_s-arm64` (`formats/packing/i2_s.md`).
    pub layout: Option<String>,
    /// The user's word that unmarked float linears are master weights of a ternary-trained model.
    pub ternary_trained: bool,
}

/// How the bytes of a linear become trits and scales.
#[derive(Debug, Clone)]
pub enum LinearRule {
    /// Bytes of a packing.
    Packed {
        /// The packing.
        packing: &'static dyn Packing,
        /// Scale stored in a tensor beside it.
        outside: Option<(TensorInfo, ScaleDirection)>,
    },
    /// Bytes of a packing, each stored as a number of another type.
    PackedValues {
        /// The packing.
        packing: &'static dyn Packing,
        /// Scale stored in a tensor beside it.
        outside: Option<(TensorInfo, ScaleDirection)>,
    },
    /// Bytes of a packing of tiles.
    Tiles {
        /// The packing.
        packing: &'static dyn Packing,
        /// Multipliers, f32: `[1]`, `[rows, 1]` or `[rows, groups]`.
        scales: TensorInfo,
    },
    /// MLX's affine codes: weight = scale * code + bias.
    Affine {
        /// Columns per scale.
        group: usize,
        /// `(rows, cols / group)`, floats.
        scales: TensorInfo,
        /// The same shape. Boxed: no other rule has two tensors beside it.
        biases: Box<TensorInfo>,
    },
    /// Values that already are `trit * scale`: the scale is read off the values, never absmean.
    Dequantised {
        /// Scale stored in a tensor beside it, applied on top of the values' own.
        outside: Option<(TensorInfo, ScaleDirection)>,
    },
    /// Master weights, quantised by the absmean rule.
    Absmean,
}

impl LinearRule {
    /// The tensor of scales beside the weights, if there is one.
    pub fn scale_tensor(&self) -> Option<&TensorInfo> {
        match self {
            Self::Tiles { scales, .. } | Self::Affine { scales, .. } => Some(scales),
            _ => self.outside().map(|(info, _)| info),
        }
    }

    /// The one scale beside the weights and what it means, if there is one.
    pub fn outside(&self) -> Option<&(TensorInfo, ScaleDirection)> {
        match self {
            Self::Packed { outside, .. }
            | Self::PackedValues { outside, .. }
            | Self::Dequantised { outside } => outside.as_ref(),
            Self::Tiles { .. } | Self::Affine { .. } | Self::Absmean => None,
        }
    }
}

/// Where a linear comes from.
#[derive(Debug, Clone)]
pub struct LinearSource {
    /// The tensor of the weights.
    pub info: TensorInfo,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// How the bytes become trits and scales.
    pub rule: LinearRule,
    /// Rows per head, when the rows are stored in GGUF's paired order and have to be put back.
    pub permuted_head_dim: Option<usize>,
}

/// A dense tensor as it lies in the file, every value finite.
#[derive(Debug, Clone, Copy)]
pub struct DenseTensor<'a> {
    /// How its elements are stored.
    pub encoding: Encoding,
    /// Sizes, outermost first.
    pub shape: &'a [usize],
    /// The bytes.
    pub bytes: &'a [u8],
    /// Whether the values are 1 plus the numbers stored: gains of some norms (`formats/numerics.md`).
    pub plus_one: bool,
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
        if self.plus_one {
            out.iter_mut().for_each(|value| *value += 1.0);
        }
        Ok(())
    }
}

/// What fills a slot.
#[derive(Debug)]
enum Source {
    Linear(LinearSource),
    Dense {
        info: TensorInfo,
        /// Whether the values are 1 plus the numbers stored.
        plus_one: bool,
        finite: AtomicBool,
    },
}

impl Source {
    /// Whether these are plain numbers with nothing beside them that says how they are computed with.
    fn is_numbers(&self) -> bool {
        match self {
            Self::Linear(source) => {
                matches!(source.rule, LinearRule::Dequantised { outside: None })
            }
            Self::Dense { .. } => true,
        }
    }

    fn info(&self) -> &TensorInfo {
        match self {
            Self::Linear(source) => &source.info,
            Self::Dense { info, .. } => info,
        }
    }
}

/// An open model: files, family, configuration, and a source for every slot.
#[derive(Debug)]
pub struct Checkpoint {
    /// As given.
    pub path: PathBuf,
    /// The parsed files.
    pub file: TensorFile,
    /// How names and wiring are spelt.
    pub family: &'static Family,
    /// Sizes and wiring.
    pub config: Config,
    /// Where side files are (tokenizer, configuration), if anywhere.
    pub directory: Option<PathBuf>,
    /// `config.json` as read; of repeated keys the last.
    pub config_json: Option<Value>,
    /// How the layout was found, where the type ids of the file leave several and somebody looked
    /// ([`open_with_evidence`](Self::open_with_evidence)).
    pub layout: Option<LayoutEvidence>,
    /// The size of the vocabulary that the configuration says, where the tensors say another: these decide.
    pub declared_vocab_size: Option<usize>,
    /// What was done to the weights before they were made ternary, if anything.
    pub rotation: Option<Rotation>,
    /// Keys of the configuration that nothing here reads and that are not known to be harmless.
    pub unknown_keys: Vec<UnknownKey>,
    /// An index beside the file that was read, if none of its shards exist.
    pub stale_index: Option<PathBuf>,
    /// `config.json` and the files beside the weights, as they were before any was read.
    side_inputs: Vec<Input>,
    limits: Limits,
    sources: HashMap<Slot, Source>,
}

impl Checkpoint {
    /// Opens the model at `path`: a directory, a `.safetensors` file or its index, a `.gguf` file or
    /// any part of a split one.
    ///
    /// # Errors
    /// Everything that is wrong with it, with its place.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, FormatError> {
        let layout = resolve::forced_layout(options)?;
        let mut side_inputs = side_files::inputs(directory_of(path), &options.limits);
        let file = bitnet_formats::open_as(path, &options.limits, layout)?;
        let whole = file.parts.first().map_or(path, |p| p.path()).to_owned();
        let resolved = if brings_everything(&file) {
            resolve::gguf(&file, options)
        } else {
            resolve::hugging_face(path, &file, options)
        };
        let resolve::Resolved {
            family,
            config,
            directory,
            config_json,
            declared_vocab_size,
            sources,
        } = resolved.map_err(|e| e.in_file(&whole))?;
        if directory.is_none() {
            side_inputs.clear();
        }
        let vocab_size = config.vocab_size;
        let rotation = Rotation::read(&file).map_err(|e| e.in_file(&whole))?;
        let unknown_keys = match &config_json {
            Some(json) => Family::unknown_keys(json),
            None => family.unknown_gguf_keys(&file),
        };
        let stale_index = path.is_dir().then(|| bitnet_formats::stale_index(path));
        let limits = options.limits.clone();
        let path = path.to_owned();
        Ok(Self {
            path,
            file,
            family,
            config,
            directory,
            config_json,
            layout: None,
            declared_vocab_size: declared_vocab_size.filter(|n| *n != vocab_size),
            rotation,
            unknown_keys,
            stale_index: stale_index.flatten(),
            side_inputs,
            limits,
            sources,
        })
    }

    /// Whether every file of the model (weights, index, configuration and side files) is still the one that was
    /// opened, with the content that it had. To be asked before a result that was computed from them is
    /// published.
    ///
    /// # Errors
    /// `input-changed`.
    pub fn check_inputs(&self) -> Result<(), FormatError> {
        self.file.check()?;
        self.side_inputs.iter().try_for_each(Input::check)
    }

    /// What was read from a tensor, unless its file changed meanwhile: then whatever was found is not what the
    /// file said when it was opened.
    fn as_opened<T>(
        &self,
        info: &TensorInfo,
        read: impl FnOnce() -> Result<T, FormatError>,
    ) -> Result<T, FormatError> {
        self.file.check_part_of(info)?;
        let found = read();
        self.file.check_part_of(info)?;
        found
    }

    fn source(&self, slot: Slot) -> Result<&Source, FormatError> {
        self.sources.get(&slot).ok_or_else(|| {
            FormatError::new(ErrorCode::MissingTensor, "this network has no such tensor")
                .in_tensor(&slot.to_string())
                .in_file(&self.path)
        })
    }

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

    /// Whether the values of a dense tensor are 1 plus the numbers stored.
    pub fn dense_plus_one(&self, slot: Slot) -> bool {
        matches!(
            self.sources.get(&slot),
            Some(Source::Dense { plus_one: true, .. })
        )
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
        let (info, plus_one, finite) = match self.source(slot)? {
            Source::Dense {
                info,
                plus_one,
                finite,
            } => (info, *plus_one, finite),
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
        let tensor = DenseTensor {
            encoding: info.encoding,
            shape: &info.shape,
            bytes: self.file.bytes(info),
            plus_one,
            info,
        };
        Ok((tensor, finite))
    }

    /// Tells the system that the bytes of a slot are not needed again soon, so that the pages of the
    /// mapped file stop counting as this process's memory. They stay readable.
    pub fn release(&self, slot: Slot) {
        self.release_part(slot, 0..u64::MAX);
    }

    /// As [`release`](Self::release), for some of the slot's bytes.
    pub fn release_part(&self, slot: Slot, bytes: Range<u64>) {
        if let Some(info) = self.tensor_range(slot)
            && let Some(part) = self.file.parts.get(info.part)
        {
            let at = |byte: u64| info.offset.saturating_add(byte.min(info.len));
            part.release(at(bytes.start)..at(bytes.end));
        }
    }

    /// A linear to be read a few rows at a time, on any thread, if its bytes allow it: tiles, or a packing
    /// with one scale, rows in order. `None`: read it with [`ternary`](Self::ternary).
    ///
    /// # Errors
    /// Whatever is wrong with its scale.
    pub fn ternary_rows(&self, slot: Slot) -> Result<Option<TernaryRows<'_>>, FormatError> {
        let source = self.linear(slot)?;
        let bytes = self.file.bytes(&source.info);
        let scales = match &source.rule {
            LinearRule::Packed { packing, outside } => {
                let tensor = packed(bytes, source.rows, source.cols);
                self.packed_scales(*packing, &tensor, outside)
                    .map(|scales| (*packing, scales))
            }
            LinearRule::Tiles { packing, scales } => self
                .tile_scales(scales, *packing, source.rows, source.cols)
                .map(|scales| (*packing, scales)),
            _ => return Ok(None),
        };
        let (packing, scales) = scales.map_err(|e| self.place(e, &source.info))?;
        // scales that repeat are one scale, which only the trits can tell; those of tiles are as they are
        let known = matches!(scales, Scales::PerTensor(_))
            || matches!(source.rule, LinearRule::Tiles { .. });
        Ok(
            (known && source.permuted_head_dim.is_none()).then_some(TernaryRows {
                checkpoint: self,
                source,
                packing,
                scales,
            }),
        )
    }

    /// The scales of a matrix that is stored as trits, without a look at these; `None` where only its values
    /// tell.
    ///
    /// # Errors
    /// Whatever is wrong with the scales.
    pub fn packed_scales_of(&self, slot: Slot) -> Result<Option<Scales>, FormatError> {
        let source = self.linear(slot)?;
        let (rows, cols) = (source.rows, source.cols);
        let scales = match &source.rule {
            LinearRule::Packed { packing, outside } => {
                let tensor = packed(self.file.bytes(&source.info), rows, cols);
                self.packed_scales(*packing, &tensor, outside)
            }
            LinearRule::Tiles { packing, scales } => self.tile_scales(scales, *packing, rows, cols),
            _ => return Ok(None),
        };
        scales.map(Some).map_err(|e| self.place(e, &source.info))
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
        let LinearSource {
            info,
            rows,
            cols,
            rule,
            permuted_head_dim,
        } = source;
        let (rows, cols) = (*rows, *cols);
        let bytes = self.file.bytes(info);
        let plain = match info.encoding {
            Encoding::Plain(plain) => plain,
            _ => PlainType::U8,
        };
        let (trits, scales) = match rule {
            LinearRule::Packed { packing, outside } => {
                let tensor = packed(bytes, rows, cols);
                let scales = self.packed_scales(*packing, &tensor, outside)?;
                (unpack(*packing, tensor, &scales)?, scales)
            }
            LinearRule::PackedValues { packing, outside } => {
                let bytes = values::bytes_by_value(plain, bytes, cols)?;
                let tensor = packed(&bytes, rows, cols);
                let scales = self.packed_scales(*packing, &tensor, outside)?;
                (unpack(*packing, tensor, &scales)?, scales)
            }
            LinearRule::Tiles { packing, scales } => {
                let scales = self.tile_scales(scales, *packing, rows, cols)?;
                (
                    unpack(*packing, packed(bytes, rows, cols), &scales)?,
                    scales,
                )
            }
            LinearRule::Affine {
                group,
                scales,
                biases,
            } => self.affine(source, *group, scales, biases)?,
            LinearRule::Dequantised { outside } => {
                let (trits, scales) = if plain.is_float_weight() {
                    values::dequantised(plain, bytes, cols)?
                } else {
                    (
                        values::trits_by_value(plain, bytes, cols)?,
                        Scales::PerTensor(1.0),
                    )
                };
                (trits, self.with_outside(scales, outside)?)
            }
            LinearRule::Absmean => values::absmean(plain, bytes, cols)?,
        };
        let matrix = TernaryMatrix::new(rows, cols, trits, scales)
            .map_err(|e| FormatError::new(ErrorCode::Malformed, e.to_string()))?;
        Ok(match permuted_head_dim {
            None => matrix,
            Some(head_dim) => hf_from_gguf_rows(&matrix, *head_dim),
        })
    }

    /// MLX's codes, by the values that they stand for.
    fn affine(
        &self,
        source: &LinearSource,
        group: usize,
        scales: &TensorInfo,
        biases: &TensorInfo,
    ) -> Result<(Vec<i8>, Scales), FormatError> {
        let (rows, cols) = (source.rows, source.cols);
        let numbers = |info: &TensorInfo| match info.encoding {
            Encoding::Plain(plain) => {
                values::small_values(plain, self.file.bytes(info)).map_err(|e| self.place(e, info))
            }
            _ => Ok(Vec::new()),
        };
        let (scales, biases) = (numbers(scales)?, numbers(biases)?);
        let affine = Affine {
            codes: self.file.bytes(&source.info),
            rows,
            cols,
            group,
            scales: &scales,
            biases: &biases,
        };
        let (mut trits, mut magnitudes) = (vec![0; rows * cols], vec![0.0; scales.len()]);
        let step = rows_per_piece(cols);
        let per_row = (scales.len() / rows.max(1)).max(1);
        trits
            .par_chunks_mut(step * cols.max(1))
            .zip(magnitudes.par_chunks_mut(step * per_row))
            .enumerate()
            .try_for_each(|(i, (trits, magnitudes))| {
                affine_rows(&affine, i * step, trits, magnitudes)
            })?;
        let scales = Scales::PerGroup {
            group,
            scales: magnitudes,
        };
        Ok((trits, scales))
    }

    /// The scales of a packed tensor: its own, those beside it, or both.
    fn packed_scales(
        &self,
        packing: &'static dyn Packing,
        tensor: &PackedTensor<'_>,
        outside: &Option<(TensorInfo, ScaleDirection)>,
    ) -> Result<Scales, FormatError> {
        if packing.holds_scales() {
            return self.with_outside(packing.scales(tensor)?, outside);
        }
        let scale = match outside {
            Some((info, direction)) => self.stored_multiplier(info, *direction)?,
            None => 1.0,
        };
        Ok(Scales::PerTensor(scale))
    }

    /// Scales times the one stored beside the tensor; the product has to be exact.
    fn with_outside(
        &self,
        scales: Scales,
        outside: &Option<(TensorInfo, ScaleDirection)>,
    ) -> Result<Scales, FormatError> {
        let Some((info, direction)) = outside else {
            return Ok(scales);
        };
        let factor = self.stored_multiplier(info, *direction)?;
        let product = |s: f32| {
            // two 24-bit significands fit f64
            let exact = f64::from(s) * f64::from(factor);
            let rounded = exact as f32;
            if f64::from(rounded) == exact {
                return Ok(rounded);
            }
            Err(FormatError::new(
                ErrorCode::ScaleRounding,
                format!(
                    "expected a product that f32 holds, found {s} * {factor} ({})",
                    info.name
                ),
            ))
        };
        // the quotient of a magnitude other than 1 would round differently in every reader
        if *direction == ScaleDirection::Divide
            && scales.as_slice().iter().any(|&s| s != 1.0 && s != 0.0)
        {
            return Err(FormatError::new(
                ErrorCode::Malformed,
                format!(
                    "expected bare trits beside a dividing `{}`, found magnitude {}",
                    info.name,
                    scales
                        .as_slice()
                        .iter()
                        .find(|&&s| s != 1.0 && s != 0.0)
                        .unwrap_or(&0.0)
                ),
            ));
        }
        Ok(match scales {
            Scales::PerTensor(s) => Scales::PerTensor(product(s)?),
            Scales::PerRow(s) => {
                Scales::PerRow(s.into_iter().map(product).collect::<Result<_, _>>()?)
            }
            Scales::PerGroup { group, scales } => Scales::PerGroup {
                group,
                scales: scales.into_iter().map(product).collect::<Result<_, _>>()?,
            },
        })
    }

    /// A stored scale as multiplier: `fl32(1 / weight_scale)` where it divides.
    fn stored_multiplier(
        &self,
        info: &TensorInfo,
        direction: ScaleDirection,
    ) -> Result<f32, FormatError> {
        let stored = self.stored_value(info)?;
        let bad = |code, expected: &str| {
            let message = format!("expected {expected}, found {stored}");
            Err(self.place(FormatError::new(code, message), info))
        };
        if !stored.is_finite() {
            return bad(ErrorCode::NonFinite, "a finite scale");
        }
        match direction {
            ScaleDirection::Multiply if stored < 0.0 => {
                bad(ErrorCode::Malformed, "a scale that is not negative")
            }
            ScaleDirection::Multiply => Ok(stored.abs()),
            ScaleDirection::Divide if stored <= 0.0 => {
                bad(ErrorCode::Malformed, "a positive divisor")
            }
            ScaleDirection::Divide => {
                let multiplier = 1.0 / stored;
                if multiplier.is_finite() {
                    Ok(multiplier)
                } else {
                    bad(ErrorCode::NonFinite, "a divisor whose inverse is finite")
                }
            }
        }
    }

    fn stored_value(&self, info: &TensorInfo) -> Result<f32, FormatError> {
        let values = match info.encoding {
            Encoding::Plain(plain) => values::small_values(plain, self.file.bytes(info)),
            _ => Ok(Vec::new()),
        };
        let value = values.map_err(|e| self.place(e, info))?.first().copied();
        value.ok_or_else(|| {
            self.place(
                FormatError::new(ErrorCode::WrongShape, "expected 1 element, found none"),
                info,
            )
        })
    }

    /// The `weight_scale` stored beside a linear and what it means, for targets that keep it.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn stored_scale(&self, slot: Slot) -> Result<Option<(f32, ScaleDirection)>, FormatError> {
        match self.linear(slot)?.rule.outside() {
            None => Ok(None),
            Some((info, direction)) => Ok(Some((self.stored_value(info)?, *direction))),
        }
    }

    /// The direction of the checkpoint's stored scales beside packed codes; `None` when there are none.
    pub fn scale_direction(&self) -> Option<ScaleDirection> {
        self.sources.values().find_map(|source| match source {
            Source::Linear(LinearSource {
                rule: LinearRule::Packed { outside, .. } | LinearRule::PackedValues { outside, .. },
                ..
            }) => outside.as_ref().map(|(_, direction)| *direction),
            _ => None,
        })
    }

    /// Whether any linear is quantised by the absmean rule on reading.
    pub fn has_master_weights(&self) -> bool {
        let absmean =
            |s: &Source| matches!(s, Source::Linear(l) if matches!(l.rule, LinearRule::Absmean));
        self.sources.values().any(absmean)
    }

    /// How much quantising by the absmean rule changes a linear of master weights: the sum of squares of the
    /// changes, and that of the weights. `None` for every other linear.
    ///
    /// # Errors
    /// As [`ternary`](Self::ternary).
    pub fn absmean_change(&self, slot: Slot) -> Result<Option<(f64, f64)>, FormatError> {
        let source = self.linear(slot)?;
        let (LinearRule::Absmean, Encoding::Plain(plain)) = (&source.rule, source.info.encoding)
        else {
            return Ok(None);
        };
        values::absmean_change(plain, self.file.bytes(&source.info), source.cols)
            .map(Some)
            .map_err(|e| self.place(e, &source.info))
    }

    /// Linears that are quantised by the absmean rule on reading.
    pub fn master_linears(&self) -> usize {
        let absmean =
            |s: &&Source| matches!(s, Source::Linear(l) if matches!(l.rule, LinearRule::Absmean));
        self.sources.values().filter(absmean).count()
    }

    /// Every slot, in the order of the forward pass.
    pub fn slots(&self) -> Vec<Slot> {
        self.config.slots()
    }

    /// Every slot, in the order the main tensors lie in the files: for one pass over them.
    pub fn slots_in_file_order(&self) -> Vec<Slot> {
        let mut slots = self.config.slots();
        slots.sort_by_key(|slot| {
            self.tensor_range(*slot)
                .map(|info| (info.part, info.offset))
        });
        slots
    }

    /// The main tensor of a slot.
    pub fn tensor_range(&self, slot: Slot) -> Option<&TensorInfo> {
        self.sources.get(&slot).map(Source::info)
    }

    /// Refuses weights in another basis, for whoever computes with them as they are.
    ///
    /// # Errors
    /// `unsupported-config`.
    pub fn refuse_rotation(&self) -> Result<(), FormatError> {
        match &self.rotation {
            None => Ok(()),
            Some(rotation) => Err(FormatError::new(
                ErrorCode::UnsupportedConfig,
                format!(
                    "{} weights are rotated by a Hadamard transform in blocks of {}, which is not computed here",
                    rotation.folded.len(),
                    rotation.block_size
                ),
            )
            .in_tensor(ROTATION_KEYS)
            .in_file(&self.path)
            .hint("the model would run and print nonsense; conversions from GGUF to GGUF keep the rotation")),
        }
    }

    /// Whether everything is in GGUF files.
    pub fn is_gguf(&self) -> bool {
        self.file.container == Gguf.name()
    }

    /// A file beside the weights (`tokenizer.json`), if there is one. GGUF files bring everything
    /// along and have none.
    ///
    /// # Errors
    /// `io`, `limit-exceeded`.
    pub fn side_file(&self, name: &str) -> Result<Option<Vec<u8>>, FormatError> {
        match &self.directory {
            None => Ok(None),
            Some(directory) => read_side_file(directory, name, self.limits.side_file_bytes),
        }
    }

    fn place(&self, error: FormatError, info: &TensorInfo) -> FormatError {
        let error = error.in_tensor(&info.name);
        match self.file.parts.get(info.part) {
            Some(part) => error.in_file(part.path()),
            None => error.in_file(&self.path),
        }
    }
}

/// A linear that is read a few rows at a time ([`Checkpoint::ternary_rows`]).
pub struct TernaryRows<'a> {
    checkpoint: &'a Checkpoint,
    source: &'a LinearSource,
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
        self.packing
            .unpack_rows(&self.tensor(Some(&self.scales)), first, trits)
            .map_err(|e| self.checkpoint.place(e, &self.source.info))
    }

    fn tensor<'s>(&'s self, outside: Option<&'s Scales>) -> PackedTensor<'s> {
        PackedTensor {
            bytes: self.checkpoint.file.bytes(&self.source.info),
            rows: self.source.rows,
            cols: self.source.cols,
            outside,
        }
    }
}

/// The bytes of a packed matrix, without scales beside them.
fn packed(bytes: &[u8], rows: usize, cols: usize) -> PackedTensor<'_> {
    PackedTensor {
        bytes,
        rows,
        cols,
        outside: None,
    }
}

/// Rows per piece of parallel work: large enough to be worth a hand-over, small enough for L2.
fn rows_per_piece(cols: usize) -> usize {
    const TRITS: usize = 1 << 18;
    (TRITS / cols.max(1)).max(1)
}

/// Unpacks a whole matrix in parallel on the current rayon pool.
fn unpack(
    packing: &'static dyn Packing,
    tensor: PackedTensor<'_>,
    scales: &Scales,
) -> Result<Vec<i8>, FormatError> {
    let tensor = PackedTensor {
        outside: Some(scales),
        ..tensor
    };
    let mut trits = vec![0; tensor.rows * tensor.cols];
    let step = rows_per_piece(tensor.cols);
    trits
        .par_chunks_mut(step * tensor.cols.max(1))
        .enumerate()
        .try_for_each(|(i, out)| packing.unpack_rows(&tensor, i * step, out))?;
    Ok(trits)
}

/// Whether a family takes the network of a file, by its metadata or the `config.json` beside it. A configuration
/// that cannot be read at all counts as known: what is wrong with it is for whoever opens it to say.
pub fn has_known_family(path: &Path, file: &TensorFile) -> bool {
    if brings_everything(file) {
        return crate::family::family_of_gguf(file).is_ok();
    }
    let limit = Limits::default().config_bytes;
    match read_side_file(directory_of(path), "config.json", limit) {
        Ok(None) => false,
        Ok(Some(bytes)) => crate::family::parse_json(&bytes)
            .map_or(true, |json| crate::family::family_of_config(&json).is_ok()),
        Err(_) => true,
    }
}

/// Whether a file is read by its own metadata, and not by a `config.json` beside it.
fn brings_everything(file: &TensorFile) -> bool {
    file.container == Gguf.name() || file.metadata.get("general.architecture").is_some()
}

/// The directory with the files beside the weights: `path` itself, or where it lies.
fn directory_of(path: &Path) -> &Path {
    match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(Path::new("")),
    }
}

/// Refuses NaN and infinity in a dense tensor.
fn check_dense(tensor: &DenseTensor<'_>) -> Result<(), FormatError> {
    let cols = if tensor.shape.len() > 1 {
        tensor.shape.last().copied().unwrap_or(0)
    } else {
        0
    };
    // the only floats of a block are its f16 scale; everything it multiplies is a small integer
    let (block, at) = match tensor.encoding {
        Encoding::Plain(plain) => return values::check_finite(plain, tensor.bytes, cols),
        Encoding::Block(BlockType::Q8_0) => (34, 0),
        Encoding::Block(BlockType::Q6_K) => (210, 208),
        Encoding::Ternary(_) | Encoding::Foreign(_) | Encoding::Unknown(_) => return Ok(()),
    };
    let bad = tensor
        .bytes
        .par_chunks_exact(block)
        .position_first(|b| b[at + 1] & 0x7c == 0x7c);
    match bad {
        None => Ok(()),
        Some(i) => Err(FormatError::new(
            ErrorCode::NonFinite,
            format!("block {i}: expected a finite scale, found NaN or infinity"),
        )),
    }
}

/// Rows of `q_proj` or `k_proj` from GGUF's `llama` order, where rotary pairs are neighbours, to that
/// of the Hugging Face checkpoint, where they are `head_dim / 2` apart.
pub fn hf_from_gguf_rows(matrix: &TernaryMatrix, head_dim: usize) -> TernaryMatrix {
    matrix.permute_rows(|row| gguf_row(row, head_dim))
}

/// The inverse of [`hf_from_gguf_rows`].
pub fn gguf_from_hf_rows(matrix: &TernaryMatrix, head_dim: usize) -> TernaryMatrix {
    matrix.permute_rows(|row| hf_row(row, head_dim))
}

/// Where GGUF's `llama` keeps a row of the Hugging Face matrix (`formats/container/gguf.md`).
pub fn gguf_row(row: usize, head_dim: usize) -> usize {
    let (head, at) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (at % half) + at / half
}

/// The row of the Hugging Face matrix that GGUF's `llama` keeps in place `row`.
pub fn hf_row(row: usize, head_dim: usize) -> usize {
    let (head, at) = (row / head_dim, row % head_dim);
    head * head_dim + at % 2 * (head_dim / 2) + at / 2
}

/// A scale for `weight_scale`: BF16 where that is exact, F32 otherwise.
pub fn weight_scale_bytes(scale: f32) -> (PlainType, Vec<u8>) {
    if bitnet_ternary::f32_is_bf16_exact(scale) {
        (
            PlainType::Bf16,
            bitnet_ternary::f32_to_bf16(scale).to_le_bytes().to_vec(),
        )
    } else {
        (PlainType::F32, scale.to_le_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_orders_are_inverses_and_as_the_page_says() {
        let rows = 16;
        let trits: Vec<i8> = (0..rows * 3).map(|i| (i * i % 3) as i8 - 1).collect();
        let scales = Scales::PerRow((0..rows).map(|r| r as f32).collect());
        let hf = TernaryMatrix::new(rows, 3, trits, scales).unwrap();
        let gguf = gguf_from_hf_rows(&hf, 8);
        assert_eq!(hf_from_gguf_rows(&gguf, 8), hf);
        // HF row h*d + j*(d/2) + i moves to h*d + 2*i + j
        for (h, j, i) in [(0, 0, 3), (1, 1, 2), (1, 0, 0)] {
            assert_eq!(
                gguf.scales().at(h * 8 + 2 * i + j, 0, 3),
                (h * 8 + j * 4 + i) as f32
            );
        }
    }

    #[test]
    fn a_scale_takes_two_bytes_only_where_they_hold_it() {
        assert_eq!(
            weight_scale_bytes(37.5),
            (PlainType::Bf16, vec![0x16, 0x42])
        );
        assert_eq!(weight_scale_bytes(0.1).0, PlainType::F32);
    }
}
