//! The commands of the guides run, and print what the guides show.
//!
//! Invariant: every line of every `sh` block of a guide runs in one shell, in order, with the programs of this build. The
//! `text` block behind an `sh` block is what its commands print: these lines, in this order (first those of stdout), with others
//! between them.

use bitnet_tests::fixtures::{repository, skipped};
use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Guides with `sh` blocks that other tests run, with the test.
const ELSEWHERE: &[(&str, &str)] = &[
    ("chat.md", "tests/tests/all/command_line.rs"),
    ("python.md", "scripts/python-check"),
];

fn guide(name: &str) -> String {
    fs::read_to_string(repository().join("formats/guides").join(name)).unwrap()
}

/// A command and the exit status that its comment names.
#[derive(Debug, PartialEq)]
struct Step {
    command: String,
    status: i32,
}

/// An `sh` block: its commands, and the lines that they print at least.
#[derive(Debug, Default, PartialEq)]
struct Block {
    steps: Vec<Step>,
    printed: Vec<String>,
}

fn step(line: &str) -> Step {
    let (command, status) = match line.rsplit_once("# exit status ") {
        Some((command, status)) => (command, status.trim().parse().unwrap()),
        None => (line, 0),
    };
    Step {
        command: command.trim().to_owned(),
        status,
    }
}

/// The `sh` blocks of a page. A `text` block belongs to the `sh` block that is the last block before it.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut language: Option<&str> = None;
    let mut last = "";
    for line in page.lines() {
        match (language, line.strip_prefix("```")) {
            (None, Some(name)) => {
                if name == "sh" {
                    blocks.push(Block::default());
                }
                language = Some(name);
            }
            (Some(name), Some("")) => {
                last = name;
                language = None;
            }
            (Some("sh"), None) if !line.trim().is_empty() => {
                blocks.last_mut().unwrap().steps.push(step(line));
            }
            (Some("text"), None) if last == "sh" => {
                blocks.last_mut().unwrap().printed.push(line.to_owned());
            }
            _ => {}
        }
    }
    assert_eq!(language, None, "a block without an end");
    blocks
}

/// Whether a printed line is one of a guide, where `…` stands for anything.
fn is_line(printed: &str, shown: &str) -> bool {
    let mut parts = shown.trim_end().split('…');
    let Some(mut rest) = printed.trim_end().strip_prefix(parts.next().unwrap()) else {
        return false;
    };
    let mut open = false;
    for part in parts {
        open = part.is_empty();
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    open || rest.is_empty()
}

/// The first shown line that is not among the printed ones behind its predecessor.
fn missing<'a>(printed: &str, shown: &'a [String]) -> Option<&'a str> {
    let mut lines = printed.lines();
    shown
        .iter()
        .find(|shown| !lines.any(|line| is_line(line, shown)))
        .map(String::as_str)
}

/// The programs of this build under their names, in a directory of `place`.
pub fn programs(place: &Path) -> PathBuf {
    let programs = place.join("programs");
    fs::create_dir(&programs).unwrap();
    for (program, under_test) in [
        ("bitnet-convert", env!("CARGO_BIN_EXE_convert_under_test")),
        ("bitnet-verify", env!("CARGO_BIN_EXE_verify_under_test")),
        ("bitnet-run", env!("CARGO_BIN_EXE_run_under_test")),
    ] {
        symlink(under_test, programs.join(program)).unwrap();
    }
    programs
}

/// Runs a guide in `place`. Its blocks run in one shell, so that jobs in the background outlive a block.
fn run(name: &str, place: &Path) {
    let programs = programs(place);
    let blocks = blocks(&guide(name));
    assert!(!blocks.is_empty(), "{name} shows no command");
    let mut script = String::from("trap 'kill $(jobs -p) 2>/dev/null' EXIT\n");
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    for (b, block) in blocks.iter().enumerate() {
        for (s, step) in block.steps.iter().enumerate() {
            let command = step.command.replace("8080", &port);
            // needs the network and minutes; the programs are on the PATH
            let command = match command.starts_with("cargo install ") {
                true => "true",
                false => command.as_str(),
            };
            // an answer of a server has no line break at its end
            writeln!(
                script,
                "{{ {command}\n}} >>{b}.out 2>>{b}.err; echo {b} {s} $?; echo >>{b}.out"
            )
            .unwrap();
        }
    }
    let path = std::env::join_paths(
        std::iter::once(programs).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(place)
        .env("PATH", path.unwrap())
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let states = String::from_utf8_lossy(&output.stdout);
    for (b, block) in blocks.iter().enumerate() {
        let read = |kind| fs::read_to_string(place.join(format!("{b}.{kind}"))).unwrap_or_default();
        let printed = format!("{}\n{}", read("out"), read("err"));
        for (s, Step { command, status }) in block.steps.iter().enumerate() {
            assert!(
                states
                    .lines()
                    .any(|line| line == format!("{b} {s} {status}")),
                "{name}: `{command}` did not end with {status}:\n{states}{printed}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        if let Some(line) = missing(&printed, &block.printed) {
            panic!("{name} shows a line that its commands do not print there: {line}\n{printed}");
        }
    }
}

/// A directory with the `tests` of the repository in it.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    symlink(
        repository().canonicalize().unwrap().join("tests"),
        place.path().join("tests"),
    )
    .unwrap();
    place
}

fn link(place: &Path, fixture: &str, name: &str) {
    symlink(place.join("tests/fixtures").join(fixture), place.join(name)).unwrap();
}

fn shell(place: &Path, command: &str) {
    let output = Command::new("bash")
        .args(["-c", command])
        .current_dir(place)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn convert() {
    run("convert.md", place().path());
}

#[test]
fn repair() {
    run("repair.md", place().path());
}

#[test]
fn serve() {
    if Command::new("curl").arg("--version").output().is_err() {
        return skipped("curl is not installed: the commands of formats/guides/serve.md");
    }
    run("serve.md", place().path());
}

#[test]
fn many_machines() {
    let place = place();
    link(place.path(), "demo/checkpoint", "checkpoint");
    run("many-machines.md", place.path());
}

#[test]
fn verify_in_ci() {
    let place = place();
    link(place.path(), "bitnet-2b4t-bf16/checkpoint", "checkpoint");
    link(place.path(), "bitnet-2b4t-bf16/golden", "golden");
    let (convert, verify) = (
        env!("CARGO_BIN_EXE_convert_under_test"),
        env!("CARGO_BIN_EXE_verify_under_test"),
    );
    shell(
        place.path(),
        &format!(
            "{convert} ./checkpoint -o model.gguf --to gguf-i2_s && \
             {verify} model.gguf --golden ./golden --json > last-release.json"
        ),
    );
    run("verify-in-ci.md", place.path());
}

#[test]
fn every_guide_is_listed_and_run() {
    let list = guide("README.md");
    let own = fs::read_to_string(repository().join("tests/tests/all/guides.rs")).unwrap();
    for entry in fs::read_dir(repository().join("formats/guides")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name == "README.md" || !name.ends_with(".md") {
            continue;
        }
        assert!(
            list.contains(&format!("]({name})")),
            "formats/guides/README.md does not list {name}"
        );
        let is_run = own.contains(&format!("run(\"{name}\","))
            || ELSEWHERE.iter().any(|(other, _)| *other == name)
            || blocks(&guide(&name)).is_empty();
        assert!(is_run, "no test runs the commands of {name}");
    }
}

#[test]
fn a_line_that_is_not_printed_is_found() {
    let page = "```sh\na  # exit status 1\n\nb\n```\ntext\n```text\none …\ntwo\n```\n```text\nother\n```\n";
    let step = |command: &str, status| Step {
        command: command.to_owned(),
        status,
    };
    let found = blocks(page);
    let shown = vec!["one …".to_owned(), "two".to_owned()];
    assert_eq!(
        found,
        [Block {
            steps: vec![step("a", 1), step("b", 0)],
            printed: shown.clone()
        }]
    );
    assert_eq!(missing("zero\none 1\nbetween\ntwo\n", &shown), None);
    assert_eq!(missing("two\none 1\n", &shown), Some("two"));
    assert_eq!(missing("one\ntwo\n", &shown), Some("one …"));
    for (printed, shown, is) in [
        ("a b", "a …", true),
        ("a b c", "a … c", true),
        ("a b c d", "a … c", false),
        ("x a b", "a …", false),
        ("abc", "…b…", true),
        ("same ", "same", true),
    ] {
        assert_eq!(is_line(printed, shown), is, "{printed} / {shown}");
    }
}
