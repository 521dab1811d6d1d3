//! Models that are named on the command line, wherever they are.
//!
//! Invariant: one progress bar shows what is transferred, and no bar is left when the paths are there.

use crate::console::Console;
use crate::failure::Failure;
use crate::progress::{Bar, Progress};
use bitnet_remote::{Located, Location, Pushed, Reads, Repository, StoreOutput, Upload, Watch};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The bar of a transfer.
struct Shown {
    progress: Progress,
    bar: Mutex<Option<Bar>>,
}

impl Shown {
    fn new(console: &Console<'_>) -> Self {
        Self {
            progress: Progress::new(console),
            bar: Mutex::default(),
        }
    }
}

impl Watch for Shown {
    fn begin(&self, name: &str, total: u64) {
        let bar = self.progress.bytes(name, total);
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar);
    }

    fn advance(&self, bytes: u64) {
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = &*bar {
            bar.advance(bytes);
        }
    }

    fn end(&self) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = bar.take() {
            bar.finish();
        }
    }
}

/// Makes a path of a model that is named on the command line. The path is good while the result lives.
///
/// # Errors
/// As [`bitnet_remote::locate`].
pub fn locate(
    argument: &Path,
    reads: Reads,
    console: &mut Console<'_>,
) -> Result<Located, Failure> {
    let shown = Shown::new(console);
    let located = bitnet_remote::locate(argument, reads, &shown);
    shown.progress.clear();
    let located = located?;
    if let Some(note) = located.note() {
        console.warn(note)?;
    }
    Ok(located)
}

/// Uploads files to a repository of a Hub as one commit.
///
/// # Errors
/// As [`bitnet_remote::push`].
pub fn push(
    repository: &Repository,
    upload: &Upload,
    console: &mut Console<'_>,
) -> Result<Pushed, Failure> {
    let shown = Shown::new(console);
    let pushed = bitnet_remote::push(repository, upload, &shown);
    shown.progress.clear();
    Ok(pushed?)
}

/// Uploads an output to its object store.
///
/// # Errors
/// As [`StoreOutput::publish`].
pub fn publish(
    output: &StoreOutput,
    files: &[PathBuf],
    replace: bool,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let shown = Shown::new(console);
    let published = output.publish(files, replace, &shown);
    shown.progress.clear();
    Ok(published?)
}

/// Replaces arguments that name models by paths, which are good while the result lives.
///
/// # Errors
/// As [`locate`].
pub fn locate_all<'a>(
    arguments: impl IntoIterator<Item = &'a mut PathBuf>,
    reads: Reads,
    console: &mut Console<'_>,
) -> Result<Vec<Located>, Failure> {
    let mut held = Vec::new();
    for argument in arguments {
        if Location::is_remote(argument) {
            let located = locate(argument, reads, console)?;
            *argument = located.path().to_owned();
            held.push(located);
        }
    }
    Ok(held)
}
