//! Laying out a PyTorch file.
//!
//! Invariant: the file is laid out before its tensors are known: sizes and places first, checksums behind
//! the bytes they are of ([`Frames`]). What is laid out here, `torch.load(weights_only=True)` reads, `unzip -t`
//! finds whole, and the reader of this container maps.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::state_dict::storage_class;
use super::zip::{self, Entry};
use super::{BYTE_ORDER, PICKLE, STORAGES};
use crate::container::{Header, PlannedTensor, WritePlan};
use crate::encoding::Encoding;
use crate::error::{ErrorCode, FormatError};
use crc32fast::Hasher;
use std::collections::HashSet;

/// The name of the archive: torch takes any, so the same model gives the same bytes under every file name.
const ARCHIVE: &str = "archive";
/// Where torch aligns storages.
const ALIGNMENT: u64 = 64;
/// The version of the archive's layout, which torch asks for.
const VERSION: (&str, &[u8]) = ("/version", b"3\n");

/// What stands between and behind the tensors of a zip archive, made as their bytes go by.
#[derive(Debug, Clone)]
pub struct Frames {
    /// All records; those of tensors have no checksum yet.
    entries: Vec<Entry>,
    /// Which one the bytes belong to that go by.
    at: usize,
    checksum: Hasher,
    /// Where the directory begins.
    directory: u64,
}

impl Frames {
    /// Bytes of the tensor at hand, in order.
    pub fn update(&mut self, bytes: &[u8]) {
        self.checksum.update(bytes);
    }

    /// Ends the tensor at hand: the bytes from its end to the beginning of the next one, or to the end
    /// of the file. Nothing when there is no tensor left.
    pub fn next_tensor(&mut self) -> Vec<u8> {
        let checksum = std::mem::take(&mut self.checksum).finalize();
        let mut out = Vec::new();
        let Some(entry) = self.entries.get_mut(self.at) else {
            return out;
        };
        entry.checksum = checksum;
        zip::push_descriptor(&mut out, entry);
        self.at = self.at.saturating_add(1);
        match self.entries.get(self.at) {
            Some(next) => zip::push_local(&mut out, next),
            None => zip::push_directory(&mut out, &self.entries, self.directory),
        }
        out
    }
}

pub(super) fn write_header(plan: &WritePlan) -> Result<Header, FormatError> {
    if let Some((key, _)) = plan.metadata.0.first() {
        let message = "a PyTorch file has no metadata";
        return Err(FormatError::new(ErrorCode::TargetCannotHold, message).in_tensor(key));
    }
    let mut names = HashSet::new();
    for tensor in &plan.tensors {
        if !names.insert(tensor.name.as_str()) {
            let message = "the plan has this tensor twice";
            return Err(
                FormatError::new(ErrorCode::TargetCannotHold, message).in_tensor(&tensor.name)
            );
        }
    }
    let mut bytes = Vec::new();
    let mut entries = Vec::new();
    for (name, content) in [
        (PICKLE, pickle(plan)?.as_slice()),
        (BYTE_ORDER, b"little"),
        VERSION,
    ] {
        let at = bytes.len() as u64;
        let mut entry = Entry::new(
            format!("{ARCHIVE}{name}"),
            at,
            content.len() as u64,
            ALIGNMENT,
        )?;
        entry.checksum = crc32fast::hash(content);
        zip::push_local(&mut bytes, &entry);
        bytes.extend_from_slice(content);
        zip::push_descriptor(&mut bytes, &entry);
        entries.push(entry);
    }
    let first = entries.len();
    let mut at = bytes.len() as u64;
    let mut offsets = Vec::with_capacity(plan.tensors.len());
    for (number, tensor) in plan.tensors.iter().enumerate() {
        let name = format!("{ARCHIVE}{STORAGES}{number}");
        let entry =
            Entry::new(name, at, tensor.len, ALIGNMENT).map_err(|e| e.in_tensor(&tensor.name))?;
        offsets.push(entry.start());
        at = entry.end();
        entries.push(entry);
    }
    let mut behind = Vec::new();
    zip::push_directory(&mut behind, &entries, at);
    let total = at.saturating_add(behind.len() as u64);
    match entries.get(first) {
        Some(entry) => zip::push_local(&mut bytes, entry),
        None => bytes.extend_from_slice(&behind),
    }
    Ok(Header {
        bytes,
        offsets,
        total,
        frames: Some(Frames {
            entries,
            at: first,
            checksum: Hasher::new(),
            directory: at,
        }),
    })
}

/// `{name: tensor, …}`, spelled out without a memo: what is said twice stands there twice.
fn pickle(plan: &WritePlan) -> Result<Vec<u8>, FormatError> {
    let mut out = vec![0x80, 2];
    out.extend_from_slice(b"}(");
    for (number, tensor) in plan.tensors.iter().enumerate() {
        push_text(&mut out, &tensor.name);
        push_tensor(&mut out, number, tensor).map_err(|e| e.in_tensor(&tensor.name))?;
    }
    out.extend_from_slice(b"u.");
    Ok(out)
}

fn push_tensor(
    out: &mut Vec<u8>,
    number: usize,
    tensor: &PlannedTensor,
) -> Result<(), FormatError> {
    let Encoding::Plain(plain) = tensor.encoding else {
        let message = format!("PyTorch has no type {}", tensor.encoding.name());
        return Err(FormatError::new(ErrorCode::TargetCannotHold, message));
    };
    let class = storage_class(plain).ok_or_else(|| {
        let name = plain.safetensors_name().to_ascii_lowercase();
        FormatError::new(
            ErrorCode::TargetCannotHold,
            format!("PyTorch has no storage of {name}"),
        )
    })?;
    let sizes = || tensor.shape.iter().map(|&size| size as u64);
    let elements = sizes().try_fold(1u64, |n, size| n.checked_mul(size));
    let needed = elements.and_then(|n| n.checked_mul(plain.size() as u64));
    let (Some(elements), true) = (elements, needed == Some(tensor.len)) else {
        let message = format!(
            "{class} {:?} does not take the planned {} bytes",
            tensor.shape, tensor.len
        );
        return Err(FormatError::new(ErrorCode::WrongShape, message));
    };
    let mut strides = Vec::with_capacity(tensor.shape.len());
    let mut step = 1u64;
    for size in sizes().rev() {
        strides.push(step);
        step = step.saturating_mul(size.max(1));
    }
    strides.reverse();
    push_global(out, "torch._utils", "_rebuild_tensor_v2");
    out.extend_from_slice(b"((");
    push_text(out, "storage");
    push_global(out, "torch", class);
    push_text(out, &number.to_string());
    push_text(out, "cpu");
    push_number(out, elements);
    out.extend_from_slice(b"tQ");
    push_number(out, 0);
    push_numbers(out, sizes());
    push_numbers(out, strides.into_iter());
    out.push(0x89); // requires no gradient
    push_global(out, "collections", "OrderedDict");
    out.extend_from_slice(b")RtR");
    Ok(())
}

fn push_global(out: &mut Vec<u8>, module: &str, name: &str) {
    out.extend_from_slice(format!("c{module}\n{name}\n").as_bytes());
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn push_numbers(out: &mut Vec<u8>, numbers: impl Iterator<Item = u64>) {
    out.push(b'(');
    numbers.for_each(|n| push_number(out, n));
    out.push(b't');
}

/// The shortest form, as Python writes it.
fn push_number(out: &mut Vec<u8>, n: u64) {
    if let Ok(n) = u8::try_from(n) {
        out.extend_from_slice(&[b'K', n]);
    } else if let Ok(n) = u16::try_from(n) {
        out.push(b'M');
        out.extend_from_slice(&n.to_le_bytes());
    } else if let Ok(n) = i32::try_from(n) {
        out.push(b'J');
        out.extend_from_slice(&n.to_le_bytes());
    } else {
        // eight bytes hold every length of a file
        out.extend_from_slice(&[0x8a, 8]);
        out.extend_from_slice(&n.to_le_bytes());
    }
}
