//! `bitnet-convert push`: an output, its certificate and a model card to a repository of a Hub.
//!
//! Invariant: only an output that is what its certificate says is uploaded, and the card says nothing that the certificate,
//! the files or the source's own card do not say.

mod card;

use self::card::{Card, FrontMatter};
use crate::args::PushArgs;
use crate::source_hash::sha256_hex;
use bitnet_checkpoint::{
    Certificate, Checkpoint, OpenOptions, SignedStatement, signature_path, statement_path,
};
use bitnet_cli::{Console, Failure, Location, human_bytes, push as upload};
use bitnet_formats::{
    ErrorCode, FormatError, Limits, Sha256Stream, named, open_source, read_directory, read_file,
};
use bitnet_remote::{Repository, Upload};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The name of a model card.
const CARD: &str = "README.md";

/// What is uploaded.
struct Output {
    /// Names in the repository, and files.
    files: Vec<(String, PathBuf)>,
    certificate: Certificate,
    /// What the output's own card, or its metadata, say.
    front: FrontMatter,
}

/// Uploads an output.
pub fn run(args: &PushArgs, console: &mut Console<'_>) -> Result<(), Failure> {
    let repository = repository(args)?;
    let output = open(&args.output)?;
    let mut front = output.front.clone();
    let origin = output.certificate.origin.as_ref();
    if let Some(source) = origin.and_then(|o| o.repository.as_deref().zip(o.commit.as_deref())) {
        front.set_base_model(source.0);
        if !front.has("license") {
            // the license of the source is in its card
            match bitnet_remote::read_text(source.0, source.1, CARD) {
                Ok(text) => front.add_missing(&FrontMatter::of_card(&text)),
                Err(e) => console.note(format_args!("no license: {}", Failure::from(e)))?,
            }
        }
    }
    if !front.has("license") {
        console.warn("no license is known; add `license:` to README.md in the repository")?;
    }
    let card = Card {
        repository: &repository,
        certificate: &output.certificate,
        files: &output.files,
        front: &front,
    };
    let card = card.to_text()?;
    let prefix = repository
        .path
        .clone()
        .map_or(String::new(), |path| format!("{path}/"));
    let files: Vec<(String, PathBuf)> = output
        .files
        .iter()
        .filter(|(name, _)| name != CARD)
        .map(|(name, path)| (format!("{prefix}{name}"), path.clone()))
        .collect();
    let listed: Vec<Value> = files
        .iter()
        .map(|(name, path)| json!({"path": name, "bytes": path.metadata().map_or(0, |m| m.len())}))
        .collect();
    if args.dry_run {
        console.json(&json!({
            "status": "planned",
            "repository": repository.id,
            "revision": repository.revision(),
            "files": listed,
            "card": card,
        }))?;
        for (name, path) in &files {
            let bytes = path.metadata().map_or(0, |m| m.len());
            console.line(format_args!("{name} ({})", human_bytes(bytes)))?;
        }
        console.line(format_args!("{prefix}{CARD}:\n\n{}", card.trim_end()))?;
        return Ok(());
    }
    let default = format!(
        "Upload {} written by {}",
        output.certificate.target, output.certificate.tool
    );
    let request = Upload {
        files,
        texts: vec![(format!("{prefix}{CARD}"), card)],
        message: args.message.clone().unwrap_or(default),
        private: args.private,
    };
    let pushed = upload(&repository, &request, console)?;
    console.json(&json!({
        "status": "pushed",
        "repository": repository.id,
        "revision": repository.revision(),
        "commit": pushed.commit,
        "url": pushed.url,
        "bytes_sent": pushed.bytes_sent,
        "files": listed,
    }))?;
    console.summary(format_args!("{} at commit {}", pushed.url, pushed.commit))?;
    Ok(())
}

/// The repository that the command line names.
fn repository(args: &PushArgs) -> Result<Repository, Failure> {
    let Some(Location::Hub(mut repository)) = Location::parse(&args.repository)? else {
        let message = format!(
            "expected hf://OWNER/NAME, found {}",
            args.repository.display()
        );
        return Err(Failure::usage(message)
            .hint("name the repository: bitnet-convert push OUT hf://OWNER/NAME"));
    };
    match (&args.revision, &repository.revision) {
        (Some(asked), Some(named)) if asked != named => Err(Failure::usage(format!(
            "--revision {asked} and @{named} are two revisions"
        ))
        .hint("give the revision once")),
        (Some(asked), _) => {
            repository.revision = Some(asked.clone());
            Ok(repository)
        }
        _ => Ok(repository),
    }
}

/// Finds the files of an output and checks them.
fn open(output: &Path) -> Result<Output, Failure> {
    let limits = Limits::default();
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    let certificate;
    let mut front = FrontMatter::default();
    if output.is_dir() {
        certificate = output.join("certificate.json");
        list(output, "", &mut files)?;
        if let Ok(text) = read_file(&output.join(CARD), limits.side_file_bytes) {
            front = FrontMatter::of_card(&String::from_utf8_lossy(&text));
        }
    } else {
        let weights = bitnet_formats::weight_files(output, &limits)?;
        let mut name = output.file_name().unwrap_or_default().to_owned();
        // the certificate of a split model has the name of the whole
        if weights.len() > 1
            && let Some((prefix, _)) = name.to_string_lossy().rsplit_once("-of-")
            && let Some((prefix, _)) = prefix.rsplit_once('-')
        {
            name = format!("{prefix}.gguf").into();
        }
        name.push(".certificate.json");
        certificate = output.with_file_name(name);
        for path in weights.into_iter().chain([certificate.clone()]) {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            files.push((name, path));
        }
        if let Ok(checkpoint) = Checkpoint::open(output, &OpenOptions::default()) {
            for (key, text) in checkpoint.descriptions() {
                let of_license = [
                    ("license", ".license"),
                    ("license_name", ".license.name"),
                    ("license_link", ".license.link"),
                ];
                for (name, end) in of_license {
                    if key.ends_with(end) {
                        front.set(name, &text);
                    }
                }
            }
        }
    }
    if !certificate.is_file() {
        let message = format!("{}: the output has no certificate", certificate.display());
        return Err(Failure::new(ErrorCode::Io, message)
            .hint("push what bitnet-convert wrote, with the certificate that it wrote beside or inside it"));
    }
    let text = read_file(&certificate, limits.certificate_bytes)?;
    let read = Certificate::from_slice(&text).map_err(|e| e.in_file(&certificate))?;
    check(&read, &files)?;
    let signed = signed(&certificate, &text)?;
    // nothing that this program did not write
    files.retain(|(name, path)| {
        *path == certificate || read.output.iter().any(|record| record.name == *name)
    });
    files.extend(signed);
    Ok(Output {
        files,
        certificate: read,
        front,
    })
}

/// The signed statement beside a certificate, if it is about this certificate: names in the repository and paths.
fn signed(certificate: &Path, text: &[u8]) -> Result<Vec<(String, PathBuf)>, FormatError> {
    let paths = [statement_path(certificate), signature_path(certificate)];
    if !paths.iter().all(|path| path.is_file()) {
        return Ok(Vec::new());
    }
    let sha256 = sha256_hex(text);
    let statement = SignedStatement::beside(certificate)?;
    if !statement
        .subjects()
        .iter()
        .any(|(_, found)| *found == sha256)
    {
        let message = "the signed statement is about another certificate";
        return Err(FormatError::new(ErrorCode::Malformed, message)
            .in_file(&paths[0])
            .hint("remove the statement and its signature, or convert again with --sign"));
    }
    let named = paths.map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (name.into_owned(), path)
    });
    Ok(named.into())
}

/// The files below a directory; hidden ones are left out.
fn list(
    directory: &Path,
    prefix: &str,
    files: &mut Vec<(String, PathBuf)>,
) -> Result<(), FormatError> {
    let failed = |e: std::io::Error| FormatError::io(directory, &e);
    let mut entries = read_directory(directory)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        match path.is_dir() {
            _ if name.starts_with('.') => {}
            true => list(&path, &format!("{prefix}{name}/"), files)?,
            false => files.push((format!("{prefix}{name}"), path)),
        }
    }
    Ok(())
}

/// Whether the files are those that the certificate lists.
fn check(certificate: &Certificate, files: &[(String, PathBuf)]) -> Result<(), FormatError> {
    for record in &certificate.output {
        let refuse = |path: &Path, message: String| {
            Err(FormatError::new(ErrorCode::Checksum, message)
                .in_file(&named(path))
                .hint(
                    "convert again: push uploads only an output that is what its certificate says",
                ))
        };
        let Some((_, path)) = files.iter().find(|(name, _)| *name == record.name) else {
            let missing = PathBuf::from(&record.name);
            return refuse(
                &missing,
                "the certificate lists this file, and it is not there".to_owned(),
            );
        };
        let source = open_source(path)?;
        let mut hash = Sha256Stream::new();
        let mut at = 0;
        while at < source.len() {
            let end = source.len().min(at + (4 << 20));
            hash.update(&source.read(at..end)?);
            source.release(0..end);
            at = end;
        }
        let found = hash.finish().map_err(|e| FormatError::io(path, &e))?;
        // a card may have been edited
        if found != record.sha256 && record.name != CARD {
            return refuse(
                path,
                format!("expected SHA-256 {}, found {found}", record.sha256),
            );
        }
    }
    Ok(())
}
