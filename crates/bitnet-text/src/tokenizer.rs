//! Text to token ids and back, from `tokenizer.json`, `vocab.json` with `merges.txt`, a sentencepiece
//! model or GGUF metadata, and from one of these forms to another.
//!
//! Invariant: every source becomes the parts of one `tokenizer.json`. The `tokenizers` crate executes
//! its rules over our compact model ([`bpe`]), so ids are exactly Hugging Face's. Decoding works on
//! bytes, so that a stream of tokens gives the same text as all of them at once and never half a
//! character.
//!
//! Decoding departs from the crate in one place: a run of byte tokens (`<0xHH>`) that is not UTF-8 as
//! a whole still gives the characters that are, with one U+FFFD for each byte that is not
//! (sentencepiece's rule), where the crate gives U+FFFD for every byte of the run.

mod added;
mod bpe;
mod class;
mod class_rules;
mod cut;
mod decode;
mod digest;
mod engine;
mod ggml;
mod gguf_keys;
mod huggingface;
mod json;
mod notes;
mod place;
mod pre_tokenizer;
mod resolver;
mod sentencepiece;
mod side_files;
mod special_tokens;
mod splice;
mod templates;
mod words;

use crate::chat_template::ChatTemplate;
use added::Added;
use bitnet_formats::without_byte_order_mark;
use bitnet_formats::{ErrorCode, FormatError, MetaArray, MetaValue, Metadata};
use class::Class;
use class_rules::{TOKENIZER_JSON, TOKENIZER_MODEL};
pub use decode::DecodeStream;
use decode::Decoding;
pub use digest::{TEMPLATE_TOKENS, TemplateHashes, TokenizerDigest};
use engine::Engine;
use ggml::{GgmlTokenizer, TokenType};
pub use gguf_keys::{
    GGUF_END_OF_TURN, GGUF_PRE_TOKENIZER, GgufTokenizerKeys, gguf_ends_of_turn,
    is_gguf_tokenizer_key,
};
use huggingface::Specials;
use json::Reading;
pub use notes::{
    TokenizerNote, has_gguf_tokenizer, notes_of_directory, notes_of_gguf, tokenizer_class_note,
};
use place::Place;
use serde_json::{Map, Value, json};
use side_files::{END_OF_TURN, SideFiles};
use std::borrow::Cow;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;
pub use templates::{ChatTemplates, additional_template_files, normal_template_names};

/// The whole `tokenizer.json`, as GGUF carries it (a key of the GGUF specification).
const HUGGINGFACE_JSON: &str = "tokenizer.huggingface.json";
/// All ids that end generation, where there are several. llama.cpp knows one `eos` and one `eot`
/// (and guesses more by their text); Ollama's converter writes this key, others ignore it.
const EOS_IDS: &str = "tokenizer.ggml.eos_token_ids";
/// This program's own key for the ids that `config.json` and `generation_config.json` name.
const CONFIG_EOS_IDS: &str = "ternary.eos_token_ids";
/// What to think of a token that has no row.
const OTHER_MODEL: &str =
    "the tokenizer is of another model, or config.json has the wrong vocab_size";
/// Ids beyond the last piece of a sentencepiece model that added tokens may have.
const MOST_ADDED: usize = 1 << 16;

/// A tokenizer with the special tokens and the chat template of its model.
///
/// ```
/// use bitnet_text::Tokenizer;
/// # let directory = std::path::Path::new("../../tests/fixtures/demo/packed");
///
/// let tokenizer = Tokenizer::from_directory(directory)?.expect("the model has a tokenizer");
/// let ids = tokenizer.encode("Add 34 and 28.", true)?;
/// assert_eq!(tokenizer.decode(&ids, true)?, "Add 34 and 28.");
/// # Ok::<(), bitnet_formats::FormatError>(())
/// ```
#[derive(Debug)]
pub struct Tokenizer {
    inner: Engine,
    decoding: Decoding,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_bos: bool,
    stop: Vec<u32>,
    templates: ChatTemplates,
    /// What a template may print as `bos_token`, `eos_token` and so on.
    special_tokens: special_tokens::Named,
}

fn refuse(what: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Tokenizer, what)
}

/// A `tokenizer.json`, executable and parsed.
struct Parsed {
    inner: Engine,
    /// Without the vocabulary and the merges.
    value: Value,
}

impl Parsed {
    fn new(reading: Reading) -> Result<Self, FormatError> {
        let (inner, value) = Engine::new(reading)?;
        Ok(Self { inner, value })
    }
}

/// Checks and builds a `tokenizer.json`.
fn build(bytes: &[u8]) -> Result<Parsed, FormatError> {
    json::read(without_byte_order_mark(bytes)).and_then(Parsed::new)
}

impl Tokenizer {
    /// The tokenizer of a checkpoint directory: `tokenizer.json`, else `tokenizer.model`
    /// (sentencepiece BPE), with the special tokens and the chat template of the files beside it.
    /// `None` if there is neither.
    pub fn from_directory(dir: &Path) -> Result<Option<Self>, FormatError> {
        Self::from_place(Place::Directory(dir))
    }

    /// As [`from_directory`](Self::from_directory), of files in memory: name and bytes.
    pub fn from_files(files: &[(String, Vec<u8>)]) -> Result<Option<Self>, FormatError> {
        Self::from_place(Place::Written(files))
    }

    fn from_place(place: Place<'_>) -> Result<Option<Self>, FormatError> {
        let Some(source) = Source::read(place)? else {
            return Ok(None);
        };
        let special = source.specials()?;
        let Source {
            parsed: Parsed { inner, value },
            side,
            ..
        } = source;
        let stop = side.stop(special.eos);
        let named = special_tokens::of_directory(&side, |_| true);
        let special = (special.bos, special.eos, special.add_bos);
        Self::assemble(inner, &value, special, stop, side.templates, named).map(Some)
    }

    /// The tokenizer of a GGUF file: `tokenizer.huggingface.json` if it is there, else one built
    /// from `tokenizer.ggml.*`. `None` if the file has none.
    pub fn from_gguf(metadata: &Metadata) -> Result<Option<Self>, FormatError> {
        let Some(Parsed { inner, value }) = gguf_parsed(metadata)? else {
            return Ok(None);
        };
        let special = gguf_specials(metadata, &inner)?;
        let templates = ChatTemplates::of_gguf(metadata)?;
        let spelled = |id| inner.id_to_token(id);
        let printing = templates.text();
        let named = special_tokens::of_gguf(metadata, &special, printing.as_deref(), spelled)?;
        drop(printing);
        let stop = gguf_stop(metadata, &special);
        let special = (special.bos, special.eos, special.add_bos);
        Self::assemble(inner, &value, special, stop, templates, named).map(Some)
    }

    fn assemble(
        inner: Engine,
        value: &Value,
        (bos, eos, adds_bos): (Option<u32>, Option<u32>, bool),
        stop: Vec<u32>,
        templates: ChatTemplates,
        special_tokens: special_tokens::Named,
    ) -> Result<Self, FormatError> {
        let stop = with_ends_of_turns(&inner, stop);
        let decoding = Decoding::from_json(value)?;
        Ok(Self {
            inner,
            decoding,
            bos,
            eos,
            adds_bos,
            stop,
            templates,
            special_tokens,
        })
    }

    /// The ids of a text. `add_special` adds what the tokenizer's post-processor adds (usually BOS);
    /// a rendered chat prompt contains its special tokens already and is encoded without.
    /// Special tokens written out in the text are recognised in both cases.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, FormatError> {
        self.inner.encode(text, add_special)
    }

    /// The text of ids; ids without a token are nothing. Spaces before punctuation stay as they are
    /// (`clean_up_tokenization_spaces` is an option of transformers, not of the tokenizer).
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, FormatError> {
        let mut stream = self.stream();
        if !skip_special {
            stream = stream.keep_special();
        }
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id)?);
        }
        text.push_str(&stream.finish()?);
        Ok(text)
    }

    /// A decoder that is given one id at a time; special tokens give no text.
    ///
    /// To continue a prompt, push the prompt's ids first and drop what they give: sentencepiece
    /// tokenizers drop one space at the very beginning only.
    pub fn stream(&self) -> DecodeStream<'_> {
        DecodeStream::new(self)
    }

    /// Tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    /// The texts of added tokens with ids from `rows` on.
    pub fn added_beyond(&self, rows: usize) -> Vec<String> {
        let added = self.inner.added_tokens().into_iter();
        let mut beyond: Vec<(u32, String)> = added
            .filter(|(id, _)| usize::try_from(*id).is_ok_and(|id| id >= rows))
            .map(|(id, token)| (id, token.content.clone()))
            .collect();
        beyond.sort_unstable();
        beyond.into_iter().map(|(_, text)| text).collect()
    }

    /// The text of a token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that a token stands for in a text, special tokens included; `None` for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.decoding.bytes(&self.inner, id, false)
    }

    /// Whether a token is special: it gives no text.
    pub fn is_special(&self, id: u32) -> bool {
        let text = self.inner.id_to_token(id);
        text.is_some_and(|text| self.inner.is_special(&text))
    }

    /// The token that a text begins with, where the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that a text ends with.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether [`Self::encode`] puts [`Self::bos`] in front when asked for special tokens.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Tokens that end generation: `eos`, those of `config.json` and `generation_config.json`, and
    /// ends of turns (`<|eot_id|>` and its like).
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop
    }

    /// The source of the chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.templates.default_template()
    }

    /// The sources of all chat templates.
    pub fn chat_templates(&self) -> &ChatTemplates {
        &self.templates
    }

    /// The chat template, ready to render with this tokenizer's own special tokens.
    ///
    /// # Errors
    /// A template that does not compile; templates of which none is the default.
    pub fn chat(&self) -> Result<Option<ChatTemplate>, FormatError> {
        match self.templates.open_default(&self.special_tokens) {
            Some(template) => template.map(Some),
            None => self.templates.refuse_without_default().map(|()| None),
        }
    }
}

/// Whether an error says that the rules of a tokenizer are refused: a normalizer, pre-tokenizer,
/// post-processor or list of added tokens that is not supported, is beyond a limit or makes the library
/// fail. Programs then refuse the whole model, because its text cannot be trusted.
pub fn is_refused_tokenizer(error: &FormatError) -> bool {
    let parts = [
        "normalizer",
        "pre_tokenizer",
        "post_processor",
        "added_tokens",
        engine::LIBRARY,
    ];
    let part = error.tensor.as_deref().unwrap_or_default();
    match error.code {
        ErrorCode::Tokenizer | ErrorCode::LimitExceeded => parts.contains(&part),
        _ => false,
    }
}

/// Refuses the rules of a directory's tokenizer that [`is_refused_tokenizer`] is about, before the
/// tokenizer is copied.
///
/// # Errors
/// Such rules.
pub fn check_tokenizer_rules(dir: &Path) -> Result<(), FormatError> {
    match Source::read(Place::Directory(dir)) {
        Err(error) if is_refused_tokenizer(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The pre-tokenizer that a word of `tokenizer.ggml.pre` means; `None` for a word that is not known.
pub fn pre_tokenizer_of_word(word: &str) -> Option<&'static str> {
    pre_tokenizer::by_name(word).ok().map(|row| row.name)
}

/// Every pre-tokenizer that has a word.
pub fn pre_tokenizer_names() -> impl Iterator<Item = &'static str> {
    pre_tokenizer::all().iter().map(|row| row.name)
}

/// The pre-tokenizer that a published vocabulary was made with, told by tokens that only one family has;
/// `first` is the first token.
pub fn pre_tokenizer_of_vocabulary(
    has: impl Fn(&str) -> bool,
    first: &str,
) -> Option<&'static str> {
    pre_tokenizer::by_evidence(has, first)
        .ok()
        .map(|row| row.name)
}

/// A tokenizer as a checkpoint directory has it.
struct Source<'p> {
    parsed: Parsed,
    /// The bytes of `tokenizer.json`; empty where there is none.
    text: Cow<'p, [u8]>,
    /// Whether `parsed` has other added tokens than `text`.
    is_changed: bool,
    side: SideFiles,
    /// Where the directory has `tokenizer.model` only.
    pieces: Option<GgmlTokenizer>,
    /// Added tokens of `tokenizer.json` that the class of the tokenizer does not have: ids and texts.
    lost: Vec<(u32, String)>,
}

impl<'p> Source<'p> {
    fn read(place: Place<'p>) -> Result<Option<Self>, FormatError> {
        let mut side = None;
        if let Some(bytes) = place.read(TOKENIZER_JSON)? {
            let located = |e: FormatError| e.in_file(&place.path(TOKENIZER_JSON));
            let bytes = match bytes.starts_with(b"\xef\xbb\xbf") {
                true => Cow::Owned(without_byte_order_mark(&bytes).to_vec()),
                false => bytes,
            };
            let (reading, side) = beside(|| json::read(&bytes), || SideFiles::read(place));
            let (reading, mut side) = (reading.map_err(located)?, side?);
            side.class = Class::of(&side, Some(&reading.rules));
            let read = Self::of_file(bytes, reading, side);
            return read.map_err(located).map(Some);
        }
        let model = place.read(TOKENIZER_MODEL)?;
        let of_two_files = |side: &SideFiles| {
            model.is_none() || matches!(side.class, Class::Qwen2 | Class::Qwen35 | Class::Gpt2)
        };
        if model.is_some() || class_rules::has_other_forms(place) {
            let mut read = SideFiles::read(place)?;
            read.class = Class::of(&read, None);
            side = Some(read);
        }
        let Some(side) = side else {
            return Ok(None);
        };
        if of_two_files(&side)
            && let Some(mut whole) = class_rules::from_two_files(place, &side)?
        {
            let located = |e: FormatError| e.in_file(&place.path(class_rules::VOCAB_JSON));
            added::settle(&mut whole, &side).map_err(located)?;
            added::post_process(&mut whole, &side);
            return Self::whole(&whole, side).map_err(located).map(Some);
        }
        let Some(model) = model else {
            return Ok(None);
        };
        let located = |e: FormatError| e.in_file(&place.path(TOKENIZER_MODEL));
        if let Some(refusal) = class_rules::refuse_tiktoken(&model) {
            return Err(located(refusal));
        }
        let mut pieces = sentencepiece::parse(&model).map_err(located)?;
        add_tokens(&mut pieces, &side).map_err(located)?;
        let parsed = pieces.reading().and_then(Parsed::new).map_err(located)?;
        Ok(Some(Self {
            parsed,
            text: Cow::Borrowed(&[]),
            is_changed: false,
            side,
            pieces: Some(pieces),
            lost: Vec::new(),
        }))
    }

    /// A `tokenizer.json`, with the added tokens that other files give it.
    fn of_file(
        text: Cow<'p, [u8]>,
        mut reading: Reading,
        side: SideFiles,
    ) -> Result<Self, FormatError> {
        engine::added_tokens(reading.rules.get("added_tokens").unwrap_or(&Value::Null))?;
        let added = Added::of(&reading.rules, &side)?;
        let is_changed = added.are_changed();
        let mut before = Vec::new();
        if is_changed {
            before = added.ids_and_texts();
            let settled = added.settled(reading.bpe.words())?;
            added::put(&mut reading.rules, settled);
        }
        let parsed = Parsed::new(reading)?;
        if is_changed {
            added::check_ids(&parsed.value, &parsed.inner)?;
        }
        let is_lost = |(_, text): &(u32, String)| parsed.inner.token_to_id(text).is_none();
        let lost = before.into_iter().filter(is_lost).collect();
        Ok(Self {
            parsed,
            text,
            is_changed,
            side,
            pieces: None,
            lost,
        })
    }

    /// The bytes of `tokenizer.json` with the added tokens that the tokenizer has.
    fn bytes(&self) -> Result<Cow<'_, [u8]>, FormatError> {
        match self.parsed.value.get("added_tokens") {
            Some(list) if self.is_changed => {
                splice::with_added_tokens(&self.text, list).map(Cow::Owned)
            }
            _ => Ok(Cow::Borrowed(&self.text)),
        }
    }

    /// Builds a `tokenizer.json` that was made here.
    fn whole(whole: &Value, side: SideFiles) -> Result<Self, FormatError> {
        let bytes = compact(whole)?;
        let parsed = build(&bytes)?;
        added::check_ids(whole, &parsed.inner)?;
        Ok(Self {
            parsed,
            text: Cow::Owned(bytes),
            is_changed: false,
            side,
            pieces: None,
            lost: Vec::new(),
        })
    }

    /// Leaves added tokens out that have no row in the embedding; gives their texts and ids.
    fn drop_tokens_beyond(
        &mut self,
        rows: usize,
        place: Place<'_>,
    ) -> Result<Vec<(u32, String)>, FormatError> {
        if let Some(pieces) = &mut self.pieces {
            let dropped = pieces.drop_added_beyond(rows);
            if !dropped.is_empty() {
                self.parsed = pieces.reading().and_then(Parsed::new)?;
            }
            return Ok(dropped);
        }
        let mut rules = self.parsed.value.clone();
        let dropped = added::drop_beyond(&mut rules, rows);
        if dropped.is_empty() {
            return Ok(dropped);
        }
        let words = self.parsed.inner.bpe().words();
        let has_row = |id: u32| usize::try_from(id).is_ok_and(|id| id < rows);
        let mut in_vocab = dropped.iter().filter_map(|(_, text)| words.id(text));
        if in_vocab.any(|id| !has_row(id)) {
            let mut whole = place.parse_table(TOKENIZER_JSON, &self.bytes()?)?;
            added::drop_beyond(&mut whole, rows);
            self.text = Cow::Owned(compact(&whole)?);
            self.is_changed = false;
            self.parsed = build(&self.text)?;
        } else {
            let bpe = json::read(&self.text)?.bpe;
            self.parsed = Parsed::new(Reading { rules, bpe })?;
            self.is_changed = true;
        }
        added::check_ids(&self.parsed.value, &self.parsed.inner)?;
        Ok(dropped)
    }

    /// Ids without which no text begins or ends.
    fn needed(&self) -> Result<Vec<u32>, FormatError> {
        let special = self.specials()?;
        let (before, after) = huggingface::around(&self.parsed.inner)?;
        let named = [special.bos, special.eos].into_iter().flatten();
        Ok(named.chain(before).chain(after).collect())
    }

    fn specials(&self) -> Result<Specials, FormatError> {
        let (before, after) = huggingface::around(&self.parsed.inner)?;
        let lookup = |text: &str| self.parsed.inner.token_to_id(text);
        let mut found = Specials::find(&self.side, lookup, &before, &after);
        if let Some(pieces) = &self.pieces {
            found.bos = found.bos.or(pieces.bos);
            found.eos = found.eos.or(pieces.eos);
        }
        Ok(found)
    }
}

/// Puts the tokens of `added_tokens.json` and `tokenizer_config.json` on top of a sentencepiece
/// model, as llama.cpp's converter does (score −1000), and settles what surrounds a text.
fn add_tokens(pieces: &mut GgmlTokenizer, side: &SideFiles) -> Result<(), FormatError> {
    let most = pieces.tokens.len().saturating_add(MOST_ADDED);
    for (id, text, special) in side.added() {
        let i = id as usize;
        if i >= most {
            return Err(refuse(format!(
                "added token `{}` has id {id}",
                pre_tokenizer::short(&text)
            )));
        }
        while pieces.tokens.len() <= i {
            pieces
                .tokens
                .push((ggml::padding(pieces.tokens.len()), TokenType::Unused));
            if let Some(scores) = &mut pieces.scores {
                scores.push(-10_000.0);
            }
        }
        let kind = if special {
            TokenType::Control
        } else {
            TokenType::UserDefined
        };
        if let Some(slot) = pieces.tokens.get_mut(i) {
            *slot = (text, kind);
        }
        if let Some(score) = pieces.scores.as_mut().and_then(|s| s.get_mut(i)) {
            *score = -1_000.0;
        }
    }
    let found = |text: &str| {
        let at = pieces.tokens.iter().position(|(t, _)| t == text)?;
        u32::try_from(at).ok()
    };
    let (bos, eos) = (side.id("bos", found), side.id("eos", found));
    let (unk, pad) = (side.id("unk", found), side.id("pad", found));
    pieces.bos = bos.or(pieces.bos);
    pieces.eos = eos.or(pieces.eos);
    pieces.unk = unk.or(pieces.unk);
    pieces.pad = pad.or(pieces.pad);
    // the defaults of transformers' LlamaTokenizer
    pieces.add_bos = side.flag("add_bos_token").unwrap_or(true);
    pieces.add_eos = side.flag("add_eos_token").unwrap_or(false);
    Ok(())
}

fn compact(value: &Value) -> Result<Vec<u8>, FormatError> {
    serde_json::to_vec(value).map_err(|e| refuse(e.to_string()).because(e))
}

fn pretty(value: &Value) -> Result<Vec<u8>, FormatError> {
    serde_json::to_vec_pretty(value).map_err(|e| refuse(e.to_string()).because(e))
}

/// The `tokenizer.json` that GGUF metadata carry; `None` if there is none.
fn gguf_json(metadata: &Metadata) -> Result<Option<&[u8]>, FormatError> {
    match metadata.get(HUGGINGFACE_JSON) {
        None => Ok(None),
        Some(MetaValue::String(bytes)) => Ok(Some(bytes)),
        Some(_) => Err(refuse("expected a string").in_tensor(HUGGINGFACE_JSON)),
    }
}

/// The tokenizer of GGUF metadata, carried or rebuilt; `None` if there is none.
fn gguf_parsed(metadata: &Metadata) -> Result<Option<Parsed>, FormatError> {
    if let Some(bytes) = gguf_json(metadata)? {
        let parsed = json::read(bytes).and_then(Parsed::new);
        return parsed.map(Some).map_err(|e| e.in_tensor(HUGGINGFACE_JSON));
    }
    match GgmlTokenizer::from_metadata(metadata)? {
        Some(ggml) => ggml.reading().and_then(Parsed::new).map(Some),
        None => Ok(None),
    }
}

/// The special tokens of GGUF metadata. What is added around a text is what the tokenizer does.
fn gguf_specials(metadata: &Metadata, inner: &Engine) -> Result<Specials, FormatError> {
    let (before, after) = huggingface::around(inner)?;
    let id = |name: &str| {
        let id = metadata
            .get(&format!("tokenizer.ggml.{name}_token_id"))?
            .as_u64()?;
        // llama.cpp writes 4294967295 for none
        u32::try_from(id).ok().filter(|id| *id != u32::MAX)
    };
    // llama.cpp's defaults for sentencepiece models
    let llama = metadata
        .get("tokenizer.ggml.model")
        .and_then(MetaValue::as_str)
        == Some("llama");
    let default = |id: u32| llama.then_some(id);
    Ok(Specials {
        bos: id("bos").or(before.first().copied()).or(default(1)),
        eos: id("eos").or(after.first().copied()).or(default(2)),
        unk: id("unknown").or(default(0)),
        pad: id("padding"),
        eot: id("eot"),
        add_bos: !before.is_empty(),
        add_eos: !after.is_empty(),
    })
}

/// Ids that GGUF metadata name as ends of a text.
fn gguf_stop(metadata: &Metadata, special: &Specials) -> Vec<u32> {
    let mut stop: Vec<u32> = special.eos.into_iter().collect();
    if let Some(MetaValue::Array(MetaArray::U32(ids))) = metadata.get(EOS_IDS) {
        stop.extend(ids.iter().take(64));
    }
    stop.extend(special.eot);
    stop.extend(end_of_message(metadata));
    stop
}

/// The token that ends a message, which llama.cpp stops at as well.
fn end_of_message(metadata: &Metadata) -> Option<u32> {
    let id = metadata.get("tokenizer.ggml.eom_token_id")?.as_u64()?;
    u32::try_from(id).ok().filter(|id| *id != u32::MAX)
}

/// All ids that end generation, each once, in this order: those named, then ends of turns.
fn with_ends_of_turns(inner: &Engine, named: Vec<u32>) -> Vec<u32> {
    let turns = END_OF_TURN.iter().filter_map(|t| inner.token_to_id(t));
    let mut stop = Vec::new();
    for id in named.into_iter().chain(turns) {
        if !stop.contains(&id) {
            stop.push(id);
        }
    }
    stop
}

/// What both give; `there` on another thread, if there is one to have.
fn beside<A, B: Send>(here: impl FnOnce() -> A, there: impl Fn() -> B + Sync) -> (A, B) {
    thread::scope(|scope| {
        let other = thread::Builder::new().name("tokenizer".to_owned());
        let other = other.spawn_scoped(scope, &there);
        let mine = here();
        let other = match other {
            Ok(other) => other.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => there(),
        };
        (mine, other)
    })
}

/// The `tokenizer.*` metadata of a checkpoint directory, for GGUF output with `vocab_size` rows:
/// `tokenizer.ggml.*` for every reader, the chat templates, and the whole `tokenizer.json`.
/// Empty if the directory has no tokenizer.
///
/// A tokenizer that `tokenizer.ggml.*` cannot express is refused, because readers other than this
/// one would tokenize differently without saying so.
pub fn tokenizer_to_gguf(
    dir: &Path,
    vocab_size: usize,
) -> Result<Vec<(String, MetaValue)>, FormatError> {
    tokenizer_to_gguf_with_notes(dir, vocab_size).map(|(entries, _)| entries)
}

/// As [`tokenizer_to_gguf`], with what readers of the file have to know.
#[allow(clippy::type_complexity)]
pub fn tokenizer_to_gguf_with_notes(
    dir: &Path,
    vocab_size: usize,
) -> Result<(Vec<(String, MetaValue)>, Vec<TokenizerNote>), FormatError> {
    let place = Place::Directory(dir);
    let Some(mut source) = Source::read(place)? else {
        return Ok((Vec::new(), vec![notes::no_tokenizer()]));
    };
    let mut notes = Vec::new();
    let needed = source.needed()?;
    let mut dropped = source.drop_tokens_beyond(vocab_size, place)?;
    if let Some((id, text)) = dropped.iter().find(|(id, _)| needed.contains(id)) {
        let text = pre_tokenizer::short(text);
        let what = format!(
            "token `{text}` has id {id}, the model has {vocab_size} rows (vocab_size), and texts \
             begin or end with it"
        );
        return Err(refuse(what)
            .hint(OTHER_MODEL)
            .in_file(&dir.join(TOKENIZER_JSON)));
    }
    let has_row = |(id, _): &(u32, String)| (*id as usize) < vocab_size;
    let (lost, without_row) = std::mem::take(&mut source.lost)
        .into_iter()
        .partition(has_row);
    dropped.extend::<Vec<_>>(without_row);
    if !dropped.is_empty() {
        notes.push(notes::without_row(&dropped, vocab_size));
    }
    notes.extend(notes::lost(&lost, &source.side.class));
    notes.extend(source.notes());
    let special = source.specials()?;
    let bytes = match (&source.pieces, source.is_changed) {
        (None, true) => source.bytes()?.into_owned(),
        _ => std::mem::take(&mut source.text).into_owned(),
    };
    let Source {
        parsed: Parsed { inner, value },
        side,
        pieces,
        ..
    } = source;
    let (ggml, bytes) = match pieces {
        Some(pieces) => {
            let bytes = pieces.to_json()?;
            let padded = pad_pieces(pieces, vocab_size);
            let padded = padded.map_err(|e| e.in_file(&dir.join(TOKENIZER_MODEL)))?;
            (padded, bytes)
        }
        None => {
            let ggml = huggingface::to_ggml(&value, &inner, &side, vocab_size)
                .map_err(|e| e.in_file(&dir.join(TOKENIZER_JSON)))?;
            (ggml, bytes)
        }
    };
    drop(value);
    let mut out = ggml.to_metadata();
    let ids = Specials {
        bos: ggml.bos,
        eos: ggml.eos,
        unk: ggml.unk,
        pad: ggml.pad,
        eot: ggml.eot,
        add_bos: ggml.add_bos,
        add_eos: ggml.add_eos,
    };
    let named = special_tokens::of_directory(&side, |text| inner.token_to_id(text).is_some());
    let by_ids = special_tokens::of_ids(&ids, side.templates.text().as_deref(), |id| {
        inner.id_to_token(id)
    });
    out.extend(special_tokens::entry(&named, &by_ids));
    let mut stop = Vec::new();
    for id in side.stop(special.eos) {
        if !stop.contains(&id) {
            stop.push(id);
        }
    }
    if stop.len() > 1 {
        out.push((EOS_IDS.into(), MetaValue::Array(MetaArray::U32(stop))));
    }
    out.extend(side.templates.to_gguf());
    out.push((HUGGINGFACE_JSON.into(), MetaValue::String(bytes)));
    Ok((out, notes))
}

fn pad_pieces(mut pieces: GgmlTokenizer, rows: usize) -> Result<GgmlTokenizer, FormatError> {
    let n = pieces.tokens.len();
    if n > rows {
        return Err(refuse(format!(
            "{n} tokens, the model has {rows} rows (vocab_size)"
        ))
        .hint(OTHER_MODEL));
    }
    pieces
        .tokens
        .extend((n..rows).map(|i| (ggml::padding(i), TokenType::Unused)));
    if let Some(scores) = &mut pieces.scores {
        scores.resize(rows, -10_000.0);
    }
    Ok(pieces)
}

/// The tokenizer side files of GGUF metadata, for Hugging Face output: name and bytes of
/// `tokenizer.json`, `tokenizer_config.json` (with the chat template), `special_tokens_map.json`,
/// `generation_config.json` and the files of several chat templates. Empty if the file has no tokenizer.
pub fn tokenizer_files_from_gguf(
    metadata: &Metadata,
) -> Result<Vec<(String, Vec<u8>)>, FormatError> {
    let Some(Parsed { inner, value }) = gguf_parsed(metadata)? else {
        return Ok(Vec::new());
    };
    let bytes = match gguf_json(metadata)? {
        Some(bytes) => bytes.to_vec(),
        None => match GgmlTokenizer::from_metadata(metadata)? {
            Some(ggml) => ggml.to_json()?,
            None => return Ok(Vec::new()),
        },
    };
    let special = gguf_specials(metadata, &inner)?;
    let templates = ChatTemplates::of_gguf(metadata)?;
    let spelled = |id| inner.id_to_token(id);
    let map = special_tokens::of_gguf(metadata, &special, templates.text().as_deref(), spelled)?;
    let mut decoder = Map::new();
    for token in value
        .get("added_tokens")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if let (Some(id), Some(fields)) = (token.get("id"), token.as_object()) {
            let fields = fields
                .iter()
                .filter(|(k, _)| *k != "id")
                .map(|(k, v)| (k.clone(), v.clone()));
            decoder.insert(id.to_string(), Value::Object(fields.collect()));
        }
    }
    let mut config = Map::new();
    config.insert("add_bos_token".into(), special.add_bos.into());
    config.insert("add_eos_token".into(), special.add_eos.into());
    config.insert("added_tokens_decoder".into(), Value::Object(decoder));
    config.extend(map.clone());
    if let Some(template) = templates.to_key() {
        config.insert("chat_template".into(), template.into());
    }
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());

    let mut stop: Vec<u32> = Vec::new();
    match (metadata.get(CONFIG_EOS_IDS), metadata.get(EOS_IDS)) {
        // the ids of the model's configuration; the tokenizer may know further ends of turns
        (Some(MetaValue::Array(MetaArray::U32(ids))), _) => stop.extend(ids),
        (_, Some(MetaValue::Array(MetaArray::U32(ids)))) => {
            stop.extend(special.eos.into_iter().chain(ids.iter().copied()));
        }
        _ => {
            let ends = [special.eos, special.eot, end_of_message(metadata)];
            stop.extend(ends.into_iter().flatten());
        }
    }
    let mut seen = Vec::new();
    stop.retain(|id| {
        !seen.contains(id) && {
            seen.push(*id);
            true
        }
    });
    let mut generation = Map::new();
    if let Some(id) = special.bos {
        generation.insert("bos_token_id".into(), id.into());
    }
    match stop.as_slice() {
        [] => {}
        [one] => drop(generation.insert("eos_token_id".into(), (*one).into())),
        many => drop(generation.insert("eos_token_id".into(), json!(many))),
    }
    if let Some(id) = special.pad {
        generation.insert("pad_token_id".into(), id.into());
    }
    let mut files = vec![
        ("tokenizer.json".into(), bytes),
        (
            "tokenizer_config.json".into(),
            pretty(&Value::Object(config))?,
        ),
        (
            "special_tokens_map.json".into(),
            pretty(&Value::Object(map))?,
        ),
        (
            "generation_config.json".into(),
            pretty(&Value::Object(generation))?,
        ),
    ];
    files.extend(templates.to_files());
    Ok(files)
}
