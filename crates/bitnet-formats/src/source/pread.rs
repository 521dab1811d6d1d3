//! A file that is read by range into buffers.
//!
//! Invariant: a read gives all bytes of its range or an error; the file's own position is not used, so threads may read
//! at once. No buffer is longer than the range, which lies in the file.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Bytes, Source, checked_len, too_large};
use crate::error::{ErrorCode, FormatError};
use crate::input::{Input, open_regular};
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// What kernels ask of the bytes that they read in place.
const ALIGNMENT: usize = 64;

/// A file that is read by range.
#[derive(Debug)]
pub struct Pread {
    input: Input,
    name: String,
    len: u64,
    file: File,
}

impl Pread {
    /// Opens a file.
    ///
    /// # Errors
    /// The file cannot be opened, or is not a regular file (a directory, a pipe, a device).
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let (file, metadata) = open_regular(path)?;
        Ok(Self {
            input: Input::opened(path, &metadata),
            name: path.display().to_string(),
            len: metadata.len(),
            file,
        })
    }

    /// Fills a buffer from a place of the file.
    #[cfg(unix)]
    fn fill(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, at)
    }

    /// Fills a buffer from a place of the file.
    #[cfg(windows)]
    fn fill(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        use std::os::windows::fs::FileExt;
        let (mut buffer, mut at) = (buffer, at);
        while !buffer.is_empty() {
            let count = self.file.seek_read(buffer, at)?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            buffer = buffer.get_mut(count..).unwrap_or_default();
            at = at.saturating_add(count as u64);
        }
        Ok(())
    }
}

impl Source for Pread {
    fn len(&self) -> u64 {
        self.len
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> &Path {
        self.input.path()
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes, FormatError> {
        let start = range.start;
        let len = checked_len(self, &range)?;
        let refuse = || too_large(len as u64).in_file(self.path());
        let mut buffer = Vec::new();
        let capacity = len.checked_add(ALIGNMENT).ok_or_else(refuse)?;
        buffer.try_reserve_exact(capacity).map_err(|_| refuse())?;
        buffer.resize(capacity, 0);
        // a buffer stays where it is when its owner moves
        let first = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let wanted = first..first.saturating_add(len);
        let to = buffer.get_mut(wanted.clone()).unwrap_or_default();
        match self.fill(to, start) {
            Ok(()) => Ok(Bytes::new(Arc::new(buffer))
                .slice(wanted)
                .unwrap_or_default()),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                self.check()?;
                let message = format!("needs {len} bytes at {start}, the file ends before");
                Err(FormatError::new(ErrorCode::InputChanged, message).in_file(self.path()))
            }
            Err(e) => Err(FormatError::io(self.path(), &e)),
        }
    }

    fn check(&self) -> Result<(), FormatError> {
        self.input.check()
    }

    fn intact(&self) -> Result<(), FormatError> {
        self.input.check_content()
    }
}
