//! A folder of vectors: manifests, files, and the words for what differs.
//!
//! Invariant: whatever is missing or misspelled is an `Err` in words, so that one bad entry fails by
//! name and the others still run.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a check of one entry came to; `Err` is a failure, in words.
pub enum Outcome {
    Passed,
    /// The peer lost or refused this input, and so do we.
    Refused,
    Skipped(String),
}
pub type Checked = Result<Outcome, String>;

/// A folder of vectors.
pub struct Vectors {
    pub root: PathBuf,
    /// Parsed `manifest.json` of each folder.
    pub manifests: BTreeMap<String, Value>,
}

impl Vectors {
    pub fn open(root: &Path) -> Result<Self, String> {
        let mut manifests = BTreeMap::new();
        let list = std::fs::read_dir(root).map_err(|e| format!("{}: {e}", root.display()))?;
        for entry in list {
            let path = entry.map_err(|e| e.to_string())?.path();
            let manifest = path.join("manifest.json");
            if let (true, Some(name)) = (
                manifest.is_file(),
                path.file_name().and_then(|n| n.to_str()),
            ) {
                manifests.insert(name.to_owned(), json(&manifest)?);
            }
        }
        Ok(Self {
            root: root.to_owned(),
            manifests,
        })
    }

    pub fn entries(&self, folder: &str) -> &[Value] {
        self.list(folder, "entries")
    }

    /// The entries of folders with the other manifest layout.
    pub fn cases(&self, folder: &str) -> &[Value] {
        self.list(folder, "cases")
    }

    fn list(&self, folder: &str, key: &str) -> &[Value] {
        let list = self.manifests.get(folder).and_then(|m| m[key].as_array());
        list.map_or(&[], Vec::as_slice)
    }

    pub fn entry(&self, folder: &str, name: &str) -> Result<&Value, String> {
        self.entries(folder)
            .iter()
            .find(|e| e["name"] == name)
            .ok_or_else(|| format!("no `{name}` in {folder}/manifest.json"))
    }

    /// The bytes of `entry[key]`, whose digest has been verified with all others.
    pub fn bytes(&self, folder: &str, entry: &Value, key: &str) -> Result<Vec<u8>, String> {
        let file = entry[key]["file"]
            .as_str()
            .ok_or_else(|| format!("no file `{key}`"))?;
        read(&self.root.join(folder).join(file))
    }

    pub fn trits(&self, folder: &str, entry: &Value, key: &str) -> Result<Vec<i8>, String> {
        Ok(self
            .bytes(folder, entry, key)?
            .into_iter()
            .map(|b| b as i8)
            .collect())
    }
}

pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

pub fn json(path: &Path) -> Result<Value, String> {
    serde_json::from_slice(&read(path)?).map_err(|e| format!("{}: {e}", path.display()))
}

/// A scale as manifests spell it: the little-endian bytes in hex.
pub fn f32_of(entry: &Value, key: &str) -> Option<f32> {
    let bits = u32::from_str_radix(entry[key].as_str()?, 16).ok()?;
    Some(f32::from_bits(bits.swap_bytes()))
}

pub fn usize_of(entry: &Value, key: &str) -> Result<usize, String> {
    entry[key]
        .as_u64()
        .map(|n| n as usize)
        .ok_or_else(|| format!("no number `{key}`"))
}

pub fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect()
}

pub fn ulps(a: f32, b: f32) -> u32 {
    a.to_bits().abs_diff(b.to_bits()) // of two positive numbers
}

pub fn same<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &[T],
    expected: &[T],
) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    let at = found.iter().zip(expected).position(|(a, b)| a != b);
    Err(match at {
        Some(i) => format!(
            "{what} {i}: expected {:?}, found {:?}",
            expected[i], found[i]
        ),
        None => format!(
            "{what}: expected {} of them, found {}",
            expected.len(),
            found.len()
        ),
    })
}

pub fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}
