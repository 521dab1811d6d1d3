//! Bytes in memory as a source.
//!
//! Invariant: its bytes never change.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Bytes, Source, checked_range};
use crate::error::FormatError;
use std::fmt;
use std::ops::Range;

/// A source in memory.
#[derive(Clone)]
pub struct Memory {
    name: String,
    bytes: Bytes,
}

impl Memory {
    /// Bytes under a name for errors.
    pub fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            bytes: bytes.into(),
        }
    }
}

impl Source for Memory {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes, FormatError> {
        let range = checked_range(self, &range)?;
        Ok(self.bytes.slice(range).unwrap_or_default())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("name", &self.name)
            .field("len", &self.len())
            .finish()
    }
}
