//! GGUF files of llama.cpp, which say llama3 rope scaling by the divisors in `rope_freqs.weight` alone.
//!
//! Invariant: such a file computes the logits of the checkpoint that it was made from, and divisors of any other rule
//! are refused.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program::{self, Ran};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

const FIXTURE: &str = "llama3-8b-1.58";

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A GGUF file of the fixture with this scaling; `bare`: without this program's own keys for it, as llama.cpp writes it.
fn gguf(folder: &Path, factor: f64, context: u64, bare: bool) -> std::path::PathBuf {
    let source = folder.join("source");
    std::fs::create_dir_all(&source).unwrap();
    for entry in std::fs::read_dir(checkpoint(FIXTURE)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), source.join(entry.file_name())).unwrap();
    }
    let config = source.join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["rope_scaling"] = json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": context
    });
    std::fs::write(&config, json.to_string()).unwrap();
    let path = folder.join("model.gguf");
    let ran = program::run(
        bitnet_convert::run,
        [
            text(&source),
            "-o",
            text(&path),
            "--to",
            "gguf-i2_s",
            "--force",
        ],
    );
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    if bare {
        rewrite(&path, |bytes| {
            let key = b"ternary.rope.";
            let places: Vec<_> = (0..bytes.len() - key.len())
                .filter(|i| bytes[*i..].starts_with(key))
                .collect();
            assert_eq!(places.len(), 5);
            places.iter().for_each(|i| bytes[*i] = b'x');
        });
    }
    path
}

fn rewrite(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn logits(folder: &Path, model: &Path) -> Ran {
    let prompts = folder.join("prompts.json");
    std::fs::write(&prompts, "[[1, 2, 3, 4, 5, 6, 7, 8]]").unwrap();
    program::run(
        bitnet_run::run,
        ["logits", text(model), "--prompts", text(&prompts), "--json"],
    )
}

fn sha256(folder: &Path, model: &Path) -> String {
    let ran = logits(folder, model);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    ran.json()["logits_sha256"].as_str().unwrap().to_owned()
}

#[test]
fn divisors_alone_say_the_llama3_rule() {
    let mut all = Vec::new();
    for (factor, context) in [(8.0, 8192), (32.0, 8192), (4.0, 2048)] {
        let folder = TempDir::new().unwrap();
        let folder = folder.path();
        let expected = sha256(folder, &gguf(folder, factor, context, false));
        let bare = gguf(folder, factor, context, true);
        assert_eq!(
            sha256(folder, &bare),
            expected,
            "factor {factor}, context {context}"
        );
        // the checkpoint that it becomes says the rule in config.json
        let back = folder.join("back");
        let args = [text(&bare), "-o", text(&back), "--to", "hf-packed"];
        let ran = program::run(bitnet_convert::run, args);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
        assert_eq!(sha256(folder, &back), expected);
        let config: Value =
            serde_json::from_slice(&std::fs::read(back.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["rope_scaling"]["factor"], json!(factor));
        let args = [text(&bare), "--against", text(&back), "--json"];
        let ran = program::run(bitnet_verify::run, args);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
        all.push(expected);
    }
    all.dedup();
    assert_eq!(all.len(), 3);
}

#[test]
fn other_divisors_are_refused_with_a_remedy() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    let model = gguf(folder, 8.0, 8192, true);
    // 8 becomes 9 in the last divisor: no llama3 rule gives both
    let name = b"rope_freqs.weight";
    rewrite(&model, |bytes| {
        assert!(bytes.windows(name.len()).any(|w| w == name));
        let eights = [8f32.to_le_bytes(); 4].concat();
        let at = (0..bytes.len() - 16)
            .rfind(|i| bytes[*i..].starts_with(&eights))
            .unwrap();
        bytes[at..at + 4].copy_from_slice(&9f32.to_le_bytes());
    });
    let ran = logits(folder, &model);
    assert_eq!(ran.status, ExitStatus::CouldNot);
    let error = &ran.json()["error"];
    assert_eq!(error["code"], "unsupported-config");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("rope_freqs.weight")
    );
    assert!(
        error["hint"]
            .as_str()
            .unwrap()
            .contains("config.json says which rope scaling")
    );
}
