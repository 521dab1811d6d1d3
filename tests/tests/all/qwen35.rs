//! Hybrids of Gated DeltaNet and gated attention: one model in every container, in both namings, and what programs
//! get wrong.
//!
//! The records in `tests/fixtures/qwen35/wrong` were made by a program of its own (numpy, f64) that does one thing
//! otherwise in each. `--nocapture` prints what is named for them.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::{
    ActivationQuantization, Checkpoint, LayerSlot, OpenOptions, Slot, TernaryHasher, dense_sha256,
};
use bitnet_cli::ExitStatus;
use bitnet_formats::{Encoding, Limits, PlainType};
use bitnet_model::{LoadOptions, Logits, Model, TilesIn};
use bitnet_tests::fixtures::{read_json, repository};
use bitnet_tests::program::{Ran, run};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn home() -> PathBuf {
    repository().join("tests/fixtures/qwen35")
}

fn source() -> PathBuf {
    home().join("checkpoint")
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &OpenOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Everything that the network is made of: configuration, ternary weights, dense values.
fn contents(path: &Path) -> (bitnet_checkpoint::Config, String, BTreeMap<String, String>) {
    let checkpoint = open(path);
    let mut hasher = TernaryHasher::default();
    let mut dense = BTreeMap::new();
    for slot in checkpoint.slots() {
        match checkpoint.is_ternary(slot) {
            true => _ = hasher.add(&slot.to_string(), &checkpoint.ternary(slot).unwrap()),
            false => {
                let digest = dense_sha256(&checkpoint.dense(slot).unwrap()).unwrap();
                dense.insert(slot.to_string(), digest);
            }
        }
    }
    let mut config = checkpoint.config.clone();
    config.eos_token_ids.clear(); // GGUF's tokenizer names one more
    config.bos_token_id = None;
    (config, hasher.finish(), dense)
}

fn logits(path: &Path) -> Vec<u32> {
    let options = LoadOptions {
        tiles: TilesIn::FileOrMemory,
        ..LoadOptions::default()
    };
    let model = Model::load(&open(path), &options).unwrap();
    let tokens: Vec<u32> = (0..70).map(|i| i * 37 % 300).collect();
    let mut session = model.session(tokens.len()).unwrap();
    let logits = model.forward(&mut session, &tokens, Logits::All).unwrap();
    logits.iter().map(|l| l.to_bits()).collect()
}

fn convert(source: &Path, target: &str, output: &Path) -> Ran {
    let words = [source.to_str().unwrap(), "-o", output.to_str().unwrap()];
    let words = words
        .into_iter()
        .chain(["--to", target, "--json", "--force"]);
    run(bitnet_convert::run, words)
}

fn converted(source: &Path, target: &str, output: &Path) -> Value {
    let ran = convert(source, target, output);
    assert_eq!(
        ran.status.code(),
        0,
        "{target} of {}: {}{}",
        source.display(),
        ran.stdout,
        ran.stderr
    );
    let report = ran.json();
    assert_eq!(
        report["lossless"],
        true,
        "{target} of {}: {report:#}",
        source.display()
    );
    report
}

fn verified(artifact: &Path, against: &Path) -> (ExitStatus, Value) {
    let words = [
        artifact.to_str().unwrap(),
        "--against",
        against.to_str().unwrap(),
        "--json",
    ];
    let ran = run(bitnet_verify::run, words);
    (ran.status, ran.json())
}

/// The tensors of the fixture's one file.
type Tensors = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn tensors() -> Tensors {
    let bytes = fs::read(source().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let all = file.tensors().into_iter();
    let owned = all.map(|(n, t)| (n, t.dtype(), t.shape().to_vec(), t.data().to_vec()));
    owned.collect()
}

/// A checkpoint of changed tensors and a changed configuration.
fn write(dir: &Path, tensors: &Tensors, config: &Value) {
    fs::create_dir_all(dir).unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        fs::copy(source().join(name), dir.join(name)).unwrap();
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (
            name.as_str(),
            TensorView::new(*dtype, shape.clone(), data).unwrap(),
        )
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    safetensors::serialize_to_file(views, Some(metadata), &dir.join("model.safetensors")).unwrap();
}

fn config() -> Value {
    read_json(&source().join("config.json"))
}

/// The configuration of the text model alone.
fn flat_config() -> Value {
    let mut flat = config()["text_config"].clone();
    flat["architectures"] = json!(["Qwen3_5ForCausalLM"]);
    flat
}

#[test]
fn every_file_of_the_model_is_the_same_network() {
    let expected = contents(&source());
    assert_eq!(
        expected.0.activation_quantization,
        ActivationQuantization::None
    );
    let hybrid = expected.0.hybrid.as_ref().unwrap();
    assert_eq!(hybrid.recurrent, [true, true, true, false]);
    assert_eq!((hybrid.rotary_dim, hybrid.rope_sections), (8, [2, 1, 1]));
    let bits = logits(&source());
    let mut files = Vec::new();
    // as llama.cpp's converter lays them out: heads tiled, -exp(A_log) by another exponential, gains with the 1
    for packing in ["pq2_0", "q2_0"] {
        let path = home().join(format!("{packing}.gguf"));
        assert_eq!(contents(&path), expected, "{packing}");
        assert_eq!(logits(&path), bits, "{packing}");
        // the file has fewer keys of a tokenizer than a conversion writes; everything else is the same
        let (_, report) = verified(&path, &source());
        for check in report["checks"].as_array().unwrap() {
            let same = check["name"] == "metadata" || check["status"] == "same";
            assert!(same, "{check:#}");
        }
        files.push(path);
    }
    files.push(source());
    let scratch = tempfile::tempdir().unwrap();
    for (n, file) in files.iter().enumerate() {
        for target in [
            "gguf-q2_0",
            "gguf-pq2_0",
            "gguf-ptq1_0",
            "gguf-f16",
            "gguf-f32",
            "packed-2bit",
            "mlx-2bit",
        ] {
            let output = match target.starts_with("gguf") {
                true => scratch.path().join(format!("{n}-{target}.gguf")),
                false => scratch.path().join(format!("{n}-{target}")),
            };
            converted(file, target, &output);
            assert_eq!(
                contents(&output),
                expected,
                "{target} of {}",
                file.display()
            );
            assert_eq!(logits(&output), bits, "{target} of {}", file.display());
            let (status, report) = verified(&output, file);
            assert_eq!(
                status,
                ExitStatus::Done,
                "{target} of {}: {report:#}",
                file.display()
            );
        }
        // two scales in some rows; bf16 has three bits less than f16
        for target in ["gguf-i2_s", "hf-packed", "hf-bf16"] {
            let ran = convert(file, target, &scratch.path().join("refused"));
            assert_eq!(ran.status.code(), 2, "{target}: {}", ran.stdout);
        }
    }
    // there and back: the logarithms, too
    let (gguf, back) = (
        scratch.path().join("2-gguf-q2_0.gguf"),
        scratch.path().join("back"),
    );
    converted(&gguf, "packed-2bit", &back);
    let file = bitnet_formats::open(&back, &Limits::default()).unwrap();
    let original = bitnet_formats::open(&source(), &Limits::default()).unwrap();
    for info in original
        .tensors()
        .iter()
        .filter(|info| info.name.ends_with(".A_log"))
    {
        let copy = file.tensor(&info.name).expect("the same name");
        assert_eq!(copy.encoding, Encoding::Plain(PlainType::F32));
        let wide = |bytes: &[u8]| -> Vec<f32> {
            let halves = bytes.as_chunks().0.iter();
            halves
                .map(|b| bitnet_ternary::f16_to_f32(u16::from_le_bytes(*b)))
                .collect()
        };
        let logs: Vec<f32> = wide(&original.read(info).unwrap());
        let found = file.read(copy).unwrap();
        let found: Vec<f32> = found
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        assert_eq!(found, logs, "{}", info.name);
    }
}

#[test]
fn nested_and_flat_checkpoints_under_either_name_are_one_model() {
    let scratch = tempfile::tempdir().unwrap();
    let expected = contents(&source());
    let renamed = |rename: &dyn Fn(&str) -> String| -> Tensors {
        let all = tensors().into_iter();
        all.map(|(n, d, s, b)| (rename(&n), d, s, b)).collect()
    };
    let text = |name: &str| name.replace("model.language_model.", "model.");
    let mlx = |name: &str| name.replace("model.language_model.", "language_model.model.");
    let mut absent = flat_config();
    let keys = absent.as_object_mut().unwrap();
    // as transformers fills them in
    for key in [
        "layer_types",
        "partial_rotary_factor",
        "linear_conv_kernel_dim",
        "attn_output_gate",
    ] {
        keys.remove(key);
    }
    keys["rope_parameters"]
        .as_object_mut()
        .unwrap()
        .remove("partial_rotary_factor");
    for (what, tensors, config) in [
        ("flat", renamed(&text), flat_config()),
        ("flat names, nested configuration", renamed(&text), config()),
        ("nested names, flat configuration", tensors(), flat_config()),
        ("mlx's names", renamed(&mlx), config()),
        ("absent keys", renamed(&text), absent),
    ] {
        let dir = scratch.path().join(what);
        write(&dir, &tensors, &config);
        assert_eq!(contents(&dir), expected, "{what}");
        assert_eq!(
            contents(&through(&dir, "gguf-q2_0", scratch.path())),
            expected,
            "{what}"
        );
        // a copy keeps the names that go with its configuration
        let copy = scratch.path().join("copy");
        converted(&dir, "packed-2bit", &copy);
        assert_eq!(contents(&copy), expected, "{what}");
        let nested = config.get("text_config").is_some();
        let names = bitnet_formats::open(&copy, &Limits::default()).unwrap();
        let first = if nested {
            "model.language_model.norm.weight"
        } else {
            "model.norm.weight"
        };
        assert!(names.tensor(first).is_some(), "{what}");
    }
    // mlx's own layout: gains with the 1, kernels with the axis of one at the end
    let mut gains = renamed(&mlx);
    for (name, dtype, shape, bytes) in &mut gains {
        if name.ends_with("conv1d.weight") {
            shape.swap(1, 2);
        }
        if name.ends_with("norm.weight") && !name.ends_with("linear_attn.norm.weight") {
            let halves = bytes.as_chunks().0.iter();
            let values = halves.map(|b| 1.0 + bitnet_ternary::f16_to_f32(u16::from_le_bytes(*b)));
            *bytes = values.flat_map(f32::to_le_bytes).collect();
            *dtype = Dtype::F32;
        }
    }
    let dir = scratch.path().join("mlx");
    write(&dir, &gains, &config());
    assert_eq!(contents(&dir), expected);
    let copy = scratch.path().join("from mlx");
    converted(&dir, "packed-2bit", &copy);
    assert_eq!(contents(&copy), expected);
}

/// A file that was converted to a target.
fn through(source: &Path, target: &str, dir: &Path) -> PathBuf {
    let output = dir.join(format!("through-{target}.gguf"));
    converted(source, target, &output);
    output
}

#[test]
fn an_output_head_of_its_own_goes_along() {
    let scratch = tempfile::tempdir().unwrap();
    let mut all = tensors();
    let table = all
        .iter()
        .find(|t| t.0.ends_with("embed_tokens.weight"))
        .unwrap();
    // the rows in another order
    let row = table.3.len() / table.2[0];
    let turned: Vec<u8> = table.3.chunks(row).rev().flatten().copied().collect();
    let head = (
        "lm_head.weight".to_owned(),
        table.1,
        table.2.clone(),
        turned,
    );
    all.push(head);
    let mut untied = config();
    untied["tie_word_embeddings"] = json!(false);
    untied["text_config"]["tie_word_embeddings"] = json!(false);
    let dir = scratch.path().join("untied");
    write(&dir, &all, &untied);
    let expected = contents(&dir);
    assert!(!expected.0.tie_word_embeddings);
    assert_ne!(logits(&dir), logits(&source()));
    let gguf = through(&dir, "gguf-pq2_0", scratch.path());
    assert_eq!(contents(&gguf), expected);
    assert_eq!(logits(&gguf), logits(&dir));
    // the two levels must not contradict each other
    untied["text_config"]["tie_word_embeddings"] = json!(true);
    let dir = scratch.path().join("both");
    write(&dir, &all, &untied);
    let error = Checkpoint::open(&dir, &OpenOptions::default()).unwrap_err();
    assert_eq!(
        error.tensor.as_deref(),
        Some("text_config.tie_word_embeddings"),
        "{error}"
    );
}

#[test]
fn what_is_not_computed_is_carried_or_named() {
    let scratch = tempfile::tempdir().unwrap();
    let mut all = tensors();
    let extra = [
        "model.visual.patch_embed.proj.weight",
        "mtp.fc.weight",
        "mtp.layers.0.self_attn.q_proj.weight",
    ];
    for (n, name) in extra.iter().enumerate() {
        let bytes: Vec<u8> = (0..2 * 6).map(|i| (17 * n + i) as u8).collect();
        all.push(((*name).to_owned(), Dtype::BF16, vec![2, 3], bytes));
    }
    let dir = scratch.path().join("with more");
    write(&dir, &all, &config());
    let expected = contents(&source());
    assert_eq!(contents(&dir), expected);
    assert_eq!(open(&dir).carried.len(), 3);
    let named = |report: &Value, list: &str| report["not_computed"][list].clone();
    let copy = scratch.path().join("copy");
    let report = converted(&dir, "packed-2bit", &copy);
    assert_eq!(named(&report, "carried"), json!(extra), "{report:#}");
    assert_eq!(named(&report, "left_out"), json!([]));
    let file = bitnet_formats::open(&copy, &Limits::default()).unwrap();
    for (name, _, shape, bytes) in all.iter().filter(|t| extra.contains(&t.0.as_str())) {
        let info = file.tensor(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(&info.shape, shape);
        assert_eq!(file.read(info).unwrap()[..], bytes[..], "{name}");
    }
    let (status, report) = verified(&copy, &dir);
    assert_eq!(status, ExitStatus::Done, "{report:#}");
    // another byte in a part that is not computed is a difference
    let weights = copy.join("model.safetensors");
    let mut damaged = fs::read(&weights).unwrap();
    let place = file.tensor(extra[1]).unwrap().offset as usize;
    damaged[place + 3] ^= 4;
    fs::write(&weights, damaged).unwrap();
    let (status, report) = verified(&copy, &dir);
    assert_eq!(status, ExitStatus::Different, "{report:#}");
    let gguf = scratch.path().join("left out.gguf");
    let report = converted(&dir, "gguf-q2_0", &gguf);
    assert_eq!(named(&report, "left_out"), json!(extra[..1]), "{report:#}");
    assert_eq!(named(&report, "carried"), json!(extra[1..]), "{report:#}");
    assert_eq!(contents(&gguf), expected);
    assert_eq!(open(&gguf).carried.len(), 2);
    let inspected = run(bitnet_convert::run, ["inspect", dir.to_str().unwrap()]);
    assert!(
        inspected.stdout.contains("not computed"),
        "{}",
        inspected.stdout
    );
}

#[test]
fn configurations_that_contradict_themselves_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let all = tensors();
    for (pointer, value, key) in [
        ("/linear_num_key_heads", json!(3), "linear_num_key_heads"),
        ("/linear_num_key_heads", json!(0), "linear_num_key_heads"),
        ("/linear_value_head_dim", json!(0), "linear_value_head_dim"),
        (
            "/linear_conv_kernel_dim",
            json!(0),
            "linear_conv_kernel_dim",
        ),
        (
            "/linear_conv_kernel_dim",
            json!(1 << 20),
            "linear_conv_kernel_dim",
        ),
        ("/layer_types", json!(["linear_attention"]), "layer_types"),
        ("/layer_types/0", json!("sliding_attention"), "layer_types"),
        (
            "/full_attention_interval",
            json!("four"),
            "full_attention_interval",
        ),
        (
            "/partial_rotary_factor",
            json!(0.5),
            "partial_rotary_factor",
        ),
        (
            "/rope_parameters/partial_rotary_factor",
            json!(-1),
            "rope_parameters.partial_rotary_factor",
        ),
        (
            "/rope_parameters/mrope_section",
            json!([1]),
            "rope_parameters.mrope_section",
        ),
        ("/attention_bias", json!(true), "attention_bias"),
        ("/head_dim", Value::Null, "head_dim"),
    ] {
        let mut changed = config();
        let text = changed["text_config"].as_object_mut().unwrap();
        if pointer == "/full_attention_interval" {
            text.remove("layer_types");
        }
        *changed["text_config"].pointer_mut(pointer).unwrap() = value.clone();
        let dir = scratch.path().join(key);
        write(&dir, &all, &changed);
        let error = Checkpoint::open(&dir, &OpenOptions::default()).unwrap_err();
        assert_eq!(
            error.tensor.as_deref(),
            Some(key),
            "{pointer} {value}: {error}"
        );
    }
    // sizes that the tensors do not have
    let mut changed = config();
    changed["text_config"]["linear_num_value_heads"] = json!(4);
    write(&scratch.path().join("sizes"), &all, &changed);
    assert!(Checkpoint::open(&scratch.path().join("sizes"), &OpenOptions::default()).is_err());
}

#[test]
fn mistakes_of_other_programs_are_named_by_their_logits() {
    let wrong = home().join("wrong");
    let mut rows = Vec::new();
    let mut names: Vec<String> = fs::read_dir(&wrong)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| name.strip_suffix(".safetensors").map(str::to_owned))
        .collect();
    names.sort();
    assert_eq!(names.len(), 11);
    for name in names {
        let golden = tempfile::tempdir().unwrap();
        fs::copy(
            wrong.join("prompts.json"),
            golden.path().join("prompts.json"),
        )
        .unwrap();
        let record = wrong.join(format!("{name}.safetensors"));
        fs::copy(record, golden.path().join("logits_f32.safetensors")).unwrap();
        let model = source();
        let words = [
            model.to_str().unwrap(),
            "--logits",
            "--golden",
            golden.path().to_str().unwrap(),
            "--json",
        ];
        let ran = run(bitnet_verify::run, words);
        let report = ran.json();
        assert_eq!(ran.status, ExitStatus::Different, "{name}: {report:#}");
        let faults = report["faults"].as_array().cloned().unwrap_or_default();
        let [fault] = &faults[..] else {
            panic!("{name}: {faults:#?}");
        };
        assert_eq!(fault["name"], name, "{fault:#}");
        assert_eq!(
            fault["equally"].as_array().map_or(0, Vec::len),
            0,
            "{fault:#}"
        );
        rows.push(format!(
            "| {name} | {} | {} |",
            fault["tensor"], fault["what"]
        ));
    }
    println!(
        "| fault | where | what |\n|---|---|---|\n{}",
        rows.join("\n")
    );
}

#[test]
fn what_was_recorded_of_the_right_network_has_no_fault() {
    let (model, golden) = (source(), home().join("golden"));
    let words = [
        model.to_str().unwrap(),
        "--logits",
        "--golden",
        golden.to_str().unwrap(),
        "--json",
    ];
    let ran = run(bitnet_verify::run, words);
    let report = ran.json();
    assert_eq!(ran.status, ExitStatus::Done, "{report:#}");
    assert_eq!(report["faults"].as_array().map_or(0, Vec::len), 0);
    // the trace is compared in the recurrent and in the full layer
    let trace = report["checks"].as_array().into_iter().flatten();
    let trace = trace
        .filter(|check| check["name"] == "golden-trace")
        .count();
    assert_eq!(trace, 1, "{report:#}");
}

#[test]
fn text_becomes_the_recorded_tokens_from_either_container() {
    let prompts = read_json(&home().join("golden/prompts.json"));
    for path in [
        source(),
        home().join("pq2_0.gguf"),
        home().join("q2_0.gguf"),
    ] {
        let tokenizer = open(&path).tokenizer().unwrap().expect("a tokenizer");
        for (name, prompt) in prompts.as_object().unwrap() {
            let Some(text) = prompt["text"].as_str().filter(|text| !text.is_empty()) else {
                continue;
            };
            let ids: Vec<u64> = prompt["ids"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(Value::as_u64)
                .collect();
            let found = tokenizer.encode(text, true).unwrap();
            let found: Vec<u64> = found.into_iter().map(u64::from).collect();
            // "e" and a combining accent are one letter in NFC
            assert_eq!(found, ids, "{name} of {}", path.display());
        }
    }
}

#[test]
fn canonical_names_of_the_recurrent_slots_are_those_of_the_checkpoint() {
    for (slot, name) in [
        (LayerSlot::ALog, "model.layers.3.linear_attn.A_log"),
        (LayerSlot::DtBias, "model.layers.3.linear_attn.dt_bias"),
        (
            LayerSlot::InProjQkv,
            "model.layers.3.linear_attn.in_proj_qkv.weight",
        ),
        (
            LayerSlot::GatedNorm,
            "model.layers.3.linear_attn.norm.weight",
        ),
    ] {
        assert_eq!(Slot::Layer(3, slot).to_string(), name);
    }
}
