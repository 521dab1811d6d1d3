//! What a store says of an object.
//!
//! Invariant: it is what was true when the store was asked.

/// What a store says of an object.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its length.
    pub bytes: u64,
    /// Names and values that its writer added, if the store keeps them.
    pub notes: Vec<(String, String)>,
}

impl Stored {
    /// A value that its writer added.
    pub fn note(&self, name: &str) -> Option<&str> {
        let found = self.notes.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
}
