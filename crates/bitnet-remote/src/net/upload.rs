//! Outputs in object stores.
//!
//! Invariant: no object of an output is visible before all bytes of all of its files are in the store; what fails before
//! that leaves nothing visible, and its parts are aborted.

use super::client::{Failed, Patience};
use super::store::{Store, said};
use crate::Watch;
use bitnet_formats::{ErrorCode, FormatError, open_regular};
use bytes::Bytes;
use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The least bytes of a part: stores refuse less than 5 MiB.
const PART: u64 = 8 << 20;
/// The most parts of an object.
const MOST_PARTS: u64 = 9_000;
/// Parts on their way at a time.
const AT_ONCE: usize = 4;

/// A file whose parts are in the store.
struct Waiting {
    key: String,
    upload: Box<dyn MultipartUpload>,
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

/// Uploads files and makes them visible, the last one last.
pub(crate) async fn upload(
    store: &Store,
    files: &[(String, PathBuf)],
    watch: &dyn Watch,
) -> Result<(), FormatError> {
    let total = files
        .iter()
        .filter_map(|(_, path)| path.metadata().ok())
        .map(|m| m.len())
        .sum();
    watch.begin("upload", total);
    let mut waiting = Vec::new();
    let mut done = Ok(());
    for (key, path) in files {
        match parts(store, key, path, watch).await {
            Ok(upload) => waiting.push(upload),
            Err((error, upload)) => {
                waiting.extend(upload);
                done = Err(error);
                break;
            }
        }
    }
    watch.end();
    let mut waiting = waiting.into_iter();
    if done.is_ok() {
        for mut one in waiting.by_ref() {
            if let Err(error) = complete(store, &mut one).await {
                done = Err(error);
                break;
            }
        }
    }
    for mut left in waiting {
        // the store removes what cannot be aborted by its own rules
        let _ = left.upload.abort().await;
    }
    done
}

async fn complete(store: &Store, waiting: &mut Waiting) -> Result<(), FormatError> {
    let name = store.name_of(&waiting.key);
    match waiting.upload.complete().await {
        Ok(_) => Ok(()),
        Err(e) => {
            let _ = waiting.upload.abort().await;
            Err(said(&e, &name))
        }
    }
}

async fn parts(
    store: &Store,
    key: &str,
    path: &Path,
    watch: &dyn Watch,
) -> Result<Waiting, (FormatError, Option<Waiting>)> {
    let name = store.name_of(key);
    let begun = store.inner().put_multipart(&Key::from(key)).await;
    let upload = begun.map_err(|e| (said(&e, &name), None))?;
    let mut waiting = Waiting {
        key: key.to_owned(),
        upload,
    };
    match send(&mut waiting, path, &name, watch).await {
        Ok(()) => Ok(waiting),
        Err(error) => Err((error, Some(waiting))),
    }
}

async fn send(
    waiting: &mut Waiting,
    path: &Path,
    name: &str,
    watch: &dyn Watch,
) -> Result<(), FormatError> {
    let failed = |e: std::io::Error| FormatError::io(path, &e);
    let (mut file, metadata) = open_regular(path)?;
    let size = PART.max(metadata.len().div_ceil(MOST_PARTS));
    let mut flying = FuturesUnordered::new();
    let mut left = metadata.len();
    loop {
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
            Err(object_store::Error::Generic { .. }) => {
                patience.wait(Failed::new("the store fails")).await?
            }
            Err(e) => return Err(said(&e, &name)),
        }
    }
}
