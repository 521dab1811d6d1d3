//! The zip archives that `torch.save` makes: records end to end, stored as they are.
//!
//! Invariant: every record lies in the file, none overlaps another or the directory behind them, and no
//! name comes twice. A record that is compressed or encrypted is refused: its bytes could not be mapped.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::malformed;
use crate::bytes::Cursor;
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
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
pub(super) fn read(bytes: &[u8], limits: &Limits) -> Result<HashMap<String, Record>, FormatError> {
    let directory = directory(bytes)?;
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
    let mut cursor = Cursor::starting_at(bytes, directory.start);
    let mut records = HashMap::with_capacity(directory.entries as usize);
    let mut extents = Vec::with_capacity(directory.entries as usize);
    for _ in 0..directory.entries {
        let (name, header, len) = central(&mut cursor)?;
        let start = local(bytes, header, &name)?;
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
fn directory(bytes: &[u8]) -> Result<Directory, FormatError> {
    let end = find_end(bytes).ok_or_else(|| {
        FormatError::new(
            ErrorCode::Truncated,
            "expected a zip directory at the end of the file, found none",
        )
        .at(bytes.len() as u64)
        .hint("the file is incomplete: fetch it again")
    })?;
    let what = "end of the directory";
    let mut cursor = Cursor::starting_at(bytes, end);
    cursor.u32(what)?;
    let disks = (cursor.u16(what)?, cursor.u16(what)?);
    let counts = (u64::from(cursor.u16(what)?), u64::from(cursor.u16(what)?));
    let len = u64::from(cursor.u32(what)?);
    let start = u64::from(cursor.u32(what)?);
    // torch writes the 64-bit form always, others where it is needed
    let (found, behind) = match directory_64(bytes, end)? {
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
fn find_end(bytes: &[u8]) -> Option<u64> {
    let last = (bytes.len() as u64).checked_sub(END_LEN)?;
    let first = last.saturating_sub(LONGEST_COMMENT);
    (first..=last).rev().find(|&at| {
        let mut cursor = Cursor::starting_at(bytes, at);
        let signed = cursor.array("signature").is_ok_and(|s| s == END);
        let rest = END_LEN.saturating_sub(6); // signature and comment length
        signed
            && cursor.take(rest, "end of the directory").is_ok()
            && cursor
                .u16("comment length")
                .is_ok_and(|n| u64::from(n) == cursor.remaining())
    })
}

/// The 64-bit form, if the bytes before `end` say where it stands, and where that is.
fn directory_64(bytes: &[u8], end: u64) -> Result<Option<(Directory, u64)>, FormatError> {
    let what = "64-bit end of the directory";
    let Some(at) = end.checked_sub(LOCATOR_LEN) else {
        return Ok(None);
    };
    let mut cursor = Cursor::starting_at(bytes, at);
    if cursor.array::<4>(what)? != LOCATOR_64 {
        return Ok(None);
    }
    cursor.u32(what)?;
    let at = cursor.u64(what)?;
    let mut cursor = Cursor::starting_at(bytes, at);
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
    cursor.take(comment_len.into(), what)?;
    let mut numbers = [len, packed, offset];
    in_64_bits(extra, &mut numbers).map_err(|e| e.in_tensor(&name).at(at))?;
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
        let mut field = Cursor::new(cursor.take(len.into(), what)?);
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
fn local(bytes: &[u8], at: u64, name: &str) -> Result<u64, FormatError> {
    let place = |e: FormatError| e.in_tensor(name).at(at);
    let what = "header of a record";
    let mut cursor = Cursor::starting_at(bytes, at);
    if at >= bytes.len() as u64 || cursor.array::<4>(what).map_err(place)? != LOCAL {
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
    cursor.take(extra_len.into(), what).map_err(place)?;
    Ok(cursor.position())
}
