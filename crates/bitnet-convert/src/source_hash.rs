//! SHA-256 of the source files, in the one pass that reads them from disk.
//!
//! Invariant: bytes are read from disk by this walk and by nobody else: a tensor is converted when
//! the walk is past it, while its bytes are in the page cache, and the walk never runs further ahead
//! of the conversion than [`LEAD`], so that they still are.

use bitnet_cli::{Bar, Progress};
use bitnet_formats::{FileDigest, TensorFile, TensorInfo, hex};
use sha2::{Digest, Sha256};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes hashed between two looks at the others.
const STEP: u64 = 4 << 20;
/// How far ahead of the walk the kernel is asked to read.
const READ_AHEAD: u64 = 48 << 20;
/// How far the walk may be ahead of the tensor that is converted.
const LEAD: u64 = 256 << 20;

/// Positions count through all files in order.
#[derive(Debug, Default)]
struct State {
    /// Everything before was hashed.
    passed: u64,
    /// The walk is needed up to here.
    wanted: u64,
    /// Nobody needs the walk any more.
    stopped: bool,
}

/// The walk over all files of a source.
#[derive(Debug)]
pub struct SourceHash<'f> {
    file: &'f TensorFile,
    /// Position of the first byte of each file.
    starts: Vec<u64>,
    state: Mutex<State>,
    changed: Condvar,
}

impl<'f> SourceHash<'f> {
    /// A walk that has not begun.
    pub fn new(file: &'f TensorFile) -> Self {
        let lengths = file.parts.iter().map(|p| p.len());
        let starts = lengths
            .scan(0u64, |at, len| {
                let start = *at;
                *at = at.saturating_add(len);
                Some(start)
            })
            .collect();
        Self {
            file,
            starts,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // a panic elsewhere ends the program; waiting for it would not
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the walk is past the first `bytes` of a tensor. `false` when it was stopped.
    pub fn wait_for(&self, tensor: &TensorInfo, bytes: u64) -> bool {
        let start = self.starts.get(tensor.part).copied().unwrap_or(0);
        let end = start
            .saturating_add(tensor.offset)
            .saturating_add(bytes.min(tensor.len));
        let mut state = self.state();
        if state.wanted < end {
            state.wanted = end;
            self.changed.notify_all();
        }
        while state.passed < end && !state.stopped {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        !state.stopped
    }

    /// Lets the walk run to the end.
    pub fn want_all(&self) {
        self.state().wanted = u64::MAX;
        self.changed.notify_all();
    }

    /// Ends the walk early.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.changed.notify_all();
    }

    /// Walks. `None` when it was stopped.
    pub fn run(&self, progress: &Progress) -> Option<Vec<FileDigest>> {
        let mut digests = Vec::with_capacity(self.file.parts.len());
        for (part, &start) in self.file.parts.iter().zip(&self.starts) {
            let len = part.len();
            let name = part
                .path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy();
            let bar: Bar = progress.bytes(format!("read {name}"), len);
            part.will_need(0..READ_AHEAD);
            let mut hasher = Sha256::new();
            let mut at = 0;
            while at < len {
                let end = len.min(at + STEP);
                let ahead = at + READ_AHEAD;
                part.will_need(ahead..ahead + STEP);
                {
                    let mut state = self.state();
                    while start + at > state.wanted.saturating_add(LEAD) && !state.stopped {
                        state = self
                            .changed
                            .wait(state)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                    if state.stopped {
                        return None;
                    }
                }
                let step = part.check().and_then(|()| part.read(at..end));
                let Ok(step) = step else {
                    // the conversion asks again and says what changed
                    self.stop();
                    return None;
                };
                hasher.update(&step);
                bar.advance(end - at);
                at = end;
                self.state().passed = start + at;
                self.changed.notify_all();
            }
            bar.finish();
            let path = part.path().to_owned();
            digests.push(FileDigest {
                path,
                bytes: len,
                sha256: hex(&hasher.finalize()),
            });
        }
        Some(digests)
    }
}

/// SHA-256 of a small file in memory.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
