//! The readable beginning of a GGUF header, whatever stands behind it.
//!
//! Invariant: the same functions read each entry as in a file that is accepted; only the checks of the whole are left out.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::read::{read_placed, read_text, read_value};
use super::{MAX_KEY_BYTES, limit_exceeded};
use crate::bytes::Cursor;
use crate::container::{Declared, HeaderRemains};
use crate::error::FormatError;
use crate::limits::Limits;

/// See [`crate::header_remains`].
pub(in crate::container) fn remains(
    mut cursor: Cursor<'_>,
    found: &mut HeaderRemains,
) -> Result<(), FormatError> {
    let limits = Limits::default();
    cursor.array::<4>("magic")?;
    let version = cursor.u32("version")?;
    found.counts.push(("version", version.into()));
    let tensors = cursor.u64("tensor count")?;
    found.counts.push(("tensors", tensors));
    let entries = cursor.u64("metadata count")?;
    found.counts.push(("metadata entries", entries));
    for _ in 0..entries.min(limits.metadata_entries) {
        let key = read_text(&mut cursor, "metadata key", MAX_KEY_BYTES)?;
        let value = read_value(&mut cursor, &limits).map_err(|e| e.in_tensor(&key))?;
        found.metadata.0.push((key, value));
    }
    // what follows are entries, not tensors
    if entries > limits.metadata_entries {
        return Err(limit_exceeded(
            "metadata entries",
            entries,
            limits.metadata_entries,
        ));
    }
    for _ in 0..tensors.min(limits.tensors) {
        let name = read_text(&mut cursor, "tensor name", limits.name_bytes)?;
        let placed = read_placed(&mut cursor);
        let (shape, id, offset) = placed.map_err(|e| e.in_tensor(&name))?;
        found.tensors.push(Declared {
            name,
            kind: format!("type-{id}"),
            shape: shape.into_iter().map(|size| size as u64).collect(),
            offset,
        });
    }
    match tensors > limits.tensors {
        true => Err(limit_exceeded("tensors", tensors, limits.tensors)),
        false => Ok(()),
    }
}
