//! What the three programs say in the same way: nothing under `--quiet` of a file that was written, commands that a shell reads,
//! outputs that are named like directories, and JSON that is no certificate.
//!
//! Invariant: each point is tried on every command that it concerns.

use bitnet_cli::{ExitStatus, shell_word};
use bitnet_tests::fixtures::{checkpoint, repository};
use bitnet_tests::program::{Program, Ran, run};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

fn demo() -> PathBuf {
    repository().join("tests/fixtures/demo/packed")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn convert(words: &[&str]) -> Ran {
    run(bitnet_convert::run, words)
}

/// A model in one file.
fn gguf(directory: &Path) -> PathBuf {
    let path = directory.join("model.gguf");
    let demo = demo();
    let words = [text(&demo), "-o", text(&path), "--to", "gguf-i2_s", "-q"];
    let ran = convert(&words);
    assert_eq!(ran.status, ExitStatus::Done, "{ran:?}");
    path
}

#[test]
fn quiet_prints_nothing_of_a_file_that_was_written_and_all_of_a_result() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| text(&dir.path().join(name)).to_owned();
    let (demo, embedding) = (demo(), checkpoint("bitnet-embedding-270m"));
    let (demo, embedding) = (text(&demo), text(&embedding));
    fs::write(file("prompts.json"), "[[1, 2, 3]]").unwrap();
    fs::write(
        file("lines.jsonl"),
        "{\"prompt\": [1, 2], \"max_tokens\": 2}\n",
    )
    .unwrap();
    let (prompts, lines) = (file("prompts.json"), file("lines.jsonl"));
    let outputs = [
        "m.gguf",
        "p.gguf",
        "p.json",
        "l.safetensors",
        "e.safetensors",
        "o.jsonl",
        "b.zip",
    ];
    let [model, planned, plan, logits, vectors, answers, bundle] = outputs.map(file);
    let programs: [Program; 3] = [bitnet_convert::run, bitnet_verify::run, bitnet_run::run];
    let [convert, verify, runtime] = programs;
    let tq2 = ["--to", "gguf-tq2_0"];
    let written: Vec<(Program, Vec<&str>, &str)> = vec![
        (convert, vec![demo, "-o", &model], &model),
        (
            convert,
            [&["plan", demo, "-o", &planned, "--plan", &plan], &tq2[..]].concat(),
            &plan,
        ),
        (convert, vec!["job", &plan, "--index", "0"], &plan),
        (convert, vec!["finish", &plan, "--remove-parts"], &planned),
        (
            runtime,
            vec!["logits", demo, "--prompts", &prompts, "-o", &logits],
            &logits,
        ),
        (
            runtime,
            vec!["embed", embedding, "--prompts", &prompts, "-o", &vectors],
            &vectors,
        ),
        (
            runtime,
            vec![demo, "--batch", &lines, "-o", &answers],
            &answers,
        ),
    ];
    for (program, words, output) in written {
        let ran = run(program, [&words[..], &["--quiet"]].concat());
        assert_eq!(ran.status, ExitStatus::Done, "{words:?}: {ran:?}");
        assert_eq!(
            (ran.stdout.as_str(), ran.stderr.as_str()),
            ("", ""),
            "{words:?}"
        );
        assert!(Path::new(output).is_file(), "{words:?}");
    }
    let results: Vec<(Program, Vec<&str>, &str)> = vec![
        (
            convert,
            vec![demo, "-o", "x.gguf", "--dry-run"],
            "nothing was written",
        ),
        (convert, vec!["list"], "gguf-tq2_0"),
        (convert, vec!["inspect", &model], "bitnet"),
        (verify, vec![&model, "--against", demo], "same: "),
        (verify, vec!["doctor", &model], "sound: "),
        (runtime, vec![demo, "--tokens", "1", "-n", "2"], ","),
        (
            convert,
            vec![demo, "-o", &model, "--force", "--json"],
            "\"status\":\"converted\"",
        ),
    ];
    for (program, words, expected) in results {
        let ran = run(program, [&words[..], &["-q"]].concat());
        assert_eq!(ran.status, ExitStatus::Done, "{words:?}: {ran:?}");
        assert!(ran.stdout.contains(expected), "{words:?}: {}", ran.stdout);
        assert_eq!(ran.stderr, "", "{words:?}");
    }
    // the findings are the result, the line about the archive is none
    let words = ["doctor", &model, "--bundle", &bundle];
    let loud = run(verify, words);
    assert!(loud.stdout.contains("b.zip"), "{}", loud.stdout);
    let quiet = run(verify, [&words[..], &["--force", "-q"]].concat());
    assert!(
        quiet.stdout.contains("sound: ") && !quiet.stdout.contains("b.zip"),
        "{}",
        quiet.stdout
    );
    // an error is never silent
    let refused = run(convert, [demo, "-o", &model, "-q"]);
    assert_eq!(refused.status, ExitStatus::CouldNot);
    assert!(
        refused.stderr.contains("--force replaces it"),
        "{}",
        refused.stderr
    );
    for mut command in [
        bitnet_convert::command(),
        bitnet_verify::command(),
        bitnet_run::command(),
    ] {
        let help = command.render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            help.contains("Print only errors and results: no notes, warnings or progress"),
            "{help}"
        );
        assert!(
            help.contains(
                "A command that writes a file, such as a conversion, prints nothing then."
            ),
            "{help}"
        );
    }
}

#[test]
fn commands_to_copy_have_paths_that_a_shell_reads() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("my plan's dir");
    fs::create_dir(&place).unwrap();
    let (plan, output) = (place.join("plan $1.json"), place.join("m.gguf"));
    let demo = demo();
    let words = [
        "plan",
        text(&demo),
        "-o",
        text(&output),
        "--to",
        "gguf-i2_s",
        "--plan",
        text(&plan),
    ];
    let ran = convert(&words);
    assert_eq!(ran.status, ExitStatus::Done, "{ran:?}");
    let word = shell_word(&plan);
    assert!(word.ends_with("/my plan'\\''s dir/plan $1.json'"), "{word}");
    for command in ["job", "finish"] {
        let expected = format!("bitnet-convert {command} {word}");
        assert!(
            ran.stdout.contains(&expected),
            "{expected} is not in\n{}",
            ran.stdout
        );
    }
    let missing = convert(&["finish", text(&plan)]);
    assert_eq!(missing.status, ExitStatus::CouldNot);
    let expected = format!("hint: run bitnet-convert job {word} --index 0\n");
    assert!(missing.stderr.contains(&expected), "{}", missing.stderr);

    let model = gguf(&place);
    let quoted = shell_word(&model);
    let programs: [(Program, Vec<&str>, String); 4] = [
        (
            bitnet_convert::run,
            vec![text(&model), "a b.gguf"],
            format!("bitnet-convert {quoted} -o 'a b.gguf'\n"),
        ),
        (
            bitnet_convert::run,
            vec![text(&model), "a b.gguf", "tq2_0"],
            format!("bitnet-convert {quoted} -o 'a b.gguf' --to gguf-tq2_0\n"),
        ),
        (
            bitnet_verify::run,
            vec![text(&model), "a b"],
            format!("bitnet-verify {quoted} --against 'a b', or"),
        ),
        (
            bitnet_run::run,
            vec![text(&model), "what", "is \"it\""],
            format!("bitnet-run {quoted} -p 'what is \"it\"'\n"),
        ),
    ];
    for (program, words, expected) in programs {
        let ran = run(program, &words);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{words:?}");
        assert!(
            ran.stderr.contains(&expected),
            "{expected} is not in\n{}",
            ran.stderr
        );
    }
    let part = place.join("m-00001-of-00002.gguf");
    let ran = convert(&[text(&model), "-o", text(&part)]);
    let expected = format!("-o {}; --split-max-size", shell_word(&output));
    assert!(ran.stderr.contains(&expected), "{}", ran.stderr);
}

#[test]
fn an_output_that_ends_in_a_slash_is_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let model = gguf(dir.path());
    let demo = demo();
    let (model, demo) = (text(&model), text(&demo));
    let file = |name: &str| format!("{}/{name}", text(dir.path()));
    let prompts = file("prompts.json");
    fs::write(&prompts, "[[1, 2, 3]]").unwrap();
    let lines = file("lines.jsonl");
    fs::write(&lines, "{\"prompt\": [1, 2], \"max_tokens\": 2}\n").unwrap();
    let certificate = format!("{model}.certificate.json");
    // a file cannot have the name of a directory
    for ending in ["new/", "new/."] {
        let new = file(ending);
        let gguf = format!("{new}x.gguf/");
        let files: Vec<(Program, Vec<&str>)> = vec![
            (
                bitnet_convert::run,
                vec![demo, "-o", &new, "--to", "gguf-i2_s"],
            ),
            (
                bitnet_convert::run,
                vec![demo, "-o", &new, "--to", "gguf-i2_s", "--dry-run"],
            ),
            (bitnet_convert::run, vec![demo, "-o", &gguf]),
            (
                bitnet_convert::run,
                vec![
                    "plan",
                    demo,
                    "-o",
                    &new,
                    "--to",
                    "gguf-i2_s",
                    "--plan",
                    "p.json",
                ],
            ),
            (
                bitnet_convert::run,
                vec![
                    "plan",
                    demo,
                    "-o",
                    "m.gguf",
                    "--to",
                    "gguf-i2_s",
                    "--plan",
                    &new,
                ],
            ),
            (
                bitnet_verify::run,
                vec![model, "--certificate", &certificate, "--junit", &new],
            ),
            (
                bitnet_verify::run,
                vec![model, "--certificate", &certificate, "--html", &new],
            ),
            (
                bitnet_verify::run,
                vec![model, "--certificate", &certificate, "--markdown", &new],
            ),
            (bitnet_verify::run, vec!["doctor", model, "--bundle", &new]),
            (
                bitnet_run::run,
                vec!["logits", demo, "--prompts", &prompts, "-o", &new],
            ),
            (bitnet_run::run, vec![demo, "--batch", &lines, "-o", &new]),
        ];
        for (program, words) in files {
            let ran = run(program, [&words[..], &["--json"]].concat());
            assert_eq!(ran.status, ExitStatus::CouldNot, "{words:?}: {ran:?}");
            let error = &ran.json()["error"];
            let [message, hint] =
                ["message", "hint"].map(|key| error[key].as_str().unwrap_or_default());
            assert_eq!(error["code"], "usage", "{words:?}: {error}");
            assert!(
                message.contains("found the name of a directory (it ends in a slash)"),
                "{words:?}: {error}"
            );
            assert!(hint.starts_with("name "), "{words:?}: {error}");
            assert!(!dir.path().join("new").exists(), "{words:?}");
        }
        let ran = convert(&[demo, "-o", &new, "--to", "gguf-i2_s", "--json"]);
        let hint = ran.json()["error"]["hint"].as_str().unwrap().to_owned();
        let example = shell_word(Path::new(&new).join("model.gguf"));
        assert!(
            hint.starts_with(&format!("name the file: -o {example};")),
            "{hint}"
        );
    }
    // a directory may be named like one
    for (name, how) in [("packed/", &[][..]), ("bf16/", &["--to", "hf-bf16"])] {
        let new = file(name);
        let ran = convert(&[&[model, "-o", &new, "--json"], how].concat());
        assert_eq!(ran.status, ExitStatus::Done, "{name}: {ran:?}");
        let directory = Path::new(&new);
        assert!(
            directory.join("config.json").is_file() && directory.join("certificate.json").is_file()
        );
        let same = run(bitnet_verify::run, [new.as_str(), "--against", model, "-q"]);
        assert_eq!(same.status, ExitStatus::Done, "{name}: {same:?}");
    }
    let before = fs::read_dir(dir.path()).unwrap().count();
    // one that is there says so
    let ran = convert(&[demo, "-o", &file("packed/"), "--to", "gguf-i2_s", "--json"]);
    assert_eq!(ran.json()["error"]["code"], "exists", "{}", ran.stdout);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
}

#[test]
fn json_that_is_no_certificate_is_called_so() {
    let dir = tempfile::tempdir().unwrap();
    let model = gguf(dir.path());
    let whole = fs::read(format!("{}.certificate.json", text(&model))).unwrap();
    let mut without: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    without.as_object_mut().unwrap().remove("certificate");
    let all = "`certificate`, `tool`, `family`, `target`, `wiring`, `source`, `output`, `ternary`, `dense`, `ternary_sha256`, \
               `source_ternary_sha256`, `lossless`";
    let rest = all.replace("`tool`, `family`, ", "");
    for (json, missing) in [
        (json!({}), all),
        (json!({"model_type": "bitnet", "hidden_size": 64}), all),
        (json!({"tool": "x", "family": "y"}), &rest),
        (without, "`certificate`"),
    ] {
        let path = dir.path().join("other.certificate.json");
        fs::write(&path, json.to_string()).unwrap();
        for (words, status) in [
            (
                vec![text(&model), "--certificate", text(&path)],
                ExitStatus::CouldNot,
            ),
            // by its name an artifact is one
            (
                vec![text(&path), "--against", text(&model)],
                ExitStatus::CouldNot,
            ),
            // a finding beside others
            (
                vec!["doctor", text(&model), "--certificate", text(&path)],
                ExitStatus::Different,
            ),
        ] {
            let ran = run(bitnet_verify::run, &words);
            assert_eq!(ran.status, status, "{words:?}: {ran:?}");
            let said = format!("{}{}", ran.stdout, ran.stderr);
            let expected = format!(
                "{}: this JSON is no certificate of a conversion: it has no {missing}\n",
                path.display()
            );
            assert!(said.contains(&expected), "{expected} is not in\n{said}");
            let hint = "give the certificate that bitnet-convert wrote: OUT.certificate.json beside a file, ";
            assert!(said.contains(hint), "{said}");
        }
    }
}
