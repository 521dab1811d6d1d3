//! A little-endian cursor over untrusted bytes, every read checked.
//!
//! Invariant: a read either returns exactly the bytes asked for and moves past them, or returns a
//! `truncated` error that says where and how much was missing. Nothing here allocates.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::error::{ErrorCode, FormatError};

/// A position in a slice of bytes.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Starts at a byte; beyond the end every read is an error.
    pub(crate) fn starting_at(bytes: &'a [u8], at: u64) -> Self {
        let at = usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len()));
        Self { bytes, at }
    }

    /// Bytes read so far, which is the offset of the next read.
    pub(crate) fn position(&self) -> u64 {
        self.at as u64
    }

    /// Bytes left.
    pub(crate) fn remaining(&self) -> u64 {
        self.bytes.len().saturating_sub(self.at) as u64
    }

    /// The next `count` bytes; `what` names them in the error.
    pub(crate) fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], FormatError> {
        let range = usize::try_from(count)
            .ok()
            .and_then(|count| self.at.checked_add(count))
            .and_then(|end| Some((self.bytes.get(self.at..end)?, end)));
        match range {
            Some((bytes, end)) => {
                self.at = end;
                Ok(bytes)
            }
            None => Err(FormatError::new(
                ErrorCode::Truncated,
                format!("{what} needs {count} bytes, {} left", self.remaining()),
            )
            .at(self.position())),
        }
    }

    /// The next `N` bytes as an array.
    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], FormatError> {
        let bytes = self.take(N as u64, what)?;
        // `take` returned N bytes, so the conversion succeeds
        Ok(bytes.try_into().unwrap_or([0; N]))
    }

    /// The next byte.
    pub(crate) fn u8(&mut self, what: &str) -> Result<u8, FormatError> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    /// The next u16.
    pub(crate) fn u16(&mut self, what: &str) -> Result<u16, FormatError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    /// The next u32.
    pub(crate) fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// The next u64.
    pub(crate) fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn reads_move_and_the_end_is_an_error_with_its_place() {
        let mut cursor = Cursor::new(&[1, 2, 0, 0, 0, 9]);
        assert_eq!(cursor.u8("tag").unwrap(), 1);
        assert_eq!(cursor.u32("count").unwrap(), 2);
        assert_eq!((cursor.position(), cursor.remaining()), (5, 1));
        let error = cursor.u64("offset").unwrap_err();
        assert_eq!(error.code, ErrorCode::Truncated);
        assert_eq!(
            error.to_string(),
            "offset needs 8 bytes, 1 left (at byte 5)"
        );
        // a failed read does not move
        assert_eq!(cursor.u8("last").unwrap(), 9);
    }

    #[test]
    fn lengths_that_wrap_are_errors() {
        let mut cursor = Cursor::new(&[0; 4]);
        cursor.u8("first").unwrap();
        assert!(cursor.take(u64::MAX, "string").is_err());
        assert!(cursor.take(u64::MAX - 1, "string").is_err());
        assert_eq!(cursor.take(3, "rest").unwrap().len(), 3);
        assert_eq!(cursor.take(0, "nothing").unwrap().len(), 0);
    }
}
