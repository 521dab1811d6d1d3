//! The whole conversion, before its first byte: every tensor, its place, its type, its cost.
//!
//! Invariant: a plan that was built can be written: names, shapes, types and the scales that can be
//! read without reading the weights have been checked against the target. What only shows while
//! weights are read (scales of master weights, damaged codes) fails later and leaves nothing behind.

mod carried;
mod files;
mod identity;
mod tensors;

pub use identity::plan_sha256;

use crate::args::Embeddings;
use crate::scales;
use crate::targets::{Kind, Target};
use crate::unfold;
use bitnet_checkpoint::{
    Checkpoint, Config, LayerSlot, ScaleDirection, ScaleForm, SharedScales, Slot, StoredOrder,
};
use bitnet_formats::{
    Encoding, FormatError, Header, Packing, PlainType, PlannedTensor, ScaleRounding, TensorInfo,
};
use bitnet_text::TokenizerNote;
use serde_json::{Value, json};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// Whether rotated weights are turned back.
    pub unfold: bool,
}

/// How the bytes of one output tensor are made.
#[derive(Debug, Clone)]
pub enum Action {
    /// Trits in a packing.
    Pack(&'static dyn Packing),
    /// `trit * scale` as numbers.
    Dequantise(PlainType),
    /// Rotated weights turned back, as numbers.
    Unfold(PlainType),
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
    Scale(ScaleForm),
    /// Values of a small tensor in the order and form of the target, all at once.
    Shape(Encoding),
    /// Bytes of a part that is not computed, as they are.
    Carry(TensorInfo),
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

    /// Reads what [`to_json`](Self::to_json) wrote; `None` if it is of another form.
    pub fn from_json(value: &Value) -> Option<Self> {
        let kinds = ["scale-rounding", "dense-rounding"];
        Some(Self {
            tensor: value.get("tensor")?.as_str()?.to_owned(),
            kind: kinds.into_iter().find(|kind| value["kind"] == **kind)?,
            max_relative: value.get("max_relative")?.as_f64(),
            max_absolute: value.get("max_absolute")?.as_f64(),
        })
    }
}

/// Tensors of parts that are not computed, by name: blocks that predict further tokens, a vision tower.
#[derive(Debug, Clone, Default)]
pub struct NotComputed {
    /// In the output as they are.
    pub carried: Vec<String>,
    /// The target has no place for them.
    pub left_out: Vec<String>,
}

impl NotComputed {
    pub fn to_json(&self) -> Value {
        json!({"carried": self.carried, "left_out": self.left_out})
    }

    /// One sentence for each list that is not empty.
    pub fn sentences(&self) -> Vec<String> {
        let say = |(names, what): (&Vec<String>, &str)| {
            let first = names.first()?;
            Some(format!(
                "{} tensors of parts that are not computed are {what}; the first is `{first}`",
                names.len()
            ))
        };
        [
            (&self.carried, "carried along"),
            (
                &self.left_out,
                "left out, because the target has no place for them",
            ),
        ]
        .into_iter()
        .filter_map(say)
        .collect()
    }
}

/// The whole conversion.
#[derive(Debug)]
pub struct Plan {
    pub target: &'static Target,
    /// The network of the output.
    pub config: Config,
    pub files: Vec<OutputFile>,
    /// In the order they are written: file by file, inside a file in the order of the source.
    pub items: Vec<Item>,
    /// Further files of an output directory.
    pub side_files: Vec<(String, Vec<u8>)>,
    /// Known before the weights are read.
    pub losses: Vec<Loss>,
    /// What readers of the output have to know about its tokenizer.
    pub notes: Vec<TokenizerNote>,
    /// How the scales of linears are written that have tensors of their own.
    scale_forms: Arc<BTreeMap<Slot, ScaleForm>>,
    /// Tensors of the source that no computation uses.
    pub not_computed: NotComputed,
    /// Most working memory at any time, estimated.
    pub peak_memory: u64,
}

impl Plan {
    /// Linears of master weights that the absmean rule makes ternary on the way.
    pub fn quantized_masters(&self, checkpoint: &Checkpoint) -> usize {
        let is_quantized = |item: &&Item| {
            let rule = item.slot.and_then(|slot| checkpoint.linear(slot).ok());
            matches!(item.action, Action::Pack(_) | Action::Dequantise(_))
                && rule.is_some_and(|source| source.is_master())
        };
        self.items.iter().filter(is_quantized).count()
    }

    /// Bytes of all output files.
    pub fn total_bytes(&self) -> u64 {
        let side: u64 = self
            .side_files
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum();
        self.files.iter().map(|f| f.header.total).sum::<u64>() + side
    }

    /// The part of the plan that writes one of its files.
    pub fn share(&self, file: usize) -> Self {
        let items = self.items.iter().filter(|item| item.file == file);
        Self {
            config: self.config.clone(),
            target: self.target,
            files: self.files.get(file).cloned().into_iter().collect(),
            items: items
                .map(|item| Item {
                    file: 0,
                    ..item.clone()
                })
                .collect(),
            side_files: Vec::new(),
            losses: self.losses.clone(),
            notes: Vec::new(),
            not_computed: NotComputed::default(),
            scale_forms: Arc::clone(&self.scale_forms),
            peak_memory: self.peak_memory,
        }
    }

    /// How the scales of a linear are written in a tensor of their own, if they are.
    pub fn scale_tensor(&self, slot: Slot) -> Option<&ScaleForm> {
        self.scale_forms.get(&slot)
    }

    /// What a dense tensor is stored as.
    pub fn stored_as(&self, checkpoint: &Checkpoint, slot: Slot) -> StoredAs {
        stored_as(self.target, checkpoint, slot)
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
    let writer = request.target.form.writer;
    let config = match request.unfold {
        true => unfold::network(checkpoint, request.target)?,
        false => checkpoint.config.clone(),
    };
    writer.check_network(&config)?;
    let mut planner = Planner {
        checkpoint,
        config,
        request,
        losses: Vec::new(),
        items: Vec::new(),
        shared: scales::shared(checkpoint, writer)?,
        notes: Vec::new(),
        not_computed: NotComputed::default(),
        kept_direction: OnceCell::new(),
        expert_scales: Vec::new(),
    };
    if request.target.kind == Kind::HuggingFace {
        checkpoint.family.check_hf_network(&checkpoint.config)?;
    }
    // what is fused has to be written together
    let slots = match writer.is_fused() {
        true => checkpoint.slots(),
        false => checkpoint.slots_in_file_order(),
    };
    for slot in planner.stacked(slots) {
        planner
            .slot(slot)
            .map_err(|e| e.in_tensor(&planner.target_name(slot)))?;
    }
    planner.carry()?;
    let (files, side_files) = match request.target.kind {
        Kind::Gguf => (planner.gguf()?, Vec::new()),
        Kind::HuggingFace => planner.hugging_face()?,
    };
    let peak_memory = planner.peak_memory(&files, &side_files);
    let Planner {
        config,
        items,
        losses,
        notes,
        not_computed,
        ..
    } = planner;
    let mut scale_forms = BTreeMap::new();
    for item in &items {
        if let Action::Scale(form) = &item.action {
            for slot in &form.slots {
                // the first tensor with a scale of a linear decides
                scale_forms.entry(*slot).or_insert_with(|| form.clone());
            }
        }
    }
    Ok(Plan {
        target: request.target,
        config,
        files,
        items,
        side_files,
        losses,
        notes,
        scale_forms: Arc::new(scale_forms),
        not_computed,
        peak_memory,
    })
}

struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    /// The network of the output.
    config: Config,
    request: &'a Request<'a>,
    losses: Vec<Loss>,
    items: Vec<Item>,
    /// What the scales of all linears have in common, if they have to.
    shared: Option<SharedScales>,
    notes: Vec<TokenizerNote>,
    not_computed: NotComputed,
    /// The direction of scales that are kept, once it was asked for.
    kept_direction: OnceCell<Option<ScaleDirection>>,
    /// Scales of experts before the last one of their tensor.
    expert_scales: Vec<(PlannedTensor, ScaleForm)>,
}

/// What a target stores for a dense tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredAs {
    /// Its values.
    Values,
    /// Gains of a norm minus one.
    MinusOne,
    /// Biases over the scale of this linear, whose readers multiply their sum.
    OverScale(Slot),
}

/// What a target stores for a dense tensor.
fn stored_as(target: &Target, checkpoint: &Checkpoint, slot: Slot) -> StoredAs {
    if target.kind == Kind::Gguf {
        return StoredAs::Values;
    }
    if target.form.writer.is_pack(&checkpoint.config) {
        return StoredAs::Values;
    }
    if (checkpoint.family.stores_gain_minus_one)(slot) {
        return StoredAs::MinusOne;
    }
    match slot {
        Slot::Layer(layer, role) => match role.biased_linear() {
            Some(linear) if target.form.writer.scales_biases(kept_direction(checkpoint)) => {
                StoredAs::OverScale(Slot::Layer(layer, linear))
            }
            _ => StoredAs::Values,
        },
        _ => StoredAs::Values,
    }
}

/// The direction of the source's `weight_scale` tensors, if every linear has one of the same:
/// they are then copied bit for bit, whatever their type, and `config.json` goes on saying so.
fn kept_direction(checkpoint: &Checkpoint) -> Option<ScaleDirection> {
    let slots = checkpoint.slots().into_iter().filter(|s| s.is_ternary());
    let mut directions = slots.map(|s| checkpoint.linear(s).ok()?.weight_scale().map(|(_, d)| d));
    let first = directions.next()??;
    directions.all(|d| d == Some(first)).then_some(first)
}

/// In which order a target keeps the rows or columns of a tensor, where that is not the one of the Hugging Face
/// checkpoint.
pub fn stored_order(checkpoint: &Checkpoint, target: &Target, slot: Slot) -> Option<StoredOrder> {
    if target.kind == Kind::Gguf {
        return checkpoint.family.gguf_order(&checkpoint.config, slot);
    }
    let is_qk = matches!(slot, Slot::Layer(_, LayerSlot::QProj | LayerSlot::KProj));
    let head_dim = checkpoint.config.head_dim;
    (target.permutes_qk(checkpoint.family.permutes_qk) && is_qk)
        .then_some(StoredOrder::PairedRows { head_dim })
}
