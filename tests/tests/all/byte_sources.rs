//! The same files read from a mapping, by range and from memory.
//!
//! Invariant: how the bytes of a file are read shows in nothing that is read from it: the same tensors, the same bytes,
//! the same errors. Opening a model reads its headers and little else, whatever the size of its tensors.

use bitnet_formats::{
    Artifact, Bytes, CONTAINERS, Encoding, ErrorCode, FormatError, Limits, MetaArray, MetaValue,
    Metadata, Opener, PlainType, PlannedTensor, Reading, Source, TensorFile, WritePlan,
    open_in_memory, open_mapped, open_pread, open_with,
};
use bitnet_tests::fixtures::checkpoint;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const OPENERS: [(&str, &Opener<'_>); 3] = [
    ("mapped", &open_mapped),
    ("pread", &open_pread),
    ("memory", &open_in_memory),
];

fn read_with(path: &Path, open: &Opener<'_>) -> Result<TensorFile, FormatError> {
    let limits = Limits::default();
    let how = Reading {
        open,
        ..Reading::new(&limits)
    };
    open_with(path, &how)
}

/// Everything that a parsed file says.
#[derive(Debug, PartialEq)]
struct Everything {
    container: &'static str,
    metadata: Metadata,
    parts: Vec<(PathBuf, u64)>,
    tensors: Vec<(bitnet_formats::TensorInfo, Vec<u8>)>,
}

fn everything(file: &TensorFile) -> Everything {
    let tensors = file.tensors().iter();
    let parts = file.parts.iter();
    Everything {
        container: file.container,
        metadata: file.metadata.clone(),
        parts: parts.map(|p| (p.path().to_owned(), p.len())).collect(),
        tensors: tensors
            .map(|info| {
                let bytes = file.read(info).unwrap();
                // halves are the halves of the whole
                let half = info.len / 2;
                let first = file.read_part(info, 0..half).unwrap();
                let second = file.read_part(info, half..info.len).unwrap();
                assert_eq!([&first[..], &second[..]].concat(), bytes.to_vec());
                (info.clone(), bytes.to_vec())
            })
            .collect(),
    }
}

/// Tensors of some bytes, with names and metadata that are long enough to cross windows.
fn write(path: &Path, container: &dyn bitnet_formats::Container, len: usize) {
    let metadata = match container.name() {
        "gguf" => {
            let strings: Vec<String> = (0..9000).map(|n| format!("token number {n}")).collect();
            let mut metadata = Metadata::default();
            metadata.set("general.architecture", MetaValue::text("none"));
            metadata.set("a.text", MetaValue::text("x".repeat(100_000)));
            let array = MetaArray::String(strings.iter().collect());
            metadata.set("a.strings", MetaValue::Array(array));
            let numbers = MetaArray::U32((0..40_000).collect());
            metadata.set("a.numbers", MetaValue::Array(numbers));
            metadata
        }
        "safetensors" => {
            let text = MetaValue::text("y".repeat(100_000));
            Metadata(vec![("note".to_owned(), text)])
        }
        _ => Metadata::default(),
    };
    let tensor = |n: usize| PlannedTensor {
        name: format!("tensor.{n}"),
        encoding: Encoding::Plain(PlainType::F32),
        shape: vec![len, 4],
        len: len as u64 * 16,
    };
    let tensors: Vec<PlannedTensor> = (0..5).map(tensor).collect();
    let plan = WritePlan {
        metadata,
        tensors: tensors.clone(),
    };
    let header = container.header(&plan).unwrap();
    let mut artifact = Artifact::create(path, false).unwrap();
    artifact.write(&header.bytes).unwrap();
    let mut frames = header.frames.clone();
    let close = |frames: &mut bitnet_formats::Frames, artifact: &mut Artifact, until: u64| {
        while artifact.position() < until {
            let between = frames.next_tensor();
            if between.is_empty() {
                break;
            }
            artifact.write(&between).unwrap();
        }
    };
    for (n, (tensor, offset)) in tensors.iter().zip(&header.offsets).enumerate() {
        if let Some(frames) = &mut frames {
            close(frames, &mut artifact, *offset);
        }
        let gap = offset.saturating_sub(artifact.position());
        artifact.write_zeros(gap).unwrap();
        let bytes: Vec<u8> = (0..tensor.len).map(|i| (i * 7 + n as u64) as u8).collect();
        artifact.write(&bytes).unwrap();
        if let Some(frames) = &mut frames {
            frames.update(&bytes);
        }
    }
    if let Some(frames) = &mut frames {
        close(frames, &mut artifact, header.total);
    }
    let rest = header.total.saturating_sub(artifact.position());
    artifact.write_zeros(rest).unwrap();
    artifact.finish().unwrap();
}

#[test]
fn every_way_to_read_gives_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut models = vec![
        checkpoint("bitnet-2b4t-packed"),
        checkpoint("bitnet-2b4t-bf16"),
    ];
    for container in CONTAINERS {
        let path = dir.path().join(format!("model.{}", container.name()));
        write(&path, *container, 3000);
        models.push(path);
    }
    for model in models {
        let [(_, mapped), others @ ..] = OPENERS;
        let expected = everything(&read_with(&model, mapped).unwrap());
        assert!(!expected.tensors.is_empty());
        assert_eq!(
            expected,
            everything(&bitnet_formats::open(&model, &Limits::default()).unwrap())
        );
        for (name, open) in others {
            let found = everything(&read_with(&model, open).unwrap());
            assert!(found == expected, "{name}: {}", model.display());
        }
    }
}

#[test]
fn every_way_to_read_gives_the_same_errors() {
    let dir = tempfile::tempdir().unwrap();
    for container in CONTAINERS {
        let path = dir.path().join(format!("whole.{}", container.name()));
        write(&path, *container, 500);
        let whole = std::fs::read(&path).unwrap();
        let cut = dir.path().join(format!("cut.{}", container.name()));
        let mut places: Vec<usize> = (0..whole.len()).step_by(whole.len() / 40).collect();
        places.extend([1, 7, 8, 24, 65_535, 65_536, 65_537, whole.len() - 1]);
        places.retain(|place| *place < whole.len());
        let mut refused = 0;
        for place in places {
            let mut flipped = whole.clone();
            flipped[place] ^= 0x81;
            for bytes in [&whole[..place], &flipped[..]] {
                std::fs::write(&cut, bytes).unwrap();
                let found = OPENERS.map(|(_, open)| match read_with(&cut, open) {
                    Ok(file) => Ok(everything(&file)),
                    Err(error) => Err(error),
                });
                assert!(
                    found[0] == found[1] && found[1] == found[2],
                    "{} {place}: {:?}",
                    container.name(),
                    found.map(|f| f.err().map(|e| e.to_string()))
                );
                refused += usize::from(found[0].is_err());
            }
        }
        assert!(refused > 40, "{}: {refused}", container.name());
    }
}

/// A source that counts the bytes that are read of it.
#[derive(Debug)]
struct Counted(Arc<dyn Source>, Arc<AtomicU64>);

impl Source for Counted {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes, FormatError> {
        self.1.fetch_add(range.end - range.start, Ordering::Relaxed);
        self.0.read(range)
    }
}

#[test]
fn opening_a_model_reads_its_headers_only() {
    let dir = tempfile::tempdir().unwrap();
    for container in CONTAINERS {
        let path = dir.path().join(format!("model.{}", container.name()));
        write(&path, *container, 400_000); // 32 MB
        let total = std::fs::metadata(&path).unwrap().len();
        let count = Arc::new(AtomicU64::new(0));
        let open = |path: &Path| -> Result<Arc<dyn Source>, FormatError> {
            Ok(Arc::new(Counted(open_pread(path)?, count.clone())))
        };
        let file = read_with(&path, &open).unwrap();
        let read = count.load(Ordering::Relaxed);
        // what lies before, between and behind the tensors, and one window for each end of the file
        let payload: u64 = file.tensors().iter().map(|t| t.len).sum();
        let most = total - payload + (64 << 10) + (66 << 10);
        assert!(read <= most, "{}: {read} > {most}", container.name());
        let before = count.load(Ordering::Relaxed);
        let info = &file.tensors()[2];
        assert_eq!(file.read(info).unwrap().len() as u64, info.len);
        assert_eq!(count.load(Ordering::Relaxed) - before, info.len);
    }
}

/// A file that was emptied behind its reader, whose bytes are zeros from then on.
#[derive(Debug)]
struct Emptied;

impl Source for Emptied {
    fn len(&self) -> u64 {
        4096
    }

    fn name(&self) -> &str {
        "m.gguf"
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes, FormatError> {
        Ok(vec![0; (range.end - range.start) as usize].into())
    }

    fn check(&self) -> Result<(), FormatError> {
        Err(FormatError::new(ErrorCode::InputChanged, "shorter"))
    }
}

#[test]
fn a_file_that_changed_before_its_kind_was_known_is_called_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, b"").unwrap();
    let open = |_: &Path| Ok(Arc::new(Emptied) as Arc<dyn Source>);
    let error = read_with(&path, &open).unwrap_err();
    assert_eq!(error.code, ErrorCode::InputChanged);
}
