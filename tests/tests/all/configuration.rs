//! Settings that a checkpoint says and this program does not compute: read, reported, or refused by name.
//!
//! Invariant: each change is made to a copy of a checkpoint that converts as it is, in one place.

use bitnet_cli::ExitStatus;
use bitnet_formats::{Container, Gguf, MetaValue, Metadata, PlannedTensor, WritePlan};
use bitnet_tests::fixtures::{checkpoint, read_json};
use bitnet_tests::program::{Ran, run};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const MASTERS: &str = "bitnet-2b4t-bf16";
const MULTIPLIES: &str = "bitnet-2b4t-packed";
const DIVIDES: &str = "llama3-8b-1.58";
const UNMARKED: &str = "falcon-e-prequantized";

/// A copy of a fixture.
struct Copy {
    dir: tempfile::TempDir,
}

impl Copy {
    fn of(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("ck")).unwrap();
        for entry in std::fs::read_dir(checkpoint(name)).unwrap() {
            let path = entry.unwrap().path();
            let to = dir.path().join("ck").join(path.file_name().unwrap());
            std::fs::write(to, std::fs::read(&path).unwrap()).unwrap();
        }
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("ck")
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Changes `config.json`.
    fn config(self, change: impl FnOnce(&mut Value)) -> Self {
        let path = self.path().join("config.json");
        let mut value = read_json(&path);
        change(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
        self
    }

    fn quantization(self, key: &str, value: Value) -> Self {
        self.config(|config| config["quantization_config"][key] = value)
    }

    fn convert(&self, more: &[&str]) -> Ran {
        let (source, out) = (self.path(), self.out("o.gguf"));
        let fixed = [
            source.to_str().unwrap(),
            "-o",
            out.to_str().unwrap(),
            "--force",
        ];
        run(bitnet_convert::run, fixed.iter().chain(more))
    }

    fn json(&self, more: &[&str]) -> Value {
        let words: Vec<_> = more.iter().copied().chain(["--json"]).collect();
        self.convert(&words).json()
    }

    fn doctor(&self) -> Ran {
        let source = self.path();
        let words = ["doctor", source.to_str().unwrap(), "--json", "--no-run"];
        run(bitnet_verify::run, words)
    }

    /// Everything refuses with this code, naming these words.
    #[track_caller]
    fn is_refused(&self, code: &str, names: &[&str]) {
        let json = self.json(&[]);
        assert_eq!(json["error"]["code"], code, "{json}");
        let message = json["error"]["message"].as_str().unwrap();
        for name in names {
            assert!(message.contains(name), "{message} does not name {name}");
        }
        assert!(!self.out("o.gguf").exists());
        let source = self.path();
        let words = [
            source.to_str().unwrap(),
            "--tokens",
            "1",
            "-n",
            "1",
            "--json",
        ];
        let ran = run(bitnet_run::run, words);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
        assert_eq!(ran.json()["error"]["code"], code, "{}", ran.stdout);
        let doctor = self.doctor();
        assert_eq!(doctor.status, ExitStatus::Different, "{}", doctor.stdout);
        let findings = doctor.json()["findings"].clone();
        let says = |f: &Value| f["code"] == code && f["severity"] == "error";
        assert!(findings.as_array().unwrap().iter().any(says), "{findings}");
    }

    /// The hash of all trits and scales after a conversion, which must succeed.
    #[track_caller]
    fn hash(&self, more: &[&str]) -> String {
        let json = self.json(more);
        assert_eq!(json["status"], "converted", "{json}");
        json["ternary_sha256"].as_str().unwrap().to_owned()
    }
}

// ---- lists of modules that stay dense ----

#[test]
fn a_list_that_names_a_linear_of_any_layer_is_refused() {
    for entry in [
        "model.layers.1.mlp.down_proj",
        "layers.1.mlp.down_proj",
        "model.layers.1",
        ".*down_proj",
        "model.layers.*.mlp",
        r"model\.layers\.1\.",
        "model.layers.1.self_attn.(q|k)_proj",
        "v_proj",
        "model",
        "",
    ] {
        for name in [MASTERS, MULTIPLIES, DIVIDES] {
            let copy =
                Copy::of(name).quantization("modules_to_not_convert", json!(["lm_head", entry]));
            let expected = match entry {
                "" | "model" => "model.layers.0.",
                _ => "model.layers.",
            };
            copy.is_refused(
                "unknown-quantization",
                &["modules_to_not_convert", expected],
            );
        }
    }
    let other = Copy::of(DIVIDES).quantization("llm_int8_skip_modules", json!(["model.layers.2"]));
    other.is_refused(
        "unknown-quantization",
        &["llm_int8_skip_modules", "model.layers.2.self_attn.q_proj"],
    );
}

#[test]
fn a_list_that_names_no_linear_changes_nothing() {
    for name in [MASTERS, MULTIPLIES, DIVIDES] {
        let expected = Copy::of(name).hash(&[]);
        for list in [
            Value::Null,
            json!(["lm_head"]),
            // a boundary of modules stands behind a beginning, and no module ends so
            json!([
                "lm_head",
                "model.layers.11",
                "mlp.gate",
                "layers.1",
                "model.layers.1.mlp.down"
            ]),
        ] {
            let copy = Copy::of(name).quantization("modules_to_not_convert", list);
            assert_eq!(copy.hash(&[]), expected, "{name}");
        }
    }
}

#[test]
fn a_list_that_is_not_understood_is_refused() {
    for list in [
        json!("lm_head"),
        json!(7),
        json!({"lm_head": true}),
        json!([7]),
        json!([null]),
        json!(["lm_head", "("]),
        json!(["lm_head", r"(a)\1"]),
        json!(["lm_head", "a".repeat(5000)]),
        json!([
            "lm_head",
            format!("{}a{}", "(".repeat(300), ")*".repeat(300))
        ]),
    ] {
        let copy = Copy::of(MULTIPLIES).quantization("modules_to_not_convert", list);
        copy.is_refused("unknown-quantization", &["modules_to_not_convert"]);
    }
    // transformers would make the output head ternary
    for list in [json!([]), json!(["model.layers.11"])] {
        let copy = Copy::of(MASTERS).quantization("modules_to_not_convert", list);
        copy.is_refused(
            "unknown-quantization",
            &["modules_to_not_convert", "lm_head"],
        );
    }
}

#[test]
fn hostile_lists_end_soon() {
    let start = std::time::Instant::now();
    let many: Vec<String> = (0..20_000).map(|n| format!("(.*)*(.*)*x{n}")).collect();
    let copy = Copy::of(DIVIDES).quantization("modules_to_not_convert", json!(many));
    let json = copy.json(&[]);
    assert_eq!(json["error"]["code"], "unknown-quantization", "{json}");
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

// ---- keys of quantization_config ----

#[test]
fn early_spellings_of_the_mode_mean_what_they_meant() {
    let early = |name: &str, section: Value| {
        Copy::of(name).config(|config| config["quantization_config"] = section)
    };
    let offline = json!({"quant_method": "bitnet", "offline_quantization": true});
    let expected = Copy::of(MULTIPLIES).hash(&[]);
    let copy = early(MULTIPLIES, offline.clone());
    assert_eq!(copy.hash(&[]), expected);
    let both = json!({"quant_method": "bitnet", "offline_quantization": true, "online_quantization": false});
    assert_eq!(early(MULTIPLIES, both).hash(&[]), expected);
    // a copy says it as programs of today read it
    let out = copy.out("hf");
    let ran = copy.path();
    let words = [
        ran.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
        "--to",
        "hf-packed",
        "--json",
    ];
    let ran = run(bitnet_convert::run, words);
    assert_eq!(ran.json()["ternary_sha256"], expected, "{}", ran.stdout);
    let section = read_json(&out.join("config.json"))["quantization_config"].clone();
    assert_eq!(section["linear_class"], "autobitlinear");
    assert_eq!(section["quantization_mode"], "offline");
    assert!(section.get("offline_quantization").is_none());
    let online = json!({"quant_method": "bitnet", "online_quantization": true});
    let copy = early(MASTERS, online.clone());
    assert_eq!(copy.hash(&[]), Copy::of(MASTERS).hash(&[]));
    let out = copy.out("hf");
    let ran = copy.path();
    let words = [
        ran.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
        "--to",
        "hf-bf16",
        "--json",
    ];
    assert_eq!(run(bitnet_convert::run, words).status, ExitStatus::Done);
    let section = read_json(&out.join("config.json"))["quantization_config"].clone();
    assert_eq!(section["quantization_mode"], "online", "{section}");
    for (key, value) in [
        ("offline_quantization", json!("true")),
        ("offline_quantization", json!(false)),
        ("online_quantization", json!(1)),
        ("linear_class", json!("bitlinear")),
        ("quantization_mode", json!("online")),
        ("online_quantization", json!(true)),
    ] {
        let mut section = offline.clone();
        section[key] = value;
        early(MULTIPLIES, section).is_refused("unknown-quantization", &[key]);
    }
}

#[test]
fn unknown_keys_of_the_quantization_are_refused_by_name() {
    for (key, value) in [
        ("scale_direction", json!("divide")),
        ("group_size", json!(128)),
        ("weight_bits", json!(2)),
        ("activation_bits", json!(4)),
        ("hadamard", json!(true)),
        ("sub_config", json!({"a": 1})),
    ] {
        let copy = Copy::of(DIVIDES).quantization(key, value);
        copy.is_refused(
            "unknown-quantization",
            &[&format!("quantization_config.{key}")],
        );
    }
    let expected = Copy::of(DIVIDES).hash(&[]);
    for (key, value) in [
        ("hadamard", json!(false)),
        ("new", Value::Null),
        ("list", json!([])),
    ] {
        assert_eq!(
            Copy::of(DIVIDES).quantization(key, value).hash(&[]),
            expected,
            "{key}"
        );
    }
}

// ---- other keys of config.json ----

#[test]
fn keys_of_another_network_are_refused_by_name() {
    for (key, value) in [
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("sliding_window", json!(16)),
        ("use_sliding_window", json!(true)),
        ("attn_logit_softcapping", json!(50.0)),
        ("logit_softcapping", json!(30.0)),
        ("partial_rotary_factor", json!(0.5)),
        ("embedding_multiplier", json!(12.0)),
        ("residual_multiplier", json!(0.2)),
        ("logits_scaling", json!(8.0)),
        ("attention_multiplier", json!(0.1)),
        ("pretraining_tp", json!(2)),
        (
            "layer_types",
            json!(["sliding_attention", "full_attention"]),
        ),
        ("num_local_experts", json!(4)),
        ("text_config", json!({"hidden_size": 8})),
        ("hidden_activation", json!("gelu_pytorch_tanh")),
        ("is_causal", json!(false)),
        ("query_scale", json!(0.3)),
        ("rope_mode", json!("interleaved")),
        ("embed_layernorm", json!(true)),
        ("attn_temperature_tuning", json!(true)),
        ("transformers_weights", json!("other.safetensors")),
        ("modules_to_not_convert", json!(["lm_head"])),
        (
            "rope_scaling",
            json!({"rope_type": "default", "mrope_section": [2, 1, 1]}),
        ),
        (
            "rope_parameters",
            json!({"rope_type": "default", "alpha": 1000.0}),
        ),
        (
            "auto_map",
            json!({"AutoModelForCausalLM": "modeling_x.OtherForCausalLM"}),
        ),
    ] {
        let copy = Copy::of(DIVIDES).config(|config| config[key] = value);
        copy.is_refused("unsupported-config", &[key]);
    }
}

#[test]
fn unknown_keys_are_reported_by_every_program() {
    let expected = Copy::of(DIVIDES).hash(&[]);
    let copy = Copy::of(DIVIDES).config(|config| {
        config["answer"] = json!(42);
        config["new_switch"] = json!(false);
        config["new_factor"] = json!(1.0);
        config["temperature"] = json!(0.6);
    });
    assert_eq!(copy.hash(&[]), expected);
    let known = json!(["answer"]);
    assert_eq!(copy.json(&[])["unknown_keys"], known);
    assert_eq!(copy.json(&["--dry-run"])["unknown_keys"], known);
    let ran = copy.convert(&[]);
    assert!(
        ran.stderr.contains("warning: the key `answer` = 42"),
        "{}",
        ran.stderr
    );
    let source = copy.path();
    let words = ["inspect", source.to_str().unwrap()];
    let inspected = run(bitnet_convert::run, words);
    assert!(
        inspected.stderr.contains("`answer`"),
        "{}",
        inspected.stderr
    );
    let words = words.iter().chain(&["--json"]);
    assert_eq!(
        run(bitnet_convert::run, words).json()["unknown_keys"],
        known
    );
    let findings = copy.doctor().json()["findings"].clone();
    let says = |f: &Value| f["code"] == "unknown-key" && f["place"] == "answer";
    assert!(findings.as_array().unwrap().iter().any(says), "{findings}");
    assert_eq!(Copy::of(DIVIDES).json(&[])["unknown_keys"], json!([]));
}

/// A GGUF file with one more key.
fn with_key(from: &Path, to: &Path, key: &str, value: MetaValue) {
    let file = bitnet_formats::open(from, &bitnet_formats::Limits::default()).unwrap();
    let mut metadata = Metadata(file.metadata.0.clone());
    metadata.0.retain(|(k, _)| k != key);
    metadata.0.push((key.to_owned(), value));
    let tensors: Vec<PlannedTensor> = file
        .tensors()
        .iter()
        .map(|info| PlannedTensor {
            name: info.name.clone(),
            encoding: info.encoding,
            shape: info.shape.clone(),
            len: info.len,
        })
        .collect();
    let header = Gguf.header(&WritePlan { metadata, tensors }).unwrap();
    let mut bytes = header.bytes;
    for (info, offset) in file.tensors().iter().zip(&header.offsets) {
        bytes.resize(*offset as usize, 0);
        bytes.extend_from_slice(&file.read(info).unwrap());
    }
    bytes.resize(header.total as usize, 0);
    std::fs::write(to, bytes).unwrap();
}

#[test]
fn keys_of_gguf_are_refused_or_reported() {
    let copy = Copy::of(DIVIDES);
    let expected = copy.hash(&["--to", "gguf-i2_s"]);
    let (from, to, again) = (
        copy.out("o.gguf"),
        copy.out("k.gguf"),
        copy.out("again.gguf"),
    );
    let convert = |key: &str, value: MetaValue| {
        with_key(&from, &to, key, value);
        let words = [
            to.to_str().unwrap(),
            "-o",
            again.to_str().unwrap(),
            "--force",
            "--json",
        ];
        run(bitnet_convert::run, words).json()
    };
    for (key, value) in [
        ("llama.attention.scale", MetaValue::F32(0.5)),
        ("llama.attention.sliding_window", MetaValue::U32(16)),
        ("llama.attention.new_kind", MetaValue::U32(3)),
        ("llama.expert_count", MetaValue::U32(4)),
        ("llama.expert_weights_scale", MetaValue::F32(2.5)),
        ("llama.rope.scaling.attn_factor", MetaValue::F32(0.5)),
        ("llama.rope.dimension_sections", MetaValue::text("1,2,3")),
        ("llama.rope.scaling.type", MetaValue::text("dynamic")),
        ("llama.residual_scale", MetaValue::F32(0.3)),
        ("llama.ssm.state_size", MetaValue::U32(16)),
        ("llama.swin_norm", MetaValue::Bool(true)),
        ("general.type", MetaValue::text("adapter")),
    ] {
        let json = convert(key, value);
        let code = json["error"]["code"].as_str().unwrap_or_default();
        let expected = match key {
            "general.type" => "adapter",
            _ => "unsupported-config",
        };
        assert_eq!(code, expected, "{key}: {json}");
        let message = json["error"]["message"].as_str().unwrap();
        assert!(message.contains(key) || key == "general.type", "{message}");
    }
    for (key, value, unknown) in [
        ("llama.answer", MetaValue::U32(42), json!(["llama.answer"])),
        ("other.answer", MetaValue::U32(42), json!(["other.answer"])),
        ("llama.expert_count", MetaValue::U32(0), json!([])),
        (
            "llama.attention.new_kind",
            MetaValue::Bool(false),
            json!([]),
        ),
        (
            "llama.rope.scaling.finetuned",
            MetaValue::Bool(true),
            json!([]),
        ),
        ("general.answer", MetaValue::U32(42), json!([])),
    ] {
        let json = convert(key, value);
        assert_eq!(json["ternary_sha256"], expected, "{key}: {json}");
        assert_eq!(json["unknown_keys"], unknown, "{key}");
    }
}

// ---- ordinary weights ----

/// The float linears of a checkpoint become bell-shaped numbers.
fn make_dense(path: &Path) {
    let file = bitnet_formats::open(path, &bitnet_formats::Limits::default()).unwrap();
    let mut state = 88_172_645_463_325_252u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    for (number, part) in file.parts.iter().enumerate() {
        let mut bytes = part.read(0..part.len()).unwrap().to_vec();
        for info in file.tensors().iter().filter(|i| i.part == number) {
            if !info.name.ends_with("_proj.weight") {
                continue;
            }
            let range = info.offset as usize..(info.offset + info.len) as usize;
            for two in bytes[range].chunks_exact_mut(2) {
                let sum: f32 = (0..12).map(|_| next()).sum();
                two.copy_from_slice(&(((sum * 0.02).to_bits() >> 16) as u16).to_le_bytes());
            }
        }
        std::fs::write(part.path().with_extension("new"), bytes).unwrap();
    }
    let paths: Vec<PathBuf> = file.parts.iter().map(|p| p.path().to_owned()).collect();
    drop(file);
    for path in paths {
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }
}

#[test]
fn ordinary_weights_need_the_users_word_whatever_the_configuration_looks_like() {
    // what models with these settings were published as says nothing about the weights
    for name in [UNMARKED, "falcon-e-bfloat16"] {
        for vocabulary in [None, Some(131_072)] {
            let copy = Copy::of(name).config(|config| {
                config["eos_token_id"] = json!(11);
                if let Some(rows) = vocabulary {
                    config["rope_theta"] = json!(1_000_042 + rows);
                }
            });
            make_dense(&copy.path());
            copy.is_refused("not-ternary", &["of their size", "_proj"]);
            let json = copy.json(&["--ternary-trained"]);
            assert_eq!(json["status"], "converted", "{json}");
            let linears = if name == UNMARKED { 14 } else { 7 };
            assert_eq!(json["quantized_masters"], linears);
            let change = json["masters_relative_change"].as_f64().unwrap();
            assert!((0.45..0.6).contains(&change), "{change}");
            // what the quantized model computes with is in the output, to the bit
            assert_eq!(json["lossless"], true);
            let ran = copy.convert(&["--ternary-trained"]);
            let line = format!(
                "quantized       {linears} master tensors by the absmean rule; relative change 0.5"
            );
            assert!(ran.stdout.contains(&line), "{}", ran.stdout);
            assert!(
                ran.stdout.contains("yes, of the quantized weights"),
                "{}",
                ran.stdout
            );
        }
    }
    // the architecture's name is no statement about the weights either: transformers runs these as they are
    for name in [MASTERS, "bitnet-b1.58-1bitllm"] {
        let copy = Copy::of(name).config(|config| {
            let config = config.as_object_mut().unwrap();
            config.remove("quantization_config");
            config.remove("weight_bits");
            config.remove("input_bits");
        });
        copy.is_refused("not-ternary", &["of their size"]);
        assert_eq!(copy.hash(&["--ternary-trained"]), Copy::of(name).hash(&[]));
    }
}

#[test]
fn master_weights_that_are_copied_are_not_quantized_and_say_what_they_are() {
    let copy = Copy::of(UNMARKED);
    let (source, out) = (copy.path(), copy.out("hf"));
    let words = [
        source.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
        "--to",
        "hf-bf16",
        "--ternary-trained",
        "--json",
    ];
    let json = run(bitnet_convert::run, words).json();
    assert_eq!(json["quantized_masters"], 0, "{json}");
    assert_eq!(json["masters_relative_change"], Value::Null);
    // the copy needs no word any more
    let section = read_json(&out.join("config.json"))["quantization_config"].clone();
    assert_eq!(section["quantization_mode"], "online", "{section}");
    let words = [
        out.to_str().unwrap(),
        "-o",
        copy.out("o.gguf").to_str().unwrap(),
        "--json",
    ]
    .map(str::to_owned);
    let again = run(bitnet_convert::run, words).json();
    assert_eq!(again["ternary_sha256"], json["ternary_sha256"], "{again}");
    // a look at the floats is allowed without a word, and says what they are
    let words = ["inspect", source.to_str().unwrap(), "--json"];
    let inspected = run(bitnet_convert::run, words);
    assert_eq!(inspected.status, ExitStatus::Done, "{}", inspected.stdout);
    let why = inspected.json()["not_ternary"].clone();
    assert!(why.as_str().unwrap().contains("of their size"), "{why}");
}
