//! Linears whose scales lie beside them in a form of their own: MLX's and the GPU program's.
//!
//! Invariant: the form is chosen before the first weight is written: a group that every linear can be cut into,
//! and of the types that hold 16 bits the first that holds every scale that can be known.

use super::tensors::{scale_name, unknown_target};
use super::{Action, Item, OutputFile, Planner, ScaleTensor};
use crate::scales;
use bitnet_checkpoint::{Checkpoint, GPU_SCALES, LinearSource, Slot, gpu_place};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, Metadata, PlainType, PlannedTensor, Pytorch, ScaleRounding,
    dense_len,
};
use bitnet_ternary::{Scales, TernaryMatrix};

/// The file that the GPU program opens.
const GPU_FILE: &str = "model_state_int2.pt";
/// Columns per scale that MLX has kernels for, fewest scales first.
const GROUPS: [usize; 3] = [128, 64, 32];
/// Codes in one u32.
const PER_WORD: usize = 16;

/// How the scales of an MLX output are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AffineForm {
    /// Columns per scale.
    pub group: usize,
    /// Of scales and biases.
    pub plain: PlainType,
}

/// Group and type, as far as the linears that were looked at leave them.
struct Forms {
    groups: Vec<usize>,
    /// The type to take first, and the other one; whether each holds every scale.
    plains: [(PlainType, bool); 2],
}

impl Forms {
    fn new(first: PlainType) -> Self {
        let other = match first {
            PlainType::Bf16 => PlainType::F16,
            _ => PlainType::Bf16,
        };
        Self {
            groups: GROUPS.to_vec(),
            plains: [(first, true), (other, true)],
        }
    }

    /// A linear of so many columns, with its scales if they are known.
    fn meet(&mut self, cols: usize, known: Option<&TernaryMatrix>) -> Result<(), FormatError> {
        self.groups.retain(|group| cols.is_multiple_of(*group));
        if let Some(Scales::PerGroup { group: finest, .. }) = known.map(TernaryMatrix::scales) {
            self.groups.retain(|group| group <= finest);
        }
        if let Some(known) = known {
            for (plain, exact) in &mut self.plains {
                let error = scales::check_float(known, *plain, ScaleRounding::Allow);
                *exact &= error.is_ok_and(|error| error == 0.0);
            }
        }
        if !self.groups.is_empty() {
            return Ok(());
        }
        let structure = known.map_or("tensor".to_owned(), |known| known.scales().structure());
        let message = format!(
            "MLX has groups of 32, 64 and 128 columns, found {cols} columns and scales per {structure}"
        );
        Err(FormatError::new(ErrorCode::TargetCannotHold, message)
            .hint("choose a target without groups, such as hf-packed"))
    }

    fn chosen(&self) -> AffineForm {
        let [first, other] = self.plains;
        let take_other = !first.1 && other.1;
        AffineForm {
            // a linear that leaves none was refused
            group: self.groups.first().copied().unwrap_or(GROUPS[0]),
            plain: if take_other { other.0 } else { first.0 },
        }
    }
}

/// How the scales of one matrix alone would be stored.
///
/// # Errors
/// `target-cannot-hold` for columns that no group divides, and scales finer than any.
pub fn affine_form_of(matrix: &TernaryMatrix) -> Result<AffineForm, FormatError> {
    let mut forms = Forms::new(PlainType::F16);
    forms.meet(matrix.cols(), Some(matrix))?;
    Ok(forms.chosen())
}

/// Chooses group and type from what can be known of all linears.
///
/// # Errors
/// As [`affine_form_of`]; whatever is wrong with weights that have to be read for it.
pub(super) fn affine_form(checkpoint: &Checkpoint) -> Result<AffineForm, FormatError> {
    // the type the model is kept in first: MLX computes in the type of its scales
    let embeddings = checkpoint
        .tensor_range(Slot::TokenEmbeddings)
        .map(|t| t.encoding);
    let mut forms = Forms::new(match embeddings {
        Some(Encoding::Plain(PlainType::Bf16)) => PlainType::Bf16,
        _ => PlainType::F16,
    });
    for slot in checkpoint.slots().into_iter().filter(|s| s.is_ternary()) {
        let source = checkpoint.linear(slot)?;
        let known = scales::known(checkpoint, slot, source)?;
        forms
            .meet(source.cols, known.as_ref())
            .map_err(|e| e.in_tensor(&source.info.name))?;
    }
    Ok(forms.chosen())
}

impl Planner<'_> {
    /// MLX's three tensors of a linear.
    pub(super) fn affine(&mut self, slot: Slot, source: &LinearSource) -> Result<(), FormatError> {
        let (rows, cols) = (source.rows, source.cols);
        let packing = self.request.target.packing();
        let packing = packing.ok_or_else(|| unknown_target(self.request))?;
        let AffineForm { group, plain } =
            self.affine.ok_or_else(|| unknown_target(self.request))?;
        let len = packing.packed_len(rows, cols)?;
        self.check_scale(slot, source, |m, r| scales::check_float(m, plain, r))?;
        self.push(
            slot,
            source.describe(),
            Encoding::Plain(PlainType::U32),
            len,
            vec![rows, cols / PER_WORD],
            Action::Pack(packing),
        );
        let weight = self.target_name(slot);
        let module = weight.strip_suffix(".weight").unwrap_or(&weight);
        let shape = vec![rows, cols / group];
        for (role, biases) in [("scales", false), ("biases", true)] {
            let encoding = Encoding::Plain(plain);
            let tensor = PlannedTensor {
                name: format!("{module}.{role}"),
                encoding,
                len: dense_len(encoding, shape.iter().product(), cols / group)?,
                shape: shape.clone(),
            };
            let form = ScaleTensor::Affine {
                group,
                plain,
                biases,
            };
            self.scale_item(slot, source, tensor, form);
        }
        Ok(())
    }

    /// One matrix of a tensor of the GPU program, and behind the last of them the tensor of their scales.
    pub(super) fn fused(&mut self, slot: Slot, source: &LinearSource) -> Result<(), FormatError> {
        let (rows, cols) = (source.rows, source.cols);
        let packing = self.request.target.packing();
        let packing = packing.ok_or_else(|| unknown_target(self.request))?;
        let place = gpu_place(slot).ok_or_else(|| unknown_target(self.request))?;
        let len = packing.packed_len(rows, cols)?;
        self.check_scale(slot, source, |m, r| {
            packing.check_scales(m, r)?;
            scales::check_float(m, PlainType::Bf16, r)
        })?;
        self.push(
            slot,
            source.describe(),
            Encoding::Plain(PlainType::I8),
            len,
            vec![rows, cols / 4],
            Action::Pack(packing),
        );
        if place.parts.last() == Some(&slot) {
            let tensor = PlannedTensor {
                name: scale_name(&place.name),
                encoding: Encoding::Plain(PlainType::Bf16),
                shape: vec![GPU_SCALES],
                len: 2 * GPU_SCALES as u64,
            };
            self.scale_item(slot, source, tensor, ScaleTensor::Fused(place.parts));
        }
        Ok(())
    }

    fn scale_item(
        &mut self,
        slot: Slot,
        source: &LinearSource,
        tensor: PlannedTensor,
        form: ScaleTensor,
    ) {
        self.items.push(Item {
            slot: Some(slot),
            source_name: source.info.name.clone(),
            from: "scale".to_owned(),
            to: tensor.encoding.name(),
            tensor,
            action: Action::Scale(form),
            file: 0,
            offset: 0,
        });
    }

    /// The GPU program loads its output head by name, also where it is the embeddings.
    pub(super) fn tied_head(&mut self, slot: Slot) {
        let tied = self.checkpoint.config.tie_word_embeddings;
        let head = gpu_place(Slot::OutputHead);
        if let (true, Slot::TokenEmbeddings, Some(head), Some(embeddings)) =
            (tied, slot, head, self.items.last().cloned())
        {
            self.items.push(Item {
                tensor: PlannedTensor {
                    name: head.name,
                    ..embeddings.tensor.clone()
                },
                ..embeddings
            });
        }
    }

    /// The one file of the GPU program.
    pub(super) fn gpu_file(&mut self) -> Result<OutputFile, FormatError> {
        if self.request.split_max_size.is_some() {
            let message = format!("{} is one file", self.request.target.name);
            return Err(FormatError::new(ErrorCode::Usage, message)
                .hint("its program loads one; leave --split-max-size away"));
        }
        self.assign_files(None);
        let path = self.request.output.join(GPU_FILE);
        self.lay_out(&Pytorch, 0, path, Metadata::default())
    }
}

/// The bytes of a tensor of scales.
pub fn scale_bytes(form: &ScaleTensor, scales: &[&[f32]]) -> Vec<u8> {
    let numbers = scales.iter().flat_map(|s| s.iter().copied());
    let write = |plain, numbers: &mut dyn Iterator<Item = f32>| {
        let mut bytes = Vec::new();
        for number in numbers {
            scales::push(&mut bytes, number, plain);
        }
        bytes
    };
    match form {
        ScaleTensor::Multipliers(plain) => write(*plain, &mut numbers.into_iter()),
        ScaleTensor::Affine { plain, biases, .. } => {
            let sign = if *biases { -1.0 } else { 1.0 };
            write(*plain, &mut numbers.map(|n| sign * n))
        }
        ScaleTensor::Fused(_) => {
            let zeros = std::iter::repeat(0.0);
            write(PlainType::Bf16, &mut numbers.chain(zeros).take(GPU_SCALES))
        }
    }
}

/// The scales of a matrix as its tensor of scales has them.
///
/// # Errors
/// `target-cannot-hold` for two scales of non-zero trits in one group.
pub fn scales_of(form: &ScaleTensor, matrix: &TernaryMatrix) -> Result<Vec<f32>, FormatError> {
    if let Some(group) = form.group() {
        return bitnet_formats::affine_scales(matrix, group);
    }
    // as the matrix has them, or what repeated ones collapse to
    Ok(match matrix.scales() {
        Scales::PerTensor(scale) => vec![*scale],
        _ => matrix.normal_scales().as_slice().to_vec(),
    })
}
