//! Work on a thread of its own, while the caller's thread listens for signals.
//!
//! Invariant: the interpreter is free while the work runs. Ctrl-C and an exception of the callback end the work at its
//! next step, and are raised when it has ended; a second Ctrl-C does not wait.

use crate::failure::{panicked, usage};
use crate::process;
use bitnet_cli::{Observer, observed};
use bitnet_formats::{ErrorCode, FormatError};
use pyo3::prelude::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// How long a signal waits at most.
pub const TICK: Duration = Duration::from_millis(20);

/// What the two threads tell each other.
#[derive(Debug, Default)]
pub struct Watch {
    cancelled: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
}

impl Watch {
    /// Ends the work at its next step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the work may go on.
    ///
    /// # Errors
    /// `interrupted` if it is to end.
    pub fn check(&self) -> Result<(), FormatError> {
        match self.is_cancelled() {
            true => Err(FormatError::new(
                ErrorCode::Interrupted,
                "the caller stopped the run",
            )),
            false => Ok(()),
        }
    }
}

impl Observer for Watch {
    fn progress(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Tells a callback how far the work is, when that has changed.
struct Callback<'py> {
    call: Option<Bound<'py, PyAny>>,
    told: (u64, u64),
}

impl Callback<'_> {
    fn tell(&mut self, watch: &Watch) -> PyResult<()> {
        let total = watch.total.load(Ordering::Relaxed);
        let now = (watch.done.load(Ordering::Relaxed).min(total), total);
        match &self.call {
            Some(call) if now != self.told => {
                self.told = now;
                call.call1(now).map(|_| ())
            }
            _ => Ok(()),
        }
    }
}

/// Runs `work` on a thread, and gives what it gives.
///
/// # Errors
/// A panic, a signal's exception, that of `progress`; `usage` in a forked process.
pub fn run<T: Send + 'static>(
    py: Python<'_>,
    progress: Option<Bound<'_, PyAny>>,
    work: impl FnOnce(&Watch) -> T + Send + 'static,
) -> PyResult<T> {
    process::enter(py)?;
    let watch = Arc::new(Watch::default());
    let (sender, mut receiver) = channel();
    let own = Arc::clone(&watch);
    let started = std::thread::Builder::new()
        .name("bitnet".to_owned())
        .spawn(move || {
            let observer = Arc::clone(&own);
            let run = AssertUnwindSafe(|| observed(observer, || work(&own)));
            // nobody waits any more after a second Ctrl-C
            let _ = sender.send(catch_unwind(run));
        });
    started.map_err(|e| usage(py, &format!("cannot start a thread: {e}"), None))?;
    let mut callback = Callback {
        call: progress,
        told: (0, 0),
    };
    let mut ended_by: Option<PyErr> = None;
    loop {
        let came;
        (came, receiver) = wait(py, receiver);
        match came {
            Ok(Ok(value)) => {
                let signal = py.check_signals().err();
                return match ended_by.or(signal) {
                    Some(error) => Err(error),
                    None => callback.tell(&watch).map(|()| value),
                };
            }
            Ok(Err(panic)) => return Err(panicked(py, &*panic)),
            Err(RecvTimeoutError::Disconnected) => return Err(panicked(py, &"the thread ended")),
            Err(RecvTimeoutError::Timeout) => {}
        }
        let mut heard = py.check_signals();
        if heard.is_ok() && ended_by.is_none() {
            heard = callback.tell(&watch);
        }
        if let Err(error) = heard {
            watch.cancel();
            if ended_by.is_some() {
                return Err(error);
            }
            ended_by = Some(error);
        }
    }
}

/// Waits one tick for a message, with the interpreter free.
pub fn wait<M: Send>(
    py: Python<'_>,
    receiver: Receiver<M>,
) -> (Result<M, RecvTimeoutError>, Receiver<M>) {
    py.detach(move || (receiver.recv_timeout(TICK), receiver))
}
