//! Chat templates in the programs: the text is that of Jinja in transformers, and a hostile template ends
//! with an error that names it and the limit.
//!
//! Invariant: no template gives another text than transformers; what is not supported is an error.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{checkpoint, fixtures_dir, read_json};
use bitnet_tests::program::{Ran, run};
use bitnet_text::{ChatContext, ChatTemplate};
use serde_json::{Map, Value};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest time for a template, with room for a machine under load.
const LONGEST: Duration = Duration::from_secs(2);

/// A copy of a small checkpoint with another chat template.
fn model(template: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(checkpoint("bitnet-2b4t-bf16")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    dir
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn convert(source: &Path, to: &str) -> Ran {
    let output = tempfile::tempdir().unwrap();
    let output = output.path().join("out");
    let words = [text(source), "-o", text(&output), "--to", to, "--json"];
    run(bitnet_convert::run, words)
}

fn refused(ran: &Ran, code: &str, says: &str) {
    let json = ran.json();
    assert_eq!(ran.status, ExitStatus::CouldNot, "{json}");
    assert_eq!(json["error"]["code"], code, "{json}");
    let error = json["error"].to_string();
    assert!(error.contains("chat_template.jinja"), "{error}");
    assert!(error.contains(says), "{error} does not say {says}");
}

/// Conversations with tool calls and thinking, in templates of both published kinds.
#[test]
fn tool_calls_and_thinking_give_what_transformers_gives() {
    let fixture = read_json(&fixtures_dir().join("chat_templates/tools.json"));
    let template = |name: &str| {
        let source = fixture["templates"][name].as_str().unwrap();
        ChatTemplate::new(source, "", "").unwrap()
    };
    let cases = fixture["cases"].as_array().unwrap();
    let mut refused = 0;
    for case in cases {
        let text = |key: &str| case[key].as_str().unwrap();
        let messages = fixture["conversations"][text("conversation")]
            .as_array()
            .unwrap();
        let tools = fixture["tools"].as_array().unwrap();
        let context = ChatContext {
            messages: messages.clone(),
            tools: (case["tools"] == true).then(|| tools.clone()),
            documents: None,
            add_generation_prompt: messages.last().unwrap()["role"] != "assistant",
            variables: case["variables"].as_object().unwrap().clone(),
        };
        let rendered = template(text("template")).render_context(&context);
        match &case["expected"] {
            Value::String(expected) => assert_eq!(&rendered.unwrap(), expected, "{case}"),
            _ => {
                refused += 1;
                assert!(rendered.is_err(), "{case}");
            }
        }
    }
    assert_eq!((cases.len(), refused), (108, 18));
    assert_eq!(
        template("json").thinking_variable().unwrap(),
        Some("enable_thinking")
    );
    assert_eq!(
        template("tagged").thinking_variable().unwrap(),
        Some("thinking")
    );
}

#[test]
fn think_sets_the_switch_of_the_template_or_is_refused() {
    let prompt = |template: &str, words: &[&str]| {
        let dir = model(template);
        let mut all = vec![
            text(dir.path()),
            "--chat",
            "-p",
            "Hi",
            "-n",
            "1",
            "--greedy",
            "--json",
        ];
        all.extend(words);
        run(bitnet_run::run, all)
    };
    let switched =
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if thinking %} more{% endif %}";
    let count = |ran: &Ran| {
        let json = ran.json();
        assert_eq!(ran.status, ExitStatus::Done, "{json}");
        json["prompt_tokens"].as_array().unwrap().len()
    };
    let on = count(&prompt(switched, &["--think", "on"]));
    let off = count(&prompt(switched, &["--think", "off"]));
    assert!(on > off, "{on} {off}");
    assert_eq!(count(&prompt(switched, &[])), off);
    // the name of a message's key is no switch, nor is a variable that changes nothing
    for without in [
        "{% for m in messages %}{{ m.content }}{{ m.thinking }}{% endfor %}",
        "{% set enable_thinking = true %}{% for m in messages %}{{ m.content }}{% endfor %}",
    ] {
        let ran = prompt(without, &["--think", "off"]);
        let json = ran.json();
        assert_eq!(ran.status, ExitStatus::CouldNot, "{json}");
        assert_eq!(json["error"]["code"], "chat-template", "{json}");
        assert!(
            json["error"]["message"]
                .as_str()
                .unwrap()
                .contains("no switch for thinking")
        );
    }
    let dir = model(switched);
    let ran = run(
        bitnet_run::run,
        [text(dir.path()), "-p", "Hi", "--think", "off", "--json"],
    );
    assert_eq!(ran.status, ExitStatus::CouldNot);
}

#[test]
fn expressions_give_what_transformers_gives() {
    let fixture = read_json(&fixtures_dir().join("chat_templates/expressions.json"));
    let mut context = ChatContext::default();
    let mut variables = Map::new();
    for (name, value) in fixture["context"].as_object().unwrap() {
        let list = || value.as_array().cloned();
        match name.as_str() {
            "messages" => context.messages = list().unwrap(),
            "tools" => context.tools = list(),
            "documents" => context.documents = list(),
            "add_generation_prompt" => context.add_generation_prompt = value.as_bool().unwrap(),
            _ => {
                variables.insert(name.clone(), value.clone());
            }
        }
    }
    let (mut equal, mut unsupported, mut wrong) = (0, 0, Vec::new());
    let entries = fixture["entries"].as_array().unwrap();
    for entry in entries {
        let source = entry[0].as_str().unwrap();
        let found = ChatTemplate::with_special_tokens(source, variables.clone(), None)
            .and_then(|template| template.render_context(&context));
        // the fixture is of the environment alone; transformers gives a reasoning text its older name too
        let found = found.map(|text| text.replace("\"thinking\": \"hm\", ", ""));
        match (entry[1]["text"].as_str(), found) {
            (Some(expected), Ok(found)) if expected == found => equal += 1,
            (None, Err(_)) => equal += 1,
            (Some(_), Err(_)) => unsupported += 1,
            (expected, Ok(found)) => wrong.push(format!("{source}: {expected:?}, {found:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // autoescape, wordwrap, urlize, pprint of mappings and formatting of safe texts
    assert!(unsupported <= 44, "{unsupported} are refused");
    assert!(equal >= 1_737, "{equal} of {} are equal", entries.len());
}

#[test]
fn a_hostile_template_ends_every_program_at_a_limit() {
    let double = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    let steps = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    let long = "x".repeat(200_000);
    let not = format!("{{{{ {}1 }}}}", "not ".repeat(20_000));
    let cases = [
        (double, "memory limit"),
        (steps, "step limit"),
        ("{{ '%999999999d' % 1 }}", "limit"),
        ("{{ '{:>999999999}'.format(1) }}", "limit"),
        ("{{ 'a\nb'|indent(10**9) }}", "limit"),
        (
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "recursion limit",
        ),
        ("{{ 'a' * 10000000 }}", "output limit"),
        (not.as_str(), "nesting limit"),
        (long.as_str(), "source limit"),
    ];
    for (template, limit) in cases {
        let dir = model(template);
        let path = text(dir.path());
        let start = Instant::now();
        let chat = [path, "--chat", "-p", "hi", "-n", "1", "--json"];
        refused(&run(bitnet_run::run, chat), "limit-exceeded", limit);
        let doctor = run(bitnet_verify::run, ["doctor", path, "--no-run", "--json"]);
        refused(&doctor, "limit-exceeded", limit);
        for to in ["gguf-i2_s", "hf-packed"] {
            refused(&convert(dir.path(), to), "limit-exceeded", limit);
        }
        assert!(
            start.elapsed() < LONGEST * 4,
            "{limit}: {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn conversion_refuses_what_does_not_compile_and_keeps_the_rest() {
    let dir = model("{% for m in messages %}");
    refused(&convert(dir.path(), "gguf-i2_s"), "chat-template", "endfor");
    let notes = |template: &str| -> Value {
        let ran = convert(model(template).path(), "hf-packed");
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
        ran.json()["tokenizer_notes"].clone()
    };
    let fails = |notes: &Value| notes.to_string().contains("chat-template-fails");
    // the template decides which conversations it takes
    assert!(!fails(&notes("{{ raise_exception('only tools') }}")));
    assert!(!fails(&notes("{{ messages[0].content }}")));
    assert!(fails(&notes("{{ messages[0].content|wordwrap }}")));
    assert!(fails(&notes("{% autoescape true %}{% endautoescape %}")));
}

#[test]
fn a_chat_is_rendered_as_transformers_renders_it() {
    let tokens = |template: &str| {
        let dir = model(template);
        let words = [
            text(dir.path()),
            "--chat",
            "--system",
            "S",
            "-p",
            "hi <b>",
            "-n",
            "1",
            "--json",
        ];
        let ran = run(bitnet_run::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
        ran.json()["prompt_tokens"].clone()
    };
    let plain = tokens("a\n{\"b\":1,\"a\":[1]}x");
    assert!(plain.is_array() || plain.is_number(), "{plain}");
    assert_eq!(
        plain,
        tokens("a\r\n{{ {'b': 1, 'a': [1]}|tojson(separators=(',', ':')) }}x\r\n")
    );
    assert_eq!(
        plain,
        tokens(
            "a\n{{ {'b': 1, 'a': [1]}|tojson(separators=(',', ':')) }}{% generation %}x{% endgeneration %}"
        )
    );
    assert_ne!(plain, tokens("a\n{{ {'b': 1, 'a': [1]}|tojson }}x"));
}
