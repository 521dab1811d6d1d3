//! How a target stores linears, and the tensors that it has for one.
//!
//! Invariant: what a row writes, the same row recognizes and reads; a shape or a scale that it cannot hold is
//! refused before a byte is made.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::contract::{LinearSource, Storage};
use super::scale_types::{SharedScales, check_float};
use crate::config::Config;
use crate::family::{HfStorage, ScaleDirection};
use crate::slot::Slot;
use bitnet_formats::{
    Container, Encoding, ErrorCode, FormatError, Packing, PlainType, PlannedTensor, Safetensors,
    ScaleRounding, TensorInfo, packing_by_name,
};
use bitnet_ternary::{Scales, TernaryMatrix};
use std::fmt::Debug;

/// How a target stores linears: a row, and what the row leaves open.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// The row.
    pub writer: &'static dyn WriteStorage,
    /// The packing, of rows that have several.
    pub packing: Option<&'static str>,
    /// The type of numbers.
    pub plain: PlainType,
}

impl Form {
    /// Codes of a packing.
    pub const fn packed(writer: &'static dyn WriteStorage, packing: &'static str) -> Self {
        Self {
            writer,
            packing: Some(packing),
            plain: PlainType::F32,
        }
    }

    /// Numbers of a type.
    pub const fn numbers(writer: &'static dyn WriteStorage, plain: PlainType) -> Self {
        Self {
            writer,
            packing: None,
            plain,
        }
    }

    /// The packing, if there is one.
    pub fn packing(&self) -> Option<&'static dyn Packing> {
        packing_by_name(self.packing?)
    }

    /// The packing of a form that has one.
    pub(super) fn required_packing(&self) -> Result<&'static dyn Packing, FormatError> {
        required(self.packing())
    }
}

/// A packing that has to be there.
pub(super) fn required(
    packing: Option<&'static dyn Packing>,
) -> Result<&'static dyn Packing, FormatError> {
    packing.ok_or_else(|| FormatError::new(ErrorCode::Usage, "no packing for the target"))
}

/// Scales in a tensor of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScaleForm {
    /// The linears whose scales they are, one behind the other.
    pub slots: Vec<Slot>,
    /// Their type.
    pub plain: PlainType,
    /// Columns per scale, where a linear has to be cut into groups.
    pub group: Option<usize>,
    /// Whether the sign is turned.
    pub is_negative: bool,
    /// How many numbers there are, zeros behind the scales.
    pub count: Option<usize>,
    /// Whether no other tensor is made of the same scales later.
    pub is_last: bool,
}

impl ScaleForm {
    /// The multipliers of a linear as it has them, in a type that holds them.
    pub fn multipliers(slot: Slot, plain: PlainType) -> Self {
        Self {
            slots: vec![slot],
            plain,
            group: None,
            is_negative: false,
            count: None,
            is_last: true,
        }
    }
}

/// How the bytes of a tensor of a linear are made.
#[derive(Debug, Clone)]
pub enum Made {
    /// Codes of a packing.
    Codes(&'static dyn Packing),
    /// `trit * scale`.
    Numbers(PlainType),
    /// The bytes of the source.
    AsStored,
    /// Scales of linears before.
    Scales(ScaleForm),
    /// The bytes of a scale of the source.
    Kept(TensorInfo),
}

/// A tensor of a linear.
#[derive(Debug, Clone)]
pub struct Part {
    /// Name, type, shape and length.
    pub tensor: PlannedTensor,
    /// How its bytes are made.
    pub made: Made,
}

/// A linear that is to be written.
pub struct Output<'a> {
    /// Its place in the network.
    pub slot: Slot,
    /// The name of the weights in the target.
    pub name: &'a str,
    /// How the target stores linears.
    pub form: &'a Form,
    /// How the source stores it.
    pub source: &'a LinearSource,
    /// What the scales of all linears of the target have in common, if they have.
    pub shared: Option<SharedScales>,
    /// The shape of its scales in normal form: `[1]`, `[rows, 1]` or `[rows, groups]`. Reads the weights where
    /// only these tell.
    pub scale_shape: &'a dyn Fn() -> Result<Vec<usize>, FormatError>,
    /// Its scale, where that is one number that is known.
    pub one_scale: Option<f32>,
    /// Whether a `weight_scale` of the source is kept as it is.
    pub keeps_scale: bool,
    /// The type that the network computes in, if that has 16 bits.
    pub computed_in: Option<PlainType>,
}

impl Output<'_> {
    /// The tensor of the weights.
    pub(super) fn weights(
        &self,
        encoding: Encoding,
        shape: Vec<usize>,
        len: u64,
        made: Made,
    ) -> Part {
        let name = self.name.to_owned();
        part(name, encoding, shape, len, made)
    }
}

/// A tensor of a linear.
pub(super) fn part(
    name: String,
    encoding: Encoding,
    shape: Vec<usize>,
    len: u64,
    made: Made,
) -> Part {
    let tensor = PlannedTensor {
        name,
        encoding,
        shape,
        len,
    };
    Part { tensor, made }
}

/// `….weight_scale` of `….weight`.
pub fn scale_name(weight: &str) -> String {
    format!("{weight}_scale")
}

/// A packed tensor in a file: its name, packing, rows and columns.
pub type PackedEntry = (String, &'static dyn Packing, usize, usize);

/// The writing side of a row.
pub trait WriteStorage: Sync + Debug {
    /// The row.
    fn row(&self) -> &'static dyn Storage;

    /// The tensors of a linear, in the order in which they are written.
    ///
    /// # Errors
    /// `target-cannot-hold` for a shape that the packing cannot express.
    fn write(&self, output: &Output<'_>) -> Result<Vec<Part>, FormatError>;

    /// Whether a form holds the scales of some rows: the largest relative error. `shared` is what the scales of
    /// all linears have in common. The default is that of numbers `trit * scale` of the type of the form.
    ///
    /// # Errors
    /// `scale-rounding`, `target-cannot-hold`.
    fn check(
        &self,
        form: &Form,
        _shared: Option<SharedScales>,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        check_float(matrix, form.plain, rounding)
    }

    /// Whether a form holds a matrix: the relative error that storing its scales causes.
    ///
    /// # Errors
    /// As [`check`](Self::check), and for shapes as [`write`](Self::write).
    fn fits(
        &self,
        form: &Form,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        let grouped = matches!(matrix.scales(), Scales::PerGroup { .. });
        let Some(packing) = self.packing_for(form, grouped) else {
            return self.check(form, None, matrix, rounding);
        };
        packing.packed_len(matrix.rows(), matrix.cols())?;
        packing.check_trits(matrix)?;
        packing.check_scales(matrix, rounding)
    }

    /// Whether scales of any structure and value are held.
    fn holds_any_scales(&self) -> bool {
        false
    }

    /// The packing of a linear, which group scales may change.
    fn packing_for(&self, form: &Form, _grouped: bool) -> Option<&'static dyn Packing> {
        form.packing()
    }

    /// The packing in which readers of the target look rows up by token, too: embeddings and output head
    /// that are ternary stay so.
    fn table_packing(&self, _form: &Form) -> Option<&'static dyn Packing> {
        None
    }

    /// What the scales of all linears of a network may have in common, if they have to; `computed_in` is the type to
    /// prefer.
    fn shared_scales(
        &self,
        _config: &Config,
        _computed_in: Option<PlainType>,
    ) -> Option<super::ScaleTypes> {
        None
    }

    /// Whether a checkpoint directory of a network is a pack for MLX: names, norms and kernels as MLX has them, every
    /// ternary matrix as codes, and signs beside those that are rotated.
    fn is_pack(&self, _config: &Config) -> bool {
        false
    }

    /// Whether readers of a checkpoint directory multiply the bias of a linear by its scale; `kept` is the direction
    /// of scales that are copied.
    fn scales_biases(&self, _kept: Option<ScaleDirection>) -> bool {
        false
    }

    /// The container of a checkpoint directory.
    fn directory_container(&self) -> &'static str {
        Safetensors.name()
    }

    /// The one file of a checkpoint directory whose program loads one by its name.
    fn file_name(&self) -> Option<&'static str> {
        None
    }

    /// What the metadata of a file of a checkpoint directory say of its linears.
    fn file_metadata(&self, _packed: &[PackedEntry]) -> Vec<(String, String)> {
        // transformers refuses files that do not say which library's tensors they are
        vec![("format".to_owned(), "pt".to_owned())]
    }

    /// A multiple of which tensors have to begin at, if they do.
    fn alignment(&self) -> Option<u64> {
        None
    }

    /// `general.file_type` of a GGUF file (llama.cpp's `LLAMA_FTYPE`).
    fn gguf_file_type(&self, _form: &Form) -> Option<u32> {
        None
    }

    /// What `config.json` has to say about the linears; `None` where that depends on each of them. `kept` is the
    /// direction of the scales that are kept.
    fn hf_storage(
        &self,
        _shared: Option<SharedScales>,
        _kept: Option<ScaleDirection>,
    ) -> Option<HfStorage> {
        None
    }

    /// Whether matrices are fused: written in the order of the network, rows of q and k as paired rotary
    /// dimensions stand, and the output head by its name even where it is the embeddings.
    fn is_fused(&self) -> bool {
        false
    }

    /// Whether the linears of all experts of a layer are one tensor of a checkpoint directory. In GGUF they always are.
    fn stacks_experts(&self) -> bool {
        false
    }

    /// Refuses a network that the program of the target does not compute.
    ///
    /// # Errors
    /// `target-cannot-hold`.
    fn check_network(&self, _config: &Config) -> Result<(), FormatError> {
        Ok(())
    }
}
