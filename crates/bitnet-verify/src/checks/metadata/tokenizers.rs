//! Whether two models turn text into the same tokens, and a conversation into the same text.
//!
//! Invariant: two Hugging Face directories are compared file by file; where one side is GGUF, both tokenizers are
//! brought into GGUF's terms by the one function that writes them.

use super::text::compare_named;
use crate::diagnose::fault::{Fault, FaultName};
use crate::verdict::Findings;
use bitnet_checkpoint::{Checkpoint, WRITER_KEYS};
use bitnet_formats::{FormatError, MetaArray, MetaValue};
use bitnet_text::{GGUF_END_OF_TURN as EOT, GGUF_PRE_TOKENIZER as PRE};
use serde_json::Value;

/// The check that finds its faults.
const NAME: &str = "metadata";

/// Files of a Hugging Face directory that a tokenizer is made of.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "added_tokens.json",
];
/// Files that say in part what others say: compared where both sides have them.
const FURTHER_FILES: [&str; 2] = ["special_tokens_map.json", "generation_config.json"];

/// Compares tokenizers and chat templates; says what was compared, and what has a name.
pub(super) fn compare_tokenizers(
    source: &Checkpoint,
    artifact: &Checkpoint,
    findings: &mut Findings,
) -> Result<(String, Option<Fault>), FormatError> {
    if source.directory.is_some() && artifact.directory.is_some() {
        return compare_files(source, artifact, findings);
    }
    let (expected, found) = (source.gguf_tokenizer()?, artifact.gguf_tokenizer()?);
    if expected.is_none() && found.is_none() {
        return Ok(("the source has no tokenizer".to_owned(), None));
    }
    let (expected, found) = (expected.unwrap_or_default(), found.unwrap_or_default());
    let (mut compared, mut fault) = (0, None);
    for (key, expected) in &expected {
        compared += 1;
        match found.iter().find(|(k, _)| k == key) {
            None => findings.different(key, "expected in the artifact, not there"),
            Some((_, found)) if found == expected => {}
            Some((_, found)) => {
                let text = first_divergence(expected, found);
                if key == PRE {
                    fault = Some(Fault::of_key(
                        FaultName::PreTokenizer,
                        NAME,
                        PRE,
                        text.clone(),
                    ));
                }
                findings.different(key, text);
            }
        }
    }
    let more: Vec<&String> = found
        .iter()
        .map(|(key, _)| key)
        .filter(|key| !expected.iter().any(|(k, _)| k == *key))
        .collect();
    // A key that only the artifact has may change how text becomes tokens. A directory has no such keys: they are made of
    // its files, and a file of another program may leave out those that say nothing new.
    let are_made = artifact.directory.is_some();
    let is_equal =
        || Ok::<_, FormatError>(source.tokenizer_digest()? == artifact.tokenizer_digest()?);
    if !(more.is_empty() || are_made && is_equal()?) {
        // no file of a directory names an end of turn, so there it is a guess by the token's text
        let more = more.into_iter().filter(|key| !(are_made && *key == EOT));
        more.for_each(|key| findings.different(key, "not in the source"));
    }
    Ok((format!("{compared} tokenizer keys"), fault))
}

/// Compares the chat templates of two directories, whichever of their files has them.
fn compare_templates(source: &Checkpoint, artifact: &Checkpoint, findings: &mut Findings) {
    let (expected, found) = match (source.chat_templates(), artifact.chat_templates()) {
        (Ok(expected), Ok(found)) => (expected, found),
        (Err(error), _) | (_, Err(error)) => {
            return findings.unreadable("chat_template", &error);
        }
    };
    if expected.default_template() != found.default_template() {
        findings.different("chat_template", "another template");
    }
    compare_named(expected.named(), found.named(), findings);
}

fn compare_files(
    source: &Checkpoint,
    artifact: &Checkpoint,
    findings: &mut Findings,
) -> Result<(String, Option<Fault>), FormatError> {
    let (mut compared, mut fault) = (Vec::new(), None);
    compare_templates(source, artifact, findings);
    let files = TOKENIZER_FILES.into_iter().chain(FURTHER_FILES);
    for name in files {
        let Some(expected) = source.side_file(name)? else {
            continue;
        };
        let found = artifact.side_file(name)?;
        if found.is_none() && FURTHER_FILES.contains(&name) {
            continue;
        }
        compared.push(name);
        match found {
            None => findings.different(name, "expected in the artifact, not there"),
            Some(found) if found == expected => {}
            Some(found) => {
                // the same JSON written another way is the same tokenizer
                let (e, f) = match (meaning(&expected), meaning(&found)) {
                    (Ok(_), Err(error)) => {
                        findings.unreadable(name, &error);
                        continue;
                    }
                    (e, f) => (e.ok(), f.ok()),
                };
                if e.is_none() || e != f {
                    let keys = e.as_ref().zip(f.as_ref());
                    let keys = keys.and_then(|(e, f)| differing_keys(e, f));
                    let cut = |value: Option<Value>| Some(value?.get("pre_tokenizer")?.clone());
                    let (e, f) = (cut(e), cut(f));
                    if let (Some(e), Some(f)) = (&e, &f)
                        && e != f
                    {
                        let what = format!("expected {}, found {}", short(e), short(f));
                        fault = Some(Fault::of_key(FaultName::PreTokenizer, NAME, name, what));
                    }
                    let what = keys.unwrap_or_else(|| {
                        let equal = expected.iter().zip(&found).take_while(|(e, f)| e == f);
                        format!("differs from byte {} on", equal.count())
                    });
                    findings.different(name, what);
                }
            }
        }
    }
    if compared.is_empty() {
        return Ok(("the source has no tokenizer".to_owned(), None));
    }
    Ok((compared.join(", "), fault))
}

/// The meaning of a JSON side file, without the keys that name its writer.
fn meaning(bytes: &[u8]) -> Result<Value, FormatError> {
    let mut value = bitnet_formats::parse_json_table(bytes)?;
    if let Value::Object(keys) = &mut value {
        keys.retain(|key, _| !WRITER_KEYS.contains(&key.as_str()));
    }
    Ok(value)
}

/// Most keys of a file that one difference names.
const NAMED_KEYS: usize = 4;

/// The keys by which two JSON objects differ, and what they have there; `None` of other values.
fn differing_keys(expected: &Value, found: &Value) -> Option<String> {
    let (e, f) = (expected.as_object()?, found.as_object()?);
    let further = f.keys().filter(|key| !e.contains_key(*key));
    let differ = e.keys().chain(further);
    let differ: Vec<&String> = differ.filter(|key| e.get(*key) != f.get(*key)).collect();
    let side = |value: Option<&Value>| value.map_or_else(|| "no such key".to_owned(), short);
    let named = differ.iter().take(NAMED_KEYS).map(|key| {
        let (e, f) = (e.get(*key), f.get(*key));
        format!("`{key}`: expected {}, found {}", side(e), side(f))
    });
    let named = named.collect::<Vec<_>>().join("; ");
    match differ.len().saturating_sub(NAMED_KEYS) {
        0 if differ.is_empty() => None,
        0 => Some(named),
        more => Some(format!("{named}; {more} more keys differ")),
    }
}

/// Where and how two metadata values differ.
fn first_divergence(expected: &MetaValue, found: &MetaValue) -> String {
    let (MetaValue::Array(e), MetaValue::Array(f)) = (expected, found) else {
        return format!("expected {}, found {}", show(expected), show(found));
    };
    let (e, f) = (elements(e), elements(f));
    if e.len() != f.len() {
        return format!("expected {} elements, found {}", e.len(), f.len());
    }
    let differ = e.iter().zip(&f).filter(|(e, f)| e != f).count();
    match e.iter().zip(&f).position(|(e, f)| e != f) {
        Some(at) => format!(
            "element {at}: expected {}, found {}; {differ} of {} differ",
            e[at],
            f[at],
            e.len()
        ),
        None => "expected elements of another type".to_owned(),
    }
}

fn elements(array: &MetaArray) -> Vec<String> {
    fn list<T: std::fmt::Debug>(values: &[T]) -> Vec<String> {
        values.iter().map(|v| format!("{v:?}")).collect()
    }
    match array {
        MetaArray::U8(v) => list(v),
        MetaArray::I8(v) => list(v),
        MetaArray::U16(v) => list(v),
        MetaArray::I16(v) => list(v),
        MetaArray::U32(v) => list(v),
        MetaArray::I32(v) => list(v),
        MetaArray::U64(v) => list(v),
        MetaArray::I64(v) => list(v),
        MetaArray::F32(v) => list(v),
        MetaArray::F64(v) => list(v),
        MetaArray::Bool(v) => list(v),
        MetaArray::String(v) => v.iter().map(text).collect(),
    }
}

fn show(value: &MetaValue) -> String {
    match value {
        MetaValue::String(s) => text(s),
        MetaValue::Array(a) => format!("{} elements", elements(a).len()),
        other => format!("{other:?}"),
    }
}

/// JSON for one line of a report.
fn short(value: &Value) -> String {
    text(value.to_string().as_bytes())
}

/// A string for one line of a report.
fn text(bytes: &[u8]) -> String {
    const MOST: usize = 60;
    let text = String::from_utf8_lossy(bytes);
    let cut: String = text.chars().take(MOST).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_that_differ_are_named() {
        let expected = json!({"a": 1, "b": [1, 2], "c": null, "d": "x"});
        let what = |found: Value| differing_keys(&expected, &found);
        assert_eq!(what(expected.clone()), None);
        assert_eq!(what(json!([1])), None);
        let found = what(json!({"a": 1, "b": [1, 3], "d": "x", "e": true})).unwrap();
        for part in [
            "`b`: expected \"[1,2]\", found \"[1,3]\"",
            "`c`: expected \"null\", found no such key",
            "`e`: expected no such key, found \"true\"",
        ] {
            assert!(found.contains(part), "{found}");
        }
        assert!(!found.contains("`a`") && !found.contains("`d`"), "{found}");
        let many = what(json!({"f": 1, "g": 1})).unwrap();
        assert!(many.ends_with("; 2 more keys differ"), "{many}");
    }
}
