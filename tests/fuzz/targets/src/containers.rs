//! Containers: GGUF, safetensors, PyTorch, and indices of shards.

use crate::record::Record;
use crate::scratch;
use bitnet_formats::{
    Container, FormatError, Gguf, Limits, Memory, Pytorch, Reading, Safetensors, Source,
    TensorFile, WritePlan, open_with, weight_files,
};
use std::path::Path;
use std::sync::Arc;

/// Opens a file in memory. Whatever other file of a model it names has the same bytes.
pub(crate) fn open(
    container: &dyn Container,
    name: &str,
    data: &[u8],
) -> Result<TensorFile, FormatError> {
    let limits = Limits::default();
    let source: Arc<dyn Source> = Arc::new(Memory::new(name, data.to_vec()));
    let open = |_: &Path| Ok(Arc::clone(&source));
    let how = Reading {
        open: &open,
        ..Reading::new(&limits)
    };
    container.read_with(Path::new(name), &how)
}

fn read(container: &'static dyn Container, name: &str, data: &[u8], record: &mut Record) {
    let file = match open(container, name, data) {
        Ok(file) => file,
        Err(error) => return record.error(&error),
    };
    for info in file.tensors() {
        let bytes = file
            .read(info)
            .expect("the bytes of a tensor are in its file");
        assert_eq!(bytes.len() as u64, info.len, "{}", info.name);
        assert!(
            file.tensor(&info.name)
                .is_some_and(|found| found.offset == info.offset),
            "{}: found under another place",
            info.name
        );
        record.note(&(
            &info.name,
            &info.shape,
            info.encoding.name(),
            info.offset,
            info.len,
        ));
    }
    record.note(&file.metadata);
    match container.unread(&file) {
        Ok(unread) => {
            for bits in unread {
                assert!(bits.range.start < bits.range.end, "{bits:?}");
                assert!(bits.range.end <= data.len() as u64, "{bits:?}");
                record.note(&bits.range);
            }
        }
        Err(error) => record.error(&error),
    }
}

/// GGUF, and the same header written again.
pub(crate) fn gguf(data: &[u8], record: &mut Record) {
    read(&Gguf, "input.gguf", data, record);
    if let Ok(file) = open(&Gguf, "input.gguf", data) {
        rewritten(&Gguf, "input.gguf", &file);
    }
}

/// safetensors, and the same header written again.
pub(crate) fn safetensors(data: &[u8], record: &mut Record) {
    read(&Safetensors, "input.safetensors", data, record);
    if let Ok(file) = open(&Safetensors, "input.safetensors", data) {
        rewritten(&Safetensors, "input.safetensors", &file);
    }
}

/// What a container reads it can write, unless it says why not; and reads the same again.
fn rewritten(container: &'static dyn Container, name: &str, file: &TensorFile) {
    let planned = file
        .tensors()
        .iter()
        .map(|info| bitnet_formats::PlannedTensor {
            name: info.name.clone(),
            encoding: info.encoding,
            shape: info.shape.clone(),
            len: info.len,
        });
    let plan = WritePlan {
        metadata: file.metadata.clone(),
        tensors: planned.collect(),
    };
    let Ok(header) = container.header(&plan) else {
        return;
    };
    if header.total > 1 << 16 {
        return;
    }
    let mut bytes = header.bytes.clone();
    bytes.resize(header.total as usize, 0);
    for (info, offset) in file.tensors().iter().zip(&header.offsets) {
        let from = *offset as usize;
        let data = file.read(info).expect("read before");
        bytes[from..from + data.len()].copy_from_slice(&data);
    }
    let again = open(container, name, &bytes)
        .unwrap_or_else(|e| panic!("a file that was just written is refused: {e}"));
    let of = |file: &TensorFile| -> Vec<_> {
        let tensors = file.tensors().iter();
        let mut all: Vec<_> = tensors
            .map(|t| (t.name.clone(), t.shape.clone(), t.encoding.name(), t.len))
            .collect();
        all.sort();
        all
    };
    assert_eq!(of(file), of(&again), "another file after writing it again");
}

/// A zip archive with a pickle.
pub(crate) fn pytorch(data: &[u8], record: &mut Record) {
    read(&Pytorch, "input.bin", data, record);
    read(&Pytorch, "input.pt", data, record);
}

/// A pickle in an archive of storages, as PyTorch writes it.
pub(crate) fn pickle(data: &[u8], record: &mut Record) {
    let archive = crate::zip::archive(&[
        ("a/data.pkl", data),
        ("a/byteorder", b"little"),
        ("a/data/0", &[1; 64]),
        ("a/data/1", &[2; 64]),
        ("a/version", b"3\n"),
    ]);
    read(&Pytorch, "input.bin", &archive, record);
}

/// The index of a model in shards, with shards of one tensor beside it.
pub(crate) fn shard_index(data: &[u8], record: &mut Record) {
    let dir = scratch::below("shards");
    let index = dir.join("model.safetensors.index.json");
    scratch::write(&index, data);
    let limits = Limits::default();
    record.result(&weight_files(&index, &limits));
    let open = |path: &Path| {
        let tensor = path.file_stem().unwrap_or_default().to_string_lossy();
        let text =
            serde_json::json!({&*tensor: {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}});
        let text = text.to_string();
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes.extend_from_slice(&[1, 2]);
        let name = path.display().to_string();
        Ok(Arc::new(Memory::new(name, bytes)) as Arc<dyn Source>)
    };
    let how = Reading {
        open: &open,
        ..Reading::new(&limits)
    };
    match open_with(&index, &how) {
        Ok(file) => {
            for info in file.tensors() {
                file.read(info)
                    .expect("the bytes of a tensor are in its file");
                record.note(&(&info.name, info.part));
            }
        }
        Err(error) => record.error(&error),
    }
}
