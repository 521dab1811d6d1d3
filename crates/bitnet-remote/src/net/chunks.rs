//! Remote files as sources.
//!
//! Invariant: what all sources of the process hold is bounded by [`BUDGET`], plus what is on its way; a range longer
//! than that passes through. A chunk is fetched once for everyone who asks while it is on its way.

use bitnet_formats::{Bytes, FormatError, Source, checked_len};
use futures_util::future::BoxFuture;
use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;

/// Bytes of a range that is fetched for a stream.
const CHUNK: u64 = 4 << 20;
/// Bytes that the sources of this process keep.
const BUDGET: u64 = 128 << 20;
/// How far readers may be apart.
const WINDOW: u64 = 32 << 20;
/// Chunks that a long read asks for ahead of itself.
const AHEAD: u64 = 8;
/// Ranges on their way at a time.
const AT_ONCE: usize = 8;
/// The least that a look into a header fetches.
const LOOK: u64 = 4 << 10;
/// The most that a look fetches beyond what was asked for, in one go through a header.
const LONGEST_LOOK: u64 = 512 << 10;
/// Looks that a source remembers.
const LOOKS: usize = 32;

/// Ranges of one remote file.
pub(crate) trait Ranges: fmt::Debug + Send + Sync {
    fn len(&self) -> u64;
    fn name(&self) -> &str;
    /// The SHA-256 of the whole file that the server announced.
    fn sha256(&self) -> Option<&str> {
        None
    }
    /// Whether a changed version was seen.
    fn check(&self) -> Result<(), FormatError>;
    /// The bytes of a range that lies in the file.
    fn fetch(
        self: Arc<Self>,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<Vec<u8>, FormatError>>;
}

enum State {
    Pending,
    Ready(Bytes),
    Failed(FormatError),
}

struct Slot {
    state: State,
    used: u64,
}

#[derive(Default)]
struct Held {
    slots: HashMap<(u64, u64), Slot>,
    clock: u64,
    bytes: u64,
}

struct Pool {
    held: Mutex<Held>,
    arrived: Condvar,
    gate: Arc<Semaphore>,
    next_id: AtomicU64,
}

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool {
    held: Mutex::default(),
    arrived: Condvar::new(),
    gate: Arc::new(Semaphore::new(AT_ONCE)),
    next_id: AtomicU64::new(0),
});

impl Pool {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn put(&mut self, key: (u64, u64), fetched: Result<Vec<u8>, FormatError>) {
        let Some(slot) = self.slots.get_mut(&key) else {
            return;
        };
        slot.state = match fetched {
            Ok(bytes) => {
                self.bytes += bytes.len() as u64;
                State::Ready(bytes.into())
            }
            Err(error) => State::Failed(error),
        };
        while self.bytes > BUDGET {
            let ready = self
                .slots
                .iter()
                .filter(|(k, slot)| **k != key && matches!(slot.state, State::Ready(_)));
            let Some(oldest) = ready.min_by_key(|(_, slot)| slot.used).map(|(k, _)| *k) else {
                break;
            };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, key: (u64, u64)) {
        if let Some(Slot {
            state: State::Ready(bytes),
            ..
        }) = self.slots.remove(&key)
        {
            self.bytes -= bytes.len() as u64;
        }
    }
}

/// A remote file that is read in chunks, ahead of its reader.
#[derive(Debug)]
pub(crate) struct Streamed {
    ranges: Arc<dyn Ranges>,
    path: PathBuf,
    id: u64,
}

impl Streamed {
    /// `path` is the file that it stands for.
    pub(crate) fn new(ranges: Arc<dyn Ranges>, path: PathBuf) -> Self {
        let id = POOL.next_id.fetch_add(1, Ordering::Relaxed);
        Self { ranges, path, id }
    }

    fn chunk_range(&self, index: u64) -> Range<u64> {
        let start = index * CHUNK;
        start..self.ranges.len().min(start + CHUNK)
    }

    /// Makes a chunk be on its way or there.
    fn ask(&self, held: &mut Held, index: u64) {
        held.clock += 1;
        let used = held.clock;
        let key = (self.id, index);
        match held.slots.get_mut(&key) {
            Some(slot) => slot.used = used,
            None => {
                let state = State::Pending;
                held.slots.insert(key, Slot { state, used });
                let (ranges, range) = (Arc::clone(&self.ranges), self.chunk_range(index));
                let Ok(runtime) = super::runtime() else {
                    held.slots.remove(&key);
                    return;
                };
                runtime.spawn(async move {
                    let pass = Arc::clone(&POOL.gate).acquire_owned().await;
                    let fetched = ranges.fetch(range).await;
                    drop(pass);
                    POOL.held().put(key, fetched);
                    POOL.arrived.notify_all();
                });
            }
        }
    }

    fn chunk(&self, index: u64, last: u64) -> Result<Bytes, FormatError> {
        let key = (self.id, index);
        let mut held = POOL.held();
        for ahead in index..=last.min(index + AHEAD) {
            self.ask(&mut held, ahead);
        }
        loop {
            match held.slots.get(&key).map(|slot| &slot.state) {
                Some(State::Ready(bytes)) => return Ok(bytes.clone()),
                Some(State::Failed(error)) => {
                    let error = error.clone();
                    held.remove(key);
                    return Err(error);
                }
                Some(State::Pending) => {}
                // removed meanwhile by a source that needed the room
                None => self.ask(&mut held, index),
            }
            held = POOL
                .arrived
                .wait(held)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        let mut held = POOL.held();
        let mine: Vec<_> = held
            .slots
            .keys()
            .filter(|key| key.0 == self.id)
            .copied()
            .collect();
        mine.into_iter().for_each(|key| held.remove(key));
    }
}

impl Source for Streamed {
    fn len(&self) -> u64 {
        self.ranges.len()
    }

    fn name(&self) -> &str {
        self.ranges.name()
    }

    fn announced_sha256(&self) -> Option<&str> {
        self.ranges.sha256()
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes, FormatError> {
        let len = checked_len(self, &range)?;
        if range.is_empty() {
            return Ok(Bytes::default());
        }
        let (first, last) = (range.start / CHUNK, (range.end - 1) / CHUNK);
        let mut all = Vec::new();
        for index in first..=last {
            let chunk = self.chunk(index, last)?;
            let start = index * CHUNK;
            let from = range.start.saturating_sub(start) as usize;
            let until = (range.end - start).min(chunk.len() as u64) as usize;
            let part = chunk.slice(from..until).unwrap_or_default();
            if first == last {
                return Ok(part);
            }
            all.reserve_exact(len - all.len());
            all.extend_from_slice(&part);
        }
        Ok(all.into())
    }

    fn check(&self) -> Result<(), FormatError> {
        self.ranges.check()
    }

    fn intact(&self) -> Result<(), FormatError> {
        self.ranges.check()
    }

    fn window(&self) -> u64 {
        WINDOW
    }

    fn will_need(&self, range: Range<u64>) {
        let end = range.end.min(self.ranges.len());
        if range.start >= end {
            return;
        }
        let mut held = POOL.held();
        for index in range.start / CHUNK..=(end - 1) / CHUNK {
            self.ask(&mut held, index);
        }
    }

    fn release(&self, range: Range<u64>) {
        let end = range.end.min(self.ranges.len());
        let mut held = POOL.held();
        // whole chunks only: their neighbors may be wanted
        for index in range.start.div_ceil(CHUNK)..end / CHUNK {
            let key = (self.id, index);
            if held
                .slots
                .get(&key)
                .is_some_and(|slot| matches!(slot.state, State::Ready(_)))
            {
                held.remove(key);
            }
        }
    }
}

/// A remote file of which only headers are read: nothing is fetched that was not asked for, but for a few bytes.
#[derive(Debug)]
pub(crate) struct Looked {
    ranges: Arc<dyn Ranges>,
    path: PathBuf,
    seen: Mutex<Vec<(u64, Bytes)>>,
}

impl Looked {
    /// `path` is the file that it stands for.
    pub(crate) fn new(ranges: Arc<dyn Ranges>, path: PathBuf) -> Self {
        Self {
            ranges,
            path,
            seen: Mutex::default(),
        }
    }
}

impl Source for Looked {
    fn len(&self) -> u64 {
        self.ranges.len()
    }

    fn name(&self) -> &str {
        self.ranges.name()
    }

    fn announced_sha256(&self) -> Option<&str> {
        self.ranges.sha256()
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes, FormatError> {
        let len = checked_len(self, &range)?;
        if range.is_empty() {
            return Ok(Bytes::default());
        }
        let find = |seen: &[(u64, Bytes)]| {
            seen.iter().find_map(|(start, bytes)| {
                let from = usize::try_from(range.start.checked_sub(*start)?).ok()?;
                bytes.slice(from..from.checked_add(len)?)
            })
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = find(&seen) {
            return Ok(found);
        }
        // one behind the other: a long header, of which a larger part at a time comes faster
        let before = seen
            .last()
            .filter(|(start, bytes)| start + bytes.len() as u64 == range.start);
        let growing = before.map_or(0, |(_, bytes)| 2 * bytes.len() as u64);
        let look = growing
            .min(LONGEST_LOOK)
            .min(self.ranges.len() / 256)
            .max(LOOK);
        let end = range.end.max(range.start + look).min(self.ranges.len());
        let fetched = super::block_on(Arc::clone(&self.ranges).fetch(range.start..end))?;
        if seen.len() >= LOOKS {
            seen.remove(0);
        }
        seen.push((range.start, fetched.into()));
        Ok(find(&seen).unwrap_or_default())
    }

    fn check(&self) -> Result<(), FormatError> {
        self.ranges.check()
    }

    fn intact(&self) -> Result<(), FormatError> {
        self.ranges.check()
    }

    fn window(&self) -> u64 {
        0
    }
}

impl Ranges for super::file::RemoteFile {
    fn len(&self) -> u64 {
        Self::len(self)
    }

    fn name(&self) -> &str {
        Self::name(self)
    }

    fn sha256(&self) -> Option<&str> {
        Self::sha256(self)
    }

    fn check(&self) -> Result<(), FormatError> {
        Self::check(self)
    }

    fn fetch(
        self: Arc<Self>,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<Vec<u8>, FormatError>> {
        use super::file::Ended;
        use bitnet_formats::ErrorCode;
        Box::pin(async move {
            let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
            match self.read_into(range, &mut bytes, &|_| {}).await {
                Ok(()) => Ok(bytes),
                Err(Ended::Failed(error)) => Err(error),
                Err(Ended::NoRanges) => {
                    let message =
                        "expected a part of the file, found that the server sends whole files only";
                    Err(FormatError::new(ErrorCode::BadResponse, message)
                        .in_file(Path::new(Self::name(&self)))
                        .hint("download the file first, for example with curl"))
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::ErrorCode;

    /// A file in memory that counts what is fetched of it and fails at times.
    #[derive(Debug)]
    struct Fake {
        bytes: Vec<u8>,
        fetched: AtomicU64,
        failures: AtomicU64,
    }

    impl Ranges for Fake {
        fn len(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn name(&self) -> &str {
            "fake"
        }

        fn check(&self) -> Result<(), FormatError> {
            Ok(())
        }

        fn fetch(
            self: Arc<Self>,
            range: Range<u64>,
        ) -> BoxFuture<'static, Result<Vec<u8>, FormatError>> {
            Box::pin(async move {
                if self.failures.load(Ordering::Relaxed) > 0 {
                    self.failures.fetch_sub(1, Ordering::Relaxed);
                    return Err(FormatError::new(ErrorCode::Network, "broken"));
                }
                self.fetched
                    .fetch_add(range.end - range.start, Ordering::Relaxed);
                Ok(self.bytes[range.start as usize..range.end as usize].to_vec())
            })
        }
    }

    fn fake(len: usize, failures: u64) -> Arc<Fake> {
        Arc::new(Fake {
            bytes: (0..len).map(|i| (i * 7 % 251) as u8).collect(),
            fetched: AtomicU64::new(0),
            failures: AtomicU64::new(failures),
        })
    }

    #[test]
    fn ranges_are_those_of_the_file_and_each_byte_is_fetched_once() {
        let len = 3 * CHUNK as usize + 17;
        let file = fake(len, 0);
        let source = Streamed::new(file.clone(), "p".into());
        source.will_need(0..u64::MAX);
        let c = CHUNK as usize;
        for range in [0..1, 5..c, c - 1..c + 1, 0..len, len - 1..len, 7..7] {
            let read = source.read(range.start as u64..range.end as u64).unwrap();
            assert_eq!(read, file.bytes[range]);
        }
        assert_eq!(file.fetched.load(Ordering::Relaxed), len as u64);
        assert_eq!(
            source.read(0..len as u64 + 1).unwrap_err().code,
            ErrorCode::Truncated
        );
        source.release(0..u64::MAX);
        assert_eq!(source.read(0..3).unwrap(), file.bytes[..3]);
    }

    #[test]
    fn a_failure_is_told_once_and_the_next_read_asks_again() {
        let file = fake(100, 1);
        let source = Streamed::new(file.clone(), "p".into());
        assert_eq!(source.read(0..9).unwrap_err().code, ErrorCode::Network);
        assert_eq!(source.read(0..9).unwrap(), file.bytes[..9]);
    }

    #[test]
    fn looks_fetch_little_more_than_they_show() {
        let file = fake(1 << 20, 0);
        let source = Looked::new(file.clone(), "p".into());
        assert_eq!(source.read(0..8).unwrap(), file.bytes[..8]);
        assert_eq!(source.read(8..3000).unwrap(), file.bytes[8..3000]);
        assert_eq!(file.fetched.load(Ordering::Relaxed), LOOK);
        assert_eq!(source.read(1000..9000).unwrap(), file.bytes[1000..9000]);
        assert_eq!(file.fetched.load(Ordering::Relaxed), LOOK + 8000);
    }
}
