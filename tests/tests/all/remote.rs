//! Models that are not on this disk, read from servers on the loopback interface and written to them.
//!
//! Invariant: a conversion from a server gives the bytes of a conversion from this disk, whatever goes wrong on the way,
//! or an error of `formats/report.md` and nothing. No token and no signed URL is in any output, and no token is sent
//! anywhere but to the Hub.

mod faults;
mod hub;
mod push;
mod python;
mod store_jobs;
mod stores;
mod streams;

use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::servers::hub::{Hub, SIGNATURE};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CONVERT: &str = env!("CARGO_BIN_EXE_convert_under_test");
const VERIFY: &str = env!("CARGO_BIN_EXE_verify_under_test");
const RUN: &str = env!("CARGO_BIN_EXE_run_under_test");

/// A token that may be in no output.
const TOKEN: &str = "hf_test";

/// The variables of one user.
struct User {
    home: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl User {
    fn of(hub: &Hub) -> Self {
        Self::with(&[("HF_ENDPOINT", &hub.url())])
    }

    fn with(variables: &[(&str, &str)]) -> Self {
        let variables = variables
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Self {
            home: tempfile::tempdir().unwrap(),
            variables: variables.collect(),
        }
    }

    /// The same with a variable set.
    fn and(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn cache(&self) -> PathBuf {
        self.home.path().join("hf/hub")
    }

    fn repository(&self) -> PathBuf {
        self.cache().join("models--o--n")
    }

    /// Starts a program as this user.
    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars() {
            let prefixes = ["HF_", "HUGGING", "AWS_", "TRANSFORMERS_", "XDG_"];
            let is_proxy = name.to_ascii_lowercase().ends_with("_proxy");
            if is_proxy || prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", self.home.path())
            .env("HF_HOME", self.home.path().join("hf"))
            .env("TMPDIR", self.temporary())
            .envs(self.variables.iter().map(|(k, v)| (k, v)))
            .args(words);
        command
    }

    /// Where programs keep what they need for a moment.
    fn temporary(&self) -> PathBuf {
        let path = self.home.path().join("tmp");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Runs a program and looks for secrets in what it says.
    fn run(&self, program: &str, words: &[&str]) -> Ran {
        let output: Output = self.command(program, words).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let ran = Ran {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        };
        for secret in [TOKEN, SIGNATURE, "5ec2e7516"] {
            assert!(
                !ran.stdout.contains(secret) && !ran.stderr.contains(secret),
                "{ran:?}"
            );
        }
        // nothing is left behind
        let left: Vec<_> = std::fs::read_dir(self.temporary())
            .unwrap()
            .flatten()
            .collect();
        assert!(left.is_empty(), "{left:?}");
        ran
    }

    /// Runs a program that has to succeed.
    fn ok(&self, program: &str, words: &[&str]) -> Ran {
        let ran = self.run(program, words);
        assert_eq!(ran.code, Some(0), "{words:?}: {ran:?}");
        ran
    }

    /// Runs a program that has to fail, with `--json`; the word of its error.
    fn fails(&self, program: &str, words: &[&str]) -> (String, String) {
        let words: Vec<&str> = words.iter().copied().chain(["--json"]).collect();
        let ran = self.run(program, &words);
        assert_eq!(ran.code, Some(2), "{words:?}: {ran:?}");
        let error = &ran.json()["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        assert!(!text("hint").is_empty(), "{ran:?}");
        (
            text("code"),
            format!("{} hint: {}", text("message"), text("hint")),
        )
    }

    /// Converts to GGUF; the bytes.
    fn convert(&self, source: &str, more: &[&str]) -> Vec<u8> {
        let output = self.home.path().join("out.gguf");
        let mut words = vec![source, "-o", output.to_str().unwrap(), "--force", "--quiet"];
        words.extend(more);
        self.ok(CONVERT, &words);
        std::fs::read(output).unwrap()
    }
}

#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A family whose conversion is quick.
const FIXTURE: &str = "falcon-e";

/// A Hub with a checkpoint as `o/n`, and its commit.
fn hub() -> (Hub, String) {
    let hub = Hub::start();
    let commit = hub.commit_directory("o/n", &checkpoint(FIXTURE));
    (hub, commit)
}

/// A network of one layer with large tables: about 41 MB.
fn large(directory: &Path) -> PathBuf {
    let path = directory.join("large");
    std::fs::create_dir_all(&path).unwrap();
    bitnet_tests::packed_model::write(&path, 40_000);
    path
}

/// What a conversion of a directory of this disk gives.
fn local(directory: &Path, more: &[&str]) -> Vec<u8> {
    User::with(&[]).convert(directory.to_str().unwrap(), more)
}
