//! The keys `prism.hadamard.*`, wherever they come from.
//!
//! Invariant: every refusal names the key as the file spells it, what was expected and what was found.

use super::{AXIS, TRANSFORM};
use crate::config::Config;
use crate::rotation::{NOT_WHOLE, ROTATION_KEYS, Rotation};
use crate::row_order::TiledHeads;
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{ErrorCode, FormatError, MetaArray, MetaValue, Metadata};
use std::collections::{BTreeMap, BTreeSet};

/// Every key of the contract, behind [`ROTATION_KEYS`].
const KNOWN: [&str; 11] = [
    "version",
    "block_size",
    "transform",
    "axis",
    "sign_mode",
    "sign_widths",
    "sign_values",
    "weight_names",
    "inverse_weight_names",
    "gdn_v_grouped",
    "tied_output",
];

/// How a file names the matrices of its network.
pub(super) struct Names<'a> {
    /// Places by name.
    pub slots: BTreeMap<String, Vec<Slot>>,
    /// Whether the file has a tensor of a name.
    pub is_there: &'a dyn Fn(&str) -> bool,
    /// The name of the embeddings.
    pub embeddings: String,
    /// The name of the output head.
    pub head: String,
    /// Whether the file has an output head beside the embeddings.
    pub has_own_head: bool,
    /// Whether value heads of a Gated DeltaNet are tiled over the key heads unless the keys say otherwise.
    pub tiles_values: bool,
}

/// Whether the columns of a matrix are value heads of a Gated DeltaNet, for which there are two orders.
pub(super) fn has_two_orders(config: &Config, slot: Slot) -> bool {
    let delta = config.hybrid.as_ref().map(|hybrid| hybrid.delta);
    let tiled = delta.and_then(|delta| TiledHeads::of(&delta, 0, delta.value_dim));
    matches!(slot, Slot::Layer(_, LayerSlot::OutProj)) && tiled.is_some()
}

/// The keys of a rotation, and how the file spells the place of each.
pub(super) struct Keys {
    metadata: Metadata,
    place: fn(&str) -> String,
}

impl Keys {
    pub(super) fn new(metadata: Metadata, place: fn(&str) -> String) -> Self {
        Self { metadata, place }
    }

    /// The rotation that the keys declare.
    pub(super) fn read(&self, names: &Names<'_>, config: &Config) -> Result<Rotation, FormatError> {
        self.refuse_unknown_keys()?;
        let version = self.number("version")?;
        if !(1..=2).contains(&version) {
            return Err(self.unknown("version", "1 or 2"));
        }
        for (key, known) in [("transform", TRANSFORM), ("axis", AXIS)] {
            if self.text(key) != Some(known) {
                return Err(self.unknown(key, known));
            }
        }
        let block_size = usize::try_from(self.number("block_size")?).unwrap_or(0);
        if !block_size.is_power_of_two() {
            return Err(self.unknown("block_size", "a power of two"));
        }
        let signs = match self.text("sign_mode") {
            Some("identity") => self.no_signs()?,
            Some("explicit") => self.signs(block_size)?,
            _ => return Err(self.unknown("sign_mode", "identity or explicit")),
        };
        let rotation = Rotation {
            block_size,
            signs,
            folded: self.folded(names)?,
            embeddings: self.inverse(names)?,
            tiled_values: false,
        };
        self.check_output(version, &rotation, names)?;
        let grouped = self.flag("gdn_v_grouped")?;
        // where both orders are one, nothing is tiled
        let tiled = |slot: &Slot| names.tiles_values && has_two_orders(config, *slot);
        let rotation = Rotation {
            tiled_values: !grouped && rotation.folded.iter().any(tiled),
            ..rotation
        };
        config.check_rotation(&rotation)?;
        Ok(rotation)
    }

    fn refuse_unknown_keys(&self) -> Result<(), FormatError> {
        for (key, _) in &self.metadata.0 {
            let name = key.strip_prefix(ROTATION_KEYS).unwrap_or(key);
            if !KNOWN.contains(&name) {
                return Err(self.unknown(name, "no such key"));
            }
        }
        Ok(())
    }

    /// Matrices that multiply rotated inputs.
    fn folded(&self, names: &Names<'_>) -> Result<BTreeSet<Slot>, FormatError> {
        const KEY: &str = "weight_names";
        let list = self.names(KEY)?;
        if list.is_empty() {
            return Err(self.contradiction(KEY, "the name of a weight at least"));
        }
        let mut folded = BTreeSet::new();
        for name in list {
            let slots = names.slots.get(&name);
            let slot = slots.and_then(|slots| slots.first().copied());
            let is_kind = slot.is_some_and(|slot| slot.is_ternary() || slot == Slot::OutputHead);
            let expected = match (slot, is_kind, (names.is_there)(&name)) {
                (Some(slot), true, true) => {
                    folded.extend(slots.into_iter().flatten().copied().chain([slot]));
                    continue;
                }
                (_, false, true) => {
                    format!("matrices of a layer or the output head only, not `{name}`,")
                }
                _ => format!("names of tensors that are there, not `{name}`,"),
            };
            return Err(self.contradiction(KEY, &expected));
        }
        Ok(folded)
    }

    /// Whether rows of the embeddings are stored rotated.
    fn inverse(&self, names: &Names<'_>) -> Result<bool, FormatError> {
        const KEY: &str = "inverse_weight_names";
        let list = self.names(KEY)?;
        match list.iter().find(|name| **name != names.embeddings) {
            None => Ok(!list.is_empty()),
            Some(other) => {
                let expected = format!("`{}` only, not `{other}`,", names.embeddings);
                Err(self.contradiction(KEY, &expected))
            }
        }
    }

    /// One table for lookup and output is version 2, and nothing else is.
    fn check_output(
        &self,
        version: u64,
        rotation: &Rotation,
        names: &Names<'_>,
    ) -> Result<(), FormatError> {
        let tied = self.flag("tied_output")?;
        let own = names.has_own_head;
        if tied != (version == 2) {
            return Err(self.contradiction("tied_output", "true in version 2, and only there"));
        }
        if tied && (own || !rotation.embeddings) {
            let expected = "rotated embeddings without an output head of their own";
            return Err(self.contradiction("tied_output", expected));
        }
        if !tied && rotation.embeddings && !own {
            let expected = format!("version 2 for rotated embeddings without `{}`", names.head);
            return Err(self.contradiction("version", &expected));
        }
        Ok(())
    }

    fn get(&self, key: &str) -> Option<&MetaValue> {
        self.metadata.get(&format!("{ROTATION_KEYS}{key}"))
    }

    fn unknown(&self, key: &str, expected: &str) -> FormatError {
        let found = match self.get(key) {
            None => "nothing".to_owned(),
            Some(MetaValue::Array(array)) => format!("an array of {}", array.len()),
            Some(value) => match (value.as_str(), value.as_u64(), value.as_bool()) {
                (Some(text), _, _) => format!("\"{}\"", text.chars().take(60).collect::<String>()),
                (_, Some(number), _) => number.to_string(),
                (_, _, Some(flag)) => flag.to_string(),
                _ => "another type".to_owned(),
            },
        };
        let message = format!("expected {expected}, found {found}");
        FormatError::new(ErrorCode::UnsupportedConfig, message)
            .in_tensor(&(self.place)(key))
            .hint(match self.get(key) {
                None => NOT_WHOLE,
                Some(_) => "convert the model again with the rotation of formats/rotation.md, the only one that is computed here",
            })
    }

    fn contradiction(&self, key: &str, expected: &str) -> FormatError {
        let place = (self.place)(key);
        let message = format!("expected {expected} in {place}");
        FormatError::new(ErrorCode::Malformed, message)
            .in_tensor(&place)
            .hint(NOT_WHOLE)
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(MetaValue::as_str)
    }

    fn number(&self, key: &str) -> Result<u64, FormatError> {
        let number = self.get(key).and_then(MetaValue::as_u64);
        number.ok_or_else(|| self.unknown(key, "a whole number"))
    }

    /// A flag; an absent one is false.
    fn flag(&self, key: &str) -> Result<bool, FormatError> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.unknown(key, "true or false")),
        }
    }

    fn integers(&self, key: &str) -> Result<Vec<i64>, FormatError> {
        let wide = |value: &MetaArray| -> Option<Vec<i64>> {
            Some(match value {
                MetaArray::U8(a) => a.iter().map(|v| (*v).into()).collect(),
                MetaArray::I8(a) => a.iter().map(|v| (*v).into()).collect(),
                MetaArray::U16(a) => a.iter().map(|v| (*v).into()).collect(),
                MetaArray::I16(a) => a.iter().map(|v| (*v).into()).collect(),
                MetaArray::U32(a) => a.iter().map(|v| (*v).into()).collect(),
                MetaArray::I32(a) => a.iter().map(|v| (*v).into()).collect(),
                MetaArray::I64(a) => a.clone(),
                MetaArray::U64(a) => {
                    let all: Result<_, _> = a.iter().map(|v| i64::try_from(*v)).collect();
                    all.ok()?
                }
                _ => return None,
            })
        };
        match self.get(key) {
            Some(MetaValue::Array(array)) => wide(array),
            _ => None,
        }
        .ok_or_else(|| self.unknown(key, "an array of whole numbers"))
    }

    /// A list of names, each once; an absent one is empty.
    fn names(&self, key: &str) -> Result<BTreeSet<String>, FormatError> {
        let list = match self.get(key) {
            None => return Ok(BTreeSet::new()),
            Some(MetaValue::Array(MetaArray::String(list))) => list,
            Some(MetaValue::Array(list)) if list.is_empty() => return Ok(BTreeSet::new()),
            Some(_) => return Err(self.unknown(key, "an array of names")),
        };
        let mut names = BTreeSet::new();
        for name in list.iter() {
            let name = String::from_utf8_lossy(name).into_owned();
            if let Some(twice) = names.replace(name) {
                let expected = format!("each name once, not `{twice}` twice,");
                return Err(self.contradiction(key, &expected));
            }
        }
        Ok(names)
    }

    /// Nothing about signs, where every sign is +1.
    fn no_signs(&self) -> Result<BTreeMap<usize, Vec<i8>>, FormatError> {
        for key in ["sign_widths", "sign_values"] {
            match self.get(key) {
                None => {}
                Some(MetaValue::Array(list)) if list.is_empty() => {}
                Some(_) => return Err(self.contradiction(key, "nothing beside sign_mode identity")),
            }
        }
        Ok(BTreeMap::new())
    }

    /// `sign_widths` and `sign_values`.
    fn signs(&self, block_size: usize) -> Result<BTreeMap<usize, Vec<i8>>, FormatError> {
        let widths = self.integers("sign_widths")?;
        let values = self.integers("sign_values")?;
        if values.iter().any(|v| *v != 1 && *v != -1) {
            return Err(self.contradiction("sign_values", "nothing but +1 and -1"));
        }
        let all = "as many as sign_widths add up to";
        let (mut signs, mut rest) = (BTreeMap::new(), values.as_slice());
        for width in widths {
            let positive = usize::try_from(width).ok().filter(|w| *w > 0);
            let Some(width) = positive.filter(|w| w.is_multiple_of(block_size)) else {
                let expected = format!("positive multiples of {block_size}, not {width},");
                return Err(self.contradiction("sign_widths", &expected));
            };
            let Some((own, others)) = rest.split_at_checked(width) else {
                return Err(self.contradiction("sign_values", all));
            };
            rest = others;
            let own = own.iter().map(|v| if *v < 0 { -1 } else { 1 }).collect();
            if signs.insert(width, own).is_some() {
                let expected = format!("each width once, not {width} twice,");
                return Err(self.contradiction("sign_widths", &expected));
            }
        }
        // an empty table would silently mean that every sign is +1
        if signs.is_empty() {
            return Err(
                self.contradiction("sign_widths", "a width at least beside sign_mode explicit")
            );
        }
        if !rest.is_empty() {
            return Err(self.contradiction("sign_values", all));
        }
        Ok(signs)
    }
}
