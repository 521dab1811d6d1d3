//! The files that a run reads.
//!
//! Invariant: an output that is one of them, by its path, a symbolic link or a hard link, that holds one, or
//! that would replace a directory inside an input directory, is refused whatever the flags say.

use crate::error::{ErrorCode, FormatError};
use crate::input::read_directory;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

/// What a file is, whatever its names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity(#[cfg(unix)] (u64, u64), #[cfg(not(unix))] PathBuf);

impl Identity {
    #[cfg(unix)]
    fn new(_path: &Path, found: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        Some(Self((found.dev(), found.ino())))
    }

    #[cfg(not(unix))]
    fn new(path: &Path, _found: &Metadata) -> Option<Self> {
        fs::canonicalize(path).ok().map(Self)
    }

    fn of(path: &Path) -> Option<Self> {
        Self::new(path, &fs::metadata(path).ok()?)
    }
}

#[derive(Debug, Clone)]
struct Input {
    /// As the caller spelled it.
    path: PathBuf,
    identity: Identity,
    /// Where it is: links of the path followed, and only those of its directory.
    places: Vec<PathBuf>,
    is_directory: bool,
}

/// The files and directories that a run reads. No output of the run may replace one.
#[derive(Debug, Clone, Default)]
pub struct Inputs(Vec<Input>);

/// Endings of files that are in a model's directory and that no reader of the model opens.
const NOT_READ: [&str; 4] = ["html", "xml", "md", "log"];

impl Inputs {
    /// None so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file, or a directory without what is in it. A path that leads nowhere is no input.
    pub fn add(&mut self, path: &Path) {
        let Ok(found) = fs::metadata(path) else {
            return;
        };
        let Some(identity) = Identity::new(path, &found) else {
            return;
        };
        let mut places: Vec<PathBuf> = fs::canonicalize(path).into_iter().collect();
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(parent) = fs::canonicalize(if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            })
        {
            places.push(parent.join(name));
        }
        self.0.push(Input {
            path: path.to_owned(),
            identity,
            places,
            is_directory: found.is_dir(),
        });
    }

    /// Adds the inputs of another list.
    pub fn extend(&mut self, others: Inputs) {
        self.0.extend(others.0);
    }

    /// Adds a model that may be unreadable: a file, or a directory with the files in it and in the
    /// directories in it, reports excepted.
    pub fn add_model(&mut self, path: &Path) {
        self.add(path);
        if path.is_dir() {
            self.add_files_of(path, &|name| {
                let ending = Path::new(name).extension().unwrap_or_default();
                !NOT_READ.iter().any(|e| ending.eq_ignore_ascii_case(e))
            });
        }
    }

    /// Adds the files of a directory, and of the directories in it, whose names `is_read` takes.
    pub fn add_files_of(&mut self, directory: &Path, is_read: &dyn Fn(&str) -> bool) {
        for path in entries(directory) {
            let below = if path.is_dir() {
                entries(&path)
            } else {
                vec![path]
            };
            for path in below {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if path.is_file() && is_read(&name) {
                    self.add(&path);
                }
            }
        }
    }

    /// Refuses an output that would replace an input.
    ///
    /// # Errors
    /// `usage`, naming the input.
    pub fn refuse(&self, output: &Path) -> Result<(), FormatError> {
        let Ok(found) = fs::metadata(output) else {
            // nothing is there
            return Ok(());
        };
        let refuse = |what: String| {
            Err(FormatError::new(ErrorCode::Usage, what)
                .in_file(output)
                .hint("name another output"))
        };
        let same = |path: &Path| {
            let identity = Identity::of(path);
            self.0
                .iter()
                .find(|i| Some(&i.identity) == identity.as_ref())
        };
        if let Some(input) = same(output) {
            let name = input.path.display();
            return refuse(match input.path == output {
                true => "the output is an input of this run".to_owned(),
                false => format!("the output is the same file as `{name}`, an input of this run"),
            });
        }
        if !found.is_dir() {
            return Ok(());
        }
        if let Ok(real) = fs::canonicalize(output) {
            for input in &self.0 {
                let name = input.path.display();
                if input.places.iter().any(|place| place.starts_with(&real)) {
                    return refuse(format!(
                        "the output directory holds `{name}`, an input of this run"
                    ));
                }
                let inside = || input.places.iter().any(|place| real.starts_with(place));
                if input.is_directory && inside() && !entries(output).is_empty() {
                    return refuse(format!(
                        "the output directory is inside `{name}`, an input of this run, and not empty"
                    ));
                }
            }
        }
        for path in entries(output) {
            let below = if path.is_dir() {
                entries(&path)
            } else {
                vec![path]
            };
            if let Some((path, input)) = below.iter().find_map(|p| Some((p, same(p)?))) {
                let (link, name) = (path.display(), input.path.display());
                return refuse(format!(
                    "the output directory holds `{link}`, the same file as `{name}`, an input of this run"
                ));
            }
        }
        Ok(())
    }
}

/// What is in a directory, sorted.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let found = read_directory(directory).into_iter().flatten();
    let mut paths: Vec<PathBuf> = found.flatten().map(|e| e.path()).collect();
    paths.sort();
    paths
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn an_input_is_refused_under_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("source/stage")).unwrap();
        fs::create_dir_all(at("source/empty")).unwrap();
        for name in [
            "source/model",
            "source/stage/config.json",
            "source/report.md",
            "other",
        ] {
            fs::write(at(name), name).unwrap();
        }
        symlink("source/model", at("link")).unwrap();
        symlink("source", at("directory-link")).unwrap();
        fs::hard_link(at("source/model"), at("hard")).unwrap();
        fs::create_dir(at("holds-link")).unwrap();
        fs::hard_link(at("source/model"), at("holds-link/x")).unwrap();
        let mut inputs = Inputs::new();
        inputs.add_model(&at("source"));
        for name in [
            "source/model",
            "source/stage/config.json",
            "source/../source/model",
            "link",
            "hard",
            "directory-link",
            "directory-link/model",
            "source",
            "source/stage",
            "holds-link",
            "",
            ".",
        ] {
            let refused = inputs.refuse(&at(name));
            assert_eq!(refused.unwrap_err().code, ErrorCode::Usage, "{name}");
        }
        for name in [
            "source/new",
            "source/empty",
            "source/report.md",
            "other",
            "absent",
        ] {
            inputs.refuse(&at(name)).unwrap();
        }
    }
}
