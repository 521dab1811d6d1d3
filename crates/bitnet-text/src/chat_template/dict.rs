//! Dictionaries in the order of insertion, and keys as Python hashes them.
//!
//! Invariant: equal keys are one key: `1`, `1.0` and `True`.

use super::meter::{Charge, R, fail, spend, spend_bytes};
use super::value::{Value, deep_enough};
use std::collections::HashMap;
use std::rc::Rc;

/// A key as Python hashes it: `1`, `1.0` and `True` are one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    None,
    Int(i128),
    Float(u64),
    Text(Rc<str>),
    Tuple(Vec<Key>),
}

impl Key {
    /// Bytes that a key holds.
    fn weight(&self) -> usize {
        match self {
            Self::Text(text) => text.len() + 32,
            Self::Tuple(keys) => keys.iter().map(Self::weight).sum::<usize>() + 32,
            _ => 32,
        }
    }
}

fn key(value: &Value) -> R<Key> {
    Ok(match value {
        Value::None => Key::None,
        Value::Bool(b) => Key::Int(i128::from(*b)),
        Value::Int(i) => Key::Int(*i),
        Value::Float(f) if f.is_nan() => return fail("a key that is NaN is not supported"),
        Value::Float(f) if f.fract() == 0.0 && f.abs() < 1e30 => Key::Int(*f as i128),
        Value::Float(f) => Key::Float(f.to_bits()),
        Value::Str(text) => {
            spend_bytes(text.as_str().len())?;
            Key::Text(text.as_str().into())
        }
        Value::Tuple(items) | Value::Group(items) => {
            // a tuple may hold itself many times over
            spend(items.items.len() * 16)?;
            Key::Tuple(items.items.iter().map(key).collect::<R<_>>()?)
        }
        Value::List(_) | Value::Dict(_) => {
            return fail(format!("unhashable type: '{}'", value.type_name()));
        }
        other => return fail(format!("{} as a key is not supported", other.type_name())),
    })
}

/// A set of values as Python hashes them.
#[derive(Default)]
pub(super) struct Seen(std::collections::HashSet<Key>, Charge);

impl Seen {
    /// Whether a value is new.
    pub(super) fn insert(&mut self, value: &Value) -> R<bool> {
        let key = key(value)?;
        self.1.grow(64 + key.weight())?;
        Ok(self.0.insert(key))
    }
}

/// A dictionary in the order of insertion.
#[derive(Debug, Default)]
pub(super) struct Dict {
    places: HashMap<Key, usize>,
    entries: Vec<(Value, Value)>,
    depth: usize,
    charge: Charge,
}

impl Dict {
    pub(super) fn get(&self, at: &Value) -> R<Option<Value>> {
        let place = self.places.get(&key(at)?);
        Ok(place
            .and_then(|&at| self.entries.get(at))
            .map(|(_, v)| v.clone()))
    }

    pub(super) fn get_str(&self, at: &str) -> Option<Value> {
        let place = self.places.get(&Key::Text(at.into()));
        place
            .and_then(|&at| self.entries.get(at))
            .map(|(_, v)| v.clone())
    }

    pub(super) fn insert(&mut self, at: Value, value: Value) -> R<()> {
        let depth = at.depth().max(value.depth()) + 1;
        deep_enough(depth)?;
        self.depth = self.depth.max(depth);
        let key = key(&at)?;
        if let Some(&place) = self.places.get(&key) {
            if let Some(entry) = self.entries.get_mut(place) {
                entry.1 = value;
            }
            return Ok(());
        }
        self.charge.grow(160 + key.weight())?;
        self.places.insert(key, self.entries.len());
        self.entries.push((at, value));
        Ok(())
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }
}
