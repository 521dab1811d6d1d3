//! What a template gives, and what stops one.

use super::{ChatContext, ChatMessage, ChatTemplate};
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::json;

fn template(source: &str) -> Result<ChatTemplate, FormatError> {
    let mut tokens = serde_json::Map::new();
    tokens.insert("bos_token".into(), "<s>".into());
    tokens.insert("pad_token".into(), "<pad>".into());
    ChatTemplate::with_special_tokens(source, tokens, Some("`chat_template.jinja`"))
}

fn render(source: &str) -> Result<String, FormatError> {
    template(source)?.render(&[ChatMessage::user("hé <&>\n")], true)
}

/// The error of a template that passes a limit.
fn over(source: &str, limit: &str) {
    let error = render(source).err().map(|e| (e.code, e.to_string()));
    let (code, text) = error.unwrap_or((ErrorCode::Usage, "no error".to_owned()));
    assert_eq!(code, ErrorCode::LimitExceeded, "{text}");
    assert!(text.contains(limit), "{text} does not name {limit}");
    assert!(text.contains("chat_template.jinja"), "{text}");
}

#[test]
fn python_prints() {
    let cases = [
        (
            "{{ none }} {{ true }} {{ nothing }}|{{ 1.0 }} {{ 1e16 }}",
            "None True |1.0 1e+16",
        ),
        (
            "{{ [1, 'a\n', (2,)] }} {{ {'k': none} }}",
            "[1, 'a\\n', (2,)] {'k': None}",
        ),
        (
            "{{ messages | tojson }}",
            "[{\"role\": \"user\", \"content\": \"hé <&>\\n\"}]",
        ),
        (
            "{{ {'b': 1e20, 'a': []}|tojson(sort_keys=true, separators=(',', ':')) }}",
            "{\"a\":[],\"b\":1e+20}",
        ),
        (
            "{{ 'é'|tojson(ensure_ascii=true) }}{{ [1]|tojson(indent=1) }}",
            "\"\\u00e9\"[\n 1\n]",
        ),
        (
            "{{ '%s-%05.1f' % ('a', 2) }} {{ '{:>4}|{x!r}'.format(7, x='b') }}",
            "a-002.0    7|'b'",
        ),
        (
            "{% generation %}x{% endgeneration %}{{ bos_token }}{{ pad_token }}",
            "x<s><pad>",
        ),
        ("a\r\n{% if true %}\r\nb\r\n{% endif %}\r\n", "a\nb\n"),
        (
            "{% for i in [1, 2, 3] if i != 2 %}{{ loop.length }}{% if loop.last %}.{% endif %}{% endfor %}",
            "22.",
        ),
        (
            "{% for i in [1] %}{% break %}{% else %}none{% endfor %}",
            "none",
        ),
        (
            "{% set g = [1, 2]|map('string') %}{{ g|first }}{{ g|list }}{{ g|list }}",
            "1['2'][]",
        ),
        (
            "{% set x = {'items': 1} %}{{ x.items is callable }}{{ x['items'] }}",
            "True1",
        ),
        ("{{ [1].append(2) is defined }}", ""),
    ];
    let (last, rest) = cases.split_last().unwrap_or((&("", ""), &[]));
    for (source, expected) in rest {
        assert_eq!(render(source).as_deref(), Ok(*expected), "{source}");
    }
    assert!(render(last.0).is_err(), "a list was changed");
}

#[test]
fn an_error_names_template_and_line() {
    let error = render("\n{{ raise_exception('roles must alternate') }}");
    assert_eq!(
        error.err().map(|e| e.to_string()).as_deref(),
        Some("chat template in `chat_template.jinja`: roles must alternate (line 2)")
    );
    for source in [
        "{{ nothing.x }}",
        "{{ nothing + 1 }}",
        "{{ nothing() }}",
        "{% for i in none %}{% endfor %}",
        "{{ 2**200 }}",
        "{{ lipsum() }}",
        "{{ 'x'|nofilter }}",
        "{{ namespace(_a=1) }}",
        "{% include 'x' %}",
        "{{ range(100001) }}",
        "{{ messages|map('upper') }}",
        "{{ strftime_now('%Q') }}",
    ] {
        let code = render(source).err().map(|e| e.code);
        assert_eq!(code, Some(ErrorCode::ChatTemplate), "{source}");
    }
}

#[test]
fn tools_and_parts_reach_the_template() {
    let source = "{% for m in messages %}{{ m.role }}{{ m.content is defined }}{{ m.tool_calls[0].function.arguments.x }}\
                  {{ m.thinking }}{% endfor %}{{ tools[0].name }}{{ documents }}{{ enable_thinking }}";
    let mut context = ChatContext {
        messages: vec![
            json!({"role": "assistant", "content": null, "reasoning": "r",
            "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1.5}}}]}),
        ],
        tools: Some(vec![json!({"name": "f"})]),
        ..ChatContext::default()
    };
    context
        .variables
        .insert("enable_thinking".into(), false.into());
    let text = template(source).and_then(|t| t.render_context(&context));
    assert_eq!(text.as_deref(), Ok("assistantFalse1.5rfNoneFalse"));
}

#[test]
fn a_hostile_template_ends_at_a_limit() {
    over(&"x".repeat(128 * 1024 + 1), "source limit");
    for (before, times, after) in [
        ("not ", 20_000, "1"),
        ("-", 60_000, "1"),
        ("1+", 20_000, "1"),
        ("1 and ", 10_000, "1"),
        ("1 if 1 else ", 8_000, "1"),
    ] {
        over(
            &format!("{{{{ {}{after} }}}}", before.repeat(times)),
            "nesting limit",
        );
    }
    over(
        &format!("{{{{ 'a'{} }}}}", "|lower".repeat(10_000)),
        "nesting limit",
    );
    over(
        &format!("{{{{ a{} }}}}", ".b".repeat(40_000)),
        "nesting limit",
    );
    over(&"{% if 1 %}".repeat(5_000), "nesting limit");
    for source in [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}",
    ] {
        over(source, "recursion limit");
    }
    let grow = |step: &str| {
        let start = "{% set ns = namespace(x=['ab']) %}{% for i in range(100000) %}";
        format!("{start}{{% set ns.x = {step} %}}{{% endfor %}}")
    };
    over(&grow("ns.x + ns.x"), "memory limit");
    over(&grow("[ns.x]"), "nesting limit");
    over(&grow("[ns.x].count"), "nesting limit");
    over(&grow("namespace(x=ns.x)"), "memory limit");
    over(
        "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "memory limit",
    );
    over("{{ 'a' * 10000000 }}", "output limit");
    for source in [
        "{{ 'a'|indent(10**9) ~ ('a\nb'|indent(10**9)) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%.*f' % (10**12, 1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{:{w}}'.format(1, w=10**9) }}",
        "{{ 'a'.center(10**9) }}",
        "{{ '1'.zfill(10**9) }}",
        "{{ '\t'.expandtabs(10**9) }}",
        "{{ [1]|batch(10**9, 0)|list }}",
        "{{ [1]|slice(10**9)|list }}",
        "{{ [[1]]|tojson(indent=10**9) }}",
        "{{ [1] * 10**9 }}",
        "{{ (['a' * 1000] * 10000)|join('b' * 10000) }}",
        "{{ ('a' * 100000)|replace('', 'b' * 10000) }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% set x = 'é' * 100000 %}{% for i in range(100000) %}{% set y = x[::-1] %}{% endfor %}",
        "{% set x = ['\x01' * 100000] %}{% for i in range(1000) %}{% set y = x|string %}{% endfor %}",
    ] {
        over(source, "limit");
    }
}
