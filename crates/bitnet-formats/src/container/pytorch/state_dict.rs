//! The dict of tensors that a pickle describes.
//!
//! Invariant: nothing is ever called. The pickle machine keeps functions as names; here the two names that rebuild
//! a tensor are read as descriptions of it, and every other one is an error. What a description says
//! is checked against the length of its storage before it is believed.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::malformed;
use super::pickle::{self, Id, Object, Objects};
use crate::encoding::PlainType;
use crate::error::{ErrorCode, FormatError};
use std::collections::HashSet;

/// Storages by the name of their class.
const STORAGES: [(&str, PlainType); 10] = [
    ("DoubleStorage", PlainType::F64),
    ("FloatStorage", PlainType::F32),
    ("HalfStorage", PlainType::F16),
    ("BFloat16Storage", PlainType::Bf16),
    ("LongStorage", PlainType::I64),
    ("IntStorage", PlainType::I32),
    ("ShortStorage", PlainType::I16),
    ("CharStorage", PlainType::I8),
    ("ByteStorage", PlainType::U8),
    ("BoolStorage", PlainType::Bool),
];

/// The key under which modules keep their versions.
const VERSIONS: &str = "_metadata";

/// The class of a storage of this type, if torch has one.
pub(super) fn storage_class(plain: PlainType) -> Option<&'static str> {
    let row = STORAGES.iter().find(|(_, known)| *known == plain);
    row.map(|(class, _)| *class)
}

/// A tensor as the pickle describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    /// Its key in the dict.
    pub(super) name: String,
    /// The type of its elements.
    pub(super) plain: PlainType,
    /// Outermost first.
    pub(super) shape: Vec<usize>,
    /// The name of its storage.
    pub(super) storage: String,
    /// Elements of the storage.
    pub(super) elements: u64,
    /// Elements before the tensor's first.
    pub(super) first: u64,
}

/// Reads the tensors of a pickled dict.
///
/// # Errors
/// Those of [`pickle::read`]; `malformed`, `unknown-type`, `wrong-type`, with the tensor's name.
pub(super) fn read(pickle: &[u8]) -> Result<Vec<Described>, FormatError> {
    let (objects, root) = pickle::read(pickle)?;
    let reader = Reader(&objects);
    let Object::Dict(entries) = objects.get(root) else {
        return Err(reader.not_a_dict(root));
    };
    let mut names = HashSet::with_capacity(entries.len());
    let mut tensors = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let Object::Text(name) = objects.get(*key) else {
            let message = format!("expected names as keys, found {}", reader.kind(*key));
            return Err(malformed(message));
        };
        if *name == VERSIONS && matches!(objects.get(*value), Object::Dict(_)) {
            continue;
        }
        if !names.insert(*name) {
            return Err(malformed("the dict has this name twice").in_tensor(name));
        }
        let tensor = reader.tensor(name, *value);
        tensors.push(tensor.map_err(|e| e.in_tensor(name))?);
    }
    Ok(tensors)
}

/// The objects of a pickle, read as tensors.
struct Reader<'a>(&'a Objects<'a>);

impl<'a> Reader<'a> {
    fn not_a_dict(&self, root: Id) -> FormatError {
        let message = format!("expected a dict of tensors, found {}", self.kind(root));
        malformed(message).hint("torch.save(model.state_dict(), FILE) writes what can be read")
    }

    /// What an object is, in few words: it may be large.
    fn kind(&self, id: Id) -> String {
        let name = |id: Id| match self.0.get(id) {
            Object::Name(module, name) => format!("the name {module}.{name}"),
            _ => "what is not a name".to_owned(),
        };
        match self.0.get(id) {
            Object::Name(..) => name(id),
            Object::Int(_) => "an integer".to_owned(),
            Object::Float => "a float".to_owned(),
            Object::Text(_) => "text".to_owned(),
            Object::Bool => "a bool".to_owned(),
            Object::None => "nothing".to_owned(),
            Object::Tuple(_) => "a tuple".to_owned(),
            Object::List(_) => "a list".to_owned(),
            Object::Dict(_) => "a dict".to_owned(),
            Object::Call(callable, _) => format!("a call of {}", name(*callable)),
            Object::Build => "an object with state".to_owned(),
            Object::Persistent(_) => "a storage".to_owned(),
        }
    }

    /// The name of a function and its arguments.
    fn call(&self, id: Id) -> Option<(&'a str, &'a str, &'a [Id])> {
        let Object::Call(callable, arguments) = self.0.get(id) else {
            return None;
        };
        match (self.0.get(*callable), self.0.get(*arguments)) {
            (Object::Name(module, name), Object::Tuple(parts)) => Some((module, name, parts)),
            _ => None,
        }
    }

    fn tensor(&self, name: &str, value: Id) -> Result<Described, FormatError> {
        match self.call(value) {
            Some(("torch._utils", "_rebuild_tensor_v2", parts)) => self.rebuilt(name, parts),
            Some(("torch._utils", "_rebuild_parameter", [data, ..])) => match self.call(*data) {
                Some(("torch._utils", "_rebuild_tensor_v2", parts)) => self.rebuilt(name, parts),
                _ => Err(self.not_a_tensor(*data)),
            },
            _ => Err(self.not_a_tensor(value)),
        }
    }

    fn not_a_tensor(&self, value: Id) -> FormatError {
        let message = format!("expected a tensor, found {}", self.kind(value));
        FormatError::new(ErrorCode::WrongType, message).hint(
            "a checkpoint of weights is a dict of dense tensors and nothing else; calls are never made",
        )
    }

    /// Storage, offset, size, stride, and settings that change no value unless they say so.
    fn rebuilt(&self, name: &str, parts: &[Id]) -> Result<Described, FormatError> {
        let [
            storage,
            first,
            size,
            stride,
            _requires_grad,
            _hooks,
            settings @ ..,
        ] = parts
        else {
            let found = parts.len();
            return Err(malformed(format!(
                "expected a tensor of 6 parts, found {found}"
            )));
        };
        // conjugated or negated on reading
        let plain_settings = match settings {
            [] => true,
            [settings] => match self.0.get(*settings) {
                Object::None => true,
                Object::Dict(settings) => settings.is_empty(),
                _ => false,
            },
            _ => false,
        };
        if !plain_settings {
            return Err(malformed(
                "expected a tensor as it is stored, found one with settings",
            ));
        }
        let (plain, storage, elements) = self.stored(*storage)?;
        let first = self.number(*first)?;
        let (shape, stride) = (self.numbers(*size)?, self.numbers(*stride)?);
        let count = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size));
        let count = count.ok_or_else(|| malformed(format!("shape {shape:?} overflows 64 bits")))?;
        if count > 0 && !is_row_major(&shape, &stride) {
            let message = format!(
                "expected its elements one behind the other, found strides {stride:?} for shape {shape:?}"
            );
            return Err(malformed(message).hint("save it again with tensor.contiguous()"));
        }
        if first.checked_add(count).is_none_or(|end| end > elements) {
            let message =
                format!("needs {count} elements from {first} on, its storage has {elements}");
            return Err(malformed(message));
        }
        let shape = shape
            .iter()
            .map(|&size| usize::try_from(size))
            .collect::<Result<_, _>>();
        let shape = shape.map_err(|_| malformed("a size overflows this machine's address"))?;
        Ok(Described {
            name: name.to_owned(),
            plain,
            shape,
            storage,
            elements,
            first,
        })
    }

    /// Type, name and elements of a storage.
    fn stored(&self, storage: Id) -> Result<(PlainType, String, u64), FormatError> {
        let unknown = || malformed(format!("expected a storage, found {}", self.kind(storage)));
        let Object::Persistent(id) = self.0.get(storage) else {
            return Err(unknown());
        };
        let Object::Tuple(parts) = self.0.get(*id) else {
            return Err(unknown());
        };
        let [tag, class, name, _location, elements] = parts[..] else {
            return Err(unknown());
        };
        let (Object::Text("storage"), Object::Name("torch", class), Object::Text(name)) =
            (self.0.get(tag), self.0.get(class), self.0.get(name))
        else {
            return Err(unknown());
        };
        let row = STORAGES.iter().find(|(known, _)| known == class);
        let Some((_, plain)) = row else {
            let known: Vec<_> = STORAGES.iter().map(|(name, _)| *name).collect();
            let message = format!("expected one of {}, found {class}", known.join(", "));
            return Err(FormatError::new(ErrorCode::UnknownType, message));
        };
        Ok((*plain, (*name).to_owned(), self.number(elements)?))
    }

    fn number(&self, id: Id) -> Result<u64, FormatError> {
        let Object::Int(found) = self.0.get(id) else {
            return Err(malformed(format!(
                "expected a number, found {}",
                self.kind(id)
            )));
        };
        u64::try_from(*found)
            .map_err(|_| malformed(format!("expected no negative number, found {found}")))
    }

    fn numbers(&self, id: Id) -> Result<Vec<u64>, FormatError> {
        match self.0.get(id) {
            Object::Tuple(parts) => parts.iter().map(|part| self.number(*part)).collect(),
            _ => Err(malformed(format!(
                "expected sizes, found {}",
                self.kind(id)
            ))),
        }
    }
}

/// Whether the last index runs fastest; a stride along one element moves nothing.
fn is_row_major(shape: &[u64], stride: &[u64]) -> bool {
    let mut step = Some(1u64);
    shape.len() == stride.len()
        && shape.iter().zip(stride).rev().all(|(&size, &stride)| {
            let fits = size == 1 || step == Some(stride);
            step = step.and_then(|step| step.checked_mul(size));
            fits
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_count_where_there_is_more_than_one_element() {
        assert!(is_row_major(&[3, 4], &[4, 1]));
        assert!(is_row_major(&[], &[]));
        assert!(is_row_major(&[1, 4], &[77, 1]));
        assert!(is_row_major(&[3, 1, 2], &[2, 5, 1]));
        assert!(!is_row_major(&[3, 4], &[1, 3]));
        assert!(!is_row_major(&[3, 4], &[8, 1]));
        assert!(!is_row_major(&[3, 4], &[0, 1]));
        assert!(!is_row_major(&[3], &[]));
    }
}
