//! What some of the weights show: codes, shares of zeros, structure of the scales, rotation, heads.
//!
//! Invariant: a few linears from both ends of the network are read in full, never all of them, and
//! what is said of them says how many they were. A linear that cannot be read is a finding, not a failure:
//! inspecting is for files that may be broken.

use bitnet_checkpoint::{Checkpoint, ROTATION_KEYS, Slot, scale_normal_form};
use bitnet_cli::percent;
use bitnet_formats::{FormatError, MetaValue, Metadata, TensorInfo};
use bitnet_ternary::Scales;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Bytes of two dense matrices that are compared at a time, so that different ones are told at once.
const COMPARED: usize = 4 << 20;

/// What the weights that were read show.
#[derive(Default)]
pub struct Data {
    /// Linears read.
    linears: usize,
    /// Trits -1, 0, +1 in them.
    trits: [u64; 3],
    /// Share of zeros, and whose: the smallest and the largest.
    zeros: Option<[(f64, String); 2]>,
    /// Linears by the structure of their scales in normal form.
    structures: BTreeMap<String, u64>,
    /// Linears that could not be read, and why.
    unreadable: Vec<String>,
}

impl Data {
    /// Reads some of the linears.
    pub fn collect(checkpoint: &Checkpoint) -> Self {
        let mut data = Self::default();
        for slot in checkpoint.sampled_linears() {
            let matrix = match checkpoint.ternary(slot) {
                Ok(matrix) => matrix,
                Err(error) => {
                    data.unreadable.push(error.to_string());
                    continue;
                }
            };
            data.linears += 1;
            let counts = matrix.counts();
            let share = counts[1] as f64 / matrix.trits().len().max(1) as f64;
            let here = (share, slot.to_string());
            data.zeros = Some(match data.zeros.take() {
                None => [here.clone(), here],
                Some([least, _]) if share < least.0 => [here, least],
                Some([least, most]) if share > most.0 => [least, here],
                Some(both) => both,
            });
            for (sum, count) in data.trits.iter_mut().zip(counts) {
                *sum += count;
            }
            *data
                .structures
                .entry(structure(&scale_normal_form(&matrix)))
                .or_insert(0) += 1;
        }
        data
    }

    /// The one structure of all scales, if it is one.
    pub fn structure(&self) -> Option<&str> {
        match self.structures.iter().next() {
            Some((one, _)) if self.structures.len() == 1 => Some(one),
            _ => None,
        }
    }

    /// For `--json`.
    pub fn to_json(&self) -> Value {
        json!({
            "linears_read": self.linears,
            "minus": self.trits[0],
            "zero": self.trits[1],
            "plus": self.trits[2],
            "zero_share": self.zeros.as_ref().map(|[least, most]| json!({
                "min": least.0, "min_tensor": least.1, "max": most.0, "max_tensor": most.1,
            })),
            "scale_structures": self.structures,
            "unreadable": self.unreadable,
        })
    }

    /// For people: key and value.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        let total = self.trits.iter().sum::<u64>();
        if let (Some([least, most]), true) = (&self.zeros, total > 0) {
            let share = |n: u64| percent(n as f64 / total as f64, 1);
            lines.push((
                "trits",
                format!(
                    "{} -1, {} 0, {} +1 in {} linears; zeros from {} to {}",
                    share(self.trits[0]),
                    share(self.trits[1]),
                    share(self.trits[2]),
                    self.linears,
                    percent(least.0, 1),
                    percent(most.0, 1),
                ),
            ));
        }
        let scales: Vec<_> = self
            .structures
            .iter()
            .map(|(s, n)| format!("{n} x one per {s}"))
            .collect();
        if !scales.is_empty() {
            lines.push(("scales read", scales.join(", ")));
        }
        lines.extend(self.unreadable.iter().map(|e| ("unreadable", e.clone())));
        lines
    }
}

/// `tensor`, `row` or `group of 128`.
pub fn structure(scales: &Scales) -> String {
    match scales {
        Scales::PerTensor(_) => "tensor".to_owned(),
        Scales::PerRow(_) => "row".to_owned(),
        Scales::PerGroup { group, .. } => format!("group of {group}"),
    }
}

/// What the metadata say about a rotation of the weights; `None` for weights as they are. Long values are
/// counted, not shown.
pub fn rotation(metadata: &Metadata) -> Option<Value> {
    let mut found = Map::new();
    for (key, value) in &metadata.0 {
        let Some(key) = key.strip_prefix(ROTATION_KEYS) else {
            continue;
        };
        let value = match value {
            MetaValue::Bool(yes) => json!(yes),
            MetaValue::String(_) => json!(value.as_str()),
            MetaValue::Array(array) => json!({"length": array.len()}),
            other => json!(other.as_u64()),
        };
        found.insert(key.to_owned(), value);
    }
    (!found.is_empty()).then_some(Value::Object(found))
}

/// Whether an output head of its own is a copy of the embeddings, byte for byte: space that tying saves.
pub fn head_is_a_copy(checkpoint: &Checkpoint) -> Result<bool, FormatError> {
    let (Some(embeddings), Some(head)) = (
        checkpoint.tensor_range(Slot::TokenEmbeddings),
        checkpoint.tensor_range(Slot::OutputHead),
    ) else {
        return Ok(false);
    };
    let coded = |slot| checkpoint.coded_by(slot).into_iter().flatten();
    let all = |info, slot| std::iter::once(info).chain(coded(slot));
    let embeddings: Vec<&TensorInfo> = all(embeddings, Slot::TokenEmbeddings).collect();
    let head: Vec<&TensorInfo> = all(head, Slot::OutputHead).collect();
    let alike = |(a, b): (&&TensorInfo, &&TensorInfo)| {
        (a.encoding, &a.shape, a.len) == (b.encoding, &b.shape, b.len)
    };
    if embeddings.len() != head.len() || !embeddings.iter().zip(&head).all(alike) {
        return Ok(false);
    }
    for (embeddings, head) in embeddings.into_iter().zip(head) {
        for start in (0..head.len).step_by(COMPARED) {
            let range = start..start.saturating_add(COMPARED as u64);
            let a = checkpoint.file.read_part(embeddings, range.clone())?;
            if a != checkpoint.file.read_part(head, range)? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
