//! A file mapped read-only: the only `unsafe` of this crate.
//!
//! Invariant: inputs are opened for reading only, and [`Mapped::bytes`] is as long as the file was
//! when it was opened. What we assume of the file is stated at the one `unsafe` block.

#![allow(unsafe_code)]

use crate::error::{ErrorCode, FormatError};
use crate::input::{Input, open_regular};
use memmap2::{Mmap, MmapOptions};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A read-only mapping of a whole file; clones share it, and the last one ends it.
#[derive(Clone)]
pub struct Mapped {
    input: Input,
    // None for an empty file: the kernel refuses mappings of length 0
    map: Option<Arc<Mmap>>,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Mapped {
    /// Maps a file.
    ///
    /// # Errors
    /// The file cannot be opened, or is not a regular file (a directory, a pipe, a device).
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let failed = |e: std::io::Error| FormatError::io(path, &e);
        let (file, metadata) = open_regular(path)?;
        let len = metadata.len();
        let map = if len == 0 {
            None
        } else {
            let len = usize::try_from(len).map_err(|_| {
                let message = format!("{len} bytes are more than this machine can address");
                FormatError::new(ErrorCode::LimitExceeded, message).in_file(path)
            })?;
            // SAFETY: the map is read-only and private to this process, `len` is the length the
            // file has now, and `bytes` only lends `&[u8]` for as long as the map lives. What the
            // type system cannot see is another process: we assume that nobody truncates the file
            // while it is mapped (reading past the new end would raise SIGBUS) or overwrites it in
            // place (bytes could change between two reads; `check` finds that out afterwards).
            // Programs that replace files by rename, as this crate does, leave the mapped file alone.
            let map = unsafe { MmapOptions::new().len(len).map(&file) }.map_err(failed)?;
            Some(Arc::new(map))
        };
        Ok(Self {
            input: Input::opened(path, &metadata),
            map,
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        self.input.path()
    }

    /// Whether the file is still the one that was opened, with the content that it had.
    ///
    /// # Errors
    /// `input-changed`.
    pub fn check(&self) -> Result<(), FormatError> {
        self.input.check()
    }

    /// The file as it was when it was opened.
    pub(crate) fn input(&self) -> &Input {
        &self.input
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().map_or(&[], |map| map)
    }

    /// Tells the kernel that the file will be read from start to end. Best effort.
    pub fn advise_sequential(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            let _ = map.advise(memmap2::Advice::Sequential);
        }
    }

    /// Tells the kernel that these bytes will not be read again soon, so that their pages stop
    /// counting as this process's memory. They stay readable. Best effort.
    pub fn release(&self, range: Range<u64>) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            let len = map.len() as u64;
            let (start, end) = (range.start.min(len), range.end.min(len));
            if start < end {
                let (start, count) = (start as usize, (end - start) as usize);
                // SAFETY: the map is of a file and never written, so a page that is dropped is read
                // from the file again when it is touched: no byte of `bytes` changes.
                let _ = unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, count)
                };
            }
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// Tells the kernel that these bytes will be read over and over: what it has to fetch from the disk for
    /// them comes in huge pages, which stay in its cache. Best effort.
    pub fn prefer_huge_pages(&self, range: Range<u64>) {
        #[cfg(target_os = "linux")]
        self.advise_range(memmap2::Advice::HugePage, range);
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }

    /// Asks the kernel to start reading these bytes now. Best effort; out-of-range parts are
    /// ignored.
    pub fn will_need(&self, range: Range<u64>) {
        #[cfg(unix)]
        self.advise_range(memmap2::Advice::WillNeed, range);
        #[cfg(not(unix))]
        let _ = range;
    }

    #[cfg(unix)]
    fn advise_range(&self, advice: memmap2::Advice, range: Range<u64>) {
        if let Some(map) = &self.map {
            let len = map.len() as u64;
            let (start, end) = (range.start.min(len), range.end.min(len));
            if start < end {
                let _ = map.advise_range(advice, start as usize, (end - start) as usize);
            }
        }
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped")
            .field("path", &self.path())
            .field("len", &self.bytes().len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_files_of_any_length_and_advice_never_fails() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, 1, 4095, 4096, 4097, 100_000] {
            let path = dir.path().join(format!("{len}"));
            let bytes: Vec<u8> = (0..len).map(|i: usize| i as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            let mapped = Mapped::open(&path).unwrap();
            assert_eq!(mapped.bytes(), bytes);
            assert_eq!(mapped.path(), path);
            mapped.advise_sequential();
            mapped.prefer_huge_pages(0..u64::MAX);
            mapped.will_need(0..1);
            mapped.release(0..u64::MAX);
            assert_eq!(mapped.bytes(), bytes);
            mapped.will_need(3..u64::MAX);
            mapped.will_need(u64::MAX - 1..u64::MAX);
        }
    }

    #[test]
    fn only_regular_files() {
        let dir = tempfile::tempdir().unwrap();
        let error = Mapped::open(dir.path()).unwrap_err();
        assert_eq!(error.code, ErrorCode::Io);
        assert!(
            error
                .to_string()
                .ends_with("expected a regular file, found a directory")
        );
        assert_eq!(
            Mapped::open(&dir.path().join("absent")).unwrap_err().code,
            ErrorCode::Io
        );
    }
}
