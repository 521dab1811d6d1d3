//! Tokenizers that lie in other files than one complete `tokenizer.json`, and what a conversion says of a tokenizer.
//!
//! Invariant: expected ids are those of transformers 5.24 (`AutoTokenizer`) for the same files; what transformers
//! reads and this program does not is refused by name.

use bitnet_cli::ExitStatus;
use bitnet_formats::{ErrorCode, FormatError, Metadata};
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program::{Ran, run};
use bitnet_text::{Tokenizer, tokenizer_to_gguf};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// Its class is Qwen2Tokenizer: 384 tokens and 15 added ones.
const FIXTURE: &str = "bonsai-1.7b";
const ROWS: usize = 399;

const TEXTS: [&str; 5] = [
    "x<|tool|>y",
    " Hello there, cafe\u{301} 12",
    "a <|im_end|> b",
    "<|extra_1|><tool>  z",
    "x <|new|> y",
];
/// Of the complete directory.
const PLAIN: [&[u32]; 5] = [
    &[87, 27, 91, 83, 310, 75, 91, 29, 88],
    &[
        220, 39, 68, 280, 78, 258, 265, 11, 328, 69, 127, 102, 220, 16, 17,
    ],
    &[64, 220, 386, 264],
    &[393, 27, 83, 310, 75, 29, 220, 220, 89],
    &[87, 220, 27, 91, 77, 68, 86, 91, 29, 324],
];

/// The JSON files of a checkpoint; null for one that is not there.
struct Files {
    config: Value,
    tokenizer: Value,
    settings: Value,
    map: Value,
    added: Value,
}

impl Files {
    fn fixture() -> Self {
        let read = |name: &str| {
            let bytes = std::fs::read(checkpoint(FIXTURE).join(name)).unwrap();
            serde_json::from_slice::<Value>(&bytes).unwrap()
        };
        Self {
            config: read("config.json"),
            tokenizer: read("tokenizer.json"),
            settings: read("tokenizer_config.json"),
            map: read("special_tokens_map.json"),
            added: Value::Null,
        }
    }

    /// Of a class that takes `tokenizer.json` as it is.
    fn backend() -> Self {
        let mut files = Self::fixture();
        files.settings["tokenizer_class"] = json!("PreTrainedTokenizerFast");
        files.config["model_type"] = json!("llama");
        files
    }

    /// Without the last added token (398).
    fn shortened() -> Self {
        let mut files = Self::backend();
        files.tokenizer["added_tokens"]
            .as_array_mut()
            .unwrap()
            .pop();
        let decoder = files.settings["added_tokens_decoder"].as_object_mut();
        decoder.unwrap().remove("398").unwrap();
        files
    }

    fn class(mut self, name: &str, model_type: &str) -> Self {
        self.settings["tokenizer_class"] = json!(name);
        self.config["model_type"] = json!(model_type);
        self
    }

    fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, json) in [
            ("config.json", &self.config),
            ("tokenizer.json", &self.tokenizer),
            ("tokenizer_config.json", &self.settings),
            ("special_tokens_map.json", &self.map),
            ("added_tokens.json", &self.added),
        ] {
            if !json.is_null() {
                std::fs::write(dir.path().join(name), json.to_string()).unwrap();
            }
        }
        dir
    }

    /// With `vocab.json` and `merges.txt` in place of `tokenizer.json`.
    fn in_two_files(&self) -> TempDir {
        let dir = self.write();
        let path = |name: &str| dir.path().join(name);
        std::fs::remove_file(path("tokenizer.json")).unwrap();
        let model = &self.tokenizer["model"];
        std::fs::write(path("vocab.json"), model["vocab"].to_string()).unwrap();
        let mut lines = "#version: 0.2\n".to_owned();
        for merge in model["merges"].as_array().unwrap() {
            match merge {
                Value::String(line) => lines.push_str(line),
                pair => {
                    let part = |at: usize| pair[at].as_str().unwrap();
                    lines.push_str(&format!("{} {}", part(0), part(1)));
                }
            }
            lines.push('\n');
        }
        std::fs::write(path("merges.txt"), lines).unwrap();
        dir
    }
}

fn ids(tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    let encode = |text: &&str| tokenizer.encode(text, true).unwrap();
    TEXTS.iter().map(encode).collect()
}

/// What the directory gives, and its GGUF metadata as well where the word is one of GGUF.
fn check(name: &str, dir: &TempDir, expected: [&[u32]; 5], is_gguf: bool) {
    let tokenizer = Tokenizer::from_directory(dir.path());
    let tokenizer = tokenizer.unwrap_or_else(|e| panic!("{name}: {e}")).unwrap();
    assert_eq!(ids(&tokenizer), expected, "{name}");
    if is_gguf {
        let metadata = Metadata(tokenizer_to_gguf(dir.path(), ROWS).unwrap());
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap().unwrap();
        assert_eq!(ids(&tokenizer), expected, "{name}: GGUF");
    }
}

fn refused(name: &str, dir: &Path) -> FormatError {
    let error = Tokenizer::from_directory(dir).err();
    let error = error.unwrap_or_else(|| panic!("{name}: not refused"));
    assert_eq!(error.code, ErrorCode::Tokenizer, "{name}: {error}");
    assert!(error.hint.is_some(), "{name}: {error}");
    error
}

#[test]
fn a_vocabulary_of_published_size_is_read_from_vocab_json() {
    let mut files = Files::fixture();
    let settings = files.settings.as_object_mut().unwrap();
    settings.remove("added_tokens_decoder").unwrap();
    let vocab = files.tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let known = vocab.len();
    for id in known..known + 200_000 {
        vocab.insert(format!("t{id}"), json!(id));
    }
    let tokenizer = Tokenizer::from_directory(files.in_two_files().path());
    let tokenizer = tokenizer.unwrap().unwrap();
    let text = tokenizer.decode(&[known as u32 + 199_999], false);
    assert_eq!(text.unwrap(), format!("t{}", known + 199_999));
}

#[test]
fn vocabulary_and_merges_in_two_files_are_read_by_class() {
    let files = Files::fixture();
    check("one file", &files.write(), PLAIN, true);
    check("Qwen2Tokenizer", &files.in_two_files(), PLAIN, true);
    let mut unnamed = Files::fixture();
    let settings = unnamed.settings.as_object_mut().unwrap();
    settings.remove("tokenizer_class").unwrap();
    check("class of qwen3", &unnamed.in_two_files(), PLAIN, true);
    // GPT-2 normalizes nothing
    let mut gpt2 = PLAIN;
    gpt2[1] = &[
        220, 39, 68, 280, 78, 258, 265, 11, 328, 69, 68, 136, 223, 220, 16, 17,
    ];
    let mut files = Files::fixture().class("GPT2Tokenizer", "llama");
    check("GPT2Tokenizer", &files.in_two_files(), gpt2, true);
    files.settings["add_prefix_space"] = json!(true);
    let prefixed: [&[u32]; 5] = [
        &[220, 87, 27, 91, 83, 310, 75, 91, 29, 88],
        gpt2[1],
        &[260, 220, 386, 264],
        &[393, 220, 27, 83, 310, 75, 29, 220, 220, 89],
        &[220, 87, 220, 27, 91, 77, 68, 86, 91, 29, 324],
    ];
    // no word of GGUF says that a space is put in front
    check(
        "with a space in front",
        &files.in_two_files(),
        prefixed,
        false,
    );
    let error = tokenizer_to_gguf(files.in_two_files().path(), ROWS).unwrap_err();
    assert_eq!(error.code, ErrorCode::Tokenizer, "{error}");
}

#[test]
fn begin_and_end_of_text_are_added_where_the_settings_ask() {
    let mut files = Files::fixture();
    for (key, value) in [
        ("add_bos_token", json!(true)),
        ("add_eos_token", json!(true)),
        ("bos_token", json!("<|im_start|>")),
    ] {
        files.settings[key] = value;
    }
    let around = |ids: &[u32]| [&[385], ids, &[386]].concat();
    let all = PLAIN.map(around);
    let expected = [0, 1, 2, 3, 4].map(|at: usize| all[at].as_slice());
    check("added", &files.in_two_files(), expected, true);
}

#[test]
fn a_class_without_settings_has_the_special_tokens_of_its_own() {
    let mut files = Files::fixture();
    files.settings = Value::Null;
    let mut expected = PLAIN;
    expected[2] = &[64, 220, 384, 264];
    expected[3] = &[
        27, 91, 68, 87, 83, 81, 64, 62, 16, 91, 29, 27, 83, 310, 75, 29, 220, 220, 89,
    ];
    check(
        "no tokenizer_config.json",
        &files.in_two_files(),
        expected,
        true,
    );
}

#[test]
fn other_classes_and_forms_are_refused_by_name() {
    let roberta = Files::fixture().class("RobertaTokenizer", "qwen3");
    let error = refused("class", roberta.in_two_files().path());
    assert!(error.to_string().contains("RobertaTokenizer"), "{error}");

    let dir = Files::fixture().in_two_files();
    std::fs::remove_file(dir.path().join("merges.txt")).unwrap();
    let error = refused("half", dir.path());
    assert!(error.to_string().contains("without merges.txt"), "{error}");

    for (name, bytes) in [
        ("tokenizer.model", &b"AA== 0\nAQ== 1\nAg== 2\n"[..]),
        ("qwen.tiktoken", b"IQ== 0\n"),
    ] {
        let dir = Files::fixture().write();
        std::fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
        std::fs::write(dir.path().join(name), bytes).unwrap();
        let error = refused(name, dir.path());
        assert!(error.to_string().contains("tiktoken file"), "{error}");
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}

#[test]
fn added_tokens_come_from_every_file() {
    let token = json!({"content": "<|tool|>", "special": true, "normalized": false});
    // the class is built of the vocabulary: <|tool|> takes the id of <|extra_1|>
    let mut files = Files::fixture();
    files.settings["added_tokens_decoder"]["393"] = token.clone();
    let mut expected = PLAIN;
    expected[0] = &[87, 393, 88];
    expected[3] = &[
        27, 91, 68, 87, 83, 81, 64, 62, 16, 91, 29, 27, 83, 310, 75, 29, 220, 220, 89,
    ];
    check("added_tokens_decoder", &files.write(), expected, true);

    // flags of the settings win over those of the file
    let mut files = Files::backend();
    let end = &mut files.settings["added_tokens_decoder"]["386"];
    (end["lstrip"], end["rstrip"]) = (json!(true), json!(true));
    let mut expected = PLAIN;
    expected[2] = &[64, 386, 65];
    check("flags", &files.write(), expected, true);

    let mut expected = PLAIN;
    expected[4] = &[87, 220, 398, 324];
    let mut files = Files::shortened();
    files.settings["additional_special_tokens"] = json!(["<|new|>"]);
    check("additional_special_tokens", &files.write(), expected, true);
    let mut files = Files::shortened();
    files.settings["image_token"] = json!("<|new|>");
    check("image_token", &files.write(), expected, true);
    for (name, file) in [
        ("added_tokens.json", false),
        ("special_tokens_map.json", true),
    ] {
        let mut files = Files::shortened();
        let settings = files.settings.as_object_mut().unwrap();
        settings.remove("added_tokens_decoder").unwrap();
        match file {
            true => files.map["additional_special_tokens"] = json!(["<|new|>"]),
            false => files.added = json!({"<|new|>": 398}),
        }
        check(name, &files.write(), expected, true);
    }
}

#[test]
fn an_id_that_transformers_would_not_give_is_refused() {
    for id in ["393", "7000"] {
        let mut files = Files::backend();
        files.settings["added_tokens_decoder"][id] =
            json!({"content": "<|tool|>", "special": true});
        let error = refused(id, files.write().path());
        let message = error.to_string();
        assert!(
            message.contains("<|tool|>") && message.contains("id 399"),
            "{error}"
        );
    }
}

// ---- whole programs ----

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A copy of a fixture's checkpoint, changed.
fn copy(fixture: &str, change: impl FnOnce(&Path)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(checkpoint(fixture)).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    change(dir.path());
    dir
}

fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(name);
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

fn convert(source: &Path, output: &Path, words: &[&str]) -> Ran {
    let fixed = [text(source), "-o", text(output), "--json"];
    run(bitnet_convert::run, fixed.iter().chain(words))
}

fn converted(source: &Path, output: &Path, words: &[&str]) -> Vec<String> {
    let ran = convert(source, output, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    let report = ran.json();
    let notes = report["tokenizer_notes"].as_array().unwrap();
    let notes = notes.iter().map(|note| {
        assert!(note["message"].as_str().unwrap().len() > 20, "{note}");
        note["code"].as_str().unwrap().to_owned()
    });
    notes.collect()
}

fn verify(artifact: &Path, against: &Path) -> (ExitStatus, String) {
    let words = [text(artifact), "--against", text(against), "--json"];
    let ran = run(bitnet_verify::run, words);
    (ran.status, ran.stdout)
}

fn is_same(artifact: &Path, against: &Path) {
    let (status, report) = verify(artifact, against);
    assert_eq!(status, ExitStatus::Done, "{report}");
}

#[test]
fn a_model_without_a_tokenizer_is_said_to_have_none_and_verifies() {
    let remove = |dir: &Path| {
        for name in ["tokenizer.json", "special_tokens_map.json"] {
            std::fs::remove_file(dir.join(name)).unwrap();
        }
        edit(dir, "config.json", |config| {
            config["bos_token_id"] = json!(7)
        });
    };
    let source = copy("bitnet-2b4t-bf16", remove);
    let out = tempfile::tempdir().unwrap();
    let gguf = out.path().join("a.gguf");
    assert_eq!(
        converted(source.path(), &gguf, &["--to", "gguf-i2_s"]),
        ["no-tokenizer"]
    );
    is_same(&gguf, source.path());
    let packed = out.path().join("packed");
    assert_eq!(
        converted(&gguf, &packed, &["--to", "hf-packed"]),
        ["no-tokenizer"]
    );
    is_same(&packed, &gguf);
    let again = out.path().join("b.gguf");
    assert_eq!(
        converted(&packed, &again, &["--to", "gguf-i2_s"]),
        ["no-tokenizer"]
    );
    is_same(&again, &gguf);
    let ran = run(
        bitnet_convert::run,
        [text(source.path()), "-o", text(&out.path().join("c.gguf"))],
    );
    assert!(
        ran.stderr.contains("warning: the source has no tokenizer"),
        "{}",
        ran.stderr
    );
    let ran = run(bitnet_verify::run, ["doctor", text(&gguf), "--json"]);
    assert!(ran.stdout.contains("\"no-tokenizer\""), "{}", ran.stdout);
}

#[test]
fn readers_of_gguf_that_skip_a_normalizer_are_warned_of() {
    let out = tempfile::tempdir().unwrap();
    let gguf = out.path().join("a.gguf");
    let notes = converted(&checkpoint(FIXTURE), &gguf, &["--to", "gguf-q2_0"]);
    assert_eq!(notes, ["normalizer-not-in-gguf"]);
    let notes = converted(
        &checkpoint("bitnet-2b4t-bf16"),
        &out.path().join("b.gguf"),
        &[],
    );
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn a_class_with_other_rules_than_the_file_is_said() {
    // Qwen2Tokenizer normalizes to NFC whatever the file says
    let source = copy(FIXTURE, |dir| {
        edit(dir, "tokenizer.json", |json| {
            json["normalizer"] = Value::Null
        });
    });
    let out = tempfile::tempdir().unwrap();
    let notes = converted(
        source.path(),
        &out.path().join("a.gguf"),
        &["--to", "gguf-q2_0"],
    );
    assert_eq!(notes, ["tokenizer-class"]);
    let ran = run(
        bitnet_verify::run,
        ["doctor", text(source.path()), "--json", "--no-run"],
    );
    assert!(ran.stdout.contains("\"tokenizer-class\""), "{}", ran.stdout);
    let ran = run(
        bitnet_verify::run,
        ["doctor", text(&checkpoint(FIXTURE)), "--json", "--no-run"],
    );
    assert!(
        !ran.stdout.contains("\"tokenizer-class\""),
        "{}",
        ran.stdout
    );
}

#[test]
fn a_token_without_a_row_stays_in_copies_and_leaves_the_gguf_file() {
    for class in ["GemmaTokenizer", "PreTrainedTokenizerFast"] {
        let source = tempfile::tempdir().unwrap();
        copy_tree(&checkpoint("bitnet-embedding-270m"), source.path());
        let image = json!({"id": 400, "content": "<image_soft_token>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true});
        edit(source.path(), "tokenizer.json", |json| {
            json["added_tokens"].as_array_mut().unwrap().push(image);
        });
        edit(source.path(), "tokenizer_config.json", |json| {
            json["tokenizer_class"] = json!(class);
        });
        let out = tempfile::tempdir().unwrap();
        let gguf = out.path().join("a.gguf");
        let ran = convert(source.path(), &gguf, &["--to", "gguf-i2_s"]);
        assert_eq!(ran.status, ExitStatus::Done, "{class}: {}", ran.stdout);
        let report = ran.json();
        let note = &report["tokenizer_notes"][0];
        assert_eq!(note["code"], "token-without-row", "{class}: {report}");
        let message = note["message"].as_str().unwrap();
        assert!(message.contains("`<image_soft_token>` (400)"), "{message}");
        is_same(&gguf, source.path());
        let bytes = std::fs::read(&gguf).unwrap();
        let is_there = bytes.windows(16).any(|part| part == b"image_soft_token");
        assert!(!is_there, "{class}");
        let packed = out.path().join("packed");
        converted(source.path(), &packed, &["--to", "hf-packed"]);
        let (a, b) = (
            source.path().join("tokenizer.json"),
            packed.join("tokenizer.json"),
        );
        assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
        is_same(&packed, source.path());
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_byte_order_mark_is_read_over_in_every_file() {
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
    ] {
        let source = copy("bitnet-2b4t-bf16", |dir| {
            let path = dir.join(name);
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(path, [&b"\xef\xbb\xbf"[..], &bytes].concat()).unwrap();
        });
        let out = tempfile::tempdir().unwrap();
        let gguf = out.path().join("a.gguf");
        converted(source.path(), &gguf, &["--to", "gguf-i2_s"]);
        is_same(&gguf, source.path());
        is_same(&gguf, &checkpoint("bitnet-2b4t-bf16"));
        for words in [["-p", "hi"], ["--tokens", "1"]] {
            let fixed = [text(source.path()), "-n", "1", "--json"];
            let ran = run(bitnet_run::run, fixed.iter().chain(&words));
            assert_eq!(ran.status, ExitStatus::Done, "{name}: {}", ran.stdout);
        }
    }
}
