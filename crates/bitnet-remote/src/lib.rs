//! Checkpoints that are not on this disk: the Hugging Face Hub, HTTP servers, object stores.
//!
//! Invariant: asynchronous code does not leave this crate. Tokens, keys and the query strings of signed URLs are in
//! no name, error or report.

#![forbid(unsafe_code)]

pub mod answers;
mod cached;
mod location;
#[cfg(feature = "net")]
mod net;
mod objects;
mod output;
mod settings;
mod stored;

pub use cached::{CachedFile, cached_file, check_cached};
pub use location::{Location, Repository};
pub use objects::{read_object, write_object};
pub use output::{Carried, StoreOutput};
pub use settings::{Secret, Settings};
pub use stored::Stored;

use bitnet_formats::{FormatError, Mount, ScratchDirectory};
use std::path::{Path, PathBuf};

/// How much of the weights is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// All of them, more than once or in any order: a Hub's files are downloaded into the cache.
    Whole,
    /// All of them about once, in ranges; nothing is stored.
    Ranges,
    /// Headers.
    Headers,
}

/// Hears how far a transfer is.
pub trait Watch: Sync {
    /// A transfer of so many bytes begins.
    fn begin(&self, name: &str, total: u64);
    /// So many more bytes are there.
    fn advance(&self, bytes: u64);
    /// The transfer has ended.
    fn end(&self);
    /// Whether the transfer may go on. What came already is kept for the next one.
    ///
    /// # Errors
    /// `interrupted` if it may not.
    fn check(&self) -> Result<(), FormatError> {
        Ok(())
    }
}

/// Nobody hears.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoWatch;

impl Watch for NoWatch {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
}

/// A path that stands for a model, wherever it is. The path is good until this is dropped.
#[derive(Debug)]
pub struct Located {
    path: PathBuf,
    note: Option<String>,
    // before the scratch directory, which it points into
    _mount: Option<Mount>,
    _scratch: Option<ScratchDirectory>,
}

impl Located {
    /// A path of this disk.
    pub fn plain(path: PathBuf) -> Self {
        Self {
            path,
            note: None,
            _mount: None,
            _scratch: None,
        }
    }

    /// What readers open.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the user is to be warned of.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }
}

/// Makes a path of an argument: the path itself, or one that stands for a remote model.
///
/// # Errors
/// `usage` for what is no location; `network`, `access-denied`, `not-found`, `bad-response`, `offline`, `checksum`,
/// `no-space`, `unknown-container`.
pub fn locate(argument: &Path, reads: Reads, watch: &dyn Watch) -> Result<Located, FormatError> {
    match Location::parse(argument)? {
        None => Ok(Located::plain(argument.to_owned())),
        Some(Location::File(path)) => Ok(Located::plain(path)),
        Some(location) => fetch(&location, reads, watch),
    }
}

#[cfg(feature = "net")]
fn fetch(location: &Location, reads: Reads, watch: &dyn Watch) -> Result<Located, FormatError> {
    let here = |e: FormatError| e.in_file(Path::new(&location.to_string()));
    net::locate::locate(location, reads, &Settings::from_env(), watch).map_err(here)
}

#[cfg(not(feature = "net"))]
fn fetch(location: &Location, _: Reads, _: &dyn Watch) -> Result<Located, FormatError> {
    let message = "this build reads models of this disk only";
    Err(FormatError::new(bitnet_formats::ErrorCode::Usage, message)
        .in_file(Path::new(&location.to_string()))
        .hint("build the program with the feature `remote`, or download the model first"))
}

/// A small file of a commit, from the cache or the Hub.
///
/// # Errors
/// As [`locate`].
pub fn read_text(repository: &str, commit: &str, name: &str) -> Result<String, FormatError> {
    let repository = Repository {
        id: repository.to_owned(),
        revision: Some(commit.to_owned()),
        path: None,
    };
    #[cfg(feature = "net")]
    {
        let bytes = net::locate::small(&repository, commit, name, &Settings::from_env())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
    #[cfg(not(feature = "net"))]
    {
        let _ = (commit, name);
        Err(not_compiled(&repository.to_string()))
    }
}

/// What is uploaded to a repository.
#[derive(Debug, Clone, Default)]
pub struct Upload {
    /// Names in the repository, and the files.
    pub files: Vec<(String, PathBuf)>,
    /// Names in the repository, and the content of small files that are on no disk.
    pub texts: Vec<(String, String)>,
    /// The message of the commit.
    pub message: String,
    /// Whether the repository, if it has to be created, is a private one.
    pub private: bool,
}

/// A commit that was made.
#[derive(Debug, Clone)]
pub struct Pushed {
    /// Its id.
    pub commit: String,
    /// The page of the repository.
    pub url: String,
    /// Bytes of large files that the server did not have before.
    pub bytes_sent: u64,
}

/// Uploads files to a repository of a Hub as one commit; creates repository and branch if they are not there.
///
/// # Errors
/// `access-denied`, `network`, `bad-response`, `offline`, `input-changed`.
pub fn push(
    repository: &Repository,
    upload: &Upload,
    watch: &dyn Watch,
) -> Result<Pushed, FormatError> {
    #[cfg(feature = "net")]
    {
        let settings = Settings::from_env();
        if settings.offline {
            let message = "HF_HUB_OFFLINE is set";
            return Err(
                FormatError::new(bitnet_formats::ErrorCode::Offline, message)
                    .in_file(Path::new(&repository.to_string()))
                    .hint("unset HF_HUB_OFFLINE to upload"),
            );
        }
        let hub = net::hub::Hub::new(&settings, repository)?;
        net::block_on(net::push::push(&hub, upload, watch))
    }
    #[cfg(not(feature = "net"))]
    {
        let _ = (upload, watch);
        Err(not_compiled(&repository.to_string()))
    }
}

#[cfg(not(feature = "net"))]
pub(crate) fn not_compiled(place: &str) -> FormatError {
    let message = "this build knows no servers";
    FormatError::new(bitnet_formats::ErrorCode::Usage, message)
        .in_file(Path::new(place))
        .hint("build the program with the feature `remote`")
}
