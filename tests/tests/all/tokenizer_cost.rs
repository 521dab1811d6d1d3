//! Tokenizers give the ids of the `tokenizers` library, take bounded time, and hostile ones are refused.
//!
//! `BITNET_TOKENIZERS` may name a directory of directories with a `tokenizer.json` each; they are
//! compared with the library as well.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::repository;
use bitnet_tests::program::{Program, run};
use bitnet_tests::random::Random;
use bitnet_text::{Tokenizer, is_refused_tokenizer};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const DEMO: &str = "tests/fixtures/demo/checkpoint";
/// Texts that each tokenizer is compared on.
const TEXTS: usize = 2448;

const PARTS: &[&str] = &[
    "Hello",
    " world",
    "the",
    " The quick brown fox",
    "'s",
    "'LL",
    "don't",
    "I'VE",
    "  ",
    "   \n\n",
    "\t",
    "\r\n",
    " \r\n \n",
    "12345678",
    "3.14",
    "٣٤",
    "½",
    "Ⅷ",
    "été",
    "e\u{301}te\u{301}",
    "İstanbul",
    "ß",
    "naïve",
    "今天天气很好",
    "日本語テキスト",
    "ひらがな",
    "한국어",
    "भाषा",
    "ภาษาไทย",
    "العربية",
    "עברית",
    "Ελληνικά",
    "русский",
    "👩‍👩‍👧",
    "🇩🇪",
    "👍🏽",
    "\u{feff}",
    "\u{200b}",
    "\u{a0}",
    "\u{3000}",
    "\u{0}",
    "\u{1f}",
    "\u{fffd}",
    "▁",
    "▁▁▁",
    "Ġ",
    "<0x41>",
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|eot_id|>",
    "<bos>",
    "<end_of_turn>",
    "[INST]",
    "<unk>",
    "<pad>",
    "def f(x):\n    return x",
    "{\"a\": [1]}",
    "https://example.org/?q=1&r=2",
    "a_b-c.d",
    "CamelCaseWord",
    "ALLCAPS",
    "aaaaaaaaaaaaaaaaaaaa",
    "......",
    "!?!?",
    "$€£",
    "→⇒",
    "∑∫√",
    "\u{10ffff}",
    "𝒜𝓁",
    "ﷺ",
    "ﬁ",
    "x\u{338}",
    "a\u{300}\u{301}\u{302}",
    "\u{e000}",
];

fn texts(seed: u64) -> Vec<String> {
    let mut random = Random(seed | 1);
    let mut all: Vec<String> = PARTS.iter().map(|part| (*part).to_owned()).collect();
    while all.len() < TEXTS {
        let mut text = String::new();
        for _ in 0..1 + random.below(12) {
            match random.below(8) {
                0 => text.push(' '),
                1 => text.extend(char::from_u32(random.below(0x3000) as u32)),
                _ => text.push_str(PARTS[random.below(PARTS.len())]),
            }
        }
        all.push(text);
    }
    all
}

fn tokenizer(dir: &Path) -> Tokenizer {
    let read = Tokenizer::from_directory(dir);
    read.unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .unwrap()
}

/// Compares ours with the library on the same file; says how many texts were compared.
fn same_ids(dir: &Path, texts: &[String]) -> usize {
    let ours = tokenizer(dir);
    let mut library = tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    library.with_truncation(None).unwrap();
    library.with_padding(None);
    assert_eq!(ours.vocab_size(), library.get_vocab_size(true));
    for text in texts {
        for special in [false, true] {
            let expected = library.encode(text.as_str(), special).unwrap();
            let found = ours.encode(text, special).unwrap();
            assert_eq!(found, expected.get_ids(), "{}: {text:?}", dir.display());
        }
    }
    for id in (0..ours.vocab_size() as u32 + 100).step_by(7) {
        assert_eq!(ours.token(id), library.id_to_token(id), "{id}");
    }
    texts.len()
}

#[test]
fn ids_are_those_of_the_library() {
    let mut dirs: Vec<PathBuf> = Vec::new();
    for fixture in std::fs::read_dir(repository().join("tests/fixtures")).unwrap() {
        dirs.push(fixture.unwrap().path().join("checkpoint"));
    }
    if let Some(more) = std::env::var_os("BITNET_TOKENIZERS") {
        for entry in std::fs::read_dir(more).unwrap() {
            dirs.push(entry.unwrap().path());
        }
    }
    dirs.retain(|dir| dir.join("tokenizer.json").is_file());
    assert!(dirs.len() >= 2, "{dirs:?}");
    for dir in dirs {
        assert_eq!(same_ids(&dir, &texts(41)), TEXTS);
    }
}

/// A tokenizer without rules over a random vocabulary.
fn random_model(random: &mut Random) -> Value {
    let letters = ["a", "b", "c", "é", "▁"];
    let mut tokens: Vec<String> = letters.iter().map(|l| (*l).to_owned()).collect();
    let mut merges = Vec::new();
    for _ in 0..random.below(40) {
        let left = tokens[random.below(tokens.len())].clone();
        let right = tokens[random.below(tokens.len())].clone();
        let made = format!("{left}{right}");
        if !tokens.contains(&made) {
            tokens.push(made);
        }
        // some pairs come twice, and some tokens are made in two ways
        merges.push((left, right));
    }
    tokens.push("<unk>".to_owned());
    let bytes = random.below(3);
    if bytes > 0 {
        // with one byte missing in some, which turns the fallback off for characters that have it
        let all = (0..=255u8).filter(|b| bytes == 1 || *b != 0x82);
        tokens.extend(all.map(|b| format!("<0x{b:02X}>")));
    }
    // ids in another order than the file, with gaps
    let step = 1 + random.below(3);
    let count = tokens.len();
    let ids = (0..count).map(|i| (count - 1 - i) * step);
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().cloned().zip(ids.map(Value::from)).collect();
    let merges: Value = match random.below(2) {
        0 => merges.iter().map(|(a, b)| json!([a, b])).collect(),
        _ => merges
            .iter()
            .map(|(a, b)| json!(format!("{a} {b}")))
            .collect(),
    };
    let unk = [Value::Null, "<unk>".into()][random.below(2)].clone();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": random.below(2) == 0,
            "byte_fallback": random.below(2) == 0, "ignore_merges": random.below(2) == 0,
            "vocab": vocab, "merges": merges
        }
    })
}

#[test]
fn random_models_give_the_ids_of_the_library() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let alphabet = ["a", "b", "c", "é", "▁", "x", "日", "a", "b", "ab"];
    let mut compared = 0;
    for _ in 0..300 {
        let dir = tempfile::tempdir().unwrap();
        let model = random_model(&mut random);
        std::fs::write(dir.path().join("tokenizer.json"), model.to_string()).unwrap();
        let texts: Vec<String> = (0..30)
            .map(|_| {
                let parts = 1 + random.below(20);
                (0..parts)
                    .map(|_| alphabet[random.below(alphabet.len())])
                    .collect()
            })
            .collect();
        compared += same_ids(dir.path(), &texts);
    }
    assert_eq!(compared, 9000);
}

/// The demo checkpoint with another `tokenizer.json`.
fn demo_with(change: impl FnOnce(&mut Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(repository().join(DEMO)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = dir.path().join("tokenizer.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(&path, value.to_string()).unwrap();
    dir
}

/// Runs every program on the model; each must refuse it, soon, and name the part.
#[track_caller]
fn refused_everywhere(what: &str, part: &str, dir: &TempDir) {
    let model = dir.path().to_str().unwrap();
    let out = tempfile::tempdir().unwrap();
    let gguf = out.path().join("out.gguf");
    let packed = out.path().join("packed");
    let (gguf, packed) = (gguf.to_str().unwrap(), packed.to_str().unwrap());
    let calls: [(Program, Vec<&str>); 5] = [
        (bitnet_convert::run, vec![model, "-o", gguf, "--json"]),
        (
            bitnet_convert::run,
            vec![model, "-o", packed, "--to", "hf-packed", "--json"],
        ),
        (bitnet_convert::run, vec!["inspect", model, "--json"]),
        (
            bitnet_run::run,
            vec![model, "-p", "aaaa", "-n", "1", "--greedy", "--json"],
        ),
        (bitnet_verify::run, vec!["doctor", model, "--json"]),
    ];
    for (program, words) in calls {
        let start = Instant::now();
        let ran = run(program, words.clone());
        assert_eq!(
            ran.status,
            ExitStatus::CouldNot,
            "{what}: {words:?}: {}",
            ran.stdout
        );
        let error = ran.json()["error"].clone();
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(part), "{what}: {words:?}: {message}");
        assert!(
            message.len() < 2000 && !message.contains('\n'),
            "{what}: {message}"
        );
        let seconds = start.elapsed();
        assert!(
            seconds < Duration::from_secs(5),
            "{what}: {words:?}: {seconds:?}"
        );
    }
    assert!(
        std::fs::read_dir(out.path()).unwrap().next().is_none(),
        "{what}: an output"
    );
}

#[test]
fn hostile_rules_are_refused_by_every_program() {
    let replace =
        |from: Value, to: &str| json!({"type": "Replace", "pattern": from, "content": to});
    let ten = "a".repeat(10);
    let nine = vec![replace(json!({"String": "a"}), &ten); 9];
    let mut nested = json!({"type": "NFC"});
    for _ in 0..40 {
        nested = json!({"type": "Sequence", "normalizers": [nested]});
    }
    let normalizers = [
        (
            "charsmap",
            json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}),
        ),
        (
            "charsmap without trie",
            json!({"type": "Precompiled", "precompiled_charsmap": "//////////8="}),
        ),
        (
            "nine replacements",
            json!({"type": "Sequence", "normalizers": nine}),
        ),
        (
            "long replacement",
            replace(json!({"Regex": "a|b"}), &"x".repeat(9000)),
        ),
        (
            "long prefix",
            json!({"type": "Prepend", "prepend": "x".repeat(10 << 20)}),
        ),
        (
            "short prefix, too long",
            json!({"type": "Prepend", "prepend": "x".repeat(1000)}),
        ),
        (
            "many steps",
            json!({"type": "Sequence", "normalizers": vec![json!({"type": "NFC"}); 1000]}),
        ),
        ("deep", nested),
        ("no type", json!({"prepend": "x"})),
        ("unknown", json!({"type": "Nothing"})),
    ];
    for (what, rule) in normalizers {
        let dir = demo_with(|v| v["normalizer"] = rule);
        refused_everywhere(what, "normalizer", &dir);
    }
    let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let pre_tokenizers = [
        ("no expression", split("(")),
        ("long expression", split(&"a|".repeat(20_000))),
        ("huge expression", split(&"(?:a|b)".repeat(2_000_000))),
        (
            "many cuts",
            json!({"type": "Sequence", "pretokenizers": vec![split("a"); 100]}),
        ),
    ];
    for (what, rule) in pre_tokenizers {
        let dir = demo_with(|v| v["pre_tokenizer"] = rule);
        refused_everywhere(what, "pre_tokenizer", &dir);
    }
    let around = |pieces: usize, ids: usize| {
        let special = json!({"id": "x", "ids": vec![1; ids], "tokens": vec!["x"; ids]});
        let mut single = vec![json!({"SpecialToken": {"id": "x", "type_id": 0}}); pieces];
        single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
        json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {"x": special}})
    };
    for (what, rule) in [("pieces", around(200_000, 1)), ("ids", around(100, 1500))] {
        let dir = demo_with(|v| v["post_processor"] = rule);
        refused_everywhere(what, "post_processor", &dir);
    }
    let added = |id: usize, text: String| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false})
    };
    let many: Vec<Value> = (0..70_000)
        .map(|i| added(576 + i, format!("<{i}>")))
        .collect();
    for (what, list) in [
        ("many", Value::from(many)),
        ("long", json!([added(576, "x".repeat(100_000))])),
        ("bytes", json!([added(576, "x".repeat(20 << 20))])),
    ] {
        let dir = demo_with(|v| v["added_tokens"] = list);
        refused_everywhere(what, "added_tokens", &dir);
    }
}

#[test]
fn expressions_that_backtrack_answer_or_refuse() {
    let text = format!("{}!", "a".repeat(40));
    for regex in [
        "(a+)+$",
        "(a|aa)+$",
        "(a|a)*b",
        r"(?:a*)*\1?c",
        "^(([a-z])+.)+[A-Z]([a-z])+$",
    ] {
        let dir = demo_with(|v| {
            v["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex.into()
        });
        let start = Instant::now();
        match Tokenizer::from_directory(dir.path()) {
            Ok(tokenizer) => match tokenizer.unwrap().encode(&text, false) {
                Ok(ids) => assert!(!ids.is_empty()),
                Err(error) => assert!(is_refused_tokenizer(&error), "{error}"),
            },
            Err(error) => assert!(is_refused_tokenizer(&error), "{error}"),
        }
        assert!(start.elapsed() < Duration::from_secs(4), "{regex}");
    }
    // the first one is known to need more retries than there are
    let dir =
        demo_with(|v| v["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "(a+)+$".into());
    let model = dir.path().to_str().unwrap();
    let ran = run(bitnet_run::run, [model, "-p", &text, "-n", "1", "--json"]);
    assert_eq!(ran.status, ExitStatus::CouldNot);
    let error = ran.json()["error"].clone();
    assert!(
        error["message"].as_str().unwrap().contains("(a+)+$"),
        "{error}"
    );
    assert!(ran.stderr.is_empty(), "{}", ran.stderr);
}

#[test]
fn one_match_is_bounded() {
    // without bounds a match whose time and stack grow with groups times letters
    let regex = format!("(?:{}|b)*$", "(".repeat(40) + "a" + &")".repeat(40));
    let dir = demo_with(|v| {
        v["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = regex.as_str().into();
    });
    let tokenizer = Tokenizer::from_directory(dir.path()).unwrap().unwrap();
    assert!(
        !tokenizer
            .encode(&"a".repeat(1000), false)
            .unwrap()
            .is_empty()
    );
    let encoded = tokenizer.encode(&"a".repeat(200_000), false);
    let error = encoded.map(|ids| ids.len()).unwrap_err();
    assert!(is_refused_tokenizer(&error), "{error}");
    // whichever bound the match meets first
    let causes = ["takes too long", "needs too much memory"];
    let says = |cause: &str| {
        error
            .message
            .contains(&format!("{cause} on a text of 200000 bytes"))
    };
    assert!(causes.into_iter().any(says), "{error}");
}

#[test]
fn growth_of_a_text_is_bounded_while_it_is_encoded() {
    // one character of three bytes becomes 18, and then each of them becomes four
    let rule = json!({"type": "Sequence", "normalizers": [
        {"type": "NFKC"},
        {"type": "Replace", "pattern": {"Regex": "."}, "content": "xxxx"}]});
    let dir = demo_with(|v| v["normalizer"] = rule);
    let tokenizer = tokenizer(dir.path());
    assert!(tokenizer.encode("plain", false).is_ok());
    let error = tokenizer.encode(&"ﷺ".repeat(1000), false).unwrap_err();
    assert_eq!(error.tensor.as_deref(), Some("normalizer"), "{error}");
    assert!(is_refused_tokenizer(&error), "{error}");
}

/// The library fails on a replacement of nothing: an error, and nothing is printed.
#[test]
fn a_panic_of_the_library_is_an_error() {
    let rule = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "xxxx"});
    let dir = demo_with(|v| v["normalizer"] = rule);
    let error = Tokenizer::from_directory(dir.path()).unwrap_err();
    assert!(is_refused_tokenizer(&error), "{error}");
    assert!(
        error.message.contains("the tokenizers library failed"),
        "{error}"
    );
}

#[test]
fn a_long_word_is_not_quadratic() {
    let dir = demo_with(
        |v| v["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
    );
    let tokenizer = tokenizer(dir.path());
    let start = Instant::now();
    let ids = tokenizer.encode(&"ab".repeat(500_000), false).unwrap();
    assert!(ids.len() >= 100_000);
    // a quadratic merge would take 10^12 steps
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn lists_that_are_no_vocabulary_are_refused() {
    let read = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        Tokenizer::from_directory(dir.path())
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let model = |vocab: &str, merges: &str| {
        format!(r#"{{"model":{{"type":"BPE","vocab":{vocab},"merges":{merges}}}}}"#)
    };
    for (vocab, merges, part) in [
        (r#"{"a":0,"b":0}"#, "[]", "the same id 0"),
        (r#"{"a":-1}"#, "[]", "has no id"),
        (r#"{"a":4294967296}"#, "[]", "has no id"),
        (
            r#"{"a":0,"b":1,"ab":2}"#,
            r#"["a b",["a","b"]]"#,
            "both forms",
        ),
        (r#"{"a":0,"b":1,"ab":2}"#, r#"["a  b"]"#, "not two texts"),
        (
            r#"{"a":0,"b":1,"ab":2}"#,
            r#"[["a","b","c"]]"#,
            "not two texts",
        ),
        (r#"{"a":0,"b":1}"#, r#"[["a","b"]]"#, "no token"),
        ("[]", "[]", "model.vocab"),
        ("{}", "null", "model.merges"),
    ] {
        let error = read(&model(vocab, merges));
        assert!(error.contains(part), "{vocab} {merges}: {error}");
    }
    // merges in front of the vocabulary they need
    let dir = tempfile::tempdir().unwrap();
    let text = r#"{"model":{"merges":[["a","b"]],"vocab":{"a":0,"b":1,"ab":2},"type":"BPE"}}"#;
    std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
    assert_eq!(tokenizer(dir.path()).encode("abab", false).unwrap(), [2, 2]);
}
