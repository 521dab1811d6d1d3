//! Weights that were rotated before they were made ternary (`formats/packing/q2_0.md`).
//!
//! Invariant: a file with any key of the rotation has a whole and consistent set of them, or is not opened:
//! a program that computes with such weights directly prints noise without any other sign.

use bitnet_formats::{ErrorCode, FormatError, MetaArray, MetaValue, Metadata, TensorFile};
use std::collections::{BTreeMap, BTreeSet};

/// All keys of the rotation begin so.
pub const ROTATION_KEYS: &str = "prism.hadamard.";

/// The one transform there is.
const TRANSFORM: &str = "normalized-sylvester-walsh-hadamard";
/// The axis it acts on.
const AXIS: &str = "input-last-dimension";
/// The only table that may be stored rotated.
const EMBEDDINGS: &str = "token_embd.weight";
/// The output head.
const OUTPUT: &str = "output.weight";

/// Kinds of block tensors that are folded.
const FOLDED: [&str; 9] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "ssm_out",
];

/// A rotation of the input features of some weights: `w' = H (s * w)` row by row, `H` the normalised
/// Walsh-Hadamard transform of blocks of features and `s` the signs of their width.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// Features that are transformed together, a power of two.
    pub block_size: usize,
    /// Signs by width; an absent one is all +1.
    pub signs: BTreeMap<usize, Vec<i8>>,
    /// GGUF names of the weights that are stored rotated and multiply rotated inputs.
    pub folded: BTreeSet<String>,
    /// Whether the rows of the embeddings are stored rotated.
    pub embeddings: bool,
}

impl Rotation {
    /// The rotation that a file declares.
    ///
    /// # Errors
    /// `unsupported-config` for one that this program does not know, `malformed` for one that contradicts itself
    /// or the tensors of the file; the error names the key.
    pub(super) fn read(file: &TensorFile) -> Result<Option<Self>, FormatError> {
        let keys = Keys(&file.metadata);
        if !file
            .metadata
            .0
            .iter()
            .any(|(key, _)| key.starts_with(ROTATION_KEYS))
        {
            return Ok(None);
        }
        let version = keys.number("version")?;
        if !(1..=2).contains(&version) {
            return Err(keys.unknown("version", "1 or 2"));
        }
        for (key, known) in [("transform", TRANSFORM), ("axis", AXIS)] {
            if keys.text(key) != Some(known) {
                return Err(keys.unknown(key, known));
            }
        }
        let block_size = usize::try_from(keys.number("block_size")?).unwrap_or(0);
        if !block_size.is_power_of_two() {
            return Err(keys.unknown("block_size", "a power of two"));
        }
        let signs = match keys.text("sign_mode") {
            Some("identity") => BTreeMap::new(),
            Some("explicit") => keys.signs(block_size)?,
            _ => return Err(keys.unknown("sign_mode", "identity or explicit")),
        };
        let folded = keys.names("weight_names")?;
        if folded.is_empty() {
            return Err(keys.contradiction("weight_names", "the name of a weight at least"));
        }
        for name in &folded {
            if !is_foldable(name) {
                let expected =
                    format!("matrices of a layer or the output head only, not `{name}`,");
                return Err(keys.contradiction("weight_names", &expected));
            }
            keys.check_width(file, name, block_size, &signs)?;
        }
        let inverse = keys.names("inverse_weight_names")?;
        for name in &inverse {
            if name != EMBEDDINGS || folded.contains(name) {
                let expected = format!("`{EMBEDDINGS}` only, not `{name}`,");
                return Err(keys.contradiction("inverse_weight_names", &expected));
            }
            keys.check_width(file, name, block_size, &signs)?;
        }
        let rotation = Self {
            block_size,
            signs,
            folded,
            embeddings: !inverse.is_empty(),
        };
        rotation.check_output(&keys, version, file.tensor(OUTPUT).is_some())?;
        Ok(Some(rotation))
    }

    /// One table for lookup and output is version 2, and nothing else is.
    fn check_output(&self, keys: &Keys<'_>, version: u64, own: bool) -> Result<(), FormatError> {
        let tied = keys.get("tied_output").and_then(MetaValue::as_bool) == Some(true);
        if tied != (version == 2) {
            return Err(keys.contradiction("tied_output", "true in version 2, and only there"));
        }
        if tied && (own || !self.embeddings) {
            let expected = "rotated embeddings without an output head of their own";
            return Err(keys.contradiction("tied_output", expected));
        }
        if !tied && self.embeddings && !own {
            let expected = format!("version 2 for rotated embeddings without `{OUTPUT}`");
            return Err(keys.contradiction("version", &expected));
        }
        Ok(())
    }
}

/// Whether a weight of this name may be folded.
fn is_foldable(name: &str) -> bool {
    let kind = name.strip_prefix("blk.").and_then(|n| n.split_once('.'));
    let kind = kind.and_then(|(_, kind)| kind.strip_suffix(".weight"));
    name == OUTPUT
        || kind.is_some_and(|kind| {
            let kind = kind.strip_suffix("_exps").unwrap_or(kind);
            FOLDED.contains(&kind.strip_suffix("_shexp").unwrap_or(kind))
        })
}

/// The keys of the rotation in a file's metadata.
struct Keys<'a>(&'a Metadata);

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&MetaValue> {
        self.0.get(&format!("{ROTATION_KEYS}{key}"))
    }

    fn unknown(&self, key: &str, expected: &str) -> FormatError {
        let found = match self.get(key) {
            None => "nothing".to_owned(),
            Some(MetaValue::Array(array)) => format!("an array of {}", array.len()),
            Some(value) => match (value.as_str(), value.as_u64()) {
                (Some(text), _) => format!("\"{}\"", text.chars().take(60).collect::<String>()),
                (_, Some(number)) => number.to_string(),
                _ => "another type".to_owned(),
            },
        };
        let message = format!("expected {expected}, found {found}");
        FormatError::new(ErrorCode::UnsupportedConfig, message)
            .in_tensor(&format!("{ROTATION_KEYS}{key}"))
    }

    fn contradiction(&self, key: &str, expected: &str) -> FormatError {
        let message = format!("expected {expected} in {ROTATION_KEYS}{key}");
        FormatError::new(ErrorCode::Malformed, message).in_tensor(&format!("{ROTATION_KEYS}{key}"))
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(MetaValue::as_str)
    }

    fn number(&self, key: &str) -> Result<u64, FormatError> {
        let number = self.get(key).and_then(MetaValue::as_u64);
        number.ok_or_else(|| self.unknown(key, "a whole number"))
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
            Some(_) => return Err(self.unknown(key, "an array of names")),
        };
        let names: BTreeSet<String> = list
            .iter()
            .map(|n| String::from_utf8_lossy(n).into_owned())
            .collect();
        if names.len() == list.len() {
            Ok(names)
        } else {
            Err(self.contradiction(key, "each name once"))
        }
    }

    /// `sign_widths` and `sign_values`.
    fn signs(&self, block_size: usize) -> Result<BTreeMap<usize, Vec<i8>>, FormatError> {
        let widths = self.integers("sign_widths")?;
        let values = self.integers("sign_values")?;
        if values.iter().any(|v| *v != 1 && *v != -1) {
            return Err(self.contradiction("sign_values", "nothing but +1 and -1"));
        }
        let (mut signs, mut rest) = (BTreeMap::new(), values.as_slice());
        for width in widths {
            let positive = usize::try_from(width).ok().filter(|w| *w > 0);
            let Some(width) = positive.filter(|w| w.is_multiple_of(block_size)) else {
                let expected = format!("positive multiples of {block_size}");
                return Err(self.contradiction("sign_widths", &expected));
            };
            let Some((own, others)) = rest.split_at_checked(width) else {
                return Err(self.contradiction("sign_values", "as many as sign_widths add up to"));
            };
            rest = others;
            if signs
                .insert(width, own.iter().map(|v| *v as i8).collect())
                .is_some()
            {
                return Err(self.contradiction("sign_widths", "each width once"));
            }
        }
        if signs.is_empty() || !rest.is_empty() {
            return Err(self.contradiction("sign_values", "as many as sign_widths add up to"));
        }
        Ok(signs)
    }

    /// Whether a tensor is there and of a width that is rotated.
    fn check_width(
        &self,
        file: &TensorFile,
        name: &str,
        block_size: usize,
        signs: &BTreeMap<usize, Vec<i8>>,
    ) -> Result<(), FormatError> {
        let missing = || {
            let expected = format!("names of tensors, not `{name}`,");
            self.contradiction("weight_names", &expected)
        };
        let width = file.tensor(name).and_then(|t| t.shape.last().copied());
        let width = width.ok_or_else(missing)?;
        let is_known = signs.is_empty() || signs.contains_key(&width);
        if width == 0 || !width.is_multiple_of(block_size) || !is_known {
            let message = format!(
                "expected a width of whole blocks of {block_size} with signs of its own, found {width}"
            );
            return Err(FormatError::new(ErrorCode::Malformed, message).in_tensor(name));
        }
        Ok(())
    }
}
