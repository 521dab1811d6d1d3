//! The archive: entries in the order of their names, without times, stored as they are.
//!
//! Invariant: the same entries make the same bytes. No more than [`MOST`] bytes of entries are ever held.

use bitnet_formats::{ErrorCode, FormatError};
use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Bytes of all entries: what GitHub takes as an attachment is 25 MB.
pub(super) const MOST: usize = 16 << 20;

/// Bytes of [`MOST`] that are kept for [`LIST`].
const RESERVED: usize = 1 << 20;
/// The entry that lists the others.
pub(super) const LIST: &str = "bundle.json";

/// Entries by their names.
#[derive(Default)]
pub(super) struct Entries {
    all: BTreeMap<String, Vec<u8>>,
    bytes: usize,
}

impl Entries {
    /// Adds an entry; a name that is there, and what would pass the bound, are refused.
    pub(super) fn add(&mut self, name: impl Into<String>, bytes: Vec<u8>) -> bool {
        let name = name.into();
        let total = self.bytes.saturating_add(bytes.len());
        // the list of what is in the archive comes last, and always has room
        let most = match name == LIST {
            true => MOST,
            false => MOST - RESERVED,
        };
        if total > most || self.all.contains_key(&name) {
            return false;
        }
        self.bytes = total;
        self.all.insert(name, bytes);
        true
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.all.keys().cloned().collect()
    }

    pub(super) fn into_zip(self) -> Result<Vec<u8>, FormatError> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .unix_permissions(0o644);
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let failed = |e: std::io::Error| {
            FormatError::new(ErrorCode::Io, format!("cannot make the archive: {e}"))
        };
        for (name, bytes) in &self.all {
            zip.start_file(name.as_str(), options)
                .map_err(|e| failed(e.into()))?;
            zip.write_all(bytes).map_err(failed)?;
        }
        let done = zip.finish().map_err(|e| failed(e.into()))?;
        Ok(done.into_inner())
    }
}
