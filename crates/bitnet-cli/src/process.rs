//! What the process is told once: whose streams it writes, and that it was interrupted.
//!
//! Invariant: [`main`](crate::main) alone sets these; a test that calls `run` finds neither.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Whether `out` and `err` are the process's own stdout and stderr.
pub(crate) static STANDARD_STREAMS: AtomicBool = AtomicBool::new(false);

pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether SIGINT, SIGTERM or SIGHUP arrived: the process is about to exit, start nothing new.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

type Hook = Box<dyn FnOnce() + Send>;

/// What the first signal does instead of ending the process.
static HOOK: Mutex<Option<Hook>> = Mutex::new(None);

/// Lets the first SIGINT, SIGTERM or SIGHUP call `hook` instead of ending the process; the second one ends it.
pub fn on_interrupt(hook: impl FnOnce() + Send + 'static) {
    *HOOK.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
}

/// While this lives, the first SIGINT, SIGTERM or SIGHUP is a request to stop the work at hand; the second one ends the
/// process.
#[derive(Debug)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    /// Begins to listen.
    pub fn listen() -> Self {
        let asked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&asked);
        on_interrupt(move || flag.store(true, Ordering::Relaxed));
        Self(asked)
    }

    /// Whether the work is to stop.
    pub fn is_made(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for StopRequest {
    fn drop(&mut self) {
        take_hook();
    }
}

/// The hook, once.
pub(crate) fn take_hook() -> Option<Hook> {
    HOOK.lock().unwrap_or_else(PoisonError::into_inner).take()
}
