//! Embedding models: `bitnet-run embed` against transformers, on every kernel, from every container, and
//! what such a model refuses to do.

use bitnet_checkpoint::{Checkpoint, OpenOptions, Pooling};
use bitnet_cli::ExitStatus;
use bitnet_convert::TARGETS;
use bitnet_formats::{Limits, PACKINGS, Packing};
use bitnet_kernels::Backend;
use bitnet_tests::fixtures::{Fixture, checkpoint, fixture, fixtures, read_json};
use bitnet_tests::program::{self, Ran};
use std::path::Path;

const FIXTURES: [&str; 2] = ["bitnet-embedding-0.6b", "bitnet-embedding-270m"];

fn run(args: &[&str]) -> Ran {
    program::run(bitnet_run::run, args.iter().copied())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// `embeddings_sha256` of the golden prompts.
fn sha256(model: &Path, prompts: &Path, more: &[&str]) -> String {
    let mut args = vec!["embed", text(model), "--prompts", text(prompts), "--json"];
    args.extend(more);
    let ran = run(&args);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    ran.json()["embeddings_sha256"].as_str().unwrap().to_owned()
}

fn prompts(name: &str) -> std::path::PathBuf {
    fixture(name).unwrap().golden.join("prompts.json")
}

fn embedding_fixtures() -> Vec<Fixture> {
    fixtures()
        .into_iter()
        .filter(Fixture::is_embedding)
        .collect()
}

#[test]
fn texts_become_the_golden_vectors() {
    for fixture in embedding_fixtures() {
        let golden = fixture.golden();
        let prompts = read_json(&fixture.golden.join("prompts.json"));
        for prompt in &golden.prompts {
            let Some(text) = prompts[&prompt.name]["text"].as_str() else {
                continue;
            };
            let model = fixture.checkpoint.to_str().unwrap();
            let ran = run(&["embed", model, "--json", "--", text]);
            assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
            let json = ran.json();
            let place = format!("{} {}", fixture.name, prompt.name);
            assert_eq!(json["tokens"], prompt.ids.len(), "{place}");
            assert_eq!(json["pooling"], "last");
            let row = json["embeddings"][0]["embedding"].as_array().unwrap();
            let row: Vec<f64> = row.iter().map(|v| v.as_f64().unwrap()).collect();
            let want = &golden.embeddings[&prompt.name];
            let pairs = || row.iter().zip(want).map(|(a, b)| (*a, f64::from(*b)));
            let dot: f64 = pairs().map(|(a, b)| a * b).sum();
            let square: f64 = row.iter().map(|a| a * a).sum();
            let max_abs = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            // both are of length 1, so the product is the cosine; gate 4 says why 1e-3
            assert!((square - 1.0).abs() < 1e-6, "{place}: length {square}");
            assert!(dot > 1.0 - 1e-3, "{place}: cosine {dot}");
            // |a - b|^2 = 2 (1 - cosine), all of it in one element at worst
            assert!(max_abs < (2.0 * 1e-3f64).sqrt(), "{place}: {max_abs}");
        }
    }
}

#[test]
fn vectors_do_not_depend_on_kernel_or_threads() {
    for name in FIXTURES {
        let (model, prompts) = (checkpoint(name), prompts(name));
        let mut seen: Vec<String> = Vec::new();
        for backend in Backend::available() {
            for threads in ["1", "3"] {
                let more = ["--kernel", backend.name(), "--threads", threads];
                seen.push(sha256(&model, &prompts, &more));
            }
        }
        seen.dedup();
        assert_eq!(seen.len(), 1, "{name}: {seen:?}");
    }
}

#[test]
fn every_target_holds_the_same_network_or_says_why_not() {
    for name in FIXTURES {
        let (source, prompts) = (checkpoint(name), prompts(name));
        let want = sha256(&source, &prompts, &[]);
        let dir = tempfile::tempdir().unwrap();
        let mut held = Vec::new();
        for target in TARGETS {
            let suffix = if target.name.starts_with("gguf") {
                ".gguf"
            } else {
                ""
            };
            let output = dir.path().join(format!("{}{suffix}", target.name));
            let convert = |from: &Path, to: &Path, target: &str| {
                let words = [text(from), "-o", text(to), "--to", target, "--json"];
                program::run(bitnet_convert::run, words)
            };
            let ran = convert(&source, &output, target.name);
            let json = ran.json();
            if ran.status != ExitStatus::Done {
                let code = json["error"]["code"].as_str().unwrap();
                let known = ["scale-rounding", "target-cannot-hold"];
                assert!(known.contains(&code), "{name} {}: {json}", target.name);
                continue;
            }
            assert_eq!(json["lossless"], true, "{name} {}", target.name);
            let kernel = match target.name.starts_with("packed") {
                true => &["--repack"][..],
                false => &[],
            };
            assert_eq!(
                sha256(&output, &prompts, kernel),
                want,
                "{name} {}",
                target.name
            );
            let words = [text(&output), "--against", text(&source)];
            let ran = program::run(bitnet_verify::run, words);
            assert_eq!(
                ran.status,
                ExitStatus::Done,
                "{}: {}",
                target.name,
                ran.stdout
            );
            // and back, to the other container
            let back = dir.path().join(format!("{}-back", target.name));
            let (back, other) = match target.name.starts_with("gguf") {
                true => (back, "hf-packed"),
                false => (back.with_extension("gguf"), "gguf-i2_s"),
            };
            let ran = convert(&output, &back, other);
            assert_eq!(
                ran.status,
                ExitStatus::Done,
                "{}: {}",
                target.name,
                ran.stdout
            );
            assert_eq!(ran.json()["ternary_sha256"], json["ternary_sha256"]);
            assert_eq!(sha256(&back, &prompts, &[]), want, "{name} {}", target.name);
            let open = |path: &Path| Checkpoint::open(path, &OpenOptions::default()).unwrap();
            let (ours, theirs) = (open(&back).config, open(&source).config);
            assert_eq!(ours.pooling, Some(Pooling::Last));
            assert_eq!(ours, theirs, "{name} {}", target.name);
            held.push(target.name);
        }
        for needed in [
            "gguf-i2_s",
            "gguf-iq2_bn",
            "gguf-f32",
            "hf-packed",
            "hf-bf16",
            "packed",
        ] {
            assert!(
                held.contains(&needed),
                "{name}: {needed} not among {held:?}"
            );
        }
    }
}

#[test]
fn rows_of_640_fit_blocks_of_128_only() {
    // the widths of the published 270M
    let fits = |packing: &dyn Packing| {
        let widths = [640, 1024, 2048];
        widths
            .iter()
            .all(|cols| packing.packed_len(1024, *cols).is_ok())
    };
    let written = PACKINGS.iter().filter(|p| p.is_writable());
    let refuses: Vec<&str> = written.filter(|p| !fits(**p)).map(|p| p.name()).collect();
    assert_eq!(refuses, ["tq1_0", "tq2_0", "stq1_0"]);
}

#[test]
fn an_embedding_model_predicts_nothing_and_any_other_embeds() {
    let embedding = checkpoint(FIXTURES[0]);
    let prompts = prompts(FIXTURES[0]);
    for args in [
        vec![text(&embedding), "-p", "Hello", "--json"],
        vec![
            "logits",
            text(&embedding),
            "--prompts",
            text(&prompts),
            "--json",
        ],
    ] {
        let ran = run(&args);
        assert_eq!(ran.status, ExitStatus::CouldNot);
        let hint = ran.json()["error"]["hint"].as_str().unwrap().to_owned();
        assert!(hint.contains("bitnet-run embed"), "{hint}");
    }
    let causal = checkpoint("bitnet-2b4t-packed");
    let of = |how: &[&str]| {
        let mut args = vec!["embed", text(&causal), "Hello world", "--json"];
        args.extend(how);
        let ran = run(&args);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
        ran.json()["embeddings_sha256"].as_str().unwrap().to_owned()
    };
    assert_eq!(of(&[]), of(&["--pooling", "last"]));
    assert_ne!(of(&[]), of(&["--pooling", "mean"]));
    assert_ne!(of(&["--pooling", "cls"]), of(&["--pooling", "mean"]));
}

#[test]
fn lines_prompts_and_arguments_are_the_same_texts_and_an_output_holds_them() {
    let model = checkpoint(FIXTURES[1]);
    let dir = tempfile::tempdir().unwrap();
    let (lines, json) = (
        dir.path().join("lines.txt"),
        dir.path().join("prompts.json"),
    );
    std::fs::write(&lines, "Hello world\nGood evening\n").unwrap();
    std::fs::write(&json, "[\"Hello world\", \"Good evening\"]").unwrap();
    let of = |more: &[&str]| {
        let mut args = vec!["embed", text(&model), "--json"];
        args.extend(more);
        let ran = run(&args);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
        ran.json()
    };
    let one = of(&["Hello world", "Good evening"]);
    assert_eq!(one["texts"], 2);
    for other in [
        of(&["--file", text(&lines)]),
        of(&["--prompts", text(&json)]),
    ] {
        assert_eq!(one, other);
    }
    let output = dir.path().join("vectors.safetensors");
    let written = of(&["--file", text(&lines), "-o", text(&output)]);
    assert_eq!(written["embeddings_sha256"], one["embeddings_sha256"]);
    assert!(written["embeddings"].is_null());
    let file = bitnet_formats::open(&output, &Limits::default()).unwrap();
    let info = file.tensor("1.embedding").unwrap();
    let bytes = file.read(info).unwrap();
    let values = bytes.as_chunks::<4>().0.iter();
    let values: Vec<f64> = values.map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let row = one["embeddings"][1]["embedding"].as_array().unwrap();
    let same = row
        .iter()
        .zip(&values)
        .all(|(a, b)| a.as_f64().unwrap() as f32 == *b as f32);
    assert!(same && row.len() == values.len());

    let plain = run(&["embed", text(&model), "Hello world", "--quiet"]);
    assert_eq!(plain.stdout.lines().count(), 1);
    let nothing = run(&["embed", text(&model), "--json"]);
    assert_eq!(nothing.status, ExitStatus::CouldNot);
    assert_eq!(nothing.json()["error"]["code"], "usage");
}
