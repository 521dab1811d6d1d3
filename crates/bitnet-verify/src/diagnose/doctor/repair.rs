//! Corrected copies of GGUF files.
//!
//! Invariant: the payload of every tensor that is kept is copied byte for byte; a repair changes metadata or leaves a
//! tensor out. The original is never written to.

use bitnet_checkpoint::GGUF_ARCHITECTURE_KEY as ARCHITECTURE;
use bitnet_cli::Failure;
use bitnet_formats::{
    Artifact, Container, FileDigest, FormatError, Gguf, Input, Inputs, Limits, MetaValue, Metadata,
    PlannedTensor, WritePlan,
};
use std::fmt;
use std::path::Path;

/// One correction.
#[derive(Debug, Clone, PartialEq)]
pub enum Repair {
    /// Sets a metadata key.
    Set(String, MetaValue),
    /// Names the architecture, and its keys, anew.
    Architecture(&'static str),
    /// Leaves a tensor out.
    DropTensor(String),
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(key, value) => match (value.as_str(), value.as_u64()) {
                (Some(text), _) => write!(f, "{key} = {text}"),
                (_, Some(number)) => write!(f, "{key} = {number}"),
                _ => write!(f, "{key}"),
            },
            Self::Architecture(name) => write!(f, "{ARCHITECTURE} = {name}, and its keys"),
            Self::DropTensor(name) => write!(f, "without `{name}`"),
        }
    }
}

/// Writes a corrected copy of the file at `path`. `examined` is the file as it was when the repairs were chosen: if
/// it is another one by now, nothing is published.
pub(super) fn write(
    path: &Path,
    examined: Option<&Input>,
    repairs: &[Repair],
    output: &Path,
    force: bool,
) -> Result<FileDigest, Failure> {
    let is_same = || examined.map_or(Ok(()), Input::check);
    match copy(path, repairs, output, force, &is_same) {
        Ok(digest) => Ok(digest),
        // whatever failed, the change is the reason
        Err(error) => Err(is_same().err().map_or(error, Failure::from)),
    }
}

fn copy(
    path: &Path,
    repairs: &[Repair],
    output: &Path,
    force: bool,
    is_same: &dyn Fn() -> Result<(), FormatError>,
) -> Result<FileDigest, Failure> {
    let file = bitnet_formats::open(path, &Limits::default())?;
    if repairs.is_empty() {
        return Err(Failure::usage("nothing here can be repaired in the file")
            .hint("the remedies say what to do instead"));
    }
    if file.parts.len() != 1 {
        return Err(
            Failure::usage("--fix writes single files, this model is split")
                .hint("bitnet-convert SRC -o WHOLE.gguf joins the parts"),
        );
    }
    if file.container != Gguf.name() {
        return Err(Failure::usage(format!(
            "--fix writes GGUF files, this is {}",
            file.container
        ))
        .hint("the remedies say which key of config.json to change"));
    }
    let mut metadata = file.metadata.clone();
    let mut dropped = Vec::new();
    for repair in repairs {
        match repair {
            Repair::Set(key, value) => metadata.set(key.clone(), value.clone()),
            Repair::Architecture(name) => rename(&mut metadata, name),
            Repair::DropTensor(name) => dropped.push(name.as_str()),
        }
    }
    let kept: Vec<_> = file
        .tensors()
        .iter()
        .filter(|t| !dropped.contains(&t.name.as_str()))
        .collect();
    let tensors = kept.iter().map(|t| PlannedTensor {
        name: t.name.clone(),
        encoding: t.encoding,
        shape: t.shape.clone(),
        len: t.len,
    });
    let plan = WritePlan {
        metadata,
        tensors: tensors.collect(),
    };
    let header = Gguf.header(&plan)?;
    let mut artifact = Artifact::create(output, force)?;
    artifact.write(&header.bytes)?;
    for (tensor, offset) in kept.iter().zip(&header.offsets) {
        artifact.write_zeros(offset.saturating_sub(artifact.position()))?;
        artifact.write(&file.read(tensor)?)?;
    }
    artifact.write_zeros(header.total.saturating_sub(artifact.position()))?;
    file.check()?;
    is_same()?;
    Ok(artifact.finish()?)
}

/// `A.key` becomes `B.key`.
fn rename(metadata: &mut Metadata, name: &str) {
    let old = metadata
        .get(ARCHITECTURE)
        .and_then(MetaValue::as_str)
        .unwrap_or_default();
    let prefix = format!("{old}.");
    for (key, _) in &mut metadata.0 {
        if let Some(rest) = key.strip_prefix(&prefix) {
            *key = format!("{name}.{rest}");
        }
    }
    metadata.set(ARCHITECTURE, MetaValue::text(name));
}

/// Refuses an output that cannot be written, or is a file of the model.
pub(super) fn refuse_to_replace(
    model: &Path,
    output: &Path,
    force: bool,
) -> Result<(), FormatError> {
    let mut inputs = Inputs::new();
    inputs.add_model(model);
    if let Ok(file) = bitnet_formats::open(model, &Limits::default()) {
        file.parts.iter().for_each(|part| inputs.add(part.path()));
    }
    inputs.refuse(output)?;
    Artifact::check(output, force)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::{ErrorCode, MetaArray};
    use std::time::Duration;

    #[test]
    fn a_file_that_changed_after_its_examination_is_not_repaired() {
        let vector = "../../formats/vectors/gguf-files/llama_packed-tq2_0.gguf";
        let repairs = [Repair::Set("general.file_type".into(), MetaValue::U32(37))];
        let changes: [fn(&Path); 2] = [
            |path| std::fs::remove_file(path).unwrap(),
            |path| std::fs::write(path, std::fs::read(path).unwrap()).unwrap(),
        ];
        for change in changes {
            let dir = tempfile::tempdir().unwrap();
            let (path, output) = (dir.path().join("m.gguf"), dir.path().join("fixed.gguf"));
            std::fs::copy(vector, &path).unwrap();
            let examined = Input::of(&path).unwrap();
            // longer than a tick of the file system's clock
            std::thread::sleep(Duration::from_millis(20));
            change(&path);
            let error = write(&path, Some(&examined), &repairs, &output, false).unwrap_err();
            assert_eq!(error.code, ErrorCode::InputChanged, "{}", error.message);
            assert!(!output.exists());
            if path.exists() {
                let now = Input::of(&path).unwrap();
                write(&path, Some(&now), &repairs, &output, false).unwrap();
                assert!(output.exists());
            }
        }
    }

    #[test]
    fn an_architecture_takes_its_keys_along() {
        let mut metadata = Metadata::default();
        metadata.set(ARCHITECTURE, MetaValue::text("bitnet"));
        metadata.set("bitnet.block_count", MetaValue::U32(2));
        metadata.set(
            "tokenizer.ggml.tokens",
            MetaValue::Array(MetaArray::U32(vec![])),
        );
        rename(&mut metadata, "bitnet-b1.58");
        assert_eq!(
            metadata.get(ARCHITECTURE).and_then(MetaValue::as_str),
            Some("bitnet-b1.58")
        );
        assert_eq!(
            metadata.get("bitnet-b1.58.block_count"),
            Some(&MetaValue::U32(2))
        );
        assert!(metadata.get("bitnet.block_count").is_none());
        assert!(metadata.get("tokenizer.ggml.tokens").is_some());
    }
}
