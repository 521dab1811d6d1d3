//! Which special tokens a model names (`bos_token`, ...), apart from the ids that GGUF has keys for and
//! apart from what is put around a text.
//!
//! Invariant: a file whose keys already say the names has no further key for them, so files of
//! llama.cpp and of earlier versions read as before: the names are those of the ids, and `bos_token` is
//! named if texts begin with it or the chat template prints it.

use super::huggingface::Specials;
use super::side_files::{NAMES, SideFiles};
use bitnet_formats::{ErrorCode, FormatError, MetaValue, Metadata};
use serde_json::{Map, Value};

/// The named tokens of a GGUF file as a JSON object, where its ids do not say them.
pub(super) const SPECIAL_TOKENS: &str = "tokenizer.huggingface.special_tokens";

/// Name (`bos_token`) and text.
pub(super) type Named = Map<String, Value>;

/// The names of a checkpoint directory, of tokens that `exists`.
pub(super) fn of_directory(side: &SideFiles, exists: impl Fn(&str) -> bool) -> Named {
    let named = NAMES.iter().filter_map(|name| {
        let text = side.special_text(name).filter(|text| exists(text))?;
        Some((format!("{name}_token"), Value::from(text)))
    });
    named.collect()
}

/// The names that the ids of a GGUF file say.
pub(super) fn of_ids(
    special: &Specials,
    template: Option<&str>,
    text: impl Fn(u32) -> Option<String>,
) -> Named {
    // a begin of text that is neither added nor printed is one that only `config.json` names
    let is_bos_named = special.add_bos || mentions(template, "bos_token");
    let named = [
        ("bos_token", special.bos.filter(|_| is_bos_named)),
        ("eos_token", special.eos),
        ("unk_token", special.unk),
        ("pad_token", special.pad),
    ];
    let named = named.into_iter().filter_map(|(name, id)| {
        let text = text(id?)?;
        Some((name.to_owned(), Value::from(text)))
    });
    named.collect()
}

/// The names of a GGUF file.
pub(super) fn of_gguf(
    metadata: &Metadata,
    special: &Specials,
    template: Option<&str>,
    text: impl Fn(u32) -> Option<String>,
) -> Result<Named, FormatError> {
    let Some(value) = metadata.get(SPECIAL_TOKENS) else {
        return Ok(of_ids(special, template, text));
    };
    let bad = || {
        FormatError::new(
            ErrorCode::Tokenizer,
            "expected a JSON object of names and texts",
        )
        .in_tensor(SPECIAL_TOKENS)
    };
    let json = value.as_str().ok_or_else(bad)?;
    match serde_json::from_str(json) {
        Ok(Value::Object(named)) if named.values().all(Value::is_string) => Ok(named),
        _ => Err(bad()),
    }
}

/// The key for names that the ids do not say; `None` where they do.
pub(super) fn entry(named: &Named, of_ids: &Named) -> Option<(String, MetaValue)> {
    let json = Value::Object(named.clone()).to_string();
    (named != of_ids).then(|| (SPECIAL_TOKENS.to_owned(), MetaValue::text(json)))
}

/// The text of a name, empty if it is not there.
pub(super) fn text(named: &Named, name: &str) -> String {
    let text = named.get(name).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

/// Whether a chat template prints a variable.
fn mentions(template: Option<&str>, name: &str) -> bool {
    template.is_some_and(|template| template.contains(name))
}

/// What a chat template prints for `bos_token` and `eos_token`, where that is not the text of the ids;
/// of names that the template mentions.
pub(super) fn printed(
    named: &Named,
    special: &Specials,
    template: Option<&str>,
    text_of: impl Fn(u32) -> Option<String>,
) -> Option<(String, String)> {
    let by_ids = of_ids(special, template, text_of);
    let differs = |name: &str| mentions(template, name) && text(named, name) != text(&by_ids, name);
    (differs("bos_token") || differs("eos_token"))
        .then(|| (text(named, "bos_token"), text(named, "eos_token")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn special(add_bos: bool) -> Specials {
        Specials {
            bos: Some(0),
            eos: Some(1),
            unk: None,
            pad: None,
            eot: None,
            add_bos,
            add_eos: false,
        }
    }

    fn spelled(id: u32) -> Option<String> {
        Some(format!("<{id}>"))
    }

    #[test]
    fn begin_of_text_is_named_if_it_is_added_or_printed() {
        let bos = |add_bos, template| {
            let named = of_ids(&special(add_bos), template, spelled);
            text(&named, "bos_token")
        };
        assert_eq!(bos(true, None), "<0>");
        assert_eq!(bos(false, Some("{{ bos_token }}x")), "<0>");
        assert_eq!(bos(false, Some("{{ eos_token }}x")), "");
        assert_eq!(bos(false, None), "");
    }

    #[test]
    fn a_key_is_written_for_names_that_the_ids_do_not_say() {
        let by_ids = of_ids(&special(false), None, spelled);
        assert_eq!(entry(&by_ids, &by_ids), None);
        let mut named = by_ids.clone();
        named.insert("bos_token".to_owned(), json!("<0>"));
        let (key, value) = entry(&named, &by_ids).unwrap();
        let mut metadata = Metadata::default();
        metadata.set(key, value);
        let read = of_gguf(&metadata, &special(false), None, spelled).unwrap();
        assert_eq!(read, named);
        metadata.set(SPECIAL_TOKENS, MetaValue::text("[1]"));
        let error = of_gguf(&metadata, &special(false), None, spelled).unwrap_err();
        assert_eq!(error.code, ErrorCode::Tokenizer);
    }
}
