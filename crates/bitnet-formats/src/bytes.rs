//! A little-endian cursor over untrusted bytes, every read checked.
//!
//! Invariant: a read either returns exactly the bytes asked for and moves past them, or returns an error that says where
//! it happened: `truncated` with how much was missing, or what the source says. A source is read once, in windows
//! from the cursor's place on: what is behind the last window is never touched.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::error::{ErrorCode, FormatError};
use crate::source::{Bytes, Source};

/// Bytes of a source that are read at once: headers mostly fit, and payloads behind them hardly matter.
const WINDOW: u64 = 64 << 10;

/// A position in a slice of bytes or in a source.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    /// `None`: the window is everything.
    source: Option<&'a dyn Source>,
    window: Window<'a>,
    /// Where the window begins.
    window_start: u64,
    /// Bytes per window, unless a read needs more.
    step: u64,
    /// Where positions count from.
    start: u64,
    at: u64,
    end: u64,
}

#[derive(Debug, Clone)]
enum Window<'a> {
    Slice(&'a [u8]),
    Read(Bytes),
}

impl Window<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Slice(bytes) => bytes,
            Self::Read(bytes) => bytes,
        }
    }
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            source: None,
            window: Window::Slice(bytes),
            window_start: 0,
            step: 0,
            start: 0,
            at: 0,
            end: bytes.len() as u64,
        }
    }

    /// Starts at the first byte of a source.
    pub(crate) fn over(source: &'a dyn Source) -> Self {
        Self::behind(source, 0)
    }

    /// Starts at a byte of a source, from which positions count.
    pub(crate) fn behind(source: &'a dyn Source, start: u64) -> Self {
        let start = start.min(source.len());
        Self {
            source: Some(source),
            window: Window::Slice(&[]),
            window_start: start,
            step: WINDOW,
            start,
            at: start,
            end: source.len(),
        }
    }

    /// Starts at a byte of a source; positions count from the source's first. Beyond the end every read is an error.
    pub(crate) fn starting_at(source: &'a dyn Source, at: u64) -> Self {
        let cursor = Self::behind(source, at);
        Self { start: 0, ..cursor }
    }

    /// The same with windows of another size.
    pub(crate) fn in_steps_of(self, step: u64) -> Self {
        Self { step, ..self }
    }

    /// The offset of the next read.
    pub(crate) fn position(&self) -> u64 {
        self.at.saturating_sub(self.start)
    }

    /// Bytes left.
    pub(crate) fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Bytes read so far and bytes left.
    pub(crate) fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Makes the window hold `count` bytes from the position on; so many are left.
    fn fill(&mut self, count: u64) -> Result<(), FormatError> {
        let window = self.window.bytes();
        let past = self.at.saturating_sub(self.window_start);
        let held = (window.len() as u64).saturating_sub(past);
        let Some(source) = self.source.filter(|_| held < count) else {
            return Ok(());
        };
        let from = self.at.saturating_add(held);
        let until = from.saturating_add(self.step).min(self.end);
        let read = source.read(from..until.max(self.at.saturating_add(count)))?;
        self.window = Window::Read(match held {
            0 => read,
            _ => {
                let tail = usize::try_from(past)
                    .ok()
                    .and_then(|past| window.get(past..));
                let mut joined = tail.unwrap_or_default().to_vec();
                joined.extend_from_slice(&read);
                joined.into()
            }
        });
        self.window_start = self.at;
        Ok(())
    }

    /// The next `count` bytes; `what` names them in the error.
    pub(crate) fn take(&mut self, count: u64, what: &str) -> Result<&[u8], FormatError> {
        self.expect(count, what)?;
        self.fill(count)?;
        let past = self.at.saturating_sub(self.window_start);
        let bytes = usize::try_from(past)
            .ok()
            .zip(usize::try_from(count).ok())
            .and_then(|(past, count)| self.window.bytes().get(past..)?.get(..count));
        // `fill` returned, so they are there
        let Some(bytes) = bytes else {
            return Err(FormatError::new(
                ErrorCode::Truncated,
                format!("{what} is not there"),
            ));
        };
        self.at = self.at.saturating_add(count);
        Ok(bytes)
    }

    /// Moves past the next `count` bytes without reading them.
    pub(crate) fn skip(&mut self, count: u64, what: &str) -> Result<(), FormatError> {
        self.expect(count, what)?;
        self.at = self.at.saturating_add(count);
        Ok(())
    }

    fn expect(&self, count: u64, what: &str) -> Result<(), FormatError> {
        let left = self.remaining();
        if count <= left {
            return Ok(());
        }
        let message = format!("{what} needs {count} bytes, {left} left");
        Err(FormatError::new(ErrorCode::Truncated, message).at(self.position()))
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
    use crate::source::counting::Counting;

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

    #[test]
    fn a_source_is_read_once_and_in_windows() {
        let bytes: Vec<u8> = (0..100).collect();
        let source = Counting::new(&bytes);
        let mut cursor = Cursor::over(&source).in_steps_of(8);
        assert_eq!(
            (cursor.position(), cursor.remaining(), cursor.len()),
            (0, 100, 100)
        );
        assert_eq!(source.count(), 0);
        assert_eq!(cursor.take(3, "a").unwrap(), [0, 1, 2]);
        assert_eq!(source.count(), 8);
        // across the end of a window, and longer than one
        assert_eq!(cursor.take(7, "b").unwrap(), &bytes[3..10]);
        assert_eq!(source.count(), 16);
        assert_eq!(cursor.take(30, "c").unwrap(), &bytes[10..40]);
        assert_eq!(source.count(), 40);
        assert_eq!(cursor.u8("d").unwrap(), 40);
        cursor.skip(40, "e").unwrap();
        assert_eq!(cursor.u8("f").unwrap(), 81);
        assert_eq!(source.count(), 56);
        let error = cursor.take(19, "g").unwrap_err();
        assert_eq!(error.to_string(), "g needs 19 bytes, 18 left (at byte 82)");
        assert!(cursor.skip(u64::MAX, "h").is_err());
        assert_eq!(source.count(), 56, "what is not there is not asked for");
        assert_eq!(cursor.take(18, "i").unwrap(), &bytes[82..]);
    }

    #[test]
    fn positions_count_from_where_they_are_told_to() {
        let bytes: Vec<u8> = (0..100).collect();
        let source = Counting::new(&bytes);
        let mut cursor = Cursor::behind(&source, 90);
        assert_eq!((cursor.position(), cursor.len()), (0, 10));
        assert_eq!(cursor.u8("a").unwrap(), 90);
        assert_eq!(cursor.position(), 1);
        let mut cursor = Cursor::starting_at(&source, 90);
        assert_eq!((cursor.position(), cursor.remaining()), (90, 10));
        assert_eq!(cursor.u8("a").unwrap(), 90);
        assert!(Cursor::starting_at(&source, 101).u8("a").is_err());
    }
}
