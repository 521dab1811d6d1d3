//! One process: threads do not survive `os.fork`.
//!
//! Invariant: what needs threads of a parent process is refused in the child, and never waited for. What the parent
//! holds is not dropped in the child, because dropping it would wait for those threads.

use crate::failure::usage;
use pyo3::prelude::*;
use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};

/// The process that worked first; 0 before.
static WORKED: AtomicU32 = AtomicU32::new(0);

/// Notes that this process works.
///
/// # Errors
/// `usage` in a child of a process that worked.
pub fn enter(py: Python<'_>) -> PyResult<()> {
    let here = std::process::id();
    match WORKED.compare_exchange(0, here, Ordering::Relaxed, Ordering::Relaxed) {
        Err(first) if first != here => {
            let message = format!(
                "this process was forked from process {first}, whose threads it does not have"
            );
            let hint = "start processes with multiprocessing's method `spawn`, or use bitnet_toolchain in the child only";
            Err(usage(py, &message, Some(hint)))
        }
        _ => Ok(()),
    }
}

/// A value of this process.
#[derive(Debug)]
pub struct Owned<T> {
    value: Option<T>,
    process: u32,
}

impl<T> Owned<T> {
    /// A value of this process.
    pub fn new(value: T) -> Self {
        Self {
            value: Some(value),
            process: std::process::id(),
        }
    }

    /// The value.
    ///
    /// # Errors
    /// `usage` in another process.
    pub fn get(&self, py: Python<'_>) -> PyResult<&T> {
        match &self.value {
            Some(value) if self.process == std::process::id() => Ok(value),
            _ => {
                let message = format!(
                    "this object belongs to process {}, and a forked process does not have its threads",
                    self.process
                );
                let hint = "open the model in this process, or start processes with multiprocessing's method `spawn`";
                Err(usage(py, &message, Some(hint)))
            }
        }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            mem::forget(self.value.take());
        }
    }
}
