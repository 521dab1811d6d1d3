//! The chat templates of a model: the one that a chat is rendered with, and further ones by name.
//!
//! Invariant: which templates a model has is decided as transformers decides it. A name is safe as a
//! file name and as the end of a GGUF key, and number and sizes are bounded.

use super::place::Place;
use crate::chat_template::{ChatTemplate, LONGEST_SOURCE};
use bitnet_formats::{ErrorCode, FormatError, MetaArray, MetaValue, Metadata};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// The template of a chat in GGUF metadata.
const KEY: &str = "tokenizer.chat_template";
/// What the key of a further template begins with; its name follows.
const NAMED_KEY: &str = "tokenizer.chat_template.";
/// The names of the further templates.
const NAMES_KEY: &str = "tokenizer.chat_templates";

/// The template of a chat as a file.
const FILE: &str = "chat_template.jinja";
/// The directory of the files of further templates.
const FOLDER: &str = "additional_chat_templates";
const FILE_END: &str = ".jinja";

/// The name of the template that a chat is rendered with.
const DEFAULT: &str = "default";
/// transformers takes a file of this name in [`FOLDER`] for [`FILE`].
const TAKEN: &str = "file";

/// Most further templates; published models have up to three.
const MOST: usize = 64;
/// Longest further template, bytes: as long as one that can be rendered.
const LONGEST: usize = LONGEST_SOURCE;
/// Longest name, bytes.
const LONGEST_NAME: usize = 64;

/// Special tokens by their names.
type Named = Map<String, Value>;

/// The sources of a model's chat templates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    default: Option<String>,
    named: BTreeMap<String, String>,
    /// The file or metadata key of each template, for errors.
    origins: BTreeMap<String, String>,
}

fn refuse(what: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::ChatTemplate, what)
}

fn refuse_name(name: &str) -> FormatError {
    let found: String = name.chars().take(LONGEST_NAME).collect();
    let what = format!(
        "expected a chat template named with 1 to {LONGEST_NAME} letters, digits, `_`, `-`, `+`, \
         single dots or spaces, found {found:?}"
    );
    refuse(what).hint("rename the chat template or remove it")
}

/// Refuses a name that cannot be a file of [`FOLDER`] and the end of a GGUF key.
fn check_name(name: &str) -> Result<(), FormatError> {
    let is_allowed = |c: char| c.is_alphanumeric() || "_-+. ".contains(c);
    let is_edge = |c: char| c == '.' || c == ' ';
    let is_fine = !name.is_empty()
        && name.len() <= LONGEST_NAME
        && name.chars().all(is_allowed)
        && !name.starts_with(is_edge)
        && !name.ends_with(is_edge)
        && !name.contains("..")
        && name != TAKEN;
    match is_fine {
        true => Ok(()),
        false => Err(refuse_name(name)),
    }
}

fn utf8(bytes: Cow<'_, [u8]>) -> Result<String, FormatError> {
    String::from_utf8(bytes.into_owned()).map_err(|_| refuse("not UTF-8"))
}

impl ChatTemplates {
    /// The templates of a checkpoint directory.
    ///
    /// # Errors
    /// Side files that cannot be read; names and sizes beyond the limits.
    pub fn of_directory(dir: &Path) -> Result<Self, FormatError> {
        let place = Place::Directory(dir);
        Self::of_place(place, &place.json("tokenizer_config.json")?)
    }

    /// The templates of files of a checkpoint. `tokenizer` is its `tokenizer_config.json`, which counts where
    /// no template has a file of its own.
    pub(super) fn of_place(place: Place<'_>, tokenizer: &Value) -> Result<Self, FormatError> {
        let mut found = Self::default();
        let mut files = vec![(DEFAULT.to_owned(), FILE.to_owned())];
        files.extend(additional_files(place)?);
        for (name, file) in files {
            if let Some(bytes) = place.read(&file)? {
                let added = utf8(bytes).and_then(|text| found.add(&name, text));
                added.map_err(|e| e.in_file(&place.path(&file)))?;
                found.origins.insert(name, file);
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let of_key = |json: &Value, file: &str| {
            let found = Self::of_json(json.get("chat_template").unwrap_or(&Value::Null));
            let mut found = found.map_err(|e| e.in_file(&place.path(file)))?;
            let names = found.names().into_iter().map(str::to_owned);
            found.origins = names.map(|name| (name, file.to_owned())).collect();
            Ok::<_, FormatError>(found)
        };
        let found = of_key(tokenizer, "tokenizer_config.json")?;
        match found.is_empty() {
            true => of_key(&place.json("chat_template.json")?, "chat_template.json"),
            false => Ok(found),
        }
    }

    /// Of the key `chat_template`: a text, or texts by their names.
    fn of_json(value: &Value) -> Result<Self, FormatError> {
        let expected = || {
            let what = "expected `chat_template` to be a text or a list of {name, template}";
            refuse(what).hint("correct the key or remove it")
        };
        let text = |value: Option<&Value>| {
            let text = value.and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(expected)
        };
        let mut found = Self::default();
        match value {
            Value::Null => {}
            Value::String(text) => found.default = Some(text.clone()),
            Value::Array(list) => {
                for entry in list {
                    found.add(&text(entry.get("name"))?, text(entry.get("template"))?)?;
                }
            }
            Value::Object(named) => {
                for (name, template) in named {
                    found.add(name, text(Some(template))?)?;
                }
            }
            _ => return Err(expected()),
        }
        Ok(found)
    }

    /// The templates of GGUF metadata.
    ///
    /// # Errors
    /// Values that are no text; names and sizes beyond the limits; a list that names a template that is
    /// not there.
    pub fn of_gguf(metadata: &Metadata) -> Result<Self, FormatError> {
        let mut found = Self::default();
        for (key, value) in &metadata.0 {
            let is_default = key == KEY;
            let Some(name) = key
                .strip_prefix(NAMED_KEY)
                .or(is_default.then_some(DEFAULT))
            else {
                continue;
            };
            let added = match value.as_str() {
                None => Err(refuse("expected a text in UTF-8")),
                Some(_) if name == DEFAULT && !is_default => Err(refuse_name(name)),
                Some(text) => found.add(name, text.to_owned()),
            };
            added.map_err(|e| e.in_tensor(&key.escape_debug().to_string()))?;
            found.origins.insert(name.to_owned(), key.clone());
        }
        let listed = match metadata.get(NAMES_KEY) {
            None => return Ok(found),
            Some(MetaValue::Array(MetaArray::String(listed))) => listed,
            Some(_) => return Err(refuse("expected a list of texts").in_tensor(NAMES_KEY)),
        };
        for name in listed.iter() {
            let name = String::from_utf8_lossy(name);
            if name != DEFAULT && !found.named.contains_key(name.as_ref()) {
                let name: String = name.chars().take(LONGEST_NAME).collect();
                let what =
                    format!("expected a key `{NAMED_KEY}` with the name {name:?}, found none");
                let hint = "get the file again, or remove the name from the list";
                return Err(refuse(what).in_tensor(NAMES_KEY).hint(hint));
            }
        }
        Ok(found)
    }

    /// Adds a template; of two of one name the last counts.
    fn add(&mut self, name: &str, text: String) -> Result<(), FormatError> {
        if name == DEFAULT {
            self.default = Some(text);
            return Ok(());
        }
        check_name(name)?;
        let limit = |what: String| Err(FormatError::new(ErrorCode::LimitExceeded, what));
        if text.len() > LONGEST {
            let found = text.len();
            return limit(format!(
                "expected chat template `{name}` to have at most {LONGEST} bytes, found {found}"
            ));
        }
        if self.named.len() == MOST && !self.named.contains_key(name) {
            return limit(format!(
                "expected at most {MOST} named chat templates, found more"
            ));
        }
        self.named.insert(name.to_owned(), text);
        Ok(())
    }

    /// The template that a chat is rendered with.
    pub fn default_template(&self) -> Option<&str> {
        self.default.as_deref()
    }

    fn open(
        &self,
        name: &str,
        source: &str,
        special_tokens: &Named,
    ) -> Result<ChatTemplate, FormatError> {
        let origin = self.origin(name);
        ChatTemplate::with_special_tokens(source, special_tokens.clone(), Some(&origin))
    }

    /// Where a template is, for errors.
    fn origin(&self, name: &str) -> String {
        let origin = self.origins.get(name).map_or("", String::as_str);
        match origin.contains(name) || name == DEFAULT {
            true => format!("`{origin}`"),
            false => format!("`{origin}` (`{name}`)"),
        }
    }

    /// The template of a chat, ready to render.
    pub(super) fn open_default(
        &self,
        special_tokens: &Named,
    ) -> Option<Result<ChatTemplate, FormatError>> {
        let source = self.default_template()?;
        Some(self.open(DEFAULT, source, special_tokens))
    }

    /// Compiles each template and renders a short conversation with it. A template that fails
    /// there, other than by raising its own exception, gives a sentence that says why.
    ///
    /// # Errors
    /// A template that does not compile or passes a limit.
    pub fn check(&self) -> Result<Vec<String>, FormatError> {
        let token = |name: &str| (format!("{name}_token"), Value::from(format!("<{name}>")));
        let names = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];
        let special_tokens: Named = names.into_iter().map(token).collect();
        let default = self.default.iter().map(|text| (DEFAULT, text));
        let named = self.named.iter().map(|(name, text)| (name.as_str(), text));
        let mut notes = Vec::new();
        for (name, source) in default.chain(named) {
            if let Some(what) = self.try_one(name, source, &special_tokens)? {
                notes.push(format!("{what}; the template is copied as it is"));
            }
        }
        Ok(notes)
    }

    /// Why a template gives no text for a short conversation.
    fn try_one(
        &self,
        name: &str,
        source: &str,
        special_tokens: &Named,
    ) -> Result<Option<String>, FormatError> {
        ChatTemplate::check(source, special_tokens.clone(), &self.origin(name))
    }

    /// The further templates by their names.
    pub fn named(&self) -> &BTreeMap<String, String> {
        &self.named
    }

    /// The names of all templates, `default` first.
    pub fn names(&self) -> Vec<&str> {
        let default = self.default.as_ref().map(|_| DEFAULT);
        let named = self.named.keys().map(String::as_str);
        default.into_iter().chain(named).collect()
    }

    /// Refuses further templates without a default one, as transformers does.
    pub(super) fn refuse_without_default(&self) -> Result<(), FormatError> {
        if self.named.is_empty() || self.default.is_some() {
            return Ok(());
        }
        let what = format!(
            "expected a default chat template, found only named ones: {}",
            self.names().join(", ")
        );
        Err(refuse(what).hint(format!(
            "save the template to chat with as {FILE} in the model directory, or under the GGUF key `{KEY}`"
        )))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.default.is_none() && self.named.is_empty()
    }

    /// All texts in one, to look for what they print.
    pub(super) fn text(&self) -> Option<Cow<'_, str>> {
        let default = self.default.as_deref();
        match self.named.is_empty() {
            true => default.map(Cow::Borrowed),
            false => {
                let named = self.named.values().map(String::as_str);
                let all: Vec<&str> = default.into_iter().chain(named).collect();
                Some(Cow::Owned(all.join("\n")))
            }
        }
    }

    /// The keys of GGUF metadata.
    pub(super) fn to_gguf(&self) -> Vec<(String, MetaValue)> {
        let text = |key: String, text: &String| (key, MetaValue::text(text));
        let named = self.named.iter();
        let mut keys: Vec<_> = named
            .map(|(name, template)| text(format!("{NAMED_KEY}{name}"), template))
            .collect();
        if !keys.is_empty() {
            let names = MetaValue::Array(MetaArray::String(self.named.keys().collect()));
            keys.push((NAMES_KEY.to_owned(), names));
        }
        keys.extend(self.default.iter().map(|t| text(KEY.to_owned(), t)));
        keys
    }

    /// As transformers saves several templates: each in a file. One template alone has none, and is a key of
    /// `tokenizer_config.json`, where every version of transformers reads it.
    pub(super) fn to_files(&self) -> Vec<(String, Vec<u8>)> {
        if self.named.is_empty() {
            return Vec::new();
        }
        let bytes = |file: String, text: &String| (file, text.clone().into_bytes());
        let default = self.default.iter().map(|t| bytes(FILE.to_owned(), t));
        let named = self.named.iter();
        let named = named.map(|(name, t)| bytes(format!("{FOLDER}/{name}{FILE_END}"), t));
        default.chain(named).collect()
    }

    /// The template that is a key of `tokenizer_config.json`.
    pub(super) fn to_key(&self) -> Option<&str> {
        let is_alone = self.named.is_empty();
        self.default_template().filter(|_| is_alone)
    }
}

/// The list of names as it is compared: of a file of another writer it has another order, or is not there.
pub fn normal_template_names(pairs: &mut Vec<(String, MetaValue)>) {
    let keys = pairs.iter();
    let of_keys = keys.filter_map(|(key, _)| key.strip_prefix(NAMED_KEY));
    let sorted = |mut names: Vec<Vec<u8>>| {
        names.sort_unstable();
        MetaArray::String(names.into_iter().collect())
    };
    let of_keys: Vec<Vec<u8>> = of_keys.map(|name| name.as_bytes().to_vec()).collect();
    match pairs.iter_mut().find(|(key, _)| key == NAMES_KEY) {
        Some((_, MetaValue::Array(listed))) => {
            if let MetaArray::String(names) = listed {
                *listed = sorted(names.iter().map(<[u8]>::to_vec).collect());
            }
        }
        None if !of_keys.is_empty() => {
            pairs.push((NAMES_KEY.to_owned(), MetaValue::Array(sorted(of_keys))));
        }
        _ => {}
    }
}

/// The files of further templates in a checkpoint directory, sorted; each name is `DIRECTORY/NAME.jinja`.
///
/// # Errors
/// Names beyond the limits; a directory that cannot be listed.
pub fn additional_template_files(dir: &Path) -> Result<Vec<String>, FormatError> {
    let files = additional_files(Place::Directory(dir))?;
    Ok(files.into_iter().map(|(_, file)| file).collect())
}

/// The names of further templates and their files, sorted.
fn additional_files(place: Place<'_>) -> Result<Vec<(String, String)>, FormatError> {
    let mut files = Vec::new();
    for entry in place.names_in(FOLDER, FILE_END)? {
        let Some(name) = entry.strip_suffix(FILE_END) else {
            continue;
        };
        let file = format!("{FOLDER}/{entry}");
        if name != DEFAULT {
            check_name(name).map_err(|e| e.in_file(&place.path(&file)))?;
        }
        files.push((name.to_owned(), file));
        if files.len() > MOST + 1 {
            let what = format!("expected at most {MOST} named chat templates, found more");
            return Err(
                FormatError::new(ErrorCode::LimitExceeded, what).in_file(&place.path(FOLDER))
            );
        }
    }
    files.sort_unstable();
    Ok(files)
}
