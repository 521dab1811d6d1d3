//! Which bits of the artifact no comparison can show, and why.
//!
//! Invariant: derived from layouts, readers and the trits (see [`Checkpoint::unread`]), never from the
//! result of a comparison. Every other bit of the weights, of the settings and of the header is compared,
//! or has to be what it is for the file to open.

use bitnet_checkpoint::{Checkpoint, LinearSource, Slot};
use bitnet_formats::{Bytes, FormatError, Limits, Unread, UnreadBits, read_file};
use bitnet_ternary::TernaryMatrix;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;

/// Bits that no reader uses, and how many.
#[derive(Debug, Clone, PartialEq)]
pub struct Padding {
    /// Where and why.
    pub unread: Unread,
    /// How many bits.
    pub bits: u64,
}

/// All of an artifact, counted, in the order of file and place. `silent`: those of [`silent_scales`], which
/// only a pass over the trits can tell.
pub(crate) fn padding(
    artifact: &Checkpoint,
    source: Option<&Checkpoint>,
    silent: Vec<Unread>,
) -> Result<Vec<Padding>, FormatError> {
    let mut all = artifact.unread()?;
    all.extend(silent);
    all.extend(uncompared_masters(artifact, source));
    all.sort_by(|a, b| (&a.file, a.range.start).cmp(&(&b.file, b.range.start)));
    let mut read: HashMap<PathBuf, Bytes> = HashMap::new();
    let mut counted = Vec::with_capacity(all.len());
    for unread in all {
        let part = artifact.file.parts.iter().find(|p| p.path() == unread.file);
        let bytes = match part {
            Some(part) => {
                let len = part.len();
                part.read(unread.range.start.min(len)..unread.range.end.min(len))?
            }
            None => {
                let range = unread.range.start as usize..unread.range.end as usize;
                let all = match read.entry(unread.file.clone()) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => {
                        let limit = Limits::default().side_file_bytes;
                        let text: Bytes = read_file(&unread.file, limit)?.into();
                        entry.insert(text)
                    }
                };
                all.slice(range).unwrap_or_default()
            }
        };
        let bits = unread.count(&bytes);
        if bits > 0 {
            counted.push(Padding { unread, bits });
        }
    }
    Ok(counted)
}

/// Scales beside the codes that multiply nothing but zeros.
pub(crate) fn silent_scales(
    checkpoint: &Checkpoint,
    slot: Slot,
    matrix: &TernaryMatrix,
) -> Vec<Unread> {
    let Ok(linear) = checkpoint.linear(slot) else {
        return Vec::new();
    };
    let checked = linear.storage.checks_silent_scales();
    let Some(info) = linear.scale_tensor().filter(|_| !checked) else {
        return Vec::new();
    };
    let count = info.shape.iter().product::<usize>().max(1);
    let size = info.len / count as u64;
    let trits = matrix.trits();
    let silent = |n: &usize| {
        let step = trits.len() / count;
        let own = trits.get(n * step..(n + 1) * step).unwrap_or(&[]);
        own.iter().all(|t| *t == 0)
    };
    let place = |n: usize| {
        let start = info.offset + n as u64 * size;
        let why = "a scale that multiplies nothing but zeros";
        checkpoint.unread_at(info, start..start + size, UnreadBits::All, why)
    };
    (0..count).filter(silent).map(place).collect()
}

/// Master weights where the source has none: of these only trits and scale are compared.
fn uncompared_masters(artifact: &Checkpoint, source: Option<&Checkpoint>) -> Vec<Unread> {
    let is_master = |checkpoint: &Checkpoint, slot| {
        let linear = checkpoint.linear(slot);
        linear.is_ok_and(LinearSource::is_master)
    };
    let alone = |slot: &Slot| {
        is_master(artifact, *slot) && !source.is_some_and(|source| is_master(source, *slot))
    };
    let slots = artifact.slots_in_file_order().into_iter().filter(alone);
    let named = slots.filter_map(|slot| {
        let info = artifact.tensor_range(slot)?;
        let range = info.offset..info.offset + info.len;
        let why = "master weights: what they are compared with has only the trits they round to";
        Some(artifact.unread_at(info, range, UnreadBits::All, why))
    });
    named.collect()
}
