//! Programs whose file calls fail: `tests/faults/shim.c`, compiled and loaded.
//!
//! Invariant: a fault hits calls on files below one directory and nothing else; what was hit is in the record.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Files by their paths below a directory; a directory without files ends in `/`.
pub type Tree = BTreeMap<String, Vec<u8>>;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// An error of the disk, in calls that read or change something.
    Eio,
    /// An error of the disk, in calls that look at what is there (`stat`, `access`, `readlink`).
    Look,
    /// No space, once.
    Enospc,
    /// No space, from a call on.
    Full,
    /// A signal arrived; the call is to be repeated.
    Eintr,
    /// A read or write of half of the bytes.
    Short,
    /// The process is killed instead of the call.
    Kill,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 7] = [
        Self::Eio,
        Self::Look,
        Self::Enospc,
        Self::Full,
        Self::Eintr,
        Self::Short,
        Self::Kill,
    ];

    /// As the shim calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eio => "eio",
            Self::Look => "look",
            Self::Enospc => "enospc",
            Self::Full => "full",
            Self::Eintr => "eintr",
            Self::Short => "short",
            Self::Kill => "kill",
        }
    }

    /// Whether a program does not notice it.
    pub fn is_repeated(self) -> bool {
        matches!(self, Self::Eintr | Self::Short)
    }
}

/// A call in the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// `open`, `write`, …; in records of changes also `create` and `unnamed`, files that are new.
    pub name: String,
    /// What it returned; in records of faults its number.
    pub result: i64,
    /// The file, and whether it is a directory.
    pub inode: u64,
    /// Where a write began, or the new length.
    pub offset: u64,
    /// Flags of a rename or of reserved space.
    pub flags: u64,
    /// The paths.
    pub paths: [PathBuf; 2],
    /// The bytes of a write.
    pub data: Vec<u8>,
}

/// The shim, compiled.
#[derive(Debug)]
pub struct Shim {
    directory: tempfile::TempDir,
}

impl Shim {
    /// Compiles the shim; `None` where the kernel refuses its filter.
    ///
    /// # Panics
    /// If there is no C compiler.
    pub fn build() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let source = crate::fixtures::repository().join("tests/faults/shim.c");
        let library = directory.path().join("shim.so");
        let made = Command::new("cc")
            .args([
                "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o",
            ])
            .args([&library, &source])
            .output()
            .expect("a C compiler called cc");
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let shim = Self { directory };
        let mut command = Command::new("true");
        shim.load(
            &mut command,
            Path::new("/nowhere"),
            &shim.log("probe"),
            "eio",
            0,
        );
        let probe = command.output().expect("started");
        match probe.status.code() {
            Some(0) => Some(shim),
            _ => {
                let said = String::from_utf8_lossy(&probe.stderr);
                assert!(said.contains("the kernel refuses the filter"), "{said}");
                crate::fixtures::skipped("the kernel refuses filters of system calls");
                None
            }
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn load(&self, command: &mut Command, root: &Path, log: &Path, mode: &str, at: u64) {
        command
            .env("LD_PRELOAD", self.directory.path().join("shim.so"))
            .env("BITNET_FAULT_ROOT", root)
            .env("BITNET_FAULT_LOG", log)
            .env("BITNET_FAULT_MODE", mode)
            .env("BITNET_FAULT_AT", at.to_string());
    }

    /// Runs a program with a fault at a call, and returns the call if it was made. `who` tells runs at once apart.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn run(
        &self,
        mut command: Command,
        root: &Path,
        who: &str,
        fault: Fault,
        at: u64,
    ) -> (Output, Option<Call>) {
        let log = self.log(who);
        let _ = fs::remove_file(&log);
        self.load(&mut command, root, &log, fault.name(), at);
        let output = command.output().expect("started");
        (output, calls(&log).into_iter().next())
    }

    /// The calls of a program that a fault can hit.
    ///
    /// # Panics
    /// If the program cannot be started or fails.
    pub fn count(&self, mut command: Command, root: &Path, who: &str, fault: Fault) -> Vec<Call> {
        let log = self.log(who);
        let _ = fs::remove_file(&log);
        self.load(&mut command, root, &log, fault.name(), 0);
        succeed(&mut command);
        calls(&log)
    }

    /// Everything that a program changes below a directory, in order.
    ///
    /// # Panics
    /// If the program cannot be started or fails, or makes a call that the record does not know.
    pub fn record(&self, mut command: Command, root: &Path) -> Vec<Call> {
        let log = self.log("record");
        let _ = fs::remove_file(&log);
        self.load(&mut command, root, &log, "record", 0);
        succeed(&mut command);
        let calls = calls(&log);
        let unknown = calls.iter().find(|call| call.name == "unknown");
        assert!(unknown.is_none(), "{unknown:?}");
        calls
    }
}

/// Runs a program that has to succeed.
///
/// # Panics
/// If it does not.
pub fn succeed(command: &mut Command) {
    let output = command.output().expect("started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {:?} {said}",
        output.status
    );
}

fn calls(log: &Path) -> Vec<Call> {
    let bytes = fs::read(log).unwrap_or_default();
    let mut rest = bytes.as_slice();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|b| *b == b'\n').expect("a line");
        let line = std::str::from_utf8(&rest[..end]).expect("text");
        rest = &rest[end + 1..];
        let words: Vec<&str> = line.split(' ').collect();
        let number = |n: usize| words[n].parse::<u64>().expect("a number");
        let mut take = |n: usize| {
            let (now, later) = rest.split_at(usize::try_from(number(n)).expect("a length"));
            rest = later;
            now.to_vec()
        };
        let path = |bytes: Vec<u8>| PathBuf::from(String::from_utf8(bytes).expect("text"));
        let paths = [path(take(5)), path(take(6))];
        let data = take(7);
        all.push(Call {
            name: words[0].to_owned(),
            result: words[1].parse().expect("a number"),
            inode: number(2),
            offset: number(3),
            flags: number(4),
            paths,
            data,
        });
    }
    all
}

/// The files below a directory.
///
/// # Panics
/// If they cannot be read.
pub fn tree(directory: &Path) -> Tree {
    fn add(tree: &mut Tree, directory: &Path, prefix: &str) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let entry = entry.expect("an entry");
            let name = format!("{prefix}{}", entry.file_name().to_str().expect("text"));
            if entry.file_type().expect("a type").is_dir() {
                let before = tree.len();
                add(tree, &entry.path(), &format!("{name}/"));
                if tree.len() == before {
                    tree.insert(format!("{name}/"), Vec::new());
                }
            } else {
                tree.insert(name, fs::read(entry.path()).expect("readable"));
            }
        }
    }
    let mut all = Tree::new();
    add(&mut all, directory, "");
    all
}

/// Makes a directory hold these files and nothing else.
///
/// # Panics
/// If they cannot be written.
pub fn plant(directory: &Path, files: &Tree) {
    let _ = fs::remove_dir_all(directory);
    fs::create_dir_all(directory).expect("a directory");
    for (name, bytes) in files {
        let path = directory.join(name);
        if name.ends_with('/') {
            fs::create_dir_all(&path).expect("a directory");
            continue;
        }
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, bytes).expect("written");
    }
}

/// The files of a tree without what has a name that begins with a dot.
pub fn visible(tree: &Tree) -> Tree {
    let is_hidden = |name: &str| name.split('/').any(|part| part.starts_with('.'));
    tree.iter()
        .filter(|(name, _)| !is_hidden(name))
        .map(|(name, bytes)| (name.clone(), bytes.clone()))
        .collect()
}
