//! Tokenizers: the recorded ids of every family, and the same ids after any detour through GGUF
//! metadata.
//!
//! Reads `tests/fixtures`, or the folder that `BITNET_FIXTURES` names.

use bitnet_formats::{ErrorCode, MetaArray, MetaValue, Metadata};
use bitnet_tests::fixtures::{
    Fixture, fixture, fixtures, read_json as json, skipped, skips_foreign_fixtures,
};
use bitnet_tests::random::Random;
use bitnet_text::{
    ChatMessage, ChatTemplate, Tokenizer, tokenizer_files_from_gguf, tokenizer_to_gguf,
};
use serde_json::Value;
use std::path::Path;

const HUGGINGFACE_JSON: &str = "tokenizer.huggingface.json";

/// Texts that pull tokenizers apart: scripts, digits, runs of space, contractions, letter case of
/// contractions, combining marks, invisible characters, texts that look like tokens.
const TRICKY: &[&str] = &[
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    " \n \n",
    "\t\t\tx\t",
    "a  b   c    d",
    "trailing   ",
    "   leading",
    "x \n y",
    "\r\n\r\nwindows\r\n",
    "I'm you're HE'S it'll WE'VE I'D 'tis rock'n'roll 'REALLY' 's",
    "1 12 123 1234 12345 123456 1234567 3.14 1,000,000 ½ ² ٣ 四",
    "def f(x):\n    return [x**2 for _ in range(10)]  # ok\n",
    "{\"k\": [1, 2, {\"n\": null}]}",
    "... --- !!! ??? ;;; ((())) <<>> ==== ~~~~ ````",
    "aaa aaaa aaaaa ======= ▁▁▁ _ __ ___",
    "Привет мир, ещё раз; Ёлка",
    "日本語のテスト。今天天气很好，我们去公园吧。",
    "café cafe\u{301} ﬁ Å A\u{30a} ẛ̣ 한국어 ᄒ\u{1161}ᆫ",
    "😀 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ✅",
    "عربي עברית हिन्दी ไทย កាន់តែ",
    "zero\u{200b}width \u{feff}bom nbsp\u{a0}x \u{2003}em \u{3000}wide",
    "\u{0}\u{1}\u{7f} control",
    "<0x41> <0xE4> [PAD5] <unk> <pad>",
    "Ŧfill000300",
    "The quick brown fox jumps over the lazy dog.",
    "https://example.com/a?b=c&d=%20#frag user@host",
];

/// Special tokens of all families, to be found inside text.
const SPECIAL: &[&str] = &[
    "<|begin_of_text|>hello<|eot_id|> world",
    " <|end_of_text|>\n",
    ">>TITLE<<A title>>ABSTRACT<<",
    "<|endoftext|><|endoftext|> x",
    "<|im_start|>user\nhi<|im_end|>",
    "<bos>a <eos> b<mask>",
    "<s>hello</s> world",
    "one</line>two </line> three",
    "<|begin_of_text",
];

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn directory(fixture: &Fixture) -> Tokenizer {
    Tokenizer::from_directory(&fixture.checkpoint)
        .map_err(text)
        .unwrap_or_else(|e| panic!("{}: {e}", fixture.name))
        .unwrap_or_else(|| panic!("{}: no tokenizer", fixture.name))
}

fn rows(fixture: &Fixture) -> usize {
    let config = json(&fixture.checkpoint.join("config.json"));
    // of models with a place for a vision tower one level deeper
    let text = config.get("text_config").unwrap_or(&config);
    text["vocab_size"].as_u64().unwrap() as usize
}

fn metadata(fixture: &Fixture) -> Metadata {
    let entries = tokenizer_to_gguf(&fixture.checkpoint, rows(fixture));
    Metadata(entries.unwrap_or_else(|e| panic!("{}: {e}", fixture.name)))
}

fn without(mut metadata: Metadata, key: &str) -> Metadata {
    metadata.0.retain(|(k, _)| k != key);
    metadata
}

fn gguf(name: &str, metadata: &Metadata) -> Tokenizer {
    Tokenizer::from_gguf(metadata)
        .unwrap_or_else(|e| panic!("{name}: {e}"))
        .unwrap_or_else(|| panic!("{name}: no tokenizer"))
}

/// The fixed texts, and texts cut together from them at random.
fn corpus() -> Vec<String> {
    let mut texts: Vec<String> = TRICKY
        .iter()
        .chain(SPECIAL)
        .map(|&t| t.to_owned())
        .collect();
    let letters: Vec<char> = texts.concat().chars().collect();
    let mut rng = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..400 {
        let length = rng.below(60);
        texts.push(
            (0..length)
                .map(|_| letters[rng.below(letters.len())])
                .collect(),
        );
        let (a, b) = (rng.below(TRICKY.len()), rng.below(SPECIAL.len()));
        texts.push(format!(
            "{}{}{}",
            TRICKY[a],
            SPECIAL[b],
            TRICKY[rng.below(TRICKY.len())]
        ));
    }
    texts
}

#[test]
fn recorded_prompts() {
    let fixtures = fixtures();
    assert!(!fixtures.is_empty());
    for fixture in fixtures {
        let tokenizer = directory(&fixture);
        let prompts = json(&fixture.golden.join("prompts.json"));
        let (mut seen, path) = (0, &fixture.name);
        for (name, prompt) in prompts.as_object().unwrap() {
            let Some(text) = prompt["text"].as_str() else {
                continue;
            };
            let expected: Vec<u32> = prompt["ids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_u64().unwrap() as u32)
                .collect();
            let mut ids = tokenizer.encode(text, true).unwrap();
            if ids.is_empty() {
                // the recorder feeds BOS where a model adds nothing to an empty text
                ids.extend(tokenizer.bos());
            }
            if ids.is_empty() && text.is_empty() {
                continue; // without one, some token
            }
            assert_eq!(ids, expected, "{path} {name}");
            seen += 1;
        }
        assert!(seen > 0, "{path}: no prompt has a text");
    }
}

#[test]
fn recorded_texts() {
    for fixture in fixtures() {
        let path = fixture.golden.join("greedy.json");
        if !path.exists() {
            continue; // embedding models
        }
        let tokenizer = directory(&fixture);
        let config = json(&fixture.checkpoint.join("tokenizer_config.json"));
        // sentencepiece, which recorded this family, knows nothing of tokens added on top
        let recorded_by_pieces = !fixture.checkpoint.join("tokenizer.json").exists();
        for (name, run) in json(&path).as_object().unwrap() {
            let ids: Vec<u32> = run["f32"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_u64().unwrap() as u32)
                .collect();
            let ids: Vec<u32> = if recorded_by_pieces {
                let added = json(&fixture.checkpoint.join("added_tokens.json"));
                let on_top = |id: &u32| {
                    added
                        .as_object()
                        .unwrap()
                        .values()
                        .any(|v| v.as_u64() == Some((*id).into()))
                };
                ids.into_iter().filter(|id| !on_top(id)).collect()
            } else {
                ids
            };
            // sentencepiece prints no control tokens
            let decoded = tokenizer.decode(&ids, recorded_by_pieces).unwrap();
            let expected = run["f32_text"].as_str().unwrap();
            assert_eq!(
                decoded, expected,
                "{} {name}: {ids:?} {}",
                fixture.name, config["tokenizer_class"]
            );
        }
    }
}

#[test]
fn gguf_carries_the_tokenizer() {
    let corpus = corpus();
    for fixture in fixtures() {
        let name = &fixture.name;
        let original = directory(&fixture);
        let carried = gguf(name, &metadata(&fixture));
        let rebuilt = gguf(name, &without(metadata(&fixture), HUGGINGFACE_JSON));
        for (what, other) in [("carried", &carried), ("rebuilt", &rebuilt)] {
            assert_eq!(other.vocab_size(), original.vocab_size(), "{name} {what}");
            assert_eq!(other.stop_tokens(), original.stop_tokens(), "{name} {what}");
            assert_eq!(
                other.chat_template(),
                original.chat_template(),
                "{name} {what}"
            );
            assert_eq!(
                (other.bos(), other.eos()),
                (original.bos(), original.eos()),
                "{name} {what}"
            );
            assert_eq!(other.adds_bos(), original.adds_bos(), "{name} {what}");
            for text in &corpus {
                for special in [true, false] {
                    let expected = original.encode(text, special).unwrap();
                    assert_eq!(
                        other.encode(text, special).unwrap(),
                        expected,
                        "{name} {what}: {text:?}"
                    );
                    for skip in [true, false] {
                        let expected = original.decode(&expected, skip).unwrap();
                        let ids = other.encode(text, special).unwrap();
                        assert_eq!(
                            other.decode(&ids, skip).unwrap(),
                            expected,
                            "{name} {what}: {text:?}"
                        );
                    }
                }
            }
            for id in 0..rows(&fixture) as u32 + 2 {
                assert_eq!(other.token(id), original.token(id), "{name} {what}");
            }
        }
    }
}

/// Encoding and decoding are inverse for text without special tokens (unless the normalizer changes
/// the text, or spaces in front are dropped).
#[test]
fn text_survives() {
    for fixture in fixtures() {
        let tokenizer = directory(&fixture);
        let file = fixture.checkpoint.join("tokenizer.json");
        let composes = file.is_file() && json(&file)["normalizer"]["type"] == "NFC";
        for text in TRICKY {
            let back = tokenizer
                .decode(&tokenizer.encode(text, true).unwrap(), true)
                .unwrap();
            // these are byte pieces or special tokens of some families
            if text.contains("<0x") || text.contains('▁') || (composes && text.contains('\u{301}'))
            {
                continue;
            }
            assert_eq!(&back, text, "{}", fixture.name);
        }
    }
}

#[test]
fn streams_equal_the_whole() {
    for fixture in fixtures() {
        let tokenizer = directory(&fixture);
        let n = rows(&fixture);
        let mut rng = Random(0x9e37_79b9_7f4a_7c15);
        for round in 0..600 {
            // random ids are mostly invalid UTF-8; ids of text are valid, but cut anywhere
            let ids: Vec<u32> = if round % 2 == 0 {
                (0..rng.below(40))
                    .map(|_| rng.below(n + 3) as u32)
                    .collect()
            } else {
                let text = TRICKY[rng.below(TRICKY.len())];
                let ids = tokenizer.encode(text, true).unwrap();
                let from = rng.below(ids.len());
                ids[from.min(ids.len())..].to_vec()
            };
            for skip in [true, false] {
                let mut stream = tokenizer.stream();
                if !skip {
                    stream = stream.keep_special();
                }
                let mut pieces = Vec::new();
                for &id in &ids {
                    pieces.push(stream.push(id).unwrap());
                }
                pieces.push(stream.finish().unwrap());
                let whole = tokenizer.decode(&ids, skip).unwrap();
                assert_eq!(pieces.concat(), whole, "{} {ids:?}", fixture.name);
            }
        }
        // one character of several tokens comes when it is whole
        let ids = tokenizer.encode("😀", false).unwrap();
        let mut stream = tokenizer.stream();
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        assert!(ids.len() > 1, "{}: {ids:?}", fixture.name);
        assert!(
            pieces.iter().all(|p| !p.contains('\u{fffd}')),
            "{}: {pieces:?}",
            fixture.name
        );
        assert_eq!(
            pieces.last().map(String::as_str),
            Some("😀"),
            "{}: {pieces:?}",
            fixture.name
        );
    }
}

#[test]
fn files_from_gguf() {
    for fixture in fixtures() {
        let name = &fixture.name;
        let metadata = metadata(&fixture);
        let files = tokenizer_files_from_gguf(&metadata).unwrap_or_else(|e| panic!("{name}: {e}"));
        let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "generation_config.json",
        ];
        assert_eq!(names, expected);
        let source = fixture.checkpoint.join("tokenizer.json");
        if source.exists() {
            assert!(
                files[0].1 == std::fs::read(source).unwrap(),
                "{name}: tokenizer.json differs"
            );
        }
        // the written directory is the same tokenizer again, from whichever metadata
        for metadata in [metadata.clone(), without(metadata, HUGGINGFACE_JSON)] {
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in tokenizer_files_from_gguf(&metadata).unwrap() {
                std::fs::write(dir.path().join(name), bytes).unwrap();
            }
            let (original, again) = (
                directory(&fixture),
                Tokenizer::from_directory(dir.path()).unwrap().unwrap(),
            );
            for text in TRICKY.iter().chain(SPECIAL) {
                assert_eq!(
                    again.encode(text, true).unwrap(),
                    original.encode(text, true).unwrap(),
                    "{name}"
                );
            }
            assert_eq!(again.stop_tokens(), original.stop_tokens(), "{name}");
            assert_eq!(
                (again.bos(), again.eos()),
                (original.bos(), original.eos()),
                "{name}"
            );
            assert_eq!(again.chat_template(), original.chat_template(), "{name}");
        }
    }
}

fn word<'m>(metadata: &'m Metadata, key: &str) -> Option<&'m str> {
    metadata.get(&format!("tokenizer.ggml.{key}"))?.as_str()
}

fn number(metadata: &Metadata, key: &str) -> Option<u64> {
    metadata.get(&format!("tokenizer.ggml.{key}"))?.as_u64()
}

fn flag(metadata: &Metadata, key: &str) -> Option<bool> {
    metadata.get(&format!("tokenizer.ggml.{key}"))?.as_bool()
}

fn types(metadata: &Metadata) -> Vec<i32> {
    match metadata.get("tokenizer.ggml.token_type") {
        Some(MetaValue::Array(MetaArray::I32(v))) => v.clone(),
        other => panic!("{other:?}"),
    }
}

fn tokens(metadata: &Metadata) -> Vec<String> {
    match metadata.get("tokenizer.ggml.tokens") {
        Some(MetaValue::Array(MetaArray::String(v))) => v
            .iter()
            .map(|t| String::from_utf8(t.to_vec()).unwrap())
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// What llama.cpp's converter writes for these models.
#[test]
fn metadata_is_llama_cpp_s() {
    type Row = (
        &'static str,
        &'static str,
        &'static str,
        Option<u64>,
        u64,
        Option<u64>,
        bool,
        bool,
        bool,
    );
    #[rustfmt::skip]
    let table: &[Row] = &[
        // family, model, pre, bos, eos, eot, adds bos, adds eos, adds a space
        ("bitnet-2b4t-bf16", "gpt2", "llama-bpe", Some(384), 385, Some(393), true, false, false),
        ("llama3-8b-1.58", "gpt2", "llama-bpe", Some(384), 385, Some(393), true, false, false),
        ("falcon3-1.58", "gpt2", "falcon3", Some(11), 11, None, false, false, false),
        ("falcon-e", "gpt2", "falcon3", Some(11), 11, None, false, false, false),
        ("bitnet-embedding-0.6b", "gpt2", "qwen2", Some(384), 384, Some(386), false, true, false),
        ("bitnet-embedding-270m", "llama", "default", Some(2), 1, None, true, true, false),
        ("bitnet-b1.58-1bitllm", "llama", "default", Some(1), 2, None, true, false, true),
    ];
    for &(name, model, pre, bos, eos, eot, add_bos, add_eos, space) in table {
        let Some(fixture) = fixture(name) else {
            continue;
        };
        if skips_foreign_fixtures() {
            continue; // other ids
        }
        let m = metadata(&fixture);
        assert_eq!(
            (word(&m, "model"), word(&m, "pre")),
            (Some(model), Some(pre)),
            "{name}"
        );
        assert_eq!(number(&m, "bos_token_id"), bos, "{name}");
        assert_eq!(number(&m, "eos_token_id"), Some(eos), "{name}");
        assert_eq!(number(&m, "eot_token_id"), eot, "{name}");
        assert_eq!(flag(&m, "add_bos_token"), Some(add_bos), "{name}");
        assert_eq!(flag(&m, "add_eos_token"), Some(add_eos), "{name}");
        assert_eq!(flag(&m, "add_space_prefix"), Some(space), "{name}");
        let (types, tokens) = (types(&m), tokens(&m));
        assert_eq!((types.len(), tokens.len()), (400, 400), "{name}");
        assert_eq!(types[eos as usize], 3, "{name}");
        let bytes = tokens.iter().position(|t| t == "<0x00>");
        assert_eq!(bytes.is_some(), model == "llama", "{name}");
        if let Some(first) = bytes {
            assert!(types[first..first + 256].iter().all(|&t| t == 6), "{name}");
            assert!(
                matches!(m.get("tokenizer.ggml.scores"), Some(MetaValue::Array(MetaArray::F32(s))) if s.len() == 400)
            );
        }
    }
    if !skips_foreign_fixtures()
        && let Some(fixture) = fixture("bitnet-b1.58-1bitllm")
    {
        let m = metadata(&fixture);
        assert_eq!(types(&m)[..4], [3, 3, 3, 6]);
        assert_eq!(types(&m)[398..], [3, 4]); // <pad> is special, </line> is not
        assert_eq!(tokens(&m)[398..], ["<pad>", "</line>"]);
        assert_eq!(number(&m, "padding_token_id"), Some(398));
        assert_eq!(number(&m, "unknown_token_id"), Some(0));
        let Some(MetaValue::Array(MetaArray::F32(scores))) = m.get("tokenizer.ggml.scores") else {
            panic!()
        };
        assert_eq!(scores[398..], [-1000.0, -1000.0]);
    }
}

#[test]
fn rows_and_tokens() {
    for fixture in fixtures() {
        let (name, n) = (&fixture.name, rows(&fixture));
        // more rows than tokens: padding that is no token
        let m = Metadata(tokenizer_to_gguf(&fixture.checkpoint, n + 3).unwrap());
        assert_eq!(
            tokens(&m)[n..],
            [
                format!("[PAD{n}]"),
                format!("[PAD{}]", n + 1),
                format!("[PAD{}]", n + 2)
            ]
        );
        assert_eq!(types(&m)[n..], [5, 5, 5]);
        let rebuilt = gguf(name, &without(m, HUGGINGFACE_JSON));
        assert_eq!(rebuilt.token(n as u32), None);
        assert_eq!(rebuilt.vocab_size(), directory(&fixture).vocab_size());
        // rows for a part of the vocabulary: a tokenizer of another model
        let few = 100;
        let error = tokenizer_to_gguf(&fixture.checkpoint, few)
            .err()
            .unwrap_or_else(|| panic!("{name}"));
        assert_eq!(error.code, ErrorCode::Tokenizer, "{name}: {error}");
        assert!(
            error
                .to_string()
                .contains(&format!("the model has {few} rows")),
            "{name}: {error}"
        );
        assert!(error.hint.is_some());
    }
}

/// `System: …<|eot_id|>User: …<|eot_id|>Assistant: `, as the published 2B-4T template has it.
#[test]
fn chat_of_2b_4t() {
    let Some(fixture) = fixture("bitnet-2b4t-bf16") else {
        return;
    };
    let messages = [
        ChatMessage::system(" Be brief.\n"),
        ChatMessage::user("Hi"),
        {
            ChatMessage {
                role: "assistant".into(),
                content: "Hello!".into(),
            }
        },
        ChatMessage::user("Bye "),
    ];
    let expected = "<|begin_of_text|>System: Be brief.<|eot_id|>User: Hi<|eot_id|>Assistant: Hello!<|eot_id|>User: Bye<|eot_id|>Assistant: ";
    for tokenizer in [
        directory(&fixture),
        gguf("2b4t", &without(metadata(&fixture), HUGGINGFACE_JSON)),
    ] {
        let chat = tokenizer.chat().unwrap().unwrap();
        let prompt = chat.render(&messages, true).unwrap();
        assert_eq!(prompt, expected);
        assert_eq!(
            chat.render(&messages[..2], false).unwrap(),
            "<|begin_of_text|>System: Be brief.<|eot_id|>User: Hi<|eot_id|>"
        );
        let ids = tokenizer.encode(&prompt, false).unwrap();
        let bos = tokenizer.bos().unwrap();
        assert_eq!(ids.first(), Some(&bos));
        assert_eq!(ids.iter().filter(|&&id| id == bos).count(), 1);
        let end = tokenizer.id("<|eot_id|>").unwrap();
        assert_eq!(ids.iter().filter(|&&id| id == end).count(), 4);
        assert!(
            tokenizer.stop_tokens().contains(&end)
                && tokenizer.stop_tokens().contains(&tokenizer.eos().unwrap())
        );
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), expected);
    }
}

#[test]
fn chat_templates_of_others() {
    let messages = [ChatMessage::system("S"), ChatMessage::user("U")];
    // the shape of Llama 3's and of Qwen's templates
    let llama = "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";
    let template = ChatTemplate::new(llama, "<|begin_of_text|>", "").unwrap();
    assert_eq!(
        template.render(&messages, true).unwrap(),
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    let qwen = "{%- if tools %}\n    {{- 'tools' }}\n{%- endif %}\n{%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n{%- endfor %}\n{%- for message in messages %}\n    {%- if message.content is string %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content.strip('\\n').split('</think>')[-1].lstrip() + '<|im_end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}";
    let template = ChatTemplate::new(qwen, "", "").unwrap();
    assert_eq!(
        template.render(&messages, true).unwrap(),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    );

    let strict = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}";
    let error = ChatTemplate::new(strict, "", "")
        .unwrap()
        .render(&messages, true)
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::ChatTemplate);
    assert!(
        error.to_string().contains("System role not supported"),
        "{error}"
    );
    let error = ChatTemplate::new("{% for %}", "", "").err().unwrap();
    assert_eq!(error.code, ErrorCode::ChatTemplate);
}

/// Older bitnet.cpp files of 2B-4T do not name their pre-tokenizer.
#[test]
fn pre_tokenizer_by_evidence() {
    let Some(fixture) = fixture("bitnet-2b4t-bf16") else {
        return;
    };
    let nameless = without(
        without(metadata(&fixture), HUGGINGFACE_JSON),
        "tokenizer.ggml.pre",
    );
    let bare = without(nameless.clone(), "tokenizer.ggml.add_bos_token");
    let (original, found) = (directory(&fixture), gguf("nameless", &bare));
    for text in corpus() {
        assert_eq!(
            found.encode(&text, true).unwrap(),
            original.encode(&text, true).unwrap(),
            "{text:?}"
        );
    }
    // without the tell-tale tokens
    let mut unknown = nameless;
    for (key, value) in &mut unknown.0 {
        if let (true, MetaValue::Array(MetaArray::String(list))) =
            (key == "tokenizer.ggml.tokens", value)
        {
            let marked = |t: &[u8]| match t.starts_with(b"<|") {
                true => [t, b"?"].concat(),
                false => t.to_vec(),
            };
            *list = list.iter().map(marked).collect();
        }
    }
    let error = Tokenizer::from_gguf(&unknown).err().unwrap();
    assert_eq!(error.code, ErrorCode::Tokenizer);
    assert!(error.hint.is_some(), "{error}");
    let mut wrong = without(metadata(&fixture), HUGGINGFACE_JSON);
    wrong.set("tokenizer.ggml.pre", MetaValue::text("tekken"));
    let error = Tokenizer::from_gguf(&wrong).err().unwrap();
    assert_eq!(
        (error.code, error.tensor.as_deref()),
        (ErrorCode::Tokenizer, Some("tokenizer.ggml.pre"))
    );
}

/// A directory with one file changed.
fn changed(fixture: &Fixture, file: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "generation_config.json",
    ] {
        std::fs::copy(fixture.checkpoint.join(name), dir.path().join(name)).unwrap();
    }
    let mut value = json(&fixture.checkpoint.join(file));
    change(&mut value);
    std::fs::write(dir.path().join(file), value.to_string()).unwrap();
    dir
}

#[test]
fn spellings_and_refusals() {
    let Some(fixture) = fixture("bitnet-2b4t-bf16") else {
        return;
    };
    let n = rows(&fixture);
    let original = directory(&fixture);
    let same = |dir: &tempfile::TempDir| {
        let m = Metadata(tokenizer_to_gguf(dir.path(), n).unwrap());
        let rebuilt = gguf("changed", &without(m, HUGGINGFACE_JSON));
        for text in TRICKY {
            assert_eq!(
                rebuilt.encode(text, true).unwrap(),
                original.encode(text, true).unwrap()
            );
        }
    };
    // merges as lines, the older spelling
    same(&changed(&fixture, "tokenizer.json", |v| {
        for merge in v["model"]["merges"].as_array_mut().unwrap() {
            *merge = format!(
                "{} {}",
                merge[0].as_str().unwrap(),
                merge[1].as_str().unwrap()
            )
            .into();
        }
    }));
    // named templates
    let dir = changed(&fixture, "tokenizer_config.json", |v| {
        v["chat_template"] = serde_json::json!([
            {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]);
        v["bos_token"] = serde_json::json!({"content": "<|begin_of_text|>", "special": true});
    });
    same(&dir);
    let tokenizer = Tokenizer::from_directory(dir.path()).unwrap().unwrap();
    assert_eq!(tokenizer.chat_template(), Some("plain"));
    std::fs::write(
        dir.path().join("chat_template.jinja"),
        "{{ bos_token }}file",
    )
    .unwrap();
    let tokenizer = Tokenizer::from_directory(dir.path()).unwrap().unwrap();
    let prompt = tokenizer
        .chat()
        .unwrap()
        .unwrap()
        .render(&[], true)
        .unwrap();
    assert_eq!(prompt, "<|begin_of_text|>file");

    // what GGUF cannot say
    type Change = fn(&mut Value);
    let refused: &[(&str, Change)] = &[
        ("regex", |v| {
            v["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\s+".into()
        }),
        ("behavior", |v| {
            v["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext".into()
        }),
        ("prefix", |v| {
            v["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true.into()
        }),
        ("none", |v| v["pre_tokenizer"] = Value::Null),
        ("normalizer", |v| {
            v["normalizer"] = serde_json::json!({"type": "Lowercase"})
        }),
    ];
    for (what, change) in refused {
        let dir = changed(&fixture, "tokenizer.json", change);
        assert!(
            Tokenizer::from_directory(dir.path()).unwrap().is_some(),
            "{what}"
        );
        let error = tokenizer_to_gguf(dir.path(), n)
            .err()
            .unwrap_or_else(|| panic!("{what}"));
        assert_eq!(error.code, ErrorCode::Tokenizer, "{what}: {error}");
        assert!(
            error.hint.is_some() && error.tensor.is_some() && error.file.is_some(),
            "{what}: {error:?}"
        );
    }
    // what would make the tokenizers crate panic, or give other ids every time
    let broken: &[(&str, Change)] = &[
        ("merge without result", |v| {
            v["model"]["merges"][0] = serde_json::json!(["Ġthe", "Ġthe"])
        }),
        ("merge of no tokens", |v| {
            v["model"]["merges"][0] = serde_json::json!(["Ŧ", "Ŧ"])
        }),
        ("merge of three", |v| {
            v["model"]["merges"][0] = "a b c".into()
        }),
        ("prefix", |v| {
            v["model"]["continuing_subword_prefix"] = "##########".into()
        }),
        ("dropout", |v| v["model"]["dropout"] = 0.5.into()),
        ("model", |v| v["model"]["type"] = "Unigram".into()),
        (
            "decoder",
            |v| {
                v["decoder"] =
                    serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true})
            },
        ),
        ("version", |v| v["version"] = "2.0".into()),
        ("vocab", |v| v["model"]["vocab"] = Value::Null),
    ];
    for (what, change) in broken {
        let dir = changed(&fixture, "tokenizer.json", change);
        let error = Tokenizer::from_directory(dir.path())
            .err()
            .unwrap_or_else(|| panic!("{what}"));
        assert_eq!(error.code, ErrorCode::Tokenizer, "{what}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    assert!(Tokenizer::from_directory(dir.path()).unwrap().is_none());
    assert!(tokenizer_to_gguf(dir.path(), n).unwrap().is_empty());
    std::fs::write(dir.path().join("tokenizer.json"), b"{").unwrap();
    assert_eq!(
        Tokenizer::from_directory(dir.path()).err().unwrap().code,
        ErrorCode::Malformed
    );
}

/// Damaged sentencepiece models are errors or tokenizers, never panics.
#[test]
fn hostile_sentencepiece() {
    let Some(fixture) = fixture("bitnet-b1.58-1bitllm") else {
        return;
    };
    let model = std::fs::read(fixture.checkpoint.join("tokenizer.model")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.model");
    let try_one = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        match Tokenizer::from_directory(dir.path()) {
            Ok(Some(tokenizer)) => drop(
                tokenizer
                    .encode("Hello <s> 今天 \u{0}", true)
                    .map(|ids| tokenizer.decode(&ids, false)),
            ),
            Ok(None) => panic!("the file is there"),
            Err(error) => assert!(
                matches!(error.code, ErrorCode::Malformed | ErrorCode::Tokenizer),
                "{error}"
            ),
        }
    };
    for cut in (0..model.len()).step_by(97) {
        try_one(&model[..cut]);
    }
    let mut rng = Random(0xdead_beef_cafe_f00d);
    for _ in 0..300 {
        let mut bytes = model.clone();
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
        }
        try_one(&bytes);
    }
    // a piece that claims 2^60 bytes
    try_one(&[0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10]);
    try_one(&[0xff; 64]);
}

/// Metadata that contradict themselves are errors, never panics.
#[test]
fn hostile_metadata() {
    for name in ["bitnet-2b4t-bf16", "bitnet-b1.58-1bitllm"] {
        let Some(fixture) = fixture(name) else {
            continue;
        };
        let good = without(metadata(&fixture), HUGGINGFACE_JSON);
        let strings = |list: &[&[u8]]| {
            MetaValue::Array(MetaArray::String(list.iter().map(|s| s.to_vec()).collect()))
        };
        let attacks = [
            ("tokens", MetaValue::U32(1)),
            ("tokens", strings(&[])),
            ("tokens", strings(&[b"a", b"a"])),
            ("token_type", MetaValue::Array(MetaArray::I32(vec![1]))),
            ("token_type", MetaValue::text("x")),
            ("merges", strings(&[b"nospace"])),
            ("merges", strings(&[b"\xff \xff"])),
            ("merges", strings(&[b"no such", b"tokens here"])),
            ("model", MetaValue::text("rwkv")),
            ("model", MetaValue::U8(3)),
        ];
        for (key, value) in attacks {
            let mut bad = good.clone();
            bad.set(format!("tokenizer.ggml.{key}"), value.clone());
            let result = Tokenizer::from_gguf(&bad);
            let error = result
                .err()
                .unwrap_or_else(|| panic!("{name} {key} {value:?}"));
            assert_eq!(error.code, ErrorCode::Tokenizer, "{name} {key}: {error}");
        }
        // ids beyond the tokens count as absent, types beyond the list as normal
        let mut odd = good.clone();
        odd.set("tokenizer.ggml.eos_token_id", MetaValue::U32(u32::MAX));
        odd.set("tokenizer.ggml.padding_token_id", MetaValue::I64(-1));
        assert!(Tokenizer::from_gguf(&odd).is_ok());
        let mut odd = good.clone();
        odd.set("tokenizer.ggml.bos_token_id", MetaValue::U32(u32::MAX));
        let _ = Tokenizer::from_gguf(&odd).map(|t| t.map(|t| t.encode("x", true)));
        // token texts that are not UTF-8 are no reason to refuse
        let mut odd = good.clone();
        if let Some((_, MetaValue::Array(MetaArray::String(list)))) =
            odd.0.iter_mut().find(|(k, _)| k == "tokenizer.ggml.tokens")
        {
            // unreachable fillers, or any two where a vocabulary has none
            let mut fillers = 0;
            let odd = |t: &[u8]| {
                let filler = t.starts_with("Ŧfill".as_bytes());
                fillers += usize::from(filler);
                match filler && fillers <= 2 {
                    true => vec![0xff, 0xfe],
                    false => t.to_vec(),
                }
            };
            *list = list.iter().map(odd).collect();
        }
        let tokenizer = gguf(name, &odd);
        assert_eq!(
            tokenizer.encode("Hello world", true).unwrap(),
            directory(&fixture).encode("Hello world", true).unwrap()
        );
        assert!(
            Tokenizer::from_gguf(&Metadata::default())
                .unwrap()
                .is_none()
        );
        assert!(
            tokenizer_files_from_gguf(&Metadata::default())
                .unwrap()
                .is_empty()
        );
    }
}

/// Whole files of llama.cpp's, ik_llama.cpp's and bitnet.cpp's converters.
#[test]
fn files_of_others() {
    let vectors = std::env::var_os("BITNET_VECTORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats/vectors"),
        std::path::PathBuf::from,
    );
    let Ok(files) = std::fs::read_dir(vectors.join("gguf-files")) else {
        assert!(
            std::env::var_os("BITNET_VECTORS").is_some(),
            "no gguf-files"
        );
        return skipped("the folder of BITNET_VECTORS has no gguf-files");
    };
    for path in files
        .map(|f| f.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
    {
        let file = bitnet_formats::open(&path, &bitnet_formats::Limits::default())
            .unwrap_or_else(|e| panic!("{e}"));
        let name = path.display().to_string();
        match Tokenizer::from_gguf(&file.metadata) {
            Ok(Some(tokenizer)) => {
                let ids = tokenizer.encode("the quick", true).unwrap();
                assert_eq!(
                    tokenizer.decode(&ids, true).unwrap(),
                    "the quick",
                    "{name} {ids:?}"
                );
            }
            Ok(None) => assert!(
                file.metadata.get("tokenizer.ggml.model").is_none(),
                "{name}"
            ),
            Err(error) => panic!("{name}: {error}"),
        }
    }
}
