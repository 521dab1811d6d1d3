//! `bitnet-run` as a script sees it: exit status, stdout, JSON keys, and the goldens' greedy ids.

use bitnet_tests::fixtures::{read_json, repository};
use bitnet_tests::program;
use serde_json::Value;
use std::path::PathBuf;

const FAMILY: &str = "bitnet-2b4t-packed";

/// A file of the fixture that ships with the repository: its prompts have the names used here.
fn fixture(part: &str) -> PathBuf {
    repository().join("tests/fixtures").join(FAMILY).join(part)
}

/// Exit status, stdout, stderr.
fn run(args: &[&str]) -> (u8, String, String) {
    let ran = program::run(bitnet_run::run, args.iter().copied());
    (ran.status.code(), ran.stdout, ran.stderr)
}

fn run_json(args: &[&str]) -> (u8, Value) {
    let args = args.iter().copied().chain(["--json"]);
    let ran = program::run(bitnet_run::run, args);
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
    (ran.status.code(), ran.json())
}

fn model() -> String {
    fixture("checkpoint").to_str().unwrap().to_owned()
}

#[test]
fn greedy_ids_are_the_goldens_up_to_the_first_narrow_margin() {
    let prompts = read_json(&fixture("golden/prompts.json"));
    let greedy = read_json(&fixture("golden/greedy.json"));
    let mut compared = 0;
    for (name, prompt) in prompts.as_object().unwrap() {
        let ids: Vec<String> = prompt["ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(Value::to_string)
            .collect();
        let (status, got) =
            run_json(&[&model(), "--tokens", &ids.join(","), "--greedy", "-n", "32"]);
        assert_eq!(status, 0, "{got}");
        let got = got["tokens"].as_array().unwrap();
        assert_eq!(got.len(), 32, "raw ids know no stop token");
        let want = greedy[name]["f32"].as_array().unwrap();
        let margins = greedy[name]["f32_margins"].as_array().unwrap();
        // below 0.3 two correct implementations may differ (formats/numerics.md, gate 4)
        let sure = margins
            .iter()
            .take_while(|m| m.as_f64().unwrap() >= 0.3)
            .count();
        assert_eq!(got[..sure], want[..sure], "{name}");
        compared += sure;
    }
    assert!(compared > 20, "only {compared} ids compared");
}

#[test]
fn text_in_text_out_and_the_same_ids_streamed() {
    let (status, out, err) = run(&[&model(), "-p", "Hello world", "-n", "8", "--ignore-eos"]);
    assert_eq!(status, 0, "{err}");
    let streamed = run(&[
        &model(),
        "-p",
        "Hello world",
        "-n",
        "8",
        "--ignore-eos",
        "--stream",
        "--quiet",
    ]);
    assert_eq!((streamed.0, &streamed.1), (0, &out));
    assert!(streamed.2.is_empty(), "--quiet: {}", streamed.2);
    let (_, json) = run_json(&[&model(), "-p", "Hello world", "-n", "8", "--ignore-eos"]);
    assert_eq!(
        json["text"].as_str().unwrap(),
        out.strip_suffix('\n').unwrap()
    );
}

#[test]
fn sampling_depends_on_the_seed_alone() {
    let sample = |seed: &str, threads: &str| {
        let args = [
            &model(),
            "-p",
            "Hello",
            "-n",
            "24",
            "--temp",
            "1.5",
            "--top-k",
            "50",
            "--top-p",
            "0.99",
            "--min-p",
            "0.001",
            "--ignore-eos",
            "--seed",
            seed,
            "--threads",
            threads,
        ];
        run_json(&args).1["tokens"].clone()
    };
    assert_eq!(sample("1", "1"), sample("1", "2"));
    assert_ne!(sample("1", "1"), sample("2", "1"));
}

#[test]
fn chat_renders_the_template_once() {
    let (status, json) = run_json(&[
        &model(),
        "--chat",
        "-p",
        "Hi",
        "--system",
        "Be kind.",
        "-n",
        "4",
    ]);
    assert_eq!(status, 0, "{json}");
    let ids = json["prompt_tokens"].as_array().unwrap();
    let bos = &ids[0];
    assert_eq!(
        ids.iter().filter(|id| *id == bos).count(),
        1,
        "one begin-of-text"
    );
}

#[test]
fn logits_file_has_the_layout_of_the_goldens() {
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("logits.safetensors");
    let prompts = fixture("golden/prompts.json");
    let (out, prompts) = (out.to_str().unwrap(), prompts.to_str().unwrap());
    let model = model();
    let (status, one) = run_json(&[
        "logits",
        &model,
        "--prompts",
        prompts,
        "-o",
        out,
        "--threads",
        "1",
    ]);
    assert_eq!(status, 0, "{one}");
    let bytes = std::fs::read(out).unwrap();
    let ours = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let golden = std::fs::read(fixture("golden/logits_f32.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&golden).unwrap();
    for (name, tensor) in golden
        .tensors()
        .iter()
        .filter(|(n, _)| n.ends_with(".logits"))
    {
        assert_eq!(ours.tensor(name).unwrap().shape(), tensor.shape(), "{name}");
    }
    // an output that is there is kept, and the same model gives the same hash however it is cut
    let (status, refused) = run_json(&["logits", &model, "--prompts", prompts, "-o", out]);
    assert_eq!(
        (status, refused["error"]["code"].as_str().unwrap()),
        (2, "exists")
    );
    for kernel in bitnet_kernels::Backend::available() {
        let (_, other) = run_json(&[
            "logits",
            &model,
            "--prompts",
            prompts,
            "--kernel",
            kernel.name(),
            "--batch",
            "3",
        ]);
        assert_eq!(
            other["logits_sha256"],
            one["logits_sha256"],
            "{}",
            kernel.name()
        );
    }
}

#[test]
fn perplexity_of_a_text() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("text.txt");
    std::fs::write(
        &file,
        "The quick brown fox jumps over the lazy dog. ".repeat(8),
    )
    .unwrap();
    let (status, json) = run_json(&[
        "perplexity",
        &model(),
        file.to_str().unwrap(),
        "--ctx",
        "64",
    ]);
    assert_eq!(status, 0, "{json}");
    let (nll, perplexity) = (
        json["nll_mean"].as_f64().unwrap(),
        json["perplexity"].as_f64().unwrap(),
    );
    assert!((nll.exp() - perplexity).abs() < 1e-9 * perplexity);
    assert!(json["tokens"].as_u64().unwrap() > 100);
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    assert_eq!(run(&["perplexity", &model(), file.to_str().unwrap()]).0, 2);
}

#[test]
fn kernels_and_bench_have_their_keys() {
    let (status, json) = run_json(&["kernels"]);
    assert_eq!(status, 0);
    let rows = json["kernels"].as_array().unwrap();
    assert_eq!(rows.len(), bitnet_kernels::KERNELS.len());
    assert_eq!(rows.iter().filter(|r| r["chosen"] == true).count(), 1);
    assert!(
        rows.iter().all(|r| r["name"].is_string()
            && r["available"].is_boolean()
            && r["reason"].is_string())
    );

    let (status, json) = run_json(&[
        "bench",
        &model(),
        "-p",
        "16",
        "-n",
        "4",
        "-t",
        "1,2",
        "-r",
        "1",
    ]);
    assert_eq!(status, 0, "{json}");
    assert!(json["read_bandwidth_gb_s"].as_f64().unwrap() > 0.0);
    assert!(json["bytes_per_token"].as_u64().unwrap() > 0);
    let peak = json["peak_resident_bytes"].as_u64();
    assert_eq!(peak.is_some(), cfg!(target_os = "linux"));
    let rows = json["rows"].as_array().unwrap();
    assert!(
        rows.iter()
            .all(|row| row["resident_bytes"].as_u64() <= peak)
    );
    let tests: Vec<&str> = rows.iter().map(|r| r["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["pp16", "pp16", "tg4", "tg4"]);
    for key in [
        "threads",
        "kernel",
        "tokens_per_s",
        "median",
        "min",
        "max",
        "gb_s",
        "bandwidth_share",
    ] {
        assert!(rows.iter().all(|r| !r[key].is_null()), "{key}");
    }
}

#[test]
fn what_cannot_be_done_is_one_line_and_a_hint() {
    let model = model();
    for (args, code) in [
        (
            vec![model.as_str(), "-p", "x", "--kernel", "abacus"],
            "kernel",
        ),
        (vec![model.as_str(), "--tokens", "400", "-n", "1"], "usage"),
        (
            vec![model.as_str(), "-p", "x", "--ctx", "100000"],
            "context-exceeded",
        ),
        (vec!["/nonexistent/model.gguf", "-p", "x"], "io"),
        (vec![model.as_str()], "usage"),
    ] {
        let (status, json) = run_json(&args);
        assert_eq!(status, 2, "{args:?}");
        assert_eq!(json["status"], "error");
        assert_eq!(json["error"]["code"], code, "{args:?}: {json}");
        let quiet: Vec<&str> = args.iter().copied().chain(["--quiet"]).collect();
        let (status, out, err) = run(&quiet);
        assert_eq!((status, out.as_str()), (2, ""));
        assert!(err.starts_with("error: "), "{err}");
        assert!(
            err.lines().skip(1).all(|l| l.starts_with("hint: ")),
            "{err}"
        );
    }
}

#[test]
fn a_text_ends_in_front_of_a_stop_string() {
    let demo = repository().join("tests/fixtures/demo/checkpoint");
    let demo = demo.to_str().unwrap();
    let (status, whole) = run_json(&[demo, "-p", "The", "-n", "24", "--ignore-eos"]);
    assert_eq!(status, 0, "{whole}");
    assert_eq!(whole["stopped"], "length");
    let text = whole["text"].as_str().unwrap();
    let characters: Vec<char> = text.chars().collect();
    assert!(characters.len() > 12, "{text:?}");
    // a string inside the text, across tokens wherever they end
    let stop: String = characters[6..11].iter().collect();
    let before = &text[..text.find(&stop).unwrap()];
    let words = [demo, "-p", "The", "-n", "24", "--ignore-eos"];
    let run_until = |stops: &[&str]| {
        let stops = stops.iter().flat_map(|stop| ["--stop", *stop]);
        run_json(&words.into_iter().chain(stops).collect::<Vec<_>>())
    };
    let (status, cut) = run_until(&[&stop, "not in there"]);
    assert_eq!(status, 0, "{cut}");
    assert_eq!(cut["text"], before);
    assert_eq!(cut["stopped"], "stop-string");
    let (all, some) = (&whole["tokens"], cut["tokens"].as_array().unwrap());
    assert_eq!(all.as_array().unwrap()[..some.len()], some[..]);
    assert!(some.len() < 24);
    // what only begins like a stop string is part of the text
    let almost = format!("{}\u{1f600}", characters.last().unwrap());
    let (_, same) = run_until(&[&almost]);
    assert_eq!(
        (&same["text"], &same["stopped"]),
        (&whole["text"], &whole["stopped"])
    );
    // a stream says the same
    let streamed = run(&[&words[..], &["--stream", "--stop", &stop]].concat());
    assert_eq!((streamed.0, streamed.1), (0, format!("{before}\n")));

    let (status, refused) = run_until(&[""]);
    assert_eq!(status, 2);
    assert_eq!(refused["error"]["code"], "usage");
    let tokens = [demo, "--tokens", "1", "--stop", "x"];
    assert_eq!(run(&tokens).0, 2);
}
