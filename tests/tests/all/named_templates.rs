//! Chat templates that have names: where they may stand, which of them count, and that none is lost.
//!
//! Invariant: a conversion keeps every template under its name in each direction, a chat uses the one that
//! transformers would use, and verification notices each that is missing, added or changed.

use bitnet_cli::ExitStatus;
use bitnet_formats::{Limits, MetaArray, MetaValue, Metadata};
use bitnet_tests::conversions::certificate_of;
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::gguf::rewritten;
use bitnet_tests::program::{Ran, run};
use bitnet_text::ChatTemplates;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

const FIXTURE: &str = "bitnet-2b4t-bf16";
const DEFAULT: &str = "{{ messages[0].content }}\n";
const TOOLS: &str = "{# tools #}{{ bos_token }}{{ messages[0].content }}";
const RAG: &str = "rag é\r\n{{ messages|length }}";
/// sha256 of [`DEFAULT`], [`RAG`] and [`TOOLS`], by coreutils' sha256sum.
const HASHES: [&str; 3] = [
    "5485580974680064005959d03bffdd721760cc6b3b252d56fe5ebd17623bc735",
    "c4cec16604c7bd87e51bb4bf0459f65b415eca764896f8069d975649c63a5116",
    "67e6fcd1b1054357b88984219a00123f47b1a5ee05105a8cc5e58155ae351991",
];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(name);
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

/// A copy of the fixture's checkpoint without any template.
fn source(change: impl FnOnce(&Path)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(checkpoint(FIXTURE)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    edit(dir.path(), "tokenizer_config.json", |json| {
        json.as_object_mut().unwrap().remove("chat_template");
    });
    let _ = std::fs::remove_file(dir.path().join("chat_template.jinja"));
    change(dir.path());
    dir
}

/// Writes a template as a file; `default` is `chat_template.jinja`.
fn put(dir: &Path, name: &str, template: impl AsRef<[u8]>) {
    let folder = dir.join("additional_chat_templates");
    if name == "default" {
        return std::fs::write(dir.join("chat_template.jinja"), template).unwrap();
    }
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(format!("{name}.jinja")), template).unwrap();
}

fn put_key(dir: &Path, value: Value) {
    edit(dir, "tokenizer_config.json", |json| {
        json["chat_template"] = value;
    });
}

/// Three templates as files.
fn as_files(dir: &Path) {
    put(dir, "default", DEFAULT);
    put(dir, "tool_use", TOOLS);
    put(dir, "rag", RAG);
}

/// The same three as a list.
fn as_list(dir: &Path) {
    put_key(
        dir,
        json!([{"name": "tool_use", "template": TOOLS}, {"name": "default", "template": DEFAULT},
               {"name": "rag", "template": RAG}]),
    );
}

fn try_convert(source: &Path, output: &Path, to: &str) -> Ran {
    let words = [text(source), "-o", text(output), "--to", to, "--json"];
    run(bitnet_convert::run, words)
}

fn convert(source: &Path, output: &Path, to: &str) {
    let ran = try_convert(source, output, to);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
}

fn refused(ran: &Ran, code: &str, says: &str) {
    let json = ran.json();
    assert_eq!(ran.status, ExitStatus::CouldNot, "{json}");
    assert_eq!(json["error"]["code"], code, "{json}");
    let error = json["error"].to_string();
    assert!(error.contains(says), "{error} does not say {says}");
}

fn verify(words: &[&str]) -> (ExitStatus, String) {
    let ran = run(bitnet_verify::run, words.iter().chain(&["--json"]));
    (ran.status, ran.stdout)
}

fn is_same(artifact: &Path, against: &Path) {
    let (status, report) = verify(&[text(artifact), "--against", text(against)]);
    assert_eq!(status, ExitStatus::Done, "{report}");
}

fn differs(artifact: &Path, flag: &str, other: &Path, place: &str) {
    let (status, report) = verify(&[text(artifact), flag, text(other)]);
    assert_eq!(status, ExitStatus::Different, "{place}: {report}");
    assert!(report.contains(place), "{place}: {report}");
}

/// The names that `inspect` lists.
fn names(model: &Path) -> Value {
    let ran = run(bitnet_convert::run, ["inspect", text(model), "--json"]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    ran.json()["tokenizer"]["chat_templates"].clone()
}

fn metadata(gguf: &Path) -> Metadata {
    let file = bitnet_formats::open(gguf, &Limits::default()).unwrap();
    file.metadata.clone()
}

/// The templates of a model, wherever they are.
fn templates(model: &Path) -> Vec<(String, String)> {
    let found = match model.is_dir() {
        true => ChatTemplates::of_directory(model),
        false => ChatTemplates::of_gguf(&metadata(model)),
    };
    let found = found.unwrap();
    let default = found.default_template().into_iter();
    let default = default.map(|text| ("default".to_owned(), text.to_owned()));
    default.chain(found.named().clone()).collect()
}

fn three() -> Vec<(String, String)> {
    let all = [("default", DEFAULT), ("rag", RAG), ("tool_use", TOOLS)];
    all.map(|(name, text)| (name.to_owned(), text.to_owned()))
        .into()
}

fn list(names: &[&str]) -> MetaValue {
    MetaValue::Array(MetaArray::String(names.iter().collect()))
}

fn chat(model: &Path) -> Ran {
    let words = [text(model), "--chat", "-p", "Hi", "-n", "0", "--json"];
    run(bitnet_run::run, words)
}

fn prompt(model: &Path) -> Vec<u64> {
    let ran = chat(model);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    serde_json::from_value(ran.json()["prompt_tokens"].clone()).unwrap()
}

#[test]
fn every_template_survives_in_every_direction() {
    for (how, put) in [("files", as_files as fn(&Path)), ("list", as_list)] {
        let out = tempfile::tempdir().unwrap();
        let path = |name: &str| out.path().join(name);
        let source = source(put);
        let expected = json!(["default", "rag", "tool_use"]);
        assert_eq!(templates(source.path()), three(), "{how}");
        assert_eq!(names(source.path()), expected, "{how}");

        convert(source.path(), &path("a.gguf"), "gguf-i2_s");
        // the keys of gguf-py
        let keys = metadata(&path("a.gguf"));
        let texts = [
            ("tokenizer.chat_template", DEFAULT),
            ("tokenizer.chat_template.rag", RAG),
            ("tokenizer.chat_template.tool_use", TOOLS),
        ];
        for (key, value) in texts {
            assert_eq!(keys.get(key), Some(&MetaValue::text(value)), "{how}: {key}");
        }
        let listed = keys.get("tokenizer.chat_templates");
        assert_eq!(listed, Some(&list(&["rag", "tool_use"])), "{how}");

        convert(&path("a.gguf"), &path("b.gguf"), "gguf-f32");
        convert(&path("b.gguf"), &path("packed"), "hf-packed");
        // what save_pretrained writes
        let read = |name: &str| std::fs::read(path("packed").join(name)).unwrap();
        assert_eq!(read("chat_template.jinja"), DEFAULT.as_bytes());
        assert_eq!(read("additional_chat_templates/rag.jinja"), RAG.as_bytes());
        let tools = read("additional_chat_templates/tool_use.jinja");
        assert_eq!(tools, TOOLS.as_bytes());
        let config: Value = serde_json::from_slice(&read("tokenizer_config.json")).unwrap();
        assert_eq!(config.get("chat_template"), None, "{how}");

        convert(source.path(), &path("copy"), "hf-packed");
        convert(&path("packed"), &path("c.gguf"), "gguf-i2_s");
        for name in ["a.gguf", "b.gguf", "packed", "copy", "c.gguf"] {
            let model = path(name);
            assert_eq!(templates(&model), three(), "{how}: {name}");
            assert_eq!(names(&model), expected, "{how}: {name}");
            assert_eq!(prompt(&model), prompt(source.path()), "{how}: {name}");
        }
        is_same(&path("a.gguf"), source.path());
        is_same(&path("b.gguf"), source.path());
        is_same(&path("packed"), &path("a.gguf"));
        is_same(&path("copy"), source.path());
        is_same(&path("c.gguf"), &path("copy"));
        // each output and its certificate
        for name in ["a.gguf", "packed", "copy"] {
            let certificate = certificate_of(&path(name));
            let json: Value =
                serde_json::from_slice(&std::fs::read(&certificate).unwrap()).unwrap();
            assert_eq!(json["chat_template_sha256"], HASHES[0], "{how}: {name}");
            let additional = json!({"rag": HASHES[1], "tool_use": HASHES[2]});
            assert_eq!(
                json["additional_chat_templates"], additional,
                "{how}: {name}"
            );
            for model in ["a.gguf", "packed", "copy"] {
                let artifact = path(model);
                let words = [text(&artifact), "--certificate", text(&certificate)];
                let (status, report) = verify(&words);
                let differs = report.contains("chat_templates.");
                assert!(!differs, "{how}: {model}: {report}");
                assert!(
                    model != name || status == ExitStatus::Done,
                    "{how}: {model}: {report}"
                );
            }
        }
    }
}

#[test]
fn a_single_template_stays_where_it_was() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    let source = source(|dir| put(dir, "default", DEFAULT));
    convert(source.path(), &path("a.gguf"), "gguf-i2_s");
    assert_eq!(
        metadata(&path("a.gguf")).get("tokenizer.chat_templates"),
        None
    );
    convert(&path("a.gguf"), &path("packed"), "hf-packed");
    let config = std::fs::read(path("packed").join("tokenizer_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["chat_template"], DEFAULT);
    assert!(!path("packed").join("chat_template.jinja").exists());
    let certificate = certificate_of(&path("packed"));
    let certificate: Value = serde_json::from_slice(&std::fs::read(certificate).unwrap()).unwrap();
    assert_eq!(certificate["chat_template_sha256"], HASHES[0]);
    assert_eq!(certificate.get("additional_chat_templates"), None);
    assert_eq!(names(&path("packed")), json!(["default"]));
}

#[test]
fn places_count_in_the_order_of_transformers() {
    type Put = fn(&Path);
    type Named = &'static [(&'static str, &'static str)];
    // what is where, and what counts
    let cases: &[(&str, Put, Named)] = &[
        (
            "a file replaces the key and all its names",
            |dir| {
                put_key(
                    dir,
                    json!([{"name": "default", "template": "k"}, {"name": "rag", "template": "r"}]),
                );
                put(dir, "default", "f");
            },
            &[("default", "f")],
        ),
        (
            "an additional file alone replaces the key as well",
            |dir| {
                put_key(dir, json!("k"));
                put(dir, "rag", "r");
            },
            &[("rag", "r")],
        ),
        (
            "an additional file called default comes last",
            |dir| {
                put(dir, "default", "f");
                std::fs::create_dir_all(dir.join("additional_chat_templates")).unwrap();
                std::fs::write(dir.join("additional_chat_templates/default.jinja"), "d").unwrap();
            },
            &[("default", "d")],
        ),
        (
            "of two entries of one name the last counts",
            |dir| {
                put_key(
                    dir,
                    json!([{"name": "default", "template": "1"}, {"name": "default", "template": "2"},
                           {"name": "x", "template": "3"}, {"name": "x", "template": "4"}]),
                );
            },
            &[("default", "2"), ("x", "4")],
        ),
        (
            "names and texts as an object",
            |dir| put_key(dir, json!({"default": "d", "tool_use": "t"})),
            &[("default", "d"), ("tool_use", "t")],
        ),
        (
            "the processor's file comes last",
            |dir| {
                std::fs::write(dir.join("chat_template.json"), r#"{"chat_template": "p"}"#)
                    .unwrap();
            },
            &[("default", "p")],
        ),
        (
            "the key comes before the processor's file",
            |dir| {
                std::fs::write(dir.join("chat_template.json"), r#"{"chat_template": "p"}"#)
                    .unwrap();
                put_key(dir, json!("k"));
            },
            &[("default", "k")],
        ),
        (
            "other files and directories are no templates",
            |dir| {
                put(dir, "default", "f");
                let folder = dir.join("additional_chat_templates");
                std::fs::create_dir_all(folder.join("x.jinja")).unwrap();
                std::fs::write(folder.join("README.md"), "r").unwrap();
                std::fs::write(folder.join("y.JINJA"), "y").unwrap();
            },
            &[("default", "f")],
        ),
        ("none", |_| {}, &[]),
        ("null", |dir| put_key(dir, Value::Null), &[]),
    ];
    for (what, put, expected) in cases {
        let source = source(*put);
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        assert_eq!(templates(source.path()), expected, "{what}");
        let out = tempfile::tempdir().unwrap();
        let gguf = out.path().join("a.gguf");
        convert(source.path(), &gguf, "gguf-i2_s");
        assert_eq!(templates(&gguf), expected, "{what}");
        is_same(&gguf, source.path());
    }
}

#[test]
fn templates_without_a_default_one_cannot_chat_and_survive() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    let source = source(|dir| put_key(dir, json!([{"name": "tool_use", "template": TOOLS}])));
    convert(source.path(), &path("a.gguf"), "gguf-i2_s");
    convert(&path("a.gguf"), &path("packed"), "hf-packed");
    assert!(!path("packed").join("chat_template.jinja").exists());
    for model in [source.path(), &path("a.gguf"), &path("packed")] {
        assert_eq!(names(model), json!(["tool_use"]));
        refused(
            &chat(model),
            "chat-template",
            "found only named ones: tool_use",
        );
        // text without a template is computed
        let words = [text(model), "-p", "Hi", "-n", "0", "--json"];
        assert_eq!(run(bitnet_run::run, words).status, ExitStatus::Done);
    }
    is_same(&path("a.gguf"), source.path());
    is_same(&path("packed"), &path("a.gguf"));
    let ran = run(
        bitnet_verify::run,
        ["doctor", text(&path("a.gguf")), "--json", "--no-run"],
    );
    let findings = ran.json()["findings"].to_string();
    assert!(!findings.contains("chat_template"), "{findings}");
}

#[test]
fn names_that_cannot_be_kept_are_refused() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    let long = "n".repeat(65);
    let hostile = [
        "../up",
        "a/b",
        "/etc/x",
        "a\\b",
        "..",
        ".",
        "",
        ".hidden",
        "end.",
        " a",
        "a ",
        "a\nb",
        "a\0b",
        "a:b",
        "file",
        "\u{202e}x",
        &long,
    ];
    for name in hostile {
        let entries =
            json!([{"name": "default", "template": "d"}, {"name": name, "template": "t"}]);
        let source = source(|dir| put_key(dir, entries));
        let ran = try_convert(source.path(), &path("no.gguf"), "gguf-i2_s");
        refused(&ran, "chat-template", "tokenizer_config.json");
        assert!(!path("no.gguf").exists());
        let ran = run(
            bitnet_convert::run,
            ["inspect", text(source.path()), "--json"],
        );
        let said = ran.json()["tokenizer"]["chat_templates"]["refused"].to_string();
        assert!(said.contains("letters, digits"), "{said}");
    }
    // as keys of GGUF; files of these names are never made
    let source = source(|dir| put(dir, "default", DEFAULT));
    convert(source.path(), &path("a.gguf"), "gguf-i2_s");
    for name in hostile.into_iter().chain(["default"]) {
        if name.contains('\0') {
            continue;
        }
        let model = rewritten(&path("a.gguf"), path("hostile.gguf"), |metadata| {
            metadata.set(
                format!("tokenizer.chat_template.{name}"),
                MetaValue::text("t"),
            );
        });
        let ran = try_convert(&model, &path("no"), "hf-packed");
        refused(&ran, "chat-template", "letters, digits");
        assert!(!path("no").exists());
    }
    assert!(!path("up.jinja").exists());
    // names that are files
    for name in [".hidden", "a:b", "file", "a\nb"] {
        let source = self::source(|dir| put(dir, name, "t"));
        for target in ["gguf-i2_s", "hf-packed"] {
            let ran = try_convert(source.path(), &path("no"), target);
            refused(&ran, "chat-template", "additional_chat_templates");
        }
    }
    // names that are unusual and safe
    for name in ["tool-use", "v1.2", "Tool Use", "ツール", "a+b", &long[..64]] {
        let source = self::source(|dir| {
            put(dir, "default", DEFAULT);
            put(dir, name, RAG);
        });
        let out = tempfile::tempdir().unwrap();
        let (gguf, packed) = (out.path().join("a.gguf"), out.path().join("packed"));
        convert(source.path(), &gguf, "gguf-i2_s");
        convert(&gguf, &packed, "hf-packed");
        assert_eq!(names(&packed), json!(["default", name]));
        assert_eq!(templates(&packed), templates(source.path()));
        is_same(&packed, &gguf);
    }
}

#[test]
fn what_is_no_template_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    for value in [
        json!(5),
        json!(true),
        json!([5]),
        json!(["text"]),
        json!([{"name": "default"}]),
        json!([{"template": "t"}]),
        json!([{"name": 1, "template": "t"}]),
        json!([{"name": "default", "template": null}]),
        json!({"default": 1}),
    ] {
        let source = source(|dir| put_key(dir, value.clone()));
        let ran = try_convert(source.path(), &path("no.gguf"), "gguf-i2_s");
        refused(&ran, "chat-template", "tokenizer_config.json");
    }
    let latin: &[u8] = b"caf\xe9";
    for name in ["default", "rag"] {
        let source = source(|dir| put(dir, name, latin));
        let ran = try_convert(source.path(), &path("no.gguf"), "gguf-i2_s");
        refused(&ran, "chat-template", "not UTF-8");
    }
    // numbers and lengths
    let many = |n: usize| {
        let named = (0..n).map(|i| json!({"name": format!("n{i}"), "template": "t"}));
        source(|dir| put_key(dir, named.collect()))
    };
    convert(many(64).path(), &path("many.gguf"), "gguf-i2_s");
    assert_eq!(names(&path("many.gguf")).as_array().unwrap().len(), 64);
    let ran = try_convert(many(65).path(), &path("no.gguf"), "gguf-i2_s");
    refused(&ran, "limit-exceeded", "at most 64");
    let source = source(|dir| {
        for i in 0..66 {
            put(dir, &format!("n{i}"), "t");
        }
    });
    let ran = try_convert(source.path(), &path("no"), "hf-packed");
    refused(&ran, "limit-exceeded", "at most 64");
    let source = self::source(|dir| put(dir, "rag", vec![b'x'; (128 << 10) + 1]));
    let ran = try_convert(source.path(), &path("no.gguf"), "gguf-i2_s");
    refused(&ran, "limit-exceeded", "at most 131072 bytes, found 131073");

    // keys of GGUF that are no templates
    let source = self::source(as_files);
    convert(source.path(), &path("a.gguf"), "gguf-i2_s");
    type Change = fn(&mut Metadata);
    let changes: [(Change, &str); 5] = [
        (
            |m| m.set("tokenizer.chat_template", MetaValue::U32(1)),
            "expected a text",
        ),
        (
            |m| m.set("tokenizer.chat_template.rag", MetaValue::Bool(true)),
            "expected a text",
        ),
        (
            |m| {
                m.set(
                    "tokenizer.chat_template.rag",
                    MetaValue::String(b"\xff".to_vec()),
                )
            },
            "expected a text",
        ),
        (
            |m| m.set("tokenizer.chat_templates", MetaValue::text("rag")),
            "expected a list",
        ),
        (
            |m| m.set("tokenizer.chat_templates", list(&["rag", "gone"])),
            "gone",
        ),
    ];
    for (change, says) in changes {
        let model = rewritten(&path("a.gguf"), path("changed.gguf"), change);
        let ran = try_convert(&model, &path("no"), "hf-packed");
        refused(&ran, "chat-template", says);
    }
}

#[test]
fn a_changed_missing_or_added_template_is_found() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    let source = source(as_files);
    convert(source.path(), &path("a.gguf"), "gguf-i2_s");
    let certificate = certificate_of(&path("a.gguf"));
    type Change = fn(&mut Metadata);
    let changes: [(&str, Change); 5] = [
        ("rag", |m| {
            m.set("tokenizer.chat_template.rag", MetaValue::text("other"));
        }),
        ("rag", |m| {
            m.0.retain(|(key, _)| key != "tokenizer.chat_template.rag");
            m.set("tokenizer.chat_templates", list(&["tool_use"]));
        }),
        ("tool_use", |m| {
            m.0.retain(|(key, _)| !key.ends_with("_use") && !key.ends_with("templates"));
        }),
        ("more", |m| {
            m.set("tokenizer.chat_template.more", MetaValue::text("m"));
            m.set(
                "tokenizer.chat_templates",
                list(&["more", "rag", "tool_use"]),
            );
        }),
        ("more", |m| {
            m.set("tokenizer.chat_template.more", MetaValue::text("m"));
        }),
    ];
    for (name, change) in changes {
        let model = rewritten(&path("a.gguf"), path("changed.gguf"), change);
        let key = format!("tokenizer.chat_template.{name}");
        differs(&model, "--against", source.path(), &key);
        differs(&model, "--against", &path("a.gguf"), &key);
        let place = format!("additional_chat_templates.{name}");
        differs(&model, "--certificate", &certificate, &place);
    }
    // the order of the names says nothing, and neither does a list that is not there
    for listed in [Some(list(&["tool_use", "rag"])), None] {
        let model = rewritten(&path("a.gguf"), path("order.gguf"), |metadata| {
            let names = "tokenizer.chat_templates";
            match listed {
                Some(listed) => metadata.set(names, listed),
                None => metadata.0.retain(|(key, _)| key != names),
            }
        });
        is_same(&model, source.path());
        is_same(&model, &path("a.gguf"));
    }

    // directories
    type Edit = fn(&Path);
    let edits: [(&str, Edit); 4] = [
        ("additional_chat_templates.rag", |dir| {
            put(dir, "rag", "other")
        }),
        ("additional_chat_templates.rag", |dir| {
            std::fs::remove_file(dir.join("additional_chat_templates/rag.jinja")).unwrap();
        }),
        ("additional_chat_templates.more", |dir| {
            put(dir, "more", "m")
        }),
        ("chat_template", |dir| put(dir, "default", "other")),
    ];
    for (i, (place, edit)) in edits.into_iter().enumerate() {
        let copy = path(&format!("copy-{i}"));
        convert(source.path(), &copy, "hf-packed");
        let certificate = certificate_of(&copy);
        edit(&copy);
        differs(&copy, "--against", source.path(), place);
        differs(&copy, "--certificate", &certificate, place);
    }
    // a file that overrides the key of the source
    let single = self::source(|dir| put_key(dir, json!(DEFAULT)));
    let copy = path("overridden");
    convert(single.path(), &copy, "hf-packed");
    is_same(&copy, single.path());
    put(&copy, "default", "other");
    differs(&copy, "--against", single.path(), "chat_template");
    std::fs::remove_file(copy.join("chat_template.jinja")).unwrap();
    is_same(&copy, single.path());
    put(&copy, "tool_use", TOOLS);
    differs(
        &copy,
        "--against",
        single.path(),
        "additional_chat_templates.tool_use",
    );
    // two certificates
    let one = certificate_of(&path("a.gguf"));
    let other = path("other.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&one).unwrap()).unwrap();
    let object = json.as_object_mut().unwrap();
    object.remove("certificate_sha256");
    object.remove("additional_chat_templates");
    std::fs::write(&other, json.to_string()).unwrap();
    differs(
        &other,
        "--certificate",
        &one,
        "additional_chat_templates.rag",
    );
    // a certificate that says nothing of templates says nothing of these
    json.as_object_mut().unwrap().remove("chat_template_sha256");
    std::fs::write(&other, json.to_string()).unwrap();
    let (status, report) = verify(&[text(&path("a.gguf")), "--certificate", text(&other)]);
    assert_eq!(status, ExitStatus::Done, "{report}");
}

#[cfg(unix)]
#[test]
fn files_of_templates_are_held_to_the_rules_of_side_files() {
    use std::os::unix::fs::symlink;
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    std::fs::write(path("secret"), "secret").unwrap();
    std::fs::create_dir(path("elsewhere")).unwrap();
    std::fs::write(path("elsewhere").join("x.jinja"), "secret").unwrap();
    let folder = |dir: &Path| {
        let folder = dir.join("additional_chat_templates");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    };
    for target in ["gguf-i2_s", "hf-packed"] {
        let tried = |change: &dyn Fn(&Path), code: &str, says: &str| {
            let source = source(|dir| {
                put(dir, "default", DEFAULT);
                change(dir);
            });
            let ran = try_convert(source.path(), &path("no"), target);
            refused(&ran, code, says);
            assert!(!path("no").exists());
        };
        let secret = path("secret");
        tried(
            &|dir| symlink(&secret, folder(dir).join("rag.jinja")).unwrap(),
            "outside-link",
            "rag.jinja",
        );
        tried(
            &|dir| symlink(path("elsewhere"), dir.join("additional_chat_templates")).unwrap(),
            "outside-link",
            "x.jinja",
        );
        tried(
            &|dir| symlink("gone", folder(dir).join("rag.jinja")).unwrap(),
            "io",
            "leads nowhere",
        );
        tried(
            &|dir| {
                let pipe = folder(dir).join("rag.jinja");
                let made = std::process::Command::new("mkfifo").arg(pipe).status();
                assert!(made.unwrap().success());
            },
            "io",
            "a pipe, socket or device",
        );
        // a link to a file of the same directory
        let source = source(|dir| {
            put(dir, "default", DEFAULT);
            symlink("../chat_template.jinja", folder(dir).join("rag.jinja")).unwrap();
        });
        let model = path(target);
        convert(source.path(), &model, target);
        assert_eq!(templates(&model), templates(source.path()));
        assert_eq!(names(&model), json!(["default", "rag"]));
    }
}
