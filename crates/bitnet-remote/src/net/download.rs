//! Files of a commit into the cache: in parallel, resumed, checked.
//!
//! Invariant: a blob gets its name when its size, and its SHA-256 where the Hub says one, are right. Ranges are fetched
//! in parallel and written in order, so an interrupted file can always be continued at its end.

use super::cache::{Cache, free_bytes};
use super::file::{Ended, RemoteFile};
use super::hub::{FileFacts, Hub};
use crate::Watch;
use bitnet_formats::{ErrorCode, FormatError, hex};
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes of one range.
const RANGE: u64 = 8 << 20;
/// Ranges of one file at a time.
const AT_ONCE: usize = 6;
/// Files at a time: the small ones hide each other's latency.
const FILES_AT_ONCE: usize = 4;
/// What is left free on the disk.
const SPARE: u64 = 16 << 20;

/// A file to fetch.
struct Wanted {
    name: String,
    facts: FileFacts,
}

/// Makes files of a commit be in the cache. All of them are there afterwards, or an error.
pub(crate) async fn fetch(
    hub: &Hub,
    cache: &Cache,
    commit: &str,
    names: &[String],
    watch: &dyn Watch,
) -> Result<(), FormatError> {
    let missing: Vec<&String> = names
        .iter()
        .filter(|name| cache.file(commit, name).is_none())
        .collect();
    let asked = missing.into_iter().map(|name| async move {
        let facts = hub.facts(commit, name).await?;
        Ok::<_, FormatError>(Wanted {
            name: name.clone(),
            facts,
        })
    });
    let wanted: Vec<Wanted> = stream::iter(asked).buffered(8).try_collect().await?;
    let have = |wanted: &Wanted| {
        let blob = cache.blob(&wanted.facts.etag);
        let len = |path: &Path| {
            fs::metadata(path)
                .ok()
                .filter(fs::Metadata::is_file)
                .map(|m| m.len())
        };
        match len(&blob) {
            Some(len) if len == wanted.facts.len => wanted.facts.len,
            _ => len(&incomplete(&blob)).unwrap_or(0).min(wanted.facts.len),
        }
    };
    let lengths = wanted.iter().map(|w| w.facts.len);
    let total = lengths.fold(0, u64::saturating_add);
    let there = wanted.iter().map(have).fold(0, u64::saturating_add);
    check_space(cache, total.saturating_sub(there))?;
    if total > there {
        watch.begin(&hub.repository.to_string(), total);
        watch.advance(there);
    }
    let fetched = wanted
        .iter()
        .map(|wanted| one(hub, cache, commit, wanted, watch));
    let fetched = stream::iter(fetched)
        .buffered(FILES_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await;
    watch.end();
    fetched.map(|_| ())
}

fn check_space(cache: &Cache, needed: u64) -> Result<(), FormatError> {
    match free_bytes(cache.root()) {
        Some(free) if needed > 0 && free < needed.saturating_add(SPARE) => {
            let message =
                format!("expected room for {needed} bytes to download, found {free} bytes free");
            Err(FormatError::new(ErrorCode::NoSpace, message)
                .in_file(cache.root())
                .hint("free space, set HF_HUB_CACHE to a directory of another disk, or pass --stream (convert, verify) to store nothing"))
        }
        _ => Ok(()),
    }
}

/// Where the beginning of a blob is kept.
fn incomplete(blob: &Path) -> PathBuf {
    let mut name = blob.file_name().unwrap_or_default().to_owned();
    name.push(".incomplete");
    blob.with_file_name(name)
}

async fn one(
    hub: &Hub,
    cache: &Cache,
    commit: &str,
    wanted: &Wanted,
    watch: &dyn Watch,
) -> Result<(), FormatError> {
    let Wanted { name, facts } = wanted;
    // the lock waits for other processes; this thread may
    let lock = {
        let (cache, etag) = (cache.clone(), facts.etag.clone());
        let locked = tokio::task::spawn_blocking(move || cache.lock(&etag)).await;
        locked.map_err(|e| FormatError::new(ErrorCode::Io, e.to_string()))??
    };
    let blob = cache.blob(&facts.etag);
    let is_there = fs::metadata(&blob).is_ok_and(|m| m.is_file() && m.len() == facts.len);
    if !is_there {
        let parent = blob.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(|e| FormatError::io(parent, &e))?;
        let file = hub.file(commit, name, facts)?;
        let partial = incomplete(&blob);
        // what an earlier run left may be damaged: once more from the beginning
        let resumed = fs::metadata(&partial).is_ok_and(|m| m.len() > 0);
        let mut done = into_file(&file, &partial, facts.sha256(), watch).await;
        if resumed && done.as_ref().is_err_and(|e| e.code == ErrorCode::Checksum) {
            done = into_file(&file, &partial, facts.sha256(), watch).await;
        }
        done?;
        fs::rename(&partial, &blob).map_err(|e| FormatError::io(&blob, &e))?;
    }
    cache.link(commit, name, &facts.etag)?;
    drop(lock);
    Ok(())
}

/// The file that grows, and the hash of what is in it.
struct Growing {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    len: u64,
}

impl Growing {
    /// Opens what is there; more than `most` bytes are no beginning of the file.
    fn open(path: &Path, most: u64) -> Result<Self, FormatError> {
        let failed = |e: std::io::Error| FormatError::io(path, &e);
        let open = || {
            File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(path)
        };
        let mut file = open().map_err(failed)?;
        let mut hasher = Sha256::new();
        let mut len = file.metadata().map_err(failed)?.len();
        if len > most {
            file.set_len(0).map_err(failed)?;
            len = 0;
        }
        let mut buffer = vec![0; 1 << 20];
        let mut left = len;
        while left > 0 {
            let most = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let part = buffer.get_mut(..most).unwrap_or_default();
            file.read_exact(part).map_err(failed)?;
            hasher.update(&*part);
            left -= most as u64;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            hasher,
            len,
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        self.file
            .write_all(bytes)
            .map_err(|e| FormatError::io(&self.path, &e))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<(), FormatError> {
        let failed = |e: std::io::Error| FormatError::io(&self.path, &e);
        self.file.set_len(0).map_err(failed)?;
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.hasher = Sha256::new();
        self.len = 0;
        Ok(())
    }
}

/// Fetches what a file lacks, and checks it.
async fn into_file(
    file: &RemoteFile,
    path: &Path,
    sha256: Option<&str>,
    watch: &dyn Watch,
) -> Result<(), FormatError> {
    let len = file.len();
    let mut growing = Growing::open(path, len)?;
    match in_ranges(file, &mut growing, watch).await {
        Ok(()) => {}
        Err(Ended::Failed(error)) => return Err(error),
        Err(Ended::NoRanges) => {
            // such a file is held in memory
            const MOST: u64 = 1 << 30;
            if len > MOST {
                let message = format!(
                    "expected a server that sends parts of a file of {len} bytes, found one that sends whole files only"
                );
                return Err(FormatError::new(ErrorCode::BadResponse, message)
                    .in_file(Path::new(file.name()))
                    .hint("download the file first, for example with curl"));
            }
            growing.restart()?;
            let mut bytes = Vec::new();
            let whole = file
                .read_into(0..len, &mut bytes, &|n| watch.advance(n))
                .await;
            match whole {
                Ok(()) => {
                    growing.append(&bytes)?;
                    watch.check()?;
                }
                Err(Ended::Failed(error)) => return Err(error),
                Err(Ended::NoRanges) => {
                    let message = "the connection breaks, and the server sends whole files only";
                    return Err(FormatError::new(ErrorCode::Network, message)
                        .in_file(Path::new(file.name()))
                        .hint("run the command again"));
                }
            }
        }
    }
    let found = hex(&growing.hasher.finalize());
    if sha256.is_some_and(|expected| expected != found) || growing.len != len {
        // of no use to anybody
        let _ = fs::remove_file(path);
        let message = match sha256 {
            Some(expected) => format!("expected SHA-256 {expected}, found {found}"),
            None => format!("expected {len} bytes, found {}", growing.len),
        };
        return Err(FormatError::new(ErrorCode::Checksum, message)
            .in_file(Path::new(file.name()))
            .hint("run the command again; if the error stays, the file on the server is damaged"));
    }
    growing
        .file
        .sync_all()
        .map_err(|e| FormatError::io(path, &e))
}

async fn in_ranges(
    file: &RemoteFile,
    growing: &mut Growing,
    watch: &dyn Watch,
) -> Result<(), Ended> {
    let len = file.len();
    let starts = (growing.len..len).step_by(RANGE as usize);
    let ranges = starts.map(|start| start..len.min(start + RANGE));
    let fetched = ranges.map(|range| async move {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let read = file
            .read_into(range, &mut bytes, &|n| watch.advance(n))
            .await;
        (bytes, read)
    });
    let mut fetched = stream::iter(fetched).buffered(AT_ONCE);
    while let Some((bytes, read)) = fetched.next().await {
        // also of a range that broke, what came is worth keeping
        growing.append(&bytes)?;
        read?;
        watch.check()?;
    }
    Ok(())
}
