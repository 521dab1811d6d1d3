//! Errors say what is wrong and what to do: every row is a mistake that people make, and the words that have to be told
//! them.
//!
//! Invariant: each mistake ends with exit status 2 and names its own cause; what was a right command line before stays one.
#![cfg(unix)]

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{checkpoint, fixtures, repository};
use bitnet_tests::program::{Program, Ran, run};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn demo() -> PathBuf {
    repository().join("tests/fixtures/demo/checkpoint")
}

fn words(text: &str) -> Vec<String> {
    let demo = demo();
    let demo = demo.to_str().unwrap();
    let words = text.split(' ');
    words
        .map(|word| {
            word.replace('_', " ")
                .replace('~', "_")
                .replace("DEMO", demo)
        })
        .collect()
}

/// Runs a program on words between blanks; `_` is a blank in a word, `~` an underscore.
fn ran(program: Program, text: &str) -> Ran {
    run(program, words(text))
}

/// Refuses, in words that hold all of these.
fn refused(program: Program, text: &str, expected: &[&str]) -> String {
    let ran = ran(program, text);
    assert_eq!(ran.status, ExitStatus::CouldNot, "{text}: {}", ran.stdout);
    for word in expected {
        assert!(
            ran.stderr.contains(word),
            "{text}: `{word}` is not in\n{}",
            ran.stderr
        );
    }
    ran.stderr
}

#[test]
fn near_words_are_suggested_and_far_ones_are_not() {
    let convert = bitnet_convert::run;
    for (to, meant) in [
        ("gguf-i2s", "did you mean gguf-i2_s?"),
        ("i2~s", "did you mean gguf-i2_s?"),
        ("GGUF-I2~S", "did you mean gguf-i2_s?"),
        ("gguf~tq2~0", "did you mean gguf-tq2_0?"),
        ("hf-pakced", "did you mean hf-packed?"),
        ("bf16", "did you mean gguf-bf16 or hf-bf16?"),
    ] {
        refused(convert, &format!("DEMO -o o.gguf --to {to}"), &[meant]);
    }
    for to in ["q4~k~m", "gptq", "awq", "xyz", "int4"] {
        let text = refused(
            convert,
            &format!("DEMO -o o.gguf --to {to}"),
            &["gguf-i2_s", "bitnet-convert list"],
        );
        assert!(!text.contains("did you mean"), "{text}");
    }
    refused(
        convert,
        "DEMO -o o.gguf --emebddings f16",
        &["did you mean --embeddings?"],
    );
    refused(
        convert,
        "isnpect DEMO",
        &["unknown command `isnpect`", "inspect?"],
    );
    refused(
        convert,
        "DEMO o.gguf",
        &["give the output with -o", "-o o.gguf"],
    );
    let verify = bitnet_verify::run;
    refused(
        verify,
        "docotr DEMO",
        &["unknown command `docotr`", "doctor?"],
    );
    refused(verify, "DEMO DEMO", &["--against"]);
    refused(
        verify,
        "DEMO --logits --kernel scaler",
        &["did you mean scalar?"],
    );
    let program = bitnet_run::run;
    refused(
        program,
        "bnech DEMO",
        &["unknown command `bnech`", "bench?"],
    );
    refused(program, "kernls", &["unknown command `kernls`", "kernels?"]);
    refused(
        program,
        "DEMO --tokens 1 --kernel scaler",
        &["did you mean scalar?"],
    );
    let text = refused(
        program,
        "DEMO --tokens 1 --kernel cuda",
        &["unknown kernel"],
    );
    assert!(!text.contains("did you mean"), "{text}");
}

#[test]
fn one_text_behind_the_model_is_the_prompt_and_several_are_refused() {
    let program = bitnet_run::run;
    let given = ran(program, "DEMO -p hello_world -n 4 -q").stdout;
    for text in ["DEMO hello_world -n 4 -q", "-n 4 DEMO -q hello_world"] {
        assert_eq!(ran(program, text).stdout, given, "{text}");
    }
    for text in ["DEMO hello world", "DEMO What is it? -n 4"] {
        refused(
            program,
            text,
            &[
                "one text behind the model",
                "put the prompt in quotes",
                "-p",
            ],
        );
    }
    refused(program, "DEMO", &["no prompt given", "-p TEXT"]);
    refused(
        program,
        "DEMO -p --greedy",
        &["expected a text behind -p", "-p=--greedy"],
    );
}

#[test]
fn prompts_may_begin_with_a_dash() {
    let program = bitnet_run::run;
    let prompt = |text: &str| {
        let ran = ran(program, &format!("DEMO {text} -n 2 --json"));
        assert_eq!(ran.status, ExitStatus::Done, "{text}: {}", ran.stdout);
        ran.json()["prompt_tokens"].clone()
    };
    let item = prompt("-p=-_item");
    for text in ["-p -_item", "--prompt -_item", "--prompt=-_item"] {
        assert_eq!(prompt(text), item, "{text}");
    }
    assert_ne!(prompt("-p -x"), item);
    prompt("-p --_item");
    prompt("--chat --system -_brief -p -_item");
}

#[test]
fn numbers_outside_their_range_are_refused_with_it() {
    let program = bitnet_run::run;
    for (flag, values, range) in [
        (
            "--temp",
            "nan NaN inf -inf -1 -0.5 1e39 x",
            "a finite number from 0 on",
        ),
        ("--top-p", "nan inf 1.5 -0.1 2 x", "from 0 to 1"),
        ("--min-p", "nan inf 7 1.01 -1 x", "from 0 to 1"),
        (
            "--top-k",
            "-1 1.5 nan 99999999999999999999",
            "a whole number from 0 on",
        ),
        (
            "--seed",
            "-1 0.5 99999999999999999999",
            "from 0 to 18446744073709551615",
        ),
        (
            "-n",
            "-1 0.5 99999999999999999999",
            "a whole number from 0 on",
        ),
        ("--ctx", "0 -1 x", "a whole number from 1 on"),
        ("--threads", "0 -1 99999 x", "a number from 1 to 1024"),
    ] {
        for value in values.split(' ') {
            let text = refused(
                program,
                &format!("DEMO --tokens 1 {flag} {value}"),
                &[range],
            );
            assert!(text.contains(value), "{text}");
        }
    }
    for value in ["-1", "x", "1,-2", "4294967296"] {
        refused(
            program,
            &format!("DEMO --tokens {value}"),
            &["--tokens", "a whole number from 0 to"],
        );
    }
    // the ends of the ranges
    for flags in [
        "--temp 0",
        "--top-p 0",
        "--top-p 1",
        "--min-p 0",
        "--min-p 1",
        "--top-k 0",
        "--seed 0",
    ] {
        let ran = ran(program, &format!("DEMO --tokens 1 -n 2 {flags}"));
        assert_eq!(ran.status, ExitStatus::Done, "{flags}: {}", ran.stderr);
    }
    refused(
        bitnet_verify::run,
        "DEMO --against DEMO --max-kl -1",
        &["not negative", "-1"],
    );
    refused(
        bitnet_convert::run,
        "DEMO -o o.gguf --split-max-size -1",
        &["expected a size", "-1"],
    );
    refused(
        program,
        "bench DEMO -p 0 -n 0",
        &["at least one length above 0"],
    );
    refused(program, "bench DEMO -r 0", &["a whole number from 1 on"]);
    refused(program, "bench DEMO -p -5", &["a whole number from 0 on"]);
}

/// Every program on one model.
fn all_refuse(model: &Path, expected: &[&str]) {
    let model = model.to_str().unwrap();
    let of: [(Program, Vec<&str>); 4] = [
        (bitnet_run::run, vec![model, "--tokens", "1"]),
        (bitnet_convert::run, vec!["inspect", model]),
        (bitnet_convert::run, vec![model, "-o", "/dev/null/o.gguf"]),
        (bitnet_verify::run, vec![model, "--against", model]),
    ];
    for (program, words) in of {
        let ran = run(program, words);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
        for word in expected {
            assert!(
                ran.stderr.contains(word),
                "`{word}` is not in\n{}",
                ran.stderr
            );
        }
    }
}

#[test]
fn the_missing_part_of_a_path_is_named() {
    let dir = tempfile::tempdir().unwrap();
    all_refuse(
        &dir.path().join("m.gguf"),
        &["m.gguf: no such file or directory"],
    );
    all_refuse(
        &dir.path().join("deep/er/m.gguf"),
        &["deep` does not exist"],
    );
    for (name, command) in [
        (
            "microsoft/bitnet-b1.58-2B-4T",
            "hf download microsoft/bitnet-b1.58-2B-4T --local-dir bitnet-b1.58-2B-4T",
        ),
        (
            "tiiuae/Falcon-E-3B-Instruct",
            "hf download tiiuae/Falcon-E-3B-Instruct",
        ),
        (
            "https://huggingface.co/owner/name",
            "hf download owner/name",
        ),
        ("owner/name/m.gguf", "hf download owner/name m.gguf"),
    ] {
        all_refuse(Path::new(name), &["Hugging Face Hub", command]);
    }
    let convert = bitnet_convert::run;
    refused(
        convert,
        "DEMO -o no-such-directory/m.gguf",
        &["the directory `no-such-directory` does not exist"],
    );
    let program = bitnet_run::run;
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let below = file.join("x");
    let demo = demo();
    let words = [
        "perplexity",
        demo.to_str().unwrap(),
        below.to_str().unwrap(),
    ];
    let ran = run(program, words);
    assert!(
        ran.stderr.contains("is a file, not a directory"),
        "{}",
        ran.stderr
    );
    refused(
        program,
        "perplexity DEMO DEMO",
        &["expected a regular file, found a directory"],
    );
    refused(
        bitnet_verify::run,
        "DEMO --prompts DEMO",
        &["expected a regular file, found a directory"],
    );
}

#[test]
fn what_stands_in_the_place_of_weights_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 5000\n";
    for (name, bytes, word) in [
        ("p.gguf", &pointer[..], "a Git LFS pointer"),
        ("p.safetensors", pointer, "a Git LFS pointer"),
        ("h.gguf", b"<!DOCTYPE html>\n<html lang=\"en\">", "an HTML"),
        (
            "x.gguf",
            b"<?xml version=\"1.0\"?><Error><Code>NoSuchKey",
            "XML page",
        ),
        ("e.gguf", b"", "an empty file"),
        ("z.gguf", &[0; 4096], "zeros"),
        ("g.gguf", b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "a gzip archive"),
        ("t.gguf", b"just some words", "plain text"),
        ("j.gguf", b"{\"error\": \"Repository not found\"}", "JSON"),
        ("o.bin", b"tjgg\x03\0\0\0\0\0\0\0", "GGJT"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        all_refuse(&path, &[name, word, "hint: "]);
    }
    // the weights of a checkpoint
    let of = dir.path().join("checkpoint");
    std::fs::create_dir(&of).unwrap();
    std::fs::write(of.join("config.json"), "{}").unwrap();
    std::fs::write(of.join("model.safetensors"), pointer).unwrap();
    all_refuse(&of, &["model.safetensors", "a Git LFS pointer"]);
    // its configuration
    let weights = checkpoint("bitcpm").join("model.safetensors");
    std::fs::copy(&weights, of.join("model.safetensors")).unwrap();
    std::fs::write(of.join("config.json"), pointer).unwrap();
    all_refuse(&of, &["config.json", "a Git LFS pointer"]);
    std::fs::write(of.join("config.json"), b"\xff\xfe{\0}\0").unwrap();
    all_refuse(&of, &["config.json", "UTF-16"]);
    // weights of another container under the name of this one
    let alone = dir.path().join("alone");
    std::fs::create_dir(&alone).unwrap();
    std::fs::copy(&weights, alone.join("m.gguf")).unwrap();
    let alone = alone.join("m.gguf");
    let ran = run(bitnet_run::run, [alone.to_str().unwrap(), "--tokens", "1"]);
    assert_eq!(ran.status, ExitStatus::CouldNot);
    for word in [
        "config.json",
        "holds safetensors, though its name ends in .gguf",
    ] {
        assert!(ran.stderr.contains(word), "{}", ran.stderr);
    }
}

/// A copy of a checkpoint.
fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn a_byte_order_mark_is_nothing_to_every_program() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, marked) = (demo(), dir.path().join("marked"));
    copied(&plain, &marked);
    let mut count = 0;
    for entry in std::fs::read_dir(&marked).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            let mut bytes = b"\xef\xbb\xbf".to_vec();
            bytes.extend(std::fs::read(&path).unwrap());
            std::fs::write(&path, bytes).unwrap();
            count += 1;
        }
    }
    assert!(
        count >= 3,
        "config.json, tokenizer.json, tokenizer_config.json"
    );
    let of = |model: &Path, more: &[&str]| {
        let mut words = vec![model.to_str().unwrap(), "-n", "4", "--json"];
        words.extend(more);
        let ran = run(bitnet_run::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
        ran.json()["tokens"].clone()
    };
    for more in [
        &["--tokens", "1,2"][..],
        &["-p", "hello"],
        &["--chat", "-p", "hello"],
    ] {
        assert_eq!(of(&marked, more), of(&plain, more));
    }
    for (program, words) in [
        (bitnet_convert::run as Program, vec!["inspect"]),
        (bitnet_verify::run as Program, vec!["doctor"]),
        (
            bitnet_verify::run as Program,
            vec!["--against", plain.to_str().unwrap()],
        ),
    ] {
        let mut words = words.clone();
        words.push(marked.to_str().unwrap());
        let ran = run(program, words);
        assert_eq!(ran.status, ExitStatus::Done, "{}{}", ran.stdout, ran.stderr);
    }
    let out = dir.path().join("m.gguf");
    let ran = run(
        bitnet_convert::run,
        [marked.to_str().unwrap(), "-o", out.to_str().unwrap()],
    );
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    let ran = run(
        bitnet_verify::run,
        [out.to_str().unwrap(), "--against", marked.to_str().unwrap()],
    );
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    assert_eq!(of(&out, &["-p", "hello"]), of(&plain, &["-p", "hello"]));
}

#[test]
fn a_byte_order_mark_is_nothing_in_an_index_and_a_pipeline() {
    let mark = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        std::fs::write(path, [&b"\xef\xbb\xbf"[..], &bytes].concat()).unwrap();
    };
    let dir = tempfile::tempdir().unwrap();
    for (fixture, name) in [
        ("falcon3-1.58", "model.safetensors.index.json"),
        ("bitnet-embedding-0.6b", "modules.json"),
    ] {
        let plain = bitnet_tests::fixtures::checkpoint(fixture);
        let marked = dir.path().join(fixture);
        copied(&plain, &marked);
        for below in ["1_Pooling"].iter().filter(|d| plain.join(d).is_dir()) {
            copied(&plain.join(below), &marked.join(below));
        }
        mark(&marked.join(name));
        let of = |model: &Path| {
            let words = ["inspect", model.to_str().unwrap(), "--json"];
            let ran = run(bitnet_convert::run, words);
            assert_eq!(ran.status, ExitStatus::Done, "{fixture}: {}", ran.stdout);
            let mut json = ran.json();
            for key in ["path", "files"] {
                json.as_object_mut().unwrap().remove(key).unwrap();
            }
            json
        };
        assert_eq!(of(&marked), of(&plain), "{fixture}");
        if name.ends_with(".index.json") {
            let ran = run(
                bitnet_convert::run,
                ["inspect", marked.join(name).to_str().unwrap(), "--json"],
            );
            assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
        }
        let out = dir.path().join(format!("{fixture}.gguf"));
        let words = [marked.to_str().unwrap(), "-o", out.to_str().unwrap()];
        let ran = run(bitnet_convert::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{fixture}: {}", ran.stderr);
        let words = [
            out.to_str().unwrap(),
            "--against",
            marked.to_str().unwrap(),
            "--json",
        ];
        let ran = run(bitnet_verify::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{fixture}: {}", ran.stdout);
    }
}

#[test]
fn a_gguf_file_without_its_architecture_says_so() {
    use bitnet_formats::{Limits, MetaValue};
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.gguf");
    let ran = run(
        bitnet_convert::run,
        [demo().to_str().unwrap(), "-o", model.to_str().unwrap()],
    );
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    let file = bitnet_formats::open(&model, &Limits::default()).unwrap();
    let key = "general.architecture";
    assert!(file.metadata.get(key).and_then(MetaValue::as_str).is_some());
    // the same length, so nothing moves
    let mut bytes = std::fs::read(&model).unwrap();
    let at = bytes
        .windows(key.len())
        .position(|w| w == key.as_bytes())
        .unwrap();
    bytes[at..at + key.len()].copy_from_slice(b"general.architektur_");
    std::fs::write(&model, bytes).unwrap();
    for words in [
        vec![model.to_str().unwrap(), "--tokens", "1"],
        vec![model.to_str().unwrap(), "-p", "x"],
    ] {
        let ran = run(bitnet_run::run, words);
        assert_eq!(ran.status, ExitStatus::CouldNot);
        assert!(
            ran.stderr
                .contains("`general.architecture`: the key is missing"),
            "{}",
            ran.stderr
        );
        assert!(!ran.stderr.contains("config.json"), "{}", ran.stderr);
    }
}

#[test]
fn files_joined_with_cat_are_told_and_the_hint_works() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.gguf");
    let convert = |more: &[&str]| {
        let (demo, model) = (demo(), model.to_str().unwrap().to_owned());
        let mut words = vec![demo.to_str().unwrap(), "-o", &model, "--force"];
        words.extend(more);
        let ran = run(bitnet_convert::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    };
    let generate = |path: &Path| {
        run(
            bitnet_run::run,
            [path.to_str().unwrap(), "--tokens", "1,2", "-n", "4"],
        )
    };
    convert(&[]);
    let expected = generate(&model).stdout;
    let whole = std::fs::read(&model).unwrap();
    convert(&["--split-max-size", "300kB"]);
    let mut parts: Vec<PathBuf> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains("-of-"))
        .collect();
    parts.sort();
    assert!(parts.len() > 1);
    let parts: Vec<u8> = parts
        .iter()
        .flat_map(|part| std::fs::read(part).unwrap())
        .collect();
    let place = dir.path().join("joined it's");
    std::fs::create_dir(&place).unwrap();
    for (name, bytes) in [
        ("cat.gguf", parts),
        ("two.gguf", [whole.clone(), whole].concat()),
    ] {
        let path = place.join(name);
        std::fs::write(&path, bytes).unwrap();
        let ran = generate(&path);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
        assert!(ran.stderr.contains("joined"), "{}", ran.stderr);
        let hint = ran
            .stderr
            .lines()
            .find_map(|l| l.strip_prefix("hint: cut it apart: "))
            .unwrap();
        let (commands, first) = hint.split_once("; then give ").unwrap();
        let done = Command::new("sh").args(["-c", commands]).status().unwrap();
        assert!(done.success(), "{commands}");
        let first = Command::new("sh")
            .args(["-c", &format!("printf %s {first}")])
            .output()
            .unwrap();
        let first = String::from_utf8(first.stdout).unwrap();
        assert_eq!(generate(Path::new(&first)).stdout, expected, "{first}");
    }
}

/// The program with text on its standard input.
fn piped(words: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_run_under_test"))
        .arg(demo())
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // the program may stop reading early
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn standard_input_is_a_prompt_and_has_to_be_text() {
    let given = run(
        bitnet_run::run,
        [demo().to_str().unwrap(), "-p", "- a\nb", "-n", "4", "-q"],
    );
    for input in ["- a\nb", "- a\nb\n", "- a\nb\r\n"] {
        let ran = piped(&["-p", "-", "-n", "4", "-q"], input.as_bytes());
        assert_eq!(
            String::from_utf8_lossy(&ran.stdout),
            given.stdout,
            "{input:?}"
        );
    }
    for words in [&["-p", "-"][..], &["--chat", "-p", "-"], &["--chat"]] {
        let ran = piped(words, b"hi\xff\n");
        let text = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{words:?}: {text}");
        assert!(
            text.contains("expected UTF-8 text, found the byte 0xff"),
            "{text}"
        );
        assert!(text.contains("standard input"), "{text}");
        assert!(!text.contains("cannot write"), "{text}");
    }
    let endless = vec![b'a'; (64 << 20) + 2];
    let ran = piped(&["-p", "-"], &endless);
    assert_eq!(ran.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("at most 67108864 bytes"));
}

#[test]
fn what_a_kernel_lacks_is_named_exactly() {
    let mut absent = 0;
    for kernel in bitnet_kernels::KERNELS {
        let missing = (kernel.missing)();
        let ran = run(
            bitnet_run::run,
            [
                demo().to_str().unwrap(),
                "--tokens",
                "1",
                "-n",
                "1",
                "--kernel",
                kernel.name,
            ],
        );
        assert_eq!(
            ran.status == ExitStatus::Done,
            missing.is_empty(),
            "{}",
            ran.stderr
        );
        if missing.is_empty() {
            continue;
        }
        absent += 1;
        let lacks = ran.stderr.split("lacks ").nth(1).unwrap();
        let lacks = lacks.lines().next().unwrap();
        assert_eq!(lacks, missing.join(", "));
        let offered = bitnet_kernels::cpu_features();
        assert!(
            missing.iter().all(|one| !offered.contains(one)),
            "{lacks}: {offered:?}"
        );
    }
    // every kernel of another machine is refused somewhere; on one that runs all of them there is nothing to see
    assert!(absent > 0 || bitnet_kernels::KERNELS.iter().all(|k| (k.is_available)()));
}

#[test]
fn two_models_are_called_two_models() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (checkpoint("falcon-e"), demo());
    for (artifact, source) in [
        (&one, &other),
        (&other, &one),
        (&one, &checkpoint("llama3-8b-1.58")),
    ] {
        let words = [
            artifact.to_str().unwrap(),
            "--against",
            source.to_str().unwrap(),
        ];
        let ran = run(bitnet_verify::run, words);
        assert_eq!(ran.status, ExitStatus::Different);
        assert!(
            ran.stdout.contains("these look like different models"),
            "{}",
            ran.stdout
        );
        assert!(ran.stdout.lines().count() < 20, "{}", ran.stdout);
        let mut words = words.to_vec();
        words.push("--json");
        let report = run(bitnet_verify::run, words).json();
        assert!(report["different_models"].is_string(), "{report}");
    }
    let model = dir.path().join("m.gguf");
    let ran = run(
        bitnet_convert::run,
        [one.to_str().unwrap(), "-o", model.to_str().unwrap()],
    );
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    let certificate = dir.path().join("m.gguf.certificate.json");
    let words = [
        other.to_str().unwrap(),
        "--certificate",
        certificate.to_str().unwrap(),
    ];
    let ran = run(bitnet_verify::run, words);
    assert_eq!(ran.status, ExitStatus::Different);
    assert!(
        ran.stdout.contains("these look like different models"),
        "{}",
        ran.stdout
    );
    // every fixture is itself in another form
    for fixture in fixtures() {
        let mut words = vec![
            fixture.checkpoint.to_str().unwrap(),
            "--against",
            fixture.checkpoint.to_str().unwrap(),
            "--json",
        ];
        if fixture.ternary_trained() {
            words.push("--ternary-trained");
        }
        let report = run(bitnet_verify::run, words).json();
        assert!(
            report.get("different_models").is_none(),
            "{}: {report}",
            fixture.name
        );
    }
}

#[test]
fn identical_bits_take_one_line() {
    let demo = demo();
    let words = [
        demo.to_str().unwrap(),
        "--logits",
        "--against",
        demo.to_str().unwrap(),
    ];
    let ran = run(bitnet_verify::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    assert!(
        ran.stdout
            .contains("logits, against the source: bit-identical"),
        "{}",
        ran.stdout
    );
    assert!(!ran.stdout.contains("KLD"), "{}", ran.stdout);
    // against something else the figures are there
    let ran = run(bitnet_verify::run, [demo.to_str().unwrap(), "--logits"]);
    assert!(ran.stdout.contains("Mean KLD"), "{}", ran.stdout);
}
