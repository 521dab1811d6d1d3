//! The dict of tensors that a pickle describes, by candle's reader.
//!
//! Invariant: nothing is ever called. The reader keeps functions as names; here the two names that rebuild
//! a tensor are read as descriptions of it, and every other one is an error. What a description says
//! is checked against the length of its storage before it is believed.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{bounds, malformed};
use crate::encoding::PlainType;
use crate::error::{ErrorCode, FormatError};
use candle_core::pickle::{Object, Stack};
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
/// Those of [`bounds::check`]; `malformed`, `unknown-type`, `wrong-type`, with the tensor's name.
pub(super) fn read(pickle: &[u8]) -> Result<Vec<Described>, FormatError> {
    bounds::check(pickle)?;
    let mut stack = Stack::empty();
    let mut reader = pickle;
    let root = stack
        .read_loop(&mut reader)
        .and_then(|()| stack.finalize())
        .map_err(|e| malformed(format!("the pickle cannot be read: {}", reason(&e))))?;
    let Object::Dict(entries) = root else {
        return Err(not_a_dict(&root));
    };
    let mut names = HashSet::with_capacity(entries.len());
    let mut tensors = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let Object::Unicode(name) = key else {
            return Err(malformed(format!(
                "expected names as keys, found {}",
                kind(&key)
            )));
        };
        if name == VERSIONS && matches!(value, Object::Dict(_)) {
            continue;
        }
        if !names.insert(name.clone()) {
            return Err(malformed("the dict has this name twice").in_tensor(&name));
        }
        tensors.push(tensor(&name, &value).map_err(|e| e.in_tensor(&name))?);
    }
    Ok(tensors)
}

/// The error itself: its other forms spell out a backtrace, at length and on many lines.
fn reason(error: &candle_core::Error) -> String {
    let mut error = error;
    while let candle_core::Error::WithBacktrace { inner, .. } = error {
        error = inner;
    }
    error.to_string()
}

fn not_a_dict(root: &Object) -> FormatError {
    let message = format!("expected a dict of tensors, found {}", kind(root));
    malformed(message).hint("torch.save(model.state_dict(), FILE) writes what can be read")
}

/// What an object is, in few words: it may be large.
fn kind(object: &Object) -> String {
    match object {
        Object::Class {
            module_name,
            class_name,
        } => format!("the name {module_name}.{class_name}"),
        Object::Int(_) | Object::Long(_) => "an integer".to_owned(),
        Object::Float(_) => "a float".to_owned(),
        Object::Unicode(_) => "text".to_owned(),
        Object::Bool(_) => "a bool".to_owned(),
        Object::None => "nothing".to_owned(),
        Object::Tuple(_) => "a tuple".to_owned(),
        Object::List(_) => "a list".to_owned(),
        Object::Mark => "a mark".to_owned(),
        Object::Dict(_) => "a dict".to_owned(),
        Object::Reduce { callable, .. } => format!("a call of {}", kind(callable)),
        Object::Build { .. } => "an object with state".to_owned(),
        Object::PersistentLoad(_) => "a storage".to_owned(),
    }
}

/// The name of a function and its arguments.
fn call(object: &Object) -> Option<(&str, &str, &[Object])> {
    let Object::Reduce { callable, args } = object else {
        return None;
    };
    match (callable.as_ref(), args.as_ref()) {
        (
            Object::Class {
                module_name,
                class_name,
            },
            Object::Tuple(args),
        ) => Some((module_name, class_name, args)),
        _ => None,
    }
}

fn tensor(name: &str, value: &Object) -> Result<Described, FormatError> {
    match call(value) {
        Some(("torch._utils", "_rebuild_tensor_v2", args)) => rebuilt(name, args),
        Some(("torch._utils", "_rebuild_parameter", [data, ..])) => match call(data) {
            Some(("torch._utils", "_rebuild_tensor_v2", args)) => rebuilt(name, args),
            _ => Err(not_a_tensor(data)),
        },
        _ => Err(not_a_tensor(value)),
    }
}

fn not_a_tensor(value: &Object) -> FormatError {
    let message = format!("expected a tensor, found {}", kind(value));
    FormatError::new(ErrorCode::WrongType, message).hint(
        "a checkpoint of weights is a dict of dense tensors and nothing else; calls are never made",
    )
}

/// Storage, offset, size, stride, and settings that change no value unless they say so.
fn rebuilt(name: &str, args: &[Object]) -> Result<Described, FormatError> {
    let [
        storage,
        first,
        size,
        stride,
        _requires_grad,
        _hooks,
        settings @ ..,
    ] = args
    else {
        let found = args.len();
        return Err(malformed(format!(
            "expected a tensor of 6 parts, found {found}"
        )));
    };
    // conjugated or negated on reading
    let plain_settings = match settings {
        [] | [Object::None] => true,
        [Object::Dict(settings)] => settings.is_empty(),
        _ => false,
    };
    if !plain_settings {
        return Err(malformed(
            "expected a tensor as it is stored, found one with settings",
        ));
    }
    let (plain, storage, elements) = stored(storage)?;
    let first = number(first)?;
    let (shape, stride) = (numbers(size)?, numbers(stride)?);
    let count = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size));
    let count = count.ok_or_else(|| malformed(format!("shape {shape:?} overflows 64 bits")))?;
    if count > 0 && !is_row_major(&shape, &stride) {
        let message = format!(
            "expected its elements one behind the other, found strides {stride:?} for shape {shape:?}"
        );
        return Err(malformed(message).hint("save it again with tensor.contiguous()"));
    }
    if first.checked_add(count).is_none_or(|end| end > elements) {
        let message = format!("needs {count} elements from {first} on, its storage has {elements}");
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
fn stored(storage: &Object) -> Result<(PlainType, String, u64), FormatError> {
    let unknown = || malformed(format!("expected a storage, found {}", kind(storage)));
    let Object::PersistentLoad(id) = storage else {
        return Err(unknown());
    };
    let Object::Tuple(parts) = id.as_ref() else {
        return Err(unknown());
    };
    let [
        Object::Unicode(tag),
        class,
        Object::Unicode(name),
        _location,
        elements,
    ] = parts.as_slice()
    else {
        return Err(unknown());
    };
    let Object::Class {
        module_name,
        class_name,
    } = class
    else {
        return Err(unknown());
    };
    if tag != "storage" || module_name != "torch" {
        return Err(unknown());
    }
    let row = STORAGES.iter().find(|(known, _)| known == class_name);
    let Some((_, plain)) = row else {
        let known: Vec<_> = STORAGES.iter().map(|(name, _)| *name).collect();
        let message = format!("expected one of {}, found {class_name}", known.join(", "));
        return Err(FormatError::new(ErrorCode::UnknownType, message));
    };
    Ok((*plain, name.clone(), number(elements)?))
}

fn number(object: &Object) -> Result<u64, FormatError> {
    let found = match object {
        Object::Int(n) => i64::from(*n),
        Object::Long(n) => *n,
        other => {
            return Err(malformed(format!(
                "expected a number, found {}",
                kind(other)
            )));
        }
    };
    u64::try_from(found)
        .map_err(|_| malformed(format!("expected no negative number, found {found}")))
}

fn numbers(object: &Object) -> Result<Vec<u64>, FormatError> {
    match object {
        Object::Tuple(parts) => parts.iter().map(number).collect(),
        other => Err(malformed(format!("expected sizes, found {}", kind(other)))),
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
