//! Settings of sentence-transformers pipelines: what they do to a vector, or why they are refused.
//!
//! Invariant: a setting that changes the vector is computed, carried through conversions, or refused by name.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program::{self, Ran};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// An embedding model whose tokenizer adds a token behind every text.
const FIXTURE: &str = "bitnet-embedding-0.6b";
const TEXT: &str = "HELLO world";

fn run(args: &[&str]) -> Ran {
    program::run(bitnet_run::run, args.iter().copied())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A copy of the fixture.
struct Copy(TempDir);

impl Copy {
    fn new() -> Self {
        let copy = TempDir::new().unwrap();
        let source = checkpoint(FIXTURE);
        for entry in std::fs::read_dir(&source).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
        }
        std::fs::create_dir(copy.path().join("1_Pooling")).unwrap();
        let pooling = "1_Pooling/config.json";
        std::fs::copy(source.join(pooling), copy.path().join(pooling)).unwrap();
        Self(copy)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn with(self, name: &str, json: Value) -> Self {
        std::fs::write(self.0.path().join(name), json.to_string()).unwrap();
        self
    }

    /// The file with one key set.
    fn key(self, name: &str, key: &str, value: Value) -> Self {
        let bytes = std::fs::read(self.0.path().join(name)).unwrap();
        let mut json: Value = serde_json::from_slice(&bytes).unwrap();
        json[key] = value;
        self.with(name, json)
    }

    fn embed(&self, more: &[&str]) -> Value {
        embed(self.path(), more)
    }

    /// The refusal names every word, in every program that opens the model.
    fn refused(self, words: &[&str]) {
        let path = self.path();
        let ran = run(&["embed", text(path), TEXT, "--json"]);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
        let error = &ran.json()["error"];
        assert_eq!(error["code"], "unsupported-config");
        let message = error["message"].as_str().unwrap();
        for word in words {
            assert!(message.contains(word), "{word}: {message}");
        }
        let output = path.join("o.gguf");
        let args = [text(path), "-o", text(&output), "--ternary-trained"];
        let ran = program::run(bitnet_convert::run, args);
        assert_eq!(ran.status, ExitStatus::CouldNot);
    }
}

fn embed(model: &Path, more: &[&str]) -> Value {
    let mut args = vec!["embed", text(model), "--json"];
    args.extend(more);
    let ran = run(&args);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    ran.json()
}

fn vector(json: &Value) -> Vec<f64> {
    let row = json["embeddings"][0]["embedding"].as_array().unwrap();
    row.iter().map(|v| v.as_f64().unwrap()).collect()
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|v| v * v).sum::<f64>().sqrt()
}

fn pipeline(default: Value) -> Value {
    json!({
        "prompts": {"query": "Instruct: find\nQuery: ", "document": ""},
        "default_prompt_name": default, "similarity_fn_name": "cosine"
    })
}

const PIPELINE: &str = "config_sentence_transformers.json";
const TRANSFORMER: &str = "sentence_bert_config.json";

#[test]
fn a_default_prompt_precedes_every_text() {
    let plain = Copy::new();
    let prompted = Copy::new().with(PIPELINE, pipeline(json!("query")));
    let by_hand = plain.embed(&[&format!("Instruct: find\nQuery: {TEXT}")]);
    let by_default = prompted.embed(&[TEXT]);
    assert_eq!(
        by_default["embeddings_sha256"],
        by_hand["embeddings_sha256"]
    );
    assert_eq!(by_default["prompt_name"], "query");
    let without = plain.embed(&[TEXT]);
    assert_ne!(without["embeddings_sha256"], by_hand["embeddings_sha256"]);
    for more in [["--prompt-name", "document"], ["--prompt-text", ""]] {
        let args = [&more[..], &["--", TEXT]].concat();
        assert_eq!(
            prompted.embed(&args)["embeddings_sha256"],
            without["embeddings_sha256"]
        );
    }
    // prompts without a default wait to be named
    let named = Copy::new().with(PIPELINE, pipeline(Value::Null));
    assert_eq!(
        named.embed(&[TEXT])["embeddings_sha256"],
        without["embeddings_sha256"]
    );
    let query = named.embed(&["--prompt-name", "query", "--", TEXT]);
    assert_eq!(query["embeddings_sha256"], by_hand["embeddings_sha256"]);
    let ran = run(&[
        "embed",
        text(named.path()),
        "--prompt-name",
        "nobody",
        "--json",
        "--",
        TEXT,
    ]);
    assert_eq!(ran.status, ExitStatus::CouldNot);
    assert!(
        ran.json()["error"]["hint"]
            .as_str()
            .unwrap()
            .contains("query, document")
    );
}

#[test]
fn long_texts_are_cut_between_their_special_tokens() {
    let plain = Copy::new();
    let cut = Copy::new().with(
        TRANSFORMER,
        json!({"max_seq_length": 4, "do_lower_case": false}),
    );
    let json = cut.embed(&["one two three four five six"]);
    assert_eq!(json["tokens"], 4);
    assert_eq!(json["max_seq_length"], 4);
    // the first three tokens of the text, and the token that the tokenizer adds behind it
    let tokenizer = bitnet_text::Tokenizer::from_directory(plain.path())
        .unwrap()
        .unwrap();
    let mut ids = tokenizer
        .encode("one two three four five six", true)
        .unwrap();
    let last = *ids.last().unwrap();
    ids.truncate(3);
    ids.push(last);
    let prompts = plain.path().join("ids.json");
    std::fs::write(&prompts, json!([ids]).to_string()).unwrap();
    let expected = plain.embed(&["--prompts", text(&prompts)]);
    assert_eq!(json["embeddings_sha256"], expected["embeddings_sha256"]);
    // a tokenizer's own limit counts where the stage has none
    let by_tokenizer = Copy::new().key("tokenizer_config.json", "model_max_length", json!(4));
    let json = by_tokenizer.embed(&["one two three four five six"]);
    assert_eq!(json["embeddings_sha256"], expected["embeddings_sha256"]);
    Copy::new()
        .key("tokenizer_config.json", "model_max_length", json!(4))
        .key("tokenizer_config.json", "truncation_side", json!("left"))
        .refused(&["truncation_side"]);
}

#[test]
fn a_pipeline_without_normalize_keeps_the_length() {
    let modules = json!([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    ]);
    let normed = vector(&Copy::new().embed(&[TEXT]));
    let raw = Copy::new().with("modules.json", modules);
    let json = raw.embed(&[TEXT]);
    assert_eq!(json["normalized"], false);
    let raw = vector(&json);
    let norm = length(&raw);
    assert!((length(&normed) - 1.0).abs() < 1e-6);
    assert!(norm > 1.5, "{norm}");
    assert!(
        raw.iter()
            .zip(&normed)
            .all(|(a, b)| (a / norm - b).abs() < 1e-6)
    );
}

#[test]
fn settings_survive_every_container_and_verify_finds_a_change() {
    let source = Copy::new()
        .with(PIPELINE, pipeline(json!("query")))
        .with(TRANSFORMER, json!({"max_seq_length": 9}));
    // two stages: no Normalize
    let modules: Value =
        serde_json::from_slice(&std::fs::read(source.path().join("modules.json")).unwrap())
            .unwrap();
    let source = source.with("modules.json", json!(modules.as_array().unwrap()[..2]));
    let expected = source.embed(&["one two three four five six seven eight"]);
    let folder = TempDir::new().unwrap();
    let gguf = folder.path().join("a.gguf");
    let back = folder.path().join("back");
    let convert = |from: &Path, to: &Path, target: &str| {
        let args = [
            text(from),
            "-o",
            text(to),
            "--to",
            target,
            "--ternary-trained",
        ];
        let ran = program::run(bitnet_convert::run, args);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    };
    convert(source.path(), &gguf, "gguf-i2_s");
    convert(&gguf, &back, "packed");
    for (model, against) in [(&gguf, source.path()), (&back, &gguf)] {
        let json = embed(model, &["one two three four five six seven eight"]);
        assert_eq!(
            json["embeddings_sha256"], expected["embeddings_sha256"],
            "{model:?}"
        );
        let args = [
            text(model),
            "--against",
            text(against),
            "--ternary-trained",
            "--json",
        ];
        let ran = program::run(bitnet_verify::run, args);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    }
    for (name, key, value, setting) in [
        (
            PIPELINE,
            "default_prompt_name",
            json!("document"),
            "default_prompt_name",
        ),
        (PIPELINE, "prompts", json!({"query": "Query: "}), "prompts"),
        (TRANSFORMER, "max_seq_length", json!(8), "max_seq_length"),
    ] {
        let other = Copy::new()
            .with(PIPELINE, pipeline(json!("query")))
            .with(TRANSFORMER, json!({"max_seq_length": 9}))
            .with("modules.json", json!(modules.as_array().unwrap()[..2]))
            .key(name, key, value);
        let args = [
            text(&gguf),
            "--against",
            text(other.path()),
            "--ternary-trained",
            "--json",
        ];
        let ran = program::run(bitnet_verify::run, args);
        assert_eq!(
            ran.status,
            ExitStatus::Different,
            "{setting}: {}",
            ran.stdout
        );
        assert!(ran.stdout.contains(setting), "{}", ran.stdout);
    }
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    Copy::new()
        .with(TRANSFORMER, json!({"do_lower_case": true}))
        .refused(&["do_lower_case"]);
    Copy::new()
        .with(
            "sentence_roberta_config.json",
            json!({"do_lower_case": true}),
        )
        .refused(&["do_lower_case"]);
    Copy::new()
        .with(TRANSFORMER, json!({"max_seq_length": 0}))
        .refused(&["max_seq_length"]);
    Copy::new()
        .with(TRANSFORMER, json!({"transformer_task": "text-generation"}))
        .refused(&["transformer_task"]);
    Copy::new()
        .key(PIPELINE, "truncate_dim", json!(64))
        .refused(&["truncate_dim", "64"]);
    Copy::new()
        .key(PIPELINE, "default_prompt_name", json!("nobody"))
        .refused(&["default_prompt_name", "nobody"]);
    Copy::new()
        .key(PIPELINE, "prompts", json!({"query": 3}))
        .refused(&["query", "3"]);
    let pooling = "1_Pooling/config.json";
    Copy::new()
        .key(pooling, "pooling_mode_max_tokens", json!(true))
        .refused(&["2 known modes"]);
    Copy::new()
        .key(pooling, "word_embedding_dimension", json!(7))
        .refused(&["word_embedding_dimension"]);
    Copy::new()
        .key(pooling, "layer", json!(-2))
        .refused(&["layer", "-2"]);
    Copy::new()
        .with(PIPELINE, pipeline(json!("query")))
        .with(
            pooling,
            json!({"pooling_mode_mean_tokens": true, "include_prompt": false}),
        )
        .refused(&["include_prompt"]);
    let stage = |kind: &str, path: &str| json!({"idx": 0, "name": "0", "path": path, "type": kind});
    let transformer = stage("sentence_transformers.models.Transformer", "");
    let pool = stage("sentence_transformers.models.Pooling", "1_Pooling");
    let normalize = stage("sentence_transformers.models.Normalize", "2_Normalize");
    let dense = stage("sentence_transformers.models.Dense", "2_Dense");
    for (stages, word) in [
        (json!([transformer, normalize, pool]), "Normalize"),
        (json!([transformer]), "Transformer"),
        (json!([transformer, pool, dense, normalize]), "Dense"),
        (
            json!([transformer, pool, normalize, normalize]),
            "Normalize",
        ),
        (
            json!([stage("custom_st.Transformer", ""), pool, normalize]),
            "custom_st",
        ),
        (
            json!([
                stage("sentence_transformers.models.Transformer", "0_T"),
                pool
            ]),
            "0_T",
        ),
        (json!({}), "{"),
    ] {
        Copy::new()
            .with("modules.json", stages)
            .refused(&["modules.json", word]);
    }
}
