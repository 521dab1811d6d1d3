//! The zip archives that `torch.save` makes: records end to end, stored as they are. Written by hand, because tensors
//! are read where they lie: zip libraries hand out readers that copy, not the offsets of records.
//!
//! Invariant: every record lies in the file, none overlaps another or the directory behind them, and no
//! name comes twice. A record that is compressed or encrypted is refused: its bytes could not be mapped.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::malformed;
use crate::bytes::Cursor;
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::source::Source;
use std::collections::HashMap;

/// What a record begins with.
pub(super) const LOCAL: [u8; 4] = *b"PK\x03\x04";
/// What an entry of the directory begins with.
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
/// The end of the directory, its 64-bit form, and what says where that stands.
const END: [u8; 4] = *b"PK\x05\x06";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
/// Lengths without names, extra fields and comments.
const CENTRAL_LEN: u64 = 46;
const END_LEN: u64 = 22;
const LOCATOR_LEN: u64 = 20;
const END_64_LEN: u64 = 56;
/// The longest comment behind the end of the directory.
const LONGEST_COMMENT: u64 = u16::MAX as u64;
/// A bit of the flags.
const ENCRYPTED: u16 = 1;
/// The extra field of numbers that need 64 bits.
const EXTRA_64: u16 = 1;
/// A number of 32 bits that stands in the extra field instead.
const ELSEWHERE: u64 = u32::MAX as u64;

/// A record's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// Offset of its first byte in the file.
    pub(super) start: u64,
    /// Bytes.
    pub(super) len: u64,
}

/// The directory of an archive: its extent and how many entries it has.
struct Directory {
    start: u64,
    len: u64,
    entries: u64,
}

/// Reads the directory of an archive and the header of every record.
///
/// # Errors
/// `truncated` without a directory at the end, `malformed`, `limit-exceeded`, `unknown-container` for
/// records that are compressed or encrypted.
pub(super) fn read(
    file: &dyn Source,
    limits: &Limits,
) -> Result<HashMap<String, Record>, FormatError> {
    let directory = directory(file)?;
    // torch adds a handful of records that are no storages
    let most = limits.tensors.saturating_add(64);
    if directory.entries > most {
        let message = format!("{} records, expected at most {most}", directory.entries);
        return Err(FormatError::new(ErrorCode::LimitExceeded, message).at(directory.start));
    }
    if directory.entries > directory.len / CENTRAL_LEN {
        let message = format!(
            "a directory of {} bytes cannot have {} entries",
            directory.len, directory.entries
        );
        return Err(malformed(message).at(directory.start));
    }
    let end = directory.start.saturating_add(directory.len);
    let mut cursor = Cursor::starting_at(file, directory.start);
    let mut records = HashMap::with_capacity(directory.entries as usize);
    let mut extents = Vec::with_capacity(directory.entries as usize);
    for _ in 0..directory.entries {
        let (name, header, len) = central(&mut cursor)?;
        let start = local(file, header, &name)?;
        let record_end = start.checked_add(len).filter(|e| *e <= directory.start);
        let Some(record_end) = record_end else {
            let limit = directory.start;
            let message = format!("needs {len} bytes at {start}, the directory begins at {limit}");
            return Err(malformed(message).in_tensor(&name));
        };
        extents.push((header, record_end));
        if records
            .insert(name.clone(), Record { start, len })
            .is_some()
        {
            return Err(malformed("the archive has this record twice").in_tensor(&name));
        }
    }
    if cursor.position() != end {
        let message = format!(
            "the directory ends at {}, expected {end}",
            cursor.position()
        );
        return Err(malformed(message).at(cursor.position()));
    }
    extents.sort_unstable();
    let pairs = extents.iter().zip(extents.iter().skip(1));
    for ((_, end), (next, _)) in pairs {
        if next < end {
            let message = format!("records overlap: one ends at {end}, the next begins at {next}");
            return Err(malformed(message).at(*next));
        }
    }
    Ok(records)
}

/// Finds the directory by what stands behind it.
fn directory(file: &dyn Source) -> Result<Directory, FormatError> {
    let end = find_end(file)?.ok_or_else(|| {
        FormatError::new(
            ErrorCode::Truncated,
            "expected a zip directory at the end of the file, found none",
        )
        .at(file.len())
        .hint("the file is incomplete: fetch it again")
    })?;
    let what = "end of the directory";
    let mut cursor = Cursor::starting_at(file, end).in_steps_of(END_LEN);
    cursor.u32(what)?;
    let disks = (cursor.u16(what)?, cursor.u16(what)?);
    let counts = (u64::from(cursor.u16(what)?), u64::from(cursor.u16(what)?));
    let len = u64::from(cursor.u32(what)?);
    let start = u64::from(cursor.u32(what)?);
    // torch writes the 64-bit form always, others where it is needed
    let (found, behind) = match directory_64(file, end)? {
        Some(found) => found,
        None if disks != (0, 0) || counts.0 != counts.1 => return Err(in_parts().at(end)),
        None => {
            let entries = counts.1;
            (
                Directory {
                    start,
                    len,
                    entries,
                },
                end,
            )
        }
    };
    let fits = found
        .start
        .checked_add(found.len)
        .is_some_and(|e| e <= behind);
    if !fits {
        let Directory { start, len, .. } = found;
        let message = format!("a directory of {len} bytes at {start} does not end before {behind}");
        return Err(malformed(message).at(end));
    }
    Ok(found)
}

fn in_parts() -> FormatError {
    malformed("the archive is one of several parts")
}

/// The last end of a directory whose comment reaches to the end of the file.
fn find_end(file: &dyn Source) -> Result<Option<u64>, FormatError> {
    let Some(last) = file.len().checked_sub(END_LEN) else {
        return Ok(None);
    };
    let first = last.saturating_sub(LONGEST_COMMENT);
    let bytes = file.read(first..file.len())?;
    let found = (first..=last).rev().find(|&at| {
        let past = usize::try_from(at.saturating_sub(first)).ok();
        let tail = past.and_then(|past| bytes.get(past..)).unwrap_or_default();
        let mut cursor = Cursor::new(tail);
        let signed = cursor.array("signature").is_ok_and(|s| s == END);
        let rest = END_LEN.saturating_sub(6); // signature and comment length
        signed
            && cursor.take(rest, "end of the directory").is_ok()
            && cursor
                .u16("comment length")
                .is_ok_and(|n| u64::from(n) == cursor.remaining())
    });
    Ok(found)
}

/// The 64-bit form, if the bytes before `end` say where it stands, and where that is.
fn directory_64(file: &dyn Source, end: u64) -> Result<Option<(Directory, u64)>, FormatError> {
    let what = "64-bit end of the directory";
    let Some(at) = end.checked_sub(LOCATOR_LEN) else {
        return Ok(None);
    };
    let mut cursor = Cursor::starting_at(file, at).in_steps_of(LOCATOR_LEN);
    if cursor.array::<4>(what)? != LOCATOR_64 {
        return Ok(None);
    }
    cursor.u32(what)?;
    let at = cursor.u64(what)?;
    let mut cursor = Cursor::starting_at(file, at).in_steps_of(END_64_LEN);
    if at >= end || cursor.array::<4>(what)? != END_64 {
        return Err(malformed(format!("expected the 64-bit end of the directory at {at}")).at(end));
    }
    cursor.take(12, what)?; // its length, versions
    let disks = (cursor.u32(what)?, cursor.u32(what)?);
    let counts = (cursor.u64(what)?, cursor.u64(what)?);
    if disks != (0, 0) || counts.0 != counts.1 {
        return Err(in_parts().at(at));
    }
    let (len, start) = (cursor.u64(what)?, cursor.u64(what)?);
    let entries = counts.1;
    Ok(Some((
        Directory {
            start,
            len,
            entries,
        },
        at,
    )))
}

/// An entry of the directory: name, offset of the record's header, bytes of the record.
fn central(cursor: &mut Cursor<'_>) -> Result<(String, u64, u64), FormatError> {
    let at = cursor.position();
    let what = "entry of the directory";
    if cursor.array::<4>(what)? != CENTRAL {
        return Err(malformed("expected an entry of the directory").at(at));
    }
    cursor.take(4, what)?; // versions
    let flags = cursor.u16(what)?;
    let method = cursor.u16(what)?;
    cursor.take(8, what)?; // time, checksum
    let (packed, len) = (u64::from(cursor.u32(what)?), u64::from(cursor.u32(what)?));
    let name_len = cursor.u16(what)?;
    let extra_len = cursor.u16(what)?;
    let comment_len = cursor.u16(what)?;
    cursor.take(8, what)?; // disk, attributes
    let offset = u64::from(cursor.u32(what)?);
    let name = cursor.take(name_len.into(), "name of a record")?;
    let name = String::from_utf8_lossy(name).into_owned();
    let extra = cursor.take(extra_len.into(), what)?;
    let mut numbers = [len, packed, offset];
    in_64_bits(extra, &mut numbers).map_err(|e| e.in_tensor(&name).at(at))?;
    cursor.skip(comment_len.into(), what)?;
    let [len, packed, offset] = numbers;
    if flags & ENCRYPTED != 0 || method != 0 || packed != len {
        let message = "expected records that are stored as they are, found one that is compressed or encrypted";
        return Err(FormatError::new(ErrorCode::UnknownContainer, message)
            .in_tensor(&name)
            .at(at)
            .hint("torch.save does not compress: is this a zip of something else?"));
    }
    Ok((name, offset, len))
}

/// Puts in what stands in the extra field because it does not fit 32 bits, in this order.
fn in_64_bits(extra: &[u8], numbers: &mut [u64; 3]) -> Result<(), FormatError> {
    let what = "extra field";
    let mut cursor = Cursor::new(extra);
    while cursor.remaining() >= 4 {
        let (id, len) = (cursor.u16(what)?, cursor.u16(what)?);
        let field = cursor.take(len.into(), what)?;
        let mut field = Cursor::new(field);
        if id == EXTRA_64 {
            for number in numbers.iter_mut().filter(|n| **n == ELSEWHERE) {
                *number = field.u64("64-bit size")?;
            }
            return Ok(());
        }
    }
    Ok(())
}

/// Where the bytes of a record begin, by the header before them.
fn local(file: &dyn Source, at: u64, name: &str) -> Result<u64, FormatError> {
    let place = |e: FormatError| e.in_tensor(name).at(at);
    let what = "header of a record";
    let step = LOCAL_LEN.saturating_add(name.len() as u64);
    let mut cursor = Cursor::starting_at(file, at).in_steps_of(step);
    if at >= file.len() || cursor.array::<4>(what).map_err(place)? != LOCAL {
        return Err(place(malformed("expected the header of a record")));
    }
    cursor.take(22, what).map_err(place)?; // versions, flags, time, checksum, sizes
    let name_len = cursor.u16(what).map_err(place)?;
    let extra_len = cursor.u16(what).map_err(place)?;
    let here = cursor.take(name_len.into(), what).map_err(place)?;
    if String::from_utf8_lossy(here) != name {
        return Err(place(malformed(
            "the directory has another name for this record",
        )));
    }
    cursor.skip(extra_len.into(), what).map_err(place)?;
    Ok(cursor.position())
}

// ---- writing ----

/// A checksum and sizes behind a record.
const DESCRIPTOR: [u8; 4] = *b"PK\x07\x08";
/// The extra field that pads a record to its place, as torch spells it.
const PADDING: (&[u8; 2], u8) = (b"FB", b'Z');
/// Sizes and checksum stand behind the record; names are UTF-8.
const FLAGS: u16 = 0x0808;
/// The first day that a zip archive knows: the same model gives the same bytes on every day.
const DATE: u16 = 0x0021;
/// The version of the format that a reader needs; and for 64-bit numbers.
const NEEDS: u16 = 20;
const NEEDS_64: u16 = 45;
/// Bytes of the header of a record, without name and padding.
const LOCAL_LEN: u64 = 30;
const DESCRIPTOR_LEN: u64 = 16;
/// Bytes of the extra field before its content.
const EXTRA_LEN: u64 = 4;

/// A record to be written.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    name: String,
    /// Offset of its header.
    header: u64,
    /// Bytes of padding in the header.
    padding: u16,
    len: u32,
    /// CRC-32 of its bytes.
    pub(super) checksum: u32,
}

impl Entry {
    /// A record whose header begins at `header` and whose bytes begin at a multiple of `alignment`.
    ///
    /// # Errors
    /// `target-cannot-hold` for a record of 4 GiB or more.
    pub(super) fn new(
        name: String,
        header: u64,
        len: u64,
        alignment: u64,
    ) -> Result<Self, FormatError> {
        let Ok(short) = u32::try_from(len) else {
            let message = format!("{len} bytes are more than a record of 32-bit length holds");
            return Err(FormatError::new(ErrorCode::TargetCannotHold, message)
                .hint("choose a target of safetensors or GGUF"));
        };
        let fixed = LOCAL_LEN.saturating_add(EXTRA_LEN);
        let bare = header
            .saturating_add(fixed)
            .saturating_add(name.len() as u64);
        let padding = bare.next_multiple_of(alignment).saturating_sub(bare) as u16;
        Ok(Self {
            name,
            header,
            padding,
            len: short,
            checksum: 0,
        })
    }

    /// Offset of its bytes.
    pub(super) fn start(&self) -> u64 {
        let fixed = LOCAL_LEN.saturating_add(EXTRA_LEN);
        let named = fixed.saturating_add(self.name.len() as u64);
        let header = self.header.saturating_add(named);
        header.saturating_add(self.padding.into())
    }

    /// Offset behind all that belongs to it.
    pub(super) fn end(&self) -> u64 {
        let bytes = self.start().saturating_add(self.len.into());
        bytes.saturating_add(DESCRIPTOR_LEN)
    }
}

fn push_u16(out: &mut Vec<u8>, n: u16) {
    out.extend_from_slice(&n.to_le_bytes());
}

fn push_u32(out: &mut Vec<u8>, n: u32) {
    out.extend_from_slice(&n.to_le_bytes());
}

fn push_u64(out: &mut Vec<u8>, n: u64) {
    out.extend_from_slice(&n.to_le_bytes());
}

/// What stands before a record.
pub(super) fn push_local(out: &mut Vec<u8>, entry: &Entry) {
    out.extend_from_slice(&LOCAL);
    for n in [NEEDS, FLAGS, 0, 0, DATE] {
        push_u16(out, n);
    }
    for _ in ["checksum", "packed", "unpacked"] {
        push_u32(out, 0); // behind the record
    }
    push_u16(out, entry.name.len() as u16);
    push_u16(out, entry.padding.saturating_add(EXTRA_LEN as u16));
    out.extend_from_slice(entry.name.as_bytes());
    out.extend_from_slice(PADDING.0);
    push_u16(out, entry.padding);
    out.resize(out.len().saturating_add(entry.padding.into()), PADDING.1);
}

/// What stands behind a record.
pub(super) fn push_descriptor(out: &mut Vec<u8>, entry: &Entry) {
    out.extend_from_slice(&DESCRIPTOR);
    for n in [entry.checksum, entry.len, entry.len] {
        push_u32(out, n);
    }
}

/// What stands behind all records: the directory, and its end twice, as torch writes it.
pub(super) fn push_directory(out: &mut Vec<u8>, entries: &[Entry], start: u64) {
    let before = out.len();
    for entry in entries {
        let far = u64::from(u32::try_from(entry.header).unwrap_or(u32::MAX)) == ELSEWHERE;
        let needs = if far { NEEDS_64 } else { NEEDS };
        out.extend_from_slice(&CENTRAL);
        for n in [needs, needs, FLAGS, 0, 0, DATE] {
            push_u16(out, n);
        }
        for n in [entry.checksum, entry.len, entry.len] {
            push_u32(out, n);
        }
        push_u16(out, entry.name.len() as u16);
        push_u16(out, if far { 12 } else { 0 }); // the extra field below
        for _ in ["comment", "disk", "attributes"] {
            push_u16(out, 0);
        }
        push_u32(out, 0);
        push_u32(out, u32::try_from(entry.header).unwrap_or(u32::MAX));
        out.extend_from_slice(entry.name.as_bytes());
        if far {
            push_u16(out, EXTRA_64);
            push_u16(out, 8);
            push_u64(out, entry.header);
        }
    }
    let len = out.len().saturating_sub(before) as u64;
    let count = entries.len() as u64;
    let end = start.saturating_add(len);
    out.extend_from_slice(&END_64);
    push_u64(out, 44); // bytes that follow
    push_u16(out, NEEDS_64);
    push_u16(out, NEEDS_64);
    push_u64(out, 0); // disks
    for n in [count, count, len, start] {
        push_u64(out, n);
    }
    out.extend_from_slice(&LOCATOR_64);
    push_u32(out, 0);
    push_u64(out, end);
    push_u32(out, 1);
    out.extend_from_slice(&END);
    push_u32(out, 0);
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    push_u16(out, count);
    push_u16(out, count);
    push_u32(out, u32::try_from(len).unwrap_or(u32::MAX));
    push_u32(out, u32::try_from(start).unwrap_or(u32::MAX));
    push_u16(out, 0);
}
