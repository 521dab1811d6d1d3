//! The plain value every container parses into: metadata and named byte ranges of sources.
//!
//! Invariant: every [`TensorInfo`] range lies inside its file, names are unique, ranges of one file
//! do not overlap (but for tensors of a PyTorch file that share a storage), and for known encodings the length equals what the shape needs. Containers
//! establish this; nothing behind them checks it again.

use crate::encoding::Encoding;
use crate::error::FormatError;
use crate::source::{Bytes, Source, fits_in_memory};
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A metadata value, GGUF's types; safetensors metadata are strings.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum MetaValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    /// Token strings in real files are sometimes not valid UTF-8, so strings are bytes.
    String(Vec<u8>),
    Array(MetaArray),
}

/// A homogeneous metadata array (GGUF has no nested arrays that anyone reads).
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum MetaArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Strings),
}

impl MetaArray {
    /// How many elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(a) => a.len(),
            Self::I8(a) => a.len(),
            Self::U16(a) => a.len(),
            Self::I16(a) => a.len(),
            Self::U32(a) => a.len(),
            Self::I32(a) => a.len(),
            Self::U64(a) => a.len(),
            Self::I64(a) => a.len(),
            Self::F32(a) => a.len(),
            Self::F64(a) => a.len(),
            Self::Bool(a) => a.len(),
            Self::String(a) => a.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the elements are strings.
    pub fn is_text(&self) -> bool {
        matches!(self, Self::String(_))
    }
}

/// Byte strings one behind the other: a vocabulary of 128,000 tokens is two allocations, not 128,000.
#[derive(Clone, Default, PartialEq)]
pub struct Strings {
    bytes: Vec<u8>,
    ends: Vec<usize>, // of each in `bytes`
}

impl Strings {
    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let spans = starts.zip(&self.ends);
        spans.map(|(start, end)| self.bytes.get(start..*end).unwrap_or(&[]))
    }

    /// Appends one.
    pub fn push(&mut self, string: &[u8]) {
        self.bytes.extend_from_slice(string);
        self.ends.push(self.bytes.len());
    }
}

impl std::fmt::Debug for Strings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts = self.iter().map(String::from_utf8_lossy);
        f.debug_list().entries(texts).finish()
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut all = Self::default();
        for string in strings {
            all.push(string.as_ref());
        }
        all
    }
}

impl MetaValue {
    /// A string value from text.
    pub fn text(s: impl Into<String>) -> Self {
        Self::String(s.into().into_bytes())
    }

    /// The text of a string value that is valid UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => std::str::from_utf8(s).ok(),
            _ => None,
        }
    }

    /// Any non-negative integer type as u64.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::U64(v) => Some(v),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }

    /// A float value.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            _ => None,
        }
    }

    /// A bool value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(v) => Some(v),
            _ => None,
        }
    }
}

/// The indices of a list in the order of a key of its elements: finds repeated keys, and elements by key, without
/// a copy of any key.
pub(crate) fn sorted_by_key<'a, T>(list: &'a [T], key: impl Fn(&'a T) -> &'a str) -> Vec<u32> {
    let key_of = |i: &u32| list.get(*i as usize).map(&key);
    // lists are shorter than the limits on tensors and entries
    let mut order: Vec<u32> = (0..u32::try_from(list.len()).unwrap_or(u32::MAX)).collect();
    order.sort_unstable_by(|a, b| key_of(a).cmp(&key_of(b)));
    order
}

/// The first element, in the order of the list, whose key an earlier element has.
pub(crate) fn repeated<'a, T>(list: &'a [T], key: impl Fn(&'a T) -> &'a str) -> Option<&'a T> {
    let key_of = |i: &u32| list.get(*i as usize).map(&key);
    let order = sorted_by_key(list, &key);
    let pairs = order.iter().zip(order.iter().skip(1));
    let same = pairs.filter(|(a, b)| key_of(a) == key_of(b));
    let first = same.map(|(a, b)| a.max(b)).min()?;
    list.get(*first as usize)
}

/// Ordered metadata with unique keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(pub Vec<(String, MetaValue)>);

impl Metadata {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&MetaValue> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Appends, or replaces the value of a key that is there.
    pub fn set(&mut self, key: impl Into<String>, value: MetaValue) {
        let key = key.into();
        match self.0.iter_mut().find(|(k, _)| *k == key) {
            Some((_, v)) => *v = value,
            None => self.0.push((key, value)),
        }
    }

    /// Appends the entries whose keys are not there, each once. Takes time in proportion to their number.
    pub fn add_missing(&mut self, entries: impl IntoIterator<Item = (String, MetaValue)>) {
        let mut keys: HashSet<String> = self.0.iter().map(|(key, _)| key.clone()).collect();
        for (key, value) in entries {
            if keys.insert(key.clone()) {
                self.0.push((key, value));
            }
        }
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    /// Name as stored.
    pub name: String,
    /// How its elements are stored.
    pub encoding: Encoding,
    /// Sizes, **outermost first** (`[rows, cols]`), whatever order the container uses.
    pub shape: Vec<usize>,
    /// Which of [`TensorFile::parts`].
    pub part: usize,
    /// Byte offset from the start of that file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// One or more files of one container kind, parsed.
///
/// Read one ternary matrix of a GGUF file:
///
/// ```
/// use bitnet_formats::{Encoding, FormatError, Limits, PackedTensor, open};
/// # let path = std::path::Path::new("../../formats/vectors/gguf-files/llama_packed-tq2_0.gguf");
///
/// let file = open(path, &Limits::default())?;
/// let tensor = file.tensor("blk.0.attn_q.weight").expect("every layer has this tensor");
/// if let (Encoding::Ternary(packing), &[rows, cols]) = (tensor.encoding, &tensor.shape[..]) {
///     let bytes = file.read(tensor)?;
///     let packed = PackedTensor { bytes: &bytes, rows, cols, outside: None };
///     let matrix = packing.unpack(&packed)?;
///     assert_eq!((packing.name(), matrix.rows()), ("tq2_0", rows));
/// }
/// # else { panic!("not ternary: {tensor:?}") }
/// # Ok::<(), FormatError>(())
/// ```
#[derive(Debug)]
pub struct TensorFile {
    /// `gguf`, `safetensors` or `pytorch`.
    pub container: &'static str,
    /// The files, in shard order.
    pub parts: Vec<Arc<dyn Source>>,
    /// Metadata (of the first part that carries it, for split files).
    pub metadata: Metadata,
    /// The index that named the parts, if one did.
    index: Option<Arc<dyn Source>>,
    tensors: Vec<TensorInfo>,
    /// Indices of the tensors in the order of their names: no copy of any name.
    by_name: Vec<u32>,
}

impl TensorFile {
    /// Assembles a parsed file; `tensors` in file order (part, then offset), names unique.
    pub(crate) fn new(
        container: &'static str,
        parts: Vec<Arc<dyn Source>>,
        metadata: Metadata,
        tensors: Vec<TensorInfo>,
    ) -> Self {
        let by_name = sorted_by_key(&tensors, |tensor| &tensor.name);
        Self {
            container,
            parts,
            metadata,
            index: None,
            tensors,
            by_name,
        }
    }

    /// The same, with the index that named the parts.
    pub(crate) fn named_by(mut self, index: Arc<dyn Source>) -> Self {
        self.index = Some(index);
        self
    }

    /// Whether every file is still the one that was opened, with the content that it had.
    ///
    /// # Errors
    /// `input-changed`.
    pub fn check(&self) -> Result<(), FormatError> {
        let mut sources = self.index.iter().chain(&self.parts);
        sources.try_for_each(|source| source.check())
    }

    /// Whether the bytes that were read are still those of the files that were opened, as
    /// [`Source::intact`] says. For callers that keep computing with bytes of this file.
    ///
    /// # Errors
    /// `input-changed`.
    pub fn intact(&self) -> Result<(), FormatError> {
        self.parts.iter().try_for_each(|source| source.intact())
    }

    /// As [`check`](Self::check), for the file of one tensor.
    ///
    /// # Errors
    /// `input-changed`.
    pub fn check_part_of(&self, tensor: &TensorInfo) -> Result<(), FormatError> {
        let source = self.parts.get(tensor.part);
        source.map_or(Ok(()), |source| source.check())
    }

    /// The same header without the files, to ask what other metadata would mean.
    pub fn without_bytes(&self) -> Self {
        Self::new(
            self.container,
            Vec::new(),
            self.metadata.clone(),
            self.tensors.clone(),
        )
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let name_of = |i: &u32| self.tensors.get(*i as usize).map(|t| t.name.as_str());
        let at = self
            .by_name
            .binary_search_by(|i| name_of(i).cmp(&Some(name)));
        let index = self.by_name.get(at.ok()?)?;
        self.tensors.get(*index as usize)
    }

    /// The file that a tensor lies in.
    pub fn path_of(&self, tensor: &TensorInfo) -> Option<&Path> {
        self.parts.get(tensor.part).map(|source| source.path())
    }

    /// The bytes of a tensor of this file. Without the files ([`without_bytes`](Self::without_bytes)): none.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn read(&self, tensor: &TensorInfo) -> Result<Bytes, FormatError> {
        // callers widen the values to f32; those of a type that is not known are never widened, and nothing bounds its shape
        if !matches!(tensor.encoding, Encoding::Unknown(_) | Encoding::Foreign(_)) {
            let elements = tensor
                .shape
                .iter()
                .fold(1u64, |product, size| product.saturating_mul(*size as u64));
            fits_in_memory(elements.saturating_mul(4)).map_err(|e| e.in_tensor(&tensor.name))?;
        }
        self.read_part(tensor, 0..tensor.len)
    }

    /// As [`read`](Self::read), for a range of the tensor's bytes.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn read_part(&self, tensor: &TensorInfo, range: Range<u64>) -> Result<Bytes, FormatError> {
        let Some(source) = self.parts.get(tensor.part) else {
            return Ok(Bytes::default());
        };
        let at = |byte: u64| tensor.offset.saturating_add(byte.min(tensor.len));
        let bytes = source.read(at(range.start)..at(range.end));
        bytes.map_err(|e| e.in_tensor(&tensor.name))
    }
}
