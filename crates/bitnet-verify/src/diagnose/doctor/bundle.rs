//! `doctor --bundle FILE.zip`: what a report of a fault needs, in one file that can be shown to others.
//!
//! Invariant: a bundle has no weights, no whole vocabulary, no path of a directory, no environment and no secret. Its
//! size is bounded whatever the model says, and the same model, program and machine make the same bytes.

mod archive;
mod files;
mod headers;
mod keep;
mod machine;
mod text;

use crate::local::{Public, is_secret_key};
use archive::Entries;
use bitnet_cli::{Failure, Progress};
use bitnet_formats::{
    Artifact, ErrorCode, FormatError, Inputs, Limits, TensorFile, named, origin_of,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The version of the layout of a bundle (`formats/report.md`).
const VERSION: u32 = 1;

/// Most findings of the doctor that a bundle has, and the most characters of each text.
const FINDINGS: usize = 500;
const TEXT: usize = 1000;

const README: &str = "\
This archive describes a model for a report of a fault. `bitnet-verify doctor MODEL --bundle FILE.zip` wrote it.

bundle.json    what is in the archive, the program, the machine, and the files of the model with their sizes and hashes
doctor.json    what `bitnet-verify doctor MODEL --json` printed
headers.json   metadata and tensors: names, types, shapes, offsets, hashes
files/         configuration, generation settings, settings of the tokenizer, chat templates, settings of quantization

What is not in the archive:
- weights. Of tensors only names, types, shapes, places and SHA-256 hashes are here;
- vocabularies. Lists of tokens and merges are cut to their first entries, and the entry says how many there were;
- paths of directories. Files are named relative to the model;
- environment variables, user names, host names;
- values that look like tokens, keys or passwords. `[removed]` stands for them.

`changed` in bundle.json lists the files that are not here byte for byte, with the reason. Their hashes are those of the files
themselves. Chat templates and configurations are texts of the model: read them before you publish a private model's bundle.
";

/// Refuses a path at which no bundle can be written, or that is a file of the model.
pub(super) fn refuse_to_replace(
    model: &Path,
    bundle: &Path,
    force: bool,
) -> Result<(), FormatError> {
    let mut inputs = Inputs::new();
    inputs.add_model(model);
    for path in weight_files(model) {
        inputs.add(&path);
    }
    if let Some(directory) = directory_of(model, None) {
        for name in files::FILES {
            inputs.add(&directory.join(name));
        }
    }
    inputs.refuse(bundle)?;
    Artifact::check(bundle, force)
}

/// The files of weights, by names alone; what is named on the command line if they cannot be told.
fn weight_files(model: &Path) -> Vec<PathBuf> {
    match bitnet_formats::weight_files(model, &Limits::default()) {
        Ok(files) => files,
        Err(_) if model.is_dir() => Vec::new(),
        Err(_) => vec![model.to_owned()],
    }
}

/// A bundle that is ready to be written.
pub(super) struct Bundle {
    bytes: Vec<u8>,
    names: Vec<String>,
}

impl Bundle {
    /// Collects everything; `report` is what `--json` prints of the examination.
    pub(super) fn of(
        model: &Path,
        report: &Value,
        progress: &Progress,
    ) -> Result<Self, FormatError> {
        let weights = weight_files(model);
        let paths = std::iter::once(model).chain(weights.iter().map(PathBuf::as_path));
        let public = Public::knowing(paths);
        let file = bitnet_formats::open(model, &Limits::default());
        let directory = directory_of(model, file.as_ref().ok());

        let mut entries = Entries::default();
        let mut notes = files::Notes::default();
        entries.add("README.txt", README.as_bytes().to_vec());
        entries.add("doctor.json", pretty(&examination(report, &public)));
        let weights = headers::weights(&weights, &public, progress)?;
        let headers = match &file {
            Ok(file) => headers::of_file(file, &public, &mut entries, &mut notes, progress)?,
            Err(error) => headers::of_remains(model, error, &public, &mut entries, &mut notes),
        };
        if !entries.add("headers.json", pretty(&headers)) {
            let why = "the bundle is full";
            notes.left_out.insert("headers.json".to_owned(), why.into());
        }
        if let Some(directory) = &directory {
            files::collect(directory, &public, &mut entries, &mut notes);
        }
        if let Ok(file) = &file {
            file.check()?;
        }
        let origin = origin_of(model);
        let (repository, commit) = origin.map_or((None, None), |o| (o.repository, o.commit));
        let about = json!({
            "bundle": VERSION,
            "program": machine::program(),
            "machine": machine::of_this(),
            "model": {
                "name": crate::local::file_name(&named(model)),
                "container": file.as_ref().ok().map(|file| file.container),
                "repository": repository,
                "commit": commit,
                "files": weights,
            },
            "entries": entries.names(),
            "side_files": notes.files,
            "changed": notes.changed,
            "left_out": notes.left_out,
        });
        entries.add(archive::LIST, pretty(&about));
        let names = entries.names();
        Ok(Self {
            bytes: entries.into_zip()?,
            names,
        })
    }

    /// Writes the archive; the object that reports name it by.
    pub(super) fn write(&self, path: &Path, force: bool) -> Result<Value, FormatError> {
        let mut artifact = Artifact::create(path, force)?;
        artifact.write(&self.bytes)?;
        let digest = artifact.finish()?;
        Ok(json!({
            "path": path.display().to_string(),
            "bytes": digest.bytes,
            "sha256": digest.sha256,
            "entries": self.names,
        }))
    }
}

/// Writes a bundle about a model that could not be examined, and says so in the failure.
pub(super) fn about_failure(
    model: &Path,
    path: &Path,
    force: bool,
    failure: Failure,
    progress: &Progress,
) -> Failure {
    // of a model that is being changed, and of a run that was stopped, there is nothing to keep
    if matches!(
        failure.code,
        ErrorCode::InputChanged | ErrorCode::Interrupted
    ) {
        return failure;
    }
    let bundle = Bundle::of(model, &failure.to_json(), progress);
    match bundle.and_then(|bundle| bundle.write(path, force)) {
        Ok(_) => failure.hint(format!(
            "attach {} to a report of the fault: it has headers and settings, no weights",
            path.display()
        )),
        Err(error) => failure.hint(format!("there is no bundle: {error}")),
    }
}

/// The directory whose files belong to the model; a GGUF file has its settings inside.
fn directory_of(model: &Path, file: Option<&TensorFile>) -> Option<PathBuf> {
    if model.is_dir() {
        return Some(model.to_owned());
    }
    let is_alone = match file {
        Some(file) => file.container == bitnet_formats::Container::name(&bitnet_formats::Gguf),
        None => model.extension().is_some_and(|e| e == "gguf"),
    };
    let parent = model.parent().filter(|_| !is_alone)?;
    Some(match parent.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => parent.to_owned(),
    })
}

/// The object of the doctor, with names in place of paths and no more of it than is read.
fn examination(report: &Value, public: &Public) -> Value {
    let mut report = files::cleaned(report, public);
    let findings = report.get_mut("findings").and_then(Value::as_array_mut);
    let mut more = 0;
    if let Some(findings) = findings {
        more = findings.len().saturating_sub(FINDINGS);
        findings.truncate(FINDINGS);
        for finding in findings {
            // an unknown key is reported with its value
            let place = finding.get("place").and_then(Value::as_str);
            if place.is_some_and(is_secret_key) {
                finding["what"] = "[removed]".into();
            }
            for text in finding
                .as_object_mut()
                .into_iter()
                .flat_map(|o| o.values_mut())
            {
                if let Value::String(long) = text {
                    *long = text::shortened(long, TEXT);
                }
            }
        }
    }
    if more > 0 {
        report["findings_left_out"] = more.into();
    }
    report
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}
