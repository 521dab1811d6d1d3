//! Which files an output has: where each tensor lies, what the headers and the files beside them say.
//!
//! Invariant: every planned tensor has one place, no two overlap, and the length of each file is known.

use super::{Action, BASE_MEMORY, HF_SHARD, Item, OutputFile, PIECE, Planner, identity};
use crate::side_files;
use crate::targets::Kind;
use bitnet_checkpoint::{
    Checkpoint, GGUF_FILE_TYPE_KEY, HfStorage, ROTATION_KEYS, Slot, pretty_json, scale_name,
};
use bitnet_formats::{
    Container, Encoding, ErrorCode, FormatError, GGUF_LAYOUT_KEY, GGUF_SPLIT_ID_KEY, Gguf,
    MetaValue, Metadata, Packing, PlainType, PlannedTensor, Pytorch, Safetensors, WritePlan,
    name_with_parameters, same_layout_id,
};
use bitnet_text::TokenizerNote;
use serde_json::{Map, json};
use std::path::PathBuf;

impl Planner<'_> {
    pub(super) fn gguf(&mut self) -> Result<Vec<OutputFile>, FormatError> {
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
                own.set(GGUF_SPLIT_ID_KEY, Gguf::split_id_placeholder());
                path = Gguf::split_name(&path, part, count);
            }
            files.push(self.lay_out(&Gguf, part, path, own)?);
        }
        if count > 1 {
            let content = identity::samples(self.checkpoint, count)?;
            let headers = files.iter_mut().map(|file| &mut file.header.bytes);
            Gguf::set_split_id(&mut headers.collect::<Vec<_>>(), &content)?;
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

    fn gguf_metadata(&mut self) -> Result<Metadata, FormatError> {
        let (family, config) = (self.checkpoint.family, self.config.clone());
        let config = &config;
        let name = self.checkpoint.name();
        let mut metadata = Metadata::default();
        for (key, value) in family.gguf_metadata(config, name.as_deref())? {
            metadata.set(key, value);
        }
        if let Some(id) = self.request.target.gguf_file_type() {
            metadata.set(GGUF_FILE_TYPE_KEY, MetaValue::U32(id));
        }
        if let Some(layout) = self.layout() {
            metadata.set(GGUF_LAYOUT_KEY, MetaValue::text(&layout));
        }
        self.notes = self.checkpoint.add_gguf_text(&mut metadata)?;
        self.settle_blocks(&mut metadata);
        self.check_chat_templates()?;
        family.settle_special_tokens(config, &mut metadata);
        Ok(metadata)
    }

    /// Counts blocks that predict further tokens, if they are carried along.
    fn settle_blocks(&self, metadata: &mut Metadata) {
        let Checkpoint { family, config, .. } = self.checkpoint;
        let has_them = !self.not_computed.carried.is_empty();
        family.settle_blocks(config, has_them.then_some(1), metadata);
    }

    /// Refuses a chat template that passes a limit when it is rendered.
    fn check_chat_templates(&mut self) -> Result<(), FormatError> {
        let templates = self.checkpoint.chat_templates()?;
        let notes = templates.check()?.into_iter();
        self.notes.extend(notes.map(|message| TokenizerNote {
            code: "chat-template-fails",
            message,
        }));
        Ok(())
    }

    // ---- Hugging Face ----

    #[allow(clippy::type_complexity)]
    pub(super) fn hugging_face(
        &mut self,
    ) -> Result<(Vec<OutputFile>, Vec<(String, Vec<u8>)>), FormatError> {
        let (family, config) = (self.checkpoint.family, self.config.clone());
        let config = &config;
        if config
            .rotation
            .as_deref()
            .is_some_and(|rotation| rotation.tiled_values)
        {
            let message = "out_proj was rotated with value heads in GGUF's order, which neither hadamard_packing.json nor a pack for MLX can say";
            return Err(FormatError::new(ErrorCode::TargetCannotHold, message)
                .in_tensor(ROTATION_KEYS)
                .hint("choose a GGUF target, which keeps the order"));
        }
        let storage = self.hf_storage()?;
        if storage == HfStorage::Dequantised && family.dequantised_has_scale(config) {
            self.add_unit_scales();
        }
        let writer = self.request.target.form.writer;
        if let Some(alignment) = writer.alignment() {
            // no holes between tensors: what would move the others off a line goes behind all of them
            self.items
                .sort_by_key(|item| !item.tensor.len.is_multiple_of(alignment));
        }
        let files = match writer.file_name() {
            Some(name) => vec![self.only_file(name)?],
            None => self.shards()?,
        };
        let count = files.len();
        self.checkpoint.check_tokenizer_rules()?;
        self.notes = self.checkpoint.tokenizer_notes();
        self.check_chat_templates()?;
        let mut side = self.checkpoint.side_files()?;
        if count > 1 {
            side.push((
                "model.safetensors.index.json".to_owned(),
                self.index(&files),
            ));
        }
        let own_json = self.checkpoint.config_json.as_ref();
        if self.is_pack() {
            side.extend(side_files::pack(self.checkpoint, config, &self.coded()));
        } else {
            let has_predictors = own_json.is_none() && !self.not_computed.carried.is_empty();
            let predictors = usize::from(has_predictors);
            let json = side_files::config_json(self.checkpoint, storage, predictors);
            side.push(("config.json".to_owned(), json));
            if let Some((name, manifest)) = family.hf_rotation(config, own_json) {
                side.push((name.to_owned(), pretty_json(&manifest)));
            }
        }
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
                for (key, text) in self.checkpoint.descriptions() {
                    metadata.set(key, MetaValue::text(text));
                }
            }
            let said = self
                .request
                .target
                .form
                .writer
                .file_metadata(&self.packed(part));
            let said = said
                .into_iter()
                .map(|(key, text)| (key, MetaValue::text(text)));
            metadata.add_missing(said);
            let path = self.request.output.join(name);
            files.push(self.lay_out(&Safetensors, part, path, metadata)?);
        }
        Ok(files)
    }

    /// The one file of a target whose program loads one.
    fn only_file(&mut self, name: &str) -> Result<OutputFile, FormatError> {
        if self.request.split_max_size.is_some() {
            let message = format!("{} is one file", self.request.target.name);
            return Err(FormatError::new(ErrorCode::Usage, message)
                .hint("its program loads one; leave --split-max-size away"));
        }
        self.assign_files(None);
        let path = self.request.output.join(name);
        self.lay_out(&Pytorch, 0, path, Metadata::default())
    }

    /// The packed tensors of a file.
    fn packed(&self, part: usize) -> Vec<(String, &'static dyn Packing, usize, usize)> {
        let items = self.items.iter().filter(|item| item.file == part);
        let entries = items.filter_map(|item| match (&item.action, item.slot) {
            (Action::Pack(packing), Some(slot)) => {
                let [rows, cols] = self.checkpoint.config.shape(slot)[..] else {
                    return None;
                };
                Some((item.tensor.name.clone(), *packing, rows, cols))
            }
            _ => None,
        });
        entries.collect()
    }

    /// The matrices that are stored as codes, in the order of the forward pass.
    fn coded(&self) -> Vec<Slot> {
        let items = self.items.iter();
        let coded = items.filter(|item| matches!(item.action, Action::Pack(_)));
        let mut coded: Vec<Slot> = coded.filter_map(|item| item.slot).collect();
        coded.sort();
        coded
    }

    /// What `config.json` has to say about the linears as they are stored.
    fn hf_storage(&self) -> Result<HfStorage, FormatError> {
        let writer = self.request.target.form.writer;
        if let Some(storage) = writer.hf_storage(self.shared, self.kept_direction()) {
            return Ok(storage);
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
        pretty_json(&json!({"metadata": {"total_size": total}, "weight_map": map}))
    }

    // ---- both ----

    /// Gives every item its file; returns how many files there are.
    pub(super) fn assign_files(&mut self, most: Option<u64>) -> usize {
        let (mut file, mut filled) = (0usize, 0u64);
        let whole = self.tensor_lengths();
        let mut before = None;
        for (item, len) in self.items.iter_mut().zip(whole) {
            // a scale stays with its weights, and a matrix with the others of its tensor
            let is_beside =
                matches!(item.action, Action::Scale(_) | Action::Ready(_)) && item.slot.is_some();
            let follows = is_beside || before.as_ref() == Some(&item.tensor.name);
            let over = most.is_some_and(|most| filled.saturating_add(len) > most);
            if over && filled > 0 && !follows {
                file += 1;
                filled = 0;
            }
            if before.as_ref() != Some(&item.tensor.name) {
                before = Some(item.tensor.name.clone());
            }
            filled = filled.saturating_add(item.tensor.len);
            item.file = file;
        }
        file + 1
    }

    /// Of every item, the bytes of its tensor from the item on: neighbors of one name are one tensor.
    fn tensor_lengths(&self) -> Vec<u64> {
        let mut lengths: Vec<u64> = self.items.iter().map(|item| item.tensor.len).collect();
        for at in (1..lengths.len()).rev() {
            if self.items[at - 1].tensor.name == self.items[at].tensor.name {
                lengths[at - 1] = lengths[at - 1].saturating_add(lengths[at]);
            }
        }
        lengths
    }

    pub(super) fn lay_out(
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

    pub(super) fn peak_memory(&self, files: &[OutputFile], side: &[(String, Vec<u8>)]) -> u64 {
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
        // A tokenizer is most of a header and of the side files. Beside those bytes there are the metadata
        // of a GGUF source, the metadata that are read back for the certificate, and the vocabulary.
        let text = match self.request.target.kind {
            Kind::Gguf => 3 * headers,
            Kind::HuggingFace => 3 * headers + 2 * side,
        };
        let source = match self.checkpoint.directory {
            None => headers.max(side),
            Some(_) => 0,
        };
        BASE_MEMORY + tensors + text + source
    }
}
