//! What decides nothing in the files of an open model.
//!
//! Invariant: nobody keeps a list of keys. Whether a key or a value counts is asked of the functions that
//! read it: a setting that may be absent, or another, without the network becoming another one decides
//! nothing. What belongs to the bytes alone (gaps, tails, spellings) the container and the packing say.

use super::dense::DenseMeaning;
use super::resolve::settle_activations;
use super::shaping::same_bits;
use super::{Checkpoint, Source};
use crate::config::Config;
use crate::family::{self, Quantization};
use crate::slot::Slot;
use crate::storage::{affine_module, values};
use bitnet_formats::{
    Container, Encoding, FormatError, GGUF_LAYOUT_KEY, Gguf, GgufEntry, JsonEntry, JsonScalar,
    MetaArray, MetaValue, PlainType, TensorFile, TensorInfo, Unread, UnreadBits, container_by_name,
    json_entries,
};
use serde_json::Value;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The files beside the weights whose JSON has a meaning.
const JSON_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];
/// Keys of JSON side files that say who wrote the file, and nothing about the model.
pub const WRITER_KEYS: [&str; 2] = ["transformers_version", "_from_model_config"];
/// GGUF keys that others than [`Config`] are made of, or that are compared one by one.
const COMPARED: [&str; 5] = ["tokenizer.", "split.", "prism.", "bitnet.", "adapter."];

impl Checkpoint {
    /// Bits of the model's files that no reader uses: each with its place and the reason. Weights that are
    /// read but of which not every bit can show (master weights) are not among them.
    ///
    /// # Errors
    /// Files that changed or vanished since they were opened.
    pub fn unread(&self) -> Result<Vec<Unread>, FormatError> {
        let mut all = match container_by_name(self.file.container) {
            Some(container) => container.unread(&self.file)?,
            None => Vec::new(),
        };
        self.unread_of_tensors(&mut all)?;
        if self.file.container == Gguf.name() {
            self.unread_of_gguf(&mut all)?;
        } else {
            self.unread_of_json(&mut all)?;
        }
        Ok(all)
    }

    /// Names bits in the file of one of its tensors.
    pub fn unread_at(
        &self,
        info: &TensorInfo,
        range: Range<u64>,
        bits: UnreadBits,
        why: &'static str,
    ) -> Unread {
        Unread {
            file: self.file.path_of(info).unwrap_or(&self.path).to_owned(),
            range,
            bits,
            place: info.name.clone(),
            why,
        }
    }

    fn unread_of_tensors(&self, all: &mut Vec<Unread>) -> Result<(), FormatError> {
        for source in self.linears() {
            if let Some((range, bits, why)) = source.storage.unread(source) {
                all.push(self.unread_at(&source.info, range, bits, why));
            }
        }
        for source in self.sources.values() {
            all.extend(self.unread_of_values(source)?);
        }
        let mut used: Vec<&TensorInfo> = self
            .linears()
            .flat_map(|source| &source.beside)
            .chain(self.sources.values().map(Source::info))
            .collect();
        used.sort_by_key(|u| (u.part, u.offset));
        for info in self.file.tensors() {
            let end = info.offset.saturating_add(info.len.max(1));
            let before =
                |offset: u64| used.partition_point(|u| (u.part, u.offset) < (info.part, offset));
            let parts = used
                .get(before(info.offset)..before(end))
                .unwrap_or_default();
            if parts.is_empty() {
                all.extend(self.unread_of_leftover(info)?);
                continue;
            }
            let mut at = info.offset;
            let ends = parts
                .iter()
                .map(|u| (u.offset, u.offset.saturating_add(u.len)));
            for (start, end) in ends.chain([(info.offset.saturating_add(info.len), 0)]) {
                if at < start {
                    let why = "place for a scale that no matrix of the tensor has";
                    all.push(self.unread_at(info, at..start, UnreadBits::All, why));
                }
                at = at.max(end);
            }
        }
        Ok(())
    }

    /// Bits of a vector without which the values made of it would be the same.
    fn unread_of_values(&self, source: &Source) -> Result<Option<Unread>, FormatError> {
        let Source::Dense { info, form, .. } = source else {
            return Ok(None);
        };
        let (Encoding::Plain(plain), [_]) = (info.encoding, &info.shape[..]) else {
            return Ok(None);
        };
        let read = || self.file.read(info);
        let (masks, why) = match (form.shaping, form.meaning == DenseMeaning::PlusOne) {
            (Some(shaping), _) => (
                shaping.unread(plain, &read()?)?,
                "below what f32 shows of a decay rate",
            ),
            (None, true) => (
                Some(unread_of_gains(plain, &read()?)?),
                "below what f32 shows of 1 and the number",
            ),
            (None, false) => return Ok(None),
        };
        let masks = masks.filter(|masks| masks.iter().any(|mask| *mask != 0));
        let range = info.offset..info.offset.saturating_add(info.len);
        Ok(masks.map(|masks| self.unread_at(info, range, UnreadBits::Masks(masks), why)))
    }

    /// Tensors that fill no slot and were let pass. The copy of a tied head is compared with its original.
    fn unread_of_leftover(&self, info: &TensorInfo) -> Result<Option<Unread>, FormatError> {
        let range = info.offset..info.offset.saturating_add(info.len);
        if info.name == family::ROPE_FREQUENCIES {
            let Encoding::Plain(plain @ PlainType::F32) = info.encoding else {
                return Ok(None);
            };
            let divisors = values::small_values(plain, &self.file.read(info)?)?;
            let masks = family::unread_rope_frequencies(&self.config, &divisors);
            let why = "below what writers of these divisors agree on";
            return Ok(Some(self.unread_at(
                info,
                range,
                UnreadBits::Masks(masks),
                why,
            )));
        }
        let is_buffer = info.name.ends_with(".rotary_emb.inv_freq");
        let why = "a buffer that is made from the configuration";
        Ok(is_buffer.then(|| self.unread_at(info, range, UnreadBits::All, why)))
    }

    // GGUF metadata

    fn unread_of_gguf(&self, all: &mut Vec<Unread>) -> Result<(), FormatError> {
        for (number, part) in self.file.parts.iter().enumerate() {
            let entries =
                Gguf::entries(&**part, &self.limits).map_err(|e| e.in_file(part.path()))?;
            // later parts of a split model repeat at most what the first one says
            let mut network = (number == 0).then(|| GgufNetwork::of(self));
            for entry in &entries {
                let found = match &mut network {
                    Some(network) => network.unread(entry),
                    None if COMPARED.iter().any(|c| entry.key.starts_with(c)) => continue,
                    None => Decides::NOTHING,
                };
                found.name(part.path(), entry, all);
            }
        }
        Ok(())
    }

    // JSON files

    fn unread_of_json(&self, all: &mut Vec<Unread>) -> Result<(), FormatError> {
        let Some(directory) = &self.directory else {
            return Ok(());
        };
        let mut texts = Vec::new();
        for name in JSON_FILES {
            if let Some(bytes) = self.side_file(name)? {
                texts.push((directory.join(name), name, bytes));
            }
        }
        for (path, name, text) in &texts {
            all.push(Unread {
                file: path.clone(),
                range: 0..text.len() as u64,
                bits: UnreadBits::JsonSpelling,
                place: String::new(),
                why: "another spelling of the same JSON",
            });
            let entries = json_entries(text);
            if *name == "generation_config.json" {
                let writers = entries
                    .iter()
                    .filter(|e| WRITER_KEYS.contains(&e.path.as_str()));
                let mut named = |e: &JsonEntry| Decides::PRESENCE.name_json(path, e, all);
                writers.for_each(&mut named);
            }
            if *name == "config.json" {
                let generation = texts.iter().find(|t| t.1 == "generation_config.json");
                let generation = generation.and_then(|t| family::parse_json(&t.2).ok());
                let tensors_say_it = self.linears().all(|linear| linear.storage.marks_itself());
                let network = JsonNetwork::of(text, generation, tensors_say_it);
                for entry in &entries {
                    network.unread(entry).name_json(path, entry, all);
                }
            }
        }
        Ok(())
    }
}

/// Of numbers `w` that mean `1 + w`, the bits without which the gains would be the same: one mask per byte.
fn unread_of_gains(plain: PlainType, bytes: &[u8]) -> Result<Vec<u8>, FormatError> {
    let gain = |bytes: &[u8]| -> Result<Option<u32>, FormatError> {
        let values = values::small_values(plain, bytes)?;
        Ok(values.first().map(|w| (1.0 + w).to_bits()))
    };
    let mut masks = Vec::with_capacity(bytes.len());
    for number in bytes.chunks(plain.size().max(1)) {
        let is = gain(number)?;
        masks.extend(same_bits(number, |flipped| gain(flipped) == Ok(is)));
    }
    Ok(masks)
}

/// What a setting decides.
#[derive(Debug, Clone, Copy)]
struct Decides {
    /// Whether without the key the network is another.
    key: bool,
    /// Whether with another value it is.
    value: bool,
}

impl Decides {
    const NOTHING: Self = Self {
        key: false,
        value: false,
    };
    /// The key counts, its value does not.
    const PRESENCE: Self = Self {
        key: true,
        value: false,
    };
    const ALL: Self = Self {
        key: true,
        value: true,
    };

    const KEY: &'static str = "without it readers take the same value";
    const VALUE: &'static str = "a setting that decides nothing in the network";

    fn why(self) -> &'static str {
        match self.value {
            true => Self::KEY,
            false => Self::VALUE,
        }
    }

    fn name(self, file: &Path, entry: &GgufEntry, all: &mut Vec<Unread>) {
        let mut push = |range: Range<u64>, bits| {
            if !range.is_empty() {
                all.push(Unread {
                    file: file.to_owned(),
                    range,
                    bits,
                    place: entry.key.clone(),
                    why: self.why(),
                });
            }
        };
        if !self.key {
            push(entry.key_range.clone(), UnreadBits::All);
        }
        if !self.value {
            push(entry.value_range.clone(), UnreadBits::All);
            if entry.kind_rivals != 0 {
                let kind = entry.kind_at..entry.kind_at.saturating_add(1);
                push(kind, UnreadBits::Mask(entry.kind_rivals));
            }
        }
    }

    fn name_json(self, file: &Path, entry: &JsonEntry, all: &mut Vec<Unread>) {
        let key = entry.key.clone().filter(|_| !self.key);
        let value = Some(entry.value.clone()).filter(|_| !self.value);
        for range in key.into_iter().chain(value) {
            all.push(Unread {
                file: PathBuf::from(file),
                range: range.start as u64..range.end as u64,
                bits: UnreadBits::All,
                place: entry.path.clone(),
                why: self.why(),
            });
        }
    }
}

/// What the metadata of a GGUF file make of it.
type GgufReading = (&'static str, Config, Option<usize>);

/// A GGUF header whose metadata can be tried otherwise.
struct GgufNetwork {
    header: TensorFile,
    /// Whether nothing but numbers that already are trits times scales is in the file.
    numbers: bool,
    is: Option<GgufReading>,
}

impl GgufNetwork {
    fn of(checkpoint: &Checkpoint) -> Self {
        let mut header = checkpoint.file.without_bytes();
        // tables of tokens are long, and no setting of the network
        let is_table = |value: &MetaValue| matches!(value, MetaValue::Array(a) if a.is_text());
        header
            .metadata
            .0
            .retain(|(key, value)| !(key.starts_with("tokenizer.") && is_table(value)));
        let mut network = Self {
            numbers: checkpoint.sources.values().all(Source::is_numbers),
            header,
            is: None,
        };
        network.is = network.read();
        network
    }

    fn read(&self) -> Option<GgufReading> {
        let family = family::family_of_gguf(&self.header).ok()?;
        let mut config = (family.gguf_config)(&self.header).ok()?;
        settle_activations(&self.header, family, self.numbers, &mut config);
        let declared = family::declared_vocab_size(&self.header);
        config.eos_token_ids.sort_unstable();
        // an absent size is the one of the tensors
        let declared = declared.filter(|n| *n != config.vocab_size);
        Some((family.name, config, declared))
    }

    fn unread(&mut self, entry: &GgufEntry) -> Decides {
        let key = entry.key.as_str();
        if key == GGUF_LAYOUT_KEY {
            return Decides {
                key: !self.layout_goes_without_saying(),
                value: true,
            };
        }
        if key == "general.alignment" {
            // readers take 32
            let usual = self.header.metadata.get(key).and_then(MetaValue::as_u64) == Some(32);
            return Decides {
                key: !usual,
                value: true,
            };
        }
        let place = self.header.metadata.0.iter().position(|(k, _)| k == key);
        let Some(place) = place.filter(|_| !COMPARED.iter().any(|c| key.starts_with(c))) else {
            return Decides::ALL;
        };
        let own = self.header.metadata.0.remove(place);
        let without = self.read() == self.is;
        let others = alternatives(&own.1);
        let mut same = !others.is_empty();
        self.header.metadata.0.insert(place, own.clone());
        let put = |network: &mut Self, value: MetaValue| {
            if let Some((_, stored)) = network.header.metadata.0.get_mut(place) {
                *stored = value;
            }
        };
        for other in others {
            put(self, other);
            same = same && self.read() == self.is;
        }
        put(self, own.1);
        Decides {
            key: !without,
            value: !same,
        }
    }

    /// Whether the layout that the file records is the one that its shapes have anyway.
    fn layout_goes_without_saying(&self) -> bool {
        self.header.tensors().iter().all(|info| {
            let (Encoding::Ternary(packing), [rows, cols]) = (info.encoding, &info.shape[..])
            else {
                return true;
            };
            let stem = |name: &'static str| name.split('-').next();
            let usual = bitnet_formats::PACKINGS.iter().find(|usual| {
                usual.is_writable()
                    && usual.gguf_type() == packing.gguf_type()
                    && stem(usual.name()) == stem(packing.name())
            });
            usual.is_some_and(|usual| {
                usual.parameters(*rows, *cols) == packing.parameters(*rows, *cols)
            })
        })
    }
}

/// Other values of the same type and size.
fn alternatives(value: &MetaValue) -> Vec<MetaValue> {
    match value {
        MetaValue::U32(v) => [v ^ 1, v.wrapping_add(16), !v, 0]
            .map(MetaValue::U32)
            .into(),
        MetaValue::I32(v) => [v ^ 1, v.wrapping_add(16), !v, 0]
            .map(MetaValue::I32)
            .into(),
        MetaValue::U64(v) => [v ^ 1, v.wrapping_add(16), !v, 0]
            .map(MetaValue::U64)
            .into(),
        MetaValue::F32(v) => [v * 1.5 + 1.0, -v, 0.0].map(MetaValue::F32).into(),
        MetaValue::F64(v) => [v * 1.5 + 1.0, -v, 0.0].map(MetaValue::F64).into(),
        MetaValue::Bool(v) => vec![MetaValue::Bool(!v)],
        MetaValue::String(text) => {
            let mut longer = text.clone();
            longer.push(b'~');
            vec![MetaValue::String(longer), MetaValue::text("~")]
        }
        MetaValue::Array(MetaArray::U32(v)) => {
            let other = v.iter().map(|v| v ^ 1).collect();
            vec![MetaValue::Array(MetaArray::U32(other))]
        }
        _ => Vec::new(),
    }
}

/// What the JSON files make of a model.
#[derive(PartialEq)]
struct JsonReading {
    family: &'static str,
    config: Config,
    /// `None` where the tensors themselves say what they are.
    quantization: Option<Quantization>,
    says_activations: bool,
    forms: Vec<Option<family::AffineForm>>,
}

/// A `config.json` that can be tried otherwise.
struct JsonNetwork<'a> {
    text: &'a [u8],
    generation: Option<Value>,
    /// Whether the tensors say what the linears are, whatever `quantization_config` says.
    tensors_say_it: bool,
    is: Option<JsonReading>,
}

impl<'a> JsonNetwork<'a> {
    fn of(text: &'a [u8], generation: Option<Value>, tensors_say_it: bool) -> Self {
        let mut network = Self {
            text,
            generation,
            tensors_say_it,
            is: None,
        };
        network.is = network.read(text);
        network
    }

    fn read(&self, text: &[u8]) -> Option<JsonReading> {
        let (json, _) = family::language_model(family::parse_json(text).ok()?);
        let family = family::family_of_config(&json).ok()?;
        let mut config = (family.config)(&json).ok()?;
        if let Some(generation) = &self.generation {
            family::add_generation_config(&mut config, generation).ok()?;
        }
        config.eos_token_ids.sort_unstable();
        let quantization = family.quantization(&json).ok()?;
        let slots = match quantization {
            Quantization::Affine { .. } => config.slots(),
            _ => Vec::new(),
        };
        let quantization = Some(quantization).filter(|_| !self.tensors_say_it);
        let form = |slot: &Slot| {
            let name = (family.tensor_name)(*slot);
            family::affine_form(&json, affine_module(&name), !slot.is_ternary()).ok()
        };
        Some(JsonReading {
            family: family.name,
            quantization,
            says_activations: family::affine_says_activations(&json),
            forms: slots.iter().map(form).collect::<Option<_>>()?,
            config,
        })
    }

    /// Whether the network is the same with another text in a place.
    fn is_same_with(&self, place: &Range<usize>, other: &[u8]) -> bool {
        let (Some(before), Some(after)) =
            (self.text.get(..place.start), self.text.get(place.end..))
        else {
            return false;
        };
        self.is.is_some() && self.read(&[before, other, after].concat()) == self.is
    }

    fn unread(&self, entry: &JsonEntry) -> Decides {
        let key = entry.key.as_ref();
        // no key anybody knows
        let without = key.is_some_and(|key| self.is_same_with(key, b"~~"));
        let Some(own) = self.text.get(entry.value.clone()) else {
            return Decides::ALL;
        };
        let others: Vec<Vec<u8>> = match entry.scalar {
            Some(JsonScalar::String) => {
                let longer = [own.strip_suffix(b"\"").unwrap_or(own), b"~\""].concat();
                vec![longer, b"\"~\"".to_vec()]
            }
            Some(JsonScalar::Number) => {
                let number: Option<f64> = serde_json::from_slice(own).ok();
                let number = number.unwrap_or_default();
                let whole = own.iter().all(u8::is_ascii_digit);
                let others = match whole {
                    true => [number + 1.0, number * 10.0 + 7.0, 0.0].map(|n| format!("{n}")),
                    false => [number + 1.0, number * 1.5, 0.0].map(|n| format!("{n:e}")),
                };
                others.map(String::into_bytes).into()
            }
            Some(JsonScalar::Literal) => {
                [&b"null"[..], b"true", b"false"].map(<[u8]>::to_vec).into()
            }
            // what has parts is asked about these
            None => Vec::new(),
        };
        if entry.path.starts_with("auto_map") {
            // of the names of classes only the last part is read, and another one is refused
            return Decides {
                key: !without,
                value: false,
            };
        }
        let same = |other: &Vec<u8>| self.is_same_with(&entry.value, other);
        Decides {
            key: !without,
            value: others.is_empty() || !others.iter().all(same),
        }
    }
}
