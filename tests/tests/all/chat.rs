//! The chat of `bitnet-run`, as a person at a terminal and as a program at a pipe meet it.
//!
//! Invariant: every answer ends with a flushed line break, and nothing waits for ever: what does not come within a minute
//! fails the test.
#![cfg(unix)]

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::repository;
use bitnet_tests::program::{Ran, run};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_run_under_test");
const QUESTION: &str = "Add 34 and 28.";
const ANSWER: &str = "4+8=12, 1+3+2=6, so 62";

fn demo() -> PathBuf {
    repository().join("tests/fixtures/demo/packed")
}

/// What a person at a terminal sees, and how the program ended.
fn typed(model: &Path, flags: &[&str], steps: &Value) -> (String, i64) {
    typed_in(100, model, flags, steps)
}

/// As [`typed`], on a terminal of so many columns.
pub fn typed_in(columns: usize, model: &Path, flags: &[&str], steps: &Value) -> (String, i64) {
    let mut child = Command::new("python3")
        .arg(repository().join("tests/python/terminal.py"))
        .arg(columns.to_string())
        .arg(PROGRAM)
        .arg(model)
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(steps.to_string().as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let written = report["written"].as_str().unwrap().to_owned();
    assert_eq!(report["missing"], Value::Null, "{written}");
    assert_eq!(report["usual"], true, "the terminal is left as it was");
    (written, report["status"].as_i64().unwrap())
}

pub fn wait(text: &str) -> Value {
    json!({"wait": text})
}

pub fn send(text: &str) -> Value {
    json!({"send": text})
}

fn saved(path: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(path).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let messages = json["messages"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    messages
        .map(|message| (text(&message["role"]), text(&message["content"])))
        .collect()
}

#[test]
fn a_person_chats_with_commands_history_and_pasted_lines() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let save = |name: &str| send(&format!("/save {}\r", file(name).display()));
    let (prompt, speed) = (wait("> "), wait("tokens/s]"));
    let steps = json!([
        prompt,
        send(&format!("{QUESTION}\r")),
        wait(&format!("{ANSWER}\r\n")),
        speed,
        prompt,
        send("/hlep\r"),
        wait("unknown command `/hlep`"),
        wait("did you mean /help?"),
        prompt,
        send("/help\r"),
        wait("Write the conversation as JSON"),
        prompt,
        save("one.json"),
        wait("saved 2 messages"),
        prompt,
        save("one.json"),
        wait("the file exists"),
        prompt,
        send("/retry\r"),
        wait(ANSWER),
        speed,
        wait("the same answer"),
        prompt,
        send("/system\r"),
        wait("(no system message)"),
        prompt,
        send("/clear\r"),
        wait("forgotten"),
        prompt,
        send("/retry\r"),
        wait("no answer to try again"),
        // the second line is pasted with the first, and both are one message
        prompt,
        send("\u{1b}[200~Add 34\nand 28.\u{1b}[201~"),
        wait("and 28."),
        send("\r"),
        speed,
        prompt,
        save("two.json"),
        wait("saved 2 messages"),
        // a pasted backslash stays where it is; the arrow key brings the message back as it is, too
        prompt,
        send("/clear\r"),
        wait("forgotten"),
        prompt,
        send("\u{1b}[200~cargo run \\\n  --release\u{1b}[201~"),
        wait("--release"),
        send("\r"),
        speed,
        prompt,
        save("pasted.json"),
        wait("saved 2 messages"),
        // the arrow key brings the message before the command back
        prompt,
        send("/clear\r"),
        wait("forgotten"),
        prompt,
        send("one \\\r"),
        send("two\r"),
        speed,
        prompt,
        send("\u{1b}[A"),
        wait("two"),
        send("\r"),
        speed,
        prompt,
        save("three.json"),
        wait("saved 4 messages"),
        prompt,
        send("\u{4}")
    ]);
    let (written, status) = typed(&demo(), &["--chat", "-n", "24"], &steps);
    assert_eq!(status, 0, "{written}");
    let (user, assistant) = ("user".to_owned(), "assistant".to_owned());
    assert_eq!(
        saved(&file("one.json")),
        [
            (user.clone(), QUESTION.to_owned()),
            (assistant, ANSWER.to_owned())
        ]
    );
    assert_eq!(
        saved(&file("two.json"))[0],
        (user.clone(), "Add 34\nand 28.".to_owned())
    );
    assert_eq!(
        saved(&file("pasted.json"))[0],
        (user.clone(), "cargo run \\\n  --release".to_owned())
    );
    let three = saved(&file("three.json"));
    assert_eq!(three[0], (user.clone(), "one \ntwo".to_owned()));
    assert_eq!(three[2], three[0]);
}

/// Flags that a hint names are flags of the command that it names.
#[test]
fn the_chat_of_the_demo_names_a_command_that_has_the_flags() {
    let steps = json!([
        wait("> "),
        wait("/help lists"),
        wait("> "),
        send(&format!("{QUESTION}\r")),
        wait("tokens/s]"),
        wait("> "),
        send("/retry\r"),
        wait("--chat --temp"),
        wait("> "),
        send("\u{4}")
    ]);
    let (written, status) = typed(Path::new("demo"), &["--chat"], &steps);
    assert_eq!(status, 0, "{written}");
    let written = written.replace("\r\n", "");
    let path = demo().canonicalize().unwrap();
    let command = format!(
        "start with bitnet-run {} --chat --temp for others",
        path.display()
    );
    assert!(written.contains(&command), "{written}");
}

/// An answer that is slow enough to be stopped.
const SLOW: [&str; 8] = [
    "--chat",
    "--ignore-eos",
    "-n",
    "400",
    "--kernel",
    "scalar",
    "--threads",
    "1",
];

#[test]
fn control_c_stops_an_answer_and_leaves_at_the_prompt() {
    let steps = json!([
        wait("> "),
        send(&format!("{QUESTION}\r")),
        wait("so 62"),
        send("\u{3}"),
        wait("[stopped]"),
        wait("> "),
        send("/system\r"),
        wait("(no system message)"),
        wait("> "),
        send("\u{3}")
    ]);
    let (written, status) = typed(&demo(), &SLOW, &steps);
    assert_eq!(status, 0, "{written}");
    assert!(!written.contains("stopped after 400"), "{written}");
}

/// Another program that ends the chat ends it at once, and the shell gets back the terminal that it had.
#[test]
fn sigterm_ends_the_chat_and_gives_the_terminal_back() {
    let terminate = json!({"signal": 15});
    let at_the_prompt = json!([wait("> "), send("half a me"), wait("half a me"), terminate]);
    let (written, status) = typed(&demo(), &["--chat"], &at_the_prompt);
    assert_eq!(status, 130, "{written}");
    assert!(written.trim_end().ends_with("\u{1b}[?2004l"), "{written:?}");
    let question = send(&format!("{QUESTION}\r"));
    let during_an_answer = json!([wait("> "), question, wait("so 62"), terminate]);
    let (written, status) = typed(&demo(), &SLOW, &during_an_answer);
    assert_eq!(status, 130, "{written}");
    assert!(!written.contains("[stopped]"), "{written}");
}

/// A shell stops a background job that changes the terminal; such a job is to end.
#[test]
fn sigterm_ends_a_chat_in_the_background_and_leaves_the_terminal_alone() {
    let ran = Command::new("python3")
        .arg(repository().join("tests/python/background.py"))
        .arg(PROGRAM)
        .arg(demo())
        .arg("--chat")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(said.trim(), "130", "{ran:?}");
}

#[test]
fn a_pasted_text_that_ends_in_a_backslash_is_sent_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let save = |name: &str| send(&format!("/save {}\r", file(name).display()));
    let (prompt, speed) = (wait("> "), wait("tokens/s]"));
    let steps = json!([
        prompt,
        send("\u{1b}[200~ls \\\n  -l \\\u{1b}[201~"),
        wait("-l"),
        send("\r"),
        speed,
        prompt,
        save("pasted.json"),
        wait("saved 2 messages"),
        // the arrow key brings it back behind the command, and a backslash that is typed continues it
        prompt,
        send("/clear\r"),
        wait("forgotten"),
        prompt,
        send("\u{1b}[200~ls \\\n  -l\u{1b}[201~"),
        wait("-l"),
        send(" \\\r"),
        send("-a\r"),
        speed,
        prompt,
        save("typed.json"),
        wait("saved 2 messages"),
        prompt,
        send("\u{4}")
    ]);
    let (written, status) = typed(&demo(), &["--chat", "-n", "4"], &steps);
    assert_eq!(status, 0, "{written}");
    let user = "user".to_owned();
    assert_eq!(
        saved(&file("pasted.json"))[0],
        (user.clone(), "ls \\\n  -l \\".to_owned())
    );
    assert_eq!(
        saved(&file("typed.json"))[0],
        (user, "ls \\\n  -l \n-a".to_owned())
    );
}

/// At a pipe a line is text, whatever it begins and ends with.
#[test]
fn commands_and_backslashes_at_a_pipe_are_text() {
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let ran = piped(&["--chat", "-n", "2"], "/clear\n/clear\n/nothing\n");
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    assert_eq!(String::from_utf8_lossy(&ran.stdout).lines().count(), 3);
    let told = "warning: /clear is sent to the model as text: commands work on a terminal only\n";
    assert_eq!(said(&ran).matches(told).count(), 1, "{}", said(&ran));
    assert!(
        said(&ran).contains("also one that begins with a slash"),
        "{}",
        said(&ran)
    );
    let other = piped(&["--chat", "-n", "2"], "/nothing\n /clear\n");
    assert!(!said(&other).contains("warning"), "{}", said(&other));

    // the answer follows from the message: the backslash is in it, and the last line needs no end
    let answer = |input: &str| {
        let ran = piped(&["--chat", "-q", "-n", "12"], input);
        assert_eq!((ran.status.code(), said(&ran).as_str()), (Some(0), ""));
        String::from_utf8_lossy(&ran.stdout).into_owned()
    };
    let message = format!("{QUESTION} \\");
    let given = run_demo(&["--chat", "-q", "-n", "12", "-p", &message]);
    for input in [
        message.clone(),
        format!("{message}\n"),
        format!("{message}\r\n"),
    ] {
        assert_eq!(answer(&input), given.stdout, "{input:?}");
    }
}

#[test]
fn a_prompt_on_a_terminal_is_answered_and_quiet_says_nothing_else() {
    let (written, status) = typed(&demo(), &["--chat", "-q", QUESTION], &json!([wait("\r\n")]));
    assert_eq!(
        (written.as_str(), status),
        (format!("{ANSWER}\r\n").as_str(), 0)
    );
}

/// A program at the other end of a pipe: each line gets its answer before the next one is sent.
#[test]
fn a_program_at_a_pipe_gets_an_answer_for_each_line() {
    let mut child = Command::new(PROGRAM)
        .arg(demo())
        .args(["--chat", "-q", "--ctx", "512"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let output = child.stdout.take().unwrap();
    let (lines, answers) = channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            let _ = lines.send(line.unwrap());
        }
    });
    let mut ask = |text: &str| {
        input.write_all(text.as_bytes()).unwrap();
        input.flush().unwrap();
        let answer = answers.recv_timeout(Duration::from_secs(60));
        answer.unwrap_or_else(|_| panic!("no answer to {text:?}"))
    };
    assert_eq!(ask(&format!("{QUESTION}\n")), ANSWER);
    assert_eq!(ask("\n"), "");
    // what is a command at a terminal is a message here
    assert_ne!(ask("/exit\n"), "");
    assert_ne!(ask("Sort these words: moon, nest, key\n"), "");
    drop(input);
    reader.join().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

fn piped(words: &[&str], input: &str) -> Output {
    let mut child = Command::new(PROGRAM)
        .arg(demo())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn limits_are_never_silent() {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let ran = piped(&["--chat", "-n", "3"], "Add 34 and 28.\n");
    assert!(
        text(&ran.stderr).contains("[stopped after 3 tokens; -n for more]"),
        "{}",
        text(&ran.stderr)
    );
    let full = piped(
        &["--chat", "--ctx", "24", "-n", "200"],
        "Add 34 and 28.\nAdd 1 and 2.\n",
    );
    let stderr = text(&full.stderr);
    assert_eq!(full.status.code(), Some(2), "{stderr}");
    for part in [
        "[stopped: the context of 24 tokens is full; run the program again to start over, --ctx N holds up to 512 tokens]",
        "fills the context of 24 tokens",
        "run the program again to start over",
        "--ctx N",
    ] {
        assert!(stderr.contains(part), "`{part}` is not in\n{stderr}");
    }
    let ran = run_demo(&["-p", "Add", "-n", "2"]);
    assert!(
        ran.stderr.contains("[stopped after 2 tokens; -n for more]"),
        "{}",
        ran.stderr
    );
    assert!(run_demo(&["-p", "Add", "-n", "2", "-q"]).stderr.is_empty());
}

fn run_in(model: &Path, words: &[&str]) -> Ran {
    let mut all = vec![model.to_str().unwrap()];
    all.extend(words);
    run(bitnet_run::run, all)
}

fn run_demo(words: &[&str]) -> Ran {
    run_in(&demo(), words)
}

#[test]
fn a_prompt_comes_from_a_flag_a_place_a_file_or_standard_input() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    fs::write(&file, format!("{QUESTION}\n")).unwrap();
    let file = file.to_str().unwrap();
    let expected = format!("{ANSWER}\n");
    for words in [
        &["--chat", "-q", "-p", QUESTION][..],
        &[QUESTION, "--chat", "-q"],
        &["--chat", "-q", QUESTION],
        &["-f", file, "--chat", "-q"],
        &["--file", file, "--chat", "-q"],
    ] {
        let ran = run_demo(words);
        assert_eq!(ran.stdout, expected, "{words:?}: {}", ran.stderr);
        assert!(ran.stderr.is_empty(), "{}", ran.stderr);
    }
    for words in [
        &["-f", "-", "--chat", "-q"][..],
        &["-p", "-", "--chat", "-q"],
    ] {
        let ran = piped(words, &format!("{QUESTION}\n"));
        assert_eq!(String::from_utf8_lossy(&ran.stdout), expected, "{words:?}");
    }
    for words in [
        &["-p", "a", "-f", file][..],
        &["a", "-p", "b"],
        &["a", "--tokens", "1"],
        &["-f", "/no/such/file"],
        &["--chat", "--history", file, "-p", "a"],
    ] {
        assert_eq!(run_demo(words).status, ExitStatus::CouldNot, "{words:?}");
    }
}

#[test]
fn a_chat_model_without_chat_and_a_base_model_with_it_are_told() {
    let ran = run_demo(&["-p", QUESTION, "-n", "4"]);
    assert!(
        ran.stderr.contains("pass --chat for an answer"),
        "{}",
        ran.stderr
    );
    let ran = run_demo(&["--chat", "-p", QUESTION, "-n", "4"]);
    assert!(!ran.stderr.contains("pass --chat"), "{}", ran.stderr);
    let base = changed(|config| {
        config.as_object_mut().unwrap().remove("chat_template");
    });
    let ran = run_in(base.path(), &["-p", QUESTION, "-n", "4"]);
    assert!(!ran.stderr.contains("pass --chat"), "{}", ran.stderr);
    let ran = run_in(base.path(), &["--chat", "-p", QUESTION, "-n", "4"]);
    assert_eq!(ran.status, ExitStatus::CouldNot);
    assert!(
        ran.stderr.contains("this model has no chat template"),
        "{}",
        ran.stderr
    );
}

/// The demo model with another tokenizer_config.json.
fn changed(change: impl FnOnce(&mut Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("tokenizer_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
    dir
}

#[test]
fn thinking_is_dim_on_a_terminal_and_can_be_folded_and_hidden() {
    let model = changed(|config| {
        let template = config["chat_template"].as_str().unwrap();
        config["chat_template"] = format!("{template}{{# <think> #}}").into();
    });
    let dir = tempfile::tempdir().unwrap();
    let grammar = dir.path().join("thinks.lark");
    fs::write(&grammar, r#"start: "<think>\nhm\n</think>\n\nyes""#).unwrap();
    let grammar = grammar.to_str().unwrap();
    let of = |more: &[&str]| {
        let mut words = vec!["--chat", "-q", "-p", QUESTION, "--grammar", grammar];
        words.extend(more);
        let ran = run_in(model.path(), &words);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
        ran.stdout
    };
    let whole = "<think>\nhm\n</think>\n\nyes\n";
    assert_eq!(of(&[]), whole);
    assert_eq!(of(&["--thoughts", "show"]), whole);
    assert_eq!(of(&["--thoughts", "hide"]), "yes\n");
    let folded = of(&["--thoughts", "fold"]);
    assert!(
        folded.starts_with("[thinking took ") && folded.ends_with(" s]\nyes\n"),
        "{folded}"
    );
    let flags = ["--chat", "-q", "--grammar", grammar];
    let steps = json!([
        wait("> "),
        send("a\r"),
        wait("yes\r\n"),
        wait("> "),
        send("/thoughts fold\r"),
        wait("> "),
        send("b\r"),
        wait("took"),
        wait("yes\r\n"),
        wait("> "),
        send("/exit\r")
    ]);
    let (written, status) = typed(model.path(), &flags, &steps);
    assert_eq!(status, 0);
    assert!(
        written.contains("\u{1b}[2mm\u{1b}[0m\r\n\r\nyes"),
        "{written:?}"
    );
    assert!(!written.contains("<think>"), "{written:?}");
}

/// What the engine of the server makes of a request.
fn served(request: &Value) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    fs::write(&input, format!("{request}\n")).unwrap();
    let words = [
        "--batch",
        input.to_str().unwrap(),
        "-o",
        output.to_str().unwrap(),
    ];
    let ran = run_demo(&words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    let answer: Value = serde_json::from_slice(&fs::read(output).unwrap()).unwrap();
    let text = &answer["response"]["body"]["choices"][0]["message"]["content"];
    text.as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned()
}

#[test]
fn schemas_and_penalties_are_those_of_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let messages = json!([{"role": "user", "content": "Who has the ball?"}]);
    let schema = json!({
        "type": "object",
        "properties": {"who": {"enum": ["Mia", "Leo"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["who", "count"],
        "additionalProperties": false
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
    let expected =
        served(&json!({"messages": messages, "response_format": format, "temperature": 0}));
    let object: Value = serde_json::from_str(&expected).unwrap();
    assert!(
        object["who"].is_string() && object["count"].is_u64(),
        "{expected}"
    );
    let file = dir.path().join("schema.json");
    fs::write(&file, schema.to_string()).unwrap();
    for given in [schema.to_string(), file.to_str().unwrap().to_owned()] {
        let ran = run_demo(&[
            "--chat",
            "-p",
            "Who has the ball?",
            "--json-schema",
            &given,
            "--json",
        ]);
        let report = ran.json();
        assert_eq!(report["text"], expected.as_str(), "{report}");
        assert_eq!(report["stopped"], "complete", "{report}");
    }
    let grammar = dir.path().join("one.lark");
    fs::write(&grammar, "start: \"yes\" | \"no\"\n").unwrap();
    let grammar = grammar.to_str().unwrap();
    let ran = run_demo(&["-p", "Is it?", "--grammar", grammar, "-q"]);
    assert!(
        ["yes\n", "no\n"].contains(&ran.stdout.as_str()),
        "{}",
        ran.stdout
    );
    for (words, expected) in [
        (
            &["--json-schema", "{\"type\": 7}"][..],
            "the schema is refused",
        ),
        (&["--json-schema", "{\"type\""], "not JSON"),
        (
            &["--json-schema", "/no/such.json"],
            "the directory `/no` does not exist",
        ),
        (&["--json-schema", "[1]"], "expected a JSON Schema"),
        (
            &["--grammar", "/no/such.lark"],
            "the directory `/no` does not exist",
        ),
        (
            &["--grammar", file.to_str().unwrap()],
            "the grammar is refused",
        ),
        (
            &["--grammar", grammar, "--json-schema", "{}"],
            "cannot be used with",
        ),
    ] {
        let mut all = vec!["-p", "x"];
        all.extend(words);
        let ran = run_demo(&all);
        assert_eq!(
            ran.status,
            ExitStatus::CouldNot,
            "{words:?}: {}",
            ran.stdout
        );
        assert!(ran.stderr.contains(expected), "{words:?}: {}", ran.stderr);
    }

    // a sure model has to go on to feel a penalty
    let how = [
        "--chat",
        "-p",
        "Who has the ball?",
        "-n",
        "40",
        "--ignore-eos",
        "--json",
    ];
    let text = |more: &[&str]| {
        let report = run_demo(&[&how[..], more].concat()).json();
        report["text"].as_str().unwrap().to_owned()
    };
    let plain = text(&[]);
    for (flag, field, value) in [
        ("--repeat-penalty", "repetition_penalty", 1.5),
        ("--repetition-penalty", "repetition_penalty", 1.5),
        ("--presence-penalty", "presence_penalty", 2.0),
        ("--frequency-penalty", "frequency_penalty", 2.0),
    ] {
        let mut request =
            json!({"messages": messages, "temperature": 0, "max_tokens": 40, "ignore_eos": true});
        request[field] = value.into();
        let found = text(&[flag, &value.to_string()]);
        assert_eq!(found, served(&request), "{flag}");
        assert_ne!(found, plain, "{flag}");
    }
    // each answer of a chat has its own penalties: the same question gets the same answer
    let two = piped(
        &["--chat", "-q", "--presence-penalty", "2", "-n", "20"],
        "Who has the ball?\n",
    );
    let stdout = String::from_utf8_lossy(&two.stdout).into_owned();
    let words = [
        "--chat",
        "-q",
        "-p",
        "Who has the ball?",
        "--presence-penalty",
        "2",
        "-n",
        "20",
    ];
    assert_eq!(stdout, run_demo(&words).stdout);
}
