//! The whole conversion, before its first byte: every tensor, its place, its type, its cost.
//!
//! Invariant: a plan that was built can be written: names, shapes, types and the scales that can be
//! read without reading the weights have been checked against the target. What only shows while
//! weights are read (scales of master weights, damaged codes) fails later and leaves nothing behind.

mod beside;

use self::beside::AffineForm;
pub use self::beside::{affine_form_of, scale_bytes, scales_of};
use crate::args::Embeddings;
use crate::scales;
use crate::side_files;
use crate::targets::{Kind, Linears, Target};
use bitnet_formats::{
    Container, Encoding, ErrorCode, FormatError, GGUF_LAYOUT_KEY, Gguf, Header, MetaValue,
    Metadata, Packing, PlainType, PlannedTensor, Safetensors, ScaleRounding, WritePlan, dense_len,
    name_with_parameters, same_layout_id,
};
use bitnet_model::{
    Checkpoint, HfStorage, LayerSlot, LinearRule, LinearSource, MLX_PACKING, ROTATION_KEYS,
    ScaleDirection, Slot, TILES_ALIGNMENT, TILES_FORMAT, TILES_VERSION, check_gpu_network,
    gpu_place, tiles_entry, tiles_shape,
};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// Shards of Hugging Face checkpoints are at most this long by default, as transformers writes them.
const HF_SHARD: u64 = 5_000_000_000;
/// Bytes of one piece of a large tensor on its way to the output.
pub const PIECE: u64 = 4 << 20;
/// What the program needs besides tensors: stacks, hash buffers, the parsed tokenizer.
const BASE_MEMORY: u64 = 48 << 20;

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub output: &'a Path,
    pub target: &'static Target,
    pub embeddings: Embeddings,
    pub rounding: ScaleRounding,
    pub split_max_size: Option<u64>,
}

/// How the bytes of one output tensor are made.
#[derive(Debug, Clone)]
pub enum Action {
    /// Trits in a packing.
    Pack(&'static dyn Packing),
    /// `trit * scale` as numbers.
    Dequantise(PlainType),
    /// Bytes of the source as they are.
    Copy,
    /// Packed bytes of the source as they are, maybe under another type id.
    CopyPacked(&'static dyn Packing),
    /// Master weights as they are; rows in the source's order, the digest is taken on the way.
    CopyMaster,
    /// Numbers of another type.
    Recode(Encoding),
    /// Bytes that are known already.
    Ready(Vec<u8>),
    /// The scales of linears before, in a tensor of their own.
    Scale(ScaleTensor),
}

/// What stands in a tensor of scales.
#[derive(Debug, Clone)]
pub enum ScaleTensor {
    /// The multipliers of a linear as it has them, f32.
    Multipliers,
    /// MLX's: one for so many columns, in a type; the biases are these with the sign turned.
    Affine {
        group: usize,
        plain: PlainType,
        biases: bool,
    },
    /// One bf16 multiplier for each of these, then zeros.
    Fused(Vec<Slot>),
}

impl ScaleTensor {
    /// The type that rounds the multipliers, if it does.
    pub fn plain(&self) -> PlainType {
        match self {
            Self::Multipliers => PlainType::F32,
            Self::Affine { plain, .. } => *plain,
            Self::Fused(_) => PlainType::Bf16,
        }
    }

    /// Whether no other tensor is made of the same scales later.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Affine { biases: false, .. })
    }

    /// Columns per scale, where a linear has to be cut into groups.
    pub fn group(&self) -> Option<usize> {
        match self {
            Self::Affine { group, .. } => Some(*group),
            Self::Multipliers | Self::Fused(_) => None,
        }
    }
}

/// One output tensor.
#[derive(Debug, Clone)]
pub struct Item {
    /// The place in the network; `None` for tensors that only readers of the target want.
    pub slot: Option<Slot>,
    /// As stored in the target.
    pub tensor: PlannedTensor,
    /// Its name in the source.
    pub source_name: String,
    /// Its type in the source, as people say it.
    pub from: String,
    /// Its type in the target, as people say it.
    pub to: String,
    pub action: Action,
    /// Which of [`Plan::files`].
    pub file: usize,
    /// Absolute offset in that file.
    pub offset: u64,
}

/// One output file with tensors.
#[derive(Debug, Clone)]
pub struct OutputFile {
    /// Full path; for directories below the directory.
    pub path: PathBuf,
    pub header: Header,
}

/// A value that the target does not hold exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// Name in the target.
    pub tensor: String,
    /// `scale-rounding` or `dense-rounding`.
    pub kind: &'static str,
    /// Largest relative error; `None` where it is only known after reading the weights.
    pub max_relative: Option<f64>,
    /// Largest absolute error, of dense tensors.
    pub max_absolute: Option<f64>,
}

impl Loss {
    pub fn to_json(&self) -> Value {
        json!({
            "tensor": self.tensor,
            "kind": self.kind,
            "max_relative": self.max_relative,
            "max_absolute": self.max_absolute,
        })
    }
}

/// The whole conversion.
#[derive(Debug)]
pub struct Plan {
    pub target: &'static Target,
    pub files: Vec<OutputFile>,
    /// In the order they are written: file by file, inside a file in the order of the source.
    pub items: Vec<Item>,
    /// Further files of an output directory.
    pub side_files: Vec<(String, Vec<u8>)>,
    /// Known before the weights are read.
    pub losses: Vec<Loss>,
    /// Most working memory at any time, estimated.
    pub peak_memory: u64,
}

impl Plan {
    /// Bytes of all output files.
    pub fn total_bytes(&self) -> u64 {
        let side: u64 = self
            .side_files
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        self.files.iter().map(|f| f.header.total).sum::<u64>() + side
    }

    /// How the scales of a linear are written in a tensor of their own, if they are.
    pub fn scale_tensor(&self, slot: Slot) -> Option<&ScaleTensor> {
        self.items.iter().find_map(|item| match &item.action {
            Action::Scale(scale @ ScaleTensor::Fused(slots)) if slots.contains(&slot) => {
                Some(scale)
            }
            Action::Scale(scale) if item.slot == Some(slot) => Some(scale),
            _ => None,
        })
    }

    /// Whether the gain of a norm is stored minus one.
    pub fn stores_gain_minus_one(&self, checkpoint: &Checkpoint, slot: Slot) -> bool {
        stores_gain_minus_one(self.target, checkpoint, slot)
    }

    /// Bytes of the linears with their scales, and how many weights they hold.
    pub fn ternary_bits(&self, checkpoint: &Checkpoint) -> (u64, u64) {
        let linears = self
            .items
            .iter()
            .filter(|i| i.slot.is_some_and(|slot| checkpoint.is_ternary(slot)));
        linears.fold((0, 0), |(bytes, weights), item| {
            let elements = match (&item.action, item.slot) {
                (Action::Scale(_), _) | (_, None) => 0,
                (_, Some(slot)) => checkpoint.config.shape(slot).iter().product::<usize>() as u64,
            };
            (bytes + item.tensor.len, weights + elements)
        })
    }
}

/// Plans a conversion.
///
/// # Errors
/// Everything that can be refused before weights are read.
pub fn build(checkpoint: &Checkpoint, request: &Request<'_>) -> Result<Plan, FormatError> {
    let mut planner = Planner {
        checkpoint,
        request,
        losses: Vec::new(),
        items: Vec::new(),
        affine: None,
    };
    let (mut slots, mut affine) = (checkpoint.slots_in_file_order(), None);
    match request.target.linears {
        Linears::Fused(_) => {
            check_gpu_network(&checkpoint.config)?;
            // what is fused has to be written together
            slots = checkpoint.slots();
        }
        Linears::Affine(_) => affine = Some(beside::affine_form(checkpoint)?),
        _ => {}
    }
    planner.affine = affine;
    for slot in slots {
        planner
            .slot(slot)
            .map_err(|e| e.in_tensor(&planner.target_name(slot)))?;
    }
    let (files, side_files) = match request.target.kind {
        Kind::Gguf => (planner.gguf()?, Vec::new()),
        Kind::HuggingFace => planner.hugging_face()?,
    };
    let peak_memory = planner.peak_memory(&files, &side_files);
    let Planner { items, losses, .. } = planner;
    Ok(Plan {
        target: request.target,
        files,
        items,
        side_files,
        losses,
        peak_memory,
    })
}

struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    request: &'a Request<'a>,
    losses: Vec<Loss>,
    items: Vec<Item>,
    /// Group and type of the scales of an MLX output.
    affine: Option<AffineForm>,
}

impl Planner<'_> {
    fn target_name(&self, slot: Slot) -> String {
        let family = self.checkpoint.family;
        match (self.request.target.kind, self.request.target.linears) {
            (Kind::Gguf, _) => (family.gguf_tensor_name)(slot),
            (_, Linears::Fused(_)) => {
                gpu_place(slot).map_or_else(|| (family.tensor_name)(slot), |place| place.name)
            }
            _ => (family.tensor_name)(slot),
        }
    }

    fn slot(&mut self, slot: Slot) -> Result<(), FormatError> {
        if slot.is_ternary() {
            self.linear(slot)
        } else if self.checkpoint.is_ternary(slot) {
            self.table(slot)
        } else {
            self.dense(slot)
        }
    }

    fn push(
        &mut self,
        slot: Slot,
        from: String,
        encoding: Encoding,
        len: u64,
        shape: Vec<usize>,
        action: Action,
    ) {
        let name = self.target_name(slot);
        let source_name = self
            .checkpoint
            .tensor_range(slot)
            .map_or_else(String::new, |t| t.name.clone());
        let to = match action {
            Action::Pack(packing) | Action::CopyPacked(packing) => packing.name().to_owned(),
            _ => encoding.name(),
        };
        let tensor = PlannedTensor {
            name,
            encoding,
            shape,
            len,
        };
        self.items.push(Item {
            slot: Some(slot),
            tensor,
            source_name,
            from,
            to,
            action,
            file: 0,
            offset: 0,
        });
    }

    fn linear(&mut self, slot: Slot) -> Result<(), FormatError> {
        let source = self.checkpoint.linear(slot)?;
        let (rows, cols) = (source.rows, source.cols);
        let from = describe(source);
        match self.request.target.linears {
            Linears::Packed(_) => {
                let packing = self
                    .request
                    .target
                    .packing()
                    .ok_or_else(|| unknown_target(self.request))?;
                let len = packing.packed_len(rows, cols)?;
                self.check_scale(slot, source, |m, r| packing.check_scales(m, r))?;
                match self.request.target.kind {
                    Kind::Gguf => self.packed(slot, source, packing)?,
                    Kind::HuggingFace => {
                        let encoding = Encoding::Plain(PlainType::U8);
                        let shape = vec![rows.div_ceil(4), cols];
                        self.push(slot, from, encoding, len, shape, Action::Pack(packing));
                        self.scale_beside(slot, source);
                    }
                }
            }
            Linears::Tiles(_) => self.tiles(slot, source)?,
            Linears::Affine(_) => self.affine(slot, source)?,
            Linears::Fused(_) => self.fused(slot, source)?,
            Linears::Master(_) if matches!(source.rule, LinearRule::Absmean) => {
                let info = &source.info;
                let (encoding, len) = (info.encoding, info.len);
                self.push(
                    slot,
                    from,
                    encoding,
                    len,
                    vec![rows, cols],
                    Action::CopyMaster,
                );
            }
            Linears::Float(plain) | Linears::Master(plain) => {
                let encoding = Encoding::Plain(plain);
                let len = dense_len(encoding, rows.saturating_mul(cols), cols)?;
                self.check_scale(slot, source, |m, r| scales::check_float(m, plain, r))?;
                self.push(
                    slot,
                    from,
                    encoding,
                    len,
                    vec![rows, cols],
                    Action::Dequantise(plain),
                );
            }
        }
        Ok(())
    }

    /// A matrix in a packing of GGUF; the bytes of the source where they are the ones.
    fn packed(
        &mut self,
        slot: Slot,
        source: &LinearSource,
        packing: &'static dyn Packing,
    ) -> Result<(), FormatError> {
        let (rows, cols) = (source.rows, source.cols);
        let len = packing.packed_len(rows, cols)?;
        let as_they_are = match &source.rule {
            LinearRule::Packed {
                packing: stored,
                outside: None,
            } => {
                let stored_as = stored.same_bytes_as().unwrap_or(stored.name());
                // scales that lie in blocks: nothing behind the last that only one file has
                stored_as == packing.name()
                    && self.request.target.table_packing().is_some()
                    && source.permuted_head_dim
                        == permuted_head_dim(self.checkpoint, self.request.target, slot)
                    && source.info.len == len
            }
            _ => false,
        };
        let action = match as_they_are {
            true => Action::CopyPacked(packing),
            false => Action::Pack(packing),
        };
        let encoding = Encoding::Ternary(packing);
        self.push(
            slot,
            describe(source),
            encoding,
            len,
            vec![rows, cols],
            action,
        );
        Ok(())
    }

    /// Embeddings or output head that are ternary: packed where readers of the target look up packed rows,
    /// else as numbers of the smallest type that holds them.
    fn table(&mut self, slot: Slot) -> Result<(), FormatError> {
        let source = self.checkpoint.linear(slot)?;
        let (rows, cols) = (source.rows, source.cols);
        let plain = match self.request.embeddings {
            Embeddings::Keep => {
                if let Some(packing) = self.request.target.table_packing()
                    && packing.packed_len(rows, cols).is_ok()
                {
                    return match self.request.target.kind {
                        Kind::Gguf => self.packed(slot, source, packing),
                        Kind::HuggingFace => self.tiles(slot, source),
                    };
                }
                self.smallest_float(slot, source)?
            }
            Embeddings::As(to) => match to.encoding() {
                Encoding::Plain(plain) => plain,
                block => {
                    let stored = describe(source);
                    let message = format!("{} would round what {stored} holds", block.name());
                    return Err(FormatError::new(ErrorCode::TargetCannotHold, message)
                        .hint("--embeddings keep changes no value; f16, bf16 or f32 where they hold the scales"));
                }
            },
        };
        self.check_scale(slot, source, |m, r| scales::check_float(m, plain, r))?;
        let encoding = Encoding::Plain(plain);
        let len = dense_len(encoding, rows.saturating_mul(cols), cols)?;
        let (from, shape) = (describe(source), vec![rows, cols]);
        self.push(slot, from, encoding, len, shape, Action::Dequantise(plain));
        Ok(())
    }

    /// The smallest float type that holds a ternary matrix; of numbers, their own.
    fn smallest_float(&self, slot: Slot, source: &LinearSource) -> Result<PlainType, FormatError> {
        if let Encoding::Plain(plain) = source.info.encoding
            && plain.is_float_weight()
        {
            return Ok(plain);
        }
        let scales = match self.checkpoint.packed_scales_of(slot)? {
            Some(scales) => scales,
            None => self.checkpoint.ternary(slot)?.normal_scales(),
        };
        let holds = |plain: &PlainType| {
            let mut scales = scales.as_slice().iter();
            scales.all(|scale| scales::is_exact(*scale, *plain))
        };
        let types = [PlainType::Bf16, PlainType::F16];
        Ok(types.into_iter().find(holds).unwrap_or(PlainType::F32))
    }

    /// Tiles, and all scales beside them.
    fn tiles(&mut self, slot: Slot, source: &LinearSource) -> Result<(), FormatError> {
        let (rows, cols) = (source.rows, source.cols);
        let scales = scales::structure(self.checkpoint, slot, source)?;
        let grouped = matches!(scales[..], [_, groups] if groups > 1);
        let packing = self.request.target.packing_for(grouped);
        let packing = packing.ok_or_else(|| unknown_target(self.request))?;
        self.push(
            slot,
            describe(source),
            Encoding::Plain(PlainType::U8),
            packing.packed_len(rows, cols)?,
            tiles_shape(packing, rows, cols)?,
            Action::Pack(packing),
        );
        self.items.push(Item {
            slot: Some(slot),
            source_name: source.info.name.clone(),
            from: "scale".to_owned(),
            to: "f32".to_owned(),
            tensor: PlannedTensor {
                name: scale_name(&self.target_name(slot)),
                encoding: Encoding::Plain(PlainType::F32),
                len: dense_len(Encoding::Plain(PlainType::F32), scales.iter().product(), 1)?,
                shape: scales,
            },
            action: Action::Scale(ScaleTensor::Multipliers),
            file: 0,
            offset: 0,
        });
        Ok(())
    }

    /// Checks the scale of a linear if it can be read without reading the weights.
    fn check_scale(
        &mut self,
        slot: Slot,
        source: &LinearSource,
        check: impl Fn(&bitnet_ternary::TernaryMatrix, ScaleRounding) -> Result<f64, FormatError>,
    ) -> Result<(), FormatError> {
        let Some(probe) = scales::probe(self.checkpoint, slot, source) else {
            return Ok(());
        };
        let error = check(&probe, self.request.rounding)?;
        if error > 0.0 {
            self.losses.push(Loss {
                tensor: self.target_name(slot),
                kind: "scale-rounding",
                max_relative: Some(error),
                max_absolute: None,
            });
        }
        Ok(())
    }

    /// `weight_scale` beside packed codes: the source's own if it has one, else the f32 multiplier.
    fn scale_beside(&mut self, slot: Slot, source: &LinearSource) {
        let weight = self.target_name(slot);
        let name = scale_name(&weight);
        let item = match (outside_scale(source), self.kept_direction()) {
            (Some((info, _)), Some(_)) => Item {
                slot: Some(slot),
                source_name: info.name.clone(),
                from: info.encoding.name(),
                to: info.encoding.name(),
                tensor: PlannedTensor {
                    name,
                    encoding: info.encoding,
                    shape: info.shape.clone(),
                    len: info.len,
                },
                action: Action::Ready(self.checkpoint.file.bytes(info).to_vec()),
                file: 0,
                offset: 0,
            },
            _ => Item {
                slot: Some(slot),
                source_name: source.info.name.clone(),
                from: "scale".to_owned(),
                to: "f32".to_owned(),
                tensor: PlannedTensor {
                    name,
                    encoding: Encoding::Plain(PlainType::F32),
                    shape: vec![1],
                    len: 4,
                },
                action: Action::Scale(ScaleTensor::Multipliers),
                file: 0,
                offset: 0,
            },
        };
        self.items.push(item);
    }

    /// The direction of the source's `weight_scale` tensors, if every linear has one of the same:
    /// they are then copied bit for bit, whatever their type, and `config.json` goes on saying so.
    fn kept_direction(&self) -> Option<ScaleDirection> {
        let mut directions = self
            .checkpoint
            .slots()
            .into_iter()
            .filter(|s| s.is_ternary())
            .map(|s| outside_scale(self.checkpoint.linear(s).ok()?).map(|(_, d)| d));
        let first = directions.next()??;
        directions.all(|d| d == Some(first)).then_some(first)
    }

    fn dense(&mut self, slot: Slot) -> Result<(), FormatError> {
        let info = self.checkpoint.tensor_range(slot).ok_or_else(|| {
            FormatError::new(
                ErrorCode::MissingTensor,
                "the model needs this tensor, the source has none",
            )
        })?;
        let shape = self.checkpoint.config.shape(slot);
        let gguf = self.request.target.kind == Kind::Gguf;
        let embedding = matches!(slot, Slot::TokenEmbeddings | Slot::OutputHead);
        // a gain and a gain minus one: what widens is the gain
        let as_stored = self.checkpoint.dense_plus_one(slot)
            == stores_gain_minus_one(self.request.target, self.checkpoint, slot);
        let encoding = match self.request.embeddings {
            _ if !as_stored => Encoding::Plain(PlainType::F32),
            Embeddings::As(to) if embedding => to.encoding(),
            // readers of GGUF compute norms from f32 only; every source type widens exactly
            _ if !embedding && gguf => Encoding::Plain(PlainType::F32),
            _ => info.encoding,
        };
        if let (false, Encoding::Block(_)) = (gguf, encoding) {
            let message = format!("safetensors cannot hold {}", encoding.name());
            return Err(FormatError::new(ErrorCode::TargetCannotHold, message).hint(
                "--embeddings f32 stores the values it stands for, bf16 or f16 rounds them",
            ));
        }
        let row = shape.last().copied().unwrap_or(0);
        let len = dense_len(encoding, shape.iter().product(), row)?;
        let action = if encoding == info.encoding && as_stored {
            Action::Copy
        } else {
            Action::Recode(encoding)
        };
        if let Action::Recode(_) = action
            && !widens(info.encoding, encoding)
        {
            self.losses.push(Loss {
                tensor: self.target_name(slot),
                kind: "dense-rounding",
                max_relative: None,
                max_absolute: None,
            });
        }
        self.push(slot, info.encoding.name(), encoding, len, shape, action);
        if matches!(self.request.target.linears, Linears::Fused(_)) {
            self.tied_head(slot);
        }
        Ok(())
    }

    // ---- GGUF ----

    fn gguf(&mut self) -> Result<Vec<OutputFile>, FormatError> {
        let family = self.checkpoint.family;
        for (name, values) in family.gguf_extra_tensors(&self.checkpoint.config) {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.items.push(Item {
                slot: None,
                source_name: String::new(),
                from: "config".to_owned(),
                to: "f32".to_owned(),
                tensor: PlannedTensor {
                    name,
                    encoding: Encoding::Plain(PlainType::F32),
                    shape: vec![values.len()],
                    len: bytes.len() as u64,
                },
                action: Action::Ready(bytes),
                file: 0,
                offset: 0,
            });
        }
        let metadata = self.gguf_metadata()?;
        let count = self.assign_files(self.request.split_max_size);
        let mut files = Vec::with_capacity(count);
        for part in 0..count {
            let mut own = if part == 0 {
                metadata.clone()
            } else {
                Metadata::default()
            };
            let mut path = self.request.output.to_owned();
            if count > 1 {
                let too_many = || {
                    FormatError::new(
                        ErrorCode::Usage,
                        format!("{count} parts are more than GGUF can count"),
                    )
                    .hint("a larger --split-max-size makes fewer")
                };
                let number = u16::try_from(part).map_err(|_| too_many())?;
                let of = u16::try_from(count).map_err(|_| too_many())?;
                own.set("split.no", MetaValue::U16(number));
                own.set("split.count", MetaValue::U16(of));
                own.set(
                    "split.tensors.count",
                    MetaValue::I32(self.items.len() as i32),
                );
                path = Gguf::split_name(&path, part, count);
            }
            files.push(self.lay_out(&Gguf, part, path, own)?);
        }
        Ok(files)
    }

    /// The name of the packing, with its parameters, where readers cannot know it from the type id.
    fn layout(&self) -> Option<String> {
        let packed = self.items.iter().filter_map(|item| match item.action {
            Action::Pack(_) | Action::CopyPacked(_) => item.tensor.shape.split_last(),
            _ => None,
        });
        let shapes = packed.map(|(cols, rows)| (rows.iter().product(), *cols));
        let packing = self.request.target.packing()?;
        let shared = || same_layout_id(packing).len() > 1;
        name_with_parameters(packing, shapes)
            .or_else(|| shared().then(|| packing.name().to_owned()))
    }

    fn gguf_metadata(&self) -> Result<Metadata, FormatError> {
        let Checkpoint {
            family,
            config,
            file,
            ..
        } = self.checkpoint;
        let name = side_files::model_name(self.checkpoint);
        let mut metadata = Metadata::default();
        for (key, value) in family.gguf_metadata(config, name.as_deref())? {
            metadata.set(key, value);
        }
        if let Some(id) = self.request.target.gguf_file_type() {
            metadata.set("general.file_type", MetaValue::U32(id));
        }
        if let Some(layout) = self.layout() {
            metadata.set(GGUF_LAYOUT_KEY, MetaValue::text(&layout));
        }
        if file.container == Gguf.name() {
            // keys of the architecture were read under the name that the source has for it
            let stale = |key: &str| {
                let mut others = family.gguf_architectures.iter().skip(1);
                others.any(|a| key.strip_prefix(a).is_some_and(|k| k.starts_with('.')))
            };
            for (key, value) in &file.metadata.0 {
                if is_carried(key) && !stale(key) && metadata.get(key).is_none() {
                    metadata.set(key.clone(), value.clone());
                }
            }
        } else if let Some(directory) = &self.checkpoint.directory {
            for (key, value) in bitnet_model::tokenizer_to_gguf(directory, config.vocab_size)? {
                metadata.set(key, value);
            }
        }
        Ok(metadata)
    }

    // ---- Hugging Face ----

    #[allow(clippy::type_complexity)]
    fn hugging_face(&mut self) -> Result<(Vec<OutputFile>, Vec<(String, Vec<u8>)>), FormatError> {
        let Checkpoint {
            family,
            config,
            rotation,
            ..
        } = self.checkpoint;
        if rotation.is_some() {
            let message =
                "the weights are rotated, and nothing in a Hugging Face checkpoint would say so";
            return Err(FormatError::new(ErrorCode::TargetCannotHold, message)
                .in_tensor(ROTATION_KEYS)
                .hint("a GGUF target keeps the metadata of the rotation"));
        }
        let storage = self.hf_storage()?;
        if storage == HfStorage::Dequantised && family.dequantised_has_scale(config) {
            self.add_unit_scales();
        }
        let tiles = matches!(self.request.target.linears, Linears::Tiles(_));
        if tiles {
            // no holes between tensors: what would move tiles off a line goes behind all of them
            self.items
                .sort_by_key(|item| !item.tensor.len.is_multiple_of(TILES_ALIGNMENT));
        }
        let files = match self.request.target.linears {
            Linears::Fused(_) => vec![self.gpu_file()?],
            _ => self.shards()?,
        };
        let count = files.len();
        let mut side = side_files::collect(self.checkpoint)?;
        if count > 1 {
            side.push((
                "model.safetensors.index.json".to_owned(),
                self.index(&files),
            ));
        }
        let config = side_files::config_json(self.checkpoint, storage);
        side.push(("config.json".to_owned(), config));
        side.sort_by(|a, b| a.0.cmp(&b.0));
        Ok((files, side))
    }

    /// One safetensors file, or several.
    fn shards(&mut self) -> Result<Vec<OutputFile>, FormatError> {
        let count = self.assign_files(Some(self.request.split_max_size.unwrap_or(HF_SHARD)));
        let mut files = Vec::with_capacity(count);
        for part in 0..count {
            let name = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", part + 1),
            };
            let mut metadata = Metadata::default();
            if part == 0 {
                for (key, text) in side_files::described(self.checkpoint) {
                    metadata.set(key, MetaValue::text(text));
                }
            }
            match self.request.target.linears {
                Linears::Tiles(_) => self.describe_tiles(part, &mut metadata),
                Linears::Affine(_) => metadata.set("format", MetaValue::text("mlx")),
                // transformers refuses files that do not say which library's tensors they are
                _ => metadata.set("format", MetaValue::text("pt")),
            }
            let path = self.request.output.join(name);
            files.push(self.lay_out(&Safetensors, part, path, metadata)?);
        }
        Ok(files)
    }

    /// What the metadata of a file say of the tiles in it.
    fn describe_tiles(&self, part: usize, metadata: &mut Metadata) {
        metadata.set("format", MetaValue::text(TILES_FORMAT));
        metadata.set(TILES_VERSION.0, MetaValue::text(TILES_VERSION.1));
        for item in self.items.iter().filter(|i| i.file == part) {
            if let (Action::Pack(packing), Some(slot)) = (&item.action, item.slot)
                && let [rows, cols] = self.checkpoint.config.shape(slot)[..]
            {
                let entry = tiles_entry(*packing, rows, cols);
                metadata.set(&item.tensor.name, MetaValue::text(entry));
            }
        }
    }

    /// What `config.json` has to say about the linears as they are stored.
    fn hf_storage(&self) -> Result<HfStorage, FormatError> {
        if let Linears::Tiles(_) | Linears::Fused(_) = self.request.target.linears {
            return Ok(HfStorage::Packed(ScaleDirection::Multiply));
        }
        if let Some(AffineForm { group, .. }) = self.affine {
            return Ok(HfStorage::Affine { group });
        }
        if let Linears::Packed(_) = self.request.target.linears {
            let direction = self.kept_direction().unwrap_or(ScaleDirection::Multiply);
            return Ok(HfStorage::Packed(direction));
        }
        let count = |master: bool| {
            let linears = self
                .items
                .iter()
                .filter(|i| i.slot.is_some_and(Slot::is_ternary));
            linears
                .filter(|i| matches!(i.action, Action::CopyMaster) == master)
                .count()
        };
        match (count(true), count(false)) {
            (_, 0) => Ok(HfStorage::MasterWeights),
            (0, _) => Ok(HfStorage::Dequantised),
            // one configuration could not say which is which
            (masters, others) => Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!("{masters} linears are master weights and {others} are ternary already"),
            )
            .hint("--to hf-packed holds both")),
        }
    }

    /// Dequantised values under AutoBitLinear: the scale is in the values, so the one beside is 1.
    fn add_unit_scales(&mut self) {
        let mut with_scales = Vec::with_capacity(self.items.len() * 2);
        for item in self.items.drain(..) {
            let is_linear = item.slot.is_some_and(Slot::is_ternary);
            let unit = (is_linear && matches!(item.action, Action::Dequantise(_))).then(|| Item {
                slot: item.slot,
                source_name: item.source_name.clone(),
                from: "1".to_owned(),
                to: "bf16".to_owned(),
                tensor: PlannedTensor {
                    name: scale_name(&item.tensor.name),
                    encoding: Encoding::Plain(PlainType::Bf16),
                    shape: vec![1],
                    len: 2,
                },
                action: Action::Ready(vec![0x80, 0x3f]),
                file: 0,
                offset: 0,
            });
            with_scales.push(item);
            with_scales.extend(unit);
        }
        self.items = with_scales;
    }

    fn index(&self, files: &[OutputFile]) -> Vec<u8> {
        let mut map = Map::new();
        for item in &self.items {
            let name = files
                .get(item.file)
                .and_then(|f| f.path.file_name())
                .unwrap_or_default();
            map.insert(item.tensor.name.clone(), json!(name.to_string_lossy()));
        }
        let total: u64 = self.items.iter().map(|i| i.tensor.len).sum();
        side_files::pretty(&json!({"metadata": {"total_size": total}, "weight_map": map}))
    }

    // ---- both ----

    /// Gives every item its file; returns how many files there are.
    fn assign_files(&mut self, most: Option<u64>) -> usize {
        let (mut file, mut filled) = (0usize, 0u64);
        for item in &mut self.items {
            // a scale stays with its weights
            let follows =
                matches!(item.action, Action::Scale(_) | Action::Ready(_)) && item.slot.is_some();
            let over = most.is_some_and(|most| filled.saturating_add(item.tensor.len) > most);
            if over && filled > 0 && !follows {
                file += 1;
                filled = 0;
            }
            filled = filled.saturating_add(item.tensor.len);
            item.file = file;
        }
        file + 1
    }

    fn lay_out(
        &mut self,
        container: &dyn Container,
        part: usize,
        path: PathBuf,
        metadata: Metadata,
    ) -> Result<OutputFile, FormatError> {
        // neighbours of one name are the rows of one tensor, top to bottom
        let mut tensors: Vec<PlannedTensor> = Vec::with_capacity(self.items.len());
        let mut places = Vec::with_capacity(self.items.len());
        for item in self.items.iter().filter(|i| i.file == part) {
            let number = tensors.len().saturating_sub(1);
            match tensors.last_mut() {
                Some(whole) if whole.name == item.tensor.name => {
                    places.push((number, whole.len));
                    whole.len = whole.len.saturating_add(item.tensor.len);
                    if let (Some(all), Some(rows)) =
                        (whole.shape.first_mut(), item.tensor.shape.first())
                    {
                        *all = all.saturating_add(*rows);
                    }
                }
                _ => {
                    places.push((tensors.len(), 0));
                    tensors.push(item.tensor.clone());
                }
            }
        }
        let header = container.header(&WritePlan { metadata, tensors })?;
        let own = self.items.iter_mut().filter(|i| i.file == part);
        for (item, (tensor, before)) in own.zip(places) {
            let start = header.offsets.get(tensor).copied().unwrap_or_default();
            item.offset = start.saturating_add(before);
        }
        Ok(OutputFile { path, header })
    }

    fn peak_memory(&self, files: &[OutputFile], side: &[(String, Vec<u8>)]) -> u64 {
        let linears = self
            .items
            .iter()
            .filter(|i| i.slot.is_some_and(|slot| self.checkpoint.is_ternary(slot)));
        let trits = linears
            .filter_map(|i| i.slot)
            .map(|s| self.checkpoint.config.shape(s).iter().product::<usize>() as u64)
            .max()
            .unwrap_or(0);
        let packed = self
            .items
            .iter()
            .filter(|i| matches!(i.action, Action::Pack(_)));
        let packed = packed.map(|i| i.tensor.len).max().unwrap_or(PIECE);
        // one matrix at work, its permuted copy, one waiting for its digest and one in it;
        // outputs: one being made, those in the queue, one being written
        let tensors = 4 * trits + (2 + crate::pipeline::QUEUE as u64) * packed;
        let headers: u64 = files.iter().map(|f| f.header.bytes.len() as u64).sum();
        let side: u64 = side.iter().map(|(_, b)| b.len() as u64).sum();
        // the tokenizer is held as parsed metadata and as header bytes
        BASE_MEMORY + tensors + 3 * headers + side
    }
}

/// Whether a target stores the gain of a norm minus one.
fn stores_gain_minus_one(target: &Target, checkpoint: &Checkpoint, slot: Slot) -> bool {
    target.kind == Kind::HuggingFace && (checkpoint.family.stores_gain_minus_one)(slot)
}

/// Whether a key of one GGUF file belongs into another of the same model: what describes the model does
/// (author, licence, tokenizer, keys of other programs), what describes the file or is written anew does not.
pub fn is_carried(key: &str) -> bool {
    let about_the_file = [
        "general.architecture",
        "general.file_type",
        "general.quantization_version",
        "general.quantized_by",
        "general.alignment",
        GGUF_LAYOUT_KEY,
    ];
    let begins = ["split.", "quantize.", "ternary."];
    !about_the_file.contains(&key) && !begins.iter().any(|b| key.starts_with(b))
}

/// `….weight_scale` of `….weight`.
fn scale_name(weight: &str) -> String {
    format!("{weight}_scale")
}

fn unknown_target(request: &Request<'_>) -> FormatError {
    FormatError::new(
        ErrorCode::Usage,
        format!("no packing for target {}", request.target.name),
    )
}

fn outside_scale(source: &LinearSource) -> Option<(&bitnet_formats::TensorInfo, ScaleDirection)> {
    match &source.rule {
        LinearRule::Packed {
            outside: Some((info, direction)),
            ..
        }
        | LinearRule::PackedValues {
            outside: Some((info, direction)),
            ..
        } => Some((info, *direction)),
        _ => None,
    }
}

/// The storage of a linear, for people.
pub fn describe(source: &LinearSource) -> String {
    let stored = source.info.encoding.name();
    match &source.rule {
        LinearRule::Packed { packing, .. } | LinearRule::Tiles { packing, .. } => {
            packing.name().to_owned()
        }
        LinearRule::Affine { .. } => MLX_PACKING.to_owned(),
        LinearRule::PackedValues { packing, .. } => format!("{} as {stored}", packing.name()),
        LinearRule::Dequantised { .. } => format!("{stored} ternary"),
        LinearRule::Absmean => format!("{stored} master"),
    }
}

/// Whether every value of one type is a value of the other.
fn widens(from: Encoding, to: Encoding) -> bool {
    // every decoder defines its values as f32
    to == Encoding::Plain(PlainType::F32) || from == to
}

/// Whether the rows of a linear are to be brought into the order of paired rotary dimensions.
pub fn permuted_head_dim(checkpoint: &Checkpoint, target: &Target, slot: Slot) -> Option<usize> {
    let is_qk = matches!(slot, Slot::Layer(_, LayerSlot::QProj | LayerSlot::KProj));
    (target.permutes_qk(checkpoint.family.permutes_qk) && is_qk)
        .then_some(checkpoint.config.head_dim)
}
