//! What a way to store a linear has to answer.
//!
//! Invariant: a [`LinearSource`] is data that any row can fill, and only its row interprets it.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::tensors::Tensors;
pub use super::values::UnreadPart;
use crate::config::Config;
use crate::family::{Family, Quantization, ScaleDirection, Shared};
use crate::row_order::StoredOrder;
use crate::slot::Slot;
use bitnet_formats::{Bytes, Encoding, FormatError, Packing, PlainType, TensorFile, TensorInfo};
use bitnet_ternary::Scales;
use serde_json::Value;
use std::fmt::Debug;
use std::path::Path;

/// Where a linear comes from.
#[derive(Debug, Clone)]
pub struct LinearSource {
    /// The tensor of the weights.
    pub info: TensorInfo,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// How its bytes become trits and scales.
    pub storage: &'static dyn Storage,
    /// The packing of the bytes, where these are packed as they lie and their scales can be read without
    /// the trits.
    pub packing: Option<&'static dyn Packing>,
    /// Further tensors of the linear, the one of its scales first.
    pub beside: Vec<TensorInfo>,
    /// What the one scale beside the weights means, if there is one.
    pub direction: Option<ScaleDirection>,
    /// In which order rows or columns are stored, when they have to be put back.
    pub order: Option<StoredOrder>,
}

impl LinearSource {
    /// The tensor of scales beside the weights, if there is one.
    pub fn scale_tensor(&self) -> Option<&TensorInfo> {
        self.beside.first()
    }

    /// The one scale beside the weights and what it means, if there is one.
    pub fn outside(&self) -> Option<(&TensorInfo, ScaleDirection)> {
        self.scale_tensor().zip(self.direction)
    }

    /// How it is stored, for people.
    pub fn describe(&self) -> String {
        self.storage.describe(self)
    }

    /// Whether the absmean rule makes the weights ternary on reading.
    pub fn is_master(&self) -> bool {
        self.storage.is_master()
    }

    /// Whether kernels read its bytes in the file.
    pub fn is_mapped(&self) -> bool {
        self.storage.mapped_structure(self).is_some()
    }

    /// The `weight_scale` beside codes, which targets with such a tensor keep as it is.
    pub fn weight_scale(&self) -> Option<(&TensorInfo, ScaleDirection)> {
        self.storage.weight_scale(self)
    }
}

/// A linear and the files that it lies in.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// The files.
    pub file: &'a TensorFile,
    /// The linear.
    pub linear: &'a LinearSource,
}

impl Stored<'_> {
    /// The bytes of the weights.
    ///
    /// # Errors
    /// As [`Source::read`](bitnet_formats::Source::read).
    pub fn bytes(&self) -> Result<Bytes, FormatError> {
        self.bytes_of(&self.linear.info)
    }

    /// The bytes of one of its tensors.
    ///
    /// # Errors
    /// As [`Source::read`](bitnet_formats::Source::read).
    pub fn bytes_of(&self, info: &TensorInfo) -> Result<Bytes, FormatError> {
        self.file.read(info)
    }

    /// The type of the numbers of the weights; of bytes that are no numbers, u8.
    pub fn plain(&self) -> PlainType {
        match self.linear.info.encoding {
            Encoding::Plain(plain) => plain,
            _ => PlainType::U8,
        }
    }

    /// Adds one of its tensors and the file of it to an error.
    pub fn place(&self, error: FormatError, info: &TensorInfo) -> FormatError {
        let error = error.in_tensor(&info.name);
        match self.file.path_of(info) {
            Some(path) => error.in_file(path),
            None => error,
        }
    }
}

/// What a checkpoint says about all of its linears.
#[derive(Debug)]
pub struct Marks<'a> {
    /// The files.
    pub file: &'a TensorFile,
    /// The family of the network.
    pub family: &'static Family,
    /// What lies beside the files; `None` for files that are read by their own metadata.
    pub said: Option<Said<'a>>,
    /// The packing that the user forces among those of one GGUF type.
    pub layout: Option<&'static dyn Packing>,
}

/// `config.json`.
#[derive(Debug)]
pub struct Said<'a> {
    /// As read.
    pub config: &'a Value,
    /// Where it lies.
    pub path: &'a Path,
    /// What it says about the linears.
    pub quantization: Quantization,
}

/// A tensor that may be a linear.
#[derive(Debug)]
pub struct Asked<'a> {
    /// Its place in the network.
    pub slot: Slot,
    /// Sizes of the network.
    pub config: &'a Config,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub cols: usize,
    /// The tensor with the name of the slot, or the rows of one that are the matrix.
    pub info: &'a TensorInfo,
    /// Where these rows lie, if the tensor holds other matrices too.
    pub shared: Option<&'a Shared>,
    /// In which order the file keeps rows or columns, where that is not the one of the Hugging Face checkpoint.
    pub order: Option<StoredOrder>,
    /// What the checkpoint says about all linears.
    pub marks: &'a Marks<'a>,
}

impl Asked<'_> {
    /// The linear as some row stores it, without tensors beside it.
    pub fn linear(&self, storage: &'static dyn Storage) -> LinearSource {
        LinearSource {
            info: self.info.clone(),
            rows: self.rows,
            cols: self.cols,
            storage,
            packing: None,
            beside: Vec::new(),
            direction: None,
            order: self.order,
        }
    }

    /// The one scale beside the linear, by the name that the conventions of the file give it.
    ///
    /// # Errors
    /// A tensor of this name that is no float.
    pub fn scale(&self, tensors: &mut Tensors<'_>) -> Result<Option<TensorInfo>, FormatError> {
        let role = match self.marks.said {
            Some(_) => "weight_scale",
            None => "scale",
        };
        match self.info.name.strip_suffix("weight") {
            Some(stem) => tensors.scale(&format!("{stem}{role}")),
            None => Ok(None),
        }
    }

    /// What `config.json` says about the linears, if the checkpoint has one.
    pub fn quantization(&self) -> Option<Quantization> {
        self.marks.said.as_ref().map(|said| said.quantization)
    }
}

/// A linear that a row recognized.
#[derive(Debug)]
pub struct Found {
    /// How it is stored.
    pub linear: LinearSource,
    /// Whether nothing but the values tells trits times scales from master weights.
    pub is_unmarked: bool,
}

impl From<LinearSource> for Found {
    fn from(linear: LinearSource) -> Self {
        Self {
            linear,
            is_unmarked: false,
        }
    }
}

/// One way to store a linear.
pub trait Storage: Sync + Debug {
    /// One word for it.
    fn name(&self) -> &'static str;

    /// Its page under `formats/`.
    fn page(&self) -> &'static str;

    /// Whether a checkpoint that says this about all of its linears may have some that are stored so.
    ///
    /// # Errors
    /// A version of it that this program does not know.
    fn applies(&self, marks: &Marks<'_>) -> Result<bool, FormatError>;

    /// The name of the tensor of a slot, where checkpoints of this kind have other names than their family.
    ///
    /// # Errors
    /// `missing-tensor` for a slot that such checkpoints do not have.
    fn name_of(&self, _slot: Slot) -> Result<Option<String>, FormatError> {
        Ok(None)
    }

    /// The linear, with the tensors that it needs, if it is stored so. Every tensor that is needed is asked of
    /// `tensors`: one that nothing asks for is refused.
    ///
    /// # Errors
    /// A linear that is marked as stored so and does not fit: types, shapes, a tensor that is missing.
    fn recognize(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError>;

    /// How a linear is stored, for people.
    fn describe(&self, linear: &LinearSource) -> String;

    /// Trits and scales, rows as they are stored. Reads in parallel on the current rayon pool.
    ///
    /// # Errors
    /// Whatever is wrong with bytes or scales, with row and column.
    fn read(&self, stored: &Stored<'_>) -> Result<(Vec<i8>, Scales), FormatError>;

    /// The scales, without a look at the trits; `None` where only the values of the weights tell.
    ///
    /// # Errors
    /// Whatever is wrong with them.
    fn scales(&self, _stored: &Stored<'_>) -> Result<Option<Scales>, FormatError> {
        Ok(None)
    }

    /// The scale, where it is one number that lies in one place. What is wrong with it is found when the weights
    /// are read.
    fn one_scale(&self, _stored: &Stored<'_>) -> Option<f32> {
        None
    }

    /// The `weight_scale` beside codes, which targets with such a tensor keep as it is.
    fn weight_scale<'a>(
        &self,
        _linear: &'a LinearSource,
    ) -> Option<(&'a TensorInfo, ScaleDirection)> {
        None
    }

    /// Where kernels read the bytes in the file: scales of the structure that the linear has, without values.
    fn mapped_structure(&self, _linear: &LinearSource) -> Option<Scales> {
        None
    }

    /// The type of which the magnitudes of all weights are values, where that is known before they are read.
    fn value_type(&self, _linear: &LinearSource) -> Option<Encoding> {
        None
    }

    /// Whether these are master weights, which the absmean rule makes ternary on reading.
    fn is_master(&self) -> bool {
        false
    }

    /// By how much quantizing changes master weights: the sum of the squares of the changes, and that of the
    /// weights. `None` for weights that are ternary already.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn change(&self, _stored: &Stored<'_>) -> Result<Option<(f64, f64)>, FormatError> {
        Ok(None)
    }

    /// Whether these are numbers with nothing beside them that says how they are computed with.
    fn is_bare(&self, _linear: &LinearSource) -> bool {
        false
    }

    /// Whether the tensors alone say what the linear is, whatever `quantization_config` says.
    fn marks_itself(&self) -> bool {
        false
    }

    /// Whether readers recognize such a linear only by a `quantization_config`.
    fn needs_quantization_config(&self) -> bool {
        false
    }

    /// Whether a scale beside the weights is compared with other tensors even where it multiplies only zeros.
    fn checks_silent_scales(&self) -> bool {
        false
    }

    /// Bits of the weights that no reader uses.
    fn unread(&self, _linear: &LinearSource) -> Option<UnreadPart> {
        None
    }
}
