//! Which tensors an output has: from each tensor of the source its name, type, length and how its bytes are made.
//!
//! Invariant: a tensor that is planned can be written; scales and types that can be judged without reading weights
//! have been judged.

use super::{Action, Item, Loss, Planner, StoredAs, kept_direction, stored_as, stored_order};
use crate::args::Embeddings;
use crate::scales;
use crate::targets::Kind;
use crate::unfold;
use bitnet_checkpoint::{
    DenseMeaning, LayerSlot, LinearSource, Made, Output, Part, ScaleDirection, ScaleForm, Slot,
    stacked_hf,
};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, Packing, PlainType, PlannedTensor, ScaleRounding, UnitRows,
    dense_len,
};
use std::collections::HashSet;

impl Planner<'_> {
    pub(super) fn target_name(&self, slot: Slot) -> String {
        let family = self.checkpoint.family;
        match self.request.target.kind {
            Kind::Gguf => (family.gguf_tensor_name)(slot),
            Kind::HuggingFace => {
                if let (true, Some(name)) = (self.stacks_experts(), stacked_hf(slot)) {
                    return name;
                }
                if self.is_pack() {
                    return family.pack_name(slot);
                }
                let own = self.request.target.form.writer.row().name_of(slot);
                let own = own.ok().flatten();
                own.unwrap_or_else(|| family.hf_name(self.checkpoint.config_json.as_ref(), slot))
            }
        }
    }

    /// Whether the target is a pack of rotated weights for MLX.
    pub(super) fn is_pack(&self) -> bool {
        self.request.target.form.writer.is_pack(&self.config)
    }

    /// Whether the rows of a matrix are rotated in the target.
    fn is_rotated(&self, slot: Slot) -> bool {
        let rotation = self.config.rotation.as_deref();
        rotation.is_some_and(|rotation| rotation.turns(slot))
    }

    /// Refuses numbers in a pack, where codes alone are rotated.
    fn check_pack(&self, slot: Slot) -> Result<(), FormatError> {
        if !self.is_pack() || !self.is_rotated(slot) {
            return Ok(());
        }
        let message =
            "a pack for MLX holds rotated matrices as ternary codes, and this one would be numbers";
        Err(FormatError::new(ErrorCode::TargetCannotHold, message)
            .hint("leave --embeddings away; for a table that is not ternary, choose a GGUF target, packed or hf-f16"))
    }

    /// The signs of a rotated matrix of a pack, which programs for MLX read instead of the keys.
    fn push_signs(&mut self, slot: Slot) {
        let Some(rotation) = self.config.rotation.as_deref().filter(|r| r.turns(slot)) else {
            return;
        };
        let width = self.config.shape(slot).last().copied().unwrap_or(0);
        let signs = rotation.signs_of(width);
        let sign = |at| f32::from(signs.get(at).copied().unwrap_or(1)).to_le_bytes();
        let bytes: Vec<u8> = (0..width).flat_map(sign).collect();
        let weight = self.target_name(slot);
        let module = weight.strip_suffix(".weight").unwrap_or(&weight);
        self.items.push(Item {
            slot: None,
            source_name: String::new(),
            from: "config".to_owned(),
            to: "f32".to_owned(),
            tensor: PlannedTensor {
                name: format!("{module}.signs"),
                encoding: Encoding::Plain(PlainType::F32),
                shape: vec![width],
                len: bytes.len() as u64,
            },
            action: Action::Ready(bytes),
            file: 0,
            offset: 0,
        });
    }

    /// Whether the linears of all experts of a layer are one tensor of the target.
    pub(super) fn stacks_experts(&self) -> bool {
        match self.request.target.kind {
            Kind::Gguf => true,
            Kind::HuggingFace => self.request.target.form.writer.stacks_experts(),
        }
    }

    /// The slots with the experts of a tensor next to each other, in the order of their numbers.
    pub(super) fn stacked(&self, slots: Vec<Slot>) -> Vec<Slot> {
        let Some(experts) = &self.checkpoint.config.experts else {
            return slots;
        };
        if !self.stacks_experts() {
            return slots;
        }
        let mut seen = HashSet::new();
        let mut all = Vec::with_capacity(slots.len());
        for slot in slots {
            let Slot::Layer(layer, LayerSlot::Expert(_, linear)) = slot else {
                all.push(slot);
                continue;
            };
            if seen.insert((layer, linear)) {
                let expert = |expert| Slot::Layer(layer, LayerSlot::expert(expert, linear));
                all.extend((0..experts.count).map(expert));
            }
        }
        all
    }

    /// Whether a slot is the last of the experts of its tensor.
    fn is_last_expert(&self, slot: Slot) -> bool {
        let experts = self.checkpoint.config.experts.as_ref();
        let Slot::Layer(_, LayerSlot::Expert(expert, _)) = slot else {
            return false;
        };
        experts.is_some_and(|experts| usize::from(expert) + 1 == experts.count)
    }

    /// Joins the scales of an expert to those before; the tensor of all when it is the last.
    fn join_scales(
        &mut self,
        slot: Slot,
        tensor: PlannedTensor,
        form: ScaleForm,
    ) -> Option<(PlannedTensor, ScaleForm)> {
        let same = self
            .expert_scales
            .iter_mut()
            .find(|(t, _)| t.name == tensor.name);
        match same {
            None => {
                let shape = [&[1], &tensor.shape[..]].concat();
                self.expert_scales.push((
                    PlannedTensor {
                        shape,
                        ..tensor.clone()
                    },
                    form,
                ));
            }
            Some((all, slots)) => {
                all.len = all.len.saturating_add(tensor.len);
                if let Some(count) = all.shape.first_mut() {
                    *count += 1;
                }
                slots.slots.extend(form.slots);
            }
        }
        if !self.is_last_expert(slot) {
            return None;
        }
        let place = self
            .expert_scales
            .iter()
            .position(|(t, _)| t.name == tensor.name)?;
        Some(self.expert_scales.remove(place))
    }

    pub(super) fn slot(&mut self, slot: Slot) -> Result<(), FormatError> {
        // a pack has codes of tables, too
        let is_coded_table = self.is_pack()
            && self.checkpoint.is_ternary(slot)
            && self.request.embeddings == Embeddings::Keep;
        if self.request.unfold && unfold::is_unfolded(self.checkpoint, slot) {
            self.unfolded(slot)
        } else if slot.is_ternary() || is_coded_table {
            self.linear(slot)
        } else if self.checkpoint.is_ternary(slot) {
            self.table(slot)
        } else {
            self.dense(slot)
        }
    }

    /// A rotated matrix as the numbers that it stands for.
    fn unfolded(&mut self, slot: Slot) -> Result<(), FormatError> {
        let plain = self.request.target.form.plain;
        let (encoding, shape) = (Encoding::Plain(plain), self.config.shape(slot));
        let cols = shape.last().copied().unwrap_or(0);
        let len = dense_len(encoding, shape.iter().product(), cols)?;
        let from = match self.checkpoint.linear(slot) {
            Ok(source) => source.describe(),
            Err(_) => {
                let held = self.checkpoint.dense_encoding(slot);
                held.map_or_else(String::new, |(_, from)| from)
            }
        };
        self.push(slot, from, encoding, len, shape, Action::Unfold(plain));
        Ok(())
    }

    pub(super) fn push(
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
        let form = &self.request.target.form;
        let parts = self.parts(slot, source)?;
        if !form.writer.holds_any_scales() {
            let shared = self.shared;
            self.check_scale(slot, source, |m, r| form.writer.check(form, shared, m, r))?;
        }
        self.push_parts(slot, source, parts)?;
        if self.is_pack() {
            self.push_signs(slot);
        }
        Ok(())
    }

    /// The tensors that the target has for a linear.
    fn parts(&self, slot: Slot, source: &LinearSource) -> Result<Vec<Part>, FormatError> {
        let form = &self.request.target.form;
        form.writer.write(&Output {
            slot,
            name: &self.target_name(slot),
            form,
            source,
            shared: self.shared,
            scale_shape: &|| scales::structure(self.checkpoint, slot, source),
            one_scale: self.checkpoint.one_scale(slot),
            keeps_scale: self.kept_direction().is_some(),
            computed_in: scales::computed_in(self.checkpoint),
        })
    }

    fn push_parts(
        &mut self,
        slot: Slot,
        source: &LinearSource,
        parts: Vec<Part>,
    ) -> Result<(), FormatError> {
        let is_stacked =
            self.stacks_experts() && matches!(slot, Slot::Layer(_, LayerSlot::Expert(..)));
        for Part {
            mut tensor,
            mut made,
        } in parts
        {
            if is_stacked {
                if let Made::Scales(form) = made {
                    let Some((all, forms)) = self.join_scales(slot, tensor, form) else {
                        continue;
                    };
                    (tensor, made) = (all, Made::Scales(forms));
                } else {
                    if let Made::Codes(packing) = &made {
                        stands_alone(*packing, source.rows, source.cols)?;
                    }
                    // one of the matrices of a tensor of three dimensions
                    tensor.shape.insert(0, 1);
                }
            }
            let (from, to) = (source.describe(), tensor.encoding.name());
            let own = source.info.name.clone();
            let (source_name, from, to, action) = match made {
                Made::Codes(packing) => {
                    let action = match self.is_copy(slot, source, packing, &tensor) {
                        true => Action::CopyPacked(packing),
                        false => Action::Pack(packing),
                    };
                    (own, from, packing.name().to_owned(), action)
                }
                Made::Numbers(plain) => (own, from, to, Action::Dequantise(plain)),
                Made::AsStored => (own, from, to, Action::CopyMaster),
                Made::Scales(form) => (own, "scale".to_owned(), to, Action::Scale(form)),
                Made::Kept(info) => {
                    let bytes = self.checkpoint.file.read(&info)?.to_vec();
                    (info.name, to.clone(), to, Action::Ready(bytes))
                }
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
        Ok(())
    }

    /// Whether the bytes of a packed linear are those of the source.
    fn is_copy(
        &self,
        slot: Slot,
        source: &LinearSource,
        packing: &dyn Packing,
        tensor: &PlannedTensor,
    ) -> bool {
        let stored = source.packing.filter(|_| source.beside.is_empty());
        stored.is_some_and(|stored| {
            let stored_as = stored.same_bytes_as().unwrap_or(stored.name());
            // scales that lie in blocks: nothing behind the last that only one file has
            stored_as == packing.name()
                && self.request.target.table_packing().is_some()
                && source.order == stored_order(self.checkpoint, self.request.target, slot)
                && source.info.len == tensor.len
        })
    }

    /// Embeddings or output head that are ternary: packed where readers of the target look up packed rows,
    /// else as numbers of the smallest type that holds them.
    fn table(&mut self, slot: Slot) -> Result<(), FormatError> {
        self.check_pack(slot)?;
        let source = self.checkpoint.linear(slot)?;
        let (rows, cols) = (source.rows, source.cols);
        let plain = match self.request.embeddings {
            Embeddings::Keep => {
                if let Some(packing) = self.request.target.table_packing()
                    && packing.packed_len(rows, cols).is_ok()
                {
                    let parts = self.parts(slot, source)?;
                    self.push_parts(slot, source, parts)?;
                    return Ok(());
                }
                self.smallest_float(slot, source)?
            }
            Embeddings::As(to) => match to.encoding() {
                Encoding::Plain(plain) => plain,
                block => {
                    let stored = source.describe();
                    let message = format!("{} would round what {stored} holds", block.name());
                    return Err(FormatError::new(ErrorCode::TargetCannotHold, message)
                        .hint("--embeddings keep changes no value; f16, bf16 or f32 where they hold the scales"));
                }
            },
        };
        self.check_scale(slot, source, |m, r| scales::check_float(m, plain, r))?;
        let encoding = Encoding::Plain(plain);
        let len = dense_len(encoding, rows.saturating_mul(cols), cols)?;
        let (from, shape) = (source.describe(), vec![rows, cols]);
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

    /// Checks the scale of a linear if it can be read without reading the weights.
    pub(super) fn check_scale(
        &mut self,
        slot: Slot,
        source: &LinearSource,
        check: impl Fn(&bitnet_ternary::TernaryMatrix, ScaleRounding) -> Result<f64, FormatError>,
    ) -> Result<(), FormatError> {
        let Some(probe) = scales::probe(self.checkpoint, slot) else {
            return self.check_block_scales(slot, source, check);
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

    /// Checks the scales that lie between the trits of a packed linear. Those of blocks without a trit do not
    /// count, so the trits are read too where a scale fails.
    fn check_block_scales(
        &self,
        slot: Slot,
        source: &LinearSource,
        check: impl Fn(&bitnet_ternary::TernaryMatrix, ScaleRounding) -> Result<f64, FormatError>,
    ) -> Result<(), FormatError> {
        let rounding = self.request.rounding;
        // what allowed rounding costs is found, with its error, when the weights are read
        if rounding == ScaleRounding::Allow || source.packing.is_none() {
            return Ok(());
        }
        let holds = |m: &bitnet_ternary::TernaryMatrix| check(m, rounding).map(|_| ());
        if scales::all_rows(self.checkpoint, slot, source, holds) {
            return Ok(());
        }
        holds(&self.checkpoint.ternary(slot)?)
    }

    /// As [`kept_direction`].
    pub(super) fn kept_direction(&self) -> Option<ScaleDirection> {
        *self
            .kept_direction
            .get_or_init(|| kept_direction(self.checkpoint))
    }

    fn dense(&mut self, slot: Slot) -> Result<(), FormatError> {
        self.check_pack(slot)?;
        let (held, from) = self.checkpoint.dense_encoding(slot).ok_or_else(|| {
            FormatError::new(
                ErrorCode::MissingTensor,
                "the model needs this tensor, the source has none",
            )
        })?;
        let shape = self.checkpoint.config.shape(slot);
        let gguf = self.request.target.kind == Kind::Gguf;
        let embedding = matches!(slot, Slot::TokenEmbeddings | Slot::OutputHead);
        // a gain and a gain minus one, a bias and one over a scale: what widens is the gain, the bias
        let stored = stored_as(self.request.target, self.checkpoint, slot);
        let as_stored = match self.checkpoint.dense_meaning(slot) {
            DenseMeaning::AsStored => stored == StoredAs::Values,
            DenseMeaning::PlusOne => stored == StoredAs::MinusOne,
            // the scale is copied where it keeps its direction
            DenseMeaning::Times(_) => {
                matches!(stored, StoredAs::OverScale(_)) && self.kept_direction().is_some()
            }
        };
        let is_kernel = matches!(slot, Slot::Layer(_, LayerSlot::Conv1d));
        let is_matrix = shape.len() > 1 && !is_kernel;
        // a file of the other kind: rows in another order, or rates in place of their logarithms
        let is_shaped = gguf == self.checkpoint.directory.is_some()
            && (self.checkpoint.dense_is_shaped(slot)
                || stored_order(self.checkpoint, self.request.target, slot).is_some());
        let encoding = match self.request.embeddings {
            _ if !as_stored => Encoding::Plain(PlainType::F32),
            _ if is_shaped && !is_matrix => Encoding::Plain(PlainType::F32),
            Embeddings::As(to) if embedding => to.encoding(),
            // programs for MLX compute in the widest type of a product
            _ if self.is_pack() && !embedding => Encoding::Plain(PlainType::F32),
            // the type that llama.cpp's own converter gives a router
            _ if gguf && matches!(slot, Slot::Layer(_, LayerSlot::Router)) => {
                Encoding::Plain(PlainType::F32)
            }
            // llama.cpp multiplies with matrices of these types
            _ if is_matrix && !embedding => held,
            // readers of GGUF compute norms from f32 only; every source type widens exactly
            _ if !embedding && gguf => Encoding::Plain(PlainType::F32),
            _ => held,
        };
        if let (false, Encoding::Block(_)) = (gguf, encoding) {
            let message = format!("safetensors cannot hold {}", encoding.name());
            return Err(FormatError::new(ErrorCode::TargetCannotHold, message).hint(
                "--embeddings f32 stores the values it stands for, bf16 or f16 rounds them",
            ));
        }
        let row = shape.last().copied().unwrap_or(0);
        let len = dense_len(encoding, shape.iter().product(), row)?;
        // Hugging Face keeps an axis for the one input channel of each output channel, MLX keeps it last
        let shape = match (is_kernel && !gguf, &shape[..]) {
            (true, &[channels, taps]) if self.is_pack() => vec![channels, taps, 1],
            (true, &[channels, taps]) => vec![channels, 1, taps],
            _ => shape,
        };
        let action = if is_shaped {
            Action::Shape(encoding)
        } else if encoding == held && as_stored {
            Action::Copy
        } else {
            Action::Recode(encoding)
        };
        if let Action::Recode(_) = action
            && !widens(held, encoding)
        {
            self.losses.push(Loss {
                tensor: self.target_name(slot),
                kind: "dense-rounding",
                max_relative: None,
                max_absolute: None,
            });
        }
        self.push(slot, from, encoding, len, shape, action);
        if self.request.target.form.writer.is_fused() {
            self.tied_head(slot);
        }
        Ok(())
    }

    /// The program of a fused target loads its output head by name, also where it is the embeddings.
    fn tied_head(&mut self, slot: Slot) {
        let tied = self.checkpoint.config.tie_word_embeddings;
        if let (true, Slot::TokenEmbeddings, Some(embeddings)) =
            (tied, slot, self.items.last().cloned())
        {
            self.items.push(Item {
                tensor: PlannedTensor {
                    name: self.target_name(Slot::OutputHead),
                    ..embeddings.tensor.clone()
                },
                ..embeddings
            });
        }
    }
}

/// Refuses a packing of which the bytes of several matrices are not those of the matrices one behind the other.
fn stands_alone(packing: &dyn Packing, rows: usize, cols: usize) -> Result<(), FormatError> {
    let unit = match packing.unit_rows(rows, cols) {
        UnitRows::Consecutive(unit) => unit,
        UnitRows::Quarters | UnitRows::Mixed => 0,
    };
    if unit > 0 && rows.is_multiple_of(unit) && packing.unread_tail() == 0 {
        return Ok(());
    }
    let message = format!(
        "{} does not hold the matrices of several experts in one tensor: its rows do not stand by themselves",
        packing.name()
    );
    Err(FormatError::new(ErrorCode::TargetCannotHold, message)
        .hint("choose a target with block scales, such as gguf-tq2_0 or gguf-q2_0"))
}

/// Whether every value of one type is a value of the other.
fn widens(from: Encoding, to: Encoding) -> bool {
    // every decoder defines its values as f32
    to == Encoding::Plain(PlainType::F32) || from == to
}
