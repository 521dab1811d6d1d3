//! What a checkpoint answers, whatever container it came from.
//!
//! Invariant: a model and its conversion give the same answer to every question that both can answer.

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{checkpoint, read_json};
use bitnet_tests::program::run;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const NAME: &str = "somebody/some-model";

/// A model with a name of its own, and the same model as GGUF.
fn both(directory: &Path) -> (PathBuf, PathBuf) {
    let (model, converted) = (directory.join("model"), directory.join("model.gguf"));
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(checkpoint("bitnet-2b4t-packed")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let config = model.join("config.json");
    let mut json = read_json(&config);
    json["_name_or_path"] = NAME.into();
    fs::write(&config, json.to_string()).unwrap();
    let words: [OsString; 5] = [
        model.clone().into(),
        "-o".into(),
        converted.clone().into(),
        "--to".into(),
        "gguf-i2_s".into(),
    ];
    let ran = run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    (model, converted)
}

#[test]
fn a_conversion_answers_as_its_source() {
    let directory = tempfile::tempdir().unwrap();
    let (model, converted) = both(directory.path());
    let open = |path: &Path| Checkpoint::open(path, &OpenOptions::default()).unwrap();
    let (a, b) = (open(&model), open(&converted));

    assert_eq!(
        (a.name().as_deref(), b.name().as_deref()),
        (Some(NAME), Some(NAME))
    );
    let json = read_json(&model.join("config.json"));
    assert_eq!(a.architecture(), json["architectures"][0].as_str().unwrap());
    assert_eq!(b.architecture(), b.family.gguf_architecture());
    assert_eq!(a.hf_architecture(), b.hf_architecture());
    assert!(a.descriptions().is_empty() && b.descriptions().is_empty());

    let text = "Hello, world: 1 + 1 = 2";
    let ids = |c: &Checkpoint| c.tokenizer().unwrap().unwrap().encode(text, true).unwrap();
    assert!(!ids(&a).is_empty());
    assert_eq!(ids(&a), ids(&b));
    assert_eq!(a.tokenizer_digest().unwrap(), b.tokenizer_digest().unwrap());
    let templates = |c: &Checkpoint| c.chat_templates().unwrap().hashes();
    assert!(templates(&a).0.is_some());
    assert_eq!(templates(&a), templates(&b));
    assert!(a.tokenizer_notes().is_empty() && b.tokenizer_notes().is_empty());

    // what GGUF says of the tokenizer of a directory is what a GGUF file of the model says
    let (said, found) = (
        a.gguf_tokenizer().unwrap(),
        b.gguf_tokenizer().unwrap().unwrap(),
    );
    for (key, value) in said.unwrap() {
        assert!(found.contains(&(key.clone(), value)), "{key}");
    }
    let json_of = |c: &Checkpoint| {
        let files = c.side_files().unwrap();
        let file = files.into_iter().find(|(name, _)| name == "tokenizer.json");
        file.unwrap().1
    };
    assert_eq!(json_of(&a), json_of(&b));
    let (a, b) = (
        a.tokenizer_summary().unwrap(),
        b.tokenizer_summary().unwrap(),
    );
    assert_eq!(a.name.as_deref(), Some("tokenizer.json"));
    assert!(b.name.unwrap().starts_with("gpt2 ("));
    assert!(a.tokens.is_some() && a.tokens <= b.tokens);
}

#[test]
fn a_model_without_a_tokenizer_says_so_from_either_container() {
    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("model");
    fs::create_dir(&model).unwrap();
    bitnet_tests::packed_model::write(&model, 64);
    let converted = directory.path().join("model.gguf");
    let words: [OsString; 5] = [
        model.clone().into(),
        "-o".into(),
        converted.clone().into(),
        "--to".into(),
        "gguf-i2_s".into(),
    ];
    let ran = run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    for path in [&model, &converted] {
        let checkpoint = Checkpoint::open(path, &OpenOptions::default()).unwrap();
        assert!(
            checkpoint.tokenizer().unwrap().is_none(),
            "{}",
            path.display()
        );
        assert_eq!(checkpoint.gguf_tokenizer().unwrap(), None);
        assert_eq!(checkpoint.tokenizer_digest().unwrap(), None);
        let notes = checkpoint.tokenizer_notes();
        assert_eq!(notes.len(), 1, "{}", path.display());
        assert_eq!(checkpoint.tokenizer_summary().unwrap(), Default::default());
    }
}
