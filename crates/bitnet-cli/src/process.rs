//! What the process is told once: whose streams it writes, and that it was interrupted.
//!
//! Invariant: [`main`](crate::main) alone sets these; a test that calls `run` finds neither.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Whether `out` and `err` are the process's own stdout and stderr.
pub(crate) static STANDARD_STREAMS: AtomicBool = AtomicBool::new(false);

pub(crate) static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Whether SIGINT, SIGTERM or SIGHUP arrived: the process is about to exit, start nothing new.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Whether SIGTERM or SIGHUP arrived: another program, or the end of the terminal, asks the process to end.
pub(crate) static TERMINATED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// What the first signal does instead of ending the process.
struct Hook {
    run: Box<dyn FnOnce() + Send>,
    /// Whether SIGTERM and SIGHUP end the process all the same.
    for_keys: bool,
}

static HOOK: Mutex<Option<Hook>> = Mutex::new(None);

fn set_hook(hook: Option<Hook>) {
    *HOOK.lock().unwrap_or_else(PoisonError::into_inner) = hook;
}

/// Lets the first SIGINT, SIGTERM or SIGHUP call `hook` instead of ending the process; the second one ends it.
pub fn on_interrupt(hook: impl FnOnce() + Send + 'static) {
    set_hook(Some(Hook {
        run: Box::new(hook),
        for_keys: false,
    }));
}

/// While this lives, the first SIGINT, as of Ctrl-C, is a request to stop the work at hand; the second one ends the
/// process, and so do SIGTERM and SIGHUP.
#[derive(Debug)]
pub struct StopRequest(Arc<AtomicBool>);

impl StopRequest {
    /// Begins to listen.
    pub fn listen() -> Self {
        let asked = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&asked);
        set_hook(Some(Hook {
            run: Box::new(move || flag.store(true, Ordering::Relaxed)),
            for_keys: true,
        }));
        Self(asked)
    }

    /// Whether the work is to stop.
    pub fn is_made(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for StopRequest {
    fn drop(&mut self) {
        set_hook(None);
    }
}

/// Runs the hook, once; whether one was there for the signal that arrived.
pub(crate) fn run_hook() -> bool {
    let hook = HOOK.lock().unwrap_or_else(PoisonError::into_inner).take();
    let terminated = TERMINATED.load(Ordering::Relaxed);
    match hook.filter(|hook| !(terminated && hook.for_keys)) {
        Some(hook) => {
            (hook.run)();
            true
        }
        None => false,
    }
}
