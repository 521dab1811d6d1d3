//! SHA-256 of the source files, in the one pass that reads them from disk.
//!
//! Invariant: bytes are read from disk by this walk and by nobody else: a tensor is converted when
//! the walk is past it, while its bytes are in the page cache, and the walk never runs further ahead
//! of the conversion than [`LEAD`], so that they still are. Files that another job walks are read as they are needed.

use bitnet_cli::{Bar, Progress};
use bitnet_formats::{ErrorCode, FileDigest, FormatError, TensorFile, TensorInfo, hex};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bytes hashed between two looks at the others.
const STEP: u64 = 4 << 20;
/// How far ahead of the walk the kernel is asked to read.
const READ_AHEAD: u64 = 48 << 20;
/// How far the walk may be ahead of the tensor that is converted; less for sources that forget sooner.
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
    /// Why the walk could not go on.
    failure: Option<FormatError>,
}

/// The walk over all files of a source.
#[derive(Debug)]
pub struct SourceHash<'f> {
    file: &'f TensorFile,
    /// Which files are walked.
    walked: Vec<bool>,
    /// Position of the first byte of each file.
    starts: Vec<u64>,
    state: Mutex<State>,
    changed: Condvar,
}

impl<'f> SourceHash<'f> {
    /// A walk over the files of `walked` that has not begun.
    pub fn new(file: &'f TensorFile, walked: Vec<bool>) -> Self {
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
            walked,
            starts,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // a panic elsewhere ends the program; waiting for it would not
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_walked(&self, part: usize) -> bool {
        self.walked.get(part).copied().unwrap_or(false)
    }

    /// Waits until the walk is past some bytes of a tensor, or near them where the source would have forgotten
    /// the first of them by then. `false` when it was stopped.
    pub fn wait_for(&self, tensor: &TensorInfo, bytes: Range<u64>) -> bool {
        if !self.is_walked(tensor.part) {
            return !self.state().stopped;
        }
        let start = self.starts.get(tensor.part).copied().unwrap_or(0);
        let place = |byte: u64| {
            let of_file = tensor.offset.saturating_add(byte.min(tensor.len));
            start.saturating_add(of_file)
        };
        let (start, wanted) = (place(bytes.start), place(bytes.end));
        let window = self.file.parts.get(tensor.part).map(|part| part.window());
        let end = wanted.min(start.saturating_add(window.unwrap_or(u64::MAX) / 2));
        let mut state = self.state();
        if state.wanted < wanted {
            state.wanted = wanted;
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

    /// Why the walk could not go on, if it could not.
    pub fn failure(&self) -> Option<FormatError> {
        self.state().failure.clone()
    }

    /// Walks; gives the digests of the files that are walked. `None` when it was stopped.
    pub fn run(&self, progress: &Progress) -> Option<Vec<Option<FileDigest>>> {
        let mut digests = Vec::with_capacity(self.file.parts.len());
        for (number, (part, &start)) in self.file.parts.iter().zip(&self.starts).enumerate() {
            let len = part.len();
            if !self.is_walked(number) {
                digests.push(None);
                let mut state = self.state();
                state.passed = start.saturating_add(len);
                // no tensor of a file that is not walked asks for the walk
                state.wanted = state.wanted.max(state.passed);
                drop(state);
                self.changed.notify_all();
                continue;
            }
            let name = part
                .path()
                .file_name()
                .unwrap_or_default()
                .to_string_lossy();
            let bar: Bar = progress.bytes(format!("read {name}"), len);
            part.will_need(0..READ_AHEAD);
            let lead = LEAD.min(part.window());
            let mut hasher = Sha256::new();
            let mut at = 0;
            while at < len {
                let end = len.min(at + STEP);
                let ahead = at + READ_AHEAD;
                part.will_need(ahead..ahead + STEP);
                {
                    let mut state = self.state();
                    while start + at > state.wanted.saturating_add(lead) && !state.stopped {
                        state = self
                            .changed
                            .wait(state)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                    if state.stopped {
                        return None;
                    }
                }
                let step = progress.check();
                let step = step.and_then(|()| part.check());
                let step = step.and_then(|()| part.read(at..end));
                let step = match step {
                    Ok(step) => step,
                    Err(error) => {
                        self.state().failure = Some(error);
                        self.stop();
                        return None;
                    }
                };
                hasher.update(&step);
                bar.advance(end - at);
                at = end;
                self.state().passed = start + at;
                self.changed.notify_all();
            }
            bar.finish();
            let path = part.path().to_owned();
            let sha256 = hex(&hasher.finalize());
            if let Some(expected) = part.announced_sha256().filter(|e| *e != sha256) {
                let message = format!(
                    "expected SHA-256 {expected}, which the server announced, found {sha256}"
                );
                let error = FormatError::new(ErrorCode::Checksum, message).in_file(&path);
                self.state().failure = Some(error.hint(
                    "run the command again; if the error stays, the file on the server is damaged",
                ));
                self.stop();
                return None;
            }
            digests.push(Some(FileDigest {
                path,
                bytes: len,
                sha256,
            }));
        }
        Some(digests)
    }
}

/// SHA-256 of a small file in memory.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
