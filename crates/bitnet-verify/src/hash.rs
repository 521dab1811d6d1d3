//! SHA-256 of a range of a file, for reports.
//!
//! Invariant: a run that is stopped ends within a few megabytes.

use bitnet_cli::Progress;
use bitnet_formats::{ErrorCode, FormatError, Sha256Stream, Source};
use std::ops::Range;

/// Bytes between two looks at whether the run is stopped.
const STEP: u64 = 8 << 20;

/// The hash, in lower-case hexadecimal.
///
/// # Errors
/// The run is stopped; the range cannot be read.
pub(crate) fn sha256(
    source: &dyn Source,
    range: Range<u64>,
    progress: &Progress,
) -> Result<String, FormatError> {
    let mut stream = Sha256Stream::new();
    let mut at = range.start;
    while at < range.end {
        progress.check()?;
        let to = at.saturating_add(STEP).min(range.end);
        stream.update(&source.read(at..to)?);
        source.release(at..to);
        at = to;
    }
    let failed = |e| FormatError::new(ErrorCode::Io, format!("cannot hash: {e}")).because(e);
    stream.finish().map_err(failed)
}
