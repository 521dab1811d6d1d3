//! `--batch`: a file of requests.

use super::{Running, demo};
use bitnet_tests::program::{self, Ran};
use serde_json::{Value, json};
use std::path::Path;

fn requests() -> Vec<Value> {
    let mut lines: Vec<Value> = (0..30)
        .map(|number| match number % 4 {
            0 => json!({"prompt": format!("What is {number} plus 3?"), "max_tokens": 8}),
            1 => json!({"custom_id": format!("c{number}"), "messages": [{"role": "user", "content": "What is 2 plus 3?"}]}),
            2 => json!({"custom_id": "x", "method": "POST", "url": "/v1/completions",
                "body": {"prompt": "One", "temperature": 2, "seed": number, "max_tokens": 20}}),
            _ => json!({"input": "Hello"}),
        })
        .collect();
    lines.push(json!({"prompt": "x", "tempo": 1}));
    lines.push(json!({"url": "/v1/other", "body": {}}));
    lines
}

fn run(directory: &Path, more: &[&str]) -> Ran {
    let mut words = vec![demo().into_os_string(), "--batch".into()];
    words.push(directory.join("in.jsonl").into());
    words.extend([
        "-o".into(),
        directory.join("out.jsonl").into(),
        "--json".into(),
    ]);
    words.extend(more.iter().map(Into::into));
    program::run(bitnet_run::run, words)
}

#[test]
fn a_batch_keeps_its_order_and_continues_where_it_was_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (
        directory.path().join("in.jsonl"),
        directory.path().join("out.jsonl"),
    );
    let part = directory.path().join("out.jsonl.part");
    let lines = requests();
    let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    text.push_str("\nno json");
    std::fs::write(&input, &text).unwrap();
    let ran = run(directory.path(), &["--parallel", "3"]);
    assert_eq!(ran.status.code(), 0, "{}", ran.stdout);
    assert_eq!(
        (ran.json()["answers"].clone(), ran.json()["errors"].clone()),
        (json!(33), json!(3))
    );
    assert!(!part.exists());
    let whole = std::fs::read_to_string(&output).unwrap();
    let answers: Vec<Value> = whole
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(answers[1]["custom_id"], "c1");
    assert_eq!(answers[4]["custom_id"], "line-4");
    assert_eq!(answers[30]["response"]["body"]["error"]["param"], "tempo");
    assert_eq!(answers[32]["id"], "line-33");
    assert_eq!(answers[32]["response"]["status_code"], 400);
    // what the server says
    let server = Running::demo();
    for (number, path) in [(0, "/v1/completions"), (1, "/v1/chat/completions")] {
        let mut body = lines[number].clone();
        body.as_object_mut().unwrap().shift_remove("custom_id");
        let answer = server.ask(path, &body);
        assert_eq!(
            answers[number]["response"]["body"]["choices"],
            answer["choices"]
        );
    }
    // an output is not overwritten
    assert_eq!(run(directory.path(), &[]).json()["error"]["code"], "exists");
    // interrupted in the middle of a line, the run continues; its bytes are the same
    let first = json!({"batch": 1});
    std::fs::remove_file(&output).unwrap();
    std::fs::write(&part, format!("{first}\nline of another batch\n")).unwrap();
    assert_eq!(run(directory.path(), &[]).json()["error"]["code"], "exists");
    std::fs::remove_file(&part).unwrap();
    let ran = run(directory.path(), &["--force"]);
    assert_eq!(ran.status.code(), 0);
    assert_eq!(std::fs::read_to_string(&output).unwrap(), whole);
}

#[test]
fn half_a_batch_is_continued() {
    use std::process::{Command, Stdio};
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (
        directory.path().join("in.jsonl"),
        directory.path().join("out.jsonl"),
    );
    let part = directory.path().join("out.jsonl.part");
    let line = json!({"prompt": "One", "max_tokens": 100, "ignore_eos": true, "n": 4});
    std::fs::write(&input, format!("{line}\n").repeat(40)).unwrap();
    let command = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_run_under_test"));
        command
            .arg(demo())
            .arg("--batch")
            .arg(&input)
            .arg("-o")
            .arg(&output);
        command
            .args(["--quiet", "--parallel", "2"])
            .stdout(Stdio::null());
        command
    };
    let mut child = command().spawn().unwrap();
    let started = std::time::Instant::now();
    let lines = || std::fs::read_to_string(&part).map_or(0, |text| text.lines().count());
    while lines() < 3 {
        assert!(started.elapsed().as_secs() < 60);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!output.exists());
    let kept = std::fs::read_to_string(&part).unwrap();
    assert!((3..41).contains(&kept.lines().count()));
    // what was kept is not computed again
    let kept = kept.replacen("\"total_tokens\":", "\"kept\":", 1);
    std::fs::write(&part, &kept).unwrap();
    assert!(command().status().unwrap().success());
    let text = std::fs::read_to_string(&output).unwrap();
    assert_eq!(text.lines().count(), 40);
    assert_eq!(text.matches("\"kept\":").count(), 1);
    assert!(!part.exists());
}

#[test]
fn a_file_that_no_batch_wrote_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    std::fs::write(place("in.jsonl"), "{\"prompt\": \"One\"}\n").unwrap();
    for foreign in ["notes", "notes\n", "{\"batch\": 2}\n"] {
        std::fs::write(place("out.jsonl.part"), foreign).unwrap();
        for more in [&[][..], &["--force"]] {
            let ran = run(directory.path(), more);
            assert_eq!(ran.json()["error"]["code"], "exists", "{}", ran.stdout);
            let kept = std::fs::read_to_string(place("out.jsonl.part")).unwrap();
            assert_eq!(kept, foreign);
        }
    }
    // another batch of this program is started over where that is asked for
    std::fs::write(
        place("out.jsonl.part"),
        "{\"batch\":1,\"input_sha256\":\"0\"}\n",
    )
    .unwrap();
    assert_eq!(run(directory.path(), &[]).json()["error"]["code"], "exists");
    assert_eq!(run(directory.path(), &["--force"]).status.code(), 0);
    // the requests are no place for answers
    std::fs::rename(place("in.jsonl"), place("out.jsonl.part")).unwrap();
    let words = [
        demo().into_os_string(),
        "--batch".into(),
        place("out.jsonl.part").into(),
        "-o".into(),
        place("out.jsonl").into(),
        "--force".into(),
        "--json".into(),
    ];
    let ran = program::run(bitnet_run::run, words);
    assert_eq!(ran.json()["error"]["code"], "usage", "{}", ran.stdout);
    let kept = std::fs::read_to_string(place("out.jsonl.part")).unwrap();
    assert_eq!(kept, "{\"prompt\": \"One\"}\n");
}
