//! Objects that are checked, and that get other names in the same pass.
//!
//! Invariant: an object has its new name only if all bytes that were read of it have the expected hash, and all of the
//! objects of one call do.

use super::read_back::{AT_ONCE, ATTEMPTS, digest, part_size, pieces};
use super::store::{Store, said};
use super::upload::{self, Content, Waiting};
use crate::Watch;
use bitnet_formats::{ErrorCode, FormatError, file_digest, hex};
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;
use object_store::PutPayload;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::pin::pin;

/// An object, its new name, and what its content should be.
pub(crate) struct Move {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// Sends an object to its new name. Whether its content is what it should be.
async fn send(
    store: &Store,
    one: &Move,
    waiting: &mut Waiting,
    watch: &dyn Watch,
) -> Result<bool, FormatError> {
    let size = part_size(one.bytes);
    let Some(pieces) = pieces(store, &one.from, size).await? else {
        return Ok(false);
    };
    let name = store.name_of(&one.to);
    let (mut pieces, mut hash, mut bytes) = (pin!(pieces), Sha256::new(), 0u64);
    let mut flying = FuturesUnordered::new();
    while let Some(piece) = pieces.try_next().await? {
        watch.check()?;
        hash.update(&piece);
        let len = piece.len() as u64;
        bytes += len;
        if bytes > one.bytes {
            return Ok(false);
        }
        let sent = waiting
            .upload
            .put_part(PutPayload::from(Bytes::from(piece)));
        flying.push(async move { sent.await.map(|()| len) });
        while flying.len() >= AT_ONCE {
            if let Some(len) = flying.try_next().await.map_err(|e| said(&e, &name))? {
                watch.advance(len);
            }
        }
    }
    while let Some(len) = flying.try_next().await.map_err(|e| said(&e, &name))? {
        watch.advance(len);
    }
    Ok(bytes == one.bytes && hex(&hash.finalize()) == one.sha256)
}

/// All objects, as uploads that wait for their end; or the places of those that are not what they should be.
async fn send_all(
    store: &Store,
    moves: &[Move],
    waiting: &mut Vec<Waiting>,
    watch: &dyn Watch,
) -> Result<Vec<usize>, FormatError> {
    let mut damaged = Vec::new();
    for (place, one) in moves.iter().enumerate() {
        if !damaged.is_empty() {
            // nothing will be visible: only the names of all damaged objects are of use
            let found = digest(store, &one.from, watch).await?;
            if found.is_none_or(|found| found != (one.bytes, one.sha256.clone())) {
                damaged.push(place);
            }
            continue;
        }
        let mut attempts = 0;
        loop {
            attempts += 1;
            let content = Content::Hashed(one.bytes, one.sha256.clone());
            let mut next = upload::begin(store, &one.to, &[], content).await?;
            let sent = send(store, one, &mut next, watch).await;
            if let Ok(true) = sent {
                waiting.push(next);
                break;
            }
            let _ = next.upload.abort().await;
            match sent {
                Err(e) if e.code == ErrorCode::InputChanged && attempts < ATTEMPTS => {}
                Err(e) => return Err(e),
                Ok(_) => {
                    damaged.push(place);
                    break;
                }
            }
        }
    }
    Ok(damaged)
}

/// Which of the moves, and which of the files behind them, are at their final names already: an earlier call ended before
/// all of them were visible.
///
/// # Errors
/// `exists` for an object with another content; what the store refuses.
pub(crate) async fn already_there(
    store: &Store,
    moves: &[Move],
    files: &[(String, PathBuf)],
    watch: &dyn Watch,
) -> Result<Vec<bool>, FormatError> {
    let mut found = Vec::new();
    for one in moves {
        let expected = (one.bytes, one.sha256.clone());
        found.push(has_content(store, &one.to, expected, watch).await?);
    }
    for (key, path) in files {
        let file = file_digest(path)?;
        found.push(has_content(store, key, (file.bytes, file.sha256), watch).await?);
    }
    Ok(found)
}

/// Whether there is an object of a name; `exists` if it has another length or SHA-256.
async fn has_content(
    store: &Store,
    key: &str,
    expected: (u64, String),
    watch: &dyn Watch,
) -> Result<bool, FormatError> {
    let Some(object) = store.object(key).await? else {
        return Ok(false);
    };
    if object.len == expected.0 && digest(store, key, watch).await? == Some(expected) {
        return Ok(true);
    }
    upload::refuse_existing(store, &[key.to_owned()]).await?;
    Ok(false)
}

/// Gives objects their new names and uploads files: the objects become visible in reverse order, then the files.
/// The places of objects that are not what they should be; nothing is visible then.
pub(crate) async fn publish(
    store: &Store,
    moves: &[Move],
    files: &[(String, PathBuf)],
    replace: bool,
    watch: &dyn Watch,
) -> Result<Vec<usize>, FormatError> {
    let on_disk = upload::total(files);
    watch.begin(
        "upload",
        moves.iter().map(|m| m.bytes).sum::<u64>() + on_disk,
    );
    let mut waiting = Vec::new();
    let mut done = send_all(store, moves, &mut waiting, watch).await;
    if let Ok(damaged) = &done
        && damaged.is_empty()
    {
        waiting.reverse();
        let sent = upload::send_files(store, files, &[], &mut waiting, watch).await;
        done = sent.map(|()| Vec::new());
    }
    watch.end();
    if let Ok(damaged) = &done
        && damaged.is_empty()
    {
        let keys: Vec<String> = waiting.iter().map(|one| one.key.clone()).collect();
        let free = match replace {
            true => Ok(()),
            // the work took its time
            false => upload::refuse_existing(store, &keys).await,
        };
        match free {
            Ok(()) => {
                return upload::complete_all(store, waiting)
                    .await
                    .map(|()| Vec::new());
            }
            Err(e) => done = Err(e),
        }
    }
    upload::abort_all(waiting).await;
    done
}
