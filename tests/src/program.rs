//! Running a program inside the test process, its output caught.

use bitnet_cli::ExitStatus;
use serde_json::Value;
use std::ffi::OsString;
use std::io::Write;

/// `bitnet_convert::run` and its siblings.
pub type Program = fn(std::vec::IntoIter<OsString>, &mut dyn Write, &mut dyn Write) -> ExitStatus;

/// What a program left.
#[derive(Debug, Clone)]
pub struct Ran {
    /// How it ended.
    pub status: ExitStatus,
    /// Its data.
    pub stdout: String,
    /// Its talk.
    pub stderr: String,
}

/// Runs a program with these words behind its name.
///
/// # Panics
/// If it prints what is not UTF-8.
pub fn run(program: Program, words: impl IntoIterator<Item = impl Into<OsString>>) -> Ran {
    let mut args = vec![OsString::from("program-under-test")];
    args.extend(words.into_iter().map(Into::into));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = program(args.into_iter(), &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran {
        status,
        stdout: text(out),
        stderr: text(err),
    }
}

impl Ran {
    /// The one object that `--json` promises on stdout.
    ///
    /// # Panics
    /// If stdout is anything else.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}
