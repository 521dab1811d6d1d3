//! The command lines of the three programs: help, versions, documents, spellings of llama.cpp, the demo.
//!
//! Invariant: what `--help` shows as an example parses; what another program spells otherwise is understood or answered with
//! the spelling of this one.
#![cfg(unix)]

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::repository;
use bitnet_tests::program::{Program, Ran, run};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::chat::{send, typed_in, wait};

const PROGRAM: &str = env!("CARGO_BIN_EXE_run_under_test");

fn programs() -> [(&'static str, Program, clap::Command); 3] {
    [
        (
            "bitnet-convert",
            bitnet_convert::run,
            bitnet_convert::command(),
        ),
        (
            "bitnet-verify",
            bitnet_verify::run,
            bitnet_verify::command(),
        ),
        ("bitnet-run", bitnet_run::run, bitnet_run::command()),
    ]
}

fn demo() -> PathBuf {
    repository().join("tests/fixtures/demo/packed")
}

/// The words of a line of a shell, up to a redirection or a comment.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in line.chars().chain([' ']) {
        match (c, quote) {
            ('>' | '#' | '|', None) => break,
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (' ', None) if !word.is_empty() => words.push(std::mem::take(&mut word)),
            (' ', None) => {}
            (c, _) => word.push(c),
        }
    }
    assert!(quote.is_none(), "{line}");
    words
}

#[test]
fn every_help_has_examples_that_parse() {
    let mut examples = 0;
    for (name, _, program) in programs() {
        let subcommands = program
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help");
        for command in std::iter::once(&program).chain(subcommands) {
            let what = format!("{name} {}", command.get_name());
            let long = command.get_after_long_help();
            let help = long
                .or_else(|| command.get_after_help())
                .map(ToString::to_string)
                .unwrap_or_default();
            let lines = help
                .lines()
                .map(str::trim)
                .filter(|line| line.starts_with(name));
            let lines: Vec<&str> = lines.collect();
            assert!(
                help.starts_with("Example") && !lines.is_empty(),
                "{what}: {help}"
            );
            for line in lines {
                let parsed = program.clone().try_get_matches_from(words(line));
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
                examples += 1;
            }
        }
    }
    assert!(examples > 30, "{examples}");
}

#[test]
fn versions_name_commit_target_and_kernel() {
    for (name, program, _) in programs() {
        let ran = run(program, ["--version"]);
        assert_eq!(ran.status, ExitStatus::Done);
        let lines: Vec<&str> = ran.stdout.lines().collect();
        let [first, commit, target, kernel] = lines[..] else {
            panic!("{}", ran.stdout);
        };
        assert_eq!(first, format!("{name} {}", env!("CARGO_PKG_VERSION")));
        assert!(commit.starts_with("commit: "), "{commit}");
        let target = target.strip_prefix("target: ").unwrap();
        assert!(
            target.starts_with(std::env::consts::ARCH) && target.contains('-'),
            "{target}"
        );
        let chosen = match name {
            "bitnet-convert" => "none, because converting computes no model",
            _ => bitnet_kernels::Backend::best().name(),
        };
        assert_eq!(kernel, format!("kernel: {chosen}"));
        assert_eq!(run(program, ["-V"]).stdout, format!("{first}\n"));
    }
}

#[test]
fn completions_and_manual_pages_are_those_of_the_definition() {
    for (name, program, command) in programs() {
        let help = run(program, ["--help"]).stdout;
        assert!(
            help.contains("completions") && help.contains("  man "),
            "{help}"
        );
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = run(program, ["completions", shell]);
            assert_eq!(script.status, ExitStatus::Done, "{}", script.stderr);
            for word in [name, "threads", "completions"] {
                assert!(
                    script.stdout.contains(word),
                    "{shell} of {name} lacks {word}"
                );
            }
        }
        let page = run(program, ["man"]).stdout;
        assert!(page.contains(".TH") && page.contains("Example"), "{page}");
        // pages are the same on every machine
        assert!(
            !page.contains("kernel: ") && !page.contains("commit: "),
            "{page}"
        );
        for sub in command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            let page = run(program, ["man", sub.get_name()]).stdout;
            assert!(
                page.contains(&format!("{name}-{}", sub.get_name()).replace('-', "\\-")),
                "{page}"
            );
            assert!(!page.contains("PROGRAM"), "{page}");
        }
        let refused = run(program, ["man", "isnpect"]);
        assert_eq!(refused.status, ExitStatus::CouldNot);
        assert!(
            refused.stderr.contains("unknown command `isnpect`"),
            "{}",
            refused.stderr
        );
        assert_eq!(
            run(program, ["man", "--json"]).json()["error"]["code"],
            "usage"
        );
    }
}

fn refused(program: Program, words: &[&str], expected: &[&str]) -> String {
    let ran = run(program, words);
    assert_eq!(
        ran.status,
        ExitStatus::CouldNot,
        "{words:?}: {}",
        ran.stdout
    );
    for part in expected {
        assert!(
            ran.stderr.contains(part),
            "{words:?}: `{part}` is not in\n{}",
            ran.stderr
        );
    }
    ran.stderr
}

#[test]
fn spellings_of_llama_cpp_are_understood_or_answered() {
    let model = demo();
    let model = model.to_str().unwrap();
    let of = |words: &[&str]| {
        let ran = run(bitnet_run::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{words:?}: {}", ran.stderr);
        ran.stdout
    };
    let given = of(&[
        model, "-p", "Add", "-n", "5", "--ctx", "64", "--temp", "0", "-q",
    ]);
    for words in [
        &[
            "-m", model, "-p", "Add", "-n", "5", "-c", "64", "--temp", "0", "-q",
        ][..],
        &[
            "-p",
            "Add",
            "--n-predict",
            "5",
            "--ctx-size",
            "64",
            "--temperature",
            "0",
            "-q",
            "--model",
            model,
        ],
        &[
            "-m",
            model,
            "Add",
            "--predict",
            "5",
            "-s",
            "7",
            "--temp",
            "0",
            "-q",
        ],
    ] {
        assert_eq!(of(words), given, "{words:?}");
    }
    assert!(of(&["bench", "-m", model, "-p", "4", "-n", "2", "-r", "1", "-q"]).contains("tg2"));
    for (flags, hint) in [
        (&["-ngl", "99"][..], "on the CPU"),
        (&["--n-gpu-layers=99"], "on the CPU"),
        (&["-cnv"], "--chat"),
        (&["-sys", "Be brief."], "--system"),
        (&["-t", "4"], "-j N"),
        (&["-fa"], "changes no result"),
        (&["-ctk", "f16"], "--kv-type"),
        (
            &["-hf", "microsoft/bitnet-b1.58-2B-4T-gguf"],
            "hf://OWNER/NAME",
        ),
        (&["-r", "User:"], "--stop"),
        (&["--reasoning-budget", "0"], "--think"),
        (&["--mlock"], "leave out"),
        (&["--samplers", "top_k"], "--top-k"),
    ] {
        let words = [&[model, "-p", "a", "-n", "1"][..], flags].concat();
        let flag = flags[0].split('=').next().unwrap();
        refused(
            bitnet_run::run,
            &words,
            &[
                &format!("unexpected flag {flag}, which llama.cpp has"),
                hint,
            ],
        );
    }
    // a flag of this program stays one, and a text stays a text
    assert!(
        of(&[
            "bench", model, "-p", "4", "-n", "2", "-r", "1", "-t", "1", "-q"
        ])
        .contains("tg2")
    );
    of(&[model, "-p", "-ngl", "-n", "1", "-q"]);
    refused(
        bitnet_convert::run,
        &[model, "out.gguf", "TQ2_0"],
        &["-o out.gguf --to gguf-tq2_0"],
    );
}

#[test]
fn flags_of_all_commands_may_stand_in_front_of_the_command() {
    let model = demo();
    let model = model.to_str().unwrap();
    let listed = run(bitnet_run::run, ["kernels", "--json"]);
    assert_eq!(listed.status, ExitStatus::Done);
    for words in [
        &["--json", "kernels"][..],
        &["-j1", "--json", "kernels"],
        &["-qj", "1", "--color", "never", "--json", "kernels"],
    ] {
        let ran = run(bitnet_run::run, words);
        assert_eq!((ran.status, ran.json()), (ExitStatus::Done, listed.json()));
    }
    let bench = run(
        bitnet_run::run,
        [
            "-j1", "--json", "bench", "-m", model, "-p", "4", "-n", "2", "-r", "1",
        ],
    );
    assert_eq!(bench.status, ExitStatus::Done, "{}", bench.stdout);
    let demo = run(bitnet_run::run, ["--json", "demo"]);
    assert_eq!(demo.status, ExitStatus::Done, "{}", demo.stdout);
    let dir = tempfile::tempdir().unwrap();
    let prompts = dir.path().join("p.json");
    fs::write(&prompts, "[[1, 2]]").unwrap();
    let prompts = prompts.to_str().unwrap();
    let ran = run(
        bitnet_run::run,
        ["--json", "logits", model, "--prompts", prompts],
    );
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    // as the other programs take them
    let inspected = run(bitnet_convert::run, ["--json", "inspect", model]);
    assert_eq!(inspected.status, ExitStatus::Done);
    let examined = run(bitnet_verify::run, ["-j1", "doctor", model, "--json"]);
    assert_eq!(examined.status, ExitStatus::Done, "{}", examined.stdout);
}

#[test]
fn flags_of_batches_and_chats_are_refused_without_these() {
    let model = demo();
    let model = model.to_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("xx");
    let output = output.to_str().unwrap();
    for (words, flag, needed) in [
        (&["-p", "hi", "-o", output][..], "-o", "--batch"),
        (&["hi", "-o", output], "-o", "--batch"),
        (&["--tokens", "1", "-o", output], "-o", "--batch"),
        (&["--chat", "-p", "hi", "-o", output], "-o", "--batch"),
        (&["-p", "hi", "--force"], "--output", "--batch"),
        (&["-p", "hi", "--parallel", "2"], "", "--batch"),
        (&["--tokens", "1", "--think", "off"], "", "--chat"),
        (&["--tokens", "1", "--thoughts", "fold"], "", "--chat"),
        (&["--tokens", "1", "--system", "hi"], "", "--chat"),
        (&["--tokens", "1", "--history", output], "", "--chat"),
        (
            &["--batch", "b.jsonl", "-o", output, "--system", "hi"],
            "",
            "--chat",
        ),
        (&["-p", "hi", "--system", "hi"], "", "--chat"),
    ] {
        let words = [&[model, "-n", "1"][..], words].concat();
        refused(bitnet_run::run, &words, &[flag, needed, "hint: "]);
        assert!(!Path::new(output).exists(), "{words:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn help_that_cannot_be_written_is_an_error_with_a_message() {
    for program in [
        PROGRAM,
        env!("CARGO_BIN_EXE_convert_under_test"),
        env!("CARGO_BIN_EXE_verify_under_test"),
    ] {
        for words in [
            &["--help"][..],
            &["-h"],
            &["--version"],
            &["-V"],
            &["help"],
            &["--json", "--help"],
            &["man"],
            &["completions", "bash"],
        ] {
            let full = fs::OpenOptions::new().write(true).open("/dev/full");
            let ran = Command::new(program)
                .args(words)
                .stdout(full.unwrap())
                .output()
                .unwrap();
            let said = String::from_utf8(ran.stderr).unwrap();
            assert_eq!(ran.status.code(), Some(2), "{words:?}: {said}");
            assert!(
                said.starts_with("error: cannot write the output"),
                "{words:?}: {said}"
            );
        }
    }
}

#[test]
fn the_short_help_fits_the_screen_and_the_long_one_has_every_flag() {
    for (name, program, command) in programs() {
        let short = run(program, ["-h"]).stdout;
        let lines = short.lines().count();
        assert!(lines <= 64, "{name}: {lines} lines\n{short}");
        let long = run(program, ["--help"]).stdout;
        for flag in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            if let Some(flag) = flag.get_long() {
                assert!(long.contains(&format!("--{flag}")), "{name} --{flag}");
            }
        }
    }
}

#[test]
fn numbers_and_hosts_say_what_they_expect() {
    let model = demo();
    let model = model.to_str().unwrap();
    for port in ["-1", "abc", "99999", "8080/tcp", ""] {
        refused(
            bitnet_run::run,
            &["serve", model, "--port", port],
            &["--port", "expected a whole number from 0 to 65535"],
        );
    }
    refused(
        bitnet_run::run,
        &["serve", model, "--host", ""],
        &["--host", "expected a text that is not empty"],
    );
    for index in ["-1", "0-3", "0,1", "x", ""] {
        refused(
            bitnet_convert::run,
            &["job", "plan.json", "--index", index],
            &[
                "--index",
                "expected a whole number from 0 on",
                "--index again",
            ],
        );
    }
}

#[test]
fn standard_input_is_read_where_a_file_is_or_refused_by_name() {
    let model = demo();
    let model = model.to_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let text = "Add 34 and 28. The sum is 62, and the sum of 3 and 4 is 7.";
    fs::write(at("t.txt"), text).unwrap();
    let of_file = run(
        bitnet_run::run,
        ["perplexity", model, &at("t.txt"), "--json"],
    );
    assert_eq!(of_file.status, ExitStatus::Done, "{}", of_file.stdout);
    let piped = Command::new(PROGRAM)
        .args(["perplexity", model, "-", "--json"])
        .stdin(fs::File::open(at("t.txt")).unwrap())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let piped: Value = serde_json::from_slice(&piped.stdout).unwrap();
    assert_eq!(piped["perplexity"], of_file.json()["perplexity"]);
    assert!(piped["perplexity"].as_f64().unwrap() > 1.0, "{piped}");
    refused(
        bitnet_run::run,
        &[model, "--batch", "-", "-o", &at("a.jsonl")],
        &["--batch: expected a file, found `-`", "to a file first"],
    );
    // an editor's mark in front of UTF-8 is no part of the prompts
    let prompts = r#"{"a": {"ids": [1, 2, 3]}}"#;
    fs::write(at("p.json"), prompts).unwrap();
    fs::write(at("marked.json"), format!("\u{feff}{prompts}")).unwrap();
    let logits = |name: &str| {
        let words = ["logits", model, "--prompts", &at(name), "--json"];
        let ran = run(bitnet_run::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{name}: {}", ran.stdout);
        ran.json()
    };
    assert_eq!(logits("p.json"), logits("marked.json"));
    let words = [model, "--logits", "--prompts", &at("marked.json")];
    let verified = run(bitnet_verify::run, words);
    assert_eq!(verified.status, ExitStatus::Done, "{}", verified.stderr);
}

#[test]
fn hints_can_be_followed() {
    let model = demo();
    let model = model.to_str().unwrap();
    for (_, program, _) in programs() {
        for flag in ["--foo", "-x", "--against-all"] {
            let text = refused(program, &[model, flag], &["unexpected argument"]);
            assert!(!text.contains("-- -"), "{text}");
        }
    }
    refused(bitnet_run::run, &[], &["no model given", "bitnet-run demo"]);
    refused(
        bitnet_run::run,
        &[model, "-p", "a", "--layout", "i2s"],
        &["did you mean i2_s?"],
    );
    refused(
        bitnet_run::run,
        &[model, "-p", "a", "--kv-type", "f6"],
        &["f32, f16"],
    );
    refused(
        bitnet_run::run,
        &["serve", model, "--port", "99999"],
        &["--port", "99999"],
    );
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("model-i2_s.gguf"), "").unwrap();
    let near = dir.path().join("model-i2s.gguf");
    let far = dir.path().join("falcon.gguf");
    for (program, before) in [
        (bitnet_run::run as Program, &["--tokens", "1"][..]),
        (bitnet_convert::run, &["inspect"]),
        (bitnet_verify::run, &["doctor"]),
    ] {
        let with = |path: &Path| -> Vec<String> {
            let mut words: Vec<String> = before.iter().map(ToString::to_string).collect();
            words.push(path.to_str().unwrap().to_owned());
            words
        };
        let of = |path: &Path, expected: &[&str]| {
            let words = with(path);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            refused(program, &words, expected)
        };
        of(
            &near,
            &["no such file or directory", "did you mean model-i2_s.gguf?"],
        );
        let text = of(&far, &["no such file or directory", "hf://OWNER/NAME"]);
        assert!(!text.contains("did you mean"), "{text}");
        of(
            Path::new("microsoft/bitnet"),
            &[
                "looks like the name of a repository",
                "hf://microsoft/bitnet",
            ],
        );
        of(Path::new("hf:microsoft/bitnet"), &["hf://microsoft/bitnet"]);
    }
}

#[test]
fn a_plan_begins_with_what_happens() {
    let dir = tempfile::tempdir().unwrap();
    let (source, output) = (demo(), dir.path().join("out.gguf"));
    let words = [
        source.to_str().unwrap(),
        "-o",
        output.to_str().unwrap(),
        "--dry-run",
    ];
    let ran = run(bitnet_convert::run, words);
    let first = ran.stdout.lines().next().unwrap();
    let expected = format!("would convert {} (", source.display());
    assert!(first.starts_with(&expected), "{first}");
    assert!(
        first.contains(&format!(" -> {} (gguf-i2_s, ", output.display())),
        "{first}"
    );
    assert!(!first.contains("memory") && !output.exists(), "{first}");
}

#[test]
fn quiet_says_nothing_but_errors() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["strange_key"] = 7.into();
    fs::write(&path, config.to_string()).unwrap();
    let (source, output) = (dir.path().to_str().unwrap(), dir.path().join("out.gguf"));
    let words = |more: &[&str]| {
        let mut words = vec![source, "-o", output.to_str().unwrap(), "--force"];
        words.extend(more);
        run(bitnet_convert::run, words)
    };
    assert!(words(&[]).stderr.contains("warning: the key `strange_key`"));
    let ran = words(&["-q"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (ExitStatus::Done, ""));
}

/// The columns that each line of a terminal has.
fn widths(written: &str) -> Vec<(usize, String)> {
    let mut plain = String::new();
    let mut rest = written;
    while let Some((before, behind)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        let end = behind
            .find(|c: char| c.is_ascii_alphabetic())
            .map_or(behind.len(), |at| at + 1);
        rest = &behind[end..];
    }
    plain.push_str(rest);
    let lines = plain.split(['\r', '\n']);
    lines
        .map(|line| (line.chars().count(), line.to_owned()))
        .collect()
}

#[test]
fn progress_fits_sixty_columns() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("in.jsonl");
    let line = json!({"messages": [{"role": "user", "content": "Add 34 and 28."}], "max_tokens": 60, "ignore_eos": true});
    fs::write(&input, format!("{line}\n").repeat(12)).unwrap();
    let output = dir.path().join("out.jsonl");
    let flags = [
        "--batch",
        input.to_str().unwrap(),
        "-o",
        output.to_str().unwrap(),
        "--kernel",
        "scalar",
        "--threads",
        "1",
        "--parallel",
        "1",
    ];
    let (written, status) = typed_in(60, &demo(), &flags, &json!([]));
    assert_eq!(status, 0, "{written}");
    let bars: Vec<_> = widths(&written)
        .into_iter()
        .filter(|(_, line)| line.starts_with("answering"))
        .collect();
    assert!(!bars.is_empty(), "{written:?}");
    for (width, line) in bars {
        assert!(width <= 60, "{width}: {line:?}");
        assert!(line.contains('━') && line.contains(" B"), "{line:?}");
    }
}

fn installed(dir: &Path, with_model: bool) -> PathBuf {
    let program = dir.join("bin/bitnet-run");
    fs::create_dir_all(dir.join("bin")).unwrap();
    fs::copy(PROGRAM, &program).unwrap();
    if with_model {
        let to = dir.join("share/bitnet-toolchain/demo");
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(demo()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    program
}

fn ran(program: &Path, words: &[&str], variable: Option<&str>) -> Ran {
    let mut command = Command::new(program);
    command.args(words).current_dir("/").stdin(Stdio::null());
    match variable {
        Some(path) => command.env("BITNET_DEMO_MODEL", path),
        None => command.env_remove("BITNET_DEMO_MODEL"),
    };
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let status = match output.status.code() {
        Some(0) => ExitStatus::Done,
        _ => ExitStatus::CouldNot,
    };
    Ran {
        status,
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

const DIALOG: &str = "> Add 34 and 28.\n4+8=12, 1+3+2=6, so 62\n";

#[test]
fn the_demo_talks_wherever_it_is_installed() {
    let dir = tempfile::tempdir().unwrap();
    // a program in a checkout
    let ran_here = ran(Path::new(PROGRAM), &["demo"], None);
    assert_eq!(ran_here.stdout, DIALOG, "{}", ran_here.stderr);
    for part in ["the demo model: ", "tokens/s]", "bitnet-run demo --chat"] {
        assert!(ran_here.stderr.contains(part), "{}", ran_here.stderr);
    }
    let quiet = ran(Path::new(PROGRAM), &["demo", "-q"], None);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), (DIALOG, ""));
    // an installed one, whose model is beside it
    let program = installed(&dir.path().join("with"), true);
    let report = ran(&program, &["demo", "--json"], None).json();
    let place = dir
        .path()
        .join("with/share/bitnet-toolchain/demo")
        .canonicalize()
        .unwrap();
    assert_eq!(report["model"], place.to_str().unwrap());
    assert_eq!(report["text"], "4+8=12, 1+3+2=6, so 62");
    assert_eq!(report["status"], "generated");
    // one without a model beside it has a copy inside, and no path to name
    let program = installed(&dir.path().join("without"), false);
    let inside = ran(&program, &["demo"], None);
    assert_eq!(inside.stdout, DIALOG, "{}", inside.stderr);
    assert!(inside.stderr.contains("; built-in\n"), "{}", inside.stderr);
    assert!(
        !inside.stderr.contains("bitnet-convert"),
        "{}",
        inside.stderr
    );
    let report = ran(&program, &["demo", "--json"], None).json();
    assert_eq!(report["model"], "built-in");
    assert_eq!(report["text"], "4+8=12, 1+3+2=6, so 62");
    let model = demo();
    let found = ran(&program, &["demo", "-q"], Some(model.to_str().unwrap()));
    assert_eq!(found.stdout, DIALOG, "{}", found.stderr);
    let wrong = ran(&program, &["demo"], Some("/no/such/model"));
    assert_eq!(wrong.status, ExitStatus::CouldNot);
    assert!(
        wrong
            .stderr
            .contains("BITNET_DEMO_MODEL: no model at /no/such/model"),
        "{}",
        wrong.stderr
    );
    // each kernel gives the same answer
    let scalar = ran(
        &program,
        &["demo", "-q", "--kernel", "scalar"],
        Some(model.to_str().unwrap()),
    );
    assert_eq!(scalar.stdout, DIALOG);
}

#[test]
fn the_demo_goes_on_as_a_chat_on_a_terminal() {
    let steps = json!([
        wait("so 62"),
        wait("> "),
        send("Sort these words: moon, nest, key\r"),
        wait("key, moon, nest"),
        wait("> "),
        send("\u{4}")
    ]);
    let (written, status) = typed_in(100, Path::new("demo"), &[], &steps);
    assert_eq!(status, 0, "{written}");
}

/// Every command that the guide shows runs, in its order.
#[test]
fn the_guide_tells_the_truth() {
    let guide = fs::read_to_string(repository().join("formats/guides/chat.md")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(PROGRAM, bin.join("bitnet-run")).unwrap();
    let model = dir.path().join("model.gguf");
    let source = demo();
    let words = [source.to_str().unwrap(), "-o", model.to_str().unwrap()];
    assert_eq!(run(bitnet_convert::run, words).status, ExitStatus::Done);
    let path = std::env::var("PATH").unwrap_or_default();
    let blocks = guide
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap());
    let script: String = blocks.collect();
    assert!(
        script
            .lines()
            .filter(|line| line.contains("bitnet-run"))
            .count()
            >= 10,
        "{script}"
    );
    let output = Command::new("bash")
        .args(["-ec", &script])
        .current_dir(dir.path())
        .env("PATH", format!("{}:{path}", bin.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    let steps = json!([
        wait("> "),
        send("/help\r"),
        wait("begins with a slash."),
        wait("> "),
        send("\u{4}")
    ]);
    let (written, _) = typed_in(100, &source, &["--chat"], &steps);
    let commands = written
        .lines()
        .filter(|line| line.starts_with('/') && line.contains("  "));
    let mut count = 0;
    for line in commands {
        assert!(
            guide.contains(line.trim_end()),
            "formats/guides/chat.md lacks the line\n{line}"
        );
        count += 1;
    }
    assert_eq!(count, 8, "{written}");
}
