//! A file mapped read-only. This module and [`bus_error`] are the only `unsafe` of this crate.
//!
//! Invariant: inputs are opened for reading only, and a view is as long as the file was when it was opened. If the file
//! shrinks, the bytes that are gone read as zeros and the mapping is lost: every later check says so. What we assume
//! of the file is stated at the `unsafe` block that maps it.

#![allow(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod bus_error;

use self::bus_error::Watch;
use super::{Bytes, Source, checked_range, in_memory, too_large};
use crate::error::{ErrorCode, FormatError};
use crate::input::{Input, open_regular};
use memmap2::{Mmap, MmapOptions};
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The pages of a file. The watch comes first, so that it ends before they are unmapped.
struct Mapping {
    watch: Watch,
    map: Mmap,
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// A read-only mapping of a whole file.
pub(super) struct Mapped {
    input: Input,
    name: String,
    // None for an empty file: the kernel refuses mappings of length 0
    mapping: Option<Arc<Mapping>>,
    bytes: Bytes,
}

impl Mapped {
    /// Whether reading a mapped file that shrinks is no signal here.
    pub(super) fn is_safe() -> bool {
        bus_error::install()
    }

    /// Maps a file of at most `most` bytes.
    ///
    /// # Errors
    /// The file cannot be opened, or is not a regular file (a directory, a pipe, a device); `limit-exceeded` for a longer
    /// file, and if this process has no addresses left.
    pub(super) fn open(path: &Path, most: u64) -> Result<Self, FormatError> {
        let (file, metadata) = open_regular(path)?;
        let len = metadata.len();
        let mapping = if len == 0 {
            None
        } else {
            let len = in_memory(len, most).map_err(|e| e.in_file(path))?;
            let failed = |e: std::io::Error| match e.kind() {
                std::io::ErrorKind::OutOfMemory => too_large(len as u64).in_file(path).because(e),
                _ => FormatError::io(path, &e),
            };
            bus_error::install();
            // SAFETY: the map is read-only and private to this process, `len` is the length the
            // file has now, and views only lend `&[u8]` for as long as the map lives. What the
            // type system cannot see is another process. It may truncate the file while it is mapped:
            // reading past the new end raises SIGBUS, which `bus_error` turns into zeros and a note
            // that the mapping is lost. It may overwrite the file in place: bytes could change between
            // two reads, which `check` finds out afterwards. Programs that replace files by rename,
            // as this crate does, leave the mapped file alone.
            let map = unsafe { MmapOptions::new().len(len).map(&file) }.map_err(failed)?;
            let start = map.as_ptr().addr();
            let watch = Watch::over(start..start.saturating_add(len));
            Some(Arc::new(Mapping { watch, map }))
        };
        let bytes = mapping.clone().map(|mapping| Bytes::new(mapping));
        Ok(Self {
            input: Input::opened(path, &metadata),
            name: path.display().to_string(),
            mapping,
            bytes: bytes.unwrap_or_default(),
        })
    }

    /// Whether pages were there all the times that they were read.
    fn check_pages(&self) -> Result<(), FormatError> {
        match &self.mapping {
            Some(mapping) if mapping.watch.is_lost() => {
                // says more about what changed, if it still is
                self.input.check_content()?;
                let message = "the input changed while it was read: expected the bytes that it had, found that some could not be read";
                Err(FormatError::new(ErrorCode::InputChanged, message)
                    .in_file(self.path())
                    .hint(
                        "wait until no other program writes the file, then run the command again",
                    ))
            }
            _ => Ok(()),
        }
    }

    /// The part of a range that lies inside the mapping.
    #[cfg(unix)]
    fn clipped(&self, range: Range<u64>) -> Option<(&Mmap, usize, usize)> {
        let map = &self.mapping.as_ref()?.map;
        let len = map.len() as u64;
        let (start, end) = (range.start.min(len), range.end.min(len));
        let count = end.checked_sub(start).filter(|count| *count > 0)?;
        // both at most the length of the map
        Some((map, start as usize, count as usize))
    }
}

impl Source for Mapped {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn path(&self) -> &Path {
        self.input.path()
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes, FormatError> {
        let range = checked_range(self, &range)?;
        self.check_pages()?;
        Ok(self.bytes.slice(range).unwrap_or_default())
    }

    fn check(&self) -> Result<(), FormatError> {
        self.input.check()?;
        self.check_pages()
    }

    fn intact(&self) -> Result<(), FormatError> {
        self.check_pages()?;
        self.input.check_content()
    }

    fn will_need(&self, range: Range<u64>) {
        #[cfg(unix)]
        if let Some((map, start, count)) = self.clipped(range) {
            let _ = map.advise_range(memmap2::Advice::WillNeed, start, count);
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    fn release(&self, range: Range<u64>) {
        #[cfg(unix)]
        if let Some((map, start, count)) = self.clipped(range) {
            // SAFETY: the map is of a file and never written, so a page that is dropped is read
            // from the file again when it is touched (or is zeros again, where the file was lost):
            // no byte of a view changes.
            let _ = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, count)
            };
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// What the kernel has to fetch from the disk for these bytes comes in huge pages, which stay in its cache.
    fn prefer_huge_pages(&self, range: Range<u64>) {
        #[cfg(target_os = "linux")]
        if let Some((map, start, count)) = self.clipped(range) {
            let _ = map.advise_range(memmap2::Advice::HugePage, start, count);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped")
            .field("path", &self.path())
            .field("len", &self.len())
            .finish()
    }
}
