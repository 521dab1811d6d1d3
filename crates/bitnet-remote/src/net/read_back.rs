//! The content of objects, read in order.
//!
//! Invariant: a digest is of one version of an object: one that is replaced while it is read is read again.

use super::chunks::Ranges;
use super::store::Store;
use crate::Watch;
use bitnet_formats::{ErrorCode, FormatError, hex};
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use std::pin::pin;
use std::sync::Arc;

/// The least bytes of a part: stores refuse less than 5 MiB.
const PART: u64 = 8 << 20;
/// The most parts of an object.
const MOST_PARTS: u64 = 9_000;
/// Parts on their way at a time.
pub(crate) const AT_ONCE: usize = 4;
/// How often an object is read again that was replaced meanwhile.
pub(crate) const ATTEMPTS: usize = 3;

/// The bytes of one part of an object of a length.
pub(crate) fn part_size(len: u64) -> u64 {
    PART.max(len.div_ceil(MOST_PARTS))
}

/// The content of an object, in order, in pieces of a size.
pub(crate) async fn pieces(
    store: &Store,
    key: &str,
    size: u64,
) -> Result<Option<impl Stream<Item = Result<Vec<u8>, FormatError>> + use<>>, FormatError> {
    let Some(object) = store.object(key).await? else {
        return Ok(None);
    };
    let file = Arc::new(store.file(key, &object));
    let ranges = (0..object.len.div_ceil(size.max(1)))
        .map(move |n| n * size..object.len.min((n + 1).saturating_mul(size)));
    let fetched = stream::iter(ranges).map(move |range| Arc::clone(&file).fetch(range));
    Ok(Some(fetched.buffered(AT_ONCE)))
}

/// Length and SHA-256 of an object, if it is there. One that is replaced while it is read is read again: another runner of
/// the same job may end at any time.
pub(crate) async fn digest(
    store: &Store,
    key: &str,
    watch: &dyn Watch,
) -> Result<Option<(u64, String)>, FormatError> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match digest_once(store, key, watch).await {
            Err(e) if e.code == ErrorCode::InputChanged && attempts < ATTEMPTS => {}
            done => return done,
        }
    }
}

async fn digest_once(
    store: &Store,
    key: &str,
    watch: &dyn Watch,
) -> Result<Option<(u64, String)>, FormatError> {
    let Some(pieces) = pieces(store, key, part_size(0)).await? else {
        return Ok(None);
    };
    let (mut pieces, mut hash, mut bytes) = (pin!(pieces), Sha256::new(), 0u64);
    while let Some(piece) = pieces.try_next().await? {
        watch.check()?;
        hash.update(&piece);
        bytes += piece.len() as u64;
        watch.advance(piece.len() as u64);
    }
    Ok(Some((bytes, hex(&hash.finalize()))))
}
