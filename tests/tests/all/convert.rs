//! `bitnet-convert` over every fixture: any source to any target, and what must never happen.
//!
//! Invariant: `ternary_sha256` is the model's, not the file's: every lossless target of a fixture
//! prints the same, whatever way it took there.

use bitnet_checkpoint::Certificate;
use bitnet_cli::ExitStatus;
use bitnet_convert::TARGETS;
use bitnet_formats::Limits;
use bitnet_tests::digest::sha256;
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Fixtures of the three families, with the targets that cannot hold their scales exactly.
///
/// Targets whose scales have 16 bits as those of `gguf-tq2_0` do: they round where it does.
const F16_SCALES: [&str; 6] = [
    "gguf-iq1_bn",
    "gguf-q2_0",
    "gguf-pq2_0",
    "gguf-ptq1_0",
    "mlx-2bit",
    "ms-gpu-int2",
];

/// Whether a target rounds a scale of the fixture with these `rounds`.
fn is_rounded(rounds: &[&str], target: &str) -> bool {
    rounds.contains(&target) || rounds.contains(&"gguf-tq2_0") && F16_SCALES.contains(&target)
}

/// Whether a target holds the network of a fixture at all.
fn has_network(fixture: &str, target: &str) -> bool {
    match target {
        "ms-gpu-int2" => fixture.starts_with("bitnet-2b4t"),
        // their zeros are anywhere
        "gguf-stq1_0" | "gguf-q1_0" => false,
        _ => true,
    }
}

/// Master weights have f32 scales; packed checkpoints of the dividing kind have `1 / bf16`; the 2B4T
/// packed one multiplies with a bf16, which f16 holds too.
const FIXTURES: [(&str, &[&str]); 7] = [
    (
        "bitnet-2b4t-bf16",
        &[
            "gguf-tq2_0",
            "gguf-tq1_0",
            "gguf-f16",
            "gguf-bf16",
            "hf-f16",
        ],
    ),
    ("bitnet-2b4t-packed", &[]),
    (
        "llama3-8b-1.58",
        &[
            "gguf-tq2_0",
            "gguf-tq1_0",
            "gguf-f16",
            "gguf-bf16",
            "hf-bf16",
            "hf-f16",
        ],
    ),
    (
        "falcon3-1.58",
        &[
            "gguf-tq2_0",
            "gguf-tq1_0",
            "gguf-f16",
            "gguf-bf16",
            "hf-bf16",
            "hf-f16",
        ],
    ),
    (
        "falcon-e",
        &[
            "gguf-tq2_0",
            "gguf-tq1_0",
            "gguf-f16",
            "gguf-bf16",
            "hf-bf16",
            "hf-f16",
        ],
    ),
    ("falcon-e-bfloat16", &[]),
    (
        "falcon-e-prequantized",
        &[
            "gguf-tq2_0",
            "gguf-tq1_0",
            "gguf-f16",
            "gguf-bf16",
            "hf-f16",
        ],
    ),
];

/// What the converter left.
struct Ran {
    status: ExitStatus,
    json: Value,
}

impl Ran {
    fn code(&self) -> &str {
        self.json["error"]["code"].as_str().unwrap_or("")
    }
    fn sha256(&self) -> &str {
        self.json["ternary_sha256"].as_str().unwrap_or("")
    }
}

/// Runs the program under `--json`: exactly one object on stdout, nothing on stderr.
fn convert(args: &[&str]) -> Ran {
    let words = ["--json"].iter().chain(args);
    let ran = program::run(bitnet_convert::run, words);
    assert_eq!(ran.stderr, "");
    Ran {
        status: ran.status,
        json: ran.json(),
    }
}

/// The word for the one source that has nothing else that says it is ternary-trained.
fn trained(source: &Path) -> Option<&'static str> {
    (source == checkpoint("falcon-e-prequantized")).then_some("--ternary-trained")
}

/// Converts; the conversion must succeed.
fn done(source: &Path, output: &Path, more: &[&str]) -> Ran {
    let mut args = vec![source.to_str().unwrap(), "-o", output.to_str().unwrap()];
    args.extend(more);
    args.extend(trained(source));
    let ran = convert(&args);
    assert_eq!(ran.status, ExitStatus::Done, "{args:?}: {}", ran.json);
    assert_eq!(ran.json["status"], "converted");
    check_certificate(&ran);
    ran
}

/// Converts; the conversion must be refused and leave nothing.
fn refused(source: &Path, output: &Path, more: &[&str]) -> Ran {
    let mut args = vec![source.to_str().unwrap(), "-o", output.to_str().unwrap()];
    args.extend(more);
    args.extend(trained(source));
    let ran = convert(&args);
    assert_eq!(ran.status, ExitStatus::CouldNot, "{args:?}: {}", ran.json);
    ran
}

fn check_certificate(ran: &Ran) {
    let path = ran.json["output"]["certificate"].as_str().unwrap();
    let json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let certificate = Certificate::from_json(&json).unwrap();
    assert_eq!(certificate.ternary_sha256, ran.sha256());
    assert_eq!(
        certificate.lossless,
        ran.json["lossless"].as_bool().unwrap()
    );
    assert_eq!(
        certificate.lossless,
        ran.json["losses"].as_array().unwrap().is_empty()
    );
    // the files say what the report says
    for file in ran.json["output"]["files"].as_array().unwrap() {
        let bytes = std::fs::read(file["path"].as_str().unwrap()).unwrap();
        assert_eq!(bytes.len() as u64, file["bytes"].as_u64().unwrap());
        assert_eq!(sha256(&bytes), file["sha256"].as_str().unwrap());
    }
}

/// Name, bytes and modification time of every file below a directory.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        if path.is_dir() {
            files.extend(snapshot(&path));
            files.insert(path, (Vec::new(), modified));
        } else {
            files.insert(path.clone(), (std::fs::read(&path).unwrap(), modified));
        }
    }
    files
}

fn suffix(target: &str) -> &'static str {
    if target.starts_with("gguf") {
        ".gguf"
    } else {
        ""
    }
}

#[test]
fn every_target_of_every_fixture_holds_the_same_model_or_says_by_how_much_not() {
    for (name, rounds) in FIXTURES {
        let source = checkpoint(name);
        let before = snapshot(&source);
        let dir = tempfile::tempdir().unwrap();
        let reference = done(
            &source,
            &dir.path().join("reference.gguf"),
            &["--to", "gguf-f32"],
        );
        assert_eq!(reference.json["lossless"], true);
        for target in TARGETS {
            let output = dir
                .path()
                .join(format!("{}{}", target.name, suffix(target.name)));
            if !has_network(name, target.name) {
                let words = ["--to", target.name, "--allow-scale-rounding"];
                let ran = refused(&source, &output, &words);
                assert_eq!(ran.code(), "target-cannot-hold", "{name}: {}", ran.json);
                assert!(
                    ran.json["error"]["hint"].is_string(),
                    "{name}: {}",
                    ran.json
                );
                assert!(!output.exists(), "{name}");
                continue;
            }
            if is_rounded(rounds, target.name) {
                let ran = refused(&source, &output, &["--to", target.name]);
                assert_eq!(
                    ran.code(),
                    "scale-rounding",
                    "{name} {}: {}",
                    target.name,
                    ran.json
                );
                assert!(
                    ran.json["error"]["message"]
                        .as_str()
                        .unwrap()
                        .contains("relative error")
                );
                assert!(
                    ran.json["error"]["hint"]
                        .as_str()
                        .unwrap()
                        .contains("--allow-scale-rounding")
                );
                assert!(!output.exists());
                let ran = done(
                    &source,
                    &output,
                    &["--to", target.name, "--allow-scale-rounding"],
                );
                assert_eq!(ran.json["lossless"], false);
                assert_ne!(ran.sha256(), reference.sha256(), "{name} {}", target.name);
                assert_eq!(ran.json["source_ternary_sha256"], reference.sha256());
                let worst = ran.json["losses"].as_array().unwrap().iter();
                let worst = worst
                    .filter_map(|l| l["max_relative"].as_f64())
                    .fold(0.0, f64::max);
                assert!(
                    worst > 0.0 && worst < 0.004,
                    "{name} {}: {worst}",
                    target.name
                );
                // what was promised about the output is what is read from it
                let again = done(
                    &output,
                    &dir.path().join(format!("{}-again.gguf", target.name)),
                    &["--to", "gguf-f32"],
                );
                assert_eq!(again.sha256(), ran.sha256(), "{name} {}", target.name);
            } else {
                let ran = done(&source, &output, &["--to", target.name]);
                assert_eq!(
                    ran.json["lossless"], true,
                    "{name} {}: {}",
                    target.name, ran.json["losses"]
                );
                assert_eq!(ran.sha256(), reference.sha256(), "{name} {}", target.name);
            }
        }
        assert_eq!(before, snapshot(&source), "{name}: the input changed");
    }
}

#[test]
fn any_lossless_target_becomes_any_other() {
    for (name, rounds) in FIXTURES {
        let dir = tempfile::tempdir().unwrap();
        let lossless: Vec<_> = TARGETS
            .iter()
            .map(|t| t.name)
            .filter(|t| !is_rounded(rounds, t) && has_network(name, t))
            .collect();
        let path = |target: &str| dir.path().join(format!("{target}{}", suffix(target)));
        let expected = done(
            &checkpoint(name),
            &path(lossless[0]),
            &["--to", lossless[0]],
        );
        for target in &lossless[1..] {
            done(&checkpoint(name), &path(target), &["--to", target]);
        }
        for from in &lossless {
            for to in &lossless {
                let output = dir.path().join(format!("{from}-to-{to}{}", suffix(to)));
                let mut args = vec![path(from).to_str().unwrap().to_owned(), "-o".to_owned()];
                args.extend([
                    output.to_str().unwrap().to_owned(),
                    "--to".to_owned(),
                    (*to).to_owned(),
                ]);
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                let ran = convert(&args);
                // master weights are in the source alone: from trits, hf-bf16 is `trit * scale` in bf16,
                // and an absmean scale is no bf16
                if *to == "hf-bf16" && *from != "hf-bf16" && ran.code() == "scale-rounding" {
                    continue;
                }
                assert_eq!(
                    ran.status,
                    ExitStatus::Done,
                    "{name}: {from} to {to}: {}",
                    ran.json
                );
                assert_eq!(ran.sha256(), expected.sha256(), "{name}: {from} to {to}");
            }
        }
    }
}

#[test]
fn gguf_to_hugging_face_and_back_is_the_same_file() {
    for (name, _) in FIXTURES {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("first.gguf");
        let (hf, second) = (dir.path().join("hf"), dir.path().join("second.gguf"));
        done(&checkpoint(name), &first, &[]);
        done(&first, &hf, &[]);
        done(&hf, &second, &[]);
        let (a, b) = (
            std::fs::read(&first).unwrap(),
            std::fs::read(&second).unwrap(),
        );
        assert!(a == b, "{name}: {} and {} bytes differ", a.len(), b.len());
    }
}

#[test]
fn a_packed_checkpoint_becomes_itself() {
    for name in [
        "bitnet-2b4t-packed",
        "llama3-8b-1.58",
        "falcon3-1.58",
        "falcon-e",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("hf");
        done(&checkpoint(name), &output, &["--to", "hf-packed"]);
        let (a, b) = (checkpoint(name), output);
        // the same tensors bit for bit; their order, the header and the sharding are the writer's
        let open = |p: &Path| bitnet_formats::open(p, &Limits::default()).unwrap();
        let (old, new) = (open(&a), open(&b));
        assert_eq!(old.tensors().len(), new.tensors().len());
        for info in old.tensors() {
            let found = new.tensor(&info.name).unwrap();
            assert_eq!(info.shape, found.shape, "{name} {}", info.name);
            assert_eq!(
                old.read(info).unwrap(),
                new.read(found).unwrap(),
                "{name} {}",
                info.name
            );
        }
        for file in std::fs::read_dir(&a).unwrap() {
            let file = file.unwrap().file_name().into_string().unwrap();
            if file.ends_with(".safetensors") || file.ends_with(".index.json") {
                continue;
            }
            let (old, new) = (
                std::fs::read(a.join(&file)).unwrap(),
                std::fs::read(b.join(&file)).unwrap(),
            );
            if file == "config.json" {
                let json = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).unwrap() };
                let (mut old, new) = (json(&old), json(&new));
                // the one change: mlx-lm stops at a list that is null, and transformers reads both alike
                if old["quantization_config"]["modules_to_not_convert"].is_null() {
                    let tied = old["tie_word_embeddings"] == true;
                    let section = old["quantization_config"].as_object_mut().unwrap();
                    section.remove("modules_to_not_convert");
                    if !tied {
                        section.insert("modules_to_not_convert".into(), json!(["lm_head"]));
                    }
                }
                assert_eq!(old, new, "{name}");
            } else {
                assert!(old == new, "{name}: {file}");
            }
        }
    }
}

#[test]
fn shapes_that_a_target_cannot_hold_are_refused_before_anything_is_written() {
    // 540 columns: no multiple of a block of any packing in GGUF
    let source = checkpoint("bitnet-b1.58-1bitllm");
    let dir = tempfile::tempdir().unwrap();
    for target in ["gguf-i2_s", "gguf-tq2_0", "gguf-tq1_0"] {
        let ran = refused(&source, &dir.path().join("a.gguf"), &["--to", target]);
        assert_eq!(ran.code(), "target-cannot-hold", "{}", ran.json);
        assert!(
            ran.json["error"]["message"]
                .as_str()
                .unwrap()
                .contains("540")
        );
    }
    let packed = done(&source, &dir.path().join("hf"), &[]);
    // without --to the first that holds it is taken
    let ran = done(&source, &dir.path().join("a.gguf"), &[]);
    assert_eq!(ran.json["target"], "gguf-f32");
    assert_eq!(ran.sha256(), packed.sha256());
}

#[test]
fn rows_of_zeros_survive_the_types_whose_zeros_look_like_ones() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    done(
        &checkpoint("falcon-e-bfloat16"),
        &source,
        &["--to", "hf-bf16"],
    );
    // the first row of a linear, and of another one the last of its four interleaved rows
    let path = source.join("model.safetensors");
    let file = bitnet_formats::open(&path, &Limits::default()).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let mut zeroed = 0;
    for (info, row) in file
        .tensors()
        .iter()
        .filter(|t| t.name.ends_with("_proj.weight"))
        .zip([0, 3])
    {
        let len = info.shape[1] * 2;
        let at = info.offset as usize + row * len;
        bytes[at..at + len].fill(0);
        zeroed += 1;
    }
    assert_eq!(zeroed, 2);
    drop(file);
    std::fs::write(&path, bytes).unwrap();
    let reference = done(&source, &dir.path().join("f32.gguf"), &["--to", "gguf-f32"]);
    for target in ["gguf-iq1_bn", "gguf-iq2_bn", "gguf-iq2_bn_r4"] {
        let output = dir.path().join(format!("{target}.gguf"));
        let ran = done(&source, &output, &["--to", target]);
        assert_eq!(ran.sha256(), reference.sha256(), "{target}");
        let again = dir.path().join(format!("{target}-again.gguf"));
        let back = done(&output, &again, &["--to", "gguf-f32"]);
        assert_eq!(back.sha256(), reference.sha256(), "{target}, read back");
    }
}

#[test]
fn every_number_of_threads_writes_the_same_bytes() {
    for (name, _) in FIXTURES {
        for target in ["gguf-i2_s", "gguf-f32", "hf-packed"] {
            let run = |threads: &str| -> BTreeMap<PathBuf, Vec<u8>> {
                // certificates name files, without directories
                let dir = tempfile::tempdir().unwrap();
                let output = dir.path().join(format!("{target}{}", suffix(target)));
                let ran = done(
                    &checkpoint(name),
                    &output,
                    &["--to", target, "--threads", threads],
                );
                let files = ran.json["output"]["files"].as_array().unwrap().iter();
                let mut files: Vec<PathBuf> =
                    files.map(|f| f["path"].as_str().unwrap().into()).collect();
                files.push(ran.json["output"]["certificate"].as_str().unwrap().into());
                files
                    .into_iter()
                    .map(|p| (p.file_name().unwrap().into(), std::fs::read(&p).unwrap()))
                    .collect()
            };
            let one = run("1");
            assert!(one == run("2") && one == run("5"), "{name} {target}");
        }
    }
}

#[test]
fn the_suffix_of_the_output_decides_and_stderr_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for (output, target) in [("a.gguf", "gguf-i2_s"), ("a", "hf-packed")] {
        let output = dir.path().join(output);
        let source = checkpoint("bitnet-2b4t-packed");
        let words = [source.as_os_str(), "-o".as_ref(), output.as_os_str()];
        let ran = program::run(bitnet_convert::run, words);
        assert_eq!(ran.status, ExitStatus::Done);
        let (out, err) = (ran.stdout, ran.stderr);
        assert!(err.starts_with(&format!("--to {target}: ")), "{err}");
        assert!(
            out.contains("lossless        yes") && out.contains("ternary_sha256  "),
            "{out}"
        );
    }
    let ran = refused(
        &checkpoint("falcon-e"),
        &dir.path().join("b.safetensors"),
        &[],
    );
    assert_eq!(ran.code(), "usage");
    // a directory target into a file name of GGUF is a mistake, not a directory
    let ran = refused(
        &checkpoint("falcon-e"),
        &dir.path().join("b.gguf"),
        &["--to", "hf-packed"],
    );
    assert_eq!(ran.code(), "usage");
}

#[test]
fn outputs_that_exist_are_replaced_on_demand_only() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint("falcon-e");
    for output in [dir.path().join("a.gguf"), dir.path().join("a")] {
        done(&source, &output, &[]);
        let before = snapshot(dir.path());
        let ran = refused(&source, &output, &[]);
        assert_eq!(ran.code(), "exists");
        assert!(
            ran.json["error"]["hint"]
                .as_str()
                .unwrap()
                .contains("--force")
        );
        assert_eq!(before, snapshot(dir.path()));
        done(&checkpoint("bitnet-2b4t-packed"), &output, &["--force"]);
        let ran = convert(&["inspect", output.to_str().unwrap()]);
        assert_eq!(ran.json["family"], "bitnet_2b_4t");
    }
    // a certificate without its output is somebody's too
    std::fs::remove_file(dir.path().join("a.gguf")).unwrap();
    assert_eq!(
        refused(&source, &dir.path().join("a.gguf"), &[]).code(),
        "exists"
    );
    // onto itself, even with --force
    let copy = dir.path().join("copy");
    done(&source, &copy, &[]);
    let before = snapshot(&copy);
    assert_eq!(refused(&copy, &copy, &["--force"]).code(), "usage");
    assert_eq!(before, snapshot(&copy));
}

#[test]
fn a_dry_run_writes_nothing_and_promises_what_a_run_keeps() {
    for (name, _) in FIXTURES {
        let dir = tempfile::tempdir().unwrap();
        for target in ["gguf-i2_s", "gguf-f32", "hf-packed"] {
            let output = dir.path().join(format!("{target}{}", suffix(target)));
            let args = [checkpoint(name), output.clone()];
            let [source, out] = args.each_ref().map(|p| p.to_str().unwrap());
            let mut words = vec![source, "-o", out, "--to", target, "--dry-run"];
            words.extend(trained(&checkpoint(name)));
            let plan = convert(&words);
            assert_eq!(plan.status, ExitStatus::Done, "{}", plan.json);
            assert_eq!(plan.json["status"], "planned");
            assert!(!output.exists());
            let ran = done(&checkpoint(name), &output, &["--to", target]);
            assert_eq!(
                plan.json["total_bytes"], ran.json["output"]["bytes"],
                "{name} {target}"
            );
            assert_eq!(
                plan.json["tensors"].as_array().unwrap().len() as u64,
                ran.json["tensors"]
            );
            let files = |json: &Value| -> Vec<Value> {
                json["output"]["files"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|f| f["bytes"].clone())
                    .collect()
            };
            assert_eq!(files(&plan.json), files(&ran.json));
        }
    }
}

#[test]
fn embeddings_change_on_request_only_and_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint("bitnet-2b4t-packed");
    let plain = done(&source, &dir.path().join("keep.gguf"), &[]);
    for (kind, lossless) in [
        ("f32", true),
        ("f16", false),
        ("bf16", true),
        ("q8_0", false),
        ("q6_k", false),
    ] {
        let output = dir.path().join(format!("{kind}.gguf"));
        let ran = done(&source, &output, &["--embeddings", kind]);
        assert_eq!(
            ran.json["lossless"], lossless,
            "{kind}: {}",
            ran.json["losses"]
        );
        assert_eq!(ran.sha256(), plain.sha256(), "{kind}");
        if !lossless {
            let loss = &ran.json["losses"][0];
            assert_eq!(loss["kind"], "dense-rounding");
            assert!(loss["max_absolute"].as_f64().unwrap() > 0.0);
        }
        let seen = convert(&["inspect", "--tensors", output.to_str().unwrap()]);
        let tensors = seen.json["tensors"].as_array().unwrap();
        let embedding = tensors
            .iter()
            .find(|t| t["name"] == "token_embd.weight")
            .unwrap();
        assert_eq!(embedding["encoding"], kind);
    }
    // Hugging Face cannot hold block types; what they stand for, it can
    let quantised = dir.path().join("q6_k.gguf");
    assert_eq!(
        refused(&quantised, &dir.path().join("hf"), &[]).code(),
        "target-cannot-hold"
    );
    done(&quantised, &dir.path().join("hf"), &["--embeddings", "f32"]);
    let ran = refused(&source, &dir.path().join("hf2"), &["--embeddings", "q8_0"]);
    assert_eq!(ran.code(), "target-cannot-hold");
}

#[test]
fn outputs_split_and_read_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["falcon-e", "bitnet-2b4t-bf16"] {
        let whole = done(
            &checkpoint(name),
            &dir.path().join(format!("{name}.gguf")),
            &[],
        );
        for output in [format!("{name}-split.gguf"), format!("{name}-split")] {
            let output = dir.path().join(output);
            let ran = done(&checkpoint(name), &output, &["--split-max-size", "100K"]);
            assert_eq!(ran.sha256(), whole.sha256());
            let files = ran.json["output"]["files"].as_array().unwrap();
            let weights: Vec<&str> = files
                .iter()
                .map(|f| f["path"].as_str().unwrap())
                .filter(|p| p.ends_with(".gguf") || p.ends_with(".safetensors"))
                .collect();
            assert!(weights.len() > 2, "{weights:?}");
            let source = if output.is_dir() {
                output.clone()
            } else {
                weights[1].into()
            };
            let back = done(
                &source,
                &dir.path().join(format!("{name}-back.gguf")),
                &["--force"],
            );
            assert_eq!(back.sha256(), whole.sha256());
        }
    }
}

#[test]
fn a_part_that_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for output in ["split.gguf", "split"] {
        let output = dir.path().join(output);
        let ran = done(
            &checkpoint("falcon-e"),
            &output,
            &["--split-max-size", "100K"],
        );
        let files = ran.json["output"]["files"].as_array().unwrap();
        let weights: Vec<&str> = files
            .iter()
            .map(|f| f["path"].as_str().unwrap())
            .filter(|p| p.ends_with(".gguf") || p.ends_with(".safetensors"))
            .collect();
        let count = weights.len();
        for (n, path) in weights.iter().enumerate() {
            let number = format!("-{:05}-of-{count:05}.", n + 1);
            assert!(path.contains(&number), "{path} is not number {}", n + 1);
        }
        std::fs::remove_file(weights[count / 2]).unwrap();
        let again = dir.path().join("again.gguf");
        let ran = refused(Path::new(weights[0]), &again, &[]);
        assert_eq!(ran.code(), "io", "{}", ran.json);
        let message = ran.json["error"]["message"].as_str().unwrap();
        assert!(message.contains(weights[count / 2]), "{message}");
        assert!(ran.json["error"]["hint"].is_string(), "{}", ran.json);
    }
}

#[test]
fn broken_codes_found_while_streaming_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    done(&checkpoint("falcon-e"), &source, &[]);
    // code 3 in the last linear of the file: the conversion is nearly through when it shows
    let path = source.join("model.safetensors");
    let file = bitnet_formats::open(&path, &Limits::default()).unwrap();
    let last = file
        .tensors()
        .iter()
        .rfind(|t| t.name.ends_with("proj.weight"))
        .unwrap()
        .clone();
    drop(file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[last.offset as usize + 5] |= 3;
    std::fs::write(&path, bytes).unwrap();
    for output in [dir.path().join("out.gguf"), dir.path().join("out")] {
        let before: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        let ran = refused(&source, &output, &[]);
        assert_eq!(ran.code(), "bad-code", "{}", ran.json);
        let message = ran.json["error"]["message"].as_str().unwrap();
        assert!(
            message.contains(&last.name) && message.contains("row"),
            "{message}"
        );
        let after: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(before, after);
    }
}

#[test]
fn inspect_and_list_say_what_there_is() {
    let ran = convert(&["inspect", checkpoint("llama3-8b-1.58").to_str().unwrap()]);
    assert_eq!(ran.json["status"], "inspected");
    assert_eq!(ran.json["scales"]["direction"], "divide");
    assert_eq!(ran.json["scales"]["structure"], "tensor");
    assert_eq!(ran.json["wiring"]["tie_word_embeddings"], false);
    assert_eq!(ran.json["bits_per_weight"].as_f64().unwrap().round(), 2.0);
    let ran = convert(&["list"]);
    let names: Vec<_> = ran.json["targets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["name"].clone())
        .collect();
    assert_eq!(names, TARGETS.iter().map(|t| t.name).collect::<Vec<_>>());
}

#[test]
fn files_of_an_unknown_network_are_inspected_by_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let packed = checkpoint("bitnet-2b4t-packed").join("model.safetensors");
    for (target, packing) in [
        ("hf-packed", "hf_u8"),
        ("mlx-2bit", "mlx_2bit"),
        ("ms-gpu-int2", "ms_gpu_int2"),
    ] {
        let output = dir.path().join(target);
        done(packed.parent().unwrap(), &output, &["--to", target]);
        // without its configuration, and with that of something else
        for config in [None, Some("{\"model_type\": \"mamba\"}")] {
            let path = output.join("config.json");
            std::fs::remove_file(&path).unwrap();
            if let Some(config) = config {
                std::fs::write(&path, config).unwrap();
            }
            let ran = convert(&["inspect", output.to_str().unwrap()]);
            assert_eq!(ran.status, ExitStatus::Done, "{}", ran.json);
            assert!(ran.json["family"].is_null(), "{}", ran.json);
            assert!(
                ran.json["linears"][packing].as_u64() > Some(3),
                "{}",
                ran.json
            );
            for one in ran.json["ternary"].as_array().unwrap() {
                assert_eq!(one["packing"], packing);
                assert!(one["minus"].as_u64() > Some(0), "{one}");
            }
            let words = ["inspect", output.to_str().unwrap()];
            let said = program::run(bitnet_convert::run, words);
            assert!(said.stdout.contains("unknown"), "{}", said.stdout);
            if config.is_none() {
                std::fs::write(&path, "{}").unwrap();
            }
        }
        // a configuration that is broken is an error, not an unknown network
        std::fs::write(output.join("config.json"), "{").unwrap();
        let ran = convert(&["inspect", output.to_str().unwrap()]);
        assert_eq!(ran.code(), "malformed", "{}", ran.json);
    }
    // a GGUF file under another architecture
    let gguf = dir.path().join("model.gguf");
    done(&checkpoint("falcon-e"), &gguf, &["--to", "gguf-i2_s"]);
    let mut bytes = std::fs::read(&gguf).unwrap();
    let key = b"general.architecture";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
    let value = at + key.len() + 4 + 8;
    bytes[value] ^= 1;
    std::fs::write(&gguf, bytes).unwrap();
    let ran = convert(&["inspect", gguf.to_str().unwrap()]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.json);
    assert!(
        ran.json["linears"]["i2_s"].as_u64() > Some(3),
        "{}",
        ran.json
    );
}

#[test]
fn help_fits_the_screen_and_scripts_are_made_of_it() {
    let help = bitnet_convert::command().render_help().to_string();
    assert!(help.lines().count() <= 50, "{} lines", help.lines().count());
    assert!(help.lines().all(|l| l.chars().count() <= 100));
    for args in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["man"],
    ] {
        let ran = program::run(bitnet_convert::run, args);
        assert_eq!(ran.status, ExitStatus::Done);
        assert!(
            ran.stdout.contains("allow"),
            "completions and man page name flags"
        );
    }
}
