//! What two files must agree on to cut text alike: the normal form of a tokenizer, in parts that are
//! told apart.
//!
//! Invariant: taken from the one `tokenizer.json` that every source becomes, with whatever another
//! spelling of the same says brought to one; so a checkpoint and its GGUF file agree where the
//! conversion kept everything. `formats/certificate.md` defines every byte.

use super::bpe::Bpe;
use super::ggml::{GgmlTokenizer, Model, TokenType, padding};
use super::huggingface::{Specials, around, normalizer_word, space_prefix, typed_tokens};
use super::place::Place;
use super::templates::ChatTemplates;
use super::{
    Decoding, HUGGINGFACE_JSON, Parsed, Source, gguf_parsed, gguf_specials, gguf_stop,
    pre_tokenizer, refuse, special_tokens, with_ends_of_turns,
};
use bitnet_formats::hex;
use bitnet_formats::{FormatError, Metadata};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Behind the word of a pre-tokenizer whose text is first normalized to NFC.
const NFC: &str = " nfc";

/// The optional part of a digest.
pub const TEMPLATE_TOKENS: &str = "template_tokens";

/// A tokenizer in normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerDigest {
    /// Ids that have a token.
    pub tokens: usize,
    /// Of ids, kinds and texts, lower-case hex.
    pub vocabulary_sha256: String,
    /// Of the merges, best first.
    pub merges_sha256: String,
    /// Of the tokens that take spaces around them along, or that only whole words are.
    pub added_tokens_sha256: String,
    /// How text is cut, in a word; `sha256:…` of rules that have none.
    pub pre_tokenizer: String,
    /// Whether a piece that is a token needs no merges.
    pub ignore_merges: bool,
    /// How tokens become text, in a word.
    pub decoder: String,
    /// Put in front of a text.
    pub prefix_token_ids: Vec<u32>,
    /// Put behind a text.
    pub suffix_token_ids: Vec<u32>,
    /// Begin of text.
    pub bos_token_id: Option<u32>,
    /// End of text.
    pub eos_token_id: Option<u32>,
    /// What ends generation, ascending.
    pub stop_token_ids: Vec<u32>,
    /// What the chat template prints for `bos_token` and `eos_token`, where that is not the text of
    /// these ids.
    pub template_tokens: Option<(String, String)>,
}

impl TokenizerDigest {
    /// Of the tokenizer of a checkpoint directory; `None` if there is none.
    ///
    /// # Errors
    /// A tokenizer that [`super::Tokenizer`] refuses as well.
    pub fn of_directory(dir: &Path) -> Result<Option<Self>, FormatError> {
        Self::of_place(Place::Directory(dir))
    }

    /// Of the tokenizer in files that are about to be written; `None` if there is none.
    ///
    /// # Errors
    /// As [`Self::of_directory`].
    pub fn of_files(files: &[(String, Vec<u8>)]) -> Result<Option<Self>, FormatError> {
        Self::of_place(Place::Written(files))
    }

    fn of_place(place: Place<'_>) -> Result<Option<Self>, FormatError> {
        let Some(source) = Source::read(place)? else {
            return Ok(None);
        };
        let special = source.specials()?;
        let stop = source.side.stop(special.eos);
        let inner = &source.parsed.inner;
        let exists = |text: &str| inner.token_to_id(text).is_some();
        let named = special_tokens::of_directory(&source.side, exists);
        let template = source.side.templates.text();
        let spelled = |id| inner.id_to_token(id);
        let printed = special_tokens::printed(&named, &special, template.as_deref(), spelled);
        drop(template);
        let digest = Self::of_parsed(source.parsed, &special, stop)?;
        Ok(Some(Self {
            template_tokens: printed,
            ..digest
        }))
    }

    /// Of the tokenizer of a GGUF file; `None` if there is none.
    ///
    /// # Errors
    /// As [`Self::of_directory`].
    pub fn of_gguf(metadata: &Metadata) -> Result<Option<Self>, FormatError> {
        let Some(parsed) = gguf_parsed(metadata)? else {
            return Ok(None);
        };
        let special = gguf_specials(metadata, &parsed.inner)?;
        let stop = gguf_stop(metadata, &special);
        let templates = ChatTemplates::of_gguf(metadata)?;
        let template = templates.text();
        let template = template.as_deref();
        let spelled = |id| parsed.inner.id_to_token(id);
        let named = special_tokens::of_gguf(metadata, &special, template, spelled)?;
        let printed = special_tokens::printed(&named, &special, template, spelled);
        let digest = Self::of_parsed(parsed, &special, stop)?;
        Ok(Some(Self {
            template_tokens: printed,
            ..digest
        }))
    }

    fn of_parsed(parsed: Parsed, special: &Specials, stop: Vec<u32>) -> Result<Self, FormatError> {
        let Parsed { inner, value } = parsed;
        let flag = |key: &str| {
            let flag = value.pointer(&format!("/model/{key}"));
            flag.and_then(Value::as_bool).unwrap_or(false)
        };
        let (bytes, ignore_merges) = (flag("byte_fallback"), flag("ignore_merges"));
        let rule = |key: &str| value.get(key).unwrap_or(&Value::Null);
        let normalizer = rule("normalizer");
        let (prefix_token_ids, suffix_token_ids) = around(&inner)?;
        let mut stop_token_ids = with_ends_of_turns(&inner, stop);
        stop_token_ids.sort_unstable();

        let mut flags = Sha256::new();
        for (id, token) in inner.added_tokens() {
            let bits = u8::from(token.single_word)
                | u8::from(token.lstrip) << 1
                | u8::from(token.rstrip) << 2
                | u8::from(token.normalized && !normalizer.is_null()) << 3;
            if bits != 0 {
                flags.update(id.to_le_bytes());
                flags.update([bits]);
            }
        }

        let mut words = Words::default();
        let tokens = typed_tokens(&inner);
        for (id, text, kind) in &tokens {
            words.token(*id, text, *kind);
        }
        let first = tokens.first().filter(|(id, ..)| *id == 0);
        let first = first.map_or("", |(_, text, _)| *text);
        Ok(Self {
            tokens: tokens.len(),
            vocabulary_sha256: words.finish(),
            merges_sha256: merges_of(inner.bpe()),
            added_tokens_sha256: hex(&flags.finalize()),
            pre_tokenizer: rules(
                normalizer,
                rule("pre_tokenizer"),
                bytes,
                ignore_merges,
                first,
            )?,
            ignore_merges,
            decoder: match Decoding::from_json(&value) {
                Ok(decoding) => decoding.word().to_owned(),
                Err(_) => canonical_sha256(rule("decoder"))?,
            },
            prefix_token_ids,
            suffix_token_ids,
            bos_token_id: special.bos,
            eos_token_id: special.eos,
            stop_token_ids,
            template_tokens: None,
        })
    }

    /// Its parts under their names in a certificate; null for [`Self::template_tokens`] that are absent.
    pub fn parts(&self) -> [(&'static str, Value); 13] {
        let printed = self.template_tokens.as_ref();
        let printed = printed.map(|(bos, eos)| json!({"bos_token": bos, "eos_token": eos}));
        [
            (TEMPLATE_TOKENS, json!(printed)),
            ("tokens", json!(self.tokens)),
            ("vocabulary_sha256", json!(self.vocabulary_sha256)),
            ("merges_sha256", json!(self.merges_sha256)),
            ("added_tokens_sha256", json!(self.added_tokens_sha256)),
            ("pre_tokenizer", json!(self.pre_tokenizer)),
            ("ignore_merges", json!(self.ignore_merges)),
            ("decoder", json!(self.decoder)),
            ("prefix_token_ids", json!(self.prefix_token_ids)),
            ("suffix_token_ids", json!(self.suffix_token_ids)),
            ("bos_token_id", json!(self.bos_token_id)),
            ("eos_token_id", json!(self.eos_token_id)),
            ("stop_token_ids", json!(self.stop_token_ids)),
        ]
    }

    /// Where the `tokenizer.ggml.*` keys of a file that also carries a whole `tokenizer.json` say
    /// something else than this: key, expected, found. Readers that know these keys alone would
    /// cut text differently.
    ///
    /// # Errors
    /// Keys that cannot be read.
    pub fn contradicted_by_gguf_keys(
        &self,
        metadata: &Metadata,
    ) -> Result<Vec<(&'static str, String, String)>, FormatError> {
        if metadata.get(HUGGINGFACE_JSON).is_none() {
            return Ok(Vec::new());
        }
        let Some(ggml) = GgmlTokenizer::from_metadata(metadata)? else {
            return Ok(Vec::new());
        };
        let mut words = Words::default();
        for (id, (text, kind)) in ggml.tokens.iter().enumerate() {
            let kind = match kind {
                TokenType::Unused if *text == padding(id) => continue,
                // `tokenizer.json` has no word for these two
                TokenType::Unknown => TokenType::Control,
                TokenType::Unused => TokenType::Normal,
                TokenType::UserDefined if ggml.is_sentencepiece() && text.contains('▁') => {
                    TokenType::Normal
                }
                other => *other,
            };
            words.token(u32::try_from(id).unwrap_or(u32::MAX), text, kind);
        }
        let first = ggml.tokens.first().map_or("", |(text, _)| text.as_str());
        let (normalizer, pre) = ggml.rules();
        let ignores = matches!(ggml.model, Model::ByteLevel(row) if row.ignore_merges);
        let word = rules(&normalizer, &pre, ggml.has_bytes(), ignores, first)?;
        let merges = ggml.merges_or_derived()?;
        let text = |id: u32| ggml.tokens.get(id as usize).map_or("", |(text, _)| text);
        // llama.cpp normalizes nothing, whatever the word
        let cut = |word: &str| word.trim_end_matches(NFC).to_owned();
        let mut all = vec![
            (
                "tokenizer.ggml.tokens",
                self.vocabulary_sha256.clone(),
                words.finish(),
            ),
            (
                "tokenizer.ggml.merges",
                self.merges_sha256.clone(),
                merges_sha256(
                    merges
                        .iter()
                        .map(|(left, right)| (text(*left), text(*right))),
                ),
            ),
            ("tokenizer.ggml.pre", cut(&self.pre_tokenizer), cut(&word)),
        ];
        all.retain(|(_, expected, found)| expected != found);
        for (key, expected, found) in [
            (
                "tokenizer.ggml.add_bos_token",
                !self.prefix_token_ids.is_empty(),
                ggml.add_bos,
            ),
            (
                "tokenizer.ggml.add_eos_token",
                !self.suffix_token_ids.is_empty(),
                ggml.add_eos,
            ),
        ] {
            if metadata.get(key).is_some() && expected != found {
                all.push((key, expected.to_string(), found.to_string()));
            }
        }
        if let Some(at) = ggml.first_score_out_of_order(&merges) {
            let (expected, found) = ("the order of the merges", format!("another at token {at}"));
            all.push(("tokenizer.ggml.scores", expected.to_owned(), found));
        }
        Ok(all)
    }
}

/// sha256 of the bytes of chat templates: of the default one, and of the further ones by name.
pub type TemplateHashes = (Option<String>, BTreeMap<String, String>);

impl ChatTemplates {
    /// Of the templates in files that are about to be written.
    ///
    /// # Errors
    /// As [`Self::of_directory`].
    pub fn of_files(files: &[(String, Vec<u8>)]) -> Result<Self, FormatError> {
        let place = Place::Written(files);
        Self::of_place(place, &place.json("tokenizer_config.json")?)
    }

    /// What a certificate says of the templates.
    pub fn hashes(&self) -> TemplateHashes {
        let named = self.named().iter();
        let named = named.map(|(name, text)| (name.clone(), template_sha256(text)));
        (
            self.default_template().map(template_sha256),
            named.collect(),
        )
    }
}

fn template_sha256(template: &str) -> String {
    hex(&Sha256::digest(template.as_bytes()))
}

/// The vocabulary as it is hashed.
#[derive(Default)]
struct Words(Sha256);

impl Words {
    /// The next token; ids ascend.
    fn token(&mut self, id: u32, text: &str, kind: TokenType) {
        self.0.update(id.to_le_bytes());
        self.0.update([kind as u8]);
        put_text(&mut self.0, text);
    }

    fn finish(self) -> String {
        hex(&self.0.finalize())
    }
}

fn put_text(digest: &mut Sha256, text: &str) {
    // no text is that long: the file it is of is bounded
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    digest.update(len.to_le_bytes());
    digest.update(text.as_bytes());
}

fn merges_of(bpe: &Bpe) -> String {
    let text = |id| bpe.words().text(id).unwrap_or_default();
    let merges = bpe.merges().iter();
    merges_sha256(merges.map(|&[left, right, _]| (text(left), text(right))))
}

fn merges_sha256<'t>(merges: impl Iterator<Item = (&'t str, &'t str)>) -> String {
    let mut digest = Sha256::new();
    for (left, right) in merges {
        put_text(&mut digest, left);
        put_text(&mut digest, right);
    }
    hex(&digest.finalize())
}

/// How text is cut, in a word.
fn rules(
    normalizer: &Value,
    pre: &Value,
    bytes: bool,
    ignore_merges: bool,
    first: &str,
) -> Result<String, FormatError> {
    let word = if bytes {
        let both = json!({"normalizer": normalizer, "pre_tokenizer": pre});
        space_prefix(&both).map(|prefix| sentencepiece_word(prefix).to_owned())
    } else {
        let row = pre_tokenizer::from_json(pre, ignore_merges, first).ok();
        match (row, normalizer_word(normalizer)) {
            (Some(row), Some("nfc")) => Some(format!("{}{NFC}", row.name)),
            (Some(row), Some(_)) => Some(row.name.to_owned()),
            _ => None,
        }
    };
    match word {
        Some(word) => Ok(word),
        None => canonical_sha256(&json!([normalizer, pre])),
    }
}

fn sentencepiece_word(prefix: bool) -> &'static str {
    match prefix {
        true => "sentencepiece",
        false => "sentencepiece no-prefix",
    }
}

impl Decoding {
    fn word(self) -> &'static str {
        match self {
            Self::ByteLevel => "byte-level",
            Self::SentencePiece { strip } => sentencepiece_word(strip),
            Self::Plain => "plain",
        }
    }
}

/// Rules that have no word, by the hash of their RFC 8785 form.
fn canonical_sha256(value: &Value) -> Result<String, FormatError> {
    let bytes =
        serde_json_canonicalizer::to_vec(value).map_err(|e| refuse(e.to_string()).because(e))?;
    Ok(format!("sha256:{}", hex(&Sha256::digest(&bytes))))
}
