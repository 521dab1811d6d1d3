//! Which tensors an output has: from each tensor of the source its name, type, length and how its bytes are made.
//!
//! Invariant: a tensor that is planned can be written; scales and types that can be judged without reading weights
//! have been judged.

use super::{
    Action, Item, Loss, Planner, Request, ScaleTensor, permuted_head_dim, stores_gain_minus_one,
};
use crate::args::Embeddings;
use crate::scales;
use crate::targets::{Kind, Linears};
use bitnet_checkpoint::{LinearSource, ScaleDirection, Slot, gpu_place, tiles_shape};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, Packing, PlainType, PlannedTensor, ScaleRounding, dense_len,
};

impl Planner<'_> {
    pub(super) fn target_name(&self, slot: Slot) -> String {
        let family = self.checkpoint.family;
        match (self.request.target.kind, self.request.target.linears) {
            (Kind::Gguf, _) => (family.gguf_tensor_name)(slot),
            (_, Linears::Fused(_)) => {
                gpu_place(slot).map_or_else(|| (family.tensor_name)(slot), |place| place.name)
            }
            _ => (family.tensor_name)(slot),
        }
    }

    pub(super) fn slot(&mut self, slot: Slot) -> Result<(), FormatError> {
        if slot.is_ternary() {
            self.linear(slot)
        } else if self.checkpoint.is_ternary(slot) {
            self.table(slot)
        } else {
            self.dense(slot)
        }
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
        let (rows, cols) = (source.rows, source.cols);
        let from = source.describe();
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
            Linears::Master(_) if source.is_master() => {
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
        let stored = source.packing.filter(|_| source.beside.is_empty());
        let as_they_are = stored.is_some_and(|stored| {
            let stored_as = stored.same_bytes_as().unwrap_or(stored.name());
            // scales that lie in blocks: nothing behind the last that only one file has
            stored_as == packing.name()
                && self.request.target.table_packing().is_some()
                && source.permuted_head_dim
                    == permuted_head_dim(self.checkpoint, self.request.target, slot)
                && source.info.len == len
        });
        let action = match as_they_are {
            true => Action::CopyPacked(packing),
            false => Action::Pack(packing),
        };
        let encoding = Encoding::Ternary(packing);
        self.push(
            slot,
            source.describe(),
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

    /// Tiles, and all scales beside them.
    fn tiles(&mut self, slot: Slot, source: &LinearSource) -> Result<(), FormatError> {
        let (rows, cols) = (source.rows, source.cols);
        let scales = scales::structure(self.checkpoint, slot, source)?;
        let grouped = matches!(scales[..], [_, groups] if groups > 1);
        let packing = self.request.target.packing_for(grouped);
        let packing = packing.ok_or_else(|| unknown_target(self.request))?;
        self.push(
            slot,
            source.describe(),
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
            action: Action::Scale(ScaleTensor::Multipliers(PlainType::F32)),
            file: 0,
            offset: 0,
        });
        Ok(())
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

    /// `weight_scale` beside packed codes: the source's own if it has one, else the f32 multiplier.
    fn scale_beside(&mut self, slot: Slot, source: &LinearSource) {
        let weight = self.target_name(slot);
        let name = scale_name(&weight);
        let item = match (source.weight_scale(), self.kept_direction()) {
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
            _ => {
                let plain = self.scale_type(slot, source);
                let encoding = Encoding::Plain(plain);
                Item {
                    slot: Some(slot),
                    source_name: source.info.name.clone(),
                    from: "scale".to_owned(),
                    to: encoding.name(),
                    tensor: PlannedTensor {
                        name,
                        encoding,
                        shape: vec![1],
                        len: plain.size() as u64,
                    },
                    action: Action::Scale(ScaleTensor::Multipliers(plain)),
                    file: 0,
                    offset: 0,
                }
            }
        };
        self.items.push(item);
    }

    /// The type of a `weight_scale` that is written anew: that of the embeddings where it holds the multiplier exactly,
    /// because mlx-lm refuses scales of another type than the activations. f32 otherwise.
    fn scale_type(&self, slot: Slot, source: &LinearSource) -> PlainType {
        let embeddings = self.checkpoint.tensor_range(Slot::TokenEmbeddings);
        let plain = match embeddings.map(|info| info.encoding) {
            Some(Encoding::Plain(plain @ (PlainType::Bf16 | PlainType::F16))) => plain,
            _ => return PlainType::F32,
        };
        let is_exact = match source.storage.value_type(source) {
            // the multiplier is the magnitude of weights of this type
            Some(encoding) => encoding == Encoding::Plain(plain),
            None => scales::probe(self.checkpoint, slot).is_some_and(|probe| {
                let scales = probe.normal_scales();
                let mut scales = scales.as_slice().iter();
                scales.all(|scale| scales::is_exact(*scale, plain))
            }),
        };
        if is_exact { plain } else { PlainType::F32 }
    }

    /// The direction of the source's `weight_scale` tensors, if every linear has one of the same:
    /// they are then copied bit for bit, whatever their type, and `config.json` goes on saying so.
    pub(super) fn kept_direction(&self) -> Option<ScaleDirection> {
        let mut directions = self
            .checkpoint
            .slots()
            .into_iter()
            .filter(|s| s.is_ternary())
            .map(|s| {
                self.checkpoint
                    .linear(s)
                    .ok()?
                    .weight_scale()
                    .map(|(_, d)| d)
            });
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
}

/// `….weight_scale` of `….weight`.
pub(super) fn scale_name(weight: &str) -> String {
    format!("{weight}_scale")
}

pub(super) fn unknown_target(request: &Request<'_>) -> FormatError {
    FormatError::new(
        ErrorCode::Usage,
        format!("no packing for target {}", request.target.name),
    )
}

/// Whether every value of one type is a value of the other.
fn widens(from: Encoding, to: Encoding) -> bool {
    // every decoder defines its values as f32
    to == Encoding::Plain(PlainType::F32) || from == to
}
