//! What can still be read of the header of a file that its container refuses.
//!
//! Invariant: names, types, shapes and offsets are what the file says and are not checked, so nothing here is ever
//! used to read a tensor. Reading ends at the first thing that cannot be read.

use super::{Container, Gguf, Safetensors, gguf, safetensors};
use crate::bytes::Cursor;
use crate::error::FormatError;
use crate::source::{Source, as_opened};
use crate::tensor_file::Metadata;

/// A tensor as a header spells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Name as stored.
    pub name: String,
    /// The type as the container writes it: `type-36`, `U8`.
    pub kind: String,
    /// Sizes, outermost first.
    pub shape: Vec<u64>,
    /// First byte, counted from where the container counts: the start of its tensor data.
    pub offset: u64,
}

/// The readable beginning of a header.
#[derive(Debug, Default)]
pub struct HeaderRemains {
    /// `gguf` or `safetensors`.
    pub container: &'static str,
    /// Counts and lengths at the beginning of the file, with their names.
    pub counts: Vec<(&'static str, u64)>,
    /// Entries before the first one that cannot be read.
    pub metadata: Metadata,
    /// Tensors before the first one that cannot be read.
    pub tensors: Vec<Declared>,
    /// Why reading ended before the end of the header.
    pub stopped: Option<FormatError>,
}

/// The readable beginning of the header of a GGUF or safetensors file; `None` for any other file.
pub fn header_remains(source: &dyn Source) -> Option<HeaderRemains> {
    let head = source.read(0..source.len().min(16)).ok()?;
    type Read = fn(Cursor<'_>, &mut HeaderRemains) -> Result<(), FormatError>;
    let (container, read) = if Gguf.recognises(&head) {
        (Gguf.name(), gguf::remains as Read)
    } else if Safetensors.recognises(&head) {
        (Safetensors.name(), safetensors::remains as Read)
    } else {
        return None;
    };
    let mut found = HeaderRemains {
        container,
        ..HeaderRemains::default()
    };
    let read = as_opened(source, || read(Cursor::over(source), &mut found));
    found.stopped = read.err();
    Some(found)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::source::Memory;
    use std::path::Path;

    fn bytes_of(name: &str) -> Vec<u8> {
        let path = Path::new("../../formats/vectors/gguf-files").join(name);
        std::fs::read(path).unwrap()
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn a_header_that_was_cut_off_shows_its_beginning() {
        let path = "../../formats/vectors/gguf-files/llama_packed-tq2_0.gguf";
        let whole = crate::open(Path::new(path), &Limits::default()).unwrap();
        let bytes = bytes_of("llama_packed-tq2_0.gguf");
        let all = header_remains(&Memory::new("m", bytes.clone())).unwrap();
        assert!(all.stopped.is_none(), "{:?}", all.stopped);
        assert_eq!(all.metadata, whole.metadata);
        let names = |all: &HeaderRemains| -> Vec<String> {
            all.tensors.iter().map(|t| t.name.clone()).collect()
        };
        let expected: Vec<&str> = whole.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names(&all), expected);
        let shapes: Vec<usize> = all.tensors[0].shape.iter().map(|n| *n as usize).collect();
        assert_eq!(shapes, whole.tensors()[0].shape);
        // every length of the file: what is shown is a beginning of the whole
        let mut seen = 0;
        for len in (0..bytes.len()).step_by(7) {
            let Some(cut) = header_remains(&Memory::new("m", bytes[..len].to_vec())) else {
                assert!(len < 4);
                continue;
            };
            assert!(all.metadata.0.starts_with(&cut.metadata.0), "{len}");
            assert!(all.tensors.starts_with(&cut.tensors), "{len}");
            let is_whole = cut.tensors.len() == all.tensors.len();
            assert_eq!(cut.stopped.is_none(), is_whole, "{len}");
            seen += usize::from(!is_whole && !cut.tensors.is_empty());
        }
        assert!(seen > 0, "no cut fell among the tensors");
    }

    #[test]
    fn a_broken_safetensors_header_shows_the_tensors_before_the_fault() {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"U8","shape":[2,3],"data_offsets":[0,6]},"b":{"dtype":"U8","shape":[2"#;
        let mut bytes = (header.len() as u64 + 100).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&[0xee; 64]);
        let found = header_remains(&Memory::new("m", bytes)).unwrap();
        assert_eq!(found.container, "safetensors");
        assert_eq!(found.metadata.0.len(), 1);
        let [a] = &found.tensors[..] else {
            panic!("{:?}", found.tensors)
        };
        assert_eq!((a.name.as_str(), a.kind.as_str(), a.offset), ("a", "U8", 0));
        assert_eq!(a.shape, [2, 3]);
        assert!(found.stopped.is_some());
        assert!(header_remains(&Memory::new("m", b"neither".to_vec())).is_none());
    }
}
