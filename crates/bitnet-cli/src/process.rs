//! What the process is told once: whose streams it writes, and that it was interrupted.
//!
//! Invariant: [`main`](crate::main) alone sets these; a test that calls `run` finds neither.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether `out` and `err` are the process's own stdout and stderr.
pub(crate) static STANDARD_STREAMS: AtomicBool = AtomicBool::new(false);

pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether SIGINT, SIGTERM or SIGHUP arrived: the process is about to exit, start nothing new.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
