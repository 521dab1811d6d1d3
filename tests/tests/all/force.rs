//! `--force` replaces outputs of these programs, and nothing else; outputs that have no place are refused.
//!
//! Invariant: after a refusal every file is what it was, and there is no other.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{checkpoint, fixture};
use bitnet_tests::program::{self, Program};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "falcon-e";

/// Runs a program in a directory: its object, and whether it was done.
fn run(program: Program, words: &[&str]) -> (bool, Value) {
    let words = words.iter().copied().chain(["--json"]);
    let ran = program::run(program, words);
    (ran.status == ExitStatus::Done, ran.json())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Every file below a directory.
fn tree(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            files.insert(path.clone(), Vec::new());
            files.extend(tree(&path));
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap_or_default());
        }
    }
    files
}

/// The message of a refusal that changed nothing below `place`.
fn refused(program: Program, place: &Path, words: &[&str], code: &str) -> String {
    let before = tree(place);
    let (done, json) = run(program, words);
    assert!(!done, "{words:?}");
    assert_eq!(json["error"]["code"], code, "{words:?}: {json}");
    assert!(json["error"]["hint"].is_string(), "{words:?}: {json}");
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        tree(place).keys().collect::<Vec<_>>(),
        "{words:?}"
    );
    assert!(before == tree(place), "{words:?}: a file has changed");
    json["error"]["message"].as_str().unwrap().to_owned()
}

fn convert(source: &Path, output: &Path, more: &[&str]) -> Value {
    let words = [&[text(source), "-o", text(output)], more].concat();
    let (done, json) = run(bitnet_convert::run, &words);
    assert!(done, "{json}");
    json
}

#[test]
fn a_directory_with_anything_of_somebody_else_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint(SOURCE);
    let out = dir.path().join("out");
    convert(&source, &out, &[]);
    let (out_text, source_text) = (text(&out), text(&source));
    // a checkpoint is replaced by one
    convert(&source, &out, &["--force"]);
    for name in [
        "photo.jpg",
        ".hidden",
        "id_ed25519",
        ".git/config",
        "photos/1.jpg",
        "1_Pooling/photo.jpg",
        "model-00001-of-00002.safetensors",
        "other.safetensors",
        "model.gguf",
        "model.safetensors.index.json",
        "certificate.json.bak",
    ] {
        let path = out.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"mine").unwrap();
        for force in [true, false] {
            let mut words = vec![source_text, "-o", out_text];
            words.extend(force.then_some("--force"));
            let message = refused(bitnet_convert::run, dir.path(), &words, "exists");
            assert!(message.contains(name), "{name}: {message}");
        }
        fs::remove_file(&path).unwrap();
        if path.parent() != Some(&out) {
            fs::remove_dir(path.parent().unwrap()).unwrap();
        }
    }
    // an empty directory in it is somebody's as well
    fs::create_dir(out.join("empty")).unwrap();
    let words = [source_text, "-o", out_text, "--force"];
    refused(bitnet_convert::run, dir.path(), &words, "exists");
    fs::remove_dir(out.join("empty")).unwrap();
    // shards of an earlier output go with it, and do not come back under another index
    convert(&source, &out, &["--force", "--split-max-size", "100K"]);
    assert!(out.join("model.safetensors.index.json").exists());
    convert(&source, &out, &["--force"]);
    let names: Vec<String> = tree(&out)
        .keys()
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert!(
        !names
            .iter()
            .any(|n| n.contains("-of-") || n.contains("index")),
        "{names:?}"
    );
    // but a shard that is no longer what the certificate says is somebody's
    convert(&source, &out, &["--force", "--split-max-size", "100K"]);
    let shard = fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| text(p).contains("-00001-of-"))
        .unwrap();
    fs::write(&shard, b"my own shard").unwrap();
    refused(bitnet_convert::run, dir.path(), &words, "exists");
}

#[test]
fn a_file_with_the_name_of_a_certificate_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let source = checkpoint(SOURCE);
    let source_text = text(&source);
    let foreign = [
        "my notes\n",
        "{}",
        r#"{"certificate": 1, "tool": "another 1.0", "output": {"files": []}}"#,
    ];
    fs::create_dir(at("out")).unwrap();
    for (output, certificate, more) in [
        ("n.gguf", "n.gguf.certificate.json", &[][..]),
        (
            "s.gguf",
            "s.gguf.certificate.json",
            &["--split-max-size", "100K"],
        ),
        ("out", "out/certificate.json", &[]),
    ] {
        for content in foreign {
            fs::write(at(certificate), content).unwrap();
            for force in [true, false] {
                let output = at(output);
                let mut words = vec![source_text, "-o", text(&output)];
                words.extend(more);
                words.extend(force.then_some("--force"));
                let message = refused(bitnet_convert::run, dir.path(), &words, "exists");
                assert!(message.contains("certificate.json"), "{message}");
            }
        }
        fs::remove_file(at(certificate)).unwrap();
        // its own is replaced
        for _ in 0..2 {
            convert(&source, &at(output), &[more, &["--force"]].concat());
        }
        assert!(at(certificate).is_file());
    }
    // nor by `finish`
    let (plan, output) = (at("plan.json"), at("j.gguf"));
    let words = [
        "plan",
        source_text,
        "-o",
        text(&output),
        "--to",
        "gguf-i2_s",
        "--plan",
        text(&plan),
    ];
    assert!(run(bitnet_convert::run, &words).0);
    let job = ["job", text(&plan), "--index", "0"];
    assert!(run(bitnet_convert::run, &job).0);
    fs::write(at("j.gguf.certificate.json"), "my notes\n").unwrap();
    let words = ["finish", text(&plan), "--force"];
    let message = refused(bitnet_convert::run, dir.path(), &words, "exists");
    assert!(message.contains("j.gguf.certificate.json"), "{message}");
    fs::remove_file(at("j.gguf.certificate.json")).unwrap();
    assert!(run(bitnet_convert::run, &words).0);
}

#[test]
fn no_input_is_replaced_under_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let models = at("models");
    fs::create_dir(&models).unwrap();
    convert(&checkpoint(SOURCE), &models.join("m.gguf"), &[]);
    fs::write(models.join("notes.txt"), b"mine").unwrap();
    copy(&checkpoint(SOURCE), &at("ck"));
    copy(&checkpoint(SOURCE), &at("copy"));
    fs::hard_link(models.join("m.gguf"), at("hard.gguf")).unwrap();
    fs::create_dir(at("holds")).unwrap();
    fs::hard_link(models.join("m.gguf"), at("holds/model.safetensors")).unwrap();
    fs::hard_link(at("ck/config.json"), at("config-link")).unwrap();
    fs::create_dir_all(at("ck/below")).unwrap();
    fs::write(at("ck/below/x"), b"x").unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink("models/m.gguf", at("link.gguf")).unwrap();
        symlink("models", at("link")).unwrap();
        symlink("ck", at("ck-link")).unwrap();
    }
    let gguf = models.join("m.gguf");
    let (gguf, ck, against) = (text(&gguf), at("ck"), at("copy"));
    let ck = text(&ck);
    let mut tries = vec![
        // the source, and directories around it
        (gguf, "models/m.gguf", "gguf-tq1_0"),
        (gguf, "hard.gguf", "gguf-tq1_0"),
        (gguf, "models", "hf-packed"),
        (gguf, "holds", "hf-packed"),
        (ck, "ck", "hf-packed"),
        (ck, "ck/below", "hf-packed"),
        (ck, "ck/model.safetensors", "gguf-i2_s"),
        (ck, "ck/config.json", "gguf-i2_s"),
        (ck, "ck/tokenizer.json", "gguf-i2_s"),
        (ck, "config-link", "gguf-i2_s"),
        // the copy that tells the layout
        (gguf, "copy/model.safetensors", "gguf-i2_s"),
        (gguf, "copy", "hf-packed"),
    ];
    if cfg!(unix) {
        tries.extend([
            (gguf, "link.gguf", "gguf-tq1_0"),
            (gguf, "link", "hf-packed"),
            (ck, "ck-link", "hf-packed"),
        ]);
    }
    for (source, output, target) in tries {
        let output = at(output);
        let words = [source, "-o", text(&output), "--to", target, "--force"];
        let words = [&words[..], &["--against", text(&against)]].concat();
        let message = refused(bitnet_convert::run, dir.path(), &words, "usage");
        assert!(message.contains("input of this run"), "{message}");
    }
    // the certificate of the output is an input: of the model that is called so
    let named = at("n.gguf.certificate.json");
    fs::copy(gguf, &named).unwrap();
    let output = at("n.gguf");
    let words = [text(&named), "-o", text(&output), "--force"];
    refused(bitnet_convert::run, dir.path(), &words, "usage");
    // beside the source there is room, again and again
    for output in ["ck/model.gguf", "models/n.gguf"] {
        for _ in 0..2 {
            convert(Path::new(ck), &at(output), &["--force"]);
        }
    }
}

#[test]
fn reports_logits_and_vectors_replace_no_input() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let gguf = at("m.gguf");
    convert(&checkpoint(SOURCE), &gguf, &[]);
    copy(&checkpoint(SOURCE), &at("ck"));
    copy(&checkpoint("bitnet-embedding-270m"), &at("em"));
    let prompts = at("p.json");
    fs::write(&prompts, r#"{"a": {"ids": [1, 2, 3]}}"#).unwrap();
    fs::hard_link(&prompts, at("p-link")).unwrap();
    fs::write(at("lines.txt"), "a text\n").unwrap();
    let path = |name: &str| text(&at(name)).to_owned();
    for (words, output) in [
        (vec!["logits", "m.gguf", "--prompts", "p.json"], "m.gguf"),
        (vec!["logits", "m.gguf", "--prompts", "p.json"], "p.json"),
        (vec!["logits", "m.gguf", "--prompts", "p.json"], "p-link"),
        (
            vec!["logits", "ck", "--prompts", "p.json"],
            "ck/model.safetensors",
        ),
        (
            vec!["logits", "ck", "--prompts", "p.json"],
            "ck/tokenizer.json",
        ),
        (vec!["embed", "em", "--file", "lines.txt"], "lines.txt"),
        (vec!["embed", "em", "--prompts", "p.json"], "p.json"),
        (
            vec!["embed", "em", "--prompts", "p.json"],
            "em/model.safetensors",
        ),
        (vec!["embed", "em", "--prompts", "p.json"], "em/config.json"),
    ] {
        let mut words: Vec<String> = words
            .iter()
            .map(|w| match at(w).exists() {
                true => path(w),
                false => (*w).to_owned(),
            })
            .collect();
        words.extend(["-o".to_owned(), path(output), "--force".to_owned()]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        refused(bitnet_run::run, dir.path(), &words, "usage");
    }
    let certificate = path("m.gguf.certificate.json");
    let (model, ck) = (path("m.gguf"), path("ck"));
    for report in ["--html", "--junit", "--markdown"] {
        for output in [
            "m.gguf",
            "m.gguf.certificate.json",
            "ck/config.json",
            "ck/model.safetensors",
        ] {
            let output = path(output);
            let words = [
                &model,
                "--certificate",
                &certificate,
                "--against",
                &ck,
                report,
                &output,
                "--force",
            ];
            refused(bitnet_verify::run, dir.path(), &words, "usage");
        }
        refused(
            bitnet_verify::run,
            dir.path(),
            &[&model, "--against", &ck, report, "-"],
            "usage",
        );
        let nowhere = path("nowhere/r");
        let words = [&model, "--against", &ck, report, &nowhere];
        refused(bitnet_verify::run, dir.path(), &words, "io");
    }
    let both = path("report");
    let words = [
        &model,
        "--against",
        &ck,
        "--html",
        &both,
        "--junit",
        &both,
        "--force",
    ];
    refused(bitnet_verify::run, dir.path(), &words, "usage");
    fs::hard_link(&gguf, at("same.gguf")).unwrap();
    for output in ["m.gguf", "same.gguf"] {
        let words = ["doctor", &model, "--fix", "-o", &path(output), "--force"];
        refused(bitnet_verify::run, dir.path(), &words, "usage");
    }
}

#[test]
fn names_that_are_no_outputs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint(SOURCE);
    let source = text(&source);
    let place = dir.path();
    let prompts = fixture(SOURCE).unwrap().golden.join("prompts.json");
    for output in ["-", ".", "..", "/"] {
        for to in ["gguf-i2_s", "hf-packed"] {
            let words = [source, "-o", output, "--to", to, "--force"];
            let message = refused(bitnet_convert::run, place, &words, "usage");
            assert!(message.contains(output), "{message}");
        }
        let words = [
            "logits",
            source,
            "--prompts",
            text(&prompts),
            "-o",
            output,
            "--force",
        ];
        refused(bitnet_run::run, place, &words, "usage");
    }
    let part = place.join("m-00002-of-00005.gguf");
    refused(
        bitnet_convert::run,
        place,
        &[source, "-o", text(&part)],
        "usage",
    );
    let under = place.join("absent/m.gguf");
    let message = refused(
        bitnet_convert::run,
        place,
        &[source, "-o", text(&under)],
        "io",
    );
    assert!(message.contains("does not exist"), "{message}");
    fs::write(place.join("file"), b"x").unwrap();
    let under = place.join("file/m.gguf");
    let message = refused(
        bitnet_convert::run,
        place,
        &[source, "-o", text(&under)],
        "io",
    );
    assert!(message.contains("is not a directory"), "{message}");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere/x", place.join("dangling")).unwrap();
        std::os::unix::fs::symlink("loop", place.join("loop")).unwrap();
        for to in ["gguf-i2_s", "hf-packed"] {
            let output = place.join("dangling");
            let words = [source, "-o", text(&output), "--to", to, "--force"];
            let message = refused(bitnet_convert::run, place, &words, "exists");
            assert!(message.contains("nowhere/x"), "{message}");
            let output = place.join("loop");
            let words = [source, "-o", text(&output), "--to", to, "--force"];
            let (done, json) = run(bitnet_convert::run, &words);
            assert!(!done && json["error"]["code"] == "io", "{json}");
        }
        let pipe = place.join("pipe");
        assert!(
            Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let words = [source, "-o", text(&pipe), "--to", "gguf-i2_s", "--force"];
        let (done, json) = run(bitnet_convert::run, &words);
        assert!(!done && json["error"]["code"] == "exists", "{json}");
    }
}

/// A shell line with `$P` for the program, `$S` for the source; exit status and stderr.
#[cfg(unix)]
fn shell(line: &str, place: &Path) -> (Option<i32>, String) {
    let ran = Command::new("bash")
        .args(["-c", line])
        .current_dir(place)
        .env("P", env!("CARGO_BIN_EXE_convert_under_test"))
        .env("S", checkpoint(SOURCE))
        .output()
        .unwrap();
    (ran.status.code(), String::from_utf8(ran.stderr).unwrap())
}

#[cfg(unix)]
#[test]
fn limits_and_closed_streams_are_errors_or_nothing_and_never_signals() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path();
    // a file size limit, in units of 1024 bytes, over the certificate and under the weights
    for output in ["a.gguf", "a", "a.gguf --split-max-size 100K"] {
        let (code, err) = shell(&format!("ulimit -f 100; \"$P\" \"$S\" -o {output}"), place);
        assert_eq!(code, Some(2), "{err}");
        assert!(
            err.contains("error: ") && err.contains("ulimit -f"),
            "{err}"
        );
        assert!(tree(place).is_empty(), "{:?}", tree(place).keys());
    }
    // the certificate alone is too long: 737 kB of weights in parts of at most 240 kB fit
    let (code, err) = shell("\"$P\" \"$S\" -o whole.gguf", place);
    assert_eq!(code, Some(0), "{err}");
    let before = tree(place);
    let (code, err) = shell(
        "ulimit -f 9; \"$P\" \"$S\" -o whole.gguf --force --split-max-size 1K",
        place,
    );
    assert_eq!(code, Some(2), "{err}");
    assert!(before == tree(place), "{:?}", tree(place).keys());
    for (line, expected) in [
        ("\"$P\" \"$S\" -o closed.gguf >&-", 0),
        ("\"$P\" \"$S\" -o closed.gguf --force --json >&-", 0),
        ("\"$P\" \"$S\" -o closed.gguf --force >&- 2>&- <&-", 0),
    ] {
        let (code, err) = shell(line, place);
        assert_eq!(code, Some(expected), "{line}: {err}");
        assert!(!err.contains("panic"), "{err}");
        convert(
            &place.join("closed.gguf"),
            &place.join("again.gguf"),
            &["--force"],
        );
    }
    if Path::new("/dev/full").exists() {
        for more in ["", " --json"] {
            let (code, err) = shell(
                &format!("\"$P\" \"$S\" -o full.gguf --force{more} >/dev/full"),
                place,
            );
            assert_eq!(code, Some(2), "{err}");
            assert!(err.contains("error: cannot write the output"), "{err}");
            assert!(place.join("full.gguf.certificate.json").exists());
        }
    }
    // stdout may be a file: it is not the output
    let (code, err) = shell(
        "\"$P\" \"$S\" -o /dev/stdout --to gguf-i2_s --force >mine",
        place,
    );
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("stream"), "{err}");
    assert_eq!(fs::read(place.join("mine")).unwrap(), b"");
}
