//! Who watches a run from outside: a caller of the library that has no terminal.
//!
//! Invariant: an observer belongs to the thread that calls `run`, so two runs in two threads have two observers. It
//! changes no result: it hears how far a run is, and may end the run early with the error `interrupted`.

use bitnet_formats::{ErrorCode, FormatError};
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Hears how far a run is, and may end it.
pub trait Observer: Send + Sync {
    /// `done` of `total` bytes are done.
    fn progress(&self, done: u64, total: u64);

    /// Whether the run is to end early.
    fn is_cancelled(&self) -> bool;
}

thread_local! {
    static OBSERVER: RefCell<Option<Arc<dyn Observer>>> = const { RefCell::new(None) };
}

/// Calls `run`, which `observer` watches. Threads that `run` starts report to it through [`Progress`](crate::Progress).
pub fn observed<T>(observer: Arc<dyn Observer>, run: impl FnOnce() -> T) -> T {
    /// Puts the observer before this one back, also after a panic.
    struct Before(Option<Arc<dyn Observer>>);
    impl Drop for Before {
        fn drop(&mut self) {
            OBSERVER.set(self.0.take());
        }
    }
    let _before = Before(OBSERVER.replace(Some(observer)));
    run()
}

/// The observer of this thread, if any.
#[derive(Clone, Default)]
pub(crate) struct Watched(Option<Arc<dyn Observer>>);

impl Watched {
    pub(crate) fn here() -> Self {
        Self(OBSERVER.with_borrow(Clone::clone))
    }

    /// # Errors
    /// `interrupted` if the observer says so.
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        match &self.0 {
            Some(observer) if observer.is_cancelled() => Err(interrupted()),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "watched" } else { "alone" })
    }
}

fn interrupted() -> FormatError {
    FormatError::new(ErrorCode::Interrupted, "the caller stopped the run")
        .hint("start the run again; nothing was published")
}

/// How far a whole run is, in bytes.
#[derive(Debug)]
pub struct Whole {
    watched: Watched,
    done: AtomicU64,
    total: u64,
}

impl Whole {
    pub(crate) fn new(watched: &Watched, total: u64) -> Self {
        let whole = Self {
            watched: watched.clone(),
            done: AtomicU64::new(0),
            total,
        };
        whole.tell(0);
        whole
    }

    fn tell(&self, done: u64) {
        if let Some(observer) = &self.watched.0 {
            observer.progress(done.min(self.total), self.total);
        }
    }

    /// Adds to what is done.
    ///
    /// # Errors
    /// `interrupted` if the observer ends the run.
    pub fn advance(&self, by: u64) -> Result<(), FormatError> {
        let before = self.done.fetch_add(by, Ordering::Relaxed);
        self.tell(before.saturating_add(by));
        self.watched.check()
    }

    /// Everything is done.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn finish(&self) -> Result<(), FormatError> {
        self.advance(self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Console, GlobalArgs, Progress};
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    #[derive(Default)]
    struct Heard {
        steps: Mutex<Vec<(u64, u64)>>,
        stop: AtomicBool,
    }

    impl Observer for Heard {
        fn progress(&self, done: u64, total: u64) {
            self.steps.lock().unwrap().push((done, total));
        }
        fn is_cancelled(&self) -> bool {
            self.stop.load(Ordering::Relaxed)
        }
    }

    fn progress() -> Progress {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        Progress::new(&Console::new(&GlobalArgs::default(), &mut out, &mut err))
    }

    #[test]
    fn an_observer_hears_the_bytes_of_its_own_run_and_ends_it() {
        let heard = Arc::new(Heard::default());
        let watched = observed(heard.clone(), progress);
        let alone = progress();
        let whole = watched.whole(10);
        whole.advance(4).unwrap();
        alone.whole(7).advance(7).unwrap();
        heard.stop.store(true, Ordering::Relaxed);
        let ended = whole.advance(8).unwrap_err();
        assert_eq!(ended.code, ErrorCode::Interrupted);
        assert_eq!(watched.check().unwrap_err().code, ErrorCode::Interrupted);
        alone.check().unwrap();
        // what is done never passes the total
        assert_eq!(*heard.steps.lock().unwrap(), [(0, 10), (4, 10), (10, 10)]);
    }

    #[test]
    fn the_observer_before_comes_back() {
        let (first, second) = (Arc::new(Heard::default()), Arc::new(Heard::default()));
        observed(first.clone(), || {
            observed(second.clone(), || progress().whole(1));
            progress().whole(2)
        });
        progress().whole(3);
        assert_eq!(*first.steps.lock().unwrap(), [(0, 2)]);
        assert_eq!(*second.steps.lock().unwrap(), [(0, 1)]);
    }
}
