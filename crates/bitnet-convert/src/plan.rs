//! The whole conversion, before its first byte: every tensor, its place, its type, its cost.
//!
//! Invariant: a plan that was built can be written: names, shapes, types and the scales that can be
//! read without reading the weights have been checked against the target. What only shows while
//! weights are read (scales of master weights, damaged codes) fails later and leaves nothing behind.

mod files;
mod tensors;

use crate::args::Embeddings;
use crate::scales;
use crate::targets::{Kind, Target};
use bitnet_checkpoint::{Checkpoint, LayerSlot, ScaleForm, SharedScales, Slot};
use bitnet_formats::{
    Encoding, FormatError, Header, Packing, PlainType, PlannedTensor, ScaleRounding,
};
use bitnet_text::TokenizerNote;
use serde_json::{Value, json};
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
    Scale(ScaleForm),
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
    /// What readers of the output have to know about its tokenizer.
    pub notes: Vec<TokenizerNote>,
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

    /// How the scales of a linear are written in a tensor of their own, if they are.
    pub fn scale_tensor(&self, slot: Slot) -> Option<&ScaleForm> {
        self.items.iter().find_map(|item| match &item.action {
            Action::Scale(scale) if scale.slots.contains(&slot) => Some(scale),
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
    let writer = request.target.form.writer;
    writer.check_network(&checkpoint.config)?;
    let mut planner = Planner {
        checkpoint,
        request,
        losses: Vec::new(),
        items: Vec::new(),
        shared: scales::shared(checkpoint, writer)?,
        notes: Vec::new(),
    };
    // what is fused has to be written together
    let slots = match writer.is_fused() {
        true => checkpoint.slots(),
        false => checkpoint.slots_in_file_order(),
    };
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
    let Planner {
        items,
        losses,
        notes,
        ..
    } = planner;
    Ok(Plan {
        target: request.target,
        files,
        items,
        side_files,
        losses,
        notes,
        peak_memory,
    })
}

struct Planner<'a> {
    checkpoint: &'a Checkpoint,
    request: &'a Request<'a>,
    losses: Vec<Loss>,
    items: Vec<Item>,
    /// What the scales of all linears have in common, if they have to.
    shared: Option<SharedScales>,
    notes: Vec<TokenizerNote>,
}

/// Whether a target stores the gain of a norm minus one.
fn stores_gain_minus_one(target: &Target, checkpoint: &Checkpoint, slot: Slot) -> bool {
    target.kind == Kind::HuggingFace && (checkpoint.family.stores_gain_minus_one)(slot)
}

/// Whether the rows of a linear are to be brought into the order of paired rotary dimensions.
pub fn permuted_head_dim(checkpoint: &Checkpoint, target: &Target, slot: Slot) -> Option<usize> {
    let is_qk = matches!(slot, Slot::Layer(_, LayerSlot::QProj | LayerSlot::KProj));
    (target.permutes_qk(checkpoint.family.permutes_qk) && is_qk)
        .then_some(checkpoint.config.head_dim)
}
