//! The commit that a program is built from, as a string literal.
//!
//! Invariant: the literal follows from the commit that is checked out, or from an environment variable, alone: no date, no
//! path. When the commit changes, only what uses the macro is compiled again. A build script would compile the libraries of
//! the programs again, and all tests with them.

#![forbid(unsafe_code)]

use proc_macro::TokenStream;
use std::fs;
use std::path::{Path, PathBuf};

/// The commit: of the Git repository around `crates/NAME`, else the one that `cargo package` noted, else the value of `BITNET_COMMIT` when the program is compiled,
/// else `unknown`.
#[proc_macro]
pub fn commit(_: TokenStream) -> TokenStream {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest = manifest.as_deref();
    let found = manifest.and_then(|path| checked_out(path).or_else(|| packaged(path)));
    let code = match found {
        Some(found) => found.literal(),
        None => {
            "match option_env!(\"BITNET_COMMIT\") { Some(commit) => commit, None => \"unknown\" }"
                .to_owned()
        }
    };
    code.parse().unwrap_or_default()
}

/// A commit, and the files that change when another one is checked out.
#[derive(Debug, PartialEq, Eq)]
struct CheckedOut {
    commit: String,
    files: Vec<PathBuf>,
}

impl CheckedOut {
    /// An expression whose value is the commit. The compiler remembers the files that it includes, and cargo compares their
    /// times; nothing of them gets into the program.
    fn literal(&self) -> String {
        let included = self.files.iter().filter_map(|file| file.to_str());
        let included: Vec<String> = included
            .map(|file| format!("include_bytes!({file:?})"))
            .collect();
        format!(
            "{{ const _: &[&[u8]] = &[{}]; {:?} }}",
            included.join(", "),
            self.commit
        )
    }
}

/// The commit of the repository whose folder `crates` has this package.
fn checked_out(package: &Path) -> Option<CheckedOut> {
    // a copy of the package in a folder of another repository is not built from its commit
    let crates = package
        .parent()
        .filter(|parent| parent.ends_with("crates"))?;
    let git = git_directory(&crates.parent()?.join(".git"))?;
    let common = match fs::read_to_string(git.join("commondir")) {
        Ok(path) => git.join(path.trim()),
        Err(_) => git.clone(),
    };
    let head = fs::read_to_string(git.join("HEAD")).ok()?;
    let mut files = vec![git.join("HEAD"), git.join("logs/HEAD")];
    let commit = match head.trim().strip_prefix("ref: ") {
        None => head.trim().to_owned(),
        Some(name) => {
            let (loose, packed) = (common.join(name), common.join("packed-refs"));
            let of_loose = fs::read_to_string(&loose).ok();
            let of_packed = fs::read_to_string(&packed).ok();
            let of_packed = of_packed
                .as_deref()
                .and_then(|refs| packed_commit(refs, name));
            files.extend([loose, packed]);
            of_loose.map(|text| text.trim().to_owned()).or(of_packed)?
        }
    };
    files.retain(|file| file.is_file());
    is_commit(&commit).then_some(CheckedOut { commit, files })
}

/// The commit that a package was made from, as `cargo package` writes it. It writes `dirty` for files that differed from the
/// commit.
fn packaged(package: &Path) -> Option<CheckedOut> {
    let file = package.join(".cargo_vcs_info.json");
    let text = fs::read_to_string(&file).ok()?;
    let (_, behind) = text.split_once("\"sha1\"")?;
    let commit = behind.split('"').nth(1)?.to_owned();
    let is_dirty = text.contains("\"dirty\"");
    (is_commit(&commit) && !is_dirty).then_some(CheckedOut {
        commit,
        files: vec![file],
    })
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The directory of a repository; `.git` of a worktree is a file that names it.
fn git_directory(dot_git: &Path) -> Option<PathBuf> {
    if dot_git.is_dir() {
        return Some(dot_git.to_owned());
    }
    let text = fs::read_to_string(dot_git).ok()?;
    let path = text.trim().strip_prefix("gitdir: ")?;
    Some(dot_git.parent()?.join(path))
}

/// The commit of a branch in `packed-refs`.
fn packed_commit(refs: &str, name: &str) -> Option<String> {
    let lines = refs.lines().filter_map(|line| line.split_once(' '));
    let mut of_name = lines.filter(|(_, of)| *of == name);
    of_name.next().map(|(commit, _)| commit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222";

    /// A directory of this process that is removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("commit-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn commit(&self, package: &str) -> Option<String> {
            checked_out(&self.0.join(package)).map(|found| found.commit)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_commit_is_found_wherever_git_keeps_it() {
        let folder = Folder::new("found");
        assert_eq!(folder.commit("crates/p"), None);
        folder.write(".git/HEAD", &format!("{ONE}\n"));
        assert_eq!(folder.commit("crates/p").unwrap(), ONE);
        folder.write(".git/HEAD", "ref: refs/heads/main\n");
        assert_eq!(folder.commit("crates/p"), None);
        folder.write(
            ".git/packed-refs",
            &format!("# pack-refs\n{ONE} refs/heads/other\n{TWO} refs/heads/main\n"),
        );
        assert_eq!(folder.commit("crates/p").unwrap(), TWO);
        folder.write(".git/refs/heads/main", &format!("{ONE}\n"));
        folder.write(".git/logs/HEAD", "log");
        let found = checked_out(&folder.0.join("crates/p")).unwrap();
        assert_eq!(found.commit, ONE);
        assert_eq!(found.files.len(), 4);
        let literal = found.literal();
        assert!(literal.ends_with(&format!("{ONE:?} }}")), "{literal}");
        assert_eq!(literal.matches("include_bytes!").count(), 4);
        // elsewhere in the repository lies another project
        assert_eq!(folder.commit("vendor/p"), None);
        folder.write(".git/refs/heads/main", "not a commit\n");
        assert_eq!(folder.commit("crates/p"), None);
    }

    #[test]
    fn a_package_has_the_commit_that_cargo_noted() {
        let folder = Folder::new("packaged");
        let found = |text: &str| {
            folder.write("p/.cargo_vcs_info.json", text);
            packaged(&folder.0.join("p")).map(|found| found.commit)
        };
        assert_eq!(packaged(&folder.0.join("p")), None);
        let written = |git: &str| {
            format!("{{\n  \"git\": {{\n    {git}\n  }},\n  \"path_in_vcs\": \"crates/p\"\n}}")
        };
        let clean = format!("\"sha1\": \"{ONE}\"");
        assert_eq!(found(&written(&clean)).unwrap(), ONE);
        assert_eq!(
            found(&written(&format!("{clean},\n    \"dirty\": true"))),
            None
        );
        assert_eq!(found(&written("\"sha1\": \"main\"")), None);
        assert_eq!(found("{}"), None);
    }

    #[test]
    fn a_worktree_has_its_own_commit() {
        let folder = Folder::new("worktree");
        folder.write("main/.git/worktrees/w/HEAD", "ref: refs/heads/w\n");
        folder.write("main/.git/worktrees/w/commondir", "../..\n");
        folder.write("main/.git/refs/heads/w", &format!("{TWO}\n"));
        folder.write("w/.git", "gitdir: ../main/.git/worktrees/w\n");
        assert_eq!(folder.commit("w/crates/p").unwrap(), TWO);
    }
}
