//! SHA-256 of a stream, beside the work that makes the stream.
//!
//! Invariant: the digest is that of the bytes in the order of the calls, and at most
//! `HASH_BUFFERS * HASH_BUFFER` bytes wait to be hashed.

use sha2::{Digest, Sha256};
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes per buffer on the way to the hashing thread.
pub(super) const HASH_BUFFER: usize = 1 << 20;
/// Buffers in use at most: one being filled, one being hashed, two waiting.
const HASH_BUFFERS: usize = 4;

/// SHA-256 of a stream, computed by a helper thread once the stream is longer than one buffer, so
/// that hashing overlaps with whatever the caller does. Holds at most 4 MiB.
#[derive(Debug, Default)]
pub struct Sha256Stream {
    state: Hashing,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum Hashing {
    Here(Sha256),
    Helper {
        full: SyncSender<Vec<u8>>,
        spare: Receiver<Vec<u8>>,
        buffers: usize,
        thread: JoinHandle<Sha256>,
    },
}

impl Default for Hashing {
    fn default() -> Self {
        Self::Here(Sha256::new())
    }
}

impl Sha256Stream {
    /// The hash of nothing so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        loop {
            let room = HASH_BUFFER.saturating_sub(self.buffer.len());
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if bytes.is_empty() {
                return;
            }
            self.pass_on();
        }
    }

    /// The buffer is full and more is coming.
    fn pass_on(&mut self) {
        if let Hashing::Here(sha) = &self.state {
            let mut sha = sha.clone();
            let (full, work) = sync_channel::<Vec<u8>>(HASH_BUFFERS);
            let (give_back, spare) = sync_channel(HASH_BUFFERS);
            let helper = move || {
                for mut buffer in work {
                    sha.update(&buffer);
                    buffer.clear();
                    let _ = give_back.send(buffer);
                }
                sha
            };
            if let Ok(thread) = std::thread::Builder::new()
                .name("sha256".into())
                .spawn(helper)
            {
                self.state = Hashing::Helper {
                    full,
                    spare,
                    buffers: 1,
                    thread,
                };
            }
        }
        match &mut self.state {
            // no thread to be had
            Hashing::Here(sha) => {
                sha.update(&self.buffer);
                self.buffer.clear();
            }
            Hashing::Helper {
                full,
                spare,
                buffers,
                ..
            } => {
                let next = match spare.try_recv() {
                    Ok(buffer) => buffer,
                    Err(_) if *buffers < HASH_BUFFERS => {
                        *buffers = buffers.saturating_add(1);
                        Vec::with_capacity(HASH_BUFFER)
                    }
                    // an error here or below means that the helper died, which `finish` reports
                    Err(_) => spare.recv().unwrap_or_default(),
                };
                let _ = full.send(std::mem::replace(&mut self.buffer, next));
            }
        }
    }

    /// The hash, lower-case hexadecimal.
    ///
    /// # Errors
    /// The helper thread died.
    pub fn finish(self) -> io::Result<String> {
        let mut sha = match self.state {
            Hashing::Here(sha) => sha,
            Hashing::Helper { full, thread, .. } => {
                drop(full);
                thread
                    .join()
                    .map_err(|_| io::Error::other("the hashing thread died"))?
            }
        };
        sha.update(&self.buffer);
        Ok(crate::hex(&sha.finalize()))
    }
}
