//! Where the test data lies: fixtures, vectors, and the repository itself.
//!
//! Invariant: fixtures lie in `tests/fixtures/<family>/{checkpoint,golden}`, or in the folder that
//! `BITNET_FIXTURES` names, in the same layout; vectors in `formats/vectors`, or in `BITNET_VECTORS`.

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_formats::FormatError;
use bitnet_verify::Golden;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// One family's directories.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// Directory name, for reports only.
    pub name: String,
    /// The Hugging Face checkpoint; of one without weights the GGUF file beside it.
    pub checkpoint: PathBuf,
    /// What Hugging Face transformers computed for it.
    pub golden: PathBuf,
}

impl Fixture {
    fn manifest(&self) -> Value {
        read_json(&self.golden.join("manifest.json"))
    }

    /// Whether this is an embedding model (no logits).
    pub fn is_embedding(&self) -> bool {
        !self.manifest()["pooling"].is_null()
    }

    /// Whether the reference had to be told that the checkpoint is ternary-trained.
    pub fn ternary_trained(&self) -> bool {
        !self.manifest()["mapping"].is_null()
    }

    /// Opens the checkpoint as the reference did.
    ///
    /// # Errors
    /// Those of the checkpoint.
    pub fn open(&self) -> Result<Checkpoint, FormatError> {
        let options = OpenOptions {
            ternary_trained: self.ternary_trained(),
            ..OpenOptions::default()
        };
        Checkpoint::open(&self.checkpoint, &options)
    }

    /// Reads the golden files of a model that is no embedding model.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn golden(&self) -> Golden {
        Golden::read(&self.golden).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// The repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `BITNET_FIXTURES`, else the fixtures of this repository.
pub fn fixtures_dir() -> PathBuf {
    named_or("BITNET_FIXTURES", "tests/fixtures")
}

/// `BITNET_VECTORS`, else the vectors of this repository.
pub fn vectors_dir() -> PathBuf {
    named_or("BITNET_VECTORS", "formats/vectors")
}

fn named_or(variable: &str, path: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| repository().join(path), PathBuf::from)
}

/// Whether the fixtures are somebody else's.
pub fn fixtures_are_foreign() -> bool {
    std::env::var_os("BITNET_FIXTURES").is_some()
}

/// Every fixture of [`fixtures_dir`], sorted by name.
///
/// # Panics
/// If the folder cannot be read.
pub fn fixtures() -> Vec<Fixture> {
    fixtures_in(&fixtures_dir())
}

/// Fixtures of this repository whose weights are rotated.
///
/// # Panics
/// As [`fixtures`].
pub fn rotated_fixtures() -> Vec<Fixture> {
    fixtures_in(&repository().join("tests/fixtures/rotated"))
}

fn fixtures_in(dir: &Path) -> Vec<Fixture> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut all: Vec<Fixture> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let (checkpoint, golden) = (path.join("checkpoint"), path.join("golden"));
            let name = path.file_name()?.to_string_lossy().into_owned();
            let checkpoint = match has_weights(&checkpoint) {
                true => checkpoint,
                false => gguf_beside(&path).unwrap_or(checkpoint),
            };
            (checkpoint.exists() && golden.is_dir()).then_some(Fixture {
                name,
                checkpoint,
                golden,
            })
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// Whether a directory holds weights.
fn has_weights(directory: &Path) -> bool {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.any(|name| {
        [".safetensors", ".bin", ".pt"]
            .iter()
            .any(|end| name.ends_with(end))
    })
}

/// The first GGUF file in a directory.
fn gguf_beside(directory: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?.flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "gguf"))
        .min()
}

/// The fixture of this name. `None` says so ([`skipped`]): the fixtures are somebody else's, and have none of this name.
///
/// # Panics
/// If a fixture of this repository is absent.
pub fn fixture(name: &str) -> Option<Fixture> {
    let found = fixtures().into_iter().find(|f| f.name == name);
    if found.is_none() {
        assert!(fixtures_are_foreign(), "tests/fixtures has no {name}");
        skipped(format_args!("{name} is not among the fixtures"));
    }
    found
}

/// Whether the fixtures are somebody else's, where a test is about those of this repository; says so ([`skipped`]).
pub fn skips_foreign_fixtures() -> bool {
    if fixtures_are_foreign() {
        skipped("BITNET_FIXTURES is set, and the test is about the fixtures of this repository");
    }
    fixtures_are_foreign()
}

/// Says that the test that runs leaves something out: a line `skipped: TEST: WHAT` on the process's own stderr, which the
/// test harness does not capture. `scripts/check` lists these lines at its end.
pub fn skipped(what: impl std::fmt::Display) {
    use std::io::Write;
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // a closed stderr is nothing that a test is about
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {what}");
}

/// The checkpoint of the fixture of this name, whether or not it is there.
pub fn checkpoint(name: &str) -> PathBuf {
    fixtures_dir().join(name).join("checkpoint")
}

/// A JSON file.
///
/// # Panics
/// If it cannot be read or is not JSON.
pub fn read_json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
