//! Outputs in object stores.
//!
//! Invariant: no object of an output is visible before all bytes of all of its files are in the store; what fails leaves
//! no new object visible, and its parts are aborted. An upload whose end was answered with an error counts by what the
//! store has then.

use super::client::{Failed, Patience};
use super::read_back::{AT_ONCE, digest, part_size};
use super::store::{Store, attributes, is_passing, no_credentials, said};
use crate::{NoWatch, Watch};
use bitnet_formats::{ErrorCode, FormatError, file_digest, open_regular};
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStoreExt, PutMultipartOptions, PutPayload};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A file whose parts are in the store.
pub(crate) struct Waiting {
    pub(crate) key: String,
    pub(crate) upload: Box<dyn MultipartUpload>,
    content: Content,
    notes: Vec<(String, String)>,
}

/// What an upload brings.
pub(crate) enum Content {
    /// The bytes of a file of this disk.
    File(PathBuf),
    /// So many bytes with this SHA-256.
    Hashed(u64, String),
}

impl Content {
    /// Length and SHA-256.
    fn digest(&self) -> Result<(u64, String), FormatError> {
        match self {
            Self::File(path) => file_digest(path).map(|found| (found.bytes, found.sha256)),
            Self::Hashed(bytes, sha256) => Ok((*bytes, sha256.clone())),
        }
    }
}

/// Refuses to replace objects.
pub(crate) async fn refuse_existing(store: &Store, keys: &[String]) -> Result<(), FormatError> {
    for key in keys {
        if store.object(key).await?.is_some() {
            return Err(FormatError::new(ErrorCode::Exists, "the output exists")
                .in_file(Path::new(&store.name_of(key)))
                .hint("--force replaces it"));
        }
    }
    Ok(())
}

/// The bytes of all files.
pub(crate) fn total(files: &[(String, PathBuf)]) -> u64 {
    let lens = files.iter().filter_map(|(_, path)| path.metadata().ok());
    lens.map(|m| m.len()).sum()
}

/// Uploads files and makes them visible, the last one last. `notes` are kept with them, where the store keeps notes.
pub(crate) async fn upload(
    store: &Store,
    files: &[(String, PathBuf)],
    notes: &[(&str, &str)],
    watch: &dyn Watch,
) -> Result<(), FormatError> {
    watch.begin("upload", total(files));
    let mut waiting = Vec::new();
    let sent = send_files(store, files, notes, &mut waiting, watch).await;
    watch.end();
    match sent {
        Ok(()) => complete_all(store, waiting).await,
        Err(error) => {
            abort_all(waiting).await;
            Err(error)
        }
    }
}

/// Sends all bytes of files, as uploads that wait for their end.
pub(crate) async fn send_files(
    store: &Store,
    files: &[(String, PathBuf)],
    notes: &[(&str, &str)],
    waiting: &mut Vec<Waiting>,
    watch: &dyn Watch,
) -> Result<(), FormatError> {
    for (key, path) in files {
        let mut next = begin(store, key, notes, Content::File(path.clone())).await?;
        let sent = send(&mut next, path, &store.name_of(key), watch).await;
        waiting.push(next);
        sent?;
    }
    Ok(())
}

/// Begins an upload.
pub(crate) async fn begin(
    store: &Store,
    key: &str,
    notes: &[(&str, &str)],
    content: Content,
) -> Result<Waiting, FormatError> {
    let options = PutMultipartOptions {
        attributes: attributes(notes),
        ..PutMultipartOptions::default()
    };
    let (place, name) = (Key::from(key), store.name_of(key));
    let mut patience = Patience::new(name.as_str());
    loop {
        let begun = store.inner().put_multipart_opts(&place, options.clone());
        match begun.await {
            Ok(upload) => {
                let notes = notes.iter();
                return Ok(Waiting {
                    key: key.to_owned(),
                    upload,
                    content,
                    notes: notes
                        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
                        .collect(),
                });
            }
            // an upload that was begun without an answer is no object
            Err(e) if is_passing(&e) => patience.wait(Failed::new("the store fails")).await?,
            Err(e) => return Err(said(&e, &name)),
        }
    }
}

/// Makes uploads visible in their order. If one cannot be, the others are aborted, and those that are visible already are
/// removed again unless they replaced something.
pub(crate) async fn complete_all(store: &Store, waiting: Vec<Waiting>) -> Result<(), FormatError> {
    let mut waiting = waiting.into_iter();
    let mut new = Vec::new();
    let mut done = Ok(());
    for mut one in waiting.by_ref() {
        let was_there = store.object(&one.key).await;
        let completed = match was_there {
            Ok(found) => complete(store, &mut one, found.is_some())
                .await
                .map(|()| found.is_some()),
            Err(e) => {
                let _ = one.upload.abort().await;
                Err(e)
            }
        };
        match completed {
            Ok(true) => {}
            Ok(false) => new.push(one.key),
            Err(e) => {
                done = Err(e);
                break;
            }
        }
    }
    abort_all(waiting).await;
    if done.is_err() {
        for key in new.into_iter().rev() {
            let _ = store.remove(&key).await;
        }
    }
    done
}

/// Gives uploads up.
pub(crate) async fn abort_all(waiting: impl IntoIterator<Item = Waiting>) {
    for mut left in waiting {
        // the store removes what cannot be aborted by its own rules
        let _ = left.upload.abort().await;
    }
}

/// Ends an upload. `replaces`: whether an object was at its key before.
async fn complete(store: &Store, waiting: &mut Waiting, replaces: bool) -> Result<(), FormatError> {
    let Err(e) = waiting.upload.complete().await else {
        return Ok(());
    };
    // an upload that has taken effect cannot be aborted; after this, one that has not cannot take effect any more
    let _ = waiting.upload.abort().await;
    match took_effect(store, waiting).await {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        // what cannot be looked at may be there
        Err(_) if !replaces => {
            let _ = store.remove(&waiting.key).await;
        }
        Err(_) => {}
    }
    Err(said(&e, &store.name_of(&waiting.key)))
}

/// Whether the store has the object with the bytes and the notes of an upload, whose end was answered with an error. The
/// object is read: others may have written one of the same length.
async fn took_effect(store: &Store, waiting: &Waiting) -> Result<bool, FormatError> {
    let Some(found) = store.look(&waiting.key).await? else {
        return Ok(false);
    };
    let expected = waiting.content.digest()?;
    // not every store keeps notes
    let has_notes = |(name, value): &(String, String)| found.note(name).is_none_or(|v| v == value);
    if found.bytes != expected.0 || !waiting.notes.iter().all(has_notes) {
        return Ok(false);
    }
    Ok(digest(store, &waiting.key, &NoWatch).await? == Some(expected))
}

async fn send(
    waiting: &mut Waiting,
    path: &Path,
    name: &str,
    watch: &dyn Watch,
) -> Result<(), FormatError> {
    let failed = |e: std::io::Error| FormatError::io(path, &e);
    let (mut file, metadata) = open_regular(path)?;
    let size = part_size(metadata.len());
    let mut flying = FuturesUnordered::new();
    let mut left = metadata.len();
    loop {
        watch.check()?;
        let mut part = vec![0; left.min(size) as usize];
        file.read_exact(&mut part).map_err(failed)?;
        left -= part.len() as u64;
        let len = part.len() as u64;
        let sent = waiting.upload.put_part(PutPayload::from(Bytes::from(part)));
        flying.push(async move { sent.await.map(|()| len) });
        while flying.len() >= AT_ONCE || left == 0 && !flying.is_empty() {
            match flying.try_next().await {
                Ok(Some(len)) => watch.advance(len),
                Ok(None) => break,
                // the library tries again by itself
                Err(e) => return Err(said(&e, name)),
            }
        }
        if left == 0 {
            return Ok(());
        }
    }
}

/// Whether the store can be written to at all, before hours of work.
pub(crate) async fn check(store: &Store, key: &str) -> Result<(), FormatError> {
    let name = store.name_of(key);
    let mut patience = Patience::new(name.as_str());
    loop {
        match store.inner().put_multipart(&Key::from(key)).await {
            Ok(mut upload) => {
                let _ = upload.abort().await;
                return Ok(());
            }
            Err(object_store::Error::Generic { .. }) if store.lacks_credentials() => {
                return Err(no_credentials(&name));
            }
            Err(object_store::Error::Generic { .. }) => {
                patience.wait(Failed::new("the store fails")).await?
            }
            Err(e) => return Err(said(&e, &name)),
        }
    }
}
