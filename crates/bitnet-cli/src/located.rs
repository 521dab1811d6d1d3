//! Models that are named on the command line, wherever they are.
//!
//! Invariant: one progress bar shows what is transferred, and no bar is left when the paths are there.

use crate::console::Console;
use crate::failure::Failure;
use crate::progress::{Bar, Progress};
use crate::suggest::did_you_mean;
use bitnet_formats::FormatError;
use bitnet_remote::{Located, Location, Pushed, Reads, Repository, StoreOutput, Upload, Watch};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Names of a directory that are compared with one that is missing.
const MOST_BESIDE: usize = 1000;

/// The bar of a transfer.
#[derive(Debug)]
pub struct Shown {
    progress: Progress,
    bar: Mutex<Option<Bar>>,
}

impl Shown {
    /// A bar among those of a run.
    pub fn of(progress: &Progress) -> Self {
        Self {
            progress: progress.clone(),
            bar: Mutex::default(),
        }
    }

    fn new(console: &Console<'_>) -> Self {
        Self::of(&Progress::new(console))
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

    fn check(&self) -> Result<(), FormatError> {
        self.progress.check()
    }
}

/// Refuses a model that is not there, with what was probably meant.
fn exists(path: &Path) -> Result<(), Failure> {
    // a part of a split file is named by the error of its set
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match path.symlink_metadata() {
        Ok(_) => return Ok(()),
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(FormatError::io(path, &e).into());
        }
        Err(_) if name.contains("-of-") => return Ok(()),
        Err(_) => {}
    }
    let missing = io::Error::from(io::ErrorKind::NotFound);
    let failure = Failure::from(FormatError::io(path, &missing));
    let text = path.to_string_lossy();
    if let Some(repository) = text.strip_prefix("hf:") {
        return Err(failure.hint(format!("write hf://{}", repository.trim_start_matches('/'))));
    }
    let first = path.components().next();
    let is_there = first.is_some_and(|first| Path::new(first.as_os_str()).exists());
    if path.components().count() > 1 && path.is_relative() && !is_there {
        // OWNER/NAME or OWNER/NAME/FILE: the error of opening it names the repository
        return Ok(());
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let beside = std::fs::read_dir(parent.unwrap_or(Path::new(".")))
        .into_iter()
        .flatten();
    let names = beside
        .take(MOST_BESIDE)
        .flatten()
        .map(|entry| entry.file_name());
    let mut names: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    let failure = match did_you_mean(&name, names.iter().map(String::as_str)) {
        Some(meant) => failure.hint(meant),
        None => failure,
    };
    Err(failure.hint("give a file, a checkpoint directory, or a repository of the Hugging Face Hub: hf://OWNER/NAME"))
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
    if !Location::is_remote(argument) {
        exists(argument)?;
    }
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
        } else {
            exists(argument)?;
        }
    }
    Ok(held)
}
