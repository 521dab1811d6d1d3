//! Where files become slots.
//!
//! Invariant: an open checkpoint has every slot of its configuration, each with the right shape and a
//! way in which its bytes become numbers, and no tensor besides. The numbers themselves (NaN, code 3,
//! a second magnitude) are checked when a tensor is read for the first time, so that opening reads headers
//! only and converting reads every byte once.

#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod carried;
mod dense;
mod headers;
mod inputs;
mod layout;
mod linears;
mod names;
mod readings;
mod resolve;
mod shaping;
mod side_files;
mod text;
mod tiles;
mod unread;

pub use dense::{DenseMeaning, DenseReader, DenseTensor};
pub use headers::{has_known_family, is_vocabulary_alone, records_layout};
pub use layout::{LayoutEvidence, LayoutReason};
pub use linears::TernaryRows;
pub use names::NAME_KEY;
pub use readings::{LayoutReading, LayoutSample, layout_readings};
pub use shaping::{shape_for_gguf, shape_for_hf};
pub use side_files::{REWRITTEN_SIDE_FILES, side_file_names};
pub use text::{TokenizerSummary, pretty_json};
pub use tiles::Tiles;
pub use unread::WRITER_KEYS;

use self::shaping::Form;
use crate::config::Config;
use crate::family::{self, Family, UnknownKey};
use crate::slot::Slot;
use crate::storage::LinearSource;
use bitnet_formats::{
    ErrorCode, FormatError, Input, Limits, Metadata, Reading, Source as ByteSource, TensorFile,
    TensorInfo, read_side_file,
};
use serde_json::Value;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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

/// What fills a slot.
#[derive(Debug)]
enum Source {
    Linear(LinearSource),
    Dense {
        info: TensorInfo,
        /// The shape of the slot; that of the file may have axes of one besides.
        shape: Vec<usize>,
        /// What the numbers stored mean.
        form: Form,
        finite: AtomicBool,
    },
}

impl Source {
    /// Whether these are plain numbers with nothing beside them that says how they are computed with.
    fn is_numbers(&self) -> bool {
        match self {
            Self::Linear(source) => source.storage.is_bare(source),
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
///
/// ```
/// use bitnet_checkpoint::{Checkpoint, LayerSlot, OpenOptions, Slot};
/// # let path = std::path::Path::new("../../tests/fixtures/demo/packed");
///
/// let checkpoint = Checkpoint::open(path, &OpenOptions::default())?;
/// assert_eq!(checkpoint.config.hidden_size, 256);
/// let query = checkpoint.ternary(Slot::Layer(0, LayerSlot::QProj))?;
/// assert_eq!((query.rows(), query.cols()), (256, 256));
/// # Ok::<(), bitnet_formats::FormatError>(())
/// ```
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
    /// Keys of the configuration that nothing here reads and that are not known to be harmless.
    pub unknown_keys: Vec<UnknownKey>,
    /// Tensors of parts of the model that are carried along and not computed: blocks that predict further tokens, a
    /// vision tower.
    pub carried: Vec<TensorInfo>,
    /// Tensors of other parts of a model of which only the language model is read, by name.
    pub skipped: Vec<String>,
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
        Self::open_among(path, options, &[])
    }

    /// As [`open`](Self::open). Files that are open already are not opened again.
    fn open_among(
        path: &Path,
        options: &OpenOptions,
        opened: &[Arc<dyn ByteSource>],
    ) -> Result<Self, FormatError> {
        let mut side_inputs = side_files::inputs(directory_of(path), &options.limits);
        let open = |path: &Path| match opened.iter().find(|source| source.path() == path) {
            Some(source) => Ok(Arc::clone(source)),
            None => bitnet_formats::open_source(path),
        };
        let how = Reading {
            limits: &options.limits,
            layout: resolve::forced_layout(options)?,
            open: &open,
        };
        let file = bitnet_formats::open_with(path, &how)?;
        let whole = file.parts.first().map_or(path, |p| p.path()).to_owned();
        let resolved = if headers::brings_everything(&file) {
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
            skipped,
            sources,
            carried,
        } = resolved.map_err(|e| e.in_file(&whole))?;
        if directory.is_none() {
            side_inputs.clear();
        }
        let vocab_size = config.vocab_size;
        let unknown_keys = match &config_json {
            Some(json) => family.unknown_keys(json),
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
            unknown_keys,
            carried,
            skipped,
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

    /// How the weights are rotated, as the keys of GGUF metadata say it; none if they are not.
    pub fn rotation_keys(&self) -> Metadata {
        Metadata(family::rotation::gguf_rotation(self.family, &self.config))
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
        let path = self.file.path_of(info).unwrap_or(&self.path);
        error.in_tensor(&info.name).in_file(path)
    }
}

/// The directory with the files beside the weights: `path` itself, or where it lies.
fn directory_of(path: &Path) -> &Path {
    match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(Path::new("")),
    }
}
