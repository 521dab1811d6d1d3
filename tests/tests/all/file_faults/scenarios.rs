//! The programs that run with faults, and what may be there afterwards.
//!
//! Invariant: what counts as the old and the new output is what undisturbed runs of the same programs in the same place left.

use bitnet_formats::{Limits, OutputLock};
use bitnet_tests::file_faults::{Call, Fault, Tree, plant, succeed, tree, visible};
use bitnet_tests::fixtures::{checkpoint, repository};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const OLD: &str = "falcon-e-prequantized";
const NEW: &str = "falcon-e";
const SPLIT: [&str; 2] = ["--split-max-size", "200K"];

/// Whether every call is tried.
pub fn all() -> bool {
    std::env::var_os("BITNET_FAULTS").is_some_and(|value| value == "all")
}

/// A program that writes below `ROOT/out` and reads below `ROOT/src`.
pub struct Scenario {
    pub name: &'static str,
    /// Writes the inputs and the older output.
    prepare: fn(&Path),
    command: fn(&Path) -> Command,
    /// The output whose lock the next writer takes, if killed programs leave more than one file.
    locked: Option<&'static str>,
    /// Files that are no output and stay.
    kept: &'static [&'static str],
    /// What may be there besides the old and the new output, after an error.
    also: fn(&Tree, &Tree, &Tree) -> bool,
}

fn nothing_else(_found: &Tree, _old: &Tree, _new: &Tree) -> bool {
    false
}

fn convert(root: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_convert_under_test"));
    command.args(words).arg("-j1").current_dir(root);
    command
}

fn copy(from: &Path, to: &Path) {
    plant(to, &tree(from));
}

fn at(root: &Path, name: &str) -> String {
    root.join(name).to_str().unwrap().to_owned()
}

fn conversion(root: &Path, source: &str, output: &str, more: &[&str]) -> Command {
    let (source, output) = (at(root, source), at(root, output));
    let words = [
        &[&*source, "-o", &*output, "--ternary-trained", "--quiet"],
        more,
    ]
    .concat();
    convert(root, &words)
}

fn sources(root: &Path) {
    copy(&checkpoint(NEW), &root.join("src/model"));
    copy(&checkpoint(OLD), &root.join("src/older"));
    fs::create_dir_all(root.join("out")).unwrap();
}

const KEY: &str = "tests/keys/signer";

fn key() -> String {
    repository()
        .join(KEY)
        .canonicalize()
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

fn prepared(root: &Path, output: &str, more: &[&str]) {
    sources(root);
    succeed(&mut conversion(root, "src/older", output, more));
}

fn planned(root: &Path) {
    prepared(root, "out/m.gguf", &[]);
    let (source, output, plan) = (
        at(root, "src/model"),
        at(root, "out/m.gguf"),
        at(root, "src/plan.json"),
    );
    let words = [
        "plan",
        &source,
        "-o",
        &output,
        "--plan",
        &plan,
        "--to",
        "gguf-i2_s",
        "--ternary-trained",
    ];
    succeed(&mut convert(root, &words));
}

fn with_jobs(root: &Path) {
    planned(root);
    succeed(&mut convert(
        root,
        &["job", &at(root, "src/plan.json"), "--index", "0"],
    ));
}

fn model_and_texts(root: &Path) {
    sources(root);
    succeed(&mut conversion(root, "src/model", "src/m.gguf", &[]));
    fs::write(
        root.join("src/prompts.json"),
        r#"{"one": {"ids": [1, 2, 3]}}"#,
    )
    .unwrap();
    let request = "{\"prompt\": \"a b\", \"max_tokens\": 2, \"temperature\": 0}\n";
    fs::write(root.join("src/requests.jsonl"), request.repeat(2)).unwrap();
}

fn runner(root: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_run_under_test"));
    command
        .args(words)
        .args(["-j1", "--quiet"])
        .current_dir(root);
    command
}

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "GGUF, new",
        prepare: sources,
        command: |root| conversion(root, "src/model", "out/m.gguf", &[]),
        locked: Some("out/m.gguf"),
        kept: &[],
        // a certificate without its file is nothing that a reader opens
        also: |found, _, new| {
            found
                .iter()
                .all(|(name, bytes)| name.ends_with(".json") && new.get(name) == Some(bytes))
        },
    },
    Scenario {
        name: "GGUF over an older one",
        prepare: |root| prepared(root, "out/m.gguf", &[]),
        command: |root| conversion(root, "src/model", "out/m.gguf", &["--force"]),
        locked: Some("out/m.gguf"),
        kept: &[],
        also: nothing_else,
    },
    Scenario {
        name: "signed GGUF over a signed one",
        prepare: |root| prepared(root, "out/m.gguf", &["--sign", &key()]),
        command: |root| {
            conversion(
                root,
                "src/model",
                "out/m.gguf",
                &["--force", "--sign", &key()],
            )
        },
        locked: Some("out/m.gguf"),
        kept: &[],
        also: nothing_else,
    },
    Scenario {
        name: "split GGUF over an older one",
        prepare: |root| prepared(root, "out/m.gguf", &SPLIT),
        command: |root| {
            conversion(
                root,
                "src/model",
                "out/m.gguf",
                &[&SPLIT[..], &["--force"]].concat(),
            )
        },
        locked: Some("out/m.gguf"),
        kept: &[],
        also: nothing_else,
    },
    Scenario {
        name: "split GGUF over a whole one",
        prepare: |root| prepared(root, "out/m.gguf", &[]),
        command: |root| {
            conversion(
                root,
                "src/model",
                "out/m.gguf",
                &[&SPLIT[..], &["--force"]].concat(),
            )
        },
        locked: Some("out/m.gguf"),
        kept: &[],
        also: nothing_else,
    },
    Scenario {
        name: "directory over an older one",
        prepare: |root| {
            prepared(root, "out/m", &[]);
            let templates = root.join("src/model/additional_chat_templates");
            fs::create_dir(&templates).unwrap();
            fs::write(templates.join("short.jinja"), "{{ messages }}").unwrap();
        },
        command: |root| conversion(root, "src/model", "out/m", &["--force"]),
        locked: Some("out/m"),
        kept: &[],
        also: nothing_else,
    },
    Scenario {
        name: "GGUF, reading by range",
        prepare: |root| prepared(root, "out/m.gguf", &[]),
        command: |root| conversion(root, "src/model", "out/m.gguf", &["--force", "--stream"]),
        locked: Some("out/m.gguf"),
        kept: &[],
        also: nothing_else,
    },
    Scenario {
        name: "plan",
        prepare: |root| {
            sources(root);
            fs::write(root.join("out/plan.json"), "{}").unwrap();
        },
        command: |root| {
            let (source, output, plan) = (
                at(root, "src/model"),
                at(root, "out/m.gguf"),
                at(root, "out/plan.json"),
            );
            let words = [
                "plan",
                &source,
                "-o",
                &output,
                "--plan",
                &plan,
                "--to",
                "gguf-i2_s",
            ];
            convert(
                root,
                &[&words[..], &["--ternary-trained", "--force"]].concat(),
            )
        },
        locked: None,
        kept: &[],
        also: nothing_else,
    },
    Scenario {
        name: "job",
        prepare: planned,
        command: |root| convert(root, &["job", &at(root, "src/plan.json"), "--index", "0"]),
        locked: None,
        kept: &[],
        // the directory of the parts, and a part that has no certificate yet
        also: |found, _, new| {
            let same = found
                .iter()
                .all(|(name, bytes)| name.ends_with('/') || new.get(name) == Some(bytes));
            let part = "m.gguf.parts/job-00000.part";
            same && (!found.contains_key("m.gguf.parts/job-00000.json") || found.contains_key(part))
        },
    },
    Scenario {
        name: "finish",
        prepare: with_jobs,
        command: |root| {
            convert(
                root,
                &[
                    "finish",
                    &at(root, "src/plan.json"),
                    "--force",
                    "--remove-parts",
                ],
            )
        },
        locked: Some("out/m.gguf"),
        kept: &[],
        // parts go after the output is complete
        also: |found, _, new| {
            new.iter()
                .all(|(name, bytes)| found.get(name) == Some(bytes))
        },
    },
    Scenario {
        name: "logits",
        prepare: |root| {
            model_and_texts(root);
            fs::write(root.join("out/logits.safetensors"), "old").unwrap();
        },
        command: |root| {
            let (model, prompts, output) = (
                at(root, "src/m.gguf"),
                at(root, "src/prompts.json"),
                at(root, "out/logits.safetensors"),
            );
            runner(
                root,
                &[
                    "logits",
                    &model,
                    "--prompts",
                    &prompts,
                    "-o",
                    &output,
                    "--force",
                ],
            )
        },
        locked: None,
        kept: &[],
        also: nothing_else,
    },
    Scenario {
        name: "answers of a batch",
        prepare: |root| {
            model_and_texts(root);
            fs::write(root.join("out/answers.jsonl"), "old").unwrap();
        },
        command: |root| {
            let (model, requests, output) = (
                at(root, "src/m.gguf"),
                at(root, "src/requests.jsonl"),
                at(root, "out/answers.jsonl"),
            );
            runner(
                root,
                &[&model, "--batch", &requests, "-o", &output, "--force"],
            )
        },
        locked: None,
        // what the same command continues from
        kept: &["answers.jsonl.part"],
        also: nothing_else,
    },
];

/// A directory in which a scenario runs again and again.
pub struct Place<'a> {
    pub scenario: &'a Scenario,
    pub root: PathBuf,
    pub who: String,
    pub old: Tree,
    pub new: Tree,
}

/// How a run was to end, and did not.
pub type Complaint = String;

impl<'a> Place<'a> {
    pub fn new(scenario: &'a Scenario, parent: &Path, worker: usize) -> Self {
        let who = format!("worker-{worker}");
        let root = parent.canonicalize().unwrap().join(&who);
        let _ = fs::remove_dir_all(&root);
        (scenario.prepare)(&root);
        let out = root.join("out");
        let old = tree(&out);
        succeed(&mut (scenario.command)(&root));
        let new = tree(&out);
        assert_ne!(old, new, "{}", scenario.name);
        let place = Self {
            scenario,
            root,
            who,
            old,
            new,
        };
        plant(&out, &place.old);
        place
    }

    pub fn out(&self) -> PathBuf {
        self.root.join("out")
    }

    pub fn command(&self) -> Command {
        (self.scenario.command)(&self.root)
    }

    /// What counts as output.
    pub fn output(&self) -> Tree {
        let mut found = visible(&tree(&self.out()));
        found.retain(|name, _| !self.scenario.kept.contains(&name.as_str()));
        found
    }

    fn what(&self, found: &Tree) -> String {
        let mut text = String::new();
        for name in found.keys().chain(self.old.keys()).chain(self.new.keys()) {
            let said = match found.get(name) {
                None => "absent",
                bytes if bytes == self.new.get(name) => "new",
                bytes if bytes == self.old.get(name) => "old",
                Some(_) => "neither",
            };
            let line = format!(" {name}: {said};");
            if !text.contains(&line) {
                text += &line;
            }
        }
        text
    }

    /// What is wrong after a run in which a fault was to happen.
    pub fn check(&self, fault: Fault, hit: Option<&Call>, ended: &Output) -> Result<(), Complaint> {
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        let found = self.output();
        let (is_old, is_new) = (found == self.old, found == self.new);
        let state = || {
            format!(
                "{:?},{} said: {}",
                ended.status,
                self.what(&found),
                said.trim()
            )
        };
        if said.contains("panicked") {
            return Err(format!("panic: {}", state()));
        }
        match ended.status.code() {
            Some(0) if is_new => {}
            Some(0) => return Err(format!("status 0 without the new output: {}", state())),
            Some(2) if hit.is_none() || fault.is_repeated() => {
                return Err(format!("an error without a reason: {}", state()));
            }
            Some(2) => {
                self.names_a_file(hit, &said)
                    .map_err(|what| format!("{what}: {}", state()))?;
                let says_complete = said.contains("the output is complete");
                let is_expected = match (is_old, is_new) {
                    (true, _) => !says_complete,
                    (_, true) => {
                        says_complete || (self.scenario.also)(&found, &self.old, &self.new)
                    }
                    _ if said.contains("the output is complete, but this older file stays") => {
                        let is_there = |(name, bytes)| found.get(name) == Some(bytes);
                        self.new.iter().all(is_there)
                    }
                    _ => (self.scenario.also)(&found, &self.old, &self.new),
                };
                if !is_expected {
                    return Err(format!(
                        "neither the old nor the new output, or not told which: {}",
                        state()
                    ));
                }
            }
            None if fault == Fault::Kill && ended.status.signal() == Some(9) => {
                self.check_killed()
                    .map_err(|what| format!("{what}: {}", state()))?;
            }
            _ => return Err(format!("an exit status of its own: {}", state())),
        }
        self.check_next(ended.status.code() == Some(0))
    }

    /// Whether a message names the file of a call, or the output.
    fn names_a_file(&self, hit: Option<&Call>, said: &str) -> Result<(), Complaint> {
        let paths = hit.map(|call| call.paths.to_vec()).unwrap_or_default();
        let name = |path: &PathBuf| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        let names = paths.iter().filter_map(name);
        let is_output = paths.iter().any(|path| path.starts_with(self.out()));
        let mut accepted: Vec<String> = names.collect();
        if is_output {
            accepted.push(at(&self.root, "out/"));
        }
        let is_named =
            said.contains("error: ") && accepted.iter().any(|name| said.contains(name.as_str()));
        is_named
            .then_some(())
            .ok_or_else(|| "no file in the error".to_owned())
    }

    /// What a killed program left: readers open the old output, the new output or nothing, and a lock repairs the rest.
    fn check_killed(&self) -> Result<(), Complaint> {
        let found = self.output();
        if found == self.old
            || found == self.new
            || (self.scenario.also)(&found, &self.old, &self.new)
        {
            return Ok(());
        }
        let Some(locked) = self.scenario.locked else {
            return Err("neither the old nor the new output".to_owned());
        };
        let is_weights =
            |(name, _): &(&String, &Vec<u8>)| !name.ends_with(".json") && !name.ends_with(".sig");
        let weights = |tree: &Tree| -> Tree {
            let all = tree.iter().filter(is_weights);
            all.map(|(name, bytes)| (name.clone(), bytes.clone()))
                .collect()
        };
        let found = weights(&found);
        if found != weights(&self.old)
            && found != weights(&self.new)
            && bitnet_formats::open(&self.out(), &Limits::default()).is_ok()
        {
            return Err("a mixture opens".to_owned());
        }
        drop(OutputLock::take(&self.root.join(locked)).map_err(|e| format!("no lock: {e}"))?);
        let found = self.output();
        match found == self.old || found == self.new {
            true => Ok(()),
            false => Err(format!("no lock repairs it:{}", self.what(&found))),
        }
    }

    /// The same command again makes the new output and leaves nothing else.
    fn check_next(&self, is_done: bool) -> Result<(), Complaint> {
        let found = tree(&self.out());
        if is_done && found == self.new {
            plant(&self.out(), &self.old);
            return Ok(());
        }
        if !is_done && found == self.old {
            return Ok(());
        }
        // parts that are gone do not make the output again
        let is_made = self
            .new
            .iter()
            .all(|(name, bytes)| found.get(name) == Some(bytes));
        if self.scenario.name == "finish" && is_made {
            plant(&self.out(), &self.old);
            return Ok(());
        }
        let mut command = self.command();
        if self.scenario.name.contains("new") {
            command.arg("--force");
        }
        let again = command.output().unwrap();
        let mut found = tree(&self.out());
        found.retain(|name, _| !self.scenario.kept.contains(&name.as_str()));
        let what = self.what(&found);
        plant(&self.out(), &self.old);
        match again.status.success() && found == self.new {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&again.stderr).into_owned();
                Err(format!(
                    "not mended by the next run: {:?},{what} {}",
                    again.status,
                    said.trim()
                ))
            }
        }
    }

    /// What is wrong with what a power cut left. `next`: whether to run the command again.
    pub fn check_cut(&self, next: bool) -> Result<(), Complaint> {
        self.check_killed()?;
        match next {
            true => self.check_next(false),
            false => Ok(()),
        }
    }
}
